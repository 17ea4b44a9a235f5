//! Tests of the whole program: each command, its exit status, output and messages, and its errors for invalid input.

#[path = "support/program.rs"]
mod program;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use program::{Done, copy_of, fauna, json_lines, refused, run, run_with, served, text};
use serde_json::Value;

const SENTENCES: &str = "tests/parity/bert/sentence_mean_normalized/model";
const MASKED: &str = "tests/parity/bert/text_uncased_masked_lm/model";
const LLAMA: &str = "tests/parity/llama/text_left_padding/model";

fn embedding(row: &Value) -> Vec<f64> {
    row["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

// list

#[test]
fn list_names_families_and_releases() {
    let done = run(&["list"]);
    served(&done);
    assert!(done.out.contains("google-bert/bert-base-uncased") && done.out.contains("openai-community/gpt2"));
    let found = json_lines(&run(&["list", "--json"]).out);
    let names: Vec<_> = found[0].as_array().unwrap().iter().map(|f| f["family"].as_str().unwrap()).collect();
    for name in ["bert", "gpt1", "gpt2", "llama"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn list_applies_its_filter_and_exits_with_1_without_a_match() {
    let llemma = run(&["list", "llemma"]);
    served(&llemma);
    assert!(llemma.out.contains("EleutherAI/llemma_7b") && !llemma.out.contains("gpt2"));
    assert!(run(&["list", "label"]).out.contains("bert"));
    let none = run(&["list", "lamma"]);
    refused(&none, 1, &["\"lamma\"", "llama"]);
    assert_eq!(none.out, "");
}

// info

#[test]
fn info_shows_the_contents_of_a_folder() {
    let done = run(&["info", SENTENCES, "--tensors"]);
    served(&done);
    for word in ["bert", "f32", "model.safetensors", "embeddings.word_embeddings.weight", "hidden_size"] {
        assert!(done.out.contains(word), "{word} is not in: {}", done.out);
    }
    let found = &json_lines(&run(&["info", SENTENCES, "--json"]).out)[0];
    assert_eq!((found["family"].as_str(), found["downloaded"].as_bool()), (Some("bert"), Some(true)));
    assert!(found["parameters"].as_u64().unwrap() > 1000);
}

#[test]
fn info_needs_no_weights() {
    let folder = copy_of(SENTENCES);
    let with = json_lines(&run(&["info", text(folder.path()), "--json"]).out).remove(0);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let done = run(&["info", text(folder.path()), "--json"]);
    served(&done);
    let without = json_lines(&done.out).remove(0);
    assert_eq!(without["parameters"], with["parameters"]);
    assert_eq!(without["downloaded"], false);
}

#[test]
fn info_reads_the_config_that_a_gguf_file_carries() {
    let file = "tests/parity/llama/gguf_q8_0/model";
    let done = run(&["info", file, "--json"]);
    served(&done);
    let found = json_lines(&done.out).remove(0);
    assert_eq!(found["family"], "llama");
    assert!(found["config"]["hidden_size"].as_u64().is_some() && found["stored"]["q8_0"].as_u64().is_some());
}

#[test]
fn an_unknown_family_is_an_error_with_similar_names() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "lama"}"#).unwrap();
    std::fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join(SENTENCES).join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let done = run(&["embed", text(folder.path()), "a"]);
    refused(&done, 2, &["\"lama\"", "nearest", "llama", "fauna list", "--family"]);
    assert_eq!(done.out, "");
    refused(&run(&["embed", SENTENCES, "a", "--family", "brt"]), 2, &["\"brt\"", "bert"]);
}

#[test]
fn an_invalid_model_name_or_folder_is_an_error_that_names_it() {
    refused(&run(&["embed", "./no/such", "a"]), 2, &["no/such", "no such file or folder"]);
    refused(&run(&["embed", "no-such", "a"]), 2, &["no-such"]);
    refused(&run(&["embed", "no-such/model", "a"]), 2, &["no-such/model"]);
    refused(&run(&["embed", "tests/parity", "a"]), 2, &["tests/parity"]);
    refused(&run(&["info", "Cargo.toml"]), 2, &["Cargo.toml"]);
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_the_file() {
    let folder = copy_of(SENTENCES);
    let weights = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    refused(&run(&["embed", text(folder.path()), "a"]), 2, &["model.safetensors"]);
    std::fs::remove_file(&weights).unwrap();
    refused(&run(&["embed", text(folder.path()), "a"]), 2, &[text(folder.path())]);
}

// pull

#[test]
fn pull_of_a_folder_prints_it_and_of_a_hub_id_fails_offline() {
    let done = run(&["pull", SENTENCES, "--quiet"]);
    served(&done);
    assert_eq!(done.out.trim(), SENTENCES);
    let found = &json_lines(&run(&["pull", SENTENCES, "--json"]).out)[0];
    assert!(found["weight_bytes"].as_u64().unwrap() > 1000);
    refused(
        &run(&["pull", "google-bert/bert-base-uncased"]),
        2,
        &["google-bert/bert-base-uncased", "network access is disabled"],
    );
}

// embed

#[test]
fn embed_writes_one_row_per_text_in_order() {
    let texts = ["a much longer text about cats and dogs", "a cat", "dogs bark"];
    let together = run(&["embed", SENTENCES, texts[0], texts[1], texts[2]]);
    served(&together);
    let rows = json_lines(&together.out);
    assert_eq!(rows.len(), 3);
    for (i, (row, text)) in rows.iter().zip(texts).enumerate() {
        assert_eq!((row["index"].as_u64(), row["text"].as_str()), (Some(i as u64), Some(text)));
        let alone = &json_lines(&run(&["embed", SENTENCES, text]).out)[0];
        for (a, b) in embedding(row).iter().zip(embedding(alone)) {
            assert!((a - b).abs() < 1e-5, "{text}: {a} {b}");
        }
    }
}

#[test]
fn texts_may_be_arguments_a_file_or_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.txt");
    std::fs::write(&file, "a cat\r\ndogs bark").unwrap();
    let arguments = run(&["embed", SENTENCES, "a cat", "dogs bark"]).out;
    assert_eq!(run(&["embed", SENTENCES, "--input", text(&file)]).out, arguments);
    assert_eq!(run_with(&["embed", SENTENCES], b"a cat\ndogs bark\n").out, arguments);
    assert_eq!(run_with(&["embed", SENTENCES, "--batch", "1"], b"a cat\ndogs bark\n").out.lines().count(), 2);
}

#[test]
fn every_format_holds_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        served(&run(&["embed", SENTENCES, "a cat", "dogs, \"bark\"", "--out", text(&path)]));
        std::fs::read(path).unwrap()
    };
    let rows: Vec<Vec<f64>> =
        json_lines(&String::from_utf8(write("a.jsonl")).unwrap()).iter().map(embedding).collect();
    let expected: Vec<f32> = rows.concat().iter().map(|x| *x as f32).collect();

    let csv = String::from_utf8(write("a.csv")).unwrap();
    let csv: Vec<&str> = csv.lines().collect();
    assert!(csv[0].starts_with("index,text,e0,e1,") && csv[2].starts_with("1,\"dogs, \"\"bark\"\"\","));
    let first: Vec<f32> = csv[1].split(',').skip(2).map(|x| x.parse().unwrap()).collect();
    assert_eq!(first, expected[..expected.len() / 2]);

    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let npy = write("a.npy");
    assert_eq!(floats(&npy[npy.len() - expected.len() * 4..]), expected);
    let safetensors = write("a.safetensors");
    let header = u64::from_le_bytes(safetensors[..8].try_into().unwrap()) as usize;
    let header_json: Value = serde_json::from_slice(&safetensors[8..8 + header]).unwrap();
    assert_eq!(header_json["embeddings"]["shape"], serde_json::json!([2, expected.len() / 2]));
    assert_eq!(floats(&safetensors[8 + header..]), expected);
}

