//! Dot products with AVX-512 and VNNI, which sums products of unsigned and signed bytes four at a time.
//!
//! Few rows of activations: each row of weights is unpacked in registers and multiplied as it is read, so that
//! memory bandwidth is the limit ([`dots`]). Many rows: tiles of weights are unpacked once, in the order in which
//! sixteen outputs fill a vector, and multiplied with every row ([`pack`], [`multiply`]).

use std::arch::x86_64::*;

use super::format::{self, Format, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8K};
use super::group::{Group, SECOND};
use crate::simd::Simd;
use crate::simd::x86::Avx512;

/// Unpacking of a format with AVX-512. `group` points to 256 weights.
pub(super) trait Wide: Format {
    /// Returns the scales and minima, in the low 8 lanes where 32 weights share one (the others are then zero).
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL, DQ; 256 weights are readable at `group`.
    unsafe fn parameters(group: *const u8) -> (__m512, __m512);
    /// Returns the quants `64 z .. 64 (z + 1)`, in order.
    ///
    /// # Safety
    /// As above, and `z < 4`; only these quants need be readable.
    unsafe fn sixty_four(group: *const u8, z: usize) -> __m512i;
}

/// Reads the float16 at byte `AT` of eight blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn halves<F: Format, const AT: usize>(group: *const u8) -> __m512 {
    // SAFETY: the caller promises eight readable blocks, more than 128 bytes, whose heads lie in the first 128 or in
    // the 128 that begin at `second`; its processor has AVX-512 and F16C.
    unsafe {
        let second = 128.min(group_bytes::<F>() - 128);
        let line = |at: usize| _mm512_loadu_si512(group.add(at).cast());
        let words = |base: usize| {
            let word = |i: usize| ((i * F::BYTES + AT).wrapping_sub(base) / 2) as i16;
            let words =
                _mm_setr_epi16(word(0), word(1), word(2), word(3), word(4), word(5), word(6), word(7));
            let words = _mm512_castsi128_si512(words);
            _mm512_castsi512_si128(_mm512_permutex2var_epi16(line(base), words, line(base + 64)))
        };
        let mut halves = words(0);
        let inside = 126usize.saturating_sub(AT) / F::BYTES + 1;
        if inside < 8 {
            halves = _mm_mask_mov_epi16(halves, (0xff << inside) as u8, words(second));
        }
        _mm512_zextps256_ps512(_mm256_cvtph_ps(halves))
    }
}

#[inline(always)]
unsafe fn half_at(at: *const u8) -> __m512 {
    // SAFETY: two bytes are readable.
    unsafe {
        _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned()))))
    }
}

/// Returns the nibbles of sixteen bytes of each of two blocks, low nibbles before high ones.
#[inline(always)]
unsafe fn nibbles_of_two(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: sixteen bytes are readable at each.
    unsafe {
        let pair = _mm512_broadcast_i32x4(_mm_loadu_si128(first.cast()));
        let pair = _mm512_mask_broadcast_i32x4(pair, 0xff00, _mm_loadu_si128(second.cast()));
        let shift = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi32(pair, shift), _mm512_set1_epi8(15))
    }
}

/// Returns 32 bytes twice, the first half shifted right by `first` bits, the second by `second`; bits of neighbouring
/// bytes are shifted in from above.
#[inline(always)]
unsafe fn twice(bytes: *const u8, first: i32, second: i32) -> __m512i {
    // SAFETY: 32 bytes are readable.
    unsafe {
        let both = _mm512_broadcast_i64x4(_mm256_loadu_si256(bytes.cast()));
        let (f, s) = (first, second);
        _mm512_srlv_epi32(both, _mm512_setr_epi32(f, f, f, f, f, f, f, f, s, s, s, s, s, s, s, s))
    }
}

/// Adds the fifth bit of each quant, from `bits`.
#[inline(always)]
unsafe fn with_fifth(q: __m512i, bits: u64) -> __m512i {
    // SAFETY: the caller's processor has AVX-512 BW.
    unsafe { _mm512_mask_add_epi8(q, bits, q, _mm512_set1_epi8(16)) }
}

