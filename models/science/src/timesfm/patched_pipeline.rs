//! TimesFM 1.0 and 2.0 as a pipeline.

use std::ops::ControlFlow;

use candle_core::Tensor;
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Forecast, ForecastConfig, Forecaster, FrequencyClass, History, Pipeline, Pretrained, SampleSizes,
};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::patched::{Config, TimesFm};
use super::pipeline::{
    self, Wishes, all_decomposed, composed, forecast, predictions, readable, steps_for, undone, whole_patches,
};
use crate::chronos::patches::{Norm, join};
use crate::series::{self, Place, host, last, mean_of};

/// Rows of one pass: enough to keep every core busy, few enough to bound the memory.
const ROWS_A_PASS: usize = 64;

/// Values of a patch that its statistics need.
const ENOUGH: usize = 3;

/// A TimesFM 1.0 or 2.0.
///
/// ```
/// use fauna_shared::model::{Pipeline, ForecastConfig, FrequencyClass, History};
/// use fauna_shared::zoo::{LoadOptions, Zoo};
///
/// // A network of random weights: only a config is needed.
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
pub struct PatchedPipeline {
    network: TimesFm,
    place: Place,
    card: Card,
}

/// What the network made of series of one length.
struct Encoded {
    states: Tensor,
    real: Vec<Vec<bool>>,
    norms: Vec<Norm>,
}

impl PatchedPipeline {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// Whatever is wrong with config or tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<TimesFm>()?;
        let architecture = pretrained.architecture("TimesFmModelForPrediction");
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(network.config().context_length);
        Ok(Self { place: Place::of(pretrained), network, card })
    }

    /// The network.
    pub fn network(&self) -> &TimesFm {
        &self.network
    }

    /// Reads the last `steps` of each of `series`, zeros marked as padding before the shorter ones.
    fn encode(&self, series: &[Vec<f32>], paces: &[u32], steps: usize) -> Result<Encoded> {
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
        let paces = Tensor::from_slice(paces, (count, 1), self.place.device())?;
        Ok(Encoded { states: self.network.encode(&patches, &real, &paces)?, real, norms })
    }

    /// Mean and spread of the first patch that has values enough, or of the last.
    fn norm(&self, values: &[f32], pads: &[f32]) -> Norm {
        let size = self.network.config().patch_length;
        let known = |patch: usize| {
            let range = patch * size..(patch + 1) * size;
            let known = values[range.clone()].iter().zip(&pads[range]).filter(|(_, pad)| **pad == 0.0);
            known.map(|(value, _)| f64::from(*value)).collect::<Vec<f64>>()
        };
        let patches = values.len() / size;
        let chosen = (0..patches).map(known).find(|values| values.len() >= ENOUGH);
        let values = chosen.unwrap_or_else(|| known(patches - 1));
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let scale = (variance.sqrt() as f32).max(self.network.config().tolerance);
        Norm { loc: mean as f32, scale }
    }

    /// What follows the patches of `states`, in the units of the series: `(series, patches, horizon, channels)`.
    fn decode(&self, states: &Tensor, norms: &[Norm]) -> Result<Vec<f32>> {
        undone(&self.network.decode(states)?, norms)
    }

    /// The same of the last patch alone: `(series, horizon, channels)`.
    fn decode_last(&self, encoded: &Encoded) -> Result<Vec<f32>> {
        let last = encoded.states.dim(1)? - 1;
        self.decode(&encoded.states.narrow(1, last, 1)?.contiguous()?, &encoded.norms)
    }

    /// The forecasts on the context, patch by patch, and that of the future: `(series, steps, channels)`.
    fn decode_all(&self, encoded: &Encoded) -> Result<Vec<f32>> {
        let c = self.network.config();
        let told = self.decode(&encoded.states, &encoded.norms)?;
        let patches = encoded.states.dim(1)?;
        let (each, kept) =
            (c.horizon_length * c.channels(), c.patch_length.min(c.horizon_length) * c.channels());
        let mut all = Vec::with_capacity(told.len());
        for (i, patch) in told.chunks_exact(each).enumerate() {
            all.extend_from_slice(if i % patches + 1 < patches { &patch[..kept] } else { patch });
        }
        Ok(all)
    }

    /// The rows of the table of paces.
    fn paces(&self, freq: Option<Vec<i64>>, count: usize) -> Result<Vec<u32>> {
        let known = self.network.config().freq_size as i64;
        let pace = |(row, pace): (usize, i64)| match (0..known).contains(&pace) {
            true => Ok(pace as u32),
            false => {
                Err(Error::input(format!("freq {pace} of series {row} is none of the {known} there are")))
            }
        };
        freq.unwrap_or_else(|| vec![0; count]).into_iter().enumerate().map(pace).collect()
    }

    fn forward_with(&self, inputs: &Tensors, wishes: &Wishes) -> Result<Tensors> {
        let c = self.network.config();
        let (series, freq) = pipeline::inputs(inputs, true)?;
        let mut paces = self.paces(freq, series.len())?;
        let longest = wishes.context.unwrap_or(c.context_length);
        let steps = whole_patches(longest.min(c.context_length), c.patch_length)?;
        let series: Vec<Vec<f32>> = series.iter().map(|one| last(one, longest).to_vec()).collect();
        let positive = series.iter().flatten().all(|value| *value >= 0.0);
        let rows = match wishes.window {
            Some(window) => {
                paces = paces.into_iter().flat_map(|pace| [pace; 2]).collect();
                all_decomposed(&series, window)
            }
            None => series.clone(),
        };
        let encoded = self.encode(&rows, &paces, steps)?;
        let mut told = match wishes.on_context {
            true => self.decode_all(&encoded)?,
            false => self.decode_last(&encoded)?,
        };
        if wishes.window.is_some() {
            told = composed(&told, told.len() / rows.len().max(1));
        }
        if wishes.truncate == Some(true) && positive {
            told.iter_mut().for_each(|value| *value = value.max(0.0));
        }
        let mut out = predictions(told, series.len(), c.channels(), 0)?;
        let per_row = |value: fn(&Norm) -> f32| host(encoded.norms.iter().map(value).collect(), rows.len());
        out.insert("loc".into(), per_row(|norm| norm.loc)?);
        out.insert("scale".into(), per_row(|norm| norm.scale)?);
        out.insert("last_hidden_state".into(), encoded.states);
        Ok(out)
    }

    /// `(series, horizon, channels)`: one pass after the other, the means of each taken for what happened.
    fn predict(&self, mut series: Vec<Vec<f32>>, paces: &[u32], horizon: usize) -> Result<Vec<Vec<f32>>> {
        let c = self.network.config();
        let mut all = vec![Vec::new(); series.len()];
        let each = c.horizon_length * c.channels();
        while all.first().is_some_and(|told| told.len() < horizon * c.channels()) {
            let steps = steps_for(&series, c.patch_length, c.context_length);
            let told = self.decode_last(&self.encode(&series, paces, steps)?)?;
            for ((told, series), all) in told.chunks_exact(each).zip(&mut series).zip(&mut all) {
                series.extend(told.chunks_exact(c.channels()).map(|step| step[0]));
                all.extend_from_slice(told);
            }
        }
        Ok(all)
    }
}

