//! Writing what was trained: an adapter in the layout of peft, or a whole checkpoint in the layout of its release.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Var};
use half::{bf16, f16};
use serde_json::Value;

use crate::adapter::{Adapter, AdapterConfig, AdapterSpec, Kind, Parts, TargetModules, stored};
use crate::checkpoint::{
    Checkpoint, Metadata, StorageType, StoredTensor, TensorInfo, write_patched, write_safetensors,
};
use crate::folder::{Scratch, copy_descriptions, is_gguf};
use crate::model::Pretrained;
use crate::weights::{Lora, entries_of};
use crate::{Error, ErrorKind, Result, adapter, transfer};

/// Writes the checkpoint of `pretrained` to `folder`, with the values of `variables` in place of its own, in the element
/// types of the file. An existing folder is replaced when the new one is complete.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for a GGUF source, and with the name of a tensor that the files of a layout of
/// its own cannot take; [`Io`](ErrorKind::Io) if writing fails.
pub(super) fn write_checkpoint(
    pretrained: &Pretrained,
    variables: &BTreeMap<String, Var>,
    folder: &Path,
) -> Result<()> {
    let name = match form(pretrained)? {
        Form::Safetensors(name) => name,
        Form::Files(files) => return write_files(pretrained, &files, variables, folder),
    };
    let mut parts = Vec::new();
    let mut written: Vec<&str> = Vec::new();
    if let Some(checkpoint) = &pretrained.checkpoint {
        for (official, stored) in checkpoint.iter() {
            let part = Part::of(official, stored, variables)?;
            written.extend(part.variables.iter().map(|(name, _)| *name));
            parts.push(part);
        }
    }
    for (official, variable) in variables {
        if !written.contains(&official.as_str()) {
            parts.push(Part::new(official, variable));
        }
    }
    let scratch = Scratch::next_to(folder)?;
    copy_descriptions(pretrained, scratch.path())?;
    copy_parts(pretrained, scratch.path())?;
    write_config(pretrained, scratch.path())?;
    let metadata = Metadata::from([("format".to_string(), crate::checkpoint::Value::Text("pt".into()))]);
    let planned: Vec<TensorInfo> = parts.iter().map(|part| part.planned.clone()).collect();
    let mut parts = parts.iter();
    write_safetensors(&scratch.path().join(name), &metadata, &planned, |planned| {
        let part = parts.next().ok_or_else(|| Error::input(format!("unexpected tensor {}", planned.name)))?;
        part.bytes()
    })?;
    scratch.become_folder(folder, true)
}

/// How a whole checkpoint is written.
enum Form {
    /// As one safetensors file of this name.
    Safetensors(String),
    /// As copies of the files, each with what is before the names of its tensors in the network.
    Files(Vec<(String, PathBuf)>),
}

/// Writes copies of `files` with the values of `variables` to `folder`, beside the other files of the release.
fn write_files(
    pretrained: &Pretrained,
    files: &[(String, PathBuf)],
    variables: &BTreeMap<String, Var>,
    folder: &Path,
) -> Result<()> {
    let mut changes = changes(pretrained, files, variables)?;
    let scratch = Scratch::next_to(folder)?;
    copy_descriptions(pretrained, scratch.path())?;
    write_config(pretrained, scratch.path())?;
    for (_, path) in files {
        // A file of another release stays where it is.
        let Ok(name) = path.strip_prefix(pretrained.files.root()) else { continue };
        let to = scratch.path().join(name);
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        }
        let mut changed = BTreeMap::new();
        for (name, part) in changes.remove(path).unwrap_or_default() {
            changed.insert(name, part.bytes()?);
        }
        write_patched(path, &to, &changed)?;
    }
    copy_parts(pretrained, scratch.path())?;
    scratch.become_folder(folder, true)
}

