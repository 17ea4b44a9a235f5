//! Audio features of the prior's hidden states, as in LLark and jukemir.
//!
//! Castellon et al. 2021, section 3; Gardner et al. 2023, section 3. Preprocessing: mono at the prior's
//! sampling rate, peak-normalized, zero-padded or truncated to one window.

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio;
use fauna_shared::{Error, Result, transfer};

use super::{Jukebox, Labels};

/// The features of audio.
#[derive(Debug, Clone)]
pub struct JukeboxFeatures {
    /// The codes of the window, `(n_ctx)` of u32, padding included.
    pub music_tokens: Vec<u32>,
    /// Hidden states of the codes, `(codes, prior_width)`, without padding.
    pub activations: Tensor,
}

impl Jukebox {
    /// Sampling rate in Hz.
    pub fn rate(&self) -> u32 {
        self.hps.rate
    }

    /// Samples per window of the prior: 1,048,576 in the release, 23.8 seconds.
    ///
    /// # Errors
    /// As [`prior`](Jukebox::prior).
    pub fn window(&self) -> Result<usize> {
        Ok(self.prior()?.n_ctx() * self.vqvae().hop(self.level()))
    }

    /// The level of the prior's codes.
    pub(super) fn level(&self) -> usize {
        self.hps.prior.as_ref().map_or(0, |prior| prior.level)
    }

    /// Computes the features after `layers` layers of the prior, of mono `samples` at [`rate`](Jukebox::rate),
    /// truncated to one window.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for samples that are not finite, or fewer than one code has.
    pub fn listen(&self, samples: &[f32], layers: usize) -> Result<JukeboxFeatures> {
        audio::check_finite(samples)?;
        let (prior, window) = (self.prior()?, self.window()?);
        let codes = prior.n_ctx();
        // At most one window of codes.
        let of_sound = (codes as u128 * samples.len() as u128 / window as u128).min(codes as u128) as usize;
        if of_sound == 0 {
            return Err(Error::input(format!(
                "{} samples, expected at least {} at {} Hz",
                samples.len(),
                window / codes,
                self.rate()
            )));
        }
        let loudest = samples.iter().fold(0f32, |loudest, sample| loudest.max(sample.abs()));
        let scale = |sample: &f32| if loudest > 0.0 { sample / loudest } else { *sample };
        let mut padded: Vec<f32> = samples.iter().take(window).map(scale).collect();
        padded.resize(window, 0.0);

        let device = prior.device();
        let sound = Tensor::from_vec(padded, (1, window, 1), &Device::Cpu)?.to_device(device)?;
        let sound = sound.expand((1, window, self.vqvae().channels()))?.contiguous()?;
        let music_tokens: Vec<u32> = transfer::to_host(&self.vqvae().encode(self.level(), &sound)?)?;
        drop(sound);
        let (x_cond, y_cond) = prior.condition(&self.unknown()?)?;
        let states = prior.hidden(&music_tokens, &x_cond, &y_cond, layers)?;
        let activations = states.narrow(0, 0, of_sound)?.to_dtype(DType::F32)?;
        Ok(JukeboxFeatures { music_tokens, activations })
    }

    /// The metadata of an unknown song.
    pub fn unknown(&self) -> Result<Labels> {
        self.prior()?;
        let hop = self.vqvae().hop(self.level());
        Ok(self.hps.prior.as_ref().map_or(Labels(Vec::new()), |prior| Labels::unknown(prior, hop)))
    }

    /// Average-pools `activations`, `(codes, prior_width)`, to about `per_second` frames per second, `(frames,
    /// prior_width)`; an incomplete last frame is dropped. At LLark's 10 Hz, a frame of the release is 34 codes, and a
    /// window 240 frames. `per_second` 0 returns the mean of all codes, `(prior_width)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there are fewer codes than one frame has, or the frame rate is
    /// above that of the codes.
    pub fn pool(&self, activations: &Tensor, per_second: f64) -> Result<Tensor> {
        if per_second == 0.0 {
            return Ok(activations.mean(0)?);
        }
        let (codes, width) = activations.dims2()?;
        let codes_per_second =
            self.prior()?.n_ctx() as f64 / (self.window()? as f64 / f64::from(self.rate()));
        let run = (codes_per_second / per_second).floor();
        if !(run >= 1.0 && per_second > 0.0) {
            return Err(Error::input(format!(
                "{per_second} frames per second: expected at most {codes_per_second}, or 0 for the mean of all"
            )));
        }
        let run = run as usize;
        let frames = codes / run;
        if frames == 0 {
            return Err(Error::input(format!(
                "the audio is too short: it has {codes} codes, a frame has {run}, {:.2} seconds",
                run as f64 / codes_per_second
            )));
        }
        Ok(activations.narrow(0, 0, frames * run)?.reshape((frames, run, width))?.mean(1)?)
    }
}
