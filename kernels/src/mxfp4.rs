//! Linear layers with weights in MXFP4.
//!
//! A row consists of blocks of 32 four-bit numbers (FP4, E2M1), two per byte, the first in the low nibble. Each block
//! has a scale byte (E8M0), stored separately: a power of two with a bias of 127 (OCP Microscaling Formats 1.0,
//! sections 5.2, 5.3 and 6.3). Weights are dequantized exactly, and activations are not quantized: products are
//! computed in f32, unlike those of the formats in [`blocks`](super::blocks).
//!
//! ```
//! use fauna_kernels::matmul::Compute;
//! use fauna_kernels::mxfp4::{Mxfp4, linear};
//!
//! // 1.5 and -4 in the first byte, then zeros, all times 2^-1.
//! let mut blocks = [0; 16];
//! blocks[0] = 0xe3;
//! let weights = Mxfp4::new(&blocks, &[126], 1, 32)?;
//! let mut x = [0.0; 32];
//! (x[0], x[1]) = (10.0, 1.0);
//! let mut y = [0.0];
//! linear(&x, 1, &weights, None, Compute::F32, None, &mut y);
//! assert_eq!(y, [5.5]);
//! # Ok::<(), fauna_kernels::InvalidInput>(())
//! ```

use std::ops::Range;

use super::cpu::{Isa, isa};
use super::matmul::tiles::{Bf16, to_bf16};
use super::matmul::{Compute, Finish, Scratch, linear_made, made_input_gradient};
use super::pool::parallel_for;
use super::simd::{FP4, Simd, Task, dispatch};
use super::versions::{Shared, for_each_piece, versioned};
use crate::InvalidInput;

/// Number of weights in a block.
pub const BLOCK: usize = 32;
/// Size of a block in bytes.
pub const BLOCK_BYTES: usize = BLOCK / 2;

/// The value of each scale byte; the last, which is NaN in the specification, is infinite.
const SCALES: [f32; 256] = {
    let mut scales = [0.0; 256];
    let mut i = 0;
    while i < 256 {
        // The first is subnormal.
        scales[i] = f32::from_bits(if i == 0 { 1 << 22 } else { (i as u32) << 23 });
        i += 1;
    }
    scales
};

/// A weight matrix `(outputs, inputs)` in MXFP4, borrowed. The data need not be aligned.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    outputs: usize,
    inputs: usize,
}

impl<'a> Mxfp4<'a> {
    /// Creates the matrix from `blocks`, `(outputs, inputs / 32, 16)`, and `scales`, `(outputs, inputs / 32)`.
    ///
    /// # Errors
    /// [`InvalidInput`] if `inputs` is not a multiple of 32 or the length of a slice does not match its shape.
    pub fn new(
        blocks: &'a [u8],
        scales: &'a [u8],
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, InvalidInput> {
        let count = (inputs / BLOCK).checked_mul(outputs);
        let wanted = count.and_then(|count| Some((count.checked_mul(BLOCK_BYTES)?, count)));
        if !inputs.is_multiple_of(BLOCK) || wanted != Some((blocks.len(), scales.len())) {
            return Err(InvalidInput::new(format!(
                "expected {outputs} rows of {inputs} weights in blocks of {BLOCK}, found {} bytes and {} scales",
                blocks.len(),
                scales.len()
            )));
        }
        Ok(Self { blocks, scales, outputs, inputs })
    }

    /// Number of blocks in a row.
    fn row(&self) -> usize {
        self.inputs / BLOCK
    }
}

/// Maximum number of rows of `x` for which the weights are unpacked in registers; for more, some outputs at a time are
/// dequantized to bfloat16 and multiplied like dense weights.
const FEW_ROWS: usize = 4;

/// Bytes of weights that one task reads: a microsecond or two of work.
const TASK_BYTES: usize = 16 * 1024;

/// Linear layer, `y = finish(x · wᵀ + bias)`.
///
/// `x`: `(rows, inputs)`. `bias`: `(outputs)`. `y`: `(rows, outputs)`, overwritten. `finish` is called on pieces of
/// rows, so it must be element-wise.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn linear(
    x: &[f32],
    rows: usize,
    w: &Mxfp4,
    bias: Option<&[f32]>,
    compute: Compute,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    linear_with(isa(), x, rows, w, bias, compute, finish, y);
}

