//! Parsing of `preprocessor_config.json` of transformers and `open_clip_config.json`.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{
    Arithmetic, CLIP_MEAN, CLIP_STD, Crop, Filter, Levels, Middle, PanAndScan, Processor, Scaling, Size,
};
use crate::image::{ImageOptions, MAX_PIXELS};
use crate::{Error, ErrorKind, Result};

/// Keys that do not change the result for an RGB image.
const HARMLESS: [&str; 16] = [
    "_name_or_path",
    "_processor_class",
    "_valid_processor_keys",
    "auto_map",
    "backend",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "model_input_names",
    "processor_class",
    "return_tensors",
    "transformers_version",
    "use_fast",
];

/// A processor type, with its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Clip,
    Siglip,
    Idefics,
    Gemma3,
    Llava,
}

impl Kind {
    const ALL: [(&str, Self); 5] = [
        ("CLIPImageProcessor", Self::Clip),
        ("SiglipImageProcessor", Self::Siglip),
        ("IdeficsImageProcessor", Self::Idefics),
        ("Gemma3ImageProcessor", Self::Gemma3),
        ("LlavaImageProcessor", Self::Llava),
    ];

    /// Parses an `image_processor_type`; also returns its arithmetic.
    fn of(name: &str) -> Result<(Self, Arithmetic)> {
        let (stem, arithmetic) = match name.strip_suffix("Pil") {
            Some(stem) => (stem, Arithmetic::Pillow),
            None => (name.strip_suffix("Fast").unwrap_or(name), Arithmetic::Torchvision),
        };
        let stem = match stem {
            "CLIPFeatureExtractor" => "CLIPImageProcessor",
            other => other,
        };
        match Self::ALL.iter().find(|(known, _)| *known == stem) {
            Some((_, kind)) => Ok((*kind, arithmetic)),
            None => {
                let known = Self::ALL.map(|(known, _)| known).join(", ");
                Err(Error::unsupported(format!("image processor type {name} is not supported"))
                    .hint(format!("supported: {known}")))
            }
        }
    }

    fn crops(self) -> bool {
        matches!(self, Self::Clip | Self::Llava)
    }

    /// Whether a size given as a single number is a square, not the shortest edge.
    fn means_square(self) -> bool {
        matches!(self, Self::Idefics | Self::Gemma3)
    }

    fn size(self) -> Size {
        match self.crops() {
            true => Size::Shortest(224),
            false => Size::Exact(224, 224),
        }
    }

    fn filter(self) -> Filter {
        match self {
            Self::Gemma3 => Filter::Bilinear,
            _ => Filter::Bicubic,
        }
    }

    fn normal(self) -> ([f64; 3], [f64; 3]) {
        match self {
            Self::Siglip | Self::Gemma3 => ([0.5; 3], [0.5; 3]),
            _ => (CLIP_MEAN, CLIP_STD),
        }
    }
}

/// The keys of a file, and which of them were used.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    asked: RefCell<HashSet<&'static str>>,
}

