//! Greedy decoding on the device of the logits.

use candle_core::{D, DType, Tensor};

use crate::{Result, transfer};

/// Computes the argmax of logits on a device, so that only token ids are copied to the host.
#[derive(Default)]
pub(super) struct Greedy {
    /// `vocab_size`, `vocab_size - 1`, … 1 on the device, `(1, vocab_size)`.
    falling: Option<Tensor>,
}

impl Greedy {
    /// Returns the argmax of each row of `logits`, `(rows, vocab_size)`, the lowest index on ties; `None` for a row
    /// where all logits are minus infinity or one is NaN.
    ///
    /// Returns `None` if the vocabulary is too large for float32 indices.
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
        // Of the positions with the maximum, the first has the largest value of `falling`. The argmax of devices
        // differs on ties.
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
