//! Room for large results.
//!
//! The system hands out fresh memory a page at a time, as each is first touched. In pages of 4 KiB that takes longer
//! than writing a layer's result does, so large results ask for pages of 2 MiB; a system that has none gives small
//! ones.

use super::versions::for_each_piece;

/// Results of fewer bytes come from memory that was used before, more often than not.
const LARGE: usize = 4 << 20;

/// `len` zeros.
pub fn zeros(len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    if size_of_val(&values[..]) >= LARGE {
        ask_for_large_pages(&mut values);
    }
    values
}

/// A copy of `x`.
pub fn copy(x: &[f32]) -> Vec<f32> {
    if size_of_val(x) < LARGE {
        return x.to_vec();
    }
    let mut values = zeros(x.len());
    copy_to(x, &mut values);
    values
}

/// Copies `x` to `to`, on every thread.
///
/// # Panics
/// If their lengths differ.
pub fn copy_to(x: &[f32], to: &mut [f32]) {
    const PIECE: usize = 1 << 16;
    assert_eq!(x.len(), to.len(), "as many elements out as in");
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
        // SAFETY: the range lies inside `values`. The advice changes no contents; a refusal changes nothing at all.
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
