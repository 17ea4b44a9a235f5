//! The pipeline of every version of TimesFM, and what the versions share: inputs, options, outputs.

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{
    Card, Collation, Forecast, ForecastConfig, Forecaster, FrequencyClass, History, Loss, Model, Pipeline,
    Pretrained, SampleSizes, Trainable, TrainingBatch,
};
use fauna_shared::train::Example;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json, transfer};
use serde_json::{Map, Value};

use crate::chronos::patches::Norm;
use crate::quantiles::{interpolate_quantiles, pinball};
use crate::series::{self, Place, collect, floats, host};

/// A version of TimesFM, as its pipeline runs it.
pub trait Version: Model + Send + Sync {
    /// The architecture of a config that names none.
    const ARCHITECTURE: &'static str;

    /// Context length in steps.
    fn context_length(&self) -> usize;

    /// Number of steps of one forward pass.
    fn horizon_length(&self) -> usize;

    /// Levels of the quantiles that the model was trained on, rising.
    fn quantiles(&self) -> &[f64];

    /// Runs the method `forward` of the reference.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for inputs that cannot be read.
    fn run(pipeline: &TimesFmPipeline<Self>, inputs: &Tensors, options: &ForwardOptions) -> Result<Tensors>;

    /// Forecasts checked series without gaps, one for each of `histories`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn forecast(
        pipeline: &TimesFmPipeline<Self>,
        series: &[Vec<f32>],
        histories: &[History],
        options: &ForecastConfig,
    ) -> Result<Vec<Forecast>>;

    /// The outputs that are learned, `(series, horizon_length, 1 + quantiles)` float32, and `future`, `(series, steps)`, in
    /// their units.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for inputs that cannot be read.
    fn learned(
        pipeline: &TimesFmPipeline<Self>,
        inputs: &Tensors,
        future: Vec<Vec<f32>>,
        options: &ForwardOptions,
    ) -> Result<(Tensor, Vec<Vec<f32>>)>;

    /// Index of the output that is the point forecast.
    fn point(&self) -> usize;

    /// Number of frequency classes; `None` if the model reads none.
    fn frequencies(&self) -> Option<usize>;

    /// A regular expression of the tensors of the output head.
    fn head() -> &'static str;

    /// The mean of the last hidden states over the patches with a value, `(series, hidden_size)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn pooled_states(pipeline: &TimesFmPipeline<Self>, series: &[Vec<f32>]) -> Result<Tensor>;
}

/// A TimesFM of version `N` as a pipeline.
pub struct TimesFmPipeline<N> {
    pub(super) network: N,
    pub(super) place: Place,
    card: Card,
}

impl<N: Version> TimesFmPipeline<N> {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Errors of the config and the tensors.
    pub fn open(pretrained: &Pretrained) -> Result<Self> {
        let (network, inventory) = pretrained.load::<N>()?;
        let architecture = pretrained.architecture(N::ARCHITECTURE);
        let mut card = pretrained.card(&architecture, &inventory);
        card.context = Some(network.context_length());
        Ok(Self { place: Place::of(pretrained), network, card })
    }

    /// The network.
    pub fn network(&self) -> &N {
        &self.network
    }
}

impl<N: Version> Forecaster for TimesFmPipeline<N> {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        N::forecast(self, &without_gaps(series)?, series, options)
    }

    fn context(&self) -> Option<usize> {
        Some(self.network.context_length())
    }

    fn levels(&self) -> Vec<f64> {
        self.network.quantiles().to_vec()
    }
}

impl<N: Version> Trainable for TimesFmPipeline<N> {
    fn reload(&mut self, config: &Value, weights: &Weights) -> Result<()> {
        self.network = N::load(json::typed(config.clone())?, weights)?;
        Ok(())
    }

