//! The pipeline of CLIP and SigLIP: image and text embeddings in one space, and zero-shot image classification.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::Processor;
use fauna_shared::item::{Embeddings, Image, ImageOptions, Item, Label, Modality, Prompt, Tensors, beyond};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, noise_pixels,
    only_known, token_rows,
};
use fauna_shared::nn::l2_normalize;
use fauna_shared::text::{Encoding, Tokenizer};
use fauna_shared::train::{Example, Target};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result, json, transfer};
use fauna_text::causal::no_options;
use fauna_text::{labelled, words};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::processor;

/// The config file of open_clip.
pub(crate) const OPEN_CLIP: &str = "open_clip_config.json";

/// Number of tokens (of text or of image patches) per forward pass: large enough for multi-threading, small enough for
/// the CPU caches.
const TOKENS_PER_BATCH: usize = 2048;

/// A dual encoder, or one of its two towers.
pub trait ContrastiveModel: Send + Sync {
    /// Runs the reference's forward pass, with the names of its inputs and outputs. `any_size` interpolates the
    /// position embeddings to images of any size.
    fn forward(&self, inputs: &Tensors, any_size: bool) -> Result<Tensors>;

    /// Returns the image embeddings, `(batch, projection_dim)`, of `pixels`, `(batch, 3, height, width)`.
    fn embed_images(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Returns the text embeddings, `(batch, projection_dim)`, of `ids`, `(batch, sequence)`.
    fn embed_texts(&self, ids: &Tensor) -> Result<Tensor>;

    /// Returns the probability of each label, from the cosine similarities of the labels to one image.
    fn probabilities(&self, cosines: &[f32]) -> Vec<f32>;

    /// Number of tokens per image in the vision tower.
    fn tokens_per_image(&self) -> usize;

    /// Image height and width in pixels; `None` without a vision tower.
    fn image_size(&self) -> Option<usize>;

    /// The loss of a batch of pairs, from `logits`, `(texts, images)`, of which those on the diagonal belong together.
    fn loss(&self, logits: &Tensor) -> Result<Tensor>;

    /// The tensors of the heads of both towers, as [`Trainable::head`].
    fn heads(&self) -> &'static str;
}

/// How texts are preprocessed for the text tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPreprocessing {
    /// Texts are padded to the longest of a batch.
    Clip,
    /// Texts are lower-cased, without punctuation for most releases, and padded to the maximum length.
    Siglip,
}

/// Parses the config of one tower: the value of `key`, or with `alone` the config itself if it has no such key. Old
/// files also have `{key}_dict`, which takes precedence. `kind` is the prefix of the family's `model_type`s.
pub(crate) fn tower_config<T: DeserializeOwned>(
    config: &Value,
    kind: &str,
    key: &str,
    alone: bool,
) -> std::result::Result<T, String> {
    let nested = [&config[format!("{key}_dict")], &config[key]].into_iter().find(|value| value.is_object());
    let mut config = match nested {
        Some(nested) => nested.clone(),
        None if alone => config.clone(),
        None => json!({}),
    };
    if let Some(model_type) = config["model_type"].as_str()
        && model_type != kind
        && !model_type.starts_with(&format!("{kind}_"))
    {
        return Err(format!(
            "{key} is of model_type \"{model_type}\", which the {kind} family does not load"
        ));
    }
    if let Some(keys) = config.as_object_mut() {
        keys.retain(|_, value| !value.is_null());
    }
    json::part(key, config).map_err(|error| error.message().to_string())
}

/// Returns the integer under `key`, or `default` if it is null or missing.
pub(crate) fn size(config: &Value, key: &str, default: usize) -> std::result::Result<usize, String> {
    match &config[key] {
        Value::Null => Ok(default),
        value => json::part(key, value.clone()).map_err(|error| error.message().to_string()),
    }
}

/// Returns the one-element tensor `name` of `shape` as a float32 scalar.
pub(crate) fn scalar(w: &Weights, name: &str, shape: &[usize]) -> Result<Tensor> {
    Ok(w.tensor(name, shape)?.reshape(())?.to_dtype(DType::F32)?)
}

/// The number in `scalar`, on the host, without its gradient.
pub(crate) fn number(scalar: &Tensor) -> Result<f32> {
    transfer::scalar(&scalar.detach())
}

/// L2-normalises `x` over its last dimension.
pub(crate) fn normalised(x: &Tensor) -> Result<Tensor> {
    l2_normalize(x, 1e-30)
}

