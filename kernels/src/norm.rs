//! Normalization of rows: layer norm, RMS norm, group norm, L2 normalization and softmax, optionally fused with a
//! residual sum.
//!
//! A slice is `(rows, width)`; `width` is the length of the weight if there is one. Rows are divided among threads.
//!
//! ```
//! let mut x = [1.0, 2.0, 3.0, 3.0];
//! fauna_kernels::norm::softmax(&mut x, 2);
//! assert_eq!(x[2..], [0.5, 0.5]);
//! ```

use super::elementwise::exp_one;
use super::matmul::Finish;
use super::versions::{fma, for_each_piece, reduce, versioned};

/// Elements per task.
const PIECE: usize = 8 * 1024;

/// Layer norm of each row: `(x - mean) / √(variance + eps) * weight + bias`, with the biased variance.
///
/// `x` and `out`: `(rows, width)`. `weight` and `bias`: `(width)`.
///
/// # Panics
/// If `x` and `out` differ in length, or are not whole rows of the length of the weight.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f64, out: &mut [f32]) {
    rows(x, None, None, out, weight.len(), |row| layer_norm_row(row, weight, bias, eps));
}

/// RMS norm of each row: `x / √(mean(x²) + eps) * weight`.
///
/// `x` and `out`: `(rows, width)`. `weight`: `(width)`.
///
/// # Panics
/// If `x` and `out` differ in length, or are not whole rows of the length of the weight.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    rows(x, None, None, out, weight.len(), |row| rms_norm_row(row, weight, eps));
}

/// Backward pass of [`rms_norm`]: `out` is the gradient with respect to `x`, given the gradient `grad` with respect to
/// the output of the norm.
///
/// `x`, `grad` and `out`: `(rows, width)`. `weight`: `(width)`.
///
/// # Panics
/// If `x`, `grad` and `out` differ in length, or are not whole rows of the length of the weight.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f64, grad: &[f32], out: &mut [f32]) {
    versioned! {
        fn row(x: &[f32], weight: &[f32], eps: f64, grad: &[f32], out: &mut [f32]) {
            for ((v, &g), &w) in out.iter_mut().zip(grad).zip(weight) {
                *v = g * w;
            }
            let n = x.len() as f64;
            let mean = reduce(x, 0.0, |v| v * v, |a, b| a + b) as f64 / n;
            let along: f64 = out.iter().zip(x).map(|(&g, &x)| f64::from(g) * f64::from(x)).sum();
            let factor = 1.0 / (mean + eps).sqrt();
            let (factor, pull) = (factor as f32, (along * factor.powi(3) / n) as f32);
            for (v, &x) in out.iter_mut().zip(x) {
                *v = fma::<FMA>(*v, factor, -pull * x);
            }
        }
    }
    let width = weight.len();
    check(x.len(), width);
    assert_eq!((x.len(), grad.len()), (out.len(), out.len()), "x, grad and out must have the same length");
    let size = task(width);
    for_each_piece(out, size, |i, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            let range = i * size + r * width..i * size + (r + 1) * width;
            row(&x[range.clone()], weight, eps, &grad[range], out);
        }
    });
}

/// [`layer_norm`] of `x + residual`; the sum is stored in `sum` if given.
///
/// # Panics
/// If `x`, `residual`, `sum` and `out` differ in length, or are not whole rows of the length of the weight.
pub fn add_layer_norm(
    x: &[f32],
    residual: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f64,
    sum: Option<&mut [f32]>,
    out: &mut [f32],
) {
    rows(x, Some(residual), sum, out, weight.len(), |row| layer_norm_row(row, weight, bias, eps));
}

/// [`rms_norm`] of `x + residual`; the sum is stored in `sum` if given.
///
/// # Panics
/// If `x`, `residual`, `sum` and `out` differ in length, or are not whole rows of the length of the weight.
pub fn add_rms_norm(
    x: &[f32],
    residual: &[f32],
    weight: &[f32],
    eps: f64,
    sum: Option<&mut [f32]>,
    out: &mut [f32],
) {
    rows(x, Some(residual), sum, out, weight.len(), |row| rms_norm_row(row, weight, eps));
}

