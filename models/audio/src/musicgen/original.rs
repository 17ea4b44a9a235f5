//! The original releases: `state_dict.bin` with the language model, `compression_state_dict.bin` with the codec or its
//! name, and T5 from its own repository. Sizes follow from the tensors, the rest from the training config, stored as
//! YAML.

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{Layout, LoadOptions, Model, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name};
use fauna_shared::{Error, Result};
use fauna_text::t5;
use serde_json::{Value, json};

use super::{Config, MusicGen};
use crate::encodec::{self, Encodec};

const LANGUAGE_MODEL: &str = "state_dict.bin";
const CODEC: &str = "compression_state_dict.bin";

/// The type of the chromagram feature extractor.
pub(super) const FEATURES: &str = "MusicgenMelodyFeatureExtractor";

/// Maps the original's tensor names of the language model.
pub(super) fn rename(name: &str) -> Name {
    let name = name.strip_prefix("best_state.").unwrap_or(name);
    if let Some(rest) = name.strip_prefix("condition_provider.conditioners.") {
        return match rest.split_once('.') {
            Some(("description", rest)) => Name::To(rest.replacen("output_proj", "enc_to_dec_proj", 1)),
            // The window of the spectrogram is computed.
            Some(("self_wav", rest)) if rest.starts_with("chroma.") => Name::Ignore,
            Some(("self_wav", rest)) => Name::To(rest.replacen("output_proj", "audio_enc_to_dec_proj", 1)),
            _ => Name::Keep,
        };
    }
    let renamed = |to: &str, rest: &str| Name::To(format!("decoder.{to}.{rest}"));
    match name.split_once('.') {
        Some(("emb", rest)) => renamed("model.decoder.embed_tokens", rest),
        Some(("linears", rest)) => renamed("lm_heads", rest),
        Some(("out_norm", rest)) => renamed("model.decoder.layer_norm", rest),
        Some(("transformer", rest)) => {
            let parts = [
                (".self_attn.in_proj_weight", ".self_attn.in_proj.weight"),
                (".cross_attention.in_proj_weight", ".encoder_attn.in_proj.weight"),
                (".cross_attention.", ".encoder_attn."),
                (".linear1.", ".fc1."),
                (".linear2.", ".fc2."),
                (".norm1.", ".self_attn_layer_norm."),
                (".norm_cross.", ".encoder_attn_layer_norm."),
                (".norm2.", ".final_layer_norm."),
            ];
            let rest = match parts.iter().find(|(original, _)| rest.contains(original)) {
                Some((original, ours)) => rest.replacen(original, ours, 1),
                None => rest.to_string(),
            };
            renamed("model.decoder", &rest)
        }
        _ => Name::Keep,
    }
}

/// The layout of a folder with the files of an original release and no config, or with only a feature extractor.
///
/// # Errors
/// If a file is damaged or of another model.
pub fn layout(files: &Files, _: &LoadOptions) -> Result<Option<Layout>> {
    if files.get("config.json").is_some() {
        return Ok(None);
    }
    if let Some(settings) = files.json("preprocessor_config.json")?
        && settings["feature_extractor_type"] == FEATURES
        && files.get(LANGUAGE_MODEL).is_none()
    {
        let config = json!({"model_type": "musicgen_melody", "architectures": [FEATURES]});
        return Ok(Some(Layout { config, weights: Vec::new() }));
    }
    let (Some(path), Some(codec)) = (files.get(LANGUAGE_MODEL), files.get(CODEC)) else { return Ok(None) };
    let file = Checkpoint::open_files(std::slice::from_ref(&path))?;
    let codec = Checkpoint::open_files(&[codec])?;
    let config = config(&file, &codec).ok_or_else(|| {
        Error::format(
            &path,
            "expected emb.0, linears.0 and transformer.layers.0 of MusicGen's language model",
        )
    })?;
    Ok(Some(Layout { config, weights: vec![path] }))
}

/// Whether the release is in the original format.
pub(super) fn is_original(pretrained: &Pretrained) -> bool {
    pretrained.files.get("config.json").is_none() && pretrained.files.get(LANGUAGE_MODEL).is_some()
}

