//! The interface of interatomic potentials.

use serde::Serialize;

use crate::Result;
use crate::item::Atoms;

/// A machine-learned interatomic potential: energy, forces and stress of structures.
pub trait Potential: Send + Sync {
    /// Evaluates each of `structures` independently, in order.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for an invalid structure, with its index.
    fn evaluate(&self, structures: &[Atoms]) -> Result<Vec<Evaluation>>;

    /// Whether the total charge and spin of a structure are inputs of the model.
    fn reads_charge(&self) -> bool {
        false
    }

    /// Whether the forces are the negative gradient of the energy, so that dynamics conserve energy.
    fn is_conservative(&self) -> bool;
}

/// The evaluation of one structure.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Energy in eV.
    pub energy: f64,
    /// Forces in eV/Å, `(atoms, 3)`.
    pub forces: Vec<[f64; 3]>,
    /// Stress in eV/Å³, in Voigt order xx, yy, zz, yz, xz, xy, positive under tension; `None` without a cell or if the
    /// model does not predict it.
    pub stress: Option<[f64; 6]>,
    /// Predicted error of the forces in eV/Å, one per atom, if the model predicts it.
    pub confidence: Option<Vec<f64>>,
    /// Gradient of the energy with respect to a rotation of the structure, in eV; zero for a rotation-invariant model.
    pub rotational_grad: Option<[[f64; 3]; 3]>,
}
