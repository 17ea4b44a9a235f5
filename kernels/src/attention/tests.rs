use super::*;
use crate::matmul::tests::numbers;

/// Attention in f64 from the definition.
fn plainly<T: Element + Into<f64>>(
    sizes: &Sizes,
    q: View,
    k: View<T>,
    v: View<T>,
    scale: f32,
    mask: &Mask,
) -> Vec<f64> {
    let mut y = Vec::new();
    for b in 0..sizes.batch {
        for i in 0..sizes.queries {
            for h in 0..sizes.heads {
                let kv = h / (sizes.heads / sizes.kv_heads);
                let at = |x: &View<T>, t: usize, e: usize| -> f64 {
                    x.data[b * x.batch + kv * x.head + t * x.time + e].into()
                };
                let query = |e: usize| f64::from(q.data[b * q.batch + h * q.head + i * q.time + e]);
                let sees = |j: usize| {
                    let causal = || {
                        mask.causal.is_none_or(|c| {
                            j <= i + c.offset && c.window.is_none_or(|w| i + c.offset < j + w)
                        })
                    };
                    let span = mask.spans.map(|spans| spans[b * sizes.queries + i].contains(&j));
                    span.unwrap_or_else(causal) && mask.first_key.is_none_or(|f| j >= f[b])
                };
                let score = |j: usize| {
                    let dot: f64 = (0..sizes.dim).map(|e| query(e) * at(&k, j, e)).sum();
                    let bias = |m: Bias| {
                        let first = (m.first + b * m.batch + h * m.head) as isize;
                        f64::from(m.data[(first + i as isize * m.query) as usize + j])
                    };
                    let padding = |p: &[f32]| f64::from(p[b * sizes.keys + j]);
                    dot * f64::from(scale) + mask.bias.map_or(0.0, bias) + mask.padding.map_or(0.0, padding)
                };
                let seen: Vec<(usize, f64)> =
                    (0..sizes.keys).filter(|&j| sees(j)).map(|j| (j, score(j))).collect();
                let sink = mask.sinks.map(|s| f64::from(s[h]));
                let most = seen.iter().map(|s| s.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<(usize, f64)> = seen.iter().map(|s| (s.0, (s.1 - most).exp())).collect();
                let sum: f64 =
                    weights.iter().map(|w| w.1).sum::<f64>() + sink.map_or(0.0, |s| (s - most).exp());
                for e in 0..sizes.dim {
                    let value: f64 = weights.iter().map(|w| w.1 * at(&v, w.0, e)).sum();
                    y.push(if sum == 0.0 { 0.0 } else { value / sum });
                }
            }
        }
    }
    y
}

/// A view of `(batch, sequence, heads, head_dim)` with a capacity of `room` positions: a KV cache that is not full.
fn cache<T>(data: &[T], heads: usize, room: usize, dim: usize) -> View<'_, T> {
    View { data, batch: heads * room * dim, head: dim, time: heads * dim }
}

#[track_caller]
fn check(sizes: &Sizes, mask: &Mask) {
    check_as(sizes, mask, |x| x);
    check_as(sizes, mask, half::f16::from_f32);
}

#[track_caller]
fn check_as<T: Element + Into<f64>>(sizes: &Sizes, mask: &Mask, stored: impl Fn(f32) -> T) {
    let Sizes { batch, heads, kv_heads, queries, keys, dim } = *sizes;
    let room = keys + 3;
    let (q, k, v) = (
        numbers(batch * heads * queries * dim, 1),
        numbers(batch * kv_heads * room * dim, 2),
        numbers(batch * kv_heads * room * dim, 3),
    );
    let stored = |x: Vec<f32>| x.into_iter().map(&stored).collect::<Vec<T>>();
    let (k, v) = (stored(k), stored(v));
    let q = cache(&q, heads, queries, dim);
    let (k, v) = (cache(&k, kv_heads, room, dim), cache(&v, kv_heads, room, dim));
    let scale = 2.0 / (dim as f32).sqrt();
    let wanted = plainly(sizes, q, k, v, scale, mask);
    for isa in Isa::all_available() {
        let mut y = vec![f32::NAN; wanted.len()];
        attend_on(isa, sizes, q, k, v, scale, mask, &mut y, None);
        for (i, (y, e)) in y.iter().zip(&wanted).enumerate() {
            assert!(
                (f64::from(*y) - e).abs() < 3e-6,
                "{isa:?} {sizes:?} {mask:?}: element {i} is {y}, not {e}"
            );
        }
    }
}

