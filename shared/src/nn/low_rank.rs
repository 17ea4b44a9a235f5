//! Low-rank updates of a layer, kept beside its weight (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024).

use std::ops::Range;

use candle_core::{D, DType, Tensor};

use super::Matrix;
use crate::kernels::matmul::{Compute, Layout};
use crate::{Error, ErrorKind, Result};

/// The update `scale · B · A` of rows of a weight `(outputs, inputs)`; with DoRA also a gain of each row.
#[derive(Debug, Clone)]
pub(crate) struct LowRank {
    /// `A`, `(rank, inputs)`, float32.
    pub a: Tensor,
    /// `B`, `(rows, rank)`, float32.
    pub b: Tensor,
    /// Added to `x · Aᵀ · Bᵀ` before it is scaled, `(rows)`.
    pub bias: Option<Tensor>,
    /// The factor of the update.
    pub scale: f64,
    /// The rows of the weight.
    pub rows: Range<usize>,
    /// DoRA: the magnitude of each row over its norm with the update, `(rows)`.
    pub gain: Option<Tensor>,
}

impl LowRank {
    /// The gain of DoRA: `magnitude`, `(rows)`, over the norms of the rows of `weight + scale · B · A`. The norms have no
    /// gradient (Liu et al. 2024, section 4.3).
    pub(crate) fn with_magnitude(self, magnitude: &Tensor, weight: &Tensor) -> Result<Self> {
        let update = (self.b.detach().matmul(&self.a.detach())? * self.scale)?;
        let norm = (weight.detach().to_dtype(DType::F32)? + update)?.sqr()?.sum(D::Minus1)?.sqrt()?;
        let gain = Some((magnitude / norm)?);
        Ok(Self { gain, ..self })
    }

    /// The update of `x`, `(…, inputs)`: `(…, rows)`.
    fn of(&self, x: &Tensor) -> Result<Tensor> {
        let matrix = |tensor: &Tensor| Matrix::variable(tensor.clone(), Layout::OutIn, Compute::F32);
        let low = matrix(&self.a)?.multiply(x, None, None)?;
        let b = matrix(&self.b)?;
        match &self.bias {
            // The narrower of both is scaled.
            None => b.multiply(&(low * self.scale)?, None, None),
            Some(bias) => Ok((b.multiply(&low, Some(&bias.to_dtype(x.dtype())?), None)? * self.scale)?),
        }
    }

    /// The update of the rows `ids` of an embedding table `(count, hidden_size)`, whose transpose is the weight:
    /// `(number of ids, hidden_size)`.
    fn of_rows(&self, ids: &[u32]) -> Result<Tensor> {
        let low = super::select_rows(&self.a.t()?.contiguous()?, ids)?;
        let b = Matrix::variable(self.b.clone(), Layout::OutIn, Compute::F32)?;
        Ok((b.multiply(&low, None, None)? * self.scale)?)
    }

    /// Adds `update`, `(…, rows)`, to `total`; `base` is the product with the weight alone, both `(…, outputs)`.
    fn add(&self, total: &Tensor, base: &Tensor, update: Tensor) -> Result<Tensor> {
        let part =
            |x: &Tensor, rows: Range<usize>| Ok::<_, Error>(x.narrow(D::Minus1, rows.start, rows.len())?);
        let change = match &self.gain {
            None => update,
            Some(gain) => {
                let gain = gain.to_dtype(base.dtype())?;
                let more = part(base, self.rows.clone())?.broadcast_mul(&(&gain - 1.0)?)?;
                (more + update.broadcast_mul(&gain)?)?
            }
        };
        let (rows, outputs) = (&self.rows, base.dim(D::Minus1)?);
        if rows.len() == outputs {
            return super::add(total, &change);
        }
        let mut parts = Vec::with_capacity(3);
        if rows.start > 0 {
            parts.push(part(total, 0..rows.start)?);
        }
        parts.push(super::add(&part(total, rows.clone())?, &change)?);
        if rows.end < outputs {
            parts.push(part(total, rows.end..outputs)?);
        }
        super::concat(&parts.iter().collect::<Vec<_>>(), D::Minus1)
    }
}

