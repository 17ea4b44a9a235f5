//! The pipeline of MusicGen: the reference's methods, and prompts of items.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::audio::chroma::{Chroma, ChromaConfig};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, Trainable, TrainingBatch, only_known,
};
use fauna_shared::nn::{IGNORE_INDEX, cross_entropy};
use fauna_shared::train::Example;
use fauna_shared::weights::{Inventory, Weights};
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::causal::{labels, no_options};
use fauna_text::labelled::not_learned;
use fauna_text::words;
use serde_json::Value;

use super::compose::{MusicGenerator, MusicPrompt, codes_tensor};
use super::original::FEATURES;
use super::pattern::DelayPattern;
use super::write::WindowDecoder;
use super::{EncodedText, MusicGen, original};
use crate::spectra::crop;

/// The reference's default length, in columns.
const DEFAULT_COLUMNS: usize = 1500;

/// The network with its tokenizer and settings.
pub struct MusicGenPipeline {
    generator: MusicGenerator,
    card: Card,
    /// `generation_config.json`.
    generation: Value,
    /// Whether the release has the language model, the codec and the text encoder in files of their own.
    is_original: bool,
}

/// Loads the network from any format.
pub(super) fn load(pretrained: &Pretrained) -> Result<(MusicGen, Inventory)> {
    match original::is_original(pretrained) {
        true => original::load(pretrained),
        false => pretrained.load::<MusicGen>(),
    }
}

/// Opens a checkpoint, or a feature extractor without a model.
pub(crate) fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    match pretrained.architecture("").as_str() {
        FEATURES => Ok(Box::new(ChromaFeatures::open(pretrained)?)),
        _ => Ok(Box::new(MusicGenPipeline::open(pretrained)?)),
    }
}

/// The tensors of a checkpoint of this config.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    match pretrained.architecture("").as_str() {
        FEATURES => pretrained.weights.finish(),
        _ => Ok(load(pretrained)?.1),
    }
}

/// The chromagram settings of the release, or the defaults.
fn chroma_config(pretrained: &Pretrained) -> Result<ChromaConfig> {
    match pretrained.json("preprocessor_config.json")? {
        Some(settings) => serde_json::from_value(settings)
            .map_err(|e| pretrained.config_error(format!("preprocessor_config.json: {e}"))),
        None => Ok(ChromaConfig::default()),
    }
}

