//! Steps of optimizers, each one pass over the memory of a parameter, its gradient and its moments, and the norm of a
//! gradient. All are element-wise or have fixed partial sums, so that results do not depend on the number of threads.
//!
//! ```
//! use fauna_kernels::optimizer::{AdamW, Moments, clip_factor, sum_of_squares};
//! let (mut parameter, grad) = ([1.0, 2.0], [3.0, 4.0]);
//! let (mut first, mut second) = ([0.0; 2], [0.0; 2]);
//! let clip = clip_factor(sum_of_squares(&grad).sqrt(), 1.0);
//! let moments = Moments { first: &mut first, second: &mut second, largest: None };
//! AdamW::new(0.1).step(1, &mut parameter, &grad, clip, moments).unwrap();
//! assert!((parameter[0] - 0.899).abs() < 1e-5);
//! ```

use super::InvalidInput;
use super::versions::{Shared, fma, for_each_piece, versioned};

/// Elements per task.
const PIECE: usize = 32 * 1024;

/// AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2), in the order of operations of
/// `torch.optim.AdamW`. The defaults are those of PyTorch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first and of the second moment, from 0 to below 1.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, times the learning rate: the part of the parameter that is subtracted in each step.
    pub decay: f64,
}

/// The moments of a parameter, zero before the first step.
#[derive(Debug)]
pub struct Moments<'a> {
    /// Running mean of the gradient.
    pub first: &'a mut [f32],
    /// Running mean of the squared gradient.
    pub second: &'a mut [f32],
    /// Maximum of `second` so far, which AMSGrad divides by instead; none for plain AdamW.
    pub largest: Option<&'a mut [f32]>,
}

/// The numbers of one step in float32.
#[derive(Clone, Copy)]
struct Numbers {
    scale: f32,
    keep: f32,
    beta1: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root: f32,
    eps: f32,
    size: f32,
}

impl AdamW {
    /// AdamW with the learning rate `rate`, betas 0.9 and 0.999, eps 1e-8 and weight decay 0.01.
    pub fn new(rate: f64) -> Self {
        Self { rate, betas: (0.9, 0.999), eps: 1e-8, decay: 0.01 }
    }

    /// Updates `parameter` and its moments by one step, the `number`-th, from 1.
    ///
    /// The gradient is `scale grad`: `scale` clips, averages over accumulated batches, or, if negative, maximizes.
    /// All slices have the same length.
    ///
    /// # Errors
    /// [`InvalidInput`] if `number` is 0, a beta is not from 0 to below 1, or the lengths differ.
    pub fn step(
        &self,
        number: u64,
        parameter: &mut [f32],
        grad: &[f32],
        scale: f32,
        moments: Moments,
    ) -> Result<(), InvalidInput> {
        let numbers = self.numbers(number, scale)?;
        let Moments { first, second, largest } = moments;
        same_length("gradient", parameter, grad)?;
        same_length("first moment", parameter, first)?;
        same_length("second moment", parameter, second)?;
        let (first, second) = (Shared(first.as_mut_ptr()), Shared(second.as_mut_ptr()));
        let Some(largest) = largest else {
            for_each_piece(parameter, PIECE, |i, p| {
                let (at, len) = (i * PIECE, p.len());
                // SAFETY: the moments have the length of the parameter, whose pieces do not overlap.
                let (m, v) = unsafe { (piece(&first, at, len), piece(&second, at, len)) };
                adam(p, &grad[at..at + len], m, v, numbers);
            });
            return Ok(());
        };
        same_length("largest second moment", parameter, largest)?;
        let largest = Shared(largest.as_mut_ptr());
        for_each_piece(parameter, PIECE, |i, p| {
            let (at, len) = (i * PIECE, p.len());
            // SAFETY: as above.
            let (m, v, top) =
                unsafe { (piece(&first, at, len), piece(&second, at, len), piece(&largest, at, len)) };
            amsgrad(p, &grad[at..at + len], m, v, top, numbers);
        });
        Ok(())
    }

