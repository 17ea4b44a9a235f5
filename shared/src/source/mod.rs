//! Finding and downloading the files of a model.
//!
//! A source is an existing folder or file, a hub id (`owner/name`, `owner/name@revision`), a built-in name of the
//! program, or the name of a checkpoint in [`HubConfig::named`]. Paths never cause a network request.
//!
//! ```
//! use fauna_shared::source::{Finder, Source, Wanted};
//! # let folder = tempfile::tempdir().unwrap();
//! # std::fs::write(folder.path().join("config.json"), "{}").unwrap();
//! # let name = folder.path().to_str().unwrap();
//! let source = Source::parse(name)?; // "./my-bert", "gpt2.Q8_0.gguf", "owner/name@main", "minilm"
//! let files = Finder::from_env().find(&source, &Wanted::default())?;
//! let config = std::fs::read(files.require("config.json")?);
//! # assert_eq!(config.unwrap(), b"{}");
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod hf;
mod http;
mod hub;
mod select;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

pub use hf::HfHub;
pub use hub::{File, Hub, HubConfig, Listing, Repo};
pub use select::{Wanted, select};
use serde_json::Value;

use crate::error::{first_five, nearest};
use crate::order::by_name;
use crate::progress::{Progress, Silent};
use crate::{Error, ErrorKind, Result, json};

/// The hint for errors in offline mode, which is set by an option of the program or by the environment.
const ONLINE: &str = "download it once in online mode, with HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE unset";

/// The config of a PEFT adapter (LoRA and its relatives).
const ADAPTER: &str = "adapter_config.json";

/// The error for an adapter without its base model, whose config is at `path`; it names the base model.
fn only_an_adapter(path: &Path) -> Error {
    let config = json::read(path).unwrap_or_default();
    let base = config["base_model_name_or_path"].as_str().unwrap_or("its base model");
    Error::new(ErrorKind::NotFound, "this is an adapter (LoRA) without its base model").at(path).set(
        format!("open {base} with the adapter"),
        "LoadOptions::adapters",
        "PATH",
    )
}

/// The source of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// An existing folder.
    Folder(PathBuf),
    /// An existing weight file.
    File(PathBuf),
    /// A repository on the hub.
    Hub(Repo),
    /// A name without an owner: built in, or in [`HubConfig::named`].
    Name(String),
    /// The name of a built-in model: `fauna:NAME`.
    Builtin(String),
}

impl Source {
    /// Parses a source name, with access to the disk but not to the network.
    ///
    /// An existing path is a folder or file. A name that starts with `.`, `/` or `~`, has more than one separator, has
    /// the extension of a weight file or begins with an existing folder is a missing path. `hf:owner/name` is always a
    /// repository of the hub, and `fauna:name` a built-in model.
    ///
    /// ```
    /// use fauna_shared::source::{Repo, Source};
    /// assert_eq!(Source::parse("owner/name@v1.0")?, Source::Hub(Repo::new("owner/name", "v1.0")?));
    /// assert_eq!(Source::parse("minilm")?, Source::Name("minilm".into()));
    /// assert!(Source::parse("./missing").is_err());
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a missing path, [`ErrorKind::Input`] for an invalid name.
    pub fn parse(name: &str) -> Result<Self> {
        if let Some(id) = name.strip_prefix("hf:").or_else(|| name.strip_prefix("https://huggingface.co/")) {
            return Ok(Self::Hub(Repo::parse(id)?));
        }
        if let Some(name) = name.strip_prefix("fauna:") {
            return Ok(Self::Builtin(name.into()));
        }
        let path = Path::new(name);
        if path.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        if path.exists() {
            return Ok(Self::File(path.into()));
        }
        if name.trim().is_empty() {
            return Err(Error::input("empty model name")
                .hint("expected a folder, a file, owner/name or a built-in name"));
        }
        let separators = name.split('@').next().unwrap_or(name).matches('/').count();
        let only_a_path = name.starts_with(['.', '/', '~']) || name.contains('\\') || path.is_absolute();
        let in_a_folder = separators == 1 && path.parent().is_some_and(Path::is_dir);
        if only_a_path || separators > 1 || in_a_folder || select::is_weights(name) {
            return Err(missing_path(path));
        }
        if separators == 0 {
            return Ok(Self::Name(name.into()));
        }
        Ok(Self::Hub(Repo::parse(name)?))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) | Self::File(path) => path.display().fmt(f),
            Self::Hub(repo) => repo.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::Builtin(name) => write!(f, "fauna:{name}"),
        }
    }
}

