//! A trait of f32 vectors, so that a kernel is written once and compiled for every instruction set.
//!
//! A kernel is a [`Task`]: [`dispatch`] runs it inside a function compiled for the selected instruction set, and
//! everything it calls is `inline(always)`, so that it is compiled for that set too.

use super::cpu::Isa;

/// Work that is compiled once per instruction set.
pub(crate) trait Task {
    /// Runs the work with vectors of `S`. Must be `inline(always)`, like everything it calls.
    ///
    /// # Safety
    /// The processor must have `S`.
    unsafe fn run<S: Simd>(self);
}

/// Runs `task` with the vectors of `isa`, or with portable Rust if this processor lacks it.
pub(crate) fn dispatch(isa: Isa, task: impl Task) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the guard checks the processor.
        Isa::Avx512 if isa.available() => unsafe { x86::avx512(task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the guard checks the processor.
        Isa::Avx2 if isa.available() => unsafe { x86::avx2(task) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit ARM processor has NEON.
        Isa::Neon => unsafe { task.run::<neon::Neon>() },
        // SAFETY: portable Rust runs on any processor.
        _ => unsafe { task.run::<Portable>() },
    }
}

/// Vectors of [`Simd::LANES`] f32.
///
/// # Safety
/// Every method requires that the processor has the instruction set, and that pointers are valid for the number of
/// elements that the method reads or writes; they need not be aligned.
pub(crate) trait Simd: Copy + 'static {
    type V: Copy;
    const LANES: usize;
    /// Number of rows of the dot-product tile, which with four columns fills the registers.
    const DOT_ROWS: usize;
    /// Number of rows of the panel tile, which with two vectors of columns fills the registers.
    const PANEL_ROWS: usize;
    /// The index in the block of each lane of [`Simd::load_fp4`]: the order that is cheapest to unpack.
    const FP4_ORDER: [u8; 32];

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Loads bfloat16 as f32, exactly.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// Loads float16 as f32, exactly.
    unsafe fn load_f16(p: *const u16) -> Self::V;
    /// Returns `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Returns the larger of each pair; `b` where either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Returns 0 where `x < bound`, else `value`.
    unsafe fn zero_below(bound: Self::V, x: Self::V, value: Self::V) -> Self::V;
    /// Rounds to the nearest integers, ties to even.
    unsafe fn round(v: Self::V) -> Self::V;
    /// Returns 2 to the power of integers from -126 to 127.
    unsafe fn power_of_two(n: Self::V) -> Self::V;
    /// Returns the sums over the lanes of four vectors.
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4];
    /// Transposes a square of `LANES` rows: row `i` is read at `src + i * LANES`, and written to `dst + i * stride`.
    unsafe fn transpose(src: *const f32, dst: *mut f32, stride: usize);
    /// Stores the upper halves of the lanes (bfloat16), interleaved: the first lane of `a`, the first of `b`, and so
    /// on.
    unsafe fn store_bf16(p: *mut u16, a: Self::V, b: Self::V);
    /// Loads the 32 FP4 numbers in 16 bytes, two per byte, the first in the low nibble, to the first `32 / LANES`
    /// vectors, in the order of [`Simd::FP4_ORDER`].
    unsafe fn load_fp4(p: *const u8) -> [Self::V; 8];

    /// Loads the first `n < LANES` elements, then zeros.
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0f32; 16];
        // SAFETY: `n` elements may be read, and `n < LANES <= 16`.
        unsafe {
            p.cast::<u8>().copy_to_nonoverlapping(lanes.as_mut_ptr().cast(), n * size_of_val(&lanes[0]));
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        let mut lanes = [0f32; 16];
        // SAFETY: `n` elements may be written, and `n < LANES <= 16`.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            p.copy_from_nonoverlapping(lanes.as_ptr(), n);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(p: *const u16, n: usize) -> Self::V {
        let mut lanes = [0u16; 16];
        // SAFETY: as for `load_n`.
        unsafe {
            p.cast::<u8>().copy_to_nonoverlapping(lanes.as_mut_ptr().cast(), n * size_of_val(&lanes[0]));
            Self::load_bf16(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_f16_n(p: *const u16, n: usize) -> Self::V {
        let mut lanes = [0u16; 16];
        // SAFETY: as for `load_n`.
        unsafe {
            p.cast::<u8>().copy_to_nonoverlapping(lanes.as_mut_ptr().cast(), n * size_of_val(&lanes[0]));
            Self::load_f16(lanes.as_ptr())
        }
    }
}

/// The values of FP4 (E2M1) by their four bits.
pub(crate) const FP4: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The upper and the lower bytes of [`FP4`] as bfloat16.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const FP4_BYTES: [[u8; 16]; 2] = {
    let mut bytes = [[0; 16]; 2];
    let mut i = 0;
    while i < 16 {
        let bits = FP4[i].to_bits();
        bytes[0][i] = (bits >> 24) as u8;
        bytes[1][i] = (bits >> 16) as u8;
        i += 1;
    }
    bytes
};

/// [`Simd::FP4_ORDER`] of vectors of 128 bits: of each 16 numbers every fourth, from the first on, then from the second
/// on.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const FP4_FOURS: [u8; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 16 * 16 + i / 4 % 4 + i % 4 * 4) as u8;
        i += 1;
    }
    order
};

