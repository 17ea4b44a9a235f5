//! FASTA files, plain or compressed with gzip or bgzip.
//!
//! ```
//! use fauna_text::genslm::codons::Reading;
//! use fauna_text::genslm::fasta::Genes;
//! let file = ">geneA the first\nATGAAA\nTAA\n>geneB\nATGXAA\n";
//! let genes: Vec<_> = Genes::read("genes.fasta", file.as_bytes(), Reading::Strict)?.collect();
//! let first = genes[0].as_ref().unwrap();
//! assert_eq!((&*first.id, &*first.description, &*first.sequence), ("geneA", "the first", "ATGAAATAA"));
//! let error = genes[1].as_ref().unwrap_err().to_string();
//! assert!(error.starts_with("genes.fasta: record 2 \"geneB\": \"X\" at base 4"));
//! # Ok::<(), fauna_shared::Error>(())
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use fauna_shared::{Error, ErrorKind, Result};
use flate2::bufread::MultiGzDecoder;

use super::codons::{Reading, validate};

/// Maximum number of bases of a sequence, far above that of any gene.
const MAX_BASES: usize = 64 << 20;
/// Maximum number of bytes of a header.
const MAX_HEADER: usize = 64 << 10;
/// Default number of bases per line.
pub const COLUMNS: usize = 60;

/// One record of a FASTA file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The first word of the header.
    pub id: String,
    /// The rest of the header.
    pub description: String,
    /// The sequence as in the file, without white space.
    pub sequence: String,
}

/// Iterator over the records of a FASTA file, with one record in memory at a time.
///
/// An invalid record gives an error with file, record and position, and iteration continues with the next one. It ends
/// after an I/O error and after a sequence or header that is too long.
pub struct Genes<R> {
    place: PathBuf,
    reading: Reading,
    lines: R,
    /// Counted from 1.
    number: usize,
    ended: bool,
}

/// Opens the FASTA file at `path`; gzip is detected by its first bytes, not by the file's name.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there is no such file; otherwise as [`Genes::read`].
pub fn open(path: impl AsRef<Path>, reading: Reading) -> Result<Genes<Box<dyn BufRead>>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    Genes::read(path, unpacked(path, BufReader::new(file))?, reading)
}

/// Returns `bytes`, decompressed if they are in gzip format.
///
/// # Errors
/// [`Io`](ErrorKind::Io) if the first bytes cannot be read.
pub fn unpacked<'a>(place: &Path, mut bytes: impl BufRead + 'a) -> Result<Box<dyn BufRead + 'a>> {
    let start = bytes.fill_buf().map_err(|e| Error::io(place, "read", e))?;
    Ok(match start.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(BufReader::new(MultiGzDecoder::new(bytes))),
        false => Box::new(bytes),
    })
}

impl<R: BufRead> Genes<R> {
    /// Reads the records of `lines`; `place` is the file's name in errors. With [`Reading::Strict`] each sequence must
    /// consist of whole codons; with [`Reading::AsReleased`] it may be any text.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) if `lines` is empty, or has text before the first header.
    pub fn read(place: impl Into<PathBuf>, lines: R, reading: Reading) -> Result<Self> {
        let mut genes = Self { place: place.into(), reading, lines, number: 0, ended: false };
        genes.find_first()?;
        Ok(genes)
    }

