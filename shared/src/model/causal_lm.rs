//! The ability to score the next token: what every decoder-only language model has in common.

use candle_core::Tensor;

use crate::Result;
use crate::attention::{Cache, Mask, Positions};

/// Where the new tokens of a pass stand and what they attend to.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    /// Positions of the new tokens.
    pub positions: &'a Positions,
    /// Over all keys, those in the KV cache included.
    pub mask: &'a Mask,
    /// `(batch, time)` of u32: token type ids, for the families that have them.
    pub token_type_ids: Option<&'a Tensor>,
}

/// Called before each block with the block's index and the hidden states that are about to enter it,
/// `(batch, time, hidden_size)`; what it gives back enters the block. Gated cross-attention layers stand here.
pub type BlockHook<'a> = &'a mut dyn FnMut(usize, Tensor) -> Result<Tensor>;

/// A [`BlockHook`] that changes nothing.
///
/// # Errors
/// None.
pub fn no_hook(_block: usize, hidden: Tensor) -> Result<Tensor> {
    Ok(hidden)
}

/// Special tokens that a family's own classes know, for checkpoints whose files leave them out.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultTokens {
    /// Begin of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: &'static [u32],
    /// Padding.
    pub pad: Option<u32>,
    /// End of a turn, as the tokenizer spells it; it ends an answer, whatever else does.
    pub end_of_turn: Option<&'static str>,
}

/// A decoder-only language model.
///
/// Models that read other modalities give it embeddings of their own in place of some tokens' ([`embed`](Self::embed),
/// then [`hidden`](Self::hidden)), or change the hidden states between its blocks with a [`BlockHook`]; so any family
/// serves under LLaVA, Flamingo, OpenVLA and LLark.
pub trait CausalLm: Send + Sync {
    /// Blocks, each with keys and values in the KV cache.
    fn num_hidden_layers(&self) -> usize;

    /// Width of the hidden states.
    fn hidden_size(&self) -> usize;

    /// Vocabulary size: logits of a token.
    fn vocab_size(&self) -> usize;

    /// The longest text it was trained for, in tokens.
    fn max_position_embeddings(&self) -> usize;

    /// Whether nothing longer can be computed (learned positions), rather than only less well.
    fn has_position_limit(&self) -> bool {
        false
    }

    /// Special tokens for checkpoints whose files leave them out. Default: none.
    fn default_tokens(&self) -> DefaultTokens {
        DefaultTokens::default()
    }

    /// Whether it was trained on code, whose answers end with the definition they belong to.
    fn is_trained_on_code(&self) -> bool {
        false
    }

    /// Token embeddings: `(batch, time)` of u32 to `(batch, time, hidden_size)`.
    fn embed(&self, ids: &Tensor) -> Result<Tensor>;

    /// The hidden states after the last norm: `embeddings`, `(batch, time, hidden_size)`, to the same shape. `cache` is
    /// read and extended; `hook` is called before each block.
    fn hidden(&self, embeddings: &Tensor, step: &Step, cache: &mut Cache, hook: BlockHook) -> Result<Tensor>;

    /// The hidden states after the last norm of tokens: `ids`, `(batch, time)` of u32, to `(batch, time, hidden_size)`.
    fn forward(&self, ids: &Tensor, step: &Step, cache: &mut Cache) -> Result<Tensor> {
        self.hidden(&self.embed(ids)?, step, cache, &mut no_hook)
    }

    /// Logits of the next token: `(…, hidden_size)` to `(…, vocab_size)`; none if the checkpoint has no output head.
    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>>;
}
