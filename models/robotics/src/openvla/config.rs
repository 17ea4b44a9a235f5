//! The config of OpenVLA, in the Hugging Face format and in that of the training code.

use fauna_shared::nn::Activation;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::prompt::PromptStyle;
use super::vit::VitConfig;

/// Config of OpenVLA, with the defaults of the reference class for missing keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
pub struct Config {
    /// Vision towers: one, or DINOv2 and SigLIP.
    pub towers: Vec<VitConfig>,
    /// The language model's config, its `model_type` among the keys.
    pub text_config: Value,
    /// Prompt template.
    pub wording: PromptStyle,
    /// Number of bin edges of the action tokenizer.
    pub n_action_bins: usize,
    /// Number of padding tokens at the end of the vocabulary.
    pub pad_to_multiple_of: usize,
}

/// Vision backbones by their names in the training code: timm names, image size, activations that override timm's.
type Backbone = (&'static str, &'static [&'static str], u64, [Option<&'static str>; 2]);

const DINO: &str = "vit_large_patch14_reg4_dinov2.lvd142m";
const QUICK: Option<&str> = Some("quick_gelu");
const BACKBONES: [Backbone; 9] = [
    ("dinosiglip-vit-so-224px", &[DINO, "vit_so400m_patch14_siglip_224"], 224, [None, None]),
    ("dinosiglip-vit-so-384px", &[DINO, "vit_so400m_patch14_siglip_384"], 384, [None, None]),
    ("dinoclip-vit-l-336px", &[DINO, "vit_large_patch14_clip_336.openai"], 336, [None, QUICK]),
    ("siglip-vit-so400m", &["vit_so400m_patch14_siglip_224"], 224, [None, None]),
    ("siglip-vit-so400m-384px", &["vit_so400m_patch14_siglip_384"], 384, [None, None]),
    ("dinov2-vit-l", &[DINO], 224, [None, None]),
    ("in1k-vit-l", &["vit_large_patch16_224.augreg_in21k_ft_in1k"], 224, [None, None]),
    ("clip-vit-l", &["vit_large_patch14_clip_224.openai"], 224, [QUICK, None]),
    ("clip-vit-l-336px", &["vit_large_patch14_clip_336.openai"], 336, [QUICK, None]),
];

/// Default vision backbone.
const DEFAULT_BACKBONE: &str = "siglip-vit-so400m";
/// Default language model.
const DEFAULT_LLM: &str = "vicuna-v15-7b";

/// Options of a tower in addition to its timm name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TimmKwargs {
    embed_dim: Option<usize>,
    depth: Option<usize>,
    num_heads: Option<usize>,
    mlp_ratio: Option<f64>,
    patch_size: Option<usize>,
}

impl TryFrom<Value> for Config {
    type Error = String;

    fn try_from(config: Value) -> Result<Self, String> {
        let text = |key: &str, default: &str| match &config[key] {
            Value::Null => Ok(default.to_string()),
            Value::String(text) => Ok(text.clone()),
            other => Err(format!("{key} is {other:.80}, expected a string")),
        };
        let number = |key: &str, default: u64| match &config[key] {
            Value::Null => Ok(default as usize),
            value => size(value).ok_or_else(|| format!("{key} is {value:.80}, expected a number")),
        };
        let backbone = text("vision_backbone_id", DEFAULT_BACKBONE)?;
        let llm = text("llm_backbone_id", DEFAULT_LLM)?;
        let towers = towers(&config, &backbone)?;
        let arch = text("arch_specifier", "no-align+gelu-mlp")?;
        if !["no-align+gelu-mlp", "no-align+fused-gelu-mlp"].contains(&arch.as_str()) {
            return Err(format!(
                "arch_specifier \"{arch:.80}\" is not implemented; known: no-align+gelu-mlp, no-align+fused-gelu-mlp"
            ));
        }
        Ok(Self {
            towers,
            text_config: text_config(&config["text_config"], &llm)?,
            wording: PromptStyle::of(&llm),
            n_action_bins: number("n_action_bins", 256)?,
            pad_to_multiple_of: number("pad_to_multiple_of", 64)?,
        })
    }
}

impl Config {
    /// Returns the number of patches, and image tokens, of an image.
    pub fn patches(&self) -> usize {
        self.towers.first().map_or(0, VitConfig::patches)
    }
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|size| usize::try_from(size).ok())
}

