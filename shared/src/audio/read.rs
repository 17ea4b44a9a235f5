//! Decoding of audio files: wav (also RF64, BW64, Wave64), aiff, au, caf, flac, mp3, ogg and webm (vorbis), m4a and mp4
//! (aac, alac), detected by their contents, not their names.
//!
//! The whole file is decoded, and the lengths in its headers are checked against it. Encoder delay and padding are
//! removed if the file specifies them: in the LAME tag of an mp3, the granule positions of an ogg, the edit list of an
//! m4a.

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

/// Maximum length of decoded audio.
///
/// A small file can contain hours of silence, so audio that is too long is rejected before it takes memory: by the
/// length that the file declares, or as soon as that many frames are decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Maximum length in seconds of stereo at 48 kHz (384 kB each). Audio with more samples per second counts in
    /// proportion to its memory.
    pub seconds: f64,
}

impl Default for Limits {
    /// Twenty minutes.
    fn default() -> Self {
        Self { seconds: 1200.0 }
    }
}

impl Limits {
    /// No limit.
    pub const NONE: Self = Self { seconds: f64::INFINITY };

    /// Checks that `frames` frames are within the limit.
    fn check(&self, frames: u64, rate: u32, channels: usize) -> Result<()> {
        let seconds = frames as f64 / f64::from(rate);
        let weight = (f64::from(rate) * channels as f64 / 96_000.0).max(1.0);
        if seconds * weight <= self.seconds {
            return Ok(());
        }
        let by_memory = match weight > 1.0 {
            true => format!(" (the memory of {:.0} s of stereo at 48 kHz)", seconds * weight),
            false => String::new(),
        };
        Err(Error::input(format!(
            "{seconds:.0} s or more of {channels} channels at {rate} Hz{by_memory}, expected at most {} s",
            self.seconds
        ))
        .set("shorten the audio, or raise the limit", "Limits::seconds", "N"))
    }
}

/// Result of decoding an audio file.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodedAudio {
    /// The audio: at least one frame, all samples finite. Encoder delay and padding are removed if the file specifies
    /// them.
    pub sound: Sound,
    /// Whether the file is longer than the requested length.
    pub truncated: bool,
    /// The missing parts of a damaged file; `None` if the file is intact.
    pub damage: Option<Damage>,
    /// Conversions of a file with several concatenated streams of different formats.
    pub notes: Vec<String>,
}

/// The parts of a damaged file that could not be decoded.
///
/// If a file does not declare its length (an ogg, an mp3 without a Xing tag), a truncated end is not detected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Damage {
    /// Number of frames that the file declares and does not have.
    pub frames: u64,
    /// Number of damaged packets that were skipped, a few hundred frames each.
    pub pieces: u64,
    /// The error that ended decoding before the end of the file.
    pub reason: Option<String>,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        if self.frames > 0 {
            parts.push(format!("{} frames missing at the end", self.frames));
        }
        if self.pieces > 0 {
            parts.push(format!("{} damaged packets skipped", self.pieces));
        }
        parts.extend(self.reason.clone());
        f.write_str(&parts.join(", "))
    }
}

/// Decodes the audio file `path`.
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
/// [`Format`](crate::ErrorKind::Format), naming the file, if it is not an audio file, has no samples, an invalid
/// sampling rate, more than [`MAX_CHANNELS`] channels or a sample that is not finite;
/// [`Unsupported`](crate::ErrorKind::Unsupported) for an unsupported codec; [`Input`](crate::ErrorKind::Input) for
/// audio beyond the default [`Limits`]. A damaged file that can be decoded in part is not an error;
/// [`DecodedAudio::damage`] reports what is missing.
pub fn read(path: impl AsRef<Path>) -> Result<DecodedAudio> {
    read_within(path, Limits::default())
}

/// Decodes the audio file `path` with the given limits.
///
/// # Errors
/// Same as [`read`].
pub fn read_within(path: impl AsRef<Path>, limits: Limits) -> Result<DecodedAudio> {
    read_file(path.as_ref(), f64::INFINITY, limits)
}

