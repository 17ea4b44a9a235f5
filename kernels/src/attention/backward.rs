//! Gradients of attention, with the scores recomputed tile by tile (Dao 2023, FlashAttention-2, algorithm 2).
//!
//! A job is one key/value head of one sequence, or some of its queries. It takes the queries in blocks, of all heads
//! that share the key/value head, and for each block the keys in tiles, so that the memory is linear in the sequence.

use super::{Mask, Sizes, View, check};
use crate::cpu::{Isa, isa};
use crate::matmul::{Layout, SMALL, Scratch, multiply_on};
use crate::pool::{parallel_for, threads};
use crate::simd::{Simd, Task, dispatch, exp};
use crate::versions::{Shared, for_each_piece};
use std::ops::Range;

/// The gradients that [`attend_backward`] computes; all are overwritten.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the queries, `(batch, queries, heads, head_dim)`, contiguous.
    pub q: &'a mut [f32],
    /// Gradient of the keys, `(batch, keys, kv_heads, head_dim)`, contiguous.
    pub k: &'a mut [f32],
    /// Gradient of the values, `(batch, keys, kv_heads, head_dim)`, contiguous.
    pub v: &'a mut [f32],
    /// Gradient of [`Mask::bias`]: one number per element of its data, at the same strides, so that it is summed over
    /// every axis that the bias is broadcast over.
    pub bias: Option<&'a mut [f32]>,
    /// Gradient of [`Mask::sinks`], `(heads)`.
    pub sinks: Option<&'a mut [f32]>,
}

/// Gradients of [`attend_with_statistics`](super::attend_with_statistics), computed in f32.
///
/// `q`, `k`, `v`, `scale` and `mask` are those of the forward pass, `y` and `statistics` its results. `grad`:
/// `(batch, queries, heads, head_dim)`, contiguous, the gradient of `y`. A query that attends to no key adds nothing,
/// and its own gradient is zero.
///
/// # Panics
/// If a view is too short for its strides, `heads` is not a multiple of `kv_heads`, the length of a slice does not
/// match its shape, or the gradient of a bias or of sinks is requested that the mask does not have.
///
/// ```
/// use fauna_kernels::attention::*;
/// let sizes = Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys: 2, dim: 1 };
/// let view = |data| View { data, batch: 2, head: 2, time: 1 };
/// let (q, k, v) = (view(&[0.0][..]), view(&[5.0, 7.0]), view(&[2.0, 4.0]));
/// let (mut y, mut statistics) = ([0.0], [0.0; 2]);
/// attend_with_statistics(&sizes, q, k, v, 1.0, &Mask::default(), &mut y, &mut statistics);
/// let (mut dq, mut dk, mut dv) = ([0.0], [0.0; 2], [0.0; 2]);
/// let gradients = Gradients { q: &mut dq, k: &mut dk, v: &mut dv, bias: None, sinks: None };
/// attend_backward(&sizes, q, k, v, 1.0, &Mask::default(), &y, &statistics, &[1.0], gradients);
/// assert_eq!((dq, dk, dv), ([1.0], [0.0; 2], [0.5; 2]));
/// ```
#[allow(clippy::too_many_arguments)]
pub fn attend_backward(
    sizes: &Sizes,
    q: View,
    k: View,
    v: View,
    scale: f32,
    mask: &Mask,
    y: &[f32],
    statistics: &[f32],
    grad: &[f32],
    gradients: Gradients,
) {
    backward_on(isa(), sizes, q, k, v, scale, mask, y, statistics, grad, gradients);
}

/// Number of rows (queries times heads per key/value head) of a block.
const BLOCK_ROWS: usize = 128;
/// Number of keys of a tile: with [`BLOCK_ROWS`], 128 KiB of scores, and as many of their gradients.
const TILE_KEYS: usize = 256;

