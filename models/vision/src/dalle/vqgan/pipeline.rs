//! The pipeline of a VQGAN decoder without a transformer: codes to images.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{Card, Pipeline, Pretrained, SampleSizes, only_known};
use fauna_shared::{Error, Result};
use serde_json::Value;

use super::Vqgan;
use crate::dalle::{sample_codes, side_of, to_images};

/// A VQGAN decoder with the card of its release.
pub struct VqganPipeline {
    vqgan: Vqgan,
    card: Card,
}

impl VqganPipeline {
    /// Loads the decoder.
    ///
    /// # Errors
    /// Those of the files, the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (vqgan, inventory) = pretrained.load::<Vqgan>()?;
        Ok(Self { card: pretrained.card(&pretrained.architecture("VQModel"), &inventory), vqgan })
    }

    /// The network.
    pub fn vqgan(&self) -> &Vqgan {
        &self.vqgan
    }
}

impl Vqgan {
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

impl Pipeline for VqganPipeline {
    fn card(&self) -> &Card {
        &self.card
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
        let codes = match prompt {
            Prompt::Items(items) => match &items[..] {
                [Item::Codes(codes)] => Some(codes),
                _ => None,
            },
            Prompt::Chat(_) | Prompt::Infill { .. } => None,
        };
        let codes = codes
            .ok_or_else(|| self.cannot("read text").hint("it is a VQGAN decoder without a transformer"))?;
        for image in self.vqgan.decode_item(codes)? {
            if each(Item::Image(image)).is_break() {
                break;
            }
        }
        Ok(Generation::default())
    }
}
