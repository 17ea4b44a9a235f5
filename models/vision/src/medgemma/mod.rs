//! MedGemma, and multimodal Gemma 3: visual question answering.
//!
//! Tu et al. 2023, "Towards Generalist Biomedical AI", arXiv 2307.14334 (Med-PaLM M, whose weights are closed);
//! Sellergren et al. 2025, "MedGemma Technical Report", arXiv 2507.05201; Gemma Team 2025, arXiv 2503.19786. SigLIP's
//! patch states are pooled and projected to Gemma 3's embeddings; the tokens of an image attend to each other
//! bidirectionally. Checked against transformers `Gemma3ForConditionalGeneration`, parity cases
//! `tests/parity/medgemma`. Loads `model_type: "gemma3"`. Activations are `(batch, sequence, hidden_size)`.

mod prompt;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, Modality, Prompt, Turn};
use fauna_shared::model::{
    CausalLm, Family, Keys, Model, Pipeline, Pretrained, Release, Step, check_sizes, no_hook,
};
use fauna_shared::nn::{Linear, RmsNorm};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::gemma3::{self, Gemma3};
use fauna_text::words;
use serde::Deserialize;
use serde_json::{Value, json};

pub use prompt::OneShot;

use crate::processor;
use crate::siglip::{VisionConfig, VisionTower};
use crate::vision_language::{
    self, Marks, MultimodalProcessor, PipelineSettings, VisionLanguageModel, VisionLanguagePipeline,
};

/// `config.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
pub struct Config {
    /// Config of the language model.
    pub text_config: gemma3::Config,
    /// Config of the vision tower.
    pub vision_config: VisionConfig,
    /// Number of tokens per image, a square number.
    pub mm_tokens_per_image: usize,
    /// Id of the image token.
    pub image_token_index: u32,
}

impl TryFrom<Value> for Config {
    type Error = String;

    fn try_from(config: Value) -> std::result::Result<Self, String> {
        let mut text = vision_language::without_nulls(&config["text_config"], &["sliding_window"]);
        let mut vision = vision_language::without_nulls(&config["vision_config"], &[]);
        for (key, part) in [("text_config", &mut text), ("vision_config", &mut vision)] {
            if part.is_null() {
                *part = json!({});
            }
            if !part.is_object() {
                return Err(format!("{key} is not an object"));
            }
        }
        // The top-level `tie_word_embeddings` is used; and the logits of the whole model are not soft-capped.
        let message = |error: Error| error.message().to_string();
        let tied: Option<bool> =
            json::part("tie_word_embeddings", config["tie_word_embeddings"].clone()).map_err(message)?;
        text["tie_word_embeddings"] = json!(tied.unwrap_or(true));
        text["architectures"] = json!(["Gemma3ForCausalLM"]);
        // The pooling head is not used, and not in the releases.
        vision["vision_use_head"] = json!(false);
        let number = |name: &str, default: u64| match &config[name] {
            Value::Null => Ok(default),
            value => value.as_u64().ok_or_else(|| format!("{name} is {value}, expected a number")),
        };
        let image_token = number("image_token_index", 262_144)?;
        Ok(Self {
            text_config: json::part("text_config", text).map_err(message)?,
            vision_config: json::part("vision_config", vision).map_err(message)?,
            mm_tokens_per_image: number("mm_tokens_per_image", 256)? as usize,
            image_token_index: u32::try_from(image_token)
                .map_err(|_| format!("image_token_index {image_token} is not a valid token id"))?,
        })
    }
}

impl Config {
    /// Patches per image side, and the pooling kernel size.
    fn pooling(&self) -> Result<(usize, usize)> {
        let vision = &self.vision_config;
        check_sizes(&[
            ("mm_tokens_per_image", self.mm_tokens_per_image),
            ("image_size", vision.image_size),
            ("patch_size", vision.patch_size),
        ])?;
        let (side, tokens) = (vision.image_size / vision.patch_size, self.mm_tokens_per_image.isqrt());
        match side / tokens {
            0 => Err(Error::unsupported(format!(
                "mm_tokens_per_image is {}, but an image has {side} by {side} patches",
                self.mm_tokens_per_image
            ))),
            kernel => Ok((side, kernel)),
        }
    }
}

