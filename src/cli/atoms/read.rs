//! Reading of structure files, and checks of which structures the model can evaluate.

use std::collections::BTreeSet;

use fauna::atoms::{check, files};
use fauna::model::{Evaluation, Potential};
use fauna::progress::{Progress, Unit};
use fauna::{Atoms, Error, Result};

use super::{AtomsInput, Named};
use crate::cli::Context;

/// Results of other calculators, which do not apply to the results computed here.
const FOUND_ELSEWHERE: [&str; 10] = [
    "free_energy",
    "virial",
    "virials",
    "dipole",
    "stresses",
    "energies",
    "local_energy",
    "energy_per_atom",
    "Energy",
    "Virial",
];
/// Velocities, which are initialized anew.
const MOTION: [&str; 4] = ["momenta", "velo", "velocities", "vel"];

/// Removes charge and spin, for models that do not use them, and prints a note.
pub fn forget_charge(structures: &mut [Named], context: &Context) {
    let has_some = |named: &&mut Named| named.atoms.charge.is_some() || named.atoms.spin.is_some();
    let mut told = false;
    for named in structures.iter_mut().filter(has_some) {
        (named.atoms.charge, named.atoms.spin) = (None, None);
        if !std::mem::replace(&mut told, true) {
            context
                .say("this model does not use charge and spin: the given values are ignored and not written");
        }
    }
}

/// Reads the structures of the file, and prints notes on data that is not used.
///
/// # Errors
/// A file that is not a valid structure file.
pub fn read(input: &AtomsInput, moves: bool, context: &Context) -> Result<Vec<Named>> {
    let path = &input.atoms;
    let frames = files::read(path)?;
    let several = frames.len() > 1;
    let (mut elsewhere, mut motion) = (BTreeSet::new(), BTreeSet::new());
    let named = frames.into_iter().enumerate().map(|(index, mut frame)| {
        let mut atoms = std::mem::take(&mut frame.atoms);
        let is_known = |names: &[&str], name: &str| names.contains(&name);
        frame.info.retain(|name, _| {
            let kept = !is_known(&FOUND_ELSEWHERE, name);
            if !kept {
                elsewhere.insert(name.clone());
            }
            kept
        });
        frame.columns.retain(|column| {
            let (found, moved) =
                (is_known(&FOUND_ELSEWHERE, &column.name), moves && is_known(&MOTION, &column.name));
            if found {
                elsewhere.insert(column.name.clone());
            }
            if moved {
                motion.insert(column.name.clone());
            }
            !(found || moved)
        });
        atoms.charge = atoms.charge.or(input.charge);
        atoms.spin = atoms.spin.or(input.spin);
        let name = match several {
            true => format!("{}: structure {}", path.display(), index + 1),
            false => path.display().to_string(),
        };
        frame.notes.iter().for_each(|note| context.say(&format!("{name}: {note}")));
        let held = atoms.held.iter().filter(|axes| axes.contains(&true)).count();
        if held > 0 && moves {
            context.say(&format!(
                "{name}: {held} of {} atoms are fixed by the constraints of the file",
                atoms.numbers.len()
            ));
        }
        Named { name, atoms, kept: frame }
    });
    let named = named.collect();
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    if !elsewhere.is_empty() {
        context
            .say(&format!("not written, since they are results of another calculator: {}", list(elsewhere)));
    }
    if !motion.is_empty() {
        context.say(&format!("not used and not written: {}; velocities are initialized anew", list(motion)));
    }
    Ok(named)
}

/// Evaluates structures.
pub struct Structures<'a> {
    pub potential: &'a dyn Potential,
    pub context: &'a Context,
}

impl Structures<'_> {
    /// Returns the structures that can be evaluated, with their results; the others are reported.
    pub fn good(&self, structures: Vec<Named>) -> Result<Vec<(Named, Evaluation)>> {
        let bar = self.context.bars.begin("structures", Unit::Items, Some(structures.len() as u64));
        let mut good = Vec::new();
        for chunk in chunks(structures) {
            self.context.interrupt.check()?;
            let size = chunk.len() as u64;
            match self.potential.evaluate(&clones(&chunk)) {
                Ok(evaluations) if evaluations.len() == chunk.len() => {
                    good.extend(chunk.into_iter().zip(evaluations));
                }
                Ok(evaluations) => {
                    return Err(Error::new(
                        fauna::ErrorKind::Mismatch,
                        format!("the model returned {} energies for {size} structures", evaluations.len()),
                    ));
                }
                // The batch failed: evaluate the structures one by one.
                Err(_) => good.extend(chunk.into_iter().filter_map(|named| self.alone(named))),
            }
            bar.advance(size);
        }
        match good.is_empty() {
            true => Err(Error::input("no structure could be evaluated")),
            false => Ok(good),
        }
    }

    fn alone(&self, named: Named) -> Option<(Named, Evaluation)> {
        let evaluated =
            check(&named.atoms).and_then(|()| self.potential.evaluate(std::slice::from_ref(&named.atoms)));
        match evaluated.map(|mut evaluations| evaluations.pop()) {
            Ok(Some(evaluation)) => Some((named, evaluation)),
            Ok(None) => None,
            Err(error) => {
                self.context.complain(&error.context(&named.name).to_string());
                None
            }
        }
    }
}

/// Splits the structures into batches.
fn chunks(mut structures: Vec<Named>) -> Vec<Vec<Named>> {
    const STRUCTURES: usize = 16;
    let mut chunks = Vec::new();
    while !structures.is_empty() {
        let rest = structures.split_off(STRUCTURES.min(structures.len()));
        chunks.push(std::mem::replace(&mut structures, rest));
    }
    chunks
}

/// Returns the atoms of each structure.
pub fn clones(named: &[Named]) -> Vec<Atoms> {
    named.iter().map(|named| named.atoms.clone()).collect()
}
