//! Reading checkpoint files (safetensors, GGUF, PyTorch, flax) as named tensors.
//!
//! [`Checkpoint::open`] detects the format of a file by its content, [`Checkpoint::open_folder`] finds the files of a
//! model. Both memory-map the files: a tensor is a name, a shape, an element type and a range of bytes. Tensors are
//! copied only where necessary, pickles are parsed without executing code, and all lengths in a file are validated.
//!
//! ```
//! use std::collections::HashMap;
//! use fauna_shared::checkpoint::{Checkpoint, StorageType};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let ones = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2, 3], &[1; 6])?;
//! safetensors::serialize_to_file(HashMap::from([("ones", ones)]), None, &path)?;
//!
//! let checkpoint = Checkpoint::open_folder(folder.path())?;
//! let ones = checkpoint.get("ones").unwrap();
//! assert_eq!((ones.storage, &ones.shape[..], &*ones.bytes), (StorageType::U8, &[2, 3][..], &[1; 6][..]));
//! assert_eq!(checkpoint.file_of("ones"), Some(&*path));
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;

use crate::error::first_five;
use crate::order::natural;
use crate::{Error, ErrorKind, Result, json, misnamed};

mod bytes;
mod cursor;
mod gguf;
mod metadata;
mod msgpack;
mod patch;
mod pickle;
mod safetensors;
mod torch;
mod write;
mod zip;

pub use bytes::Bytes;
pub use metadata::{List, Metadata, Value};
pub(crate) use patch::write_patched;
pub use write::{TensorInfo, write_gguf, write_safetensors};

/// The element type of a stored tensor, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the plain variants are the types they are named after")]
#[non_exhaustive]
pub enum StorageType {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    /// Complex: two `f32` per element, real and imaginary part.
    C64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    /// One byte per element: zero or one.
    Bool,
    /// Block quantized (GGUF): blocks along the last axis with shared scales.
    Block(GgmlDType),
}

impl StorageType {
    /// The element type that numpy and torch both call `name`.
    pub(crate) fn of_dtype(name: &str) -> Option<StorageType> {
        Some(match name {
            "float64" => StorageType::F64,
            "float32" => StorageType::F32,
            "float16" => StorageType::F16,
            "bfloat16" => StorageType::BF16,
            "complex64" => StorageType::C64,
            "int64" => StorageType::I64,
            "int32" => StorageType::I32,
            "int16" => StorageType::I16,
            "int8" => StorageType::I8,
            "uint64" => StorageType::U64,
            "uint32" => StorageType::U32,
            "uint16" => StorageType::U16,
            "uint8" => StorageType::U8,
            "bool" => StorageType::Bool,
            _ => return None,
        })
    }

    /// Size of an element, or of a block, in bytes.
    pub fn unit_bytes(self) -> usize {
        match self {
            StorageType::F64 | StorageType::I64 | StorageType::U64 | StorageType::C64 => 8,
            StorageType::F32 | StorageType::I32 | StorageType::U32 => 4,
            StorageType::F16 | StorageType::BF16 | StorageType::I16 | StorageType::U16 => 2,
            StorageType::F8E4M3
            | StorageType::F8E5M2
            | StorageType::I8
            | StorageType::U8
            | StorageType::Bool => 1,
            StorageType::Block(kind) => kind.type_size(),
        }
    }

    /// Elements per block; 1 for types that are not block quantized.
    pub fn unit_elements(self) -> usize {
        match self {
            StorageType::Block(kind) => kind.block_size(),
            _ => 1,
        }
    }

    /// Size in bytes of a tensor of `shape`; `None` on overflow, or if the last axis is not a multiple of the block
    /// size.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let per_unit = self.unit_elements();
        if per_unit > 1 && !shape.last()?.is_multiple_of(per_unit) {
            return None;
        }
        (element_count(shape)? / per_unit).checked_mul(self.unit_bytes())
    }

    /// Required alignment of the elements in bytes.
    pub fn alignment(self) -> usize {
        match self {
            StorageType::C64 => 4,
            // Blocks contain float16 or float32 scales.
            StorageType::Block(_) => 4,
            other => other.unit_bytes(),
        }
    }
}

impl fmt::Display for StorageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageType::Block(kind) => write!(f, "{kind:?}"),
            plain => write!(f, "{plain:?}"),
        }
    }
}

