//! Image processors: `preprocessor_config.json` of a model, or of a release of its own without weights.

use candle_core::{DType, Tensor};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, ImageOptions, Modality, Tensors};
use fauna_shared::model::{Card, Layout, Pipeline, Pretrained, only_known};
use fauna_shared::source::Files;
use fauna_shared::weights::Inventory;
use fauna_shared::{Error, Result, transfer};
use serde_json::{Value, json};

/// Config files of image processors, in order of preference: of transformers 4 and of transformers 5.
const FILES: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];

/// Loads the image processor of a release; `None` if it has no processor config. `own` is the type if the file names
/// none: the one that the reference's `AutoImageProcessor` has for the model, such as `CLIPImageProcessor`.
///
/// # Errors
/// If the file cannot be parsed, naming it, and as [`Processor::from_json`].
pub fn of(files: &Files, own: &str) -> Result<Option<Processor>> {
    let Some((name, mut settings)) = settings(files)? else { return Ok(None) };
    if kind(&settings).is_none()
        && let Some(settings) = settings.as_object_mut()
    {
        settings.insert("image_processor_type".to_string(), own.into());
    }
    read(files, name, &settings).map(Some)
}

/// The name of the processor config and its contents.
fn settings(files: &Files) -> Result<Option<(&'static str, Value)>> {
    for name in FILES {
        if let Some(mut settings) = files.json(name)? {
            // transformers 5 has all processors of a model in one file.
            let nested = settings["image_processor"].is_object();
            if nested {
                settings = settings["image_processor"].take();
            }
            if nested || name == FILES[0] || kind(&settings).is_some() {
                return Ok(Some((name, settings)));
            }
        }
    }
    Ok(None)
}

/// The image processor's type.
fn kind(settings: &Value) -> Option<&str> {
    settings["image_processor_type"].as_str().or(settings["feature_extractor_type"].as_str())
}

fn read(files: &Files, name: &str, settings: &Value) -> Result<Processor> {
    Processor::from_json(settings).map_err(|error| match files.get(name) {
        Some(path) => error.at(path),
        None => error,
    })
}

/// The layout of a release that is only an image processor, without config or weights: as `model_type`, if the
/// processor's type begins with one of `types`.
///
/// # Errors
/// If the file cannot be parsed.
pub fn layout(files: &Files, model_type: &str, types: &[&str]) -> Result<Option<Layout>> {
    if files.get("config.json").is_some() {
        return Ok(None);
    }
    let Some((_, settings)) = settings(files)? else { return Ok(None) };
    let kind = kind(&settings).filter(|kind| types.iter().any(|known| kind.starts_with(known)));
    Ok(kind.map(|kind| Layout {
        config: json!({"model_type": model_type, "architectures": [kind]}),
        weights: Vec::new(),
    }))
}

/// Whether `pretrained` is only an image processor, without a model.
pub fn is_alone(pretrained: &Pretrained) -> bool {
    let architecture = pretrained.architecture("");
    ["ImageProcessor", "FeatureExtractor"].iter().any(|kind| architecture.contains(kind))
}

/// The inventory of a release that is only an image processor: no tensors. `None` for other releases.
///
/// # Errors
/// As [`Weights::finish`](fauna_shared::weights::Weights::finish).
pub fn inventory(pretrained: &Pretrained) -> Result<Option<Inventory>> {
    is_alone(pretrained).then(|| pretrained.weights.finish()).transpose()
}

/// Opens a release that is only an image processor; `None` for other releases.
///
/// # Errors
/// If its config cannot be parsed.
pub fn open(pretrained: &Pretrained) -> Result<Option<Box<dyn Pipeline>>> {
    match is_alone(pretrained) {
        true => Ok(Some(Box::new(ProcessorPipeline::open(pretrained)?))),
        false => Ok(None),
    }
}

/// An image processor without a model: images to `pixel_values`.
pub struct ProcessorPipeline {
    processor: Processor,
    settings: Value,
    card: Card,
}

impl ProcessorPipeline {
    /// Opens a release with a processor config.
    ///
    /// # Errors
    /// If the config is missing or cannot be parsed.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (name, settings) = settings(&pretrained.files)?
            .ok_or_else(|| pretrained.config_error(format!("expected {} or {}", FILES[0], FILES[1])))?;
        let processor = read(&pretrained.files, name, &settings)?;
        let mut card = pretrained.card(&pretrained.architecture(""), &pretrained.weights.finish()?);
        (card.inputs, card.outputs) = (vec![Modality::Image], vec![Modality::Vector]);
        Ok(Self { processor, settings, card })
    }

    /// The image processor.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }
}

