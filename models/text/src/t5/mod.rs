//! T5: an encoder-decoder transformer with relative position biases.
//!
//! Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section
//! 2.1; the gated form is Shazeer 2020, "GLU Variants Improve Transformer".
//! Checked against transformers `T5EncoderModel`, `T5Model` and `T5ForConditionalGeneration`, parity cases
//! `tests/parity/t5`. Loads `model_type: "t5"`. Activations are `(batch, sequence, d_model)`.
//!
//! Other models use it: [`Encoder`] is the text encoder of MusicGen, [`T5`] the network of Chronos. Every forward pass
//! takes token ids or embeddings.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fauna_shared::{attention::Mask, model::Model, runtime::Runtime, weights::Weights};
//! use fauna_text::t5::{Config, Encoder};
//!
//! let config = Config { vocab_size: 50, d_model: 16, num_layers: 2, ..Config::default() };
//! let encoder = Encoder::load(config, &Weights::seeded(7, Runtime::cpu()))?;
//! let ids = Tensor::new(&[[5u32, 9, 1], [7, 1, 0]], &Device::Cpu)?;
//! let mask = Mask::full().with_padding(&[vec![true, true, true], vec![true, true, false]])?;
//! assert_eq!(encoder.forward(&ids, &mask)?.dims(), [2, 3, 16]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod pipeline;

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{
    Cache, LayerCache, Mask, RelativePositionBias, RelativePositionBuckets, attend,
};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{Name, Weights};
use serde::Deserialize;

pub use pipeline::T5Pipeline;
pub(crate) use pipeline::{inventory, sample};

/// Config keys that are not fields of [`Config`]: aliases, older names, and keys without effect.
pub static KEYS: Keys = Keys {
    mapped: &[
        ("hidden_size", "d_model"),
        ("num_attention_heads", "num_heads"),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
    ],
    // Without effect: encoder and decoder are separate types here.
    harmless: &["is_decoder"],
    types: &["t5"],
    ..Keys::NONE
};

/// The configuration: the keys of `config.json` that define the network, with the reference's defaults, those of
/// T5-small.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Hidden size.
    pub d_model: usize,
    /// Dimension of each head; `d_kv * num_heads` need not be `d_model`.
    pub d_kv: usize,
    /// Intermediate size of the feed-forward layers.
    pub d_ff: usize,
    /// Number of encoder layers.
    pub num_layers: usize,
    /// Number of decoder layers; as many as encoder layers if null.
    pub num_decoder_layers: Option<usize>,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Number of buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// Maximum distance: all greater distances share a bucket.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the RMS norms.
    pub layer_norm_epsilon: f64,
    /// Feed-forward layers: `relu`, `gated-gelu`, `gated-silu` or another activation, gated or not.
    pub feed_forward_proj: FeedForwardKind,
    /// Whether the feed-forward layers are gated; takes precedence over `feed_forward_proj`.
    pub is_gated_act: Option<bool>,
    /// Activation function of the feed-forward layers; takes precedence over `feed_forward_proj`.
    pub dense_act_fn: Option<Activation>,
    /// Whether the output head is tied to the token embeddings. A separate head is used if the file has one.
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is divided by the square root of `d_model` before the head; if null, as
    /// `tie_word_embeddings`.
    pub scale_decoder_outputs: Option<bool>,
    /// Class that the checkpoint was saved from; `T5Model` has no head.
    pub architectures: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: FeedForwardKind { gated: false, activation: Activation::Relu },
            is_gated_act: None,
            dense_act_fn: None,
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            architectures: Vec::new(),
        }
    }
}

impl Config {
    fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_decoder_layers", self.decoder_layers()),
            ("num_heads", self.num_heads),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets),
            ("relative_attention_max_distance", self.relative_attention_max_distance),
            ("d_kv * num_heads", self.d_kv.saturating_mul(self.num_heads)),
        ])
    }
}

/// The value of `feed_forward_proj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct FeedForwardKind {
    /// Whether a second projection multiplies the activated one.
    pub gated: bool,
    /// The activation.
    pub activation: Activation,
}

impl TryFrom<String> for FeedForwardKind {
    type Error = String;

    fn try_from(said: String) -> std::result::Result<Self, String> {
        let (gated, name) = match said.strip_prefix("gated-") {
            // Published checkpoints write "gelu" for its tanh approximation.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, said.as_str()),
        };
        let activation = Activation::deserialize(serde::de::value::StrDeserializer::new(name))
            .map_err(|e: serde::de::value::Error| format!("feed_forward_proj \"{said}\": {e}"))?;
        Ok(Self { gated, activation })
    }
}

