//! Structures with energies, forces and stress from extended XYZ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fauna_atoms::files::{Format, Frame, parse};
use fauna_atoms::{cell, check};
use fauna_shared::train::Example;
use fauna_shared::{Error, Result};

use crate::dataset::{Opened, Source};
use crate::options::DatasetOptions;
use crate::table::{Lines, Place, in_line, read_at, utf8};

/// The properties that can be renamed.
const NAMES: [&str; 4] = ["energy", "forces", "stress", "virial"];

/// Names of each property in files, of which a file has one at most: those of ASE, then those of MACE.
const ENERGY: &[&str] = &["energy", "REF_energy"];
const FORCES: &[&str] = &["forces", "REF_forces"];
const STRESS: &[&str] = &["stress", "REF_stress"];
const VIRIAL: &[&str] = &["virial", "virials", "REF_virial", "REF_virials"];

/// The names of the properties in a file; `None` for those that it does not have.
#[derive(Debug, Clone, Default)]
struct Keys {
    energy: Option<String>,
    forces: Option<String>,
    stress: Option<String>,
    virial: Option<String>,
}

struct Structures {
    path: PathBuf,
    places: Vec<Place>,
    keys: Keys,
}

pub(crate) fn open(path: &Path, options: &DatasetOptions) -> Result<Opened> {
    options.check_columns("structures", &NAMES)?;
    let places = places(path, options.max_line)?;
    let mut structures = Structures { path: path.to_path_buf(), places, keys: Keys::default() };
    let mut found = Names::default();
    for index in 0..structures.places.len() {
        found.add(&structures.frame(index)?);
    }
    structures.keys = found.keys(options)?;
    let mut counts = [0; 3];
    for index in 0..structures.places.len() {
        let Example::Atoms { energy, forces, stress, .. } = structures.get(index)? else { continue };
        let known = [energy.is_some(), forces.is_some(), stress.is_some()];
        counts.iter_mut().zip(known).for_each(|(count, known)| *count += usize::from(known));
    }
    let [energies, forces, stresses] = counts;
    let mut notes = vec![format!("{energies} energies, {forces} sets of forces, {stresses} stresses")];
    let Keys { energy, forces, stress, virial } = &structures.keys;
    let keys: Vec<&str> =
        [energy, forces, stress, virial].into_iter().flatten().map(String::as_str).collect();
    notes.push(format!("read from {}", keys.join(", ")));
    let source = Arc::new(structures);
    Ok(Opened { source, what: "structures", classes: BTreeMap::new(), targets: None, notes })
}

/// The places of the structures of a file: a number of atoms, a comment and as many lines.
fn places(path: &Path, max_line: usize) -> Result<Vec<Place>> {
    let mut lines = Lines::open(path, max_line)?;
    let mut places: Vec<Place> = Vec::new();
    while let Some((place, bytes)) = lines.next_line()? {
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(bytes);
        let word = text.trim_start_matches('\u{feff}').trim();
        let count: u64 = word.parse().map_err(|_| {
            in_line(
                Error::input(format!("expected the number of atoms, found \"{word:.40}\"")),
                place.line,
                path,
            )
        })?;
        let mut whole = place;
        for row in 0..count.saturating_add(1) {
            match lines.next_line()? {
                Some((line, _)) => whole.length = line.offset + line.length - whole.offset,
                None => {
                    let error = Error::input(format!(
                        "expected {count} atoms, found {} lines",
                        row.saturating_sub(1)
                    ));
                    return Err(in_line(error, place.line, path));
                }
            }
        }
        places.push(whole);
    }
    Ok(places)
}

/// The names of the properties of the frames of a file.
#[derive(Default)]
struct Names {
    comment: Vec<String>,
    columns: Vec<String>,
}

impl Names {
    fn add(&mut self, frame: &Frame) {
        let own = [("energy", frame.energy.is_some()), ("stress", frame.stress.is_some())];
        let own = own.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name);
        for name in own.chain(frame.info.keys().map(String::as_str)) {
            if !self.comment.iter().any(|known| known == name) {
                self.comment.push(name.to_string());
            }
        }
        let own = frame.forces.is_some().then_some("forces");
        for name in own.into_iter().chain(frame.columns.iter().map(|column| column.name.as_str())) {
            if !self.columns.iter().any(|known| known == name) {
                self.columns.push(name.to_string());
            }
        }
    }

    fn keys(&self, options: &DatasetOptions) -> Result<Keys> {
        let everything = || {
            let all: Vec<&str> = self.comment.iter().chain(&self.columns).map(String::as_str).collect();
            if all.is_empty() {
                "the file has none".to_string()
            } else {
                format!("the file has: {}", all.join(", "))
            }
        };
        let all = self.comment.iter().chain(&self.columns);
        if let Some(missing) = options.without.iter().find(|name| !all.clone().any(|known| known == *name)) {
            return Err(Error::input(format!("no property is called `{missing}`")).hint(everything()));
        }
        let find = |role: &str, known: &[&str], there: &[String]| -> Result<Option<String>> {
            if let Some(given) = options.columns.get(role) {
                return match there.contains(given) {
                    true => Ok(Some(given.clone())),
                    false => {
                        Err(Error::input(format!("no structure has the {role} `{given}`")).hint(everything()))
                    }
                };
            }
            let is_found = |name: &&&str| {
                there.iter().any(|key| key == **name) && !options.without.iter().any(|left| left == **name)
            };
            let mut found = known.iter().filter(is_found);
            match (found.next(), found.next()) {
                (Some(one), Some(other)) => {
                    Err(Error::input(format!("the file has both `{one}` and `{other}`")).set(
                        "name the one to learn",
                        "DatasetOptions::columns",
                        format!("{role}={other}"),
                    ))
                }
                (one, _) => Ok(one.map(|name| (*name).to_string())),
            }
        };
        let keys = Keys {
            energy: find("energy", ENERGY, &self.comment)?,
            forces: find("forces", FORCES, &self.columns)?,
            stress: find("stress", STRESS, &self.comment)?,
            virial: find("virial", VIRIAL, &self.comment)?,
        };
        if let (Some(stress), Some(virial)) = (&keys.stress, &keys.virial) {
            return Err(Error::input(format!("the file has both `{stress}` and `{virial}`")).set(
                "leave one of them out",
                "DatasetOptions::without",
                virial.clone(),
            ));
        }
        if keys.energy.is_none() && keys.forces.is_none() && keys.stress.is_none() && keys.virial.is_none() {
            return Err(Error::input("no structure has an energy, forces or a stress to learn")
                .hint(everything())
                .set("name the keys", "DatasetOptions::columns", "energy=KEY"));
        }
        Ok(keys)
    }
}

