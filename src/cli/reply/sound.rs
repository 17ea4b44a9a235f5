//! Audio output: a WAV file that is written during generation, or raw samples on standard output.

use std::fmt;

use fauna::sound::write::{Level, STREAMING_LUFS, Samples, WavWriter, raw};
use fauna::{Result, Sound};
use serde_json::{Value, json};

use crate::cli::options::{Loudness, Place};
use crate::cli::output::Output;

/// Audio being written.
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

/// Description of the audio written.
pub struct Said {
    rate: u32,
    channels: usize,
    samples: u64,
}

impl SoundOut {
    /// Opens the output `place`, with the sampling rate and channels of the first `piece`.
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
                let path = place.file("audio", "wav")?;
                Sink::File(WavWriter::create(path, rate, channels, Samples::Int16, level)?)
            }
        };
        Ok(Self { sink, rate, channels, samples: 0 })
    }

    /// Appends the next piece.
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

    /// Ends the audio and normalizes its loudness.
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

    /// Returns the sampling rate in Hz, channels and seconds.
    pub fn json(&self) -> Value {
        json!({"rate": self.rate, "channels": self.channels, "seconds": self.seconds()})
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = if self.channels == 1 { "mono" } else { "stereo" };
        write!(f, "{:.2} s of audio, {} Hz, {channels}", self.seconds(), self.rate)
    }
}
