//! Checks for Git LFS pointers, gzip compression and UTF-16 in place of the expected file content.

use std::path::Path;

use crate::{Error, Result};

/// Rejects a file whose first bytes `start` are those of a Git LFS pointer or of gzip.
///
/// # Errors
/// [`Format`](crate::ErrorKind::Format) with the detected format and advice.
///
/// ```
/// use fauna_shared::misnamed::refuse;
/// assert!(refuse("a.png", b"\x89PNG").is_ok());
/// let error = refuse("a.png", b"version https://git-lfs.github.com/spec/v1\n").unwrap_err();
/// assert!(error.to_string().contains("git lfs pull"));
/// ```
pub fn refuse(path: impl AsRef<Path>, start: &[u8]) -> Result<()> {
    let path = path.as_ref();
    if start.starts_with(b"version https://git-lfs") {
        let error = Error::format(path, "this is a Git LFS pointer, not the file itself");
        return Err(error.hint("run `git lfs pull` in its folder, or download the file"));
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        let error = Error::format(path, "the file is compressed with gzip, which is not supported");
        return Err(error.hint("decompress it first: gzip -d"));
    }
    Ok(())
}

/// As [`refuse`], for a text file, which must not be UTF-16.
///
/// # Errors
/// As [`refuse`].
pub fn refuse_text(path: impl AsRef<Path>, start: &[u8]) -> Result<()> {
    refuse(&path, start)?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(
            Error::format(path.as_ref(), "the file is UTF-16, expected UTF-8").hint("convert it to UTF-8")
        );
    }
    Ok(())
}

/// Reads the text file at `path`.
///
/// # Errors
/// As [`refuse_text`]; [`NotFound`](crate::ErrorKind::NotFound) or [`Io`](crate::ErrorKind::Io) if it cannot be read.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    refuse_text(path, &bytes)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("not UTF-8: byte {at}")).hint("convert it to UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_and_text_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let error_of = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            read_text(&path).unwrap_err().to_string()
        };
        for (bytes, part) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], "Git LFS pointer"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"\xff\xfe{\x00", "UTF-16"),
            (b"\xfe\xff\x00{", "UTF-16"),
            (b"caf\xe9", "not UTF-8: byte 3"),
        ] {
            let error = error_of("file", bytes);
            assert!(error.contains(part) && error.contains("file"), "{error}");
        }
        let path = folder.path().join("plain");
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "{}");
    }
}
