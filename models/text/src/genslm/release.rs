//! The releases: their file names, and the configs and file layouts that follow from them.
//!
//! A release is a single `.pt` file; its config and tokenizer are in the project's Python package. So a model is
//!
//! - a `config.json` with weights in any format, as in every family;
//! - a `.pt` file with one of the package's configs (`neox_25,290,752.json`);
//! - a `.pt` file alone, if it has the project's file name.

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::error::first_five;
use fauna_shared::model::{Layout, LoadOptions, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name};
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::codons::{CodonTokenizer, VOCABULARY};
use crate::gpt_neox::{self, GptNeoX};

/// A model size, as in the package's configs.
struct Size {
    /// File name of the package's config.
    file: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
    inner: usize,
    positions: usize,
}

const fn size(file: &'static str, shape: [usize; 5]) -> Size {
    let [layers, width, heads, inner, positions] = shape;
    Size { file, layers, width, heads, inner, positions }
}

/// All released sizes: number of layers, hidden size, number of heads, intermediate size, maximum sequence length.
const SIZES: [Size; 5] = [
    size("neox_25,290,752.json", [8, 512, 8, 2048, 2048]),
    size("neox_244,464,576.json", [12, 1840, 16, 2048, 2048]),
    size("neox_2,533,931,008.json", [28, 3840, 32, 4096, 2048]),
    // The hidden size is not a multiple of the number of heads, so this size is only for the error message.
    size("neox_25,076,188,032.json", [64, 8196, 64, 8000, 2048]),
    size("neox_25,290,752_10240_pos_embed.json", [8, 512, 8, 2048, 10_240]),
];

/// The releases: the project's name, the file name of the weights, and the index in [`SIZES`].
const RELEASES: [(&str, &str, usize); 5] = [
    ("genslm_25M_patric", "patric_25m_epoch01-val_loss_0.57_bias_removed.pt", 0),
    ("genslm_250M_patric", "patric_250m_epoch00_val_loss_0.48_attention_removed.pt", 1),
    ("genslm_2.5B_patric", "patric_2.5b_epoch00_val_los_0.29_bias_removed.pt", 2),
    ("genslm_25B_patric", "model-epoch00-val_loss0.70-v2.pt", 3),
    ("genslm_25M_covid", "model-epoch91-val_loss0.01.pt", 4),
];

/// The release whose weights have the file name `file`.
fn release_of(file: &str) -> Option<(&'static str, &'static Size)> {
    let file = file.rsplit(['/', '\\']).next()?;
    RELEASES.iter().find(|(_, weights, _)| *weights == file).map(|(id, _, size)| (*id, &SIZES[*size]))
}

/// The name of the release, if the weights have the project's file name.
pub(super) fn name_of(pretrained: &Pretrained) -> Option<&'static str> {
    let file = pretrained.checkpoint.as_ref()?.files().first()?.file_name()?.to_str()?;
    release_of(file).map(|(id, _)| id)
}

/// The package's config of a size: the keys that define the network.
fn config_of(size: &Size) -> Value {
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": VOCABULARY,
        "hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "intermediate_size": size.inner, "max_position_embeddings": size.positions, "hidden_act": "gelu_fast",
        "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10_000, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 0
    })
}

/// The tokenizer files among `names`.
fn tables(names: &[String]) -> impl Iterator<Item = &String> {
    names.iter().filter(|name| name.starts_with("codon_wordlevel_") && name.ends_with(".json"))
}

/// Recognises a GPT-NeoX over codons: by the config's vocabulary size or a codon tokenizer file, by a config of the
/// package, or by the file name of the weights.
///
/// # Errors
/// Errors of the config, if present; [`Input`](ErrorKind::Input) for several models in one folder.
pub(crate) fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let names = files.names();
    let asked = options.family.as_deref() == Some(super::NAME);
    let config = match files.get("config.json") {
        Some(_) => {
            let config = files.config()?;
            let codons = tables(&names).next().is_some() || config["vocab_size"] == VOCABULARY;
            let is_ours = config["model_type"].as_str().is_none_or(|kind| kind == "gpt_neox");
            if !(is_ours && (codons || asked)) {
                return Ok(None);
            }
            config
        }
        None => match config_by_names(files, &names)? {
            Some(config) => config,
            None => return Ok(None),
        },
    };
    Ok(Some(Layout { config, weights: options.weights_of(files)? }))
}

