//! What the command line says and understands. Help, completions and the man page are all drawn from here.
//!
//! One module a verb: its `Args`, and `run(args, context)`.

#[cfg(feature = "vision")]
mod contact_sheet;
mod context;
mod font;
mod heatmap;
mod input;
mod interrupt;
mod output;
#[cfg(feature = "science")]
mod plot;
mod progress;
mod run;
mod table;
mod vectors;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fauna::{Error, ErrorKind};

pub use context::{Context, Globals};
#[cfg(feature = "vision")]
use verbs::search;
#[cfg(feature = "builtin")]
use verbs::tour;
use verbs::{bench, compare, completions, embed, info, list, parity, pull, quantize};

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

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists the families and their released checkpoints.
    List(list::Args),
    /// Says what a checkpoint holds, before and after it is downloaded.
    Info(info::Args),
    /// Downloads a checkpoint into the cache and says where it is.
    Pull(pull::Args),
    /// Turns texts and pictures into vectors.
    Embed(embed::Args),
    /// Continues, answers, fills, labels: whatever the model does with a prompt.
    Run(Box<run::Args>),
    /// Shows how similar texts are to a model, and how far models agree.
    Compare(compare::Args),
    /// Finds the pictures of a folder that are nearest to a sentence.
    #[cfg(feature = "vision")]
    Search(search::Args),
    /// Makes a smaller copy of a checkpoint, its matrices in blocks of 8, 6, 5 or 4 bits.
    Quantize(quantize::Args),
    /// Proves that models compute what their references compute.
    Parity(parity::Args),
    /// Times a model and measures its memory.
    Bench(bench::Args),
    /// Searches a small collection with the built-in model and draws it.
    #[cfg(feature = "builtin")]
    Tour(tour::Args),
    /// Prints the completion script of a shell.
    Completions(completions::Args),
    /// Prints the manual page, in roff.
    Man,
}

/// Reads the arguments, does what they say, and gives the exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let context = match Context::new(cli.globals) {
        Ok(context) => context,
        Err(error) => return fail(&error),
    };
    let done = match cli.verb {
        #[cfg(feature = "builtin")]
        None => tour::welcome(&context),
        #[cfg(not(feature = "builtin"))]
        None => completions::help(),
        Some(Verb::List(args)) => list::run(args, &context),
        Some(Verb::Info(args)) => info::run(args, &context),
        Some(Verb::Pull(args)) => pull::run(args, &context),
        Some(Verb::Embed(args)) => embed::run(args, &context),
        Some(Verb::Run(args)) => run::run(*args, &context),
        Some(Verb::Compare(args)) => compare::run(args, &context),
        #[cfg(feature = "vision")]
        Some(Verb::Search(args)) => search::run(args, &context),
        Some(Verb::Quantize(args)) => quantize::run(args, &context),
        Some(Verb::Parity(args)) => parity::run(args, &context),
        Some(Verb::Bench(args)) => bench::run(args, &context),
        #[cfg(feature = "builtin")]
        Some(Verb::Tour(args)) => tour::run(args, &context),
        Some(Verb::Completions(args)) => completions::run(args),
        Some(Verb::Man) => completions::man(),
    };
    match done {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Ok(Exit::Partly) => ExitCode::from(2),
        Err(error) => fail(&error),
    }
}

fn fail(error: &Error) -> ExitCode {
    // Who reads us has read enough: `fauna … | head` is no failure.
    if output::is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    // Where standard error itself is closed or full there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "fauna: {error}");
    match error.kind() {
        ErrorKind::Cancelled => ExitCode::from(130),
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