impl Structures {
    fn frame(&self, index: usize) -> Result<Frame> {
        let place = self.places[index];
        let text = utf8(read_at(&self.path, place)?, place.line, &self.path)?;
        let mut frames =
            parse(&text, Format::Xyz, &self.path.to_string_lossy()).map_err(|e| self.named(index, e))?;
        match (frames.pop(), frames.is_empty()) {
            (Some(frame), true) => Ok(frame),
            _ => Err(self.named(index, Error::input("expected one structure"))),
        }
    }

    fn named(&self, index: usize, error: Error) -> Error {
        let line = self.places[index].line;
        error.context(format!("structure {} (from line {line} on)", index + 1)).at(&self.path)
    }

    fn example(&self, frame: Frame) -> Result<Example> {
        let Keys { energy, forces, stress, virial } = &self.keys;
        check(&frame.atoms)?;
        let in_comment = |key: &str, count: &[usize]| -> Result<Option<Vec<f64>>> {
            let Some(text) = frame.info.get(key) else { return Ok(None) };
            let found = numbers(text).filter(|numbers| count.contains(&numbers.len()));
            found.map(Some).ok_or_else(|| {
                let count: Vec<String> = count.iter().map(usize::to_string).collect();
                Error::input(format!(
                    "{key} must be {} finite numbers, found \"{text:.60}\"",
                    count.join(" or ")
                ))
            })
        };
        let energy = match energy.as_deref() {
            None => None,
            Some("energy") => frame.energy,
            Some(key) => in_comment(key, &[1])?.map(|numbers| numbers[0]),
        };
        let forces = match forces.as_deref() {
            None => None,
            Some("forces") => frame.forces.clone(),
            Some(key) => column_forces(&frame, key)?,
        };
        let needs_cell = |key: &str| match frame.atoms.cell.filter(|cell| cell::volume(cell) > 0.0) {
            Some(found) => Ok(cell::volume(&found)),
            None => Err(Error::input(format!("{key} is given for a structure without a cell"))),
        };
        let stress = match (stress.as_deref(), virial.as_deref()) {
            (Some("stress"), _) => frame.stress,
            (Some(key), _) => in_comment(key, &[6, 9])?.map(voigt),
            (None, Some(key)) => match in_comment(key, &[6, 9])? {
                None => None,
                Some(virial) => {
                    let volume = needs_cell(key)?;
                    Some(voigt(virial).map(|value| -value / volume))
                }
            },
            (None, None) => None,
        };
        if stress.is_some() {
            needs_cell("a stress")?;
        }
        if energy.is_none() && forces.is_none() && stress.is_none() {
            return Err(Error::input("there is no energy, no forces and no stress to learn"));
        }
        Ok(Example::Atoms { atoms: frame.atoms, energy, forces, stress })
    }
}

/// The forces of a column of another name.
fn column_forces(frame: &Frame, key: &str) -> Result<Option<Vec<[f64; 3]>>> {
    let Some(column) = frame.columns.iter().find(|column| column.name == key) else { return Ok(None) };
    if column.width != 3 {
        return Err(Error::input(format!(
            "the column {key} has {} numbers per atom, expected 3",
            column.width
        )));
    }
    let values: Option<Vec<f64>> = column.values.iter().map(|word| number(word)).collect();
    match values {
        Some(values) => Ok(Some(values.as_chunks::<3>().0.to_vec())),
        None => Err(Error::input(format!("the column {key} has a value that is not a finite number"))),
    }
}

fn number(word: &str) -> Option<f64> {
    word.parse().ok().filter(|value: &f64| value.is_finite())
}

fn numbers(text: &str) -> Option<Vec<f64>> {
    let is_between = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    text.split(is_between).filter(|word| !word.is_empty()).map(number).collect()
}

/// Nine numbers row by row, or six, as xx, yy, zz, yz, xz, xy.
fn voigt(numbers: Vec<f64>) -> [f64; 6] {
    match numbers[..] {
        [xx, xy, xz, yx, yy, yz, zx, zy, zz] => {
            [xx, yy, zz, (yz + zy) / 2.0, (xz + zx) / 2.0, (xy + yx) / 2.0]
        }
        _ => std::array::from_fn(|i| numbers.get(i).copied().unwrap_or(0.0)),
    }
}

impl Source for Structures {
    fn len(&self) -> usize {
        self.places.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        self.example(self.frame(index)?).map_err(|e| self.named(index, e))
    }
}
