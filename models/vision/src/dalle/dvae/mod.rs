//! OpenAI's discrete VAE: encodes an image as a grid of codes, downsampled by 8, and decodes it.
//!
//! Ramesh et al. 2021, section 2.1 and appendix A. Checked against `dall_e.Encoder` and `dall_e.Decoder` of DALL-E 0.1.
//! Loads OpenAI's pickled modules `encoder.pkl` and `decoder.pkl`, either or both.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//! use fauna_vision::dalle::dvae::{Config, Dvae, CoderConfig};
//!
//! let coder = CoderConfig { n_hid: 8, n_blk_per_group: 1, n_init: 4, vocab_size: 32 };
//! let config = Config { encoder: Some(coder.clone()), decoder: Some(coder) };
//! let codec = Dvae::load(config, &Weights::seeded(1, Runtime::cpu()))?;
//! let image = Tensor::rand(0f32, 1.0, (1, 16, 24, 3), &Device::Cpu)?;
//! let codes = codec.codes(&codec.encode(&image)?)?;
//! assert_eq!(codes.dims(), [1, 2, 3]);
//! assert_eq!(codec.pixels(&codec.decode(&codes)?)?.dims(), [1, 16, 24, 3]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod pipeline;
mod release;

use candle_core::{D, Device, Tensor};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, check_sizes};
use fauna_shared::nn::{Activation, Conv2d, Conv2dOptions, add, double, max_pool, softmax};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;

pub use pipeline::DvaePipeline;
pub(crate) use release::{inventory, sample};
pub use release::{layout, rename};

/// Number of groups of blocks in the encoder and in the decoder; the resolution changes between groups.
const GROUPS: usize = 4;
/// Image pixels per code, along each axis.
pub const SCALE: usize = 1 << (GROUPS - 1);
/// Epsilon that maps pixel values into (0, 1), the support of the logit-Laplace distribution (section 2.1).
const EPS: f64 = 0.1;

/// Configuration of the encoder or of the decoder. For OpenAI's files it follows from the shapes of the tensors.
#[derive(Debug, Clone, Deserialize)]
pub struct CoderConfig {
    /// Number of channels at the highest resolution.
    #[serde(default = "n_hid")]
    pub n_hid: usize,
    /// Number of residual blocks per group.
    #[serde(default = "n_blk_per_group")]
    pub n_blk_per_group: usize,
    /// Number of channels after the decoder's first convolution; not used by the encoder.
    #[serde(default = "n_init")]
    pub n_init: usize,
    /// Vocabulary size: the number of codes.
    #[serde(default = "vocab_size")]
    pub vocab_size: usize,
}

fn n_hid() -> usize {
    256
}

fn n_blk_per_group() -> usize {
    2
}

fn n_init() -> usize {
    128
}

fn vocab_size() -> usize {
    8192
}

/// The encoder and decoder of a release.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The encoder, if present.
    pub encoder: Option<CoderConfig>,
    /// The decoder, if present.
    pub decoder: Option<CoderConfig>,
}

