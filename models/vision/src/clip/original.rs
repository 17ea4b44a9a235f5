//! Releases in other formats than transformers': open_clip's repositories and OpenAI's TorchScript archives.

use std::path::PathBuf;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{Layout, LoadOptions};
use fauna_shared::source::Files;
use fauna_shared::weights::Name;
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use crate::contrastive::OPEN_CLIP;

/// Tensor name, below the projection's, of a projection stored as `[inputs, outputs]`.
pub(super) const TRANSPOSED: &str = "transposed";

/// Weight files of open_clip's repositories, in order of preference.
const WEIGHTS: [&str; 2] = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"];

/// File extensions of OpenAI's archives.
const ARCHIVES: [&str; 2] = [".pt", ".pth"];

/// Maps the tensor names of all releases to transformers' names.
///
/// ```
/// use fauna_shared::weights::Name;
/// use fauna_vision::clip::rename;
/// let fc1 = "vision_model.encoder.layers.3.mlp.fc1.bias";
/// assert_eq!(rename("visual.transformer.resblocks.3.mlp.c_fc.bias"), Name::To(fc1.into()));
/// assert_eq!(rename(fc1), Name::Keep);
/// // DistributedDataParallel's prefix; CLIP inside another model; a tower nested in its own name.
/// let class = "vision_model.embeddings.class_embedding";
/// assert_eq!(rename("module.visual.class_embedding"), Name::To(class.into()));
/// assert_eq!(rename(&format!("clip.{class}")), Name::To(class.into()));
/// assert_eq!(rename(&format!("vision_model.{class}")), Name::To(class.into()));
/// ```
pub fn rename(name: &str) -> Name {
    // The prefix of DistributedDataParallel, or of the base model inside another model.
    let wrapper = if name.starts_with("module.") { "module." } else { "clip." };
    Name::without(wrapper, name, |name| {
        // A tower may be nested in its own name.
        let twice = ["text_model.", "vision_model."]
            .into_iter()
            .find(|tower| name.strip_prefix(tower).is_some_and(|inner| inner.starts_with(tower)));
        match twice {
            Some(tower) => Name::without(tower, name, in_base),
            None => in_base(name),
        }
    })
}

/// [`rename`] of a name without the prefix of the base model.
fn in_base(name: &str) -> Name {
    // In a single tower with a projection, the base model's prefix is the name of the tower.
    for projection in ["text_model.text_projection.", "vision_model.visual_projection."] {
        if let (true, Some((_, plain))) = (name.starts_with(projection), name.split_once('.')) {
            return Name::To(plain.to_string());
        }
    }
    // The causal mask, and the size attributes of OpenAI's archives.
    if Name::is_buffer(name)
        || ["input_resolution", "context_length", "vocab_size", "attn_mask"].contains(&name)
    {
        return Name::Ignore;
    }
    // open_clip nests a custom text tower in `text`; its own text tower has the same names there.
    let plain = name.strip_prefix("text.").unwrap_or(name);
    let renamed = match name.strip_prefix("visual.") {
        Some(name) => vision_name(name),
        None => text_name(plain),
    };
    match renamed {
        Some(renamed) => Name::To(renamed),
        None => Name::Keep,
    }
}

fn vision_name(name: &str) -> Option<String> {
    let place = match name {
        "class_embedding" => "embeddings.class_embedding",
        "positional_embedding" => "embeddings.position_embedding.weight",
        "conv1.weight" => "embeddings.patch_embedding.weight",
        "proj" => return Some(format!("visual_projection.{TRANSPOSED}")),
        name => {
            return layer_name(
                name,
                [("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")],
                "vision_model",
            );
        }
    };
    Some(format!("vision_model.{place}"))
}

fn text_name(name: &str) -> Option<String> {
    let place = match name {
        "token_embedding.weight" => "embeddings.token_embedding.weight",
        "positional_embedding" => "embeddings.position_embedding.weight",
        "text_projection" => return Some(format!("text_projection.{TRANSPOSED}")),
        name => return layer_name(name, [("ln_final", "final_layer_norm"); 2], "text_model"),
    };
    Some(format!("text_model.{place}"))
}

