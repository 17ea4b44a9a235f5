//! The pipeline of LLark: answers questions about music.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Mask, Positions};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Role, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Pipeline, Pretrained, Trainable, TrainingBatch, only_known,
};
use fauna_shared::text::{self, Tokenizer};
use fauna_shared::train::Example;
use fauna_shared::weights::{Modules, Weights};
use fauna_shared::{Error, ErrorKind, Result, transfer};
use fauna_text::called::token_ids;
use fauna_text::causal::{labels, next_token_loss};
use fauna_text::labelled::{LabelledTokens, not_learned};
use fauna_text::{called, words};
use serde_json::{Map, Value};

use super::{Answering, AudioTokens, LLark, prompt};
use crate::jukebox::{self, Hps, Jukebox, PRIOR_FILE, VQVAE_FILE};

/// The folder of Jukebox's files, next to the language model.
const JUKEBOX: &str = "jukebox";

/// Default maximum number of new tokens, as in the original's script.
const ANSWER: usize = 512;

/// The language model with its projector, Jukebox, and the tokenizer.
pub struct LLarkPipeline {
    llark: LLark,
    jukebox: Option<Jukebox>,
    tokenizer: Option<Tokenizer>,
    tokens: AudioTokens,
    frames_per_second: f64,
    end: Vec<u32>,
    pad: Option<u32>,
    defaults: GenerationConfig,
    card: Card,
}

