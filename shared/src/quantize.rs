//! A smaller copy of any checkpoint: its matrices in blocks, everything else as it was.
//!
//! Which tensors are matrices, the model says by loading them; so the copy computes bit for bit what the original
//! computes when it is opened with the same format ([`Runtime::with_quantize`]).

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Metadata, Planned, Storage, Stored, Value, write_gguf};
use crate::kernels::matmul::Layout;
use crate::model::{Family, Pretrained};
use crate::nn::block_name;
use crate::progress::{Progress, Unit};
use crate::runtime::Runtime;
use crate::source::{File, Wanted, select};
use crate::weights::{Inventory, MatrixUse, Name, entries_of, quantized, widen};
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, ErrorKind, Result};

/// What the weights of the copy are called.
pub const WEIGHTS: &str = "model.gguf";

/// A copy to be made.
#[derive(Debug, Clone)]
pub struct Copy<'a> {
    /// The model, as [`Zoo::open`] takes it.
    pub source: &'a str,
    /// The format of the matrices.
    pub kind: GgmlDType,
    /// The folder that will hold the copy.
    pub folder: &'a Path,
    /// Whether an earlier copy in that folder is replaced.
    pub replace: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quantized {
    /// The folder of the copy.
    pub folder: PathBuf,
    /// How many tensors it holds.
    pub tensors: usize,
    /// How many of them were brought to blocks.
    pub quantized: usize,
    /// Bytes of all tensors before.
    pub bytes_before: u64,
    /// Bytes of all tensors after.
    pub bytes_after: u64,
}

/// Makes `copy`: the weights as one GGUF file under the names the source gives them, config, tokenizer and licence
/// files beside it. The folder appears when it is complete. One tensor at a time is in memory.
///
/// Embedding tables are kept at 8 bits; what is in blocks already and no larger than asked for stays as it is.
///
/// # Errors
/// As [`Zoo::open`]; [`Input`](ErrorKind::Input) if the folder exists and is not to be replaced, or is no earlier copy;
/// [`Cancelled`](ErrorKind::Cancelled) if `progress` says so; [`Io`](ErrorKind::Io) if writing fails.
pub fn quantize(zoo: &Zoo, options: &LoadOptions, copy: &Copy, progress: &dyn Progress) -> Result<Quantized> {
    check_target(copy)?;
    let options = LoadOptions { runtime: Runtime::cpu(), random_weights: None, ..options.clone() };
    let (family, pretrained) = zoo.pretrained(copy.source, &options)?;
    let inventory = (family.inventory)(&pretrained)?;
    let checkpoint =
        pretrained.checkpoint.as_ref().ok_or_else(|| Error::input("there are no weights to copy"))?;
    let plan = plan(checkpoint, family, &inventory, copy.kind);

    let scratch = Scratch::beside(copy.folder)?;
    copy_descriptions(&pretrained, scratch.path())?;
    let metadata = metadata(checkpoint, copy, family, &pretrained.label);
    let planned: Vec<Planned> = plan.iter().map(|part| part.planned.clone()).collect();
    let bytes = |part: &Part| (part.stored.bytes.len() as u64, part.planned_bytes());
    let made = Quantized {
        folder: copy.folder.to_path_buf(),
        tensors: plan.len(),
        quantized: plan.iter().filter(|part| part.target.is_some()).count(),
        bytes_before: plan.iter().map(|part| bytes(part).0).sum(),
        bytes_after: plan.iter().map(|part| bytes(part).1).sum(),
    };
    if plan.iter().any(|part| part.target.is_some() && matches!(part.stored.storage, Storage::Block(_))) {
        progress.note("some matrices are in larger blocks already; a copy of the original loses less");
    }
    let task = progress.begin("quantizing", Unit::Bytes, Some(made.bytes_before));
    let mut parts = plan.iter();
    write_gguf(&scratch.path().join(WEIGHTS), &metadata, &planned, |planned| {
        if progress.cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped; nothing was written"));
        }
        let part = parts.next().ok_or_else(|| Error::input(format!("{} was not planned", planned.name)))?;
        let converted = part.convert().map_err(|e| e.context(&planned.name))?;
        task.advance(part.stored.bytes.len() as u64);
        Ok(converted)
    })?;
    scratch.become_folder(copy)?;
    Ok(made)
}

