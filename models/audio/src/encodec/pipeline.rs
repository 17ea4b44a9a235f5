//! The pipeline of EnCodec: audio to codes, codes to audio, audio embeddings.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio::{self, sinc::Sinc};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Sound, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, Trainable, TrainingBatch, only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::{Modules, Name, Weights};
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::labelled::not_learned;
use serde_json::Value;

use super::loss::{LossOptions, mel_loss};
use super::{Encodec, Encoded, rename};
use crate::spectra::{crop, mean_absolute};

/// The tensors of encoded audio: the reference's, and `sampling_rate` and `length`, which restore the original length.
const CODES: [&str; 5] = ["audio_codes", "audio_scales", "last_frame_pad_length", "sampling_rate", "length"];

/// The codec with its settings.
pub struct EncodecPipeline {
    network: Encodec,
    device: Device,
    /// Bandwidth in kbit/s; the lowest if `None`.
    bandwidth: Option<f64>,
    card: Card,
}

impl EncodecPipeline {
    /// Opens a checkpoint. Settings: `bandwidth`, in kbit/s, for encoding.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<Encodec>()?;
        let settings = Value::Object(pretrained.options.settings.clone());
        let bandwidth = bandwidth(&settings)?;
        network.config().quantizers_for(bandwidth)?;
        Ok(Self {
            card: pretrained.card(&pretrained.architecture("EncodecModel"), &inventory),
            device: pretrained.weights.runtime().device().clone(),
            bandwidth,
            network,
        })
    }

    /// The network.
    pub fn network(&self) -> &Encodec {
        &self.network
    }

    /// Converts `sound` to the codec's channels, then to its sampling rate, as in the original program:
    /// `(1, samples, channels)`.
    fn resampled(&self, sound: &Sound) -> Result<Tensor> {
        let config = self.network.config();
        let rate = u32::try_from(config.sampling_rate).unwrap_or(u32::MAX);
        let sound = audio::with_channels(sound.clone(), config.audio_channels)?;
        let channels =
            sound.channels.iter().map(|samples| Sinc::TORCHAUDIO.resample(samples, sound.rate, rate));
        let channels = channels.collect::<Result<Vec<_>>>()?;
        let shape = (1, channels.len(), channels.first().map_or(0, Vec::len));
        Ok(Tensor::from_vec(channels.concat(), shape, &self.device)?.transpose(1, 2)?.contiguous()?)
    }

    /// Encodes `sound`; also returns its sampling rate and length.
    fn encode_sound(&self, sound: &Sound) -> Result<Tensors> {
        let sound = self.resampled(sound)?;
        let mut codes = named(self.network.encode(&sound, self.bandwidth)?)?;
        for (name, number) in
            [("sampling_rate", self.network.config().sampling_rate), ("length", sound.dim(1)?)]
        {
            codes.insert(name.into(), Tensor::new(&[number as i64], &Device::Cpu)?);
        }
        Ok(codes)
    }

    /// Decodes codes, one sound per batch element.
    fn decode_codes(&self, codes: &Tensors) -> Result<Vec<Sound>> {
        only_known(codes, &CODES)?;
        let rate = self.network.config().sampling_rate;
        if let Some(of) = number(codes, "sampling_rate")?.filter(|of| *of != rate) {
            return Err(Error::input(format!(
                "the codes are of a codec at {of} Hz, this codec is at {rate} Hz"
            )));
        }
        let sound =
            self.network.decode(&encoded(codes, None)?)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let samples = sound.dim(1)?;
        let length = number(codes, "length")?.unwrap_or(samples).min(samples);
        let sound = sound.narrow(1, 0, length)?.transpose(1, 2)?;
        let channels = |entry: usize| transfer::rows::<f32>(&sound.get(entry)?);
        let sounds =
            (0..sound.dim(0)?).map(|entry| Ok(Sound { rate: rate as u32, channels: channels(entry)? }));
        sounds.collect()
    }

    /// The reference's `encode`.
    fn encode_values(&self, inputs: &Tensors, options: &Value) -> Result<Encoded> {
        let sound = masked(values(inputs, "input_values")?, inputs.get("padding_mask"))?;
        // The reference's layout is channels first.
        let sound = sound.transpose(1, 2)?.contiguous()?.to_device(&self.device)?;
        self.network.encode(&sound, bandwidth(options)?.or(self.bandwidth))
    }

    /// The reference's `decode`: audio, `(batch, channels, samples)`, truncated to the length of the mask.
    fn decode_values(&self, encoded: &Encoded, mask: Option<&Tensor>) -> Result<Tensor> {
        let sound = self.network.decode(encoded)?.transpose(1, 2)?;
        let samples = sound.dim(2)?;
        let length = mask.and_then(|mask| mask.dims().last()).map_or(samples, |length| samples.min(*length));
        Ok(sound.narrow(2, 0, length)?.contiguous()?)
    }
}

