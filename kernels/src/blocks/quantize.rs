//! Quantization of float32 to blocks by candle's quantizers, which choose the same scales as ggml's.

use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
    BlockQ8K, GgmlType,
};

use super::BlockKind;
use crate::versions::for_each_piece;

/// Quantizes `values`, whole rows one after the other, to blocks of `kind`, on all threads.
///
/// # Panics
/// If the length of `values` is not a multiple of the block length, or `out` does not have the size of the blocks.
pub fn quantize(kind: BlockKind, values: &[f32], out: &mut [u8]) {
    match kind {
        BlockKind::Q4_0 => blocks::<BlockQ4_0>(kind, values, out),
        BlockKind::Q4_1 => blocks::<BlockQ4_1>(kind, values, out),
        BlockKind::Q5_0 => blocks::<BlockQ5_0>(kind, values, out),
        BlockKind::Q5_1 => blocks::<BlockQ5_1>(kind, values, out),
        BlockKind::Q8_0 => blocks::<BlockQ8_0>(kind, values, out),
        BlockKind::Q2K => blocks::<BlockQ2K>(kind, values, out),
        BlockKind::Q3K => blocks::<BlockQ3K>(kind, values, out),
        BlockKind::Q4K => blocks::<BlockQ4K>(kind, values, out),
        BlockKind::Q5K => blocks::<BlockQ5K>(kind, values, out),
        BlockKind::Q6K => blocks::<BlockQ6K>(kind, values, out),
        BlockKind::Q8K => blocks::<BlockQ8K>(kind, values, out),
    }
}

fn blocks<T: GgmlType>(kind: BlockKind, values: &[f32], out: &mut [u8]) {
    const PIECE: usize = 8 * 1024;
    assert!(
        values.len().is_multiple_of(kind.block_len()),
        "{} weights are not whole blocks of {kind}",
        values.len()
    );
    assert_eq!(out.len(), kind.bytes(values.len()), "size of {} weights in {kind}", values.len());
    assert_eq!(size_of::<T>(), kind.block_bytes(), "size of candle's block of {kind}");
    for_each_piece(out, kind.bytes(PIECE), |i, out| {
        let count = out.len() / size_of::<T>();
        let mut blocks = vec![T::zeros(); count];
        T::from_float(&values[i * PIECE..][..count * kind.block_len()], &mut blocks);
        // SAFETY: candle's blocks are plain numbers in ggml's layout without padding (their size, asserted above, is
        // the sum of their fields), so every byte is initialised.
        let bytes = unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast::<u8>(), out.len()) };
        out.copy_from_slice(bytes);
    });
}