/// The tensors of each of `files` with values of `variables`, by their names there.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) with the name of a variable that is in none of the files of the release.
fn changes<'a>(
    pretrained: &Pretrained,
    files: &'a [(String, PathBuf)],
    variables: &'a BTreeMap<String, Var>,
) -> Result<BTreeMap<&'a PathBuf, Vec<(String, Part<'a>)>>> {
    let mut left: BTreeSet<&str> = variables.keys().map(String::as_str).collect();
    let mut changes: BTreeMap<&PathBuf, Vec<(String, Part)>> = BTreeMap::new();
    for (prefix, path) in files {
        let checkpoint = Checkpoint::open(path)?;
        for (name, stored) in checkpoint.iter() {
            let official = format!("{prefix}{name}");
            let part = Part::of(&official, stored, variables)?;
            if part.variables.is_empty() || !part.variables.iter().all(|(name, _)| left.remove(name)) {
                continue;
            }
            let refused = |why: String| Err(Error::unsupported(format!("{official}: {why}")).at(path));
            if !path.starts_with(pretrained.files.root()) {
                return refused("it is of another release, which is not written".into());
            }
            if part.planned.storage != stored.storage {
                return refused(format!("a variable is not stored as {:?}", stored.storage));
            }
            changes.entry(path).or_default().push((name.to_string(), part));
        }
    }
    match left.first() {
        None => Ok(changes),
        Some(name) => Err(Error::unsupported(format!("no file of the release has the tensor {name}"))
            .hint("train an adapter, whose files have tensors of its own")),
    }
}

/// Copies the weight files beside the checkpoint that the model has read.
fn copy_parts(pretrained: &Pretrained, into: &Path) -> Result<()> {
    let own = pretrained.checkpoint.as_ref().map(Checkpoint::files).unwrap_or_default();
    for part in pretrained.parts.all() {
        let Ok(name) = part.path.strip_prefix(pretrained.files.root()) else { continue };
        let to = into.join(name);
        if to.exists() || own.contains(&part.path) {
            continue;
        }
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        }
        std::fs::copy(&part.path, &to).map_err(|e| Error::io(&to, "write", e))?;
    }
    Ok(())
}

/// Writes the adapter `lora` over `pretrained`, whose factors are among `variables`, to `folder`. The other variables are
/// weights of the model that were trained in full (`modules_to_save`).
///
/// # Errors
/// [`Io`](ErrorKind::Io) if writing fails.
pub(super) fn write_adapter(
    pretrained: &Pretrained,
    lora: &Lora,
    variables: &BTreeMap<String, Var>,
    folder: &Path,
) -> Result<()> {
    let mut parts: BTreeMap<String, BTreeMap<&str, StoredTensor>> = BTreeMap::new();
    let mut saved = BTreeMap::new();
    for (name, variable) in variables {
        let tensor = stored(&variable.as_detached_tensor())?;
        match factor_of(name) {
            Some((module, end)) => {
                parts.entry(module.to_string()).or_default().insert(end, tensor);
            }
            None => {
                let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
                saved.insert(format!("{}.{leaf}", lora.module(module)), tensor);
            }
        }
    }
    let base = base_of(pretrained)?;
    let targets = parts.keys().cloned().collect();
    let of_parts = |(module, mut tensors): (String, BTreeMap<&str, StoredTensor>)| {
        let mut take = |names: [&str; 2]| names.into_iter().find_map(|name| tensors.remove(name));
        let missing = || Error::input(format!("{module} lacks a factor"));
        let (a, b) = (take([FACTORS[0], FACTORS[2]]), take([FACTORS[1], FACTORS[3]]));
        let (bias, magnitude) = (take([FACTORS[4], ""]), take([FACTORS[5], ""]));
        let (a, b) = (a.ok_or_else(missing)?, b.ok_or_else(missing)?);
        let kind = match (variables.contains_key(&format!("{module}.{}", FACTORS[2])), a.shape.len()) {
            (true, _) => Kind::Embedding,
            (false, 2) => Kind::Linear,
            (false, _) => Kind::Conv,
        };
        Ok((module, Parts { kind, a, b, bias, magnitude }))
    };
    let parts = parts.into_iter().map(of_parts).collect::<Result<BTreeMap<_, _>>>()?;
    let mut modules: Vec<String> =
        saved.keys().filter_map(|name: &String| Some(name.rsplit_once('.')?.0.to_string())).collect();
    modules.dedup();
    let config = AdapterConfig {
        base_model_name_or_path: Some(base),
        target_modules: Some(TargetModules::Names(targets)),
        modules_to_save: modules,
        ..lora.config.clone()
    };
    let scratch = Scratch::next_to(folder)?;
    Adapter::new(config, parts, saved)?.write(scratch.path())?;
    if !pretrained.options.config.is_empty() {
        let path = scratch.path().join(adapter::BASE_CONFIG);
        let keys = Value::Object(pretrained.options.config.clone());
        std::fs::write(&path, format!("{keys:#}\n")).map_err(|e| Error::io(&path, "write", e))?;
    }
    scratch.become_folder(folder, true)
}

