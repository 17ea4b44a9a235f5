//! A VQGAN, codes to pixels and pixels to codes: the image decoder and encoder of DALL·E mini.
//!
//! Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841), appendix A. The decoder
//! is checked against `VQGanDetokenizer` of min-dalle 0.4.11. Loads its `detoker.pt`, a decoder, and the original's
//! `flax_model.msgpack`, with the encoder. Training has no adversarial and no perceptual term.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//! use fauna_vision::dalle::vqgan::{Config, Vqgan};
//!
//! let config = Config { ch: 32, ch_mult: vec![1, 2], n_embed: 16, embed_dim: 8, z_channels: 8, ..Config::default() };
//! let decoder = Vqgan::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let codes = Tensor::zeros((1, 3, 4), DType::U32, &Device::Cpu)?;
//! assert_eq!(decoder.decode(&codes)?.dims(), [1, 6, 8, 3]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod encoder;
mod pipeline;
mod release;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Conv2d, Conv2dOptions, Embedding, GroupNorm, add, mean_squared_error};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::Deserialize;

use encoder::Encoder;
pub use pipeline::VqganPipeline;
pub(crate) use release::{DETOKER, FLAX, config_of_file, inventory, local_folder, sample};
pub use release::{config_of_tensors, layout, rename};

/// Number of groups of the group norms.
const GROUPS: usize = 32;

/// The keys of `config.json` that define the decoder and the encoder.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Number of channels at the highest resolution.
    pub ch: usize,
    /// Channel multiplier of each resolution, the highest resolution first.
    pub ch_mult: Vec<usize>,
    /// Number of residual blocks per resolution of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Resolutions with self-attention.
    pub attn_resolutions: Vec<usize>,
    /// Image height and width in training.
    pub resolution: usize,
    /// Number of channels of the decoder's input.
    pub z_channels: usize,
    /// Number of codes of the codebook.
    pub n_embed: usize,
    /// Dimension of a code's embedding.
    pub embed_dim: usize,
    /// Number of image channels.
    pub out_ch: usize,
    /// Whether the encoder has twice the channels, for a mean and a variance. Such an encoder is not implemented.
    pub double_z: bool,
    /// Epsilon of the group norms: 1e-6 in the original, 1e-5 in min-dalle.
    pub norm_eps: f64,
}

impl Default for Config {
    /// The release `vqgan_imagenet_f16_16384`: 16384 codes of 16 by 16 pixels.
    fn default() -> Self {
        Self {
            ch: 128,
            ch_mult: vec![1, 1, 2, 2, 4],
            num_res_blocks: 2,
            attn_resolutions: vec![16],
            resolution: 256,
            z_channels: 256,
            n_embed: 16384,
            embed_dim: 256,
            out_ch: 3,
            double_z: false,
            norm_eps: 1e-6,
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("ch", self.ch),
            ("num_res_blocks", self.num_res_blocks),
            ("resolution", self.resolution),
            ("z_channels", self.z_channels),
            ("n_embed", self.n_embed),
            ("embed_dim", self.embed_dim),
        ])?;
        if self.ch_mult.is_empty() || self.ch_mult.len() > 8 || self.ch > 1 << 16 {
            return Err(Error::unsupported(format!(
                "ch_mult has {} entries and ch is {}: expected 1 to 8 entries and at most {} channels",
                self.ch_mult.len(),
                self.ch,
                1 << 16
            )));
        }
        if self.out_ch != 3 {
            return Err(Error::unsupported(format!("out_ch is {}, expected 3", self.out_ch)));
        }
        let makes_groups = |mult: &usize| *mult <= 1 << 10 && (self.ch * mult).is_multiple_of(GROUPS);
        match self.ch_mult.iter().find(|mult| !makes_groups(mult)) {
            Some(mult) => Err(Error::unsupported(format!(
                "ch {} times ch_mult {mult} is not a multiple of the {GROUPS} groups of the norms",
                self.ch
            ))),
            None if self.ch_mult.contains(&0) => Err(Error::unsupported("ch_mult contains a 0")),
            None => Ok(()),
        }
    }

    /// Image pixels per code, along each axis.
    pub fn scale(&self) -> usize {
        1 << (self.ch_mult.len().max(1) - 1)
    }

    /// Whether the blocks at `1 / 2^level` of the full resolution have self-attention.
    fn attends(&self, level: usize) -> bool {
        self.attn_resolutions.contains(&(self.resolution >> level))
    }
}

