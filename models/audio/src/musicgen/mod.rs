//! MusicGen: words, a melody or nothing to music.
//!
//! Copet, Kreuk, Gat, Remez, Kant, Synnaeve, Adi, Défossez 2023, "Simple and Controllable Music Generation"
//! (arXiv 2306.05284). T5 reads the words, a causal transformer writes the codes of all codebooks in a delay pattern,
//! EnCodec turns them to sound at 32 kHz, 50 frames a second.
//! Checked against transformers `MusicgenForConditionalGeneration` and `MusicgenMelodyForConditionalGeneration`, parity
//! cases `tests/parity/musicgen`. Loads `model_type: "musicgen"` and `"musicgen_melody"`, and the original releases'
//! own files. Activations are `(batch, time, width)`.
//!
//! ```
//! use std::ops::ControlFlow;
//! use fauna_audio::musicgen::{MusicGenerator, Config, MusicGen, MusicPrompt};
//! use fauna_shared::generate::GenerationConfig;
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//!
//! let config: Config = serde_json::from_value((fauna_audio::musicgen::FAMILY.sample)())?;
//! let network = MusicGen::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let composer = MusicGenerator::new(network);
//! // Nothing is wished for, so no tokenizer is needed.
//! let options = GenerationConfig { seconds: Some(0.2), temperature: 1.0, top_k: 250, ..GenerationConfig::default() };
//! let mut samples = 0;
//! let codes = composer.compose(&[MusicPrompt::default()], &options, &mut |_wish, sound| {
//!     samples += sound.channels[0].len();
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(codes[0].dims(), [4, 20]); // codebooks, frames
//! assert_eq!(samples, 120);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compose;
pub mod decoder;
mod original;
pub mod pattern;
mod pipeline;

/// MusicGen in every size, mono and stereo, with and without melody.
pub static FAMILY: Family = Family {
    name: "musicgen",
    systems: &["MusicGen"],
    paper: "Copet et al. 2023, arXiv 2306.05284",
    model_types: &["musicgen", "musicgen_melody"],
    architectures: &[
        "MusicgenForConditionalGeneration",
        "MusicgenMelodyForConditionalGeneration",
        "MusicgenMelodyFeatureExtractor",
    ],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Text, Modality::Sound],
    outputs: &[Modality::Sound],
    releases: &[
        Release::new("facebook/musicgen-small", "MusicGen", "0.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-medium", "MusicGen", "2.0B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-large", "MusicGen", "3.4B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-melody", "MusicGen", "1.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-melody-large", "MusicGen", "2.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-small", "MusicGen", "0.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-medium", "MusicGen", "2.0B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-large", "MusicGen", "3.5B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-melody", "MusicGen", "1.6B", "CC-BY-NC-4.0"),
        Release::new("facebook/musicgen-stereo-melody-large", "MusicGen", "2.7B", "CC-BY-NC-4.0"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open,
    sample: || {
        json!({
            "architectures": ["MusicgenForConditionalGeneration"], "model_type": "musicgen",
            "text_encoder": {
                "vocab_size": 61, "d_model": 24, "d_kv": 5, "d_ff": 30, "num_layers": 2, "num_heads": 3,
                "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
                "feed_forward_proj": "gated-gelu"
            },
            "audio_encoder": {
                "sampling_rate": 600, "target_bandwidths": [2.0], "upsampling_ratios": [3, 2], "num_filters": 4,
                "hidden_size": 8, "codebook_size": 32, "use_causal_conv": false, "use_conv_shortcut": false
            },
            "decoder": {
                "vocab_size": 32, "pad_token_id": 32, "hidden_size": 32, "num_hidden_layers": 3,
                "num_attention_heads": 4, "ffn_dim": 64, "num_codebooks": 4
            }
        })
    },
};

#[cfg(test)]
mod tests;
mod write;

use candle_core::{DType, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::Linear;
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result, json};
use fauna_text::t5;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, json};

use crate::encodec::{self, Encodec};
pub use compose::{MusicGenerator, MusicPrompt};
use decoder::{Condition, Decoder};
pub use original::layout;
pub use pipeline::{Features, MusicGenPipeline};
pub(crate) use pipeline::{inventory, open};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// `musicgen`, or `musicgen_melody` for the models that read a melody.
    pub model_type: String,
    /// T5, which reads the words.
    #[serde(deserialize_with = "part")]
    pub text_encoder: t5::Config,
    /// EnCodec, which turns codes to sound and back.
    #[serde(deserialize_with = "part")]
    pub audio_encoder: encodec::Config,
    /// The language model.
    #[serde(deserialize_with = "part")]
    pub decoder: decoder::Config,
    /// Pitch classes of a melody.
    #[serde(default = "num_chroma")]
    pub num_chroma: usize,
    /// Frames of a melody.
    #[serde(default = "chroma_length")]
    pub chroma_length: usize,
}

