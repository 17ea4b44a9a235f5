//! The pipeline of IDEFICS: generates text from interleaved images and texts.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::Positions;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::image::Processor;
use fauna_shared::item::{Image, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, batch_of_one,
    noise_pixels, only_known,
};
use fauna_shared::nn::IGNORE_INDEX;
use fauna_shared::text::Tokenizer;
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::called;
use fauna_text::called::token_ids;
use fauna_text::causal::{self, next_token_loss_by};
use fauna_text::labelled::{self, LabelledTokens};
use fauna_text::words;
use serde_json::Value;

use super::Idefics;
use super::prompt::{AROUND, END_OF_TURN, Follows, words as in_words};
use crate::flamingo::prompt::PLACE;
use crate::flamingo::reading::{self, Answering, Looks};
use crate::flamingo::sight::{Media, MediaLocations};
use crate::processor;

/// Default maximum number of new tokens.
const ANSWER: usize = 100;

/// The inputs of the reference's `forward` and `generate`.
const INPUTS: [&str; 7] = [
    "input_ids",
    "attention_mask",
    "position_ids",
    "pixel_values",
    "image_encoder_embeddings",
    "perceiver_embeddings",
    "image_attention_mask",
];

/// The network with its tokenizer and image processor.
pub struct IdeficsPipeline {
    idefics: Idefics,
    tokenizer: Option<Tokenizer>,
    processor: Processor,
    /// `<image>`.
    place: u32,
    begin: Option<u32>,
    end: Vec<u32>,
    /// The token after which cross-attention is masked until the next image.
    end_of_text: Option<u32>,
    pad: Option<u32>,
    /// `<image>` and the token around it, which are never generated.
    banned: Vec<u32>,
    turns_end: bool,
    card: Card,
}