#[test]
fn an_invalid_text_is_reported_and_the_others_are_embedded() {
    let done = run_with(&["embed", SENTENCES], b"a cat\n\n\xff\xfe bytes\ndogs bark\n");
    refused(&done, 2, &["line 2: the text is empty", "line 3: invalid UTF-8"]);
    let rows = json_lines(&done.out);
    assert_eq!(rows.len(), 4);
    assert!(rows[1]["embedding"].is_null() && rows[2]["error"].as_str().unwrap().contains("UTF-8"));
    assert_eq!(embedding(&rows[3]), embedding(&json_lines(&run(&["embed", SENTENCES, "dogs bark"]).out)[0]));
    // UTF-16 is recognized by its byte order mark.
    let wide: Vec<u8> = "\u{feff}a cat\r\ndogs bark\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let done = run_with(&["embed", SENTENCES], &wide);
    assert_eq!(done.status, 0, "{}", done.err);
    assert_eq!(embedding(&json_lines(&done.out)[1]), embedding(&rows[3]));
}

#[test]
fn empty_input_is_an_error() {
    refused(&run(&["embed", SENTENCES]), 2, &["no text to embed"]);
    refused(&run(&["embed", SENTENCES, "--input", "no-such.txt"]), 2, &["no-such.txt", "cannot open"]);
}