/// The base model of an adapter that is trained over `pretrained`: its source, or the adapter over it, which names the
/// source itself.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for several adapters or a scaled one, which no name is for.
pub(super) fn base_of(pretrained: &Pretrained) -> Result<String> {
    match pretrained.options.adapters.as_slice() {
        [] => Ok(pretrained.label.clone()),
        [AdapterSpec { path, scale: 1.0 }] => Ok(path.clone()),
        several => {
            let names: Vec<String> = several.iter().map(AdapterSpec::to_string).collect();
            let message = format!("an adapter over {} cannot name its base model", names.join(" and "));
            Err(Error::unsupported(message).hint("merge them into the model first: fauna merge"))
        }
    }
}

/// The ends of the names of an adapter's variables.
const FACTORS: [&str; 6] = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_B.bias",
    "lora_magnitude_vector",
];

/// The module and the end of the name of an adapter's variable.
pub(super) fn factor_of(name: &str) -> Option<(&str, &'static str)> {
    FACTORS.into_iter().find_map(|end| Some((name.strip_suffix(end)?.strip_suffix('.')?, end)))
}

/// Checks that a whole checkpoint can be written of `pretrained`.
///
/// # Errors
/// As [`write_checkpoint`], but for those of writing.
pub(super) fn savable(pretrained: &Pretrained, variables: &BTreeMap<String, Var>) -> Result<()> {
    if !pretrained.options.adapters.is_empty() {
        return Err(Error::unsupported(
            "a whole checkpoint is not written of a model with an adapter over it",
        )
        .hint("merge the adapter first, or train another one"));
    }
    match form(pretrained)? {
        Form::Safetensors(_) => Ok(()),
        Form::Files(files) => changes(pretrained, &files, variables).map(|_| ()),
    }
}

/// Writes the config with the keys that [`LoadOptions::config`](crate::zoo::LoadOptions::config) changed.
fn write_config(pretrained: &Pretrained, folder: &Path) -> Result<()> {
    let path = folder.join("config.json");
    let mut config = match pretrained.files.config() {
        Ok(config) => config,
        Err(_) => return Ok(()),
    };
    if let Value::Object(fields) = &mut config {
        fields.extend(pretrained.options.config.clone());
    }
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::format(&path, e.to_string()))?;
    std::fs::write(&path, text + "\n").map_err(|e| Error::io(&path, "write", e))
}

/// How a whole checkpoint of `pretrained` is written: as a safetensors file of the name of the source, or of the name that
/// a pickle of this name has in safetensors; in any other layout in the files of the source.
fn form(pretrained: &Pretrained) -> Result<Form> {
    let parts = || {
        let parts = pretrained.parts.all().into_iter();
        parts.filter_map(|part| Some((part.prefix?, part.path))).collect::<Vec<_>>()
    };
    let Some(checkpoint) = &pretrained.checkpoint else {
        let parts = parts();
        return Ok(match parts.is_empty() || pretrained.options.random_weights.is_some() {
            true => Form::Safetensors("model.safetensors".into()),
            false => Form::Files(parts),
        });
    };
    if is_gguf(checkpoint) {
        return Err(Error::unsupported("a whole checkpoint is not written from a GGUF file")
            .hint("train an adapter, or open the release in safetensors"));
    }
    let name_of = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names: Vec<String> = checkpoint.files().iter().map(name_of).collect();
    let is_shard = |name: &String| name.contains("-of-") || name.ends_with(".safetensors");
    let name = match names.as_slice() {
        [name] if name == "pytorch_model.bin" => Some("model.safetensors"),
        [name] if name == "open_clip_pytorch_model.bin" => Some("open_clip_model.safetensors"),
        [name] if name.ends_with(".safetensors") => Some(name.as_str()),
        // Shards become one file.
        names if names.iter().all(is_shard) => Some("model.safetensors"),
        _ => None,
    };
    Ok(match name {
        Some(name) => Form::Safetensors(name.to_string()),
        None => {
            let own = checkpoint.files().iter().map(|path| (String::new(), path.clone()));
            let mut files: Vec<(String, PathBuf)> = own.collect();
            files.extend(parts());
            let mut seen = BTreeSet::new();
            files.retain(|(_, path)| seen.insert(path.clone()));
            Form::Files(files)
        }
    })
}

