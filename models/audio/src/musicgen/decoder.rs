//! The language model of MusicGen: one causal transformer over all codebooks.
//!
//! Copet et al. 2023, section 2.2. Codes are `(batch, sequence, codebooks)`, activations `(batch, sequence,
//! hidden_size)`.

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, LayerCache, Mask, attend};
use fauna_shared::model::{check_heads, check_sizes};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add, concat};
use fauna_shared::weights::{MatrixUse, Piece, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;

/// The `decoder` part of `config.json`; missing keys have the reference's defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Vocabulary size: number of codes of a codebook, without the start token.
    pub vocab_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Intermediate (feed-forward) size.
    pub ffn_dim: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Activation function of the feed-forward layers.
    pub activation_function: Activation,
    /// Number of codebooks of all audio channels.
    pub num_codebooks: usize,
    /// Number of audio channels; in stereo the codebooks of left and right are interleaved.
    pub audio_channels: usize,
    /// Id of the start token, which pads the delay pattern.
    pub pad_token_id: u32,
    /// Hidden size of the text encoder, if there is no projection.
    pub cross_attention_hidden_size: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vocab_size: 2048,
            num_hidden_layers: 24,
            ffn_dim: 4096,
            num_attention_heads: 16,
            hidden_size: 1024,
            activation_function: Activation::GeluErf,
            num_codebooks: 4,
            audio_channels: 1,
            pad_token_id: 2048,
            cross_attention_hidden_size: None,
        }
    }
}

impl Config {
    /// Checks the sizes.
    pub(super) fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("ffn_dim", self.ffn_dim),
            ("num_codebooks", self.num_codebooks),
        ])?;
        check_heads(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))?;
        if !matches!(self.audio_channels, 1 | 2) || !self.num_codebooks.is_multiple_of(self.audio_channels) {
            return Err(Error::unsupported(format!(
                "{} codebooks for {} audio channels",
                self.num_codebooks, self.audio_channels
            ))
            .hint("expected 1 or 2 channels with the same number of codebooks"));
        }
        if self.hidden_size < 4 {
            return Err(Error::unsupported(
                "hidden_size is below 4, the minimum for sinusoidal position embeddings",
            ));
        }
        if self.pad_token_id as usize > self.vocab_size {
            return Err(Error::unsupported(format!(
                "pad_token_id {} is outside the vocabulary of {}",
                self.pad_token_id,
                self.vocab_size + 1
            )));
        }
        Ok(())
    }
}

/// The network.
pub struct Decoder {
    config: Config,
    /// The embeddings of all codebooks, concatenated.
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    layer_norm: LayerNorm,
    /// The output heads of all codebooks, concatenated.
    lm_heads: Linear,
    device: Device,
    activations: DType,
    half_cache: bool,
}