#[inline(always)]
unsafe fn bits_of_two(first: *const u8, second: *const u8) -> u64 {
    // SAFETY: four bytes are readable at each.
    let (low, high) =
        unsafe { (first.cast::<u32>().read_unaligned(), second.cast::<u32>().read_unaligned()) };
    u64::from(low) | u64::from(high) << 32
}

/// Implements [`Wide`] for a format with blocks of 32 weights: a float16 minimum follows the scale if `$min`, and
/// `$quants` unpacks two blocks.
macro_rules! short {
    ($name:ident, $min:literal, |$a:ident, $b:ident| $quants:expr) => {
        impl Wide for $name {
            #[inline(always)]
            unsafe fn parameters(group: *const u8) -> (__m512, __m512) {
                // SAFETY: the caller promises eight readable blocks.
                unsafe {
                    let min = if $min { halves::<Self, 2>(group) } else { _mm512_setzero_ps() };
                    (halves::<Self, 0>(group), min)
                }
            }
            #[inline(always)]
            unsafe fn sixty_four(group: *const u8, z: usize) -> __m512i {
                // SAFETY: the caller promises that blocks 2z and 2z + 1 are readable.
                unsafe {
                    let $a = group.add(2 * z * Self::BYTES);
                    let $b = $a.add(Self::BYTES);
                    $quants
                }
            }
        }
    };
}

short!(Q4_0, false, |a, b| nibbles_of_two(a.add(2), b.add(2)));
short!(Q4_1, true, |a, b| nibbles_of_two(a.add(4), b.add(4)));
short!(Q5_0, false, |a, b| with_fifth(nibbles_of_two(a.add(6), b.add(6)), bits_of_two(a.add(2), b.add(2))));
short!(Q5_1, true, |a, b| with_fifth(nibbles_of_two(a.add(8), b.add(8)), bits_of_two(a.add(4), b.add(4))));
short!(Q8_0, false, |a, b| {
    let first = _mm512_castsi256_si512(_mm256_loadu_si256(a.add(2).cast()));
    let both = _mm512_inserti64x4(first, _mm256_loadu_si256(b.add(2).cast()), 1);
    _mm512_xor_si512(both, _mm512_set1_epi8(-128))
});

#[inline(always)]
unsafe fn scales_and_minima(group: *const u8) -> (__m512, __m512) {
    // SAFETY: the caller promises a readable block of Q4_K or Q5_K, which begins with these sixteen bytes.
    unsafe {
        let (scales, minima) = format::six_bits(group.add(4).cast::<[u8; 12]>().read_unaligned());
        let wide = |bytes: [u8; 8]| {
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(bytes));
            _mm512_zextps256_ps512(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)))
        };
        let minus = _mm512_sub_ps(_mm512_setzero_ps(), half_at(group.add(2)));
        (_mm512_mul_ps(half_at(group), wide(scales)), _mm512_mul_ps(minus, wide(minima)))
    }
}

macro_rules! long {
    ($name:ident, |$p:ident| $parameters:expr, |$group:ident, $z:ident| $quants:expr) => {
        impl Wide for $name {
            #[inline(always)]
            unsafe fn parameters($p: *const u8) -> (__m512, __m512) {
                // SAFETY: all reads lie inside the block that the caller promises.
                unsafe { $parameters }
            }
            #[inline(always)]
            unsafe fn sixty_four($group: *const u8, $z: usize) -> __m512i {
                // SAFETY: all reads lie inside the block that the caller promises.
                unsafe { $quants }
            }
        }
    };
}

long!(Q4K, |block| scales_and_minima(block), |block, z| {
    _mm512_and_si512(twice(block.add(16 + 32 * z), 0, 4), _mm512_set1_epi8(15))
});

