//! Files that are not what their name says: said once, for every reader.

use std::path::Path;

use crate::{Error, Result};

/// Refuses what lies at `path` if its first bytes say that it is a Git LFS pointer or compressed with gzip.
///
/// # Errors
/// [`Format`](crate::ErrorKind::Format) that says what it is and what to do.
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
        let error = Error::format(path, "a Git LFS pointer, not the file it points to");
        return Err(error.hint("run `git lfs pull` in its folder, or download it"));
    }
    if start.starts_with(&[0x1f, 0x8b]) {
        let error = Error::format(path, "compressed with gzip, which is not read here");
        return Err(error.hint("unpack it first: gzip -d"));
    }
    Ok(())
}

/// [`refuse`] for a file of text, which may also be written in UTF-16.
///
/// # Errors
/// As [`refuse`].
pub fn refuse_text(path: impl AsRef<Path>, start: &[u8]) -> Result<()> {
    refuse(&path, start)?;
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(
            Error::format(path.as_ref(), "written in UTF-16, UTF-8 is wanted").hint("write it as UTF-8")
        );
    }
    Ok(())
}

/// The text in the file at `path`.
///
/// # Errors
/// As [`refuse_text`]; [`NotFound`](crate::ErrorKind::NotFound) or [`Io`](crate::ErrorKind::Io) if it cannot be read.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    refuse_text(path, &bytes)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("not UTF-8: byte {at}")).hint("write it as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_named_and_plain_text_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let said = |name: &str, bytes: &[u8]| {
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
            let error = said("file", bytes);
            assert!(error.contains(part) && error.contains("file"), "{error}");
        }
        let path = folder.path().join("plain");
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read_text(&path).unwrap(), "{}");
    }
}
