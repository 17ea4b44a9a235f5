//! Qwen2 and Qwen2.5: decoder-only language models like Llama, with biases in the query, key and value projections, and
//! optionally a sliding window in the upper layers.
//!
//! Yang et al. 2024, "Qwen2 Technical Report", arXiv 2407.10671, section 2.2; Qwen Team 2024, "Qwen2.5 Technical
//! Report", arXiv 2412.15115, section 2. Checked against transformers `Qwen2ForCausalLM`, parity cases
//! `tests/parity/qwen2`. Loads `model_type: "qwen2"` and GGUF files of architecture "qwen2". Activations are
//! `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::attention::{Angles, Cache, LayerCache, Mask, Rope, RopeKeys, attend};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{
    BlockHook, CausalLm, Family, Model, Release, Step, check_heads, check_layer_types, check_sizes,
    check_unpacked,
};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::causal::{self, embedding_and_head};
use crate::gguf;

/// The configuration: the keys of `config.json` that define the network, with the reference's defaults.
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
    /// Number of key/value heads; as many as query heads if null.
    pub num_key_value_heads: Option<usize>,
    /// Dimension of each head; `hidden_size / num_attention_heads` if absent.
    pub head_dim: Option<usize>,
    /// Activation function of the gated feed-forward layers.
    pub hidden_act: Activation,
    /// Maximum sequence length in training.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Whether to use a sliding window.
    pub use_sliding_window: bool,
    /// Sliding window of attention, in tokens, the current one included.
    pub sliding_window: Option<usize>,
    /// Index of the first layer with the sliding window, if `layer_types` is absent.
    pub max_window_layers: usize,
    /// Attention type of each layer: `sliding_attention` or `full_attention`.
    pub layer_types: Option<Vec<String>>,
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
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: Some(32),
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 32_768,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            use_sliding_window: false,
            sliding_window: Some(4096),
            max_window_layers: 28,
            layer_types: None,
            quantization_config: None,
            rope: RopeKeys::default(),
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

    /// Sliding window of layer `i`; `None` for full attention.
    fn window(&self, i: usize) -> Option<usize> {
        let window = self.sliding_window.filter(|_| self.use_sliding_window);
        let slides = match &self.layer_types {
            Some(types) => types.get(i).is_some_and(|kind| kind == "sliding_attention"),
            None => i >= self.max_window_layers,
        };
        window.filter(|_| slides)
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
        if let Some(types) = &self.layer_types {
            self.check_layers(types)?;
        }
        check_heads(
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
        )
    }

    fn check_layers(&self, types: &[String]) -> Result<()> {
        check_layer_types(types, self.num_hidden_layers)?;
        let slides = types.iter().any(|kind| kind == "sliding_attention");
        match self.use_sliding_window && self.sliding_window.is_some() {
            false if slides => Err(Error::unsupported(
                "layer_types has sliding_attention, but use_sliding_window is false or sliding_window is not set",
            )),
            _ => Ok(()),
        }
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and
/// translates GGUF names.
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    match name.strip_prefix("model.") {
        Some(plain) => Name::To(plain.to_string()),
        None => gguf::rename(name, &gguf::GATED_TOP, "layers", &gguf::GATED_BLOCK),
    }
}

