//! Image preprocessing: `PrismaticImageProcessor`, on 8-bit images and with Pillow's arithmetic.

mod keys;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor};
use fauna_shared::image::resize::{Arithmetic, Filter, Part, resize_part};
use fauna_shared::image::{MAX_PIXELS, check};
use fauna_shared::item::Image;
use fauna_shared::model::check_sizes;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use self::keys::{check as check_keys, colours, entries, filter, height_and_width, normals, side, wrong};
use super::config::Config;

/// Mean and standard deviation of ImageNet, used by DINOv2.
const IMAGENET: Normal = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// Mean and standard deviation of CLIP.
const CLIP: Normal = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
/// Mean and standard deviation of SigLIP, for values from -1 to 1.
const HALF: Normal = ([0.5; 3], [0.5; 3]);

/// Fraction of the image area that is kept by the center crop.
const CROPPED_AREA: f32 = 0.9;

/// Mean and standard deviation of each channel.
type Normal = ([f64; 3], [f64; 3]);

/// Preprocesses frames to `pixel_values`, with the images of all towers concatenated along the channels.
///
/// ```
/// use fauna_robotics::openvla::FrameProcessor;
/// use fauna_shared::item::Image;
/// let processor = FrameProcessor::from_json(&serde_json::json!({
///     "use_fused_vision_backbone": true, "image_resize_strategy": "resize-naive",
///     "input_sizes": [[3, 224, 224], [3, 224, 224]], "interpolations": ["bicubic", "bicubic"],
///     "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]], "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]]
/// }))?;
/// let frame = Image { width: 640, height: 480, rgb: vec![127; 640 * 480 * 3] };
/// assert_eq!(processor.process(&frame)?.dims(), [6, 224, 224]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct FrameProcessor {
    /// Fill colour of letterboxing, if it is used.
    letterbox: Option<[u8; 3]>,
    views: Vec<View>,
    /// Whether frames are center-cropped.
    centre_crop: bool,
}

/// Preprocessing for one tower.
#[derive(Debug, Clone, PartialEq)]
struct View {
    size: Size,
    filter: Filter,
    /// Height and width of the final crop.
    crop: (usize, usize),
    normal: Normal,
}

/// Size that frames are resized to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Size {
    /// Height and width.
    Exact(usize, usize),
    /// Length of the shorter side; the aspect ratio is kept.
    Shortest(usize),
}

impl FrameProcessor {
    /// Creates the processor of a `preprocessor_config.json`. Its `tvf_…` keys, which the reference uses, take precedence over
    /// the keys that they were derived from.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) for an invalid value; [`Unsupported`](ErrorKind::Unsupported) for an unknown key,
    /// `image_resize_strategy` or interpolation, by name.
    pub fn from_json(file: &Value) -> Result<Self> {
        let sizes = match &file["input_sizes"] {
            Value::Null => vec![(224, 224)],
            sizes => entries("input_sizes", sizes)?.iter().map(height_and_width).collect::<Result<_>>()?,
        };
        let count = sizes.len();
        if !(1..=2).contains(&count) {
            return Err(wrong("input_sizes", &file["input_sizes"], "one size or two"));
        }
        check_keys(file, count)?;
        let means = normals(file, "means", count)?;
        let stds = normals(file, "stds", count)?;
        let strategy = Strategy::of(&file["image_resize_strategy"])?;
        let mut views = Vec::new();
        for (i, (height, width)) in sizes.into_iter().enumerate() {
            let mut view = View {
                size: strategy.size(height, width),
                filter: filter(&file["interpolations"][i])?,
                crop: (height, width),
                normal: (means[i], stds[i]),
            };
            view.read_tvf(file, i)?;
            view.check()?;
            views.push(view);
        }
        let letterbox = letterbox(file, strategy, &means)?;
        Ok(Self { letterbox, views, centre_crop: false })
    }

    /// Creates the processor of the file with another `image_resize_strategy`.
    ///
    /// # Errors
    /// As [`from_json`](FrameProcessor::from_json).
    pub fn with_strategy(file: &Value, strategy: &str) -> Result<Self> {
        let mut file = file.clone();
        if let Some(keys) = file.as_object_mut()
            && keys.get("image_resize_strategy") != Some(&json!(strategy))
        {
            keys.insert("image_resize_strategy".into(), json!(strategy));
            // These were derived from the strategy of the file.
            for key in ["tvf_resize_params", "tvf_crop_params", "tvf_do_letterbox", "tvf_letterbox_fill"] {
                keys.remove(key);
            }
        }
        Self::from_json(&file)
    }

