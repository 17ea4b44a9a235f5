//! A time series, and the error of one.

use fauna_shared::Error;

/// A point in time: microseconds since 1970-01-01T00:00 in the local time of the table, or the integer itself in a table
/// whose time column holds integers.
pub type Timestamp = i64;

/// A time series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Name of the series; empty in a table without an id column.
    pub id: String,
    /// Timestamps, strictly increasing.
    pub timestamps: Vec<Timestamp>,
    /// One value per timestamp; NaN marks a gap. Empty in a table of future covariates.
    pub values: Vec<f64>,
    /// Values of each covariate of the table, one per timestamp.
    pub covariates: Vec<Vec<f32>>,
}

/// The name of the series `id` in messages.
#[cfg(feature = "calendar")]
pub(crate) fn series_label(id: &str) -> String {
    if id.is_empty() { "the series".to_string() } else { format!("series `{id}`") }
}

/// An error of one series; it does not affect the others.
#[derive(Debug)]
pub struct SeriesError {
    /// Name of the series.
    pub id: String,
    /// The error, with its place in the file.
    pub error: Error,
}

impl Clone for SeriesError {
    /// Copies message, place and hints, but not the source of the error.
    fn clone(&self) -> Self {
        let error = &self.error;
        let mut copied = Error::new(error.kind(), error.message());
        if let Some(place) = error.place() {
            copied = copied.at(place);
        }
        let text = error.to_string();
        let copied = text.lines().skip(1).fold(copied, |copied, line| copied.hint(line.trim_start()));
        Self { id: self.id.clone(), error: copied }
    }
}
