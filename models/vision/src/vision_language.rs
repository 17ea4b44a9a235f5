//! The pipeline of vision-language models: image embeddings in place of image tokens, and text generation.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Positions};
use fauna_shared::generate::{Decoder, Generation, GenerationConfig, Tokens};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, Item, Prompt, Role, Tensors, Turn};
use fauna_shared::model::{
    Card, Collation, Loss, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, noise_pixels,
    only_known, token_rows,
};
use fauna_shared::nn::IGNORE_INDEX;
use fauna_shared::text::{self, ChatTemplate, Message, Tokenizer};
use fauna_shared::train::Example;
use fauna_shared::weights::{Inventory, Weights};
use fauna_shared::{Error, Result, transfer};
use fauna_text::called::token_ids;
use fauna_text::causal::{self, next_token_loss_by, placed};
use fauna_text::labelled::{self, LabelledTokens};
use fauna_text::{called, words};
use serde_json::Value;

/// A mask over tokens, `(batch, sequence)`: of tokens that are not padding, or of image tokens.
pub type Marks = Vec<Vec<bool>>;

/// A language model with text and image embeddings in one sequence.
pub trait VisionLanguageModel: Send + Sync {
    /// Number of layers of the language model.
    fn num_hidden_layers(&self) -> usize;

    /// Vocabulary size.
    fn vocab_size(&self) -> usize;

    /// Maximum sequence length.
    fn max_position_embeddings(&self) -> usize;

    /// The image token, which is replaced by image embeddings; it may be outside the vocabulary.
    fn image_token(&self) -> u32;

    /// Number of image tokens per image.
    fn tokens_of_a_picture(&self) -> usize;

    /// Image height and width in pixels.
    fn image_size(&self) -> usize;

    /// Returns the image embeddings, `(images, tokens, hidden_size)`, projected to the language model, of
    /// `pixel_values`, `(images, 3, height, width)`.
    fn see(&self, pixel_values: &Tensor) -> Result<Tensor>;

    /// Returns the token embeddings, `(batch, sequence, hidden_size)`, of `ids`, `(batch, sequence)` of u32.
    fn embed(&self, ids: &Tensor) -> Result<Tensor>;

    /// Returns the hidden states after the final norm, `(batch, sequence, hidden_size)`, of embeddings `x` of the same
    /// shape. `real`: the padding mask of all keys, those in the KV cache included (false: padding); `pictures`: which
    /// of the new tokens are image tokens with bidirectional attention, if any.
    fn hidden(
        &self,
        x: &Tensor,
        positions: &Positions,
        real: Option<&Marks>,
        pictures: Option<&Marks>,
        cache: &mut Cache,
    ) -> Result<Tensor>;

