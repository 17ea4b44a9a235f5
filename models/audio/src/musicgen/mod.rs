//! MusicGen: music generation from text, a melody, or unconditionally.
//!
//! Copet, Kreuk, Gat, Remez, Kant, Synnaeve, Adi, Défossez 2023, "Simple and Controllable Music Generation" (arXiv
//! 2306.05284). T5 encodes the text, a causal transformer generates the codes of all codebooks in a delay pattern,
//! EnCodec decodes them to audio at 32 kHz, 50 frames per second. Checked against transformers
//! `MusicgenForConditionalGeneration` and `MusicgenMelodyForConditionalGeneration`, parity cases
//! `tests/parity/musicgen`. Loads `model_type: "musicgen"` and `"musicgen_melody"`, and the files of the original
//! releases. Activations are `(batch, sequence, hidden_size)`.
//!
//! ```
//! use std::ops::ControlFlow;
//! use fauna_audio::musicgen::{MusicGenerator, Config, MusicGen, MusicPrompt};
//! use fauna_shared::generate::GenerationConfig;
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//!
//! let config: Config = serde_json::from_value((fauna_audio::musicgen::FAMILY.sample)())?;
//! let network = MusicGen::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let generator = MusicGenerator::new(network);
//! // Unconditional generation needs no tokenizer.
//! let options = GenerationConfig { seconds: Some(0.2), temperature: 1.0, top_k: 250, ..GenerationConfig::default() };
//! let mut samples = 0;
//! let codes = generator.generate(&[MusicPrompt::default()], &options, &mut |_index, sound| {
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
use decoder::{Conditioning, Decoder};
pub use original::layout;
pub use pipeline::{ChromaFeatures, MusicGenPipeline};
pub(crate) use pipeline::{inventory, open};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// `musicgen`, or `musicgen_melody` for models with melody conditioning.
    pub model_type: String,
    /// Config of the text encoder, T5.
    #[serde(deserialize_with = "part")]
    pub text_encoder: t5::Config,
    /// Config of the codec, EnCodec.
    #[serde(deserialize_with = "part")]
    pub audio_encoder: encodec::Config,
    /// Config of the language model.
    #[serde(deserialize_with = "part")]
    pub decoder: decoder::Config,
    /// Number of pitch classes of the melody's chromagram.
    #[serde(default = "num_chroma")]
    pub num_chroma: usize,
    /// Number of frames of the melody's chromagram.
    #[serde(default = "chroma_length")]
    pub chroma_length: usize,
}

