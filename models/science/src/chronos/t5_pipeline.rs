//! Pipeline of Chronos.

use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Modality, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Forecast, ForecastConfig, Forecaster, History, Loss, Pipeline, Pretrained, SampleSizes,
    Trainable, TrainingBatch, only_known,
};
use fauna_shared::nn::{IGNORE_INDEX, cross_entropy};
use fauna_shared::train::Example;
use fauna_shared::weights::{Inventory, Modules, Weights};
use fauna_shared::{Error, Result, transfer};
use fauna_text::causal::{labels, next_token_loss, no_options};
use fauna_text::t5::T5;
use fauna_text::words;
use serde_json::{Value, json};

use super::t5::{Chronos, Network, Sampling, build, causal_hidden, causal_logits, integers, load, no_head};
use super::tokenizer::{ChronosConfig, Context, Kind, MeanScaleUniformBins};
use crate::quantiles::of_samples;
use crate::series::{self, Place, collect, host, left_padded, mean_of, rows};

/// Inputs of `forward`.
const INPUTS: [&str; 4] = ["context", "input_ids", "attention_mask", "decoder_input_ids"];

/// Maximum number of paths per series.
const MAX_PATHS: usize = 10_000;

/// Chronos.
///
/// ```
/// use fauna_shared::model::{Pipeline, ForecastConfig, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // Random weights need only a config.
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("config.json"), (fauna_science::chronos::t5::FAMILY.sample)().to_string())?;
/// let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
/// let model = Zoo::new([&fauna_science::chronos::t5::FAMILY]).open(folder.path().to_str().unwrap(), &options)?;
///
/// let past = History::from(vec![1.0, 2.0, f32::NAN, 4.0]);
/// let wanted = ForecastConfig { horizon: 3, samples: Some(5), seed: 7, ..ForecastConfig::default() };
/// let forecast = model.forecaster()?.forecast(&[past], &wanted)?.remove(0);
/// assert!(forecast.quantiles[0][0] <= forecast.quantiles[2][0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ChronosPipeline {
    chronos: Chronos,
    card: Card,
}

/// The tensors of a checkpoint of its config; none of a tokenizer alone.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    match is_tokenizer_alone(pretrained) {
        true => pretrained.weights.finish(),
        false => Ok(load(pretrained, config(pretrained)?.model_type)?.1),
    }
}

fn config(pretrained: &Pretrained) -> Result<ChronosConfig> {
    serde_json::from_value(pretrained.config["chronos_config"].clone())
        .map_err(|error| pretrained.config_error(format!("chronos_config: {error}")))
}

/// Whether the folder has a tokenizer alone.
fn is_tokenizer_alone(pretrained: &Pretrained) -> bool {
    let wants = pretrained.weights.is_meta() || pretrained.options.random_weights.is_some();
    !wants && pretrained.checkpoint.is_none()
}