/// Decodes the first `seconds` of the audio file `path`, without a limit on its length.
///
/// # Errors
/// Same as [`read`], and [`Input`](crate::ErrorKind::Input) if `seconds` is not above 0.
pub fn read_at_most(path: impl AsRef<Path>, seconds: f64) -> Result<DecodedAudio> {
    read_file(path.as_ref(), seconds, Limits::NONE)
}

fn read_file(path: &Path, seconds: f64, limits: Limits) -> Result<DecodedAudio> {
    let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Error::input("expected an audio file, found a folder").at(path));
    }
    let mut start = Vec::new();
    (&file).take(64).read_to_end(&mut start).map_err(|error| Error::io(path, "read", error))?;
    misnamed::refuse(path, &start)?;
    let file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    decode_any(Box::new(file), seconds, limits).map_err(|error| error.at(path))
}

/// Decodes the first `seconds` of an audio file in memory.
///
/// # Errors
/// Same as [`read_at_most`], without a file name.
pub fn read_bytes(bytes: &[u8], seconds: f64) -> Result<DecodedAudio> {
    decode_any(Box::new(Cursor::new(bytes)), seconds, Limits::NONE)
}

/// [`decode`], with panics of decoders as errors: sizes in a corrupt header may overflow, which panics in builds with
/// overflow checks.
fn decode_any<'s>(source: Box<dyn MediaSource + 's>, seconds: f64, limits: Limits) -> Result<DecodedAudio> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| decode(source, seconds, limits)))
        .unwrap_or_else(|_| Err(damaged("the header is corrupt")))
}

/// Next element of a file.
enum Event {
    /// The start of a stream.
    Piece(Piece),
    /// A packet of the current stream.
    Packet(Packet),
}

/// A stream of a file.
struct Piece {
    params: AudioCodecParameters,
    /// Declared number of frames, without encoder delay and padding.
    announced: Option<u64>,
    /// Whether `announced` is reliable, so that audio can be rejected by it.
    sure: bool,
    /// Encoder delay, in frames.
    lead: u64,
    /// If the first number of frames is decoded, the encoder padding begins at the second.
    end: Option<(u64, u64)>,
    /// Number of frames after `lead` to keep.
    length: Option<u64>,
}

impl Piece {
    fn new(params: AudioCodecParameters) -> Self {
        Self { params, announced: None, sure: false, lead: 0, end: None, length: None }
    }
}

type Stream<'s> = Box<dyn MediaSource + 's>;