#[test]
fn a_text_over_the_maximum_length_is_truncated_with_a_note_or_refused() {
    let long = "cat ".repeat(400);
    let cut = run(&["embed", SENTENCES, &long, "a cat"]);
    assert_eq!(cut.status, 0);
    assert!(cut.err.contains("text 1: ") && cut.err.contains("were left out"), "{}", cut.err);
    assert!(json_lines(&cut.out)[0]["cut"].as_u64().unwrap() > 100);
    assert_eq!(run(&["embed", SENTENCES, &long, "--quiet"]).err, "");
    let strict = run(&["embed", SENTENCES, &long, "a cat", "--strict"]);
    refused(&strict, 2, &["text 1: ", "--strict"]);
    assert!(json_lines(&strict.out)[0]["embedding"].is_null());
    assert!(json_lines(&strict.out)[1]["embedding"].is_array());
}

#[test]
fn every_command_reports_truncated_tokens() {
    let long = "cat ".repeat(400);
    let masked = run(&["fill", MASKED, &format!("the [MASK] {long}")]);
    assert_eq!(masked.status, 0);
    let said = "tokens beyond the maximum sequence length of this model were left out";
    assert!(masked.err.contains(said) && masked.out.lines().count() == 5, "{}", masked.err);
    let lost = run(&["fill", MASKED, &format!("{long} the [MASK]")]);
    refused(&lost, 2, &["the truncated text has no [MASK]", "were left out"]);
    assert!(run(&["compare", SENTENCES, &long, "a cat"]).err.contains(said));
    assert_eq!(run(&["compare", SENTENCES, "a dog", "a cat"]).err, "");
}

