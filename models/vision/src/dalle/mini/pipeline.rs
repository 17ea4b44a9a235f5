//! The pipeline of DALL·E mini: the reference's methods, and text to image.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Image, ImageOptions, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, SampleSizes, Trainable, TrainingBatch, batch_of_one,
    only_known, token_rows,
};
use fauna_shared::nn::cross_entropy;
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json, transfer};
use fauna_text::causal::no_options;
use fauna_text::{labelled, words};
use serde_json::Value;

use super::super::vqgan::{self, Vqgan};
use super::super::{side_of, to_images};
use super::draw::{SampleInputs, Sampler};
use super::release::{self, no_vqgan};
use super::text::{TextTokenizer, TokenizedText};
use super::{DalleBart, PAD};

/// Number of VQGAN codes, in every release.
const NUM_CODES: usize = 16384;

/// Grey level of the part of a preview that is not generated yet.
const GREY: u8 = 128;

/// The transformer and the VQGAN decoder, or one of them, with tokenizer and settings.
pub struct DalleMiniPipeline {
    network: Option<DalleBart>,
    vqgan: Option<Vqgan>,
    tokenizer: Option<TextTokenizer>,
    /// The weights of the transformer, if they are in min-dalle's files.
    files: Option<Weights>,
    /// The config and the weights of the VQGAN, if they have its encoder.
    with_encoder: Option<(vqgan::Config, Weights)>,
    /// The decoder start token.
    start: u32,
    /// Whether it is min-dalle's release, which has other sampling defaults.
    min_dalle: bool,
    device: Device,
    /// `generation_config.json`.
    generation: Value,
    card: Card,
}

