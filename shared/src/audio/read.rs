//! Sound files to samples: wav, flac, mp3, ogg (vorbis), m4a and mp4 (aac, alac), told apart by what is in them, not by
//! their names.

use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::codecs::audio::well_known::CODEC_ID_MP3;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};

use super::{HIGHEST_RATE, MOST_CHANNELS};
use crate::item::Sound;
use crate::{Error, Result};

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The sound: at least one frame, every sample a number. Encoders' silence before and after it is cut off where
    /// the format says how long it is; aac's is not.
    pub sound: Sound,
    /// Whether the file goes on after the sound, beyond what was asked for.
    pub cut: bool,
    /// What of a damaged file is missing; `None` of a whole one.
    pub loss: Option<Loss>,
}

/// What could not be read of a damaged file. What could is whole: the frames that are given are the file's own.
///
/// A file that does not say how long it is (an ogg, an mp3 without its encoder's tag) may end early unnoticed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loss {
    /// Frames that the file announces and does not have.
    pub frames: u64,
    /// Damaged pieces that were left out, a few hundred frames each.
    pub pieces: u64,
    /// What ended the reading, where it was not the end of the file.
    pub reason: Option<String>,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.frames > 0 {
            parts.push(format!("{} frames missing at the end", self.frames));
        }
        if self.pieces > 0 {
            parts.push(format!("{} damaged pieces left out", self.pieces));
        }
        parts.extend(self.reason.clone());
        f.write_str(&parts.join(", "))
    }
}

/// The sound in the file at `path`.
///
/// ```
/// use fauna_shared::audio::{read, write};
/// use fauna_shared::item::Sound;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("tone.wav");
/// let tone = Sound { rate: 8000, channels: vec![vec![0.25, -0.5, 0.0]] };
/// write::write(&path, &tone, write::Samples::Int16, write::Level::Keep)?;
/// let reading = read::read(&path)?;
/// assert_eq!(reading.sound, tone);
/// assert_eq!(reading.loss, None);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Format`](crate::ErrorKind::Format), naming the file, where it is no sound, holds no sample, no rate, more than
/// [`MOST_CHANNELS`] channels or a sample that is not a number;
/// [`Unsupported`](crate::ErrorKind::Unsupported) for a codec that is not read. A damaged file of which a part can be
/// read is no error: the part is given, and what is missing is said in [`Reading::loss`].
pub fn read(path: impl AsRef<Path>) -> Result<Reading> {
    read_at_most(path, f64::INFINITY)
}

/// The first `seconds` of the sound in the file at `path`; no more than that is decoded.
///
/// # Errors
/// As [`read`], and [`Input`](crate::ErrorKind::Input) for a length that is not above 0.
pub fn read_at_most(path: impl AsRef<Path>, seconds: f64) -> Result<Reading> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Error::input("a folder: a sound file wanted").at(path));
    }
    decode_any(Box::new(file), seconds).map_err(|error| error.at(path))
}

/// The sound in `bytes`, a whole file.
///
/// # Errors
/// As [`read_at_most`], naming no file.
pub fn read_bytes(bytes: &[u8], seconds: f64) -> Result<Reading> {
    decode_any(Box::new(Cursor::new(bytes)), seconds)
}

/// [`decode`], with a decoder's panic as an error: a header of absurd sizes overflows the decoders' sums, which builds
/// with overflow checks stop at.
fn decode_any<'s>(source: Box<dyn MediaSource + 's>, seconds: f64) -> Result<Reading> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| decode(source, seconds)))
        .unwrap_or_else(|_| Err(damaged("the header makes no sense")))
}

