//! Electrostatics of latent charges: the direct sum for a molecule, the Ewald sum for a crystal.
//!
//! The gradient by the charges is backpropagated through the network; the forces and the stress at fixed charges are
//! computed here.

use fauna_shared::{Error, Result};

use super::Structure;
use fauna_atoms::cell::{self, Matrix, Vector};
use fauna_atoms::neighbor_list;

/// Electrostatic energy and its gradients.
#[derive(Debug)]
pub(super) struct Field {
    /// Energy in eV.
    pub energy: f64,
    /// Gradient of the energy by each charge, in eV.
    pub potentials: Vec<f64>,
    /// Forces at fixed charges, in eV/Å.
    pub forces: Vec<Vector>,
    /// Gradient of the energy by strain at fixed charges, in eV; zero without a cell.
    pub strain: Matrix,
}

/// Cutoff of both sums in units of their width; `exp(-TAIL²)` is 5e-12.
const TAIL: f64 = 5.1;

/// The electrostatics of `charges` in `structure`; `constant` is the Coulomb constant in eV Å.
///
/// A charged crystal has a neutralising background.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a partly periodic structure.
pub(super) fn field(structure: &Structure, charges: &[f64], constant: f64) -> Result<Field> {
    let mut field = match structure.periodic {
        [false, false, false] => direct(&structure.positions, charges),
        [true, true, true] => ewald(structure, charges)?,
        _ => {
            return Err(Error::unsupported(
                "electrostatics of a partly periodic structure are not implemented",
            )
            .hint("make all directions periodic, with vacuum along the others"));
        }
    };
    field.energy *= constant;
    field.potentials.iter_mut().for_each(|value| *value *= constant);
    field.forces.iter_mut().flatten().for_each(|value| *value *= constant);
    field.strain.iter_mut().flatten().for_each(|value| *value *= constant);
    Ok(field)
}

impl Field {
    fn empty(count: usize) -> Self {
        Self {
            energy: 0.0,
            potentials: vec![0.0; count],
            forces: vec![[0.0; 3]; count],
            strain: [[0.0; 3]; 3],
        }
    }

    /// Adds the interaction of a charge with another at `vector`, whose potential by distance is `value` with the derivative
    /// `slope`.
    fn add(&mut self, node: usize, charges: (f64, f64), vector: &Vector, (value, slope): (f64, f64)) {
        let (own, other) = charges;
        self.potentials[node] += other * value;
        let pull = own * other * slope / cell::norm(vector);
        self.forces[node] = cell::sum(&self.forces[node], &vector.map(|x| pull * x));
        for (i, row) in self.strain.iter_mut().enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                *entry += 0.5 * pull * vector[i] * vector[j];
            }
        }
    }

    fn with_energy(mut self, charges: &[f64]) -> Self {
        self.energy = 0.5 * self.potentials.iter().zip(charges).map(|(a, b)| a * b).sum::<f64>();
        self
    }
}

/// The direct sum of `q q / r` over all pairs.
fn direct(positions: &[Vector], charges: &[f64]) -> Field {
    let mut field = Field::empty(positions.len());
    for i in 0..positions.len() {
        for j in (0..positions.len()).filter(|j| *j != i) {
            let vector = cell::difference(&positions[j], &positions[i]);
            let r = cell::norm(&vector);
            field.add(i, (charges[i], charges[j]), &vector, (1.0 / r, -1.0 / (r * r)));
        }
    }
    // A molecule has no stress.
    field.strain = [[0.0; 3]; 3];
    field.with_energy(charges)
}

