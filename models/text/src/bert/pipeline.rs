//! The pipeline of BERT: embeddings, fill-mask, text and token classification, question answering; and its training.

mod training;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Label, Modality, Prompt, Tensors, beyond};
use fauna_shared::model::{Card, Pipeline, Pretrained, Trainable};
use fauna_shared::nn::softmax;
use fauna_shared::text::{Batch, Encoding, Padding, Tokenizer};
use fauna_shared::{Error, Result, transfer};
use serde_json::Value;

use super::{Bert, Config, SentenceEmbedder, Task, TorchActivation};
use crate::words;

/// Number of tokens of a batch of embeddings: large enough to use every core, small enough for the CPU caches.
const TOKENS_PER_BATCH: usize = 2048;

/// The inputs of the network.
const TOKENS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

/// Maximum length of an answer in tokens: the default of transformers' pipeline.
const MAX_ANSWER_TOKENS: usize = 15;
/// Number of predictions for a mask token: the default of transformers' pipeline.
const TOP_K: usize = 5;

/// The pipeline of BERT: network, tokenizer and sentence-embedding modules.
pub struct BertPipeline {
    network: Bert,
    tokenizer: Option<Tokenizer>,
    embedder: SentenceEmbedder,
    /// Activation function of a text classifier's logits.
    function: TorchActivation,
    /// Number of prompt tokens that the pooling excludes.
    prompt: usize,
    device: Device,
    card: Card,
}