/// A file with its demuxer.
enum Source<'s> {
    Blocks(Blocks<Stream<'s>>),
    Mpeg(Mpeg<Box<dyn Read + 's>>),
    Other(Other<'s>),
}

/// A file demuxed by symphonia.
struct Other<'s> {
    file: Box<dyn FormatReader + 's>,
    track: Option<u32>,
    edit: Option<Edit>,
    /// Whether the declared length is reliable.
    sure: bool,
}

impl<'s> Source<'s> {
    fn open(mut source: Stream<'s>) -> Result<Self> {
        let failed = |error| Error::io("the audio data", "read", error);
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
                Some(name) => Error::unsupported(format!("{name} is not supported")).hint(KNOWN),
                None => damaged(format!("not a supported audio file: {error}")).hint(KNOWN),
            })?;
        if [FORMAT_ID_MP1, FORMAT_ID_MP2, FORMAT_ID_MP3].contains(&file.format_info().format) {
            let mut stream = file.into_inner();
            stream.seek(SeekFrom::Start(0)).map_err(failed)?;
            return Ok(Self::Mpeg(Mpeg::new(Box::new(stream))));
        }
        let sure = start.starts_with(b"OggS") || start.get(4..8) == Some(b"ftyp");
        Ok(Self::Other(Other { file, track: None, edit, sure }))
    }

    /// Returns the next element, `None` at the end of the file. The inner error ends decoding of a damaged file.
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
                    // Another stream follows, as in a recorded radio stream.
                    self.sure = false;
                    Ok(self.piece().map(|piece| Some(Event::Piece(piece))).map_err(|error| error.to_string()))
                }
                Err(error) => Ok(Err(error.to_string())),
            };
        }
    }

    /// Returns the parameters of the current track.
    fn piece(&mut self) -> Result<Piece> {
        let track = self.file.default_track(TrackType::Audio);
        let track = track.ok_or_else(|| damaged("no audio track").hint(KNOWN))?;
        self.track = Some(track.id);
        let params = track.codec_params.as_ref().and_then(|params| params.audio());
        let params = params.ok_or_else(|| Error::unsupported("an unknown codec").hint(KNOWN))?;
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

/// State of decoding a file.
struct Making {
    seconds: f64,
    limits: Limits,
    /// The finished streams.
    sound: Sound,
    decoder: Option<Box<dyn AudioDecoder>>,
    /// The current stream, and its frames; `raw` also counts the encoder delay and padding.
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
    /// Finishes the current stream and starts the next one.
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
                    Some(name) => format!("the codec {name} is not supported"),
                    None => error.to_string(),
                })
                .hint(KNOWN)
            })?;
        self.decoder = Some(decoder);
        self.piece = piece;
        Ok(())
    }

    /// Decodes a packet.
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
                return Err(damaged(format!("frame {frame} is {}, expected finite samples", samples[at])));
            }
            channel.extend_from_slice(samples);
        }
        if self.seconds.is_infinite() {
            self.limits.check(frames_of(&self.sound) + frames_of(&self.now), rate, channels)?;
        }
        Ok(())
    }

    /// Whether more than the requested length is decoded, with a margin for encoder padding at the end.
    fn is_enough(&self) -> bool {
        let longest = |sound: &Sound| frames_in(self.seconds, sound.rate) as u64;
        let before = if self.sound.rate == 0 { &self.now } else { &self.sound };
        frames_of(&self.sound) + frames_of(&self.now) > longest(before).saturating_add(4096)
    }

    /// Finishes the current stream.
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

    /// Appends the current stream to the previous ones, converted to their sampling rate and channels.
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
                "a stream of {} channels at {} Hz was converted to {channels} channels at {rate} Hz",
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
        return Err(Error::input(format!("seconds must be above 0, found {seconds}")));
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
                // The previous streams are returned.
                Err(error) if frames_of(&making.sound) > 0 && error.kind() != crate::ErrorKind::Input => {
                    making.damage.reason = Some(format!("a further stream could not be decoded: {error}"));
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
        (0, None) => Err(damaged("audio without samples")),
        (0, Some(damage)) => Err(damaged(format!("no audio could be decoded: {damage}"))),
        _ => Ok(DecodedAudio { sound, truncated, damage, notes }),
    }
}

const KNOWN: &str = "supported: wav, aiff, au, caf, flac, mp3, ogg and webm (vorbis), m4a (aac, alac); \
                     \"ffmpeg -i FILE sound.wav\" converts others";

/// Returns the name of an unsupported audio format, by the first bytes of its file.
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
        [b'M', b'T', b'h', b'd', ..] => "MIDI (notes, not audio)",
        [0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11, ..] => "Windows Media Audio",
        [b'#', b'!', b'A', b'M', b'R', ..] => "the codec AMR",
        [b'.', b'R', b'M', b'F', ..] | [b'.', b'r', b'a', 0xfd, ..] => "RealAudio",
        [0x0b, 0x77, ..] => "the codec AC-3",
        _ => return None,
    })
}

/// Returns the name of an unsupported codec.
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
    // Saturates for infinity.
    (seconds * f64::from(rate.max(1))).ceil() as usize
}

fn check_rate(rate: u32) -> Result<()> {
    match rate {
        1..=MAX_SAMPLE_RATE => Ok(()),
        _ => Err(damaged(format!("a sampling rate of {rate} Hz, expected 1 to {MAX_SAMPLE_RATE} Hz"))),
    }
}

fn check_channels(channels: usize) -> Result<()> {
    match channels {
        1..=MAX_CHANNELS => Ok(()),
        _ => Err(damaged(format!("{channels} channels, expected 1 to {MAX_CHANNELS}"))),
    }
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(crate::ErrorKind::Format, message)
}
