//! What both pipelines of TimesFM share: how series come in, and how forecasts go out.

use candle_core::{DType, Tensor};
use fauna_shared::item::Tensors;
use fauna_shared::model::{Forecast, ForecastConfig, History};
use fauna_shared::{Error, Result};
use serde_json::Value;

use crate::chronos::patches::Norm;
use crate::quantiles::between_levels;
use crate::series::{self, collected, floats, host};

/// Refuses levels that do not rise between 0 and 1.
pub(super) fn check_levels(levels: &[f64]) -> Result<()> {
    let inside = levels.iter().all(|level| *level > 0.0 && *level < 1.0);
    match inside && !levels.is_empty() && levels.windows(2).all(|pair| pair[0] < pair[1]) {
        true => Ok(()),
        false => Err(Error::unsupported(format!("quantiles {levels:?} do not rise from 0 to 1"))),
    }
}

/// What may be asked of a pass besides its series.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    /// Steps of the moving average that is forecast apart from the rest.
    pub window: Option<usize>,
    /// Steps read at most.
    pub context: Option<usize>,
    /// Nothing below 0 if no input was.
    pub truncate: Option<bool>,
    /// Mirrored forecasts for mirrored series.
    pub flip: Option<bool>,
    /// The forecasts of every patch but the first, before that of the future.
    pub on_context: bool,
}

impl Wishes {
    /// Those that `options` hold by the reference's names.
    pub fn of(options: &Value) -> Result<Self> {
        let window = series::count(options, "window_size")?;
        let context = series::count(options, "forecast_context_len")?;
        if window == Some(0) || context == Some(0) {
            return Err(Error::input("window_size and forecast_context_len are 1 or above"));
        }
        Ok(Self {
            window,
            context,
            truncate: series::truth(options, "truncate_negative")?,
            flip: series::truth(options, "force_flip_invariance")?,
            on_context: series::truth(options, "return_forecast_on_context")?.unwrap_or(false),
        })
    }
}

/// Series, and the frequency of each where it was said.
pub(super) type Asked = (Vec<Vec<f32>>, Option<Vec<i64>>);

/// The series of `past_values`, `(series, steps)`, or of `past_values.0`, `past_values.1`, …, `(steps)` each; and `freq`,
/// if `paced`.
pub(super) fn inputs(inputs: &Tensors, paced: bool) -> Result<Asked> {
    const LIST: &str = "past_values.";
    let number = |name: &str| name.strip_prefix(LIST).and_then(|number| number.parse::<usize>().ok());
    let strange =
        |name: &&String| !(number(name).is_some() || *name == "past_values" || paced && *name == "freq");
    if let Some(name) = inputs.keys().find(strange) {
        let freq = if paced { "freq, " } else { "" };
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
                [_] if tensor.elem_count() > 0 => Ok(tensor.to_dtype(DType::F32)?.to_vec1()?),
                dims => Err(Error::input(format!("{LIST}{number} is {dims:?}, wanted (steps)"))),
            };
            list.into_iter().map(row).collect::<Result<_>>()?
        }
    };
    let freq = match inputs.get("freq") {
        Some(freq) if freq.elem_count() != rows.len() => {
            return Err(Error::input(format!(
                "freq is {:?}, wanted one for each of {} series",
                freq.dims(),
                rows.len()
            )));
        }
        Some(freq) => Some(freq.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?),
        None => None,
    };
    Ok((rows, freq))
}

/// Steps read of series of which the longest counts: a multiple of the patch.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if it is none.
pub(super) fn whole_patches(context: usize, patch: usize) -> Result<usize> {
    match context.is_multiple_of(patch) {
        true => Ok(context),
        false => Err(Error::input(format!(
            "a context of {context} steps is not a multiple of the patch of {patch}"
        ))),
    }
}

/// A moving average over `window` steps, with zeros before the first, and what is left: the trend and the rest.
pub(super) fn decomposed(series: &[f32], window: usize) -> [Vec<f32>; 2] {
    let mean = |i: usize| {
        let seen = &series[(i + 1).saturating_sub(window)..=i];
        (seen.iter().map(|value| f64::from(*value)).sum::<f64>() / window as f64) as f32
    };
    let trend: Vec<f32> = (0..series.len()).map(mean).collect();
    let rest = series.iter().zip(&trend).map(|(value, trend)| value - trend).collect();
    [trend, rest]
}

