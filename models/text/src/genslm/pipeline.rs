//! The pipeline of GenSLMs: embeddings, likelihoods and generation of genes.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::attention::{Cache, Mask, Positions};
use fauna_shared::generate::{self, AllowedTokens, Decoder, Generation, GenerationConfig, Stop, Tokens};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, CausalLm, Collation, Loss, Pipeline, Pretrained, Step, Trainable, TrainingBatch, batch_of_one,
    only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, ErrorKind, Result, transfer};
use serde_json::{Map, Value};

use super::codons::{CodonTokenizer, EncodedGene, Reading};
use super::release;
use crate::causal::LanguageModel;
use crate::gpt_neox::GptNeoX;
use crate::labelled::{self, LabelledTokens};

/// Number of codons of a batch: large enough to use every core, small enough to limit memory.
const CODONS_PER_BATCH: usize = 2048;
/// Maximum number of genes of a batch in generation.
const MAX_BATCH: usize = 16;
/// The most common start codon.
const START: &str = "ATG";

/// The positions that mean pooling of a gene's embedding includes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pooling {
    /// The gene's codons, as in the project's `run_inference`: the embedding does not depend on padding.
    #[default]
    Real,
    /// All `seq_length` positions, padding included, as in the project's README.
    All,
}

/// Settings of tokenization and pooling.
#[derive(Debug, Clone, Copy, Default)]
struct Settings {
    pooling: Pooling,
    seq_length: Option<usize>,
    reading: Reading,
}

impl Settings {
    fn read(settings: &Map<String, Value>) -> Result<Self> {
        let named = |key: &str| match settings.get(key) {
            None => Ok(None),
            Some(Value::String(name)) => Ok(Some(name.as_str())),
            Some(other) => Err(Error::input(format!("{key} is {other}, expected a string"))),
        };
        let pooling = match named("pooling")? {
            None | Some("real") => Pooling::Real,
            Some("all") => Pooling::All,
            Some(other) => {
                return Err(Error::input(format!("pooling is \"{other}\"")).hint(
                    "expected real (the gene's codons) or all (seq_length positions, padding included)",
                ));
            }
        };
        let reading = named("reading")?.map_or(Ok(Reading::Strict), Reading::named)?;
        Ok(Self { pooling, seq_length: seq_length(settings.get("seq_length"))?, reading })
    }
}

/// Parses a length in codons.
fn seq_length(value: Option<&Value>) -> Result<Option<usize>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let length = value.as_u64().filter(|n| (1..=1 << 20).contains(n)).map(|n| Some(n as usize));
            length.ok_or_else(|| Error::input(format!("seq_length is {value}, expected a number of codons")))
        }
    }
}

/// The likelihood of a gene.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Log probability (natural logarithm) of each codon after the first, given the codons before it.
    pub codons: Vec<f64>,
    /// Number of codons truncated because they exceed the maximum sequence length.
    pub cut: usize,
}

impl Score {
    /// Log likelihood (natural logarithm) of the gene, given its first codon.
    pub fn log_likelihood(&self) -> f64 {
        self.codons.iter().sum()
    }

    /// Perplexity per codon: 1 for a gene predicted with certainty, 61 for uniform probabilities over all codons of
    /// amino acids.
    pub fn perplexity(&self) -> f64 {
        (-self.log_likelihood() / self.codons.len() as f64).exp()
    }
}

/// The pipeline of GenSLMs: network and codon tokenizer.
///
/// ```no_run
/// use fauna_shared::zoo::{LoadOptions, Zoo};
/// use fauna_text::genslm::GenSlm;
/// let zoo = Zoo::new(fauna_text::FAMILIES.iter().copied());
/// let file = "patric_25m_epoch01-val_loss_0.57_bias_removed.pt";
/// let model = GenSlm::open(&zoo.pretrained(file, &LoadOptions::default())?.1)?;
/// let scores = model.score(&["ATGAAAGTATAA", "ATGAAAGTTTAA"])?;
/// println!("variant against wild type: {}", scores[1].log_likelihood() - scores[0].log_likelihood());
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct GenSlm {
    language: LanguageModel,
    codons: CodonTokenizer,
    settings: Settings,
    device: Device,
    card: Card,
}

