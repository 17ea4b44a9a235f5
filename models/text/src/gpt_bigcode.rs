//! GPTBigCode: the decoder-only language model of SantaCoder, StarCoder and StarChat, with multi-query attention.
//!
//! Li et al. 2023, "StarCoder: may the source be with you!", arXiv 2305.06161; Ben Allal et al. 2023, "SantaCoder",
//! arXiv 2301.03988; Shazeer 2019, "Fast Transformer Decoding", arXiv 1911.02150, section 3. Checked against
//! transformers `GPTBigCodeForCausalLM`, parity cases `tests/parity/starcoder`. Loads `model_type: "gpt_bigcode"` and
//! GGUF files of architecture "starcoder". Activations are `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::attention::{Cache, LayerCache, Mask, attend};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{
    self, BlockHook, CausalLm, Family, Model, Release, Step, check_heads, check_sizes, check_unpacked,
};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add, add_repeated};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::causal::{self, embedding_and_head};
use crate::gguf::{self, Keys};

/// Config keys that are not fields of [`Config`]: aliases, older names, and keys without effect.
pub static KEYS: model::Keys = model::Keys {
    mapped: &[
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
    // Files older than transformers 4.
    older: &[("n_ctx", "n_positions")],
    // Softmax is always computed in float32, as in the reference.
    harmless: &["attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"],
    types: &["gpt_bigcode"],
    ..model::Keys::NONE
};

/// The configuration: the keys of `config.json` that define the network, with the reference's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Class that the checkpoint was saved from; only the first is used.
    pub architectures: Vec<String>,
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Maximum sequence length.
    pub n_positions: usize,
    /// Hidden size.
    pub n_embd: usize,
    /// Number of layers.
    pub n_layer: usize,
    /// Number of attention (query) heads.
    pub n_head: usize,
    /// Intermediate size of the feed-forward layers; four times `n_embd` if null.
    pub n_inner: Option<usize>,
    /// Activation function of the feed-forward layers, which differs between the sizes of StarCoder.
    pub activation_function: Activation,
    /// Epsilon of the layer norms; 1e-5 if null.
    pub layer_norm_epsilon: Option<f64>,
    /// Multi-query attention: whether all heads share one key and one value head.
    pub multi_query: bool,
    /// Whether attention scores are divided by the square root of the head dimension.
    pub scale_attn_weights: bool,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Must be false: cross-attention is not implemented.
    pub add_cross_attention: bool,
    /// Must be absent: weights quantized by other libraries are not supported.
    pub quantization_config: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 50_257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: Activation::GeluTanh,
            layer_norm_epsilon: None,
            multi_query: true,
            scale_attn_weights: true,
            tie_word_embeddings: true,
            add_cross_attention: false,
            quantization_config: None,
        }
    }
}

impl Config {
    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    fn epsilon(&self) -> f64 {
        self.layer_norm_epsilon.unwrap_or(1e-5)
    }

    fn check(&self) -> Result<()> {
        if self.add_cross_attention {
            return Err(Error::unsupported("add_cross_attention is not implemented for gpt_bigcode"));
        }
        check_unpacked(self.quantization_config.as_ref(), "a GGUF file")?;
        check_sizes(&[("vocab_size", self.vocab_size), ("n_positions", self.n_positions)])?;
        check_sizes(&[("n_inner", self.n_inner.unwrap_or(1))])?;
        check_heads(("n_embd", self.n_embd), ("n_head", self.n_head))
    }
}

/// Top-level tensors: GGUF's names, and those of this module.
const TOP: [(&str, &str); 4] =
    [("token_embd", "wte"), ("position_embd", "wpe"), ("output_norm", "ln_f"), ("output", "lm_head")];

