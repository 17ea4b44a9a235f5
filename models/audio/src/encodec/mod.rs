//! EnCodec: a neural audio codec at 24, 32 and 48 kHz.
//!
//! Défossez et al. 2022, "High Fidelity Neural Audio Compression" (arXiv 2210.13438); the 32 kHz codec was trained
//! for MusicGen (Copet et al. 2023, arXiv 2306.05284).
//! Checked against transformers `EncodecModel`, parity cases `tests/parity/encodec`.
//! Loads `model_type: "encodec"` and the files of the original releases. Audio is `(batch, samples, channels)`.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fauna_audio::encodec::{Config, Encodec};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//!
//! let config = Config { num_filters: 4, hidden_size: 16, codebook_size: 32, ..Config::default() };
//! let codec = Encodec::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let audio = Tensor::rand(-1f32, 1.0, (1, 24_000, 1), &Device::Cpu)?;
//! let encoded = codec.encode(&audio, Some(3.0))?;
//! assert_eq!(encoded.codes.dims(), [1, 1, 8, 75]); // windows, batch, codebooks, frames
//! assert_eq!(codec.decode(&encoded)?.dims(), [1, 24_000, 1]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod config;
mod loss;
mod overlap;
mod pipeline;
mod quantizer;
mod release;
mod seanet;

/// EnCodec at 24, 32 and 48 kHz.
pub static FAMILY: Family = Family {
    name: "encodec",
    systems: &["EnCodec"],
    paper: "Défossez et al. 2022, arXiv 2210.13438",
    model_types: &["encodec"],
    architectures: &["EncodecModel"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Sound, Modality::Codes],
    outputs: &[Modality::Codes, Modality::Sound, Modality::Vector],
    releases: &[
        Release::new("facebook/encodec_24khz", "EnCodec", "19M", "MIT (code)"),
        Release::new("facebook/encodec_32khz", "EnCodec", "58M", "CC-BY-NC-4.0"),
        Release::new("facebook/encodec_48khz", "EnCodec", "17M", "MIT (code)"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory: |pretrained| Ok(pretrained.load::<Encodec>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(EncodecPipeline::open(pretrained)?)),
    sample: || {
        json!({
            "architectures": ["EncodecModel"], "model_type": "encodec", "sampling_rate": 600, "audio_channels": 2,
            "target_bandwidths": [0.4, 0.8], "normalize": true, "chunk_length_s": 0.1, "overlap": 0.1,
            "hidden_size": 8, "num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [3, 2],
            "norm_type": "weight_norm", "kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3,
            "dilation_growth_rate": 2, "use_causal_conv": false, "pad_mode": "reflect", "compress": 2,
            "num_lstm_layers": 2, "trim_right_ratio": 1.0, "codebook_size": 16, "codebook_dim": 8,
            "use_conv_shortcut": true
        })
    },
};

#[cfg(test)]
mod tests;

use candle_core::{DType, Tensor};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, transfer};
use serde_json::json;

pub use config::{Config, NormType, Windows};
use overlap::OverlapAdd;
pub use pipeline::EncodecPipeline;
use quantizer::Quantizer;
pub use release::{layout, rename};
use seanet::{Seanet, State};

/// Epsilon added to a window's scale.
const SCALE_EPS: f64 = 1e-8;

/// The codec.
pub struct Encodec {
    config: Config,
    encoder: Seanet,
    quantizer: Quantizer,
    decoder: Seanet,
}

/// Encoded audio.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Codes, `(windows, batch, codebooks, frames)`, integers below [`Config::codebook_size`]; one window unless the
    /// config has [`windows`](Config::windows).
    pub codes: Tensor,
    /// Scale of each window, `(windows, batch, 1)`; only with [`Config::normalize`].
    pub scales: Option<Tensor>,
    /// Number of padding frames at the end of the last window.
    pub last_frame_pad_length: usize,
}

/// The state of streaming encoding or decoding.
#[derive(Debug, Clone)]
pub struct Stream(State);

impl Model for Encodec {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let encoder = Seanet::encoder(&config, &w.at("encoder"))?;
        let quantizer = Quantizer::load(&config, &w.at("quantizer"))?;
        let decoder = Seanet::decoder(&config, &w.at("decoder"))?;
        Ok(Self { encoder, quantizer, decoder, config })
    }
}

