//! The pipeline of a VQGAN without a transformer: codes to images, images to codes, and training.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::resize::{Arithmetic, Filter, Part, resize_part};
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json};
use fauna_text::labelled;
use serde_json::Value;

use super::{Config, Vqgan};
use crate::dalle::{sample_codes, side_of, to_images};

/// The weight of the commitment, as in van den Oord et al. 2017 and Esser et al. 2021.
const COMMITMENT: f64 = 0.25;
/// The temperature of the entropy loss in MaskGIT.
const ENTROPY_TEMPERATURE: f64 = 0.01;

/// A VQGAN with the card of its release.
pub struct VqganPipeline {
    vqgan: Vqgan,
    card: Card,
}

impl VqganPipeline {
    /// Loads the decoder, and the encoder if the release has it.
    ///
    /// # Errors
    /// Those of the files, the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let config = pretrained.config::<Config>()?;
        let vqgan = Vqgan::load_whole(config, &pretrained.weights, pretrained.options.initialize)?;
        let inventory = pretrained.weights.finish()?;
        Ok(Self { card: pretrained.card(&pretrained.architecture("VQModel"), &inventory), vqgan })
    }

    /// The network.
    pub fn vqgan(&self) -> &Vqgan {
        &self.vqgan
    }
}

/// The options of the loss.
struct LossOptions {
    squared: bool,
    commitment: f64,
    entropy: f64,
    entropy_temperature: f64,
}

impl LossOptions {
    /// Reads the options of a loss.
    fn new(options: &Value) -> Result<Self> {
        let mut read = Self {
            squared: false,
            commitment: COMMITMENT,
            entropy: 0.0,
            entropy_temperature: ENTROPY_TEMPERATURE,
        };
        for (name, value) in options.as_object().into_iter().flatten() {
            let number = value.as_f64().filter(|number| number.is_finite() && *number >= 0.0);
            let number = number.ok_or_else(|| {
                Error::input(format!("{name} is {value}, expected a number that is not negative"))
            });
            match name.as_str() {
                "reconstruction" => {
                    read.squared = match value.as_str() {
                        Some("l1") => false,
                        Some("l2") => true,
                        _ => {
                            return Err(Error::input(format!("reconstruction is {value}"))
                                .hint("expected l1 (mean absolute error) or l2 (mean squared error)"));
                        }
                    }
                }
                "commitment" => read.commitment = number?,
                "entropy" => read.entropy = number?,
                "entropy_temperature" => read.entropy_temperature = number?,
                _ => {
                    return Err(Error::input(format!("the loss has no option \"{name}\""))
                        .hint("known: reconstruction, commitment, entropy, entropy_temperature"));
                }
            }
        }
        match read.entropy_temperature > 0.0 {
            true => Ok(read),
            false => Err(Error::input("entropy_temperature is 0, expected more")),
        }
    }
}

impl Vqgan {
    /// The pixels of an image, `(resolution, resolution, 3)` in 0 to 1: the largest square in its middle, resized.
    fn prepared(&self, image: &Image) -> Result<Tensor> {
        let side = self.config().resolution;
        let shorter = image.width.min(image.height);
        if shorter == 0 {
            return Err(Error::input("an image without pixels"));
        }
        let size = |length: usize| (length as f64 * side as f64 / shorter as f64).round_ties_even() as usize;
        let (height, width) = (size(image.height), size(image.width));
        let middle = |length: usize| (length - side) / 2..(length - side) / 2 + side;
        let part = Part { rows: middle(height), columns: middle(width) };
        let square = resize_part(image, height, width, &part, Filter::Lanczos, Arithmetic::Pillow)?;
        let values: Vec<f32> = square.rgb.iter().map(|value| f32::from(*value) / 255.0).collect();
        Ok(Tensor::from_vec(values, (side, side, 3), &Device::Cpu)?)
    }

    /// The codes of an image, `(1, height, width)` of int64, which is cropped to the square in its middle and resized to
    /// the resolution of training.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_image(&self, image: &Image) -> Result<Tensor> {
        let (_, codes) = self.encode(&self.prepared(image)?.unsqueeze(0)?)?;
        Ok(codes.to_dtype(DType::I64)?.to_device(&Device::Cpu)?)
    }

    /// Decodes the input `codes`, `(batch, height, width)` or `(batch, codes)` of square grids, to images,
    /// `(batch, height, width, 3)` in 0 to 255.
    pub(in crate::dalle) fn decode_inputs(&self, inputs: &Tensors) -> Result<Tensor> {
        only_known(inputs, &["codes"])?;
        let codes = inputs.get("codes").ok_or_else(|| Error::input("codes are missing"))?;
        match *codes.dims() {
            [batch, length] => {
                let side = side_of(length)?;
                self.decode(&codes.reshape((batch, side, side))?)
            }
            _ => self.decode(codes),
        }
    }

    /// Decodes an item of codes to images.
    pub(in crate::dalle) fn decode_item(&self, codes: &Tensors) -> Result<Vec<Image>> {
        to_images(&self.decode_inputs(codes)?)
    }

    /// Sample codes of whole images.
    pub(in crate::dalle) fn sample_inputs(&self, sizes: &SampleSizes) -> Result<Tensors> {
        let side = self.config().resolution / self.config().scale();
        let codes = sample_codes((sizes.rows * sizes.images.max(1), side, side))?;
        Ok(Tensors::from([("codes".to_string(), codes)]))
    }
}

