//! Pipeline of Chronos-2, with covariates.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Covariate, Forecast, ForecastConfig, Forecaster, History, Loss, Model, Pipeline,
    Pretrained, SampleSizes, Trainable, TrainingBatch, only_known,
};
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json, transfer};
use serde_json::{Value, json};

use super::chronos2::Chronos2;
use super::patches::{Cut, Norm, join};
use super::unroll::{Batch, Reach, unrolled};
use crate::quantiles::{interpolate_quantiles, pinball};
use crate::series::{self, Place, collect, floats, host, last, left_padded, mean_of, rows};

/// Batch size: enough rows for all cores, within a bounded memory.
const BATCH_SIZE: usize = 256;

/// Inputs of `forward`.
const INPUTS: [&str; 3] = ["context", "group_ids", "future_covariates"];

/// Chronos-2.
///
/// ```
/// use fauna_shared::model::{Covariate, Pipeline, ForecastConfig, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // Random weights need only a config.
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("config.json"), (fauna_science::chronos::chronos2::FAMILY.sample)().to_string())?;
/// let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
/// let model = Zoo::new([&fauna_science::chronos::chronos2::FAMILY]).open(folder.path().to_str().unwrap(), &options)?;
///
/// // Sales, and a price that is known two days ahead.
/// let price = Covariate { name: "price".into(), past: vec![3.0, 3.0, 2.5], future: vec![2.5, 3.0] };
/// let past = History { covariates: vec![price], ..History::from(vec![10.0, 11.0, 19.0]) };
/// let wanted = ForecastConfig { horizon: 2, quantiles: vec![0.1, 0.9], ..ForecastConfig::default() };
/// assert_eq!(model.forecaster()?.forecast(&[past], &wanted)?[0].mean.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Chronos2Pipeline {
    network: Chronos2,
    cut: Cut,
    place: Place,
    card: Card,
}

/// Output of the encoder.
struct Encoded {
    states: Tensor,
    real: Vec<Vec<bool>>,
    norms: Vec<Norm>,
    /// Number of patches of the past.
    patches: usize,
}

