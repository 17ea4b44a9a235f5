//! Fill-in-the-middle options: a prefix and a suffix, or a file and a cursor position.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fauna::{Error, Prompt, Result};

/// The text before and after the part to generate.
#[derive(Debug, clap::Args)]
pub struct Gap {
    /// Text before the gap.
    #[arg(
        help_heading = "Fill-in-the-middle (code models)",
        long,
        value_name = "TEXT",
        conflicts_with = "prompts"
    )]
    prefix: Option<String>,
    /// Text after the gap.
    #[arg(
        help_heading = "Fill-in-the-middle (code models)",
        long,
        value_name = "TEXT",
        conflicts_with = "prompts"
    )]
    suffix: Option<String>,
    /// Source file with a gap at --at.
    #[arg(help_heading = "Fill-in-the-middle (code models)", long, value_name = "FILE", requires = "at", conflicts_with_all = ["prefix", "suffix", "prompts"])]
    file: Option<PathBuf>,
    /// Position of the gap in --file: line and column, counted from 1. Without a column, the end of the line.
    #[arg(
        help_heading = "Fill-in-the-middle (code models)",
        long,
        value_name = "LINE:COL",
        requires = "file"
    )]
    at: Option<Cursor>,
    /// Use only N lines of --file before and N lines after the gap (default: the whole file).
    #[arg(help_heading = "Fill-in-the-middle (code models)", long, value_name = "N", requires = "file")]
    lines: Option<NonZeroUsize>,
}

/// A cursor position in a text: line and column, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    line: NonZeroUsize,
    /// Column in characters; `None` for the end of the line.
    column: Option<NonZeroUsize>,
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| {
            text.trim().parse().map_err(|_| "expected LINE or LINE:COL, counted from 1".to_string())
        };
        Ok(match text.split_once(':') {
            Some((line, column)) => Self { line: number(line)?, column: Some(number(column)?) },
            None => Self { line: number(text)?, column: None },
        })
    }
}

impl Gap {
    /// Returns the fill-in-the-middle prompt, or `None` if none of the options is given.
    ///
    /// # Errors
    /// A file that cannot be read, or a position outside of it.
    pub fn prompt(&self) -> Result<Option<Prompt>> {
        if let (Some(file), Some(at)) = (&self.file, self.at) {
            let (prefix, suffix) = split(file, &read(file)?, at, self.lines)?;
            return Ok(Some(Prompt::Infill { prefix, suffix }));
        }
        if self.prefix.is_none() && self.suffix.is_none() {
            return Ok(None);
        }
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        Ok(Some(Prompt::Infill { prefix: part(&self.prefix), suffix: part(&self.suffix) }))
    }
}

fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, "read", e))?;
    String::from_utf8(bytes)
        .map_err(|e| Error::input(format!("invalid UTF-8 at byte {}", e.utf8_error().valid_up_to())).at(file))
}

/// Splits `text` at `at`; with `lines`, at most that many whole lines are kept before and after the line of the gap.
fn split(file: &Path, text: &str, at: Cursor, lines: Option<NonZeroUsize>) -> Result<(String, String)> {
    let all: Vec<&str> = text.split_inclusive('\n').collect();
    // The text after the last newline is a line, which may be empty.
    let count = all.len() + usize::from(text.is_empty() || text.ends_with('\n'));
    let index = at.line.get() - 1;
    if index >= count {
        return Err(
            Error::input(format!("the file has {count} lines, but --at is line {}", at.line)).at(file)
        );
    }
    let line = all.get(index).copied().unwrap_or("");
    let content = line.trim_end_matches(['\n', '\r']);
    let byte = match at.column {
        None => content.len(),
        Some(column) => {
            let places = content.char_indices().map(|(byte, _)| byte).chain([content.len()]);
            places.clone().nth(column.get() - 1).ok_or_else(|| {
                let line = at.line;
                Error::input(format!(
                    "line {line} has {} columns, but --at is column {column}",
                    places.count()
                ))
                .at(file)
            })?
        }
    };
    let most = lines.map_or(usize::MAX, NonZeroUsize::get);
    let before = &all[index.saturating_sub(most)..index];
    let after = all.get(index + 1..).unwrap_or(&[]);
    let after = &after[..after.len().min(most)];
    Ok((before.concat() + &line[..byte], line[byte..].to_string() + &after.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str, at: &str, lines: Option<usize>) -> Result<(String, String)> {
        split(Path::new("a.rs"), text, at.parse().unwrap(), lines.and_then(NonZeroUsize::new))
    }

    #[test]
    fn positions_count_lines_and_characters_from_1() {
        let text = "fn é() {\n    \n}\n";
        let own = |(a, b): (&str, &str)| (a.to_string(), b.to_string());
        assert_eq!(parts(text, "1:5", None).unwrap(), own(("fn é", "() {\n    \n}\n")));
        assert_eq!(parts(text, "2", None).unwrap(), own(("fn é() {\n    ", "\n}\n")));
        assert_eq!(parts(text, "2:1", None).unwrap(), own(("fn é() {\n", "    \n}\n")));
        assert_eq!(parts(text, "4:1", None).unwrap(), own((text, "")));
        assert_eq!(parts("a\r\nb", "1", None).unwrap(), own(("a", "\r\nb")));
        assert_eq!(parts("", "1:1", None).unwrap(), own(("", "")));
        assert_eq!(parts("1\n2\n3\n4\n5\n", "3", Some(1)).unwrap(), own(("2\n3", "\n4\n")));
    }

    #[test]
    fn a_position_outside_the_file_is_an_error_that_names_it() {
        let error = parts("one\ntwo\n", "9:1", None).unwrap_err().to_string();
        assert!(error.contains("a.rs") && error.contains("3 lines") && error.contains("line 9"), "{error}");
        let error = parts("one\ntwo\n", "2:5", None).unwrap_err().to_string();
        assert!(error.contains("line 2 has 4 columns") && error.contains("column 5"), "{error}");
        for wrong in ["0:1", "1:0", "x", "1:2:3", ""] {
            assert!(Cursor::from_str(wrong).is_err(), "{wrong}");
        }
    }
}
