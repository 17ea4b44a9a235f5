//! Autoregressive generation of any kind of tokens: text, image codes, audio codes, action bins.
//!
//! A network that returns logits for the next token implements [`Decoder`]; [`generate`] implements left-padded
//! batches, sampling, guidance, stopping criteria, streaming and cancellation. It works on token ids; `text::stream`
//! adds a tokenizer. Conditioning other than tokens (an image, encoder hidden states) is a field of the type that
//! implements [`Decoder`].
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fauna_shared::Result;
//! use fauna_shared::generate::{Decoder, GenerationConfig, Tokens, generate};
//! use std::ops::ControlFlow;
//!
//! /// Predicts the last token plus one.
//! struct Counter;
//! impl Decoder for Counter {
//!     type Cache = ();
//!     fn cache(&self, _rows: usize, _capacity: usize) -> Result<()> {
//!         Ok(())
//!     }
//!     fn step(&self, tokens: &Tokens, _cache: &mut ()) -> Result<Tensor> {
//!         let mut logits = vec![0f32; tokens.rows() * 10];
//!         for row in 0..tokens.rows() {
//!             logits[row * 10 + tokens.row(row)[tokens.sequence_length() - 1] as usize + 1] = 1.0;
//!         }
//!         Ok(Tensor::from_vec(logits, (tokens.rows(), 10), &Device::Cpu)?)
//!     }
//!     fn max_positions(&self) -> Option<usize> {
//!         None
//!     }
//! }
//!
//! let options = GenerationConfig { eos: Some(vec![7]), ..GenerationConfig::greedy(5) };
//! let generated = generate(&Counter, &[vec![1], vec![2, 3, 4]], &options, &mut |_| ControlFlow::Continue(()))?;
//! assert_eq!(generated.tokens, [vec![2, 3, 4, 5, 6], vec![5, 6, 7]]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod cancel;
mod greedy;
mod options;
mod resume;
mod rng;
mod sample;

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Storage, Tensor};
use serde::Serialize;

pub use cancel::CancellationToken;
use greedy::Greedy;
pub use options::{GenerationConfig, Reasoning};
pub use resume::{PrefixCache, PrefixDecoder};
pub use rng::Rng;
use sample::{Sampler, penalise};

use crate::progress::Unit;
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result, transfer};

/// A network that returns logits for the next token.
///
/// Rows are independent sequences: those of a batch, and for several codebooks one row each.
pub trait Decoder {
    /// The KV cache.
    type Cache;

    /// Creates an empty cache for `rows` sequences of at most `capacity` tokens, including padding.
    fn cache(&self, rows: usize, capacity: usize) -> Result<Self::Cache>;

    /// Decoding step (or prefill): appends `tokens`, `(rows, sequence)`, to the cache and returns the logits after the
    /// last token of each row, `(rows, vocab_size)`, of any float dtype on any device.
    fn step(&self, tokens: &Tokens, cache: &mut Self::Cache) -> Result<Tensor>;

    /// Maximum sequence length; `None` if unlimited.
    fn max_positions(&self) -> Option<usize>;

    /// Chunk size of prefill, in tokens; `None` for the whole prompt at once. Smaller chunks take less memory.
    fn prompt_chunk(&self) -> Option<usize> {
        None
    }

    /// Number of tokens at the start of `prompt`, the only sequence of a batch, that are already in `cache`; fewer than
    /// all of them. Default: 0.
    fn cached_prefix(&self, _prompt: &[u32], _cache: &mut Self::Cache) -> usize {
        0
    }

    /// Tokens allowed next in `row`, after the new tokens `new` (without the prompt). Default: any.
    fn allowed(&self, _row: usize, _new: &[u32]) -> AllowedTokens {
        AllowedTokens::Any
    }

    /// Stream of random numbers of `row`, relative to [`GenerationConfig::stream`]. Default: `row`.
    fn stream(&self, row: usize) -> u64 {
        row as u64
    }

    /// The unconditional prompt for classifier-free guidance. Default: the same prompt, for networks whose condition is
    /// not in the tokens.
    fn unconditional(&self, prompt: &[u32]) -> Vec<u32> {
        prompt.to_vec()
    }
}

