//! Demuxer of chunk-based files: wav (RIFF, RIFX, RF64, BW64, Wave64), aiff, aifc and au.
//!
//! Headers are interpreted like in ffmpeg: the size of the whole file is ignored, the size of the samples is limited to
//! the file, and 0 or the maximum is a size that was unknown when the header was written.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use symphonia::core::audio::Channels;
use symphonia::core::codecs::audio::well_known::*;
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters};
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, Timestamp};

use super::{Event, Piece, check_channels, check_rate, damaged};
use crate::{Error, Result};

/// Number of frames of PCM in a packet.
const AT_ONCE: u64 = 4096;

/// Maximum number of chunks of a file.
const MOST_CHUNKS: usize = 100_000;

/// Sizes from here on that exceed the file mean "unknown": programs that write to a pipe use several values near the
/// maxima of 31 and 32 bits.
const UNKNOWN: u64 = 0x7fff_0000;

/// Codec of a file.
pub(super) enum Codec {
    /// Blocks of `bytes` bytes, each `frames` frames of all channels.
    Blocks { id: AudioCodecId, bytes: u64, frames: u64 },
    /// An MPEG audio stream.
    Mpeg,
}

/// The header of a file.
pub(super) struct Header {
    pub codec: Codec,
    rate: u32,
    channels: u16,
    /// Byte ranges of the samples.
    data: Vec<Range<u64>>,
    /// Number of frames that the header declares beyond the end of the file.
    missing: u64,
}

/// Whether a file that begins with `start` is one of these formats.
pub(super) fn is_plain(start: &[u8]) -> bool {
    let form = start.get(8..12).unwrap_or_default();
    match start.get(..4).unwrap_or_default() {
        b"RIFF" | b"RIFX" | b"RF64" | b"BW64" => form == b"WAVE",
        b"FORM" => form == b"AIFF" || form == b"AIFC",
        b"riff" => start.get(4..16) == Some(&W64[..]),
        other => other == b".snd",
    }
}

/// The rest of the GUID after "riff" in a Wave64 file.
const W64: [u8; 12] = [0x2e, 0x91, 0xcf, 0x11, 0xa5, 0xd6, 0x28, 0xdb, 0x04, 0xc1, 0, 0];

/// Parses the header of a file for which [`is_plain`] is true.
///
/// # Errors
/// [`Format`](crate::ErrorKind::Format) for a header without a format chunk, or samples before it;
/// [`Unsupported`](crate::ErrorKind::Unsupported), naming the codec, if it is not supported.
pub(super) fn header<S: Read + Seek + ?Sized>(file: &mut S) -> Result<Header> {
    let length = file.seek(SeekFrom::End(0)).map_err(|error| Error::io("the audio data", "seek", error))?;
    let mut file = Bytes { file, length };
    let start = file.at(0, 12);
    match &start[..] {
        [b'R', b'I', b'F', b'X', ..] => wave(&mut file, true),
        [b'R' | b'B', ..] => wave(&mut file, false),
        [b'r', ..] => wave64(&mut file),
        [b'F', ..] => aiff(&mut file),
        _ => au(&mut file),
    }
}

/// Random access to a file; reads beyond its end, or that fail, return fewer bytes.
struct Bytes<'s, S: ?Sized> {
    file: &'s mut S,
    length: u64,
}

impl<S: Read + Seek + ?Sized> Bytes<'_, S> {
    /// Returns up to `count` bytes at offset `at`.
    fn at(&mut self, at: u64, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        if at < self.length && self.file.seek(SeekFrom::Start(at)).is_ok() {
            let _ = (&mut *self.file).take(count).read_to_end(&mut bytes);
        }
        bytes
    }
}

fn number(bytes: &[u8], at: usize, count: usize, big: bool) -> Option<u64> {
    let bytes = bytes.get(at..at + count)?;
    let add = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
    Some(if big { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) })
}

fn short(bytes: &[u8], at: usize, big: bool) -> u16 {
    number(bytes, at, 2, big).unwrap_or(0) as u16
}

fn word(bytes: &[u8], at: usize, big: bool) -> u32 {
    number(bytes, at, 4, big).unwrap_or(0) as u32
}

/// Whether `name` is a valid chunk name.
fn is_name(name: &[u8]) -> bool {
    name.len() == 4 && name.iter().all(|byte| matches!(byte, b' '..=b'~')) && name[0] != b' '
}

