//! `fauna bench`: how fast a model is on this machine, and how much memory it takes.

use fauna::measure::{Measurement, Task, Workload, measure};
use fauna::{LoadOptions, Result};

use crate::cli::options::{ModelArg, Seed};
use crate::cli::output::Output;
use crate::cli::table::{self, Table};
use crate::cli::{Context, Exit};

/// What is timed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna bench minilm --task embed --batch 4 --tokens 16\n  fauna bench benches/configs/chronos-bolt-small --random-weights --task forward --tokens 512"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// What is timed.
    #[arg(long, value_enum)]
    task: TaskName,
    /// Rows at once.
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Tokens of text, steps of a series or atoms of a structure in each row; 0 for pictures alone.
    #[arg(long, default_value_t = 128, value_name = "N")]
    tokens: usize,
    /// Pictures in each row.
    #[arg(long, default_value_t = 0, value_name = "N")]
    images: usize,
    /// New tokens to generate; end tokens are ignored.
    #[arg(long, default_value_t = 64, value_name = "N")]
    new_tokens: usize,
    /// Seconds of sound to encode or decode.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    seconds: f64,
    /// Timed runs, after one that is not.
    #[arg(long, default_value_t = 5, value_name = "N")]
    runs: usize,
    /// Make weights up: only the config is needed, so any size can be timed.
    #[arg(long)]
    random_weights: bool,
    #[command(flatten)]
    seed: Seed,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TaskName {
    /// Rows of tokens, or pictures, to one vector each.
    Embed,
    /// The reference's forward pass, with every output.
    Forward,
    /// A prompt up to its first new token.
    Prefill,
    /// A prompt and all its new tokens.
    Generate,
    /// A sound or pictures to a codec's codes.
    Encode,
    /// Codes of a codec to sound or pictures.
    Decode,
}

/// Times, and prints what was measured.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    let task = match args.task {
        TaskName::Embed => Task::Embed,
        TaskName::Forward => Task::Forward,
        TaskName::Prefill => Task::Prefill,
        TaskName::Generate => Task::Generate,
        TaskName::Encode => Task::Encode,
        TaskName::Decode => Task::Decode,
    };
    let Args { batch, tokens, images, new_tokens, seconds, runs, .. } = args;
    let work = Workload { task, batch, tokens, images, new_tokens, seconds, runs };
    let random_weights = args.random_weights.then_some(args.seed.seed);
    let options = LoadOptions { random_weights, ..context.options()? };
    let measured = measure(&fauna::zoo(), &args.model.source, &options, &work)?;
    let mut output = Output::stdout();
    match context.globals.json {
        true => output.json(&measured)?,
        false => lines(&measured).iter().try_for_each(|line| output.line(line))?,
    }
    output.finish()?;
    Ok(Exit::Done)
}

fn lines(measured: &Measurement) -> Vec<String> {
    let seconds = |seconds: f64| match seconds < 1.0 {
        true => format!("{:.1} ms", seconds * 1e3),
        false => format!("{seconds:.2} s"),
    };
    let rate = &measured.items_per_second;
    let mut table = Table::default();
    table.row(["load".to_string(), seconds(measured.load_seconds)]);
    if let Some(first) = measured.first_token_seconds {
        table.row(["first token".to_string(), seconds(first)]);
    }
    table.row([
        format!("{} a second", measured.items),
        format!(
            "{:.1}  ({:.1} to {:.1} over {} runs)",
            rate.median,
            rate.min,
            rate.max,
            measured.run_seconds.len()
        ),
    ]);
    if let Some(decode) = measured.decode_per_second {
        table.row(["after the first token".to_string(), format!("{decode:.1} a second")]);
    }
    if let Some(peak) = measured.peak_memory_bytes {
        table.row(["peak memory".to_string(), table::bytes(peak)]);
    }
    table.row(["weights".to_string(), table::bytes(measured.weights_bytes)]);
    table.lines()
}
