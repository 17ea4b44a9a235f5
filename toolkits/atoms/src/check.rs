//! What any model of atoms wants of a structure.

use fauna_shared::item::Atoms;
use fauna_shared::{Error, Result};

use super::cell;
use super::elements;

/// Nearer than this, in Å, two atoms overlap: no chemistry brings nuclei so near (a hydrogen molecule has 0.74 Å), so
/// one atom was given twice.
pub const CLOSEST: f64 = 0.1;

/// Checks that `atoms` are a structure: there are some, all are elements and each has a finite position; the cell is
/// finite and spans space in every direction that repeats.
///
/// Overlaps are found where neighbours are looked for: atoms nearer than [`CLOSEST`] are an error of every model.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) that says what is wrong, and of which atom.
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
            "atom {index} is no element: its number is {}",
            atoms.numbers[index]
        ))
        .hint(format!("atomic numbers go from 1 to {}", elements::LARGEST)));
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
    for (name, count) in [("flags of what is held", atoms.held.len()), ("masses", atoms.masses.len())] {
        if count > 0 && count != atoms.numbers.len() {
            return Err(Error::input(format!("{count} {name} for {} atoms", atoms.numbers.len())));
        }
    }
    if let Some(mass) = atoms.masses.iter().find(|mass| !(mass.is_finite() && **mass > 0.0)) {
        return Err(Error::input(format!("a mass is above 0, not {mass}")));
    }
    if atoms.periodic != [false; 3] {
        cell::basis(&atoms.cell.unwrap_or_default(), atoms.periodic)?;
    }
    Ok(())
}

/// Checks that the electrons of `atoms` can have their spin multiplicity: charge and multiplicity are whole, the
/// multiplicity is 1 or more, odd for an even number of electrons and even for an odd one.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) that says which multiplicities are possible.
pub fn check_spin(atoms: &Atoms) -> Result<()> {
    let (Some(charge), Some(spin)) = (atoms.charge, atoms.spin) else { return Ok(()) };
    let protons: u64 = atoms.numbers.iter().map(|number| u64::from(*number)).sum();
    let electrons = protons as f64 - charge;
    if charge.fract() != 0.0 || electrons < 0.0 || !charge.is_finite() {
        return Err(Error::input(format!("the charge is {charge}; the nuclei have {protons}"))
            .hint("a charge is a whole number, and no larger than that of the nuclei"));
    }
    if spin.fract() != 0.0 || spin < 1.0 || !spin.is_finite() {
        return Err(Error::input(format!("the spin multiplicity is {spin}"))
            .hint("it is the number of unpaired electrons and one: 1 for a singlet, 2 for a radical, 3 for a triplet"));
    }
    if (electrons - (spin - 1.0)) % 2.0 != 0.0 || spin - 1.0 > electrons {
        let kind = if electrons % 2.0 == 0.0 { "odd: 1, 3, ..." } else { "even: 2, 4, ..." };
        return Err(Error::input(format!("{electrons} electrons cannot have the spin multiplicity {spin}"))
            .hint(format!("with charge {charge} the multiplicity is {kind} (--charge and --spin, or charge= and spin= in extended XYZ)")));
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
    fn each_fault_is_named() {
        let cell = Some([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]);
        let cases = [
            (Atoms::default(), "no atoms"),
            (Atoms { positions: vec![], ..one() }, "1 atomic numbers and 0 positions"),
            (Atoms { numbers: vec![119], ..one() }, "its number is 119"),
            (Atoms { numbers: vec![0], ..one() }, "its number is 0"),
            (Atoms { positions: vec![[0.0, f64::NAN, 0.0]], ..one() }, "position of atom 0"),
            (Atoms { cell: Some([[f64::INFINITY; 3]; 3]), ..one() }, "the cell is"),
            (Atoms { charge: Some(f64::NAN), ..one() }, "the charge is NaN"),
            (Atoms { periodic: [true; 3], ..one() }, "cell vector 1 repeats and is zero"),
            (Atoms { periodic: [true; 3], cell, ..one() }, "singular"),
        ];
        for (atoms, wanted) in cases {
            let error = check(&atoms).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(check(&one()).is_ok());
    }
}
