//! Norms, softmax and L2 normalization.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, Layout, Shape, Tensor};

use super::weighted::{Stored, Three, WithWeight};
use super::{add_or_write, delivered_or, host, numbers, out, tensor_of};
use crate::grad::Recorded;
use crate::kernels::{memory, norm};

/// The gradients of the parameters of a norm, of which the last may be missing, delivered or returned.
fn parameters(
    weight: (&Tensor, &[f32]),
    bias: Option<(&Tensor, &[f32])>,
) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
    let one = |(parameter, gradient): (&Tensor, &[f32])| {
        delivered_or(parameter, |to, accumulate| {
            add_or_write(to, accumulate, gradient);
            Ok(())
        })
    };
    Ok((one(weight)?, bias.map(one).transpose()?.flatten()))
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
        let mut to_weight = weight.track_op().then(|| memory::zeros(weight.elem_count()));
        host::saved(weight, |w| {
            host::saved(x, |x| {
                host::saved(grad, |grad| {
                    let to_weight = to_weight.as_deref_mut();
                    norm::rms_norm_backward_weight(x, w, self.eps, grad, &mut to_x, to_weight);
                })
            })
        })
        .and_then(|done| done)
        .and_then(|done| done)
        .map_err(out)?;
        let (to_weight, _) = match &to_weight {
            Some(gradient) => parameters((weight, gradient), None)?,
            None => (None, None),
        };
        Ok([x.track_op().then(|| tensor_of(to_x, x)).transpose()?, to_weight, None])
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
        let wanted = |parameter: &Tensor| parameter.track_op().then(|| memory::zeros(parameter.elem_count()));
        let (mut to_weight, mut to_bias) = (wanted(weight), bias.and_then(wanted));
        host::saved(weight, |w| {
            host::saved(x, |x| {
                host::saved(grad, |grad| {
                    let (to_weight, to_bias) = (to_weight.as_deref_mut(), to_bias.as_deref_mut());
                    norm::layer_norm_backward(x, w, self.eps, grad, &mut to_x, to_weight, to_bias);
                })
            })
        })
        .and_then(|done| done)
        .and_then(|done| done)
        .map_err(out)?;
        let one = |parameter: Option<&Tensor>, gradient: Option<Vec<f32>>| match (parameter, gradient) {
            (Some(parameter), Some(gradient)) => Ok(parameters((parameter, &gradient), None)?.0),
            _ => Ok::<_, candle_core::Error>(None),
        };
        let to_x = x.track_op().then(|| tensor_of(to_x, x)).transpose()?;
        Ok([to_x, one(Some(weight), to_weight)?, one(bias, to_bias)?])
    }
}

/// Group norm of `(batch, time, channels)`.
pub(in crate::nn) struct GroupNormed {
    pub groups: usize,
    /// Frames (or pixels) of each sequence.
    pub time: usize,
    pub eps: f64,
}

impl Recorded for GroupNormed {}

impl CustomOp3 for GroupNormed {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, weight) = (numbers(x, x_layout)?, numbers(weight, weight_layout)?);
        let mut y = memory::zeros(x.len());
        let bias = numbers(bias, bias_layout)?;
        norm::group_norm(x, self.time, self.groups, weight, bias, self.eps, None, &mut y);
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut to_x = memory::zeros(x.elem_count());
        let (mut to_weight, mut to_bias) =
            (memory::zeros(weight.elem_count()), memory::zeros(bias.elem_count()));
        host::saved(weight, |w| {
            host::saved(x, |x| {
                host::saved(grad, |grad| {
                    norm::group_norm_backward(
                        x,
                        self.time,
                        self.groups,
                        w,
                        self.eps,
                        grad,
                        &mut to_x,
                        Some(&mut to_weight),
                        Some(&mut to_bias),
                    );
                })
            })
        })
        .and_then(|done| done)
        .and_then(|done| done)
        .map_err(out)?;
        let (to_weight, to_bias) = parameters((weight, &to_weight), Some((bias, &to_bias)))?;
        Ok((x.track_op().then(|| tensor_of(to_x, x)).transpose()?, to_weight, to_bias))
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
