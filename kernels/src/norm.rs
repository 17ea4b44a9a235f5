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
use super::versions::{Shared, fma, for_each_piece, reduce, versioned};

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
    rms_norm_backward_weight(x, weight, eps, grad, out, None);
}

/// [`rms_norm_backward`] with the gradient with respect to the weight, `(width)`, if it is wanted.
///
/// # Panics
/// As [`rms_norm_backward`], or if `weight` and `to_weight` differ in length.
pub fn rms_norm_backward_weight(
    x: &[f32],
    weight: &[f32],
    eps: f64,
    grad: &[f32],
    to_x: &mut [f32],
    to_weight: Option<&mut [f32]>,
) {
    versioned! {
        fn row(x: &[f32], weight: &[f32], eps: f64, grad: &[f32], to_x: &mut [f32], to_weight: &mut [f32]) {
            let n = x.len() as f64;
            let [square, along] = reduce3([x, grad, weight], |[x, g, w], [square, along]| {
                [fma::<FMA>(x, x, square), fma::<FMA>(g * w, x, along)]
            });
            let factor = 1.0 / (f64::from(square) / n + eps).sqrt();
            let (pull, factor) = ((f64::from(along) * factor.powi(3) / n) as f32, factor as f32);
            for (((v, &x), &g), &w) in to_x.iter_mut().zip(x).zip(grad).zip(weight) {
                *v = fma::<FMA>(g * w, factor, -pull * x);
            }
            for ((v, &x), &g) in to_weight.iter_mut().zip(x).zip(grad) {
                *v = fma::<FMA>(g, x * factor, *v);
            }
        }
    }
    rows_backward([x, grad], weight.len(), to_x, [to_weight, None], |[x, grad], to_x, [to_weight, _]| {
        row(x, weight, eps, grad, to_x, to_weight);
    });
}

/// Backward pass of [`layer_norm`]: the gradients with respect to `x`, and those with respect to the weight and the
/// bias that are wanted, given the gradient `grad` with respect to the output of the norm.
///
/// `x`, `grad` and `to_x`: `(rows, width)`. `weight`, `to_weight` and `to_bias`: `(width)`. All gradients are
/// overwritten.
///
/// # Panics
/// If `x`, `grad` and `to_x` differ in length, or are not whole rows of the length of the weight, or if `to_weight` or
/// `to_bias` has another length.
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f64,
    grad: &[f32],
    to_x: &mut [f32],
    to_weight: Option<&mut [f32]>,
    to_bias: Option<&mut [f32]>,
) {
    versioned! {
        fn row(
            x: &[f32], weight: &[f32], eps: f64, grad: &[f32], to_x: &mut [f32], to_weight: &mut [f32],
            to_bias: &mut [f32],
        ) {
            let n = x.len() as f64;
            let mean = (reduce(x, 0.0, |v| v, |a, b| a + b) as f64 / n) as f32;
            let [square, sum, along] = reduce3([x, grad, weight], |[x, g, w], [square, sum, along]| {
                let (x, g) = (x - mean, g * w);
                [fma::<FMA>(x, x, square), sum + g, fma::<FMA>(g, x, along)]
            });
            let factor = 1.0 / (f64::from(square) / n + eps).sqrt();
            let pull = (f64::from(along) * factor.powi(3) / n) as f32;
            let (shift, factor) = ((f64::from(sum) * factor / n) as f32, factor as f32);
            for (((v, &x), &g), &w) in to_x.iter_mut().zip(x).zip(grad).zip(weight) {
                *v = fma::<FMA>(g * w, factor, fma::<FMA>(-pull, x - mean, -shift));
            }
            for ((v, &x), &g) in to_weight.iter_mut().zip(x).zip(grad) {
                *v = fma::<FMA>(g, (x - mean) * factor, *v);
            }
            for (v, &g) in to_bias.iter_mut().zip(grad) {
                *v += g;
            }
        }
    }
    rows_backward(
        [x, grad],
        weight.len(),
        to_x,
        [to_weight, to_bias],
        |[x, grad], to_x, [to_weight, to_bias]| {
            row(x, weight, eps, grad, to_x, to_weight, to_bias);
        },
    );
}