impl EncodecPipeline {
    /// Returns one embedding per sound: the mean over time of the latents before quantization.
    pub fn embed_sounds(&self, batch: &[Sound]) -> Result<Embeddings> {
        let row = |sound: &Sound| Ok(self.network.latents(&self.resampled(sound)?)?.mean(1)?);
        let rows = batch.iter().map(row).collect::<Result<Vec<_>>>()?;
        let rows = Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(Embeddings::new(rows, vec![0; batch.len()]))
    }
}

impl Trainable for EncodecPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = Encodec::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The loss of the reconstruction of `input_values`, `(batch, channels, samples)`, as one window without
    /// normalization, without a discriminator: the weighted sum of the unweighted parts `loss_time`, `loss_mel` and
    /// `loss_commitment`. The codebooks are not trained.
    ///
    /// Options: `bandwidth` in kbit/s; `lambda_time`, `lambda_mel`, `lambda_commitment`; `mel_windows`, `mel_bins`,
    /// `mel_low` in Hz, `mel_floor`.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        only_known(inputs, &["input_values"])?;
        let options = LossOptions::of(options)?;
        let sound = values(inputs, "input_values")?.transpose(1, 2)?.contiguous()?.to_device(&self.device)?;
        let (made, commitment) = self.network.learn(&sound, options.bandwidth.or(self.bandwidth))?;
        let time = mean_absolute(&made, &sound)?;
        let mel = mel_loss(&made, &sound, &options, self.network.config().sampling_rate)?;
        let sum = ((&time * options.lambda_time)? + (&mel * options.lambda_mel)?)?;
        let sum = (sum + (&commitment * options.lambda_commitment)?)?;
        Ok(Loss::mean(sum, sound.dim(0)? as f64)
            .with_part("loss_time", time)
            .with_part("loss_mel", mel)
            .with_part("loss_commitment", commitment))
    }

    /// A random second of each sound, or `max_length` frames.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let config = self.network.config();
        let rate = config.sampling_rate as f64;
        let seconds = match options.max_length {
            Some(frames) => (frames.max(1) * config.hop_length()) as f64 / rate,
            None => 1.0,
        };
        let (mut rows, mut truncated) = (Vec::new(), 0);
        for (example, stream) in examples.iter().zip(0..) {
            let Example::Sound { sound, .. } = example else { return Err(not_learned(example, "sound")) };
            let samples = self.resampled(sound)?.to_device(&Device::Cpu)?.squeeze(0)?;
            let channels = transfer::rows(&samples.t()?.to_dtype(DType::F32)?)?;
            let whole = Sound { rate: config.sampling_rate as u32, channels };
            let (piece, left) = crop(&whole, seconds, options.seed, stream);
            truncated += left;
            rows.push(Tensor::new(piece.channels, &Device::Cpu)?);
        }
        if rows.is_empty() {
            return Err(Error::input("no sounds to learn from"));
        }
        let named = [("input_values".to_string(), Tensor::stack(&rows, 0)?)];
        let mut batch = TrainingBatch::new(Tensors::from(named));
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Err(self.cannot("train a head alone: a codec has none"))
    }

    fn modules(&self) -> Modules {
        Arc::new(|name| match rename(&format!("{name}.weight")) {
            Name::To(name) => name.strip_suffix(".weight").map_or(name.clone(), str::to_string),
            _ => name.to_string(),
        })
    }
}

