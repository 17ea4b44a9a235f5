//! One-dimensional convolutions as matrix products.
//!
//! The layout is channels-last, `(time, channels)`, so the frames under a kernel are one contiguous row, and the next
//! row begins `stride` frames later: a convolution is a linear layer over overlapping rows. Nothing is copied unless
//! the dilation is greater than 1.

use super::cpu::{Isa, isa};
use super::matmul::{Dense, linear_over_on};
use super::norm::sum_rows;
use super::outer::{Rows, products};
use super::versions::for_each_piece;

/// Kernel size, stride and dilation of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taps {
    /// Kernel size.
    pub kernel: usize,
    /// Stride, in frames.
    pub stride: usize,
    /// Dilation, in frames.
    pub dilation: usize,
}

impl Taps {
    /// Number of frames that the dilated kernel covers.
    fn span(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }
}

/// Number of floats gathered at a time if the kernel is dilated: as many as stay in cache.
const GATHERED: usize = 1 << 18;

/// One-dimensional convolution, `y[t] = Σ weight[j] · x[t·stride + j·dilation] + bias`.
///
/// `x`: `(time, channels)`. `weight`: `(outputs, kernel, channels)`. `bias`: `(outputs)`. `y`: `(frames, outputs)`,
/// overwritten; its length determines the number of frames.
///
/// # Panics
/// If the length of a slice does not match its shape, or `x` is too short for the frames of `y`.
///
/// ```
/// use fauna_kernels::conv::{Taps, convolve};
/// let difference = Taps { kernel: 2, stride: 1, dilation: 2 };
/// let mut y = [0.0; 2];
/// convolve(&[1.0, 2.0, 4.0, 8.0], 1, difference, &[-1.0, 1.0], None, &mut y);
/// assert_eq!(y, [3.0, 6.0]);
/// ```
pub fn convolve(x: &[f32], channels: usize, taps: Taps, weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    convolve_on(isa(), x, channels, taps, weight, bias, y);
}

fn convolve_on(
    isa: Isa,
    x: &[f32],
    channels: usize,
    taps: Taps,
    weight: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    let inputs = taps.kernel * channels;
    assert!(inputs > 0 && weight.len().is_multiple_of(inputs), "weight is not outputs by kernel by channels");
    let outputs = weight.len() / inputs;
    if y.is_empty() {
        return;
    }
    assert!(y.len().is_multiple_of(outputs), "y is not frames by outputs");
    let frames = y.len() / outputs;
    assert!(((frames - 1) * taps.stride + taps.span()) * channels <= x.len(), "x is too short");
    let Ok(weight) = Dense::of_floats(weight, outputs, inputs) else { return };
    let step = taps.stride * channels;
    if taps.span() == taps.kernel {
        return linear_over_on(isa, x, step, frames, &weight, bias, None, y);
    }
    let most = (GATHERED / inputs).max(1);
    let mut rows = vec![0f32; most.min(frames) * inputs];
    for (i, y) in y.chunks_mut(most * outputs).enumerate() {
        let count = y.len() / outputs;
        for_each_piece(&mut rows[..count * inputs], inputs * 64, |piece, rows| {
            for (r, row) in rows.chunks_exact_mut(inputs).enumerate() {
                let first = (i * most + piece * 64 + r) * step;
                for (j, tap) in row.chunks_exact_mut(channels).enumerate() {
                    tap.copy_from_slice(&x[first + j * taps.dilation * channels..][..channels]);
                }
            }
        });
        linear_over_on(isa, &rows[..count * inputs], inputs, count, &weight, bias, None, y);
    }
}

/// The gradients of a convolution that are wanted, each overwritten.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// Of the input, of its shape.
    pub x: Option<&'a mut [f32]>,
    /// Of the weight, of its shape.
    pub weight: Option<&'a mut [f32]>,
    /// Of the bias, `(outputs)`.
    pub bias: Option<&'a mut [f32]>,
}

