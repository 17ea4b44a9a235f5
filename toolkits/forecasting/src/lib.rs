//! Forecasting of many time series with any model: tables of series in, tables of forecasts out.
//!
//! A [`Table`] holds many series in long format (`unique_id, ds, y`), read from CSV or Parquet or built in memory. Three
//! functions take a table and any [`Forecaster`](fauna_shared::model::Forecaster): [`forecast`] predicts the next steps
//! with prediction intervals or quantiles, [`cross_validate`] evaluates the model on rolling windows next to [`Naive`]
//! and [`SeasonalNaive`], [`detect_anomalies`] flags values outside of a prediction interval. Column names are those of
//! Nixtla's TimeGPT and statsforecast.
//!
#![cfg_attr(feature = "csv", doc = "```")]
#![cfg_attr(not(feature = "csv"), doc = "```ignore")]
//! use fauna_forecasting::{Columns, ForecastOptions, SeasonalNaive, Table, forecast};
//!
//! let file = "unique_id,ds,y\na,2023-11-30,3\na,2023-12-31,5\na,2024-01-31,4\na,2024-02-29,6\n";
//! let table = Table::from_csv(file.as_bytes(), "sales.csv", &Columns::default())?;
//! let options = ForecastOptions { horizon: 2, ..ForecastOptions::default() };
//! let output = forecast(&SeasonalNaive { season_length: 2 }, &table, &options)?;
//! let mut csv = Vec::new();
//! output.table.write_csv(&mut csv)?;
//! assert_eq!(String::from_utf8_lossy(&csv), "unique_id,ds,Model\na,2024-03-31,4\na,2024-04-30,6\n");
//! # Ok::<(), fauna_shared::Error>(())
//! ```
//!
//! A series that cannot be used is a [`SeriesError`] of its own and does not stop the others. Timestamps that are missing
//! between others are filled in as gaps (NaN). Timestamps with a UTC offset are local times; all timestamps of a table
//! have the same offset.
//!
//! # Features
//!
//! `csv` and `parquet` (both on by default) read tables from such files; either turns on `calendar`: dates, frequencies,
//! tables and the three functions. Without features the crate has the series type, the baselines, prediction intervals
//! and [`metrics`].

#[cfg(feature = "calendar")]
mod anomalies;
#[cfg(feature = "parquet")]
mod arrow_schema;
mod baseline;
#[cfg(feature = "calendar")]
mod cross_validation;
#[cfg(feature = "calendar")]
mod files;
#[cfg(feature = "calendar")]
mod forecast;
#[cfg(feature = "calendar")]
#[cfg_attr(
    not(all(feature = "csv", feature = "parquet")),
    allow(dead_code, reason = "what only files of tables use")
)]
mod frequency;
mod intervals;
pub mod metrics;
#[cfg(feature = "calendar")]
mod options;
#[cfg(feature = "calendar")]
mod predict;
#[cfg(feature = "calendar")]
mod prepare;
#[cfg(feature = "csv")]
mod read_csv;
#[cfg(feature = "parquet")]
mod read_parquet;
#[cfg(feature = "calendar")]
mod result_table;
mod series;
#[cfg(feature = "calendar")]
mod table;
#[cfg(any(feature = "csv", feature = "parquet"))]
mod table_builder;
#[cfg(feature = "calendar")]
mod ticks;
#[cfg(feature = "calendar")]
#[cfg_attr(
    not(all(feature = "csv", feature = "parquet")),
    allow(dead_code, reason = "what only files of tables use")
)]
mod timestamp;

#[cfg(all(test, feature = "csv"))]
mod tests;

pub use baseline::{Naive, SeasonalNaive};
pub use intervals::Intervals;
pub use metrics::Metrics;
pub use series::{Series, SeriesError, Timestamp};

#[cfg(feature = "calendar")]
pub use {
    anomalies::detect_anomalies,
    cross_validation::{CrossValidation, cross_validate},
    forecast::forecast,
    frequency::Frequency,
    options::ForecastOptions,
    result_table::{Column, ResultTable, SeriesResult, TableOutput},
    table::{Columns, Table},
    ticks::axis_ticks,
    timestamp::TimestampFormat,
};