impl IdeficsPipeline {
    /// Opens a checkpoint.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (idefics, inventory) = pretrained.load::<Idefics>()?;
        let architecture = pretrained.architecture("IdeficsForVisionText2Text");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(idefics.max_position_embeddings());
        let tokenizer = words::tokenizer(pretrained)?;
        let processor = processor::of(&pretrained.files, "IdeficsImageProcessor")?
            .unwrap_or_else(|| Processor::idefics(idefics.config().vision_config.image_size));
        let generation = pretrained.generation_config()?;
        let ids = |key: &str| match &generation[key] {
            Value::Null => token_ids(&pretrained.config[key]),
            value => token_ids(value),
        };
        let token = |name: &str| tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_id(name));
        let first = idefics.config().language.vocab_size as u32;
        let (around, place) = (token(AROUND).unwrap_or(first), token(PLACE).unwrap_or(first + 1));
        let end_of_turn = token(END_OF_TURN);
        let end_of_text =
            token("</s>").or_else(|| token_ids(&pretrained.config["eos_token_id"]).first().copied());
        let mut end = ids("eos_token_id");
        end.extend(end_of_turn.filter(|id| !end.contains(id)));
        Ok(Self {
            place,
            begin: ids("bos_token_id").first().copied(),
            end,
            end_of_text,
            pad: ids("pad_token_id").first().copied(),
            banned: vec![place, around],
            turns_end: end_of_turn.is_some(),
            idefics,
            tokenizer,
            processor,
            card,
        })
    }

    /// The network.
    pub fn network(&self) -> &Idefics {
        &self.idefics
    }

    /// Encodes the images of `inputs`, the same number for each sequence.
    fn media(&self, inputs: &Tensors, rows: usize) -> Result<Media> {
        let given: Vec<(&str, &Tensor)> =
            ["pixel_values", "image_encoder_embeddings", "perceiver_embeddings"]
                .into_iter()
                .filter_map(|name| Some((name, inputs.get(name)?)))
                .collect();
        let (name, tensor) = match given[..] {
            [] => return Ok(Media::none(rows)),
            [one] => one,
            _ => {
                let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
                return Err(Error::input(format!("expected only one of {}", names.join(" and "))));
            }
        };
        let (wanted, rank) = match name {
            "pixel_values" => ("(batch, images, channels, height, width)", 5),
            _ => ("(batch, images, states, hidden_size)", 4),
        };
        let dims = tensor.dims();
        if dims.len() != rank || dims[0] != rows || tensor.elem_count() == 0 {
            return Err(Error::input(format!(
                "{name} has the shape {dims:?}, expected {wanted} with batch {rows}"
            )));
        }
        let flat = tensor.flatten(0, 1)?;
        let states = match name {
            "pixel_values" => self.idefics.see(&flat)?,
            "image_encoder_embeddings" => self.idefics.resample(&flat)?,
            _ if !self.idefics.config().use_resampler => {
                return Err(Error::input("perceiver_embeddings, but this checkpoint has no resampler"));
            }
            _ => flat.to_device(self.idefics.device())?,
        };
        Media::rectangle(states, rows)
    }

    /// The images that each token attends to: by `image_attention_mask`, or else the latest image.
    fn sight(&self, inputs: &Tensors, ids: &Tensor, media: &Media) -> Result<MediaLocations> {
        let (rows, time) = ids.dims2()?;
        let counts = media.counts();
        let pictures = counts.first().copied().unwrap_or(0);
        match inputs.get("image_attention_mask") {
            Some(table) if pictures == 0 => Err(Error::input(format!(
                "image_attention_mask has the shape {:?}, but there are no images",
                table.dims()
            ))),
            Some(table) if table.dims() == [rows, time, pictures] => MediaLocations::table(table),
            Some(table) => Err(Error::input(format!(
                "image_attention_mask has the shape {:?}, expected {:?}: (batch, sequence, images)",
                table.dims(),
                [rows, time, pictures]
            ))),
            None => {
                let ids = words::checked_ids(
                    ids,
                    inputs.get("attention_mask"),
                    self.idefics.vocab_size(),
                    &Device::Cpu,
                )?;
                MediaLocations::latest(&transfer::rows(&ids)?, &counts, self.place, self.end_of_text)
            }
        }
    }

    /// Checks `input_ids` and the inputs of the same shape.
    fn ids<'a>(&self, inputs: &'a Tensors) -> Result<&'a Tensor> {
        only_known(inputs, &INPUTS)?;
        let of_text = |name: &str| ["input_ids", "attention_mask", "position_ids"].contains(&name);
        let text = inputs.iter().filter(|(name, _)| of_text(name));
        let text: Tensors = text.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        words::input_ids(&text, &INPUTS)?;
        inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))
    }

    /// The hidden states after the final norm, `(batch, sequence, hidden_size)`, and the images.
    fn forward_hidden(&self, inputs: &Tensors) -> Result<(Tensor, Media)> {
        let ids = self.ids(inputs)?;
        let (rows, time) = ids.dims2()?;
        let mask = inputs.get("attention_mask");
        let positions = match (inputs.get("position_ids"), mask) {
            (Some(positions), _) => Positions::rows(&transfer::rows(&positions.to_dtype(DType::U32)?)?)?,
            (None, Some(mask)) => Positions::rows(&counted(&words::real_tokens(mask)?))?,
            (None, None) => Positions::counting(0, time),
        };
        let media = self.media(inputs, rows)?;
        let sight = self.sight(inputs, ids, &media)?;
        let hidden = reading::read(&self.idefics, ids, mask, &positions, &media, &sight)?;
        Ok((hidden, media))
    }

    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        let (hidden, media) = self.forward_hidden(inputs)?;
        let rows = hidden.dim(0)?;
        let logits = self.idefics.logits(&hidden)?;
        let mut out = Tensors::from([("last_hidden_state".into(), hidden), ("logits".into(), logits)]);
        if let Some(states) = media.states() {
            let (_, count, width) = states.dims3()?;
            out.insert("image_hidden_states".into(), states.reshape((rows, (), count, width))?);
        }
        Ok(out)
    }

    fn generate_ids(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let ids = self.ids(inputs)?;
        let mask = inputs.get("attention_mask");
        let media = self.media(inputs, ids.dim(0)?)?;
        let rows = reading::prompts(&self.idefics, ids, mask)?;
        let sight = self.sight(inputs, ids, &media)?.without(&rows.pads);
        let banned = match &options["bad_words_ids"] {
            Value::Array(words) if words.iter().any(|word| token_ids(word).len() != 1) => {
                return Err(Error::unsupported("bad_words_ids of several tokens are not implemented"));
            }
            words => token_ids(words),
        };
        let config = called::config(options, &self.end, self.pad)?;
        let answering = Answering::new(&self.idefics, &media, sight, banned)?;
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
        let mut options = options.clone();
        let (mut ids, mut pictures) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let words = in_words(prompt, self.turns_end, true)?;
            let mut row: Vec<u32> = self.begin.into_iter().collect();
            row.extend(tokenizer.encode(&words.text, false)?);
            ids.push(row);
            pictures.push(words.pictures);
            options.stop.extend(words.stop);
        }
        options.stop.sort();
        options.stop.dedup();
        let options = options.with_tokens(&self.end, self.pad);
        let media =
            Media::of(&pictures, |image| self.processor.process(image), |pixels| self.idefics.see(pixels))?;
        let sight = MediaLocations::latest(&ids, &media.counts(), self.place, self.end_of_text)?;
        let answering = Answering::new(&self.idefics, &media, sight, self.banned.clone())?;
        answering.stream(tokenizer, &ids, &options, each)
    }
}

