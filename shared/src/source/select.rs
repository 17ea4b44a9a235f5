//! Selecting the files of a repository: configs and tokenizers, and the weights in one format.

use std::collections::BTreeMap;

use super::hub::File;
use crate::error::first_five;
use crate::{Error, ErrorKind, Result, adapter};

/// The files to select from a repository.
///
/// ```
/// use fauna_shared::source::Wanted;
/// let model = Wanted::default();
/// let one_of_many = Wanted::default().file("q4_k_m");
/// let description = Wanted::default().without_weights();
/// # let _ = (model, one_of_many, description);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    pub(super) no_weights: bool,
    pub(super) file: Option<String>,
    pub(super) also: Vec<String>,
    pub(super) is_adapter: bool,
}

impl Wanted {
    /// Selects configs, tokenizers and processors only.
    pub fn without_weights(mut self) -> Self {
        self.no_weights = true;
        self
    }

    /// Selects the weight file of this name, or the only one whose name contains it (case-insensitive).
    pub fn file(mut self, name: impl Into<String>) -> Self {
        self.file = Some(name.into());
        self
    }

    /// Selects the files of an adapter.
    pub fn adapter() -> Self {
        Self { is_adapter: true, ..Self::default() }
    }

    /// Selects additional files by their exact names: weights in other places, action statistics.
    pub fn also(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.also.extend(names.into_iter().map(Into::into));
        self
    }
}

/// File extensions of weight formats, in order of preference.
const FORMATS: [&[&str]; 5] =
    [&["safetensors"], &["bin"], &["pt", "pth", "ckpt", "th", "tar"], &["gguf"], &["msgpack"]];

/// Releases whose weights are several files of one model, with a label to choose between them.
const MULTI_FILE: [(&str, [&str; 3]); 2] = [
    ("mega", ["encoder.pt", "decoder.pt", "detoker.pt"]),
    ("mini", ["encoder_mini.pt", "decoder_mini.pt", "detoker.pt"]),
];

/// Prefixes of files next to the weights that are not weights of the model.
const NOT_WEIGHTS: [&str; 6] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state", "mmproj"];

/// Folders with copies of the model for other runtimes, or with training logs.
const OTHER_RUNTIMES: [&str; 12] = [
    "onnx", "openvino", "coreml", "tf", "flax", "tflite", "tensorrt", "mlx", "original", "gguf", "runs",
    "logs",
];

/// File extensions of configs, tokenizers and processors.
const DESCRIPTIONS: [&str; 9] =
    [".json", ".txt", ".model", ".jinja", ".yaml", ".yml", ".tiktoken", ".vocab", ".spm"];

/// Selects the files of `listing` for `wanted`, in the order of the listing.
///
/// Weights are selected per folder in one format: safetensors before `.bin` before other PyTorch files before GGUF
/// before flax, a complete set of shards or a single file. They are searched in the root folder, in the numbered module
/// folders of sentence-transformers (`2_Dense/`) and, with a `model_index.json`, in all pipeline folders. Copies for
/// other runtimes (`onnx/`, `tf_model.h5`, …) are ignored.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there are no weights, a shard is missing or a requested file is not listed;
/// [`ErrorKind::Input`] if the weight file is ambiguous, with the candidates.
pub fn select(listing: &[File], wanted: &Wanted) -> Result<Vec<File>> {
    let names: Vec<&str> = listing.iter().map(|f| f.path.as_str()).collect();
    let mut chosen: Vec<&str> = names.iter().copied().filter(|name| is_description(name)).collect();
    if wanted.is_adapter {
        let weights = adapter::WEIGHTS.into_iter().find(|name| names.contains(name));
        chosen.extend(weights.filter(|_| names.contains(&adapter::CONFIG)));
        chosen.extend(names.iter().copied().filter(|name| *name == adapter::NON_LORA));
        if weights.is_none() || !names.contains(&adapter::CONFIG) {
            let wanted = format!("no {} and {}: this is no adapter", adapter::CONFIG, adapter::WEIGHTS[0]);
            return Err(
                Error::new(ErrorKind::NotFound, wanted).hint(format!("found:\n{}", first_five(&names)))
            );
        }
    } else if !wanted.no_weights {
        let weights = weights(&names, wanted.file.as_deref())?;
        if weights.is_empty() {
            return Err(no_weights(&names));
        }
        chosen.extend(weights);
    }
    for name in &wanted.also {
        let known = names.iter().find(|n| *n == name);
        chosen.push(known.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no file {name}"))
                .hint(format!("found:\n{}", first_five(&names)))
        })?);
    }
    Ok(listing.iter().filter(|f| chosen.contains(&f.path.as_str())).cloned().collect())
}

