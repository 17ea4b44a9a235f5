//! Image processors: preprocessing of images as specified in a `preprocessor_config.json`.
//!
//! A [`Processor`] reproduces the image processor of the reference implementation exactly, in its order and arithmetic:
//! pad to a square, resize on bytes, crop, rescale, normalize, pad.

mod settings;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

/// A processed image: `(3, height, width)`, height and width.
type Planes = (Vec<f32>, usize, usize);

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::resize::{Arithmetic, Filter, Part, resize_part};
use super::{check, check_size, cut, most_of, overlap};
use crate::item::{Image, ImageOptions};
use crate::kernels::pool;
use crate::{Error, Result};

/// Image mean of OpenAI's CLIP (RGB).
pub const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// Image standard deviation of OpenAI's CLIP (RGB).
pub const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// An image processor: converts images to the `pixel_values` of a model.
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
    /// Background colour of padding to a square before resizing.
    square: Option<[u8; 3]>,
    size: Option<(Size, Filter)>,
    crop: Option<Crop>,
    levels: Levels,
    /// Height and width of zero padding on the right and bottom, the last step.
    pad: Option<(usize, usize)>,
    scan: Option<PanAndScan>,
}

/// Target size of resizing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Size {
    /// This height and width, ignoring the aspect ratio.
    Exact(usize, usize),
    /// `shortest_edge`: the short side has this length, keeping the aspect ratio.
    Shortest(usize),
    /// `shortest_edge` and `longest_edge`: the short side has this length, unless the long one would be too long.
    Between(usize, usize),
    /// `max_height` and `max_width`: the largest size that fits, keeping the aspect ratio.
    Within(usize, usize),
    /// The short side has this length, both sides rounded; images are never enlarged.
    Rounded(usize),
}

impl Size {
    /// Returns height and width for an image of `height` by `width`.
    fn of(self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (h, w) = (height as f64, width as f64);
        let (short, long) = (height.min(width), height.max(width));
        // The reference implementations divide in float64 and truncate, like the casts here.
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
                        "an image of {width} x {height}, expected both sides of at least {size} pixels"
                    )));
                }
                let scale = size as f64 / short as f64;
                ((scale * h).round_ties_even() as usize, (scale * w).round_ties_even() as usize)
            }
        })
    }
}

/// A centre crop, with zero padding of a smaller image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Crop {
    height: usize,
    width: usize,
    middle: Middle,
}

/// Rounding of the offset of a centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Middle {
    /// Down: the torchvision processors of transformers.
    Down,
    /// Down, but up for padding at the start: the Pillow processors of transformers.
    ZerosFirst,
    /// To even: torchvision's `CenterCrop`.
    Even,
}

impl Middle {
    /// Returns the offset of a crop of length `wanted` in a side of length `side`; negative for padding.
    fn offset(self, side: usize, wanted: usize) -> isize {
        match side.checked_sub(wanted) {
            Some(rest) if self == Self::Even => (rest as f64 / 2.0).round_ties_even() as isize,
            Some(rest) => (rest / 2) as isize,
            None if self == Self::ZerosFirst => -((wanted - side).div_ceil(2) as isize),
            None => -(((wanted - side) / 2) as isize),
        }
    }
}

/// Lookup tables of rescaling and normalization, one per channel.
#[derive(Debug, Clone, PartialEq)]
struct Levels {
    tables: [[f32; 256]; 3],
    /// Whether values are neither rescaled nor normalized.
    are_bytes: bool,
}

/// Arithmetic of rescaling and normalization.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scaling {
    /// Rescaling and normalization fused, `(x - mean / factor) / (std / factor)` in float32.
    Fused,
    /// Rescaling in float64, then normalization in float32.
    Apart,
    /// Division by 255 in float32, then normalization.
    ToTensor,
}

impl Levels {
    /// Creates the tables. `factor`: the rescale factor, `None` for no rescaling. `normal`: mean and standard
    /// deviation, `None` for no normalization.
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

