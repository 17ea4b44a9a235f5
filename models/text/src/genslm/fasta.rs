//! FASTA: genes in files, plain or in gzip's compression, as one stream or in the blocks of bgzip.
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

use super::codons::{Reading, checked};

/// More bases than the longest gene has by far; a file that claims more is not believed.
const MOST_BASES: usize = 64 << 20;
/// More than any title holds.
const LONGEST_TITLE: usize = 64 << 10;
/// How sequences are written by default.
pub const COLUMNS: usize = 60;

/// One sequence of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The first word of the title.
    pub id: String,
    /// The rest of the title.
    pub description: String,
    /// The sequence, without white space, as it is written.
    pub sequence: String,
}

/// The genes of a file one after the other; no more than one is in memory.
///
/// A record that is wrong is an error that names file, record and place, and the next record follows. After a file that
/// cannot be read on, and a sequence without an end, nothing follows.
pub struct Genes<R> {
    place: PathBuf,
    reading: Reading,
    lines: R,
    /// Counted from 1.
    number: usize,
    ended: bool,
}

/// Opens the file at `path`, whatever its name, as its first bytes say: gzip's, or plain.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) without the file; as [`Genes::read`].
pub fn open(path: impl AsRef<Path>, reading: Reading) -> Result<Genes<Box<dyn BufRead>>> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::io(path, "read", e))?;
    Genes::read(path, unpacked(path, BufReader::new(file))?, reading)
}

/// `bytes`, decompressed if they are gzip's.
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
    /// The genes in `lines`, called `place` in messages. With [`Reading::Strict`] each must be whole codons; with
    /// [`Reading::AsReleased`] a sequence is whatever is written.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) if there is nothing, or anything before the first title.
    pub fn read(place: impl Into<PathBuf>, lines: R, reading: Reading) -> Result<Self> {
        let mut genes = Self { place: place.into(), reading, lines, number: 0, ended: false };
        genes.find_first()?;
        Ok(genes)
    }

    /// Goes past white space to the first title.
    fn find_first(&mut self) -> Result<()> {
        let hint = "a gene is a line \">name\" and lines of A, C, G and T";
        // The mark that some editors put before text.
        for (i, mark) in b"\xef\xbb\xbf".iter().enumerate() {
            if self.peek()? != Some(*mark) {
                match i {
                    0 => break,
                    _ => return Err(self.wrong("text before the first title").hint(hint)),
                }
            }
            self.lines.consume(1);
        }
        loop {
            match self.peek()? {
                Some(b'>') => return Ok(()),
                Some(white) if white.is_ascii_whitespace() => self.lines.consume(1),
                Some(_) => return Err(self.wrong("text before the first title").hint(hint)),
                None => return Err(self.wrong("no gene in it: the file is empty").hint(hint)),
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

    /// Reads the record whose `>` comes next.
    fn record(&mut self) -> Result<Record> {
        self.number += 1;
        let title = self.title()?;
        let (id, description) = title.split_once(char::is_whitespace).unwrap_or((&title, ""));
        let (id, description) = (id.to_string(), description.trim().to_string());
        let record = Record { sequence: self.sequence().map_err(|e| self.named(&id, e))?, id, description };
        if self.reading == Reading::Strict {
            checked(&record.sequence).map_err(|e| self.named(&record.id, e))?;
        } else if record.sequence.is_empty() {
            return Err(self.named(&record.id, Error::input("the gene is empty")));
        }
        Ok(record)
    }

    /// `error` with the record it is about.
    fn named(&self, id: &str, error: Error) -> Error {
        let name = if id.is_empty() { String::new() } else { format!(" {id:?}") };
        error.context(format!("record {}{name}", self.number)).at(&self.place)
    }

    /// The line after `>`, as far as it is text.
    fn title(&mut self) -> Result<String> {
        self.lines.consume(1);
        let mut line = Vec::new();
        let mut limited = (&mut self.lines).take(LONGEST_TITLE as u64);
        limited.read_until(b'\n', &mut line).map_err(|e| cannot_read(&self.place, e))?;
        if line.len() == LONGEST_TITLE && !line.ends_with(b"\n") {
            self.ended = true;
            let error = Error::new(ErrorKind::Format, format!("a title of more than {LONGEST_TITLE} bytes"));
            return Err(self.named("", error));
        }
        Ok(String::from_utf8_lossy(&line).trim().to_string())
    }

    /// All lines up to the next title.
    fn sequence(&mut self) -> Result<String> {
        let mut sequence: Vec<u8> = Vec::new();
        let mut begins_line = true;
        loop {
            let buffer = self.lines.fill_buf().map_err(|e| cannot_read(&self.place, e))?;
            if buffer.is_empty() || begins_line && buffer[0] == b'>' {
                break;
            }
            let line = buffer.iter().position(|byte| *byte == b'\n').map_or(buffer.len(), |end| end + 1);
            let bases = buffer[..line].iter().filter(|byte| !byte.is_ascii_whitespace());
            sequence.extend(bases);
            begins_line = buffer[line - 1] == b'\n';
            self.lines.consume(line);
            if sequence.len() > MOST_BASES {
                self.ended = true;
                return Err(Error::input(format!("more than {MOST_BASES} bases"))
                    .hint("a gene is wanted, not a genome; what follows it was not read"));
            }
        }
        String::from_utf8(sequence).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let odd = error.as_bytes()[at];
            Error::input(format!("byte {odd:#04x} after base {at} is no text"))
                .hint("a gene is written in A, C, G and T")
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

/// Writes `record` with at most `columns` bases a line; 0 for all on one line.
///
/// # Errors
/// [`Io`](ErrorKind::Io) if it cannot be written, [`Input`](ErrorKind::Input) if its title has a line break or its
/// sequence anything but letters, `-`, `.` and `*`: it would not be read back.
pub fn write(out: &mut impl Write, record: &Record, columns: usize) -> Result<()> {
    let Record { id, description, sequence } = record;
    let breaks = |text: &str| text.contains(['\n', '\r']);
    if breaks(id) || breaks(description) || id.contains(char::is_whitespace) {
        return Err(Error::input(format!("the title {id:?} {description:?} is no line with a name first")));
    }
    if let Some(odd) = sequence.chars().find(|base| !(base.is_ascii_alphabetic() || "-.*".contains(*base))) {
        return Err(Error::input(format!("a sequence with {odd:?} is not written")));
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
