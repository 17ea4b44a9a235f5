//! The pipeline of Jukebox: codec, audio embeddings, and the reference's methods.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio::{self, resample::resample};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Sound, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Pipeline, Pretrained, Trainable, TrainingBatch, only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::{Modules, Name, Weights};
use fauna_shared::{Error, Result, transfer};
use fauna_text::causal::no_options;
use fauna_text::labelled::not_learned;
use serde_json::{Map, Value};

use super::hps::prior_depth;
use super::loss::{CodecOptions, codec_loss, prior_loss};
use super::{Jukebox, labels};
use crate::spectra::crop;

/// LLark's frame rate in Hz.
const FRAMES_PER_SECOND: f64 = 10.0;

/// The VQ-VAE and the prior with their settings.
pub struct JukeboxPipeline {
    jukebox: Jukebox,
    device: Device,
    card: Card,
}

impl JukeboxPipeline {
    /// Opens a release of either format.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (jukebox, inventory) = Jukebox::open(pretrained)?;
        let mut card = pretrained.card(&pretrained.architecture("JukeboxModel"), &inventory);
        match jukebox.prior() {
            Ok(prior) => card.notes.push(format!("{} layers of the prior are loaded", prior.layers())),
            Err(error) => card.notes.push(error.message().to_string()),
        }
        Ok(Self { jukebox, device: pretrained.weights.runtime().device().clone(), card })
    }

    /// The networks.
    pub fn jukebox(&self) -> &Jukebox {
        &self.jukebox
    }

    /// Encodes `sound` to codes of all levels.
    fn encode_sound(&self, sound: &Sound) -> Result<Tensors> {
        let samples = mono_at(sound, self.jukebox.rate())?;
        let codec = self.jukebox.vqvae();
        let coarsest = codec.hop(codec.levels() - 1);
        let whole = samples.len().next_multiple_of(coarsest);
        let mut samples = samples;
        samples.resize(whole, 0.0);
        let x = Tensor::from_vec(samples, (1, whole, 1), &Device::Cpu)?.to_device(&self.device)?;
        self.encode_all(&x.expand((1, whole, codec.channels()))?.contiguous()?)
    }

    /// Encodes `x`, `(batch, samples, channels)`, to `music_tokens_0` and so on, `(batch, frames)` each.
    fn encode_all(&self, x: &Tensor) -> Result<Tensors> {
        let codec = self.jukebox.vqvae();
        let x = x.to_dtype(DType::F32)?.to_device(&self.device)?;
        let codes = |level| Ok((music_tokens(level), on_host(&codec.encode(level, &x)?, DType::I64)?));
        (0..codec.levels()).map(codes).collect()
    }

    /// Decodes `codes`, `(batch, frames)`, to audio, `(batch, samples, channels)`.
    fn decode_level(&self, level: usize, codes: &Tensor) -> Result<Tensor> {
        if codes.rank() != 2 || codes.elem_count() == 0 {
            return Err(Error::input(format!(
                "{} has the shape {:?}, expected (batch, frames)",
                music_tokens(level),
                codes.dims()
            )));
        }
        let codes = ids(codes)?.to_device(&self.device)?;
        on_host(&self.jukebox.vqvae().decode(level, &codes)?, DType::F32)
    }

    fn decode(&self, inputs: &Tensors) -> Result<Tensors> {
        let names: Vec<String> = (0..self.jukebox.vqvae().levels()).map(music_tokens).collect();
        only_known(inputs, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let mut out = Tensors::new();
        for (level, name) in names.iter().enumerate() {
            if let Some(codes) = inputs.get(name) {
                out.insert(format!("audio_from_level_{level}"), self.decode_level(level, codes)?);
            }
        }
        match out.is_empty() {
            true => Err(Error::input(format!("no codes to decode: expected one of {}", names.join(", ")))),
            false => Ok(out),
        }
    }

    fn encode(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensors> {
        only_known(inputs, &["audio", "input_audio"])?;
        let mut out = match inputs.get("input_audio") {
            Some(x) if x.rank() == 3 => self.encode_all(x)?,
            Some(x) => {
                return Err(Error::input(format!(
                    "input_audio has the shape {:?}, expected (batch, samples, channels)",
                    x.dims()
                )));
            }
            None => Tensors::new(),
        };
        if let Some(samples) = inputs.get("audio") {
            out.append(&mut hear(&self.jukebox, samples, options)?);
        }
        match out.is_empty() {
            true => Err(Error::input("no audio to encode: expected audio or input_audio")),
            false => Ok(out),
        }
    }

    fn decode_codes(&self, codes: &Tensors) -> Result<Sound> {
        let levels = self.jukebox.vqvae().levels();
        let finest = (0..levels).find_map(|level| Some((level, codes.get(&music_tokens(level))?)));
        let (level, codes) = finest.ok_or_else(|| {
            let found = codes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Error::input(format!(
                "no codes of this codec: expected music_tokens_0 to {}, found {found}",
                levels - 1
            ))
        })?;
        let sound = self.decode_level(level, codes)?;
        if sound.dim(0)? != 1 {
            return Err(Error::input(format!("{} sounds in the codes, expected one", sound.dim(0)?)));
        }
        let channels = transfer::rows(&sound.squeeze(0)?.t()?.clamp(-1f32, 1f32)?)?;
        Ok(Sound { rate: self.jukebox.rate(), channels })
    }
}

/// The features of mono `samples`, `(samples)`: `music_tokens`, `activations` and the pooled `audio_encodings`.
pub(crate) fn hear(jukebox: &Jukebox, samples: &Tensor, options: &Map<String, Value>) -> Result<Tensors> {
    if samples.rank() != 1 {
        return Err(Error::input(format!(
            "audio has the shape {:?}, expected (samples): mono",
            samples.dims()
        )));
    }
    let samples: Vec<f32> = transfer::to_host(&samples.to_dtype(DType::F32)?)?;
    let layers = prior_depth(options)?.map_or_else(|| Ok(jukebox.prior()?.layers()), Ok::<_, Error>)?;
    let per_second = frames_per_second(options)?;
    let heard = jukebox.listen(&samples, layers)?;
    let pooled = jukebox.pool(&heard.activations, per_second)?;
    let codes: Vec<i64> = heard.music_tokens.iter().map(|code| i64::from(*code)).collect();
    let count = codes.len();
    Ok(Tensors::from([
        ("music_tokens".to_string(), Tensor::from_vec(codes, (1, count), &Device::Cpu)?),
        ("activations".to_string(), on_host(&heard.activations, DType::F32)?),
        ("audio_encodings".to_string(), on_host(&pooled, DType::F32)?),
    ]))
}

/// The frame rate of pooled features: LLark's, unless set in `options`.
pub(crate) fn frames_per_second(options: &Map<String, Value>) -> Result<f64> {
    match options.get("pool_frames_per_second") {
        None | Some(Value::Null) => Ok(FRAMES_PER_SECOND),
        Some(value) => value
            .as_f64()
            .ok_or_else(|| Error::input("pool_frames_per_second must be a number, 0 for one mean")),
    }
}

/// The prior's hidden states of `music_tokens`, `(batch, n_ctx)`, with `metadata`, `(batch, 4 + genres)`, by default of
/// an unknown song, after `options.layer` layers, by default all loaded ones.
pub(crate) fn states(jukebox: &Jukebox, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensors> {
    only_known(inputs, &["music_tokens", "metadata"])?;
    let prior = jukebox.prior()?;
    let (codes, labels) = codes_and_labels(jukebox, inputs)?;
    let layer = match options.get("layer") {
        None | Some(Value::Null) => prior.layers(),
        Some(layer) => {
            layer.as_u64().ok_or_else(|| Error::input(format!("layer is {layer}, expected an integer")))?
                as usize
        }
    };
    let (mut hidden, mut x_conds, mut y_conds) = (Vec::new(), Vec::new(), Vec::new());
    for (codes, labels) in codes.iter().zip(&labels) {
        let (x_cond, y_cond) = prior.condition(labels)?;
        hidden.push(on_host(&prior.hidden(codes, &x_cond, &y_cond, layer)?, DType::F32)?);
        x_conds.push(on_host(&x_cond, DType::F32)?);
        y_conds.push(on_host(&y_cond, DType::F32)?);
    }
    Ok(Tensors::from([
        (format!("hidden_states_layer_{layer}"), Tensor::stack(&hidden, 0)?),
        ("x_cond".to_string(), Tensor::stack(&x_conds, 0)?),
        ("y_cond".to_string(), Tensor::stack(&y_conds, 0)?),
    ]))
}

/// The windows of codes of `music_tokens`, `(batch, n_ctx)`, and their `metadata`, `(batch, 4 + genres)`.
fn codes_and_labels(jukebox: &Jukebox, inputs: &Tensors) -> Result<(Vec<Vec<u32>>, Vec<labels::Labels>)> {
    let prior = jukebox.prior()?;
    let codes = inputs.get("music_tokens").ok_or_else(|| Error::input("music_tokens are missing"))?;
    if codes.rank() != 2 || codes.dim(0)? == 0 {
        return Err(Error::input(format!(
            "music_tokens have the shape {:?}, expected (batch, {})",
            codes.dims(),
            prior.n_ctx()
        )));
    }
    let codes: Vec<Vec<u32>> = transfer::rows(&ids(codes)?)?;
    let labels = match inputs.get("metadata") {
        Some(metadata) if metadata.rank() == 2 && metadata.dim(0)? == codes.len() => labels::rows(metadata)?,
        Some(metadata) => {
            let batch = codes.len();
            return Err(Error::input(format!(
                "metadata has the shape {:?}, expected ({batch}, 4 + genres)",
                metadata.dims()
            )));
        }
        None => vec![jukebox.unknown()?; codes.len()],
    };
    Ok((codes, labels))
}

/// Embeds each sound: the mean of the prior's hidden states over its first window.
pub(crate) fn embed(jukebox: &Jukebox, items: &[Item]) -> Result<Embeddings> {
    let (prior, window) = (jukebox.prior()?, jukebox.window()?);
    let (mut rows, mut cut) = (Vec::new(), Vec::new());
    for item in items {
        let Item::Sound(sound) = item else {
            return Err(Error::input(format!("this model embeds audio, not {}", item.modality())));
        };
        let samples = mono_at(sound, jukebox.rate())?;
        cut.push(samples.len().saturating_sub(window).div_ceil(window / prior.n_ctx()));
        let heard = jukebox.listen(&samples, prior.layers())?;
        rows.push(jukebox.pool(&heard.activations, 0.0)?);
    }
    if rows.is_empty() {
        return Err(Error::input("there is no audio to embed"));
    }
    Ok(Embeddings::new(on_host(&Tensor::stack(&rows, 0)?, DType::F32)?, cut))
}

/// Mixes a sound to mono, then resamples it.
pub(crate) fn mono_at(sound: &Sound, rate: u32) -> Result<Vec<f32>> {
    let mono = Sound { rate: sound.rate, channels: vec![audio::mono(sound.clone())?] };
    audio::mono(resample(mono, rate)?)
}

fn music_tokens(level: usize) -> String {
    format!("music_tokens_{level}")
}

/// Converts codes of any integer type to u32; negative codes are an error.
fn ids(codes: &Tensor) -> Result<Tensor> {
    let wide: Vec<i64> = transfer::to_host(&codes.to_dtype(DType::I64)?)?;
    match wide.iter().find(|code| u32::try_from(**code).is_err()) {
        Some(code) => Err(Error::input(format!("{code} is not a valid code"))),
        None => Ok(codes.to_dtype(DType::U32)?.to_device(&Device::Cpu)?),
    }
}

fn on_host(x: &Tensor, dtype: DType) -> Result<Tensor> {
    Ok(x.to_device(&Device::Cpu)?.to_dtype(dtype)?)
}

/// Seconds of sound that the codec learns from at once.
const SECONDS: f64 = 3.0;

impl Trainable for JukeboxPipeline {
    fn reload(&mut self, _config: &Value, weights: &Weights) -> Result<()> {
        self.jukebox = Jukebox::load(self.jukebox.hps().clone(), weights)?;
        Ok(())
    }

    /// The prior's cross entropy in bits of `music_tokens`, `(batch, n_ctx)`, with `metadata` as in `forward`; or the loss
    /// of the codec on `input_audio`, `(batch, samples, channels)`, over all levels: squared errors over `bandwidth_l2`,
    /// norms of differences of spectrograms over `bandwidth_spec`, and the commitment loss.
    ///
    /// Options of the codec: `bandwidth_l2`, `bandwidth_spec`, `multispectral`, `commit`, `multispec_n_fft`,
    /// `multispec_hop_length`, `multispec_window_size`.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        if let Some(x) = inputs.get("input_audio") {
            only_known(inputs, &["input_audio"])?;
            let options = CodecOptions::of(options)?;
            let x = x.to_dtype(DType::F32)?.to_device(&self.device)?;
            return codec_loss(self.jukebox.vqvae(), &x, &options);
        }
        no_options(options)?;
        only_known(inputs, &["music_tokens", "metadata"])?;
        let (codes, labels) = codes_and_labels(&self.jukebox, inputs)?;
        prior_loss(self.jukebox.prior()?, &codes, &labels)
    }

    /// Of a model with a whole prior, a random window of codes of each sound, with the metadata of an unknown song; else
    /// random sound for the codec, three seconds or `max_length` of its longest hops.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let (codec, rate) = (self.jukebox.vqvae(), f64::from(self.jukebox.rate()));
        let prior = self.jukebox.prior().ok().filter(|prior| prior.has_head());
        let hop = codec.hop(codec.levels() - 1);
        let samples = match (prior, options.max_length) {
            (Some(_), _) => self.jukebox.window()?,
            (None, Some(hops)) => hops.max(1) * hop,
            (None, None) => ((SECONDS * rate) as usize).next_multiple_of(hop),
        };
        let (mut rows, mut truncated) = (Vec::new(), 0);
        for (example, stream) in examples.iter().zip(0..) {
            let Example::Sound { sound, .. } = example else { return Err(not_learned(example, "sound")) };
            let whole =
                Sound { rate: self.jukebox.rate(), channels: vec![mono_at(sound, self.jukebox.rate())?] };
            let (piece, left) = crop(&whole, samples as f64 / rate, options.seed, stream);
            truncated += left;
            let mut piece = piece.channels.concat();
            piece.resize(samples, 0.0);
            let row = Tensor::from_vec(piece, (samples, 1), &Device::Cpu)?;
            rows.push(row.expand((samples, codec.channels()))?.contiguous()?);
        }
        if rows.is_empty() {
            return Err(Error::input("no sounds to learn from"));
        }
        let x = Tensor::stack(&rows, 0)?;
        let inputs = match prior {
            None => Tensors::from([("input_audio".to_string(), x)]),
            Some(_) => {
                let codes = codec.encode(self.jukebox.level(), &x.to_device(&self.device)?)?;
                let labels = self.jukebox.unknown()?.0;
                let labels = Tensor::new(vec![labels; rows.len()], &Device::Cpu)?;
                Tensors::from([
                    ("music_tokens".to_string(), on_host(&codes, DType::I64)?),
                    ("metadata".to_string(), labels),
                ])
            }
        };
        let mut batch = TrainingBatch::new(inputs);
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"prior\.(fc_proj_out|x_out)\.")
    }

    fn modules(&self) -> Modules {
        Arc::new(|name| match super::rename(&format!("{name}.weight")) {
            Name::To(name) => name.strip_suffix(".weight").map_or(name.clone(), str::to_string),
            _ => name.to_string(),
        })
    }
}

impl Pipeline for JukeboxPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        states(&self.jukebox, inputs, &Map::new())
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let none = Map::new();
        let options = options.as_object().unwrap_or(&none);
        match method {
            "forward" => states(&self.jukebox, inputs, options),
            "encode" => self.encode(inputs, options),
            "decode" => self.decode(inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// Embeds each sound: the mean of the prior's hidden states over its first window, not normalised.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        embed(&self.jukebox, items)
    }

    fn generate(
        &self,
        prompt: &Prompt,
        _options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let items: &[Item] = if let Prompt::Items(items) = prompt { items } else { &[] };
        let item = match items {
            [Item::Sound(sound)] => Item::Codes(self.encode_sound(sound)?),
            [Item::Codes(codes)] => Item::Sound(self.decode_codes(codes)?),
            _ => {
                return Err(Error::input("expected one sound to encode, or one item of codes to decode"));
            }
        };
        let _ = each(item);
        Ok(Generation::default())
    }
}
