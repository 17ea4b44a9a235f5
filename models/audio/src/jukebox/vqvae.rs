//! The hierarchical VQ-VAE: audio to codes at three rates, and back from each.
//!
//! Dhariwal et al. 2020, sections 3 and 8.1. The levels are independent codecs of the audio. Activations are
//! `(batch, frames, channels)`.

use candle_core::{D, DType, Tensor};
use fauna_shared::nn::{Activation, Conv1d, ConvOptions, ConvTranspose1d, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, transfer};

use super::hps::VqVaeHps;
use crate::spectra::{mean_square, straight_through};

/// Maximum number of samples per forward pass; longer audio is processed in windows with overlap.
const WINDOW: usize = 1 << 18;

/// Frames per chunk of the nearest-neighbour search.
const CHUNK: usize = 4096;

/// The hierarchical VQ-VAE.
pub struct VqVae {
    hps: VqVaeHps,
    encoders: Vec<Encoder>,
    decoders: Vec<Decoder>,
    bottleneck: Vec<Codebook>,
}

struct Encoder {
    level_blocks: Vec<EncoderBlock>,
}

struct EncoderBlock {
    downsample_block: Vec<(Conv1d, Resnet)>,
    proj_out: Conv1d,
}

struct Decoder {
    level_blocks: Vec<DecoderBlock>,
    out: Conv1d,
}

struct DecoderBlock {
    proj_in: Conv1d,
    upsample_block: Vec<(Resnet, ConvTranspose1d)>,
}

struct Resnet {
    resnet_block: Vec<Residual>,
}

struct Residual {
    conv1d_1: Conv1d,
    conv1d_2: Conv1d,
    scale: f64,
}

struct Codebook {
    /// Embeddings, `(l_bins, emb_width)`.
    codebook: Tensor,
}

impl VqVae {
    /// Loads the VQ-VAE from `w`.
    pub fn load(hps: &VqVaeHps, w: &Weights) -> Result<Self> {
        let levels = 0..hps.levels;
        Ok(Self {
            encoders: levels
                .clone()
                .map(|level| Encoder::load(hps, level, &w.at_index("encoders", level)))
                .collect::<Result<_>>()?,
            decoders: levels
                .clone()
                .map(|level| Decoder::load(hps, level, &w.at_index("decoders", level)))
                .collect::<Result<_>>()?,
            bottleneck: levels
                .map(|level| Codebook::load(hps, &w.at("bottleneck").at_index("level_blocks", level)))
                .collect::<Result<_>>()?,
            hps: hps.clone(),
        })
    }

    /// Number of levels; 0 is the finest.
    pub fn levels(&self) -> usize {
        self.hps.levels
    }

    /// Number of audio channels.
    pub fn channels(&self) -> usize {
        self.hps.channels
    }

    /// Hop length of `level`: samples per code.
    pub fn hop(&self, level: usize) -> usize {
        self.hps.hop(level)
    }

    /// Encodes `x`, `(batch, samples, channels)` in -1 to 1, to codes of `level`, `(batch, samples / hop)` of u32. An
    /// incomplete last hop is dropped.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for another number of channels, or audio shorter than one hop.
    pub fn encode(&self, level: usize, x: &Tensor) -> Result<Tensor> {
        self.encode_by(level, x, WINDOW)
    }

    /// Decodes codes of `level`, `(batch, frames)` of u32, to audio, `(batch, frames * hop, channels)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a code is outside the codebook, or there are no codes.
    pub fn decode(&self, level: usize, codes: &Tensor) -> Result<Tensor> {
        self.decode_by(level, codes, WINDOW)
    }

    /// Encodes and decodes `x`, `(batch, samples, channels)`, by `level`, for training: the decoded sound, whose gradient
    /// reaches the encoder, and the commitment loss, the mean squared distance of the encoding to its codes.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for another number of channels, or samples that are no whole number of
    /// hops.
    pub(super) fn learn(&self, level: usize, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (_, time, channels) = x.dims3()?;
        let hop = self.hop(level);
        if channels != self.hps.channels || time == 0 || !time.is_multiple_of(hop) {
            return Err(Error::input(format!("audio of {time} samples and {channels} channels"))
                .hint(format!("expected {} channels and a multiple of {hop} samples", self.hps.channels)));
        }
        let states = self.encoders[level].forward(x)?;
        let block = &self.bottleneck[level];
        let entries = block.decode(&block.encode(&states.detach())?)?;
        let commitment = mean_square(&states, &entries)?;
        Ok((self.decoders[level].forward(&straight_through(&states, &entries)?)?, commitment))
    }

