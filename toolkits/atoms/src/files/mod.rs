//! Structure files: reads and writes extended XYZ, reads CIF and POSCAR.
//!
//! ```
//! use fauna_atoms::files::{Format, parse, write_xyz};
//!
//! let text = "2\nLattice=\"3 0 0 0 3 0 0 0 3\" energy=-1.5\nNa 0 0 0\nCl 1.5 1.5 1.5\n";
//! let frames = parse(text, Format::Xyz, "salt.xyz")?;
//! assert_eq!(frames[0].atoms.numbers, [11, 17]);
//! assert_eq!((frames[0].energy, frames[0].atoms.periodic), (Some(-1.5), [true; 3]));
//! let mut out = Vec::new();
//! write_xyz(&mut out, &frames[0])?;
//! assert_eq!(parse(std::str::from_utf8(&out).unwrap(), Format::Xyz, "again")?, frames);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cif;
mod poscar;
mod xyz;

use std::collections::BTreeMap;
use std::path::Path;

use fauna_shared::item::Atoms;
use fauna_shared::{Error, ErrorKind, Result};

use crate::elements;

pub use xyz::write_xyz;

/// Maximum size of a file, in bytes.
const MAX_FILE_SIZE: u64 = 1 << 30;

/// A structure of a file, with its properties.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Frame {
    /// The structure.
    pub atoms: Atoms,
    /// Energy in eV.
    pub energy: Option<f64>,
    /// Forces in eV/Å, one per atom.
    pub forces: Option<Vec<[f64; 3]>>,
    /// Stress in eV/Å³ as xx, yy, zz, yz, xz, xy, positive under tension.
    pub stress: Option<[f64; 6]>,
    /// Other entries of the comment line of an extended XYZ file.
    pub info: BTreeMap<String, String>,
    /// Other per-atom columns of an extended XYZ file.
    pub columns: Vec<Column>,
    /// What was not read, and which of several readings was taken.
    pub notes: Vec<String>,
}

/// A per-atom column of a file that has no field here: tags, magnetic moments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Column {
    /// Name in the file.
    pub name: String,
    /// `S`, `R`, `I` or `L`: string, real, integer, logical.
    pub kind: char,
    /// Number of values per atom.
    pub width: usize,
    /// The values as text, [`width`](Self::width) per atom.
    pub values: Vec<String>,
}

impl From<Atoms> for Frame {
    fn from(atoms: Atoms) -> Self {
        Self { atoms, ..Self::default() }
    }
}

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// XYZ, plain or extended, with any number of structures.
    Xyz,
    /// Crystallographic Information File, with one structure per data block.
    Cif,
    /// POSCAR and CONTCAR of VASP 5, and of VASP 4 if the title or the lines of the atoms name the elements; XDATCAR with
    /// any number of structures.
    Poscar,
}

impl Format {
    /// The format by the name of a file: `.xyz`, `.extxyz`, `.cif`, `.vasp`, `.poscar`, `POSCAR…`, `CONTCAR…`, `XDATCAR…`.
    pub fn from_path(path: &Path) -> Option<Self> {
        let lower = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().to_lowercase());
        let name = lower(path.file_name())?;
        match lower(path.extension()).as_deref() {
            Some("xyz" | "extxyz") => Some(Self::Xyz),
            Some("cif") => Some(Self::Cif),
            Some("vasp" | "poscar" | "contcar" | "xdatcar") => Some(Self::Poscar),
            _ if ["poscar", "contcar", "xdatcar"].iter().any(|known| name.starts_with(known)) => {
                Some(Self::Poscar)
            }
            _ => None,
        }
    }

    /// The format by the content: a number first is XYZ, a data block is CIF, three lines of cell vectors are POSCAR.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let first = lines.next()?.trim();
        if first.parse::<usize>().is_ok() {
            return Some(Self::Xyz);
        }
        if text.lines().any(|line| line.trim_start().to_ascii_lowercase().starts_with("data_")) {
            return Some(Self::Cif);
        }
        let numbers = |line: &str| line.split_whitespace().take(3).filter_map(number).count();
        let scale = lines.next().map_or(0, numbers);
        let is_cell =
            (scale == 1 || scale == 3) && lines.take(3).filter(|line| numbers(line) == 3).count() == 3;
        is_cell.then_some(Self::Poscar)
    }
}

