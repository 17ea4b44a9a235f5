//! Scaled dot-product attention over strided views, such as the KV cache.
//!
//! A job is a block of queries of all heads that share one key/value head. Its scores fit the L2 cache, where each is
//! written by `q · kᵀ`, normalized by the softmax, and read by the product with `v`.

mod backward;

pub use backward::{Gradients, attend_backward};

use super::cpu::{Isa, isa};
use super::matmul::{Layout, SMALL, Scratch, Widen, multiply};
use super::pool::{parallel_for, threads};
use super::simd::{Simd, Task, dispatch, exp};
use std::ops::Range;

/// Sizes of an attention call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Batch size.
    pub batch: usize,
    /// Number of attention heads, a multiple of `kv_heads`; query head `h` attends to key/value head
    /// `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Number of queries per sequence.
    pub queries: usize,
    /// Number of keys per sequence.
    pub keys: usize,
    /// Head dimension.
    pub dim: usize,
}

/// Element type of keys and values: `f32`, or `f16`, with which a KV cache is half as large and read twice as fast.
#[allow(private_bounds, reason = "the trait is not implemented outside this crate")]
pub trait Element: Widen {}

impl Element for f32 {}
impl Element for half::f16 {}

/// A strided view of `(batch, heads, sequence, head_dim)`. The elements of a head are contiguous.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T = f32> {
    /// The elements, starting with the first of the view.
    pub data: &'a [T],
    /// Stride of the batch axis, in elements.
    pub batch: usize,
    /// Stride of the head axis.
    pub head: usize,
    /// Stride of the sequence axis.
    pub time: usize,
}

impl<T> View<'_, T> {
    fn holds(&self, batch: usize, heads: usize, times: usize, dim: usize) -> bool {
        let last = (batch - 1) * self.batch + (heads - 1) * self.head + (times - 1) * self.time;
        last + dim <= self.data.len()
    }

    fn at(&self, batch: usize, head: usize, time: usize) -> *const T {
        self.data[batch * self.batch + head * self.head + time * self.time..].as_ptr()
    }
}

/// Bias of the attention scores: a strided view of `(batch, heads, queries, keys)`. The keys of one query are
/// contiguous; a stride of 0 broadcasts.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Index of the bias of the first query and key.
    pub first: usize,
    /// Stride of the batch axis, in elements.
    pub batch: usize,
    /// Stride of the head axis.
    pub head: usize,
    /// Stride of the query axis; -1 if the bias depends only on the distance between query and key.
    pub query: isize,
}

impl<'a> Bias<'a> {
    /// Returns the biases of one query, starting with the first key.
    fn of(&self, batch: usize, head: usize, query: usize) -> &'a [f32] {
        let start = self.first + batch * self.batch + head * self.head;
        &self.data[start.wrapping_add_signed(query as isize * self.query)..]
    }
}

/// The attention mask: which keys a query attends to, and what is added to the scores. The default is full attention.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mask<'a> {
    /// Causal mask: query `i` attends to the keys up to `i + offset`, inclusive.
    pub causal: Option<Causal>,
    /// Range of keys of each query, `(batch, queries)`; takes precedence over `causal`.
    pub spans: Option<&'a [Range<usize>]>,
    /// Index of the first key that is not padding, `(batch)`.
    pub first_key: Option<&'a [usize]>,
    /// Bias added to the scores.
    pub bias: Option<Bias<'a>>,
    /// Bias added to the scores of every head and query, `(batch, keys)`.
    pub padding: Option<&'a [f32]>,
    /// Attention sinks, `(heads)`: the score of an additional key whose value is zero.
    pub sinks: Option<&'a [f32]>,
}

/// A causal mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Causal {
    /// Index of the key at the position of query 0: with a KV cache, the number of cached keys.
    pub offset: usize,
    /// Sliding window: a query attends only to this many keys, of which its own is the last.
    pub window: Option<usize>,
}

