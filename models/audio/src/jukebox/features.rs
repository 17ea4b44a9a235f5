//! From a sound to features: LLark's recipe, and before it jukemir's.
//!
//! Castellon et al. 2021, section 3; Gardner et al. 2023, section 3. Everything before the prior is part of the
//! model: mono at the prior's rate, the loudest sample at 1, silence up to one window, the rest cut.

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio;
use fauna_shared::{Error, Result};

use super::{Jukebox, Labels};

/// What the prior made of a sound.
#[derive(Debug, Clone)]
pub struct JukeboxFeatures {
    /// The codes of the window, `(n_ctx)` of u32; silence after the sound's end included.
    pub music_tokens: Vec<u32>,
    /// A state for each code of the sound, `(codes, width)`; none for what was silence added.
    pub activations: Tensor,
}

impl Jukebox {
    /// Samples a second of what it hears and makes, in Hz.
    pub fn rate(&self) -> u32 {
        self.hps.rate
    }

    /// Samples in the prior's window: 1,048,576 in the released one, 23.8 seconds.
    ///
    /// # Errors
    /// As [`prior`](Jukebox::prior).
    pub fn window(&self) -> Result<usize> {
        Ok(self.prior()?.n_ctx() * self.vqvae().hop(self.level()))
    }

    /// The level whose codes the prior reads.
    fn level(&self) -> usize {
        self.hps.prior.as_ref().map_or(0, |prior| prior.level)
    }

    /// The states after `layers` layers of the prior, of mono `samples` at [`rate`](Jukebox::rate). What is past one
    /// window is not heard.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for samples that are no numbers, or fewer than one code takes.
    pub fn listen(&self, samples: &[f32], layers: usize) -> Result<JukeboxFeatures> {
        audio::check_finite(samples)?;
        let (prior, window) = (self.prior()?, self.window()?);
        let codes = prior.n_ctx();
        // Of a long sound the window's codes are all there are.
        let of_sound = (codes as u128 * samples.len() as u128 / window as u128).min(codes as u128) as usize;
        if of_sound == 0 {
            return Err(Error::input(format!(
                "{} samples: a sound of at least {} at {} Hz is wanted",
                samples.len(),
                window / codes,
                self.rate()
            )));
        }
        let loudest = samples.iter().fold(0f32, |loudest, sample| loudest.max(sample.abs()));
        let scale = |sample: &f32| if loudest > 0.0 { sample / loudest } else { *sample };
        let mut heard: Vec<f32> = samples.iter().take(window).map(scale).collect();
        heard.resize(window, 0.0);

        let device = prior.device();
        let sound = Tensor::from_vec(heard, (1, window, 1), &Device::Cpu)?.to_device(device)?;
        let sound = sound.expand((1, window, self.vqvae().channels()))?.contiguous()?;
        let music_tokens: Vec<u32> = self.vqvae().encode(self.level(), &sound)?.flatten_all()?.to_vec1()?;
        drop(sound);
        let (x_cond, y_cond) = prior.condition(&self.unknown()?)?;
        let states = prior.hidden(&music_tokens, &x_cond, &y_cond, layers)?;
        let activations = states.narrow(0, 0, of_sound)?.to_dtype(DType::F32)?;
        Ok(JukeboxFeatures { music_tokens, activations })
    }

    /// The labels of an unknown song.
    pub fn unknown(&self) -> Result<Labels> {
        self.prior()?;
        let hop = self.vqvae().hop(self.level());
        Ok(self.hps.prior.as_ref().map_or(Labels(Vec::new()), |prior| Labels::unknown(prior, hop)))
    }

    /// The means of `activations`, `(codes, width)`, over runs of codes that make about `per_second` frames a second:
    /// `(frames, width)`, what is left of the last run dropped. Of the released prior at LLark's 10 a second, a run
    /// is 34 codes, and a full window 240 frames. 0 a second is the mean of everything, `(width)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there are fewer codes than one run, or more frames than codes
    /// are asked for.
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
                "{per_second} frames a second: more than 0 and at most {codes_per_second} are wanted, or 0 for one in all"
            )));
        }
        let run = run as usize;
        let frames = codes / run;
        if frames == 0 {
            return Err(Error::input(format!(
                "a sound of {codes} codes is too short: a frame is the mean of {run}, {:.2} seconds",
                run as f64 / codes_per_second
            )));
        }
        Ok(activations.narrow(0, 0, frames * run)?.reshape((frames, run, width))?.mean(1)?)
    }
}
