//! Writing WAV files, at once or chunk by chunk, and raw PCM samples.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ebur128::{EbuR128, Mode};
use hound::{SampleFormat, WavSpec};

use super::{MAX_CHANNELS, check, check_finite, check_rate};
use crate::item::Sound;
use crate::{Error, ErrorKind, Result};

/// Maximum peak after level adjustment: a little below full scale, so that resampling by a player does not clip.
pub const CEILING: f32 = 0.99;

/// Loudness at which streaming services play music, in LUFS.
pub const STREAMING_LUFS: f64 = -14.0;

/// Sample format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Samples {
    /// 16-bit integers, -1 to 1 as -32768 to 32767.
    #[default]
    Int16,
    /// 32-bit floats.
    Float32,
}

impl Samples {
    fn bytes(self) -> u64 {
        match self {
            Self::Int16 => 2,
            Self::Float32 => 4,
        }
    }
}

/// Level adjustment of written audio.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Level {
    /// No change; 16-bit samples beyond -1 to 1 are clipped.
    Keep,
    /// Attenuates audio whose peak is above [`CEILING`] to that peak.
    #[default]
    Peak,
    /// Normalizes to this loudness in LUFS (EBU R 128), [`STREAMING_LUFS`] for music; less if peaks would be above
    /// [`CEILING`]. For silence, and audio shorter than the 0.4 s over which loudness is defined, the same as
    /// [`Peak`](Self::Peak).
    Loudness(f64),
}

/// Returns the gain factor that adjusts `sound` to `level`; 1 for silence.
///
/// # Errors
/// [`Input`](ErrorKind::Input) for audio that [`check`] rejects or a loudness that is not from -70 to 0.
///
/// ```
/// use fauna_shared::audio::write::{gain, Level};
/// use fauna_shared::item::Sound;
/// let loud = Sound { rate: 8000, channels: vec![vec![0.5, -1.98]] };
/// assert_eq!(gain(&loud, Level::Peak)?, 0.5);
/// let silence = Sound { rate: 8000, channels: vec![vec![0.0; 8000]] };
/// assert_eq!(gain(&silence, Level::Loudness(-14.0))?, 1.0);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn gain(sound: &Sound, level: Level) -> Result<f32> {
    check(sound)?;
    let peak = sound.channels.iter().flatten().fold(0f32, |peak, sample| peak.max(sample.abs()));
    let below_ceiling = |gain: f32| if peak * gain > CEILING { CEILING / peak } else { gain };
    match level {
        Level::Keep => Ok(1.0),
        Level::Peak => Ok(below_ceiling(1.0)),
        Level::Loudness(wanted) => {
            if !(-70.0..=0.0).contains(&wanted) {
                return Err(Error::input(format!("a loudness of {wanted} LUFS, expected -70 to 0")));
            }
            let found = loudness(sound)?;
            Ok(below_ceiling(if found.is_finite() {
                10f64.powf((wanted - found) / 20.0) as f32
            } else {
                1.0
            }))
        }
    }
}

/// Returns the integrated loudness of `sound` in LUFS (EBU R 128); minus infinity for silence and for less than 0.4 s.
///
/// # Errors
/// [`Input`](ErrorKind::Input) for audio that [`check`] rejects, or with a sampling rate below 16 Hz.
pub fn loudness(sound: &Sound) -> Result<f64> {
    let frames = check(sound)?;
    let failed = |error: ebur128::Error| Error::input(format!("cannot measure the loudness: {error}"));
    let mut meter = EbuR128::new(sound.channels.len() as u32, sound.rate, Mode::I).map_err(failed)?;
    let second = sound.rate as usize;
    for start in (0..frames).step_by(second) {
        let chunk: Vec<&[f32]> =
            sound.channels.iter().map(|channel| &channel[start..frames.min(start + second)]).collect();
        meter.add_frames_planar_f32(&chunk).map_err(failed)?;
    }
    meter.loudness_global().map_err(failed)
}

/// Converts `channels`, `(channels, samples)`, to raw PCM: interleaved channels, little-endian, without a header.
///
/// 16-bit samples beyond -1 to 1 are clipped. To play a stream: `play -t raw -r 32000 -e signed -b 16 -c 1 -`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if a sample is not finite or the channels have different lengths.
///
/// ```
/// use fauna_shared::audio::write::{raw, Samples};
/// assert_eq!(raw(&[vec![0.5], vec![-1.0]], Samples::Int16)?, [0x00, 0x40, 0x00, 0x80]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn raw(channels: &[Vec<f32>], samples: Samples) -> Result<Vec<u8>> {
    let frames = check_chunk(channels)?;
    let mut bytes = Vec::with_capacity(frames * channels.len() * samples.bytes() as usize);
    for frame in 0..frames {
        for channel in channels {
            match samples {
                Samples::Int16 => bytes.extend(int16(channel[frame]).to_le_bytes()),
                Samples::Float32 => bytes.extend(channel[frame].to_le_bytes()),
            }
        }
    }
    Ok(bytes)
}

