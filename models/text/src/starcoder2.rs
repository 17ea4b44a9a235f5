//! StarCoder2: a decoder-only language model with grouped-query attention, RoPE and a sliding window in every layer.
//!
//! Lozhkov et al. 2024, "StarCoder 2 and The Stack v2", arXiv 2402.19173. Checked against transformers
//! `Starcoder2ForCausalLM`, parity cases `tests/parity/starcoder`. Loads `model_type: "starcoder2"` and GGUF files of
//! that architecture. Activations are `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Angles, Cache, LayerCache, Mask, Rope, RopeKeys, attend};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{
    BlockHook, CausalLm, Family, Model, Release, Step, check_heads, check_sizes, check_unpacked,
};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add};
use fauna_shared::weights::{Name, Weights};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::causal::{self, embedding_and_head};
use crate::gguf::{self, Keys};

/// The configuration: the keys of `config.json` that define the network. `activation_function` and `rms_norm_eps`,
/// which some releases have too, are ignored.
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
    /// Number of attention (query) heads.
    pub num_attention_heads: usize,
    /// Number of key/value heads.
    pub num_key_value_heads: usize,
    /// Dimension of each head; `hidden_size / num_attention_heads` if absent.
    pub head_dim: Option<usize>,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Maximum sequence length in training.
    pub max_position_embeddings: usize,
    /// Epsilon of the layer norms.
    pub norm_epsilon: f64,
    /// Sliding window of attention, in tokens, the current one included; unlimited if null.
    pub sliding_window: Option<usize>,
    /// Whether the linear layers of attention and feed-forward have biases.
    pub use_bias: bool,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Must be absent: weights quantized by other libraries are not supported.
    pub quantization_config: Option<Value>,
    /// RoPE settings, as `rope_theta` and `rope_scaling` or as `rope_parameters`.
    #[serde(flatten)]
    pub rope: RopeKeys,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 49_152,
            hidden_size: 3072,
            intermediate_size: 12_288,
            num_hidden_layers: 30,
            num_attention_heads: 24,
            num_key_value_heads: 2,
            head_dim: None,
            hidden_act: Activation::GeluTanh,
            max_position_embeddings: 4096,
            norm_epsilon: 1e-5,
            sliding_window: None,
            use_bias: true,
            tie_word_embeddings: true,
            quantization_config: None,
            rope: RopeKeys::default(),
        }
    }
}

impl Config {
    fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    fn check(&self) -> Result<()> {
        check_unpacked(self.quantization_config.as_ref(), "a GGUF file")?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_width()),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ])?;
        if self.head_dim.is_none() {
            check_heads(
                ("hidden_size", self.hidden_size),
                ("num_attention_heads", self.num_attention_heads),
            )?;
        }
        check_heads(
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        )
    }
}

/// Top-level tensors: GGUF's names, and those of this module.
const TOP: [(&str, &str); 3] =
    [("token_embd", "embed_tokens"), ("output_norm", "norm"), ("output", "lm_head")];

/// Tensors of a block: GGUF's names, and those of this module.
const PARTS: [(&str, &str); 8] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and
/// translates GGUF names.
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    if let Some(plain) = name.strip_prefix("model.") {
        return Name::To(plain.to_string());
    }
    gguf::rename(name, &TOP, "layers", &PARTS)
}

/// The network.
pub struct Starcoder2 {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: LayerNorm,
    /// `None` for `Starcoder2Model`, which has no head.
    lm_head: Option<Linear>,
    rope: Rope,
}

struct Block {
    input_layernorm: LayerNorm,
    self_attn: Attention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    head_width: usize,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    hidden_act: Activation,
}

impl Model for Starcoder2 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(c, &w.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let norm = w.layer_norm("norm", c.hidden_size, c.norm_epsilon)?;
        let bare = c.architectures.first().is_some_and(|name| name == "Starcoder2Model");
        let (embed_tokens, lm_head) = embedding_and_head(
            w,
            "embed_tokens",
            (c.vocab_size, c.hidden_size),
            c.tie_word_embeddings,
            bare,
        )?;
        let rope = c.rope.rope(c.head_width(), c.max_position_embeddings)?;
        Ok(Self { embed_tokens, layers, norm, lm_head, rope, config })
    }
}

impl CausalLm for Starcoder2 {
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