    /// Returns the logits, `(…, vocab_size)`, of hidden states, `(…, hidden_size)`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Converts the reference's `input_ids`, `(batch, sequence)`, to sequences with one image token per image
    /// embedding, and their padding mask.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a token outside the vocabulary.
    fn rows(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<(Vec<Vec<u32>>, Option<Marks>)>;

    /// Formats and tokenizes a prompt; returns its token ids and images. A conversation is followed by the beginning of
    /// the assistant's turn if `asks`.
    fn prompt(
        &self,
        kit: &MultimodalProcessor,
        prompt: &Prompt,
        asks: bool,
    ) -> Result<(Vec<u32>, Vec<Image>)>;

    /// The turns of a prompt; `None` if the release has no conversations and continues the prompt.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a prompt with a gap.
    fn turns(&self, kit: &MultimodalProcessor, prompt: &Prompt) -> Result<Option<Vec<Turn>>>;

    /// Builds the network again from `config`, canonical, and `weights`, as it was built when it was opened.
    ///
    /// # Errors
    /// As opening it.
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()>;

    /// The labels of the tokens of [`rows`](Self::rows), from those of the reference's `ids`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for labels of another shape than `ids`.
    fn labels(&self, ids: &Tensor, mask: Option<&Tensor>, labels: &Tensor) -> Result<Tensor> {
        let _ = mask;
        same_shape(ids, labels)?;
        Ok(labels.clone())
    }
}

/// Tokenizer, chat template and image processor.
pub struct MultimodalProcessor {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, if the release has one.
    pub template: Option<ChatTemplate>,
    /// The image processor.
    pub processor: Processor,
    /// Settings of the caller.
    pub settings: serde_json::Map<String, Value>,
}

/// Joins the items of each turn to a text with a `placeholder` for each image; returns the texts and the images in
/// order. If the texts contain placeholders, the images go there; otherwise each image gets one at its position.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the numbers of images and placeholders differ, or for other items.
pub fn said(turns: &[&[Item]], placeholder: &str) -> Result<(Vec<String>, Vec<Image>)> {
    let mut pictures = Vec::new();
    let mut places = 0;
    for item in turns.iter().copied().flatten() {
        match item {
            Item::Image(image) => pictures.push(image.clone()),
            Item::Text(text) => places += text.matches(placeholder).count(),
            other => {
                return Err(Error::input(format!(
                    "this model takes text and images, not {}",
                    other.modality()
                )));
            }
        }
    }
    if places > 0 && places != pictures.len() {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        let error = Error::input(format!(
            "the text has {places} placeholder{} for an image ({placeholder}), and there {} {} image{}",
            plural(places),
            if pictures.len() == 1 { "is" } else { "are" },
            pictures.len(),
            plural(pictures.len())
        ));
        return Err(match pictures.is_empty() {
            true => error.set("give an image", "Item::Image", "FILE"),
            false => error.hint(
                "give one image per placeholder, or no placeholders: images keep their place among the items",
            ),
        });
    }
    let word = |item: &Item| match item {
        Item::Text(text) => text.clone(),
        _ if places == 0 => placeholder.to_string(),
        _ => String::new(),
    };
    Ok((turns.iter().map(|items| items.iter().map(word).collect()).collect(), pictures))
}

/// Checks that `labels` have the shape of `ids`.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) with both shapes.
pub fn same_shape(ids: &Tensor, labels: &Tensor) -> Result<()> {
    match ids.dims() == labels.dims() {
        true => Ok(()),
        false => {
            let (ids, labels) = (ids.dims(), labels.dims());
            Err(Error::input(format!("labels have shape {labels:?}, input_ids {ids:?}")))
        }
    }
}

/// The prompt as a conversation: items are one turn of the user.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a prompt with a gap.
pub fn as_turns(prompt: &Prompt) -> Result<Vec<Turn>> {
    match prompt {
        Prompt::Items(items) => Ok(vec![Turn { role: Role::User, items: items.clone() }]),
        Prompt::Chat(turns) => Ok(turns.clone()),
        Prompt::Infill { .. } => Err(Prompt::no_infill()),
    }
}

/// The conversation by the release's own template, with `placeholder` where pictures belong, and the pictures in order;
/// followed by the beginning of the assistant's turn if `asks`.
///
/// # Errors
/// As [`said`] and [`ChatTemplate::render`].
pub fn rendered(
    template: &ChatTemplate,
    turns: &[Turn],
    placeholder: &str,
    asks: bool,
) -> Result<(String, Vec<Image>)> {
    let items: Vec<&[Item]> = turns.iter().map(|turn| &turn.items[..]).collect();
    let (texts, images) = said(&items, placeholder)?;
    let message = |(turn, text): (&Turn, String)| {
        let role = match turn.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        Message::new(role, text)
    };
    let messages: Vec<Message> = turns.iter().zip(texts).map(message).collect();
    Ok((template.render(&messages, asks)?, images))
}

/// Returns the embeddings of sequences of token ids, `(batch, sequence, hidden_size)`, with the image embeddings
/// `pictures`, `(images, tokens, hidden_size)`, in place of the image tokens, in order.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the numbers of image tokens and image embeddings differ.
pub fn embedded<N: VisionLanguageModel + ?Sized>(
    network: &N,
    rows: &[Vec<u32>],
    pictures: Option<&Tensor>,
    device: &Device,
) -> Result<Tensor> {
    let (image, words) = (network.image_token(), network.vocab_size() as u32);
    let time = rows.first().map_or(0, Vec::len);
    let all: Vec<u32> = rows.concat();
    // The image token may be outside the vocabulary: it is embedded as token 0, then replaced.
    let known = all.iter().map(|id| if *id == image && image >= words { 0 } else { *id }).collect::<Vec<_>>();
    let x = network.embed(&Tensor::from_vec(known, (rows.len(), time), device)?)?;
    let places = all.iter().filter(|id| **id == image).count();
    let Some(pictures) = pictures else {
        return match places {
            0 => Ok(x),
            _ if image < words => Ok(x),
            places => Err(Error::input(format!("{places} image tokens, but no image"))),
        };
    };
    let (count, tokens, width) = pictures.dims3()?;
    if places != count * tokens {
        return Err(Error::input(format!(
            "{places} image tokens, but {count} images of {tokens} tokens have {}",
            count * tokens
        ))
        .hint(format!("give token {image} {tokens} times per image")));
    }
    let seen = pictures.reshape((count * tokens, width))?.to_dtype(x.dtype())?;
    let flat = x.reshape((all.len(), width))?;
    let (mut parts, mut at, mut next) = (Vec::new(), 0, 0);
    for run in all.chunk_by(|a, b| (*a == image) == (*b == image)) {
        match run[0] == image {
            true => {
                parts.push(seen.narrow(0, next, run.len())?);
                next += run.len();
            }
            false => parts.push(flat.narrow(0, at, run.len())?),
        }
        at += run.len();
    }
    Ok(Tensor::cat(&parts, 0)?.reshape((rows.len(), time, width))?)
}

/// The decoder of a prompt, with its images.
struct Answering<'a, N> {
    network: &'a N,
    device: &'a Device,
    half_cache: bool,
    pictures: Option<Tensor>,
    /// The mask of image tokens of each sequence, without padding.
    marks: Option<Marks>,
}