/// Every series as trend and rest, one after the other.
pub(super) fn all_decomposed(series: &[Vec<f32>], window: usize) -> Vec<Vec<f32>> {
    series.iter().flat_map(|one| decomposed(one, window)).collect()
}

/// The sums of pairs of rows of `values`, of `each` numbers a row: trend and rest put together again.
pub(super) fn composed(values: &[f32], each: usize) -> Vec<f32> {
    let sum = |pair: &[f32]| -> Vec<f32> { (0..each).map(|i| pair[i] + pair[each + i]).collect() };
    values.chunks_exact(2 * each.max(1)).flat_map(sum).collect()
}

/// A series without the gaps at its start, and with straight lines across the others; after the last value, that value.
pub(super) fn filled(values: &[f32]) -> Vec<f32> {
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

/// The series of `pasts` with their gaps filled.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) naming the first that cannot be read.
pub(super) fn readable(pasts: &[History]) -> Result<Vec<Vec<f32>>> {
    series::check(pasts)?;
    Ok(pasts.iter().map(|past| filled(&past.values)).collect())
}

/// A forecast from all channels of all steps, `(horizon, 1 + levels)`.
pub(super) fn forecast(told: &[f32], point: usize, levels: &[f64], options: &ForecastConfig) -> Forecast {
    let narrow: Vec<f32> = levels.iter().map(|level| *level as f32).collect();
    let steps = told.chunks_exact(1 + levels.len()).take(options.horizon);
    let step = |step: &[f32]| (step[point], between_levels(&narrow, &step[1..], &options.quantiles));
    collected(steps.map(step), options.quantiles.len())
}

/// `told`, `(rows, …)`, in the units of the rows that `norms` normalised.
pub(super) fn undone(told: &Tensor, norms: &[Norm]) -> Result<Vec<f32>> {
    let mut told = floats(told)?;
    let each = told.len() / norms.len().max(1);
    for (row, norm) in told.chunks_exact_mut(each.max(1)).zip(norms) {
        row.iter_mut().for_each(|value| *value = norm.undo(*value, false));
    }
    Ok(told)
}

/// The least multiple of `patch` that holds the longest of `rows`, or the whole `context`: patches of padding alone change
/// nothing.
pub(super) fn steps_for(rows: &[Vec<f32>], patch: usize, context: usize) -> usize {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    longest.next_multiple_of(patch).min(context)
}

/// `mean_predictions` and `full_predictions` of all channels, `(series, steps, channels)`.
pub(super) fn predictions(told: Vec<f32>, series: usize, channels: usize, point: usize) -> Result<Tensors> {
    let steps = told.len() / (series * channels).max(1);
    let mean = told.chunks_exact(channels).map(|step| step[point]).collect();
    Ok(Tensors::from([
        ("mean_predictions".to_string(), host(mean, (series, steps))?),
        ("full_predictions".to_string(), host(told, (series, steps, channels))?),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn gaps_are_bridged_and_those_at_the_start_are_left_out() {
        assert_eq!(filled(&[NAN, NAN, 1.0, NAN, NAN, 4.0, NAN]), [1.0, 2.0, 3.0, 4.0, 4.0]);
        assert_eq!(filled(&[5.0]), [5.0]);
        assert!(filled(&[NAN]).is_empty());
    }

    #[test]
    fn trend_and_rest_make_the_series() {
        let [trend, rest] = decomposed(&[2.0, 4.0, 6.0], 2);
        assert_eq!((&trend[..], &rest[..]), (&[1.0, 3.0, 5.0][..], &[1.0, 1.0, 1.0][..]));
        assert_eq!(composed(&[trend, rest].concat(), 3), [2.0, 4.0, 6.0]);
        let [trend, _] = decomposed(&[2.0, 4.0], 1000);
        assert!((trend[1] - 0.006).abs() < 1e-7);
    }

    #[test]
    fn series_come_as_a_table_or_as_a_list() {
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
