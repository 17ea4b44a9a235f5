//! Residual sums.

use candle_core::Tensor;

use super::back::Summed;
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
