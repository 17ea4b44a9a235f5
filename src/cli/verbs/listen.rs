//! `fauna listen`: question answering about an audio file.

use std::path::PathBuf;

use fauna::{Item, Prompt, Result};

use crate::cli::options::{Choices, ModelArg, SoundInput, TextSampling};
use crate::cli::reply::{Show, prompts};
use crate::cli::{Context, Exit};

/// Arguments of `fauna listen`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna listen llark --audio song.mp3 \"What is the tempo?\"\n  \
                        fauna listen llark --audio song.mp3 \"Which instruments play?\" \"What is the key?\"")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Questions, each answered by itself; `-` reads standard input.
    #[arg(value_name = "QUESTION")]
    questions: Vec<String>,
    /// Audio file.
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    #[command(flatten)]
    sounds: SoundInput,
    #[command(flatten)]
    sampling: TextSampling,
}

/// Answers each question about the audio.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices::from(&args.sampling);
    choices.check()?;
    let questions = args.questions.iter().map(|text| prompts::given(text)).collect::<Result<Vec<_>>>()?;
    let sound = args.sounds.read(&args.audio, context)?;
    let prompt = |question: Option<String>| {
        Prompt::Items(question.map(Item::Text).into_iter().chain([sound.clone()]).collect())
    };
    let prompts: Vec<Prompt> = match questions.is_empty() {
        true => vec![prompt(None)],
        false => questions.into_iter().map(|question| prompt(Some(question))).collect(),
    };
    let model = context.open_for("listen", &args.model.source)?;
    Ok(Show::new(context, choices.of(model.as_ref())?).each(model.as_ref(), &prompts)?)
}