struct Layer {
    self_attn_layer_norm: LayerNorm,
    self_attn: SelfAttention,
    /// `None` if the conditioning is prepended.
    encoder_attn: Option<(LayerNorm, CrossAttention)>,
    final_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

struct SelfAttention {
    /// Queries, keys and values in one matrix.
    qkv: Linear,
    out_proj: Linear,
    heads: usize,
}

struct CrossAttention {
    q: Linear,
    kv: Linear,
    out_proj: Linear,
    heads: usize,
}

/// The conditioning of the decoder, of its hidden size.
#[derive(Debug, Clone)]
pub enum Conditioning {
    /// By cross-attention in every layer.
    CrossAttention {
        /// Hidden states, `(batch, sequence, hidden_size)`. Further sequences of the decoder's batch are unconditional.
        states: Tensor,
        /// The padding mask.
        mask: Mask,
    },
    /// Prepended to the embeddings of the codes, `(batch, sequence, hidden_size)`.
    Prepended(Tensor),
    /// Unconditional.
    None,
}

/// The KV cache of the decoder's self-attention, and the keys and values of its cross-attention.
pub struct DecoderState {
    cache: Cache,
    /// Keys and values of each layer; empty without cross-attention.
    cross: Vec<(Tensor, Tensor)>,
    mask: Mask,
    /// The prepended conditioning, until the first forward pass.
    prepended: Option<Tensor>,
}

impl Decoder {
    /// Loads the decoder from `w`. `cross`: whether the layers have cross-attention.
    pub fn load(config: Config, cross: bool, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let codebooks = |name: &str, rows: usize| -> Vec<Piece> {
            (0..c.num_codebooks).map(|k| Piece::whole(format!("{name}.{k}.weight"), rows)).collect()
        };
        let inner = w.at("model.decoder");
        let tables = codebooks("embed_tokens", c.vocab_size + 1);
        let tables = inner.stack(MatrixUse::Embedding, &tables, c.hidden_size)?;
        let heads = w.stack(MatrixUse::Linear, &codebooks("lm_heads", c.vocab_size), c.hidden_size)?;
        Ok(Self {
            embed_tokens: Embedding::new(tables, w.runtime().activations()),
            layers: (0..c.num_hidden_layers)
                .map(|i| Layer::load(c, cross, &inner.at_index("layers", i)))
                .collect::<Result<_>>()?,
            layer_norm: inner.layer_norm("layer_norm", c.hidden_size, EPS)?,
            lm_heads: Linear::new(heads, None),
            device: w.runtime().device().clone(),
            activations: w.runtime().activations(),
            half_cache: w.half_cache(),
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The dtype of the activations.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Creates the decoder state: an empty KV cache of `capacity` columns, and the keys and values of `condition`.
    pub fn start(&self, condition: &Conditioning, capacity: usize) -> Result<DecoderState> {
        let (states, mask, prepended) = match condition {
            Conditioning::CrossAttention { states, mask } => (Some(states), mask.clone(), None),
            Conditioning::Prepended(states) => (None, Mask::full(), Some(states.clone())),
            Conditioning::None => (None, Mask::full(), None),
        };
        let capacity = capacity + prepended.as_ref().map_or(Ok(0), |states| states.dim(1))?;
        let mut cross = Vec::new();
        if let Some(states) = states {
            for (_, attention) in self.layers.iter().filter_map(|layer| layer.encoder_attn.as_ref()) {
                cross.push(attention.keys_and_values(states)?);
            }
        }
        let cache = Cache::new(self.layers.len(), capacity).with_half(self.half_cache);
        Ok(DecoderState { cache, cross, mask, prepended })
    }

    /// Runs the decoder on `codes`, `(batch, sequence, codebooks)` row-major, and returns the hidden states after the
    /// final layer norm, `(batch, sequence, hidden_size)`, prepended conditioning included.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a code is outside the codebook.
    pub fn forward(&self, codes: &[u32], batch: usize, state: &mut DecoderState) -> Result<Tensor> {
        let rows = self.config.vocab_size as u32 + 1;
        let codebooks = self.config.num_codebooks;
        if let Some(code) = codes.iter().find(|code| **code >= rows) {
            return Err(Error::input(format!("code {code} is outside the codebook of {} codes", rows - 1)));
        }
        let ids: Vec<u32> =
            codes.iter().zip((0..codebooks as u32).cycle()).map(|(c, k)| c + k * rows).collect();
        let shape = (batch, codes.len() / (batch * codebooks).max(1), codebooks);
        let mut x = self.embed_tokens.forward(&Tensor::from_vec(ids, shape, &self.device)?)?.sum(2)?;
        if let Some(prepended) = state.prepended.take() {
            x = concat(&[&prepended, &x], 1)?;
        }
        let positions = sinusoids(state.cache.length(), x.dim(1)?, self.config.hidden_size)?;
        let mut x = x.broadcast_add(&positions.to_device(x.device())?.to_dtype(x.dtype())?)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let cross = state.cross.get(i).map(|(k, v)| (k, v, &state.mask));
            x = layer.forward(&x, cross, state.cache.layer(i))?;
        }
        self.layer_norm.forward(&x)
    }

    /// Returns the logits of every codebook, `(batch, sequence, codebooks * vocab_size)`, of hidden states,
    /// `(batch, sequence, hidden_size)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_heads.forward(hidden)
    }
}

/// Epsilon of the layer norms.
const EPS: f64 = 1e-5;

/// Loads some of the q, k and v projections: three matrices in transformers' format, one in the original.
fn projections(w: &Weights, parts: std::ops::Range<usize>, width: usize) -> Result<Linear> {
    const PARTS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
    let pieces: Vec<Piece> = match w.has("in_proj", false) {
        true => {
            let rows = parts.start * width..parts.end * width;
            vec![Piece { name: "in_proj.weight".into(), of: 3 * width, rows }]
        }
        false => PARTS[parts].iter().map(|part| Piece::whole(format!("{part}.weight"), width)).collect(),
    };
    Ok(Linear::new(w.stack(MatrixUse::Linear, &pieces, width)?, None))
}

impl Layer {
    fn load(c: &Config, cross: bool, w: &Weights) -> Result<Self> {
        let width = c.hidden_size;
        Ok(Self {
            self_attn_layer_norm: w.layer_norm("self_attn_layer_norm", width, EPS)?,
            self_attn: SelfAttention::load(c, &w.at("self_attn"))?,
            encoder_attn: match cross {
                true => Some((
                    w.layer_norm("encoder_attn_layer_norm", width, EPS)?,
                    CrossAttention::load(c, &w.at("encoder_attn"))?,
                )),
                false => None,
            },
            final_layer_norm: w.layer_norm("final_layer_norm", width, EPS)?,
            fc1: w.linear_no_bias("fc1", width, c.ffn_dim)?,
            fc2: w.linear_no_bias("fc2", c.ffn_dim, width)?,
            activation: c.activation_function,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        cross: Option<(&Tensor, &Tensor, &Mask)>,
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let mut x = add(x, &self.self_attn.forward(&self.self_attn_layer_norm.forward(x)?, cache)?)?;
        if let (Some((norm, attention)), Some((k, v, mask))) = (&self.encoder_attn, cross) {
            // Without biases, cross-attention of the unconditional sequences is zero: only the others are computed.
            let (batch, rows) = (x.dim(0)?, k.dim(0)?);
            let attending = x.narrow(0, 0, rows)?;
            let attended = add(&attending, &attention.forward(&norm.forward(&attending)?, k, v, mask)?)?;
            x = match rows == batch {
                true => attended,
                false => Tensor::cat(&[&attended, &x.narrow(0, rows, batch - rows)?], 0)?,
            };
        }
        let inner = self.fc1.forward_then(&self.final_layer_norm.forward(&x)?, self.activation)?;
        add(&x, &self.fc2.forward(&inner)?)
    }
}

impl SelfAttention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            qkv: projections(w, 0..3, c.hidden_size)?,
            out_proj: w.linear_no_bias("out_proj", c.hidden_size, c.hidden_size)?,
            heads: c.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor, cache: &mut LayerCache) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let qkv = self.qkv.forward(x)?.reshape((batch, time, 3, self.heads, width / self.heads))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let (k, v) = cache.append(&part(1)?, &part(2)?)?;
        let scale = ((width / self.heads) as f64).powf(-0.5);
        self.out_proj.forward(&attend(&part(0)?, &k, &v, &Mask::causal(), scale)?)
    }
}

impl CrossAttention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        Ok(Self {
            q: projections(w, 0..1, c.hidden_size)?,
            kv: projections(w, 1..3, c.hidden_size)?,
            out_proj: w.linear_no_bias("out_proj", c.hidden_size, c.hidden_size)?,
            heads: c.num_attention_heads,
        })
    }

    /// Returns keys and values, `(batch, sequence, heads, head_dim)`, of `states`, `(batch, sequence, hidden_size)`.
    fn keys_and_values(&self, states: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, time, width) = states.dims3()?;
        let kv = self.kv.forward(states)?.reshape((rows, time, 2, self.heads, width / self.heads))?;
        let part = |i| kv.narrow(2, i, 1)?.squeeze(2)?.contiguous();
        Ok((part(0)?, part(1)?))
    }

    fn forward(&self, x: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let q = self.q.forward(x)?.reshape((batch, time, self.heads, width / self.heads))?;
        self.out_proj.forward(&attend(&q, k, v, mask, ((width / self.heads) as f64).powf(-0.5))?)
    }
}

