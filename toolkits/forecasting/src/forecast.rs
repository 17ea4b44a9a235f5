//! Forecasts of all series of a table.

use fauna_shared::Result;
use fauna_shared::model::Forecaster;

use crate::options::ForecastOptions;
use crate::predict::{Cutoff, interval_note, is_exact, run};
use crate::prepare::{next_timestamps, prepare};
use crate::result_table::{Column, ResultTable, SeriesResult, TableOutput};
use crate::series::SeriesError;
use crate::table::Table;

/// Forecasts the next [`horizon`](ForecastOptions::horizon) steps of every series.
///
/// The columns are those of the table for ids and timestamps, `MODEL`, and those of
/// [`Intervals::columns`](crate::Intervals::columns). Intervals are the model's own quantiles, or, with
/// [`conformal_windows`](ForecastOptions::conformal_windows), calibrated for any model by split conformal prediction: at
/// each step of the horizon, a quantile of the absolute errors of rolling forecasts over the end of the series. (TimeGPT
/// calibrates by cross-validation too; how is not published.)
///
/// ```
/// use fauna_forecasting::{Column, ForecastOptions, Intervals, SeasonalNaive, Table, forecast};
/// let table = Table::regular("QS".parse()?, "2022-01-01", [("sales", vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.5, 3.0, 4.0])])?;
/// let options = ForecastOptions { horizon: 2, intervals: Intervals::levels(vec![80.0])?, ..ForecastOptions::default() };
/// let output = forecast(&SeasonalNaive { season_length: 4 }, &table, &options)?;
/// assert_eq!(output.table.column_names, ["ds", "Model", "Model-lo-80", "Model-hi-80"]);
/// assert_eq!(output.table.series[0].columns[1], Column::Float64(vec![1.0, 2.5]));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for an option out of range or a frequency that cannot be inferred;
/// [`Cancelled`](fauna_shared::ErrorKind::Cancelled). Errors of single series are in [`TableOutput::errors`].
pub fn forecast(model: &dyn Forecaster, table: &Table, options: &ForecastOptions) -> Result<TableOutput> {
    options.check()?;
    let mut prepared = prepare(table, options, model.reads_covariates())?;
    if options.future_covariates.is_none() {
        // The rolling forecasts of the calibration must not read what this forecast does not.
        prepared.covariates.iter_mut().for_each(|covariate| covariate.has_future = false);
    }
    let cutoffs: Vec<Cutoff> = prepared
        .series
        .iter()
        .enumerate()
        .map(|(series, prepared)| Cutoff { series, end: prepared.series.values.len() })
        .collect();
    let intervals = options.intervals.columns(&options.model);
    let config = options.forecast_config(&intervals);
    let forecasts =
        run(model, &prepared, options, config, options.conformal_windows, &cutoffs, "forecasting")?;
    let names = [table.columns.time.clone(), options.model.clone()];
    let names = names.into_iter().chain(intervals.iter().map(|(name, _)| name.clone()));
    let mut result = ResultTable::for_table(table, names.collect());
    result.timestamp_format = prepared.timestamp_format;
    let exact = is_exact(model)?;
    let mut errors = Vec::new();
    for (prepared, forecast) in prepared.series.iter().zip(forecasts) {
        let series = &prepared.series;
        let columns = forecast.and_then(|forecast| {
            let timestamps = next_timestamps(series, prepared.frequency, options.horizon)?;
            let numbers = std::iter::once(forecast.mean).chain(forecast.quantiles);
            let numbers = numbers.map(|values| Column::of_forecast(exact, values));
            Ok(std::iter::once(Column::Timestamps(timestamps)).chain(numbers).collect())
        });
        match columns {
            Ok(columns) => result.series.push(SeriesResult { id: series.id.clone(), columns }),
            Err(error) => errors.push(SeriesError { id: series.id.clone(), error }),
        }
    }
    prepared.errors.extend(errors);
    let mut notes = prepared.notes;
    notes.extend(interval_note(model, &intervals, options));
    Ok(TableOutput { table: result, errors: prepared.errors, notes })
}