/// The terms of the loss, float32 scalars.
pub struct Losses {
    /// The mean absolute or squared error of the pixels.
    pub reconstruction: Tensor,
    /// The mean squared distance of the chosen embeddings from the latents, which moves the embeddings.
    pub codebook: Tensor,
    /// The same distance, which moves the latents.
    pub commitment: Tensor,
    /// The entropy loss, if it was asked for.
    pub entropy: Option<Tensor>,
}

/// The codebook and the decoder, with or without the encoder.
pub struct Vqgan {
    config: Config,
    encoder: Option<Encoder>,
    embedding: Embedding,
    post_quant_conv: Conv2d,
    conv_in: Conv2d,
    mid: (ResnetBlock, AttnBlock, ResnetBlock),
    /// From the lowest resolution to the highest.
    up: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
    device: Device,
}

/// The blocks of one resolution, and the convolution after upsampling.
struct Level {
    blocks: Vec<(ResnetBlock, Option<AttnBlock>)>,
    upsample: Option<Conv2d>,
}

struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

struct AttnBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
}

impl Model for Vqgan {
    type Config = Config;

    /// Loads the codebook and the decoder.
    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        Self::load_with(config, w, None)
    }
}

/// The parts of a checkpoint that only an encoder has.
const ENCODER: [&str; 2] = ["encoder", "quant_conv"];
/// A part of every encoder.
pub(crate) const OF_ENCODER: &str = "encoder.conv_out";

