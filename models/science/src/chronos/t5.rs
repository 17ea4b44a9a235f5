//! Chronos: a language model over tokenized series.
//!
//! Ansari et al. 2024, "Chronos: Learning the Language of Time Series" (arXiv 2403.07815), section 3. The network is T5
//! or GPT-2; paths are sampled token by token, and quantiles are those of the paths.
//! Checked against chronos-forecasting `ChronosPipeline`, parity cases `tests/parity/chronos`.
//! Loads `T5ForConditionalGeneration` and `GPT2LMHeadModel` with a `chronos_config`.

use fauna_shared::item::Modality;
use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{self, GenerationConfig, Tokens};
use fauna_shared::model::{CausalLm, Family, Model, Pretrained, Release, Step};
use fauna_shared::weights::{Inventory, Weights};
use fauna_shared::{Error, Result, json};
use fauna_text::gpt2::Gpt2;
use fauna_text::t5::{Memory, T5};
use serde_json::Value;

use super::tokenizer::{ChronosConfig, Context, Kind, MeanScaleUniformBins};
use crate::quantiles::median;

/// Batch size: enough rows for all cores, within a bounded memory.
const BATCH_SIZE: usize = 256;

/// The network.
pub enum Network {
    /// T5.
    Seq2seq(Box<T5>),
    /// GPT-2.
    Causal(Box<Gpt2>),
}

/// Chronos: tokenizer and network.
pub struct Chronos {
    pub(super) network: Option<Network>,
    pub(super) tokenizer: MeanScaleUniformBins,
    pub(super) config: ChronosConfig,
    pub(super) device: Device,
    pub(super) start: u32,
    pub(super) vocabulary: usize,
}

/// Sampling options.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Number of paths per series.
    pub paths: usize,
    /// As in [`GenerationConfig`].
    pub temperature: f64,
    /// As there.
    pub top_k: usize,
    /// As there.
    pub top_p: f64,
    /// Seed.
    pub seed: u64,
}

/// Loads the network of `kind`.
///
/// # Errors
/// Errors of the config and the tensors.
pub fn load(pretrained: &Pretrained, kind: Kind) -> Result<(Network, Inventory)> {
    Ok(match kind {
        Kind::Seq2seq => {
            let (network, inventory) = pretrained.load::<T5>()?;
            (Network::Seq2seq(Box::new(network)), inventory)
        }
        Kind::Causal => {
            let (network, inventory) = pretrained.load::<Gpt2>()?;
            (Network::Causal(Box::new(network)), inventory)
        }
    })
}

/// Builds the network of `kind` from `config`, canonical, and `weights`.
///
/// # Errors
/// Errors of the config and the tensors.
pub(super) fn build(kind: Kind, config: &Value, weights: &Weights) -> Result<Network> {
    Ok(match kind {
        Kind::Seq2seq => Network::Seq2seq(Box::new(T5::load(json::typed(config.clone())?, weights)?)),
        Kind::Causal => Network::Causal(Box::new(Gpt2::load(json::typed(config.clone())?, weights)?)),
    })
}

impl Chronos {
    /// The sampling options of the release.
    pub fn sampling(&self) -> Sampling {
        let c = &self.config;
        let (temperature, top_k, top_p) = (c.temperature, c.top_k, c.top_p);
        Sampling { paths: c.num_samples, temperature, top_k, top_p, seed: 0 }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &MeanScaleUniformBins {
        &self.tokenizer
    }

    /// The network.
    ///
    /// # Errors
    /// [`NotFound`](fauna_shared::ErrorKind::NotFound) if the folder has a tokenizer alone.
    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().ok_or_else(|| {
            Error::new(
                fauna_shared::ErrorKind::NotFound,
                "this folder has no weights, only the settings of a tokenizer",
            )
        })
    }

