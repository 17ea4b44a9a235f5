//! The prior: a transformer over a window of the coarsest codes, of which LLark reads a layer in the middle.
//!
//! Dhariwal et al. 2020, sections 4.1 and 8.2; its attention is that of Child et al. 2019, factored over a grid of
//! blocks. Every layer sees at most one row or one column of the grid, so no product is larger than a block's square.
//! A window of the 5b prior is 8192 by 4800 numbers, 157 MB: rows of a batch are read one after the other, and what
//! goes position by position goes in parts.

use candle_core::{Device, IndexOp, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

use super::hps::PriorHps;
use super::labels::{LabelConditioner, Labels};

/// Positions that go through a layer's linear maps together.
const PART: usize = 1024;

/// Epsilon of the norms.
const NORM_EPS: f64 = 1e-5;

/// The network, as many layers of it as were asked for, without its output head.
pub struct Prior {
    embed_tokens: Embedding,
    pos_emb: Tensor,
    layers: Vec<Layer>,
    metadata_embedding: LabelConditioner,
    n_ctx: usize,
    codes: usize,
}

struct Layer {
    layer_norm_0: LayerNorm,
    attn: Attention,
    layer_norm_1: LayerNorm,
    mlp: Mlp,
}

struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    sight: Sight,
    blocks: usize,
    heads: usize,
}

/// Whom a position sees, by layer: the three take turns.
#[derive(Debug, Clone, Copy)]
enum Sight {
    /// Its own block, up to itself.
    Block,
    /// The same place in every block, up to its own.
    Transpose,
    /// All of the block before; in the first block nothing.
    PreviousBlock,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    activation: Activation,
}

impl Prior {
    /// Builds the first `layers` layers from what is at `w`; the others, and the head, are left unread.
    pub fn load(hps: &PriorHps, codes: usize, layers: usize, w: &Weights) -> Result<Self> {
        let prior = w.at("prior");
        let embed_tokens = prior.embedding("embed_tokens", codes, hps.prior_width)?;
        let pos_emb = prior.at("pos_emb").tensor("pos_emb", &[hps.n_ctx, hps.prior_width])?;
        let stack = prior.at("transformer");
        let layers = layers.min(hps.prior_depth);
        for unread in layers..hps.prior_depth {
            stack.skip(&format!("_attn_mods.{unread}"));
        }
        prior.skip("fc_proj_out");
        let layer = |i| Layer::load(hps, i, &stack.at_index("_attn_mods", i));
        Ok(Self {
            embed_tokens,
            pos_emb,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            metadata_embedding: LabelConditioner::load(hps, &w.at("metadata_embedding"))?,
            n_ctx: hps.n_ctx,
            codes,
        })
    }

    /// How many layers were read.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Codes in a window.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.pos_emb.device()
    }

    /// What labels add at every position, `(n_ctx, width)`, and before the first code, `(1, width)`.
    ///
    /// # Errors
    /// As [`LabelConditioner::forward`].
    pub fn condition(&self, labels: &Labels) -> Result<(Tensor, Tensor)> {
        self.metadata_embedding.forward(labels)
    }

    /// The states after `layers` layers, `(n_ctx, width)`, of one window of codes, with what
    /// [`condition`](Prior::condition) gave.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there are not `n_ctx` codes, a code is not in the table, or fewer
    /// layers were read.
    pub fn hidden(&self, codes: &[u32], x_cond: &Tensor, y_cond: &Tensor, layers: usize) -> Result<Tensor> {
        if codes.len() != self.n_ctx {
            return Err(Error::input(format!("{} codes, but a window has {}", codes.len(), self.n_ctx)));
        }
        if let Some(code) = codes.iter().find(|code| **code as usize >= self.codes) {
            return Err(Error::input(format!("code {code} is outside the codebook of {}", self.codes)));
        }
        if layers > self.layers.len() {
            return Err(Error::input(format!("layer {layers} was not read, only {}", self.layers.len()))
                .hint("open the model with the setting prior_depth as large"));
        }
        let before = Tensor::new(&codes[..self.n_ctx - 1], y_cond.device())?;
        let mut x = Tensor::cat(&[y_cond, &self.embed_tokens.forward(&before)?], 0)?;
        x = ((x + &self.pos_emb)? + x_cond)?;
        for layer in &self.layers[..layers] {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}

impl Layer {
    fn load(hps: &PriorHps, index: usize, w: &Weights) -> Result<Self> {
        Ok(Self {
            layer_norm_0: w.layer_norm("layer_norm_0", hps.prior_width, NORM_EPS)?,
            attn: Attention::load(hps, index, &w.at("attn"))?,
            layer_norm_1: w.layer_norm("layer_norm_1", hps.prior_width, NORM_EPS)?,
            mlp: Mlp::load(hps, &w.at("mlp"))?,
        })
    }

    /// `x`: `(time, width)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = in_parts(x, |x, _| self.attn.c_attn.forward(&self.layer_norm_0.forward(x)?))?;
        let seen = self.attn.seen(&qkv)?;
        drop(qkv);
        in_parts(x, |x, from| {
            let a = self.attn.c_proj.forward(&seen.narrow(0, from, x.dim(0)?)?)?;
            let x = (x + a)?;
            Ok((&x + self.mlp.forward(&self.layer_norm_1.forward(&x)?)?)?)
        })
    }
}