impl ChronosPipeline {
    /// Loads a checkpoint, or a tokenizer alone.
    ///
    /// # Errors
    /// Errors of the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let own = config(pretrained)?;
        let tokenizer = MeanScaleUniformBins::new(&own)?;
        let (network, inventory) = match is_tokenizer_alone(pretrained) {
            true => (None, pretrained.weights.finish()?),
            false => {
                let (network, inventory) = load(pretrained, own.model_type)?;
                (Some(network), inventory)
            }
        };
        let id = |key: &str| pretrained.config[key].as_u64().and_then(|id| u32::try_from(id).ok());
        let vocabulary = id("vocab_size").unwrap_or(own.n_tokens as u32) as usize;
        if own.n_tokens > vocabulary {
            return Err(Error::unsupported(format!(
                "chronos_config.n_tokens {} is above vocab_size {vocabulary}",
                own.n_tokens
            )));
        }
        let start = id("decoder_start_token_id").or(id("pad_token_id")).unwrap_or(own.pad_token_id);
        let architecture = pretrained.architecture("T5ForConditionalGeneration");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(own.context_length);
        if own.model_type == Kind::Causal {
            // Embeddings are those of the encoder.
            card.outputs = vec![Modality::Series];
        }
        let device = Place::of(pretrained).device().clone();
        let chronos = Chronos { network, tokenizer, config: own, device, start, vocabulary };
        Ok(Self { chronos, card })
    }

    /// Tokenizer and network.
    pub fn chronos(&self) -> &Chronos {
        &self.chronos
    }

    /// Tokenizes `context`, padded to one length.
    fn tokenize(&self, context: &[Vec<f32>]) -> Vec<Context> {
        let (table, steps) = left_padded(context, self.chronos.config.context_length);
        table.chunks_exact(steps.max(1)).map(|row| self.chronos.tokenizer.encode(row)).collect()
    }

    /// `token_ids`, `attention_mask` and `scale` of `context`, the bins, and the values of the token ids in the input named by
    /// the option `decode`.
    fn encode(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let decoded = options["decode"].as_str();
        only_known(inputs, &["context", decoded.unwrap_or("context")])?;
        let contexts = self.tokenize(&rows(inputs, "context")?);
        let shape = (contexts.len(), contexts[0].ids.len());
        let ids = contexts.iter().flat_map(|context| context.ids.iter().map(|id| i64::from(*id)));
        let real = contexts.iter().flat_map(|context| context.real.iter().map(|real| i64::from(*real)));
        let tokenizer = &self.chronos.tokenizer;
        let borders: Vec<f32> = tokenizer.boundaries().iter().map(|border| border.clamp(-1e9, 1e9)).collect();
        let mut out = Tensors::from([
            ("token_ids".to_string(), integers(ids.collect(), shape)?),
            ("attention_mask".to_string(), integers(real.collect(), shape)?),
            (
                "scale".to_string(),
                host(contexts.iter().map(|context| context.scale).collect(), contexts.len())?,
            ),
            ("centers".to_string(), host(tokenizer.centers().to_vec(), tokenizer.centers().len())?),
            ("boundaries".to_string(), host(borders.clone(), borders.len())?),
        ]);
        if let Some(name) = decoded {
            let samples = inputs.get(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
            if samples.rank() != 3 || samples.dims()[0] != contexts.len() {
                return Err(Error::input(format!(
                    "{name} are {:?}, expected (series, samples, steps) of {} series",
                    samples.dims(),
                    contexts.len()
                )));
            }
            let ids: Vec<i64> = transfer::to_host(&samples.to_dtype(DType::I64)?)?;
            let ids: Vec<u32> = ids.into_iter().map(|id| id.clamp(0, i64::from(u32::MAX)) as u32).collect();
            let each = (ids.len() / contexts.len()).max(1);
            let values = ids.chunks(each).zip(&contexts);
            let values = values.flat_map(|(ids, context)| tokenizer.decode(ids, context.scale)).collect();
            out.insert("forecasts".into(), host(values, samples.shape())?);
        }
        Ok(out)
    }

    fn forward_ids(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &INPUTS)?;
        let mut inputs = inputs.clone();
        if let Some(context) = inputs.remove("context") {
            let made = self.encode(&Tensors::from([("context".to_string(), context)]), &Value::Null)?;
            for (name, made_as) in [("input_ids", "token_ids"), ("attention_mask", "attention_mask")] {
                if inputs.insert(name.into(), made[made_as].clone()).is_some() {
                    return Err(Error::input(format!(
                        "{name} and context are given; context is tokenized to {name}"
                    )));
                }
            }
        }
        let (ids, real) = self.ids(&inputs, "input_ids", Some("attention_mask"))?;
        let chronos = &self.chronos;
        match chronos.network()? {
            Network::Causal(network) => {
                let logits = causal_logits(network, &ids, &real)?;
                Ok(Tensors::from([("logits".to_string(), logits)]))
            }
            Network::Seq2seq(network) => {
                let mask = Mask::full().with_padding(&real)?;
                let states = network.encoder.forward(&ids, &mask)?;
                let written = match inputs.contains_key("decoder_input_ids") {
                    true => self.ids(&inputs, "decoder_input_ids", None)?.0,
                    false => Tensor::full(chronos.start, (real.len(), 1), ids.device())?,
                };
                if written.dim(0)? != real.len() {
                    let message =
                        format!("the encoder has {} sequences, the decoder {}", real.len(), written.dim(0)?);
                    return Err(Error::input(message));
                }
                let hidden = decoded(network, &states, &mask, &written)?;
                let mut out = Tensors::from([
                    ("encoder_last_hidden_state".to_string(), states.clone()),
                    ("encoder_hidden_states".to_string(), states),
                ]);
                if let Some(logits) = network.logits(&hidden)? {
                    out.insert("logits".into(), logits);
                }
                Ok(out)
            }
        }
    }

    /// The token ids of the input `name`, `(batch, sequence)`, and their attention mask.
    fn ids(&self, inputs: &Tensors, name: &str, mask: Option<&str>) -> Result<(Tensor, Vec<Vec<bool>>)> {
        let ids = inputs.get(name).ok_or_else(|| Error::input(format!("{name} are missing")))?;
        if ids.rank() != 2 || ids.elem_count() == 0 {
            return Err(Error::input(format!("{name} are {:?}, expected (batch, sequence)", ids.dims())));
        }
        let mask = match mask.and_then(|mask| inputs.get(mask)) {
            Some(mask) if mask.dims() != ids.dims() => {
                return Err(Error::input(format!(
                    "attention_mask is {:?}, {name} {:?}",
                    mask.dims(),
                    ids.dims()
                )));
            }
            Some(mask) => mask.clone(),
            None => ids.ones_like()?,
        };
        let (vocabulary, device) = (self.chronos.vocabulary, &self.chronos.device);
        Ok((words::checked_ids(ids, Some(&mask), vocabulary, device)?, words::real_tokens(&mask)?))
    }

    /// The sampling options, by default those of the release.
    fn sampling(&self, options: &Value) -> Result<Sampling> {
        let own = self.chronos.sampling();
        let sampling = Sampling {
            paths: series::count(options, "num_samples")?.unwrap_or(own.paths),
            temperature: series::number(options, "temperature")?.unwrap_or(own.temperature),
            top_k: series::count(options, "top_k")?.unwrap_or(own.top_k),
            top_p: series::number(options, "top_p")?.unwrap_or(own.top_p),
            seed: options["seed"].as_u64().unwrap_or(own.seed),
        };
        check_paths(sampling.paths).map(|()| sampling)
    }

    fn predict_quantiles(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &["context"])?;
        let context = rows(inputs, "context")?;
        let sampling = self.sampling(options)?;
        let horizon = series::count(options, "prediction_length")?;
        let horizon = series::horizon(horizon.unwrap_or(self.chronos.config.prediction_length))?;
        let wanted = series::levels(options, "quantile_levels")?;
        let context: Vec<&[f32]> = context.iter().map(|row| &row[..]).collect();
        let paths = self.chronos.paths(&context, horizon, &sampling)?;
        let (count, levels) = (paths.len(), wanted.len());
        let (mut mean, mut quantiles) = (Vec::new(), Vec::new());
        for paths in &paths {
            for step in 0..horizon {
                let (point, told) = summary(paths, step, &wanted);
                mean.push(point);
                quantiles.extend(told);
            }
        }
        let drawn = host(paths.concat().concat(), (count, sampling.paths, horizon))?;
        Ok(Tensors::from([
            ("forecasts".to_string(), drawn.clone()),
            ("predictions".to_string(), drawn),
            ("mean".to_string(), host(mean, (count, horizon))?),
            ("quantiles".to_string(), host(quantiles, (count, horizon, levels))?),
        ]))
    }
}