/// One tensor of the copy.
struct Part<'a> {
    planned: Planned,
    stored: &'a Stored,
    /// The format it is brought to and how it lies in the source; none if it stays as it is.
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
                    // One matrix after the other, as they are read.
                    let mut bytes = Vec::new();
                    for matrix in entries_of(&self.planned.name, self.stored)? {
                        bytes.extend_from_slice(&quantized(&matrix, layout, (outputs, inputs), kind)?);
                    }
                    Ok(bytes)
                }
                _ => Err(Error::input("only a matrix can be in blocks")),
            };
        }
        let bytes = match (self.stored.storage, self.planned.storage) {
            (Storage::F64, Storage::F32) => {
                widen(self.stored)?.iter().flat_map(|value| value.to_le_bytes()).collect()
            }
            // As they are, whatever GGUF calls them.
            _ => self.stored.bytes.to_vec(),
        };
        self.stored.bytes.release();
        Ok(bytes)
    }
}

/// What the copy holds: all that the model reads, and of a GGUF file the rest as well, since configs are made from it.
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
            // A stack is no matrix: it is copied as it is.
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

fn part<'a>(official: &str, stored: &'a Stored, matrix: Option<MatrixUse>, kind: GgmlDType) -> Part<'a> {
    let target = target(stored, matrix, kind);
    let shape = target.as_ref().map_or(&stored.shape, |target| &target.shape).clone();
    let storage = match (&target, stored.storage) {
        (Some(target), _) => Storage::Block(target.kind),
        (None, Storage::F64) => Storage::F32,
        // GGUF has signed bytes only; whoever reads bytes takes either.
        (None, Storage::U8) => Storage::I8,
        (None, storage) => storage,
    };
    let planned = Planned { name: official.to_string(), storage, shape };
    Part { planned, stored, target: target.map(|target| (target.kind, target.layout)) }
}

/// What a matrix, or a stack of them, is brought to.
struct Target {
    kind: GgmlDType,
    shape: Vec<usize>,
    /// How each matrix lies in the source.
    layout: Layout,
}

/// The target of a matrix that becomes smaller.
fn target(stored: &Stored, matrix: Option<MatrixUse>, kind: GgmlDType) -> Option<Target> {
    let (matrix, in_blocks) = (matrix?, matches!(stored.storage, Storage::Block(_)));
    let (shape, layout) = match (matrix, &stored.shape[..]) {
        (MatrixUse::TransposedMap, [inputs, outputs]) if !in_blocks => {
            (vec![*outputs, *inputs], Layout::InOut)
        }
        (MatrixUse::Experts, [count, inputs, outputs]) if !in_blocks => {
            (vec![*count, *outputs, *inputs], Layout::InOut)
        }
        (MatrixUse::Experts, shape @ [_, _, _]) => (shape.to_vec(), Layout::OutIn),
        (MatrixUse::Map | MatrixUse::TransposedMap | MatrixUse::Table, shape @ [_, _]) => {
            (shape.to_vec(), Layout::OutIn)
        }
        _ => return None,
    };
    let kind = matrix.format(kind, *shape.last()?)?;
    let smaller = Storage::Block(kind).byte_len(&shape)? < stored.bytes.len();
    (smaller || !in_blocks).then_some(Target { kind, shape, layout })
}

fn is_gguf(checkpoint: &Checkpoint) -> bool {
    checkpoint.metadata().contains_key("general.architecture")
}

