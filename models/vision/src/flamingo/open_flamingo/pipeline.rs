//! The pipeline of OpenFlamingo: continues interleaved images and texts.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_shared::attention::Positions;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, batch_of_one,
    noise_pixels, only_known,
};
use fauna_shared::nn::IGNORE_INDEX;
use fauna_shared::source::Files;
use fauna_shared::text::Tokenizer;
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result, json, transfer};
use fauna_text::called;
use fauna_text::called::token_ids;
use fauna_text::causal::next_token_loss_by;
use fauna_text::labelled::{self, LabelledTokens};
use fauna_text::words;
use serde_json::{Map, Value};

use super::OpenFlamingo;
use super::prompt::{END_OF_CHUNK, words as in_words};
use super::release::{Assembled, assemble};
use crate::flamingo::prompt::PLACE;
use crate::flamingo::reading::{self, Answering, Looks};
use crate::flamingo::sight::{Media, MediaLocations};
use crate::processor;

/// Default maximum number of new tokens.
const ANSWER: usize = 64;

/// The padding token, if the language model's tokenizer has none.
const PAD: &str = "<PAD>";

/// The network with its tokenizer and image processor.
pub struct OpenFlamingoPipeline {
    flamingo: OpenFlamingo,
    /// All weights, if they are assembled from several files.
    whole: Option<Weights>,
    tokenizer: Option<Tokenizer>,
    processor: Processor,
    tokens: Added,
    pad: Option<u32>,
    card: Card,
}

/// Ids of the tokens added to the language model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Added {
    /// `<image>`.
    media: u32,
    /// `<|endofchunk|>`: the end of an image's text.
    end: u32,
}

impl OpenFlamingoPipeline {
    /// Opens a release with its language model and vision encoder.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let Assembled { network: flamingo, inventory, whole, language, vision } = assemble(pretrained)?;
        let mut card = pretrained.card("Flamingo", &inventory);
        card.context = Some(flamingo.max_position_embeddings());
        card.notes.extend(flamingo.config().scored.map(|scored| {
            format!("its head has logits for {scored} tokens only: the added tokens are never generated")
        }));
        let tokenizer = tokenizer(pretrained, &language)?;
        let known = known_tokens(tokenizer.as_ref(), flamingo.vocab_size());
        let tokens = added(&pretrained.options.settings, known)?;
        if let Some(outside) =
            [tokens.media, tokens.end].iter().find(|id| **id as usize >= flamingo.vocab_size())
        {
            return Err(Error::new(
                ErrorKind::Mismatch,
                format!(
                    "token {outside}, {PLACE} or {END_OF_CHUNK}, exceeds the vocabulary of {}",
                    flamingo.vocab_size()
                ),
            )
            .at(language.root())
            .hint("the tokenizer is not that of the release")
            .set("give the token ids", "LoadOptions::settings", "media_token_id=ID")
            .set("and", "LoadOptions::settings", "eoc_token_id=ID"));
        }
        let processor = match processor::of(&vision, "CLIPImageProcessor")? {
            Some(processor) => processor,
            None => match vision.json("open_clip_config.json")? {
                Some(settings) => Processor::from_json(&settings).map_err(|error| error.at(vision.root()))?,
                None => Processor::open_clip(flamingo.config().vision_encoder.image_size),
            },
        };
        Ok(Self {
            pad: tokenizer.as_ref().and_then(|tokenizer| tokenizer.special().pad),
            flamingo,
            whole,
            tokenizer,
            processor,
            tokens,
            card,
        })
    }

    /// The network.
    pub fn network(&self) -> &OpenFlamingo {
        &self.flamingo
    }

    /// Encodes the input `vision_x`, `(batch, images, 1, 3, height, width)`.
    fn media(&self, inputs: &Tensors, rows: usize) -> Result<Media> {
        let Some(pixels) = inputs.get("vision_x") else { return Ok(Media::none(rows)) };
        match *pixels.dims() {
            [batch, pictures, 1, channels, height, width] if batch == rows && pixels.elem_count() > 0 => {
                let flat = pixels.reshape((batch * pictures, channels, height, width))?;
                Media::rectangle(self.flamingo.see(&flat)?, rows)
            }
            [_, _, frames, _, _, _] if frames > 1 => {
                Err(Error::unsupported("videos of several frames are not implemented"))
            }
            ref other => Err(Error::input(format!(
                "vision_x has the shape {other:?}, expected ({rows}, images, 1, 3, height, width)"
            ))),
        }
    }

    /// The input `lang_x` and its attention mask.
    fn words_of<'a>(&self, inputs: &'a Tensors) -> Result<(&'a Tensor, Option<&'a Tensor>)> {
        // The reference's names, and the usual `input_ids`.
        only_known(inputs, &["vision_x", "lang_x", "input_ids", "attention_mask"])?;
        let ids = inputs.get("lang_x").or(inputs.get("input_ids"));
        let mask = inputs.get("attention_mask");
        let named = [("input_ids", ids), ("attention_mask", mask)];
        let text = named.into_iter().filter_map(|(name, tensor)| Some((name.to_string(), tensor?.clone())));
        words::input_ids(&text.collect(), &["input_ids", "attention_mask"])
            .map_err(|error| error.hint("input_ids are called lang_x here"))?;
        Ok((ids.ok_or_else(|| Error::input("lang_x is missing"))?, mask))
    }

    fn sight(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        media: &Media,
        media_token: u32,
    ) -> Result<MediaLocations> {
        let ids = words::checked_ids(ids, mask, self.flamingo.vocab_size(), &Device::Cpu)?;
        MediaLocations::latest(&transfer::rows(&ids)?, &media.counts(), media_token, None)
    }

    /// The hidden states after the final norm, `(batch, sequence, hidden_size)`.
    fn forward_hidden(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensor> {
        let (ids, mask) = self.words_of(inputs)?;
        let (rows, time) = ids.dims2()?;
        let media = self.media(inputs, rows)?;
        let sight = self.sight(ids, mask, &media, added(options, self.tokens)?.media)?;
        let positions = Positions::counting(0, time);
        reading::read(&self.flamingo, ids, mask, &positions, &media, &sight)
    }

    fn forward_ids(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensors> {
        let hidden = self.forward_hidden(inputs, options)?;
        let logits = self.flamingo.logits(&hidden)?;
        Ok(Tensors::from([("last_hidden_state".into(), hidden), ("logits".into(), logits)]))
    }

    fn generate_ids(&self, inputs: &Tensors, options: &Map<String, Value>) -> Result<Tensors> {
        let (ids, mask) = self.words_of(inputs)?;
        let media = self.media(inputs, ids.dim(0)?)?;
        let tokens = added(options, self.tokens)?;
        let rows = reading::prompts(&self.flamingo, ids, mask)?;
        let sight = self.sight(ids, mask, &media, tokens.media)?.without(&rows.pads);
        let config = called::config(&Value::Object(options.clone()), &[tokens.end], self.pad)?;
        let answering = Answering::new(&self.flamingo, &media, sight, Vec::new())?;
        Ok(Tensors::from([("sequences".to_string(), rows.sequences(&answering, &config)?)]))
    }

    /// Generates completions of several prompts in one batch; an image in several prompts is encoded once.
    fn answer(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let tokenizer = self.tokenizer()?;
        let (mut ids, mut pictures) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let (text, images) = in_words(prompt)?;
            ids.push(tokenizer.encode(&text, true)?);
            pictures.push(images);
        }
        let own = &tokenizer.special().eos;
        let ends: Vec<u32> = std::iter::once(self.tokens.end).chain(own.iter().copied()).collect();
        let options = options.with_tokens(&ends, self.pad);
        let media =
            Media::of(&pictures, |image| self.processor.process(image), |pixels| self.flamingo.see(pixels))?;
        let sight = MediaLocations::latest(&ids, &media.counts(), self.tokens.media, None)?;
        let answering = Answering::new(&self.flamingo, &media, sight, Vec::new())?;
        answering.stream(tokenizer, &ids, &options, each)
    }
}

