//! LLaVA-Med: visual question answering by CLIP, an MLP projector and Mistral, or another language model.
//!
//! Li et al. 2023, "LLaVA-Med", arXiv 2306.00890; Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning",
//! arXiv 2310.03744. The hidden states of CLIP's second-to-last layer are projected to the language model's embeddings;
//! `text_config` may be that of any language model of [`fauna_text`]. Checked against transformers
//! `LlavaForConditionalGeneration`, parity cases `tests/parity/llava`. Loads `model_type: "llava_mistral"`, the original
//! format, and `"llava"`, transformers' format. Activations are `(batch, sequence, hidden_size)`.

mod prompt;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::image::Processor;
use fauna_shared::image::processor::CLIP_MEAN;
use fauna_shared::item::{Image, Modality, Prompt, Turn};
use fauna_shared::model::{CausalLm, Family, Keys, Pipeline, Pretrained, Release, Step, no_hook};
use fauna_shared::nn::{Activation, IGNORE_INDEX, Linear};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::{below_head, causal_lm, causal_lm_at, words};
use serde_json::{Value, json};

use crate::clip::{VisionConfig, VisionTower, without_class};
use crate::processor;
use crate::vision_language::{
    self, Marks, MultimodalProcessor, PipelineSettings, VisionLanguageModel, VisionLanguagePipeline,
    as_turns, same_shape, with_parts,
};
use prompt::Form;

/// The vision tower of LLaVA 1.5 and LLaVA-Med, for configs that only name it.
const TOWER: &str = "openai/clip-vit-large-patch14-336";

/// The original's id of an image, `IMAGE_TOKEN_INDEX`.
const IMAGE: i64 = -200;

/// `config.json` of either format.
#[derive(Debug, Clone)]
pub struct Config {
    /// The language model's config, its `model_type` among the keys.
    pub language: Value,
    /// Indices of the vision tower's `hidden_states` that are used, from the end if negative; several are concatenated.
    pub layers: Vec<i64>,
    /// Whether the class token is used.
    pub with_class: bool,
    /// The projector from vision to language.
    pub projector: Projection,
    /// The image token, one per image embedding, in transformers' format; `None` in the original format, which has one
    /// per image.
    pub image_token: Option<u32>,
}

/// Architecture of the projector.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    /// Number of linear layers, with the activation between them.
    pub maps: usize,
    /// Activation function.
    pub activation: Activation,
    /// Whether the linear layers have biases.
    pub bias: bool,
}

/// The config keys that [`Config`] does not declare.
pub static KEYS: Keys = Keys {
    mapped: &[("image_token_id", "image_token_index")],
    // The number of image tokens follows from the vision tower.
    harmless: &["image_seq_length"],
    parts: &[("text_config", &Keys::NONE), ("vision_config", &Keys::NONE)],
    ..Keys::NONE
};

impl Config {
    /// Parses the config of either format.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) naming a value that is not implemented.
    pub fn read(pretrained: &Pretrained) -> Result<Self> {
        let wrong = |message: String| pretrained.config_error(message);
        match pretrained.config["text_config"].is_object() {
            true => Self::of_transformers(&pretrained.config, &wrong),
            false => Self::of_the_original(&pretrained.config),
        }
    }

    fn of_the_original(config: &Value) -> Result<Self> {
        let mut language = vision_language::without_nulls(config, &["sliding_window"]);
        language["model_type"] = match config["model_type"].as_str() {
            Some("llava_mistral") => json!("mistral"),
            _ => json!("llama"),
        };
        // What reads here always has its head, whatever class it was saved as.
        language["architectures"] = json!([]);
        let refuse = |key: &str, found: &Value, known: &str| {
            Err(Error::unsupported(format!("{key} {found} is not implemented"))
                .hint(format!("known: {known}")))
        };
        for key in ["mm_use_im_start_end", "mm_use_im_patch_token"] {
            if config[key] == json!(true) {
                return refuse(key, &config[key], "false");
            }
        }
        match config["image_aspect_ratio"].as_str() {
            None | Some("pad" | "square") => {}
            Some(_) => return refuse("image_aspect_ratio", &config["image_aspect_ratio"], "pad, square"),
        }
        let with_class = match config["mm_vision_select_feature"].as_str() {
            None | Some("patch") => false,
            Some("cls_patch") => true,
            Some(_) => {
                return refuse(
                    "mm_vision_select_feature",
                    &config["mm_vision_select_feature"],
                    "patch, cls_patch",
                );
            }
        };
        let kind = config["mm_projector_type"].as_str().unwrap_or("linear");
        let deep = kind.strip_prefix("mlp").and_then(|kind| kind.strip_suffix("x_gelu"));
        let maps = match (kind, deep.and_then(|depth| depth.parse::<usize>().ok())) {
            ("linear", _) => 1,
            (_, Some(depth @ 1..=16)) => depth,
            _ => return refuse("mm_projector_type", &config["mm_projector_type"], "linear, mlpNx_gelu"),
        };
        Ok(Self {
            language,
            layers: vec![config["mm_vision_select_layer"].as_i64().unwrap_or(-2)],
            with_class,
            projector: Projection { maps, activation: Activation::GeluErf, bias: true },
            image_token: None,
        })
    }