/// Returns the start of the chunk after one that ends at `end`: chunks are aligned to 2 bytes, which some programs
/// ignore.
fn after<S: Read + Seek + ?Sized>(file: &mut Bytes<'_, S>, end: u64) -> u64 {
    match end % 2 {
        0 => end,
        _ if is_name(&file.at(end, 4)) && !is_name(&file.at(end + 1, 4)) => end,
        _ => end + 1,
    }
}

/// Returns the byte range of samples of `size` bytes at `start`, and the number of missing bytes.
fn extent(start: u64, size: u64, length: u64) -> (Range<u64>, u64) {
    let end = start.saturating_add(size);
    match end <= length {
        true => (start..end, 0),
        false if size >= UNKNOWN => (start..length, 0),
        false => (start..length, end - length),
    }
}

fn wave<S: Read + Seek + ?Sized>(file: &mut Bytes<'_, S>, big: bool) -> Result<Header> {
    let (mut format, mut data, mut missing, mut real) = (None, Vec::new(), 0, None);
    let mut at = 12;
    for _ in 0..MOST_CHUNKS {
        let head = file.at(at, 8);
        let Some(size) = number(&head, 4, 4, big) else { break };
        let start = at + 8;
        match &head[..4] {
            b"fmt " if format.is_none() => format = Some(file.at(start, size.min(1024))),
            b"ds64" => real = number(&file.at(start, 16), 8, 8, big),
            b"data" => {
                if format.is_none() {
                    return Err(damaged("the \"fmt \" chunk must come before the samples"));
                }
                let size = match (size, real) {
                    (0xffff_ffff, Some(real)) => real,
                    (0, _) if !ends_well(file, start, big) => u64::MAX,
                    (size, _) => size,
                };
                let (part, lost) = extent(start, size, file.length);
                at = after(file, part.end);
                data.push(part);
                missing = lost;
                continue;
            }
            _ => {}
        }
        at = after(file, start.saturating_add(size));
    }
    let format = format.ok_or_else(|| damaged("no \"fmt \" chunk"))?;
    of_format(&format, data, missing, big)
}

/// Whether valid chunks follow from `at` to exactly the end of the file.
fn ends_well<S: Read + Seek + ?Sized>(file: &mut Bytes<'_, S>, mut at: u64, big: bool) -> bool {
    for _ in 0..1000 {
        if at >= file.length {
            return at <= file.length + 1;
        }
        let head = file.at(at, 8);
        let Some(size) = number(&head, 4, 4, big).filter(|_| is_name(&head[..4])) else { return false };
        at = after(file, at + 8 + size);
    }
    false
}

fn wave64<S: Read + Seek + ?Sized>(file: &mut Bytes<'_, S>) -> Result<Header> {
    let (mut format, mut data, mut missing) = (None, Vec::new(), 0);
    let mut at = 40;
    for _ in 0..MOST_CHUNKS {
        let head = file.at(at, 24);
        // The size includes the header.
        let Some(size) = number(&head, 16, 8, false).map(|size| size.max(24) - 24) else { break };
        let start = at + 24;
        match &head[..4] {
            b"fmt " => format = Some(file.at(start, size.min(1024))),
            b"data" => {
                if format.is_none() {
                    return Err(damaged("the \"fmt \" chunk must come before the samples"));
                }
                let size = if size == 0 { u64::MAX } else { size };
                let (part, lost) = extent(start, size, file.length);
                data.push(part);
                missing = lost;
                break;
            }
            _ => {}
        }
        at = start.saturating_add(size).checked_next_multiple_of(8).unwrap_or(u64::MAX);
    }
    let format = format.ok_or_else(|| damaged("no \"fmt \" chunk"))?;
    of_format(&format, data, missing, false)
}

/// The last 14 bytes of the GUIDs of formats that are numbered.
const OF_NUMBERS: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];

