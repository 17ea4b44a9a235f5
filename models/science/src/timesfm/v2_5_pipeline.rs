//! Pipeline of TimesFM 2.5.

use candle_core::Tensor;
use fauna_shared::Result;
use fauna_shared::item::Tensors;
use fauna_shared::model::{Forecast, ForecastConfig, History};
use serde_json::{Value, json};

use super::pipeline::{
    self, ForwardOptions, TimesFmPipeline, Version, denormalise, denormalised, forecast, input_rows,
    output_series, predictions, whole_patches,
};
use super::v2_5::TimesFm25;
use crate::chronos::patches::{Norm, join};
use crate::series::{self, host, last, mean_of};

/// Batch size: enough rows for all cores, within a bounded memory.
const BATCH_SIZE: usize = 32;

/// Standard deviations below this count as zero.
const TOLERANCE: f32 = 1e-6;

/// TimesFM 2.5.
///
/// ```
/// use fauna_shared::model::{Pipeline, ForecastConfig, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // Random weights need only a config.
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("config.json"), (fauna_science::timesfm::v2_5::FAMILY.sample)().to_string())?;
/// let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
/// let model = Zoo::new([&fauna_science::timesfm::v2_5::FAMILY]).open(folder.path().to_str().unwrap(), &options)?;
///
/// let past = History::from(vec![1.0, 2.0, f32::NAN, 4.0]);
/// let wanted = ForecastConfig { horizon: 3, ..ForecastConfig::default() };
/// let forecast = model.forecaster()?.forecast(&[past], &wanted)?.remove(0);
/// // Series without negative values have forecasts without.
/// assert!(forecast.mean.iter().all(|value| *value >= 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type TimesFm25Pipeline = TimesFmPipeline<TimesFm25>;

/// Output of the network for a batch.
struct Encoded {
    /// `(rows, patches, hidden_size)`.
    states: Tensor,
    /// Which patches hold a value, `(rows, patches)`.
    real: Vec<Vec<bool>>,
    /// The normalisation of the last patch of each row.
    norms: Vec<Norm>,
}

/// Normalises a value; the scale of a constant series is 1.
fn normalise(value: f32, norm: &Norm) -> f32 {
    let scale = if norm.scale < TOLERANCE { 1.0 } else { norm.scale };
    (value - norm.loc) / scale
}

/// Mean and sample standard deviation of a series that is padded with zeros to `steps`.
fn padded_norm(series: &[f32], steps: usize) -> Norm {
    let count = steps as f64;
    let mean = series.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let square = |value: f64| (value - mean).powi(2);
    let inside: f64 = series.iter().map(|value| square(f64::from(*value))).sum();
    let padding = (steps - series.len()) as f64 * square(0.0);
    Norm { loc: mean as f32, scale: ((inside + padding) / (count - 1.0)).sqrt() as f32 }
}

/// RunningStatistics count, mean and variance.
#[derive(Default)]
struct RunningStatistics {
    count: f64,
    mean: f64,
    variance: f64,
}

