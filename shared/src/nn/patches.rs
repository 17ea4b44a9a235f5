//! Patch embedding of images.

use candle_core::{Device, Tensor};

use super::{Linear, host};
use crate::kernels::memory;
use crate::weights::Weights;
use crate::{Error, ErrorKind, Result};

/// Patch embedding of a vision transformer: a linear layer over each patch of an image, the same as a convolution whose
/// stride is its kernel size (Dosovitskiy et al. 2020).
#[derive(Debug, Clone)]
pub struct Patches {
    map: Linear,
    channels: usize,
    size: usize,
}

impl Patches {
    /// Embeds the patches of `pictures`, `(batch, channels, height, width)`. Returns `(batch, patches, outputs)`, row
    /// by row. Incomplete patches at the right and bottom are ignored.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for another number of channels, or images smaller than a patch.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pictures.dims4()?;
        let (size, (rows, columns)) = (self.size, self.grid(height, width));
        if channels != self.channels || rows * columns == 0 {
            return Err(Error::new(
                ErrorKind::Input,
                format!(
                    "images of shape {:?}, expected {} channels and at least {size} by {size} pixels",
                    pictures.dims(),
                    self.channels
                ),
            ));
        }
        let shape = (batch, rows * columns, channels * size * size);
        if !host::serves(pictures) {
            let seen = pictures.narrow(2, 0, rows * size)?.narrow(3, 0, columns * size)?;
            let cut = seen.reshape((batch * channels, rows, size, columns, size))?;
            let cut = cut.reshape(vec![batch, channels, rows, size, columns, size])?;
            return self.map.forward(&cut.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?.reshape(shape)?);
        }
        let mut patches = memory::zeros(batch * rows * columns * channels * size * size);
        host::read(pictures, |pictures| {
            let mut lines = patches.chunks_exact_mut(size);
            for picture in pictures.chunks_exact(channels * height * width) {
                for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                    for plane in picture.chunks_exact(height * width) {
                        let from = plane[row * size * width..].chunks(width);
                        for (line, from) in lines.by_ref().take(size).zip(from) {
                            line.copy_from_slice(&from[column * size..][..size]);
                        }
                    }
                }
            }
        })?;
        self.map.forward(&Tensor::from_vec(patches, shape, &Device::Cpu)?)
    }

    /// Returns the number of rows and columns of patches in an image of `height` by `width` pixels.
    pub fn grid(&self, height: usize, width: usize) -> (usize, usize) {
        (height / self.size, width / self.size)
    }
}

impl Weights {
    /// Loads the patch embedding `name` with patches of `size` by `size` pixels: `weight` of
    /// `[outputs, channels, size, size]`, and `bias` of `[outputs]` if `bias`. It is never quantized.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if `channels` or `size` is 0.
    pub fn patches(
        &self,
        name: &str,
        (channels, size): (usize, usize),
        outputs: usize,
        bias: bool,
    ) -> Result<Patches> {
        if channels == 0 || size == 0 {
            let message = format!("patches of {size} by {size} pixels in {channels} channels");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let here = self.at(name);
        let weight = here.unfolded("weight", &[outputs, channels, size, size])?;
        let bias = bias.then(|| here.tensor("bias", &[outputs])).transpose()?;
        Ok(Patches { map: Linear::new(weight, bias), channels, size })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::runtime::Runtime;

    #[test]
    fn kernel_and_candle_agree_with_a_convolution() {
        let weights = Weights::seeded(3, Runtime::cpu());
        let patches = weights.patches("p", (3, 4), 5, true).unwrap();
        let weight = weights.tensor("p.weight", &[5, 3, 4, 4]).unwrap();
        let bias = weights.tensor("p.bias", &[5]).unwrap();
        // The last column and the last two rows are incomplete patches.
        let pictures = Tensor::randn(0f32, 1.0, (2, 3, 10, 13), &Device::Cpu).unwrap();
        let wanted = pictures.conv2d(&weight, 0, 4, 1, 1).unwrap().flatten_from(2).unwrap();
        let wanted = wanted.transpose(1, 2).unwrap().broadcast_add(&bias).unwrap();
        let var = Var::from_tensor(&pictures).unwrap();
        for pictures in [&pictures, var.as_tensor()] {
            let found = patches.forward(pictures).unwrap();
            assert_eq!(found.dims(), [2, 6, 5]);
            let off = (found - &wanted).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-5);
        }
    }

    #[test]
    fn an_image_smaller_than_a_patch_is_an_error() {
        let patches = Weights::seeded(3, Runtime::cpu()).patches("p", (3, 4), 5, false).unwrap();
        for shape in [(1, 3, 3, 9), (1, 1, 8, 8)] {
            let pictures = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            assert_eq!(patches.forward(&pictures).unwrap_err().kind(), ErrorKind::Input);
        }
    }
}