fn of_format(format: &[u8], data: Vec<Range<u64>>, missing: u64, big: bool) -> Result<Header> {
    if format.len() < 14 {
        return Err(damaged(format!("a \"fmt \" chunk of {} bytes, expected at least 14", format.len())));
    }
    let (mut tag, channels, rate) = (short(format, 0, big), short(format, 2, big), word(format, 4, big));
    let (align, bits) = (u64::from(short(format, 12, big)), u64::from(short(format, 14, big)));
    if tag == 0xfffe {
        match format.get(26..40) {
            Some(tail) if tail == OF_NUMBERS => tag = short(format, 24, big),
            // Ambisonic files are read as plain channels.
            Some(tail) if tail[2..] == [0x21, 7, 0xd3, 0x11, 0x86, 0x44, 0xc8, 0xc1, 0xca, 0, 0, 0] => {
                tag = short(format, 24, big);
            }
            Some(_) => return Err(unread("a wav codec without a number")),
            None => return Err(damaged("an extensible \"fmt \" chunk that ends before its codec")),
        }
    }
    check_rate(rate)?;
    check_channels(channels.into())?;
    let count = u64::from(channels);
    // The number of valid bits of a sample is irrelevant: they are the highest.
    let width = match align % count {
        0 if (1..=8).contains(&(align / count)) && align / count >= bits.div_ceil(8) => align / count,
        _ => bits.div_ceil(8),
    };
    let samples = |id| Ok(Codec::Blocks { id, bytes: width * count, frames: 1 });
    let blocks = |id, head: u64| {
        let body = align.checked_sub(head * count).filter(|body| count <= 2 && *body > 0);
        let body = body.ok_or_else(|| {
            damaged(format!("invalid ADPCM of {channels} channels in blocks of {align} bytes"))
        })?;
        let frames = 2 * body / count + if head == 7 { 2 } else { 1 };
        Ok(Codec::Blocks { id, bytes: align, frames })
    };
    let codec = match (tag, width, big) {
        (1, 1, _) => samples(CODEC_ID_PCM_U8),
        (1, 2, false) => samples(CODEC_ID_PCM_S16LE),
        (1, 3, false) => samples(CODEC_ID_PCM_S24LE),
        (1, 4, false) => samples(CODEC_ID_PCM_S32LE),
        (1, 2, true) => samples(CODEC_ID_PCM_S16BE),
        (1, 3, true) => samples(CODEC_ID_PCM_S24BE),
        (1, 4, true) => samples(CODEC_ID_PCM_S32BE),
        (3, 4, false) => samples(CODEC_ID_PCM_F32LE),
        (3, 8, false) => samples(CODEC_ID_PCM_F64LE),
        (3, 4, true) => samples(CODEC_ID_PCM_F32BE),
        (3, 8, true) => samples(CODEC_ID_PCM_F64BE),
        (1 | 3, _, _) => {
            Err(damaged(format!("samples of {bits} bits, expected 8, 16, 24, 32 or floats of 32 or 64")))
        }
        (6 | 7, _, _) => {
            let id = if tag == 6 { CODEC_ID_PCM_ALAW } else { CODEC_ID_PCM_MULAW };
            Ok(Codec::Blocks { id, bytes: count, frames: 1 })
        }
        (2, _, _) => blocks(CODEC_ID_ADPCM_MS, 7),
        (0x11, _, _) => blocks(CODEC_ID_ADPCM_IMA_WAV, 4),
        (0x50 | 0x55, _, _) => Ok(Codec::Mpeg),
        _ => Err(unread(&match wave_codec(tag) {
            Some(name) => format!("{name} in a wav file"),
            None => format!("the wav codec {tag:#06x}"),
        })),
    };
    Header::new(codec?, rate, channels, data, missing)
}

fn wave_codec(tag: u16) -> Option<&'static str> {
    Some(match tag {
        0x10 => "OKI ADPCM",
        0x14 | 0x40 | 0x45 | 0x64 => "G.726 or G.723 ADPCM",
        0x20 => "Yamaha ADPCM",
        0x22 => "TrueSpeech",
        0x28f | 0x65 => "G.722 ADPCM",
        0x31 | 0x32 => "GSM 6.10",
        0x42 => "G.723.1",
        0x83 => "G.729",
        0x92 | 0x2000 => "AC-3",
        0x2001 => "DTS",
        0xff | 0x1600 | 0x1610 | 0x706d => "AAC",
        0x160..=0x163 => "Windows Media Audio",
        0x270 => "ATRAC3",
        0x566f | 0x674f..=0x6771 => "Vorbis",
        0x704f => "Opus",
        0xa109 => "Speex",
        0xf1ac => "FLAC",
        _ => return None,
    })
}

fn unread(what: &str) -> Error {
    Error::unsupported(format!("{what} is not supported")).hint(super::KNOWN)
}

