//! DALL·E mini as a pipeline: the reference's calls, and pictures of words.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Image, Item, Prompt, Reading, Tensors};
use fauna_shared::model::{Card, Pipeline, Pretrained, SampleSizes, only_known, token_rows};
use fauna_shared::{Error, Result};
use fauna_text::words;
use serde_json::Value;

use super::super::vqgan::Vqgan;
use super::super::{made_up_codes, pictures};
use super::draw::{Pen, Wish};
use super::release::{self, no_picture_half};
use super::text::{Reader, Words};
use super::{DalleBart, PAD};

/// Codes of the picture half of every release.
const CODES: usize = 16384;

/// What stands in an unfinished picture where nothing is known yet.
const GREY: u8 = 128;

/// The two halves with all that their release says, or the one that is there.
pub struct MiniPipeline {
    network: Option<DalleBart>,
    vqgan: Option<Vqgan>,
    reader: Option<Reader>,
    /// What a picture begins with.
    start: u32,
    /// Whether it is min-dalle's release, whose defaults are its own.
    port: bool,
    device: Device,
    card: Card,
}

impl MiniPipeline {
    /// Opens a checkpoint. Settings: `bos`, the code a picture begins with, where it is not the config's
    /// `decoder_start_token_id` (min-dalle 0.4.11 begins with 16383); `vqgan`, where the picture half is.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let loaded = release::load(pretrained)?;
        let mut card = pretrained.card(&pretrained.architecture("DalleBart"), &loaded.inventory);
        let mut start = 0;
        if let Some(network) = &loaded.network {
            let config = network.config();
            card.context = Some(config.max_text_length);
            start = match pretrained.options.settings.get("bos") {
                None | Some(Value::Null) => config.decoder_start_token_id,
                Some(value) => {
                    let start = value.as_u64().filter(|start| *start <= config.image_vocab_size as u64);
                    start.ok_or_else(|| {
                        Error::input(format!("bos is {value}"))
                            .hint(format!("a code from 0 to {} is wanted", config.image_vocab_size))
                    })? as u32
                }
            };
        }
        if loaded.vqgan.is_none() {
            card.notes.push("it came without the decoder of its pictures: it gives codes alone".into());
        }
        let reader = match &loaded.network {
            Some(network) => reader(pretrained, network)?,
            None => None,
        };
        Ok(Self {
            network: loaded.network,
            vqgan: loaded.vqgan,
            reader,
            start,
            port: loaded.port,
            device: pretrained.weights.runtime().device().clone(),
            card,
        })
    }

    /// Opens the picture half alone.
    pub(crate) fn open_vqgan(pretrained: &Pretrained) -> Result<Self> {
        let (vqgan, inventory) = pretrained.load::<Vqgan>()?;
        Ok(Self {
            card: pretrained.card(&pretrained.architecture("VQModel"), &inventory),
            network: None,
            vqgan: Some(vqgan),
            reader: None,
            start: 0,
            port: true,
            device: pretrained.weights.runtime().device().clone(),
        })
    }

    /// The half that draws, if it is there.
    pub fn network(&self) -> Option<&DalleBart> {
        self.network.as_ref()
    }

    /// The half that makes pictures of codes, if it is there.
    pub fn vqgan(&self) -> Option<&Vqgan> {
        self.vqgan.as_ref()
    }

    /// The ids of a text, and how many were cut.
    ///
    /// # Errors
    /// As [`Reader::read`]; also if the release came without its vocabulary.
    pub fn words(&self, text: &str) -> Result<Words> {
        self.reader()?.read(text)
    }

    fn reader(&self) -> Result<&Reader> {
        self.reader.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    fn writer(&self) -> Result<&DalleBart> {
        self.network.as_ref().ok_or_else(|| self.cannot("read words").hint("it is the picture half alone"))
    }

    fn painter(&self) -> Result<&Vqgan> {
        self.vqgan.as_ref().ok_or_else(|| no_picture_half(&self.card.source))
    }

    fn pen<'a>(&self, network: &'a DalleBart) -> Pen<'a> {
        let known = self.vqgan.as_ref().map_or(CODES, |vqgan| vqgan.config().n_embed);
        Pen { network, start: self.start, codes: known.min(network.config().image_vocab_size + 1) }
    }

    /// Pictures in 0 to 255, `(batch, height, width, 3)`, of rows of codes, each a square.
    fn paint(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        let length = codes.first().map_or(0, Vec::len);
        let side = side_of(length)?;
        let codes = Tensor::from_vec(codes.concat(), (codes.len(), side, side), &self.device)?;
        self.painter()?.decode(&codes)
    }

    /// The picture of the first rows of codes, grey where the others will be.
    fn unfinished(&self, codes: &[u32], side: usize) -> Result<Image> {
        let vqgan = self.painter()?;
        let rows = codes.len() / side;
        let known = Tensor::from_slice(&codes[..rows * side], (1, rows, side), &self.device)?;
        let mut picture = pictures(&vqgan.decode(&known)?)?.remove(0);
        let scale = vqgan.config().scale();
        picture.height = side * scale;
        picture.rgb.resize(picture.height * picture.width * 3, GREY);
        Ok(picture)
    }

    /// The reference's `forward`: scores of every code after each of `decoder_input_ids`, `(rows, time, codes)`, and the
    /// states of the text they rest on.
    fn forward_pass(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &["input_ids", "attention_mask", "decoder_input_ids"])?;
        let network = self.writer()?;
        let mut texts = rows_of(inputs, "input_ids")?;
        if let Some(mask) = inputs.get("attention_mask") {
            let real = words::real_tokens(mask)?;
            if real.len() != texts.len() || real.iter().zip(&texts).any(|(real, row)| real.len() != row.len())
            {
                return Err(Error::input("attention_mask and input_ids are of different shapes"));
            }
            for (row, real) in texts.iter_mut().zip(real) {
                row.iter_mut().zip(real).for_each(|(id, real)| *id = if real { *id } else { PAD });
            }
        }
        let codes = match inputs.contains_key("decoder_input_ids") {
            true => rows_of(inputs, "decoder_input_ids")?,
            false => vec![vec![self.start]; texts.len()],
        };
        if codes.len() != texts.len() {
            return Err(Error::input(format!("{} rows of codes for {} texts", codes.len(), texts.len())));
        }
        let text = network.read(&texts)?;
        let time = codes.first().map_or(0, Vec::len);
        let mut state = network.start(&text, time)?;
        let hidden = network.forward(&codes.concat(), codes.len(), &mut state)?;
        Ok(Tensors::from([
            ("encoder_last_hidden_state".to_string(), text.states),
            ("logits".to_string(), network.logits(&hidden)?),
        ]))
    }

    /// The reference's `generate`: `sequences` `(rows, codes)` without what they began with, and `images`
    /// `(rows, height, width, 3)` in 0 to 255 if the picture half is there.
    fn generate_codes(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &["input_ids", "input_ids_uncond"])?;
        let network = self.writer()?;
        let texts = rows_of(inputs, "input_ids")?;
        let nothing = match inputs.contains_key("input_ids_uncond") {
            true => rows_of(inputs, "input_ids_uncond")?,
            // As min-dalle makes them: the first and the last token of each text.
            false => texts.iter().map(|row| nothing_of(row)).collect(),
        };
        if nothing.len() != texts.len() {
            return Err(Error::input(format!("{} unconditional rows for {}", nothing.len(), texts.len())));
        }
        let number = |key: &str| options[key].as_f64();
        let defaults = self.defaults();
        let decoding = GenerationConfig {
            guidance: number("condition_scale").map_or(defaults.guidance, |scale| scale as f32),
            temperature: match options["do_sample"].as_bool() {
                Some(false) => 0.0,
                _ => number("temperature").map_or(defaults.temperature, |t| t as f32),
            },
            top_k: options["top_k"].as_u64().map_or(defaults.top_k, |k| k as usize),
            top_p: number("top_p").map_or(defaults.top_p, |p| p as f32),
            seed: options["seed"].as_u64().unwrap_or(0),
            ..defaults
        };
        let wishes = texts.into_iter().zip(nothing).zip(0..);
        let wishes: Vec<Wish> =
            wishes.map(|((words, nothing), stream)| Wish { words, nothing, stream }).collect();
        let go_on = &mut |_: usize, _: &[u32]| Ok(ControlFlow::Continue(()));
        let codes = self.pen(network).draw(&wishes, &decoding, go_on)?;
        let length = codes.first().map_or(0, Vec::len);
        let sequences: Vec<i64> = codes.iter().flatten().map(|code| i64::from(*code)).collect();
        let sequences = Tensor::from_vec(sequences, (codes.len(), length), &Device::Cpu)?;
        let mut out = Tensors::from([("sequences".to_string(), sequences)]);
        if self.vqgan.is_some() {
            out.insert("images".into(), self.paint(&codes)?);
        }
        Ok(out)
    }

    /// `images` of `codes`: `(batch, height, width)`, or `(batch, codes)` of squares.
    fn decode_codes(&self, inputs: &Tensors) -> Result<Tensor> {
        only_known(inputs, &["codes"])?;
        let codes = inputs.get("codes").ok_or_else(|| Error::input("codes are missing"))?;
        match *codes.dims() {
            [batch, length] => {
                let side = side_of(length)?;
                self.painter()?.decode(&codes.reshape((batch, side, side))?)
            }
            _ => self.painter()?.decode(codes),
        }
    }

    /// What a prompt of words asks for, and how many of its tokens were cut.
    fn wish(&self, prompt: &Prompt, stream: usize) -> Result<(Wish, usize)> {
        let Prompt::Items(items) = prompt else {
            return Err(
                Error::input("a conversation is no wish for a picture").hint("say what it should show")
            );
        };
        let text = items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat();
        let reader = self.reader()?;
        let Words { ids, cut } = reader.read(&text)?;
        Ok((Wish { words: ids, nothing: reader.nothing(), stream: stream as u64 }, cut))
    }

    /// The pictures of an item of codes.
    fn decode_item(&self, prompt: &Prompt) -> Option<Result<Vec<Image>>> {
        match prompt {
            Prompt::Items(items) => match items.as_slice() {
                [Item::Codes(codes)] => Some(self.decode_codes(codes).and_then(|values| pictures(&values))),
                _ => None,
            },
            Prompt::Chat(_) | Prompt::Infill { .. } => None,
        }
    }
}

