//! `fauna quantize`: a quantized copy of a checkpoint.

use anyhow::Context as _;
use std::path::PathBuf;

use fauna::nn::block_kind;
use fauna::quantize::{QuantizeOptions, quantize};

use crate::cli::options::ModelArg;
use crate::cli::output::Output;
use crate::cli::{Context, Exit, table};

/// Arguments of `fauna quantize`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna quantize HuggingFaceTB/SmolLM2-135M-Instruct --to q8_0 --out smollm2-q8\n  fauna quantize openai-community/gpt2 --to q4_0 --out gpt2-q4 --force"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Quantization format of the weight matrices: q8_0, q4_0, q4_k, … Embedding tables are kept at 8 bits.
    #[arg(long, value_name = "FORMAT")]
    to: String,
    /// Output folder.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Overwrite an earlier copy in that folder.
    #[arg(long)]
    force: bool,
}

/// Writes the copy and prints its folder.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let _stoppable = context.interrupt.hold();
    let kind = block_kind(&args.to)?;
    let copy = QuantizeOptions { source: &args.model.source, kind, folder: &args.out, replace: args.force };
    let made = quantize(&fauna::zoo(), &context.options()?, &copy, context.bars.as_ref())
        .context("cannot quantize")?;
    let mut output = Output::stdout();
    match context.globals.json {
        true => output.json(&made)?,
        false => output.line(made.folder.display().to_string())?,
    }
    output.finish()?;
    context.say(&format!(
        "quantized {} of {} tensors: {} to {}",
        made.quantized,
        made.tensors,
        table::bytes(made.bytes_before),
        table::bytes(made.bytes_after)
    ));
    Ok(Exit::Done)
}
