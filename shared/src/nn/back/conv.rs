//! Convolutions, max pooling and padding.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::super::PadMode;
use super::linear::back_to_bias;
use super::weighted::{Stored, Three, WithWeight};
use super::{delivered_or, host, numbers, out, tensor_of, written_or_added};
use crate::Result;
use crate::grad::Recorded;
use crate::kernels::conv::{self, Taps};
use crate::kernels::conv2d::{self, Pictures, Window};
use crate::kernels::memory;

/// A one-dimensional convolution of `x`, `(batch, time, channels)`, to `frames` frames, with gradients of `x`, of the
/// weight, whose elements are `(outputs, kernel, channels)` and whose first axis is the outputs, and of the bias,
/// `(outputs)`.
pub(in crate::nn) struct Convolution {
    pub taps: Taps,
    pub frames: usize,
}

impl Convolution {
    /// The convolution of each of the sequences of `x`, `(batch, time, channels)`: `(batch, frames, outputs)`.
    pub(in crate::nn) fn convolve(
        &self,
        x: &[f32],
        batch: usize,
        channels: usize,
        weight: &[f32],
        bias: Option<&[f32]>,
        outputs: usize,
    ) -> Vec<f32> {
        let mut y = memory::zeros(batch * self.frames * outputs);
        let length = x.len() / batch.max(1);
        let sequences = x.chunks_exact(length.max(1)).zip(y.chunks_exact_mut((self.frames * outputs).max(1)));
        sequences.for_each(|(x, y)| conv::convolve(x, channels, self.taps, weight, bias, y));
        y
    }

    /// Writes the gradients that `to` has.
    fn write(&self, x: &Tensor, weight: &Tensor, grad: &Tensor, to: conv::Gradients) -> Result<()> {
        let (batch, _, channels) = x.dims3()?;
        host::saved_three([x, weight, grad], |x, weight, grad| {
            conv::convolve_backward(x, batch, channels, self.taps, weight, grad, to);
        })
    }
}

impl WithWeight for Convolution {
    const NAME: &'static str = "conv1d";

    fn forward(
        &self,
        (x, x_layout): Stored,
        (weight, weight_layout): Stored,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, _, channels) = x_layout.shape().dims3()?;
        let outputs = weight_layout.shape().dim(0)?;
        let (x, weight) = (numbers(x, x_layout)?, numbers(weight, weight_layout)?);
        let y = self.convolve(x, batch, channels, weight, bias, outputs);
        Ok((CpuStorage::F32(y), (batch, self.frames, outputs).into()))
    }

    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three> {
        let to_x = wanted(x, |gradient| {
            let to = conv::Gradients { x: Some(gradient), ..conv::Gradients::default() };
            self.write(x, weight, grad, to)
        })?;
        let to_weight = delivered_or(weight, |gradient, accumulate| {
            written_or_added(gradient, accumulate, |gradient| {
                let to = conv::Gradients { weight: Some(gradient), ..conv::Gradients::default() };
                self.write(x, weight, grad, to)
            })
        })?;
        Ok([to_x, to_weight, back_to_bias(bias, grad)?])
    }
}

/// A two-dimensional convolution of `x`, `(batch, height, width, channels)`, to images of `size` (height and width), with
/// gradients of `x`, of the weight, `(kernel, kernel, channels, outputs)`, and of the bias, `(outputs)`.
pub(in crate::nn) struct Convolution2d {
    pub window: Window,
    pub size: (usize, usize),
}

impl Convolution2d {
    /// Writes the gradients that `to` has.
    fn write(&self, x: &Tensor, weight: &Tensor, grad: &Tensor, to: conv2d::Gradients) -> Result<()> {
        let (_, height, width, channels) = x.dims4()?;
        host::saved_three([x, weight, grad], |data, weight, grad| {
            let x = Pictures { data, height, width, channels };
            conv2d::convolve_backward(x, &self.window, weight, self.size, grad, to);
        })
    }
}

impl WithWeight for Convolution2d {
    const NAME: &'static str = "conv2d";

    fn forward(
        &self,
        (x, x_layout): Stored,
        (weight, weight_layout): Stored,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = x_layout.shape().dims4()?;
        let (_, _, _, outputs) = weight_layout.shape().dims4()?;
        let x = Pictures { data: numbers(x, x_layout)?, height, width, channels };
        let mut y = memory::zeros(batch * self.size.0 * self.size.1 * outputs);
        let weight = numbers(weight, weight_layout)?;
        conv2d::convolve(x, &self.window, weight, bias, None, self.size, &mut y);
        Ok((CpuStorage::F32(y), (batch, self.size.0, self.size.1, outputs).into()))
    }

    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three> {
        let to_x = wanted(x, |gradient| {
            let to = conv2d::Gradients { x: Some(gradient), ..conv2d::Gradients::default() };
            self.write(x, weight, grad, to)
        })?;
        let to_weight = delivered_or(weight, |gradient, accumulate| {
            written_or_added(gradient, accumulate, |gradient| {
                let to = conv2d::Gradients { weight: Some(gradient), ..conv2d::Gradients::default() };
                self.write(x, weight, grad, to)
            })
        })?;
        Ok([to_x, to_weight, back_to_bias(bias, grad)?])
    }
}

