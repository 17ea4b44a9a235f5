//! Micro-kernels of the matrix product: tiles of the output that stay in registers while they are summed.
//!
//! All three take `x` as rows of contiguous elements and differ in the layout of the weight and the number of rows:
//!
//! - [`dot`]: the weight is `(outputs, inputs)`, read in place. For few rows: each weight is read once.
//! - [`stream`]: the weight is `(inputs, outputs)`, read in place. For very few rows: the outputs stay in cache.
//! - [`panel`]: the weight is packed into panels two vectors wide. For many rows: the fastest, apart from packing.

#![allow(clippy::needless_range_loop, reason = "indices into tiles of registers, as the formulas have them")]

use super::Layout;
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::Avx512;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Arithmetic of a product: which element types are read, and how many elements a vector holds.
///
/// # Safety
/// See [`Simd`].
pub(crate) trait Products {
    type S: Simd;
    /// Element type of `x`.
    type X: Copy;
    /// Element type of the weight if it is read in place.
    type W: Copy;
    /// Vector of elements.
    type R: Copy;
    /// Number of consecutive terms of the sum in one lane.
    const PER_LANE: usize;

    unsafe fn load_x(p: *const Self::X) -> Self::R;
    unsafe fn load_x_n(p: *const Self::X, n: usize) -> Self::R;
    unsafe fn load_w(p: *const Self::W) -> Self::R;
    unsafe fn load_w_n(p: *const Self::W, n: usize) -> Self::R;
    /// Broadcasts the first [`Products::PER_LANE`] elements at `p` to every lane.
    unsafe fn splat_x(p: *const Self::X) -> Self::R;
    /// Loads a vector of a packed panel, with [`Products::PER_LANE`] elements per lane.
    unsafe fn load_packed(p: *const f32) -> Self::R;
    /// Packs all columns into panels for [`panel`]; `length` elements become `length / PER_LANE` rows, rounded up. If
    /// `round`, weights are rounded to bfloat16.
    unsafe fn pack<W: Widen>(
        w: (*const W, usize, Layout),
        columns: usize,
        length: usize,
        panels: *mut f32,
        round: bool,
    );
    /// Returns `a * b + c`, with the products of a lane summed.
    unsafe fn fma(a: Self::R, b: Self::R, c: Vector<Self>) -> Vector<Self>;
}

/// Vector of f32 accumulators of `P`.
pub(crate) type Vector<P> = <<P as Products>::S as Simd>::V;

/// Element type of a weight that is converted to f32 when loaded.
pub(crate) trait Widen: Copy + Sync {
    /// Whether two consecutive elements are a pair for [`Products::PER_LANE`] of 2.
    const PAIRED: bool;

    /// # Safety
    /// See [`Simd`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    /// # Safety
    /// See [`Simd`].
    unsafe fn load_n<S: Simd>(p: *const Self, n: usize) -> S::V;
}

/// The bits of a bfloat16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Bf16(pub(crate) u16);

macro_rules! widen {
    ($type:ty, $cast:ty, $load:ident, $load_n:ident, $paired:expr) => {
        impl Widen for $type {
            const PAIRED: bool = $paired;

            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const Self) -> S::V {
                // SAFETY: promised by the caller; the types have the same layout.
                unsafe { S::$load(p.cast::<$cast>()) }
            }
            #[inline(always)]
            unsafe fn load_n<S: Simd>(p: *const Self, n: usize) -> S::V {
                // SAFETY: promised by the caller; the types have the same layout.
                unsafe { S::$load_n(p.cast::<$cast>(), n) }
            }
        }
    };
}
widen!(f32, f32, load, load_n, false);
widen!(Bf16, u16, load_bf16, load_bf16_n, true);
widen!(half::f16, u16, load_f16, load_f16_n, false);

/// Products in f32, with the weight converted from `W`.
pub(crate) struct Wide<S, W>(PhantomData<(S, W)>);

