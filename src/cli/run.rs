//! `fauna run MODEL …` and `fauna MODEL …`: choose the command by the model and the options given.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};
use fauna::error::nearest;
use fauna::{Error, Result};

use super::options::Loading;
use super::{Cli, Context, Globals, abilities, headings};

/// The options that are needed before the command is known.
#[derive(Debug, Parser)]
struct Early {
    #[command(flatten)]
    globals: Globals,
    #[command(flatten)]
    loading: Loading,
}

/// A command line that begins with a model, rewritten to begin with a command.
pub struct Rewritten {
    /// The command, for example "codec encode".
    pub verb: &'static str,
    /// All arguments, including the program name.
    pub line: Vec<OsString>,
    /// The context, which holds the loaded model.
    pub context: Context,
}

/// Flags that select a command: `fauna run MODEL --relax` is `fauna relax MODEL`. The third value is the option of the
/// command that replaces the flag.
const FLAGS: [(&str, &str, Option<&str>); 5] = [
    ("--chat", "chat", None),
    ("--relax", "relax", None),
    ("--md", "md", Some("--steps")),
    ("--anomalies", "anomalies", None),
    ("--score", "genes score", None),
];

/// Returns the command that a flag among `words` selects, and the arguments for it.
fn named_by_flag(words: &[OsString]) -> Option<(&'static str, Vec<OsString>)> {
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let (at, (flag, verb, instead)) = words[..end].iter().enumerate().find_map(|(at, word)| {
        let found = FLAGS.into_iter().find(|(flag, ..)| long_name(word) == flag.strip_prefix("--"))?;
        Some((at, found))
    })?;
    let mut words = words.to_vec();
    match instead {
        Some(option) => {
            let value = words[at].to_string_lossy().replacen(flag, option, 1);
            words[at] = value.into();
        }
        None => drop(words.remove(at)),
    }
    Some((verb, words))
}

/// Chooses the command for `line`, a model and arguments; `before` are the arguments in front of them.
///
/// # Errors
/// A model that cannot be loaded, or that no command supports.
pub fn rewrite(before: &[OsString], line: &[OsString]) -> Result<Rewritten> {
    let Some((source, rest)) = line.split_first() else { return Err(Error::input("no model given")) };
    let source = source
        .to_str()
        .ok_or_else(|| Error::input("the name of the model is not UTF-8").at(Path::new(source)))?;
    let early = early([before, rest].concat())?;
    let context = Context::new(early.globals)?.with_loading(early.loading);
    let (named, rest) = match named_by_flag(rest) {
        Some((verb, rest)) => (Some(verb), rest),
        None => (None, rest.to_vec()),
    };
    let verb = match (named, is_naive(source)) {
        (Some(verb), _) => verb,
        (None, true) => "forecast",
        (None, false) => {
            let card = context.look_at(source)?;
            let given: Vec<&str> = rest.iter().filter_map(|word| long_name(word)).collect();
            abilities::natural(&card, &given).ok_or_else(|| {
                Error::unsupported(format!("no command runs {source}, a {}", card.family))
                    .hint("fauna info shows what it holds")
            })?
        }
    };
    let verb_words = verb.split(' ').map(OsString::from);
    let line = std::iter::once("fauna".into())
        .chain(before.iter().cloned())
        .chain(verb_words)
        .chain(line.first().cloned())
        .chain(rest)
        .collect();
    Ok(Rewritten { verb, line, context })
}

/// Returns whether `source` is a naive forecaster, which needs no model.
fn is_naive(source: &str) -> bool {
    cfg!(feature = "forecasting") && ["naive", "seasonal-naive"].contains(&source)
}

/// Parses the options among `words` that are needed before the command is known; the command parses all of them again.
fn early(words: Vec<OsString>) -> Result<Early> {
    let command = Early::command();
    let mut line: Vec<OsString> = vec!["fauna".into()];
    let mut words = words.into_iter().take_while(|word| word != "--");
    while let Some(word) = words.next() {
        let short = |name: char| command.get_arguments().find(|arg| arg.get_short() == Some(name));
        let found = match (long_name(&word), word.to_str()) {
            (Some(name), _) => command.get_arguments().find(|arg| arg.get_long() == Some(name)),
            (None, Some("-q")) => short('q'),
            _ => None,
        };
        let Some(arg) = found else { continue };
        let takes_value = arg.get_action().takes_values() && !word.to_string_lossy().contains('=');
        line.push(word);
        line.extend(takes_value.then(|| words.next()).flatten());
    }
    Early::try_parse_from(line).map_err(|error| error.exit())
}

/// `--name` or `--name=value`: `name`.
fn long_name(word: &OsStr) -> Option<&str> {
    let name = word.to_str()?.strip_prefix("--")?.split('=').next()?;
    (!name.is_empty()).then_some(name)
}

/// Parses a rewritten command line. Errors name the command that was chosen.
pub fn parse(rewritten: &Rewritten) -> Cli {
    let mut command = Cli::command();
    let parsed = command
        .try_get_matches_from_mut(&rewritten.line)
        .and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    parsed.unwrap_or_else(|error| refuse(error, Some(rewritten.verb)))
}

/// Prints the error of clap and exits. Adds the command that was chosen, and the commands that have an unknown option.
pub fn refuse(error: clap::Error, picked: Option<&str>) -> ! {
    if !error.use_stderr() {
        error.exit();
    }
    let option = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(option))) => Some(option.clone()),
        _ => None,
    };
    let owners = option.as_deref().map(|option| headings::verbs_with(option.trim_start_matches('-')));
    // A write to standard error may fail if it is closed.
    let _ = error.print();
    let mut terminal = std::io::stderr();
    if let (Some(option), Some(owners)) = (option, owners.filter(|owners| !owners.is_empty())) {
        let _ = writeln!(terminal, "\n{option} is an option of the commands: {}", owners.join(", "));
    }
    if let Some(verb) = picked {
        let _ = writeln!(terminal, "\nThe command chosen for this model is {verb}: fauna {verb} --help");
    }
    std::process::exit(2)
}

/// Returns whether `word` names a model rather than a misspelt command.
pub fn names_a_model(word: &OsStr) -> bool {
    let Some(name) = word.to_str() else { return Path::new(word).exists() };
    let is_cached =
        || fauna::source::HubConfig::from_env().named.join(name).is_dir() && !name.starts_with('.');
    #[cfg(feature = "builtin")]
    let is_builtin = name.starts_with("fauna:") || fauna::builtin::find(name).is_some();
    #[cfg(not(feature = "builtin"))]
    let is_builtin = name.starts_with("fauna:");
    name.contains(['/', '\\']) || is_builtin || is_naive(name) || Path::new(name).exists() || is_cached()
}

/// Returns the error for an unknown command, with similar names.
pub fn unknown_verb(word: &OsStr) -> clap::Error {
    let name = word.to_string_lossy();
    if let Some(feature) = headings::missing_feature(&name) {
        return Cli::command().error(
            ErrorKind::InvalidSubcommand,
            format!("this program was built without '{name}': rebuild it with --features {feature}"),
        );
    }
    let names = headings::names();
    let near = nearest(&name, names.iter().map(String::as_str));
    let near = match near.is_empty() {
        true => String::new(),
        false => format!("\n\n  similar commands: {}", near.join(", ")),
    };
    Cli::command().error(
        ErrorKind::InvalidSubcommand,
        format!(
            "'{name}' is neither a command nor a local model{near}\n\n  all commands: fauna --help; a model on the \
                 Hugging Face Hub is owner/name"
        ),
    )
}