    /// The mean squared error of the point forecast, and the mean pinball loss of the other outputs, of `future_values`,
    /// `(series, steps)`, up to `horizon_length` steps; the other inputs are as in `forward`. TimesFM 1.0 and 2.0 learn
    /// the values themselves, 2.5 values normalised by the context.
    ///
    /// The levels of the quantiles are paired in order with all outputs but the point forecast, as in the reference:
    /// of 2.5 the first level with the unused output.
    ///
    /// Options, as in `forward`: `forecast_context_len`, `force_flip_invariance`.
    fn loss(&self, inputs: &Tensors, options: &Value) -> Result<Loss> {
        const KNOWN: [&str; 2] = ["forecast_context_len", "force_flip_invariance"];
        let unknown = |options: &Map<String, Value>| {
            options.keys().find(|name| !KNOWN.contains(&name.as_str())).cloned()
        };
        if let Some(name) = options.as_object().and_then(unknown) {
            return Err(Error::input(format!("the loss has no option \"{name}\""))
                .hint(format!("known: {}", KNOWN.join(", "))));
        }
        let mut inputs = inputs.clone();
        let future = match inputs.remove("future_values") {
            Some(future) => Tensors::from([("future_values".to_string(), future)]),
            None => return Err(Error::input("future_values are missing")),
        };
        let count = self::inputs(&inputs, N::frequencies(&self.network).is_some())?.0.len();
        let future = series::targets(&future, "future_values", count, self.network.horizon_length())?;
        if let Some(row) = future.iter().position(|row| row.iter().any(|value| !value.is_finite())) {
            return Err(Error::input(format!(
                "future_values of series {row} hold a value that is no number"
            )));
        }
        let (outputs, targets) = N::learned(self, &inputs, future, &ForwardOptions::of(options)?)?;
        let steps = targets[0].len();
        let outputs = outputs.narrow(1, 0, steps)?.contiguous()?;
        let (targets, point) = (targets.concat(), self.network.point());
        let expected = Tensor::from_slice(&targets, (count, steps), outputs.device())?;
        let squares = (outputs.narrow(2, point, 1)?.squeeze(2)? - expected)?.sqr()?.mean_all()?;
        let others = (0..outputs.dim(2)? as u32).filter(|i| *i as usize != point);
        let others = outputs.index_select(&Tensor::from_iter(others, outputs.device())?, 2)?;
        let spread = pinball(&others.transpose(1, 2)?, &targets, self.network.quantiles())?.mean_all()?;
        Ok(Loss::mean((squares + spread)?, count as f64))
    }

    /// Random windows of series, whose gaps are interpolated: `past_values.0`, `past_values.1`, …, `future_values`, and
    /// for TimesFM 1.0 and 2.0 `freq`.
    fn collate(&self, examples: &[Example], options: &Collation) -> Result<TrainingBatch> {
        let longest = self.network.horizon_length();
        let horizon = options.horizon.unwrap_or(longest);
        if !(1..=longest).contains(&horizon) {
            return Err(Error::input(format!(
                "horizon is {horizon}, expected 1 to {longest}, the steps of one forecast"
            )));
        }
        let (windows, truncated) =
            series::windows(examples, self.network.context_length(), horizon, options)?;
        let (mut inputs, mut future, mut ids) = (Tensors::new(), Vec::new(), Vec::new());
        for (i, window) in windows.iter().enumerate() {
            let whole = interpolate(&[window.past(), window.future()].concat());
            let (past, next) = whole.split_at(whole.len() - horizon);
            inputs.insert(format!("past_values.{i}"), host(past.to_vec(), past.len())?);
            future.extend_from_slice(next);
            ids.push(frequency_id(window.history()));
        }
        inputs.insert("future_values".into(), host(future, (windows.len(), horizon))?);
        if self.network.frequencies().is_some() {
            inputs.insert("freq".into(), Tensor::from_vec(ids, windows.len(), &Device::Cpu)?);
        }
        let mut batch = TrainingBatch::new(inputs);
        batch.truncated = truncated;
        Ok(batch)
    }

    fn head(&self) -> Result<&'static str> {
        Ok(N::head())
    }
}

/// The frequency id of a series.
pub(super) fn frequency_id(history: &History) -> i64 {
    match history.frequency_class {
        FrequencyClass::High => 0,
        FrequencyClass::Medium => 1,
        FrequencyClass::Low => 2,
    }
}