/// `part` of some positions of `x` at a time, put together again; it is given the place of the first.
fn in_parts(x: &Tensor, part: impl Fn(&Tensor, usize) -> Result<Tensor>) -> Result<Tensor> {
    let time = x.dim(0)?;
    let starts = (0..time).step_by(PART);
    let parts = starts.map(|from| part(&x.narrow(0, from, PART.min(time - from))?, from));
    Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}

impl Attention {
    fn load(hps: &PriorHps, index: usize, w: &Weights) -> Result<Self> {
        let (width, inside) = (hps.prior_width, hps.attention_width());
        Ok(Self {
            c_attn: w.linear_transposed("c_attn", width, 3 * inside)?,
            c_proj: w.linear_transposed("c_proj", inside, width)?,
            sight: [Sight::Block, Sight::Transpose, Sight::PreviousBlock][index % 3],
            blocks: hps.blocks,
            heads: hps.heads,
        })
    }

    /// What each position sees, `(time, attention width)`, from its queries, keys and values side by side.
    fn seen(&self, qkv: &Tensor) -> Result<Tensor> {
        let (time, _) = qkv.dims2()?;
        let length = time / self.blocks;
        let grid = qkv.reshape((self.blocks, length, 3, self.heads, ()))?;
        let scale = 1.0 / (grid.dim(4)? as f64).sqrt();
        let [q, k, v] = [0, 1, 2].map(|part| grid.i((.., .., part)));
        let (q, k, v) = (q?, k?, v?);
        let seen = match self.sight {
            Sight::Block => attend(&q, &k, &v, &Mask::causal(), scale)?,
            Sight::Transpose => {
                let columns = |x: &Tensor| x.transpose(0, 1);
                attend(&columns(&q)?, &columns(&k)?, &columns(&v)?, &Mask::causal(), scale)?
                    .transpose(0, 1)?
            }
            Sight::PreviousBlock => {
                let before = self.blocks - 1;
                // The first block looks at zeros, and zeros are what it sees.
                let nothing = q.i(..1)?.zeros_like()?.reshape((1, length, ()))?;
                if before == 0 {
                    nothing
                } else {
                    let (k, v) = (k.narrow(0, 0, before)?, v.narrow(0, 0, before)?);
                    let seen = attend(&q.narrow(0, 1, before)?, &k, &v, &Mask::full(), scale)?;
                    Tensor::cat(&[nothing, seen], 0)?
                }
            }
        };
        Ok(seen.reshape((time, ()))?)
    }
}

impl Mlp {
    fn load(hps: &PriorHps, w: &Weights) -> Result<Self> {
        let (width, inside) = (hps.prior_width, hps.mlp_width());
        Ok(Self {
            c_fc: w.linear_transposed("c_fc", width, inside)?,
            c_proj: w.linear_transposed("c_proj", inside, width)?,
            activation: hps.act_fn,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.c_proj.forward(&self.c_fc.forward_then(x, self.activation)?)
    }
}
