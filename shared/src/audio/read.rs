//! Sound files to samples: wav (also RF64, BW64, Wave64), aiff, au, caf, flac, mp3, ogg and webm (vorbis), m4a and mp4
//! (aac, alac), told apart by what is in them, not by their names.
//!
//! All that is in a file is decoded: the counts and lengths of its headers are held against what is found. The silence
//! that an encoder adds is cut off where the file says how long it is: the encoder's tag of an mp3, the granules of an
//! ogg, the edit list of an m4a.

mod edits;
mod mpeg;
mod plain;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use symphonia::core::codecs::audio::well_known as codecs;
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::well_known::{FORMAT_ID_MP1, FORMAT_ID_MP2, FORMAT_ID_MP3};
use symphonia::core::formats::{FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::packet::Packet;

use super::{MAX_CHANNELS, MAX_SAMPLE_RATE};
use crate::item::Sound;
use crate::{Error, Result, misnamed};
use edits::Edit;
use mpeg::Mpeg;
use plain::{Blocks, Codec, Parts};

/// How long a sound may be.
///
/// A small file can hold hours of silence, so a sound that is longer is refused before it is held: by the length that
/// its file declares, or once that many frames were decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The most seconds. Those of more channels or of a higher rate than stereo at 48 kHz count for as many seconds of
    /// that as they take memory (384 kB each).
    pub seconds: f64,
}

impl Default for Limits {
    /// Twenty minutes.
    fn default() -> Self {
        Self { seconds: 1200.0 }
    }
}

impl Limits {
    /// A sound of any length.
    pub const NONE: Self = Self { seconds: f64::INFINITY };

    /// Refuses `frames` that are too many.
    fn check(&self, frames: u64, rate: u32, channels: usize) -> Result<()> {
        let seconds = frames as f64 / f64::from(rate);
        let weight = (f64::from(rate) * channels as f64 / 96_000.0).max(1.0);
        if seconds * weight <= self.seconds {
            return Ok(());
        }
        let by_memory = match weight > 1.0 {
            true => format!(" (as many samples as {:.0} s of stereo at 48 kHz)", seconds * weight),
            false => String::new(),
        };
        Err(Error::input(format!(
            "{seconds:.0} s or more of {channels} channels at {rate} Hz{by_memory}: at most {} s are read",
            self.seconds
        ))
        .hint("cut the sound, or raise the limit: --max-seconds of the program, Limits of the library"))
    }
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedAudio {
    /// The sound: at least one frame, every sample a number. Encoders' silence before and after it is cut off where
    /// the file says how long it is.
    pub sound: Sound,
    /// Whether the file goes on after the sound, beyond what was asked for.
    pub truncated: bool,
    /// What of a damaged file is missing; `None` of a whole one.
    pub damage: Option<Damage>,
    /// What was done to a file of several sounds, one after the other, to make one of them.
    pub notes: Vec<String>,
}

/// What could not be read of a damaged file. What could is whole: the frames that are given are the file's own.
///
/// A file that does not say how long it is (an ogg, an mp3 without its encoder's tag) may end early unnoticed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    /// Frames that the file announces and does not have.
    pub frames: u64,
    /// Damaged pieces that were left out, a few hundred frames each.
    pub pieces: u64,
    /// What ended the reading, where it was not the end of the file.
    pub reason: Option<String>,
}

impl std::fmt::Display for Damage {
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
/// let decoded = read::read(&path)?;
/// assert_eq!(decoded.sound, tone);
/// assert_eq!(decoded.damage, None);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Format`](crate::ErrorKind::Format), naming the file, where it is no sound, holds no sample, no rate, more than
/// [`MAX_CHANNELS`] channels or a sample that is not a number;
/// [`Unsupported`](crate::ErrorKind::Unsupported) for a codec that is not read;
/// [`Input`](crate::ErrorKind::Input) for a sound beyond the default [`Limits`]. A damaged file of which a part can be
/// read is no error: the part is given, and what is missing is said in [`DecodedAudio::damage`].
pub fn read(path: impl AsRef<Path>) -> Result<DecodedAudio> {
    read_within(path, Limits::default())
}

/// The sound in the file at `path`, unless it is longer than `limits` allow.
///
/// # Errors
/// As [`read`].
pub fn read_within(path: impl AsRef<Path>, limits: Limits) -> Result<DecodedAudio> {
    read_file(path.as_ref(), f64::INFINITY, limits)
}

/// The first `seconds` of the sound in the file at `path`, however long it is; no more than that is decoded.
///
/// # Errors
/// As [`read`], and [`Input`](crate::ErrorKind::Input) for a length that is not above 0.
pub fn read_at_most(path: impl AsRef<Path>, seconds: f64) -> Result<DecodedAudio> {
    read_file(path.as_ref(), seconds, Limits::NONE)
}

fn read_file(path: &Path, seconds: f64, limits: Limits) -> Result<DecodedAudio> {
    let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Error::input("a folder: a sound file wanted").at(path));
    }
    let mut start = Vec::new();
    (&file).take(64).read_to_end(&mut start).map_err(|error| Error::io(path, "read", error))?;
    misnamed::refuse(path, &start)?;
    let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    decode_any(Box::new(file), seconds, limits).map_err(|error| error.at(path))
}