/// Returns the vision towers of `config`, from its own keys or the name of the backbone.
fn towers(config: &Value, backbone: &str) -> Result<Vec<VitConfig>, String> {
    let known = BACKBONES.iter().find(|(name, ..)| *name == backbone);
    let names: Vec<String> = match &config["timm_model_ids"] {
        Value::Null => match known {
            Some((_, names, ..)) => names.iter().map(|name| name.to_string()).collect(),
            None => {
                let known = BACKBONES.map(|(name, ..)| name).join(", ");
                return Err(format!(
                    "vision_backbone_id \"{backbone:.80}\" is unknown, and there are no \
                    timm_model_ids; known: {known}"
                ));
            }
        },
        names => Vec::deserialize(names).map_err(|error| format!("timm_model_ids: {error}"))?,
    };
    let fused = match config["use_fused_vision_backbone"].as_bool() {
        Some(fused) => fused,
        None => known.map_or(names.len() > 1, |(_, names, ..)| names.len() > 1),
    };
    if names.len() != 1 + usize::from(fused) {
        return Err(format!("{} timm_model_ids, and use_fused_vision_backbone is {fused}", names.len()));
    }
    let sizes = match &config["image_sizes"] {
        Value::Null => vec![known.map_or(224, |(_, _, side, _)| *side as usize); names.len()],
        sizes => list("image_sizes", sizes, size, names.len())?,
    };
    let acts = match &config["timm_override_act_layers"] {
        Value::Null => {
            known.map_or([None, None], |(.., acts)| *acts).map(|act| act.map(str::to_string)).to_vec()
        }
        acts => Vec::<Option<String>>::deserialize(acts)
            .map_err(|error| format!("timm_override_act_layers: {error}"))?,
    };
    let kwargs: Vec<TimmKwargs> = match &config["timm_model_kwargs"] {
        Value::Null => Vec::new(),
        kwargs => Vec::deserialize(kwargs).map_err(|error| format!("timm_model_kwargs: {error}"))?,
    };
    let for_each = |key: &str, found: usize| match config[key].is_null() || found == names.len() {
        true => Ok(()),
        false => Err(format!("{key} has {found} entries for {} timm_model_ids", names.len())),
    };
    for_each("timm_model_kwargs", kwargs.len())?;
    for_each("timm_override_act_layers", acts.len())?;
    let mut kwargs = kwargs.into_iter();
    let mut acts = acts.into_iter();
    let mut towers = Vec::new();
    for (name, side) in names.iter().zip(sizes) {
        let mut tower = VitConfig::of_timm(name, side).map_err(|error| error.to_string())?;
        let own = kwargs.next().unwrap_or_default();
        tower.embed_dim = own.embed_dim.unwrap_or(tower.embed_dim);
        tower.depth = own.depth.unwrap_or(tower.depth);
        tower.num_heads = own.num_heads.unwrap_or(tower.num_heads);
        tower.mlp_ratio = own.mlp_ratio.unwrap_or(tower.mlp_ratio);
        tower.patch_size = own.patch_size.unwrap_or(tower.patch_size);
        if let Some(act) = acts.next().flatten() {
            tower.act_layer = Activation::deserialize(json!(act))
                .map_err(|_| format!("timm_override_act_layers: \"{act:.80}\" is not implemented"))?;
        }
        towers.push(tower);
    }
    match towers.iter().all(|tower| tower.patches() == towers[0].patches()) {
        true => Ok(towers),
        false => Err(format!(
            "the vision towers have {} and {} patches, expected equal numbers",
            towers[0].patches(),
            towers[1].patches()
        )),
    }
}

/// Returns `count` entries of a list, or one value for all.
fn list(
    key: &str,
    value: &Value,
    read: impl Fn(&Value) -> Option<usize>,
    count: usize,
) -> Result<Vec<usize>, String> {
    let wrong = || format!("{key} is {value:.80}, expected {count} numbers");
    let values = match value {
        // Older configs have height and width for a single tower.
        Value::Array(values) => values.iter().map(read).collect::<Option<Vec<_>>>().ok_or_else(wrong)?,
        value => vec![read(value).ok_or_else(wrong)?; count],
    };
    match values.len() >= count && values.iter().all(|value| count > 1 || *value == values[0]) {
        true => Ok(values[..count].to_vec()),
        false => Err(wrong()),
    }
}

/// Returns `text_config`, with the defaults of transformers' config class for missing keys.
fn text_config(stored: &Value, llm: &str) -> Result<Value, String> {
    let kind = match &stored["model_type"] {
        Value::String(kind) => kind.as_str(),
        _ if llm.starts_with("mistral") => "mistral",
        _ if llm.starts_with("phi") => "phi",
        _ => "llama",
    };
    let is_llama = ["llama", "mistral"].contains(&kind);
    let mut keys = Map::from_iter([("model_type".to_string(), json!(kind))]);
    match stored {
        Value::Null => {}
        Value::Object(stored) => {
            let said = |(key, value): &(&String, &Value)| {
                !is_llama || !value.is_null() || key.as_str() == "sliding_window"
            };
            keys.extend(stored.iter().filter(said).map(|(key, value)| (key.clone(), value.clone())));
        }
        _ => return Err("text_config is not an object".into()),
    }
    // The language model always has its head, independent of the class it was saved from.
    keys.insert("architectures".into(), json!([]));
    Ok(keys.into())
}

