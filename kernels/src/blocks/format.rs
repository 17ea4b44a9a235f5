//! Unpacking of each block format in portable Rust: the reference that the SIMD kernels must agree with.

/// A block format: `weight = (quant - ZERO) * scale + min`, with one scale and one minimum per `SUB` weights.
pub(super) trait Format {
    /// Number of weights in a block.
    const BLOCK: usize;
    /// Size of a block in bytes.
    const BYTES: usize;
    /// Zero point: the quant of the weight 0.
    const ZERO: u8;
    /// Number of weights that share a scale.
    const SUB: usize;
    /// Unpacks the `BLOCK / SUB` scales and minima.
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]);
    /// Unpacks the `BLOCK` quants.
    fn quants(block: &[u8], q: &mut [u8]);
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;
pub(super) struct Q8K;

/// Reads the float16 in the two bytes at `at`.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let sign = (bits & 0x8000) << 16;
    let rest = bits & 0x7fff;
    let magnitude = if rest >= 0x7c00 {
        f32::from_bits((rest << 13) | 0x7f80_0000)
    } else {
        // The shifted exponent is too small by 112; the product is exact, also for subnormals.
        f32::from_bits(rest << 13) * f32::from_bits((254 - 15) << 23)
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

/// Unpacks the low nibbles of all bytes, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8], q: &mut [u8]) {
    let half = bytes.len();
    for i in 0..half {
        q[i] = bytes[i] & 15;
        q[half + i] = bytes[i] >> 4;
    }
}

#[inline(always)]
fn fifth_bits(bytes: &[u8], q: &mut [u8]) {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= (((bits >> i) & 1) as u8) << 4;
    }
}

/// Unpacks the eight 6-bit scales and eight 6-bit minima in the twelve bytes of Q4_K and Q5_K.
#[inline(always)]
pub(super) fn six_bits(bytes: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let join = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
    let scales = join(a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | ((a >> 6) & 0x0303_0303) << 4);
    let minima = join(b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | ((b >> 6) & 0x0303_0303) << 4);
    (scales, minima)
}

/// Unpacks the sixteen 6-bit scales in the twelve bytes of Q3_K, with a zero point of 32.
#[inline(always)]
pub(super) fn six_bits_of_sixteen(bytes: [u8; 12]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let low = if i < 8 { bytes[i] & 15 } else { bytes[i - 8] >> 4 };
        low | ((bytes[8 + i % 4] >> (2 * (i / 4))) & 3) << 4
    })
}

#[inline(always)]
fn twelve(block: &[u8], at: usize) -> [u8; 12] {
    std::array::from_fn(|i| block[at + i])
}

macro_rules! short {
    ($name:ident, $bytes:literal, zero $zero:literal, |$block:ident, $min:ident, $q:ident| $scales:expr, $quants:expr) => {
        impl Format for $name {
            const BLOCK: usize = 32;
            const BYTES: usize = $bytes;
            const ZERO: u8 = $zero;
            const SUB: usize = 32;
            #[inline(always)]
            fn scales($block: &[u8], scale: &mut [f32], $min: &mut [f32]) {
                scale[0] = f16_at($block, 0);
                $min[0] = $scales;
            }
            #[inline(always)]
            fn quants($block: &[u8], $q: &mut [u8]) {
                $quants
            }
        }
    };
}

short!(Q4_0, 18, zero 8, |block, min, q| 0.0, nibbles(&block[2..18], q));
short!(Q4_1, 20, zero 0, |block, min, q| f16_at(block, 2), nibbles(&block[4..20], q));
short!(Q5_0, 22, zero 16, |block, min, q| 0.0, {
    nibbles(&block[6..22], q);
    fifth_bits(&block[2..6], q)
});
short!(Q5_1, 24, zero 0, |block, min, q| f16_at(block, 2), {
    nibbles(&block[8..24], q);
    fifth_bits(&block[4..8], q)
});
short!(Q8_0, 34, zero 128, |block, min, q| 0.0, {
    for i in 0..32 {
        q[i] = block[2 + i] ^ 0x80;
    }
});

/// Unpacks the scales and minima of Q4_K and Q5_K.
#[inline(always)]
fn scales_and_minima(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, minima) = six_bits(twelve(block, 4));
    for i in 0..8 {
        scale[i] = d * f32::from(scales[i]);
        min[i] = -dmin * f32::from(minima[i]);
    }
}

impl Format for Q4K {
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const ZERO: u8 = 0;
    const SUB: usize = 32;
    #[inline(always)]
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        scales_and_minima(block, scale, min);
    }
    #[inline(always)]
    fn quants(block: &[u8], q: &mut [u8]) {
        for part in 0..4 {
            nibbles(&block[16 + 32 * part..][..32], &mut q[64 * part..][..64]);
        }
    }
}

