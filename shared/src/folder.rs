//! Writing a folder with a copy of a model.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::model::Pretrained;
use crate::source::{File, Wanted, select};
use crate::{Error, Result};

/// Whether the tensors are those of a GGUF file, which has its own config.
pub(crate) fn is_gguf(checkpoint: &Checkpoint) -> bool {
    checkpoint.metadata().contains_key("general.architecture")
}

/// Copies configs, tokenizers, processors, the weights of modules, licences and model cards.
pub(crate) fn copy_descriptions(pretrained: &Pretrained, into: &Path) -> Result<()> {
    let names = pretrained.files.names();
    let listing: Vec<File> = names.iter().map(File::named).collect();
    let described = select(&listing, &Wanted::default().without_weights())?.into_iter().map(|file| file.path);
    let legal = names.iter().filter(|name| is_legal(name)).cloned();
    // Modules of sentence-transformers are small and copied unquantized.
    let modules = pretrained.files.modules()?;
    let mut wanted: Vec<String> =
        described.chain(legal).chain(modules).filter(|name| !name.ends_with(".index.json")).collect();
    wanted.sort();
    wanted.dedup();
    for name in wanted {
        let from = pretrained.files.require(&name)?;
        let to = into.join(&name);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        }
        fs::copy(&from, &to).map_err(|e| Error::io(&to, "write", e))?;
    }
    // A config derived from the name of the weight file, which changes. A GGUF file contains its own config.
    let to = into.join("config.json");
    if !to.exists() && pretrained.checkpoint.as_ref().is_some_and(|checkpoint| !is_gguf(checkpoint)) {
        fs::write(&to, pretrained.config.to_string()).map_err(|e| Error::io(&to, "write", e))?;
    }
    Ok(())
}

/// Whether a file is a licence, a notice or a model card.
fn is_legal(name: &str) -> bool {
    let upper = name.to_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "NOTICE", "README", "USE_POLICY"]
        .iter()
        .any(|start| upper.starts_with(start))
}

/// Writes `text` to `path`, and waits until it is on the disk.
pub(crate) fn write_synced(path: &Path, text: &str) -> Result<()> {
    let written = fs::File::create(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| Error::io(path, "write", e))
}

/// Waits until the names in `folder` are on the disk, where the operating system can tell.
pub(crate) fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = fs::File::open(folder).and_then(|folder| folder.sync_all());
    }
}

/// Waits until the files in `folder` and below are on the disk, where the operating system can tell.
fn sync_files(folder: &Path) -> std::io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync_files(&entry.path())?,
            false => fs::File::open(entry.path())?.sync_all()?,
        }
    }
    sync_folder(folder);
    Ok(())
}

/// A temporary folder that is removed on drop unless it was renamed.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A folder beside `folder`, whose parent is created.
    pub(crate) fn next_to(folder: &Path) -> Result<Self> {
        let name = folder.file_name().ok_or_else(|| Error::input("not a folder name").at(folder))?;
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        let name = format!(".{}.{}.partial", name.to_string_lossy(), std::process::id());
        let scratch = Self(parent.join(name));
        fs::create_dir(scratch.path()).map_err(|e| Error::io(scratch.path(), "create", e))?;
        Ok(scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Renames it to `folder`, in place of an existing one if `replace`, when its files are on the disk.
    pub(crate) fn become_folder(self, folder: &Path, replace: bool) -> Result<()> {
        sync_files(self.path()).map_err(|e| Error::io(self.path(), "write", e))?;
        let old = self.0.with_extension("old");
        let replaced = replace && folder.exists();
        if replaced {
            fs::rename(folder, &old).map_err(|e| Error::io(folder, "move away", e))?;
        }
        if let Err(error) = fs::rename(self.path(), folder) {
            if replaced {
                let _ = fs::rename(&old, folder);
            }
            return Err(Error::io(folder, "rename the temporary folder to", error));
        }
        sync_folder(folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
        if replaced {
            fs::remove_dir_all(&old).map_err(|e| Error::io(&old, "remove", e))?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
