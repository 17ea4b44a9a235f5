//! TimesFM 2.5 as a pipeline.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Forecast, ForecastConfig, Forecaster, History, Pipeline, Pretrained, SampleSizes,
};
use serde_json::{Value, json};

use super::pipeline::{
    self, Wishes, all_decomposed, composed, forecast, predictions, readable, undone, whole_patches,
};
use super::v2_5::TimesFm25;
use crate::chronos::patches::{Norm, join};
use crate::series::{self, Place, host, last, mean_of};

/// Rows of one pass: enough to keep every core busy, few enough to bound the memory.
const ROWS_A_PASS: usize = 32;

/// Spreads below this count as none.
const TOLERANCE: f32 = 1e-6;

/// A TimesFM 2.5.
///
/// ```
/// use fauna_shared::model::{Pipeline, ForecastConfig, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // A network of random weights: only a config is needed.
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("config.json"), (fauna_science::timesfm::v2_5::FAMILY.sample)().to_string())?;
/// let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
/// let model = Zoo::new([&fauna_science::timesfm::v2_5::FAMILY]).open(folder.path().to_str().unwrap(), &options)?;
///
/// let past = History::from(vec![1.0, 2.0, f32::NAN, 4.0]);
/// let wanted = ForecastConfig { horizon: 3, ..ForecastConfig::default() };
/// let forecast = model.forecaster()?.forecast(&[past], &wanted)?.remove(0);
/// // What was never below 0 is forecast not to be.
/// assert!(forecast.mean.iter().all(|value| *value >= 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct V25Pipeline {
    network: TimesFm25,
    place: Place,
    card: Card,
}

/// What one pass made of rows.
struct Pass {
    states: Tensor,
    real: Vec<Vec<bool>>,
    /// What each row's last patch was normalised by.
    norms: Vec<Norm>,
}

/// `values` by `norm`; one that does not move keeps its distances.
fn normed(value: f32, norm: &Norm) -> f32 {
    let scale = if norm.scale < TOLERANCE { 1.0 } else { norm.scale };
    (value - norm.loc) / scale
}

/// Mean and spread (that of a sample) of a series with zeros before it, `steps` in all.
fn of_padded(series: &[f32], steps: usize) -> Norm {
    let count = steps as f64;
    let mean = series.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let square = |value: f64| (value - mean).powi(2);
    let inside: f64 = series.iter().map(|value| square(f64::from(*value))).sum();
    let padding = (steps - series.len()) as f64 * square(0.0);
    Norm { loc: mean as f32, scale: ((inside + padding) / (count - 1.0)).sqrt() as f32 }
}

/// Count, mean and variance of all values so far.
#[derive(Default)]
struct Running {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Running {
    /// Takes in the values of a patch that are no padding.
    fn take(&mut self, values: &[f32]) {
        if values.is_empty() {
            return;
        }
        let count = values.len() as f64;
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        let all = self.count + count;
        let joint = (self.count * self.mean + count * mean) / all;
        let within = self.count * self.variance + count * variance;
        let between = self.count * (self.mean - joint).powi(2) + count * (mean - joint).powi(2);
        *self = Self { count: all, mean: joint, variance: (within + between) / all };
    }

    fn norm(&self) -> Norm {
        Norm { loc: self.mean as f32, scale: self.variance.max(0.0).sqrt() as f32 }
    }
}

impl V25Pipeline {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Whatever is wrong with config or tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<TimesFm25>()?;
        let architecture = pretrained.architecture("TimesFm2_5ModelForPrediction");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(network.config().context_length);
        Ok(Self { place: Place::of(pretrained), network, card })
    }

    /// The network.
    pub fn network(&self) -> &TimesFm25 {
        &self.network
    }

    /// Reads the last `steps` of each of `rows`, padding before the shorter ones.
    fn encode(&self, rows: &[Vec<f32>], steps: usize) -> Result<Pass> {
        let size = self.network.config().patch_length;
        let (mut values, mut pads) = (vec![0f32; rows.len() * steps], vec![1f32; rows.len() * steps]);
        let (mut norms, mut real) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (i, row) in rows.iter().enumerate() {
            let row = last(row, steps);
            let padding = steps - row.len();
            let (mut running, mut is_real) = (Running::default(), Vec::with_capacity(steps / size));
            for start in (0..steps).step_by(size) {
                let known = start.max(padding)..(start + size).max(padding);
                let patch = &row[known.start - padding..known.end - padding];
                running.take(patch);
                let norm = running.norm();
                let place = i * steps + known.start;
                pads[place..place + patch.len()].fill(0.0);
                let into = values[place..].iter_mut().zip(patch);
                into.for_each(|(into, value)| *into = normed(*value, &norm));
                // Padding is told by a patch's last step.
                is_real.push(!patch.is_empty());
            }
            norms.push(running.norm());
            real.push(is_real);
        }
        let shape = (rows.len(), steps / size, 2 * size);
        let patches = self.place.tensor(join(&[&values, &pads], size), shape)?;
        Ok(Pass { states: self.network.encode(&patches, &real)?, real, norms })
    }

