//! Sums of outer products of rows, the gradients of the weights of convolutions: `out = Σ x[p]ᵀ · grad[p]` over pixels
//! `p`, where the rows of `x` are given by pointers, so that those under a kernel are not copied.

#![allow(clippy::needless_range_loop, reason = "indices into tiles of registers, as the formulas have them")]

use super::cpu::Isa;
use super::matmul::{Layout, Scratch, tiles};
use super::pool::parallel_for;
use super::simd::{Simd, Task, dispatch};
use super::versions::{Shared, for_each_piece};

/// Pixels whose gradients are packed at a time.
const PIXELS: usize = 128;
/// Columns (outputs) that are packed at a time.
const COLUMNS: usize = 256;
/// Elements of the result per task: they stay in cache, and the packed gradients serve as many rows as that.
const ELEMENTS: usize = 1 << 16;
/// Rows of the tiles of any instruction set divide this.
const TILES: usize = 24;
/// Number of tasks from which the pixels are not divided too.
const TASKS: usize = 16;
/// Minimum number of pixels of a task where they are divided.
const FEW_PIXELS: usize = 1024;

/// The rows of `x`: `taps` for each pixel.
pub(crate) struct Rows<F> {
    /// Number of rows per pixel.
    pub(crate) taps: usize,
    /// Elements of a row.
    pub(crate) depth: usize,
    /// Stores the pointers to the rows of one tap: of as many pixels as it is given places for, from a pixel on.
    pub(crate) pointers: F,
}

/// Computes the sums: `out[t · depth + i][o] = Σ x[p][t][i] grad[p][o]`.
///
/// `grad`: `(pixels, outputs)`. `out`: `(taps, depth, outputs)`, overwritten. Partial sums depend only on the shapes, so
/// that results do not depend on the number of threads.
///
/// # Safety
/// `x.pointers(pixel, tap, places)` stores pointers that are valid for `depth` elements for as long as the call lasts.
pub(crate) unsafe fn products<F>(isa: Isa, x: &Rows<F>, grad: &[f32], outputs: usize, out: &mut [f32])
where
    F: Fn(usize, usize, &mut [*const f32]) + Sync,
{
    let (pixels, terms) = (grad.len() / outputs.max(1), x.taps * x.depth);
    assert_eq!((grad.len(), out.len()), (pixels * outputs, terms * outputs), "the gradients do not match");
    if out.is_empty() {
        return;
    }
    if pixels == 0 {
        return out.fill(0.0);
    }
    // Each task has several taps, or a strip of the rows of one.
    let group = (ELEMENTS / (x.depth * outputs)).clamp(1, x.taps);
    let rows = (ELEMENTS / outputs).next_multiple_of(TILES).min(x.depth);
    let strips = x.depth.div_ceil(rows);
    let tasks = x.taps.div_ceil(group) * strips;
    let parts = TASKS.div_ceil(tasks).min(pixels / FEW_PIXELS).max(1);
    let size = pixels.div_ceil(parts).next_multiple_of(PIXELS);
    let parts = pixels.div_ceil(size);
    let mut partial = vec![0f32; if parts > 1 { parts * out.len() } else { 0 }];
    let whole = if parts > 1 { &mut partial[..] } else { &mut out[..] };
    let all = Shared(whole.as_mut_ptr());
    parallel_for(parts * tasks, |task| {
        let (part, tap, strip) = (task / tasks, task % tasks / strips * group, task % strips);
        let (first, row) = (part * size, strip * rows);
        let (taps, rows) = (group.min(x.taps - tap), rows.min(x.depth - row));
        let pixels = size.min(pixels - first);
        // SAFETY: the rows of this part, its taps and its strip are inside the result, and this task's own.
        let out = unsafe { all.get().add((part * terms + tap * x.depth + row) * outputs) };
        dispatch(isa, Strip { x, taps: (tap, taps), rows: (row, rows), first, pixels, grad, outputs, out });
    });
    if parts > 1 {
        let len = out.len();
        for_each_piece(out, 4096, |i, out| {
            let at = i * 4096;
            out.copy_from_slice(&partial[at..at + out.len()]);
            for part in 1..parts {
                let part = &partial[part * len + at..][..out.len()];
                out.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
            }
        });
    }
}

/// Some rows of some taps of the result, over some pixels: the first of each, and the number.
struct Strip<'a, F> {
    x: &'a Rows<F>,
    taps: (usize, usize),
    rows: (usize, usize),
    first: usize,
    pixels: usize,
    grad: &'a [f32],
    outputs: usize,
    out: *mut f32,
}