// SAFETY (all blocks): the trait requires the caller to check the processor and the pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<S: Simd, W: Widen> Products for Wide<S, W> {
    type S = S;
    type X = f32;
    type W = W;
    type R = S::V;
    const PER_LANE: usize = 1;

    #[inline(always)]
    unsafe fn load_x(p: *const f32) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_x_n(p: *const f32, n: usize) -> S::V {
        unsafe { S::load_n(p, n) }
    }
    #[inline(always)]
    unsafe fn load_w(p: *const W) -> S::V {
        unsafe { W::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn load_w_n(p: *const W, n: usize) -> S::V {
        unsafe { W::load_n::<S>(p, n) }
    }
    #[inline(always)]
    unsafe fn load_packed(p: *const f32) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn splat_x(p: *const f32) -> S::V {
        unsafe { S::splat(*p) }
    }
    #[inline(always)]
    unsafe fn pack<E: Widen>(
        w: (*const E, usize, Layout),
        columns: usize,
        length: usize,
        panels: *mut f32,
        round: bool,
    ) {
        unsafe {
            pack::<S, E>(w, columns, length, panels);
            if round {
                let len = length * columns.next_multiple_of(panel_width::<S>());
                let panels = std::slice::from_raw_parts_mut(panels, len);
                panels.iter_mut().for_each(|w| *w = f32::from_bits(to_bf16(*w) << 16));
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: S::V, b: S::V, c: S::V) -> S::V {
        unsafe { S::fma(a, b, c) }
    }
}

/// Rounds `x` to the nearest bfloat16, ties to even; returns its bits.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // A NaN must not be rounded to infinity.
    let bits = if bits & 0x7fff_ffff > 0x7f80_0000 { bits | 0x40_0000 } else { rounded };
    bits >> 16
}

/// Products of bfloat16 pairs, which one instruction multiplies and sums.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Pairs;

// SAFETY (all blocks): the trait requires the caller to check the processor, here AVX512-BF16, and the pointers.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
impl Products for Pairs {
    type S = Avx512;
    type X = Bf16;
    type W = Bf16;
    type R = __m512i;
    const PER_LANE: usize = 2;

    #[inline(always)]
    unsafe fn load_x(p: *const Bf16) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_x_n(p: *const Bf16, n: usize) -> __m512i {
        unsafe { _mm512_maskz_loadu_epi16(((1u64 << n) - 1) as __mmask32, p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_w(p: *const Bf16) -> __m512i {
        unsafe { Self::load_x(p) }
    }
    #[inline(always)]
    unsafe fn load_w_n(p: *const Bf16, n: usize) -> __m512i {
        unsafe { Self::load_x_n(p, n) }
    }
    #[inline(always)]
    unsafe fn splat_x(p: *const Bf16) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_packed(p: *const f32) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn pack<W: Widen>(
        (w, w_stride, layout): (*const W, usize, Layout),
        columns: usize,
        length: usize,
        panels: *mut f32,
        _round: bool,
    ) {
        unsafe {
            if W::PAIRED && layout == Layout::OutIn && w_stride.is_multiple_of(2) && length.is_multiple_of(2)
            {
                // The pairs are contiguous already: packed like floats.
                return pack::<Avx512, f32>((w.cast(), w_stride / 2, layout), columns, length / 2, panels);
            }
            pack::<Avx512, W>((w, w_stride, layout), columns, length, panels);
            let width = panel_width::<Avx512>();
            let half = |p: *const f32| {
                let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(p));
                _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded))
            };
            // In place, panel by panel: writes never overtake reads.
            for panel in 0..columns.div_ceil(width) {
                let from = panels.add(panel * width * length);
                let to = panels.add(panel * width * length.div_ceil(2));
                for i in 0..length / 2 {
                    for j in (0..width).step_by(16) {
                        let (first, second) =
                            (half(from.add(2 * i * width + j)), half(from.add((2 * i + 1) * width + j)));
                        let pair = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
                        _mm512_storeu_si512(to.add(i * width + j).cast(), pair);
                    }
                }
                if length % 2 == 1 {
                    for j in (0..width).step_by(16) {
                        let last = half(from.add((length - 1) * width + j));
                        _mm512_storeu_si512(to.add(length / 2 * width + j).cast(), last);
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512i, b: __m512i, c: __m512) -> __m512 {
        unsafe {
            _mm512_dpbf16_ps(
                c,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }
}

/// Number of columns of the [`dot`] tile.
const DOT_COLUMNS: usize = 4;

/// `y[r][c] = Σ x[r][i] w[c][i]` for `rows` rows of `x` and `columns` rows of `w`, `length` elements each.
///
/// # Safety
/// The processor has `P::S`; `x`, `w` and `y` are valid for their rows, `*_stride` elements apart.
#[inline(always)]
pub(crate) unsafe fn dot<P: Products>(
    (x, x_stride, rows): (*const P::X, usize, usize),
    (w, w_stride, columns): (*const P::W, usize, usize),
    length: usize,
    (y, y_stride): (*mut f32, usize),
) {
    let mut c = 0;
    while c < columns {
        let n = (columns - c).min(DOT_COLUMNS);
        let mut r = 0;
        while r < rows {
            let m = (rows - r).min(P::S::DOT_ROWS);
            // SAFETY: the tile's rows and columns are inside.
            unsafe {
                let tile = (
                    (x.add(r * x_stride), x_stride),
                    (w.add(c * w_stride), w_stride),
                    length,
                    (y.add(r * y_stride + c), y_stride, n),
                );
                match m {
                    1 => dot_tile::<P, 1>(tile.0, tile.1, tile.2, tile.3),
                    2 => dot_tile::<P, 2>(tile.0, tile.1, tile.2, tile.3),
                    3 => dot_tile::<P, 3>(tile.0, tile.1, tile.2, tile.3),
                    4 => dot_tile::<P, 4>(tile.0, tile.1, tile.2, tile.3),
                    5 => dot_tile::<P, 5>(tile.0, tile.1, tile.2, tile.3),
                    _ => dot_tile::<P, 6>(tile.0, tile.1, tile.2, tile.3),
                }
            }
            r += m;
        }
        c += n;
    }
}

/// A tile of [`dot`]: `M` rows of four columns, of which the first `n` are written.
#[inline(always)]
unsafe fn dot_tile<P: Products, const M: usize>(
    (x, x_stride): (*const P::X, usize),
    (w, w_stride): (*const P::W, usize),
    length: usize,
    (y, y_stride, n): (*mut f32, usize, usize),
) {
    let step = P::S::LANES * P::PER_LANE;
    // SAFETY: promised by the caller; columns past the last read the last one again.
    unsafe {
        let column = |c: usize| w.add(c.min(n - 1) * w_stride);
        let w = [column(0), column(1), column(2), column(3)];
        let mut sums = [[P::S::splat(0.0); DOT_COLUMNS]; M];
        let mut i = 0;
        while i + step <= length {
            let mut factors = [P::load_x(x.add(i)); M];
            for r in 1..M {
                factors[r] = P::load_x(x.add(r * x_stride + i));
            }
            for c in 0..DOT_COLUMNS {
                let weight = P::load_w(w[c].add(i));
                for r in 0..M {
                    sums[r][c] = P::fma(factors[r], weight, sums[r][c]);
                }
            }
            i += step;
        }
        if i < length {
            let left = length - i;
            for c in 0..DOT_COLUMNS {
                let weight = P::load_w_n(w[c].add(i), left);
                for r in 0..M {
                    let factor = P::load_x_n(x.add(r * x_stride + i), left);
                    sums[r][c] = P::fma(factor, weight, sums[r][c]);
                }
            }
        }
        for r in 0..M {
            let out = P::S::sum4(sums[r]);
            y.add(r * y_stride).copy_from_nonoverlapping(out.as_ptr(), n);
        }
    }
}

/// Number of weight rows that [`stream`] adds in one pass over the outputs.
const STREAM_DEPTH: usize = 4;
/// Maximum number of rows of `x` of [`stream`].
pub(crate) const STREAM_ROWS: usize = 4;

/// `y[r][j] = Σ x[r][i] w[i][j]` for at most [`STREAM_ROWS`] rows of `x`, `length` rows of `w` and `columns` columns.
///
/// # Safety
/// The processor has `S`; `x`, `w` and `y` are valid for their rows, `*_stride` elements apart.
#[inline(always)]
pub(crate) unsafe fn stream<S: Simd, W: Widen>(
    (x, x_stride, rows): (*const f32, usize, usize),
    (w, w_stride, columns): (*const W, usize, usize),
    length: usize,
    (y, y_stride): (*mut f32, usize),
) {
    // SAFETY: promised by the caller.
    unsafe {
        if rows == 1 && columns == NARROW {
            return stream_narrow::<S, W>(x, (w, w_stride), length, y);
        }
        for r in 0..rows {
            std::slice::from_raw_parts_mut(y.add(r * y_stride), columns).fill(0.0);
        }
        let mut i = 0;
        while i < length {
            let left = (x.add(i), w.add(i * w_stride));
            if length - i >= STREAM_DEPTH {
                stream_pass::<S, W, STREAM_DEPTH>(
                    (left.0, x_stride, rows),
                    (left.1, w_stride, columns),
                    (y, y_stride),
                );
                i += STREAM_DEPTH;
            } else {
                stream_pass::<S, W, 1>((left.0, x_stride, rows), (left.1, w_stride, columns), (y, y_stride));
                i += 1;
            }
        }
    }
}

/// Number of columns for which all sums stay in registers: the most common head dimension, where one query sums values.
const NARROW: usize = 64;

/// [`stream`] of one row and [`NARROW`] columns.
#[inline(always)]
unsafe fn stream_narrow<S: Simd, W: Widen>(
    x: *const f32,
    (w, w_stride): (*const W, usize),
    length: usize,
    y: *mut f32,
) {
    // SAFETY: promised by the caller; no vector has fewer than four lanes, so that 16 of them hold all columns.
    unsafe {
        let vectors = NARROW / S::LANES;
        let mut sums = [S::splat(0.0); NARROW / 4];
        for i in 0..length {
            let factor = S::splat(*x.add(i));
            for v in 0..vectors {
                let weight = W::load::<S>(w.add(i * w_stride + v * S::LANES));
                sums[v] = S::fma(factor, weight, sums[v]);
            }
        }
        for v in 0..vectors {
            S::store(y.add(v * S::LANES), sums[v]);
        }
    }
}

/// Adds `D` rows of `w`, each times its element of `x`, to the rows of `y`.
#[inline(always)]
unsafe fn stream_pass<S: Simd, W: Widen, const D: usize>(
    (x, x_stride, rows): (*const f32, usize, usize),
    w: (*const W, usize, usize),
    y: (*mut f32, usize),
) {
    // SAFETY: promised by the caller.
    unsafe {
        match rows {
            1 => stream_rows::<S, W, D, 1>((x, x_stride), w, y),
            2 => stream_rows::<S, W, D, 2>((x, x_stride), w, y),
            3 => stream_rows::<S, W, D, 3>((x, x_stride), w, y),
            _ => stream_rows::<S, W, D, 4>((x, x_stride), w, y),
        }
    }
}

/// [`stream_pass`] for `M` rows of `y`.
#[inline(always)]
unsafe fn stream_rows<S: Simd, W: Widen, const D: usize, const M: usize>(
    (x, x_stride): (*const f32, usize),
    (w, w_stride, columns): (*const W, usize, usize),
    (y, y_stride): (*mut f32, usize),
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut factors = [[S::splat(0.0); D]; M];
        for r in 0..M {
            for d in 0..D {
                factors[r][d] = S::splat(*x.add(r * x_stride + d));
            }
        }
        let mut j = 0;
        while j + S::LANES <= columns {
            let mut sums = [S::load(y.add(j)); M];
            for r in 1..M {
                sums[r] = S::load(y.add(r * y_stride + j));
            }
            for d in 0..D {
                let weight = W::load::<S>(w.add(d * w_stride + j));
                for r in 0..M {
                    sums[r] = S::fma(factors[r][d], weight, sums[r]);
                }
            }
            for r in 0..M {
                S::store(y.add(r * y_stride + j), sums[r]);
            }
            j += S::LANES;
        }
        if j < columns {
            let left = columns - j;
            for r in 0..M {
                let mut sum = S::load_n(y.add(r * y_stride + j), left);
                for d in 0..D {
                    sum = S::fma(factors[r][d], W::load_n::<S>(w.add(d * w_stride + j), left), sum);
                }
                S::store_n(y.add(r * y_stride + j), sum, left);
            }
        }
    }
}

/// Number of vectors in a row of a panel.
const PANEL_VECTORS: usize = 2;

/// Number of columns of a panel of the longest vectors.
const MAX_PANEL_WIDTH: usize = PANEL_VECTORS * 16;

/// Number of columns of a panel.
pub(crate) const fn panel_width<S: Simd>() -> usize {
    PANEL_VECTORS * S::LANES
}

/// Number of rows of `x` that are multiplied with all panels one after the other.
pub(crate) const fn strip_rows<S: Simd>() -> usize {
    2 * S::PANEL_ROWS
}

/// Copies `rows` rows of `length` elements; each pointer comes with its row stride.
///
/// # Safety
/// Both pointers are valid for their rows.
#[inline(always)]
pub(crate) unsafe fn copy_rows<T: Copy>(
    (x, x_stride): (*const T, usize),
    rows: usize,
    length: usize,
    (to, stride): (*mut T, usize),
) {
    for r in 0..rows {
        // SAFETY: promised by the caller.
        unsafe { to.add(r * stride).copy_from_nonoverlapping(x.add(r * x_stride), length) };
    }
}

/// Copies `length` rows of `columns` elements to strips of `width` columns: `(strips, length, width)`.
///
/// # Safety
/// Both pointers are valid for their rows.
#[inline(always)]
pub(crate) unsafe fn copy_columns<T: Copy>(
    (x, x_stride): (*const T, usize),
    columns: usize,
    length: usize,
    (to, width): (*mut T, usize),
) {
    for i in 0..length {
        for (strip, c) in (0..columns).step_by(width).enumerate() {
            // SAFETY: promised by the caller.
            unsafe {
                let (from, to) = (x.add(i * x_stride + c), to.add((strip * length + i) * width));
                if columns - c >= width {
                    // A constant, so that vectors are copied.
                    to.copy_from_nonoverlapping(from, width);
                } else {
                    to.copy_from_nonoverlapping(from, columns - c);
                }
            }
        }
    }
}

/// `y[r][c] = Σ x[r][i] w[i][c]` for the first `columns` columns of one panel of the weight; added to `y` if `add`.
///
/// `x` is `(rows, length)` with its row stride, or if `TRANSPOSED`, `(length, rows)` with rows of [`strip_rows`].
/// `length` is the number of terms, in elements or pairs of them. Row `i` of the panel is [`panel_width`] floats (or
/// pairs) at `w + i * w_stride`.
///
/// # Safety
/// The processor has `P::S`; `x` and `y` are valid for their rows, `w` for the whole width.
#[inline(always)]
pub(crate) unsafe fn panel<P: Products, const TRANSPOSED: bool>(
    (x, x_stride, rows): (*const P::X, usize, usize),
    (w, w_stride, columns): (*const f32, usize, usize),
    length: usize,
    (y, y_stride): (*mut f32, usize),
    add: bool,
) {
    let mut r = 0;
    while r < rows {
        let left = rows - r;
        // SAFETY: promised by the caller; the tile's rows are inside.
        unsafe {
            let x = (if TRANSPOSED { x.add(r) } else { x.add(r * x_stride) }, x_stride);
            let y = (y.add(r * y_stride), y_stride);
            let w = (w, w_stride, columns);
            r += match left {
                12.. if P::S::PANEL_ROWS >= 12 => panel_tile::<P, 12, TRANSPOSED>(x, w, length, y, add),
                8.. if P::S::PANEL_ROWS >= 8 => panel_tile::<P, 8, TRANSPOSED>(x, w, length, y, add),
                6.. if P::S::PANEL_ROWS == 6 => panel_tile::<P, 6, TRANSPOSED>(x, w, length, y, add),
                4.. => panel_tile::<P, 4, TRANSPOSED>(x, w, length, y, add),
                2.. => panel_tile::<P, 2, TRANSPOSED>(x, w, length, y, add),
                _ => panel_tile::<P, 1, TRANSPOSED>(x, w, length, y, add),
            };
        }
    }
}

/// A tile of [`panel`]; returns its number of rows.
#[inline(always)]
unsafe fn panel_tile<P: Products, const M: usize, const TRANSPOSED: bool>(
    (x, x_stride): (*const P::X, usize),
    (w, w_stride, columns): (*const f32, usize, usize),
    length: usize,
    (y, y_stride): (*mut f32, usize),
    add: bool,
) -> usize {
    let lanes = P::S::LANES;
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[P::S::splat(0.0); PANEL_VECTORS]; M];
        let (mut xi, mut wi) = (x, w);
        for _ in 0..length {
            let weights = [P::load_packed(wi), P::load_packed(wi.add(lanes))];
            for r in 0..M {
                let factor = P::splat_x(xi.add(if TRANSPOSED { r } else { r * x_stride }));
                for v in 0..PANEL_VECTORS {
                    sums[r][v] = P::fma(factor, weights[v], sums[r][v]);
                }
            }
            xi = xi.add(if TRANSPOSED { strip_rows::<P::S>() } else { P::PER_LANE });
            wi = wi.add(w_stride);
        }
        // Loops short enough to be unrolled: otherwise the sums would be in memory, not in registers.
        if columns >= PANEL_VECTORS * lanes {
            for r in 0..M {
                for v in 0..PANEL_VECTORS {
                    let y = y.add(r * y_stride + v * lanes);
                    let old = if add { P::S::load(y) } else { P::S::splat(0.0) };
                    P::S::store(y, P::S::add(sums[r][v], old));
                }
            }
            return M;
        }
        let mut tile = [[0f32; MAX_PANEL_WIDTH]; M];
        for r in 0..M {
            for v in 0..PANEL_VECTORS {
                P::S::store(tile[r].as_mut_ptr().add(v * lanes), sums[r][v]);
            }
        }
        for (r, tile) in tile.iter().enumerate() {
            let y = std::slice::from_raw_parts_mut(y.add(r * y_stride), columns);
            y.iter_mut().zip(tile).for_each(|(y, sum)| *y = if add { *y + sum } else { *sum });
        }
    }
    M
}

/// [`panel`] with an array of pointers to the rows of `x`, for convolutions: `y[r][c] = Σ x[t][r][i] w[t][i][c]` for
/// one panel of f32, over `taps` taps of `depth` elements each.
///
/// `x` holds a pointer per tap and row: the pointers of a tap are contiguous, and `x_step` is the stride of the taps.
///
/// # Safety
/// See [`panel`]; every pointer is valid for `depth` elements.
#[inline(always)]
pub(crate) unsafe fn scattered<S: Simd>(
    (x, x_step, rows): (*const *const f32, usize, usize),
    (w, columns): (*const f32, usize),
    (taps, depth): (usize, usize),
    (y, y_stride): (*mut f32, usize),
    add: bool,
) {
    let mut r = 0;
    while r < rows {
        let left = rows - r;
        let mut done = 0;
        for t in 0..taps {
            // SAFETY: promised by the caller; the tile's rows are inside.
            unsafe {
                let (x, y) = (x.add(t * x_step + r), (y.add(r * y_stride), y_stride));
                let w = (w.add(t * depth * panel_width::<S>()), columns);
                let add = add || t > 0;
                done = match left {
                    12.. if S::PANEL_ROWS >= 12 => scattered_tile::<S, 12>(x, w, depth, y, add),
                    8.. if S::PANEL_ROWS >= 8 => scattered_tile::<S, 8>(x, w, depth, y, add),
                    6.. if S::PANEL_ROWS == 6 => scattered_tile::<S, 6>(x, w, depth, y, add),
                    4.. => scattered_tile::<S, 4>(x, w, depth, y, add),
                    2.. => scattered_tile::<S, 2>(x, w, depth, y, add),
                    _ => scattered_tile::<S, 1>(x, w, depth, y, add),
                };
            }
        }
        r += done;
    }
}

/// A tile of one tap of [`scattered`]; returns its number of rows. Sums are stored after each tap: inside a loop over
/// taps they would be spilled from registers.
#[inline(always)]
unsafe fn scattered_tile<S: Simd, const M: usize>(
    x: *const *const f32,
    (w, columns): (*const f32, usize),
    depth: usize,
    (y, y_stride): (*mut f32, usize),
    add: bool,
) -> usize {
    let lanes = S::LANES;
    // SAFETY: promised by the caller.
    unsafe {
        let mut rows = [*x; M];
        for r in 1..M {
            rows[r] = *x.add(r);
        }
        let mut sums = [[S::splat(0.0); PANEL_VECTORS]; M];
        let mut wi = w;
        for i in 0..depth {
            let weights = [S::load(wi), S::load(wi.add(lanes))];
            for r in 0..M {
                let factor = S::splat(*rows[r].add(i));
                for v in 0..PANEL_VECTORS {
                    sums[r][v] = S::fma(factor, weights[v], sums[r][v]);
                }
            }
            wi = wi.add(PANEL_VECTORS * lanes);
        }
        for r in 0..M {
            for v in 0..PANEL_VECTORS {
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

/// Packs `length` by `columns` weights into panels of f32, row by row; missing columns of the last panel are zero.
///
/// # Safety
/// The processor has `S`; `w` is valid for `length` by `columns` elements, `panels` for `length` rows of whole panels.
#[inline(always)]
pub(crate) unsafe fn pack<S: Simd, W: Widen>(
    (w, w_stride, layout): (*const W, usize, Layout),
    columns: usize,
    length: usize,
    panels: *mut f32,
) {
    let (lanes, width) = (S::LANES, panel_width::<S>());
    // The number of vectors of a row, and where each begins in the panels.
    let vectors = columns.div_ceil(width) * PANEL_VECTORS;
    let place = |v: usize| v / PANEL_VECTORS * width * length + v % PANEL_VECTORS * lanes;
    let exist = |v: usize| columns.saturating_sub(v * lanes).min(lanes);
    // SAFETY: promised by the caller; only columns and rows that exist are read.
    unsafe {
        match layout {
            Layout::InOut => {
                for i in 0..length {
                    for v in 0..vectors {
                        let w = w.add(i * w_stride + v * lanes);
                        let row = match exist(v) {
                            0 => S::splat(0.0),
                            n if n == lanes => W::load::<S>(w),
                            n => W::load_n::<S>(w, n),
                        };
                        S::store(panels.add(place(v) + i * width), row);
                    }
                }
            }
            Layout::OutIn => {
                for v in 0..vectors {
                    let w = w.add((v * lanes).min(columns - 1) * w_stride);
                    pack_transposed::<S, W>((w, w_stride, exist(v)), length, panels.add(place(v)));
                }
            }
        }
    }
}

/// Transposes `columns <= LANES` weight rows into one vector of each row of a panel.
#[inline(always)]
unsafe fn pack_transposed<S: Simd, W: Widen>(
    (w, w_stride, columns): (*const W, usize, usize),
    length: usize,
    panel: *mut f32,
) {
    let (lanes, width) = (S::LANES, panel_width::<S>());
    let mut square = [0f32; 256];
    // SAFETY: promised by the caller; only columns and rows that exist are read.
    unsafe {
        let mut i = 0;
        while i + lanes <= length {
            for c in 0..columns {
                S::store(square.as_mut_ptr().add(c * lanes), W::load::<S>(w.add(c * w_stride + i)));
            }
            S::transpose(square.as_ptr(), panel.add(i * width), width);
            i += lanes;
        }
        if i < length {
            square.fill(0.0);
            for c in 0..columns {
                let column = W::load_n::<S>(w.add(c * w_stride + i), length - i);
                S::store(square.as_mut_ptr().add(c * lanes), column);
            }
            for j in 0..length - i {
                for c in 0..lanes {
                    *panel.add((i + j) * width + c) = square[c * lanes + j];
                }
            }
        }
    }
}
