//! The pipeline of T5: text-to-text generation, and embeddings of texts.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask};
use fauna_shared::generate::{self, Generation, GenerationConfig, Tokens};
use fauna_shared::item::{Embeddings, Item, Modality, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Loss, Model, Pipeline, Pretrained, Trainable, TrainingBatch, batch_of_one, only_known,
};
use fauna_shared::nn::{IGNORE_INDEX, cross_entropy};
use fauna_shared::text::{self, Encoding, Padding, Tokenizer};
use fauna_shared::train::Example;
use fauna_shared::weights::{Inventory, Weights};
use fauna_shared::{Error, Result, json, transfer};
use serde_json::{Value, json};

use super::{Config, Encoder, Memory, T5};
use crate::called::token_ids;
use crate::causal::{labels, no_options, placed};
use crate::labelled::{self, labelled_positions};
use crate::{called, words};

/// Number of tokens of a batch of [`encode`](T5Pipeline::encode): large enough to use every core, small enough for the
/// CPU caches.
const TOKENS_A_PASS: usize = 2048;

/// Sequence length in training of the published models. Longer sequences are possible, but quality degrades.
const TRAINED: usize = 512;

/// The class with encoder, decoder and output head.
const WHOLE: &str = "T5ForConditionalGeneration";

/// Inputs of `forward`.
const INPUTS: [&str; 4] = ["input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"];

/// The pipeline of T5, or of its encoder: network and tokenizer.
pub struct T5Pipeline {
    network: Network,
    vocabulary: usize,
    device: Device,
    tokenizer: Option<Tokenizer>,
    card: Card,
    /// The decoder's start token.
    start: u32,
    end: Vec<u32>,
    pad: Option<u32>,
}

enum Network {
    Encoder(Encoder),
    Whole(Box<T5>),
}

/// Loads the network of the config's architecture.
fn load(pretrained: &Pretrained) -> Result<(Network, Inventory)> {
    Ok(match pretrained.architecture(WHOLE).as_str() {
        "T5EncoderModel" => {
            let (encoder, inventory) = pretrained.load::<Encoder>()?;
            (Network::Encoder(encoder), inventory)
        }
        _ => {
            let (whole, inventory) = pretrained.load::<T5>()?;
            (Network::Whole(Box::new(whole)), inventory)
        }
    })
}

/// The inventory of a checkpoint.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(load(pretrained)?.1)
}

/// Token ids, `(batch, sequence)`, and their attention mask, true for real tokens.
struct Rows {
    ids: Tensor,
    real: Vec<Vec<bool>>,
}

impl T5Pipeline {
    /// Loads a checkpoint.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let architecture = pretrained.architecture(WHOLE);
        let (network, inventory) = load(pretrained)?;
        let tokenizer = words::tokenizer(pretrained)?;
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(tokenizer.as_ref().and_then(Tokenizer::max_length).unwrap_or(TRAINED));
        if ![WHOLE, "T5WithLMHeadModel"].contains(&architecture.as_str()) {
            card.outputs = vec![Modality::Vector];
        }
        let generation = pretrained.generation_config()?;
        let ids = |key: &str| match &generation[key] {
            Value::Null => token_ids(&pretrained.config[key]),
            value => token_ids(value),
        };
        let pad = ids("pad_token_id").first().copied();
        Ok(Self {
            start: ids("decoder_start_token_id").first().copied().or(pad).unwrap_or(0),
            end: ids("eos_token_id"),
            pad,
            vocabulary: pretrained.config::<Config>()?.vocab_size,
            device: pretrained.weights.runtime().device().clone(),
            network,
            tokenizer,
            card,
        })
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder {
        match &self.network {
            Network::Encoder(encoder) => encoder,
            Network::Whole(whole) => &whole.encoder,
        }
    }

