//! Chroma features: the energy of each of the twelve pitch classes over time, MusicGen's melody conditioning.
//!
//! Copet et al. 2023, "Simple and Controllable Music Generation", section 2.4. Checked against transformers 5.23.0
//! `MusicgenMelodyFeatureExtractor`, whose config is [`ChromaConfig`] and whose call is [`Chroma::features`]: a power
//! spectrogram, a filter bank with one band per pitch class, the loudest class of each frame.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::sinc::Sinc;
use super::spectrum::{FilterBank, MAX_WINDOW, Measure, Spectrum, SpectrumConfig};
use super::{check_rate, mono};
use crate::item::Sound;
use crate::{Error, Result, transfer};

/// `preprocessor_config.json` of MusicGen Melody; the defaults are those of the official releases.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ChromaConfig {
    /// Sampling rate, in Hz.
    pub sampling_rate: u32,
    /// Size of the FFT window, in samples.
    pub n_fft: usize,
    /// Hop length, in samples.
    pub hop_length: usize,
    /// Number of pitch classes, starting with C.
    pub num_chroma: usize,
    /// Maximum length of the audio in seconds; longer audio is truncated.
    pub chunk_length: usize,
    /// Indices of the Demucs stems that carry the melody.
    pub stem_indices: Vec<usize>,
}

impl Default for ChromaConfig {
    fn default() -> Self {
        Self {
            sampling_rate: 32_000,
            n_fft: 16_384,
            hop_length: 4096,
            num_chroma: 12,
            chunk_length: 30,
            stem_indices: vec![3, 2],
        }
    }
}

/// Extractor of chroma features.
///
/// Audio of `n` samples has `1 + max(n, n_fft) / hop_length` frames, the first centred on the first sample; 30 s at
/// 32 kHz have 235. Audio shorter than a window is centred in one.
///
/// ```
/// use fauna_shared::audio::chroma::{Chroma, ChromaConfig};
/// let chroma = Chroma::new(&ChromaConfig::default())?;
/// // Two seconds at 440 Hz: every frame is an A, nine semitones above C.
/// let a: Vec<f32> = (0..64_000).map(|i| (i as f32 * 440.0 / 32_000.0 * std::f32::consts::TAU).sin()).collect();
/// assert_eq!(chroma.classes(&a)?, [9; 16]);
/// assert_eq!(chroma.forward(&a)?.dims(), [16, 12]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct Chroma {
    config: ChromaConfig,
    spectrum: Spectrum,
    bank: FilterBank,
    /// Maximum length of the audio, in samples.
    longest: usize,
}

impl Chroma {
    /// Plans the FFT and computes the filter bank.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) or [`Input`](crate::ErrorKind::Input) for sizes out of range,
    /// naming the key.
    pub fn new(config: &ChromaConfig) -> Result<Self> {
        let ChromaConfig { sampling_rate, n_fft, hop_length, num_chroma, chunk_length, .. } = *config;
        check_rate(sampling_rate)?;
        if !(1..=256).contains(&num_chroma) {
            return Err(Error::unsupported(format!("num_chroma is {num_chroma}, expected 1 to 256")));
        }
        if num_chroma * n_fft.min(MAX_WINDOW) > 12 * MAX_WINDOW {
            return Err(Error::unsupported(format!(
                "num_chroma {num_chroma} with n_fft {n_fft} is too large"
            )));
        }
        let Some(longest) = chunk_length.checked_mul(sampling_rate as usize).filter(|longest| *longest > 0)
        else {
            return Err(Error::unsupported(format!("chunk_length is {chunk_length}, out of range")));
        };
        let spectrum = Spectrum::new(SpectrumConfig {
            n_fft,
            hop: hop_length,
            measure: Measure::Power,
            normalized: true,
        })?;
        let bank = chroma_bank(n_fft, num_chroma, sampling_rate);
        Ok(Self { config: config.clone(), spectrum, bank, longest })
    }

    /// Returns the config.
    pub fn config(&self) -> &ChromaConfig {
        &self.config
    }

    /// Returns the number of frames of audio of `samples` samples.
    pub fn frames(&self, samples: usize) -> usize {
        self.spectrum.frames(samples.max(self.config.n_fft))
    }

    /// Returns the energy of each pitch class, normalized to a maximum of 1 per frame: `(frames, num_chroma)`. Silence
    /// is all zeros.
    ///
    /// `samples`: `(samples)`, mono, at `sampling_rate`; they are not truncated.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if there are no samples, or one is not finite.
    pub fn soft(&self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        if samples.is_empty() {
            return Err(Error::input("the melody has no samples"));
        }
        let mut rows = Vec::new();
        let mut each = |frame: &[f32]| rows.push(loudest_is_one(self.bank.forward(frame)));
        match self.config.n_fft.checked_sub(samples.len()) {
            None | Some(0) => self.spectrum.each(samples, &mut each)?,
            Some(missing) => {
                let mut window = vec![0.0; self.config.n_fft];
                window[missing / 2..][..samples.len()].copy_from_slice(samples);
                self.spectrum.each(&window, &mut each)?;
            }
        }
        Ok(rows)
    }

