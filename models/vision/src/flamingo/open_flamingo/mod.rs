//! OpenFlamingo v2: Flamingo with open language models and CLIP ViT-L/14.
//!
//! Awadalla et al. 2023, "OpenFlamingo: An Open-Source Framework for Training Large Autoregressive Vision-Language
//! Models", arXiv 2308.01390, section 3; Alayrac et al. 2022, arXiv 2204.14198, section 3.
//! Checked against open-flamingo 2.0.1 `Flamingo`, parity cases `tests/parity/flamingo/open*`.
//!
//! # Files
//! A release contains only the trained weights, `checkpoint.pt`: the resampler, the gated cross-attention layers and
//! the token embeddings. The frozen language model and vision encoder are separate releases, found
//! - in `lang_encoder/` and `vision_encoder/` next to `checkpoint.pt`, or
//! - by the settings `lang_encoder` and `vision_encoder`, folders or repositories of the hub, or
//! - by the names of the models that the release was trained with.
//!
//! The interval of the gated layers and the ids of the added tokens follow from the files; the settings
//! `cross_attn_every_n_layers`, `tokenizer_length`, `media_token_id`, `eoc_token_id` and `quick_gelu` override them.
//!
//! Activations are `(batch, sequence, hidden_size)`.

mod pipeline;
mod prompt;
mod release;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{CausalLm, Family, Keys, Model, Release, Step, check_sizes};
use fauna_shared::nn::{Activation, LayerNorm, Linear, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use fauna_text::mpt;
use serde::Deserialize;
use serde_json::{Value, json};

pub use pipeline::OpenFlamingoPipeline;
pub use release::{inventory, layout, rename};

use super::perceiver::{self, Perceiver};
use super::reading::{Looks, Place};
use super::sight::{Media, MediaStates};
use crate::clip::{VisionConfig, VisionTower};

/// Number of attention heads of the resampler and of the gated layers.
const HEADS: usize = 8;
/// Head dimension.
const HEAD_WIDTH: usize = 64;
/// Number of latents per image.
const LATENTS: usize = 64;
/// Number of layers of the resampler.
const DEPTH: usize = 6;
/// Epsilon of the layer norms.
const EPS: f64 = 1e-5;

/// The configuration. Releases have no such file: it is derived from the configs of the parts.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Config of the language model, `model_type` included.
    pub lang_encoder: Value,
    /// Config of the vision encoder, with CLIP's keys.
    pub vision_encoder: VisionConfig,
    /// Interval of the gated cross-attention layers, in layers of the language model: there is one before the last
    /// layer of each interval.
    pub cross_attn_every_n_layers: usize,
    /// Number of logits of the head, if it is less than the vocabulary size.
    #[serde(default)]
    pub scored: Option<usize>,
}

/// The config keys that [`Config`] does not declare.
pub static KEYS: Keys = Keys { parts: &[("lang_encoder", &mpt::KEYS)], ..Keys::NONE };

/// The network.
pub struct OpenFlamingo {
    config: Config,
    vision_encoder: VisionTower,
    perceiver: Perceiver,
    lang_encoder: Box<dyn CausalLm>,
    gated_cross_attn_layers: Vec<GatedCrossAttention>,
    device: Device,
    activations: DType,
    half_cache: bool,
}

/// A gated cross-attention layer.
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
        let lang_encoder = fauna_text::causal_lm(&config.lang_encoder, &w.at("lang_encoder"))?;
        let width = lang_encoder.hidden_size();
        let gated_cross_attn_layers = (0..lang_encoder.num_hidden_layers())
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
    /// Maximum sequence length.
    pub fn max_position_embeddings(&self) -> usize {
        self.lang_encoder.max_position_embeddings()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

impl Looks for OpenFlamingo {
    fn vocab_size(&self) -> usize {
        self.lang_encoder.vocab_size()
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.lang_encoder.num_hidden_layers(), capacity).with_half(self.half_cache)
    }

    /// Encodes the patches, without CLIP's final layer norm, and resamples them. As in the reference, the vision encoder
    /// gets no gradient.
    fn see(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = pixels.to_device(&self.device)?.to_dtype(self.activations)?;
        self.perceiver.forward(&self.vision_encoder.forward(&pixels)?.patches()?.detach())
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
        let mut look = |block: usize, x: Tensor| match (block + 1).is_multiple_of(every) {
            true => {
                let index = block / every;
                self.gated_cross_attn_layers[index].forward(&x, seen.layer(index), at.sight)
            }
            false => Ok(x),
        };
        let step = Step { positions: at.positions, mask: at.mask, token_type_ids: None };
        self.lang_encoder.hidden(&self.lang_encoder.embed(ids)?, &step, cache, &mut look)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self
            .lang_encoder
            .logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))?;
        match self.config.scored {
            Some(scored) => Ok(logits.narrow(logits.rank() - 1, 0, scored)?.contiguous()?),
            None => Ok(logits),
        }
    }
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

    /// Returns keys and values, `(images, latents, heads, head_dim)`, of `states`, `(images, latents, hidden_size)`.
    fn keys_and_values(&self, states: &Tensor) -> Result<(Tensor, Tensor)> {
        let (pictures, time, _) = states.dims3()?;
        let kv = self.to_kv.forward(states)?.reshape((pictures, time, 2, HEADS, HEAD_WIDTH))?;
        let part = |i| kv.narrow(2, i, 1)?.squeeze(2)?.contiguous();
        Ok((part(0)?, part(1)?))
    }

    /// Without images, or for tokens that attend to none, cross-attention adds nothing; the feed-forward layer is
    /// applied to all tokens. `x`: `(batch, sequence, hidden_size)`.
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

/// A small config that covers every branch.
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

/// OpenFlamingo v2 in every size.
pub static FAMILY: Family = Family {
    name: "open_flamingo",
    systems: &["Flamingo"],
    paper: "Awadalla et al. 2023, arXiv 2308.01390; Alayrac et al. 2022, arXiv 2204.14198",
    model_types: &["open_flamingo"],
    architectures: &["Flamingo"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Text],
    releases: &[
        Release::new("openflamingo/OpenFlamingo-3B-vitl-mpt1b", "Flamingo", "3B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct", "Flamingo", "3B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-4B-vitl-rpj3b", "Flamingo", "4B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct", "Flamingo", "4B", "MIT"),
        Release::new("openflamingo/OpenFlamingo-9B-vitl-mpt7b", "Flamingo", "9B", "MIT"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(OpenFlamingoPipeline::open(pretrained)?)),
    sample,
};
