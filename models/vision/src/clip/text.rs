//! CLIP's text tower: a causal transformer, pooled at the EOS token (Radford et al. 2021, section 2.4).

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, Embedding, LayerNorm, add_repeated};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, transfer};
use serde::Deserialize;

use super::encoder::{Encoder, EncoderConfig};

/// `text_config`; missing keys have the values of ViT-B/32.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate (feed-forward) size.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Maximum sequence length.
    pub max_position_embeddings: usize,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Id of the EOS token, whose first position is pooled. The original configs have 2, which is wrong: then the first
    /// position of the largest id is pooled.
    pub eos_token_id: i64,
    /// Dimension of the shared embedding space, for a tower with its own projection.
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
    fn encoder_config(&self) -> EncoderConfig {
        EncoderConfig {
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
        self.encoder_config().check()
    }

    /// Returns the pooled position in a sequence of ids.
    pub fn eos_position(&self, ids: &[i64]) -> usize {
        let wanted = match self.eos_token_id {
            2 => ids.iter().max().copied().unwrap_or(0),
            id => id,
        };
        // Without an EOS token the reference pools the first position.
        ids.iter().position(|id| *id == wanted).unwrap_or(0)
    }
}

/// The text tower.
pub struct TextTower {
    config: TextConfig,
    token_embedding: Embedding,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

/// The outputs of the text tower.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// Hidden states after the final layer norm, `(batch, sequence, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// Hidden state of the EOS token, `(batch, hidden_size)`.
    pub pooled: Tensor,
}

impl TextTower {
    /// Loads the tower from `w`, or from `w.text_model`, as some releases of a single tower name it.
    pub fn load(config: &TextConfig, w: &Weights) -> Result<Self> {
        config.check()?;
        let below = w.has("text_model", false).then(|| w.at("text_model"));
        let w = below.as_ref().unwrap_or(w);
        let (c, embeddings) = (config, w.at("embeddings"));
        let positions = [c.max_position_embeddings, c.hidden_size];
        Ok(Self {
            token_embedding: embeddings.embedding("token_embedding", c.vocab_size, c.hidden_size)?,
            position_embedding: embeddings.tensor("position_embedding.weight", &positions)?,
            encoder: Encoder::load(&c.encoder_config(), &w.at("encoder"))?,
            final_layer_norm: w.layer_norm("final_layer_norm", c.hidden_size, c.layer_norm_eps)?,
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        self.position_embedding.device()
    }

    /// Runs the tower on `ids`, `(batch, sequence)` of integers; `real` is the padding mask (false: padding).
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a text longer than the context, or an id outside the vocabulary.
    pub fn forward(&self, ids: &Tensor, real: Option<&[Vec<bool>]>) -> Result<TextStates> {
        let (batch, time) = ids.dims2()?;
        let x = embedded(&self.token_embedding, &self.position_embedding, ids)?;
        let mask = match real {
            Some(real) => Mask::causal().with_padding(real)?,
            None => Mask::causal(),
        };
        let x = self.encoder.forward(x, &mask, self.encoder.depth())?;
        let last_hidden_state = self.final_layer_norm.forward(&x)?;
        let ids: Vec<Vec<i64>> = transfer::rows(&ids.to_dtype(DType::I64)?)?;
        let ends =
            ids.iter().enumerate().map(|(row, ids)| (row * time + self.config.eos_position(ids)) as u32);
        let ends = Tensor::from_iter(ends, last_hidden_state.device())?;
        let flat = last_hidden_state.reshape((batch * time, self.config.hidden_size))?;
        Ok(TextStates { pooled: flat.index_select(&ends, 0)?, last_hidden_state })
    }
}

/// Token plus position embeddings of `ids`, `(batch, sequence)`: `(batch, sequence, hidden_size)`.
pub(crate) fn embedded(tokens: &Embedding, positions: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (_, time) = ids.dims2()?;
    let longest = positions.dim(0)?;
    if time == 0 || time > longest {
        return Err(Error::input(format!("{time} tokens, but the model has {longest} positions"))
            .hint("shorten or truncate the text"));
    }
    add_repeated(&tokens.forward(ids)?, &positions.narrow(0, 0, time)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pooled_position_is_the_first_eos_or_the_first_of_the_largest_id() {
        let first = TextConfig { eos_token_id: 7, ..TextConfig::default() };
        let largest = TextConfig { eos_token_id: 2, ..TextConfig::default() };
        assert_eq!((first.eos_position(&[9, 3, 7, 7]), largest.eos_position(&[3, 9, 7, 9])), (2, 1));
        assert_eq!((first.eos_position(&[9, 3]), largest.eos_position(&[])), (0, 0));
    }
}
