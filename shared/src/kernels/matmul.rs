//! Products of matrices: a linear layer whose weight stays where it is, and batches of f32 products.
//!
//! Weights are read in place from wherever they lie, a mapped file most often, and widened in registers. Where many
//! rows share a weight, each thread packs a block of it that fits its cache and drops it again.

mod tiles;

use super::cpu::{Isa, isa};
use super::pool::{parallel_for, threads};
use super::simd::{Simd, Task, dispatch};
use crate::{Error, Result};
use std::cell::RefCell;
use tiles::{Bf16, F16, STREAM_ROWS, Wide, Widen, panel_width};

/// What a weight's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elem {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
}

impl Elem {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Elem::F32 => 4,
            Elem::Bf16 | Elem::F16 => 2,
        }
    }
}

/// How a weight lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `(outputs, inputs)`, as torch's `Linear` stores it.
    OutIn,
    /// `(inputs, outputs)`, as GPT-2's `Conv1D` stores it.
    InOut,
}

/// What products are computed in; sums are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compute {
    /// Products of f32: exact for half-precision weights.
    #[default]
    F32,
    /// Inputs and weights are rounded to bfloat16 first; twice as fast where the processor has AVX512-BF16.
    Bf16,
}

/// A matrix of weights, borrowed where it lies. Nothing need be aligned.
#[derive(Debug, Clone, Copy)]
pub struct Dense<'a> {
    data: &'a [u8],
    elem: Elem,
    layout: Layout,
    outputs: usize,
    inputs: usize,
}

impl<'a> Dense<'a> {
    /// The weight that `data` holds, little-endian and without gaps.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if `data` is not exactly `outputs * inputs` elements.
    pub fn new(data: &'a [u8], elem: Elem, layout: Layout, outputs: usize, inputs: usize) -> Result<Self> {
        let wanted = outputs.checked_mul(inputs).and_then(|n| n.checked_mul(elem.size()));
        if wanted != Some(data.len()) {
            return Err(Error::input(format!(
                "a weight of {outputs} by {inputs} in {elem:?} does not take {} bytes",
                data.len()
            )));
        }
        Ok(Self { data, elem, layout, outputs, inputs })
    }
}

/// What is done to a piece of a finished row while it is in cache: an activation.
pub type Finish<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// A linear layer: `y = finish(x · W + bias)`.
///
/// `x`: `(rows, inputs)`. `bias`: `(outputs)`. `y`: `(rows, outputs)`, overwritten. `finish` is called on pieces of
/// rows, so it must act on each element alone.
///
/// # Panics
/// If a slice has another length.
///
/// ```
/// use fauna_shared::kernels::matmul::{Compute, Dense, Elem, Layout, linear};
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

#[allow(clippy::too_many_arguments)]
fn linear_on(
    isa: Isa,
    x: &[f32],
    rows: usize,
    weight: &Dense,
    bias: Option<&[f32]>,
    _compute: Compute,
    finish: Option<Finish>,
    y: &mut [f32],
) {
    let (n, k) = (weight.outputs, weight.inputs);
    assert_eq!(x.len(), rows * k, "x is not rows by inputs");
    assert_eq!(y.len(), rows * n, "y is not rows by outputs");
    assert!(bias.is_none_or(|b| b.len() == n), "bias is not one per output");
    let product = Product {
        x: (x.as_ptr(), k),
        w: weight.data.as_ptr(),
        w_stride: if weight.layout == Layout::OutIn { k } else { n },
        elem: weight.elem,
        layout: weight.layout,
        y: (y.as_mut_ptr(), n),
        length: k,
        bias,
        finish,
    };
    // SAFETY: the lengths were checked; `y` is borrowed mutably until all jobs are done.
    unsafe { product.run(isa, rows, n) }
}

/// A product `y = x · w` by pointers, and what follows it.
#[derive(Clone, Copy)]
struct Product<'a> {
    /// The first row, and the distance from one row to the next.
    x: (*const f32, usize),
    w: *const u8,
    /// Elements from one stored row of the weight to the next.
    w_stride: usize,
    elem: Elem,
    layout: Layout,
    y: (*mut f32, usize),
    /// Terms of each sum.
    length: usize,
    bias: Option<&'a [f32]>,
    finish: Option<Finish<'a>>,
}

// SAFETY: `x`, `w`, `bias` and `finish` are only read, and jobs write distinct parts of `y`.
unsafe impl Sync for Product<'_> {}

/// Products of fewer terms than this are not worth another thread.
pub(super) const SMALL: usize = 1 << 16;
/// The most rows for which reading the weight in place along the sum beats packing it.
const DOT_ROWS: usize = 24;
/// Terms of the sums that a packed block covers.
const BLOCK_LENGTH: usize = 512;
/// Columns that a packed block covers: with `BLOCK_LENGTH`, 256 KiB.
const BLOCK_COLUMNS: usize = 128;

/// How the weight is read.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Dot,
    Stream,
    Packed,
}