impl<N: VisionLanguageModel> Decoder for Answering<'_, N> {
    type Cache = Cache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
        Ok(Cache::new(self.network.num_hidden_layers(), capacity).with_half(self.half_cache))
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        let (positions, _) = placed(tokens)?;
        let rows: Vec<Vec<u32>> = (0..tokens.rows()).map(|row| tokens.row(row).to_vec()).collect();
        let keys = tokens.past() + tokens.sequence_length();
        let real = (!tokens.is_unpadded())
            .then(|| tokens.pads().iter().map(|pad| (0..keys).map(|key| key >= *pad).collect()).collect());
        let first = tokens.past() == 0;
        let x = match first {
            true => embedded(self.network, &rows, self.pictures.as_ref(), self.device)?,
            // Generated tokens are text.
            false => self.network.embed(&tokens.tensor(self.device)?)?,
        };
        let padded = |marks: &Marks| -> Marks {
            let row = |(marks, pad): (&Vec<bool>, &usize)| {
                std::iter::repeat_n(false, *pad).chain(marks.iter().copied()).collect()
            };
            marks.iter().zip(tokens.pads()).map(row).collect()
        };
        let marks = self.marks.as_ref().filter(|_| first).map(padded);
        let hidden = self.network.hidden(&x, &positions, real.as_ref(), marks.as_ref(), cache)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.network.logits(&last)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

/// The pipeline of a vision-language model, with tokenizer, image processor and special tokens.
pub struct VisionLanguagePipeline<N> {
    network: N,
    kit: Option<MultimodalProcessor>,
    device: Device,
    half_cache: bool,
    /// Whether the tokens of an image attend to each other bidirectionally.
    both_ways: bool,
    end: Vec<u32>,
    pad: Option<u32>,
    defaults: GenerationConfig,
    card: Card,
}

/// Sequences of token ids, their padding mask, and their mask of image tokens.
type Asked = (Vec<Vec<u32>>, Option<Marks>, Option<Marks>);

