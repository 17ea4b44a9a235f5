//! Formats of OpenVLA releases: Hugging Face, training code, and separate components.

use fauna_shared::model::{Layout, LoadOptions, Pipeline, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name};
use fauna_shared::{Error, ErrorKind, Result};
use fauna_text::below_head;
use serde_json::{Value, json};

use super::config::of_training_code;
use super::{OpenVla, OpenVlaPipeline, alone};

/// Maps the tensor names of a release to those of this family: the Hugging Face names, and those of the training code,
/// whose files have `vision_backbone`, `projector` and `llm_backbone` separately.
pub(crate) fn rename(name: &str) -> Name {
    Name::without("model.", name, in_base)
}

/// Maps names without the base-model prefix.
fn in_base(name: &str) -> Name {
    if Name::is_buffer(name) {
        return Name::Ignore;
    }
    let known = [
        ("vision_backbone.dino_featurizer.", "vision_backbone.featurizer."),
        ("vision_backbone.siglip_featurizer.", "vision_backbone.fused_featurizer."),
        ("vision_backbone.clip_featurizer.", "vision_backbone.fused_featurizer."),
        ("projector.projector.0.", "projector.fc1."),
        ("projector.projector.2.", "projector.fc2."),
        ("projector.projector.4.", "projector.fc3."),
        ("projector.0.", "projector.fc1."),
        ("projector.2.", "projector.fc2."),
        ("projector.4.", "projector.fc3."),
        ("llm_backbone.llm.model.", "language_model."),
        ("llm_backbone.llm.", "language_model."),
        ("llm_backbone.model.", "language_model."),
        ("language_model.model.", "language_model."),
    ];
    let renamed = known
        .into_iter()
        .find_map(|(from, to)| Some(format!("{to}{}", name.strip_prefix(from)?)))
        .unwrap_or_else(|| name.to_string());
    let renamed = match renamed.strip_prefix("language_model.") {
        Some(rest) => format!("language_model.{}", below_head(rest)),
        None => renamed,
    };
    // timm's name of LayerScale, which transformers would take for that of a norm.
    let renamed = match renamed.strip_suffix(".gamma") {
        Some(place) => format!("{place}.scale_factor"),
        None => renamed,
    };
    if renamed == name { Name::Keep } else { Name::To(renamed) }
}

/// Recognizes releases of the training code, and a separate processor or action tokenizer; `None` for anything else.
pub(crate) fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    if files.get("config.json").is_some() {
        let Some(config) = of_training_code(&files.config()?) else { return Ok(None) };
        return Ok(Some(Layout { config, weights: trained(files, options)? }));
    }
    let alone = |architecture: &str| Layout {
        config: json!({"model_type": "openvla", "architectures": [architecture]}),
        weights: Vec::new(),
    };
    if files.get(alone::TOKENIZER_FILE).is_some() {
        return Ok(Some(alone(alone::TOKENIZER)));
    }
    let settings = files.json(alone::PROCESSOR_FILE)?;
    let is_ours = settings.is_some_and(|file| file["image_processor_type"] == alone::PROCESSOR);
    Ok(is_ours.then(|| alone(alone::PROCESSOR)))
}

/// Returns the only weights file of the training code in `checkpoints/`, or the one selected by `--weights`.
fn trained(files: &Files, options: &LoadOptions) -> Result<Vec<std::path::PathBuf>> {
    let names = files.names();
    let is_one = |name: &&String| match &options.file {
        Some(wanted) => *name == wanted || name.ends_with(&format!("/{wanted}")),
        None => name.starts_with("checkpoints/") && name.ends_with(".pt"),
    };
    let found: Vec<&String> = names.iter().filter(is_one).collect();
    match found[..] {
        [] if options.file.is_none() => Ok(Vec::new()),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            format!("the release has no file {}", options.file.as_deref().unwrap_or_default()),
        )),
        [one] => Ok(vec![files.require(one)?]),
        _ => Err(Error::input(format!("{} files in checkpoints/", found.len())).set(
            "select one",
            "LoadOptions::file",
            "checkpoints/NAME.pt",
        )),
    }
}

/// Prefixes of the component files of OpenVLA-OFT: action head, proprioception projectors, modified vision towers.
const FINE_TUNED_PARTS: [&str; 4] =
    ["action_head--", "proprio_projector--", "noisy_action_projector--", "vision_backbone--"];

/// Words in config keys of OpenVLA-OFT, none of which is in a key of OpenVLA.
const FINE_TUNED_WORDS: [&str; 8] =
    ["chunk", "chunks", "diffusion", "film", "head", "oft", "proprio", "regression"];

/// Rejects OpenVLA-OFT, whose backbone would load as OpenVLA but was not trained to generate action tokens.
fn refuse_fine_tuned(pretrained: &Pretrained) -> Result<()> {
    let speaks = |key: &str| {
        let key = key.to_lowercase();
        key.starts_with("num_images") || key.split(['_', '-']).any(|word| FINE_TUNED_WORDS.contains(&word))
    };
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        // One image and one action at a time is OpenVLA.
        value => value.as_u64() == Some(1) || value.as_u64() == Some(0),
    };
    let keys = pretrained.config.as_object().into_iter().flatten();
    let key = keys
        .filter(|(key, value)| speaks(key) && !says_nothing(value))
        .map(|(key, value)| format!("{key} is {value:.80}"));
    let names = pretrained.files.names();
    let file = names.iter().filter(|name| {
        let name = name.rsplit('/').next().unwrap_or(name);
        name.ends_with(".pt") && FINE_TUNED_PARTS.iter().any(|part| name.starts_with(part))
    });
    match key.chain(file.map(|name| format!("there is {name}"))).next() {
        None => Ok(()),
        Some(sign) => Err(Error::unsupported(format!("an OpenVLA-OFT: {sign}"))
            .at(pretrained.config_path())
            .hint("its action head predicts chunks of actions in one forward pass, which is not supported; OpenVLA, which generates action tokens, is")),
    }
}

