//! One decode loop for every token a model can emit: text, image codes, audio codes, action bins.
//!
//! A network that gives logits for the next token implements [`Decoder`]; [`generate`] does the rest: left-padded
//! batches, sampling, guidance, stop rules, streaming and cancelling. It knows nothing of text; `text::stream` puts
//! a tokenizer around it. What a model is conditioned on besides tokens (an image, an encoder's states) is a field
//! of the value that implements [`Decoder`].
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fauna_shared::Result;
//! use fauna_shared::generate::{Decoder, GenerationConfig, Tokens, generate};
//! use std::ops::ControlFlow;
//!
//! /// Says that the next token is one more than the last.
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

/// A network that can be asked for the logits of the next token.
///
/// Rows are independent sequences: the entries of a batch, and for several codebooks one row each.
pub trait Decoder {
    /// What the network keeps of the tokens it has seen.
    type Cache;

    /// An empty cache for `rows` sequences of at most `capacity` tokens, padding included.
    fn cache(&self, rows: usize, capacity: usize) -> Result<Self::Cache>;

    /// Takes in `tokens` and gives the logits that follow the last of each row: `(rows, vocabulary)`, any float
    /// type, any device.
    fn step(&self, tokens: &Tokens, cache: &mut Self::Cache) -> Result<Tensor>;

    /// How many tokens a row may have at most; `None` if there is no bound.
    fn max_positions(&self) -> Option<usize>;

    /// How many tokens of a long prompt are read at once; `None` for all. Smaller pieces take less memory.
    fn prompt_chunk(&self) -> Option<usize> {
        None
    }

    /// How many of the first tokens of `prompt`, a batch's only row, `cache` holds already, to be gone on from; less than
    /// all of them. Default: none.
    fn cached_prefix(&self, _prompt: &[u32], _cache: &mut Self::Cache) -> usize {
        0
    }

    /// What may follow in `row` after the tokens in `new` (prompt not included). Default: anything.
    fn allowed(&self, _row: usize, _new: &[u32]) -> AllowedTokens {
        AllowedTokens::Any
    }

    /// Which stream of random numbers `row` draws from, counted from [`GenerationConfig::stream`]. Default: its own number.
    fn stream(&self, row: usize) -> u64 {
        row as u64
    }

    /// The prompt of the unconditional row that guidance sets against `prompt`. Default: the same prompt, for
    /// networks whose condition is not in the tokens.
    fn unconditional(&self, prompt: &[u32]) -> Vec<u32> {
        prompt.to_vec()
    }
}

/// What a model lets come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedTokens {
    /// Any token of the vocabulary.
    Any,
    /// Exactly this token, whatever the logits say.
    Only(u32),
    /// A token with an id in this range.
    Within(Range<u32>),
}

/// The new tokens of one step: `(rows, time)`, all prompts at first, then one token a row.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    ids: &'a [u32],
    pads: &'a [usize],
    past: usize,
}

impl<'a> Tokens<'a> {
    /// `ids`: row-major `(pads.len(), time)`. `pads`: how many padding tokens each row began with. `past`: how many
    /// tokens, padding included, each row has in the cache already.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if `ids` is empty or does not fill the rows evenly, or a row is all padding.
    pub fn new(ids: &'a [u32], pads: &'a [usize], past: usize) -> Result<Self> {
        if ids.is_empty() || pads.is_empty() || !ids.len().is_multiple_of(pads.len()) {
            return Err(Error::input(format!("{} tokens do not fill {} rows", ids.len(), pads.len())));
        }
        let end = past + ids.len() / pads.len();
        match pads.iter().position(|&pad| pad >= end) {
            Some(row) => Err(Error::input(format!("row {row} holds no token, only padding"))),
            None => Ok(Self { ids, pads, past }),
        }
    }

    /// How many sequences there are.
    pub fn rows(&self) -> usize {
        self.pads.len()
    }

    /// How many new tokens each row has.
    pub fn sequence_length(&self) -> usize {
        self.ids.len() / self.pads.len()
    }