/// Sinusoidal position embeddings from position `past` on, `(1, time, width)`: cosines in the first half, sines in the
/// second, with frequencies from 1 to 1/10000. In float32 as in the reference, whose rounding affects late positions.
fn sinusoids(past: usize, time: usize, width: usize) -> Result<Tensor> {
    let half = width / 2;
    let step = -(10_000f64.ln() / (half - 1) as f64) as f32;
    let frequencies: Vec<f32> = (0..half).map(|j| (j as f32 * step).exp()).collect();
    let mut values = vec![0f32; time * width];
    for (t, row) in values.chunks_exact_mut(width).enumerate() {
        let (cosines, rest) = row.split_at_mut(half);
        for ((cosine, sine), frequency) in cosines.iter_mut().zip(rest).zip(&frequencies) {
            (*sine, *cosine) = ((past + t) as f32 * frequency).sin_cos();
        }
    }
    Ok(Tensor::from_vec(values, (1, time, width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_have_the_cosines_first() {
        // Hidden size 6: frequencies 1, 1/100, 1/10000.
        let rows: Vec<Vec<f32>> = sinusoids(2, 2, 6).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        for (row, position) in rows.iter().zip([2f32, 3.0]) {
            let phases = [position, position / 100.0, position / 10_000.0];
            for (j, phase) in phases.iter().enumerate() {
                assert!((row[j] - phase.cos()).abs() < 1e-6 && (row[3 + j] - phase.sin()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn an_odd_hidden_size_ends_with_zero() {
        let rows: Vec<Vec<f32>> = sinusoids(1, 1, 5).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        assert_eq!(rows[0][4], 0.0);
    }
}
