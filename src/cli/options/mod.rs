//! Options that several verbs share, in groups that a verb's `Args` flatten.

pub mod gap;
pub mod given;
pub mod model;
pub mod place;
pub mod sampling;
pub mod style;

use std::path::{Path, PathBuf};

use fauna::{Error, Item, Result};

pub use self::given::Given;
pub use self::model::{Finding, Loading, ModelArg};
pub use self::place::{Loudness, Place};
pub use self::sampling::{Choices, Length, Penalty, Sampling, TextSampling};

use super::Context;

/// Where random numbers start.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Seed {
    /// Where random numbers start: the same seed gives the same output.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

/// How files of pictures are read.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct PictureInput {
    /// The most pixels of a picture that are decoded: 89478485 if not said. Larger pictures are refused by the size
    /// they declare.
    #[arg(help_heading = "Reading of pictures", long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_pixels: Option<u64>,
}

/// How files of sounds are read.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SoundInput {
    /// The longest sound that is read; a longer one is refused. Of more than two channels or 48 kHz it counts by its
    /// samples.
    #[arg(help_heading = "Reading of sounds", long, value_name = "SECONDS", default_value_t = 1200.0)]
    pub max_seconds: f64,
}

impl SoundInput {
    /// The sound at `path`, with a word on all that is not plain about it.
    ///
    /// # Errors
    /// A file that is no sound that can be read, or a limit that is none.
    #[cfg(feature = "audio")]
    pub fn read(&self, path: &Path, context: &Context) -> Result<Item> {
        use fauna::sound::read::{Limits, read_within};
        let seconds = self.max_seconds;
        if seconds.is_nan() || seconds <= 0.0 {
            return Err(Error::input(format!("--max-seconds {seconds}: more than 0 wanted")));
        }
        let decoded = read_within(path, Limits { seconds })?;
        let place = path.display();
        for note in &decoded.notes {
            context.say(&format!("{place}: {note}"));
        }
        if let channels @ 3.. = decoded.sound.channels.len() {
            context.say(&format!(
                "{place}: {channels} channels: a model of one channel reads their mean, a model of two the first two"
            ));
        }
        if let Some(damage) = decoded.damage {
            context.complain(&format!("{place}: damaged: {damage}; the rest is used"));
        }
        Ok(Item::Sound(decoded.sound))
    }

    /// Nothing: this program was built without sound.
    ///
    /// # Errors
    /// [`Unsupported`](fauna::ErrorKind::Unsupported), always.
    #[cfg(not(feature = "audio"))]
    pub fn read(&self, path: &Path, _: &Context) -> Result<Item> {
        let _ = self.max_seconds;
        Err(Error::unsupported("this program was built without sound")
            .at(path)
            .hint("build it with --features audio"))
    }

    /// The sound at `path`, if there is one.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_any(&self, path: Option<&PathBuf>, context: &Context) -> Result<Option<Item>> {
        path.map(|path| self.read(path, context)).transpose()
    }
}