    /// How many tokens, padding included, each row already has in the cache.
    pub fn past(&self) -> usize {
        self.past
    }

    /// How many padding tokens each row began with. They must be masked for good.
    pub fn pads(&self) -> &'a [usize] {
        self.pads
    }

    /// Whether no row is padded, so that the causal mask is all that is needed.
    pub fn is_unpadded(&self) -> bool {
        self.pads.iter().all(|&pad| pad == 0)
    }

    /// The new tokens of one row.
    pub fn row(&self, row: usize) -> &'a [u32] {
        &self.ids[row * self.sequence_length()..][..self.sequence_length()]
    }

    /// The new tokens, row-major.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }

    /// The new tokens, `(rows, time)`, u32.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        transfer::to_device(self.ids.to_vec(), (self.rows(), self.sequence_length()), device)
    }

    /// The position of each new token among the tokens of its row that are not padding, row-major; 0 for padding.
    pub fn positions(&self) -> Vec<u32> {
        let times = self.past..self.past + self.sequence_length();
        let row = |&pad: &usize| times.clone().map(move |t| t.saturating_sub(pad) as u32);
        self.pads.iter().flat_map(row).collect()
    }
}

/// One token that [`generate`] has just chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewToken {
    /// The row it belongs to.
    pub row: usize,
    /// Its index among the new tokens of that row, from 0.
    pub index: usize,
    /// Its id.
    pub token: u32,
    /// Why the row ends with it, if it does.
    pub finish: Option<FinishReason>,
}

/// What a caller who has seen enough wants to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The row of this token; it counts as [`FinishReason::Stopped`].
    Row,
    /// The row of this token; it counts as [`FinishReason::Cancelled`].
    Cancel,
    /// Everything; unfinished rows count as [`FinishReason::Cancelled`].
    All,
}

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model emitted an end token, which is the row's last.
    End,
    /// `max_new_tokens` are there.
    Length,
    /// The model has no position left.
    Full,
    /// The caller ended this row, for example at a stop string.
    Stopped,
    /// The caller ended everything.
    Cancelled,
}

/// What [`generate`] made.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The new tokens of each row, an end token included, padding not.
    pub tokens: Vec<Vec<u32>>,
    /// Why each row ended.
    pub finished: Vec<FinishReason>,
    /// Tokens of each prompt.
    pub prompt_tokens: Vec<usize>,
    /// How long it took to read the prompts, all together, up to the first new tokens.
    pub prompt_time: Duration,
    /// How long everything took.
    pub time: Duration,
}

/// What became of one prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Generation {
    /// Why it ended; `None` where nothing was generated token by token.
    pub finish: Option<FinishReason>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The new tokens, an end token included.
    pub tokens: Vec<u32>,
    /// Seconds up to the first new token, of all prompts of a batch together.
    pub prompt_seconds: f64,
    /// Seconds of the whole, of all prompts of a batch together.
    pub seconds: f64,
}

impl Generation {
    /// Of a prompt that was not begun.
    pub fn cancelled() -> Self {
        Self { finish: Some(FinishReason::Cancelled), ..Self::default() }
    }
}

