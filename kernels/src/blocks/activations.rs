//! Quantization of activations to 8 bits, or to 16 as two terms of 8, with one scale per 32, and the sums that are
//! multiplied with the zero points and minima of the weights.

use super::group::{Group, SECOND};
use crate::cpu::Isa;
use crate::pool::parallel_for;
use crate::versions::{Shared, versioned};

/// Quantizes `x`, `(rows, width)`, to groups, `width.div_ceil(256)` per row. With two `terms`, each row becomes two
/// rows whose sum it is: the second is the rounding error of the first, with a scale of 1/256 of the first's.
pub(super) fn quantize(isa: Isa, x: &[f32], rows: usize, width: usize, terms: usize, out: &mut Vec<Group>) {
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
            let x = &x[row * width..][..width];
            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the guard checks the processor.
                Isa::Avx512 if isa.available() => unsafe { super::avx512::quantize_row(x, first, second) },
                _ => quantize_row(x, first, second),
            }
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
            let mut second = second.get_mut(g);
            for part in 0..8 {
                let x: &[f32; 32] = x[32 * part..][..32].first_chunk().expect("32 of 256");
                let (scale, inverse) = step(x);
                round(x, scale, inverse, part, group);
                if let Some(second) = &mut second {
                    let left = std::array::from_fn(|i| x[i] - scale * f32::from(group.q[32 * part + i]));
                    round(&left, scale / SECOND, inverse * SECOND, part, second);
                }
            }
        }
    }
}

/// Returns the scale with which the largest magnitude of `x` becomes 127, and its inverse. The scale is NaN if `x` is
/// not all finite.
#[inline(always)]
fn step(x: &[f32; 32]) -> (f32, f32) {
    let (mut top, mut poison) = ([0f32; 8], [0f32; 8]);
    for i in 0..32 {
        let a = x[i].abs();
        top[i % 8] = if a > top[i % 8] { a } else { top[i % 8] };
        poison[i % 8] += x[i] * 0.0; // NaN if an activation is NaN or infinite: must propagate
    }
    let mut width = 4;
    while width > 0 {
        for i in 0..width {
            top[i] = if top[i + width] > top[i] { top[i + width] } else { top[i] };
            poison[i] += poison[i + width];
        }
        width /= 2;
    }
    (top[0] / 127.0 + poison[0], if top[0] > 1e-33 { 127.0 / top[0] } else { 0.0 })
}

/// Quantizes `x` with `scale` to the 32 elements `part` of `group`.
#[inline(always)]
fn round(x: &[f32; 32], scale: f32, inverse: f32, part: usize, group: &mut Group) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    let mut q = [0i32; 32];
    for i in 0..32 {
        let steps = x[i] * inverse;
        let steps = if steps < 127.0 { steps } else { 127.0 };
        let steps = if steps > -127.0 { steps } else { -127.0 };
        q[i] = (steps + ROUND).to_bits() as i8 as i32;
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
