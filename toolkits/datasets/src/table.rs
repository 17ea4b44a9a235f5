//! Tables of rows with named columns: JSON lines and CSV, indexed by their places in the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use fauna_shared::{Error, Result, json, misnamed};
use serde_json::{Map, Value};

/// A row by the names of its columns.
pub(crate) type Row = Map<String, Value>;

/// Place of a piece of a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Number of its first line, from 1.
    pub line: u64,
}

/// The rows of a file.
#[derive(Debug)]
pub(crate) struct Table {
    pub path: PathBuf,
    pub places: Vec<Place>,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Json,
    #[cfg(feature = "csv")]
    Csv {
        header: Vec<String>,
        separator: u8,
    },
}

impl Table {
    /// Reads the rows of `path` and calls `each` with the place and the row.
    pub fn open(
        path: &Path,
        max_line: usize,
        each: &mut dyn FnMut(Place, Row) -> Result<()>,
    ) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if extension == "csv" {
            #[cfg(feature = "csv")]
            return Self::open_csv(path, max_line, each);
            #[cfg(not(feature = "csv"))]
            return Err(crate::dataset::without_feature("csv", "tables in CSV"));
        }
        let mut places = Vec::new();
        let mut lines = Lines::open(path, max_line)?;
        while let Some((place, bytes)) = lines.next_line()? {
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            each(place, json_row(bytes).map_err(|e| in_line(e, place.line, path))?)
                .map_err(|e| in_line(e, place.line, path))?;
            places.push(place);
        }
        Ok(Self { path: path.to_path_buf(), places, format: Format::Json })
    }

    /// Whether all values are texts.
    pub fn is_text(&self) -> bool {
        match self.format {
            Format::Json => false,
            #[cfg(feature = "csv")]
            Format::Csv { .. } => true,
        }
    }

    /// Reads the row `index`, which must be as it was when the table was opened.
    pub fn row(&self, index: usize) -> Result<(Place, Row)> {
        let place = self.places[index];
        let bytes = read_at(&self.path, place)?;
        let row = match &self.format {
            Format::Json => json_row(&bytes),
            #[cfg(feature = "csv")]
            Format::Csv { header, separator } => csv_row(&bytes, header, *separator),
        };
        Ok((place, row.map_err(|e| in_line(e, place.line, &self.path))?))
    }

    #[cfg(feature = "csv")]
    fn open_csv(
        path: &Path,
        max_line: usize,
        each: &mut dyn FnMut(Place, Row) -> Result<()>,
    ) -> Result<Self> {
        let mut reader = open_text(path)?;
        let start = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?;
        let mark = if start.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let separator = separator_of(&start[mark..]);
        reader.consume(mark);
        let mut rows =
            csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::Headers).from_reader(reader);
        let header: Vec<String> =
            rows.headers().map_err(|e| wrong_csv(path, e))?.iter().map(str::to_string).collect();
        if let Some(twice) = (1..header.len()).find(|i| header[..*i].contains(&header[*i])) {
            return Err(Error::input(format!("two columns are called `{}`", header[twice])).at(path));
        }
        let (mut places, mut record) = (Vec::new(), csv::StringRecord::new());
        loop {
            let before = rows.position().byte();
            if !rows.read_record(&mut record).map_err(|e| wrong_csv(path, e))? {
                break;
            }
            let line = record.position().map_or(0, csv::Position::line);
            let length = rows.position().byte() - before;
            if length > max_line as u64 {
                return Err(too_long(max_line, line, path));
            }
            let place = Place { offset: before + mark as u64, length, line };
            let row = header.iter().zip(&record).map(|(name, cell)| (name.clone(), cell.into())).collect();
            each(place, row).map_err(|e| in_line(e, line, path))?;
            places.push(place);
        }
        Ok(Self { path: path.to_path_buf(), places, format: Format::Csv { header, separator } })
    }
}

/// The error in its line and file, unless it names another file.
pub(crate) fn in_line(error: Error, line: u64, path: &Path) -> Error {
    let context = match error.place().is_some_and(|place| place != path) {
        true => format!("line {line} of {}", path.file_name().unwrap_or_default().display()),
        false => format!("line {line}"),
    };
    error.context(context).at(path)
}

