//! The losses of BERT's heads and of sentence embedders, and how examples become their batches.

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::Rng;
use fauna_shared::item::{Item, Prompt, Tensors};
use fauna_shared::model::{Collation, Loss, Model, Pipeline, Trainable, TrainingBatch, only_known};
use fauna_shared::nn::{IGNORE_INDEX, binary_cross_entropy, cross_entropy, l2_normalize, mean_squared_error};
use fauna_shared::text::{Encoding, Padding};
use fauna_shared::train::{Example, Target};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json, transfer};
use serde_json::Value;

use super::{BertPipeline, TOKENS};
use crate::bert::{Bert, Config, Head, MaskedLmHead, SentenceModule, Task};
use crate::causal::{labels, no_options};
use crate::labelled::{self, labelled_positions};

/// The share of tokens that masked language modelling predicts (Devlin et al. 2018, section 3.1).
const MASKED: f64 = 0.15;
/// Of these, the share replaced by the mask token, and the share replaced by that or by a random token.
const REPLACED: [f64; 2] = [0.8, 0.9];

/// The scale of cosine similarities in `MultipleNegativesRankingLoss`.
const SCALE: f64 = 20.0;

/// What a sequence classifier learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    Regression,
    SingleLabel,
    MultiLabel,
}

impl Problem {
    /// The `problem_type` of the config. Without one it follows, as in the reference, from the number of classes and
    /// whether labels are `integers`.
    fn of(config: &Config, integers: bool) -> Result<Self> {
        match config.problem_type.as_deref() {
            Some("regression") => Ok(Self::Regression),
            Some("single_label_classification") => Ok(Self::SingleLabel),
            Some("multi_label_classification") => Ok(Self::MultiLabel),
            Some(other) => Err(Error::unsupported(format!("problem_type \"{other}\" is not implemented"))),
            None if config.labels() == 1 => Ok(Self::Regression),
            None if integers => Ok(Self::SingleLabel),
            None => Ok(Self::MultiLabel),
        }
    }
}

