//! Pipeline of Chronos-Bolt.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Forecast, ForecastConfig, Forecaster, History, Loss, Model, Pipeline, Pretrained,
    SampleSizes, Trainable, TrainingBatch, only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json};
use fauna_text::causal::no_options;
use serde_json::{Value, json};

use super::bolt::{ChronosBolt, Encoded};
use super::patches::{Cut, Norm, join};
use crate::quantiles::{self, pinball};
use crate::series::{self, Place, collect, floats, host, last, left_padded, mean_of, rows};

/// Batch size: enough rows for all cores, within a bounded memory.
const BATCH_SIZE: usize = 256;

/// Chronos-Bolt.
///
/// ```
/// use fauna_shared::model::{Pipeline, ForecastConfig, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // Random weights need only a config.
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("config.json"), (fauna_science::chronos::bolt::FAMILY.sample)().to_string())?;
/// let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
/// let model = Zoo::new([&fauna_science::chronos::bolt::FAMILY]).open(folder.path().to_str().unwrap(), &options)?;
///
/// let past = History::from(vec![1.0, 2.0, f32::NAN, 4.0]);
/// let wanted = ForecastConfig { horizon: 3, quantiles: vec![0.25], ..ForecastConfig::default() };
/// let forecast = model.forecaster()?.forecast(&[past], &wanted)?.remove(0);
/// assert_eq!((forecast.mean.len(), forecast.quantiles[0].len()), (3, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ChronosBoltPipeline {
    network: ChronosBolt,
    cut: Cut,
    place: Place,
    card: Card,
}

/// Quantile forecasts of several series, `(series, levels, steps)`.
struct Predictions {
    values: Vec<f32>,
    levels: usize,
    steps: usize,
}

impl Predictions {
    /// The quantiles of one step of one series.
    fn at(&self, row: usize, step: usize) -> Vec<f32> {
        let start = row * self.levels * self.steps + step;
        (0..self.levels).map(|level| self.values[start + level * self.steps]).collect()
    }
}