/// The Ewald sum (Ewald 1921).
fn ewald(structure: &Structure, charges: &[f64]) -> Result<Field> {
    let count = structure.len();
    let volume = cell::volume(&structure.cell);
    let pi = std::f64::consts::PI;
    // The width at which both sums cost about the same.
    let width = (count as f64 * pi.powi(3) / (volume * volume)).powf(1.0 / 6.0);
    let mut field = Field::empty(count);
    let near = neighbor_list(&structure.positions, Some(&structure.cell), structure.periodic, TAIL / width)?;
    for ((sender, receiver), vector) in near.senders.iter().zip(&near.receivers).zip(&near.vectors) {
        let (i, j, r) = (*sender as usize, *receiver as usize, cell::norm(vector));
        let value = libm::erfc(width * r) / r;
        let slope = -value / r - 2.0 * width / pi.sqrt() * (-(width * r).powi(2)).exp() / r;
        field.add(i, (charges[i], charges[j]), vector, (value, slope));
    }
    let waves = wave_vectors(structure, 2.0 * width * TAIL)?;
    for wave in &waves {
        add_wave(&mut field, structure, charges, wave, (width, volume));
    }
    let total: f64 = charges.iter().sum();
    for (potential, charge) in field.potentials.iter_mut().zip(charges) {
        *potential -= 2.0 * width / pi.sqrt() * charge + pi * total / (width * width * volume);
    }
    let background = -pi * total * total / (2.0 * width * width * volume);
    for (axis, row) in field.strain.iter_mut().enumerate() {
        row[axis] -= background;
    }
    Ok(field.with_energy(charges))
}

/// Maximum number of wave vectors.
const MAX_WAVES: f64 = 1e7;

/// The wave vectors of the reciprocal lattice up to the length `longest`, one of each opposite pair.
fn wave_vectors(structure: &Structure, longest: f64) -> Result<Vec<Vector>> {
    let reciprocal = cell::transpose(&cell::inverse(&structure.cell));
    let tau = std::f64::consts::TAU;
    let reach = structure.cell.map(|vector| (longest * cell::norm(&vector) / tau).floor());
    if reach.iter().map(|reach| 2.0 * reach + 1.0).product::<f64>() > MAX_WAVES {
        return Err(Error::input("the cell is too large or too anisotropic for the Ewald sum"));
    }
    let [a, b, c] = reach.map(|reach| reach as i64);
    let mut waves = Vec::new();
    for x in 0..=a {
        for y in -b..=b {
            for z in -c..=c {
                // Of an opposite pair, the one whose first nonzero component is positive.
                if [x, y, z].into_iter().find(|value| *value != 0).is_none_or(|first| first < 0) {
                    continue;
                }
                let wave = cell::times(&[x, y, z].map(|value| tau * value as f64), &reciprocal);
                if cell::dot(&wave, &wave) <= longest * longest {
                    waves.push(wave);
                }
            }
        }
    }
    Ok(waves)
}