impl Trainable for BertPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = Bert::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The loss of the reference's class. Masked language models, token classifiers: cross entropy of `labels`,
    /// `(batch, sequence)`, the mean over all but -100. Next-sentence prediction: cross entropy of `labels`, `(batch)`.
    /// Pre-training: the sum of both, with `next_sentence_label`, or the first alone without it. Text classifiers: by
    /// `problem_type`, mean squared error, cross entropy or binary cross entropy of `labels`, `(batch)` or
    /// `(batch, classes)`. Question answering: the mean of the cross entropies of `start_positions` and `end_positions`,
    /// `(batch)`, where positions beyond the sequence do not count.
    ///
    /// Sentence embedders: the option `loss` is `multiple_negatives_ranking`, of the columns `anchor_…`, `positive_…` and
    /// possibly `negative_…` with the option `scale` (20), or `cosine_similarity`, of the columns `sentence1_…` and
    /// `sentence2_…` with `labels`, `(batch)`. Without the option it follows from the columns.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        if let Head::None = self.network.head {
            return self.sentence_loss(inputs, options);
        }
        no_options(options)?;
        let of_head: &[&str] = match self.network.head {
            Head::PreTraining(..) => &["labels", "next_sentence_label"],
            Head::Answer(_) => &["start_positions", "end_positions"],
            _ => &["labels"],
        };
        only_known(inputs, &[&TOKENS[..], of_head].concat())?;
        let tokens: Tensors =
            inputs.iter().filter(|(name, _)| TOKENS.contains(&name.as_str())).map(owned).collect();
        let of_positions = matches!(self.network.head, Head::MaskedLm(_) | Head::PreTraining(..));
        let (out, _) = self.run(&tokens, !of_positions)?;
        let logits = || out.logits.as_ref().ok_or_else(|| self.cannot("be trained"));
        match &self.network.head {
            Head::None => Err(self.cannot("be trained")),
            Head::MaskedLm(head) => self.masked_loss(head, &out, labels(inputs)?),
            Head::PreTraining(head, sentence) => {
                let masked = self.masked_loss(head, &out, labels(inputs)?)?;
                let Some(label) = inputs.get("next_sentence_label") else { return Ok(masked) };
                let pooled =
                    out.pooler_output.as_ref().ok_or_else(|| self.cannot("learn without a pooler"))?;
                let next = classified(&sentence.forward(pooled)?, &label.flatten_all()?)?;
                Ok(Loss::mean((masked.value + next.value)?, masked.terms))
            }
            Head::NextSentence(_) => classified(logits()?, &labels(inputs)?.flatten_all()?),
            Head::Tokens(_) => classified(logits()?, labels(inputs)?),
            Head::Sequence(_) => sequence_loss(self.network.config(), logits()?, labels(inputs)?),
            Head::Answer(_) => {
                let end = |logits: &Option<Tensor>, name: &str| -> Result<Loss> {
                    let logits = logits.as_ref().ok_or_else(|| self.cannot("be trained"))?;
                    let positions =
                        inputs.get(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
                    classified(logits, &within(positions, logits.dim(1)?)?)
                };
                let start = end(&out.start_logits, "start_positions")?;
                let end = end(&out.end_logits, "end_positions")?;
                Ok(Loss::mean(((start.value + end.value)? / 2.0)?, (start.terms + end.terms) / 2.0))
            }
        }
    }

    /// Masked language models learn from texts, of which 15 % of the tokens are predicted: 80 % of these are replaced by
    /// the mask token and 10 % by a random one. Pre-training and next-sentence prediction learn from pairs of texts with
    /// the class `is next` or `is not next`; text classifiers from texts or pairs with their class, their classes or a
    /// number; token classifiers from texts with one class for each word between white space, which the first token of
    /// the word learns; question answering from completions, whose prompt is the question and the context, and whose
    /// completion is the first such text in the context, or empty if there is no answer; sentence embedders from pairs
    /// and scored pairs.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        match self.network.task() {
            Task::Encode => self.sentences(examples, options),
            Task::FillMask => self.masked(examples, options),
            Task::NextSentence | Task::ClassifyText => self.classes(examples, options),
            Task::ClassifyTokens => self.tagged(examples, options),
            Task::Answer => self.answered(examples, options),
        }
    }

    fn head(&self) -> Result<&'static str> {
        match self.network.head {
            Head::None => Err(self.cannot("train a head: it has none")),
            Head::MaskedLm(_) => Ok(r"^cls\.predictions\."),
            Head::NextSentence(_) => Ok(r"^cls\.seq_relationship\."),
            Head::PreTraining(..) => Ok(r"^cls\."),
            Head::Sequence(_) | Head::Tokens(_) => Ok(r"^classifier\."),
            Head::Answer(_) => Ok(r"^qa_outputs\."),
        }
    }
}

fn owned((name, tensor): (&String, &Tensor)) -> (String, Tensor) {
    (name.clone(), tensor.clone())
}

/// Cross entropy of `logits`, `(…, classes)`, with `labels`, `(…)`.
fn classified(logits: &Tensor, labels: &Tensor) -> Result<Loss> {
    match cross_entropy(logits, labels)? {
        (_, 0) => Err(Error::input("nothing of the batch has a label")),
        (loss, terms) => Ok(Loss::mean(loss, terms as f64)),
    }
}

/// The loss of a text classifier. `logits`: `(batch, classes)`.
fn sequence_loss(config: &Config, logits: &Tensor, labels: &Tensor) -> Result<Loss> {
    let rows = logits.dim(0)? as f64;
    match Problem::of(config, labels.dtype().is_int())? {
        Problem::Regression if config.labels() == 1 => {
            Ok(Loss::mean(mean_squared_error(&logits.flatten_all()?, &labels.flatten_all()?)?, rows))
        }
        Problem::Regression => Ok(Loss::mean(mean_squared_error(logits, labels)?, rows)),
        Problem::SingleLabel => classified(logits, &labels.flatten_all()?),
        Problem::MultiLabel => Ok(Loss::mean(binary_cross_entropy(logits, labels)?, rows)),
    }
}

