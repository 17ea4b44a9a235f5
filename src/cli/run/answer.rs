//! What becomes of the pieces a model makes: words on the screen as they come, labels in a table, sounds and codes in
//! files.

use std::path::PathBuf;

use fauna::{Error, ErrorKind, Item, Label, Result, Tensors};
use serde_json::{Map, Value, json};

use super::Place;
#[cfg(feature = "audio")]
use super::sound::SoundOut;
use crate::cli::Context;
use crate::cli::output::Output;
use crate::cli::table::Table;

/// The answer to one prompt, while it comes and when it is whole.
pub struct Answer<'a> {
    context: &'a Context,
    place: Place,
    /// Where words are shown as they come, if they are.
    stream: Option<Output>,
    text: String,
    labels: Vec<Label>,
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
            labels: Vec::new(),
            #[cfg(feature = "audio")]
            sound: None,
            files: Vec::new(),
        }
    }

    /// Takes the next piece.
    pub fn take(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Text(piece) => {
                self.text.push_str(&piece);
                if let Some(stream) = &mut self.stream {
                    stream.bytes(piece.as_bytes())?;
                    stream.flush()?;
                }
            }
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

    /// Ends what is under way: whatever came so far is whole on disk after this.
    pub fn close(&mut self) -> Result<()> {
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

    /// All words so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Shows what was not shown as it came.
    pub fn show(mut self) -> Result<()> {
        let mut output = self.stream.take().unwrap_or_else(Output::stdout);
        if !self.labels.is_empty() {
            let mut table = Table::default();
            for Label { label, score, span } in self.labels {
                let span = span.map_or(String::new(), |span| format!("bytes {} to {}", span.start, span.end));
                table.row([format!("{score:.4}"), label, span]);
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
        answer
    }
}

/// `codes` as a safetensors file.
fn bytes_of(codes: &Tensors) -> Result<Vec<u8>> {
    safetensors::serialize(codes, None)
        .map_err(|e| Error::input(format!("cannot be written as safetensors: {e}")))
}
