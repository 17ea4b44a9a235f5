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
    if atoms.periodic != [false; 3] {
        cell::basis(&atoms.cell.unwrap_or_default(), atoms.periodic)?;
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