impl DalleMiniPipeline {
    /// Opens a checkpoint. Settings: `bos`, the decoder start token if it is not the config's `decoder_start_token_id`
    /// (min-dalle 0.4.11 has 16383); `vqgan`, the location of the VQGAN decoder.
    ///
    /// # Errors
    /// If the files are missing, damaged or not implemented.
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
                            .hint(format!("expected a code from 0 to {}", config.image_vocab_size))
                    })? as u32
                }
            };
        }
        if loaded.vqgan.is_none() {
            card.notes.push("it has no VQGAN decoder: it generates codes, but no images".into());
        }
        let tokenizer = match &loaded.network {
            Some(network) => tokenizer(pretrained, network)?,
            None => None,
        };
        Ok(Self {
            files: loaded.files,
            with_encoder: loaded.with_encoder,
            network: loaded.network,
            vqgan: loaded.vqgan,
            tokenizer,
            start,
            min_dalle: loaded.min_dalle,
            device: pretrained.weights.runtime().device().clone(),
            generation: pretrained.generation_config()?,
            card,
        })
    }

    /// The half that draws, if it is there.
    pub fn network(&self) -> Option<&DalleBart> {
        self.network.as_ref()
    }

    /// The VQGAN decoder, if present.
    pub fn vqgan(&self) -> Option<&Vqgan> {
        self.vqgan.as_ref()
    }

    /// Tokenizes a prompt.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`], and if the release has no vocabulary.
    pub fn tokenize(&self, text: &str) -> Result<TokenizedText> {
        self.text_tokenizer()?.encode(text)
    }

    fn text_tokenizer(&self) -> Result<&TextTokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    fn transformer(&self) -> Result<&DalleBart> {
        self.network.as_ref().ok_or_else(|| self.cannot("encode text").hint("it is only a VQGAN decoder"))
    }

    fn image_decoder(&self) -> Result<&Vqgan> {
        self.vqgan.as_ref().ok_or_else(|| no_vqgan(&self.card.source))
    }

    fn sampler<'a>(&self, network: &'a DalleBart) -> Sampler<'a> {
        let num_codes = self.vqgan.as_ref().map_or(NUM_CODES, |vqgan| vqgan.config().n_embed);
        Sampler {
            network,
            start: self.start,
            num_codes: num_codes.min(network.config().image_vocab_size + 1),
        }
    }

    /// Decodes sequences of codes, each a square grid, to images, `(batch, height, width, 3)` in 0 to 255.
    fn decode_squares(&self, codes: &[Vec<u32>]) -> Result<Tensor> {
        let length = codes.first().map_or(0, Vec::len);
        let side = side_of(length)?;
        let codes = Tensor::from_vec(codes.concat(), (codes.len(), side, side), &self.device)?;
        self.image_decoder()?.decode(&codes)
    }

    /// The preview of an image from its first rows of codes; the rest is grey.
    fn preview(&self, codes: &[u32], side: usize) -> Result<Image> {
        let vqgan = self.image_decoder()?;
        let rows = codes.len() / side;
        let known = Tensor::from_slice(&codes[..rows * side], (1, rows, side), &self.device)?;
        let mut image = to_images(&vqgan.decode(&known)?)?.remove(0);
        let scale = vqgan.config().scale();
        image.height = side * scale;
        image.rgb.resize(image.height * image.width * 3, GREY);
        Ok(image)
    }

    /// The reference's `forward`: `logits`, `(batch, sequence, codes)`, of `decoder_input_ids`, and
    /// `encoder_last_hidden_state`.
    fn forward_pass(&self, inputs: &Tensors) -> Result<Tensors> {
        let (states, logits) = self.scored(inputs)?;
        Ok(Tensors::from([("encoder_last_hidden_state".to_string(), states), ("logits".to_string(), logits)]))
    }

    /// The encoder's states, and the logits, `(batch, sequence, codes)`.
    fn scored(&self, inputs: &Tensors) -> Result<(Tensor, Tensor)> {
        only_known(inputs, &["input_ids", "attention_mask", "decoder_input_ids"])?;
        let network = self.transformer()?;
        let mut texts = rows_of(inputs, "input_ids")?;
        if let Some(mask) = inputs.get("attention_mask") {
            let real = words::real_tokens(mask)?;
            if real.len() != texts.len() || real.iter().zip(&texts).any(|(real, row)| real.len() != row.len())
            {
                return Err(Error::input("attention_mask and input_ids have different shapes"));
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
            return Err(Error::input(format!(
                "{} sequences in decoder_input_ids, {} in input_ids",
                codes.len(),
                texts.len()
            )));
        }
        let text = network.encode(&texts)?;
        let time = codes.first().map_or(0, Vec::len);
        let mut state = network.start(&text, time)?;
        let hidden = network.forward(&codes.concat(), codes.len(), &mut state)?;
        Ok((text.states, network.logits(&hidden)?))
    }

    /// The reference's `generate`: `sequences`, `(batch, codes)`, without the start token, and with a VQGAN decoder
    /// `images`, `(batch, height, width, 3)` in 0 to 255.
    fn generate_codes(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &["input_ids", "input_ids_uncond"])?;
        let network = self.transformer()?;
        let texts = rows_of(inputs, "input_ids")?;
        let uncond = match inputs.contains_key("input_ids_uncond") {
            true => rows_of(inputs, "input_ids_uncond")?,
            // As in min-dalle: the first and the last token of each text.
            false => texts.iter().map(|row| unconditional_of(row)).collect(),
        };
        if uncond.len() != texts.len() {
            return Err(Error::input(format!(
                "{} sequences in input_ids_uncond, {} in input_ids",
                uncond.len(),
                texts.len()
            )));
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
        let samples = texts.into_iter().zip(uncond).zip(0..);
        let samples: Vec<SampleInputs> =
            samples.map(|((ids, uncond_ids), stream)| SampleInputs { ids, uncond_ids, stream }).collect();
        let go_on = &mut |_: usize, _: &[u32]| Ok(ControlFlow::Continue(()));
        let codes = self.sampler(network).sample(&samples, &decoding, go_on)?;
        let length = codes.first().map_or(0, Vec::len);
        let sequences: Vec<i64> = codes.iter().flatten().map(|code| i64::from(*code)).collect();
        let sequences = Tensor::from_vec(sequences, (codes.len(), length), &Device::Cpu)?;
        let mut out = Tensors::from([("sequences".to_string(), sequences)]);
        if self.vqgan.is_some() {
            out.insert("images".into(), self.decode_squares(&codes)?);
        }
        Ok(out)
    }

    /// `images` of `codes`.
    fn decode_codes(&self, inputs: &Tensors) -> Result<Tensors> {
        Ok(Tensors::from([("images".to_string(), self.image_decoder()?.decode_inputs(inputs)?)]))
    }

    /// The inputs of a text prompt, and the number of its truncated tokens.
    fn sample_inputs(&self, prompt: &Prompt, stream: usize) -> Result<(SampleInputs, usize)> {
        let Prompt::Items(items) = prompt else {
            return Err(Error::input("this model takes no conversation").hint("give it the text of an image"));
        };
        let text = items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat();
        let tokenizer = self.text_tokenizer()?;
        let TokenizedText { ids, cut } = tokenizer.encode(&text)?;
        Ok((SampleInputs { ids, uncond_ids: tokenizer.unconditional(), stream: stream as u64 }, cut))
    }

    /// Decodes a prompt that is one item of codes; `None` for other prompts.
    fn decode_item(&self, prompt: &Prompt) -> Option<Result<Vec<Image>>> {
        match prompt {
            Prompt::Items(items) => match items.as_slice() {
                [Item::Codes(codes)] => Some(self.image_decoder().and_then(|vqgan| vqgan.decode_item(codes))),
                _ => None,
            },
            Prompt::Chat(_) | Prompt::Infill { .. } => None,
        }
    }
}

