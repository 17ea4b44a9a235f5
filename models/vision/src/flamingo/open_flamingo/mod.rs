//! OpenFlamingo v2: Flamingo over open language models and CLIP ViT-L/14.
//!
//! Awadalla et al. 2023, "OpenFlamingo: An Open-Source Framework for Training Large Autoregressive Vision-Language
//! Models", arXiv 2308.01390, section 3; Alayrac et al. 2022, arXiv 2204.14198, section 3.
//! Checked against open-flamingo 2.0.1 `Flamingo`, parity cases `tests/parity/flamingo/open*`.
//!
//! # What there is to open
//! A release holds what was trained, `checkpoint.pt`: the resampler, the gated layers, the table of tokens. The language
//! model and the vision tower under it are releases of their own, and are found
//! - in `lang_encoder/` and `vision_encoder/` beside `checkpoint.pt`, or
//! - where the settings `lang_encoder` and `vision_encoder` name them, folders or repositories of the hub, or
//! - by the names that the release was trained over.
//!
//! How many blocks stand between two gated layers, and what the added tokens' ids are, the files tell; the settings
//! `cross_attn_every_n_layers`, `tokenizer_length`, `media_token_id`, `eoc_token_id` and `quick_gelu` say otherwise.
//!
//! Activations are `(batch, time, width)`.

mod pipeline;
mod prompt;
mod release;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions, attend};
use fauna_shared::model::{Keys, Model, check_sizes};
use fauna_shared::nn::{Activation, LayerNorm, Linear, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use fauna_text::causal::CausalLm;
use fauna_text::gpt_neox::GptNeoX;
use fauna_text::llama::Llama;
use fauna_text::mpt::{self, Mpt};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use pipeline::OpenFlamingoPipeline;
pub use release::{inventory, layout, rename};

use super::perceiver::{self, Perceiver};
use super::reading::{Looks, Place};
use super::sight::{Media, MediaStates};
use crate::clip::{VisionConfig, VisionTower};

/// Heads of the resampler and of the gated layers.
const HEADS: usize = 8;
/// Width of each.
const HEAD_WIDTH: usize = 64;
/// States that a picture is brought to.
const LATENTS: usize = 64;
/// Blocks of the resampler.
const DEPTH: usize = 6;
/// Added to variances.
const EPS: f64 = 1e-5;

/// What shapes the network. The release has no such file: the parts have theirs.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The language model's config, its `model_type` among the keys.
    pub lang_encoder: Value,
    /// The vision tower's, as CLIP spells it.
    pub vision_encoder: VisionConfig,
    /// A gated layer stands before the last of every so many blocks of the language model.
    pub cross_attn_every_n_layers: usize,
    /// How many of the language model's words the head scores, where it scores fewer than there are.
    #[serde(default)]
    pub scored: Option<usize>,
}

/// What [`Config`] does not say of the keys.
pub static KEYS: Keys = Keys { parts: &[("lang_encoder", &mpt::KEYS)], ..Keys::NONE };

/// The network.
pub struct OpenFlamingo {
    config: Config,
    vision_encoder: VisionTower,
    perceiver: Perceiver,
    lang_encoder: Language,
    gated_cross_attn_layers: Vec<GatedCrossAttention>,
    device: Device,
    activations: DType,
    half_cache: bool,
}

/// The language model under it.
enum Language {
    Mpt(Mpt),
    GptNeoX(GptNeoX),
    Llama(Llama),
}

/// A layer that looks at pictures, before a block of the language model.
struct GatedCrossAttention {
    norm: LayerNorm,
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    attn_gate: Tensor,
    ff_norm: LayerNorm,
    up: Linear,
    down: Linear,
    ff_gate: Tensor,
}

impl Model for OpenFlamingo {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        check_sizes(&[("cross_attn_every_n_layers", config.cross_attn_every_n_layers)])?;
        let media = config.vision_encoder.hidden_size;
        let vision_encoder = VisionTower::load(&config.vision_encoder, &w.at("vision_encoder"))?;
        let sizes = perceiver::Sizes {
            width: media,
            latents: LATENTS,
            depth: DEPTH,
            heads: HEADS,
            head_width: HEAD_WIDTH,
        };
        let perceiver = Perceiver::open_flamingo(sizes, &w.at("perceiver"))?;
        let lang_encoder = Language::load(&config.lang_encoder, &w.at("lang_encoder"))?;
        let width = width_of(&config.lang_encoder)?;
        let gated_cross_attn_layers = (0..lang_encoder.as_causal().num_hidden_layers())
            .filter(|block| (block + 1).is_multiple_of(config.cross_attn_every_n_layers))
            .map(|block| {
                GatedCrossAttention::load(width, media, &w.at_index("gated_cross_attn_layers", block))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            vision_encoder,
            perceiver,
            lang_encoder,
            gated_cross_attn_layers,
            device: w.runtime().device().clone(),
            activations: w.runtime().activations(),
            half_cache: w.half_cache(),
            config,
        })
    }
}

