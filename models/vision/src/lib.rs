//! The image exhibits of `fauna`: CLIP, SigLIP, DALL·E, Flamingo, Med-PaLM M.
//!
//! None is here yet: [`FAMILIES`] is empty, and the door says so by listing what is.

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[];
