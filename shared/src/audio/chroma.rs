//! Chroma: how loud each of the twelve pitch classes is over time, as MusicGen hears a melody.
//!
//! Copet et al. 2023, "Simple and Controllable Music Generation", section 2.4. Checked against transformers 5.23.0
//! `MusicgenMelodyFeatureExtractor`, whose settings [`ChromaConfig`] reads and whose steps [`Chroma::features`] takes:
//! a power spectrum, a filter bank of one band a pitch class, the loudest class of each frame.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::sinc::Sinc;
use super::spectrum::{FilterBank, MAX_WINDOW, Measure, Spectrum, SpectrumConfig};
use super::{check_rate, mono};
use crate::item::Sound;
use crate::{Error, Result};

/// `preprocessor_config.json` of a MusicGen with melody; what it leaves out is as in the official releases.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ChromaConfig {
    /// Samples a second, in Hz.
    pub sampling_rate: u32,
    /// Samples in a window.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop_length: usize,
    /// Pitch classes, C first.
    pub num_chroma: usize,
    /// The longest sound in seconds; what is beyond it is cut off.
    pub chunk_length: usize,
    /// Which stems of a separated sound carry the melody.
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

/// The pitch classes of a sound, frame by frame.
///
/// A sound of `n` samples has `1 + max(n, n_fft) / hop_length` frames, the first centred on its first sample; 30 s at
/// 32 kHz have 235. A sound shorter than a window is put in the middle of one.
///
/// ```
/// use fauna_shared::audio::chroma::{Chroma, ChromaConfig};
/// let chroma = Chroma::new(&ChromaConfig::default())?;
/// // Two seconds of concert pitch: every frame is an A, nine half-tones above C.
/// let a: Vec<f32> = (0..64_000).map(|i| (i as f32 * 440.0 / 32_000.0 * std::f32::consts::TAU).sin()).collect();
/// assert_eq!(chroma.classes(&a)?, [9; 16]);
/// assert_eq!(chroma.forward(&a)?.dims(), [16, 12]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct Chroma {
    config: ChromaConfig,
    spectrum: Spectrum,
    bank: FilterBank,
    /// The longest sound, in samples.
    longest: usize,
}

