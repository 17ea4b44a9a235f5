//! The science exhibits of `fauna`: forecasts by the open kin of TimeGPT, atoms by Orb.
//!
//! None is here yet: [`FAMILIES`] is empty, and the door says so by listing what is.

pub mod forecast;

use fauna_shared::model::Family;

pub mod atoms;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[];