    fn of_transformers(config: &Value, wrong: &dyn Fn(String) -> Error) -> Result<Self> {
        let told = |error: Error| wrong(error.message().to_string());
        let flag = |key: &str| json::part::<Option<bool>>(key, config[key].clone()).map_err(told);
        let text = &config["text_config"];
        let mut language = match text["model_type"].as_str().unwrap_or("llama") {
            kind @ ("llama" | "mistral") => {
                let mut language = vision_language::without_nulls(text, &["sliding_window"]);
                language["model_type"] = json!(kind);
                language
            }
            _ => text.clone(),
        };
        // What reads here always has its head, whatever class a part of it was saved as.
        language["architectures"] = json!([]);
        if flag("tie_word_embeddings")? == Some(true) {
            language["tie_word_embeddings"] = json!(true);
        }
        let layers = match &config["vision_feature_layer"] {
            Value::Null => vec![-2],
            Value::Array(layers) => layers.iter().filter_map(Value::as_i64).collect(),
            layer => vec![layer.as_i64().ok_or_else(|| wrong(format!("vision_feature_layer is {layer}")))?],
        };
        let with_class = match config["vision_feature_select_strategy"].as_str() {
            None | Some("default") => false,
            Some("full") => true,
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "vision_feature_select_strategy \"{other}\" is not implemented"
                ))
                .hint("known: default, full"));
            }
        };
        let activation = match &config["projector_hidden_act"] {
            Value::Null => Activation::GeluErf,
            name => json::part("projector_hidden_act", name.clone()).map_err(told)?,
        };
        let bias = flag("multimodal_projector_bias")?.unwrap_or(true);
        let token: Option<u32> =
            json::part("image_token_index", config["image_token_index"].clone()).map_err(told)?;
        Ok(Self {
            language,
            layers,
            with_class,
            projector: Projection { maps: 2, activation, bias },
            image_token: Some(token.unwrap_or(32_000)),
        })
    }
}

/// Maps the tensor names of all releases to those of this family: the original's, and those of several versions of
/// transformers.
///
/// ```
/// use fauna_shared::weights::Name;
/// use fauna_vision::llava::rename;
/// for name in ["model.mm_projector.2.bias", "multi_modal_projector.linear_2.bias"] {
///     assert_eq!(rename(name), Name::To("mm_projector.2.bias".into()));
/// }
/// // The vision tower itself handles the nested prefix.
/// let class = "vision_tower.vision_model.embeddings.class_embedding";
/// assert_eq!(rename(&format!("model.vision_tower.{class}")), Name::To(class.into()));
/// ```
pub fn rename(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    let plain = name.strip_prefix("model.").unwrap_or(name);
    let known = [
        ("vision_tower.vision_tower.", "vision_tower."),
        ("vision_tower.", "vision_tower."),
        ("multi_modal_projector.linear_1.", "mm_projector.0."),
        ("multi_modal_projector.linear_2.", "mm_projector.2."),
        ("mm_projector.weight", "mm_projector.0.weight"),
        ("mm_projector.bias", "mm_projector.0.bias"),
        ("mm_projector.", "mm_projector."),
        ("language_model.model.model.", "language_model."),
        ("language_model.model.", "language_model."),
        ("language_model.", "language_model."),
    ];
    let renamed = known
        .into_iter()
        .find_map(|(from, to)| Some(format!("{to}{}", plain.strip_prefix(from)?)))
        .unwrap_or_else(|| format!("language_model.{plain}"));
    let renamed = match renamed.strip_prefix("language_model.") {
        Some(rest) => format!("language_model.{}", below_head(rest)),
        None => renamed,
    };
    if renamed == name { Name::Keep } else { Name::To(renamed) }
}

/// The network.
pub struct Llava {
    config: Config,
    vision_tower: VisionTower,
    /// Whether the vision tower is of a separate release.
    has_companion: bool,
    mm_projector: Vec<Linear>,
    language_model: Box<dyn CausalLm>,
}

