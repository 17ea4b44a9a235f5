//! Nucleotide sequences from FASTA.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fauna_shared::train::Example;
use fauna_shared::{Error, Result};

use crate::dataset::{Opened, Source};
use crate::options::DatasetOptions;
use crate::table::{Lines, Place, in_line, read_at, utf8};

/// Nucleotides and the ambiguity codes of the IUPAC.
const CODES: &[u8] = b"ACGTURYKMSWBDHVN";

struct Genes {
    path: PathBuf,
    /// The lines after each header.
    places: Vec<Place>,
}

pub(crate) fn open(path: &Path, options: &DatasetOptions) -> Result<Opened> {
    options.check_columns("nucleotide sequences", &[])?;
    options.check_nothing_left_out("nucleotide sequences")?;
    let mut places: Vec<Place> = Vec::new();
    let mut lines = Lines::open(path, options.max_line)?;
    // Whether the last record has bases.
    let mut has_bases = true;
    while let Some((place, bytes)) = lines.next_line()? {
        let line = place.line;
        if bytes.starts_with(b">") || line == 1 && bytes.starts_with(b"\xef\xbb\xbf>") {
            if let Some(last) = places.last().filter(|_| !has_bases) {
                return Err(empty(last.line - 1, path));
            }
            places.push(Place { offset: place.offset + place.length, length: 0, line: line + 1 });
            has_bases = false;
            continue;
        }
        match (places.last_mut(), bytes.trim_ascii().is_empty()) {
            (Some(last), _) => last.length = place.offset + place.length - last.offset,
            (None, true) => {}
            (None, false) => {
                let error = Error::input("text before the first header");
                return Err(
                    in_line(error, line, path).hint("expected a line \">name\", then lines of A, C, G and T")
                );
            }
        }
        check(bytes).map_err(|e| in_line(e, line, path))?;
        has_bases |= !bytes.trim_ascii().is_empty();
    }
    if let Some(last) = places.last().filter(|_| !has_bases) {
        return Err(empty(last.line - 1, path));
    }
    let source = Arc::new(Genes { path: path.to_path_buf(), places });
    Ok(Opened {
        source,
        what: "nucleotide sequences",
        classes: BTreeMap::new(),
        targets: None,
        notes: Vec::new(),
    })
}

fn empty(line: u64, path: &Path) -> Error {
    in_line(Error::input("the sequence is empty"), line, path)
}

/// Checks that all characters but white space are nucleotides.
pub(crate) fn check(bases: &[u8]) -> Result<()> {
    let odd =
        bases.iter().find(|base| !base.is_ascii_whitespace() && !CODES.contains(&base.to_ascii_uppercase()));
    match odd {
        Some(odd) => Err(Error::input(format!("\"{}\" is not a nucleotide", odd.escape_ascii()))
            .hint("expected A, C, G, T or U and the ambiguity codes RYKMSWBDHVN")),
        None => Ok(()),
    }
}

impl Source for Genes {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        let place = self.places[index];
        let mut bytes = read_at(&self.path, place)?;
        bytes.retain(|base| !base.is_ascii_whitespace());
        check(&bytes).map_err(|e| in_line(e, place.line, &self.path))?;
        Ok(Example::Gene(utf8(bytes, place.line, &self.path)?))
    }
}