/// Loads the tokenizer of a release; `None` if it has no vocabulary.
fn tokenizer(pretrained: &Pretrained, network: &DalleBart) -> Result<Option<TextTokenizer>> {
    let max_length = network.config().max_text_length;
    let min_dalle = match pretrained.checkpoint.is_none() {
        true => release::parts(&pretrained.files)?,
        false => None,
    };
    match min_dalle {
        Some(parts) => match &parts.text {
            Some((vocab, merges)) => TextTokenizer::min_dalle(vocab, merges, max_length).map(Some),
            None => Ok(None),
        },
        None => match words::tokenizer(pretrained)? {
            Some(tokenizer) => TextTokenizer::dalle_mini(tokenizer, max_length).map(Some),
            None => Ok(None),
        },
    }
}

/// The first and the last token of a text, filled up.
fn unconditional_of(row: &[u32]) -> Vec<u32> {
    let words = row.iter().rposition(|id| *id != PAD).map_or(&row[..0], |last| &row[..=last]);
    let mut nothing: Vec<u32> = words.first().into_iter().chain(words.last()).copied().collect();
    nothing.truncate(row.len());
    nothing.resize(row.len(), PAD);
    nothing
}

/// The ids of the input `name`, `(batch, sequence)`.
fn rows_of(inputs: &Tensors, name: &str) -> Result<Vec<Vec<u32>>> {
    let ids = inputs.get(name).ok_or_else(|| Error::input(format!("{name} is missing")))?;
    ids.dims2().map_err(|_| {
        Error::input(format!("{name} has the shape {:?}, expected (batch, sequence)", ids.dims()))
    })?;
    let rows: Vec<Vec<i64>> = transfer::rows(&ids.to_dtype(DType::I64)?)?;
    let id = |id: i64| u32::try_from(id).map_err(|_| Error::input(format!("{name}: {id} is not a valid id")));
    rows.into_iter().map(|row| row.into_iter().map(id).collect()).collect()
}