long!(Q5K, |block| scales_and_minima(block), |block, z| {
    let low = _mm512_and_si512(twice(block.add(48 + 32 * z), 0, 4), _mm512_set1_epi8(15));
    let high = twice(block.add(16), 2 * z as i32, 2 * z as i32 + 1);
    with_fifth(low, _mm512_test_epi8_mask(high, _mm512_set1_epi8(1)))
});

long!(
    Q6K,
    |block| {
        let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(192).cast())));
        (_mm512_mul_ps(half_at(block.add(208)), scales), _mm512_setzero_ps())
    },
    |block, z| {
        let low = _mm512_loadu_si512(block.add(64 * (z / 2)).cast());
        let low = _mm512_srlv_epi32(low, _mm512_set1_epi32(4 * (z % 2) as i32));
        let high = twice(block.add(128 + 32 * (z / 2)), 4 * (z % 2) as i32, 4 * (z % 2) as i32 + 2);
        let high = _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi8(3)), 4);
        _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(15)), high)
    }
);

#[inline(always)]
unsafe fn two_bits(bytes: *const u8, z: usize) -> __m512i {
    // SAFETY: 64 bytes are readable.
    unsafe {
        let shift = 4 * (z % 2) as i32;
        _mm512_and_si512(twice(bytes.add(32 * (z / 2)), shift, shift + 2), _mm512_set1_epi8(3))
    }
}

long!(
    Q2K,
    |block| {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(block.cast()));
        let scales = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
        let minima = _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
        let minus = _mm512_sub_ps(_mm512_setzero_ps(), half_at(block.add(82)));
        (_mm512_mul_ps(half_at(block.add(80)), scales), _mm512_mul_ps(minus, minima))
    },
    |block, z| two_bits(block.add(16), z)
);

long!(
    Q3K,
    |block| {
        let scales = format::six_bits_of_sixteen(block.add(96).cast::<[u8; 12]>().read_unaligned());
        let scales = _mm512_cvtepu8_epi32(_mm_loadu_si128(scales.as_ptr().cast()));
        let scales = _mm512_cvtepi32_ps(_mm512_sub_epi32(scales, _mm512_set1_epi32(32)));
        (_mm512_mul_ps(half_at(block.add(108)), scales), _mm512_setzero_ps())
    },
    |block, z| {
        let high = twice(block, 2 * z as i32, 2 * z as i32 + 1);
        let high = _mm512_and_si512(_mm512_slli_epi32(high, 2), _mm512_set1_epi8(4));
        _mm512_or_si512(two_bits(block.add(32), z), high)
    }
);

long!(
    Q8K,
    |block| {
        let d = _mm512_set1_ps(block.cast::<f32>().read_unaligned());
        (_mm512_maskz_mov_ps(0xff, d), _mm512_setzero_ps())
    },
    |block, z| _mm512_xor_si512(_mm512_loadu_si512(block.add(4 + 64 * z).cast()), _mm512_set1_epi8(-128))
);

/// Size of 256 weights in bytes.
const fn group_bytes<F: Format>() -> usize {
    256 / F::BLOCK * F::BYTES
}

/// Upper bound of [`group_bytes`].
const MOST_BYTES: usize = 320;

/// Rows of weights in blocks, read by groups of 256.
#[derive(Clone, Copy)]
struct Rows<'a, F> {
    data: &'a [u8],
    bytes: usize,
    format: std::marker::PhantomData<F>,
}

impl<'a, F: Wide> Rows<'a, F> {
    fn new(data: &'a [u8], bytes: usize) -> Self {
        Self { data, bytes, format: std::marker::PhantomData }
    }

    /// Calls `each(index, address, parts of 64 weights)` for each group of a row; an incomplete last group is read from
    /// a copy padded with zeros.
    #[inline(always)]
    fn groups(&self, row: usize, mut each: impl FnMut(usize, *const u8, usize)) {
        let row = &self.data[row * self.bytes..][..self.bytes];
        let (whole, rest) = (self.bytes / group_bytes::<F>(), self.bytes % group_bytes::<F>());
        for g in 0..whole {
            each(g, row[g * group_bytes::<F>()..].as_ptr(), 4);
        }
        if rest > 0 {
            let mut copy = [0u8; MOST_BYTES];
            copy[..rest].copy_from_slice(&row[whole * group_bytes::<F>()..]);
            each(whole, copy.as_ptr(), (rest / F::BYTES).div_ceil(2));
        }
    }
}

