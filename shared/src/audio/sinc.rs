//! Polyphase windowed-sinc resampling, identical to torchaudio's `functional.resample`.
//!
//! For feature extractors that are defined by this filter. For audio in general,
//! [`resample`](super::resample::resample) is better and faster.

use super::{check_finite, check_rates, gcd};
use crate::{Error, Result};

/// A windowed sinc filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sinc {
    /// Number of zero crossings on each side, torchaudio's `lowpass_filter_width`: 1 to 64.
    pub crossings: usize,
    /// Cutoff as a fraction of the Nyquist frequency of the lower rate, torchaudio's `rolloff`: 0.5 to 1.
    pub rolloff: f64,
}

impl Sinc {
    /// The defaults of torchaudio.
    pub const TORCHAUDIO: Self = Self { crossings: 6, rolloff: 0.99 };
    /// The defaults of julius, used by the feature extractor of MusicGen Melody.
    pub const JULIUS: Self = Self { crossings: 24, rolloff: 0.945 };

    /// Resamples mono `samples` from `from` Hz to `to` Hz: `ceil(samples * to / from)` samples, without delay, with
    /// zeros beyond both ends. Within 2e-6 of torchaudio 2.9.1 for noise from -1 to 1.
    ///
    /// ```
    /// use fauna_shared::audio::sinc::Sinc;
    /// let tone: Vec<f32> = (0..441).map(|i| (i as f32 * 0.05).sin()).collect();
    /// let slower = Sinc::TORCHAUDIO.resample(&tone, 44_100, 32_000)?;
    /// assert_eq!(slower.len(), 320);
    /// assert!((slower[160] - (160.0 * 44_100.0 / 32_000.0 * 0.05f32).sin()).abs() < 1e-3);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if a sample is not finite, or a sampling rate or the filter is out of range.
    pub fn resample(&self, samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>> {
        check_rates(from, to)?;
        check_finite(samples)?;
        if !(1..=64).contains(&self.crossings) || !(0.5..=1.0).contains(&self.rolloff) {
            return Err(Error::input(format!(
                "{self:?}: expected 1 to 64 crossings and a rolloff of 0.5 to 1"
            )));
        }
        if from == to {
            return Ok(samples.to_vec());
        }
        let divisor = gcd(from, to);
        let (from, to) = ((from / divisor) as usize, (to / divisor) as usize);
        let phases = Phases::new(self, from, to);
        let length = (samples.len() as u128 * to as u128).div_ceil(from as u128) as usize;
        Ok((0..length).map(|at| phases.sample(samples, at)).collect())
    }
}

/// The polyphase filter: one row of taps for each position of an output sample between two input samples.
struct Phases {
    from: usize,
    to: usize,
    /// Number of taps before the input sample at or before the output.
    before: usize,
    /// `(to, 2 * before + 2)`.
    taps: Vec<f32>,
}

impl Phases {
    fn new(sinc: &Sinc, from: usize, to: usize) -> Self {
        let crossings = sinc.crossings as f64;
        // Zero crossings of the sinc per input sample.
        let density = sinc.rolloff * from.min(to) as f64 / from as f64;
        let before = (crossings / density).ceil() as usize;
        let width = 2 * before + 2;
        let mut taps = Vec::with_capacity(to * width);
        for phase in 0..to {
            // Distance of output `phase` from the input sample before it.
            let fraction = (phase * from % to) as f64 / to as f64;
            taps.extend((0..width).map(|tap| {
                let distance = (tap as f64 - before as f64 - fraction) * density;
                let x = distance.clamp(-crossings, crossings);
                let window = (x * std::f64::consts::FRAC_PI_2 / crossings).cos().powi(2);
                let angle = x * std::f64::consts::PI;
                let sinc = if angle == 0.0 { 1.0 } else { angle.sin() / angle };
                (sinc * window * density) as f32
            }));
        }
        Self { from, to, before, taps }
    }

    fn sample(&self, samples: &[f32], at: usize) -> f32 {
        let phase = at % self.to;
        let centre = at / self.to * self.from + phase * self.from / self.to;
        let width = 2 * self.before + 2;
        let taps = &self.taps[phase * width..][..width];
        let skipped = self.before.saturating_sub(centre);
        let start = (centre + skipped - self.before).min(samples.len());
        taps[skipped..].iter().zip(&samples[start..]).map(|(tap, sample)| tap * sample).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_preserved_away_from_the_ends() {
        for (from, to) in [(44_100, 32_000), (16_000, 48_000), (8000, 7999), (3, 2)] {
            let ones = vec![1.0; 300];
            let out = Sinc::JULIUS.resample(&ones, from, to).unwrap();
            let middle = out[out.len() / 2];
            assert!((middle - 1.0).abs() < 1e-3, "{from} to {to}: {middle}");
        }
    }

    #[test]
    fn lengths_are_rounded_up() {
        let length =
            |samples, from, to| Sinc::TORCHAUDIO.resample(&vec![0.0; samples], from, to).unwrap().len();
        assert_eq!(length(1, 44_100, 32_000), 1);
        assert_eq!(length(442, 44_100, 32_000), 321);
        assert_eq!(length(7, 8000, 8000), 7);
        assert_eq!(length(0, 8000, 16_000), 0);
    }

    #[test]
    fn invalid_rates_samples_and_filters_are_an_error() {
        assert!(Sinc::TORCHAUDIO.resample(&[0.0], 0, 8000).is_err());
        assert!(Sinc::TORCHAUDIO.resample(&[0.0], 8000, u32::MAX).is_err());
        assert!(Sinc::TORCHAUDIO.resample(&[f32::INFINITY], 8000, 16_000).is_err());
        assert!(Sinc { crossings: 6, rolloff: f64::NAN }.resample(&[0.0], 8000, 16_000).is_err());
    }
}
