//! What CLIP and SigLIP share outside of their networks: pictures and texts to vectors of one space, labels for a
//! picture.

use std::ops::ControlFlow;

use candle_core::{D, DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::Processor;
use fauna_shared::item::{Embeddings, Image, Item, Label, Modality, Prompt, Reading, Tensors, beyond};
use fauna_shared::model::{Card, Pipeline, Pretrained, SampleSizes, noise_pixels, only_known, token_rows};
use fauna_shared::text::{Encoding, Tokenizer};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result, json};
use fauna_text::words;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::processor;

/// open_clip's own config.
pub(crate) const OPEN_CLIP: &str = "open_clip_config.json";

/// Tokens of one pass, be they words or patches: enough to keep every core busy, few enough to stay in its caches.
const TOKENS_A_PASS: usize = 2048;

/// A network of two towers, or of one of them.
pub trait ContrastiveModel: Send + Sync {
    /// The reference's forward pass by its own names. With `any_size`, pictures may have any size.
    fn forward(&self, inputs: &Tensors, any_size: bool) -> Result<Tensors>;

    /// Vectors of `pixels`, `(batch, 3, height, width)`: `(batch, space)`.
    fn pictures(&self, pixels: &Tensor) -> Result<Tensor>;

    /// Vectors of `ids`, `(batch, time)`: `(batch, space)`.
    fn texts(&self, ids: &Tensor) -> Result<Tensor>;

    /// The probability of each label, from the cosines between the labels and one picture.
    fn chances(&self, cosines: &[f32]) -> Vec<f32>;

    /// How many states a picture has.
    fn tokens_of_a_picture(&self) -> usize;

    /// Pixels along a side of a picture; none without the tower that sees.
    fn side(&self) -> Option<usize>;
}

/// How a family's releases were taught to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPreprocessing {
    /// Texts end where they end.
    Clip,
    /// Texts are lower-cased, most without punctuation, and filled up to one length.
    Siglip,
}

/// The config of one tower: what stands under `key`, or with `alone` perhaps the config itself. Old files repeat it
/// under `key_dict`, which counts then. `kind` begins the `model_type` of what the family implements.
pub(crate) fn part<T: DeserializeOwned>(
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

/// The size under `key`.
pub(crate) fn size(config: &Value, key: &str, default: usize) -> std::result::Result<usize, String> {
    match &config[key] {
        Value::Null => Ok(default),
        value => json::part(key, value.clone()).map_err(|error| error.message().to_string()),
    }
}

/// The one number of the tensor `name` of `shape`.
pub(crate) fn number(w: &Weights, name: &str, shape: &[usize]) -> Result<f32> {
    let numbers: Vec<f32> = w.tensor(name, shape)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
    Ok(numbers.first().copied().unwrap_or(0.0))
}

/// The rows of `x`, each of length 1.
pub(crate) fn normalised(x: &Tensor) -> Result<Tensor> {
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-30)?;
    Ok(x.broadcast_div(&length)?)
}

/// The error of asking for a tower that is not there.
pub(crate) fn no_tower(what: &str) -> Error {
    Error::unsupported(format!("this checkpoint has no tower that {what}"))
}

/// What the towers that are there can do.
pub(crate) fn abilities(card: &mut Card, reads: bool, sees: bool) {
    let (text, image) = (reads.then_some(Modality::Text), sees.then_some(Modality::Image));
    card.inputs = image.into_iter().chain(text).collect();
    card.outputs = match reads && sees {
        true => vec![Modality::Vector, Modality::Label],
        false => vec![Modality::Vector],
    };
}

/// Two towers, or one, with what brings pictures and texts to them.
pub(crate) struct ContrastivePipeline<N> {
    network: N,
    tokenizer: Option<Tokenizer>,
    processor: Option<Processor>,
    habits: TextPreprocessing,
    /// Whether texts lose their punctuation.
    plain: bool,
    /// What fills texts up.
    pad: u32,
    card: Card,
}

