//! GPT-NeoX: the decoder-only language model of GPT-NeoX-20B, Pythia and RedPajama-INCITE.
//!
//! Black et al. 2022, "GPT-NeoX-20B: An Open-Source Autoregressive Language Model", arXiv 2204.06745, section 2.1.
//! Checked against transformers `GPTNeoXForCausalLM`, parity cases `tests/parity/gpt_neox`.
//! Loads `model_type: "gpt_neox"`. Activations are `(batch, sequence, hidden_size)`.

use crate::causal;
use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Angles, Cache, LayerCache, Mask, Rope, RopeKeys, attend};
use fauna_shared::model::{
    self, BlockHook, CausalLm, Family, Model, Release, Step, check_heads, check_sizes, check_unpacked,
};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add};
use fauna_shared::weights::{Name, Weights};
use serde::Deserialize;
use serde_json::{Value, json};

/// Config keys that are not fields of [`Config`]: aliases, older names, and keys without effect.
pub static KEYS: model::Keys = model::Keys {
    // GPT-NeoX is always a decoder.
    harmless: &["is_decoder"],
    ..model::Keys::NONE
};

/// The configuration: the keys of `config.json` that define the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Class that the checkpoint was saved from; only the first is used.
    pub architectures: Vec<String>,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate size of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Maximum sequence length in training.
    pub max_position_embeddings: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether attention and feed-forward layers are computed in parallel from the same input, rather than in sequence.
    pub use_parallel_residual: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Fraction of the head dimension that RoPE rotates; 0.25 if absent.
    pub rotary_pct: Option<f64>,
    /// RoPE base (theta); 10000 if absent.
    pub rotary_emb_base: Option<f64>,
    /// RoPE settings by the keys of newer files, as in other families.
    #[serde(flatten)]
    pub rope: RopeKeys,
    /// Must be absent: weights quantized by other libraries are not supported.
    pub quantization_config: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 50_432,
            hidden_size: 6144,
            intermediate_size: 24_576,
            num_hidden_layers: 44,
            num_attention_heads: 64,
            hidden_act: Activation::GeluErf,
            max_position_embeddings: 2048,
            layer_norm_eps: 1e-5,
            use_parallel_residual: true,
            attention_bias: true,
            tie_word_embeddings: false,
            rotary_pct: None,
            rotary_emb_base: None,
            rope: RopeKeys::default(),
            quantization_config: None,
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        check_unpacked(self.quantization_config.as_ref(), "")?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ])?;
        check_heads(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))
    }

    fn head_width(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn rope(&self) -> Result<Rope> {
        let share = self.rotary_pct.or(Some(0.25));
        let keys = self.rope.clone().or(self.rotary_emb_base, share);
        keys.rope(self.head_width(), self.max_position_embeddings)
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and ignores
/// the buffers of older files.
pub fn rename(name: &str) -> Name {
    let plain = name.strip_prefix("gpt_neox.").unwrap_or(name);
    let is_mask = |buffer: &str| plain.strip_suffix(buffer).is_some_and(|rest| rest.ends_with(".attention"));
    if Name::is_buffer(plain) || [".bias", ".masked_bias"].into_iter().any(is_mask) {
        return Name::Ignore;
    }
    if plain == name { Name::Keep } else { Name::To(plain.to_string()) }
}

/// The network.
pub struct GptNeoX {
    config: Config,
    embed_in: Embedding,
    layers: Vec<Block>,
    final_layer_norm: LayerNorm,
    /// `None` for `GPTNeoXModel`, which has no head.
    embed_out: Option<Linear>,
    rope: Rope,
}

struct Block {
    input_layernorm: LayerNorm,
    attention: Attention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
    parallel: bool,
}

struct Attention {
    query_key_value: Linear,
    dense: Linear,
    heads: usize,
}

struct Mlp {
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
    hidden_act: Activation,
}

impl Model for GptNeoX {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(c, &w.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let final_layer_norm = w.layer_norm("final_layer_norm", c.hidden_size, c.layer_norm_eps)?;
        let bare = c.architectures.first().is_some_and(|name| name == "GPTNeoXModel");
        // Some files name the head `lm_head`, as transformers does in memory.
        let head = if w.has("lm_head", false) { "lm_head" } else { "embed_out" };
        let (embed_in, embed_out) = match c.tie_word_embeddings {
            true => {
                let (table, head) = w.tied("embed_in", head, c.vocab_size, c.hidden_size)?;
                (table, Some(head))
            }
            false => {
                let table = w.embedding("embed_in", c.vocab_size, c.hidden_size)?;
                let head = match bare {
                    true => {
                        // The file may have been saved with a head.
                        w.skip(head);
                        None
                    }
                    false => Some(w.linear_no_bias(head, c.hidden_size, c.vocab_size)?),
                };
                (table, head)
            }
        };
        let rope = c.rope()?;
        Ok(Self { embed_in, layers, final_layer_norm, embed_out, rope, config })
    }
}

impl CausalLm for GptNeoX {
    fn base_model_prefix(&self) -> &'static str {
        "gpt_neox"
    }

    fn num_hidden_layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_in.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let angles = self.rope.angles(step.positions, embeddings.device())?;
        let mut x = embeddings.clone();
        for (i, block) in self.layers.iter().enumerate() {
            x = block.forward(&hook(i, x)?, &angles, step.mask, cache.layer(i))?;
        }
        self.final_layer_norm.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.embed_out.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let norm = |name| w.layer_norm(name, c.hidden_size, c.layer_norm_eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            attention: Attention::load(c, &w.at("attention"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
            parallel: c.use_parallel_residual,
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let attended =
            add(x, &self.attention.forward(&self.input_layernorm.forward(x)?, angles, mask, cache)?)?;
        let read = if self.parallel { x } else { &attended };
        add(&attended, &self.mlp.forward(&self.post_attention_layernorm.forward(read)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, bias) = (c.hidden_size, c.attention_bias);
        Ok(Self {
            query_key_value: w.linear_bias_if(bias, "query_key_value", width, 3 * width)?,
            dense: w.linear_bias_if(bias, "dense", width, width)?,
            heads: c.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head = width / self.heads;
        // q, k and v are interleaved by head.
        let qkv = self.query_key_value.forward(x)?.reshape((batch, time, self.heads, 3 * head))?;
        let part = |i| qkv.narrow(3, i * head, head);
        let (k, v) = cache.append(&angles.rotate(&part(1)?)?, &part(2)?)?;
        let q = angles.rotate(&part(0)?)?;
        self.dense.forward(&attend(&q, &k, &v, mask, 1.0 / (head as f64).sqrt())?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            dense_h_to_4h: w.linear("dense_h_to_4h", c.hidden_size, c.intermediate_size)?,
            dense_4h_to_h: w.linear("dense_4h_to_h", c.intermediate_size, c.hidden_size)?,
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.dense_4h_to_h.forward(&self.dense_h_to_4h.forward_then(x, self.hidden_act)?)
    }
}

/// GPT-NeoX, and models of the same architecture: Pythia, RedPajama-INCITE.
pub static FAMILY: Family = Family {
    name: "gpt_neox",
    systems: &["GPT-NeoX", "Pythia", "RedPajama"],
    paper: "Black et al. 2022, arXiv 2204.06745; Biderman et al. 2023, arXiv 2304.01373",
    model_types: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    keys: &KEYS,
    releases: &[
        Release::new("EleutherAI/pythia-70m", "Pythia", "70M", "Apache-2.0"),
        Release::new("EleutherAI/pythia-160m", "Pythia", "162M", "Apache-2.0"),
        Release::new("EleutherAI/pythia-410m", "Pythia", "405M", "Apache-2.0"),
        Release::new("EleutherAI/pythia-1b", "Pythia", "1.0B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-1.4b", "Pythia", "1.4B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-2.8b", "Pythia", "2.8B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-6.9b", "Pythia", "6.9B", "Apache-2.0"),
        Release::new("EleutherAI/pythia-12b", "Pythia", "12B", "Apache-2.0"),
        Release::new("EleutherAI/gpt-neox-20b", "GPT-NeoX", "20B", "Apache-2.0"),
        Release::new("togethercomputer/RedPajama-INCITE-Base-3B-v1", "RedPajama", "2.8B", "Apache-2.0"),
        Release::new("togethercomputer/RedPajama-INCITE-Instruct-3B-v1", "RedPajama", "2.8B", "Apache-2.0"),
        Release::new("togethercomputer/RedPajama-INCITE-Chat-3B-v1", "RedPajama", "2.8B", "Apache-2.0"),
    ],
    rename,
    sample: || {
        json!({
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": "gelu",
            "max_position_embeddings": 24, "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000,
            "use_parallel_residual": true, "tie_word_embeddings": false
        })
    },
    ..causal::family::<GptNeoX>()
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(keys: Value) -> Config {
        let mut config = json!({
            "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn every_spelling_of_the_rope_keys_means_the_same() {
        let rope = |keys| config(keys).rope().unwrap();
        let with = |theta, width| Rope::new(theta, width, Default::default()).unwrap();
        assert_eq!(rope(json!({})), with(10_000.0, 4), "a quarter of the head dimension");
        let old = json!({"rotary_pct": 0.5, "rotary_emb_base": 500});
        let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}});
        let both = json!({"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_theta": 500, "partial_rotary_factor": 0.5});
        for keys in [old, new, both] {
            assert_eq!(rope(keys.clone()), with(500.0, 8), "{keys}");
        }
        assert_eq!(rope(json!({"rotary_pct": 0.3})), with(10_000.0, 4));
        assert!(config(json!({"rotary_pct": 1.5})).rope().is_err());
    }

    #[test]
    fn buffers_of_older_files_are_ignored() {
        for buffer in ["bias", "masked_bias", "rotary_emb.inv_freq"] {
            assert_eq!(rename(&format!("gpt_neox.layers.0.attention.{buffer}")), Name::Ignore);
        }
        let bias = "layers.0.attention.dense.bias";
        assert_eq!(rename(&format!("gpt_neox.{bias}")), Name::To(bias.into()));
        assert_eq!(rename("embed_out.weight"), Name::Keep);
    }
}
