//! Decoder-only language models: shared parts of their networks, and the pipeline for all of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{
    CancellationToken, Decoder, Generation, GenerationConfig, PrefixCache, PrefixDecoder, Tokens,
};
use fauna_shared::item::{Embeddings, Item, Modality, Prompt, Role, Tensors, Turn};
use fauna_shared::model::{
    BlockHook, Card, CausalLm, Collation, Family, Keys, LoadCausalLm, Loss, Model, Pipeline, Pretrained,
    Step, Trainable, TrainingBatch, no_hook,
};
use fauna_shared::nn::{Embedding, IGNORE_INDEX, Linear, cross_entropy, select_rows};
use fauna_shared::text::{self, ChatTemplate, DefinitionStop, Padding, Tokenizer};
use fauna_shared::train::Example;
use fauna_shared::weights::{Inventory, Modules, Name, Weights};
use fauna_shared::{Error, Result, json, transfer};
use serde_json::Value;

use crate::called::token_ids;
use crate::harmony::Harmony;
use crate::labelled::{self, LabelledTokens};
use crate::{called, infill, words};

/// The pipeline of every decoder-only family: network, tokenizer, chat template and special tokens.
pub struct LanguageModel {
    network: Box<dyn CausalLm>,
    /// Builds the network again.
    load: LoadCausalLm,
    device: Device,
    half_cache: bool,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    /// Parser of the Harmony format, if the tokenizer has its special tokens.
    harmony: Option<Harmony>,
    card: Card,
    begin: Option<u32>,
    end: Vec<u32>,
    end_of_turn: Option<u32>,
    pad: Option<u32>,
}

