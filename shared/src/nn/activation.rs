//! Activation functions by the names configs use.

use candle_core::Tensor;
use serde::Deserialize;

use super::host;
use crate::Result;
use crate::kernels::elementwise;

/// An elementwise non-linearity, spelled as `hidden_act`, `activation_function` or `afn` spell it.
///
/// ```
/// use fauna_shared::nn::Activation;
/// let act: Activation = serde_json::from_str("\"gelu_new\"").unwrap();
/// assert_eq!(act, Activation::GeluTanh);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Activation {
    /// `x Φ(x)` with the exact error function.
    #[serde(rename = "gelu", alias = "gelu_python")]
    GeluErf,
    /// The tanh form of GELU.
    #[serde(
        rename = "gelu_new",
        alias = "gelu_pytorch_tanh",
        alias = "gelu_fast",
        alias = "gelu_accurate",
        alias = "gelu-tanh"
    )]
    GeluTanh,
    /// `x σ(1.702 x)`.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `x σ(x)`, also called swish.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
    /// `x` above zero, `eˣ - 1` below.
    #[serde(rename = "elu")]
    Elu,
    /// Hyperbolic tangent.
    #[serde(rename = "tanh")]
    Tanh,
    /// `1 / (1 + e⁻ˣ)`.
    #[serde(rename = "sigmoid")]
    Sigmoid,
    /// `ln(1 + eˣ) - ln 2`, the softplus that is zero at zero.
    #[serde(rename = "ssp")]
    ShiftedSoftplus,
}

impl Activation {
    /// The function at every element of `x`, any shape.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        if host::serves(x) {
            return host::map(x, |values| self.apply(values));
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

    /// `self(gate) * up`, the gated product of SwiGLU and its relatives; one shape for both.
    pub fn gated(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        if host::serves(gate) && host::serves(up) && self == Self::Silu {
            return host::zip(gate, up, elementwise::silu_mul);
        }
        Ok((self.forward(gate)? * up)?)
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
