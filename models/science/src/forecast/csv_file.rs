//! Tables from CSV.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use fauna_shared::{Error, Result};

use super::builder::{Builder, Cell};
use super::table::{Columns, Table};

/// The longest first line in which the separator is looked for, in bytes.
const HEADER: usize = 64 << 10;

/// Reads CSV row by row; nothing of it is kept but numbers and the names of series.
///
/// # Errors
/// As [`Table::read`].
pub(super) fn read(reader: impl Read, place: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let mut reader = BufReader::with_capacity(HEADER, reader);
    let start = reader.fill_buf().map_err(|e| Error::io(place, "read", e))?;
    let separator = separator_of(start);
    let mark = start.starts_with(b"\xef\xbb\xbf");
    if mark {
        reader.consume(3);
    }
    let mut rows =
        csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::Headers).from_reader(reader);
    let header: Vec<String> =
        rows.headers().map_err(|e| wrong(place, e))?.iter().map(str::to_string).collect();
    let mut builder = Builder::new(place, "line", &header, columns, with_target)?;
    let mut record = csv::StringRecord::new();
    while rows.read_record(&mut record).map_err(|e| wrong(place, e))? {
        let line = record.position().map_or(0, csv::Position::line);
        builder.row(line, |column| Cell::Text(record.get(column).unwrap_or_default()))?;
    }
    builder.finish()
}

/// The separator of the first line: a comma unless it has none and has semicolons or tabs.
fn separator_of(start: &[u8]) -> u8 {
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    *[b',', b';', b'\t'].iter().find(|separator| line.contains(separator)).unwrap_or(&b',')
}

fn wrong(place: &Path, error: csv::Error) -> Error {
    let line = error.position().map(csv::Position::line);
    let at = line.map_or(String::new(), |line| format!("line {line}: "));
    match error.into_kind() {
        csv::ErrorKind::Io(error) => Error::io(place, "read", error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Error::format(place, format!("{at}{len} cells, the first line has {expected_len}"))
        }
        csv::ErrorKind::Utf8 { .. } => Error::format(place, format!("{at}the text is not UTF-8")),
        other => Error::format(place, format!("{at}no CSV: {other:?}")),
    }
}