fn json_row(bytes: &[u8]) -> Result<Row> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(Error::input(format!("expected a JSON object, found {}", kind_of(&other)))),
        Err(error) => {
            let wrong = Error::new(
                fauna_shared::ErrorKind::Format,
                format!("not JSON: {} at column {}", plain_message(&error), error.column()),
            );
            Err(match json::parse(bytes) {
                Ok(_) => wrong.hint("NaN and Infinity are not JSON, and no values to train on"),
                Err(_) => wrong,
            })
        }
    }
}

/// The message of a JSON error without its place, whose line is always 1.
fn plain_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_string())
}

/// The kind of a JSON value, for messages.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Opens a text file that is neither compressed nor UTF-16.
pub(crate) fn open_text(path: &Path) -> Result<BufReader<File>> {
    // A pipe can be read once, and opening it would wait for its writer.
    if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
        return Err(Error::input("not a regular file").at(path).hint("write the data to a file"));
    }
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let start = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?;
    misnamed::refuse_text(path, start)?;
    Ok(reader)
}

/// Reads the bytes at `place`.
pub(crate) fn read_at(path: &Path, place: Place) -> Result<Vec<u8>> {
    let unread = |e| Error::io(path, "read", e);
    let mut file = File::open(path).map_err(unread)?;
    file.seek(SeekFrom::Start(place.offset)).map_err(unread)?;
    let mut bytes = Vec::new();
    file.take(place.length).read_to_end(&mut bytes).map_err(unread)?;
    match bytes.len() as u64 == place.length {
        true => Ok(bytes),
        false => Err(Error::format(path, "the file has become shorter since it was opened")),
    }
}

/// A text that was read from `path` at `line`.
pub(crate) fn utf8(bytes: Vec<u8>, line: u64, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| {
        in_line(Error::input("the text is not UTF-8"), line, path).hint("convert the file to UTF-8")
    })
}

fn too_long(max_line: usize, line: u64, path: &Path) -> Error {
    in_line(Error::input(format!("more than {max_line} bytes")), line, path).set(
        "divide it, or raise the limit",
        "DatasetOptions::max_line",
        "N",
    )
}

/// The lines of a text file, each of limited length.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    max_line: usize,
    next: Place,
    bytes: Vec<u8>,
}

impl Lines {
    pub fn open(path: &Path, max_line: usize) -> Result<Self> {
        let reader = open_text(path)?;
        let next = Place { offset: 0, length: 0, line: 0 };
        Ok(Self { path: path.to_path_buf(), reader, max_line, next, bytes: Vec::new() })
    }

    /// The place of the next line, and its bytes with the line feed; `None` at the end.
    pub fn next_line(&mut self) -> Result<Option<(Place, &[u8])>> {
        self.next.offset += self.next.length;
        self.next.line += 1;
        self.bytes.clear();
        let mut limited = (&mut self.reader).take(self.max_line as u64 + 1);
        limited.read_until(b'\n', &mut self.bytes).map_err(|e| Error::io(&self.path, "read", e))?;
        if self.bytes.len() > self.max_line {
            return Err(too_long(self.max_line, self.next.line, &self.path));
        }
        self.next.length = self.bytes.len() as u64;
        Ok((!self.bytes.is_empty()).then_some((self.next, &self.bytes)))
    }
}

/// The separator of the first line: comma, semicolon or tab, the first of them that occurs.
#[cfg(any(feature = "csv", feature = "series"))]
pub(crate) fn separator_of(start: &[u8]) -> u8 {
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    *[b',', b';', b'\t'].iter().find(|separator| line.contains(separator)).unwrap_or(&b',')
}

#[cfg(feature = "csv")]
fn csv_row(bytes: &[u8], header: &[String], separator: u8) -> Result<Row> {
    let mut rows = csv::ReaderBuilder::new().delimiter(separator).has_headers(false).from_reader(bytes);
    let mut record = csv::StringRecord::new();
    let is_read = rows.read_record(&mut record).is_ok_and(|is_read| is_read);
    match is_read && record.len() == header.len() {
        true => Ok(header.iter().zip(&record).map(|(name, cell)| (name.clone(), cell.into())).collect()),
        false => Err(Error::input("the row has changed since the file was opened")),
    }
}

#[cfg(feature = "csv")]
fn wrong_csv(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    let at = line.map_or(String::new(), |line| format!("line {line}: "));
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io(path, "read", error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Error::format(path, format!("{at}{len} cells, the header has {expected_len}"))
        }
        csv::ErrorKind::Utf8 { .. } => Error::format(path, format!("{at}the text is not UTF-8")),
        other => Error::format(path, format!("{at}invalid CSV: {other:?}")),
    }
}