impl Config {
    fn check(&self) -> Result<()> {
        for coder in self.encoder.iter().chain(&self.decoder) {
            check_sizes(&[
                ("n_hid", coder.n_hid),
                ("n_blk_per_group", coder.n_blk_per_group),
                ("n_init", coder.n_init),
                ("vocab_size", coder.vocab_size),
            ])?;
            if coder.n_hid % 4 != 0 || coder.n_hid > 1 << 20 {
                return Err(Error::unsupported(format!(
                    "n_hid is {}, expected a multiple of 4 up to {}",
                    coder.n_hid,
                    1 << 20
                )));
            }
        }
        match (&self.encoder, &self.decoder) {
            (None, None) => Err(Error::unsupported("the config has neither an encoder nor a decoder")),
            (Some(encoder), Some(decoder)) if encoder.vocab_size != decoder.vocab_size => Err(Error::new(
                ErrorKind::Mismatch,
                format!(
                    "vocab_size is {} in the encoder, {} in the decoder",
                    encoder.vocab_size, decoder.vocab_size
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// The discrete VAE, or only its encoder or decoder.
pub struct Dvae {
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    device: Device,
}

struct Encoder {
    input: Conv2d,
    groups: Vec<Vec<Block>>,
    output: Conv2d,
    codes: usize,
}

struct Decoder {
    input: Conv2d,
    groups: Vec<Vec<Block>>,
    output: Conv2d,
    codes: usize,
}

/// A residual block: `id_path(x) + gain * res_path(x)`, where `gain` is `1 / n_layers^2`.
struct Block {
    id_path: Option<Conv2d>,
    res_path: [Conv2d; 4],
}

impl Model for Dvae {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let (encoder, decoder) = (config.encoder.as_ref(), config.decoder.as_ref());
        Ok(Self {
            encoder: encoder.map(|coder| Encoder::load(coder, &w.at("encoder"))).transpose()?,
            decoder: decoder.map(|coder| Decoder::load(coder, &w.at("decoder"))).transpose()?,
            device: w.runtime().device().clone(),
        })
    }
}

impl Dvae {
    /// Returns the logits of the codes, `(batch, height / 8, width / 8, vocab_size)`, of `pixels`,
    /// `(batch, height, width, 3)` in 0 to 1.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if height or width is not a multiple of 8 or there are more than 2^20 pixels;
    /// [`Unsupported`](ErrorKind::Unsupported) if the release has no encoder.
    pub fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        let Some(encoder) = &self.encoder else { return Err(missing("encoder")) };
        let (_, height, width, channels) = pixels.dims4()?;
        if channels != 3 {
            return Err(Error::input(format!("the image has {channels} channels, expected 3")));
        }
        if height == 0 || width == 0 || height % SCALE != 0 || width % SCALE != 0 {
            return Err(Error::input(format!(
                "an image of {height} by {width} pixels: both must be multiples of {SCALE}"
            )));
        }
        super::check_pixels(height, width)?;
        for_each_image(pixels, |image| encoder.forward(image))
    }

    /// Returns the argmax of the logits of [`encode`](Dvae::encode): codes, `(batch, height, width)` of u32.
    pub fn codes(&self, logits: &Tensor) -> Result<Tensor> {
        Ok(logits.argmax(D::Minus1)?)
    }

    /// Returns the decoder's logit-Laplace statistics, `(batch, 8 height, 8 width, 6)`: the mean of each colour
    /// channel, then the log scale of each, of `codes`, `(batch, height, width)` of integers.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if a code is outside the codebook or the image would have more than 2^20
    /// pixels; [`Unsupported`](ErrorKind::Unsupported) if the release has no decoder.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let Some(decoder) = &self.decoder else { return Err(missing("decoder")) };
        let codes = super::checked_codes(codes, decoder.codes, SCALE, &self.device)?;
        for_each_image(&codes, |codes| decoder.forward(codes))
    }

    /// The negative evidence lower bound of images (section 2.1, appendices A.2 and A.3): its terms of reconstruction and
    /// of divergence, scalars per pixel and channel. Codes are relaxed by Gumbel softmax (Jang et al. 2016, arXiv
    /// 1611.01144) at `temperature`, with the noise `noise`, `(batch, height / 8, width / 8, vocab_size)`; the
    /// reconstruction is minus the log density of the logit-Laplace distribution; the divergence is that of the codes from
    /// a uniform prior. `pixels`: `(batch, height, width, 3)` in 0 to 1.
    ///
    /// # Errors
    /// As [`encode`](Dvae::encode); [`Input`](ErrorKind::Input) if `noise` has another shape than the logits;
    /// [`Unsupported`](ErrorKind::Unsupported) if the release has no encoder or no decoder.
    pub fn lower_bound(&self, pixels: &Tensor, noise: &Tensor, temperature: f64) -> Result<[Tensor; 2]> {
        let Some(decoder) = &self.decoder else { return Err(missing("decoder")) };
        let logits = self.encode(pixels)?;
        if noise.dims() != logits.dims() {
            let (noise, logits) = (noise.dims(), logits.dims());
            return Err(Error::input(format!(
                "gumbel_noise has the shape {noise:?} for logits of {logits:?}"
            ))
            .hint("both with channels last"));
        }
        let codes = softmax(&((&logits + noise)? / temperature)?)?;
        let x_stats = decoder.forward_relaxed(&codes)?;
        let (mean, log_scale) = (x_stats.narrow(D::Minus1, 0, 3)?, x_stats.narrow(D::Minus1, 3, 3)?);
        let x = pixels.affine(1.0 - 2.0 * EPS, EPS)?;
        let rest = x.affine(-1.0, 1.0)?;
        let logit = (x.log()? - rest.log()?)?;
        let distance = ((logit - mean)?.abs()? * log_scale.neg()?.exp()?)?;
        let density = ((distance.neg()? - log_scale)? - ((x * rest)? * 2.0)?.log()?)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
        let chosen = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?;
        let prior = (logits.dim(D::Minus1)? as f64).ln();
        let divergence = (chosen.exp()? * (chosen + prior)?)?.sum_all()?;
        Ok([density.mean_all()?.neg()?, (divergence / pixels.elem_count() as f64)?])
    }

    /// Returns the pixels, `(batch, height, width, 3)` in 0 to 1, of the statistics of [`decode`](Dvae::decode).
    pub fn pixels(&self, x_stats: &Tensor) -> Result<Tensor> {
        let colours = Activation::Sigmoid.forward(&x_stats.narrow(D::Minus1, 0, 3)?.contiguous()?)?;
        Ok(colours.affine(1.0 / (1.0 - 2.0 * EPS), -EPS / (1.0 - 2.0 * EPS))?.clamp(0f32, 1f32)?)
    }

    /// Number of codes.
    pub fn vocab_size(&self) -> usize {
        let encoder = self.encoder.as_ref().map(|encoder| encoder.codes);
        encoder.or(self.decoder.as_ref().map(|decoder| decoder.codes)).unwrap_or(0)
    }

    /// Whether there is an encoder.
    pub fn has_encoder(&self) -> bool {
        self.encoder.is_some()
    }

    /// Whether there is a decoder.
    pub fn has_decoder(&self) -> bool {
        self.decoder.is_some()
    }
}

/// Applies `f` to one image of the batch at a time, to bound memory.
fn for_each_image(batch: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let one = |i| f(&batch.narrow(0, i, 1)?.contiguous()?);
    Ok(Tensor::cat(&(0..batch.dim(0)?).map(one).collect::<Result<Vec<_>>>()?, 0)?)
}

fn missing(part: &str) -> Error {
    Error::unsupported(format!("this release has no {part}"))
        .hint(format!("put OpenAI's {part}.pkl into the folder"))
}

impl Encoder {
    fn load(c: &CoderConfig, w: &Weights) -> Result<Self> {
        let w = w.at("blocks");
        let width = |group: usize| c.n_hid << group;
        Ok(Self {
            input: w.conv2d("input", 3, c.n_hid, Conv2dOptions::new(7).same())?,
            groups: groups(c, &w, [3, 3, 3, 1], c.n_hid, width)?,
            output: w.conv2d("output.conv", width(GROUPS - 1), c.vocab_size, Conv2dOptions::new(1))?,
            codes: c.vocab_size,
        })
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.input.forward(&pixels.affine(1.0 - 2.0 * EPS, EPS)?)?;
        for (i, group) in self.groups.iter().enumerate() {
            x = if i > 0 { max_pool(&x)? } else { x };
            for block in group {
                x = block.forward(&x)?;
            }
        }
        self.output.forward(&Activation::Relu.forward(&x)?)
    }
}

impl Decoder {
    fn load(c: &CoderConfig, w: &Weights) -> Result<Self> {
        let w = w.at("blocks");
        let width = |group: usize| c.n_hid << (GROUPS - 1 - group);
        Ok(Self {
            input: w.conv2d("input", c.vocab_size, c.n_init, Conv2dOptions::new(1))?,
            groups: groups(c, &w, [1, 3, 3, 3], c.n_init, width)?,
            output: w.conv2d("output.conv", c.n_hid, 2 * 3, Conv2dOptions::new(1))?,
            codes: c.vocab_size,
        })
    }

    fn forward(&self, codes: &Tensor) -> Result<Tensor> {
        self.after_input(self.input.of_one_hot(codes)?)
    }

    /// The same of probabilities of codes, `(batch, height, width, vocab_size)`.
    fn forward_relaxed(&self, codes: &Tensor) -> Result<Tensor> {
        self.after_input(self.input.forward(codes)?)
    }

    fn after_input(&self, mut x: Tensor) -> Result<Tensor> {
        for (i, group) in self.groups.iter().enumerate() {
            x = if i > 0 { double(&x)? } else { x };
            for block in group {
                x = block.forward(&x)?;
            }
        }
        self.output.forward(&Activation::Relu.forward(&x)?)
    }
}

/// Loads all groups; `width` returns the number of channels of each.
fn groups(
    c: &CoderConfig,
    w: &Weights,
    kernels: [usize; 4],
    first: usize,
    width: impl Fn(usize) -> usize,
) -> Result<Vec<Vec<Block>>> {
    let gain = (1.0 / (GROUPS * c.n_blk_per_group) as f64).powi(2);
    let mut inputs = first;
    let mut group = |group: usize| {
        let w = w.at(&format!("group_{}", group + 1));
        let mut block = |i: usize| {
            let block =
                Block::load(&w.at(&format!("block_{}", i + 1)), kernels, (inputs, width(group)), gain);
            inputs = width(group);
            block
        };
        (0..c.n_blk_per_group).map(&mut block).collect()
    };
    (0..GROUPS).map(&mut group).collect()
}

impl Block {
    fn load(w: &Weights, kernels: [usize; 4], (inputs, outputs): (usize, usize), gain: f64) -> Result<Self> {
        let inner = outputs / 4;
        let conv = |i: usize, inputs: usize, outputs: usize| {
            let options = Conv2dOptions::new(kernels[i - 1]).same();
            w.at("res_path").conv2d(&format!("conv_{i}"), inputs, outputs, options)
        };
        Ok(Self {
            id_path: match inputs == outputs {
                true => None,
                false => Some(w.conv2d("id_path", inputs, outputs, Conv2dOptions::new(1))?),
            },
            res_path: [
                conv(1, inputs, inner)?,
                conv(2, inner, inner)?,
                conv(3, inner, inner)?,
                conv(4, inner, outputs)?.scaled(gain)?,
            ],
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third, last] = &self.res_path;
        let inner = first.forward_then(&Activation::Relu.forward(x)?, Activation::Relu)?;
        let inner = second.forward_then(&inner, Activation::Relu)?;
        let inner = third.forward_then(&inner, Activation::Relu)?;
        let inner = last.forward(&inner)?;
        match &self.id_path {
            Some(path) => add(&path.forward(x)?, &inner),
            None => add(x, &inner),
        }
    }
}

/// OpenAI's discrete VAE.
pub static FAMILY: Family = Family {
    name: "dvae",
    systems: &["DALL-E"],
    paper: "Ramesh et al. 2021, arXiv 2102.12092",
    model_types: &["dall_e"],
    architectures: &["DiscreteVAE"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Image, Modality::Codes],
    outputs: &[Modality::Codes, Modality::Image],
    // Released outside the hub: encoder.pkl and decoder.pkl.
    releases: &[],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory,
    causal_lm: None,
    open: |pretrained| Ok(Box::new(DvaePipeline::open(pretrained)?)),
    sample,
};