impl RunningStatistics {
    /// Adds the values of a patch.
    fn add(&mut self, values: &[f32]) {
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

impl TimesFm25Pipeline {
    /// Encodes the last `steps` of each of `rows`, shorter ones padded on the left.
    fn encode(&self, rows: &[Vec<f32>], steps: usize) -> Result<Encoded> {
        let size = self.network.config().patch_length;
        let (mut values, mut pads) = (vec![0f32; rows.len() * steps], vec![1f32; rows.len() * steps]);
        let (mut norms, mut real) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (i, row) in rows.iter().enumerate() {
            let row = last(row, steps);
            let padding = steps - row.len();
            let (mut running, mut is_real) = (RunningStatistics::default(), Vec::with_capacity(steps / size));
            for start in (0..steps).step_by(size) {
                let known = start.max(padding)..(start + size).max(padding);
                let patch = &row[known.start - padding..known.end - padding];
                running.add(patch);
                let norm = running.norm();
                let place = i * steps + known.start;
                pads[place..place + patch.len()].fill(0.0);
                let into = values[place..].iter_mut().zip(patch);
                into.for_each(|(into, value)| *into = normalise(*value, &norm));
                is_real.push(!patch.is_empty());
            }
            norms.push(running.norm());
            real.push(is_real);
        }
        let shape = (rows.len(), steps / size, 2 * size);
        let patches = self.place.tensor(join(&[&values, &pads], size), shape)?;
        Ok(Encoded { states: self.network.encode(&patches, &real)?, real, norms })
    }

    /// The outputs of the next `horizon` steps of normalised rows, `(rows, horizon * channels)`. Beyond one forward pass the
    /// point forecasts are appended to the rows; quantiles are those of the quantile head within its length.
    /// `steps` is the context of the first encoded. With `flip`, the outputs of the rows and of their negatives are averaged.
    fn predict(
        &self,
        rows: &[Vec<f32>],
        steps: usize,
        horizon: usize,
        flip: bool,
    ) -> Result<(Vec<Vec<f32>>, Encoded)> {
        let c = self.network.config();
        let (channels, point) = (c.channels(), c.point());
        let negated = rows.iter().map(|row| row.iter().map(|value| -value).collect::<Vec<f32>>());
        let mut rows: Vec<Vec<f32>> = match flip {
            true => rows.iter().cloned().chain(negated).collect(),
            false => rows.to_vec(),
        };
        let encoded = self.encode(&rows, steps)?;
        let spreads = match c.use_continuous_quantile_head {
            true => denormalise(&self.network.spreads(&encoded.states)?, &encoded.norms)?,
            false => Vec::new(),
        };
        let mut outputs: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
        let mut points = denormalise(&self.network.points(&encoded.states)?, &encoded.norms)?;
        loop {
            for ((new, row), outputs) in
                points.chunks_exact(c.horizon_length * channels).zip(&mut rows).zip(&mut outputs)
            {
                row.extend(new.chunks_exact(channels).map(|step| step[point]));
                outputs.extend_from_slice(new);
            }
            if outputs.first().is_none_or(|outputs| outputs.len() >= horizon * channels) {
                break;
            }
            let encoded = self.encode(&rows, self.steps_for(&rows))?;
            points = denormalise(&self.network.points(&encoded.states)?, &encoded.norms)?;
        }
        outputs.iter_mut().for_each(|outputs| outputs.truncate(horizon * channels));
        let each = c.output_quantile_len * channels;
        let mut spreads: Vec<Vec<f32>> = spreads.chunks_exact(each).map(<[f32]>::to_vec).collect();
        if flip {
            outputs = average_flipped(outputs, channels);
            spreads = average_flipped(spreads, channels);
        }
        for (outputs, spreads) in outputs.iter_mut().zip(&spreads) {
            for (step, spread) in outputs.chunks_exact_mut(channels).zip(spreads.chunks_exact(channels)) {
                let middle = step[point];
                for (channel, value) in step.iter_mut().enumerate().skip(1).filter(|(i, _)| *i != point) {
                    *value = spread[channel] - spread[point] + middle;
                }
            }
        }
        Ok((outputs, encoded))
    }

    /// Series normalised as if padded to the context length, with their norms.
    fn normalised(&self, series: &[Vec<f32>]) -> (Vec<Vec<f32>>, Vec<Norm>) {
        let longest = self.network.config().context_length;
        let kept = || series.iter().map(|one| last(one, longest));
        let norms: Vec<Norm> = kept().map(|one| padded_norm(one, longest)).collect();
        let rows =
            kept().zip(&norms).map(|(one, norm)| one.iter().map(|value| normalise(*value, norm)).collect());
        (rows.collect(), norms)
    }

    fn steps_for(&self, rows: &[Vec<f32>]) -> usize {
        let c = self.network.config();
        pipeline::steps_for(rows, c.patch_length, c.context_length)
    }
}

/// The mean of the outputs of each row and of the negated outputs of its negative, which are the second half.
fn average_flipped(outputs: Vec<Vec<f32>>, channels: usize) -> Vec<Vec<f32>> {
    let (plain, negated) = outputs.split_at(outputs.len() / 2);
    let pair = |(plain, negated): (&Vec<f32>, &Vec<f32>)| {
        let value = |(i, value): (usize, &f32)| {
            let channel = i % channels;
            // The quantiles of the negative are in reverse order.
            let other = if channel == 0 { 0 } else { channels - channel };
            (value - negated[i - channel + other]) / 2.0
        };
        plain.iter().enumerate().map(value).collect()
    };
    plain.iter().zip(negated).map(pair).collect()
}

/// [`average_flipped`] of a tensor `(2 * rows, steps, channels)`.
fn flipped_mean(outputs: &Tensor) -> Result<Tensor> {
    let (rows, _, channels) = outputs.dims3()?;
    let (plain, negated) = (outputs.narrow(0, 0, rows / 2)?, outputs.narrow(0, rows / 2, rows / 2)?);
    let others = (0..channels).map(|channel| if channel == 0 { 0 } else { (channels - channel) as u32 });
    let others = Tensor::from_iter(others, outputs.device())?;
    Ok(((plain - negated.contiguous()?.index_select(&others, 2)?)? / 2.0)?)
}

/// The outputs `points`, `(rows, steps, channels)`, whose quantiles are those of the quantile head, `spreads`, within
/// its length, moved by the difference of the two point forecasts.
fn with_spreads(points: &Tensor, spreads: &Tensor, point: usize) -> Result<Tensor> {
    let (_, horizon, channels) = points.dims3()?;
    let steps = horizon.min(spreads.dim(1)?);
    let (near, spreads) = (points.narrow(1, 0, steps)?, spreads.narrow(1, 0, steps)?);
    let offset = (near.narrow(2, point, 1)? - spreads.narrow(2, point, 1)?)?;
    let moved = spreads.broadcast_add(&offset)?;
    let channel = |channel: usize| match channel == 0 || channel == point {
        true => near.narrow(2, channel, 1),
        false => moved.narrow(2, channel, 1),
    };
    let near = Tensor::cat(&(0..channels).map(channel).collect::<candle_core::Result<Vec<_>>>()?, 2)?;
    match steps < horizon {
        true => Ok(Tensor::cat(&[near, points.narrow(1, steps, horizon - steps)?], 1)?),
        false => Ok(near),
    }
}

impl Version for TimesFm25 {
    const ARCHITECTURE: &'static str = "TimesFm2_5ModelForPrediction";

    fn context_length(&self) -> usize {
        self.config().context_length
    }

    fn horizon_length(&self) -> usize {
        self.config().horizon_length
    }

    fn quantiles(&self) -> &[f64] {
        &self.config().quantiles
    }

    fn run(pipeline: &TimesFm25Pipeline, inputs: &Tensors, options: &ForwardOptions) -> Result<Tensors> {
        let c = pipeline.network.config();
        let (series, _) = pipeline::inputs(inputs, false)?;
        let steps = whole_patches(options.context_length.unwrap_or(c.context_length), c.patch_length)?;
        series::horizon(steps)?;
        let series: Vec<Vec<f32>> = series.iter().map(|one| last(one, steps).to_vec()).collect();
        let is_positive = series.iter().flatten().all(|value| *value >= 0.0);
        let rows = input_rows(&series, options.window_size);
        let norms: Vec<Norm> = rows.iter().map(|row| padded_norm(row, steps)).collect();
        let normalised: Vec<Vec<f32>> = rows
            .iter()
            .zip(&norms)
            .map(|(row, norm)| row.iter().map(|value| normalise(*value, norm)).collect())
            .collect();
        let flip = options.flip_invariance.unwrap_or(c.force_flip_invariance);
        let (outputs, encoded) = pipeline.predict(&normalised, steps, c.horizon_length, flip)?;
        let outputs: Vec<f32> = outputs
            .iter()
            .zip(&norms)
            .flat_map(|(outputs, norm)| outputs.iter().map(|value| norm.undo(*value, false)))
            .collect();
        let clip = options.truncate_negative.unwrap_or(c.infer_is_positive) && is_positive;
        let outputs = output_series(outputs, rows.len(), options.window_size, clip);
        let mut out = predictions(outputs, series.len(), c.channels(), c.point())?;
        let norms = &encoded.norms[..rows.len()];
        let per_row = |value: fn(&Norm) -> f32| host(norms.iter().map(value).collect(), rows.len());
        out.insert("loc".into(), per_row(|norm| norm.loc)?);
        out.insert("scale".into(), per_row(|norm| norm.scale.max(TOLERANCE))?);
        out.insert("last_hidden_state".into(), encoded.states.narrow(0, 0, rows.len())?);
        Ok(out)
    }

    fn forecast(
        pipeline: &TimesFm25Pipeline,
        series: &[Vec<f32>],
        _histories: &[History],
        options: &ForecastConfig,
    ) -> Result<Vec<Forecast>> {
        let c = pipeline.network.config();
        let mut forecasts = Vec::with_capacity(series.len());
        for series in series.chunks(BATCH_SIZE) {
            let (rows, norms) = pipeline.normalised(series);
            let steps = pipeline.steps_for(&rows);
            let (outputs, _) = pipeline.predict(&rows, steps, options.horizon, c.force_flip_invariance)?;
            for ((mut outputs, norm), series) in outputs.into_iter().zip(&norms).zip(series) {
                let context = last(series, c.context_length);
                let least = match c.infer_is_positive && context.iter().all(|value| *value >= 0.0) {
                    true => 0.0,
                    false => f32::NEG_INFINITY,
                };
                outputs.iter_mut().for_each(|value| *value = norm.undo(*value, false).max(least));
                forecasts.push(forecast(&outputs, c.point(), &c.quantiles, options));
            }
        }
        Ok(forecasts)
    }

    fn learned(
        pipeline: &TimesFm25Pipeline,
        inputs: &Tensors,
        mut future: Vec<Vec<f32>>,
        options: &ForwardOptions,
    ) -> Result<(Tensor, Vec<Vec<f32>>)> {
        let c = pipeline.network.config();
        let (series, _) = pipeline::inputs(inputs, false)?;
        let steps = whole_patches(options.context_length.unwrap_or(c.context_length), c.patch_length)?;
        series::horizon(steps)?;
        let norms: Vec<Norm> = series.iter().map(|one| padded_norm(last(one, steps), steps)).collect();
        let normalised = |row: &[f32], norm: &Norm| -> Vec<f32> {
            row.iter().map(|value| normalise(*value, norm)).collect()
        };
        let mut rows: Vec<Vec<f32>> =
            series.iter().zip(&norms).map(|(one, norm)| normalised(last(one, steps), norm)).collect();
        let flip = options.flip_invariance.unwrap_or(c.force_flip_invariance);
        if flip {
            let negated = |row: &Vec<f32>| row.iter().map(|value| -value).collect();
            rows.extend(rows.iter().map(negated).collect::<Vec<Vec<f32>>>());
        }
        let encoded = pipeline.encode(&rows, steps)?;
        let of = |outputs: Tensor| -> Result<Tensor> {
            let outputs = denormalised(&outputs, &encoded.norms)?;
            if flip { flipped_mean(&outputs) } else { Ok(outputs) }
        };
        let points = of(pipeline.network.points(&encoded.states)?)?;
        let outputs = match c.use_continuous_quantile_head {
            true => with_spreads(&points, &of(pipeline.network.spreads(&encoded.states)?)?, c.point())?,
            false => points,
        };
        for (future, norm) in future.iter_mut().zip(&norms) {
            *future = normalised(future, norm);
        }
        Ok((outputs, future))
    }

    fn point(&self) -> usize {
        self.config().point()
    }

    fn frequencies(&self) -> Option<usize> {
        None
    }

    fn head() -> &'static str {
        r"^output_projection_(point|quantiles)\."
    }

    fn pooled_states(pipeline: &TimesFm25Pipeline, series: &[Vec<f32>]) -> Result<Tensor> {
        let (rows, _) = pipeline.normalised(series);
        let encoded = pipeline.encode(&rows, pipeline.steps_for(&rows))?;
        mean_of(&encoded.states, &encoded.real)
    }
}

/// A small config that uses every branch.
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
