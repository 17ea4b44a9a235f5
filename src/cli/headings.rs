//! The commands grouped under headings, for `fauna --help`.

use std::fmt::Write;

use clap::Subcommand;

use super::verbs::Verb;

/// All commands under their headings, each with the cargo feature that it needs in addition to `cli`.
pub const HEADINGS: [(&str, &[(&str, &str)]); 10] = [
    ("Text", &[("chat", ""), ("generate", ""), ("fill", ""), ("classify", ""), ("answer", "")]),
    ("Images", &[("draw", "vision"), ("describe", "vision")]),
    ("Audio", &[("compose", "audio"), ("listen", "audio"), ("codec", "audio")]),
    ("Robots", &[("act", "robotics"), ("tabletop", "tabletop")]),
    ("Time series", &[("forecast", "forecasting"), ("anomalies", "forecasting")]),
    ("Atoms and genes", &[("energy", "science"), ("relax", "science"), ("md", "science"), ("genes", "text")]),
    (
        "Any model",
        &[("run", ""), ("embed", ""), ("search", ""), ("compare", ""), ("bench", ""), ("parity", "")],
    ),
    ("Models", &[("list", ""), ("info", ""), ("pull", ""), ("quantize", "")]),
    ("Training", &[("tune", "datasets"), ("merge", "")]),
    ("Program", &[("tour", "builtin"), ("completions", ""), ("man", "")]),
];

/// Returns the cargo feature that a command needs and this program was built without.
pub fn missing_feature(verb: &str) -> Option<&'static str> {
    let named = HEADINGS.iter().flat_map(|(_, verbs)| *verbs).find(|(name, _)| *name == verb)?;
    (!named.1.is_empty() && !names().iter().any(|name| name == verb)).then_some(named.1)
}

/// Returns the names of all commands of this program.
pub fn names() -> Vec<String> {
    abouts().into_iter().map(|(name, _)| name).collect()
}

/// Returns the commands of this program with their descriptions.
fn abouts() -> Vec<(String, String)> {
    let command = Verb::augment_subcommands(clap::Command::new("fauna"));
    let about = |verb: &clap::Command| verb.get_about().map(ToString::to_string).unwrap_or_default();
    command.get_subcommands().map(|verb| (verb.get_name().to_string(), about(verb))).collect()
}

/// Returns the commands that have an option of this long name; `codec` and `genes` by their subcommands.
pub fn verbs_with(option: &str) -> Vec<String> {
    let has = |verb: &clap::Command| verb.get_arguments().any(|arg| arg.get_long() == Some(option));
    let program = Verb::augment_subcommands(clap::Command::new("fauna"));
    let mut verbs = Vec::new();
    for verb in program.get_subcommands() {
        verbs.extend(has(verb).then(|| verb.get_name().to_string()));
        let parts = verb.get_subcommands().filter(|part| has(part));
        verbs.extend(parts.map(|part| format!("{} {}", verb.get_name(), part.get_name())));
    }
    verbs
}

/// Returns the template of `fauna --help`.
pub fn template() -> String {
    let known = abouts();
    let mut text = "{before-help}{about-with-newline}\n{usage-heading} {usage}\n".to_string();
    for (heading, verbs) in HEADINGS {
        let lines: Vec<_> =
            verbs.iter().filter_map(|(verb, _)| known.iter().find(|(name, _)| name == verb)).collect();
        if !lines.is_empty() {
            let _ = write!(text, "\n{heading}:\n");
        }
        for (verb, about) in lines {
            let _ = writeln!(text, "  {verb:<12} {}", about.trim_end_matches('.'));
        }
    }
    text + "\nOptions:\n{options}{after-help}"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_exactly_one_heading() {
        let mut listed: Vec<&str> =
            HEADINGS.iter().flat_map(|(_, verbs)| verbs.iter().map(|(verb, _)| *verb)).collect();
        listed.retain(|verb| missing_feature(verb).is_none());
        listed.sort_unstable();
        let mut known = names();
        known.sort_unstable();
        assert_eq!(listed, known);
    }
}