/// The sound in `bytes`, a whole file.
///
/// # Errors
/// As [`read_at_most`], naming no file.
pub fn read_bytes(bytes: &[u8], seconds: f64) -> Result<DecodedAudio> {
    decode_any(Box::new(Cursor::new(bytes)), seconds, Limits::NONE)
}

/// [`decode`], with a decoder's panic as an error: a header of absurd sizes overflows the decoders' sums, which builds
/// with overflow checks stop at.
fn decode_any<'s>(source: Box<dyn MediaSource + 's>, seconds: f64, limits: Limits) -> Result<DecodedAudio> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| decode(source, seconds, limits)))
        .unwrap_or_else(|_| Err(damaged("the header makes no sense")))
}

/// What a file gives, one after the other.
enum Event {
    /// A sound begins, or another one follows.
    Piece(Piece),
    /// A part of it.
    Packet(Packet),
}

/// A sound in a file.
struct Piece {
    params: AudioCodecParameters,
    /// Frames that the file says it has, without an encoder's silence.
    announced: Option<u64>,
    /// Whether `announced` is beyond doubt, so that a sound can be refused by it.
    sure: bool,
    /// Frames of an encoder's silence in front.
    lead: u64,
    /// If so many frames are decoded, the encoder's silence begins at the second number.
    end: Option<(u64, u64)>,
    /// Frames after `lead` that are the sound.
    length: Option<u64>,
}

impl Piece {
    fn new(params: AudioCodecParameters) -> Self {
        Self { params, announced: None, sure: false, lead: 0, end: None, length: None }
    }
}

type Stream<'s> = Box<dyn MediaSource + 's>;

