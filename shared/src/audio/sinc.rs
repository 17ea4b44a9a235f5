//! Resampling by one windowed sinc a phase, exactly as torchaudio's `functional.resample` does it.
//!
//! For extractors that are defined by it, where another filter would give other features. For sounds as such,
//! [`resample`](super::resample::resample) is better and faster.

use super::{check_finite, check_rates, gcd};
use crate::{Error, Result};

/// Which sinc: its zero crossings on each side and where it cuts off, as a share of the lower rate's half.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sinc {
    /// torchaudio's `lowpass_filter_width`, 1 to 64.
    pub crossings: usize,
    /// torchaudio's `rolloff`, 0.5 to 1.
    pub rolloff: f64,
}

impl Sinc {
    /// torchaudio's defaults.
    pub const TORCHAUDIO: Self = Self { crossings: 6, rolloff: 0.99 };
    /// julius' defaults, which the extractor of MusicGen's melodies takes over.
    pub const JULIUS: Self = Self { crossings: 24, rolloff: 0.945 };

    /// `samples` at `from` Hz as `ceil(samples * to / from)` samples at `to` Hz, without delay; beyond its ends the
    /// sound is silent. Within 2e-6 of torchaudio 2.9.1 on noise in -1 to 1.
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
    /// [`Input`](crate::ErrorKind::Input) for samples that are not finite, or for a rate or a filter out of range.
    pub fn resample(&self, samples: &[f32], from: u32, to: u32) -> Result<Vec<f32>> {
        check_rates(from, to)?;
        check_finite(samples)?;
        if !(1..=64).contains(&self.crossings) || !(0.5..=1.0).contains(&self.rolloff) {
            return Err(Error::input(format!(
                "{self:?}: 1 to 64 crossings and a rolloff of 0.5 to 1 wanted"
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

/// The filter sampled where it is needed: one row of taps for each place an output sample can have between two
/// input samples.
struct Phases {
    from: usize,
    to: usize,
    /// Taps before the input sample at or before the output.
    before: usize,
    /// `(to, 2 * before + 2)`.
    taps: Vec<f32>,
}

impl Phases {
    fn new(sinc: &Sinc, from: usize, to: usize) -> Self {
        let crossings = sinc.crossings as f64;
        // Zero crossings of the sinc to one input sample.
        let density = sinc.rolloff * from.min(to) as f64 / from as f64;
        let before = (crossings / density).ceil() as usize;
        let width = 2 * before + 2;
        let mut taps = Vec::with_capacity(to * width);
        for phase in 0..to {
            // Output `phase` lies this far behind the input sample before it.
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
    fn a_constant_stays_itself_away_from_the_ends() {
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
    fn what_makes_no_sense_is_an_error() {
        assert!(Sinc::TORCHAUDIO.resample(&[0.0], 0, 8000).is_err());
        assert!(Sinc::TORCHAUDIO.resample(&[0.0], 8000, u32::MAX).is_err());
        assert!(Sinc::TORCHAUDIO.resample(&[f32::INFINITY], 8000, 16_000).is_err());
        assert!(Sinc { crossings: 6, rolloff: f64::NAN }.resample(&[0.0], 8000, 16_000).is_err());
    }
}
