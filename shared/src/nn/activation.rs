//! Activation functions.

use candle_core::Tensor;
use serde::Deserialize;

use super::back::{self, Activated, Gated};
use super::host;
use crate::kernels::elementwise;
use crate::runtime::kernels_take;
use crate::{Result, grad};

/// An activation function, with the names of `hidden_act` and `activation_function` in configs.
///
/// ```
/// use fauna_shared::nn::Activation;
/// let act: Activation = serde_json::from_str("\"gelu_new\"").unwrap();
/// assert_eq!(act, Activation::GeluTanh);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    /// The exact GELU, `x Φ(x)`.
    #[serde(rename = "gelu", alias = "gelu_python")]
    GeluErf,
    /// The tanh approximation of GELU.
    #[serde(
        rename = "gelu_new",
        alias = "gelu_pytorch_tanh",
        alias = "gelu_fast",
        alias = "gelu_accurate",
        alias = "gelu-tanh"
    )]
    GeluTanh,
    /// QuickGELU, `x σ(1.702 x)`.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// SiLU (swish), `x σ(x)`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// ReLU, `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
    /// ELU with alpha 1: `x` above zero, `eˣ - 1` below.
    #[serde(rename = "elu")]
    Elu,
    /// The hyperbolic tangent.
    #[serde(rename = "tanh")]
    Tanh,
    /// The logistic sigmoid, `1 / (1 + e⁻ˣ)`.
    #[serde(rename = "sigmoid")]
    Sigmoid,
    /// Shifted softplus, `ln(1 + eˣ) - ln 2`.
    #[serde(rename = "ssp")]
    ShiftedSoftplus,
}

impl Activation {
    /// Applies the function element-wise to `x`, of any shape.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if host::serves(x) {
            return host::map(x, |values| self.apply(values));
        }
        if back::serves(x) {
            return grad::apply1(&x.contiguous()?, Activated(self));
        }
        Ok(match self {
            Self::GeluErf => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::QuickGelu => (x * candle_nn::ops::sigmoid(&(x * 1.702)?)?)?,
            Self::Silu => x.silu()?,
            Self::Relu => x.relu()?,
            Self::Elu => x.elu(1.0)?,
            Self::Tanh => x.tanh()?,
            Self::Sigmoid => candle_nn::ops::sigmoid(x)?,
            Self::ShiftedSoftplus => {
                let far = (x.abs()?.neg()?.exp()? + 1.0)?.log()?;
                ((x.relu()? + far)? - std::f64::consts::LN_2)?
            }
        })
    }

    /// Gated activation, `self(gate) * up`, as in SwiGLU and GeGLU. `gate` and `up` have the same shape, which is that
    /// of the result.
    pub fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if host::serve([gate, up]) {
            return host::zip(gate, up, |gate, up, out| self.multiply(gate, up, out));
        }
        if [gate, up].into_iter().all(kernels_take) && gate.dims() == up.dims() {
            return grad::apply2(&gate.contiguous()?, &up.contiguous()?, Gated(self));
        }
        Ok((self.forward(gate)? * up)?)
    }

    /// `grad` times the derivative at `x`.
    pub(super) fn backward(self, x: &[f32], grad: &[f32], out: &mut [f32]) {
        match self {
            Self::GeluErf => elementwise::gelu_erf_backward(x, grad, out),
            Self::GeluTanh => elementwise::gelu_tanh_backward(x, grad, out),
            Self::QuickGelu => elementwise::quick_gelu_backward(x, grad, out),
            Self::Silu => elementwise::silu_backward_to(x, grad, out),
            Self::Relu => elementwise::relu_backward(x, grad, out),
            Self::Elu => elementwise::elu_backward(x, grad, out),
            Self::Tanh => elementwise::tanh_backward(x, grad, out),
            Self::Sigmoid => elementwise::sigmoid_backward(x, grad, out),
            Self::ShiftedSoftplus => elementwise::shifted_softplus_backward(x, grad, out),
        }
    }

    /// `self(gate) * up`.
    pub(super) fn multiply(self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        match self {
            Self::GeluErf => elementwise::gelu_erf_mul(gate, up, out),
            Self::GeluTanh => elementwise::gelu_tanh_mul(gate, up, out),
            Self::QuickGelu => elementwise::quick_gelu_mul(gate, up, out),
            Self::Silu => elementwise::silu_mul(gate, up, out),
            Self::Relu => elementwise::relu_mul(gate, up, out),
            Self::Elu => elementwise::elu_mul(gate, up, out),
            Self::Tanh => elementwise::tanh_mul(gate, up, out),
            Self::Sigmoid => elementwise::sigmoid_mul(gate, up, out),
            Self::ShiftedSoftplus => elementwise::shifted_softplus_mul(gate, up, out),
        }
    }

    /// The gradients of `gate` and `up` from that of [`multiply`](Self::multiply).
    pub(super) fn multiply_backward(
        self,
        gate: &[f32],
        up: &[f32],
        grad: &[f32],
        to_gate: &mut [f32],
        to_up: &mut [f32],
    ) {
        match self {
            Self::GeluErf => elementwise::gelu_erf_mul_backward(gate, up, grad, to_gate, to_up),
            Self::GeluTanh => elementwise::gelu_tanh_mul_backward(gate, up, grad, to_gate, to_up),
            Self::QuickGelu => elementwise::quick_gelu_mul_backward(gate, up, grad, to_gate, to_up),
            Self::Silu => elementwise::silu_mul_backward(gate, up, grad, to_gate, to_up),
            Self::Relu => elementwise::relu_mul_backward(gate, up, grad, to_gate, to_up),
            Self::Elu => elementwise::elu_mul_backward(gate, up, grad, to_gate, to_up),
            Self::Tanh => elementwise::tanh_mul_backward(gate, up, grad, to_gate, to_up),
            Self::Sigmoid => elementwise::sigmoid_mul_backward(gate, up, grad, to_gate, to_up),
            Self::ShiftedSoftplus => {
                elementwise::shifted_softplus_mul_backward(gate, up, grad, to_gate, to_up)
            }
        }
    }

    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            Self::GeluErf => elementwise::gelu_erf(values),
            Self::GeluTanh => elementwise::gelu_tanh(values),
            Self::QuickGelu => elementwise::quick_gelu(values),
            Self::Silu => elementwise::silu(values),
            Self::Relu => elementwise::relu(values),
            Self::Elu => elementwise::elu(values),
            Self::Tanh => elementwise::tanh(values),
            Self::Sigmoid => elementwise::sigmoid(values),
            Self::ShiftedSoftplus => elementwise::shifted_softplus(values),
        }
    }
}
