//! Results as a table, written as CSV or as lines of JSON.

use std::io::Write;

use fauna_shared::{Error, Result};
use serde_json::{Map, Value};

use crate::metrics::Metrics;
use crate::series::{SeriesError, Timestamp};
use crate::table::Table;
use crate::timestamp::TimestampFormat;

/// The result of [`forecast`](crate::forecast) and [`detect_anomalies`](crate::detect_anomalies).
#[derive(Debug)]
pub struct TableOutput {
    /// Results of the series without an error.
    pub table: ResultTable,
    /// Errors of the other series.
    pub errors: Vec<SeriesError>,
    /// What was filled in or left out, and limits of the results.
    pub notes: Vec<String>,
}

/// A table of results, grouped by series.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultTable {
    /// Name of the id column; `None` for a table without one.
    pub id_column: Option<String>,
    /// Names of the other columns.
    pub column_names: Vec<String>,
    /// Rows of each series, in the order of the input table.
    pub series: Vec<SeriesResult>,
    /// Format in which timestamps are written.
    pub timestamp_format: TimestampFormat,
}

/// The rows of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesResult {
    /// Name of the series.
    pub id: String,
    /// One column for each of [`ResultTable::column_names`], all of the same length.
    pub columns: Vec<Column>,
}

/// A column of results.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Dates or integers.
    Timestamps(Vec<Timestamp>),
    /// Values of the input table and what is computed from them; NaN for none.
    Float64(Vec<f64>),
    /// Outputs of a network; NaN for none.
    Float32(Vec<f32>),
    /// Flags.
    Boolean(Vec<bool>),
    /// Strings.
    Text(Vec<String>),
}

impl Column {
    /// Forecasts as a column: float64 from a method that computes in it, else float32.
    pub(crate) fn of_forecast(is_exact: bool, values: Vec<f64>) -> Self {
        match is_exact {
            true => Self::Float64(values),
            false => Self::Float32(values.into_iter().map(|value| value as f32).collect()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Timestamps(values) => values.len(),
            Self::Float64(values) => values.len(),
            Self::Float32(values) => values.len(),
            Self::Boolean(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    #[cfg(feature = "csv")]
    fn text(&self, row: usize, format: TimestampFormat) -> String {
        match self {
            Self::Timestamps(values) => format.format(values[row]),
            Self::Float64(values) => decimal(values[row], values[row].to_string()),
            Self::Float32(values) => decimal(values[row].into(), values[row].to_string()),
            Self::Boolean(values) => values[row].to_string(),
            Self::Text(values) => values[row].clone(),
        }
    }

    fn json(&self, row: usize, format: TimestampFormat) -> Value {
        match self {
            Self::Timestamps(values) if format.is_integer() => values[row].into(),
            Self::Timestamps(values) => format.format(values[row]).into(),
            Self::Float64(values) => values[row].into(),
            // The shortest decimal that rounds to this float32, as in CSV.
            Self::Float32(values) => values[row].to_string().parse::<f64>().map_or(Value::Null, Value::from),
            Self::Boolean(values) => values[row].into(),
            Self::Text(values) => values[row].clone().into(),
        }
    }

    /// The numbers of a column of floats; `None` for another.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match self {
            Self::Float64(values) => Some(values.clone()),
            Self::Float32(values) => Some(values.iter().map(|value| f64::from(*value)).collect()),
            _ => None,
        }
    }
}

/// A number in CSV: empty if it is not finite, with an exponent if it is very large or small.
#[cfg(feature = "csv")]
fn decimal(value: f64, plain: String) -> String {
    match value.abs() {
        size if !size.is_finite() => String::new(),
        size if size != 0.0 && !(1e-7..1e16).contains(&size) => format!("{value:e}"),
        _ => plain,
    }
}

impl ResultTable {
    /// An empty table of results for the series of `table`.
    pub(crate) fn for_table(table: &Table, column_names: Vec<String>) -> Self {
        let id_column = table.has_ids.then(|| table.columns.id.clone());
        Self { id_column, column_names, series: Vec::new(), timestamp_format: table.timestamp_format }
    }

    /// `metrics` as a table with the columns `model`, `mae`, `rmse`, `mase`, `smape`, `crps`; the id of the average over
    /// all series is `all`.
    pub fn from_metrics(metrics: &[Metrics], table: &Table) -> Self {
        let names = ["model", "mae", "rmse", "mase", "smape", "crps"];
        let mut result = Self::for_table(table, names.iter().map(|name| (*name).to_string()).collect());
        // A table without ids has one series, whose metrics are those of the average.
        let shown = metrics.iter().filter(|one| table.has_ids || one.id.is_none());
        result.series.extend(shown.map(|one| {
            let numbers = [one.mae, one.rmse, one.mase, one.smape, one.crps];
            let model = Column::Text(vec![one.model.clone()]);
            let numbers = numbers.into_iter().map(|number| Column::Float64(vec![number]));
            SeriesResult {
                id: one.id.clone().unwrap_or_else(|| "all".to_string()),
                columns: std::iter::once(model).chain(numbers).collect(),
            }
        }));
        result
    }

    /// Index of the column `name`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.column_names.iter().position(|known| known == name)
    }

    /// Number of rows of all series.
    pub fn rows(&self) -> usize {
        self.series.iter().map(SeriesResult::rows).sum()
    }

    /// Writes the table as CSV with a header line.
    ///
    /// # Errors
    /// [`Io`](fauna_shared::ErrorKind::Io) if `to` cannot be written.
    #[cfg(feature = "csv")]
    pub fn write_csv(&self, to: &mut dyn Write) -> Result<()> {
        let failed = |e: csv::Error| match e.into_kind() {
            csv::ErrorKind::Io(e) => Error::io("the table", "write", e),
            other => Error::new(fauna_shared::ErrorKind::Io, format!("cannot write CSV: {other:?}")),
        };
        let mut rows = csv::Writer::from_writer(to);
        rows.write_record(self.id_column.iter().chain(&self.column_names)).map_err(failed)?;
        for series in &self.series {
            for row in 0..series.rows() {
                let cells = series.columns.iter().map(|column| column.text(row, self.timestamp_format));
                let id = self.id_column.is_some().then(|| series.id.clone());
                rows.write_record(id.into_iter().chain(cells)).map_err(failed)?;
            }
        }
        rows.flush().map_err(|e| Error::io("the table", "write", e))
    }

    /// Writes each row as a JSON object on a line of its own.
    ///
    /// # Errors
    /// [`Io`](fauna_shared::ErrorKind::Io) if `to` cannot be written.
    pub fn write_json(&self, to: &mut dyn Write) -> Result<()> {
        let io = |e| Error::io("the table", "write", e);
        for series in &self.series {
            for row in 0..series.rows() {
                let id = self.id_column.iter().map(|name| (name.clone(), Value::from(series.id.clone())));
                let names = self.column_names.iter().cloned();
                let cells =
                    names.zip(series.columns.iter().map(|column| column.json(row, self.timestamp_format)));
                let object: Map<String, Value> = id.chain(cells).collect();
                writeln!(to, "{}", Value::Object(object)).map_err(io)?;
            }
        }
        to.flush().map_err(io)
    }
}

impl SeriesResult {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, Column::len)
    }
}
