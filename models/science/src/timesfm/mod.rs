//! TimesFM: a decoder over patches of one series (Das et al. 2024, arXiv 2310.10688).
//!
//! [`patched`] is the network of 1.0 and 2.0, [`v2_5`] that of 2.5. Both load the releases in the format of transformers and
//! the original ones. One forward pass predicts `horizon_length` steps; beyond, the point forecasts are appended to the
//! series, as in the original code.

pub mod patched;
mod patched_pipeline;
mod pipeline;
mod release;
pub mod v2_5;
mod v2_5_pipeline;

use candle_core::{DType, Tensor};
use fauna_shared::nn::{Activation, Linear, add};
use fauna_shared::weights::{MatrixUse, Piece, Weights};
use fauna_shared::{Error, Result};

pub use patched_pipeline::PatchedPipeline;
pub(crate) use patched_pipeline::sample as patched_sample;
pub use pipeline::TimesFmPipeline;
pub(crate) use release::{PATCHED, V2_5, rename_2_5, rename_patched};
pub use v2_5_pipeline::TimesFm25Pipeline;
pub(crate) use v2_5_pipeline::sample as v2_5_sample;

/// `output(activation(input(x))) + residual(x)`.
pub struct ResidualBlock {
    input_layer: Linear,
    output_layer: Linear,
    residual_layer: Linear,
    activation: Activation,
}

impl ResidualBlock {
    /// Loads the block at `w`; `sizes` are those of the input, the hidden layer and the output.
    ///
    /// # Errors
    /// Errors of the tensors.
    pub fn load(w: &Weights, sizes: [usize; 3], bias: bool, activation: Activation) -> Result<Self> {
        let [inputs, hidden, outputs] = sizes;
        Ok(Self {
            input_layer: w.linear_bias_if(bias, "input_layer", inputs, hidden)?,
            output_layer: w.linear_bias_if(bias, "output_layer", hidden, outputs)?,
            residual_layer: w.linear_bias_if(bias, "residual_layer", inputs, outputs)?,
            activation,
        })
    }

    /// `x` is `(…, inputs)`; returns `(…, outputs)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.input_layer.forward_then(x, self.activation)?;
        add(&self.output_layer.forward(&hidden)?, &self.residual_layer.forward(x)?)
    }
}

/// Maximum number of patches of a context; 2.5 has 512.
const MAX_PATCHES: usize = 8192;

/// Checks the number of patches of a context: memory grows with its square.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) that names both keys.
pub(crate) fn check_patches(context_length: usize, patch_length: usize) -> Result<()> {
    match context_length / patch_length.max(1) {
        patches if patches <= MAX_PATCHES => Ok(()),
        patches => Err(Error::unsupported(format!(
            "context_length {context_length} is {patches} times patch_length {patch_length}"
        ))
        .hint(format!("at most {MAX_PATCHES} patches are supported"))),
    }
}

/// The projections of queries, keys and values as one linear layer, from three in the format of transformers or one in the
/// original release.
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

/// The scale of the queries per dimension, `softplus(scaling) / (ln 2 · √head_dim)`, `(head_dim)`.
pub(crate) fn query_scale(w: &Weights, width: usize) -> Result<Tensor> {
    let scaling = w.tensor("scaling", &[width])?;
    let x = scaling.to_dtype(DType::F32)?;
    // Linear above 20, as in PyTorch.
    let soft = (x.minimum(20f32)?.exp()? + 1.0)?.log()?;
    let softplus = x.ge(20f32)?.where_cond(&x, &soft)?;
    let factor = std::f64::consts::LOG2_E / (width as f64).sqrt();
    Ok((softplus * factor)?.to_dtype(scaling.dtype())?)
}
