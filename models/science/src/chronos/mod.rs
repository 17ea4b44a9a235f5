//! Chronos and its successors: zero-shot forecasting.
//!
//! | | inputs | outputs | family |
//! | --- | --- | --- | --- |
//! | [`t5`], Ansari et al. 2024, arXiv 2403.07815 | values as tokens | sampled paths | `chronos-t5` |
//! | [`bolt`] | patches | quantiles, in one forward pass | `chronos-bolt` |
//! | [`chronos2`], Ansari et al. 2025, arXiv 2510.15821 | patches of several series | quantiles, in one forward pass | `chronos-2` |
//!
//! All three have `model_type: "t5"`; they are distinguished, from each other and from a T5 of text, by architecture,
//! pipeline class or the keys of `chronos_config`.

pub mod bolt;
mod bolt_pipeline;
pub mod chronos2;
mod chronos2_pipeline;
pub mod patches;
pub mod t5;
mod t5_pipeline;
mod tokenizer;
pub(crate) mod unroll;

use fauna_shared::Result;
use fauna_shared::model::{FindLayout, Keys, Layout, LoadOptions};
use fauna_shared::source::Files;
use fauna_shared::weights::Name;
use fauna_text::{gpt2, t5 as text_t5};
use serde_json::Value;

pub use bolt_pipeline::ChronosBoltPipeline;
pub(crate) use bolt_pipeline::sample as bolt_sample;
pub use chronos2_pipeline::Chronos2Pipeline;
pub(crate) use chronos2_pipeline::sample as chronos2_sample;
pub use t5_pipeline::ChronosPipeline;
pub(crate) use t5_pipeline::{inventory as t5_inventory, sample as t5_sample};
pub use tokenizer::{ChronosConfig, Context, Kind, Limits, MeanScaleUniformBins};

/// Keys of the config of the network below.
pub static KEYS: Keys = Keys { parts: &[("", &text_t5::KEYS), ("", &gpt2::KEYS)], ..Keys::NONE };

/// The three models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Generation {
    Tokens,
    Bolt,
    Chronos2,
}

/// The model of `config`; `None` for another.
fn generation(config: &Value) -> Option<Generation> {
    let own = &config["chronos_config"];
    match (config["architectures"][0].as_str(), config["chronos_pipeline_class"].as_str()) {
        (Some("ChronosBoltModelForForecasting"), _) => Some(Generation::Bolt),
        (Some("Chronos2Model"), _) => Some(Generation::Chronos2),
        (None, Some("ChronosBoltPipeline")) => Some(Generation::Bolt),
        (None, Some("Chronos2Pipeline")) => Some(Generation::Chronos2),
        _ if !own.is_object() => None,
        (None, None) if own["output_patch_size"].is_number() => Some(Generation::Chronos2),
        (None, None) if own["input_patch_size"].is_number() => Some(Generation::Bolt),
        _ => Some(Generation::Tokens),
    }
}

fn layout(files: &Files, options: &LoadOptions, wanted: Generation) -> Result<Option<Layout>> {
    if files.get("config.json").is_none() {
        return Ok(None);
    }
    let config = files.config()?;
    if generation(&config) != Some(wanted) {
        return Ok(None);
    }
    Ok(Some(Layout { config, weights: options.weights_of(files)? }))
}

/// Renames tensors of releases on T5 and GPT-2 to the names of those families.
pub(crate) fn rename(name: &str) -> Name {
    gpt2::rename(name)
}

/// Renames tensors of releases of Chronos-Bolt.
pub(crate) fn rename_bolt(name: &str) -> Name {
    text_t5::rename(name)
}

/// Chronos on T5 or GPT-2, or its tokenizer alone.
pub(crate) const TOKENS: FindLayout = |files, options| layout(files, options, Generation::Tokens);

/// Chronos-Bolt.
pub(crate) const BOLT: FindLayout = |files, options| layout(files, options, Generation::Bolt);

/// Chronos-2.
pub(crate) const CHRONOS_2: FindLayout = |files, options| layout(files, options, Generation::Chronos2);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_three_are_told_apart() {
        let bolt = json!({"input_patch_size": 16});
        let two = json!({"input_patch_size": 16, "output_patch_size": 16});
        for (config, found) in [
            (json!({"architectures": ["T5ForConditionalGeneration"]}), None),
            (
                json!({"architectures": ["T5ForConditionalGeneration"], "chronos_config": {}}),
                Some(Generation::Tokens),
            ),
            (json!({"architectures": ["GPT2LMHeadModel"], "chronos_config": {}}), Some(Generation::Tokens)),
            (json!({"architectures": ["ChronosBoltModelForForecasting"]}), Some(Generation::Bolt)),
            (json!({"architectures": ["Chronos2Model"], "chronos_config": two}), Some(Generation::Chronos2)),
            (json!({"chronos_pipeline_class": "Chronos2Pipeline"}), Some(Generation::Chronos2)),
            (json!({"chronos_config": bolt}), Some(Generation::Bolt)),
            (json!({"chronos_config": two}), Some(Generation::Chronos2)),
            (json!({"chronos_config": {"n_tokens": 4096}}), Some(Generation::Tokens)),
        ] {
            assert_eq!(generation(&config), found, "{config}");
        }
    }
}