impl<F: Fn(usize, usize, &mut [*const f32]) + Sync> Task for Strip<'_, F> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = tiles::panel_width::<S>();
        let most = self.outputs.min(COLUMNS);
        let mut packed = Scratch::new(most.next_multiple_of(width) * PIXELS);
        let packed = packed.as_mut_ptr();
        let mut pointers = [std::ptr::null::<f32>(); PIXELS];
        for done in (0..self.pixels).step_by(PIXELS) {
            let count = PIXELS.min(self.pixels - done);
            for column in (0..self.outputs).step_by(COLUMNS) {
                let columns = COLUMNS.min(self.outputs - column);
                // SAFETY: the pixels and columns are inside the gradient, and the scratch holds their panels.
                unsafe {
                    let grad = self.grad.as_ptr().add((self.first + done) * self.outputs + column);
                    tiles::pack::<S, f32>((grad, self.outputs, Layout::InOut), columns, count, packed);
                }
                for tap in 0..self.taps.1 {
                    let pointers = &mut pointers[..count];
                    (self.x.pointers)(self.first + done, self.taps.0 + tap, pointers);
                    pointers.iter_mut().for_each(|p| *p = p.wrapping_add(self.rows.0));
                    // SAFETY: each pointer is valid for the rows, which are this task's own in the result.
                    unsafe {
                        let y = self.out.add(tap * self.x.depth * self.outputs + column);
                        strip::<S>(pointers, self.rows.1, packed, (y, self.outputs, columns), done > 0);
                    }
                }
            }
        }
    }
}

/// Adds the products of the first `rows` elements of each pointer with the packed gradients.
///
/// # Safety
/// The processor has `S`; each pointer is valid for `rows` elements, `packed` for a row of panels of the columns for
/// each of them, and `y` for `rows` rows of the columns.
#[inline(always)]
unsafe fn strip<S: Simd>(
    pointers: &[*const f32],
    rows: usize,
    packed: *const f32,
    (y, y_stride, columns): (*mut f32, usize, usize),
    add: bool,
) {
    let (width, count) = (tiles::panel_width::<S>(), pointers.len());
    let mut r = 0;
    while r < rows {
        let mut tile = 0;
        for panel in 0..columns.div_ceil(width) {
            // SAFETY: promised by the caller; the tile is inside the rows.
            tile = unsafe {
                let w = packed.add(panel * width * count);
                let y = y.add(r * y_stride + panel * width);
                let y = (y, y_stride, width.min(columns - panel * width));
                let x = (pointers.as_ptr(), count, r);
                match rows - r {
                    12.. if S::PANEL_ROWS >= 12 => outer_tile::<S, 12>(x, w, y, add),
                    8.. if S::PANEL_ROWS >= 8 => outer_tile::<S, 8>(x, w, y, add),
                    6.. if S::PANEL_ROWS == 6 => outer_tile::<S, 6>(x, w, y, add),
                    4.. => outer_tile::<S, 4>(x, w, y, add),
                    2.. => outer_tile::<S, 2>(x, w, y, add),
                    _ => outer_tile::<S, 1>(x, w, y, add),
                }
            };
        }
        r += tile;
    }
}

/// Adds the products of elements `row..row + M` of `count` rows with their rows of a panel; returns `M`.
///
/// # Safety
/// The processor has `S`; each pointer is valid for `row + M` elements, `w` for `count` rows of a panel, and `y` for `M`
/// rows of its columns.
#[inline(always)]
unsafe fn outer_tile<S: Simd, const M: usize>(
    (x, count, row): (*const *const f32, usize, usize),
    w: *const f32,
    (y, y_stride, columns): (*mut f32, usize, usize),
    add: bool,
) -> usize {
    const VECTORS: usize = 2;
    let lanes = S::LANES;
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); VECTORS]; M];
        let mut w = w;
        for i in 0..count {
            let x = (*x.add(i)).add(row);
            let weights = [S::load(w), S::load(w.add(lanes))];
            for r in 0..M {
                let factor = S::splat(*x.add(r));
                for v in 0..VECTORS {
                    sums[r][v] = S::fma(factor, weights[v], sums[r][v]);
                }
            }
            w = w.add(VECTORS * lanes);
        }
        for r in 0..M {
            for v in 0..VECTORS {
                let y = y.wrapping_add(r * y_stride + v * lanes);
                let left = columns.saturating_sub(v * lanes);
                if left >= lanes {
                    let old = if add { S::load(y) } else { S::splat(0.0) };
                    S::store(y, S::add(sums[r][v], old));
                } else if left > 0 {
                    let old = if add { S::load_n(y, left) } else { S::splat(0.0) };
                    S::store_n(y, S::add(sums[r][v], old), left);
                }
            }
        }
    }
    M
}
