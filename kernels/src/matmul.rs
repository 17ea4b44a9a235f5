//! Matrix products: linear layers with borrowed f32, f16 or bf16 weights, and batched f32 products.
//!
//! Weights are read in place, typically from a memory-mapped file, and converted to f32 in registers. For many rows,
//! each thread packs blocks of the weight that fit its cache.

mod gradients;
pub(super) mod tiles;

pub(crate) use gradients::made_input_gradient;
pub use gradients::{bias_gradient, linear_input_gradient, linear_weight_gradient};

use super::cpu::{Isa, features, isa};
use super::pool::{parallel_for, threads};
use super::simd::{Simd, Task, dispatch};
use crate::InvalidInput;
use half::f16;
use std::cell::RefCell;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use tiles::Pairs;
pub(crate) use tiles::Widen;
use tiles::{Bf16, Products, STREAM_ROWS, Wide, panel_width};

/// Element type of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elem {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
}

impl Elem {
    /// Size of an element in bytes.
    pub fn size(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::Bf16 | Elem::F16 => 2,
        }
    }
}

/// Memory layout of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `(outputs, inputs)`, as in `torch.nn.Linear`.
    OutIn,
    /// `(inputs, outputs)`, as in the `Conv1D` of GPT-2.
    InOut,
}

/// Precision in which products are computed; sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// Products of f32: exact for half-precision weights.
    #[default]
    F32,
    /// Inputs and weights are rounded to bfloat16 first; twice as fast where the processor has AVX512-BF16.
    Bf16,
}

/// A weight matrix `(outputs, inputs)`, borrowed. The data need not be aligned.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    data: &'a [u8],
    elem: Elem,
    layout: Layout,
    outputs: usize,
    inputs: usize,
}

impl<'a> Dense<'a> {
    /// Creates the weight from little-endian, contiguous `data`.
    ///
    /// # Errors
    /// [`InvalidInput`] if `data` is not exactly `outputs * inputs` elements.
    pub fn new(
        data: &'a [u8],
        elem: Elem,
        layout: Layout,
        outputs: usize,
        inputs: usize,
    ) -> Result<Self, InvalidInput> {
        let wanted = outputs.checked_mul(inputs).and_then(|n| n.checked_mul(elem.size()));
        if wanted != Some(data.len()) {
            return Err(InvalidInput::new(format!(
                "expected a weight of {outputs} by {inputs} in {elem:?}, found {} bytes",
                data.len()
            )));
        }
        Ok(Self { data, elem, layout, outputs, inputs })
    }

    /// Creates the weight from `data`, `(outputs, inputs)`.
    ///
    /// # Errors
    /// [`InvalidInput`] if `data` is not exactly `outputs * inputs` elements.
    pub fn of_floats(data: &'a [f32], outputs: usize, inputs: usize) -> Result<Self, InvalidInput> {
        // SAFETY: any byte of a float may be read as a byte, for as long as the floats are borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) };
        Self::new(bytes, Elem::F32, Layout::OutIn, outputs, inputs)
    }

    /// Returns the transposed weight, `(inputs, outputs)`, without copying: the weight of the backward pass.
    pub fn transposed(self) -> Self {
        let layout = match self.layout {
            Layout::OutIn => Layout::InOut,
            Layout::InOut => Layout::OutIn,
        };
        Self { layout, outputs: self.inputs, inputs: self.outputs, ..self }
    }
}

/// Epilogue of a product: an element-wise function, such as an activation, applied to pieces of the output while they
/// are in cache.
pub type Finish<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// Linear layer, `y = finish(x · Wᵀ + bias)`.
///
/// `x`: `(rows, inputs)`. `bias`: `(outputs)`. `y`: `(rows, outputs)`, overwritten. `finish` is called on pieces of
/// rows, so it must be element-wise.
///
/// # Panics
/// If the length of a slice does not match its shape.
///
/// ```
/// use fauna_kernels::matmul::{Compute, Dense, Elem, Layout, linear};
/// let weight: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|w| w.to_le_bytes()).collect();
/// let weight = Dense::new(&weight, Elem::F32, Layout::OutIn, 2, 2).unwrap();
/// let mut y = [0.0; 2];
/// linear(&[10.0, 1.0], 1, &weight, Some(&[0.5, 0.5]), Compute::F32, None, &mut y);
/// assert_eq!(y, [12.5, 34.5]);
/// ```
pub fn linear(
    x: &[f32],
    rows: usize,
    weight: &Dense,
    bias: Option<&[f32]>,
    compute: Compute,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    linear_on(isa(), x, rows, weight, bias, compute, finish, y);
}

