//! Operations on a tensor with a weight and perhaps a bias.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::numbers;
use crate::Result;
use crate::grad::{self, Recorded};

/// A contiguous float32 tensor in a custom operation of candle.
pub(super) type Stored<'a> = (&'a CpuStorage, &'a Layout);

/// The gradients of the input, of the weight and of the bias; `None` of what requires none or was delivered.
pub(super) type Three = [Option<Tensor>; 3];

/// An operation on `x` with `weight` and, if there is one, `bias`, with gradients of all.
pub(in crate::nn) trait WithWeight: Send + Sync + 'static {
    const NAME: &'static str;

    /// The output and its shape.
    fn forward(
        &self,
        x: Stored,
        weight: Stored,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)>;

    /// The gradients by `grad`, contiguous, of the output.
    fn back(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> candle_core::Result<Three>;
}

/// `operation` of `x`, `weight` and, if there is one, `bias`.
pub(in crate::nn) fn weighted<O: WithWeight>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    operation: O,
) -> Result<Tensor> {
    let (x, weight, operation) = (x.contiguous()?, weight.contiguous()?, Weighted(operation));
    match bias {
        Some(bias) => grad::apply3(&x, &weight, &bias.contiguous()?, operation),
        None => grad::apply2(&x, &weight, operation),
    }
}

struct Weighted<O>(O);

impl<O> Recorded for Weighted<O> {}

impl<O: WithWeight> CustomOp2 for Weighted<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.0.forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [to_x, to_weight, _] = self.0.back(x, weight, None, &grad.contiguous()?)?;
        Ok((to_x, to_weight))
    }
}

impl<O: WithWeight> CustomOp3 for Weighted<O> {
    fn name(&self) -> &'static str {
        O::NAME
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
        self.0.forward((x, x_layout), (weight, weight_layout), Some(numbers(bias, bias_layout)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.back(x, weight, Some(bias), &grad.contiguous()?)?.into())
    }
}