/// `positions`, `(batch)` or `(batch, 1)`, in a sequence of `time` tokens: -100 where they are beyond it, and 0 where they
/// are negative, as in the reference.
fn within(positions: &Tensor, time: usize) -> Result<Tensor> {
    let mut positions: Vec<i64> = transfer::to_host(&positions.to_dtype(DType::I64)?)?;
    for position in &mut positions {
        *position = if *position >= time as i64 { IGNORE_INDEX } else { (*position).max(0) };
    }
    integers(positions)
}

fn integers(values: Vec<i64>) -> Result<Tensor> {
    let count = values.len();
    Ok(Tensor::from_vec(values, count, &Device::Cpu)?)
}

fn floats(values: Vec<f32>) -> Result<Tensor> {
    let count = values.len();
    Ok(Tensor::from_vec(values, count, &Device::Cpu)?)
}

impl BertPipeline {
    fn masked_loss(&self, head: &MaskedLmHead, out: &crate::bert::Output, labels: &Tensor) -> Result<Loss> {
        let hidden = out.last_hidden_state.as_ref().ok_or_else(|| self.cannot("be trained"))?;
        let (hidden, labels) = labelled_positions(hidden, labels)?;
        classified(&head.forward(&hidden)?, &labels)
    }

    /// The loss of a sentence embedder.
    fn sentence_loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        let is_dense = |module: &SentenceModule| matches!(module, SentenceModule::Dense(_));
        if self.embedder.config().modules.iter().any(is_dense) {
            return Err(Error::unsupported(
                "training a sentence embedder with Dense modules is not implemented",
            ));
        }
        let has = |column: &str| inputs.keys().any(|name| name.starts_with(column));
        let named = match options.get("loss") {
            Some(name) => name.as_str().unwrap_or_default(),
            None if has("anchor_") => "multiple_negatives_ranking",
            None => "cosine_similarity",
        };
        let known: &[&str] = match named {
            "multiple_negatives_ranking" => &["loss", "scale"],
            "cosine_similarity" => &["loss"],
            other => {
                return Err(Error::input(format!("the loss \"{other}\" is not implemented"))
                    .hint("known: multiple_negatives_ranking, cosine_similarity"));
            }
        };
        let given = options.as_object().into_iter().flat_map(|options| options.keys());
        if let Some(name) = given.into_iter().find(|name| !known.contains(&name.as_str())) {
            return Err(Error::input(format!("the loss {named} has no option \"{name}\"")));
        }
        match named {
            "cosine_similarity" => self.similarity_loss(inputs),
            _ => {
                let scale = match options.get("scale") {
                    None => Some(SCALE),
                    Some(scale) => scale.as_f64(),
                };
                let scale = scale.filter(|scale| *scale > 0.0);
                self.ranking_loss(inputs, scale.ok_or_else(|| Error::input("scale must be positive"))?)
            }
        }
    }

    /// `MultipleNegativesRankingLoss` of sentence-transformers (Henderson et al. 2017, section 4): cross entropy of
    /// `scale` times the cosine of each anchor with all positives and then all negatives, where the class of an anchor is
    /// the positive of its row.
    fn ranking_loss(&self, inputs: &Tensors, scale: f64) -> Result<Loss> {
        let anchors = self.column(inputs, "anchor")?;
        let mut candidates = vec![self.column(inputs, "positive")?];
        let has_negatives = inputs.keys().any(|name| name.starts_with("negative_"));
        if has_negatives {
            candidates.push(self.column(inputs, "negative")?);
        }
        only_columns(inputs, &["anchor", "positive", "negative"], &[])?;
        let rows = anchors.dim(0)?;
        if candidates.iter().any(|column| column.dim(0).ok() != Some(rows)) {
            return Err(Error::input(format!("{rows} anchors, but not as many positives or negatives")));
        }
        let unit = |x: &Tensor| l2_normalize(x, 1e-12);
        let candidates = unit(&Tensor::cat(&candidates, 0)?)?;
        let scores = (unit(&anchors)?.matmul(&candidates.t()?.contiguous()?)? * scale)?;
        classified(&scores, &integers((0..rows as i64).collect())?)
    }

    /// `CosineSimilarityLoss` of sentence-transformers: mean squared difference of the cosine of two sentences and their
    /// label.
    fn similarity_loss(&self, inputs: &Tensors) -> Result<Loss> {
        let unit = |column: &str| l2_normalize(&self.column(inputs, column)?, 1e-8);
        only_columns(inputs, &["sentence1", "sentence2"], &["labels"])?;
        let (first, second) = (unit("sentence1")?, unit("sentence2")?);
        if first.dims() != second.dims() {
            return Err(Error::input("sentence1 and sentence2 have another number of rows"));
        }
        let cosine = (first * second)?.sum(1)?;
        let loss = mean_squared_error(&cosine, &labels(inputs)?.flatten_all()?)?;
        Ok(Loss::mean(loss, cosine.dim(0)? as f64))
    }

    /// The sentence embeddings, `(batch, dimension)`, of the inputs whose names begin with `name` and an underscore.
    fn column(&self, inputs: &Tensors, name: &str) -> Result<Tensor> {
        let prefix = format!("{name}_");
        let of_column = |(key, tensor): (&String, &Tensor)| {
            Some((key.strip_prefix(&prefix)?.to_string(), tensor.clone()))
        };
        let tokens: Tensors = inputs.iter().filter_map(of_column).collect();
        let (out, mask) = self.run(&tokens, false).map_err(|error| error.context(name))?;
        let hidden = out.last_hidden_state.ok_or_else(|| self.cannot("embed"))?;
        self.embedder.forward(&hidden, &mask, 0)
    }
}

