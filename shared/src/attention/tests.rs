use candle_core::{Device, Tensor, Var};

use super::*;

fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn counted(shape: &[usize], step: f32) -> Tensor {
    let n: usize = shape.iter().product();
    tensor((0..n).map(|i| (i as f32 * step).sin()).collect(), shape)
}

fn close(a: &Tensor, b: &Tensor, tolerance: f32) {
    let a: Vec<f32> = a.flatten_all().unwrap().to_vec1().unwrap();
    let b: Vec<f32> = b.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= tolerance, "element {i}: {a} and {b}");
    }
}

#[test]
fn attention_to_one_key_returns_its_value() {
    let q = counted(&[1, 1, 2, 3], 0.7);
    let v = counted(&[1, 1, 1, 3], 1.3);
    let out = attend(&q, &v, &v, &Mask::causal(), 1.0).unwrap();
    close(&out, &Tensor::cat(&[&v, &v], 2).unwrap(), 1e-6);
}

#[test]
fn attention_to_two_equal_keys_returns_the_mean() {
    let q = counted(&[1, 2, 1, 2], 0.7);
    let k = tensor(vec![1.0; 4], &[1, 2, 1, 2]);
    let v = tensor(vec![0.0, 2.0, 4.0, 8.0], &[1, 2, 1, 2]);
    let out = attend(&q, &k, &v, &Mask::causal(), 1.0).unwrap();
    close(&out, &tensor(vec![0.0, 2.0, 2.0, 5.0], &[1, 2, 2]), 1e-6);
}

#[test]
fn an_attention_sink_takes_weight_and_has_no_value() {
    // All scores are zero, so a key weighs 1 and the sinks of the two heads 2 and 0: of two keys each has 1/4 or 1/2.
    let q = tensor(vec![0.0; 4], &[1, 2, 2, 1]);
    let k = tensor(vec![1.0; 2], &[1, 2, 1, 1]);
    let v = tensor(vec![4.0, 12.0], &[1, 2, 1, 1]);
    let sinks = tensor(vec![2f32.ln(), f32::NEG_INFINITY], &[2]);
    let out = attend_with_sinks(&q, &k, &v, &Mask::causal(), 1.0, &sinks).unwrap();
    close(&out, &tensor(vec![4.0 / 3.0, 4.0, 4.0, 8.0], &[1, 2, 2]), 1e-6);
    // The window leaves the last query the last key.
    let mask = Mask::causal().with_window(Some(1));
    let out = attend_with_sinks(&q, &k, &v, &mask, 1.0, &sinks).unwrap();
    close(&out, &tensor(vec![4.0 / 3.0, 4.0, 4.0, 12.0], &[1, 2, 2]), 1e-6);
    // Scores far below the sink, and far above it.
    let q = tensor(vec![-200.0, 200.0], &[1, 1, 2, 1]);
    let k = tensor(vec![1.0], &[1, 1, 1, 1]);
    let out = attend_with_sinks(&q, &k, &k, &Mask::causal(), 1.0, &tensor(vec![0.0; 2], &[2])).unwrap();
    close(&out, &tensor(vec![0.0, 1.0], &[1, 1, 2]), 1e-6);
    for wrong in [1, 3] {
        let sinks = tensor(vec![0.0; wrong], &[wrong]);
        assert!(attend_with_sinks(&q, &k, &k, &Mask::causal(), 1.0, &sinks).is_err(), "one sink per head");
    }
}

