//! Runs the program for the tests of its commands.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Returns a command that runs the program offline with an empty cache.
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

/// Output and exit status of the program.
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

/// Runs the program with empty standard input.
pub fn run(arguments: &[&str]) -> Done {
    run_with(arguments, b"")
}

/// Runs the program with the standard input `stdin`.
pub fn run_with(arguments: &[&str], stdin: &[u8]) -> Done {
    let mut child = fauna()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The write fails if the program has exited because of invalid arguments.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap().into()
}

/// Asserts that the program exited with `status`, and that standard error contains each of `words`.
#[track_caller]
pub fn refused(done: &Done, status: i32, words: &[&str]) {
    assert_eq!(done.status, status, "{}", done.err);
    assert!(done.err.starts_with("fauna: ") || done.err.starts_with("error: "), "{}", done.err);
    for word in words {
        assert!(done.err.contains(word), "{word} is not in: {}", done.err);
    }
}

/// Asserts exit status 0 and empty standard error.
#[track_caller]
pub fn served(done: &Done) {
    assert_eq!((done.status, done.err.as_str()), (0, ""), "{}", done.out);
}

/// Parses JSON lines.
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// Returns a copy of a checkpoint that can be modified.
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

/// Converts a path to an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