/// [`linear`] over `rows` rows of `x` that begin `step` elements apart and may overlap, as in a one-dimensional
/// convolution. Products are computed in f32.
///
/// # Panics
/// If `x` is too short for the last row, or the length of another slice does not match its shape.
///
/// ```
/// use fauna_kernels::matmul::{Dense, linear_over};
/// let weight = Dense::of_floats(&[1.0, 1.0], 1, 2).unwrap();
/// let mut y = [0.0; 3];
/// linear_over(&[1.0, 2.0, 3.0, 4.0], 1, 3, &weight, None, None, &mut y);
/// assert_eq!(y, [3.0, 5.0, 7.0]);
/// ```
pub fn linear_over(
    x: &[f32],
    step: usize,
    rows: usize,
    weight: &Dense,
    bias: Option<&[f32]>,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    linear_over_on(isa(), x, step, rows, weight, bias, finish, y);
}

#[allow(clippy::too_many_arguments)]
pub(super) fn linear_over_on(
    isa: Isa,
    x: &[f32],
    step: usize,
    rows: usize,
    weight: &Dense,
    bias: Option<&[f32]>,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    let (n, k) = (weight.outputs, weight.inputs);
    let x = Matrices { data: x, batch: 0, row: step };
    assert!(x.holds(1, rows, k), "x is too short for its rows");
    assert_eq!(y.len(), rows * n, "y is not rows by outputs");
    assert!(bias.is_none_or(|b| b.len() == n), "bias is not one per output");
    let product = Product {
        x: (x.data.as_ptr(), step),
        x_transposed: false,
        w: weight.data.as_ptr(),
        made: None,
        w_stride: if weight.layout == Layout::OutIn { k } else { n },
        elem: weight.elem,
        layout: weight.layout,
        y: (y.as_mut_ptr(), n),
        add: false,
        length: k,
        bias,
        finish,
        compute: Compute::F32,
        pairs: None,
    };
    // SAFETY: the lengths were checked; `y` is borrowed until all jobs are done.
    unsafe { product.run(isa, rows, n) }
}

#[allow(clippy::too_many_arguments)]
fn linear_on(
    isa: Isa,
    x: &[f32],
    rows: usize,
    weight: &Dense,
    bias: Option<&[f32]>,
    compute: Compute,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    let (n, k) = (weight.outputs, weight.inputs);
    assert_eq!(x.len(), rows * k, "x is not rows by inputs");
    assert_eq!(y.len(), rows * n, "y is not rows by outputs");
    assert!(bias.is_none_or(|b| b.len() == n), "bias is not one per output");
    let mut product = Product {
        x: (x.as_ptr(), k),
        x_transposed: false,
        w: weight.data.as_ptr(),
        made: None,
        w_stride: if weight.layout == Layout::OutIn { k } else { n },
        elem: weight.elem,
        layout: weight.layout,
        y: (y.as_mut_ptr(), n),
        add: false,
        length: k,
        bias,
        finish,
        compute,
        pairs: None,
    };
    let rounded = product.round(isa, x, rows, n);
    // SAFETY: the lengths were checked; `y` and `rounded` are borrowed until all jobs are done.
    unsafe { product.run(isa, rows, n) }
    drop(rounded);
}

/// Number of outputs whose weights [`linear_made`] generates at a time.
const MADE: usize = 32;