/// The config that follows from the file names, without a `config.json`.
fn config_by_names(files: &Files, names: &[String]) -> Result<Option<Value>> {
    let top = || names.iter().filter(|name| !name.contains('/'));
    // A choice may be a part of a name.
    let chosen = |name: &&String| files.choice().is_none_or(|choice| contains(name, choice));
    let weights: Vec<&String> = top().filter(chosen).filter(|name| name.ends_with(".pt")).collect();
    let known: Vec<&Size> =
        weights.iter().filter_map(|name| release_of(name)).map(|(_, size)| size).collect();
    match known[..] {
        [] => {}
        [size] => {
            // The package's config takes precedence, since the user may have changed it.
            return Ok(Some(files.json(size.file)?.unwrap_or_else(|| config_of(size))));
        }
        _ => {
            let listed = first_five(weights);
            return Err(Error::input("several releases of GenSLMs in one folder")
                .at(files.root())
                .hint(format!("specify one of these files\n{listed}")));
        }
    }
    let described: Vec<&String> =
        top().filter(|name| name.starts_with("neox_") && name.ends_with(".json")).collect();
    match described[..] {
        [] => Ok(None),
        [one] => files.json(one),
        _ => Err(Error::input("several architectures of GenSLMs in one folder")
            .at(files.root())
            .hint(first_five(described))
            .hint("rename the one that belongs to the weights to config.json")),
    }
}

fn contains(name: &str, part: &str) -> bool {
    name.to_lowercase().contains(&part.to_lowercase())
}

/// Keys of a training checkpoint other than the model's `state_dict`.
const TRAINING_KEYS: [&str; 9] = [
    "callbacks",
    "datamodule_hyper_parameters",
    "ds_config",
    "hyper_parameters",
    "loops",
    "lr_scheduler",
    "lr_schedulers",
    "optimizer",
    "optimizer_states",
];

/// Maps the tensor names of a release to those of GPT-NeoX; files from before May 2023 have one more prefix.
pub fn rename(name: &str) -> Name {
    let plain = name.strip_prefix("state_dict.").unwrap_or(name);
    if TRAINING_KEYS.contains(&name.split('.').next().unwrap_or(name)) {
        return Name::Ignore;
    }
    let plain = plain.strip_prefix("model.").unwrap_or(plain);
    match gpt_neox::rename(plain) {
        Name::Keep if plain != name => Name::To(plain.to_string()),
        other => other,
    }
}

/// Loads the codon tokenizer: from the file next to the weights, or else the built-in one of all released models.
///
/// # Errors
/// [`Format`](ErrorKind::Format) for a file without a codon vocabulary, or with more tokens than the network;
/// [`NotFound`](ErrorKind::NotFound) if there is no file and the network has another vocabulary size.
pub(super) fn codons(pretrained: &Pretrained, vocabulary: usize) -> Result<CodonTokenizer> {
    let names = pretrained.files.names();
    let fitting = format!("codon_wordlevel_{vocabulary}vocab.json");
    let table = tables(&names).find(|name| **name == fitting).or_else(|| tables(&names).next());
    let table = table.or_else(|| names.iter().find(|name| *name == "tokenizer.json"));
    let codons = match table.and_then(|name| pretrained.files.get(name)) {
        Some(path) => {
            let codons = CodonTokenizer::from_file(&path)?;
            if codons.vocab_size() > vocabulary {
                let message = format!("{} tokens, but the network has {vocabulary}", codons.vocab_size());
                return Err(Error::format(path, message).hint("use the tokenizer file of this model"));
            }
            codons
        }
        None if vocabulary == VOCABULARY => CodonTokenizer::built_in()?,
        None => {
            let message = format!("the network has {vocabulary} tokens, but there is no tokenizer file");
            return Err(Error::new(ErrorKind::NotFound, message)
                .at(pretrained.files.root())
                .hint(format!("put {fitting} or tokenizer.json next to the weights")));
        }
    };
    Ok(codons)
}

/// Refuses a config whose hidden size is not a multiple of the number of heads, such as the project's of the 25B model.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) with the tensor shapes of the file.
pub(super) fn check_heads(pretrained: &Pretrained) -> Result<()> {
    let size = |key: &str| pretrained.config[key].as_u64().filter(|size| *size > 0);
    let (Some(width), Some(heads)) = (size("hidden_size"), size("num_attention_heads")) else {
        return Ok(());
    };
    if width.is_multiple_of(heads) {
        return Ok(());
    }
    let message = format!("hidden_size {width} is not a multiple of num_attention_heads {heads}");
    let error = Error::unsupported(message).at(&pretrained.label);
    let error = match release_of(&pretrained.label) {
        Some(_) => error.hint("the config that the project published for this release is invalid"),
        None => error,
    };
    Err(match &pretrained.checkpoint {
        None => error,
        Some(checkpoint) => error
            .hint(format!("the file has {}", shapes(checkpoint)))
            .hint("put a config.json with these sizes next to it"),
    })
}

