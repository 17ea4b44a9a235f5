//! Prompts from command-line arguments; images are decoded when the model is known.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use fauna::{Error, Image, Item, Pipeline, Prompt, Result, Role, Turn};

use crate::cli::options::{Given, PictureInput};
use crate::cli::{Context, input};

/// Prompts with placeholders for images, and the paths of those images, in order.
pub struct Drafts {
    prompts: Vec<Prompt>,
    pictures: Vec<PathBuf>,
}

impl Drafts {
    /// Creates one prompt per text.
    pub fn of_texts(texts: Vec<String>) -> Self {
        let prompt = |text| Prompt::Items(vec![Item::Text(text)]);
        Self { prompts: texts.into_iter().map(prompt).collect(), pictures: Vec::new() }
    }

    /// Creates one prompt of the texts and images in the order given.
    ///
    /// # Errors
    /// A file that cannot be opened, standard input that cannot be read.
    pub fn of_given(words: &Given) -> Result<Self> {
        let items = words.items(given, |path| place(path))?;
        let pictures = words.images().into_iter().cloned().collect();
        Ok(Self { prompts: vec![Prompt::Items(items)], pictures })
    }

    /// Creates one prompt per image: the image, then each text.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn of_pictures(pictures: Vec<PathBuf>, texts: &[&str]) -> Result<Self> {
        let prompt = |path: &PathBuf| {
            let texts = texts.iter().map(|text| Item::from(*text));
            Ok(Prompt::Items(std::iter::once(place(path)?).chain(texts).collect()))
        };
        let prompts = pictures.iter().map(prompt).collect::<Result<_>>()?;
        Ok(Self { prompts, pictures })
    }

    /// Creates one prompt per question: all images, then the question.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn about(pictures: &[PathBuf], questions: &[String]) -> Result<Self> {
        let prompt = |question: &String| {
            let items = pictures.iter().map(|path| place(path)).chain([Ok(Item::from(question.as_str()))]);
            Ok(Prompt::Items(items.collect::<Result<_>>()?))
        };
        let prompts = questions.iter().map(prompt).collect::<Result<_>>()?;
        let repeated = questions.iter().flat_map(|_| pictures).cloned().collect();
        Ok(Self { prompts, pictures: repeated })
    }

    /// Turns each prompt into a conversation: the system prompt `system`, if any, and a user turn.
    pub fn in_turns(self, system: Option<&str>) -> Self {
        let in_turns = |prompt| match prompt {
            Prompt::Items(items) => {
                let system = system.map(|text| turn(Role::System, text.to_string()));
                Prompt::Chat(system.into_iter().chain([Turn { role: Role::User, items }]).collect())
            }
            other => other,
        };
        Self { prompts: self.prompts.into_iter().map(in_turns).collect(), ..self }
    }

    /// Returns the prompts with their images, decoded as `model` requires.
    ///
    /// # Errors
    /// An image file that cannot be decoded.
    pub fn seen_by(
        self,
        model: &dyn Pipeline,
        input: PictureInput,
        context: &Context,
    ) -> Result<Vec<Prompt>> {
        let Self { mut prompts, pictures } = self;
        let options = context.image_options(model, input);
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
                *place = input::picture(path, &options, context)?;
            }
        }
        Ok(prompts)
    }
}

/// Returns the placeholder of an image that is decoded when the model is known.
fn place(path: &Path) -> Result<Item> {
    std::fs::File::open(path).map_err(|error| Error::io(path, "open", error))?;
    Ok(Item::Image(Image { width: 0, height: 0, rgb: Vec::new() }))
}

/// Fails if the prompt is empty.
///
/// # Errors
/// [`Input`](fauna::ErrorKind::Input) for an empty prompt.
pub fn check_full(prompt: &Prompt) -> Result<()> {
    let blank = |item: &Item| matches!(item, Item::Text(text) if text.trim().is_empty());
    let empty = match prompt {
        Prompt::Items(items) => items.iter().all(blank),
        Prompt::Chat(turns) => turns.iter().any(|turn| turn.items.iter().all(blank)),
        Prompt::Infill { prefix, suffix } => prefix.trim().is_empty() && suffix.trim().is_empty(),
    };
    match empty {
        false => Ok(()),
        true => Err(Error::input("the prompt is empty").hint("pass it as an argument or on standard input")),
    }
}

/// Creates a turn of a single text.
pub fn turn(role: Role, text: String) -> Turn {
    Turn { role, items: vec![Item::Text(text)] }
}

/// Returns the arguments, or standard input as one text if there are none.
///
/// # Errors
/// Standard input that cannot be read.
pub fn texts<S: AsRef<str>>(arguments: &[S], context: &Context) -> Result<Vec<String>> {
    if !arguments.is_empty() {
        return arguments.iter().map(|text| given(text.as_ref())).collect();
    }
    if std::io::stdin().is_terminal() {
        context.say("reading the prompt from standard input; end with Ctrl-D");
    }
    Ok(vec![given("-")?])
}

/// Returns the prompt itself, or standard input for `-`.
///
/// # Errors
/// Standard input that cannot be read.
pub fn given(prompt: &str) -> Result<String> {
    match prompt {
        "-" => input::whole_stdin(),
        prompt => Ok(prompt.to_string()),
    }
}
