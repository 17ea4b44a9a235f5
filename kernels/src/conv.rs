//! One-dimensional convolutions as matrix products.
//!
//! The layout is channels-last, `(time, channels)`, so the frames under a kernel are one contiguous row, and the next
//! row begins `stride` frames later: a convolution is a linear layer over overlapping rows. Nothing is copied unless
//! the dilation is greater than 1.

use super::cpu::{Isa, isa};
use super::matmul::{Dense, linear_over_on};
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
}