/// Sums over the rows of `x`, `(rows, width)`: the gradient of a bias that is added to every row.
///
/// `out`: `(width)`, overwritten.
///
/// # Panics
/// If `x` is not whole rows of the length of `out`.
pub fn sum_rows(x: &[f32], out: &mut [f32]) {
    versioned! {
        fn add(x: &[f32], sums: &mut [f32]) {
            for row in x.chunks_exact(sums.len()) {
                for (sum, &v) in sums.iter_mut().zip(row) {
                    *sum += v;
                }
            }
        }
    }
    let width = out.len();
    check(x.len(), width);
    let step = rows_of_part(x.len() / width.max(1), width) * width;
    let mut parts = vec![0f32; x.len().div_ceil(step.max(1)) * width];
    for_each_piece(&mut parts, width, |i, part| add(&x[i * step..x.len().min((i + 1) * step)], part));
    add_parts(&parts, width, 0, out);
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
        let (mean, factor) = group_statistics(x, channels, groups, eps);
        let scale: Vec<f32> = (0..channels).map(|c| weight[c] * factor[c / width] as f32).collect();
        let shift: Vec<f32> = (0..channels).map(|c| bias[c] - mean[c / width] * scale[c]).collect();
        for_each_piece(out, step, |i, out| {
            frames(&x[i * step..][..out.len()], &scale, &shift, out);
            if let Some(finish) = finish {
                finish(out);
            }
        });
    }
}

/// Backward pass of [`group_norm`] without `finish`: the gradients with respect to `x`, and those with respect to the
/// weight and the bias that are wanted, given the gradient `grad` with respect to the output of the norm.
///
/// `x`, `grad` and `to_x`: `(batch, time, channels)`. `weight`, `to_weight` and `to_bias`: `(channels)`. All gradients
/// are overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
#[allow(clippy::too_many_arguments)]
pub fn group_norm_backward(
    x: &[f32],
    time: usize,
    groups: usize,
    weight: &[f32],
    eps: f64,
    grad: &[f32],
    to_x: &mut [f32],
    to_weight: Option<&mut [f32]>,
    to_bias: Option<&mut [f32]>,
) {
    versioned! {
        fn sums(x: &[f32], grad: &[f32], mean: &[f32], sum: &mut [f32], along: &mut [f32]) {
            let width = sum.len();
            for (x, grad) in x.chunks_exact(width).zip(grad.chunks_exact(width)) {
                for ((((sum, along), &x), &g), &mean) in sum.iter_mut().zip(along.iter_mut()).zip(x).zip(grad).zip(mean) {
                    *sum += g;
                    *along = fma::<FMA>(g, x - mean, *along);
                }
            }
        }
    }
    versioned! {
        fn frames(x: &[f32], grad: &[f32], scale: &[f32], pull: &[f32], shift: &[f32], to_x: &mut [f32]) {
            let width = scale.len();
            let rows = to_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width));
            for ((to_x, x), grad) in rows {
                for (((((v, &x), &g), &scale), &pull), &shift) in
                    to_x.iter_mut().zip(x).zip(grad).zip(scale).zip(pull).zip(shift)
                {
                    *v = fma::<FMA>(g, scale, fma::<FMA>(x, pull, shift));
                }
            }
        }
    }
    let (channels, width) = (weight.len(), weight.len() / groups.max(1));
    check(x.len(), time * channels);
    assert_eq!((x.len(), grad.len()), (to_x.len(), to_x.len()), "x, grad and to_x must have the same length");
    assert!(groups > 0 && channels.is_multiple_of(groups), "channels must be a multiple of groups");
    let (mut to_weights, mut to_biases) = (vec![0f64; channels], vec![0f64; channels]);
    let (item, step) = ((time * channels).max(1), task(channels));
    let items = x.chunks_exact(item).zip(grad.chunks_exact(item)).zip(to_x.chunks_exact_mut(item));
    for ((x, grad), to_x) in items {
        let (mean, factor) = group_statistics(x, channels, groups, eps);
        let means: Vec<f32> = mean.iter().flat_map(|mean| std::iter::repeat_n(*mean, width)).collect();
        // Of each piece and channel, the sum of the gradient, then that of its products with x - mean.
        let mut parts = vec![0f32; x.len().div_ceil(step) * 2 * channels];
        for_each_piece(&mut parts, 2 * channels, |i, parts| {
            let range = i * step..x.len().min((i + 1) * step);
            let (sum, along) = parts.split_at_mut(channels);
            sums(&x[range.clone()], &grad[range], &means, sum, along);
        });
        let total =
            |at: usize| parts.iter().skip(at).step_by(2 * channels).map(|v| f64::from(*v)).sum::<f64>();
        let (mut pull, mut shift) = (vec![0f32; channels], vec![0f32; channels]);
        for g in 0..groups {
            let n = (time * width) as f64;
            let (mut sum, mut along) = (0.0, 0.0);
            for c in g * width..(g + 1) * width {
                let (of_grad, of_product) = (total(c), total(channels + c));
                to_biases[c] += of_grad;
                to_weights[c] += of_product * factor[g];
                sum += of_grad * f64::from(weight[c]);
                along += of_product * f64::from(weight[c]);
            }
            let by_x = -along * factor[g].powi(3) / n;
            pull[g * width..(g + 1) * width].fill(by_x as f32);
            let constant = -sum * factor[g] / n - by_x * f64::from(mean[g]);
            shift[g * width..(g + 1) * width].fill(constant as f32);
        }
        let scale: Vec<f32> = (0..channels).map(|c| weight[c] * factor[c / width] as f32).collect();
        for_each_piece(to_x, step, |i, to_x| {
            let range = i * step..i * step + to_x.len();
            frames(&x[range.clone()], &grad[range], &scale, &pull, &shift, to_x);
        });
    }
    for (out, totals) in [(to_weight, to_weights), (to_bias, to_biases)] {
        if let Some(out) = out {
            assert_eq!(out.len(), channels, "the gradients of weight and bias have one element per channel");
            out.iter_mut().zip(totals).for_each(|(out, total)| *out = total as f32);
        }
    }
}

