//! ZBL repulsion of nuclei (Ziegler, Biersack and Littmark 1985).

use super::{Aggregation, Structure};
use fauna_atoms::cell::{self, Vector};
use fauna_atoms::elements;

/// Coefficients and exponents of the screening function.
const SCREENING: [(f64, f64); 4] = [(0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016)];

/// Coulomb constant, in eV Å.
const COULOMB: f64 = 14.3996;

/// ZBL repulsion of a structure.
pub(super) struct Repulsion {
    /// Energy in eV, summed or averaged over the atoms.
    pub energy: f64,
    /// Gradient of the sum over all edges by each edge vector, in eV/Å.
    pub slopes: Vec<Vector>,
}

impl Repulsion {
    /// Each edge counts half: pairs mostly have edges in both directions.
    pub(super) fn of(structure: &Structure, aggregation: Aggregation) -> Self {
        let edges = &structure.edges;
        let mut energy = 0.0;
        let mut slopes = Vec::with_capacity(edges.len());
        for ((sender, receiver), vector) in edges.senders.iter().zip(&edges.receivers).zip(&edges.vectors) {
            let number = |node: &u32| structure.numbers[*node as usize];
            let length = cell::norm(vector);
            let (here, slope) = pair(number(sender), number(receiver), length);
            energy += here;
            slopes.push(vector.map(|value| slope / length * value));
        }
        if aggregation == Aggregation::Mean {
            energy /= structure.len() as f64;
        }
        Self { energy, slopes }
    }
}

/// Half the energy of two atoms `r` Å apart, in eV, and its derivative, in eV/Å.
///
/// The reference takes nuclear charge and radius of the next element, and models were trained so.
fn pair(a: u8, b: u8, r: f64) -> (f64, f64) {
    let (a, b) = (a.saturating_add(1), b.saturating_add(1));
    let end = elements::covalent_radius(a) + elements::covalent_radius(b);
    if r >= end {
        return (0.0, 0.0);
    }
    let (za, zb) = (f64::from(a), f64::from(b));
    let scale = 0.4543 * 0.529 / (za.powf(0.3) + zb.powf(0.3));
    let (mut screened, mut screened_slope) = (0.0, 0.0);
    for (share, decay) in SCREENING {
        let term = share * (-decay * r / scale).exp();
        screened += term;
        screened_slope -= decay / scale * term;
    }
    let bare = 0.5 * COULOMB * za * zb / r;
    let x = r / end;
    let envelope = 1.0 - 28.0 * x.powi(6) + 48.0 * x.powi(7) - 21.0 * x.powi(8);
    let envelope_slope = (-168.0 * x.powi(5) + 336.0 * x.powi(6) - 168.0 * x.powi(7)) / end;
    let energy = bare * screened;
    let slope = bare * (screened_slope - screened / r);
    (energy * envelope, slope * envelope + energy * envelope_slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_energy_and_both_end_where_the_atoms_touch() {
        for r in [0.2, 0.5, 0.9, 1.2, 1.4] {
            let (high, low) = (pair(8, 1, r + 1e-6).0, pair(8, 1, r - 1e-6).0);
            let slope = (high - low) / 2e-6;
            assert!((pair(8, 1, r).1 - slope).abs() < 1e-5 * slope.abs().max(1.0), "{r}");
        }
        // The radii of fluorine and helium: 0.57 and 0.28 Å.
        assert_eq!(pair(8, 1, 0.85), (0.0, 0.0));
        assert!(pair(8, 1, 0.84).0 > 0.0 && pair(8, 1, 0.84).0 < 1e-4);
    }
}