    /// Converts `image` to `(3, height, width)`.
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

/// Pan and scan of Gemma 3: crops of an elongated image are processed in addition to the image.
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
    /// Returns the crops of `image`; none if its aspect ratio is too small, or the crops would be too small.
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
    /// Creates a processor from `file`: a `preprocessor_config.json` (or the `image_processor` of a
    /// `processor_config.json`) of CLIP, SigLIP, IDEFICS, Gemma 3 or LLaVA, or an `open_clip_config.json`.
    ///
    /// An `image_processor_type` without suffix, or with `Fast`, is the torchvision processor of transformers 5; with
    /// `Pil` it is the Pillow processor. Lanczos with torchvision is bicubic, as in the reference before torchvision
    /// 0.27.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for another type, and for an unknown key that could change the
    /// result, by name; [`Format`](crate::ErrorKind::Format) for an invalid value.
    pub fn from_json(file: &Value) -> Result<Self> {
        settings::read(file)
    }

    /// The processor of CLIP in transformers 5: shortest edge `size`, bicubic with torchvision, centre crop.
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

    /// The transform of open_clip and of OpenAI's CLIP: shortest edge `size`, bicubic with Pillow, torchvision's
    /// `CenterCrop`.
    pub fn open_clip(size: usize) -> Self {
        Self {
            arithmetic: Arithmetic::Pillow,
            image_options: ImageOptions::open_clip(),
            crop: Some(Crop { height: size, width: size, middle: Middle::Even }),
            levels: Levels::new(Scaling::ToTensor, Some(1.0 / 255.0), Some((CLIP_MEAN, CLIP_STD))),
            ..Self::clip(size)
        }
    }

    /// The processor of SigLIP: resized to `size` by `size`, bicubic, normalized to -1 to 1.
    pub fn siglip(size: usize) -> Self {
        Self {
            size: Some((Size::Exact(size, size), Filter::Bicubic)),
            crop: None,
            levels: Levels::new(Scaling::Fused, Some(1.0 / 255.0), Some(([0.5; 3], [0.5; 3]))),
            ..Self::clip(size)
        }
    }

    /// The processor of IDEFICS: resized to `size` by `size`, bicubic, normalized like CLIP.
    pub fn idefics(size: usize) -> Self {
        Self { size: Some((Size::Exact(size, size), Filter::Bicubic)), crop: None, ..Self::clip(size) }
    }

    /// The processor of Gemma 3 and MedGemma: resized to `size` by `size`, bilinear, normalized to -1 to 1.
    pub fn gemma3(size: usize) -> Self {
        Self { size: Some((Size::Exact(size, size), Filter::Bilinear)), ..Self::siglip(size) }
    }

    /// The processor of LLaVA: padded to a square with the mean colour of CLIP, then like CLIP.
    pub fn llava(size: usize) -> Self {
        Self::clip(size).squared(CLIP_MEAN)
    }

    /// The transform of OpenAI's discrete VAE (DALL·E): shortest edge 256, Lanczos with Pillow, centre crop, rescaled
    /// to 0 to 1. `map_pixels` of the model follows.
    pub fn dvae() -> Self {
        Self {
            size: Some((Size::Rounded(256), Filter::Lanczos)),
            levels: Levels::new(Scaling::ToTensor, Some(1.0 / 255.0), None),
            ..Self::open_clip(256)
        }
    }

    /// Pads images to a square before resizing, with the colour `mean` (0 to 1) on both sides.
    pub fn squared(self, mean: [f64; 3]) -> Self {
        Self { square: Some(mean.map(|mean| (mean * 255.0) as u8)), ..self }
    }

    /// Keeps the aspect ratio and pads with black to the target size (letterbox, as in the Med-PaLM M paper).
    pub fn padded(self) -> Self {
        let (height, width) = self.size();
        let filter = self.size.map_or(Filter::Bicubic, |(_, filter)| filter);
        Self {
            size: Some((Size::Within(height, width), filter)),
            crop: Some(Crop { height, width, middle: Middle::Down }),
            ..self
        }
    }

