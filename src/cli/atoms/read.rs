//! Structures from files, and which of them the model can evaluate.

use std::collections::BTreeSet;

use fauna::model::{Evaluation, Potential};
use fauna::progress::{Progress, Unit};
use fauna::science::atoms::{check, files};
use fauna::{Atoms, Error, Result};

use super::{AtomsInput, Named};
use crate::cli::Context;

/// What another model found, which does not hold of what is computed here.
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
/// Motion of the atoms, which begins anew here.
const MOTION: [&str; 4] = ["momenta", "velo", "velocities", "vel"];

/// Says that charge and spin are not read, and takes them away, so that no result names them.
pub fn forget_charge(structures: &mut [Named], context: &Context) {
    let has_some = |named: &&mut Named| named.atoms.charge.is_some() || named.atoms.spin.is_some();
    let mut told = false;
    for named in structures.iter_mut().filter(has_some) {
        (named.atoms.charge, named.atoms.spin) = (None, None);
        if !std::mem::replace(&mut told, true) {
            context.say("this model reads no charge and no spin: those that are given change nothing and are not written");
        }
    }
}

/// The structures of the file, with a word on what of it is not used.
///
/// # Errors
/// A file that is none of structures.
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
                "{name}: {held} of {} atoms are held in place as the file says",
                atoms.numbers.len()
            ));
        }
        Named { name, atoms, kept: frame }
    });
    let named = named.collect();
    let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
    if !elsewhere.is_empty() {
        context.say(&format!("not written again, since another model found them: {}", list(elsewhere)));
    }
    if !motion.is_empty() {
        context.say(&format!("not used and not written again: {}; velocities begin anew", list(motion)));
    }
    Ok(named)
}

/// Finds out which structures can be done.
pub struct Structures<'a> {
    pub potential: &'a dyn Potential,
    pub context: &'a Context,
}

impl Structures<'_> {
    /// Those that can be evaluated, with what they evaluate to; each of the others is named.
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
                        format!("the model gave {} energies for {size} structures", evaluations.len()),
                    ));
                }
                // One of them cannot be done: each by itself.
                Err(_) => good.extend(chunk.into_iter().filter_map(|named| self.alone(named))),
            }
            bar.advance(size);
        }
        match good.is_empty() {
            true => Err(Error::input("no structure could be done")),
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

/// In pieces that are evaluated at once.
fn chunks(mut structures: Vec<Named>) -> Vec<Vec<Named>> {
    const STRUCTURES: usize = 16;
    let mut chunks = Vec::new();
    while !structures.is_empty() {
        let rest = structures.split_off(STRUCTURES.min(structures.len()));
        chunks.push(std::mem::replace(&mut structures, rest));
    }
    chunks
}

/// The atoms of each.
pub fn clones(named: &[Named]) -> Vec<Atoms> {
    named.iter().map(|named| named.atoms.clone()).collect()
}
