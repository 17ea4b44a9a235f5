//! Decoding of image files: png, jpeg, webp, gif, bmp and tiff, detected by their contents, not their names.
//!
//! Greyscale, palettes, alpha and high bit depths are converted to RGB bytes like in Pillow.

mod gif;
mod png;
mod tiff;

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::item::{Alpha, Image, ImageOptions};
use crate::{Error, ErrorKind, Result, misnamed};

/// Maximum size of a file, in bytes.
const LONGEST_FILE: u64 = 1 << 30;
/// Maximum size of the decoded samples in bytes, before conversion to 8 bits, unless the pixel limit is raised.
const MOST_BYTES: usize = 1 << 30;

/// Note on greyscale integers of more than 8 bits.
const CLIPPED: &str = "greyscale values of more than 8 bits are clipped to 255, as in the reference";
/// Note on greyscale floats.
const FLOATS: &str = "greyscale float values are clipped to 0 to 255, as in the reference";

/// Note on a palette, or one bit per pixel, if the reference converts after resizing.
const NOT_SMOOTHED: &str = "the reference resizes a palette image with the nearest filter before conversion to RGB; here it \
                            is converted first";
/// Note on an alpha channel, if the reference converts after resizing.
const WITH_ALPHA: &str =
    "the reference resizes an image with its alpha channel before dropping it; here it is dropped first";

/// A decoded image, with notes for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// The image.
    pub image: Image,
    /// Notes on the conversion, for example that values were clipped.
    pub notes: Vec<&'static str>,
}

/// Decodes the image file `path` with the options of transformers.
///
/// Only the first frame of an animation, or page of a document, is decoded. As in Pillow, greyscale is repeated to RGB,
/// 16-bit colours are reduced to their upper 8 bits, greyscale of more than 8 bits and floats is clipped to 0 to 255,
/// and CMYK is converted to RGB without a colour profile.
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
/// [`Format`](ErrorKind::Format), naming the file, if it is empty, damaged, truncated or not an image;
/// [`Unsupported`](ErrorKind::Unsupported) for an unsupported image format, and for more pixels than
/// [`ImageOptions::max_pixels`].
pub fn read(path: impl AsRef<Path>) -> Result<Image> {
    read_with(path, &ImageOptions::default())
}

/// Decodes the image file `path` with `options`, usually [those of the model](crate::model::Pipeline::image_options).
///
/// # Errors
/// Same as [`read`].
pub fn read_with(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Image> {
    read_with_notes(path, options).map(|seen| seen.image)
}

/// [`read_with`], and notes on the conversion.
///
/// # Errors
/// Same as [`read`].
pub fn read_with_notes(path: impl AsRef<Path>, options: &ImageOptions) -> Result<DecodedImage> {
    let path = path.as_ref();
    let bytes = contents(path).map_err(|error| error.at(path))?;
    misnamed::refuse(path, &bytes)?;
    decode_noted(&bytes, options).map_err(|error| error.at(path))
}

/// Decodes an image file in memory.
///
/// # Errors
/// Same as [`read`], without a file name.
pub fn decode(bytes: &[u8], options: &ImageOptions) -> Result<Image> {
    decode_noted(bytes, options).map(|seen| seen.image)
}

fn decode_noted(bytes: &[u8], options: &ImageOptions) -> Result<DecodedImage> {
    // Decoders may panic on overflow with sizes of a corrupt header.
    std::panic::catch_unwind(|| decode_any(bytes, options))
        .unwrap_or_else(|_| Err(damaged("the header is corrupt")))
}

/// Pixels in the colour mode of the file, converted to 8 bits per sample.
enum Pixels {
    Grey(Vec<u8>),
    GreyAlpha(Vec<u8>),
    Rgb(Vec<u8>),
    Rgba(Vec<u8>),
}

/// Result of a decoder.
struct Raster {
    width: usize,
    height: usize,
    pixels: Pixels,
    orientation: Option<Orientation>,
    notes: Vec<&'static str>,
    /// Whether the file has a palette, or one bit per pixel.
    indexed: bool,
}

/// Maximum number of pixels.
#[derive(Clone, Copy)]
struct PixelLimit {
    max_pixels: usize,
}

impl PixelLimit {
    /// Returns the maximum size of the decoded samples in bytes; a pixel has at most 8.
    fn bytes(self) -> usize {
        MOST_BYTES.max(self.max_pixels.saturating_mul(8))
    }

    /// Returns the error for an image that takes more.
    fn too_wide(self, width: usize, height: usize) -> Error {
        Error::unsupported(format!("an image of {width} x {height} takes more than {} bytes", self.bytes()))
            .hint("make it smaller first")
    }

    /// Returns width and height, if they are not 0 and within the limit.
    fn check(self, width: u32, height: u32) -> Result<(usize, usize)> {
        let pixels = u64::from(width) * u64::from(height);
        match usize::try_from(pixels) {
            Ok(0) => Err(damaged(format!("an image of {width} x {height} has no pixels"))),
            Ok(pixels) if pixels <= self.max_pixels => Ok((width as usize, height as usize)),
            _ => Err(Error::unsupported(format!(
                "an image of {width} x {height}, {pixels} pixels, expected at most {}",
                self.max_pixels
            ))
            .set("make it smaller first, or raise the limit", "ImageOptions::max_pixels", "N")),
        }
    }
}

/// Reads a file that begins like an image and is not too large.
fn contents(path: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::io(path, "read", error);
    let mut file = File::open(path).map_err(|error| Error::io(path, "open", error))?;
    if file.metadata().is_ok_and(|about| about.is_dir()) {
        return Err(Error::input("expected an image file, found a folder"));
    }
    let mut bytes = Vec::new();
    file.by_ref().take(64).read_to_end(&mut bytes).map_err(failed)?;
    format(&bytes)?;
    file.take(LONGEST_FILE + 1 - bytes.len() as u64).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 <= LONGEST_FILE {
        true => Ok(bytes),
        false => Err(Error::unsupported(format!("an image file of more than {LONGEST_FILE} bytes"))),
    }
}

const KNOWN: &str = "supported: png, jpeg, webp, gif (first frame), bmp, tiff";

/// Detects the format of a file by its first bytes.
fn format(start: &[u8]) -> Result<ImageFormat> {
    if start.is_empty() {
        return Err(damaged("expected an image file, found an empty file"));
    }
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    if start.starts_with(b"II\x2b\0") || start.starts_with(b"MM\0\x2b") {
        return Ok(Tiff);
    }
    match image::guess_format(start) {
        Ok(format @ (Png | Jpeg | WebP | Gif | Bmp | Tiff)) => Ok(format),
        _ => Err(match stranger(start) {
            Some(kind) => Error::unsupported(format!("a {kind} is not supported")),
            None => damaged("not a supported image file"),
        }
        .hint(KNOWN)),
    }
}

/// Returns the name of an unsupported image or document format.
fn stranger(start: &[u8]) -> Option<&'static str> {
    let brand = start.get(4..12);
    match start {
        _ if brand.is_some_and(|b| b.starts_with(b"ftyphei") || b == b"ftypmif1") => Some("HEIC image"),
        _ if brand.is_some_and(|b| b.starts_with(b"ftypavi")) => Some("AVIF image"),
        _ if start.starts_with(b"%PDF") => Some("PDF"),
        _ if start.starts_with(b"<svg") || start.starts_with(b"<?xml") => Some("SVG or XML file"),
        _ if start.starts_with(b"8BPS") => Some("Photoshop file"),
        _ if start.starts_with(b"\xff\x0a") || start.starts_with(b"\0\0\0\x0cJXL ") => Some("JPEG XL image"),
        _ => None,
    }
}

