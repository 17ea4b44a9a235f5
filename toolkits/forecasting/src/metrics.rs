//! Accuracy metrics of forecasts, by the formulas of `utilsforecast`.
//!
//! Steps whose actual value is not finite do not count. A metric without any step is NaN.
//!
//! ```
//! use fauna_forecasting::metrics::{mae, mase, rmse, smape};
//! let (actual, forecast) = ([3.0, 4.0, f64::NAN], [2.0, 7.0, 1.0]);
//! assert_eq!(mae(&actual, &forecast), 2.0);
//! assert_eq!(rmse(&actual, &forecast), 5.0_f64.sqrt());
//! assert_eq!(smape(&actual, &forecast), (1.0 / 5.0 + 3.0 / 11.0) / 2.0);
//! // The seasonal naive forecast is off by 1 in the history.
//! assert_eq!(mase(&actual, &forecast, &[1.0, 2.0, 3.0], 1), 2.0);
//! ```

use serde::Serialize;

/// Mean absolute error.
pub fn mae(actual: &[f64], forecast: &[f64]) -> f64 {
    ErrorSums::of(actual, forecast).mae()
}

/// Root mean square error.
pub fn rmse(actual: &[f64], forecast: &[f64]) -> f64 {
    ErrorSums::of(actual, forecast).rmse()
}

/// Symmetric mean absolute percentage error: the mean of |y - forecast| / (|y| + |forecast|), from 0 to 1; 0 where both
/// are zero.
pub fn smape(actual: &[f64], forecast: &[f64]) -> f64 {
    ErrorSums::of(actual, forecast).smape()
}

/// Mean absolute scaled error: the mean absolute error over that of the one-step seasonal naive forecast on `history`,
/// the values before the forecast. NaN where the latter is zero or has no step.
pub fn mase(actual: &[f64], forecast: &[f64], history: &[f64], season_length: usize) -> f64 {
    mae(actual, forecast) / naive_scale(history, season_length)
}

/// Scaled continuous ranked probability score: twice the mean quantile loss over the mean |y|.
///
/// `quantiles` holds one forecast per level of `levels`.
pub fn scaled_crps(actual: &[f64], quantiles: &[Vec<f64>], levels: &[f64]) -> f64 {
    let mut sums = ErrorSums::default();
    for (step, value) in actual.iter().enumerate().filter(|(_, value)| value.is_finite()) {
        let at_step = quantiles.iter().map(|forecast| forecast.get(step).copied().unwrap_or(f64::NAN));
        sums.add_quantiles(*value, at_step, levels);
    }
    sums.scaled_crps()
}

/// Mean absolute difference to the value one season before; NaN where it is zero or there is none.
fn naive_scale(history: &[f64], season_length: usize) -> f64 {
    let pairs = history.iter().zip(history.iter().skip(season_length));
    match finite_mean(pairs.map(|(before, now)| (now - before).abs())) {
        scale if scale > 0.0 => scale,
        _ => f64::NAN,
    }
}

/// The mean of the finite values; NaN if there are none.
fn finite_mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values
        .filter(|value| value.is_finite())
        .fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// Sums over steps from which the metrics are computed.
#[derive(Debug, Clone, Copy, Default)]
struct ErrorSums {
    count: f64,
    absolute: f64,
    square: f64,
    symmetric: f64,
    /// Quantile loss, averaged over quantiles.
    quantile_loss: f64,
    /// |y| over the steps with quantiles.
    magnitude: f64,
}

impl ErrorSums {
    fn of(actual: &[f64], forecast: &[f64]) -> Self {
        let mut sums = Self::default();
        for (value, forecast) in actual.iter().zip(forecast).filter(|(value, _)| value.is_finite()) {
            sums.add(*value, *forecast);
        }
        sums
    }

    fn add(&mut self, value: f64, forecast: f64) {
        let error = (value - forecast).abs();
        self.count += 1.0;
        self.absolute += error;
        self.square += error * error;
        self.symmetric += if error == 0.0 { 0.0 } else { error / (value.abs() + forecast.abs()) };
    }

    fn add_quantiles(&mut self, value: f64, quantiles: impl Iterator<Item = f64>, levels: &[f64]) {
        let losses = quantiles.zip(levels).map(|(quantile, level)| {
            let error = value - quantile;
            (level * error).max((level - 1.0) * error)
        });
        self.quantile_loss += losses.sum::<f64>() / levels.len() as f64;
        self.magnitude += value.abs();
    }

    fn mae(&self) -> f64 {
        self.absolute / self.count
    }

    fn rmse(&self) -> f64 {
        (self.square / self.count).sqrt()
    }

    fn smape(&self) -> f64 {
        self.symmetric / self.count
    }

    /// NaN where all values are zero.
    fn scaled_crps(&self) -> f64 {
        if self.magnitude > 0.0 { 2.0 * self.quantile_loss / self.magnitude } else { f64::NAN }
    }
}