/// Converts the `config.json` of the training code to the Hugging Face format; `None` for any other file.
pub(super) fn of_training_code(config: &Value) -> Option<Value> {
    let fused = |arch: &str| arch.contains("dinosiglip");
    let base = config["vla"]["base_vlm"].as_str()?;
    let (backbone, llm, resize) = match base {
        "prism-dinosiglip-224px+7b" => ("dinosiglip-vit-so-224px", "llama2-7b-pure", "resize-naive"),
        // The base models of the paper's ablations use LLaVA's resize strategy.
        "siglip-224px+7b" => ("siglip-vit-so400m", "vicuna-v15-7b", "letterbox"),
        _ => return None,
    };
    Some(json!({
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "vision_backbone_id": backbone,
        "llm_backbone_id": llm,
        "arch_specifier": if fused(backbone) { "no-align+fused-gelu-mlp" } else { "no-align+gelu-mlp" },
        "use_fused_vision_backbone": fused(backbone),
        "image_resize_strategy": resize,
        "pad_to_multiple_of": 64,
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
    }))
}

#[cfg(test)]
mod tests {
    use fauna_shared::weights::Weights;

    use super::*;

    fn read(config: Value) -> Result<Config, String> {
        serde_json::from_value::<Config>(config).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_flagship_leaves_out_is_filled_in() {
        let config = read(json!({
            "vision_backbone_id": "dinosiglip-vit-so-224px", "llm_backbone_id": "llama2-7b-pure",
            "arch_specifier": "no-align+fused-gelu-mlp",
            "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000, "torch_dtype": "bfloat16"}
        }))
        .unwrap();
        assert_eq!((config.towers.len(), config.patches()), (2, 256));
        let language = fauna_text::causal_lm(&config.text_config, &Weights::meta()).unwrap();
        assert_eq!((language.hidden_size(), language.num_hidden_layers()), (4096, 32));
        assert_eq!(language.vocab_size() - config.pad_to_multiple_of, 32_000);
        assert_eq!(config.wording, PromptStyle::Plain);
    }

    #[test]
    fn a_config_of_nothing_is_the_class_of_the_reference_without_arguments() {
        let config = read(json!({})).unwrap();
        assert_eq!(config.towers, [VitConfig::of_timm("vit_so400m_patch14_siglip_224", 224).unwrap()]);
        assert_eq!((config.wording, config.n_action_bins), (PromptStyle::Vicuna, 256));
    }

    #[test]
    fn the_training_codes_own_config_names_its_base_model() {
        let own = json!({"vla": {"base_vlm": "prism-dinosiglip-224px+7b", "type": "any"}, "seed": 7});
        let config = read(of_training_code(&own).unwrap()).unwrap();
        assert_eq!((config.towers.len(), &config.text_config["vocab_size"]), (2, &json!(32_064)));
        assert!(of_training_code(&json!({"model_type": "openvla"})).is_none());
        for (base, resize) in
            [("prism-dinosiglip-224px+7b", "resize-naive"), ("siglip-224px+7b", "letterbox")]
        {
            let config = of_training_code(&json!({"vla": {"base_vlm": base}})).unwrap();
            assert_eq!(config["image_resize_strategy"], resize, "{base}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let bad = [
            (json!({"vision_backbone_id": "eye"}), "eye"),
            (json!({"timm_model_ids": ["vit_base_patch16_siglip_224", "resnet"]}), "timm_model_ids"),
            (json!({"timm_model_ids": 3}), "timm_model_ids"),
            (json!({"image_sizes": ["large"]}), "image_sizes"),
            (json!({"timm_model_kwargs": [{"qk_norm": true}]}), "qk_norm"),
            (json!({"timm_override_act_layers": ["mish"]}), "mish"),
            (json!({"timm_override_act_layers": []}), "timm_override_act_layers has 0 entries for 1"),
            (json!({"timm_model_kwargs": [{}, {}]}), "timm_model_kwargs has 2 entries for 1"),
            (json!({"arch_specifier": "no-align+linear"}), "no-align+linear"),
            (json!({"text_config": 3}), "text_config"),
            (json!({"n_action_bins": -1}), "n_action_bins"),
            (json!({"vision_backbone_id": "dinosiglip-vit-so-224px", "image_sizes": [224, 448]}), "patches"),
        ];
        for (config, name) in bad {
            let error = read(config.clone()).unwrap_err();
            assert!(error.contains(name), "{config}: {error}");
        }
    }
}