#[test]
fn sinks_of_kernel_and_candle_agree_and_are_differentiable() {
    // Decoding splits the keys of a row between threads from 512 on; a window leaves most parts without any.
    for (batch, queries, keys, heads, kv_heads, width) in [
        (1, 1, 7, 4, 2, 6),
        (2, 5, 9, 4, 1, 8),
        (1, 40, 70, 6, 2, 32),
        (1, 1, 1300, 8, 2, 16),
        (2, 1, 700, 8, 8, 16),
    ] {
        let q = counted(&[batch, queries, heads, width], 0.37);
        let k = counted(&[batch, keys, kv_heads, width], 0.53);
        let v = counted(&[batch, keys, kv_heads, width], 0.71);
        // About as heavy as all keys together.
        let sinks = (0..heads).map(|head| head as f32 - 1.5 + (keys as f32).ln());
        let sinks = tensor(sinks.collect(), &[heads]);
        let padding: Vec<Vec<bool>> =
            (0..batch).map(|row| (0..keys).map(|key| key > 2 * row).collect()).collect();
        for mask in [
            Mask::full(),
            Mask::causal(),
            Mask::causal().with_window(Some(3)),
            Mask::causal().with_window(Some(128)),
            Mask::causal().with_padding(&padding).unwrap(),
            Mask::causal().with_window(Some(6)).with_padding(&padding).unwrap(),
        ] {
            let fast = attend_with_sinks(&q, &k, &v, &mask, 0.4, &sinks).unwrap();
            let learned = Var::from_tensor(&sinks).unwrap();
            let slow = attend_with_sinks(&q, &k, &v, &mask, 0.4, &learned).unwrap();
            close(&fast, &slow.detach(), 1e-5);
            let tracked = Var::from_tensor(&q).unwrap();
            let slow = attend_with_sinks(&tracked, &k, &v, &mask, 0.4, &sinks).unwrap();
            close(&fast, &slow.detach(), 1e-5);
            let gradient = attend_with_sinks(&q, &k, &v, &mask, 0.4, &learned).unwrap();
            let gradient = gradient.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let gradient: Vec<f32> = gradient.get(&learned).unwrap().to_vec1().unwrap();
            // A larger sink reduces all outputs.
            assert!(gradient.iter().all(|slope| *slope < 0.0), "{gradient:?}");
            let without = attend(&q, &k, &v, &mask, 0.4).unwrap();
            let moved = (fast - without).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(moved.to_scalar::<f32>().unwrap() > 1e-3, "sinks change nothing");
            // Keys and values in half precision, as a cache may keep them.
            let half = |x: &Tensor| x.to_dtype(candle_core::DType::F16).unwrap();
            let fast = attend_with_sinks(&q, &half(&k), &half(&v), &mask, 0.4, &sinks).unwrap();
            let slow = attend_with_sinks(&tracked, &half(&k), &half(&v), &mask, 0.4, &sinks).unwrap();
            close(&fast, &slow.detach(), 1e-5);
        }
    }
}

#[test]
fn a_query_with_all_keys_masked_returns_zeros() {
    let x = counted(&[1, 3, 2, 4], 0.3);
    let mask = Mask::causal().with_padding(&[vec![false, false, true]]).unwrap();
    let out = attend(&x, &x, &x, &mask, 0.5).unwrap();
    close(&out.narrow(1, 0, 2).unwrap(), &tensor(vec![0.0; 16], &[1, 2, 8]), 0.0);
    // Padding at both ends, which the kernel handles as a bias.
    let mask = Mask::causal().with_padding(&[vec![false, true, false]]).unwrap();
    let out = attend(&x, &x, &x, &mask, 0.5).unwrap();
    close(&out.narrow(1, 0, 1).unwrap(), &tensor(vec![0.0; 8], &[1, 1, 8]), 0.0);
    assert!(out.narrow(1, 2, 1).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.1);
}

#[test]
fn the_kernel_and_the_differentiable_path_agree() {
    for (batch, queries, keys, heads, kv_heads, width) in
        [(1, 1, 7, 4, 2, 6), (2, 5, 5, 3, 1, 8), (2, 3, 9, 4, 4, 5), (1, 33, 70, 2, 2, 64)]
    {
        let q = counted(&[batch, queries, heads, width], 0.37);
        let k = counted(&[batch, keys, kv_heads, width], 0.53);
        let v = counted(&[batch, keys, kv_heads, width], 0.71);
        let padding: Vec<Vec<bool>> =
            (0..batch).map(|row| (0..keys).map(|key| key >= 2 * row || key == 0).collect()).collect();
        let left: Vec<Vec<bool>> = (0..batch).map(|row| (0..keys).map(|key| key > row).collect()).collect();
        // Bidirectional blocks with all previous keys, every other query fully masked, ranges that go back.
        let span = |row: usize, query: usize| match (row + query) % 3 {
            0 => 0..(query + 2).min(keys),
            1 => 0..0,
            _ => keys / 2..keys,
        };
        let spans: Vec<Vec<_>> =
            (0..batch).map(|row| (0..queries).map(|query| span(row, query)).collect()).collect();
        let dots = |row: usize, query: usize| {
            (0..keys).map(move |key| (row + query + key).is_multiple_of(3)).collect()
        };
        let table: Vec<Vec<Vec<bool>>> =
            (0..batch).map(|row| (0..queries).map(|query| dots(row, query)).collect()).collect();
        for mask in [
            Mask::full(),
            Mask::causal(),
            Mask::causal().with_window(Some(3)),
            Mask::spans(spans.clone()).unwrap(),
            Mask::spans(spans).unwrap().with_padding(&padding).unwrap(),
            Mask::table(&table).unwrap(),
            Mask::table(&table).unwrap().with_padding(&left).unwrap(),
            Mask::causal().with_padding(&padding).unwrap(),
            Mask::full().with_padding(&padding).unwrap(),
            Mask::causal().with_padding(&left).unwrap(),
        ] {
            let fast = attend(&q, &k, &v, &mask, 0.4).unwrap();
            let tracked = Var::from_tensor(&q).unwrap();
            let slow = attend(&tracked, &k, &v, &mask, 0.4).unwrap();
            close(&fast, &slow.detach(), 1e-5);
        }
    }
}

