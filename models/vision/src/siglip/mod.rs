//! SigLIP: image and text embeddings in one space, with a sigmoid score per image-text pair.
//!
//! Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343).
//! Checked against transformers `SiglipModel` and its towers, parity cases `tests/parity/siglip`. Loads
//! `model_type: "siglip"` and either tower alone. Activations are `(batch, sequence, hidden_size)`.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//! use fauna_vision::siglip::{Config, Siglip};
//!
//! let config: Config = serde_json::from_value((fauna_vision::siglip::FAMILY.sample)())?;
//! let network = Siglip::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let images = Tensor::zeros((2, 3, 21, 21), DType::F32, &Device::Cpu)?;
//! let states = network.vision_model()?.forward(&images)?;
//! assert_eq!(states.pooled.unwrap().dims(), [2, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod text;
mod vision;

use candle_core::{DType, Tensor};
use fauna_shared::item::{Modality, Tensors};
use fauna_shared::model::{Family, Keys, Model, Pipeline, Pretrained, Release, only_known};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result};
use fauna_text::words::{checked_ids, input_ids, real_tokens};
use serde::Deserialize;
use serde_json::{Value, json};

pub use text::{TextConfig, TextStates, TextTower};
pub use vision::{VisionConfig, VisionStates, VisionTower};

use crate::contrastive::{self, ContrastiveModel, ContrastivePipeline};

/// Prefix of the `model_type`s of this family.
const KIND: &str = "siglip";

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
}

impl TryFrom<Value> for Config {
    type Error = String;

    /// The towers follow from `architectures`, or else from `model_type`. The config of a single tower may be the whole
    /// file or nested in a config of both towers.
    fn try_from(config: Value) -> std::result::Result<Self, String> {
        let named = config["architectures"][0].as_str();
        let architecture = named.unwrap_or(match config["model_type"].as_str() {
            Some("siglip_text_model") => "SiglipTextModel",
            Some("siglip_vision_model") => "SiglipVisionModel",
            _ => "SiglipModel",
        });
        let alone = architecture != "SiglipModel";
        let text = || contrastive::tower_config::<TextConfig>(&config, KIND, "text_config", alone).map(Some);
        let vision =
            || contrastive::tower_config::<VisionConfig>(&config, KIND, "vision_config", alone).map(Some);
        Ok(match architecture {
            "SiglipModel" => Self { text_config: text()?, vision_config: vision()? },
            "SiglipTextModel" => Self { text_config: text()?, vision_config: None },
            "SiglipVisionModel" => Self { text_config: None, vision_config: vision()? },
            other => return Err(format!("the siglip family has no architecture \"{other}\"")),
        })
    }
}

/// Maps the tensor names of all releases to those of this family: older files also have `position_ids`.
pub fn rename(name: &str) -> Name {
    match Name::is_buffer(name) {
        true => Name::Ignore,
        false => Name::without("siglip.", name, |_| Name::Keep),
    }
}

/// From cosine similarities to logits.
struct Logits {
    /// Scale and bias.
    numbers: (f32, f32),
    /// The logarithm of the scale, and the bias: scalars.
    log_scale: Tensor,
    bias: Tensor,
}

/// One or both towers.
pub struct Siglip {
    text_model: Option<TextTower>,
    vision_model: Option<VisionTower>,
    /// Only with both towers.
    logits: Option<Logits>,
}

impl Model for Siglip {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let both = config.text_config.is_some() && config.vision_config.is_some();
        if let (Some(text), Some(vision)) = (&config.text_config, &config.vision_config) {
            if !vision.vision_use_head {
                return Err(vision::no_head());
            }
            if text.projection_dim() != vision.hidden_size {
                return Err(Error::unsupported(format!(
                    "the text embeddings have dimension {}, the image embeddings {}: expected the same",
                    text.projection_dim(),
                    vision.hidden_size
                )));
            }
        }
        let place = |name: &str| if both { w.at(name) } else { w.clone() };
        // Stored as a scalar or, in the releases, with shape [1].
        let number = |name: &str| match w.dims(name) {
            Some([]) => contrastive::scalar(w, name, &[]),
            _ => contrastive::scalar(w, name, &[1]),
        };
        Ok(Self {
            text_model: config.text_config.map(|c| TextTower::load(&c, &place("text_model"))).transpose()?,
            vision_model: config
                .vision_config
                .map(|c| VisionTower::load(&c, &place("vision_model")))
                .transpose()?,
            logits: both.then(|| Logits::of(number("logit_scale")?, number("logit_bias")?)).transpose()?,
        })
    }
}

