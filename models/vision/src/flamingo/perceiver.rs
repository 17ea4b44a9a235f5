//! The perceiver resampler: reduces the features of an image to a few latents (Alayrac et al. 2022, section 3.1.1).

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Mask, attend};
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, LayerNorm, Linear, add, concat};
use fauna_shared::weights::{MatrixUse, Piece, Weights};

/// Epsilon of the layer norms, in both families.
const EPS: f64 = 1e-5;

/// Configuration of a resampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Hidden size.
    pub width: usize,
    /// Number of latents per image.
    pub latents: usize,
    /// Number of layers.
    pub depth: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Head dimension.
    pub head_width: usize,
}

/// Learned latents that attend to the features of an image and to each other.
pub(crate) struct Perceiver {
    latents: Tensor,
    blocks: Vec<(Attention, FeedForward)>,
    norm: LayerNorm,
}

struct Attention {
    norm_media: LayerNorm,
    norm_latents: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    /// Norms of queries and keys, per head.
    q_norm_k_norm: Option<(LayerNorm, LayerNorm)>,
    to_out: Linear,
    heads: usize,
    head_width: usize,
}

struct FeedForward {
    norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
}

impl Sizes {
    fn inner(&self) -> usize {
        self.heads.saturating_mul(self.head_width)
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("the hidden size of the vision encoder", self.width),
            ("resampler_n_latents", self.latents),
            ("resampler_n_heads", self.heads),
            ("resampler_head_dim", self.head_width),
        ])
    }
}

impl Perceiver {
    /// Loads OpenFlamingo's resampler.
    pub fn open_flamingo(c: Sizes, w: &Weights) -> Result<Self> {
        c.check()?;
        let block = |i: usize| -> Result<_> {
            let (attn, ff) = (w.at(&format!("layers.{i}.0")), w.at(&format!("layers.{i}.1")));
            let attention = Attention {
                norm_media: attn.layer_norm("norm_media", c.width, EPS)?,
                norm_latents: attn.layer_norm("norm_latents", c.width, EPS)?,
                to_q: attn.linear_no_bias("to_q", c.width, c.inner())?,
                to_kv: attn.linear_no_bias("to_kv", c.width, 2 * c.inner())?,
                q_norm_k_norm: None,
                to_out: attn.linear_no_bias("to_out", c.inner(), c.width)?,
                heads: c.heads,
                head_width: c.head_width,
            };
            let feed_forward = FeedForward {
                norm: ff.layer_norm("0", c.width, EPS)?,
                up: ff.linear_no_bias("1", c.width, 4 * c.width)?,
                activation: Activation::GeluErf,
                down: ff.linear_no_bias("3", 4 * c.width, c.width)?,
            };
            Ok((attention, feed_forward))
        };
        Ok(Self {
            latents: w.tensor("latents", &[c.latents, c.width])?,
            blocks: (0..c.depth).map(block).collect::<Result<_>>()?,
            norm: w.layer_norm("norm", c.width, EPS)?,
        })
    }

    /// Loads IDEFICS' resampler; `norms`: whether queries and keys are normalised per head.
    pub fn idefics(c: Sizes, norms: bool, w: &Weights) -> Result<Self> {
        c.check()?;
        let block = |i: usize| -> Result<_> {
            let (attn, ff) = (w.at(&format!("blocks.{i}.0")), w.at(&format!("blocks.{i}.1")));
            let q_norm_k_norm = match norms {
                true => Some((
                    attn.layer_norm("q_layer_norm", c.head_width, EPS)?,
                    attn.layer_norm("k_layer_norm", c.head_width, EPS)?,
                )),
                false => None,
            };
            let kv = ["k_proj.weight", "v_proj.weight"].map(|name| Piece::whole(name, c.inner()));
            let attention = Attention {
                norm_media: attn.layer_norm("context_layer_norm", c.width, EPS)?,
                norm_latents: attn.layer_norm("latents_layer_norm", c.width, EPS)?,
                to_q: attn.linear_no_bias("q_proj", c.width, c.inner())?,
                to_kv: Linear::new(attn.stack(MatrixUse::Linear, &kv, c.width)?, None),
                q_norm_k_norm,
                to_out: attn.linear_no_bias("output_proj", c.inner(), c.width)?,
                heads: c.heads,
                head_width: c.head_width,
            };
            let feed_forward = FeedForward {
                norm: ff.layer_norm("ln", c.width, EPS)?,
                up: ff.linear_no_bias("fc", c.width, 4 * c.width)?,
                activation: Activation::Relu,
                down: ff.linear_no_bias("c_proj", 4 * c.width, c.width)?,
            };
            Ok((attention, feed_forward))
        };
        Ok(Self {
            latents: w.tensor("latents", &[c.latents, c.width])?,
            blocks: (0..c.depth).map(block).collect::<Result<_>>()?,
            norm: w.layer_norm("layer_norm", c.width, EPS)?,
        })
    }

    /// Resamples `states`, `(images, tokens, hidden_size)`, to `(images, latents, hidden_size)`.
    pub fn forward(&self, states: &Tensor) -> Result<Tensor> {
        let mut latents = self.latents.unsqueeze(0)?.repeat((states.dim(0)?, 1, 1))?;
        for (attention, feed_forward) in &self.blocks {
            latents = add(&latents, &attention.forward(states, &latents)?)?;
            latents = add(&latents, &feed_forward.forward(&latents)?)?;
        }
        self.norm.forward(&latents)
    }
}

impl Attention {
    fn forward(&self, media: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let (batch, queries, _) = latents.dims3()?;
        let latents = self.norm_latents.forward(latents)?;
        let both = concat(&[&self.norm_media.forward(media)?, &latents], 1)?;
        let keys = both.dim(1)?;
        let kv = self.to_kv.forward(&both)?.reshape((batch, keys, 2, self.heads, self.head_width))?;
        let (mut k, v) = (kv.narrow(2, 0, 1)?.squeeze(2)?, kv.narrow(2, 1, 1)?.squeeze(2)?);
        let mut q = self.to_q.forward(&latents)?.reshape((batch, queries, self.heads, self.head_width))?;
        if let Some((q_norm, k_norm)) = &self.q_norm_k_norm {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let scale = 1.0 / (self.head_width as f64).sqrt();
        self.to_out.forward(&attend(&q, &k, &v, &Mask::full(), scale)?)
    }
}

impl FeedForward {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.up.forward_then(&self.norm.forward(x)?, self.activation)?)
    }
}
