//! `fauna classify`: classification of texts, text pairs and tokens, and zero-shot classification of images.

use std::path::PathBuf;

use fauna::{Error, Item, Modality, Pipeline, Prompt, Result};

use crate::cli::options::{ModelArg, PictureInput, Place};
use crate::cli::reply::Show;
use crate::cli::reply::prompts::{self, Drafts};
use crate::cli::{Context, Exit};

/// Arguments of `fauna classify`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("max_pixels", |arg| arg.requires("image")), after_help = "Examples:\n  fauna classify rxnfp-bert-ft-10k-25s \"CCO.CC(=O)O>>CC(=O)OCC\"\n  \
                        fauna classify cross-encoder \"a cat sleeps\" --pair \"the kitten naps\"\n  \
                        fauna classify openai/clip-vit-base-patch32 --image cat.jpg --labels \"a cat,a dog\"")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Texts to classify; `-` or none reads standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Second text of a text pair, used with each text.
    #[arg(long, alias = "context", value_name = "TEXT", conflicts_with = "image")]
    pair: Option<String>,
    /// Image to classify. Can be repeated.
    #[arg(long, value_name = "FILE", requires = "labels")]
    image: Vec<PathBuf>,
    /// Candidate labels for the images, separated by commas.
    #[arg(long, value_name = "LABELS")]
    labels: Option<String>,
    #[command(flatten)]
    pictures: PictureInput,
}

/// Classifies each text or image and prints the labels with their scores, the most likely first.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    match &args.labels {
        Some(labels) => Ok(pictures(&args, labels, context)?),
        None => Ok(texts(&args, context)?),
    }
}

fn texts(args: &Args, context: &Context) -> Result<Exit> {
    let prompt = |text: String| {
        let pair = args.pair.clone().map(Item::Text);
        Prompt::Items(std::iter::once(Item::Text(text)).chain(pair).collect())
    };
    let prompts: Vec<Prompt> = prompts::texts(&args.texts, context)?.into_iter().map(prompt).collect();
    let model = context.open_for("classify", &args.model.source)?;
    if model.card().inputs.contains(&Modality::Image) {
        return Err(Error::input("this model classifies images, but none is given")
            .hint("use --image cat.jpg --labels \"a cat,a dog\""));
    }
    Show::new(context, model.defaults()).each(model.as_ref(), &prompts)
}

fn pictures(args: &Args, labels: &str, context: &Context) -> Result<Exit> {
    let labels: Vec<&str> = labels.split(',').map(str::trim).filter(|label| !label.is_empty()).collect();
    if labels.is_empty() {
        return Err(Error::input("--labels has no label").hint("use --labels \"a cat,a dog\""));
    }
    if let Some(words) = args.texts.first() {
        return Err(Error::input(format!("--labels are for images, but the text \"{words}\" is given")));
    }
    if args.image.is_empty() {
        return Err(Error::input("--labels are for images, but none is given")
            .hint("use --image cat.jpg --labels \"a cat,a dog\""));
    }
    let drafts = Drafts::of_pictures(args.image.clone(), &labels)?;
    let model = context.open_for("classify", &args.model.source)?;
    let model: &dyn Pipeline = model.as_ref();
    if !model.card().inputs.contains(&Modality::Image) {
        return Err(Error::unsupported(format!("{} classifies texts, not images", model.card().source))
            .hint("it has fixed labels: use fauna classify MODEL TEXT"));
    }
    let prompts = drafts.seen_by(model, args.pictures, context)?;
    let show = Show::new(context, model.defaults());
    for (prompt, path) in prompts.iter().zip(&args.image) {
        let named = (prompts.len() > 1).then(|| path.clone());
        show.once(model, prompt, Place::default(), named)?;
    }
    Ok(Exit::Done)
}