impl LLarkPipeline {
    /// Opens a language model with a projector, and Jukebox next to it.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (llark, inventory) = LLark::open(pretrained)?;
        let mut card = pretrained.card(&pretrained.architecture("WrappedLlamav2ForCausalLM"), &inventory);
        card.context = Some(llark.max_position_embeddings());
        let files: Vec<_> = [VQVAE_FILE, PRIOR_FILE]
            .into_iter()
            .filter_map(|name| pretrained.files.get(&format!("{JUKEBOX}/{name}")))
            .collect();
        let jukebox = match files.is_empty() {
            true => {
                card.notes.push(format!("without {JUKEBOX}/ it takes audio_encodings, not audio"));
                None
            }
            false => {
                let hps = Hps::read(&Value::Null, &pretrained.options.settings)?;
                let weights = pretrained.part(&files, jukebox::rename)?;
                let jukebox = Jukebox::load(hps, &weights)?;
                card.parameters += weights.finish()?.parameters;
                Some(jukebox)
            }
        };
        let tokenizer = words::tokenizer(pretrained)?;
        let generation = pretrained.generation_config()?;
        let ids = |key: &str| match &generation[key] {
            Value::Null => token_ids(&pretrained.config[key]),
            value => token_ids(value),
        };
        let options = &pretrained.options.settings;
        Ok(Self {
            tokens: audio_tokens(options, known_tokens(tokenizer.as_ref(), llark.vocab_size()))?,
            frames_per_second: jukebox::frames_per_second(options)?,
            end: ids("eos_token_id"),
            pad: ids("pad_token_id").first().copied(),
            defaults: defaults(&generation),
            llark,
            jukebox,
            tokenizer,
            card,
        })
    }

    /// The language model with its projector.
    pub fn llark(&self) -> &LLark {
        &self.llark
    }

    /// The audio encoder.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) if it is not next to the language model.
    pub fn jukebox(&self) -> Result<&Jukebox> {
        self.jukebox.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} has no {JUKEBOX}/ for audio", self.card.source))
                .hint(format!("put Jukebox's {VQVAE_FILE} and {PRIOR_FILE} there"))
        })
    }

    fn forward_ids(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensors> {
        let (clips, text) = self.clips(inputs, options)?;
        let ids = words::input_ids(&text, &["input_ids", "attention_mask"])?;
        let hidden =
            self.read(ids, text.get("attention_mask"), &clips, audio_tokens(options, self.tokens)?)?;
        let logits = self.llark.logits(&hidden)?;
        Ok(Tensors::from([("last_hidden_state".to_string(), hidden), ("logits".to_string(), logits)]))
    }

    /// Runs a forward pass on `ids`, `(batch, sequence)`, with their clips, and returns the hidden states. Positions
    /// count from 0, padding included.
    fn read(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        clips: &[Tensor],
        tokens: AudioTokens,
    ) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        let rows = self.rows(ids, mask)?;
        let padding = match mask {
            Some(mask) => Mask::causal().with_padding(&words::real_tokens(mask)?)?,
            None => Mask::causal(),
        };
        let x = self.llark.embed(&rows, clips, tokens)?;
        self.llark.hidden(&x, &Positions::counting(0, time), &padding, &mut self.llark.cache(time))
    }

    /// Checks the ids of each sequence.
    fn rows(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Vec<Vec<u32>>> {
        transfer::rows(&words::checked_ids(ids, mask, self.llark.vocab_size(), &Device::Cpu)?)
    }

    /// Splits `inputs` into the audio clips, one per sequence, and the other inputs. `audio` is encoded by Jukebox.
    fn clips(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<(Vec<Tensor>, Tensors)> {
        let mut left = inputs.clone();
        let encodings = match (left.remove("audio_encodings"), left.remove("audio")) {
            (None, None) => return Ok((Vec::new(), left)),
            (Some(_), Some(_)) => {
                return Err(Error::input("expected audio or audio_encodings, not both"));
            }
            (Some(encodings), None) => encodings,
            (None, Some(audio)) => {
                let mut heard = jukebox::hear(self.jukebox()?, &audio, options)?;
                heard.remove("audio_encodings").ok_or_else(|| Error::input("there are no audio features"))?
            }
        };
        Ok((clips_of(&encodings)?, left))
    }

    fn generate_ids(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensors> {
        only_known(
            inputs,
            &["audio", "audio_encodings", "input_ids", "attention_mask", "prefix_ids", "suffix_ids"],
        )?;
        let tokens = audio_tokens(options, self.tokens)?;
        let (clips, mut text) = self.clips(inputs, options)?;
        if let (Some(prefix), Some(suffix)) = (text.remove("prefix_ids"), text.remove("suffix_ids")) {
            let around = |ids: &Tensor| transfer::to_host::<i64>(&ids.to_dtype(DType::I64)?);
            let mut ids = around(&prefix)?;
            if let [clip] = &clips[..] {
                ids.extend(between(tokens, clip.dim(0)?).map(i64::from));
            } else {
                return Err(Error::input(format!(
                    "{} clips for one prompt of prefix_ids and suffix_ids",
                    clips.len()
                )));
            }
            ids.extend(around(&suffix)?);
            let time = ids.len();
            text.insert("input_ids".to_string(), Tensor::from_vec(ids, (1, time), &Device::Cpu)?);
        }
        let ids = words::input_ids(&text, &["input_ids", "attention_mask"])?;
        let mask = text.get("attention_mask");
        let rows = called::Rows::new(ids, mask, self.rows(ids, mask)?)?;
        let config = called::config(&Value::Object(options.clone()), &self.end, self.pad)?;
        let hidden = self.read(ids, mask, &clips, tokens)?;
        let mut out = Tensors::from([
            ("input_ids".to_string(), ids.to_dtype(DType::I64)?),
            ("logits".to_string(), self.llark.logits(&hidden)?),
        ]);
        match (inputs.get("audio_encodings"), &clips[..]) {
            (Some(encodings), _) => drop(out.insert("audio_encodings".to_string(), encodings.clone())),
            (None, [clip]) => drop(out.insert("audio_encodings".to_string(), clip.clone())),
            (None, _) => {}
        }
        let answering = Answering { llark: &self.llark, clips, tokens };
        out.insert("sequences".to_string(), rows.sequences(&answering, &config)?);
        Ok(out)
    }

    /// Formats and tokenizes a prompt; returns its token ids and audio clips.
    fn prompt(&self, prompt: &Prompt) -> Result<(Vec<u32>, Vec<Tensor>)> {
        self.written(prompt, "")
    }

    /// [`prompt`](Self::prompt), followed by the text `answer`.
    fn written(&self, prompt: &Prompt, answer: &str) -> Result<(Vec<u32>, Vec<Tensor>)> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))?;
        let words = prompt::words(prompt)?;
        let Some((sound, after)) = words.sound else {
            return Ok((tokenizer.encode(&(words.before + answer), true)?, Vec::new()));
        };
        let mut ids = tokenizer.encode(&words.before, true)?;
        let jukebox = self.jukebox()?;
        let heard = jukebox.listen(&jukebox::mono_at(sound, jukebox.rate())?, jukebox.prior()?.layers())?;
        let clip = jukebox.pool(&heard.activations, self.frames_per_second)?;
        ids.extend(between(self.tokens, clip.dim(0)?));
        ids.extend(tokenizer.encode(&(after + answer), false)?);
        Ok((ids, vec![clip]))
    }
}

