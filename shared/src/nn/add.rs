//! Residual sums and concatenation.

use candle_core::Tensor;
use candle_core::shape::Dim;

use super::back::{Biased, Summed};
use super::host;
use crate::kernels::elementwise;
use crate::runtime::kernels_take;
use crate::{Result, grad};

/// Returns `x + y`, of the same shape, as in a residual connection.
///
/// On the CPU it runs on the threads of the kernels, so that no other threads are woken between two layers.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    match host::serve([x, y]) {
        true => host::zip(x, y, elementwise::add),
        false if kernels_take(x) && kernels_take(y) && x.dims() == y.dims() => {
            grad::apply2(&x.contiguous()?, &y.contiguous()?, Summed)
        }
        false => Ok((x + y)?),
    }
}

/// Returns `x + y`, in which `y` is repeated along the first axes of `x`, such as position embeddings, `(sequence,
/// hidden_size)`, in every row of a batch, `(batch, sequence, hidden_size)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[[1f32], [2.0]], [[3.0], [4.0]]], &Device::Cpu)?;
/// let positions = Tensor::new(&[[10f32], [20.0]], &Device::Cpu)?;
/// let sum = fauna_shared::nn::add_repeated(&x, &positions)?;
/// assert_eq!(sum.flatten_all()?.to_vec1::<f32>()?, [11.0, 22.0, 13.0, 24.0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if the shapes do not match.
pub fn add_repeated(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let dims = y.dims();
    let own = &dims[dims.iter().take_while(|dim| **dim == 1).count()..];
    let tracked = x.track_op() || y.track_op();
    match tracked && kernels_take(x) && kernels_take(y) && dims.len() <= x.rank() && x.dims().ends_with(own) {
        true => grad::apply2(&x.contiguous()?, &y.contiguous()?, Biased),
        false => Ok(x.broadcast_add(y)?),
    }
}

/// Concatenates `parts` along `axis`, as [`Tensor::cat`].
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if the shapes do not match.
pub fn concat(parts: &[&Tensor], axis: impl Dim) -> Result<Tensor> {
    match parts {
        [] => Ok(Tensor::cat(parts, axis)?),
        [first, ..] => grad::concat(parts, axis.to_index(first.shape(), "concat")?),
    }
}
