//! Dot products with AVX2: 256 weights are unpacked at a time, then multiplied with every row of activations.

use std::arch::x86_64::*;

use super::format::{Format, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8K, Unpacked, six_bits};
use super::group::Group;

/// Unpacking of a format with AVX2; by default the portable code.
pub(super) trait Narrow: Format + Sized {
    /// Unpacks 256 weights, as [`Unpacked::fill`] does.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; 256 weights are readable at `group`.
    #[inline(always)]
    unsafe fn unpack(group: *const u8, to: &mut Unpacked) {
        // SAFETY: promised by the caller.
        to.fill::<Self>(unsafe { std::slice::from_raw_parts(group, 256 / Self::BLOCK * Self::BYTES) });
    }
}

impl Narrow for Q5_0 {}
impl Narrow for Q5_1 {}
impl Narrow for Q2K {}
impl Narrow for Q3K {}
impl Narrow for Q5K {}
impl Narrow for Q8K {}

/// Reads the bits of the float16 at `at`.
#[inline(always)]
unsafe fn half(at: *const u8) -> i16 {
    // SAFETY: the caller promises two readable bytes.
    unsafe { at.cast::<i16>().read_unaligned() }
}

/// Reads the float16 at `at` to all lanes.
#[inline(always)]
unsafe fn half_at(at: *const u8) -> __m256 {
    // SAFETY: the caller promises two readable bytes, and F16C.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(half(at))) }
}

/// Reads the float16 at offset `at` of eight blocks.
#[inline(always)]
unsafe fn halves<F: Format>(at: *const u8) -> __m256 {
    // SAFETY: the caller promises eight readable blocks, and F16C.
    unsafe {
        let half = |i: usize| half(at.add(i * F::BYTES));
        let halves = _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7));
        _mm256_cvtph_ps(halves)
    }
}

/// Stores quants `32 part .. 32 (part + 1)`.
#[inline(always)]
unsafe fn put(to: &mut Unpacked, part: usize, q: __m256i) {
    // SAFETY: the caller promises AVX and `part < 8`; `q` of `Unpacked` is aligned.
    unsafe { _mm256_store_si256(to.q.as_mut_ptr().add(32 * part).cast(), q) }
}

/// Stores scales `8 eight .. 8 (eight + 1)`.
#[inline(always)]
unsafe fn put_scales(to: &mut Unpacked, eight: usize, scale: __m256) {
    // SAFETY: the caller promises AVX and `eight < 2`.
    unsafe { _mm256_storeu_ps(to.scale.as_mut_ptr().add(8 * eight), scale) }
}

#[inline(always)]
unsafe fn put_minima(to: &mut Unpacked, min: __m256) {
    // SAFETY: the caller promises AVX.
    unsafe { _mm256_storeu_ps(to.min.as_mut_ptr(), min) }
}

/// The low four bits of each byte.
#[inline(always)]
unsafe fn low(bytes: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(15)) }
}

/// The high four bits of each byte.
#[inline(always)]
unsafe fn high(bytes: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe { low(_mm256_srli_epi16(bytes, 4)) }
}

/// Stores the quants of eight blocks whose 16 bytes of nibbles begin at `at`: the low nibbles, then the high ones.
#[inline(always)]
unsafe fn put_nibbles<F: Format>(to: &mut Unpacked, at: *const u8) {
    // SAFETY: the caller promises eight readable blocks, and AVX2.
    unsafe {
        for part in 0..8 {
            let bytes = _mm_loadu_si128(at.add(part * F::BYTES).cast());
            put(to, part, low(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes)));
        }
    }
}

/// Implements [`Narrow::unpack`].
macro_rules! unpack {
    ($name:ident, |$group:ident, $to:ident| $body:block) => {
        impl Narrow for $name {
            #[inline(always)]
            unsafe fn unpack($group: *const u8, $to: &mut Unpacked) {
                // SAFETY: all reads lie inside the blocks that the caller promises.
                unsafe { $body }
            }
        }
    };
}

unpack!(Q4_0, |group, to| {
    put_scales(to, 0, halves::<Self>(group));
    put_nibbles::<Self>(to, group.add(2));
});

unpack!(Q4_1, |group, to| {
    put_scales(to, 0, halves::<Self>(group));
    put_minima(to, halves::<Self>(group.add(2)));
    put_nibbles::<Self>(to, group.add(4));
});

unpack!(Q8_0, |group, to| {
    put_scales(to, 0, halves::<Self>(group));
    for part in 0..8 {
        let q = _mm256_loadu_si256(group.add(part * Self::BYTES + 2).cast());
        put(to, part, _mm256_xor_si256(q, _mm256_set1_epi8(-128)));
    }
});

