//! `fauna codec`: sounds and pictures to codes, and codes to sounds and pictures.

use std::path::PathBuf;

use fauna::{Error, Item, Modality, Prompt, Result};

use crate::cli::options::{Loading, Loudness, ModelArg, PictureInput, Place, SoundInput};
use crate::cli::reply::Show;
#[cfg(feature = "vision")]
use crate::cli::reply::pictures::Drawing;
use crate::cli::reply::prompts::Drafts;
use crate::cli::{Context, Exit};

/// There, or back.
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
    /// Encodes a sound or a picture as codes.
    Encode(Encode),
    /// Decodes codes to a sound or a picture.
    Decode(Decode),
}

/// What is encoded.
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
    /// The sound.
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// The picture.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Where the codes go: FILE.safetensors.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sounds: SoundInput,
    #[command(flatten)]
    pictures: PictureInput,
}

/// What is decoded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
                        fauna codec decode facebook/encodec_24khz --codes codes.safetensors --out song.wav\n  \
                        fauna codec decode dall-e-vae --codes codes.safetensors --out picture.png")]
struct Decode {
    #[command(flatten)]
    model: ModelArg,
    /// The codes that an encoder made.
    #[arg(long, value_name = "FILE")]
    codes: PathBuf,
    /// Where it goes: FILE.wav or FILE.png; `-` writes the bare samples of a sound (16 bits, little-endian, channels
    /// interleaved) to standard output, for a player.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
    /// How loud the file of a sound is in the end; peak if not said.
    #[arg(long, value_enum, value_name = "HOW")]
    loudness: Option<Loudness>,
}

impl Args {
    /// How the model is loaded.
    pub fn loading(&self) -> &Loading {
        match &self.way {
            Way::Encode(args) => &args.model.loading,
            Way::Decode(args) => &args.model.loading,
        }
    }
}

/// Encodes or decodes.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    match args.way {
        Way::Encode(args) => encode(args, context),
        Way::Decode(args) => decode(args, context),
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
        return Err(Error::unsupported(format!("{} does not encode {given}", card.source))
            .hint(format!("give it {wanted}")));
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
        return Err(
            Error::input("samples and JSON do not share standard output").hint("name a file: --out FILE.wav")
        );
    }
    let prompts = [Prompt::Items(vec![fauna::weights::tensors(&args.codes).map(Item::Codes)?])];
    let model = context.open_for("codec decode", &args.model.source)?;
    let show = Show::new(context, model.defaults());
    if !model.card().outputs.contains(&Modality::Image) {
        show.together(model.as_ref(), &prompts, &place)?;
        return Ok(Exit::Done);
    }
    if args.loudness.is_some() {
        return Err(Error::input("--loudness is of a sound, and this codec decodes pictures"));
    }
    #[cfg(feature = "vision")]
    show.pictures(model.as_ref(), &prompts, &place, &Drawing::default())?;
    Ok(Exit::Done)
}