impl Logits {
    fn of(log_scale: Tensor, bias: Tensor) -> Result<Self> {
        let numbers = (contrastive::number(&log_scale)?.exp(), contrastive::number(&bias)?);
        Ok(Self { numbers, log_scale, bias })
    }

    fn forward(&self, cosines: &Tensor) -> Result<Tensor> {
        let scale = self.log_scale.exp()?.to_dtype(cosines.dtype())?;
        Ok(cosines.broadcast_mul(&scale)?.broadcast_add(&self.bias.to_dtype(cosines.dtype())?)?)
    }
}

impl Siglip {
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

    /// Scale and bias from cosine similarities to logits; 1 and 0 for a single tower.
    pub fn logit_scale_and_bias(&self) -> (f32, f32) {
        self.logits.as_ref().map_or((1.0, 0.0), |logits| logits.numbers)
    }

    fn forward_image(&self, pixels: &Tensor, any_size: bool, out: &mut Tensors) -> Result<()> {
        let tower = self.vision_model()?;
        let pixels = tower.taken(pixels)?;
        let states = match any_size {
            true => tower.forward_any_size(&pixels)?,
            false => tower.forward(&pixels)?,
        };
        out.insert("vision_last_hidden_state".into(), states.last_hidden_state.clone());
        match (&self.logits, states.pooled) {
            (Some(_), Some(pooled)) => {
                out.insert("image_embeds".into(), contrastive::normalised(&pooled)?);
                out.insert("image_features".into(), pooled);
            }
            (_, pooled) => {
                out.insert("last_hidden_state".into(), states.last_hidden_state);
                out.extend(pooled.map(|pooled| ("pooler_output".to_string(), pooled)));
            }
        }
        Ok(())
    }

    fn forward_text(&self, ids: &Tensor, mask: Option<&Tensor>, out: &mut Tensors) -> Result<()> {
        let tower = self.text_model()?;
        // Without a mask, padding is attended to; the last position is pooled even if it is masked.
        let ids = checked_ids(ids, None, tower.config().vocab_size, tower.device())?;
        let real = mask.map(real_tokens).transpose()?;
        let states = tower.forward(&ids, real.as_deref())?;
        out.insert("text_last_hidden_state".into(), states.last_hidden_state.clone());
        match &self.logits {
            Some(_) => {
                out.insert("text_embeds".into(), contrastive::normalised(&states.pooled)?);
                out.insert("text_features".into(), states.pooled);
            }
            None => {
                out.insert("last_hidden_state".into(), states.last_hidden_state);
                out.insert("pooler_output".into(), states.pooled);
            }
        }
        Ok(())
    }
}

impl ContrastiveModel for Siglip {
    fn forward(&self, inputs: &Tensors, any_size: bool) -> Result<Tensors> {
        only_known(inputs, &["attention_mask", "input_ids", "pixel_values"])?;
        let mut out = Tensors::new();
        if let Some(pixels) = inputs.get("pixel_values") {
            self.forward_image(pixels, any_size, &mut out)?;
        }
        if let Some(ids) = inputs.get("input_ids") {
            let words = inputs.iter().filter(|(name, _)| *name != "pixel_values");
            let words = words.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
            input_ids(&words, &["input_ids", "attention_mask"])?;
            self.forward_text(ids, inputs.get("attention_mask"), &mut out)?;
        }
        if out.is_empty() {
            return Err(Error::input("expected pixel_values, input_ids or both"));
        }
        let embeddings = (out.get("image_embeds"), out.get("text_embeds"));
        if let ((Some(images), Some(texts)), Some(logits)) = (embeddings, &self.logits) {
            let logits = logits.forward(&texts.matmul(&images.t()?.contiguous()?)?)?;
            out.insert("logits_per_image".into(), logits.t()?.contiguous()?);
            out.insert("logits_per_text".into(), logits);
        }
        Ok(out)
    }

    fn embed_images(&self, pixels: &Tensor) -> Result<Tensor> {
        let tower = self.vision_model()?;
        tower.forward(&tower.taken(pixels)?)?.pooled.ok_or_else(vision::no_head)
    }

    fn embed_texts(&self, ids: &Tensor) -> Result<Tensor> {
        let tower = self.text_model()?;
        Ok(tower.forward(&ids.to_device(tower.device())?, None)?.pooled)
    }

    /// Sigmoids: the probability of each label is independent of the others.
    fn probabilities(&self, cosines: &[f32]) -> Vec<f32> {
        let (scale, bias) = self.logit_scale_and_bias();
        cosines.iter().map(|cosine| 1.0 / (1.0 + (-(cosine * scale + bias)).exp())).collect()
    }

