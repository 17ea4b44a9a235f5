//! The edit list of an m4a or mp4 file, which specifies the encoder delay and padding.
//!
//! AAC encoders add some thousand frames of silence at the start.

use std::io::{Read, Seek, SeekFrom};

/// Maximum size of a "moov" box, in bytes.
const LARGEST: u64 = 1 << 26;

/// The part of a track to play, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Edit {
    /// Start.
    pub start: f64,
    /// Length; `None` for the rest of the track.
    pub length: Option<f64>,
}

/// Returns the edit of the first audio track, if the file has one.
pub(super) fn edit<S: Read + Seek + ?Sized>(file: &mut S) -> Option<Edit> {
    let moov = moov(file)?;
    let scale = time_scale(find(&moov, b"mvhd")?)?;
    for track in boxes(&moov).filter(|(name, _)| name == b"trak").map(|(_, body)| body) {
        let media = find(track, b"mdia")?;
        if find(media, b"hdlr")?.get(8..12) != Some(b"soun") {
            continue;
        }
        let media_scale = time_scale(find(media, b"mdhd")?)?;
        let list = find(find(track, b"edts")?, b"elst")?;
        let wide = *list.first()? == 1;
        let size = if wide { 20 } else { 12 };
        let entries = list.get(8..)?.chunks_exact(size).map(|entry| {
            let (length, start) = entry.split_at(if wide { 8 } else { 4 });
            let start = &start[..if wide { 8 } else { 4 }];
            let signed = match *start {
                [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
                _ => i64::from_be_bytes(start.try_into().unwrap_or_default()),
            };
            (big(length), signed)
        });
        // A start of -1 is an empty edit (a delay before the audio).
        let entries: Vec<(u64, i64)> = entries.filter(|(_, start)| *start >= 0).collect();
        let (length, start) = *entries.first()?;
        // With several edits, the first specifies the encoder delay; the length is then unknown.
        let length = (entries.len() == 1 && length > 0).then(|| length as f64 / scale);
        return Some(Edit { start: start as f64 / media_scale, length });
    }
    None
}

fn moov<S: Read + Seek + ?Sized>(file: &mut S) -> Option<Vec<u8>> {
    let mut at = 0u64;
    for _ in 0..10_000 {
        file.seek(SeekFrom::Start(at)).ok()?;
        let mut head = [0; 16];
        file.read_exact(&mut head[..8]).ok()?;
        let name = [head[4], head[5], head[6], head[7]];
        if at == 0 && &name != b"ftyp" {
            return None;
        }
        let (skip, size) = match big(&head[..4]) {
            1 => {
                file.read_exact(&mut head[8..]).ok()?;
                (16, big(&head[8..]))
            }
            0 => (8, u64::MAX),
            size => (8, size),
        };
        if &name == b"moov" {
            let mut body = Vec::new();
            file.take(size.checked_sub(skip)?.min(LARGEST)).read_to_end(&mut body).ok()?;
            return Some(body);
        }
        at = at.checked_add(size.max(8))?;
    }
    None
}

fn big(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Returns the complete boxes in `bytes`.
fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = big(bytes.get(..4)?) as usize;
        let name = bytes.get(4..8)?.try_into().ok()?;
        let body = bytes.get(8..size)?;
        bytes = &bytes[size..];
        Some((name, body))
    })
}

fn find<'a>(bytes: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).find(|(found, _)| found == name).map(|(_, body)| body)
}

/// Returns the time scale (units per second) of an "mvhd" or "mdhd" box.
fn time_scale(bytes: &[u8]) -> Option<f64> {
    let at = if *bytes.first()? == 1 { 20 } else { 12 };
    let scale = big(bytes.get(at..at + 4)?);
    (scale > 0).then_some(scale as f64)
}
