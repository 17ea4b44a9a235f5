//! Parsing JSON as Python's `json` module does.
//!
//! Python writes non-finite numbers as the literals `Infinity`, `-Infinity` and `NaN`, which are not JSON. They are
//! parsed as strings, so that only callers that expect a number fail. [`is_unbounded`] accepts them as "no limit".

use std::borrow::Cow;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, ErrorKind, Result, misnamed};

/// Positive infinity.
const INFINITY: &str = "Infinity";
/// Python's literals of non-finite numbers.
const NON_FINITE: [&str; 3] = ["-Infinity", INFINITY, "NaN"];

/// Reads the JSON file at `path`.
///
/// # Errors
/// As [`parse`]; [`ErrorKind::NotFound`] or [`ErrorKind::Io`] if the file cannot be read.
pub fn read(path: impl AsRef<Path>) -> Result<Value> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    misnamed::refuse_text(path, &bytes)?;
    parse(&bytes).map_err(|e| e.at(path))
}

/// Parses JSON. The order of keys is kept, the last of duplicate keys is used, the nesting depth is limited to 128, a
/// byte order mark is skipped, and non-finite numbers (`NaN`, `1e999`) become strings.
///
/// ```
/// use fauna_shared::json::parse;
/// let config = parse(br#"{"limits": [0.0, Infinity], "scale": 2, "scale": 3}"#)?;
/// assert_eq!(config, serde_json::json!({"limits": [0.0, "Infinity"], "scale": 3}));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Format`] with line and column of a syntax error.
pub fn parse(text: &[u8]) -> Result<Value> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let syntax_error = |error: serde_json::Error| Error::new(ErrorKind::Format, format!("not JSON: {error}"));
    serde_json::from_slice(text).or_else(|error| match strict(text) {
        Cow::Borrowed(_) => Err(syntax_error(error)),
        Cow::Owned(strict) => serde_json::from_slice(&strict).map_err(syntax_error),
    })
}

/// Deserializes `value`.
///
/// # Errors
/// [`ErrorKind::Format`] with the path of the key.
///
/// ```
/// #[derive(serde::Deserialize, Debug)]
/// struct Rope { theta: f64 }
/// #[derive(serde::Deserialize, Debug)]
/// struct Config { rope: Rope }
/// let config = fauna_shared::json::parse(br#"{"rope": {"theta": NaN}}"#)?;
/// let error = fauna_shared::json::typed::<Config>(config).unwrap_err();
/// assert!(error.message().starts_with("rope.theta: invalid type: string \"NaN\""));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| Error::new(ErrorKind::Format, error.to_string()))
}

/// Deserializes `value`, which is the value of `key` in an object.
///
/// # Errors
/// [`ErrorKind::Format`] with the path of the key, including `key`.
///
/// ```
/// #[derive(serde::Deserialize, Debug)]
/// struct Tower { layers: usize }
/// let error = fauna_shared::json::part::<Tower>("vision", serde_json::json!({"layers": "two"})).unwrap_err();
/// assert!(error.message().starts_with("vision.layers: invalid type: string \"two\""));
/// ```
pub fn part<T: DeserializeOwned>(key: &str, value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = match error.path().to_string().as_str() {
            "." => String::new(),
            path => format!(".{path}"),
        };
        Error::new(ErrorKind::Format, format!("{key}{inner}: {}", error.inner()))
    })
}

/// Whether `value` means "no limit": null, infinity, or a huge number (transformers writes 1e30).
pub fn is_unbounded(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(word) => word == INFINITY,
        value => value.as_f64().is_some_and(|number| number >= (1u64 << 32) as f64),
    }
}

/// Whether `value` is a non-finite number.
pub fn is_not_finite(value: &Value) -> bool {
    value.as_str().is_some_and(|word| NON_FINITE.contains(&word))
}

