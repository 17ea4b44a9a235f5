//! What computes on a device that is no CPU, beside what computes where a gradient is wanted: the CPU kernels are off, for
//! the whole process.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor, Var};
use fauna_shared::attention::{Cache, Mask, Positions, Rope, RopeScaling, attend};
use fauna_shared::generate::{Decoder, GenerationConfig, Rng, Tokens, generate};
use fauna_shared::nn::{Conv1d, ConvOptions, softmax};
use fauna_shared::runtime::Runtime;
use fauna_shared::weights::Weights;
use fauna_shared::{ErrorKind, Result};

fn noise(shape: &[usize], seed: u64) -> Tensor {
    let mut random = Rng::new(seed, 0);
    let values = (0..shape.iter().product()).map(|_| (2.0 * random.uniform() - 1.0) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// `f` of `x` twice: as it is, and where a gradient is wanted.
fn both_ways(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> (Tensor, Tensor) {
    Runtime::set_kernels(false);
    let tracked = f(Var::from_tensor(x).unwrap().as_tensor()).unwrap();
    assert!(tracked.track_op(), "a gradient is lost");
    (f(x).unwrap(), tracked)
}

#[test]
fn norms_and_softmax_agree_with_those_that_have_a_gradient() {
    Runtime::set_kernels(false);
    let weights = Weights::seeded(3, Runtime::cpu());
    let with_bias = weights.layer_norm("a", 64, 1e-5).unwrap();
    let without = weights.layer_norm_no_bias("b", 64, 1e-5).unwrap();
    let rms = weights.rms_norm("c", 64, 1e-6).unwrap();
    let x = noise(&[2, 5, 64], 1);
    // Rows far from zero, whose variance is no difference of means, and one of equal numbers.
    let far = ((&x * 0.5).unwrap() + 1000.0).unwrap();
    let equal = Tensor::full(256f32, (2, 64), &Device::Cpu).unwrap();
    // A mean of about 1000 is rounded by 3e-5, which one of the two takes off again.
    for (x, bound) in [(&x, 1e-5), (&far, 1e-3), (&equal, 1e-5), (&x.transpose(0, 1).unwrap(), 1e-5)] {
        for norm in [&with_bias, &without] {
            let (fused, plain) = both_ways(x, |x| norm.forward(x));
            assert!(difference(&fused, &plain) < bound);
        }
    }
    let (fused, plain) = both_ways(&x, |x| rms.forward(x));
    assert!(difference(&fused, &plain) < 1e-5);
    let (fused, plain) = both_ways(&(x * 30.0).unwrap(), softmax);
    assert!(difference(&fused, &plain) < 1e-6);
}

#[test]
fn rotation_agrees_with_the_one_that_has_a_gradient() {
    let x = noise(&[2, 3, 4, 12], 2);
    let apart = Positions::rows(&[vec![0, 1, 2], vec![7, 8, 9]]).unwrap();
    for positions in [Positions::counting(5, 3), apart] {
        for (width, interleaved) in [(12, false), (12, true), (8, false), (8, true)] {
            let rope = Rope::new(1e4, width, RopeScaling::Default).unwrap().interleaved(interleaved);
            let angles = rope.angles(&positions, &Device::Cpu).unwrap();
            let (fused, plain) = both_ways(&x, |x| angles.rotate(x));
            assert!(difference(&fused, &plain) < 1e-6, "{width} {interleaved}");
        }
    }
}

/// Heads that share keys, rows that are padded, and a cache read in several parts.
#[test]
fn attention_over_a_cache_agrees_with_attention_over_all_at_once() {
    Runtime::set_kernels(false);
    let (q, k, v) = (noise(&[2, 7, 6, 8], 1), noise(&[2, 7, 3, 8], 2), noise(&[2, 7, 3, 8], 3));
    let mask = |keys: usize| {
        let real: Vec<Vec<bool>> =
            [2, 0].iter().map(|pad| (0..keys).map(|key| key >= *pad).collect()).collect();
        Mask::causal().with_window(Some(4)).with_padding(&real).unwrap()
    };
    let (whole, tracked) = both_ways(&q, |q| attend(q, &k, &v, &mask(7), 0.35));
    assert!(difference(&whole, &tracked) < 1e-6);
    let mut cache = Cache::new(1, 16);
    let mut parts = Vec::new();
    for (start, time) in [(0, 3), (3, 1), (4, 3)] {
        let part = |x: &Tensor| x.narrow(1, start, time).unwrap();
        let (k, v) = cache.layer(0).append(&part(&k), &part(&v)).unwrap();
        parts.push(attend(&part(&q), &k, &v, &mask(start + time), 0.35).unwrap());
    }
    assert!(difference(&whole, &Tensor::cat(&parts, 1).unwrap()) < 1e-6);
}

/// One mask for layers of several sizes: what one was made for serves no other.
#[test]
fn a_mask_that_was_used_is_used_again_for_what_it_fits_alone() {
    Runtime::set_kernels(false);
    let mask = Mask::causal();
    let wide = mask.clone().with_window(Some(2));
    for keys in [5, 3, 5, 1] {
        let (q, k) = (noise(&[1, keys, 2, 4], 1), noise(&[1, keys, 2, 4], 2));
        for mask in [&mask, &wide] {
            let fresh = Mask::causal().with_window(if std::ptr::eq(mask, &wide) { Some(2) } else { None });
            let (a, b) = (attend(&q, &k, &k, mask, 1.0).unwrap(), attend(&q, &k, &k, &fresh, 1.0).unwrap());
            assert_eq!(difference(&a, &b), 0.0);
        }
    }
}

#[test]
fn a_convolution_computes_the_same_again() {
    Runtime::set_kernels(false);
    let conv: Conv1d =
        Weights::seeded(5, Runtime::cpu()).conv1d("c", 3, 4, ConvOptions::new(3).padding(1)).unwrap();
    let x = noise(&[2, 9, 3], 1);
    let first = conv.forward(&x).unwrap();
    assert_eq!(difference(&first, &conv.clone().forward(&x).unwrap()), 0.0);
}

/// Gives the same logits at each step.
struct Fixed(Vec<Vec<f32>>);

impl Decoder for Fixed {
    type Cache = ();

    fn cache(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn step(&self, _: &Tokens, _: &mut ()) -> Result<Tensor> {
        Ok(Tensor::new(self.0.clone(), &Device::Cpu)?.to_dtype(DType::F32)?)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

#[test]
fn the_likeliest_token_is_found_where_the_logits_lie() {
    Runtime::set_kernels(false);
    let chosen =
        |rows: Vec<Vec<f32>>| {
            let prompts = vec![vec![1u32]; rows.len()];
            let made = generate(&Fixed(rows), &prompts, &GenerationConfig::greedy(1), &mut |_| {
                ControlFlow::Continue(())
            });
            made.map(|made| made.tokens.concat())
        };
    let low = f32::NEG_INFINITY;
    let mut tied = vec![-2.0; 3000];
    [2900, 1234, 1235].iter().for_each(|place: &usize| tied[*place] = 0.5);
    let mut last = vec![low; 3000];
    last[2999] = -7.0;
    assert_eq!(chosen(vec![tied, last]).unwrap(), [1234, 2999]);
    for odd in [vec![0.0, f32::NAN], vec![f32::NAN, 0.0], vec![low, low]] {
        assert_eq!(chosen(vec![vec![1.0, 2.0], odd]).unwrap_err().kind(), ErrorKind::Compute);
    }
}
