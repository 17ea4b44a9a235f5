//! Quantizing a checkpoint to GGUF: matrices are block quantized, other tensors are copied.
//!
//! The model determines which tensors are matrices by loading them, so the copy computes bit for bit the same as the
//! original loaded with the same format ([`Runtime::with_quantize`]).

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Metadata, StorageType, StoredTensor, TensorInfo, Value, write_gguf};
use crate::folder::{Scratch, copy_descriptions, is_gguf};
use crate::kernels::matmul::Layout;
use crate::model::Family;
use crate::nn::block_name;
use crate::progress::{Progress, Unit};
use crate::runtime::Runtime;
use crate::weights::{Inventory, MatrixUse, Name, entries_of, quantized, widen};
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, ErrorKind, Result};

/// File name of the quantized weights.
pub const WEIGHTS: &str = "model.gguf";

/// Options of [`quantize`].
#[derive(Debug, Clone)]
pub struct QuantizeOptions<'a> {
    /// The source model, as for [`Zoo::open`].
    pub source: &'a str,
    /// Quantization format of the matrices.
    pub kind: GgmlDType,
    /// Output folder.
    pub folder: &'a Path,
    /// Whether to replace an existing quantized copy in the output folder.
    pub replace: bool,
}

/// The result of [`quantize`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuantizeReport {
    /// Output folder.
    pub folder: PathBuf,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of quantized tensors.
    pub quantized: usize,
    /// Size of all tensors before quantization, in bytes.
    pub bytes_before: u64,
    /// Size of all tensors after quantization, in bytes.
    pub bytes_after: u64,
}

/// Quantizes a model: writes the weights as one GGUF file with the tensor names of the source, and copies config,
/// tokenizer and licence files. The output folder is created when complete. One tensor at a time is in memory.
///
/// Embedding tables are quantized to 8 bits. Tensors that are block quantized already are kept if they are not larger.
///
/// # Errors
/// As [`Zoo::open`]; [`Input`](ErrorKind::Input) if the output folder exists and `replace` is not set, or is not a
/// quantized copy; [`Cancelled`](ErrorKind::Cancelled) if cancelled by `progress`; [`Io`](ErrorKind::Io) if writing
/// fails.
pub fn quantize(
    zoo: &Zoo,
    options: &LoadOptions,
    copy: &QuantizeOptions,
    progress: &dyn Progress,
) -> Result<QuantizeReport> {
    check_target(copy)?;
    let options = LoadOptions { runtime: Runtime::cpu(), random_weights: None, ..options.clone() };
    let (family, pretrained) = zoo.pretrained(copy.source, &options)?;
    if !pretrained.options.adapters.is_empty() {
        return Err(Error::input("a model with adapters is not quantized")
            .hint("merge them into the model, and quantize the result"));
    }
    let inventory = (family.inventory)(&pretrained)?;
    let checkpoint =
        pretrained.checkpoint.as_ref().ok_or_else(|| Error::input("the model has no weights to quantize"))?;
    let plan = plan(checkpoint, family, &inventory, copy.kind);

    let scratch = Scratch::next_to(copy.folder)?;
    copy_descriptions(&pretrained, scratch.path())?;
    let metadata = metadata(checkpoint, copy, family, &pretrained.label);
    let planned: Vec<TensorInfo> = plan.iter().map(|part| part.planned.clone()).collect();
    let bytes = |part: &Part| (part.stored.bytes.len() as u64, part.planned_bytes());
    let made = QuantizeReport {
        folder: copy.folder.to_path_buf(),
        tensors: plan.len(),
        quantized: plan.iter().filter(|part| part.target.is_some()).count(),
        bytes_before: plan.iter().map(|part| bytes(part).0).sum(),
        bytes_after: plan.iter().map(|part| bytes(part).1).sum(),
    };
    if plan.iter().any(|part| part.target.is_some() && matches!(part.stored.storage, StorageType::Block(_))) {
        progress.note("some matrices are quantized already; quantizing the original loses less precision");
    }
    let task = progress.begin("quantizing", Unit::Bytes, Some(made.bytes_before));
    let mut parts = plan.iter();
    write_gguf(&scratch.path().join(WEIGHTS), &metadata, &planned, |planned| {
        if progress.cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "cancelled; nothing was written"));
        }
        let part = parts.next().ok_or_else(|| Error::input(format!("unexpected tensor {}", planned.name)))?;
        let converted = part.convert().map_err(|e| e.context(&planned.name))?;
        task.advance(part.stored.bytes.len() as u64);
        Ok(converted)
    })?;
    scratch.become_folder(copy.folder, copy.replace)?;
    Ok(made)
}

/// A tensor of the output.
struct Part<'a> {
    planned: TensorInfo,
    stored: &'a StoredTensor,
    /// Quantization format, and layout in the source; `None` if it is copied.
    target: Option<(GgmlDType, Layout)>,
}

impl Part<'_> {
    fn planned_bytes(&self) -> u64 {
        self.planned.storage.byte_len(&self.planned.shape).unwrap_or(0) as u64
    }

    fn convert(&self) -> Result<Vec<u8>> {
        if let Some((kind, layout)) = self.target {
            return match self.planned.shape[..] {
                [outputs, inputs] => Ok(quantized(self.stored, layout, (outputs, inputs), kind)?.to_vec()),
                [_, outputs, inputs] => {
                    // One matrix at a time.
                    let mut bytes = Vec::new();
                    for matrix in entries_of(&self.planned.name, self.stored)? {
                        bytes.extend_from_slice(&quantized(&matrix, layout, (outputs, inputs), kind)?);
                    }
                    Ok(bytes)
                }
                _ => Err(Error::input("only matrices can be block quantized")),
            };
        }
        let bytes = match (self.stored.storage, self.planned.storage) {
            (StorageType::F64, StorageType::F32) => {
                widen(self.stored)?.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            // The bytes are copied; only the GGUF type may differ.
            _ => self.stored.bytes.to_vec(),
        };
        self.stored.bytes.release();
        Ok(bytes)
    }
}

