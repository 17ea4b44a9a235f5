//! `fauna draw`: texts to pictures.

use std::path::PathBuf;

use fauna::{Prompt, Result};

use crate::cli::options::{Choices, ModelArg, Place, Sampling};
use crate::cli::reply::pictures::{Drawing, Grid};
use crate::cli::reply::{Show, prompts};
use crate::cli::{Context, Exit};

/// What is drawn, and where it goes.
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
    /// What is drawn, one file each; `-` or none reads standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Where it goes: FILE.png. Several texts make FILE-1.png, FILE-2.png, …
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
    /// So many pictures of each text, in rows and columns of one file: 3x3.
    #[arg(long, value_name = "RxC")]
    grid: Option<Grid>,
    /// Put the pictures first that this model (CLIP, SigLIP) finds nearest to the text.
    #[arg(long, value_name = "MODEL")]
    rank: Option<String>,
    /// Write a picture when it is whole, not while it is made.
    #[arg(long)]
    no_previews: bool,
    #[command(flatten)]
    sampling: Sampling,
    /// Scale of classifier-free guidance: how strongly the text is followed; 1 for none.
    #[arg(long, value_name = "X")]
    guidance: Option<f32>,
}

/// Draws all texts at once.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
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