impl MusicGenPipeline {
    /// Opens a checkpoint. Settings: `window` and `extend_stride`, in seconds, for audio longer than in training.
    ///
    /// # Errors
    /// If the files are missing, damaged or not implemented.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = load(pretrained)?;
        let default = match network.config().has_melody() {
            true => "MusicgenMelodyForConditionalGeneration",
            false => "MusicgenForConditionalGeneration",
        };
        let card = pretrained.card(&pretrained.architecture(default), &inventory);
        let tokenizer = match words::tokenizer(pretrained)? {
            None if original::is_original(pretrained) => {
                words::tokenizer(&original::text_encoder(pretrained, "t5-base")?)?
            }
            found => found,
        };
        let mut generator =
            MusicGenerator::new(network).with_tokenizer(tokenizer).with_chroma(chroma_config(pretrained)?)?;
        let settings = &pretrained.options.settings;
        let seconds = |key: &str| settings.get(key).and_then(Value::as_f64);
        if let (window, Some(stride)) = (seconds("window"), seconds("extend_stride")) {
            generator = generator.with_windows(window.unwrap_or(30.0), stride)?;
        }
        let generation = pretrained.generation_config()?;
        Ok(Self { generator, card, generation, is_original: original::is_original(pretrained) })
    }

    /// The generator, which also returns the codes.
    pub fn generator(&self) -> &MusicGenerator {
        &self.generator
    }

    fn network(&self) -> &MusicGen {
        self.generator.network()
    }

    /// Encodes the text of the reference's inputs; `None` without `input_ids`.
    fn text(&self, inputs: &Tensors) -> Result<Option<EncodedText>> {
        if !inputs.contains_key("input_ids") {
            return Ok(None);
        }
        let named = ["input_ids", "attention_mask"].into_iter();
        let named = named.filter_map(|name| Some((name.to_string(), inputs.get(name)?.clone())));
        let named: Tensors = named.collect();
        let ids = words::input_ids(&named, &["input_ids", "attention_mask"])?;
        let real = named.get("attention_mask").map(words::real_tokens).transpose()?;
        let ids = self.unsigned(ids)?.to_device(self.network().decoder().device())?;
        self.network().encode_text(&ids, real).map(Some)
    }

    /// Converts token ids or codes to u32.
    fn unsigned(&self, ids: &Tensor) -> Result<Tensor> {
        let lowest = transfer::scalar::<i64>(&ids.to_dtype(DType::I64)?.flatten_all()?.min(0)?)?;
        match lowest < 0 {
            true => Err(Error::input(format!("{lowest} is not a valid id"))),
            false => Ok(ids.to_dtype(DType::U32)?),
        }
    }

    /// Encodes the reference's `input_values`, `(batch, channels, samples)`, set to zero by `padding_mask`, to codes,
    /// `(batch, codebooks, frames)`; `None` without `input_values`.
    fn given(&self, inputs: &Tensors) -> Result<Option<Tensor>> {
        let Some(values) = inputs.get("input_values") else { return Ok(None) };
        let (batch, _, samples) = values.dims3().map_err(|_| {
            Error::input(format!(
                "input_values have the shape {:?}, expected (batch, channels, samples)",
                values.dims()
            ))
        })?;
        let mut values = values.to_dtype(DType::F32)?;
        if let Some(mask) = inputs.get("padding_mask") {
            let mask = mask.to_dtype(DType::F32)?.reshape((batch, (), samples))?;
            values = values.broadcast_mul(&mask)?;
        }
        let decoder = self.network().decoder();
        let sound = values.transpose(1, 2)?.contiguous()?.to_device(decoder.device())?;
        self.network().encode(&sound.to_dtype(decoder.activations())?).map(Some)
    }

    /// The reference's `forward`: `logits`, `(batch * codebooks, sequence, vocab_size)`, and the encoder's hidden
    /// states.
    fn forward_pass(&self, inputs: &Tensors) -> Result<Tensors> {
        let network = self.network();
        let known: &[&str] = match network.config().has_melody() {
            true => &["input_ids", "attention_mask", "decoder_input_ids", "input_features"],
            false => &["input_ids", "attention_mask", "decoder_input_ids", "input_values", "padding_mask"],
        };
        only_known(inputs, known)?;
        let (codebooks, codes) =
            (network.config().decoder.num_codebooks, network.config().decoder.vocab_size);
        let text = self.text(inputs)?;
        let condition = network.condition(text.as_ref(), inputs.get("input_features"), false)?;
        let ids = match (inputs.get("decoder_input_ids"), self.given(inputs)?) {
            (Some(ids), _) => self.unsigned(ids)?,
            (None, Some(given)) => given.flatten(0, 1)?.to_dtype(DType::U32)?,
            // The start tokens.
            (None, None) => {
                let batch = text.as_ref().map_or(Ok(1), |text| text.states.dim(0))?;
                Tensor::full(network.config().decoder.pad_token_id, (batch * codebooks, 1), &Device::Cpu)?
            }
        };
        let (rows, _) = ids.dims2()?;
        let batch = rows / codebooks;
        let hidden = self.decoded(&ids, text.as_ref(), &condition)?;
        let time = hidden.dim(1)?;
        let logits = network.decoder().logits(&hidden)?.reshape((batch, time, codebooks, codes))?;
        let logits = logits.transpose(1, 2)?.reshape((rows, time, codes))?;
        let mut out = Tensors::from([("logits".to_string(), logits)]);
        if let super::decoder::Conditioning::Prepended(states) = condition {
            out.insert("encoder_hidden_states".into(), states);
        }
        if let Some(text) = text {
            out.insert("encoder_last_hidden_state".into(), text.states);
        }
        Ok(out)
    }

    /// The hidden states of the decoder, `(batch, sequence, hidden_size)`, prepended conditioning included, for the codes
    /// `ids`, `(batch * codebooks, sequence)` of u32.
    fn decoded(
        &self,
        ids: &Tensor,
        text: Option<&EncodedText>,
        condition: &super::decoder::Conditioning,
    ) -> Result<Tensor> {
        let network = self.network();
        let codebooks = network.config().decoder.num_codebooks;
        let (rows, time) = ids.dims2()?;
        let batch = rows / codebooks;
        let expected = text.map_or(Ok(batch), |text| text.states.dim(0))?;
        if batch * codebooks != rows || batch != expected || time == 0 {
            return Err(Error::input(format!("decoder_input_ids have the shape {:?}", ids.dims()))
                .hint(format!("expected (batch {expected} * {codebooks} codebooks, sequence)")));
        }
        let by_time = transfer::to_host::<u32>(&ids.reshape((batch, codebooks, time))?.transpose(1, 2)?)?;
        let mut state = network.decoder().start(condition, time)?;
        network.decoder().forward(&by_time, batch, &mut state)
    }

    /// What the decoder reads to predict `labels`, `(batch, sequence, codebooks)`: the codes one step later, `(batch *
    /// codebooks, sequence)`.
    fn shifted(&self, labels: &Tensor) -> Result<Tensor> {
        let (batch, time, codebooks) = labels.dims3()?;
        let start = i64::from(self.network().config().decoder.pad_token_id);
        let rows: Vec<i64> = transfer::to_host(&labels.to_dtype(DType::I64)?.transpose(1, 2)?)?;
        let shift = |row: &[i64]| {
            let codes = row[..time - 1].iter().map(|code| if *code == IGNORE_INDEX { start } else { *code });
            [start].into_iter().chain(codes).collect::<Vec<i64>>()
        };
        let ids: Vec<i64> = rows.chunks_exact(time).flat_map(shift).collect();
        self.unsigned(&Tensor::from_vec(ids, (batch * codebooks, time), &Device::Cpu)?)
    }

    /// The reference's `generate`: `audio_codes`, `(1, batch, codebooks, frames)`, `audio_values`, `(batch, channels,
    /// samples)`, and `prompt_codes` for an audio prompt.
    fn generate_codes(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let network = self.network();
        let known: &[&str] = match network.config().has_melody() {
            true => &["input_ids", "attention_mask", "input_features"],
            false => &["input_ids", "attention_mask", "input_values", "padding_mask"],
        };
        only_known(inputs, known)?;
        let decoder = &network.config().decoder;
        let (codebooks, channels) = (decoder.num_codebooks, decoder.audio_channels);
        let unconditional = options["unconditional"].as_bool() == Some(true);
        let given = self.given(inputs)?;
        let text = match unconditional {
            true => None,
            false => self.text(inputs)?,
        };
        let melody = inputs.get("input_features");
        let batch = match (&text, melody, &given) {
            (Some(text), ..) => text.states.dim(0)?,
            (None, Some(melody), _) => melody.dim(0)?,
            (None, None, Some(given)) => given.dim(0)?,
            (None, None, None) => options["num_samples"].as_u64().unwrap_or(1) as usize,
        };
        let text = match (text, network.config().has_melody()) {
            (None, true) => Some(network.no_text(batch)?),
            (text, _) => text,
        };
        let guidance = options["guidance_scale"].as_f64().or(self.generation["guidance_scale"].as_f64());
        let guidance = match guidance {
            Some(guidance) if guidance > 1.0 && !unconditional => guidance as f32,
            _ => 1.0,
        };
        let rows: Vec<Vec<u32>> = match &given {
            Some(given) if given.dim(0)? == batch => {
                transfer::rows(&given.to_dtype(DType::U32)?.flatten(0, 1)?)?
            }
            None => vec![Vec::new(); batch * codebooks],
            Some(given) => {
                return Err(Error::input(format!("{} sounds for a batch of {batch}", given.dim(0)?)));
            }
        };
        let known = rows.first().map_or(0, Vec::len);
        let longest = self.generation["max_length"].as_u64().map_or(DEFAULT_COLUMNS, |n| n as usize);
        let columns = match options["max_new_tokens"].as_u64() {
            Some(new) => (new as usize).saturating_add(1 + known),
            None => longest,
        };
        let pattern = DelayPattern::of_columns(codebooks, channels, columns);
        let frames = pattern.frames();
        let decoder = WindowDecoder {
            decoder: network.decoder(),
            condition: network.condition(text.as_ref(), melody, guidance != 1.0)?,
            pattern,
            given: &rows,
            streams: &(0..batch).map(|entry| (entry * codebooks) as u64).collect::<Vec<_>>(),
        };
        let sampling = GenerationConfig {
            guidance,
            temperature: match options["do_sample"].as_bool() {
                Some(true) => options["temperature"].as_f64().unwrap_or(1.0) as f32,
                _ => 0.0,
            },
            top_k: options["top_k"].as_u64().unwrap_or(50) as usize,
            top_p: options["top_p"].as_f64().unwrap_or(1.0) as f32,
            seed: options["seed"].as_u64().unwrap_or(0),
            ..GenerationConfig::default()
        };
        let mut made = rows.clone();
        decoder.generate(&sampling, &mut |frame| {
            for (row, code) in made.iter_mut().zip(frame) {
                row.push(*code);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        // With few columns, not all given frames fit.
        made.iter_mut().for_each(|row| row.truncate(frames));
        let codes = codes_tensor(&made, batch)?;
        let sound = network.decode(&codes.to_device(network.decoder().device())?)?;
        let mut out = Tensors::from([
            ("audio_values".to_string(), sound.transpose(1, 2)?.contiguous()?),
            ("audio_codes".to_string(), codes.unsqueeze(0)?),
        ]);
        if let Some(given) = given {
            out.insert("prompt_codes".into(), given.unsqueeze(0)?);
        }
        Ok(out)
    }

    /// Converts a prompt of items: a sound at the end is continued, a sound before other items is the melody. For a
    /// melody without text, add an empty text.
    pub(super) fn music_prompt(prompt: &Prompt) -> Result<MusicPrompt> {
        let Prompt::Items(items) = prompt else {
            return Err(Error::input("this model takes no conversation")
                .hint("give it a text description of the music"));
        };
        let mut music = MusicPrompt::default();
        for (index, item) in items.iter().enumerate() {
            match item {
                Item::Text(text) => music.text.push_str(text),
                Item::Sound(sound) => {
                    let place = match index + 1 == items.len() {
                        true => &mut music.audio_prompt,
                        false => &mut music.melody,
                    };
                    if place.replace(sound.clone()).is_some() {
                        return Err(
                            Error::input("more than one melody").hint("give one sound before the text")
                        );
                    }
                }
                other => {
                    return Err(Error::input(format!(
                        "this model takes text and sounds, not {}",
                        other.modality()
                    ))
                    .hint("expected [melody, text, audio to continue], all optional"));
                }
            }
        }
        Ok(music)
    }
}

/// Seconds of music that are learned at once.
const SECONDS: f64 = 30.0;

impl Trainable for MusicGenPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.generator.set_network(MusicGen::load(json::typed(config.clone())?, weights)?);
        Ok(())
    }

    /// The cross entropy of the codes `labels`, `(batch, sequence, codebooks)`, for each codebook the mean over its labels,
    /// and their mean. -100 and the special code are no labels. `decoder_input_ids`, `(batch * codebooks, sequence)`, are
    /// what the decoder reads, by default the labels one step later; the other inputs are as in `forward`. The codec is not
    /// trained.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        let network = self.network();
        let known: &[&str] = match network.config().has_melody() {
            true => &["input_ids", "attention_mask", "decoder_input_ids", "labels", "input_features"],
            false => &["input_ids", "attention_mask", "decoder_input_ids", "labels"],
        };
        only_known(inputs, known)?;
        let config = &network.config().decoder;
        let labels = labels(inputs)?;
        let (batch, time, codebooks) = match *labels.dims() {
            [batch, time, codebooks] if codebooks == config.num_codebooks && batch * time > 0 => {
                (batch, time, codebooks)
            }
            ref found => {
                return Err(Error::input(format!("labels have the shape {found:?}"))
                    .hint(format!("expected (batch, sequence, {} codebooks)", config.num_codebooks)));
            }
        };
        let text = self.text(inputs)?;
        let condition = network.condition(text.as_ref(), inputs.get("input_features"), false)?;
        let ids = match inputs.get("decoder_input_ids") {
            Some(ids) => self.unsigned(ids)?,
            None => self.shifted(labels)?,
        };
        let hidden = self.decoded(&ids, text.as_ref(), &condition)?;
        let length = hidden.dim(1)?;
        if hidden.dim(0)? != batch || length < time {
            return Err(Error::input(format!("labels of {batch} rows of {time} steps"))
                .hint("expected as many as decoder_input_ids"));
        }
        // Without the prepended conditioning.
        let hidden = hidden.narrow(1, length - time, time)?.contiguous()?;
        let logits = network.decoder().logits(&hidden)?.reshape((batch, time, codebooks, ()))?;
        let special = i64::from(config.pad_token_id);
        let said: Vec<i64> = transfer::to_host(&labels.to_dtype(DType::I64)?)?;
        let (mut terms, mut count) = (Vec::with_capacity(codebooks), 0);
        for codebook in 0..codebooks {
            let own = said.iter().skip(codebook).step_by(codebooks);
            let own = own.map(|code| if *code == special { IGNORE_INDEX } else { *code }).collect();
            let own = Tensor::from_vec(own, (batch, time), &Device::Cpu)?;
            let logits = logits.narrow(2, codebook, 1)?.squeeze(2)?.contiguous()?;
            let (loss, labels) = cross_entropy(&logits, &own)?;
            if labels == 0 {
                return Err(Error::input(format!("no code of codebook {codebook} has a label")));
            }
            terms.push(loss);
            count += labels;
        }
        Ok(Loss::mean(Tensor::stack(&terms, 0)?.mean_all()?, count as f64))
    }

    /// A random part of each sound, 30 seconds or `max_length` frames, as codes in the delay pattern: `labels`,
    /// `decoder_input_ids`, and `input_ids` and `attention_mask` of the descriptions. A melody model reads the chromagram
    /// of the same part.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let network = self.network();
        let config = network.config();
        let seconds = match options.max_length {
            Some(frames) => frames.max(1) as f64 / config.audio_encoder.frame_rate() as f64,
            None => SECONDS,
        };
        let (mut codes, mut texts, mut melodies, mut truncated) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (example, stream) in examples.iter().zip(0..) {
            let Example::Sound { sound, caption } = example else {
                return Err(not_learned(example, "sound"));
            };
            let length = sound.channels.first().map_or(0, Vec::len) as f64 / f64::from(sound.rate.max(1));
            let (piece, left) = crop(sound, seconds.min(length), options.seed, stream);
            truncated += left;
            if let (true, Some(chroma)) = (config.has_melody(), self.generator.chroma()) {
                let melody = chroma.melody(piece.clone())?;
                let frames = melody.dim(1)?.max(1);
                let times = config.chroma_length.div_ceil(frames);
                melodies.push(melody.repeat((1, times, 1))?.narrow(1, 0, config.chroma_length)?);
            }
            codes.push(self.generator.codes_of(&piece)?);
            texts.push(self.generator.text_ids(caption.as_deref().unwrap_or_default())?);
        }
        if codes.is_empty() {
            return Err(Error::input("no sounds to learn from"));
        }
        let (codebooks, channels) = (config.decoder.num_codebooks, config.decoder.audio_channels);
        let special = i64::from(config.decoder.pad_token_id);
        let patterns: Vec<DelayPattern> = codes
            .iter()
            .map(|codes| DelayPattern::of_frames(codebooks, channels, codes.first().map_or(0, Vec::len)))
            .collect();
        let columns = patterns.iter().map(DelayPattern::columns).max().unwrap_or(0);
        // The start column is read and not said.
        let mut said = Vec::with_capacity(codes.len() * columns * codebooks);
        for (codes, pattern) in codes.iter().zip(&patterns) {
            for column in 1..columns {
                said.extend((0..codebooks).map(|codebook| match pattern.frame(codebook, column) {
                    Some(frame) => i64::from(codes[codebook][frame]),
                    None => special,
                }));
            }
        }
        let labels = Tensor::from_vec(said, (codes.len(), columns - 1, codebooks), &Device::Cpu)?;
        let read = self.shifted(&labels)?.to_dtype(DType::I64)?;
        let time = texts.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for text in &texts {
            ids.extend((0..time).map(|i| text.get(i).map_or(0, |id| i64::from(*id))));
            mask.extend((0..time).map(|i| i64::from(i < text.len())));
        }
        let table = |values: Vec<i64>| Tensor::from_vec(values, (texts.len(), time), &Device::Cpu);
        let mut inputs = Tensors::from([
            ("labels".to_string(), labels),
            ("decoder_input_ids".to_string(), read),
            ("input_ids".to_string(), table(ids)?),
            ("attention_mask".to_string(), table(mask)?),
        ]);
        if !melodies.is_empty() {
            inputs.insert("input_features".into(), Tensor::cat(&melodies, 0)?);
        }
        let mut batch = TrainingBatch::new(inputs);
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^decoder\.lm_heads\.")
    }
}