/// Refuses inputs other than token inputs of `columns`, and `others`.
fn only_columns(inputs: &Tensors, columns: &[&str], others: &[&str]) -> Result<()> {
    let known = columns.iter().flat_map(|column| TOKENS.map(|name| format!("{column}_{name}")));
    let known: Vec<String> = known.chain(others.iter().map(ToString::to_string)).collect();
    only_known(inputs, &known.iter().map(String::as_str).collect::<Vec<_>>())
}

impl BertPipeline {
    /// Tokenizes a text, or a pair of texts.
    fn encoded(&self, first: &Item, second: Option<&Item>, options: &Collation) -> Result<Encoding> {
        let longest = self.max_length().min(options.max_length.unwrap_or(usize::MAX));
        let (tokenizer, first) = (self.tokenizer()?, first.text()?);
        match second {
            None => tokenizer.encode_text(first, Some(longest)),
            Some(second) => tokenizer.encode_pair(first, second.text()?, Some(longest)),
        }
    }

    /// The token inputs of `encodings`, `(batch, sequence)`, padded on the right, with names that begin with `prefix`.
    fn padded(&self, encodings: &[Encoding], prefix: &str) -> Result<Tensors> {
        let batch = self.tokenizer()?.pad(encodings, Padding::Right);
        let made = [
            batch.ids_tensor(&Device::Cpu)?,
            batch.attention_mask_tensor(&Device::Cpu)?,
            batch.type_ids_tensor(&Device::Cpu)?,
        ];
        let named = TOKENS.into_iter().zip(made);
        named.map(|(name, tensor)| Ok((format!("{prefix}{name}"), tensor.to_dtype(DType::I64)?))).collect()
    }

    /// The batch of `encodings` with `labels`.
    fn batch<const N: usize>(
        &self,
        encodings: &[Encoding],
        labels: [(&str, Tensor); N],
    ) -> Result<TrainingBatch> {
        let mut inputs = self.padded(encodings, "")?;
        inputs.extend(labels.map(|(name, tensor)| (name.to_string(), tensor)));
        let mut batch = TrainingBatch::new(inputs);
        batch.truncated = encodings.iter().map(|encoding| encoding.cut).sum();
        Ok(batch)
    }

