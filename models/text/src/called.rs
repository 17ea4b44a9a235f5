//! The method `generate` of [`Pipeline::call`](fauna_shared::model::Pipeline::call), with the inputs, options and
//! outputs of the reference's `generate`: `input_ids` and `attention_mask` in, `sequences` out.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Decoder, GenerationConfig, generate};
use fauna_shared::{Error, Result, transfer};
use serde_json::Value;

use crate::words;

/// Returns the generation config of `options`: greedy decoding, `max_new_tokens` (default 20), `min_new_tokens`,
/// `eos_token_id` (default `eos`) and `pad_token_id` (default `pad`).
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for `do_sample`, because the reference's random numbers cannot be
/// reproduced; [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for beam search.
pub fn config(options: &Value, eos: &[u32], pad: Option<u32>) -> Result<GenerationConfig> {
    if options["do_sample"] == true {
        return Err(Error::input("do_sample: the reference's random numbers cannot be reproduced"));
    }
    if options["num_beams"].as_u64().is_some_and(|beams| beams > 1) {
        return Err(Error::unsupported("num_beams above 1: beam search is not implemented"));
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

/// A batch of prompts of token ids, padded on the left.
pub struct Rows {
    /// The input ids, `(batch, sequence)`.
    given: Vec<Vec<i64>>,
    /// The ids that the network takes in their place.
    rows: Vec<Vec<u32>>,
    /// Number of padding tokens at the beginning of each sequence.
    pub pads: Vec<usize>,
}

impl Rows {
    /// A batch of prompts. `given`: input ids, `(batch, sequence)` of any integer type; `mask`: attention mask of the
    /// same shape, 0 for padding; `rows`: the ids that the network takes in place of `given`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a sequence is not padded on the left.
    pub fn new(given: &Tensor, mask: Option<&Tensor>, rows: Vec<Vec<u32>>) -> Result<Self> {
        let real = mask.map(words::real_tokens).transpose()?;
        Self::padded(given, real.as_deref(), rows)
    }

    /// Same as [`new`](Self::new), with the attention mask as booleans, true for real tokens.
    ///
    /// # Errors
    /// Same as [`new`](Self::new).
    pub fn padded(given: &Tensor, real: Option<&[Vec<bool>]>, rows: Vec<Vec<u32>>) -> Result<Self> {
        let pads = match real {
            None => vec![0; rows.len()],
            Some(real) => left_padding(real)?,
        };
        Ok(Self { given: transfer::rows(&given.to_dtype(DType::I64)?)?, rows, pads })
    }

    /// Generates with `decoder` and returns the input ids followed by the new tokens, `(batch, sequence)` of int64,
    /// padded on the right.
    ///
    /// # Errors
    /// Same as [`generate`].
    pub fn sequences<D: Decoder + ?Sized>(&self, decoder: &D, config: &GenerationConfig) -> Result<Tensor> {
        let prompts: Vec<&[u32]> =
            self.rows.iter().zip(&self.pads).map(|(row, pad)| row.get(*pad..).unwrap_or(&[])).collect();
        let made = generate(decoder, &prompts, config, &mut |_| ControlFlow::Continue(()))?;
        sequences(&self.given, &made.tokens, config.pad_token())
    }
}

/// Concatenates prompts and new tokens, `(batch, sequence)` of int64, padded on the right with `pad`.
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

/// Reads a token id, or a list of them, of a config.
pub fn token_ids(value: &Value) -> Vec<u32> {
    match value {
        Value::Array(list) => list.iter().flat_map(token_ids).collect(),
        other => other.as_u64().and_then(|id| u32::try_from(id).ok()).into_iter().collect(),
    }
}

/// Returns the number of padding tokens at the beginning of each sequence. `real`: attention mask, true for tokens.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if a sequence is not padded on the left.
pub fn left_padding(real: &[Vec<bool>]) -> Result<Vec<usize>> {
    real.iter()
        .enumerate()
        .map(|(r, row)| match row.iter().position(|real| *real) {
            Some(pad) if row[pad..].iter().all(|real| *real) => Ok(pad),
            _ => Err(Error::input(format!(
                "row {r} of attention_mask is not left padding followed by a prompt"
            ))
            .hint("pad prompts on the left")),
        })
        .collect()
}
