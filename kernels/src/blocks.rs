//! Linear layers with weights in ggml's quantized block formats.
//!
//! [`linear`] reads blocks as a GGUF file stores them: nothing is repacked or copied. Activations are quantized to
//! 8 bits, with one scale per 32, and multiplied as integers; the error this adds is about 0.4 % of the largest of
//! 32 activations, below that of the 4- and 5-bit formats themselves. [`dequantize`] returns the exact values.
//!
//! ```
//! use fauna_kernels::blocks::{BlockKind, Blocks, linear, quantize};
//!
//! let identity: Vec<f32> = (0..32 * 32).map(|i| f32::from(i % 33 == 0)).collect();
//! let mut data = vec![0; BlockKind::Q8_0.bytes(identity.len())];
//! quantize(BlockKind::Q8_0, &identity, &mut data);
//! let weights = Blocks::new(&data, BlockKind::Q8_0, 32, 32)?;
//! let x: Vec<f32> = (0..32).map(|i| i as f32).collect();
//! let mut y = [0.0; 32];
//! linear(&x, 1, &weights, None, &mut y);
//! assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() < 0.3));
//! # Ok::<(), fauna_kernels::InvalidInput>(())
//! ```

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod group;
mod portable;
mod quantize;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use self::format::{Format, Unpacked};
use self::group::Group;
pub use self::quantize::quantize;
#[cfg(target_arch = "x86_64")]
use super::cpu::features;
use super::cpu::{Isa, isa};
use super::matmul::{Compute, made_input_gradient};
use super::pool::parallel_for;
use super::versions::{Shared, for_each_piece};
use crate::InvalidInput;

/// A quantized block format of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names of ggml
pub enum BlockKind {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

/// Evaluates an expression with `$format` standing for the [`Format`] of a kind.
macro_rules! with_format {
    ($kind:expr, $format:ident => $result:expr) => {
        with_format!(@ $kind, $format, $result, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K Q8K)
    };
    (@ $kind:expr, $format:ident, $result:expr, $($name:ident)*) => {
        match $kind {
            $(BlockKind::$name => {
                type $format = format::$name;
                $result
            })*
        }
    };
}

impl BlockKind {
    /// All formats.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q8K,
    ];

    /// The `ggml_type` number of the format in GGUF files.
    pub fn ggml_id(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Q8K => 15,
        }
    }

    /// The format with the `ggml_type` number `id`.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.ggml_id() == id)
    }

    /// Name of the format, as `--quantize` and [`FromStr`] accept it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2K => "q2_k",
            Self::Q3K => "q3_k",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Q8K => "q8_k",
        }
    }

    /// Number of weights in a block.
    pub fn block_len(self) -> usize {
        with_format!(self, F => F::BLOCK)
    }

    /// Size of a block in bytes.
    pub fn block_bytes(self) -> usize {
        with_format!(self, F => F::BYTES)
    }

    /// Size of `elements` weights in bytes; `elements` is a multiple of [`block_len`](Self::block_len).
    pub fn bytes(self, elements: usize) -> usize {
        elements / self.block_len() * self.block_bytes()
    }
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BlockKind {
    type Err = InvalidInput;

    fn from_str(name: &str) -> Result<Self, InvalidInput> {
        let known = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name));
        known.ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            InvalidInput::new(format!("unknown weight format \"{name}\"\n  expected one of {known}"))
        })
    }
}

/// A quantized weight matrix `(outputs, inputs)`, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    data: &'a [u8],
    kind: BlockKind,
    outputs: usize,
    inputs: usize,
}

impl<'a> Blocks<'a> {
    /// Creates the matrix `(outputs, inputs)` from the blocks in `data`, row by row.
    ///
    /// # Errors
    /// [`InvalidInput`] if `inputs` is not a multiple of the block length or `data` does not have exactly the bytes of
    /// the matrix.
    pub fn new(data: &'a [u8], kind: BlockKind, outputs: usize, inputs: usize) -> Result<Self, InvalidInput> {
        if !inputs.is_multiple_of(kind.block_len()) {
            return Err(InvalidInput::new(format!(
                "a row of {inputs} weights is not a multiple of {}, the block length of {kind}",
                kind.block_len()
            )));
        }
        let expected = kind.bytes(inputs).checked_mul(outputs);
        if expected != Some(data.len()) {
            return Err(InvalidInput::new(format!(
                "a {kind} weight of ({outputs}, {inputs}) takes {} bytes, found {}",
                expected.map_or("too many".into(), |n| n.to_string()),
                data.len()
            )));
        }
        Ok(Self { data, kind, outputs, inputs })
    }
}