impl LanguageModel {
    /// Loads a checkpoint whose network is `M`.
    ///
    /// # Errors
    /// Errors of the config, the tensors or the tokenizer's files.
    pub fn open<M: CausalLm + Model + 'static>(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<M>()?;
        let load: LoadCausalLm = |config, weights| Ok(Box::new(M::load(json::typed(config)?, weights)?));
        Self::new(pretrained, Box::new(network), load, &inventory)
    }

    fn new(
        pretrained: &Pretrained,
        network: Box<dyn CausalLm>,
        load: LoadCausalLm,
        inventory: &Inventory,
    ) -> Result<Self> {
        let mut card =
            pretrained.card(&pretrained.architecture(pretrained.family.architectures[0]), inventory);
        card.context = Some(network.max_position_embeddings());
        let tokenizer = words::tokenizer(pretrained)?;
        let template = match &tokenizer {
            Some(tokenizer) => words::chat_template(pretrained, tokenizer)?,
            None => None,
        };
        let harmony = tokenizer.as_ref().and_then(Harmony::of);
        let template = match (template, &harmony) {
            (None, Some(_)) => Some(Harmony::template()?),
            (template, _) => template,
        };
        card.task = template.is_some().then_some("conversational");
        let generation = pretrained.generation_config()?;
        let ids = |key: &str| match &generation[key] {
            Value::Null => token_ids(&pretrained.config[key]),
            value => token_ids(value),
        };
        let defaults = network.default_tokens();
        let end = match ids("eos_token_id") {
            none if none.is_empty() => defaults.eos.to_vec(),
            some => some,
        };
        Ok(Self {
            begin: ids("bos_token_id").first().copied().or(defaults.bos),
            end,
            end_of_turn: tokenizer.as_ref().zip(defaults.end_of_turn).and_then(|(t, turn)| t.token_id(turn)),
            pad: ids("pad_token_id").first().copied().or(defaults.pad),
            device: pretrained.weights.runtime().device().clone(),
            half_cache: pretrained.weights.half_cache(),
            network,
            load,
            tokenizer,
            template,
            harmony,
            card,
        })
    }

    /// The network.
    pub fn network(&self) -> &dyn CausalLm {
        self.network.as_ref()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`NotFound`](fauna_shared::ErrorKind::NotFound) if the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    /// One forward pass without a KV cache. `ids`: `(batch, sequence)` of any integer type; `mask`, `positions`,
    /// `types`: the same shape. Returns the last hidden state, `(batch, sequence, hidden_size)`.
    fn forward_hidden(
        &self,
        ids: &Tensor,
        mask: Option<&Tensor>,
        positions: Option<&Tensor>,
        types: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (_, time) = ids.dims2()?;
        self.network.check_length(time)?;
        let ids = self.checked_ids(ids, mask)?;
        let types = types.map(|types| self.on_device(types)).transpose()?;
        let positions = match positions {
            Some(positions) => Positions::rows(&transfer::rows(&positions.to_dtype(DType::U32)?)?)?,
            None => Positions::counting(0, time),
        };
        let padding = match mask {
            Some(mask) => Mask::causal().with_padding(&words::real_tokens(mask)?)?,
            None => Mask::causal(),
        };
        let mut cache = Cache::new(self.network.num_hidden_layers(), time).single_pass();
        let step = Step { positions: &positions, mask: &padding, token_type_ids: types.as_ref() };
        self.network.forward(&ids, &step, &mut cache)
    }

    /// One decoding step over `tokens`. Returns the logits of the next token, `(batch, vocab_size)`.
    fn decoding_step(&self, tokens: &Tokens, cache: &mut Cache, hook: BlockHook) -> Result<Tensor> {
        let ids = tokens.tensor(&self.device)?;
        let (positions, mask) = placed(tokens)?;
        let step = Step { positions: &positions, mask: &mask, token_type_ids: None };
        let hidden = self.network.hidden(&self.network.embed(&ids)?, &step, cache, hook)?;
        let last = hidden.narrow(1, tokens.sequence_length() - 1, 1)?.squeeze(1)?.contiguous()?;
        self.network.logits(&last)?.ok_or_else(|| self.cannot("generate: it has no output head"))
    }

    fn checked_ids(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        words::checked_ids(ids, mask, self.network.vocab_size(), &self.device)
    }

    fn on_device(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(ids.to_dtype(DType::U32)?.to_device(&self.device)?)
    }

    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        let ids =
            words::input_ids(inputs, &["input_ids", "attention_mask", "position_ids", "token_type_ids"])?;
        let hidden = self.forward_hidden(
            ids,
            inputs.get("attention_mask"),
            inputs.get("position_ids"),
            inputs.get("token_type_ids"),
        )?;
        let mut out = Tensors::new();
        if let Some(logits) = self.network.logits(&hidden)? {
            let last = match inputs.get("attention_mask") {
                None => vec![logits.dim(1)?.saturating_sub(1); logits.dim(0)?],
                Some(mask) => {
                    let last = |row: &Vec<bool>| row.iter().rposition(|real| *real).unwrap_or(0);
                    words::real_tokens(mask)?.iter().map(last).collect()
                }
            };
            let last = last.into_iter().enumerate().map(|(row, time)| logits.i((row, time)));
            let last = Tensor::stack(&last.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
            out.insert("next_token".into(), last.argmax(D::Minus1)?.to_dtype(DType::I64)?);
            out.insert("last_logits".into(), last);
            out.insert("logits".into(), logits);
        }
        out.insert("last_hidden_state".into(), hidden);
        Ok(out)
    }

    fn generate_ids(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let ids = words::input_ids(inputs, &["input_ids", "attention_mask"])?;
        let mask = inputs.get("attention_mask");
        let rows = called::Rows::new(ids, mask, transfer::rows(&self.checked_ids(ids, mask)?)?)?;
        let config = called::config(options, &self.end, self.pad)?;
        Ok(Tensors::from([("sequences".to_string(), rows.sequences(self, &config)?)]))
    }

    /// Tokenizes a prompt.
    fn tokens(&self, prompt: &Prompt, options: &GenerationConfig) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        match prompt {
            Prompt::Items(items) => {
                let words = items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat();
                tokenizer.encode(&words, true)
            }
            Prompt::Infill { prefix, suffix } => {
                infill::tokens(tokenizer, self.network.vocab_size(), prefix, suffix)
            }
            Prompt::Chat(turns) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    Error::unsupported(format!("{} has no chat template", self.card.source))
                        .hint("it continues text: give it a prompt, not a conversation")
                })?;
                let messages = turns.iter().map(words::message).collect::<Result<Vec<_>>>()?;
                // The template includes the begin-of-sequence token where the model needs one.
                tokenizer.encode(&template.render_with_reasoning(&messages, true, options.reasoning)?, false)
            }
        }
    }
}

/// Maximum number of prompts of a batch: larger batches gain little speed and take memory for their KV caches.
const MAX_BATCH: usize = 16;

impl LanguageModel {
    /// Tokenizes `prompt`; an empty one becomes the begin-of-sequence token, or else the end-of-sequence token.
    fn prompt_tokens(&self, prompt: &Prompt, options: &GenerationConfig) -> Result<Vec<u32>> {
        let mut tokens = self.tokens(prompt, options)?;
        if tokens.is_empty() {
            tokens.extend(self.begin.or(self.end.first().copied()));
        }
        Ok(tokens)
    }

