//! The forward pass and the decoding loop of a language model with cross-attention to images, for both families.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{Decoder, Generation, GenerationConfig, Tokens};
use fauna_shared::item::{Item, Tensors};
use fauna_shared::model::{Pipeline, SampleSizes, token_rows};
use fauna_shared::text::{self, Tokenizer};
use fauna_shared::{Error, Result};
use fauna_text::causal::placed;
use fauna_text::{called, words};

use super::sight::{Media, MediaLocations, MediaStates};

/// A language model with cross-attention to images.
pub(crate) trait Looks: Send + Sync {
    /// Vocabulary size.
    fn vocab_size(&self) -> usize;

    /// The device of the weights.
    fn device(&self) -> &Device;

    /// Creates a KV cache of `capacity` tokens.
    fn cache(&self, capacity: usize) -> Cache;

    /// Encodes and resamples images, `(images, 3, height, width)`, to `(images, latents, hidden_size)`.
    fn see(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Computes the cross-attention keys and values of every gated layer for `media`.
    fn look(&self, media: &Media) -> Result<MediaStates>;

    /// Returns the hidden states after the final layer norm, `(batch, sequence, hidden_size)`, of `ids`, `(batch,
    /// sequence)`, with cross-attention to `seen`.
    fn read(&self, ids: &Tensor, at: &Place, seen: &MediaStates, cache: &mut Cache) -> Result<Tensor>;

    /// Returns the logits, `(…, vocab_size)`, of hidden states, `(…, hidden_size)`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}

/// Positions and attention masks of a forward pass.
pub(crate) struct Place<'a> {
    pub positions: &'a Positions,
    /// Self-attention mask over all tokens, those in the KV cache included.
    pub mask: &'a Mask,
    /// Cross-attention mask over the latents of the images.
    pub sight: &'a Mask,
}

/// Runs a forward pass without a KV cache. `ids`: `(batch, sequence)` of any integer type; `mask`: of the same shape, 0
/// for padding. Returns the hidden states, `(batch, sequence, hidden_size)`.
pub(crate) fn read(
    network: &dyn Looks,
    ids: &Tensor,
    mask: Option<&Tensor>,
    positions: &Positions,
    media: &Media,
    sight: &MediaLocations,
) -> Result<Tensor> {
    let (_, time) = ids.dims2()?;
    let ids = words::checked_ids(ids, mask, network.vocab_size(), network.device())?;
    let mask = match mask {
        Some(mask) => Mask::causal().with_padding(&words::real_tokens(mask)?)?,
        None => Mask::causal(),
    };
    let sight = sight.mask(time, media.per_picture()?)?;
    let place = Place { positions, mask: &mask, sight: &sight };
    network.read(&ids, &place, &network.look(media)?, &mut network.cache(time))
}

/// Checks the prompts of a `generate` call: ids of any integer type, `(batch, sequence)`.
pub(crate) fn prompts(network: &dyn Looks, ids: &Tensor, mask: Option<&Tensor>) -> Result<called::Rows> {
    let rows = words::checked_ids(ids, mask, network.vocab_size(), &Device::Cpu)?.to_vec2()?;
    called::Rows::new(ids, mask, rows)
}

/// The decoder of a batch of prompts, with their images and cross-attention mask.
pub(crate) struct Answering<'a> {
    pub network: &'a dyn Looks,
    pub seen: MediaStates,
    /// Number of latents per image.
    pub per_picture: usize,
    pub sight: MediaLocations,
    /// Tokens that are never generated.
    pub banned: Vec<u32>,
}

impl<'a> Answering<'a> {
    /// Creates the decoder; computes the keys and values of `media` once.
    pub fn new(
        network: &'a dyn Looks,
        media: &Media,
        sight: MediaLocations,
        banned: Vec<u32>,
    ) -> Result<Self> {
        let (seen, per_picture) = (network.look(media)?, media.per_picture()?);
        Ok(Self { network, seen, per_picture, sight, banned })
    }

    /// Generates completions of all `prompts` in one batch, and streams their text.
    pub fn stream(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Vec<u32>],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        if options.guidance != 1.0 {
            return Err(Error::input("guidance is not supported: Flamingo was not trained without images"));
        }
        let prompts: Vec<text::Prompt> = prompts.iter().map(|ids| text::Prompt::Ids(ids)).collect();
        let mut each = |piece: text::Piece| each(piece.row, Item::Text(piece.text.to_string()));
        let made = text::stream(self, tokenizer, &prompts, options, &mut each)?;
        Ok(made.into_iter().map(|completion| completion.generation).collect())
    }
}

/// The state of a generation.
pub(crate) struct Progress {
    cache: Cache,
    /// Cross-attention mask of every generated token.
    sight: Mask,
}

impl Decoder for Answering<'_> {
    type Cache = Progress;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Progress> {
        let sight = self.sight.last().mask(1, self.per_picture)?;
        Ok(Progress { cache: self.network.cache(capacity), sight })
    }

    fn step(&self, tokens: &Tokens, progress: &mut Progress) -> Result<Tensor> {
        let (positions, mask) = placed(tokens)?;
        let sight = match tokens.past() {
            0 => self.sight.mask(tokens.sequence_length(), self.per_picture)?,
            _ => progress.sight.clone(),
        };
        let place = Place { positions: &positions, mask: &mask, sight: &sight };
        let ids = tokens.tensor(self.network.device())?;
        let hidden = self.network.read(&ids, &place, &self.seen, &mut progress.cache)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        let logits = self.network.logits(&last)?;
        if self.banned.is_empty() {
            return Ok(logits);
        }
        let mut added = vec![0f32; logits.dim(1)?];
        for id in &self.banned {
            if let Some(score) = added.get_mut(*id as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        let added = Tensor::new(added, logits.device())?.to_dtype(logits.dtype())?;
        Ok(logits.broadcast_add(&added)?)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// Sample tokens of `sizes` for a `method` of `model`, their ids under `name`; the first tokens of each sequence are the
/// `<image>` token `place`, one per image.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for other methods, and for more images than tokens.
pub(crate) fn sample_tokens(
    model: &dyn Pipeline,
    method: &str,
    sizes: &SampleSizes,
    (name, place): (&str, u32),
) -> Result<Tensors> {
    if !matches!(method, "forward" | "generate") || sizes.tokens <= sizes.images {
        return Err(
            model.cannot(&format!("run \"{method}\" on {} tokens and {} images", sizes.tokens, sizes.images))
        );
    }
    let mut inputs = token_rows(sizes)?;
    let ids = inputs.remove("input_ids").ok_or_else(|| Error::input("there are no sample tokens"))?;
    let mut rows: Vec<Vec<i64>> = ids.to_vec2()?;
    for row in &mut rows {
        row.iter_mut().take(sizes.images).for_each(|id| *id = i64::from(place));
    }
    inputs.insert(name.to_string(), Tensor::new(rows, &Device::Cpu)?);
    Ok(inputs)
}
