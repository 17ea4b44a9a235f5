//! EnCodec as a pipeline: sounds to codes, codes to sounds, sounds to vectors.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio::{self, sinc::Sinc};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Sound, Tensors};
use fauna_shared::model::{Card, Pipeline, Pretrained, only_known};
use fauna_shared::{Error, Result};
use serde_json::Value;

use super::{Encodec, Encoded};

/// Names of the reference that tell what codes are of, and our own that bring back the length of the sound.
const CODES: [&str; 5] = ["audio_codes", "audio_scales", "last_frame_pad_length", "sampling_rate", "length"];

/// A codec with the settings of its release.
pub struct EncodecPipeline {
    network: Encodec,
    device: Device,
    /// In kbit/s: what sounds are encoded with; the lowest if none.
    bandwidth: Option<f64>,
    card: Card,
}

impl EncodecPipeline {
    /// Opens a checkpoint. The setting `bandwidth` (kbit/s) is what sounds are encoded with.
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

    /// The codec itself.
    pub fn network(&self) -> &Encodec {
        &self.network
    }

    /// `(1, samples, channels)` of `sound`, brought to the codec's channels, then to its rate as the original program
    /// does it.
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

    /// The codes of `sound`, with what brings back its length.
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

    /// The sounds of codes, one a row of the batch.
    fn decode_codes(&self, codes: &Tensors) -> Result<Vec<Sound>> {
        only_known(codes, &CODES)?;
        let rate = self.network.config().sampling_rate;
        if let Some(of) = number(codes, "sampling_rate")?.filter(|of| *of != rate) {
            return Err(Error::input(format!("codes of sound at {of} Hz, this codec is for {rate} Hz")));
        }
        let sound =
            self.network.decode(&encoded(codes, None)?)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let samples = sound.dim(1)?;
        let length = number(codes, "length")?.unwrap_or(samples).min(samples);
        let rows = sound.narrow(1, 0, length)?.transpose(1, 2)?.to_vec3::<f32>()?;
        Ok(rows.into_iter().map(|channels| Sound { rate: rate as u32, channels }).collect())
    }

    /// The reference's `encode`.
    fn encode_values(&self, inputs: &Tensors, options: &Value) -> Result<Encoded> {
        let sound = masked(values(inputs, "input_values")?, inputs.get("padding_mask"))?;
        // The reference's channels come before time.
        let sound = sound.transpose(1, 2)?.contiguous()?.to_device(&self.device)?;
        self.network.encode(&sound, bandwidth(options)?.or(self.bandwidth))
    }

    /// The reference's `decode`: `(batch, channels, samples)`, no longer than the mask.
    fn decode_values(&self, encoded: &Encoded, mask: Option<&Tensor>) -> Result<Tensor> {
        let sound = self.network.decode(encoded)?.transpose(1, 2)?;
        let samples = sound.dim(2)?;
        let length = mask.and_then(|mask| mask.dims().last()).map_or(samples, |length| samples.min(*length));
        Ok(sound.narrow(2, 0, length)?.contiguous()?)
    }
}

impl EncodecPipeline {
    /// The mean over time of what the encoder makes of each sound before it is quantised.
    pub fn encode(&self, batch: &[Sound]) -> Result<Embeddings> {
        let row = |sound: &Sound| Ok(self.network.latents(&self.resampled(sound)?)?.mean(1)?);
        let rows = batch.iter().map(row).collect::<Result<Vec<_>>>()?;
        let rows = Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(Embeddings { rows, cut: vec![0; batch.len()] })
    }
}

impl Pipeline for EncodecPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.call("forward", inputs, &Value::Null)
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
                // Without a mask the sound itself says how long it is.
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
            other => Err(Error::input(format!("this model reads sound, not {}", other.modality()))),
        });
        self.encode(&sounds.collect::<Result<Vec<_>>>()?)
    }

    fn generate(
        &self,
        prompt: &Prompt,
        _: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let Prompt::Items(items) = prompt else {
            return Err(
                Error::input("a codec holds no conversations").hint("give it a sound, or codes of one")
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
                return Err(Error::input(format!("a codec reads one sound, or codes of one, not {found}")));
            }
        }
        Ok(Generation::default())
    }
}

/// Codes by the reference's names, integers as int64.
fn named(encoded: Encoded) -> Result<Tensors> {
    let filling = encoded.last_frame_pad_length as i64;
    let mut out = Tensors::from([
        ("audio_codes".to_string(), encoded.codes.to_dtype(DType::I64)?),
        ("last_frame_pad_length".to_string(), Tensor::new(&[filling], &Device::Cpu)?),
    ]);
    out.extend(encoded.scales.map(|scales| ("audio_scales".to_string(), scales)));
    Ok(out)
}

/// Codes from the reference's names.
fn encoded(inputs: &Tensors, options: Option<&Value>) -> Result<Encoded> {
    let codes = inputs.get("audio_codes").ok_or_else(|| Error::input("audio_codes are missing"))?;
    let said =
        match options.map(|options| &options["last_frame_pad_length"]) {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.as_u64().ok_or_else(|| {
                Error::input(format!("last_frame_pad_length is a whole number, not {value}"))
            })? as usize),
        };
    Ok(Encoded {
        codes: codes.clone(),
        scales: inputs.get("audio_scales").cloned(),
        last_frame_pad_length: said.or(number(inputs, "last_frame_pad_length")?).unwrap_or(0),
    })
}

/// The one number of the tensor `name`, if it is there.
fn number(inputs: &Tensors, name: &str) -> Result<Option<usize>> {
    let Some(tensor) = inputs.get(name) else { return Ok(None) };
    let numbers: Vec<i64> = tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?;
    match numbers[..] {
        [number] if number >= 0 => Ok(Some(number as usize)),
        _ => Err(Error::input(format!("{name} is one number, 0 or above, not {numbers:?}"))),
    }
}

fn bandwidth(options: &Value) -> Result<Option<f64>> {
    match &options["bandwidth"] {
        Value::Null => Ok(None),
        value => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| Error::input(format!("bandwidth is a number of kbit/s, not {value}"))),
    }
}

/// The sound `name`: `(batch, channels, samples)`.
fn values<'a>(inputs: &'a Tensors, name: &str) -> Result<&'a Tensor> {
    let values = inputs.get(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
    match values.rank() {
        3 => Ok(values),
        _ => Err(Error::input(format!(
            "{name} are (batch, channels, samples), these have the shape {:?}",
            values.dims()
        ))),
    }
}

/// `values` with zeros where `mask`, `(batch, samples)`, `(batch, 1, samples)` or of the shape of `values`, is 0.
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
