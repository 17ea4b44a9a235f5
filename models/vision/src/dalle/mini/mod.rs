//! DALL·E mini and mega: text to VQGAN codes, by an encoder-decoder transformer after BART.
//!
//! Dayma et al. 2021, "DALL·E mini"; the architecture follows Shleifer et al. 2021, "NormFormer" (arXiv 2110.09456),
//! with the gated feed-forward layers of Shazeer 2020 (arXiv 2002.05202). Checked against `DalleBartEncoder` and
//! `DalleBartDecoder` of min-dalle 0.4.11. Loads min-dalle's `encoder.pt` and `decoder.pt` (or `encoder_mini.pt` and
//! `decoder_mini.pt`) with `detoker.pt`, and the original's `flax_model.msgpack`. Activations are `(batch, sequence,
//! hidden_size)`.

mod draw;
mod pipeline;
mod release;
mod text;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, LayerCache, Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_heads, check_sizes};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add, add_repeated};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

pub use pipeline::DalleMiniPipeline;
pub(crate) use release::{inventory, sample};
pub use release::{layout, rename};
pub use text::{TextTokenizer, TokenizedText};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Hidden size.
    pub d_model: usize,
    /// Number of encoder layers.
    pub encoder_layers: usize,
    /// Number of decoder layers.
    pub decoder_layers: usize,
    /// Number of attention heads of the encoder.
    pub encoder_attention_heads: usize,
    /// Number of attention heads of the decoder.
    pub decoder_attention_heads: usize,
    /// Intermediate (feed-forward) size of the encoder.
    pub encoder_ffn_dim: usize,
    /// Intermediate (feed-forward) size of the decoder.
    pub decoder_ffn_dim: usize,
    /// Vocabulary size of the text.
    pub encoder_vocab_size: usize,
    /// Vocabulary size of the image codes, without the start token.
    pub image_vocab_size: usize,
    /// Number of codes per image.
    #[serde(default = "image_length")]
    pub image_length: usize,
    /// Maximum sequence length of the text.
    #[serde(default = "max_text_length")]
    pub max_text_length: usize,
    /// Id of the decoder start token.
    pub decoder_start_token_id: u32,
    /// Activation function of the feed-forward layers.
    #[serde(default = "gelu")]
    pub activation_function: Activation,
    /// All other keys, checked against the implemented values.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

fn image_length() -> usize {
    256
}

fn max_text_length() -> usize {
    64
}

fn gelu() -> Activation {
    Activation::GeluErf
}

/// Keys that select another architecture, with the implemented value: that of the released models.
fn implemented() -> [(&'static str, Value); 15] {
    [
        ("ln_positions", "normformer".into()),
        ("ln_type", "layernorm".into()),
        ("use_glu", true.into()),
        ("use_bias", false.into()),
        ("use_head_scale", false.into()),
        ("use_cosine_attention", false.into()),
        ("use_final_ln_encoder", true.into()),
        ("use_final_ln_decoder", true.into()),
        ("use_absolute_position_embeddings", true.into()),
        ("use_swin_position_embeddings", false.into()),
        ("use_alibi", false.into()),
        ("use_deepnet_scaling", false.into()),
        ("scale_embedding", false.into()),
        ("tie_word_embeddings", false.into()),
        ("sinkhorn_iters", 1.into()),
    ]
}

impl Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("encoder_ffn_dim", self.encoder_ffn_dim),
            ("decoder_ffn_dim", self.decoder_ffn_dim),
            ("encoder_vocab_size", self.encoder_vocab_size),
            ("image_vocab_size", self.image_vocab_size),
            ("image_length", self.image_length),
            ("max_text_length", self.max_text_length),
        ])?;
        for heads in [
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("decoder_attention_heads", self.decoder_attention_heads),
        ] {
            check_heads(("d_model", self.d_model), heads)?;
        }
        for (key, expected) in implemented() {
            match self.rest.get(key) {
                None | Some(Value::Null) => {}
                Some(found) if *found == expected => {}
                Some(found) => {
                    return Err(Error::unsupported(format!("{key} is {found}, which is not implemented"))
                        .hint(format!("expected {expected}, the value of the released models")));
                }
            }
        }
        if self.decoder_start_token_id as usize > self.image_vocab_size {
            return Err(Error::unsupported(format!(
                "decoder_start_token_id {} is outside the vocabulary of {}",
                self.decoder_start_token_id,
                self.image_vocab_size + 1
            )));
        }
        Ok(())
    }
}

/// Epsilon of the layer norms.
const EPS: f64 = 1e-5;
/// The padding token of the text.
const PAD: u32 = 1;

/// The network.
pub struct DalleBart {
    config: Config,
    encoder: Encoder,
    decoder: Decoder,
    device: Device,
    half_cache: bool,
}

