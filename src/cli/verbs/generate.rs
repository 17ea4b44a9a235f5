//! `fauna generate`: text generation and fill-in-the-middle.

use fauna::Prompt;

use crate::cli::options::gap::Gap;
use crate::cli::options::{Choices, ModelArg, TextSampling};
use crate::cli::reply::Show;
use crate::cli::reply::prompts;
use crate::cli::{Context, Exit};

/// Arguments of `fauna generate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna generate openai-community/gpt2 \"Once upon a time\"\n  \
                        fauna generate bigcode/starcoderbase-1b --file src/main.rs --at 12:5\n  \
                        fauna generate bigcode/starcoderbase-1b --prefix \"def fib(n):\" --suffix \"return a\"")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Prompts, each continued by itself; `-` or none reads standard input.
    #[arg(value_name = "PROMPT")]
    prompts: Vec<String>,
    #[command(flatten)]
    gap: Gap,
    /// Let code models generate until their end-of-sequence token instead of stopping before the next top-level
    /// definition.
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    sampling: TextSampling,
}

/// Generates from each prompt and streams the text to standard output.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices { keep_going: args.keep_going, ..Choices::from(&args.sampling) };
    choices.check()?;
    let prompts = match args.gap.prompt()? {
        Some(gap) => vec![gap],
        None => {
            prompts::texts(&args.prompts, context)?.iter().map(|text| Prompt::from(text.as_str())).collect()
        }
    };
    let model = context.open_for("generate", &args.model.source)?;
    Ok(Show::new(context, choices.of(model.as_ref())?).each(model.as_ref(), &prompts)?)
}