impl ChronosBoltPipeline {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Errors of the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<ChronosBolt>()?;
        let architecture = pretrained.architecture("ChronosBoltModelForForecasting");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(network.config().context_length);
        Ok(Self { cut: network.config().cut()?, place: Place::of(pretrained), network, card })
    }

    /// The network.
    pub fn network(&self) -> &ChronosBolt {
        &self.network
    }

    /// Encodes the last steps of `table`, `(series, steps)`.
    fn encode(&self, table: &[f32], steps: usize) -> Result<(Encoded, Vec<Norm>)> {
        let longest = self.network.config().context_length;
        let kept: Vec<f32>;
        let (table, steps) = match steps > longest {
            true => {
                kept = table.chunks_exact(steps).flat_map(|row| last(row, longest)).copied().collect();
                (&kept[..], longest)
            }
            false => (table, steps),
        };
        let patched = self.cut.patches(table, steps);
        let shape = (patched.norms.len(), patched.count, 2 * self.cut.size);
        let patches = join(&[&patched.values, &patched.known], self.cut.size);
        Ok((self.network.encode(&self.place.tensor(patches, shape)?, patched.real)?, patched.norms))
    }

    /// The denormalised quantiles, `(series, levels, prediction_length)`.
    fn decode(&self, encoded: &Encoded, norms: &[Norm]) -> Result<Vec<f32>> {
        let mut values = floats(&self.network.decode(encoded)?)?;
        let each = values.len() / norms.len().max(1);
        for (row, norm) in values.chunks_exact_mut(each.max(1)).zip(norms) {
            row.iter_mut().for_each(|value| *value = norm.undo(*value, false));
        }
        Ok(values)
    }

    /// The trained quantiles of `horizon` steps after each row of `table`, `(series, steps)`. Beyond `prediction_length`, each
    /// quantile is continued as a path, and the quantiles are those over the forecasts of all paths.
    fn predict(&self, table: Vec<f32>, steps: usize, horizon: usize) -> Result<Predictions> {
        let config = self.network.config();
        let (levels, length) = (config.quantiles.len(), config.prediction_length);
        let series = table.len() / steps.max(1);
        let rounds = horizon.div_ceil(length);
        let mut all = vec![0f32; series * levels * horizon];
        let (mut table, mut steps, mut paths) = (table, steps, 1);
        for round in 0..rounds {
            let (encoded, norms) = self.encode(&table, steps)?;
            let made = self.decode(&encoded, &norms)?;
            let made = match paths {
                1 => made,
                _ => reduced(&made, levels, length, &config.quantiles),
            };
            let from = round * length;
            let kept = length.min(horizon - from);
            for (row, values) in made.chunks_exact(length).enumerate() {
                all[row * horizon + from..][..kept].copy_from_slice(&values[..kept]);
            }
            if round + 1 < rounds {
                table = continued(&table, steps, paths, &made, (levels, length), config.context_length);
                steps = (steps + length).min(config.context_length);
                paths = levels;
            }
        }
        Ok(Predictions { values: all, levels, steps: horizon })
    }

    /// The quantiles of one step at the levels `wanted`: as trained if all are trained levels; else interpolated from the
    /// trained ones as if these were evenly spaced with the outermost repeated, as in the reference.
    fn quantiles(&self, trained: &[f32], wanted: &[f64]) -> Vec<f32> {
        let levels = &self.network.config().quantiles;
        let place = |level: &f64| levels.iter().position(|trained| trained == level);
        if let Some(places) = wanted.iter().map(place).collect::<Option<Vec<_>>>() {
            return places.into_iter().map(|place| trained[place]).collect();
        }
        let ends = [trained.first().copied(), trained.last().copied()];
        let mut spread: Vec<f32> = trained.iter().copied().chain(ends.into_iter().flatten()).collect();
        quantiles::of_samples(&mut spread, wanted)
    }

    /// Index of the median among the trained quantiles, which is the point forecast.
    fn median(&self) -> Result<usize> {
        self.network
            .config()
            .quantiles
            .iter()
            .position(|level| *level == 0.5)
            .ok_or_else(|| self.cannot("make a point forecast: 0.5 is not one of its trained quantiles"))
    }

    fn forward_context(&self, inputs: &Tensors) -> Result<Tensors> {
        only_known(inputs, &["context"])?;
        let (table, steps) = left_padded(&rows(inputs, "context")?, usize::MAX);
        let (encoded, norms) = self.encode(&table, steps)?;
        let config = self.network.config();
        let shape = (norms.len(), config.quantiles.len(), config.prediction_length);
        let predictions = host(self.decode(&encoded, &norms)?, shape)?;
        let mut out = self.encoded(encoded, &norms)?;
        out.insert("quantile_preds".into(), predictions);
        Ok(out)
    }

    fn encoded(&self, encoded: Encoded, norms: &[Norm]) -> Result<Tensors> {
        let per_row = |value: fn(&Norm) -> f32| host(norms.iter().map(value).collect(), (norms.len(), 1));
        let mask: Vec<f32> = encoded.real.iter().flatten().map(|real| f32::from(u8::from(*real))).collect();
        let shape = (norms.len(), mask.len() / norms.len().max(1));
        let mask = host(mask, shape)?;
        Ok(Tensors::from([
            ("loc".to_string(), per_row(|norm| norm.loc)?),
            ("scale".to_string(), per_row(|norm| norm.scale)?),
            ("attention_mask".to_string(), mask.to_dtype(candle_core::DType::I64)?),
            ("input_embeds".to_string(), encoded.embeddings),
            ("encoder_last_hidden_state".to_string(), encoded.states.clone()),
            ("encoder_hidden_states".to_string(), encoded.states),
        ]))
    }

    fn predict_quantiles(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &["context"])?;
        let context = rows(inputs, "context")?;
        let (mut out, quantiles) = self.prediction(&context, options)?;
        out.insert("quantiles".into(), quantiles);
        let other = &options["trained_levels_call"];
        if !other.is_null() {
            out.insert("quantiles_trained_levels".into(), self.prediction(&context, other)?.1);
        }
        Ok(out)
    }

    /// Predictions and point forecasts by name, and the quantiles, `(series, steps, levels)`.
    fn prediction(&self, context: &[Vec<f32>], options: &Value) -> Result<(Tensors, Tensor)> {
        let config = self.network.config();
        let horizon = series::count(options, "prediction_length")?.unwrap_or(config.prediction_length);
        let horizon = series::horizon(horizon)?;
        let wanted = series::levels(options, "quantile_levels")?;
        let (table, steps) = left_padded(context, config.context_length);
        let predictions = self.predict(table, steps, horizon)?;
        let median = self.median()?;
        let count = context.len();
        let (mut mean, mut told) = (Vec::new(), Vec::new());
        for row in 0..count {
            for step in 0..horizon {
                let trained = predictions.at(row, step);
                mean.push(trained[median]);
                told.extend(self.quantiles(&trained, &wanted));
            }
        }
        let quantiles = host(told, (count, horizon, wanted.len()))?;
        let out = Tensors::from([
            ("predictions".to_string(), host(predictions.values, (count, config.quantiles.len(), horizon))?),
            ("mean".to_string(), host(mean, (count, horizon))?),
        ]);
        Ok((out, quantiles))
    }
}

