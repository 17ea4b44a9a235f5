//! IDEFICS' `config.json`, in the nested form and the flat form of early revisions.

use fauna_shared::model::{Keys, check_heads, check_sizes};
use fauna_shared::{Error, Result, json};
use fauna_text::llama;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::clip::VisionConfig;
use crate::flamingo::perceiver;

/// The config keys that [`Config`] does not declare.
pub static KEYS: Keys = Keys {
    // Training and initialization.
    harmless: &[
        "alpha_initializer",
        "alphas_initializer_range",
        "freeze_lm_head",
        "freeze_text_layers",
        "freeze_text_module_exceptions",
        "freeze_vision_layers",
        "freeze_vision_module_exceptions",
    ],
    parts: &[
        ("vision_config", &Keys { mapped: &[("hidden_size", "embed_dim")], ..Keys::NONE }),
        // The top-level key is used.
        ("perceiver_config", &Keys { harmless: &["use_resampler"], ..Keys::NONE }),
    ],
    // Cross-attention is masked after the end of a text.
    fill: Some(|keys| {
        keys.entry("eos_token_id").or_insert(2.into());
    }),
    ..Keys::NONE
};

/// The keys of `config.json` that define the network.
#[derive(Debug, Clone)]
pub struct Config {
    /// Config of the language model, Llama.
    pub language: llama::Config,
    /// Number of tokens added to Llama's vocabulary.
    pub additional_vocab_size: usize,
    /// Interval of the gated cross-attention layers, in layers of the language model.
    pub cross_layer_interval: usize,
    /// Type of the gates.
    pub alpha_type: AlphaType,
    /// Whether cross-attention normalises queries and keys, per head.
    pub qk_layer_norms: bool,
    /// Whether there is a perceiver resampler.
    pub use_resampler: bool,
    /// Config of the vision encoder.
    pub vision_config: VisionConfig,
    /// Config of the resampler.
    pub perceiver_config: PerceiverConfig,
}

/// Type of the gates of the cross-attention layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlphaType {
    /// One value.
    #[default]
    Float,
    /// One value per channel.
    Vector,
}

/// `perceiver_config`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PerceiverConfig {
    /// Number of latents per image.
    pub resampler_n_latents: usize,
    /// Number of layers.
    pub resampler_depth: usize,
    /// Number of attention heads.
    pub resampler_n_heads: usize,
    /// Head dimension.
    pub resampler_head_dim: usize,
    /// Whether queries and keys are normalised, per head.
    pub qk_layer_norms_perceiver: bool,
}

impl Default for PerceiverConfig {
    fn default() -> Self {
        Self {
            resampler_n_latents: 64,
            resampler_depth: 6,
            resampler_n_heads: 16,
            resampler_head_dim: 96,
            qk_layer_norms_perceiver: false,
        }
    }
}

/// The keys that are not of the language model, the vision encoder or the resampler.
#[derive(Deserialize)]
struct Rest {
    #[serde(default)]
    additional_vocab_size: usize,
    #[serde(default = "one")]
    cross_layer_interval: usize,
    #[serde(default)]
    alpha_type: AlphaType,
    #[serde(default)]
    qk_layer_norms: bool,
    #[serde(default)]
    use_resampler: bool,
}

fn one() -> usize {
    1
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(config: D) -> std::result::Result<Self, D::Error> {
        let keys = Map::deserialize(config)?;
        let custom = |error: Error| D::Error::custom(error.message());
        let nested = |name: &str, keys: &Map<String, Value>| match keys.get(name) {
            Some(Value::Object(nested)) => nested.clone(),
            _ => Map::new(),
        };
        // Early revisions have the keys of the parts at the top level.
        let mut vision = nested("vision_config", &keys);
        let mut resampler = nested("perceiver_config", &keys);
        for (key, value) in &keys {
            if let Some(key) = key.strip_prefix("vision_").filter(|key| *key != "config") {
                vision.entry(key).or_insert(value.clone());
            }
            if key.starts_with("resampler_") || key == "qk_layer_norms_perceiver" {
                resampler.entry(key).or_insert(value.clone());
            }
        }
        // The hidden size is called `embed_dim`.
        if let Some(width) = vision.remove("embed_dim") {
            let width: usize = json::part("vision_config.embed_dim", width).map_err(custom)?;
            vision.insert("hidden_size".to_string(), width.into());
        }
        fill(
            &mut vision,
            json!({
                "hidden_size": 768, "image_size": 224, "intermediate_size": 5120, "patch_size": 14,
                "num_hidden_layers": 32, "num_attention_heads": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5
            }),
        );
        let rest: Rest = json::typed(keys.clone().into()).map_err(custom)?;
        Ok(Self {
            language: json::typed(keys.into()).map_err(custom)?,
            vision_config: json::part("vision_config", vision.into()).map_err(custom)?,
            perceiver_config: json::part("perceiver_config", resampler.into()).map_err(custom)?,
            additional_vocab_size: rest.additional_vocab_size,
            cross_layer_interval: rest.cross_layer_interval,
            alpha_type: rest.alpha_type,
            qk_layer_norms: rest.qk_layer_norms,
            use_resampler: rest.use_resampler,
        })
    }
}