/// The encoder, with bidirectional attention.
pub struct Encoder {
    embed_tokens: Embedding,
    relative_attention_bias: RelativePositionBias,
    block: Vec<EncoderBlock>,
    final_layer_norm: RmsNorm,
}

/// The decoder, with causal self-attention and cross-attention to the encoder's output.
pub struct Decoder {
    embed_tokens: Embedding,
    relative_attention_bias: RelativePositionBias,
    block: Vec<DecoderBlock>,
    final_layer_norm: RmsNorm,
}

/// Cross-attention keys and values of the encoder's output in every layer of a decoder, computed once.
pub struct Memory {
    blocks: Vec<(Tensor, Tensor)>,
    mask: Mask,
}

/// Encoder, decoder and output head.
pub struct T5 {
    /// The encoder.
    pub encoder: Encoder,
    /// The decoder.
    pub decoder: Decoder,
    /// `None` for `T5Model`, which has no head.
    lm_head: Option<Linear>,
    /// Scale of the decoder's output before the head.
    scale: f64,
}

struct EncoderBlock {
    attention: Sublayer<Attention>,
    feed_forward: Sublayer<FeedForward>,
}

struct DecoderBlock {
    attention: Sublayer<Attention>,
    cross_attention: Sublayer<Attention>,
    feed_forward: Sublayer<FeedForward>,
}

/// A sublayer with pre-norm and residual connection: `x + part(norm(x))`.
struct Sublayer<P> {
    layer_norm: RmsNorm,
    part: P,
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

struct FeedForward {
    wi: Inner,
    wo: Linear,
    activation: Activation,
}

enum Inner {
    Plain(Linear),
    Gated { activated: Linear, linear: Linear },
}

impl Model for Encoder {
    type Config = Config;

    /// Loads the encoder, from a file of the encoder alone or of the full T5, whose decoder is ignored.
    fn load(config: Config, w: &Weights) -> Result<Self> {
        w.skip("decoder");
        w.skip("lm_head");
        Self::with_words(&config, words(&config, w)?, &w.at("encoder"))
    }
}

impl Model for T5 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let c = &config;
        let words = words(c, w)?;
        let encoder = Encoder::with_words(c, words.clone(), &w.at("encoder"))?;
        let decoder = Decoder::with_words(c, words.clone(), &w.at("decoder"))?;
        let bare = c.architectures.first().is_some_and(|name| name == "T5Model");
        let own_head = !c.tie_word_embeddings || (w.has("lm_head", false) && held(c, w) != "lm_head");
        let lm_head = match (bare, own_head) {
            (true, _) => None,
            (false, true) => Some(w.linear_no_bias("lm_head", c.d_model, c.vocab_size)?),
            (false, false) => Some(words.as_linear()),
        };
        let scale = match c.scale_decoder_outputs.unwrap_or(c.tie_word_embeddings) {
            true => (c.d_model as f64).powf(-0.5),
            false => 1.0,
        };
        Ok(Self { encoder, decoder, lm_head, scale })
    }
}

/// Maps the tensor names of a release to those of this module: removes the prefix `transformer.`.
pub fn rename(name: &str) -> Name {
    Name::without("transformer.", name, |_| Name::Keep)
}

/// Loads the token embeddings that encoder, decoder and a tied head share, `(vocab_size, d_model)`. Files store them
/// under one or several names.
///
/// # Errors
/// Errors of the config or the tensor.
pub fn words(config: &Config, w: &Weights) -> Result<Embedding> {
    config.check()?;
    let held = held(config, w);
    TABLES.iter().filter(|name| **name != held).for_each(|copy| w.skip_copy(copy));
    w.embedding(held, config.vocab_size, config.d_model)
}

/// The names of the token embeddings and their copies.
const TABLES: [&str; 3] = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"];

/// The name under which the file stores the token embeddings: one of [`TABLES`], or that of a tied head.
fn held(config: &Config, w: &Weights) -> &'static str {
    let head = config.tie_word_embeddings.then_some("lm_head");
    TABLES.into_iter().chain(head).find(|name| w.has(name, false)).unwrap_or(TABLES[0])
}

impl T5 {
    /// Returns the logits of the next token: `(…, d_model)` to `(…, vocab_size)`; `None` if the checkpoint has no head.
    pub fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        let head = |head: &Linear| match self.scale {
            1.0 => head.forward(hidden),
            scale => head.forward(&(hidden * scale)?),
        };
        self.lm_head.as_ref().map(head).transpose()
    }
}