impl GenSlm {
    /// Loads a checkpoint. Settings: `pooling` (`real` or `all`, see [`Pooling`]), `seq_length` (number of codons that
    /// genes are truncated to, and with `pooling` `all` padded to; the model's context length by default), `reading`
    /// (`strict` or `as_released`, see [`Reading`]).
    ///
    /// # Errors
    /// Errors of the files or the settings.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        release::check_heads(pretrained)?;
        let language = LanguageModel::open::<GptNeoX>(pretrained)?;
        let mut card = language.card().clone();
        let name = release::name_of(pretrained);
        if let Some(known) = crate::genslm::FAMILY.releases.iter().find(|known| Some(known.id) == name) {
            card.licence = Some(known.licence);
        }
        Ok(Self {
            codons: release::codons(pretrained, language.network().vocab_size())?,
            settings: Settings::read(&pretrained.options.settings)?,
            device: pretrained.weights.runtime().device().clone(),
            language,
            card,
        })
    }

    /// The network.
    pub fn network(&self) -> &dyn CausalLm {
        self.language.network()
    }

    /// The codon tokenizer.
    pub fn codons(&self) -> &CodonTokenizer {
        &self.codons
    }

    /// Maximum number of codons of a gene.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if the setting `seq_length` exceeds the model's maximum sequence length.
    pub fn seq_length(&self) -> Result<usize> {
        let positions = self.network().max_position_embeddings();
        match self.settings.seq_length {
            Some(length) if length > positions => Err(Error::input(format!(
                "seq_length is {length}, but the model was trained for at most {positions} codons"
            ))),
            Some(length) => Ok(length),
            None => Ok(positions),
        }
    }

    /// Tokenizes genes, truncated to `longest` tokens.
    fn tokenize(&self, genes: &[impl AsRef<str>], longest: usize) -> Result<Vec<EncodedGene>> {
        let encode = |(i, gene): (usize, &_)| {
            let gene: &str = AsRef::<str>::as_ref(gene);
            self.codons.encode(gene, self.settings.reading, Some(longest)).map_err(|error| {
                match genes.len() {
                    1 => error,
                    _ => error.context(format!("gene {}", i + 1)),
                }
            })
        };
        genes.iter().enumerate().map(encode).collect()
    }

    /// The last hidden state of sequences of tokens, padded to `time` on the right: `(batch, time, hidden_size)`. No
    /// token attends to the padding after it. If `mask_padding`, padding does not attend to padding either, so that the
    /// hidden state at padding is that of the reference.
    fn hidden(&self, rows: &[&[u32]], time: usize, mask_padding: bool) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(rows.len() * time);
        for row in rows {
            ids.extend_from_slice(row);
            ids.extend(std::iter::repeat_n(self.codons.pad(), time - row.len()));
        }
        let ids = Tensor::from_vec(ids, (rows.len(), time), &self.device)?;
        let mask = match mask_padding {
            false => Mask::causal(),
            true => {
                let real = |row: &&[u32]| (0..time).map(|at| at < row.len()).collect();
                Mask::causal().with_padding(&rows.iter().map(real).collect::<Vec<_>>())?
            }
        };
        let mut cache = Cache::new(self.network().num_hidden_layers(), time).single_pass();
        let positions = Positions::counting(0, time);
        let step = Step { positions: &positions, mask: &mask, token_type_ids: None };
        self.network().forward(&ids, &step, &mut cache)
    }

    /// Calls `each` with the last hidden state of each gene: `(codons, hidden_size)`, or `(length, hidden_size)` if
    /// `length` is given. Genes of similar lengths are batched.
    fn for_each_hidden(
        &self,
        genes: &[EncodedGene],
        length: Option<usize>,
        each: &mut dyn FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..genes.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(genes[*i].ids.len()));
        let mut rest = &order[..];
        while let Some(first) = rest.first() {
            let time = length.unwrap_or(genes[*first].ids.len());
            let (now, later) = rest.split_at((CODONS_PER_BATCH / time).clamp(1, rest.len()));
            rest = later;
            let rows: Vec<&[u32]> = now.iter().map(|i| genes[*i].ids.as_slice()).collect();
            let hidden = self.hidden(&rows, time, length.is_some())?;
            for (row, i) in now.iter().enumerate() {
                each(*i, hidden.get(row)?.narrow(0, 0, length.unwrap_or(genes[*i].ids.len()))?)?;
            }
        }
        Ok(())
    }

    /// Returns the last hidden state of each codon, `(codons, hidden_size)` in float32 on the CPU. If the tokenizer
    /// adds special tokens, their hidden states are included.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for an invalid gene.
    pub fn codon_embeddings(&self, gene: &str) -> Result<Tensor> {
        let mut vectors = None;
        self.for_each_hidden(&self.tokenize(&[gene], self.seq_length()?)?, None, &mut |_, hidden| {
            vectors = Some(hidden.to_dtype(DType::F32)?.to_device(&Device::Cpu)?);
            Ok(())
        })?;
        vectors.ok_or_else(|| Error::input("no gene to embed"))
    }

    /// Returns the likelihood of each of `genes`.
    ///
    /// Compare a variant with its wild type by the difference of their [`Score::log_likelihood`], and genes of
    /// different lengths by [`Score::perplexity`]. The first codon is not scored.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for an invalid gene, or a gene of a single codon.
    pub fn score(&self, genes: &[impl AsRef<str>]) -> Result<Vec<Score>> {
        let coded = self.tokenize(genes, self.seq_length()?)?;
        if let Some(short) = coded.iter().position(|gene| gene.ids.len() < 2) {
            return Err(Error::input(format!(
                "gene {} has a single codon, so that there is nothing to predict",
                short + 1
            )));
        }
        let mut scores: Vec<Score> =
            coded.iter().map(|gene| Score { codons: Vec::new(), cut: gene.cut }).collect();
        self.for_each_hidden(&coded, None, &mut |i, hidden| {
            let logits = self.network().logits(&hidden)?;
            let logits = logits.ok_or_else(|| self.cannot("score genes: it has no output head"))?;
            let rows: Vec<Vec<f32>> = transfer::rows(&logits.to_dtype(DType::F32)?)?;
            let next = coded[i].ids.iter().skip(1);
            scores[i].codons = rows.iter().zip(next).map(|(row, id)| log_probability(row, *id)).collect();
            Ok(())
        })?;
        Ok(scores)
    }

    /// Tokenizes `options.sequences`, if present, as the project's tools do.
    fn sequences(&self, options: &Value) -> Result<Option<Vec<EncodedGene>>> {
        let Some(sequences) = options.get("sequences") else { return Ok(None) };
        let length = seq_length(options.get("seq_length"))?.or(self.settings.seq_length);
        let length = length.unwrap_or_else(|| self.network().max_position_embeddings());
        let wrong = || Error::new(ErrorKind::Format, "expected sequences as a list of genes");
        let sequences = sequences.as_array().filter(|all| !all.is_empty()).ok_or_else(wrong)?;
        let encode = |sequence: &Value| {
            self.codons.encode(sequence.as_str().ok_or_else(wrong)?, Reading::AsReleased, Some(length))
        };
        sequences.iter().map(encode).collect::<Result<_>>().map(Some)
    }

    /// The forward pass over `sequences`: the network's outputs, `input_ids` and `attention_mask`,
    /// `(batch, seq_length)` of int64, and the embeddings of both poolings, `(batch, hidden_size)`.
    fn forward_sequences(&self, sequences: &[EncodedGene], options: &Value) -> Result<Tensors> {
        let longest = sequences.iter().map(|gene| gene.ids.len()).max().unwrap_or(0);
        let length = seq_length(options.get("seq_length"))?.or(self.settings.seq_length);
        let time = length.unwrap_or_else(|| self.network().max_position_embeddings()).max(longest);
        let mut ids = Vec::with_capacity(sequences.len() * time);
        let mut mask = Vec::with_capacity(sequences.len() * time);
        for gene in sequences {
            let padding = time - gene.ids.len();
            ids.extend(gene.ids.iter().map(|id| i64::from(*id)));
            ids.extend(std::iter::repeat_n(i64::from(self.codons.pad()), padding));
            mask.extend(std::iter::repeat_n(1i64, gene.ids.len()));
            mask.extend(std::iter::repeat_n(0, padding));
        }
        let shaped = |values| Tensor::from_vec(values, (sequences.len(), time), &Device::Cpu);
        let mut inputs = Tensors::from([
            ("input_ids".to_string(), shaped(ids)?),
            ("attention_mask".to_string(), shaped(mask)?),
        ]);
        let mut out = self.language.forward(&inputs)?;
        let hidden = &out["last_hidden_state"];
        let all = hidden.to_dtype(DType::F32)?.mean(1)?;
        let real = |(row, gene): (usize, &EncodedGene)| -> Result<Tensor> {
            Ok(hidden.get(row)?.narrow(0, 0, gene.ids.len())?.to_dtype(DType::F32)?.mean(0)?)
        };
        let real = sequences.iter().enumerate().map(real).collect::<Result<Vec<_>>>()?;
        out.insert("embeddings".into(), Tensor::stack(&real, 0)?);
        out.insert("embeddings_all_positions".into(), all);
        out.append(&mut inputs);
        Ok(out)
    }

    /// The scores of `options.sequences`: `log_likelihood`, `perplexity` and `cut`, `(batch)` of float32.
    fn score_sequences(&self, options: &Value) -> Result<Tensors> {
        let genes = options["sequences"].as_array().filter(|all| !all.is_empty());
        let genes = genes.and_then(|all| all.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        let genes =
            genes.ok_or_else(|| Error::new(ErrorKind::Format, "expected sequences as a list of genes"))?;
        let scores = self.score(&genes)?;
        let column = |of: fn(&Score) -> f64| {
            let values: Vec<f32> = scores.iter().map(|score| of(score) as f32).collect();
            Tensor::from_vec(values, scores.len(), &Device::Cpu)
        };
        Ok(Tensors::from([
            ("log_likelihood".to_string(), column(Score::log_likelihood)?),
            ("perplexity".to_string(), column(Score::perplexity)?),
            // Number of truncated codons.
            ("cut".to_string(), column(|score| score.cut as f64)?),
        ]))
    }

    /// Tokenizes a prompt; an empty one becomes ATG.
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let items = match prompt {
            Prompt::Items(items) => items,
            Prompt::Infill { .. } => return Err(Prompt::no_infill()),
            Prompt::Chat(_) => {
                return Err(Error::unsupported("this model generates genes and is not a chat model")
                    .hint("give it the beginning of a gene"));
            }
        };
        let gene = items.iter().map(gene).collect::<Result<Vec<_>>>()?.concat();
        let gene = if gene.trim().is_empty() { START } else { &gene };
        self.codons.encode_prompt(gene, self.settings.reading)
    }
}

