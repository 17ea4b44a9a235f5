//! Writing what was trained: an adapter in the layout of peft, or a whole checkpoint in the layout of its release.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Var};
use half::{bf16, f16};
use serde_json::Value;

use crate::adapter::{Adapter, AdapterConfig, Kind, Parts, TargetModules, stored};
use crate::checkpoint::{Checkpoint, Metadata, StorageType, StoredTensor, TensorInfo, write_safetensors};
use crate::folder::{Scratch, copy_descriptions, is_gguf};
use crate::model::Pretrained;
use crate::weights::{Lora, entries_of};
use crate::{Error, ErrorKind, Result, adapter, transfer};

/// Writes the checkpoint of `pretrained` to `folder`, with the values of `variables` in place of its own, in the element
/// types of the file. An existing folder is replaced when the new one is complete.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for a GGUF source or a layout whose weights are not in safetensors under a
/// name of their own; [`Io`](ErrorKind::Io) if writing fails.
pub(super) fn write_checkpoint(
    pretrained: &Pretrained,
    variables: &BTreeMap<String, Var>,
    folder: &Path,
) -> Result<()> {
    let name = file_name(pretrained)?;
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
        base_model_name_or_path: Some(pretrained.label.clone()),
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
pub(super) fn savable(pretrained: &Pretrained) -> Result<()> {
    if !pretrained.options.adapters.is_empty() {
        return Err(Error::unsupported(
            "a whole checkpoint is not written of a model with an adapter over it",
        )
        .hint("merge the adapter first, or train another one"));
    }
    file_name(pretrained).map(|_| ())
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

/// The name of the weights file: that of the source, or its safetensors name.
fn file_name(pretrained: &Pretrained) -> Result<String> {
    let Some(checkpoint) = &pretrained.checkpoint else { return Ok("model.safetensors".into()) };
    if is_gguf(checkpoint) {
        return Err(Error::unsupported("a whole checkpoint is not written from a GGUF file")
            .hint("train an adapter, or open the release in safetensors"));
    }
    let name = |checkpoint: &Checkpoint| -> Option<String> {
        match checkpoint.files() {
            [file] => Some(file.file_name()?.to_string_lossy().into_owned()),
            // Shards become one file.
            _ => Some("model.safetensors".into()),
        }
    };
    let name = name(checkpoint).unwrap_or_else(|| "model.safetensors".into());
    match name.as_str() {
        "pytorch_model.bin" => Ok("model.safetensors".into()),
        "open_clip_pytorch_model.bin" => Ok("open_clip_model.safetensors".into()),
        name if name.ends_with(".safetensors") => Ok(name.to_string()),
        name => Err(Error::new(
            ErrorKind::Unsupported,
            format!("a whole checkpoint is not written in the layout of {name}"),
        )
        .hint("train an adapter")),
    }
}

/// A tensor of the output.
struct Part<'a> {
    planned: TensorInfo,
    /// The tensor of the source; `None` if it has none.
    stored: Option<&'a StoredTensor>,
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

    fn of(official: &str, stored: &'a StoredTensor, variables: &'a BTreeMap<String, Var>) -> Result<Self> {
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
        Ok(Self { planned, stored: Some(stored), variables })
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let official = &self.planned.name;
        let encoded = |variable: &Var| encode(variable, self.planned.storage);
        match (self.stored, self.variables.as_slice()) {
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