#[allow(clippy::too_many_arguments)]
pub(super) fn backward_on(
    isa: Isa,
    sizes: &Sizes,
    q: View,
    k: View,
    v: View,
    scale: f32,
    mask: &Mask,
    y: &[f32],
    statistics: &[f32],
    grad: &[f32],
    gradients: Gradients,
) {
    let Sizes { batch, heads, kv_heads, queries, keys, dim } = *sizes;
    let (rows, key_rows) = (batch * queries * heads, batch * keys * kv_heads);
    assert_eq!(y.len(), rows * dim, "y is not batch by queries by heads by dim");
    assert_eq!(grad.len(), y.len(), "grad is not batch by queries by heads by dim");
    assert_eq!(statistics.len(), 2 * rows, "statistics are not two per query and head");
    assert_eq!(gradients.q.len(), y.len(), "the gradient of q is not batch by queries by heads by dim");
    assert_eq!(
        gradients.k.len(),
        key_rows * dim,
        "the gradient of k is not batch by keys by kv_heads by dim"
    );
    assert_eq!(
        gradients.v.len(),
        key_rows * dim,
        "the gradient of v is not batch by keys by kv_heads by dim"
    );
    let Gradients { q: dq, k: dk, v: dv, bias: dbias, sinks: dsinks } = gradients;
    if let Some(dbias) = &dbias {
        let wanted = mask.bias.map(|bias| bias.data.len());
        assert_eq!(Some(dbias.len()), wanted, "the gradient of the bias is not as long as the bias");
    }
    if let Some(dsinks) = &dsinks {
        let wanted = mask.sinks.map(<[f32]>::len);
        assert_eq!(Some(dsinks.len()), wanted, "the gradients of the sinks are not as many as the sinks");
    }
    if rows * dim == 0 {
        dk.fill(0.0);
        dv.fill(0.0);
        dbias.into_iter().chain(dsinks).for_each(|gradient| gradient.fill(0.0));
        return;
    }
    check(sizes, q, k, v, mask);

    let group = heads / kv_heads;
    let step = (BLOCK_ROWS / group).clamp(1, queries);
    let blocks = queries.div_ceil(step);
    let alone = threads() == 1 || rows * keys * dim < SMALL;
    // How many sequences and key/value heads are independent, and in how many parts the queries of each are.
    let (mut sequences, mut groups, mut splits) = (batch, kv_heads, 1);
    if dbias.is_some() {
        let (free_batch, free_heads) = distinct_biases(sizes, mask);
        (sequences, groups) = (if free_batch { batch } else { 1 }, if free_heads { kv_heads } else { 1 });
    } else if !alone && batch * kv_heads < 2 * threads() {
        splits = (4 * threads()).div_ceil((batch * kv_heads).max(1)).min(blocks);
    }
    let mut dbias = dbias;
    if let Some(dbias) = &mut dbias {
        dbias.fill(0.0);
    }
    // Gradients of keys and values by part of the queries.
    let mut partial = vec![0f32; if splits > 1 { splits * 2 * key_rows * dim } else { 0 }];
    let backward = Backward {
        isa,
        sizes,
        q,
        k,
        v,
        scale,
        mask,
        y,
        statistics,
        grad,
        step,
        dq: Shared(dq.as_mut_ptr()),
        dk: Shared(dk.as_mut_ptr()),
        dv: Shared(dv.as_mut_ptr()),
        dbias: dbias.map(|dbias| Shared(dbias.as_mut_ptr())),
    };
    let partial_keys = Shared(partial.as_mut_ptr());
    let job = |job: usize| {
        let (split, job) = (job % splits, job / splits);
        let range = |i: usize, parts: usize, n: usize| i * n / parts..(i + 1) * n / parts;
        for b in range(job / groups, sequences, batch) {
            for kv_head in range(job % groups, groups, kv_heads) {
                let blocks = range(split, splits, blocks);
                let part = partial_keys.get().wrapping_add((split * batch + b) * 2 * keys * kv_heads * dim);
                // SAFETY: the lengths were checked; each key/value head and part of the queries has one job.
                unsafe {
                    let (dk, dv) = if splits > 1 {
                        (part.add(kv_head * dim), part.add((keys * kv_heads + kv_head) * dim))
                    } else {
                        let first = (b * keys * kv_heads + kv_head) * dim;
                        (backward.dk.get().add(first), backward.dv.get().add(first))
                    };
                    backward.head(b, kv_head, blocks.start * step..(blocks.end * step).min(queries), dk, dv);
                }
            }
        }
    };
    let jobs = sequences * groups * splits;
    if alone {
        (0..jobs).for_each(job)
    } else {
        parallel_for(jobs, job)
    }
    if splits > 1 {
        let len = keys * kv_heads * dim;
        for (half, to) in [dk, dv].into_iter().enumerate() {
            for_each_piece(to, len, |b, to| {
                let part = |split: usize| &partial[((split * batch + b) * 2 + half) * len..][..len];
                to.copy_from_slice(part(0));
                for split in 1..splits {
                    to.iter_mut().zip(part(split)).for_each(|(to, from)| *to += from);
                }
            });
        }
    }
    if let (Some(sinks), Some(dsinks)) = (mask.sinks, dsinks) {
        sink_gradient(heads, dim, (y, grad, statistics), sinks, dsinks);
    }
}