struct Encoder {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    layernorm_embedding: LayerNorm,
    layers: Vec<EncoderLayer>,
    final_ln: LayerNorm,
}

struct Decoder {
    embed_tokens: Embedding,
    embed_positions: Embedding,
    layernorm_embedding: LayerNorm,
    layers: Vec<DecoderLayer>,
    final_ln: LayerNorm,
    lm_head: Linear,
}

struct EncoderLayer {
    pre_self_attn_layer_norm: LayerNorm,
    self_attn: Attention,
    self_attn_layer_norm: LayerNorm,
    glu: Glu,
}

struct DecoderLayer {
    pre_self_attn_layer_norm: LayerNorm,
    self_attn: Attention,
    self_attn_layer_norm: LayerNorm,
    pre_encoder_attn_layer_norm: LayerNorm,
    encoder_attn: Attention,
    encoder_attn_layer_norm: LayerNorm,
    glu: Glu,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

struct Glu {
    ln0: LayerNorm,
    fc0: Linear,
    fc1: Linear,
    ln1: LayerNorm,
    fc2: Linear,
    activation: Activation,
}

/// The output of the encoder.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// Last hidden states, `(texts, sequence, hidden_size)`.
    pub states: Tensor,
    /// The padding mask.
    mask: Mask,
}

/// The KV cache of the decoder's self-attention, and the keys and values of its cross-attention.
pub struct DecoderState {
    cache: Cache,
    /// Keys and values of each layer, `(texts, sequence, heads, head_dim)`.
    cross: Vec<(Tensor, Tensor)>,
    mask: Mask,
}

impl Model for DalleBart {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        Ok(Self {
            encoder: Encoder::load(&config, &w.at("encoder"))?,
            decoder: Decoder::load(&config, &w.at("decoder"))?,
            device: w.runtime().device().clone(),
            half_cache: w.half_cache(),
            config,
        })
    }
}

impl DalleBart {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs the encoder on `texts`: sequences of token ids of one length, padded with 1.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if the sequences differ in length, exceed the maximum length or are
    /// only padding, or an id is outside the vocabulary.
    pub fn encode(&self, texts: &[Vec<u32>]) -> Result<EncodedText> {
        let (time, longest) = (texts.first().map_or(0, Vec::len), self.config.max_text_length);
        if time == 0 || texts.iter().any(|row| row.len() != time) {
            return Err(Error::input("expected texts of one length with at least one token"));
        }
        if time > longest {
            return Err(Error::input(format!("the text has {time} tokens, the maximum is {longest}")));
        }
        let vocabulary = self.config.encoder_vocab_size;
        if let Some(id) = texts.iter().flatten().find(|id| **id as usize >= vocabulary) {
            return Err(Error::input(format!("token {id} is outside the vocabulary of {vocabulary}")));
        }
        let real: Vec<Vec<bool>> =
            texts.iter().map(|row| row.iter().map(|id| *id != PAD).collect()).collect();
        if real.iter().any(|row| !row.contains(&true)) {
            return Err(Error::input("a text has only padding"));
        }
        let mask = Mask::full().with_padding(&real)?;
        let ids = Tensor::from_vec(texts.concat(), (texts.len(), time), &self.device)?;
        Ok(EncodedText { states: self.encoder.forward(&ids, &mask)?, mask })
    }

    /// Creates the decoder state: an empty KV cache of `capacity` codes per sequence, and the keys and values of
    /// `text`.
    pub fn start(&self, text: &EncodedText, capacity: usize) -> Result<DecoderState> {
        let cross = self.decoder.layers.iter().map(|layer| layer.encoder_attn.keys_and_values(&text.states));
        Ok(DecoderState {
            cross: cross.collect::<Result<_>>()?,
            cache: Cache::new(self.decoder.layers.len(), capacity).with_half(self.half_cache),
            mask: text.mask.clone(),
        })
    }

    /// Runs the decoder on `codes`, `(batch, sequence)` row-major, and returns the hidden states after the final layer
    /// norm, `(batch, sequence, hidden_size)`. The batch must be a multiple of the number of texts: consecutive
    /// sequences share a text.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a code is outside the vocabulary, there are more codes than an
    /// image has, or the batch is not a multiple of the number of texts.
    pub fn forward(&self, codes: &[u32], rows: usize, state: &mut DecoderState) -> Result<Tensor> {
        let (limit, length) = (self.config.image_vocab_size + 1, self.config.image_length);
        let texts = state.cross.first().map_or(Ok(rows), |(k, _)| k.dim(0))?;
        let time = codes.len() / rows.max(1);
        if rows == 0 || time == 0 || codes.len() != rows * time || !rows.is_multiple_of(texts.max(1)) {
            return Err(Error::input(format!(
                "{} codes in a batch of {rows} for {texts} texts",
                codes.len()
            )));
        }
        if let Some(code) = codes.iter().find(|code| **code as usize >= limit) {
            return Err(Error::input(format!("code {code} is outside the vocabulary of {limit} codes")));
        }
        let past = state.cache.length();
        if past + time > length {
            return Err(Error::input(format!("{} codes, but an image has {length}", past + time)));
        }
        let ids = Tensor::from_slice(codes, (rows, time), &self.device)?;
        self.decoder.forward(&ids, past, state)
    }