/// A file under one of the readers.
enum Source<'s> {
    Blocks(Blocks<Stream<'s>>),
    Mpeg(Mpeg<Box<dyn Read + 's>>),
    Other(Other<'s>),
}

/// A file of packets.
struct Other<'s> {
    file: Box<dyn FormatReader + 's>,
    track: Option<u32>,
    edit: Option<Edit>,
    /// Whether the length that the file declares can be relied on.
    sure: bool,
}

impl<'s> Source<'s> {
    fn open(mut source: Stream<'s>) -> Result<Self> {
        let failed = |error| Error::io("the sound", "read", error);
        let mut start = Vec::new();
        (&mut source).take(4096).read_to_end(&mut start).map_err(failed)?;
        if plain::is_plain(&start) {
            let header = plain::header(&mut *source)?;
            return Ok(match header.codec {
                Codec::Blocks { id, bytes, frames } => {
                    Self::Blocks(Blocks::new(source, &header, id, bytes, frames))
                }
                Codec::Mpeg => Self::Mpeg(Mpeg::new(Box::new(Parts::new(source, &header)))),
            });
        }
        let edit = edits::edit(&mut *source);
        source.seek(SeekFrom::Start(0)).map_err(failed)?;
        let stream = MediaSourceStream::new(source, Default::default());
        let file = symphonia::default::get_probe()
            .probe(&Hint::new(), stream, Default::default(), Default::default())
            .map_err(|error| match other_sound(&start) {
                Some(name) => Error::unsupported(format!("{name} is not read")).hint(KNOWN),
                None => damaged(format!("not a sound that can be read: {error}")).hint(KNOWN),
            })?;
        if [FORMAT_ID_MP1, FORMAT_ID_MP2, FORMAT_ID_MP3].contains(&file.format_info().format) {
            let mut stream = file.into_inner();
            stream.seek(SeekFrom::Start(0)).map_err(failed)?;
            return Ok(Self::Mpeg(Mpeg::new(Box::new(stream))));
        }
        let sure = start.starts_with(b"OggS") || start.get(4..8) == Some(b"ftyp");
        Ok(Self::Other(Other { file, track: None, edit, sure }))
    }

    /// What comes next, none at the end of the file; or why there is nothing.
    fn next(&mut self) -> Result<Result<Option<Event>, String>> {
        match self {
            Self::Blocks(blocks) => Ok(blocks.next()),
            Self::Mpeg(frames) => Ok(frames.next()),
            Self::Other(other) => other.next(),
        }
    }
}

impl Other<'_> {
    fn next(&mut self) -> Result<Result<Option<Event>, String>> {
        let Some(track) = self.track else { return Ok(Ok(Some(Event::Piece(self.piece()?)))) };
        loop {
            return match self.file.next_packet() {
                Ok(Some(packet)) if packet.track_id != track => continue,
                Ok(packet) => Ok(Ok(packet.map(Event::Packet))),
                Err(Fault::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    Ok(Ok(None))
                }
                Err(Fault::ResetRequired) => {
                    // Another sound follows, as in a recording of a station.
                    self.sure = false;
                    Ok(self.piece().map(|piece| Some(Event::Piece(piece))).map_err(|error| error.to_string()))
                }
                Err(error) => Ok(Err(error.to_string())),
            };
        }
    }

    /// What the file says of the track that is read from here on.
    fn piece(&mut self) -> Result<Piece> {
        let track = self.file.default_track(TrackType::Audio);
        let track = track.ok_or_else(|| damaged("no sound in it").hint(KNOWN))?;
        self.track = Some(track.id);
        let params = track.codec_params.as_ref().and_then(|params| params.audio());
        let params = params.ok_or_else(|| Error::unsupported("a codec that is not known").hint(KNOWN))?;
        let mut piece = Piece::new(params.clone());
        (piece.announced, piece.sure) = (track.num_frames, self.sure);
        if let (Some(edit), Some(rate)) = (self.edit, params.sample_rate) {
            let [lead, length] =
                [Some(edit.start), edit.length].map(|time| Some((time? * f64::from(rate)).round() as u64));
            piece.lead = lead.unwrap_or_default();
            piece.length = length;
            piece.announced = piece.announced.map(|announced| {
                let left = announced.saturating_sub(piece.lead);
                piece.length.map_or(left, |length| left.min(length))
            });
        }
        Ok(piece)
    }
}

/// A sound under way.
struct Making {
    seconds: f64,
    limits: Limits,
    /// The pieces before.
    sound: Sound,
    decoder: Option<Box<dyn AudioDecoder>>,
    /// The piece under way, and its frames; `raw` counts those that were cut off too.
    piece: Piece,
    now: Sound,
    raw: u64,
    damage: Damage,
    notes: Vec<String>,
    buffer: Vec<Vec<f32>>,
}

fn frames_of(sound: &Sound) -> u64 {
    sound.channels.first().map_or(0, Vec::len) as u64
}

impl Making {
    /// The end of one piece, the start of another.
    fn start(&mut self, piece: Piece) -> Result<()> {
        self.finish()?;
        let params = &piece.params;
        if let Some(rate) = params.sample_rate {
            check_rate(rate)?;
        }
        if let Some(channels) = &params.channels {
            check_channels(channels.count())?;
        }
        if let (true, Some(frames), Some(rate), true) =
            (piece.sure, piece.announced, params.sample_rate, self.seconds.is_infinite())
        {
            let channels = params.channels.as_ref().map_or(1, |channels| channels.count());
            self.limits.check(frames, rate, channels)?;
        }
        let decoder = symphonia::default::get_codecs()
            .make_audio_decoder(params, &AudioDecoderOptions::default())
            .map_err(|error| {
                Error::unsupported(match codec_name(params.codec) {
                    Some(name) => format!("the codec {name} is not read"),
                    None => error.to_string(),
                })
                .hint(KNOWN)
            })?;
        self.decoder = Some(decoder);
        self.piece = piece;
        Ok(())
    }

