//! Softmax.

use candle_core::{D, Tensor};

use super::{fused, host};
use crate::Result;

/// Softmax over the last axis of `x`, of any shape; differentiable.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[0f32, 3f32.ln()], &Device::Cpu)?;
/// let y = fauna_shared::nn::softmax(&x)?.to_vec1::<f32>()?;
/// assert!((y[0] - 0.25).abs() < 1e-6 && (y[1] - 0.75).abs() < 1e-6);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if !host::serves(x) && fused::serve(&[x]) {
        return Ok(candle_nn::ops::softmax_last_dim(&x.contiguous()?)?);
    }
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?)
}