    /// Samples paths of `horizon` steps after each of `series`, `(series, paths, horizon)`. The paths of a series do not
    /// depend on the others. Beyond `prediction_length`, the median of the paths is appended to the series.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for options out of range.
    pub fn paths(
        &self,
        series: &[&[f32]],
        horizon: usize,
        sampling: &Sampling,
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let mut all = Vec::with_capacity(series.len());
        for chunk in series.chunks((BATCH_SIZE / sampling.paths.max(1)).max(1)) {
            // All contexts of a batch are padded to one length.
            let (table, steps) = crate::series::left_padded(chunk, self.config.context_length);
            let mut pasts: Vec<Vec<f32>> = table.chunks_exact(steps.max(1)).map(<[f32]>::to_vec).collect();
            let mut paths = vec![vec![Vec::with_capacity(horizon); sampling.paths]; chunk.len()];
            let mut done = 0;
            while done < horizon {
                let count = (horizon - done).min(self.config.prediction_length);
                let drawn = self.sample(&pasts, count, done as u64 * sampling.paths as u64, sampling)?;
                for ((past, paths), drawn) in pasts.iter_mut().zip(&mut paths).zip(drawn) {
                    let middle =
                        |step: usize| median(&mut drawn.iter().map(|path| path[step]).collect::<Vec<_>>());
                    past.extend((0..count).map(middle));
                    paths.iter_mut().zip(drawn).for_each(|(path, new)| path.extend(new));
                }
                done += count;
            }
            all.append(&mut paths);
        }
        Ok(all)
    }

    /// Samples `count` steps of each path of series of the same length.
    fn sample(
        &self,
        pasts: &[Vec<f32>],
        count: usize,
        stream: u64,
        s: &Sampling,
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let contexts: Vec<Context> = pasts.iter().map(|past| self.tokenizer.encode(past)).collect();
        let rows = contexts.len() * s.paths;
        let options = GenerationConfig {
            max_new_tokens: count,
            min_new_tokens: count,
            temperature: s.temperature as f32,
            top_k: s.top_k,
            top_p: s.top_p as f32,
            eos: Some(vec![self.config.eos_token_id]),
            pad: Some(self.config.pad_token_id),
            seed: s.seed,
            stream,
            ..GenerationConfig::default()
        };
        let mut each = |_| ControlFlow::Continue(());
        let made = match self.network()? {
            Network::Seq2seq(network) => {
                let (states, mask) = self.encode(network, &contexts)?;
                let memory = network.decoder.memory(&states, &mask)?;
                let decoder = Seq2seqDecoder { network, memory, paths: s.paths, device: &self.device };
                generate::generate(&decoder, &vec![[self.start]; rows], &options, &mut each)?
            }
            Network::Causal(network) => {
                let repeated = || contexts.iter().flat_map(|context| std::iter::repeat_n(context, s.paths));
                let real: Vec<Vec<bool>> = repeated().map(|context| context.real.clone()).collect();
                let prompts: Vec<&[u32]> = repeated().map(|context| &context.ids[..]).collect();
                let decoder = CausalDecoder { network, real, paths: s.paths, device: &self.device };
                generate::generate(&decoder, &prompts, &options, &mut each)?
            }
        };
        let value =
            |(row, ids): (usize, &Vec<u32>)| self.tokenizer.decode(ids, contexts[row / s.paths].scale);
        let values: Vec<Vec<f32>> = made.tokens.iter().enumerate().map(value).collect();
        Ok(values.chunks(s.paths).map(<[Vec<f32>]>::to_vec).collect())
    }

    /// The encoder output of contexts of the same length, `(series, tokens, d_model)`, and their mask.
    pub(super) fn encode(&self, network: &T5, contexts: &[Context]) -> Result<(Tensor, Mask)> {
        let real: Vec<Vec<bool>> = contexts.iter().map(|context| context.real.clone()).collect();
        let mask = Mask::full().with_padding(&real)?;
        let tokens = contexts.first().map_or(0, |context| context.ids.len());
        let ids: Vec<u32> = contexts.iter().flat_map(|context| context.ids.iter().copied()).collect();
        let ids = Tensor::from_vec(ids, (contexts.len(), tokens), &self.device)?;
        Ok((network.encoder.forward(&ids, &mask)?, mask))
    }
}

/// The decoder of T5 with the encoder output of each series, which its paths share.
struct Seq2seqDecoder<'a> {
    network: &'a T5,
    memory: Memory,
    paths: usize,
    device: &'a Device,
}

impl generate::Decoder for Seq2seqDecoder<'_> {
    type Cache = Cache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
        Ok(self.network.decoder.cache(capacity))
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        let ids = tokens.tensor(self.device)?;
        let hidden = self.network.decoder.hidden(&ids, &Mask::causal(), &self.memory, cache)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.network.logits(&last)?.ok_or_else(no_head)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn stream(&self, row: usize) -> u64 {
        (row % self.paths) as u64
    }
}