    /// Creates the default processor of the towers of `config`, for releases without a processor file, with the
    /// `image_resize_strategy` of the config file `raw`.
    ///
    /// # Errors
    /// As [`from_json`](FrameProcessor::from_json).
    pub fn of_config(config: &Config, raw: &Value) -> Result<Self> {
        let strategy = Strategy::of(&raw["image_resize_strategy"])?;
        let mut views = Vec::new();
        for tower in &config.towers {
            let normal = match (tower.reg_tokens > 0, tower.pre_norm, tower.class_token) {
                (true, ..) => IMAGENET,
                (_, true, _) => CLIP,
                _ => HALF,
            };
            let side = tower.img_size;
            let view =
                View { size: strategy.size(side, side), filter: Filter::Bicubic, crop: (side, side), normal };
            view.check()?;
            views.push(view);
        }
        let means: Vec<_> = views.iter().map(|view| view.normal.0).collect();
        Ok(Self { letterbox: strategy.fill(&means), views, centre_crop: false })
    }

    /// Sets whether frames are center-cropped to nine tenths of their area, for models that were fine-tuned with random crops.
    pub fn with_centre_crop(self, on: bool) -> Self {
        Self { centre_crop: on, ..self }
    }

    /// Returns height and width of the image of each tower.
    pub fn sizes(&self) -> Vec<(usize, usize)> {
        self.views.iter().map(|view| view.crop).collect()
    }

    /// Preprocesses `frame` to `(3 · towers, height, width)`, float32 on the CPU.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for a frame without pixels, with too many, with an extreme aspect ratio, or whose number of
    /// bytes does not match its size.
    pub fn process(&self, frame: &Image) -> Result<Tensor> {
        check(frame)?;
        let cropped = match self.centre_crop {
            true => Some(centre_crop(frame, self.views[0].crop)),
            false => None,
        };
        let frame = cropped.as_ref().unwrap_or(frame);
        let boxed = self.letterbox.map(|colour| letterboxed(frame, colour)).transpose()?;
        let frame = boxed.as_ref().unwrap_or(frame);
        let (height, width) = self.views[0].crop;
        let mut planes = Vec::with_capacity(self.views.len() * 3 * height * width);
        for view in &self.views {
            view.planes(frame, &mut planes)?;
        }
        Ok(Tensor::from_vec(planes, (3 * self.views.len(), height, width), &Device::Cpu)?)
    }
}

impl View {
    /// Applies the `tvf_…` parameters of tower `i`.
    fn read_tvf(&mut self, file: &Value, i: usize) -> Result<()> {
        let resize = &file["tvf_resize_params"][i];
        if resize.is_object() {
            let key = "tvf_resize_params: size";
            self.size = match &resize["size"] {
                Value::Array(sides) => match &sides[..] {
                    [height, width] => Size::Exact(side(key, height)?, side(key, width)?),
                    [short] => Size::Shortest(side(key, short)?),
                    _ => return Err(wrong(key, &resize["size"], "one side or two")),
                },
                short => Size::Shortest(side(key, short)?),
            };
            if !resize["interpolation"].is_null() {
                self.filter = filter(&resize["interpolation"])?;
            }
            if !resize["max_size"].is_null() {
                return Err(Error::unsupported("tvf_resize_params: max_size is not implemented"));
            }
        }
        let crop = &file["tvf_crop_params"][i]["output_size"];
        if !crop.is_null() {
            self.crop = match crop {
                Value::Array(_) => height_and_width(crop)?,
                side_of_both => {
                    let side = side("tvf_crop_params: output_size", side_of_both)?;
                    (side, side)
                }
            };
        }
        let normal = &file["tvf_normalize_params"][i];
        if normal.is_object() {
            self.normal = (
                colours("tvf_normalize_params: mean", &normal["mean"])?,
                colours("tvf_normalize_params: std", &normal["std"])?,
            );
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let (height, width) = self.crop;
        let (tall, wide) = match self.size {
            Size::Exact(height, width) => (height, width),
            Size::Shortest(side) => (side, side),
        };
        check_sizes(&[("height", height), ("width", width)])?;
        if height > tall || width > wide {
            return Err(Error::new(
                ErrorKind::Format,
                format!("cannot crop {height} x {width} from {tall} x {wide}"),
            ));
        }
        match height.checked_mul(width).is_some_and(|pixels| pixels <= MAX_PIXELS) {
            true => Ok(()),
            false => {
                Err(Error::new(ErrorKind::Format, format!("images of {height} x {width} are too large")))
            }
        }
    }

    /// Appends the three channels of `frame` to `planes`.
    fn planes(&self, frame: &Image, planes: &mut Vec<f32>) -> Result<()> {
        let (height, width) = match self.size {
            Size::Exact(height, width) => (height, width),
            Size::Shortest(size) => {
                let (short, long) = (frame.height.min(frame.width), frame.height.max(frame.width));
                // The reference divides in float64 and truncates.
                let longer = ((size * long) as f64 / short as f64) as usize;
                if frame.width <= frame.height { (longer, size) } else { (size, longer) }
            }
        };
        // As in torchvision, half pixels are rounded to even.
        let offset = |whole: usize, part: usize| ((whole - part) as f64 / 2.0).round_ties_even() as usize;
        let (top, left) = (offset(height, self.crop.0), offset(width, self.crop.1));
        let part = Part { rows: top..top + self.crop.0, columns: left..left + self.crop.1 };
        let seen = resize_part(frame, height, width, &part, self.filter, Arithmetic::Pillow)?;
        for colour in 0..3 {
            let (mean, std) = (self.normal.0[colour] as f32, self.normal.1[colour] as f32);
            let level = |pixel: &[u8]| (f32::from(pixel[colour]) / 255.0 - mean) / std;
            planes.extend(seen.rgb.chunks_exact(3).map(level));
        }
        Ok(())
    }
}

/// Resize strategy: how frames are made square.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strategy {
    Naive,
    Crop,
    Letterbox,
}