    /// Masked language modelling, and pre-training with pairs.
    fn masked(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let is_pretraining = matches!(self.network.head, Head::PreTraining(..));
        let classes = if is_pretraining { self.class_names(options)? } else { Vec::new() };
        let (mut encodings, mut next) = (Vec::new(), Vec::new());
        for example in examples {
            encodings.push(match example {
                Example::Text(text) => self.encoded(&text.as_str().into(), None, options)?,
                Example::Labelled { item, second: Some(second), label: Target::Class(class) }
                    if is_pretraining =>
                {
                    next.push(index(class, &classes)?);
                    self.encoded(item, Some(second), options)?
                }
                other => {
                    let learned = match is_pretraining {
                        true => {
                            "text, labelled (pairs of texts with the class \"is next\" or \"is not next\")"
                        }
                        false => "text",
                    };
                    return Err(labelled::not_learned(other, learned));
                }
            });
        }
        if !next.is_empty() && next.len() < examples.len() {
            return Err(Error::input("some examples of the batch are texts and others are pairs"));
        }
        let labels = self.mask(&mut encodings, options.seed)?;
        let labels = labelled::padded(labels, IGNORE_INDEX)?;
        let mut batch = self.batch(&encodings, [("labels", labels)])?;
        if !next.is_empty() {
            batch.inputs.insert("next_sentence_label".into(), integers(next)?);
        }
        Ok(batch)
    }

    /// Masks tokens of `encodings`, at least one, and returns their labels, -100 for all others. Special tokens are never
    /// masked.
    fn mask(&self, encodings: &mut [Encoding], seed: u64) -> Result<Vec<Vec<i64>>> {
        let tokenizer = self.tokenizer()?;
        let special = tokenizer.special();
        let mask = special.mask.ok_or_else(|| Error::unsupported("the tokenizer has no mask token"))?;
        let words = tokenizer.vocab_size().min(self.network.config().vocab_size);
        let named = [special.unk, special.cls, special.sep, special.pad, special.mask];
        let mut candidates = Vec::new();
        for (row, encoding) in encodings.iter().enumerate() {
            let is_word =
                |at: &usize| !encoding.special_tokens_mask[*at] && !named.contains(&Some(encoding.ids[*at]));
            candidates.extend((0..encoding.ids.len()).filter(is_word).map(|at| (row, at)));
        }
        let mut rng = Rng::new(seed, 0);
        let below = |count: usize, rng: &mut Rng| (rng.uniform() * count as f64) as usize;
        let mut chosen: Vec<(usize, usize)> =
            candidates.iter().copied().filter(|_| rng.uniform() < MASKED).collect();
        if chosen.is_empty() {
            let any = candidates.get(below(candidates.len(), &mut rng));
            chosen.push(*any.ok_or_else(|| Error::input("no token of the batch can be masked"))?);
        }
        let mut labels: Vec<Vec<i64>> =
            encodings.iter().map(|encoding| vec![IGNORE_INDEX; encoding.ids.len()]).collect();
        for (row, at) in chosen {
            let id = &mut encodings[row].ids[at];
            labels[row][at] = i64::from(*id);
            match rng.uniform() {
                draw if draw < REPLACED[0] => *id = mask,
                draw if draw < REPLACED[1] => *id = below(words, &mut rng) as u32,
                _ => {}
            }
        }
        Ok(labels)
    }

    /// Names of the classes, in order of their index.
    fn class_names(&self, options: &Collation) -> Result<Vec<String>> {
        let count = match self.network.task() {
            Task::ClassifyText | Task::ClassifyTokens => self.network.config().labels(),
            _ => 2,
        };
        match options.classes.len() {
            0 => Ok((0..count).map(|index| self.class(index)).collect()),
            named if named == count => Ok(options.classes.clone()),
            named => {
                Err(Error::input(format!("{named} names of classes, but the model has {count} classes")))
            }
        }
    }