impl<'a> Keys<'a> {
    fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, asked: RefCell::default() }
    }

    /// Returns the value of `key`; `None` for null.
    fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| wrong(key, value, "true or false")),
        }
    }

    fn number(&self, key: &'static str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
                number.ok_or_else(|| wrong(key, value, "a number above 0"))
            }
        }
    }

    fn side(&self, key: &'static str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |value| side(key, value))
    }

    /// Parses three numbers, or one for all channels.
    fn colours(&self, key: &'static str, default: [f64; 3]) -> Result<[f64; 3]> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        let colours = match value.as_array() {
            Some(values) => {
                values.iter().map(number).collect::<Option<Vec<_>>>().and_then(|v| v.try_into().ok())
            }
            None => number(value).map(|number| [number; 3]),
        };
        colours.ok_or_else(|| wrong(key, value, "three numbers"))
    }

    /// Parses a size in any format; `square`: whether a single number is a square.
    fn size(&self, key: &'static str, square: bool) -> Result<Option<Size>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let named = |name: &str| value.get(name).filter(|v| !v.is_null()).map(|v| side(key, v)).transpose();
        if let Some(map) = value.as_object() {
            let known = ["height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"];
            if let Some(name) = map.keys().find(|name| !known.contains(&name.as_str())) {
                return Err(
                    Error::unsupported(format!("{key}: {name}")).hint(format!("known: {}", known.join(", ")))
                );
            }
            let edges = (named("shortest_edge")?, named("longest_edge")?);
            let most = named("max_height")?.zip(named("max_width")?);
            return match (edges, most, named("height")?.zip(named("width")?)) {
                ((Some(short), Some(long)), ..) => Ok(Some(Size::Between(short, long))),
                ((Some(short), None), ..) => Ok(Some(Size::Shortest(short))),
                ((None, _), Some((height, width)), _) => Ok(Some(Size::Within(height, width))),
                ((None, _), None, Some((height, width))) => Ok(Some(Size::Exact(height, width))),
                _ => Err(wrong(key, value, "height and width, max_height and max_width, or shortest_edge")),
            };
        }
        match value.as_array().map(Vec::as_slice) {
            Some([height, width]) => Ok(Some(Size::Exact(side(key, height)?, side(key, width)?))),
            Some(_) => Err(wrong(key, value, "height and width")),
            None => {
                let size = side(key, value)?;
                Ok(Some(if square { Size::Exact(size, size) } else { Size::Shortest(size) }))
            }
        }
    }

    /// Parses a size that must be a height and a width.
    fn exact(&self, key: &'static str) -> Result<Option<(usize, usize)>> {
        match self.size(key, true)? {
            None => Ok(None),
            Some(Size::Exact(height, width)) => Ok(Some((height, width))),
            Some(_) => Err(wrong(key, &self.map[key], "height and width")),
        }
    }

    /// Rejects unused keys, except for those that are null, false or harmless.
    fn finish(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let strange = self.map.iter().filter(|(key, value)| {
            let silent = value.is_null() || **value == Value::Bool(false);
            !silent && !asked.contains(key.as_str()) && !HARMLESS.contains(&key.as_str())
        });
        let strange: Vec<String> = strange.map(|(key, value)| format!("{key} = {value}")).collect();
        match strange.is_empty() {
            true => Ok(()),
            false => Err(Error::unsupported(format!("{} is not implemented", strange.join(", ")))
                .hint("it may change the input of the model")),
        }
    }
}

fn side(key: &str, value: &Value) -> Result<usize> {
    let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
    side.filter(|side| (1..=MAX_PIXELS).contains(side)).ok_or_else(|| wrong(key, value, "at least 1 pixel"))
}

fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    Error::new(ErrorKind::Format, format!("{key} is {value}, expected {wanted}"))
}

/// [`Processor::from_json`].
pub(super) fn read(file: &Value) -> Result<Processor> {
    let file = match &file["image_processor"] {
        Value::Null => file,
        nested => nested,
    };
    let Some(map) = file.as_object() else {
        return Err(Error::new(ErrorKind::Format, "expected a JSON object"));
    };
    match map.contains_key("preprocess_cfg") || map.contains_key("model_cfg") {
        true => open_clip(file),
        false => transformers(map),
    }
}