impl Strategy {
    fn of(name: &Value) -> Result<Self> {
        match name.as_str() {
            Some("resize-naive") => Ok(Self::Naive),
            Some("resize-crop") => Ok(Self::Crop),
            Some("letterbox") => Ok(Self::Letterbox),
            // Default of the reference.
            None if name.is_null() => Ok(Self::Letterbox),
            _ => Err(Error::unsupported(format!("image_resize_strategy {name:.80} is not implemented"))
                .hint("known: resize-naive, resize-crop, letterbox")),
        }
    }

    fn size(self, height: usize, width: usize) -> Size {
        match self {
            Self::Naive => Size::Exact(height, width),
            Self::Crop | Self::Letterbox => Size::Shortest(height.max(width)),
        }
    }

    /// Returns the fill colour of letterboxing: the mean of the last tower, for all towers.
    fn fill(self, means: &[[f64; 3]]) -> Option<[u8; 3]> {
        let mean = means.last().filter(|_| self == Self::Letterbox)?;
        Some(mean.map(|mean| (mean * 255.0) as u8))
    }
}

fn letterbox(file: &Value, strategy: Strategy, means: &[[f64; 3]]) -> Result<Option<[u8; 3]>> {
    let fill = strategy.fill(means);
    match &file["tvf_do_letterbox"] {
        Value::Null => Ok(fill),
        Value::Bool(false) => Ok(None),
        Value::Bool(true) => match &file["tvf_letterbox_fill"] {
            Value::Null => Ok(fill.or(Strategy::Letterbox.fill(means))),
            fill => {
                let levels = colours("tvf_letterbox_fill", fill)?;
                match levels.iter().all(|level| (0.0..=255.0).contains(level)) {
                    true => Ok(Some(levels.map(|level| level as u8))),
                    false => Err(wrong("tvf_letterbox_fill", fill, "three bytes")),
                }
            }
        },
        other => Err(wrong("tvf_do_letterbox", other, "true or false")),
    }
}

/// Pads `frame` with `colour` on both sides to a square; if the difference is odd, the result is one pixel short.
fn letterboxed(frame: &Image, colour: [u8; 3]) -> Result<Image> {
    let side = frame.height.max(frame.width);
    let (left, top) = ((side - frame.width) / 2, (side - frame.height) / 2);
    let (width, height) = (frame.width + 2 * left, frame.height + 2 * top);
    if width.checked_mul(height).is_none_or(|pixels| pixels > MAX_PIXELS) {
        return Err(Error::input(format!(
            "cannot letterbox a frame of {} x {}: the aspect ratio is too large",
            frame.width, frame.height
        )));
    }
    let mut rgb = colour.repeat(width * height);
    for (row, bytes) in frame.rgb.chunks_exact(frame.width * 3).enumerate() {
        let start = ((top + row) * width + left) * 3;
        rgb[start..start + bytes.len()].copy_from_slice(bytes);
    }
    Ok(Image { width, height, rgb })
}

/// Center-crops `frame` and resizes the crop to `size` like TensorFlow's `crop_and_resize`, which the evaluation code of the
/// reference uses: bilinear, without antialiasing.
fn centre_crop(frame: &Image, (height, width): (usize, usize)) -> Image {
    let share = CROPPED_AREA.sqrt();
    let first = (1.0 - share) / 2.0;
    let places = |old: usize, new: usize| -> Vec<(usize, usize, f32)> {
        let last = (old - 1) as f32;
        let step = if new > 1 { share * last / (new - 1) as f32 } else { 0.0 };
        let start = if new > 1 { first * last } else { 0.5 * last };
        let place = |i: usize| {
            let at = (start + i as f32 * step).clamp(0.0, last);
            (at.floor() as usize, at.ceil() as usize, at - at.floor())
        };
        (0..new).map(place).collect()
    };
    let (rows, columns) = (places(frame.height, height), places(frame.width, width));
    let mut rgb = Vec::with_capacity(height * width * 3);
    let level = |row: usize, column: usize, colour: usize| {
        f32::from(frame.rgb[(row * frame.width + column) * 3 + colour]) / 255.0
    };
    for (above, below, down) in rows {
        for (left, right, across) in &columns {
            for colour in 0..3 {
                let mix = |row: usize| {
                    let (a, b) = (level(row, *left, colour), level(row, *right, colour));
                    a + (b - a) * across
                };
                let (a, b) = (mix(above), mix(below));
                rgb.push(((a + (b - a) * down).clamp(0.0, 1.0) * 255.5) as u8);
            }
        }
    }
    Image { width, height, rgb }
}