impl Product<'_> {
    fn way(&self, rows: usize) -> Way {
        match self.layout {
            Layout::OutIn if rows <= DOT_ROWS => Way::Dot,
            Layout::InOut if rows <= STREAM_ROWS => Way::Stream,
            _ => Way::Packed,
        }
    }

    /// Computes `rows` by `columns` of `y` on all threads.
    ///
    /// # Safety
    /// All pointers are valid for `rows`, `columns` and `length`, and nobody else touches `y`.
    unsafe fn run(&self, isa: Isa, rows: usize, columns: usize) {
        if rows == 0 || columns == 0 {
            return;
        }
        let way = self.way(rows);
        let threads = threads();
        let (mut row_step, mut column_step) = (rows, columns);
        if threads > 1 && rows * columns * self.length.max(1) >= SMALL {
            match way {
                Way::Dot => column_step = round_up(columns.div_ceil(threads * 4), 16),
                Way::Stream => column_step = round_up(columns.div_ceil(threads * 2), 64),
                Way::Packed => {
                    column_step = round_up(columns.div_ceil(threads * 2), 32).min(BLOCK_COLUMNS);
                    let columns = columns.div_ceil(column_step);
                    row_step = round_up(rows.div_ceil((threads * 8).div_ceil(columns)), 24).max(96);
                }
            }
        }
        let (row_jobs, column_jobs) = (rows.div_ceil(row_step), columns.div_ceil(column_step));
        parallel_for(row_jobs * column_jobs, |job| {
            let (r, c) = (job / column_jobs * row_step, job % column_jobs * column_step);
            let part = Part { r, rows: row_step.min(rows - r), c, columns: column_step.min(columns - c) };
            dispatch(isa, Job { product: self, way, part });
        });
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

/// One thread's share of a product.
struct Job<'a> {
    product: &'a Product<'a>,
    way: Way,
    part: Part,
}

/// `y = x · w` on this thread alone, `x` being `(rows, length)` and `w` f32 that lies as `layout` says; all are given
/// with the distance from one row to the next.
///
/// # Safety
/// The processor has `S`; pointers are valid for their rows; nobody else touches `y`.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(
    (x, rows): ((*const f32, usize), usize),
    (w, w_stride, layout): (*const f32, usize, Layout),
    (length, columns): (usize, usize),
    y: (*mut f32, usize),
) {
    let w = w.cast();
    let product = Product { x, w, w_stride, elem: Elem::F32, layout, y, length, bias: None, finish: None };
    let part = Part { r: 0, rows, c: 0, columns };
    // SAFETY: the caller's promise.
    unsafe { Job { product: &product, way: product.way(rows), part }.with_elem::<S, f32>() }
}

impl Task for Job<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the processor has `S`, the product's pointers are valid, and jobs' parts do not overlap.
        unsafe {
            match self.product.elem {
                Elem::F32 => self.with_elem::<S, f32>(),
                Elem::Bf16 => self.with_elem::<S, Bf16>(),
                Elem::F16 => self.with_elem::<S, F16>(),
            }
        }
    }
}

impl Job<'_> {
    #[inline(always)]
    unsafe fn with_elem<S: Simd, W: Widen>(&self) {
        let (p, part) = (self.product, self.part);
        // SAFETY: the part is inside the product.
        unsafe {
            let w = p.w.cast::<W>();
            let w = match p.layout {
                Layout::OutIn => w.add(part.c * p.w_stride),
                Layout::InOut => w.add(part.c),
            };
            let x = (p.x.0.add(part.r * p.x.1), p.x.1, part.rows);
            let y = (p.y.0.add(part.r * p.y.1 + part.c), p.y.1);
            match self.way {
                Way::Dot => tiles::dot::<Wide<S, W>>(x, (w, p.w_stride, part.columns), p.length, y),
                Way::Stream => tiles::stream::<S, W>(x, (w, p.w_stride, part.columns), p.length, y),
                Way::Packed => return self.packed::<S, W>(x, w, y),
            }
            self.finish::<S>(y, part.rows);
        }
    }

    #[inline(always)]
    unsafe fn packed<S: Simd, W: Widen>(
        &self,
        (x, x_stride, rows): (*const f32, usize, usize),
        w: *const W,
        (y, y_stride): (*mut f32, usize),
    ) {
        let (p, width) = (self.product, panel_width::<S>());
        let strip = 2 * S::PANEL_ROWS;
        let columns = self.part.columns;
        let panels = columns.div_ceil(width);
        let mut scratch = Scratch::new(panels * width * BLOCK_LENGTH.min(p.length));
        let packed = scratch.as_mut_ptr();
        let mut i = 0;
        loop {
            let length = BLOCK_LENGTH.min(p.length - i);
            for panel in 0..panels {
                // SAFETY: the panel's columns and terms are inside the weight, and the scratch holds all panels.
                unsafe {
                    let at = panel * width;
                    let w = match p.layout {
                        Layout::OutIn => w.add(at * p.w_stride + i),
                        Layout::InOut => w.add(i * p.w_stride + at),
                    };
                    let to = packed.add(at * length);
                    tiles::pack::<S, W>((w, p.w_stride, p.layout), width.min(columns - at), length, to);
                }
            }
            for r in (0..rows).step_by(strip) {
                let rows = strip.min(rows - r);
                // SAFETY: the strip is inside `x` and `y`.
                unsafe {
                    let y = y.add(r * y_stride);
                    for panel in 0..panels {
                        let at = panel * width;
                        tiles::panel::<Wide<S, f32>>(
                            (x.add(r * x_stride + i), x_stride, rows),
                            (packed.add(at * length), width, width.min(columns - at)),
                            length,
                            (y.add(at), y_stride),
                            i > 0,
                        );
                    }
                    if i + length == p.length {
                        self.finish::<S>((y, y_stride), rows);
                    }
                }
            }
            i += length;
            if i == p.length {
                break;
            }
        }
    }

    /// Adds the bias to finished rows and calls what the caller wants done to them.
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

/// Floats for one thread's passing needs, aligned for vectors; given back to the thread when dropped. What they
/// hold at first is anything.
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
        // A thread that is ending has nowhere to keep it.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().push(floats));
    }
}

#[cfg(test)]
pub(super) mod tests;
