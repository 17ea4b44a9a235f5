//! Checks of structures before a potential reads them.

use fauna_shared::item::Atoms;
use fauna_shared::{Error, Result};

use super::cell;
use super::elements;

/// Minimum distance of two atoms, in Å: nearer ones overlap, probably because one atom was given twice. (The bond of a
/// hydrogen molecule has 0.74 Å.)
pub const MIN_DISTANCE: f64 = 0.1;

/// Checks a structure: at least one atom, valid atomic numbers, finite positions and cell, cell vectors that are linearly
/// independent in the periodic directions.
///
/// Overlapping atoms are found by [`pair_within`](crate::pair_within) of [`MIN_DISTANCE`].
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) naming the error, with the index of the atom.
pub fn check(atoms: &Atoms) -> Result<()> {
    if atoms.numbers.is_empty() {
        return Err(Error::input("there are no atoms"));
    }
    if atoms.numbers.len() != atoms.positions.len() {
        return Err(Error::input(format!(
            "{} atomic numbers and {} positions",
            atoms.numbers.len(),
            atoms.positions.len()
        )));
    }
    if let Some(index) = atoms.numbers.iter().position(|number| elements::symbol(*number).is_none()) {
        return Err(Error::input(format!(
            "atom {index} has the atomic number {}, which is not an element",
            atoms.numbers[index]
        ))
        .hint(format!("atomic numbers go from 1 to {}", elements::MAX_ATOMIC_NUMBER)));
    }
    let is_finite = |vector: &[f64; 3]| vector.iter().all(|value| value.is_finite());
    if let Some(index) = atoms.positions.iter().position(|position| !is_finite(position)) {
        return Err(Error::input(format!("the position of atom {index} is {:?}", atoms.positions[index])));
    }
    if let Some(cell) = atoms.cell.as_ref().filter(|cell| !cell.iter().all(is_finite)) {
        return Err(Error::input(format!("the cell is {cell:?}")));
    }
    for (name, value) in [("charge", atoms.charge), ("spin multiplicity", atoms.spin)] {
        if let Some(value) = value.filter(|value| !value.is_finite()) {
            return Err(Error::input(format!("the {name} is {value}")));
        }
    }
    for (name, count) in [("flags of fixed atoms", atoms.held.len()), ("masses", atoms.masses.len())] {
        if count > 0 && count != atoms.numbers.len() {
            return Err(Error::input(format!("{count} {name} for {} atoms", atoms.numbers.len())));
        }
    }
    if let Some(mass) = atoms.masses.iter().find(|mass| !(mass.is_finite() && **mass > 0.0)) {
        return Err(Error::input(format!("a mass must be above 0, got {mass}")));
    }
    if atoms.periodic != [false; 3] {
        cell::complete_cell(&atoms.cell.unwrap_or_default(), atoms.periodic)?;
    }
    Ok(())
}

/// Checks charge and spin multiplicity: both are integers, the multiplicity is at least 1, odd for an even number of
/// electrons and even for an odd one.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) with the possible multiplicities.
pub fn check_spin(atoms: &Atoms) -> Result<()> {
    let (Some(charge), Some(spin)) = (atoms.charge, atoms.spin) else { return Ok(()) };
    let protons: u64 = atoms.numbers.iter().map(|number| u64::from(*number)).sum();
    let electrons = protons as f64 - charge;
    if charge.fract() != 0.0 || electrons < 0.0 || !charge.is_finite() {
        return Err(Error::input(format!("the charge is {charge}; the nuclei have {protons}"))
            .hint("a charge is an integer, at most that of the nuclei"));
    }
    if spin.fract() != 0.0 || spin < 1.0 || !spin.is_finite() {
        return Err(Error::input(format!("the spin multiplicity is {spin}"))
            .hint("it is the number of unpaired electrons plus one: 1 for a singlet, 2 for a radical, 3 for a triplet"));
    }
    if (electrons - (spin - 1.0)) % 2.0 != 0.0 || spin - 1.0 > electrons {
        let kind = if electrons % 2.0 == 0.0 { "odd: 1, 3, ..." } else { "even: 2, 4, ..." };
        return Err(Error::input(format!("{electrons} electrons cannot have the spin multiplicity {spin}"))
            .hint(format!(
                "with charge {charge} the multiplicity is {kind} (charge= and spin= in extended XYZ)"
            ))
            .set("or set the charge", "Atoms::charge", "Q")
            .set("or the multiplicity", "Atoms::spin", "M"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> Atoms {
        Atoms { numbers: vec![1], positions: vec![[0.0; 3]], ..Atoms::default() }
    }

    #[test]
    fn errors_name_the_cause() {
        let cell = Some([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]);
        let cases = [
            (Atoms::default(), "no atoms"),
            (Atoms { positions: vec![], ..one() }, "1 atomic numbers and 0 positions"),
            (Atoms { numbers: vec![119], ..one() }, "the atomic number 119"),
            (Atoms { numbers: vec![0], ..one() }, "the atomic number 0"),
            (Atoms { positions: vec![[0.0, f64::NAN, 0.0]], ..one() }, "position of atom 0"),
            (Atoms { cell: Some([[f64::INFINITY; 3]; 3]), ..one() }, "the cell is"),
            (Atoms { charge: Some(f64::NAN), ..one() }, "the charge is NaN"),
            (Atoms { periodic: [true; 3], ..one() }, "cell vector 1 is periodic and zero"),
            (Atoms { periodic: [true; 3], cell, ..one() }, "singular"),
        ];
        for (atoms, wanted) in cases {
            let error = check(&atoms).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(check(&one()).is_ok());
    }
}
