//! `fauna draw`: text-to-image generation.

use std::path::PathBuf;

use fauna::Prompt;

use crate::cli::options::{Choices, ModelArg, Place, Sampling};
use crate::cli::reply::pictures::{Drawing, Grid};
use crate::cli::reply::{Show, prompts};
use crate::cli::{Context, Exit};

/// Arguments of `fauna draw`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna draw dalle-mini/dalle-mini \"an armchair in the shape of an avocado\" \
                        --out chair.png\n  \
                        fauna draw kuprel/min-dalle \"a fox in the snow\" --grid 2x2 \
                        --rank openai/clip-vit-base-patch32 --out foxes.png"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Text prompts, one file each; `-` or none reads standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Output file: FILE.png. Several prompts are written to FILE-1.png, FILE-2.png, …
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
    /// Generate a grid of images for each prompt, ROWSxCOLUMNS, in one file: 3x3.
    #[arg(long, value_name = "RxC")]
    grid: Option<Grid>,
    /// Sort the images of a grid by their similarity to the prompt, by this model (CLIP, SigLIP).
    #[arg(long, value_name = "MODEL")]
    rank: Option<String>,
    /// Write images only when they are complete, not while they are generated.
    #[arg(long)]
    no_previews: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// Classifier-free guidance scale; 1 for no guidance.
    #[arg(long, value_name = "X")]
    guidance: Option<f32>,
}

/// Generates the images of all prompts as one batch.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices { guidance: args.guidance, sampling: args.sampling, ..Choices::default() };
    choices.check()?;
    let prompts: Vec<Prompt> =
        prompts::texts(&args.texts, context)?.iter().map(|text| Prompt::from(text.as_str())).collect();
    let model = context.open_for("draw", &args.model.source)?;
    prompts.iter().try_for_each(prompts::check_full)?;
    let drawing = Drawing { grid: args.grid, rank: args.rank, no_previews: args.no_previews };
    let place = Place::new(args.out, args.force);
    Show::new(context, choices.of(model.as_ref())?).pictures(model.as_ref(), &prompts, &place, &drawing)?;
    Ok(Exit::Done)
}