/// The config keys that [`Config`] does not declare.
pub static KEYS: Keys = Keys {
    mapped: &[
        ("image_token_id", "image_token_index"),
        ("boi_token_id", "boi_token_index"),
        ("eoi_token_id", "eoi_token_index"),
    ],
    parts: &[
        // The top-level key is used.
        ("text_config", &Keys { harmless: &["tie_word_embeddings"], ..Keys::NONE }),
        // The pooling head is not used.
        ("vision_config", &Keys { harmless: &["vision_use_head"], ..Keys::NONE }),
    ],
    ..Keys::NONE
};

/// Maps the tensor names of four versions of transformers to those of this family.
///
/// ```
/// use fauna_shared::weights::Name;
/// use fauna_vision::medgemma::rename;
/// for name in ["language_model.model.norm.weight", "model.language_model.norm.weight"] {
///     assert_eq!(rename(name), Name::To("language_model.norm.weight".into()));
/// }
/// let norm = Name::To("vision_tower.post_layernorm.bias".into());
/// assert_eq!(rename("model.vision_tower.post_layernorm.bias"), norm);
/// ```
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    let plain = name.strip_prefix("model.").unwrap_or(name);
    let renamed = [
        ("language_model.model.model.", "language_model."),
        ("language_model.model.", "language_model."),
        ("lm_head.", "language_model.lm_head."),
    ]
    .into_iter()
    .find_map(|(from, to)| Some(format!("{to}{}", plain.strip_prefix(from)?)))
    .unwrap_or_else(|| plain.to_string());
    // Newer versions of transformers have no module between the tower and its parts.
    let renamed = match renamed.strip_prefix("vision_tower.vision_model.") {
        Some(part) => format!("vision_tower.{part}"),
        None => renamed,
    };
    if renamed == name { Name::Keep } else { Name::To(renamed) }
}

/// The network.
pub struct MedGemma {
    config: Config,
    vision_tower: VisionTower,
    multi_modal_projector: Projector,
    language_model: Gemma3,
}

/// The projector from SigLIP's hidden states to Gemma 3's embeddings, with average pooling.
struct Projector {
    mm_soft_emb_norm: RmsNorm,
    mm_input_projection: Linear,
    side: usize,
    kernel: usize,
}

impl Model for MedGemma {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let c = &config;
        w.skip("vision_tower.head");
        // Loaded first: both check the sizes that the projector uses.
        let vision_tower = VisionTower::load(&c.vision_config, &w.at("vision_tower"))?;
        let language_model = Gemma3::load(c.text_config.clone(), &w.at("language_model"))?;
        let multi_modal_projector = Projector::load(c, &w.at("multi_modal_projector"))?;
        Ok(Self { vision_tower, multi_modal_projector, language_model, config })
    }
}

impl Projector {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (side, kernel) = c.pooling()?;
        let (seen, width) = (c.vision_config.hidden_size, c.text_config.hidden_size);
        Ok(Self {
            mm_soft_emb_norm: w.rms_norm_from_one(
                "mm_soft_emb_norm",
                seen,
                c.vision_config.layer_norm_eps,
            )?,
            // Stored transposed.
            mm_input_projection: Linear::new(
                w.matrix_transposed("mm_input_projection_weight", width, seen)?,
                None,
            ),
            side,
            kernel,
        })
    }

    /// Projects `x`, `(images, patches, vision_hidden_size)`, to `(images, tokens, hidden_size)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (pictures, _, width) = x.dims3()?;
        let (side, kernel) = (self.side, self.kernel);
        let tokens = side / kernel;
        let grid = x.reshape((pictures, side, side, width))?;
        // Patches outside the last full pooling window are dropped.
        let grid = grid.narrow(1, 0, tokens * kernel)?.narrow(2, 0, tokens * kernel)?.contiguous()?;
        let rows = grid.reshape((pictures, tokens, kernel, tokens * kernel * width))?.mean(2)?;
        let pooled = rows.reshape((pictures, tokens * tokens, kernel, width))?.mean(2)?;
        self.mm_input_projection.forward(&self.mm_soft_emb_norm.forward(&pooled)?)
    }
}