/// The error for a tower that the checkpoint does not have: `text` or `vision`.
pub(crate) fn no_tower(tower: &str) -> Error {
    Error::unsupported(format!("this checkpoint has no {tower} tower"))
}

/// Sets the card's input and output modalities by the towers of the checkpoint.
pub(crate) fn set_modalities(card: &mut Card, has_text: bool, has_vision: bool) {
    let (text, image) = (has_text.then_some(Modality::Text), has_vision.then_some(Modality::Image));
    card.inputs = image.into_iter().chain(text).collect();
    card.outputs = match has_text && has_vision {
        true => vec![Modality::Vector, Modality::Label],
        false => vec![Modality::Vector],
    };
}

/// A dual encoder, or one of its towers, with its tokenizer and image processor.
pub(crate) struct ContrastivePipeline<N> {
    network: N,
    tokenizer: Option<Tokenizer>,
    processor: Option<Processor>,
    preprocessing: TextPreprocessing,
    /// Whether punctuation is removed from texts.
    strip_punctuation: bool,
    /// The padding token.
    pad: u32,
    card: Card,
}

impl<N: ContrastiveModel> ContrastivePipeline<N> {
    pub(crate) fn open(
        pretrained: &Pretrained,
        network: N,
        card: Card,
        preprocessing: TextPreprocessing,
    ) -> Result<Self> {
        let tokenizer = match card.inputs.contains(&Modality::Text) {
            true => words::tokenizer(pretrained)?,
            false => None,
        };
        let config = pretrained.json("tokenizer_config.json")?.unwrap_or_default();
        // SigLIP 2 uses Gemma's tokenizer, and keeps punctuation.
        let class = config["tokenizer_class"].as_str();
        let strip_punctuation = match class {
            Some(class) => class.starts_with("SiglipTokenizer"),
            None => pretrained.files.get("spiece.model").is_some(),
        };
        let named = tokenizer.as_ref().and_then(|tokenizer| tokenizer.special().pad);
        let pad = match preprocessing {
            // Padding follows the pooled EOS token, so that its id has no effect; transformers pads with EOS.
            TextPreprocessing::Clip => named.unwrap_or(0),
            TextPreprocessing::Siglip => named.filter(|_| config.get("pad_token").is_some()).unwrap_or(1),
        };
        let processor = image_processor(pretrained, preprocessing, network.image_size())?;
        Ok(Self { network, tokenizer, processor, preprocessing, strip_punctuation, pad, card })
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| match self.preprocessing {
            TextPreprocessing::Clip => Error::new(
                ErrorKind::NotFound,
                format!("{} has no tokenizer", self.card.source),
            )
            .hint("put the tokenizer.json of openai/clip-vit-base-patch32 next to the weights: all releases share it"),
            TextPreprocessing::Siglip => words::no_tokenizer(&self.card.source),
        })
    }

    /// Tokenizes `text`, truncated to the maximum length; the EOS token is kept.
    fn encode(&self, text: &str) -> Result<Encoding> {
        self.encode_up_to(text, self.card.context)
    }

    /// The same, truncated to `max_length`.
    fn encode_up_to(&self, text: &str, max_length: Option<usize>) -> Result<Encoding> {
        match self.preprocessing {
            TextPreprocessing::Clip => self.tokenizer()?.encode_text(text, max_length),
            TextPreprocessing::Siglip => {
                let text = match self.strip_punctuation {
                    true => without_punctuation(&text.to_lowercase()),
                    false => text.to_lowercase(),
                };
                self.tokenizer()?.encode_text(&text, max_length)
            }
        }
    }

    /// Returns the padded ids, `(batch, sequence)`: as long as the longest text, and at least `length`.
    fn padded_ids(&self, encodings: &[&Encoding], length: Option<usize>) -> Result<Tensor> {
        let longest = encodings.iter().map(|encoding| encoding.ids.len()).max().unwrap_or(0);
        let length = longest.max(length.unwrap_or(0));
        let row = |encoding: &&Encoding| {
            let fill = std::iter::repeat_n(self.pad, length - encoding.ids.len());
            encoding.ids.iter().copied().chain(fill).collect::<Vec<u32>>()
        };
        let ids: Vec<u32> = encodings.iter().flat_map(row).collect();
        Ok(Tensor::from_vec(ids, (encodings.len(), length), &Device::Cpu)?)
    }

    /// The length that all texts are padded to, if the model was trained on one length.
    fn padded_length(&self) -> Option<usize> {
        match self.preprocessing {
            // Attention is causal: padding after the EOS token has no effect on it.
            TextPreprocessing::Clip => None,
            TextPreprocessing::Siglip => self.card.context,
        }
    }

    /// Returns one normalised embedding per text, in order; batches are formed from the longest text down.
    fn embed_texts(&self, encodings: &[Encoding]) -> Result<Vec<Tensor>> {
        let mut order: Vec<usize> = (0..encodings.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(encodings[*i].ids.len()));
        let mut vectors = vec![None; encodings.len()];
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let time = encodings[*first].ids.len().max(self.padded_length().unwrap_or(1));
            let (now, later) = rest.split_at((TOKENS_PER_BATCH / time).clamp(1, rest.len()));
            rest = later;
            let chosen: Vec<&Encoding> = now.iter().map(|i| &encodings[*i]).collect();
            let made = self.network.embed_texts(&self.padded_ids(&chosen, self.padded_length())?)?;
            for (row, i) in now.iter().enumerate() {
                vectors[*i] = Some(made.narrow(0, row, 1)?);
            }
        }
        vectors.into_iter().flatten().map(|vector| on_host(&vector)).collect()
    }

    /// Returns one normalised embedding per image.
    fn embed_images(&self, pictures: &[&Image]) -> Result<Vec<Tensor>> {
        let mut vectors = Vec::with_capacity(pictures.len());
        let count = (TOKENS_PER_BATCH / self.network.tokens_per_image()).max(1);
        for (pass, now) in pictures.chunks(count).enumerate() {
            let pixels = |(i, picture): (usize, &&Image)| {
                let of_which = |error: Error| match pictures.len() {
                    1 => error,
                    all => error.context(format!("image {} of {all}", pass * count + i + 1)),
                };
                self.processor()?.process(picture).map_err(of_which)
            };
            let pixels = now.iter().enumerate().map(pixels).collect::<Result<Vec<_>>>()?;
            let made = self.network.embed_images(&Tensor::stack(&pixels, 0)?)?;
            for row in 0..now.len() {
                vectors.push(on_host(&made.narrow(0, row, 1)?)?);
            }
        }
        Ok(vectors)
    }

    fn processor(&self) -> Result<&Processor> {
        self.network.image_size().ok_or_else(|| no_tower("vision"))?;
        self.processor.as_ref().ok_or_else(|| {
            let message = format!("{} has no preprocessor_config.json", self.card.source);
            Error::new(ErrorKind::NotFound, message)
                .hint("it defines the image preprocessing: put the release's file next to the weights")
        })
    }

    fn embeddings(&self, items: &[Item]) -> Result<(Vec<Tensor>, Vec<usize>)> {
        let mut encodings = Vec::new();
        let mut pictures = Vec::new();
        for item in items {
            match item {
                Item::Text(text) => encodings.push(self.encode(text)?),
                Item::Image(image) => pictures.push(image),
                other => {
                    let message = format!("this model takes texts and images, not {}", other.modality());
                    return Err(Error::input(message));
                }
            }
        }
        let mut texts = self.embed_texts(&encodings)?.into_iter().zip(encodings.iter().map(|e| e.cut));
        let mut of_images = self.embed_images(&pictures)?.into_iter().map(|vector| (vector, 0));
        let next = |item: &Item| match item {
            Item::Text(_) => texts.next(),
            _ => of_images.next(),
        };
        Ok(items.iter().filter_map(next).unzip())
    }

    /// Splits a prompt into its image and its labels.
    fn image_and_labels<'p>(&self, prompt: &'p Prompt) -> Result<(&'p Item, Vec<&'p Item>)> {
        let Prompt::Items(items) = prompt else {
            return Err(Error::input(format!("{} takes no conversation", self.card.source))
                .hint("give it an image and labels"));
        };
        let (pictures, labels): (Vec<&Item>, Vec<&Item>) =
            items.iter().partition(|item| matches!(item, Item::Image(_)));
        let picture = match pictures[..] {
            [picture] => picture,
            [] => return Err(Error::input("no image to classify").set("give one", "Item::Image", "FILE")),
            _ => {
                return Err(Error::input(format!("expected one image to classify, got {}", pictures.len())));
            }
        };
        if labels.is_empty() {
            return Err(Error::input("no labels to choose from").set(
                "give some after the image",
                "Item::Text",
                "\"a cat,a dog\"",
            ));
        }
        for (i, label) in labels.iter().enumerate() {
            if label.text()?.trim().is_empty() {
                return Err(Error::input(format!("label {} of {} is empty", i + 1, labels.len())));
            }
        }
        Ok((picture, labels))
    }
}

