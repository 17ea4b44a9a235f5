//! Allocation of large outputs.
//!
//! The system maps fresh memory page by page on first access. With pages of 4 KiB that takes longer than writing the
//! output of a layer, so large outputs request huge pages of 2 MiB; without support for them they get small pages.

use std::mem::MaybeUninit;

use super::versions::for_each_piece;

/// Size in bytes from which huge pages are requested; smaller buffers mostly reuse freed memory.
const LARGE: usize = 4 << 20;

/// Elements that one thread fills at a time.
const PIECE: usize = 1 << 16;

/// Allocates `len` zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    // Fresh memory comes as zeros from the system; what was used before is filled.
    if len > PIECE && is_kept() {
        return filled(len, |_, piece| piece.fill(MaybeUninit::new(0.0)));
    }
    let mut values = vec![0f32; len];
    if size_of_val(&values[..]) >= LARGE {
        ask_for_large_pages(&mut values);
    }
    values
}

/// Allocates a copy of `x`.
pub fn copy(x: &[f32]) -> Vec<f32> {
    if x.len() <= PIECE {
        return x.to_vec();
    }
    filled(x.len(), |start, piece| {
        piece.iter_mut().zip(&x[start..]).for_each(|(to, from)| *to = MaybeUninit::new(*from));
    })
}

/// Allocates `len` elements, which `fill(start, piece)` writes on all threads.
fn filled(len: usize, fill: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    let room = &mut values.spare_capacity_mut()[..len];
    if size_of_val(room) >= LARGE {
        ask_for_large_pages(room);
    }
    for_each_piece(room, PIECE, |i, piece| fill(i * PIECE, piece));
    // SAFETY: the pieces cover `len` elements, and the callers' `fill` writes every element of its piece.
    unsafe { values.set_len(len) };
    values
}

/// Copies `x` to `to`, on all threads.
///
/// # Panics
/// If their lengths differ.
pub fn copy_to(x: &[f32], to: &mut [f32]) {
    assert_eq!(x.len(), to.len(), "source and destination must have the same length");
    for_each_piece(to, PIECE, |i, to| to.copy_from_slice(&x[i * PIECE..][..to.len()]));
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ask_for_large_pages<T>(values: &mut [T]) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const HUGEPAGE: c_int = 14;
    const SIZE: usize = 2 << 20;
    let pages = values.as_mut_ptr_range();
    let (start, end) = (pages.start.addr().next_multiple_of(SIZE), pages.end.addr() / SIZE * SIZE);
    if start < end {
        let first = pages.start.cast::<u8>().wrapping_add(start - pages.start.addr());
        // SAFETY: the range is inside `values`. The advice changes no contents; a refusal changes nothing at all.
        unsafe { madvise(first.cast(), end - start, HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
fn ask_for_large_pages<T>(_: &mut [T]) {}

/// While one of these lives, the memory of dropped buffers stays with the process, to be used again: for work that
/// allocates and drops the same buffers over and over, such as training, in which the system would otherwise map and clear
/// every page anew. Where the system's allocator is not glibc's, it does nothing.
///
/// When the last one is dropped, unused memory goes back to the system.
#[derive(Debug)]
pub struct Keep(());

/// How many [`Keep`] live.
static KEPT: std::sync::Mutex<usize> = std::sync::Mutex::new(0);

/// Whether a [`Keep`] lives.
fn is_kept() -> bool {
    *KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner) > 0
}

impl Keep {
    /// Keeps memory from now on.
    #[allow(clippy::new_without_default, reason = "it changes the process")]
    pub fn new() -> Self {
        let mut kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *kept += 1;
        if *kept == 1 {
            allocator::keep();
        }
        Self(())
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        let mut kept = KEPT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *kept -= 1;
        if *kept == 0 {
            allocator::give_back();
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod allocator {
    use std::ffi::c_int;

    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
        fn malloc_trim(pad: usize) -> c_int;
    }

    const TRIM_THRESHOLD: c_int = -1;
    const TOP_PAD: c_int = -2;
    const MMAP_MAX: c_int = -4;

    /// Large buffers come from the heap, which grows in large steps and does not shrink.
    pub fn keep() {
        // SAFETY: mallopt may be called at any time; it changes how memory is requested later.
        unsafe {
            mallopt(MMAP_MAX, 0);
            mallopt(TRIM_THRESHOLD, c_int::MAX);
            mallopt(TOP_PAD, 64 << 20);
        }
    }

    /// The allocator's defaults, with the thresholds that it reaches by itself, and unused memory for the system.
    pub fn give_back() {
        // SAFETY: as above; malloc_trim returns unused memory only.
        unsafe {
            mallopt(MMAP_MAX, 65536);
            mallopt(TRIM_THRESHOLD, 64 << 20);
            mallopt(TOP_PAD, 128 << 10);
            malloc_trim(0);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod allocator {
    pub fn keep() {}

    pub fn give_back() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_copies_of_every_size() {
        for len in [0, 1, 1000, LARGE / 4 - 1, LARGE / 4, LARGE + 12_345] {
            assert!(zeros(len).into_iter().eq(std::iter::repeat_n(0.0, len)));
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(copy(&x), x);
        }
    }
}