/// The network. What is wrong with the config of its language model has its file.
pub(super) fn load(pretrained: &Pretrained) -> Result<(OpenVla, Inventory)> {
    pretrained.load::<OpenVla>().map_err(|error| match error.kind() {
        ErrorKind::Format | ErrorKind::Unsupported => error.at(pretrained.config_path()),
        _ => error,
    })
}

/// Lists the tensors of a release; a separate component has none.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    match alone::is_alone(pretrained) {
        true => pretrained.weights.finish(),
        false => {
            refuse_fine_tuned(pretrained)?;
            Ok(load(pretrained)?.1)
        }
    }
}

/// Loads a release or a separate component. Uses the settings `unnorm_key` (the dataset whose statistics un-normalize
/// actions) and `center_crop` (whether frames are center-cropped, for models that were fine-tuned with random crops).
pub(crate) fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    match alone::is_alone(pretrained) {
        true => alone::open(pretrained),
        false => {
            refuse_fine_tuned(pretrained)?;
            Ok(Box::new(OpenVlaPipeline::open(pretrained)?))
        }
    }
}

/// Returns a small config that enables every branch: two towers of different hidden sizes, and some action tokens.
pub(crate) fn sample() -> Value {
    let set = json!({"action": {
        "q01": [-0.03, -0.03, -0.03, -0.1, -0.1, -0.1, 0.0], "q99": [0.03, 0.03, 0.03, 0.1, 0.1, 0.1, 1.0],
        "mask": [true, true, true, true, true, true, false]
    }});
    json!({
        "architectures": ["OpenVLAForActionPrediction"], "model_type": "openvla",
        "arch_specifier": "no-align+fused-gelu-mlp", "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure", "use_fused_vision_backbone": true, "image_sizes": [28, 28],
        "image_resize_strategy": "resize-naive",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_model_kwargs": [
            {"embed_dim": 32, "depth": 3, "num_heads": 2},
            {"embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.5}
        ],
        "n_action_bins": 17, "pad_to_multiple_of": 4, "norm_stats": {"sample": set},
        "text_config": {
            "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 200
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openvla_oft_is_rejected_by_its_config_keys_and_by_its_files() {
        use fauna_shared::zoo::Zoo;
        let folder = tempfile::tempdir().unwrap();
        let open = |key: &str, value: Value| {
            let mut config = sample();
            config[key] = value;
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let zoo = Zoo::new([&crate::openvla::FAMILY]);
            let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
            let source = folder.path().to_str().unwrap();
            let walked = zoo.inventory(source, &options).map(|_| ());
            let opened = zoo.open(source, &options).map(|_| ());
            assert_eq!(walked.is_ok(), opened.is_ok(), "{key}");
            opened.map_err(|error| error.to_string())
        };
        for (key, value) in [
            ("use_film", json!(true)),
            ("use_l1_regression", json!(true)),
            ("use_diffusion", json!(true)),
            ("num_images_in_input", json!(2)),
            ("num_actions_chunk", json!(8)),
            ("action_chunks_len", json!(8)),
            ("use_proprio", json!(true)),
            ("proprio_dim", json!(8)),
            ("action_head", json!({"type": "l1"})),
        ] {
            let error = open(key, value).unwrap_err();
            assert!(error.contains("OpenVLA-OFT") && error.contains(key), "{error}");
        }
        for (key, value) in
            [("use_film", json!(false)), ("num_images_in_input", json!(1)), ("vocab_size", json!(100))]
        {
            assert_eq!(open(key, value), Ok(()), "{key}");
        }
        std::fs::write(folder.path().join("action_head--150000_checkpoint.pt"), "").unwrap();
        let error = open("use_film", json!(false)).unwrap_err();
        assert!(
            error.contains("action_head--150000_checkpoint.pt") && error.contains("config.json"),
            "{error}"
        );
    }

    #[test]
    fn tensor_names_of_both_formats_are_mapped() {
        let to = |name: &str| Name::To(name.to_string());
        let pairs = [
            (
                "language_model.model.layers.3.mlp.up_proj.weight",
                "llm_backbone.llm.model.layers.3.mlp.up_proj.weight",
            ),
            ("language_model.lm_head.weight", "llm_backbone.llm.lm_head.weight"),
            ("projector.fc2.bias", "projector.projector.2.bias"),
            ("projector.fc3.weight", "projector.4.weight"),
            (
                "vision_backbone.featurizer.blocks.0.ls1.scale_factor",
                "vision_backbone.dino_featurizer.blocks.0.ls1.gamma",
            ),
            ("vision_backbone.fused_featurizer.pos_embed", "vision_backbone.siglip_featurizer.pos_embed"),
            ("projector.fc1.weight", "model.projector.fc1.weight"),
        ];
        for llm in ["transformer", "gpt_neox"] {
            let [hf, trained] = ["language_model", "llm_backbone.llm"].map(|at| format!("{at}.{llm}.h.0.w"));
            assert_eq!(
                (rename(&hf), rename(&trained)),
                (to("language_model.h.0.w"), to("language_model.h.0.w"))
            );
        }
        let renamed = |name: &str| match rename(name) {
            Name::To(name) => name,
            _ => name.to_string(),
        };
        for (hf, trained) in pairs {
            assert_eq!(renamed(hf), renamed(trained));
        }
        assert_eq!(rename("vision_backbone.featurizer.cls_token"), Name::Keep);
    }
}
