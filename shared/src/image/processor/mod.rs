//! What a model's processor file makes of a picture, before the model sees it.
//!
//! Preprocessing is part of the model: one grey level more or less moves what it answers. So a [`Processor`] does what
//! the reference named in the file does, in its order and its arithmetic: pad to a square, resize on bytes, crop,
//! scale, normalise, pad.

mod settings;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

/// What a model sees of a picture, its three planes one after the other, with their height and their width.
type Planes = (Vec<f32>, usize, usize);

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::resize::{Arithmetic, Filter, Part, resize_part};
use super::{check, check_size, cut, most_of, overlap};
use crate::item::{Image, ImageOptions};
use crate::kernels::pool;
use crate::{Error, Result};

/// The means of red, green and blue that OpenAI's CLIP subtracts.
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// What OpenAI's CLIP divides by.
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Pictures to a model's `pixel_values`.
///
/// ```
/// use fauna_shared::image::Processor;
/// use fauna_shared::item::Image;
/// let clip = Processor::clip(224);
/// let image = Image { width: 640, height: 480, rgb: vec![127; 640 * 480 * 3] };
/// assert_eq!(clip.process(&image)?.dims(), [3, 224, 224]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Processor {
    arithmetic: Arithmetic,
    image_options: ImageOptions,
    /// The colour that makes a square of every picture first.
    square: Option<[u8; 3]>,
    size: Option<(Size, Filter)>,
    crop: Option<Crop>,
    levels: Levels,
    /// Height and width to fill with zeros, on the right and below, at last.
    pad: Option<(usize, usize)>,
    scan: Option<PanAndScan>,
}

/// The size a picture is brought to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Size {
    /// This one, whatever the picture's shape.
    Exact(usize, usize),
    /// The short side this long, the long side in proportion.
    Shortest(usize),
    /// The short side this long, unless the long one would be longer than that.
    Between(usize, usize),
    /// As large as fits into this height and width.
    Within(usize, usize),
    /// The short side this long, both sides rounded, and no picture enlarged.
    Rounded(usize),
}

impl Size {
    /// Height and width for a picture of `height` by `width`.
    fn of(self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (h, w) = (height as f64, width as f64);
        let (short, long) = (height.min(width), height.max(width));
        // The references divide in float64 and cut what is behind the point; casts here do that.
        let along = |new: f64, this: f64, other: f64| (new * this / other) as usize;
        Ok(match self {
            Self::Exact(height, width) => (height, width),
            Self::Shortest(size) => {
                let longer = (size as f64 * long as f64 / short as f64) as usize;
                if width <= height { (longer, size) } else { (size, longer) }
            }
            Self::Between(size, longest) => {
                let ratio = long as f64 / short as f64;
                let (size, exact) = match ratio * size as f64 > longest as f64 {
                    true => {
                        let exact = longest as f64 * short as f64 / long as f64;
                        (exact.round_ties_even() as usize, exact)
                    }
                    false => (size, size as f64),
                };
                match height.cmp(&width) {
                    _ if size == short => (height, width),
                    std::cmp::Ordering::Greater => (along(exact, h, w), size),
                    _ => (size, along(exact, w, h)),
                }
            }
            Self::Within(most_height, most_width) => {
                let scale = (most_height as f64 / h).min(most_width as f64 / w);
                ((h * scale) as usize, (w * scale) as usize)
            }
            Self::Rounded(size) => {
                if short < size {
                    return Err(Error::input(format!(
                        "a picture of {width} x {height}: both sides of at least {size} pixels wanted"
                    )));
                }
                let scale = size as f64 / short as f64;
                ((scale * h).round_ties_even() as usize, (scale * w).round_ties_even() as usize)
            }
        })
    }
}

/// The middle of the resized picture, with zeros around a picture that is smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crop {
    height: usize,
    width: usize,
    middle: Middle,
}

/// What happens to the odd pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Middle {
    /// It is left over at the end: transformers' torchvision processors.
    Down,
    /// The same, but zeros come first: transformers' Pillow processors.
    ZerosFirst,
    /// It goes to the even offset: torchvision's own `CenterCrop`.
    Even,
}

impl Middle {
    /// Where a crop of `wanted` begins in a side of `side`; below zero, how many zeros come before it.
    fn offset(self, side: usize, wanted: usize) -> isize {
        match side.checked_sub(wanted) {
            Some(rest) if self == Self::Even => (rest as f64 / 2.0).round_ties_even() as isize,
            Some(rest) => (rest / 2) as isize,
            None if self == Self::ZerosFirst => -((wanted - side).div_ceil(2) as isize),
            None => -(((wanted - side) / 2) as isize),
        }
    }
}