    /// The encoder-decoder network.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if the checkpoint has only an encoder.
    pub fn network(&self) -> Result<&T5> {
        match &self.network {
            Network::Encoder(_) => Err(self.cannot("generate: it has only an encoder")),
            Network::Whole(whole) => Ok(whole),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`NotFound`](fauna_shared::ErrorKind::NotFound) if the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    /// Reads `{prefix}input_ids` and `{prefix}attention_mask`.
    fn rows(&self, inputs: &Tensors, prefix: &str) -> Result<Rows> {
        let named = |name: &str| inputs.get(&format!("{prefix}{name}"));
        let ids = named("input_ids").ok_or_else(|| Error::input(format!("{prefix}input_ids are missing")))?;
        if ids.rank() != 2 || ids.elem_count() == 0 {
            return Err(Error::input(format!(
                "{prefix}input_ids are {:?}, expected (batch, sequence)",
                ids.dims()
            )));
        }
        let mask = match named("attention_mask") {
            Some(mask) if mask.dims() != ids.dims() => {
                return Err(Error::input(format!(
                    "{prefix}attention_mask has shape {:?}, expected that of {prefix}input_ids, {:?}",
                    mask.dims(),
                    ids.dims()
                )));
            }
            Some(mask) => mask.clone(),
            None => ids.ones_like()?,
        };
        Ok(Rows {
            ids: words::checked_ids(ids, Some(&mask), self.vocabulary, &self.device)?,
            real: words::real_tokens(&mask)?,
        })
    }

    /// Pads tokenized texts to a batch.
    fn tokenised(&self, texts: &[Encoding]) -> Result<Rows> {
        let batch = self.tokenizer()?.pad(texts, Padding::Right);
        Ok(Rows {
            ids: batch.ids_tensor(&self.device)?,
            real: words::real_tokens(&batch.attention_mask_tensor(&Device::Cpu)?)?,
        })
    }

    /// Runs the encoder. Returns its last hidden state, `(batch, sequence, d_model)`, and its attention mask.
    fn read(&self, rows: &Rows) -> Result<(Tensor, Mask)> {
        let mask = Mask::full().with_padding(&rows.real)?;
        Ok((self.encoder().forward(&rows.ids, &mask)?, mask))
    }

    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &INPUTS)?;
        let (states, mask) = self.read(&self.rows(inputs, "")?)?;
        if !INPUTS[2..].iter().any(|name| inputs.contains_key(*name)) {
            return Ok(Tensors::from([("last_hidden_state".into(), states)]));
        }
        let (network, rows) = (self.network()?, self.rows(inputs, "decoder_")?);
        let hidden = self.decoded(&rows, &states, &mask)?;
        let (name, hidden) = match network.logits(&hidden)? {
            Some(logits) => ("logits", logits),
            None => ("last_hidden_state", hidden),
        };
        Ok(Tensors::from([(name.into(), hidden), ("encoder_last_hidden_state".into(), states)]))
    }

    /// The decoder's last hidden state, `(batch, sequence, d_model)`, of the encoder's `states` and their `mask`.
    fn decoded(&self, rows: &Rows, states: &Tensor, mask: &Mask) -> Result<Tensor> {
        if rows.real.len() != states.dim(0)? {
            return Err(Error::input(format!(
                "input_ids have {} sequences, but decoder_input_ids have {}",
                states.dim(0)?,
                rows.real.len()
            )));
        }
        let decoder = &self.network()?.decoder;
        let memory = decoder.memory(states, mask)?;
        let causal = Mask::causal().with_padding(&rows.real)?;
        let mut cache = decoder.cache(rows.ids.dim(1)?).single_pass();
        decoder.hidden(&rows.ids, &causal, &memory, &mut cache)
    }

    /// The decoder's inputs for `labels`, `(batch, sequence)`: the labels after the start token, without the last one,
    /// and the padding token in place of -100.
    fn shifted(&self, labels: &Tensor) -> Result<Tensor> {
        let pad = i64::from(self.pad.unwrap_or(0));
        let mut rows: Vec<Vec<i64>> = transfer::rows(&labels.to_dtype(DType::I64)?)?;
        for row in &mut rows {
            row.insert(0, i64::from(self.start));
            row.pop();
            row.iter_mut().filter(|id| **id == IGNORE_INDEX).for_each(|id| *id = pad);
        }
        labelled::padded(rows, pad)
    }

    fn generate_ids(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &INPUTS[..2])?;
        let rows = self.rows(inputs, "")?;
        let writer = self.writer(&rows)?;
        let config = called::config(options, &self.end, self.pad)?;
        let start = token_ids(&options["decoder_start_token_id"]).first().copied().unwrap_or(self.start);
        let (count, starts) = (rows.real.len(), vec![vec![start]; rows.real.len()]);
        let given = Tensor::full(i64::from(start), (count, 1), &Device::Cpu)?;
        let sequences = called::Rows::new(&given, None, starts)?.sequences(&writer, &config)?;
        Ok(Tensors::from([("sequences".into(), sequences)]))
    }

    fn writer(&self, rows: &Rows) -> Result<Writer<'_>> {
        let network = self.network()?;
        let (states, mask) = self.read(rows)?;
        Ok(Writer { network, memory: network.decoder.memory(&states, &mask)?, pipeline: self })
    }

    /// Generates from `texts` in one batch, and calls `each` with the index of the text and the generated piece.
    fn answer(
        &self,
        texts: &[String],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, String) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        if options.guidance != 1.0 {
            return Err(self.cannot("use guidance: it has no unconditional input"));
        }
        let tokenizer = self.tokenizer()?;
        let encodings =
            texts.iter().map(|text| tokenizer.encode_text(text, None)).collect::<Result<Vec<_>>>()?;
        let writer = self.writer(&self.tokenised(&encodings)?)?;
        let start = [self.start];
        let prompts = vec![text::Prompt::Ids(&start); texts.len()];
        let mut each = |piece: text::Piece| each(piece.row, piece.text.to_string());
        let made =
            text::stream(&writer, tokenizer, &prompts, &options.with_tokens(&self.end, self.pad), &mut each)?;
        Ok(made.into_iter().map(|completion| completion.generation).collect())
    }

    fn text_of(&self, prompt: &Prompt) -> Result<String> {
        match prompt {
            Prompt::Items(items) => Ok(items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat()),
            Prompt::Chat(_) => Err(Error::unsupported(format!("{} is not a chat model", self.card.source))
                .hint("give it a text prompt, not a conversation")),
            Prompt::Infill { .. } => Err(Prompt::no_infill()),
        }
    }
}

