//! Spectrograms with a gradient, for the losses of codecs.

use candle_core::{D, Device, Tensor};
use fauna_shared::audio::spectrum::MelScale;
use fauna_shared::generate::Rng;
use fauna_shared::item::Sound;
use fauna_shared::nn::{PadMode, pad_time};
use fauna_shared::{Error, Result};

/// A short-time Fourier transform as a product with its matrix, float32.
pub(crate) struct Stft {
    /// `(n_fft, 2 * bins)`: windowed cosines, then sines.
    basis: Tensor,
    n_fft: usize,
    hop: usize,
}

impl Stft {
    /// The transform of `n_fft` samples, `hop` apart, with a `window` in their middle, `(up to n_fft)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if the window is longer than `n_fft`, or a size is 0.
    pub(crate) fn new(n_fft: usize, hop: usize, window: &[f64], device: &Device) -> Result<Self> {
        if n_fft == 0 || hop == 0 || window.is_empty() || window.len() > n_fft {
            let length = window.len();
            let message = format!("a spectrum of {n_fft} samples, hop {hop}, and a window of {length}");
            return Err(Error::input(message).hint("expected a window of up to n_fft samples, all above 0"));
        }
        let bins = n_fft / 2 + 1;
        let turn = |i: usize| std::f64::consts::TAU * i as f64 / n_fft as f64;
        let (cosines, sines): (Vec<f64>, Vec<f64>) =
            (0..n_fft).map(|i| (turn(i).cos(), turn(i).sin())).unzip();
        let start = (n_fft - window.len()) / 2;
        let mut basis = vec![0f32; n_fft * 2 * bins];
        for (n, weight) in (start..).zip(window) {
            let row = &mut basis[n * 2 * bins..][..2 * bins];
            for k in 0..bins {
                let at = k * n % n_fft;
                row[k] = (weight * cosines[at]) as f32;
                row[bins + k] = (weight * sines[at]) as f32;
            }
        }
        Ok(Self { basis: Tensor::from_vec(basis, (n_fft, 2 * bins), device)?, n_fft, hop })
    }

    /// The power of the frames that lie in `x`, `(rows, samples)`: `(rows * frames, bins)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if `x` is shorter than a frame.
    pub(crate) fn power(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, samples) = x.dims2()?;
        let Some(free) = samples.checked_sub(self.n_fft) else {
            let wanted = self.n_fft;
            return Err(Error::input(format!("{samples} samples for a spectrum of {wanted}")));
        };
        let frames = free / self.hop + 1;
        let places =
            (0..frames).flat_map(|frame| (0..self.n_fft).map(move |n| (frame * self.hop + n) as u32));
        let places = Tensor::from_iter(places, x.device())?;
        let framed = x.contiguous()?.index_select(&places, 1)?.reshape((rows * frames, self.n_fft))?;
        let parts = framed.matmul(&self.basis)?.sqr()?;
        let bins = parts.dim(1)? / 2;
        Ok((parts.narrow(1, 0, bins)? + parts.narrow(1, bins, bins)?)?)
    }
}

/// `x`, `(rows, samples)`, with `left` and `right` mirrored samples at its ends.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if `x` is too short.
pub(crate) fn mirrored(x: &Tensor, left: usize, right: usize) -> Result<Tensor> {
    Ok(pad_time(&x.unsqueeze(2)?, left, right, PadMode::Reflect)?.squeeze(2)?)
}

/// The channels of `x`, `(batch, samples, channels)`, as rows, `(batch * channels, samples)` float32.
pub(crate) fn rows(x: &Tensor) -> Result<Tensor> {
    let samples = x.dim(1)?;
    Ok(x.to_dtype(candle_core::DType::F32)?.transpose(1, 2)?.contiguous()?.reshape(((), samples))?)
}

