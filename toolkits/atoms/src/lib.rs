//! Atomic structures and what is computed of them with any [`Potential`](fauna_shared::model::Potential).
//!
//! [`files`] reads and writes structures, [`neighbor_list`](neighbor_list()) finds the pairs of atoms within a radius,
//! [`relax`](relax()) minimises the energy, [`dynamics`](dynamics()) runs molecular dynamics. Units are those of ASE except
//! for time: Å, eV, unified atomic mass units, kelvin, and femtoseconds.
//!
//! ```
//! use fauna_atoms::{check, neighbor_list};
//! use fauna_shared::item::Atoms;
//!
//! // The conventional cell of copper.
//! let positions = vec![[0.0, 0.0, 0.0], [0.0, 1.8, 1.8], [1.8, 0.0, 1.8], [1.8, 1.8, 0.0]];
//! let cell = Some([[3.6, 0.0, 0.0], [0.0, 3.6, 0.0], [0.0, 0.0, 3.6]]);
//! let copper = Atoms { numbers: vec![29; 4], positions, cell, periodic: [true; 3], ..Atoms::default() };
//! check(&copper)?;
//! let neighbors = neighbor_list(&copper.positions, copper.cell.as_ref(), copper.periodic, 2.6)?;
//! assert_eq!(neighbors.len(), 4 * 12);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

pub mod cell;
mod check;
mod constraints;
mod dynamics;
pub mod elements;
pub mod files;
mod neighbor_list;
pub mod picture;
mod relax;
#[cfg(test)]
mod testing;

pub use check::{MIN_DISTANCE, check, check_spin};
pub use constraints::Constraints;
pub use dynamics::{
    ACCELERATION, BOLTZMANN, DynamicsOptions, DynamicsState, DynamicsStep, Ensemble, dynamics,
};
pub use files::Frame;
pub use neighbor_list::{NeighborList, neighbor_list, pair_within};
pub use relax::{CellRelaxation, Optimizer, RelaxOptions, RelaxStep, Relaxed, relax};