impl Generated {
    /// Row by row.
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
    /// Prompts and new tokens as one rectangle, as transformers' `generate` returns `sequences`: prompts padded on
    /// the left, finished rows on the right.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for more or fewer prompts than rows.
    pub fn sequences(&self, prompts: &[impl AsRef<[u32]>], pad: u32) -> Result<Vec<Vec<u32>>> {
        if prompts.len() != self.tokens.len() {
            return Err(Error::input(format!("{} prompts for {} rows", prompts.len(), self.tokens.len())));
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

/// Continues `prompts`, all at once, and calls `each` with every new token as soon as it is chosen.
///
/// `options.eos` and `options.pad` are taken as they are: a caller who knows the model's own fills them in.
/// `options.stop` is for a layer that knows text and is not read here. A row gives the same tokens alone and in a
/// batch, up to rounding in the network.
///
/// # Errors
/// [`ErrorKind::Input`] if an option is out of range, there is no prompt, one is empty, or one is longer than the
/// model's positions. [`ErrorKind::Compute`] if the network's logits are misshaped or not numbers.
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

/// As [`generate`], after the `past` tokens that `cache` has read already: `prompts` are what follows them, all of one
/// length. `cache` must have room for them and all new tokens but the last.
///
/// # Errors
/// As [`generate`]; [`ErrorKind::Input`] if something was read and the prompts have different lengths.
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
        return Err(Error::input("prompts of different lengths do not go on from one cache"));
    }
    batch.before = past;
    continued(model, cache, 0, batch, prompts, options, each)
}

/// The decode loop. `read`: how many of the first tokens of the only prompt are in `cache`.
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
        // Where tokens are chosen already, logits stay where they are.
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

/// The logits that follow `ids`, row-major `(pads.len(), time)`, read in pieces of [`Decoder::prompt_chunk`] tokens.
fn step<D: Decoder + ?Sized>(
    model: &D,
    ids: &[u32],
    pads: &[usize],
    past: usize,
    cache: &mut D::Cache,
    options: &GenerationConfig,
) -> Result<Tensor> {
    let time = ids.len() / pads.len();
    // No row of a piece may be all padding.
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

/// The prompts as one left-padded rectangle.
struct Batch {
    ids: Vec<u32>,
    pads: Vec<usize>,
    longest: usize,
    /// Tokens that the cache has read before them.
    before: usize,
}

impl Batch {
    /// `prompts`, and after them their unconditional rows if there is guidance.
    fn new<D: Decoder + ?Sized>(
        model: &D,
        prompts: &[impl AsRef<[u32]>],
        options: &GenerationConfig,
    ) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::input("there is no prompt to continue"));
        }
        if let Some(row) = prompts.iter().position(|p| p.as_ref().is_empty()) {
            return Err(Error::input(format!("prompt {row} is empty"))
                .hint("a prompt needs at least one token, for example the model's begin token"));
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

    /// How many tokens can be made, and what it means to have made them all.
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
                "the prompt has {longest} tokens, the model has {positions} positions"
            ))
            .hint("shorten the prompt")),
            // The last token is chosen but never fed, so it needs no position.
            Some(positions) if positions + 1 - longest < wanted => {
                Ok((positions + 1 - longest, FinishReason::Full))
            }
            _ => Ok((wanted, FinishReason::Length)),
        }
    }
}

/// The logits of `row` with guidance, penalty and minimum length applied; copied only if one of them is.
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
    Error::new(ErrorKind::Compute, format!("row {row}, new token {index}: the logits are not numbers"))
        .hint("the weights may be damaged, or the type too narrow: try --dtype f32")
}

/// Whether token `index` is the likeliest by the logits as the network gives them.
fn takes_best(options: &GenerationConfig, index: usize) -> bool {
    let too_short = index < options.min_new_tokens && !options.end_tokens().is_empty();
    options.temperature == 0.0 && options.guidance == 1.0 && options.repetition_penalty == 1.0 && !too_short
}

/// Whether `logits` are `(rows, vocabulary)`.
fn check_shape(logits: &Tensor, rows: usize) -> Result<()> {
    match logits.dims() {
        [found, vocabulary] if *found == rows && *vocabulary > 0 => Ok(()),
        dims => Err(Error::new(
            ErrorKind::Compute,
            format!("a step gave logits of shape {dims:?}, wanted [{rows}, vocabulary]"),
        )),
    }
}

/// `logits` as contiguous f32 on the CPU.
fn on_cpu(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    match kernels_serve(logits.device()) {
        true => Ok(logits.contiguous()?),
        false => Ok(Tensor::from_vec(transfer::to_host::<f32>(&logits)?, logits.shape(), &Device::Cpu)?),
    }
}

/// Calls `read` with the elements of `logits` and the size of the vocabulary, without copying; with nothing if there are
/// none.
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
