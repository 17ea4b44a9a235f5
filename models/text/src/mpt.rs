//! MPT: a decoder-only language model with ALiBi in place of position embeddings.
//!
//! MosaicML 2023, "Introducing MPT-7B"; Press et al. 2021, "Train Short, Test Long", arXiv 2108.12409 (ALiBi).
//! Checked against transformers `MptForCausalLM`, parity cases `tests/parity/mpt`.
//! Loads `model_type: "mpt"` and the earlier `"mosaic_gpt"` of MPT-1B, which normalises queries and keys over the full
//! hidden size. Activations are `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::attention::{Cache, LayerCache, Mask, PositionBias, attend};
use fauna_shared::model::{
    BlockHook, CausalLm, Family, Keys, Model, Plain, Release, Step, check_heads, check_sizes,
};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::causal::{self, embedding_and_head};

/// Config keys that are not fields of [`Config`]: the reference's names, and those of MosaicGPT's flat configs.
pub static KEYS: Keys = Keys {
    mapped: &[
        ("num_attention_heads", "n_heads"),
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "n_layers"),
    ],
    older: &[
        ("mlp_ratio", "expansion_ratio"),
        ("attn_clip_qkv", "clip_qkv"),
        ("attn_qk_ln", "qk_ln"),
        ("attn_softmax_scale", "softmax_scale"),
    ],
    only: &[("no_bias", &[Plain::Bool(true)])],
    // A scale of gradients, and position embeddings that MPT does not have.
    harmless: &["embedding_fraction", "init_device", "learned_pos_emb"],
    parts: &[("attn_config", &ATTENTION_KEYS)],
    types: &["mpt", "mosaic_gpt"],
    ..Keys::NONE
};

/// Config keys that are not fields of [`AttentionConfig`].
static ATTENTION_KEYS: Keys = Keys {
    only: &[("attn_uses_sequence_id", &[Plain::Bool(false)])],
    harmless: &["attn_impl"],
    ..Keys::NONE
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
    pub d_model: usize,
    /// Number of attention heads.
    pub n_heads: usize,
    /// Number of layers.
    pub n_layers: usize,
    /// Intermediate size of the feed-forward layers, as a multiple of the hidden size.
    pub expansion_ratio: usize,
    /// Maximum sequence length in training.
    pub max_seq_len: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_epsilon: f64,
    /// Whether the output head is tied to the token embeddings.
    pub tie_word_embeddings: bool,
    /// Type of normalisation: only layer norms are implemented.
    pub norm_type: Option<String>,
    /// Must be absent: scaled logits are not implemented.
    pub logit_scale: Option<Value>,
    /// Feed-forward settings: only `mptmlp` is implemented.
    pub ffn_config: Option<Value>,
    /// Attention settings.
    pub attn_config: Option<AttentionConfig>,
    /// Attention settings at the top level, as in earlier files.
    #[serde(flatten)]
    pub flat: AttentionConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            architectures: Vec::new(),
            vocab_size: 50_368,
            d_model: 2048,
            n_heads: 16,
            n_layers: 24,
            expansion_ratio: 4,
            max_seq_len: 2048,
            layer_norm_epsilon: 1e-5,
            tie_word_embeddings: true,
            norm_type: None,
            logit_scale: None,
            ffn_config: None,
            attn_config: None,
            flat: AttentionConfig::default(),
        }
    }
}

/// Attention settings of MPT.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct AttentionConfig {
    /// Only `multihead_attention` is implemented.
    #[serde(default)]
    pub attn_type: Option<String>,
    /// Must be true: only ALiBi is implemented.
    #[serde(default)]
    pub alibi: Option<bool>,
    /// The smallest ALiBi slope is `2^-alibi_bias_max`: 8 in every release.
    #[serde(default)]
    pub alibi_bias_max: Option<f64>,
    /// Queries, keys and values are clamped to `[-clip_qkv, clip_qkv]`.
    #[serde(default)]
    pub clip_qkv: Option<f64>,
    /// Scale of the attention scores; `1 / sqrt(head_dim)` if absent.
    #[serde(default)]
    pub softmax_scale: Option<f64>,
    /// Whether queries and keys are normalised over the full hidden size.
    #[serde(default)]
    pub qk_ln: Option<bool>,
    /// Must be false: normalisation of queries and keys per head is not implemented.
    #[serde(default)]
    pub qk_gn: Option<bool>,
    /// Must be false: bidirectional attention within a prefix is not implemented.
    #[serde(default)]
    pub prefix_lm: Option<bool>,
    /// Must be false: RoPE is not implemented.
    #[serde(default)]
    pub rope: Option<bool>,
    /// Must be absent or -1: a sliding window is not implemented.
    #[serde(default)]
    pub sliding_window_size: Option<i64>,
}

