//! Processors: the file that says what becomes of a picture before a model sees it, beside a model or alone.

use candle_core::{DType, Tensor};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, Modality, Reading, Tensors};
use fauna_shared::model::{Card, Layout, Pipeline, Pretrained, only_known};
use fauna_shared::source::Files;
use fauna_shared::weights::Inventory;
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

/// Where a release says it, in the order of preference: transformers 4's file, and transformers 5's.
const FILES: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];

/// What the files of a release say of its pictures; none if they say nothing. A file that names no type is of the type
/// `own`, which the reference's `AutoImageProcessor` takes for the model: `CLIPImageProcessor`.
///
/// # Errors
/// What is wrong with the file, by its name, and as [`Processor::from_json`].
pub fn of(files: &Files, own: &str) -> Result<Option<Processor>> {
    let Some((name, mut settings)) = settings(files)? else { return Ok(None) };
    if kind(&settings).is_none()
        && let Some(settings) = settings.as_object_mut()
    {
        settings.insert("image_processor_type".to_string(), own.into());
    }
    read(files, name, &settings).map(Some)
}

/// The file and what stands in it.
fn settings(files: &Files) -> Result<Option<(&'static str, Value)>> {
    for name in FILES {
        if let Some(mut settings) = files.json(name)? {
            // transformers 5 puts all processors of a model into one file.
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

/// The type of picture processor that `settings` are of.
fn kind(settings: &Value) -> Option<&str> {
    settings["image_processor_type"].as_str().or(settings["feature_extractor_type"].as_str())
}

fn read(files: &Files, name: &str, settings: &Value) -> Result<Processor> {
    Processor::from_json(settings).map_err(|error| match files.get(name) {
        Some(path) => error.at(path),
        None => error,
    })
}

/// The layout of a processor alone, of one of `types` (as they begin), as a thing of `model_type`: a folder with its
/// file and neither config nor weights.
///
/// # Errors
/// What is wrong with the file.
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

/// Whether `pretrained` is of a processor alone.
pub fn is_alone(pretrained: &Pretrained) -> bool {
    let architecture = pretrained.architecture("");
    ["ImageProcessor", "FeatureExtractor"].iter().any(|kind| architecture.contains(kind))
}

/// What a processor alone holds: no tensors. None if `pretrained` is of something else.
///
/// # Errors
/// None that are to be expected.
pub fn inventory(pretrained: &Pretrained) -> Result<Option<Inventory>> {
    is_alone(pretrained).then(|| pretrained.weights.finish()).transpose()
}

/// A processor alone as a pipeline; none if `pretrained` is of something else.
///
/// # Errors
/// What is wrong with its file.
pub fn open(pretrained: &Pretrained) -> Result<Option<Box<dyn Pipeline>>> {
    match is_alone(pretrained) {
        true => Ok(Some(Box::new(ProcessorPipeline::open(pretrained)?))),
        false => Ok(None),
    }
}

/// A processor without a model: pictures to `pixel_values`.
pub struct ProcessorPipeline {
    processor: Processor,
    settings: Value,
    card: Card,
}

impl ProcessorPipeline {
    /// Opens a folder with a processor's file.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (name, settings) = settings(&pretrained.files)?
            .ok_or_else(|| pretrained.config_error(format!("neither {} nor {}", FILES[0], FILES[1])))?;
        let processor = read(&pretrained.files, name, &settings)?;
        let card = Card {
            inputs: vec![Modality::Image],
            outputs: vec![Modality::Vector],
            ..pretrained.card(&pretrained.architecture(""), &pretrained.weights.finish()?)
        };
        Ok(Self { processor, settings, card })
    }

    /// The processor.
    pub fn processor(&self) -> &Processor {
        &self.processor
    }
}

impl Pipeline for ProcessorPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn reading(&self) -> Reading {
        self.processor.reading()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        preprocess(&self.processor, inputs)
    }

    /// `preprocess`, with arguments of the reference's own by its names in `options`.
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

/// The reference's `preprocess`: `image`, `(height, width, 3)` or several of one size, `(pictures, height, width, 3)`,
/// values 0 to 255, to `pixel_values`, `(pictures, 3, height, width)`; integers where nothing is scaled. `num_crops`
/// says how many pieces of pan and scan follow each picture.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for another name or shape or a value out of range.
pub fn preprocess(processor: &Processor, inputs: &Tensors) -> Result<Tensors> {
    only_known(inputs, &["image"])?;
    let image = inputs.get("image").ok_or_else(|| Error::input("image is missing"))?;
    let images = pictures(image)?;
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

/// The pictures of a tensor of `(height, width, 3)` or `(pictures, height, width, 3)`, values 0 to 255.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for another shape or a value out of range.
pub fn pictures(image: &Tensor) -> Result<Vec<Image>> {
    let (count, height, width) = match *image.dims() {
        [height, width, 3] => (1, height, width),
        [count, height, width, 3] => (count, height, width),
        ref found => {
            return Err(Error::input(format!("image has the shape {found:?}"))
                .hint("wanted (height, width, 3) or (pictures, height, width, 3)"));
        }
    };
    let values: Vec<i64> = image.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?;
    if let Some(value) = values.iter().find(|value| !(0..=255).contains(*value)) {
        return Err(Error::input(format!("image holds {value}: bytes of 0 to 255 wanted")));
    }
    let bytes = |row: &[i64]| row.iter().map(|value| *value as u8).collect();
    match height * width {
        0 => Err(Error::input(format!("image has the shape {:?}: no pixel", image.dims()))),
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
    fn a_file_that_names_no_type_is_of_the_models_own() {
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
        // A file of the processors' other half says nothing of pictures.
        write(FILES[1], &json!({"processor_class": "LlavaProcessor", "patch_size": 14}));
        assert!(of(&files(), "LlavaImageProcessor").unwrap().is_none());
        // What is wrong is said with the file.
        write(FILES[0], &json!({"size": "large"}));
        let error = of(&files(), "CLIPImageProcessor").unwrap_err().to_string();
        assert!(error.contains(FILES[0]) && error.contains("size is"), "{error}");
    }
}
