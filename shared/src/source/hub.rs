//! The hub interface: repositories, file listings, downloads, and their configuration.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::progress::Progress;
use crate::{Error, Result};

/// A repository and a revision (branch, tag or commit) of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repo {
    id: String,
    revision: String,
}

impl Repo {
    /// Creates a repository; `id` is `owner/name`.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if the id or the revision is invalid.
    pub fn new(id: &str, revision: &str) -> Result<Self> {
        let plain = |part: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(allowed)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("..")
        };
        let (owner, name) = id.split_once('/').unwrap_or(("", id));
        if !plain(owner) || !plain(name) || id.contains("--") {
            return Err(Error::input(format!("invalid repository id {id:?}"))
                .hint("expected owner/name of letters, digits, -, _ and ."));
        }
        if !revision.split('/').all(plain) {
            return Err(Error::input(format!("invalid revision {revision:?} of {id}"))
                .hint("expected a branch, a tag or a commit: owner/name@main"));
        }
        Ok(Self { id: id.into(), revision: revision.into() })
    }

    /// Parses `owner/name` with an optional `@revision`.
    pub(super) fn parse(name: &str) -> Result<Self> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        Self::new(id, revision)
    }

    /// `owner/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Path in the repository, with `/` as separator.
    pub path: String,
    /// Size in bytes, if known.
    pub size: Option<u64>,
    /// SHA-256 of the content (64 hex digits) for LFS files, the git blob id (40 hex digits) for others, if known.
    pub hash: Option<String>,
}

impl File {
    /// A file with unknown size and hash.
    pub fn named(path: impl Into<String>) -> Self {
        Self { path: path.into(), size: None, hash: None }
    }
}

/// The files of a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Commit hash.
    pub commit: String,
    /// The local folder of downloaded files.
    pub root: PathBuf,
    /// All files, or those in the cache if `partial`.
    pub files: Vec<File>,
    /// Whether the listing is from the cache instead of the hub, and may be incomplete.
    pub partial: bool,
}

/// A hub of model repositories, such as [`HfHub`](super::HfHub).
pub trait Hub: Send + Sync {
    /// Lists the files of `repo`.
    fn list(&self, repo: &Repo, progress: &dyn Progress) -> Result<Listing>;

    /// Downloads `file` of `listing` to [`Listing::root`], unless it exists, and returns its path.
    fn fetch(&self, repo: &Repo, listing: &Listing, file: &File, progress: &dyn Progress) -> Result<PathBuf>;
}

/// Configuration of the hub client.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// URL of the hub (`HF_ENDPOINT`), by default `https://huggingface.co`.
    pub endpoint: String,
    /// Cache folder shared with `huggingface_hub`: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
    /// `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Folder of checkpoints that are opened by names without an owner, each in a subfolder: `FAUNA_CACHE`, else
    /// `XDG_CACHE_HOME/fauna`, else `~/.cache/fauna`, on every system.
    pub named: PathBuf,
    /// Access token: `HF_TOKEN`, else the content of the file `HF_TOKEN_PATH`, else of `HF_HOME/token`; none if
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.
    pub token: Option<String>,
    /// Disables network access (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Number of retries after temporary failures.
    pub retries: u32,
    /// Delay before the first retry; doubled for each further retry.
    pub backoff: Duration,
    /// Timeout of connecting, of the response, and of each read.
    pub timeout: Duration,
}

impl HubConfig {
    /// Reads the configuration from environment variables.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name), std::env::home_dir())
    }

    /// Reads the configuration from the variables returned by `get`, with the home folder `home`. Empty variables count
    /// as unset.
    pub fn from_vars(get: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        let home = home.unwrap_or_default();
        let path = |name: &str| {
            let path = PathBuf::from(get(name).filter(|v| !v.is_empty())?);
            Some(path.strip_prefix("~").map(|below| home.join(below)).unwrap_or(path))
        };
        let text = |name: &str| get(name).and_then(|v| v.into_string().ok()).map(|v| v.trim().to_owned());
        let on = |name: &str| {
            text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str()))
        };
        let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| cache.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .filter(|token| !token.is_empty())
            .or_else(|| Some(std::fs::read_to_string(token_file).ok()?.trim().to_owned()))
            .filter(|token| !token.is_empty() && !on("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Self {
            endpoint: text("HF_ENDPOINT")
                .filter(|address| !address.is_empty())
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hf_home.join("hub")),
            named: path("FAUNA_CACHE").unwrap_or_else(|| cache.join("fauna")),
            token,
            offline: on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE"),
            retries: 4,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
        }
    }
}
