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
fn one_key_gives_its_value() {
    let q = counted(&[1, 1, 2, 3], 0.7);
    let v = counted(&[1, 1, 1, 3], 1.3);
    let out = attend(&q, &v, &v, &Mask::causal(), 1.0).unwrap();
    close(&out, &Tensor::cat(&[&v, &v], 2).unwrap(), 1e-6);
}

#[test]
fn two_equal_keys_give_the_mean() {
    let q = counted(&[1, 2, 1, 2], 0.7);
    let k = tensor(vec![1.0; 4], &[1, 2, 1, 2]);
    let v = tensor(vec![0.0, 2.0, 4.0, 8.0], &[1, 2, 1, 2]);
    let out = attend(&q, &k, &v, &Mask::causal(), 1.0).unwrap();
    close(&out, &tensor(vec![0.0, 2.0, 2.0, 5.0], &[1, 2, 2]), 1e-6);
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let x = counted(&[1, 3, 2, 4], 0.3);
    let mask = Mask::causal().with_padding(&[vec![false, false, true]]).unwrap();
    let out = attend(&x, &x, &x, &mask, 0.5).unwrap();
    close(&out.narrow(1, 0, 2).unwrap(), &tensor(vec![0.0; 16], &[1, 2, 8]), 0.0);
    // Padding at both ends, which the kernel takes another way.
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
        for mask in [
            Mask::full(),
            Mask::causal(),
            Mask::causal().with_window(Some(3)),
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
fn a_cache_gives_what_one_pass_gives() {
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
    assert!(cache.layer(0).append(&x, &x).is_err(), "a full cache takes no more");
}

#[test]
fn a_quarter_turn_swaps_a_pair() {
    // One pair, frequency 1: at position p it turns by p radians.
    let rope = Rope::new(10_000.0, 2, RopeScaling::Default).unwrap();
    let angles = rope.angles(&Positions::counting(0, 2), &Device::Cpu).unwrap();
    let x = tensor(vec![1.0, 0.0, 1.0, 0.0], &[1, 2, 1, 2]);
    let (sin, cos) = 1f32.sin_cos();
    close(&angles.rotate(&x).unwrap(), &tensor(vec![1.0, 0.0, cos, sin], &[1, 2, 1, 2]), 1e-6);
}

#[test]
fn rotation_by_kernel_and_by_candle_agree() {
    for interleaved in [false, true] {
        let rope = Rope::new(100.0, 6, RopeScaling::Default).unwrap().interleaved(interleaved);
        let positions = Positions::rows(&[vec![0, 0, 1], vec![3, 4, 5]]).unwrap();
        let angles = rope.angles(&positions, &Device::Cpu).unwrap();
        let x = counted(&[2, 3, 2, 8], 0.9);
        let tracked = Var::from_tensor(&x).unwrap();
        close(&angles.rotate(&x).unwrap(), &angles.rotate(&tracked).unwrap().detach(), 1e-6);
    }
}