/// Returns whether the biases of different sequences, and of different heads, are different elements.
fn distinct_biases(sizes: &Sizes, mask: &Mask) -> (bool, bool) {
    let Some(bias) = mask.bias else { return (true, true) };
    // The biases of one head and of one sequence lie within so many elements.
    let of_head = bias.query.unsigned_abs() * (sizes.queries - 1) + sizes.keys;
    let of_sequence = bias.head * (sizes.heads - 1) + of_head;
    let sequences = sizes.batch == 1 || bias.batch >= of_sequence;
    (sequences, sizes.heads == 1 || (bias.head >= of_head && (sequences || bias.batch == 0)))
}

/// Gradient of the sinks: the weight of each sink in the softmax times `-grad · y`, summed over sequences and queries.
fn sink_gradient(
    heads: usize,
    dim: usize,
    (y, grad, statistics): (&[f32], &[f32], &[f32]),
    sinks: &[f32],
    gradient: &mut [f32],
) {
    for_each_piece(gradient, 1, |head, gradient| {
        let of_row = |row: usize| {
            let range = row * dim..(row + 1) * dim;
            let along: f32 = y[range.clone()].iter().zip(&grad[range]).map(|(y, g)| y * g).sum();
            let (most, sum) = (statistics[2 * row], statistics[2 * row + 1]);
            f64::from((sinks[head] - most).exp() / sum * along)
        };
        gradient[0] = -(head..y.len() / dim).step_by(heads).map(of_row).sum::<f64>() as f32;
    });
}

/// The arguments of one call.
struct Backward<'a> {
    isa: Isa,
    sizes: &'a Sizes,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    scale: f32,
    mask: &'a Mask<'a>,
    y: &'a [f32],
    statistics: &'a [f32],
    grad: &'a [f32],
    /// Number of queries of a block.
    step: usize,
    dq: Shared<f32>,
    dk: Shared<f32>,
    dv: Shared<f32>,
    dbias: Option<Shared<f32>>,
}

/// A block of rows: queries of the heads of one key/value head.
struct Rows<'a> {
    batch: usize,
    kv_head: usize,
    queries: Range<usize>,
    /// Each `(rows, dim)`: the scaled queries, the gradients of the outputs and those of the scaled queries.
    q: *mut f32,
    grad: *mut f32,
    dq: *mut f32,
    /// Each `(rows, tile stride)`: the weights, and the gradients of the scores.
    weights: *mut f32,
    scores: *mut f32,
    /// Of each row, `grad · y`.
    along: &'a [f32],
}

