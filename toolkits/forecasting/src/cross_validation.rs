//! Cross-validation: forecasts over rolling windows of the past, and their metrics.

use std::ops::Range;

use fauna_shared::Result;
use fauna_shared::model::{ForecastConfig, Forecaster};

use crate::baseline::{Naive, SeasonalNaive};
use crate::metrics::{DECILES, Metrics, Window};
use crate::options::ForecastOptions;
use crate::predict::{Cutoff, interval_note, is_exact, rolling_cutoffs, run};
use crate::prepare::{Prepared, prepare};
use crate::result_table::{Column, ResultTable, SeriesResult};
use crate::series::{Series, SeriesError};
use crate::table::Table;

/// Names of the baselines.
const NAIVE: &str = "Naive";
const SEASONAL_NAIVE: &str = "SeasonalNaive";

/// The result of [`cross_validate`].
#[derive(Debug)]
pub struct CrossValidation {
    /// One row per step of each window: `ds`, `cutoff` (the last known timestamp), `y`, the model's columns.
    pub table: ResultTable,
    /// Metrics of the model, the naive and the seasonal naive forecast on the same windows, in this order; for each, one
    /// entry per series and one for all.
    pub metrics: Vec<Metrics>,
    /// Errors of the series that are not in the table.
    pub errors: Vec<SeriesError>,
    /// What was filled in or left out, and limits of the results.
    pub notes: Vec<String>,
}