#[allow(clippy::too_many_arguments)]
fn linear_with(
    isa: Isa,
    x: &[f32],
    rows: usize,
    w: &Mxfp4,
    bias: Option<&[f32]>,
    compute: Compute,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    assert_eq!(x.len(), rows * w.inputs, "x must be {rows} rows of {}", w.inputs);
    assert_eq!(y.len(), rows * w.outputs, "y must be {rows} rows of {}", w.outputs);
    assert!(bias.is_none_or(|bias| bias.len() == w.outputs), "bias must have {} elements", w.outputs);
    if y.is_empty() {
        return;
    }
    let mut permuted = Scratch::new(x.len());
    let x_permuted = Shared(permuted.as_mut_ptr());
    let few = rows <= FEW_ROWS;
    let permute = |row: usize| {
        // SAFETY: the scratch holds all rows, and each is written by one task.
        let to = unsafe { std::slice::from_raw_parts_mut(x_permuted.get().add(row * w.inputs), w.inputs) };
        dispatch(isa, Permute { x: &x[row * w.inputs..][..w.inputs], to, few, compute });
    };
    if few {
        (0..rows).for_each(permute);
        let size = (TASK_BYTES / (w.row() * (BLOCK_BYTES + 1)).max(1) / 4 * 4).max(4);
        let y = Shared(y.as_mut_ptr());
        parallel_for(w.outputs.div_ceil(size), |task| {
            let outputs = task * size..w.outputs.min((task + 1) * size);
            dispatch(isa, Few { x: x_permuted.get(), rows, w, outputs, bias, finish, y: y.get() });
        });
        return;
    }
    parallel_for(rows, permute);
    // SAFETY: all rows were written.
    let x = unsafe { std::slice::from_raw_parts(x_permuted.get(), x.len()) };
    let widen = |outputs: Range<usize>, to: &mut [Bf16]| dispatch(isa, Dequantized { w, outputs, to });
    linear_made(isa, x, rows, (w.outputs, w.inputs), widen, bias, compute, finish, y);
}

/// Gradient of [`linear`] with respect to `x`, `dx = grad · w`, with the weights dequantized exactly, some at a time.
///
/// `grad`: `(rows, outputs)`, the gradient of `y` (or of what `finish` was given). `dx`: `(rows, inputs)`; added to if
/// `accumulate`, else overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn linear_input_gradient(
    grad: &[f32],
    rows: usize,
    w: &Mxfp4,
    compute: Compute,
    accumulate: bool,
    dx: &mut [f32],
) {
    input_gradient_with(isa(), grad, rows, w, compute, accumulate, dx);
}

fn input_gradient_with(
    isa: Isa,
    grad: &[f32],
    rows: usize,
    w: &Mxfp4,
    compute: Compute,
    accumulate: bool,
    dx: &mut [f32],
) {
    let made = |outputs: Range<usize>, inputs: Range<usize>, to: &mut [f32]| {
        let width = inputs.len();
        for (output, to) in outputs.zip(to.chunks_exact_mut(width.max(1))) {
            // Jobs have whole blocks: their columns are a multiple of 32.
            let (first, count) = (output * w.row() + inputs.start / BLOCK, width / BLOCK);
            let blocks = &w.blocks[first * BLOCK_BYTES..][..count * BLOCK_BYTES];
            widen(blocks, &w.scales[first..][..count], to);
        }
    };
    made_input_gradient(isa, grad, rows, (w.outputs, w.inputs), &made, compute, accumulate, dx);
}

versioned! {
    /// Dequantizes whole blocks.
    fn widen(blocks: &[u8], scales: &[u8], out: &mut [f32]) {
        let (out, _) = out.as_chunks_mut::<BLOCK>();
        let (blocks, _) = blocks.as_chunks::<BLOCK_BYTES>();
        for ((out, block), scale) in out.iter_mut().zip(blocks).zip(scales) {
            let scale = SCALES[usize::from(*scale)];
            for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
                *pair = [byte & 15, byte >> 4].map(|number| FP4[usize::from(number)] * scale);
            }
        }
    }
}

/// Copies a row of `x` with each block permuted to the order of the unpacked weights.
struct Permute<'a> {
    x: &'a [f32],
    to: &'a mut [f32],
    /// Whether the weights are unpacked in registers ([`Few`]), else [`Dequantized`].
    few: bool,
    compute: Compute,
}

impl Task for Permute<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Many rows are rounded later, in the product.
        let round = self.few && self.compute == Compute::Bf16;
        let mut order = S::FP4_ORDER.map(usize::from);
        if !self.few {
            for (i, place) in order.iter_mut().enumerate() {
                let (pair, rest) = (i / (2 * S::LANES), i % (2 * S::LANES));
                *place = usize::from(S::FP4_ORDER[(2 * pair + rest % 2) * S::LANES + rest / 2]);
            }
        }
        let (to, _) = self.to.as_chunks_mut::<BLOCK>();
        for (to, x) in to.iter_mut().zip(self.x.as_chunks::<BLOCK>().0) {
            for (to, from) in to.iter_mut().zip(order) {
                let x = x[from % BLOCK];
                *to = if round { f32::from_bits(to_bf16(x) << 16) } else { x };
            }
        }
    }
}

/// A range of outputs of at most [`FEW_ROWS`] rows, with the weights unpacked in registers.
struct Few<'a> {
    /// Rows with the blocks in [`Simd::FP4_ORDER`].
    x: *const f32,
    rows: usize,
    w: &'a Mxfp4<'a>,
    outputs: Range<usize>,
    bias: Option<&'a [f32]>,
    finish: Option<Finish<'a>>,
    /// The whole output matrix.
    y: *mut f32,
}

