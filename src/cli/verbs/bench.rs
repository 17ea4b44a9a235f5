//! `fauna bench`: speed and memory use of a model on this machine.

use fauna::LoadOptions;
use fauna::measure::{Measurement, Task, Workload, measure};

use crate::cli::options::{ModelArg, Seed};
use crate::cli::output::Output;
use crate::cli::table::{self, Table};
use crate::cli::{Context, Exit};

/// Arguments of `fauna bench`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna bench minilm --task embed --batch 4 --tokens 16\n  fauna bench benches/configs/chronos-bolt-small --random-weights --task forward --tokens 512"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Task to benchmark.
    #[arg(long, value_enum)]
    task: TaskName,
    /// Batch size.
    #[arg(long, default_value_t = 1, value_name = "N")]
    batch: usize,
    /// Input length of each sequence: tokens of text, time steps or atoms; 0 for images only.
    #[arg(long, default_value_t = 128, value_name = "N")]
    tokens: usize,
    /// Number of images in each sequence.
    #[arg(long, default_value_t = 0, value_name = "N")]
    images: usize,
    /// Number of tokens to generate; end-of-sequence tokens are ignored.
    #[arg(long, default_value_t = 64, value_name = "N")]
    new_tokens: usize,
    /// Duration of the audio to encode or decode, in seconds.
    #[arg(long, default_value_t = 10.0, value_name = "S")]
    seconds: f64,
    /// Number of timed runs, after one warm-up run.
    #[arg(long, default_value_t = 5, value_name = "N")]
    runs: usize,
    /// Use random weights: only the config is needed.
    #[arg(long)]
    random_weights: bool,
    #[command(flatten)]
    seed: Seed,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TaskName {
    /// Embeddings of texts or images.
    Embed,
    /// Full forward pass, with all outputs of the reference.
    Forward,
    /// Prompt processing, up to the first new token.
    Prefill,
    /// Prompt processing and text generation.
    Generate,
    /// Codec encoder: audio or images to codes.
    Encode,
    /// Codec decoder: codes to audio or images.
    Decode,
}

/// Runs the benchmark and prints the measurements.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
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
        table.row(["time to first token".to_string(), seconds(first)]);
    }
    table.row([
        format!("{} per second", measured.items),
        format!(
            "{:.1}  ({:.1} to {:.1} over {} runs)",
            rate.median,
            rate.min,
            rate.max,
            measured.run_seconds.len()
        ),
    ]);
    if let Some(decode) = measured.decode_per_second {
        table.row(["decoding".to_string(), format!("{decode:.1} tokens per second")]);
    }
    if let Some(peak) = measured.peak_memory_bytes {
        table.row(["peak memory".to_string(), table::bytes(peak)]);
    }
    table.row(["weights".to_string(), table::bytes(measured.weights_bytes)]);
    table.lines()
}
