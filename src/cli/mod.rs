//! The definition of the command line, from which help, completions and the man page are generated.
//!
//! Each command is a module of [`verbs`] with its `Args` and `run(args, context)`. Groups of options that several
//! commands share are in [`options`].

mod abilities;
#[cfg(feature = "science")]
mod atoms;
#[cfg(feature = "vision")]
mod contact_sheet;
mod context;
mod font;
mod headings;
mod heatmap;
mod input;
mod interrupt;
#[cfg_attr(
    not(all(feature = "vision", feature = "audio")),
    allow(dead_code, unused_imports, reason = "shared by commands of modalities that a build may lack")
)]
mod options;
mod output;
#[cfg(any(feature = "science", feature = "forecasting", feature = "datasets", feature = "audio"))]
#[cfg_attr(
    not(all(feature = "science", feature = "forecasting", feature = "datasets", feature = "audio")),
    allow(dead_code, reason = "shared by commands of modalities that a build may lack")
)]
mod plot;
mod png;
mod progress;
#[cfg_attr(
    not(all(feature = "vision", feature = "audio")),
    allow(dead_code, unused_imports, reason = "shared by commands of modalities that a build may lack")
)]
mod reply;
mod run;
#[cfg(feature = "forecasting")]
mod series;
#[cfg(feature = "audio")]
mod spectrogram;
mod table;
mod vectors;
mod verbs;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use fauna::{Error, ErrorKind, Result};

pub use context::{Context, Globals};
use verbs::Verb;

/// The outcome of a command that ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Success: exit status 0.
    Done,
    /// A negative result, such as no match or a failed comparison: exit status 1.
    No,
    /// Some inputs failed and were reported, the others were processed: exit status 2.
    Partly,
}

/// Run multimodal foundation models on CPU, CUDA or Metal.
///
/// Without a command, prints an overview and, the first time, runs the tour with the built-in models.
#[derive(Debug, Parser)]
#[command(
    name = "fauna",
    version,
    help_template = headings::template(),
    max_term_width = 100,
    after_help = "Results are written to standard output, progress and messages to standard error.\n\
                  Exit status: 0 success, 1 negative result (no match, outputs differ), 2 error, 130 interrupted.\n\n\
                  Use \"fauna COMMAND --help\" for the options and examples of a command."
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Parses the arguments, runs the command and returns the exit status.
pub fn main() -> ExitCode {
    fauna::error::set_option_style(options::style::of);
    let done = match parse() {
        Ok((None, context)) => alone(&context),
        Ok((Some(verb), context)) => verb.run(&context),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Ok(Exit::Partly) => ExitCode::from(2),
        Err(error) => fail(&error),
    }
}

/// Returns the command given, or the one that fits the model given, and its context.
fn parse() -> Result<(Option<Verb>, Context)> {
    let cli = Cli::try_parse().unwrap_or_else(|error| run::refuse(error, None));
    let line = match &cli.verb {
        Some(Verb::Run { line }) => line,
        Some(Verb::Model(line)) => match line.first() {
            Some(word) if !run::names_a_model(word) => run::unknown_verb(word).exit(),
            _ => line,
        },
        _ => {
            let loading = cli.verb.as_ref().and_then(Verb::loading).unwrap_or_default();
            return Ok((cli.verb, Context::new(cli.globals)?.with_loading(loading)));
        }
    };
    let all: Vec<OsString> = std::env::args_os().skip(1).collect();
    let before = all.get(..all.len().saturating_sub(line.len())).unwrap_or_default();
    let before = match before.split_last() {
        Some((word, before)) if word == "run" => before,
        _ => before,
    };
    let rewritten = run::rewrite(before, line)?;
    let cli = run::parse(&rewritten);
    Ok((cli.verb, rewritten.context))
}

/// Runs `fauna` without a command.
fn alone(context: &Context) -> anyhow::Result<Exit> {
    #[cfg(feature = "builtin")]
    return verbs::tour::welcome(context);
    #[cfg(not(feature = "builtin"))]
    {
        let _ = context;
        verbs::completions::help()
    }
}

/// Prints `error` with its context, and returns the exit status of its kind.
fn fail(error: &anyhow::Error) -> ExitCode {
    let of_library = error.downcast_ref::<Error>();
    // The reader has closed the pipe, as in `fauna … | head`: not an error.
    if of_library.is_some_and(output::is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    // The causes of an error of the library are part of its message.
    let context: String = error
        .chain()
        .take_while(|cause| of_library.is_some() && !cause.is::<Error>())
        .map(|context| format!("{context}: "))
        .collect();
    let message = of_library.map_or_else(|| format!("{error:#}"), ToString::to_string);
    // A write to standard error may fail if it is closed or full.
    let _ = writeln!(std::io::stderr(), "fauna: {context}{message}");
    match of_library.map(Error::kind) {
        Some(ErrorKind::Cancelled) => ExitCode::from(130),
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests;
