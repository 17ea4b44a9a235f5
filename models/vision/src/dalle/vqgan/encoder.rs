//! The encoder of a VQGAN, pixels to codes.

use candle_core::{D, Tensor};
use fauna_shared::nn::{Activation, Conv2d, Conv2dOptions, Embedding, GroupNorm, softmax};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

use super::{AttnBlock, Config, GROUPS, ResnetBlock};

/// What keeps logarithms of probabilities finite, as in the loss of MaskGIT.
const EPS: f64 = 1e-5;

/// The encoder, with the projection to the dimension of the codes.
pub(super) struct Encoder {
    conv_in: Conv2d,
    /// From the highest resolution to the lowest.
    down: Vec<Level>,
    mid: (ResnetBlock, AttnBlock, ResnetBlock),
    norm_out: GroupNorm,
    conv_out: Conv2d,
    quant_conv: Conv2d,
    scale: usize,
}

/// The blocks of one resolution, and the convolution that halves it.
struct Level {
    blocks: Vec<(ResnetBlock, Option<AttnBlock>)>,
    downsample: Option<Conv2d>,
}

impl Encoder {
    /// Loads `encoder` and `quant_conv`.
    pub(super) fn load(c: &Config, w: &Weights) -> Result<Self> {
        if c.double_z {
            return Err(Error::unsupported("double_z is true: the encoder of a VAE without a codebook"));
        }
        let (inner, levels) = (w.at("encoder"), c.ch_mult.len());
        let mut width = c.ch;
        let conv_in = inner.conv2d("conv_in", 3, width, Conv2dOptions::new(3).same())?;
        let mut down = Vec::with_capacity(levels);
        for level in 0..levels {
            down.push(Level::load(c, level, &mut width, &inner.at_index("down", level))?);
        }
        let mid = inner.at("mid");
        Ok(Self {
            conv_in,
            down,
            mid: (
                ResnetBlock::load(c, width, width, &mid.at("block_1"))?,
                AttnBlock::load(c, width, &mid.at("attn_1"))?,
                ResnetBlock::load(c, width, width, &mid.at("block_2"))?,
            ),
            norm_out: inner.group_norm("norm_out", GROUPS, width, c.norm_eps)?,
            conv_out: inner.conv2d("conv_out", width, c.z_channels, Conv2dOptions::new(3).same())?,
            quant_conv: w.conv2d("quant_conv", c.z_channels, c.embed_dim, Conv2dOptions::new(1))?,
            scale: c.scale(),
        })
    }

    /// The latents, `(batch, height / scale, width / scale, embed_dim)`, of `pixels`, `(batch, height, width, 3)` in 0 to
    /// 1, before they are quantized.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (_, height, width, channels) = pixels.dims4()?;
        let scale = self.scale;
        if channels != 3 || height == 0 || width == 0 || height % scale != 0 || width % scale != 0 {
            return Err(Error::input(format!(
                "an image of {height} by {width} pixels and {channels} channels"
            ))
            .hint(format!("height and width must be multiples of {scale}, and the channels 3")));
        }
        let mut x = self.conv_in.forward(pixels)?;
        for level in &self.down {
            x = level.forward(x)?;
        }
        x = self.mid.0.forward(&x)?;
        x = self.mid.1.forward(&x)?;
        x = self.mid.2.forward(&x)?;
        self.quant_conv.forward(&self.conv_out.forward(&self.norm_out.forward_then(&x, Activation::Silu)?)?)
    }
}

impl Level {
    /// Loads a level; `width` is the number of input channels, and becomes that of its outputs.
    fn load(c: &Config, level: usize, width: &mut usize, w: &Weights) -> Result<Self> {
        let outputs = c.ch * c.ch_mult[level];
        let mut blocks = Vec::new();
        for i in 0..c.num_res_blocks {
            let block = ResnetBlock::load(c, *width, outputs, &w.at_index("block", i))?;
            *width = outputs;
            let attn = match c.attends(level) {
                true => Some(AttnBlock::load(c, outputs, &w.at_index("attn", i))?),
                false => None,
            };
            blocks.push((block, attn));
        }
        // The zeros are below and to the right only.
        let options = Conv2dOptions::new(3).stride(2).padding_each([0, 1, 0, 1]);
        let downsample = match level + 1 == c.ch_mult.len() {
            true => None,
            false => Some(w.conv2d("downsample.conv", outputs, outputs, options)?),
        };
        Ok(Self { blocks, downsample })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for (block, attn) in &self.blocks {
            x = block.forward(&x)?;
            if let Some(attn) = attn {
                x = attn.forward(&x)?;
            }
        }
        match &self.downsample {
            Some(downsample) => downsample.forward(&x),
            None => Ok(x),
        }
    }
}