    /// Sets the resizing arithmetic, Pillow's or torchvision's.
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        Self { arithmetic, ..self }
    }

    /// Turns pan and scan of Gemma 3 on or off, with its default settings unless the file specifies others.
    pub fn with_pan_and_scan(self, on: bool) -> Self {
        Self { scan: on.then(|| self.scan.unwrap_or_default()), ..self }
    }

    /// Returns height and width of processed images. If the size depends on the image (shortest edge without crop),
    /// returns that of a square image.
    pub fn size(&self) -> (usize, usize) {
        let resized = match self.size {
            Some((Size::Exact(height, width) | Size::Within(height, width), _)) => (height, width),
            Some((Size::Shortest(size) | Size::Between(size, _) | Size::Rounded(size), _)) => (size, size),
            None => (0, 0),
        };
        let cropped = self.crop.map_or(resized, |crop| (crop.height, crop.width));
        self.pad.unwrap_or(cropped)
    }

    /// Returns the options of decoding image files for this processor, those of transformers or of open_clip.
    pub fn image_options(&self) -> ImageOptions {
        self.image_options
    }

    /// Whether values are neither rescaled nor normalized.
    pub fn gives_bytes(&self) -> bool {
        self.levels.are_bytes
    }

    /// Processes `image` to `(3, height, width)`, float32 on the CPU.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an image that [`check`] rejects, that is too small, or whose aspect ratio
    /// is too large.
    pub fn process(&self, image: &Image) -> Result<Tensor> {
        let (planes, height, width) = self.planes(image)?;
        Ok(Tensor::from_vec(planes, (3, height, width), &Device::Cpu)?)
    }

    /// Processes several images, each followed by its [`pieces`](Processor::pieces): `(images, 3, height, width)`.
    ///
    /// # Errors
    /// Same as [`process`](Processor::process), with the index of the image; and if the processed images have different
    /// sizes.
    pub fn batch(&self, images: &[Image]) -> Result<Tensor> {
        if images.is_empty() {
            return Err(Error::input("expected at least one image"));
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
            let made = made.into_inner().unwrap_or_else(|| Err(Error::input("was not processed")));
            let (planes, height, width) = made.map_err(|error| error.context(format!("image {index}")))?;
            rows.push(Tensor::from_vec(planes, (3, height, width), &Device::Cpu)?);
            if rows[index].dims() != rows[0].dims() {
                return Err(Error::input(format!(
                    "image {index} is {width} x {height} after processing, image 0 has another size: they cannot be batched"
                )));
            }
        }
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// Returns the pan-and-scan crops of `image`, in order; empty if pan and scan is off.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an image that [`check`] rejects.
    pub fn pieces(&self, image: &Image) -> Result<Vec<Image>> {
        check(image)?;
        Ok(self.scan.map_or(Vec::new(), |scan| scan.pieces(image)))
    }

    /// Processes `image`.
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
                "an image of {width} x {height} is larger than the pad size {full_width} x {full_height}"
            )));
        }
        let mut padded = vec![0f32; 3 * full_height * full_width];
        for (row, old) in planes.chunks_exact(width).enumerate() {
            let start = (row / height * full_height + row % height) * full_width;
            padded[start..start + width].copy_from_slice(old);
        }
        Ok((padded, full_height, full_width))
    }

    /// Resizes and crops `image`; only the pixels of the crop are computed.
    fn resized(&self, image: &Image) -> Result<Image> {
        let (height, width) = match self.size {
            Some((size, _)) => size.of(image.height, image.width)?,
            None => (image.height, image.width),
        };
        let (height, width) = match self.size {
            // A side shorter than a pixel becomes one pixel; the references fail.
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

/// Centres `image` on a square of `colour`; the offset is rounded down.
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
