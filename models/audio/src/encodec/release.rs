//! The original releases: one file with other tensor names, without a config.

use fauna_shared::model::{Layout, LoadOptions};
use fauna_shared::source::Files;
use fauna_shared::weights::Name;
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

/// Maps the tensor names of all releases, including the original ones and audiocraft's, to those of this family. The
/// EMA buffers of the codebooks and the padding buffers of old files are ignored.
pub fn rename(name: &str) -> Name {
    Name::without("encodec.", name, in_base)
}

/// [`rename`] of a name without the prefix of the base model.
fn in_base(name: &str) -> Name {
    let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
    let of_training = matches!(last, "embed_avg" | "cluster_size" | "inited");
    if of_training || matches!(last, "stride" | "kernel_size" | "padding_total") {
        return Name::Ignore;
    }
    if let Some(path) = path.strip_prefix("quantizer.vq.") {
        return Name::To(format!("quantizer.{}.{last}", path.replace("_codebook", "codebook")));
    }
    match path.split_once(".model.") {
        Some((side @ ("encoder" | "decoder"), layer)) => {
            // A convolution is nested in a module with its norm, and that in a module with its padding.
            let layer = ["convtr", "conv"].iter().fold(layer.to_string(), |layer, wrapper| {
                let in_wrapper = |part: &str| format!(".{wrapper}.{part}");
                layer.replace(&in_wrapper(wrapper), ".conv").replace(&in_wrapper("norm"), ".norm")
            });
            Name::To(format!("{side}.layers.{layer}.{last}"))
        }
        _ => Name::Keep,
    }
}

/// The file name prefixes of the original releases, and their configs.
fn releases() -> [(&'static str, Value); 2] {
    let at_24_khz = json!({"model_type": "encodec", "architectures": ["EncodecModel"]});
    let mut at_48_khz = at_24_khz.clone();
    for (key, value) in [
        ("sampling_rate", json!(48_000)),
        ("audio_channels", json!(2)),
        ("target_bandwidths", json!([3.0, 6.0, 12.0, 24.0])),
        ("normalize", json!(true)),
        ("chunk_length_s", json!(1.0)),
        ("overlap", json!(0.01)),
        ("norm_type", json!("time_group_norm")),
        ("use_causal_conv", json!(false)),
    ] {
        at_48_khz[key] = value;
    }
    [("encodec_24khz", at_24_khz), ("encodec_48khz", at_48_khz)]
}

/// The layout of a folder with the file of an original release and no config.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if there is more than one such file.
pub fn layout(files: &Files, _: &LoadOptions) -> Result<Option<Layout>> {
    if files.get("config.json").is_some() {
        return Ok(None);
    }
    let mut found: Vec<(String, Value)> = Vec::new();
    for name in files.names().into_iter().filter(|name| name.ends_with(".th")) {
        let chosen = files.choice().is_none_or(|choice| name.contains(choice));
        let config =
            releases().into_iter().find(|(stem, _)| name.starts_with(stem)).map(|(_, config)| config);
        found.extend(config.filter(|_| chosen).map(|config| (name, config)));
    }
    if found.len() > 1 {
        let names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
        return Err(Error::input("more than one codec in this folder")
            .at(files.root())
            .hint(format!("name one of the files: {}", names.join(", "))));
    }
    let layout = |(name, config): (String, Value)| Layout { config, weights: vec![files.root().join(name)] };
    Ok(found.pop().map(layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_are_mapped_to_those_of_this_family() {
        let renamed = [
            ("encoder.model.0.conv.conv.weight_g", "encoder.layers.0.conv.weight_g"),
            ("encoder.model.0.conv.norm.bias", "encoder.layers.0.norm.bias"),
            ("encoder.model.1.block.3.conv.conv.weight", "encoder.layers.1.block.3.conv.weight"),
            ("encoder.model.1.block.3.conv.norm.weight", "encoder.layers.1.block.3.norm.weight"),
            ("encoder.model.1.shortcut.conv.conv.bias", "encoder.layers.1.shortcut.conv.bias"),
            ("encoder.model.13.lstm.weight_hh_l1", "encoder.layers.13.lstm.weight_hh_l1"),
            ("decoder.model.3.convtr.convtr.weight_v", "decoder.layers.3.conv.weight_v"),
            ("decoder.model.3.convtr.norm.weight", "decoder.layers.3.norm.weight"),
            ("quantizer.vq.layers.31._codebook.embed", "quantizer.layers.31.codebook.embed"),
        ];
        for (official, ours) in renamed {
            assert_eq!(rename(official), Name::To(ours.to_string()));
            assert_eq!(rename(ours), Name::Keep);
        }
    }

    #[test]
    fn buffers_are_ignored() {
        for name in [
            "quantizer.vq.layers.0._codebook.embed_avg",
            "quantizer.layers.0.codebook.cluster_size",
            "quantizer.layers.0.codebook.inited",
            "encoder.layers.0.padding_total",
            "encoder.layers.1.block.1.kernel_size",
            "encoder.layers.3.stride",
        ] {
            assert_eq!(rename(name), Name::Ignore, "{name}");
        }
    }
}
