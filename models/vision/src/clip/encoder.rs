//! The blocks of both towers: pre-norm attention and feed-forward, as CLIP and SigLIP spell them.

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Mask, attend};
use fauna_shared::model::{check_heads, check_sizes};
use fauna_shared::nn::{Activation, LayerNorm, Linear, add};
use fauna_shared::weights::{MatrixUse, Piece, Weights};

/// The sizes of a tower's blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blocks {
    /// Hidden size.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// How many there are.
    pub num_hidden_layers: usize,
    /// Heads in each.
    pub num_attention_heads: usize,
    /// The activation of the feed-forward part.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

impl Blocks {
    pub(crate) fn check(&self) -> Result<()> {
        check_sizes(&[("intermediate_size", self.intermediate_size)])?;
        check_heads(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))
    }
}

/// A stack of blocks.
pub struct Encoder {
    layers: Vec<Layer>,
}

struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    hidden_act: Activation,
}

struct Attention {
    qkv: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Encoder {
    /// The blocks `layers.0` and on below `w`.
    pub fn load(c: &Blocks, w: &Weights) -> Result<Self> {
        let layers = (0..c.num_hidden_layers).map(|i| Layer::load(c, &w.at_index("layers", i)));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// How many blocks there are.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// What the first `depth` blocks make of `x`, `(batch, time, width)`.
    pub fn forward(&self, x: Tensor, mask: &Mask, depth: usize) -> Result<Tensor> {
        let time = x.dim(1)?;
        self.layers.iter().take(depth).try_fold(x, |x, layer| layer.forward(&x, mask, time))
    }

    /// What all blocks make of the first token where every token sees every other: `(batch, 1, width)`. The last block
    /// works out no other.
    pub fn first(&self, x: Tensor) -> Result<Tensor> {
        let (mask, depth) = (Mask::full(), self.depth());
        let x = self.forward(x, &mask, depth.saturating_sub(1))?;
        match self.layers.last() {
            Some(last) => last.forward(&x, &mask, 1),
            None => Ok(x.narrow(1, 0, 1)?),
        }
    }
}

impl Layer {
    fn load(c: &Blocks, w: &Weights) -> Result<Self> {
        Ok(Self {
            layer_norm1: w.layer_norm("layer_norm1", c.hidden_size, c.layer_norm_eps)?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            layer_norm2: w.layer_norm("layer_norm2", c.hidden_size, c.layer_norm_eps)?,
            fc1: w.linear("mlp.fc1", c.hidden_size, c.intermediate_size)?,
            fc2: w.linear("mlp.fc2", c.intermediate_size, c.hidden_size)?,
            hidden_act: c.hidden_act,
        })
    }

    /// The first `made` tokens of what comes out.
    fn forward(&self, x: &Tensor, mask: &Mask, made: usize) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.layer_norm1.forward(x)?, mask, made)?;
        let x = add(&x.narrow(1, 0, made)?.contiguous()?, &attended)?;
        let inner = self.fc1.forward_then(&self.layer_norm2.forward(&x)?, self.hidden_act)?;
        add(&x, &self.fc2.forward(&inner)?)
    }
}

impl Attention {
    fn load(c: &Blocks, w: &Weights) -> Result<Self> {
        let width = c.hidden_size;
        // torch's own attention keeps queries, keys and values in one matrix; the others store them apart.
        let qkv = match w.has("in_proj_weight", false) {
            true => {
                let weight = w.matrix("in_proj_weight", 3 * width, width)?;
                Linear::new(weight, Some(w.tensor("in_proj_bias", &[3 * width])?))
            }
            false => {
                let all = |what| {
                    ["q_proj", "k_proj", "v_proj"].map(|name| Piece::whole(format!("{name}.{what}"), width))
                };
                let weight = w.stack(MatrixUse::Map, &all("weight"), width)?;
                Linear::new(weight, Some(w.stack_bias(&all("bias"))?))
            }
        };
        Ok(Self { qkv, out_proj: w.linear("out_proj", width, width)?, heads: c.num_attention_heads })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, made: usize) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head_width = width / self.heads;
        let qkv = self.qkv.forward(x)?.reshape((batch, time, 3, self.heads, head_width))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let scale = 1.0 / (head_width as f64).sqrt();
        let queries = part(0)?.narrow(1, 0, made)?;
        self.out_proj.forward(&attend(&queries, &part(1)?, &part(2)?, mask, scale)?)
    }
}
