//! Vision models of `fauna`: CLIP, SigLIP, DALL·E, Flamingo and Med-PaLM M.
//!
//! Each module can be used on its own; [`FAMILIES`] registers them with the zoo.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients"))]

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

/// The model families of this crate.
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
