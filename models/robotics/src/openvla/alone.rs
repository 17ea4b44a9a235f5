//! Separate components of OpenVLA: a folder with only the image processor's file, or the action tokenizer's.

use candle_core::{DType, Device, Tensor};
use fauna_shared::item::{ImageOptions, Modality, Tensors};
use fauna_shared::model::{Card, Pipeline, Pretrained, only_known};
use fauna_shared::{Error, Result, transfer};
use fauna_vision::processor::to_images;
use serde_json::{Map, Value};

use super::processor::FrameProcessor;
use crate::action::ActionTokenizer;

pub const TOKENIZER: &str = "ActionTokenizer";
pub const TOKENIZER_FILE: &str = "action_tokenizer.json";
pub const PROCESSOR: &str = "PrismaticImageProcessor";
pub const PROCESSOR_FILE: &str = "preprocessor_config.json";

/// Returns whether `pretrained` is a separate component.
pub fn is_alone(pretrained: &Pretrained) -> bool {
    [TOKENIZER, PROCESSOR].contains(&pretrained.architecture("").as_str())
}

/// Loads a separate component.
pub fn open(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    let architecture = pretrained.architecture("");
    let name = if architecture == TOKENIZER { TOKENIZER_FILE } else { PROCESSOR_FILE };
    let file =
        pretrained.json(name)?.ok_or_else(|| pretrained.config_error(format!("there is no {name}")))?;
    let at_file = |error: Error| match pretrained.files.get(name) {
        Some(path) => error.at(path),
        None => error,
    };
    let modalities = match architecture == TOKENIZER {
        true => {
            tokenizer(&file, &Value::Null).map_err(at_file)?;
            [Modality::Action, Modality::Codes]
        }
        false => {
            FrameProcessor::from_json(&file).map_err(at_file)?;
            [Modality::Image, Modality::Vector]
        }
    };
    let mut card = pretrained.card(&architecture, &pretrained.weights.finish()?);
    (card.inputs, card.outputs) = (vec![modalities[0]], vec![modalities[1]]);
    Ok(Box::new(Alone { file, card }))
}

/// A component without the model.
struct Alone {
    file: Value,
    card: Card,
}

impl Pipeline for Alone {
    fn card(&self) -> &Card {
        &self.card
    }

    fn image_options(&self) -> ImageOptions {
        ImageOptions::pillow()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.call("encode", inputs, &Value::Null)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match (method, self.card.architecture == TOKENIZER) {
            ("encode" | "decode", true) => code(&tokenizer(&self.file, options)?, inputs),
            ("encode" | "preprocess", false) => {
                let processor = match options["image_resize_strategy"].as_str() {
                    Some(strategy) => FrameProcessor::with_strategy(&self.file, strategy)?,
                    None => FrameProcessor::from_json(&self.file)?,
                };
                let crop = options["center_crop"].as_bool().unwrap_or(false);
                preprocess(&processor.with_centre_crop(crop), inputs)
            }
            _ => Err(self.cannot(&format!("run the method \"{method}\""))),
        }
    }
}

/// Preprocesses `image`, `(height, width, 3)` or `(batch, height, width, 3)` with values 0 to 255, to `pixel_values`,
/// `(batch, 3 · towers, image_size, image_size)`.
pub fn preprocess(processor: &FrameProcessor, inputs: &Tensors) -> Result<Tensors> {
    only_known(inputs, &["image"])?;
    let image = inputs.get("image").ok_or_else(|| Error::input("image is missing"))?;
    let frames = to_images(image)?;
    let rows = frames.iter().map(|frame| processor.process(frame)).collect::<Result<Vec<_>>>()?;
    Ok(Tensors::from([("pixel_values".to_string(), Tensor::stack(&rows, 0)?)]))
}

/// Returns the tokenizer of `file`; keys in `options` override those of the file.
fn tokenizer(file: &Value, options: &Value) -> Result<ActionTokenizer> {
    let empty = Map::new();
    let (file, options) = (file.as_object().unwrap_or(&empty), options.as_object().unwrap_or(&empty));
    let get = |key: &str| options.get(key).or(file.get(key)).filter(|value| !value.is_null());
    let wrong = |key: &str, value: &Value| {
        Error::new(fauna_shared::ErrorKind::Format, format!("{key} is {value}, expected a number"))
    };
    let count = |key: &str, default: u64| match get(key) {
        None => Ok(default as usize),
        Some(value) => value.as_u64().map(|count| count as usize).ok_or_else(|| wrong(key, value)),
    };
    let real = |key: &str, default: f64| match get(key) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| wrong(key, value)),
    };
    ActionTokenizer::new(
        count("vocab_size", 32_000)?,
        count("bins", 256)?,
        real("min_action", -1.0)?,
        real("max_action", 1.0)?,
    )
}

/// Encodes `actions` to `token_ids`, and decodes these to `round_trip`; decodes `token_ids` to `decoded_actions`. Any
/// shapes.
fn code(tokenizer: &ActionTokenizer, inputs: &Tensors) -> Result<Tensors> {
    only_known(inputs, &["actions", "token_ids"])?;
    let mut out = Tensors::new();
    let decoded = |ids: &[i64], shape: &[usize]| -> Result<Tensor> {
        let actions: Vec<f32> = ids.iter().map(|id| tokenizer.decode(*id) as f32).collect();
        Ok(Tensor::from_vec(actions, shape, &Device::Cpu)?)
    };
    if let Some(actions) = inputs.get("actions") {
        let values: Vec<f64> = transfer::to_host(&actions.to_dtype(DType::F64)?)?;
        let ids = tokenizer.encode(&values)?;
        out.insert("round_trip".into(), decoded(&ids, actions.dims())?);
        out.insert("token_ids".into(), Tensor::from_vec(ids, actions.dims(), &Device::Cpu)?);
    }
    if let Some(ids) = inputs.get("token_ids") {
        let values: Vec<i64> = transfer::to_host(&ids.to_dtype(DType::I64)?)?;
        out.insert("decoded_actions".into(), decoded(&values, ids.dims())?);
    }
    match out.is_empty() {
        true => Err(Error::input("expected actions or token_ids as input")),
        false => Ok(out),
    }
}
