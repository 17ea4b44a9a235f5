//! gpt-oss: OpenAI's open-weight decoder-only language model, with mixture-of-experts layers and attention sinks.
//!
//! OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925, section 2; Peng et al. 2023, "YaRN", arXiv
//! 2309.00071. Checked against transformers `GptOssForCausalLM`, parity cases `tests/parity/gpt_oss`.
//! Loads `model_type: "gpt_oss"`, with dense or MXFP4 experts, and OpenAI's original files of `original/`.
//! Activations are `(batch, sequence, hidden_size)`.

mod experts;
mod original;

use candle_core::Tensor;
use fauna_shared::attention::{Angles, Cache, LayerCache, Mask, Rope, RopeKeys, attend_with_sinks};
use fauna_shared::model::{
    BlockHook, CausalLm, DefaultTokens, Family, Keys, Model, Release, Step, check_heads, check_layer_types,
    check_sizes, check_unpacked,
};
use fauna_shared::nn::{Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{MatrixUse, Name, Piece, Weights};
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};

pub use original::layout;

use crate::causal::{self, embedding_and_head};
use experts::Mlp;

/// Config keys that are not fields of [`Config`]: aliases, older names, and keys without effect.
pub static KEYS: Keys = Keys {
    mapped: &[("num_experts", "num_local_experts")],
    // The experts' activation is fixed, and the router's loss is only for training.
    harmless: &["hidden_act", "output_router_logits", "router_aux_loss_coef"],
    ..Keys::NONE
};

/// The configuration: the keys of `config.json` that define the network, with the reference's defaults, those of
/// gpt-oss-120b.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Class that the checkpoint was saved from; only the first is used.
    pub architectures: Vec<String>,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate size of each expert.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention (query) heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads; as many as query heads if null.
    pub num_key_value_heads: Option<usize>,
    /// Dimension of each head; `hidden_size / num_attention_heads` if null.
    pub head_dim: Option<usize>,
    /// Maximum sequence length in training.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Sliding window of the sliding-attention layers, in tokens, the current one included.
    pub sliding_window: Option<usize>,
    /// Attention type of each layer, `sliding_attention` or `full_attention`; alternating if absent, the first sliding.
    pub layer_types: Option<Vec<String>>,
    /// Number of experts of each layer.
    pub num_local_experts: Option<usize>,
    /// Number of experts of each layer, by OpenAI's name.
    pub num_experts: Option<usize>,
    /// Number of experts per token.
    pub num_experts_per_tok: Option<usize>,
    /// Number of experts per token, by OpenAI's name; releases have both keys.
    pub experts_per_token: Option<usize>,
    /// Factor of the argument of the sigmoid in the experts' SwiGLU.
    pub swiglu_alpha: f64,
    /// Limit of the experts' SwiGLU: the gate is clamped from above, the up projection on both sides.
    pub swiglu_limit: f64,
    /// RoPE settings.
    pub rope_parameters: Option<Value>,
    /// RoPE scaling, in the earlier spelling.
    pub rope_scaling: Option<Value>,
    /// RoPE base (theta), in the earlier spelling.
    pub rope_theta: Option<f64>,
    /// Quantization: only `mxfp4`, of the experts, is implemented.
    pub quantization_config: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 201_088,
            hidden_size: 2880,
            intermediate_size: 2880,
            num_hidden_layers: 36,
            num_attention_heads: 64,
            num_key_value_heads: Some(8),
            head_dim: Some(64),
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            attention_bias: true,
            sliding_window: Some(128),
            layer_types: None,
            num_local_experts: None,
            num_experts: None,
            num_experts_per_tok: None,
            experts_per_token: None,
            swiglu_alpha: 1.702,
            swiglu_limit: 7.0,
            rope_parameters: None,
            rope_scaling: None,
            rope_theta: None,
            quantization_config: None,
        }
    }
}

impl Config {
    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn experts(&self) -> usize {
        self.num_local_experts.or(self.num_experts).unwrap_or(128)
    }

    fn experts_per_token(&self) -> usize {
        self.num_experts_per_tok.or(self.experts_per_token).unwrap_or(4)
    }

    /// Whether the experts are quantized, according to the config.
    fn packed(&self) -> bool {
        self.quantization_config.is_some()
    }

    /// Whether layer `i` has a sliding window.
    fn slides(&self, i: usize) -> bool {
        match &self.layer_types {
            Some(types) => types.get(i).is_some_and(|kind| kind == "sliding_attention"),
            None => i.is_multiple_of(2),
        }
    }

    fn check(&self) -> Result<()> {
        let packing = self.quantization_config.as_ref().filter(|packing| packing["quant_method"] != "mxfp4");
        check_unpacked(packing, "the official release, in mxfp4")?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_width()),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
            ("num_local_experts", self.experts()),
            ("num_experts_per_tok", self.experts_per_token()),
        ])?;
        self.check_layers()?;
        let (chosen, experts) = (self.experts_per_token(), self.experts());
        if chosen > experts {
            let message = format!("num_experts_per_tok {chosen} is more than num_local_experts {experts}");
            return Err(Error::unsupported(message));
        }
        check_heads(
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
        )
    }

    fn check_layers(&self) -> Result<()> {
        if let Some(types) = &self.layer_types {
            check_layer_types(types, self.num_hidden_layers)?;
        }
        match self.sliding_window {
            None if (0..self.num_hidden_layers).any(|i| self.slides(i)) => {
                Err(Error::unsupported("sliding_window is null, but there are sliding_attention layers"))
            }
            _ => Ok(()),
        }
    }

    /// RoPE by either spelling of the keys, or the reference's default, YaRN, if there are none.
    fn rope(&self) -> Result<Rope> {
        let said = [&self.rope_scaling, &self.rope_parameters].into_iter().flatten().next();
        let mut keys = said.cloned().unwrap_or_else(|| {
            json!({
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": 4096
            })
        });
        if let Some(keys) = keys.as_object_mut()
            && keys.get("rope_theta").is_none_or(Value::is_null)
        {
            keys.insert("rope_theta".into(), json!(self.rope_theta.unwrap_or(150_000.0)));
        }
        let keys: RopeKeys = serde_json::from_value(json!({ "rope_parameters": keys }))
            .map_err(|e| Error::new(ErrorKind::Format, format!("rope_parameters: {e}")))?;
        keys.rope(self.head_width(), self.max_position_embeddings)
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and
/// translates OpenAI's names.
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    match name.strip_prefix("model.") {
        Some(plain) => Name::To(plain.to_string()),
        None => original::rename(name),
    }
}