    /// Returns the loudest pitch class of each frame, `(frames)`; 0 for C and for silence.
    ///
    /// # Errors
    /// Same as [`soft`](Self::soft).
    pub fn classes(&self, samples: &[f32]) -> Result<Vec<usize>> {
        Ok(self.soft(samples)?.iter().map(|row| argmax(row)).collect())
    }

    /// Returns the loudest pitch class of each frame as a one-hot tensor, `(frames, num_chroma)`, float32 on the CPU.
    ///
    /// # Errors
    /// Same as [`soft`](Self::soft).
    pub fn forward(&self, samples: &[f32]) -> Result<Tensor> {
        let classes = self.classes(samples)?;
        let mut rows = vec![0f32; classes.len() * self.config.num_chroma];
        for (row, class) in rows.chunks_exact_mut(self.config.num_chroma).zip(&classes) {
            row[*class] = 1.0;
        }
        Ok(Tensor::from_vec(rows, (classes.len(), self.config.num_chroma), &Device::Cpu)?)
    }

    /// Returns the melody conditioning of audio with any sampling rate and number of channels: mixed to mono, resampled
    /// and truncated to `chunk_length` seconds; `(1, frames, num_chroma)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for audio that [`check`](super::check) rejects.
    pub fn melody(&self, melody: Sound) -> Result<Tensor> {
        let rate = melody.rate;
        self.row(&mono(melody)?, rate)?.unsqueeze(0).map_err(Error::from)
    }

