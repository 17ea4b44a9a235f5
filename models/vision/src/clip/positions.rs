//! Interpolation of learned position embeddings to another grid of patches.

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::image::tensor::bicubic;

/// `positions`, `(side * side, width)`, of a grid of `side` by `side` patches, as they are on one of `rows` by
/// `columns`, by torch's [`bicubic`]. Gives `(rows * columns, width)`.
pub fn interpolate_pos_encoding(
    positions: &Tensor,
    side: usize,
    (rows, columns): (usize, usize),
) -> Result<Tensor> {
    if (rows, columns) == (side, side) {
        return Ok(positions.clone());
    }
    let width = positions.dim(1)?;
    let grid = positions.reshape((1, side, side, width))?;
    Ok(bicubic(&grid, rows, columns)?.reshape((rows * columns, width))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn equal_positions_stay_equal_on_every_grid() {
        for (side, grid) in [(7, (9, 4)), (9, (7, 7)), (3, (30, 2)), (1, (4, 5))] {
            let positions = Tensor::ones((side * side, 2), DType::F32, &Device::Cpu).unwrap();
            let other = interpolate_pos_encoding(&positions, side, grid).unwrap();
            assert_eq!(other.dims(), [grid.0 * grid.1, 2]);
            for value in other.flatten_all().unwrap().to_vec1::<f32>().unwrap() {
                assert!((value - 1.0).abs() < 1e-5, "{side} to {grid:?}: {value}");
            }
        }
    }
}