/// The decoder with the encoder's keys and values.
struct Writer<'a> {
    network: &'a T5,
    memory: Memory,
    pipeline: &'a T5Pipeline,
}

impl generate::Decoder for Writer<'_> {
    type Cache = Cache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
        Ok(self.network.decoder.cache(capacity))
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        let ids = tokens.tensor(&self.pipeline.device)?;
        let (_, mask) = placed(tokens)?;
        let hidden = self.network.decoder.hidden(&ids, &mask, &self.memory, cache)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        let logits = self.network.logits(&last)?;
        logits.ok_or_else(|| self.pipeline.cannot("generate: it has no output head"))
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }
}

impl T5Pipeline {
    /// Returns one embedding per text, `(batch, d_model)`: the mean of the encoder's last hidden state over the tokens,
    /// the end-of-sequence token included. Not normalised; texts are not truncated.
    pub fn encode(&self, batch: &[String]) -> Result<Embeddings> {
        let tokenizer = self.tokenizer()?;
        let encodings =
            batch.iter().map(|text| tokenizer.encode_text(text, None)).collect::<Result<Vec<_>>>()?;
        // Texts of similar lengths are batched.
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(encodings[*i].ids.len()));
        let mut rows: Vec<Option<Tensor>> = vec![None; batch.len()];
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let count = (TOKENS_A_PASS / encodings[*first].ids.len().max(1)).clamp(1, rest.len());
            let (now, later) = rest.split_at(count);
            rest = later;
            let chosen: Vec<Encoding> = now.iter().map(|i| encodings[*i].clone()).collect();
            let (states, _) = self.read(&self.tokenised(&chosen)?)?;
            let states = states.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            for (row, i) in now.iter().enumerate() {
                let time = encodings[*i].ids.len();
                rows[*i] = Some(states.narrow(0, row, 1)?.narrow(1, 0, time)?.mean(1)?);
            }
        }
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        if rows.is_empty() {
            return Err(Error::input("no text to embed"));
        }
        Ok(Embeddings::new(Tensor::cat(&rows, 0)?, vec![0; batch.len()]))
    }
}