impl Vqgan {
    /// Loads the codebook, the decoder, and the encoder if the checkpoint has it; without a checkpoint, if `initial`.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_whole(config: Config, w: &Weights, initial: bool) -> Result<Self> {
        config.check()?;
        let has_encoder = w.has(OF_ENCODER, initial);
        let encoder = has_encoder.then(|| Encoder::load(&config, w)).transpose()?;
        Self::load_with(config, w, encoder)
    }

    fn load_with(config: Config, w: &Weights, encoder: Option<Encoder>) -> Result<Self> {
        if encoder.is_none() {
            ENCODER.iter().for_each(|part| w.skip(part));
        }
        let (c, inner) = (&config, w.at("decoder"));
        let levels = c.ch_mult.len();
        let mut width = c.ch * c.ch_mult[levels - 1];
        let conv_in = inner.conv2d("conv_in", c.z_channels, width, Conv2dOptions::new(3).same())?;
        let mid = inner.at("mid");
        let mid = (
            ResnetBlock::load(c, width, width, &mid.at("block_1"))?,
            AttnBlock::load(c, width, &mid.at("attn_1"))?,
            ResnetBlock::load(c, width, width, &mid.at("block_2"))?,
        );
        let mut up = Vec::with_capacity(levels);
        for level in (0..levels).rev() {
            up.push(Level::load(c, level, &mut width, &inner.at_index("up", level))?);
        }
        Ok(Self {
            embedding: w.embedding("embedding", c.n_embed, c.embed_dim)?,
            post_quant_conv: w.conv2d("post_quant_conv", c.embed_dim, c.z_channels, Conv2dOptions::new(1))?,
            conv_in,
            mid,
            up,
            norm_out: inner.group_norm("norm_out", GROUPS, width, c.norm_eps)?,
            conv_out: inner.conv2d("conv_out", width, c.out_ch, Conv2dOptions::new(3).same())?,
            device: w.runtime().device().clone(),
            encoder,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Decodes `codes`, `(batch, height, width)` of integers, to images, `(batch, height * scale, width * scale, 3)` in
    /// 0 to 255, one image at a time.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a code is outside the codebook or an image would have more than
    /// 2^20 pixels.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let codes = super::checked_codes(codes, self.config.n_embed, self.config.scale(), &self.device)?;
        let one = |i| self.forward(&codes.narrow(0, i, 1)?.contiguous()?);
        let images = (0..codes.dim(0)?).map(one).collect::<Result<Vec<_>>>()?;
        Ok((Tensor::cat(&images, 0)?.clamp(0f32, 1f32)? * 255.0)?)
    }

    /// Whether there is an encoder.
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// Encodes `pixels`, `(batch, height, width, 3)` in 0 to 1: the latents, `(batch, height / scale, width / scale,
    /// embed_dim)`, and the codes with the nearest embeddings, `(batch, height / scale, width / scale)` of u32, one image
    /// at a time.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if height or width is not a multiple of [`scale`](Config::scale) or an
    /// image has more than 2^20 pixels; [`Unsupported`](fauna_shared::ErrorKind::Unsupported) without an encoder.
    pub fn encode(&self, pixels: &Tensor) -> Result<(Tensor, Tensor)> {
        let encoder = self.encoder()?;
        let (batch, height, width, _) = pixels.dims4()?;
        super::check_pixels(height, width)?;
        let pixels = pixels.to_device(&self.device)?;
        let one = |i| encoder.forward(&pixels.narrow(0, i, 1)?.contiguous()?);
        let latents = Tensor::cat(&(0..batch).map(one).collect::<Result<Vec<_>>>()?, 0)?;
        let codes = encoder::nearest(&latents, &encoder::table(&self.embedding)?)?;
        Ok((latents, codes))
    }

    /// The loss of van den Oord et al. 2017 (arXiv 1711.00937, equation 3) of `pixels`, `(batch, height, width, 3)` in 0 to
    /// 1: the gradient of the decoder's input is that of the latents. The reconstruction is the mean absolute error, or the
    /// mean squared error if `squared`; the entropy loss is computed for a temperature `entropy`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn losses(&self, pixels: &Tensor, squared: bool, entropy: Option<f64>) -> Result<Losses> {
        let pixels = pixels.to_device(&self.device)?;
        let latents = self.encoder()?.forward(&pixels)?;
        let table = encoder::table(&self.embedding)?;
        let chosen = self.embedding.forward(&encoder::nearest(&latents, &table)?)?;
        let passed_on = (&latents + (&chosen - &latents)?.detach())?;
        let made = self.decode_latents(&passed_on)?;
        let reconstruction = match squared {
            true => mean_squared_error(&made, &pixels)?,
            false => (made - &pixels)?.abs()?.mean_all()?,
        };
        let entropy = entropy.map(|t| encoder::entropy_loss(&latents, &table, t)).transpose()?;
        Ok(Losses {
            reconstruction,
            codebook: mean_squared_error(&chosen, &latents.detach())?,
            commitment: mean_squared_error(&latents, &chosen.detach())?,
            entropy,
        })
    }

    fn encoder(&self) -> Result<&Encoder> {
        self.encoder.as_ref().ok_or_else(|| {
            Error::unsupported("the VQGAN has no encoder, which makes the codes of an image")
                .hint("min-dalle's detoker.pt is a decoder alone; the original's flax_model.msgpack has both")
        })
    }

    fn forward(&self, codes: &Tensor) -> Result<Tensor> {
        self.decode_latents(&self.embedding.forward(codes)?)
    }

    /// The pixels, `(batch, height * scale, width * scale, 3)`, of embeddings, `(batch, height, width, embed_dim)`.
    fn decode_latents(&self, latents: &Tensor) -> Result<Tensor> {
        let z = self.post_quant_conv.forward(latents)?;
        let mut x = self.conv_in.forward(&z)?;
        x = self.mid.0.forward(&x)?;
        x = self.mid.1.forward(&x)?;
        x = self.mid.2.forward(&x)?;
        for level in &self.up {
            x = level.forward(x)?;
        }
        self.conv_out.forward(&self.norm_out.forward_then(&x, Activation::Silu)?)
    }
}

