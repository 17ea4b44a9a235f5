//! Shared byte buffers in mapped files or in memory.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::{Error, Result};

/// A reference-counted byte buffer in a mapped file or in memory, cheap to clone and to slice.
///
/// ```
/// use fauna_shared::checkpoint::Bytes;
/// let all = Bytes::from_vec(vec![1, 2, 3, 4]);
/// let tail = all.slice(2..4).unwrap();
/// drop(all);
/// assert_eq!(&*tail, [3, 4]);
/// ```
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    start: usize,
    len: usize,
}

enum Owner {
    Map(Mmap),
    Memory(Vec<Line>),
    /// Pages of their own, which the system has back as soon as they are dropped: the allocator keeps what it frees,
    /// so that a process whose models come and go would only grow.
    Pages(MmapMut),
}

/// From how many bytes on memory has pages of its own.
const PAGES: usize = 1 << 17;

/// One cache line, so that buffers are aligned for all element types and vector registers.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Bytes {
    /// Memory-maps the file at `path`.
    ///
    /// # Errors
    /// If the file does not exist, cannot be opened or is a folder.
    pub fn map(path: &Path) -> Result<Self> {
        // Opening a pipe would wait for its writer.
        if std::fs::metadata(path).is_ok_and(|file| !file.is_file()) {
            return Err(Error::input("not a regular file").at(path));
        }
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "read", e))?;
        if metadata.is_dir() {
            return Err(Error::input("expected a file, found a folder").at(path));
        }
        if metadata.len() == 0 {
            return Ok(Self::from_vec(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this process. As in any program that maps files, reads fault if
        // another process truncates the file while it is mapped; checkpoints are replaced by renaming.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
        let len = map.len();
        Ok(Self { owner: Arc::new(Owner::Map(map)), start: 0, len })
    }

    /// Copies `bytes` into memory aligned to 64 bytes.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self::filled(bytes.len(), |out| out.copy_from_slice(&bytes))
    }

    /// Allocates `len` zero bytes aligned to 64 bytes and lets `fill` write them.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        if len >= PAGES
            && let Ok(mut pages) = MmapMut::map_anon(len)
        {
            fill(&mut pages);
            return Self { owner: Arc::new(Owner::Pages(pages)), start: 0, len };
        }
        let mut lines = vec![Line([0; 64]); len.div_ceil(64)];
        // SAFETY: `lines` is at least `len` initialised bytes long, `Line` has no padding and any byte is valid in it.
        fill(unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), len) });
        Self { owner: Arc::new(Owner::Memory(lines)), start: 0, len }
    }

    /// The bytes in `range`, or `None` if it is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len {
            return None;
        }
        Some(Self {
            owner: self.owner.clone(),
            start: self.start + range.start,
            len: range.end - range.start,
        })
    }

    /// The bytes aligned to `align`, copied if necessary.
    pub fn aligned(self, align: usize) -> Self {
        if self.as_ptr().addr().is_multiple_of(align.max(1)) {
            return self;
        }
        Self::filled(self.len, |out| out.copy_from_slice(&self))
    }

    /// Whether the bytes are in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.owner, Owner::Map(_))
    }

    /// The place of the bytes in the mapped file; `None` if they are in memory.
    pub(super) fn place_in_file(&self) -> Option<usize> {
        self.is_mapped().then_some(self.start)
    }

    /// Advises the system to drop the mapped pages from memory (`MADV_DONTNEED`); later accesses read them from the
    /// file again. No effect for bytes in memory, and outside Unix.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Map(map) = &*self.owner {
            // SAFETY: the map is file-backed and never written, so dropped pages are read back unchanged. Failure is
            // ignored: it only costs memory.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, self.start, self.len)
            };
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &*self.owner {
            Owner::Map(map) => &map[..],
            Owner::Pages(pages) => &pages[..],
            // SAFETY: `lines` is initialised memory without padding, of the given length.
            Owner::Memory(lines) => unsafe {
                std::slice::from_raw_parts(lines.as_ptr().cast::<u8>(), size_of_val(lines.as_slice()))
            },
        };
        &all[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.is_mapped() { "mapped" } else { "in memory" };
        write!(f, "{} bytes {place}", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_slices_stay_inside() {
        let bytes = Bytes::from_vec((0..=200).collect());
        assert_eq!(bytes.as_ptr().addr() % 64, 0);
        assert!(bytes.slice(0..202).is_none());
        let part = bytes.slice(100..201).unwrap();
        assert!(part.slice(0..102).is_none());
        assert_eq!(part.slice(1..3).unwrap().as_ref(), [101, 102]);
        assert_eq!(part.slice(101..101).unwrap().len(), 0);
        assert_eq!(part.clone().aligned(64).as_ref(), part.as_ref());
    }

    #[test]
    fn released_pages_are_read_back_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let content: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let bytes = Bytes::map(&path).unwrap();
        assert!(bytes.is_mapped());
        assert_eq!(bytes.as_ref(), content);
        bytes.slice(10..90_000).unwrap().release();
        assert_eq!(bytes.as_ref(), content);
    }
}