impl Pipeline for MusicGenPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_pass(inputs)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        match self.is_original {
            false => Ok(self),
            true => Err(self
                .cannot("be trained: its parts are files of their own")
                .hint("open the same release in the format of transformers")),
        }
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match (method, self.generator.chroma()) {
            ("forward", _) => self.forward_pass(inputs),
            ("generate", _) => self.generate_codes(inputs, options),
            ("encode", Some(chroma)) => encode(chroma, inputs, options),
            (other, _) => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let prompt = Self::music_prompt(prompt)?;
        self.generator.generate(&[prompt], options, &mut |_, sound| each(Item::Sound(sound)))?;
        Ok(Generation::default())
    }

    fn generate_batch(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let prompts = prompts.iter().map(Self::music_prompt).collect::<Result<Vec<_>>>()?;
        self.generator.generate(&prompts, options, &mut |index, sound| each(index, Item::Sound(sound)))?;
        Ok(vec![Generation::default(); prompts.len()])
    }

    /// The sampling settings of the paper: top-k 250, guidance 3; ten seconds.
    fn defaults(&self) -> GenerationConfig {
        let guidance = self.generation["guidance_scale"].as_f64().unwrap_or(3.0) as f32;
        GenerationConfig {
            temperature: 1.0,
            top_k: 250,
            guidance,
            seconds: Some(10.0),
            ..GenerationConfig::default()
        }
    }
}

