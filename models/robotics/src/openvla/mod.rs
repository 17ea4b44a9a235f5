//! OpenVLA: a vision-language-action model that predicts robot actions from an image and an instruction.
//!
//! Kim et al. 2024, "OpenVLA: An Open-Source Vision-Language-Action Model", arXiv 2406.09246; the design of Brohan et al.
//! 2023, "RT-2", arXiv 2307.15818, whose weights were not released. The patch features of DINOv2 and SigLIP are
//! concatenated and projected to the embeddings of Llama 2, or of the language model of `text_config`, which reads
//! `[BOS] patches instruction` and generates seven action tokens. Checked against timm's vision transformers and
//! transformers' `LlamaForCausalLM` with the release's names, parity cases `tests/parity/openvla`. Loads
//! `model_type: "openvla"` and the format of the training code. Activations are `(batch, sequence, hidden_size)`.

mod alone;
mod config;
mod controller;
mod pipeline;
mod processor;
mod prompt;
mod release;
mod training;
mod vit;

use candle_core::Tensor;
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::item::Modality;
use fauna_shared::model::{CausalLm, Family, Keys, Model, Release, Step, check_sizes, no_hook};
use fauna_shared::nn::{Activation, Linear, concat};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result};
use fauna_text::causal_lm_at;

pub use config::Config;
pub use pipeline::OpenVlaPipeline;
pub use processor::FrameProcessor;
pub use prompt::{BOUNDARY, PromptStyle};
pub use vit::{Vit, VitConfig};

pub(crate) use release::{inventory, layout, open, rename, sample};

/// The OpenVLA model.
pub struct OpenVla {
    vision_backbone: Vec<Vit>,
    projector: Projector,
    language_model: Box<dyn CausalLm>,
    config: Config,
}

/// Projector from the vision features to the hidden size of the language model.
struct Projector {
    fc1: Linear,
    fc2: Linear,
    /// Only with two vision towers.
    fc3: Option<Linear>,
}

impl Model for OpenVla {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let language_model = causal_lm_at("text_config", &config.text_config, &w.at("language_model"))?;
        let words = language_model.vocab_size().saturating_sub(config.pad_to_multiple_of);
        check_sizes(&[("vocab_size less pad_to_multiple_of", words)])?;
        let names = ["featurizer", "fused_featurizer"];
        let backbone = w.at("vision_backbone");
        let towers =
            config.towers.iter().zip(names).map(|(tower, name)| Vit::load(tower, &backbone.at(name)));
        Ok(Self {
            vision_backbone: towers.collect::<Result<_>>()?,
            projector: Projector::load(&config, language_model.hidden_size(), &w.at("projector"))?,
            language_model,
            config,
        })
    }
}

impl Projector {
    fn load(c: &Config, width: usize, w: &Weights) -> Result<Self> {
        let seen: usize = c.towers.iter().map(|tower| tower.embed_dim).sum();
        match c.towers.len() {
            1 => Ok(Self {
                fc1: w.linear("fc1", seen, width)?,
                fc2: w.linear("fc2", width, width)?,
                fc3: None,
            }),
            _ => Ok(Self {
                fc1: w.linear("fc1", seen, 4 * seen)?,
                fc2: w.linear("fc2", 4 * seen, width)?,
                fc3: Some(w.linear("fc3", width, width)?),
            }),
        }
    }

    /// Projects `x`, `(batch, patches, vision_hidden_size)`, to `(batch, patches, hidden_size)`; `vision_hidden_size` is the sum
    /// over the towers.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.fc1.forward_then(x, Activation::GeluErf)?;
        match &self.fc3 {
            None => self.fc2.forward(&x),
            Some(fc3) => fc3.forward(&self.fc2.forward_then(&x, Activation::GeluErf)?),
        }
    }
}

impl OpenVla {
    /// Returns the config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the language model.
    pub fn language_model(&self) -> &dyn CausalLm {
        self.language_model.as_ref()
    }

    /// Words in the vocabulary before it was padded: the last of them stand for actions.
    pub fn words(&self) -> usize {
        self.language_model.vocab_size().saturating_sub(self.config.pad_to_multiple_of)
    }