impl BertPipeline {
    /// Loads a checkpoint.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        // Before the network, whose load checks that adapters have their modules.
        let hidden_size = pretrained.config::<Config>()?.hidden_size;
        let (embedder, layers) = SentenceEmbedder::load(pretrained, hidden_size)?;
        let (network, inventory) = pretrained.load::<Bert>()?;
        let mut card = pretrained.card(&pretrained.architecture(network.task().class()), &inventory);
        card.outputs = match network.task() {
            Task::Encode => vec![Modality::Vector],
            Task::FillMask
            | Task::NextSentence
            | Task::ClassifyText
            | Task::ClassifyTokens
            | Task::Answer => {
                vec![Modality::Vector, Modality::Label]
            }
        };
        card.task = network.task().name();
        card.parameters += layers.parameters;
        let config = network.config();
        let function = match (network.task(), embedder.config().activation) {
            (Task::ClassifyText, Some(function)) => function,
            (Task::ClassifyText, None) => {
                config.classifier_activation().map_err(|e| e.at(pretrained.config_path()))?
            }
            _ => TorchActivation::Softmax,
        };
        card.notes.extend(notes(&network, &embedder, pretrained));
        let tokenizer = words::tokenizer(pretrained)?;
        let mut pipeline = Self {
            tokenizer: match embedder.config().do_lower_case {
                true => tokenizer.map(|tokenizer| tokenizer.with_lowercase()).transpose()?,
                false => tokenizer,
            },
            embedder,
            function,
            prompt: 0,
            device: pretrained.weights.runtime().device().clone(),
            network,
            card,
        };
        pipeline.card.context = Some(pipeline.max_length());
        pipeline.prompt = pipeline.prompt_length()?;
        Ok(pipeline)
    }

    /// Number of prompt tokens that the pooling excludes, the special tokens before them included.
    fn prompt_length(&self) -> Result<usize> {
        let recipe = self.embedder.config();
        match &self.tokenizer {
            Some(tokenizer) if !recipe.include_prompt && !recipe.prompt.is_empty() => {
                let encoding = tokenizer.encode_text(&recipe.prompt, Some(self.max_length()))?;
                let ends_with_special = encoding.special_tokens_mask.last() == Some(&true);
                Ok(encoding.ids.len() - usize::from(ends_with_special))
            }
            _ => Ok(0),
        }
    }

    /// The network.
    pub fn network(&self) -> &Bert {
        &self.network
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`NotFound`](fauna_shared::ErrorKind::NotFound) if the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| words::no_tokenizer(&self.card.source))
    }

    /// Maximum sequence length, special tokens included.
    pub fn max_length(&self) -> usize {
        let positions = self.network.config().max_position_embeddings;
        let length = self.embedder.config().max_seq_length.or_else(|| self.tokenizer.as_ref()?.max_length());
        length.unwrap_or(positions).min(positions)
    }

    /// Forward pass of token `inputs`. Returns the outputs and the attention mask, `(batch, sequence)`.
    fn run(&self, inputs: &Tensors, with_head: bool) -> Result<(super::Output, Tensor)> {
        let ids = words::input_ids(inputs, &TOKENS)?;
        let config = self.network.config();
        // Checked here: on a device, an id outside the embeddings gives an undefined result.
        let checked = |ids: &Tensor, count: usize| words::checked_ids(ids, None, count, &self.device);
        let types = match inputs.get("token_type_ids") {
            Some(types) => checked(types, config.type_vocab_size)?,
            None => checked(&ids.zeros_like()?, config.type_vocab_size)?,
        };
        let mask = match inputs.get("attention_mask") {
            Some(mask) => mask.clone(),
            None => ids.ones_like()?,
        };
        let padding = Mask::full().with_padding(&words::real_tokens(&mask)?)?;
        Ok((self.network.forward(&checked(ids, config.vocab_size)?, &types, &padding, with_head)?, mask))
    }

    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        let (made, mask) = self.run(inputs, true)?;
        let mut out = Tensors::new();
        if let Some(hidden) = &made.last_hidden_state {
            out.insert("sentence_embedding".into(), self.embedder.forward(hidden, &mask, 0)?);
        }
        let mut named = vec![
            ("last_hidden_state", made.last_hidden_state),
            ("pooler_output", made.pooler_output),
            ("start_logits", made.start_logits),
            ("end_logits", made.end_logits),
        ];
        match made.seq_relationship_logits {
            Some(sentence) => {
                named.push(("prediction_logits", made.logits));
                named.push(("seq_relationship_logits", Some(sentence)));
            }
            None => named.push(("logits", made.logits)),
        }
        out.extend(named.into_iter().filter_map(|(name, tensor)| Some((name.to_string(), tensor?))));
        Ok(out)
    }

    /// Forward pass of a padded batch. Returns the outputs and the attention mask, `(batch, sequence)`.
    fn forward_batch(&self, batch: &Batch, with_head: bool) -> Result<(super::Output, Tensor)> {
        let mask = batch.attention_mask_tensor(&self.device)?;
        let padding = Mask::full().with_padding(&words::real_tokens(&mask)?)?;
        let (ids, types) = (batch.ids_tensor(&self.device)?, batch.type_ids_tensor(&self.device)?);
        Ok((self.network.forward(&ids, &types, &padding, with_head)?, mask))
    }

    /// Forward pass of one encoding, with the head.
    fn forward_one(&self, encoding: &Encoding) -> Result<super::Output> {
        Ok(self
            .forward_batch(&self.tokenizer()?.pad(std::slice::from_ref(encoding), Padding::Right), true)?
            .0)
    }

    fn encoding(&self, prompt: &Prompt) -> Result<Encoding> {
        let Prompt::Items(items) = prompt else {
            return Err(Error::input("BERT is not a chat model").hint("give it a text, or a pair of texts"));
        };
        let texts = items.iter().map(Item::text).collect::<Result<Vec<_>>>()?;
        let (tokenizer, longest) = (self.tokenizer()?, Some(self.max_length()));
        match texts[..] {
            [text] => tokenizer.encode_text(text, longest),
            [first, second] => tokenizer.encode_pair(first, second, longest),
            _ => Err(Error::input(format!("expected a text or a pair of texts, got {} texts", texts.len()))),
        }
    }

    fn fill_mask(&self, encoding: &Encoding) -> Result<Vec<Label>> {
        let tokenizer = self.tokenizer()?;
        let mask =
            tokenizer.special().mask.ok_or_else(|| Error::unsupported("the tokenizer has no mask token"))?;
        let places: Vec<usize> = (0..encoding.ids.len()).filter(|i| encoding.ids[*i] == mask).collect();
        if places.is_empty() {
            let name = tokenizer.token(mask).unwrap_or_default();
            return Err(match encoding.cut {
                0 => Error::input(format!("the text has no {name}"))
                    .hint(format!("put {name} in place of the token to predict")),
                cut => Error::input(format!("the truncated text has no {name}"))
                    .hint(format!("{} were left out", beyond(cut))),
            });
        }
        let logits = self.forward_one(encoding)?.logits.ok_or_else(|| self.cannot("fill masks"))?;
        let mut labels = Vec::new();
        for place in places {
            let logits = logits.narrow(1, place, 1)?.flatten_all()?.to_dtype(DType::F32)?;
            let scores: Vec<f32> = transfer::to_host(&softmax(&logits)?)?;
            for id in top_k(&scores, TOP_K) {
                let label = tokenizer.decode(&[id as u32], false)?.trim().to_string();
                let (start, end) = encoding.offsets[place];
                labels.push(Label::new(label, scores[id]).with_span(start..end));
            }
        }
        Ok(labels)
    }

    fn classify(&self, encoding: &Encoding) -> Result<Vec<Label>> {
        let logits = self.forward_one(encoding)?.logits.ok_or_else(|| self.cannot("classify"))?;
        let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let scores: Vec<f32> = transfer::to_host(&self.function.forward(&logits)?)?;
        let order = top_k(&scores, scores.len());
        Ok(order.into_iter().map(|class| Label::new(self.class(class), scores[class])).collect())
    }

    /// Name of the class `index` of a text or a pair of texts.
    fn class(&self, index: usize) -> String {
        match self.network.task() {
            Task::NextSentence | Task::FillMask => ["is next", "is not next"][index.min(1)].to_string(),
            _ => self.network.config().label(index),
        }
    }

    /// Returns the entities: groups of consecutive tokens of the same class without its prefix `B-` or `I-`; `B-`
    /// begins a new entity. The score of an entity is the mean over its tokens.
    fn entities(&self, encoding: &Encoding) -> Result<Vec<Label>> {
        let logits = self.forward_one(encoding)?.logits.ok_or_else(|| self.cannot("find entities"))?;
        let rows: Vec<Vec<f32>> = transfer::rows(&softmax(&logits.squeeze(0)?.to_dtype(DType::F32)?)?)?;
        let mut found: Vec<(Label, usize)> = Vec::new();
        let mut open: Option<String> = None;
        for (i, scores) in rows.into_iter().enumerate() {
            if encoding.special_tokens_mask[i] {
                open = None;
                continue;
            }
            let class = top_k(&scores, 1).first().copied().unwrap_or(0);
            let name = self.network.config().label(class);
            if name == "O" {
                open = None;
                continue;
            }
            let kind =
                name.strip_prefix("B-").or_else(|| name.strip_prefix("I-")).unwrap_or(&name).to_string();
            let (start, end) = encoding.offsets[i];
            match found.last_mut() {
                Some((label, count)) if open.as_ref() == Some(&kind) && !name.starts_with("B-") => {
                    label.score += scores[class];
                    label.span = label.span.take().map(|span| span.start..end);
                    *count += 1;
                }
                _ => {
                    let label = Label::new(kind.clone(), scores[class]).with_span(start..end);
                    found.push((label, 1));
                }
            }
            open = Some(kind);
        }
        Ok(found
            .into_iter()
            .map(|(mut label, count)| {
                label.score /= count as f32;
                label
            })
            .collect())
    }

    /// Returns the span of the context (second text) with the best score as an answer to the question (first text).
    fn answer(&self, encoding: &Encoding, context: &str) -> Result<Vec<Label>> {
        let out = self.forward_one(encoding)?;
        let (Some(start), Some(end)) = (out.start_logits, out.end_logits) else {
            return Err(self.cannot("answer questions"));
        };
        let inside: Vec<bool> = encoding.sequence_ids.iter().map(|text| *text == Some(1)).collect();
        let scores = |logits: Tensor| -> Result<Vec<f32>> {
            let mut logits: Vec<f32> = transfer::to_host(&logits.squeeze(0)?.to_dtype(DType::F32)?)?;
            for (logit, inside) in logits.iter_mut().zip(&inside) {
                if !inside {
                    *logit = f32::NEG_INFINITY;
                }
            }
            let time = logits.len();
            transfer::to_host(&softmax(&Tensor::from_vec(logits, time, &Device::Cpu)?)?)
        };
        let (start, end) = (scores(start)?, scores(end)?);
        let mut top: Option<(usize, usize, f32)> = None;
        for first in (0..start.len()).filter(|i| inside[*i]) {
            for last in (first..end.len().min(first + MAX_ANSWER_TOKENS)).filter(|i| inside[*i]) {
                let score = start[first] * end[last];
                if top.is_none_or(|(.., best)| score > best) {
                    top = Some((first, last, score));
                }
            }
        }
        let (first, last, score) = top.ok_or_else(|| Error::input("the context is empty"))?;
        let span = encoding.offsets[first].0..encoding.offsets[last].1;
        let label = context.get(span.clone()).unwrap_or_default().to_string();
        Ok(vec![Label::new(label, score).with_span(span)])
    }
}