    /// `options` with the end-of-sequence tokens, and for a chat the end-of-turn tokens.
    fn with_end_tokens(&self, is_chat: bool, options: &GenerationConfig) -> Result<GenerationConfig> {
        let tokenizer = self.tokenizer()?;
        let mut config = options.with_tokens(&self.end, self.pad);
        if let (Some(eos), None) = (&mut config.eos, &options.eos) {
            eos.extend(self.end_of_turn);
            if is_chat {
                eos.extend(tokenizer.end_of_turn_ids());
            }
        }
        Ok(config)
    }

    /// Generates from `prompts`, which are all chats or all texts, and streams the pieces, reasoning included.
    /// `decoder` is the network, or a wrapper of it with a prefix cache.
    fn stream<D: Decoder>(
        &self,
        decoder: &D,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(text::Piece) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let tokenizer = self.tokenizer()?;
        let is_chat = matches!(prompts, [Prompt::Chat(_), ..]);
        let tokens: Vec<Vec<u32>> =
            prompts.iter().map(|prompt| self.prompt_tokens(prompt, options)).collect::<Result<_>>()?;
        let ids: Vec<_> = tokens.iter().map(|tokens| text::Prompt::Ids(tokens)).collect();
        let options = &self.with_end_tokens(is_chat, options)?;
        let made = match &self.harmony {
            Some(harmony) if is_chat => {
                text::stream_with_parser(decoder, tokenizer, &ids, options, harmony, each)?
            }
            _ if options.one_definition && !is_chat => {
                let mut rows: Vec<_> = prompts
                    .iter()
                    .map(|prompt| Some(DefinitionStop::after(&preceding_text(prompt))))
                    .collect();
                let made = text::stream(decoder, tokenizer, &ids, options, &mut |piece| {
                    let Some(definitions) = &mut rows[piece.row] else { return ControlFlow::Break(()) };
                    let (text, ended) = definitions.push(piece.text);
                    let flow = match text.is_empty() {
                        true => ControlFlow::Continue(()),
                        false => each(text::Piece { text: &text, ..piece }),
                    };
                    if flow.is_break() {
                        rows[piece.row] = None;
                    }
                    if ended { ControlFlow::Break(()) } else { flow }
                })?;
                for (row, definitions) in rows.into_iter().enumerate() {
                    let rest = definitions.map(|mut definitions| definitions.finish()).unwrap_or_default();
                    if !rest.is_empty() {
                        // The last piece: the returned flow makes no difference.
                        let _ = each(text::Piece { row, text: &rest, thought: false });
                    }
                }
                made
            }
            _ => text::stream(decoder, tokenizer, &ids, options, each)?,
        };
        Ok(made.into_iter().map(|completion| completion.generation).collect())
    }
}

/// A language model whose decoding can be cancelled between blocks.
struct CancellableDecoder<'a> {
    model: &'a LanguageModel,
    cancel: &'a CancellationToken,
}

impl Decoder for CancellableDecoder<'_> {
    type Cache = Cache;

    fn cache(&self, rows: usize, capacity: usize) -> Result<Cache> {
        self.model.cache(rows, capacity)
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        self.model.decoding_step(tokens, cache, &mut |_, hidden| {
            self.cancel.check()?;
            Ok(hidden)
        })
    }

    fn max_positions(&self) -> Option<usize> {
        self.model.max_positions()
    }

    fn prompt_chunk(&self) -> Option<usize> {
        Some(PROMPT_CHUNK)
    }
}

/// Number of prompt tokens of one forward pass, large enough to use every core.
const PROMPT_CHUNK: usize = 512;

/// Converts a streamed piece to an item.
fn item(piece: &text::Piece) -> Item {
    let text = piece.text.to_string();
    if piece.thought { Item::Thought(text) } else { Item::Text(text) }
}

/// The text right before the generated text.
fn preceding_text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Infill { prefix, .. } => prefix.clone(),
        Prompt::Items(items) => items.iter().filter_map(|item| item.text().ok()).collect(),
        Prompt::Chat(_) => String::new(),
    }
}

impl Decoder for LanguageModel {
    type Cache = Cache;

    fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
        Ok(Cache::new(self.network.num_hidden_layers(), capacity).with_half(self.half_cache))
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        self.decoding_step(tokens, cache, &mut no_hook)
    }

    fn max_positions(&self) -> Option<usize> {
        self.network.has_position_limit().then(|| self.network.max_position_embeddings())
    }
}