/// The number of elements of `shape`; `None` on overflow of the product of the nonzero axes.
fn element_count(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().filter(|&&n| n != 0).try_fold(1usize, |all, &n| all.checked_mul(n))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// A tensor as stored in a file.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Element type.
    pub storage: StorageType,
    /// Shape, slowest-varying axis first.
    pub shape: Vec<usize>,
    /// The elements, contiguous and row-major. Aligned for their type, except in PyTorch and flax files.
    pub bytes: Bytes,
}

impl StoredTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Resizes the first axis to `rows`, by truncation or with zeros, as for an embedding table that was resized.
    pub fn with_rows(self, rows: usize) -> Self {
        let mut shape = self.shape.clone();
        match shape.first_mut() {
            Some(first) => *first = rows,
            None => return self,
        }
        let Some(length) = self.storage.byte_len(&shape) else { return self };
        let bytes = match self.bytes.slice(0..length) {
            Some(bytes) => bytes,
            None => Bytes::filled(length, |out| out[..self.bytes.len()].copy_from_slice(&self.bytes)),
        };
        Self { bytes, shape, ..self }
    }
}

/// The content of one file.
#[derive(Default)]
struct Contents {
    tensors: BTreeMap<String, StoredTensor>,
    metadata: Metadata,
}

/// The tensors of one or more files, by name.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    tensors: BTreeMap<String, (StoredTensor, usize)>,
    files: Vec<PathBuf>,
    metadata: Metadata,
}

/// Standard checkpoint names in a model folder, in order of preference.
const FOLDER: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// File extensions of checkpoints with other names, in order of preference.
const ENDINGS: [&str; 9] =
    [".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pkl", ".msgpack"];

