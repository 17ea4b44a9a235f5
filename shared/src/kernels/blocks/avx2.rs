//! Products with AVX2: quants are unpacked by the plain code, which the compiler vectorises, and multiplied here.

use std::arch::x86_64::*;

use super::activations::Group;
use super::format::{Format, Unpacked};

/// As [`portable::dots`](super::portable::dots).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dots<F: Format>(weights: &[u8], x: &[Group], groups: usize, y: &mut [f32]) {
    let size = 256 / F::BLOCK * F::BYTES;
    let mut unpacked = Unpacked::ZERO;
    y.fill(0.0);
    for (g, bytes) in weights.chunks(size).enumerate() {
        if bytes.len() < size {
            unpacked = Unpacked::ZERO;
        }
        unpacked.fill::<F>(bytes);
        let parts = (bytes.len() / F::BYTES * F::BLOCK).div_ceil(32);
        for (x, y) in x.chunks_exact(groups).zip(y.iter_mut()) {
            *y += dot::<F>(&unpacked, &x[g], parts);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot<F: Format>(w: &Unpacked, x: &Group, parts: usize) -> f32 {
    // SAFETY: all pointers are to whole vectors inside the arrays of `w` and `x`: `part` is below 8.
    unsafe {
        let zero = f32::from(F::ZERO);
        let mut total = _mm256_setzero_ps();
        for sub in 0..256 / F::SUB / 8 {
            let sums = if F::SUB == 16 { x.sums16.as_ptr() } else { x.sums32.as_ptr() }.add(8 * sub);
            let (scale, min) = (w.scale.as_ptr().add(8 * sub), w.min.as_ptr().add(8 * sub));
            let offset = _mm256_fnmadd_ps(_mm256_set1_ps(zero), _mm256_loadu_ps(scale), _mm256_loadu_ps(min));
            total = _mm256_fmadd_ps(offset, _mm256_loadu_ps(sums), total);
        }
        for part in 0..parts.min(8) {
            let q = _mm256_load_si256(w.q.as_ptr().add(32 * part).cast());
            let a = _mm256_load_si256(x.q.as_ptr().add(32 * part).cast());
            let ones = _mm256_set1_epi16(1);
            let product = if F::ZERO == 128 {
                // Sums of two products of unsigned bytes up to 255 would not fit 16 bits: multiply the low seven
                // bits, and the eighth apart.
                let low = _mm256_maddubs_epi16(_mm256_and_si256(q, _mm256_set1_epi8(0x7f)), a);
                let top =
                    _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(q, 7), _mm256_set1_epi8(1)), a);
                let low = _mm256_madd_epi16(low, ones);
                _mm256_add_epi32(low, _mm256_madd_epi16(top, _mm256_set1_epi16(128)))
            } else {
                _mm256_madd_epi16(_mm256_maddubs_epi16(q, a), ones)
            };
            let scale = if F::SUB == 16 {
                let (first, second) = (w.scale[2 * part], w.scale[2 * part + 1]);
                _mm256_insertf128_ps(_mm256_set1_ps(first), _mm_set1_ps(second), 1)
            } else {
                _mm256_set1_ps(w.scale[part])
            };
            let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x.scale[part]));
            total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, total);
        }
        let half = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
        let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)))
    }
}