const SHAPES: [Sizes; 9] = [
    Sizes { batch: 2, heads: 3, kv_heads: 3, queries: 5, keys: 5, dim: 6 },
    Sizes { batch: 1, heads: 6, kv_heads: 2, queries: 33, keys: 40, dim: 64 },
    Sizes { batch: 2, heads: 4, kv_heads: 1, queries: 1, keys: 77, dim: 32 },
    Sizes { batch: 1, heads: 3, kv_heads: 1, queries: 1, keys: 1500, dim: 64 },
    Sizes { batch: 1, heads: 2, kv_heads: 2, queries: 1, keys: 1, dim: 1 },
    Sizes { batch: 1, heads: 2, kv_heads: 1, queries: 130, keys: 131, dim: 17 },
    Sizes { batch: 3, heads: 12, kv_heads: 12, queries: 40, keys: 9, dim: 7 },
    Sizes { batch: 1, heads: 9, kv_heads: 3, queries: 3, keys: 200, dim: 88 },
    Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 300, keys: 300, dim: 16 },
];

#[test]
fn all_keys() {
    SHAPES.iter().for_each(|sizes| check(sizes, &Mask::default()));
}

#[test]
fn causal_mask_and_sliding_window() {
    for sizes in &SHAPES {
        for offset in [sizes.keys.saturating_sub(sizes.queries), 0] {
            for window in [None, Some(1), Some(4), Some(100)] {
                check(sizes, &Mask { causal: Some(Causal { offset, window }), ..Mask::default() });
            }
        }
    }
}

#[test]
fn spans_of_each_query() {
    for sizes in &SHAPES {
        let span = |i: usize| match i % 4 {
            0 => 0..0,
            1 => sizes.keys / 3..sizes.keys,
            2 => 0..sizes.keys.div_ceil(2),
            _ => (i % sizes.keys.max(1)).min(sizes.keys)..sizes.keys,
        };
        let spans: Vec<_> = (0..sizes.batch * sizes.queries).map(span).collect();
        check(sizes, &Mask { spans: Some(&spans), ..Mask::default() });
        let first: Vec<usize> = (0..sizes.batch).map(|b| (b * 3 + 1) * sizes.keys / 8).collect();
        check(sizes, &Mask { spans: Some(&spans), first_key: Some(&first), ..Mask::default() });
    }
}

#[test]
fn left_padding() {
    for sizes in &SHAPES {
        let first: Vec<usize> = (0..sizes.batch).map(|b| (b * 3 + 1) * sizes.keys / 8).collect();
        let offset = sizes.keys.saturating_sub(sizes.queries);
        check(sizes, &Mask { first_key: Some(&first), ..Mask::default() });
        let causal = Some(Causal { offset, window: None });
        check(sizes, &Mask { first_key: Some(&first), causal, ..Mask::default() });
        // All keys are padding: zeros.
        check(sizes, &Mask { first_key: Some(&vec![sizes.keys + 5; sizes.batch]), ..Mask::default() });
    }
}

#[test]
fn bias_with_every_kind_of_stride() {
    for sizes in &SHAPES {
        let Sizes { batch, heads, queries, keys, .. } = *sizes;
        let data = numbers(batch * heads * queries * keys, 7);
        for bits in 0..8 {
            let stride = |bit: usize, n: usize| if bits >> bit & 1 == 1 { n } else { 0 };
            let bias = Bias {
                data: &data,
                first: 0,
                batch: stride(0, heads * queries * keys),
                head: stride(1, queries * keys),
                query: stride(2, keys) as isize,
            };
            check(sizes, &Mask { bias: Some(bias), ..Mask::default() });
        }
    }
}

