//! SigLIP's text tower: full attention, pooled at the last position.

use candle_core::{Device, IndexOp, Tensor};
use fauna_shared::Result;
use fauna_shared::attention::Mask;
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear};
use fauna_shared::weights::Weights;
use serde::Deserialize;

use crate::clip::{Encoder, EncoderConfig, embedded};

/// `text_config`; missing keys have the values of the base size.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// Vocabulary size.
    pub vocab_size: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate (feed-forward) size.
    pub intermediate_size: usize,
    /// EncoderConfig.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Sequence length, padding included: the model was trained on this length only.
    pub max_position_embeddings: usize,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Dimension of the shared embedding space; `hidden_size` if `None`.
    pub projection_size: Option<usize>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32000,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 64,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
            projection_size: None,
        }
    }
}

impl TextConfig {
    /// Dimension of the shared embedding space.
    pub fn projection_dim(&self) -> usize {
        self.projection_size.unwrap_or(self.hidden_size)
    }

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
            ("projection_size", self.projection_dim()),
        ])?;
        self.encoder_config().check()
    }
}

/// The text tower.
pub struct TextTower {
    config: TextConfig,
    token_embedding: Embedding,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    head: Linear,
}

/// The outputs of the text tower.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// Hidden states after the final layer norm, `(batch, sequence, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// The last position projected by the head, `(batch, projection_dim)`.
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
            head: w.linear("head", c.hidden_size, c.projection_dim())?,
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

    /// Runs the tower on `ids`, `(batch, sequence)` of integers, padded as in training. `real` is the padding mask
    /// (false: padding); the releases were trained without one, and attend to padding.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a text longer than the context, or an id outside the vocabulary.
    pub fn forward(&self, ids: &Tensor, real: Option<&[Vec<bool>]>) -> Result<TextStates> {
        let x = embedded(&self.token_embedding, &self.position_embedding, ids)?;
        let mask = match real {
            Some(real) => Mask::full().with_padding(real)?,
            None => Mask::full(),
        };
        let x = self.encoder.forward(x, &mask, self.encoder.depth())?;
        let last_hidden_state = self.final_layer_norm.forward(&x)?;
        let last = last_hidden_state.i((.., last_hidden_state.dim(1)? - 1))?.contiguous()?;
        Ok(TextStates { pooled: self.head.forward(&last)?, last_hidden_state })
    }
}