/// The quantiles at `levels` over the forecasts of the paths of each series, `(series, paths * levels, length)`, with as
/// many paths as levels.
fn reduced(made: &[f32], paths: usize, length: usize, levels: &[f64]) -> Vec<f32> {
    let each = paths * levels.len();
    let mut out = vec![0f32; made.len() / paths.max(1)];
    let mut samples = Vec::with_capacity(each);
    for (row, all) in made.chunks_exact(each * length).enumerate() {
        for step in 0..length {
            samples.clear();
            samples.extend((0..each).map(|sample| all[sample * length + step]));
            let told = quantiles::of_samples(&mut samples, levels);
            for (level, value) in told.into_iter().enumerate() {
                out[(row * levels.len() + level) * length + step] = value;
            }
        }
    }
    out
}

/// Appends one path per level, `(series, levels, length)`, to the rows of `table`, `(series * paths, steps)`, cut on the
/// left to `longest` steps. Returns `(series * levels, …)`.
fn continued(
    table: &[f32],
    steps: usize,
    paths: usize,
    made: &[f32],
    (levels, length): (usize, usize),
    longest: usize,
) -> Vec<f32> {
    let mut longer = Vec::new();
    let mut row = Vec::with_capacity(steps + length);
    for (i, future) in made.chunks_exact(length).enumerate() {
        let (series, level) = (i / levels, i % levels);
        let path = series * paths + if paths == 1 { 0 } else { level };
        row.clear();
        row.extend_from_slice(&table[path * steps..][..steps]);
        row.extend_from_slice(future);
        longer.extend_from_slice(last(&row, longest));
    }
    longer
}

impl Forecaster for ChronosBoltPipeline {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        series::check(series)?;
        let config = self.network.config();
        let median = self.median()?;
        let paths = if options.horizon > config.prediction_length { config.quantiles.len() } else { 1 };
        let mut forecasts = Vec::with_capacity(series.len());
        for chunk in series.chunks((BATCH_SIZE / paths).max(1)) {
            let values: Vec<&[f32]> = chunk.iter().map(|past| &past.values[..]).collect();
            let (table, steps) = left_padded(&values, config.context_length);
            let predictions = self.predict(table, steps, options.horizon)?;
            for row in 0..chunk.len() {
                let steps = (0..options.horizon).map(|step| {
                    let trained = predictions.at(row, step);
                    (trained[median], self.quantiles(&trained, &options.quantiles))
                });
                forecasts.push(collect(steps, options.quantiles.len()));
            }
        }
        Ok(forecasts)
    }

    fn context(&self) -> Option<usize> {
        Some(self.network.config().context_length)
    }

    fn levels(&self) -> Vec<f64> {
        self.network.config().quantiles.clone()
    }
}

