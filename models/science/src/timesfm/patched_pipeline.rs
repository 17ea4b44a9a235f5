//! Pipeline of TimesFM 1.0 and 2.0.

use candle_core::Tensor;
use fauna_shared::item::Tensors;
use fauna_shared::model::{Forecast, ForecastConfig, History};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::patched::{Config, TimesFm};
use super::pipeline::{
    self, ForwardOptions, TimesFmPipeline, Version, denormalise, denormalised, forecast, frequency_id,
    input_rows, output_series, predictions, steps_for, whole_patches,
};
use crate::chronos::patches::{Norm, join};
use crate::series::{host, last, mean_of};

/// Batch size: enough rows for all cores, within a bounded memory.
const BATCH_SIZE: usize = 64;

/// Number of values that a patch needs for its mean and standard deviation.
const MIN_VALUES: usize = 3;

/// TimesFM 1.0 or 2.0.
///
/// ```
/// use fauna_shared::model::{Pipeline, ForecastConfig, FrequencyClass, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // Random weights need only a config.
/// let folder = tempfile::tempdir()?;
/// std::fs::write(folder.path().join("config.json"), (fauna_science::timesfm::patched::FAMILY.sample)().to_string())?;
/// let options = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
/// let model = Zoo::new([&fauna_science::timesfm::patched::FAMILY]).open(folder.path().to_str().unwrap(), &options)?;
///
/// let monthly = History { frequency_class: FrequencyClass::Medium, ..History::from(vec![1.0, 2.0, f32::NAN, 4.0]) };
/// let wanted = ForecastConfig { horizon: 3, quantiles: vec![0.25], ..ForecastConfig::default() };
/// assert_eq!(model.forecaster()?.forecast(&[monthly], &wanted)?[0].mean.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type PatchedPipeline = TimesFmPipeline<TimesFm>;

/// Output of the network for a batch.
struct Encoded {
    /// `(series, patches, hidden_size)`.
    states: Tensor,
    /// Which patches hold a value, `(series, patches)`.
    real: Vec<Vec<bool>>,
    norms: Vec<Norm>,
}

impl PatchedPipeline {
    /// Encodes the last `steps` of each of `series`, shorter ones padded on the left.
    fn encode(&self, series: &[Vec<f32>], frequencies: &[u32], steps: usize) -> Result<Encoded> {
        let c = self.network.config();
        let (count, size) = (series.len(), c.patch_length);
        let (mut values, mut pads) = (Vec::with_capacity(count * steps), Vec::with_capacity(count * steps));
        for one in series {
            let kept = last(one, steps);
            values.extend(std::iter::repeat_n(0f32, steps - kept.len()));
            pads.extend(std::iter::repeat_n(1f32, steps - kept.len()));
            values.extend_from_slice(kept);
            let is_gap = |value: &f32| f32::from(u8::from((value - c.pad_val).abs() < c.tolerance));
            pads.extend(kept.iter().map(is_gap));
        }
        let (mut norms, mut real) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (values, pads) in values.chunks_exact_mut(steps).zip(pads.chunks_exact(steps)) {
            let norm = self.norm(values, pads);
            for (value, pad) in values.iter_mut().zip(pads) {
                *value = if *pad == 0.0 { (*value - norm.loc) / norm.scale } else { 0.0 };
            }
            norms.push(norm);
            real.push(pads.chunks_exact(size).map(|patch| patch.contains(&0.0)).collect());
        }
        let patches = self.place.tensor(join(&[&values, &pads], size), (count, steps / size, 2 * size))?;
        let frequencies = Tensor::from_slice(frequencies, (count, 1), self.place.device())?;
        Ok(Encoded { states: self.network.encode(&patches, &real, &frequencies)?, real, norms })
    }