/// The family-specific settings of a [`VisionLanguagePipeline`].
pub struct PipelineSettings {
    /// The model card.
    pub card: Card,
    /// The image processor.
    pub processor: Processor,
    /// Whether the tokens of an image attend to each other bidirectionally.
    pub both_ways: bool,
    /// EOS tokens, if no file of the release has them.
    pub end: &'static [u32],
    /// The end-of-turn token, by its text.
    pub end_of_turn: Option<&'static str>,
    /// Default maximum number of new tokens.
    pub answer: usize,
}

impl<N: VisionLanguageModel> VisionLanguagePipeline<N> {
    /// Creates the pipeline of `network`, loaded from `pretrained`.
    pub fn new(pretrained: &Pretrained, network: N, settings: PipelineSettings) -> Result<Self> {
        let PipelineSettings { mut card, processor, both_ways, end, end_of_turn, answer } = settings;
        card.context = Some(network.max_position_embeddings());
        let tokenizer = words::tokenizer(pretrained)?;
        let kit = match tokenizer {
            None => None,
            Some(tokenizer) => Some(MultimodalProcessor {
                template: words::chat_template(pretrained, &tokenizer)?,
                tokenizer,
                processor,
                settings: pretrained.options.settings.clone(),
            }),
        };
        let has_template = kit.as_ref().is_some_and(|kit| kit.template.is_some());
        card.task = has_template.then_some("conversational");
        let generation = pretrained.generation_config()?;
        let ids = |key: &str| {
            let places = [&generation[key], &pretrained.config[key], &pretrained.config["text_config"][key]];
            places.into_iter().map(token_ids).find(|ids| !ids.is_empty()).unwrap_or_default()
        };
        let mut stops = match ids("eos_token_id") {
            none if none.is_empty() => end.to_vec(),
            some => some,
        };
        let turn = kit.as_ref().zip(end_of_turn).and_then(|(kit, turn)| kit.tokenizer.token_id(turn));
        let known = stops.clone();
        stops.extend(turn.filter(|turn| !known.contains(turn)));
        Ok(Self {
            network,
            kit,
            device: pretrained.weights.runtime().device().clone(),
            half_cache: pretrained.weights.half_cache(),
            both_ways,
            end: stops,
            pad: ids("pad_token_id").first().copied(),
            defaults: GenerationConfig { eos: None, ..GenerationConfig::greedy(answer) },
            card,
        })
    }

    /// The network.
    pub fn network(&self) -> &N {
        &self.network
    }

