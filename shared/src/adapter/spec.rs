//! An adapter as users name it: `PATH[:SCALE]`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::{Error, Result};

/// The path or hub id of an adapter, and the scale of its update.
///
/// ```
/// use fauna_shared::adapter::AdapterSpec;
/// let spec: AdapterSpec = "owner/adapter:0.5".parse()?;
/// assert_eq!((spec.path.as_str(), spec.scale), ("owner/adapter", 0.5));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Path of a folder, or hub id.
    pub path: String,
    /// Factor of the update, by default 1: 0 for no update, negative for the opposite one.
    pub scale: f64,
}

impl FromStr for AdapterSpec {
    type Err = Error;

    /// Parses `PATH[:SCALE]`. An existing path is a path, whatever it ends with, and so is one whose last part after a
    /// colon is not a number (`C:\adapter`, `hf:owner/name`).
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if there is no path, or the scale is not finite.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let whole = Self { path: text.to_owned(), scale: 1.0 };
        let split = text.rsplit_once(':').and_then(|(path, end)| Some((path, end.parse::<f64>().ok()?)));
        match split {
            _ if text.is_empty() => Err(no_path(text)),
            _ if Path::new(text).exists() => Ok(whole),
            Some((path, _)) if cfg!(windows) && is_drive(path) => Ok(whole),
            Some((path, scale)) if scale.is_finite() && !path.trim().is_empty() => {
                Ok(Self { path: path.to_owned(), scale })
            }
            Some((path, _)) if path.trim().is_empty() => Err(no_path(text)),
            Some((_, scale)) => {
                Err(Error::input(format!("{text}: the scale {scale} of an adapter is not a finite number")))
            }
            None if text.ends_with(':') => {
                Err(Error::input(format!("{text}: no scale after the colon"))
                    .hint("write PATH or PATH:SCALE"))
            }
            None => Ok(whole),
        }
    }
}

fn no_path(text: &str) -> Error {
    Error::input(format!("{text:?}: no path of an adapter")).hint("write PATH or PATH:SCALE")
}

fn is_drive(path: &str) -> bool {
    path.len() == 1 && path.as_bytes()[0].is_ascii_alphabetic()
}

impl fmt::Display for AdapterSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scale {
            1.0 => f.write_str(&self.path),
            scale => write!(f, "{}:{scale}", self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_scales_are_told_apart() {
        for (text, path, scale) in [
            ("a", "a", 1.0),
            ("a:2", "a", 2.0),
            ("./a/b:-0.5", "./a/b", -0.5),
            ("a:1e-3", "a", 1e-3),
            ("a:0", "a", 0.0),
            (r"C:\models\a", r"C:\models\a", 1.0),
            (r"C:\models\a:0.25", r"C:\models\a", 0.25),
            ("hf:owner/name", "hf:owner/name", 1.0),
            ("hf:owner/name@main:3", "hf:owner/name@main", 3.0),
            ("a:b", "a:b", 1.0),
        ] {
            let spec: AdapterSpec = text.parse().unwrap();
            assert_eq!((spec.path.as_str(), spec.scale), (path, scale), "{text}");
            assert_eq!(spec.to_string().parse::<AdapterSpec>().unwrap(), spec);
        }
    }

    #[test]
    fn scales_that_are_not_finite_and_missing_paths_are_refused() {
        for text in ["a:nan", "a:inf", "a:-infinity", "a:1e999", "", "  ", ":1", "a:"] {
            assert_eq!(text.parse::<AdapterSpec>().unwrap_err().kind(), crate::ErrorKind::Input, "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn an_existing_path_with_a_colon_is_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run:2");
        std::fs::create_dir(&path).unwrap();
        let text = path.to_str().unwrap();
        assert_eq!(text.parse::<AdapterSpec>().unwrap(), AdapterSpec { path: text.into(), scale: 1.0 });
        let scaled: AdapterSpec = format!("{text}:0.5").parse().unwrap();
        assert_eq!(scaled, AdapterSpec { path: text.into(), scale: 0.5 });
    }
}
