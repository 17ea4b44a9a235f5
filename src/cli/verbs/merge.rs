//! `fauna merge`: a model with its adapters as one checkpoint.

use std::path::PathBuf;

use anyhow::Context as _;
use fauna::train::merge;

use crate::cli::options::ModelArg;
use crate::cli::output::Output;
use crate::cli::{Context, Exit};

/// Arguments of `fauna merge`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna merge HuggingFaceTB/SmolLM2-135M-Instruct --adapter tuned/best --out merged\n  \
                  fauna merge tuned/best --out merged"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Output folder.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Overwrite an earlier checkpoint in that folder.
    #[arg(long)]
    force: bool,
}

/// Writes the checkpoint and prints its folder.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let _stoppable = context.interrupt.hold();
    let merged = merge(&fauna::zoo(), &args.model.source, &context.options()?, &args.out, args.force)
        .context("cannot merge")?;
    let mut output = Output::stdout();
    match context.globals.json {
        true => output.json(&serde_json::json!({"folder": args.out, "merged": merged}))?,
        false => output.line(args.out.display().to_string())?,
    }
    output.finish()?;
    context.say(&format!("{merged} tensors were changed by adapters"));
    Ok(Exit::Done)
}