/// What [`Config`] does not say of the keys.
pub static KEYS: Keys = Keys {
    parts: &[
        ("text_encoder", &t5::KEYS),
        ("audio_encoder", &Keys::NONE),
        (
            "decoder",
            // Keys that the reference's decoder has and never reads; its positions are computed at any length.
            &Keys {
                harmless: &[
                    "add_cross_attention",
                    "is_decoder",
                    "max_position_embeddings",
                    "scale_embedding",
                    "tie_word_embeddings",
                ],
                ..Keys::NONE
            },
        ),
    ],
    ..Keys::NONE
};

/// The config of a part, which may write what it leaves out as null.
fn part<'de, T: DeserializeOwned, D: Deserializer<'de>>(config: D) -> std::result::Result<T, D::Error> {
    let mut config = Map::<String, serde_json::Value>::deserialize(config)?;
    config.retain(|_, value| !value.is_null());
    json::typed(config.into()).map_err(|error| D::Error::custom(error.message()))
}

/// Frames and pitch classes of a melody at most: the releases have 235 and 12.
const MOST_CHROMA: usize = 1 << 14;

fn num_chroma() -> usize {
    12
}

fn chroma_length() -> usize {
    235
}

impl Config {
    /// Whether it reads a melody.
    pub fn has_melody(&self) -> bool {
        self.model_type == "musicgen_melody"
    }

    /// Codebooks of one channel of sound.
    pub fn channel_codebooks(&self) -> usize {
        self.decoder.num_codebooks / self.decoder.audio_channels.max(1)
    }

    /// Refuses parts that do not fit each other.
    fn check(&self) -> Result<()> {
        // What follows divides by the codec's numbers.
        self.audio_encoder.check()?;
        self.decoder.check()?;
        check_sizes(&[("num_chroma", self.num_chroma), ("chroma_length", self.chroma_length)])?;
        for (key, size) in [("num_chroma", self.num_chroma), ("chroma_length", self.chroma_length)] {
            if size > MOST_CHROMA {
                return Err(Error::unsupported(format!("{key} is {size}"))
                    .hint(format!("at most {MOST_CHROMA} is supported")));
            }
        }
        let (text, codec, decoder) = (&self.text_encoder, &self.audio_encoder, &self.decoder);
        if let Some(width) = decoder.cross_attention_hidden_size
            && text.d_model != decoder.hidden_size
        {
            return Err(Error::unsupported(format!(
                "cross_attention_hidden_size {width} asks for no projection of states of {} to {}",
                text.d_model, decoder.hidden_size
            )));
        }
        if codec.windows().is_some() || codec.normalize {
            return Err(Error::unsupported("the codec has windows or brings them to one loudness")
                .hint("MusicGen writes the codes of one window, without scales"));
        }
        if decoder.audio_channels == 2 && codec.audio_channels != 1 {
            return Err(Error::unsupported(format!(
                "a stereo model decodes left and right alone, its codec has {} channels",
                codec.audio_channels
            )));
        }
        let codebooks = codec.quantizers_for(None)?;
        if codebooks != self.channel_codebooks() || codec.codebook_size < decoder.vocab_size {
            return Err(Error::unsupported(format!(
                "the codec has {codebooks} codebooks of {}, the language model {} of {} a channel",
                codec.codebook_size,
                self.channel_codebooks(),
                decoder.vocab_size
            )));
        }
        Ok(())
    }
}

/// What a release calls its tensors, in the names of this file.
pub fn rename(name: &str) -> Name {
    Name::without("encoder_decoder.", name, in_base)
}

/// The same without the name of the base model.
fn in_base(name: &str) -> Name {
    // Old uploads hold a table of positions, which are computed.
    if name.ends_with(".embed_positions.weights") {
        return Name::Ignore;
    }
    if let Some(rest) = name.strip_prefix("audio_encoder.") {
        return match encodec::rename(rest) {
            Name::To(rest) => Name::To(format!("audio_encoder.{rest}")),
            other => other,
        };
    }
    original::rename(name)
}

/// The network.
pub struct MusicGen {
    config: Config,
    text_encoder: t5::Encoder,
    audio_encoder: Encodec,
    decoder: Decoder,
    enc_to_dec_proj: Option<Linear>,
    audio_enc_to_dec_proj: Option<Linear>,
}