    /// Mean and standard deviation of the first patch with enough values, or of the last.
    fn norm(&self, values: &[f32], pads: &[f32]) -> Norm {
        let size = self.network.config().patch_length;
        let known = |patch: usize| {
            let range = patch * size..(patch + 1) * size;
            let known = values[range.clone()].iter().zip(&pads[range]).filter(|(_, pad)| **pad == 0.0);
            known.map(|(value, _)| f64::from(*value)).collect::<Vec<f64>>()
        };
        let patches = values.len() / size;
        let chosen = (0..patches).map(known).find(|values| values.len() >= MIN_VALUES);
        let values = chosen.unwrap_or_else(|| known(patches - 1));
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let scale = (variance.sqrt() as f32).max(self.network.config().tolerance);
        Norm { loc: mean as f32, scale }
    }

    /// The denormalised outputs of all patches, `(series, patches, horizon, channels)`.
    fn decode(&self, states: &Tensor, norms: &[Norm]) -> Result<Vec<f32>> {
        denormalise(&self.network.decode(states)?, norms)
    }

    /// The denormalised outputs of the last patch, `(series, horizon, channels)`.
    fn decode_last(&self, encoded: &Encoded) -> Result<Vec<f32>> {
        let last = encoded.states.dim(1)? - 1;
        self.decode(&encoded.states.narrow(1, last, 1)?.contiguous()?, &encoded.norms)
    }

    /// The forecasts on the context, patch by patch, and that of the future, `(series, steps, channels)`.
    fn decode_all(&self, encoded: &Encoded) -> Result<Vec<f32>> {
        let c = self.network.config();
        let outputs = self.decode(&encoded.states, &encoded.norms)?;
        let patches = encoded.states.dim(1)?;
        let (each, kept) =
            (c.horizon_length * c.channels(), c.patch_length.min(c.horizon_length) * c.channels());
        let mut all = Vec::with_capacity(outputs.len());
        for (i, patch) in outputs.chunks_exact(each).enumerate() {
            all.extend_from_slice(if i % patches + 1 < patches { &patch[..kept] } else { patch });
        }
        Ok(all)
    }

    /// Checks frequency ids; 0 if there are none.
    fn frequencies(&self, freq: Option<Vec<i64>>, count: usize) -> Result<Vec<u32>> {
        let known = self.network.config().freq_size as i64;
        let check = |(row, id): (usize, i64)| match (0..known).contains(&id) {
            true => Ok(id as u32),
            false => Err(Error::input(format!("freq of series {row} is {id}, expected 0 to {}", known - 1))),
        };
        freq.unwrap_or_else(|| vec![0; count]).into_iter().enumerate().map(check).collect()
    }

    /// The outputs of `horizon` steps of each series, `(series, horizon * channels)`. Beyond one forward pass, the point
    /// forecasts are appended to the series.
    fn predict(
        &self,
        mut series: Vec<Vec<f32>>,
        frequencies: &[u32],
        horizon: usize,
    ) -> Result<Vec<Vec<f32>>> {
        let c = self.network.config();
        let mut all = vec![Vec::new(); series.len()];
        let each = c.horizon_length * c.channels();
        while all.first().is_some_and(|outputs| outputs.len() < horizon * c.channels()) {
            let steps = steps_for(&series, c.patch_length, c.context_length);
            let outputs = self.decode_last(&self.encode(&series, frequencies, steps)?)?;
            for ((outputs, series), all) in outputs.chunks_exact(each).zip(&mut series).zip(&mut all) {
                series.extend(outputs.chunks_exact(c.channels()).map(|step| step[0]));
                all.extend_from_slice(outputs);
            }
        }
        Ok(all)
    }
}

impl Version for TimesFm {
    const ARCHITECTURE: &'static str = "TimesFmModelForPrediction";

    fn context_length(&self) -> usize {
        self.config().context_length
    }

    fn horizon_length(&self) -> usize {
        self.config().horizon_length
    }

    fn quantiles(&self) -> &[f64] {
        &self.config().quantiles
    }