/// The image processor of a release: from its config file, or the default transform of open_clip's and OpenAI's code.
fn image_processor(
    pretrained: &Pretrained,
    preprocessing: TextPreprocessing,
    image_size: Option<usize>,
) -> Result<Option<Processor>> {
    let Some(side) = image_size else { return Ok(None) };
    let own = match preprocessing {
        TextPreprocessing::Clip => "CLIPImageProcessor",
        TextPreprocessing::Siglip => "SiglipImageProcessor",
    };
    if let Some(processor) = processor::of(&pretrained.files, own)? {
        return Ok(Some(processor));
    }
    let hub = pretrained.files.get("config.json").is_some();
    match pretrained.json(OPEN_CLIP)? {
        _ if hub || preprocessing == TextPreprocessing::Siglip => Ok(None),
        Some(file) => {
            let place = pretrained.files.require(OPEN_CLIP)?;
            Processor::from_json(&file).map(Some).map_err(|error| error.at(place))
        }
        None => Ok(Some(Processor::open_clip(side))),
    }
}

/// L2-normalises an embedding, `(1, projection_dim)`, in float32 on the CPU.
fn on_host(vector: &Tensor) -> Result<Tensor> {
    normalised(&vector.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

/// Removes ASCII punctuation from `text` and collapses its white space.
fn without_punctuation(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The caption of a class that is the label of an image (Radford et al. 2021, section 3.1.4).
fn caption_of(class: &str) -> String {
    format!("a photo of a {class}")
}

/// The image and the caption of an example.
fn pair(example: &Example) -> Result<(&Image, String)> {
    let (one, other) = match example {
        Example::Pair { anchor, positive, negative: None } => (anchor, positive),
        Example::Pair { .. } => {
            return Err(Error::input(
                "a pair with a negative: the other captions of the batch are negatives",
            )
            .hint("leave negatives out"));
        }
        Example::Labelled { item: Item::Image(image), second: None, label: Target::Class(class) } => {
            return Ok((image, caption_of(class)));
        }
        other => return Err(labelled::not_learned(other, LEARNED)),
    };
    match (one, other) {
        (Item::Image(image), Item::Text(text)) | (Item::Text(text), Item::Image(image)) => {
            Ok((image, text.clone()))
        }
        _ => Err(Error::input(format!("a pair of {} and {}", one.modality(), other.modality()))
            .hint("a pair is an image and its caption")),
    }
}

/// What both families learn from.
const LEARNED: &str = "pair (of an image and its caption), labelled (an image and its class)";

impl<N: ContrastiveModel + Model> Trainable for ContrastivePipeline<N> {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = N::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The loss of the reference on a batch of pairs: text `i` belongs to image `i`.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        let out = self.network.forward(inputs, false)?;
        let Some(logits) = out.get("logits_per_text") else {
            return Err(self.cannot("learn from one tower").hint("the loss needs images and texts"));
        };
        let (texts, images) = logits.dims2()?;
        if texts != images {
            return Err(Error::input(format!("{texts} texts for {images} images"))
                .hint("text i of a batch belongs to image i"));
        }
        Ok(Loss::mean(self.network.loss(logits)?, texts as f64))
    }

    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let pairs = examples.iter().map(pair).collect::<Result<Vec<_>>>()?;
        let pixels = pairs.iter().map(|(image, _)| self.processor()?.process(image));
        let pixels = Tensor::stack(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
        let limit = options.max_length.into_iter().chain(self.card.context).min();
        let texts = pairs.iter().map(|(_, text)| self.encode_up_to(text, limit));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let ids = self.padded_ids(&texts.iter().collect::<Vec<_>>(), self.padded_length())?;
        let inputs = [("input_ids", ids.to_dtype(DType::I64)?), ("pixel_values", pixels)];
        let mut batch =
            TrainingBatch::new(inputs.into_iter().map(|(name, x)| (name.to_string(), x)).collect());
        batch.truncated = texts.iter().map(|text| text.cut).sum();
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(self.network.heads())
    }
}

impl<N: ContrastiveModel + Model> Pipeline for ContrastivePipeline<N> {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Self::tokenizer(self)
    }

    fn image_options(&self) -> ImageOptions {
        self.processor.as_ref().map_or_else(ImageOptions::default, Processor::image_options)
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.network.forward(inputs, false)
    }

    /// `forward`; the option `interpolate_pos_encoding` allows images of any size, the option `texts` replaces token
    /// ids, and the input `image`, `(height, width, 3)` of 0 to 255, is preprocessed first. Also `preprocess`, which
    /// returns the pixel values of such an image, and `get_image_features`.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => {}
            "preprocess" => return processor::preprocess(self.processor()?, inputs),
            "get_image_features" => {
                only_known(inputs, &["pixel_values"])?;
                let pixels =
                    inputs.get("pixel_values").ok_or_else(|| Error::input("pixel_values are missing"))?;
                let features = self.network.embed_images(pixels)?;
                return Ok(Tensors::from([("pooler_output".to_string(), features)]));
            }
            other => return Err(self.cannot(&format!("run the method \"{other}\""))),
        }
        let mut inputs = inputs.clone();
        let mut made = Tensors::new();
        if let Some(image) = inputs.remove("image") {
            match image.rank() {
                3 => {
                    made.insert(
                        "pixel_values".into(),
                        self.processor()?.batch(&processor::to_images(&image)?)?,
                    );
                }
                _ => {
                    inputs.insert("image".into(), image);
                }
            }
        }
        if let Some(texts) = options["texts"].as_array() {
            let texts = texts.iter().filter_map(Value::as_str);
            let encodings = texts.map(|text| self.encode(text)).collect::<Result<Vec<_>>>()?;
            let ids = self.padded_ids(&encodings.iter().collect::<Vec<_>>(), self.card.context)?;
            made.insert("input_ids".into(), ids.to_dtype(DType::I64)?);
        }
        inputs.extend(made.clone());
        let any_size = options["interpolate_pos_encoding"].as_bool().unwrap_or(false);
        let mut out = self.network.forward(&inputs, any_size)?;
        out.append(&mut made);
        Ok(out)
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        let mut inputs = match sizes.tokens {
            0 => Tensors::new(),
            _ => token_rows(sizes)?,
        };
        if let (1.., Some(side)) = (sizes.images, self.network.image_size()) {
            let shape = [sizes.rows * sizes.images, 3, side, side];
            inputs.insert("pixel_values".into(), noise_pixels(&shape)?);
        }
        match method == "forward" && !inputs.is_empty() {
            true => Ok(inputs),
            false => Err(self
                .cannot(&format!("run \"{method}\" on {} tokens and {} images", sizes.tokens, sizes.images))),
        }
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    /// Returns one L2-normalised embedding per text or image.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let (vectors, cut) = self.embeddings(items)?;
        if vectors.is_empty() {
            return Err(Error::input("nothing to embed"));
        }
        Ok(Embeddings::new(Tensor::cat(&vectors, 0)?, cut))
    }

    /// Zero-shot classification: the labels of an image, the most probable first. A label longer than the context is
    /// truncated, and its span is the part of it that was used.
    fn generate(
        &self,
        prompt: &Prompt,
        _options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let (picture, labels) = self.image_and_labels(prompt)?;
        if !self.card.outputs.contains(&Modality::Label) {
            return Err(self.cannot("classify images").hint("classification requires both towers"));
        }
        let items: Vec<Item> = [picture].into_iter().chain(labels.iter().copied()).cloned().collect();
        let (vectors, cut) = self.embeddings(&items)?;
        let (picture, texts) = vectors.split_at(1);
        let cosines: Vec<f32> = transfer::to_host(&Tensor::cat(texts, 0)?.matmul(&picture[0].t()?)?)?;
        let scores = self.network.probabilities(&cosines);
        let (mut found, mut notes) = (Vec::new(), Vec::new());
        for ((label, score), cut) in labels.iter().zip(scores).zip(&cut[1..]) {
            let text = label.text()?;
            let read = || -> Result<usize> {
                Ok(self.encode(text)?.offsets.iter().map(|(_, end)| *end).max().unwrap_or(0))
            };
            let mut label = Label::new(text, score);
            if *cut > 0 {
                label = label.with_span(0..read()?);
                let start: String = text.chars().take(30).collect();
                notes.push(Item::Note(format!(
                    "label \"{start}…\" was truncated: {} were left out",
                    beyond(*cut)
                )));
            }
            found.push(label);
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        for item in notes.into_iter().chain(found.into_iter().map(Item::Label)) {
            if each(item).is_break() {
                break;
            }
        }
        Ok(Generation::default())
    }
}