/// Returns e^x for `x` up to 88, within 2 ULP; 0 where the result is subnormal.
///
/// # Safety
/// The processor must have `S`.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    /// Below this the result is subnormal.
    const LOWEST: f32 = -87.336_54;
    // SAFETY: promised by the caller.
    unsafe {
        let lowest = S::splat(LOWEST);
        let clamped = S::max(lowest, x);
        let n = S::round(S::mul(clamped, S::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first with so few bits that its product with n is exact.
        let r = S::fma(n, S::splat(-0.693_359_4), clamped);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let y = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
        S::zero_below(lowest, x, S::mul(y, S::power_of_two(n)))
    }
}

/// Portable Rust with four lanes, which the compiler vectorizes for the baseline of the target.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    #[inline(always)]
    fn zip(a: [f32; 4], b: [f32; 4], f: impl Fn(f32, f32) -> f32) -> [f32; 4] {
        [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
    }
}

impl Simd for Portable {
    type V = [f32; 4];
    const LANES: usize = 4;
    const DOT_ROWS: usize = 2;
    const PANEL_ROWS: usize = 4;
    const FP4_ORDER: [u8; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = i as u8;
            i += 1;
        }
        order
    };

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: four elements may be read.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: four elements may be written.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        // SAFETY: four elements may be read.
        let v = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        v.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        // SAFETY: four elements may be read.
        let v = unsafe { p.cast::<[u16; 4]>().read_unaligned() };
        v.map(|x| half::f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        [a[0] * b[0] + c[0], a[1] * b[1] + c[1], a[2] * b[2] + c[2], a[3] * b[3] + c[3]]
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn zero_below(bound: Self::V, x: Self::V, value: Self::V) -> Self::V {
        let keep = |i: usize| if x[i] < bound[i] { 0.0 } else { value[i] };
        [keep(0), keep(1), keep(2), keep(3)]
    }
    #[inline(always)]
    unsafe fn round(v: Self::V) -> Self::V {
        v.map(f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn power_of_two(n: Self::V) -> Self::V {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        v.map(|v| (v[0] + v[2]) + (v[1] + v[3]))
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, dst: *mut f32, stride: usize) {
        for i in 0..4 {
            for j in 0..4 {
                // SAFETY: 16 elements may be read, and four at each of four rows written.
                unsafe { *dst.add(i * stride + j) = *src.add(j * 4 + i) };
            }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, a: Self::V, b: Self::V) {
        for i in 0..4 {
            // SAFETY: eight elements may be written.
            unsafe {
                p.add(2 * i)
                    .cast::<[u16; 2]>()
                    .write_unaligned([a[i], b[i]].map(|x| (x.to_bits() >> 16) as u16))
            };
        }
    }
    #[inline(always)]
    unsafe fn load_fp4(p: *const u8) -> [Self::V; 8] {
        // SAFETY: 16 bytes may be read.
        let bytes = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        let mut numbers = [[0.0; 4]; 8];
        for (v, numbers) in numbers.iter_mut().enumerate() {
            for (lane, number) in numbers.iter_mut().enumerate() {
                let i = 4 * v + lane;
                *number = FP4[usize::from(bytes[i / 2] >> (4 * (i % 2)) & 15)];
            }
        }
        numbers
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::{FP4, FP4_BYTES, FP4_FOURS, Simd, Task};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn avx2<T: Task>(task: T) {
        // SAFETY: promised by the caller.
        unsafe { task.run::<Avx2>() }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) unsafe fn avx512<T: Task>(task: T) {
        // SAFETY: promised by the caller.
        unsafe { task.run::<Avx512>() }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    // SAFETY (all blocks): the trait requires the caller to check the processor and the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const DOT_ROWS: usize = 3;
        const PANEL_ROWS: usize = 6;
        const FP4_ORDER: [u8; 32] = FP4_FOURS;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m256 {
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn zero_below(bound: __m256, x: __m256, value: __m256) -> __m256 {
            unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, bound), value) }
        }
        #[inline(always)]
        unsafe fn round(v: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
        }
        #[inline(always)]
        unsafe fn power_of_two(n: __m256) -> __m256 {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            }
        }
        #[inline(always)]
        unsafe fn sum4(v: [__m256; 4]) -> [f32; 4] {
            unsafe {
                let pairs = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
                let sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
                let mut out = [0f32; 4];
                _mm_storeu_ps(out.as_mut_ptr(), sums);
                out
            }
        }
        #[inline(always)]
        unsafe fn transpose(src: *const f32, dst: *mut f32, stride: usize) {
            unsafe {
                let mut r = [_mm256_setzero_ps(); 8];
                for (i, row) in r.iter_mut().enumerate() {
                    *row = _mm256_loadu_ps(src.add(i * 8));
                }
                let mut t = [_mm256_setzero_ps(); 8];
                for i in 0..4 {
                    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
                }
                for i in 0..2 {
                    let q = 4 * i;
                    r[q] = _mm256_shuffle_ps::<0x44>(t[q], t[q + 2]);
                    r[q + 1] = _mm256_shuffle_ps::<0xee>(t[q], t[q + 2]);
                    r[q + 2] = _mm256_shuffle_ps::<0x44>(t[q + 1], t[q + 3]);
                    r[q + 3] = _mm256_shuffle_ps::<0xee>(t[q + 1], t[q + 3]);
                }
                for i in 0..4 {
                    let low = _mm256_permute2f128_ps::<0x20>(r[i], r[i + 4]);
                    let high = _mm256_permute2f128_ps::<0x31>(r[i], r[i + 4]);
                    _mm256_storeu_ps(dst.add(i * stride), low);
                    _mm256_storeu_ps(dst.add((i + 4) * stride), high);
                }
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, a: __m256, b: __m256) {
            unsafe {
                let a = _mm256_srli_epi32::<16>(_mm256_castps_si256(a));
                _mm256_storeu_si256(p.cast(), _mm256_blend_epi16::<0xaa>(a, _mm256_castps_si256(b)));
            }
        }
        #[inline(always)]
        unsafe fn load_fp4(p: *const u8) -> [__m256; 8] {
            unsafe {
                let upper = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_BYTES[0].as_ptr().cast()));
                let lower = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_BYTES[1].as_ptr().cast()));
                // The low nibbles in one half, the high ones in the other.
                let bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
                let halves = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4));
                let codes = _mm256_and_si256(halves, _mm256_set1_epi8(15));
                let (lower, upper) = (_mm256_shuffle_epi8(lower, codes), _mm256_shuffle_epi8(upper, codes));
                // Pairs of bfloat16.
                let pairs = [_mm256_unpacklo_epi8(lower, upper), _mm256_unpackhi_epi8(lower, upper)];
                let second = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                let mut numbers = [_mm256_setzero_ps(); 8];
                for i in 0..2 {
                    numbers[2 * i] = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[i]));
                    numbers[2 * i + 1] = _mm256_castsi256_ps(_mm256_and_si256(pairs[i], second));
                }
                numbers
            }
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    impl Avx512 {
        #[inline(always)]
        fn mask(n: usize) -> __mmask16 {
            (1u32 << n).wrapping_sub(1) as __mmask16
        }
    }

    // SAFETY (all blocks): the trait requires the caller to check the processor and the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        const DOT_ROWS: usize = 6;
        const PANEL_ROWS: usize = 12;
        /// The low nibbles of all bytes, then the high ones.
        const FP4_ORDER: [u8; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (i % 16 * 2 + i / 16) as u8;
                i += 1;
            }
            order
        };

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn zero_below(bound: __m512, x: __m512, value: __m512) -> __m512 {
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), value) }
        }
        #[inline(always)]
        unsafe fn round(v: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
        }
        #[inline(always)]
        unsafe fn power_of_two(n: __m512) -> __m512 {
            unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
        }
        #[inline(always)]
        unsafe fn sum4(v: [__m512; 4]) -> [f32; 4] {
            unsafe {
                // The lanes of each quarter become the sums of v[0], v[1], v[2], v[3] over that quarter.
                let ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
                let cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
                let quarters =
                    _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
                let halves =
                    _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
                let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                let mut out = [0f32; 4];
                _mm_storeu_ps(out.as_mut_ptr(), sums);
                out
            }
        }
        #[inline(always)]
        unsafe fn transpose(src: *const f32, dst: *mut f32, stride: usize) {
            unsafe {
                let mut r = [_mm512_setzero_ps(); 16];
                for (i, row) in r.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(src.add(i * 16));
                }
                let mut t = [_mm512_setzero_ps(); 16];
                for i in 0..8 {
                    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
                }
                // r[4g + c]: quarter q holds column 4q + c of rows 4g to 4g + 3.
                for g in 0..4 {
                    let q = 4 * g;
                    r[q] = _mm512_shuffle_ps::<0x44>(t[q], t[q + 2]);
                    r[q + 1] = _mm512_shuffle_ps::<0xee>(t[q], t[q + 2]);
                    r[q + 2] = _mm512_shuffle_ps::<0x44>(t[q + 1], t[q + 3]);
                    r[q + 3] = _mm512_shuffle_ps::<0xee>(t[q + 1], t[q + 3]);
                }
                for c in 0..4 {
                    let low01 = _mm512_shuffle_f32x4::<0x44>(r[c], r[4 + c]);
                    let high01 = _mm512_shuffle_f32x4::<0xee>(r[c], r[4 + c]);
                    let low23 = _mm512_shuffle_f32x4::<0x44>(r[8 + c], r[12 + c]);
                    let high23 = _mm512_shuffle_f32x4::<0xee>(r[8 + c], r[12 + c]);
                    _mm512_storeu_ps(dst.add(c * stride), _mm512_shuffle_f32x4::<0x88>(low01, low23));
                    _mm512_storeu_ps(dst.add((4 + c) * stride), _mm512_shuffle_f32x4::<0xdd>(low01, low23));
                    _mm512_storeu_ps(dst.add((8 + c) * stride), _mm512_shuffle_f32x4::<0x88>(high01, high23));
                    _mm512_storeu_ps(
                        dst.add((12 + c) * stride),
                        _mm512_shuffle_f32x4::<0xdd>(high01, high23),
                    );
                }
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, a: __m512, b: __m512) {
            unsafe {
                let a = _mm512_srli_epi32::<16>(_mm512_castps_si512(a));
                let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_castps_si512(b));
                _mm512_storeu_si512(p.cast(), both);
            }
        }
        #[inline(always)]
        unsafe fn load_fp4(p: *const u8) -> [__m512; 8] {
            unsafe {
                let table = _mm512_loadu_ps(FP4.as_ptr());
                // Only the lowest four bits of an index count.
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
                let mut numbers = [_mm512_setzero_ps(); 8];
                numbers[0] = _mm512_permutexvar_ps(codes, table);
                numbers[1] = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table);
                numbers
            }
        }
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(Self::mask(n), p) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: __m512, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, Self::mask(n), v) }
        }
        #[inline(always)]
        unsafe fn load_bf16_n(p: *const u16, n: usize) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(Self::mask(n), p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn load_f16_n(p: *const u16, n: usize) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(Self::mask(n), p.cast())) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon {
    use super::{FP4_BYTES, FP4_FOURS, Simd};
    use std::arch::aarch64::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Neon;

    // SAFETY (all blocks): the trait requires the caller to check the processor and the pointers.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Neon {
        type V = float32x4_t;
        const LANES: usize = 4;
        const DOT_ROWS: usize = 5;
        const PANEL_ROWS: usize = 12;
        const FP4_ORDER: [u8; 32] = FP4_FOURS;

        #[inline(always)]
        unsafe fn splat(x: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: float32x4_t) {
            unsafe { vst1q_f32(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> float32x4_t {
            unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(p)))) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> float32x4_t {
            unsafe {
                // The exponent and fraction shifted to their place in an f32 are too small by 2^112, also for
                // subnormals; infinities and NaNs also need the largest exponent.
                let wide = vmovl_u16(vld1_u16(p));
                let sign = vshlq_n_u32::<16>(vandq_u32(wide, vdupq_n_u32(0x8000)));
                let magnitude = vandq_u32(wide, vdupq_n_u32(0x7fff));
                let scaled = vmulq_f32(
                    vreinterpretq_f32_u32(vshlq_n_u32::<13>(magnitude)),
                    vdupq_n_f32(f32::from_bits((127 + 112) << 23)),
                );
                let special = vandq_u32(vcgeq_u32(magnitude, vdupq_n_u32(0x7c00)), vdupq_n_u32(0x7f80_0000));
                let bits = vorrq_u32(vreinterpretq_u32_f32(scaled), special);
                vreinterpretq_f32_u32(vorrq_u32(bits, sign))
            }
        }
        #[inline(always)]
        unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
        }
        #[inline(always)]
        unsafe fn zero_below(bound: float32x4_t, x: float32x4_t, value: float32x4_t) -> float32x4_t {
            unsafe { vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcltq_f32(x, bound))) }
        }
        #[inline(always)]
        unsafe fn round(v: float32x4_t) -> float32x4_t {
            unsafe { vrndnq_f32(v) }
        }
        #[inline(always)]
        unsafe fn power_of_two(n: float32x4_t) -> float32x4_t {
            unsafe {
                let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
            }
        }
        #[inline(always)]
        unsafe fn sum4(v: [float32x4_t; 4]) -> [f32; 4] {
            unsafe {
                let sums = vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
                let mut out = [0f32; 4];
                vst1q_f32(out.as_mut_ptr(), sums);
                out
            }
        }
        #[inline(always)]
        unsafe fn transpose(src: *const f32, dst: *mut f32, stride: usize) {
            unsafe {
                let columns = vld4q_f32(src);
                vst1q_f32(dst, columns.0);
                vst1q_f32(dst.add(stride), columns.1);
                vst1q_f32(dst.add(2 * stride), columns.2);
                vst1q_f32(dst.add(3 * stride), columns.3);
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, a: float32x4_t, b: float32x4_t) {
            unsafe {
                let (a, b) = (vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b));
                vst1q_u16(p, vreinterpretq_u16_u32(vsriq_n_u32::<16>(b, a)));
            }
        }
        #[inline(always)]
        unsafe fn load_fp4(p: *const u8) -> [float32x4_t; 8] {
            unsafe {
                let (upper, lower) = (vld1q_u8(FP4_BYTES[0].as_ptr()), vld1q_u8(FP4_BYTES[1].as_ptr()));
                let bytes = vld1q_u8(p);
                let (even, odd) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
                let even = (vqtbl1q_u8(lower, even), vqtbl1q_u8(upper, even));
                let odd = (vqtbl1q_u8(lower, odd), vqtbl1q_u8(upper, odd));
                // Pairs of bfloat16.
                let pairs = [
                    vzip1q_u8(even.0, even.1),
                    vzip1q_u8(odd.0, odd.1),
                    vzip2q_u8(even.0, even.1),
                    vzip2q_u8(odd.0, odd.1),
                ];
                let second = vdupq_n_u32(0xffff_0000);
                let mut numbers = [vdupq_n_f32(0.0); 8];
                for i in 0..4 {
                    let v = 4 * (i / 2) + i % 2;
                    let pairs = vreinterpretq_u32_u8(pairs[i]);
                    numbers[v] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
                    numbers[v + 2] = vreinterpretq_f32_u32(vandq_u32(pairs, second));
                }
                numbers
            }
        }
    }
}