/// The name of one of the tower's layer norms, or of a tensor of one of its layers.
fn layer_name(name: &str, norms: [(&str, &str); 2], tower: &str) -> Option<String> {
    let (part, rest) = name.split_once('.')?;
    if let Some((_, norm)) = norms.into_iter().find(|(official, _)| *official == part) {
        return Some(format!("{tower}.{norm}.{rest}"));
    }
    let (index, part) = name.strip_prefix("transformer.resblocks.")?.split_once('.')?;
    const PARTS: [(&str, &str); 5] = [
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("attn.", "self_attn."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let (official, ours) = PARTS.into_iter().find(|(official, _)| part.starts_with(official))?;
    Some(format!("{tower}.encoder.layers.{index}.{ours}{}", &part[official.len()..]))
}

/// The config and weights of an open_clip release or of an OpenAI archive. The option `quick_gelu` sets whether the
/// activation is QuickGELU, which not all releases store.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    // A release in both formats is loaded in transformers'.
    if files.get("config.json").is_some() {
        return Ok(None);
    }
    match files.json(OPEN_CLIP)? {
        Some(config) => {
            let place = files.require(OPEN_CLIP)?;
            let quick = quick_gelu(options).or(config["model_cfg"]["quick_gelu"].as_bool()).unwrap_or(false);
            let config = config_of_open_clip(&config["model_cfg"], quick).map_err(|error| error.at(place))?;
            let chosen = files.choice().map(|name| files.require(name)).transpose()?;
            let weights = chosen.or_else(|| WEIGHTS.iter().find_map(|name| files.get(name)));
            // A config without weights can still be inspected, or opened with random weights.
            let weights = match weights {
                Some(weights) => vec![weights],
                None => options.weights_of(files)?,
            };
            Ok(Some(Layout { config, weights }))
        }
        None => archive(files, options),
    }
}

fn quick_gelu(options: &LoadOptions) -> Option<bool> {
    options.settings.get("quick_gelu")?.as_bool()
}

/// Keys of an open_clip config for which only this value is implemented.
const TEXT: [(&str, Value); 6] = [
    ("hf_model_name", Value::Null),
    ("ls_init_value", Value::Null),
    ("embed_cls", Value::Bool(false)),
    ("no_causal_mask", Value::Bool(false)),
    ("final_ln_after_pool", Value::Bool(false)),
    ("proj_bias", Value::Bool(false)),
];
const VISION: [(&str, Value); 8] = [
    ("timm_model_name", Value::Null),
    ("ls_init_value", Value::Null),
    ("input_patchnorm", Value::Bool(false)),
    ("global_average_pool", Value::Bool(false)),
    ("attentional_pool", Value::Bool(false)),
    ("no_ln_pre", Value::Bool(false)),
    ("final_ln_after_pool", Value::Bool(false)),
    ("qk_norm", Value::Bool(false)),
];

/// Keys that must be absent or have this value, the default.
const TEXT_DEFAULTS: [(&str, &str); 1] = [("pool_type", "argmax")];
const VISION_DEFAULTS: [(&str, &str); 2] = [("pool_type", "tok"), ("pos_embed_type", "learnable")];

/// Converts open_clip's `model_cfg` to transformers' config.
fn config_of_open_clip(model: &Value, quick_gelu: bool) -> Result<Value> {
    let (text, vision) = (&model["text_cfg"], &model["vision_cfg"]);
    for (key, value) in
        [("multimodal_cfg", &model["multimodal_cfg"]), ("init_logit_bias", &model["init_logit_bias"])]
    {
        if !value.is_null() {
            return Err(not_implemented(&format!("model_cfg.{key}"), value));
        }
    }
    check_keys(text, "text_cfg", &TEXT, &TEXT_DEFAULTS)?;
    check_keys(vision, "vision_cfg", &VISION, &VISION_DEFAULTS)?;
    let size = |config: &Value, key: &str, default: u64| match &config[key] {
        Value::Null => Ok(default),
        value => value.as_u64().ok_or_else(|| not_implemented(key, value)),
    };
    let ratio = |config: &Value| match &config["mlp_ratio"] {
        Value::Null => Ok(4.0),
        value => {
            value.as_f64().filter(|x| *x > 0.0 && *x < 1e6).ok_or_else(|| not_implemented("mlp_ratio", value))
        }
    };
    let side = |key: &str, default: u64| -> Result<Value> {
        match &vision[key] {
            Value::Array(sides) if sides.len() == 2 => Ok(json!(sides)),
            _ => Ok(json!(size(vision, key, default)?)),
        }
    };
    let act = if quick_gelu { "quick_gelu" } else { "gelu" };
    let (width, seen) = (size(text, "width", 512)?, size(vision, "width", 768)?);
    let head_width = size(vision, "head_width", 64)?.max(1);
    let inner = |width: u64, ratio: f64| (width as f64 * ratio) as u64;
    let space = model["embed_dim"].as_u64().ok_or_else(|| {
        Error::new(
            fauna_shared::ErrorKind::Format,
            "model_cfg.embed_dim, the dimension of the shared embedding space, is missing",
        )
    })?;
    Ok(json!({
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": space,
        "text_config": {
            "vocab_size": size(text, "vocab_size", 49408)?, "hidden_size": width,
            "intermediate_size": inner(width, ratio(text)?), "num_hidden_layers": size(text, "layers", 12)?,
            "num_attention_heads": size(text, "heads", 8)?,
            "max_position_embeddings": size(text, "context_length", 77)?,
            "hidden_act": act, "layer_norm_eps": 1e-5, "eos_token_id": 2
        },
        "vision_config": {
            "hidden_size": seen, "intermediate_size": inner(seen, ratio(vision)?),
            "num_hidden_layers": size(vision, "layers", 12)?, "num_attention_heads": seen / head_width,
            "image_size": side("image_size", 224)?, "patch_size": side("patch_size", 16)?,
            "hidden_act": act, "layer_norm_eps": 1e-5
        }
    }))
}

fn check_keys(config: &Value, name: &str, plain: &[(&str, Value)], defaults: &[(&str, &str)]) -> Result<()> {
    for (key, wanted) in plain {
        let found = &config[*key];
        if !found.is_null() && found != wanted {
            return Err(not_implemented(&format!("{name}.{key}"), found));
        }
    }
    for (key, wanted) in defaults {
        let found = &config[*key];
        if !found.is_null() && found != wanted {
            return Err(not_implemented(&format!("{name}.{key}"), found));
        }
    }
    Ok(())
}

fn not_implemented(key: &str, found: &Value) -> Error {
    Error::unsupported(format!("{key} is {found}, which is not implemented"))
        .hint("the clip family implements vision transformers with CLIP's own text tower")
}

/// The layout of an OpenAI archive: the sizes follow from the shapes of its tensors, the activation is QuickGELU.
fn archive(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let Some(path) = archive_of(files) else { return Ok(None) };
    // A file that is not a checkpoint may be of another family.
    let Ok(checkpoint) = Checkpoint::open_files(std::slice::from_ref(&path)) else { return Ok(None) };
    let shape = |name: &str| checkpoint.get(name).map(|stored| stored.shape.clone());
    let (Some(patches), Some(words)) = (shape("visual.conv1.weight"), shape("token_embedding.weight")) else {
        return Ok(None);
    };
    let missing =
        |name: &str| Error::format(&path, format!("tensor {name} is missing, which OpenAI's CLIP has"));
    let shape = |name: &str| shape(name).ok_or_else(|| missing(name));
    let dim =
        |shape: &[usize], axis: usize, name: &str| shape.get(axis).copied().ok_or_else(|| missing(name));
    let positions = dim(&shape("visual.positional_embedding")?, 0, "visual.positional_embedding")?;
    let space = dim(&shape("text_projection")?, 1, "text_projection")?;
    let context = dim(&shape("positional_embedding")?, 0, "positional_embedding")?;
    let depth = |tower: &str| {
        let block = |i: &usize| checkpoint.get(&format!("{tower}.resblocks.{i}.ln_1.weight")).is_some();
        (0..).take_while(block).count()
    };
    let inner = |tower: &str| {
        let name = format!("{tower}.resblocks.0.mlp.c_fc.weight");
        dim(&shape(&name)?, 0, &name)
    };
    let (seen, patch) = (dim(&patches, 0, "visual.conv1.weight")?, dim(&patches, 2, "visual.conv1.weight")?);
    let (vocabulary, width) =
        (dim(&words, 0, "token_embedding.weight")?, dim(&words, 1, "token_embedding.weight")?);
    let side = positions.saturating_sub(1).isqrt();
    let act = if quick_gelu(options).unwrap_or(true) { "quick_gelu" } else { "gelu" };
    // All of OpenAI's models have a head dimension of 64.
    let heads = |width: usize| (width / 64).max(1);
    let config = json!({
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": space,
        "text_config": {
            "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner("transformer")?,
            "num_hidden_layers": depth("transformer"), "num_attention_heads": heads(width),
            "max_position_embeddings": context, "hidden_act": act, "eos_token_id": 2
        },
        "vision_config": {
            "hidden_size": seen, "intermediate_size": inner("visual.transformer")?,
            "num_hidden_layers": depth("visual.transformer"), "num_attention_heads": heads(seen),
            "image_size": side.saturating_mul(patch), "patch_size": patch, "hidden_act": act
        }
    });
    Ok(Some(Layout { config, weights: vec![path] }))
}

/// The archive chosen by the user, or the only one in the folder.
fn archive_of(files: &Files) -> Option<PathBuf> {
    let is_archive = |name: &str| ARCHIVES.iter().any(|ending| name.ends_with(ending)) && !name.contains('/');
    if let Some(choice) = files.choice() {
        return files.get(choice).filter(|_| is_archive(choice));
    }
    let names = files.names();
    let mut found = names.iter().filter(|name| is_archive(name));
    match (found.next(), found.next()) {
        (Some(only), None) => files.get(only),
        _ => None,
    }
}