impl Mask<'_> {
    /// Returns the range of keys that query `i` of sequence `batch` attends to.
    fn range(&self, batch: usize, i: usize, queries: usize, keys: usize) -> Range<usize> {
        let first = self.first_key.map_or(0, |first| first[batch]);
        let (low, high) = match (self.spans, self.causal) {
            (Some(spans), _) => {
                let span = &spans[batch * queries + i];
                (span.start, span.end.min(keys))
            }
            (None, None) => (0, keys),
            (None, Some(Causal { offset, window })) => {
                let end = i.saturating_add(offset).saturating_add(1);
                (window.map_or(0, |w| end.saturating_sub(w)), end.min(keys))
            }
        };
        let low = low.max(first).min(high);
        low..high
    }
}

/// Scaled dot-product attention, `softmax(scale · q kᵀ + mask) v`, computed in f32.
///
/// `q`: `(batch, heads, queries, head_dim)`; `k`, `v`: `(batch, kv_heads, keys, head_dim)`, all strided.
/// `y`: `(batch, queries, heads, head_dim)`, contiguous, overwritten: the layout of the output projection.
/// The output of a query that attends to no key is zero.
///
/// # Panics
/// If a view is too short for its strides, `heads` is not a multiple of `kv_heads`, or `y` has the wrong length.
///
/// ```
/// use fauna_kernels::attention::{Causal, Mask, Sizes, View, attend};
/// let sizes = Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 2, keys: 2, dim: 1 };
/// let view = |data| View { data, batch: 2, head: 2, time: 1 };
/// let causal = Mask { causal: Some(Causal { offset: 0, window: None }), ..Mask::default() };
/// let mut y = [0.0; 2];
/// attend(&sizes, view(&[0.0, 0.0]), view(&[5.0, 7.0]), view(&[2.0, 4.0]), 1.0, &causal, &mut y);
/// assert_eq!(y, [2.0, 3.0]);
/// ```
pub fn attend<T: Element>(
    sizes: &Sizes,
    q: View,
    k: View<T>,
    v: View<T>,
    scale: f32,
    mask: &Mask,
    y: &mut [f32],
) {
    attend_on(isa(), sizes, q, k, v, scale, mask, y, None);
}

/// [`attend`], and the statistics of each softmax that [`attend_backward`] needs.
///
/// `statistics`: `(batch, queries, heads, 2)`, overwritten: the largest score of the query, its sink included, and the
/// sum of `exp(score - largest)`. The log-sum-exp of the scores is `largest + ln(sum)`. For a query that attends to no
/// key they are `-inf` and 0.
///
/// # Panics
/// As [`attend`], or if `statistics` has the wrong length.
#[allow(clippy::too_many_arguments)]
pub fn attend_with_statistics<T: Element>(
    sizes: &Sizes,
    q: View,
    k: View<T>,
    v: View<T>,
    scale: f32,
    mask: &Mask,
    y: &mut [f32],
    statistics: &mut [f32],
) {
    attend_on(isa(), sizes, q, k, v, scale, mask, y, Some(statistics));
}

/// Number of scores of one job: 256 KiB.
const SCORES: usize = 1 << 16;
/// Minimum and maximum number of rows (queries times heads per key/value head) of a block.
const BLOCK_ROWS: (usize, usize) = (48, 192);
/// Minimum number of keys of a chunk when keys are split between threads.
const LEAST_KEYS: usize = 256;