/// [`linear`] with a bfloat16 weight `(outputs, inputs)` that is generated on the fly: `make` writes the rows of a
/// range of outputs. Each thread has a few of them at a time.
///
/// # Panics
/// If the length of a slice does not match its shape.
#[allow(clippy::too_many_arguments)]
pub(super) fn linear_made(
    isa: Isa,
    x: &[f32],
    rows: usize,
    (n, k): (usize, usize),
    make: impl Fn(Range<usize>, &mut [Bf16]) + Sync,
    bias: Option<&[f32]>,
    compute: Compute,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    assert_eq!(x.len(), rows * k, "x is not rows by inputs");
    assert_eq!(y.len(), rows * n, "y is not rows by outputs");
    assert!(bias.is_none_or(|b| b.len() == n), "bias is not one per output");
    let mut product = Product {
        x: (x.as_ptr(), k),
        x_transposed: false,
        w: std::ptr::null(),
        made: None,
        w_stride: k,
        elem: Elem::Bf16,
        layout: Layout::OutIn,
        y: (y.as_mut_ptr(), n),
        add: false,
        length: k,
        bias: None,
        finish,
        compute,
        pairs: None,
    };
    let rounded = product.round(isa, x, rows, MADE.min(n));
    let product = &product;
    parallel_for(n.div_ceil(MADE), |job| {
        let first = job * MADE;
        let columns = MADE.min(n - first);
        let mut room = Scratch::new((columns * k).div_ceil(2));
        let w = room.as_mut_ptr();
        // SAFETY: the scratch has that length, and any bits are a valid bfloat16.
        make(first..first + columns, unsafe { std::slice::from_raw_parts_mut(w.cast(), columns * k) });
        let (y, stride) = product.y;
        let bias = bias.map(|bias| &bias[first..first + columns]);
        let product = Product { w: w.cast(), y: (y.wrapping_add(first), stride), bias, ..*product };
        let part = Part { r: 0, rows, c: 0, columns };
        // SAFETY: the lengths were checked, jobs write distinct columns of `y`, and `rounded` outlives them all.
        unsafe { Job { product: &product, way: product.way(rows, columns), part }.begin(isa) }
    });
    drop(rounded);
}

/// Rounds the rows of `x` to bfloat16 and writes them to `to`: if `pairs`, as bfloat16 with odd rows padded with a
/// zero, else as f32.
fn round_rows(x: &[f32], k: usize, to: *mut f32, pairs: bool) {
    if k == 0 {
        return;
    }
    let to = Target(to);
    let step = SMALL.div_ceil(k);
    let rows = x.len() / k;
    parallel_for(rows.div_ceil(step), |job| {
        for r in job * step..((job + 1) * step).min(rows) {
            let row = &x[r * k..][..k];
            // SAFETY: the scratch behind `to` holds all rows, and each is written by one job.
            unsafe {
                if pairs {
                    let stride = k.next_multiple_of(2);
                    let to = to.get().cast::<u16>().add(r * stride);
                    row.iter().enumerate().for_each(|(i, x)| *to.add(i) = tiles::to_bf16(*x) as u16);
                    (k..stride).for_each(|i| *to.add(i) = 0);
                } else {
                    let to = to.get().add(r * k);
                    row.iter()
                        .enumerate()
                        .for_each(|(i, x)| *to.add(i) = f32::from_bits(tiles::to_bf16(*x) << 16));
                }
            }
        }
    });
}

/// A pointer shared by jobs, each of which writes its own part.
struct Target(*mut f32);

// SAFETY: code that uses the pointer writes only the elements of its own job.
unsafe impl Sync for Target {}

impl Target {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

/// A strided batch of f32 matrices. The elements of a row are contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Matrices<'a> {
    /// The elements, starting with the first of the first matrix.
    pub data: &'a [f32],
    /// Stride of the batch axis, in elements; 0 broadcasts one matrix.
    pub batch: usize,
    /// Stride of the rows.
    pub row: usize,
}

impl Matrices<'_> {
    fn holds(&self, batch: usize, rows: usize, columns: usize) -> bool {
        batch * rows * columns == 0
            || (batch - 1) * self.batch + (rows - 1) * self.row + columns <= self.data.len()
    }
}

