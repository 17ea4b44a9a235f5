//! Analytic potentials for tests.

use fauna_shared::item::Atoms;
use fauna_shared::model::{Evaluation, Potential};
use fauna_shared::{Error, Result};

use super::{cell, neighbor_list};

/// `4 ε ((σ/r)¹² - (σ/r)⁶)`, shifted and tilted so that energy and force end at the cutoff.
pub struct LennardJones {
    pub depth: f64,
    pub size: f64,
    pub cutoff: f64,
}

impl LennardJones {
    pub const ARGON: Self = Self { depth: 0.0104, size: 3.4, cutoff: 8.5 };

    /// Energy and slope of a pair.
    fn pair(&self, r: f64) -> (f64, f64) {
        let bare = |r: f64| {
            let sixth = (self.size / r).powi(6);
            let energy = 4.0 * self.depth * (sixth * sixth - sixth);
            (energy, -24.0 * self.depth * (2.0 * sixth * sixth - sixth) / r)
        };
        let ((energy, slope), (end, tilt)) = (bare(r), bare(self.cutoff));
        (energy - end - (r - self.cutoff) * tilt, slope - tilt)
    }
}

impl Potential for LennardJones {
    fn evaluate(&self, structures: &[Atoms]) -> Result<Vec<Evaluation>> {
        structures.iter().map(|atoms| self.one(atoms)).collect()
    }

    fn is_conservative(&self) -> bool {
        true
    }
}

impl LennardJones {
    fn one(&self, atoms: &Atoms) -> Result<Evaluation> {
        let near = neighbor_list(&atoms.positions, atoms.cell.as_ref(), atoms.periodic, self.cutoff)?;
        let mut found = Evaluation { forces: vec![[0.0; 3]; atoms.positions.len()], ..Evaluation::default() };
        let mut virial = [[0.0; 3]; 3];
        for (sender, vector) in near.senders.iter().zip(&near.vectors) {
            let r = cell::norm(vector);
            if r < 0.1 {
                return Err(Error::input("atoms overlap"));
            }
            let (energy, slope) = self.pair(r);
            found.energy += energy / 2.0;
            for i in 0..3 {
                found.forces[*sender as usize][i] += slope * vector[i] / r;
                for j in 0..3 {
                    virial[i][j] += slope * vector[i] * vector[j] / r / 2.0;
                }
            }
        }
        found.stress = atoms.cell.map(|cell| {
            let volume = cell::volume(&cell);
            [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)].map(|(i, j)| virial[i][j] / volume)
        });
        Ok(found)
    }
}

/// A spring between every two atoms.
pub struct Springs {
    pub stiffness: f64,
    pub rest: f64,
}

impl Potential for Springs {
    fn evaluate(&self, structures: &[Atoms]) -> Result<Vec<Evaluation>> {
        let one = |atoms: &Atoms| {
            let mut found =
                Evaluation { forces: vec![[0.0; 3]; atoms.positions.len()], ..Evaluation::default() };
            for i in 0..atoms.positions.len() {
                for j in 0..i {
                    let vector = cell::difference(&atoms.positions[j], &atoms.positions[i]);
                    let stretch = cell::norm(&vector) - self.rest;
                    found.energy += 0.5 * self.stiffness * stretch * stretch;
                    let force = vector.map(|v| self.stiffness * stretch * v / cell::norm(&vector));
                    found.forces[i] = cell::sum(&found.forces[i], &force);
                    found.forces[j] = cell::difference(&found.forces[j], &force);
                }
            }
            found
        };
        Ok(structures.iter().map(one).collect())
    }

    fn is_conservative(&self) -> bool {
        true
    }
}

/// Face-centred cubic argon, `count` cubes along each axis.
pub fn argon(count: usize) -> Atoms {
    let side = 5.26;
    let mut atoms = Atoms { periodic: [true; 3], ..Atoms::default() };
    for cube in 0..count * count * count {
        let corner = [cube % count, cube / count % count, cube / count / count];
        for place in [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]] {
            atoms.numbers.push(18);
            atoms.positions.push(std::array::from_fn(|i| side * (corner[i] as f64 + place[i])));
        }
    }
    let whole = side * count as f64;
    atoms.cell = Some([[whole, 0.0, 0.0], [0.0, whole, 0.0], [0.0, 0.0, whole]]);
    atoms
}
