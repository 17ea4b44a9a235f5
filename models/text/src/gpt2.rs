//! GPT-2: a decoder-only language model.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
//! Checked against transformers `GPT2LMHeadModel`, parity cases `tests/parity/gpt`.
//! Loads `model_type: "gpt2"`. Activations are `(batch, sequence, hidden_size)`.

use crate::causal;
use candle_core::Tensor;
use fauna_shared::attention::{Cache, LayerCache, Mask, attend};
use fauna_shared::model::{
    BlockHook, CausalLm, Family, Keys, Model, Release, Step, check_heads, check_sizes,
};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add, add_repeated};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::json;

/// Config keys that are not fields of [`Config`]: aliases, older names, and keys without effect.
pub static KEYS: Keys = Keys {
    mapped: &[
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
    // Files older than transformers 4.
    older: &[("n_ctx", "n_positions")],
    // Keys of the multiple-choice head, which is not built, and of attention scores in float32, which they always are.
    harmless: &[
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    types: &["gpt2"],
    ..Keys::NONE
};

/// The configuration: the keys of `config.json` that define the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Maximum sequence length.
    pub n_positions: usize,
    /// Hidden size.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of attention heads.
    pub n_head: usize,
    /// Intermediate size of the feed-forward layers; four times `n_embd` if null.
    pub n_inner: Option<usize>,
    /// Activation function of the feed-forward layers.
    pub activation_function: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_epsilon: f64,
    /// Whether attention scores are divided by the square root of the head dimension.
    pub scale_attn_weights: bool,
    /// Whether attention scores are also divided by the layer index, counted from 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Must be false: cross-attention is not implemented.
    pub add_cross_attention: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluTanh,
            layer_norm_epsilon: 1e-5,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            tie_word_embeddings: true,
            add_cross_attention: false,
        }
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix that fine-tunes add, and ignores the
/// causal mask buffers of older files.
pub fn rename(name: &str) -> Name {
    let plain = name.strip_prefix("transformer.").unwrap_or(name);
    if plain.ends_with(".attn.bias") || plain.ends_with(".attn.masked_bias") {
        return Name::Ignore;
    }
    // The multiple-choice head of the double-heads model, which generation does not use.
    if plain.starts_with("multiple_choice_head.") {
        return Name::Ignore;
    }
    if plain == name { Name::Keep } else { Name::To(plain.to_string()) }
}

/// The network.
pub struct Gpt2 {
    config: Config,
    wte: Embedding,
    wpe: Embedding,
    h: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

struct Block {
    ln_1: LayerNorm,
    attn: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    heads: usize,
    scale: f64,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    activation: Activation,
}

impl Model for Gpt2 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let c = &config;
        if c.add_cross_attention {
            return Err(Error::unsupported("add_cross_attention is not implemented for gpt2"));
        }
        check_sizes(&[("vocab_size", c.vocab_size), ("n_positions", c.n_positions)])?;
        check_sizes(&[("n_inner", c.n_inner.unwrap_or(1))])?;
        check_heads(("n_embd", c.n_embd), ("n_head", c.n_head))?;
        let wpe = w.embedding("wpe", c.n_positions, c.n_embd)?;
        let h = (0..c.n_layer).map(|i| Block::load(c, i, &w.at_index("h", i))).collect::<Result<_>>()?;
        let ln_f = w.layer_norm("ln_f", c.n_embd, c.layer_norm_epsilon)?;
        let (wte, lm_head) = match c.tie_word_embeddings {
            true => w.tied("wte", "lm_head", c.vocab_size, c.n_embd)?,
            false => (
                w.embedding("wte", c.vocab_size, c.n_embd)?,
                w.linear_no_bias("lm_head", c.n_embd, c.vocab_size)?,
            ),
        };
        Ok(Self { wte, wpe, h, ln_f, lm_head, config })
    }
}

impl CausalLm for Gpt2 {
    fn base_model_prefix(&self) -> &'static str {
        "transformer"
    }

    fn num_hidden_layers(&self) -> usize {
        self.config.n_layer
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.n_positions
    }

    fn has_position_limit(&self) -> bool {
        true
    }

    fn hidden_size(&self) -> usize {
        self.config.n_embd
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.wte.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let positions = step.positions.tensor(embeddings.device())?;
        let mut x = add_repeated(embeddings, &self.wpe.forward(&positions)?)?;
        if let Some(types) = step.token_type_ids {
            // Token types are token ids, looked up in the token embeddings, as in transformers.
            x = add(&x, &self.wte.forward(types)?)?;
        }
        for (i, block) in self.h.iter().enumerate() {
            x = block.forward(&hook(i, x)?, step.mask, cache.layer(i))?;
        }
        self.ln_f.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.lm_head.forward(hidden)?))
    }
}

impl Block {
    fn load(c: &Config, index: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            ln_1: w.layer_norm("ln_1", c.n_embd, c.layer_norm_epsilon)?,
            attn: Attention::load(c, index, &w.at("attn"))?,
            ln_2: w.layer_norm("ln_2", c.n_embd, c.layer_norm_epsilon)?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.attn.forward(&self.ln_1.forward(x)?, mask, cache)?)?;
        add(&x, &self.mlp.forward(&self.ln_2.forward(&x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, index: usize, w: &Weights) -> Result<Self> {
        let head_width = (c.n_embd / c.n_head) as f64;
        let mut scale = if c.scale_attn_weights { 1.0 / head_width.sqrt() } else { 1.0 };
        if c.scale_attn_by_inverse_layer_idx {
            scale /= (index + 1) as f64;
        }
        Ok(Self {
            c_attn: w.linear_transposed("c_attn", c.n_embd, 3 * c.n_embd)?,
            c_proj: w.linear_transposed("c_proj", c.n_embd, c.n_embd)?,
            heads: c.n_head,
            scale,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        // q, k and v are concatenated, each with all heads.
        let qkv = self.c_attn.forward(x)?.reshape((batch, time, 3, self.heads, width / self.heads))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let (k, v) = cache.append(&part(1)?, &part(2)?)?;
        self.c_proj.forward(&attend(&part(0)?, &k, &v, mask, self.scale)?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let inner = c.n_inner.unwrap_or(4 * c.n_embd);
        Ok(Self {
            c_fc: w.linear_transposed("c_fc", c.n_embd, inner)?,
            c_proj: w.linear_transposed("c_proj", inner, c.n_embd)?,
            activation: c.activation_function,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&self.c_fc.forward_then(x, self.activation)?)
    }
}

/// GPT-2 in all sizes.
pub static FAMILY: Family = Family {
    name: "gpt2",
    systems: &["GPT"],
    paper: "Radford et al. 2019, \"Language Models are Unsupervised Multitask Learners\"",
    model_types: &["gpt2"],
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    keys: &KEYS,
    releases: &[
        Release::new("openai-community/gpt2", "GPT", "124M", "MIT"),
        Release::new("openai-community/gpt2-medium", "GPT", "355M", "MIT"),
        Release::new("openai-community/gpt2-large", "GPT", "774M", "MIT"),
        Release::new("openai-community/gpt2-xl", "GPT", "1.5B", "MIT"),
    ],
    rename,
    sample: || {
        json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 61, "n_positions": 24,
            "n_embd": 32, "n_layer": 3, "n_head": 4, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
            "scale_attn_by_inverse_layer_idx": true
        })
    },
    ..causal::family::<Gpt2>()
};