/// Batched matrix product, `y = a · b` or `a · bᵀ`.
///
/// `a`: `(batch, m, k)`. `b`: `(batch, k, n)` if `layout` is [`Layout::InOut`], `(batch, n, k)` if it is
/// [`Layout::OutIn`]. `y`: `(batch, m, n)`, contiguous, overwritten.
///
/// # Panics
/// If a slice is too short, or `y` has the wrong length.
///
/// ```
/// use fauna_kernels::matmul::{Layout, Matrices, matmul};
/// let a = Matrices { data: &[1.0, 2.0], batch: 0, row: 2 };
/// let b = Matrices { data: &[3.0, 4.0], batch: 0, row: 1 };
/// let mut y = [0.0];
/// matmul(1, [1, 2, 1], a, b, Layout::InOut, &mut y);
/// assert_eq!(y, [11.0]);
/// ```
pub fn matmul(batch: usize, [m, k, n]: [usize; 3], a: Matrices, b: Matrices, layout: Layout, y: &mut [f32]) {
    matmul_on(isa(), batch, [m, k, n], a, b, layout, y);
}

fn matmul_on(
    isa: Isa,
    batch: usize,
    [m, k, n]: [usize; 3],
    a: Matrices,
    b: Matrices,
    layout: Layout,
    y: &mut [f32],
) {
    assert_eq!(y.len(), batch * m * n, "y is not batch by m by n");
    assert!(a.holds(batch, m, k), "a is too short for its strides");
    let (rows, columns) = if layout == Layout::InOut { (k, n) } else { (n, k) };
    assert!(b.holds(batch, rows, columns), "b is too short for its strides");
    if y.is_empty() {
        return;
    }
    let y = Target(y.as_mut_ptr());
    let product = |i: usize| Product {
        x: (a.data.as_ptr().wrapping_add(i * a.batch), a.row),
        x_transposed: false,
        w: b.data.as_ptr().wrapping_add(i * b.batch).cast(),
        made: None,
        w_stride: b.row,
        elem: Elem::F32,
        layout,
        y: (y.get().wrapping_add(i * m * n), n),
        add: false,
        length: k,
        bias: None,
        finish: None,
        compute: Compute::F32,
        pairs: None,
    };
    // SAFETY: the lengths were checked; products write distinct matrices of `y`, which is borrowed until all are done.
    let one = |i: usize| unsafe { product(i).run(isa, m, n) };
    if batch < 2 * threads() || batch * m * n * k.max(1) < SMALL {
        (0..batch).for_each(one);
    } else {
        // Inside this region each product runs on one thread.
        parallel_for(batch, one);
    }
}

/// Writes the part of a weight `(rows, columns)` that is given by the ranges, row by row.
pub(super) type Made<'a> = &'a (dyn Fn(Range<usize>, Range<usize>, &mut [f32]) + Sync);

/// A product `y = x · w` by pointers, with bias and epilogue.
#[derive(Clone, Copy)]
struct Product<'a> {
    /// The first row, and the distance from one row to the next.
    x: (*const f32, usize),
    /// Whether `x` is stored as `(length, rows)`.
    x_transposed: bool,
    w: *const u8,
    /// Stride of the rows of the weight as stored.
    w_stride: usize,
    elem: Elem,
    layout: Layout,
    /// Writes a range of rows and columns of the weight, as stored, where there is no `w`.
    made: Option<Made<'a>>,
    y: (*mut f32, usize),
    /// Whether the product is added to `y`.
    add: bool,
    /// Number of terms of each sum.
    length: usize,
    bias: Option<&'a [f32]>,
    finish: Option<Finish<'a>>,
    compute: Compute,
    /// `x` rounded to bfloat16, rows padded to whole pairs, if the processor multiplies pairs.
    pairs: Option<(*const Bf16, usize)>,
}

// SAFETY: `x`, `pairs`, `w`, `bias` and `finish` are only read, and jobs write distinct parts of `y`.
unsafe impl Sync for Product<'_> {}

