//! Interpolation of learned position embeddings to another grid of patches.

use candle_core::Tensor;
use fauna_shared::Result;

/// The coefficient of torch's bicubic kernel.
const A: f64 = -0.75;

/// Interpolates position embeddings, `(side * side, hidden_size)`, from a grid of `side` by `side` patches to one of
/// `rows` by `columns`, `(rows * columns, hidden_size)`: bicubic, without antialiasing, edges replicated (torch's
/// `interpolate` with `align_corners=False`).
pub fn interpolate_pos_encoding(
    positions: &Tensor,
    side: usize,
    (rows, columns): (usize, usize),
) -> Result<Tensor> {
    if (rows, columns) == (side, side) {
        return Ok(positions.clone());
    }
    let width = positions.dim(1)?;
    let along = |to: usize| -> Result<Tensor> {
        Ok(Tensor::from_vec(bicubic_weights(side, to), (to, side), positions.device())?
            .to_dtype(positions.dtype())?)
    };
    // Down each column of the grid, then along each row.
    let down = along(rows)?.matmul(&positions.reshape((side, side * width))?)?;
    let down = down.reshape((rows, side, width))?;
    let across = along(columns)?.broadcast_left(rows)?.contiguous()?.matmul(&down)?;
    Ok(across.reshape((rows * columns, width))?)
}

/// The bicubic weights from `from` points to `to` points, `(to, from)`.
fn bicubic_weights(from: usize, to: usize) -> Vec<f32> {
    let mut weights = vec![0f32; to * from];
    let step = from as f64 / to as f64;
    for (i, row) in weights.chunks_exact_mut(from.max(1)).enumerate() {
        let at = (i as f64 + 0.5) * step - 0.5;
        for tap in -1..3 {
            let place = at.floor() + f64::from(tap);
            let distance = (at - place).abs();
            let weight = match distance {
                x if x <= 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
                _ => 0.0,
            };
            row[place.clamp(0.0, (from - 1) as f64) as usize] += weight as f32;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_every_point_sum_to_one() {
        for (from, to) in [(7, 9), (9, 7), (3, 30), (1, 4)] {
            for row in bicubic_weights(from, to).chunks_exact(from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{from} to {to}: {row:?}");
            }
        }
    }

    #[test]
    fn a_grid_of_the_same_size_is_unchanged() {
        assert_eq!(bicubic_weights(2, 2), [1.0, 0.0, 0.0, 1.0]);
    }
}
