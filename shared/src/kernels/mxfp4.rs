//! Weights in MXFP4, multiplied where they lie.
//!
//! A row is blocks of 32 numbers of four bits (FP4, E2M1), two a byte, the first in the lower half. Apart from them lies
//! a byte for each block (E8M0): the power of two that its numbers are multiplied by, plus 127 (OCP Microscaling
//! Formats 1.0, sections 5.2, 5.3 and 6.3). A number is widened exactly, and activations stay what they are: products
//! are of f32, unlike those of the formats in [`blocks`](super::blocks).
//!
//! ```
//! use fauna_shared::kernels::matmul::Compute;
//! use fauna_shared::kernels::mxfp4::{Mxfp4, linear};
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
//! # Ok::<(), fauna_shared::Error>(())
//! ```

use std::ops::Range;

use super::cpu::{Isa, isa};
use super::matmul::tiles::{Bf16, to_bf16};
use super::matmul::{Compute, Finish, Scratch, linear_made};
use super::pool::parallel_for;
use super::simd::{FP4, Simd, Task, dispatch};
use super::versions::{Shared, for_each_piece};
use crate::{Error, Result};

/// Weights in a block.
pub const BLOCK: usize = 32;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = BLOCK / 2;

/// The powers of two by their byte; the last, which stands for no number, is infinite.
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

/// A matrix of `outputs` rows of `inputs` weights, borrowed where it lies. Nothing need be aligned.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    outputs: usize,
    inputs: usize,
}

impl<'a> Mxfp4<'a> {
    /// The matrix of `blocks`, `(outputs, inputs / 32, 16)`, and `scales`, `(outputs, inputs / 32)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if `inputs` is not a multiple of 32 or a slice has another length.
    pub fn new(blocks: &'a [u8], scales: &'a [u8], outputs: usize, inputs: usize) -> Result<Self> {
        let count = (inputs / BLOCK).checked_mul(outputs);
        let wanted = count.and_then(|count| Some((count.checked_mul(BLOCK_BYTES)?, count)));
        if !inputs.is_multiple_of(BLOCK) || wanted != Some((blocks.len(), scales.len())) {
            return Err(Error::input(format!(
                "{outputs} rows of {inputs} weights in blocks of {BLOCK} are not {} bytes and {} scales",
                blocks.len(),
                scales.len()
            )));
        }
        Ok(Self { blocks, scales, outputs, inputs })
    }

    /// Blocks in a row.
    fn row(&self) -> usize {
        self.inputs / BLOCK
    }
}

/// Rows of `x` for which the weights are unpacked in registers; for more, some outputs at a time are widened and
/// multiplied as dense ones are.
const FEW_ROWS: usize = 4;

/// Bytes of weights that one task reads: a microsecond or two of work.
const TASK_BYTES: usize = 16 * 1024;

/// `y = finish(x · wᵀ + bias)`: `x` `(rows, inputs)`, `y` `(rows, outputs)`, `bias` `(outputs)`.
///
/// `finish` is called on pieces of rows, so it must act on each element alone.
///
/// # Panics
/// If a slice has another length.
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
    assert_eq!(x.len(), rows * w.inputs, "x is {rows} rows of {}", w.inputs);
    assert_eq!(y.len(), rows * w.outputs, "y is {rows} rows of {}", w.outputs);
    assert!(bias.is_none_or(|bias| bias.len() == w.outputs), "a bias for each of {} outputs", w.outputs);
    if y.is_empty() {
        return;
    }
    // Rows of as many elements as whole vectors of every instruction set take.
    let stride = w.inputs.next_multiple_of(BLOCK * lanes(isa) / 4);
    let mut turned = Scratch::new(rows * stride);
    let x_turned = Shared(turned.as_mut_ptr());
    // Only few rows are rounded here, the others where they are multiplied.
    let round = compute == Compute::Bf16 && rows <= FEW_ROWS;
    let turn = |row: usize| {
        // SAFETY: the scratch holds all rows, and each is written by one task.
        let to = unsafe { std::slice::from_raw_parts_mut(x_turned.get().add(row * stride), stride) };
        dispatch(isa, Turn { x: &x[row * w.inputs..][..w.inputs], to, round });
    };
    if rows <= FEW_ROWS {
        (0..rows).for_each(turn);
        let size = (TASK_BYTES / (w.row() * (BLOCK_BYTES + 1)).max(1) / 4 * 4).max(4);
        let y = Shared(y.as_mut_ptr());
        parallel_for(w.outputs.div_ceil(size), |task| {
            let outputs = task * size..w.outputs.min((task + 1) * size);
            dispatch(isa, Few { x: (x_turned.get(), stride), rows, w, outputs, bias, finish, y: y.get() });
        });
        return;
    }
    parallel_for(rows, turn);
    // SAFETY: all rows were written.
    let x = unsafe { std::slice::from_raw_parts(x_turned.get(), rows * stride) };
    let widen = |outputs: Range<usize>, to: &mut [Bf16]| dispatch(isa, Turned { w, outputs, stride, to });
    linear_made(isa, x, rows, (w.outputs, stride), widen, bias, compute, finish, y);
}