fn transformers(map: &Map<String, Value>) -> Result<Processor> {
    let keys = Keys::new(map);
    let name = keys.get("image_processor_type").or_else(|| keys.get("feature_extractor_type"));
    let name = name.and_then(Value::as_str).ok_or_else(|| {
        let known = Kind::ALL.map(|(known, _)| known).join(", ");
        Error::new(ErrorKind::Format, "no image_processor_type").hint(format!("known: {known}"))
    })?;
    let (kind, arithmetic) = Kind::of(name)?;
    for (key, only) in [("data_format", "channels_first"), ("input_data_format", "channels_last")] {
        match keys.get(key) {
            Some(value) if value != only && key == "data_format" => {
                return Err(Error::unsupported(format!("{key} {value}")).hint(format!("known: {only}")));
            }
            _ => {}
        }
    }
    if keys.side("image_num_channels", 3)? != 3 || keys.side("num_channels", 3)? != 3 {
        return Err(Error::unsupported("expected 3 channels (num_channels)"));
    }
    let normal = kind.normal();
    let mean = keys.colours("image_mean", normal.0)?;
    let std = keys.colours("image_std", normal.1)?;
    if std.contains(&0.0) {
        return Err(Error::new(ErrorKind::Format, "image_std must not be zero"));
    }

    let square = keys.flag("default_to_square", kind.means_square())?;
    let mut size = keys.size("size", square)?.unwrap_or(kind.size());
    if kind == Kind::Clip && keys.flag("use_square_size", false)? {
        size = Size::Exact(224, 224);
    }
    if kind == Kind::Idefics
        && let Some(value) = keys.get("image_size")
    {
        let side = side("image_size", value)?;
        size = Size::Exact(side, side);
    }
    let filter = match keys.get("resample") {
        None => kind.filter(),
        Some(value) => {
            Filter::of_pillow(value.as_u64().ok_or_else(|| wrong("resample", value, "a number"))?)?
        }
    };
    let filter = match (filter, arithmetic) {
        (Filter::Lanczos, Arithmetic::Torchvision) => Filter::Bicubic,
        (Filter::Box | Filter::Hamming, Arithmetic::Torchvision) => {
            return Err(Error::unsupported(format!("resample {filter:?} is not supported with torchvision")));
        }
        (filter, _) => filter,
    };
    let size = keys.flag("do_resize", true)?.then_some((size, filter));

    let (height, width) = keys.exact("crop_size")?.unwrap_or((224, 224));
    let middle = match arithmetic {
        Arithmetic::Pillow => Middle::ZerosFirst,
        Arithmetic::Torchvision => Middle::Down,
    };
    // The processor of Gemma 3 ignores do_center_crop.
    let crops = keys.flag("do_center_crop", kind.crops())? && kind != Kind::Gemma3;
    let crop = crops.then_some(Crop { height, width, middle });

    let factor = keys.number("rescale_factor", 1.0 / 255.0)?;
    let factor = keys.flag("do_rescale", true)?.then_some(factor);
    let normal = keys.flag("do_normalize", true)?.then_some((mean, std));
    let scaling = match arithmetic {
        Arithmetic::Pillow => Scaling::Apart,
        Arithmetic::Torchvision => Scaling::Fused,
    };

    let pads = keys.flag("do_pad", false)?;
    let pad = keys.exact("pad_size")?.filter(|_| pads && kind != Kind::Llava && kind != Kind::Gemma3);
    let scan = match kind {
        Kind::Gemma3 => {
            let own = PanAndScan::default();
            let scan = PanAndScan {
                smallest: keys.side("pan_and_scan_min_crop_size", own.smallest)?,
                most: keys.side("pan_and_scan_max_num_crops", own.most)?,
                ratio: keys.number("pan_and_scan_min_ratio_to_activate", own.ratio)?,
            };
            keys.flag("do_pan_and_scan", false)?.then_some(scan)
        }
        _ => None,
    };
    keys.finish()?;
    let levels = Levels::new(scaling, factor, normal);
    let image_options = ImageOptions::transformers();
    let processor = Processor { arithmetic, image_options, square: None, size, crop, levels, pad, scan };
    Ok(match pads && kind == Kind::Llava {
        true => processor.squared(mean),
        false => processor,
    })
}

/// Parses `open_clip_config.json`, where the default image size is that of the model.
fn open_clip(file: &Value) -> Result<Processor> {
    let none = Map::new();
    let keys = Keys::new(file["preprocess_cfg"].as_object().unwrap_or(&none));
    let vision = Keys::new(file["model_cfg"]["vision_cfg"].as_object().unwrap_or(&none));
    let size = match keys.exact("size")? {
        Some(size) => size,
        None => vision.exact("image_size")?.unwrap_or((224, 224)),
    };
    let (mean, std) = (keys.colours("mean", CLIP_MEAN)?, keys.colours("std", CLIP_STD)?);
    if std.contains(&0.0) {
        return Err(Error::new(ErrorKind::Format, "std must not be zero"));
    }
    let word = |key: &'static str, default: &'static str, known: &[&str]| -> Result<String> {
        let value = keys.get(key).and_then(Value::as_str).unwrap_or(default);
        match known.contains(&value) {
            true => Ok(value.to_string()),
            false => Err(Error::unsupported(format!("preprocess_cfg: {key} {value}"))
                .hint(format!("known: {}", known.join(", ")))),
        }
    };
    word("mode", "RGB", &["RGB"])?;
    let filter = match word("interpolation", "bicubic", &["bicubic", "bilinear"])?.as_str() {
        "bilinear" => Filter::Bilinear,
        _ => Filter::Bicubic,
    };
    let squash = word("resize_mode", "shortest", &["shortest", "squash"])? == "squash" || size.0 != size.1;
    // The background colour of `resize_mode: longest`, which is not supported.
    keys.get("fill_color");
    keys.finish()?;
    let resized = match squash {
        true => Size::Exact(size.0, size.1),
        false => Size::Shortest(size.0),
    };
    Ok(Processor {
        size: Some((resized, filter)),
        crop: Some(Crop { height: size.0, width: size.1, middle: Middle::Even }),
        levels: Levels::new(Scaling::ToTensor, Some(1.0 / 255.0), Some((mean, std))),
        ..Processor::open_clip(size.0)
    })
}
