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
/// UTF-16 is known by its byte order mark. Bytes that are no UTF-8 are read as Latin-1, with a note.
///
/// # Errors
/// As [`Table::read`].
pub(super) fn read(reader: impl Read, place: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let mut reader = BufReader::with_capacity(HEADER, reader);
    let start = reader.fill_buf().map_err(|e| Error::io(place, "read", e))?;
    let little = start.starts_with(b"\xff\xfe");
    if little || start.starts_with(b"\xfe\xff") {
        let decoded = Utf16 { reader, little, ready: Vec::new(), at: 0 };
        return read_utf8(BufReader::with_capacity(HEADER, decoded), place, columns, with_target);
    }
    read_utf8(reader, place, columns, with_target)
}

fn read_utf8(mut reader: impl BufRead, place: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let start = reader.fill_buf().map_err(|e| Error::io(place, "read", e))?;
    let separator = separator_of(start);
    if start.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    let mut rows =
        csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::Headers).from_reader(reader);
    let mut latin = None;
    let names = rows.byte_headers().map_err(|e| wrong(place, e))?;
    let names = text_of(names, 1, &mut latin);
    let header: Vec<String> = names.iter().map(|name| name.trim().to_string()).collect();
    let mut builder = Builder::new(place, "line", &header, columns, with_target)?;
    let mut bytes = csv::ByteRecord::new();
    while rows.read_byte_record(&mut bytes).map_err(|e| wrong(place, e))? {
        let line = bytes.position().map_or(0, csv::Position::line);
        let record = text_of(&bytes, line, &mut latin);
        builder.row(line, |column| Cell::Text(record.get(column).unwrap_or_default()))?;
    }
    builder.notes.extend(latin.map(|line| {
        format!("{}: line {line} is not UTF-8; such lines are read as Latin-1", place.display())
    }));
    builder.finish()
}

/// A record as text; the first line that is not UTF-8 goes to `latin`.
fn text_of(bytes: &csv::ByteRecord, line: u64, latin: &mut Option<u64>) -> csv::StringRecord {
    match csv::StringRecord::from_byte_record(bytes.clone()) {
        Ok(record) => record,
        Err(_) => {
            latin.get_or_insert(line);
            bytes.iter().map(|cell| cell.iter().copied().map(char::from).collect::<String>()).collect()
        }
    }
}

/// UTF-16 as UTF-8; what is no text becomes the replacement character.
struct Utf16<R> {
    reader: R,
    little: bool,
    ready: Vec<u8>,
    at: usize,
}

impl<R: BufRead> Utf16<R> {
    /// The next unit; none at the end.
    fn unit(&mut self) -> std::io::Result<Option<u16>> {
        let mut pair = [0; 2];
        if self.reader.read(&mut pair[..1])? == 0 || self.reader.read(&mut pair[1..])? == 0 {
            return Ok(None);
        }
        Ok(Some(if self.little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }))
    }

    /// Makes some more text ready.
    fn fill(&mut self) -> std::io::Result<()> {
        let mut units = Vec::with_capacity(4096);
        while let Some(unit) = self.unit()? {
            units.push(unit);
            // A pair of surrogates stays together.
            if units.len() >= 4096 && !(0xd800..0xdc00).contains(&unit) {
                break;
            }
        }
        let text: String =
            char::decode_utf16(units).map(|one| one.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        (self.ready, self.at) = (text.into_bytes(), 0);
        Ok(())
    }
}

impl<R: BufRead> Read for Utf16<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.ready.len() {
            self.fill()?;
        }
        let count = into.len().min(self.ready.len() - self.at);
        into[..count].copy_from_slice(&self.ready[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
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