    /// Returns the logits, `(batch, sequence, image_vocab_size + 1)`, of hidden states, `(batch, sequence,
    /// hidden_size)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.decoder.lm_head.forward(hidden)
    }
}

/// Loads a linear layer without bias: `weight`, `[outputs, inputs]`, or flax's `kernel`, `[inputs, outputs]`.
fn dense(w: &Weights, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
    let here = w.at(name);
    match here.has("kernel", false) {
        true => Ok(Linear::new(here.matrix_transposed("kernel", outputs, inputs)?, None)),
        false => Ok(Linear::new(here.matrix("weight", outputs, inputs)?, None)),
    }
}

impl Encoder {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            embed_tokens: w.embedding("embed_tokens", c.encoder_vocab_size, c.d_model)?,
            embed_positions: w.embedding("embed_positions", c.max_text_length, c.d_model)?,
            layernorm_embedding: w.layer_norm("layernorm_embedding", c.d_model, EPS)?,
            layers: (0..c.encoder_layers)
                .map(|i| EncoderLayer::load(c, &w.at_index("layers", i)))
                .collect::<Result<_>>()?,
            final_ln: w.layer_norm_scaled_if_stored("final_ln", c.d_model, EPS)?,
        })
    }

    fn forward(&self, ids: &Tensor, mask: &Mask) -> Result<Tensor> {
        let x = embed(&self.embed_tokens, &self.embed_positions, ids, 0)?;
        let mut x = self.layernorm_embedding.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(&x, mask)?;
        }
        self.final_ln.forward(&x)
    }
}

impl Decoder {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            embed_tokens: w.embedding("embed_tokens", c.image_vocab_size + 1, c.d_model)?,
            embed_positions: w.embedding("embed_positions", c.image_length, c.d_model)?,
            layernorm_embedding: w.layer_norm("layernorm_embedding", c.d_model, EPS)?,
            layers: (0..c.decoder_layers)
                .map(|i| DecoderLayer::load(c, &w.at_index("layers", i)))
                .collect::<Result<_>>()?,
            final_ln: w.layer_norm_scaled_if_stored("final_ln", c.d_model, EPS)?,
            lm_head: dense(w, "lm_head", c.d_model, c.image_vocab_size + 1)?,
        })
    }

    fn forward(&self, ids: &Tensor, past: usize, state: &mut DecoderState) -> Result<Tensor> {
        let x = embed(&self.embed_tokens, &self.embed_positions, ids, past)?;
        let mut x = self.layernorm_embedding.forward(&x)?;
        for (i, (layer, (k, v))) in self.layers.iter().zip(&state.cross).enumerate() {
            x = layer.forward(&x, (k, v, &state.mask), state.cache.layer(i))?;
        }
        self.final_ln.forward(&x)
    }
}

/// Token plus position embeddings of `ids`, `(batch, sequence)`, from position `past` on.
fn embed(tokens: &Embedding, positions: &Embedding, ids: &Tensor, past: usize) -> Result<Tensor> {
    let time = ids.dim(1)?;
    let places = Tensor::arange(past as u32, (past + time) as u32, ids.device())?;
    add_repeated(&tokens.forward(ids)?, &positions.forward(&places)?)
}

impl EncoderLayer {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            pre_self_attn_layer_norm: w.layer_norm_scaled_if_stored(
                "pre_self_attn_layer_norm",
                c.d_model,
                EPS,
            )?,
            self_attn: Attention::load(c.d_model, c.encoder_attention_heads, &w.at("self_attn"))?,
            self_attn_layer_norm: w.layer_norm("self_attn_layer_norm", c.d_model, EPS)?,
            glu: Glu::load(c, c.encoder_ffn_dim, &w.at("glu"))?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask) -> Result<Tensor> {
        let inner = self.self_attn.self_attention(&self.pre_self_attn_layer_norm.forward(x)?, mask, None)?;
        let x = add(x, &self.self_attn_layer_norm.forward(&inner)?)?;
        add(&x, &self.glu.forward(&x)?)
    }
}

