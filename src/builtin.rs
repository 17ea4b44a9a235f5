//! The built-in model: all-MiniLM-L6-v2, a sentence-embedding BERT of 22.7 million parameters, quantized to 8 bits.
//!
//! Its files are embedded in the binary. They are written to the cache at first use, so that they are memory-mapped
//! like any other checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Finder, HubConfig};
use crate::{Error, Result};

/// Name of the model.
pub const NAME: &str = "minilm";

/// Hugging Face Hub repository that the model comes from.
pub const SOURCE: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Returns the default finder, which in addition resolves the built-in model.
pub fn finder() -> Finder {
    Finder::from_env().with_builtin(|name| if name == NAME { folder().ok() } else { None })
}

/// Returns the folder of the built-in model. At first use its files are written to the cache, or to the temporary folder
/// if the cache is not writable.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) if neither can be written.
pub fn folder() -> Result<PathBuf> {
    let name = format!("builtin-{NAME}-{}", env!("CARGO_PKG_VERSION"));
    let cache = HubConfig::from_env().named.join(&name);
    lay_out(&cache).or_else(|_| lay_out(&std::env::temp_dir().join("fauna").join(&name)))
}

/// Writes the files to `folder` unless they exist. This is safe with several processes: each writes to a file of its
/// own, which is then renamed.
fn lay_out(folder: &Path) -> Result<PathBuf> {
    for (name, bytes) in fauna_minilm::FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "make the folder", e))?;
        let part = path.with_extension(format!("part-{}", std::process::id()));
        let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path));
        written.map_err(|e| {
            let _ = fs::remove_file(&part);
            Error::io(&path, "write", e)
        })?;
    }
    Ok(folder.to_path_buf())
}