impl VqganPipeline {
    /// The method `encode`: `pixel_values`, `(batch, height, width, 3)` in 0 to 1, to `latents`, `(batch, height / scale,
    /// width / scale, embed_dim)`, and `codes`, `(batch, height / scale, width / scale)`.
    fn encode_values(&self, inputs: &Tensors) -> Result<Tensors> {
        let (latents, codes) = self.vqgan.encode(pixels_of(inputs)?)?;
        Ok(Tensors::from([
            ("latents".to_string(), latents),
            ("codes".to_string(), codes.to_dtype(DType::I64)?),
        ]))
    }
}

/// The input `pixel_values`, `(batch, height, width, 3)`.
fn pixels_of(inputs: &Tensors) -> Result<&Tensor> {
    only_known(inputs, &["pixel_values"])?;
    let pixels = inputs.get("pixel_values").ok_or_else(|| Error::input("pixel_values are missing"))?;
    match pixels.dims() {
        [batch, _, _, 3] if *batch > 0 => Ok(pixels),
        shape => Err(Error::input(format!("pixel_values have the shape {shape:?}"))
            .hint("expected (batch, height, width, 3)")),
    }
}

impl Trainable for VqganPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        let has_encoder = self.vqgan.has_encoder();
        self.vqgan = Vqgan::load_whole(json::typed(config.clone())?, weights, has_encoder)?;
        Ok(())
    }

    /// The loss of `pixel_values`, `(batch, height, width, 3)` in 0 to 1: `loss_reconstruction`, plus `loss_codebook`, plus
    /// `commitment` (0.25) times `loss_commitment`, plus `entropy` (0) times `loss_entropy`. The option `reconstruction` is
    /// `l1` or `l2`, the option `entropy_temperature` that of the entropy loss. The adversarial and the perceptual term of
    /// Esser et al. 2021 are not implemented.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        let options = LossOptions::new(options)?;
        let pixels = pixels_of(inputs)?;
        let temperature = (options.entropy > 0.0).then_some(options.entropy_temperature);
        let parts = self.vqgan.losses(pixels, options.squared, temperature)?;
        let mut value = (&parts.reconstruction + &parts.codebook)?;
        value = (value + (&parts.commitment * options.commitment)?)?;
        if let Some(entropy) = &parts.entropy {
            value = (value + (entropy * options.entropy)?)?;
        }
        let loss = Loss::mean(value, pixels.elem_count() as f64)
            .with_part("loss_reconstruction", parts.reconstruction)
            .with_part("loss_codebook", parts.codebook)
            .with_part("loss_commitment", parts.commitment);
        Ok(match parts.entropy {
            Some(entropy) => loss.with_part("loss_entropy", entropy),
            None => loss,
        })
    }

    fn collate(&self, examples: &[Example], _: &Collation) -> Result<TrainingBatch> {
        let pixels = examples.iter().map(|example| match example {
            Example::Image(image) => self.vqgan.prepared(image),
            other => Err(labelled::not_learned(other, "image")),
        });
        let pixels = Tensor::stack(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(TrainingBatch::new(Tensors::from([("pixel_values".to_string(), pixels)])))
    }

    fn head(&self) -> Result<&'static str> {
        Err(self.cannot("name an output head: it is a codec"))
    }
}

impl Pipeline for VqganPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        self.vqgan.encoder()?;
        Ok(self)
    }

    fn image_options(&self) -> ImageOptions {
        ImageOptions::pillow()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        Ok(Tensors::from([("images".to_string(), self.vqgan.decode_inputs(inputs)?)]))
    }

    fn call(&self, method: &str, inputs: &Tensors, _: &Value) -> Result<Tensors> {
        match method {
            "forward" | "decode" => self.forward(inputs),
            "encode" => self.encode_values(inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        match (method, sizes.tokens) {
            ("forward" | "decode", 0) => self.vqgan.sample_inputs(sizes),
            _ => Err(self.cannot(&format!("run \"{method}\" on {} tokens", sizes.tokens))),
        }
    }

    fn generate(
        &self,
        prompt: &Prompt,
        _: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let item = match prompt {
            Prompt::Items(items) => match &items[..] {
                [item @ (Item::Codes(_) | Item::Image(_))] => Some(item),
                _ => None,
            },
            Prompt::Chat(_) | Prompt::Infill { .. } => None,
        };
        match item {
            Some(Item::Codes(codes)) => {
                for image in self.vqgan.decode_item(codes)? {
                    if each(Item::Image(image)).is_break() {
                        break;
                    }
                }
            }
            Some(Item::Image(image)) => {
                let codes = self.vqgan.encode_image(image)?;
                let _ = each(Item::Codes(Tensors::from([("codes".to_string(), codes)])));
            }
            _ => {
                return Err(self
                    .cannot("read text")
                    .hint("it is a VQGAN without a transformer: give it an image, or the codes of one"));
            }
        }
        Ok(Generation::default())
    }
}