    /// Classification or regression of texts and pairs of texts, and next-sentence prediction.
    fn classes(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let classes = self.class_names(options)?;
        let is_class =
            |example: &Example| matches!(example, Example::Labelled { label: Target::Class(_), .. });
        let is_next = self.network.task() == Task::NextSentence;
        let problem = match is_next {
            true => Problem::SingleLabel,
            false => Problem::of(self.network.config(), examples.iter().all(is_class))?,
        };
        let learned = match (is_next, problem) {
            (true, _) => "labelled (pairs of texts with the class \"is next\" or \"is not next\")",
            (_, Problem::SingleLabel) => "labelled (texts with one class)",
            (_, Problem::MultiLabel) => "labelled (texts with any number of classes)",
            (_, Problem::Regression) if classes.len() == 1 => "labelled (texts with a number)",
            (_, Problem::Regression) => {
                return Err(self.cannot("learn several numbers from examples, which have one"));
            }
        };
        let (mut encodings, mut chosen, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            let Example::Labelled { item, second, label } = example else {
                return Err(labelled::not_learned(example, learned));
            };
            match (problem, label) {
                (Problem::SingleLabel, Target::Class(class)) if !is_next || second.is_some() => {
                    chosen.push(index(class, &classes)?);
                }
                (Problem::MultiLabel, Target::Classes(named)) => {
                    let mut row = vec![0.0; classes.len()];
                    for class in named {
                        row[index(class, &classes)? as usize] = 1.0;
                    }
                    numbers.extend(row);
                }
                (Problem::Regression, Target::Value(value)) => numbers.push(*value as f32),
                _ => {
                    return Err(Error::input("the label of an example is not one that this model learns")
                        .hint(format!("it learns from: {learned}")));
                }
            }
            encodings.push(self.encoded(item, second.as_ref(), options)?);
        }
        let labels = match problem {
            Problem::SingleLabel => integers(chosen)?,
            Problem::MultiLabel => floats(numbers)?.reshape(((), classes.len()))?,
            Problem::Regression => floats(numbers)?,
        };
        self.batch(&encodings, [("labels", labels)])
    }

    /// Token classification.
    fn tagged(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let names = self.class_names(options)?;
        let (mut encodings, mut labels) = (Vec::new(), Vec::new());
        for example in examples {
            let Example::Labelled { item, second: None, label: Target::Classes(classes) } = example else {
                return Err(labelled::not_learned(example, "labelled (texts with one class for each word)"));
            };
            let encoding = self.encoded(item, None, options)?;
            let words = words(item.text()?);
            if words.len() != classes.len() {
                let (words, classes) = (words.len(), classes.len());
                return Err(Error::input(format!("{classes} classes for a text of {words} words"))
                    .hint("a token classifier learns one class for each word between white space"));
            }
            let mut row = vec![IGNORE_INDEX; encoding.ids.len()];
            for ((start, end), class) in words.into_iter().zip(classes) {
                let class = index(class, &names)?;
                let is_of_word = |at: &usize| {
                    let (from, to) = encoding.offsets[*at];
                    !encoding.special_tokens_mask[*at] && start <= from && from < to && to <= end
                };
                if let Some(first) = (0..row.len()).find(is_of_word) {
                    row[first] = class;
                }
            }
            encodings.push(encoding);
            labels.push(row);
        }
        let labels = labelled::padded(labels, IGNORE_INDEX)?;
        self.batch(&encodings, [("labels", labels)])
    }