/// Group norm: `(x - mean) / √(variance + eps) * weight + bias`, with mean and (biased) variance over all frames and
/// the channels of a group. `finish` is called on pieces of the output, so it must be element-wise.
///
/// `x` and `out`: `(batch, time, channels)`. `weight` and `bias`: `(channels)`; `channels` is a multiple of `groups`.
///
/// # Panics
/// If the length of a slice does not match its shape.
#[allow(clippy::too_many_arguments)]
pub fn group_norm(
    x: &[f32],
    time: usize,
    groups: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    finish: Option<Finish>,
    out: &mut [f32],
) {
    versioned! {
        fn sum(x: &[f32], mean: f32, squared: bool) -> f32 {
            match squared {
                true => reduce(x, 0.0, |v| (v - mean) * (v - mean), |a, b| a + b),
                false => reduce(x, 0.0, |v| v, |a, b| a + b),
            }
        }
    }
    versioned! {
        fn sums(x: &[f32], mean: &[f32], squared: bool, sums: &mut [f32]) {
            for frame in x.chunks_exact(sums.len()) {
                match squared {
                    true => {
                        for ((sum, &v), &mean) in sums.iter_mut().zip(frame).zip(mean) {
                            *sum = fma::<FMA>(v - mean, v - mean, *sum);
                        }
                    }
                    false => sums.iter_mut().zip(frame).for_each(|(sum, v)| *sum += v),
                }
            }
        }
    }
    versioned! {
        fn frames(x: &[f32], scale: &[f32], shift: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(scale.len()).zip(out.chunks_exact_mut(scale.len())) {
                for (((v, &x), &scale), &shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                    *v = fma::<FMA>(x, scale, shift);
                }
            }
        }
    }
    let (channels, width) = (weight.len(), weight.len() / groups.max(1));
    check(x.len(), time * channels);
    assert_eq!(
        (x.len(), bias.len()),
        (out.len(), channels),
        "x and out must have the same length, and bias one element per channel"
    );
    assert!(groups > 0 && channels.is_multiple_of(groups), "channels must be a multiple of groups");
    if x.is_empty() {
        return;
    }
    let step = task(channels);
    for (x, out) in x.chunks_exact(time * channels).zip(out.chunks_exact_mut(time * channels)) {
        // Partial sums are added in float64 in a fixed order, so that the result does not depend on the threads.
        let total = |mean: &[f32], squared: bool| -> Vec<f64> {
            let mut parts = vec![0f64; x.len().div_ceil(step) * groups];
            for_each_piece(&mut parts, groups, |i, parts| {
                let piece = &x[i * step..x.len().min((i + 1) * step)];
                if groups == 1 {
                    return parts[0] = f64::from(sum(piece, mean[0], squared));
                }
                let mut of_channels = vec![0f32; channels];
                let mean: Vec<f32> = mean.iter().flat_map(|mean| std::iter::repeat_n(*mean, width)).collect();
                sums(piece, &mean, squared, &mut of_channels);
                for (part, group) in parts.iter_mut().zip(of_channels.chunks_exact(width)) {
                    *part = group.iter().map(|sum| f64::from(*sum)).sum();
                }
            });
            let total = |g: usize| parts.iter().skip(g).step_by(groups).sum::<f64>() / (time * width) as f64;
            (0..groups).map(total).collect()
        };
        let mean: Vec<f32> = total(&vec![0.0; groups], false).iter().map(|m| *m as f32).collect();
        let factor: Vec<f32> = total(&mean, true).iter().map(|v| (1.0 / (v + eps).sqrt()) as f32).collect();
        let scale: Vec<f32> = (0..channels).map(|c| weight[c] * factor[c / width]).collect();
        let shift: Vec<f32> = (0..channels).map(|c| bias[c] - mean[c / width] * scale[c]).collect();
        for_each_piece(out, step, |i, out| {
            frames(&x[i * step..][..out.len()], &scale, &shift, out);
            if let Some(finish) = finish {
                finish(out);
            }
        });
    }
}

/// L2 normalization: divides each row by its L2 norm, or by `eps` where that is larger.
///
/// # Panics
/// If `x` is not whole rows of `width`.
pub fn l2_normalize(x: &mut [f32], width: usize, eps: f64) {
    versioned! {
        fn row(row: &mut [f32], eps: f64) {
            let length = (reduce(row, 0.0, |v| v * v, |a, b| a + b) as f64).sqrt();
            let factor = (1.0 / if length < eps { eps } else { length }) as f32;
            for v in row {
                *v *= factor;
            }
        }
    }
    in_place(x, width, |x| row(x, eps));
}

/// Softmax of each row. A row of only `-inf` gives NaN, like the formula.
///
/// # Panics
/// If `x` is not whole rows of `width`.
pub fn softmax(x: &mut [f32], width: usize) {
    versioned! {
        fn row(row: &mut [f32]) {
            let max = reduce(row, f32::NEG_INFINITY, |v| v, |a, b| if b > a { b } else { a });
            for v in row.iter_mut() {
                *v = exp_one::<FMA>(*v - max);
            }
            let factor = 1.0 / reduce(row, 0.0, |v| v, |a, b| a + b);
            for v in row {
                *v *= factor;
            }
        }
    }
    in_place(x, width, row);
}

