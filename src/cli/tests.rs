//! Tests of all commands: examples parse, and commands have only options that apply to them.

use clap::{Command, CommandFactory};

use super::*;

/// Returns every command with its name; `codec` and `genes` by their subcommands.
fn verbs() -> Vec<(String, Command)> {
    let mut program = Cli::command();
    program.build();
    let mut verbs = Vec::new();
    for verb in program.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let parts: Vec<&Command> = verb.get_subcommands().filter(|part| part.get_name() != "help").collect();
        match parts.is_empty() {
            true => verbs.push((verb.get_name().to_string(), verb.clone())),
            false => verbs.extend(
                parts
                    .into_iter()
                    .map(|part| (format!("{} {}", verb.get_name(), part.get_name()), part.clone())),
            ),
        }
    }
    verbs
}

/// Splits a line into words like a shell, up to a pipe or a redirection.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut begun) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            ' ' if !quoted => {
                if std::mem::take(&mut begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    words.extend(begun.then_some(word));
    let end = words.iter().position(|word| ["|", ">"].contains(&word.as_str())).unwrap_or(words.len());
    words.truncate(end);
    words
}

#[test]
fn the_clap_definition_is_valid() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_two_examples_that_parse() {
    for (name, verb) in verbs() {
        let help = verb.get_after_help().unwrap_or_else(|| panic!("{name} has no examples")).to_string();
        let examples: Vec<&str> = help
            .lines()
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| line.starts_with("fauna"))
            .collect();
        assert!(examples.len() >= 2, "{name}: {help}");
        for example in examples {
            let parsed = Cli::try_parse_from(words(example));
            assert!(parsed.is_ok(), "{name}: {example}: {}", parsed.unwrap_err());
            let begins = example.starts_with(&format!("fauna {name}")) || name == "run";
            assert!(begins, "{name}: {example}");
        }
    }
}

/// Options, and the only commands that have them.
const OWN: [(&str, &[&str]); 38] = [
    ("system", &["chat"]),
    ("reasoning", &["chat"]),
    ("show-reasoning", &["chat"]),
    ("prefix", &["generate"]),
    ("suffix", &["generate"]),
    ("file", &["generate"]),
    ("at", &["generate"]),
    ("keep-going", &["generate"]),
    ("labels", &["classify", "tune"]),
    ("pair", &["classify"]),
    ("context", &["answer"]),
    ("few-shot", &["describe"]),
    ("grid", &["draw"]),
    ("rank", &["draw"]),
    ("guidance", &["draw", "compose"]),
    ("melody", &["compose"]),
    ("seconds", &["compose", "bench"]),
    ("loudness", &["compose", "codec decode"]),
    ("max-seconds", &["answer", "compose", "listen", "codec encode"]),
    ("audio", &["answer", "compose", "listen", "codec encode"]),
    ("codes", &["codec decode"]),
    ("image", &["chat", "classify", "answer", "describe", "codec encode", "act", "embed"]),
    ("max-pixels", &["chat", "classify", "answer", "describe", "search", "codec encode", "act", "embed"]),
    ("instruction", &["act"]),
    ("unnorm-key", &["act", "tabletop"]),
    ("series", &["forecast", "anomalies"]),
    ("horizon", &["forecast", "anomalies", "tune"]),
    ("level", &["forecast", "anomalies"]),
    ("quantiles", &["forecast"]),
    ("cross-validation", &["forecast"]),
    ("atoms", &["energy", "relax", "md"]),
    ("fmax", &["relax"]),
    ("kelvin", &["md"]),
    ("nve", &["md"]),
    ("genes", &["embed", "genes generate", "genes score"]),
    ("protein", &["genes generate"]),
    ("stop", &["chat", "generate", "answer", "describe", "listen"]),
    (
        "temperature",
        &["chat", "generate", "answer", "describe", "draw", "compose", "listen", "genes generate"],
    ),
];

#[test]
fn options_belong_only_to_the_commands_they_apply_to() {
    for (name, verb) in verbs() {
        for (option, owners) in OWN {
            let has = verb.get_arguments().any(|arg| arg.get_long() == Some(option));
            assert_eq!(has, owners.contains(&name.as_str()), "{name} --{option}");
        }
        // `run` has no option of its own, only the arguments that it passes on.
        let own =
            |arg: &&clap::Arg| !arg.is_global_set() && !["help", "version"].contains(&arg.get_id().as_str());
        if name == "run" {
            assert_eq!(verb.get_arguments().filter(own).count(), 1);
        }
    }
}

#[test]
fn sampling_options_conflict_with_a_context() {
    let ask = |more: &[&str]| Cli::try_parse_from([&["fauna", "answer", "m", "why"], more].concat());
    assert!(ask(&["--context", "so"]).is_ok());
    assert!(ask(&["--image", "a.png", "--temperature", "0", "--max-tokens", "9"]).is_ok());
    for option in ["--temperature", "--max-tokens", "--stop", "--seed"] {
        let error = ask(&["--context", "so", option, "1"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{option}");
    }
    assert!(ask(&[]).is_err(), "one of --context, --image and --audio is required");
}

#[test]
fn input_limits_require_the_input_they_limit() {
    let parsed = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
    for (bare, with) in [
        ("fauna chat m a --max-pixels 9", "--image a.png"),
        ("fauna answer m a --context b --max-pixels 9", ""),
        ("fauna answer m a --image a.png --max-seconds 9", ""),
        ("fauna answer m a --max-pixels 9", "--image a.png"),
        ("fauna answer m a --max-seconds 9", "--audio a.wav"),
        ("fauna classify m --labels a --max-pixels 9", "--image a.png"),
        #[cfg(feature = "audio")]
        ("fauna compose m a --max-seconds 9", "--melody a.wav"),
        #[cfg(feature = "audio")]
        ("fauna codec encode m --max-seconds 9", "--audio a.wav"),
        #[cfg(feature = "vision")]
        ("fauna codec encode m --audio a.wav --max-pixels 9", ""),
    ] {
        assert!(!parsed(bare), "{bare}");
        assert!(with.is_empty() || parsed(&format!("{bare} {with}")), "{bare} {with}");
    }
}

#[test]
fn the_help_lists_every_command() {
    let help = Cli::command().render_help().to_string();
    for name in headings::names() {
        assert!(help.contains(&format!("\n  {name} ")), "{name} is not in: {help}");
    }
    for part in ["Text:", "Any model:", "Models:", "--json", "Exit status"] {
        assert!(help.contains(part), "{part} is not in: {help}");
    }
}
