//! Groups of options that several commands share, flattened into their `Args`.

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
pub use self::place::{Loudness, Place, paths};
pub use self::sampling::{Choices, Length, Penalty, Sampling, TextSampling};

use super::Context;

/// The seed of the random number generator.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Seed {
    /// Random seed: the same seed gives the same output.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

/// How image files are decoded.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct PictureInput {
    /// Maximum number of pixels of an image (default: 89478485); larger images are refused before they are decoded.
    #[arg(help_heading = "Image input", long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_pixels: Option<u64>,
}

/// How audio files are decoded.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SoundInput {
    /// Maximum duration of an audio file; longer ones are refused. Files beyond stereo or 48 kHz are limited to as many
    /// samples as stereo at 48 kHz.
    #[arg(help_heading = "Audio input", long, value_name = "SECONDS", default_value_t = 1200.0)]
    pub max_seconds: f64,
}

impl SoundInput {
    /// Decodes the audio file at `path`, and prints notes on downmixing, damage and the like.
    ///
    /// # Errors
    /// A file that cannot be decoded, or an invalid limit.
    #[cfg(feature = "audio")]
    pub fn read(&self, path: &Path, context: &Context) -> Result<Item> {
        use fauna::sound::read::{Limits, read_within};
        let seconds = self.max_seconds;
        if seconds.is_nan() || seconds <= 0.0 {
            return Err(Error::input(format!("--max-seconds is {seconds}, expected a number above 0")));
        }
        let decoded = read_within(path, Limits { seconds })?;
        let place = path.display();
        for note in &decoded.notes {
            context.say(&format!("{place}: {note}"));
        }
        if let channels @ 3.. = decoded.sound.channels.len() {
            context.say(&format!(
                "{place}: {channels} channels: a mono model gets their mean, a stereo model the first two"
            ));
        }
        if let Some(damage) = decoded.damage {
            context.complain(&format!("{place}: the file is damaged: {damage}; the rest is used"));
        }
        Ok(Item::Sound(decoded.sound))
    }

    /// Fails: this program was built without audio support.
    ///
    /// # Errors
    /// [`Unsupported`](fauna::ErrorKind::Unsupported), always.
    #[cfg(not(feature = "audio"))]
    pub fn read(&self, path: &Path, _: &Context) -> Result<Item> {
        let _ = self.max_seconds;
        Err(Error::unsupported("this program was built without audio support")
            .at(path)
            .hint("rebuild it with --features audio"))
    }

    /// Decodes the audio file at `path`, if there is one.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_any(&self, path: Option<&PathBuf>, context: &Context) -> Result<Option<Item>> {
        path.map(|path| self.read(path, context)).transpose()
    }
}