versioned! {
    fn layer_norm_row(row: &mut [f32], weight: &[f32], bias: Option<&[f32]>, eps: f64) {
        let n = row.len() as f64;
        let mean = (reduce(row, 0.0, |v| v, |a, b| a + b) as f64 / n) as f32;
        let variance = reduce(row, 0.0, |v| (v - mean) * (v - mean), |a, b| a + b) as f64 / n;
        let factor = (1.0 / (variance + eps).sqrt()) as f32;
        match bias {
            Some(bias) => {
                for ((v, &w), &b) in row.iter_mut().zip(weight).zip(bias) {
                    *v = fma::<FMA>((*v - mean) * factor, w, b);
                }
            }
            None => {
                for (v, &w) in row.iter_mut().zip(weight) {
                    *v = (*v - mean) * factor * w;
                }
            }
        }
    }
}

versioned! {
    fn rms_norm_row(row: &mut [f32], weight: &[f32], eps: f64) {
        let mean = reduce(row, 0.0, |v| v * v, |a, b| a + b) as f64 / row.len() as f64;
        let factor = (1.0 / (mean + eps).sqrt()) as f32;
        for (v, &w) in row.iter_mut().zip(weight) {
            *v = *v * factor * w;
        }
    }
}

versioned! {
    fn sum_row(x: &[f32], y: &[f32], out: &mut [f32]) {
        for ((v, &x), &y) in out.iter_mut().zip(x).zip(y) {
            *v = x + y;
        }
    }
}

/// Elements per task, in whole rows.
fn task(width: usize) -> usize {
    width * (PIECE / width.max(1)).max(1)
}

fn check(len: usize, width: usize) {
    assert!(
        width > 0 && len.is_multiple_of(width) || len == 0,
        "{len} elements are not whole rows of {width}"
    );
}

fn in_place(x: &mut [f32], width: usize, row: impl Fn(&mut [f32]) + Sync) {
    check(x.len(), width);
    for_each_piece(x, task(width), |_, x| x.chunks_exact_mut(width).for_each(&row));
}

