//! Series as inputs of models: read from tensors and prompts, checked, batched; and options of the references.

use std::ops::{ControlFlow, Range};

use candle_core::{DType, Device, Tensor};
use fauna_shared::generate::{Generation, GenerationConfig, Rng};
use fauna_shared::item::{Embeddings, Item, Prompt, Tensors};
use fauna_shared::model::{Collation, Forecast, ForecastConfig, Forecaster, History, SampleSizes};
use fauna_shared::train::Example;
use fauna_shared::{Error, Result, transfer};
use fauna_text::labelled::not_learned;
use serde_json::Value;

/// Device and data type of the activations of a network.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    device: Device,
    activations: DType,
}

impl Place {
    pub(crate) fn of(pretrained: &fauna_shared::model::Pretrained) -> Self {
        let runtime = pretrained.weights.runtime();
        Self { device: runtime.device().clone(), activations: runtime.activations() }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// `values` as a tensor of `shape` on the device, in the data type of activations.
    pub(crate) fn tensor(&self, values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, shape.into(), &self.device)?.to_dtype(self.activations)?)
    }
}

/// The elements of a tensor as float32.
pub(crate) fn floats(x: &Tensor) -> Result<Vec<f32>> {
    transfer::to_host(&x.to_dtype(DType::F32)?)
}

/// A float32 tensor on the CPU.
pub(crate) fn host(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// The series of the input `name`, `(series, steps)` or `(steps)`, with at least one step.
pub(crate) fn rows(inputs: &Tensors, name: &str) -> Result<Vec<Vec<f32>>> {
    let found = inputs.get(name).ok_or_else(|| Error::input(format!("{name} is missing")))?;
    let table = match found.rank() {
        1 => found.unsqueeze(0)?,
        _ => found.clone(),
    };
    if table.rank() != 2 || table.elem_count() == 0 {
        return Err(Error::input(format!("{name} is {:?}, expected (series, steps)", found.dims())));
    }
    transfer::rows(&table.to_dtype(DType::F32)?)
}

/// Checks that every series has steps, a known value and no infinite one.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) with the index of the first series that does not.
pub(crate) fn check(series: &[History]) -> Result<()> {
    for (index, past) in series.iter().enumerate() {
        let problem = match &past.values[..] {
            [] => Some("has no values".to_string()),
            values if values.iter().all(|value| value.is_nan()) => Some("holds gaps only (NaN)".to_string()),
            values => infinite(values).map(|step| format!("is infinite at step {step}")),
        };
        if let Some(problem) = problem {
            return Err(Error::input(format!("series {index} {problem}"))
                .hint("a series needs at least one value that is a number; mark gaps as NaN"));
        }
    }
    Ok(())
}

/// The index of the first infinite value.
pub(crate) fn infinite(values: &[f32]) -> Option<usize> {
    values.iter().position(|value| value.is_infinite())
}

/// The last `longest` steps of all series as one table, `(series, steps)`, shorter ones padded with NaN on the left; and
/// its number of steps.
pub(crate) fn left_padded<S: AsRef<[f32]>>(series: &[S], longest: usize) -> (Vec<f32>, usize) {
    let steps = series.iter().map(|one| one.as_ref().len()).max().unwrap_or(0).min(longest);
    let mut table = Vec::with_capacity(steps * series.len());
    for one in series {
        let kept = last(one.as_ref(), steps);
        table.extend(std::iter::repeat_n(f32::NAN, steps - kept.len()));
        table.extend_from_slice(kept);
    }
    (table, steps)
}

/// The last `count` values, or all.
pub(crate) fn last(values: &[f32], count: usize) -> &[f32] {
    &values[values.len().saturating_sub(count)..]
}

/// The integer option `key`, if given.
pub(crate) fn count(options: &Value, key: &str) -> Result<Option<usize>> {
    match &options[key] {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(Error::input(format!("{key} must be an integer, got {value}"))),
        },
    }
}

/// The numeric option `key`, if given.
pub(crate) fn number(options: &Value, key: &str) -> Result<Option<f64>> {
    match &options[key] {
        Value::Null => Ok(None),
        value => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| Error::input(format!("{key} must be a number, got {value}"))),
    }
}

/// The Boolean option `key`, if given.
pub(crate) fn flag(options: &Value, key: &str) -> Result<Option<bool>> {
    match &options[key] {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(*value)),
        value => Err(Error::input(format!("{key} must be true or false, got {value}"))),
    }
}