    fn numbers(&self, number: u64, scale: f32) -> Result<Numbers, InvalidInput> {
        let (beta1, beta2) = self.betas;
        if number == 0 {
            return Err(InvalidInput::new("expected the number of a step, from 1, found 0"));
        }
        for beta in [beta1, beta2] {
            if !(0.0..1.0).contains(&beta) {
                return Err(InvalidInput::new(format!("expected betas from 0 to below 1, found {beta}")));
            }
        }
        let correction = |beta: f64| 1.0 - beta.powf(number as f64);
        Ok(Numbers {
            scale,
            keep: (1.0 - self.rate * self.decay) as f32,
            beta1: beta1 as f32,
            new1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            new2: (1.0 - beta2) as f32,
            root: correction(beta2).sqrt() as f32,
            eps: self.eps as f32,
            size: (-self.rate / correction(beta1)) as f32,
        })
    }
}

/// Stochastic gradient descent with momentum, as `torch.optim.SGD`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub rate: f64,
    /// Factor of the previous steps' gradients; 0 for none.
    pub momentum: f64,
    /// One minus the factor of this step's gradient in the momentum.
    pub dampening: f64,
    /// Weight decay, added to the gradient times the parameter.
    pub decay: f64,
    /// Whether the momentum is that of Nesterov.
    pub nesterov: bool,
}

impl Sgd {
    /// Gradient descent with the learning rate `rate` and nothing else.
    pub fn new(rate: f64) -> Self {
        Self { rate, momentum: 0.0, dampening: 0.0, decay: 0.0, nesterov: false }
    }

    /// Updates `parameter` by one step, the `number`-th, from 1, and its momentum `buffer`, which the first step
    /// overwrites and which is empty if [`Sgd::momentum`] is 0. The gradient is `scale grad`.
    ///
    /// # Errors
    /// [`InvalidInput`] if `number` is 0 or the lengths differ.
    pub fn step(
        &self,
        number: u64,
        parameter: &mut [f32],
        grad: &[f32],
        scale: f32,
        buffer: &mut [f32],
    ) -> Result<(), InvalidInput> {
        versioned! {
            fn plain(p: &mut [f32], grad: &[f32], scale: f32, decay: f32, size: f32) {
                for (p, &g) in p.iter_mut().zip(grad) {
                    *p = fma::<FMA>(fma::<FMA>(decay, *p, scale * g), size, *p);
                }
            }
        }
        versioned! {
            fn heavy(
                p: &mut [f32], grad: &[f32], buffer: &mut [f32], scale: f32, decay: f32, size: f32, old: f32,
                new: f32, ahead: f32, own: f32,
            ) {
                for ((p, &g), b) in p.iter_mut().zip(grad).zip(buffer) {
                    let g = fma::<FMA>(decay, *p, scale * g);
                    // The buffer of the first step may hold anything.
                    let before = if old == 0.0 { 0.0 } else { *b };
                    *b = fma::<FMA>(before, old, new * g);
                    *p = fma::<FMA>(fma::<FMA>(*b, ahead, own * g), size, *p);
                }
            }
        }
        if number == 0 {
            return Err(InvalidInput::new("expected the number of a step, from 1, found 0"));
        }
        same_length("gradient", parameter, grad)?;
        let (decay, size) = (self.decay as f32, -self.rate as f32);
        if self.momentum == 0.0 {
            for_each_piece(parameter, PIECE, |i, p| {
                plain(p, &grad[i * PIECE..][..p.len()], scale, decay, size);
            });
            return Ok(());
        }
        same_length("momentum", parameter, buffer)?;
        let momentum = self.momentum as f32;
        let (old, new) = if number == 1 { (0.0, 1.0) } else { (momentum, (1.0 - self.dampening) as f32) };
        let (ahead, own) = if self.nesterov { (momentum, 1.0) } else { (1.0, 0.0) };
        let buffer = Shared(buffer.as_mut_ptr());
        for_each_piece(parameter, PIECE, |i, p| {
            let (at, len) = (i * PIECE, p.len());
            // SAFETY: the buffer has the length of the parameter, whose pieces do not overlap.
            let buffer = unsafe { piece(&buffer, at, len) };
            heavy(p, &grad[at..at + len], buffer, scale, decay, size, old, new, ahead, own);
        });
        Ok(())
    }
}