/// Loads an original release from its parts.
pub(super) fn load(pretrained: &Pretrained) -> Result<(MusicGen, Inventory)> {
    let settings = pretrained.checkpoint.as_ref().map(training).unwrap_or_default();
    let name = setting(&settings, &["conditioners", "description", "t5", "name"]).unwrap_or("t5-base");
    let encoder = text_encoder(pretrained, name)?;
    let mut config: Config = pretrained.config()?;
    config.text_encoder = encoder.config()?;
    let text = t5::Encoder::load(config.text_encoder.clone(), &encoder.weights)?;
    let text_inventory = encoder.weights.finish()?;

    let path = pretrained.files.require(CODEC)?;
    let codec_name = Checkpoint::open_files(std::slice::from_ref(&path))?
        .metadata()
        .get("pretrained")
        .and_then(|name| name.as_str().map(str::to_string));
    let (codec, codec_inventory) = match codec_name {
        Some(name) => {
            let codec = pretrained.companion_at(
                "audio_encoder",
                &crate::encodec::FAMILY,
                &local_or_hub(pretrained, &name),
            )?;
            config.audio_encoder = codec.config()?;
            codec.load::<Encodec>()?
        }
        None => {
            let stripped = |name: &str| {
                let name = name.strip_prefix("best_state.").unwrap_or(name);
                match encodec::rename(name) {
                    Name::Keep => Name::To(name.to_string()),
                    other => other,
                }
            };
            let weights = pretrained.part_at("audio_encoder", &[path], stripped)?;
            let codec = Encodec::load(config.audio_encoder.clone(), &weights)?;
            (codec, weights.finish()?)
        }
    };
    let network = MusicGen::with_parts(config, text, codec, &pretrained.weights)?;
    let mut inventory = pretrained.weights.finish()?;
    for (prefix, part) in [("text_encoder", text_inventory), ("audio_encoder", codec_inventory)] {
        let named = |name: String| format!("{prefix}.{name}");
        inventory.tensors.extend(part.tensors.into_iter().map(|(name, shape)| (named(name), shape)));
        inventory.matrices.extend(part.matrices.into_iter().map(|(name, of)| (named(name), of)));
        inventory.packed.extend(part.packed.into_iter().map(|(name, of)| (named(name), of)));
        inventory.parameters += part.parameters;
    }
    Ok((network, inventory))
}

/// The release of T5, by its name in the training config.
pub(super) fn text_encoder(pretrained: &Pretrained, name: &str) -> Result<Pretrained> {
    let name = if name.contains('/') { name.to_string() } else { format!("google-t5/{name}") };
    pretrained.companion_at("text_encoder", &fauna_text::t5::FAMILY, &local_or_hub(pretrained, &name))
}

/// The folder in the release with the name of the repository `name`, or else the repository.
fn local_or_hub(pretrained: &Pretrained, name: &str) -> String {
    let folder = name.rsplit('/').next().unwrap_or(name);
    match pretrained.files.get(&format!("{folder}/config.json")) {
        Some(_) => pretrained.files.root().join(folder).to_string_lossy().into_owned(),
        None => name.to_string(),
    }
}

/// The training config, YAML.
fn training(file: &Checkpoint) -> String {
    file.metadata().get("xp.cfg").and_then(|yaml| yaml.as_str()).unwrap_or_default().to_string()
}

/// The value at `path` in YAML with an indentation of two spaces.
fn setting<'a>(yaml: &'a str, path: &[&str]) -> Option<&'a str> {
    let mut found = 0;
    for line in yaml.lines() {
        let text = line.trim_start();
        let level = (line.len() - text.len()) / 2;
        let Some((key, value)) = text.split_once(':') else { continue };
        found = found.min(level);
        if level == found && path.get(found) == Some(&key) {
            found += 1;
            if found == path.len() {
                return Some(value.trim().trim_matches(['\'', '"'])).filter(|value| *value != "null");
            }
        }
    }
    None
}

/// Sizes of a checkpoint's tensors, by their original names.
struct Sizes<'a>(&'a Checkpoint);

impl Sizes<'_> {
    /// Size of dimension `axis` of the tensor `name`.
    fn of(&self, name: &str, axis: usize) -> Option<usize> {
        let stored = self.0.get(&format!("best_state.{name}")).or_else(|| self.0.get(name))?;
        stored.shape.get(axis).copied()
    }

    /// Number of consecutive tensors `name(0)`, `name(1)` and so on.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|i| self.of(&name(*i), 0).is_some()).count()
    }
}

