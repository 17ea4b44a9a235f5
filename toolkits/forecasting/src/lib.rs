//! Forecasting as users of TimeGPT know it, with any model: tables of series in, tables of forecasts out.
//!
//! A [`Table`] holds many series in long format (`unique_id, ds, y`), from CSV, Parquet or a program. Its verbs take any
//! [`Forecaster`](fauna_shared::model::Forecaster): [`forecast`] tells the steps that follow with intervals or
//! quantiles, [`cross_validate`] tries the model out on the past beside [`Naive`] and [`SeasonalNaive`],
//! [`detect_anomalies`] finds what lies outside of what was to be expected.
//!
//! ```
//! use fauna_forecasting::{Ask, Bands, Columns, SeasonalNaive, Table, forecast};
//!
//! let file = "unique_id,ds,y\na,2023-11-30,3\na,2023-12-31,5\na,2024-01-31,4\na,2024-02-29,6\n";
//! let table = Table::from_csv(file.as_bytes(), "sales.csv", &Columns::default())?;
//! let ask = Ask { horizon: 2, ..Ask::default() };
//! let answer = forecast(&SeasonalNaive { season: 2 }, &table, &ask)?;
//! let mut written = Vec::new();
//! answer.sheet.write_csv(&mut written)?;
//! assert_eq!(String::from_utf8_lossy(&written), "unique_id,ds,Model\na,2024-03-31,4\na,2024-04-30,6\n");
//! # Ok::<(), fauna_shared::Error>(())
//! ```
//!
//! One bad series stops no other: what is wrong with it is a [`Problem`] beside the results of the rest. Missing stamps
//! between others are filled as gaps, which the models read as NaN. Stamps are on the calendar of the table: with an
//! offset they are taken as the clock on the wall shows them, and all of a table have the same one.

#[cfg(feature = "parquet")]
mod arrow_schema;
mod ask;
mod baseline;
mod builder;
mod csv_file;
mod frequency;
#[cfg(feature = "parquet")]
mod parquet_file;
mod predict;
mod prepare;
mod scores;
mod sheet;
mod stamp;
mod table;
mod verbs;

#[cfg(test)]
mod tests;

pub use ask::{Ask, Bands};
pub use baseline::{Naive, SeasonalNaive};
pub use frequency::Frequency;
pub use scores::Scores;
pub use sheet::{Column, Part, Sheet};
pub use stamp::{Form, Stamp, marks};
pub use table::{Columns, Problem, Series, Table};
pub use verbs::{Answer, Validation, cross_validate, detect_anomalies, forecast};
