//! Decoding of the first page of a TIFF, with the conversions of Pillow.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::{CLIPPED, FLOATS, PixelLimit, Pixels, Raster, clipped, cmyk, damaged, flat, unreadable, upper};
use crate::{Error, Result};

/// Values of PhotometricInterpretation in the TIFF specification.
const WHITE_IS_ZERO: u64 = 0;
const BLACK_IS_ZERO: u64 = 1;
const PALETTE: u64 = 3;
/// Value of ExtraSamples for premultiplied alpha.
const ASSOCIATED: u16 = 1;

pub(super) fn decode(bytes: &[u8], limit: PixelLimit) -> Result<Raster> {
    // The decoder has no support for palettes, and inverts WhiteIsZero only for some sample types: both are declared as
    // BlackIsZero to it, and converted here.
    let (bytes, meaning) = as_grey(bytes);
    let mut limits = Limits::default();
    limits.decoding_buffer_size = limit.bytes();
    limits.intermediate_buffer_size = limit.bytes();
    let mut decoder = Decoder::new(Cursor::new(&*bytes)).map_err(failed)?.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(failed)?;
    let (width, height) = limit.check(width, height)?;
    let colour = decoder.colortype().map_err(failed)?;
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(failed)?.unwrap_or_default();
    let planes = decoder.image_buffer_layout().map_err(failed)?;
    if planes.complete_len > limit.bytes() {
        return Err(limit.too_wide(width, height));
    }
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten();
    let orientation = orientation.and_then(Orientation::from_exif);
    let map = match meaning {
        Some(PALETTE) => decoder
            .find_tag_unsigned_vec::<u16>(Tag::Unknown(320))
            .map_err(failed)?
            .ok_or_else(|| damaged("a palette tiff without a palette"))?,
        _ => Vec::new(),
    };
    let mut samples = DecodingResult::U8(Vec::new());
    decoder.read_image_to_buffer(&mut samples).map_err(failed)?;

    let channels = usize::from(colour.num_samples());
    let bits = colour.bit_depth();
    let apart = planes.planes > 1;
    let mut notes = Vec::new();
    let bytes = match (samples, &colour) {
        (DecodingResult::U8(bytes), _) if bits < 8 => {
            if channels != 1 {
                return Err(unknown(&colour));
            }
            super::unpacked(&bytes, bits, width, (width * usize::from(bits)).div_ceil(8))
        }
        (DecodingResult::U8(bytes), _) => bytes,
        (DecodingResult::I8(bytes), _) => bytes.into_iter().map(|level| level as u8).collect(),
        (DecodingResult::U16(values), ColorType::Gray(16)) => {
            notes.push(CLIPPED);
            values.into_iter().map(clipped).collect()
        }
        (DecodingResult::U16(values), ColorType::RGB(_) | ColorType::RGBA(_) | ColorType::CMYK(_)) => {
            values.into_iter().map(upper).collect()
        }
        (DecodingResult::I16(values), ColorType::Gray(16)) => {
            notes.push(CLIPPED);
            values.into_iter().map(|level| level.clamp(0, 255) as u8).collect()
        }
        (DecodingResult::U32(values), ColorType::Gray(32)) => {
            notes.push(CLIPPED);
            // Pillow reads the integers as signed.
            values.into_iter().map(|level| (level as i32).clamp(0, 255) as u8).collect()
        }
        (DecodingResult::I32(values), ColorType::Gray(32)) => {
            notes.push(CLIPPED);
            values.into_iter().map(|level| level.clamp(0, 255) as u8).collect()
        }
        // Truncated to integers and clipped; NaN is black.
        (DecodingResult::F32(values), ColorType::Gray(32)) => {
            notes.push(FLOATS);
            values.into_iter().map(|level| level as u8).collect()
        }
        (DecodingResult::F64(values), ColorType::Gray(64)) => {
            notes.push(FLOATS);
            values.into_iter().map(|level| level as u8).collect()
        }
        _ => return Err(unknown(&colour)),
    };
    let bytes = match apart {
        true => joined(&bytes, width * height),
        false => bytes,
    };
    if bytes.len() != width * height * channels {
        return Err(unknown(&colour));
    }
    let pixels = match (colour, meaning) {
        (ColorType::Gray(bits @ 1..=8), Some(PALETTE)) => {
            // All reds, then all greens, then all blues.
            let count = 1usize << bits;
            let level = |i: usize| map.get(i).map_or(0, |level| upper(*level));
            let colour = |i: u8| [0, 1, 2].map(|plane| level(plane * count + usize::from(i)));
            Pixels::Rgb(flat(bytes.into_iter().map(colour)))
        }
        (ColorType::Gray(bits), meaning) => {
            let scale = if bits < 8 { u8::MAX / (u8::MAX >> (8 - bits)) } else { 1 };
            let turned = meaning == Some(WHITE_IS_ZERO) && bits <= 8;
            let level = |level: u8| if turned { 255 - level * scale } else { level * scale };
            Pixels::Grey(bytes.into_iter().map(level).collect())
        }
        (ColorType::GrayA(_) | ColorType::Multiband { num_samples: 2, .. }, _) if meaning.is_none() => {
            Pixels::GreyAlpha(bytes)
        }
        (ColorType::Multiband { num_samples: 2, .. }, Some(BLACK_IS_ZERO)) => Pixels::GreyAlpha(bytes),
        (ColorType::RGB(_), _) => Pixels::Rgb(bytes),
        (ColorType::RGBA(_), _) => match extra.first() {
            Some(0) => Pixels::Rgb(flat(bytes.as_chunks::<4>().0.iter().map(|&[r, g, b, _]| [r, g, b]))),
            Some(&ASSOCIATED) => Pixels::Rgba(flat(bytes.as_chunks::<4>().0.iter().map(divided))),
            _ => Pixels::Rgba(bytes),
        },
        (ColorType::CMYK(_), _) => Pixels::Rgb(flat(bytes.as_chunks::<4>().0.iter().map(cmyk))),
        (other, _) => return Err(unknown(&other)),
    };
    let indexed = meaning == Some(PALETTE) || bits == 1;
    Ok(Raster { width, height, pixels, orientation, notes, indexed })
}