unpack!(Q4K, |group, to| {
    let (scales, minima) = six_bits(group.add(4).cast::<[u8; 12]>().read_unaligned());
    let wide = |bytes| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes))));
    put_scales(to, 0, _mm256_mul_ps(half_at(group), wide(scales)));
    let minus = _mm256_sub_ps(_mm256_setzero_ps(), half_at(group.add(2)));
    put_minima(to, _mm256_mul_ps(minus, wide(minima)));
    for pair in 0..4 {
        let bytes = _mm256_loadu_si256(group.add(16 + 32 * pair).cast());
        put(to, 2 * pair, low(bytes));
        put(to, 2 * pair + 1, high(bytes));
    }
});

unpack!(Q6K, |group, to| {
    for eight in 0..2 {
        let scales = _mm256_cvtepi8_epi32(_mm_loadl_epi64(group.add(192 + 8 * eight).cast()));
        put_scales(to, eight, _mm256_mul_ps(half_at(group.add(208)), _mm256_cvtepi32_ps(scales)));
    }
    for half in 0..2 {
        let first = _mm256_loadu_si256(group.add(64 * half).cast());
        let second = _mm256_loadu_si256(group.add(64 * half + 32).cast());
        let top = _mm256_loadu_si256(group.add(128 + 32 * half).cast());
        let with = |q, top| _mm256_or_si256(q, _mm256_and_si256(top, _mm256_set1_epi8(0x30)));
        put(to, 4 * half, with(low(first), _mm256_slli_epi16(top, 4)));
        put(to, 4 * half + 1, with(low(second), _mm256_slli_epi16(top, 2)));
        put(to, 4 * half + 2, with(high(first), top));
        put(to, 4 * half + 3, with(high(second), _mm256_srli_epi16(top, 2)));
    }
});

/// [`portable::dots`](super::portable::dots) with AVX2, for at most [`ROWS`](super::ROWS) rows.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dots<F: Narrow>(weights: &[u8], x: &[Group], groups: usize, y: &mut [f32]) {
    let size = 256 / F::BLOCK * F::BYTES;
    let mut unpacked = Unpacked::ZERO;
    let mut totals = [_mm256_setzero_ps(); super::ROWS];
    for (g, bytes) in weights.chunks(size).enumerate() {
        if bytes.len() < size {
            unpacked = Unpacked::ZERO;
            unpacked.fill::<F>(bytes);
        } else {
            // SAFETY: the processor has what this needs, and `bytes` are 256 weights.
            unsafe { F::unpack(bytes.as_ptr(), &mut unpacked) };
        }
        for (x, total) in x.chunks_exact(groups).zip(&mut totals) {
            *total = add_dot::<F>(&unpacked, &x[g], *total);
        }
    }
    for (y, total) in y.iter_mut().zip(totals) {
        let half = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
        let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
        *y = _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
    }
}

/// Adds the dot product of 256 weights, spread over the lanes, to `total`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_dot<F: Format>(w: &Unpacked, x: &Group, mut total: __m256) -> __m256 {
    // SAFETY: all pointers are to whole vectors inside the arrays of `w` and `x`.
    unsafe {
        // Quants up to 255 are multiplied as signed integers around zero.
        let zero = if F::ZERO == 128 { 0.0 } else { f32::from(F::ZERO) };
        let each_32 = _mm256_load_ps(x.scale.as_ptr());
        let mut scales = [0f32; 16];
        for eight in 0..256 / F::SUB / 8 {
            let at = 8 * eight;
            let (sums, activation) = if F::SUB == 16 {
                let (i, each_16) = (4 * eight as i32, x.sums16.as_ptr().add(at));
                let twice = _mm256_setr_epi32(i, i, i + 1, i + 1, i + 2, i + 2, i + 3, i + 3);
                (each_16, _mm256_permutevar8x32_ps(each_32, twice))
            } else {
                (x.sums32.as_ptr(), each_32)
            };
            let scale = _mm256_loadu_ps(w.scale.as_ptr().add(at));
            let min = _mm256_loadu_ps(w.min.as_ptr().add(at));
            let offset = _mm256_fnmadd_ps(_mm256_set1_ps(zero), scale, min);
            total = _mm256_fmadd_ps(offset, _mm256_loadu_ps(sums), total);
            _mm256_storeu_ps(scales.as_mut_ptr().add(at), _mm256_mul_ps(scale, activation));
        }
        for part in 0..8 {
            let q = _mm256_load_si256(w.q.as_ptr().add(32 * part).cast());
            let a = _mm256_load_si256(x.q.as_ptr().add(32 * part).cast());
            let pairs = if F::ZERO == 128 {
                let signed = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(a, signed))
            } else {
                _mm256_maddubs_epi16(q, a)
            };
            let product = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            let scale = if F::SUB == 16 {
                let two = _mm256_castpd_ps(_mm256_set1_pd(
                    scales.as_ptr().add(2 * part).cast::<f64>().read_unaligned(),
                ));
                _mm256_permutevar_ps(two, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
            } else {
                _mm256_broadcast_ss(&scales[part])
            };
            total = _mm256_fmadd_ps(product, scale, total);
        }
        total
    }
}