/// Returns, for 64 weights, the lane of the scales that belongs to each lane of products.
#[inline(always)]
unsafe fn spread<F: Format>(z: usize) -> __m512i {
    // SAFETY: the caller's processor has AVX-512.
    unsafe {
        let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let (shift, step) = if F::SUB == 16 { (2, 4) } else { (3, 2) };
        _mm512_add_epi32(
            _mm512_srlv_epi32(lane, _mm512_set1_epi32(shift)),
            _mm512_set1_epi32(z as i32 * step),
        )
    }
}

/// Returns the scales of the activations, one lane per scale of the weights.
#[inline(always)]
unsafe fn scales_of<F: Format>(x: &Group) -> __m512 {
    // SAFETY: reads whole arrays of `x`; the caller's processor has AVX-512.
    unsafe {
        let scales = _mm512_zextps256_ps512(_mm256_load_ps(x.scale.as_ptr()));
        if F::SUB == 16 {
            let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            _mm512_permutexvar_ps(twice, scales)
        } else {
            scales
        }
    }
}

#[inline(always)]
unsafe fn sums_of<F: Format>(x: &Group) -> __m512 {
    // SAFETY: reads whole arrays of `x`; the caller's processor has AVX-512.
    unsafe {
        if F::SUB == 16 {
            _mm512_loadu_ps(x.sums16.as_ptr())
        } else {
            _mm512_zextps256_ps512(_mm256_load_ps(x.sums32.as_ptr()))
        }
    }
}

/// Returns the factor of the activation sums: the minimum less the scaled zero point.
#[inline(always)]
unsafe fn offset<F: Format>(scale: __m512, min: __m512) -> __m512 {
    // SAFETY: the caller's processor has AVX-512.
    unsafe {
        if F::ZERO == 0 { min } else { _mm512_fnmadd_ps(_mm512_set1_ps(f32::from(F::ZERO)), scale, min) }
    }
}

/// Quantizes the row `x` of activations with the same result as the portable code. The last group is padded with zeros;
/// `second` is empty or as long as `first`.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn quantize_row(x: &[f32], first: &mut [Group], second: &mut [Group]) {
    for (g, (x, first)) in x.chunks(256).zip(first).enumerate() {
        // SAFETY: reads of `x` are masked to its length; stores are into the arrays of the groups.
        unsafe {
            let line = |i: usize| {
                let left = x.len().saturating_sub(16 * i).min(16);
                _mm512_maskz_loadu_ps((0xffffu32 >> (16 - left)) as u16, x.as_ptr().wrapping_add(16 * i))
            };
            let mut x = [_mm512_setzero_ps(); 16];
            let (mut tops, mut special) = ([_mm512_setzero_ps(); 8], 0u32);
            for part in 0..8 {
                let (a, b) = (line(2 * part), line(2 * part + 1));
                (x[2 * part], x[2 * part + 1]) = (a, b);
                tops[part] = _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b));
                // NaN and infinity must propagate.
                let lost = _mm512_fpclass_ps_mask(a, 0x99) | _mm512_fpclass_ps_mask(b, 0x99);
                special |= u32::from(lost != 0) << part;
            }
            let top = most_of_each(tops);
            let scale = _mm256_div_ps(top, _mm256_set1_ps(127.0));
            let scale = _mm256_mask_mov_ps(scale, special as u8, _mm256_set1_ps(f32::NAN));
            let large = _mm256_cmp_ps_mask(top, _mm256_set1_ps(1e-33), _CMP_GT_OQ);
            let inverse = _mm256_maskz_div_ps(large, _mm256_set1_ps(127.0), top);
            round(&x, scale, inverse, first);
            if let Some(second) = second.get_mut(g) {
                let wide = _mm512_zextps256_ps512(scale);
                for (i, x) in x.iter_mut().enumerate() {
                    let q = _mm512_cvtepi8_epi32(_mm_load_si128(first.q.as_ptr().add(16 * i).cast()));
                    let scale = _mm512_permutexvar_ps(_mm512_set1_epi32(i as i32 / 2), wide);
                    *x = _mm512_fnmadd_ps(scale, _mm512_cvtepi32_ps(q), *x);
                }
                let steps = _mm256_set1_ps(SECOND);
                round(&x, _mm256_div_ps(scale, steps), _mm256_mul_ps(inverse, steps), second);
            }
        }
    }
}

