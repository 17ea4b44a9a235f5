//! Picture files to pixels: png, jpeg, webp, gif, bmp, tiff, told apart by what is in them, not by their names.
//!
//! What a file means is what Pillow makes of it: how deep greys, palettes and pixels that can be seen through become
//! bytes of red, green and blue.

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

/// The longest file that is read, in bytes.
const LONGEST_FILE: u64 = 1 << 30;
/// The most bytes that decoded pixels may take, before they are brought to one byte a colour, unless more pixels are
/// allowed than usual.
const MOST_BYTES: usize = 1 << 30;

/// What is said of whole numbers of more than 8 bits.
const CLIPPED: &str = "greys of more than 8 bits are cut off at 255, as the reference reads them";
/// What is said of floats.
const FLOATS: &str = "greys that are floats are cut off below 0 and above 255, as the reference reads them";

/// What is said of a palette, and of one bit a pixel, where the reference converts late.
const NOT_SMOOTHED: &str = "the reference resizes a picture with a palette without smoothing, before it converts it; here \
                            it is converted first";
/// The same of pixels that can be seen through.
const WITH_ALPHA: &str =
    "the reference resizes a picture together with its alpha, before it drops it; here it is dropped first";

/// A picture, and what is worth saying of how it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedImage {
    /// The picture.
    pub image: Image,
    /// In words, one thing each: that greys were cut off, say.
    pub notes: Vec<&'static str>,
}

/// The picture in the file at `path`, read as transformers reads it.
///
/// Of an animation, the first frame; of several pages, the first. Grey becomes three equal colours, colours of 16 bits
/// become their upper 8, greys of more than 8 bits and of floats are cut off at 0 and 255, CMYK becomes RGB without a
/// profile: all as Pillow has it.
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
/// [`Unsupported`](ErrorKind::Unsupported) for a kind of picture that is not read, and for more pixels than
/// [`ImageOptions::max_pixels`], which are not decoded.
pub fn read(path: impl AsRef<Path>) -> Result<Image> {
    read_with(path, &ImageOptions::default())
}

/// As [`read`], in the manner of `options`: a model says [its own](crate::model::Pipeline::image_options).
///
/// # Errors
/// As [`read`].
pub fn read_with(path: impl AsRef<Path>, options: &ImageOptions) -> Result<Image> {
    read_with_notes(path, options).map(|seen| seen.image)
}

/// As [`read_with`], with what is worth saying of it.
///
/// # Errors
/// As [`read`].
pub fn read_with_notes(path: impl AsRef<Path>, options: &ImageOptions) -> Result<DecodedImage> {
    let path = path.as_ref();
    let bytes = contents(path).map_err(|error| error.at(path))?;
    misnamed::refuse(path, &bytes)?;
    decode_noted(&bytes, options).map_err(|error| error.at(path))
}

/// The picture in `bytes`, a whole file.
///
/// # Errors
/// As [`read`], naming no file.
pub fn decode(bytes: &[u8], options: &ImageOptions) -> Result<Image> {
    decode_noted(bytes, options).map(|seen| seen.image)
}

fn decode_noted(bytes: &[u8], options: &ImageOptions) -> Result<DecodedImage> {
    // Decoders may stop at sums that a header of absurd sizes makes overflow.
    std::panic::catch_unwind(|| decode_any(bytes, options))
        .unwrap_or_else(|_| Err(damaged("the header makes no sense")))
}

/// Pixels as a file has them, brought to one byte a sample.
enum Pixels {
    Grey(Vec<u8>),
    GreyAlpha(Vec<u8>),
    Rgb(Vec<u8>),
    Rgba(Vec<u8>),
}

/// What a decoder found.
struct Raster {
    width: usize,
    height: usize,
    pixels: Pixels,
    orientation: Option<Orientation>,
    notes: Vec<&'static str>,
    /// Whether the file holds indices into a palette, or one bit a pixel.
    indexed: bool,
}

/// How many pixels may be decoded.
#[derive(Clone, Copy)]
struct Room {
    max_pixels: usize,
}

impl Room {
    /// The most bytes that decoded pixels may take: more where more pixels are allowed, of which the widest take 8.
    fn bytes(self) -> usize {
        MOST_BYTES.max(self.max_pixels.saturating_mul(8))
    }

    /// The refusal of pixels that take more.
    fn too_wide(self, width: usize, height: usize) -> Error {
        Error::unsupported(format!("a picture of {width} x {height} takes more than {} bytes", self.bytes()))
            .hint("make it smaller first")
    }

