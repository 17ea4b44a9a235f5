//! Linear layers.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use super::super::Matrix;
use super::weighted::{Stored, Three, WithWeight};
use super::{delivered_or, host, numbers, out, tensor_of, with_last};
use crate::Result;
use crate::grad::Recorded;
use crate::kernels::matmul::{
    self, Compute, Dense, Layout as MatrixLayout, bias_gradient, linear_input_gradient,
    linear_weight_gradient,
};
use crate::kernels::{elementwise, memory};

/// `x · weightᵀ` with a frozen weight, and with a frozen bias if there is one.
pub(in crate::nn) struct Product {
    pub weight: Matrix,
    pub bias: Option<Tensor>,
}

impl Recorded for Product {}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let y = self.weight.multiply_host(x, self.bias.as_ref(), None).map_err(out)?;
        Ok((CpuStorage::F32(y), with_last(layout, self.weight.outputs())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back =
            host::saved(grad, |grad| self.weight.multiply_back_host(grad)).map_err(out)?.map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}

/// `x · weightᵀ + bias` with gradients of all three. The weight is `(outputs, inputs)` or `(inputs, outputs)` by its
/// layout.
pub(in crate::nn) struct VariableProduct {
    pub layout: MatrixLayout,
    pub compute: Compute,
}

impl VariableProduct {
    /// The number of outputs and inputs of a weight of `shape`.
    fn sizes(&self, shape: &Shape) -> candle_core::Result<(usize, usize)> {
        let (rows, columns) = shape.dims2()?;
        Ok(match self.layout {
            MatrixLayout::OutIn => (rows, columns),
            MatrixLayout::InOut => (columns, rows),
        })
    }

    /// The gradient of `x`.
    fn back_to_x(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let (outputs, inputs) = self.sizes(weight.shape())?;
        let mut back = memory::zeros(x.elem_count());
        host::saved(weight, |values| -> Result<()> {
            let weight = floats(values, self.layout, outputs, inputs)?;
            host::saved(grad, |grad| {
                let rows = grad.len() / outputs.max(1);
                linear_input_gradient(grad, rows, &weight, self.compute, false, &mut back);
            })
        })??;
        Ok(Tensor::from_vec(back, x.shape(), x.device())?)
    }
}

impl WithWeight for VariableProduct {
    const NAME: &'static str = "linear";

    fn forward(
        &self,
        (x, x_layout): Stored,
        (weight, weight_layout): Stored,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(x, x_layout)?;
        let (outputs, inputs) = self.sizes(weight_layout.shape())?;
        let weight = floats(numbers(weight, weight_layout)?, self.layout, outputs, inputs).map_err(out)?;
        let rows = x.len() / inputs.max(1);
        let mut y = memory::zeros(rows * outputs);
        matmul::linear(x, rows, &weight, bias, self.compute, None, &mut y);
        Ok((CpuStorage::F32(y), with_last(x_layout, outputs)))
    }

    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three> {
        let to_x = x.track_op().then(|| self.back_to_x(x, weight, grad)).transpose().map_err(out)?;
        let sizes = self.sizes(weight.shape())?;
        let to_weight = |gradient: &mut [f32], accumulate| {
            host::saved(x, |x| {
                host::saved(grad, |grad| {
                    let rows = grad.len() / sizes.0.max(1);
                    linear_weight_gradient(grad, x, rows, sizes, self.layout, accumulate, gradient, None);
                })
            })?
        };
        Ok([to_x, delivered_or(weight, to_weight)?, back_to_bias(bias, grad)?])
    }
}

/// The gradient of a bias, if there is one, that was added to rows, from that of the rows.
pub(super) fn back_to_bias(bias: Option<&Tensor>, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
    let Some(bias) = bias else { return Ok(None) };
    delivered_or(bias, |gradient, accumulate| {
        host::saved(grad, |grad| {
            let rows = grad.len() / gradient.len().max(1);
            bias_gradient(grad, rows, accumulate, gradient);
        })
    })
}

/// The sum of `x`, `(…, width)`, and a bias, `(width)` or of more of the last axes, with gradients of both.
pub(in crate::nn) struct Biased;

impl Recorded for Biased {}

impl CustomOp2 for Biased {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (mut y, bias) = (memory::copy(numbers(x, x_layout)?), numbers(bias, bias_layout)?);
        if !y.is_empty() {
            elementwise::add_to_rows(bias, &mut y);
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let to_bias = back_to_bias(Some(bias), &grad)?;
        Ok((x.track_op().then_some(grad), to_bias))
    }
}

/// The weight `values`, `(outputs, inputs)` or `(inputs, outputs)` by `layout`.
pub(in crate::nn) fn floats(
    values: &[f32],
    layout: MatrixLayout,
    outputs: usize,
    inputs: usize,
) -> Result<Dense<'_>> {
    Ok(match layout {
        MatrixLayout::OutIn => Dense::of_floats(values, outputs, inputs)?,
        MatrixLayout::InOut => Dense::of_floats(values, inputs, outputs)?.transposed(),
    })
}