impl Encodec {
    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Encodes `sound`, `(batch, samples, channels)` in -1 to 1 at [`Config::sampling_rate`]. The number of codebooks
    /// follows from `bandwidth` in kbit/s, by default the lowest.
    ///
    /// The last but one window is padded with zeros if the last window begins before its end.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for another number of channels, no samples, samples that are not
    /// finite, or a bandwidth that is not a target bandwidth.
    pub fn encode(&self, sound: &Tensor, bandwidth: Option<f64>) -> Result<Encoded> {
        self.check_sound(sound)?;
        let quantizers = self.config.quantizers_for(bandwidth)?;
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for window in self.windows(sound)? {
            let (window, scale) = self.normalized(&window)?;
            scales.extend(scale);
            codes.push(self.encode_window(&window, quantizers)?);
        }
        let frames = |codes: Option<&Tensor>| codes.map_or(Ok(0), |codes| codes.dim(2));
        let last_frame_pad_length = frames(codes.first())? - frames(codes.last())?;
        if let Some(last) = codes.last_mut() {
            *last = last.pad_with_zeros(2, 0, last_frame_pad_length)?;
        }
        Ok(Encoded {
            codes: Tensor::stack(&codes, 0)?,
            scales: if scales.is_empty() { None } else { Some(Tensor::stack(&scales, 0)?) },
            last_frame_pad_length,
        })
    }

    /// Decodes `encoded` to audio, `(batch, samples, channels)`. The length is a whole number of frames: up to one
    /// frame more than was encoded.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for shapes that do not match, more codebooks than the codec has, or a
    /// code outside the codebook.
    pub fn decode(&self, encoded: &Encoded) -> Result<Tensor> {
        let (windows, batch, quantizers, frames) = encoded.codes.dims4().map_err(|_| {
            let found = encoded.codes.dims();
            Error::input(format!(
                "codes have the shape {found:?}, expected (windows, batch, codebooks, frames)"
            ))
        })?;
        if windows == 0 || encoded.last_frame_pad_length >= frames {
            return Err(Error::input(format!(
                "{windows} windows of {frames} frames with {} padding frames have no audio",
                encoded.last_frame_pad_length
            )));
        }
        if let Some(scales) = &encoded.scales
            && scales.elem_count() != windows * batch
        {
            return Err(Error::input(format!(
                "scales have the shape {:?}, expected (windows, batch, 1) = {:?}",
                scales.dims(),
                [windows, batch, 1]
            )));
        }
        let stride = match self.config.windows() {
            Some(windows) => windows.stride,
            None if windows == 1 => 0,
            None => {
                return Err(Error::input(format!("{windows} windows of codes, expected one for this codec")));
            }
        };
        let codes = encoded.codes.reshape((windows * batch, quantizers, frames))?;
        let codes = self.checked(&codes)?.reshape((windows, batch, quantizers, frames))?;
        let mut sound = OverlapAdd::new(stride);
        for window in 0..windows {
            let padding = if window + 1 == windows { encoded.last_frame_pad_length } else { 0 };
            let codes = codes.get(window)?.narrow(2, 0, frames - padding)?;
            let mut made = self.decoder.forward(&self.quantizer.decode(&codes)?)?;
            if let Some(scales) = &encoded.scales {
                let scale = scales.get(window)?.reshape((batch, 1, 1))?;
                made = made.broadcast_mul(&scale.to_device(made.device())?.to_dtype(made.dtype())?)?;
            }
            match self.config.windows() {
                Some(_) => sound.add(&made)?,
                None => return Ok(made),
            }
        }
        sound.finish()
    }