impl Checkpoint {
    /// Opens one file: safetensors, GGUF, PyTorch, flax, or the `.index.json` of a sharded checkpoint. The format is
    /// detected by content, not by name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the file does not exist, [`ErrorKind::Format`] if it is damaged or not a checkpoint,
    /// [`ErrorKind::Unsupported`] if the format of a tensor is not implemented.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "json") {
            return Self::open_index(path);
        }
        Self::open_files(std::slice::from_ref(&path.to_path_buf()))
    }

    /// Opens several files as one checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if two files contain a tensor of the same name, or `paths` is empty.
    pub fn open_files(paths: &[PathBuf]) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::input("a checkpoint needs at least one file"));
        }
        let mut whole = Self { files: paths.to_vec(), ..Self::default() };
        for (file, path) in paths.iter().enumerate() {
            let contents = read(path)?;
            for (name, stored) in contents.tensors {
                if let Some((_, earlier)) = whole.tensors.get(&name) {
                    let earlier = paths[*earlier].display();
                    return Err(Error::format(path, format!("tensor {name} is also in {earlier}")));
                }
                whole.tensors.insert(name, (stored, file));
            }
            for (key, value) in contents.metadata {
                whole.metadata.entry(key).or_insert(value);
            }
        }
        Ok(whole)
    }

    /// Opens the checkpoint in `folder`: `model.safetensors` or `pytorch_model.bin`, a single file or sharded with an
    /// index, else the only `.gguf` or other checkpoint file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if there is no checkpoint, or several without a standard name.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        if let Some(found) = FOLDER.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
            return Self::open(&found);
        }
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .map_err(|e| Error::io(folder, "list", e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_by(|a, b| natural(a, b));
        for ending in ENDINGS {
            let found: Vec<&String> = names.iter().filter(|name| name.ends_with(ending)).collect();
            match found[..] {
                [] => continue,
                [one] => return Self::open(&folder.join(one)),
                _ => {
                    let message = format!("{} {ending} files and no index", found.len());
                    let error = Error::new(ErrorKind::Input, message).at(folder);
                    return Err(error.hint(first_five(found)).hint("specify one of them"));
                }
            }
        }
        let error = Error::new(ErrorKind::NotFound, "no checkpoint in this folder").at(folder);
        Err(error.hint(format!("expected {}, or a file ending in {}", FOLDER.join(", "), ENDINGS.join(", "))))
    }

    /// Opens the shards of `index`, and checks that each contains the tensors listed in the index.
    fn open_index(index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let map = json::read(index).and_then(json::typed::<Index>);
        let map = map.map_err(|e| e.context("invalid index of shards").at(index))?.weight_map;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut files = Vec::new();
        for name in map.values().collect::<BTreeSet<_>>() {
            if Path::new(name).file_name().is_none_or(|plain| plain != name.as_str()) {
                return Err(Error::format(
                    index,
                    format!("shard {name:?} is not a file name in the same folder"),
                ));
            }
            let path = folder.join(name);
            if !path.exists() {
                let message = format!("shard {name} of the index does not exist");
                return Err(Error::new(ErrorKind::NotFound, message).at(index).hint("download it"));
            }
            files.push(path);
        }
        if files.is_empty() {
            return Err(Error::format(index, "the index lists no tensors"));
        }
        let whole = Self::open_files(&files)?;
        let misplaced: Vec<String> = map
            .iter()
            .filter(|(name, file)| whole.file_of(name) != Some(&folder.join(file)))
            .map(|(name, file)| format!("{name} in {file}"))
            .collect();
        if !misplaced.is_empty() {
            let message = format!(
                "{} of {} tensors are not in the shard given by the index",
                misplaced.len(),
                map.len()
            );
            return Err(Error::format(index, message).hint(first_five(misplaced)));
        }
        Ok(whole)
    }

    /// Replaces each tensor by `each(name, tensor)`.
    pub fn map(mut self, each: impl Fn(&str, StoredTensor) -> StoredTensor) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors =
            tensors.map(|(name, (stored, file))| (name.clone(), (each(&name, stored), file))).collect();
        self
    }

    /// The checkpoint of files with a prefix each, which is before the names of their tensors.
    pub(crate) fn of_parts(parts: &[(String, impl AsRef<Path>)]) -> Result<Self> {
        let mut parts = parts.iter().map(|(prefix, path)| Ok(Self::open(path.as_ref())?.with_prefix(prefix)));
        let first = parts.next().ok_or_else(|| Error::input("a checkpoint needs at least one file"))?;
        parts.try_fold(first?, |whole, part: Result<Self>| whole.joined(part?))
    }

    /// The same tensors with `prefix` before their names.
    pub fn with_prefix(mut self, prefix: &str) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, stored)| (format!("{prefix}{name}"), stored)).collect();
        self
    }

    /// The tensors of both.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if both contain a tensor of the same name.
    pub fn joined(mut self, other: Self) -> Result<Self> {
        let first = self.files.len();
        for (name, (stored, file)) in other.tensors {
            if let Some((_, earlier)) = self.tensors.get(&name) {
                let earlier = self.files[*earlier].display();
                return Err(Error::format(&other.files[file], format!("tensor {name} is also in {earlier}")));
            }
            self.tensors.insert(name, (stored, first + file));
        }
        self.files.extend(other.files);
        for (key, value) in other.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        Ok(self)
    }

    /// The tensor `name`.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name).map(|(stored, _)| stored)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, (stored, _))| (name.as_str(), stored))
    }

    /// The file that contains the tensor `name`.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|(_, file)| self.files[*file].as_path())
    }

    /// The files, in order of opening.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Metadata: GGUF keys, `__metadata__` of safetensors, scalars and strings of a pickle by dotted path.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// Reads the file at `path` in the format detected by its content.
fn read(path: &Path) -> Result<Contents> {
    let file = Bytes::map(path)?;
    if file.is_empty() {
        return Err(Error::format(path, "the file is empty").hint("download it again"));
    }
    if gguf::looks_like(&file) {
        return gguf::read(path, &file);
    }
    if !safetensors::looks_like(&file) {
        // A file named .safetensors is parsed as safetensors for a specific error.
        misnamed::refuse(path, &file)?;
    }
    if safetensors::looks_like(&file) || path.extension().is_some_and(|e| e == "safetensors") {
        return safetensors::read(path, &file);
    }
    if torch::looks_like(path, &file) {
        return torch::read(path, &file);
    }
    if msgpack::looks_like(&file) {
        return msgpack::read(path, &file);
    }
    let start = &file[..file.len().min(4)];
    Err(Error::format(path, format!("not a checkpoint: first bytes {start:02x?}"))
        .hint("expected safetensors, GGUF, PyTorch or flax"))
}
