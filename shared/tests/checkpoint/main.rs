//! Reading valid and rejecting invalid checkpoint files of every format.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

mod folders;
mod gguf;
mod msgpack;
mod safetensors;
mod torch;

use std::path::{Path, PathBuf};

use fauna_shared::Result;
use fauna_shared::checkpoint::Checkpoint;

/// A file with `content` in a temporary folder.
fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// Opens `content` as a file named `name`.
fn open(name: &str, content: &[u8]) -> Result<Checkpoint> {
    let (_folder, path) = file(name, content);
    Checkpoint::open(&path)
}

/// Opens `content` and, on success, reads all tensor data.
fn open_and_read(name: &str, content: &[u8]) {
    if let Ok(checkpoint) = open(name, content) {
        for (_, stored) in checkpoint.iter() {
            assert_eq!(stored.storage.byte_len(&stored.shape), Some(stored.bytes.len()));
            std::hint::black_box(stored.bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
        }
    }
}

/// The error message of opening `content`, which must name the file.
fn refusal(name: &str, content: &[u8]) -> String {
    let message = match open(name, content) {
        Ok(checkpoint) => panic!("opened, with {:?}", checkpoint.names().collect::<Vec<_>>()),
        Err(error) => error.to_string(),
    };
    assert!(message.contains(name), "{message}");
    message
}

/// A file of `tests/fixtures`, written by `make_checkpoints.py` there.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn other_files_are_rejected() {
    assert!(refusal("a.bin", b"").contains("empty"));
    assert!(refusal("a.bin", b"hello, this is text").contains("not a checkpoint"));
    assert!(refusal("a.bin", b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    let missing = Checkpoint::open(Path::new("/nowhere/model.safetensors")).unwrap_err();
    assert_eq!(missing.kind(), fauna_shared::ErrorKind::NotFound);
}
