//! Writing checkpoints: one tensor in memory at a time, and never half a file under its final name.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use super::{Storage, gguf, safetensors};
use crate::{Error, Result};

/// A tensor that will be written: its name, how its elements will be stored, its axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The name in the file.
    pub name: String,
    /// How the elements are stored.
    pub storage: Storage,
    /// The axes, slowest first.
    pub shape: Vec<usize>,
}

/// Writes a GGUF file (version 3) at `path`: `metadata`, then `tensors` in their order.
///
/// `bytes` is asked for one tensor after the other, so that one at a time need be in memory. A file that is there is
/// replaced when the new one is complete, and kept if anything goes wrong.
///
/// ```
/// use fauna_shared::checkpoint::{Checkpoint, Planned, Storage, Value, write_gguf};
/// # fn main() -> fauna_shared::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("small.gguf");
/// let about = [("general.architecture".to_owned(), Value::Text("bert".into()))].into();
/// let tensors = [Planned { name: "a".into(), storage: Storage::F32, shape: vec![2] }];
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
/// [`crate::ErrorKind::Unsupported`] if GGUF has no type for a tensor, [`crate::ErrorKind::Input`] if a shape or the
/// bytes for it do not fit, the system's error if writing fails, and whatever `bytes` gives.
pub fn write_gguf<B: AsRef<[u8]>>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[Planned],
    bytes: impl FnMut(&Planned) -> Result<B>,
) -> Result<()> {
    let list: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.storage, t.shape.as_slice())).collect();
    let header = gguf::header(metadata, &list).map_err(|e| e.at(path))?;
    write(path, &header, tensors, gguf::alignment(metadata)?, bytes)
}

/// Writes a safetensors file at `path`, as [`write_gguf`] does. Of `metadata`, text is kept, the rest as text.
///
/// # Errors
/// As [`write_gguf`].
pub fn write_safetensors<B: AsRef<[u8]>>(
    path: &Path,
    metadata: &Metadata,
    tensors: &[Planned],
    bytes: impl FnMut(&Planned) -> Result<B>,
) -> Result<()> {
    let header = safetensors::header(metadata, tensors).map_err(|e| e.at(path))?;
    write(path, &header, tensors, 1, bytes)
}

/// Writes `header` and the tensors, each filled up to `alignment`, to a file beside `path` that then takes its name.
fn write<B: AsRef<[u8]>>(
    path: &Path,
    header: &[u8],
    tensors: &[Planned],
    alignment: usize,
    mut bytes: impl FnMut(&Planned) -> Result<B>,
) -> Result<()> {
    let partial = Partial::beside(path)?;
    let file = File::create(&partial.0).map_err(|e| Error::io(path, "create", e))?;
    let failed = |e| Error::io(path, "write", e);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(header).map_err(failed)?;
    for tensor in tensors {
        let bytes = bytes(tensor)?;
        let bytes = bytes.as_ref();
        if tensor.storage.byte_len(&tensor.shape) != Some(bytes.len()) {
            let Planned { name, storage, shape } = tensor;
            let message = format!("tensor {name}: {} bytes for shape {shape:?} of {storage}", bytes.len());
            return Err(Error::input(message).at(path));
        }
        out.write_all(bytes).map_err(failed)?;
        let filling = bytes.len().next_multiple_of(alignment) - bytes.len();
        out.write_all(&vec![0; filling]).map_err(failed)?;
    }
    let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    drop(file);
    std::fs::rename(&partial.0, path).map_err(|e| Error::io(path, "rename the finished file to", e))
}

/// A file that is removed unless it took its final name.
struct Partial(PathBuf);

impl Partial {
    /// A name in the folder of `path` that no other process writes to.
    fn beside(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| Error::input("not a name for a file").at(path))?;
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