impl DalleMiniPipeline {
    /// The text of a pair, and the codes of its image.
    fn text_and_codes<'a>(&self, example: &'a Example) -> Result<(&'a str, Vec<i64>)> {
        let Example::Pair { anchor, positive, negative: None } = example else {
            return Err(labelled::not_learned(example, "pair (of an image, or its codes, and its caption)"));
        };
        match (anchor, positive) {
            (Item::Codes(codes), Item::Text(text)) | (Item::Text(text), Item::Codes(codes)) => {
                only_known(codes, &["codes"])?;
                let codes = codes.get("codes").ok_or_else(|| Error::input("codes are missing"))?;
                Ok((text, transfer::to_host(&codes.to_dtype(DType::I64)?)?))
            }
            (Item::Image(image), Item::Text(text)) | (Item::Text(text), Item::Image(image)) => {
                let encoder = self.vqgan.as_ref().filter(|vqgan| vqgan.has_encoder()).ok_or_else(|| {
                    Error::unsupported(
                        "the release has no encoder of its VQGAN, which makes the codes of the image",
                    )
                    .hint(
                        "put the files of the VQGAN's original release, with flax_model.msgpack, next to it",
                    )
                    .hint("or give an item of codes in place of the image")
                })?;
                Ok((text, transfer::to_host(&encoder.encode_image(image)?)?))
            }
            _ => Err(Error::input(format!("a pair of {} and {}", anchor.modality(), positive.modality()))
                .hint("a pair is an image, or its codes, and its caption")),
        }
    }

    /// `labels` shifted right behind the start token, `(batch, codes)`.
    fn shifted(&self, labels: &Tensor) -> Result<Tensor> {
        let (rows, time) = labels.dims2()?;
        let start = Tensor::full(i64::from(self.start), (rows, 1), labels.device())?;
        Ok(Tensor::cat(&[&start, &labels.narrow(1, 0, time - 1)?], 1)?)
    }
}

impl Trainable for DalleMiniPipeline {
    /// The VQGAN stays as it is.
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.transformer()?;
        let assembled = self.files.as_ref().map(|files| files.with_variables_of(weights));
        let weights = assembled.as_ref().unwrap_or(weights);
        self.network = Some(DalleBart::load(json::typed(config.clone())?, weights)?);
        Ok(())
    }

    /// Cross entropy of the codes `labels`, `(batch, codes)`, the mean over all of them. Without `decoder_input_ids` these
    /// are the labels shifted right behind the start token.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        let mut inputs = inputs.clone();
        let labels = inputs.remove("labels").ok_or_else(|| Error::input("labels are missing"))?;
        if labels.rank() != 2 || labels.elem_count() == 0 {
            let shape = labels.dims();
            return Err(Error::input(format!("labels have the shape {shape:?}, expected (batch, codes)")));
        }
        let labels = labels.to_dtype(DType::I64)?.to_device(&Device::Cpu)?;
        if !inputs.contains_key("decoder_input_ids") {
            inputs.insert("decoder_input_ids".into(), self.shifted(&labels)?);
        }
        let (_, logits) = self.scored(&inputs)?;
        let (loss, terms) = cross_entropy(&logits, &labels)?;
        Ok(Loss::mean(loss, terms as f64))
    }

    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let (network, tokenizer) = (self.transformer()?, self.text_tokenizer()?);
        let (mut texts, mut labels, mut truncated) = (Vec::new(), Vec::new(), 0);
        for example in examples {
            let (text, codes) = self.text_and_codes(example)?;
            let length = network.config().image_length;
            if codes.len() != length {
                return Err(Error::input(format!("{} codes of an image, expected {length}", codes.len())));
            }
            // An empty caption trains the unconditional prompt, for guidance.
            let TokenizedText { mut ids, cut } = match text.trim().is_empty() {
                true => TokenizedText { ids: tokenizer.unconditional(), cut: 0 },
                false => tokenizer.encode(text)?,
            };
            truncated += cut;
            if let Some(longest) = options.max_length {
                truncated += ids.iter().skip(longest).filter(|id| **id != PAD).count();
                ids.truncate(longest);
            }
            texts.push(ids.into_iter().map(i64::from).collect::<Vec<_>>());
            labels.push(codes);
        }
        let input_ids = Tensor::new(texts, &Device::Cpu)?;
        let labels = Tensor::new(labels, &Device::Cpu)?;
        let inputs = [
            ("attention_mask", input_ids.ne(i64::from(PAD))?.to_dtype(DType::I64)?),
            ("decoder_input_ids", self.shifted(&labels)?),
            ("input_ids", input_ids),
            ("labels", labels),
        ];
        let mut batch =
            TrainingBatch::new(inputs.into_iter().map(|(name, x)| (name.to_string(), x)).collect());
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^(decoder\.)?lm_head\.")
    }
}