/// `base`, the product of `x` with a weight, with its `updates`.
pub(super) fn updated(base: Tensor, x: &Tensor, updates: &[LowRank]) -> Result<Tensor> {
    let mut total = base.clone();
    for update in updates {
        total = update.add(&total, &base, update.of(x)?.to_dtype(base.dtype())?)?;
    }
    Ok(total)
}

/// `base`, the rows `ids` of an embedding table, `(number of ids, hidden_size)`, with the table's `updates`.
pub(super) fn updated_rows(base: Tensor, ids: &[u32], updates: &[LowRank]) -> Result<Tensor> {
    let mut total = base.clone();
    for update in updates {
        total = update.add(&total, &base, update.of_rows(ids)?.to_dtype(base.dtype())?)?;
    }
    Ok(total)
}

/// `base`, a weight `(outputs, inputs)`, with its `updates`.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for an update with a bias, which is not part of the weight;
/// [`Mismatch`](ErrorKind::Mismatch) if the shape of one does not fit.
pub(super) fn merged(base: Tensor, updates: &[LowRank]) -> Result<Tensor> {
    if updates.is_empty() {
        return Ok(base);
    }
    let (outputs, inputs) = base.dims2()?;
    // The rows of the weight are the last axis of an update.
    let base = base.to_dtype(DType::F32)?.t()?.contiguous()?;
    let mut total = base.clone();
    for update in updates {
        check(update, outputs, inputs)?;
        if update.bias.is_some() {
            return Err(Error::unsupported(
                "an adapter with lora_bias over a layer whose weight is part of a product of weights",
            ));
        }
        let change = (update.b.matmul(&update.a)? * update.scale)?.t()?.contiguous()?;
        total = update.add(&total, &base, change)?;
    }
    Ok(total.t()?.contiguous()?)
}

/// Checks that `update` fits a weight of `(outputs, inputs)`.
pub(crate) fn check(update: &LowRank, outputs: usize, inputs: usize) -> Result<()> {
    let (a, b) = (update.a.dims(), update.b.dims());
    let fits = a.len() == 2 && b.len() == 2 && a[1] == inputs && b[0] == update.rows.len() && a[0] == b[1];
    match fits && update.rows.end <= outputs {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Mismatch,
            format!(
                "factors A {a:?} and B {b:?} for rows {:?} of a weight [{outputs}, {inputs}]",
                update.rows
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn numbers(rows: usize, columns: usize, seed: f32) -> Tensor {
        let values = (0..rows * columns).map(|i| (seed + i as f32 * 0.7).sin());
        Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((rows, columns)).unwrap()
    }

    #[test]
    fn a_matrix_as_a_tensor_has_its_updates() {
        let (weight, x) = (numbers(5, 4, 0.1), numbers(3, 4, 0.5));
        let update = LowRank {
            a: numbers(2, 4, 1.0),
            b: numbers(3, 2, 2.0),
            bias: None,
            scale: 0.5,
            rows: 1..4,
            gain: None,
        };
        let magnitude = numbers(1, 3, 3.0).flatten_all().unwrap();
        let scaled = update.clone().with_magnitude(&magnitude, &weight.narrow(0, 1, 3).unwrap()).unwrap();
        let matrix = Matrix::variable(weight, Layout::OutIn, Compute::F32).unwrap();
        let adapted = matrix.clone().with_updates(vec![update.clone(), scaled], false).unwrap();
        let direct = adapted.multiply(&x, None, None).unwrap();
        let product = x.matmul(&adapted.tensor().unwrap().t().unwrap()).unwrap();
        let off = (direct - product).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off < 1e-5, "{off}");
        let biased = LowRank { bias: Some(magnitude), ..update };
        assert!(matrix.with_updates(vec![biased], false).unwrap().tensor().is_err());
    }
}
