//! Storage of quantized activations.

/// 256 quantized activations; the last group of a row is padded with zeros.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Group {
    pub(super) q: [i8; 256],
    /// Scale of each 32.
    pub(super) scale: [f32; 8],
    /// `scale * sum of q` of each 32.
    pub(super) sums32: [f32; 8],
    /// `scale * sum of q` of each 16.
    pub(super) sums16: [f32; 16],
}

impl Group {
    pub(super) const ZERO: Self = Self { q: [0; 256], scale: [0.0; 8], sums32: [0.0; 8], sums16: [0.0; 16] };
}

/// Ratio of the first term's scale to the second's.
pub(super) const SECOND: f32 = 256.0;