fn missing_path(path: &Path) -> Error {
    let error = Error::new(ErrorKind::NotFound, "no such file or folder").at(path);
    let parent = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let names: Vec<String> = std::fs::read_dir(parent.unwrap_or(path))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let near = nearest(&wanted, names.iter().map(String::as_str));
    let error =
        if near.is_empty() { error } else { error.hint(format!("did you mean {}?", near.join(", "))) };
    error.hint(
        "a repository of the hub is owner/name, or hf:owner/name if there is a folder with the name of its owner",
    )
}

/// Returns the path of a built-in name, or `None` for another name.
type Builtin = dyn Fn(&str) -> Result<Option<PathBuf>> + Send + Sync;

/// Turns a [`Source`] into [`Files`].
pub struct Finder {
    hub: Box<dyn Hub>,
    named: PathBuf,
    builtin: Box<Builtin>,
    builtin_names: Vec<String>,
    progress: Arc<dyn Progress>,
}

impl Finder {
    /// A finder with the settings of the environment ([`HubConfig::from_env`]), without built-in names and progress.
    pub fn from_env() -> Self {
        let config = HubConfig::from_env();
        let named = config.named.clone();
        Self::new(HfHub::new(config), named)
    }

    /// A finder over `hub`, with the folder `named` for names without an owner.
    pub fn new(hub: impl Hub + 'static, named: impl Into<PathBuf>) -> Self {
        Self {
            hub: Box::new(hub),
            named: named.into(),
            builtin: Box::new(|_| Ok(None)),
            builtin_names: Vec::new(),
            progress: Arc::new(Silent),
        }
    }

    /// Adds the built-in `names`, of each of which `path` returns the folder or file, and `None` for other names. They
    /// take precedence over those in [`HubConfig::named`].
    pub fn with_builtin<N: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = N>,
        path: impl Fn(&str) -> Result<Option<PathBuf>> + Send + Sync + 'static,
    ) -> Self {
        self.builtin = Box::new(path);
        self.builtin_names = names.into_iter().map(Into::into).collect();
        self
    }

    /// Reports downloads to `progress`.
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Finds the files of `source` selected by `wanted`, and downloads them if necessary.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a missing name or file, [`ErrorKind::Input`] if the weight file is ambiguous; from
    /// the hub also `Auth`, `Offline`, `Network`, `Format` (a wrong hash), `Cancelled` and `Io` (a full disk).
    pub fn find(&self, source: &Source, wanted: &Wanted) -> Result<Files> {
        let files = match source {
            Source::Folder(path) => Files::folder(path, source.to_string()),
            Source::File(path) => Files::file(path, source.to_string()),
            Source::Name(name) => self.find_name(name)?,
            Source::Builtin(name) => self.find_builtin(name)?.ok_or_else(|| {
                let near = nearest(name, self.builtin_names.iter().map(String::as_str));
                let error = Error::new(ErrorKind::NotFound, format!("no built-in model is named {name}"));
                match (self.builtin_names.is_empty(), near.is_empty()) {
                    (true, _) => error.hint("this program has no built-in models"),
                    (_, false) => error.hint(format!("did you mean {}?", near.join(", "))),
                    _ => error.hint(format!("the built-in models: {}", self.builtin_names.join(", "))),
                }
            })?,
            Source::Hub(repo) => return self.pull(repo, wanted),
        };
        Ok(files.choosing(wanted))
    }

    /// Lists the files of a repository without downloading them.
    pub fn list(&self, repo: &Repo) -> Result<Listing> {
        self.hub.list(repo, &*self.progress)
    }

    fn find_builtin(&self, name: &str) -> Result<Option<Files>> {
        let path = (self.builtin)(name)?;
        Ok(path.map(|path| if path.is_dir() { Files::folder(&path, name) } else { Files::file(&path, name) }))
    }

    fn find_name(&self, name: &str) -> Result<Files> {
        if let Some(files) = self.find_builtin(name)? {
            return Ok(files);
        }
        let folder = self.named.join(name);
        if is_safe_name(name) && folder.is_dir() {
            return Ok(Files::folder(&folder, name));
        }
        let known =
            names_under(&self.named, 1).into_iter().filter_map(|n| n.split_once('/').map(|n| n.0.to_owned()));
        let mut known: Vec<String> = known.chain(self.builtin_names.iter().cloned()).collect();
        known.dedup();
        let near = nearest(name, known.iter().map(String::as_str));
        let mut error = Error::new(ErrorKind::NotFound, format!("no model is named {name}"))
            .hint(format!("it is not built in, not a file or folder, and not in {}", self.named.display()));
        if !near.is_empty() {
            error = error.hint(format!("did you mean {}?", near.join(", ")));
        }
        Err(error.hint("a repository of the hub is owner/name"))
    }

    fn pull(&self, repo: &Repo, wanted: &Wanted) -> Result<Files> {
        let listing = self.hub.list(repo, &*self.progress)?;
        if let Some(bad) = listing.files.iter().find(|f| !is_safe_name(&f.path)) {
            return Err(Error::new(
                ErrorKind::Format,
                format!("the repository lists an unsafe file name: {:?}", bad.path),
            )
            .at(repo.to_string())
            .hint("nothing was downloaded; do not trust this repository"));
        }
        let chosen =
            select(&listing.files, wanted).map_err(|error| match (error.kind(), listing.partial) {
                (ErrorKind::NotFound, true) => Error::new(ErrorKind::Offline, error.message())
                    .at(repo.to_string())
                    .hint(format!("the cache has only a part of it: {}", listing.root.display()))
                    .hint(ONLINE),
                _ => error.at(repo.to_string()),
            })?;
        for file in &chosen {
            self.hub.fetch(repo, &listing, file, &*self.progress)?;
        }
        Ok(Files::folder(&listing.root, repo.to_string()).choosing(wanted))
    }
}

