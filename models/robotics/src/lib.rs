//! The robotics exhibits of `fauna`: RT-2 by its open kin OpenVLA.
//!
//! None is here yet: [`FAMILIES`] is empty, and the door says so by listing what is.

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[];