/// The weight files of `names`, in one format per folder; `choice` is (a part of) the name of one of several.
pub(super) fn weights<'a>(names: &[&'a str], choice: Option<&str>) -> Result<Vec<&'a str>> {
    if let Some(parts) = multi_file(names, choice)? {
        return Ok(parts);
    }
    if let Some(choice) = choice {
        return by_choice(names, choice);
    }
    let pipeline = names.contains(&"model_index.json");
    let mut folders: BTreeMap<&str, Vec<&'a str>> = BTreeMap::new();
    for name in names {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        if folder.is_empty() || is_module(folder) || (pipeline && is_described(folder)) {
            folders.entry(folder).or_default().push(name);
        }
    }
    let mut chosen = Vec::new();
    for names in folders.values() {
        chosen.extend(of_one_folder(names)?);
    }
    Ok(chosen)
}

/// Sets of weight files, by name without shard number and extension.
type Sets<'a> = BTreeMap<&'a str, Vec<&'a str>>;

pub(super) fn of_one_folder<'a>(names: &[&'a str]) -> Result<Vec<&'a str>> {
    for format in FORMATS {
        let mut sets = Sets::new();
        for name in names.iter().filter(|n| format.contains(&ending(n)) && !is_left_over(n)) {
            sets.entry(stem(name)).or_default().push(name);
        }
        let usual = ["model", "pytorch_model"]
            .into_iter()
            .find(|usual| sets.keys().any(|stem| stem.rsplit('/').next() == Some(usual)));
        if let Some(usual) = usual {
            sets.retain(|stem, _| stem.rsplit('/').next() == Some(usual));
        }
        match sets.len() {
            0 => continue,
            1 => return complete(sets.pop_first().map(|(_, set)| set).unwrap_or_default()),
            _ => return Err(several(sets.into_values().flatten())),
        }
    }
    Ok(Vec::new())
}

/// The files of a multi-file release: the only one, or the one chosen by its label or one of its files.
fn multi_file<'a>(names: &[&'a str], choice: Option<&str>) -> Result<Option<Vec<&'a str>>> {
    let place = |file: &str| names.iter().find(|name| **name == file).copied();
    let present = MULTI_FILE.iter().filter_map(|(label, files)| {
        let files: Option<Vec<&str>> = files.iter().map(|file| place(file)).collect();
        Some((*label, files?))
    });
    let chosen = present.filter(|(label, files)| {
        choice.is_none_or(|choice| choice.eq_ignore_ascii_case(label) || files[..2].contains(&choice))
    });
    let mut chosen: Vec<(&str, Vec<&str>)> = chosen.collect();
    match chosen.len() {
        0 | 1 => Ok(chosen.pop().map(|(_, files)| files)),
        _ => {
            let labels: Vec<&str> = chosen.iter().map(|(label, _)| *label).collect();
            let error = several(chosen.into_iter().flat_map(|(_, files)| files));
            Err(labels.into_iter().fold(error, |error, label| error.set("or", "LoadOptions::file", label)))
        }
    }
}

fn by_choice<'a>(names: &[&'a str], choice: &str) -> Result<Vec<&'a str>> {
    let exact = names.iter().find(|n| **n == choice).copied();
    let part = choice.to_lowercase();
    let alike = |n: &&&str| is_weights(n) && n.to_lowercase().contains(&part);
    let mut sets = Sets::new();
    for name in names.iter().filter(alike) {
        sets.entry(stem(name)).or_default().push(name);
    }
    match (exact, sets.len()) {
        (Some(name), _) if shard(name).is_none() => Ok(vec![name]),
        (Some(name), _) => {
            complete(names.iter().copied().filter(|n| is_weights(n) && stem(n) == stem(name)).collect())
        }
        (None, 1) => complete(sets.pop_first().map(|(_, set)| set).unwrap_or_default()),
        (None, 0) => Err(Error::new(ErrorKind::NotFound, format!("no weight file matches {choice}"))
            .hint(format!("found:\n{}", first_five(names.iter().filter(|n| is_weights(n)))))),
        (None, _) => Err(several(sets.into_values().flatten())),
    }
}