/// The mean of each group of channels of `x`, `(time, channels)`, and one over its standard deviation.
///
/// Partial sums are added in float64 in a fixed order, so that the result does not depend on the threads.
fn group_statistics(x: &[f32], channels: usize, groups: usize, eps: f64) -> (Vec<f32>, Vec<f64>) {
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
    let (width, step) = (channels / groups, task(channels));
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
        let count = (x.len() / groups) as f64;
        (0..groups).map(|g| parts.iter().skip(g).step_by(groups).sum::<f64>() / count).collect()
    };
    let mean: Vec<f32> = total(&vec![0.0; groups], false).iter().map(|m| *m as f32).collect();
    let factor = total(&mean, true).iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
    (mean, factor)
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

/// Backward pass of [`l2_normalize`]: `grad`, the gradient with respect to its output, becomes that with respect to
/// `x`, the rows before they were normalized.
///
/// # Panics
/// If `x` and `grad` differ in length, or are not whole rows of `width`.
pub fn l2_normalize_backward(x: &[f32], width: usize, eps: f64, grad: &mut [f32]) {
    versioned! {
        fn row(x: &[f32], grad: &mut [f32], eps: f64) {
            let [square, along] = reduce2([x, grad], |[x, g], [square, along]| {
                [fma::<FMA>(x, x, square), fma::<FMA>(g, x, along)]
            });
            let length = f64::from(square).sqrt();
            // Where eps divides instead of the norm, the norm has no part in the gradient.
            let pull = if length < eps { 0.0 } else { (f64::from(along) / length.powi(3)) as f32 };
            let factor = (1.0 / if length < eps { eps } else { length }) as f32;
            for (g, &x) in grad.iter_mut().zip(x) {
                *g = fma::<FMA>(*g, factor, -pull * x);
            }
        }
    }
    with_rows(x, grad, width, |x, grad| row(x, grad, eps));
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

/// Backward pass of [`softmax`]: `grad`, the gradient with respect to the probabilities `y` that it gave, becomes that
/// with respect to its input, `y (grad - Σ y grad)`.
///
/// # Panics
/// If `y` and `grad` differ in length, or are not whole rows of `width`.
pub fn softmax_backward(y: &[f32], width: usize, grad: &mut [f32]) {
    versioned! {
        fn row(y: &[f32], grad: &mut [f32]) {
            let [along] = reduce2([y, grad], |[y, g], [along]| [fma::<FMA>(y, g, along)]);
            for (g, &y) in grad.iter_mut().zip(y) {
                *g = y * (*g - along);
            }
        }
    }
    with_rows(y, grad, width, row);
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

/// Number of partial results of the reductions of several slices to several numbers.
const LANES: usize = 32;

/// Reduces `f` of every element of the slices, with the sums so far, to `N` sums.
#[inline(always)]
fn reduce3<const N: usize>(x: [&[f32]; 3], f: impl Fn([f32; 3], [f32; N]) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0f32; LANES]; N];
    let (blocks, rests) = (x.map(|x| x.as_chunks::<LANES>().0), x.map(|x| x.as_chunks::<LANES>().1));
    let step = |lanes: &mut [[f32; LANES]; N], i: usize, x: [f32; 3]| {
        let mut sums = [0f32; N];
        for n in 0..N {
            sums[n] = lanes[n][i];
        }
        sums = f(x, sums);
        for n in 0..N {
            lanes[n][i] = sums[n];
        }
    };
    for ((a, b), c) in blocks[0].iter().zip(blocks[1]).zip(blocks[2]) {
        for i in 0..LANES {
            step(&mut lanes, i, [a[i], b[i], c[i]]);
        }
    }
    for (i, ((&a, &b), &c)) in rests[0].iter().zip(rests[1]).zip(rests[2]).enumerate() {
        step(&mut lanes, i, [a, b, c]);
    }
    lanes.map(|mut lanes| {
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    })
}