    /// Decodes one window of codes, `(batch, codebooks, frames)` of integers, to audio, `(batch, frames * hop,
    /// channels)`, without scales. `codebooks` may be fewer than the codec's.
    ///
    /// # Errors
    /// As [`decode`](Encodec::decode).
    pub fn decode_codes(&self, codes: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&self.quantizer.decode(&self.checked(codes)?)?)
    }

    /// Returns the latents of `sound` before quantization, `(batch, frames, hidden_size)`, the windows concatenated.
    ///
    /// # Errors
    /// As [`encode`](Encodec::encode).
    pub fn latents(&self, sound: &Tensor) -> Result<Tensor> {
        self.check_sound(sound)?;
        let latents = |window: Tensor| self.encoder.forward(&self.normalized(&window)?.0);
        let windows = self.windows(sound)?.into_iter().map(latents).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&windows, 1)?)
    }

    /// Encodes and decodes `sound`, `(batch, samples, channels)`, as one window without normalization, for training: the
    /// decoded sound of the same shape, whose gradient reaches the encoder, and the commitment loss.
    ///
    /// # Errors
    /// As [`encode`](Encodec::encode).
    fn learn(&self, sound: &Tensor, bandwidth: Option<f64>) -> Result<(Tensor, Tensor)> {
        self.check_sound(sound)?;
        let quantizers = self.config.quantizers_for(bandwidth)?;
        let (latents, commitment) = self.quantizer.learn(&self.encoder.forward(sound)?, quantizers)?;
        let made = self.decoder.forward(&latents)?;
        Ok((made.narrow(1, 0, sound.dim(1)?)?, commitment))
    }

    /// Starts streaming encoding.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for codecs that cannot stream: with windows, normalization
    /// of the audio, or norms over time.
    pub fn encode_stream(&self) -> Result<Stream> {
        self.check_streams()?;
        Ok(Stream(self.encoder.start()))
    }

    /// Encodes the next samples of a stream, `(batch, samples, channels)`; returns the codes that are complete,
    /// `(batch, codebooks, frames)`, if any. With those of [`encode_rest`](Encodec::encode_rest) they equal the codes
    /// of [`encode`](Encodec::encode).
    ///
    /// # Errors
    /// As [`encode`](Encodec::encode).
    pub fn encode_next(
        &self,
        sound: &Tensor,
        bandwidth: Option<f64>,
        stream: &mut Stream,
    ) -> Result<Option<Tensor>> {
        self.check_sound(sound)?;
        self.encode_piece(Some(sound), bandwidth, stream)
    }

    /// Ends streaming encoding; returns the remaining codes, `(batch, codebooks, frames)`, if any.
    ///
    /// # Errors
    /// As [`encode`](Encodec::encode).
    pub fn encode_rest(&self, bandwidth: Option<f64>, mut stream: Stream) -> Result<Option<Tensor>> {
        self.encode_piece(None, bandwidth, &mut stream)
    }

    fn encode_piece(
        &self,
        sound: Option<&Tensor>,
        bandwidth: Option<f64>,
        stream: &mut Stream,
    ) -> Result<Option<Tensor>> {
        let quantizers = self.config.quantizers_for(bandwidth)?;
        let latents = self.encoder.push(sound, sound.is_none(), &mut stream.0)?;
        latents.map(|latents| self.quantizer.encode(&latents, quantizers)).transpose()
    }

    /// Starts streaming decoding.
    ///
    /// # Errors
    /// As [`encode_stream`](Encodec::encode_stream).
    pub fn decode_stream(&self) -> Result<Stream> {
        self.check_streams()?;
        Ok(Stream(self.decoder.start()))
    }

    /// Decodes the next codes of a stream, `(batch, codebooks, frames)`; returns the samples that are complete,
    /// `(batch, samples, channels)`, if any. With those of [`decode_rest`](Encodec::decode_rest) they equal the output
    /// of [`decode_codes`](Encodec::decode_codes), up to rounding, without overlap or repeated computation. After the
    /// first seven frames, the causal 24 kHz codec has no latency, the non-causal 32 kHz codec a latency of four
    /// frames.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// # use fauna_audio::encodec::{Config, Encodec};
    /// # use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
    /// # let config = Config { num_filters: 4, hidden_size: 16, codebook_size: 32, ..Config::default() };
    /// # let codec = Encodec::load(config, &Weights::seeded(1, Runtime::cpu()))?;
    /// let mut stream = codec.decode_stream()?;
    /// let mut samples = 0;
    /// for _ in 0..5 {
    ///     let codes = Tensor::ones((1, 8, 10), DType::I64, &Device::Cpu)?; // batch, codebooks, frames
    ///     samples += codec.decode_next(&codes, &mut stream)?.map_or(0, |sound| sound.dims()[1]);
    /// }
    /// samples += codec.decode_rest(stream)?.map_or(0, |sound| sound.dims()[1]);
    /// assert_eq!(samples, 50 * codec.config().hop_length());
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`decode`](Encodec::decode).
    pub fn decode_next(&self, codes: &Tensor, stream: &mut Stream) -> Result<Option<Tensor>> {
        let frames = self.quantizer.decode(&self.checked(codes)?)?;
        self.decoder.push(Some(&frames), false, &mut stream.0)
    }

    /// Ends streaming decoding; returns the remaining samples, `(batch, samples, channels)`, if any.
    ///
    /// # Errors
    /// As [`decode`](Encodec::decode).
    pub fn decode_rest(&self, mut stream: Stream) -> Result<Option<Tensor>> {
        self.decoder.push(None, true, &mut stream.0)
    }

    /// Splits `sound` into windows.
    fn windows(&self, sound: &Tensor) -> Result<Vec<Tensor>> {
        let samples = sound.dim(1)?;
        let Some(Windows { length, stride }) = self.config.windows() else {
            return Ok(vec![sound.clone()]);
        };
        let last = (samples - 1) / stride * stride;
        // Only the last window may be shorter, as the codes of all windows are stacked.
        let full = if last == 0 { samples } else { samples.max(last - stride + length) };
        let sound = sound.pad_with_zeros(1, 0, full - samples)?;
        let window = |start: usize| Ok(sound.narrow(1, start, length.min(full - start))?);
        (0..=last).step_by(stride).map(window).collect()
    }

    /// Normalizes `window` to unit RMS, and returns the scale, `(batch, 1)`; returns it unchanged without
    /// [`Config::normalize`].
    fn normalized(&self, window: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        if !self.config.normalize {
            return Ok((window.clone(), None));
        }
        let mono = window.mean(2)?;
        let scale = (mono.sqr()?.mean_keepdim(1)?.sqrt()? + SCALE_EPS)?;
        Ok((window.broadcast_div(&scale.unsqueeze(2)?)?, Some(scale)))
    }

    /// Encodes one window, `(batch, samples, channels)`, to `(batch, codebooks, frames)`.
    fn encode_window(&self, window: &Tensor, quantizers: usize) -> Result<Tensor> {
        self.quantizer.encode(&self.encoder.forward(window)?, quantizers)
    }

    fn check_streams(&self) -> Result<()> {
        let config = &self.config;
        match config.streams() && config.windows().is_none() && !config.normalize {
            true => Ok(()),
            false => Err(Error::unsupported("this codec does not stream")
                .hint("use encode and decode; the codecs at 24 and 32 kHz stream")),
        }
    }

    fn check_sound(&self, sound: &Tensor) -> Result<()> {
        let channels = self.config.audio_channels;
        match sound.dims() {
            [_, 0, _] | [0, ..] => return Err(Error::input("the audio has no samples")),
            [_, _, found] if *found == channels => {}
            [_, _, found] => return Err(wrong_channels(*found, channels)),
            found => {
                return Err(Error::input(format!(
                    "the audio has the shape {found:?}, expected (batch, samples, channels)"
                )));
            }
        }
        // The sum of x * 0 is 0 unless a sample is not finite; it is computed on the device.
        let zeros = (sound.to_dtype(DType::F32)? * 0.0)?;
        if transfer::to_host::<f32>(&zeros.sum_all()?)?.iter().all(|sum| *sum == 0.0) {
            return Ok(());
        }
        let values: Vec<f32> = transfer::to_host(&sound.to_dtype(DType::F32)?)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let sample = at / channels % sound.dim(1)?;
                Err(Error::input(format!("sample {sample} is {}, expected a finite number", values[at])))
            }
        }
    }

    /// Checks `codes`, `(batch, codebooks, frames)`, and returns them as u32 on the codec's device.
    fn checked(&self, codes: &Tensor) -> Result<Tensor> {
        let (size, quantizers) = (self.config.codebook_size, self.config.num_quantizers());
        let found = codes.dims();
        match found {
            [batch, books, frames] if *batch > 0 && *frames > 0 && (1..=quantizers).contains(books) => {}
            [_, books, _] if *books > quantizers => {
                return Err(Error::input(format!("{books} codebooks, but the codec has {quantizers}")));
            }
            _ => {
                return Err(Error::input(format!(
                    "codes have the shape {found:?}, expected (batch, codebooks, frames), not empty"
                )));
            }
        }
        if !codes.dtype().is_int() {
            return Err(Error::input(format!("codes have the type {:?}, expected integers", codes.dtype())));
        }
        let flat: Vec<i64> = transfer::to_host(&codes.to_dtype(DType::I64)?)?;
        if let Some(code) = flat.iter().find(|code| !(0..size as i64).contains(*code)) {
            return Err(Error::input(format!("code {code} is outside the codebook of {size} codes")));
        }
        let flat: Vec<u32> = flat.into_iter().map(|code| code as u32).collect();
        Ok(Tensor::from_vec(flat, found, self.quantizer.device())?)
    }
}

/// The error for another number of channels than the codec's.
fn wrong_channels(found: usize, expected: usize) -> Error {
    let plural = if found == 1 { "" } else { "s" };
    Error::input(format!("the audio has {found} channel{plural}, expected {expected}"))
}
