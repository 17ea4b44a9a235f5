//! CLIP: image and text embeddings in one space.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020).
//! Checked against transformers `CLIPModel` and its towers and against open_clip's `CLIP`, parity cases
//! `tests/parity/clip`. Loads `model_type: "clip"`, either tower alone, open_clip's releases and OpenAI's own files.
//! Activations are `(batch, sequence, hidden_size)`.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//! use fauna_vision::clip::{Clip, Config};
//!
//! let config: Config = serde_json::from_value((fauna_vision::clip::FAMILY.sample)())?;
//! let network = Clip::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let images = Tensor::zeros((2, 3, 20, 20), DType::F32, &Device::Cpu)?;
//! assert_eq!(network.image_features(&images)?.dims(), [2, 24]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod encoder;
mod original;
mod positions;
mod text;
mod vision;

use candle_core::{Device, Tensor};
use fauna_shared::item::{Modality, Tensors};
use fauna_shared::model::{Family, Keys, Model, Pipeline, Pretrained, Release, check_sizes, only_known};
use fauna_shared::nn::{Linear, cross_entropy};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use fauna_text::words::{checked_ids, input_ids, real_tokens};
use serde::Deserialize;
use serde_json::{Value, json};

pub use encoder::{Encoder, EncoderConfig};
pub use original::{layout, rename};
pub use positions::interpolate_pos_encoding;
pub use text::{TextConfig, TextStates, TextTower};
pub use vision::{VisionConfig, VisionStates, VisionTower, without_class};

pub(crate) use text::embedded;
pub(crate) use vision::{check_image_size, side};

use crate::contrastive::{self, ContrastiveModel, ContrastivePipeline};

/// Prefix of the `model_type`s of this family.
const KIND: &str = "clip";

/// The config keys that [`Config`] does not declare.
pub static KEYS: Keys =
    Keys { parts: &[("text_config", &Keys::NONE), ("vision_config", &Keys::NONE)], ..Keys::NONE };

/// `config.json`: of both towers, or of one of them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct Config {
    /// The text tower, if present.
    pub text_config: Option<TextConfig>,
    /// The vision tower, if present.
    pub vision_config: Option<VisionConfig>,
    /// Dimension of the shared embedding space; `None` for a tower without a projection.
    pub projection_dim: Option<usize>,
}

impl TryFrom<Value> for Config {
    type Error = String;

    /// The towers follow from `architectures`, or else from `model_type`. The config of a single tower may be the whole
    /// file or nested in a config of both towers.
    fn try_from(config: Value) -> std::result::Result<Self, String> {
        let named = config["architectures"][0].as_str();
        let architecture = named.unwrap_or(match config["model_type"].as_str() {
            Some("clip_text_model") => "CLIPTextModel",
            Some("clip_vision_model") => "CLIPVisionModel",
            _ => "CLIPModel",
        });
        let text = || {
            contrastive::tower_config::<TextConfig>(&config, KIND, "text_config", architecture != "CLIPModel")
        };
        let vision = || {
            contrastive::tower_config::<VisionConfig>(
                &config,
                KIND,
                "vision_config",
                architecture != "CLIPModel",
            )
        };
        let none = Self { text_config: None, vision_config: None, projection_dim: None };
        Ok(match architecture {
            "CLIPModel" => Self {
                text_config: Some(text()?),
                vision_config: Some(vision()?),
                projection_dim: Some(contrastive::size(&config, "projection_dim", 512)?),
            },
            "CLIPTextModel" => Self { text_config: Some(text()?), ..none },
            "CLIPVisionModel" => Self { vision_config: Some(vision()?), ..none },
            "CLIPTextModelWithProjection" => {
                let text = text()?;
                Self { projection_dim: Some(text.projection_dim), text_config: Some(text), ..none }
            }
            "CLIPVisionModelWithProjection" => {
                let vision = vision()?;
                Self { projection_dim: Some(vision.projection_dim), vision_config: Some(vision), ..none }
            }
            other => return Err(format!("the clip family has no architecture \"{other}\"")),
        })
    }
}