impl LLarkPipeline {
    /// A note if the sound of a prompt is longer than the window.
    fn unheard(&self, prompt: &Prompt) -> Result<Option<Item>> {
        let (Some((sound, _)), Some(jukebox)) = (prompt::words(prompt)?.sound, &self.jukebox) else {
            return Ok(None);
        };
        let samples = sound.channels.first().map_or(0, Vec::len);
        let seconds = samples as f64 / f64::from(sound.rate.max(1));
        let heard = jukebox.window()? as f64 / f64::from(jukebox.rate());
        // Resampling may add a sample.
        Ok((seconds > heard + 0.01).then(|| {
            let left = seconds - heard;
            Item::Note(format!("the audio was truncated to {heard:.1} seconds: {left:.1} were left out"))
        }))
    }
}

/// Splits `audio_encodings` into clips, `(frames, features)`: of one frame, one clip, or a batch of clips.
fn clips_of(encodings: &Tensor) -> Result<Vec<Tensor>> {
    match encodings.rank() {
        1 => Ok(vec![encodings.unsqueeze(0)?]),
        2 => Ok(vec![encodings.clone()]),
        3 => (0..encodings.dim(0)?).map(|clip| Ok(encodings.get(clip)?)).collect(),
        _ => Err(Error::input(format!(
            "audio_encodings have the shape {:?}, expected (frames, features) or (batch, frames, features)",
            encodings.dims()
        ))),
    }
}

/// The tokens of a clip of `frames` frames.
fn between(tokens: AudioTokens, frames: usize) -> impl Iterator<Item = u32> {
    [tokens.start].into_iter().chain(std::iter::repeat_n(tokens.patch, frames)).chain([tokens.end])
}

/// The ids of the added tokens in the tokenizer, or else the last three of the vocabulary, as in LLark's code.
fn known_tokens(tokenizer: Option<&Tokenizer>, vocabulary: usize) -> AudioTokens {
    let id = |name: &str| tokenizer.and_then(|tokenizer| tokenizer.token_id(name));
    let last = |back: usize| u32::try_from(vocabulary.saturating_sub(back)).unwrap_or(u32::MAX);
    AudioTokens {
        patch: id("<audio_patch>").unwrap_or(last(3)),
        start: id("<audio_start>").unwrap_or(last(2)),
        end: id("<audio_end>").unwrap_or(last(1)),
    }
}

/// `known`, overridden by `options`.
fn audio_tokens(options: &Map<String, Value>, known: AudioTokens) -> Result<AudioTokens> {
    let or = |key: &str, known: u32| match options.get(key) {
        None | Some(Value::Null) => Ok(known),
        Some(id) => token_ids(id)
            .first()
            .copied()
            .ok_or_else(|| Error::input(format!("{key} is {id}, expected a token id"))),
    };
    Ok(AudioTokens {
        patch: or("audio_patch_token", known.patch)?,
        start: or("audio_start_token", known.start)?,
        end: or("audio_end_token", known.end)?,
    })
}

/// The sampling defaults of the base model's `generation_config.json`; otherwise greedy.
fn defaults(generation: &Value) -> GenerationConfig {
    let number = |key: &str| generation[key].as_f64().map(|value| value as f32);
    let greedy =
        GenerationConfig { stop: vec![prompt::TURN.to_string()], ..GenerationConfig::greedy(ANSWER) };
    match generation["do_sample"].as_bool() {
        Some(true) => GenerationConfig {
            temperature: number("temperature").unwrap_or(1.0),
            top_p: number("top_p").unwrap_or(1.0),
            top_k: generation["top_k"].as_u64().unwrap_or(50) as usize,
            ..greedy
        },
        _ => greedy,
    }
}

impl LLarkPipeline {
    /// Generates the answer to `prompt`, and streams its text.
    fn answer(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if options.guidance != 1.0 {
            return Err(Error::input("guidance is not supported: LLark was not trained without audio"));
        }
        let (ids, clips) = self.prompt(prompt)?;
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))?;
        let mut options = options.with_tokens(&self.end, self.pad);
        // The answer ends at the separator of the next turn.
        if !options.stop.iter().any(|stop| stop == prompt::TURN) {
            options.stop.push(prompt::TURN.to_string());
        }
        let answering = Answering { llark: &self.llark, clips, tokens: self.tokens };
        let mut each = |piece: text::Piece| each(piece.text.to_string());
        let made = text::stream(&answering, tokenizer, &[text::Prompt::Ids(&ids)], &options, &mut each)?;
        Ok(made.into_iter().next().map(|completion| completion.generation).unwrap_or_default())
    }
}