    fn encode_by(&self, level: usize, x: &Tensor, window: usize) -> Result<Tensor> {
        let (_, time, channels) = x.dims3()?;
        let hop = self.hop(level);
        if channels != self.hps.channels || time < hop {
            return Err(Error::input(format!(
                "audio of {time} samples and {channels} channels, expected at least {hop} samples and {} channels",
                self.hps.channels
            )));
        }
        let whole = |x: &Tensor| self.bottleneck[level].encode(&self.encoders[level].forward(x)?);
        if self.has_odd_strides() {
            return whole(x);
        }
        in_windows(time / hop, self.margin(level), window / hop, |from, to, kept| {
            let samples = if to == time / hop { time - from * hop } else { (to - from) * hop };
            let codes = whole(&x.narrow(1, from * hop, samples)?)?;
            Ok(codes.narrow(1, kept.start - from, kept.len())?)
        })
    }

    fn decode_by(&self, level: usize, codes: &Tensor, window: usize) -> Result<Tensor> {
        let (_, time) = codes.dims2()?;
        let hop = self.hop(level);
        if time == 0 {
            return Err(Error::input(format!("there are no codes of level {level} to decode")));
        }
        let highest = transfer::scalar::<u32>(&codes.flatten_all()?.max(0)?.to_dtype(DType::U32)?)? as usize;
        if highest >= self.hps.l_bins {
            return Err(Error::input(format!(
                "code {highest} of level {level} is outside the codebook of {}",
                self.hps.l_bins
            )));
        }
        let whole = |codes: &Tensor| self.decoders[level].forward(&self.bottleneck[level].decode(codes)?);
        if self.has_odd_strides() {
            return whole(codes);
        }
        in_windows(time, self.margin(level), window / hop, |from, to, kept| {
            let sound = whole(&codes.narrow(1, from, to - from)?)?;
            Ok(sound.narrow(1, (kept.start - from) * hop, kept.len() * hop)?)
        })
    }

    /// Whether a stride is odd: then the paddings shift the frames, and windows cannot be concatenated.
    fn has_odd_strides(&self) -> bool {
        self.hps.strides_t.iter().any(|stride| !stride.is_multiple_of(2))
    }

    /// The receptive field of encoder and decoder to either side, in codes of `level`.
    fn margin(&self, level: usize) -> usize {
        let depth = self.hps.depth * self.hps.multiplier(level);
        let residual: usize = (0..depth).map(|block| dilation(&self.hps, block)).sum();
        let (mut reach, mut step) = (0, 1);
        for (stride, downs) in self.hps.strides_t.iter().zip(&self.hps.downs_t).take(level + 1) {
            for _ in 0..*downs {
                reach += 2 * stride * step;
                step *= stride;
                reach += residual * step;
            }
            // The convolutions into and out of each block.
            reach += 2 * step;
        }
        (reach + step).div_ceil(step)
    }
}