fn aiff<S: Read + Seek + ?Sized>(file: &mut Bytes<'_, S>) -> Result<Header> {
    let (mut common, mut data, mut missing) = (None, Vec::new(), 0);
    let mut at = 12;
    for _ in 0..MOST_CHUNKS {
        let head = file.at(at, 8);
        let Some(size) = number(&head, 4, 4, true) else { break };
        let start = at + 8;
        match &head[..4] {
            b"COMM" => common = Some(file.at(start, size.min(1024))),
            b"SSND" if data.is_empty() => {
                let first = start + 8 + u64::from(word(&file.at(start, 8), 0, true));
                let size = match size.checked_sub(first - start) {
                    None | Some(0) => u64::MAX,
                    Some(size) => size,
                };
                let (part, lost) = extent(first, size, file.length.max(first));
                at = after(file, part.end);
                data.push(part);
                missing = lost;
                continue;
            }
            _ => {}
        }
        at = after(file, start.saturating_add(size));
    }
    let common = common.ok_or_else(|| damaged("no \"COMM\" chunk"))?;
    if common.len() < 18 {
        return Err(damaged(format!("a \"COMM\" chunk of {} bytes, expected at least 18", common.len())));
    }
    let (channels, bits) = (short(&common, 0, true), short(&common, 6, true));
    let rate = extended(&common[8..18]);
    if !(1.0..=f64::from(u32::MAX)).contains(&rate) {
        return Err(damaged(format!(
            "a sampling rate of {rate} Hz, expected 1 to {} Hz",
            super::MAX_SAMPLE_RATE
        )));
    }
    check_channels(channels.into())?;
    let count = u64::from(channels);
    let codec = common.get(18..22).filter(|_| file.at(8, 4) == b"AIFC").unwrap_or(b"NONE");
    let (id, bytes) = match (codec, bits.div_ceil(8)) {
        (b"NONE" | b"twos", 1) => (CODEC_ID_PCM_S8, 1),
        (b"NONE" | b"twos", 2) => (CODEC_ID_PCM_S16BE, 2),
        (b"NONE" | b"twos", 3) | (b"in24", _) => (CODEC_ID_PCM_S24BE, 3),
        (b"NONE" | b"twos", 4) | (b"in32", _) => (CODEC_ID_PCM_S32BE, 4),
        (b"sowt", 1) => (CODEC_ID_PCM_S8, 1),
        (b"sowt", 2) => (CODEC_ID_PCM_S16LE, 2),
        (b"sowt", 3) | (b"42ni", _) => (CODEC_ID_PCM_S24LE, 3),
        (b"sowt", 4) | (b"23ni", _) => (CODEC_ID_PCM_S32LE, 4),
        (b"raw ", _) => (CODEC_ID_PCM_U8, 1),
        (b"fl32" | b"FL32", _) => (CODEC_ID_PCM_F32BE, 4),
        (b"fl64" | b"FL64", _) => (CODEC_ID_PCM_F64BE, 8),
        (b"alaw" | b"ALAW", _) => (CODEC_ID_PCM_ALAW, 1),
        (b"ulaw" | b"ULAW", _) => (CODEC_ID_PCM_MULAW, 1),
        (b"ima4", _) if channels <= 2 => {
            let codec = Codec::Blocks { id: CODEC_ID_ADPCM_IMA_QT, bytes: 34 * count, frames: 64 };
            return Header::new(codec, rate.round() as u32, channels, data, missing);
        }
        (b"NONE" | b"twos" | b"sowt", _) => {
            return Err(damaged(format!("samples of {bits} bits, expected 8, 16, 24 or 32")));
        }
        (other, _) => {
            return Err(unread(&format!("the aiff codec \"{}\"", String::from_utf8_lossy(other))));
        }
    };
    let codec = Codec::Blocks { id, bytes: bytes * count, frames: 1 };
    Header::new(codec, rate.round() as u32, channels, data, missing)
}

/// Parses an 80-bit float: sign and exponent, then 64 bits of mantissa.
fn extended(bytes: &[u8]) -> f64 {
    let exponent = i32::from(short(bytes, 0, true)) - 16_383 - 63;
    number(bytes, 2, 8, true).unwrap_or(0) as f64 * 2f64.powi(exponent.clamp(-1000, 1000))
}