/// Number of multiplications from which several threads are used.
pub(super) const SMALL: usize = 1 << 16;
/// Maximum number of rows for which dot products with the weight in place are faster than packing it.
const DOT_ROWS: usize = 24;
/// Maximum number of columns for which they are so for any number of rows: a packed panel would be mostly empty.
const DOT_COLUMNS: usize = 4;
/// Rows (terms of the sums) of a packed block: a panel of it and two tiles of `x` fit the L1 cache.
const BLOCK_LENGTH: usize = 256;
/// Maximum number of columns of a packed block: with `BLOCK_LENGTH`, 320 KiB.
const BLOCK_COLUMNS: usize = 320;
/// Maximum number of rows of a job of [`Way::Packed`], for each of which the weight is packed again.
const BLOCK_ROWS: usize = 512;
/// Numbers of rows and columns below which jobs are not divided for more threads.
const LEAST_ROWS: usize = 96;
const LEAST_COLUMNS: usize = 64;
/// Number of strips of a transposed `x` that are copied together: so many that whole cache lines are read.
const COPY_STRIPS: usize = 4;
/// Number of columns from which rows of `x` are copied: at large power-of-two strides they share cache sets.
const COPY_COLUMNS: usize = 96;

/// Algorithm of a product: how the weight is read.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Dot,
    Stream,
    Packed,
}

impl Product<'_> {
    /// A product of f32: `x`, transposed or not, and `y`, added to or not, each with its row stride.
    fn of_floats(
        (x, x_transposed): ((*const f32, usize), bool),
        (w, w_stride, layout): (*const f32, usize, Layout),
        length: usize,
        (y, add): ((*mut f32, usize), bool),
    ) -> Self {
        Self {
            x,
            x_transposed,
            w: w.cast(),
            w_stride,
            elem: Elem::F32,
            layout,
            made: None,
            y,
            add,
            length,
            bias: None,
            finish: None,
            compute: Compute::F32,
            pairs: None,
        }
    }

    fn way(&self, rows: usize, columns: usize) -> Way {
        match self.layout {
            _ if self.x_transposed || self.add || self.made.is_some() => Way::Packed,
            // Packing rounds the weight to bfloat16; the other algorithms do not.
            _ if self.compute == Compute::Bf16 && self.elem != Elem::Bf16 => Way::Packed,
            Layout::OutIn if rows <= DOT_ROWS || columns <= DOT_COLUMNS => Way::Dot,
            Layout::InOut if rows <= STREAM_ROWS => Way::Stream,
            _ => Way::Packed,
        }
    }

    /// Rounds `x` to bfloat16 if `compute` requires it. The product reads the returned scratch, which must outlive it.
    fn round(&mut self, isa: Isa, x: &[f32], rows: usize, columns: usize) -> Scratch {
        let k = self.length;
        if self.compute != Compute::Bf16 {
            return Scratch::new(0);
        }
        let in_pairs = self.way(rows, columns) != Way::Stream && isa == Isa::Avx512 && features().bf16;
        // Rows of whole pairs.
        let stride = k.next_multiple_of(2);
        let mut rounded = Scratch::new(if in_pairs { rows * stride / 2 } else { rows * k });
        let to = rounded.as_mut_ptr();
        match in_pairs {
            true => self.pairs = Some((to.cast(), stride)),
            false => self.x.0 = to,
        }
        round_rows(x, k, to, in_pairs);
        rounded
    }

    /// Computes `rows` by `columns` of `y` on all threads.
    ///
    /// # Safety
    /// All pointers are valid for `rows`, `columns` and `length`, and no other thread accesses `y`.
    unsafe fn run(&self, isa: Isa, rows: usize, columns: usize) {
        if rows == 0 || columns == 0 {
            return;
        }
        let way = self.way(rows, columns);
        let threads = threads();
        let (mut row_step, mut column_step) = (rows, columns);
        if threads > 1 && rows * columns * self.length.max(1) >= SMALL {
            match way {
                Way::Dot if columns <= DOT_COLUMNS => {
                    row_step = round_up(rows.div_ceil(threads * 8), 24);
                }
                Way::Dot => column_step = round_up(columns.div_ceil(threads * 4), 16),
                Way::Stream => column_step = round_up(columns.div_ceil(threads * 2), 64),
                Way::Packed => (row_step, column_step) = packed_steps(rows, columns, threads),
            }
        } else if way == Way::Packed {
            (row_step, column_step) = packed_steps(rows, columns, 1);
        }
        let (row_jobs, column_jobs) = (rows.div_ceil(row_step), columns.div_ceil(column_step));
        parallel_for(row_jobs * column_jobs, |job| {
            let (r, c) = (job / column_jobs * row_step, job % column_jobs * column_step);
            let part = Part { r, rows: row_step.min(rows - r), c, columns: column_step.min(columns - c) };
            // SAFETY: the part is inside the product.
            unsafe { Job { product: self, way, part }.begin(isa) }
        });
    }
}