/// The attention mask: causal, with bidirectional attention among the tokens of an image. Each run of tokens that
/// `pictures` marks is one image.
fn image_mask(pictures: &Marks) -> Result<Mask> {
    let row = |marks: &Vec<bool>| {
        let mut ends = vec![0; marks.len()];
        for query in (0..marks.len()).rev() {
            let joined = marks[query] && marks.get(query + 1) == Some(&true);
            ends[query] = if joined { ends[query + 1] } else { query + 1 };
        }
        ends.into_iter().map(|end| 0..end).collect()
    };
    Mask::spans(pictures.iter().map(row).collect())
}

impl VisionLanguageModel for MedGemma {
    fn num_hidden_layers(&self) -> usize {
        self.language_model.num_hidden_layers()
    }

    fn vocab_size(&self) -> usize {
        self.language_model.vocab_size()
    }

    fn max_position_embeddings(&self) -> usize {
        self.language_model.max_position_embeddings()
    }

    fn image_token(&self) -> u32 {
        self.config.image_token_index
    }

    fn tokens_of_a_picture(&self) -> usize {
        let tokens = self.multi_modal_projector.side / self.multi_modal_projector.kernel;
        tokens * tokens
    }

    fn image_size(&self) -> usize {
        self.config.vision_config.image_size
    }

    fn see(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let states = self.vision_tower.forward(&self.vision_tower.taken(pixel_values)?)?;
        self.multi_modal_projector.forward(&states.last_hidden_state)
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.language_model.embed(ids)
    }

    fn hidden(
        &self,
        x: &Tensor,
        positions: &Positions,
        real: Option<&Marks>,
        pictures: Option<&Marks>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let mut mask = match pictures.filter(|marks| marks.iter().flatten().any(|mark| *mark)) {
            Some(pictures) => image_mask(pictures)?,
            None => Mask::causal(),
        };
        if let Some(real) = real {
            mask = mask.with_padding(real)?;
        }
        let step = Step { positions, mask: &mask, token_type_ids: None };
        self.language_model.hidden(x, &step, cache, &mut no_hook)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.language_model
            .raw_logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))
    }

    fn rows(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<(Vec<Vec<u32>>, Option<Marks>)> {
        let image = self.image_token() as usize;
        let known = self.vocab_size().max(image + 1);
        let rows: Vec<Vec<u32>> = transfer::rows(&words::checked_ids(ids, mask, known, &Device::Cpu)?)?;
        let words = self.vocab_size();
        if let Some(id) = rows.iter().flatten().find(|id| **id as usize >= words && **id as usize != image) {
            return Err(Error::input(format!("token {id} is outside the vocabulary of {words}")));
        }
        Ok((rows, mask.map(words::real_tokens).transpose()?))
    }

    fn prompt(
        &self,
        kit: &MultimodalProcessor,
        prompt: &Prompt,
        asks: bool,
    ) -> Result<(Vec<u32>, Vec<Image>)> {
        prompt::tokens(kit, prompt, self.tokens_of_a_picture(), asks)
    }

    fn turns(&self, kit: &MultimodalProcessor, prompt: &Prompt) -> Result<Option<Vec<Turn>>> {
        prompt::turns(kit, prompt)
    }

    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        *self = Self::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }
}

