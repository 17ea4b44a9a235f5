//! The transformer encoder of both towers of CLIP and SigLIP: pre-norm attention and feed-forward layers.

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::attention::{Mask, attend};
use fauna_shared::model::{check_heads, check_sizes};
use fauna_shared::nn::{Activation, LayerNorm, Linear, add};
use fauna_shared::weights::{MatrixUse, Piece, Weights};

/// Configuration of a tower's encoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EncoderConfig {
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate (feed-forward) size.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl EncoderConfig {
    pub(crate) fn check(&self) -> Result<()> {
        check_sizes(&[("intermediate_size", self.intermediate_size)])?;
        check_heads(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))
    }
}

/// A stack of encoder layers.
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
    /// Loads the layers `w.layers.0`, `w.layers.1` and so on.
    pub fn load(c: &EncoderConfig, w: &Weights) -> Result<Self> {
        let layers = (0..c.num_hidden_layers).map(|i| Layer::load(c, &w.at_index("layers", i)));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }

    /// Number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Returns the hidden states after the first `depth` layers; input and output `(batch, sequence, hidden_size)`.
    pub fn forward(&self, x: Tensor, mask: &Mask, depth: usize) -> Result<Tensor> {
        let time = x.dim(1)?;
        self.layers.iter().take(depth).try_fold(x, |x, layer| layer.forward(&x, mask, time))
    }

    /// Returns the last hidden state of the first token, `(batch, 1, hidden_size)`, with full attention. The last layer
    /// computes only that token.
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
    fn load(c: &EncoderConfig, w: &Weights) -> Result<Self> {
        Ok(Self {
            layer_norm1: w.layer_norm("layer_norm1", c.hidden_size, c.layer_norm_eps)?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            layer_norm2: w.layer_norm("layer_norm2", c.hidden_size, c.layer_norm_eps)?,
            fc1: w.linear("mlp.fc1", c.hidden_size, c.intermediate_size)?,
            fc2: w.linear("mlp.fc2", c.intermediate_size, c.hidden_size)?,
            hidden_act: c.hidden_act,
        })
    }

    /// Returns the first `queries` tokens of the output.
    fn forward(&self, x: &Tensor, mask: &Mask, queries: usize) -> Result<Tensor> {
        let attended = self.self_attn.forward(&self.layer_norm1.forward(x)?, mask, queries)?;
        let x = add(&x.narrow(1, 0, queries)?.contiguous()?, &attended)?;
        let inner = self.fc1.forward_then(&self.layer_norm2.forward(&x)?, self.hidden_act)?;
        add(&x, &self.fc2.forward(&inner)?)
    }
}

impl Attention {
    fn load(c: &EncoderConfig, w: &Weights) -> Result<Self> {
        let width = c.hidden_size;
        // torch's MultiheadAttention stores queries, keys and values in one matrix, the other releases separately.
        let qkv = match w.has("in_proj_weight", false) {
            true => {
                let weight = w.matrix("in_proj_weight", 3 * width, width)?;
                Linear::new(weight, Some(w.tensor("in_proj_bias", &[3 * width])?))
            }
            false => {
                let all = |what| {
                    ["q_proj", "k_proj", "v_proj"].map(|name| Piece::whole(format!("{name}.{what}"), width))
                };
                let weight = w.stack(MatrixUse::Linear, &all("weight"), width)?;
                Linear::new(weight, Some(w.stack_bias(&all("bias"))?))
            }
        };
        Ok(Self { qkv, out_proj: w.linear("out_proj", width, width)?, heads: c.num_attention_heads })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, queries: usize) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head_width = width / self.heads;
        let qkv = self.qkv.forward(x)?.reshape((batch, time, 3, self.heads, head_width))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let scale = 1.0 / (head_width as f64).sqrt();
        let q = part(0)?.narrow(1, 0, queries)?;
        self.out_proj.forward(&attend(&q, &part(1)?, &part(2)?, mask, scale)?)
    }
}
