//! The model that comes with the program: MiniLM, a BERT of 22.7 million parameters that turns sentences into
//! vectors, in 8 bits.
//!
//! Its files are part of the program. They are laid out in the cache when they are first asked for, so that they map
//! into memory like any other checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Finder, HubConfig};
use crate::{Error, Result};

/// What the model is called.
pub const NAME: &str = "minilm";

/// Where the model comes from.
pub const SOURCE: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// A finder that knows the built-in model beside what every finder finds.
pub fn finder() -> Finder {
    Finder::from_env().with_builtin(|name| if name == NAME { folder().ok() } else { None })
}

/// The folder of the built-in model, laid out on disk if it is not yet: in the cache, or in the temporary folder where
/// the cache cannot be written.
///
/// # Errors
/// [`Io`](crate::ErrorKind::Io) if neither can be written.
pub fn folder() -> Result<PathBuf> {
    let name = format!("builtin-{NAME}-{}", env!("CARGO_PKG_VERSION"));
    let cache = HubConfig::from_env().named.join(&name);
    lay_out(&cache).or_else(|_| lay_out(&std::env::temp_dir().join("fauna").join(&name)))
}

/// Puts the files into `folder` unless they are there. Programs that start together do not disturb each other: each
/// writes under a name of its own and the last renames over the first.
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