/// Linear layer, `y = x · wᵀ + bias`.
///
/// `x`: `(rows, inputs)`. `bias`: `(outputs)`. `y`: `(rows, outputs)`, overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn linear(x: &[f32], rows: usize, w: &Blocks, bias: Option<&[f32]>, y: &mut [f32]) {
    linear_with(isa(), x, rows, w, bias, y);
}

fn linear_with(isa: Isa, x: &[f32], rows: usize, w: &Blocks, bias: Option<&[f32]>, y: &mut [f32]) {
    assert_eq!(x.len(), rows * w.inputs, "x must be {rows} rows of {}", w.inputs);
    assert_eq!(y.len(), rows * w.outputs, "y must be {rows} rows of {}", w.outputs);
    assert!(bias.is_none_or(|bias| bias.len() == w.outputs), "bias must have {} elements", w.outputs);
    if y.is_empty() {
        return;
    }
    if w.inputs == 0 {
        y.fill(0.0);
    } else {
        // Kept from call to call: a decoder multiplies a hundred times per token.
        thread_local!(static SCRATCH: RefCell<(Vec<Group>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) });
        let (mut groups, mut terms) = SCRATCH.take();
        let count = if two_terms(w.kind, rows) { 2 } else { 1 };
        activations::quantize(isa, x, rows, w.inputs, count, &mut groups);
        if with_format!(w.kind, F => few_rows::<F>(isa, w, &groups, rows, y)) {
            // Both cases, one term and two, are done.
        } else if count == 1 {
            with_format!(w.kind, F => products::<F>(isa, w, &groups, y));
        } else {
            terms.resize(2 * y.len(), 0.0);
            with_format!(w.kind, F => products::<F>(isa, w, &groups, &mut terms));
            let rows_a_task = (8 * 1024 / w.outputs).max(1);
            for_each_piece(y, rows_a_task * w.outputs, |task, y| {
                let terms = &terms[2 * task * rows_a_task * w.outputs..];
                for (y, terms) in y.chunks_exact_mut(w.outputs).zip(terms.chunks_exact(2 * w.outputs)) {
                    let (first, second) = terms.split_at(w.outputs);
                    y.iter_mut().zip(first).zip(second).for_each(|((y, a), b)| *y = a + b);
                }
            });
        }
        SCRATCH.set((groups, terms));
    }
    if let Some(bias) = bias {
        let rows_a_task = (8 * 1024 / w.outputs).max(1);
        for_each_piece(y, rows_a_task * w.outputs, |_, y| {
            for row in y.chunks_exact_mut(w.outputs) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        });
    }
}

/// Gradient of [`linear`] with respect to `x`, `dx = grad · w`, with the weights dequantized exactly, some at a time.
///
/// `grad`: `(rows, outputs)`, the gradient of `y`, which is not quantized. `dx`: `(rows, inputs)`; added to if
/// `accumulate`, else overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn linear_input_gradient(
    grad: &[f32],
    rows: usize,
    w: &Blocks,
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
    w: &Blocks,
    compute: Compute,
    accumulate: bool,
    dx: &mut [f32],
) {
    let made = |outputs: Range<usize>, inputs: Range<usize>, to: &mut [f32]| {
        with_format!(w.kind, F => {
            super::versions::versioned! {
                fn values(w: &Blocks, outputs: Range<usize>, inputs: Range<usize>, to: &mut [f32]) {
                    widen_part::<F>(w, outputs, inputs, to);
                }
            }
            values(w, outputs, inputs, to)
        });
    };
    made_input_gradient(isa, grad, rows, (w.outputs, w.inputs), &made, compute, accumulate, dx);
}

/// Dequantizes the weights of ranges of outputs and inputs to `to`, row by row.
#[inline(always)]
fn widen_part<F: Format>(w: &Blocks, outputs: Range<usize>, inputs: Range<usize>, to: &mut [f32]) {
    let row_bytes = w.kind.bytes(w.inputs);
    let mut block = [0f32; 256];
    for (output, to) in outputs.zip(to.chunks_exact_mut(inputs.len().max(1))) {
        let row = &w.data[output * row_bytes..][..row_bytes];
        for i in inputs.start / F::BLOCK..inputs.end.div_ceil(F::BLOCK) {
            let (first, end) = (inputs.start.max(i * F::BLOCK), inputs.end.min((i + 1) * F::BLOCK));
            widen::<F>(&row[i * F::BYTES..][..F::BYTES], &mut block[..F::BLOCK]);
            to[first - inputs.start..end - inputs.start]
                .copy_from_slice(&block[first - i * F::BLOCK..end - i * F::BLOCK]);
        }
    }
}

