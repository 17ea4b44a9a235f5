//! The robotics models of `fauna`: OpenVLA, an open model similar to RT-2, and a simulated table-top to evaluate policies.
//!
//! [`openvla`] is the model; [`action`] has the action tokenizers; [`tabletop`] is a small simulator for any
//! [`Policy`](fauna_shared::model::Policy). [`FAMILIES`] are the registry entries.

pub mod action;
pub mod openvla;
pub mod tabletop;

use fauna_shared::model::Family;

/// The model families of this crate.
pub const FAMILIES: &[&Family] = &[&openvla::FAMILY];