/// Constraint on the next token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedTokens {
    /// Any token of the vocabulary.
    Any,
    /// Exactly this token, independent of the logits.
    Only(u32),
    /// A token with an id in this range.
    Within(Range<u32>),
}

/// The input tokens of a step, `(rows, sequence)`: first the prompts, then one token per row.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    ids: &'a [u32],
    pads: &'a [usize],
    past: usize,
}

impl<'a> Tokens<'a> {
    /// `ids`: `(rows, sequence)`, row-major. `pads`: number of left padding tokens of each row, `(rows)`. `past`:
    /// number of tokens in the cache, including padding.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if `ids` is empty or not a multiple of the rows, or a row has only padding.
    pub fn new(ids: &'a [u32], pads: &'a [usize], past: usize) -> Result<Self> {
        if ids.is_empty() || pads.is_empty() || !ids.len().is_multiple_of(pads.len()) {
            return Err(Error::input(format!(
                "{} tokens are not a multiple of {} rows",
                ids.len(),
                pads.len()
            )));
        }
        let end = past + ids.len() / pads.len();
        match pads.iter().position(|&pad| pad >= end) {
            Some(row) => Err(Error::input(format!("row {row} has only padding"))),
            None => Ok(Self { ids, pads, past }),
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.pads.len()
    }

    /// Returns the number of input tokens of each row.
    pub fn sequence_length(&self) -> usize {
        self.ids.len() / self.pads.len()
    }

    /// Returns the number of tokens of each row in the cache, including padding.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Returns the number of left padding tokens of each row, which must be masked in every step.
    pub fn pads(&self) -> &'a [usize] {
        self.pads
    }

    /// Whether no row is padded, so that a causal mask is sufficient.
    pub fn is_unpadded(&self) -> bool {
        self.pads.iter().all(|&pad| pad == 0)
    }

    /// Returns the input tokens of one row.
    pub fn row(&self, row: usize) -> &'a [u32] {
        &self.ids[row * self.sequence_length()..][..self.sequence_length()]
    }

    /// Returns the input tokens, `(rows, sequence)`, row-major.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }

    /// Returns the input tokens as a u32 tensor, `(rows, sequence)`.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        transfer::to_device(self.ids.to_vec(), (self.rows(), self.sequence_length()), device)
    }

    /// Returns the position ids of the input tokens, `(rows, sequence)`, row-major, not counting padding; 0 for
    /// padding.
    pub fn positions(&self) -> Vec<u32> {
        let times = self.past..self.past + self.sequence_length();
        let row = |&pad: &usize| times.clone().map(move |t| t.saturating_sub(pad) as u32);
        self.pads.iter().flat_map(row).collect()
    }
}

/// A new token of [`generate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewToken {
    /// The sequence of the batch.
    pub row: usize,
    /// Index among the new tokens of the sequence, from 0.
    pub index: usize,
    /// Token id.
    pub token: u32,
    /// Finish reason, if it is the last token of the sequence.
    pub finish: Option<FinishReason>,
}

/// Request of the callback of [`generate`] to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Stop this sequence, with [`FinishReason::Stopped`].
    Row,
    /// Stop this sequence, with [`FinishReason::Cancelled`].
    Cancel,
    /// Stop the whole batch; unfinished sequences have [`FinishReason::Cancelled`].
    All,
}

/// Why generation of a sequence finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// An end-of-sequence token was generated.
    End,
    /// `max_new_tokens` was reached.
    Length,
    /// The context is full.
    Full,
    /// Stopped by the caller, for example at a stop string.
    Stopped,
    /// Cancelled by the caller.
    Cancelled,
}

/// Output of [`generate`].
#[derive(Debug, Clone)]
pub struct Generated {
    /// The new tokens of each sequence, including an end-of-sequence token, without padding.
    pub tokens: Vec<Vec<u32>>,
    /// Finish reason of each sequence.
    pub finished: Vec<FinishReason>,
    /// Number of tokens of each prompt.
    pub prompt_tokens: Vec<usize>,
    /// Time to first token of the batch (prefill).
    pub prompt_time: Duration,
    /// Total time.
    pub time: Duration,
}