/// Tensors of a block: GGUF's names, and those of this module.
const PARTS: [(&str, &str); 6] = [
    ("attn_norm", "ln_1"),
    ("attn_qkv", "attn.c_attn"),
    ("attn_output", "attn.c_proj"),
    ("ffn_norm", "ln_2"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];

/// Maps the tensor names of a release to those of this module: removes the prefix of a model with a head, ignores the
/// buffers of older files, and translates GGUF names.
pub fn rename(name: &str) -> Name {
    let plain = name.strip_prefix("transformer.").unwrap_or(name);
    if plain.ends_with(".attn.bias") || plain.ends_with(".attn.masked_bias") {
        return Name::Ignore;
    }
    if plain != name {
        return Name::To(plain.to_string());
    }
    gguf::rename(name, &TOP, "h", &PARTS)
}

/// The network.
pub struct GptBigCode {
    config: Config,
    wte: Embedding,
    wpe: Embedding,
    h: Vec<Block>,
    ln_f: LayerNorm,
    /// `None` for `GPTBigCodeModel`, which has no head.
    lm_head: Option<Linear>,
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
    multi_query: bool,
    scale: f64,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    activation: Activation,
}

impl Model for GptBigCode {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let wpe = w.embedding("wpe", c.n_positions, c.n_embd)?;
        let h = (0..c.n_layer).map(|i| Block::load(c, &w.at_index("h", i))).collect::<Result<_>>()?;
        let ln_f = w.layer_norm("ln_f", c.n_embd, c.epsilon())?;
        let bare = c.architectures.first().is_some_and(|name| name == "GPTBigCodeModel");
        let (wte, lm_head) =
            embedding_and_head(w, "wte", (c.vocab_size, c.n_embd), c.tie_word_embeddings, bare)?;
        Ok(Self { wte, wpe, h, ln_f, lm_head, config })
    }
}

impl CausalLm for GptBigCode {
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