impl Encoder {
    /// The encoder at `w` (which has `block.0`) with token embeddings that are already loaded.
    ///
    /// # Errors
    /// Errors of the config or the tensors.
    pub fn with_words(config: &Config, words: Embedding, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = config;
        Ok(Self {
            embed_tokens: words,
            relative_attention_bias: relative_positions(c, true, w)?,
            block: (0..c.num_layers)
                .map(|i| EncoderBlock::load(c, &w.at_index("block", i)))
                .collect::<Result<_>>()?,
            final_layer_norm: w.rms_norm("final_layer_norm", c.d_model, c.layer_norm_epsilon)?,
        })
    }

    /// Returns the last hidden state, `(batch, sequence, d_model)`, padding included. `ids`: `(batch, sequence)` of
    /// u32; `mask`: full attention mask without the padding.
    pub fn forward(&self, ids: &Tensor, mask: &Mask) -> Result<Tensor> {
        self.forward_embeddings(&self.embed_tokens.forward(ids)?, mask)
    }

    /// Same as [`forward`](Self::forward) with embeddings, `(batch, sequence, d_model)`.
    pub fn forward_embeddings(&self, x: &Tensor, mask: &Mask) -> Result<Tensor> {
        let (_, time, _) = x.dims3()?;
        let mask = mask.clone().with_position_bias(self.relative_attention_bias.between(time, time)?);
        let mut x = x.clone();
        for block in &self.block {
            x = block.forward(&x, &mask)?;
        }
        self.final_layer_norm.forward(&x)
    }

    /// The token embeddings.
    pub fn words(&self) -> &Embedding {
        &self.embed_tokens
    }
}

impl Decoder {
    /// The decoder at `w` (which has `block.0`) with token embeddings that are already loaded.
    ///
    /// # Errors
    /// Errors of the config or the tensors.
    pub fn with_words(config: &Config, words: Embedding, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = config;
        // The first files have a relative position bias for cross-attention, which is unused.
        w.skip("block.0.layer.1.EncDecAttention.relative_attention_bias");
        Ok(Self {
            embed_tokens: words,
            relative_attention_bias: relative_positions(c, false, w)?,
            block: (0..c.decoder_layers())
                .map(|i| DecoderBlock::load(c, &w.at_index("block", i)))
                .collect::<Result<_>>()?,
            final_layer_norm: w.rms_norm("final_layer_norm", c.d_model, c.layer_norm_epsilon)?,
        })
    }

    /// Computes the cross-attention keys and values of an encoder's `states`, `(batch, sequence, d_model)`; `mask`:
    /// full attention mask without the padding. The decoder's batch may be a multiple of `batch`: consecutive sequences
    /// then share the states of one input.
    pub fn memory(&self, states: &Tensor, mask: &Mask) -> Result<Memory> {
        let blocks = self.block.iter().map(|block| block.cross_attention.part.keys_and_values(states));
        Ok(Memory { blocks: blocks.collect::<Result<_>>()?, mask: mask.clone() })
    }

    /// An empty KV cache for `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.block.len(), capacity)
    }

    /// Returns the last hidden state, `(batch, sequence, d_model)`. `ids`: `(batch, sequence)` of u32, the tokens after
    /// those in `cache`, which is extended; `mask`: causal, with the padding of all tokens so far.
    pub fn hidden(&self, ids: &Tensor, mask: &Mask, memory: &Memory, cache: &mut Cache) -> Result<Tensor> {
        self.hidden_embeddings(&self.embed_tokens.forward(ids)?, mask, memory, cache)
    }

    /// Returns the hidden state of the first token, `(batch, 1, d_model)`, if no other token follows. `ids`:
    /// `(batch, 1)` of u32; `states` and `mask` as for [`memory`](Self::memory), which is not needed. The
    /// self-attention of a single token needs no queries, keys or relative positions, and its cross-attention no keys
    /// and values of the states.
    ///
    /// # Errors
    /// Errors of the tensor operations.
    pub fn first(&self, ids: &Tensor, states: &Tensor, mask: &Mask) -> Result<Tensor> {
        let mut x = self.embed_tokens.forward(ids)?;
        for block in &self.block {
            x = block.attention.add_to(&x, |attention, x| attention.o.forward(&attention.v.forward(x)?))?;
            x = block.cross_attention.add_to(&x, |attention, x| attention.look_once(x, states, mask))?;
            x = block.feed_forward.add_to(&x, FeedForward::forward)?;
        }
        self.final_layer_norm.forward(&x)
    }

    /// Same as [`hidden`](Self::hidden) with embeddings, `(batch, sequence, d_model)`.
    pub fn hidden_embeddings(
        &self,
        x: &Tensor,
        mask: &Mask,
        memory: &Memory,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (_, time, _) = x.dims3()?;
        let distances = self.relative_attention_bias.between(time, cache.length() + time)?;
        let mask = mask.clone().with_position_bias(distances);
        let mut x = x.clone();
        for (i, (block, read)) in self.block.iter().zip(&memory.blocks).enumerate() {
            x = block.forward(&x, &mask, cache.layer(i), read, &memory.mask)?;
        }
        self.final_layer_norm.forward(&x)
    }
}

