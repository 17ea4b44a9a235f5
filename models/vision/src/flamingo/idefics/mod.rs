//! IDEFICS: Flamingo with Llama and CLIP ViT-H/14, with open weights of 9B and 80B parameters.
//!
//! Laurençon et al. 2023, "OBELICS: An Open Web-Scale Filtered Dataset of Interleaved Image-Text Documents",
//! arXiv 2306.16527, section 4; Alayrac et al. 2022, arXiv 2204.14198, section 3.
//! Checked against transformers `IdeficsForVisionText2Text`, parity cases `tests/parity/flamingo/idefics*`.
//! Loads `model_type: "idefics"`. Activations are `(batch, sequence, hidden_size)`.

mod config;
mod pipeline;
mod prompt;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{CausalLm, Family, Model, Release, Step};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result};
use fauna_text::llama::{self, Llama};
use serde_json::{Value, json};

pub use config::{AlphaType, Config, KEYS, PerceiverConfig};
pub use pipeline::IdeficsPipeline;

use super::perceiver::Perceiver;
use super::reading::{Looks, Place};
use super::sight::{Media, MediaStates};
use crate::clip::VisionTower;

/// Maps the tensor names of all releases to those of this family.
pub fn rename(name: &str) -> Name {
    llama::rename(name)
}

/// The network.
pub struct Idefics {
    config: Config,
    vision_model: VisionTower,
    /// `None` if cross-attention uses the vision encoder's hidden states directly.
    perceiver_resampler: Option<Perceiver>,
    language: Llama,
    /// Embeddings and logits of the tokens added to Llama's vocabulary.
    additional: Option<Additional>,
    gated_cross_attn_layers: Vec<GatedCrossAttention>,
    device: Device,
    activations: DType,
    half_cache: bool,
}

struct Additional {
    embedding: Embedding,
    fc: Linear,
}

/// A gated cross-attention layer, before every `cross_layer_interval`-th layer of the language model.
struct GatedCrossAttention {
    input_layernorm: RmsNorm,
    cross_attn: CrossAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    /// The gates: one value, or one per channel.
    alpha_cross_attn: Tensor,
    alpha_dense: Tensor,
}

struct CrossAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of queries and keys, per head.
    q_norm_k_norm: Option<(RmsNorm, RmsNorm)>,
    heads: usize,
    head_width: usize,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    hidden_act: Activation,
}

impl Model for Idefics {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = &config;
        let width = c.language.hidden_size;
        let vision_model = VisionTower::load(&c.vision_config, &w.at("vision_model"))?;
        let perceiver_resampler = match c.use_resampler {
            true => {
                let (sizes, norms) = (c.resampler(), c.perceiver_config.qk_layer_norms_perceiver);
                Some(Perceiver::idefics(sizes, norms, &w.at("perceiver_resampler"))?)
            }
            false => None,
        };
        let language = Llama::load(c.language.clone(), w)?;
        let additional = match c.additional_vocab_size {
            0 => None,
            more => {
                let embedding = w.embedding("embed_tokens.additional_embedding", more, width)?;
                let fc = match c.language.tie_word_embeddings {
                    true => embedding.as_linear(),
                    false => w.linear_no_bias("lm_head.additional_fc", width, more)?,
                };
                Some(Additional { embedding, fc })
            }
        };
        let layers = c.language.num_hidden_layers / c.cross_layer_interval;
        let gated_cross_attn_layers = (0..layers)
            .map(|i| GatedCrossAttention::load(c, &w.at_index("gated_cross_attn_layers", i)))
            .collect::<Result<_>>()?;
        Ok(Self {
            vision_model,
            perceiver_resampler,
            language,
            additional,
            gated_cross_attn_layers,
            device: w.runtime().device().clone(),
            activations: w.runtime().activations(),
            half_cache: w.half_cache(),
            config,
        })
    }
}

impl Idefics {
    /// Maximum sequence length.
    pub fn max_position_embeddings(&self) -> usize {
        self.language.max_position_embeddings()
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Runs the vision encoder on images, `(images, 3, height, width)`: returns its last hidden states,
    /// `(images, 1 + patches, hidden_size)`, with the class token and without a final layer norm.
    pub fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        let pixels = pixels.to_device(&self.device)?.to_dtype(self.activations)?;
        Ok(self.vision_model.forward(&pixels)?.last_hidden_state)
    }