/// The files of a checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    root: PathBuf,
    label: String,
    choice: Option<String>,
}

impl Files {
    /// The checkpoint in the folder `root`, named `label` in messages.
    pub fn folder(root: impl Into<PathBuf>, label: impl Into<String>) -> Self {
        Self { root: root.into(), label: label.into(), choice: None }
    }

    /// The weight file at `path`; config and tokenizer are searched in its folder.
    pub fn file(path: &Path, label: impl Into<String>) -> Self {
        let root = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Self { root: root.into(), label: label.into(), choice: name }
    }

    fn choosing(mut self, wanted: &Wanted) -> Self {
        self.choice = self.choice.or_else(|| wanted.file.clone());
        self
    }

    /// The folder of the checkpoint.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The source given by the user.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Names of the files in the folder and its direct subfolders, sorted, with `/` as separator.
    pub fn names(&self) -> Vec<String> {
        names_under(&self.root, 1)
    }

    /// Path of the file `name` (`config.json`, `1_Pooling/config.json`), if it exists. `None` for names outside of the
    /// folder (`../x`).
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        let path = self.root.join(name);
        (is_safe_name(name) && path.is_file()).then_some(path)
    }

    /// Path of the file `name`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the folder and its files.
    pub fn require(&self, name: &str) -> Result<PathBuf> {
        self.get(name).ok_or_else(|| {
            if let Some(adapter) = self.get(ADAPTER).filter(|_| name == "config.json") {
                return only_an_adapter(&adapter);
            }
            let names = self.names();
            let near = nearest(name, names.iter().map(String::as_str));
            let found = if near.is_empty() { first_five(&names) } else { near.join("\n") };
            Error::new(ErrorKind::NotFound, format!("no file {name}"))
                .at(&self.root)
                .hint(if names.is_empty() {
                    "the folder is empty".to_owned()
                } else {
                    format!("the folder has\n{found}")
                })
                .hint(
                    "config, tokenizer and weights must be in one folder, with the file names of the release",
                )
        })
    }

    /// The weight file chosen by the user.
    pub fn choice(&self) -> Option<&str> {
        self.choice.as_deref()
    }

    /// Reads the JSON file `name`, if it exists.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if it is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        self.get(name).map(json::read).transpose()
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if it does not exist, [`ErrorKind::Format`] if it is not an object.
    pub fn config(&self) -> Result<Value> {
        let path = self.require("config.json")?;
        match self.json("config.json")? {
            Some(config) if config.is_object() => Ok(config),
            _ => Err(Error::format(path, "the config is not a JSON object")),
        }
    }

    /// The weight files: a single file or all shards, and those of module folders, in one format per folder.
    ///
    /// # Errors
    /// As [`select`].
    pub fn weights(&self) -> Result<Vec<PathBuf>> {
        let weights = self.weights_if_any()?;
        if weights.is_empty() {
            let names = self.names();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            return Err(select::no_weights(&names).at(&self.root));
        }
        Ok(weights)
    }

    /// The weight files in the module folder `folder` (`2_Dense`), in one format; empty if there are none.
    ///
    /// # Errors
    /// As [`select`], except for missing weights.
    pub fn module_weights(&self, folder: &str) -> Result<Vec<PathBuf>> {
        let names = self.names();
        let within = |name: &&str| name.rsplit_once('/').is_some_and(|(start, _)| start == folder);
        let names: Vec<&str> = names.iter().map(String::as_str).filter(within).collect();
        let chosen = select::of_one_folder(&names).map_err(|error| error.at(self.root.join(folder)))?;
        Ok(chosen.into_iter().map(|name| self.root.join(name)).collect())
    }

    /// Names of the weight files in all numbered module folders of sentence-transformers.
    pub(crate) fn modules(&self) -> Result<Vec<String>> {
        let names = self.names();
        let folders = names.iter().filter_map(|name| Some(name.rsplit_once('/')?.0));
        let folders: BTreeSet<&str> = folders.filter(|folder| select::is_module(folder)).collect();
        let mut found = Vec::new();
        for folder in folders {
            let within = |path: PathBuf| Some(format!("{folder}/{}", path.file_name()?.to_str()?));
            found.extend(self.module_weights(folder)?.into_iter().filter_map(within));
        }
        Ok(found)
    }

    /// As [`weights`](Files::weights), but empty if there are no weights.
    ///
    /// # Errors
    /// As [`select`], except for missing weights.
    pub fn weights_if_any(&self) -> Result<Vec<PathBuf>> {
        let names = self.names();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let chosen = select::weights(&names, self.choice.as_deref()).map_err(|error| error.at(&self.root))?;
        Ok(chosen.into_iter().map(|name| self.root.join(name)).collect())
    }
}