/// [`reduce3`] of two slices.
#[inline(always)]
fn reduce2<const N: usize>([x, y]: [&[f32]; 2], f: impl Fn([f32; 2], [f32; N]) -> [f32; N]) -> [f32; N] {
    reduce3([x, y, y], |[x, y, _], sums| f([x, y], sums))
}

/// Maximum number of partial sums over rows.
const PARTS: usize = 32;

/// Rows whose sum is one partial sum; it depends only on the shape, so that results do not depend on the threads.
fn rows_of_part(rows: usize, width: usize) -> usize {
    (task(width) / width.max(1)).max(rows.div_ceil(PARTS)).max(1)
}

/// Calls `row` for each row of the inputs and of `to_x`, with sums over rows to which it adds: a pair of `width` if
/// wanted, else empty.
fn rows_backward(
    x: [&[f32]; 2],
    width: usize,
    to_x: &mut [f32],
    sums: [Option<&mut [f32]>; 2],
    row: impl Fn([&[f32]; 2], &mut [f32], [&mut [f32]; 2]) + Sync,
) {
    check(to_x.len(), width);
    assert!(x.iter().all(|x| x.len() == to_x.len()), "x, grad and to_x must have the same length");
    let wanted = |sum: &Option<&mut [f32]>| sum.as_ref().map_or(0, |sum| sum.len());
    let (first, both) = (wanted(&sums[0]), wanted(&sums[0]) + wanted(&sums[1]));
    assert!(
        sums.iter().all(|s| [0, width].contains(&wanted(s))),
        "to_weight and to_bias are rows of the weight"
    );
    let size = rows_of_part(to_x.len() / width.max(1), width) * width;
    let mut parts = vec![0f32; to_x.len().div_ceil(size.max(1)) * both];
    let all = Shared(parts.as_mut_ptr());
    for_each_piece(to_x, size, |i, to_x| {
        // SAFETY: there is a part per piece, and this is the piece's own.
        let part = unsafe { std::slice::from_raw_parts_mut(all.get().add(i * both), both) };
        let (weight, bias) = part.split_at_mut(first);
        for (r, to_x) in to_x.chunks_exact_mut(width).enumerate() {
            let range = i * size + r * width..i * size + (r + 1) * width;
            row(x.map(|x| &x[range.clone()]), to_x, [weight, bias]);
        }
    });
    for (sum, at) in sums.into_iter().zip([0, first]) {
        if let Some(sum) = sum {
            add_parts(&parts, both, at, sum);
        }
    }
}

/// Adds the partial sums, `(parts, width)`, of the columns from `at` on, in float64 and in order.
fn add_parts(parts: &[f32], width: usize, at: usize, out: &mut [f32]) {
    versioned! {
        fn add(parts: &[f32], width: usize, at: usize, out: &mut [f32]) {
            for (block, out) in out.chunks_mut(LANES).enumerate() {
                let mut sums = [0f64; LANES];
                for part in parts.chunks_exact(width) {
                    let part = &part[at + block * LANES..][..out.len()];
                    for (sum, &v) in sums.iter_mut().zip(part) {
                        *sum += f64::from(v);
                    }
                }
                for (out, &sum) in out.iter_mut().zip(&sums) {
                    *out = sum as f32;
                }
            }
        }
    }
    if parts.is_empty() {
        return out.fill(0.0);
    }
    for_each_piece(out, 8 * LANES, |i, out| add(parts, width, at + i * 8 * LANES, out));
}

