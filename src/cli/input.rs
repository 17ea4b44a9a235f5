//! Texts from arguments, a file or standard input, one a line.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};

use fauna::{Error, Result};

use super::Context;

/// One text, or why it is none.
#[derive(Debug)]
pub struct Text {
    /// Where it stands, for messages: "line 3".
    pub place: String,
    /// The text, or what is wrong with it.
    pub content: Result<String, String>,
}

impl Text {
    fn new(place: String, bytes: Vec<u8>) -> Self {
        let content = match String::from_utf8(bytes) {
            Err(e) => Err(format!("not UTF-8 from byte {} on", e.utf8_error().valid_up_to())),
            Ok(text) if text.trim().is_empty() => Err("an empty text".to_string()),
            Ok(text) => Ok(text),
        };
        Self { place, content }
    }
}

/// The texts given as arguments; if there are none, the lines of `file`; else of standard input (also `-`).
///
/// # Errors
/// For each text that cannot be read; what was read and is no text is a [`Text`] that says so.
pub fn texts(
    arguments: Vec<String>,
    file: Option<&Path>,
    context: &Context,
) -> Result<Box<dyn Iterator<Item = Result<Text>>>> {
    if !arguments.is_empty() {
        let number = |(i, text): (usize, String)| Ok(Text::new(format!("text {}", i + 1), text.into_bytes()));
        return Ok(Box::new(arguments.into_iter().enumerate().map(number)));
    }
    let (place, reader): (PathBuf, Box<dyn Read>) = match file.filter(|file| *file != Path::new("-")) {
        Some(path) => (path.into(), Box::new(File::open(path).map_err(|e| Error::io(path, "open", e))?)),
        None => {
            if std::io::stdin().is_terminal() {
                context.say("one text a line; an end of file (Ctrl-D) ends them");
            }
            ("standard input".into(), Box::new(std::io::stdin()))
        }
    };
    let lines = BufReader::new(reader).split(b'\n').enumerate().map(move |(i, line)| {
        let mut line = line.map_err(|e| Error::io(&place, "read", e))?;
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Text::new(format!("{}: line {}", place.display(), i + 1), line))
    });
    Ok(Box::new(lines))
}

/// All of standard input as one text.
pub fn whole_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    let place = Path::new("standard input");
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::io(place, "read", e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::input(format!("not UTF-8 from byte {} on", e.utf8_error().valid_up_to())).at(place)
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}
