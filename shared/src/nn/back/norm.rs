//! Norms, softmax and L2 normalization.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Shape, Tensor};

use super::weighted::{Stored, Three, WithWeight};
use super::{add_or_write, delivered_or, host, numbers, out, tensor_of};
use crate::grad::Recorded;
use crate::kernels::{memory, norm};

/// The place of the gradient of a parameter of a norm, if it requires one.
fn wanted(parameter: &Tensor) -> Option<Vec<f32>> {
    parameter.track_op().then(|| memory::zeros(parameter.elem_count()))
}

/// The gradient of a parameter of a norm, delivered or returned.
fn delivered(parameter: Option<&Tensor>, gradient: Option<Vec<f32>>) -> candle_core::Result<Option<Tensor>> {
    let (Some(parameter), Some(gradient)) = (parameter, gradient) else { return Ok(None) };
    delivered_or(parameter, |to, accumulate| {
        add_or_write(to, accumulate, &gradient);
        Ok(())
    })
}

/// RMS norm over the last axis, `x / sqrt(mean(x²) + eps) * weight`.
pub(in crate::nn) struct RmsNormed {
    pub eps: f64,
}

impl WithWeight for RmsNormed {
    const NAME: &'static str = "rms-norm";

    fn forward(
        &self,
        (x, x_layout): Stored,
        (weight, weight_layout): Stored,
        _: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(x, x_layout)?;
        let mut y = memory::zeros(x.len());
        norm::rms_norm(x, numbers(weight, weight_layout)?, self.eps, &mut y);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three> {
        let mut to_x = memory::zeros(x.elem_count());
        let mut to_weight = wanted(weight);
        host::saved_three([x, weight, grad], |x, weight, grad| {
            norm::rms_norm_backward_weight(x, weight, self.eps, grad, &mut to_x, to_weight.as_deref_mut());
        })
        .map_err(out)?;
        let to_x = x.track_op().then(|| tensor_of(to_x, x)).transpose()?;
        Ok([to_x, delivered(Some(weight), to_weight)?, None])
    }
}

/// Layer norm over the last axis, `(x - mean) / sqrt(var + eps) * weight + bias`.
pub(in crate::nn) struct LayerNormed {
    pub eps: f64,
}

impl WithWeight for LayerNormed {
    const NAME: &'static str = "layer-norm";

    fn forward(
        &self,
        (x, x_layout): Stored,
        (weight, weight_layout): Stored,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(x, x_layout)?;
        let mut y = memory::zeros(x.len());
        norm::layer_norm(x, numbers(weight, weight_layout)?, bias, self.eps, &mut y);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three> {
        let mut to_x = memory::zeros(x.elem_count());
        let (mut to_weight, mut to_bias) = (wanted(weight), bias.and_then(wanted));
        host::saved_three([x, weight, grad], |x, weight, grad| {
            let (to_weight, to_bias) = (to_weight.as_deref_mut(), to_bias.as_deref_mut());
            norm::layer_norm_backward(x, weight, self.eps, grad, &mut to_x, to_weight, to_bias);
        })
        .map_err(out)?;
        let to_x = x.track_op().then(|| tensor_of(to_x, x)).transpose()?;
        Ok([to_x, delivered(Some(weight), to_weight)?, delivered(bias, to_bias)?])
    }
}

/// Group norm of `(batch, time, channels)`.
pub(in crate::nn) struct GroupNormed {
    pub groups: usize,
    /// Frames (or pixels) of each sequence.
    pub time: usize,
    pub eps: f64,
}

impl WithWeight for GroupNormed {
    const NAME: &'static str = "group-norm";

    fn forward(
        &self,
        (x, x_layout): Stored,
        (weight, weight_layout): Stored,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some(bias) = bias else { candle_core::bail!("a group norm has a bias") };
        let (x, weight) = (numbers(x, x_layout)?, numbers(weight, weight_layout)?);
        let mut y = memory::zeros(x.len());
        norm::group_norm(x, self.time, self.groups, weight, bias, self.eps, None, &mut y);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three> {
        let mut to_x = memory::zeros(x.elem_count());
        let (mut to_weight, mut to_bias) = (wanted(weight), bias.and_then(wanted));
        host::saved_three([x, weight, grad], |x, weight, grad| {
            let (to_weight, to_bias) = (to_weight.as_deref_mut(), to_bias.as_deref_mut());
            norm::group_norm_backward(
                x,
                self.time,
                self.groups,
                weight,
                self.eps,
                grad,
                &mut to_x,
                to_weight,
                to_bias,
            );
        })
        .map_err(out)?;
        let to_x = x.track_op().then(|| tensor_of(to_x, x)).transpose()?;
        Ok([to_x, delivered(Some(weight), to_weight)?, delivered(bias, to_bias)?])
    }
}

/// Softmax over the last axis.
pub(in crate::nn) struct Softmaxed;

impl Recorded for Softmaxed {
    const READS_OUTPUT: bool = true;
}

impl CustomOp1 for Softmaxed {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut y = memory::copy(numbers(storage, layout)?);
        norm::softmax(&mut y, layout.shape().dim(D::Minus1)?);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let width = x.dim(D::Minus1)?;
        let mut back = host::saved(grad, memory::copy).map_err(out)?;
        host::saved(y, |y| norm::softmax_backward(y, width, &mut back)).map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}

/// `x` over its L2 norm along the last axis, or over `eps` where that is larger.
pub(in crate::nn) struct Normalized {
    pub eps: f64,
}

impl Recorded for Normalized {}

impl CustomOp1 for Normalized {
    fn name(&self) -> &'static str {
        "l2-normalize"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut y = memory::copy(numbers(storage, layout)?);
        norm::l2_normalize(&mut y, layout.shape().dim(D::Minus1)?, self.eps);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let width = x.dim(D::Minus1)?;
        let mut back = host::saved(grad, memory::copy).map_err(out)?;
        host::saved(x, |x| norm::l2_normalize_backward(x, width, self.eps, &mut back)).map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}