/// GPT-2 with one row per path; gaps are masked and have no position.
struct CausalDecoder<'a> {
    network: &'a Gpt2,
    real: Vec<Vec<bool>>,
    paths: usize,
    device: &'a Device,
}

impl generate::Decoder for CausalDecoder<'_> {
    type Cache = Cache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
        Ok(Cache::new(self.network.num_hidden_layers(), capacity))
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        let (past, keys) = (tokens.past(), tokens.past() + tokens.sequence_length());
        let mut real = self.real.clone();
        real.iter_mut().for_each(|row| row.resize(keys, true));
        let positions = Positions::rows(
            &real.iter().map(|row| positions_without_gaps(row)[past..].to_vec()).collect::<Vec<_>>(),
        )?;
        let mask = Mask::causal().with_padding(&real)?;
        let ids = tokens.tensor(self.device)?;
        let step = Step { positions: &positions, mask: &mask, token_type_ids: None };
        let hidden = self.network.forward(&ids, &step, cache)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.network.logits(&last)?.ok_or_else(no_head)
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.network.max_position_embeddings())
    }

    fn stream(&self, row: usize) -> u64 {
        (row % self.paths) as u64
    }
}

/// The position of each token, not counting gaps; a gap has that of the token before it, or 0.
fn positions_without_gaps(real: &[bool]) -> Vec<u32> {
    let mut count = 0u32;
    let mut position = |real: &bool| {
        count += u32::from(*real);
        count.saturating_sub(1)
    };
    real.iter().map(&mut position).collect()
}

pub(super) fn no_head() -> Error {
    Error::unsupported("the network has no language-model head to sample from")
}

/// The logits of GPT-2 for `ids`, `(batch, sequence)`, with the attention mask `real`.
///
/// # Errors
/// As [`causal_hidden`].
pub(super) fn causal_logits(network: &Gpt2, ids: &Tensor, real: &[Vec<bool>]) -> Result<Tensor> {
    network.logits(&causal_hidden(network, ids, real)?)?.ok_or_else(no_head)
}

/// The last hidden state of GPT-2 for `ids`, `(batch, sequence)`, with the attention mask `real`.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if there are more tokens than positions.
pub(super) fn causal_hidden(network: &Gpt2, ids: &Tensor, real: &[Vec<bool>]) -> Result<Tensor> {
    let time = ids.dim(1)?;
    if time > network.max_position_embeddings() {
        return Err(Error::input(format!(
            "{time} tokens, but the model has {} positions",
            network.max_position_embeddings()
        )));
    }
    let mask = Mask::causal().with_padding(real)?;
    let positions = Positions::counting(0, time);
    let step = Step { positions: &positions, mask: &mask, token_type_ids: None };
    let mut cache = Cache::new(network.num_hidden_layers(), time);
    network.forward(ids, &step, &mut cache)
}

/// An int64 tensor.
pub(super) fn integers(values: Vec<i64>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let shape: candle_core::Shape = shape.into();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(DType::I64)?)
}

/// Chronos on T5 or GPT-2.
pub static FAMILY: Family = Family {
    name: "chronos-t5",
    systems: &["TimeGPT"],
    paper: "Ansari et al. 2024, arXiv 2403.07815",
    model_types: &["t5", "gpt2"],
    architectures: &["T5ForConditionalGeneration", "GPT2LMHeadModel"],
    gguf: &[],
    keys: &super::KEYS,
    inputs: &[Modality::Series],
    outputs: &[Modality::Series, Modality::Vector],
    releases: &[
        Release::new("amazon/chronos-t5-tiny", "TimeGPT", "8.4M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-mini", "TimeGPT", "20M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-small", "TimeGPT", "46M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-base", "TimeGPT", "201M", "Apache-2.0"),
        Release::new("amazon/chronos-t5-large", "TimeGPT", "709M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(super::TOKENS),
    rename: super::rename,
    inventory: super::t5_inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(super::ChronosPipeline::open(pretrained)?)),
    sample: super::t5_sample,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_not_counted() {
        assert_eq!(positions_without_gaps(&[false, true, false, true, true]), [0, 0, 0, 1, 2]);
    }
}