impl LanguageModel {
    /// Returns one embedding per text, `(batch, hidden_size)`: the mean of the last hidden state over the tokens,
    /// without the begin-of-sequence token (as Nguyen et al. 2023, AstroLLaMA), not normalised. Texts longer than the
    /// context are truncated.
    pub fn encode(&self, batch: &[String]) -> Result<Embeddings> {
        let tokenizer = self.tokenizer()?;
        let mut rows = Vec::new();
        let mut cut = Vec::new();
        for words in batch {
            let mut ids = tokenizer.encode(words, true)?;
            cut.push(ids.len().saturating_sub(self.network.max_position_embeddings()));
            ids.truncate(self.network.max_position_embeddings());
            if ids.is_empty() {
                return Err(Error::input("cannot embed an empty text: it has no tokens"));
            }
            let has_begin = ids.len() > 1 && Some(ids[0]) == self.begin;
            let time = ids.len();
            let hidden =
                self.forward_hidden(&Tensor::from_vec(ids, (1, time), &Device::Cpu)?, None, None, None)?;
            let from = usize::from(has_begin);
            rows.push(hidden.narrow(1, from, time - from)?.mean(1)?);
        }
        let rows = Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(Embeddings::new(rows, cut))
    }
}

impl Pipeline for LanguageModel {
    fn card(&self) -> &Card {
        &self.card
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        Self::tokenizer(self)
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => match words::tokenised(self.tokenizer.as_ref(), options, Padding::Left, usize::MAX)?
            {
                None => self.forward_ids(inputs),
                Some(mut tokenised) => {
                    tokenised.remove("token_type_ids");
                    let mut out = self.forward_ids(&tokenised)?;
                    out.append(&mut tokenised);
                    Ok(out)
                }
            },
            "generate" => self.generate_ids(inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let texts = items.iter().map(|item| Ok(item.text()?.to_string())).collect::<Result<Vec<_>>>()?;
        self.encode(&texts)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig { one_definition: self.network.is_trained_on_code(), ..GenerationConfig::default() }
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let decoder = CancellableDecoder { model: self, cancel: &options.cancel };
        let mut each = |piece: text::Piece| each(item(&piece));
        let made = self.stream(&decoder, std::slice::from_ref(prompt), options, &mut each)?;
        Ok(made.into_iter().next().unwrap_or_default())
    }

    fn generate_batch(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let is_chat = |prompt: &Prompt| matches!(prompt, Prompt::Chat(_));
        let decoder = CancellableDecoder { model: self, cancel: &options.cancel };
        let mut made = Vec::with_capacity(prompts.len());
        for run in prompts.chunk_by(|a, b| is_chat(a) == is_chat(b)).flat_map(|run| run.chunks(MAX_BATCH)) {
            let before = made.len();
            if options.cancel.is_cancelled() {
                made.extend(run.iter().map(|_| Generation::cancelled()));
                continue;
            }
            // Each sequence has its own stream of random numbers, whatever the other sequences of the batch.
            let options =
                GenerationConfig { stream: options.stream.wrapping_add(before as u64), ..options.clone() };
            let mut each = |piece: text::Piece| each(before + piece.row, item(&piece));
            made.extend(self.stream(&decoder, run, &options, &mut each)?);
        }
        Ok(made)
    }

    fn reply(
        &self,
        turns: &[Turn],
        options: &GenerationConfig,
        cache: &mut PrefixCache,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let prompt = Prompt::Chat(turns.to_vec());
        if options.guidance != 1.0 {
            return self.generate(&prompt, options, each);
        }
        let decoder = CancellableDecoder { model: self, cancel: &options.cancel };
        let decoder = PrefixDecoder::new(&decoder, std::mem::take(cache));
        let mut each = |piece: text::Piece| each(item(&piece));
        let made = self.stream(&decoder, &[prompt], options, &mut each)?;
        *cache = decoder.into_cache();
        Ok(made.into_iter().next().unwrap_or_default())
    }
}

/// Returns the positions of the new tokens of a decoding step, `(batch, sequence)`, and their attention mask: causal,
/// without the left padding.
pub fn placed(tokens: &Tokens) -> Result<(Positions, Mask)> {
    if tokens.is_unpadded() {
        return Ok((Positions::counting(tokens.past(), tokens.sequence_length()), Mask::causal()));
    }
    let positions = tokens.positions();
    let rows: Vec<Vec<u32>> = positions.chunks(tokens.sequence_length()).map(<[u32]>::to_vec).collect();
    let keys = tokens.past() + tokens.sequence_length();
    let real: Vec<Vec<bool>> =
        tokens.pads().iter().map(|pad| (0..keys).map(|key| key >= *pad).collect()).collect();
    Ok((Positions::rows(&rows)?, Mask::causal().with_padding(&real)?))
}

/// Loads the token embeddings `name`, `(vocab_size, hidden_size)`, and the output head: the embeddings themselves if
/// `tied`, else `lm_head`; `None` if `bare`, for a class without a head.
///
/// # Errors
/// Errors of the tensors: missing, or of another shape.
pub fn embedding_and_head(
    w: &Weights,
    name: &str,
    (vocab_size, hidden_size): (usize, usize),
    tied: bool,
    bare: bool,
) -> Result<(Embedding, Option<Linear>)> {
    if tied {
        let (table, head) = w.tied(name, "lm_head", vocab_size, hidden_size)?;
        return Ok((table, Some(head)));
    }
    let table = w.embedding(name, vocab_size, hidden_size)?;
    let head = match bare {
        true => {
            // The file may have been saved with a head.
            w.skip("lm_head");
            None
        }
        false => Some(w.linear_no_bias("lm_head", hidden_size, vocab_size)?),
    };
    Ok((table, head))
}

impl Trainable for LanguageModel {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = (self.load)(config.clone(), weights)?;
        Ok(())
    }

    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        let known = ["input_ids", "attention_mask", "position_ids", "token_type_ids", "labels"];
        let ids = words::input_ids(inputs, &known)?;
        let [mask, positions, types] =
            ["attention_mask", "position_ids", "token_type_ids"].map(|name| inputs.get(name));
        let hidden = self.forward_hidden(ids, mask, positions, types)?;
        next_token_loss(self.network(), &hidden, labels(inputs)?)
    }

    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let rows = examples.iter().map(|example| self.labelled(example, options.mask_prompt));
        let limit = self.network.has_position_limit().then(|| self.network.max_position_embeddings());
        let longest = options.max_length.into_iter().chain(limit).min();
        LabelledTokens::batch(rows.collect::<Result<Vec<_>>>()?, longest, self.tokenizer()?.pad_id())
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^(lm_head|embed_out)\.")
    }

    fn modules(&self) -> Modules {
        let prefix = self.network.base_model_prefix();
        Arc::new(move |name| match name {
            "lm_head" | "embed_out" => "lm_head".to_string(),
            _ if name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')) => name.to_string(),
            _ => format!("{prefix}.{name}"),
        })
    }
}

