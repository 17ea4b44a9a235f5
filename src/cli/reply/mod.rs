//! Output of models for prompts, shown while it is generated: text, labels, images, audio, codes.

mod answer;
mod conversation;
#[cfg(feature = "vision")]
pub mod pictures;
pub mod prompts;
#[cfg(feature = "audio")]
mod sound;

use std::ops::ControlFlow;
use std::path::PathBuf;

use fauna::progress::{Progress, Unit};
use fauna::{Error, GenerationConfig, Item, Pipeline, Prompt, Result, Turn};
use serde_json::{Value, json};

pub use self::answer::Answer;
#[cfg(feature = "vision")]
use self::pictures::{Drawing, Grid, Pictures};
use super::options::Place;
use super::{Context, Exit};

/// Runs a model on prompts and shows the answers.
pub struct Show<'a> {
    context: &'a Context,
    options: GenerationConfig,
    /// Whether the reasoning of the model is shown.
    thoughts: bool,
}

impl<'a> Show<'a> {
    /// Creates it with the generation config `options`.
    pub fn new(context: &'a Context, options: GenerationConfig) -> Self {
        Self { context, options, thoughts: false }
    }

    /// Sets whether the reasoning of the model is printed to standard error.
    pub fn with_thoughts(self, thoughts: bool) -> Self {
        Self { thoughts, ..self }
    }

    /// Answers each prompt by itself and streams the answers to standard output.
    ///
    /// # Errors
    /// An empty prompt, before any is answered; else the first error of the model.
    pub fn each(&self, model: &dyn Pipeline, prompts: &[Prompt]) -> Result<Exit> {
        prompts.iter().try_for_each(prompts::check_full)?;
        for prompt in prompts {
            self.once(model, prompt, Place::default(), None)?;
        }
        Ok(Exit::Done)
    }

    /// Answers one prompt and streams the answer; codes and audio are written to `place`, and `picture` is printed with
    /// labels.
    pub fn once(
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

    /// Answers all prompts as one batch, for models whose output is written to files.
    pub fn together(&self, model: &dyn Pipeline, prompts: &[Prompt], place: &Place) -> Result<()> {
        let _stoppable = self.context.interrupt.hold();
        let places = place.numbered(prompts.len())?;
        let mut answers: Vec<Answer> =
            places.into_iter().map(|place| Answer::new(self.context, place, false)).collect();
        let seconds = self.options.seconds.map(|seconds| (seconds * 1e3 * prompts.len() as f64) as u64);
        let bar = self.context.bars.begin("audio", Unit::Milliseconds, seconds);
        let mut wrong = None;
        let made = model.generate_batch(prompts, &self.config(), &mut |index, item| {
            if let Item::Sound(sound) = &item {
                let samples = sound.channels.first().map_or(0, Vec::len) as u64;
                bar.advance(samples * 1000 / u64::from(sound.rate.max(1)));
            }
            wrong = answers[index].take(item).err();
            self.flow(wrong.is_some())
        });
        drop(bar);
        // Files are completed even after an error.
        let closed: Result<()> = answers.iter_mut().try_for_each(Answer::close);
        wrong.map_or(Ok(()), Err)?;
        made?;
        closed?;
        for (prompt, answer) in prompts.iter().zip(answers) {
            self.finish(model, prompt, answer)?;
        }
        self.context.interrupt.check()
    }

    /// Generates the images of all prompts as one batch; the files are updated during generation, and the images are
    /// ranked at the end if requested.
    #[cfg(feature = "vision")]
    pub fn pictures(
        &self,
        model: &dyn Pipeline,
        prompts: &[Prompt],
        place: &Place,
        drawing: &Drawing,
    ) -> Result<()> {
        let _stoppable = self.context.interrupt.hold();
        let judge = drawing.rank.as_deref().map(|name| self.context.open(name)).transpose()?;
        let places = place.numbered(prompts.len())?.into_iter();
        let mut files = places.map(|place| Pictures::at(place, drawing.grid)).collect::<Result<Vec<_>>>()?;
        let each = drawing.grid.map_or(1, Grid::count);
        let copies: Vec<Prompt> =
            prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), each)).collect();
        let options = GenerationConfig { previews: !drawing.no_previews, ..self.config() };
        let bar = self.context.bars.begin("images", Unit::Items, None);
        let mut wrong = None;
        let made = model.generate_batch(&copies, &options, &mut |index, item| {
            wrong = match item {
                Item::Image(picture) => {
                    bar.advance(1);
                    files[index / each].take(index % each, picture).err()
                }
                // Once per grid.
                Item::Note(note) => {
                    if index % each == 0 {
                        self.context.say(note.trim_end());
                    }
                    None
                }
                other => Some(Error::input(format!(
                    "the model returned {} for this prompt, expected an image",
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

    /// Generates the answer to `prompt`; text is streamed, unless the output is JSON.
    pub fn answer(&self, model: &dyn Pipeline, prompt: &Prompt, place: Place) -> Result<Answer<'_>> {
        let answer = Answer::new(self.context, place, !self.context.globals.json);
        let mut answer = answer.with_thoughts_shown(self.thoughts);
        let mut wrong = None;
        model.generate(prompt, &self.config(), &mut |item| {
            wrong = answer.take(item).err();
            self.flow(wrong.is_some())
        })?;
        wrong.map_or(Ok(()), Err)?;
        answer.close()?;
        Ok(answer)
    }

    /// Returns the config of a generation about to start, which Ctrl-C cancels.
    fn config(&self) -> GenerationConfig {
        GenerationConfig { cancel: self.context.interrupt.token(), ..self.options.clone() }
    }

    fn flow(&self, wrong: bool) -> ControlFlow<()> {
        match wrong || self.context.interrupt.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    pub fn finish(&self, model: &dyn Pipeline, prompt: &Prompt, answer: Answer) -> Result<()> {
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

/// Returns the text of a prompt.
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