    /// Question answering. The positions are those of the first and the last token of the answer, or 0, the first token,
    /// if there is none or it was truncated.
    fn answered(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let (mut encodings, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            let (question, context, answer) = match example {
                Example::Completion { prompt: Prompt::Items(items), completion } if items.len() == 2 => {
                    (&items[0], &items[1], completion.trim())
                }
                other => {
                    return Err(labelled::not_learned(
                        other,
                        "completion (the prompt is two texts, the question and the context)",
                    ));
                }
            };
            let encoding = self.encoded(question, Some(context), options)?;
            let at = context.text()?.find(answer).ok_or_else(|| {
                Error::input(format!("the answer \"{answer:.80}\" is not in the context"))
                    .hint("the completion is a text of the context, or empty if there is no answer")
            })?;
            let place = |byte: usize| {
                let holds = |i: &usize| {
                    let (from, to) = encoding.offsets[*i];
                    encoding.sequence_ids[*i] == Some(1) && from <= byte && byte < to
                };
                (0..encoding.ids.len()).find(holds)
            };
            let (start, end) = match answer.is_empty() {
                true => (0, 0),
                false => place(at).zip(place(at + answer.len() - 1)).unwrap_or((0, 0)),
            };
            starts.push(start as i64);
            ends.push(end as i64);
            encodings.push(encoding);
        }
        let labels = [("start_positions", integers(starts)?), ("end_positions", integers(ends)?)];
        self.batch(&encodings, labels)
    }

    /// Pairs, possibly with negatives, or scored pairs, for a sentence embedder. The release's default prompt is not
    /// added, as in the reference.
    fn sentences(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let mut columns: Vec<(&str, Vec<Encoding>)> = match examples.first() {
            Some(Example::Pair { negative: None, .. }) => vec![("anchor", vec![]), ("positive", vec![])],
            Some(Example::Pair { .. }) => {
                vec![("anchor", vec![]), ("positive", vec![]), ("negative", vec![])]
            }
            Some(Example::Scored { .. }) => vec![("sentence1", vec![]), ("sentence2", vec![])],
            Some(other) => return Err(labelled::not_learned(other, "pair, scored")),
            None => return Err(Error::input("a batch without examples")),
        };
        let mut scores = Vec::new();
        for example in examples {
            let items = match (example, columns.len(), columns[0].0) {
                (Example::Pair { anchor, positive, negative: None }, 2, "anchor") => vec![anchor, positive],
                (Example::Pair { anchor, positive, negative: Some(negative) }, 3, _) => {
                    vec![anchor, positive, negative]
                }
                (Example::Scored { first, second, score }, 2, "sentence1") => {
                    if !(-1.0..=1.0).contains(score) {
                        return Err(Error::input(format!("the similarity {score} is not a cosine, -1 to 1"))
                            .hint("divide the scores of the data set by its largest"));
                    }
                    scores.push(*score as f32);
                    vec![first, second]
                }
                (Example::Pair { .. } | Example::Scored { .. }, ..) => {
                    return Err(Error::input(
                        "the examples of a batch must all be pairs, all be pairs with a negative, or all be scored",
                    ));
                }
                (other, ..) => return Err(labelled::not_learned(other, "pair, scored")),
            };
            for (item, (_, encodings)) in items.into_iter().zip(&mut columns) {
                encodings.push(self.encoded(item, None, options)?);
            }
        }
        let mut batch = TrainingBatch::default();
        for (name, encodings) in &columns {
            batch.inputs.append(&mut self.padded(encodings, &format!("{name}_"))?);
            batch.truncated += encodings.iter().map(|encoding| encoding.cut).sum::<usize>();
        }
        if !scores.is_empty() {
            batch.inputs.insert("labels".into(), floats(scores)?);
        }
        Ok(batch)
    }
}

/// The index of `class` among `classes`.
fn index(class: &str, classes: &[String]) -> Result<i64> {
    let found = classes.iter().position(|name| name == class);
    found.map(|index| index as i64).ok_or_else(|| {
        Error::input(format!("\"{class:.80}\" is none of the {} classes", classes.len()))
            .hint(format!("the classes are\n{}", fauna_shared::error::first_five(classes)))
    })
}

/// Byte ranges of the words of `text` between white space.
fn words(text: &str) -> Vec<(usize, usize)> {
    let mut end = 0;
    let mut place = |word: &str| {
        let start = end + text[end..].find(word).unwrap_or(0);
        end = start + word.len();
        (start, end)
    };
    text.split_whitespace().map(&mut place).collect()
}
