//! What the two releases have in common: one pass over texts with pictures, and answers to them.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{Decoder, Generation, GenerationConfig, Tokens};
use fauna_shared::text::{self, Tokenizer};
use fauna_shared::{Error, Result};
use fauna_text::causal::placed;
use fauna_text::{called, words};

use super::sight::{Media, MediaLocations, MediaStates};

/// A language model that looks at pictures between its blocks.
pub(crate) trait Looks: Send + Sync {
    /// Vocabulary size.
    fn vocab_size(&self) -> usize;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// A cache for texts of at most `capacity` tokens.
    fn cache(&self, capacity: usize) -> Cache;

    /// The states of pictures, `(pictures, 3, height, width)` to `(pictures, states, width)`.
    fn see(&self, pixels: &Tensor) -> Result<Tensor>;

    /// The keys and values of every gated layer for `media`.
    fn look(&self, media: &Media) -> Result<MediaStates>;

    /// The states after the last norm of `ids`, `(batch, time)`, which look at what `seen` holds where `sight` shows it.
    fn read(&self, ids: &Tensor, at: &Place, seen: &MediaStates, cache: &mut Cache) -> Result<Tensor>;

    /// Scores of the next token, `(…, width)` to `(…, vocabulary)`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}

/// Where the tokens of a pass stand, what they may read, and what they look at.
pub(crate) struct Place<'a> {
    pub positions: &'a Positions,
    /// Over all tokens, those in the cache included.
    pub mask: &'a Mask,
    /// Over the states of the pictures.
    pub sight: &'a Mask,
}

/// One pass over whole texts. `ids`: `(batch, time)` of any integers; `mask`: the same shape, 0 where padding.
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

/// The prompts of a call: ids of any integers, `(batch, time)`.
pub(crate) fn prompts(network: &dyn Looks, ids: &Tensor, mask: Option<&Tensor>) -> Result<called::Rows> {
    let rows = words::checked_ids(ids, mask, network.vocab_size(), &Device::Cpu)?.to_vec2()?;
    called::Rows::new(ids, mask, rows)
}

/// Prompts being answered: the pictures they speak of, and what each token looks at.
pub(crate) struct Answering<'a> {
    pub network: &'a dyn Looks,
    pub seen: MediaStates,
    /// States of a picture.
    pub per_picture: usize,
    pub sight: MediaLocations,
    /// Tokens that are never written.
    pub banned: Vec<u32>,
}

impl<'a> Answering<'a> {
    /// About `media`, looked at once.
    pub fn new(
        network: &'a dyn Looks,
        media: &Media,
        sight: MediaLocations,
        banned: Vec<u32>,
    ) -> Result<Self> {
        let (seen, per_picture) = (network.look(media)?, media.per_picture()?);
        Ok(Self { network, seen, per_picture, sight, banned })
    }

    /// Streams the answers to all `prompts` at once.
    pub fn stream(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Vec<u32>],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, String) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        if options.guidance != 1.0 {
            return Err(Error::input("guidance: Flamingo was not trained to answer without looking"));
        }
        let prompts: Vec<text::Prompt> = prompts.iter().map(|ids| text::Prompt::Ids(ids)).collect();
        let mut each = |piece: text::Piece| each(piece.row, piece.text.to_string());
        let made = text::stream(self, tokenizer, &prompts, options, &mut each)?;
        Ok(made.into_iter().map(|completion| completion.generation).collect())
    }
}

/// What a text in progress keeps.
pub(crate) struct Progress {
    cache: Cache,
    /// What every new token looks at.
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
            0 => self.sight.mask(tokens.time(), self.per_picture)?,
            _ => progress.sight.clone(),
        };
        let place = Place { positions: &positions, mask: &mask, sight: &sight };
        let ids = tokens.tensor(self.network.device())?;
        let hidden = self.network.read(&ids, &place, &self.seen, &mut progress.cache)?;
        let last = hidden.narrow(1, tokens.time() - 1, 1)?.squeeze(1)?.contiguous()?;
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

/// Rows of made-up `ids` with so many places `<image>` at their beginning.
pub(crate) fn with_places(ids: &Tensor, pictures: usize, place: u32) -> Result<Tensor> {
    let mut rows: Vec<Vec<i64>> = ids.to_vec2()?;
    for row in &mut rows {
        row.iter_mut().take(pictures).for_each(|id| *id = i64::from(place));
    }
    Ok(Tensor::new(rows, &Device::Cpu)?)
}
