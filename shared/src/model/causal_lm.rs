//! The interface of decoder-only language models.

use candle_core::Tensor;

use crate::attention::{Cache, Mask, Positions};
use crate::{Error, Result};

/// Positions and attention mask of the new tokens of a forward pass.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Positions of the new tokens.
    pub positions: &'a Positions,
    /// Attention mask over all keys, including those in the KV cache.
    pub mask: &'a Mask,
    /// Token type ids, `(batch, sequence)`, u32, for families that use them.
    pub token_type_ids: Option<&'a Tensor>,
}

/// Called before each layer with the layer index and its input hidden states, `(batch, sequence, hidden_size)`; returns
/// the hidden states to use instead. Used for gated cross-attention layers.
pub type BlockHook<'a> = &'a mut dyn FnMut(usize, Tensor) -> Result<Tensor>;

/// A [`BlockHook`] that returns the hidden states unchanged.
///
/// # Errors
/// None.
pub fn no_hook(_block: usize, hidden: Tensor) -> Result<Tensor> {
    Ok(hidden)
}

/// Default special tokens of the config class of a family, for checkpoints that do not set them.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultTokens {
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens.
    pub eos: &'static [u32],
    /// Padding token.
    pub pad: Option<u32>,
    /// End-of-turn token, as text; generation stops at it in addition to the end-of-sequence tokens.
    pub end_of_turn: Option<&'static str>,
}

/// A decoder-only language model.
///
/// Multimodal models replace some token embeddings ([`embed`](Self::embed), then [`hidden`](Self::hidden)), or change
/// the hidden states between layers with a [`BlockHook`], so any family works as the language model of LLaVA, Flamingo,
/// OpenVLA and LLark.
pub trait CausalLm: Send + Sync {
    /// Number of layers, each with keys and values in the KV cache.
    fn num_hidden_layers(&self) -> usize;

    /// Hidden size.
    fn hidden_size(&self) -> usize;

    /// Vocabulary size, the number of logits per token.
    fn vocab_size(&self) -> usize;

    /// Maximum sequence length of training, in tokens.
    fn max_position_embeddings(&self) -> usize;

    /// Whether longer sequences are impossible (learned position embeddings) rather than only less accurate.
    fn has_position_limit(&self) -> bool {
        false
    }

    /// Whether texts of `time` tokens can be computed.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if they are longer than [a limit](Self::has_position_limit) allows.
    fn check_length(&self, time: usize) -> Result<()> {
        let positions = self.max_position_embeddings();
        match self.has_position_limit() && time > positions {
            false => Ok(()),
            true => Err(Error::input(format!("{time} tokens, but the model has {positions} positions"))
                .hint("shorten the text")),
        }
    }

    /// The name of the bare network in the reference's class with an LM head (`base_model_prefix`).
    fn base_model_prefix(&self) -> &'static str {
        "model"
    }

    /// Default special tokens, for checkpoints that do not set them. None by default.
    fn default_tokens(&self) -> DefaultTokens {
        DefaultTokens::default()
    }

    /// Whether it is a code model, whose completions stop before the next top-level definition.
    fn is_trained_on_code(&self) -> bool {
        false
    }

    /// Token embeddings of `ids`, `(batch, sequence)`, u32. Returns `(batch, sequence, hidden_size)`.
    fn embed(&self, ids: &Tensor) -> Result<Tensor>;

    /// Forward pass from `embeddings`, `(batch, sequence, hidden_size)`. Returns the hidden states after the final
    /// norm, of the same shape. The KV cache is used and extended; `hook` is called before each layer.
    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor>;

    /// Forward pass from `ids`, `(batch, sequence)`, u32. Returns the hidden states after the final norm,
    /// `(batch, sequence, hidden_size)`.
    fn forward(&self, ids: &Tensor, step: &Step, cache: &mut Cache) -> Result<Tensor> {
        self.hidden(&self.embed(ids)?, step, cache, &mut no_hook)
    }

    /// Logits of hidden states `(…, hidden_size)`. Returns `(…, vocab_size)`; `None` if the checkpoint has no LM head.
    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>>;
}
