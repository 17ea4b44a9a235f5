//! Errors of potentials (orb-models, `force_metrics`) and of robot policies.

use fauna_shared::{Error, Result};

/// Errors of the energies and forces of structures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PotentialErrors {
    /// Mean absolute error of the energy per atom, in eV, over the structures.
    pub energy_per_atom: f64,
    /// Mean absolute error of a component of a force, in eV/Å, over all atoms.
    pub forces: f64,
    /// Mean cosine of the angle between predicted and true forces, over all atoms.
    pub force_cosine: f64,
}

/// Energy in eV and forces in eV/Å, `(atoms, 3)`, of a structure.
#[derive(Debug, Clone, Copy)]
pub struct Evaluated<'a> {
    /// Energy in eV.
    pub energy: f64,
    /// Forces in eV/Å.
    pub forces: &'a [[f64; 3]],
}

/// The least norm of a force in the cosine, as torch's `cosine_similarity`.
const LEAST_NORM: f64 = 1e-8;

/// The errors of predictions.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers of structures or atoms, or none.
pub fn potential_errors(predicted: &[Evaluated], expected: &[Evaluated]) -> Result<PotentialErrors> {
    if predicted.len() != expected.len() || expected.is_empty() {
        return Err(Error::input(format!(
            "{} predictions of {} structures",
            predicted.len(),
            expected.len()
        )));
    }
    let (mut energy, mut forces, mut cosine, mut atoms) = (0.0, 0.0, 0.0, 0.0);
    for (number, (predicted, expected)) in predicted.iter().zip(expected).enumerate() {
        if predicted.forces.len() != expected.forces.len() || expected.forces.is_empty() {
            return Err(Error::input(format!(
                "structure {}: forces on {} atoms, expected {}",
                number + 1,
                predicted.forces.len(),
                expected.forces.len()
            )));
        }
        let count = expected.forces.len() as f64;
        energy += (predicted.energy - expected.energy).abs() / count;
        atoms += count;
        for (a, b) in predicted.forces.iter().zip(expected.forces) {
            forces += (0..3).map(|axis| (a[axis] - b[axis]).abs()).sum::<f64>();
            let dot = |a: &[f64; 3], b: &[f64; 3]| (0..3).map(|axis| a[axis] * b[axis]).sum::<f64>();
            cosine += dot(a, b) / (dot(a, a).sqrt().max(LEAST_NORM) * dot(b, b).sqrt().max(LEAST_NORM));
        }
    }
    Ok(PotentialErrors {
        energy_per_atom: energy / expected.len() as f64,
        forces: forces / (3.0 * atoms),
        force_cosine: cosine / atoms,
    })
}

/// Mean maximum rank violation (Li et al. 2024, arXiv 2405.05941, equation 3; SimplerEnv, `mean_maximum_rank_violation`) of
/// simulated success rates beside real ones: the mean over the policies of the largest real difference to a policy that the
/// simulation ranks wrongly beside it. 0 for the same ranking.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers, or none.
pub fn rank_violation(simulated: &[f64], real: &[f64]) -> Result<f64> {
    crate::classification::check(simulated.len(), real.len())?;
    let largest = |i: usize| {
        let wrong = (0..real.len()).filter(|j| (simulated[i] > simulated[*j]) != (real[i] > real[*j]));
        wrong.map(|j| (real[i] - real[j]).abs()).fold(0.0, f64::max)
    };
    Ok((0..real.len()).map(largest).sum::<f64>() / real.len() as f64)
}