    /// One packet more.
    fn add(&mut self, packet: &Packet) -> Result<()> {
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        let Ok(decoded) = decoder.decode(packet) else {
            self.damage.pieces += 1;
            return Ok(());
        };
        let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
        decoded.copy_to_vecs_planar(&mut self.buffer);
        if (rate, channels) != (self.now.rate, self.now.channels.len()) {
            check_rate(rate)?;
            check_channels(channels)?;
            self.join()?;
            self.now = Sound { rate, channels: vec![Vec::new(); channels] };
        }
        let frames = self.buffer.first().map_or(0, Vec::len);
        let lead = self.piece.lead.saturating_sub(self.raw).min(frames as u64) as usize;
        let before = frames_of(&self.now);
        let left = self.piece.length.map_or(u64::MAX, |length| length.saturating_sub(before));
        self.raw += frames as u64;
        for (channel, samples) in self.now.channels.iter_mut().zip(&self.buffer) {
            let samples = &samples[lead..];
            let samples = &samples[..samples.len().min(left.min(usize::MAX as u64) as usize)];
            if let Some(at) = samples.iter().position(|sample| !sample.is_finite()) {
                let frame = channel.len() + at;
                return Err(damaged(format!(
                    "frame {frame} is {}: every sample must be a number",
                    samples[at]
                )));
            }
            channel.extend_from_slice(samples);
        }
        if self.seconds.is_infinite() {
            self.limits.check(frames_of(&self.sound) + frames_of(&self.now), rate, channels)?;
        }
        Ok(())
    }

    /// Whether more was decoded than is asked for, an encoder's silence at the end counted out.
    fn is_enough(&self) -> bool {
        let longest = |sound: &Sound| frames_in(self.seconds, sound.rate) as u64;
        let before = if self.sound.rate == 0 { &self.now } else { &self.sound };
        frames_of(&self.sound) + frames_of(&self.now) > longest(before).saturating_add(4096)
    }

    /// The end of a piece.
    fn finish(&mut self) -> Result<()> {
        if let Some((_, kept)) = self.piece.end.filter(|(total, _)| *total == self.raw) {
            let kept = kept.saturating_sub(self.piece.lead) as usize;
            self.now.channels.iter_mut().for_each(|channel| channel.truncate(kept));
        }
        if !self.is_enough() {
            let found = frames_of(&self.now);
            self.damage.frames += self.piece.announced.map_or(0, |announced| announced.saturating_sub(found));
        }
        self.raw = 0;
        self.join()
    }

    /// Lays what is under way behind what was before, at its rate and with its channels.
    fn join(&mut self) -> Result<()> {
        let now = std::mem::replace(&mut self.now, Sound { rate: 0, channels: Vec::new() });
        if frames_of(&now) == 0 {
            return Ok(());
        }
        if frames_of(&self.sound) == 0 {
            self.sound = now;
            return Ok(());
        }
        let (rate, channels) = (self.sound.rate, self.sound.channels.len());
        let now = if (now.rate, now.channels.len()) == (rate, channels) {
            now
        } else {
            self.notes.push(format!(
                "the sound goes on with {} channels at {} Hz: brought to {channels} at {rate} Hz",
                now.channels.len(),
                now.rate
            ));
            super::resample::resample(super::with_channels(now, channels)?, rate)?
        };
        for (channel, more) in self.sound.channels.iter_mut().zip(now.channels) {
            channel.extend(more);
        }
        Ok(())
    }
}

fn decode(source: Stream<'_>, seconds: f64, limits: Limits) -> Result<DecodedAudio> {
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(Error::input(format!("{seconds} seconds of sound asked for: more than 0 wanted")));
    }
    let mut source = Source::open(source)?;
    let nothing = Sound { rate: 0, channels: Vec::new() };
    let mut making = Making {
        seconds,
        limits,
        sound: nothing.clone(),
        decoder: None,
        piece: Piece::new(AudioCodecParameters::new()),
        now: nothing,
        raw: 0,
        damage: Damage::default(),
        notes: Vec::new(),
        buffer: Vec::new(),
    };
    while !making.is_enough() {
        match source.next()? {
            Ok(Some(Event::Piece(piece))) => match making.start(piece) {
                // What came before is given.
                Err(error) if frames_of(&making.sound) > 0 && error.kind() != crate::ErrorKind::Input => {
                    making.damage.reason = Some(format!("another sound follows: {error}"));
                    break;
                }
                started => started?,
            },
            Ok(Some(Event::Packet(packet))) => making.add(&packet)?,
            Ok(None) => break,
            Err(reason) => {
                making.damage.reason = Some(reason);
                break;
            }
        }
    }
    making.finish()?;
    let Making { mut sound, mut damage, notes, .. } = making;
    if let Source::Mpeg(frames) = &source {
        damage.pieces += frames.skipped;
    }
    let longest = frames_in(seconds, sound.rate);
    let frames = frames_of(&sound);
    let truncated = frames > longest as u64;
    sound.channels.iter_mut().for_each(|channel| channel.truncate(longest));
    let damage = (damage != Damage::default()).then_some(damage);
    match (frames, &damage) {
        (0, None) => Err(damaged("a sound without samples")),
        (0, Some(damage)) => Err(damaged(format!("no sound can be read: {damage}"))),
        _ => Ok(DecodedAudio { sound, truncated, damage, notes }),
    }
}