/// What each byte of each colour becomes.
#[derive(Debug, Clone, PartialEq)]
struct Levels {
    tables: [[f32; 256]; 3],
    /// Whether they are the bytes themselves.
    are_bytes: bool,
}

/// How bytes become floats.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scaling {
    /// Scale and normalise at once, `(x - mean / factor) / (std / factor)` in float32.
    Fused,
    /// Scale in float64, then normalise in float32.
    Apart,
    /// Divide by 255 in float32, then normalise.
    ToTensor,
}

impl Levels {
    /// `factor`: what bytes are multiplied by, if they are. `normal`: means and deviations, if they are used.
    fn new(scaling: Scaling, factor: Option<f64>, normal: Option<([f64; 3], [f64; 3])>) -> Self {
        let level = |colour: usize, byte: f32| {
            let scaled = match (factor, scaling) {
                (None, _) => byte,
                (Some(_), Scaling::ToTensor) => byte / 255.0,
                (Some(factor), Scaling::Apart) => (f64::from(byte) * factor) as f32,
                (Some(_), Scaling::Fused) if normal.is_some() => byte,
                (Some(factor), Scaling::Fused) => byte * factor as f32,
            };
            let Some((mean, std)) = normal else { return scaled };
            let (mean, std) = (mean[colour] as f32, std[colour] as f32);
            match (scaling, factor) {
                (Scaling::Fused, Some(factor)) => {
                    let inverse = (1.0 / factor) as f32;
                    (scaled - mean * inverse) / (std * inverse)
                }
                _ => (scaled - mean) / std,
            }
        };
        let table = |colour| std::array::from_fn(|byte| level(colour, byte as f32));
        Self { tables: [table(0), table(1), table(2)], are_bytes: factor.is_none() && normal.is_none() }
    }

    /// `(3, height, width)` of `image`, plane after plane.
    fn planes(&self, image: &Image) -> Vec<f32> {
        let plane = |colour: usize| {
            let table = &self.tables[colour];
            image.rgb.chunks_exact(3).map(move |pixel| table[usize::from(pixel[colour])])
        };
        let mut planes = Vec::with_capacity(image.rgb.len());
        (0..3).for_each(|colour| planes.extend(plane(colour)));
        planes
    }
}

/// Gemma 3's pan and scan: a long picture is also seen in pieces.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PanAndScan {
    smallest: usize,
    most: usize,
    ratio: f64,
}

impl Default for PanAndScan {
    fn default() -> Self {
        Self { smallest: 256, most: 4, ratio: 1.2 }
    }
}

impl PanAndScan {
    /// The pieces of `image`, row by row; none where it is not long enough or they would be too small.
    fn pieces(self, image: &Image) -> Vec<Image> {
        let wide = image.width >= image.height;
        let (long, short) = (image.width.max(image.height), image.width.min(image.height));
        let ratio = long as f64 / short as f64;
        if ratio < self.ratio {
            return Vec::new();
        }
        let count = ((ratio + 0.5) as usize).min(long / self.smallest.max(1)).max(2).min(self.most);
        if count == 0 {
            return Vec::new();
        }
        let step = long.div_ceil(count);
        if step.min(short) < self.smallest {
            return Vec::new();
        }
        let piece = |index: usize| {
            let (start, length) = (step * index, step.min(long - (step * index).min(long)));
            match wide {
                true => cut(image, 0, start as isize, short, length),
                false => cut(image, start as isize, 0, length, short),
            }
        };
        (0..count).map(piece).filter(|piece| !piece.rgb.is_empty()).collect()
    }
}

impl Processor {
    /// What `file` says: a `preprocessor_config.json` (or the `image_processor` of a `processor_config.json`) of
    /// CLIP's, SigLIP's, IDEFICS's, Gemma 3's or LLaVA's processor, or an `open_clip_config.json`.
    ///
    /// The type without an ending, and with `Fast`, is transformers 5's own, on torchvision; with `Pil` it is the one
    /// on Pillow. Lanczos on torchvision is bicubic, as the reference has it before torchvision 0.27.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for another type, and for a key that is not known here and could
    /// change numbers, by name; [`Format`](crate::ErrorKind::Format) for a value that makes no sense.
    pub fn from_json(file: &Value) -> Result<Self> {
        settings::read(file)
    }

    /// OpenAI's CLIP at `size` as transformers 5 has it: the short side to `size`, bicubic on torchvision, the middle.
    pub fn clip(size: usize) -> Self {
        Self {
            arithmetic: Arithmetic::Torchvision,
            image_options: ImageOptions::transformers(),
            square: None,
            size: Some((Size::Shortest(size), Filter::Bicubic)),
            crop: Some(Crop { height: size, width: size, middle: Middle::Down }),
            levels: Levels::new(Scaling::Fused, Some(1.0 / 255.0), Some((CLIP_MEAN, CLIP_STD))),
            pad: None,
            scan: None,
        }
    }

