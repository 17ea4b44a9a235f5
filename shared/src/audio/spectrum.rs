//! Spectrograms and mel spectrograms, with the windows, padding and filters of the reference implementations.
//!
//! Checked against torchaudio 2.9.1 `Spectrogram` and `MelSpectrogram` and transformers 5.23.0 `audio_utils`, fixtures
//! in `tests/audio/`. Spectrograms are `(frames, bins)`.

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};

use super::check_finite;
use crate::{Error, Result};

/// Maximum size of the FFT window in samples, which limits the memory that a config can request.
pub const MAX_WINDOW: usize = 1 << 20;

/// Value of a bin of a spectrogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// The magnitude of the STFT.
    Magnitude,
    /// The power: its square.
    Power,
}

/// Config of a spectrogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpectrumConfig {
    /// Size of the FFT and of the window in samples, 2 to [`MAX_WINDOW`].
    pub n_fft: usize,
    /// Hop length in samples, at least 1.
    pub hop: usize,
    /// Magnitude or power.
    pub measure: Measure,
    /// Whether the STFT is divided by the L2 norm of the window (torchaudio's `normalized=True`).
    pub normalized: bool,
}

/// A spectrogram: the STFT with a periodic Hann window of `n_fft` samples every `hop` samples, the first one centred on
/// sample 0, with reflect padding.
///
/// Audio of `n` samples has `1 + n / hop` frames (for an odd `n_fft`, `1 + (n - 1) / hop`) of `n_fft / 2 + 1` bins; bin
/// `k` is at `k * rate / n_fft` Hz.
///
/// ```
/// use fauna_shared::audio::spectrum::{Measure, Spectrum, SpectrumConfig};
/// let config = SpectrumConfig { n_fft: 64, hop: 16, measure: Measure::Power, normalized: false };
/// let spectrum = Spectrum::new(config)?;
/// // A cosine of eight periods in 64 samples is in bin 8.
/// let tone: Vec<f32> = (0..160).map(|i| (i as f32 * std::f32::consts::TAU / 8.0).cos()).collect();
/// let frames = spectrum.forward(&tone)?;
/// assert_eq!((frames.len(), frames[5].len()), (11, 33));
/// assert!(frames[5][8] > 100.0 * frames[5][11]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct Spectrum {
    config: SpectrumConfig,
    transform: Arc<dyn RealToComplex<f32>>,
    /// The window, divided by its norm if `normalized`.
    window: Vec<f32>,
}

impl Spectrum {
    /// Plans the FFT.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for an FFT size or hop length out of range.
    pub fn new(config: SpectrumConfig) -> Result<Self> {
        let SpectrumConfig { n_fft, hop, normalized, .. } = config;
        if !(2..=MAX_WINDOW).contains(&n_fft) {
            return Err(Error::unsupported(format!("n_fft is {n_fft}, expected 2 to {MAX_WINDOW}")));
        }
        if hop == 0 {
            return Err(Error::unsupported("hop_length is 0, expected at least 1"));
        }
        let mut window = hann(n_fft);
        if normalized {
            let norm = window.iter().map(|w| w * w).sum::<f64>().sqrt();
            window.iter_mut().for_each(|w| *w /= norm);
        }
        let window = window.into_iter().map(|w| w as f32).collect();
        Ok(Self { config, transform: RealFftPlanner::new().plan_fft_forward(n_fft), window })
    }

    /// Returns the number of frames of audio of `samples` samples.
    pub fn frames(&self, samples: usize) -> usize {
        1 + samples.saturating_sub(self.config.n_fft % 2) / self.config.hop
    }

    /// Returns the number of bins of a frame, `n_fft / 2 + 1`.
    pub fn bins(&self) -> usize {
        self.config.n_fft / 2 + 1
    }

    /// Returns the spectrogram of `samples`, `(samples)`: `(frames, bins)`.
    ///
    /// # Errors
    /// Same as [`each`](Self::each).
    pub fn forward(&self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        let mut frames = Vec::new();
        self.each(samples, |frame| frames.push(frame.to_vec()))?;
        Ok(frames)
    }

