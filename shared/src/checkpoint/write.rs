//! Writing checkpoints, one tensor at a time, to a temporary file that is renamed when complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::{StorageType, gguf, safetensors};
use crate::{Error, Result};

/// Name, element type and shape of a tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub storage: StorageType,
    /// Shape, slowest-varying axis first.
    pub shape: Vec<usize>,
}

/// Writes a GGUF file (version 3) at `path`: `metadata`, then `tensors` in this order.
///
/// `bytes` is called for one tensor after the other, so that only one needs to be in memory. An existing file is
/// replaced when the new one is complete, and kept on errors.
///
/// ```
/// use fauna_shared::checkpoint::{Checkpoint, TensorInfo, StorageType, Value, write_gguf};
/// # fn main() -> fauna_shared::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("small.gguf");
/// let about = [("general.architecture".to_owned(), Value::Text("bert".into()))].into();
/// let tensors = [TensorInfo { name: "a".into(), storage: StorageType::F32, shape: vec![2] }];
/// write_gguf(&path, &about, &tensors, |_| Ok([1f32, 2.0].map(f32::to_le_bytes).concat()))?;
///
/// let read = Checkpoint::open(&path)?;
/// assert_eq!(read.metadata(), &about);
/// assert_eq!(read.get("a").unwrap().bytes[4..], 2f32.to_le_bytes());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`crate::ErrorKind::Unsupported`] if GGUF has no type for a tensor, [`crate::ErrorKind::Input`] if a shape is
/// invalid or does not match the number of bytes, [`crate::ErrorKind::Io`] if writing fails, and the errors of `bytes`.
pub fn write_gguf<B: AsRef<[u8]>>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    bytes: impl FnMut(&TensorInfo) -> Result<B>,
) -> Result<()> {
    let list: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.storage, t.shape.as_slice())).collect();
    let header = gguf::header(metadata, &list).map_err(|e| e.at(path))?;
    write(path, &header, tensors, gguf::alignment(metadata)?, bytes)
}

/// Writes a safetensors file at `path`, as [`write_gguf`]. `metadata` values other than strings are formatted as
/// strings.
///
/// # Errors
/// As [`write_gguf`].
pub fn write_safetensors<B: AsRef<[u8]>>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    bytes: impl FnMut(&TensorInfo) -> Result<B>,
) -> Result<()> {
    let header = safetensors::header(metadata, tensors).map_err(|e| e.at(path))?;
    write(path, &header, tensors, 1, bytes)
}

/// Writes `header` and the tensors, each padded to `alignment`, to a temporary file that is then renamed to `path`.
fn write<B: AsRef<[u8]>>(
    path: &Path,
    header: &[u8],
    tensors: &[TensorInfo],
    alignment: usize,
    mut bytes: impl FnMut(&TensorInfo) -> Result<B>,
) -> Result<()> {
    let partial = Partial::next_to(path)?;
    let file = File::create(&partial.0).map_err(|e| Error::io(path, "create", e))?;
    let failed = |e| Error::io(path, "write", e);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(header).map_err(failed)?;
    for tensor in tensors {
        let bytes = bytes(tensor)?;
        let bytes = bytes.as_ref();
        if tensor.storage.byte_len(&tensor.shape) != Some(bytes.len()) {
            let TensorInfo { name, storage, shape } = tensor;
            let message = format!("tensor {name}: {} bytes for shape {shape:?} of {storage}", bytes.len());
            return Err(Error::input(message).at(path));
        }
        out.write_all(bytes).map_err(failed)?;
        let padding = bytes.len().next_multiple_of(alignment) - bytes.len();
        out.write_all(&vec![0; padding]).map_err(failed)?;
    }
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    drop(file);
    std::fs::rename(&partial.0, path).map_err(|e| Error::io(path, "rename the temporary file to", e))
}

/// A temporary file that is removed on drop unless it was renamed.
struct Partial(PathBuf);

impl Partial {
    /// A file name next to `path`, unique to this process.
    fn next_to(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| Error::input("not a file name").at(path))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(format!(".{}.partial", std::process::id()));
        Ok(Self(path.with_file_name(partial)))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