#[allow(clippy::too_many_arguments)]
fn attend_on<T: Element>(
    isa: Isa,
    sizes: &Sizes,
    q: View,
    k: View<T>,
    v: View<T>,
    scale: f32,
    mask: &Mask,
    y: &mut [f32],
    statistics: Option<&mut [f32]>,
) {
    let Sizes { batch, heads, kv_heads, queries, keys, dim } = *sizes;
    assert_eq!(y.len(), batch * queries * heads * dim, "y is not batch by queries by heads by dim");
    if let Some(statistics) = &statistics {
        assert_eq!(
            statistics.len(),
            2 * batch * queries * heads,
            "statistics are not two per query and head"
        );
    }
    if y.is_empty() {
        return;
    }
    check(sizes, q, k, v, mask);

    let group = heads / kv_heads;
    let threads = threads();
    let alone = threads == 1 || batch * heads * queries * keys * dim < SMALL;
    // Queries per block: as many as keep the scores in cache, fewer if threads would be idle.
    let rows = (SCORES / keys.max(1)).clamp(BLOCK_ROWS.0, BLOCK_ROWS.1);
    let mut blocks = queries.div_ceil(rows.div_ceil(group));
    let idle = |jobs: usize| if alone { 1 } else { (threads * 4).div_ceil(jobs) };
    blocks = (blocks * idle(batch * kv_heads * blocks)).min(queries.div_ceil(16)).max(blocks);
    let step = queries.div_ceil(blocks);
    let blocks = queries.div_ceil(step);
    // Decoding has few jobs and many keys: the keys are split.
    let jobs = batch * kv_heads * blocks;
    let chunks =
        if queries == 1 && statistics.is_none() { idle(jobs).min(keys / LEAST_KEYS).max(1) } else { 1 };
    let chunk = keys.div_ceil(chunks).max(1);

    // Partial results of the chunks of keys: the maximum score, the sum of the weights, the weighted values.
    let mut partial = vec![0f32; if chunks > 1 { batch * heads * chunks * (dim + 2) } else { 0 }];
    let attention = Attention {
        sizes,
        q,
        k,
        v,
        scale,
        mask,
        y: y.as_mut_ptr(),
        statistics: statistics.map(<[f32]>::as_mut_ptr),
        partial: if chunks > 1 { Some((partial.as_mut_ptr(), chunks)) } else { None },
    };
    let job = |job: usize| {
        let (c, job) = (job % chunks, job / chunks);
        let (block, job) = (job % blocks, job / blocks);
        let (first, low) = (block * step, c * chunk);
        dispatch(
            isa,
            Block {
                all: &attention,
                batch: job / kv_heads,
                kv_head: job % kv_heads,
                queries: first..(first + step).min(queries),
                keys: low..(low + chunk).min(keys),
                chunk: c,
            },
        );
    };
    if alone {
        (0..jobs * chunks).for_each(job)
    } else {
        parallel_for(jobs * chunks, job)
    }
    if chunks > 1 {
        for (row, y) in y.chunks_exact_mut(dim).enumerate() {
            let parts = partial[row * chunks * (dim + 2)..][..chunks * (dim + 2)].chunks_exact(dim + 2);
            combine(parts, mask.sinks.map(|s| s[row % heads]), y);
        }
    }
}

/// Checks the views and the mask of a call that is not empty.
fn check<T: Element>(sizes: &Sizes, q: View, k: View<T>, v: View<T>, mask: &Mask) {
    let Sizes { batch, heads, kv_heads, queries, keys, dim } = *sizes;
    assert!(
        kv_heads > 0 && heads % kv_heads == 0,
        "{heads} heads are not a multiple of {kv_heads} key/value heads"
    );
    assert!(q.holds(batch, heads, queries, dim), "q is too short for its strides");
    assert!(keys == 0 || k.holds(batch, kv_heads, keys, dim), "k is too short for its strides");
    assert!(keys == 0 || v.holds(batch, kv_heads, keys, dim), "v is too short for its strides");
    assert!(mask.first_key.is_none_or(|f| f.len() == batch), "first_key is not one per sequence");
    assert!(mask.spans.is_none_or(|s| s.len() == batch * queries), "spans are not one per query");
    assert!(mask.sinks.is_none_or(|s| s.len() == heads), "sinks are not one per head");
    if let Some(b) = mask.bias {
        let shortest = [0, queries - 1].map(|query| b.of(batch - 1, heads - 1, query).len());
        assert!(shortest.iter().all(|&numbers| numbers >= keys), "the bias is too short for its strides");
    }
    assert!(mask.padding.is_none_or(|p| p.len() == batch * keys), "padding is not one number per key");
}

