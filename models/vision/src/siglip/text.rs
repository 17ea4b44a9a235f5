//! SigLIP's reader: every token sees every other, and the last place stands for the text.

use candle_core::{Device, IndexOp, Tensor};
use fauna_shared::Result;
use fauna_shared::attention::Mask;
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear};
use fauna_shared::weights::Weights;
use serde::Deserialize;

use crate::clip::{Blocks, Encoder, embedded};

/// `text_config`; what it leaves out is the base size's.
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
    /// Tokens of a text, padding included: it was trained on this length alone.
    pub max_position_embeddings: usize,
    /// The activation of the feed-forward part.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Width of the shared space; that of the tower if none.
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
    /// Width of the shared space.
    pub fn space(&self) -> usize {
        self.projection_size.unwrap_or(self.hidden_size)
    }

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
            ("projection_size", self.space()),
        ])?;
        self.blocks().check()
    }
}

/// The tower.
pub struct TextTower {
    config: TextConfig,
    token_embedding: Embedding,
    position_embedding: Tensor,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
    head: Linear,
}

/// What the tower makes of a batch of texts.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// After the last norm: `(batch, time, width)`.
    pub last_hidden_state: Tensor,
    /// The last place through the head: `(batch, space)`.
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
            head: w.linear("head", c.hidden_size, c.space())?,
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

    /// `ids`: `(batch, time)` of integers, padded as in training; `real` hides padding, row by row. The releases were
    /// trained without: they see their padding.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a text longer than the model's, or an id outside the table.
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