    /// Resamples hidden states of the vision encoder to `(images, latents, hidden_size)`; returns them unchanged
    /// without a resampler.
    pub fn resample(&self, states: &Tensor) -> Result<Tensor> {
        let states = states.to_device(&self.device)?.to_dtype(self.activations)?;
        match &self.perceiver_resampler {
            Some(resampler) => resampler.forward(&states),
            None => Ok(states),
        }
    }

    /// Returns the token embeddings, `(batch, sequence, hidden_size)`, of `ids`, `(batch, sequence)` of u32.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let Some(additional) = &self.additional else { return self.language.embed(ids) };
        let first = self.language.vocab_size() as u32;
        let is_additional = ids.ge(first)?;
        let words = self.language.embed(&ids.minimum(first - 1)?)?;
        let places = ids.maximum(first)?.broadcast_sub(&Tensor::new(first, ids.device())?)?;
        let others = additional.embedding.forward(&places)?;
        Ok(is_additional.unsqueeze(2)?.broadcast_as(words.shape())?.where_cond(&others, &words)?)
    }
}

impl Looks for Idefics {
    fn vocab_size(&self) -> usize {
        self.language.vocab_size() + self.config.additional_vocab_size
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn cache(&self, capacity: usize) -> Cache {
        Cache::new(self.language.num_hidden_layers(), capacity).with_half(self.half_cache)
    }

    fn see(&self, pixels: &Tensor) -> Result<Tensor> {
        self.resample(&self.encode(pixels)?)
    }

    fn look(&self, media: &Media) -> Result<MediaStates> {
        let Some(states) = media.states() else { return Ok(MediaStates::default()) };
        let layer = |layer: &GatedCrossAttention| {
            let (k, v) = layer.cross_attn.keys_and_values(states)?;
            Ok((media.spread(&k)?, media.spread(&v)?))
        };
        Ok(MediaStates::new(self.gated_cross_attn_layers.iter().map(layer).collect::<Result<_>>()?))
    }

    fn read(&self, ids: &Tensor, at: &Place, seen: &MediaStates, cache: &mut Cache) -> Result<Tensor> {
        let interval = self.config.cross_layer_interval;
        let mut look = |block: usize, x: Tensor| match block.is_multiple_of(interval) {
            true => {
                let index = block / interval;
                self.gated_cross_attn_layers[index].forward(&x, seen.layer(index), at.sight)
            }
            false => Ok(x),
        };
        let step = Step { positions: at.positions, mask: at.mask, token_type_ids: None };
        self.language.hidden(&self.embed(ids)?, &step, cache, &mut look)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let words = self
            .language
            .logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))?;
        match &self.additional {
            Some(additional) => {
                let others = additional.fc.forward(hidden)?;
                Ok(Tensor::cat(&[&words, &others], words.rank() - 1)?)
            }
            None => Ok(words),
        }
    }
}

impl GatedCrossAttention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, eps) = (c.language.hidden_size, c.language.rms_norm_eps);
        let shape = match c.alpha_type {
            AlphaType::Float => vec![1],
            AlphaType::Vector => vec![1, 1, width],
        };
        Ok(Self {
            input_layernorm: w.rms_norm("input_layernorm", width, eps)?,
            cross_attn: CrossAttention::load(c, &w.at("cross_attn"))?,
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", width, eps)?,
            mlp: Mlp::load(c, &w.at("mlp"))?,
            alpha_cross_attn: w.tensor("alpha_cross_attn", &shape)?,
            alpha_dense: w.tensor("alpha_dense", &shape)?,
        })
    }

    /// Without images, or for tokens that attend to none, cross-attention adds nothing; the feed-forward layer is
    /// applied to all tokens. `x`: `(batch, sequence, hidden_size)`.
    fn forward(&self, x: &Tensor, seen: Option<&(Tensor, Tensor)>, sight: &Mask) -> Result<Tensor> {
        let x = match seen {
            Some(seen) => {
                let found = self.cross_attn.forward(&self.input_layernorm.forward(x)?, seen, sight)?;
                add(x, &found.broadcast_mul(&self.alpha_cross_attn.tanh()?)?)?
            }
            None => x.clone(),
        };
        let inner = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        add(&x, &inner.broadcast_mul(&self.alpha_dense.tanh()?)?)
    }
}

