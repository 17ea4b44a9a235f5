//! The Hugging Face hub, with the cache layout of `huggingface_hub`.
//!
//! The crate `hf-hub` is not used because it does not verify downloads and sends the token to redirect targets.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ring::digest;
use serde::Deserialize;

use super::http::{About, Failure, Http, header, pause, percent_encoded};
use super::hub::{File, Hub, HubConfig, Listing, Repo};
use crate::progress::{self, Progress, Task, Unit};
use crate::{Error, ErrorKind, Result};

/// A client of the Hugging Face hub or a compatible server, with the cache of `huggingface_hub`.
///
/// Interrupted downloads are resumed, files are renamed to their final names only if size and hash are correct, and
/// processes that download the same file wait for each other. If the hub is unreachable, the cache is used.
pub struct HfHub {
    config: HubConfig,
    http: Http,
}

/// The repository info of the hub's API.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl From<Sibling> for File {
    fn from(sibling: Sibling) -> Self {
        let (size, hash) = match sibling.lfs {
            Some(lfs) => (Some(lfs.size), Some(lfs.sha256)),
            None => (sibling.size, sibling.blob_id),
        };
        Self { path: sibling.rfilename, size, hash }
    }
}

/// The folder of a repository in the cache.
fn folder_name(repo: &Repo) -> String {
    format!("models--{}", repo.id().replace('/', "--"))
}

/// A revision as one path segment of a URL; branches may contain slashes.
fn encoded_revision(revision: &str) -> String {
    percent_encoded(revision).replace('/', "%2F")
}

impl HfHub {
    /// Creates a client; it connects at the first request.
    pub fn new(config: HubConfig) -> Self {
        Self { http: Http::new(config.clone()), config }
    }

    /// The folder of `repo` in the cache.
    fn folder(&self, repo: &Repo) -> PathBuf {
        self.config.cache.join(folder_name(repo))
    }

