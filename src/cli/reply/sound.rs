//! A sound on its way to a file that grows, or to a player.

use std::fmt;

use fauna::sound::write::{Level, STREAMING_LUFS, Samples, WavWriter, raw};
use fauna::{Result, Sound};
use serde_json::{Value, json};

use crate::cli::options::{Loudness, Place};
use crate::cli::output::Output;

/// A sound under way.
pub struct SoundOut {
    sink: Sink,
    rate: u32,
    channels: usize,
    samples: u64,
}

enum Sink {
    File(WavWriter),
    Player(Output),
}

/// What was written.
pub struct Said {
    rate: u32,
    channels: usize,
    samples: u64,
}

impl SoundOut {
    /// At `place`, at the rate and with the channels of its first `piece`.
    pub fn open(place: &Place, piece: &Sound) -> Result<Self> {
        let level = match place.loudness {
            Loudness::Peak => Level::Peak,
            Loudness::Streaming => Level::Loudness(STREAMING_LUFS),
            Loudness::Keep => Level::Keep,
        };
        let (rate, channels) = (piece.rate, piece.channels.len());
        let sink = match place.is_stdout() {
            true => Sink::Player(Output::stdout()),
            false => {
                let path = place.file("sounds", "wav")?;
                Sink::File(WavWriter::create(path, rate, channels, Samples::Int16, level)?)
            }
        };
        Ok(Self { sink, rate, channels, samples: 0 })
    }

    /// The next piece.
    pub fn append(&mut self, piece: &Sound) -> Result<()> {
        self.samples += piece.channels.first().map_or(0, Vec::len) as u64;
        match &mut self.sink {
            Sink::File(writer) => writer.append(&piece.channels),
            Sink::Player(output) => {
                output.bytes(&raw(&piece.channels, Samples::Int16)?)?;
                output.flush()
            }
        }
    }

    /// Ends the sound and brings it to its level.
    pub fn finish(self) -> Result<Said> {
        match self.sink {
            Sink::File(writer) => {
                writer.finish()?;
            }
            Sink::Player(output) => output.finish()?,
        }
        Ok(Said { rate: self.rate, channels: self.channels, samples: self.samples })
    }
}

impl Said {
    fn seconds(&self) -> f64 {
        self.samples as f64 / f64::from(self.rate)
    }

    /// Rate in Hz, channels, seconds.
    pub fn json(&self) -> Value {
        json!({"rate": self.rate, "channels": self.channels, "seconds": self.seconds()})
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = if self.channels == 1 { "mono" } else { "stereo" };
        write!(f, "{:.2} s of sound, {} Hz, {channels}", self.seconds(), self.rate)
    }
}