impl CrossAttention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, media) = (c.language.hidden_size, c.vision_config.hidden_size);
        let head_width = width / c.language.num_attention_heads;
        let q_norm_k_norm = match c.qk_layer_norms {
            true => {
                let norm = |name| w.rms_norm(name, head_width, c.language.rms_norm_eps);
                Some((norm("q_layer_norm")?, norm("k_layer_norm")?))
            }
            false => None,
        };
        Ok(Self {
            q_proj: w.linear_no_bias("q_proj", width, width)?,
            k_proj: w.linear_no_bias("k_proj", media, width)?,
            v_proj: w.linear_no_bias("v_proj", media, width)?,
            o_proj: w.linear_no_bias("o_proj", width, width)?,
            q_norm_k_norm,
            heads: c.language.num_attention_heads,
            head_width,
        })
    }

    /// Returns keys and values, `(images, latents, heads, head_dim)`, of `states`, `(images, latents, hidden_size)`.
    fn keys_and_values(&self, states: &Tensor) -> Result<(Tensor, Tensor)> {
        let (pictures, time, _) = states.dims3()?;
        let split = |x: Tensor| x.reshape((pictures, time, self.heads, self.head_width));
        let mut k = split(self.k_proj.forward(states)?)?;
        if let Some((_, k_norm)) = &self.q_norm_k_norm {
            k = k_norm.forward(&k)?;
        }
        Ok((k, split(self.v_proj.forward(states)?)?))
    }

    fn forward(&self, x: &Tensor, (k, v): &(Tensor, Tensor), sight: &Mask) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let mut q = self.q_proj.forward(x)?.reshape((batch, time, self.heads, self.head_width))?;
        if let Some((q_norm, _)) = &self.q_norm_k_norm {
            q = q_norm.forward(&q)?;
        }
        self.o_proj.forward(&attend(&q, k, v, sight, 1.0 / (self.head_width as f64).sqrt())?)
    }
}

impl Mlp {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, inner) = (c.language.hidden_size, c.language.intermediate_size);
        Ok(Self {
            gate_proj: w.linear_no_bias("gate_proj", width, inner)?,
            up_proj: w.linear_no_bias("up_proj", width, inner)?,
            down_proj: w.linear_no_bias("down_proj", inner, width)?,
            hidden_act: c.language.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = self.hidden_act.gated(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?;
        self.down_proj.forward(&gated)
    }
}

/// A small config that covers every branch.
pub fn sample() -> Value {
    json!({
        "architectures": ["IdeficsForVisionText2Text"], "model_type": "idefics", "vocab_size": 59,
        "additional_vocab_size": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "alpha_type": "vector",
        "cross_layer_interval": 2, "qk_layer_norms": true, "use_resampler": true, "tie_word_embeddings": false,
        "vision_config": {
            "embed_dim": 32, "image_size": 8, "patch_size": 4, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "hidden_act": "gelu"
        },
        "perceiver_config": {
            "use_resampler": true, "resampler_n_latents": 3, "resampler_depth": 2, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "qk_layer_norms_perceiver": true
        }
    })
}

/// IDEFICS of 9B and 80B parameters, base and instruct.
pub static FAMILY: Family = Family {
    name: "idefics",
    systems: &["Flamingo"],
    paper: "Laurençon et al. 2023, arXiv 2306.16527; Alayrac et al. 2022, arXiv 2204.14198",
    model_types: &["idefics"],
    architectures: &["IdeficsForVisionText2Text", "IdeficsForCausalLM"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Text],
    releases: &[
        Release::new("HuggingFaceM4/idefics-9b", "Flamingo", "9B", "other (LLaMA, non-commercial)"),
        Release::new("HuggingFaceM4/idefics-9b-instruct", "Flamingo", "9B", "other (LLaMA, non-commercial)"),
        Release::new("HuggingFaceM4/idefics-80b", "Flamingo", "80B", "other (LLaMA, non-commercial)"),
        Release::new(
            "HuggingFaceM4/idefics-80b-instruct",
            "Flamingo",
            "80B",
            "other (LLaMA, non-commercial)",
        ),
    ],
    config_of_gguf: None,
    layout: None,
    rename,
    inventory: |pretrained| Ok(pretrained.load::<Idefics>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(IdeficsPipeline::open(pretrained)?)),
    sample,
};
