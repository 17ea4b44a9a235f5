//! The original releases: names of their tensors, and their configs, which they do not have.

use std::path::{Path, PathBuf};

use fauna_shared::Result;
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{FindLayout, Layout, LoadOptions};
use fauna_shared::source::Files;
use fauna_shared::weights::Name;
use serde_json::{Value, json};

/// The weights file of the original 1.0 and 2.0.
const ORIGINAL: &str = "torch_model.ckpt";

/// Renames tensors of 1.0 and 2.0 to the names of transformers.
pub(crate) fn rename_patched(name: &str) -> Name {
    rename(name, "decoder", "horizon_ff_layer.")
}

/// Renames tensors of 2.5 to the names of transformers.
pub(crate) fn rename_2_5(name: &str) -> Name {
    match Name::is_buffer(name) {
        true => Name::Ignore,
        false => rename(name, "model", "output_projection_"),
    }
}

/// The name of a tensor of a network whose base model is called `base` and whose heads begin with `head`. The
/// reference takes the name of the base model before both, or before neither.
fn rename(name: &str, base: &str, head: &str) -> Name {
    let known = match released(name) {
        Name::To(known) => known,
        _ => name.to_string(),
    };
    let below_base = known.strip_prefix(base).and_then(|rest| rest.strip_prefix('.'));
    let known = match (below_base, known.strip_prefix("decoder.input_ff_layer.")) {
        (Some(plain), _) if plain.starts_with(head) => plain.to_string(),
        (None, Some(rest)) => format!("{base}.input_ff_layer.{rest}"),
        (None, None) if known.starts_with("layers.") => format!("{base}.{known}"),
        _ => known,
    };
    if known == name { Name::Keep } else { Name::To(known) }
}

/// The name in transformers of a tensor of the original releases or of the copy on the hub.
fn released(name: &str) -> Name {
    let new = match name.split_once('.') {
        // The copy on the hub keeps the original names of this part.
        Some(("model" | "layers", _)) if name.contains(".mlp.ff") => {
            name.replace(".mlp.ff0.", ".mlp.fc1.").replace(".mlp.ff1.", ".mlp.fc2.")
        }
        Some(("stacked_transformer", rest)) => format!("decoder.{rest}"),
        Some((part @ ("input_ff_layer" | "freq_emb" | "position_emb"), rest)) => {
            format!("decoder.{part}.{}", plain_block(rest))
        }
        Some(("horizon_ff_layer", rest)) => format!("horizon_ff_layer.{}", plain_block(rest)),
        Some(("tokenizer", rest)) => format!("model.input_ff_layer.{}", plain_block(rest)),
        Some((part @ ("output_projection_point" | "output_projection_quantiles"), rest)) => {
            format!("{part}.{}", plain_block(rest))
        }
        Some(("stacked_xf", rest)) => match rest.split_once('.') {
            Some((layer, rest)) => format!("model.layers.{layer}.{}", of_2_5(rest)),
            None => return Name::Keep,
        },
        _ => return Name::Keep,
    };
    if new == name { Name::Keep } else { Name::To(new) }
}

/// A name in a residual block, whose first layer has another name and may be in a list.
fn plain_block(name: &str) -> String {
    match name.strip_prefix("hidden_layer.") {
        Some(rest) => format!("input_layer.{}", rest.strip_prefix("0.").unwrap_or(rest)),
        None => name.to_string(),
    }
}

/// A name in a layer of 2.5.
fn of_2_5(name: &str) -> String {
    match name {
        "attn.per_dim_scale.per_dim_scale" => return "self_attn.scaling".to_string(),
        "attn.query_ln.scale" => return "self_attn.q_norm.weight".to_string(),
        "attn.key_ln.scale" => return "self_attn.k_norm.weight".to_string(),
        _ => {}
    }
    let (part, rest) = name.rsplit_once('.').unwrap_or((name, ""));
    let part = match part {
        "pre_attn_ln" => return "input_layernorm.weight".to_string(),
        "post_attn_ln" => return "post_attention_layernorm.weight".to_string(),
        "pre_ff_ln" => return "pre_feedforward_layernorm.weight".to_string(),
        "post_ff_ln" => return "post_feedforward_layernorm.weight".to_string(),
        "attn.qkv_proj" => "self_attn.qkv_proj",
        "attn.query" => "self_attn.q_proj",
        "attn.key" => "self_attn.k_proj",
        "attn.value" => "self_attn.v_proj",
        "attn.out" => "self_attn.o_proj",
        "ff0" | "mlp.ff0" => "mlp.fc1",
        "ff1" | "mlp.ff1" => "mlp.fc2",
        other => other,
    };
    format!("{part}.{rest}")
}

