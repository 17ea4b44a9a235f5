//! `fauna pull`: downloads a model to the cache.

use fauna::source::{Source, Wanted};
use serde_json::json;

use crate::cli::options::Finding;
use crate::cli::output::Output;
use crate::cli::{Context, Exit, table};

/// Arguments of `fauna pull`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna pull openai-community/gpt2\n  fauna pull google-bert/bert-base-uncased@main --without-weights"
)]
pub struct Args {
    /// Model to download: a Hugging Face Hub id (owner/name[@revision]), a folder, a file, or a cached name.
    #[arg(value_name = "MODEL")]
    source: String,
    #[command(flatten)]
    pub finding: Finding,
    /// Download configs and tokenizers only, no weights.
    #[arg(long)]
    without_weights: bool,
}

/// Downloads the model and prints its folder.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let _stoppable = context.interrupt.hold();
    let mut wanted = Wanted::default();
    if let Some(file) = &context.loading.finding.weights {
        wanted = wanted.file(file);
    }
    if args.without_weights {
        wanted = wanted.without_weights();
    }
    let files = context.finder().find(&Source::parse(&args.source)?, &wanted)?;
    let weights = if args.without_weights { Vec::new() } else { files.weights()? };
    let size: u64 = weights.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
    let mut output = Output::stdout();
    match context.globals.json {
        true => output.json(&json!({
            "source": args.source, "folder": files.root(), "weights": weights, "weight_bytes": size
        }))?,
        false => output.line(files.root().display().to_string())?,
    }
    output.finish()?;
    if !args.without_weights {
        context.say(&format!("weights: {} in {} files", table::bytes(size), weights.len()));
    }
    Ok(Exit::Done)
}