/// Returns the rows and columns of a job of [`Way::Packed`]: the largest pieces, nearly square, of which there are
/// enough for all threads. Packing takes time in proportion to rows plus columns, the product to rows times columns.
fn packed_steps(rows: usize, columns: usize, threads: usize) -> (usize, usize) {
    let wanted = if threads > 1 { threads * 4 } else { 1 };
    let step = |n: usize, pieces: usize, unit: usize| round_up(n.div_ceil(pieces), unit);
    let (mut row_pieces, mut column_pieces) = (rows.div_ceil(BLOCK_ROWS), columns.div_ceil(BLOCK_COLUMNS));
    loop {
        let (row_step, column_step) = (step(rows, row_pieces, 24), step(columns, column_pieces, 32));
        let enough = rows.div_ceil(row_step) * columns.div_ceil(column_step) >= wanted;
        let (high, wide) = (row_step > LEAST_ROWS, column_step > LEAST_COLUMNS);
        if enough || !(high || wide) {
            return (row_step, column_step);
        }
        if wide && (column_step > row_step || !high) {
            column_pieces += 1;
        } else {
            row_pieces += 1;
        }
    }
}

fn round_up(n: usize, unit: usize) -> usize {
    n.div_ceil(unit) * unit
}

/// A rectangle of `y`.
#[derive(Clone, Copy)]
struct Part {
    r: usize,
    rows: usize,
    c: usize,
    columns: usize,
}

/// A part of a product, computed by one thread.
struct Job<'a> {
    product: &'a Product<'a>,
    way: Way,
    part: Part,
}

/// Computes `y = x · w` on this thread: `x` is `(rows, length)`, `w` has the layout `layout`; each pointer comes with
/// its row stride.
///
/// # Safety
/// The processor has `S`; pointers are valid for their rows; no other thread accesses `y`.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, W: Widen>(
    (x, rows): ((*const f32, usize), usize),
    w: (*const W, usize, Layout),
    (length, columns): (usize, usize),
    y: (*mut f32, usize),
) {
    // The element type is `W`, without dispatch on that of the product.
    let product = Product::of_floats((x, false), (w.0.cast(), w.1, w.2), length, (y, false));
    let part = Part { r: 0, rows, c: 0, columns };
    // SAFETY: the caller's promise.
    unsafe { Job { product: &product, way: product.way(rows, columns), part }.with_elem::<S, W>() }
}

/// Computes `y = x · w` on this thread, or adds it to `y` if so marked: `x` is `(rows, length)`, or the transpose if so
/// marked, `w` has its layout, and each pointer comes with its row stride.
///
/// # Safety
/// Pointers are valid for their rows; no other thread accesses `y`.
pub(crate) unsafe fn multiply_on(
    isa: Isa,
    x: ((*const f32, usize), bool),
    w: (*const f32, usize, Layout),
    [rows, length, columns]: [usize; 3],
    y: ((*mut f32, usize), bool),
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let product = Product::of_floats(x, w, length, y);
    let part = Part { r: 0, rows, c: 0, columns };
    // SAFETY: the caller's promise.
    unsafe { Job { product: &product, way: product.way(rows, columns), part }.begin(isa) }
}

impl Task for Job<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the processor has `S`, the product's pointers are valid, and jobs' parts do not overlap.
        unsafe {
            match self.product.elem {
                Elem::F32 => self.with_elem::<S, f32>(),
                Elem::Bf16 => self.with_elem::<S, Bf16>(),
                Elem::F16 => self.with_elem::<S, f16>(),
            }
        }
    }
}