    fn kit(&self) -> Result<&MultimodalProcessor> {
        self.kit.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    /// The image embeddings of `inputs`, `(images, tokens, hidden_size)`; images are encoded one by one, to bound
    /// memory.
    fn seen(&self, inputs: &Tensors) -> Result<Option<Tensor>> {
        let pixels = match (inputs.get("pixel_values"), inputs.get("images")) {
            (Some(_), Some(_)) => {
                return Err(Error::input("expected pixel_values or images, not both"));
            }
            (pixels, images) => pixels.or(images),
        };
        pixels.map(|pixels| self.look(pixels)).transpose()
    }

    fn look(&self, pixels: &Tensor) -> Result<Tensor> {
        let (count, channels, height, width) = match *pixels.dims() {
            [count, channels, height, width] if count > 0 => (count, channels, height, width),
            // Some processors return a list of images for each text.
            [texts, count, channels, height, width] if texts * count > 0 => {
                (texts * count, channels, height, width)
            }
            _ => {
                return Err(Error::input(format!(
                    "pixel_values have the shape {:?}, expected (images, 3, height, width)",
                    pixels.dims()
                )));
            }
        };
        let pixels = pixels.reshape((count, channels, height, width))?;
        let each = (0..count).map(|i| self.network.see(&pixels.narrow(0, i, 1)?.contiguous()?));
        Ok(Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The token ids, padding mask and image mask of `inputs`.
    fn read(&self, inputs: &Tensors) -> Result<Asked> {
        only_known(inputs, &["attention_mask", "images", "input_ids", "pixel_values", "token_type_ids"])?;
        let words = ["attention_mask", "input_ids", "token_type_ids"];
        let words: Tensors = words
            .into_iter()
            .filter_map(|name| Some((name.to_string(), inputs.get(name)?.clone())))
            .collect();
        let ids = words::input_ids(&words, &["attention_mask", "input_ids", "token_type_ids"])?;
        let (rows, real) = self.network.rows(ids, inputs.get("attention_mask"))?;
        let marks = match inputs.get("token_type_ids").filter(|_| self.both_ways) {
            None => None,
            Some(types) => {
                let types: Vec<Vec<i64>> = transfer::rows(&types.to_dtype(DType::I64)?)?;
                Some(types.iter().map(|row| row.iter().map(|kind| *kind == 1).collect()).collect())
            }
        };
        Ok((rows, real, marks))
    }

    /// The hidden states of `inputs` after the final norm, `(batch, sequence, hidden_size)`, and their image embeddings.
    fn forward_hidden(&self, inputs: &Tensors) -> Result<(Tensor, Option<Tensor>)> {
        let (rows, real, marks) = self.read(inputs)?;
        let pictures = self.seen(inputs)?;
        let x = embedded(&self.network, &rows, pictures.as_ref(), &self.device)?;
        let time = x.dim(1)?;
        let mut cache = Cache::new(self.network.num_hidden_layers(), time).single_pass();
        let positions = Positions::counting(0, time);
        let hidden = self.network.hidden(&x, &positions, real.as_ref(), marks.as_ref(), &mut cache)?;
        Ok((hidden, pictures))
    }

    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        let (hidden, pictures) = self.forward_hidden(inputs)?;
        let mut out = Tensors::from([("logits".to_string(), self.network.logits(&hidden)?)]);
        if let Some(pictures) = pictures {
            // LLaVA's reference concatenates the embeddings of all images.
            let pictures = if self.both_ways { pictures } else { pictures.flatten(0, 1)? };
            out.insert("image_hidden_states".into(), pictures);
        }
        Ok(out)
    }

    fn generate_ids(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let (rows, real, marks) = self.read(inputs)?;
        let ids = inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))?;
        let rows = called::Rows::padded(ids, real.as_deref(), rows)?;
        let marks = marks.map(|marks| -> Marks {
            marks.iter().zip(&rows.pads).map(|(row, pad)| row.get(*pad..).unwrap_or(&[]).to_vec()).collect()
        });
        let config = called::config(options, &self.end, self.pad)?;
        let answering = self.answering(self.seen(inputs)?, marks);
        Ok(Tensors::from([("sequences".to_string(), rows.sequences(&answering, &config)?)]))
    }

    fn answering(&self, pictures: Option<Tensor>, marks: Option<Marks>) -> Answering<'_, N> {
        let (network, device, half_cache) = (&self.network, &self.device, self.half_cache);
        Answering { network, device, half_cache, pictures, marks }
    }
}

impl<N: VisionLanguageModel> VisionLanguagePipeline<N> {
    /// Generates the completion of `prompt`, and streams its text.
    fn answer(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if options.guidance != 1.0 {
            return Err(Error::input(
                "guidance is not supported: this model was not trained without a prompt",
            ));
        }
        let kit = self.kit()?;
        let (ids, images) = self.network.prompt(kit, prompt, true)?;
        let pictures = match images.is_empty() {
            true => None,
            false => {
                // One by one, to bound memory.
                let see = |image: &Image| self.network.see(&kit.processor.process(image)?.unsqueeze(0)?);
                Some(Tensor::cat(&images.iter().map(see).collect::<Result<Vec<_>>>()?, 0)?)
            }
        };
        let image = self.network.image_token();
        let marks = self.both_ways.then(|| vec![ids.iter().map(|id| *id == image).collect()]);
        let answering = self.answering(pictures, marks);
        let mut each = |piece: text::Piece| each(piece.text.to_string());
        let made = text::stream(
            &answering,
            &kit.tokenizer,
            &[text::Prompt::Ids(&ids)],
            &options.with_tokens(&self.end, self.pad),
            &mut each,
        )?;
        Ok(made.into_iter().next().map(|completion| completion.generation).unwrap_or_default())
    }
}