/// Loads the relative position bias, which is stored in the first layer and used by all.
fn relative_positions(c: &Config, both_ways: bool, w: &Weights) -> Result<RelativePositionBias> {
    let (count, longest) = (c.relative_attention_num_buckets, c.relative_attention_max_distance);
    let buckets = RelativePositionBuckets::new(count, longest, both_ways)?;
    let table =
        w.tensor("block.0.layer.0.SelfAttention.relative_attention_bias.weight", &[count, c.num_heads])?;
    RelativePositionBias::new(buckets, &table)
}

impl EncoderBlock {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            attention: Attention::load(c, "SelfAttention", &w.at("layer.0"))?,
            feed_forward: FeedForward::load(c, &w.at("layer.1"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask) -> Result<Tensor> {
        let x = self.attention.add_to(x, |attention, x| {
            let (k, v) = attention.keys_and_values(x)?;
            attention.forward(x, &k, &v, mask)
        })?;
        self.feed_forward.add_to(&x, FeedForward::forward)
    }
}

impl DecoderBlock {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            attention: Attention::load(c, "SelfAttention", &w.at("layer.0"))?,
            cross_attention: Attention::load(c, "EncDecAttention", &w.at("layer.1"))?,
            feed_forward: FeedForward::load(c, &w.at("layer.2"))?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        mask: &Mask,
        cache: &mut LayerCache,
        read: &(Tensor, Tensor),
        read_mask: &Mask,
    ) -> Result<Tensor> {
        let x = self.attention.add_to(x, |attention, x| {
            let (k, v) = attention.keys_and_values(x)?;
            let (k, v) = cache.append(&k, &v)?;
            attention.forward(x, &k, &v, mask)
        })?;
        let shape = x.dims3()?;
        let (read_k, read_v) = read;
        let x = self.cross_attention.add_to(&x, |attention, x| {
            // Sequences that share an encoder input become additional queries.
            let x = x.reshape((read_k.dim(0)?, (), shape.2))?;
            Ok(attention.forward(&x, read_k, read_v, read_mask)?.reshape(shape)?)
        })?;
        self.feed_forward.add_to(&x, FeedForward::forward)
    }
}

impl<P> Sublayer<P> {
    fn load(c: &Config, part: P, w: &Weights) -> Result<Self> {
        Ok(Self { layer_norm: w.rms_norm("layer_norm", c.d_model, c.layer_norm_epsilon)?, part })
    }