impl<N: ContrastiveModel> ContrastivePipeline<N> {
    pub(crate) fn open(
        pretrained: &Pretrained,
        network: N,
        card: Card,
        habits: TextPreprocessing,
    ) -> Result<Self> {
        let tokenizer = match card.inputs.contains(&Modality::Text) {
            true => words::tokenizer(pretrained)?,
            false => None,
        };
        let config = pretrained.json("tokenizer_config.json")?.unwrap_or_default();
        // SigLIP 2 reads with Gemma's tokenizer, which keeps punctuation.
        let class = config["tokenizer_class"].as_str();
        let plain = match class {
            Some(class) => class.starts_with("SiglipTokenizer"),
            None => pretrained.files.get("spiece.model").is_some(),
        };
        let named = tokenizer.as_ref().and_then(|tokenizer| tokenizer.special().pad);
        let pad = match habits {
            // Whatever it is, nothing that counts sees it; transformers fills with the end token.
            TextPreprocessing::Clip => named.unwrap_or(0),
            TextPreprocessing::Siglip => named.filter(|_| config.get("pad_token").is_some()).unwrap_or(1),
        };
        let processor = processor_of(pretrained, habits, network.side())?;
        Ok(Self { network, tokenizer, processor, habits, plain, pad, card })
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| match self.habits {
            TextPreprocessing::Clip => Error::new(
                ErrorKind::NotFound,
                format!("{} came without a tokenizer", self.card.source),
            )
            .hint("put the tokenizer.json of openai/clip-vit-base-patch32 beside the weights: all releases share it"),
            TextPreprocessing::Siglip => words::no_tokenizer(&self.card.source),
        })
    }

    /// `text` in tokens, cut to what the model reads, its end kept.
    fn encode(&self, text: &str) -> Result<Encoding> {
        let longest = self.card.context;
        match self.habits {
            TextPreprocessing::Clip => self.tokenizer()?.encode_text(text, longest),
            TextPreprocessing::Siglip => {
                let text = match self.plain {
                    true => without_punctuation(&text.to_lowercase()),
                    false => text.to_lowercase(),
                };
                self.tokenizer()?.encode_text(&text, longest)
            }
        }
    }

    /// Rows of one length, `(rows, time)`: as long as the longest, or as the model was taught.
    fn rows(&self, encodings: &[&Encoding], time: Option<usize>) -> Result<Tensor> {
        let longest = encodings.iter().map(|encoding| encoding.ids.len()).max().unwrap_or(0);
        let time = longest.max(time.unwrap_or(0));
        let row = |encoding: &&Encoding| {
            let fill = std::iter::repeat_n(self.pad, time - encoding.ids.len());
            encoding.ids.iter().copied().chain(fill).collect::<Vec<u32>>()
        };
        let ids: Vec<u32> = encodings.iter().flat_map(row).collect();
        Ok(Tensor::from_vec(ids, (encodings.len(), time), &Device::Cpu)?)
    }

    /// The length that texts are filled up to, where the model was taught on one.
    fn one_length(&self) -> Option<usize> {
        match self.habits {
            // What stands after the end token changes nothing before it.
            TextPreprocessing::Clip => None,
            TextPreprocessing::Siglip => self.card.context,
        }
    }

    /// One vector a text, of length 1, in order: the longest first through the network.
    fn vectors_of_texts(&self, encodings: &[Encoding]) -> Result<Vec<Tensor>> {
        let mut order: Vec<usize> = (0..encodings.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(encodings[*i].ids.len()));
        let mut vectors = vec![None; encodings.len()];
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let time = encodings[*first].ids.len().max(self.one_length().unwrap_or(1));
            let (now, later) = rest.split_at((TOKENS_A_PASS / time).clamp(1, rest.len()));
            rest = later;
            let chosen: Vec<&Encoding> = now.iter().map(|i| &encodings[*i]).collect();
            let made = self.network.texts(&self.rows(&chosen, self.one_length())?)?;
            for (row, i) in now.iter().enumerate() {
                vectors[*i] = Some(made.narrow(0, row, 1)?);
            }
        }
        vectors.into_iter().flatten().map(|vector| on_host(&vector)).collect()
    }

    /// One vector a picture, of length 1.
    fn vectors_of_pictures(&self, pictures: &[&Image]) -> Result<Vec<Tensor>> {
        let mut vectors = Vec::with_capacity(pictures.len());
        let count = (TOKENS_A_PASS / self.network.tokens_of_a_picture()).max(1);
        for (pass, now) in pictures.chunks(count).enumerate() {
            let pixels = |(i, picture): (usize, &&Image)| {
                let of_which = |error: Error| match pictures.len() {
                    1 => error,
                    all => error.context(format!("picture {} of {all}", pass * count + i + 1)),
                };
                self.processor()?.process(picture).map_err(of_which)
            };
            let pixels = now.iter().enumerate().map(pixels).collect::<Result<Vec<_>>>()?;
            let made = self.network.pictures(&Tensor::stack(&pixels, 0)?)?;
            for row in 0..now.len() {
                vectors.push(on_host(&made.narrow(0, row, 1)?)?);
            }
        }
        Ok(vectors)
    }

    fn processor(&self) -> Result<&Processor> {
        self.network.side().ok_or_else(|| no_tower("sees pictures"))?;
        self.processor.as_ref().ok_or_else(|| {
            let message = format!("{} came without preprocessor_config.json", self.card.source);
            Error::new(ErrorKind::NotFound, message)
                .hint("it says how pictures are prepared: put the release's own beside the weights")
        })
    }

    fn vectors(&self, items: &[Item]) -> Result<(Vec<Tensor>, Vec<usize>)> {
        let mut encodings = Vec::new();
        let mut pictures = Vec::new();
        for item in items {
            match item {
                Item::Text(text) => encodings.push(self.encode(text)?),
                Item::Image(image) => pictures.push(image),
                other => {
                    let message = format!("this model reads texts and pictures, not {}", other.modality());
                    return Err(Error::input(message));
                }
            }
        }
        let mut texts = self.vectors_of_texts(&encodings)?.into_iter().zip(encodings.iter().map(|e| e.cut));
        let mut seen = self.vectors_of_pictures(&pictures)?.into_iter().map(|vector| (vector, 0));
        let next = |item: &Item| match item {
            Item::Text(_) => texts.next(),
            _ => seen.next(),
        };
        Ok(items.iter().filter_map(next).unzip())
    }

    /// The picture and the labels of a prompt.
    fn question<'p>(&self, prompt: &'p Prompt) -> Result<(&'p Item, Vec<&'p Item>)> {
        let Prompt::Items(items) = prompt else {
            return Err(Error::input(format!("{} holds no conversations", self.card.source))
                .hint("give it a picture and labels"));
        };
        let (pictures, labels): (Vec<&Item>, Vec<&Item>) =
            items.iter().partition(|item| matches!(item, Item::Image(_)));
        let picture = match pictures[..] {
            [picture] => picture,
            [] => return Err(Error::input("no picture to label").hint("give one: --image FILE")),
            _ => {
                return Err(Error::input(format!(
                    "one picture is labelled at a time, got {}",
                    pictures.len()
                )));
            }
        };
        if labels.is_empty() {
            return Err(Error::input("no labels to choose from").hint("give some: --labels \"a cat,a dog\""));
        }
        for (i, label) in labels.iter().enumerate() {
            if label.text()?.trim().is_empty() {
                return Err(Error::input(format!("label {} of {} is empty", i + 1, labels.len())));
            }
        }
        Ok((picture, labels))
    }
}