/// Statistics and tokens of the generation from one prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// Finish reason; `None` if the model is not autoregressive.
    pub finish: Option<FinishReason>,
    /// Number of tokens of the prompt.
    pub prompt_tokens: usize,
    /// The new tokens, including an end-of-sequence token.
    pub tokens: Vec<u32>,
    /// Time to first token of the batch, in seconds.
    pub prompt_seconds: f64,
    /// Total time of the batch, in seconds.
    pub seconds: f64,
}

impl Generation {
    /// Creates the result of a prompt that was cancelled before it started.
    pub fn cancelled() -> Self {
        Self { finish: Some(FinishReason::Cancelled), ..Self::default() }
    }
}

impl Generated {
    /// Splits the output by sequence.
    pub fn generations(&self) -> Vec<Generation> {
        let rows = self.tokens.iter().zip(&self.finished).zip(&self.prompt_tokens);
        let row = |((tokens, finish), prompt_tokens): ((&Vec<u32>, &FinishReason), &usize)| Generation {
            finish: Some(*finish),
            prompt_tokens: *prompt_tokens,
            tokens: tokens.clone(),
            prompt_seconds: self.prompt_time.as_secs_f64(),
            seconds: self.time.as_secs_f64(),
        };
        rows.map(row).collect()
    }
}

impl Generated {
    /// Returns prompts and new tokens like `sequences` of transformers' `generate`, `(batch, sequence)`: prompts are
    /// padded on the left, finished sequences on the right.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the number of prompts is not the batch size.
    pub fn sequences(&self, prompts: &[impl AsRef<[u32]>], pad: u32) -> Result<Vec<Vec<u32>>> {
        if prompts.len() != self.tokens.len() {
            return Err(Error::input(format!("{} prompts, expected {}", prompts.len(), self.tokens.len())));
        }
        let longest_prompt = prompts.iter().map(|p| p.as_ref().len()).max().unwrap_or(0);
        let longest = longest_prompt + self.tokens.iter().map(Vec::len).max().unwrap_or(0);
        let row = |(prompt, new): (&[u32], &Vec<u32>)| {
            let mut row = vec![pad; longest_prompt - prompt.len()];
            row.extend_from_slice(prompt);
            row.extend_from_slice(new);
            row.resize(longest, pad);
            row
        };
        Ok(prompts.iter().map(AsRef::as_ref).zip(&self.tokens).map(row).collect())
    }
}

/// Generates from a batch of `prompts`, and calls `each` with every new token as soon as it is sampled.
///
/// `options.eos` and `options.pad` are used as given; see [`GenerationConfig::with_tokens`] for those of the model.
/// `options.stop` is not used here but where tokens are decoded to text. The tokens of a sequence do not depend on the
/// rest of the batch, up to rounding in the network.
///
/// # Errors
/// [`ErrorKind::Input`] if an option is out of range, there is no prompt, one is empty, or one is longer than the
/// maximum sequence length. [`ErrorKind::Compute`] if the logits have the wrong shape or are NaN.
pub fn generate<D: Decoder + ?Sized>(
    model: &D,
    prompts: &[impl AsRef<[u32]>],
    options: &GenerationConfig,
    each: &mut dyn FnMut(NewToken) -> ControlFlow<Stop>,
) -> Result<Generated> {
    options.check()?;
    let batch = Batch::new(model, prompts, options)?;
    let (limit, _) = batch.limit(0, model.max_positions(), options)?;
    let mut cache = model.cache(batch.pads.len(), batch.longest.saturating_add(limit - 1))?;
    let past = match prompts {
        [prompt] if options.guidance == 1.0 => model.cached_prefix(prompt.as_ref(), &mut cache),
        _ => 0,
    };
    continued(model, &mut cache, past, batch, prompts, options, each)
}