/// Sum of the squares, in float64. It is the same whatever the number of threads and the processor. The norm of the
/// gradients of several parameters is the root of the sum over them.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    const LANES: usize = 32;
    versioned! {
        fn squares(x: &[f32]) -> f64 {
            let mut lanes = [0f64; LANES];
            let (blocks, rest) = x.as_chunks::<LANES>();
            for block in blocks {
                for i in 0..LANES {
                    // The square of a float32 is exact in float64, so that a fused multiply-add is the same.
                    lanes[i] += f64::from(block[i]) * f64::from(block[i]);
                }
            }
            for (lane, &v) in lanes.iter_mut().zip(rest) {
                *lane += f64::from(v) * f64::from(v);
            }
            lanes.iter().sum()
        }
    }
    let mut parts = vec![0f64; x.len().div_ceil(PIECE)];
    for_each_piece(&mut parts, 1, |i, part| {
        part[0] = squares(&x[i * PIECE..x.len().min((i + 1) * PIECE)]);
    });
    parts.iter().sum()
}

/// The factor that clips a gradient of the norm `norm` to at most `most`, as `torch.nn.utils.clip_grad_norm_`:
/// `min(most / (norm + 1e-6), 1)`; NaN for a norm that is.
pub fn clip_factor(norm: f64, most: f64) -> f32 {
    let factor = most / (norm + 1e-6);
    (if factor > 1.0 { 1.0 } else { factor }) as f32
}

versioned! {
    fn adam(p: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], n: Numbers) {
        for (((p, &g), m), v) in p.iter_mut().zip(grad).zip(m).zip(v) {
            let g = n.scale * g;
            *m = mean::<FMA>(*m, g, n);
            *v = fma::<FMA>(n.new2 * g, g, *v * n.beta2);
            *p = moved::<FMA>(*p, *m, *v, n);
        }
    }
}

versioned! {
    fn amsgrad(p: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], top: &mut [f32], n: Numbers) {
        for ((((p, &g), m), v), top) in p.iter_mut().zip(grad).zip(m).zip(v).zip(top) {
            let g = n.scale * g;
            *m = mean::<FMA>(*m, g, n);
            *v = fma::<FMA>(n.new2 * g, g, *v * n.beta2);
            *top = if *v > *top || v.is_nan() { *v } else { *top };
            *p = moved::<FMA>(*p, *m, *top, n);
        }
    }
}

/// The running mean of the gradient: `torch.lerp`, which begins at the nearer end.
#[inline(always)]
fn mean<const FMA: bool>(m: f32, g: f32, n: Numbers) -> f32 {
    if n.new1 < 0.5 { fma::<FMA>(n.new1, g - m, m) } else { fma::<FMA>(-n.beta1, g - m, g) }
}

/// The decayed parameter, moved along the mean `m` with the squared gradient `v`.
#[inline(always)]
fn moved<const FMA: bool>(p: f32, m: f32, v: f32, n: Numbers) -> f32 {
    fma::<FMA>(p, n.keep, n.size * m / (v.sqrt() / n.root + n.eps))
}

/// The elements `at..at + len` of a slice.
///
/// # Safety
/// They are inside it, and no other task accesses them.
unsafe fn piece<'a>(x: &Shared<f32>, at: usize, len: usize) -> &'a mut [f32] {
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts_mut(x.get().add(at), len) }
}