/// The quantile levels of the option `key`; the deciles if it is not given, as in the references.
pub(crate) fn levels(options: &Value, key: &str) -> Result<Vec<f64>> {
    let wrong = || Error::input(format!("{key} must be numbers between 0 and 1, got {}", options[key]));
    match &options[key] {
        Value::Null => Ok((1..10).map(|tenth| f64::from(tenth) / 10.0).collect()),
        Value::Array(list) => {
            let level = |value: &Value| value.as_f64().filter(|level| (0.0..=1.0).contains(level));
            list.iter().map(|value| level(value).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    }
}

/// Checks a horizon.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if it is 0 or too long.
pub(crate) fn horizon(steps: usize) -> Result<usize> {
    ForecastConfig { horizon: steps, ..ForecastConfig::default() }.check().map(|()| steps)
}

/// Collects a forecast from the point forecast and the `quantiles` quantiles of each step.
pub(crate) fn collect(steps: impl Iterator<Item = (f32, Vec<f32>)>, quantiles: usize) -> Forecast {
    let mut forecast = Forecast { mean: Vec::new(), quantiles: vec![Vec::new(); quantiles] };
    for (mean, told) in steps {
        forecast.mean.push(mean);
        forecast.quantiles.iter_mut().zip(told).for_each(|(list, value)| list.push(value));
    }
    forecast
}

/// Forecasts the series of `prompt` by `max_new_tokens` steps and passes the point forecasts to `each`.
pub(crate) fn generate(
    forecaster: &dyn Forecaster,
    prompt: &Prompt,
    options: &GenerationConfig,
    each: &mut dyn FnMut(Item) -> ControlFlow<()>,
) -> Result<Generation> {
    let rows = match prompt {
        Prompt::Items(items) => match &items[..] {
            [Item::Series(rows)] if !rows.is_empty() => rows,
            _ => return Err(not_a_series()),
        },
        Prompt::Chat(_) | Prompt::Infill { .. } => return Err(not_a_series()),
    };
    options.check()?;
    let series: Vec<History> = rows.iter().cloned().map(History::from).collect();
    let wanted = ForecastConfig {
        horizon: options.max_new_tokens,
        quantiles: Vec::new(),
        samples: None,
        seed: options.seed,
    };
    let forecasts = forecaster.forecast(&series, &wanted)?;
    // Nothing is left to stop.
    let _ = each(Item::Series(forecasts.into_iter().map(|forecast| forecast.mean).collect()));
    Ok(Generation::default())
}

fn not_a_series() -> Error {
    Error::input("this model continues series: the prompt must be one item, a list of series")
}

/// One embedding per item: the mean over its series of `embed`, `(series, hidden_size)`.
pub(crate) fn embed(
    items: &[Item],
    context: usize,
    embed: impl Fn(&[History]) -> Result<Tensor>,
) -> Result<Embeddings> {
    let mut vectors = Vec::with_capacity(items.len());
    let mut cut = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let Item::Series(rows) = item else {
            return Err(Error::input(format!(
                "item {index}: this model reads series, not {}",
                item.modality()
            )));
        };
        let series: Vec<History> = rows.iter().cloned().map(History::from).collect();
        if series.is_empty() {
            return Err(Error::input(format!("item {index} holds no series")));
        }
        check(&series).map_err(|error| error.context(format!("item {index}")))?;
        let vector = embed(&series)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        vectors.push(vector.mean_keepdim(0)?);
        cut.push(rows.iter().map(|row| row.len().saturating_sub(context)).max().unwrap_or(0));
    }
    match vectors.is_empty() {
        true => Err(Error::input("no series to embed")),
        false => Ok(Embeddings::new(Tensor::cat(&vectors, 0)?, cut)),
    }
}

/// The mean of `states`, `(series, sequence, hidden_size)`, over the `chosen` positions, `(series, hidden_size)`; zeros if
/// there are none.
pub(crate) fn mean_of(states: &Tensor, chosen: &[Vec<bool>]) -> Result<Tensor> {
    let time = states.dim(1)?;
    let share = |row: &Vec<bool>| {
        let count = row.iter().filter(|chosen| **chosen).count().max(1) as f32;
        (0..time).map(|i| if row.get(i) == Some(&true) { 1.0 / count } else { 0.0 }).collect::<Vec<f32>>()
    };
    let shares: Vec<f32> = chosen.iter().flat_map(share).collect();
    let shares = Tensor::from_vec(shares, (chosen.len(), 1, time), states.device())?;
    Ok(shares.to_dtype(states.dtype())?.matmul(&states.contiguous()?)?.squeeze(1)?)
}

/// A window of a series to learn from.
pub(crate) struct Window<'a> {
    history: &'a History,
    past: Range<usize>,
    future: Range<usize>,
}

