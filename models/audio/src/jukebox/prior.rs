//! The top-level prior: a sparse transformer over a window of the coarsest codes.
//!
//! Dhariwal et al. 2020, sections 4.1 and 8.2; factorized attention of Child et al. 2019 over a grid of blocks: each
//! layer attends within one row or one column of the grid. The hidden states of a window of the 5b prior, 8192 by 4800,
//! take 157 MB: a batch is processed one window at a time, and position-wise layers in chunks.

use candle_core::{Device, IndexOp, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

use super::hps::PriorHps;
use super::labels::{LabelConditioner, Labels};

/// Positions per chunk of the position-wise layers.
const CHUNK: usize = 1024;

/// Epsilon of the layer norms.
const NORM_EPS: f64 = 1e-5;

/// The first layers of the prior.
pub struct Prior {
    embed_tokens: Embedding,
    /// The output head, if all layers are loaded.
    fc_proj_out: Option<Linear>,
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
    pattern: Pattern,
    blocks: usize,
    heads: usize,
}

/// The attention pattern of a layer; the three alternate.
#[derive(Debug, Clone, Copy)]
enum Pattern {
    /// Causal within the block.
    Block,
    /// Causal over the same position of all blocks.
    Transpose,
    /// The whole previous block; nothing in the first block.
    PreviousBlock,
}

struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
    activation: Activation,
}

impl Prior {
    /// Loads the first `layers` layers from `w`; the others and the output head are skipped.
    pub fn load(hps: &PriorHps, codes: usize, layers: usize, w: &Weights) -> Result<Self> {
        let prior = w.at("prior");
        let embed_tokens = prior.embedding("embed_tokens", codes, hps.prior_width)?;
        let pos_emb = prior.at("pos_emb").tensor("pos_emb", &[hps.n_ctx, hps.prior_width])?;
        let stack = prior.at("transformer");
        let layers = layers.min(hps.prior_depth);
        for skipped in layers..hps.prior_depth {
            stack.skip(&format!("_attn_mods.{skipped}"));
        }
        let fc_proj_out = match layers == hps.prior_depth && prior.has("fc_proj_out", false) {
            true => Some(prior.linear_no_bias("fc_proj_out", hps.prior_width, codes)?),
            false => {
                prior.skip("fc_proj_out");
                None
            }
        };
        let layer = |i| Layer::load(hps, i, &stack.at_index("_attn_mods", i));
        Ok(Self {
            embed_tokens,
            fc_proj_out,
            pos_emb,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            metadata_embedding: LabelConditioner::load(hps, &w.at("metadata_embedding"))?,
            n_ctx: hps.n_ctx,
            codes,
        })
    }