impl Pipeline for EncodecPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.call("forward", inputs, &Value::Null)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let (sound, mask) = ("input_values", "padding_mask");
        match method {
            "encode" => {
                only_known(inputs, &[sound, mask])?;
                named(self.encode_values(inputs, options)?)
            }
            "decode" => {
                only_known(inputs, &["audio_codes", "audio_scales", "last_frame_pad_length", mask])?;
                let values = self.decode_values(&encoded(inputs, Some(options))?, inputs.get(mask))?;
                Ok(Tensors::from([("audio_values".to_string(), values)]))
            }
            "forward" => {
                only_known(inputs, &[sound, mask])?;
                let encoded = self.encode_values(inputs, options)?;
                // Without a mask the length is that of the input.
                let values = self.decode_values(&encoded, inputs.get(mask).or(inputs.get(sound)))?;
                let mut out = named(encoded)?;
                out.insert("audio_values".into(), values);
                Ok(out)
            }
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let sounds = items.iter().map(|item| match item {
            Item::Sound(sound) => Ok(sound.clone()),
            other => Err(Error::input(format!("this model takes audio, not {}", other.modality()))),
        });
        self.embed_sounds(&sounds.collect::<Result<Vec<_>>>()?)
    }

    fn generate(
        &self,
        prompt: &Prompt,
        _: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let Prompt::Items(items) = prompt else {
            return Err(
                Error::input("a codec takes no conversation").hint("give it a sound, or the codes of one")
            );
        };
        match items.as_slice() {
            [Item::Sound(sound)] => {
                let _ = each(Item::Codes(self.encode_sound(sound)?));
            }
            [Item::Codes(codes)] => {
                for sound in self.decode_codes(codes)? {
                    if each(Item::Sound(sound)).is_break() {
                        break;
                    }
                }
            }
            items => {
                let found: Vec<String> = items.iter().map(|item| item.modality().to_string()).collect();
                let found = if found.is_empty() { "nothing".to_string() } else { found.join(", ") };
                return Err(Error::input(format!("expected one sound, or the codes of one, not {found}")));
            }
        }
        Ok(Generation::default())
    }
}

/// Encoded audio under the reference's names, integers as int64.
fn named(encoded: Encoded) -> Result<Tensors> {
    let padding = encoded.last_frame_pad_length as i64;
    let mut out = Tensors::from([
        ("audio_codes".to_string(), encoded.codes.to_dtype(DType::I64)?),
        ("last_frame_pad_length".to_string(), Tensor::new(&[padding], &Device::Cpu)?),
    ]);
    out.extend(encoded.scales.map(|scales| ("audio_scales".to_string(), scales)));
    Ok(out)
}

/// Encoded audio from tensors with the reference's names.
fn encoded(inputs: &Tensors, options: Option<&Value>) -> Result<Encoded> {
    let codes = inputs.get("audio_codes").ok_or_else(|| Error::input("audio_codes are missing"))?;
    let given =
        match options.map(|options| &options["last_frame_pad_length"]) {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_u64().ok_or_else(|| {
                Error::input(format!("last_frame_pad_length is {value}, expected an integer"))
            })? as usize),
        };
    Ok(Encoded {
        codes: codes.clone(),
        scales: inputs.get("audio_scales").cloned(),
        last_frame_pad_length: given.or(number(inputs, "last_frame_pad_length")?).unwrap_or(0),
    })
}

/// The value of the one-element tensor `name`, if present.
fn number(inputs: &Tensors, name: &str) -> Result<Option<usize>> {
    let Some(tensor) = inputs.get(name) else { return Ok(None) };
    let numbers: Vec<i64> = transfer::to_host(&tensor.to_dtype(DType::I64)?)?;
    match numbers[..] {
        [number] if number >= 0 => Ok(Some(number as usize)),
        _ => Err(Error::input(format!("{name} is {numbers:?}, expected one number, 0 or above"))),
    }
}

pub(super) fn bandwidth(options: &Value) -> Result<Option<f64>> {
    match &options["bandwidth"] {
        Value::Null => Ok(None),
        value => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| Error::input(format!("bandwidth is {value}, expected a number in kbit/s"))),
    }
}

/// The audio input `name`, `(batch, channels, samples)`.
fn values<'a>(inputs: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    let values = inputs.get(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
    match values.rank() {
        3 => Ok(values),
        _ => Err(Error::input(format!(
            "{name} have the shape {:?}, expected (batch, channels, samples)",
            values.dims()
        ))),
    }
}

/// Sets `values`, `(batch, channels, samples)`, to zero where `mask`, of the same shape, `(batch, 1, samples)` or
/// `(batch, samples)`, is 0.
fn masked(values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let Some(mask) = mask else { return Ok(values.clone()) };
    let (batch, channels, samples) = values.dims3()?;
    let mask = match *mask.dims() {
        [b, s] if (b, s) == (batch, samples) => mask.unsqueeze(1)?,
        [b, c, s] if (b, s) == (batch, samples) && (c == 1 || c == channels) => mask.clone(),
        ref found => {
            return Err(Error::input(format!(
                "padding_mask has the shape {found:?}, input_values have {:?}",
                values.dims()
            )));
        }
    };
    Ok(values.broadcast_mul(&mask.ne(0i64)?.to_dtype(values.dtype())?)?)
}