impl Config {
    fn attention(&self) -> &AttentionConfig {
        self.attn_config.as_ref().unwrap_or(&self.flat)
    }

    fn check(&self) -> Result<()> {
        let a = self.attention();
        let refused = [
            ("alibi false", a.alibi == Some(false)),
            ("prefix_lm", a.prefix_lm == Some(true)),
            ("qk_gn", a.qk_gn == Some(true)),
            ("rope", a.rope == Some(true)),
            ("sliding_window_size", a.sliding_window_size.is_some_and(|size| size >= 0)),
            ("logit_scale", self.logit_scale.as_ref().is_some_and(|scale| !scale.is_null())),
        ];
        let names = [
            ("attn_type", a.attn_type.as_deref(), &["multihead_attention"][..]),
            ("norm_type", self.norm_type.as_deref(), &["low_precision_layernorm", "layernorm"]),
            ("ffn_type", self.ffn_config.as_ref().and_then(|ffn| ffn["ffn_type"].as_str()), &["mptmlp"]),
        ];
        let refuse = |what: String| Err(Error::unsupported(format!("{what} is not implemented for mpt")));
        if let Some((key, _)) = refused.into_iter().find(|(_, asked)| *asked) {
            return refuse(key.to_string());
        }
        for (key, found, known) in names {
            if let Some(found) = found.filter(|found| !known.contains(found)) {
                return refuse(format!("{key} \"{found}\""));
            }
        }
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("expansion_ratio", self.expansion_ratio),
            ("max_seq_len", self.max_seq_len),
        ])?;
        check_heads(("d_model", self.d_model), ("n_heads", self.n_heads))
    }

    /// ALiBi slope of each head: a geometric sequence, `2^-1, …, 2^-8` for 8 heads. If the number of heads is no power
    /// of two: the slopes of the next power of two, those with odd index first.
    fn slopes(&self) -> Vec<f32> {
        // The reference ignores `alibi_bias_max` of an `attn_config` and always uses 8.
        let flattest = match &self.attn_config {
            Some(_) => 8.0,
            None => self.flat.alibi_bias_max.unwrap_or(8.0),
        };
        let heads = self.n_heads.next_power_of_two();
        let slope = |head: usize| (-(head as f64) * flattest / heads as f64).exp2() as f32;
        let all: Vec<f32> = (1..=heads).map(slope).collect();
        match heads == self.n_heads {
            true => all,
            false => {
                let (second, first) = (all.iter().skip(1).step_by(2), all.iter().step_by(2));
                second.chain(first).take(self.n_heads).copied().collect()
            }
        }
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefixes of a base model and of a model with
/// a head, and translates the names of MPT-1B's earlier code.
pub fn rename(name: &str) -> Name {
    let wrapper = if name.starts_with("mosaic_gpt.") { "mosaic_gpt." } else { "model." };
    let plain = name.strip_prefix(wrapper).unwrap_or(name);
    let plain = plain.strip_prefix("transformer.").unwrap_or(plain);
    let earlier = [
        (".ln_1.", ".norm_1."),
        (".ln_2.", ".norm_2."),
        (".mlp.mlp_up.", ".ffn.up_proj."),
        (".mlp.mlp_down.", ".ffn.down_proj."),
    ];
    let renamed = match earlier.iter().find(|(earlier, _)| plain.contains(earlier)) {
        Some((earlier, now)) => plain.replacen(earlier, now, 1),
        None => match plain.strip_prefix("ln_f.") {
            Some(rest) => format!("norm_f.{rest}"),
            None => plain.to_string(),
        },
    };
    if renamed == name { Name::Keep } else { Name::To(renamed) }
}

/// The network.
pub struct Mpt {
    config: Config,
    wte: Embedding,
    blocks: Vec<Block>,
    norm_f: LayerNorm,
    /// `None` for `MptModel`, which has no head.
    lm_head: Option<Linear>,
    slopes: Vec<f32>,
}

struct Block {
    norm_1: LayerNorm,
    attn: Attention,
    norm_2: LayerNorm,
    ffn: FeedForward,
}

struct Attention {
    wqkv: Linear,
    /// Layer norms of queries and keys over the full hidden size.
    q_ln_k_ln: Option<(LayerNorm, LayerNorm)>,
    out_proj: Linear,
    heads: usize,
    clip: Option<f64>,
    scale: f64,
}

struct FeedForward {
    up_proj: Linear,
    down_proj: Linear,
}

impl Model for Mpt {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let blocks =
            (0..c.n_layers).map(|i| Block::load(c, &w.at_index("blocks", i))).collect::<Result<_>>()?;
        let norm_f = w.layer_norm_no_bias("norm_f", c.d_model, c.layer_norm_epsilon)?;
        let bare = c.architectures.first().is_some_and(|name| name == "MptModel");
        let (wte, lm_head) =
            embedding_and_head(w, "wte", (c.vocab_size, c.d_model), c.tie_word_embeddings, bare)?;
        let slopes = c.slopes();
        Ok(Self { wte, blocks, norm_f, lm_head, slopes, config })
    }
}