/// Combines the partial results of one row.
fn combine<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, sink: Option<f32>, y: &mut [f32]) {
    let most = parts.clone().map(|p| p[0]).fold(sink.unwrap_or(f32::NEG_INFINITY), f32::max);
    let mut sum = sink.map_or(0.0, |s| (s - most).exp());
    y.fill(0.0);
    for part in parts.filter(|p| p[0] > f32::NEG_INFINITY || p[1].is_nan()) {
        let weight = (part[0] - most).exp();
        sum += weight * part[1];
        y.iter_mut().zip(&part[2..]).for_each(|(y, value)| *y += weight * value);
    }
    let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    y.iter_mut().for_each(|y| *y *= scale);
}

/// The arguments of one call.
struct Attention<'a, T> {
    sizes: &'a Sizes,
    q: View<'a>,
    k: View<'a, T>,
    v: View<'a, T>,
    scale: f32,
    mask: &'a Mask<'a>,
    y: *mut f32,
    /// Where the maximum score and the sum of the weights of each row are written.
    statistics: Option<*mut f32>,
    /// Where partial results are written if keys are split, and the number of chunks.
    partial: Option<(*mut f32, usize)>,
}

// SAFETY: the views and the mask are only read, and blocks write distinct rows of `y`, `statistics` or `partial`.
unsafe impl<T: Sync> Sync for Attention<'_, T> {}

/// One job: a range of queries of the heads of one key/value head, and a range of keys.
struct Block<'a, T> {
    all: &'a Attention<'a, T>,
    batch: usize,
    kv_head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    chunk: usize,
}

impl<T: Element> Task for Block<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (a, b) = (self.all, self.batch);
        let Sizes { heads, kv_heads, queries, keys, dim, .. } = *a.sizes;
        let group = heads / kv_heads;
        let rows = self.queries.len() * group;
        // Row `r` is a query and one of the heads of the group.
        let row = |r: usize| (self.queries.start + r / group, self.kv_head * group + r % group);
        let range = |query: usize| {
            let all = a.mask.range(b, query, queries, keys);
            let low = all.start.max(self.keys.start);
            low..all.end.min(self.keys.end).max(low)
        };
        // The keys that any of the rows attends to.
        let ranges = self.queries.clone().map(range).filter(|range| !range.is_empty());
        let (low, high) = ranges.fold((usize::MAX, 0), |(low, high), r| (low.min(r.start), high.max(r.end)));
        let low = low.min(high);
        let seen = high - low;

        let stride = seen.next_multiple_of(16);
        let mut scratch = Scratch::new(rows * (2 * dim + stride));
        let scores = scratch.as_mut_ptr();
        // SAFETY: the scratch holds `rows` scores, queries and outputs; `attend_on` checked the views and `y`, and
        // no other block has these rows and keys.
        unsafe {
            let query = scores.add(rows * stride);
            let out = query.add(rows * dim);
            for r in 0..rows {
                let (i, head) = row(r);
                let from = std::slice::from_raw_parts(a.q.at(b, head, i), dim);
                let to = std::slice::from_raw_parts_mut(query.add(r * dim), dim);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from * a.scale);
            }
            if seen > 0 {
                let k = (a.k.at(b, self.kv_head, low), a.k.time, Layout::OutIn);
                multiply::<S, T>(((query, dim), rows), k, (dim, seen), (scores, stride));
            }
            let mut sums = Scratch::new(2 * rows);
            let sums = sums.as_mut_ptr();
            for r in 0..rows {
                let (i, head) = row(r);
                let range = range(i);
                let range = range.start.clamp(low, low + seen)..range.end.clamp(low, low + seen);
                let all = std::slice::from_raw_parts_mut(scores.add(r * stride), seen);
                let mine = &mut all[range.start - low..range.end - low];
                let mut add = |numbers: &[f32]| {
                    mine.iter_mut().zip(&numbers[range.clone()]).for_each(|(score, number)| *score += number);
                };
                if let Some(bias) = a.mask.bias {
                    add(bias.of(b, head, i));
                }
                if let Some(padding) = a.mask.padding {
                    add(&padding[b * keys..]);
                }
                let sink = a.mask.sinks.filter(|_| a.partial.is_none()).map(|s| s[head]);
                let (most, sum) = weigh::<S>(mine, sink);
                all[..range.start - low].fill(0.0);
                all[range.end - low..].fill(0.0);
                (*sums.add(2 * r), *sums.add(2 * r + 1)) = (most, sum);
            }
            if seen > 0 {
                let v = (a.v.at(b, self.kv_head, low), a.v.time, Layout::InOut);
                multiply::<S, T>(((scores, stride), rows), v, (seen, dim), (out, dim));
            } else {
                std::slice::from_raw_parts_mut(out, rows * dim).fill(0.0);
            }
            for r in 0..rows {
                let (i, head) = row(r);
                let from = std::slice::from_raw_parts(out.add(r * dim), dim);
                let (most, sum) = (*sums.add(2 * r), *sums.add(2 * r + 1));
                let at = (b * queries + i) * heads + head;
                if let Some(statistics) = a.statistics {
                    (*statistics.add(2 * at), *statistics.add(2 * at + 1)) = (most, sum);
                }
                let (to, scale) = match a.partial {
                    None => (a.y.add(at * dim), if sum == 0.0 { 0.0 } else { 1.0 / sum }),
                    Some((partial, chunks)) => {
                        let part = partial.add((at * chunks + self.chunk) * (dim + 2));
                        (*part, *part.add(1)) = (most, sum);
                        (part.add(2), 1.0)
                    }
                };
                let to = std::slice::from_raw_parts_mut(to, dim);
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
            }
        }
    }
}