    /// The call of the reference implementation. `audio` at `rate` Hz: `(samples)` or `(batch, samples)`, mono;
    /// `(batch, channels, samples)`; or Demucs stems, `(batch, stems, channels, samples)`. Returns
    /// `(batch, frames, num_chroma)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for another rank, a missing stem, or samples that [`soft`](Self::soft)
    /// rejects.
    pub fn features(&self, audio: &Tensor, rate: u32) -> Result<Tensor> {
        let audio = audio.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let mono = match audio.rank() {
            1 => audio.unsqueeze(0)?,
            2 => audio,
            3 => audio.mean(1)?,
            4 => self.stems(&audio)?.mean(1)?,
            rank => return Err(Error::input(format!("audio of {rank} axes, expected 1 to 4"))),
        };
        let rows = transfer::rows::<f32>(&mono)?;
        if rows.is_empty() {
            return Err(Error::input("the audio batch is empty"));
        }
        let rows = rows.iter().map(|row| self.row(row, rate)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// Sums the stems that carry the melody: `(batch, stems, channels, samples)` to `(batch, channels, samples)`.
    fn stems(&self, audio: &Tensor) -> Result<Tensor> {
        let found = audio.dim(1)?;
        let wanted = &self.config.stem_indices;
        if wanted.is_empty() || wanted.iter().any(|stem| *stem >= found) {
            return Err(Error::input(format!("{found} stems, expected stems with the indices {wanted:?}")));
        }
        let stems = wanted.iter().map(|stem| audio.narrow(1, *stem, 1)?.squeeze(1));
        let stems = stems.collect::<candle_core::Result<Vec<_>>>()?;
        stems[1..].iter().try_fold(stems[0].clone(), |sum, stem| sum + stem).map_err(Error::from)
    }

    /// Features of one sequence: resampled with the filter of the reference, then truncated.
    fn row(&self, samples: &[f32], rate: u32) -> Result<Tensor> {
        let mut samples = Sinc::JULIUS.resample(samples, rate, self.config.sampling_rate)?;
        samples.truncate(self.longest);
        self.forward(&samples)
    }
}

/// The filter bank of librosa's `filters.chroma`, tuned to 440 Hz: a Gaussian per pitch class at every octave, the
/// weights of each bin normalized to L2 norm 1 before octaves far from the fifth are weighted down. `(num_chroma, n_fft
/// / 2 + 1)`.
fn chroma_bank(n_fft: usize, num_chroma: usize, rate: u32) -> FilterBank {
    /// Frequency of the lowest A in Hz, where octave 0 begins.
    const LOWEST: f64 = 440.0 / 16.0;
    /// Centre (in octaves) and standard deviation of the Gaussian weighting of octaves.
    const CENTRE: f64 = 5.0;
    const REACH: f64 = 2.0;
    let classes = num_chroma as f64;
    let half = (classes / 2.0).round_ties_even();
    let bin_hz = f64::from(rate) / n_fft as f64;
    // The position of bin `k` in semitones above the lowest A; the bin of 0 Hz is defined to be an octave and a half
    // below the next.
    let place = |bin: usize| match bin {
        0 => classes * (bin_hz / LOWEST).log2() - 1.5 * classes,
        _ => classes * (bin as f64 * bin_hz / LOWEST).log2(),
    };
    let bins = n_fft / 2 + 1;
    let first = 3 * (num_chroma / 12) % num_chroma;
    let mut rows = vec![vec![0f32; bins]; num_chroma];
    let mut column = vec![0f64; num_chroma];
    for bin in 0..bins {
        let here = place(bin);
        // The last of the n_fft bins has no successor.
        let width = if bin + 1 < n_fft { (place(bin + 1) - here).max(1.0) } else { 1.0 };
        for (class, weight) in column.iter_mut().enumerate() {
            let away = (here - class as f64 + half + 10.0 * classes).rem_euclid(classes) - half;
            *weight = (-0.5 * (2.0 * away / width).powi(2)).exp();
        }
        let norm = column.iter().map(|weight| weight * weight).sum::<f64>().sqrt();
        let fade = (-0.5 * ((here / classes - CENTRE) / REACH).powi(2)).exp();
        for (class, row) in rows.iter_mut().enumerate() {
            row[bin] = (column[(class + first) % num_chroma] / norm * fade) as f32;
        }
    }
    FilterBank(rows)
}

/// Divides a frame by its maximum, unless that is close to zero.
fn loudest_is_one(mut frame: Vec<f32>) -> Vec<f32> {
    let loudest = frame.iter().fold(1e-6f32, |loudest, class| loudest.max(class.abs()));
    frame.iter_mut().for_each(|class| *class /= loudest);
    frame
}

/// Returns the index of the maximum, the first one on ties.
fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Chroma {
        let config =
            ChromaConfig { sampling_rate: 8000, n_fft: 2048, hop_length: 512, ..ChromaConfig::default() };
        Chroma::new(&config).unwrap()
    }

    fn tone(hz: f32, samples: usize) -> Vec<f32> {
        (0..samples).map(|i| 0.5 * (i as f32 * hz / 8000.0 * std::f32::consts::TAU).sin()).collect()
    }

    #[test]
    fn each_tone_of_a_scale_has_its_pitch_class() {
        let chroma = small();
        for class in 0..12 {
            let hz = 261.625_57 * 2f32.powf(class as f32 / 12.0);
            assert_eq!(chroma.classes(&tone(hz, 8000)).unwrap(), [class; 16]);
        }
    }

    #[test]
    fn silence_and_one_sample_have_frames() {
        let chroma = small();
        assert_eq!(chroma.classes(&[0.0; 8000]).unwrap(), [0; 16]);
        assert_eq!(chroma.soft(&[0.0; 8000]).unwrap()[3], [0.0; 12]);
        assert_eq!(chroma.classes(&[0.5]).unwrap().len(), chroma.frames(1));
        assert!(chroma.classes(&[]).is_err());
        assert!(chroma.classes(&[0.0, f32::NAN]).is_err());
    }

    #[test]
    fn a_melody_is_mixed_resampled_and_truncated() {
        let chroma = small();
        let stereo = Sound { rate: 16_000, channels: vec![tone(220.0, 16_000), tone(220.0, 16_000)] };
        let melody = chroma.melody(stereo).unwrap();
        assert_eq!(melody.dims(), [1, 16, 12]);
        // 220 periods in 8000 samples are 440 Hz at 16 kHz.
        assert_eq!(melody.argmax(2).unwrap().to_vec2::<u32>().unwrap(), [[9; 16]]);
        let long = Sound { rate: 8000, channels: vec![tone(440.0, 31 * 8000)] };
        assert_eq!(chroma.melody(long).unwrap().dims(), [1, 1 + 30 * 8000 / 512, 12]);
    }

    #[test]
    fn missing_stems_are_named() {
        let three = Tensor::zeros((1, 3, 2, 4000), DType::F32, &Device::Cpu).unwrap();
        let error = small().features(&three, 8000).unwrap_err();
        assert_eq!(error.message(), "3 stems, expected stems with the indices [3, 2]");
    }

    #[test]
    fn invalid_configs_are_rejected() {
        let refuse = |json: &str| {
            let config: ChromaConfig = serde_json::from_str(json).unwrap();
            Chroma::new(&config).err().unwrap_or_else(|| panic!("{json} was accepted")).to_string()
        };
        assert!(refuse(r#"{"n_fft": 0}"#).contains("n_fft is 0"));
        assert!(refuse(r#"{"n_fft": 18446744073709551615}"#).contains("n_fft"));
        assert!(refuse(r#"{"hop_length": 0}"#).contains("hop_length"));
        assert!(refuse(r#"{"num_chroma": 0}"#).contains("num_chroma"));
        assert!(refuse(r#"{"sampling_rate": 0}"#).contains("0 Hz"));
        assert!(refuse(r#"{"chunk_length": 18446744073709551615}"#).contains("chunk_length"));
        assert!(refuse(r#"{"chunk_length": 0}"#).contains("chunk_length"));
    }
}
