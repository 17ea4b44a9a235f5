//! Atoms: what a chemist does with any [`Potential`](fauna_shared::model::Potential).
//!
//! [`files`] reads and writes structures, [`neighbours`] finds who is near whom, [`relax`](relax()) walks downhill,
//! [`dynamics`](mod@dynamics) follows the atoms through time. Lengths are in Å, energies in eV, masses in unified atomic mass units,
//! times in femtoseconds, temperatures in kelvin.
//!
//! ```
//! use fauna_atoms::{check, neighbours};
//! use fauna_shared::item::Atoms;
//!
//! // Copper: four atoms in a cube.
//! let positions = vec![[0.0, 0.0, 0.0], [0.0, 1.8, 1.8], [1.8, 0.0, 1.8], [1.8, 1.8, 0.0]];
//! let cell = Some([[3.6, 0.0, 0.0], [0.0, 3.6, 0.0], [0.0, 0.0, 3.6]]);
//! let copper = Atoms { numbers: vec![29; 4], positions, cell, periodic: [true; 3], ..Atoms::default() };
//! check(&copper)?;
//! let near = neighbours(&copper.positions, copper.cell.as_ref(), copper.periodic, 2.6)?;
//! assert_eq!(near.len(), 4 * 12);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

pub mod cell;
mod check;
mod constraints;
pub mod dynamics;
pub mod elements;
pub mod files;
mod neighbours;
mod relax;
#[cfg(test)]
mod testing;

pub use check::{CLOSEST, check, check_spin};
pub use constraints::Constraints;
pub use dynamics::{Dynamics, Ensemble, Moment, State, dynamics};
pub use files::Frame;
pub use neighbours::{Neighbours, closer, neighbours};
pub use relax::{CellChange, Method, Relaxed, Relaxing, Step, relax};