/// The weights file: the one that the user chose, or the first of `names`.
fn chosen(files: &Files, names: &[&str]) -> Option<PathBuf> {
    match files.choice() {
        Some(name) => files.get(name),
        None => names.iter().find_map(|name| files.get(name)),
    }
}

/// The config of a folder in the format of transformers.
fn named(files: &Files) -> Result<Option<Value>> {
    let config = if files.get("config.json").is_some() { files.json("config.json")? } else { None };
    Ok(config.filter(|config| config["model_type"].is_string() || config["architectures"][0].is_string()))
}

/// Shapes of the tensors by their names in transformers.
struct Shapes(Checkpoint);

impl Shapes {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self(Checkpoint::open_files(&[path.to_path_buf()])?))
    }

    fn of(&self, name: &str) -> Option<&[usize]> {
        Some(&self.0.get(name)?.shape)
    }

    fn axis(&self, name: &str, axis: usize) -> Option<usize> {
        self.of(name)?.get(axis).copied()
    }

    /// Number of layers, each with a tensor `before{i}{after}`.
    fn layers(&self, before: &str, after: &str) -> usize {
        (0..).take_while(|i| self.of(&format!("{before}{i}{after}")).is_some()).count()
    }
}

/// TimesFM 1.0 or 2.0 in the original format. A `config.json` next to it is used if it is of transformers.
pub(crate) const PATCHED: FindLayout = |files, options| {
    let config = named(files)?;
    let transformers = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
    let known =
        config.is_some() && files.choice().is_none() && transformers.iter().any(|n| files.get(n).is_some());
    let random = options.random_weights.is_some();
    let Some(path) = chosen(files, &[ORIGINAL]).filter(|path| !known && !random && is_original(path)) else {
        return Ok(None);
    };
    let config = match config {
        Some(config) => config,
        None => match patched_config(&Shapes::open(&path)?, options) {
            Some(config) => config,
            None => return Ok(None),
        },
    };
    Ok(Some(Layout { config, weights: vec![path] }))
};

fn is_original(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "ckpt")
}

fn patched_config(shapes: &Shapes, options: &LoadOptions) -> Option<Value> {
    let layers = shapes.layers("stacked_transformer.layers.", ".self_attn.scaling");
    let head = shapes.axis("stacked_transformer.layers.0.self_attn.scaling", 0)?;
    let inner = shapes.axis("stacked_transformer.layers.0.self_attn.o_proj.weight", 1)?;
    // The tensors of 1.0 and 2.0 differ in the number of layers alone.
    let first = layers <= 20;
    let setting = |key: &str, otherwise: Value| options.settings.get(key).cloned().unwrap_or(otherwise);
    Some(json!({
        "model_type": "timesfm", "architectures": ["TimesFmModelForPrediction"],
        "patch_length": shapes.axis("input_ff_layer.hidden_layer.0.weight", 1)? / 2,
        "context_length": setting("context_length", json!(if first { 512 } else { 2048 })),
        "horizon_length": shapes.axis("horizon_ff_layer.output_layer.weight", 0)? / 10,
        "freq_size": shapes.axis("freq_emb.weight", 0)?,
        "num_hidden_layers": layers, "hidden_size": shapes.axis("freq_emb.weight", 1)?,
        "intermediate_size": shapes.axis("input_ff_layer.hidden_layer.0.weight", 0)?,
        "head_dim": head, "num_attention_heads": inner.checked_div(head)?,
        "use_positional_embedding": setting("use_positional_embedding", json!(first)),
    }))
}

/// TimesFM 2.5 in the original format: without a config, with one without a model type, or with that of the hub, which has
/// the earlier model type. The names of the tensors decide, or `quantile_horizon_length`, which the earlier ones lack.
pub(crate) const V2_5: FindLayout = |files, options| {
    let config = named(files)?;
    let said = config.as_ref().filter(|config| config["quantile_horizon_length"].is_number());
    if said.is_none() && (options.random_weights.is_some() || config.as_ref().is_some_and(is_of_2_5)) {
        return Ok(None);
    }
    let stored = match chosen(files, &["model.safetensors"]).filter(|_| options.random_weights.is_none()) {
        Some(path) => v2_5_config(&Shapes::open(&path)?).map(|config| (config, vec![path])),
        None => None,
    };
    Ok(match (stored, said) {
        (Some((mut shaped, weights)), _) => {
            merge_released(&mut shaped, config.as_ref());
            Some(Layout { config: shaped, weights })
        }
        (None, Some(_)) => {
            let mut bare = v2_5_names();
            merge_released(&mut bare, config.as_ref());
            Some(Layout { config: bare, weights: options.weights_of(files)? })
        }
        (None, None) => None,
    })
};

