//! Checkpoint files: one index of named tensors over every kind of file.
//!
//! [`Checkpoint::open`] tells by its content what a file is, [`Checkpoint::open_folder`] finds the files of a model,
//! and both map them: a tensor is a name, a shape, the way its elements are stored and the place of its bytes. Nothing
//! is copied that need not be, nothing in a file can run code, and every length in a file is checked against what the
//! file has before it is believed.
//!
//! ```
//! use std::collections::HashMap;
//! use fauna_shared::checkpoint::{Checkpoint, Storage};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let ones = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2, 3], &[1; 6])?;
//! safetensors::serialize_to_file(HashMap::from([("ones", ones)]), None, &path)?;
//!
//! let checkpoint = Checkpoint::open_folder(folder.path())?;
//! let ones = checkpoint.get("ones").unwrap();
//! assert_eq!((ones.storage, &ones.shape[..], &*ones.bytes), (Storage::U8, &[2, 3][..], &[1; 6][..]));
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
mod pickle;
mod safetensors;
mod torch;
mod write;
mod zip;

pub use bytes::Bytes;
pub use metadata::{List, Metadata, Value};
pub use write::{Planned, write_gguf, write_safetensors};

/// How the elements of a tensor are stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the plain variants are the types they are named after")]
pub enum Storage {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    /// Two `f32` an element: real, imaginary.
    C64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    /// One byte an element: zero or one.
    Bool,
    /// GGUF's blocks: runs of the last axis that share their scales.
    Block(GgmlDType),
}

impl Storage {
    /// Bytes of one element, or of one block.
    pub fn unit_bytes(self) -> usize {
        match self {
            Storage::F64 | Storage::I64 | Storage::U64 | Storage::C64 => 8,
            Storage::F32 | Storage::I32 | Storage::U32 => 4,
            Storage::F16 | Storage::BF16 | Storage::I16 | Storage::U16 => 2,
            Storage::F8E4M3 | Storage::F8E5M2 | Storage::I8 | Storage::U8 | Storage::Bool => 1,
            Storage::Block(kind) => kind.type_size(),
        }
    }

    /// Elements in one block; 1 for everything that is not in blocks.
    pub fn unit_elements(self) -> usize {
        match self {
            Storage::Block(kind) => kind.block_size(),
            _ => 1,
        }
    }

    /// Bytes that a tensor of `shape` takes; `None` where that overflows, or where the last axis is no whole number
    /// of blocks.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let per_unit = self.unit_elements();
        if per_unit > 1 && !shape.last()?.is_multiple_of(per_unit) {
            return None;
        }
        (element_count(shape)? / per_unit).checked_mul(self.unit_bytes())
    }

    /// The address an element must lie at, for a machine to read it as a number.
    pub fn alignment(self) -> usize {
        match self {
            Storage::C64 => 4,
            // Blocks hold half-precision scales or single ones, beside bytes.
            Storage::Block(_) => 4,
            other => other.unit_bytes(),
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Storage::Block(kind) => write!(f, "{kind:?}"),
            plain => write!(f, "{plain:?}"),
        }
    }
}

/// The product of `shape`, if it fits. An axis of length zero does not excuse the others from fitting.
fn element_count(shape: &[usize]) -> Option<usize> {
    let product = shape.iter().filter(|&&n| n != 0).try_fold(1usize, |all, &n| all.checked_mul(n))?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// One tensor as its file holds it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// How the elements are stored.
    pub storage: Storage,
    /// The axes, slowest first.
    pub shape: Vec<usize>,
    /// The elements, contiguous and row-major; aligned for their type, save in PyTorch's and flax's files, where they
    /// lie anywhere and are left unread until they are asked for.
    pub bytes: Bytes,
}

impl Stored {
    /// How many elements the tensor has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same with `rows` rows: without the last ones, or with rows of zeros after them. A table that was resized for
    /// other tokens is read so.
    pub fn with_rows(self, rows: usize) -> Self {
        let mut shape = self.shape.clone();
        match shape.first_mut() {
            Some(first) => *first = rows,
            None => return self,
        }
        let Some(length) = self.storage.byte_len(&shape) else { return self };
        let bytes = match self.bytes.slice(0..length) {
            Some(bytes) => bytes,
            None => Bytes::filled(length, |room| room[..self.bytes.len()].copy_from_slice(&self.bytes)),
        };
        Self { bytes, shape, ..self }
    }
}

/// What one file holds.
#[derive(Default)]
struct Contents {
    tensors: BTreeMap<String, Stored>,
    metadata: Metadata,
}