fn decode_any(bytes: &[u8], options: &ImageOptions) -> Result<DecodedImage> {
    let limit = PixelLimit { max_pixels: options.max_pixels };
    let format = format(&bytes[..bytes.len().min(64)])?;
    let raster = match format {
        ImageFormat::Png => png::decode(bytes, limit)?,
        ImageFormat::Gif => gif::decode(bytes, limit)?,
        ImageFormat::Tiff => tiff::decode(bytes, limit)?,
        _ => {
            if format == ImageFormat::Jpeg {
                check_jpeg_ends(bytes)?;
            }
            others(bytes, format, limit)?
        }
    };
    let Raster { width, height, pixels, orientation, mut notes, indexed } = raster;
    if options.converts_late {
        let has_alpha = matches!(pixels, Pixels::GreyAlpha(_) | Pixels::Rgba(_));
        notes.extend(match (indexed, has_alpha) {
            (true, _) => Some(NOT_SMOOTHED),
            (false, true) => Some(WITH_ALPHA),
            _ => None,
        });
    }
    let image = Image { width, height, rgb: pixels.rgb(options.alpha) };
    // Pillow always applies the orientation of a tiff.
    let upright = options.upright || format == ImageFormat::Tiff;
    let image = match orientation.filter(|turn| upright && *turn != Orientation::NoTransforms) {
        Some(turn) => turned(image, turn)?,
        None => image,
    };
    Ok(DecodedImage { image, notes })
}