impl Chronos2Pipeline {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Errors of the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<Chronos2>()?;
        let architecture = pretrained.architecture("Chronos2Model");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(network.config().context_length);
        Ok(Self { cut: network.config().cut()?, place: Place::of(pretrained), network, card })
    }

    /// The network.
    pub fn network(&self) -> &Chronos2 {
        &self.network
    }

    fn reach(&self) -> Reach<'_> {
        let config = self.network.config();
        Reach {
            levels: &config.quantiles,
            patch: config.output_patch_size,
            patches: config.max_output_patches,
            context: config.context_length,
        }
    }

    /// Input features, `(series, patches, 3 * size)`: times, values and their mask. `first` is the time of the first step.
    fn features(&self, first: i64, values: &[f32], known: &[f32], series: usize) -> Result<Tensor> {
        let size = self.cut.size;
        let steps = values.len() / series.max(1);
        let scale = self.network.config().time_scale() as f32;
        // Overlapping patches have the times of patches that do not overlap, as in the reference.
        let times: Vec<f32> = (first..first + steps as i64).map(|step| step as f32 / scale).collect();
        let times = times.repeat(series);
        self.place.tensor(join(&[&times, values, known], size), (series, steps / size, 3 * size))
    }

    /// Encodes `batch` with `count` patches of the future.
    fn encode(&self, batch: &Batch, count: usize) -> Result<Encoded> {
        let (size, longest) = (self.cut.size, self.network.config().context_length);
        let steps = batch.steps.min(longest);
        let kept: Vec<f32> = match batch.steps > steps {
            true => batch.past.chunks_exact(batch.steps).flat_map(|row| last(row, steps)).copied().collect(),
            false => Vec::new(),
        };
        let patched = self.cut.patches(if kept.is_empty() { &batch.past } else { &kept }, steps);
        let series = patched.norms.len();
        let first = -((patched.count * size) as i64);
        let past = self.features(first, &patched.values, &patched.known, series)?;

        let mut values = batch.known_future(count * size);
        let known: Vec<f32> = values.iter().map(|value| f32::from(u8::from(!value.is_nan()))).collect();
        for (row, norm) in values.chunks_exact_mut((count * size).max(1)).zip(&patched.norms) {
            row.iter_mut().for_each(|value| {
                *value = if value.is_nan() { 0.0 } else { norm.apply(*value, self.cut.arcsinh) };
            });
        }
        let future = self.features(0, &values, &known, series)?;
        let (states, real) = self.network.encode(&past, &future, patched.real, &batch.groups)?;
        Ok(Encoded { states, real, norms: patched.norms, patches: patched.count })
    }

    /// The denormalised quantiles, `(series, levels, count * size)`.
    fn decode(&self, encoded: &Encoded, count: usize) -> Result<Vec<f32>> {
        let mut values = floats(&self.network.decode(&encoded.states, count)?)?;
        let each = values.len() / encoded.norms.len().max(1);
        for (row, norm) in values.chunks_exact_mut(each.max(1)).zip(&encoded.norms) {
            row.iter_mut().for_each(|value| *value = norm.undo(*value, self.cut.arcsinh));
        }
        Ok(values)
    }

    /// The trained quantiles of `horizon` steps after each row, `(rows, levels, horizon)`.
    fn predict(&self, batch: &Batch, horizon: usize) -> Result<Vec<f32>> {
        unrolled(batch, horizon, &self.reach(), &|batch, count| {
            self.decode(&self.encode(batch, count)?, count)
        })
    }

    /// The quantiles of one step at the levels `wanted`, interpolated from the trained ones.
    fn quantiles(&self, trained: &[f32], wanted: &[f64]) -> Vec<f32> {
        let levels: Vec<f32> = self.network.config().quantiles.iter().map(|level| *level as f32).collect();
        interpolate_quantiles(&levels, trained, wanted)
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

    fn forward_context(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &INPUTS)?;
        let context = rows(inputs, "context")?;
        let size = self.cut.size;
        let count = series::count(options, "num_output_patches")?.unwrap_or(1);
        series::horizon(count.saturating_mul(size))?;
        let encoded = self.encode(&self.batch(inputs, &context, count)?, count)?;
        let shape = (context.len(), self.network.config().quantiles.len(), count * size);
        let predictions = host(self.decode(&encoded, count)?, shape)?;
        let per_row =
            |value: fn(&Norm) -> f32| host(encoded.norms.iter().map(value).collect(), (context.len(), 1));
        let mask: Vec<f32> = encoded.real.iter().flatten().map(|real| f32::from(u8::from(*real))).collect();
        let mask = host(mask, (context.len(), encoded.real[0].len()))?.to_dtype(DType::I64)?;
        Ok(Tensors::from([
            ("quantile_preds".to_string(), predictions),
            ("loc".to_string(), per_row(|norm| norm.loc)?),
            ("scale".to_string(), per_row(|norm| norm.scale)?),
            ("attention_mask".to_string(), mask),
            ("encoder_last_hidden_state".to_string(), encoded.states.clone()),
            ("last_hidden_state".to_string(), encoded.states),
        ]))
    }

    /// The batch of `context` with the inputs `future_covariates`, of up to `count` patches, and `group_ids`.
    fn batch(&self, inputs: &Tensors, context: &[Vec<f32>], count: usize) -> Result<Batch> {
        let (past, steps) = left_padded(context, usize::MAX);
        let future = self.future(inputs, context.len(), count * self.cut.size)?;
        let known = future.first().map_or(0, Vec::len);
        let groups = self.groups(inputs, context.len())?;
        Ok(Batch { past, steps, future: future.concat(), known, groups })
    }

    /// The input `future_covariates`, of `count` rows and at most `longest` steps; empty if it is not given.
    fn future(&self, inputs: &Tensors, count: usize, longest: usize) -> Result<Vec<Vec<f32>>> {
        if !inputs.contains_key("future_covariates") {
            return Ok(Vec::new());
        }
        let future = rows(inputs, "future_covariates")?;
        let steps = future.first().map_or(0, Vec::len);
        match future.len() == count && steps <= longest {
            true => Ok(future),
            false => Err(Error::input(format!(
                "future_covariates are [{}, {steps}], expected the {count} rows of context and at most \
                 {longest} steps",
                future.len(),
            ))
            .hint("num_output_patches is the number of patches of the future")),
        }
    }

    /// The input `group_ids`, by default a group per row.
    fn groups(&self, inputs: &Tensors, count: usize) -> Result<Vec<i64>> {
        match inputs.get("group_ids") {
            None => Ok((0..count as i64).collect()),
            Some(ids) if ids.dims() == [count] => transfer::to_host(&ids.to_dtype(DType::I64)?),
            Some(ids) => Err(Error::input(format!(
                "group_ids are {:?}, expected one for each of {count} rows",
                ids.dims()
            ))),
        }
    }

    /// `context` is `(series, steps)`, with `group_ids` and `future_covariates` as in `forward`, or `(series, variates, steps)`,
    /// where the variates of a series are a group.
    fn predict_quantiles(&self, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        only_known(inputs, &INPUTS)?;
        let (context, series, groups) = match inputs.get("context").map(|context| context.dims()) {
            Some(&[series, variates, steps]) => {
                let flat = inputs["context"].reshape((series * variates, steps))?;
                let context = rows(&Tensors::from([("context".to_string(), flat)]), "context")?;
                let groups = (0..context.len()).map(|row| (row / variates) as i64).collect();
                (context, series, groups)
            }
            _ => {
                let context = rows(inputs, "context")?;
                let (count, groups) = (context.len(), self.groups(inputs, context.len())?);
                (context, count, groups)
            }
        };
        let (past, steps) = left_padded(&context, self.network.config().context_length);
        let future = self.future(inputs, context.len(), usize::MAX)?;
        let known = future.first().map_or(0, Vec::len);
        let batch = Batch { past, steps, future: future.concat(), known, groups };
        let (mut out, quantiles) = self.prediction(&batch, series, options)?;
        out.insert("quantiles".into(), quantiles);
        let other = &options["trained_levels_call"];
        if !other.is_null() {
            out.insert("quantiles_trained_levels".into(), self.prediction(&batch, series, other)?.1);
        }
        Ok(out)
    }

    /// Predictions and point forecasts by name, and the quantiles, `(series, variates, steps, levels)`.
    fn prediction(&self, batch: &Batch, series: usize, options: &Value) -> Result<(Tensors, Tensor)> {
        let config = self.network.config();
        let reach = config.max_output_patches.saturating_mul(self.cut.size);
        let horizon = series::horizon(series::count(options, "prediction_length")?.unwrap_or(reach))?;
        let wanted = series::levels(options, "quantile_levels")?;
        let told = self.predict(batch, horizon)?;
        let (rows, levels, median) = (batch.groups.len(), config.quantiles.len(), self.median()?);
        let (mut mean, mut quantiles) = (Vec::new(), Vec::new());
        for row in 0..rows {
            for step in 0..horizon {
                let trained = at(&told, (row, step), levels, horizon);
                mean.push(trained[median]);
                quantiles.extend(self.quantiles(&trained, &wanted));
            }
        }
        let variates = rows / series.max(1);
        let quantiles = host(quantiles, (series, variates, horizon, wanted.len()))?;
        let out = Tensors::from([
            ("predictions".to_string(), host(told, (series, variates, levels, horizon))?),
            ("mean".to_string(), host(mean, (series, variates, horizon))?),
        ]);
        Ok((out, quantiles))
    }
}