    /// Number of loaded layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Context length in codes.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.pos_emb.device()
    }

    /// Returns the conditioning of all positions, `(n_ctx, prior_width)`, and of the start, `(1, prior_width)`, for
    /// `labels`.
    ///
    /// # Errors
    /// As [`LabelConditioner::forward`].
    pub fn condition(&self, labels: &Labels) -> Result<(Tensor, Tensor)> {
        self.metadata_embedding.forward(labels)
    }

    /// Returns the hidden states after `layers` layers, `(n_ctx, prior_width)`, of one window of codes, with the
    /// conditioning of [`condition`](Prior::condition).
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there are not `n_ctx` codes, a code is outside the codebook, or
    /// fewer layers were loaded.
    pub fn hidden(&self, codes: &[u32], x_cond: &Tensor, y_cond: &Tensor, layers: usize) -> Result<Tensor> {
        if codes.len() != self.n_ctx {
            return Err(Error::input(format!("{} codes, expected {}", codes.len(), self.n_ctx)));
        }
        if let Some(code) = codes.iter().find(|code| **code as usize >= self.codes) {
            return Err(Error::input(format!("code {code} is outside the codebook of {}", self.codes)));
        }
        if layers > self.layers.len() {
            return Err(Error::input(format!("layer {layers} is not loaded, only {}", self.layers.len()))
                .hint("open the model with a larger prior_depth"));
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

impl Prior {
    /// Whether it has its output head.
    pub fn has_head(&self) -> bool {
        self.fc_proj_out.is_some()
    }

    /// The logits of every code of the window given those before it, `(n_ctx, codes)`.
    ///
    /// # Errors
    /// As [`hidden`](Prior::hidden); [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if not all layers are loaded.
    pub fn logits(&self, codes: &[u32], labels: &Labels) -> Result<Tensor> {
        let head = self.fc_proj_out.as_ref().ok_or_else(|| {
            Error::unsupported("the prior is loaded without its last layers and its output head")
                .hint("open the model with the setting prior_depth, all layers of the prior")
        })?;
        let (x_cond, y_cond) = self.condition(labels)?;
        head.forward(&self.hidden(codes, &x_cond, &y_cond, self.layers.len())?)
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

    /// Input and output: `(n_ctx, prior_width)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let qkv = in_chunks(x, |x, _| self.attn.c_attn.forward(&self.layer_norm_0.forward(x)?))?;
        let attended = self.attn.attend(&qkv)?;
        drop(qkv);
        in_chunks(x, |x, from| {
            let a = self.attn.c_proj.forward(&attended.narrow(0, from, x.dim(0)?)?)?;
            let x = add(x, &a)?;
            add(&x, &self.mlp.forward(&self.layer_norm_1.forward(&x)?)?)
        })
    }
}

/// Applies `part` to chunks of positions of `x`, with the index of their first position, and concatenates the results.
fn in_chunks(x: &Tensor, part: impl Fn(&Tensor, usize) -> Result<Tensor>) -> Result<Tensor> {
    let time = x.dim(0)?;
    let starts = (0..time).step_by(CHUNK);
    let parts = starts.map(|from| part(&x.narrow(0, from, CHUNK.min(time - from))?, from));
    Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
}

impl Attention {
    fn load(hps: &PriorHps, index: usize, w: &Weights) -> Result<Self> {
        let (width, inside) = (hps.prior_width, hps.attention_width());
        Ok(Self {
            c_attn: w.linear_transposed("c_attn", width, 3 * inside)?,
            c_proj: w.linear_transposed("c_proj", inside, width)?,
            pattern: [Pattern::Block, Pattern::Transpose, Pattern::PreviousBlock][index % 3],
            blocks: hps.blocks,
            heads: hps.heads,
        })
    }

    /// Attention, `(n_ctx, attention_width)`, from concatenated queries, keys and values.
    fn attend(&self, qkv: &Tensor) -> Result<Tensor> {
        let (time, _) = qkv.dims2()?;
        let length = time / self.blocks;
        let grid = qkv.reshape((self.blocks, length, 3, self.heads, ()))?;
        let scale = 1.0 / (grid.dim(4)? as f64).sqrt();
        let [q, k, v] = [0, 1, 2].map(|part| grid.i((.., .., part)));
        let (q, k, v) = (q?, k?, v?);
        let attended = match self.pattern {
            Pattern::Block => attend(&q, &k, &v, &Mask::causal(), scale)?,
            Pattern::Transpose => {
                let columns = |x: &Tensor| x.transpose(0, 1);
                attend(&columns(&q)?, &columns(&k)?, &columns(&v)?, &Mask::causal(), scale)?
                    .transpose(0, 1)?
            }
            Pattern::PreviousBlock => {
                let before = self.blocks - 1;
                // The first block attends to zeros: its output is zero.
                let nothing = q.i(..1)?.zeros_like()?.reshape((1, length, ()))?;
                if before == 0 {
                    nothing
                } else {
                    let (k, v) = (k.narrow(0, 0, before)?, v.narrow(0, 0, before)?);
                    let attended = attend(&q.narrow(0, 1, before)?, &k, &v, &Mask::full(), scale)?;
                    Tensor::cat(&[nothing, attended], 0)?
                }
            }
        };
        Ok(attended.reshape((time, ()))?)
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