/// Whether `name` is a relative path without `..`, root or drive on all systems.
fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The files under `folder` to a depth of `depth` folders, in natural order, with `/` as separator. Unreadable entries
/// are skipped.
fn names_under(folder: &Path, depth: usize) -> Vec<String> {
    let entries = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let mut names = Vec::new();
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !entry.path().is_dir() {
            names.push(name);
        } else if depth > 0 {
            names.extend(
                names_under(&entry.path(), depth - 1).into_iter().map(|inner| format!("{name}/{inner}")),
            );
        }
    }
    names.sort_by(|a, b| by_name(Path::new(a), Path::new(b)));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_alone_names_its_base_model() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"peft_type": "LORA", "base_model_name_or_path": "owner/base"}"#;
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let source = Source::parse(folder.path().to_str().unwrap()).unwrap();
        let files = Finder::from_env().find(&source, &Wanted::default()).unwrap();
        let error = files.config().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let message = error.to_string();
        assert!(message.contains("adapter_config.json") && message.contains("owner/base"), "{message}");
    }

    #[test]
    fn missing_paths_are_not_found() {
        for name in
            ["./a", "../a/b", "/a/b", "a/b/c", "a\\b", "model.gguf", "a/m.safetensors", "~/m", "src/a"]
        {
            let error = Source::parse(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name}");
            assert!(error.to_string().contains("owner/name"), "{error}");
        }
        assert!(Source::parse("./src/lib.r").unwrap_err().to_string().contains("did you mean lib.rs?"));
        assert_eq!(Source::parse(" ").unwrap_err().kind(), ErrorKind::Input);
    }

    #[test]
    fn a_hub_id_has_an_owner_and_an_optional_revision() {
        let main = Source::Hub(Repo::new("openai-community/gpt2", "main").unwrap());
        for name in ["", "hf:", "https://huggingface.co/"] {
            assert_eq!(Source::parse(&format!("{name}openai-community/gpt2")).unwrap(), main);
        }
        let pull = Source::Hub(Repo::new("a/b.c_d", "refs/pr/1").unwrap());
        assert_eq!(Source::parse("a/b.c_d@refs/pr/1").unwrap(), pull);
        for bad in ["a/..", "a/b@../x", "a/b@", "a b/c", "-a/b", "a/b@/x", "a--b/c"] {
            assert_eq!(Source::parse(bad).unwrap_err().kind(), ErrorKind::Input, "{bad}");
        }
    }

    #[test]
    fn names_outside_of_the_folder_are_not_safe() {
        for bad in ["", "../a", "a/../b", "/a", "a//b", "a\\b", "C:a", "./a", "a/", "a\0"] {
            assert!(!is_safe_name(bad), "{bad:?}");
        }
        assert!(is_safe_name("1_Pooling/config.json") && is_safe_name("a..b"));
    }
}