impl Pipeline for T5Pipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Self::tokenizer(self)
    }

    /// The encoder's `last_hidden_state`, `(batch, sequence, d_model)`; with `decoder_input_ids`, the decoder's
    /// `logits`, `(batch, sequence, vocab_size)`, or `last_hidden_state` without a head, and
    /// `encoder_last_hidden_state`.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let longest = usize::MAX;
        let mut tokenised = match words::tokenised(self.tokenizer.as_ref(), options, Padding::Right, longest)?
        {
            None => Tensors::new(),
            Some(mut tokenised) => {
                tokenised.remove("token_type_ids");
                tokenised
            }
        };
        let mut inputs = inputs.clone();
        inputs.extend(tokenised.clone());
        let mut out = match method {
            "forward" => self.forward_ids(&inputs)?,
            "generate" => self.generate_ids(&inputs, options)?,
            other => return Err(self.cannot(&format!("run the method \"{other}\""))),
        };
        out.append(&mut tokenised);
        Ok(out)
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let texts = items.iter().map(|item| Ok(item.text()?.to_string())).collect::<Result<Vec<_>>>()?;
        self.encode(&texts)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        match &self.network {
            Network::Whole(_) => Ok(self),
            Network::Encoder(_) => Err(self.cannot("be trained: it has only an encoder")),
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
        let texts = prompts.iter().map(|prompt| self.text_of(prompt)).collect::<Result<Vec<_>>>()?;
        self.answer(&texts, options, &mut |row, piece| each(row, Item::Text(piece)))
    }
}

impl Trainable for T5Pipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        let config: Config = json::typed(config.clone())?;
        self.network = match &self.network {
            Network::Encoder(_) => Network::Encoder(Encoder::load(config, weights)?),
            Network::Whole(_) => Network::Whole(Box::new(T5::load(config, weights)?)),
        };
        Ok(())
    }

    /// Cross entropy of `labels`, `(batch, sequence)`, the mean over all but -100. The decoder reads `decoder_input_ids`
    /// or, without these, the labels after its start token.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        only_known(inputs, &[&INPUTS[..], &["labels"]].concat())?;
        let labels = labels(inputs)?;
        let mut inputs = inputs.clone();
        if !inputs.contains_key("decoder_input_ids") {
            inputs.insert("decoder_input_ids".into(), self.shifted(labels)?);
        }
        let (states, mask) = self.read(&self.rows(&inputs, "")?)?;
        let hidden = self.decoded(&self.rows(&inputs, "decoder_")?, &states, &mask)?;
        let (hidden, labels) = labelled_positions(&hidden, labels)?;
        let logits = self.network()?.logits(&hidden)?;
        let logits = logits.ok_or_else(|| self.cannot("be trained: it has no output head"))?;
        let (loss, terms) = cross_entropy(&logits, &labels)?;
        Ok(Loss::mean(loss, terms as f64))
    }

    /// Prompts and their completions, both with the end-of-sequence token; only the completions are learned.
    /// `options.max_length` truncates both.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let tokenizer = self.tokenizer()?;
        let (mut texts, mut answers, mut truncated) = (Vec::new(), Vec::new(), 0);
        let mut encode = |text: &str| -> Result<Vec<u32>> {
            let encoding = tokenizer.encode_text(text, options.max_length)?;
            truncated += encoding.cut;
            Ok(encoding.ids)
        };
        for example in examples {
            let Example::Completion { prompt, completion } = example else {
                return Err(labelled::not_learned(example, "completion"));
            };
            texts.push(encode(&self.text_of(prompt)?)?);
            answers.push(encode(completion)?.into_iter().map(i64::from).collect());
        }
        let mut inputs = labelled::padded_ids(&texts, self.pad.unwrap_or_else(|| tokenizer.pad_id()))?;
        inputs.insert("labels".into(), labelled::padded(answers, IGNORE_INDEX)?);
        let mut batch = TrainingBatch::new(inputs);
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"(^|\.)lm_head\.")
    }
}

/// A small config that covers every branch.
pub(crate) fn sample() -> Value {
    json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": true,
        "vocab_size": 61, "d_model": 32, "d_kv": 7, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false, "decoder_start_token_id": 0
    })
}

#[cfg(test)]
mod tests {
    use fauna_shared::ErrorKind;
    use fauna_shared::zoo::{LoadOptions, Zoo};

    use super::*;

    const TEXTS: [&str; 3] = ["translate English to German: hello", "", "summarize"];

    /// A T5 with random weights and a small SentencePiece vocabulary.
    fn pipeline(change: impl FnOnce(&mut Value)) -> T5Pipeline {
        let folder = tempfile::tempdir().unwrap();
        let pieces = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/tests/tokenizers/t5/spiece.model");
        std::fs::copy(pieces, folder.path().join("spiece.model")).unwrap();
        let mut config = sample();
        config["vocab_size"] = json!(300);
        config["eos_token_id"] = json!(1);
        change(&mut config);
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let options = LoadOptions { random_weights: Some(5), ..LoadOptions::default() };
        let (_, pretrained) =
            Zoo::new([&crate::t5::FAMILY]).pretrained(folder.path().to_str().unwrap(), &options).unwrap();
        T5Pipeline::open(&pretrained).unwrap()
    }