    /// All channels of the next `horizon` steps of normalised rows, `(rows, horizon, channels)`. Beyond one pass the
    /// point forecasts are taken for what happened; quantiles are those of the head for them as far as it reaches.
    /// `steps`: how much of the rows is read in the first pass. Mirrored rows follow the others if `flip`.
    fn predict(
        &self,
        rows: &[Vec<f32>],
        steps: usize,
        horizon: usize,
        flip: bool,
    ) -> Result<(Vec<Vec<f32>>, Pass)> {
        let c = self.network.config();
        let (channels, point) = (c.channels(), c.point());
        let mirrored = rows.iter().map(|row| row.iter().map(|value| -value).collect::<Vec<f32>>());
        let mut rows: Vec<Vec<f32>> = match flip {
            true => rows.iter().cloned().chain(mirrored).collect(),
            false => rows.to_vec(),
        };
        let pass = self.encode(&rows, steps)?;
        let spreads = match c.use_continuous_quantile_head {
            true => undone(&self.network.spreads(&pass.states)?, &pass.norms)?,
            false => Vec::new(),
        };
        let mut told: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
        let mut points = undone(&self.network.points(&pass.states)?, &pass.norms)?;
        loop {
            for ((new, row), told) in
                points.chunks_exact(c.horizon_length * channels).zip(&mut rows).zip(&mut told)
            {
                row.extend(new.chunks_exact(channels).map(|step| step[point]));
                told.extend_from_slice(new);
            }
            if told.first().is_none_or(|told| told.len() >= horizon * channels) {
                break;
            }
            let pass = self.encode(&rows, self.steps_for(&rows))?;
            points = undone(&self.network.points(&pass.states)?, &pass.norms)?;
        }
        told.iter_mut().for_each(|told| told.truncate(horizon * channels));
        let each = c.output_quantile_len * channels;
        let mut spreads: Vec<Vec<f32>> = spreads.chunks_exact(each).map(<[f32]>::to_vec).collect();
        if flip {
            told = unmirrored(told, channels);
            spreads = unmirrored(spreads, channels);
        }
        for (told, spreads) in told.iter_mut().zip(&spreads) {
            for (step, spread) in told.chunks_exact_mut(channels).zip(spreads.chunks_exact(channels)) {
                let middle = step[point];
                for (channel, value) in step.iter_mut().enumerate().skip(1).filter(|(i, _)| *i != point) {
                    *value = spread[channel] - spread[point] + middle;
                }
            }
        }
        Ok((told, pass))
    }

    fn forward_with(&self, inputs: &Tensors, wishes: &Wishes) -> Result<Tensors> {
        let c = self.network.config();
        let (series, _) = pipeline::inputs(inputs, false)?;
        let steps = whole_patches(wishes.context.unwrap_or(c.context_length), c.patch_length)?;
        series::horizon(steps)?;
        let series: Vec<Vec<f32>> = series.iter().map(|one| last(one, steps).to_vec()).collect();
        let positive = series.iter().flatten().all(|value| *value >= 0.0);
        let rows = match wishes.window {
            Some(window) => all_decomposed(&series, window),
            None => series.clone(),
        };
        let norms: Vec<Norm> = rows.iter().map(|row| of_padded(row, steps)).collect();
        let normed_rows: Vec<Vec<f32>> = rows
            .iter()
            .zip(&norms)
            .map(|(row, norm)| row.iter().map(|value| normed(*value, norm)).collect())
            .collect();
        let flip = wishes.flip.unwrap_or(c.force_flip_invariance);
        let (told, pass) = self.predict(&normed_rows, steps, c.horizon_length, flip)?;
        let mut told: Vec<f32> = told
            .iter()
            .zip(&norms)
            .flat_map(|(told, norm)| told.iter().map(|value| norm.undo(*value, false)))
            .collect();
        if wishes.window.is_some() {
            told = composed(&told, told.len() / rows.len().max(1));
        }
        if wishes.truncate.unwrap_or(c.infer_is_positive) && positive {
            told.iter_mut().for_each(|value| *value = value.max(0.0));
        }
        let mut out = predictions(told, series.len(), c.channels(), c.point())?;
        let per_row =
            |value: fn(&Norm) -> f32| host(pass.norms[..rows.len()].iter().map(value).collect(), rows.len());
        out.insert("loc".into(), per_row(|norm| norm.loc)?);
        out.insert("scale".into(), per_row(|norm| norm.scale.max(TOLERANCE))?);
        out.insert("last_hidden_state".into(), pass.states.narrow(0, 0, rows.len())?);
        Ok(out)
    }

