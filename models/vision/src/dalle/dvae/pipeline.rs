//! The pipeline of the discrete VAE: images to codes, codes to images.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::resize::{Arithmetic, Filter, Part, resize_part};
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{Card, Pipeline, Pretrained, SampleSizes, noise_pixels, only_known};
use fauna_shared::{Error, Result};
use serde_json::Value;

use super::super::sample_codes;
use super::{Dvae, SCALE, release};

/// Image size of OpenAI's preprocessing.
const IMAGE_SIZE: usize = 256;

/// The discrete VAE with its preprocessing.
pub struct DvaePipeline {
    network: Dvae,
    device: Device,
    card: Card,
}

impl DvaePipeline {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// If its files are missing, damaged or not those of the discrete VAE.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = release::load(pretrained)?;
        Ok(Self {
            card: pretrained.card(&pretrained.architecture("DiscreteVAE"), &inventory),
            device: pretrained.weights.runtime().device().clone(),
            network,
        })
    }

    /// The network.
    pub fn network(&self) -> &Dvae {
        &self.network
    }

    /// Returns the codes of `image`, `(1, height, width)` of int64. The image is resized and center-cropped to 256 by
    /// 256 pixels, as in OpenAI's notebook.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a smaller image.
    pub fn encode_image(&self, image: &Image) -> Result<Tensor> {
        let square = resize_and_crop(image)?;
        let values: Vec<f32> = square.rgb.iter().map(|value| f32::from(*value) / 255.0).collect();
        let pixels = Tensor::from_vec(values, (1, square.height, square.width, 3), &self.device)?;
        Ok(self.network.codes(&self.network.encode(&pixels)?)?.to_dtype(DType::I64)?)
    }

    /// Decodes `codes`, `(batch, height, width)`, to images.
    ///
    /// # Errors
    /// As [`Dvae::decode`].
    pub fn decode_images(&self, codes: &Tensor) -> Result<Vec<Image>> {
        let pixels = self.network.pixels(&self.network.decode(codes)?)?;
        super::super::to_images(&pixels.affine(255.0, 0.0)?)
    }

    /// The method `encode`: `pixel_values`, `(batch, 3, height, width)` in 0 to 1, to `logits`,
    /// `(batch, vocab_size, height / 8, width / 8)`, and `codes`.
    fn encode_values(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &["pixel_values"])?;
        let values = inputs.get("pixel_values").ok_or_else(|| Error::input("pixel_values are missing"))?;
        values.dims4().map_err(|_| {
            Error::input(format!(
                "pixel_values have the shape {:?}, expected (batch, 3, height, width)",
                values.dims()
            ))
        })?;
        let pixels = values.permute((0, 2, 3, 1))?.contiguous()?.to_device(&self.device)?;
        let logits = self.network.encode(&pixels)?;
        let codes = self.network.codes(&logits)?.to_dtype(DType::I64)?;
        let logits = logits.permute((0, 3, 1, 2))?.contiguous()?;
        Ok(Tensors::from([("logits".to_string(), logits), ("codes".to_string(), codes)]))
    }

    /// The method `decode`: `codes`, `(batch, height, width)`, to `x_stats`, `(batch, 6, 8 height, 8 width)`, and
    /// `pixel_values`.
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

/// Resizes the shorter side of `image` to 256 pixels and center-crops it to a square.
fn resize_and_crop(image: &Image) -> Result<Image> {
    let shorter = image.width.min(image.height);
    if shorter < IMAGE_SIZE {
        return Err(Error::input(format!(
            "an image of {} by {} pixels is too small",
            image.width, image.height
        ))
        .hint(format!("width and height must be at least {IMAGE_SIZE} pixels")));
    }
    let size = |side: usize| (IMAGE_SIZE as f64 / shorter as f64 * side as f64).round_ties_even() as usize;
    let (width, height) = (size(image.width), size(image.height));
    let middle = |side: usize| {
        let start = ((side - IMAGE_SIZE) as f64 / 2.0).round_ties_even() as usize;
        start..start + IMAGE_SIZE
    };
    let part = Part { rows: middle(height), columns: middle(width) };
    resize_part(image, height, width, &part, Filter::Lanczos, Arithmetic::Pillow)
}

impl Pipeline for DvaePipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn image_options(&self) -> ImageOptions {
        ImageOptions::open_clip()
    }

    /// `decode` if `codes` are given, otherwise `encode`.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        match inputs.contains_key("codes") || !self.network.has_encoder() {
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
                let pixels = noise_pixels(&[sizes.rows * sizes.images.max(1), 3, IMAGE_SIZE, IMAGE_SIZE])?;
                Ok(Tensors::from([("pixel_values".to_string(), pixels.affine(0.5, 0.5)?)]))
            }
            ("decode", 0) => {
                let codes = sample_codes((sizes.rows, IMAGE_SIZE / SCALE, IMAGE_SIZE / SCALE))?;
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
                Error::input("a codec takes no conversation").hint("give it an image, or the codes of one")
            );
        };
        match items.as_slice() {
            [Item::Image(image)] => {
                let codes = self.encode_image(image)?.to_device(&Device::Cpu)?;
                let _ = each(Item::Codes(Tensors::from([("codes".to_string(), codes)])));
            }
            [Item::Codes(codes)] => {
                only_known(codes, &["codes"])?;
                let codes = codes.get("codes").ok_or_else(|| Error::input("codes are missing"))?;
                for image in self.decode_images(codes)? {
                    if each(Item::Image(image)).is_break() {
                        break;
                    }
                }
            }
            items => {
                let found: Vec<String> = items.iter().map(|item| item.modality().to_string()).collect();
                let found = if found.is_empty() { "nothing".to_string() } else { found.join(", ") };
                return Err(Error::input(format!("expected one image, or the codes of one, not {found}")));
            }
        }
        Ok(Generation::default())
    }
}