impl Job<'_> {
    /// Runs the job.
    ///
    /// # Safety
    /// The pointers of the product are valid for the part, which no other thread accesses; `pairs` is set only if the
    /// processor has AVX512-BF16.
    unsafe fn begin(self, isa: Isa) {
        match self.product.pairs {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: promised by the caller.
            Some(_) => unsafe { self.run_pairs() },
            _ => dispatch(isa, self),
        }
    }

    /// Runs the job with products of bfloat16 pairs.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn run_pairs(self) {
        // SAFETY: the processor has the instructions, the rest is as for `Task::run`.
        unsafe {
            let Some((x, stride)) = self.product.pairs else { return };
            let x = (x.add(self.part.r * stride), stride, self.part.rows);
            match (self.way, self.product.elem) {
                (Way::Packed, Elem::F32) => self.packed::<Pairs, f32>(x),
                (Way::Packed, Elem::Bf16) => self.packed::<Pairs, Bf16>(x),
                (Way::Packed, Elem::F16) => self.packed::<Pairs, f16>(x),
                _ => self.dot::<Pairs>(x),
            }
        }
    }

    #[inline(always)]
    unsafe fn with_elem<S: Simd, W: Widen>(&self) {
        let (p, part) = (self.product, self.part);
        // SAFETY: the part is inside the product.
        unsafe {
            let first = if p.x_transposed { part.r } else { part.r * p.x.1 };
            let x = (p.x.0.add(first), p.x.1, part.rows);
            match self.way {
                Way::Dot => self.dot::<Wide<S, W>>(x),
                Way::Packed => self.packed::<Wide<S, f32>, W>(x),
                Way::Stream => {
                    let w = (p.w.cast::<W>().add(part.c), p.w_stride, part.columns);
                    tiles::stream::<S, W>(x, w, p.length, self.y());
                    self.finish::<S>(self.y(), part.rows);
                }
            }
        }
    }

    /// Returns the first element of the part in `y`, and the row stride.
    #[inline(always)]
    unsafe fn y(&self) -> (*mut f32, usize) {
        let (y, stride) = self.product.y;
        // SAFETY: the part is inside the product.
        unsafe { (y.add(self.part.r * stride + self.part.c), stride) }
    }

    #[inline(always)]
    unsafe fn dot<P: Products>(&self, x: (*const P::X, usize, usize)) {
        let p = self.product;
        // SAFETY: the part is inside the product, whose weight is of `P::W`.
        unsafe {
            let w = p.w.cast::<P::W>().add(self.part.c * p.w_stride);
            tiles::dot::<P>(x, (w, p.w_stride, self.part.columns), p.length, self.y());
            self.finish::<P::S>(self.y(), self.part.rows);
        }
    }

    #[inline(always)]
    unsafe fn packed<P: Products, W: Widen>(&self, (x, x_stride, all_rows): (*const P::X, usize, usize)) {
        let (p, width) = (self.product, panel_width::<P::S>());
        let strip = tiles::strip_rows::<P::S>();
        let block_x = BLOCK_LENGTH * P::PER_LANE;
        let columns = self.part.columns;
        let panels = columns.div_ceil(width);
        let block = p.length.min(block_x);
        let mut scratch = Scratch::new(panels * width * block);
        let packed = scratch.as_mut_ptr();
        let copy = p.x_transposed || columns >= COPY_COLUMNS;
        let mut strip_of_x = Scratch::new(if copy { COPY_STRIPS * strip * BLOCK_LENGTH } else { 0 });
        let copied = strip_of_x.as_mut_ptr().cast::<P::X>();
        let mut i = 0;
        loop {
            let length = block.min(p.length - i);
            // SAFETY: the columns and terms are inside the weight, and the scratch holds all panels.
            unsafe { self.pack::<P, W>(i, length, packed) };
            let depth = length.div_ceil(P::PER_LANE);
            for r in (0..all_rows).step_by(strip) {
                let rows = strip.min(all_rows - r);
                // SAFETY: the strip is inside `x` and `y`, and the scratch holds it.
                unsafe {
                    let x = if p.x_transposed {
                        let of_group = r / strip % COPY_STRIPS;
                        if of_group == 0 {
                            let x = (x.add(i * x_stride + r), x_stride);
                            let rows = all_rows.min(r + COPY_STRIPS * strip) - r;
                            tiles::copy_columns(x, rows, length, (copied, strip));
                        }
                        (copied.add(of_group * length * strip).cast_const(), strip)
                    } else if copy {
                        let x = (x.add(r * x_stride + i), x_stride);
                        tiles::copy_rows(x, rows, depth * P::PER_LANE, (copied, block_x));
                        (copied.cast_const(), block_x)
                    } else {
                        (x.add(r * x_stride + i), x_stride)
                    };
                    let (y, y_stride) = self.y();
                    let y = y.add(r * y_stride);
                    for panel in 0..panels {
                        let at = panel * width;
                        let w = (packed.add(at * depth).cast_const(), width, width.min(columns - at));
                        let (y, add) = ((y.add(at), y_stride), p.add || i > 0);
                        if p.x_transposed {
                            tiles::panel::<P, true>((x.0, x.1, rows), w, depth, y, add);
                        } else {
                            tiles::panel::<P, false>((x.0, x.1, rows), w, depth, y, add);
                        }
                    }
                    if i + length == p.length {
                        self.finish::<P::S>((y, y_stride), rows);
                    }
                }
            }
            i += length;
            if i == p.length {
                break;
            }
        }
    }

    /// Packs the part's columns of the weight, `length` terms from term `first` on, into panels.
    ///
    /// # Safety
    /// The terms are inside the weight, and `packed` holds all panels.
    #[inline(always)]
    unsafe fn pack<P: Products, W: Widen>(&self, first: usize, length: usize, packed: *mut f32) {
        let (p, Part { c, columns, .. }) = (self.product, self.part);
        let round = p.compute == Compute::Bf16 && !W::PAIRED;
        if let Some(made) = p.made {
            let mut room = Scratch::new(length * columns);
            let w = room.as_mut_ptr();
            // SAFETY: the scratch has that length, and the panels hold the terms and columns.
            unsafe {
                let all = std::slice::from_raw_parts_mut(w, length * columns);
                made(first..first + length, c..c + columns, all);
                P::pack::<f32>((w, columns, Layout::InOut), columns, length, packed, round);
            }
            return;
        }
        // SAFETY: promised by the caller.
        unsafe {
            let w = p.w.cast::<W>();
            let w = match p.layout {
                Layout::OutIn => w.add(c * p.w_stride + first),
                Layout::InOut => w.add(first * p.w_stride + c),
            };
            P::pack::<W>((w, p.w_stride, p.layout), columns, length, packed, round);
        }
    }

    /// Adds the bias to finished rows and calls the epilogue.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, (y, y_stride): (*mut f32, usize), rows: usize) {
        let columns = self.part.columns;
        for r in 0..rows {
            // SAFETY: the row is this job's own.
            unsafe {
                let y = y.add(r * y_stride);
                if let Some(bias) = self.product.bias {
                    let bias = bias.as_ptr().add(self.part.c);
                    let mut j = 0;
                    while j + S::LANES <= columns {
                        S::store(y.add(j), S::add(S::load(y.add(j)), S::load(bias.add(j))));
                        j += S::LANES;
                    }
                    for j in j..columns {
                        *y.add(j) += *bias.add(j);
                    }
                }
                if let Some(finish) = self.product.finish {
                    finish(std::slice::from_raw_parts_mut(y, columns));
                }
            }
        }
    }
}

/// A scratch buffer of floats, aligned for vectors and returned to its thread when dropped. Its initial contents are
/// unspecified.
pub(crate) struct Scratch {
    floats: Vec<f32>,
    offset: usize,
}

thread_local! {
    static SPARE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        const ALIGN: usize = 64;
        let mut floats = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        if floats.len() < len + ALIGN / 4 {
            floats.resize(len + ALIGN / 4, 0.0);
        }
        let offset = floats.as_ptr().align_offset(ALIGN).min(ALIGN / 4);
        Self { floats, offset }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.floats[self.offset..].as_mut_ptr()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let floats = std::mem::take(&mut self.floats);
        // Fails while the thread is being destroyed: the buffer is then freed.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().push(floats));
    }
}

#[cfg(test)]
pub(super) mod tests;
