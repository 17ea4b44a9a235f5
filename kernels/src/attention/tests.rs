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
        attend_on(isa, sizes, q, k, v, scale, mask, &mut y);
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
        attend_on(isa, &sizes, view(&q), view(&k), view(&v), 1.0, &mask, &mut y);
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
        attend_on(isa, &sizes, view(&q), view(&k), view(&v), 1.0, &mask, &mut y);
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