impl Backward<'_> {
    fn group(&self) -> usize {
        self.sizes.heads / self.sizes.kv_heads
    }

    /// Index of row `r` of a block in `(batch, queries, heads)`, its query and its head.
    fn row(&self, rows: (usize, usize, &Range<usize>), r: usize) -> (usize, usize, usize) {
        let (batch, kv_head, queries) = rows;
        let (i, head) = (queries.start + r / self.group(), kv_head * self.group() + r % self.group());
        ((batch * self.sizes.queries + i) * self.sizes.heads + head, i, head)
    }

    /// Computes the gradients of one key/value head and a range of queries. Those of the keys and values are written to
    /// `dk` and `dv`, with rows as far apart as in `(keys, kv_heads, dim)`.
    ///
    /// # Safety
    /// No other thread accesses these gradients.
    unsafe fn head(&self, batch: usize, kv_head: usize, queries: Range<usize>, dk: *mut f32, dv: *mut f32) {
        let Sizes { kv_heads, keys, dim, .. } = *self.sizes;
        for t in 0..keys {
            // SAFETY: the rows of this head.
            unsafe {
                std::slice::from_raw_parts_mut(dk.add(t * kv_heads * dim), dim).fill(0.0);
                std::slice::from_raw_parts_mut(dv.add(t * kv_heads * dim), dim).fill(0.0);
            }
        }
        let most = self.step * self.group();
        let stride = TILE_KEYS.min(keys.next_multiple_of(16));
        let mut room = Scratch::new(most * (3 * dim + 2 * stride));
        let mut sums = Scratch::new(most);
        let room = room.as_mut_ptr();
        for first in queries.clone().step_by(self.step) {
            let queries = first..(first + self.step).min(queries.end);
            let rows = queries.len() * self.group();
            // SAFETY: the scratch holds all of these.
            unsafe {
                let along = std::slice::from_raw_parts_mut(sums.as_mut_ptr(), rows);
                let (q, grad) = (room, room.add(most * dim));
                let at = |r: usize| self.row((batch, kv_head, &queries), r);
                for (r, along) in along.iter_mut().enumerate() {
                    let (index, i, head) = at(r);
                    let from = std::slice::from_raw_parts(self.q.at(batch, head, i), dim);
                    let to = std::slice::from_raw_parts_mut(q.add(r * dim), dim);
                    to.iter_mut().zip(from).for_each(|(to, q)| *to = q * self.scale);
                    let (g, y) = (&self.grad[index * dim..][..dim], &self.y[index * dim..][..dim]);
                    grad.add(r * dim).copy_from_nonoverlapping(g.as_ptr(), dim);
                    *along = g.iter().zip(y).map(|(g, y)| g * y).sum();
                }
                let dq = grad.add(most * dim);
                std::slice::from_raw_parts_mut(dq, rows * dim).fill(0.0);
                let weights = dq.add(most * dim);
                let scores = weights.add(most * stride);
                let rows_of =
                    Rows { batch, kv_head, queries: queries.clone(), q, grad, dq, weights, scores, along };
                let ranges = queries.clone().map(|i| self.mask.range(batch, i, self.sizes.queries, keys));
                let ranges = ranges.filter(|range| !range.is_empty());
                let (low, high) =
                    ranges.fold((keys, 0), |(low, high), r| (low.min(r.start), high.max(r.end)));
                for low in (low..high).step_by(TILE_KEYS) {
                    self.tile(&rows_of, low..(low + TILE_KEYS).min(high), stride, dk, dv);
                }
                for r in 0..rows {
                    let from = std::slice::from_raw_parts(dq.add(r * dim), dim);
                    let to = std::slice::from_raw_parts_mut(self.dq.get().add(at(r).0 * dim), dim);
                    to.iter_mut().zip(from).for_each(|(to, dq)| *to = dq * self.scale);
                }
            }
        }
    }

    /// Adds the gradients of a block of rows and a tile of keys.
    ///
    /// # Safety
    /// As for [`Backward::head`].
    unsafe fn tile(&self, rows: &Rows, keys: Range<usize>, stride: usize, dk: *mut f32, dv: *mut f32) {
        let Sizes { kv_heads, dim, .. } = *self.sizes;
        let (n, count, step) = (rows.along.len(), keys.len(), kv_heads * dim);
        let k = (self.k.at(rows.batch, rows.kv_head, keys.start), self.k.time);
        let v = (self.v.at(rows.batch, rows.kv_head, keys.start), self.v.time);
        let (q, grad) = (rows.q.cast_const(), rows.grad.cast_const());
        let (weights, scores) = ((rows.weights, stride), (rows.scores, stride));
        // SAFETY: the views hold these keys, the scratch these rows, and the gradients are this job's own.
        unsafe {
            let (dk, dv) = ((dk.add(keys.start * step), step), (dv.add(keys.start * step), step));
            let sizes = [n, dim, count];
            multiply_on(self.isa, ((q, dim), false), (k.0, k.1, Layout::OutIn), sizes, (weights, false));
            multiply_on(self.isa, ((grad, dim), false), (v.0, v.1, Layout::OutIn), sizes, (scores, false));
            dispatch(self.isa, Softmax { all: self, rows, keys, stride });
            let sizes = [count, n, dim];
            let weights = ((weights.0.cast_const(), stride), true);
            multiply_on(self.isa, weights, (grad, dim, Layout::InOut), sizes, (dv, true));
            let scores = (scores.0.cast_const(), stride);
            multiply_on(self.isa, (scores, true), (q, dim, Layout::InOut), sizes, (dk, true));
            let sizes = [n, count, dim];
            multiply_on(self.isa, (scores, false), (k.0, k.1, Layout::InOut), sizes, ((rows.dq, dim), true));
        }
    }
}