/// [`generate`] with a `cache` that has `past` tokens already: `prompts` follow them, and must have the same length.
/// `cache` needs the capacity for them and all new tokens but the last.
///
/// # Errors
/// Same as [`generate`]; [`ErrorKind::Input`] if `past > 0` and the prompts have different lengths.
pub fn generate_from<D: Decoder + ?Sized>(
    model: &D,
    cache: &mut D::Cache,
    past: usize,
    prompts: &[impl AsRef<[u32]>],
    options: &GenerationConfig,
    each: &mut dyn FnMut(NewToken) -> ControlFlow<Stop>,
) -> Result<Generated> {
    options.check()?;
    let mut batch = Batch::new(model, prompts, options)?;
    if past > 0 && batch.pads.iter().any(|pad| *pad > 0) {
        return Err(Error::input("prompts that continue a cache must have the same length"));
    }
    batch.before = past;
    continued(model, cache, 0, batch, prompts, options, each)
}

/// The decoding loop. `read`: number of tokens at the start of the only prompt that are in `cache`.
fn continued<D: Decoder + ?Sized>(
    model: &D,
    cache: &mut D::Cache,
    read: usize,
    mut batch: Batch,
    prompts: &[impl AsRef<[u32]>],
    options: &GenerationConfig,
    each: &mut dyn FnMut(NewToken) -> ControlFlow<Stop>,
) -> Result<Generated> {
    let began = Instant::now();
    let mut prompt_time = None;
    let rows = prompts.len();
    let (limit, limit_reason) = batch.limit(batch.before, model.max_positions(), options)?;
    let mut samplers: Vec<Sampler> = (0..rows).map(|row| Sampler::new(options, model.stream(row))).collect();
    let mut seen: Vec<HashSet<u32>> = match options.repetition_penalty == 1.0 {
        true => Vec::new(),
        false => prompts.iter().map(|p| p.as_ref().iter().copied().collect()).collect(),
    };
    let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); rows];
    let mut finished: Vec<Option<FinishReason>> = vec![None; rows];
    let (mut scores, mut greedy) = (Vec::new(), Greedy::default());
    let mut ids = std::mem::take(&mut batch.ids);
    ids.drain(..read);
    let mut past = batch.before + read;

    'steps: for index in 0..limit {
        let logits = match step(model, &ids, &batch.pads, past, cache, options) {
            Err(error) if error.kind() == ErrorKind::Cancelled && options.cancelled() => {
                finished.iter_mut().for_each(|f| *f = f.or(Some(FinishReason::Cancelled)));
                break 'steps;
            }
            logits => logits?,
        };
        check_shape(&logits, batch.pads.len())?;
        past += ids.len() / batch.pads.len();
        let free =
            |row: usize| finished[row].is_some() || model.allowed(row, &tokens[row]) == AllowedTokens::Any;
        let chosen =
            match !kernels_serve(logits.device()) && takes_best(options, index) && (0..rows).all(free) {
                true => greedy.choose(&logits)?,
                false => None,
            };
        // If tokens were chosen on the device, the logits are not copied.
        let logits = if chosen.is_some() { None } else { Some(on_cpu(&logits)?) };
        prompt_time.get_or_insert_with(|| began.elapsed());
        ids.clear();
        read_rows(logits.as_ref(), |all, vocabulary| {
            for row in 0..rows {
                if finished[row].is_some() {
                    ids.push(options.pad_token());
                    continue;
                }
                let token = match &chosen {
                    Some(chosen) => chosen.get(row).copied().flatten(),
                    None => {
                        let seen = seen.get(row);
                        let logits = adjusted(all, vocabulary, row, rows, index, options, seen, &mut scores);
                        choose(&mut samplers[row], logits, model.allowed(row, &tokens[row]))
                    }
                };
                let token = token.ok_or_else(|| no_choice(row, index))?;
                ids.push(token);
                tokens[row].push(token);
                if let Some(seen) = seen.get_mut(row) {
                    seen.insert(token);
                }
                let finish = match () {
                    () if options.end_tokens().contains(&token) => Some(FinishReason::End),
                    () if index + 1 == limit => Some(limit_reason),
                    () => None,
                };
                finished[row] = finish;
                match each(NewToken { row, index, token, finish }) {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(Stop::Row) => finished[row] = finish.or(Some(FinishReason::Stopped)),
                    ControlFlow::Break(Stop::Cancel) => {
                        finished[row] = finish.or(Some(FinishReason::Cancelled));
                    }
                    ControlFlow::Break(Stop::All) => {
                        finished.iter_mut().for_each(|f| *f = f.or(Some(FinishReason::Cancelled)));
                        break;
                    }
                }
            }
            Ok(())
        })?;
        if finished.iter().all(Option::is_some) {
            break 'steps;
        }
        if batch.pads.len() > rows {
            ids.extend_from_within(..);
        }
    }
    let time = began.elapsed();
    Ok(Generated {
        tokens,
        finished: finished.into_iter().map(|f| f.unwrap_or(limit_reason)).collect(),
        prompt_tokens: prompts.iter().map(|prompt| prompt.as_ref().len()).collect(),
        prompt_time: prompt_time.unwrap_or(time),
        time,
    })
}