#[test]
fn bias_by_distance_with_padding() {
    for sizes in &SHAPES {
        let Sizes { batch, heads, queries, keys, .. } = *sizes;
        let distances = queries + keys - 1;
        let data = numbers(heads * distances, 9);
        let bias = Bias { data: &data, first: queries - 1, batch: 0, head: distances, query: -1 };
        let padding = numbers(batch * keys, 10);
        for padding in [None, Some(&padding[..])] {
            check(sizes, &Mask { bias: Some(bias), padding, ..Mask::default() });
        }
    }
}

#[test]
fn attention_sinks() {
    for sizes in &SHAPES {
        let sinks = numbers(sizes.heads, 8);
        check(sizes, &Mask { sinks: Some(&sinks), ..Mask::default() });
        check(
            sizes,
            &Mask { sinks: Some(&sinks), first_key: Some(&vec![sizes.keys; sizes.batch]), ..Mask::default() },
        );
    }
}

#[test]
fn the_lowest_float_masks_a_key_and_all_keys_give_the_mean() {
    let sizes = Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 2, keys: 20, dim: 1 };
    let (q, k): (Vec<f32>, Vec<f32>) = (vec![1.0; 2], vec![3.0; 20]);
    let v: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let mut bias = vec![f32::MIN; 40];
    bias[7] = 0.0;
    let mask =
        Mask { bias: Some(Bias { data: &bias, first: 0, batch: 0, head: 0, query: 20 }), ..Mask::default() };
    let view = |data| View { data, batch: 0, head: 0, time: 1 };
    for isa in Isa::all_available() {
        let mut y = [0.0; 2];
        attend_on(isa, &sizes, view(&q), view(&k), view(&v), 1.0, &mask, &mut y, None);
        assert_eq!(y, [7.0, 9.5], "{isa:?}");
    }
}

#[test]
fn minus_infinity_masks_a_key_all_keys_give_zeros_and_nan_propagates() {
    let sizes = Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 3, keys: 18, dim: 2 };
    let (q, k, v) = (vec![1.0; 6], vec![1.0; 36], vec![5.0; 36]);
    let mut bias = vec![f32::NEG_INFINITY; 54];
    bias[3] = 0.0;
    bias[2 * 18 + 1] = f32::NAN;
    let mask =
        Mask { bias: Some(Bias { data: &bias, first: 0, batch: 0, head: 0, query: 18 }), ..Mask::default() };
    let view = |data| View { data, batch: 0, head: 0, time: 2 };
    for isa in Isa::all_available() {
        let mut y = [0.0; 6];
        attend_on(isa, &sizes, view(&q), view(&k), view(&v), 1.0, &mask, &mut y, None);
        assert_eq!(y[..4], [5.0, 5.0, 0.0, 0.0], "{isa:?}");
        assert!(y[4].is_nan(), "{isa:?}: {y:?}");
    }
}

#[test]
fn exp_is_accurate_over_its_range() {
    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl Task for Exp<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for i in (0..self.0.len()).step_by(S::LANES) {
                // SAFETY: both slices are a multiple of 16 long.
                unsafe { S::store(self.1.as_mut_ptr().add(i), exp::<S>(S::load(self.0.as_ptr().add(i)))) }
            }
        }
    }
    let x: Vec<f32> = (0..16000).map(|i| -100.0 + i as f32 * 0.01173).collect();
    for isa in Isa::all_available() {
        let mut y = vec![0.0; x.len()];
        dispatch(isa, Exp(&x, &mut y));
        for (x, y) in x.iter().zip(&y).filter(|(x, _)| **x < 88.0) {
            let wanted = f64::from(*x).exp();
            let error = (f64::from(*y) - wanted).abs();
            assert!(error < 2e-7 * wanted || (*x < -87.3 && error < 2e-38), "{isa:?} exp({x}) is {y}");
        }
    }
}

/// The inputs of a test of gradients, `(batch, sequence, heads, head_dim)` each.
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    grad: Vec<f32>,
}

impl Inputs {
    fn new(sizes: &Sizes) -> Self {
        let Sizes { batch, heads, kv_heads, queries, keys, dim } = *sizes;
        Self {
            q: numbers(batch * heads * queries * dim, 21),
            k: numbers(batch * kv_heads * keys * dim, 22),
            v: numbers(batch * kv_heads * keys * dim, 23),
            grad: numbers(batch * heads * queries * dim, 24),
        }
    }

