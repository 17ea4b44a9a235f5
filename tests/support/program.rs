//! The whole program, run as a user runs it, for the tests of its verbs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The program, offline, with an empty cache.
pub fn fauna() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fauna"));
    let nowhere = std::env::temp_dir().join("fauna-tests-empty-cache");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("HF_HUB_OFFLINE", "1");
    command
        .env("HF_HOME", &nowhere)
        .env("HF_HUB_CACHE", nowhere.join("hub"))
        .env("FAUNA_CACHE", nowhere.join("named"));
    command
}

/// What the program said and how it ended.
pub struct Done {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("ended by itself"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program with these arguments and nothing to read.
pub fn run(arguments: &[&str]) -> Done {
    run_with(arguments, b"")
}

/// The program with these arguments and `stdin` to read.
pub fn run_with(arguments: &[&str], stdin: &[u8]) -> Done {
    let mut child = fauna()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments has closed its input before it is written.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap().into()
}

/// Ended with `status`, and said each of `words` on standard error.
#[track_caller]
pub fn refused(done: &Done, status: i32, words: &[&str]) {
    assert_eq!(done.status, status, "{}", done.err);
    assert!(done.err.starts_with("fauna: ") || done.err.starts_with("error: "), "{}", done.err);
    for word in words {
        assert!(done.err.contains(word), "{word} is not in: {}", done.err);
    }
}

/// Ended well, with nothing on standard error.
#[track_caller]
pub fn served(done: &Done) {
    assert_eq!((done.status, done.err.as_str()), (0, ""), "{}", done.out);
}

/// One JSON value a line.
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// A copy of the files of a checkpoint, to change.
pub fn copy_of(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(model)).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