impl CausalLm for Mpt {
    fn base_model_prefix(&self) -> &'static str {
        "transformer"
    }

    fn num_hidden_layers(&self) -> usize {
        self.config.n_layers
    }

    fn max_position_embeddings(&self) -> usize {
        self.config.max_seq_len
    }

    fn hidden_size(&self) -> usize {
        self.config.d_model
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.wte.forward(ids)
    }

    /// Uses ALiBi: the positions of `step` have no effect.
    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let time = embeddings.dim(1)?;
        let keys = cache.length() + time;
        let distances = PositionBias::alibi(&self.slopes, time, keys, embeddings.device())?;
        let mask = step.mask.clone().with_position_bias(distances);
        let mut x = embeddings.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&hook(i, x)?, &mask, cache.layer(i))?;
        }
        self.norm_f.forward(&x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        self.lm_head.as_ref().map(|head| head.forward(hidden)).transpose()
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let norm = |name| w.layer_norm_no_bias(name, c.d_model, c.layer_norm_epsilon);
        Ok(Self {
            norm_1: norm("norm_1")?,
            attn: Attention::load(c, &w.at("attn"))?,
            norm_2: norm("norm_2")?,
            ffn: FeedForward::load(c, &w.at("ffn"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let x = add(x, &self.attn.forward(&self.norm_1.forward(x)?, mask, cache)?)?;
        add(&x, &self.ffn.forward(&self.norm_2.forward(&x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, keys) = (c.d_model, c.attention());
        let norm = |name| w.layer_norm_no_bias(name, width, c.layer_norm_epsilon);
        // The config of MPT-1B may lack `qk_ln`; the tensors are there.
        let q_ln_k_ln = match keys.qk_ln == Some(true) || w.has("q_ln", false) {
            true => Some((norm("q_ln")?, norm("k_ln")?)),
            false => None,
        };
        Ok(Self {
            wqkv: w.linear_no_bias("Wqkv", width, 3 * width)?,
            q_ln_k_ln,
            out_proj: w.linear_no_bias("out_proj", width, width)?,
            heads: c.n_heads,
            clip: keys.clip_qkv.filter(|clip| *clip != 0.0),
            scale: keys.softmax_scale.unwrap_or(1.0 / ((width / c.n_heads) as f64).sqrt()),
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let mut qkv = self.wqkv.forward(x)?;
        if let Some(clip) = self.clip {
            qkv = qkv.clamp(-clip, clip)?;
        }
        // q, k and v are concatenated, each with all heads.
        let part = |i| qkv.narrow(2, i * width, width);
        let (mut q, mut k) = (part(0)?, part(1)?);
        if let Some((q_ln, k_ln)) = &self.q_ln_k_ln {
            (q, k) = (q_ln.forward(&q)?, k_ln.forward(&k)?);
        }
        let split = |x: &Tensor| x.reshape((batch, time, self.heads, width / self.heads));
        let (k, v) = cache.append(&split(&k)?, &split(&part(2)?)?)?;
        self.out_proj.forward(&attend(&split(&q)?, &k, &v, mask, self.scale)?)
    }
}

impl FeedForward {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let inner = c.expansion_ratio * c.d_model;
        Ok(Self {
            up_proj: w.linear_no_bias("up_proj", c.d_model, inner)?,
            down_proj: w.linear_no_bias("down_proj", inner, c.d_model)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&self.up_proj.forward_then(x, Activation::GeluErf)?)
    }
}

/// MPT, and the earlier architecture of its 1B release.
pub static FAMILY: Family = Family {
    name: "mpt",
    systems: &["MPT"],
    paper: "MosaicML 2023, \"Introducing MPT-7B\"",
    model_types: &["mpt", "mosaic_gpt"],
    architectures: &["MptForCausalLM", "MPTForCausalLM", "MptModel", "MosaicGPT"],
    keys: &KEYS,
    releases: &[
        Release::new("mosaicml/mpt-7b", "MPT", "6.6B", "Apache-2.0"),
        Release::new("mosaicml/mpt-7b-instruct", "MPT", "6.6B", "Apache-2.0"),
        Release::new("mosaicml/mpt-30b", "MPT", "30B", "Apache-2.0"),
        Release::new("anas-awadalla/mpt-7b", "MPT", "6.6B", "Apache-2.0"),
        Release::new("anas-awadalla/mpt-1b-redpajama-200b", "MPT", "1.3B", "Apache-2.0"),
        Release::new("anas-awadalla/mpt-1b-redpajama-200b-dolly", "MPT", "1.3B", "CC-BY-SA-3.0"),
    ],
    rename,
    sample: || {
        json!({
            "architectures": ["MptForCausalLM"], "model_type": "mpt", "vocab_size": 61, "d_model": 96, "n_heads": 3,
            "n_layers": 3, "expansion_ratio": 4, "max_seq_len": 24,
            "attn_config": {"alibi": true, "alibi_bias_max": 8, "clip_qkv": 2.0, "qk_ln": true}
        })
    },
    ..causal::family::<Mpt>()
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(keys: Value) -> Config {
        let mut config = json!({"vocab_size": 8, "d_model": 24, "n_heads": 3, "n_layers": 1});
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        serde_json::from_value(KEYS.read(config).unwrap()).unwrap()
    }

    #[test]
    fn alibi_slopes_of_any_number_of_heads() {
        let slopes = |heads| config(json!({"n_heads": heads})).slopes();
        assert_eq!(slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(slopes(1), [0.00390625]);
        assert_eq!(config(json!({"alibi_bias_max": 4, "n_heads": 2})).slopes(), [0.25, 0.0625]);
        let nested = config(json!({"attn_config": {"alibi_bias_max": 4}, "n_heads": 2}));
        assert_eq!(nested.slopes(), [0.0625, 0.00390625], "as the reference computes");
    }

    #[test]
    fn both_spellings_of_a_config_mean_the_same() {
        let nested = config(json!({"attn_config": {"clip_qkv": 6, "qk_ln": true}, "expansion_ratio": 2}));
        let flat = config(json!({"attn_clip_qkv": 6, "attn_qk_ln": true, "mlp_ratio": 2, "init_config": {}}));
        for c in [nested, flat] {
            assert_eq!((c.attention().clip_qkv, c.attention().qk_ln), (Some(6.0), Some(true)));
            assert_eq!(c.expansion_ratio, 2);
        }
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        for (key, value) in [
            ("alibi", json!({"attn_config": {"alibi": false}})),
            ("alibi", json!({"alibi": false})),
            ("prefix_lm", json!({"attn_config": {"prefix_lm": true}})),
            ("multiquery_attention", json!({"attn_config": {"attn_type": "multiquery_attention"}})),
            ("logit_scale", json!({"logit_scale": "inv_sqrt_d_model"})),
            ("rmsnorm", json!({"norm_type": "rmsnorm"})),
        ] {
            let Err(error) = Mpt::load(config(value), &Weights::meta()) else {
                panic!("{key} was not refused")
            };
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn earlier_tensor_names_map_to_the_current_ones() {
        for (earlier, now) in [
            ("transformer.blocks.3.ln_1.weight", "blocks.3.norm_1.weight"),
            ("transformer.blocks.3.mlp.mlp_up.weight", "blocks.3.ffn.up_proj.weight"),
            ("transformer.blocks.3.mlp.mlp_down.weight", "blocks.3.ffn.down_proj.weight"),
            ("transformer.ln_f.weight", "norm_f.weight"),
            ("transformer.blocks.3.attn.q_ln.weight", "blocks.3.attn.q_ln.weight"),
            ("mosaic_gpt.transformer.ln_f.weight", "norm_f.weight"),
            ("model.transformer.wte.weight", "wte.weight"),
        ] {
            assert_eq!(rename(earlier), Name::To(now.into()));
        }
        assert_eq!(rename("blocks.0.norm_2.weight"), Name::Keep);
    }
}