/// The config with transformers' keys; `None` if the tensors are not those of MusicGen.
fn config(file: &Checkpoint, codec: &Checkpoint) -> Option<Value> {
    let (sizes, settings) = (Sizes(file), training(file));
    let width = sizes.of("emb.0.weight", 1)?;
    let codes = sizes.of("linears.0.weight", 0)?;
    let codebooks = sizes.count(|k| format!("emb.{k}.weight"));
    let text = sizes.of("condition_provider.conditioners.description.output_proj.weight", 1).unwrap_or(width);
    let classes = sizes.of("condition_provider.conditioners.self_wav.output_proj.weight", 1);
    // All released models have a head dimension of 64.
    let heads = setting(&settings, &["transformer_lm", "num_heads"])
        .and_then(|heads| heads.parse().ok())
        .unwrap_or((width / 64).max(1));
    let stereo = match setting(&settings, &["interleave_stereo_codebooks", "use"]) {
        Some(value) => value == "true",
        None => codebooks == 8,
    };
    let mut config = json!({
        "model_type": if classes.is_some() { "musicgen_melody" } else { "musicgen" },
        "architectures": [match classes {
            Some(_) => "MusicgenMelodyForConditionalGeneration",
            None => "MusicgenForConditionalGeneration",
        }],
        "text_encoder": {"d_model": text},
        "audio_encoder": codec_config(codec).unwrap_or_else(config_32khz),
        "decoder": {
            "vocab_size": codes,
            "hidden_size": width,
            "num_hidden_layers": sizes.count(|i| format!("transformer.layers.{i}.linear1.weight")),
            "ffn_dim": sizes.of("transformer.layers.0.linear1.weight", 0)?,
            "num_attention_heads": heads,
            "num_codebooks": codebooks,
            "audio_channels": if stereo { 2 } else { 1 },
            "pad_token_id": codes,
        },
    });
    if let Some(classes) = classes {
        config["num_chroma"] = json!(classes);
    }
    if let Some(frames) = setting(&settings, &["conditioners", "self_wav", "chroma_stem", "chroma_length"])
        .and_then(|frames| frames.parse::<usize>().ok())
    {
        config["chroma_length"] = json!(frames);
    }
    Some(config)
}

/// The config of the 32 kHz codec that MusicGen was trained with.
fn config_32khz() -> Value {
    json!({
        "model_type": "encodec", "sampling_rate": 32_000, "audio_channels": 1, "target_bandwidths": [2.2],
        "upsampling_ratios": [8, 5, 4, 4], "num_filters": 64, "hidden_size": 128, "codebook_size": 2048,
        "use_causal_conv": false, "use_conv_shortcut": false, "norm_type": "weight_norm",
    })
}