/// Denormalises `outputs`, `(rows, steps, channels)`, by the `norms` of their rows, float32, with a gradient.
pub(super) fn denormalised(outputs: &Tensor, norms: &[Norm]) -> Result<Tensor> {
    let column = |value: fn(&Norm) -> f32| -> Result<Tensor> {
        let values: Vec<f32> = norms.iter().map(value).collect();
        Ok(Tensor::from_vec(values, (norms.len(), 1, 1), outputs.device())?)
    };
    let scaled = outputs.to_dtype(DType::F32)?.broadcast_mul(&column(|norm| norm.scale)?)?;
    Ok(scaled.broadcast_add(&column(|norm| norm.loc)?)?)
}

impl<N: Version> Pipeline for TimesFmPipeline<N> {
    fn card(&self) -> &Card {
        &self.card
    }

    /// `past_values.0`, `past_values.1`, …, `(steps)` each, or `past_values`, `(series, steps)`, and for 1.0 and 2.0 `freq`,
    /// `(series)`, to `mean_predictions`, `(series, steps)`, and `full_predictions`, `(series, steps, 1 + quantiles)`.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors> {
        N::run(self, inputs, &ForwardOptions::default())
    }

    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        match method {
            "forward" => N::run(self, inputs, &ForwardOptions::of(options)?),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// The mean of the last hidden states over the patches with a value.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        series::embed(items, self.network.context_length(), |series| {
            N::pooled_states(self, &without_gaps(series)?)
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
        series::sample("past_values", method, &["forward"], sizes)
    }

    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::greedy(self.network.horizon_length())
    }
}

/// Checks that the quantile levels rise between 0 and 1.
pub(super) fn check_levels(levels: &[f64]) -> Result<()> {
    let inside = levels.iter().all(|level| *level > 0.0 && *level < 1.0);
    match inside && !levels.is_empty() && levels.windows(2).all(|pair| pair[0] < pair[1]) {
        true => Ok(()),
        false => Err(Error::unsupported(format!("quantiles {levels:?} do not rise from 0 to 1"))),
    }
}

/// Options of `forward` in the reference.
#[derive(Debug, Clone, Default)]
pub struct ForwardOptions {
    /// `window_size`: number of steps of the moving average that is forecast separately from the remainder.
    pub window_size: Option<usize>,
    /// `forecast_context_len`: context length in steps.
    pub context_length: Option<usize>,
    /// `truncate_negative`: clips forecasts at 0 if all inputs are 0 or above.
    pub truncate_negative: Option<bool>,
    /// `force_flip_invariance`: averages the forecasts of the series and of its negative.
    pub flip_invariance: Option<bool>,
    /// `return_forecast_on_context`: returns the forecasts on the context too.
    pub return_context: bool,
}

impl ForwardOptions {
    /// Reads the options by the names of the reference.
    pub fn of(options: &Value) -> Result<Self> {
        let window_size = series::count(options, "window_size")?;
        let context_length = series::count(options, "forecast_context_len")?;
        if window_size == Some(0) || context_length == Some(0) {
            return Err(Error::input("window_size and forecast_context_len must be at least 1"));
        }
        Ok(Self {
            window_size,
            context_length,
            truncate_negative: series::flag(options, "truncate_negative")?,
            flip_invariance: series::flag(options, "force_flip_invariance")?,
            return_context: series::flag(options, "return_forecast_on_context")?.unwrap_or(false),
        })
    }
}

/// Series, and the frequency of each if given.
pub(super) type SeriesInput = (Vec<Vec<f32>>, Option<Vec<i64>>);