/// The network.
pub struct Qwen2 {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` for `Qwen2Model`, which has no head.
    lm_head: Option<Linear>,
    rope: Rope,
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    window: Option<usize>,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    head_width: usize,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    hidden_act: Activation,
}

impl Model for Qwen2 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(c, i, &w.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let norm = w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        let bare = c.architectures.first().is_some_and(|name| name == "Qwen2Model");
        let (embed_tokens, lm_head) = embedding_and_head(
            w,
            "embed_tokens",
            (c.vocab_size, c.hidden_size),
            c.tie_word_embeddings,
            bare,
        )?;
        let rope = c.rope.rope(c.head_width(), c.max_position_embeddings).map_err(|error| {
            error.context(format!(
                "head_dim {} of hidden_size {} over num_attention_heads {}",
                c.head_width(),
                c.hidden_size,
                c.num_attention_heads
            ))
        })?;
        Ok(Self { embed_tokens, layers, norm, lm_head, rope, config })
    }
}

impl CausalLm for Qwen2 {
    fn num_hidden_layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let angles = self.rope.angles(step.positions, embeddings.device())?;
        let sliding = step.mask.clone().with_window(self.config.sliding_window);
        let mut x = embeddings.clone();
        for (i, block) in self.layers.iter().enumerate() {
            let mask = if block.window.is_some() { &sliding } else { step.mask };
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
            window: c.window(i),
        })
    }

    fn forward(&self, x: &Tensor, angles: &Angles, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.self_attn.forward(&self.input_layernorm.forward(x)?, angles, mask, cache)?)?;
        add(&x, &self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, head) = (c.hidden_size, c.head_width());
        Ok(Self {
            q_proj: w.linear("q_proj", width, c.num_attention_heads * head)?,
            k_proj: w.linear("k_proj", width, c.kv_heads() * head)?,
            v_proj: w.linear("v_proj", width, c.kv_heads() * head)?,
            o_proj: w.linear_no_bias("o_proj", c.num_attention_heads * head, width)?,
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
            gate_proj: w.linear_no_bias("gate_proj", c.hidden_size, c.intermediate_size)?,
            up_proj: w.linear_no_bias("up_proj", c.hidden_size, c.intermediate_size)?,
            down_proj: w.linear_no_bias("down_proj", c.intermediate_size, c.hidden_size)?,
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = self.hidden_act.gated(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }
}

/// Builds the config of a GGUF file, with the keys of `config.json`. Unlike Llama's, Qwen2's GGUF files keep the row
/// order of q and k.
///
/// # Errors
/// [`Format`](fauna_shared::ErrorKind::Format) with the metadata key that is missing.
pub fn config_of_gguf(checkpoint: &Checkpoint) -> Result<Value> {
    let keys = gguf::Keys::of(checkpoint, "qwen2");
    let heads = keys.need("attention.head_count")?;
    Ok(json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": keys.vocab_size().or(keys.number("vocab_size")),
        "hidden_size": keys.need("embedding_length")?,
        "intermediate_size": keys.need("feed_forward_length")?,
        "num_hidden_layers": keys.need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv").unwrap_or(heads),
        "head_dim": keys.number("attention.key_length"),
        "max_position_embeddings": keys.need("context_length")?,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon").unwrap_or(1e-6),
        "tie_word_embeddings": !keys.has("output.weight"),
        "rope_theta": keys.real("rope.freq_base").unwrap_or(10_000.0),
        "rope_scaling": keys.rope_scaling(),
        "bos_token_id": keys.token("bos"),
        "eos_token_id": keys.token("eos"),
        "pad_token_id": keys.token("padding"),
    }))
}

/// Qwen2 and Qwen2.5, base and instruction-tuned, with Qwen2.5-Coder and Qwen2.5-Math.
pub static FAMILY: Family = Family {
    name: "qwen2",
    systems: &["Qwen"],
    paper: "Yang et al. 2024, arXiv 2407.10671; Qwen Team 2024, arXiv 2412.15115",
    model_types: &["qwen2"],
    architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
    gguf: &["qwen2"],
    releases: &[
        Release::new("Qwen/Qwen2-0.5B", "Qwen", "494M", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-0.5B", "Qwen", "494M", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-0.5B-Instruct", "Qwen", "494M", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-1.5B-Instruct", "Qwen", "1.5B", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-3B-Instruct", "Qwen", "3.1B", "Qwen Research"),
        Release::new("Qwen/Qwen2.5-7B-Instruct", "Qwen", "7.6B", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-14B-Instruct", "Qwen", "15B", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-32B-Instruct", "Qwen", "33B", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-72B-Instruct", "Qwen", "73B", "Qwen"),
        Release::new("Qwen/Qwen2.5-Coder-7B-Instruct", "Qwen", "7.6B", "Apache-2.0"),
        Release::new("Qwen/Qwen2.5-Math-7B-Instruct", "Qwen", "7.6B", "Apache-2.0"),
    ],
    config_of_gguf: Some(config_of_gguf),
    rename,
    sample: || {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "use_sliding_window": true, "sliding_window": 3,
            "max_window_layers": 1, "rope_theta": 5000.0
        })
    },
    ..causal::family::<Qwen2>()
};