    /// open_clip's and OpenAI's own transform at `size`: the same on Pillow, with torchvision's `CenterCrop`.
    pub fn open_clip(size: usize) -> Self {
        Self {
            arithmetic: Arithmetic::Pillow,
            image_options: ImageOptions::open_clip(),
            crop: Some(Crop { height: size, width: size, middle: Middle::Even }),
            levels: Levels::new(Scaling::ToTensor, Some(1.0 / 255.0), Some((CLIP_MEAN, CLIP_STD))),
            ..Self::clip(size)
        }
    }

    /// SigLIP at `size`: squashed to a square, bicubic, -1 to 1.
    pub fn siglip(size: usize) -> Self {
        Self {
            size: Some((Size::Exact(size, size), Filter::Bicubic)),
            crop: None,
            levels: Levels::new(Scaling::Fused, Some(1.0 / 255.0), Some(([0.5; 3], [0.5; 3]))),
            ..Self::clip(size)
        }
    }

    /// IDEFICS at `size`: squashed to a square, bicubic, CLIP's colours.
    pub fn idefics(size: usize) -> Self {
        Self { size: Some((Size::Exact(size, size), Filter::Bicubic)), crop: None, ..Self::clip(size) }
    }

    /// Gemma 3 and MedGemma at `size`: squashed to a square, bilinear, -1 to 1.
    pub fn gemma3(size: usize) -> Self {
        Self { size: Some((Size::Exact(size, size), Filter::Bilinear)), ..Self::siglip(size) }
    }

    /// LLaVA at `size`: made a square with CLIP's mean colour, then as CLIP.
    pub fn llava(size: usize) -> Self {
        Self::clip(size).squared(CLIP_MEAN)
    }

    /// OpenAI's discrete VAE: the short side to 256 by Lanczos on Pillow, the middle, 0 to 1. The model's own
    /// `map_pixels` follows.
    pub fn dvae() -> Self {
        Self {
            size: Some((Size::Rounded(256), Filter::Lanczos)),
            levels: Levels::new(Scaling::ToTensor, Some(1.0 / 255.0), None),
            ..Self::open_clip(256)
        }
    }

    /// The same, with every picture made a square first, by as much of the colour `mean` (of 0 to 1) on both sides.
    pub fn squared(self, mean: [f64; 3]) -> Self {
        Self { square: Some(mean.map(|mean| (mean * 255.0) as u8)), ..self }
    }

    /// The same, but a picture keeps its shape and stands on black, as the paper of Med-PaLM M has it: as large as
    /// fits, in the middle.
    pub fn padded(self) -> Self {
        let (height, width) = self.size();
        let filter = self.size.map_or(Filter::Bicubic, |(_, filter)| filter);
        Self {
            size: Some((Size::Within(height, width), filter)),
            crop: Some(Crop { height, width, middle: Middle::Down }),
            ..self
        }
    }

    /// The same, resized by Pillow's arithmetic or torchvision's.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// The same, with Gemma 3's pan and scan on (in its own numbers, unless the file gives others) or off.
    pub fn with_pan_and_scan(self, on: bool) -> Self {
        Self { scan: on.then(|| self.scan.unwrap_or_default()), ..self }
    }

    /// Height and width of what it gives. Where that depends on the picture (the short side is set and nothing cut
    /// out) it is that of a square one.
    pub fn size(&self) -> (usize, usize) {
        let resized = match self.size {
            Some((Size::Exact(height, width) | Size::Within(height, width), _)) => (height, width),
            Some((Size::Shortest(size) | Size::Between(size, _) | Size::Rounded(size), _)) => (size, size),
            None => (0, 0),
        };
        let cropped = self.crop.map_or(resized, |crop| (crop.height, crop.width));
        self.pad.unwrap_or(cropped)
    }

    /// How files of pictures are read for it: over white and upright as by transformers, or without their alpha and as
    /// they are stored as by open_clip's and OpenAI's own code.
    pub fn image_options(&self) -> ImageOptions {
        self.image_options
    }

    /// Whether it leaves bytes as they are, neither scaled nor normalised.
    pub fn gives_bytes(&self) -> bool {
        self.levels.are_bytes
    }

    /// `image` as the model sees it: `(3, height, width)`, float32 on the CPU.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for a picture that [`check`] refuses, or too small or too long and thin for
    /// the model.
    pub fn process(&self, image: &Image) -> Result<Tensor> {
        let (planes, height, width) = self.planes(image)?;
        Ok(Tensor::from_vec(planes, (3, height, width), &Device::Cpu)?)
    }

