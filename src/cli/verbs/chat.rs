//! `fauna chat`: an interactive chat, or the answer to a single prompt.

use fauna::{Reasoning, Result};

use crate::cli::options::{Choices, Given, ModelArg, PictureInput, TextSampling};
use crate::cli::reply::Show;
use crate::cli::reply::prompts::{self, Drafts};
use crate::cli::{Context, Exit};

/// Arguments of `fauna chat`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("max_pixels", |arg| arg.requires("image")), after_help = "Examples:\n  fauna chat HuggingFaceTB/SmolLM2-135M-Instruct\n  \
                        fauna chat openai/gpt-oss-20b \"Why is the sky blue?\" --reasoning low\n  \
                        fauna chat google/medgemma-4b-it --image chest.png \"Describe the findings.\"")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    given: Given,
    /// System prompt.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Reasoning effort of reasoning models: low, medium or high.
    #[arg(long, value_name = "EFFORT")]
    reasoning: Option<Reasoning>,
    /// Print the reasoning of the model to standard error.
    #[arg(long)]
    show_reasoning: bool,
    #[command(flatten)]
    pictures: PictureInput,
    #[command(flatten)]
    sampling: TextSampling,
}

/// Answers each prompt, or each line of standard input as a turn. If the model's generation config does not sample, the
/// defaults are temperature 0.8, top-p 0.95, top-k 40 and min-p 0.05.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices { reasoning: args.reasoning, ..Choices::from(&args.sampling) };
    choices.check()?;
    let drafts = match args.given.images().is_empty() {
        false => Drafts::of_given(&args.given)?,
        true => {
            let words = args.given.words().into_iter().map(prompts::given);
            Drafts::of_texts(words.collect::<Result<_>>()?)
        }
    };
    let model = context.open_for("chat", &args.model.source)?;
    let model = model.as_ref();
    let drafts = drafts.in_turns(args.system.as_deref());
    let prompts = drafts.seen_by(model, args.pictures, context)?;
    let (options, sampling) = choices.of_chat(model)?;
    // Printed before an interactive chat, but after single answers, so that an error comes first.
    let tell = || sampling.iter().for_each(|said| context.say(said));
    let show = Show::new(context, options).with_thoughts(args.show_reasoning);
    if prompts.is_empty() {
        tell();
        show.conversation(model, args.system)?;
        return Ok(Exit::Done);
    }
    let done = show.each(model, &prompts)?;
    tell();
    Ok(done)
}
