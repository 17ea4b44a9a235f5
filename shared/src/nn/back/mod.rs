//! CPU kernels with a backward pass, used if a gradient is required.

mod activation;
mod conv;
mod linear;
mod lstm;
mod norm;
mod rows;
mod weighted;

use candle_core::{CpuStorage, Layout, Shape, Tensor};

use super::host;
use crate::kernels::{elementwise, memory};
use crate::runtime::kernels_take;
use crate::{Result, grad};

pub(crate) use activation::Summed;
pub(super) use activation::{Activated, ClampedSwiglu, Gated};
pub(super) use conv::{Convolution, Convolution2d, MaxPooled, Padded};
pub(super) use linear::{Biased, Product, VariableProduct, floats};
pub(super) use lstm::{Recurrence, VariableRecurrence};
pub(super) use norm::{GroupNormed, LayerNormed, Normalized, RmsNormed, Softmaxed};
pub use rows::select_rows;
pub(super) use rows::{Rows, gather};
pub(super) use weighted::weighted;

/// Whether `x` can use kernels with a backward pass: float32 on the CPU, kernels not turned off, with a gradient
/// required.
pub(super) fn serves(x: &Tensor) -> bool {
    kernels_take(x) && x.track_op()
}

/// Returns the elements of a contiguous float32 tensor in a custom operation of candle.
pub(crate) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let numbers = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers[start..end]),
        None => candle_core::bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// Converts an error of this library to one of candle.
pub(crate) fn out(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The gradient `values` of `x`, row-major, as a tensor of its shape.
fn tensor_of(values: Vec<f32>, x: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, x.shape(), x.device())
}

/// The gradient of `x` that `write` writes; `None` if `x` is a variable or a recorded output of the running backward pass,
/// to whose gradient it was written, or requires none.
fn delivered_or(
    x: &Tensor,
    write: impl Fn(&mut [f32], bool) -> Result<()>,
) -> candle_core::Result<Option<Tensor>> {
    if !x.track_op() {
        return Ok(None);
    }
    let mut written = Ok(());
    if grad::deliver(x, |gradient, accumulate| written = write(gradient, accumulate)).map_err(out)? {
        return written.map(|()| None).map_err(out);
    }
    let mut gradient = memory::zeros(x.elem_count());
    write(&mut gradient, false).map_err(out)?;
    tensor_of(gradient, x).map(Some)
}

/// Writes `new` over `gradient`, or adds it if `accumulate`.
fn add_or_write(gradient: &mut [f32], accumulate: bool, new: &[f32]) {
    match accumulate {
        true => elementwise::add_to(new, gradient),
        false => gradient.copy_from_slice(new),
    }
}

/// Lets `write` write over `gradient`, or adds what it writes if `accumulate`.
fn written_or_added(
    gradient: &mut [f32],
    accumulate: bool,
    write: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    if !accumulate {
        return write(gradient);
    }
    let mut new = memory::zeros(gradient.len());
    write(&mut new)?;
    elementwise::add_to(&new, gradient);
    Ok(())
}

/// The shape of `layout` with another last axis.
fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut shape = layout.dims().to_vec();
    if let Some(end) = shape.last_mut() {
        *end = last;
    }
    shape.into()
}
