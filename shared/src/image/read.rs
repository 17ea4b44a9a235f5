//! Picture files to pixels: png, jpeg, webp, gif, bmp, tiff, told apart by what is in them, not by their names.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::check_size;
use crate::item::Image;
use crate::{Error, ErrorKind, Result};

/// The longest file that is read, in bytes.
const LONGEST_FILE: u64 = 1 << 30;
/// The most bytes that decoded pixels may take, before they are brought to one byte a colour.
const MOST_BYTES: u64 = 1 << 30;

/// What becomes of pixels that can be seen through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Alpha {
    /// They lie over white: what a person sees on a page, and what transformers 5 gives its processors.
    #[default]
    OverWhite,
    /// They keep their colours and are seen through no more, as Pillow's `convert("RGB")` has it.
    Dropped,
}

/// The picture in the file at `path`, over white where it can be seen through.
///
/// Of an animation, the first frame; of several pages, the first. A camera's note of how it was held (EXIF) is
/// followed. Grey becomes three equal colours, 16 bits become their upper 8, CMYK becomes RGB without a profile.
///
/// ```
/// use fauna_shared::image::{read, write};
/// use fauna_shared::item::Image;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("dot.png");
/// let dot = Image { width: 1, height: 1, rgb: vec![255, 0, 0] };
/// write(&path, &dot)?;
/// assert_eq!(read(&path)?, dot);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Format`](ErrorKind::Format), naming the file, where it is empty, damaged, cut short or no picture;
/// [`Unsupported`](ErrorKind::Unsupported) for a kind of picture that is not read, and for more than
/// [`MOST_PIXELS`](super::MOST_PIXELS), which are not decoded.
pub fn read(path: impl AsRef<Path>) -> Result<Image> {
    read_with(path, Alpha::OverWhite)
}

/// As [`read`], with a choice of what becomes of pixels that can be seen through.
///
/// # Errors
/// As [`read`].
pub fn read_with(path: impl AsRef<Path>, alpha: Alpha) -> Result<Image> {
    let path = path.as_ref();
    contents(path).and_then(|bytes| decode(&bytes, alpha)).map_err(|error| error.at(path))
}

/// The picture in `bytes`, a whole file.
///
/// # Errors
/// As [`read`], naming no file.
pub fn decode(bytes: &[u8], alpha: Alpha) -> Result<Image> {
    // Decoders may stop at sums that a header of absurd sizes makes overflow.
    std::panic::catch_unwind(|| decode_any(bytes, alpha))
        .unwrap_or_else(|_| Err(damaged("the header makes no sense")))
}

/// The bytes of a file that begins like a picture and is not too long.
fn contents(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io(path, "read", error);
    let mut file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Error::input("a folder: a picture file wanted"));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(64).read_to_end(&mut bytes).map_err(failed)?;
    format(&bytes)?;
    file.take(LONGEST_FILE + 1 - bytes.len() as u64).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 <= LONGEST_FILE {
        true => Ok(bytes),
        false => Err(Error::unsupported(format!("a picture file of more than {LONGEST_FILE} bytes"))),
    }
}

const KNOWN: &str = "png, jpeg, webp, gif (first frame), bmp, tiff are read";

/// What the first bytes of a file say it is.
fn format(start: &[u8]) -> Result<ImageFormat> {
    if start.is_empty() {
        return Err(damaged("an empty file: a picture wanted"));
    }
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(start) {
        Ok(format @ (Png | Jpeg | WebP | Gif | Bmp | Tiff)) => Ok(format),
        _ => Err(match stranger(start) {
            Some(kind) => Error::unsupported(format!("a {kind}, which is not read")),
            None => damaged("not a picture that can be read"),
        }
        .hint(KNOWN)),
    }
}

/// What people take for a picture file and what is one, of a kind that is not read.
fn stranger(start: &[u8]) -> Option<&'static str> {
    let brand = start.get(4..12);
    match start {
        _ if brand.is_some_and(|b| b.starts_with(b"ftyphei") || b == b"ftypmif1") => Some("HEIC picture"),
        _ if brand.is_some_and(|b| b.starts_with(b"ftypavi")) => Some("AVIF picture"),
        _ if start.starts_with(b"%PDF") => Some("PDF"),
        _ if start.starts_with(b"<svg") || start.starts_with(b"<?xml") => Some("drawing in XML"),
        _ if start.starts_with(b"8BPS") => Some("Photoshop file"),
        _ if start.starts_with(b"\xff\x0a") || start.starts_with(b"\0\0\0\x0cJXL ") => {
            Some("JPEG XL picture")
        }
        _ => None,
    }
}