/// Whether a config is of TimesFM 2.5 in transformers.
fn is_of_2_5(config: &Value) -> bool {
    config["model_type"] == "timesfm2_5" || config["architectures"][0] == "TimesFm2_5ModelForPrediction"
}

fn v2_5_names() -> Value {
    json!({"model_type": "timesfm2_5", "architectures": ["TimesFm2_5ModelForPrediction"]})
}

/// Copies the keys of a released config into `config` by the names of transformers for 2.5, except its model type.
fn merge_released(config: &mut Value, released: Option<&Value>) {
    let (Value::Object(config), Some(Value::Object(released))) = (config, released) else { return };
    for (key, value) in released {
        match key.as_str() {
            "model_type" | "architectures" => {}
            "quantile_horizon_length" => drop(config.insert("output_quantile_len".into(), value.clone())),
            "num_attention_heads" => {
                config.insert(key.clone(), value.clone());
                config.insert("num_key_value_heads".into(), value.clone());
            }
            _ => drop(config.insert(key.clone(), value.clone())),
        }
    }
    if let Some(heads) = released.get("num_key_value_heads") {
        config.insert("num_key_value_heads".into(), heads.clone());
    }
}

fn v2_5_config(shapes: &Shapes) -> Option<Value> {
    let head = shapes.axis("stacked_xf.0.attn.query_ln.scale", 0)?;
    let inner = shapes.axis("stacked_xf.0.attn.out.weight", 1)?;
    let heads = inner.checked_div(head)?;
    let named = ["ff0", "mlp.ff0"].map(|part| format!("stacked_xf.0.{part}.weight"));
    let inner_width = named.iter().find_map(|name| shapes.axis(name, 0))?;
    Some(json!({
        "model_type": "timesfm2_5", "architectures": ["TimesFm2_5ModelForPrediction"],
        "patch_length": shapes.axis("tokenizer.hidden_layer.weight", 1)? / 2,
        "horizon_length": shapes.axis("output_projection_point.output_layer.weight", 0)? / 10,
        "output_quantile_len": shapes.axis("output_projection_quantiles.output_layer.weight", 0)? / 10,
        "num_hidden_layers": shapes.layers("stacked_xf.", ".attn.out.weight"),
        "hidden_size": shapes.axis("tokenizer.output_layer.weight", 0)?,
        "intermediate_size": inner_width,
        "head_dim": head, "num_attention_heads": heads, "num_key_value_heads": heads,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_become_those_of_transformers() {
        for (old, new) in [
            (
                "stacked_transformer.layers.3.self_attn.qkv_proj.bias",
                "decoder.layers.3.self_attn.qkv_proj.bias",
            ),
            ("input_ff_layer.hidden_layer.0.weight", "decoder.input_ff_layer.input_layer.weight"),
            ("input_ff_layer.output_layer.bias", "decoder.input_ff_layer.output_layer.bias"),
            ("horizon_ff_layer.hidden_layer.0.bias", "horizon_ff_layer.input_layer.bias"),
            ("freq_emb.weight", "decoder.freq_emb.weight"),
            ("tokenizer.hidden_layer.weight", "model.input_ff_layer.input_layer.weight"),
            ("stacked_xf.11.attn.qkv_proj.weight", "model.layers.11.self_attn.qkv_proj.weight"),
            ("stacked_xf.0.attn.out.weight", "model.layers.0.self_attn.o_proj.weight"),
            ("stacked_xf.0.attn.key_ln.scale", "model.layers.0.self_attn.k_norm.weight"),
            ("stacked_xf.0.attn.per_dim_scale.per_dim_scale", "model.layers.0.self_attn.scaling"),
            ("stacked_xf.0.pre_ff_ln.scale", "model.layers.0.pre_feedforward_layernorm.weight"),
            ("stacked_xf.0.ff1.weight", "model.layers.0.mlp.fc2.weight"),
            ("stacked_xf.0.mlp.ff0.weight", "model.layers.0.mlp.fc1.weight"),
            ("model.layers.4.mlp.ff0.weight", "model.layers.4.mlp.fc1.weight"),
            ("model.layers.4.mlp.ff1.weight", "model.layers.4.mlp.fc2.weight"),
            ("output_projection_point.hidden_layer.weight", "output_projection_point.input_layer.weight"),
        ] {
            let rename = if new.starts_with("model.") || new.starts_with("output_") {
                rename_2_5
            } else {
                rename_patched
            };
            assert_eq!(rename(old), Name::To(new.into()), "{old}");
            assert_eq!(rename(new), Name::Keep, "{new}");
        }
        assert_eq!(rename_2_5("stranger.weight"), Name::Keep);
    }
}
