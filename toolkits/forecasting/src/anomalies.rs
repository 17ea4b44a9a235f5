//! Anomaly detection: values outside of a prediction interval of rolling forecasts.

use fauna_shared::model::{ForecastConfig, Forecaster};
use fauna_shared::{Error, Result};

use crate::baseline::normal_quantile;
use crate::intervals::Intervals;
use crate::options::ForecastOptions;
use crate::predict::{Cutoff, is_exact, rolling_cutoffs, run};
use crate::prepare::{PreparedSeries, prepare};
use crate::result_table::{Column, ResultTable, SeriesResult, TableOutput};
use crate::series::{SeriesError, series_label};
use crate::table::Table;

/// Number of windows from which each step of the horizon has an interval of its own.
const MIN_WINDOWS_PER_STEP: usize = 10;
/// Median absolute deviation of the standard normal distribution.
const NORMAL_MEDIAN_DEVIATION: f64 = 0.674_489_750_196_081_7;
/// Mean absolute deviation of the standard normal distribution.
const NORMAL_MEAN_DEVIATION: f64 = 0.797_884_560_802_865_4;

/// Flags values outside of a prediction interval of rolling forecasts over the whole series.
///
/// Each forecast is of [`horizon`](ForecastOptions::horizon) steps; the first two seasons are not judged. The columns are
/// ids, timestamps and values, `MODEL`, `MODEL-lo-LEVEL`, `MODEL-hi-LEVEL` and `anomaly`, for the highest level of
/// [`intervals`](ForecastOptions::intervals), 99 if there is none.
///
/// The interval is that of a normal distribution whose standard deviation is the median absolute error of the rolling
/// forecasts over 0.6745, so that anomalies do not widen it: per step of the horizon from ten forecasts on, else over all
/// steps.
///
/// # Errors
/// As [`forecast`](crate::forecast). The error of a series that is too short has the length that is needed.
pub fn detect_anomalies(
    model: &dyn Forecaster,
    table: &Table,
    options: &ForecastOptions,
) -> Result<TableOutput> {
    options.check()?;
    let level = match &options.intervals {
        Intervals::None => 99.0,
        Intervals::Levels(levels) => levels.last().copied().unwrap_or(99.0),
        Intervals::Quantiles(_) => {
            return Err(Error::input("anomalies are detected by a level, not by quantiles").set(
                "set a level",
                "Intervals::Levels",
                "99",
            ));
        }
    };
    let horizon = options.horizon;
    let mut prepared = prepare(table, &options.without_future(), model.reads_covariates())?;
    let mut cutoffs = Vec::new();
    for (series, prepared_series) in prepared.series.iter().enumerate() {
        let end = prepared_series.series.values.len();
        let warm_up = 2 * prepared_series.season_length.max(2);
        let windows = (end.saturating_sub(warm_up) / horizon).max(1);
        let found = match end < warm_up + horizon {
            true => Err(too_short(prepared_series, warm_up, horizon)),
            false => rolling_cutoffs(prepared_series, Cutoff { series, end }, horizon, windows, horizon),
        };
        match found {
            Ok(found) => cutoffs.extend(found),
            Err(error) => {
                prepared.errors.push(SeriesError { id: prepared_series.series.id.clone(), error });
            }
        }
    }
    let config = ForecastConfig { quantiles: Vec::new(), ..options.forecast_config(&[]) };
    let forecasts = run(model, &prepared, options, config, None, &cutoffs, "looking for anomalies")?;
    let intervals = Intervals::Levels(vec![level]).columns(&options.model);
    let names = [table.columns.time.clone(), table.columns.target.clone(), options.model.clone()];
    let names = names.into_iter().chain(intervals.into_iter().map(|(name, _)| name));
    let mut result = ResultTable::for_table(table, names.chain(["anomaly".to_string()]).collect());
    result.timestamp_format = prepared.timestamp_format;
    let exact = is_exact(model)?;
    let mut rows = cutoffs.iter().zip(forecasts).peekable();
    while let Some(index) = rows.peek().map(|(cutoff, _)| cutoff.series) {
        let series = &prepared.series[index].series;
        let (mut means, mut start, mut failed) = (Vec::new(), usize::MAX, None);
        while let Some((cutoff, forecast)) = rows.next_if(|(cutoff, _)| cutoff.series == index) {
            start = start.min(cutoff.end);
            match forecast {
                Ok(forecast) => means.extend(forecast.mean),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => prepared.errors.push(SeriesError { id: series.id.clone(), error }),
            None => {
                let columns = flagged_columns(exact, &series.values[start..], means, horizon, level);
                let timestamps = Column::Timestamps(series.timestamps[start..].to_vec());
                let columns = std::iter::once(timestamps).chain(columns).collect();
                result.series.push(SeriesResult { id: series.id.clone(), columns });
            }
        }
    }
    Ok(TableOutput { table: result, errors: prepared.errors, notes: prepared.notes })
}

/// Values, point forecasts, lower and upper ends of the interval, and flags.
fn flagged_columns(exact: bool, values: &[f64], means: Vec<f64>, horizon: usize, level: f64) -> Vec<Column> {
    let errors: Vec<f64> = values.iter().zip(&means).map(|(value, mean)| (value - mean).abs()).collect();
    let deviations: Vec<f64> = match errors.len() / horizon >= MIN_WINDOWS_PER_STEP {
        true => (0..horizon)
            .map(|step| robust_deviation(errors.iter().skip(step).step_by(horizon).copied()))
            .collect(),
        false => vec![robust_deviation(errors.iter().copied())],
    };
    let z = normal_quantile((100.0 + level) / 200.0);
    let half_width = |row: usize| z * deviations[row % horizon % deviations.len()];
    let end = |side: f64| -> Vec<f64> {
        means.iter().enumerate().map(|(row, mean)| mean + side * half_width(row)).collect()
    };
    let is_outside = |(row, (value, mean)): (usize, (&f64, &f64))| {
        // The tolerance covers the rounding of float32.
        (value - mean).abs() > half_width(row) + 1e-6 * value.abs()
    };
    let flags = values.iter().zip(&means).enumerate().map(is_outside).collect();
    vec![
        Column::Float64(values.to_vec()),
        Column::of_forecast(exact, means.clone()),
        Column::of_forecast(exact, end(-1.0)),
        Column::of_forecast(exact, end(1.0)),
        Column::Boolean(flags),
    ]
}

/// The standard deviation of normal errors with the finite ones of these absolute values: by their median, or by their
/// mean where the median is zero; NaN for none.
fn robust_deviation(errors: impl Iterator<Item = f64>) -> f64 {
    let mut errors: Vec<f64> = errors.filter(|error| error.is_finite()).collect();
    errors.sort_by(f64::total_cmp);
    let count = errors.len();
    if count == 0 {
        return f64::NAN;
    }
    let median = (errors[(count - 1) / 2] + errors[count / 2]) / 2.0;
    match median > 0.0 {
        true => median / NORMAL_MEDIAN_DEVIATION,
        false => errors.iter().sum::<f64>() / count as f64 / NORMAL_MEAN_DEVIATION,
    }
}

fn too_short(prepared: &PreparedSeries, warm_up: usize, horizon: usize) -> Error {
    Error::input(format!(
        "{} has {} steps; two seasons ({warm_up} steps) and a horizon of {horizon} need {}",
        series_label(&prepared.series.id),
        prepared.series.values.len(),
        warm_up + horizon
    ))
    .set("set a shorter horizon", "ForecastOptions::horizon", "N")
    .set("or a shorter season", "ForecastOptions::season_length", "N")
}