/// What prepares the pictures of a release: its processor file, or the code that open_clip's and OpenAI's rely on.
fn processor_of(
    pretrained: &Pretrained,
    habits: TextPreprocessing,
    side: Option<usize>,
) -> Result<Option<Processor>> {
    let Some(side) = side else { return Ok(None) };
    let own = match habits {
        TextPreprocessing::Clip => "CLIPImageProcessor",
        TextPreprocessing::Siglip => "SiglipImageProcessor",
    };
    if let Some(said) = processor::of(&pretrained.files, own)? {
        return Ok(Some(said));
    }
    let hub = pretrained.files.get("config.json").is_some();
    match pretrained.json(OPEN_CLIP)? {
        _ if hub || habits == TextPreprocessing::Siglip => Ok(None),
        Some(file) => {
            let place = pretrained.files.require(OPEN_CLIP)?;
            Processor::from_json(&file).map(Some).map_err(|error| error.at(place))
        }
        None => Ok(Some(Processor::open_clip(side))),
    }
}

/// A vector of `(1, space)` in float32 on the CPU, of length 1.
fn on_host(vector: &Tensor) -> Result<Tensor> {
    normalised(&vector.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
}

/// `text` without ASCII punctuation, its runs of white space one space each.
fn without_punctuation(text: &str) -> String {
    let plain: String = text.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    plain.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl<N: ContrastiveModel> Pipeline for ContrastivePipeline<N> {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Self::tokenizer(self)
    }

    fn reading(&self) -> Reading {
        self.processor.as_ref().map_or_else(Reading::default, Processor::reading)
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.network.forward(inputs, false)
    }

    /// `forward`, with `interpolate_pos_encoding` for pictures of any size, with `texts` in place of token ids and with
    /// an `image` of bytes, `(height, width, 3)`, in place of pixel values; `preprocess`, which prepares such an image.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => {}
            "preprocess" => return processor::preprocess(self.processor()?, inputs),
            "get_image_features" => {
                only_known(inputs, &["pixel_values"])?;
                let pixels =
                    inputs.get("pixel_values").ok_or_else(|| Error::input("pixel_values are missing"))?;
                let features = self.network.pictures(pixels)?;
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
                        self.processor()?.batch(&processor::pictures(&image)?)?,
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
            let ids = self.rows(&encodings.iter().collect::<Vec<_>>(), self.card.context)?;
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
        if let (1.., Some(side)) = (sizes.images, self.network.side()) {
            let shape = [sizes.rows * sizes.images, 3, side, side];
            inputs.insert("pixel_values".into(), noise_pixels(&shape)?);
        }
        match method == "forward" && !inputs.is_empty() {
            true => Ok(inputs),
            false => Err(self.cannot(&format!(
                "run \"{method}\" on {} tokens and {} pictures",
                sizes.tokens, sizes.images
            ))),
        }
    }

    /// One vector a text or picture, of length 1.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let (vectors, cut) = self.vectors(items)?;
        if vectors.is_empty() {
            return Err(Error::input("nothing to embed"));
        }
        Ok(Embeddings { rows: Tensor::cat(&vectors, 0)?, cut })
    }

    /// The labels of a picture, the likeliest first. A label that is longer than the model reads is judged by its
    /// beginning, and its span says how much of it that is.
    fn generate(
        &self,
        prompt: &Prompt,
        _options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let (picture, labels) = self.question(prompt)?;
        if !self.card.outputs.contains(&Modality::Label) {
            return Err(self.cannot("label pictures").hint("labels want both towers"));
        }
        let items: Vec<Item> = [picture].into_iter().chain(labels.iter().copied()).cloned().collect();
        let (vectors, cut) = self.vectors(&items)?;
        let (picture, texts) = vectors.split_at(1);
        let cosines: Vec<f32> = Tensor::cat(texts, 0)?.matmul(&picture[0].t()?)?.flatten_all()?.to_vec1()?;
        let scores = self.network.chances(&cosines);
        let (mut found, mut notes) = (Vec::new(), Vec::new());
        for ((label, score), cut) in labels.iter().zip(scores).zip(&cut[1..]) {
            let text = label.text()?;
            let read = || -> Result<usize> {
                Ok(self.encode(text)?.offsets.iter().map(|(_, end)| *end).max().unwrap_or(0))
            };
            let span = if *cut > 0 { Some(0..read()?) } else { None };
            if *cut > 0 {
                let start: String = text.chars().take(30).collect();
                notes.push(Item::Note(format!("label \"{start}…\": {} were left out", beyond(*cut))));
            }
            found.push(Label { label: text.to_string(), score, span });
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
