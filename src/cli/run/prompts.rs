//! From what was given to prompts: words, pictures, sounds, codes.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use fauna::{Error, Image, Item, Pipeline, Prompt, Result, Role, Turn};

use super::Args;
use crate::cli::{Context, input};

/// Prompts in which pictures have their place, and the files of those pictures, in order.
pub struct Drafts {
    prompts: Vec<Prompt>,
    pictures: Vec<PathBuf>,
}

impl Drafts {
    fn without_pictures(prompts: Vec<Prompt>) -> Self {
        Self { prompts, pictures: Vec::new() }
    }

    /// The prompts with the pictures in them, read as `model` has them.
    ///
    /// # Errors
    /// A file that is no picture that can be read.
    pub fn seen_by(self, model: &dyn Pipeline, context: &Context) -> Result<Vec<Prompt>> {
        let Self { mut prompts, pictures } = self;
        let reading = context.reading(model);
        let mut pictures = pictures.iter();
        fn turns(prompt: &mut Prompt) -> Vec<&mut Vec<Item>> {
            match prompt {
                Prompt::Items(items) => vec![items],
                Prompt::Chat(turns) => turns.iter_mut().map(|turn| &mut turn.items).collect(),
                Prompt::Infill { .. } => Vec::new(),
            }
        }
        for item in prompts.iter_mut().flat_map(turns).flatten() {
            if let Item::Image(place) = item
                && let Some(path) = pictures.next()
            {
                *place = input::picture(path, &reading, context)?;
            }
        }
        Ok(prompts)
    }
}

/// The place of a picture that is read when the model is known.
fn place(path: &Path) -> Result<Item> {
    std::fs::File::open(path).map_err(|error| Error::io(path, "open", error))?;
    Ok(Item::Image(Image { width: 0, height: 0, rgb: Vec::new() }))
}

/// The prompts that the arguments make, standard input where they hold none; none at all for a conversation that is to
/// be held.
///
/// # Errors
/// A file that cannot be read, or arguments that make no prompt together.
pub fn read(args: &Args, context: &Context) -> Result<Drafts> {
    let pictures: Vec<PathBuf> = args.given.images().into_iter().cloned().collect();
    if let Some(prompt) = args.gap.prompt()? {
        return Ok(Drafts::without_pictures(vec![prompt]));
    }
    if args.ask {
        args.given.check_question()?;
    }
    if let Some(labels) = &args.labels {
        return Ok(Drafts { prompts: with_labels(args, labels)?, pictures });
    }
    if !pictures.is_empty() {
        let items = args.given.items(given, |path| place(path))?;
        return Ok(Drafts { prompts: vec![in_turns(args, items)], pictures });
    }
    let texts = texts(args, context)?;
    let sounds = Sounds::read(args, context)?;
    if args.chat {
        let turns = texts.into_iter().map(|text| in_turns(args, vec![Item::Text(text)]));
        return Ok(Drafts::without_pictures(turns.collect()));
    }
    if texts.is_empty() {
        return Ok(Drafts::without_pictures(vec![Prompt::Items(sounds.around(None, None))]));
    }
    let prompt = |text| Prompt::Items(sounds.around(Some(text), args.context.clone()));
    Ok(Drafts::without_pictures(texts.into_iter().map(prompt).collect()))
}

/// Refuses a prompt in which nothing stands.
///
/// # Errors
/// [`Input`](fauna::ErrorKind::Input) that says what to do.
pub fn check_full(prompt: &Prompt) -> Result<()> {
    let blank = |item: &Item| matches!(item, Item::Text(text) if text.trim().is_empty());
    let empty = match prompt {
        Prompt::Items(items) => items.iter().all(blank),
        Prompt::Chat(turns) => turns.iter().any(|turn| turn.items.iter().all(blank)),
        Prompt::Infill { prefix, suffix } => prefix.trim().is_empty() && suffix.trim().is_empty(),
    };
    match empty {
        false => Ok(()),
        true => Err(Error::input("the prompt is empty").hint("give it as an argument, or on standard input")),
    }
}

