//! Audio models of `fauna`: EnCodec, MusicGen, Jukebox, LLark.
//!
//! Each module can be used on its own; [`FAMILIES`] registers them with the zoo.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients"))]

pub mod encodec;
pub mod jukebox;
pub mod llark;
pub mod musicgen;
mod spectra;

use fauna_shared::model::Family;

/// The model families of this crate.
pub const FAMILIES: &[&Family] = &[&encodec::FAMILY, &musicgen::FAMILY, &jukebox::FAMILY, &llark::FAMILY];
