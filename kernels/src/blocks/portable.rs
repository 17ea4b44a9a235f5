//! Dot products in portable Rust.

use super::format::{Format, Unpacked};
use super::group::Group;

/// Dot products of one row of weights with all rows of `x`, `groups` each: `y[row] = x[row] · weights`.
pub(super) fn dots<F: Format>(weights: &[u8], x: &[Group], groups: usize, y: &mut [f32]) {
    let mut unpacked = Unpacked::ZERO;
    y.fill(0.0);
    for (g, bytes) in weights.chunks(256 / F::BLOCK * F::BYTES).enumerate() {
        if bytes.len() < 256 / F::BLOCK * F::BYTES {
            unpacked = Unpacked::ZERO;
        }
        unpacked.fill::<F>(bytes);
        for (x, y) in x.chunks_exact(groups).zip(y.iter_mut()) {
            *y += dot::<F>(&unpacked, &x[g]);
        }
    }
}

#[inline(always)]
fn dot<F: Format>(w: &Unpacked, x: &Group) -> f32 {
    let sums: &[f32] = if F::SUB == 16 { &x.sums16 } else { &x.sums32 };
    let mut total = 0.0;
    for (sub, &sum) in sums.iter().enumerate() {
        let (q, a) = (&w.q[sub * F::SUB..][..F::SUB], &x.q[sub * F::SUB..][..F::SUB]);
        let product: i32 = q.iter().zip(a).map(|(&q, &a)| i32::from(q) * i32::from(a)).sum();
        let scale = x.scale[sub * F::SUB / 32];
        total += w.scale[sub] * (scale * product as f32 - f32::from(F::ZERO) * sum) + w.min[sub] * sum;
    }
    total
}
