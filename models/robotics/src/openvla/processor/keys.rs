//! Parsing of the keys of `preprocessor_config.json`.

use fauna_shared::image::resize::Filter;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::Value;

pub fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    Error::new(ErrorKind::Format, format!("{key} is {:.80}, expected {wanted}", value.to_string()))
}

/// All keys that the reference processor reads or writes.
const KNOWN: [&str; 14] = [
    "auto_map",
    "image_processor_type",
    "image_resize_strategy",
    "input_sizes",
    "interpolations",
    "means",
    "processor_class",
    "stds",
    "tvf_crop_params",
    "tvf_do_letterbox",
    "tvf_letterbox_fill",
    "tvf_normalize_params",
    "tvf_resize_params",
    "use_fused_vision_backbone",
];
/// Keys of the entries of its parameter lists. Pillow antialiases independent of `antialias`.
const OF_LISTS: [(&str, &[&str]); 3] = [
    ("tvf_crop_params", &["output_size"]),
    ("tvf_normalize_params", &["inplace", "mean", "std"]),
    ("tvf_resize_params", &["antialias", "interpolation", "max_size", "size"]),
];

/// Rejects unknown keys that are not null, and parameter lists whose length is not `count`, the number of towers.
pub fn check(file: &Value, count: usize) -> Result<()> {
    let strange = |keys: &Value, known: &[&str]| -> Option<String> {
        let mut said = keys.as_object()?.iter().filter(|(_, value)| !value.is_null());
        said.find(|(key, _)| !known.contains(&key.as_str()))
            .map(|(key, value)| format!("{key} = {value:.80}"))
    };
    let unknown = |key: String| {
        Error::unsupported(format!("{key:.120} is not implemented")).hint("it may change the preprocessing")
    };
    if let Some(key) = strange(file, &KNOWN) {
        return Err(unknown(key));
    }
    for (list, known) in OF_LISTS {
        for entry in file[list].as_array().into_iter().flatten() {
            if let Some(key) = strange(entry, known) {
                return Err(unknown(format!("{list}: {key}")));
            }
        }
    }
    for key in OF_LISTS.map(|(list, _)| list).into_iter().chain(["interpolations"]) {
        if !file[key].is_null() && entries(key, &file[key])?.len() != count {
            return Err(wrong(key, &file[key], &format!("one entry for each of {count} towers")));
        }
    }
    Ok(())
}

pub fn entries<'a>(key: &str, value: &'a Value) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, value, "a list"))
}

pub fn side(key: &str, value: &Value) -> Result<usize> {
    let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
    side.filter(|side| (1..=1 << 16).contains(side)).ok_or_else(|| wrong(key, value, "a size in pixels"))
}

/// Returns height and width of `[channels, height, width]`.
pub fn height_and_width(size: &Value) -> Result<(usize, usize)> {
    match entries("an image size", size)? {
        [height, width] | [_, height, width] => Ok((side("a height", height)?, side("a width", width)?)),
        _ => Err(wrong("an image size", size, "channels, height and width")),
    }
}

pub fn colours(key: &str, value: &Value) -> Result<[f64; 3]> {
    let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
    let numbers = value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| wrong(key, value, "three numbers"))
}

/// Returns three numbers for each of `count` towers; 0.5 if the key is missing.
pub fn normals(file: &Value, key: &str, count: usize) -> Result<Vec<[f64; 3]>> {
    if file[key].is_null() {
        return Ok(vec![[0.5; 3]; count]);
    }
    let found = entries(key, &file[key])?;
    match found.len() == count {
        true => found.iter().map(|value| colours(key, value)).collect(),
        false => Err(wrong(key, &file[key], &format!("{count} times three numbers"))),
    }
}

/// Returns the interpolation of a name or Pillow's number; bicubic if it is null.
pub fn filter(value: &Value) -> Result<Filter> {
    match (value, value.as_str(), value.as_u64()) {
        (Value::Null, ..) | (_, Some("bicubic"), _) => Ok(Filter::Bicubic),
        (_, Some("bilinear"), _) => Ok(Filter::Bilinear),
        (_, Some("nearest"), _) => Ok(Filter::Nearest),
        (_, Some("lanczos"), _) => Ok(Filter::Lanczos),
        (_, _, Some(number)) => Filter::of_pillow(number),
        _ => Err(Error::unsupported(format!("interpolation {:.80}", value.to_string()))
            .hint("known: bicubic, bilinear, nearest, lanczos")),
    }
}