impl Chroma {
    /// Plans the spectrum and the filter bank.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) or [`Input`](crate::ErrorKind::Input) for sizes that are zero or
    /// absurd, naming the key.
    pub fn new(config: &ChromaConfig) -> Result<Self> {
        let ChromaConfig { sampling_rate, n_fft, hop_length, num_chroma, chunk_length, .. } = *config;
        check_rate(sampling_rate)?;
        if !(1..=256).contains(&num_chroma) {
            return Err(Error::unsupported(format!("num_chroma is {num_chroma}: 1 to 256 wanted")));
        }
        if num_chroma * n_fft.min(MAX_WINDOW) > 12 * MAX_WINDOW {
            return Err(Error::unsupported(format!(
                "num_chroma {num_chroma} with n_fft {n_fft} is too large"
            )));
        }
        let Some(longest) = chunk_length.checked_mul(sampling_rate as usize).filter(|longest| *longest > 0)
        else {
            return Err(Error::unsupported(format!("chunk_length is {chunk_length}")));
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

    /// The settings it was planned by.
    pub fn config(&self) -> &ChromaConfig {
        &self.config
    }

    /// Frames of a sound of `samples` samples.
    pub fn frames(&self, samples: usize) -> usize {
        self.spectrum.frames(samples.max(self.config.n_fft))
    }

    /// How loud each pitch class is, the loudest of a frame 1: `(frames, num_chroma)`. Silence is 0 throughout.
    ///
    /// `samples`: mono, at `sampling_rate`, all of them read however long.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for no sample, or one that is not finite.
    pub fn soft(&self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        if samples.is_empty() {
            return Err(Error::input("a melody without samples"));
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

    /// The loudest pitch class of each frame, 0 for C and for silence.
    ///
    /// # Errors
    /// As [`soft`](Self::soft).
    pub fn classes(&self, samples: &[f32]) -> Result<Vec<usize>> {
        Ok(self.soft(samples)?.iter().map(|row| argmax(row)).collect())
    }

    /// The loudest pitch class of each frame as a one among zeros: `(frames, num_chroma)`, float32 on the CPU.
    ///
    /// # Errors
    /// As [`soft`](Self::soft).
    pub fn forward(&self, samples: &[f32]) -> Result<Tensor> {
        let classes = self.classes(samples)?;
        let mut rows = vec![0f32; classes.len() * self.config.num_chroma];
        for (row, class) in rows.chunks_exact_mut(self.config.num_chroma).zip(&classes) {
            row[*class] = 1.0;
        }
        Ok(Tensor::from_vec(rows, (classes.len(), self.config.num_chroma), &Device::Cpu)?)
    }

    /// What the model is conditioned on by `melody`, any rate and any number of channels: mixed to mono, resampled,
    /// cut to `chunk_length` seconds; `(1, frames, num_chroma)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for a sound that [`check`](super::check) refuses.
    pub fn melody(&self, melody: Sound) -> Result<Tensor> {
        let rate = melody.rate;
        self.row(&mono(melody)?, rate)?.unsqueeze(0).map_err(Error::from)
    }

    /// The reference's call: `audio` `(samples)` or `(batch, samples)` of mono, `(batch, channels, samples)`, or what
    /// Demucs separates, `(batch, stems, channels, samples)`, at `rate` Hz, to `(batch, frames, num_chroma)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for another rank, a stem that is not there, or samples that
    /// [`soft`](Self::soft) refuses.
    pub fn features(&self, audio: &Tensor, rate: u32) -> Result<Tensor> {
        let audio = audio.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let mono = match audio.rank() {
            1 => audio.unsqueeze(0)?,
            2 => audio,
            3 => audio.mean(1)?,
            4 => self.stems(&audio)?.mean(1)?,
            rank => return Err(Error::input(format!("audio of {rank} axes: 1 to 4 wanted"))),
        };
        let rows = mono.to_vec2::<f32>()?;
        if rows.is_empty() {
            return Err(Error::input("audio without a row"));
        }
        let rows = rows.iter().map(|row| self.row(row, rate)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// The sum of the stems that carry the melody: `(batch, stems, channels, samples)` to `(batch, channels, samples)`.
    fn stems(&self, audio: &Tensor) -> Result<Tensor> {
        let found = audio.dim(1)?;
        let wanted = &self.config.stem_indices;
        if wanted.is_empty() || wanted.iter().any(|stem| *stem >= found) {
            return Err(Error::input(format!("{found} stems: stems {wanted:?} wanted")));
        }
        let stems = wanted.iter().map(|stem| audio.narrow(1, *stem, 1)?.squeeze(1));
        let stems = stems.collect::<candle_core::Result<Vec<_>>>()?;
        stems[1..].iter().try_fold(stems[0].clone(), |sum, stem| sum + stem).map_err(Error::from)
    }

    /// One row of the reference's batch: resampled by its own filter, then cut.
    fn row(&self, samples: &[f32], rate: u32) -> Result<Tensor> {
        let mut samples = Sinc::JULIUS.resample(samples, rate, self.config.sampling_rate)?;
        samples.truncate(self.longest);
        self.forward(&samples)
    }
}

/// The filter bank of librosa's `chroma`, tuned to 440 Hz: a bump for each pitch class at every octave of the bins,
/// each bin's weights of norm 1 before octaves far from the fifth are faded out. `(num_chroma, n_fft / 2 + 1)`.
fn chroma_bank(n_fft: usize, num_chroma: usize, rate: u32) -> FilterBank {
    /// The lowest A, in Hz: where octave 0 begins.
    const LOWEST: f64 = 440.0 / 16.0;
    /// The octave that counts most, and how many octaves away weights fall to `exp(-1/2)`.
    const CENTRE: f64 = 5.0;
    const REACH: f64 = 2.0;
    let classes = num_chroma as f64;
    let half = (classes / 2.0).round_ties_even();
    let bin_hz = f64::from(rate) / n_fft as f64;
    // The place of bin `k` in half-tones above the lowest A; the bin of 0 Hz is said to lie an octave and a half
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
        // The last of all n_fft bins has no next one.
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

/// Divides a frame by its loudest class, as long as that is heard at all.
fn loudest_is_one(mut frame: Vec<f32>) -> Vec<f32> {
    let loudest = frame.iter().fold(1e-6f32, |loudest, class| loudest.max(class.abs()));
    frame.iter_mut().for_each(|class| *class /= loudest);
    frame
}

/// The first of the largest.
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
    fn a_scale_is_heard_class_by_class() {
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
    fn a_melody_is_mixed_resampled_and_cut() {
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
    fn stems_that_are_not_there_are_named() {
        let three = Tensor::zeros((1, 3, 2, 4000), DType::F32, &Device::Cpu).unwrap();
        let error = small().features(&three, 8000).unwrap_err();
        assert_eq!(error.message(), "3 stems: stems [3, 2] wanted");
    }

    #[test]
    fn configs_that_make_no_sense_are_refused() {
        let refuse = |json: &str| {
            let config: ChromaConfig = serde_json::from_str(json).unwrap();
            Chroma::new(&config).err().unwrap_or_else(|| panic!("{json} was taken")).to_string()
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