/// What a GGUF source says, or that names are the official ones and the config lies beside; and where it comes from.
fn metadata(checkpoint: &Checkpoint, copy: &Copy, family: &Family, label: &str) -> Metadata {
    let mut metadata = match is_gguf(checkpoint) {
        true => checkpoint.metadata().clone(),
        false => Metadata::from([("general.architecture".to_string(), Value::Text("fauna".to_string()))]),
    };
    // It names the mixture of formats, which is another one now.
    metadata.remove("general.file_type");
    let name = label.trim_end_matches('/').rsplit('/').next().unwrap_or(label);
    let mut say = |key: &str, value: &str| metadata.insert(key.to_string(), Value::Text(value.to_string()));
    say("fauna.source", name);
    say("fauna.family", family.name);
    say("fauna.format", &block_name(copy.kind));
    if let Some(release) = family.releases.iter().find(|release| release.id == label) {
        say("general.license", release.licence);
    }
    metadata
}

/// Configs, tokenizers and processors, the weights of modules, and what says who made the model and who may use it.
fn copy_descriptions(pretrained: &Pretrained, into: &Path) -> Result<()> {
    let names = pretrained.files.names();
    let listing: Vec<File> = names.iter().map(File::named).collect();
    let described = select(&listing, &Wanted::default().without_weights())?.into_iter().map(|file| file.path);
    let legal = names.iter().filter(|name| is_legal(name)).cloned();
    // Layers in folders of their own, which are small, stay as they are.
    let modules = pretrained.files.modules()?;
    let mut wanted: Vec<String> =
        described.chain(legal).chain(modules).filter(|name| !name.ends_with(".index.json")).collect();
    wanted.sort();
    wanted.dedup();
    for name in wanted {
        let from = pretrained.files.require(&name)?;
        let to = into.join(&name);
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        }
        std::fs::copy(&from, &to).map_err(|e| Error::io(&to, "write", e))?;
    }
    // What followed from the name of the weights, which the copy does not keep. A GGUF file holds its own.
    let to = into.join("config.json");
    if !to.exists() && pretrained.checkpoint.as_ref().is_some_and(|checkpoint| !is_gguf(checkpoint)) {
        std::fs::write(&to, pretrained.config.to_string()).map_err(|e| Error::io(&to, "write", e))?;
    }
    Ok(())
}

/// Whether a file at the top is a licence, a notice or a model card.
fn is_legal(name: &str) -> bool {
    let upper = name.to_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "NOTICE", "README", "USE_POLICY"]
        .iter()
        .any(|start| upper.starts_with(start))
}

/// Refuses a folder that exists, unless it may be replaced and holds an earlier copy and nothing to be sorry for.
fn check_target(copy: &Copy) -> Result<()> {
    let folder = copy.folder;
    if std::fs::symlink_metadata(folder).is_err() {
        return Ok(());
    }
    if !copy.replace {
        return Err(Error::input("it exists already")
            .at(folder)
            .hint("name another folder, or replace it: --force"));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a.starts_with(&b));
    if same(Path::new(copy.source), folder) {
        return Err(Error::input("it holds the source of the copy").at(folder).hint("name another folder"));
    }
    let held = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))?.count();
    match held == 0 || folder.join(WEIGHTS).is_file() {
        true => Ok(()),
        false => Err(Error::input(format!("it is no earlier copy: it has files and no {WEIGHTS}"))
            .at(folder)
            .hint("name another folder")),
    }
}

/// A folder that is removed unless it took its final name.
struct Scratch(PathBuf);

impl Scratch {
    fn beside(folder: &Path) -> Result<Self> {
        let name = folder.file_name().ok_or_else(|| Error::input("not a name for a folder").at(folder))?;
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let scratch = Self(parent.join(name));
        std::fs::create_dir(scratch.path()).map_err(|e| Error::io(scratch.path(), "create", e))?;
        Ok(scratch)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn become_folder(self, copy: &Copy) -> Result<()> {
        let old = self.0.with_extension("old");
        let replaced = copy.replace && copy.folder.exists();
        if replaced {
            std::fs::rename(copy.folder, &old).map_err(|e| Error::io(copy.folder, "move away", e))?;
        }
        if let Err(error) = std::fs::rename(self.path(), copy.folder) {
            if replaced {
                let _ = std::fs::rename(&old, copy.folder);
            }
            return Err(Error::io(copy.folder, "give the finished folder its name", error));
        }
        if replaced {
            std::fs::remove_dir_all(&old).map_err(|e| Error::io(&old, "remove", e))?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