/// What reads the words of a release; none if it came without its vocabulary.
fn reader(pretrained: &Pretrained, network: &DalleBart) -> Result<Option<Reader>> {
    let longest = network.config().max_text_length;
    let port = match pretrained.checkpoint.is_none() {
        true => release::parts(&pretrained.files)?,
        false => None,
    };
    match port {
        Some(parts) => match &parts.text {
            Some((vocab, merges)) => Reader::port(vocab, merges, longest).map(Some),
            None => Ok(None),
        },
        None => match words::tokenizer(pretrained)? {
            Some(tokenizer) => Reader::original(tokenizer, longest).map(Some),
            None => Ok(None),
        },
    }
}

/// The side of a square of `length` codes.
fn side_of(length: usize) -> Result<usize> {
    match length.isqrt() {
        side if side > 0 && side * side == length => Ok(side),
        _ => Err(Error::input(format!("{length} codes make no square"))),
    }
}

/// The first and the last token of a text, filled up.
fn nothing_of(row: &[u32]) -> Vec<u32> {
    let words = row.iter().rposition(|id| *id != PAD).map_or(&row[..0], |last| &row[..=last]);
    let mut nothing: Vec<u32> = words.first().into_iter().chain(words.last()).copied().collect();
    nothing.truncate(row.len());
    nothing.resize(row.len(), PAD);
    nothing
}