    /// Series normalised as with zeros before them up to the whole context, and by what.
    fn normalised(&self, series: &[Vec<f32>]) -> (Vec<Vec<f32>>, Vec<Norm>) {
        let longest = self.network.config().context_length;
        let kept = || series.iter().map(|one| last(one, longest));
        let norms: Vec<Norm> = kept().map(|one| of_padded(one, longest)).collect();
        let rows =
            kept().zip(&norms).map(|(one, norm)| one.iter().map(|value| normed(*value, norm)).collect());
        (rows.collect(), norms)
    }

    fn steps_for(&self, rows: &[Vec<f32>]) -> usize {
        let c = self.network.config();
        pipeline::steps_for(rows, c.patch_length, c.context_length)
    }
}

/// The mean of each row and of what its mirror image says, mirrored back; mirror images are the second half of `told`.
fn unmirrored(told: Vec<Vec<f32>>, channels: usize) -> Vec<Vec<f32>> {
    let (plain, mirrored) = told.split_at(told.len() / 2);
    let pair = |(plain, mirrored): (&Vec<f32>, &Vec<f32>)| {
        let value = |(i, value): (usize, &f32)| {
            let channel = i % channels;
            // The first channel stays, the quantiles change places.
            let other = if channel == 0 { 0 } else { channels - channel };
            (value - mirrored[i - channel + other]) / 2.0
        };
        plain.iter().enumerate().map(value).collect()
    };
    plain.iter().zip(mirrored).map(pair).collect()
}

impl Forecaster for V25Pipeline {
    fn forecast(&self, pasts: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        let c = self.network.config();
        let series = readable(pasts)?;
        let mut forecasts = Vec::with_capacity(series.len());
        for series in series.chunks(ROWS_A_PASS) {
            let (rows, norms) = self.normalised(series);
            let steps = self.steps_for(&rows);
            let (told, _) = self.predict(&rows, steps, options.horizon, c.force_flip_invariance)?;
            for ((mut told, norm), series) in told.into_iter().zip(&norms).zip(series) {
                let kept = last(series, c.context_length);
                let least = match c.infer_is_positive && kept.iter().all(|value| *value >= 0.0) {
                    true => 0.0,
                    false => f32::NEG_INFINITY,
                };
                told.iter_mut().for_each(|value| *value = norm.undo(*value, false).max(least));
                forecasts.push(forecast(&told, c.point(), &c.quantiles, options));
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

impl Pipeline for V25Pipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// `past_values.0`, `past_values.1`, …, `(steps)` each, or `past_values`, `(series, steps)`, to `mean_predictions`,
    /// `(series, steps)`, and `full_predictions`, `(series, steps, 1 + quantiles)`.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        self.forward_with(inputs, &Wishes::default())
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => self.forward_with(inputs, &Wishes::of(options)?),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// The mean of the last layer's states over the patches that hold a value.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        series::embed(items, self.network.config().context_length, |pasts| {
            let (rows, _) = self.normalised(&readable(pasts)?);
            let pass = self.encode(&rows, self.steps_for(&rows))?;
            mean_of(&pass.states, &pass.real)
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

    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        series::sample("past_values", method, &["forward"], sizes)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::greedy(self.network.config().horizon_length)
    }
}

/// A small config with every branch awake.
pub(crate) fn sample() -> Value {
    json!({
        "architectures": ["TimesFm2_5ModelForPrediction"], "model_type": "timesfm2_5", "patch_length": 4,
        "context_length": 24, "horizon_length": 6, "num_hidden_layers": 3, "hidden_size": 32,
        "intermediate_size": 64, "head_dim": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "quantiles": [0.1, 0.5, 0.8], "attention_bias": true, "use_bias": true,
        "output_quantile_len": 8, "decode_index": 2, "activation": "swish", "use_continuous_quantile_head": true,
        "force_flip_invariance": true, "infer_is_positive": true,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}
    })
}