/// Metrics of one model, on one series or averaged over all.
///
/// The average over all series is the mean of the finite values, except for `crps`, which is computed over the steps of
/// all series.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    /// Name of the series; `None` for the average over all.
    pub id: Option<String>,
    /// Name of the model.
    pub model: String,
    /// Mean absolute error, in the units of the data; see [`mae`].
    pub mae: f64,
    /// Root mean square error, in the units of the data; see [`rmse`].
    pub rmse: f64,
    /// Mean absolute scaled error, averaged over the windows; see [`mase`].
    pub mase: f64,
    /// Symmetric mean absolute percentage error, from 0 to 1; see [`smape`].
    pub smape: f64,
    /// Scaled continuous ranked probability score over the quantiles 0.1 to 0.9; see [`scaled_crps`].
    pub crps: f64,
}

#[cfg(feature = "calendar")]
pub(crate) use windows::{DECILES, Window};

/// Metrics over the windows of cross-validation.
#[cfg(feature = "calendar")]
mod windows {
    use fauna_shared::error::first_five;
    use fauna_shared::model::ExactForecast;

    use super::{ErrorSums, Metrics, finite_mean, mase};
    use crate::series::Series;

    /// The quantiles of [`Metrics::crps`].
    pub(crate) const DECILES: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

    /// Errors of one forecast of one series.
    #[derive(Debug, Clone)]
    pub(crate) struct Window {
        id: String,
        sums: ErrorSums,
        mase: f64,
    }

    impl Window {
        /// The errors of `forecast`, made after `known` values of `series`; its quantile `deciles[i]` is `DECILES[i]`.
        pub fn new(
            series: &Series,
            known: usize,
            forecast: &ExactForecast,
            deciles: &[usize],
            season_length: usize,
        ) -> Self {
            let (history, actual) = series.values.split_at(known);
            let mut sums = ErrorSums::default();
            for (step, (value, mean)) in actual.iter().zip(&forecast.mean).enumerate() {
                if value.is_finite() {
                    sums.add(*value, *mean);
                    let quantiles = deciles.iter().map(|decile| forecast.quantiles[*decile][step]);
                    sums.add_quantiles(*value, quantiles, &DECILES);
                }
            }
            Self { id: series.id.clone(), sums, mase: mase(actual, &forecast.mean, history, season_length) }
        }
    }

    impl Metrics {
        /// The metrics of each series, in the order of `windows`, then the average over all.
        pub(crate) fn of_windows(model: &str, windows: &[Window]) -> Vec<Self> {
            let by_series = windows.chunk_by(|a, b| a.id == b.id);
            let mut metrics: Vec<Self> = by_series.map(|windows| Self::of_series(model, windows)).collect();
            let average = |value: fn(&Self) -> f64| finite_mean(metrics.iter().map(value));
            let all = Self {
                id: None,
                model: model.to_string(),
                mae: average(|m| m.mae),
                rmse: average(|m| m.rmse),
                mase: average(|m| m.mase),
                smape: average(|m| m.smape),
                crps: total(windows).scaled_crps(),
            };
            metrics.push(all);
            metrics
        }

        fn of_series(model: &str, windows: &[Window]) -> Self {
            let sums = total(windows);
            Self {
                id: windows.first().map(|window| window.id.clone()),
                model: model.to_string(),
                mae: sums.mae(),
                rmse: sums.rmse(),
                mase: finite_mean(windows.iter().map(|window| window.mase)),
                smape: sums.smape(),
                crps: sums.scaled_crps(),
            }
        }

        /// A note that lists the series whose MASE is undefined.
        pub(crate) fn undefined_mase(metrics: &[Self], season_lengths: &str) -> Option<String> {
            let first = metrics.first()?.model.as_str();
            let ids: Vec<&str> = metrics
                .iter()
                .filter(|one| one.model == first && one.mase.is_nan())
                .filter_map(|one| one.id.as_deref())
                .collect();
            (!ids.is_empty()).then(|| {
                format!(
                    "MASE is undefined for series that are constant from season to season or no longer than one \
                     season (season length {season_lengths}): {}",
                    first_five(ids).replace('\n', ", ")
                )
            })
        }
    }

    /// The sums over all windows; quantile losses that are not finite do not count.
    fn total(windows: &[Window]) -> ErrorSums {
        windows.iter().fold(ErrorSums::default(), |all, Window { sums, .. }| {
            let has_loss = sums.quantile_loss.is_finite();
            ErrorSums {
                count: all.count + sums.count,
                absolute: all.absolute + sums.absolute,
                square: all.square + sums.square,
                symmetric: all.symmetric + sums.symmetric,
                quantile_loss: all.quantile_loss + if has_loss { sums.quantile_loss } else { 0.0 },
                magnitude: all.magnitude + if has_loss { sums.magnitude } else { 0.0 },
            }
        })
    }
}