    fn views(&self, sizes: &Sizes) -> [View<'_>; 3] {
        let Sizes { heads, kv_heads, queries, keys, dim, .. } = *sizes;
        [
            cache(&self.q, heads, queries, dim),
            cache(&self.k, kv_heads, keys, dim),
            cache(&self.v, kv_heads, keys, dim),
        ]
    }
}

/// The gradients of queries, keys, values, bias and sinks in f64 from the definition.
fn gradients_plainly(sizes: &Sizes, inputs: &Inputs, scale: f32, mask: &Mask) -> [Vec<f64>; 5] {
    let Sizes { batch, heads, kv_heads, queries, keys, dim } = *sizes;
    let zeros = |n: usize| vec![0f64; n];
    let (mut dq, mut dk, mut dv) = (zeros(inputs.q.len()), zeros(inputs.k.len()), zeros(inputs.v.len()));
    let mut dbias = zeros(mask.bias.map_or(0, |bias| bias.data.len()));
    let mut dsinks = zeros(mask.sinks.map_or(0, <[f32]>::len));
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    let (q, k, v, grad) = (wide(&inputs.q), wide(&inputs.k), wide(&inputs.v), wide(&inputs.grad));
    let scale = f64::from(scale);
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    for (b, i, h) in
        (0..batch).flat_map(|b| (0..queries).flat_map(move |i| (0..heads).map(move |h| (b, i, h))))
    {
        let at = ((b * queries + i) * heads + h) * dim;
        let kv = |j: usize| ((b * keys + j) * kv_heads + h / (heads / kv_heads)) * dim;
        let place = |j: usize| {
            mask.bias
                .map(|m| ((m.first + b * m.batch + h * m.head) as isize + i as isize * m.query) as usize + j)
        };
        let sees = |j: usize| {
            let causal = mask
                .causal
                .is_none_or(|c| j <= i + c.offset && c.window.is_none_or(|w| i + c.offset < j + w));
            mask.spans.map_or(causal, |spans| spans[b * queries + i].contains(&j))
                && mask.first_key.is_none_or(|f| j >= f[b])
        };
        let seen: Vec<usize> = (0..keys).filter(|&j| sees(j)).collect();
        let score = |&j: &usize| {
            dot(&q[at..at + dim], &k[kv(j)..kv(j) + dim]) * scale
                + place(j).map_or(0.0, |at| f64::from(mask.bias.unwrap().data[at]))
                + mask.padding.map_or(0.0, |p| f64::from(p[b * keys + j]))
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let sink = mask.sinks.map(|s| f64::from(s[h]));
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let sum =
            scores.iter().map(|s| (s - most).exp()).sum::<f64>() + sink.map_or(0.0, |s| (s - most).exp());
        if seen.is_empty() {
            continue;
        }
        let g = &grad[at..at + dim];
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
        let along: f64 = seen.iter().zip(&weights).map(|(&j, w)| w * dot(g, &v[kv(j)..kv(j) + dim])).sum();
        for (&j, weight) in seen.iter().zip(&weights) {
            let d = weight * (dot(g, &v[kv(j)..kv(j) + dim]) - along);
            for e in 0..dim {
                dv[kv(j) + e] += weight * g[e];
                dq[at + e] += scale * d * k[kv(j) + e];
                dk[kv(j) + e] += scale * d * q[at + e];
            }
            if let Some(at) = place(j) {
                dbias[at] += d;
            }
        }
        if let Some(sink) = sink {
            dsinks[h] -= (sink - most).exp() / sum * along;
        }
    }
    [dq, dk, dv, dbias, dsinks]
}

/// The gradients by the kernel.
fn gradients_on(isa: Isa, sizes: &Sizes, inputs: &Inputs, scale: f32, mask: &Mask) -> [Vec<f32>; 5] {
    let [q, k, v] = inputs.views(sizes);
    let mut y = vec![f32::NAN; inputs.q.len()];
    let mut statistics = vec![f32::NAN; 2 * sizes.batch * sizes.queries * sizes.heads];
    attend_on(isa, sizes, q, k, v, scale, mask, &mut y, Some(&mut statistics));
    let empty = |n: usize| vec![f32::NAN; n];
    let (mut dq, mut dk, mut dv) = (empty(inputs.q.len()), empty(inputs.k.len()), empty(inputs.v.len()));
    let mut dbias = empty(mask.bias.map_or(0, |bias| bias.data.len()));
    let mut dsinks = empty(mask.sinks.map_or(0, <[f32]>::len));
    let gradients = Gradients {
        q: &mut dq,
        k: &mut dk,
        v: &mut dv,
        bias: mask.bias.map(|_| &mut dbias[..]),
        sinks: mask.sinks.map(|_| &mut dsinks[..]),
    };
    backward::backward_on(isa, sizes, q, k, v, scale, mask, &y, &statistics, &inputs.grad, gradients);
    [dq, dk, dv, dbias, dsinks]
}

#[track_caller]
fn check_gradients(sizes: &Sizes, mask: &Mask) {
    let inputs = Inputs::new(sizes);
    let scale = 2.0 / (sizes.dim as f32).sqrt();
    let wanted = gradients_plainly(sizes, &inputs, scale, mask);
    for isa in Isa::all_available() {
        let found = gradients_on(isa, sizes, &inputs, scale, mask);
        for (name, (found, wanted)) in ["q", "k", "v", "bias", "sinks"].iter().zip(found.iter().zip(&wanted))
        {
            assert_eq!(found.len(), wanted.len());
            let largest = wanted.iter().fold(1f64, |a, b| a.max(b.abs()));
            for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                assert!(
                    (f64::from(*found) - wanted).abs() < 1e-5 * largest,
                    "{isa:?} {sizes:?}: gradient {i} of {name} is {found}, not {wanted}"
                );
            }
        }
    }
}