    fn tokens_per_image(&self) -> usize {
        self.vision_model.as_ref().map_or(1, |tower| tower.config().patches())
    }

    fn image_size(&self) -> Option<usize> {
        self.vision_model.as_ref().map(|tower| tower.config().image_size)
    }

    /// Minus the log sigmoids of all logits, negated where text and image do not belong together, summed over images,
    /// the mean over texts (section 3.2).
    fn loss(&self, logits: &Tensor) -> Result<Tensor> {
        let pairs = logits.dim(0)?;
        let signs = (Tensor::eye(pairs, logits.dtype(), logits.device())? * 2.0)? - 1.0;
        let z = (logits * signs?)?.to_dtype(DType::F32)?;
        // -log sigmoid(z) = max(-z, 0) + log(1 + exp(-|z|)).
        let losses = (z.neg()?.relu()? + (z.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        Ok((losses.sum_all()? / pairs as f64)?)
    }

    fn heads(&self) -> &'static str {
        r"^((text|vision)_model\.)*head\."
    }
}

/// Opens a checkpoint as a pipeline.
pub fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    let (network, inventory) = pretrained.load::<Siglip>()?;
    let default = match (&network.text_model, &network.vision_model) {
        (Some(_), None) => "SiglipTextModel",
        (None, Some(_)) => "SiglipVisionModel",
        _ => "SiglipModel",
    };
    let mut card = pretrained.card(&pretrained.architecture(default), &inventory);
    card.context = network.text_model.as_ref().map(|tower| tower.config().max_position_embeddings);
    contrastive::set_modalities(&mut card, network.text_model.is_some(), network.vision_model.is_some());
    if pretrained.label.contains("medsiglip") {
        card.notes.push("a research model and not a medical device".to_string());
    }
    Ok(Box::new(ContrastivePipeline::open(
        pretrained,
        network,
        card,
        contrastive::TextPreprocessing::Siglip,
    )?))
}

/// SigLIP in every size, its single towers, and SigLIP 2 at a fixed resolution.
pub static FAMILY: Family = Family {
    name: "siglip",
    systems: &["SigLIP"],
    paper: "Zhai et al. 2023, arXiv 2303.15343",
    model_types: &["siglip", "siglip_text_model", "siglip_vision_model"],
    architectures: &["SiglipModel", "SiglipTextModel", "SiglipVisionModel"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Vector, Modality::Label],
    releases: &[
        Release::new("google/siglip-base-patch16-224", "SigLIP", "203M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-256", "SigLIP", "203M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-384", "SigLIP", "203M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-512", "SigLIP", "204M", "Apache-2.0"),
        Release::new("google/siglip-base-patch16-256-multilingual", "SigLIP", "371M", "Apache-2.0"),
        Release::new("google/siglip-large-patch16-256", "SigLIP", "652M", "Apache-2.0"),
        Release::new("google/siglip-large-patch16-384", "SigLIP", "652M", "Apache-2.0"),
        Release::new("google/siglip-so400m-patch14-224", "SigLIP", "877M", "Apache-2.0"),
        Release::new("google/siglip-so400m-patch14-384", "SigLIP", "878M", "Apache-2.0"),
        Release::new("google/siglip-so400m-patch16-256-i18n", "SigLIP", "1.1B", "Apache-2.0"),
        Release::new("google/siglip2-base-patch16-224", "SigLIP", "375M", "Apache-2.0"),
        Release::new("google/siglip2-large-patch16-256", "SigLIP", "882M", "Apache-2.0"),
        Release::new("google/siglip2-so400m-patch14-384", "SigLIP", "1.1B", "Apache-2.0"),
        Release::new("google/medsiglip-448", "SigLIP", "878M", "Health AI Developer Foundations"),
    ],
    config_of_gguf: None,
    layout: Some(|files, _| crate::processor::layout(files, "siglip", &["Siglip"])),
    rename,
    inventory: |pretrained| match crate::processor::inventory(pretrained)? {
        None => Ok(pretrained.load::<Siglip>()?.1),
        Some(nothing) => Ok(nothing),
    },
    causal_lm: None,
    open: |pretrained| match crate::processor::open(pretrained)? {
        None => open(pretrained),
        Some(alone) => Ok(alone),
    },
    sample: || {
        json!({
            "architectures": ["SiglipModel"], "model_type": "siglip",
            "text_config": {
                "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "max_position_embeddings": 24
            },
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
                "image_size": 21, "patch_size": 5
            }
        })
    },
};