impl OpenFlamingo {
    /// The longest text it was trained for, in tokens.
    pub fn max_position_embeddings(&self) -> usize {
        self.lang_encoder.as_causal().max_position_embeddings()
    }

    /// Its hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Looks for OpenFlamingo {
    fn vocab_size(&self) -> usize {
        self.lang_encoder.as_causal().vocab_size()
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.lang_encoder.as_causal().num_hidden_layers(), capacity).with_half(self.half_cache)
    }

    /// The states of the patches before CLIP's last norm, resampled.
    fn see(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = pixels.to_device(&self.device)?.to_dtype(self.activations)?;
        self.perceiver.forward(&self.vision_encoder.forward(&pixels)?.patches()?)
    }

    fn look(&self, media: &Media) -> Result<MediaStates> {
        let Some(states) = media.states() else { return Ok(MediaStates::default()) };
        let layer = |layer: &GatedCrossAttention| {
            let (k, v) = layer.keys_and_values(states)?;
            Ok((media.spread(&k)?, media.spread(&v)?))
        };
        Ok(MediaStates::new(self.gated_cross_attn_layers.iter().map(layer).collect::<Result<_>>()?))
    }

    fn read(&self, ids: &Tensor, at: &Place, seen: &MediaStates, cache: &mut Cache) -> Result<Tensor> {
        let every = self.config.cross_attn_every_n_layers;
        let mut look = |block: usize, x: &Tensor| match (block + 1).is_multiple_of(every) {
            true => {
                let index = block / every;
                self.gated_cross_attn_layers[index].forward(x, seen.layer(index), at.sight)
            }
            false => Ok(x.clone()),
        };
        self.lang_encoder.hidden_with(ids, at.positions, at.mask, cache, &mut look)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self
            .lang_encoder
            .as_causal()
            .logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))?;
        match self.config.scored {
            Some(scored) => Ok(logits.narrow(logits.rank() - 1, 0, scored)?.contiguous()?),
            None => Ok(logits),
        }
    }
}

/// What is asked of any language model, whatever its config.
trait Causal {
    fn num_hidden_layers(&self) -> usize;
    fn max_position_embeddings(&self) -> usize;
    fn vocab_size(&self) -> usize;
    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>>;
}

impl<M: CausalLm> Causal for M {
    fn num_hidden_layers(&self) -> usize {
        CausalLm::num_hidden_layers(self)
    }

    fn max_position_embeddings(&self) -> usize {
        CausalLm::max_position_embeddings(self)
    }

    fn vocab_size(&self) -> usize {
        CausalLm::vocab_size(self)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Option<Tensor>> {
        CausalLm::logits(self, hidden)
    }
}

impl Language {
    fn load(config: &Value, w: &Weights) -> Result<Self> {
        fn of<M: Model>(config: &Value, w: &Weights) -> Result<M>
        where
            M::Config: DeserializeOwned,
        {
            let config = serde_json::from_value(config.clone())
                .map_err(|e| Error::input(format!("the config of lang_encoder: {e}")))?;
            M::load(config, w)
        }
        Ok(match Kind::of(config)? {
            Kind::Mpt => Self::Mpt(of(config, w)?),
            Kind::GptNeoX => Self::GptNeoX(of(config, w)?),
            Kind::Llama => Self::Llama(of(config, w)?),
        })
    }

    fn as_causal(&self) -> &dyn Causal {
        match self {
            Self::Mpt(language) => language,
            Self::GptNeoX(language) => language,
            Self::Llama(language) => language,
        }
    }