/// Whether activations are quantized to 16 bits (two terms of 8) instead of 8. Prompts (5 rows or more) are, since all
/// later tokens depend on them and the cost is hidden. So are activations multiplied with 8-bit weights, where 8-bit
/// rounding of the activations would be the larger error. Few rows with weights of fewer bits are limited by memory and
/// unpacking, and use 8 bits.
fn two_terms(kind: BlockKind, rows: usize) -> bool {
    rows >= 5 || matches!(kind, BlockKind::Q8_0 | BlockKind::Q8K)
}

/// Bytes of weights that one task reads: some microseconds of work, and small enough for the L1 cache.
const TASK_BYTES: usize = 16 * 1024;

/// The output matrix, whose columns are divided among tasks.
struct Columns {
    data: Shared<f32>,
    outputs: usize,
}

impl Columns {
    /// Returns `len` elements of a row, starting at column `first`.
    ///
    /// # Safety
    /// They are inside the matrix, and no other thread accesses them.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, row: usize, first: usize, len: usize) -> &mut [f32] {
        // SAFETY: as promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.data.get().add(row * self.outputs + first), len) }
    }
}

#[cfg(target_arch = "x86_64")]
fn products<F: avx2::Narrow + avx512::Wide>(isa: Isa, w: &Blocks, x: &[Group], y: &mut [f32]) {
    match isa {
        Isa::Avx512 if features().vnni => wide_products::<F>(w, x, y),
        Isa::Avx2 | Isa::Avx512 => each_output::<F>(w, x, y, |w, x, groups, y| {
            // SAFETY: such a processor has AVX2, FMA and F16C.
            unsafe { avx2::dots::<F>(w, x, groups, y) }
        }),
        _ => each_output::<F>(w, x, y, portable::dots::<F>),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn products<F: Format>(_: Isa, w: &Blocks, x: &[Group], y: &mut [f32]) {
    each_output::<F>(w, x, y, portable::dots::<F>);
}

/// Number of activation rows processed at a time: few enough to stay in the L1 cache during all weights of a task.
const ROWS: usize = 16;

/// Multiplies each row of weights with all rows of activations.
fn each_output<F: Format>(
    w: &Blocks,
    x: &[Group],
    y: &mut [f32],
    dots: impl Fn(&[u8], &[Group], usize, &mut [f32]) + Sync,
) {
    let (groups, row_bytes) = (w.inputs.div_ceil(256), w.kind.bytes(w.inputs));
    let columns = Columns { data: Shared(y.as_mut_ptr()), outputs: w.outputs };
    let size = (TASK_BYTES / row_bytes).max(1);
    parallel_for(w.outputs.div_ceil(size), |task| {
        let mut products = [0.0; ROWS];
        for (block, x) in x.chunks(ROWS * groups).enumerate() {
            let products = &mut products[..x.len() / groups];
            for o in task * size..w.outputs.min((task + 1) * size) {
                dots(&w.data[o * row_bytes..][..row_bytes], x, groups, products);
                for (row, product) in products.iter().enumerate() {
                    // SAFETY: every output is one task's, and inside the matrix.
                    unsafe { columns.part(block * ROWS + row, o, 1)[0] = *product };
                }
            }
        }
    });
}

/// [`products`] with AVX-512 and VNNI, which the processor must have.
#[cfg(target_arch = "x86_64")]
fn wide_products<F: avx512::Wide>(w: &Blocks, x: &[Group], y: &mut [f32]) {
    let (groups, row_bytes) = (w.inputs.div_ceil(256), w.kind.bytes(w.inputs));
    let columns = Columns { data: Shared(y.as_mut_ptr()), outputs: w.outputs };
    thread_local!(static TILE: RefCell<Vec<avx512::Line>> = const { RefCell::new(Vec::new()) });
    parallel_for(w.outputs.div_ceil(avx512::TILE), |task| {
        let mut tile = TILE.take();
        let first = task * avx512::TILE;
        // SAFETY: the processor has what these need; every output is one task's, and inside the matrix.
        unsafe {
            avx512::pack::<F>(w.data, row_bytes, first, &mut tile);
            avx512::multiply::<F>(&tile, x, groups, |row, at, products| {
                let len = w.outputs.saturating_sub(first + at).min(16);
                if len > 0 {
                    columns.part(row, first + at, len).copy_from_slice(&products[..len]);
                }
            });
        }
        TILE.set(tile);
    });
}

/// Multiplies up to four rows without packing tiles, reading each weight once for all of them. Returns false, having
/// done nothing, if there are more rows or the processor lacks AVX-512 or VNNI. Rows have one term or two.
#[cfg(target_arch = "x86_64")]
fn few_rows<F: avx512::Wide>(isa: Isa, w: &Blocks, x: &[Group], rows: usize, y: &mut [f32]) -> bool {
    if isa != Isa::Avx512 || !features().vnni {
        return false;
    }
    let columns = Columns { data: Shared(y.as_mut_ptr()), outputs: w.outputs };
    let terms = x.len() / w.inputs.div_ceil(256) / rows;
    let each: unsafe fn(&Blocks, &[Group], Range<usize>, &Columns) = match (rows, terms) {
        (1, 1) => some_outputs::<F, 1, 1>,
        (2, 1) => some_outputs::<F, 2, 1>,
        (3, 1) => some_outputs::<F, 3, 1>,
        (4, 1) => some_outputs::<F, 4, 1>,
        (1, 2) => some_outputs::<F, 1, 2>,
        (2, 2) => some_outputs::<F, 2, 2>,
        (3, 2) => some_outputs::<F, 3, 2>,
        (4, 2) => some_outputs::<F, 4, 2>,
        _ => return false,
    };
    let size = (TASK_BYTES / w.kind.bytes(w.inputs)).max(1);
    parallel_for(w.outputs.div_ceil(size), |task| {
        // SAFETY: the processor was checked; each task has its own outputs, inside the matrix.
        unsafe { each(w, x, task * size..w.outputs.min((task + 1) * size), &columns) };
    });
    true
}

#[cfg(not(target_arch = "x86_64"))]
fn few_rows<F: Format>(_: Isa, _: &Blocks, _: &[Group], _: usize, _: &mut [f32]) -> bool {
    false
}

/// Multiplies `R` rows of `T` terms with the weights of a range of outputs, on this thread.
///
/// # Safety
/// The processor has AVX-512 and VNNI; the outputs are inside the matrix, and no other thread accesses them.
#[cfg(target_arch = "x86_64")]
unsafe fn some_outputs<F: avx512::Wide, const R: usize, const T: usize>(
    w: &Blocks,
    x: &[Group],
    outputs: Range<usize>,
    columns: &Columns,
) {
    let groups = w.inputs.div_ceil(256);
    let x = std::array::from_fn(|r| std::array::from_fn(|t| &x[(r * T + t) * groups..][..groups]));
    // SAFETY: as promised by the caller.
    unsafe {
        let mut y = std::array::from_fn(|r| columns.part(r, outputs.start, outputs.len()));
        avx512::dots::<F, R, T>(w.data, w.kind.bytes(w.inputs), outputs.start, x, &mut y);
    }
}

/// Dequantizes the blocks in `data`, of a whole matrix or of some of its rows, to `out`.
///
/// # Panics
/// If `data` does not have the size of `out.len()` weights.
pub fn dequantize(kind: BlockKind, data: &[u8], out: &mut [f32]) {
    assert!(
        out.len().is_multiple_of(kind.block_len()),
        "{} weights are not whole blocks of {kind}",
        out.len()
    );
    assert_eq!(data.len(), kind.bytes(out.len()), "bytes of {} weights in {kind}", out.len());
    with_format!(kind, F => {
        super::versions::versioned! {
            fn values(data: &[u8], out: &mut [f32]) {
                widen::<F>(data, out);
            }
        }
        const PIECE: usize = 8 * 1024;
        for_each_piece(out, PIECE, |i, out| {
            values(&data[i * PIECE / F::BLOCK * F::BYTES..][..out.len() / F::BLOCK * F::BYTES], out);
        })
    });
}

#[inline(always)]
fn widen<F: Format>(data: &[u8], out: &mut [f32]) {
    let mut block = Unpacked::ZERO;
    for (bytes, out) in data.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(F::BLOCK)) {
        block.fill::<F>(bytes);
        for (sub, out) in out.chunks_exact_mut(F::SUB).enumerate() {
            for (value, &q) in out.iter_mut().zip(&block.q[sub * F::SUB..]) {
                *value = f32::from(i16::from(q) - i16::from(F::ZERO)) * block.scale[sub] + block.min[sub];
            }
        }
    }
}
