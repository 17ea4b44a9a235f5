//! Softmax and L2 normalization.

use candle_core::{D, Tensor};

use super::back::{self, Normalized, Softmaxed};
use super::{fused, host};
use crate::kernels::norm;
use crate::{Result, grad};

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
    if host::serves(x) && x.elem_count() > 0 {
        let width = x.dim(D::Minus1)?;
        return host::map(x, |x| norm::softmax(x, width));
    }
    if !host::serves(x) && fused::serve(&[x]) {
        return Ok(candle_nn::ops::softmax_last_dim(&x.contiguous()?)?);
    }
    if back::serves(x) && x.elem_count() > 0 {
        return grad::apply1(&x.contiguous()?, Softmaxed);
    }
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?)
}

/// Divides `x` by its L2 norm along the last axis, or by `eps` where that is larger.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[3f32, 4.0], [0.0, 0.0]], &Device::Cpu)?;
/// let y = fauna_shared::nn::l2_normalize(&x, 1e-12)?.to_vec2::<f32>()?;
/// assert!((y[0][0] - 0.6).abs() < 1e-6 && y[1] == [0.0, 0.0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn l2_normalize(x: &Tensor, eps: f64) -> Result<Tensor> {
    if host::serves(x) && x.elem_count() > 0 {
        let width = x.dim(D::Minus1)?;
        return host::map(x, |x| norm::l2_normalize(x, width, eps));
    }
    if back::serves(x) && x.elem_count() > 0 {
        return grad::apply1(&x.contiguous()?, Normalized { eps });
    }
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(eps)?;
    Ok(x.broadcast_div(&length)?)
}