/// Writes `sound` to the WAV file `path` at `level`; returns the gain factor.
///
/// ```
/// use fauna_shared::audio::write::{write, Level, Samples, STREAMING_LUFS};
/// use fauna_shared::item::Sound;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("tone.wav");
/// let tone = (0..32_000).map(|i| (i as f32 * 0.1).sin() * 3.0).collect();
/// let sound = Sound { rate: 32_000, channels: vec![tone] };
/// let gain = write(&path, &sound, Samples::Int16, Level::Loudness(STREAMING_LUFS))?;
/// assert!(gain < 0.33);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// Errors of [`gain`] and [`WavWriter`].
pub fn write(path: impl AsRef<Path>, sound: &Sound, samples: Samples, level: Level) -> Result<f32> {
    let gain = gain(sound, level)?;
    let mut file = WavWriter::create(path, sound.rate, sound.channels.len(), samples, Level::Keep)?;
    let frames = sound.channels[0].len();
    let second = sound.rate as usize;
    for start in (0..frames).step_by(second) {
        let scaled = |channel: &Vec<f32>| {
            channel[start..frames.min(start + second)].iter().map(|sample| sample * gain).collect()
        };
        let chunk: Vec<Vec<f32>> = sound.channels.iter().map(scaled).collect();
        file.append(&chunk)?;
    }
    file.finish()?;
    Ok(gain)
}

/// A WAV file that is written chunk by chunk.
///
/// After each chunk the file is valid: its header has the current length, so it plays even if the program is killed. If
/// a chunk cannot be written (a full disk), the file is truncated to the previous chunks and stays valid.
///
/// Chunks are written without level adjustment, clipped in 16 bits. [`finish`](Self::finish) adjusts the level of the
/// whole file: all samples are kept in memory for this, 4 bytes each, unless the level is [`Level::Keep`].
///
/// ```
/// use fauna_shared::audio::write::{Level, Samples, WavWriter};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("song.wav");
/// let mut song = WavWriter::create(&path, 32_000, 2, Samples::Int16, Level::Peak)?;
/// for _ in 0..3 {
///     song.append(&[vec![0.1; 16_000], vec![-0.1; 16_000]])?;
/// }
/// assert_eq!(song.frames(), 48_000);
/// song.finish()?;
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct WavWriter {
    path: PathBuf,
    rate: u32,
    channels: usize,
    samples: Samples,
    level: Level,
    /// `None` after a chunk that could not be written.
    file: Option<hound::WavWriter<BufWriter<File>>>,
    /// Size of the header in bytes.
    header: u64,
    frames: u64,
    /// All samples so far, `(channels, samples)`, for the level adjustment.
    kept: Vec<Vec<f32>>,
}