/// Adds the terms of a wave vector and its opposite.
fn add_wave(field: &mut Field, structure: &Structure, charges: &[f64], wave: &Vector, of: (f64, f64)) {
    let (width, volume) = of;
    let square = cell::dot(wave, wave);
    let strength =
        2.0 * 4.0 * std::f64::consts::PI / square * (-square / (4.0 * width * width)).exp() / volume;
    let angles = structure.positions.iter().map(|position| cell::dot(wave, position).sin_cos());
    let angles: Vec<(f64, f64)> = angles.collect();
    let pairs = || angles.iter().zip(charges);
    let even: f64 = pairs().map(|((_, cos), charge)| charge * cos).sum();
    let odd: f64 = pairs().map(|((sin, _), charge)| charge * sin).sum();
    for (index, ((sin, cos), charge)) in pairs().enumerate() {
        field.potentials[index] += strength * (cos * even + sin * odd);
        let pull = charge * strength * (sin * even - cos * odd);
        field.forces[index] = cell::sum(&field.forces[index], &wave.map(|value| pull * value));
    }
    let energy = 0.5 * strength * (even * even + odd * odd);
    let along = 2.0 * (1.0 / square + 1.0 / (4.0 * width * width));
    for i in 0..3 {
        for j in 0..3 {
            let stays = if i == j { 1.0 } else { 0.0 };
            field.strain[i][j] += energy * (along * wave[i] * wave[j] - stays);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fauna_atoms::NeighborList;

    fn crystal(positions: Vec<Vector>, cell: Matrix) -> Structure {
        Structure {
            numbers: vec![11; positions.len()],
            positions,
            cell,
            periodic: [true; 3],
            charge: None,
            spin: None,
            edges: NeighborList::default(),
        }
    }

    const SKEWED: Matrix = [[5.0, 0.3, 0.0], [-0.8, 4.5, 0.2], [0.4, 0.0, 6.0]];

    fn made_up() -> (Structure, Vec<f64>) {
        let positions = vec![[0.1, 0.2, 0.3], [2.0, 2.5, 1.0], [4.0, 1.0, 3.5], [1.0, 3.0, 5.0]];
        (crystal(positions, SKEWED), vec![0.7, -0.4, 0.5, -0.3])
    }

    #[test]
    fn rock_salt_has_the_constant_of_madelung() {
        // The conventional cell, nearest neighbours 1 Å apart: -1.747565 for each pair of ions.
        let mut positions = Vec::new();
        let mut charges = Vec::new();
        for place in 0..8 {
            let corner = [place & 1, place >> 1 & 1, place >> 2 & 1];
            positions.push(corner.map(f64::from));
            charges.push(if corner.iter().sum::<i32>() % 2 == 0 { 1.0 } else { -1.0 });
        }
        let cube = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]];
        let found = field(&crystal(positions, cube), &charges, 1.0).unwrap();
        assert!((found.energy / 4.0 + 1.747_564_594_633).abs() < 1e-9, "{}", found.energy / 4.0);
        // It scales as one over the length, and the cube is strained alike in all directions.
        for axis in 0..3 {
            assert!((found.strain[axis][axis] + found.energy / 3.0).abs() < 1e-8);
        }
    }

    #[test]
    fn forces_potentials_and_strain_are_slopes_of_the_energy() {
        let (structure, charges) = made_up();
        let whole = field(&structure, &charges, 14.4).unwrap();
        let energy = |structure: &Structure, charges: &[f64]| field(structure, charges, 14.4).unwrap().energy;
        let h = 1e-5;
        for atom in 0..4 {
            let moved = |by: f64| {
                let mut charges = charges.clone();
                charges[atom] += by;
                energy(&structure, &charges)
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * h);
            assert!((slope - whole.potentials[atom]).abs() < 1e-6, "{slope} {}", whole.potentials[atom]);
            for axis in 0..3 {
                let moved = |by: f64| {
                    let mut moved = structure.clone();
                    moved.positions[atom][axis] += by;
                    energy(&moved, &charges)
                };
                let slope = (moved(h) - moved(-h)) / (2.0 * h);
                assert!((slope + whole.forces[atom][axis]).abs() < 1e-6);
            }
        }
        for i in 0..3 {
            for j in 0..3 {
                let strained = |by: f64| {
                    let mut change = cell::IDENTITY;
                    change[i][j] += by;
                    let mut moved = structure.clone();
                    moved.cell = cell::product(&moved.cell, &change);
                    for position in &mut moved.positions {
                        *position = cell::times(position, &change);
                    }
                    energy(&moved, &charges)
                };
                let slope = (strained(h) - strained(-h)) / (2.0 * h);
                assert!((slope - whole.strain[i][j]).abs() < 1e-5, "{i} {j} {slope} {}", whole.strain[i][j]);
            }
        }
    }

    #[test]
    fn a_molecule_is_summed_directly() {
        let (mut structure, charges) = made_up();
        structure.periodic = [false; 3];
        let found = field(&structure, &charges, 2.0).unwrap();
        let mut wanted = 0.0;
        for i in 0..4 {
            for j in 0..i {
                let apart = cell::difference(&structure.positions[i], &structure.positions[j]);
                wanted += 2.0 * charges[i] * charges[j] / cell::norm(&apart);
            }
        }
        assert!((found.energy - wanted).abs() < 1e-12);
        structure.periodic = [true, true, false];
        assert!(field(&structure, &charges, 1.0).is_err());
    }
}
