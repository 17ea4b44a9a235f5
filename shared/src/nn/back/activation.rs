//! Element-wise operations.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use super::super::Activation;
use super::{host, numbers, out, tensor_of};
use crate::grad::Recorded;
use crate::kernels::{elementwise, memory};

/// An activation function.
pub(in crate::nn) struct Activated(pub Activation);

impl Recorded for Activated {}

impl CustomOp1 for Activated {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut y = memory::copy(numbers(storage, layout)?);
        self.0.apply(&mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut back = memory::zeros(x.elem_count());
        host::saved(x, |x| host::saved(grad, |grad| self.0.backward(x, grad, &mut back)))
            .and_then(|done| done)
            .map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}

/// A gated activation, `activation(gate) * up`.
pub(in crate::nn) struct Gated(pub Activation);

impl Recorded for Gated {}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let gate = numbers(gate, gate_layout)?;
        let mut y = memory::zeros(gate.len());
        self.0.multiply(gate, numbers(up, up_layout)?, &mut y);
        Ok((CpuStorage::F32(y), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut to_gate, mut to_up) = (memory::zeros(gate.elem_count()), memory::zeros(gate.elem_count()));
        host::saved(gate, |gate| {
            host::saved(up, |up| {
                host::saved(grad, |grad| {
                    self.0.multiply_backward(gate, up, grad, &mut to_gate, &mut to_up);
                })
            })
        })
        .and_then(|done| done)
        .and_then(|done| done)
        .map_err(out)?;
        Ok((Some(tensor_of(to_gate, gate)?), Some(tensor_of(to_up, up)?)))
    }
}

/// The clamped SwiGLU of gpt-oss over interleaved pairs.
pub(in crate::nn) struct ClampedSwiglu {
    pub alpha: f32,
    pub limit: f32,
}

impl Recorded for ClampedSwiglu {}

impl CustomOp1 for ClampedSwiglu {
    fn name(&self) -> &'static str {
        "clamped-swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let pairs = numbers(storage, layout)?;
        let mut y = memory::zeros(pairs.len() / 2);
        elementwise::clamped_swiglu(pairs, self.alpha, self.limit, &mut y);
        let mut shape = layout.dims().to_vec();
        shape.last_mut().into_iter().for_each(|last| *last /= 2);
        Ok((CpuStorage::F32(y), shape.into()))
    }

    fn bwd(&self, pairs: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut back = memory::zeros(pairs.elem_count());
        let (alpha, limit) = (self.alpha, self.limit);
        host::saved(pairs, |x| {
            host::saved(grad, |grad| {
                elementwise::clamped_swiglu_backward(x, alpha, limit, grad, &mut back);
            })
        })
        .and_then(|done| done)
        .map_err(out)?;
        tensor_of(back, pairs).map(Some)
    }
}

/// The sum of two tensors of one shape.
pub(crate) struct Summed;

impl Recorded for Summed {
    const IS_KEPT: bool = true;
}

impl CustomOp2 for Summed {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(x, x_layout)?;
        let mut sum = memory::zeros(x.len());
        elementwise::add(x, numbers(y, y_layout)?, &mut sum);
        Ok((CpuStorage::F32(sum), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = |x: &Tensor| x.track_op().then(|| grad.clone());
        Ok((wanted(x), wanted(y)))
    }
}