/// Calls `row` for each row of `x` and of `out`.
fn with_rows(x: &[f32], out: &mut [f32], width: usize, row: impl Fn(&[f32], &mut [f32]) + Sync) {
    check(out.len(), width);
    assert_eq!(x.len(), out.len(), "the slices must have the same length");
    let size = task(width);
    for_each_piece(out, size, |i, out| {
        for (r, out) in out.chunks_exact_mut(width).enumerate() {
            row(&x[i * size + r * width..][..width], out);
        }
    });
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

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|v| f64::from(*v)).collect()
    }

    /// The gradient of `value` at `x` from central differences in float64.
    fn differences(x: &[f32], value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let mut x = wide(x);
        (0..x.len())
            .map(|i| {
                let old = x[i];
                x[i] = old + 1e-5;
                let above = value(&x);
                x[i] = old - 1e-5;
                let below = value(&x);
                x[i] = old;
                (above - below) / 2e-5
            })
            .collect()
    }

    fn assert_gradient(name: &str, got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        let size = want.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(g) - w).abs() <= 5e-6 * size, "{name} {i}: {g}, truth {w}");
        }
    }

    /// The product of `grad` and a norm of `x` in float64, whose mean is subtracted if `centred`.
    fn norm_value(x: &[f64], weight: &[f64], bias: &[f64], grad: &[f32], eps: f64, centred: bool) -> f64 {
        let width = weight.len();
        let mut sum = 0.0;
        for (x, grad) in x.chunks(width).zip(grad.chunks(width)) {
            let n = width as f64;
            let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
            let root = (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n + eps).sqrt();
            for i in 0..width {
                sum += f64::from(grad[i]) * ((x[i] - mean) / root * weight[i] + bias[i]);
            }
        }
        sum
    }

    #[test]
    fn the_backward_passes_of_layer_norm_and_rms_norm_agree_with_finite_differences() {
        for (count, width, eps) in [(1, 5, 1e-5), (3, 37, 1e-5), (2, 64, 0.3), (30, 300, 1e-6)] {
            let (x, w, b) = (noise(count * width, 1), noise(width, 2), noise(width, 3));
            let grad = noise(count * width, 4);
            let (wide_x, wide_w, wide_b) = (wide(&x), wide(&w), wide(&b));
            for centred in [false, true] {
                let by_x = differences(&x, |x| norm_value(x, &wide_w, &wide_b, &grad, eps, centred));
                let by_weight = differences(&w, |w| norm_value(&wide_x, w, &wide_b, &grad, eps, centred));
                let by_bias = differences(&b, |b| norm_value(&wide_x, &wide_w, b, &grad, eps, centred));
                let nan = |n: usize| vec![f32::NAN; n];
                let (mut to_x, mut to_weight, mut to_bias) = (nan(x.len()), nan(width), nan(width));
                let (mut alone, mut bias_alone) = (nan(x.len()), nan(width));
                if centred {
                    let (w_out, b_out) = (Some(&mut to_weight[..]), Some(&mut to_bias[..]));
                    layer_norm_backward(&x, &w, eps, &grad, &mut to_x, w_out, b_out);
                    layer_norm_backward(&x, &w, eps, &grad, &mut alone, None, Some(&mut bias_alone));
                    assert_gradient("bias", &to_bias, &by_bias);
                    assert_eq!(bias_alone, to_bias);
                    sum_rows(&grad, &mut to_bias);
                    assert_gradient("sum of rows", &to_bias, &by_bias);
                } else {
                    rms_norm_backward_weight(&x, &w, eps, &grad, &mut to_x, Some(&mut to_weight));
                    rms_norm_backward(&x, &w, eps, &grad, &mut alone);
                }
                assert_gradient("x", &to_x, &by_x);
                assert_gradient("weight", &to_weight, &by_weight);
                assert_eq!(alone, to_x);
            }
        }
    }

    #[test]
    fn gradients_of_norms_do_not_depend_on_the_threads() {
        let (count, width) = (500, 96);
        let (x, w, grad) = (noise(count * width, 1), noise(width, 2), noise(count * width, 3));
        let run = |threads: usize| {
            crate::pool::Pool::new(threads).install(|| {
                let (mut to_x, mut to_w, mut to_b) = (vec![0.0; x.len()], vec![0.0; width], vec![0.0; width]);
                layer_norm_backward(&x, &w, 1e-5, &grad, &mut to_x, Some(&mut to_w), Some(&mut to_b));
                let (mut group, mut group_w) = (to_x.clone(), to_w.clone());
                let out = Some(&mut group_w[..]);
                group_norm_backward(&x, count, 8, &w, 1e-5, &grad, &mut group, out, None);
                (to_x, to_w, to_b, group, group_w)
            })
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn rows_of_no_elements_have_gradients_of_zero() {
        let (mut to_weight, mut to_bias) = ([f32::NAN; 3], [f32::NAN; 3]);
        layer_norm_backward(&[], &[1.0; 3], 1e-5, &[], &mut [], Some(&mut to_weight), Some(&mut to_bias));
        assert_eq!((to_weight, to_bias), ([0.0; 3], [0.0; 3]));
        group_norm_backward(&[], 4, 3, &[1.0; 3], 1e-5, &[], &mut [], Some(&mut to_weight), None);
        assert_eq!(to_weight, [0.0; 3]);
    }

    #[test]
    fn the_backward_pass_of_group_norm_agrees_with_finite_differences() {
        for (batch, time, channels, groups) in
            [(1, 1, 4, 2), (2, 7, 6, 3), (2, 5, 5, 1), (1, 5, 8, 8), (1, 2000, 3, 1)]
        {
            let (item, width, eps) = (time * channels, channels / groups, 1e-4);
            let (x, grad) = (noise(batch * item, 1), noise(batch * item, 2));
            let (w, b) = (noise(channels, 3), noise(channels, 4));
            let value = |x: &[f64], w: &[f64], b: &[f64]| {
                let mut sum = 0.0;
                for (at, g) in (0..batch).flat_map(|at| (0..groups).map(move |g| (at, g))) {
                    let place = |i: usize| at * item + i / width * channels + g * width + i % width;
                    let n = (time * width) as f64;
                    let mean = (0..time * width).map(|i| x[place(i)]).sum::<f64>() / n;
                    let square = (0..time * width).map(|i| (x[place(i)] - mean).powi(2)).sum::<f64>() / n;
                    for i in 0..time * width {
                        let c = g * width + i % width;
                        let normed = (x[place(i)] - mean) / (square + eps).sqrt();
                        sum += f64::from(grad[place(i)]) * (normed * w[c] + b[c]);
                    }
                }
                sum
            };
            let (wide_x, wide_w, wide_b) = (wide(&x), wide(&w), wide(&b));
            let (mut to_x, mut to_w, mut to_b) =
                (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
            let wanted = (Some(&mut to_w[..]), Some(&mut to_b[..]));
            group_norm_backward(&x, time, groups, &w, eps, &grad, &mut to_x, wanted.0, wanted.1);
            assert_gradient("x", &to_x, &differences(&x, |x| value(x, &wide_w, &wide_b)));
            assert_gradient("weight", &to_w, &differences(&w, |w| value(&wide_x, w, &wide_b)));
            assert_gradient("bias", &to_b, &differences(&b, |b| value(&wide_x, &wide_w, b)));
        }
    }

    #[test]
    fn the_backward_passes_of_softmax_and_l2_norm_agree_with_finite_differences() {
        for (count, width) in [(1, 1), (3, 7), (2, 64), (4, 131)] {
            let (x, grad) = (noise(count * width, 1), noise(count * width, 2));
            let (mut y, mut got) = (x.clone(), grad.clone());
            softmax(&mut y, width);
            softmax_backward(&y, width, &mut got);
            let value = |x: &[f64]| {
                let mut sum = 0.0;
                for (x, grad) in x.chunks(width).zip(grad.chunks(width)) {
                    let total: f64 = x.iter().map(|v| v.exp()).sum();
                    sum += x.iter().zip(grad).map(|(x, g)| f64::from(*g) * x.exp() / total).sum::<f64>();
                }
                sum
            };
            assert_gradient("softmax", &got, &differences(&x, value));
            for eps in [1e-12, 1e3] {
                let mut got = grad.clone();
                l2_normalize_backward(&x, width, eps, &mut got);
                let value = |x: &[f64]| {
                    let mut sum = 0.0;
                    for (x, grad) in x.chunks(width).zip(grad.chunks(width)) {
                        let length = x.iter().map(|v| v * v).sum::<f64>().sqrt().max(eps);
                        sum += x.iter().zip(grad).map(|(x, g)| f64::from(*g) * x / length).sum::<f64>();
                    }
                    sum
                };
                assert_gradient("l2", &got, &differences(&x, value));
            }
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
