//! Constraints: atoms that are fixed in all or some directions.

use fauna_shared::item::Atoms;

use super::cell::{self, IDENTITY, Matrix, Vector};

/// Constraints of the atoms of a structure, as projections onto the directions in which they may move.
///
/// An atom may be fixed along x, y and z (`FixAtoms` and `FixCartesian` in ASE), or along cell vectors, where its
/// fractional coordinates are fixed (`FixScaled` in ASE) and it moves in the span of the other vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct Constraints {
    /// One projection per atom; empty if none is fixed.
    free: Vec<Matrix>,
}

impl Constraints {
    /// The constraints of `atoms` in their present cell.
    pub fn of(atoms: &Atoms) -> Self {
        if atoms.held.iter().flatten().all(|held| !held) {
            return Self { free: Vec::new() };
        }
        let axes = match atoms.cell.filter(|_| atoms.held_along_cell) {
            Some(cell) => cell,
            None => IDENTITY,
        };
        Self { free: atoms.held.iter().map(|held| projection(&axes, *held)).collect() }
    }

    /// Whether any atom is fixed.
    pub fn hold_any(&self) -> bool {
        !self.free.is_empty()
    }

    /// Projects `vectors`, one per atom, onto the directions in which the atoms may move.
    pub fn apply(&self, vectors: &mut [Vector]) {
        for (vector, free) in vectors.iter_mut().zip(&self.free) {
            *vector = cell::times(vector, free);
        }
    }

    /// Number of degrees of freedom of `count` atoms.
    pub fn degrees_of_freedom(&self, count: usize) -> usize {
        if !self.hold_any() {
            return 3 * count;
        }
        // The trace of a projection is its rank.
        let rank = |free: &Matrix| (free[0][0] + free[1][1] + free[2][2]).round() as usize;
        self.free.iter().map(rank).sum()
    }
}

/// The projection onto the span of the `axes` that are not fixed, by Gram-Schmidt.
fn projection(axes: &Matrix, held: [bool; 3]) -> Matrix {
    let mut free: Matrix = [[0.0; 3]; 3];
    let mut kept: Vec<Vector> = Vec::new();
    for (axis, held) in axes.iter().zip(held) {
        if held {
            continue;
        }
        let along = kept.iter().fold(*axis, |left, unit| {
            let share = cell::dot(&left, unit);
            cell::difference(&left, &unit.map(|value| share * value))
        });
        let length = cell::norm(&along);
        if length > 1e-9 * cell::norm(axis) {
            kept.push(along.map(|value| value / length));
        }
    }
    for unit in kept {
        for i in 0..3 {
            for j in 0..3 {
                free[i][j] += unit[i] * unit[j];
            }
        }
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_atoms_do_not_move() {
        let atoms = Atoms {
            numbers: vec![1; 3],
            positions: vec![[0.0; 3]; 3],
            held: vec![[true; 3], [true, false, false], [false; 3]],
            ..Atoms::default()
        };
        let constraints = Constraints::of(&atoms);
        let mut forces = vec![[1.0, 2.0, 3.0]; 3];
        constraints.apply(&mut forces);
        assert_eq!(forces, [[0.0; 3], [0.0, 2.0, 3.0], [1.0, 2.0, 3.0]]);
        assert_eq!(constraints.degrees_of_freedom(3), 5);
        let none = Constraints::of(&Atoms { held: vec![[false; 3]; 3], ..atoms });
        assert!(!none.hold_any() && none.degrees_of_freedom(3) == 9);
    }

    #[test]
    fn fixed_cell_directions_keep_fractional_coordinates() {
        let lattice = [[3.0, 0.0, 0.0], [1.0, 4.0, 0.0], [0.5, 0.2, 5.0]];
        let atoms = Atoms {
            numbers: vec![1; 2],
            positions: vec![[0.3; 3]; 2],
            cell: Some(lattice),
            held: vec![[false, true, true], [false, false, true]],
            held_along_cell: true,
            ..Atoms::default()
        };
        let constraints = Constraints::of(&atoms);
        let mut moves = vec![[0.4, -0.3, 0.7]; 2];
        constraints.apply(&mut moves);
        let inverse = cell::inverse(&lattice);
        let fractions: Vec<Vector> = moves.iter().map(|moved| cell::times(moved, &inverse)).collect();
        assert!(fractions[0][1].abs() < 1e-12 && fractions[0][2].abs() < 1e-12 && fractions[0][0] != 0.0);
        assert!(fractions[1][2].abs() < 1e-12 && fractions[1][1] != 0.0);
        assert_eq!(constraints.degrees_of_freedom(2), 3);
    }
}