impl WavWriter {
    /// Creates the file, or truncates an existing one.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the file cannot be created; [`Input`](ErrorKind::Input) for a sampling rate or a number
    /// of channels out of range.
    pub fn create(
        path: impl AsRef<Path>,
        rate: u32,
        channels: usize,
        samples: Samples,
        level: Level,
    ) -> Result<Self> {
        let path = path.as_ref();
        check_rate(rate)?;
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(Error::input(format!("{channels} channels, expected 1 to {MAX_CHANNELS}")));
        }
        let (bits_per_sample, sample_format) = match samples {
            Samples::Int16 => (16, SampleFormat::Int),
            Samples::Float32 => (32, SampleFormat::Float),
        };
        let spec = WavSpec { channels: channels as u16, sample_rate: rate, bits_per_sample, sample_format };
        let mut file = hound::WavWriter::create(path, spec).map_err(|error| failed(path, error))?;
        file.flush().map_err(|error| failed(path, error))?;
        let header = std::fs::metadata(path).map_err(|error| Error::io(path, "read", error))?.len();
        let kept = vec![Vec::new(); channels];
        Ok(Self {
            path: path.into(),
            rate,
            channels,
            samples,
            level,
            file: Some(file),
            header,
            frames: 0,
            kept,
        })
    }

    /// Returns the number of frames written so far.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Writes a chunk, `(channels, frames)`, and updates the header.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the chunk cannot be written; the file then has the previous chunks, and accepts no
    /// more. [`Input`](ErrorKind::Input) for another number of channels, channels of different lengths, samples that
    /// are not finite, or more than 4 GiB, the maximum of a WAV file; the file is then unchanged.
    pub fn append(&mut self, chunk: &[Vec<f32>]) -> Result<()> {
        let frames = check_chunk(chunk)?;
        if chunk.len() != self.channels {
            let (found, wanted) = (chunk.len(), self.channels);
            return Err(Error::input(format!("a chunk of {found} channels, expected {wanted}")));
        }
        let after = self.frames + frames as u64;
        if self.header + after * self.frame_bytes() > u64::from(u32::MAX) {
            return Err(Error::input("a WAV file has at most 4 GiB").at(&self.path));
        }
        let Some(file) = &mut self.file else {
            return Err(Error::new(ErrorKind::Io, "an earlier chunk could not be written").at(&self.path));
        };
        if let Err(error) = write_chunk(file, chunk, self.samples) {
            self.cut_back();
            return Err(failed(&self.path, error).hint(format!(
                "the file has the {:.1} s before that",
                self.frames as f64 / f64::from(self.rate)
            )));
        }
        self.frames = after;
        if self.level != Level::Keep {
            self.kept.iter_mut().zip(chunk).for_each(|(kept, samples)| kept.extend_from_slice(samples));
        }
        Ok(())
    }

    /// Finishes the file and adjusts its level; returns the gain factor.
    ///
    /// If the factor is not 1, the adjusted audio is written to a temporary file next to it and renamed, so that the
    /// file is valid at any time.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if the adjusted audio cannot be written; the file then stays without level adjustment.
    pub fn finish(mut self) -> Result<f32> {
        if let Some(file) = self.file.take() {
            file.finalize().map_err(|error| failed(&self.path, error))?;
        }
        if self.level == Level::Keep || self.frames == 0 {
            return Ok(1.0);
        }
        let sound = Sound { rate: self.rate, channels: std::mem::take(&mut self.kept) };
        let factor = gain(&sound, self.level)?;
        if factor != 1.0 {
            let mut beside = self.path.clone().into_os_string();
            beside.push(".part");
            let done = write(&beside, &sound, self.samples, self.level).and_then(|_| {
                std::fs::rename(&beside, &self.path).map_err(|error| Error::io(&self.path, "replace", error))
            });
            if let Err(error) = done {
                // The incomplete file is removed; an error of that is not the one to report.
                let _ = std::fs::remove_file(&beside);
                return Err(error);
            }
        }
        Ok(factor)
    }

    fn frame_bytes(&self) -> u64 {
        self.channels as u64 * self.samples.bytes()
    }

    /// Closes the file and restores it to the state after the last complete chunk.
    fn cut_back(&mut self) {
        // Dropping the writer writes a header with too large a length.
        self.file = None;
        let bytes = self.frames * self.frame_bytes();
        let restore = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().write(true).open(&self.path)?;
            file.set_len(self.header + bytes)?;
            file.seek(SeekFrom::Start(4))?;
            file.write_all(&((self.header + bytes - 8) as u32).to_le_bytes())?;
            file.seek(SeekFrom::Start(self.header - 4))?;
            file.write_all(&(bytes as u32).to_le_bytes())
        };
        // The error of the chunk is the one to report.
        let _ = restore();
    }
}

fn write_chunk(
    file: &mut hound::WavWriter<BufWriter<File>>,
    chunk: &[Vec<f32>],
    samples: Samples,
) -> hound::Result<()> {
    for frame in 0..chunk[0].len() {
        for channel in chunk {
            match samples {
                Samples::Int16 => file.write_sample(int16(channel[frame]))?,
                Samples::Float32 => file.write_sample(channel[frame])?,
            }
        }
    }
    file.flush()
}

/// Checks that the channels of a chunk have the same length and finite samples; returns the number of frames.
fn check_chunk(channels: &[Vec<f32>]) -> Result<usize> {
    let frames = channels.first().map_or(0, Vec::len);
    for (index, channel) in channels.iter().enumerate() {
        if channel.len() != frames {
            let found = channel.len();
            return Err(Error::input(format!("channel {index} has {found} samples, channel 0 has {frames}")));
        }
        check_finite(channel).map_err(|error| error.context(format!("channel {index}")))?;
    }
    Ok(frames)
}

/// Rounds a sample to 16 bits, clipped to -1 to 1.
fn int16(sample: f32) -> i16 {
    // A cast saturates.
    (sample * 32_768.0).round() as i16
}

fn failed(path: &Path, error: hound::Error) -> Error {
    match error {
        hound::Error::IoError(error) => Error::io(path, "write", error),
        other => Error::new(ErrorKind::Io, format!("cannot write: {other}")).at(path),
    }
}
