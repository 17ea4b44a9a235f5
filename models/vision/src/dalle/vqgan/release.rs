//! The files: min-dalle's `detoker.pt` (torch), a decoder, and the original `flax_model.msgpack`.

use std::path::PathBuf;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{Layout, LoadOptions, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::Vqgan;

/// min-dalle's file.
pub(crate) const DETOKER: &str = "detoker.pt";
/// The original's file.
pub(crate) const FLAX: &str = "flax_model.msgpack";

/// Epsilon of the group norms in min-dalle, torch's default; the original has 1e-6.
const TORCH_EPS: f64 = 1e-5;

/// Maps the original's tensor names to those of min-dalle, and those of the encoder likewise.
pub fn rename(name: &str) -> Name {
    if name == "quantize.embedding.embedding" {
        return Name::To("embedding.weight".into());
    }
    let levels = [("decoder.up_", "decoder.up."), ("encoder.down_", "encoder.down.")];
    let found = levels.iter().find_map(|(from, to)| Some((name.strip_prefix(from)?, to)));
    let Some((rest, levels)) = found else {
        return match name.strip_suffix(".scale") {
            Some(norm) => Name::To(format!("{norm}.weight")),
            None => Name::Keep,
        };
    };
    let rest = rest.replacen(".block_", ".block.", 1).replacen(".attn_", ".attn.", 1);
    let rest = match rest.strip_suffix(".scale") {
        Some(norm) => format!("{norm}.weight"),
        None => rest,
    };
    Name::To(format!("{levels}{rest}"))
}

/// Derives the config from the tensors of min-dalle's file; `None` for other files.
pub fn config_of_tensors(file: &Checkpoint) -> Option<Value> {
    let size = |name: &str, axis: usize| file.get(name)?.shape.get(axis).copied();
    let block = |level: usize, i: usize| format!("decoder.up.{level}.block.{i}.conv1.weight");
    let levels = (0..).take_while(|level| size(&block(*level, 0), 0).is_some()).count();
    let ch = size("decoder.norm_out.weight", 0).filter(|ch| *ch > 0)?;
    let mult = |level| Some(size(&block(level, 0), 0)? / ch);
    let resolution = 16usize.checked_shl(u32::try_from(levels.checked_sub(1)?).ok()?)?;
    let attends = |level: &usize| file.get(&format!("decoder.up.{level}.attn.0.q.weight")).is_some();
    let attending: Vec<usize> = (0..levels).filter(attends).map(|level| resolution >> level).collect();
    Some(json!({
        "ch": ch,
        "ch_mult": (0..levels).map(mult).collect::<Option<Vec<_>>>()?,
        "num_res_blocks": (0..).take_while(|i| size(&block(0, *i), 0).is_some()).count().checked_sub(1)?,
        "resolution": resolution,
        "attn_resolutions": attending,
        "z_channels": size("decoder.conv_in.weight", 1)?,
        "n_embed": size("embedding.weight", 0)?,
        "embed_dim": size("embedding.weight", 1)?,
        "out_ch": size("decoder.conv_out.weight", 0)?,
        "norm_eps": TORCH_EPS,
    }))
}

/// Derives the config from the file at `path`.
///
/// # Errors
/// As [`Checkpoint::open`], and if it is not the decoder of a VQGAN.
pub(crate) fn config_of_file(path: &PathBuf) -> Result<Value> {
    config_of_tensors(&Checkpoint::open(path)?).ok_or_else(|| {
        Error::format(path, "not the decoder of a VQGAN")
            .hint("expected embedding, post_quant_conv and decoder, as min-dalle names them")
    })
}

/// The layout of a folder with only `detoker.pt`, or of the original release.
///
/// # Errors
/// If a file is damaged or of another model.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let named = |mut config: Value, weights: Vec<PathBuf>| {
        config["model_type"] = json!("vqgan");
        config["architectures"] = json!(["VQModel"]);
        Ok(Some(Layout { config, weights }))
    };
    if files.get("config.json").is_some() {
        let config = files.config()?;
        let weights: Vec<PathBuf> = files.get(FLAX).into_iter().collect();
        return match config["ch_mult"].is_array() && (!weights.is_empty() || options.file.is_none()) {
            true if files.get("model.safetensors").is_none() => named(config, weights),
            _ => Ok(None),
        };
    }
    let alone = files.choice().is_some_and(|choice| choice == DETOKER)
        || !["encoder.pt", "decoder.pt", "encoder_mini.pt"].iter().any(|name| files.get(name).is_some());
    match files.get(DETOKER).filter(|_| alone) {
        None => Ok(None),
        Some(path) => named(config_of_file(&path)?, vec![path]),
    }
}

/// The tensors of a checkpoint of this config.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(pretrained.load::<Vqgan>()?.1)
}

/// The folder in a release or next to it that has the name of the repository `name`, if it exists.
pub(crate) fn local_folder(files: &Files, name: &str) -> Option<String> {
    let folder = name.rsplit('/').next().unwrap_or(name);
    let places = [files.root().join(folder), files.root().join("..").join(folder)];
    let found = places.into_iter().find(|place| place.join("config.json").is_file())?;
    Some(found.to_string_lossy().into_owned())
}

/// A small config that covers every branch.
pub(crate) fn sample() -> Value {
    json!({
        "model_type": "vqgan", "architectures": ["VQModel"], "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
        "attn_resolutions": [8], "resolution": 16, "z_channels": 12, "n_embed": 32, "embed_dim": 8, "out_ch": 3
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_are_mapped_to_those_of_min_dalle() {
        for (original, ours) in [
            ("quantize.embedding.embedding", "embedding.weight"),
            ("decoder.up_3.block_1.norm2.scale", "decoder.up.3.block.1.norm2.weight"),
            ("decoder.up_4.attn_2.proj_out.kernel", "decoder.up.4.attn.2.proj_out.kernel"),
            ("decoder.up_1.upsample.conv.bias", "decoder.up.1.upsample.conv.bias"),
            ("decoder.mid.block_1.norm1.scale", "decoder.mid.block_1.norm1.weight"),
            ("encoder.down_0.downsample.conv.kernel", "encoder.down.0.downsample.conv.kernel"),
            ("encoder.down_2.block_1.norm2.scale", "encoder.down.2.block.1.norm2.weight"),
            ("encoder.norm_out.scale", "encoder.norm_out.weight"),
        ] {
            assert_eq!(rename(original), Name::To(ours.into()));
            assert_eq!(rename(ours), Name::Keep);
        }
        for kept in [
            "post_quant_conv.kernel",
            "decoder.mid.attn_1.q.kernel",
            "encoder.conv_in.kernel",
            "quant_conv.bias",
        ] {
            assert_eq!(rename(kept), Name::Keep);
        }
    }
}
