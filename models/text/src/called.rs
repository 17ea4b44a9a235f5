//! The reference's `generate`, called by its own names: options and rows of token ids in, `sequences` out. Every pipeline
//! that generates tokens answers [`Pipeline::call`](fauna_shared::model::Pipeline::call) by it.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Decoder, GenerationConfig, generate};
use fauna_shared::{Error, Result};
use serde_json::Value;

use crate::words;

/// How the options of a call decode: greedily, at most `max_new_tokens` (20 if unsaid), with the end tokens `eos` and the
/// padding token `pad` where they name no others.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for sampling, whose random numbers are the reference's own, and
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for beams.
pub fn config(options: &Value, eos: &[u32], pad: Option<u32>) -> Result<GenerationConfig> {
    if options["do_sample"] == true {
        return Err(Error::input("do_sample: the reference's random numbers are its own"));
    }
    if options["num_beams"].as_u64().is_some_and(|beams| beams > 1) {
        return Err(Error::unsupported("num_beams is not implemented: answers are greedy or sampled"));
    }
    let count = |key: &str, default: u64| options[key].as_u64().unwrap_or(default) as usize;
    let mut config = GenerationConfig::greedy(count("max_new_tokens", 20));
    config.min_new_tokens = count("min_new_tokens", 0);
    config.eos = Some(match &options["eos_token_id"] {
        Value::Null => eos.to_vec(),
        ids => token_ids(ids),
    });
    config.pad = token_ids(&options["pad_token_id"]).first().copied().or(pad);
    Ok(config)
}

/// Prompts of a call, padded on the left.
pub struct Rows {
    /// As they came, `(batch, time)`.
    given: Vec<Vec<i64>>,
    /// As the network takes them.
    rows: Vec<Vec<u32>>,
    /// Padding tokens that each row begins with.
    pub pads: Vec<usize>,
}

impl Rows {
    /// `given`: `(batch, time)` of any integers; `mask`: the same shape, 0 where padding; `rows`: what the network takes in
    /// their place.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a row is not padding, then a prompt.
    pub fn new(given: &Tensor, mask: Option<&Tensor>, rows: Vec<Vec<u32>>) -> Result<Self> {
        let real = mask.map(words::real_tokens).transpose()?;
        Self::padded(given, real.as_deref(), rows)
    }

    /// As [`new`](Self::new), with the mask as rows of what is real.
    ///
    /// # Errors
    /// As there.
    pub fn padded(given: &Tensor, real: Option<&[Vec<bool>]>, rows: Vec<Vec<u32>>) -> Result<Self> {
        let pads = match real {
            None => vec![0; rows.len()],
            Some(real) => left_padding(real)?,
        };
        Ok(Self { given: given.to_dtype(DType::I64)?.to_vec2()?, rows, pads })
    }

    /// What `decoder` makes of them: `(batch, time)` of int64, prompts as they came and what follows, shorter rows filled
    /// up with the padding token.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn sequences<D: Decoder + ?Sized>(&self, decoder: &D, config: &GenerationConfig) -> Result<Tensor> {
        let prompts: Vec<&[u32]> =
            self.rows.iter().zip(&self.pads).map(|(row, pad)| row.get(*pad..).unwrap_or(&[])).collect();
        let made = generate(decoder, &prompts, config, &mut |_| ControlFlow::Continue(()))?;
        sequences(&self.given, &made.tokens, config.pad_token())
    }
}

/// Prompts and what continues them as one rectangle, `(rows, time)` of int64: shorter rows end in `pad`.
pub fn sequences(prompts: &[Vec<i64>], new: &[Vec<u32>], pad: u32) -> Result<Tensor> {
    let longest = new.iter().map(Vec::len).max().unwrap_or(0);
    let mut sequences = Vec::new();
    for (prompt, new) in prompts.iter().zip(new) {
        sequences.extend_from_slice(prompt);
        sequences.extend(new.iter().map(|token| i64::from(*token)));
        sequences.extend(std::iter::repeat_n(i64::from(pad), longest - new.len()));
    }
    let shape = (prompts.len(), sequences.len() / prompts.len().max(1));
    Ok(Tensor::from_vec(sequences, shape, &Device::Cpu)?)
}

/// A config's token id, or list of them.
pub fn token_ids(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(list) => list.iter().flat_map(token_ids).collect(),
        other => other.as_u64().and_then(|id| u32::try_from(id).ok()).into_iter().collect(),
    }
}

/// How many tokens of padding each row begins with.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if a row is not padding, then a prompt.
pub fn left_padding(real: &[Vec<bool>]) -> Result<Vec<usize>> {
    real.iter()
        .enumerate()
        .map(|(r, row)| match row.iter().position(|real| *real) {
            Some(pad) if row[pad..].iter().all(|real| *real) => Ok(pad),
            _ => Err(Error::input(format!("row {r} of attention_mask is not padding, then a prompt"))
                .hint("pad prompts on the left")),
        })
        .collect()
}