/// Concatenates the results of `part(from, to, kept)`: `kept` are consecutive windows of `length` of `0..total`,
/// `from..to` the same with up to `margin` of context on either side.
fn in_windows(
    total: usize,
    margin: usize,
    length: usize,
    part: impl Fn(usize, usize, std::ops::Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    let length = length.max(margin).max(1);
    if total <= length + margin {
        return part(0, total, 0..total);
    }
    let mut parts = Vec::new();
    for start in (0..total).step_by(length) {
        let end = total.min(start + length);
        parts.push(part(start.saturating_sub(margin), total.min(end + margin), start..end)?);
    }
    Ok(Tensor::cat(&parts, 1)?)
}

fn dilation(hps: &VqVaeHps, block: usize) -> usize {
    let power = hps.dilation_cycle.map_or(block, |cycle| block % cycle);
    hps.dilation_growth_rate.pow(power as u32)
}

/// Options of the down- and upsampling convolutions.
fn resampling(stride: usize) -> ConvOptions {
    ConvOptions::new(2 * stride).stride(stride).padding(stride / 2)
}

/// Options of a convolution with kernel size 3 that keeps the length.
fn same_length() -> ConvOptions {
    ConvOptions::new(3).padding(1)
}

impl Encoder {
    fn load(hps: &VqVaeHps, level: usize, w: &Weights) -> Result<Self> {
        let blocks = 0..=level;
        let block = |block| EncoderBlock::load(hps, level, block, &w.at_index("level_blocks", block));
        Ok(Self { level_blocks: blocks.map(block).collect::<Result<_>>()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for block in &self.level_blocks {
            x = block.forward(x)?;
        }
        Ok(x)
    }
}

impl EncoderBlock {
    fn load(hps: &VqVaeHps, level: usize, block: usize, w: &Weights) -> Result<Self> {
        let width = hps.width * hps.multiplier(level);
        let outside = if block == 0 { hps.channels } else { hps.emb_width };
        let part = |i: usize| -> Result<_> {
            let inputs = if i == 0 { outside } else { width };
            let down = w.at_index("downsample_block", 2 * i);
            let resnet = w.at_index("downsample_block", 2 * i + 1);
            Ok((
                down.conv1d("", inputs, width, resampling(hps.strides_t[block]))?,
                Resnet::load(hps, level, false, &resnet)?,
            ))
        };
        Ok(Self {
            downsample_block: (0..hps.downs_t[block]).map(part).collect::<Result<_>>()?,
            proj_out: w.conv1d("proj_out", width, hps.emb_width, same_length())?,
        })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for (down, resnet) in &self.downsample_block {
            x = down.forward(&x)?;
            x = resnet.forward(x)?;
        }
        self.proj_out.forward(&x)
    }
}

impl Decoder {
    fn load(hps: &VqVaeHps, level: usize, w: &Weights) -> Result<Self> {
        let block = |block| DecoderBlock::load(hps, level, block, &w.at_index("level_blocks", block));
        Ok(Self {
            level_blocks: (0..=level).map(block).collect::<Result<_>>()?,
            out: w.conv1d("out", hps.emb_width, hps.channels, same_length())?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for block in self.level_blocks.iter().rev() {
            x = block.forward(x)?;
        }
        self.out.forward(&x)
    }
}

impl DecoderBlock {
    fn load(hps: &VqVaeHps, level: usize, block: usize, w: &Weights) -> Result<Self> {
        let width = hps.width * hps.multiplier(level);
        let last = hps.downs_t[block] - 1;
        let part = |i: usize| -> Result<_> {
            let outputs = if i == last { hps.emb_width } else { width };
            let resnet = w.at_index("upsample_block", 2 * i);
            let up = w.at_index("upsample_block", 2 * i + 1);
            Ok((
                Resnet::load(hps, level, hps.vqvae_reverse_decoder_dilation, &resnet)?,
                up.conv_transpose1d("", width, outputs, resampling(hps.strides_t[block]))?,
            ))
        };
        Ok(Self {
            proj_in: w.conv1d("proj_in", hps.emb_width, width, same_length())?,
            upsample_block: (0..=last).map(part).collect::<Result<_>>()?,
        })
    }

    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let mut x = self.proj_in.forward(&x)?;
        for (resnet, up) in &self.upsample_block {
            x = resnet.forward(x)?;
            x = up.forward(&x)?;
        }
        Ok(x)
    }
}

impl Resnet {
    /// `reverse`: dilations in reverse order; blocks are numbered in the order of computation.
    fn load(hps: &VqVaeHps, level: usize, reverse: bool, w: &Weights) -> Result<Self> {
        let (width, depth) = (hps.width * hps.multiplier(level), hps.depth * hps.multiplier(level));
        let scale = if hps.conv_res_scale == Some(true) { 1.0 / (depth as f64).sqrt() } else { 1.0 };
        let block = |i: usize| {
            let dilation = dilation(hps, if reverse { depth - 1 - i } else { i });
            Residual::load(hps, width, dilation, scale, &w.at_index("resnet_block", i))
        };
        Ok(Self { resnet_block: (0..depth).map(block).collect::<Result<_>>()? })
    }

    fn forward(&self, mut x: Tensor) -> Result<Tensor> {
        for block in &self.resnet_block {
            x = block.forward(&x)?;
        }
        Ok(x)
    }
}

impl Residual {
    fn load(hps: &VqVaeHps, width: usize, dilation: usize, scale: f64, w: &Weights) -> Result<Self> {
        let inside = (hps.m_conv * width as f64) as usize;
        Ok(Self {
            conv1d_1: w.conv1d(
                "conv1d_1",
                width,
                inside,
                ConvOptions::new(3).dilation(dilation).padding(dilation),
            )?,
            conv1d_2: w.conv1d("conv1d_2", inside, width, ConvOptions::new(1))?,
            scale,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.conv1d_1.forward(&Activation::Relu.forward(x)?)?;
        let y = self.conv1d_2.forward(&Activation::Relu.forward(&y)?)?;
        let y = if self.scale == 1.0 { y } else { (y * self.scale)? };
        add(x, &y)
    }
}

impl Codebook {
    fn load(hps: &VqVaeHps, w: &Weights) -> Result<Self> {
        // Codebooks are moving averages of what they encode, and not trained by gradients.
        Ok(Self { codebook: w.tensor("codebook", &[hps.l_bins, hps.emb_width])?.detach() })
    }

    /// Returns the nearest code of each frame of `x`, `(batch, frames, emb_width)`: `(batch, frames)` of u32.
    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let frames = x.reshape((batch * time, width))?;
        let keys = self.codebook.t()?.contiguous()?;
        let key_norms = keys.sqr()?.sum_keepdim(0)?;
        let mut codes = Vec::new();
        for start in (0..batch * time).step_by(CHUNK) {
            let frames = frames.narrow(0, start, CHUNK.min(batch * time - start))?;
            let products = (frames.matmul(&keys)? * 2.0)?;
            let distances =
                frames.sqr()?.sum_keepdim(1)?.broadcast_sub(&products)?.broadcast_add(&key_norms)?;
            codes.push(distances.argmin(D::Minus1)?);
        }
        Ok(Tensor::cat(&codes, 0)?.reshape((batch, time))?)
    }

    /// Returns the embeddings, `(batch, frames, emb_width)`, of `codes`, `(batch, frames)` of u32.
    fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let (batch, time) = codes.dims2()?;
        let vectors = self.codebook.index_select(&codes.flatten_all()?, 0)?;
        Ok(vectors.reshape((batch, time, ()))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use fauna_shared::runtime::Runtime;

    use super::*;

    fn tiny() -> VqVae {
        let hps = VqVaeHps {
            downs_t: vec![2, 1, 1],
            emb_width: 5,
            l_bins: 23,
            width: 4,
            depth: 2,
            dilation_growth_rate: 2,
            ..VqVaeHps::default()
        };
        VqVae::load(&hps, &Weights::seeded(3, Runtime::cpu())).unwrap()
    }

    #[test]
    fn windows_give_the_result_of_the_whole() {
        let codec = tiny();
        let time = 16 * 64 + 5;
        let wave: Vec<f32> = (0..time).map(|t| (t as f32 * 0.37).sin()).collect();
        let sound = Tensor::from_vec(wave, (1, time, 1), &Device::Cpu).unwrap();
        for level in 0..3 {
            let whole = codec.encode_by(level, &sound, 1 << 20).unwrap();
            let parts = codec.encode_by(level, &sound, codec.hop(level)).unwrap();
            let rows = |codes: &Tensor| codes.to_vec2::<u32>().unwrap();
            assert_eq!(whole.dims(), [1, time / codec.hop(level)]);
            assert_eq!(rows(&parts), rows(&whole), "level {level}");

            let whole_sound = codec.decode_by(level, &whole, 1 << 20).unwrap();
            let parts = codec.decode_by(level, &whole, codec.hop(level)).unwrap();
            assert_eq!(whole_sound.dims(), parts.dims());
            let off = (whole_sound - parts).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(off.to_scalar::<f32>().unwrap() < 1e-6, "level {level}: {off}");
        }
    }

    #[test]
    fn the_nearest_code_is_chosen_and_the_first_of_equals() {
        let codebook = Tensor::new(&[[0f32, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        let frames = Tensor::new(&[[[0.9f32, 0.1], [0.1, 1.5], [0.1, 0.2]]], &Device::Cpu).unwrap();
        let codes = Codebook { codebook }.encode(&frames).unwrap();
        assert_eq!(codes.to_vec2::<u32>().unwrap(), [[1, 3, 0]]);
    }

    #[test]
    fn invalid_inputs_are_errors() {
        let codec = tiny();
        let zeros = |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let error = codec.encode(2, &zeros((1, 15, 1))).unwrap_err().to_string();
        assert!(error.contains("15 samples"), "{error}");
        assert!(codec.encode(0, &zeros((1, 64, 2))).unwrap_err().to_string().contains("2 channels"));
        let error =
            codec.decode(1, &Tensor::new(&[[22u32, 23]], &Device::Cpu).unwrap()).unwrap_err().to_string();
        assert!(error.contains("code 23") && error.contains("level 1"), "{error}");
    }
}