/// Returns a copy of a classifier with `keys` added to its config.
fn classifier(keys: Value) -> tempfile::TempDir {
    let folder = copy_of("tests/parity/bert/sequence_classification/model");
    let model = folder.path();
    for file in ["vocab.txt", "tokenizer_config.json"] {
        std::fs::copy(Path::new(MASKED).join(file), model.join(file)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    folder
}

fn scores(done: &Done) -> Vec<f64> {
    served(done);
    done.out.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

#[test]
fn the_config_of_a_classifier_selects_the_activation_of_its_scores() {
    let of = |keys: Value| {
        let folder = classifier(keys);
        scores(&run(&["classify", text(folder.path()), "the"]))
    };
    let identity = serde_json::json!({"sentence_transformers":
        {"activation_fn": "torch.nn.modules.linear.Identity"}});
    let raw = of(identity);
    assert_eq!(raw, of(serde_json::json!({"problem_type": "regression"})));
    let near = |found: Vec<f64>, wanted: Vec<f64>| {
        found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-4) && found.len() == wanted.len()
    };
    let sum: f64 = raw.iter().map(|x| x.exp()).sum();
    assert!(near(of(serde_json::json!({})), raw.iter().map(|x| x.exp() / sum).collect()));
    let sigmoid = of(serde_json::json!({"problem_type": "multi_label_classification"}));
    assert!(near(sigmoid, raw.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect()));

    let pair = |more: &[&str]| {
        let folder = classifier(serde_json::json!({}));
        scores(&run(&[&["classify", text(folder.path()), "the"], more].concat()))
    };
    assert_eq!(pair(&[]), of(serde_json::json!({})));
    assert_ne!(pair(&["--pair", "a"]), pair(&[]));

    let folder = classifier(serde_json::json!({"id2label": {"0": "a", "1": "b"}, "num_labels": 5}));
    let named = run(&["classify", text(folder.path()), "the"]);
    assert_eq!(named.status, 0);
    assert!(named.out.contains("LABEL_4") && named.err.contains("num_labels is 5"), "{}", named.err);
    let folder = classifier(serde_json::json!({"sbert_ce_default_activation_function": "mine.Swish"}));
    refused(
        &run(&["classify", text(folder.path()), "the"]),
        2,
        &["config.json", "\"mine.Swish\"", "Identity"],
    );
}

#[test]
fn the_modules_of_a_sentence_embedder_are_shown_and_missing_ones_reported() {
    let dense = "tests/parity/bert/sentence_today_two_dense/model";
    let done = run(&["info", dense]);
    served(&done);
    let shown = "weightedmean and lasttoken over the tokens, Dense 48 to 16 (Tanh), Dense 16 to 16 (Tanh), Dense 16 to 9";
    assert!(done.out.contains(shown) && done.out.contains("longest     40 tokens"), "{}", done.out);
    let found = &json_lines(&run(&["info", dense, "--json"]).out)[0];
    assert!(found["texts"]["vectors"].as_str().unwrap().contains("not normalised"));
    let prompt = run(&["info", "tests/parity/bert/sentence_today_prompt/model"]);
    assert!(prompt.out.contains("\"the star is: \"") && prompt.out.contains("normalised"), "{}", prompt.out);

    // Only the top-level files, of which the cache has all but one.
    let folder = copy_of(SENTENCES);
    let model = folder.path();
    refused(&run(&["embed", text(model), "a cat"]), 2, &["1_Pooling/config.json", "missing"]);
    std::fs::remove_file(model.join("modules.json")).unwrap();
    let without = run(&["embed", text(model), "a cat"]);
    assert_eq!(without.status, 0);
    assert!(
        without.err.contains("no modules.json") && without.err.contains("not normalised"),
        "{}",
        without.err
    );
    assert!(run(&["info", text(model)]).out.contains("(no modules.json)"));
    let chosen = run(&["embed", text(model), "a cat", "--set", "pooling_mode=cls"]);
    assert_eq!(chosen.err, "");
    assert_ne!(embedding(&json_lines(&chosen.out)[0]), embedding(&json_lines(&without.out)[0]));
}

#[test]
fn a_quantized_copy_keeps_the_dense_modules() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let dense = "tests/parity/bert/sentence_today_two_dense/model";
    assert_eq!(run(&["quantize", dense, "--to", "q8_0", "--out", text(&copy)]).status, 0);
    let [of_copy, of_dense] = [text(&copy), dense].map(|model| {
        let done = run(&["embed", model, "a cat"]);
        served(&done);
        embedding(&json_lines(&done.out)[0])
    });
    assert_eq!(of_copy.len(), 7);
    assert!(of_copy.iter().zip(&of_dense).all(|(a, b)| (a - b).abs() < 0.05), "{of_copy:?} {of_dense:?}");
}

#[test]
fn an_existing_file_is_overwritten_only_with_force() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.npy");
    std::fs::write(&out, "mine").unwrap();
    refused(&run(&["embed", SENTENCES, "a", "--out", text(&out)]), 2, &["out.npy", "--force"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    served(&run(&["embed", SENTENCES, "a", "--out", text(&out), "--force"]));
    assert!(std::fs::read(&out).unwrap().starts_with(b"\x93NUMPY"));
    refused(&run(&["embed", SENTENCES, "a", "--out", text(folder.path())]), 2, &["folder"]);
    refused(
        &run(&["embed", SENTENCES, "a", "--out", "/no/such/folder/x.npy"]),
        2,
        &["x.npy", "cannot write"],
    );
}

#[test]
fn an_error_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    refused(&run(&["embed", "no-such", "a", "--out", text(&out)]), 2, &["no-such"]);
    refused(&run(&["embed", SENTENCES, " ", "--format", "npy", "--out", text(&out)]), 2, &["empty"]);
    let left: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    for format in ["jsonl", "csv", "npy", "safetensors"] {
        let done = run(&["embed", SENTENCES, "a cat", "--format", format, "--out", "/dev/full"]);
        refused(&done, 2, &["/dev/full: cannot write", "No space left"]);
    }
    for arguments in [&["list"][..], &["man"], &["generate", LLAMA, "the", "--max-tokens", "2"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let done: Done = fauna().args(arguments).stdout(full).output().unwrap().into();
        refused(&done, 2, &["standard output: cannot write", "No space left"]);
    }
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_not_an_error() {
    let lines = "a cat\n".repeat(600);
    let mut child = fauna()
        .args(["embed", SENTENCES, "--batch", "20"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(lines.as_bytes())));
    let mut start = [0u8; 10];
    child.stdout.take().unwrap().read_exact(&mut start).unwrap();
    let done: Done = child.wait_with_output().unwrap().into();
    writer.join().unwrap();
    assert_eq!((done.status, done.err.as_str()), (0, ""));
}

// generate, fill, classify, chat, answer

#[test]
fn generate_is_deterministic() {
    let arguments = ["generate", LLAMA, "the", "--max-tokens", "6"];
    let done = run(&arguments);
    served(&done);
    assert!(done.out.ends_with('\n'));
    assert_eq!(run(&arguments).out, done.out);
    assert_eq!(run_with(&["generate", LLAMA, "--max-tokens", "6"], b"the\n").out, done.out);
    let json = &json_lines(&run(&[&arguments[..], &["--json"]].concat()).out)[0];
    assert_eq!(json["text"].as_str().unwrap().trim_end(), done.out.trim_end());
    let sampled = ["--temperature", "1.5", "--seed", "3"];
    let one = run(&[&arguments[..], &sampled].concat()).out;
    assert_eq!(run(&[&arguments[..], &sampled].concat()).out, one);
}

#[test]
fn fill_predicts_masks_with_scores() {
    let done = run(&["fill", MASKED, "a [MASK] b", "--json"]);
    served(&done);
    let labels = json_lines(&done.out)[0]["labels"].as_array().unwrap().clone();
    assert_eq!(labels.len(), 5);
    assert!(labels[0]["score"].as_f64() >= labels[1]["score"].as_f64());
    assert_eq!(run(&["fill", MASKED, "a [MASK] b"]).out.lines().count(), 5);
    refused(&run(&["fill", MASKED, "no gap here"]), 2, &["[MASK]"]);
}

#[test]
fn unsupported_commands_and_invalid_options_are_errors() {
    refused(&run(&["generate", SENTENCES, "a"]), 2, &["is a bert", "generate", "try: embed, compare"]);
    refused(&run(&["generate", LLAMA, "  "]), 2, &["the prompt is empty"]);
    refused(&run(&["generate", LLAMA, "a", "--top-p", "2"]), 2, &["top_p"]);
    refused(&run_with(&["generate", LLAMA], b"\xff"), 2, &["invalid UTF-8"]);
    refused(&run(&["generate", LLAMA, "a", "--device", "tpu"]), 2, &["\"tpu\"", "cuda"]);
    refused(&run(&["generate", LLAMA, "a", "--quantize", "q9"]), 2, &["\"q9\"", "q8_0"]);
    refused(&run(&["chat", MASKED, "hello"]), 2, &["is a bert", "chat", "try: fill, embed"]);
    refused(&run(&["chat", LLAMA, "hello"]), 2, &["is a llama", "chat", "try: generate"]);
    refused(&run(&["classify", MASKED, "a [MASK]"]), 2, &["classify", "try: fill"]);
}

/// Returns a copy of the small Llama with a chat template.
fn chat_model() -> tempfile::TempDir {
    let folder = copy_of(LLAMA);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

#[test]
fn chat_answers_each_line_until_quit() {
    let folder = chat_model();
    let arguments = ["chat", text(folder.path()), "--max-tokens", "3", "--temperature", "0", "--json"];
    let said = b"hello\n\n\xff\xff\nmore\n/clear\nhello\n/quit\nnever\n";
    let done = run_with(&arguments, said);
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.err.contains("not valid UTF-8"), "{}", done.err);
    let turns = json_lines(&done.out);
    let questions: Vec<_> = turns.iter().map(|turn| turn["prompt"][0]["content"].as_str().unwrap()).collect();
    assert_eq!(questions, ["hello", "more", "hello"]);
    assert_eq!(turns[0]["text"], turns[2]["text"], "/clear starts a new conversation");
    assert_eq!(run_with(&arguments[..6], b"hello\n").out.trim(), turns[0]["text"].as_str().unwrap().trim());
}

#[test]
fn chat_samples_by_default_and_reports_the_parameters() {
    let folder = chat_model();
    let ask =
        |how: &[&str]| run(&[&["chat", text(folder.path()), "hello", "--max-tokens", "24"], how].concat());
    let usual = ask(&[]);
    assert_eq!(usual.status, 0, "{}", usual.err);
    let said = "temperature 0.8, top-p 0.95, top-k 40, min-p 0.05, seed 0";
    assert!(usual.err.contains(said), "{}", usual.err);
    let spelled = ["--temperature", "0.8", "--top-p", "0.95", "--top-k", "40", "--min-p", "0.05"];
    let by_name = ask(&spelled);
    served(&by_name);
    assert_eq!(usual.out, by_name.out);
    assert_ne!(ask(&["--seed", "1"]).out, usual.out);
    let greedy = ask(&["--temperature", "0"]);
    served(&greedy);
    assert_ne!(greedy.out, usual.out);
    // `generate` follows the generation config.
    served(&run(&["generate", text(folder.path()), "hello", "--max-tokens", "4"]));
}

/// With the KV cache only the new tokens of a turn are processed; the answers are those without the cache.
#[test]
fn chat_with_the_kv_cache_answers_as_without_it() {
    let folder = chat_model();
    let how = ["--max-tokens", "6", "--temperature", "0", "--json"];
    let talk = run_with(&[&["chat", text(folder.path())][..], &how].concat(), b"hello\nmore\nand more\n");
    let turns = json_lines(&talk.out);
    assert_eq!(turns.len(), 3);
    let greedy = fauna::GenerationConfig::greedy(6);
    let said = |role, words: &str| fauna::Turn { role, items: vec![words.into()] };
    let mut told = Vec::new();
    for (turn, question) in turns.iter().zip(["hello", "more", "and more"]) {
        told.push(said(fauna::Role::User, question));
        let mut anew = String::new();
        let model = fauna::open(text(folder.path())).unwrap();
        let each = &mut |item| {
            if let fauna::Item::Text(piece) = item {
                anew += &piece;
            }
            std::ops::ControlFlow::Continue(())
        };
        model.generate(&fauna::Prompt::Chat(told.clone()), &greedy, each).unwrap();
        assert_eq!(turn["text"].as_str().unwrap(), anew, "{question}");
        told.push(said(fauna::Role::Assistant, &anew));
    }
}

#[test]
fn a_system_prompt_changes_the_answer() {
    let folder = chat_model();
    let ask = |more: &[&str]| {
        let done = run(&[
            &["chat", text(folder.path()), "hello", "--max-tokens", "8"],
            &["--temperature", "0", "--json"][..],
            more,
        ]
        .concat());
        served(&done);
        json_lines(&done.out).remove(0)
    };
    assert_ne!(ask(&[])["text"], ask(&["--system", "You are the sea."])["text"]);
    assert_eq!(ask(&["--system", "You are the sea."])["prompt"][0]["role"], "system");
}

#[test]
fn a_question_is_answered_from_its_context() {
    let folder = copy_of("tests/parity/bert/question_answering/model");
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "wrote", "it", "ada", "did"];
    let rest = (words.len()..config["vocab_size"].as_u64().unwrap() as usize).map(|i| format!("word{i}"));
    let vocabulary: Vec<String> = words.into_iter().map(String::from).chain(rest).collect();
    std::fs::write(folder.path().join("vocab.txt"), vocabulary.join("\n")).unwrap();
    let source = text(folder.path());
    let done = run(&["answer", source, "who wrote it", "--context", "ada did it", "--json"]);
    served(&done);
    let answer = json_lines(&done.out)[0]["labels"][0].clone();
    let span = |end: &str| answer["span"][end].as_u64().unwrap() as usize;
    assert_eq!(answer["label"].as_str().unwrap(), &"ada did it"[span("start")..span("end")]);
    refused(&run(&["answer", source, "who wrote it"]), 2, &["--context"]);
    refused(&run(&["answer", source, "who", "--image", "docs/images/tour.png"]), 2, &["--context TEXT"]);
    let two = run(&["answer", source, "who wrote it", "who did", "--context", "ada did it", "--json"]);
    served(&two);
    assert_eq!(json_lines(&two.out)[0]["labels"][0], answer);
    assert_eq!(json_lines(&two.out).len(), 2);
}

// compare

#[test]
fn compare_prints_a_symmetric_matrix() {
    let done = run(&["compare", SENTENCES, "a cat", "a dog", "stars", "--json"]);
    served(&done);
    let matrix = json_lines(&done.out)[0]["models"][0]["similarity"].clone();
    for i in 0..3 {
        assert!((matrix[i][i].as_f64().unwrap() - 1.0).abs() < 1e-5);
        assert_eq!(matrix[i][0], matrix[0][i]);
    }
    assert_eq!(run(&["compare", SENTENCES, "a cat", "a dog"]).out.lines().count(), 3);
    refused(&run(&["compare", SENTENCES, "alone"]), 2, &["two texts or more"]);
}

#[test]
fn compare_reports_the_agreement_of_models_and_writes_a_heatmap() {
    let folder = tempfile::tempdir().unwrap();
    let png = folder.path().join("a.png");
    let texts = ["a cat", "a dog", "stars"];
    let done = run(&[&["compare", SENTENCES, "--with", SENTENCES, "--png", text(&png)][..], &texts].concat());
    assert_eq!(done.status, 0, "{}", done.err);
    assert!(done.out.contains("correlation 1.000"), "{}", done.out);
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
}

// all commands

#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_130_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let mut child = fauna()
        .args(["embed", SENTENCES, "--batch", "1", "--out", text(&out)])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The temporary file exists as soon as the output is open; then the program waits for its input.
    let begun = || std::fs::read_dir(folder.path()).unwrap().count() > 0;
    for _ in 0..500 {
        if begun() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(begun());
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"a cat\n").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    drop(stdin);
    assert_eq!(status.code(), Some(130));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_error_does_not_crash_the_program() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = fauna().args(["embed", "./no/such", "a"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn completions_and_the_manual_page_list_all_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let done = run(&["completions", shell]);
        served(&done);
        assert!(done.out.contains("embed") && done.out.contains("quantize"), "{shell}");
    }
    let page = run(&["man"]);
    served(&page);
    assert!(page.out.contains(".TH") && page.out.contains("embed"));
    let help = run(&["--help"]).out;
    let verbs =
        help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with([' ', '-']));
    let verbs: Vec<&str> = verbs.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.len() > 15 && verbs.contains(&"generate"), "{help}");
    let bash = run(&["completions", "bash"]).out;
    for verb in verbs {
        assert!(
            bash.contains(&format!("fauna__subcmd__{verb}")) || bash.contains(&format!("fauna__{verb}")),
            "{verb}"
        );
        assert!(page.out.contains(&format!("fauna\\-{verb}")), "{verb}");
    }
}