/// Quantizes `x` with `scale`, one per two vectors, to `group`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn round(x: &[__m512; 16], scale: __m256, inverse: __m256, group: &mut Group) {
    // SAFETY: the caller's processor has AVX-512; stores are into the arrays of the group, which are aligned.
    unsafe {
        let inverse = _mm512_zextps256_ps512(inverse);
        for (i, x) in x.iter().enumerate() {
            let inverse = _mm512_permutexvar_ps(_mm512_set1_epi32(i as i32 / 2), inverse);
            let q = _mm512_cvtps_epi32(_mm512_mul_ps(*x, inverse));
            let q = _mm512_cvtsepi32_epi8(_mm512_max_epi32(q, _mm512_set1_epi32(-127)));
            _mm_store_si128(group.q.as_mut_ptr().add(16 * i).cast(), q);
        }
        // Quarter k of vector z: four partial sums of the sixteen quants number 4 z + k.
        let fours = |z: usize| {
            let q = _mm512_load_si512(group.q.as_ptr().add(64 * z).cast());
            let pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), q);
            _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))
        };
        let join = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (a, b) = (join(fours(0), fours(1)), join(fours(2), fours(3)));
        let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        // Lane 4 k + z now holds that sum.
        let turned = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let sums = _mm512_cvtepi32_ps(_mm512_permutexvar_epi32(turned, sums));
        let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        let sums = _mm512_mul_ps(sums, _mm512_permutexvar_ps(twice, _mm512_zextps256_ps512(scale)));
        _mm512_store_ps(group.sums16.as_mut_ptr(), sums);
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
        let pairs = _mm512_add_ps(sums, _mm512_permute_ps(sums, 0b10_11_00_01));
        let pairs = _mm512_castps512_ps256(_mm512_permutexvar_ps(even, pairs));
        _mm256_store_ps(group.sums32.as_mut_ptr(), pairs);
        _mm256_store_ps(group.scale.as_mut_ptr(), scale);
    }
}

/// Returns the maximum over the lanes of each vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn most_of_each(v: [__m512; 8]) -> __m256 {
    let two = |a, b| _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    // Each quarter then holds the maxima of its four lanes for each of four vectors.
    let four = |a, b, c, d| {
        let (low, high) = (_mm512_castps_pd(two(a, b)), _mm512_castps_pd(two(c, d)));
        let low_halves = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        _mm512_max_ps(low_halves, _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)))
    };
    let (a, b) = (four(v[0], v[1], v[2], v[3]), four(v[4], v[5], v[6], v[7]));
    let halves = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    let both = _mm512_max_ps(halves, _mm512_shuffle_f32x4(halves, halves, 0b10_11_00_01));
    _mm512_castps512_ps256(_mm512_shuffle_f32x4(both, both, 0b10_10_10_00))
}

/// Number of outputs whose lanes are summed together.
const AT_ONCE: usize = 4;

