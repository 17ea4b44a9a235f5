//! `fauna fill`: masked-token prediction (fill-mask).

use fauna::Prompt;

use crate::cli::options::ModelArg;
use crate::cli::reply::{Show, prompts};
use crate::cli::{Context, Exit};

/// Arguments of `fauna fill`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
                        fauna fill google-bert/bert-base-uncased \"The capital of France is [MASK].\"\n  \
                        fauna fill antiberty \"EVQLVQSG[MASK]EVKKPGTSV\" --json")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Texts, each with one or more [MASK] tokens; `-` or none reads standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
}

/// Prints the five most likely tokens of each mask, with their probabilities.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let prompts: Vec<Prompt> =
        prompts::texts(&args.texts, context)?.iter().map(|text| Prompt::from(text.as_str())).collect();
    let model = context.open_for("fill", &args.model.source)?;
    Ok(Show::new(context, model.defaults()).each(model.as_ref(), &prompts)?)
}
