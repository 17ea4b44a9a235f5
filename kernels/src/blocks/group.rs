//! How quantized activations are stored.

/// 256 activations; missing ones at the end of a row are zero.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Group {
    pub(super) q: [i8; 256],
    /// Of each 32.
    pub(super) scale: [f32; 8],
    /// `scale * sum of q`, of each 32.
    pub(super) sums32: [f32; 8],
    /// The same of each 16.
    pub(super) sums16: [f32; 16],
}

impl Group {
    pub(super) const ZERO: Self = Self { q: [0; 256], scale: [0.0; 8], sums32: [0.0; 8], sums16: [0.0; 16] };
}

/// A second term is quantized in steps of the first term's scale divided by this.
pub(super) const SECOND: f32 = 256.0;