impl Model for MusicGen {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let text = t5::Encoder::load(config.text_encoder.clone(), &w.at("text_encoder"))?;
        let codec = Encodec::load(config.audio_encoder.clone(), &w.at("audio_encoder"))?;
        Self::around(config, text, codec, w)
    }
}

/// Words as T5 reads them: states of `(batch, time, text width)`.
#[derive(Debug, Clone)]
pub struct Text {
    /// What T5 made of them.
    pub states: Tensor,
    /// Which of them are real, row by row; none if all are.
    pub real: Option<Vec<Vec<bool>>>,
}

impl MusicGen {
    /// The language model of `w` with a text encoder and a codec that were read elsewhere.
    fn around(
        config: Config,
        text_encoder: t5::Encoder,
        audio_encoder: Encodec,
        w: &Weights,
    ) -> Result<Self> {
        config.check()?;
        let width = config.decoder.hidden_size;
        // The reference projects what has another width; the original release always.
        let projection = |name: &str, from: usize| match from != width || w.has(name, false) {
            true => w.linear(name, from, width).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            decoder: Decoder::load(config.decoder.clone(), !config.has_melody(), &w.at("decoder"))?,
            enc_to_dec_proj: projection("enc_to_dec_proj", config.text_encoder.d_model)?,
            audio_enc_to_dec_proj: match config.has_melody() {
                true => projection("audio_enc_to_dec_proj", config.num_chroma)?,
                false => None,
            },
            text_encoder,
            audio_encoder,
            config,
        })
    }

    /// Its hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The codec.
    pub fn codec(&self) -> &Encodec {
        &self.audio_encoder
    }

    /// The language model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What T5 makes of `words`, `(batch, time)` of u32, of which only the `real` are read.
    pub fn read(&self, words: &Tensor, real: Option<Vec<Vec<bool>>>) -> Result<Text> {
        let mask = match &real {
            Some(real) => Mask::full().with_padding(real)?,
            None => Mask::full(),
        };
        Ok(Text { states: self.text_encoder.forward(words, &mask)?, real })
    }

    /// No words: one state a row that nobody reads.
    pub fn no_text(&self, batch: usize) -> Result<Text> {
        let shape = (batch, 1, self.config.text_encoder.d_model);
        let states = Tensor::zeros(shape, self.decoder.activations(), self.decoder.device())?;
        Ok(Text { states, real: Some(vec![vec![false]; batch]) })
    }

    /// The text at the decoder's width, zero where padded: the bias of a projection makes something of nothing.
    fn projected(&self, text: &Text) -> Result<Tensor> {
        let states = match &self.enc_to_dec_proj {
            Some(projection) => projection.forward(&text.states)?,
            None => text.states.clone(),
        };
        let padded = |rows: &&Vec<Vec<bool>>| rows.iter().flatten().any(|real| !*real);
        let Some(real) = text.real.as_ref().filter(padded) else { return Ok(states) };
        let (batch, time, _) = states.dims3()?;
        let real: Vec<f32> = real.iter().flatten().map(|real| f32::from(u8::from(*real))).collect();
        let real = Tensor::from_vec(real, (batch, time, 1), states.device())?.to_dtype(states.dtype())?;
        Ok(states.broadcast_mul(&real)?)
    }

    /// What the decoder follows. `melody`: `(batch, frames, num_chroma)`, for models with melody alone. `guided`:
    /// whether as many rows that follow nothing come after the batch.
    ///
    /// A text model's blocks attend to the real states of the text. A melody model reads all before the codes: the
    /// melody over and over until it fills `chroma_length`, then the text, whose padding is zero and seen all the
    /// same.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a melody of another shape, or given to a model without melody.
    pub fn condition(&self, text: Option<&Text>, melody: Option<&Tensor>, guided: bool) -> Result<Condition> {
        if !self.config.has_melody() {
            return match (text, melody) {
                (_, Some(_)) => Err(no_melody_here()),
                (None, None) => Ok(Condition::None),
                (Some(text), None) => {
                    let mask = match &text.real {
                        Some(real) => Mask::full().with_padding(real)?,
                        None => Mask::full(),
                    };
                    Ok(Condition::Attended { states: self.projected(text)?, mask })
                }
            };
        }
        let mut parts = Vec::new();
        if let Some(melody) = match (melody, text) {
            (Some(melody), _) => Some(melody.clone()),
            (None, Some(text)) => Some(self.no_melody(text.states.dim(0)?, 1)?),
            (None, None) => None,
        } {
            let (batch, frames, classes) = melody.dims3()?;
            if frames == 0 || classes != self.config.num_chroma {
                return Err(Error::input(format!("a melody of the shape {:?}", melody.dims()))
                    .hint(format!("wanted (batch, frames, {})", self.config.num_chroma)));
            }
            let melody = melody.to_device(self.decoder.device())?.to_dtype(self.decoder.activations())?;
            let melody = match guided {
                true => Tensor::cat(&[&melody, &self.no_melody(batch, frames)?], 0)?,
                false => melody,
            };
            let melody = match &self.audio_enc_to_dec_proj {
                Some(projection) => projection.forward(&melody)?,
                None => melody,
            };
            let wanted = self.config.chroma_length;
            parts.push(melody.repeat((1, wanted.div_ceil(frames), 1))?.narrow(1, 0, wanted)?);
        }
        if let Some(text) = text {
            let states = self.projected(text)?;
            parts.push(match guided {
                true => Tensor::cat(&[&states, &states.zeros_like()?], 0)?,
                false => states,
            });
        }
        match parts.is_empty() {
            true => Ok(Condition::None),
            false => Ok(Condition::Before(Tensor::cat(&parts, 1)?)),
        }
    }

    /// The melody that stands for none, `(batch, frames, num_chroma)`: the first pitch class throughout.
    fn no_melody(&self, batch: usize, frames: usize) -> Result<Tensor> {
        let mut row = vec![0f32; self.config.num_chroma];
        row[0] = 1.0;
        let row = Tensor::from_vec(row, (1, 1, self.config.num_chroma), self.decoder.device())?;
        Ok(row.repeat((batch, frames, 1))?.to_dtype(self.decoder.activations())?)
    }

    /// The codes of `sound`, `(batch, samples, channels)` at the codec's rate: `(batch, codebooks, frames)` of int64.
    ///
    /// A stereo model's codec hears left and right alone; their codebooks alternate.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if the channels are not the model's.
    pub fn encode(&self, sound: &Tensor) -> Result<Tensor> {
        let codes = |sound: &Tensor| -> Result<Tensor> {
            Ok(self.audio_encoder.encode(sound, None)?.codes.squeeze(0)?.to_dtype(DType::I64)?)
        };
        if self.config.decoder.audio_channels == 1 {
            return codes(sound);
        }
        let (batch, _, channels) = sound.dims3()?;
        if channels != 2 {
            return Err(Error::input(format!("a sound of {channels} channels, a stereo model reads 2")));
        }
        let side = |channel| codes(&sound.narrow(2, channel, 1)?.contiguous()?);
        let sides = Tensor::stack(&[side(0)?, side(1)?], 2)?;
        let frames = sides.dim(3)?;
        Ok(sides.reshape((batch, self.config.decoder.num_codebooks, frames))?)
    }

    /// Codes, `(batch, codebooks, frames)`, as the codec takes them: `(batch * sides, codebooks of a side, frames)`,
    /// where a stereo model has two sides, left before right.
    fn sides(&self, codes: &Tensor) -> Result<Tensor> {
        let (batch, codebooks, frames) = codes.dims3()?;
        let sides = self.config.decoder.audio_channels;
        let codes = codes.reshape((batch, codebooks / sides, sides, frames))?.transpose(1, 2)?;
        Ok(codes.reshape((batch * sides, codebooks / sides, frames))?.contiguous()?)
    }

    /// What the codec made of [`sides`](MusicGen::sides), `(batch * sides, samples, channels)`: `(batch, samples,
    /// channels)`.
    fn joined(&self, sound: &Tensor) -> Result<Tensor> {
        let (rows, samples, channels) = sound.dims3()?;
        let sides = self.config.decoder.audio_channels;
        let sound = sound.reshape((rows / sides, sides, samples, channels))?.transpose(1, 2)?;
        Ok(sound.reshape((rows / sides, samples, sides * channels))?)
    }

    /// The sound of codes, `(batch, codebooks, frames)`: `(batch, samples, channels)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if the codebooks are not the model's or a code is not the codec's.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let wanted = self.config.decoder.num_codebooks;
        match codes.dims() {
            [_, found, _] if *found == wanted => {
                self.joined(&self.audio_encoder.decode_codes(&self.sides(codes)?)?)
            }
            dims => {
                Err(Error::input(format!("codes of the shape {dims:?}, wanted (batch, {wanted}, frames)")))
            }
        }
    }
}

/// The error of a melody that the model cannot follow.
fn no_melody_here() -> Error {
    Error::input("this model follows no melody")
        .hint("facebook/musicgen-melody does; a sound that comes after the words is continued, not followed")
}
