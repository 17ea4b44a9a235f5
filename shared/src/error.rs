//! The error type of all crates: what was expected and found, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The category of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, a model or a name does not exist.
    NotFound,
    /// A file is damaged, inconsistent, or not of the expected format.
    Format,
    /// A checkpoint does not match its config: tensors are missing, unexpected, or of another shape.
    Mismatch,
    /// Valid, but not implemented (a config key, a tensor type, a method).
    Unsupported,
    /// Invalid input of the caller: empty, too long, of the wrong modality, out of range.
    Input,
    /// A network request failed.
    Network,
    /// The server requires a token, or the token has no access to the repository.
    Auth,
    /// A download is required in offline mode.
    Offline,
    /// An I/O error of the operating system.
    Io,
    /// Cancelled by the caller.
    Cancelled,
    /// A tensor operation failed, in general because of a bug in a model implementation.
    Compute,
}

/// An error with its place and advice.
///
/// Displayed as `place: message`, then indented lines of details and hints. Messages are lower case without a trailing
/// full stop.
///
/// ```
/// use fauna_shared::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::Format, "the header says 900 bytes, the file has 12")
///     .at("models/a/model.safetensors")
///     .hint("download it again");
/// assert_eq!(error.kind(), ErrorKind::Format);
/// assert_eq!(
///     error.to_string(),
///     "models/a/model.safetensors: the header says 900 bytes, the file has 12\n  download it again"
/// );
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    place: Option<PathBuf>,
    message: String,
    details: Vec<Detail>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A line below the message.
enum Detail {
    Text(String),
    /// Advice to set an option of the library to a value.
    Option {
        advice: String,
        option: &'static str,
        value: String,
    },
}

/// How a program spells an option of the library that an error advises to set: given the option
/// (`LoadOptions::family`) and the value, such as `--family NAME`; none for an option that it does not have.
pub type OptionStyle = fn(option: &str, value: &str) -> Option<String>;

static OPTION_STYLE: OnceLock<OptionStyle> = OnceLock::new();

/// Sets, once for the process, how errors spell the options that they advise to set: for programs, whose users know
/// them by other names. Until then, and for options that the style does not know, they are spelt as in the library.
/// Later calls change nothing.
pub fn set_option_style(style: OptionStyle) {
    let _ = OPTION_STYLE.set(style);
}

impl Error {
    /// Creates an error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            place: None,
            message: message.into(),
            details: Vec::new(),
            source: None,
        }))
    }

    /// Creates an error of kind [`Input`](ErrorKind::Input).
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Input, message)
    }

    /// Creates an error of kind [`Format`](ErrorKind::Format) for the file at `place`.
    pub fn format(place: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, message).at(place)
    }

    /// Creates an error of kind [`Unsupported`](ErrorKind::Unsupported).
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Creates the error for an I/O error of `action` (a verb such as `"read"`) on the file at `place`.
    pub fn io(place: impl AsRef<Path>, action: &str, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("cannot {action}: {source}")).at(place).caused_by(source)
    }

    /// Sets the file, folder or address of the error, unless it is set already.
    pub fn at(mut self, place: impl AsRef<Path>) -> Self {
        self.0.place.get_or_insert_with(|| place.as_ref().to_path_buf());
        self
    }

    /// Adds a line of detail or advice.
    pub fn hint(mut self, line: impl Into<String>) -> Self {
        self.0.details.push(Detail::Text(line.into()));
        self
    }

    /// Adds the advice to set `option`, a field or function of the library by its path, to `value`. Programs show it
    /// under their own name of the option: [`set_option_style`].
    ///
    /// ```
    /// use fauna_shared::Error;
    /// let error = Error::input("several weight files").set("name one", "LoadOptions::file", "NAME");
    /// assert_eq!(error.to_string(), "several weight files\n  name one: LoadOptions::file = NAME");
    /// ```
    pub fn set(mut self, advice: impl Into<String>, option: &'static str, value: impl Into<String>) -> Self {
        self.0.details.push(Detail::Option { advice: advice.into(), option, value: value.into() });
        self
    }

    /// Sets the source error.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Prefixes the message with context: `layer 3: …`.
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        self.0.message = format!("{prefix}: {}", self.0.message);
        self
    }

    /// The category of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file, folder or address of the error.
    pub fn place(&self) -> Option<&Path> {
        self.0.place.as_deref()
    }

    /// The message, without the place and the details.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{}: ", place.display())?;
        }
        f.write_str(&self.0.message)?;
        for detail in &self.0.details {
            match detail {
                Detail::Text(text) => text.lines().try_for_each(|line| write!(f, "\n  {line}"))?,
                Detail::Option { advice, option, value } => {
                    match OPTION_STYLE.get().and_then(|style| style(option, value)) {
                        Some(spelt) => write!(f, "\n  {advice}: {spelt}")?,
                        None if value.is_empty() => write!(f, "\n  {advice}: {option}")?,
                        None => write!(f, "\n  {advice}: {option} = {value}")?,
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

impl From<fauna_kernels::InvalidInput> for Error {
    fn from(source: fauna_kernels::InvalidInput) -> Self {
        Error::input(source.to_string())
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Self::new(ErrorKind::Compute, source.to_string()).caused_by(source)
    }
}

/// The first five of `items`, one per line, and the number of the remaining ones.
///
/// ```
/// use fauna_shared::error::first_five;
/// assert_eq!(first_five(["a", "b"]), "a\nb");
/// assert!(first_five(0..9).ends_with("4\nand 4 more"));
/// ```
pub fn first_five<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut items = items.into_iter();
    let mut lines: Vec<String> = items.by_ref().take(5).map(|i| i.to_string()).collect();
    let more = items.count();
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// At most three names of `known` that are similar to `wanted` by edit distance, most similar first.
///
/// ```
/// use fauna_shared::error::nearest;
/// assert_eq!(nearest("lama", ["llama", "bert", "gpt2"]), ["llama"]);
/// ```
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut scored: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (edit_distance(wanted, name), name))
        .filter(|(distance, name)| *distance * 2 <= wanted.chars().count().max(name.chars().count()))
        .collect();
    scored.sort();
    scored.dedup();
    scored.truncate(3);
    scored.into_iter().map(|(_, name)| name).collect()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_suggested_once() {
        assert_eq!(nearest("lama", ["llama", "llava", "llama"]), ["llama", "llava"]);
    }

    #[test]
    fn the_first_place_is_kept() {
        let error = Error::format("inner.bin", "bad").at("outer");
        assert_eq!(error.place(), Some(Path::new("inner.bin")));
    }

    #[test]
    fn dissimilar_names_are_not_suggested() {
        assert!(nearest("zebra", ["llama", "bert"]).is_empty());
    }
}