    /// The states after the last norm of `ids`, with `before` called before each block.
    fn hidden_with(
        &self,
        ids: &Tensor,
        positions: &Positions,
        mask: &Mask,
        cache: &mut Cache,
        before: &mut dyn FnMut(usize, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self {
            // It knows distances, and no positions.
            Self::Mpt(language) => language.hidden_with(&language.embed(ids)?, mask, cache, before),
            Self::GptNeoX(language) => {
                language.hidden_with(&language.embed(ids)?, positions, mask, cache, before)
            }
            Self::Llama(language) => {
                language.hidden_with(&language.embed(ids)?, positions, mask, cache, before)
            }
        }
    }
}

/// Which language model it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mpt,
    GptNeoX,
    Llama,
}

impl Kind {
    /// As the config's `model_type` says.
    fn of(config: &Value) -> Result<Self> {
        match config["model_type"].as_str() {
            Some("mpt" | "mosaic_gpt") => Ok(Self::Mpt),
            Some("gpt_neox") => Ok(Self::GptNeoX),
            Some("llama") => Ok(Self::Llama),
            other => Err(Error::unsupported(format!(
                "OpenFlamingo over a language model of model_type \"{}\" is not implemented",
                other.unwrap_or_default()
            ))
            .hint("known: mpt, mosaic_gpt, gpt_neox, llama")),
        }
    }

    /// How its own code calls itself.
    fn name(self) -> &'static str {
        match self {
            Self::Mpt => "mpt",
            Self::GptNeoX => "gpt_neox",
            Self::Llama => "llama",
        }
    }
}

/// The width of a language model, which MPT spells in its own way.
fn width_of(config: &Value) -> Result<usize> {
    let key = match Kind::of(config)? {
        Kind::Mpt => "d_model",
        Kind::GptNeoX | Kind::Llama => "hidden_size",
    };
    let width = config[key].as_u64().map(|width| width as usize);
    width.ok_or_else(|| Error::input(format!("the config of lang_encoder has no {key}")))
}

impl GatedCrossAttention {
    fn load(width: usize, media: usize, w: &Weights) -> Result<Self> {
        let (attn, ff, inner) = (w.at("attn"), w.at("ff"), HEADS * HEAD_WIDTH);
        Ok(Self {
            norm: attn.layer_norm("norm", width, EPS)?,
            to_q: attn.linear_no_bias("to_q", width, inner)?,
            to_kv: attn.linear_no_bias("to_kv", media, 2 * inner)?,
            to_out: attn.linear_no_bias("to_out", inner, width)?,
            attn_gate: w.tensor("attn_gate", &[1])?,
            ff_norm: ff.layer_norm("0", width, EPS)?,
            up: ff.linear_no_bias("1", width, 4 * width)?,
            down: ff.linear_no_bias("3", 4 * width, width)?,
            ff_gate: w.tensor("ff_gate", &[1])?,
        })
    }

    /// Of the states of pictures, `(pictures, states, width)`: `(pictures, states, heads, head width)` each.
    fn keys_and_values(&self, states: &Tensor) -> Result<(Tensor, Tensor)> {
        let (pictures, time, _) = states.dims3()?;
        let kv = self.to_kv.forward(states)?.reshape((pictures, time, 2, HEADS, HEAD_WIDTH))?;
        let part = |i| kv.narrow(2, i, 1)?.squeeze(2)?.contiguous();
        Ok((part(0)?, part(1)?))
    }

    /// Where there is no picture, or a token looks at none, nothing is found; the other half sees every token.
    fn forward(&self, x: &Tensor, seen: Option<&(Tensor, Tensor)>, sight: &Mask) -> Result<Tensor> {
        let x = match seen {
            Some((k, v)) => {
                let (batch, time, _) = x.dims3()?;
                let q = self.to_q.forward(&self.norm.forward(x)?)?;
                let q = q.reshape((batch, time, HEADS, HEAD_WIDTH))?;
                let found = attend(&q, k, v, sight, 1.0 / (HEAD_WIDTH as f64).sqrt())?;
                add(x, &self.to_out.forward(&found)?.broadcast_mul(&self.attn_gate.tanh()?)?)?
            }
            None => x.clone(),
        };
        let inner = self.up.forward_then(&self.ff_norm.forward(&x)?, Activation::GeluErf)?;
        add(&x, &self.down.forward(&inner)?.broadcast_mul(&self.ff_gate.tanh()?)?)
    }
}

/// A small config with every branch awake.
pub fn sample() -> Value {
    json!({
        "architectures": ["Flamingo"], "model_type": "open_flamingo", "cross_attn_every_n_layers": 2,
        "lang_encoder": {
            "model_type": "mpt", "vocab_size": 61, "d_model": 96, "n_heads": 3, "n_layers": 4, "max_seq_len": 24,
            "attn_config": {"alibi": true, "qk_ln": true}
        },
        "vision_encoder": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4, "hidden_act": "quick_gelu"
        }
    })
}