#[test]
fn each_query_attends_to_its_own_keys() {
    let x = counted(&[1, 3, 1, 2], 0.7);
    // The first attends to no key, the second to the last, the third to the first two: means of one and two values.
    let mask = Mask::spans(vec![vec![0..0, 2..3, 0..2]]).unwrap();
    let table = [vec![vec![false; 3], vec![false, false, true], vec![true, true, false]]];
    let k = tensor(vec![1.0; 6], &[1, 3, 1, 2]);
    let v = tensor(vec![1.0, 2.0, 3.0, 6.0, 9.0, 12.0], &[1, 3, 1, 2]);
    for mask in [mask, Mask::table(&table).unwrap()] {
        let out = attend(&x, &k, &v, &mask, 1.0).unwrap();
        close(&out, &tensor(vec![0.0, 0.0, 9.0, 12.0, 2.0, 4.0], &[1, 3, 2]), 1e-6);
        assert!(attend(&x, &k.narrow(1, 0, 2).unwrap(), &v.narrow(1, 0, 2).unwrap(), &mask, 1.0).is_err());
    }
    assert!(Mask::spans(vec![vec![0..1], vec![]]).is_err());
}

#[test]
fn decoding_with_a_cache_equals_one_forward_pass() {
    let x = counted(&[2, 6, 2, 4], 0.3);
    let whole = attend(&x, &x, &x, &Mask::causal(), 0.5).unwrap();
    let mut cache = Cache::new(1, 6);
    let mut parts = Vec::new();
    for (start, time) in [(0, 3), (3, 1), (4, 2)] {
        let part = x.narrow(1, start, time).unwrap();
        let (k, v) = cache.layer(0).append(&part, &part).unwrap();
        parts.push(attend(&part, &k, &v, &Mask::causal(), 0.5).unwrap());
    }
    close(&Tensor::cat(&parts, 1).unwrap(), &whole, 1e-6);
    assert!(cache.layer(0).append(&x, &x).is_err(), "the cache is full");
}

#[test]
fn a_cache_allocates_cached_positions_not_its_capacity() {
    let x = counted(&[1, 5000, 1, 2], 0.3);
    let mut cache = Cache::new(1, usize::MAX);
    for (start, time) in [(0, 3), (3, 4096), (4099, 1), (4100, 900)] {
        let part = x.narrow(1, start, time).unwrap();
        let (k, _) = cache.layer(0).append(&part, &part).unwrap();
        close(&k.contiguous().unwrap(), &x.narrow(1, 0, start + time).unwrap(), 0.0);
    }
}

#[test]
fn the_error_of_a_half_precision_cache_is_small() {
    // Keys and values are views of a fused projection.
    let x = counted(&[2, 6, 3, 4], 0.3);
    let (k, v) = (x.narrow(2, 0, 1).unwrap(), x.narrow(2, 1, 1).unwrap());
    let q = x.narrow(2, 2, 1).unwrap();
    let whole = attend(&q, &k, &v, &Mask::causal(), 0.5).unwrap();
    let mut cache = Cache::new(1, 7).with_half(true);
    let mut parts = Vec::new();
    for (start, time) in [(0, 3), (3, 1), (4, 2)] {
        let part = |x: &Tensor| x.narrow(1, start, time).unwrap();
        let (k, v) = cache.layer(0).append(&part(&k), &part(&v)).unwrap();
        assert_eq!(k.dtype(), candle_core::DType::F16);
        let fast = attend(&part(&q), &k, &v, &Mask::causal(), 0.5).unwrap();
        let tracked = Var::from_tensor(&part(&q)).unwrap();
        close(&fast, &attend(&tracked, &k, &v, &Mask::causal(), 0.5).unwrap().detach(), 1e-5);
        parts.push(fast);
    }
    close(&Tensor::cat(&parts, 1).unwrap(), &whole, 1e-3);
}

#[test]
fn a_rotation_by_90_degrees_swaps_a_pair() {
    // One pair, frequency 1: at position p it is rotated by p radians.
    let rope = Rope::new(10_000.0, 2, RopeScaling::Default).unwrap();
    let angles = rope.angles(&Positions::counting(0, 2), &Device::Cpu).unwrap();
    let x = tensor(vec![1.0, 0.0, 1.0, 0.0], &[1, 2, 1, 2]);
    let (sin, cos) = 1f32.sin_cos();
    close(&angles.rotate(&x).unwrap(), &tensor(vec![1.0, 0.0, cos, sin], &[1, 2, 1, 2]), 1e-6);
}

