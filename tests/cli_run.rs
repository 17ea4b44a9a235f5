//! Tests of `fauna run MODEL` and `fauna MODEL`: which command is chosen, and the errors if none fits.

#[allow(dead_code, reason = "shared with the tests of other commands, which use all of it")]
#[path = "support/program.rs"]
mod program;

use program::{refused, run, run_with, served};

const MASKED: &str = "tests/parity/bert/text_uncased_masked_lm/model";
const LLAMA: &str = "tests/parity/llama/text_left_padding/model";
const TALK: &str = "tests/parity/gpt_oss/generate_conversation/model";

/// Returns the command chosen for `line`, from the error message for an option that no command has.
#[track_caller]
fn picked(line: &[&str]) -> String {
    let verbs: Vec<String> = [&["run"][..], &[]]
        .into_iter()
        .map(|before| {
            let done = run(&[before, line, &["--no-such-option"]].concat());
            refused(&done, 2, &["--no-such-option", "fauna "]);
            let said = done.err.rsplit_once("The command chosen for this model is ").expect(&done.err).1;
            said.split_once(':').unwrap().0.to_string()
        })
        .collect();
    assert_eq!(verbs[0], verbs[1]);
    verbs[0].clone()
}

#[test]
fn the_command_is_chosen_by_the_model_and_the_options() {
    let model = |case: &str| format!("tests/parity/{case}/model");
    let mut cases = vec![
        (LLAMA.to_string(), "a", "generate"),
        (TALK.to_string(), "hello", "chat"),
        (TALK.to_string(), "--prefix=a", "generate"),
        (MASKED.to_string(), "a [MASK]", "fill"),
        (model("bert/sequence_classification"), "a", "classify"),
        (model("bert/text_cased_token_classification"), "a", "classify"),
        (model("bert/question_answering"), "why", "answer"),
        (model("bert/sentence_mean_normalized"), "a", "embed"),
        (model("genslm/embed_sequences"), "ATG", "genes generate"),
    ];
    if cfg!(feature = "vision") {
        cases.extend([
            (model("clip/end_to_end"), "--image=a.png", "classify"),
            (model("clip/end_to_end"), "a cat", "embed"),
            (model("flamingo/idefics_generate"), "--image=a.png", "describe"),
            (model("dalle/mini_generate"), "a cat", "draw"),
            (model("dalle/dvae_encode"), "--image=a.png", "codec encode"),
            (model("dalle/dvae_encode"), "--codes=a.safetensors", "codec decode"),
        ]);
    }
    if cfg!(feature = "audio") {
        cases.extend([
            (model("musicgen/generate_mono_guided"), "", "compose"),
            (model("encodec/encode_24khz"), "--audio=a.wav", "codec encode"),
            (model("encodec/encode_24khz"), "--codes=a.safetensors", "codec decode"),
            (model("llark/answer"), "--audio=a.wav", "listen"),
        ]);
    }
    if cfg!(feature = "robotics") {
        cases.push((model("openvla/forward_single"), "--instruction=a", "act"));
    }
    if cfg!(feature = "science") {
        cases.extend([
            (model("chronos/bolt_predict_short"), "--series=a.csv", "forecast"),
            (model("orb/v3_conservative_crystal"), "--atoms=a.cif", "energy"),
        ]);
    }
    if cfg!(feature = "forecasting") {
        cases.push(("seasonal-naive".to_string(), "--series=a.csv", "forecast"));
    }
    for (model, given, verb) in cases {
        assert_eq!(picked(&[&model, given]), verb, "{model} {given}");
    }
}

#[test]
fn the_output_is_that_of_the_chosen_command() {
    let asked = ["--max-tokens", "6", "--seed", "3", "--temperature", "1"];
    let by_verb = run(&[&["generate", LLAMA, "the"][..], &asked].concat());
    served(&by_verb);
    for before in [&["run"][..], &[], &["--quiet"], &["--quiet", "run"]] {
        let done = run(&[before, &[LLAMA, "the"], &asked].concat());
        served(&done);
        assert_eq!(done.out, by_verb.out, "{before:?}");
    }
    let done = run_with(&["run", LLAMA, "--max-tokens", "6", "--device", "cpu", "--json"], b"the\n");
    served(&done);
    assert!(done.out.starts_with('{'), "{}", done.out);
    refused(&run(&[LLAMA, "the", "--device", "tpu"]), 2, &["\"tpu\""]);
    served(&run(&[MASKED, "a [MASK] b"]));
}

#[test]
fn an_option_of_another_command_is_an_error_that_names_the_command() {
    let owners =
        if cfg!(feature = "audio") { "an option of the commands: compose, codec decode" } else { "" };
    let said = ["--loudness", "fauna generate", owners];
    refused(&run(&["generate", LLAMA, "the", "--loudness", "keep"]), 2, &said);
    refused(&run(&[LLAMA, "the", "--loudness", "keep"]), 2, &said);
    refused(&run(&["run", MASKED, "a [MASK]", "--temperature", "1"]), 2, &["--temperature", "fauna fill"]);
    refused(&run(&["run", MASKED, "a [MASK]", "--horizon", "1"]), 2, &["--horizon", "fauna fill --help"]);
}

#[test]
fn help_after_a_model_is_that_of_the_chosen_command() {
    let done = run(&[MASKED, "--help"]);
    served(&done);
    assert!(done.out.contains("Usage: fauna fill"), "{}", done.out);
}

#[test]
fn an_unknown_command_is_an_error_with_similar_commands() {
    refused(&run(&["chatt", "m"]), 2, &["'chatt'", "similar commands: chat", "fauna --help"]);
    refused(&run(&["generat"]), 2, &["similar commands: generate"]);
    refused(&run(&["quantise", "m"]), 2, &["similar commands: quantize"]);
    let nothing = run(&["xyzzyxyzzy"]);
    refused(&nothing, 2, &["neither a command nor a local model", "fauna --help"]);
    assert!(!nothing.err.contains("similar"), "{}", nothing.err);
    if cfg!(not(feature = "vision")) {
        refused(&run(&["draw", "m", "a cat"]), 2, &["without 'draw'", "--features vision"]);
    }
    refused(&run(&["run"]), 2, &["MODEL"]);
    refused(&run(&["run", "./no/such"]), 2, &["no/such", "no such file or folder"]);
    refused(&run(&["no-such/model", "a"]), 2, &["no-such/model"]);
}

#[test]
fn a_flag_selects_one_of_several_commands_of_a_model() {
    let model = "tests/parity/orb/v3_conservative_crystal/model";
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("o.xyz");
    let out = out.to_str().unwrap();
    let atoms = ["--atoms", "tests/data/rock_salt.xyz", "--out", out, "--force"];
    for (named, flag) in [
        (vec!["relax", model, "--max-steps", "2"], vec!["--relax", "--max-steps", "2"]),
        (vec!["md", model, "--steps", "2", "--nve"], vec!["--md", "2", "--nve"]),
    ] {
        let by_verb = run(&[&named[..], &atoms].concat());
        let by_flag = run(&[&["run", model], &flag[..], &atoms].concat());
        let by_model = run(&[&[model], &flag[..], &atoms].concat());
        assert_eq!(by_verb.status, 0, "{}", by_verb.err);
        assert_eq!(by_verb.out, by_flag.out);
        assert_eq!(by_verb.out, by_model.out);
    }
}