/// The row of the table of paces.
fn pace_of(past: &History) -> i64 {
    match past.frequency_class {
        FrequencyClass::High => 0,
        FrequencyClass::Medium => 1,
        FrequencyClass::Low => 2,
    }
}

impl Forecaster for PatchedPipeline {
    fn forecast(&self, pasts: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        let c = self.network.config();
        let series = readable(pasts)?;
        let paces = self.paces(Some(pasts.iter().map(pace_of).collect()), pasts.len())?;
        let mut forecasts = Vec::with_capacity(series.len());
        for (series, paces) in series.chunks(ROWS_A_PASS).zip(paces.chunks(ROWS_A_PASS)) {
            let told = self.predict(series.to_vec(), paces, options.horizon)?;
            forecasts.extend(told.iter().map(|told| forecast(told, 0, &c.quantiles, options)));
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

impl Pipeline for PatchedPipeline {
    fn card(&self) -> &Card {
        &self.card
    }

    /// `past_values.0`, `past_values.1`, …, `(steps)` each, or `past_values`, `(series, steps)`, and `freq`, `(series)`, to
    /// `mean_predictions`, `(series, steps)`, and `full_predictions`, `(series, steps, 1 + quantiles)`.
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
        let c = self.network.config();
        series::embed(items, c.context_length, |pasts| {
            let series = readable(pasts)?;
            let steps = steps_for(&series, c.patch_length, c.context_length);
            let encoded = self.encode(&series, &vec![0; series.len()], steps)?;
            mean_of(&encoded.states, &encoded.real)
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
    let Config { pad_val, .. } = Config::default();
    json!({
        "architectures": ["TimesFmModelForPrediction"], "model_type": "timesfm", "patch_length": 4,
        "context_length": 24, "horizon_length": 6, "freq_size": 3, "num_hidden_layers": 3, "hidden_size": 32,
        "intermediate_size": 64, "head_dim": 10, "num_attention_heads": 3, "tolerance": 1e-6, "rms_norm_eps": 1e-6,
        "quantiles": [0.1, 0.5, 0.8], "pad_val": pad_val, "use_positional_embedding": true, "min_timescale": 1,
        "max_timescale": 10000
    })
}