fn decode_any(bytes: &[u8], alpha: Alpha) -> Result<Image> {
    let format = format(&bytes[..bytes.len().min(64)])?;
    if format == ImageFormat::Jpeg {
        check_jpeg_ends(bytes)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(2 * MOST_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    check_size(height as usize, width as usize).map_err(|error| match width.min(height) {
        0 => damaged(error.message()),
        _ => Error::unsupported(error.message()).hint("make it smaller first"),
    })?;
    if decoder.total_bytes() > MOST_BYTES {
        return Err(Error::unsupported(format!(
            "a picture of {width} x {height} that takes {} bytes: at most {MOST_BYTES} are read",
            decoder.total_bytes()
        )));
    }
    // A note that cannot be read is no reason to refuse the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Image { width, height, rgb: colours(picture, alpha) })
}

/// Red, green and blue of every pixel.
fn colours(picture: DynamicImage, alpha: Alpha) -> Vec<u8> {
    let grey = |grey: u8| [grey; 3];
    match picture {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageLuma8(pixels) => pixels.as_raw().iter().flat_map(|&g| grey(g)).collect(),
        DynamicImage::ImageLuma16(pixels) => pixels.as_raw().iter().flat_map(|&g| grey(upper(g))).collect(),
        DynamicImage::ImageRgb16(pixels) => pixels.as_raw().iter().map(|&c| upper(c)).collect(),
        DynamicImage::ImageRgba8(pixels) => pixels
            .as_raw()
            .as_chunks::<4>()
            .0
            .iter()
            .flat_map(|&[r, g, b, a]| over([r, g, b], a, alpha))
            .collect(),
        DynamicImage::ImageLumaA8(pixels) => {
            pixels.as_raw().as_chunks::<2>().0.iter().flat_map(|&[g, a]| over([g; 3], a, alpha)).collect()
        }
        DynamicImage::ImageRgba16(pixels) => {
            let pixels = pixels.as_raw().as_chunks::<4>().0.iter();
            pixels
                .flat_map(|pixel| {
                    let [r, g, b, a] = pixel.map(upper);
                    over([r, g, b], a, alpha)
                })
                .collect()
        }
        DynamicImage::ImageLumaA16(pixels) => {
            let pixels = pixels.as_raw().as_chunks::<2>().0.iter();
            pixels.flat_map(|pixel| over([upper(pixel[0]); 3], upper(pixel[1]), alpha)).collect()
        }
        // Floats of a tiff; and whatever a later version of the reader may bring.
        other => other
            .to_rgba8()
            .as_raw()
            .as_chunks::<4>()
            .0
            .iter()
            .flat_map(|&[r, g, b, a]| over([r, g, b], a, alpha))
            .collect(),
    }
}

/// The upper half of 16 bits, as Pillow takes it.
fn upper(value: u16) -> u8 {
    (value >> 8) as u8
}

/// A pixel of which `a` of 255 is seen, over white in Pillow's own fixed-point arithmetic.
fn over(rgb: [u8; 3], a: u8, alpha: Alpha) -> [u8; 3] {
    if alpha == Alpha::Dropped || a == 255 {
        return rgb;
    }
    let share = u32::from(a) * 128;
    rgb.map(|colour| {
        let sum = u32::from(colour) * share + 255 * (255 * 128 - share) + 0x4000;
        (((sum >> 8) + sum) >> 8 >> 7) as u8
    })
}

/// Refuses a jpeg that stops before its end mark: decoders give what is there, the rest grey, and say nothing.
fn check_jpeg_ends(bytes: &[u8]) -> Result<()> {
    let short = || damaged("the jpeg is cut short: it has no end mark");
    let mut at = 2;
    loop {
        // A marker is 0xff, any number of times, and what it is.
        while *bytes.get(at).ok_or_else(short)? != 0xff {
            at += 1;
        }
        while *bytes.get(at).ok_or_else(short)? == 0xff {
            at += 1;
        }
        let marker = bytes[at];
        at += 1;
        match marker {
            0xd9 => return Ok(()),
            // A byte of the scan that happens to be 0xff; restarts; marks without a length.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length = bytes.get(at..at + 2).ok_or_else(short)?;
                at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

fn unreadable(error: image::ImageError) -> Error {
    let kind = match &error {
        image::ImageError::Unsupported(_) | image::ImageError::Limits(_) => ErrorKind::Unsupported,
        _ => ErrorKind::Format,
    };
    Error::new(kind, format!("the picture cannot be read: {error}")).caused_by(error)
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}