    /// Calls `each` with every frame, `(bins)`, using the memory of one frame.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if a sample is not finite, or there are too few for reflect padding: more
    /// than `n_fft / 2` are required.
    pub fn each(&self, samples: &[f32], mut each: impl FnMut(&[f32])) -> Result<()> {
        check_finite(samples)?;
        let reach = self.config.n_fft / 2;
        if samples.len() <= reach {
            let found = samples.len();
            return Err(Error::input(format!("{found} samples, expected more than {reach} (n_fft / 2)")));
        }
        let mut windowed = self.transform.make_input_vec();
        let mut bins = self.transform.make_output_vec();
        let mut scratch = self.transform.make_scratch_vec();
        let mut frame = vec![0f32; self.bins()];
        for index in 0..self.frames(samples.len()) {
            let start = (index * self.config.hop) as isize - reach as isize;
            for ((offset, out), weight) in windowed.iter_mut().enumerate().zip(&self.window) {
                *out = weight * samples[mirror(start + offset as isize, samples.len())];
            }
            self.transform
                .process_with_scratch(&mut windowed, &mut bins, &mut scratch)
                .map_err(|error| Error::input(error.to_string()))?;
            for (out, bin) in frame.iter_mut().zip(&bins) {
                *out = self.measure(bin);
            }
            each(&frame);
        }
        Ok(())
    }

    fn measure(&self, bin: &Complex32) -> f32 {
        match self.config.measure {
            Measure::Magnitude => bin.norm_sqr().sqrt(),
            Measure::Power => bin.norm_sqr(),
        }
    }
}

/// Returns the periodic Hann window of `length` samples, `0.5 - 0.5 cos(2 pi i / length)`.
pub fn hann(length: usize) -> Vec<f64> {
    (0..length).map(|i| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / length as f64).cos()).collect()
}

/// Returns the index of position `at` with reflect padding of a list of `length`; `at` is less than `length` positions
/// outside.
fn mirror(at: isize, length: usize) -> usize {
    let last = length as isize - 1;
    let at = at.abs();
    (if at > last { 2 * last - at } else { at }) as usize
}

/// A filter bank over the bins of a spectrogram, `(bands, bins)`.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterBank(pub Vec<Vec<f32>>);

impl FilterBank {
    /// Applies the filter bank to one frame: `(bins)` to `(bands)`. Sums are in float64.
    pub fn forward(&self, frame: &[f32]) -> Vec<f32> {
        let band = |row: &Vec<f32>| {
            row.iter().zip(frame).map(|(weight, bin)| f64::from(*weight) * f64::from(*bin)).sum::<f64>()
                as f32
        };
        self.0.iter().map(band).collect()
    }
}

/// Mel scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MelScale {
    /// HTK, `2595 log10(1 + f / 700)`: the default of torchaudio.
    Htk,
    /// Slaney, linear up to 1000 Hz and logarithmic above: the default of librosa.
    Slaney,
}

impl MelScale {
    /// End of the linear part of the Slaney scale, and mels per factor of 6.4 in its logarithmic part.
    const CORNER_HZ: f64 = 1000.0;
    const CORNER_MEL: f64 = 15.0;
    const STEPS: f64 = 27.0;

    /// Converts Hz to mel.
    pub fn mel(self, hz: f64) -> f64 {
        match self {
            Self::Htk => 2595.0 * (1.0 + hz / 700.0).log10(),
            Self::Slaney if hz < Self::CORNER_HZ => 3.0 * hz / 200.0,
            Self::Slaney => Self::CORNER_MEL + (hz / Self::CORNER_HZ).ln() * Self::STEPS / 6.4f64.ln(),
        }
    }

    /// Converts mel to Hz.
    pub fn hz(self, mel: f64) -> f64 {
        match self {
            Self::Htk => 700.0 * (10f64.powf(mel / 2595.0) - 1.0),
            Self::Slaney if mel < Self::CORNER_MEL => 200.0 * mel / 3.0,
            Self::Slaney => Self::CORNER_HZ * ((mel - Self::CORNER_MEL) * 6.4f64.ln() / Self::STEPS).exp(),
        }
    }
}