impl Pipeline for DalleMiniPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// Loads the encoder of the VQGAN, if there is one, for images.
    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        self.transformer()?;
        if let Some((config, weights)) = self.with_encoder.take() {
            self.vqgan = Some(Vqgan::load_whole(config, &weights, false)?);
        }
        Ok(self)
    }

    fn image_options(&self) -> ImageOptions {
        ImageOptions::pillow()
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        match self.network {
            Some(_) => self.forward_pass(inputs),
            None => self.decode_codes(inputs),
        }
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward(inputs),
            "generate" => self.generate_codes(inputs, options),
            "decode" => self.decode_codes(inputs),
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
            ("decode", SampleSizes { tokens: 0, .. }, _, Some(vqgan)) => vqgan.sample_inputs(sizes),
            _ => Err(self.cannot(&format!("run \"{method}\" on {} tokens", sizes.tokens))),
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

    /// Prompts of codes are decoded one after the other; text prompts are sampled in batches, and equal prompts of a
    /// batch encoded once. Truncated prompts are reported first.
    fn generate_batch(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let made = vec![Generation::default(); prompts.len()];
        let mut samples = Vec::new();
        let mut entries = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            if let Some(images) = self.decode_item(prompt) {
                for image in images? {
                    if each(index, Item::Image(image)).is_break() {
                        return Ok(made);
                    }
                }
                continue;
            }
            self.transformer()?;
            self.image_decoder()?;
            let (inputs, cut) = self.sample_inputs(prompt, index)?;
            if cut > 0 {
                let max_length = inputs.ids.len();
                let note = format!("the prompt was truncated to {max_length} tokens: {cut} were left out");
                if each(index, Item::Note(note)).is_break() {
                    return Ok(made);
                }
            }
            samples.push(inputs);
            entries.push(index);
        }
        if samples.is_empty() {
            return Ok(made);
        }
        let network = self.transformer()?;
        let length = network.config().image_length;
        let side = side_of(length)?;
        let mut flow = ControlFlow::Continue(());
        self.sampler(network).sample(&samples, options, &mut |row, codes| {
            if codes.len() == length {
                let image = to_images(&self.decode_squares(&[codes.to_vec()])?)?.remove(0);
                flow = each(entries[row], Item::Image(image));
            } else if options.previews && codes.len().is_multiple_of(side) {
                flow = each(entries[row], Item::Image(self.preview(codes, side)?));
            }
            Ok(flow)
        })?;
        Ok(made)
    }

    /// Those of `generation_config.json`, with the name `guidance_scale` as in transformers, and else those of the release.
    fn defaults(&self) -> GenerationConfig {
        let (guidance, top_k) = if self.min_dalle { (16.0, 256) } else { (10.0, 0) };
        let said = |name: &str| self.generation[name].as_f64().map(|number| number as f32);
        GenerationConfig {
            temperature: said("temperature").unwrap_or(1.0),
            guidance: said("guidance_scale").unwrap_or(guidance),
            top_k: self.generation["top_k"].as_u64().map_or(top_k, |k| k as usize),
            top_p: said("top_p").unwrap_or(GenerationConfig::default().top_p),
            ..GenerationConfig::default()
        }
    }
}
