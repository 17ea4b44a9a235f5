//! Activations in 8 bits, or in twice 8: one scale for each 32, and the sums that offsets and minima of the weights
//! multiply.

use super::super::pool::parallel_for;
use super::super::versions::{Shared, versioned};

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
    const ZERO: Self = Self { q: [0; 256], scale: [0.0; 8], sums32: [0.0; 8], sums16: [0.0; 16] };
}

/// Writes `rows` rows of `x` as groups, `width.div_ceil(256)` each; with two `terms` each row becomes two whose sum it
/// is, the second what the first one's rounding left over.
pub(super) fn quantize(x: &[f32], rows: usize, width: usize, terms: usize, out: &mut Vec<Group>) {
    let groups = width.div_ceil(256);
    out.resize(terms * rows * groups, Group::ZERO);
    let base = Shared(out.as_mut_ptr());
    let rows_a_task = (16 * 1024 / width.max(1)).max(1);
    parallel_for(rows.div_ceil(rows_a_task), |task| {
        for row in task * rows_a_task..rows.min((task + 1) * rows_a_task) {
            // SAFETY: each row has its own groups inside `out`, which stays borrowed until all tasks are done.
            let out = unsafe {
                std::slice::from_raw_parts_mut(base.get().add(terms * row * groups), terms * groups)
            };
            let (first, second) = out.split_at_mut(groups);
            quantize_row(&x[row * width..][..width], first, second);
        }
    });
}

versioned! {
    fn quantize_row(x: &[f32], first: &mut [Group], second: &mut [Group]) {
        for (g, (x, group)) in x.chunks(256).zip(first).enumerate() {
            let mut padded = [0.0; 256];
            let x = x.first_chunk().unwrap_or_else(|| {
                padded[..x.len()].copy_from_slice(x);
                &padded
            });
            quantize_group(x, group);
            if let Some(second) = second.get_mut(g) {
                quantize_group(&left_over(x, group), second);
            }
        }
    }
}

#[inline(always)]
fn left_over(x: &[f32; 256], group: &Group) -> [f32; 256] {
    let mut left = *x;
    for (part, left) in left.chunks_exact_mut(32).enumerate() {
        for (left, &q) in left.iter_mut().zip(&group.q[32 * part..]) {
            *left -= group.scale[part] * f32::from(q);
        }
    }
    left
}

#[inline(always)]
fn quantize_group(x: &[f32; 256], group: &mut Group) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    for part in 0..8 {
        let x: &[f32; 32] = x[32 * part..][..32].first_chunk().expect("32 of 256");
        let (mut top, mut poison) = ([0f32; 8], [0f32; 8]);
        for i in 0..32 {
            let a = x[i].abs();
            top[i % 8] = if a > top[i % 8] { a } else { top[i % 8] };
            poison[i % 8] += x[i] * 0.0; // NaN if an activation is NaN or infinite, which must not be lost
        }
        let mut width = 4;
        while width > 0 {
            for i in 0..width {
                top[i] = if top[i + width] > top[i] { top[i + width] } else { top[i] };
                poison[i] += poison[i + width];
            }
            width /= 2;
        }
        let scale = top[0] / 127.0 + poison[0];
        let inverse = if top[0] > 1e-35 { 127.0 / top[0] } else { 0.0 };
        let mut q = [0i32; 32];
        for i in 0..32 {
            q[i] = (x[i] * inverse + ROUND).to_bits() as i8 as i32;
        }
        for (byte, &q) in group.q[32 * part..].iter_mut().zip(&q) {
            *byte = q as i8;
        }
        let (first, second): (i32, i32) = (q[..16].iter().sum(), q[16..].iter().sum());
        group.scale[part] = scale;
        group.sums32[part] = scale * (first + second) as f32;
        group.sums16[2 * part] = scale * first as f32;
        group.sums16[2 * part + 1] = scale * second as f32;
    }
}