/// The series of `past_values`, `(series, steps)`, or of `past_values.0`, `past_values.1`, …, `(steps)` each; and `freq`,
/// if `with_freq`.
pub(super) fn inputs(inputs: &Tensors, with_freq: bool) -> Result<SeriesInput> {
    const LIST: &str = "past_values.";
    let number = |name: &str| name.strip_prefix(LIST).and_then(|number| number.parse::<usize>().ok());
    let is_unknown =
        |name: &&String| !(number(name).is_some() || *name == "past_values" || with_freq && *name == "freq");
    if let Some(name) = inputs.keys().find(is_unknown) {
        let freq = if with_freq { "freq, " } else { "" };
        return Err(Error::input(format!("no input is called \"{name}\""))
            .hint(format!("known: {freq}past_values, or past_values.0, past_values.1 and so on")));
    }
    let mut list: Vec<(usize, &Tensor)> =
        inputs.iter().filter_map(|(name, tensor)| Some((number(name)?, tensor))).collect();
    list.sort_by_key(|(number, _)| *number);
    let rows = match list.is_empty() {
        true => series::rows(inputs, "past_values")?,
        false => {
            if let Some(gap) = (0..list.len()).find(|i| list[*i].0 != *i) {
                return Err(Error::input(format!("{LIST}{gap} is missing")));
            }
            let row = |(number, tensor): (usize, &Tensor)| match tensor.dims() {
                [_] if tensor.elem_count() > 0 => transfer::to_host(&tensor.to_dtype(DType::F32)?),
                dims => Err(Error::input(format!("{LIST}{number} is {dims:?}, expected (steps)"))),
            };
            list.into_iter().map(row).collect::<Result<_>>()?
        }
    };
    let freq = match inputs.get("freq") {
        Some(freq) if freq.elem_count() != rows.len() => {
            return Err(Error::input(format!(
                "freq is {:?}, expected one for each of {} series",
                freq.dims(),
                rows.len()
            )));
        }
        Some(freq) => Some(transfer::to_host(&freq.to_dtype(DType::I64)?)?),
        None => None,
    };
    Ok((rows, freq))
}

/// Checks that a context length is a multiple of the patch length.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if it is not.
pub(super) fn whole_patches(context: usize, patch: usize) -> Result<usize> {
    match context.is_multiple_of(patch) {
        true => Ok(context),
        false => Err(Error::input(format!(
            "a context of {context} steps is not a multiple of the patch of {patch}"
        ))),
    }
}

/// Splits a series into its moving average over `window` steps, with zeros before the first, and the remainder.
fn decompose(series: &[f32], window: usize) -> [Vec<f32>; 2] {
    let mean = |i: usize| {
        let seen = &series[(i + 1).saturating_sub(window)..=i];
        (seen.iter().map(|value| f64::from(*value)).sum::<f64>() / window as f64) as f32
    };
    let trend: Vec<f32> = (0..series.len()).map(mean).collect();
    let rest = series.iter().zip(&trend).map(|(value, trend)| value - trend).collect();
    [trend, rest]
}

/// The moving average and the remainder of every series, one after the other.
fn decompose_all(series: &[Vec<f32>], window: usize) -> Vec<Vec<f32>> {
    series.iter().flat_map(|one| decompose(one, window)).collect()
}

/// The sums of pairs of rows of `values`, each of `width` numbers: moving average plus remainder.
fn sum_pairs(values: &[f32], width: usize) -> Vec<f32> {
    let sum = |pair: &[f32]| -> Vec<f32> { (0..width).map(|i| pair[i] + pair[width + i]).collect() };
    values.chunks_exact(2 * width.max(1)).flat_map(sum).collect()
}

/// Removes the gaps at the start of a series, interpolates the others linearly, and repeats the last value after it.
fn interpolate(values: &[f32]) -> Vec<f32> {
    let first = values.iter().position(|value| !value.is_nan()).unwrap_or(values.len());
    let mut filled = values[first..].to_vec();
    let mut known = 0;
    for i in 1..filled.len() {
        if filled[i].is_nan() {
            continue;
        }
        let (from, to) = (f64::from(filled[known]), f64::from(filled[i]));
        let steps = (i - known) as f64;
        for (step, gap) in filled[known + 1..i].iter_mut().enumerate() {
            *gap = (from + (step + 1) as f64 / steps * (to - from)) as f32;
        }
        known = i;
    }
    let last = filled.get(known).copied();
    filled.iter_mut().skip(known + 1).for_each(|value| *value = last.unwrap_or(f32::NAN));
    filled
}

/// The values of checked `histories` with gaps interpolated.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) with the index of the first that cannot be used.
fn without_gaps(histories: &[History]) -> Result<Vec<Vec<f32>>> {
    series::check(histories)?;
    Ok(histories.iter().map(|history| interpolate(&history.values)).collect())
}

/// The forecast from the outputs of one series, `(horizon, 1 + quantiles)`.
pub(super) fn forecast(outputs: &[f32], point: usize, levels: &[f64], options: &ForecastConfig) -> Forecast {
    let narrow: Vec<f32> = levels.iter().map(|level| *level as f32).collect();
    let steps = outputs.chunks_exact(1 + levels.len()).take(options.horizon);
    let step = |step: &[f32]| (step[point], interpolate_quantiles(&narrow, &step[1..], &options.quantiles));
    collect(steps.map(step), options.quantiles.len())
}

