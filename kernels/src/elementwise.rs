//! Activation functions, gated activations and sums over slices, on all threads if a slice is large.
//!
//! Each function agrees with its formula in float64 to about 1e-6 (absolute below one, relative above), and
//! handles infinities and NaN like the formula.
//!
//! ```
//! let mut x = [-1.0, 0.0, 1.0];
//! fauna_kernels::elementwise::silu(&mut x);
//! assert!((x[2] - 0.731_058_6).abs() < 1e-6);
//! ```

use super::versions::{Shared, fma, for_each_piece, polynomial, versioned};

/// Elements per task: some microseconds of work that stays in the L1 cache.
const PIECE: usize = 8 * 1024;

/// Number of elements from which several threads are faster than one.
const PARALLEL_FROM: usize = 2 * PIECE;

fn piece(len: usize) -> usize {
    if len < PARALLEL_FROM { len } else { PIECE }
}

/// Returns e^x within 2 ULP; subnormal results are kept, overflow is infinity, NaN propagates.
#[inline(always)]
pub(crate) fn exp_one<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with enough trailing zeros that n * it is exact.
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p =
        polynomial::<FMA, 7>(r, [1.0, 1.0, 0.5, 0.166_665_76, 0.041_666_854, 0.008_363_2, 0.001_390_130_8]);
    // 2^n in two factors, so that neither leaves the range of normal numbers.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    p * power(half) * power(n.wrapping_sub(half))
}

/// Returns e^x - 1 for x up to 0, within 2 ULP.
#[inline(always)]
fn expm1_below_zero<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // as in `exp_one`
    let x = if x < -30.0 { -30.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = polynomial::<FMA, 5>(r, [0.5, 0.166_665_76, 0.041_666_854, 0.008_363_2, 0.001_390_130_8]);
    let near = fma::<FMA>(r * r, p, r);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let power = f32::from_bits((n.wrapping_add(127) << 23) as u32);
    // 2^n e^r - 1, where nothing cancels.
    fma::<FMA>(power, near, power - 1.0)
}

/// Returns 1 - Φ(|x|), the upper tail of the standard normal distribution, with a relative error of about 2e-7, and
/// `e^(-x²/2)`.
#[inline(always)]
fn normal_tail<const FMA: bool>(x: f32) -> (f32, f32) {
    let t = 1.0 / fma::<FMA>(x.abs(), 0.28, 1.0);
    let p = polynomial::<FMA, 9>(
        t,
        [
            0.111_691_15,
            0.111_929_32,
            0.101_393_364,
            0.090_286_7,
            0.057_423_808,
            0.014_878_258,
            0.074_941_25,
            -0.085_839_41,
            0.023_295_598,
        ],
    );
    let e = exp_one::<FMA>(-0.5 * x * x);
    (t * p * e, e)
}

#[inline(always)]
pub(crate) fn sigmoid_one<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp_one::<FMA>(-x))
}

