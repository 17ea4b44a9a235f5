//! `fauna compose`: music generation from text, a melody or an audio prompt.

use std::path::PathBuf;

use fauna::{Error, Item, Prompt};

use crate::cli::options::{Choices, Length, Loudness, ModelArg, Penalty, Place, Sampling, SoundInput, paths};
use crate::cli::reply::{Show, prompts};
use crate::cli::{Context, Exit, spectrogram};

/// Arguments of `fauna compose`.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("sound").args(["melody", "audio"]).multiple(true)), mut_arg("max_seconds", |arg| arg.requires("sound")), after_help = "Examples:\n  \
                        fauna compose facebook/musicgen-small \"a slow waltz\" --seconds 8 --out waltz.wav\n  \
                        fauna compose facebook/musicgen-melody \"as a march\" --melody waltz.wav --out march.wav\n  \
                        fauna compose facebook/musicgen-small \"\" --seconds 60 --out - | aplay -f S16_LE -r 32000")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Descriptions of the music, one piece each; an empty text for unconditional generation; `-` reads standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Audio file whose melody conditions the music.
    #[arg(long, value_name = "FILE")]
    melody: Option<PathBuf>,
    /// Audio prompt that the music continues.
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    /// Duration of the music in seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "max_tokens")]
    seconds: Option<f64>,
    /// Duration of the music in frames of the codec.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Output file: FILE.wav, written while it is generated; `-` writes raw samples (16-bit little-endian PCM, interleaved)
    /// to standard output. Several texts are written to FILE-1.wav, FILE-2.wav, …
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Draw the spectrogram to this file; for several texts to FILE-1.png, FILE-2.png, …
    #[arg(long, value_name = "FILE.png")]
    spectrogram: Option<PathBuf>,
    /// Overwrite existing files.
    #[arg(long)]
    force: bool,
    /// Loudness of the audio file.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    loudness: Loudness,
    #[command(flatten)]
    sounds: SoundInput,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    penalty: Penalty,
    /// Classifier-free guidance scale; 1 for no guidance.
    #[arg(long, value_name = "X")]
    guidance: Option<f32>,
}

/// Generates all pieces as one batch.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices {
        length: Length { max_tokens: args.max_tokens, min_tokens: None },
        seconds: args.seconds,
        guidance: args.guidance,
        sampling: args.sampling,
        penalty: args.penalty,
        ..Choices::default()
    };
    choices.check()?;
    let place = Place { path: args.out, force: args.force, loudness: args.loudness };
    if place.is_stdout() && context.globals.json {
        return Err(Error::input("cannot write both audio samples and JSON to standard output")
            .hint("use --out FILE.wav")
            .into());
    }
    let texts = match args.texts.is_empty() {
        false => prompts::texts(&args.texts, context)?.into_iter().map(Some).collect(),
        true if args.audio.is_some() => vec![None],
        // An empty description marks the audio before it as the melody and not as the prompt to continue.
        true if args.melody.is_some() => vec![Some(String::new())],
        true => prompts::texts(&args.texts, context)?.into_iter().map(Some).collect(),
    };
    let melody = args.sounds.read_any(args.melody.as_ref(), context)?;
    let audio = args.sounds.read_any(args.audio.as_ref(), context)?;
    let prompt = |text: Option<String>| {
        let words = text.map(Item::Text);
        Prompt::Items(melody.iter().cloned().chain(words).chain(audio.iter().cloned()).collect())
    };
    let prompts: Vec<Prompt> = texts.into_iter().map(prompt).collect();
    if args.spectrogram.is_some() && place.is_stdout() {
        return Err(Error::input("--spectrogram draws a file, and --out - writes none")
            .hint("use --out FILE.wav")
            .into());
    }
    let drawn = args.spectrogram.as_deref().map_or_else(Vec::new, |path| paths(path, prompts.len()));
    drawn.iter().try_for_each(|path| spectrogram::check_free(path, place.force))?;
    let model = context.open_for("compose", &args.model.source)?;
    Show::new(context, choices.of(model.as_ref())?).together(model.as_ref(), &prompts, &place)?;
    let written = place.path.as_deref().map_or_else(Vec::new, |path| paths(path, prompts.len()));
    for ((drawn, written), prompt) in drawn.iter().zip(&written).zip(&prompts) {
        let sound = fauna::sound::read::read(written)?.sound;
        spectrogram::write(drawn, place.force, &description(prompt), sound)?;
        context.say(&format!("spectrogram: {}", drawn.display()));
    }
    Ok(Exit::Done)
}

/// The text of a prompt.
fn description(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Items(items) => {
            items.iter().find_map(|item| item.text().ok()).unwrap_or_default().to_string()
        }
        _ => String::new(),
    }
}