#[test]
fn invalid_arguments_exit_with_2_and_help_with_0() {
    refused(&run(&["embd"]), 2, &["embd", "similar commands: embed", "fauna --help"]);
    refused(&run(&["generate", LLAMA, "a", "--max-tokens", "many"]), 2, &["--max-tokens"]);
    refused(&run(&["list", "--threads", "0"]), 2, &["--threads"]);
    served(&run(&["--help"]));
    assert!(run(&["--version"]).out.starts_with("fauna "));
}

#[cfg(feature = "builtin")]
mod builtin {
    use super::*;

    #[test]
    fn the_program_without_arguments_runs_the_tour_without_a_cache() {
        let home = tempfile::tempdir().unwrap();
        let tour = || -> Done {
            let mut command = fauna();
            command.current_dir(home.path()).env("FAUNA_CACHE", home.path().join("cache"));
            command.output().unwrap().into()
        };
        let done = tour();
        served(&done);
        for word in ["fauna list", "Search by meaning", "Shares of the company fell", "fauna-tour/index.html"]
        {
            assert!(done.out.contains(word), "{word} is not in: {}", done.out);
        }
        let page = home.path().join("fauna-tour/index.html");
        let written = std::fs::read_to_string(&page).unwrap();
        for word in
            ["data:image/png;base64,", "fauna search minilm sentences.txt", "With a release of full size"]
        {
            assert!(written.contains(word), "{word} is not on the page");
        }
        // Everything is in the page.
        assert!(!written.contains("http:") && !written.contains("https:") && !written.contains("<script"));
        // The second time the page is there.
        let again = tour();
        served(&again);
        assert!(again.out.contains("`fauna tour` runs it again"), "{}", again.out);
        assert!(!again.out.contains("Search by meaning"));
    }