    /// The folder of a commit of `repo` in the cache.
    fn snapshot(&self, repo: &Repo, commit: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit)
    }

    /// The files of `repo` in the cache, without network requests.
    fn cached(&self, repo: &Repo) -> Option<Listing> {
        let reference = fs::read_to_string(self.folder(repo).join("refs").join(repo.revision()));
        let commit = reference.map_or_else(|_| repo.revision().to_owned(), |commit| commit.trim().to_owned());
        let root = self.snapshot(repo, &commit);
        if !is_plain(&commit) || !root.is_dir() {
            return None;
        }
        let file = |path: String| {
            let size = fs::metadata(root.join(&path)).ok()?.len();
            Some(File { size: Some(size), ..File::named(path) })
        };
        let files = super::names_under(&root, 3).into_iter().filter_map(file).collect();
        Some(Listing { commit, files, partial: true, root })
    }

    fn request_listing(&self, repo: &Repo) -> Result<Listing, Failure> {
        let about = About { repo, file: None };
        let (id, revision) = (repo.id(), encoded_revision(repo.revision()));
        let url = format!("{}/api/models/{id}/revision/{revision}?blobs=true", self.config.endpoint);
        let mut answer = self.http.get(about, &url, false, 0)?;
        let body = answer.body_mut().with_config().limit(64 << 20).read_to_vec();
        let body = body
            .map_err(|e| Failure::temporary(about.error(ErrorKind::Network, e.to_string()).caused_by(e)))?;
        let strange = |what: String| about.error(ErrorKind::Network, what).hint(format!("requested {url}"));
        let info: Info = serde_json::from_slice(&body)
            .map_err(|e| strange(format!("invalid response of the hub: {e}")))?;
        if !is_plain(&info.sha) {
            return Err(strange(format!("the hub returned an invalid commit: {:?}", info.sha)).into());
        }
        let root = self.snapshot(repo, &info.sha);
        Ok(Listing {
            commit: info.sha,
            root,
            files: info.siblings.into_iter().map(File::from).collect(),
            partial: false,
        })
    }

    /// `file` with size and hash from a HEAD request.
    fn described(&self, about: About, url: &str, file: &File) -> Result<File, Failure> {
        let answer = self.http.get(about, url, true, 0)?;
        let size = header(&answer, "x-linked-size").or(header(&answer, "content-length"));
        let hash = header(&answer, "x-linked-etag").or(header(&answer, "etag"));
        let hash = hash.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
        Ok(File {
            path: file.path.clone(),
            size: file.size.or(size.and_then(|s| s.parse().ok())),
            hash: Some(
                hash.filter(|h| is_plain(h))
                    .ok_or_else(|| about.error(ErrorKind::Network, "the response of the hub has no ETag"))?,
            ),
        })
    }

    /// One attempt to complete the download `part`, resuming at its end. Returns whether bytes were received, and the
    /// result.
    fn transfer(
        &self,
        (about, url): (About, &str),
        file: &File,
        part: &Path,
        task: &dyn Task,
        progress: &dyn Progress,
    ) -> (bool, Result<(), Failure>) {
        let mut got = 0;
        let outcome = self.receive((about, url), file, part, &mut got, task, progress);
        (got > 0, outcome)
    }

    fn receive(
        &self,
        (about, url): (About, &str),
        file: &File,
        part: &Path,
        got: &mut u64,
        task: &dyn Task,
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let disk = |action: &str, error| disk_error(part, action, file, error);
        let mut out = OpenOptions::new().create(true).append(true).open(part).map_err(|e| disk("open", e))?;
        let mut have = out.metadata().map_err(|e| disk("read", e))?.len();
        if file.size.is_some_and(|size| size == have) && have > 0 {
            return Ok(());
        }
        let too_long = file.size.is_some_and(|size| have > size);
        let answer = self.http.get(about, url, false, if too_long { 0 } else { have })?;
        let resumes = answer.status().as_u16() == 206
            && header(&answer, "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
        if !resumes && have > 0 {
            // The server does not resume at this position: start from the beginning.
            out.set_len(0).map_err(|e| disk("empty", e))?;
            have = 0;
        }
        if answer.status().as_u16() == 416 || (answer.status().as_u16() == 206 && !resumes) {
            return Err(Failure::temporary(
                about.error(ErrorKind::Network, "the hub returned another byte range"),
            ));
        }
        // Read at most one byte more than expected, to detect a file that is too long.
        let mut body =
            answer.into_body().into_reader().take(file.size.map_or(u64::MAX, |size| size - have + 1));
        let mut buffer = vec![0; 1 << 17];
        loop {
            progress::check(progress)?;
            let count = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    let message = format!("the download failed after {} bytes: {error}", have + *got);
                    return Err(Failure::temporary(
                        about.error(ErrorKind::Network, message).caused_by(error),
                    ));
                }
            };
            out.write_all(&buffer[..count]).map_err(|e| disk("write", e))?;
            task.advance(count as u64);
            *got += count as u64;
        }
        match file.size {
            Some(size) if have + *got < size => Err(Failure::temporary(about.error(
                ErrorKind::Network,
                format!("the download ended at {} of {size} bytes", have + *got),
            ))),
            _ => Ok(()),
        }
    }

    /// Downloads `file` to `blob`. The caller holds the lock.
    fn download(
        &self,
        about: About,
        url: &str,
        file: &File,
        blob: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let part = with_suffix(blob, "incomplete");
        let there = fs::metadata(&part).map_or(0, |m| m.len());
        let task = progress.begin(&file.path, Unit::Bytes, file.size);
        task.skip(there);
        let transfer = || {
            self.http.persist(self.config.retries, progress, || {
                self.transfer((about, url), file, &part, &*task, progress)
            })
        };
        transfer()?;
        let mut checked = check(about, file, &part);
        if checked.is_err() && there > 0 {
            // The resumed part may be damaged: retry from the beginning.
            fs::remove_file(&part).map_err(|e| Error::io(&part, "remove", e))?;
            transfer()?;
            checked = check(about, file, &part);
        }
        if checked.is_err() {
            let _ = fs::remove_file(&part);
        }
        checked?;
        let sync = || OpenOptions::new().append(true).open(&part)?.sync_all();
        sync().and_then(|()| fs::rename(&part, blob)).map_err(|e| disk_error(blob, "write", file, e))
    }

    /// Acquires the lock of a blob, which is released when the returned file is dropped or the process ends.
    fn lock(&self, repo: &Repo, hash: &str, progress: &dyn Progress) -> Result<fs::File> {
        let name = folder_name(repo);
        let path = self.config.cache.join(".locks").join(name).join(format!("{hash}.lock"));
        create_parent(&path)?;
        let lock = OpenOptions::new().create(true).append(true).open(&path);
        let lock = lock.map_err(|e| Error::io(&path, "open", e))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) => pause(Duration::from_millis(100), progress)?,
                // Some network file systems have no locks. The hash check then detects concurrent downloads.
                Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                    return Ok(lock);
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path, "lock", error)),
            }
        }
    }
}

impl Hub for HfHub {
    fn list(&self, repo: &Repo, progress: &dyn Progress) -> Result<Listing> {
        let cached = self.cached(repo);
        if self.config.offline {
            return cached.ok_or_else(|| {
                Error::new(ErrorKind::Offline, "not in the cache, and network access is disabled")
                    .at(repo.to_string())
                    .hint(format!("the cache is {}", self.config.cache.display()))
                    .hint(super::ONLINE)
            });
        }
        let retries = if cached.is_some() { 0 } else { self.config.retries };
        let asked = self.http.persist(retries, progress, || (false, self.request_listing(repo)));
        match (asked, cached) {
            (Err(error), Some(cached)) if error.kind() == ErrorKind::Network => {
                progress.note(&format!("{error}\nusing commit {} in the cache", cached.commit));
                Ok(cached)
            }
            (asked, _) => asked,
        }
    }