/// One or both towers, with their projections.
pub struct Clip {
    text_model: Option<TextTower>,
    vision_model: Option<VisionTower>,
    text_projection: Option<Linear>,
    visual_projection: Option<Linear>,
    /// The logit scale, and its logarithm, a scalar; only with both towers.
    logit_scale: Option<(f32, Tensor)>,
}

impl Model for Clip {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let both = config.text_config.is_some() && config.vision_config.is_some();
        if let Some(space) = config.projection_dim {
            check_sizes(&[("projection_dim", space)])?;
        }
        let place = |name: &str| if both { w.at(name) } else { w.clone() };
        let projection = |name: &str, width: Option<usize>| match (width, config.projection_dim) {
            (Some(width), Some(space)) => projection(w, name, width, space).map(Some),
            _ => Ok(None),
        };
        let (text, vision) = (config.text_config.as_ref(), config.vision_config.as_ref());
        // open_clip also has scales of shape [1].
        let shape: &[usize] = if w.dims("logit_scale") == Some(&[1]) { &[1] } else { &[] };
        let scale = || -> Result<_> {
            let logarithm = contrastive::scalar(w, "logit_scale", shape)?;
            Ok((contrastive::number(&logarithm)?.exp(), logarithm))
        };
        Ok(Self {
            text_model: text.map(|c| TextTower::load(c, &place("text_model"))).transpose()?,
            vision_model: vision.map(|c| VisionTower::load(c, &place("vision_model"))).transpose()?,
            text_projection: projection("text_projection", text.map(|c| c.hidden_size))?,
            visual_projection: projection("visual_projection", vision.map(|c| c.hidden_size))?,
            logit_scale: both.then(scale).transpose()?,
        })
    }
}

/// The projection from `width` to the shared `space`; the original releases store it as `[inputs, outputs]`.
fn projection(w: &Weights, name: &str, width: usize, space: usize) -> Result<Linear> {
    let w = w.at(name);
    let weight = match w.has(original::TRANSPOSED, false) {
        true => w.matrix_transposed(original::TRANSPOSED, space, width)?,
        false => w.matrix("weight", space, width)?,
    };
    Ok(Linear::new(weight, None))
}

impl Clip {
    /// The text tower.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if the checkpoint has none.
    pub fn text_model(&self) -> Result<&TextTower> {
        self.text_model.as_ref().ok_or_else(|| contrastive::no_tower("text"))
    }

    /// The vision tower.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if the checkpoint has none.
    pub fn vision_model(&self) -> Result<&VisionTower> {
        self.vision_model.as_ref().ok_or_else(|| contrastive::no_tower("vision"))
    }

    /// Factor from cosine similarities to logits; 1 for a single tower.
    pub fn logit_scale(&self) -> f32 {
        self.logit_scale.as_ref().map_or(1.0, |(scale, _)| *scale)
    }