/// The hidden states of the decoder of `network` for the tokens `written`, `(batch, sequence)`.
fn decoded(network: &T5, states: &Tensor, mask: &Mask, written: &Tensor) -> Result<Tensor> {
    let memory = network.decoder.memory(states, mask)?;
    let mut cache = network.decoder.cache(written.dim(1)?);
    network.decoder.hidden(written, &Mask::causal(), &memory, &mut cache)
}

/// Mean and quantiles over the paths at one step.
fn summary(paths: &[Vec<f32>], step: usize, levels: &[f64]) -> (f32, Vec<f32>) {
    let mut samples: Vec<f32> = paths.iter().map(|path| path[step]).collect();
    let mean = samples.iter().map(|value| f64::from(*value)).sum::<f64>() / samples.len() as f64;
    (mean as f32, of_samples(&mut samples, levels))
}

fn check_paths(paths: usize) -> Result<()> {
    match (1..=MAX_PATHS).contains(&paths) {
        true => Ok(()),
        false => Err(Error::input(format!("samples must be 1 to {MAX_PATHS}, got {paths}"))),
    }
}

impl Forecaster for ChronosPipeline {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        series::check(series)?;
        let own = self.chronos.sampling();
        let sampling = Sampling { paths: options.samples.unwrap_or(own.paths), seed: options.seed, ..own };
        check_paths(sampling.paths)?;
        let values: Vec<&[f32]> = series.iter().map(|past| &past.values[..]).collect();
        let all = self.chronos.paths(&values, options.horizon, &sampling)?;
        let forecast = |paths: Vec<Vec<f32>>| {
            let steps = (0..options.horizon).map(|step| summary(&paths, step, &options.quantiles));
            collect(steps, options.quantiles.len())
        };
        Ok(all.into_iter().map(forecast).collect())
    }

    fn context(&self) -> Option<usize> {
        Some(self.chronos.config.context_length)
    }
}

