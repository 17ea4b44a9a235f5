//! `fauna codec`: encoding of audio and images to discrete codes, and decoding.

use std::path::PathBuf;

use fauna::{Error, Item, Modality, Prompt, Result};

use crate::cli::options::{Loading, Loudness, ModelArg, PictureInput, Place, SoundInput};
use crate::cli::reply::Show;
#[cfg(feature = "vision")]
use crate::cli::reply::pictures::Drawing;
use crate::cli::reply::prompts::Drafts;
use crate::cli::{Context, Exit};

/// Arguments of `fauna codec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
                        fauna codec encode facebook/encodec_24khz --audio song.mp3 --out codes.safetensors\n  \
                        fauna codec decode facebook/encodec_24khz --codes codes.safetensors --out song.wav")]
pub struct Args {
    #[command(subcommand)]
    way: Way,
}

#[derive(Debug, clap::Subcommand)]
enum Way {
    /// Encode an audio file or an image to codes.
    Encode(Encode),
    /// Decode codes to an audio file or an image.
    Decode(Decode),
}

/// Arguments of `fauna codec encode`.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("input").required(true).args(["audio", "image"])),
    mut_arg("max_pixels", |arg| arg.conflicts_with("audio")),
    mut_arg("max_seconds", |arg| arg.conflicts_with("image")),
    after_help = "Examples:\n  \
                  fauna codec encode facebook/encodec_24khz --audio song.mp3 --set bandwidth=6 --out codes.safetensors\n  \
                  fauna codec encode dall-e-vae --image photo.png --out codes.safetensors"
)]
struct Encode {
    #[command(flatten)]
    model: ModelArg,
    /// Audio file to encode.
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// Image to encode.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Output file of the codes: FILE.safetensors.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sounds: SoundInput,
    #[command(flatten)]
    pictures: PictureInput,
}

/// Arguments of `fauna codec decode`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
                        fauna codec decode facebook/encodec_24khz --codes codes.safetensors --out song.wav\n  \
                        fauna codec decode dall-e-vae --codes codes.safetensors --out image.png")]
struct Decode {
    #[command(flatten)]
    model: ModelArg,
    /// File of codes, as `fauna codec encode` writes it.
    #[arg(long, value_name = "FILE")]
    codes: PathBuf,
    /// Output file: FILE.wav or FILE.png; `-` writes raw audio samples (16-bit little-endian PCM, interleaved) to standard
    /// output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
    /// Loudness of the audio file (default: peak).
    #[arg(long, value_enum, value_name = "HOW")]
    loudness: Option<Loudness>,
}

impl Args {
    /// Returns the loading options.
    pub fn loading(&self) -> &Loading {
        match &self.way {
            Way::Encode(args) => &args.model.loading,
            Way::Decode(args) => &args.model.loading,
        }
    }
}

/// Encodes or decodes.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    match args.way {
        Way::Encode(args) => Ok(encode(args, context)?),
        Way::Decode(args) => Ok(decode(args, context)?),
    }
}

fn encode(args: Encode, context: &Context) -> Result<Exit> {
    let place = Place::new(args.out, args.force).numbered(1)?.remove(0);
    place.file("codes", "safetensors")?;
    let sound = args.sounds.read_any(args.audio.as_ref(), context)?;
    let drafts = Drafts::of_pictures(args.image.into_iter().collect(), &[])?;
    let model = context.open_for("codec encode", &args.model.source)?;
    let (card, given) = (model.card(), sound.as_ref().map_or(Modality::Image, Item::modality));
    if !card.inputs.contains(&given) {
        let wanted = if given == Modality::Sound { "--image FILE" } else { "--audio FILE" };
        return Err(Error::unsupported(format!("{} does not encode {given} input", card.source))
            .hint(format!("use {wanted}")));
    }
    let prompts = match sound {
        Some(sound) => vec![Prompt::Items(vec![sound])],
        None => drafts.seen_by(model.as_ref(), args.pictures, context)?,
    };
    let show = Show::new(context, model.defaults());
    for prompt in &prompts {
        show.once(model.as_ref(), prompt, place.clone(), None)?;
    }
    Ok(Exit::Done)
}

fn decode(args: Decode, context: &Context) -> Result<Exit> {
    let loudness = args.loudness.unwrap_or_default();
    let place = Place { path: args.out, force: args.force, loudness };
    if place.is_stdout() && context.globals.json {
        return Err(Error::input("cannot write both audio samples and JSON to standard output")
            .hint("use --out FILE.wav"));
    }
    let prompts = [Prompt::Items(vec![fauna::weights::tensors(&args.codes).map(Item::Codes)?])];
    let model = context.open_for("codec decode", &args.model.source)?;
    let show = Show::new(context, model.defaults());
    if !model.card().outputs.contains(&Modality::Image) {
        show.together(model.as_ref(), &prompts, &place)?;
        return Ok(Exit::Done);
    }
    if args.loudness.is_some() {
        return Err(Error::input("--loudness is for audio, but this codec decodes images"));
    }
    #[cfg(feature = "vision")]
    show.pictures(model.as_ref(), &prompts, &place, &Drawing::default())?;
    Ok(Exit::Done)
}
