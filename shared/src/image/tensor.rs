//! Bicubic interpolation of float tensors, for position embeddings of another resolution.

use candle_core::{Device, Tensor};

use super::resize::cubic;
use crate::{Error, Result};

/// Resizes `x`, `(batch, rows, columns, channels)`, to `(batch, height, width, channels)`: torch's
/// `interpolate(mode="bicubic", align_corners=False)`, a cubic with a = -0.75 without antialiasing.
///
/// Computed as two matrix products, on any device and differentiable.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fauna_shared::image::tensor::bicubic;
/// let grid = Tensor::arange(0f32, 4.0, &Device::Cpu)?.reshape((1, 2, 2, 1))?;
/// let finer = bicubic(&grid, 3, 3)?.squeeze(0)?.squeeze(2)?;
/// assert!((finer.get(1)?.get(1)?.to_scalar::<f32>()? - 1.5).abs() < 1e-6); // the centre
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for a tensor of another rank or an empty size.
pub fn bicubic(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let &[batch, rows, columns, channels] = x.dims() else {
        return Err(Error::input(format!("expected (batch, height, width, channels), found {:?}", x.dims())));
    };
    if [rows, columns, height, width].contains(&0) {
        return Err(Error::input(format!("cannot resize {rows} x {columns} to {height} x {width}")));
    }
    let down = matrix(rows, height, x.device())?.to_dtype(x.dtype())?;
    let across = matrix(columns, width, x.device())?.to_dtype(x.dtype())?;
    let x = down.broadcast_matmul(&x.reshape((batch, rows, columns * channels))?)?;
    let x = across.broadcast_matmul(&x.reshape((batch * height, columns, channels))?)?;
    Ok(x.reshape((batch, height, width, channels))?)
}

/// Returns the interpolation matrix, `(to, from)`, with replicate padding.
fn matrix(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; from * to];
    let scale = from as f32 / to as f32;
    for (place, row) in weights.chunks_exact_mut(from).enumerate() {
        let centre = scale * (place as f32 + 0.5) - 0.5;
        let first = centre.floor();
        for offset in -1..=2 {
            let old = (first as isize + offset).clamp(0, from as isize - 1);
            let far = (centre - first - offset as f32).abs();
            row[old as usize] += cubic(f64::from(far), -0.75) as f32;
        }
    }
    Ok(Tensor::from_vec(weights, (to, from), device)?)
}