/// Replaces the products of a tile: `q · kᵀ` by the weights of the softmax, and `grad · vᵀ` by the gradients of the
/// scores.
struct Softmax<'a> {
    all: &'a Backward<'a>,
    rows: &'a Rows<'a>,
    keys: Range<usize>,
    stride: usize,
}

impl Task for Softmax<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { all, rows, keys, stride } = self;
        let (mask, b) = (all.mask, rows.batch);
        for (r, &along) in rows.along.iter().enumerate() {
            let (index, i, head) = all.row((b, rows.kv_head, &rows.queries), r);
            let range = mask.range(b, i, all.sizes.queries, all.sizes.keys);
            let range = range.start.clamp(keys.start, keys.end)..range.end.clamp(keys.start, keys.end);
            let (first, end) = (range.start - keys.start, range.end.max(range.start) - keys.start);
            // SAFETY: the scratch has the row, and no other task has it.
            let (weights, scores) = unsafe {
                (
                    std::slice::from_raw_parts_mut(rows.weights.add(r * stride), keys.len()),
                    std::slice::from_raw_parts_mut(rows.scores.add(r * stride), keys.len()),
                )
            };
            for row in [&mut *weights, &mut *scores] {
                row[..first].fill(0.0);
                row[end..].fill(0.0);
            }
            let (weights, scores) = (&mut weights[first..end], &mut scores[first..end]);
            let mut add = |numbers: &[f32]| {
                weights.iter_mut().zip(&numbers[range.start..]).for_each(|(score, number)| *score += number);
            };
            if let Some(bias) = mask.bias {
                add(bias.of(b, head, i));
            }
            if let Some(padding) = mask.padding {
                add(&padding[b * all.sizes.keys..]);
            }
            let (most, sum) = (all.statistics[2 * index], all.statistics[2 * index + 1]);
            if most == f32::NEG_INFINITY {
                // All keys are masked; NaN propagates.
                let fill = if sum.is_nan() { sum } else { 0.0 };
                weights.fill(fill);
                scores.fill(fill);
                continue;
            }
            // SAFETY: the processor has `S`.
            unsafe { differentiate::<S>(weights, scores, (most, sum), along) };
            if let (Some(dbias), Some(bias)) = (&all.dbias, mask.bias) {
                let start = bias.data.len() - bias.of(b, head, i).len() + range.start;
                // SAFETY: the gradient is as long as the bias, and only this job has these elements.
                let to = unsafe { std::slice::from_raw_parts_mut(dbias.get().add(start), scores.len()) };
                to.iter_mut().zip(scores.iter()).for_each(|(to, score)| *to += score);
            }
        }
    }
}

/// Replaces the scores in `weights` by `weight = exp(score - most) / sum`, and the gradients of the weights in `scores`
/// by those of the scores, `weight * (gradient - along)`.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn differentiate<S: Simd>(
    weights: &mut [f32],
    scores: &mut [f32],
    (most, sum): (f32, f32),
    along: f32,
) {
    let n = weights.len();
    let (p, g) = (weights.as_mut_ptr(), scores.as_mut_ptr());
    let whole = n / S::LANES * S::LANES;
    // SAFETY: all vectors begin below `whole` or are the last, which is partial.
    unsafe {
        let (less, inverse, along) = (S::splat(-most), S::splat(1.0 / sum), S::splat(-along));
        for i in (0..whole).step_by(S::LANES) {
            let weight = S::mul(exp::<S>(S::add(S::load(p.add(i)), less)), inverse);
            S::store(p.add(i), weight);
            S::store(g.add(i), S::mul(weight, S::add(S::load(g.add(i)), along)));
        }
        if whole < n {
            let (p, g, left) = (p.add(whole), g.add(whole), n - whole);
            let weight = S::mul(exp::<S>(S::add(S::load_n(p, left), less)), inverse);
            S::store_n(p, weight, left);
            S::store_n(g, S::mul(weight, S::add(S::load_n(g, left), along)), left);
        }
    }
}
