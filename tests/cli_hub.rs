//! Tests of the whole program with a local HTTP server in place of the Hugging Face Hub, which serves a small model as
//! `owner/name`.

#[allow(dead_code, reason = "shared with the tests of fauna-shared, which use all of it")]
#[path = "../shared/tests/support/hub.rs"]
mod hub;

use std::path::Path;
use std::process::Command;

use hub::{Reply, Repository, Server};
use serde_json::Value;

/// Returns the files of a small sentence-embedding model.
fn repository() -> Repository {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/bert/sentence_mean_normalized/model");
    let names = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let contents: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(folder.join(name)).unwrap()).collect();
    let files: Vec<(&str, &[u8])> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    Repository::new(&files)
}

/// Runs the program with an empty cache in `home` and returns its exit status, standard output and standard error.
fn fauna(server: &Server, home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fauna"));
    for name in ["HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", server.address()).env("HF_HOME", home).env("FAUNA_CACHE", home.join("named"));
    let output = command.args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn info_needs_no_download_and_a_pulled_model_works_offline() {
    let repository = repository();
    let server = Server::start(move |request| repository.answer(request));
    let home = tempfile::tempdir().unwrap();

    let (status, out, err) = fauna(&server, home.path(), &["info", "owner/name", "--json"]);
    assert_eq!((status, err.as_str()), (0, ""));
    let before: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(before["downloaded"], false);
    assert!(before["parameters"].as_u64().unwrap() > 1000);
    assert!(out.contains(r#"{"name":"model.safetensors","bytes":"#), "{out}");
    assert!(server.downloads().iter().all(|request| !request.path.ends_with("model.safetensors")));

    let (status, out, err) = fauna(&server, home.path(), &["pull", "owner/name"]);
    assert_eq!(status, 0, "{err}");
    assert!(Path::new(out.trim()).join("model.safetensors").is_file(), "{out}");

    let asked = server.seen().len();
    let (status, out, err) = fauna(&server, home.path(), &["embed", "owner/name", "a cat", "--offline"]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.starts_with(r#"{"index":0,"text":"a cat","embedding":["#), "{out}");
    let (_, out, _) = fauna(&server, home.path(), &["info", "owner/name", "--json", "--offline"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["downloaded"], true);
    assert_eq!(server.seen().len(), asked, "--offline makes no request");
}

#[test]
fn errors_of_the_hub_are_explained() {
    let home = tempfile::tempdir().unwrap();
    let gated = Server::start(|_| Reply::new(401, "").header("X-Error-Code", "GatedRepo"));
    let (status, out, err) = fauna(&gated, home.path(), &["pull", "owner/name"]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.starts_with("fauna: owner/name: ") && err.contains("HF_TOKEN"), "{err}");

    let missing = Server::start(|_| Reply::new(404, "").header("X-Error-Code", "RepoNotFound"));
    let (status, _, err) = fauna(&missing, home.path(), &["pull", "owner/name"]);
    assert_eq!(status, 2);
    assert!(err.starts_with("fauna: owner/name: "), "{err}");
}
