//! Kernels that know their way back: what serves on the CPU where somebody asks for a gradient.
//!
//! A layer's weights stand still here: the slope is taken against what flows through it. Where weights themselves are
//! variables they are no [`Matrix`], and candle's own operations serve.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::{Matrix, host};
use crate::kernels::{memory, norm};
use crate::runtime::kernels_take;

/// Whether kernels with a way back may serve `x`: float32 on the CPU, kernels not turned off, with a gradient asked for.
pub(super) fn serves(x: &Tensor) -> bool {
    kernels_take(x) && x.track_op()
}

/// The numbers of a contiguous float32 tensor, as an operation of candle gets them.
pub(super) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let numbers = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers[start..end]),
        None => candle_core::bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// An error of this library as one of candle's.
pub(super) fn out(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// `x · weightᵀ + bias`.
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

/// `x / sqrt(mean(x²) + eps) * weight` over the last axis.
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