/// The quantiles of one step of one row of `told`, `(rows, levels, horizon)`.
fn at(told: &[f32], (row, step): (usize, usize), levels: usize, horizon: usize) -> Vec<f32> {
    (0..levels).map(|level| told[(row * levels + level) * horizon + step]).collect()
}

/// The batch of all series with their covariates; each series and its covariates are a group, the series first.
fn batch_with_covariates(series: &[History], horizon: usize, longest: usize) -> Batch {
    let mut pasts: Vec<&[f32]> = Vec::new();
    let (mut groups, mut futures) = (Vec::new(), Vec::new());
    for (group, past) in (0i64..).zip(series) {
        let values = past.covariates.iter().map(|covariate| &covariate.past);
        pasts.extend([&past.values].into_iter().chain(values).map(|values| &values[..]));
        let none = Vec::new();
        let known = past.covariates.iter().map(|covariate| &covariate.future);
        for future in [&none].into_iter().chain(known) {
            groups.push(group);
            futures.extend((0..horizon).map(|step| future.get(step).copied().unwrap_or(f32::NAN)));
        }
    }
    let (past, steps) = left_padded(&pasts, longest);
    Batch { past, steps, future: futures, known: horizon, groups }
}

/// Checks the lengths and values of covariates.
fn check_covariates(series: &[History], horizon: usize) -> Result<()> {
    for (index, past) in series.iter().enumerate() {
        for Covariate { name, past: values, future } in &past.covariates {
            let problem = match (values.len(), future.len()) {
                (found, _) if found != past.values.len() => {
                    Some(format!("has {found} past values for the {} of the series", past.values.len()))
                }
                (_, found) if found != 0 && found != horizon => {
                    Some(format!("has {found} future values for a horizon of {horizon}"))
                }
                _ if series::infinite(values).or(series::infinite(future)).is_some() => {
                    Some("holds an infinite value".to_string())
                }
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(Error::input(format!("series {index}: the covariate \"{name}\" {problem}"))
                    .hint("mark unknown values as NaN, or leave the future empty"));
            }
        }
    }
    Ok(())
}