impl LanguageModel {
    /// The tokens of `example` and which of them are learned. A prompt and its completion become a conversation of two
    /// turns if the model has a chat template; else the completion follows the prompt and ends with the end-of-sequence
    /// token.
    fn labelled(&self, example: &Example, mask_prompt: bool) -> Result<LabelledTokens> {
        let tokenizer = self.tokenizer()?;
        let ended = |text: &str| -> Result<Vec<u32>> {
            let mut ids = tokenizer.encode(text, true)?;
            if ids.last() != self.end.first() {
                ids.extend(self.end.first());
            }
            Ok(ids)
        };
        let text = |items: &[Item]| items.iter().map(Item::text).collect::<Result<String>>();
        match example {
            Example::Text(text) => Ok(LabelledTokens::all(ended(text)?)),
            Example::Gene(gene) => Ok(LabelledTokens::all(ended(gene)?)),
            Example::Chat { turns, tools } if tools.is_empty() => self.conversation(turns, mask_prompt),
            Example::Chat { .. } => Err(Error::unsupported("conversations with tools are not implemented")),
            Example::Completion { prompt: Prompt::Items(items), completion } if self.template.is_none() => {
                let prompt = text(items)?;
                let before = tokenizer.encode(&prompt, true)?;
                let ids = ended(&(prompt + completion))?;
                Ok(LabelledTokens::after(&before, ids, mask_prompt))
            }
            Example::Completion { prompt, completion } => {
                let mut turns = match prompt {
                    Prompt::Items(items) => vec![Turn { role: Role::User, items: items.clone() }],
                    Prompt::Chat(turns) => turns.clone(),
                    Prompt::Infill { .. } => return Err(Prompt::no_infill()),
                };
                let items = vec![Item::from(completion.as_str())];
                turns.push(Turn { role: Role::Assistant, items });
                self.conversation(&turns, mask_prompt)
            }
            other => Err(labelled::not_learned(other, "text, completion, chat")),
        }
    }

