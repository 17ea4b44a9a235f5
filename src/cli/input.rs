//! Texts from arguments, or one per line from a file or standard input; images from files and folders.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};

use fauna::{Error, Image, ImageOptions, Result};

use super::Context;

/// The error of a text without a word.
const BLANK: &str = "the text is empty";

/// An input text, or the error of reading it.
#[derive(Debug)]
pub struct Text {
    /// Its position, for messages: "line 3".
    pub place: String,
    /// The text, or the error.
    pub content: Result<String, String>,
}

impl Text {
    fn new(place: String, bytes: Vec<u8>) -> Self {
        let content = match String::from_utf8(bytes) {
            Err(e) => Err(format!("invalid UTF-8 at byte {}", e.utf8_error().valid_up_to())),
            Ok(text) if text.trim().is_empty() => Err(BLANK.to_string()),
            Ok(text) => Ok(text),
        };
        Self { place, content }
    }

    /// Whether it holds spaces at most.
    pub fn is_blank(&self) -> bool {
        self.content.as_ref().is_err_and(|error| error == BLANK)
    }
}

/// Returns the texts given as arguments, else the lines of `file`, else the lines of standard input (also for `-`).
///
/// # Errors
/// I/O errors; a line that is not a valid text is a [`Text`] that holds the error.
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
                context.say("reading texts from standard input, one per line; end with Ctrl-D");
            }
            ("standard input".into(), Box::new(std::io::stdin()))
        }
    };
    let mut reader = BufReader::new(reader);
    let start = reader.fill_buf().map_err(|e| Error::io(&place, "read", e))?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(|e| Error::io(&place, "read", e))?;
        return Ok(Box::new(lines_of_utf16(&bytes, &place)?.into_iter()));
    }
    if start.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    let lines = reader.split(b'\n').enumerate().map(move |(i, line)| {
        let mut line = line.map_err(|e| Error::io(&place, "read", e))?;
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Text::new(format!("{}: line {}", place.display(), i + 1), line))
    });
    Ok(Box::new(lines))
}

/// Returns the lines of UTF-16 text that starts with a byte order mark.
fn lines_of_utf16(bytes: &[u8], place: &Path) -> Result<Vec<Result<Text>>> {
    let little = bytes.starts_with(b"\xff\xfe");
    let unit = |pair: &[u8; 2]| if little { u16::from_le_bytes(*pair) } else { u16::from_be_bytes(*pair) };
    let units: Vec<u16> = bytes[2..].as_chunks::<2>().0.iter().map(unit).collect();
    let text = String::from_utf16(&units).map_err(|_| {
        Error::format(place, "invalid UTF-16 after the byte order mark").hint("convert the file to UTF-8")
    })?;
    let named = |(i, line): (usize, &str)| {
        Ok(Text::new(format!("{}: line {}", place.display(), i + 1), line.as_bytes().to_vec()))
    };
    Ok(text.lines().enumerate().map(named).collect())
}

/// Extensions of image files.
const PICTURES: [&str; 9] = ["bmp", "gif", "jfif", "jpeg", "jpg", "png", "tif", "tiff", "webp"];

/// Returns the image files in `folder`, in natural order: `frame_2` before `frame_10`.
///
/// # Errors
/// [`Io`](fauna::ErrorKind::Io) if the folder cannot be listed, [`Input`](fauna::ErrorKind::Input) if none is in it.
pub fn pictures_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let is_picture = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        ending.is_some_and(|ending| PICTURES.contains(&ending.as_str())) && !path.is_dir()
    };
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(|e| Error::io(folder, "list", e))?;
    paths.retain(is_picture);
    paths.sort_by(|a, b| fauna::order::by_name(a, b));
    match paths.is_empty() {
        false => Ok(paths),
        true => Err(Error::input("no image in this folder")
            .at(folder)
            .hint(format!("supported extensions: {}", PICTURES.join(", ")))),
    }
}

/// Decodes the image file at `path`, and prints a note if the decoded image differs from what an image viewer shows.
///
/// # Errors
/// A file that cannot be decoded, or [`Unsupported`](fauna::ErrorKind::Unsupported) in a build without `vision`.
#[cfg(feature = "vision")]
pub fn picture(path: &Path, options: &ImageOptions, context: &Context) -> Result<Image> {
    let seen = fauna::image::read_with_notes(path, options)?;
    for note in seen.notes {
        context.say(&format!("{}: {note}", path.display()));
    }
    Ok(seen.image)
}

/// Fails: this program was built without image support.
///
/// # Errors
/// [`Unsupported`](fauna::ErrorKind::Unsupported), always.
#[cfg(not(feature = "vision"))]
pub fn picture(path: &Path, _: &ImageOptions, _: &Context) -> Result<Image> {
    Err(Error::unsupported("this program was built without image support")
        .at(path)
        .hint("rebuild it with --features vision"))
}

/// Reads standard input to the end as one text.
pub fn whole_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    let place = Path::new("standard input");
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::io(place, "read", e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::input(format!("invalid UTF-8 at byte {}", e.utf8_error().valid_up_to())).at(place)
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}
