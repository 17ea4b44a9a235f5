//! Allocation of large outputs.
//!
//! The system maps fresh memory page by page on first access. With pages of 4 KiB that takes longer than writing the
//! output of a layer, so large outputs request huge pages of 2 MiB; without support for them they get small pages.

use super::versions::for_each_piece;

/// Size in bytes from which huge pages are requested; smaller buffers mostly reuse freed memory.
const LARGE: usize = 4 << 20;

/// Allocates `len` zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    if size_of_val(&values[..]) >= LARGE {
        ask_for_large_pages(&mut values);
    }
    values
}

/// Allocates a copy of `x`.
pub fn copy(x: &[f32]) -> Vec<f32> {
    if size_of_val(x) < LARGE {
        return x.to_vec();
    }
    let mut values = zeros(x.len());
    copy_to(x, &mut values);
    values
}

/// Copies `x` to `to`, on all threads.
///
/// # Panics
/// If their lengths differ.
pub fn copy_to(x: &[f32], to: &mut [f32]) {
    const PIECE: usize = 1 << 16;
    assert_eq!(x.len(), to.len(), "source and destination must have the same length");
    for_each_piece(to, PIECE, |i, to| to.copy_from_slice(&x[i * PIECE..][..to.len()]));
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn ask_for_large_pages(values: &mut [f32]) {
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
fn ask_for_large_pages(_: &mut [f32]) {}

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