/// Returns the logits after `ids`, `(rows, sequence)`, computed in chunks of [`Decoder::prompt_chunk`] tokens.
fn step<D: Decoder + ?Sized>(
    model: &D,
    ids: &[u32],
    pads: &[usize],
    past: usize,
    cache: &mut D::Cache,
    options: &GenerationConfig,
) -> Result<Tensor> {
    let time = ids.len() / pads.len();
    // No row of a chunk may have only padding.
    let first = (pads.iter().max().copied().unwrap_or(0) + 1).saturating_sub(past);
    let chunk = model.prompt_chunk().unwrap_or(time).max(1);
    let mut read = 0;
    let mut task = None;
    loop {
        options.cancel.check()?;
        options.progress.check()?;
        let end = (read + chunk).max(first).min(time);
        let piece: Vec<u32> = match (read, end) {
            (0, end) if end == time => return model.step(&Tokens::new(ids, pads, past)?, cache),
            _ => ids.chunks(time).flat_map(|row| &row[read..end]).copied().collect(),
        };
        let task = task.get_or_insert_with(|| {
            options.progress.begin("reading the prompt", Unit::Items, Some(time as u64))
        });
        let logits = model.step(&Tokens::new(&piece, pads, past + read)?, cache)?;
        task.advance((end - read) as u64);
        if end == time {
            return Ok(logits);
        }
        read = end;
    }
}

/// A left-padded batch of prompts.
struct Batch {
    ids: Vec<u32>,
    pads: Vec<usize>,
    longest: usize,
    /// Number of tokens in the cache before them.
    before: usize,
}

impl Batch {
    /// Creates the batch of `prompts`, followed by the unconditional prompts if there is guidance.
    fn new<D: Decoder + ?Sized>(
        model: &D,
        prompts: &[impl AsRef<[u32]>],
        options: &GenerationConfig,
    ) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::input("expected at least one prompt"));
        }
        if let Some(row) = prompts.iter().position(|p| p.as_ref().is_empty()) {
            return Err(Error::input(format!("prompt {row} is empty"))
                .hint("a prompt needs at least one token, for example the beginning-of-sequence token"));
        }
        let mut all: Vec<Vec<u32>> = prompts.iter().map(|p| p.as_ref().to_vec()).collect();
        if options.guidance != 1.0 {
            all.extend(prompts.iter().map(|p| model.unconditional(p.as_ref())));
        }
        let longest = all.iter().map(Vec::len).max().unwrap_or(0);
        let pads: Vec<usize> = all.iter().map(|p| longest - p.len()).collect();
        let mut ids = Vec::with_capacity(longest * all.len());
        for (prompt, &pad) in all.iter().zip(&pads) {
            ids.extend(std::iter::repeat_n(options.pad_token(), pad));
            ids.extend_from_slice(prompt);
        }
        Ok(Self { ids, pads, longest, before: 0 })
    }

    /// Returns the maximum number of new tokens, and the finish reason when it is reached.
    fn limit(
        &self,
        before: usize,
        positions: Option<usize>,
        options: &GenerationConfig,
    ) -> Result<(usize, FinishReason)> {
        let wanted = options.max_new_tokens;
        let longest = before.saturating_add(self.longest);
        match positions {
            Some(positions) if longest > positions => Err(Error::input(format!(
                "the prompt has {longest} tokens, more than the maximum sequence length of {positions}"
            ))
            .hint("shorten the prompt")),
            // The last token is sampled but not fed back, so it needs no position.
            Some(positions) if positions + 1 - longest < wanted => {
                Ok((positions + 1 - longest, FinishReason::Full))
            }
            _ => Ok((wanted, FinishReason::Length)),
        }
    }
}

