//! Copies of checkpoint files in which some tensors have other values, in the layout of the file: pickles of PyTorch, in
//! zip files or not, and flax.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::{Bytes, Checkpoint, zip};
use crate::{Error, Result};

/// Writes a copy of the checkpoint file `from` to `to`, in which the tensors `changed` have these bytes, in the element
/// types of the file. All else stays as it is.
///
/// # Errors
/// [`Unsupported`](crate::ErrorKind::Unsupported) with the name of a tensor that the file does not have, or not as one
/// range of as many bytes; [`Io`](crate::ErrorKind::Io) if writing fails.
pub(crate) fn write_patched(from: &Path, to: &Path, changed: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let checkpoint = Checkpoint::open(from)?;
    let mut places = Vec::with_capacity(changed.len());
    for (name, bytes) in changed {
        let refused = |why: &str| Error::unsupported(format!("{name} is not written: {why}")).at(from);
        let stored = checkpoint.get(name).ok_or_else(|| refused("the file has no tensor of this name"))?;
        if stored.bytes.len() != bytes.len() {
            return Err(refused("the file has it in another size or element type"));
        }
        let at = stored.bytes.place_in_file();
        let at = at.ok_or_else(|| refused("the file does not have its elements in a row"))?;
        places.push((at, bytes));
    }
    // A file of the cache may be read-only, which a copy would be too.
    let mut source = File::open(from).map_err(|e| Error::io(from, "open", e))?;
    let mut file = File::create(to).map_err(|e| Error::io(to, "create", e))?;
    std::io::copy(&mut source, &mut file).map_err(|e| Error::io(to, "write", e))?;
    write_at(&mut file, places.iter().map(|(at, bytes)| (*at, bytes.as_slice())))
        .map_err(|e| Error::io(to, "write", e))?;
    drop(file);
    let sums = Bytes::map(to).and_then(|copy| match zip::looks_like(&copy) {
        true => zip::sums(&copy),
        false => Ok(Vec::new()),
    });
    let sums = sums.map_err(|error| error.at(to))?;
    let mut file = OpenOptions::new().write(true).open(to).map_err(|e| Error::io(to, "open", e))?;
    let failed = |e| Error::io(to, "write", e);
    write_at(&mut file, sums.iter().map(|(at, sum)| (*at, &sum[..]))).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn write_at<'a>(file: &mut File, places: impl Iterator<Item = (usize, &'a [u8])>) -> std::io::Result<()> {
    for (at, bytes) in places {
        file.seek(SeekFrom::Start(at as u64))?;
        file.write_all(bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    #[test]
    fn a_copy_has_the_changed_values_and_all_others() {
        for name in ["zip.pt", "legacy.pt"] {
            let from = fixture(name);
            let before = Checkpoint::open(&from).unwrap();
            let in_a_row = |(_, stored): &(&str, &super::super::StoredTensor)| {
                stored.bytes.len() > 1 && stored.bytes.place_in_file().is_some()
            };
            let (changed, stored) = before.iter().find(in_a_row).unwrap();
            let bytes: Vec<u8> = stored.bytes.iter().map(|byte| byte ^ 1).collect();
            let folder = tempfile::tempdir().unwrap();
            let to = folder.path().join(name);
            write_patched(&from, &to, &BTreeMap::from([(changed.to_string(), bytes.clone())])).unwrap();
            let after = Checkpoint::open(&to).unwrap();
            assert_eq!(*after.get(changed).unwrap().bytes, bytes[..], "{name}: {changed}");
            // Views of the same storage have the change too.
            let start = stored.bytes.place_in_file().unwrap();
            let shares = |other: &Bytes| match other.place_in_file() {
                Some(at) => at < start + bytes.len() && start < at + other.len(),
                None => true,
            };
            for (other, stored) in before.iter().filter(|(_, stored)| !shares(&stored.bytes)) {
                assert_eq!(*after.get(other).unwrap().bytes, *stored.bytes, "{name}: {other}");
            }
            assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>());
        }
    }

    #[test]
    fn checksums_are_those_of_the_library_that_wrote_the_file() {
        let file = Bytes::map(&fixture("zip.pt")).unwrap();
        let sums = zip::sums(&file).unwrap();
        assert!(sums.len() > 2);
        for (at, sum) in sums {
            assert_eq!(file[at..at + 4], sum, "at {at}");
        }
    }

    #[test]
    fn tensors_that_the_file_cannot_take_are_refused_by_name() {
        let (from, folder) = (fixture("zip.pt"), tempfile::tempdir().unwrap());
        let name = Checkpoint::open(&from).unwrap().names().next().unwrap().to_string();
        for (tensor, bytes) in [("absent", vec![0; 4]), (name.as_str(), vec![0; 3])] {
            let to = folder.path().join("copy.pt");
            let error =
                write_patched(&from, &to, &BTreeMap::from([(tensor.to_string(), bytes)])).unwrap_err();
            assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains(tensor), "{error}");
            assert!(!to.exists());
        }
    }
}
