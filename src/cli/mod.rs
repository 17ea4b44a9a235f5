//! What the command line says and understands. Help, completions and the man page are all drawn from here.
//!
//! One module a verb under [`verbs`]: its `Args`, and `run(args, context)`. Options that several verbs share stand in
//! groups under [`options`].

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
    allow(dead_code, unused_imports, reason = "shared by verbs of modalities that a build may lack")
)]
mod options;
mod output;
#[cfg(feature = "science")]
mod plot;
mod progress;
#[cfg_attr(
    not(all(feature = "vision", feature = "audio")),
    allow(dead_code, unused_imports, reason = "shared by verbs of modalities that a build may lack")
)]
mod reply;
mod run;
#[cfg(feature = "science")]
mod series;
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

/// How a verb ended, if no error stopped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done: status 0.
    Done,
    /// The answer is no: status 1.
    No,
    /// Some of the inputs could not be used and were reported; the others were served: status 2.
    Partly,
}

/// The zoo of multimodal foundation models: one door, CPU, CUDA or Metal, the reference's own numbers.
///
/// Without a verb it says what it can do and shows it on the model that is built in.
#[derive(Debug, Parser)]
#[command(
    name = "fauna",
    version,
    help_template = headings::template(),
    max_term_width = 100,
    after_help = "Results go to standard output, progress and messages to standard error.\n\
                  Exit status: 0 done, 1 the answer is no, 2 could not run, 130 interrupted."
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Reads the arguments, does what they say, and gives the exit status.
pub fn main() -> ExitCode {
    fauna::error::set_option_style(options::style::of);
    let done = match parse() {
        Ok((None, context)) => alone(&context),
        Ok((Some(verb), context)) => verb.run(&context),
        Err(error) => Err(error),
    };
    match done {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Ok(Exit::Partly) => ExitCode::from(2),
        Err(error) => fail(&error),
    }
}

/// The verb that was asked for, or that fits the model that was named, and what it needs.
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

/// `fauna` without a verb.
fn alone(context: &Context) -> Result<Exit> {
    #[cfg(feature = "builtin")]
    return verbs::tour::welcome(context);
    #[cfg(not(feature = "builtin"))]
    {
        let _ = context;
        verbs::completions::help()
    }
}

fn fail(error: &Error) -> ExitCode {
    // Who reads us has read enough: `fauna … | head` is no failure.
    if output::is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    // Where standard error itself is closed or full no message can be written.
    let _ = writeln!(std::io::stderr(), "fauna: {error}");
    match error.kind() {
        ErrorKind::Cancelled => ExitCode::from(130),
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests;