impl BertPipeline {
    /// Returns one embedding per text by the sentence embedder's settings, `(batch, dimension)`. Texts longer than
    /// [`max_length`](Self::max_length) are truncated.
    pub fn encode(&self, batch: &[String]) -> Result<Embeddings> {
        let tokenizer = self.tokenizer()?;
        let longest = Some(self.max_length());
        let encodings = batch
            .iter()
            .map(|text| tokenizer.encode_text(&format!("{}{text}", self.embedder.config().prompt), longest))
            .collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(encodings[*i].ids.len()));
        let mut rows: Vec<Option<Tensor>> = vec![None; batch.len()];
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let count = (TOKENS_PER_BATCH / encodings[*first].ids.len().max(1)).clamp(1, rest.len());
            let (now, later) = rest.split_at(count);
            rest = later;
            let chosen: Vec<Encoding> = now.iter().map(|i| encodings[*i].clone()).collect();
            let (out, mask) = self.forward_batch(&tokenizer.pad(&chosen, Padding::Right), false)?;
            let hidden = out.last_hidden_state.ok_or_else(|| self.cannot("embed"))?;
            let pooled = self.embedder.forward(&hidden, &mask, self.prompt)?.to_device(&Device::Cpu)?;
            for (row, i) in now.iter().enumerate() {
                rows[*i] = Some(pooled.narrow(0, row, 1)?);
            }
        }
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        if rows.is_empty() {
            return Err(Error::input("no text to embed"));
        }
        Ok(Embeddings::new(Tensor::cat(&rows, 0)?, encodings.iter().map(|e| e.cut).collect()))
    }
}