    fn is_trained_on_code(&self) -> bool {
        true
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let angles = self.rope.angles(step.positions, embeddings.device())?;
        let mask = step.mask.clone().with_window(self.config.sliding_window);
        let mut x = embeddings.clone();
        for (i, block) in self.layers.iter().enumerate() {
            x = block.forward(&hook(i, x)?, &angles, &mask, cache.layer(i))?;
        }
        self.norm.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.lm_head.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let norm = |name| w.layer_norm(name, c.hidden_size, c.norm_epsilon);
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.self_attn.forward(&self.input_layernorm.forward(x)?, angles, mask, cache)?)?;
        add(&x, &self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, head, bias) = (c.hidden_size, c.head_width(), c.use_bias);
        Ok(Self {
            q_proj: w.linear_bias_if(bias, "q_proj", width, c.num_attention_heads * head)?,
            k_proj: w.linear_bias_if(bias, "k_proj", width, c.num_key_value_heads * head)?,
            v_proj: w.linear_bias_if(bias, "v_proj", width, c.num_key_value_heads * head)?,
            o_proj: w.linear_bias_if(bias, "o_proj", c.num_attention_heads * head, width)?,
            head_width: head,
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let split = |x: Tensor| x.reshape((batch, time, (), self.head_width));
        let q = angles.rotate(&split(self.q_proj.forward(x)?)?)?;
        let k = angles.rotate(&split(self.k_proj.forward(x)?)?)?;
        let (k, v) = cache.append(&k, &split(self.v_proj.forward(x)?)?)?;
        self.o_proj.forward(&attend(&q, &k, &v, mask, 1.0 / (self.head_width as f64).sqrt())?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            c_fc: w.linear_bias_if(c.use_bias, "c_fc", c.hidden_size, c.intermediate_size)?,
            c_proj: w.linear_bias_if(c.use_bias, "c_proj", c.intermediate_size, c.hidden_size)?,
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&self.c_fc.forward_then(x, self.hidden_act)?)
    }
}

/// Builds the config of a GGUF file, with the keys of `config.json`.
///
/// # Errors
/// [`Format`](fauna_shared::ErrorKind::Format) with the metadata key that is missing.
pub fn config_of_gguf(checkpoint: &Checkpoint) -> Result<Value> {
    let keys = Keys::of(checkpoint, "starcoder2");
    let heads = keys.need("attention.head_count")?;
    Ok(json!({
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "vocab_size": keys.vocab_size(),
        "hidden_size": keys.need("embedding_length")?,
        "intermediate_size": keys.need("feed_forward_length")?,
        "num_hidden_layers": keys.need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv").unwrap_or(heads),
        "head_dim": keys.number("attention.key_length"),
        "max_position_embeddings": keys.need("context_length")?,
        "norm_epsilon": keys.real("attention.layer_norm_epsilon").unwrap_or(1e-5),
        // Converters omit the key; every release has this value.
        "sliding_window": keys.number("attention.sliding_window").unwrap_or(4096),
        "use_bias": keys.has("blk.0.attn_q.bias"),
        "tie_word_embeddings": !keys.has("output.weight"),
        "rope_theta": keys.real("rope.freq_base").unwrap_or(10_000.0),
        "rope_scaling": keys.rope_scaling(),
        "bos_token_id": keys.token("bos"),
        "eos_token_id": keys.token("eos"),
        "pad_token_id": keys.token("padding"),
    }))
}

/// StarCoder2.
pub static FAMILY: Family = Family {
    name: "starcoder2",
    systems: &["StarCoder"],
    paper: "Lozhkov et al. 2024, arXiv 2402.19173",
    model_types: &["starcoder2"],
    architectures: &["Starcoder2ForCausalLM", "Starcoder2Model"],
    gguf: &["starcoder2"],
    releases: &[
        Release::new("bigcode/starcoder2-3b", "StarCoder", "3B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoder2-7b", "StarCoder", "7B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoder2-15b", "StarCoder", "16B", "BigCode OpenRAIL-M"),
    ],
    config_of_gguf: Some(config_of_gguf),
    rename,
    sample: || {
        json!({
            "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "vocab_size": 61,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 24,
            "norm_epsilon": 1e-5, "sliding_window": 3, "use_bias": true, "rope_theta": 5000.0,
            "tie_word_embeddings": false
        })
    },
    ..causal::family::<Starcoder2>()
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of loading the sample config with `value` at `key`.
    fn load_error(key: &str, value: Value) -> String {
        let mut config = (crate::starcoder2::FAMILY.sample)();
        config[key] = value;
        let load = |config| Starcoder2::load(config, &Weights::meta()).map(|_| ());
        let loaded = serde_json::from_value(config).map_err(|error| error.to_string());
        loaded.and_then(|config| load(config).map_err(|error| error.to_string())).expect_err(key)
    }

    #[test]
    fn tensor_names_of_every_format_map_to_one_set() {
        for name in ["model.layers.3.self_attn.q_proj.bias", "blk.3.attn_q.bias"] {
            assert_eq!(rename(name), Name::To("layers.3.self_attn.q_proj.bias".into()));
        }
        for name in ["model.layers.0.mlp.c_proj.weight", "blk.0.ffn_down.weight"] {
            assert_eq!(rename(name), Name::To("layers.0.mlp.c_proj.weight".into()));
        }
        assert_eq!(rename("lm_head.weight"), Name::Keep);
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        assert!(load_error("quantization_config", json!({"quant_method": "awq"})).contains("\"awq\""));
        assert!(load_error("hidden_act", json!("gelu_unknown")).contains("gelu_unknown"));
        assert!(load_error("rope_scaling", json!({"rope_type": "su"})).contains("\"su\""));
    }

    #[test]
    fn inconsistent_sizes_are_refused_by_name() {
        let error = load_error("num_key_value_heads", json!(3));
        assert!(
            error.contains("num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
            "{error}"
        );
        let error = load_error("hidden_size", json!(34));
        assert!(error.contains("hidden_size 34 is not a multiple of num_attention_heads 4"), "{error}");
        assert!(load_error("sliding_window", json!(0)).contains("sliding_window is 0"));
    }

    #[test]
    fn absent_keys_have_the_references_defaults() {
        let config: Config = serde_json::from_value(json!({
            "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2
        }))
        .unwrap();
        assert!(config.tie_word_embeddings && config.use_bias);
        assert_eq!((config.sliding_window, config.num_key_value_heads), (None, 2));
        assert_eq!(config.rope.rope(4, 4096).unwrap(), Rope::new(10_000.0, 4, Default::default()).unwrap());
    }
}
