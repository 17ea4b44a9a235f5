//! `fauna describe`: image-to-text.

use fauna::Error;

use crate::cli::options::{Choices, Given, ModelArg, PictureInput, TextSampling};
use crate::cli::reply::Show;
use crate::cli::reply::prompts::Drafts;
use crate::cli::{Context, Exit};

/// Arguments of `fauna describe`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna describe google/medgemma-4b-it --image chest.png \"Describe the findings.\"\n  \
                        fauna describe HuggingFaceM4/idefics-9b --image a.png \"two cats\" --image b.png --few-shot"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    given: Given,
    /// Few-shot prompt: each image with the text that follows it is an example, and the last image is described.
    #[arg(long)]
    few_shot: bool,
    #[command(flatten)]
    pictures: PictureInput,
    #[command(flatten)]
    sampling: TextSampling,
}

/// Describes the images: all texts and images are one prompt, in the order given.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices::from(&args.sampling);
    choices.check()?;
    if args.few_shot {
        args.given.check_question()?;
    }
    if args.given.images().is_empty() {
        return Err(Error::input("no image given").hint("use --image FILE").into());
    }
    let drafts = Drafts::of_given(&args.given)?;
    let model = context.open_for("describe", &args.model.source)?;
    let prompts = drafts.seen_by(model.as_ref(), args.pictures, context)?;
    Ok(Show::new(context, choices.of(model.as_ref())?).each(model.as_ref(), &prompts)?)
}