/// The triangular filters of `bands` bands from `lowest` Hz to half of `rate` on the scale of HTK, `(bins, bands)`. Bands
/// between two bins are zero, as in torchaudio.
pub(crate) fn mel_filters(
    bands: usize,
    lowest: f64,
    bins: usize,
    rate: usize,
    device: &Device,
) -> Result<Tensor> {
    let scale = MelScale::Htk;
    let (first, last) = (scale.mel(lowest), scale.mel(rate as f64 / 2.0));
    let edge = |i: usize| scale.hz(first + (last - first) * i as f64 / (bands + 1) as f64);
    let edges: Vec<f64> = (0..bands + 2).map(edge).collect();
    let width = (rate / 2) as f64 / (bins.max(2) - 1) as f64;
    let weight = |bin: usize, band: usize| {
        let (hz, low, middle, high) = (bin as f64 * width, edges[band], edges[band + 1], edges[band + 2]);
        ((hz - low) / (middle - low)).min((high - hz) / (high - middle)).max(0.0) as f32
    };
    let values = (0..bins).flat_map(|bin| (0..bands).map(move |band| (bin, band)));
    let values: Vec<f32> = values.map(|(bin, band)| weight(bin, band)).collect();
    Ok(Tensor::from_vec(values, (bins, bands), device)?)
}

/// The mean absolute difference.
pub(crate) fn mean_absolute(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a - b)?.abs()?.mean_all()?)
}

/// The mean squared difference.
pub(crate) fn mean_square(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a - b)?.sqr()?.mean_all()?)
}

/// `entries` with the gradient of `states`: the straight-through estimator of a quantizer.
pub(crate) fn straight_through(states: &Tensor, entries: &Tensor) -> Result<Tensor> {
    Ok((states + (entries - states)?.detach())?)
}

/// `seconds` of `sound` from a random place by `seed` and `stream`, filled up with zeros; and the number of samples per
/// channel that were left out.
pub(crate) fn crop(sound: &Sound, seconds: f64, seed: u64, stream: u64) -> (Sound, usize) {
    let length = ((seconds * f64::from(sound.rate)).round() as usize).max(1);
    let samples = sound.channels.first().map_or(0, Vec::len);
    let free = samples.saturating_sub(length);
    let start = (Rng::new(seed, stream).uniform() * (free + 1) as f64) as usize;
    let start = start.min(free);
    let piece = |channel: &Vec<f32>| {
        let mut piece = channel[start.min(channel.len())..(start + length).min(channel.len())].to_vec();
        piece.resize(length, 0.0);
        piece
    };
    (Sound { rate: sound.rate, channels: sound.channels.iter().map(piece).collect() }, free)
}

/// The magnitudes of `power`, whose gradient at 0 is 0.
pub(crate) fn magnitude(power: &Tensor) -> Result<Tensor> {
    Ok((power + 1e-30)?.sqrt()?)
}

/// The Euclidean norm of each row of `x`, `(rows, …)`.
pub(crate) fn norms(x: &Tensor) -> Result<Tensor> {
    magnitude(&x.flatten_from(1)?.sqr()?.sum(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use fauna_shared::audio::spectrum::hann;

    use super::*;

    #[test]
    fn a_tone_has_its_power_in_its_bin() {
        let tone: Vec<f32> = (0..40).map(|t| (std::f32::consts::TAU * 3.0 * t as f32 / 16.0).cos()).collect();
        let tone = Tensor::from_vec(tone, (1, 40), &Device::Cpu).unwrap();
        let stft = Stft::new(16, 8, &hann(16), &Device::Cpu).unwrap();
        let power = stft.power(&tone).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((power.len(), power[0].len()), (4, 9));
        // The window sums to 8, of which a cosine has half.
        assert!((power[1][3] - 16.0).abs() < 1e-4 && power[1][7] < 1e-6, "{:?}", power[1]);
    }

    #[test]
    fn a_crop_lies_in_the_sound_and_a_short_one_is_filled_up() {
        let sound = Sound { rate: 10, channels: vec![(0..30).map(|t| t as f32).collect()] };
        let (piece, left) = crop(&sound, 1.0, 5, 0);
        let piece = &piece.channels[0];
        assert_eq!((piece.len(), left), (10, 20));
        assert!(piece.windows(2).all(|pair| pair[1] == pair[0] + 1.0));
        let (piece, left) = crop(&sound, 4.0, 5, 0);
        assert_eq!((piece.channels[0].len(), left, piece.channels[0][39]), (40, 0, 0.0));
    }
}