fn same_length(name: &str, parameter: &[f32], other: &[f32]) -> Result<(), InvalidInput> {
    if parameter.len() == other.len() {
        return Ok(());
    }
    let (wanted, found) = (parameter.len(), other.len());
    Err(InvalidInput::new(format!(
        "expected a {name} of {wanted} elements like the parameter, found {found}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    /// The gradient of step `t` in the values of PyTorch.
    fn slope(t: usize) -> [f32; 3] {
        let t = t as f32;
        [0.5 * t, -0.25, 0.5 * 0.5f32.powf(t)]
    }

    /// Parameters came from as far as 1, and are as precise as that; moments are relatively.
    fn near(got: &[f32], wanted: &[f32], size: f32) {
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() <= 3e-7 * wanted.abs().max(size), "{got} against {wanted}");
        }
    }

    /// `torch.optim.AdamW` of PyTorch 2.9.1 in float32.
    #[test]
    fn five_steps_of_adamw_are_those_of_pytorch() {
        let start = || ([1.0, -0.5, 0.25], [0.0; 3], [0.0; 3]);
        let (mut p, mut m, mut v) = start();
        let adam = AdamW { decay: 0.05, ..AdamW::new(0.1) };
        for t in 1..=5 {
            // The scale undoes a factor of the gradient.
            let grad = slope(t as usize).map(|g| 4.0 * g);
            let moments = Moments { first: &mut m, second: &mut v, largest: None };
            adam.step(t, &mut p, &grad, 0.25, moments).unwrap();
        }
        near(&p, &[0.495_027_13, 0.007_400_535, -0.170_217_7], 1.0);
        near(&m, &[0.657_205, -0.102_377_5, 0.034_952_503], 0.0);
        near(&v, &[0.013_737_507, 0.000_311_875_66, 0.000_082_946_72], 0.0);

        let ((mut p, mut m, mut v), mut top) = (start(), [0.0; 3]);
        let adam = AdamW { betas: (0.3, 0.5), ..AdamW::new(0.1) };
        for t in 1..=5 {
            let moments = Moments { first: &mut m, second: &mut v, largest: Some(&mut top) };
            adam.step(t, &mut p, &slope(t as usize), 1.0, moments).unwrap();
        }
        near(&p, &[0.476_444_07, 0.001_495_942_5, -0.012_864_569], 1.0);
        near(&m, &[2.286_235, -0.249_392_5, 0.025_217_501], 0.0);
        near(&v, &[4.476_562_5, 0.060_546_875, 0.003_784_179_7], 0.0);
        near(&top, &[4.476_562_5, 0.060_546_875, 0.031_25], 0.0);
    }

    /// `torch.optim.SGD` of PyTorch 2.9.1 in float32.
    #[test]
    fn five_steps_of_gradient_descent_are_those_of_pytorch() {
        let plain = Sgd::new(0.1);
        let heavy = Sgd { momentum: 0.9, dampening: 0.2, decay: 0.05, ..plain };
        let ahead = Sgd { dampening: 0.0, nesterov: true, ..heavy };
        for (sgd, parameter, momentum) in [
            (plain, [0.25, -0.375, 0.201_562_5], None),
            (
                heavy,
                [-0.356_419_2, -0.191_402_48, 0.081_811_585],
                Some([5.437_872_4, -0.920_178_7, 0.343_414_5]),
            ),
            (
                ahead,
                [-1.229_196_8, -0.046_526_223, 0.033_997_472],
                Some([6.655_457_5, -1.092_795_4, 0.379_671_3]),
            ),
        ] {
            let (mut p, mut buffer) = ([1.0, -0.5, 0.25], [f32::NAN; 3]);
            for t in 1..=5 {
                sgd.step(t, &mut p, &slope(t as usize), 1.0, &mut buffer).unwrap();
            }
            near(&p, &parameter, 1.0);
            momentum.iter().for_each(|momentum| near(&buffer, momentum, 0.0));
        }
    }

    #[test]
    fn large_parameters_of_odd_length_follow_the_formula_in_float64() {
        let n = 2 * PIECE + 77;
        let (mut p, grad, mut m) = (numbers(n, 1), numbers(n, 2), numbers(n, 3));
        let mut v: Vec<f32> = numbers(n, 4).iter().map(|v| v * v + 1e-3).collect();
        let adam = AdamW { rate: 1e-2, betas: (0.8, 0.95), eps: 1e-6, decay: 0.1 };
        let (number, scale) = (4, 0.3f32);
        let wanted: Vec<[f64; 3]> = (0..n)
            .map(|i| {
                let g = f64::from(scale) * f64::from(grad[i]);
                let m = 0.8 * f64::from(m[i]) + 0.2 * g;
                let v = 0.95 * f64::from(v[i]) + 0.05 * g * g;
                let root = (v / (1.0 - 0.95f64.powi(4))).sqrt() + 1e-6;
                let p = f64::from(p[i]) * (1.0 - 1e-3) - 1e-2 / (1.0 - 0.8f64.powi(4)) * m / root;
                [p, m, v]
            })
            .collect();
        let moments = Moments { first: &mut m, second: &mut v, largest: None };
        adam.step(number, &mut p, &grad, scale, moments).unwrap();
        for (i, wanted) in wanted.iter().enumerate() {
            for (got, wanted) in [p[i], m[i], v[i]].iter().zip(wanted) {
                assert!((f64::from(*got) - wanted).abs() <= 3e-7, "element {i}: {got}, truth {wanted}");
            }
        }
    }

    #[test]
    fn a_negative_scale_maximizes() {
        let step = |grad: f32, scale: f32| {
            let (mut p, mut m, mut v) = ([0.5], [0.0], [0.0]);
            let moments = Moments { first: &mut m, second: &mut v, largest: None };
            AdamW::new(0.1).step(1, &mut p, &[grad], scale, moments).unwrap();
            p[0]
        };
        assert_eq!(step(0.25, -1.0), step(-0.25, 1.0));
    }

    #[test]
    fn sums_of_squares_are_those_of_float64_and_do_not_depend_on_the_threads() {
        for n in [0, 1, 31, 33, PIECE, 3 * PIECE + 5] {
            let x = numbers(n, 7);
            let wanted: f64 = x.iter().map(|v| f64::from(*v).powi(2)).sum();
            let got = sum_of_squares(&x);
            assert!((got - wanted).abs() <= 1e-12 * wanted, "{n}: {got} against {wanted}");
            let alone = crate::pool::Pool::new(1).install(|| sum_of_squares(&x));
            assert_eq!(got.to_bits(), crate::pool::Pool::new(3).install(|| sum_of_squares(&x)).to_bits());
            assert_eq!(got.to_bits(), alone.to_bits());
        }
        assert_eq!(sum_of_squares(&[1e30, 1e30]), 2.0 * f64::from(1e30f32).powi(2));
        assert!(sum_of_squares(&[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn a_norm_below_the_limit_is_not_clipped() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(f64::INFINITY, 1.0), 0.0);
        assert!(clip_factor(f64::NAN, 1.0).is_nan());
    }

    #[test]
    fn lengths_and_numbers_that_do_not_fit_are_refused_by_name() {
        let refusal = |adam: AdamW, number: u64, lengths: [usize; 3]| {
            let [grad, first, second] = lengths.map(|n| vec![0.0; n]);
            let (mut first, mut second) = (first, second);
            let moments = Moments { first: &mut first, second: &mut second, largest: None };
            adam.step(number, &mut [0.0; 2], &grad, 1.0, moments).unwrap_err().to_string()
        };
        let adam = AdamW::new(0.1);
        assert!(refusal(adam, 0, [2; 3]).contains("found 0"));
        let said = refusal(adam, 1, [2, 2, 3]);
        assert_eq!(said, "expected a second moment of 2 elements like the parameter, found 3");
        assert!(refusal(adam, 1, [1, 2, 2]).contains("gradient"));
        assert!(refusal(adam, 1, [2, 1, 2]).contains("first moment"));
        assert!(refusal(AdamW { betas: (0.9, 1.0), ..adam }, 1, [2; 3]).contains("found 1"));
        let sgd = Sgd { momentum: 0.9, ..Sgd::new(0.1) };
        assert!(sgd.step(1, &mut [0.0; 2], &[0.0; 2], 1.0, &mut []).is_err());
        assert!(sgd.step(0, &mut [0.0; 2], &[0.0; 2], 1.0, &mut [0.0; 2]).is_err());
    }
}
