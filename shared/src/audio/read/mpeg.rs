//! Demuxer of MPEG audio (mp3, and layers 1 and 2).
//!
//! Frames are counted: the number in a header, or an estimate from the bit rate, is wrong for files of variable bit
//! rate without a header, for concatenated files and for those with an incomplete header.

use std::io::Read;

use symphonia::core::audio::layouts::{CHANNEL_LAYOUT_MONO, CHANNEL_LAYOUT_STEREO};
use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::codecs::audio::well_known::{CODEC_ID_MP1, CODEC_ID_MP2, CODEC_ID_MP3};
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, Timestamp};

use super::{Event, Piece};

/// Delay of every layer 3 decoder, in frames.
const DECODER_DELAY: u64 = 528 + 1;

/// The header of a frame, its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// 1, 2 or 3.
    layer: u8,
    /// Whether this is MPEG 1, not MPEG 2 or 2.5 with half and quarter sampling rates.
    first: bool,
    rate: u32,
    channels: usize,
    /// Size of the whole frame in bytes.
    bytes: usize,
    /// Samples per channel.
    frames: u64,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let &[0xff, b, c, d, ..] = bytes else { return None };
        let layer = 4 - (b >> 1 & 3);
        let version = b >> 3 & 3;
        if b >> 5 != 7 || layer == 4 || version == 1 {
            return None;
        }
        let first = version == 3;
        #[rustfmt::skip]
        let kbits: [u32; 14] = match (first, layer) {
            (true, 1) => [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
            (true, 2) => [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
            (true, _) => [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
            (false, 1) => [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
            (false, _) => [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
        };
        let bits = 1000 * kbits.get(usize::from(c >> 4).checked_sub(1)?)?;
        let rate = [44_100, 48_000, 32_000].get(usize::from(c >> 2 & 3))?
            >> match version {
                3 => 0,
                2 => 1,
                _ => 2,
            };
        let padding = u32::from(c >> 1 & 1);
        let (bytes, frames) = match layer {
            1 => ((12 * bits / rate + padding) * 4, 384),
            3 if !first => (72 * bits / rate + padding, 576),
            _ => (144 * bits / rate + padding, 1152),
        };
        let channels = if d >> 6 == 3 { 1 } else { 2 };
        Some(Self { layer, first, rate, channels, bytes: bytes as usize, frames })
    }

    /// Whether a frame with the header `other` can follow in the same stream.
    fn goes_with(&self, other: &Self) -> bool {
        (self.layer, self.first, self.rate) == (other.layer, other.first, other.rate)
    }
}

/// The Xing, Info or VBRI tag that encoders write to the first frame.
struct Tag {
    /// Number of frames of the stream.
    count: Option<u64>,
    /// Encoder delay and padding, in samples.
    added: Option<(u64, u64)>,
}

impl Tag {
    fn parse(head: &Head, frame: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
        if head.layer != 3 {
            return None;
        }
        if frame.get(36..40) == Some(b"VBRI") {
            return Some(Self { count: number(50).map(u64::from), added: None });
        }
        let side = match (head.first, head.channels) {
            (true, 2) => 32,
            (true, _) | (false, 2) => 17,
            _ => 9,
        };
        let mut at = 4 + side;
        // An audio frame that happens to contain the name of the tag has side information before it.
        let empty = frame.get(6..at)?.iter().all(|byte| *byte == 0);
        if !empty || !matches!(frame.get(at..at + 4)?, b"Xing" | b"Info") {
            return None;
        }
        let flags = number(at + 4)?;
        at += 8;
        let count = (flags & 1 != 0).then(|| number(at)).flatten().map(u64::from);
        at += [4, 4, 100, 4]
            .iter()
            .enumerate()
            .map(|(bit, size)| (flags as usize >> bit & 1) * size)
            .sum::<usize>();
        let by = frame.get(at..at + 4).unwrap_or_default();
        let added = match (by, number(at + 20)) {
            (b"LAME" | b"Lavf" | b"Lavc", Some(added)) => {
                Some((u64::from(added >> 12 & 0xfff), u64::from(added & 0xfff)))
            }
            _ => None,
        };
        Some(Self { count, added })
    }
}

/// The demuxer of a stream.
pub(super) struct Mpeg<R> {
    source: R,
    /// Buffered bytes, unused from `at` on.
    buffer: Vec<u8>,
    at: usize,
    ended: bool,
    /// The previous frame, unless other data followed it.
    before: Option<Head>,
    /// Layer, sampling rate and channels of the current stream.
    piece: Option<(u8, u32, usize)>,
    waiting: Option<Packet>,
    /// Number of damaged parts between frames.
    pub(super) skipped: u64,
}

impl<R: Read> Mpeg<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            at: 0,
            ended: false,
            before: None,
            piece: None,
            waiting: None,
            skipped: 0,
        }
    }

    /// Returns the next `count` bytes, or fewer at the end of the file.
    fn peek(&mut self, count: usize) -> Result<&[u8], String> {
        if self.buffer.len() - self.at < count && !self.ended {
            self.buffer.drain(..self.at);
            self.at = 0;
            let more = (count - self.buffer.len()).max(1 << 16) as u64;
            let found = (&mut self.source).take(more).read_to_end(&mut self.buffer);
            self.ended = (found.map_err(|error| error.to_string())? as u64) < more;
        }
        let end = self.buffer.len().min(self.at + count);
        Ok(&self.buffer[self.at..end])
    }

    fn skip(&mut self, mut count: u64) -> Result<(), String> {
        while count > 0 {
            let here = self.peek(count.min(1 << 16) as usize)?.len();
            if here == 0 {
                return Ok(());
            }
            self.at += here;
            count -= here as u64;
        }
        Ok(())
    }

    /// Returns the size in bytes of a metadata tag (ID3 or APE) at the current position, 0 if there is none.
    fn words(&mut self) -> Result<u64, String> {
        let bytes = self.peek(32)?;
        Ok(match bytes {
            [b'I', b'D', b'3', a, b, flags, size @ ..] if *a < 0xff && *b < 0xff && size.len() >= 4 => {
                let size = size[..4].iter().fold(0u64, |sum, byte| sum << 7 | u64::from(byte & 0x7f));
                10 + size + if flags & 0x10 != 0 { 10 } else { 0 }
            }
            [b'A', b'P', b'E', b'T', b'A', b'G', b'E', b'X', ..] if bytes.len() == 32 => {
                let size = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
                // The size includes the footer; a flag is set if there is also a header.
                let is_head = bytes[23] & 0x20 != 0;
                if is_head { 32 + u64::from(size) } else { 32 }
            }
            [b'T', b'A', b'G', ..] => 128,
            _ => 0,
        })
    }

    /// Returns the header of a frame at the current position that is followed by another frame, a tag or the end of the
    /// file.
    fn head(&mut self) -> Result<Option<Head>, String> {
        let before = self.before;
        let Some(head) = Head::parse(self.peek(4)?) else { return Ok(None) };
        let bytes = self.peek(head.bytes + 4)?;
        if bytes.len() < head.bytes {
            return Ok(None);
        }
        if before.is_some_and(|before| before.goes_with(&head)) {
            return Ok(Some(head));
        }
        let next = &bytes[head.bytes..];
        let follows = next.len() < 4
            || Head::parse(next).is_some_and(|next| next.goes_with(&head))
            || next.starts_with(b"TAG")
            || next.starts_with(b"ID3")
            || next.starts_with(b"APET");
        Ok(follows.then_some(head))
    }

    pub(super) fn next(&mut self) -> Result<Option<Event>, String> {
        if let Some(packet) = self.waiting.take() {
            return Ok(Some(Event::Packet(packet)));
        }
        let mut junk = false;
        loop {
            let tag = self.words()?;
            if tag > 0 {
                self.skip(tag)?;
                continue;
            }
            let Some(head) = self.head()? else {
                match self.peek(1)?.first() {
                    None => return Ok(None),
                    Some(byte) => junk |= *byte != 0,
                }
                self.before = None;
                self.at += 1;
                continue;
            };
            self.skipped += u64::from(junk && self.piece.is_some());
            let frame = self.peek(head.bytes)?.to_vec();
            self.at += head.bytes;
            self.before = Some(head);
            let kind = (head.layer, head.rate, head.channels);
            if let Some(tag) = Tag::parse(&head, &frame) {
                self.piece = Some(kind);
                return Ok(Some(Event::Piece(Self::piece(&head, &tag))));
            }
            let packet = Packet::new(0, Timestamp::ZERO, Duration::from(head.frames), frame);
            if self.piece == Some(kind) {
                return Ok(Some(Event::Packet(packet)));
            }
            self.piece = Some(kind);
            self.waiting = Some(packet);
            return Ok(Some(Event::Piece(Self::piece(&head, &Tag { count: None, added: None }))));
        }
    }

    fn piece(head: &Head, tag: &Tag) -> Piece {
        let mut params = AudioCodecParameters::new();
        let channels = if head.channels == 1 { CHANNEL_LAYOUT_MONO } else { CHANNEL_LAYOUT_STEREO };
        params
            .for_codec(match head.layer {
                1 => CODEC_ID_MP1,
                2 => CODEC_ID_MP2,
                _ => CODEC_ID_MP3,
            })
            .with_sample_rate(head.rate)
            .with_channels(channels);
        let count = tag.count.map(|count| count * head.frames);
        let (lead, tail) = match tag.added {
            Some((lead, tail)) => (lead + DECODER_DELAY, tail.saturating_sub(DECODER_DELAY)),
            None => (0, 0),
        };
        Piece {
            announced: count.map(|count| count.saturating_sub(lead + tail)).filter(|_| tag.added.is_some()),
            lead,
            // If the number of frames is wrong, the encoder padding is not at the end.
            end: count.filter(|_| tail > 0).map(|count| (count, count - tail.min(count))),
            ..Piece::new(params)
        }
    }
}
