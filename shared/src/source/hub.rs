//! The hub: what a repository holds, and how a file of it comes into the cache that every tool shares.

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
    /// `id` is `owner/name`.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) if the hub could not have such a name.
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
            return Err(Error::input(format!("{id:?} is no repository of the hub"))
                .hint("one is named owner/name, in letters, digits, and - _ . between them"));
        }
        if !revision.split('/').all(plain) {
            return Err(Error::input(format!("{revision:?} is no revision of {id}"))
                .hint("a revision is a branch, a tag or a commit: owner/name@main"));
        }
        Ok(Self { id: id.into(), revision: revision.into() })
    }

    /// `owner/name`, perhaps with `@revision`.
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

/// One file a repository holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name within the repository, with `/` between folders.
    pub path: String,
    /// Bytes, if the hub says.
    pub size: Option<u64>,
    /// SHA-256 of the content (64 hex digits) for large files, the git blob id (40) for others, if the hub says.
    pub hash: Option<String>,
}

impl File {
    /// A file of which only the name is known.
    pub fn named(path: impl Into<String>) -> Self {
        Self { path: path.into(), size: None, hash: None }
    }
}

/// What a repository holds at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// The folder on this disk in which its files appear once fetched.
    pub root: PathBuf,
    /// All its files, or those in the cache if `partial`.
    pub files: Vec<File>,
    /// Read from the cache and not from the hub: there may be more files than these.
    pub partial: bool,
}

/// A place that has repositories. [`HfHub`](super::HfHub) is the real one.
pub trait Hub: Send + Sync {
    /// What `repo` holds.
    fn list(&self, repo: &Repo, progress: &dyn Progress) -> Result<Listing>;

    /// Brings one `file` of `listing` to its place under [`Listing::root`], unless it is there.
    fn fetch(&self, repo: &Repo, listing: &Listing, file: &File, progress: &dyn Progress) -> Result<PathBuf>;
}

/// Where the hub is, where its files are kept, and how patient to be.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Address of the hub (`HF_ENDPOINT`), by default `https://huggingface.co`.
    pub endpoint: String,
    /// The cache shared with the Python tools: `HF_HUB_CACHE`, else `HF_HOME/hub`, else
    /// `XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub cache: PathBuf,
    /// Where checkpoints with bare names lie, each in a folder of its name: `FAUNA_CACHE`, else
    /// `XDG_CACHE_HOME/fauna`, else `~/.cache/fauna`, on every system.
    pub named: PathBuf,
    /// Who asks: `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `HF_HOME/token`; nobody if
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` is on.
    pub token: Option<String>,
    /// Make no network call (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// How often to try again after a failure that may pass.
    pub retries: u32,
    /// The wait before the first new try; it doubles each time.
    pub backoff: Duration,
    /// How long to wait for a connection, an answer, or the next bytes.
    pub timeout: Duration,
}

impl HubConfig {
    /// The settings the environment asks for.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name), std::env::home_dir())
    }

    /// The settings that the variables `get` returns ask for, in the home folder `home`. Empty ones are unset.
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