/// The shapes of a checkpoint's embeddings and first layer.
fn shapes(checkpoint: &Checkpoint) -> String {
    let names =
        ["embed_in.weight", "layers.0.attention.query_key_value.weight", "layers.0.mlp.dense_h_to_4h.weight"];
    let found = checkpoint.iter().filter(|(name, _)| names.iter().any(|end| name.ends_with(end)));
    let found: Vec<String> = found.map(|(name, tensor)| format!("{name} {:?}", tensor.shape)).collect();
    match found.is_empty() {
        true => "none of the tensors of GPT-NeoX".to_string(),
        false => found.join(", "),
    }
}

/// The inventory of a checkpoint.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    check_heads(pretrained)?;
    Ok(pretrained.load::<GptNeoX>()?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    fn found(folder: &tempfile::TempDir) -> Result<Option<Layout>> {
        layout(&Files::folder(folder.path(), "here"), &LoadOptions::default())
    }

    #[test]
    fn every_release_has_its_size() {
        for (id, file, _) in RELEASES {
            let place = folder(&[(file, "")]);
            let layout = found(&place).unwrap().unwrap();
            let config: gpt_neox::Config = serde_json::from_value(layout.config).unwrap();
            assert_eq!(config.max_position_embeddings, if id.ends_with("covid") { 10_240 } else { 2048 });
            assert!(config.use_parallel_residual && config.attention_bias && !config.tie_word_embeddings);
            assert_eq!((layout.weights.len(), release_of(file).unwrap().0), (1, id));
            // The 25B release is recognised and refused: its config is invalid.
            let listed = crate::genslm::FAMILY.releases.iter().any(|release| release.id == id);
            assert_eq!(listed, id != "genslm_25B_patric", "{id}");
        }
    }

    #[test]
    fn other_gpt_neox_checkpoints_are_not_recognised() {
        let text = json!({"model_type": "gpt_neox", "vocab_size": 50_432}).to_string();
        assert!(found(&folder(&[("config.json", &text)])).unwrap().is_none());
        let codons = json!({"model_type": "gpt_neox", "vocab_size": 69}).to_string();
        assert!(found(&folder(&[("config.json", &codons)])).unwrap().is_some());
        assert!(
            found(&folder(&[("config.json", &text), ("codon_wordlevel_71vocab.json", "")]))
                .unwrap()
                .is_some()
        );
        let other = json!({"model_type": "gpt2", "vocab_size": 69}).to_string();
        assert!(found(&folder(&[("config.json", &other)])).unwrap().is_none());
        assert!(found(&folder(&[("model.pt", "")])).unwrap().is_none());
    }

    #[test]
    fn the_packages_configs_apply_to_weights_of_any_name() {
        let small = json!({"model_type": "gpt_neox", "vocab_size": 69, "hidden_size": 8}).to_string();
        let place = folder(&[("neox_8.json", &small), ("mine.pt", "")]);
        let layout = found(&place).unwrap().unwrap();
        assert_eq!((&layout.config["hidden_size"], layout.weights.len()), (&json!(8), 1));
        std::fs::write(place.path().join("neox_9.json"), &small).unwrap();
        let error = found(&place).unwrap_err().to_string();
        assert!(error.contains("several architectures") && error.contains("neox_9.json"), "{error}");
        // Weights with a known name determine their config.
        let [(_, known, _), (_, other, _), ..] = RELEASES;
        std::fs::write(place.path().join(known), "").unwrap();
        assert_eq!(found(&place).err().unwrap().kind(), ErrorKind::Input, "two weight files");
        let one = layout_of(&place, known);
        assert_eq!((&one.config["hidden_size"], one.weights.len()), (&json!(512), 1));
        std::fs::write(place.path().join(other), "").unwrap();
        assert!(found(&place).unwrap_err().to_string().contains("several releases"));
        std::fs::write(place.path().join(SIZES[0].file), &small).unwrap();
        assert_eq!(layout_of(&place, known).config["hidden_size"], 8, "a changed config of the package");
    }

    fn layout_of(place: &tempfile::TempDir, file: &str) -> Layout {
        layout(&Files::file(&place.path().join(file), file), &LoadOptions::default()).unwrap().unwrap()
    }

    #[test]
    fn earlier_and_current_tensor_names_map_to_one_set() {
        let name = "gpt_neox.layers.0.mlp.dense_h_to_4h.bias";
        let plain = Name::To("layers.0.mlp.dense_h_to_4h.bias".into());
        for prefix in ["", "model.", "state_dict.", "state_dict.model."] {
            assert_eq!(rename(&format!("{prefix}{name}")), plain);
            assert_eq!(rename(&format!("{prefix}gpt_neox.layers.0.attention.masked_bias")), Name::Ignore);
        }
        assert_eq!(rename("model.embed_out.weight"), Name::To("embed_out.weight".into()));
        assert_eq!(rename("embed_out.weight"), Name::Keep);
        assert_eq!(rename("hyper_parameters.weights"), Name::Ignore);
        assert_eq!(rename("stranger.weight"), Name::Keep);
    }
}
