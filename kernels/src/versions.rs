//! Helpers of the kernels written as plain loops: compiling one body for each instruction set, fused multiply-add,
//! reductions in lanes, and dividing a slice into disjoint pieces.
//!
//! The compiler vectorizes these loops well, so one body serves every processor; only the instruction set it is
//! compiled for differs.

/// Defines a function whose body is compiled once for each instruction set and selected by [`isa`](super::cpu::isa)
/// when called. Inside the body, the constant `FMA` is true if a fused multiply-add is one instruction; everything
/// called there should be `#[inline(always)]`.
macro_rules! versioned {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[allow(unused)]
            fn portable($($arg: $ty),*) $(-> $ret)? {
                const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
                $body
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(unused)]
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    const FMA: bool = true;
                    $body
                }
                #[allow(unused)]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    const FMA: bool = true;
                    $body
                }
                match $crate::cpu::isa() {
                    // SAFETY: `isa` returns only instruction sets that the processor has.
                    $crate::cpu::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::cpu::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use versioned;

use super::pool::parallel_for;

/// Returns `a * b + c`, fused where that is one instruction (elsewhere the fused form is a slow library call).
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Evaluates a polynomial by Horner's rule, the constant term first.
#[inline(always)]
pub(crate) fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = fma::<FMA>(sum, x, coefficients[i]);
    }
    sum
}

/// Number of partial results of a reduction: enough to hide the latency of an addition.
const LANES: usize = 64;

/// Reduces `f` of every element with `join`, in [`LANES`] interleaved partial results.
#[inline(always)]
pub(crate) fn reduce(x: &[f32], start: f32, f: impl Fn(f32) -> f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = join(lanes[i], f(block[i]));
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = join(*lane, f(v));
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Calls `f(index, piece)` for each piece of `x` of `size` elements (the last may be shorter), on all threads.
pub(crate) fn for_each_piece<T: Send>(x: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let (len, size) = (x.len(), size.max(1));
    if len <= size {
        return if len > 0 {
            f(0, x)
        };
    }
    let base = Shared(x.as_mut_ptr());
    parallel_for(len.div_ceil(size), |i| {
        let start = i * size;
        // SAFETY: pieces of different `i` do not overlap, each lies inside `x`, and `x` is borrowed mutably
        // until every call has returned.
        f(i, unsafe { std::slice::from_raw_parts_mut(base.get().add(start), size.min(len - start)) });
    });
}

/// A pointer shared by tasks, each of which accesses its own elements.
pub(crate) struct Shared<T>(pub(crate) *mut T);

impl<T> Shared<T> {
    #[inline(always)]
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: only the pointer is shared; code that dereferences it states why no two tasks access the same element.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}