    fn is_trained_on_code(&self) -> bool {
        true
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.wte.forward(ids)
    }

    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let positions = step.positions.tensor(embeddings.device())?;
        let mut x = add_repeated(embeddings, &self.wpe.forward(&positions)?)?;
        if let Some(types) = step.token_type_ids {
            // Token types are token ids, looked up in the token embeddings, as in GPT-2.
            x = add(&x, &self.wte.forward(types)?)?;
        }
        for (i, block) in self.h.iter().enumerate() {
            x = block.forward(&hook(i, x)?, step.mask, cache.layer(i))?;
        }
        self.ln_f.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.lm_head.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            ln_1: w.layer_norm("ln_1", c.n_embd, c.epsilon())?,
            attn: Attention::load(c, &w.at("attn"))?,
            ln_2: w.layer_norm("ln_2", c.n_embd, c.epsilon())?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.attn.forward(&self.ln_1.forward(x)?, mask, cache)?)?;
        add(&x, &self.mlp.forward(&self.ln_2.forward(&x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let head_width = c.n_embd / c.n_head;
        let kv_heads = if c.multi_query { 1 } else { c.n_head };
        Ok(Self {
            c_attn: w.linear("c_attn", c.n_embd, c.n_embd + 2 * kv_heads * head_width)?,
            c_proj: w.linear("c_proj", c.n_embd, c.n_embd)?,
            heads: c.n_head,
            multi_query: c.multi_query,
            scale: if c.scale_attn_weights { 1.0 / (head_width as f64).sqrt() } else { 1.0 },
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let qkv = self.c_attn.forward(x)?;
        let (q, k, v) = match self.multi_query {
            // The queries of all heads, then the single key and value.
            true => {
                let qkv = qkv.reshape((batch, time, self.heads + 2, ()))?;
                let part = |first, heads| qkv.narrow(2, first, heads);
                (part(0, self.heads)?, part(self.heads, 1)?, part(self.heads + 1, 1)?)
            }
            // q, k and v are interleaved by head.
            false => {
                let qkv = qkv.reshape((batch, time, self.heads, 3, ()))?;
                let part = |i| qkv.narrow(3, i, 1)?.squeeze(3);
                (part(0)?, part(1)?, part(2)?)
            }
        };
        let (k, v) = cache.append(&k, &v)?;
        self.c_proj.forward(&attend(&q, &k, &v, mask, self.scale)?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            c_fc: w.linear("c_fc", c.n_embd, c.inner())?,
            c_proj: w.linear("c_proj", c.inner(), c.n_embd)?,
            activation: c.activation_function,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&self.c_fc.forward_then(x, self.activation)?)
    }
}

/// Builds the config of a GGUF file, with the keys of `config.json`.
///
/// # Errors
/// [`Format`](fauna_shared::ErrorKind::Format) with the metadata key that is missing;
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for multi-head attention, which no converter writes.
pub fn config_of_gguf(checkpoint: &Checkpoint) -> Result<Value> {
    let keys = Keys::of(checkpoint, "starcoder");
    let kv_heads = keys.number("attention.head_count_kv").unwrap_or(1);
    if kv_heads != 1 {
        return Err(Error::unsupported(format!("starcoder.attention.head_count_kv is {kv_heads}"))
            .hint("expected 1: only multi-query attention is supported in GGUF files of this architecture"));
    }
    let width = keys.need("embedding_length")?;
    // GGUF files have no key for it: the two largest models, known by their hidden size, use exact GELU.
    let activation = if matches!(width, 4096 | 6144) { "gelu" } else { "gelu_pytorch_tanh" };
    Ok(json!({
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "vocab_size": keys.vocab_size(),
        "n_positions": keys.need("context_length")?,
        "n_embd": width,
        "n_layer": keys.need("block_count")?,
        "n_head": keys.need("attention.head_count")?,
        "n_inner": keys.number("feed_forward_length"),
        "activation_function": activation,
        "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon"),
        "tie_word_embeddings": !keys.has("output.weight"),
        "bos_token_id": keys.token("bos"),
        "eos_token_id": keys.token("eos"),
        "pad_token_id": keys.token("padding"),
    }))
}

/// GPTBigCode: SantaCoder, StarCoder and StarChat.
pub static FAMILY: Family = Family {
    name: "gpt_bigcode",
    systems: &["StarCoder"],
    paper: "Li et al. 2023, arXiv 2305.06161; Ben Allal et al. 2023, arXiv 2301.03988",
    model_types: &["gpt_bigcode"],
    architectures: &["GPTBigCodeForCausalLM", "GPTBigCodeModel"],
    gguf: &["starcoder"],
    keys: &KEYS,
    releases: &[
        Release::new("bigcode/starcoder", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderplus", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase-7b", "StarCoder", "7B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase-3b", "StarCoder", "3B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/starcoderbase-1b", "StarCoder", "1.1B", "BigCode OpenRAIL-M"),
        Release::new("bigcode/tiny_starcoder_py", "StarCoder", "164M", "BigCode OpenRAIL-M"),
        Release::new("bigcode/gpt_bigcode-santacoder", "StarCoder", "1.1B", "BigCode OpenRAIL-M"),
        Release::new("HuggingFaceH4/starchat-alpha", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
        Release::new("HuggingFaceH4/starchat-beta", "StarCoder", "15.5B", "BigCode OpenRAIL-M"),
    ],
    config_of_gguf: Some(config_of_gguf),
    rename,
    sample: || {
        json!({
            "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "vocab_size": 61,
            "n_positions": 24, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 96, "activation_function": "gelu",
            "layer_norm_epsilon": 1e-5, "multi_query": true, "scale_attn_weights": true, "tie_word_embeddings": false
        })
    },
    ..causal::family::<GptBigCode>()
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The error of loading the sample config with `value` at `key`.
    fn load_error(key: &str, value: Value) -> String {
        let mut config = (crate::gpt_bigcode::FAMILY.sample)();
        config[key] = value;
        let load = |config| GptBigCode::load(config, &Weights::meta()).map(|_| ());
        let loaded = serde_json::from_value(config).map_err(|error| error.to_string());
        loaded.and_then(|config| load(config).map_err(|error| error.to_string())).expect_err(key)
    }

    #[test]
    fn tensor_names_of_every_format_map_to_one_set() {
        for name in ["transformer.h.3.attn.c_attn.bias", "blk.3.attn_qkv.bias"] {
            assert_eq!(rename(name), Name::To("h.3.attn.c_attn.bias".into()));
        }
        assert_eq!(rename("h.3.mlp.c_fc.weight"), Name::Keep);
        for buffer in ["transformer.h.0.attn.bias", "h.0.attn.masked_bias"] {
            assert_eq!(rename(buffer), Name::Ignore);
        }
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        assert!(load_error("add_cross_attention", json!(true)).contains("add_cross_attention"));
        assert!(load_error("quantization_config", json!({"quant_method": "gptq"})).contains("\"gptq\""));
        assert!(load_error("activation_function", json!("gelu_unknown")).contains("gelu_unknown"));
    }

    #[test]
    fn inconsistent_sizes_are_refused_by_name() {
        let error = load_error("n_embd", json!(33));
        assert!(error.contains("n_embd 33 is not a multiple of n_head 4"), "{error}");
        assert!(load_error("n_inner", json!(0)).contains("n_inner is 0"));
        assert!(load_error("n_positions", json!(0)).contains("n_positions is 0"));
    }

    #[test]
    fn null_or_absent_keys_have_the_references_defaults() {
        let keys = json!({"vocab_size": 8, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2});
        let mut nulls = keys.clone();
        (nulls["layer_norm_epsilon"], nulls["n_inner"]) = (Value::Null, Value::Null);
        for keys in [keys, nulls] {
            let config: Config = serde_json::from_value(keys).unwrap();
            assert_eq!((config.epsilon(), config.inner()), (1e-5, 32));
            assert_eq!(config.activation_function, Activation::GeluTanh);
            assert!(config.multi_query && config.tie_word_embeddings && config.scale_attn_weights);
        }
    }
}