/// Reads the structures of a file, whose format is detected by its name or else its content.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) and [`Io`](ErrorKind::Io) for a file that cannot be read,
/// [`Format`](ErrorKind::Format) with the line of an invalid one,
/// [`Unsupported`](ErrorKind::Unsupported) for partly occupied sites.
pub fn read(path: &Path) -> Result<Vec<Frame>> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?.len();
    if size > MAX_FILE_SIZE {
        return Err(Error::format(path, format!("{size} bytes are too many for a structure file"))
            .hint(format!("at most {MAX_FILE_SIZE} bytes are read; split the file")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    let (text, note) =
        text_of(bytes).ok_or_else(|| Error::format(path, "a structure file is text, this file is not"))?;
    let Some(format) = Format::from_path(path).or_else(|| Format::from_text(&text)) else {
        return Err(Error::format(
            path,
            "neither the name nor the content is that of a known structure file",
        )
        .hint("known: .xyz, .extxyz, .cif, .vasp, POSCAR, CONTCAR"));
    };
    let mut frames = parse(&text, format, &path.to_string_lossy())?;
    if let (Some(note), Some(first)) = (note, frames.first_mut()) {
        first.notes.push(note.to_string());
    }
    Ok(frames)
}

/// Decodes UTF-8, UTF-16 with its byte order mark, or else Latin-1, with a note; `None` for binary data.
fn text_of(bytes: Vec<u8>) -> Option<(String, Option<&'static str>)> {
    for (mark, little) in [(b"\xff\xfe", true), (b"\xfe\xff", false)] {
        if let Some(rest) = bytes.strip_prefix(mark) {
            let unit =
                |pair: &[u8; 2]| if little { u16::from_le_bytes(*pair) } else { u16::from_be_bytes(*pair) };
            let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(unit).collect();
            let text = String::from_utf16(&units).ok().filter(|text| !text.contains('\0'));
            return text.map(|text| (text, None));
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some((text, None)),
        Err(error) => {
            let bytes = error.into_bytes();
            let is_text = !bytes.contains(&0);
            is_text.then(|| {
                (
                    bytes.into_iter().map(char::from).collect(),
                    Some("the file is not UTF-8 and is read as Latin-1"),
                )
            })
        }
    }
}

/// Parses the structures in `text`; `place` is its name in errors.
///
/// # Errors
/// As [`read`], of the text.
pub fn parse(text: &str, format: Format, place: &str) -> Result<Vec<Frame>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let frames = match format {
        Format::Xyz => xyz::parse(text),
        Format::Cif => cif::parse(text),
        Format::Poscar => poscar::parse(text),
    };
    match frames {
        Ok(frames) if frames.is_empty() => Err(Error::format(place, "no structure found")),
        Ok(frames) => Ok(frames),
        Err(error) => Err(error.at(place)),
    }
}

/// An error at a line, counted from 1.
fn wrong(line: usize, message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Format, format!("line {line}: {message}"))
}

/// Parses a finite number, also in the notation of Fortran (`1.5d-3`) and Mathematica (`1.5*^-3`).
fn number(word: &str) -> Option<f64> {
    let value = word.parse().or_else(|_| word.replace("*^", "e").replace(['d', 'D'], "e").parse::<f64>());
    value.ok().filter(|value| value.is_finite())
}

/// Parses three numbers.
fn three<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<[f64; 3]> {
    let mut words = words.into_iter().map(number);
    Some([words.next()??, words.next()??, words.next()??])
}

/// An atomic number, and the mass if the symbol is of an isotope.
type Species = (u8, Option<f64>);

/// The element of `symbol` in its exact letter case, or deuterium or tritium.
fn species(symbol: &str) -> Option<Species> {
    match elements::isotope(symbol) {
        Some(mass) => Some((1, Some(mass))),
        None => elements::atomic_number(symbol)
            .filter(|number| elements::symbol(*number) == Some(symbol))
            .map(|n| (n, None)),
    }
}

/// The element that a label begins with: `Fe`, `fe3+`, `Cl12`, `O_s`. As in ASE, the second letter must be lower case:
/// `HO1` is hydrogen.
fn element(label: &str) -> Option<Species> {
    let mut letters = label.chars().take_while(char::is_ascii_alphabetic);
    let first = letters.next()?.to_ascii_uppercase();
    let second = letters.next().filter(char::is_ascii_lowercase);
    let long = second.and_then(|second| species(&format!("{first}{second}")));
    long.or_else(|| species(&first.to_string()))
}

/// Adds an atom to `atoms`.
fn push(atoms: &mut Atoms, (number, mass): Species, position: [f64; 3]) {
    if mass.is_some() && atoms.masses.is_empty() {
        atoms.masses = atoms.numbers.iter().map(|number| elements::atomic_mass(*number)).collect();
    }
    if mass.is_some() || !atoms.masses.is_empty() {
        atoms.masses.push(mass.unwrap_or_else(|| elements::atomic_mass(number)));
    }
    atoms.numbers.push(number);
    atoms.positions.push(position);
}

#[cfg(test)]
mod tests {
    use fauna_shared::generate::Rng;

    use super::*;

    #[test]
    fn formats_are_detected_by_name_and_content() {
        let of = |name: &str| Format::from_path(Path::new(name));
        assert_eq!(of("a/b.XYZ"), Some(Format::Xyz));
        assert_eq!(of("a/POSCAR_relaxed"), Some(Format::Poscar));
        assert_eq!(of("quartz.cif"), Some(Format::Cif));
        assert_eq!(of("quartz"), None);
        assert_eq!(Format::from_text("3\n\nO 0 0 0"), Some(Format::Xyz));
        assert_eq!(Format::from_text("# c\ndata_x\n_cell_length_a 3"), Some(Format::Cif));
        assert_eq!(Format::from_text("salt\n1.0\n3 0 0\n0 3 0\n0 0 3\nNa"), Some(Format::Poscar));
        assert_eq!(Format::from_text("hello\nworld"), None);
    }

    #[test]
    fn labels_begin_with_their_element() {
        let known =
            [("Fe3+", 26), ("O1", 8), ("Cl12", 17), ("Si", 14), ("h", 1), ("Ow", 8), ("HO1", 1), ("CA1", 6)];
        for (label, wanted) in known {
            assert_eq!(element(label), Some((wanted, None)), "{label}");
        }
        assert_eq!((element("D1"), element("T")), (Some((1, Some(2.014))), Some((1, Some(3.016)))));
        assert_eq!(element("Xx"), None);
        assert_eq!(element("1H"), None);
        assert_eq!(element(""), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read(Path::new("no/such.xyz")).unwrap_err();
        assert_eq!((error.kind(), error.place()), (ErrorKind::NotFound, Some(Path::new("no/such.xyz"))));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.xyz");
        std::fs::write(&path, [0xff, 0xd8, 0xff, 0]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("is text"));
        let path = folder.path().join("latin.xyz");
        std::fs::write(&path, b"1\nM\xfcller\nO 0 0 0\n").unwrap();
        let frames = read(&path).unwrap();
        assert!(frames[0].atoms.numbers == [8] && frames[0].notes[0].contains("Latin-1"));
        let wide: Vec<u8> = "\u{feff}1\n\nO 0 0 0\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, wide).unwrap();
        assert_eq!(read(&path).unwrap()[0].atoms.numbers, [8]);
        let path = folder.path().join("letter");
        std::fs::write(&path, "Dear Sir").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("neither the name nor the content"));
    }

    /// Good files cut, and with bytes changed: every answer is a structure or an error, at once.
    #[test]
    fn damaged_files_never_panic() {
        let good = [
            (
                Format::Xyz,
                "2\nLattice=\"3 0 0 0 3 0 0 0 3\" Properties=species:S:1:pos:R:3:forces:R:3 energy=1\nNa 0 0 0 1 2 3\nCl 1.5 1.5 1.5 1 1 1\n",
            ),
            (
                Format::Cif,
                "data_a\n_cell_length_a 3.0(1)\n_cell_length_b 3\n_cell_length_c 3\n_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\nloop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x+1/2,y,z'\nloop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nNa1 0.1 0 0\n",
            ),
            (
                Format::Poscar,
                "salt\n1.0\n3 0 0\n0 3 0\n0 0 3\nNa Cl\n1 1\nSelective dynamics\nDirect\n0 0 0 T T F\n0.5 0.5 0.5 F F F\n",
            ),
        ];
        let mut random = Rng::new(5, 0);
        let odd = ["-", "9", "\"", "\n", " ", "e", ";", "'", "999999999999", "nan", "é", "_", "(", "0"];
        for (format, text) in good {
            assert!(parse(text, format, "good").is_ok(), "{:?}", parse(text, format, "good"));
            for length in 0..text.len() {
                let _ = parse(&text[..length], format, "cut");
            }
            for _ in 0..3000 {
                let mut changed = text.to_string();
                for _ in 0..1 + random.next_u32() % 4 {
                    let places: Vec<usize> = changed.char_indices().map(|(place, _)| place).collect();
                    let place = places[random.next_u32() as usize % places.len()];
                    let end = place + changed[place..].chars().next().map_or(0, char::len_utf8);
                    changed.replace_range(place..end, odd[random.next_u32() as usize % odd.len()]);
                }
                let _ = parse(&changed, format, "changed");
                let _ = Format::from_text(&changed);
            }
        }
    }
}