impl<'a> Window<'a> {
    /// The values that are read.
    pub(crate) fn past(&self) -> &'a [f32] {
        &self.history.values[self.past.clone()]
    }

    /// The values after them, which are learned; NaN for gaps.
    pub(crate) fn future(&self) -> &'a [f32] {
        &self.history.values[self.future.clone()]
    }

    /// The values of each covariate at the steps that are read.
    pub(crate) fn covariates(&self) -> impl Iterator<Item = &'a [f32]> + '_ {
        self.history.covariates.iter().map(|covariate| &covariate.past[self.past.clone()])
    }

    /// The whole series.
    pub(crate) fn history(&self) -> &'a History {
        self.history
    }
}

/// A random window of each example by `options.seed`: `horizon` steps, and up to `context` steps before them, or
/// `options.max_length` if that is less. Both parts have a value. Also returns the number of steps before the windows
/// that were truncated.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for other kinds of examples, and for a series that is too short or has
/// gaps only.
pub(crate) fn windows<'a>(
    examples: &'a [Example],
    context: usize,
    horizon: usize,
    options: &Collation,
) -> Result<(Vec<Window<'a>>, usize)> {
    let longest = options.max_length.unwrap_or(context).min(context).max(1);
    let mut truncated = 0;
    let mut windows = Vec::with_capacity(examples.len());
    for (example, stream) in examples.iter().zip(0..) {
        let Example::Series { id, history } = example else { return Err(not_learned(example, "series")) };
        let values = &history.values;
        if let Some(step) = infinite(values) {
            return Err(Error::input(format!("series \"{id}\" is infinite at step {step}")));
        }
        let odd = history.covariates.iter().find(|covariate| covariate.past.len() != values.len());
        if let Some(covariate) = odd {
            let (found, wanted) = (covariate.past.len(), values.len());
            let message = format!("series \"{id}\": the covariate \"{}\" has {found} values", covariate.name);
            return Err(Error::input(message).hint(format!("expected {wanted}, as many as the series")));
        }
        let has_value = |steps: Range<usize>| values[steps].iter().any(|value| !value.is_nan());
        let past = |cut: usize| cut.saturating_sub(longest)..cut;
        let last = values.len().saturating_sub(horizon);
        let fits = |cut: &usize| has_value(past(*cut)) && has_value(*cut..*cut + horizon);
        let cuts: Vec<usize> = (1..=last).filter(fits).collect();
        if cuts.is_empty() {
            let message = format!(
                "series \"{id}\" of {} steps has no window of values before {horizon} steps",
                values.len()
            );
            return Err(Error::input(message).hint("set a shorter horizon, or leave short series out"));
        }
        let drawn = Rng::new(options.seed, stream).uniform() * cuts.len() as f64;
        let cut = cuts[(drawn as usize).min(cuts.len() - 1)];
        truncated += past(cut).start;
        windows.push(Window { history, past: past(cut), future: cut..cut + horizon });
    }
    match windows.is_empty() {
        true => Err(Error::input("no series to learn from")),
        false => Ok((windows, truncated)),
    }
}

/// The input `name` of a loss, `(rows, steps)`, as rows of float32.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if it is missing, has another number of rows, or more than `longest` steps.
pub(crate) fn targets(inputs: &Tensors, name: &str, count: usize, longest: usize) -> Result<Vec<Vec<f32>>> {
    let found = rows(inputs, name)?;
    let steps = found[0].len();
    match found.len() == count && steps <= longest {
        true => Ok(found),
        false => Err(Error::input(format!(
            "{name} is [{}, {steps}], expected {count} rows of at most {longest} steps",
            found.len()
        ))),
    }
}