/// The tensors of the output: all that the model loads; of a GGUF source all tensors, because the config depends on
/// them.
fn plan<'a>(
    checkpoint: &'a Checkpoint,
    family: &Family,
    inventory: &Inventory,
    kind: GgmlDType,
) -> Vec<Part<'a>> {
    let is_read =
        |name: &str| inventory.tensors.binary_search_by(|(known, _)| known.as_str().cmp(name)).is_ok();
    let mut parts = Vec::new();
    for (official, stored) in checkpoint.iter() {
        let name = match (family.rename)(official) {
            Name::Keep => Some(official.to_string()),
            Name::To(name) => Some(name),
            // Stacked tensors are not matrices and are copied.
            Name::Entries { before, after } => Some(format!("{before}0{after}")),
            Name::Ignore => None,
        };
        match name.filter(|name| is_read(name)) {
            Some(name) => {
                parts.push(part(official, stored, inventory.matrices.get(&name).copied(), kind));
            }
            None if is_gguf(checkpoint) => parts.push(part(official, stored, None, kind)),
            None => {}
        }
    }
    parts
}

fn part<'a>(
    official: &str,
    stored: &'a StoredTensor,
    matrix: Option<MatrixUse>,
    kind: GgmlDType,
) -> Part<'a> {
    let target = target(stored, matrix, kind);
    let shape = target.as_ref().map_or(&stored.shape, |target| &target.shape).clone();
    let storage = match (&target, stored.storage) {
        (Some(target), _) => StorageType::Block(target.kind),
        (None, StorageType::F64) => StorageType::F32,
        // GGUF has signed bytes only; loading accepts both.
        (None, StorageType::U8) => StorageType::I8,
        (None, storage) => storage,
    };
    let planned = TensorInfo { name: official.to_string(), storage, shape };
    Part { planned, stored, target: target.map(|target| (target.kind, target.layout)) }
}

/// The quantized form of a matrix or of stacked matrices.
struct Target {
    kind: GgmlDType,
    shape: Vec<usize>,
    /// Layout of each matrix in the source.
    layout: Layout,
}

/// The quantized form of a matrix, if it becomes smaller.
fn target(stored: &StoredTensor, matrix: Option<MatrixUse>, kind: GgmlDType) -> Option<Target> {
    let (matrix, in_blocks) = (matrix?, matches!(stored.storage, StorageType::Block(_)));
    let (shape, layout) = match (matrix, &stored.shape[..]) {
        (MatrixUse::TransposedLinear, [inputs, outputs]) if !in_blocks => {
            (vec![*outputs, *inputs], Layout::InOut)
        }
        (MatrixUse::Experts, [count, inputs, outputs]) if !in_blocks => {
            (vec![*count, *outputs, *inputs], Layout::InOut)
        }
        (MatrixUse::Experts, shape @ [_, _, _]) => (shape.to_vec(), Layout::OutIn),
        (MatrixUse::Linear | MatrixUse::TransposedLinear | MatrixUse::Embedding, shape @ [_, _]) => {
            (shape.to_vec(), Layout::OutIn)
        }
        _ => return None,
    };
    let kind = matrix.format(kind, *shape.last()?)?;
    let smaller = StorageType::Block(kind).byte_len(&shape)? < stored.bytes.len();
    (smaller || !in_blocks).then_some(Target { kind, shape, layout })
}

/// The metadata of a GGUF source, or else the marker that names and config are the official ones; and the origin.
fn metadata(checkpoint: &Checkpoint, copy: &QuantizeOptions, family: &Family, label: &str) -> Metadata {
    let mut metadata = match is_gguf(checkpoint) {
        true => checkpoint.metadata().clone(),
        false => Metadata::from([("general.architecture".to_string(), Value::Text("fauna".to_string()))]),
    };
    // The mixture of formats has changed.
    metadata.remove("general.file_type");
    let name = label.trim_end_matches('/').rsplit('/').next().unwrap_or(label);
    let mut set = |key: &str, value: &str| metadata.insert(key.to_string(), Value::Text(value.to_string()));
    set("fauna.source", name);
    set("fauna.family", family.name);
    set("fauna.format", &block_name(copy.kind));
    if let Some(release) = family.releases.iter().find(|release| release.id == label) {
        set("general.license", release.licence);
    }
    metadata
}

/// Rejects an existing output folder, unless it may be replaced, is a quantized copy, and does not contain the source.
fn check_target(copy: &QuantizeOptions) -> Result<()> {
    let folder = copy.folder;
    if std::fs::symlink_metadata(folder).is_err() {
        return Ok(());
    }
    if !copy.replace {
        return Err(Error::input("the output folder exists").at(folder).set(
            "choose another folder, or replace it",
            "QuantizeOptions::replace",
            "true",
        ));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a.starts_with(&b));
    if same(Path::new(copy.source), folder) {
        return Err(Error::input("the output folder contains the source")
            .at(folder)
            .hint("choose another folder"));
    }
    let held = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?.count();
    match held == 0 || folder.join(WEIGHTS).is_file() {
        true => Ok(()),
        false => Err(Error::input(format!(
            "the output folder is not a quantized copy: it has files but no {WEIGHTS}"
        ))
        .at(folder)
        .hint("choose another folder")),
    }
}