/// Evaluates the model on [`windows`](ForecastOptions::windows) rolling forecasts over the end of every series,
/// [`step_size`](ForecastOptions::step_size) steps apart; the last window ends with the series.
///
/// Covariates count as known at the steps to forecast, except
/// [`past_covariates`](ForecastOptions::past_covariates).
///
/// ```
/// use fauna_forecasting::{ForecastOptions, Naive, Table, cross_validate};
/// let table = Table::regular("D".parse()?, "2024-01-01", [("a", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])])?;
/// let options = ForecastOptions { horizon: 2, windows: 2, step_size: Some(1), ..ForecastOptions::default() };
/// let validation = cross_validate(&Naive, &table, &options)?;
/// // From day 4 the forecast is 4, 4 for 5, 6; from day 3 it is 3, 3 for 4, 5.
/// assert_eq!(validation.metrics[0].mae, 1.5);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// As [`forecast`](crate::forecast). The error of a series that is too short has the length that is needed.
pub fn cross_validate(
    model: &dyn Forecaster,
    table: &Table,
    options: &ForecastOptions,
) -> Result<CrossValidation> {
    options.check()?;
    let mut prepared = prepare(table, &options.without_future(), model.reads_covariates())?;
    let mut cutoffs = Vec::new();
    let mut errors = Vec::new();
    for (series, prepared) in prepared.series.iter().enumerate() {
        let end = Cutoff { series, end: prepared.series.values.len() };
        match rolling_cutoffs(prepared, end, options.horizon, options.windows, options.stride()) {
            Ok(found) => cutoffs.extend(found),
            Err(error) => errors.push(SeriesError { id: prepared.series.id.clone(), error }),
        }
    }
    prepared.errors.extend(errors);
    let intervals = options.intervals.columns(&options.model);
    let mut config = options.forecast_config(&intervals);
    let deciles: Vec<usize> = DECILES.iter().map(|level| index_of(&mut config.quantiles, *level)).collect();
    let run = |model: &dyn Forecaster, config, conformal_windows, task| {
        run(model, &prepared, options, config, conformal_windows, &cutoffs, task)
    };
    let forecasts = run(model, config.clone(), options.conformal_windows, "cross-validating")?;
    let baseline_config = ForecastConfig { quantiles: DECILES.to_vec(), ..config };
    let naive = run(&Naive, baseline_config.clone(), None, NAIVE)?;
    let seasonal = run(&SeasonalNaive::AUTO, baseline_config, None, SEASONAL_NAIVE)?;

    let names = [table.columns.time.as_str(), "cutoff", table.columns.target.as_str(), &options.model];
    let names = names.into_iter().map(str::to_string).chain(intervals.iter().map(|(name, _)| name.clone()));
    let mut result = ResultTable::for_table(table, names.collect());
    result.timestamp_format = prepared.timestamp_format;
    let exact = is_exact(model)?;
    let mut windows: [Vec<Window>; 3] = Default::default();
    let all_deciles: Vec<usize> = (0..DECILES.len()).collect();
    let mut rows = cutoffs.iter().zip(forecasts.into_iter().zip(naive.into_iter().zip(seasonal))).peekable();
    while let Some(index) = rows.peek().map(|(cutoff, _)| cutoff.series) {
        let season_length = prepared.series[index].season_length;
        let series = &prepared.series[index].series;
        let (mut columns, mut found, mut failed) = (empty_columns(exact, intervals.len()), Vec::new(), None);
        while let Some((cutoff, (forecast, (naive, seasonal)))) =
            rows.next_if(|(cutoff, _)| cutoff.series == index)
        {
            match forecast.and_then(|forecast| Ok([forecast, naive?, seasonal?])) {
                Ok([forecast, naive, seasonal]) => {
                    found.push([
                        Window::new(series, cutoff.end, &forecast, &deciles, season_length),
                        Window::new(series, cutoff.end, &naive, &all_deciles, season_length),
                        Window::new(series, cutoff.end, &seasonal, &all_deciles, season_length),
                    ]);
                    let steps = cutoff.end..cutoff.end + options.horizon;
                    let quantiles = &forecast.quantiles[..intervals.len()];
                    push_window(&mut columns, series, steps, &forecast.mean, quantiles);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => prepared.errors.push(SeriesError { id: series.id.clone(), error }),
            None => {
                result.series.push(SeriesResult { id: series.id.clone(), columns });
                found.into_iter().flatten().enumerate().for_each(|(i, window)| windows[i % 3].push(window));
            }
        }
    }
    // A model that is itself a baseline is listed once.
    let baselines = [NAIVE, SEASONAL_NAIVE].into_iter().zip(&windows[1..]);
    let baselines = baselines.filter(|(name, _)| *name != options.model);
    let models = std::iter::once((options.model.as_str(), &windows[0])).chain(baselines);
    let metrics: Vec<Metrics> =
        models.flat_map(|(model, windows)| Metrics::of_windows(model, windows)).collect();
    let undefined = Metrics::undefined_mase(&metrics, &season_lengths(&prepared));
    let mut notes = prepared.notes;
    notes.extend(interval_note(model, &intervals, options));
    notes.extend(undefined);
    Ok(CrossValidation { table: result, metrics, errors: prepared.errors, notes })
}

/// The index of `level` among `quantiles`, to which it is added if it is new.
fn index_of(quantiles: &mut Vec<f64>, level: f64) -> usize {
    match quantiles.iter().position(|known| (known - level).abs() < 1e-12) {
        Some(index) => index,
        None => {
            quantiles.push(level);
            quantiles.len() - 1
        }
    }
}

/// The season lengths of all series, for messages.
fn season_lengths(prepared: &Prepared) -> String {
    let mut lengths: Vec<usize> = prepared.series.iter().map(|series| series.season_length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Columns without rows: timestamps, cutoffs, actual values, the point forecast and `quantiles` more.
fn empty_columns(exact: bool, quantiles: usize) -> Vec<Column> {
    let actual =
        [Column::Timestamps(Vec::new()), Column::Timestamps(Vec::new()), Column::Float64(Vec::new())];
    actual.into_iter().chain((0..=quantiles).map(|_| Column::of_forecast(exact, Vec::new()))).collect()
}

/// Appends the rows of one window.
fn push_window(
    columns: &mut [Column],
    series: &Series,
    steps: Range<usize>,
    mean: &Vec<f64>,
    quantiles: &[Vec<f64>],
) {
    let (cutoff, count) = (series.timestamps[steps.start - 1], steps.len());
    let mut numbers = std::iter::once(mean).chain(quantiles);
    for (index, column) in columns.iter_mut().enumerate() {
        match column {
            Column::Timestamps(values) if index == 0 => values.extend(&series.timestamps[steps.clone()]),
            Column::Timestamps(values) => values.extend(std::iter::repeat_n(cutoff, count)),
            Column::Float64(values) if index == 2 => values.extend(&series.values[steps.clone()]),
            Column::Float64(values) => values.extend(numbers.next().into_iter().flatten()),
            Column::Float32(values) => {
                values.extend(numbers.next().into_iter().flatten().map(|value| *value as f32));
            }
            Column::Boolean(_) | Column::Text(_) => {}
        }
    }
}
