//! Residual sums.

use candle_core::Tensor;

use super::host;
use crate::Result;
use crate::kernels::elementwise;

/// Returns `x + y`, of the same shape, as in a residual connection.
///
/// On the CPU it runs on the threads of the kernels, so that no other threads are woken between two layers.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    match host::serve([x, y]) {
        true => host::zip(x, y, elementwise::add),
        false => Ok((x + y)?),
    }
}