/// The ids of `name`, `(rows, time)`.
fn rows_of(inputs: &Tensors, name: &str) -> Result<Vec<Vec<u32>>> {
    let ids = inputs.get(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
    ids.dims2().map_err(|_| {
        Error::input(format!("{name} are (rows, time), these have the shape {:?}", ids.dims()))
    })?;
    let rows: Vec<Vec<i64>> = ids.to_dtype(DType::I64)?.to_vec2()?;
    let id = |id: i64| u32::try_from(id).map_err(|_| Error::input(format!("{name}: {id} is no token")));
    rows.into_iter().map(|row| row.into_iter().map(id).collect()).collect()
}

impl Pipeline for MiniPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn reading(&self) -> Reading {
        Reading::pillow()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        match self.network {
            Some(_) => self.forward_pass(inputs),
            None => Ok(Tensors::from([("images".to_string(), self.decode_codes(inputs)?)])),
        }
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward(inputs),
            "generate" => self.generate_codes(inputs, options),
            "decode" => Ok(Tensors::from([("images".to_string(), self.decode_codes(inputs)?)])),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        match (method, sizes, &self.network, &self.vqgan) {
            ("forward" | "generate", SampleSizes { tokens: 1.., images: 0, .. }, Some(_), _) => {
                let mut inputs = token_rows(sizes)?;
                inputs.remove("attention_mask");
                Ok(inputs)
            }
            ("decode", SampleSizes { tokens: 0, .. }, _, Some(vqgan)) => {
                let side = vqgan.config().resolution / vqgan.config().scale();
                let codes = made_up_codes((sizes.rows * sizes.images.max(1), side, side))?;
                Ok(Tensors::from([("codes".to_string(), codes)]))
            }
            _ => Err(self.cannot(&format!("run \"{method}\" on {} tokens", sizes.tokens))),
        }
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let prompts = std::slice::from_ref(prompt);
        let made = self.generate_batch(prompts, options, &mut |_, item| each(item))?;
        Ok(made.into_iter().next().unwrap_or_default())
    }

    /// Codes are decoded one prompt after the other; words are drawn in batches, and those that are all the same are read
    /// once. A text that was cut is told of first.
    fn generate_batch(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let made = vec![Generation::default(); prompts.len()];
        let mut wishes = Vec::new();
        let mut entries = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            if let Some(pictures) = self.decode_item(prompt) {
                for picture in pictures? {
                    if each(index, Item::Image(picture)).is_break() {
                        return Ok(made);
                    }
                }
                continue;
            }
            self.writer()?;
            self.painter()?;
            let (wish, cut) = self.wish(prompt, index)?;
            if cut > 0 {
                let longest = wish.words.len();
                let told = format!("only the first {longest} tokens are read, {cut} were left out");
                if each(index, Item::Note(told)).is_break() {
                    return Ok(made);
                }
            }
            wishes.push(wish);
            entries.push(index);
        }
        if wishes.is_empty() {
            return Ok(made);
        }
        let network = self.writer()?;
        let length = network.config().image_length;
        let side = side_of(length)?;
        let mut flow = ControlFlow::Continue(());
        self.pen(network).draw(&wishes, options, &mut |row, codes| {
            if codes.len() == length {
                let picture = pictures(&self.paint(&[codes.to_vec()])?)?.remove(0);
                flow = each(entries[row], Item::Image(picture));
            } else if options.previews && codes.len().is_multiple_of(side) {
                flow = each(entries[row], Item::Image(self.unfinished(codes, side)?));
            }
            Ok(flow)
        })?;
        Ok(made)
    }

    fn defaults(&self) -> GenerationConfig {
        let (guidance, top_k) = if self.port { (16.0, 256) } else { (10.0, 0) };
        GenerationConfig { temperature: 1.0, guidance, top_k, ..GenerationConfig::default() }
    }
}

/// Opens the picture half alone.
pub(crate) fn open_vqgan(pretrained: &Pretrained) -> Result<Box<dyn Pipeline>> {
    Ok(Box::new(MiniPipeline::open_vqgan(pretrained)?))
}