/// `y[r][o] = x[r] · weights[first + o]` for `R` rows of `x`, each the sum of `T` terms, and as many outputs as `y`
/// holds, row by row.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI; each term has the groups of a row of weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn dots<F: Wide, const R: usize, const T: usize>(
    data: &[u8],
    row_bytes: usize,
    first: usize,
    x: [[&[Group]; T]; R],
    y: &mut [&mut [f32]; R],
) {
    let (whole, rest) = (row_bytes / group_bytes::<F>(), row_bytes % group_bytes::<F>());
    let outputs = y[0].len();
    let mut o = 0;
    while o < outputs {
        let count = (outputs - o).min(AT_ONCE);
        let mut sums = [[_mm512_setzero_ps(); AT_ONCE]; R];
        for i in 0..count {
            let row = &data[(first + o + i) * row_bytes..][..row_bytes];
            let mut totals = [[_mm512_setzero_ps(); 2]; R];
            for g in 0..whole {
                // SAFETY: the groups are whole, and `x` has as many.
                unsafe {
                    add_group::<F, R, T>(row.as_ptr().add(g * group_bytes::<F>()), g, 4, x, &mut totals)
                }
            }
            if rest > 0 {
                let mut copy = [0u8; MOST_BYTES];
                copy[..rest].copy_from_slice(&row[whole * group_bytes::<F>()..]);
                let parts = (rest / F::BYTES).div_ceil(2);
                // SAFETY: the copy is as long as any group.
                unsafe { add_group::<F, R, T>(copy.as_ptr(), whole, parts, x, &mut totals) }
            }
            for r in 0..R {
                sums[r][i] = _mm512_add_ps(totals[r][0], totals[r][1]);
            }
        }
        for r in 0..R {
            // SAFETY: the processor has AVX-512.
            let joined = unsafe { Avx512::sum4(sums[r]) };
            y[r][o..o + count].copy_from_slice(&joined[..count]);
        }
        o += count;
    }
}