impl Level {
    /// Loads a level; `width` is the number of input channels, and becomes that of its outputs.
    fn load(c: &Config, level: usize, width: &mut usize, w: &Weights) -> Result<Self> {
        let outputs = c.ch * c.ch_mult[level];
        let mut blocks = Vec::new();
        for i in 0..=c.num_res_blocks {
            let block = ResnetBlock::load(c, *width, outputs, &w.at_index("block", i))?;
            *width = outputs;
            let attn = match c.attends(level) {
                true => Some(AttnBlock::load(c, outputs, &w.at_index("attn", i))?),
                false => None,
            };
            blocks.push((block, attn));
        }
        let upsample = match level {
            0 => None,
            _ => {
                let options = Conv2dOptions::new(3).same().of_doubled();
                Some(w.conv2d("upsample.conv", outputs, outputs, options)?)
            }
        };
        Ok(Self { blocks, upsample })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for (block, attn) in &self.blocks {
            x = block.forward(&x)?;
            if let Some(attn) = attn {
                x = attn.forward(&x)?;
            }
        }
        match &self.upsample {
            Some(upsample) => upsample.forward(&x),
            None => Ok(x),
        }
    }
}

impl ResnetBlock {
    fn load(c: &Config, inputs: usize, outputs: usize, w: &Weights) -> Result<Self> {
        let three = Conv2dOptions::new(3).same();
        Ok(Self {
            norm1: w.group_norm("norm1", GROUPS, inputs, c.norm_eps)?,
            conv1: w.conv2d("conv1", inputs, outputs, three)?,
            norm2: w.group_norm("norm2", GROUPS, outputs, c.norm_eps)?,
            conv2: w.conv2d("conv2", outputs, outputs, three)?,
            nin_shortcut: match inputs == outputs {
                true => None,
                false => Some(w.conv2d("nin_shortcut", inputs, outputs, Conv2dOptions::new(1))?),
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward_then(x, Activation::Silu)?)?;
        let h = self.conv2.forward(&self.norm2.forward_then(&h, Activation::Silu)?)?;
        match &self.nin_shortcut {
            Some(shortcut) => add(&shortcut.forward(x)?, &h),
            None => add(x, &h),
        }
    }
}

impl AttnBlock {
    fn load(c: &Config, width: usize, w: &Weights) -> Result<Self> {
        let conv = |name: &str| w.conv2d(name, width, width, Conv2dOptions::new(1));
        Ok(Self {
            norm: w.group_norm("norm", GROUPS, width, c.norm_eps)?,
            q: conv("q")?,
            k: conv("k")?,
            v: conv("v")?,
            proj_out: conv("proj_out")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let h = self.norm.forward(x)?;
        // Single-head attention over all pixels.
        let part = |conv: &Conv2d| -> Result<Tensor> {
            Ok(conv.forward(&h)?.reshape((batch, height * width, 1, channels))?)
        };
        let scale = (channels as f64).powf(-0.5);
        let h = attend(&part(&self.q)?, &part(&self.k)?, &part(&self.v)?, &Mask::full(), scale)?;
        add(x, &self.proj_out.forward(&h.reshape((batch, height, width, channels))?)?)
    }
}

/// A VQGAN, DALL·E mini's image decoder and encoder.
pub static FAMILY: Family = Family {
    name: "vqgan",
    systems: &["DALL-E"],
    paper: "Esser et al. 2021, arXiv 2012.09841",
    model_types: &["vqgan"],
    // The release was saved by a version of transformers that removed the first four letters of Flax classes' names,
    // whether they were "Flax" or not.
    architectures: &["VQModel", "del"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Codes, Modality::Image],
    outputs: &[Modality::Image, Modality::Codes],
    releases: &[Release::new("dalle-mini/vqgan_imagenet_f16_16384", "DALL-E", "47M", "Apache-2.0")],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(VqganPipeline::open(pretrained)?)),
    sample,
};