impl Forecaster for Chronos2Pipeline {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        series::check(series)?;
        check_covariates(series, options.horizon)?;
        let config = self.network.config();
        let (levels, median) = (config.quantiles.len(), self.median()?);
        let long = options.horizon > config.max_output_patches.saturating_mul(self.cut.size);
        let most = if long { BATCH_SIZE / 9 } else { BATCH_SIZE };
        let mut forecasts = Vec::with_capacity(series.len());
        let mut rest = series;
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|past| {
                rows += 1 + past.covariates.len();
                rows <= most
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let told = self.predict(
                &batch_with_covariates(now, options.horizon, config.context_length),
                options.horizon,
            )?;
            let mut row = 0;
            for past in now {
                let steps = (0..options.horizon).map(|step| {
                    let trained = at(&told, (row, step), levels, options.horizon);
                    (trained[median], self.quantiles(&trained, &options.quantiles))
                });
                forecasts.push(collect(steps, options.quantiles.len()));
                row += 1 + past.covariates.len();
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

    fn reads_covariates(&self) -> bool {
        true
    }
}

impl Trainable for Chronos2Pipeline {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = Chronos2::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The pinball loss of the quantiles, and of `future_target`, `(rows, steps)`, both normalised by the context: twice
    /// the mean over steps and rows, summed over the levels. `context`, `group_ids` and `future_covariates` are as in
    /// `forward`. What `future_target_mask` masks, by default NaN, and values that are known ahead are not learned.
    ///
    /// The option `num_output_patches` is the number of patches of the future, by default as many as the targets take.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        if let Some(name) =
            options.as_object().and_then(|o| o.keys().find(|name| *name != "num_output_patches"))
        {
            return Err(
                Error::input(format!("the loss has no option \"{name}\"")).hint("known: num_output_patches")
            );
        }
        only_known(inputs, &[&INPUTS[..], &["future_target", "future_target_mask"]].concat())?;
        let context = rows(inputs, "context")?;
        let size = self.cut.size;
        let steps = rows(inputs, "future_target")?[0].len();
        let count = series::count(options, "num_output_patches")?.unwrap_or(steps.div_ceil(size)).max(1);
        series::horizon(count.saturating_mul(size))?;
        let batch = self.batch(inputs, &context, count)?;
        let encoded = self.encode(&batch, count)?;
        let shape = (context.len(), count * size);
        let normalise = |row: usize, value: f32| encoded.norms[row].apply(value, self.cut.arcsinh);
        let names = ["future_target", "future_target_mask"];
        let (targets, mut weights) = series::masked_targets(inputs, names, shape, normalise)?;
        for (weight, known) in weights.iter_mut().zip(batch.known_future(count * size)) {
            *weight *= f32::from(u8::from(known.is_nan()));
        }
        let told = self.network.decode(&encoded.states, count)?;
        let terms = pinball(&told, &targets, &self.network.config().quantiles)?;
        let weights = Tensor::from_vec(weights, (shape.0, 1, shape.1), terms.device())?;
        let loss = (terms.broadcast_mul(&weights)?.mean(2)?.sum(1)?.mean_all()? * 2.0)?;
        Ok(Loss::mean(loss, context.len() as f64))
    }

    /// Random windows of series. Each series and its covariates, whose future is not known, are a group of rows;
    /// `future_target` is NaN where nothing is learned.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let config = self.network.config();
        let longest = config.max_output_patches.saturating_mul(self.cut.size);
        let horizon = options.horizon.unwrap_or(longest);
        if !(1..=longest).contains(&horizon) {
            return Err(Error::input(format!(
                "horizon is {horizon}, expected 1 to {longest}, the steps of one forecast"
            )));
        }
        let (windows, truncated) = series::windows(examples, config.context_length, horizon, options)?;
        let mut pasts: Vec<&[f32]> = Vec::new();
        let (mut groups, mut future) = (Vec::new(), Vec::new());
        for (group, window) in (0i64..).zip(&windows) {
            let rows = 1 + window.history().covariates.len();
            pasts.push(window.past());
            pasts.extend(window.covariates());
            groups.extend(vec![group; rows]);
            future.extend_from_slice(window.future());
            future.resize(future.len() + (rows - 1) * horizon, f32::NAN);
        }
        let (context, steps) = left_padded(&pasts, config.context_length);
        let rows = pasts.len();
        let mut batch = TrainingBatch::new(Tensors::from([
            ("context".to_string(), host(context, (rows, steps))?),
            ("group_ids".to_string(), Tensor::from_vec(groups, rows, &Device::Cpu)?),
            ("future_target".to_string(), host(future, (rows, horizon))?),
        ]));
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(r"^output_patch_embedding\.")
    }
}