/// Checks that no shard of `set` is missing. A single file is preferred to shards of the same name.
fn complete(set: Vec<&str>) -> Result<Vec<&str>> {
    if let Some(single) = set.iter().find(|n| shard(n).is_none()) {
        return Ok(vec![single]);
    }
    let count = set.first().and_then(|n| shard(n)).map_or(0, |(_, count)| count);
    let have: Vec<usize> = set.iter().filter_map(|n| shard(n)).map(|(number, _)| number).collect();
    if have.len() < count {
        let missing = (1..=count).find(|n| !have.contains(n)).unwrap_or(count);
        let first = set.first().copied().unwrap_or_default();
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("found {} of {count} shards; shard {missing} is missing", have.len()),
        )
        .hint(format!("next to {first}")));
    }
    Ok(set)
}

fn several<'a>(names: impl Iterator<Item = &'a str>) -> Error {
    Error::input("several weight files; choose one").hint(first_five(names)).set(
        "choose one by (a unique part of) its name",
        "LoadOptions::file",
        "NAME",
    )
}

pub(super) fn no_weights(names: &[&str]) -> Error {
    let elsewhere: Vec<&&str> = names.iter().filter(|n| is_weights(n)).collect();
    let error = Error::new(ErrorKind::NotFound, "no weights (safetensors, bin, pt, gguf, msgpack)");
    if elsewhere.is_empty() {
        return error.hint(format!("found:\n{}", first_five(names)));
    }
    error.hint(format!("not in the usual places, but found:\n{}", first_five(elsewhere))).set(
        "choose one",
        "LoadOptions::file",
        "NAME",
    )
}

fn is_description(name: &str) -> bool {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let hidden = file.starts_with('.') || folder.starts_with('.');
    let licence = folder.is_empty() && (file.starts_with("LICENSE") || file == "README.md");
    !hidden
        && !folder.contains('/')
        && !OTHER_RUNTIMES.contains(&folder)
        && !folder.starts_with("checkpoint-")
        && (licence || DESCRIPTIONS.iter().any(|ending| file.ends_with(ending)))
}

/// A numbered module folder of sentence-transformers: `1_Pooling`, `2_Dense`.
pub(super) fn is_module(folder: &str) -> bool {
    folder
        .split_once('_')
        .is_some_and(|(number, _)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        && !folder.contains('/')
}

fn is_described(folder: &str) -> bool {
    !folder.contains('/') && !OTHER_RUNTIMES.contains(&folder)
}

pub(super) fn is_weights(name: &str) -> bool {
    FORMATS.iter().any(|endings| endings.contains(&ending(name)))
}

fn is_left_over(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    NOT_WEIGHTS.iter().any(|left| file.starts_with(left))
}

fn ending(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, ending)| ending)
}

/// `name` without its extension and shard number.
fn stem(name: &str) -> &str {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    match shard(name) {
        Some(_) => stem.rsplitn(4, '-').last().unwrap_or(stem),
        None => stem,
    }
}