    fn answers(pipeline: &T5Pipeline, prompts: &[&str], options: &GenerationConfig) -> Vec<String> {
        let prompts: Vec<Prompt> = prompts.iter().map(|text| Prompt::Items(vec![(*text).into()])).collect();
        let mut texts = vec![String::new(); prompts.len()];
        pipeline
            .generate_batch(&prompts, options, &mut |row, item| {
                texts[row] += item.text().unwrap();
                ControlFlow::Continue(())
            })
            .unwrap();
        texts
    }

    #[test]
    fn texts_are_answered_together_as_they_are_alone() {
        let pipeline = pipeline(|_| {});
        for options in [
            GenerationConfig::greedy(12),
            GenerationConfig { temperature: 2.0, seed: 3, ..GenerationConfig::greedy(12) },
        ] {
            let together = answers(&pipeline, &TEXTS, &options);
            assert!(together.iter().any(|text| !text.is_empty()), "{together:?}");
            for (row, text) in TEXTS.iter().enumerate() {
                let options = GenerationConfig { stream: row as u64, ..options.clone() };
                assert_eq!(answers(&pipeline, &[text], &options)[0], together[row], "{text}");
            }
        }
    }

    #[test]
    fn a_vector_is_the_mean_of_the_states_of_real_tokens() {
        let pipeline = pipeline(|_| {});
        let items: Vec<Item> = TEXTS.iter().map(|text| (*text).into()).collect();
        let made = pipeline.embed(&items).unwrap();
        assert_eq!((made.rows.dims(), &made.cut[..]), (&[3, 32][..], &[0, 0, 0][..]));
        for (row, text) in TEXTS.iter().enumerate() {
            let out = pipeline.call("forward", &Tensors::new(), &json!({"texts": [text]})).unwrap();
            let mean = out["last_hidden_state"].mean(1).unwrap();
            let off = (made.rows.narrow(0, row, 1).unwrap() - mean).unwrap().abs().unwrap();
            assert!(off.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6, "{text}");
        }
        assert!(pipeline.embed(&[]).is_err());
    }

    #[test]
    fn what_it_cannot_do_is_an_error_each() {
        let whole = pipeline(|_| {});
        let mut nothing = |_: Item| ControlFlow::Continue(());
        let text = Prompt::Items(vec!["hello".into()]);
        let guided = GenerationConfig { guidance: 3.0, ..GenerationConfig::greedy(2) };
        assert_eq!(whole.generate(&text, &guided, &mut nothing).unwrap_err().kind(), ErrorKind::Unsupported);
        let chat = Prompt::Chat(Vec::new());
        assert!(whole.generate(&chat, &GenerationConfig::greedy(2), &mut nothing).is_err());

        let encoder = pipeline(|config| config["architectures"] = json!(["T5EncoderModel"]));
        assert_eq!(encoder.card().outputs, [Modality::Vector]);
        assert!(encoder.generate(&text, &GenerationConfig::greedy(2), &mut nothing).is_err());
        let bare = pipeline(|config| config["architectures"] = json!(["T5Model"]));
        let error = bare.generate(&text, &GenerationConfig::greedy(2), &mut nothing).unwrap_err();
        assert!(error.message().contains("output head"), "{error}");

        let ids = |rows: usize| Tensor::ones((rows, 3), DType::I64, &Device::Cpu).unwrap();
        for (name, odd) in [
            ("attention_mask", ids(1)),
            ("decoder_input_ids", ids(1)),
            ("decoder_attention_mask", ids(2)),
            ("decoder_input_ids", Tensor::ones((2, 0), DType::I64, &Device::Cpu).unwrap()),
        ] {
            let inputs = Tensors::from([("input_ids".into(), ids(2)), (name.into(), odd)]);
            let error = whole.forward(&inputs).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input, "{name}: {error}");
        }
    }

    #[test]
    fn forms_of_the_feed_forward_part_that_nobody_knows_are_named() {
        for odd in ["gated-swoosh", "gelu-gated", "", "gated-"] {
            let config = json!({"feed_forward_proj": odd});
            let error = serde_json::from_value::<Config>(config).unwrap_err().to_string();
            assert!(error.contains("feed_forward_proj"), "{odd}: {error}");
        }
    }
}