fn decode<'s>(source: Box<dyn MediaSource + 's>, seconds: f64) -> Result<Reading> {
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(Error::input(format!("{seconds} seconds of sound asked for: more than 0 wanted")));
    }
    let stream = MediaSourceStream::new(source, Default::default());
    let mut file = symphonia::default::get_probe()
        .probe(&Hint::new(), stream, Default::default(), Default::default())
        .map_err(|error| damaged(format!("not a sound that can be read: {error}")).hint(KNOWN))?;
    let track = file.default_track(TrackType::Audio).ok_or_else(|| damaged("no sound in it").hint(KNOWN))?;
    let (id, announced) = (track.id, announced_frames(track));
    let params = track.codec_params.as_ref().and_then(|params| params.audio());
    let params = params.ok_or_else(|| Error::unsupported("a codec that is not known").hint(KNOWN))?;
    if let Some(rate) = params.sample_rate {
        check_rate(rate)?;
    }
    if let Some(channels) = &params.channels {
        check_channels(channels.count())?;
    }
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|error| Error::unsupported(error.to_string()).hint(KNOWN))?;

    let mut sound = Sound { rate: 0, channels: Vec::new() };
    let mut piece: Vec<Vec<f32>> = Vec::new();
    let mut loss = Loss::default();
    let mut longest = usize::MAX;
    let mut cut = false;
    while !cut {
        let packet = match next_packet(file.as_mut()) {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(reason) => {
                loss.reason = Some(reason);
                break;
            }
        };
        if packet.track_id != id {
            continue;
        }
        let Ok(decoded) = decoder.decode(&packet) else {
            loss.pieces += 1;
            continue;
        };
        let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
        if sound.channels.is_empty() {
            check_rate(rate)?;
            check_channels(channels)?;
            sound = Sound { rate, channels: vec![Vec::new(); channels] };
            longest = frames_in(seconds, rate);
        }
        if (rate, channels) != (sound.rate, sound.channels.len()) {
            loss.reason = Some(format!("the rate or the channels change, to {rate} Hz and {channels}"));
            break;
        }
        decoded.copy_to_vecs_planar(&mut piece);
        for (channel, samples) in sound.channels.iter_mut().zip(&piece) {
            if let Some(at) = samples.iter().position(|sample| !sample.is_finite()) {
                let frame = channel.len() + at;
                return Err(damaged(format!(
                    "frame {frame} is {}: every sample must be a number",
                    samples[at]
                )));
            }
            channel.extend_from_slice(samples);
            cut = channel.len() > longest;
            channel.truncate(longest);
        }
    }
    let frames = sound.channels.first().map_or(0, Vec::len);
    if !cut {
        loss.frames = announced.map_or(0, |announced| announced.saturating_sub(frames as u64));
    }
    let loss = (loss != Loss::default()).then_some(loss);
    match (frames, &loss) {
        (0, None) => Err(damaged("a sound without samples")),
        (0, Some(loss)) => Err(damaged(format!("no sound can be read: {loss}"))),
        _ => Ok(Reading { sound, cut, loss }),
    }
}

const KNOWN: &str = "wav, flac, mp3, ogg (vorbis), m4a (aac, alac) are read";

/// The next packet, none at the end of the file; or why there is none.
fn next_packet(file: &mut dyn FormatReader) -> Result<Option<symphonia::core::packet::Packet>, String> {
    use symphonia::core::errors::Error::{IoError, ResetRequired};
    match file.next_packet() {
        Err(IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(ResetRequired) => Err("another sound follows".into()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// How many frames the file says it has. An mp3 says so only in the tag that also tells its encoder's delay; without
/// it the number is a guess from its size.
fn announced_frames(track: &Track) -> Option<u64> {
    let codec = track.codec_params.as_ref()?.audio()?.codec;
    track.num_frames.filter(|_| codec != CODEC_ID_MP3 || track.delay.is_some())
}

fn frames_in(seconds: f64, rate: u32) -> usize {
    // Saturates: an endless length is the largest number.
    (seconds * f64::from(rate)).ceil() as usize
}

fn check_rate(rate: u32) -> Result<()> {
    match rate {
        1..=HIGHEST_RATE => Ok(()),
        _ => Err(damaged(format!("a rate of {rate} Hz: 1 to {HIGHEST_RATE} Hz wanted"))),
    }
}

fn check_channels(channels: usize) -> Result<()> {
    match channels {
        1..=MOST_CHANNELS => Ok(()),
        _ => Err(damaged(format!("{channels} channels: 1 to {MOST_CHANNELS} wanted"))),
    }
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(crate::ErrorKind::Format, message)
}