/// Number and total count of a shard: `(2, 5)` for `model-00002-of-00005.safetensors`.
fn shard(name: &str) -> Option<(usize, usize)> {
    let (stem, _) = name.rsplit_once('.')?;
    let mut parts = stem.rsplitn(4, '-');
    let count = parts.next()?.parse().ok()?;
    let "of" = parts.next()? else { return None };
    let number = parts.next()?.parse().ok()?;
    parts.next()?;
    Some((number, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], wanted: &Wanted) -> Result<Vec<String>> {
        let listing: Vec<File> = names.iter().map(|n| File::named(*n)).collect();
        Ok(select(&listing, wanted)?.into_iter().map(|f| f.path).collect())
    }

    #[test]
    fn safetensors_is_preferred() {
        let names = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "onnx/config.json",
            "openvino/openvino_model.bin",
            "pytorch_model.bin",
            "rust_model.ot",
            "tf_model.h5",
            "tokenizer.json",
            "training_args.bin",
            "vocab.txt",
        ];
        let expected = ["README.md", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"];
        assert_eq!(chosen(&names, &Wanted::default()).unwrap(), expected);
    }

    #[test]
    fn all_shards_are_selected_with_their_index() {
        let names = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.00.pth",
            "original/params.json",
            "pytorch_model-00001-of-00001.bin",
        ];
        assert_eq!(chosen(&names, &Wanted::default()).unwrap(), names[..4]);
    }

    #[test]
    fn a_missing_shard_is_named() {
        let names = ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"];
        let error = chosen(&names, &Wanted::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("shard 2 is missing"), "{error}");
    }

    #[test]
    fn modules_of_sentence_transformers_are_selected() {
        let names = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "config_sentence_transformers.json",
            "model.safetensors",
            "modules.json",
        ];
        let mut expected = names.to_vec();
        expected.remove(3);
        assert_eq!(chosen(&names, &Wanted::default()).unwrap(), expected);
    }

    #[test]
    fn one_of_several_gguf_files_must_be_chosen() {
        let names = ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "mmproj-a-f16.gguf", "config.json"];
        let error = chosen(&names, &Wanted::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(
            error.to_string().contains("a-Q4_K_M.gguf") && error.to_string().contains("LoadOptions::file"),
            "{error}"
        );
        assert_eq!(chosen(&names, &Wanted::default().file("q8_0")).unwrap(), ["a-Q8_0.gguf", "config.json"]);
        assert_eq!(
            chosen(&names, &Wanted::default().file("a-Q8_0.gguf")).unwrap(),
            ["a-Q8_0.gguf", "config.json"]
        );
        assert_eq!(chosen(&names, &Wanted::default().file("q5")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn shards_of_a_chosen_gguf_are_selected_together() {
        let names = ["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf", "q8/m.gguf"];
        assert_eq!(chosen(&names, &Wanted::default().file("q4/")).unwrap(), names[..2]);
        assert_eq!(chosen(&names, &Wanted::default().file("q4/m-00001-of-00002.gguf")).unwrap(), names[..2]);
    }

    #[test]
    fn a_multi_file_release_is_selected_completely() {
        let mega = ["config.json", "decoder.pt", "detoker.pt", "encoder.pt"];
        assert_eq!(chosen(&mega, &Wanted::default()).unwrap(), mega);
        let both = ["decoder.pt", "decoder_mini.pt", "detoker.pt", "encoder.pt", "encoder_mini.pt"];
        let error = chosen(&both, &Wanted::default()).unwrap_err();
        assert!(error.to_string().contains("LoadOptions::file = mega"), "{error}");
        let mini = ["decoder_mini.pt", "detoker.pt", "encoder_mini.pt"];
        for choice in ["mini", "encoder_mini.pt"] {
            assert_eq!(chosen(&both, &Wanted::default().file(choice)).unwrap(), mini);
        }
        assert_eq!(chosen(&both, &Wanted::default().file("mega")).unwrap(), mega[1..]);
        assert_eq!(chosen(&both, &Wanted::default().file("detoker.pt")).unwrap(), ["detoker.pt"]);
        assert_eq!(chosen(&["flax_model.msgpack"], &Wanted::default()).unwrap(), ["flax_model.msgpack"]);
    }

    #[test]
    fn a_single_weight_file_needs_no_choice() {
        assert_eq!(chosen(&["m.Q4_1.gguf"], &Wanted::default()).unwrap(), ["m.Q4_1.gguf"]);
        assert_eq!(chosen(&["checkpoint.pt"], &Wanted::default()).unwrap(), ["checkpoint.pt"]);
        assert_eq!(
            chosen(&["pytorch_model.bin", "state_dict.bin"], &Wanted::default()).unwrap(),
            ["pytorch_model.bin"]
        );
    }

    #[test]
    fn weights_in_other_places_are_listed() {
        let error = chosen(&["config.json", "deep/model.safetensors"], &Wanted::default()).unwrap_err();
        assert!(error.to_string().contains("deep/model.safetensors"), "{error}");
    }

    #[test]
    fn all_pipeline_folders_are_selected() {
        let names = ["model_index.json", "unet/model.safetensors", "vae/model.safetensors", "onnx/model.bin"];
        assert_eq!(chosen(&names, &Wanted::default()).unwrap(), names[..3]);
    }

    #[test]
    fn without_weights_requires_none() {
        assert_eq!(chosen(&["config.json"], &Wanted::default().without_weights()).unwrap(), ["config.json"]);
        let also = Wanted::default().without_weights().also(["stats/norm.npy"]);
        assert_eq!(chosen(&["config.json", "stats/norm.npy"], &also).unwrap().len(), 2);
    }
}