/// The network.
pub struct GptOss {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` for `GptOssModel`, which has no head.
    lm_head: Option<Linear>,
    rope: Rope,
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    slides: bool,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Attention sinks: one additional attention score per head, which belongs to no key.
    sinks: Tensor,
    head_width: usize,
}

impl Model for GptOss {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(c, i, &w.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let norm = w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        let bare = c.architectures.first().is_some_and(|name| name == "GptOssModel");
        let (embed_tokens, lm_head) = embedding_and_head(
            w,
            "embed_tokens",
            (c.vocab_size, c.hidden_size),
            c.tie_word_embeddings,
            bare,
        )?;
        let rope = c.rope()?;
        Ok(Self { embed_tokens, layers, norm, lm_head, rope, config })
    }
}

impl CausalLm for GptOss {
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

    /// The special tokens of all releases: `<|startoftext|>`; `<|return|>`, `<|endoftext|>` and `<|call|>`;
    /// `<|endoftext|>`. `<|end|>` ends a message and not the generation, since another message may follow.
    fn default_tokens(&self) -> DefaultTokens {
        DefaultTokens {
            bos: Some(199_998),
            eos: &[200_002, 199_999, 200_012],
            pad: Some(199_999),
            end_of_turn: None,
        }
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let mut x = embeddings.clone();
        let angles = self.rope.angles(step.positions, x.device())?;
        let near = step.mask.clone().with_window(self.config.sliding_window);
        for (i, block) in self.layers.iter().enumerate() {
            let mask = if block.slides { &near } else { step.mask };
            x = block.forward(&hook(i, x)?, &angles, mask, cache.layer(i))?;
        }
        self.norm.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.lm_head.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, i: usize, w: &Weights) -> Result<Self> {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
            slides: c.slides(i),
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.self_attn.forward(&self.input_layernorm.forward(x)?, angles, mask, cache)?)?;
        add(&x, &self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, head, bias) = (c.hidden_size, c.head_width(), c.attention_bias);
        let (q, kv) = (c.num_attention_heads * head, c.kv_heads() * head);
        // OpenAI's files store q, k and v as one matrix, concatenated by rows.
        let joined = w.has("qkv", false);
        let map = |name: &str, from: usize, outputs: usize| match joined {
            false => w.linear_bias_if(bias, name, width, outputs),
            true => {
                let piece = |part: &str| {
                    [Piece { name: format!("qkv.{part}"), of: q + 2 * kv, rows: from..from + outputs }]
                };
                let weight = w.stack(MatrixUse::Linear, &piece("weight"), width)?;
                let bias = bias.then(|| w.stack_bias(&piece("bias"))).transpose()?;
                Ok(Linear::new(weight, bias))
            }
        };
        Ok(Self {
            q_proj: map("q_proj", 0, q)?,
            k_proj: map("k_proj", q, kv)?,
            v_proj: map("v_proj", q + kv, kv)?,
            o_proj: w.linear_bias_if(bias, "o_proj", q, width)?,
            sinks: w.tensor("sinks", &[c.num_attention_heads])?,
            head_width: head,
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let split = |x: Tensor| x.reshape((batch, time, (), self.head_width));
        let q = angles.rotate(&split(self.q_proj.forward(x)?)?)?;
        let k = angles.rotate(&split(self.k_proj.forward(x)?)?)?;
        let (k, v) = cache.append(&k, &split(self.v_proj.forward(x)?)?)?;
        let scale = 1.0 / (self.head_width as f64).sqrt();
        self.o_proj.forward(&attend_with_sinks(&q, &k, &v, mask, scale, &self.sinks)?)
    }
}

/// gpt-oss in both sizes, and models fine-tuned from it.
pub static FAMILY: Family = Family {
    name: "gpt_oss",
    systems: &["GPT"],
    paper: "OpenAI 2025, arXiv 2508.10925",
    model_types: &["gpt_oss"],
    architectures: &["GptOssForCausalLM", "GptOssModel"],
    keys: &KEYS,
    releases: &[
        Release::new("openai/gpt-oss-20b", "GPT", "21B", "Apache-2.0"),
        Release::new("openai/gpt-oss-120b", "GPT", "117B", "Apache-2.0"),
        Release::new("openai/gpt-oss-safeguard-20b", "GPT", "21B", "Apache-2.0"),
        Release::new("openai/gpt-oss-safeguard-120b", "GPT", "117B", "Apache-2.0"),
    ],
    layout: Some(layout),
    rename,
    sample: || {
        json!({
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 10, "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "attention_bias": true,
            "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.05, "rope_theta": 5000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0, "beta_slow": 1.0,
                "original_max_position_embeddings": 8, "truncate": false}
        })
    },
    ..causal::family::<GptOss>()
};

#[cfg(test)]
mod tests;