impl Trainable for ChronosPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.chronos.network()?;
        self.chronos.network = Some(build(self.chronos.config.model_type, config, weights)?);
        Ok(())
    }

    /// Cross entropy of the tokens `labels`, `(batch, sequence)`, -100 where there is none: of T5's decoder, or of the
    /// token after each of `input_ids`. `attention_mask` is as in `forward`.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        only_known(inputs, &["input_ids", "attention_mask", "labels"])?;
        let (ids, real) = self.ids(inputs, "input_ids", Some("attention_mask"))?;
        let labels = labels(inputs)?;
        match self.chronos.network()? {
            Network::Causal(network) => {
                next_token_loss(&**network, &causal_hidden(network, &ids, &real)?, labels)
            }
            Network::Seq2seq(network) => {
                let mask = Mask::full().with_padding(&real)?;
                let states = network.encoder.forward(&ids, &mask)?;
                let written = self.shifted(labels, real.len())?;
                let hidden = decoded(network, &states, &mask, &written)?;
                let logits = network.logits(&hidden)?.ok_or_else(no_head)?;
                let (loss, terms) = cross_entropy(&logits, labels)?;
                Ok(Loss::mean(loss, terms as f64))
            }
        }
    }

    /// Random windows of series as in the training script of the reference, without its random gaps: `input_ids`,
    /// `attention_mask` and `labels`, the bins of the steps after a context in units of its scale. A decoder reads both
    /// in one row, with the padding at its end.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let own = &self.chronos.config;
        let horizon = options.horizon.unwrap_or(own.prediction_length);
        if !(1..=own.prediction_length).contains(&horizon) {
            return Err(Error::input(format!(
                "horizon is {horizon}, expected 1 to {}, the steps of one forecast",
                own.prediction_length
            )));
        }
        let (windows, truncated) = series::windows(examples, own.context_length, horizon, options)?;
        let pasts: Vec<&[f32]> = windows.iter().map(|window| window.past()).collect();
        let (table, steps) = left_padded(&pasts, own.context_length);
        let pad = i64::from(own.pad_token_id);
        let (mut ids, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        for (row, window) in table.chunks_exact(steps.max(1)).zip(&windows) {
            let context = self.chronos.tokenizer.encode(row);
            let future = self.chronos.tokenizer.encode_future(window.future(), context.scale);
            let known = context.ids.iter().zip(&context.real).map(|(id, real)| real.then_some(*id));
            let mut row: Vec<Option<u32>> = known.collect();
            if own.model_type == Kind::Causal {
                let empty = steps - window.past().len();
                row.extend(&future);
                row.rotate_left(empty);
            }
            let learned = if own.model_type == Kind::Causal { &row } else { &future };
            labels.extend(learned.iter().map(|id| id.map_or(IGNORE_INDEX, i64::from)));
            ids.extend(row.iter().map(|id| id.map_or(pad, i64::from)));
            mask.extend(row.iter().map(|id| i64::from(id.is_some())));
        }
        let rows = windows.len();
        let table = |values: Vec<i64>| {
            let width = values.len() / rows;
            integers(values, (rows, width))
        };
        let mut batch = TrainingBatch::new(Tensors::from([
            ("input_ids".to_string(), table(ids)?),
            ("attention_mask".to_string(), table(mask)?),
            ("labels".to_string(), table(labels)?),
        ]));
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^lm_head\.")
    }

    fn modules(&self) -> Modules {
        let is_causal = self.chronos.config.model_type == Kind::Causal;
        Arc::new(move |name| match is_causal && name != "lm_head" && !name.starts_with("transformer.") {
            true => format!("transformer.{name}"),
            false => name.to_string(),
        })
    }
}