    #[test]
    fn a_tour_replaces_an_earlier_one_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("demo");
        let tour = || run(&["tour", "--only", "search", "--out", text(&folder), "--json"]);
        served(&tour());
        let done = tour();
        served(&done);
        let stop = json_lines(&done.out)[0].clone();
        assert_eq!((&stop["stop"], stop["commands"].as_array().unwrap().len()), (&"search".into(), 3));
        assert_eq!(stop["commands"][2]["files"][0], "similarity.png");
        assert!(folder.join("similarity.png").exists());
        std::fs::write(folder.join("letter.txt"), "mine").unwrap();
        refused(&tour(), 2, &["letter.txt", "--out"]);
        assert!(folder.join("similarity.png").exists() && folder.join("index.html").exists());
        refused(&run(&["tour", "--only", "serch", "--out", text(&folder)]), 2, &["serch", "search"]);
    }

    #[test]
    fn the_lines_of_a_file_are_searched() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("notes.txt");
        std::fs::write(&notes, b"Shares fell.\n\nA lullaby for the baby.\nThe rover drove on Mars.\n\xff\n")
            .unwrap();
        let done = run(&["search", "minilm", text(&notes), "help a child sleep", "--top", "2", "--json"]);
        // The line that is not UTF-8 is reported, the blank one is not.
        assert_eq!((done.status, done.err.lines().count()), (2, 1), "{}", done.err);
        assert!(done.err.contains("notes.txt: line 5"), "{}", done.err);
        let found = json_lines(&done.out)[0]["found"].clone();
        assert_eq!(found[0]["text"], "A lullaby for the baby.");
        assert_eq!(found.as_array().unwrap().len(), 2);
        refused(&run(&["search", "minilm", text(&notes), "x", "--png", "a.png"]), 2, &["--png", "notes.txt"]);
        std::fs::write(&notes, "\n").unwrap();
        refused(&run(&["search", "minilm", text(&notes), "x"]), 2, &["notes.txt", "no text to search"]);
    }

    #[test]
    fn the_built_in_model_ranks_by_similarity() {
        let done = run(&["compare", "minilm", "a cat sleeps", "the kitten naps", "stocks fell", "--json"]);
        served(&done);
        let matrix = json_lines(&done.out)[0]["models"][0]["similarity"].clone();
        assert!(matrix[0][1].as_f64().unwrap() > 0.5 && matrix[0][2].as_f64().unwrap() < 0.3, "{matrix}");
    }
}