    /// Skips white space up to the first header.
    fn find_first(&mut self) -> Result<()> {
        let hint = "expected a line \">name\", then lines of A, C, G and T";
        // A byte order mark.
        for (i, mark) in b"\xef\xbb\xbf".iter().enumerate() {
            if self.peek()? != Some(*mark) {
                match i {
                    0 => break,
                    _ => return Err(self.wrong("text before the first header").hint(hint)),
                }
            }
            self.lines.consume(1);
        }
        loop {
            match self.peek()? {
                Some(b'>') => return Ok(()),
                Some(white) if white.is_ascii_whitespace() => self.lines.consume(1),
                Some(_) => return Err(self.wrong("text before the first header").hint(hint)),
                None => return Err(self.wrong("the file is empty").hint(hint)),
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        let buffer = self.lines.fill_buf().map_err(|e| cannot_read(&self.place, e))?;
        Ok(buffer.first().copied())
    }

    fn wrong(&self, message: &str) -> Error {
        Error::format(&self.place, message)
    }

    /// Reads the record whose `>` is next.
    fn record(&mut self) -> Result<Record> {
        self.number += 1;
        let header = self.header()?;
        let (id, description) = header.split_once(char::is_whitespace).unwrap_or((&header, ""));
        let (id, description) = (id.to_string(), description.trim().to_string());
        let record = Record { sequence: self.sequence().map_err(|e| self.named(&id, e))?, id, description };
        if self.reading == Reading::Strict {
            validate(&record.sequence).map_err(|e| self.named(&record.id, e))?;
        } else if record.sequence.is_empty() {
            return Err(self.named(&record.id, Error::input("the gene is empty")));
        }
        Ok(record)
    }

    /// Adds the record to `error`.
    fn named(&self, id: &str, error: Error) -> Error {
        let name = if id.is_empty() { String::new() } else { format!(" {id:?}") };
        error.context(format!("record {}{name}", self.number)).at(&self.place)
    }

    /// Reads the header, which is the line after `>`; invalid UTF-8 is replaced.
    fn header(&mut self) -> Result<String> {
        self.lines.consume(1);
        let mut line = Vec::new();
        let mut limited = (&mut self.lines).take(MAX_HEADER as u64);
        limited.read_until(b'\n', &mut line).map_err(|e| cannot_read(&self.place, e))?;
        if line.len() == MAX_HEADER && !line.ends_with(b"\n") {
            self.ended = true;
            let error = Error::new(ErrorKind::Format, format!("the header has more than {MAX_HEADER} bytes"));
            return Err(self.named("", error));
        }
        Ok(String::from_utf8_lossy(&line).trim().to_string())
    }

    /// Reads all lines up to the next header.
    fn sequence(&mut self) -> Result<String> {
        let mut sequence: Vec<u8> = Vec::new();
        let mut at_line_start = true;
        loop {
            let buffer = self.lines.fill_buf().map_err(|e| cannot_read(&self.place, e))?;
            if buffer.is_empty() || at_line_start && buffer[0] == b'>' {
                break;
            }
            let line = buffer.iter().position(|byte| *byte == b'\n').map_or(buffer.len(), |end| end + 1);
            let bases = buffer[..line].iter().filter(|byte| !byte.is_ascii_whitespace());
            sequence.extend(bases);
            at_line_start = buffer[line - 1] == b'\n';
            self.lines.consume(line);
            if sequence.len() > MAX_BASES {
                self.ended = true;
                return Err(Error::input(format!("more than {MAX_BASES} bases"))
                    .hint("expected a gene, not a genome; the rest of the file was not read"));
            }
        }
        String::from_utf8(sequence).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let odd = error.as_bytes()[at];
            Error::input(format!("byte {odd:#04x} after base {at} is not valid UTF-8"))
                .hint("expected A, C, G and T")
        })
    }
}

impl<R: BufRead> Iterator for Genes<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.ended {
            return None;
        }
        match self.peek() {
            Ok(None) => None,
            Ok(Some(_)) => {
                let record = self.record();
                self.ended |= matches!(&record, Err(error) if error.kind() == ErrorKind::Io);
                Some(record)
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

fn cannot_read(place: &Path, error: std::io::Error) -> Error {
    Error::io(place, "read", error)
}

/// Writes `record` with at most `columns` bases per line; 0 for a single line.
///
/// # Errors
/// [`Io`](ErrorKind::Io) if it cannot be written; [`Input`](ErrorKind::Input) if the header has a line break, the id
/// has white space, or the sequence has characters other than letters, `-`, `.` and `*`.
pub fn write(out: &mut impl Write, record: &Record, columns: usize) -> Result<()> {
    let Record { id, description, sequence } = record;
    let breaks = |text: &str| text.contains(['\n', '\r']);
    if breaks(id) || breaks(description) || id.contains(char::is_whitespace) {
        return Err(Error::input(format!(
            "the header {id:?} {description:?} is not one line that begins with an id"
        )));
    }
    if let Some(odd) = sequence.chars().find(|base| !(base.is_ascii_alphabetic() || "-.*".contains(*base))) {
        return Err(Error::input(format!("the sequence has the invalid character {odd:?}")));
    }
    let space = if description.is_empty() { "" } else { " " };
    let mut text = format!(">{id}{space}{description}\n");
    let columns = if columns == 0 { sequence.len().max(1) } else { columns };
    let mut rest = sequence.as_str();
    while !rest.is_empty() {
        let (line, later) = rest.split_at(columns.min(rest.len()));
        text.push_str(line);
        text.push('\n');
        rest = later;
    }
    out.write_all(text.as_bytes())
        .map_err(|e| Error::new(ErrorKind::Io, format!("cannot write FASTA: {e}")).caused_by(e))
}