    fn add_to(&self, x: &Tensor, part: impl FnOnce(&P, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        add(x, &part(&self.part, &self.layer_norm.forward(x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, name: &str, w: &Weights) -> Result<Sublayer<Self>> {
        let (inner, here) = (c.num_heads * c.d_kv, w.at(name));
        let attention = Self {
            q: here.linear_no_bias("q", c.d_model, inner)?,
            k: here.linear_no_bias("k", c.d_model, inner)?,
            v: here.linear_no_bias("v", c.d_model, inner)?,
            o: here.linear_no_bias("o", inner, c.d_model)?,
            heads: c.num_heads,
        };
        Sublayer::load(c, attention, w)
    }

    /// Returns keys and values, `(batch, sequence, heads, d_kv)` each.
    fn keys_and_values(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.split(self.k.forward(x)?)?, self.split(self.v.forward(x)?)?))
    }

    /// Attention scores are not scaled: the scale is part of the initialisation (section 2.1, after Shazeer and Stern
    /// 2018).
    fn forward(&self, x: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> Result<Tensor> {
        let q = self.split(self.q.forward(x)?)?;
        let mut seen = attend(&q, k, v, mask, 1.0)?;
        if let Some(blind) = mask.fully_masked(x.device())? {
            // In the reference, a sequence whose keys are all masked gets the mean of all values.
            let mean = v.flatten(2, 3)?.mean_keepdim(1)?;
            seen = seen.broadcast_add(&mean.broadcast_mul(&blind.to_dtype(v.dtype())?)?)?;
        }
        self.o.forward(&seen)
    }

    /// Cross-attention of one token per sequence, `(batch, 1, d_model)`, to `states`, `(batch, sequence, d_model)`.
    ///
    /// The key projection is applied to the query, and the value projection to the weighted mean of the states, so that
    /// no keys and values of the states are computed.
    fn look_once(&self, x: &Tensor, states: &Tensor, mask: &Mask) -> Result<Tensor> {
        let ((batch, _, width), heads) = (states.dims3()?, self.heads);
        let inner = self.q.weight().outputs();
        let by_head = |map: &Linear| -> Result<Tensor> {
            Ok(map.weight().tensor()?.to_dtype(states.dtype())?.reshape((heads, inner / heads, width))?)
        };
        let q = self.q.forward(x)?.reshape((batch, heads, inner / heads))?.transpose(0, 1)?.contiguous()?;
        let q = q.matmul(&by_head(&self.k)?)?.transpose(0, 1)?.unsqueeze(1)?.contiguous()?;
        let state = states.unsqueeze(2)?;
        let mut seen = attend(&q, &state, &state, mask, 1.0)?.reshape((batch, heads, width))?;
        if let Some(blind) = mask.fully_masked(x.device())? {
            let blind = blind.to_dtype(states.dtype())?;
            seen = seen.broadcast_add(&states.mean_keepdim(1)?.broadcast_mul(&blind)?)?;
        }
        let seen = seen.transpose(0, 1)?.contiguous()?.matmul(&by_head(&self.v)?.transpose(1, 2)?)?;
        self.o.forward(&seen.transpose(0, 1)?.reshape((batch, 1, inner))?)
    }

    fn split(&self, x: Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        Ok(x.reshape((batch, time, self.heads, width / self.heads))?)
    }
}

impl FeedForward {
    fn load(c: &Config, w: &Weights) -> Result<Sublayer<Self>> {
        let here = w.at("DenseReluDense");
        let wi = |name| here.linear_no_bias(name, c.d_model, c.d_ff);
        let said = c.feed_forward_proj;
        let wi = match c.is_gated_act.unwrap_or(said.gated) {
            true => Inner::Gated { activated: wi("wi_0")?, linear: wi("wi_1")? },
            false => Inner::Plain(wi("wi")?),
        };
        let wo = here.linear_no_bias("wo", c.d_ff, c.d_model)?;
        Sublayer::load(c, Self { wi, wo, activation: c.dense_act_fn.unwrap_or(said.activation) }, w)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = match &self.wi {
            Inner::Plain(wi) => wi.forward_then(x, self.activation)?,
            Inner::Gated { activated, linear } => {
                (activated.forward_then(x, self.activation)? * linear.forward(x)?)?
            }
        };
        self.wo.forward(&inner)
    }
}

/// T5, T5 v1.1 and Flan-T5: encoder-decoder, or the encoder alone.
pub static FAMILY: Family = Family {
    name: "t5",
    systems: &["T5"],
    paper: "Raffel et al. 2019, arXiv 1910.10683; Chung et al. 2022, arXiv 2210.11416",
    model_types: &["t5"],
    architectures: &["T5ForConditionalGeneration", "T5EncoderModel", "T5Model", "T5WithLMHeadModel"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Text],
    outputs: &[Modality::Text, Modality::Vector],
    releases: &[
        Release::new("google-t5/t5-small", "T5", "61M", "Apache-2.0"),
        Release::new("google-t5/t5-base", "T5", "223M", "Apache-2.0"),
        Release::new("google-t5/t5-large", "T5", "738M", "Apache-2.0"),
        Release::new("google-t5/t5-3b", "T5", "2.9B", "Apache-2.0"),
        Release::new("google-t5/t5-11b", "T5", "11B", "Apache-2.0"),
        Release::new("google/t5-v1_1-small", "T5", "77M", "Apache-2.0"),
        Release::new("google/t5-v1_1-base", "T5", "248M", "Apache-2.0"),
        Release::new("google/t5-v1_1-large", "T5", "783M", "Apache-2.0"),
        Release::new("google/t5-v1_1-xl", "T5", "2.8B", "Apache-2.0"),
        Release::new("google/t5-v1_1-xxl", "T5", "11B", "Apache-2.0"),
        Release::new("google/flan-t5-small", "T5", "77M", "Apache-2.0"),
        Release::new("google/flan-t5-base", "T5", "248M", "Apache-2.0"),
        Release::new("google/flan-t5-large", "T5", "783M", "Apache-2.0"),
        Release::new("google/flan-t5-xl", "T5", "2.8B", "Apache-2.0"),
        Release::new("google/flan-t5-xxl", "T5", "11B", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: None,
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(T5Pipeline::open(pretrained)?)),
    sample,
};
