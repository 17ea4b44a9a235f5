//! Losses of logits.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Shape, Tensor};

use super::back::{numbers, out};
use super::host;
use crate::kernels::{loss as kernel, memory};
use crate::runtime::kernels_take;
use crate::{Error, Result, transfer};

/// The label of positions that take no part in a loss, as in torch.
pub const IGNORE_INDEX: i64 = -100;

/// Cross entropy of `logits`, `(…, classes)`, with the integer `labels`, `(…)`: the sum over the labels that are not
/// [`IGNORE_INDEX`], a float32 scalar, and their number.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fauna_shared::nn::cross_entropy_sum;
/// let logits = Tensor::new(&[[0f32, 0.0], [5.0, -5.0]], &Device::Cpu)?;
/// let labels = Tensor::new(&[1i64, -100], &Device::Cpu)?;
/// let (sum, count) = cross_entropy_sum(&logits, &labels)?;
/// assert!((sum.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6 && count == 1);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if the shapes do not match, or a label is neither a class nor [`IGNORE_INDEX`].
pub fn cross_entropy_sum(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, usize)> {
    let classes = logits.dim(D::Minus1)?;
    if logits.dims()[..logits.rank() - 1] != *labels.dims() || classes == 0 {
        let (found, labels) = (logits.dims(), labels.dims());
        return Err(Error::input(format!("labels of shape {labels:?} for logits of shape {found:?}")));
    }
    let labels: Vec<i64> = transfer::to_host(&labels.to_dtype(DType::I64)?)?;
    let is_wrong = |label: &&i64| **label != IGNORE_INDEX && !(0..classes as i64).contains(*label);
    if let Some(wrong) = labels.iter().find(is_wrong) {
        return Err(Error::input(format!("the label {wrong} is none of {classes} classes"))
            .hint(format!("{IGNORE_INDEX} is the label of positions that are ignored")));
    }
    let count = labels.iter().filter(|label| **label != IGNORE_INDEX).count();
    let logits = logits.reshape(((), classes))?.to_dtype(DType::F32)?;
    if kernels_take(&logits) {
        let loss = CrossEntropy { labels, log_sums: Mutex::default() };
        return Ok((logits.contiguous()?.apply_op1(loss)?, count));
    }
    let device = logits.device();
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let normalizer = shifted.exp()?.sum(D::Minus1)?.log()?;
    let classes: Vec<u32> = labels.iter().map(|label| (*label).max(0) as u32).collect();
    let weights: Vec<f32> = labels.iter().map(|label| f32::from(*label != IGNORE_INDEX)).collect();
    let rows = labels.len();
    let classes = transfer::to_device(classes, (rows, 1), device)?;
    let chosen = shifted.gather(&classes, 1)?.squeeze(1)?;
    let sum = ((normalizer - chosen)? * transfer::to_device(weights, rows, device)?)?.sum_all()?;
    Ok((sum, count))
}

/// The mean of [`cross_entropy_sum`], with the number of labels; NaN, as in torch, if all labels are ignored.
///
/// # Errors
/// As [`cross_entropy_sum`].
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<(Tensor, usize)> {
    let (sum, count) = cross_entropy_sum(logits, labels)?;
    Ok(((sum / count as f64)?, count))
}

/// The sum of cross entropies of the rows of logits, `(rows, classes)`.
struct CrossEntropy {
    labels: Vec<i64>,
    /// The log-sum-exp of each row, of the forward pass.
    log_sums: Mutex<Vec<f32>>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, classes) = layout.shape().dims2()?;
        let mut log_sums = memory::zeros(rows);
        let loss = kernel::CrossEntropy::new(classes)
            .forward(numbers(storage, layout)?, &self.labels, &mut log_sums)
            .map_err(|error| out(error.into()))?;
        *self.log_sums.lock().unwrap_or_else(PoisonError::into_inner) = log_sums;
        Ok((CpuStorage::F32(vec![loss.sum as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, classes) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()?;
        let mut back = memory::zeros(logits.elem_count());
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let loss = kernel::CrossEntropy::new(classes);
        host::saved(logits, |logits| loss.backward(logits, &self.labels, &log_sums, scale, &mut back))
            .and_then(|done| Ok(done?))
            .map_err(out)?;
        Tensor::from_vec(back, logits.shape(), &Device::Cpu).map(Some)
    }
}