    /// Returns the image embeddings, `(batch, projection_dim)`, not normalised, of `pixel_values`,
    /// `(batch, 3, height, width)`.
    pub fn image_features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.project_image(&self.vision_model()?.pooled(pixel_values)?)
    }

    /// Returns the text embeddings, `(batch, projection_dim)`, not normalised, of `ids`, `(batch, sequence)` of
    /// integers.
    pub fn text_features(&self, ids: &Tensor) -> Result<Tensor> {
        self.project_text(&self.text_model()?.forward(ids, None)?.pooled)
    }

    fn project_image(&self, pooled: &Tensor) -> Result<Tensor> {
        self.visual_projection.as_ref().map_or_else(|| Ok(pooled.clone()), |map| map.forward(pooled))
    }

    fn project_text(&self, pooled: &Tensor) -> Result<Tensor> {
        self.text_projection.as_ref().map_or_else(|| Ok(pooled.clone()), |map| map.forward(pooled))
    }

    fn forward_image(&self, pixels: &Tensor, any_size: bool, out: &mut Tensors) -> Result<()> {
        let tower = self.vision_model()?;
        let states = match any_size {
            true => tower.forward_any_size(pixels)?,
            false => tower.forward(pixels)?,
        };
        let map = self.visual_projection.as_ref();
        self.insert_outputs(out, ["vision", "image"], states.last_hidden_state, states.pooled, map)
    }

    fn forward_text(&self, ids: &Tensor, mask: Option<&Tensor>, out: &mut Tensors) -> Result<()> {
        let tower = self.text_model()?;
        let ids = checked_ids(ids, mask, tower.config().vocab_size, tower.device())?;
        let real = mask.map(real_tokens).transpose()?;
        let states = tower.forward(&ids, real.as_deref())?;
        let map = self.text_projection.as_ref();
        self.insert_outputs(out, ["text", "text"], states.last_hidden_state, states.pooled, map)
    }

    /// Inserts the outputs of a tower under the reference's names. The `embeds` of a single tower are its features, not
    /// normalised.
    fn insert_outputs(
        &self,
        out: &mut Tensors,
        [tower, kind]: [&str; 2],
        last_hidden_state: Tensor,
        pooled: Tensor,
        projection: Option<&Linear>,
    ) -> Result<()> {
        let both = self.logit_scale.is_some();
        if !both {
            out.insert("last_hidden_state".into(), last_hidden_state.clone());
        }
        out.insert(format!("{tower}_last_hidden_state"), last_hidden_state);
        let Some(projection) = projection else {
            out.insert("pooler_output".into(), pooled);
            return Ok(());
        };
        let features = projection.forward(&pooled)?;
        let embeds = if both { contrastive::normalised(&features)? } else { features.clone() };
        out.insert(format!("{kind}_embeds"), embeds);
        out.insert(format!("{kind}_features"), features);
        Ok(())
    }
}

impl ContrastiveModel for Clip {
    fn forward(&self, inputs: &Tensors, any_size: bool) -> Result<Tensors> {
        only_known(inputs, &["attention_mask", "image", "input_ids", "pixel_values", "text"])?;
        let mut out = Tensors::new();
        // The names of open_clip's arguments: `image` and `text`.
        if let Some(pixels) = inputs.get("pixel_values").or(inputs.get("image")) {
            let tower = self.vision_model()?;
            self.forward_image(&tower.taken(pixels)?, any_size, &mut out)?;
        }
        if let Some(ids) = inputs.get("input_ids").or(inputs.get("text")) {
            let mask = inputs.get("attention_mask");
            let words = [("input_ids", Some(ids)), ("attention_mask", mask)];
            let words = words.into_iter().filter_map(|(name, x)| Some((name.to_string(), x?.clone())));
            input_ids(&words.collect(), &["input_ids", "attention_mask"])?;
            self.forward_text(ids, mask, &mut out)?;
        }
        if out.is_empty() {
            return Err(Error::input("expected pixel_values, input_ids or both"));
        }
        let embeddings = (out.get("image_embeds"), out.get("text_embeds"));
        if let ((Some(images), Some(texts)), Some((_, logarithm))) = (embeddings, &self.logit_scale) {
            let scale = logarithm.exp()?.to_dtype(texts.dtype())?;
            let logits = texts.matmul(&images.t()?.contiguous()?)?.broadcast_mul(&scale)?;
            out.insert("logits_per_image".into(), logits.t()?.contiguous()?);
            out.insert("logits_per_text".into(), logits);
        }
        Ok(out)
    }

    fn embed_images(&self, pixels: &Tensor) -> Result<Tensor> {
        self.image_features(&self.vision_model()?.taken(pixels)?)
    }

    fn embed_texts(&self, ids: &Tensor) -> Result<Tensor> {
        self.text_features(&ids.to_device(self.text_model()?.device())?)
    }

    /// Softmax over the labels: exactly one of them applies.
    fn probabilities(&self, cosines: &[f32]) -> Vec<f32> {
        let logits = cosines.iter().map(|cosine| cosine * self.logit_scale());
        let max = logits.clone().fold(f32::NEG_INFINITY, f32::max);
        let exponentials: Vec<f32> = logits.map(|logit| (logit - max).exp()).collect();
        let sum: f32 = exponentials.iter().sum();
        exponentials.into_iter().map(|exponential| exponential / sum).collect()
    }