/// A tensor of the output.
struct Part<'a> {
    planned: TensorInfo,
    /// The tensor of the source; `None` if it has none.
    stored: Option<StoredTensor>,
    /// The variables that replace it, or its entries.
    variables: Vec<(&'a str, &'a Var)>,
}

impl<'a> Part<'a> {
    fn new(official: &'a str, variable: &'a Var) -> Self {
        let planned = TensorInfo {
            name: official.to_string(),
            storage: StorageType::F32,
            shape: variable.dims().to_vec(),
        };
        Self { planned, stored: None, variables: vec![(official, variable)] }
    }

    fn of(official: &str, stored: &StoredTensor, variables: &'a BTreeMap<String, Var>) -> Result<Self> {
        let whole = variables.get_key_value(official);
        let entries = variables.iter().filter(|(name, _)| {
            name.strip_prefix(official).is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']'))
        });
        let variables = whole.into_iter().chain(entries).map(|(name, variable)| (name.as_str(), variable));
        let variables: Vec<_> = variables.collect();
        let storage = match (stored.storage, variables.is_empty()) {
            (StorageType::Block(_) | StorageType::F64, false) => StorageType::F32,
            (storage, _) => storage,
        };
        let planned = TensorInfo { name: official.to_string(), storage, shape: stored.shape.clone() };
        Ok(Self { planned, stored: Some(stored.clone()), variables })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let official = &self.planned.name;
        let encoded = |variable: &Var| encode(variable, self.planned.storage);
        match (&self.stored, self.variables.as_slice()) {
            (Some(stored), []) => Ok(stored.bytes.to_vec()),
            (_, [(name, variable)]) if name == official => encoded(variable),
            (Some(stored), variables) => {
                let mut bytes = Vec::new();
                for (i, entry) in entries_of(official, stored)?.iter().enumerate() {
                    let name = format!("{official}[{i}]");
                    match variables.iter().find(|(known, _)| *known == name) {
                        Some((_, variable)) => bytes.extend(encoded(variable)?),
                        None => bytes.extend_from_slice(&entry.bytes),
                    }
                }
                Ok(bytes)
            }
            (None, _) => Err(Error::input(format!("{official} has no value"))),
        }
    }
}

/// The values of `variable`, rounded to `storage`.
fn encode(variable: &Var, storage: StorageType) -> Result<Vec<u8>> {
    let values: Vec<f32> = transfer::to_host(&variable.as_detached_tensor().to_dtype(DType::F32)?)?;
    if storage == StorageType::F16
        && let Some(value) = values.iter().find(|value| !f16::from_f32(**value).is_finite())
    {
        return Err(Error::new(
            ErrorKind::Compute,
            format!("the value {value} is out of the range of float16"),
        )
        .hint("train a checkpoint in bfloat16 or float32, or an adapter"));
    }
    let each = |encode: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|value| encode(*value)).collect();
    Ok(match storage {
        StorageType::BF16 => each(&|x| bf16::from_f32(x).to_le_bytes().to_vec()),
        StorageType::F16 => each(&|x| f16::from_f32(x).to_le_bytes().to_vec()),
        StorageType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        other => return Err(Error::unsupported(format!("a variable is not stored as {other:?}"))),
    })
}