/// Opens a checkpoint as a pipeline. Settings: `pan_and_scan` (adds crops of long images), `padded_resize` (keeps the
/// aspect ratio, as in Med-PaLM M's paper), `instruction` and `exemplar` (as in [`OneShot`]).
pub fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    let (network, inventory) = pretrained.load::<MedGemma>()?;
    let mut card = pretrained.card(&pretrained.architecture("Gemma3ForConditionalGeneration"), &inventory);
    card.notes.push(vision_language::NO_DEVICE.to_string());
    let size = network.image_size();
    let mut processor =
        processor::of(&pretrained.files, "Gemma3ImageProcessor")?.unwrap_or_else(|| Processor::gemma3(size));
    let flag = |name: &str| match pretrained.options.settings.get(name) {
        None => Ok(None),
        Some(value) => {
            let flag = value.as_bool();
            flag.map(Some).ok_or_else(|| Error::input(format!("{name} is {value}, expected true or false")))
        }
    };
    if let Some(on) = flag("pan_and_scan")? {
        processor = processor.with_pan_and_scan(on);
    }
    if flag("padded_resize")? == Some(true) {
        processor = processor.padded();
    }
    if processor.size() != (size, size) {
        let (height, width) = processor.size();
        return Err(pretrained.config_error(format!(
            "the image processor returns {height} by {width} pixels, the vision tower expects {size} by {size}"
        )));
    }
    let settings = PipelineSettings {
        card,
        processor,
        both_ways: true,
        end: gemma3::DEFAULT_TOKENS.eos,
        end_of_turn: gemma3::DEFAULT_TOKENS.end_of_turn,
        answer: 200,
    };
    Ok(Box::new(VisionLanguagePipeline::new(pretrained, network, settings)?))
}

/// A small config that covers every branch.
pub fn sample() -> Value {
    json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 4,
        "image_token_index": 60, "boi_token_index": 58, "eoi_token_index": 59, "image_seq_length": 4,
        "text_config": {
            "model_type": "gemma3_text", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "query_pre_attn_scalar": 12, "max_position_embeddings": 24, "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_theta": 5000.0, "rope_local_base_freq": 100.0
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 20, "patch_size": 4, "vision_use_head": false
        }
    })
}

/// MedGemma and multimodal Gemma 3, in place of Med-PaLM M, whose weights are closed.
pub static FAMILY: Family = Family {
    name: "gemma3",
    systems: &["Med-PaLM M"],
    paper: "Tu et al. 2023, arXiv 2307.14334; Sellergren et al. 2025, arXiv 2507.05201; Gemma Team 2025, arXiv 2503.19786",
    model_types: &["gemma3"],
    architectures: &["Gemma3ForConditionalGeneration"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Text],
    releases: &[
        Release::new("google/medgemma-4b-it", "Med-PaLM M", "4B", "Health AI Developer Foundations"),
        Release::new("google/medgemma-4b-pt", "Med-PaLM M", "4B", "Health AI Developer Foundations"),
        Release::new("google/medgemma-1.5-4b-it", "Med-PaLM M", "4B", "Health AI Developer Foundations"),
        Release::new("google/medgemma-27b-it", "Med-PaLM M", "27B", "Health AI Developer Foundations"),
        Release::new("google/gemma-3-4b-it", "Med-PaLM M", "4B", "Gemma"),
        Release::new("google/gemma-3-4b-pt", "Med-PaLM M", "4B", "Gemma"),
        Release::new("google/gemma-3-12b-it", "Med-PaLM M", "12B", "Gemma"),
        Release::new("google/gemma-3-12b-pt", "Med-PaLM M", "12B", "Gemma"),
        Release::new("google/gemma-3-27b-it", "Med-PaLM M", "27B", "Gemma"),
        Release::new("google/gemma-3-27b-pt", "Med-PaLM M", "27B", "Gemma"),
    ],
    config_of_gguf: None,
    layout: None,
    rename,
    inventory: |pretrained| Ok(pretrained.load::<MedGemma>()?.1),
    causal_lm: None,
    open,
    sample,
};