impl Pipeline for Chronos2Pipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// `context`, `(rows, steps)`, to `quantile_preds`, `(rows, quantiles, steps)`. Rows of equal
    /// `group_ids`, `(rows)`, attend to each other; `future_covariates`, `(rows, steps)`, are known future values, NaN for
    /// unknown ones.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_context(inputs, &Value::Null)
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" | "encode" => self.forward_context(inputs, options),
            "generate" => self.predict_quantiles(inputs, options),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// The mean of the encoder output over the patches of the past with a value. The series of an item are separate groups.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let longest = self.network.config().context_length;
        series::embed(items, longest, |series| {
            let batch = batch_with_covariates(series, 0, longest);
            let encoded = self.encode(&batch, 1)?;
            let chosen: Vec<Vec<bool>> =
                encoded.real.iter().map(|row| row[..encoded.patches].to_vec()).collect();
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
        let config = self.network.config();
        GenerationConfig::greedy(config.max_output_patches.saturating_mul(config.output_patch_size))
    }
}

/// A small config that uses every branch.
pub(crate) fn sample() -> Value {
    json!({
        "architectures": ["Chronos2Model"], "chronos_pipeline_class": "Chronos2Pipeline", "model_type": "t5",
        "d_model": 32, "d_kv": 6, "d_ff": 64, "num_layers": 3, "num_heads": 3, "layer_norm_epsilon": 1e-6,
        "rope_theta": 3000.0, "feed_forward_proj": "relu",
        "chronos_config": {
            "context_length": 40, "input_patch_size": 4, "input_patch_stride": 4, "output_patch_size": 4,
            "max_output_patches": 2, "quantiles": [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95], "use_reg_token": true,
            "use_arcsinh": true, "time_encoding_scale": 50
        }
    })
}