/// The gene of an item.
fn gene(item: &Item) -> Result<&str> {
    match item {
        Item::Gene(gene) | Item::Text(gene) => Ok(gene),
        other => Err(Error::input(format!("this model expects genes, not {}", other.modality()))),
    }
}

/// Log probability (natural logarithm) of `id` by `logits`.
fn log_probability(logits: &[f32], id: u32) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    f64::from(logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY) - most) - sum.ln()
}

/// The decoder of genes: only codons are allowed, up to the maximum sequence length.
struct CodonDecoder<'a> {
    model: &'a GenSlm,
    /// Number of prompts in earlier batches.
    before: usize,
}

impl Decoder for CodonDecoder<'_> {
    type Cache = Cache;

    fn cache(&self, rows: usize, capacity: usize) -> Result<Cache> {
        self.model.language.cache(rows, capacity)
    }

    fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
        self.model.language.step(tokens, cache)
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.model.network().max_position_embeddings())
    }

    fn allowed(&self, _row: usize, _new: &[u32]) -> AllowedTokens {
        AllowedTokens::Within(self.model.codons.ids())
    }

    fn stream(&self, row: usize) -> u64 {
        (self.before + row) as u64
    }
}

impl GenSlm {
    /// Returns one embedding per gene, `(batch, hidden_size)`: the mean of the last hidden state over the positions of
    /// the setting `pooling`. Genes longer than [`seq_length`](Self::seq_length) are truncated.
    pub fn encode(&self, batch: &[String]) -> Result<Embeddings> {
        let genes = self.tokenize(batch, self.seq_length()?)?;
        if genes.is_empty() {
            return Err(Error::input("no gene to embed"));
        }
        let length = match self.settings.pooling {
            Pooling::Real => None,
            Pooling::All => Some(self.seq_length()?),
        };
        let mut rows = vec![None; genes.len()];
        self.for_each_hidden(&genes, length, &mut |i, hidden| {
            rows[i] = Some(hidden.to_dtype(DType::F32)?.mean(0)?.to_device(&Device::Cpu)?);
            Ok(())
        })?;
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        Ok(Embeddings::new(Tensor::stack(&rows, 0)?, genes.iter().map(|gene| gene.cut).collect()))
    }
}