#[inline(always)]
pub(crate) fn tanh_one<const FMA: bool>(x: f32) -> f32 {
    let square = x * x;
    let near = polynomial::<FMA, 5>(
        square,
        [-0.333_333_3, 0.133_329_15, -0.053_873_98, 0.021_111_097, -0.006_269_309],
    );
    let near = fma::<FMA>(x * square, near, x);
    let e = exp_one::<FMA>(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < 0.6 { near } else { far }
}

/// An activation with its derivative, which share their exponential; what is not used is not computed.
macro_rules! with_slope {
    ($($one:ident, $both:ident: $x:ident => $body:block)*) => {$(
        #[inline(always)]
        fn $both<const FMA: bool>($x: f32) -> (f32, f32) $body

        #[inline(always)]
        fn $one<const FMA: bool>(x: f32) -> f32 {
            $both::<FMA>(x).0
        }
    )*};
}

with_slope! {
    silu_one, silu_both: x => {
        let e = 1.0 + exp_one::<FMA>(-x);
        let s = 1.0 / e;
        (x / e, fma::<FMA>(x * s, 1.0 - s, s))
    }
    gelu_erf_one, gelu_erf_both: x => {
        let (tail, e) = normal_tail::<FMA>(x);
        let below = if x > 0.0 { 1.0 - tail } else { tail };
        // The density is e / √(2π).
        (x * below, fma::<FMA>(x * e, 0.398_942_3, below))
    }
    gelu_tanh_one, gelu_tanh_both: x => {
        // (1 + tanh u) / 2 is the logistic function of 2u; 2 √(2/π) = 1.5957692.
        let u = 1.595_769 * x * fma::<FMA>(0.044_715 * x, x, 1.0);
        let e = 1.0 + exp_one::<FMA>(-u);
        let s = 1.0 / e;
        // Far from zero, where s (1 - s) is 0, the derivative of u must not overflow.
        let near = if x > 30.0 { 30.0 } else { x };
        let near = if near < -30.0 { -30.0 } else { near };
        let slope = 1.595_769 * fma::<FMA>(3.0 * 0.044_715 * near, near, 1.0);
        (x / e, fma::<FMA>(near * s * (1.0 - s), slope, s))
    }
    quick_gelu_one, quick_gelu_both: x => {
        let e = 1.0 + exp_one::<FMA>(-1.702 * x);
        let s = 1.0 / e;
        (x / e, fma::<FMA>(1.702 * x * s, 1.0 - s, s))
    }
    relu_one, relu_both: x => {
        (if x < 0.0 { 0.0 } else { x }, if x <= 0.0 { 0.0 } else { 1.0 })
    }
    elu_one, elu_both: x => {
        let below = expm1_below_zero::<FMA>(x);
        (if x > 0.0 { x } else { below }, if x > 0.0 { 1.0 } else { exp_one::<FMA>(x) })
    }
    tanh_of, tanh_both: x => {
        let y = tanh_one::<FMA>(x);
        (y, fma::<FMA>(-y, y, 1.0))
    }
    sigmoid_of, sigmoid_both: x => {
        let y = sigmoid_one::<FMA>(x);
        (y, y * (1.0 - y))
    }
    shifted_softplus_one, shifted_softplus_both: x => {
        let e = exp_one::<FMA>(-x.abs());
        // ln(1 + e) is 2 artanh z with z = e / (2 + e), at most a third.
        let z = e / (2.0 + e);
        let odd = [1.0, 1.0 / 3.0, 0.2, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0];
        let far = fma::<FMA>(2.0 * z, polynomial::<FMA, 7>(z * z, odd), -std::f32::consts::LN_2);
        let s = 1.0 / (1.0 + e);
        (if x > 0.0 { x + far } else { far }, if x > 0.0 { s } else { e * s })
    }
    exp_of, exp_both: x => {
        let y = exp_one::<FMA>(x);
        (y, y)
    }
}

macro_rules! activations {
    ($($(#[$meta:meta])* $name:ident, $gated:ident, $back:ident, $gated_back:ident, $one:ident, $both:ident;)*) => {$(
        $(#[$meta])*
        pub fn $name(x: &mut [f32]) {
            versioned! {
                fn each(x: &mut [f32]) {
                    for v in x {
                        *v = $one::<FMA>(*v);
                    }
                }
            }
            for_each_piece(x, piece(x.len()), |_, x| each(x));
        }

        #[doc = concat!("Gated activation: `out = ", stringify!($name), "(gate) * up`, element-wise.")]
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
            versioned! {
                fn each(gate: &[f32], up: &[f32], out: &mut [f32]) {
                    for ((v, &g), &u) in out.iter_mut().zip(gate).zip(up) {
                        *v = $one::<FMA>(g) * u;
                    }
                }
            }
            zip_pieces(gate, up, out, each);
        }

        #[doc = concat!("Backward pass of [`", stringify!($name), "`]: `out` is `grad` times its derivative at `x`.")]
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $back(x: &[f32], grad: &[f32], out: &mut [f32]) {
            versioned! {
                fn each(x: &[f32], grad: &[f32], out: &mut [f32]) {
                    for ((v, &x), &g) in out.iter_mut().zip(x).zip(grad) {
                        *v = $both::<FMA>(x).1 * g;
                    }
                }
            }
            zip_pieces(x, grad, out, each);
        }

        #[doc = concat!("Backward pass of [`", stringify!($gated), "`]: the gradients with respect to `gate` and `up`,")]
        /// given that with respect to the output.
        ///
        /// # Panics
        /// If the lengths differ.
        pub fn $gated_back(gate: &[f32], up: &[f32], grad: &[f32], to_gate: &mut [f32], to_up: &mut [f32]) {
            versioned! {
                fn each(gate: &[f32], up: &[f32], grad: &[f32], to_gate: &mut [f32], to_up: &mut [f32]) {
                    for ((((to_gate, to_up), &gate), &up), &g) in
                        to_gate.iter_mut().zip(to_up).zip(gate).zip(up).zip(grad)
                    {
                        let (value, slope) = $both::<FMA>(gate);
                        *to_gate = g * up * slope;
                        *to_up = g * value;
                    }
                }
            }
            let n = to_gate.len();
            assert!([gate.len(), up.len(), grad.len(), to_up.len()] == [n; 4], "slices must have the same length");
            let (size, all) = (piece(n), Shared(to_up.as_mut_ptr()));
            for_each_piece(to_gate, size, |i, to_gate| {
                let range = i * size..i * size + to_gate.len();
                // SAFETY: both gradients have the same length, and the pieces do not overlap.
                let to_up = unsafe { std::slice::from_raw_parts_mut(all.get().add(range.start), range.len()) };
                each(&gate[range.clone()], &up[range.clone()], &grad[range], to_gate, to_up);
            });
        }
    )*};
}

activations! {
    /// The exact GELU, `x Φ(x)`.
    gelu_erf, gelu_erf_mul, gelu_erf_backward, gelu_erf_mul_backward, gelu_erf_one, gelu_erf_both;
    /// The tanh approximation of GELU, `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2` (`gelu_new`, as in GPT-2).
    gelu_tanh, gelu_tanh_mul, gelu_tanh_backward, gelu_tanh_mul_backward, gelu_tanh_one, gelu_tanh_both;
    /// QuickGELU, `x σ(1.702 x)` (as in CLIP).
    quick_gelu, quick_gelu_mul, quick_gelu_backward, quick_gelu_mul_backward, quick_gelu_one, quick_gelu_both;
    /// SiLU (swish), `x σ(x)`.
    silu, silu_mul, silu_backward_to, silu_mul_backward, silu_one, silu_both;
    /// ReLU, `max(x, 0)`.
    relu, relu_mul, relu_backward, relu_mul_backward, relu_one, relu_both;
    /// ELU with alpha 1: `x` above zero, `eˣ - 1` below.
    elu, elu_mul, elu_backward, elu_mul_backward, elu_one, elu_both;
    /// The hyperbolic tangent.
    tanh, tanh_mul, tanh_backward, tanh_mul_backward, tanh_of, tanh_both;
    /// The logistic sigmoid, `1 / (1 + e⁻ˣ)`.
    sigmoid, sigmoid_mul, sigmoid_backward, sigmoid_mul_backward, sigmoid_of, sigmoid_both;
    /// Shifted softplus, `ln(1 + eˣ) - ln 2` (as in SchNet).
    shifted_softplus, shifted_softplus_mul, shifted_softplus_backward, shifted_softplus_mul_backward, shifted_softplus_one, shifted_softplus_both;
    /// The exponential, `eˣ`.
    exp, exp_mul, exp_backward, exp_mul_backward, exp_of, exp_both;
}

/// Backward pass of [`silu`] in place: `grad *= silu'(x)`, element-wise.
///
/// # Panics
/// If the lengths differ.
pub fn silu_backward(x: &[f32], grad: &mut [f32]) {
    versioned! {
        fn each(x: &[f32], grad: &mut [f32]) {
            for (g, &x) in grad.iter_mut().zip(x) {
                *g *= silu_both::<FMA>(x).1;
            }
        }
    }
    assert_eq!(x.len(), grad.len(), "slices must have the same length");
    let size = piece(x.len());
    for_each_piece(grad, size, |i, grad| each(&x[i * size..][..grad.len()], grad));
}

/// Clamped SwiGLU of gpt-oss: `out = gate σ(alpha gate) (up + 1)`, with `gate` clamped to at most `limit` and `up` to
/// `-limit..=limit`.
///
/// `pairs`: `(…, 2)`, interleaved gate and up. `out`: `(…)`, overwritten.
///
/// # Panics
/// If `pairs` does not have twice the length of `out`.
pub fn clamped_swiglu(pairs: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    versioned! {
        fn each(pairs: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
            for (v, &[gate, up]) in out.iter_mut().zip(pairs.as_chunks::<2>().0) {
                // Comparisons let NaN propagate, as in the reference.
                let gate = if gate > limit { limit } else { gate };
                let up = if up > limit { limit } else { up };
                let up = if up < -limit { -limit } else { up };
                let gated = gate / (1.0 + exp_one::<FMA>(-alpha * gate));
                *v = fma::<FMA>(gated, up, gated);
            }
        }
    }
    assert_eq!(pairs.len(), 2 * out.len(), "pairs must have two elements per output");
    let size = piece(out.len());
    for_each_piece(out, size, |i, out| each(&pairs[2 * i * size..][..2 * out.len()], alpha, limit, out));
}

/// Backward pass of [`clamped_swiglu`]: `out` is the gradient with respect to the pairs, which is zero where a clamp
/// changed its number.
///
/// `pairs` and `out`: `(…, 2)`, interleaved gate and up. `grad`: `(…)`.
///
/// # Panics
/// If `pairs` and `out` do not have twice the length of `grad`.
pub fn clamped_swiglu_backward(pairs: &[f32], alpha: f32, limit: f32, grad: &[f32], out: &mut [f32]) {
    versioned! {
        fn each(pairs: &[f32], alpha: f32, limit: f32, grad: &[f32], out: &mut [f32]) {
            let pairs = pairs.as_chunks::<2>().0;
            for ((to, &[gate, up]), &g) in out.as_chunks_mut::<2>().0.iter_mut().zip(pairs).zip(grad) {
                let (gate_slope, up_slope) =
                    (if gate > limit { 0.0 } else { g }, if up > limit || up < -limit { 0.0 } else { g });
                let gate = if gate > limit { limit } else { gate };
                let up = if up > limit { limit } else { up };
                let up = if up < -limit { -limit } else { up };
                let s = 1.0 / (1.0 + exp_one::<FMA>(-alpha * gate));
                let slope = fma::<FMA>(alpha * gate * s, 1.0 - s, s);
                *to = [gate_slope * slope * (up + 1.0), up_slope * gate * s];
            }
        }
    }
    assert!(
        [pairs.len(), out.len()] == [2 * grad.len(); 2],
        "pairs and out must have two elements per output"
    );
    let size = piece(grad.len());
    for_each_piece(out, 2 * size, |i, out| {
        let range = i * size..i * size + out.len() / 2;
        each(&pairs[2 * range.start..2 * range.end], alpha, limit, &grad[range], out);
    });
}

/// Element-wise sum, `out = x + y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: &[f32], y: &[f32], out: &mut [f32]) {
    versioned! {
        fn each(x: &[f32], y: &[f32], out: &mut [f32]) {
            for ((v, &x), &y) in out.iter_mut().zip(x).zip(y) {
                *v = x + y;
            }
        }
    }
    zip_pieces(x, y, out, each);
}

/// Adds `row` to each row of `rows`, as long as it, in place.
///
/// # Panics
/// If `rows` is not a number of rows.
pub fn add_to_rows(row: &[f32], rows: &mut [f32]) {
    versioned! {
        fn each(row: &[f32], rows: &mut [f32]) {
            for to in rows.chunks_exact_mut(row.len()) {
                for (to, &x) in to.iter_mut().zip(row) {
                    *to += x;
                }
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    assert!(rows.len().is_multiple_of(row.len()), "expected whole rows");
    const PIECE: usize = 1 << 14;
    for_each_piece(rows, PIECE.div_ceil(row.len()) * row.len(), |_, rows| each(row, rows));
}

/// Adds `x` to `sum` in place.
///
/// # Panics
/// If the lengths differ.
pub fn add_to(x: &[f32], sum: &mut [f32]) {
    versioned! {
        fn each(x: &[f32], sum: &mut [f32]) {
            for (sum, &x) in sum.iter_mut().zip(x) {
                *sum += x;
            }
        }
    }
    assert_eq!(x.len(), sum.len(), "expected equal lengths");
    const PIECE: usize = 1 << 14;
    for_each_piece(sum, PIECE, |i, sum| each(&x[i * PIECE..][..sum.len()], sum));
}

/// Multiplies `x` by `factor` in place.
pub fn scale(x: &mut [f32], factor: f32) {
    versioned! {
        fn each(x: &mut [f32], factor: f32) {
            for v in x {
                *v *= factor;
            }
        }
    }
    for_each_piece(x, piece(x.len()), |_, x| each(x, factor));
}

fn zip_pieces(x: &[f32], y: &[f32], out: &mut [f32], each: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) {
    assert_eq!((x.len(), y.len()), (out.len(), out.len()), "slices must have the same length");
    let size = piece(out.len());
    for_each_piece(out, size, |i, out| {
        let range = i * size..i * size + out.len();
        each(&x[range.clone()], &y[range], out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static str, fn(&mut [f32]), fn(f64) -> f64);

    fn erf(x: f64) -> f64 {
        if x.abs() > 2.5 {
            // 1 - erf(x) as a continued fraction, from the far end.
            let a = x.abs();
            let tail = (1..200).rev().fold(a, |f, k| a + 0.5 * k as f64 / f);
            return x.signum() * (1.0 - (-a * a).exp() / (tail * std::f64::consts::PI.sqrt()));
        }
        // Σ (-1)^n x^(2n+1) / (n! (2n+1))
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    const CASES: [Case; 10] = [
        ("gelu_erf", gelu_erf, |x| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()))),
        ("gelu_tanh", gelu_tanh, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }),
        ("quick_gelu", quick_gelu, |x| x / (1.0 + (-1.702 * x).exp())),
        ("silu", silu, |x| x / (1.0 + (-x).exp())),
        ("relu", relu, |x| if x < 0.0 { 0.0 } else { x }),
        ("elu", elu, |x| if x > 0.0 { x } else { x.exp_m1() }),
        ("tanh", tanh, f64::tanh),
        ("sigmoid", sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
        ("shifted_softplus", shifted_softplus, |x| {
            x.max(0.0) + ((-x.abs()).exp().ln_1p() - std::f64::consts::LN_2)
        }),
        ("exp", exp, f64::exp),
    ];

    #[test]
    fn every_activation_follows_its_formula() {
        let xs: Vec<f32> = (-200_000..=200_000).map(|i| i as f32 * 1e-4).collect();
        for (name, f, truth) in CASES {
            let mut ys = xs.clone();
            f(&mut ys);
            for (&x, &y) in xs.iter().zip(&ys) {
                let t = truth(x as f64);
                assert!((y as f64 - t).abs() <= 1e-6 * t.abs().max(1.0), "{name}({x}) = {y}, truth {t}");
            }
        }
    }

    #[test]
    fn extreme_values_follow_the_formulas() {
        for (name, f, truth) in CASES {
            for x in [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 88.7, 90.0, -90.0, -103.0, -110.0] {
                let mut y = [x];
                f(&mut y);
                let t = truth(x as f64) as f32;
                let near = y[0] == t || (y[0] - t).abs() <= 1e-6 * t.abs() + 1e-37;
                // -inf times 0: the formula is undefined, its limit is 0.
                let limit = x == f32::NEG_INFINITY && (y[0].is_nan() || y[0] == 0.0);
                assert!(near || limit, "{name}({x}) = {}, truth {t}", y[0]);
            }
            let mut y = [f32::NAN, 1.0];
            f(&mut y);
            assert!(y[0].is_nan() && y[1].is_finite(), "{name}(NaN) = {}", y[0]);
        }
    }

    #[test]
    fn exp_keeps_relative_precision_down_to_subnormals() {
        let xs: Vec<f32> = (-8700..8800).map(|i| i as f32 * 0.01).collect();
        let mut ys = xs.clone();
        exp(&mut ys);
        for (&x, &y) in xs.iter().zip(&ys) {
            let t = (x as f64).exp();
            assert!((y as f64 / t - 1.0).abs() < 2.5e-7, "exp({x}) = {y}, truth {t}");
        }
    }

    #[test]
    fn elu_keeps_relative_precision_near_zero() {
        let xs: Vec<f32> = (1..=4000).map(|i| -(10f32.powf(i as f32 * 0.002 - 6.5))).collect();
        let mut ys = xs.clone();
        elu(&mut ys);
        for (&x, &y) in xs.iter().zip(&ys) {
            let t = (x as f64).exp_m1();
            assert!((y as f64 / t - 1.0).abs() < 3e-7, "elu({x}) = {y}, truth {t}");
        }
    }

    #[test]
    fn the_gradient_of_silu_follows_its_formula() {
        let xs: Vec<f32> = (-90_000..=90_000).map(|i| i as f32 * 1e-3).collect();
        let mut slopes: Vec<f32> = xs.iter().map(|x| 1.0 + x * 1e-3).collect();
        let before = slopes.clone();
        silu_backward(&xs, &mut slopes);
        for ((&x, &slope), &grad) in xs.iter().zip(&slopes).zip(&before) {
            let s = 1.0 / (1.0 + (-f64::from(x)).exp());
            let truth = f64::from(grad) * s * (1.0 + f64::from(x) * (1.0 - s));
            assert!((f64::from(slope) - truth).abs() <= 1e-6, "at {x}: {slope}, truth {truth}");
        }
    }

    type Back = fn(&[f32], &[f32], &mut [f32]);
    type GatedBack = fn(&[f32], &[f32], &[f32], &mut [f32], &mut [f32]);

    const BACKS: [(&str, Back, GatedBack); 10] = [
        ("gelu_erf", gelu_erf_backward, gelu_erf_mul_backward),
        ("gelu_tanh", gelu_tanh_backward, gelu_tanh_mul_backward),
        ("quick_gelu", quick_gelu_backward, quick_gelu_mul_backward),
        ("silu", silu_backward_to, silu_mul_backward),
        ("relu", relu_backward, relu_mul_backward),
        ("elu", elu_backward, elu_mul_backward),
        ("tanh", tanh_backward, tanh_mul_backward),
        ("sigmoid", sigmoid_backward, sigmoid_mul_backward),
        ("shifted_softplus", shifted_softplus_backward, shifted_softplus_mul_backward),
        ("exp", exp_backward, exp_mul_backward),
    ];

    #[test]
    fn every_gradient_is_the_difference_quotient_of_the_formula() {
        // No x is within a difference of the kinks at zero.
        let xs: Vec<f32> = (-50_000..50_000).map(|i| (i as f32 + 0.5) * 3e-4).collect();
        let grad: Vec<f32> = xs.iter().map(|x| 1.0 + x * 0.03).collect();
        let up: Vec<f32> = xs.iter().map(|x| (x * 7.0).sin()).collect();
        for ((name, _, truth), (same, back, gated)) in CASES.into_iter().zip(BACKS) {
            assert_eq!(name, same);
            let (mut out, mut to_gate, mut to_up) = (xs.clone(), xs.clone(), xs.clone());
            back(&xs, &grad, &mut out);
            gated(&xs, &up, &grad, &mut to_gate, &mut to_up);
            for i in 0..xs.len() {
                let (x, g, u) = (f64::from(xs[i]), f64::from(grad[i]), f64::from(up[i]));
                let slope = (truth(x + 1e-5) - truth(x - 1e-5)) / 2e-5 * g;
                let value = truth(x) * g;
                for (got, wanted) in [(out[i], slope), (to_gate[i], slope * u), (to_up[i], value)] {
                    let near = (f64::from(got) - wanted).abs() <= 2e-6 * wanted.abs().max(1.0);
                    assert!(near, "{name} at {x}: {got}, truth {wanted}");
                }
            }
        }
    }

    #[test]
    fn gradients_far_from_zero_are_those_of_the_limits() {
        for ((name, back, _), slopes) in BACKS.into_iter().zip([
            [0.0, 1.0],
            [0.0, 1.0],
            [0.0, 1.0],
            [0.0, 1.0],
            [0.0, 1.0],
            [0.0, 1.0],
            [0.0, 0.0],
            [0.0, 0.0],
            [0.0, 1.0],
            [0.0, f32::INFINITY],
        ]) {
            let mut got = [0.0; 4];
            back(&[-1e3, 1e3, -1e30, 1e30], &[1.0; 4], &mut got);
            assert_eq!(got, [slopes[0], slopes[1], slopes[0], slopes[1]], "{name}");
            let mut got = [0.0];
            back(&[f32::NAN], &[1.0], &mut got);
            assert!(got[0].is_nan() || name == "relu" || name == "elu", "{name}");
        }
        let mut at_zero = [5.0];
        relu_backward(&[0.0], &[1.0], &mut at_zero);
        assert_eq!(at_zero, [0.0]);
    }

    #[test]
    fn the_gradient_of_clamped_swiglu_is_the_difference_quotient_of_its_formula() {
        let n = 30_001;
        let (alpha, limit) = (1.702, 7.0);
        let pairs: Vec<f32> =
            (0..2 * n).map(|i| ((i * 7919 % 20_011) as f32 / 1000.0 - 10.0) * 0.999_7).collect();
        let grad: Vec<f32> = (0..n).map(|i| (i % 13) as f32 / 6.0 - 1.0).collect();
        let mut out = vec![f32::NAN; 2 * n];
        clamped_swiglu_backward(&pairs, alpha, limit, &grad, &mut out);
        let value = |gate: f64, up: f64| {
            let gate = gate.min(7.0);
            gate / (1.0 + (-f64::from(alpha) * gate).exp()) * (up.clamp(-7.0, 7.0) + 1.0)
        };
        for i in 0..n {
            let (gate, up, g) = (f64::from(pairs[2 * i]), f64::from(pairs[2 * i + 1]), f64::from(grad[i]));
            let by_gate = (value(gate + 1e-6, up) - value(gate - 1e-6, up)) / 2e-6 * g;
            let by_up = (value(gate, up + 1e-6) - value(gate, up - 1e-6)) / 2e-6 * g;
            for (got, wanted) in [(out[2 * i], by_gate), (out[2 * i + 1], by_up)] {
                assert!((f64::from(got) - wanted).abs() <= 2e-5, "at {gate}, {up}: {got}, truth {wanted}");
            }
        }
    }

    #[test]
    fn gated_activations_and_sums_are_element_wise() {
        for n in [0, 1, 7, 1000, 70_001] {
            let x: Vec<f32> = (0..n).map(|i| (i % 37) as f32 - 18.0).collect();
            let y: Vec<f32> = (0..n).map(|i| (i % 11) as f32).collect();
            let (mut sum, mut gated, mut plain) = (vec![0.0; n], vec![0.0; n], x.clone());
            add(&x, &y, &mut sum);
            silu_mul(&x, &y, &mut gated);
            silu(&mut plain);
            scale(&mut plain, 2.0);
            for i in 0..n {
                assert_eq!(sum[i], x[i] + y[i]);
                assert!((gated[i] - plain[i] * y[i] * 0.5).abs() <= 1e-6 * gated[i].abs());
            }
        }
    }
}