fn au<S: Read + Seek + ?Sized>(file: &mut Bytes<'_, S>) -> Result<Header> {
    let head = file.at(0, 24);
    if head.len() < 24 {
        return Err(damaged(format!("an au header of {} bytes, expected 24", head.len())));
    }
    let field = |index: usize| word(&head, 4 * index, true);
    let (start, size, rate) = (u64::from(field(1)).max(24), field(2), field(4));
    let (id, bytes) = match field(3) {
        1 => (CODEC_ID_PCM_MULAW, 1),
        2 => (CODEC_ID_PCM_S8, 1),
        3 => (CODEC_ID_PCM_S16BE, 2),
        4 => (CODEC_ID_PCM_S24BE, 3),
        5 => (CODEC_ID_PCM_S32BE, 4),
        6 => (CODEC_ID_PCM_F32BE, 4),
        7 => (CODEC_ID_PCM_F64BE, 8),
        27 => (CODEC_ID_PCM_ALAW, 1),
        other => return Err(unread(&format!("the au codec {other}"))),
    };
    check_channels(field(5) as usize)?;
    let channels = field(5) as u16;
    let size = if size == 0 { u64::MAX } else { size.into() };
    let (part, missing) = extent(start, size, file.length.max(start));
    let codec = Codec::Blocks { id, bytes: bytes * u64::from(channels), frames: 1 };
    Header::new(codec, rate, channels, vec![part], missing)
}

impl Header {
    fn new(codec: Codec, rate: u32, channels: u16, data: Vec<Range<u64>>, missing: u64) -> Result<Self> {
        check_rate(rate)?;
        if data.is_empty() {
            return Err(damaged("no samples after the header"));
        }
        let missing = match codec {
            Codec::Blocks { bytes, frames, .. } => (missing / bytes).saturating_mul(frames),
            Codec::Mpeg => 0,
        };
        Ok(Self { codec, rate, channels, data, missing })
    }
}

/// A reader of several byte ranges of a file.
pub(super) struct Parts<S> {
    file: S,
    parts: std::vec::IntoIter<Range<u64>>,
    now: Range<u64>,
}

impl<S: Read + Seek> Parts<S> {
    pub(super) fn new(file: S, header: &Header) -> Self {
        Self { file, parts: header.data.clone().into_iter(), now: 0..0 }
    }
}

impl<S: Read + Seek> Read for Parts<S> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.now.is_empty() {
            let Some(next) = self.parts.next() else { return Ok(0) };
            self.file.seek(SeekFrom::Start(next.start))?;
            self.now = next;
        }
        let left = (self.now.end - self.now.start).min(buffer.len() as u64) as usize;
        let found = self.file.read(&mut buffer[..left])?;
        match found {
            0 => self.now = 0..0,
            _ => self.now.start += found as u64,
        }
        Ok(found)
    }
}

/// The demuxer of a file of blocks.
pub(super) struct Blocks<S> {
    parts: Parts<S>,
    params: AudioCodecParameters,
    bytes: u64,
    frames: u64,
    /// Declared number of frames of the file.
    announced: u64,
    started: bool,
    /// Number of frames returned.
    at: u64,
}

impl<S: Read + Seek> Blocks<S> {
    pub(super) fn new(file: S, header: &Header, id: AudioCodecId, bytes: u64, frames: u64) -> Self {
        let size: u64 = header.data.iter().map(|part| part.end - part.start).sum();
        let mut params = AudioCodecParameters::new();
        params
            .for_codec(id)
            .with_sample_rate(header.rate)
            .with_channels(Channels::Discrete(header.channels))
            .with_frames_per_block(frames)
            .with_max_frames_per_packet(frames.max(AT_ONCE));
        let announced = (size / bytes).saturating_mul(frames).saturating_add(header.missing);
        Self { parts: Parts::new(file, header), params, bytes, frames, announced, started: false, at: 0 }
    }

    pub(super) fn next(&mut self) -> Result<Option<Event>, String> {
        if !self.started {
            self.started = true;
            let announced = Some(self.announced);
            return Ok(Some(Event::Piece(Piece {
                announced,
                sure: true,
                ..Piece::new(self.params.clone())
            })));
        }
        let blocks = (AT_ONCE / self.frames).max(1);
        let mut data = Vec::new();
        let wanted = blocks * self.bytes;
        (&mut self.parts).take(wanted).read_to_end(&mut data).map_err(|error| error.to_string())?;
        let blocks = data.len() as u64 / self.bytes;
        if blocks == 0 {
            return Ok(None);
        }
        data.truncate((blocks * self.bytes) as usize);
        let frames = blocks * self.frames;
        let packet = Packet::new(0, Timestamp::from(self.at as i64), Duration::from(frames), data);
        self.at += frames;
        Ok(Some(Event::Packet(packet)))
    }
}