/// Shapes with several tiles of keys, several blocks of queries, and one job or many.
const GRADIENT_SHAPES: [Sizes; 8] = [
    Sizes { batch: 2, heads: 3, kv_heads: 3, queries: 5, keys: 5, dim: 6 },
    Sizes { batch: 1, heads: 6, kv_heads: 2, queries: 33, keys: 40, dim: 64 },
    Sizes { batch: 2, heads: 4, kv_heads: 1, queries: 1, keys: 77, dim: 32 },
    Sizes { batch: 1, heads: 2, kv_heads: 2, queries: 1, keys: 1, dim: 1 },
    Sizes { batch: 1, heads: 2, kv_heads: 1, queries: 130, keys: 131, dim: 17 },
    Sizes { batch: 3, heads: 12, kv_heads: 12, queries: 20, keys: 9, dim: 7 },
    Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 300, keys: 530, dim: 16 },
    Sizes { batch: 1, heads: 3, kv_heads: 1, queries: 3, keys: 0, dim: 8 },
];

#[test]
fn gradients_with_all_keys_and_causal_masks() {
    for sizes in &GRADIENT_SHAPES {
        check_gradients(sizes, &Mask::default());
        for offset in [sizes.keys.saturating_sub(sizes.queries), 0] {
            for window in [None, Some(1), Some(4), Some(100)] {
                check_gradients(sizes, &Mask { causal: Some(Causal { offset, window }), ..Mask::default() });
            }
        }
    }
}

#[test]
fn gradients_with_spans_and_padding() {
    for sizes in &GRADIENT_SHAPES {
        let span = |i: usize| match i % 4 {
            0 => 0..0,
            1 => sizes.keys / 3..sizes.keys,
            2 => 0..sizes.keys.div_ceil(2),
            _ => (i % sizes.keys.max(1)).min(sizes.keys)..sizes.keys,
        };
        let spans: Vec<_> = (0..sizes.batch * sizes.queries).map(span).collect();
        let first: Vec<usize> = (0..sizes.batch).map(|b| (b * 3 + 1) * sizes.keys / 8).collect();
        let padding = numbers(sizes.batch * sizes.keys, 10);
        let all = Mask { padding: Some(&padding), ..Mask::default() };
        check_gradients(sizes, &all);
        check_gradients(sizes, &Mask { spans: Some(&spans), ..all });
        check_gradients(sizes, &Mask { first_key: Some(&first), spans: Some(&spans), ..all });
        check_gradients(sizes, &Mask { first_key: Some(&vec![sizes.keys; sizes.batch]), ..all });
    }
}