impl Trainable for LLarkPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.llark.reload(config, weights)
    }

    /// The loss of the language model over the tokens with `labels`, `(batch, sequence)`; the other inputs and the
    /// options are as in `forward`.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        const OPTIONS: [&str; 3] = ["audio_patch_token", "audio_start_token", "audio_end_token"];
        let none = Map::new();
        let options = options.as_object().unwrap_or(&none);
        if let Some(name) = options.keys().find(|name| !OPTIONS.contains(&name.as_str())) {
            return Err(Error::input(format!("the loss has no option \"{name}\""))
                .hint(format!("known: {}", OPTIONS.join(", "))));
        }
        let (clips, text) = self.clips(inputs, options)?;
        let ids = words::input_ids(&text, &["input_ids", "attention_mask", "labels"])?;
        let tokens = audio_tokens(options, self.tokens)?;
        let hidden = self.read(ids, text.get("attention_mask"), &clips, tokens)?;
        next_token_loss(self.llark.language.as_ref(), &hidden, labels(inputs)?)
    }

    /// Prompts with at most one sound and their completions, or conversations whose last turn is the assistant's, in the
    /// format of LLark's prompts. The completion is learned, as in the reference; sounds are encoded by Jukebox.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let (mut rows, mut clips) = (Vec::with_capacity(examples.len()), Vec::new());
        for example in examples {
            let (prompt, completion) = match example {
                Example::Completion { prompt, completion } => (prompt.clone(), completion.clone()),
                Example::Chat { turns, tools } if tools.is_empty() => match turns.split_last() {
                    Some((last, before)) if last.role == Role::Assistant => {
                        let said = last.items.iter().map(Item::text).collect::<Result<String>>()?;
                        (Prompt::Chat(before.to_vec()), said)
                    }
                    _ => {
                        return Err(Error::input("the last turn of a conversation is not the assistant's"));
                    }
                },
                Example::Chat { .. } => {
                    return Err(Error::unsupported("conversations with tools are not implemented"));
                }
                other => return Err(not_learned(other, "completion, chat")),
            };
            let (before, _) = self.written(&prompt, "")?;
            let (ids, mut heard) = self.written(&prompt, &format!(" {completion}\n{}", prompt::TURN))?;
            clips.append(&mut heard);
            rows.push(LabelledTokens::after(&before, ids, true));
        }
        let limit = self.llark.max_position_embeddings();
        let longest = options.max_length.unwrap_or(limit).min(limit);
        let pad = self.tokenizer()?.pad_id();
        let mut batch = LabelledTokens::batch(rows, Some(longest), pad)?;
        if !clips.is_empty() {
            batch.inputs.insert("audio_encodings".into(), Tensor::stack(&clips, 0)?);
        }
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^lm_head\.")
    }

    fn modules(&self) -> Modules {
        Arc::new(|name| match name == "lm_head" || name.starts_with("model.") {
            true => name.to_string(),
            false => format!("model.{name}"),
        })
    }
}

impl Pipeline for LLarkPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        match self.llark.is_apart {
            false => Ok(self),
            true => Err(self.cannot("be trained: its projector is in a file of its own, mm_projector/")),
        }
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs, &Map::new())
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let none = Map::new();
        let options = options.as_object().unwrap_or(&none);
        match method {
            "forward" if inputs.contains_key("music_tokens") => {
                jukebox::states(self.jukebox()?, inputs, options)
            }
            "forward" => self.forward_ids(inputs, options),
            "generate" => self.generate_ids(inputs, options),
            "encode" => {
                only_known(inputs, &["audio"])?;
                let audio = inputs.get("audio").ok_or_else(|| Error::input("audio is missing"))?;
                jukebox::hear(self.jukebox()?, audio, options)
            }
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// As [`Jukebox`]'s embeddings.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        jukebox::embed(self.jukebox()?, items)
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if let Some(note) = self.unheard(prompt)?
            && each(note).is_break()
        {
            return Ok(Generation::default());
        }
        self.answer(prompt, options, &mut |piece| each(Item::Text(piece)))
    }

    fn defaults(&self) -> GenerationConfig {
        self.defaults.clone()
    }
}
