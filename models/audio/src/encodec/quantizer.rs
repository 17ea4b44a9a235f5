//! Residual vector quantization: each codebook quantizes the residual of the previous ones (section 3.2).

use candle_core::{D, DType, Device, Tensor};
use fauna_shared::Result;
use fauna_shared::weights::Weights;

use super::config::Config;
use crate::spectra::{mean_square, straight_through};

/// The residual vector quantizer, the coarsest codebook first.
pub(super) struct Quantizer {
    layers: Vec<Codebook>,
}

struct Codebook {
    /// Embeddings, `(codebook_size, hidden_size)`.
    embed: Tensor,
}

impl Quantizer {
    pub fn load(c: &Config, w: &Weights) -> Result<Self> {
        let codebook = |q: usize| -> Result<Codebook> {
            let w = w.at_index("layers", q).at("codebook");
            // Codebooks are moving averages of what they encode, and not trained by gradients.
            Ok(Codebook { embed: w.tensor("embed", &[c.codebook_size, c.hidden_size])?.detach() })
        };
        Ok(Self { layers: (0..c.num_quantizers()).map(codebook).collect::<Result<_>>()? })
    }

    /// The device of the codebooks.
    pub fn device(&self) -> &Device {
        self.layers.first().map_or(&Device::Cpu, |layer| layer.embed.device())
    }

    /// Quantizes `x`, `(batch, frames, hidden_size)`, with the first `quantizers` codebooks: `(batch, quantizers,
    /// frames)` of u32.
    pub fn encode(&self, x: &Tensor, quantizers: usize) -> Result<Tensor> {
        let (batch, frames, width) = x.dims3()?;
        let mut residual = x.reshape((batch * frames, width))?.to_dtype(DType::F32)?;
        let mut codes = Vec::new();
        for layer in self.layers.iter().take(quantizers) {
            let embed = layer.embed.to_dtype(DType::F32)?;
            let nearest = nearest(&residual, &embed)?;
            residual = (residual - embed.index_select(&nearest, 0)?)?;
            codes.push(nearest.reshape((batch, frames))?);
        }
        Ok(Tensor::stack(&codes, 1)?)
    }

    /// Quantizes `x`, `(batch, frames, hidden_size)`, for training: the embeddings with the gradient of `x`, and the
    /// commitment loss: the mean over the codebooks of the mean squared distance of each residual to its embedding.
    pub fn learn(&self, x: &Tensor, quantizers: usize) -> Result<(Tensor, Tensor)> {
        let (batch, frames, width) = x.dims3()?;
        let states = x.to_dtype(DType::F32)?.reshape((batch * frames, width))?;
        let (mut residual, mut sum, mut distances) = (states.clone(), states.zeros_like()?, Vec::new());
        for layer in self.layers.iter().take(quantizers) {
            let embed = layer.embed.to_dtype(DType::F32)?;
            let entries = embed.index_select(&nearest(&residual.detach(), &embed)?, 0)?;
            distances.push(mean_square(&residual, &entries)?);
            residual = (residual - &entries)?;
            sum = (sum + entries)?;
        }
        let commitment = Tensor::stack(&distances, 0)?.mean_all()?;
        let quantized = straight_through(&states, &sum)?.reshape((batch, frames, width))?;
        Ok((quantized.to_dtype(x.dtype())?, commitment))
    }

    /// Sums the embeddings of `codes`, `(batch, quantizers, frames)` of u32: `(batch, frames, hidden_size)`.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let (batch, quantizers, frames) = codes.dims3()?;
        let mut sum: Option<Tensor> = None;
        for (q, layer) in self.layers.iter().take(quantizers).enumerate() {
            let entries = layer.embed.index_select(&codes.narrow(1, q, 1)?.flatten_all()?, 0)?;
            sum = Some(match sum {
                Some(sum) => (sum + entries)?,
                None => entries,
            });
        }
        let sum = sum.ok_or_else(|| fauna_shared::Error::input("the codes have no codebook"))?;
        Ok(sum.reshape((batch, frames, sum.dim(1)?))?)
    }
}

/// The index of the nearest row of `embed` for each row of `x`, the first of equals; computed in the order of the
/// reference, so that rounding breaks ties the same way.
fn nearest(x: &Tensor, embed: &Tensor) -> Result<Tensor> {
    let squares = embed.sqr()?.sum(1)?;
    let products = (x * 2.0)?.matmul(&embed.t()?)?;
    let distances = x.sqr()?.sum_keepdim(1)?.broadcast_sub(&products)?.broadcast_add(&squares)?;
    Ok(distances.argmin(D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn quantizer() -> Quantizer {
        let codebook = |rows: &[[f32; 2]; 4]| Codebook { embed: Tensor::new(rows, &Device::Cpu).unwrap() };
        Quantizer {
            layers: vec![
                codebook(&[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]]),
                codebook(&[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
            ],
        }
    }

    #[test]
    fn each_codebook_quantizes_the_residual_and_the_first_of_equals_wins() {
        let x = Tensor::new(&[[[4.9f32, 0.1], [0.2, 4.8], [-0.9, 0.0]]], &Device::Cpu).unwrap();
        let codes = quantizer().encode(&x, 2).unwrap();
        assert_eq!(codes.to_vec3::<u32>().unwrap(), [[[1, 2, 0], [1, 2, 3]]]);
        assert_eq!(quantizer().encode(&x, 1).unwrap().to_vec3::<u32>().unwrap(), [[[1, 2, 0]]]);
    }

    #[test]
    fn any_number_of_the_first_codebooks_decodes() {
        let codes = Tensor::new(&[[[1u32, 2], [1, 2]]], &Device::Cpu).unwrap();
        let sum = |codes: &Tensor| quantizer().decode(codes).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(sum(&codes), [[[5.0, 0.0], [0.0, 5.0]]]);
        assert_eq!(sum(&codes.narrow(1, 0, 1).unwrap()), [[[4.0, 0.0], [0.0, 4.0]]]);
    }
}