impl Pipeline for BertPipeline {
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
            "forward" => {
                match words::tokenised(self.tokenizer.as_ref(), options, Padding::Right, self.max_length())? {
                    None => self.forward_ids(inputs),
                    Some(mut tokenised) => {
                        let mut out = self.forward_ids(&tokenised)?;
                        out.append(&mut tokenised);
                        Ok(out)
                    }
                }
            }
            // As `SentenceTransformer.encode`, with the release's default prompt.
            "encode" => {
                let texts = options["texts"].as_array().into_iter().flatten();
                let texts: Vec<String> = texts.filter_map(|text| Some(text.as_str()?.to_string())).collect();
                Ok(Tensors::from([("sentence_embedding".to_string(), self.encode(&texts)?.rows)]))
            }
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        self.encode(&items.iter().map(|item| Ok(item.text()?.to_string())).collect::<Result<Vec<_>>>()?)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }

    /// Runs the task of the head: predictions for each `[MASK]`, classes of a text or a pair, entities, or the answer
    /// to a question (first item) in a context (second item).
    fn generate(
        &self,
        prompt: &Prompt,
        _options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        if self.network.task() == Task::Encode {
            return Err(self.cannot("generate"));
        }
        let encoding = self.encoding(prompt)?;
        let labels = match self.network.task() {
            Task::Encode => Vec::new(),
            Task::FillMask => self.fill_mask(&encoding)?,
            Task::ClassifyText | Task::NextSentence => self.classify(&encoding)?,
            Task::ClassifyTokens => self.entities(&encoding)?,
            Task::Answer => match prompt {
                Prompt::Items(items) if items.len() == 2 => self.answer(&encoding, items[1].text()?)?,
                _ => {
                    return Err(Error::input("expected a question and a context")
                        .hint("the prompt is two texts: the question, then the context"));
                }
            },
        };
        let items = Item::left_out(encoding.cut).into_iter().chain(labels.into_iter().map(Item::Label));
        for item in items {
            if each(item).is_break() {
                break;
            }
        }
        Ok(Generation::default())
    }
}

/// Notes on a checkpoint for its card.
fn notes(network: &Bert, embedder: &SentenceEmbedder, pretrained: &Pretrained) -> Vec<String> {
    let (config, recipe) = (network.config(), embedder.config());
    let mut notes = recipe.notes.clone();
    if network.task() == Task::Encode && !recipe.is_specified {
        notes.push(
            "no modules.json next to the weights: embeddings are the mean over the tokens, not normalised; for a sentence \
             embedder fetch the whole release ; for another pooling set the setting pooling_mode, for example to cls"
                .to_string(),
        );
    }
    let classifies = matches!(network.task(), Task::ClassifyText | Task::ClassifyTokens);
    if let Some(names) = config.id2label.as_ref().filter(|names| classifies && names.len() != config.labels())
    {
        notes.push(format!(
            "config.json: num_labels is {}, but id2label has {} names: the classes are LABEL_0 to LABEL_{}, as in the \
             reference",
            config.labels(),
            names.len(),
            config.labels() - 1
        ));
    }
    if pretrained.architecture("") == "AntiBERTy" {
        notes.push(
            "of AntiBERTy's heads only the one for residues is implemented, not those for species, chain and graft"
                .into(),
        );
    }
    notes
}

/// Indices of the `count` largest scores, in descending order.
fn top_k(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(count);
    order
}
