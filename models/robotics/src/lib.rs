//! The robotics pipelines of `fauna`: RT-2 by OpenVLA, an open model after it, and a table-top to try any policy on.
//!
//! [`openvla`] reads like its paper and can be used alone; [`action`] is how movements become words; [`tabletop`] is a
//! small simulator into which any [`Policy`](fauna_shared::model::Policy) plugs. [`FAMILIES`] is how the zoo finds them.

pub mod action;
pub mod openvla;
pub mod tabletop;

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[&openvla::FAMILY];