/// A chromagram feature extractor without a model.
pub struct ChromaFeatures {
    chroma: Chroma,
    card: Card,
}

impl ChromaFeatures {
    /// Opens a folder with `preprocessor_config.json`.
    ///
    /// # Errors
    /// If the file cannot be parsed.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let card = pretrained.card(FEATURES, &pretrained.weights.finish()?);
        Ok(Self { chroma: Chroma::new(&chroma_config(pretrained)?)?, card })
    }
}

impl Pipeline for ChromaFeatures {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        encode(&self.chroma, inputs, &Value::Null)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "encode" | "forward" => encode(&self.chroma, inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }
}

/// The reference's feature extractor: `audio` to `input_features`, `(batch, frames, num_chroma)`.
fn encode(chroma: &Chroma, inputs: &Tensors, options: &Value) -> Result<Tensors> {
    only_known(inputs, &["audio"])?;
    let audio = inputs.get("audio").ok_or_else(|| Error::input("audio is missing"))?;
    let rate = match &options["sampling_rate"] {
        // The reference's default for Demucs' output.
        Value::Null if audio.rank() == 4 => 44_000,
        Value::Null => chroma.config().sampling_rate,
        rate => rate
            .as_u64()
            .and_then(|rate| u32::try_from(rate).ok())
            .ok_or_else(|| Error::input(format!("sampling_rate is {rate}, expected a number in Hz")))?,
    };
    Ok(Tensors::from([("input_features".to_string(), chroma.features(audio, rate)?)]))
}