/// The codes, `(batch, height, width)` of u32, whose embeddings in `table`, `(codes, embed_dim)`, are nearest to `latents`,
/// `(batch, height, width, embed_dim)`.
pub(super) fn nearest(latents: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (batch, height, width, _) = latents.dims4()?;
    let distances = distances(&latents.detach(), &table.detach())?;
    Ok(distances.argmin(D::Minus1)?.reshape((batch, height, width))?)
}

/// The embeddings of all codes, `(codes, embed_dim)`.
pub(super) fn table(codebook: &Embedding) -> Result<Tensor> {
    codebook.as_linear().weight().tensor()
}

/// The squared distances, `(latents, codes)`, of all latents from the embeddings of all codes.
fn distances(latents: &Tensor, table: &Tensor) -> Result<Tensor> {
    let flat = latents.reshape(((), latents.dim(D::Minus1)?))?;
    let (of_latents, of_codes) = (flat.sqr()?.sum_keepdim(D::Minus1)?, table.sqr()?.sum(D::Minus1)?);
    let products = flat.matmul(&table.t()?.contiguous()?)?;
    Ok((products * -2.0)?.broadcast_add(&of_latents)?.broadcast_add(&of_codes)?)
}

/// How much the choice of codes differs from one that is certain for each latent and uniform over all: the mean entropy of
/// the codes of a latent minus the entropy of the mean, in nats. The codes of a latent have the probabilities of a softmax
/// of minus the squared distances over `temperature`. The entropy loss of MaskGIT's VQGAN (Chang et al. 2022, arXiv
/// 2202.04200), which keeps codes in use.
pub(super) fn entropy_loss(latents: &Tensor, table: &Tensor, temperature: f64) -> Result<Tensor> {
    let scores = (distances(latents, table)? * (-1.0 / temperature))?;
    let chosen = softmax(&scores)?;
    let entropy = |p: &Tensor| -> Result<Tensor> { Ok((p * (p + EPS)?.log()?)?.sum(D::Minus1)?.neg()?) };
    let of_each = entropy(&chosen)?.mean_all()?;
    Ok((of_each - entropy(&chosen.mean(0)?)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use fauna_shared::model::Model;
    use fauna_shared::runtime::Runtime;

    use super::super::Vqgan;
    use super::*;

    /// The corners of a cube around the origin.
    fn corners() -> Tensor {
        let corner = |i: u32| [0, 1, 2].map(|axis| if i >> axis & 1 == 1 { 1f32 } else { -1.0 });
        let values: Vec<f32> = (0..8).flat_map(corner).collect();
        Tensor::from_vec(values, (8, 3), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_latent_gets_the_code_of_the_nearest_embedding() {
        let near = [0.9f32, -0.2, 0.1, -3.0, -0.1, -0.1, 0.1, 2.0, 0.3];
        let latents = Tensor::from_slice(&near, (1, 1, 3, 3), &Device::Cpu).unwrap();
        let codes = nearest(&latents, &corners()).unwrap();
        assert_eq!(codes.flatten_all().unwrap().to_vec1::<u32>().unwrap(), [5, 0, 7]);
    }

    #[test]
    fn the_entropy_loss_is_least_if_all_codes_are_chosen_surely_and_alike() {
        let loss =
            |latents: &Tensor| entropy_loss(latents, &corners(), 0.01).unwrap().to_scalar::<f32>().unwrap();
        let all = corners().reshape((1, 2, 4, 3)).unwrap();
        assert!((loss(&all) + 8f32.ln()).abs() < 1e-3, "{}", loss(&all));
        let one = Tensor::ones((1, 2, 4, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(loss(&one).abs() < 1e-3, "one code alone: {}", loss(&one));
        let none = one.zeros_like().unwrap();
        assert!(loss(&none).abs() < 1e-3, "each code as likely, for every latent: {}", loss(&none));
    }

    #[test]
    fn a_decoder_alone_refuses_images() {
        let config = Config {
            ch: 32,
            ch_mult: vec![1, 2],
            n_embed: 16,
            embed_dim: 8,
            z_channels: 8,
            ..Config::default()
        };
        let decoder = Vqgan::load(config, &Weights::seeded(1, Runtime::cpu())).unwrap();
        let error = decoder.encode(&Tensor::zeros((1, 8, 8, 3), DType::F32, &Device::Cpu).unwrap());
        assert!(error.unwrap_err().to_string().contains("no encoder"));
    }
}