impl<N: VisionLanguageModel> VisionLanguagePipeline<N> {
    /// The tokens of `example`, which of them are learned, and its images.
    fn labelled(&self, example: &Example, mask_prompt: bool) -> Result<(LabelledTokens, Vec<Image>)> {
        let kit = self.kit()?;
        match example {
            Example::Chat { turns, tools } if tools.is_empty() => {
                self.conversation(turns.clone(), mask_prompt)
            }
            Example::Chat { .. } => Err(Error::unsupported("conversations with tools are not implemented")),
            Example::Completion { prompt, completion } => {
                let answer = Item::from(completion.as_str());
                match (self.network.turns(kit, prompt)?, prompt) {
                    (Some(mut turns), _) => {
                        turns.push(Turn { role: Role::Assistant, items: vec![answer] });
                        self.conversation(turns, mask_prompt)
                    }
                    (None, Prompt::Items(items)) => self.continued(items, answer, mask_prompt),
                    (None, _) => Err(self.cannot("learn conversations: it has no chat template")),
                }
            }
            other => Err(labelled::not_learned(other, "completion, chat, with images or without")),
        }
    }

    /// The tokens of a conversation; those of the assistant's turns are learned if `mask_prompt`.
    fn conversation(&self, turns: Vec<Turn>, mask_prompt: bool) -> Result<(LabelledTokens, Vec<Image>)> {
        let kit = self.kit()?;
        let answers: Vec<bool> = turns.iter().map(|turn| turn.role == Role::Assistant).collect();
        let tokens = |count: usize, asks: bool| {
            let first = Prompt::Chat(turns[..count].to_vec());
            Ok(self.network.prompt(kit, &first, asks)?.0)
        };
        let row = labelled::turns(tokens, &answers, mask_prompt)?;
        let images = turns.iter().any(|turn| turn.items.iter().any(|item| matches!(item, Item::Image(_))));
        let images = match images {
            true => self.network.prompt(kit, &Prompt::Chat(turns), false)?.1,
            false => Vec::new(),
        };
        Ok((row, images))
    }

    /// The tokens of `items` with their continuation, which ends with the end-of-sequence token.
    fn continued(
        &self,
        items: &[Item],
        answer: Item,
        mask_prompt: bool,
    ) -> Result<(LabelledTokens, Vec<Image>)> {
        let kit = self.kit()?;
        let (before, _) = self.network.prompt(kit, &Prompt::Items(items.to_vec()), true)?;
        let whole = items.iter().cloned().chain([answer]).collect();
        let (mut ids, images) = self.network.prompt(kit, &Prompt::Items(whole), true)?;
        ids.extend(self.end.first());
        Ok((LabelledTokens::after(&before, ids, mask_prompt), images))
    }

    /// `row` truncated to `longest` tokens, an image never within its tokens, and without labels on image tokens.
    fn checked(&self, mut row: LabelledTokens, longest: Option<usize>) -> Result<LabelledTokens> {
        let image = self.network.image_token();
        let beyond = row.ids.iter().skip(longest.unwrap_or(usize::MAX)).any(|id| *id == image);
        if beyond {
            let tokens = row.ids.len();
            return Err(Error::input(format!("an example of {tokens} tokens would lose an image")).hint(
                format!(
                    "the maximum length is {}: raise it, or shorten the text before the image",
                    longest.unwrap_or(tokens)
                ),
            ));
        }
        for (id, label) in row.ids.iter().zip(&mut row.labels) {
            if *id == image {
                *label = IGNORE_INDEX;
            }
        }
        Ok(row)
    }
}

