//! Tables from CSV.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use fauna_shared::{Error, Result};

use crate::table::{Columns, Table};
use crate::table_builder::{Cell, TableBuilder};

/// Maximum length in bytes of the first line, in which the separator is detected.
const HEADER: usize = 64 << 10;

/// Reads CSV row by row.
///
/// UTF-16 is detected by its byte order mark. Lines that are not UTF-8 are read as Latin-1, with a note.
///
/// # Errors
/// As [`Table::read`].
pub(crate) fn read(reader: impl Read, path: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let mut reader = BufReader::with_capacity(HEADER, reader);
    let start = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?;
    let little = start.starts_with(b"\xff\xfe");
    if little || start.starts_with(b"\xfe\xff") {
        let decoded = Utf16 { reader, little, ready: Vec::new(), at: 0 };
        return read_utf8(BufReader::with_capacity(HEADER, decoded), path, columns, with_target);
    }
    read_utf8(reader, path, columns, with_target)
}

fn read_utf8(mut reader: impl BufRead, path: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let start = reader.fill_buf().map_err(|e| Error::io(path, "read", e))?;
    let separator = separator_of(start);
    if start.starts_with(b"\xef\xbb\xbf") {
        reader.consume(3);
    }
    let mut rows =
        csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::Headers).from_reader(reader);
    let mut latin = None;
    let names = rows.byte_headers().map_err(|e| wrong(path, e))?;
    let names = text_of(names, 1, &mut latin);
    let header: Vec<String> = names.iter().map(|name| name.trim().to_string()).collect();
    let mut builder = TableBuilder::new(path, "line", &header, columns, with_target)?;
    let mut bytes = csv::ByteRecord::new();
    while rows.read_byte_record(&mut bytes).map_err(|e| wrong(path, e))? {
        let line = bytes.position().map_or(0, csv::Position::line);
        let record = text_of(&bytes, line, &mut latin);
        builder.row(line, |column| Cell::Text(record.get(column).unwrap_or_default()))?;
    }
    builder.notes.extend(
        latin.map(|line| {
            format!("{}: line {line} is not UTF-8; such lines are read as Latin-1", path.display())
        }),
    );
    builder.finish()
}

/// A record as text; `latin` is set to the first line that is not UTF-8.
fn text_of(bytes: &csv::ByteRecord, line: u64, latin: &mut Option<u64>) -> csv::StringRecord {
    match csv::StringRecord::from_byte_record(bytes.clone()) {
        Ok(record) => record,
        Err(_) => {
            latin.get_or_insert(line);
            bytes.iter().map(|cell| cell.iter().copied().map(char::from).collect::<String>()).collect()
        }
    }
}

/// Decodes UTF-16 to UTF-8; invalid units become the replacement character.
struct Utf16<R> {
    reader: R,
    little: bool,
    ready: Vec<u8>,
    at: usize,
}

impl<R: BufRead> Utf16<R> {
    /// The next code unit; `None` at the end.
    fn unit(&mut self) -> std::io::Result<Option<u16>> {
        let mut pair = [0; 2];
        if self.reader.read(&mut pair[..1])? == 0 || self.reader.read(&mut pair[1..])? == 0 {
            return Ok(None);
        }
        Ok(Some(if self.little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }))
    }

    /// Decodes the next chunk.
    fn fill(&mut self) -> std::io::Result<()> {
        let mut units = Vec::with_capacity(4096);
        while let Some(unit) = self.unit()? {
            units.push(unit);
            // A chunk does not end between surrogates.
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

/// The separator of the first line: comma, semicolon or tab, the first of them that occurs.
fn separator_of(start: &[u8]) -> u8 {
    let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
    *[b',', b';', b'\t'].iter().find(|separator| line.contains(separator)).unwrap_or(&b',')
}

fn wrong(path: &Path, error: csv::Error) -> Error {
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