impl Llava {
    /// Loads the language model, the projector and the vision tower, which may be a separate release.
    pub fn open(pretrained: &Pretrained) -> Result<(Self, Inventory)> {
        let config = Config::read(pretrained)?;
        let w = &pretrained.weights;
        let named = pretrained.config["mm_vision_tower"].as_str().unwrap_or(TOWER);
        let vision = match &pretrained.config["vision_config"] {
            Value::Null => tower_config(pretrained, named)?,
            vision => vision_language::without_nulls(vision, &[]),
        };
        let vision: VisionConfig =
            json::part("vision_config", vision).map_err(|error| pretrained.config_error(error.message()))?;
        let language_model =
            language_model(&config, w).map_err(|error| error.at(pretrained.config_path()))?;
        let mm_projector = projector(&config, &vision, language_model.hidden_size(), w)?;
        let (vision_tower, part) = match w.has("vision_tower", true) {
            true => (VisionTower::load(&vision, &w.at("vision_tower"))?, None),
            false => {
                let companion = pretrained.companion_at("vision_tower", &crate::clip::FAMILY, named)?;
                for other in ["text_model", "text_projection", "visual_projection", "logit_scale"] {
                    companion.weights.skip(other);
                }
                let tower = match companion.weights.has("vision_model", true) {
                    true => VisionTower::load(&vision, &companion.weights.at("vision_model"))?,
                    false => VisionTower::load(&vision, &companion.weights)?,
                };
                (tower, Some(companion.weights.finish()?))
            }
        };
        let (whole, has_companion) = (w.finish()?, part.is_some());
        let inventory = match part {
            Some(part) => with_parts(whole, part),
            None => whole,
        };
        Ok((Self { config, vision_tower, has_companion, mm_projector, language_model }, inventory))
    }

    /// The image token: the first id after the vocabulary if the config has none.
    fn place(&self) -> u32 {
        self.config.image_token.unwrap_or(self.language_model.vocab_size() as u32)
    }
}

/// Loads the language model.
fn language_model(config: &Config, w: &Weights) -> Result<Box<dyn CausalLm>> {
    let w = w.at("language_model");
    match config.image_token.is_some() {
        true => causal_lm_at("text_config", &config.language, &w),
        false => causal_lm(&config.language, &w),
    }
}

/// Loads the projector from the states of the vision tower to embeddings of `width`.
fn projector(config: &Config, vision: &VisionConfig, width: usize, w: &Weights) -> Result<Vec<Linear>> {
    let depths = depths(&config.layers, vision.num_hidden_layers)?;
    let seen = vision.hidden_size.saturating_mul(depths.len());
    let map = |i: usize| {
        let inputs = if i == 0 { seen } else { width };
        // The numbers of the names include the activations.
        w.linear_bias_if(config.projector.bias, &format!("mm_projector.{}", 2 * i), inputs, width)
    };
    (0..config.projector.maps).map(map).collect()
}

/// The number of layers of each of the hidden states that are used.
fn depths(layers: &[i64], blocks: usize) -> Result<Vec<usize>> {
    let states = blocks as i64 + 1;
    let depth = |layer: &i64| {
        let depth = if *layer < 0 { states + layer } else { *layer };
        match (0..states).contains(&depth) {
            true => Ok(depth as usize),
            false => Err(Error::unsupported(format!(
                "vision_feature_layer {layer}: the tower has {states} hidden states"
            ))),
        }
    };
    if layers.is_empty() {
        return Err(Error::unsupported("vision_feature_layer is empty"));
    }
    layers.iter().map(depth).collect()
}

/// The config of the vision tower that an original config names: from the folder of that name in the release, the
/// built-in one of CLIP ViT-L/14-336, or from the release of that name.
fn tower_config(pretrained: &Pretrained, named: &str) -> Result<Value> {
    let inside = |config: &Value| match &config["vision_config"] {
        Value::Null => vision_language::without_nulls(config, &[]),
        vision => vision_language::without_nulls(vision, &[]),
    };
    if let Some(config) = pretrained.json(&format!("{named}/config.json"))? {
        return Ok(inside(&config));
    }
    match named {
        TOWER => Ok(json!({
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14, "projection_dim": 768
        })),
        other => Ok(inside(&pretrained.companion(&crate::clip::FAMILY, other)?.config)),
    }
}

