//! CPU kernels with a backward pass, used if a gradient is required.
//!
//! Only gradients with respect to the input of a layer are computed. Weights that are variables are not a [`Matrix`]
//! and use the operations of candle.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::{Matrix, host};
use crate::kernels::{memory, norm};
use crate::runtime::kernels_take;

/// Whether `x` can use kernels with a backward pass: float32 on the CPU, kernels not turned off, with a gradient
/// required.
pub(super) fn serves(x: &Tensor) -> bool {
    kernels_take(x) && x.track_op()
}

/// Returns the elements of a contiguous float32 tensor in a custom operation of candle.
pub(super) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let numbers = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers[start..end]),
        None => candle_core::bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// Converts an error of this library to one of candle.
pub(super) fn out(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// Linear layer, `x · weightᵀ + bias`.
pub(super) struct Product {
    pub weight: Matrix,
    pub bias: Option<Tensor>,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let y = self.weight.multiply_host(x, self.bias.as_ref(), None).map_err(out)?;
        let mut shape = layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.weight.outputs();
        }
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back =
            host::read(grad, |grad| self.weight.multiply_back_host(grad)).map_err(out)?.map_err(out)?;
        Tensor::from_vec(back, x.shape(), x.device()).map(Some)
    }
}

/// RMS norm over the last axis, `x / sqrt(mean(x²) + eps) * weight`.
pub(super) struct RmsNormed {
    pub weight: Tensor,
    pub eps: f64,
}

impl CustomOp1 for RmsNormed {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let mut y = memory::zeros(x.len());
        host::read(&self.weight, |weight| norm::rms_norm(x, weight, self.eps, &mut y)).map_err(out)?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut back = memory::zeros(x.elem_count());
        host::read(&self.weight, |weight| {
            host::read(x, |x| {
                host::read(grad, |grad| norm::rms_norm_backward(x, weight, self.eps, grad, &mut back))
            })
        })
        .and_then(|done| done)
        .and_then(|done| done)
        .map_err(out)?;
        Tensor::from_vec(back, x.shape(), x.device()).map(Some)
    }
}
