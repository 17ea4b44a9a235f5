//! GPT-1: a decoder-only language model with post-layer normalisation.
//!
//! Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 4.1.
//! Checked against transformers `OpenAIGPTLMHeadModel`, parity cases `tests/parity/gpt`.
//! Loads `model_type: "openai-gpt"`. Activations are `(batch, sequence, hidden_size)`.

use crate::causal;
use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Cache, LayerCache, Mask, attend};
use fauna_shared::model::{
    BlockHook, CausalLm, Family, Keys, Model, Release, Step, check_heads, check_sizes,
};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add_repeated};
use fauna_shared::weights::{Name, Weights};
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
    // Keys of the multiple-choice head, which is not built.
    harmless: &[
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ],
    types: &["openai-gpt"],
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
    /// Activation function of the feed-forward layers.
    pub afn: Afn,
    /// Epsilon of the layer norms.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 40_478,
            n_positions: 512,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            afn: Afn::Gelu,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
        }
    }
}

/// GPT-1's names of activation functions, where "gelu" is the tanh approximation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Afn {
    /// GELU, tanh approximation.
    Gelu,
    /// ReLU, `max(x, 0)`.
    Relu,
    /// SiLU, `x σ(x)`.
    Silu,
    /// Another name of SiLU.
    Swish,
}

/// Maps the tensor names of a release to those of this module.
pub fn rename(name: &str) -> Name {
    match name.strip_prefix("transformer.").unwrap_or(name) {
        // The multiple-choice head of the double-heads model, which generation does not use.
        plain if plain.starts_with("multiple_choice_head.") => Name::Ignore,
        // Buffers: the causal mask and the position ids.
        plain if plain.ends_with(".attn.bias") || Name::is_buffer(plain) => Name::Ignore,
        plain if plain == name => Name::Keep,
        plain => Name::To(plain.to_string()),
    }
}

/// The network.
pub struct Gpt1 {
    config: Config,
    tokens_embed: Embedding,
    positions_embed: Embedding,
    h: Vec<Block>,
    lm_head: Linear,
}

struct Block {
    attn: Attention,
    ln_1: LayerNorm,
    mlp: Mlp,
    ln_2: LayerNorm,
}

struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    heads: usize,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    activation: Activation,
}

impl Model for Gpt1 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let c = &config;
        check_sizes(&[("vocab_size", c.vocab_size), ("n_positions", c.n_positions)])?;
        check_heads(("n_embd", c.n_embd), ("n_head", c.n_head))?;
        let positions_embed = w.embedding("positions_embed", c.n_positions, c.n_embd)?;
        let h = (0..c.n_layer).map(|i| Block::load(c, &w.at_index("h", i))).collect::<Result<_>>()?;
        let (tokens_embed, lm_head) = match c.tie_word_embeddings {
            true => w.tied("tokens_embed", "lm_head", c.vocab_size, c.n_embd)?,
            false => (
                w.embedding("tokens_embed", c.vocab_size, c.n_embd)?,
                w.linear_no_bias("lm_head", c.n_embd, c.vocab_size)?,
            ),
        };
        Ok(Self { tokens_embed, positions_embed, h, lm_head, config })
    }
}

impl CausalLm for Gpt1 {
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
        self.tokens_embed.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let positions = step.positions.tensor(embeddings.device())?;
        let mut x = add_repeated(embeddings, &self.positions_embed.forward(&positions)?)?;
        if let Some(types) = step.token_type_ids {
            x = (x + self.tokens_embed.forward(types)?)?;
        }
        for (i, block) in self.h.iter().enumerate() {
            x = block.forward(&hook(i, x)?, step.mask, cache.layer(i))?;
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.lm_head.forward(hidden)?))
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            attn: Attention::load(c, &w.at("attn"))?,
            ln_1: w.layer_norm("ln_1", c.n_embd, c.layer_norm_epsilon)?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
            ln_2: w.layer_norm("ln_2", c.n_embd, c.layer_norm_epsilon)?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = self.ln_1.forward_sum(x, &self.attn.forward(x, mask, cache)?)?;
        self.ln_2.forward_sum(&x, &self.mlp.forward(&x)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            c_attn: w.linear_transposed("c_attn", c.n_embd, 3 * c.n_embd)?,
            c_proj: w.linear_transposed("c_proj", c.n_embd, c.n_embd)?,
            heads: c.n_head,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head_width = width / self.heads;
        // q, k and v are concatenated, each with all heads.
        let qkv = self.c_attn.forward(x)?.reshape((batch, time, 3, self.heads, head_width))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let (k, v) = cache.append(&part(1)?, &part(2)?)?;
        self.c_proj.forward(&attend(&part(0)?, &k, &v, mask, 1.0 / (head_width as f64).sqrt())?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            c_fc: w.linear_transposed("c_fc", c.n_embd, 4 * c.n_embd)?,
            c_proj: w.linear_transposed("c_proj", 4 * c.n_embd, c.n_embd)?,
            activation: match c.afn {
                Afn::Gelu => Activation::GeluTanh,
                Afn::Relu => Activation::Relu,
                Afn::Silu | Afn::Swish => Activation::Silu,
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&self.c_fc.forward_then(x, self.activation)?)
    }
}

/// GPT-1.
pub static FAMILY: Family = Family {
    name: "gpt1",
    systems: &["GPT"],
    paper: "Radford et al. 2018, \"Improving Language Understanding by Generative Pre-Training\"",
    model_types: &["openai-gpt"],
    architectures: &["OpenAIGPTLMHeadModel", "OpenAIGPTModel"],
    keys: &KEYS,
    releases: &[Release::new("openai-community/openai-gpt", "GPT", "117M", "MIT")],
    rename,
    sample: || {
        json!({
            "architectures": ["OpenAIGPTLMHeadModel"], "model_type": "openai-gpt", "vocab_size": 61, "n_positions": 24,
            "n_embd": 32, "n_layer": 3, "n_head": 4, "afn": "gelu", "layer_norm_epsilon": 1e-5
        })
    },
    ..causal::family::<Gpt1>()
};