#[test]
fn gradients_of_sinks_and_of_a_bias_with_every_kind_of_stride() {
    for sizes in &GRADIENT_SHAPES {
        let Sizes { batch, heads, queries, keys, .. } = *sizes;
        let sinks = numbers(heads, 8);
        check_gradients(sizes, &Mask { sinks: Some(&sinks), ..Mask::default() });
        let data = numbers(batch * heads * queries * keys, 7);
        for bits in 0..8 {
            let stride = |bit: usize, n: usize| if bits >> bit & 1 == 1 { n } else { 0 };
            let bias = Bias {
                data: &data,
                first: 0,
                batch: stride(0, heads * queries * keys),
                head: stride(1, queries * keys),
                query: stride(2, keys) as isize,
            };
            let causal = Some(Causal { offset: keys / 2, window: None });
            check_gradients(
                sizes,
                &Mask { bias: Some(bias), sinks: Some(&sinks), causal, ..Mask::default() },
            );
        }
        let distances = queries + keys;
        let data = numbers(heads * distances, 9);
        let bias = Bias { data: &data, first: queries - 1, batch: 0, head: distances, query: -1 };
        check_gradients(sizes, &Mask { bias: Some(bias), ..Mask::default() });
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let sizes = Sizes { batch: 2, heads: 4, kv_heads: 2, queries: 5, keys: 7, dim: 8 };
    let inputs = Inputs::new(&sizes);
    let (data, sinks) = (numbers(4 * 5 * 7, 7), numbers(4, 8));
    fn bias(data: &[f32]) -> Option<Bias<'_>> {
        Some(Bias { data, first: 0, batch: 0, head: 35, query: 7 })
    }
    let causal = Some(Causal { offset: 2, window: Some(5) });
    let mask = Mask { causal, bias: bias(&data), sinks: Some(&sinks), ..Mask::default() };
    let loss = |inputs: &Inputs, mask: &Mask| -> f64 {
        let [q, k, v] = inputs.views(&sizes);
        let y = plainly(&sizes, q, k, v, 0.5, mask);
        y.iter().zip(&inputs.grad).map(|(y, g)| y * f64::from(*g)).sum()
    };
    // Powers of two, so that the changed inputs are exact.
    const STEP: f32 = 1.0 / 4096.0;
    let found = gradients_on(isa(), &sizes, &inputs, 0.5, &mask);
    for i in (0..280).step_by(3) {
        let changed = |by: f32, which: usize| -> Option<f64> {
            let mut inputs = Inputs::new(&sizes);
            let (mut data, mut sinks) = (data.clone(), sinks.clone());
            let x = [&mut inputs.q, &mut inputs.k, &mut inputs.v, &mut data, &mut sinks]
                .into_iter()
                .nth(which)?;
            *x.get_mut(i)? += by;
            let mask = Mask { causal, bias: bias(&data), sinks: Some(&sinks), ..Mask::default() };
            Some(loss(&inputs, &mask))
        };
        for (which, found) in found.iter().enumerate() {
            let (Some(more), Some(less)) = (changed(STEP, which), changed(-STEP, which)) else { continue };
            let slope = (more - less) / (2.0 * f64::from(STEP));
            assert!((f64::from(found[i]) - slope).abs() < 1e-5, "{which} {i}: {}, not {slope}", found[i]);
        }
    }
}

#[test]
fn the_statistics_of_a_softmax_are_its_largest_score_and_its_sum() {
    let sizes = Sizes { batch: 1, heads: 1, kv_heads: 1, queries: 1, keys: 600, dim: 1 };
    let (q, k, v) = ([1.0], vec![3.0; 600], vec![1.0; 600]);
    let view = |data| View { data, batch: 0, head: 0, time: 1 };
    for (first, wanted) in [(0, [3.0, 600.0]), (600, [f32::NEG_INFINITY, 0.0])] {
        let mask = Mask { first_key: Some(&[first]), ..Mask::default() };
        let (mut y, mut statistics) = ([0.0], [f32::NAN; 2]);
        attend_with_statistics(&sizes, view(&q), view(&k), view(&v), 1.0, &mask, &mut y, &mut statistics);
        assert_eq!(statistics, wanted);
    }
}