impl VisionLanguageModel for Llava {
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
        self.place()
    }

    fn tokens_of_a_picture(&self) -> usize {
        self.vision_tower.config().patches() + usize::from(self.config.with_class)
    }

    fn image_size(&self) -> usize {
        self.vision_tower.config().image_size
    }

    fn see(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let pixels = self.vision_tower.taken(pixel_values)?;
        let blocks = self.vision_tower.config().num_hidden_layers;
        let states = depths(&self.config.layers, blocks)?.into_iter().map(|depth| {
            let states = self.vision_tower.states(&pixels, depth)?;
            if self.config.with_class { Ok(states) } else { without_class(&states) }
        });
        let states = states.collect::<Result<Vec<_>>>()?;
        let mut x = Tensor::cat(&states, 2)?.contiguous()?;
        let last = self.mm_projector.len().saturating_sub(1);
        for (i, map) in self.mm_projector.iter().enumerate() {
            x = match i == last {
                true => map.forward(&x)?,
                false => map.forward_then(&x, self.config.projector.activation)?,
            };
        }
        Ok(x)
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.language_model.embed(ids)
    }

    fn hidden(
        &self,
        x: &Tensor,
        positions: &Positions,
        real: Option<&Marks>,
        _pictures: Option<&Marks>,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        self.language_model.check_length(cache.length() + x.dim(1)?)?;
        let mask = match real {
            Some(real) => Mask::causal().with_padding(real)?,
            None => Mask::causal(),
        };
        let step = Step { positions, mask: &mask, token_type_ids: None };
        self.language_model.hidden(x, &step, cache, &mut no_hook)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.language_model
            .logits(hidden)?
            .ok_or_else(|| Error::unsupported("the language model has no output head"))
    }

    /// In the original's ids, -200 stands for an image. Shorter sequences are padded on the right, as in the original.
    fn rows(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<(Vec<Vec<u32>>, Option<Marks>)> {
        let real = mask.map(words::real_tokens).transpose()?;
        let rows: Vec<Vec<i64>> = transfer::rows(&ids.to_dtype(DType::I64)?)?;
        let (place, words) = (self.place(), self.vocab_size() as i64);
        let whole = self.config.image_token.is_none();
        let mut out = Vec::with_capacity(rows.len());
        for (r, row) in rows.iter().enumerate() {
            let mut here = Vec::with_capacity(row.len());
            for (t, id) in row.iter().enumerate() {
                let shown = real.as_ref().is_none_or(|real| real[r][t]);
                match *id {
                    IMAGE if whole && shown => {
                        here.extend(std::iter::repeat_n((place, shown), self.tokens_of_a_picture()));
                    }
                    id if (0..words).contains(&id) || id == i64::from(place) => {
                        let id = u32::try_from(id).unwrap_or(0);
                        here.push((if shown { id } else { 0 }, shown));
                    }
                    // Masked tokens may be outside the vocabulary.
                    _ if !shown => here.push((0, false)),
                    id => {
                        return Err(Error::input(format!(
                            "token {id} of sequence {r} is outside the vocabulary of {words}"
                        )));
                    }
                }
            }
            out.push(here);
        }
        let longest = out.iter().map(Vec::len).max().unwrap_or(0);
        let filled = out.iter().any(|row| row.len() < longest);
        out.iter_mut().for_each(|row| row.resize(longest, (0, false)));
        let rows = out.iter().map(|row| row.iter().map(|(id, _)| *id).collect()).collect();
        let shown = || out.iter().map(|row| row.iter().map(|(_, shown)| *shown).collect()).collect();
        Ok((rows, (filled || real.is_some()).then(shown)))
    }

    /// A vision tower of a separate release stays as it is.
    fn reload(&mut self, _: &Value, weights: &Weights) -> Result<()> {
        let language_model = language_model(&self.config, weights)?;
        let width = language_model.hidden_size();
        self.mm_projector = projector(&self.config, self.vision_tower.config(), width, weights)?;
        if !self.has_companion {
            self.vision_tower = VisionTower::load(self.vision_tower.config(), &weights.at("vision_tower"))?;
        }
        self.language_model = language_model;
        Ok(())
    }

    /// In the original's ids, -200 stands for all tokens of an image, none of which has a label.
    fn labels(&self, ids: &Tensor, mask: Option<&Tensor>, labels: &Tensor) -> Result<Tensor> {
        same_shape(ids, labels)?;
        if self.config.image_token.is_some() {
            return Ok(labels.clone());
        }
        let real = mask.map(words::real_tokens).transpose()?;
        let ids: Vec<Vec<i64>> = transfer::rows(&ids.to_dtype(DType::I64)?)?;
        let labels: Vec<Vec<i64>> = transfer::rows(&labels.to_dtype(DType::I64)?)?;
        let row = |(r, (ids, labels)): (usize, (&Vec<i64>, &Vec<i64>))| {
            let label = |(t, (id, label)): (usize, (&i64, &i64))| {
                let shown = real.as_ref().is_none_or(|real| real[r][t]);
                match *id == IMAGE && shown {
                    true => vec![IGNORE_INDEX; self.tokens_of_a_picture()],
                    false => vec![if shown { *label } else { IGNORE_INDEX }],
                }
            };
            ids.iter().zip(labels).enumerate().flat_map(label).collect::<Vec<i64>>()
        };
        let mut rows: Vec<Vec<i64>> = ids.iter().zip(&labels).enumerate().map(row).collect();
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        rows.iter_mut().for_each(|row| row.resize(longest, IGNORE_INDEX));
        Ok(Tensor::new(rows, &Device::Cpu)?)
    }

    fn turns(&self, _: &MultimodalProcessor, prompt: &Prompt) -> Result<Option<Vec<Turn>>> {
        as_turns(prompt).map(Some)
    }

    fn prompt(
        &self,
        kit: &MultimodalProcessor,
        prompt: &Prompt,
        asks: bool,
    ) -> Result<(Vec<u32>, Vec<Image>)> {
        let (form, template) = match self.config.language["model_type"].as_str() {
            Some("mistral") => (Form::Mistral, None),
            Some("llama") => (Form::Vicuna, None),
            // Of these LLaVA has no form of its own.
            _ => (Form::Vicuna, kit.template.as_ref()),
        };
        prompt::tokens(kit, prompt, form, template, self.place(), self.tokens_of_a_picture(), asks)
    }
}

