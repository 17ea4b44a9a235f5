//! The pipeline of the discrete VAE: images to codes, codes to images.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig, Rng};
use fauna_shared::image::resize::{Arithmetic, Filter, Part, resize_part};
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, noise_pixels,
    only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json};
use fauna_text::labelled;
use serde_json::Value;

use super::super::sample_codes;
use super::release::Loaded;
use super::{Config, Dvae, SCALE, release};

/// Image size of OpenAI's preprocessing.
const IMAGE_SIZE: usize = 256;

/// The options of the loss if they are not given: those at the end of the training of Ramesh et al. (appendix A.2).
const TEMPERATURE: f64 = 1.0 / 16.0;
const KL_WEIGHT: f64 = 6.6;

/// The discrete VAE with its preprocessing.
pub struct DvaePipeline {
    network: Dvae,
    /// The weights of OpenAI's files, if the release is of these.
    files: Option<Weights>,
    device: Device,
    card: Card,
}

impl DvaePipeline {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// If its files are missing, damaged or not those of the discrete VAE.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let Loaded { network, inventory, files } = release::load(pretrained)?;
        Ok(Self {
            files,
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
        let pixels = prepared(image)?.unsqueeze(0)?.to_device(&self.device)?;
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
        let pixels = channels_last(inputs, "pixel_values")?.to_device(&self.device)?;
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

/// The pixels of an image, `(256, 256, 3)` in 0 to 1, by OpenAI's preprocessing.
fn prepared(image: &Image) -> Result<Tensor> {
    let square = resize_and_crop(image)?;
    let values: Vec<f32> = square.rgb.iter().map(|value| f32::from(*value) / 255.0).collect();
    Ok(Tensor::from_vec(values, (square.height, square.width, 3), &Device::Cpu)?)
}

/// The input `name`, `(batch, channels, height, width)`, with channels last.
fn channels_last(inputs: &Tensors, name: &str) -> Result<Tensor> {
    let values = inputs.get(name).ok_or_else(|| Error::input(format!("{name} is missing")))?;
    values.dims4().map_err(|_| {
        let shape = values.dims();
        Error::input(format!("{name} has the shape {shape:?}, expected (batch, channels, height, width)"))
    })?;
    Ok(values.permute((0, 2, 3, 1))?.contiguous()?)
}

/// A sample of the standard Gumbel distribution.
fn gumbel(random: &mut Rng) -> f32 {
    let uniform = random.uniform().clamp(1e-12, 1.0 - 1e-12);
    -(-uniform.ln()).ln() as f32
}

impl Trainable for DvaePipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        let mut config: Config = json::typed(config.clone())?;
        config.encoder = config.encoder.filter(|_| self.network.has_encoder());
        config.decoder = config.decoder.filter(|_| self.network.has_decoder());
        let assembled = self.files.as_ref().map(|files| files.with_variables_of(weights));
        self.network = Dvae::load(config, assembled.as_ref().unwrap_or(weights))?;
        Ok(())
    }

    /// The negative evidence lower bound of `pixel_values`, `(batch, 3, height, width)` in 0 to 1, with the noise
    /// `gumbel_noise`, `(batch, vocab_size, height / 8, width / 8)`: `loss_reconstruction` plus `kl_weight` times
    /// `loss_divergence`. The options `temperature` and `kl_weight` change during the training of the paper, which ends
    /// with the defaults 1/16 and 6.6.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        only_known(inputs, &["pixel_values", "gumbel_noise"])?;
        let mut settings = [("temperature", TEMPERATURE), ("kl_weight", KL_WEIGHT)];
        for (name, value) in options.as_object().into_iter().flatten() {
            let Some((_, setting)) = settings.iter_mut().find(|(known, _)| known == name) else {
                return Err(Error::input(format!("the loss has no option \"{name}\""))
                    .hint("known: temperature, kl_weight"));
            };
            let number = value.as_f64().filter(|number| number.is_finite());
            *setting = number.ok_or_else(|| Error::input(format!("{name} is {value}, expected a number")))?;
        }
        let [(_, temperature), (_, kl_weight)] = settings;
        if temperature <= 0.0 {
            return Err(Error::input(format!("temperature is {temperature}, expected more than 0")));
        }
        let pixels = channels_last(inputs, "pixel_values")?.to_device(&self.device)?;
        let noise = channels_last(inputs, "gumbel_noise")?.to_device(&self.device)?;
        let [reconstruction, divergence] = self.network.lower_bound(&pixels, &noise, temperature)?;
        let loss = (&reconstruction + (&divergence * kl_weight)?)?;
        Ok(Loss::mean(loss, pixels.elem_count() as f64)
            .with_part("loss_reconstruction", reconstruction)
            .with_part("loss_divergence", divergence))
    }

    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let pixels = examples.iter().map(|example| match example {
            Example::Image(image) => prepared(image),
            other => Err(labelled::not_learned(other, "image")),
        });
        let pixels = Tensor::stack(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
        let side = IMAGE_SIZE / SCALE;
        let shape = (examples.len(), self.network.vocab_size(), side, side);
        let mut random = Rng::new(options.seed, 0);
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let noise: Vec<f32> = (0..count).map(|_| gumbel(&mut random)).collect();
        let inputs = [
            ("pixel_values", pixels.permute((0, 3, 1, 2))?.contiguous()?),
            ("gumbel_noise", Tensor::from_vec(noise, shape, &Device::Cpu)?),
        ];
        Ok(TrainingBatch::new(inputs.into_iter().map(|(name, x)| (name.to_string(), x)).collect()))
    }

    fn head(&self) -> Result<&'static str> {
        Err(self.cannot("name an output head: it is a codec"))
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

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
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