/// One prompt a picture: the picture, then each label.
fn with_labels(args: &Args, labels: &str) -> Result<Vec<Prompt>> {
    let labels: Vec<&str> = labels.split(',').map(str::trim).filter(|label| !label.is_empty()).collect();
    if labels.is_empty() {
        return Err(Error::input("--labels holds no label").hint("--labels \"a cat,a dog\""));
    }
    if let Some(words) = args.given.words().first() {
        return Err(Error::input(format!("--labels stand for all words, and there is \"{words}\" besides")));
    }
    if args.given.images().is_empty() {
        return Err(Error::input("--labels name what a picture shows, and none is given")
            .hint("--image cat.jpg --labels \"a cat,a dog\""));
    }
    let prompt = |path: &PathBuf| {
        let labels = labels.iter().map(|label| Item::from(*label));
        Ok(Prompt::Items(std::iter::once(place(path)?).chain(labels).collect()))
    };
    args.given.images().into_iter().map(prompt).collect()
}

/// The items as they are, or as a person's turn of a conversation.
fn in_turns(args: &Args, items: Vec<Item>) -> Prompt {
    match args.chat {
        false => Prompt::Items(items),
        true => {
            let scene = args.system.clone().map(|text| turn(Role::System, text));
            Prompt::Chat(scene.into_iter().chain([Turn { role: Role::User, items }]).collect())
        }
    }
}

/// A turn of words.
pub fn turn(role: Role, text: String) -> Turn {
    Turn { role, items: vec![Item::Text(text)] }
}

/// The texts to continue: the arguments, or all of standard input. None at all for a conversation, or where a sound is
/// the whole prompt.
fn texts(args: &Args, context: &Context) -> Result<Vec<String>> {
    let texts: Vec<String> = args.given.words().into_iter().map(given).collect::<Result<_>>()?;
    if !texts.is_empty() || args.chat || args.audio.is_some() || args.codes.is_some() {
        return Ok(texts);
    }
    if args.melody.is_some() {
        // Words of no meaning, so that the melody comes before them and is not what is continued.
        return Ok(vec![String::new()]);
    }
    if std::io::stdin().is_terminal() {
        context.say("write the prompt; an end of file (Ctrl-D) ends it");
    }
    Ok(vec![given("-")?])
}

/// The prompt itself, or standard input for `-`.
fn given(prompt: &str) -> Result<String> {
    match prompt {
        "-" => input::whole_stdin(),
        prompt => Ok(prompt.to_string()),
    }
}

/// What was given besides words and pictures.
struct Sounds {
    melody: Option<Item>,
    audio: Option<Item>,
    codes: Option<Item>,
}

impl Sounds {
    fn read(args: &Args, context: &Context) -> Result<Self> {
        let read_sound = |path: &PathBuf| read_sound(path, args.max_seconds, context);
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

/// The sound at `path`, of at most `seconds`, with a word on all that is not plain about it.
#[cfg(feature = "audio")]
fn read_sound(path: &Path, seconds: f64, context: &Context) -> Result<Item> {
    use fauna::sound::read::{Limits, read_within};
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(Error::input(format!("--max-seconds {seconds}: more than 0 wanted")));
    }
    let reading = read_within(path, Limits { seconds })?;
    let place = path.display();
    for note in &reading.notes {
        context.say(&format!("{place}: {note}"));
    }
    if let channels @ 3.. = reading.sound.channels.len() {
        context.say(&format!(
            "{place}: {channels} channels: a model of one channel hears their mean, a model of two the first two"
        ));
    }
    if let Some(loss) = reading.loss {
        context.complain(&format!("{place}: damaged: {loss}; the rest is used"));
    }
    Ok(Item::Sound(reading.sound))
}

#[cfg(not(feature = "audio"))]
fn read_sound(path: &Path, _: f64, _: &Context) -> Result<Item> {
    Err(Error::unsupported("this program was built without sound")
        .at(path)
        .hint("build it with --features audio"))
}