impl Pipeline for ProcessorPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn image_options(&self) -> ImageOptions {
        self.processor.image_options()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        preprocess(&self.processor, inputs)
    }

    /// `preprocess`; `options` are the reference's arguments, by its names.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        if !["preprocess", "forward"].contains(&method) {
            return Err(self.cannot(&format!("run the method \"{method}\"")));
        }
        match options.as_object().filter(|options| !options.is_empty()) {
            None => preprocess(&self.processor, inputs),
            Some(options) => {
                let mut settings = self.settings.clone();
                if let Some(settings) = settings.as_object_mut() {
                    settings.extend(options.clone());
                }
                preprocess(&Processor::from_json(&settings)?, inputs)
            }
        }
    }
}

/// The reference's `preprocess`: the input `image`, `(height, width, 3)` or `(images, height, width, 3)` of 0 to 255,
/// to the outputs `pixel_values`, `(images, 3, height, width)`, integers without rescaling, and `num_crops`, the number
/// of pan-and-scan crops that follow each image.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for another input name or shape, or a value out of range.
pub fn preprocess(processor: &Processor, inputs: &Tensors) -> Result<Tensors> {
    only_known(inputs, &["image"])?;
    let image = inputs.get("image").ok_or_else(|| Error::input("image is missing"))?;
    let images = to_images(image)?;
    let pixels = processor.batch(&images)?;
    let pixels = match processor.gives_bytes() {
        true => pixels.to_dtype(DType::I64)?,
        false => pixels,
    };
    let mut counts = Vec::new();
    for image in &images {
        counts.push(processor.pieces(image)?.len() as i64);
    }
    let counts = Tensor::from_vec(counts, images.len(), pixels.device())?;
    Ok(Tensors::from([("pixel_values".to_string(), pixels), ("num_crops".to_string(), counts)]))
}

/// Converts a tensor, `(height, width, 3)` or `(images, height, width, 3)` of 0 to 255, to images.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for another shape or a value out of range.
pub fn to_images(image: &Tensor) -> Result<Vec<Image>> {
    let (count, height, width) = match *image.dims() {
        [height, width, 3] => (1, height, width),
        [count, height, width, 3] => (count, height, width),
        ref found => {
            return Err(Error::input(format!("image has the shape {found:?}"))
                .hint("expected (height, width, 3) or (images, height, width, 3)"));
        }
    };
    let values: Vec<i64> = transfer::to_host(&image.to_dtype(DType::I64)?)?;
    if let Some(value) = values.iter().find(|value| !(0..=255).contains(*value)) {
        return Err(Error::input(format!("image has a value of {value}: expected 0 to 255")));
    }
    let bytes = |row: &[i64]| row.iter().map(|value| *value as u8).collect();
    match height * width {
        0 => Err(Error::input(format!("image has the shape {:?}: it has no pixels", image.dims()))),
        pixels => {
            let rows = values.chunks_exact(pixels * 3).take(count);
            Ok(rows.map(|row| Image { width, height, rgb: bytes(row) }).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_without_a_type_has_the_models_default_type() {
        let folder = tempfile::tempdir().unwrap();
        let files = || Files::folder(folder.path(), "test");
        let write =
            |name: &str, file: &Value| std::fs::write(folder.path().join(name), file.to_string()).unwrap();
        assert!(of(&files(), "CLIPImageProcessor").unwrap().is_none());

        let settings =
            json!({"size": {"shortest_edge": 14}, "crop_size": 12, "processor_class": "CLIPProcessor"});
        let typed = |kind: &str| {
            let mut settings = settings.clone();
            settings["image_processor_type"] = json!(kind);
            Processor::from_json(&settings).unwrap()
        };
        for name in FILES {
            let file = if name == FILES[0] { settings.clone() } else { json!({"image_processor": settings}) };
            write(name, &file);
            for kind in ["CLIPImageProcessor", "SiglipImageProcessor"] {
                let found = format!("{:?}", of(&files(), kind).unwrap());
                assert_eq!(found, format!("{:?}", Some(typed(kind))), "{name} {kind}");
            }
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
        // A `processor_config.json` without an image processor.
        write(FILES[1], &json!({"processor_class": "LlavaProcessor", "patch_size": 14}));
        assert!(of(&files(), "LlavaImageProcessor").unwrap().is_none());
        // Errors name the file.
        write(FILES[0], &json!({"size": "large"}));
        let error = of(&files(), "CLIPImageProcessor").unwrap_err().to_string();
        assert!(error.contains(FILES[0]) && error.contains("size is"), "{error}");
    }
}
