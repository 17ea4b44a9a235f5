//! What becomes of the pieces a model makes: words on the screen as they come, labels in a table, sounds and codes in
//! files.

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

/// The answer to one prompt, while it comes and when it is whole.
pub struct Answer<'a> {
    context: &'a Context,
    place: Place,
    /// Where words are shown as they come, if they are.
    stream: Option<Output>,
    text: String,
    thoughts: Thoughts,
    labels: Vec<Label>,
    /// The picture that the labels are of, where there are several.
    picture: Option<PathBuf>,
    #[cfg(feature = "audio")]
    sound: Option<SoundOut>,
    files: Vec<Value>,
}

impl<'a> Answer<'a> {
    /// An answer whose words are shown as they come if `streams`, and whose sounds go to `place`.
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

    /// Takes the next piece.
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
                let message = format!("the command line does not write {} yet", other.modality());
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        }
        Ok(())
    }

    /// The same, with the reasoning of the model shown on standard error.
    pub fn with_thoughts_shown(mut self, shown: bool) -> Self {
        self.thoughts.shown = shown;
        self
    }

    /// The same, about the picture at this path, which stands beside each label.
    pub fn about(mut self, picture: Option<PathBuf>) -> Self {
        self.picture = picture;
        self
    }

    /// Ends what is under way: whatever came so far is whole on disk after this.
    pub fn close(&mut self) -> Result<()> {
        self.thoughts.pause();
        if self.text.is_empty() && !self.thoughts.text.is_empty() {
            self.context
                .say("the model was still thinking when its tokens ended: give it more by --max-tokens");
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

    /// Notes a file that was written, and says so.
    pub fn written(&mut self, path: PathBuf, mut about: Value, words: &str) {
        about["file"] = json!(path);
        self.files.push(about);
        self.context.say(&format!("{words} in {}", path.display()));
    }

    /// Shows what was not shown as it came.
    pub fn show(mut self) -> Result<()> {
        let mut output = self.stream.take().unwrap_or_else(Output::stdout);
        if !self.labels.is_empty() {
            let mut table = Table::default();
            for Label { label, score, span } in self.labels {
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

    /// The answer as JSON, beside what was asked.
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

/// The reasoning of a model: shown on standard error if that is wanted, else as a sign that it is at work.
#[derive(Default)]
struct Thoughts {
    text: String,
    shown: bool,
    /// Whether the last that was shown ended inside a line.
    in_line: bool,
    sign: Option<Box<dyn Task>>,
}

impl Thoughts {
    fn take(&mut self, piece: &str, context: &Context) {
        self.text.push_str(piece);
        if self.shown {
            let mut terminal = std::io::stderr();
            // Where standard error is closed there is no reader.
            let _ = write!(terminal, "{piece}").and_then(|()| terminal.flush());
            self.in_line = !piece.ends_with('\n');
        } else {
            let sign = self.sign.get_or_insert_with(|| context.bars.begin("thinking", Unit::Items, None));
            sign.advance(1);
        }
    }

    /// The answer goes on.
    fn pause(&mut self) {
        self.sign = None;
        if std::mem::take(&mut self.in_line) {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// `codes` as a safetensors file.
fn bytes_of(codes: &Tensors) -> Result<Vec<u8>> {
    safetensors::serialize(codes, None)
        .map_err(|e| Error::input(format!("cannot be written as safetensors: {e}")))
}
