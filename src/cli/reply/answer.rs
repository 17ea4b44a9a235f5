//! Output of a generation: text is streamed to standard output, labels are printed as a table, audio and codes are
//! written to files.

use std::io::Write;
use std::path::PathBuf;

use fauna::progress::{Progress, Task, Unit};
use fauna::{Error, ErrorKind, Item, Label, Result, Tensors};
use serde_json::{Map, Value, json};

#[cfg(feature = "audio")]
use super::sound::SoundOut;
use crate::cli::Context;
use crate::cli::options::Place;
use crate::cli::output::Output;
use crate::cli::table::Table;

/// The answer to one prompt, during and after its generation.
pub struct Answer<'a> {
    context: &'a Context,
    place: Place,
    /// Output that text is streamed to, if any.
    stream: Option<Output>,
    text: String,
    thoughts: Thoughts,
    labels: Vec<Label>,
    /// The image that the labels are of, if there are several.
    picture: Option<PathBuf>,
    #[cfg(feature = "audio")]
    sound: Option<SoundOut>,
    files: Vec<Value>,
}

impl<'a> Answer<'a> {
    /// Creates an answer that streams text if `streams`, and writes audio and codes to `place`.
    pub fn new(context: &'a Context, place: Place, streams: bool) -> Self {
        Self {
            context,
            place,
            stream: streams.then(Output::stdout),
            text: String::new(),
            thoughts: Thoughts::default(),
            labels: Vec::new(),
            picture: None,
            #[cfg(feature = "audio")]
            sound: None,
            files: Vec::new(),
        }
    }

    /// Adds the next item.
    pub fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Thought(piece) => self.thoughts.take(&piece, self.context),
            Item::Text(piece) => {
                self.thoughts.pause();
                self.text.push_str(&piece);
                if let Some(stream) = &mut self.stream {
                    stream.bytes(piece.as_bytes())?;
                    stream.flush()?;
                }
            }
            Item::Note(note) => self.context.say(note.trim_end()),
            Item::Label(label) => self.labels.push(label),
            #[cfg(feature = "audio")]
            Item::Sound(piece) => {
                let sound = match &mut self.sound {
                    Some(sound) => sound,
                    None => self.sound.insert(SoundOut::open(&self.place, &piece)?),
                };
                sound.append(&piece)?;
            }
            Item::Codes(codes) => {
                let path = self.place.file("codes", "safetensors")?;
                let mut output = Output::open(Some(path), self.place.force)?;
                output.bytes(&bytes_of(&codes)?)?;
                output.finish()?;
                let shapes: Map<String, Value> =
                    codes.iter().map(|(name, codes)| (name.clone(), json!(codes.dims()))).collect();
                self.written(path.to_path_buf(), json!({"codes": shapes}), "codes");
            }
            other => {
                let message = format!("the command line cannot write {} output", other.modality());
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }

    /// Sets whether the reasoning of the model is printed to standard error.
    pub fn with_thoughts_shown(mut self, shown: bool) -> Self {
        self.thoughts.shown = shown;
        self
    }

    /// Sets the path of the image that is printed with each label.
    pub fn about(mut self, picture: Option<PathBuf>) -> Self {
        self.picture = picture;
        self
    }

    /// Ends the generation and completes the files written so far.
    pub fn close(&mut self) -> Result<()> {
        self.thoughts.pause();
        if self.text.is_empty() && !self.thoughts.text.is_empty() {
            self.context
                .say("the model reached the maximum number of tokens while reasoning: raise --max-tokens");
        }
        #[cfg(feature = "audio")]
        if let Some(sound) = self.sound.take() {
            let said = sound.finish()?;
            match &self.place.path {
                Some(path) if !self.place.is_stdout() => {
                    self.written(path.clone(), said.json(), &said.to_string())
                }
                _ => self.context.say(&said.to_string()),
            }
        }
        Ok(())
    }

    /// Records a file that was written, and prints its path.
    pub fn written(&mut self, path: PathBuf, mut about: Value, words: &str) {
        about["file"] = json!(path);
        self.files.push(about);
        self.context.say(&format!("{words} in {}", path.display()));
    }

    /// Prints what was not streamed.
    pub fn show(mut self) -> Result<()> {
        let mut output = self.stream.take().unwrap_or_else(Output::stdout);
        if !self.labels.is_empty() {
            let mut table = Table::default();
            for Label { label, score, span, .. } in self.labels {
                let span = span.map_or(String::new(), |span| format!("bytes {} to {}", span.start, span.end));
                let picture = self.picture.iter().map(|path| path.display().to_string());
                table.push(picture.chain([format!("{score:.4}"), label, span]).collect());
            }
            table.lines().into_iter().try_for_each(|line| output.line(line))?;
        } else if self.files.is_empty() && !self.place.is_stdout() && !self.text.ends_with('\n') {
            output.line("")?;
        }
        output.finish()
    }

    /// Returns the answer as JSON, with its prompt.
    pub fn json(&self, source: &str, prompt: Value) -> Value {
        let mut answer = json!({"source": source, "prompt": prompt});
        match () {
            () if !self.labels.is_empty() => answer["labels"] = json!(self.labels),
            () if !self.files.is_empty() => answer["files"] = json!(self.files),
            () => answer["text"] = json!(self.text),
        }
        if let Some(picture) = &self.picture {
            answer["image"] = json!(picture);
        }
        if !self.thoughts.text.is_empty() {
            answer["reasoning"] = json!(self.thoughts.text);
        }
        answer
    }
}

/// The reasoning of a model: printed to standard error if requested, else shown as a progress spinner.
#[derive(Default)]
struct Thoughts {
    text: String,
    shown: bool,
    /// Whether the last text printed did not end with a newline.
    in_line: bool,
    sign: Option<Box<dyn Task>>,
}

impl Thoughts {
    fn take(&mut self, piece: &str, context: &Context) {
        self.text.push_str(piece);
        if self.shown {
            let mut terminal = std::io::stderr();
            // A write to standard error may fail if it is closed.
            let _ = write!(terminal, "{piece}").and_then(|()| terminal.flush());
            self.in_line = !piece.ends_with('\n');
        } else {
            let sign = self.sign.get_or_insert_with(|| context.bars.begin("reasoning", Unit::Items, None));
            sign.advance(1);
        }
    }

    /// Ends the reasoning, before the answer.
    fn pause(&mut self) {
        self.sign = None;
        if std::mem::take(&mut self.in_line) {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// Serializes `codes` as a safetensors file.
fn bytes_of(codes: &Tensors) -> Result<Vec<u8>> {
    safetensors::serialize(codes, None)
        .map_err(|e| Error::input(format!("cannot be written as safetensors: {e}")))
}