/// Computes `out = row(x + residual)`, and stores the sum in `sum`.
fn rows(
    x: &[f32],
    residual: Option<&[f32]>,
    sum: Option<&mut [f32]>,
    out: &mut [f32],
    width: usize,
    row: impl Fn(&mut [f32]) + Sync,
) {
    check(x.len(), width);
    assert_eq!(x.len(), out.len(), "x and out must have the same length");
    assert!(residual.is_none_or(|r| r.len() == x.len()), "x and residual must have the same length");
    let load = |at: usize, to: &mut [f32]| {
        let range = at..at + to.len();
        match residual {
            Some(residual) => sum_row(&x[range.clone()], &residual[range], to),
            None => to.copy_from_slice(&x[range]),
        }
    };
    let size = task(width);
    if let Some(sum) = sum {
        assert_eq!(x.len(), sum.len(), "x and sum must have the same length");
        for_each_piece(sum, size, |i, sum| load(i * size, sum));
        let sum = &*sum;
        for_each_piece(out, size, |i, out| {
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                let at = i * size + r * width;
                out.copy_from_slice(&sum[at..at + width]);
                row(out);
            }
        });
    } else {
        for_each_piece(out, size, |i, out| {
            for (r, out) in out.chunks_exact_mut(width).enumerate() {
                load(i * size + r * width, out);
                row(out);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1 << 23) as f32 * 3.0 - 2.0
            })
            .collect()
    }

    fn assert_close(got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            assert!((g as f64 - w).abs() <= 2e-6 * w.abs().max(1.0), "element {i}: {g}, truth {w}");
        }
    }

    #[test]
    fn norms_follow_their_formulas_in_float64() {
        for (count, width) in [(1, 1), (3, 7), (5, 64), (33, 577), (700, 384)] {
            let x = noise(count * width, 1);
            let (weight, bias) = (noise(width, 2), noise(width, 3));
            let eps = 1e-5;
            let mut layer = vec![0.0; x.len()];
            let mut rms = layer.clone();
            layer_norm(&x, &weight, Some(&bias), eps, &mut layer);
            rms_norm(&x, &weight, eps, &mut rms);
            let (mut layer_truth, mut rms_truth) = (vec![], vec![]);
            for row in x.chunks(width) {
                let n = width as f64;
                let mean = row.iter().map(|&v| v as f64).sum::<f64>() / n;
                let variance = row.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n;
                let square = row.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / n;
                for i in 0..width {
                    let (v, w, b) = (row[i] as f64, weight[i] as f64, bias[i] as f64);
                    layer_truth.push((v - mean) / (variance + eps).sqrt() * w + b);
                    rms_truth.push(v / (square + eps).sqrt() * w);
                }
            }
            if width > 1 {
                assert_close(&layer, &layer_truth);
            }
            assert_close(&rms, &rms_truth);
        }
    }

    #[test]
    fn the_backward_pass_of_rms_norm_agrees_with_finite_differences() {
        let (count, width, eps) = (3, 37, 1e-5);
        let (x, weight, grad) = (noise(count * width, 1), noise(width, 2), noise(count * width, 3));
        let mut back = vec![0.0; x.len()];
        rms_norm_backward(&x, &weight, eps, &grad, &mut back);
        let value = |x: &[f64]| -> f64 {
            let rows = x.chunks(width).zip(grad.chunks(width));
            rows.map(|(row, grad)| {
                let root = (row.iter().map(|v| v * v).sum::<f64>() / width as f64 + eps).sqrt();
                let of = |((v, g), w): ((&f64, &f32), &f32)| v / root * f64::from(*g) * f64::from(*w);
                row.iter().zip(grad).zip(&weight).map(of).sum::<f64>()
            })
            .sum()
        };
        for i in 0..x.len() {
            let moved = |by: f64| {
                let mut x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                x[i] += by;
                value(&x)
            };
            let truth = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((f64::from(back[i]) - truth).abs() < 1e-5, "element {i}: {}, truth {truth}", back[i]);
        }
    }

    #[test]
    fn group_norm_follows_its_formula_in_float64() {
        for (batch, time, channels, groups) in
            [(1, 1, 4, 2), (2, 7, 6, 3), (2, 700, 33, 1), (1, 5, 8, 8), (3, 9001, 2, 1)]
        {
            let x = noise(batch * time * channels, 1);
            let (weight, bias) = (noise(channels, 2), noise(channels, 3));
            let mut out = vec![0.0; x.len()];
            group_norm(&x, time, groups, &weight, &bias, 1e-5, None, &mut out);
            let width = channels / groups;
            let mut wanted = vec![0.0; x.len()];
            for b in 0..batch {
                for g in 0..groups {
                    let at = |i: usize| b * time * channels + i / width * channels + g * width + i % width;
                    let n = (time * width) as f64;
                    let mean = (0..time * width).map(|i| x[at(i)] as f64).sum::<f64>() / n;
                    let variance =
                        (0..time * width).map(|i| (x[at(i)] as f64 - mean).powi(2)).sum::<f64>() / n;
                    for i in 0..time * width {
                        let c = at(i) % channels;
                        let normed = (x[at(i)] as f64 - mean) / (variance + 1e-5).sqrt();
                        wanted[at(i)] = normed * weight[c] as f64 + bias[c] as f64;
                    }
                }
            }
            assert_close(&out, &wanted);
        }
    }

    #[test]
    fn a_fused_residual_sum_equals_the_sum_then_the_norm() {
        let (count, width) = (31, 577);
        let (x, r, w, b) =
            (noise(count * width, 1), noise(count * width, 2), noise(width, 3), noise(width, 4));
        let total: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
        let (mut want, mut got, mut sum) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
        layer_norm(&total, &w, Some(&b), 1e-5, &mut want);
        add_layer_norm(&x, &r, &w, Some(&b), 1e-5, Some(&mut sum), &mut got);
        assert_eq!((&sum, &got), (&total, &want));
        rms_norm(&total, &w, 1e-5, &mut want);
        add_rms_norm(&x, &r, &w, 1e-5, None, &mut got);
        assert_eq!(got, want);
    }

    #[test]
    fn softmax_sums_to_one_and_masks_to_zero() {
        let (count, width) = (40, 131);
        let mut x = noise(count * width, 5);
        for row in x.chunks_mut(width) {
            row[3] = f32::NEG_INFINITY;
            row[4] += 1000.0;
        }
        softmax(&mut x, width);
        for row in x.chunks(width) {
            assert_eq!(row[3], 0.0);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
        let mut x = noise(width, 6);
        let top = x.iter().fold(f64::MIN, |a, &b| a.max(b as f64));
        let sum: f64 = x.iter().map(|&v| (v as f64 - top).exp()).sum();
        let want: Vec<f64> = x.iter().map(|&v| (v as f64 - top).exp() / sum).collect();
        softmax(&mut x, width);
        assert_close(&x, &want);
    }

    #[test]
    fn l2_normalized_rows_have_norm_one_and_zero_stays_zero() {
        let mut x = noise(3 * 50, 7);
        x[50..100].fill(0.0);
        l2_normalize(&mut x, 50, 1e-12);
        let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length(&x[..50]) - 1.0).abs() < 1e-6);
        assert!(x[50..100].iter().all(|&v| v == 0.0));
    }
}
