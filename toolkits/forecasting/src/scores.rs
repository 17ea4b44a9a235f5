//! How far forecasts are off.

use serde::Serialize;

use fauna_shared::model::ExactForecast;

use super::predict::Cut;
use super::sheet::{Column, Part, Sheet};
use super::table::{Series, Table};

/// The quantiles over which the weighted quantile loss is taken.
pub(super) const DECILES: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// How far one model is off, on one series or on all. Steps without a value do not count.
///
/// The formulas are those of `utilsforecast`; of all series together the mean over those that have a number, save for
/// `crps`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// The series; none for all of them.
    pub id: Option<String>,
    /// The model.
    pub model: String,
    /// Mean absolute error, in the units of the data.
    pub mae: f64,
    /// Root of the mean square error, in the units of the data.
    pub rmse: f64,
    /// Mean absolute error over that of the seasonal naive forecast, one step ahead, on what was known: mean over the
    /// windows. NaN where that is zero or there is no season of values.
    pub mase: f64,
    /// Mean of |y - forecast| / (|y| + |forecast|), from 0 to 1; 0 where both are zero.
    pub smape: f64,
    /// Weighted quantile loss over the quantiles 0.1 to 0.9: twice the mean quantile loss over the mean |y|; of all
    /// series over all their values. It approximates the continuous ranked probability score, over the mean |y|.
    pub crps: f64,
}

/// The errors of one forecast.
#[derive(Debug, Clone)]
pub(super) struct Window {
    id: String,
    count: f64,
    absolute: f64,
    square: f64,
    symmetric: f64,
    /// The mean absolute error over its scale.
    scaled: f64,
    /// The loss of each quantile, summed over steps and averaged over quantiles.
    quantile: f64,
    size: f64,
}

impl Window {
    /// The errors of `made` at `cut`, whose deciles are at `deciles` among its quantiles.
    pub fn of(series: &Series, cut: Cut, made: &ExactForecast, deciles: &[usize], season: usize) -> Self {
        let mut window = Self {
            id: series.id.clone(),
            count: 0.0,
            absolute: 0.0,
            square: 0.0,
            symmetric: 0.0,
            scaled: 0.0,
            quantile: 0.0,
            size: 0.0,
        };
        for (step, mean) in made.mean.iter().enumerate() {
            let (value, mean) = (series.values[cut.end + step], *mean);
            if !value.is_finite() {
                continue;
            }
            let error = (value - mean).abs();
            window.count += 1.0;
            window.absolute += error;
            window.square += error * error;
            window.symmetric += if error == 0.0 { 0.0 } else { error / (value.abs() + mean.abs()) };
            window.size += value.abs();
            let losses = deciles.iter().zip(DECILES).map(|(place, level)| {
                let error = value - made.quantiles[*place][step];
                (level * error).max((level - 1.0) * error)
            });
            window.quantile += losses.sum::<f64>() / DECILES.len() as f64;
        }
        window.scaled = window.absolute / window.count / scale(&series.values[..cut.end], season);
        window
    }
}

/// The mean absolute difference to the value of a season ago; NaN where it is zero or there is none.
fn scale(values: &[f64], season: usize) -> f64 {
    let differences = values.iter().zip(values.iter().skip(season)).map(|(before, now)| (now - before).abs());
    match mean(differences) {
        scale if scale > 0.0 => scale,
        _ => f64::NAN,
    }
}

/// The mean of those that are numbers; NaN for none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values
        .filter(|value| value.is_finite())
        .fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

impl Scores {
    /// Those of each series, in the order of `windows`, then of all.
    pub(super) fn all(model: &str, windows: &[Window]) -> Vec<Self> {
        let mut scores: Vec<Self> =
            windows.chunk_by(|a, b| a.id == b.id).map(|windows| Self::of(model, windows)).collect();
        let over = |value: fn(&Self) -> f64| mean(scores.iter().map(value));
        let all = Self {
            id: None,
            mae: over(|s| s.mae),
            rmse: over(|s| s.rmse),
            mase: over(|s| s.mase),
            smape: over(|s| s.smape),
            crps: loss(windows),
            model: model.to_string(),
        };
        scores.push(all);
        scores
    }

    /// Those of the windows of one series.
    fn of(model: &str, windows: &[Window]) -> Self {
        let sum = |value: fn(&Window) -> f64| windows.iter().map(value).sum::<f64>();
        let count = sum(|w| w.count);
        Self {
            id: windows.first().map(|window| window.id.clone()),
            model: model.to_string(),
            mae: sum(|w| w.absolute) / count,
            rmse: (sum(|w| w.square) / count).sqrt(),
            mase: mean(windows.iter().map(|window| window.scaled)),
            smape: sum(|w| w.symmetric) / count,
            crps: loss(windows),
        }
    }

    /// A note of the series whose MASE is undefined.
    pub(super) fn undefined(scores: &[Self], season: &str) -> Option<String> {
        let first = scores.first()?.model.as_str();
        let names: Vec<&str> = scores
            .iter()
            .filter(|one| one.model == first && one.mase.is_nan())
            .filter_map(|one| one.id.as_deref())
            .collect();
        (!names.is_empty()).then(|| {
            format!(
                "MASE is undefined for series that are constant from season to season, or no longer than one \
                 (season {season}): {}",
                fauna_shared::error::first_five(names).replace('\n', ", ")
            )
        })
    }

    /// `scores` as a sheet with columns `model`, `mae`, `rmse`, `mase`, `smape`, `crps`; all series together are called
    /// `all`.
    pub fn sheet(scores: &[Self], table: &Table) -> Sheet {
        let names = ["model", "mae", "rmse", "mase", "smape", "crps"];
        let mut sheet = Sheet::of(table, names.iter().map(|name| (*name).to_string()).collect());
        // Without names there is one series, and all of them is the same.
        let shown = scores.iter().filter(|one| table.named || one.id.is_none());
        sheet.parts.extend(shown.map(|one| {
            let numbers = [one.mae, one.rmse, one.mase, one.smape, one.crps];
            let words = Column::Words(vec![one.model.clone()]);
            let numbers = numbers.into_iter().map(|number| Column::Exact(vec![number]));
            Part {
                id: one.id.clone().unwrap_or_else(|| "all".to_string()),
                columns: std::iter::once(words).chain(numbers).collect(),
            }
        }));
        sheet
    }
}

/// The weighted quantile loss; NaN where all values are zero.
fn loss(windows: &[Window]) -> f64 {
    let known = windows.iter().filter(|window| window.quantile.is_finite());
    let (loss, size) =
        known.fold((0.0, 0.0), |(loss, size), window| (loss + window.quantile, size + window.size));
    if size > 0.0 { 2.0 * loss / size } else { f64::NAN }
}
