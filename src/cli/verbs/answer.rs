//! `fauna answer`: question answering about a text, images or audio.

use std::path::PathBuf;

use fauna::{Error, Item, Modality, Prompt};

use crate::cli::options::sampling::TEXT_SAMPLING;
use crate::cli::options::{Choices, ModelArg, PictureInput, SoundInput, TextSampling};
use crate::cli::reply::Show;
use crate::cli::reply::prompts::{self, Drafts};
use crate::cli::{Context, Exit};

/// Arguments of `fauna answer`.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("about").required(true).args(["context", "image", "audio"])),
    mut_args(|arg| match TEXT_SAMPLING.contains(&arg.get_id().as_str()) {
        true => arg.conflicts_with("context"),
        false => arg,
    }),
    mut_arg("max_pixels", |arg| arg.conflicts_with_all(["context", "audio"])),
    mut_arg("max_seconds", |arg| arg.conflicts_with_all(["context", "image"])),
    after_help = "Examples:\n  fauna answer QA_MODEL \"Who wrote it?\" --context \"It was written by Ada.\"\n  \
                  fauna answer google/medgemma-4b-it \"Is the heart enlarged?\" --image chest.png\n  \
                  fauna answer llark \"What is the tempo?\" --audio song.mp3"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Questions, each answered by itself; `-` or none reads standard input.
    #[arg(value_name = "QUESTION")]
    questions: Vec<String>,
    /// Context that contains the answer, for extractive question-answering models.
    #[arg(long, value_name = "TEXT")]
    context: Option<String>,
    /// Image that the question is about. Can be repeated.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Audio file that the question is about.
    #[arg(long, value_name = "FILE")]
    audio: Option<PathBuf>,
    #[command(flatten)]
    pictures: PictureInput,
    #[command(flatten)]
    sounds: SoundInput,
    #[command(flatten)]
    sampling: TextSampling,
}

/// Answers each question.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let choices = Choices::from(&args.sampling);
    choices.check()?;
    let questions = prompts::texts(&args.questions, context)?;
    if questions.iter().any(|question| question.trim().is_empty()) {
        return Err(Error::input("the question is empty")
            .hint("pass it as an argument or on standard input")
            .into());
    }
    let sound = args.sounds.read_any(args.audio.as_ref(), context)?;
    let drafts = Drafts::about(&args.image, &questions)?;
    let model = context.open_for("answer", &args.model.source)?;
    let model = model.as_ref();
    let (inputs, about) = (
        &model.card().inputs,
        match (&args.context, &sound) {
            (Some(_), _) => Modality::Text,
            (None, Some(_)) => Modality::Sound,
            (None, None) => Modality::Image,
        },
    );
    // Only models with a span-extraction head take a context.
    let points = model.card().outputs.contains(&Modality::Label);
    if points != args.context.is_some() || !inputs.contains(&about) {
        let wanted = match (points, inputs.contains(&Modality::Image)) {
            (true, _) => "--context TEXT",
            (false, true) => "--image FILE",
            (false, false) => "--audio FILE",
        };
        return Err(Error::input(format!(
            "{} does not answer questions about this input: use {wanted}",
            model.card().source
        ))
        .into());
    }
    let beside = args.context.map(Item::Text).or(sound);
    let prompts = match beside {
        Some(beside) => {
            let prompt = |question| Prompt::Items(vec![Item::Text(question), beside.clone()]);
            questions.into_iter().map(prompt).collect()
        }
        None => drafts.seen_by(model, args.pictures, context)?,
    };
    Ok(Show::new(context, choices.of(model)?).each(model, &prompts)?)
}
