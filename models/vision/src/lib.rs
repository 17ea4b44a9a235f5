//! The image pipelines of `fauna`: CLIP, SigLIP, DALL·E, Flamingo and Med-PaLM M.
//!
//! Each model file reads like its paper and can be used alone; [`FAMILIES`] is how the zoo finds them all.

pub mod clip;
mod contrastive;
pub mod dalle;
pub mod flamingo;
pub mod llava;
pub mod medgemma;
pub mod processor;
pub mod siglip;
pub mod vision_language;

use fauna_shared::model::Family;

/// The families of this crate.
pub const FAMILIES: &[&Family] = &[
    &clip::FAMILY,
    &siglip::FAMILY,
    &dalle::dvae::FAMILY,
    &dalle::mini::FAMILY,
    &dalle::vqgan::FAMILY,
    &flamingo::open_flamingo::FAMILY,
    &flamingo::idefics::FAMILY,
    &medgemma::FAMILY,
    &llava::FAMILY,
];