/// Backward pass of [`convolve`] of each of `batch` sequences: the gradients that `to` has, given the gradient `grad` with
/// respect to the outputs.
///
/// `x`: `(batch, time, channels)`. `weight`: `(outputs, kernel, channels)`. `grad`: `(batch, frames, outputs)`. They do
/// not depend on the number of threads.
///
/// # Panics
/// If the length of a slice does not match its shape, or `x` is too short for the frames of `grad`.
///
/// ```
/// use fauna_kernels::conv::{Gradients, Taps, convolve_backward};
/// let difference = Taps { kernel: 2, stride: 1, dilation: 2 };
/// let (mut to_x, mut to_weight) = ([0.0; 4], [0.0; 2]);
/// let to = Gradients { x: Some(&mut to_x), weight: Some(&mut to_weight), bias: None };
/// convolve_backward(&[1.0, 2.0, 4.0, 8.0], 1, 1, difference, &[-1.0, 1.0], &[1.0, 10.0], to);
/// assert_eq!((to_x, to_weight), ([-1.0, -10.0, 1.0, 10.0], [21.0, 84.0]));
/// ```
pub fn convolve_backward(
    x: &[f32],
    batch: usize,
    channels: usize,
    taps: Taps,
    weight: &[f32],
    grad: &[f32],
    to: Gradients,
) {
    convolve_backward_on(isa(), x, batch, channels, taps, weight, grad, to);
}

#[allow(clippy::too_many_arguments)]
fn convolve_backward_on(
    isa: Isa,
    x: &[f32],
    batch: usize,
    channels: usize,
    taps: Taps,
    weight: &[f32],
    grad: &[f32],
    to: Gradients,
) {
    let inputs = taps.kernel * channels;
    assert!(inputs > 0 && weight.len().is_multiple_of(inputs), "weight is not outputs by kernel by channels");
    let outputs = weight.len() / inputs;
    assert!(
        outputs > 0 && grad.len().is_multiple_of(batch * outputs),
        "grad is not batch by frames by outputs"
    );
    assert!(x.len().is_multiple_of(batch * channels), "x is not batch by time by channels");
    let (length, frames) = (x.len() / batch.max(1), grad.len() / (batch * outputs).max(1));
    assert!(frames == 0 || ((frames - 1) * taps.stride + taps.span()) * channels <= length, "x is too short");
    if let Some(to_x) = to.x {
        assert_eq!(to_x.len(), x.len(), "the gradient of x does not have its shape");
        to_x.fill(0.0);
        let sequences =
            grad.chunks_exact((frames * outputs).max(1)).zip(to_x.chunks_exact_mut(length.max(1)));
        sequences.for_each(|(grad, to_x)| back_to_x(isa, channels, taps, weight, grad, to_x));
    }
    if let Some(to_weight) = to.weight {
        assert_eq!(to_weight.len(), weight.len(), "the gradient of the weight does not have its shape");
        back_to_weight(isa, x, (length, frames), channels, taps, grad, to_weight);
    }
    if let Some(to_bias) = to.bias {
        assert_eq!(to_bias.len(), outputs, "the gradient of the bias is not one per output");
        sum_rows(grad, to_bias);
    }
}

/// Products of the gradient of one sequence with the weight, some frames at a time, added where their taps are.
fn back_to_x(isa: Isa, channels: usize, taps: Taps, weight: &[f32], grad: &[f32], to_x: &mut [f32]) {
    /// Frames of `x` per task.
    const FRAMES: usize = 64;
    let inputs = taps.kernel * channels;
    let outputs = weight.len() / inputs;
    let Ok(weight) = Dense::of_floats(weight, outputs, inputs) else { return };
    let (weight, most) = (weight.transposed(), (GATHERED / inputs).max(taps.kernel));
    let mut unfolded = vec![0f32; most.min(grad.len() / outputs) * inputs];
    for (block, grad) in grad.chunks(most * outputs).enumerate() {
        let (first, count) = (block * most, grad.len() / outputs);
        let unfolded = &mut unfolded[..count * inputs];
        linear_over_on(isa, grad, outputs, count, &weight, None, None, unfolded);
        let touched = first * taps.stride * channels
            ..to_x.len().min(((first + count - 1) * taps.stride + taps.span()) * channels);
        for_each_piece(&mut to_x[touched], FRAMES * channels, |piece, to_x| {
            for (r, to) in to_x.chunks_exact_mut(channels).enumerate() {
                // Relative to the first frame of `x` under the block.
                let time = piece * FRAMES + r;
                for j in 0..taps.kernel {
                    let Some(start) = time.checked_sub(j * taps.dilation) else { break };
                    if start % taps.stride == 0 && start / taps.stride < count {
                        let tap = &unfolded[start / taps.stride * inputs + j * channels..][..channels];
                        to.iter_mut().zip(tap).for_each(|(v, x)| *v += x);
                    }
                }
            }
        });
    }
}