/// The tensors of a checkpoint.
pub fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(Llava::open(pretrained)?.1)
}

/// Opens a checkpoint of either format as a pipeline.
pub fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    let (network, inventory) = Llava::open(pretrained)?;
    let mut card = pretrained.card(&pretrained.architecture("LlavaMistralForCausalLM"), &inventory);
    card.notes.push(vision_language::NO_DEVICE.to_string());
    let size = network.image_size();
    let square = pretrained.config["image_aspect_ratio"].as_str() == Some("square");
    let processor =
        processor::of(&pretrained.files, "LlavaImageProcessor")?.unwrap_or_else(|| match square {
            true => Processor::clip(size),
            false => Processor::llava(size),
        });
    // The original releases have CLIP's processor config, which does not pad to a square.
    let original = !pretrained.config["text_config"].is_object();
    let processor = if original && !square { processor.squared(CLIP_MEAN) } else { processor };
    let known = network.language_model.default_tokens();
    let end: &[u32] = match network.config.language["model_type"].as_str() {
        Some("llama" | "mistral") => &[2],
        _ => known.eos,
    };
    let settings = PipelineSettings {
        card,
        processor,
        both_ways: false,
        end,
        end_of_turn: known.end_of_turn,
        answer: 1024,
    };
    Ok(Box::new(VisionLanguagePipeline::new(pretrained, network, settings)?))
}

/// A small config that covers every branch.
pub fn sample() -> Value {
    json!({
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "image_token_index": 60,
        "image_seq_length": 5,
        "vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full", "projector_hidden_act": "gelu",
        "text_config": {
            "model_type": "mistral", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 24, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 3
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 20, "patch_size": 10
        }
    })
}

/// LLaVA-Med, and LLaVA 1.5, which has the same architecture.
pub static FAMILY: Family = Family {
    name: "llava",
    systems: &["Med-PaLM M"],
    paper: "Li et al. 2023, arXiv 2306.00890; Liu et al. 2023, arXiv 2310.03744",
    model_types: &["llava_mistral", "llava", "llava_llama"],
    architectures: &["LlavaMistralForCausalLM", "LlavaForConditionalGeneration", "LlavaLlamaForCausalLM"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Image, Modality::Text],
    outputs: &[Modality::Text],
    releases: &[
        Release::new("microsoft/llava-med-v1.5-mistral-7b", "Med-PaLM M", "7.6B", "research only"),
        Release::new("llava-hf/llava-1.5-7b-hf", "Med-PaLM M", "7B", "Llama 2"),
        Release::new("liuhaotian/llava-v1.5-7b", "Med-PaLM M", "7B", "Llama 2"),
    ],
    config_of_gguf: None,
    layout: None,
    rename,
    inventory,
    causal_lm: None,
    open,
    sample,
};