    fn run(pipeline: &PatchedPipeline, inputs: &Tensors, options: &ForwardOptions) -> Result<Tensors> {
        let c = pipeline.network.config();
        let (series, freq) = pipeline::inputs(inputs, true)?;
        let mut frequencies = pipeline.frequencies(freq, series.len())?;
        let longest = options.context_length.unwrap_or(c.context_length);
        let steps = whole_patches(longest.min(c.context_length), c.patch_length)?;
        let series: Vec<Vec<f32>> = series.iter().map(|one| last(one, longest).to_vec()).collect();
        let is_positive = series.iter().flatten().all(|value| *value >= 0.0);
        let rows = input_rows(&series, options.window_size);
        if options.window_size.is_some() {
            frequencies = frequencies.into_iter().flat_map(|id| [id; 2]).collect();
        }
        let encoded = pipeline.encode(&rows, &frequencies, steps)?;
        let outputs = match options.return_context {
            true => pipeline.decode_all(&encoded)?,
            false => pipeline.decode_last(&encoded)?,
        };
        let clip = options.truncate_negative == Some(true) && is_positive;
        let outputs = output_series(outputs, rows.len(), options.window_size, clip);
        let mut out = predictions(outputs, series.len(), c.channels(), 0)?;
        let per_row = |value: fn(&Norm) -> f32| host(encoded.norms.iter().map(value).collect(), rows.len());
        out.insert("loc".into(), per_row(|norm| norm.loc)?);
        out.insert("scale".into(), per_row(|norm| norm.scale)?);
        out.insert("last_hidden_state".into(), encoded.states);
        Ok(out)
    }

    fn forecast(
        pipeline: &PatchedPipeline,
        series: &[Vec<f32>],
        histories: &[History],
        options: &ForecastConfig,
    ) -> Result<Vec<Forecast>> {
        let c = pipeline.network.config();
        let frequencies = histories.iter().map(frequency_id).collect();
        let frequencies = pipeline.frequencies(Some(frequencies), histories.len())?;
        let mut forecasts = Vec::with_capacity(series.len());
        for (series, frequencies) in series.chunks(BATCH_SIZE).zip(frequencies.chunks(BATCH_SIZE)) {
            let outputs = pipeline.predict(series.to_vec(), frequencies, options.horizon)?;
            forecasts.extend(outputs.iter().map(|outputs| forecast(outputs, 0, &c.quantiles, options)));
        }
        Ok(forecasts)
    }

    fn learned(
        pipeline: &PatchedPipeline,
        inputs: &Tensors,
        future: Vec<Vec<f32>>,
        options: &ForwardOptions,
    ) -> Result<(Tensor, Vec<Vec<f32>>)> {
        let c = pipeline.network.config();
        let (series, freq) = pipeline::inputs(inputs, true)?;
        let frequencies = pipeline.frequencies(freq, series.len())?;
        let longest = options.context_length.unwrap_or(c.context_length);
        let steps = whole_patches(longest.min(c.context_length), c.patch_length)?;
        let encoded = pipeline.encode(&series, &frequencies, steps)?;
        let last = encoded.states.narrow(1, encoded.states.dim(1)? - 1, 1)?.contiguous()?;
        let outputs = pipeline.network.decode(&last)?.squeeze(1)?;
        Ok((denormalised(&outputs, &encoded.norms)?, future))
    }

    fn point(&self) -> usize {
        0
    }

    fn frequencies(&self) -> Option<usize> {
        Some(self.config().freq_size)
    }

    fn head() -> &'static str {
        r"^horizon_ff_layer\."
    }

    fn pooled_states(pipeline: &PatchedPipeline, series: &[Vec<f32>]) -> Result<Tensor> {
        let c = pipeline.network.config();
        let steps = steps_for(series, c.patch_length, c.context_length);
        let encoded = pipeline.encode(series, &vec![0; series.len()], steps)?;
        mean_of(&encoded.states, &encoded.real)
    }
}

/// A small config that uses every branch.
pub(crate) fn sample() -> Value {
    let Config { pad_val, .. } = Config::default();
    json!({
        "architectures": ["TimesFmModelForPrediction"], "model_type": "timesfm", "patch_length": 4,
        "context_length": 24, "horizon_length": 6, "freq_size": 3, "num_hidden_layers": 3, "hidden_size": 32,
        "intermediate_size": 64, "head_dim": 10, "num_attention_heads": 3, "tolerance": 1e-6, "rms_norm_eps": 1e-6,
        "quantiles": [0.1, 0.5, 0.8], "pad_val": pad_val, "use_positional_embedding": true, "min_timescale": 1,
        "max_timescale": 10000
    })
}
