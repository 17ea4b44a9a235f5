//! Writing an adapter: both files are complete before one takes its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{AdapterConfig, CONFIG, WEIGHTS};
use crate::checkpoint::{Metadata, StoredTensor, TensorInfo, Value, write_safetensors};
use crate::{Error, Result};

/// Writes `tensors` and `config` to `folder`.
pub(super) fn write(
    folder: &Path,
    config: &AdapterConfig,
    tensors: &BTreeMap<String, &StoredTensor>,
) -> Result<()> {
    if folder.is_file() {
        return Err(Error::input("expected a folder for the adapter, found a file").at(folder));
    }
    let exists = folder.is_dir();
    let scratch = Scratch::new(folder, exists)?;
    write_tensors(&scratch.0.join(WEIGHTS[0]), tensors)?;
    write_config(&scratch.0.join(CONFIG), config)?;
    let rename = |from: PathBuf, to: PathBuf| {
        std::fs::rename(&from, &to).map_err(|e| Error::io(to, "rename the temporary file to", e))
    };
    if !exists {
        return rename(scratch.0.clone(), folder.to_path_buf());
    }
    [WEIGHTS[0], CONFIG].iter().try_for_each(|name| rename(scratch.0.join(name), folder.join(name)))
}

fn write_tensors(path: &Path, tensors: &BTreeMap<String, &StoredTensor>) -> Result<()> {
    let info = |(name, tensor): (&String, &&StoredTensor)| TensorInfo {
        name: name.clone(),
        storage: tensor.storage,
        shape: tensor.shape.clone(),
    };
    let mut list: Vec<TensorInfo> = tensors.iter().map(info).collect();
    // Wide elements first, so that all are aligned in the file.
    list.sort_by_key(|tensor| std::cmp::Reverse(tensor.storage.alignment()));
    let metadata = Metadata::from([("format".to_owned(), Value::Text("pt".into()))]);
    write_safetensors(path, &metadata, &list, |tensor| Ok(tensors[&tensor.name].bytes.clone()))
}

fn write_config(path: &Path, config: &AdapterConfig) -> Result<()> {
    let failed = |e| Error::io(path, "write", e);
    let mut file = File::create(path).map_err(|e| Error::io(path, "create", e))?;
    file.write_all(format!("{:#}\n", config.to_json()).as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// A temporary folder in `folder`, or beside it if it does not exist yet; removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(folder: &Path, exists: bool) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".adapter.{}.{count}.partial", std::process::id());
        let path = match (exists, folder.parent()) {
            (true, _) => folder.join(name),
            (false, Some(parent)) if folder.file_name().is_some() => {
                std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
                parent.join(name)
            }
            _ => return Err(Error::input("not the name of a folder").at(folder)),
        };
        std::fs::create_dir(&path).map_err(|e| Error::io(&path, "create", e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
