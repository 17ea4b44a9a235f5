//! The keys of a processor's file, one by one.

use fauna_shared::image::resize::Filter;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::Value;

pub fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    Error::new(ErrorKind::Format, format!("{key} is {:.80}: {wanted} wanted", value.to_string()))
}

pub fn entries<'a>(key: &str, value: &'a Value) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong(key, value, "a list"))
}

pub fn side(key: &str, value: &Value) -> Result<usize> {
    let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
    side.filter(|side| (1..=1 << 16).contains(side)).ok_or_else(|| wrong(key, value, "pixels, from 1 up"))
}

/// The last two of channels, height and width.
pub fn height_and_width(size: &Value) -> Result<(usize, usize)> {
    match entries("a size of frames", size)? {
        [height, width] | [_, height, width] => Ok((side("a height", height)?, side("a width", width)?)),
        _ => Err(wrong("a size of frames", size, "channels, height and width")),
    }
}

pub fn colours(key: &str, value: &Value) -> Result<[f64; 3]> {
    let number = |value: &Value| value.as_f64().filter(|number| number.is_finite());
    let numbers = value.as_array().and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| wrong(key, value, "three numbers"))
}

/// Three numbers for each of `count` towers; 0.5 where the file says nothing.
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

/// An interpolation by its name or Pillow's number; bicubic if nothing is said.
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