    fn tokens_per_image(&self) -> usize {
        self.vision_model.as_ref().map_or(1, |tower| tower.config().patches() + 1)
    }

    fn image_size(&self) -> Option<usize> {
        self.vision_model.as_ref().map(|tower| tower.config().image_size)
    }

    /// The mean of the cross entropies over the images of each text and over the texts of each image (section 2.3).
    fn loss(&self, logits: &Tensor) -> Result<Tensor> {
        let labels = Tensor::arange(0i64, logits.dim(0)? as i64, &Device::Cpu)?;
        let (of_texts, _) = cross_entropy(logits, &labels)?;
        let (of_images, _) = cross_entropy(&logits.t()?.contiguous()?, &labels)?;
        Ok(((of_texts + of_images)? / 2.0)?)
    }

    /// The projections, by the names of transformers and of open_clip.
    fn heads(&self) -> &'static str {
        r"^((text|visual)_projection(\.weight)?|visual\.proj|text\.text_projection(\.weight)?)$"
    }
}

/// Opens a checkpoint as a pipeline.
pub fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    let (network, inventory) = pretrained.load::<Clip>()?;
    let default = match (&network.text_model, &network.vision_model) {
        (Some(_), None) => "CLIPTextModel",
        (None, Some(_)) => "CLIPVisionModel",
        _ => "CLIPModel",
    };
    let mut card = pretrained.card(&pretrained.architecture(default), &inventory);
    card.context = network.text_model.as_ref().map(|tower| tower.config().max_position_embeddings);
    contrastive::set_modalities(&mut card, network.text_model.is_some(), network.vision_model.is_some());
    Ok(Box::new(ContrastivePipeline::open(pretrained, network, card, contrastive::TextPreprocessing::Clip)?))
}

/// CLIP in every size, its single towers, and open_clip's releases of the same architecture.
pub static FAMILY: Family = Family {
    name: "clip",
    systems: &["CLIP"],
    paper: "Radford et al. 2021, arXiv 2103.00020",
    model_types: &["clip", "clip_text_model", "clip_vision_model"],
    architectures: &[
        "CLIPModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "CLIPVisionModel",
        "CLIPVisionModelWithProjection",
    ],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Vector, Modality::Label],
    releases: &[
        Release::new("openai/clip-vit-base-patch32", "CLIP", "151M", "MIT"),
        Release::new("openai/clip-vit-base-patch16", "CLIP", "150M", "MIT"),
        Release::new("openai/clip-vit-large-patch14", "CLIP", "428M", "MIT"),
        Release::new("openai/clip-vit-large-patch14-336", "CLIP", "428M", "MIT"),
        Release::new("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "CLIP", "151M", "MIT"),
        Release::new("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "CLIP", "150M", "MIT"),
        Release::new("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "CLIP", "428M", "MIT"),
        Release::new("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "CLIP", "986M", "MIT"),
    ],
    config_of_gguf: None,
    layout: Some(|files, options| match layout(files, options)? {
        None => crate::processor::layout(files, "clip", &["CLIP", "Idefics", "Gemma3", "Llava"]),
        found => Ok(found),
    }),
    rename,
    inventory: |pretrained| match crate::processor::inventory(pretrained)? {
        None => Ok(pretrained.load::<Clip>()?.1),
        Some(nothing) => Ok(nothing),
    },
    causal_lm: None,
    open: |pretrained| match crate::processor::open(pretrained)? {
        None => open(pretrained),
        Some(alone) => Ok(alone),
    },
    sample: || {
        json!({
            "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 24,
            "text_config": {
                "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 24, "hidden_act": "quick_gelu",
                "eos_token_id": 2
            },
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
                "image_size": 20, "patch_size": 6, "hidden_act": "gelu"
            }
        })
    },
};
