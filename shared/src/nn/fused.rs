//! Candle's fused operations: what serves on a GPU, where each operation is a kernel to start. They know no way back.

use candle_core::Tensor;

/// Whether they may serve: there is something to compute, and nobody wants a gradient through it.
pub(crate) fn serve(xs: &[&Tensor]) -> bool {
    xs.iter().all(|x| !x.track_op() && x.elem_count() > 0)
}
