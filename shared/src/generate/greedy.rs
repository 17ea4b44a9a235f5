//! The likeliest token of each row, found where the logits lie.

use candle_core::{D, DType, Tensor};

use crate::{Result, transfer};

/// Finds the likeliest tokens on a device, from which only they come back.
#[derive(Default)]
pub(super) struct Greedy {
    /// The size of a vocabulary and `size`, `size - 1`, … 1 on the device, `(1, size)`.
    falling: Option<Tensor>,
}

impl Greedy {
    /// The index of the largest logit of each row of `(rows, vocabulary)`, the lowest of equals; none if no logit of a row
    /// is above minus infinity or one is not a number.
    ///
    /// None at all where the logits are too many to count in float32.
    pub(super) fn choose(&mut self, logits: &Tensor) -> Result<Option<Vec<Option<u32>>>> {
        let (_, vocabulary) = logits.dims2()?;
        if vocabulary == 0 || vocabulary > 1 << 24 {
            return Ok(None);
        }
        let logits = logits.to_dtype(DType::F32)?;
        let falling = match &self.falling {
            Some(falling) if falling.elem_count() == vocabulary => falling,
            _ => {
                let values = (1..=vocabulary).rev().map(|n| n as f32).collect();
                self.falling.insert(transfer::to_device(values, (1, vocabulary), logits.device())?)
            }
        };
        let best = logits.max_keepdim(D::Minus1)?;
        // Of the places that hold the largest logit, the first has the largest number. Devices differ in which of equals
        // their own argmax gives.
        let first = logits.broadcast_eq(&best)?.to_dtype(DType::F32)?.broadcast_mul(falling)?;
        let first = first.max_keepdim(D::Minus1)?;
        let odd = logits.ne(&logits)?.to_dtype(DType::F32)?.sum_keepdim(D::Minus1)?;
        let found: Vec<f32> = transfer::to_host(&Tensor::cat(&[first, best, odd], D::Minus1)?)?;
        let token = |found: &[f32; 3]| {
            let [first, best, odd] = *found;
            (first > 0.0 && best > f32::NEG_INFINITY && odd == 0.0).then(|| vocabulary as u32 - first as u32)
        };
        Ok(Some(found.as_chunks::<3>().0.iter().map(token).collect()))
    }
}