/// Adds the products of the first `64 * parts` weights of a group to `totals`, even and odd parts separately.
#[inline(always)]
unsafe fn add_group<F: Wide, const R: usize, const T: usize>(
    group: *const u8,
    g: usize,
    parts: usize,
    x: [[&[Group]; T]; R],
    totals: &mut [[__m512; 2]; R],
) {
    // SAFETY: the caller promises a readable group, group `g` of each term, and the processor.
    unsafe {
        let x = x.map(|terms| terms.map(|term| term.get_unchecked(g)));
        let (scale, min) = F::parameters(group);
        let offset = offset::<F>(scale, min);
        let mut scales = [scale; R];
        for r in 0..R {
            // Products are summed in units of the last term's scale, 1/256 of the previous term's.
            scales[r] = _mm512_mul_ps(scale, scales_of::<F>(x[r][T - 1]));
            for term in x[r] {
                totals[r][0] = _mm512_fmadd_ps(offset, sums_of::<F>(term), totals[r][0]);
            }
        }
        for z in 0..parts {
            let q = F::sixty_four(group, z);
            let spread = spread::<F>(z);
            for r in 0..R {
                let mut products = _mm512_setzero_si512();
                for term in x[r] {
                    let a = _mm512_load_si512(term.q.as_ptr().add(64 * z).cast());
                    products = _mm512_dpbusd_epi32(_mm512_slli_epi32(products, 8), q, a);
                }
                let scale = _mm512_permutexvar_ps(spread, scales[r]);
                totals[r][z % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, totals[r][z % 2]);
            }
        }
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

impl Line {
    const ZERO: Self = Self([0.0; 16]);
}

/// Number of outputs in a tile.
pub(super) const TILE: usize = 16 * PANELS;
const PANELS: usize = 2;
/// Number of activation rows multiplied in one pass over a tile.
const ROWS: usize = 6;

/// Number of cache lines for 64 weights of each output of a panel: quants, then scales, then offsets.
const fn lines<F: Format>() -> usize {
    16 + 2 * (64 / F::SUB)
}

/// Unpacks the outputs `first .. first + TILE` (the last one is repeated where there are fewer). For each 64 weights
/// and each panel of 16 outputs: sixteen lines of quants, four weights of each output; then the scales and the offsets
/// of each output, a line per `SUB` weights.
///
/// # Safety
/// As [`dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn pack<F: Wide>(data: &[u8], row_bytes: usize, first: usize, out: &mut Vec<Line>) {
    let rows = Rows::<F>::new(data, row_bytes);
    let outputs = data.len() / row_bytes;
    let parts = (row_bytes / F::BYTES * F::BLOCK).div_ceil(64);
    out.resize(parts * PANELS * lines::<F>(), Line::ZERO);
    for panel in 0..PANELS {
        // Written with one output per line first; then each block of sixteen lines is transposed.
        let place = |part: usize| (part * PANELS + panel) * lines::<F>();
        let groups = parts.div_ceil(4);
        let mut parameters = vec![[[Line::ZERO; 16]; 2]; groups];
        for lane in 0..16 {
            let row = (first + panel * 16 + lane).min(outputs - 1);
            rows.groups(row, |g, group, count| {
                // SAFETY: `groups` gives addresses of readable groups; every store is into one line of `out` or of
                // `parameters`.
                unsafe {
                    let (scale, min) = F::parameters(group);
                    _mm512_store_ps(parameters[g][0][lane].0.as_mut_ptr(), scale);
                    _mm512_store_ps(parameters[g][1][lane].0.as_mut_ptr(), offset::<F>(scale, min));
                    for z in 0..count {
                        let line = &mut out[place(4 * g + z) + lane];
                        _mm512_store_si512(line.0.as_mut_ptr().cast(), F::sixty_four(group, z));
                    }
                }
            });
        }
        for (g, parameters) in parameters.iter_mut().enumerate() {
            let subs = 64 / F::SUB;
            for (kind, lines_of_kind) in parameters.iter_mut().enumerate() {
                // SAFETY: the processor is as this function's caller promises.
                unsafe { transpose(lines_of_kind) };
                for z in 0..4.min(parts - 4 * g) {
                    let at = place(4 * g + z) + 16 + kind * subs;
                    out[at..at + subs].copy_from_slice(&lines_of_kind[z * subs..][..subs]);
                }
            }
        }
        for part in 0..parts {
            if let Ok(block) = (&mut out[place(part)..place(part) + 16]).try_into() {
                // SAFETY: as above.
                unsafe { transpose(block) };
            }
        }
    }
}

/// Transposes a block of 16 by 16 numbers of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose(block: &mut [Line; 16]) {
    // SAFETY: loads and stores are of whole lines.
    unsafe {
        let load = |i: usize| _mm512_load_ps(block[i].0.as_ptr());
        let mut a: [__m512; 16] = std::array::from_fn(load);
        // Blocks of 2, of 4 (inside each quarter of a vector), then quarters among vectors.
        let mut b = a;
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        for i in 0..4 {
            let d = |j: usize| _mm512_castps_pd(b[4 * i + j]);
            a[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(0), d(2)));
            a[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(0), d(2)));
            a[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(1), d(3)));
            a[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(1), d(3)));
        }
        // a[4 i + j] holds, in quarter k, column 4 k + j of rows 4 i .. 4 i + 4.
        for j in 0..4 {
            let (p, q) = (a[j], a[4 + j]);
            let (r, s) = (a[8 + j], a[12 + j]);
            let (low, high) = (_mm512_shuffle_f32x4(p, q, 0x88), _mm512_shuffle_f32x4(p, q, 0xdd));
            let (low2, high2) = (_mm512_shuffle_f32x4(r, s, 0x88), _mm512_shuffle_f32x4(r, s, 0xdd));
            b[j] = _mm512_shuffle_f32x4(low, low2, 0x88);
            b[8 + j] = _mm512_shuffle_f32x4(low, low2, 0xdd);
            b[4 + j] = _mm512_shuffle_f32x4(high, high2, 0x88);
            b[12 + j] = _mm512_shuffle_f32x4(high, high2, 0xdd);
        }
        for (line, value) in block.iter_mut().zip(b) {
            _mm512_store_ps(line.0.as_mut_ptr(), value);
        }
    }
}