/// Denormalises `outputs`, `(rows, …)`, by the `norms` of their rows.
pub(super) fn denormalise(outputs: &Tensor, norms: &[Norm]) -> Result<Vec<f32>> {
    let mut values = floats(outputs)?;
    let each = values.len() / norms.len().max(1);
    for (row, norm) in values.chunks_exact_mut(each.max(1)).zip(norms) {
        row.iter_mut().for_each(|value| *value = norm.undo(*value, false));
    }
    Ok(values)
}

/// The least multiple of `patch` that holds the longest of `rows`, at most `context`. (Patches of padding alone do not
/// change the result.)
pub(super) fn steps_for(rows: &[Vec<f32>], patch: usize, context: usize) -> usize {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    longest.next_multiple_of(patch).min(context)
}

/// Rows of the model's input: every series, or with a `window_size` its moving average and its remainder.
pub(super) fn input_rows(series: &[Vec<f32>], window_size: Option<usize>) -> Vec<Vec<f32>> {
    match window_size {
        Some(window) => decompose_all(series, window),
        None => series.to_vec(),
    }
}

/// Outputs of `rows` rows as outputs of the series: pairs summed if the series were decomposed, and clipped at 0 if
/// `clip`.
pub(super) fn output_series(
    outputs: Vec<f32>,
    rows: usize,
    window_size: Option<usize>,
    clip: bool,
) -> Vec<f32> {
    let mut outputs = match window_size {
        Some(_) => sum_pairs(&outputs, outputs.len() / rows.max(1)),
        None => outputs,
    };
    if clip {
        outputs.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    outputs
}

/// The outputs `mean_predictions`, `(series, steps)`, and `full_predictions`, `(series, steps, channels)`.
pub(super) fn predictions(
    outputs: Vec<f32>,
    series: usize,
    channels: usize,
    point: usize,
) -> Result<Tensors> {
    let steps = outputs.len() / (series * channels).max(1);
    let mean = outputs.chunks_exact(channels).map(|step| step[point]).collect();
    Ok(Tensors::from([
        ("mean_predictions".to_string(), host(mean, (series, steps))?),
        ("full_predictions".to_string(), host(outputs, (series, steps, channels))?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn gaps_are_interpolated_and_those_at_the_start_are_removed() {
        assert_eq!(interpolate(&[NAN, NAN, 1.0, NAN, NAN, 4.0, NAN]), [1.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!(interpolate(&[5.0]), [5.0]);
        assert!(interpolate(&[NAN]).is_empty());
    }

    #[test]
    fn moving_average_and_remainder_sum_to_the_series() {
        let [trend, rest] = decompose(&[2.0, 4.0, 6.0], 2);
        assert_eq!((&trend[..], &rest[..]), (&[1.0, 3.0, 5.0][..], &[1.0, 1.0, 1.0][..]));
        assert_eq!(sum_pairs(&[trend, rest].concat(), 3), [2.0, 4.0, 6.0]);
        let [trend, _] = decompose(&[2.0, 4.0], 1000);
        assert!((trend[1] - 0.006).abs() < 1e-7);
    }

    #[test]
    fn series_are_given_as_a_table_or_as_a_list() {
        let one = |values: Vec<f32>| host(values.clone(), values.len()).unwrap();
        let list = Tensors::from([
            ("past_values.0".to_string(), one(vec![1.0])),
            ("past_values.1".to_string(), one(vec![2.0, 3.0])),
        ]);
        assert_eq!(inputs(&list, true).unwrap().0, [vec![1.0], vec![2.0, 3.0]]);
        let gap = Tensors::from([("past_values.1".to_string(), one(vec![1.0]))]);
        assert!(inputs(&gap, true).unwrap_err().message().contains("past_values.0 is missing"));
        let odd = Tensors::from([("freq".to_string(), one(vec![1.0]))]);
        assert!(inputs(&odd, false).unwrap_err().to_string().contains("known: past_values"));
        let odd = Tensors::from([("past_values.0".to_string(), host(vec![], 0).unwrap())]);
        assert!(inputs(&odd, true).is_err());
    }
}
