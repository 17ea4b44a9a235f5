//! The science pipelines of `fauna`: forecasts by the open models after TimeGPT, atoms by Orb.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.
//!
//! ```
//! let names: Vec<_> = fauna_science::FAMILIES.iter().map(|family| family.name).collect();
//! assert!(names.contains(&"chronos-bolt"));
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients"))]

pub mod chronos;
pub mod orb;
pub mod quantiles;
mod series;
pub mod timesfm;

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[
    &chronos::t5::FAMILY,
    &chronos::bolt::FAMILY,
    &chronos::chronos2::FAMILY,
    &timesfm::patched::FAMILY,
    &timesfm::v2_5::FAMILY,
    &orb::FAMILY,
];
