//! Overlap-add of windows of audio.

use candle_core::Tensor;
use fauna_shared::{Error, Result};

/// Linear overlap-add: each sample is the mean of the overlapping windows, with triangular weights.
pub(super) struct OverlapAdd {
    /// Stride between the starts of consecutive windows, in samples.
    stride: usize,
    /// The weights of the first window, the longest, `(1, samples, 1)`.
    triangle: Option<Tensor>,
    /// Weighted sum and sum of weights from the start of the last window on.
    open: Option<(Tensor, Tensor)>,
    /// The completed samples.
    closed: Vec<Tensor>,
}

impl OverlapAdd {
    pub fn new(stride: usize) -> Self {
        Self { stride, triangle: None, open: None, closed: Vec::new() }
    }

    /// Adds the next window, `(batch, samples, channels)`, not longer than the first.
    pub fn add(&mut self, window: &Tensor) -> Result<()> {
        let length = window.dim(1)?;
        let triangle = match &self.triangle {
            Some(triangle) => triangle,
            None => self.triangle.insert(triangle(window)?),
        };
        let weights = triangle.narrow(1, 0, length)?;
        let window = window.broadcast_mul(&weights)?;
        let Some((sums, weights_so_far)) = self.open.take() else {
            self.open = Some((window, weights));
            return Ok(());
        };
        let left = sums.dim(1)?.checked_sub(self.stride).ok_or_else(|| {
            let samples = sums.dims()[1];
            Error::input(format!("windows of {samples} samples with a stride of {} leave gaps", self.stride))
        })?;
        let past = |x: &Tensor| x.narrow(1, 0, self.stride);
        self.closed.push(past(&sums)?.broadcast_div(&past(&weights_so_far)?)?);
        let longest = left.max(length);
        let add = |open: &Tensor, new: &Tensor| -> Result<Tensor> {
            let open = open.narrow(1, self.stride, left)?.pad_with_zeros(1, 0, longest - left)?;
            Ok((open + new.pad_with_zeros(1, 0, longest - length)?)?)
        };
        self.open = Some((add(&sums, &window)?, add(&weights_so_far, &weights)?));
        Ok(())
    }

    /// Returns the whole audio, `(batch, samples, channels)`.
    pub fn finish(mut self) -> Result<Tensor> {
        if let Some((sums, weights)) = self.open.take() {
            self.closed.push(sums.broadcast_div(&weights)?);
        }
        Ok(Tensor::cat(&self.closed, 1)?)
    }
}

/// Triangular weights, `1/2 - |t - 1/2|` at `t = i / (samples + 1)`.
fn triangle(window: &Tensor) -> Result<Tensor> {
    let length = window.dim(1)?;
    let step = 1.0 / (length + 1) as f32;
    let weight = |i: usize| {
        // From the nearer end, with the rounding of the reference (`torch.linspace`).
        let t = if i < (length + 2) / 2 { step * i as f32 } else { 1.0 - step * (length + 1 - i) as f32 };
        0.5 - (t - 0.5).abs()
    };
    let weights: Vec<f32> = (1..=length).map(weight).collect();
    Ok(Tensor::from_vec(weights, (1, length, 1), window.device())?.to_dtype(window.dtype())?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn sound(samples: &[f32]) -> Tensor {
        Tensor::from_vec(samples.to_vec(), (1, samples.len(), 1), &Device::Cpu).unwrap()
    }

    fn added(stride: usize, windows: &[&[f32]]) -> Vec<f32> {
        let mut sum = OverlapAdd::new(stride);
        windows.iter().for_each(|window| sum.add(&sound(window)).unwrap());
        sum.finish().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn overlapping_windows_are_crossfaded() {
        // Weights of three samples are 1/4, 1/2, 1/4.
        let faded = added(2, &[&[1.0, 1.0, 1.0], &[3.0, 3.0, 3.0], &[5.0, 5.0]]);
        assert_eq!(faded, [1.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn more_than_two_windows_may_overlap() {
        let faded = added(1, &[&[1.0, 1.0, 1.0], &[1.0, 1.0, 1.0], &[5.0, 5.0, 5.0]]);
        assert_eq!(faded, [1.0, 1.0, (0.25 + 0.5 + 1.25), (0.25 + 2.5) / 0.75, 5.0]);
    }

    #[test]
    fn a_short_window_inside_the_previous_one_truncates_nothing() {
        assert_eq!(added(1, &[&[1.0, 1.0, 1.0], &[1.0]]), [1.0, 1.0, 1.0]);
    }

    #[test]
    fn windows_that_leave_gaps_are_refused() {
        let mut sum = OverlapAdd::new(3);
        sum.add(&sound(&[1.0, 1.0])).unwrap();
        assert!(sum.add(&sound(&[1.0, 1.0])).unwrap_err().to_string().contains("leave gaps"));
    }
}
