//! The language model of MusicGen: one causal transformer over all codebooks.
//!
//! Copet et al. 2023, section 2.2. Codes are `(batch, time, codebooks)`, activations `(batch, time, width)`.

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, LayerCache, Mask, attend};
use fauna_shared::model::{check_heads, check_sizes};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear};
use fauna_shared::weights::{MatrixUse, Piece, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;

/// The `decoder` part of `config.json`. A release leaves out what has its usual value.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Codes in a codebook; the start token is one more.
    pub vocab_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Width inside the feed-forward part.
    pub ffn_dim: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// The feed-forward part's activation.
    pub activation_function: Activation,
    /// Codes in a frame, those of all channels together.
    pub num_codebooks: usize,
    /// Channels of the sound; in stereo the codebooks of left and right alternate.
    pub audio_channels: usize,
    /// Stands in every cell that belongs to no frame.
    pub pad_token_id: u32,
    /// The width of the text's states, where they come without a projection.
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
    /// Refuses sizes that no network has.
    pub(super) fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("ffn_dim", self.ffn_dim),
            ("num_codebooks", self.num_codebooks),
        ])?;
        check_heads(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))?;
        if !matches!(self.audio_channels, 1 | 2) || !self.num_codebooks.is_multiple_of(self.audio_channels) {
            return Err(Error::unsupported(format!(
                "{} codebooks for {} channels of sound",
                self.num_codebooks, self.audio_channels
            ))
            .hint("1 or 2 channels are known, each with the same number of codebooks"));
        }
        if self.hidden_size < 4 {
            return Err(Error::unsupported("hidden_size is below 4: no sinusoid fits"));
        }
        if self.pad_token_id as usize > self.vocab_size {
            return Err(Error::unsupported(format!(
                "pad_token_id {} has no row in tables of {}",
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
    /// The tables of all codebooks, one below the other.
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    layer_norm: LayerNorm,
    /// The heads of all codebooks, one below the other.
    lm_heads: Linear,
    device: Device,
    activations: DType,
    half_cache: bool,
}

struct Layer {
    self_attn_layer_norm: LayerNorm,
    self_attn: SelfAttention,
    /// None where the condition is read before the codes.
    encoder_attn: Option<(LayerNorm, CrossAttention)>,
    final_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

struct SelfAttention {
    /// q, k and v in one.
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

/// What the music follows, as states of the decoder's width.
#[derive(Debug, Clone)]
pub enum Condition {
    /// Every block attends to them.
    Attended {
        /// `(rows, states, width)`. Rows of the batch past these attend to nothing.
        states: Tensor,
        /// Which states are real.
        mask: Mask,
    },
    /// They stand before the codes, as positions of their own: `(batch, states, width)`.
    Before(Tensor),
    /// There is none.
    None,
}

/// What the network keeps of what it has read, and the keys and values of what it follows.
pub struct State {
    cache: Cache,
    /// One pair a block; none if there is nothing to attend to.
    cross: Vec<(Tensor, Tensor)>,
    mask: Mask,
    /// What is still to be read before the first code.
    before: Option<Tensor>,
}

impl Decoder {
    /// Reads the network below `w`. `cross`: whether blocks attend to a condition.
    pub fn load(config: Config, cross: bool, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let codebooks = |name: &str, rows: usize| -> Vec<Piece> {
            (0..c.num_codebooks).map(|k| Piece::whole(format!("{name}.{k}.weight"), rows)).collect()
        };
        let inner = w.at("model.decoder");
        let tables = codebooks("embed_tokens", c.vocab_size + 1);
        let tables = inner.stack(MatrixUse::Table, &tables, c.hidden_size)?;
        let heads = w.stack(MatrixUse::Map, &codebooks("lm_heads", c.vocab_size), c.hidden_size)?;
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

    /// The sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// In what type.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// An empty cache with room for `capacity` columns, and the keys and values of `condition`.
    pub fn start(&self, condition: &Condition, capacity: usize) -> Result<State> {
        let (states, mask, before) = match condition {
            Condition::Attended { states, mask } => (Some(states), mask.clone(), None),
            Condition::Before(states) => (None, Mask::full(), Some(states.clone())),
            Condition::None => (None, Mask::full(), None),
        };
        let capacity = capacity + before.as_ref().map_or(Ok(0), |states| states.dim(1))?;
        let mut cross = Vec::new();
        if let Some(states) = states {
            for (_, attention) in self.layers.iter().filter_map(|layer| layer.encoder_attn.as_ref()) {
                cross.push(attention.keys_and_values(states)?);
            }
        }
        let cache = Cache::new(self.layers.len(), capacity).with_half(self.half_cache);
        Ok(State { cache, cross, mask, before })
    }

    /// Reads `codes`, `(batch, time, codebooks)` row-major, each at most the start token, and gives the states after
    /// the last norm: `(batch, time, width)`, what stands before the first code included.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a code is outside its codebook.
    pub fn forward(&self, codes: &[u32], batch: usize, state: &mut State) -> Result<Tensor> {
        let rows = self.config.vocab_size as u32 + 1;
        let codebooks = self.config.num_codebooks;
        if let Some(code) = codes.iter().find(|code| **code >= rows) {
            return Err(Error::input(format!("code {code} is outside codebooks of {} codes", rows - 1)));
        }
        let ids: Vec<u32> =
            codes.iter().zip((0..codebooks as u32).cycle()).map(|(c, k)| c + k * rows).collect();
        let shape = (batch, codes.len() / (batch * codebooks).max(1), codebooks);
        let mut x = self.embed_tokens.forward(&Tensor::from_vec(ids, shape, &self.device)?)?.sum(2)?;
        if let Some(before) = state.before.take() {
            x = Tensor::cat(&[&before, &x], 1)?;
        }
        let positions = sinusoids(state.cache.length(), x.dim(1)?, self.config.hidden_size)?;
        let mut x = x.broadcast_add(&positions.to_device(x.device())?.to_dtype(x.dtype())?)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let cross = state.cross.get(i).map(|(k, v)| (k, v, &state.mask));
            x = layer.forward(&x, cross, state.cache.layer(i))?;
        }
        self.layer_norm.forward(&x)
    }

    /// Scores of the next code of every codebook: `(batch, time, width)` to `(batch, time, codebooks * codes)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.lm_heads.forward(hidden)
    }
}

/// Epsilon of the norms.
const EPS: f64 = 1e-5;

/// What stands for q, k and v: three maps in one layout of the release, one stacked map in the other.
fn projections(w: &Weights, wanted: std::ops::Range<usize>, width: usize) -> Result<Linear> {
    const PARTS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
    let pieces: Vec<Piece> = match w.has("in_proj", false) {
        true => {
            let rows = wanted.start * width..wanted.end * width;
            vec![Piece { name: "in_proj.weight".into(), of: 3 * width, rows }]
        }
        false => PARTS[wanted].iter().map(|part| Piece::whole(format!("{part}.weight"), width)).collect(),
    };
    Ok(Linear::new(w.stack(MatrixUse::Map, &pieces, width)?, None))
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
        let mut x = (x + self.self_attn.forward(&self.self_attn_layer_norm.forward(x)?, cache)?)?;
        if let (Some((norm, attention)), Some((k, v, mask))) = (&self.encoder_attn, cross) {
            // No map here has a bias, so a row that attends to nothing gets nothing: only the others are computed.
            let (batch, rows) = (x.dim(0)?, k.dim(0)?);
            let attending = x.narrow(0, 0, rows)?;
            let attended = (&attending + attention.forward(&norm.forward(&attending)?, k, v, mask)?)?;
            x = match rows == batch {
                true => attended,
                false => Tensor::cat(&[&attended, &x.narrow(0, rows, batch - rows)?], 0)?,
            };
        }
        let inner = self.fc1.forward_then(&self.final_layer_norm.forward(&x)?, self.activation)?;
        Ok((&x + self.fc2.forward(&inner)?)?)
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

    /// Of `states`, `(rows, states, width)`: two of `(rows, states, heads, head width)`.
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

/// Positions `past` and on, `(1, time, width)`: cosines in the first half, sines in the second, of frequencies that
/// fall from 1 to 1/10000. Float32 throughout, as in the reference: the phase of late positions feels the rounding.
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
    fn sinusoids_begin_with_their_cosines() {
        // Width 6: frequencies 1, 1/100, 1/10000.
        let rows: Vec<Vec<f32>> = sinusoids(2, 2, 6).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        for (row, position) in rows.iter().zip([2f32, 3.0]) {
            let phases = [position, position / 100.0, position / 10_000.0];
            for (j, phase) in phases.iter().enumerate() {
                assert!((row[j] - phase.cos()).abs() < 1e-6 && (row[3 + j] - phase.sin()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn an_odd_width_ends_with_zero() {
        let rows: Vec<Vec<f32>> = sinusoids(1, 1, 5).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        assert_eq!(rows[0][4], 0.0);
    }
}