    /// The tokens of a conversation; those of the assistant's turns are learned if `mask_prompt`.
    fn conversation(&self, turns: &[Turn], mask_prompt: bool) -> Result<LabelledTokens> {
        let template = self
            .template
            .as_ref()
            .ok_or_else(|| self.cannot("learn conversations: it has no chat template"))?;
        let messages = turns.iter().map(words::message).collect::<Result<Vec<_>>>()?;
        labelled::conversation(self.tokenizer()?, template, &messages, mask_prompt)
    }
}

/// The input `labels`.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if it is missing.
pub fn labels(inputs: &Tensors) -> Result<&Tensor> {
    inputs.get("labels").ok_or_else(|| Error::input("labels are missing"))
}

/// Checks that a loss got no options.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) with the name of the first option.
pub fn no_options(options: &Value) -> Result<()> {
    match options.as_object().and_then(|options| options.keys().next()) {
        None => Ok(()),
        Some(name) => Err(Error::input(format!("the loss has no option \"{name}\""))),
    }
}

/// The loss of a causal language model: cross entropy of the token after each position, the mean over all labels except
/// -100. `hidden`: `(batch, sequence, hidden_size)`; `labels`: `(batch, sequence)`, the token ids themselves, which are
/// shifted here.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for labels of another shape or beyond the vocabulary;
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if the checkpoint has no LM head.
pub fn next_token_loss(network: &dyn CausalLm, hidden: &Tensor, labels: &Tensor) -> Result<Loss> {
    next_token_loss_by(hidden, labels, |rows| {
        let logits = network.logits(rows)?;
        logits.ok_or_else(|| Error::unsupported("a checkpoint without an LM head has no loss"))
    })
}

/// [`next_token_loss`] of another network, whose `logits` are those of hidden states, `(positions, hidden_size)` to
/// `(positions, classes)`.
///
/// # Errors
/// As [`next_token_loss`], and those of `logits`.
pub fn next_token_loss_by(
    hidden: &Tensor,
    labels: &Tensor,
    logits: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Loss> {
    let (batch, time, width) = hidden.dims3()?;
    if labels.dims() != [batch, time] {
        let (labels, ids) = (labels.dims(), [batch, time]);
        return Err(Error::input(format!("labels have shape {labels:?}, expected {ids:?}")));
    }
    let labels: Vec<Vec<i64>> = transfer::rows(&labels.to_dtype(DType::I64)?)?;
    // Logits are computed only where there is a label.
    let learned = labels.iter().enumerate().flat_map(|(row, labels)| {
        let at = (row * time..).zip(labels.iter().skip(1));
        at.filter(|(_, label)| **label != IGNORE_INDEX).map(|(at, label)| (at as u32, *label))
    });
    let (at, labels): (Vec<u32>, Vec<i64>) = learned.unzip();
    if at.is_empty() {
        return Err(Error::input("no token of the batch has a label"));
    }
    let rows = select_rows(&hidden.reshape(((), width))?, &at)?;
    let count = labels.len();
    let (loss, terms) = cross_entropy(&logits(&rows)?, &Tensor::from_vec(labels, count, &Device::Cpu)?)?;
    Ok(Loss::mean(loss, terms as f64))
}

/// The defaults of a [`Family`] of decoder-only language models: text in, text and embeddings out, loaded as a
/// [`LanguageModel`] with the network `M`.
///
/// ```
/// use fauna_shared::model::Family;
/// use fauna_text::{causal, gpt2::Gpt2};
/// static MINE: Family = Family { name: "mine", model_types: &["mine"], ..causal::family::<Gpt2>() };
/// assert!(MINE.causal_lm.is_some());
/// ```
pub const fn family<M>() -> Family
where
    M: CausalLm + Model + 'static,
{
    Family {
        name: "",
        systems: &[],
        paper: "",
        model_types: &[],
        architectures: &[],
        gguf: &[],
        keys: &Keys::NONE,
        inputs: &[Modality::Text],
        outputs: &[Modality::Text, Modality::Vector],
        releases: &[],
        config_of_gguf: None,
        layout: None,
        rename: |_| Name::Keep,
        inventory: |pretrained| Ok(pretrained.load::<M>()?.1),
        causal_lm: Some(|config, weights| Ok(Box::new(M::load(json::typed(config)?, weights)?))),
        open: |pretrained| Ok(Box::new(LanguageModel::open::<M>(pretrained)?)),
        sample: || Value::Null,
    }
}