impl Format for Q5K {
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    const ZERO: u8 = 0;
    const SUB: usize = 32;
    #[inline(always)]
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        scales_and_minima(block, scale, min);
    }
    #[inline(always)]
    fn quants(block: &[u8], q: &mut [u8]) {
        let high = &block[16..48];
        for part in 0..4 {
            let q = &mut q[64 * part..][..64];
            nibbles(&block[48 + 32 * part..][..32], q);
            for i in 0..32 {
                q[i] |= ((high[i] >> (2 * part)) & 1) << 4;
                q[32 + i] |= ((high[i] >> (2 * part + 1)) & 1) << 4;
            }
        }
    }
}

impl Format for Q6K {
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    const ZERO: u8 = 32;
    const SUB: usize = 16;
    #[inline(always)]
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        let d = f16_at(block, 208);
        for i in 0..16 {
            scale[i] = d * f32::from(block[192 + i] as i8);
            min[i] = 0.0;
        }
    }
    #[inline(always)]
    fn quants(block: &[u8], q: &mut [u8]) {
        for half in 0..2 {
            let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
            let q = &mut q[128 * half..][..128];
            nibbles(low, q);
            for part in 0..4 {
                for i in 0..32 {
                    q[32 * part + i] |= ((high[i] >> (2 * part)) & 3) << 4;
                }
            }
        }
    }
}

impl Format for Q2K {
    const BLOCK: usize = 256;
    const BYTES: usize = 84;
    const ZERO: u8 = 0;
    const SUB: usize = 16;
    #[inline(always)]
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
        for i in 0..16 {
            scale[i] = d * f32::from(block[i] & 15);
            min[i] = -dmin * f32::from(block[i] >> 4);
        }
    }
    #[inline(always)]
    fn quants(block: &[u8], q: &mut [u8]) {
        two_bits(&block[16..80], q);
    }
}

/// Unpacks the 2-bit quants of Q2_K and Q3_K: each 32 bytes hold four times 32.
#[inline(always)]
fn two_bits(bytes: &[u8], q: &mut [u8]) {
    for part in 0..8 {
        for i in 0..32 {
            q[32 * part + i] = (bytes[32 * (part / 4) + i] >> (2 * (part % 4))) & 3;
        }
    }
}

impl Format for Q3K {
    const BLOCK: usize = 256;
    const BYTES: usize = 110;
    const ZERO: u8 = 4;
    const SUB: usize = 16;
    #[inline(always)]
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        let d = f16_at(block, 108);
        let scales = six_bits_of_sixteen(twelve(block, 96));
        for i in 0..16 {
            scale[i] = d * (f32::from(scales[i]) - 32.0);
            min[i] = 0.0;
        }
    }
    #[inline(always)]
    fn quants(block: &[u8], q: &mut [u8]) {
        two_bits(&block[32..96], q);
        for part in 0..8 {
            for i in 0..32 {
                q[32 * part + i] |= ((block[i] >> part) & 1) << 2;
            }
        }
    }
}

impl Format for Q8K {
    const BLOCK: usize = 256;
    const BYTES: usize = 292;
    const ZERO: u8 = 128;
    const SUB: usize = 32;
    #[inline(always)]
    fn scales(block: &[u8], scale: &mut [f32], min: &mut [f32]) {
        let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        scale[..8].fill(d);
        min[..8].fill(0.0);
    }
    #[inline(always)]
    fn quants(block: &[u8], q: &mut [u8]) {
        for i in 0..256 {
            q[i] = block[4 + i] ^ 0x80;
        }
    }
}

/// Up to 256 weights, unpacked.
#[repr(C, align(64))]
pub(super) struct Unpacked {
    pub(super) q: [u8; 256],
    pub(super) scale: [f32; 16],
    pub(super) min: [f32; 16],
}

impl Unpacked {
    pub(super) const ZERO: Self = Self { q: [0; 256], scale: [0.0; 16], min: [0.0; 16] };

    /// Unpacks the whole blocks in `bytes`, at most 256 weights; the other elements are unchanged.
    #[inline(always)]
    pub(super) fn fill<F: Format>(&mut self, bytes: &[u8]) {
        let subs = F::BLOCK / F::SUB;
        for (i, block) in bytes.chunks_exact(F::BYTES).enumerate() {
            F::scales(block, &mut self.scale[i * subs..][..subs], &mut self.min[i * subs..][..subs]);
            F::quants(block, &mut self.q[i * F::BLOCK..][..F::BLOCK]);
        }
    }
}