/// The tensors of one or more files, by name.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    tensors: BTreeMap<String, (Stored, usize)>,
    files: Vec<PathBuf>,
    metadata: Metadata,
}

/// What a model's folder may hold, in the order of preference.
const FOLDER: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// The endings of a checkpoint with a name of its own, in the order of preference.
const ENDINGS: [&str; 9] =
    [".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pkl", ".msgpack"];

impl Checkpoint {
    /// Opens one file: safetensors, GGUF, PyTorch, flax, or the `.index.json` of a sharded checkpoint. What it is, its
    /// content says, not its name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] without the file, [`ErrorKind::Format`] if it is damaged, lies about itself or is no
    /// checkpoint, [`ErrorKind::Unsupported`] if it stores a tensor in a way that is not implemented.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "json") {
            return Self::open_index(path);
        }
        Self::open_files(std::slice::from_ref(&path.to_path_buf()))
    }

    /// Opens the files of one checkpoint together.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if two files hold a tensor of the same name, or there is no file.
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

    /// Opens the checkpoint in `folder`: `model.safetensors` or `pytorch_model.bin`, whole or by its index, else the
    /// one `.gguf` or other checkpoint there. Which shards belong together, the index says, not their names.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if there is none, or several and none of the usual names.
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
                    let message =
                        format!("{} {ending} files and no index that says which to open", found.len());
                    let error = Error::new(ErrorKind::Input, message).at(folder);
                    return Err(error.hint(first_five(found)).hint("name one of them"));
                }
            }
        }
        let error = Error::new(ErrorKind::NotFound, "no checkpoint in this folder").at(folder);
        Err(error.hint(format!("wanted {}, or a file ending in {}", FOLDER.join(", "), ENDINGS.join(", "))))
    }

    /// Opens the shards that `index` names, and checks that each holds what the index says.
    fn open_index(index: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let map = json::read(index).and_then(json::typed::<Index>);
        let map = map.map_err(|e| e.context("not an index of shards").at(index))?.weight_map;
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut files = Vec::new();
        for name in map.values().collect::<BTreeSet<_>>() {
            if Path::new(name).file_name().is_none_or(|plain| plain != name.as_str()) {
                return Err(Error::format(
                    index,
                    format!("shard {name:?} is not the name of a file beside it"),
                ));
            }
            let path = folder.join(name);
            if !path.exists() {
                let message = format!("shard {name} is not here, though the index names it");
                return Err(Error::new(ErrorKind::NotFound, message).at(index).hint("download it"));
            }
            files.push(path);
        }
        if files.is_empty() {
            return Err(Error::format(index, "the index names no tensor"));
        }
        let whole = Self::open_files(&files)?;
        let astray: Vec<String> = map
            .iter()
            .filter(|(name, file)| whole.file_of(name) != Some(&folder.join(file)))
            .map(|(name, file)| format!("{name} in {file}"))
            .collect();
        if !astray.is_empty() {
            let message = format!("{} of {} tensors are not where the index says", astray.len(), map.len());
            return Err(Error::format(index, message).hint(first_five(astray)));
        }
        Ok(whole)
    }

    /// The same with `each(name, tensor)` in place of every tensor.
    pub fn map(mut self, each: impl Fn(&str, Stored) -> Stored) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors =
            tensors.map(|(name, (stored, file))| (name.clone(), (each(&name, stored), file))).collect();
        self
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).map(|(stored, _)| stored)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, (stored, _))| (name.as_str(), stored))
    }

    /// The file that holds the tensor called `name`.
    pub fn file_of(&self, name: &str) -> Option<&Path> {
        self.tensors.get(name).map(|(_, file)| self.files[*file].as_path())
    }

    /// The files, in the order they were opened.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// What the files say beside their tensors: GGUF keys, safetensors' notes, the plain values of a pickle by their
    /// dotted path.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// Reads the one file at `path` as what its content says it is.
fn read(path: &Path) -> Result<Contents> {
    let file = Bytes::map(path)?;
    if file.is_empty() {
        return Err(Error::format(path, "the file is empty").hint("download it again"));
    }
    if gguf::looks_like(&file) {
        return gguf::read(path, &file);
    }
    if !safetensors::looks_like(&file) {
        // What is named .safetensors is read as it, whatever it is.
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
    Err(Error::format(path, format!("not a checkpoint: begins with {start:02x?}"))
        .hint("wanted safetensors, GGUF, PyTorch or flax"))
}
