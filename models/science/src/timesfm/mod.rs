//! TimesFM: a decoder over patches of one series (Das et al. 2024, arXiv 2310.10688).
//!
//! [`patched`] is what 1.0 and 2.0 are; [`v2_5`] is newer in nearly every part. Both load transformers' releases and the
//! original ones. One pass tells `horizon_length` steps; a longer horizon is reached by taking the point forecasts for
//! what happened and going on from there, as the original program does.

pub mod patched;
mod patched_pipeline;
mod pipeline;
mod release;
pub mod v2_5;
mod v2_5_pipeline;

use candle_core::Tensor;
use fauna_shared::nn::{Activation, Linear, add};
use fauna_shared::weights::{MatrixUse, Piece, Weights};
use fauna_shared::{Error, Result};

pub use patched_pipeline::PatchedPipeline;
pub(crate) use patched_pipeline::sample as patched_sample;
pub(crate) use release::{PATCHED, V2_5, rename_2_5, rename_patched};
pub use v2_5_pipeline::V25Pipeline;
pub(crate) use v2_5_pipeline::sample as v2_5_sample;

/// `output(activation(input(x))) + residual(x)`.
pub struct ResidualBlock {
    input_layer: Linear,
    output_layer: Linear,
    residual_layer: Linear,
    activation: Activation,
}

impl ResidualBlock {
    /// The block at `w`; `sizes`: of what goes in, of what is inside, of what comes out.
    ///
    /// # Errors
    /// As any load.
    pub fn load(w: &Weights, sizes: [usize; 3], bias: bool, activation: Activation) -> Result<Self> {
        let [inputs, hidden, outputs] = sizes;
        Ok(Self {
            input_layer: w.linear_bias_if(bias, "input_layer", inputs, hidden)?,
            output_layer: w.linear_bias_if(bias, "output_layer", hidden, outputs)?,
            residual_layer: w.linear_bias_if(bias, "residual_layer", inputs, outputs)?,
            activation,
        })
    }

    /// `x`: `(…, inputs)`; gives `(…, outputs)`.
    ///
    /// # Errors
    /// None that are to be expected.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.input_layer.forward_then(x, self.activation)?;
        add(&self.output_layer.forward(&hidden)?, &self.residual_layer.forward(x)?)
    }
}

/// Patches of a context at most, each of which sees all before it: 2.5 has 512.
const MOST_PATCHES: usize = 8192;

/// Refuses a context of more patches than any release has: a pass takes memory by the square of their number.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) that names both keys.
pub(crate) fn check_patches(context_length: usize, patch_length: usize) -> Result<()> {
    match context_length / patch_length.max(1) {
        patches if patches <= MOST_PATCHES => Ok(()),
        patches => Err(Error::unsupported(format!(
            "context_length {context_length} is {patches} times patch_length {patch_length}"
        ))
        .hint(format!("at most {MOST_PATCHES} patches are supported"))),
    }
}

/// Queries, keys and values as one map: all of the first, then of the second, then of the third. Transformers stores
/// three, the original release one.
pub(crate) fn joined_projections(
    w: &Weights,
    inputs: usize,
    [queries, keys]: [usize; 2],
    bias: bool,
) -> Result<Linear> {
    if w.has("qkv_proj", false) {
        return w.linear_bias_if(bias, "qkv_proj", inputs, queries + 2 * keys);
    }
    let pieces = |kind: &str| {
        [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
            .map(|(name, rows)| Piece::whole(format!("{name}.{kind}"), rows))
    };
    let weight = w.stack(MatrixUse::Linear, &pieces("weight"), inputs)?;
    let bias = if bias { Some(w.stack_bias(&pieces("bias"))?) } else { None };
    Ok(Linear::new(weight, bias))
}

/// What queries are multiplied by, number by number: `softplus(scaling) / (ln 2 · √width)`.
pub(crate) fn query_scale(w: &Weights, width: usize) -> Result<Tensor> {
    let scaling = w.tensor("scaling", &[width])?;
    let factor = std::f64::consts::LOG2_E / (width as f64).sqrt();
    let softplus = |x: f32| match f64::from(x) {
        // As in PyTorch: beyond this, nothing is left to add.
        x if x > 20.0 => x,
        x => x.exp().ln_1p(),
    };
    let values = crate::series::floats(&scaling)?;
    let values: Vec<f32> = values.into_iter().map(|x| (softplus(x) * factor) as f32).collect();
    Ok(Tensor::from_vec(values, width, scaling.device())?.to_dtype(scaling.dtype())?)
}
