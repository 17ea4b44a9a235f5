//! The sound pipelines of `fauna`: EnCodec, MusicGen, Jukebox, LLark.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.

pub mod encodec;
pub mod jukebox;
pub mod llark;
pub mod musicgen;

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[&encodec::FAMILY, &musicgen::FAMILY, &jukebox::FAMILY, &llark::FAMILY];
