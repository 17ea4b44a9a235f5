//! Result output: standard output, or a file that gets its name only when it is complete.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Stdout, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fauna::{Error, ErrorKind, Result};
use serde::Serialize;
use tempfile::NamedTempFile;

const STDOUT: &str = "standard output";

/// Temporary files being written, for [`abandon`].
static PARTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes all temporary files, when the program is interrupted.
pub fn abandon() {
    let parts = PARTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for part in parts.iter() {
        let _ = std::fs::remove_file(part);
    }
}

/// An output that results are written to. A file does not appear under its name before [`finish`](Output::finish).
pub struct Output {
    place: PathBuf,
    sink: Sink,
}

enum Sink {
    Stdout(BufWriter<Stdout>),
    /// An existing file that is not a regular one: a device, a pipe.
    Device(BufWriter<File>),
    File {
        part: BufWriter<NamedTempFile>,
        replace: bool,
    },
}

impl Output {
    /// Returns standard output.
    pub fn stdout() -> Self {
        Self { place: STDOUT.into(), sink: Sink::Stdout(BufWriter::new(std::io::stdout())) }
    }

    /// Opens the file at `path`, or standard output if `path` is `None`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if the file exists and `force` is off; [`Io`](ErrorKind::Io) if it cannot be created.
    pub fn open(path: Option<&Path>, force: bool) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::stdout()) };
        check_free(path, force)?;
        let sink = match std::fs::metadata(path) {
            Ok(there) if !there.is_file() => {
                let file = OpenOptions::new().write(true).open(path);
                Sink::Device(BufWriter::new(file.map_err(|e| Error::io(path, "open", e))?))
            }
            _ => Sink::File { part: BufWriter::new(part_of(path)?), replace: force },
        };
        Ok(Self { place: path.into(), sink })
    }

    /// Writes `bytes`.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.sink.writer().write_all(bytes);
        written.map_err(|e| Error::io(&self.place, "write", e))
    }

    /// Writes `line` and a newline.
    pub fn line(&mut self, line: impl AsRef<str>) -> Result<()> {
        self.bytes(line.as_ref().as_bytes())?;
        self.bytes(b"\n")
    }

    /// Writes `value` as one line of JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value)
            .map_err(|e| Error::input(format!("cannot be written as JSON: {e}")).at(&self.place))?;
        self.line(text)
    }

    /// Flushes the buffer.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = self.sink.writer().flush();
        flushed.map_err(|e| Error::io(&self.place, "write", e))
    }

    /// Ends the output; a file gets its name now.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        let Sink::File { part, replace } = self.sink else { return Ok(()) };
        let part = part.into_inner().map_err(|e| Error::io(&self.place, "write", e.into_error()))?;
        part.as_file().sync_all().map_err(|e| Error::io(&self.place, "write", e))?;
        let placed = match replace {
            true => part.persist(&self.place),
            false => part.persist_noclobber(&self.place),
        };
        match placed {
            Ok(_) => Ok(()),
            Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Err(is_there(&self.place)),
            Err(e) => Err(Error::io(&self.place, "write", e.error)),
        }
    }
}

impl Sink {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Stdout(out) => out,
            Self::Device(out) => out,
            Self::File { part, .. } => part,
        }
    }
}

/// Checks that a file may be written at `path`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if `path` is a folder, or an existing file and `force` is off.
pub fn check_free(path: &Path, force: bool) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(Error::input("this is a folder, expected a file").at(path)),
        Ok(there) if there.is_file() && !force => Err(is_there(path)),
        _ => Ok(()),
    }
}

/// Returns whether `error` is a closed pipe on standard output.
pub fn is_closed_pipe(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|s| s.downcast_ref::<std::io::Error>());
    error.place() == Some(Path::new(STDOUT))
        && source.is_some_and(|source| source.kind() == std::io::ErrorKind::BrokenPipe)
}

fn is_there(path: &Path) -> Error {
    Error::new(ErrorKind::Input, "the file exists")
        .at(path)
        .hint("choose another name, or overwrite it with --force")
}

/// Creates a temporary file in the folder of `path`, to be renamed at the end, with the default permissions.
fn part_of(path: &Path) -> Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".fauna-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let part = builder.tempfile_in(folder).map_err(|e| Error::io(path, "write", e))?;
    PARTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(part.path().to_path_buf());
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_output_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.txt");
        let mut output = Output::open(Some(&path), false).unwrap();
        output.line("half").unwrap();
        drop(output);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_existing_file_is_overwritten_only_with_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.txt");
        std::fs::write(&path, "mine").unwrap();
        assert!(Output::open(Some(&path), false).err().unwrap().to_string().contains("--force"));
        let mut output = Output::open(Some(&path), true).unwrap();
        output.line("new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        output.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
    }
}