#[test]
fn rope_of_kernel_and_candle_agree() {
    for interleaved in [false, true] {
        let rope = Rope::new(100.0, 6, RopeScaling::Default).unwrap().interleaved(interleaved);
        let positions = Positions::rows(&[vec![0, 0, 1], vec![3, 4, 5]]).unwrap();
        let angles = rope.angles(&positions, &Device::Cpu).unwrap();
        let x = counted(&[2, 3, 2, 8], 0.9);
        let tracked = Var::from_tensor(&x).unwrap();
        close(&angles.rotate(&x).unwrap(), &angles.rotate(&tracked).unwrap().detach(), 1e-6);
    }
}

/// Four buckets each way; the table is `(8, heads)`.
fn positions(table: &Tensor) -> RelativePositionBias {
    RelativePositionBias::new(RelativePositionBuckets::new(8, 20, true).unwrap(), table).unwrap()
}

#[test]
fn bucket_boundaries_equal_the_reference() {
    // From transformers 5.23.0 `T5Attention._relative_position_bucket`.
    let buckets = |count, longest, both_ways, distances: &[i64]| -> Vec<usize> {
        let buckets = RelativePositionBuckets::new(count, longest, both_ways).unwrap();
        distances.iter().map(|distance| buckets.of(*distance)).collect()
    };
    let around: Vec<i64> = (-25..=25).collect();
    let behind = [&[3; 19][..], &[2; 5], &[1, 0]].concat();
    let ahead = [&[5][..], &[6; 5], &[7; 19]].concat();
    assert_eq!(buckets(8, 20, true, &around), [behind, ahead].concat());
    assert_eq!(
        buckets(8, 20, false, &around[..27]),
        [&[7; 12][..], &[6; 5], &[5; 3], &[4, 4, 3, 2, 1, 0, 0]].concat()
    );
    let borders =
        [-129, -128, -127, -91, -90, -64, -63, -46, -45, -32, -31, -23, -22, -16, -15, -12, -11, -8, -7];
    assert_eq!(
        buckets(32, 128, true, &borders),
        [15, 15, 15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7]
    );
    assert_eq!(
        buckets(32, 128, false, &borders),
        [31, 31, 31, 29, 29, 26, 26, 24, 23, 21, 21, 18, 18, 16, 15, 12, 11, 8, 7]
    );
}

#[test]
fn too_few_buckets_are_an_error() {
    assert!(RelativePositionBuckets::new(3, 20, true).is_err());
    assert!(RelativePositionBuckets::new(2, 20, false).is_ok());
    assert!(RelativePositionBuckets::new(32, 8, true).is_err());
    assert!(RelativePositionBuckets::new(0, 0, false).is_err());
}

#[test]
fn a_position_bias_changes_the_weights() {
    // All scores are zero, so the weights are the softmax of the bias: ln 3 one key ahead, else 0.
    let mut table = vec![0f32; 16];
    table[2 * 5] = 3f32.ln();
    let table = tensor(table, &[8, 2]);
    let (q, v) = (tensor(vec![0.0; 4], &[1, 2, 2, 1]), tensor(vec![1.0, 1.0, 5.0, 5.0], &[1, 2, 2, 1]));
    let mask = Mask::full().with_position_bias(positions(&table).between(2, 2).unwrap());
    let out = attend(&q, &q, &v, &mask, 1.0).unwrap();
    close(&out, &tensor(vec![4.0, 3.0, 3.0, 3.0], &[1, 2, 2]), 1e-6);
}

#[test]
fn position_bias_of_kernel_and_candle_agree_and_the_table_is_differentiable() {
    let table = counted(&[8, 2], 0.9);
    let learned = Var::from_tensor(&table).unwrap();
    for (queries, keys) in [(40, 40), (1, 7), (3, 9)] {
        let q = counted(&[2, queries, 2, 4], 0.37);
        let k = counted(&[2, keys, 2, 4], 0.53);
        let real = |row: usize| (0..keys).map(|key| key + row < keys).collect();
        for mask in [Mask::full(), Mask::causal(), Mask::causal().with_padding(&[real(0), real(2)]).unwrap()]
        {
            let with =
                |table| mask.clone().with_position_bias(positions(table).between(queries, keys).unwrap());
            let fast = attend(&q, &k, &k, &with(&table), 0.4).unwrap();
            let slow = attend(&q, &k, &k, &with(&learned), 0.4).unwrap();
            close(&fast, &slow.detach(), 1e-5);
            let gradient = slow.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let gradient = gradient.get(&learned).unwrap().abs().unwrap().sum_all().unwrap();
            assert!(gradient.to_scalar::<f32>().unwrap() > 1e-3);
        }
    }
    let elsewhere = Mask::full().with_position_bias(positions(&table).between(3, 9).unwrap());
    let x = counted(&[1, 4, 2, 4], 0.3);
    assert!(attend(&x, &x, &x, &elsewhere, 1.0).is_err(), "a position bias of other sizes is rejected");
}
