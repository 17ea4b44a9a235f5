//! The discrete VAE as a pipeline: pictures to codes, codes to pictures.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::resize::{Arithmetic, Filter, Part, resize_part};
use fauna_shared::item::{Image, Item, Prompt, Reading, Tensors};
use fauna_shared::model::{Card, Pipeline, Pretrained, SampleSizes, noise_pixels, only_known};
use fauna_shared::{Error, Result};
use serde_json::Value;

use super::super::made_up_codes;
use super::{Dvae, SCALE, release};

/// The side that OpenAI's program brings pictures to.
const SIDE: usize = 256;

/// A codec with the settings of its release.
pub struct DvaePipeline {
    network: Dvae,
    device: Device,
    card: Card,
}

impl DvaePipeline {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = release::load(pretrained)?;
        Ok(Self {
            card: pretrained.card(&pretrained.architecture("DiscreteVAE"), &inventory),
            device: pretrained.weights.runtime().device().clone(),
            network,
        })
    }

    /// The codec itself.
    pub fn network(&self) -> &Dvae {
        &self.network
    }

    /// The codes of `picture`, `(1, height, width)` of int64: of its middle, brought to a square of 256 pixels as
    /// OpenAI's program does it.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a picture that is smaller than that.
    pub fn encode_image(&self, picture: &Image) -> Result<Tensor> {
        let square = squared(picture)?;
        let values: Vec<f32> = square.rgb.iter().map(|value| f32::from(*value) / 255.0).collect();
        let pixels = Tensor::from_vec(values, (1, square.height, square.width, 3), &self.device)?;
        Ok(self.network.codes(&self.network.encode(&pixels)?)?.to_dtype(DType::I64)?)
    }

    /// The pictures of `codes`, `(batch, height, width)`.
    ///
    /// # Errors
    /// As [`Dvae::decode`].
    pub fn decode_images(&self, codes: &Tensor) -> Result<Vec<Image>> {
        let pixels = self.network.pixels(&self.network.decode(codes)?)?;
        super::super::pictures(&pixels.affine(255.0, 0.0)?)
    }

    /// `logits` `(batch, codes, height, width)` and `codes` of `pixel_values`, `(batch, 3, height, width)` in 0 to 1.
    fn encode_values(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &["pixel_values"])?;
        let values = inputs.get("pixel_values").ok_or_else(|| Error::input("pixel_values are missing"))?;
        values.dims4().map_err(|_| {
            Error::input(format!(
                "pixel_values are (batch, 3, height, width), these have the shape {:?}",
                values.dims()
            ))
        })?;
        let pixels = values.permute((0, 2, 3, 1))?.contiguous()?.to_device(&self.device)?;
        let logits = self.network.encode(&pixels)?;
        let codes = self.network.codes(&logits)?.to_dtype(DType::I64)?;
        let logits = logits.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(Tensors::from([("logits".to_string(), logits), ("codes".to_string(), codes)]))
    }

    /// `x_stats` `(batch, 6, height, width)` and `pixel_values` of `codes`.
    fn decode_values(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &["codes"])?;
        let codes = inputs.get("codes").ok_or_else(|| Error::input("codes are missing"))?;
        let x_stats = self.network.decode(codes)?;
        let channels_first = |x: &Tensor| -> Result<Tensor> { Ok(x.permute((0, 3, 1, 2))?.contiguous()?) };
        Ok(Tensors::from([
            ("pixel_values".to_string(), channels_first(&self.network.pixels(&x_stats)?)?),
            ("x_stats".to_string(), channels_first(&x_stats)?),
        ]))
    }
}

/// The middle of `picture` after its shorter side was brought to 256 pixels.
fn squared(picture: &Image) -> Result<Image> {
    let shorter = picture.width.min(picture.height);
    if shorter < SIDE {
        return Err(Error::input(format!(
            "a picture of {} by {} pixels is too small for this codec",
            picture.width, picture.height
        ))
        .hint(format!("both sides have at least {SIDE} pixels")));
    }
    let size = |side: usize| (SIDE as f64 / shorter as f64 * side as f64).round_ties_even() as usize;
    let (width, height) = (size(picture.width), size(picture.height));
    let middle = |side: usize| {
        let start = ((side - SIDE) as f64 / 2.0).round_ties_even() as usize;
        start..start + SIDE
    };
    let part = Part { rows: middle(height), columns: middle(width) };
    resize_part(picture, height, width, &part, Filter::Lanczos, Arithmetic::Pillow)
}

impl Pipeline for DvaePipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn reading(&self) -> Reading {
        Reading::open_clip()
    }

    /// As `decode` where codes are given, else as `encode`.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        match inputs.contains_key("codes") || !self.network.encodes() {
            true => self.decode_values(inputs),
            false => self.encode_values(inputs),
        }
    }

    fn call(&self, method: &str, inputs: &Tensors, _: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward(inputs),
            "encode" => self.encode_values(inputs),
            "decode" => self.decode_values(inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        match (method, sizes.tokens) {
            ("encode", 0) => {
                let pixels = noise_pixels(&[sizes.rows * sizes.images.max(1), 3, SIDE, SIDE])?;
                Ok(Tensors::from([("pixel_values".to_string(), pixels.affine(0.5, 0.5)?)]))
            }
            ("decode", 0) => {
                let codes = made_up_codes((sizes.rows, SIDE / SCALE, SIDE / SCALE))?;
                Ok(Tensors::from([("codes".to_string(), codes)]))
            }
            _ => Err(self.cannot(&format!("run \"{method}\" on {} tokens", sizes.tokens))),
        }
    }

    fn generate(
        &self,
        prompt: &Prompt,
        _: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let Prompt::Items(items) = prompt else {
            return Err(
                Error::input("a codec holds no conversations").hint("give it a picture, or codes of one")
            );
        };
        match items.as_slice() {
            [Item::Image(picture)] => {
                let codes = self.encode_image(picture)?.to_device(&Device::Cpu)?;
                let _ = each(Item::Codes(Tensors::from([("codes".to_string(), codes)])));
            }
            [Item::Codes(codes)] => {
                only_known(codes, &["codes"])?;
                let codes = codes.get("codes").ok_or_else(|| Error::input("codes are missing"))?;
                for picture in self.decode_images(codes)? {
                    if each(Item::Image(picture)).is_break() {
                        break;
                    }
                }
            }
            items => {
                let found: Vec<String> = items.iter().map(|item| item.modality().to_string()).collect();
                let found = if found.is_empty() { "nothing".to_string() } else { found.join(", ") };
                return Err(Error::input(format!("a codec reads one picture, or codes of one, not {found}")));
            }
        }
        Ok(Generation::default())
    }
}