/// The config keys that [`Config`] does not declare.
pub static KEYS: Keys = Keys {
    parts: &[
        ("text_encoder", &t5::KEYS),
        ("audio_encoder", &Keys::NONE),
        (
            "decoder",
            // Keys that the reference's decoder does not use; its position embeddings are computed.
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

/// Parses the config of a part, in which null is a missing key.
fn part<'de, T: DeserializeOwned, D: Deserializer<'de>>(config: D) -> std::result::Result<T, D::Error> {
    let mut config = Map::<String, serde_json::Value>::deserialize(config)?;
    config.retain(|_, value| !value.is_null());
    json::typed(config.into()).map_err(|error| D::Error::custom(error.message()))
}

/// Maximum number of frames and of pitch classes of a chromagram: the releases have 235 and 12.
const MAX_CHROMA: usize = 1 << 14;

fn num_chroma() -> usize {
    12
}

fn chroma_length() -> usize {
    235
}

impl Config {
    /// Whether the model has melody conditioning.
    pub fn has_melody(&self) -> bool {
        self.model_type == "musicgen_melody"
    }

    /// Number of codebooks per audio channel.
    pub fn channel_codebooks(&self) -> usize {
        self.decoder.num_codebooks / self.decoder.audio_channels.max(1)
    }

    /// Checks that the configs of the parts match.
    fn check(&self) -> Result<()> {
        // First, as the checks below divide by the codec's sizes.
        self.audio_encoder.check()?;
        self.decoder.check()?;
        check_sizes(&[("num_chroma", self.num_chroma), ("chroma_length", self.chroma_length)])?;
        for (key, size) in [("num_chroma", self.num_chroma), ("chroma_length", self.chroma_length)] {
            if size > MAX_CHROMA {
                return Err(Error::unsupported(format!("{key} is {size}"))
                    .hint(format!("at most {MAX_CHROMA} is supported")));
            }
        }
        let (text, codec, decoder) = (&self.text_encoder, &self.audio_encoder, &self.decoder);
        if let Some(width) = decoder.cross_attention_hidden_size
            && text.d_model != decoder.hidden_size
        {
            return Err(Error::unsupported(format!(
                "cross_attention_hidden_size {width} has no projection from {} to {}, which is not implemented",
                text.d_model, decoder.hidden_size
            )));
        }
        if codec.windows().is_some() || codec.normalize {
            return Err(Error::unsupported(
                "the codec has windows or normalization (chunk_length_s, normalize)",
            )
            .hint("MusicGen generates the codes of one window, without scales"));
        }
        if decoder.audio_channels == 2 && codec.audio_channels != 1 {
            return Err(Error::unsupported(format!(
                "a stereo model requires a mono codec, found {} channels",
                codec.audio_channels
            )));
        }
        let codebooks = codec.quantizers_for(None)?;
        if codebooks != self.channel_codebooks() || codec.codebook_size < decoder.vocab_size {
            return Err(Error::unsupported(format!(
                "the codec has {codebooks} codebooks of {}, the language model {} of {} per channel",
                codec.codebook_size,
                self.channel_codebooks(),
                decoder.vocab_size
            )));
        }
        Ok(())
    }
}

/// Maps the tensor names of all releases to those of this family.
pub fn rename(name: &str) -> Name {
    Name::without("encoder_decoder.", name, in_base)
}

/// [`rename`] of a name without the prefix of the base model.
fn in_base(name: &str) -> Name {
    // Old releases store the position embeddings, which are computed.
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
        Self::with_parts(config, text, codec, w)
    }
}

/// Encoded text.
#[derive(Debug, Clone)]
pub struct EncodedText {
    /// T5's last hidden states, `(batch, sequence, text_hidden_size)`.
    pub states: Tensor,
    /// The padding mask (false: padding); `None` without padding.
    pub real: Option<Vec<Vec<bool>>>,
}

impl MusicGen {
    /// Loads the language model from `w`, around a loaded text encoder and codec.
    fn with_parts(
        config: Config,
        text_encoder: t5::Encoder,
        audio_encoder: Encodec,
        w: &Weights,
    ) -> Result<Self> {
        config.check()?;
        let width = config.decoder.hidden_size;
        // The reference has a projection if the sizes differ; the original releases always have one.
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

    /// The configuration.
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

    /// Encodes `ids`, `(batch, sequence)` of u32, with T5. `real` is the padding mask (false: padding).
    pub fn encode_text(&self, ids: &Tensor, real: Option<Vec<Vec<bool>>>) -> Result<EncodedText> {
        let mask = match &real {
            Some(real) => Mask::full().with_padding(real)?,
            None => Mask::full(),
        };
        Ok(EncodedText { states: self.text_encoder.forward(ids, &mask)?, real })
    }

    /// The encoded text of unconditional generation: one masked state per sequence.
    pub fn no_text(&self, batch: usize) -> Result<EncodedText> {
        let shape = (batch, 1, self.config.text_encoder.d_model);
        let states = Tensor::zeros(shape, self.decoder.activations(), self.decoder.device())?;
        Ok(EncodedText { states, real: Some(vec![vec![false]; batch]) })
    }

    /// Projects the text to the decoder's hidden size, `(batch, sequence, hidden_size)`; padding is zero, in spite of
    /// the projection's bias.
    fn projected(&self, text: &EncodedText) -> Result<Tensor> {
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

    /// Returns the conditioning of the decoder. `melody`: chromagram, `(batch, frames, num_chroma)`, only for melody
    /// models. `guided`: whether an unconditional sequence follows for each of the batch, for classifier-free guidance.
    ///
    /// EncodedText models have cross-attention to the text. Melody models prepend the melody, repeated to
    /// `chroma_length` frames, and then the text to the codes; the text's padding is zero and not masked.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a melody of another shape, or for a model without melody
    /// conditioning.
    pub fn condition(
        &self,
        text: Option<&EncodedText>,
        melody: Option<&Tensor>,
        guided: bool,
    ) -> Result<Conditioning> {
        if !self.config.has_melody() {
            return match (text, melody) {
                (_, Some(_)) => Err(no_melody_here()),
                (None, None) => Ok(Conditioning::None),
                (Some(text), None) => {
                    let mask = match &text.real {
                        Some(real) => Mask::full().with_padding(real)?,
                        None => Mask::full(),
                    };
                    Ok(Conditioning::CrossAttention { states: self.projected(text)?, mask })
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
                return Err(Error::input(format!("the melody has the shape {:?}", melody.dims()))
                    .hint(format!("expected (batch, frames, {})", self.config.num_chroma)));
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
            let length = self.config.chroma_length;
            parts.push(melody.repeat((1, length.div_ceil(frames), 1))?.narrow(1, 0, length)?);
        }
        if let Some(text) = text {
            let states = self.projected(text)?;
            parts.push(match guided {
                true => Tensor::cat(&[&states, &states.zeros_like()?], 0)?,
                false => states,
            });
        }
        match parts.is_empty() {
            true => Ok(Conditioning::None),
            false => Ok(Conditioning::Prepended(Tensor::cat(&parts, 1)?)),
        }
    }

    /// The chromagram of unconditional generation, `(batch, frames, num_chroma)`: the first pitch class throughout.
    fn no_melody(&self, batch: usize, frames: usize) -> Result<Tensor> {
        let mut row = vec![0f32; self.config.num_chroma];
        row[0] = 1.0;
        let row = Tensor::from_vec(row, (1, 1, self.config.num_chroma), self.decoder.device())?;
        Ok(row.repeat((batch, frames, 1))?.to_dtype(self.decoder.activations())?)
    }

    /// Encodes `sound`, `(batch, samples, channels)` at the codec's sampling rate, to codes, `(batch, codebooks,
    /// frames)` of int64.
    ///
    /// In stereo models, left and right are encoded separately, with interleaved codebooks.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for another number of channels than the model's.
    pub fn encode(&self, sound: &Tensor) -> Result<Tensor> {
        let codes = |sound: &Tensor| -> Result<Tensor> {
            Ok(self.audio_encoder.encode(sound, None)?.codes.squeeze(0)?.to_dtype(DType::I64)?)
        };
        if self.config.decoder.audio_channels == 1 {
            return codes(sound);
        }
        let (batch, _, channels) = sound.dims3()?;
        if channels != 2 {
            return Err(Error::input(format!(
                "the audio has {channels} channels, expected 2 for a stereo model"
            )));
        }
        let side = |channel| codes(&sound.narrow(2, channel, 1)?.contiguous()?);
        let sides = Tensor::stack(&[side(0)?, side(1)?], 2)?;
        let frames = sides.dim(3)?;
        Ok(sides.reshape((batch, self.config.decoder.num_codebooks, frames))?)
    }

    /// Splits codes, `(batch, codebooks, frames)`, by audio channel for the codec: `(batch * channels, codebooks /
    /// channels, frames)`, left before right.
    fn split_channels(&self, codes: &Tensor) -> Result<Tensor> {
        let (batch, codebooks, frames) = codes.dims3()?;
        let sides = self.config.decoder.audio_channels;
        let codes = codes.reshape((batch, codebooks / sides, sides, frames))?.transpose(1, 2)?;
        Ok(codes.reshape((batch * sides, codebooks / sides, frames))?.contiguous()?)
    }

    /// Merges the decoded audio of [`split_channels`](MusicGen::split_channels), `(batch * channels, samples, 1)`, to
    /// `(batch, samples, channels)`.
    fn merge_channels(&self, sound: &Tensor) -> Result<Tensor> {
        let (rows, samples, channels) = sound.dims3()?;
        let sides = self.config.decoder.audio_channels;
        let sound = sound.reshape((rows / sides, sides, samples, channels))?.transpose(1, 2)?;
        Ok(sound.reshape((rows / sides, samples, sides * channels))?)
    }

    /// Decodes codes, `(batch, codebooks, frames)`, to audio, `(batch, samples, channels)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for another number of codebooks, or a code outside the codebook.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let expected = self.config.decoder.num_codebooks;
        match codes.dims() {
            [_, found, _] if *found == expected => {
                self.merge_channels(&self.audio_encoder.decode_codes(&self.split_channels(codes)?)?)
            }
            dims => Err(Error::input(format!(
                "codes have the shape {dims:?}, expected (batch, {expected}, frames)"
            ))),
        }
    }
}

/// The error for a melody with a model without melody conditioning.
fn no_melody_here() -> Error {
    Error::input("this model has no melody conditioning")
        .hint("facebook/musicgen-melody has; a sound after the text is continued instead")
}
