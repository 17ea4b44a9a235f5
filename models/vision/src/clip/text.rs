//! CLIP's reader: a causal transformer whose end token stands for the text (Radford et al. 2021, section 2.4).

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, Embedding, LayerNorm};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::Deserialize;

use super::encoder::{Blocks, Encoder};

/// `text_config`; what it leaves out is ViT-B/32's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Tokens in the table.
    pub vocab_size: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// The longest text in tokens.
    pub max_position_embeddings: usize,
    /// The activation of the feed-forward part.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// The token whose state stands for the text: its first place; or, if this is 2, the first place of the largest
    /// id. The first releases say 2, which is wrong, and mean the latter.
    pub eos_token_id: i64,
    /// Width of the shared space, where the tower has a projection of its own.
    pub projection_dim: usize,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            projection_dim: 512,
        }
    }
}

impl TextConfig {
    fn blocks(&self) -> Blocks {
        Blocks {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ])?;
        self.blocks().check()
    }

    /// Where the state that stands for the text is, in a row of its ids.
    pub fn end(&self, ids: &[i64]) -> usize {
        let wanted = match self.eos_token_id {
            2 => ids.iter().max().copied().unwrap_or(0),
            id => id,
        };
        // Without an end token the reference takes the first place.
        ids.iter().position(|id| *id == wanted).unwrap_or(0)
    }
}

/// The tower.
pub struct TextTower {
    config: TextConfig,
    token_embedding: Embedding,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

/// What the tower makes of a batch of texts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// After the last norm: `(batch, time, width)`.
    pub last_hidden_state: Tensor,
    /// That of each text's end: `(batch, width)`.
    pub pooled: Tensor,
}

impl TextTower {
    /// The tower whose tensors are at `w`, or below `text_model` there, as some releases of a tower alone have it.
    pub fn load(config: &TextConfig, w: &Weights) -> Result<Self> {
        config.check()?;
        let below = w.has("text_model", false).then(|| w.at("text_model"));
        let w = below.as_ref().unwrap_or(w);
        let (c, embeddings) = (config, w.at("embeddings"));
        let positions = [c.max_position_embeddings, c.hidden_size];
        Ok(Self {
            token_embedding: embeddings.embedding("token_embedding", c.vocab_size, c.hidden_size)?,
            position_embedding: embeddings.tensor("position_embedding.weight", &positions)?,
            encoder: Encoder::load(&c.blocks(), &w.at("encoder"))?,
            final_layer_norm: w.layer_norm("final_layer_norm", c.hidden_size, c.layer_norm_eps)?,
            config: config.clone(),
        })
    }

    /// Its hyper-parameters.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        self.position_embedding.device()
    }

    /// `ids`: `(batch, time)` of integers; `real` tells padding apart, row by row, where there is any.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a text longer than the model's, or an id outside the table.
    pub fn forward(&self, ids: &Tensor, real: Option<&[Vec<bool>]>) -> Result<TextStates> {
        let (batch, time) = ids.dims2()?;
        let x = embedded(&self.token_embedding, &self.position_embedding, ids)?;
        let mask = match real {
            Some(real) => Mask::causal().with_padding(real)?,
            None => Mask::causal(),
        };
        let x = self.encoder.forward(x, &mask, self.encoder.depth())?;
        let last_hidden_state = self.final_layer_norm.forward(&x)?;
        let ids: Vec<Vec<i64>> = ids.to_dtype(DType::I64)?.to_vec2()?;
        let ends = ids.iter().enumerate().map(|(row, ids)| (row * time + self.config.end(ids)) as u32);
        let ends = Tensor::from_iter(ends, last_hidden_state.device())?;
        let flat = last_hidden_state.reshape((batch * time, self.config.hidden_size))?;
        Ok(TextStates { pooled: flat.index_select(&ends, 0)?, last_hidden_state })
    }
}

/// The tokens of `ids`, `(batch, time)`, each with its position: `(batch, time, width)`.
pub(crate) fn embedded(tokens: &Embedding, positions: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (_, time) = ids.dims2()?;
    let longest = positions.dim(0)?;
    if time == 0 || time > longest {
        return Err(Error::input(format!("{time} tokens, but the model has {longest} positions"))
            .hint("shorten the text, or let it be cut"));
    }
    Ok(tokens.forward(ids)?.broadcast_add(&positions.narrow(0, 0, time)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_the_first_end_token_or_the_first_of_the_largest() {
        let first = TextConfig { eos_token_id: 7, ..TextConfig::default() };
        let largest = TextConfig { eos_token_id: 2, ..TextConfig::default() };
        assert_eq!((first.end(&[9, 3, 7, 7]), largest.end(&[3, 9, 7, 9])), (2, 1));
        assert_eq!((first.end(&[9, 3]), largest.end(&[])), (0, 0));
    }
}