/// Replaces the scores by unnormalized weights, `exp(score - most)`. Returns the maximum score `most` and the sum of
/// the weights, both including the sink.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn weigh<S: Simd>(scores: &mut [f32], sink: Option<f32>) -> (f32, f32) {
    let (p, n) = (scores.as_mut_ptr(), scores.len());
    let whole = n / S::LANES * S::LANES;
    // SAFETY: all vectors begin below `whole` or are the last, which is partial.
    unsafe {
        let mut most = S::splat(sink.unwrap_or(f32::NEG_INFINITY));
        for i in (0..whole).step_by(S::LANES) {
            most = S::max(S::load(p.add(i)), most);
        }
        let most = scores[whole..].iter().copied().fold(lanes::<S>(most, f32::max), f32::max);
        if most == f32::NEG_INFINITY {
            // All keys are masked; NaN propagates.
            let sum = scores.iter().map(|s| if s.is_nan() { *s } else { 0.0 }).sum();
            scores.fill(0.0);
            return (most, sum);
        }
        let less = S::splat(-most);
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let weight = exp::<S>(S::add(S::load(p.add(i)), less));
            S::store(p.add(i), weight);
            sum = S::add(sum, weight);
        }
        let mut sum = lanes::<S>(sum, |a, b| a + b);
        if whole < n {
            let weight = exp::<S>(S::add(S::load_n(p.add(whole), n - whole), less));
            S::store_n(p.add(whole), weight, n - whole);
            sum += scores[whole..].iter().sum::<f32>();
        }
        (most, sum + sink.map_or(0.0, |s| (s - most).exp()))
    }
}

/// Reduces the lanes of a vector with `join`.
#[inline(always)]
unsafe fn lanes<S: Simd>(v: S::V, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut all = [0f32; 16];
    // SAFETY: no vector has more than 16 lanes.
    unsafe { S::store(all.as_mut_ptr(), v) };
    let mut half = S::LANES / 2;
    while half > 0 {
        for i in 0..half {
            all[i] = join(all[i], all[i + half]);
        }
        half /= 2;
    }
    all[0]
}

#[cfg(test)]
mod tests;