/// Positions from 0 of the tokens that are not padding; padding has position 1, as in the reference.
fn counted(real: &[Vec<bool>]) -> Vec<Vec<u32>> {
    let row = |row: &Vec<bool>| {
        let mut next = 0;
        let position = |real: &bool| match real {
            true => {
                next += 1;
                next - 1
            }
            false => 1,
        };
        row.iter().map(position).collect()
    };
    real.iter().map(row).collect()
}

impl IdeficsPipeline {
    /// The tokens of the text that `prompt` is formatted as, before which the beginning token stands.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.begin.into_iter().collect();
        ids.extend(self.tokenizer()?.encode(text, false)?);
        Ok(ids)
    }

    /// `ids`, ended by a token that ends an answer.
    fn ended(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if ids.last().is_none_or(|last| !self.end.contains(last)) {
            ids.extend(self.end.first());
        }
        ids
    }

    /// The tokens of `example`, which of them are learned, and its images.
    fn labelled(&self, example: &Example, mask_prompt: bool) -> Result<(LabelledTokens, Vec<Image>)> {
        let turns = reading::turns_of(example)?;
        let images = reading::images_of(&turns);
        let pair;
        let continued = match example {
            Example::Completion { prompt, completion } => Some((prompt, completion.as_str())),
            Example::Pair { positive: Item::Text(caption), .. }
            | Example::Pair { anchor: Item::Text(caption), .. } => {
                pair = Prompt::Items(images.iter().cloned().map(Item::Image).collect());
                Some((&pair, caption.as_str()))
            }
            _ => None,
        };
        let follows = continued.map(|(prompt, _)| Follows::of(prompt)).transpose()?;
        let mut row = match (continued, follows) {
            (Some((prompt, completion)), Some(follows @ (Follows::Space | Follows::Image))) => {
                let before = in_words(prompt, self.turns_end, true)?.text;
                let space = if follows == Follows::Space { " " } else { "" };
                let whole = format!("{before}{space}{}", completion.trim());
                LabelledTokens::after(&self.tokens(&before)?, self.ended(self.tokens(&whole)?), mask_prompt)
            }
            _ => {
                let tokens = |count: usize, asks: bool| {
                    let first = Prompt::Chat(turns[..count].to_vec());
                    let ids = self.tokens(&in_words(&first, self.turns_end, asks)?.text)?;
                    Ok(if asks { ids } else { self.ended(ids) })
                };
                labelled::turns(tokens, &reading::answers(&turns), mask_prompt)?
            }
        };
        for (id, label) in row.ids.iter().zip(&mut row.labels) {
            if self.banned.contains(id) {
                *label = IGNORE_INDEX;
            }
        }
        Ok((row, images))
    }
}

impl Trainable for IdeficsPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.idefics = Idefics::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// Cross entropy of the token after each position, over the whole vocabulary with the added tokens, the mean over
    /// all `labels` except -100.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        causal::no_options(options)?;
        let mut inputs = inputs.clone();
        let labels = inputs.remove("labels").ok_or_else(|| Error::input("labels are missing"))?;
        let (hidden, _) = self.forward_hidden(&inputs)?;
        next_token_loss_by(&hidden, &labels, |rows| self.idefics.logits(rows))
    }

    /// Images and the tokens around them are not learned.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let rows = examples.iter().map(|example| self.labelled(example, options.mask_prompt));
        let (rows, images): (Vec<_>, Vec<_>) = rows.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let limit = Some(self.idefics.max_position_embeddings());
        let longest = options.max_length.into_iter().chain(limit).min();
        let pad = match self.pad {
            Some(pad) => pad,
            None => self.tokenizer()?.pad_id(),
        };
        let (mut batch, pixels) = reading::batch(rows, &images, &self.processor, longest, pad)?;
        batch.inputs.extend(pixels.map(|pixels| ("pixel_values".to_string(), pixels)));
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^lm_head\.")
    }
}

impl Pipeline for IdeficsPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        if options["interpolate_pos_encoding"] == true {
            return Err(Error::unsupported("interpolate_pos_encoding is not implemented for idefics"));
        }
        match method {
            "forward" => self.forward_ids(inputs),
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
        let mut inputs = reading::sample_tokens(self, method, sizes, ("input_ids", self.place))?;
        if sizes.images > 0 {
            let side = self.idefics.config().vision_config.image_size;
            let pixels = noise_pixels(&[sizes.rows, sizes.images, 3, side, side])?;
            inputs.insert("pixel_values".into(), pixels);
        }
        Ok(inputs)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::greedy(ANSWER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_has_position_one() {
        let real = [vec![false, false, true, true], vec![true, true, true, false]];
        assert_eq!(counted(&real), [[1, 1, 0, 1], [0, 1, 2, 1]]);
    }
}
