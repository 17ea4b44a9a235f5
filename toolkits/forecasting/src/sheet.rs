//! What the verbs give back: a table that can be written as CSV or as lines of JSON.

use std::io::Write;

use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use super::stamp::{Form, Stamp};
use super::table::Table;

/// A table of results, in parts: one a series.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// The name of the column of names; none where the series have no names.
    pub id: Option<String>,
    /// The names of the other columns.
    pub names: Vec<String>,
    /// One a series, in the order of the table.
    pub parts: Vec<Part>,
    /// How stamps are written.
    pub form: Form,
}

/// The rows of one series.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The series.
    pub id: String,
    /// One for each of the sheet's names, all of one length.
    pub columns: Vec<Column>,
}

/// A column of results.
#[derive(Debug, Clone, PartialEq)]
pub enum Column {
    /// Dates, or whole numbers.
    Stamps(Vec<Stamp>),
    /// Numbers of the table, and what is worked out of them. NaN for none.
    Exact(Vec<f64>),
    /// Numbers of a model. NaN for none.
    Single(Vec<f32>),
    /// Yes or no.
    Flags(Vec<bool>),
    /// Words.
    Words(Vec<String>),
}

impl Column {
    fn len(&self) -> usize {
        match self {
            Self::Stamps(values) => values.len(),
            Self::Exact(values) => values.len(),
            Self::Single(values) => values.len(),
            Self::Flags(values) => values.len(),
            Self::Words(values) => values.len(),
        }
    }

    fn text(&self, row: usize, form: Form) -> String {
        match self {
            Self::Stamps(values) => form.write(values[row]),
            Self::Exact(values) => decimal(values[row], values[row].to_string()),
            Self::Single(values) => decimal(values[row].into(), values[row].to_string()),
            Self::Flags(values) => values[row].to_string(),
            Self::Words(values) => values[row].clone(),
        }
    }

    fn json(&self, row: usize, form: Form) -> Value {
        match self {
            Self::Stamps(values) if form.is_whole() => values[row].into(),
            Self::Stamps(values) => form.write(values[row]).into(),
            Self::Exact(values) => values[row].into(),
            // The shortest decimal that is this number, as in CSV.
            Self::Single(values) => values[row].to_string().parse::<f64>().map_or(Value::Null, Value::from),
            Self::Flags(values) => values[row].into(),
            Self::Words(values) => values[row].clone().into(),
        }
    }

    /// Its numbers; none where it holds something else.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match self {
            Self::Exact(values) => Some(values.clone()),
            Self::Single(values) => Some(values.iter().map(|value| f64::from(*value)).collect()),
            _ => None,
        }
    }
}

/// Empty for what is no number; with an exponent where it would be long.
fn decimal(value: f64, plain: String) -> String {
    match value.abs() {
        size if !size.is_finite() => String::new(),
        size if size != 0.0 && !(1e-7..1e16).contains(&size) => format!("{value:e}"),
        _ => plain,
    }
}

impl Sheet {
    /// An empty sheet for the series of `table`.
    pub(super) fn of(table: &Table, names: Vec<String>) -> Self {
        let id = table.named.then(|| table.columns.id.clone());
        Self { id, names, parts: Vec::new(), form: table.form }
    }

    /// The place of the column called `name`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }

    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(Part::rows).sum()
    }

    /// Writes the sheet as CSV, its names first.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if `to` cannot be written.
    pub fn write_csv(&self, to: &mut dyn Write) -> Result<()> {
        let wrong = |e: csv::Error| match e.into_kind() {
            csv::ErrorKind::Io(e) => Error::io("the table", "write", e),
            other => Error::new(ErrorKind::Io, format!("cannot write CSV: {other:?}")),
        };
        let mut rows = csv::Writer::from_writer(to);
        rows.write_record(self.id.iter().chain(&self.names)).map_err(wrong)?;
        for part in &self.parts {
            for row in 0..part.rows() {
                let cells = part.columns.iter().map(|column| column.text(row, self.form));
                let id = self.id.is_some().then(|| part.id.clone());
                rows.write_record(id.into_iter().chain(cells)).map_err(wrong)?;
            }
        }
        rows.flush().map_err(|e| Error::io("the table", "write", e))
    }

    /// Writes each row as an object of JSON on a line of its own.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if `to` cannot be written.
    pub fn write_json(&self, to: &mut dyn Write) -> Result<()> {
        let io = |e| Error::io("the table", "write", e);
        for part in &self.parts {
            for row in 0..part.rows() {
                let id = self.id.iter().map(|name| (name.clone(), Value::from(part.id.clone())));
                let cells = self.names.iter().cloned();
                let cells = cells.zip(part.columns.iter().map(|column| column.json(row, self.form)));
                let object: Map<String, Value> = id.chain(cells).collect();
                writeln!(to, "{}", Value::Object(object)).map_err(io)?;
            }
        }
        to.flush().map_err(io)
    }
}

impl Part {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, Column::len)
    }
}
