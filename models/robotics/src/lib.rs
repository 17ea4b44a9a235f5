//! The robotics pipelines of `fauna`: OpenVLA, an open model after RT-2.
//!
//! [`openvla`] reads like its paper and can be used alone; [`action`] holds the action tokenizers. [`FAMILIES`] is how
//! the zoo finds the models.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients"))]

pub mod action;
pub mod openvla;

use fauna_shared::model::Family;

/// The model families of this crate.
pub const FAMILIES: &[&Family] = &[&openvla::FAMILY];