    /// Several pictures, each followed by its [`pieces`](Processor::pieces): `(pictures, 3, height, width)`.
    ///
    /// # Errors
    /// As [`process`](Processor::process), with the picture's number; and where they do not come out in one size.
    pub fn batch(&self, images: &[Image]) -> Result<Tensor> {
        if images.is_empty() {
            return Err(Error::input("no picture"));
        }
        let mut seen = Vec::new();
        for image in images {
            check(image)?;
            seen.push((seen.len(), image.clone()));
            let pieces = self.pieces(image)?;
            seen.extend(pieces.into_iter().map(|piece| (0, piece)));
        }
        let made: Vec<OnceLock<Result<Planes>>> = seen.iter().map(|_| OnceLock::new()).collect();
        pool::parallel_for(seen.len(), |index| {
            let _ = made[index].set(self.planes(&seen[index].1));
        });
        let mut rows = Vec::new();
        for (index, made) in made.into_iter().enumerate() {
            let made = made.into_inner().unwrap_or_else(|| Err(Error::input("was not made")));
            let (planes, height, width) = made.map_err(|error| error.context(format!("picture {index}")))?;
            rows.push(Tensor::from_vec(planes, (3, height, width), &Device::Cpu)?);
            if rows[index].dims() != rows[0].dims() {
                return Err(Error::input(format!(
                    "picture {index} becomes {width} x {height}, picture 0 another size: they cannot be taken together"
                )));
            }
        }
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// What pan and scan cuts out of `image`, in order; nothing where it is off.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for a picture that [`check`] refuses.
    pub fn pieces(&self, image: &Image) -> Result<Vec<Image>> {
        check(image)?;
        Ok(self.scan.map_or(Vec::new(), |scan| scan.pieces(image)))
    }

    /// The planes of `image`, their height and their width.
    fn planes(&self, image: &Image) -> Result<Planes> {
        check(image)?;
        let squared = match self.square {
            Some(colour) if image.height != image.width => Some(square(image, colour)?),
            _ => None,
        };
        let cropped = self.resized(squared.as_ref().unwrap_or(image))?;
        let (height, width) = (cropped.height, cropped.width);
        let planes = self.levels.planes(&cropped);
        let Some((full_height, full_width)) = self.pad.filter(|pad| *pad != (height, width)) else {
            return Ok((planes, height, width));
        };
        if height > full_height || width > full_width {
            return Err(Error::input(format!(
                "a picture of {width} x {height} is larger than the {full_width} x {full_height} it is padded to"
            )));
        }
        let mut padded = vec![0f32; 3 * full_height * full_width];
        for (row, old) in planes.chunks_exact(width).enumerate() {
            let start = (row / height * full_height + row % height) * full_width;
            padded[start..start + width].copy_from_slice(old);
        }
        Ok((padded, full_height, full_width))
    }

    /// `image` at its size, cut out; no pixel beyond the cut is made.
    fn resized(&self, image: &Image) -> Result<Image> {
        let (height, width) = match self.size {
            Some((size, _)) => size.of(image.height, image.width)?,
            None => (image.height, image.width),
        };
        let (height, width) = match self.size {
            // A side that came out shorter than a pixel is one; the references fail.
            Some((Size::Within(..), _)) => (height.max(1), width.max(1)),
            _ => (height, width),
        };
        let crop = self.crop.unwrap_or(Crop { height, width, middle: Middle::Down });
        check_size(crop.height, crop.width, most_of(image))?;
        let (top, left) = (crop.middle.offset(height, crop.height), crop.middle.offset(width, crop.width));
        let (rows, columns) = (overlap(top, crop.height, height), overlap(left, crop.width, width));
        let shift = |range: &std::ops::Range<usize>, by: isize| {
            (range.start as isize + by) as usize..(range.end as isize + by) as usize
        };
        let part = Part { rows: shift(&rows, top), columns: shift(&columns, left) };
        let filter = self.size.map_or(Filter::Nearest, |(_, filter)| filter);
        let seen = resize_part(image, height, width, &part, filter, self.arithmetic)?;
        match (rows.len(), columns.len()) == (crop.height, crop.width) {
            true => Ok(seen),
            false => {
                Ok(cut(&seen, -(rows.start as isize), -(columns.start as isize), crop.height, crop.width))
            }
        }
    }
}

/// `image` in the middle of a square of `colour`; the odd pixel comes after it.
fn square(image: &Image, colour: [u8; 3]) -> Result<Image> {
    let side = image.height.max(image.width);
    check_size(side, side, most_of(image))?;
    let (top, left) = ((side - image.height) / 2, (side - image.width) / 2);
    let mut rgb = colour.repeat(side * side);
    for (row, bytes) in image.rgb.chunks_exact(image.width * 3).enumerate() {
        let start = ((top + row) * side + left) * 3;
        rgb[start..start + bytes.len()].copy_from_slice(bytes);
    }
    Ok(Image { width: side, height: side, rgb })
}