/// Lanes of the vectors that [`dispatch`] may choose, or more.
fn lanes(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Neon | Isa::Portable => 4,
    }
}

/// Copies a row of `x`, in the order of [`Simd::load_fp4`], zeros after it.
struct Turn<'a> {
    x: &'a [f32],
    to: &'a mut [f32],
    /// Whether to bfloat16.
    round: bool,
}

impl Task for Turn<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let per = S::LANES / 4;
        self.to[self.x.len()..].fill(0.0);
        for (group, x) in self.x.chunks(per * BLOCK).enumerate() {
            let to = &mut self.to[group * per * BLOCK..][..per * BLOCK];
            if x.len() < to.len() {
                to.fill(0.0);
            }
            for (b, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
                for v in 0..8 {
                    for lane in 0..4 {
                        let x = x[16 * (v / 4) + 4 * lane + v % 4];
                        let rounded = f32::from_bits(to_bf16(x) << 16);
                        to[v * S::LANES + 4 * b + lane] = if self.round { rounded } else { x };
                    }
                }
            }
        }
    }
}

/// Some outputs of at most [`FEW_ROWS`] rows, the weights unpacked in registers.
struct Few<'a> {
    /// Rows in the order of [`Simd::load_fp4`], and the distance from one to the next.
    x: (*const f32, usize),
    rows: usize,
    w: &'a Mxfp4<'a>,
    outputs: Range<usize>,
    bias: Option<&'a [f32]>,
    finish: Option<Finish<'a>>,
    /// The whole matrix of results.
    y: *mut f32,
}

impl Task for Few<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `x` has so many rows, the outputs are inside the matrix, and no other task has them.
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
                let mut sums = [[S::splat(0.0); 4]; M];
                for c in 0..count {
                    let o = first + c;
                    let (blocks, scales) = (&blocks[o * row * BLOCK_BYTES..], &scales[o * row..]);
                    let one = dot::<S, M>(self.x, (blocks.as_ptr(), scales.as_ptr()), row);
                    for r in 0..M {
                        sums[r][c] = one[r];
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    let y = self.y.add(r * outputs + first);
                    y.copy_from_nonoverlapping(S::sum4(*sums).as_ptr(), count);
                }
            }
        }
    }
}

/// The products of `M` rows with one row of weights, to be summed over the lanes.
#[inline(always)]
unsafe fn dot<S: Simd, const M: usize>(
    x: (*const f32, usize),
    (blocks, scales): (*const u8, *const u8),
    count: usize,
) -> [S::V; M] {
    let per = S::LANES / 4;
    // SAFETY: promised by the caller; the rest is copied to where whole vectors may be read.
    unsafe {
        let mut sums = [S::splat(0.0); M];
        let mut i = 0;
        while i + per <= count {
            let weights = (blocks.add(i * BLOCK_BYTES), scales.add(i));
            add_blocks::<S, M>((x.0.add(i * BLOCK), x.1), weights, &mut sums);
            i += per;
        }
        if i < count {
            let (blocks, scales) = rest(blocks.add(i * BLOCK_BYTES), scales.add(i), count - i);
            let weights = (blocks.as_ptr(), scales.as_ptr());
            add_blocks::<S, M>((x.0.add(i * BLOCK), x.1), weights, &mut sums);
        }
        sums
    }
}

