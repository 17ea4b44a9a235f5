//! The ability to say what energy atoms have and which forces pull them.

use serde::Serialize;

use crate::Result;
use crate::item::Atoms;

/// Atoms to energy, forces and stress.
pub trait Potential: Send + Sync {
    /// One evaluation for each of `structures`, in order, as if each were alone.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for atoms that cannot be read, by the index of the structure.
    fn evaluate(&self, structures: &[Atoms]) -> Result<Vec<Evaluation>>;

    /// Whether charge and spin of the whole change what it says.
    fn reads_charge(&self) -> bool {
        false
    }

    /// Whether the forces are the slope of the energy, so that dynamics conserve it.
    fn is_conservative(&self) -> bool;
}

/// What a potential says of one structure.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// In eV.
    pub energy: f64,
    /// In eV/Å, one an atom.
    pub forces: Vec<[f64; 3]>,
    /// In eV/Å³, as xx, yy, zz, yz, xz, xy, positive where the cell wants to shrink; `None` where there is no cell or
    /// the model does not tell.
    pub stress: Option<[f64; 6]>,
    /// How far the forces may be off, in eV/Å, one an atom, where the model tells.
    pub confidence: Option<Vec<f64>>,
    /// The slope of the energy against a rotation of everything, in eV: how far the model is from not minding it.
    pub rotational_grad: Option<[[f64; 3]; 3]>,
}