impl<N: VisionLanguageModel> Trainable for VisionLanguagePipeline<N> {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network.reload(config, weights)
    }

    /// Cross entropy of the token after each position, as in the reference, the mean over all `labels` except -100.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        causal::no_options(options)?;
        let mut inputs = inputs.clone();
        let labels = inputs.remove("labels").ok_or_else(|| Error::input("labels are missing"))?;
        let (hidden, _) = self.forward_hidden(&inputs)?;
        let ids = inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))?;
        let labels = self.network.labels(ids, inputs.get("attention_mask"), &labels)?;
        next_token_loss_by(&hidden, &labels, |rows| self.network.logits(rows))
    }

    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let kit = self.kit()?;
        let limit = Some(self.network.max_position_embeddings());
        let longest = options.max_length.into_iter().chain(limit).min();
        let (mut rows, mut images) = (Vec::new(), Vec::new());
        for example in examples {
            let (row, of_row) = self.labelled(example, options.mask_prompt)?;
            rows.push(self.checked(row, longest)?);
            images.extend(of_row);
        }
        let pad = self.pad.unwrap_or_else(|| kit.tokenizer.pad_id());
        let mut batch = LabelledTokens::batch(rows, longest, pad)?;
        if !images.is_empty() {
            let pixels = images.iter().map(|image| kit.processor.process(image));
            let pixels = Tensor::stack(&pixels.collect::<Result<Vec<_>>>()?, 0)?;
            batch.inputs.insert("pixel_values".into(), pixels);
        }
        if self.both_ways {
            let ids = batch.inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))?;
            let types = ids.eq(i64::from(self.network.image_token()))?.to_dtype(DType::I64)?;
            batch.inputs.insert("token_type_ids".into(), types);
        }
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"(^|\.)(lm_head|embed_out)\.")
    }
}

impl<N: VisionLanguageModel> Pipeline for VisionLanguagePipeline<N> {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Ok(&self.kit()?.tokenizer)
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward_ids(inputs),
            "generate" => self.generate_ids(inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.answer(prompt, options, &mut |piece| each(Item::Text(piece)))
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        if !matches!(method, "forward" | "generate") || sizes.tokens == 0 {
            return Err(self.cannot(&format!(
                "run \"{method}\" on {} tokens and {} images",
                sizes.tokens, sizes.images
            )));
        }
        let mut made = token_rows(sizes)?;
        if sizes.images == 0 {
            return Ok(made);
        }
        let (rows, tokens) = (sizes.rows, sizes.images * self.network.tokens_of_a_picture());
        let image = i64::from(self.network.image_token());
        // Images, then text, as in prompts.
        let pictures = Tensor::full(image, (rows, tokens), &Device::Cpu)?;
        let ones = Tensor::ones((rows, tokens), DType::I64, &Device::Cpu)?;
        let words = Tensor::zeros((rows, sizes.tokens), DType::I64, &Device::Cpu)?;
        for (name, before) in [("input_ids", &pictures), ("attention_mask", &ones)] {
            let after = made.remove(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
            made.insert(name.to_string(), Tensor::cat(&[before, &after], 1)?);
        }
        if self.both_ways {
            made.insert("token_type_ids".into(), Tensor::cat(&[&ones, &words], 1)?);
        }
        let side = self.network.image_size();
        made.insert("pixel_values".into(), noise_pixels(&[rows * sizes.images, 3, side, side])?);
        Ok(made)
    }

    fn defaults(&self) -> GenerationConfig {
        self.defaults.clone()
    }
}

/// Removes keys that are null from `config`, except for `kept`, whose null has a meaning.
pub fn without_nulls(config: &Value, kept: &[&str]) -> Value {
    match config {
        Value::Object(keys) => keys
            .iter()
            .filter(|(key, value)| !value.is_null() || kept.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// The note on the cards of medical models.
pub const NO_DEVICE: &str =
    "a research model and not a medical device: its output is not for diagnosis or treatment";

/// Merges two inventories.
pub fn with_parts(mut whole: Inventory, part: Inventory) -> Inventory {
    whole.parameters += part.parameters;
    whole.tensors.extend(part.tensors);
    whole.matrices.extend(part.matrices);
    whole.packed.extend(part.packed);
    whole
}