impl Trainable for ChronosBoltPipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = ChronosBolt::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The pinball loss of the quantiles of `context`, `(series, steps)`, and the `target` after it, both normalised by
    /// the context: twice the mean over levels and series, summed over the steps. `target` has up to
    /// `prediction_length` steps; `target_mask` is 0 where it is not learned, by default where it is NaN.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        no_options(options)?;
        only_known(inputs, &["context", "target", "target_mask"])?;
        let (table, steps) = left_padded(&rows(inputs, "context")?, usize::MAX);
        let (encoded, norms) = self.encode(&table, steps)?;
        let config = self.network.config();
        let shape = (norms.len(), config.prediction_length);
        let normalise = |row: usize, value: f32| norms[row].apply(value, false);
        let (targets, weights) = series::masked_targets(inputs, ["target", "target_mask"], shape, normalise)?;
        let terms = pinball(&self.network.decode(&encoded)?, &targets, &config.quantiles)?;
        let weights = Tensor::from_vec(weights, (shape.0, 1, shape.1), terms.device())?;
        let loss = (terms.broadcast_mul(&weights)?.mean(1)?.sum(1)?.mean_all()? * 2.0)?;
        Ok(Loss::mean(loss, norms.len() as f64))
    }

    /// Random windows of series: `context`, padded on the left with NaN, and `target`, with NaN for gaps.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let config = self.network.config();
        let horizon = options.horizon.unwrap_or(config.prediction_length);
        if !(1..=config.prediction_length).contains(&horizon) {
            return Err(Error::input(format!(
                "horizon is {horizon}, expected 1 to {}, the steps of one forecast",
                config.prediction_length
            )));
        }
        let (windows, truncated) = series::windows(examples, config.context_length, horizon, options)?;
        let pasts: Vec<&[f32]> = windows.iter().map(|window| window.past()).collect();
        let (context, steps) = left_padded(&pasts, config.context_length);
        let target = windows.iter().flat_map(|window| window.future().to_vec()).collect();
        let mut batch = TrainingBatch::new(Tensors::from([
            ("context".to_string(), host(context, (windows.len(), steps))?),
            ("target".to_string(), host(target, (windows.len(), horizon))?),
        ]));
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^output_patch_embedding\.")
    }
}

impl Pipeline for ChronosBoltPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// `context`, `(series, steps)`, to `quantile_preds`, `(series, quantiles, prediction_length)`, and the encoder output.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_context(inputs)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" | "encode" => self.forward_context(inputs),
            "generate" => self.predict_quantiles(inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// The mean of the encoder output over the patches with a value.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let longest = self.network.config().context_length;
        series::embed(items, longest, |series| {
            let values: Vec<&[f32]> = series.iter().map(|past| &past.values[..]).collect();
            let (table, steps) = left_padded(&values, longest);
            let (encoded, _) = self.encode(&table, steps)?;
            let patches = encoded.real[0].len() - usize::from(self.network.config().use_reg_token);
            let chosen: Vec<Vec<bool>> = encoded.real.iter().map(|row| row[..patches].to_vec()).collect();
            mean_of(&encoded.states, &chosen)
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
        Ok(self)
    }

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        series::sample("context", method, &["forward", "generate"], sizes)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::greedy(self.network.config().prediction_length)
    }
}

/// A small config that uses every branch.
pub(crate) fn sample() -> Value {
    json!({
        "architectures": ["ChronosBoltModelForForecasting"], "chronos_pipeline_class": "ChronosBoltPipeline",
        "model_type": "t5", "is_encoder_decoder": true, "d_model": 32, "d_kv": 7, "d_ff": 64, "num_layers": 3,
        "num_decoder_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20, "feed_forward_proj": "relu", "decoder_start_token_id": 0,
        "chronos_config": {
            "context_length": 40, "prediction_length": 5, "input_patch_size": 4, "input_patch_stride": 4,
            "quantiles": [0.1, 0.25, 0.5, 0.9], "use_reg_token": true
        }
    })
}
