//! Sums of activations.

use candle_core::Tensor;

use super::host;
use crate::Result;
use crate::kernels::elementwise;

/// `x + y`, one shape for both: what a block passes on and what it found.
///
/// On the CPU the kernels' own threads add, so that no others have to be woken between two layers.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    match host::serves(x) && host::serves(y) {
        true => host::zip(x, y, elementwise::add),
        false => Ok((x + y)?),
    }
}