const KNOWN: &str = "wav, aiff, au, caf, flac, mp3, ogg and webm (vorbis), m4a (aac, alac) are read; \
                     \"ffmpeg -i FILE sound.wav\" makes a wav of others";

/// What a sound is called that no reader here knows, by how its file begins.
fn other_sound(start: &[u8]) -> Option<&'static str> {
    let within = |name: &[u8]| start.windows(name.len()).take(200).any(|bytes| bytes == name);
    Some(match start {
        [b'O', b'g', b'g', b'S', ..] if within(b"OpusHead") => "the codec Opus",
        [b'O', b'g', b'g', b'S', ..] if within(b"Speex  ") => "the codec Speex",
        [b'w', b'v', b'p', b'k', ..] => "WavPack",
        [b'M', b'A', b'C', b' ', ..] => "Monkey's Audio",
        [b'T', b'T', b'A', b'1' | b'2', ..] => "True Audio",
        [b'M', b'P', b'C', b'K', ..] | [b'M', b'P', b'+', ..] => "Musepack",
        [b'D', b'S', b'D', b' ', ..] | [b'F', b'R', b'M', b'8', ..] => "DSD",
        [b'M', b'T', b'h', b'd', ..] => "MIDI (notes, not sound)",
        [0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11, ..] => "Windows Media Audio",
        [b'#', b'!', b'A', b'M', b'R', ..] => "the codec AMR",
        [b'.', b'R', b'M', b'F', ..] | [b'.', b'r', b'a', 0xfd, ..] => "RealAudio",
        [0x0b, 0x77, ..] => "the codec AC-3",
        _ => return None,
    })
}

/// The codecs that some container names and that are not read.
fn codec_name(codec: AudioCodecId) -> Option<&'static str> {
    Some(match codec {
        codecs::CODEC_ID_OPUS => "Opus",
        codecs::CODEC_ID_SPEEX => "Speex",
        codecs::CODEC_ID_AC3 => "AC-3",
        codecs::CODEC_ID_EAC3 => "E-AC-3",
        codecs::CODEC_ID_AC4 => "AC-4",
        codecs::CODEC_ID_DCA => "DTS",
        codecs::CODEC_ID_TRUEHD => "TrueHD",
        codecs::CODEC_ID_WMA => "Windows Media Audio",
        codecs::CODEC_ID_WAVPACK => "WavPack",
        codecs::CODEC_ID_TTA => "True Audio",
        codecs::CODEC_ID_ADPCM_G722 => "G.722 ADPCM",
        codecs::CODEC_ID_ADPCM_G726 => "G.726 ADPCM",
        codecs::CODEC_ID_ATRAC3 => "ATRAC3",
        _ => return None,
    })
}

fn frames_in(seconds: f64, rate: u32) -> usize {
    // Saturates: an endless length is the largest number.
    (seconds * f64::from(rate.max(1))).ceil() as usize
}

fn check_rate(rate: u32) -> Result<()> {
    match rate {
        1..=MAX_SAMPLE_RATE => Ok(()),
        _ => Err(damaged(format!("a rate of {rate} Hz: 1 to {MAX_SAMPLE_RATE} Hz wanted"))),
    }
}

fn check_channels(channels: usize) -> Result<()> {
    match channels {
        1..=MAX_CHANNELS => Ok(()),
        _ => Err(damaged(format!("{channels} channels: 1 to {MAX_CHANNELS} wanted"))),
    }
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(crate::ErrorKind::Format, message)
}