/// Inserts the `defaults` of missing keys.
fn fill(keys: &mut Map<String, Value>, defaults: Value) {
    for (key, value) in defaults.as_object().into_iter().flatten() {
        keys.entry(key).or_insert(value.clone());
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<()> {
        let (layers, interval) = (self.language.num_hidden_layers, self.cross_layer_interval);
        check_sizes(&[("cross_layer_interval", interval)])?;
        if !layers.is_multiple_of(interval) {
            return Err(Error::unsupported(format!(
                "num_hidden_layers {layers} is not a multiple of cross_layer_interval {interval}"
            )));
        }
        if self.additional_vocab_size > 0 {
            check_sizes(&[("additional_vocab_size", self.additional_vocab_size)])?;
        }
        check_sizes(&[("intermediate_size", self.language.intermediate_size)])?;
        let (width, heads) = (self.language.hidden_size, self.language.num_attention_heads);
        check_heads(("hidden_size", width), ("num_attention_heads", heads))?;
        match (width / heads).is_multiple_of(2) {
            true => Ok(()),
            false => Err(Error::unsupported(format!(
                "hidden_size {width} / num_attention_heads {heads} is odd: RoPE requires an even head dimension"
            ))),
        }
    }

    pub(super) fn resampler(&self) -> perceiver::Sizes {
        let c = &self.perceiver_config;
        perceiver::Sizes {
            width: self.vision_config.hidden_size,
            latents: c.resampler_n_latents,
            depth: c.resampler_depth,
            heads: c.resampler_n_heads,
            head_width: c.resampler_head_dim,
        }
    }
}

#[cfg(test)]
mod tests {
    use fauna_shared::nn::Activation;

    use super::*;

    #[test]
    fn the_flat_form_equals_the_nested_form() {
        let mut flat = super::super::sample();
        let nested: Config = serde_json::from_value(flat.clone()).unwrap();
        let keys = flat.as_object_mut().unwrap();
        for (part, prefix) in [("vision_config", "vision_"), ("perceiver_config", "")] {
            let part = keys.remove(part).unwrap();
            for (key, value) in part.as_object().unwrap() {
                keys.insert(format!("{prefix}{key}"), value.clone());
            }
        }
        let flat: Config = serde_json::from_value(flat).unwrap();
        assert_eq!(flat.vision_config, nested.vision_config);
        assert_eq!(flat.perceiver_config, nested.perceiver_config);
        assert_eq!((flat.vision_config.hidden_size, flat.perceiver_config.resampler_n_latents), (32, 3));
    }

    #[test]
    fn missing_keys_have_the_references_defaults() {
        let config: Config = serde_json::from_value(json!({"vision_config": {"embed_dim": 1280}})).unwrap();
        assert_eq!((config.language.hidden_size, config.language.num_hidden_layers), (4096, 32));
        let vision = &config.vision_config;
        assert_eq!((vision.hidden_size, vision.num_hidden_layers, vision.patch_size), (1280, 32, 14));
        assert_eq!(vision.hidden_act, Activation::GeluErf);
        assert!(!config.use_resampler && config.alpha_type == AlphaType::Float);
    }

    #[test]
    fn layers_must_be_a_multiple_of_the_interval() {
        let mut config = super::super::sample();
        config["cross_layer_interval"] = json!(3);
        let config: Config = serde_json::from_value(config).unwrap();
        assert!(config.check().unwrap_err().to_string().contains("cross_layer_interval 3"));
    }
}