    fn fetch(&self, repo: &Repo, listing: &Listing, file: &File, progress: &dyn Progress) -> Result<PathBuf> {
        let about = About { repo, file: Some(&file.path) };
        let target = listing.root.join(&file.path);
        if has_size(&target, file.size) {
            return Ok(target);
        }
        if self.config.offline {
            return Err(about.error(ErrorKind::Offline, "not in the cache, and network access is disabled"));
        }
        let (id, revision) = (repo.id(), encoded_revision(&listing.commit));
        let url = format!("{}/{id}/resolve/{revision}/{}", self.config.endpoint, percent_encoded(&file.path));
        let described;
        let (file, hash) = match &file.hash {
            Some(hash) if is_plain(hash) => (file, hash),
            _ => {
                let ask = || (false, self.described(about, &url, file));
                described = self.http.persist(self.config.retries, progress, ask)?;
                (&described, described.hash.as_ref().unwrap_or(&described.path))
            }
        };
        let lock = self.lock(repo, hash, progress)?;
        let blob = self.folder(repo).join("blobs").join(hash);
        let fresh = !has_size(&blob, file.size);
        if fresh {
            create_parent(&blob)?;
            self.download(about, &url, file, &blob, progress)?;
        }
        create_parent(&target)?;
        place(&blob, &target, file.path.matches('/').count(), fresh)
            .map_err(|e| Error::io(&target, "place", e))?;
        if listing.commit != repo.revision() {
            let reference = self.folder(repo).join("refs").join(repo.revision());
            if fs::read_to_string(&reference).ok().as_deref() != Some(&listing.commit) {
                create_parent(&reference)?;
                let new = unused(&reference);
                let write = fs::write(&new, &listing.commit).and_then(|()| fs::rename(&new, &reference));
                write.map_err(|e| Error::io(&reference, "write", e))?;
            }
        }
        drop(lock);
        Ok(target)
    }
}

/// Creates `target`, `depth` folders below its snapshot folder, from `blob`: as a symbolic link, or, if links are not
/// supported, by moving (a `fresh` blob) or copying it.
fn place(blob: &Path, target: &Path, depth: usize, fresh: bool) -> std::io::Result<()> {
    let new = unused(target);
    let name = blob.file_name().unwrap_or_default();
    let link = Path::new(&"../".repeat(depth + 2)).join("blobs").join(name);
    if link_file(&link, &new).is_err() {
        if fresh {
            return fs::rename(blob, target);
        }
        fs::copy(blob, &new)?;
    }
    fs::rename(&new, target)
}

#[cfg(unix)]
fn link_file(to: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(to, at)
}

#[cfg(windows)]
fn link_file(to: &Path, at: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(to, at)
}

#[cfg(not(any(unix, windows)))]
fn link_file(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// Checks the size and hash of the file at `path`.
fn check(about: About, file: &File, path: &Path) -> Result<()> {
    let mut input = fs::File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let length = input.metadata().map_err(|e| Error::io(path, "read", e))?.len();
    let damaged = |found: String, expected: &str| {
        about
            .error(ErrorKind::Format, format!("the downloaded file is damaged: {found}, expected {expected}"))
            .hint(
                "the download was deleted; try again; if the error persists, the server or a proxy modifies the file",
            )
    };
    if let Some(size) = file.size.filter(|size| *size != length) {
        return Err(damaged(format!("{length} or more bytes"), &size.to_string()));
    }
    let expected = file.hash.as_deref().unwrap_or_default();
    let mut hash = match expected.len() {
        64 => digest::Context::new(&digest::SHA256),
        40 => {
            let mut git = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
            git.update(format!("blob {length}\0").as_bytes());
            git
        }
        _ => return Ok(()), // an ETag that is not a hash; only the size is checked
    };
    let mut buffer = vec![0; 1 << 17];
    loop {
        match input.read(&mut buffer).map_err(|e| Error::io(path, "read", e))? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    let found: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(damaged(format!("hash {found}"), expected))
    }
}

fn disk_error(path: &Path, action: &str, file: &File, error: std::io::Error) -> Error {
    if !matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) {
        return Error::io(path, action, error);
    }
    let need = file.size.map_or(String::new(), |size| format!(" of {size} bytes"));
    Error::new(ErrorKind::Io, format!("the disk is full, cannot store {}{need}", file.path))
        .at(path)
        .hint("free disk space, or set HF_HOME to another disk; the download will be resumed")
        .caused_by(error)
}

fn has_size(path: &Path, size: Option<u64>) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && size.is_none_or(|size| size == m.len()))
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))
}

/// `path` with `.ending` appended to its name.
fn with_suffix(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// A temporary name next to `path`, unique to this process and thread.
fn unused(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    with_suffix(path, &format!("{}-{}.new", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Whether `text`, a commit or hash from a server, is safe as a file name.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}