/// Config of a mel filter bank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MelConfig {
    /// Number of mel bands (`n_mels`).
    pub bands: usize,
    /// Minimum frequency in Hz (`f_min`).
    pub lowest: f64,
    /// Maximum frequency in Hz (`f_max`), at most half the sampling rate.
    pub highest: f64,
    /// Mel scale.
    pub scale: MelScale,
    /// Whether each band is divided by its width (`norm="slaney"`).
    pub by_width: bool,
}

/// Returns the triangular mel filter bank of `config` for spectrograms of `bins` bins at `rate` Hz, `(bands, bins)`.
///
/// ```
/// use fauna_shared::audio::spectrum::{MelConfig, MelScale, mel_filter_bank};
/// let config = MelConfig { bands: 80, lowest: 0.0, highest: 8000.0, scale: MelScale::Slaney, by_width: true };
/// let bank = mel_filter_bank(&config, 201, 16_000)?;
/// assert_eq!((bank.0.len(), bank.0[0].len()), (80, 201));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) if the frequencies are out of order or above half the sampling rate,
/// or there are fewer than two bins, no bands or more bands than bins.
pub fn mel_filter_bank(config: &MelConfig, bins: usize, rate: u32) -> Result<FilterBank> {
    let MelConfig { bands, lowest, highest, scale, by_width } = *config;
    let half = f64::from(rate) / 2.0;
    if !(0.0 <= lowest && lowest < highest && highest <= half) {
        return Err(Error::unsupported(format!(
            "mel bands from {lowest} to {highest} Hz at a sampling rate of {rate} Hz"
        ))
        .hint(format!("expected frequencies from 0 to {half} Hz, the minimum first")));
    }
    if bands == 0 || !(2..=MAX_WINDOW).contains(&bins) || bands > bins {
        return Err(Error::unsupported(format!("{bands} mel bands over {bins} bins")));
    }
    let (first, last) = (scale.mel(lowest), scale.mel(highest));
    let step = (last - first) / (bands + 1) as f64;
    let edges: Vec<f64> = (0..bands + 2).map(|i| scale.hz(first + step * i as f64)).collect();
    // The reference rounds half of an odd sampling rate down.
    let bin_width = f64::from(rate / 2) / (bins - 1) as f64;
    let row = |edges: &[f64]| {
        let (low, middle, high) = (edges[0], edges[1], edges[2]);
        let height = if by_width { 2.0 / (high - low) } else { 1.0 };
        let weight = |bin: usize| {
            let hz = bin as f64 * bin_width;
            let (rising, falling) = ((hz - low) / (middle - low), (high - hz) / (high - middle));
            (rising.min(falling).max(0.0) * height) as f32
        };
        (0..bins).map(weight).collect()
    };
    Ok(FilterBank(edges.windows(3).map(row).collect()))
}

/// Base of a log mel spectrogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Natural logarithm.
    Natural,
    /// Logarithm to base 10.
    Ten,
}

/// A mel spectrogram: a [`Spectrum`] with a mel filter bank, `(frames, bands)`.
///
/// ```
/// use fauna_shared::audio::spectrum::{Log, Measure, Mel, MelConfig, MelScale, SpectrumConfig};
/// let spectrum = SpectrumConfig { n_fft: 400, hop: 160, measure: Measure::Power, normalized: false };
/// let bands = MelConfig { bands: 80, lowest: 0.0, highest: 8000.0, scale: MelScale::Slaney, by_width: true };
/// let mel = Mel::new(spectrum, &bands, 16_000)?;
/// // One second at 16 kHz: 1 + 16000 / 160 frames.
/// let silence = mel.log(&vec![0.0; 16_000], 1e-10, Log::Ten)?;
/// assert_eq!((silence.len(), silence[0][0]), (101, -10.0));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct Mel {
    spectrum: Spectrum,
    bank: FilterBank,
}