/// The language model's tokenizer with the added tokens; `None` if it has none.
fn tokenizer(pretrained: &Pretrained, language: &Files) -> Result<Option<Tokenizer>> {
    let beside = match Tokenizer::from_folder(pretrained.files.root()) {
        Err(error) if error.kind() == ErrorKind::NotFound => Tokenizer::from_folder(language.root()),
        found => found,
    };
    match beside {
        Ok(tokenizer) => {
            let mut added = vec![END_OF_CHUNK, PLACE];
            if tokenizer.special().pad.is_none() {
                added.push(PAD);
            }
            let tokenizer = tokenizer.with_special_tokens(&added)?;
            let mut special = tokenizer.special().clone();
            special.pad = special.pad.or(tokenizer.token_id(PAD));
            Ok(Some(tokenizer.with_special(special)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The ids of the added tokens in the tokenizer, or else the last ids of the vocabulary, before the padding token.
fn known_tokens(tokenizer: Option<&Tokenizer>, vocabulary: usize) -> Added {
    let id = |name: &str| tokenizer.and_then(|tokenizer| tokenizer.token_id(name));
    let last = |back: usize| u32::try_from(vocabulary.saturating_sub(back)).unwrap_or(u32::MAX);
    Added { media: id(PLACE).unwrap_or(last(2)), end: id(END_OF_CHUNK).unwrap_or(last(3)) }
}

/// `known`, overridden by `options`.
fn added(options: &Map<String, Value>, known: Added) -> Result<Added> {
    let or = |key: &str, known: u32| match options.get(key) {
        None | Some(Value::Null) => Ok(known),
        Some(id) => token_ids(id)
            .first()
            .copied()
            .ok_or_else(|| Error::input(format!("{key} is {id}, expected a token id"))),
    };
    Ok(Added { media: or("media_token_id", known.media)?, end: or("eoc_token_id", known.end)? })
}

/// The options of the loss: token ids, and the settings that the model was opened with.
const OPTIONS: [&str; 5] =
    ["media_token_id", "eoc_token_id", "cross_attn_every_n_layers", "tokenizer_length", "quick_gelu"];

impl OpenFlamingoPipeline {
    /// `text`, with the token that ends the text of an image if there are images.
    fn ended(text: &str, has_images: bool) -> String {
        match has_images && !text.ends_with(END_OF_CHUNK) {
            true => format!("{text}{END_OF_CHUNK}"),
            false => text.to_string(),
        }
    }

    /// The tokens of `example`, which of them are learned, and its images. As in the reference's training on interleaved
    /// documents, images are not learned, nor what stands before the first of them, nor what stands between the end of
    /// the text of one and the next one.
    fn labelled(&self, example: &Example, mask_prompt: bool) -> Result<(LabelledTokens, Vec<Image>)> {
        let tokenizer = self.tokenizer()?;
        let turns = reading::turns_of(example)?;
        let images = reading::images_of(&turns);
        let tokens = |count: usize, asks: bool| {
            if count == 0 {
                return tokenizer.encode("", true);
            }
            let prompt = Prompt::Chat(turns[..count].to_vec());
            let (text, images) = in_words(&prompt)?;
            let text = if asks { text } else { Self::ended(&text, !images.is_empty()) };
            let mut ids = tokenizer.encode(&text, true)?;
            if count == turns.len() && !asks {
                ids.extend(tokenizer.special().eos.first());
            }
            Ok(ids)
        };
        let mut row = labelled::turns(tokens, &reading::answers(&turns), mask_prompt)?;
        if !images.is_empty() {
            self.mask_around(&mut row);
        }
        Ok((row, images))
    }

    fn mask_around(&self, row: &mut LabelledTokens) {
        let mut is_of_image = false;
        for (id, label) in row.ids.iter().zip(&mut row.labels) {
            is_of_image |= *id == self.tokens.media;
            if !is_of_image || *id == self.tokens.media {
                *label = IGNORE_INDEX;
            }
            is_of_image &= *id != self.tokens.end;
        }
    }
}

impl Trainable for OpenFlamingoPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        let assembled = self.whole.as_ref().map(|whole| whole.with_variables_of(weights));
        let weights = assembled.as_ref().unwrap_or(weights);
        self.flamingo = OpenFlamingo::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// Cross entropy of the token after each position, as in the language model, the mean over all `labels` except -100.
    /// The options `media_token_id` and `eoc_token_id` override the tokenizer's; the settings of opening are allowed too.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        let none = Map::new();
        let options = options.as_object().unwrap_or(&none);
        if let Some(name) = options.keys().find(|name| !OPTIONS.contains(&name.as_str())) {
            return Err(Error::input(format!("the loss has no option \"{name}\""))
                .hint(format!("known: {}", OPTIONS.join(", "))));
        }
        let mut inputs = inputs.clone();
        let labels = inputs.remove("labels").ok_or_else(|| Error::input("labels are missing"))?;
        let hidden = self.forward_hidden(&inputs, options)?;
        next_token_loss_by(&hidden, &labels, |rows| self.flamingo.logits(rows))
    }

    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let rows = examples.iter().map(|example| self.labelled(example, options.mask_prompt));
        let (rows, images): (Vec<_>, Vec<_>) = rows.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let limit = Some(self.flamingo.max_position_embeddings());
        let longest = options.max_length.into_iter().chain(limit).min();
        let pad = match self.pad {
            Some(pad) => pad,
            None => self.tokenizer()?.pad_id(),
        };
        let (mut batch, pixels) = reading::batch(rows, &images, &self.processor, longest, pad)?;
        let ids = batch.inputs.remove("input_ids");
        batch.inputs.extend(ids.map(|ids| ("lang_x".to_string(), ids)));
        if let Some(pixels) = pixels {
            // One frame per image.
            batch.inputs.insert("vision_x".into(), pixels.unsqueeze(2)?);
        }
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"(^|\.)(lm_head|embed_out)\.")
    }
}

impl Pipeline for OpenFlamingoPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    /// As in open_clip, whose transform the reference uses.
    fn image_options(&self) -> ImageOptions {
        ImageOptions::open_clip()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs, &Map::new())
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let none = Map::new();
        let options = options.as_object().unwrap_or(&none);
        match method {
            "forward" => self.forward_ids(inputs, options),
            "generate" => self.generate_ids(inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        batch_of_one(self, prompt, options, each)
    }

    fn generate_batch(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        self.answer(prompts, options, each)
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        let mut inputs = reading::sample_tokens(self, method, sizes, ("lang_x", self.tokens.media))?;
        if sizes.images > 0 {
            let side = self.flamingo.config().vision_encoder.image_size;
            let pixels = noise_pixels(&[sizes.rows, sizes.images, 1, 3, side, side])?;
            inputs.insert("vision_x".into(), pixels);
        }
        Ok(inputs)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::greedy(ANSWER)
    }
}