impl DecoderLayer {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, heads) = (c.d_model, c.decoder_attention_heads);
        let unscaled = |name: &str| w.layer_norm_scaled_if_stored(name, width, EPS);
        Ok(Self {
            pre_self_attn_layer_norm: unscaled("pre_self_attn_layer_norm")?,
            self_attn: Attention::load(width, heads, &w.at("self_attn"))?,
            self_attn_layer_norm: w.layer_norm("self_attn_layer_norm", width, EPS)?,
            pre_encoder_attn_layer_norm: unscaled("pre_encoder_attn_layer_norm")?,
            encoder_attn: Attention::load(width, heads, &w.at("encoder_attn"))?,
            encoder_attn_layer_norm: w.layer_norm("encoder_attn_layer_norm", width, EPS)?,
            glu: Glu::load(c, c.decoder_ffn_dim, &w.at("glu"))?,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        (k, v, mask): (&Tensor, &Tensor, &Mask),
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let inner = self.pre_self_attn_layer_norm.forward(x)?;
        let inner = self.self_attn.self_attention(&inner, &Mask::causal(), Some(cache))?;
        let x = add(x, &self.self_attn_layer_norm.forward(&inner)?)?;
        let inner =
            self.encoder_attn.cross_attention(&self.pre_encoder_attn_layer_norm.forward(&x)?, k, v, mask)?;
        let x = add(&x, &self.encoder_attn_layer_norm.forward(&inner)?)?;
        add(&x, &self.glu.forward(&x)?)
    }
}

impl Attention {
    fn load(width: usize, heads: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            q_proj: dense(w, "q_proj", width, width)?,
            k_proj: dense(w, "k_proj", width, width)?,
            v_proj: dense(w, "v_proj", width, width)?,
            out_proj: dense(w, "out_proj", width, width)?,
            heads,
        })
    }

    /// Splits `(batch, sequence, hidden_size)` into heads: `(batch, sequence, heads, head_dim)`.
    fn heads(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        Ok(x.reshape((batch, time, self.heads, width / self.heads))?)
    }

    fn scale(&self, width: usize) -> f64 {
        ((width / self.heads) as f64).powf(-0.5)
    }

    fn self_attention(&self, x: &Tensor, mask: &Mask, cache: Option<&mut LayerCache>) -> Result<Tensor> {
        let (q, k) = (self.heads(&self.q_proj.forward(x)?)?, self.heads(&self.k_proj.forward(x)?)?);
        let v = self.heads(&self.v_proj.forward(x)?)?;
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        self.out_proj.forward(&attend(&q, &k, &v, mask, self.scale(x.dim(2)?))?)
    }

    /// Returns keys and values, `(texts, sequence, heads, head_dim)`, of `states`, `(texts, sequence, hidden_size)`.
    fn keys_and_values(&self, states: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.heads(&self.k_proj.forward(states)?)?, self.heads(&self.v_proj.forward(states)?)?))
    }

    /// Cross-attention of `x`, `(batch, sequence, hidden_size)`. The sequences of one text are merged into one sequence
    /// of queries, as cross-attention has no causal mask.
    fn cross_attention(&self, x: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> Result<Tensor> {
        let (rows, time, width) = x.dims3()?;
        let texts = k.dim(0)?;
        let q = self.q_proj.forward(x)?;
        let q = q.reshape((texts, rows / texts * time, self.heads, width / self.heads))?;
        let attended = attend(&q, k, v, mask, self.scale(width))?;
        self.out_proj.forward(&attended.reshape((rows, time, width))?)
    }
}

impl Glu {
    fn load(c: &Config, inner: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            ln0: w.layer_norm_scaled_if_stored("ln0", c.d_model, EPS)?,
            fc0: dense(w, "fc0", c.d_model, inner)?,
            fc1: dense(w, "fc1", c.d_model, inner)?,
            ln1: w.layer_norm_scaled_if_stored("ln1", inner, EPS)?,
            fc2: dense(w, "fc2", inner, c.d_model)?,
            activation: c.activation_function,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.ln0.forward(x)?;
        let gated = (self.fc0.forward_then(&x, self.activation)? * self.fc1.forward(&x)?)?;
        self.fc2.forward(&self.ln1.forward(&gated)?)
    }
}

/// DALL·E mini and mega.
pub static FAMILY: Family = Family {
    name: "dalle-mini",
    systems: &["DALL-E"],
    paper: "Dayma et al. 2021, DALL·E mini",
    model_types: &["dallebart"],
    architectures: &["DalleBart", "eBart"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Text, Modality::Codes],
    outputs: &[Modality::Image],
    releases: &[
        Release::new("dalle-mini/dalle-mini", "DALL-E", "0.4B", "Apache-2.0"),
        Release::new("dalle-mini/dalle-mega", "DALL-E", "2.6B", "Apache-2.0"),
        Release::new("kuprel/min-dalle", "DALL-E", "0.4B and 2.6B", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(DalleMiniPipeline::open(pretrained)?)),
    sample,
};