impl Mel {
    /// Plans the FFT and computes the filter bank for audio at `rate` Hz.
    ///
    /// # Errors
    /// Errors of [`Spectrum::new`] and [`mel_filter_bank`].
    pub fn new(spectrum: SpectrumConfig, bands: &MelConfig, rate: u32) -> Result<Self> {
        let spectrum = Spectrum::new(spectrum)?;
        let bank = mel_filter_bank(bands, spectrum.bins(), rate)?;
        Ok(Self { spectrum, bank })
    }

    /// Returns the mel spectrogram of `samples`, `(samples)`: `(frames, bands)`.
    ///
    /// # Errors
    /// Same as [`Spectrum::each`].
    pub fn forward(&self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        let mut frames = Vec::new();
        self.spectrum.each(samples, |frame| frames.push(self.bank.forward(frame)))?;
        Ok(frames)
    }

    /// Returns the log mel spectrogram, `(frames, bands)`; values are clamped to at least `floor` before the logarithm.
    ///
    /// # Errors
    /// Same as [`forward`](Self::forward).
    pub fn log(&self, samples: &[f32], floor: f32, base: Log) -> Result<Vec<Vec<f32>>> {
        let mut frames = self.forward(samples)?;
        for energy in frames.iter_mut().flatten() {
            let raised = energy.max(floor);
            *energy = match base {
                Log::Natural => raised.ln(),
                Log::Ten => raised.log10(),
            };
        }
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflect_padding_does_not_repeat_the_ends() {
        let five: Vec<usize> = (-4..9).map(|at| mirror(at, 5)).collect();
        assert_eq!(five, [4, 3, 2, 1, 0, 1, 2, 3, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_constant_is_in_the_first_bin_and_half_of_it_in_the_second() {
        // The transform of a Hann window of 8: 4 at bin 0, -2 at bin 1, 0 elsewhere.
        let config = SpectrumConfig { n_fft: 8, hop: 3, measure: Measure::Magnitude, normalized: false };
        let frames = Spectrum::new(config).unwrap().forward(&[0.5; 10]).unwrap();
        assert_eq!(frames.len(), 4);
        for (found, wanted) in frames.iter().flatten().zip([2.0, 1.0, 0.0, 0.0, 0.0].iter().cycle()) {
            assert!((found - wanted).abs() < 1e-6, "{found} is not {wanted}");
        }
    }

    #[test]
    fn the_slaney_scale_is_continuous_and_both_scales_are_invertible() {
        assert!((MelScale::Slaney.mel(999.999_999) - 15.0).abs() < 1e-6);
        assert_eq!(MelScale::Slaney.mel(1000.0), 15.0);
        for scale in [MelScale::Slaney, MelScale::Htk] {
            for hz in [0.0, 440.0, 999.0, 1000.0, 7000.0] {
                assert!((scale.hz(scale.mel(hz)) - hz).abs() < 1e-9 * (1.0 + hz));
            }
        }
    }

    #[test]
    fn invalid_samples_and_configs_are_an_error() {
        let config = SpectrumConfig { n_fft: 8, hop: 4, measure: Measure::Power, normalized: true };
        let spectrum = Spectrum::new(config).unwrap();
        assert!(spectrum.forward(&[0.0; 4]).unwrap_err().to_string().contains("expected more than 4"));
        assert!(spectrum.forward(&[f32::NAN; 10]).is_err());
        assert!(Spectrum::new(SpectrumConfig { n_fft: 1, ..config }).is_err());
        assert!(Spectrum::new(SpectrumConfig { n_fft: usize::MAX, ..config }).is_err());
        assert!(Spectrum::new(SpectrumConfig { hop: 0, ..config }).is_err());
        let mel = MelConfig { bands: 4, lowest: 0.0, highest: 4001.0, scale: MelScale::Htk, by_width: false };
        assert!(mel_filter_bank(&mel, 9, 8000).is_err());
        assert!(mel_filter_bank(&MelConfig { lowest: f64::NAN, highest: 4000.0, ..mel }, 9, 8000).is_err());
    }
}
