//! Measures of vectors, answers, forecasts, sounds and pictures, by the definitions of the field's own tools.
//!
//! [`alignment`] compares two spaces of vectors whose rows belong together, [`geometry`] describes one space.
//! [`classification`], [`regression`] and [`retrieval`] measure answers, [`language`] likelihoods, [`forecasts`] time series,
//! [`physics`] potentials and policies, [`signals`] sounds and pictures, and [`intervals`] says how sure a number is. All numbers
//! are float64 and equal those of the reference that each function names to 1e-9, tested on values that the reference was run on.
//!
//! ```
//! use fauna_measures::{Space, alignment};
//! let x = Space::new(4, 2, vec![0.0, 1.0, 2.0, 0.0, 1.0, 1.0, 3.0, 2.0])?;
//! // A rotation and a scale change neither.
//! let y = Space::new(4, 2, vec![2.0, 0.0, 0.0, -4.0, 2.0, -2.0, 4.0, -6.0])?;
//! assert!((alignment::cka(&x, &y)? - 1.0).abs() < 1e-12);
//! assert!((alignment::procrustes(&x, &y)? - 1.0).abs() < 1e-12);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

pub mod alignment;
pub mod classification;
pub mod forecasts;
pub mod geometry;
pub mod intervals;
pub mod language;
mod neighbours;
pub mod physics;
mod ranks;
pub mod regression;
pub mod retrieval;
pub mod signals;
mod space;
#[cfg(test)]
mod tests;

pub use space::Space;