impl ChronosPipeline {
    /// The decoder's input for `labels`, `(rows, sequence)`: they follow the start token, with padding for -100.
    fn shifted(&self, labels: &Tensor, rows: usize) -> Result<Tensor> {
        if labels.rank() != 2 || labels.dim(0)? != rows || labels.dim(1)? == 0 {
            let found = labels.dims();
            return Err(Error::input(format!("labels are {found:?}, expected ({rows} rows, sequence)")));
        }
        let (start, pad) = (i64::from(self.chronos.start), i64::from(self.chronos.config.pad_token_id));
        let row = |row: Vec<i64>| {
            let before = [start].into_iter().chain(row).collect::<Vec<i64>>();
            let ids = before[..before.len() - 1].iter();
            ids.map(|id| if *id == IGNORE_INDEX { pad } else { *id }).collect::<Vec<i64>>()
        };
        let labels: Vec<Vec<i64>> = transfer::rows(&labels.to_dtype(DType::I64)?)?;
        let ids: Vec<i64> = labels.into_iter().flat_map(row).collect();
        let ids = integers(ids.clone(), (rows, ids.len() / rows))?;
        words::checked_ids(&ids, None, self.chronos.vocabulary, &self.chronos.device)
    }
}

impl Pipeline for ChronosPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// The `logits`, `(batch, sequence, vocab_size)`, for `input_ids` or the tokens of `context`, `(series, steps)`; of T5,
    /// those of the decoder for `decoder_input_ids`, by default the start token.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_ids(inputs)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward_ids(inputs),
            "encode" => self.encode(inputs, options),
            "generate" => self.predict_quantiles(inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// The mean of the encoder output over the tokens that are not gaps.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let Network::Seq2seq(network) = self.chronos.network()? else {
            return Err(self.cannot("embed: it has no encoder"));
        };
        series::embed(items, self.chronos.config.context_length, |series| {
            let values: Vec<Vec<f32>> = series.iter().map(|past| past.values.clone()).collect();
            let contexts = self.tokenize(&values);
            let (states, _) = self.chronos.encode(network, &contexts)?;
            let end = usize::from(self.chronos.config.use_eos_token);
            let known = |context: &Context| context.real[..context.real.len() - end].to_vec();
            mean_of(&states, &contexts.iter().map(known).collect::<Vec<_>>())
        })
    }

    fn generate(
        &self,
        prompt: &Prompt,
        options: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        series::generate(self, prompt, options, each)
    }

    fn forecaster(&self) -> Result<&dyn Forecaster> {
        Ok(self)
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        self.chronos.network()?;
        Ok(self)
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        series::sample("context", method, &["forward", "generate", "encode"], sizes)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::greedy(self.chronos.config.prediction_length)
    }
}

/// A small config that uses every branch.
pub(crate) fn sample() -> Value {
    json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": true,
        "vocab_size": 61, "d_model": 32, "d_kv": 7, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
        "feed_forward_proj": "relu", "tie_word_embeddings": true, "decoder_start_token_id": 0, "pad_token_id": 0,
        "eos_token_id": 1,
        "chronos_config": {
            "tokenizer_class": "MeanScaleUniformBins", "tokenizer_kwargs": {"low_limit": -5.0, "high_limit": 6.0},
            "context_length": 24, "prediction_length": 4, "n_tokens": 61, "n_special_tokens": 2, "pad_token_id": 0,
            "eos_token_id": 1, "use_eos_token": true, "model_type": "seq2seq", "num_samples": 6, "temperature": 0.9,
            "top_k": 20, "top_p": 0.95
        }
    })
}