/// Returns the logits of `row`, `(vocab_size)`, with guidance, repetition penalty and minimum length applied; copied
/// only if one of them is used.
#[allow(clippy::too_many_arguments)]
fn adjusted<'a>(
    all: &'a [f32],
    vocabulary: usize,
    row: usize,
    rows: usize,
    index: usize,
    options: &GenerationConfig,
    seen: Option<&HashSet<u32>>,
    scores: &'a mut Vec<f32>,
) -> &'a [f32] {
    let conditional = &all[row * vocabulary..][..vocabulary];
    let guided = options.guidance != 1.0;
    let too_short = index < options.min_new_tokens && !options.end_tokens().is_empty();
    if !guided && !too_short && seen.is_none() {
        return conditional;
    }
    scores.clear();
    scores.extend_from_slice(conditional);
    if guided {
        let unconditional = &all[(rows + row) * vocabulary..][..vocabulary];
        for (score, without) in scores.iter_mut().zip(unconditional) {
            *score = without + options.guidance * (*score - without);
        }
    }
    if let Some(seen) = seen {
        penalise(scores, seen.iter().copied(), options.repetition_penalty);
    }
    if too_short {
        for &end in options.end_tokens() {
            if let Some(score) = scores.get_mut(end as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
    scores
}

fn choose(sampler: &mut Sampler, logits: &[f32], allowed: AllowedTokens) -> Option<u32> {
    match allowed {
        AllowedTokens::Any => sampler.choose(logits),
        AllowedTokens::Only(token) => Some(token),
        AllowedTokens::Within(range) => {
            let inside = logits.get(range.start as usize..(range.end as usize).min(logits.len()))?;
            sampler.choose(inside).map(|token| range.start + token)
        }
    }
}

fn no_choice(row: usize, index: usize) -> Error {
    Error::new(
        ErrorKind::Compute,
        format!("row {row}, new token {index}: the logits are NaN or minus infinity"),
    )
    .set("the weights may be damaged, or the dtype too narrow", "Runtime::with_precision", "f32")
}

/// Whether token `index` is the argmax of the unprocessed logits.
fn takes_best(options: &GenerationConfig, index: usize) -> bool {
    let too_short = index < options.min_new_tokens && !options.end_tokens().is_empty();
    options.temperature == 0.0 && options.guidance == 1.0 && options.repetition_penalty == 1.0 && !too_short
}

/// Checks that `logits` are `(rows, vocab_size)`.
fn check_shape(logits: &Tensor, rows: usize) -> Result<()> {
    match logits.dims() {
        [found, vocabulary] if *found == rows && *vocabulary > 0 => Ok(()),
        dims => Err(Error::new(
            ErrorKind::Compute,
            format!("logits of shape {dims:?}, expected [{rows}, vocab_size]"),
        )),
    }
}

/// Converts `logits` to contiguous f32 on the CPU.
fn on_cpu(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    match kernels_serve(logits.device()) {
        true => Ok(logits.contiguous()?),
        false => Ok(Tensor::from_vec(transfer::to_host::<f32>(&logits)?, logits.shape(), &Device::Cpu)?),
    }
}

/// Calls `read` with the elements of `logits` and the vocabulary size, without copying; with an empty slice for `None`.
fn read_rows(logits: Option<&Tensor>, read: impl FnOnce(&[f32], usize) -> Result<()>) -> Result<()> {
    let Some(logits) = logits else { return read(&[], 0) };
    let vocabulary = logits.dim(1)?;
    let (storage, layout) = logits.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(&storage.as_slice::<f32>()?[layout.start_offset()..], vocabulary),
        _ => Err(Error::new(ErrorKind::Compute, "logits are not on the CPU")),
    }
}

#[cfg(test)]
mod tests;