/// Converts `text` to strict JSON by quoting non-finite numbers.
pub(crate) fn strict(text: &[u8]) -> Cow<'_, [u8]> {
    let mut out: Vec<u8> = Vec::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(&byte) = text.get(at) {
        if byte == b'"' {
            at += quoted(&text[at..]);
            continue;
        }
        let length =
            text[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-._".contains(b)).count();
        let word = std::str::from_utf8(&text[at..at + length]).unwrap_or_default();
        if let Some(spelled) = not_finite(word) {
            out.extend_from_slice(&text[copied..at]);
            out.extend([b"\"", spelled.as_bytes(), b"\""].concat());
            copied = at + length;
        }
        at += length.max(1);
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[copied..]);
    Cow::Owned(out)
}

/// Length of the string literal at the beginning of `text`, quotes included; the length of `text` if it is
/// unterminated.
fn quoted(text: &[u8]) -> usize {
    let mut at = 1;
    loop {
        match text.get(at) {
            None => return text.len(),
            Some(b'"') => return at + 1,
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
        }
    }
}

/// Python's literal of `word` if it is a non-finite number.
fn not_finite(word: &str) -> Option<&'static str> {
    if let Some(known) = NON_FINITE.iter().find(|known| **known == word) {
        return Some(known);
    }
    let is_number = word.ends_with(|c: char| c.is_ascii_digit())
        && word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
    match word.parse::<f64>() {
        Ok(number) if is_number && number.is_infinite() => {
            Some(if number > 0.0 { INFINITY } else { NON_FINITE[0] })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn non_finite_numbers_are_parsed_in_all_positions() {
        let text =
            br#"{"a": NaN,"b":[-Infinity , Infinity], "c": {"d":Infinity}, "e": 1e999, "f": -1e999, "g": 1}"#;
        let value = json!({"a": "NaN", "b": ["-Infinity", "Infinity"], "c": {"d": "Infinity"}, "e": "Infinity",
            "f": "-Infinity", "g": 1});
        assert_eq!(parse(text).unwrap(), value);
        assert_eq!(parse(b"NaN").unwrap(), json!("NaN"));
        let huge = format!("[{}]", "9".repeat(400));
        assert_eq!(parse(huge.as_bytes()).unwrap(), json!(["Infinity"]));
    }

    #[test]
    fn strings_are_unchanged() {
        let text = br#"{"NaN": "say \"NaN, Infinity\" \\", "x": NaN, "y": "1e999"}"#;
        let value = json!({"NaN": "say \"NaN, Infinity\" \\", "x": "NaN", "y": "1e999"});
        assert_eq!(parse(text).unwrap(), value);
    }

    #[test]
    fn invalid_json_is_rejected_as_in_python() {
        for text in
            ["", "nan", "inf", "-NaN", "+Infinity", "Infinityx", "[NaN", "{'a': NaN}", "[1,]", "01", "\"NaN"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let error = parse(b"{\n\"a\": NaN,\n\"b\": }").unwrap_err();
        assert!(error.message().contains("line 3"), "{error}");
    }

    #[test]
    fn key_order_precision_and_the_last_duplicate_are_kept() {
        let value = parse(br#"{"z": 1, "a": 0.1, "m": 18446744073709551615, "z": NaN}"#).unwrap();
        assert_eq!(value.to_string(), r#"{"z":"NaN","a":0.1,"m":18446744073709551615}"#);
    }

    #[test]
    fn depth_is_limited_and_a_byte_order_mark_is_skipped() {
        let deep = format!("{}NaN{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(deep.as_bytes()).unwrap_err().message().contains("recursion limit"));
        assert_eq!(parse(b"\xef\xbb\xbf{\"a\": NaN}").unwrap(), json!({"a": "NaN"}));
    }

    #[test]
    fn unbounded_values_are_recognized() {
        for text in ["null", "Infinity", "1000000000000000019884624838656", "1e30"] {
            assert!(is_unbounded(&parse(text.as_bytes()).unwrap()), "{text}");
        }
        for text in ["512", "NaN", "-Infinity", "\"512\""] {
            assert!(!is_unbounded(&parse(text.as_bytes()).unwrap()), "{text}");
        }
    }
}