    /// Returns the shape of `pixel_values` without the batch axis, `(3 · towers, height, width)`.
    pub fn picture(&self) -> [usize; 3] {
        let side = self.config.towers[0].img_size;
        [3 * self.vision_backbone.len(), side, side]
    }

    /// Returns the projected patch embeddings, `(batch, patches, hidden_size)`, of `pixel_values`,
    /// `(batch, 3 · towers, image_size, image_size)`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for `pixel_values` of another shape.
    pub fn see(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let wanted = self.picture();
        match *pixel_values.dims() {
            [batch, channels, height, width] if batch > 0 && [channels, height, width] == wanted => {}
            ref found => {
                return Err(Error::input(format!("pixel_values are {found:?}"))
                    .hint(format!("expected (batch, {}, {}, {})", wanted[0], wanted[1], wanted[2])));
            }
        }
        let mut seen = Vec::new();
        for (i, tower) in self.vision_backbone.iter().enumerate() {
            seen.push(tower.forward(&pixel_values.narrow(1, 3 * i, 3)?.contiguous()?)?);
        }
        let seen =
            if seen.len() == 1 { seen.remove(0) } else { concat(&seen.iter().collect::<Vec<_>>(), 2)? };
        self.projector.forward(&seen)
    }

    /// Returns the embeddings of a prompt, `(batch, patches + sequence, hidden_size)`: the first token, the patches, the other
    /// tokens. `ids`: `(batch, sequence)` of u32; `patches`: `(batch, patches, hidden_size)`, from [`see`](OpenVla::see).
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if the batch sizes differ.
    pub fn embed(&self, ids: &Tensor, patches: Option<&Tensor>) -> Result<Tensor> {
        let words = self.language_model.embed(ids)?;
        let Some(patches) = patches else { return Ok(words) };
        let (batch, time, _) = words.dims3()?;
        if patches.dim(0)? != batch {
            return Err(Error::input(format!("{} images for {batch} sequences of tokens", patches.dim(0)?))
                .hint("expected one image per sequence"));
        }
        let (first, rest) = (words.narrow(1, 0, 1)?, words.narrow(1, 1, time - 1)?);
        let patches = patches.to_dtype(words.dtype())?;
        Ok(match time {
            1 => concat(&[&first, &patches], 1)?,
            _ => concat(&[&first, &patches, &rest], 1)?,
        })
    }

    /// Returns the hidden states of `embeddings` after the final norm, `(batch, sequence, hidden_size)`; extends the KV `cache`.
    pub fn hidden(&self, embeddings: &Tensor, mask: &Mask, cache: &mut Cache) -> Result<Tensor> {
        let (past, time) = (cache.length(), embeddings.dim(1)?);
        self.language_model.check_length(past + time)?;
        let positions = Positions::counting(past, time);
        let step = Step { positions: &positions, mask, token_type_ids: None };
        self.language_model.hidden(embeddings, &step, cache, &mut no_hook)
    }

    /// Returns the logits of the next token: `(…, hidden_size)` to `(…, vocab_size)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let logits = self.language_model.logits(hidden)?;
        logits.ok_or_else(|| Error::new(ErrorKind::Mismatch, "the language model has no output head"))
    }
}

/// OpenVLA and models fine-tuned from it, listed under RT-2.
pub static FAMILY: Family = Family {
    name: "openvla",
    systems: &["RT-2"],
    paper: "Brohan et al. 2023, arXiv 2307.15818; Kim et al. 2024, arXiv 2406.09246",
    model_types: &["openvla"],
    architectures: &["OpenVLAForActionPrediction", "ActionTokenizer", "PrismaticImageProcessor"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Action],
    releases: &[
        Release::new("openvla/openvla-7b", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-prismatic", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-spatial", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-object", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-goal", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-7b-finetuned-libero-10", "RT-2", "7.5B", "MIT (base: Llama 2)"),
        Release::new("openvla/openvla-v01-7b", "RT-2", "7.1B", "MIT (base: Llama 2)"),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open,
    sample,
};