/// The config of the codec in the release; `None` if it is only named.
fn codec_config(file: &Checkpoint) -> Option<Value> {
    let (sizes, settings) = (Sizes(file), training(file));
    let conv =
        |side: &str, layer: usize, axis| sizes.of(&format!("{side}.model.{layer}.conv.conv.weight_v"), axis);
    let (filters, kernel) = (conv("encoder", 0, 0)?, conv("encoder", 0, 2)?);
    let up = |layer: usize| sizes.of(&format!("decoder.model.{layer}.convtr.convtr.weight_v"), 2);
    let layers: Vec<usize> = (0..200).filter(|layer| up(*layer).is_some()).collect();
    let ratios: Vec<usize> = layers.iter().filter_map(|layer| up(*layer)).map(|kernel| kernel / 2).collect();
    // Between two transposed convolutions are the residual blocks and an activation.
    let residuals = layers.windows(2).next().map_or(1, |pair| pair[1] - pair[0] - 2);
    let block = |part: &str, axis| sizes.of(&format!("encoder.model.1.{part}.conv.conv.weight_v"), axis);
    let quantizers = sizes.count(|q| format!("quantizer.vq.layers.{q}._codebook.embed"));
    let codes = sizes.of("quantizer.vq.layers.0._codebook.embed", 0)?;
    let rate = setting(&settings, &["sample_rate"]).and_then(|rate| rate.parse().ok()).unwrap_or(32_000usize);
    let hop: usize = ratios.iter().product();
    let bits = codes.checked_ilog2()? as usize;
    let of_net = |key: &str| setting(&settings, &["seanet", key]);
    Some(json!({
        "model_type": "encodec",
        "sampling_rate": rate,
        "audio_channels": conv("encoder", 0, 1)?,
        "target_bandwidths": [(quantizers * bits * rate.div_ceil(hop.max(1))) as f64 / 1000.0],
        "upsampling_ratios": ratios,
        "num_filters": filters,
        "num_residual_layers": residuals,
        "kernel_size": kernel,
        "last_kernel_size": conv("decoder", layers.last()? + residuals + 2, 2)?,
        "residual_kernel_size": block("block.1", 2)?,
        "compress": filters / block("block.1", 0)?.max(1),
        "num_lstm_layers": sizes.count(|l| format!("decoder.model.1.lstm.weight_ih_l{l}")),
        "hidden_size": sizes.of("quantizer.vq.layers.0._codebook.embed", 1)?,
        "codebook_size": codes,
        "use_causal_conv": of_net("causal") == Some("true"),
        "use_conv_shortcut": block("shortcut", 0).is_some(),
        "pad_mode": of_net("pad_mode").unwrap_or("reflect"),
        "norm_type": "weight_norm",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_are_mapped_to_those_of_transformers() {
        let layer = "decoder.model.decoder.layers.3";
        let renamed = [
            ("best_state.emb.2.weight", "decoder.model.decoder.embed_tokens.2.weight".to_string()),
            ("linears.0.weight", "decoder.lm_heads.0.weight".to_string()),
            ("out_norm.bias", "decoder.model.decoder.layer_norm.bias".to_string()),
            ("transformer.layers.3.self_attn.in_proj_weight", format!("{layer}.self_attn.in_proj.weight")),
            ("transformer.layers.3.self_attn.out_proj.weight", format!("{layer}.self_attn.out_proj.weight")),
            (
                "transformer.layers.3.cross_attention.in_proj_weight",
                format!("{layer}.encoder_attn.in_proj.weight"),
            ),
            (
                "transformer.layers.3.cross_attention.out_proj.weight",
                format!("{layer}.encoder_attn.out_proj.weight"),
            ),
            ("transformer.layers.3.linear1.weight", format!("{layer}.fc1.weight")),
            ("transformer.layers.3.linear2.weight", format!("{layer}.fc2.weight")),
            ("transformer.layers.3.norm1.weight", format!("{layer}.self_attn_layer_norm.weight")),
            ("transformer.layers.3.norm_cross.bias", format!("{layer}.encoder_attn_layer_norm.bias")),
            ("transformer.layers.3.norm2.bias", format!("{layer}.final_layer_norm.bias")),
            (
                "condition_provider.conditioners.description.output_proj.weight",
                "enc_to_dec_proj.weight".into(),
            ),
            (
                "condition_provider.conditioners.self_wav.output_proj.bias",
                "audio_enc_to_dec_proj.bias".into(),
            ),
        ];
        for (original, ours) in renamed {
            assert_eq!(rename(original), Name::To(ours));
        }
        let window = "condition_provider.conditioners.self_wav.chroma.spec.window";
        assert_eq!(rename(window), Name::Ignore);
        assert_eq!(rename("enc_to_dec_proj.bias"), Name::Keep);
    }

    #[test]
    fn settings_are_found_by_their_path() {
        let yaml = "num_heads: 3\nother:\n  deep:\n    num_heads: 4\ntransformer_lm:\n  dim: 1024\n  sub:\n    \
                    num_heads: 5\n  num_heads: 16\nname: 't5-base'\nnone: null\n";
        assert_eq!(setting(yaml, &["transformer_lm", "num_heads"]), Some("16"));
        assert_eq!(setting(yaml, &["num_heads"]), Some("3"));
        assert_eq!(setting(yaml, &["transformer_lm", "sub", "num_heads"]), Some("5"));
        assert_eq!(setting(yaml, &["name"]), Some("t5-base"));
        assert_eq!(setting(yaml, &["none"]), None);
        assert_eq!(setting(yaml, &["other", "num_heads"]), None);
    }
}