/// Decodes jpeg, webp and bmp.
fn others(bytes: &[u8], format: ImageFormat, limit: PixelLimit) -> Result<Raster> {
    let failed = |error: image::ImageError| {
        let unsupported = matches!(error, image::ImageError::Unsupported(_) | image::ImageError::Limits(_));
        unreadable(unsupported, error)
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some((limit.bytes() as u64).saturating_mul(2));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = limit.check(width, height)?;
    if decoder.total_bytes() > limit.bytes() as u64 {
        return Err(limit.too_wide(width, height));
    }
    // Invalid EXIF data is ignored.
    let orientation = decoder.orientation().ok();
    let pixels = match DynamicImage::from_decoder(decoder).map_err(failed)? {
        DynamicImage::ImageRgb8(pixels) => {
            let mut rgb = pixels.into_raw();
            if format == ImageFormat::Bmp {
                few_bits(bytes, &mut rgb);
            }
            Pixels::Rgb(rgb)
        }
        DynamicImage::ImageRgba8(pixels) => Pixels::Rgba(pixels.into_raw()),
        DynamicImage::ImageLuma8(pixels) => Pixels::Grey(pixels.into_raw()),
        DynamicImage::ImageLumaA8(pixels) => Pixels::GreyAlpha(pixels.into_raw()),
        other => {
            return Err(Error::unsupported(format!("an image of {:?} is not supported", other.color())));
        }
    };
    // The decoder does not report whether a bmp has a palette; it has one up to 8 bits.
    let bits = bytes.get(28..30).map_or(0, |bits| u16::from_le_bytes([bits[0], bits[1]]));
    let indexed = format == ImageFormat::Bmp && bits <= 8;
    Ok(Raster { width, height, pixels, orientation, notes: Vec::new(), indexed })
}

/// Converts 16-bit pixels of a bmp to 8 bits per channel like Pillow, which truncates where the decoder rounds.
fn few_bits(file: &[u8], rgb: &mut [u8]) {
    let number = |at: usize| {
        file.get(at..at + 4).map_or(0, |part| u32::from_le_bytes([part[0], part[1], part[2], part[3]]))
    };
    // Size of the header (at least 40); bits per pixel; the mask of green, if there are masks.
    if number(14) < 40 || number(28) & 0xffff != 16 {
        return;
    }
    let green_bits = if number(30) == 3 { number(58).count_ones() } else { 5 };
    let level = |level: u8, bits: u32| match bits {
        5 | 6 => (u32::from(level >> (8 - bits)) * 255 / ((1 << bits) - 1)) as u8,
        _ => level,
    };
    for [r, g, b] in rgb.as_chunks_mut::<3>().0 {
        (*r, *g, *b) = (level(*r, 5), level(*g, green_bits), level(*b, 5));
    }
}

/// Applies the EXIF orientation to `image`.
fn turned(image: Image, turn: Orientation) -> Result<Image> {
    let size = (image.width as u32, image.height as u32);
    let pixels = image::RgbImage::from_raw(size.0, size.1, image.rgb);
    let mut picture =
        DynamicImage::from(pixels.ok_or_else(|| damaged("fewer pixels than its size requires"))?);
    picture.apply_orientation(turn);
    let picture = picture.into_rgb8();
    Ok(Image { width: picture.width() as usize, height: picture.height() as usize, rgb: picture.into_raw() })
}

impl Pixels {
    /// Converts the pixels to RGB.
    fn rgb(self, alpha: Alpha) -> Vec<u8> {
        match self {
            Self::Rgb(rgb) => rgb,
            Self::Grey(grey) => flat(grey.into_iter().map(|level| [level; 3])),
            Self::GreyAlpha(pixels) => {
                let pixels = pixels.as_chunks::<2>().0.iter();
                flat(pixels.map(|&[g, a]| over([g; 3], a, alpha)))
            }
            Self::Rgba(pixels) => {
                let pixels = pixels.as_chunks::<4>().0.iter();
                flat(pixels.map(|&[r, g, b, a]| over([r, g, b], a, alpha)))
            }
        }
    }
}

/// Collects pixels to a flat vector.
fn flat<const N: usize>(pixels: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    pixels.collect::<Vec<_>>().into_flattened()
}

/// Unpacks samples of 1, 2 or 4 `bits` to one per byte, the first in the highest bits; each row has `line` bytes.
fn unpacked(packed: &[u8], bits: u8, width: usize, line: usize) -> Vec<u8> {
    let bits = usize::from(bits);
    let sample =
        |row: &[u8], i: usize| (row[i * bits / 8] >> (8 - bits - i * bits % 8)) & (u8::MAX >> (8 - bits));
    packed.chunks_exact(line.max(1)).flat_map(|row| (0..width).map(move |i| sample(row, i))).collect()
}

/// Converts a 16-bit colour to 8 bits like Pillow: its upper half.
fn upper(value: u16) -> u8 {
    (value >> 8) as u8
}

/// Converts 16-bit greyscale to 8 bits like Pillow: clipped.
fn clipped(value: u16) -> u8 {
    value.min(255) as u8
}

/// Converts CMYK to RGB in the fixed-point arithmetic of Pillow.
fn cmyk(&[c, m, y, k]: &[u8; 4]) -> [u8; 3] {
    let light = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let product = u32::from(ink) * light + 128;
        light.saturating_sub(((product >> 8) + product) >> 8) as u8
    })
}

/// Composites a pixel with the alpha value `a` over white in the fixed-point arithmetic of Pillow.
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

/// Checks that a jpeg has an end marker: decoders return a truncated image, filled with grey, without an error.
fn check_jpeg_ends(bytes: &[u8]) -> Result<()> {
    let short = || damaged("the jpeg is truncated: it has no end marker");
    let mut at = 2;
    loop {
        // A marker is one or more bytes 0xff and its type.
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
            // A byte 0xff in the scan; restart markers; markers without a length.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let length = bytes.get(at..at + 2).ok_or_else(short)?;
                at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}

fn unreadable(unsupported: bool, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let kind = if unsupported { ErrorKind::Unsupported } else { ErrorKind::Format };
    Error::new(kind, format!("cannot decode the image: {error}")).caused_by(error)
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}