/// Max pooling of `(batch, height, width, channels)` with a kernel and a stride of 2; the gradient goes to the first
/// largest pixel of each window.
pub(in crate::nn) struct MaxPooled;

impl Recorded for MaxPooled {}

impl CustomOp1 for MaxPooled {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, height, width, channels) = layout.shape().dims4()?;
        let x = Pictures { data: numbers(storage, layout)?, height, width, channels };
        let mut y = memory::zeros(batch * (height / 2) * (width / 2) * channels);
        conv2d::max_pool(x, &mut y);
        Ok((CpuStorage::F32(y), (batch, height / 2, width / 2, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, height, width, channels) = x.dims4()?;
        let mut back = memory::zeros(x.elem_count());
        host::saved(x, |data| {
            let x = Pictures { data, height, width, channels };
            host::saved(grad, |grad| conv2d::max_pool_backward(x, grad, &mut back))
        })
        .and_then(|done| done)
        .map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}

/// `(batch, time, channels)` with `left` and `right` more frames before and after each sequence.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Padded {
    pub left: usize,
    pub right: usize,
    pub mode: PadMode,
}

impl Padded {
    /// The frame of `time` frames that padded frame `t` is; `None` if it is zeros.
    pub(in crate::nn) fn source(&self, t: usize, time: usize) -> Option<usize> {
        let (t, last) = (t as isize - self.left as isize, time as isize - 1);
        let from = match self.mode {
            PadMode::Zeros => t,
            PadMode::Reflect => last - (last - t.abs()).abs(),
            PadMode::Replicate => t.clamp(0, last),
            PadMode::Circular => t.rem_euclid(time.max(1) as isize),
        };
        usize::try_from(from).ok().filter(|from| *from < time)
    }

    /// The padded sequences of `x`, `(batch, time, channels)`.
    pub(in crate::nn) fn pad(&self, x: &[f32], batch: usize, time: usize, channels: usize) -> Vec<f32> {
        let length = self.left + time + self.right;
        let mut y = memory::zeros(batch * length * channels);
        for n in 0..batch {
            let (x, y) = (&x[n * time * channels..], &mut y[n * length * channels..]);
            memory::copy_to(&x[..time * channels], &mut y[self.left * channels..][..time * channels]);
            for t in self.edges(time) {
                if let Some(from) = self.source(t, time) {
                    y[t * channels..][..channels].copy_from_slice(&x[from * channels..][..channels]);
                }
            }
        }
        y
    }

    /// The frames that are added to `time` frames.
    fn edges(&self, time: usize) -> impl Iterator<Item = usize> {
        (0..self.left).chain(self.left + time..self.left + time + self.right)
    }
}

impl Recorded for Padded {}

impl CustomOp1 for Padded {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, time, channels) = layout.shape().dims3()?;
        let y = self.pad(numbers(storage, layout)?, batch, time, channels);
        Ok((CpuStorage::F32(y), (batch, self.left + time + self.right, channels).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (batch, time, channels) = x.dims3()?;
        let (length, mut back) = (self.left + time + self.right, memory::zeros(x.elem_count()));
        host::saved(grad, |grad| {
            for n in 0..batch {
                let (grad, to) = (&grad[n * length * channels..], &mut back[n * time * channels..]);
                memory::copy_to(&grad[self.left * channels..][..time * channels], &mut to[..time * channels]);
                for t in self.edges(time) {
                    if let Some(from) = self.source(t, time) {
                        let to = to[from * channels..][..channels].iter_mut();
                        to.zip(&grad[t * channels..][..channels]).for_each(|(to, grad)| *to += grad);
                    }
                }
            }
        })
        .map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}

/// The gradient of `x`, not a variable, that `write` writes; `None` if it requires none.
fn wanted(x: &Tensor, write: impl FnOnce(&mut [f32]) -> Result<()>) -> candle_core::Result<Option<Tensor>> {
    if !x.track_op() {
        return Ok(None);
    }
    let mut gradient = memory::zeros(x.elem_count());
    write(&mut gradient).map_err(out)?;
    tensor_of(gradient, x).map(Some)
}
