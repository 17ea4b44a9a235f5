//! The sound exhibits of `fauna`: EnCodec, MusicGen, Jukebox, LLark.
//!
//! None is here yet: [`FAMILIES`] is empty, and the door says so by listing what is.

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[];