/// Converts premultiplied alpha to straight alpha.
fn divided(&[r, g, b, a]: &[u8; 4]) -> [u8; 4] {
    let level = |level: u8| match a {
        0 => 0,
        255 => level,
        a => (255 * u32::from(level) / u32::from(a)).min(255) as u8,
    };
    [level(r), level(g), level(b), a]
}

/// Interleaves planes of `count` bytes each.
fn joined(planes: &[u8], count: usize) -> Vec<u8> {
    let channels = planes.len() / count.max(1);
    (0..count).flat_map(|i| (0..channels).map(move |plane| planes[plane * count + i])).collect()
}

fn unknown(colour: &ColorType) -> Error {
    Error::unsupported(format!("a tiff of {colour:?} is not supported"))
        .hint("supported: integer greyscale, palettes, RGB and CMYK, and float greyscale")
}

fn failed(error: TiffError) -> Error {
    let unsupported = matches!(error, TiffError::UnsupportedError(_) | TiffError::LimitsExceeded);
    unreadable(unsupported, error)
}

/// Returns the file with its first page declared as BlackIsZero if it is greyscale or a palette, and the original
/// value.
fn as_grey(bytes: &[u8]) -> (Cow<'_, [u8]>, Option<u64>) {
    let Some((place, width, meaning)) = meaning(bytes) else { return (Cow::Borrowed(bytes), None) };
    match meaning {
        BLACK_IS_ZERO => (Cow::Borrowed(bytes), Some(meaning)),
        WHITE_IS_ZERO | PALETTE => {
            let mut owned = bytes.to_vec();
            let number = &mut owned[place..place + width];
            number.fill(0);
            match bytes[0] {
                b'I' => number[0] = BLACK_IS_ZERO as u8,
                _ => number[width - 1] = BLACK_IS_ZERO as u8,
            }
            (Cow::Owned(owned), Some(meaning))
        }
        _ => (Cow::Borrowed(bytes), None),
    }
}

/// Returns the offset, size in bytes and value of PhotometricInterpretation of the first page.
fn meaning(bytes: &[u8]) -> Option<(usize, usize, u64)> {
    const MEANING: u64 = 262;
    let little = bytes.first() == Some(&b'I');
    let number = |at: usize, width: usize| -> Option<u64> {
        let part = bytes.get(at..at.checked_add(width)?)?;
        let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if little { part.iter().rev().fold(0, add) } else { part.iter().fold(0, add) })
    };
    let big = number(2, 2)? == 43;
    // Sizes of an offset, of the number of entries and of an entry, and the offset of the value in an entry.
    let (offset, count, entry, value) = if big { (8, 8, 20, 12) } else { (4, 2, 12, 8) };
    let directory = usize::try_from(number(if big { 8 } else { 4 }, offset)?).ok()?;
    let first = directory.checked_add(count)?;
    let entries = usize::try_from(number(directory, count)?).ok()?.min(bytes.len() / entry);
    (0..entries).find_map(|i| {
        let at = first.checked_add(i * entry)?;
        let width = match (number(at, 2)?, number(at + 2, 2)?) {
            (MEANING, 1) => 1,
            (MEANING, 3) => 2,
            (MEANING, 4) => 4,
            _ => return None,
        };
        Some((at + value, width, number(at + value, width)?))
    })
}