/// Sums of outer products of the frames under the kernel with the gradient, transposed. Each sequence has `length`
/// elements of `x` and `frames` rows of the gradient.
fn back_to_weight(
    isa: Isa,
    x: &[f32],
    (length, frames): (usize, usize),
    channels: usize,
    taps: Taps,
    grad: &[f32],
    to_weight: &mut [f32],
) {
    let inputs = taps.kernel * channels;
    let outputs = to_weight.len() / inputs;
    let together = taps.span() == taps.kernel;
    let (rows, depth) = if together { (1, inputs) } else { (taps.kernel, channels) };
    let pointers = |first: usize, tap: usize, places: &mut [*const f32]| {
        for (i, place) in places.iter_mut().enumerate() {
            let (sequence, frame) = ((first + i) / frames, (first + i) % frames);
            let time = frame * taps.stride + tap * taps.dilation;
            *place = x[sequence * length + time * channels..][..depth].as_ptr();
        }
    };
    let mut sums = vec![0f32; to_weight.len()];
    // SAFETY: each pointer is to `depth` elements of `x`.
    unsafe { products(isa, &Rows { taps: rows, depth, pointers }, grad, outputs, &mut sums) };
    for_each_piece(to_weight, inputs, |o, row| {
        row.iter_mut().enumerate().for_each(|(i, v)| *v = sums[i * outputs + o]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    fn plainly(
        x: &[f32],
        channels: usize,
        taps: Taps,
        weight: &[f32],
        bias: &[f32],
        frames: usize,
    ) -> Vec<f64> {
        let at = |t: usize, o: usize| -> f64 {
            let terms = (0..taps.kernel * channels).map(|i| {
                let (j, c) = (i / channels, i % channels);
                let x = x[(t * taps.stride + j * taps.dilation) * channels + c];
                f64::from(x) * f64::from(weight[o * taps.kernel * channels + i])
            });
            terms.sum::<f64>() + f64::from(bias[o])
        };
        (0..frames * bias.len()).map(|i| at(i / bias.len(), i % bias.len())).collect()
    }

    #[test]
    fn every_instruction_set_agrees_with_a_plain_loop() {
        for isa in Isa::all_available() {
            for (kernel, stride, dilation) in
                [(1, 1, 1), (7, 1, 1), (3, 1, 9), (10, 5, 1), (4, 2, 1), (3, 2, 3), (2, 5, 1)]
            {
                let taps = Taps { kernel, stride, dilation };
                for (channels, outputs) in [(1, 1), (1, 17), (5, 3), (33, 2), (64, 1), (7, 70)] {
                    for frames in [1, 2, 5, 130] {
                        let x = numbers(((frames - 1) * stride + taps.span()) * channels, 1);
                        let (weight, bias) = (numbers(outputs * kernel * channels, 2), numbers(outputs, 3));
                        let mut y = vec![f32::NAN; frames * outputs];
                        convolve_on(isa, &x, channels, taps, &weight, Some(&bias), &mut y);
                        let wanted = plainly(&x, channels, taps, &weight, &bias, frames);
                        for (i, (&y, &wanted)) in y.iter().zip(&wanted).enumerate() {
                            let near = (f64::from(y) - wanted).abs() <= 1e-4;
                            assert!(
                                near,
                                "{isa:?} {taps:?} {channels} to {outputs}: {i} is {y}, not {wanted}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn gradients_are_the_transposes_of_the_convolution_on_every_instruction_set() {
        for isa in Isa::all_available() {
            for (kernel, stride, dilation) in
                [(1, 1, 1), (7, 1, 1), (3, 1, 9), (10, 5, 1), (4, 2, 1), (3, 2, 3), (2, 5, 1)]
            {
                let taps = Taps { kernel, stride, dilation };
                for (channels, outputs) in [(1, 1), (1, 17), (5, 3), (33, 2), (64, 1), (7, 70)] {
                    for (frames, rest) in [(1, 0), (5, 3), (130, 1)] {
                        let time = (frames - 1) * stride + taps.span() + rest;
                        let x = numbers(time * channels, 1);
                        let weight = numbers(outputs * kernel * channels, 2);
                        let grad = numbers(frames * outputs, 3);
                        let (mut to_x, mut to_weight, mut to_bias) =
                            (vec![f32::NAN; x.len()], vec![f32::NAN; weight.len()], vec![f32::NAN; outputs]);
                        let to = Gradients {
                            x: Some(&mut to_x),
                            weight: Some(&mut to_weight),
                            bias: Some(&mut to_bias),
                        };
                        convolve_backward_on(isa, &x, 1, channels, taps, &weight, &grad, to);
                        let wanted = plainly_back(&x, channels, taps, &weight, &grad, outputs);
                        for (got, wanted) in [&to_x, &to_weight, &to_bias].into_iter().zip(&wanted) {
                            let size = wanted.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
                            for (i, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
                                let near = (f64::from(got) - wanted).abs() <= 3e-6 * size;
                                assert!(
                                    near,
                                    "{isa:?} {taps:?} {channels} to {outputs}: {i} is {got}, not {wanted}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    /// The gradients of `x`, the weight and the bias from the formula, in float64.
    fn plainly_back(
        x: &[f32],
        channels: usize,
        taps: Taps,
        weight: &[f32],
        grad: &[f32],
        outputs: usize,
    ) -> [Vec<f64>; 3] {
        let mut to = [vec![0.0; x.len()], vec![0.0; weight.len()], vec![0.0; outputs]];
        for (at, &g) in grad.iter().enumerate() {
            let (t, o) = (at / outputs, at % outputs);
            to[2][o] += f64::from(g);
            for i in 0..taps.kernel * channels {
                let (j, c) = (i / channels, i % channels);
                let from = (t * taps.stride + j * taps.dilation) * channels + c;
                let w = o * taps.kernel * channels + i;
                to[0][from] += f64::from(g) * f64::from(weight[w]);
                to[1][w] += f64::from(g) * f64::from(x[from]);
            }
        }
        to
    }

    #[test]
    fn gradients_of_long_inputs_are_those_of_their_parts() {
        // More frames than are unfolded at a time, and than one sum has.
        let (channels, outputs, taps) = (64, 20, Taps { kernel: 4, stride: 1, dilation: 1 });
        let frames = GATHERED / (4 * channels) * 2 + 77;
        let x = numbers((frames + 3) * channels, 1);
        let (weight, grad) = (numbers(outputs * 4 * channels, 2), numbers(frames * outputs, 3));
        let (mut to_x, mut to_weight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        let to = Gradients { x: Some(&mut to_x), weight: Some(&mut to_weight), bias: None };
        convolve_backward(&x, 1, channels, taps, &weight, &grad, to);
        let wanted = plainly_back(&x, channels, taps, &weight, &grad, outputs);
        for (got, wanted) in [&to_x, &to_weight].into_iter().zip(&wanted) {
            let size = wanted.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
            let near = |(g, w): (&f32, &f64)| (f64::from(*g) - w).abs() <= 3e-6 * size;
            assert!(got.iter().zip(wanted).all(near));
        }
    }

    #[test]
    fn gradients_of_a_batch_are_the_sums_over_its_sequences() {
        for taps in [Taps { kernel: 4, stride: 2, dilation: 1 }, Taps { kernel: 3, stride: 1, dilation: 2 }] {
            let (batch, channels, outputs, frames) = (3, 5, 7, 6);
            let time = (frames - 1) * taps.stride + taps.span() + 1;
            let x = numbers(batch * time * channels, 1);
            let weight = numbers(outputs * taps.kernel * channels, 2);
            let grad = numbers(batch * frames * outputs, 3);
            let (mut to_x, mut to_weight, mut to_bias) =
                (vec![f32::NAN; x.len()], vec![f32::NAN; weight.len()], vec![f32::NAN; outputs]);
            let to = Gradients { x: Some(&mut to_x), weight: Some(&mut to_weight), bias: Some(&mut to_bias) };
            convolve_backward(&x, batch, channels, taps, &weight, &grad, to);
            let (mut all, mut sums) = (Vec::new(), [vec![0.0; weight.len()], vec![0.0; outputs]]);
            for (x, grad) in x.chunks(time * channels).zip(grad.chunks(frames * outputs)) {
                let [one, to_weight, to_bias] = plainly_back(x, channels, taps, &weight, grad, outputs);
                all.extend(one);
                for (sum, one) in sums.iter_mut().zip([to_weight, to_bias]) {
                    sum.iter_mut().zip(one).for_each(|(sum, one)| *sum += one);
                }
            }
            for (got, wanted) in [(&to_x, &all), (&to_weight, &sums[0]), (&to_bias, &sums[1])] {
                assert!(got.iter().zip(wanted).all(|(got, wanted)| (f64::from(*got) - wanted).abs() < 2e-5));
            }
        }
    }
}