/// The targets of quantile losses, `(rows, steps)` normalised by `normalise(row, value)`, 0 where masked or beyond them,
/// and their weights, 1 where they are learned. The input `name` has up to `steps` steps, and `mask` as many; without a
/// mask, NaN is masked.
///
/// # Errors
/// As [`targets`].
pub(crate) fn masked_targets(
    inputs: &Tensors,
    [name, mask]: [&str; 2],
    (count, steps): (usize, usize),
    normalise: impl Fn(usize, f32) -> f32,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let targets = self::targets(inputs, name, count, steps)?;
    let masks = match inputs.contains_key(mask) {
        true => Some(self::targets(inputs, mask, count, targets[0].len())?),
        false => None,
    };
    let (mut values, mut weights) = (vec![0f32; count * steps], vec![0f32; count * steps]);
    for (row, target) in targets.iter().enumerate() {
        for (step, value) in target.iter().enumerate() {
            let is_learned = match &masks {
                Some(masks) => masks[row].get(step).is_some_and(|mask| *mask > 0.0),
                None => !value.is_nan(),
            };
            if is_learned {
                (values[row * steps + step], weights[row * steps + step]) = (normalise(row, *value), 1.0);
            }
        }
    }
    Ok((values, weights))
}

/// Synthetic series of the given sizes (seasonal, with trend and noise) as the input `name`, for a `method` among
/// `methods`.
///
/// # Errors
/// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for another method, [`Input`](fauna_shared::ErrorKind::Input) if
/// the sizes are zero.
pub(crate) fn sample(name: &str, method: &str, methods: &[&str], sizes: &SampleSizes) -> Result<Tensors> {
    if !methods.contains(&method) {
        return Err(Error::unsupported(format!("no sample inputs for the method \"{method}\"")));
    }
    if sizes.rows == 0 || sizes.tokens == 0 || sizes.images > 0 {
        return Err(Error::input(format!(
            "no sample inputs of {} series of {} steps and {} images",
            sizes.rows, sizes.tokens, sizes.images
        )));
    }
    let mut random = Rng::new(0, 0);
    let mut row = |row: usize| {
        let mut value = |t: usize| {
            let (t, period) = (t as f64, 7.0 + row as f64 % 31.0);
            let wave = (t * std::f64::consts::TAU / period).sin();
            (10.0 + wave + 0.01 * t + 0.2 * random.normal()) as f32
        };
        (0..sizes.tokens).map(&mut value).collect()
    };
    let made: Vec<Vec<f32>> = (0..sizes.rows).map(&mut row).collect();
    Ok(Tensors::from([(name.to_string(), host(made.concat(), (sizes.rows, sizes.tokens))?)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_index_of_the_series() {
        let good = History::from(vec![1.0, f32::NAN]);
        assert!(check(&[good.clone(), History::from(vec![0.0; 3])]).is_ok());
        for (values, words) in [
            (vec![], "series 1 has no values"),
            (vec![f32::NAN; 4], "series 1 holds gaps only (NaN)"),
            (vec![1.0, f32::NEG_INFINITY], "series 1 is infinite at step 1"),
        ] {
            assert_eq!(check(&[good.clone(), values.into()]).unwrap_err().message(), words);
        }
    }

    #[test]
    fn shorter_series_are_padded_on_the_left() {
        let (table, steps) = left_padded(&[vec![1.0], vec![2.0, 3.0, 4.0]], 2);
        assert_eq!(steps, 2);
        assert!(table[0].is_nan());
        assert_eq!(table[1..], [1.0, 3.0, 4.0]);
    }

    #[test]
    fn a_mean_is_over_the_chosen_positions() {
        let states = Tensor::new(&[[[1f32, 2.0], [3.0, 4.0], [9.0, 9.0]]], &Device::Cpu).unwrap();
        let mean = mean_of(&states, &[vec![true, true]]).unwrap();
        assert_eq!(mean.to_vec2::<f32>().unwrap(), [[2.0, 3.0]]);
    }

    #[test]
    fn options_of_other_types_are_refused() {
        let options = serde_json::json!({"a": "x", "b": [0.5, 2.0], "c": -1});
        assert!(count(&options, "c").unwrap_err().message().contains("c must be an integer"));
        assert!(levels(&options, "b").unwrap_err().message().contains("b must be numbers between 0 and 1"));
        assert!(flag(&options, "a").unwrap_err().message().contains("a must be true or false"));
        assert!(number(&options, "a").is_err() && number(&options, "d").unwrap().is_none());
    }
}
