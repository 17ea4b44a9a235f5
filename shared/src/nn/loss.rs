//! Losses of logits.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Shape, Tensor};

use super::back::{numbers, out};
use super::host;
use crate::grad::Recorded;
use crate::kernels::{loss as kernel, memory};
use crate::runtime::kernels_take;
use crate::{Error, Result, grad, transfer};

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
        return Ok((grad::apply1(&logits.contiguous()?, loss)?, count));
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

/// Binary cross entropy of `logits` with `targets` between 0 and 1, of the same shape: the mean over all elements, a
/// float32 scalar.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 3f32.ln()]], &Device::Cpu)?;
/// let targets = Tensor::new(&[[1f32, 1.0]], &Device::Cpu)?;
/// let loss = fauna_shared::nn::binary_cross_entropy(&logits, &targets)?.to_scalar::<f32>()?;
/// assert!((loss - (2f32.ln() + (4f32 / 3.0).ln()) / 2.0).abs() < 1e-6);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for targets of another shape.
pub fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (logits, targets) = alike(logits, targets)?;
    // log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which does not overflow.
    let rest = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok(((logits.relu()? - (&logits * targets)?)? + rest)?.mean_all()?)
}

/// The mean squared difference of `x` and `targets`, of the same shape, a float32 scalar.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let [x, targets] = [[1f32, 2.0], [1.0, 5.0]].map(|values| Tensor::new(&values, &Device::Cpu));
/// assert_eq!(fauna_shared::nn::mean_squared_error(&x?, &targets?)?.to_scalar::<f32>()?, 4.5);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for targets of another shape.
pub fn mean_squared_error(x: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (x, targets) = alike(x, targets)?;
    Ok((x - targets)?.sqr()?.mean_all()?)
}

/// `x` and `targets` in float32 on the device of `x`, if they have the same shape.
fn alike(x: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    if x.dims() != targets.dims() {
        let (found, expected) = (targets.dims(), x.dims());
        return Err(Error::input(format!("labels of shape {found:?}, expected {expected:?}")));
    }
    Ok((x.to_dtype(DType::F32)?, targets.to_dtype(DType::F32)?.to_device(x.device())?))
}

/// The sum of cross entropies of the rows of logits, `(rows, classes)`.
struct CrossEntropy {
    labels: Vec<i64>,
    /// The log-sum-exp of each row, of the forward pass.
    log_sums: Mutex<Vec<f32>>,
}

impl Recorded for CrossEntropy {}

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
        let scale: f32 = transfer::scalar(&grad.detach()).map_err(out)?;
        let mut back = memory::zeros(logits.elem_count());
        let log_sums = self.log_sums.lock().unwrap_or_else(PoisonError::into_inner);
        let loss = kernel::CrossEntropy::new(classes);
        host::saved(logits, |logits| loss.backward(logits, &self.labels, &log_sums, scale, &mut back))
            .and_then(|done| Ok(done?))
            .map_err(out)?;
        Tensor::from_vec(back, logits.shape(), &Device::Cpu).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    #[test]
    fn binary_cross_entropy_has_the_gradient_of_the_sigmoid_and_does_not_overflow() {
        let logits = Var::new(&[0f32, 2.0, -2.0, 200.0, -200.0], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[1f32, 0.0, 0.25, 0.0, 1.0], &Device::Cpu).unwrap();
        let loss = binary_cross_entropy(&logits, &targets).unwrap();
        let gradients = loss.backward().unwrap();
        let found: Vec<f32> = gradients.get(&logits).unwrap().to_vec1().unwrap();
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let expected = [0.5 - 1.0, sigmoid(2.0), sigmoid(-2.0) - 0.25, 1.0, -1.0].map(|x| x / 5.0);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        }
        assert!((loss.to_scalar::<f32>().unwrap() - 80.0).abs() < 1.0);
        let other = targets.reshape((5, 1)).unwrap();
        assert!(binary_cross_entropy(&logits, &other).is_err());
    }
}
