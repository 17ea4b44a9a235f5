//! Decoding of PNG, with the conversions of Pillow.
//!
//! The palette is applied here and not in the decoder, which requires that every index is valid.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{CLIPPED, PixelLimit, Pixels, Raster, clipped, flat, unreadable, upper};
use crate::Result;

/// The IEND chunk, with length and checksum.
const END: [u8; 12] = *b"\0\0\0\0IEND\xaeB`\x82";

pub(super) fn decode(bytes: &[u8], limit: PixelLimit) -> Result<Raster> {
    // The decoder requires a chunk after the pixels; Pillow does not.
    let bytes = match bytes.ends_with(&END) {
        true => Cow::Borrowed(bytes),
        false => Cow::Owned([bytes, &END].concat()),
    };
    let limits = Limits { bytes: limit.bytes() };
    let mut decoder = Decoder::new_with_limits(Cursor::new(&*bytes), limits);
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let (width, height) = decoder.read_header_info().map(|info| (info.width, info.height)).map_err(failed)?;
    let (width, height) = limit.check(width, height)?;
    let mut reader = decoder.read_info().map_err(failed)?;
    let size = reader.output_buffer_size().filter(|size| *size <= limit.bytes());
    let mut samples = vec![0; size.ok_or_else(|| limit.too_wide(width, height))?];
    // The first frame of an animation.
    let frame = reader.next_frame(&mut samples).map_err(failed)?;
    let info = reader.info();
    let orientation = info.exif_metadata.as_deref().and_then(Orientation::from_exif_chunk);
    let (colour, depth, clear) = (info.color_type, info.bit_depth, info.trns.as_deref());
    // The decoder keeps both bytes of a 16-bit transparent colour; Pillow uses the lower one.
    let one_clear = clear.map(|clear| match depth {
        BitDepth::Sixteen => clear.as_chunks::<2>().0.iter().map(|pair| pair[1]).collect(),
        _ => clear.to_vec(),
    });
    let one_clear = one_clear.as_deref();
    let mut notes = Vec::new();
    let pixels = match (colour, depth) {
        (ColorType::Indexed, depth) => {
            let palette = info.palette.as_deref().unwrap_or_default();
            let indices = unpacked(samples, depth, width, frame.line_size);
            match clear {
                None => Pixels::Rgb(flat(indices.into_iter().map(|i| colour_of(palette, i)))),
                Some(alphas) => {
                    let pixel = |i: u8| {
                        let [r, g, b] = colour_of(palette, i);
                        [r, g, b, alphas.get(usize::from(i)).copied().unwrap_or(255)]
                    };
                    Pixels::Rgba(flat(indices.into_iter().map(pixel)))
                }
            }
        }
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            notes.push(CLIPPED);
            let grey = samples.as_chunks::<2>().0.iter().map(|pair| clipped(u16::from_be_bytes(*pair)));
            Pixels::Grey(grey.collect()).with_clear(one_clear)
        }
        (ColorType::Grayscale, depth) => {
            let most = u8::MAX / (u8::MAX >> (8 - depth as u8));
            let grey = unpacked(samples, depth, width, frame.line_size);
            Pixels::Grey(grey.into_iter().map(|level| level * most).collect()).with_clear(one_clear)
        }
        (colour, depth) => {
            if depth == BitDepth::Sixteen {
                samples =
                    samples.as_chunks::<2>().0.iter().map(|pair| upper(u16::from_be_bytes(*pair))).collect();
            }
            match colour {
                ColorType::GrayscaleAlpha => Pixels::GreyAlpha(samples),
                ColorType::Rgba => Pixels::Rgba(samples),
                _ => Pixels::Rgb(samples).with_clear(one_clear),
            }
        }
    };
    let indexed = colour == ColorType::Indexed || depth == BitDepth::One;
    Ok(Raster { width, height, pixels, orientation, notes, indexed })
}

/// Unpacks samples of up to 8 bits to one per byte. Each row of `line` bytes starts at a byte boundary.
fn unpacked(samples: Vec<u8>, depth: BitDepth, width: usize, line: usize) -> Vec<u8> {
    match depth as u8 {
        bits @ 1..8 => super::unpacked(&samples, bits, width, line),
        _ => samples,
    }
}

/// Returns a colour of the palette; black for an invalid index.
fn colour_of(palette: &[u8], index: u8) -> [u8; 3] {
    palette.as_chunks::<3>().0.get(usize::from(index)).copied().unwrap_or_default()
}

impl Pixels {
    /// Adds an alpha channel that is 0 for pixels of the colour `clear`. Pillow compares the stored value with samples
    /// converted to 8 bits, for any bit depth of the file.
    fn with_clear(self, clear: Option<&[u8]>) -> Self {
        let low = |i: usize| clear.and_then(|clear| clear.get(i)).copied();
        let alpha = |is_clear: bool| if is_clear { 0 } else { 255 };
        match (self, low(0), low(1), low(2)) {
            (Self::Grey(grey), Some(clear), ..) => {
                Self::GreyAlpha(flat(grey.into_iter().map(|level| [level, alpha(level == clear)])))
            }
            (Self::Rgb(rgb), Some(r), Some(g), Some(b)) => {
                let pixels = rgb.as_chunks::<3>().0.iter();
                Self::Rgba(flat(pixels.map(|&[x, y, z]| [x, y, z, alpha([x, y, z] == [r, g, b])])))
            }
            (other, ..) => other,
        }
    }
}

fn failed(error: DecodingError) -> crate::Error {
    let unsupported = matches!(error, DecodingError::LimitsExceeded);
    unreadable(unsupported, error)
}