impl GenSlm {
    /// Generates from each of `prompts` up to and including the first stop codon, in batches, and calls `each` with the
    /// index of the prompt and the codon. Prompt `i` uses stream `i` of the random numbers, so that equal prompts give
    /// different genes.
    fn generate_codons(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, String) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        if !options.stop.is_empty() {
            return Err(Error::unsupported("stop strings are not supported: a gene ends at a stop codon")
                .hint("set eos to the ids of other codons, or truncate the generated gene"));
        }
        let prompts = prompts.iter().map(|prompt| self.prompt(prompt)).collect::<Result<Vec<_>>>()?;
        let options = options.with_tokens(self.codons.stops(), Some(self.codons.pad()));
        let mut all = Vec::with_capacity(prompts.len());
        for (chunk, prompts) in prompts.chunks(MAX_BATCH).enumerate() {
            let before = chunk * MAX_BATCH;
            let decoder = CodonDecoder { model: self, before };
            let made = generate::generate(&decoder, prompts, &options, &mut |new| {
                let codon = self.codons.codon(new.token).unwrap_or_default().to_string();
                each(before + new.row, codon).map_break(|()| Stop::Cancel)
            })?;
            all.extend(made.generations());
        }
        Ok(all)
    }
}

impl Pipeline for GenSlm {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.language.forward(inputs)
    }

    /// `forward` over token ids, or over `options.sequences` truncated and padded to `options.seq_length` as the
    /// project's tools do (`input_ids` are then ignored); `generate` over token ids; `score` over `options.sequences`.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => match self.sequences(options)? {
                None => self.language.forward(inputs),
                Some(sequences) => {
                    only_known(inputs, &["input_ids", "attention_mask"])?;
                    self.forward_sequences(&sequences, options)
                }
            },
            "generate" => self.language.call("generate", inputs, options),
            "score" => {
                only_known(inputs, &[])?;
                self.score_sequences(options)
            }
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let genes = items.iter().map(|item| gene(item).map(str::to_string)).collect::<Result<Vec<_>>>()?;
        self.encode(&genes)
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
        batch_of_one(self, prompt, options, each)
    }

    fn generate_batch(
        &self,
        prompts: &[Prompt],
        options: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        self.generate_codons(prompts, options, &mut |index, codon| each(index, Item::Gene(codon)))
    }

    /// The project's settings: temperature 1, top-k 50, top-p 0.95.
    fn defaults(&self) -> GenerationConfig {
        GenerationConfig {
            temperature: 1.0,
            top_k: 50,
            top_p: 0.95,
            max_new_tokens: 512,
            ..GenerationConfig::default()
        }
    }
}

impl Trainable for GenSlm {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.language.reload(config, weights)
    }

    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        self.language.loss(inputs, options)
    }

    /// Genes with the special tokens of the release, truncated to [`seq_length`](Self::seq_length). All of their tokens
    /// are learned; the padding after them is not, other than in the project's training, which pads every gene to the
    /// context length.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let genes = examples.iter().map(|example| match example {
            Example::Gene(gene) | Example::Text(gene) => Ok(gene),
            other => Err(labelled::not_learned(other, "gene, text")),
        });
        let genes = genes.collect::<Result<Vec<_>>>()?;
        let longest = self.seq_length()?.min(options.max_length.unwrap_or(usize::MAX));
        let genes = self.tokenize(&genes, longest)?;
        let truncated = genes.iter().map(|gene| gene.cut).sum();
        let rows = genes.into_iter().map(|gene| LabelledTokens::all(gene.ids)).collect();
        let mut batch = LabelledTokens::batch(rows, None, self.codons.pad())?;
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"(^|\.)embed_out\.")
    }
}