/// Multiplies a packed tile with all rows of `x`, `groups` each, and calls `each(row, first output, products)` for each
/// 16 outputs.
///
/// # Safety
/// As [`dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn multiply<F: Wide>(
    tile: &[Line],
    x: &[Group],
    groups: usize,
    mut each: impl FnMut(usize, usize, &[f32; 16]),
) {
    for (block, x) in x.chunks(ROWS * groups).enumerate() {
        let row = block * ROWS;
        // SAFETY: the processor is as this function's caller promises.
        unsafe {
            match x.len() / groups {
                1 => rows_by_tile::<F, 1>(tile, x, groups, row, &mut each),
                2 => rows_by_tile::<F, 2>(tile, x, groups, row, &mut each),
                3 => rows_by_tile::<F, 3>(tile, x, groups, row, &mut each),
                4 => rows_by_tile::<F, 4>(tile, x, groups, row, &mut each),
                5 => rows_by_tile::<F, 5>(tile, x, groups, row, &mut each),
                _ => rows_by_tile::<F, ROWS>(tile, x, groups, row, &mut each),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn rows_by_tile<F: Wide, const R: usize>(
    tile: &[Line],
    x: &[Group],
    groups: usize,
    first: usize,
    each: &mut impl FnMut(usize, usize, &[f32; 16]),
) {
    let mut totals = [[_mm512_setzero_ps(); R]; PANELS];
    let subs = 64 / F::SUB;
    assert!(x.len() >= R * groups && tile.len().div_ceil(4 * PANELS * lines::<F>()) <= groups);
    for (part, tile) in tile.chunks_exact(PANELS * lines::<F>()).enumerate() {
        let (g, z) = (part / 4, part % 4);
        // SAFETY: by the assertion, `g` is a group of each row; `z < 4`, `sub < subs` and `k < SUB / 4` keep every
        // read inside that group or the lines of this part.
        unsafe {
            let x: [&Group; R] = std::array::from_fn(|r| x.get_unchecked(r * groups + g));
            let tile = tile.as_ptr();
            for sub in 0..subs {
                let mut products = [[_mm512_setzero_si512(); R]; PANELS];
                for k in 0..F::SUB / 4 {
                    let line = sub * F::SUB / 4 + k;
                    let q: [__m512i; PANELS] =
                        std::array::from_fn(|p| _mm512_load_si512(tile.add(p * lines::<F>() + line).cast()));
                    for r in 0..R {
                        let a = x[r].q.as_ptr().add(64 * z + 4 * line).cast::<i32>().read();
                        let a = _mm512_set1_epi32(a);
                        for p in 0..PANELS {
                            products[p][r] = _mm512_dpbusd_epi32(products[p][r], q[p], a);
                        }
                    }
                }
                for p in 0..PANELS {
                    let at = tile.add(p * lines::<F>() + 16 + sub);
                    let (scale, offset) = (_mm512_load_ps(at.cast()), _mm512_load_ps(at.add(subs).cast()));
                    for r in 0..R {
                        let (of_x, sum) = if F::SUB == 16 {
                            (
                                x[r].scale.get_unchecked(2 * z + sub / 2),
                                x[r].sums16.get_unchecked(4 * z + sub),
                            )
                        } else {
                            (x[r].scale.get_unchecked(2 * z + sub), x[r].sums32.get_unchecked(2 * z + sub))
                        };
                        let product = _mm512_mul_ps(_mm512_cvtepi32_ps(products[p][r]), scale);
                        let total = _mm512_fmadd_ps(product, _mm512_set1_ps(*of_x), totals[p][r]);
                        totals[p][r] = _mm512_fmadd_ps(offset, _mm512_set1_ps(*sum), total);
                    }
                }
            }
        }
    }
    for (p, totals) in totals.iter().enumerate() {
        for (r, total) in totals.iter().enumerate() {
            let mut line = Line::ZERO;
            // SAFETY: one whole line.
            unsafe { _mm512_store_ps(line.0.as_mut_ptr(), *total) };
            each(first + r, 16 * p, &line.0);
        }
    }
}
