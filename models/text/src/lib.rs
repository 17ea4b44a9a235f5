//! The text models of `fauna`: BERT, Gemma 3, GenSLMs, GPT, gpt-oss, GPT-NeoX, the Llama family, MPT, Qwen2, StarCoder
//! and T5.
//!
//! Each model module follows its paper and can be used on its own; [`FAMILIES`] registers all of them with the zoo.
//!
//! ```
//! let names: Vec<_> = fauna_text::FAMILIES.iter().map(|family| family.name).collect();
//! assert!(names.contains(&"llama"));
//! ```

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients"))]

pub mod bert;
pub mod called;
pub mod causal;
pub mod gemma3;
pub mod genslm;
mod gguf;
pub mod gpt1;
pub mod gpt2;
pub mod gpt_bigcode;
pub mod gpt_neox;
pub mod gpt_oss;
pub mod harmony;
mod infill;
pub mod labelled;
pub mod llama;
pub mod mpt;
pub mod qwen2;
pub mod starcoder2;
pub mod t5;
pub mod words;

use fauna_shared::model::{CausalLm, Family};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::Value;

/// The model families of this crate.
pub const FAMILIES: &[&Family] = &[
    &bert::FAMILY,
    &gemma3::FAMILY,
    &genslm::FAMILY,
    &gpt1::FAMILY,
    &gpt2::FAMILY,
    &gpt_bigcode::FAMILY,
    &gpt_neox::FAMILY,
    &gpt_oss::FAMILY,
    &llama::FAMILY,
    &mpt::FAMILY,
    &qwen2::FAMILY,
    &starcoder2::FAMILY,
    &t5::FAMILY,
];

/// Loads the network of any decoder-only language model of this crate, chosen by the `model_type` of `config`.
/// Multimodal models load their language model with it.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if no family has this `model_type`; errors of the config or
/// the tensors.
pub fn causal_lm(config: &Value, weights: &Weights) -> Result<Box<dyn CausalLm>> {
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let known = || FAMILIES.iter().filter_map(|family| Some((*family, family.causal_lm?)));
    match known().find(|(family, _)| family.model_types.contains(&model_type)) {
        Some((family, load)) => load(family.keys.read(config.clone())?, weights),
        None => {
            let types: Vec<_> = known().flat_map(|(family, _)| family.model_types.iter().copied()).collect();
            Err(Error::unsupported(format!("no language model of model_type \"{model_type:.80}\""))
                .hint(format!("known: {}", types.join(", "))))
        }
    }
}

/// [`causal_lm`] of the config at `key` of a larger one: errors name the whole path.
///
/// # Errors
/// As [`causal_lm`].
pub fn causal_lm_at(key: &str, config: &Value, weights: &Weights) -> Result<Box<dyn CausalLm>> {
    causal_lm(config, weights).map_err(|error| match (error.kind(), error.place()) {
        (ErrorKind::Format, None) => Error::new(error.kind(), format!("{key}.{}", error.message())),
        _ => error.context(key),
    })
}

/// What the networks of [`causal_lm`] call the tensor that a checkpoint with an output head calls `name`, whatever the
/// family: the name without that of the part below the head.
///
/// ```
/// for name in ["model.layers.3.mlp.up_proj.weight", "transformer.layers.3.mlp.up_proj.weight"] {
///     assert_eq!(fauna_text::below_head(name), "layers.3.mlp.up_proj.weight");
/// }
/// assert_eq!(fauna_text::below_head("lm_head.weight"), "lm_head.weight");
/// ```
pub fn below_head(name: &str) -> &str {
    let parts = ["model.", "transformer.", "gpt_neox."];
    parts.iter().find_map(|part| name.strip_prefix(part)).unwrap_or(name)
}