    /// Width and height, if they are not 0 and not too many pixels.
    fn check(self, width: u32, height: u32) -> Result<(usize, usize)> {
        let pixels = u64::from(width) * u64::from(height);
        match usize::try_from(pixels) {
            Ok(0) => Err(damaged(format!("a picture of {width} x {height} has no pixel"))),
            Ok(pixels) if pixels <= self.max_pixels => Ok((width as usize, height as usize)),
            _ => Err(Error::unsupported(format!(
                "a picture of {width} x {height}, {pixels} pixels: at most {} are decoded",
                self.max_pixels
            ))
            .hint("make it smaller first, or allow more: --max-pixels of the program, `max_pixels` of the library")),
        }
    }
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
    if start.starts_with(b"II\x2b\0") || start.starts_with(b"MM\0\x2b") {
        return Ok(Tiff);
    }
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

fn decode_any(bytes: &[u8], options: &ImageOptions) -> Result<DecodedImage> {
    let room = Room { max_pixels: options.max_pixels };
    let format = format(&bytes[..bytes.len().min(64)])?;
    let raster = match format {
        ImageFormat::Png => png::decode(bytes, room)?,
        ImageFormat::Gif => gif::decode(bytes, room)?,
        ImageFormat::Tiff => tiff::decode(bytes, room)?,
        _ => {
            if format == ImageFormat::Jpeg {
                check_jpeg_ends(bytes)?;
            }
            others(bytes, format, room)?
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
    // Pillow turns a tiff whoever asks.
    let upright = options.upright || format == ImageFormat::Tiff;
    let image = match orientation.filter(|turn| upright && *turn != Orientation::NoTransforms) {
        Some(turn) => turned(image, turn)?,
        None => image,
    };
    Ok(DecodedImage { image, notes })
}

/// Jpeg, webp and bmp.
fn others(bytes: &[u8], format: ImageFormat, room: Room) -> Result<Raster> {
    let failed = |error: image::ImageError| {
        let unsupported = matches!(error, image::ImageError::Unsupported(_) | image::ImageError::Limits(_));
        unreadable(unsupported, error)
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some((room.bytes() as u64).saturating_mul(2));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = room.check(width, height)?;
    if decoder.total_bytes() > room.bytes() as u64 {
        return Err(room.too_wide(width, height));
    }
    // A note that cannot be read is no reason to refuse the picture.
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
            return Err(Error::unsupported(format!("a picture of {:?}, which is not read", other.color())));
        }
    };
    // Of a bmp the decoder does not say whether it had a palette; 16 bits or more have none.
    let bits = bytes.get(28..30).map_or(0, |bits| u16::from_le_bytes([bits[0], bits[1]]));
    let indexed = format == ImageFormat::Bmp && bits <= 8;
    Ok(Raster { width, height, pixels, orientation, notes: Vec::new(), indexed })
}

/// Brings colours that a bmp stores in 16 bits to 8 as Pillow does, which cuts where the decoder rounds.
fn few_bits(file: &[u8], rgb: &mut [u8]) {
    let number = |at: usize| {
        file.get(at..at + 4).map_or(0, |part| u32::from_le_bytes([part[0], part[1], part[2], part[3]]))
    };
    // The header is at least 40 bytes long; bits of a pixel; the mask of green, where masks are given.
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

/// `image` as a camera's note says it was held.
fn turned(image: Image, turn: Orientation) -> Result<Image> {
    let size = (image.width as u32, image.height as u32);
    let pixels = image::RgbImage::from_raw(size.0, size.1, image.rgb);
    let mut picture = DynamicImage::from(pixels.ok_or_else(|| damaged("fewer pixels than its size says"))?);
    picture.apply_orientation(turn);
    let picture = picture.into_rgb8();
    Ok(Image { width: picture.width() as usize, height: picture.height() as usize, rgb: picture.into_raw() })
}

impl Pixels {
    /// Red, green and blue of every pixel.
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

/// Pixels one after the other, in no more room than they take.
fn flat<const N: usize>(pixels: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    pixels.collect::<Vec<_>>().into_flattened()
}

/// Samples of 1, 2 or 4 `bits`, one a byte, the first in the highest bits; each row is `line` bytes long.
fn unpacked(packed: &[u8], bits: u8, width: usize, line: usize) -> Vec<u8> {
    let bits = usize::from(bits);
    let sample =
        |row: &[u8], i: usize| (row[i * bits / 8] >> (8 - bits - i * bits % 8)) & (u8::MAX >> (8 - bits));
    packed.chunks_exact(line.max(1)).flat_map(|row| (0..width).map(move |i| sample(row, i))).collect()
}

/// The upper half of 16 bits, as Pillow takes it of colours.
fn upper(value: u16) -> u8 {
    (value >> 8) as u8
}

/// What Pillow makes of a grey of 16 bits.
fn clipped(value: u16) -> u8 {
    value.min(255) as u8
}

/// Cyan, magenta, yellow and black as red, green and blue, in Pillow's own fixed-point arithmetic.
fn cmyk(&[c, m, y, k]: &[u8; 4]) -> [u8; 3] {
    let light = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let product = u32::from(ink) * light + 128;
        light.saturating_sub(((product >> 8) + product) >> 8) as u8
    })
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

fn unreadable(unsupported: bool, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let kind = if unsupported { ErrorKind::Unsupported } else { ErrorKind::Format };
    Error::new(kind, format!("the picture cannot be read: {error}")).caused_by(error)
}

fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}