/// The last blocks of a row, which do not fill a vector, and blocks of zeros.
#[inline(always)]
unsafe fn rest(blocks: *const u8, scales: *const u8, count: usize) -> ([u8; 4 * BLOCK_BYTES], [u8; 4]) {
    let mut rest = ([0; 4 * BLOCK_BYTES], [0; 4]);
    // SAFETY: promised by the caller; fewer than four blocks are left.
    unsafe {
        blocks.copy_to_nonoverlapping(rest.0.as_mut_ptr(), count * BLOCK_BYTES);
        scales.copy_to_nonoverlapping(rest.1.as_mut_ptr(), count);
    }
    rest
}

/// Adds the products with as many blocks as a vector has.
#[inline(always)]
unsafe fn add_blocks<S: Simd, const M: usize>(
    (x, stride): (*const f32, usize),
    (blocks, scales): (*const u8, *const u8),
    sums: &mut [S::V; M],
) {
    // SAFETY: promised by the caller.
    unsafe {
        let weights = S::load_fp4(blocks);
        let scales = S::load_by_fours(&SCALES, scales);
        for (r, sum) in sums.iter_mut().enumerate() {
            let x = |v: usize| S::load(x.add(r * stride + v * S::LANES));
            let mut parts = [S::mul(weights[0], x(0)), S::mul(weights[1], x(1))];
            for v in 2..8 {
                parts[v % 2] = S::fma(weights[v], x(v), parts[v % 2]);
            }
            *sum = S::fma(S::add(parts[0], parts[1]), scales, *sum);
        }
    }
}

/// Widens the rows of some outputs to bfloat16, exactly, in the order of [`Simd::load_fp4`], zeros after them.
struct Turned<'a> {
    w: &'a Mxfp4<'a>,
    outputs: Range<usize>,
    /// Elements of a row.
    stride: usize,
    to: &'a mut [Bf16],
}

impl Task for Turned<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (per, count) = (S::LANES / 4, self.w.row());
        for (o, to) in self.outputs.zip(self.to.chunks_exact_mut(self.stride.max(1))) {
            let blocks = self.w.blocks[o * count * BLOCK_BYTES..].as_ptr();
            let scales = self.w.scales[o * count..].as_ptr();
            let to = to.as_mut_ptr().cast::<u16>();
            let mut i = 0;
            // SAFETY: the row has so many blocks, and `to` room for whole vectors of them.
            unsafe {
                while i + per <= count {
                    widen::<S>(blocks.add(i * BLOCK_BYTES), scales.add(i), to.add(i * BLOCK));
                    i += per;
                }
                if i < count {
                    let (blocks, scales) = rest(blocks.add(i * BLOCK_BYTES), scales.add(i), count - i);
                    widen::<S>(blocks.as_ptr(), scales.as_ptr(), to.add(i * BLOCK));
                    i += per;
                }
                let end = i * BLOCK;
                std::slice::from_raw_parts_mut(to.add(end), self.stride.saturating_sub(end)).fill(0);
            }
        }
    }
}

#[inline(always)]
unsafe fn widen<S: Simd>(blocks: *const u8, scales: *const u8, to: *mut u16) {
    // SAFETY: promised by the caller.
    unsafe {
        let weights = S::load_fp4(blocks);
        let scales = S::load_by_fours(&SCALES, scales);
        for (v, weights) in weights.into_iter().enumerate() {
            S::store_bf16(to.add(v * S::LANES), S::mul(weights, scales));
        }
    }
}

/// The exact values of `blocks` with `scales`, one after the other: a whole matrix, or some rows of it.
///
/// # Panics
/// If these are not the blocks and scales of `out.len()` weights.
pub fn dequantize(blocks: &[u8], scales: &[u8], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(BLOCK), "{} weights are no whole blocks of {BLOCK}", out.len());
    assert_eq!(blocks.len(), out.len() / 2, "bytes of {} weights", out.len());
    assert_eq!(scales.len(), out.len() / BLOCK, "scales of {} weights", out.len());
    const PIECE: usize = 256;
    for_each_piece(out, PIECE * BLOCK, |i, out| {
        let (out, _) = out.as_chunks_mut::<BLOCK>();
        let (blocks, _) = blocks[i * PIECE * BLOCK_BYTES..].as_chunks::<BLOCK_BYTES>();
        for ((out, block), scale) in out.iter_mut().zip(blocks).zip(&scales[i * PIECE..]) {
            let scale = SCALES[usize::from(*scale)];
            for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
                *pair = [byte & 15, byte >> 4].map(|number| FP4[usize::from(number)] * scale);
            }
        }
    });
}

#[cfg(test)]
mod tests;
