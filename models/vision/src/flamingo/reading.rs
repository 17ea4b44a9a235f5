//! The forward pass and the decoding loop of a language model with cross-attention to images, for both families.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{Decoder, Generation, GenerationConfig, Tokens};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, Item, Role, Tensors, Turn};
use fauna_shared::model::{Pipeline, SampleSizes, TrainingBatch, token_rows};
use fauna_shared::text::{self, Tokenizer};
use fauna_shared::train::Example;
use fauna_shared::{Error, Result, transfer};
use fauna_text::causal::placed;
use fauna_text::labelled::{self, LabelledTokens};
use fauna_text::{called, words};

use super::sight::{Media, MediaLocations, MediaStates};
use crate::vision_language::as_turns;

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
    let rows = transfer::rows(&words::checked_ids(ids, mask, network.vocab_size(), &Device::Cpu)?)?;
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

/// What both families learn from.
const LEARNED: &str = "completion, chat (both with images or without), pair (of an image and its caption)";

/// An example as a conversation whose last turn is the answer or the caption.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for examples that are not learned.
pub(crate) fn turns_of(example: &Example) -> Result<Vec<Turn>> {
    let with_answer = |mut turns: Vec<Turn>, answer: Item| {
        turns.push(Turn { role: Role::Assistant, items: vec![answer] });
        turns
    };
    match example {
        Example::Chat { turns, tools } if tools.is_empty() => Ok(turns.clone()),
        Example::Chat { .. } => Err(Error::unsupported("conversations with tools are not implemented")),
        Example::Completion { prompt, completion } => {
            Ok(with_answer(as_turns(prompt)?, Item::from(completion.as_str())))
        }
        Example::Pair { anchor, positive, negative: None } => match (anchor, positive) {
            (image @ Item::Image(_), caption @ Item::Text(_))
            | (caption @ Item::Text(_), image @ Item::Image(_)) => {
                let turn = Turn { role: Role::User, items: vec![image.clone()] };
                Ok(with_answer(vec![turn], caption.clone()))
            }
            _ => Err(Error::input(format!("a pair of {} and {}", anchor.modality(), positive.modality()))
                .hint("a pair is an image and its caption")),
        },
        other => Err(labelled::not_learned(other, LEARNED)),
    }
}

/// The images of a conversation, in order.
pub(crate) fn images_of(turns: &[Turn]) -> Vec<Image> {
    let items = turns.iter().flat_map(|turn| &turn.items);
    let image = |item: &Item| match item {
        Item::Image(image) => Some(image.clone()),
        _ => None,
    };
    items.filter_map(image).collect()
}

/// Whether a turn is the assistant's, for each of `turns`.
pub(crate) fn answers(turns: &[Turn]) -> Vec<bool> {
    turns.iter().map(|turn| turn.role == Role::Assistant).collect()
}

/// The batch of `rows`, padded with `pad` and truncated to `longest` tokens, and the pixels of the images of each row,
/// `(batch, images, 3, height, width)`, with zeros where a row has fewer; `None` without images.
///
/// # Errors
/// As [`LabelledTokens::batch`], and those of the processor.
pub(crate) fn batch(
    rows: Vec<LabelledTokens>,
    images: &[Vec<Image>],
    processor: &Processor,
    longest: Option<usize>,
    pad: u32,
) -> Result<(TrainingBatch, Option<Tensor>)> {
    let batch = LabelledTokens::batch(rows, longest, pad)?;
    let most = images.iter().map(Vec::len).max().unwrap_or(0);
    if most == 0 {
        return Ok((batch, None));
    }
    let mut seen = Vec::with_capacity(images.len());
    for row in images {
        seen.push(row.iter().map(|image| processor.process(image)).collect::<Result<Vec<_>>>()?);
    }
    let first = seen.iter().flatten().next().ok_or_else(|| Error::input("there are no images"))?;
    let nothing = first.zeros_like()?;
    let rows = seen.iter().map(|row| {
        let missing = std::iter::repeat_n(&nothing, most - row.len());
        Tensor::stack(&row.iter().chain(missing).collect::<Vec<_>>(), 0)
    });
    let pixels = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    Ok((batch, Some(pixels)))
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
    let mut rows: Vec<Vec<i64>> = transfer::rows(&ids)?;
    for row in &mut rows {
        row.iter_mut().take(sizes.images).for_each(|id| *id = i64::from(place));
    }
    inputs.insert(name.to_string(), Tensor::new(rows, &Device::Cpu)?);
    Ok(inputs)
}