impl Task for Few<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `x` has `rows` rows, the outputs are inside the matrix, and no other task has them.
        unsafe {
            match self.rows {
                1 => self.products::<S, 1>(),
                2 => self.products::<S, 2>(),
                3 => self.products::<S, 3>(),
                _ => self.products::<S, 4>(),
            }
            for row in 0..self.rows {
                let y = self.y.add(row * self.w.outputs + self.outputs.start);
                let y = std::slice::from_raw_parts_mut(y, self.outputs.len());
                if let Some(bias) = self.bias {
                    y.iter_mut().zip(&bias[self.outputs.clone()]).for_each(|(y, b)| *y += b);
                }
                if let Some(finish) = self.finish {
                    finish(y);
                }
            }
        }
    }
}

impl Few<'_> {
    #[inline(always)]
    unsafe fn products<S: Simd, const M: usize>(&self) {
        let Mxfp4 { blocks, scales, outputs, .. } = *self.w;
        let row = self.w.row();
        for first in self.outputs.clone().step_by(4) {
            let count = (self.outputs.end - first).min(4);
            // SAFETY: the outputs are inside the matrix.
            unsafe {
                let mut sums = [[S::splat(0.0); M]; 4];
                for (o, sums) in (first..first + count).zip(&mut sums) {
                    let (blocks, scales) = (&blocks[o * row * BLOCK_BYTES..], &scales[o * row..]);
                    *sums = dot::<S, M>(self.x, (blocks.as_ptr(), scales.as_ptr()), row);
                }
                for r in 0..M {
                    let y = self.y.add(r * outputs + first);
                    y.copy_from_nonoverlapping(S::sum4(sums.map(|sums| sums[r])).as_ptr(), count);
                }
            }
        }
    }
}

/// Returns the dot products of `M` rows with one row of `count` blocks, still to be summed over the lanes.
#[inline(always)]
unsafe fn dot<S: Simd, const M: usize>(
    x: *const f32,
    (blocks, scales): (*const u8, *const u8),
    count: usize,
) -> [S::V; M] {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        for i in 0..count {
            let weights = S::load_fp4(blocks.add(i * BLOCK_BYTES));
            let scale = S::splat(SCALES[usize::from(*scales.add(i))]);
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = x.add((r * count + i) * BLOCK);
                let mut parts =
                    [S::mul(weights[0], S::load(x)), S::mul(weights[1], S::load(x.add(S::LANES)))];
                for v in 2..BLOCK / S::LANES {
                    parts[v % 2] = S::fma(weights[v], S::load(x.add(v * S::LANES)), parts[v % 2]);
                }
                *sum = S::fma(S::add(parts[0], parts[1]), scale, *sum);
            }
        }
        sums
    }
}

/// Dequantizes the rows of a range of outputs to bfloat16, exactly. In each block, the vectors of [`Simd::FP4_ORDER`]
/// are interleaved two at a time.
struct Dequantized<'a> {
    w: &'a Mxfp4<'a>,
    outputs: Range<usize>,
    to: &'a mut [Bf16],
}

impl Task for Dequantized<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (start, end) = (self.outputs.start * self.w.row(), self.outputs.end * self.w.row());
        let (blocks, _) = self.w.blocks[start * BLOCK_BYTES..].as_chunks::<BLOCK_BYTES>();
        let (to, _) = self.to.as_chunks_mut::<BLOCK>();
        for ((to, block), scale) in to.iter_mut().zip(blocks).zip(&self.w.scales[start..end]) {
            // SAFETY: a whole block is read and written.
            unsafe {
                let weights = S::load_fp4(block.as_ptr());
                let scale = S::splat(SCALES[usize::from(*scale)]);
                for v in (0..BLOCK / S::LANES).step_by(2) {
                    let to = to.as_mut_ptr().add(v * S::LANES);
                    S::store_bf16(to.cast(), S::mul(weights[v], scale), S::mul(weights[v + 1], scale));
                }
            }
        }
    }
}

/// Dequantizes `blocks` with `scales`, of a whole matrix or of some of its rows, to `out`.
///
/// # Panics
/// If the lengths do not match `out.len()` weights.
pub fn dequantize(blocks: &[u8], scales: &[u8], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(BLOCK), "{} weights are not whole blocks of {BLOCK}", out.len());
    assert_eq!(blocks.len(), out.len() / 2, "bytes of {} weights", out.len());
    assert_eq!(scales.len(), out.len() / BLOCK, "scales of {} weights", out.len());
    const PIECE: usize = 256;
    for_each_piece(out, PIECE * BLOCK, |i, out| {
        let count = out.len() / BLOCK;
        let blocks = &blocks[i * PIECE * BLOCK_BYTES..][..count * BLOCK_BYTES];
        widen(blocks, &scales[i * PIECE..][..count], out);
    });
}

#[cfg(test)]
mod tests;
