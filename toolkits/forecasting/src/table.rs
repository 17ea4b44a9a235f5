//! Many series in one table in long format: one row per series and timestamp.

use fauna_shared::{Error, Result};

use crate::frequency::Frequency;
use crate::series::{Series, SeriesError, Timestamp, series_label};
use crate::timestamp::TimestampFormat;

/// The note on integers that are read as dates.
pub(crate) const READS_INTEGERS: &str = "the frequency 1 reads them as integers";

/// A series of up to this many steps may consist of any share of gaps; a longer one must have a row for at least one step
/// in [`MAX_STEPS_PER_ROW`].
const ALWAYS_FILLED: i64 = 100_000;
const MAX_STEPS_PER_ROW: i64 = 100;

/// Names of the columns of a table. All others are covariates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// Name of the series. A column of the default name may be missing: the table is then one series.
    pub id: String,
    /// Dates or integers.
    pub time: String,
    /// Values to forecast.
    pub target: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { id: "unique_id".to_string(), time: "ds".to_string(), target: "y".to_string() }
    }
}

/// Many series in long format.
#[cfg_attr(feature = "csv", doc = "\n```")]
#[cfg_attr(not(feature = "csv"), doc = "\n```ignore")]
/// use fauna_forecasting::{Columns, Table};
/// let file = "unique_id,ds,y\na,2024-01-01,3\na,2024-01-02,\nb,2024-01-01,5\nb,2024-01-01,6\n";
/// let table = Table::from_csv(file.as_bytes(), "sales.csv", &Columns::default())?;
/// assert!(table.series[0].values[1].is_nan());
/// assert_eq!(
///     table.errors[0].error.to_string(),
///     "sales.csv: series `b`: line 5: the date 2024-01-01 is there twice\n  a series has one row per date"
/// );
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    /// Names of the columns.
    pub columns: Columns,
    /// Whether the table has an id column.
    pub has_ids: bool,
    /// Format of the timestamps.
    pub timestamp_format: TimestampFormat,
    /// Names of the covariates.
    pub covariates: Vec<String>,
    /// The series, in order of their first rows.
    pub series: Vec<Series>,
    /// Errors of the series that cannot be used.
    pub errors: Vec<SeriesError>,
    /// What was left out or converted.
    pub notes: Vec<String>,
}

impl Table {
    /// A table of regular series: all begin at `start` and have no gaps.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if `start` is not a timestamp of `frequency` or the calendar ends.
    ///
    /// ```
    /// use fauna_forecasting::Table;
    /// let table = Table::regular("MS".parse()?, "1949-01", [("passengers", vec![112.0, 118.0])])?;
    /// assert_eq!(table.timestamp_format.format(table.series[0].timestamps[1]), "1949-02");
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn regular<'a>(
        frequency: Frequency,
        start: &str,
        series: impl IntoIterator<Item = (&'a str, Vec<f64>)>,
    ) -> Result<Self> {
        let (first, timestamp_format) = TimestampFormat::parse(start)?;
        let is_of_frequency = timestamp_format.is_integer() == frequency.is_integer();
        let build = |(id, values): (&str, Vec<f64>)| {
            let steps = 0..values.len() as i64;
            let timestamps: Option<Vec<Timestamp>> = steps.map(|step| frequency.add(first, step)).collect();
            let timestamps = timestamps.filter(|_| is_of_frequency).ok_or_else(|| {
                Error::input(format!(
                    "{} steps of {frequency} from {start} on are not on the calendar",
                    values.len()
                ))
            })?;
            Ok(Series { id: id.to_string(), timestamps, values, covariates: Vec::new() })
        };
        Ok(Self {
            columns: Columns::default(),
            has_ids: true,
            timestamp_format,
            covariates: Vec::new(),
            series: series.into_iter().map(build).collect::<Result<_>>()?,
            errors: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// The same table with dates such as 20240229 as the integers that they were read from.
    pub(crate) fn with_integer_timestamps(&self) -> Self {
        let integer =
            |timestamp: &Timestamp| self.timestamp_format.convert(*timestamp, TimestampFormat::INTEGER);
        let series = self.series.iter().map(|series| Series {
            timestamps: series.timestamps.iter().map(integer).collect(),
            ..series.clone()
        });
        Self {
            columns: self.columns.clone(),
            has_ids: self.has_ids,
            timestamp_format: TimestampFormat::INTEGER,
            covariates: self.covariates.clone(),
            series: series.collect(),
            errors: self.errors.clone(),
            notes: self.notes.iter().filter(|note| !note.contains(READS_INTEGERS)).cloned().collect(),
        }
    }

    /// The most common inferred frequency of the series.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if it cannot be inferred of any series.
    pub fn frequency(&self) -> Result<Frequency> {
        self.most_common(&self.inferred())
    }

    /// The frequency of each series: the inferred one, or the most common one of the table where it is not known or the
    /// most common one fits as well.
    ///
    /// # Errors
    /// As [`frequency`](Table::frequency).
    pub(crate) fn frequencies(&self) -> Result<Vec<Frequency>> {
        let inferred = self.inferred();
        let common = self.most_common(&inferred)?;
        let own = |(series, found): (&Series, Option<Frequency>)| match found {
            // Three business days in a row are days as well.
            Some(own) if own != common && !common.covers_without_gaps(&series.timestamps) => own,
            _ => common,
        };
        Ok(self.series.iter().zip(inferred).map(own).collect())
    }

    fn inferred(&self) -> Vec<Option<Frequency>> {
        let is_integer = self.timestamp_format.is_integer();
        self.series.iter().map(|series| Frequency::infer(&series.timestamps, is_integer)).collect()
    }

    fn most_common(&self, inferred: &[Option<Frequency>]) -> Result<Frequency> {
        let mut counts: Vec<(Frequency, usize)> = Vec::new();
        for found in inferred.iter().flatten().copied() {
            match counts.iter_mut().find(|(known, _)| *known == found) {
                Some((_, count)) => *count += 1,
                None => counts.push((found, 1)),
            }
        }
        // The first of those that are equally common.
        counts.reverse();
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(found, _)| found).ok_or_else(|| {
            let longest = self.series.iter().max_by_key(|series| series.timestamps.len());
            let begins = longest.map_or(String::new(), |series| {
                let first = series.timestamps.iter().take(4);
                let first: Vec<String> =
                    first.map(|timestamp| self.timestamp_format.format(*timestamp)).collect();
                format!(": {} begins {}", series_label(&series.id), first.join(", "))
            });
            Error::input(format!("the frequency cannot be inferred from the timestamps{begins}"))
                .hint("inferring it takes three timestamps")
                .set("name the frequency", "ForecastOptions::frequency", "h, D, B, W-MON, MS, ...")
        })
    }

    /// `series` with a value at every step of `frequency` from its first timestamp to its last, and the number of gaps
    /// that were filled in.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) naming the first timestamp that is not of this frequency.
    pub(crate) fn fill_gaps(&self, series: &Series, frequency: Frequency) -> Result<(Series, usize)> {
        let write = |timestamp: Timestamp| self.timestamp_format.format(timestamp);
        let (Some(first), Some(last)) = (series.timestamps.first(), series.timestamps.last()) else {
            return Err(Error::input(format!("{} has no rows", series_label(&series.id))));
        };
        let off_frequency = |timestamp: Timestamp| {
            Error::input(format!(
                "{}: {} is not a timestamp of the frequency {frequency} from {} on",
                series_label(&series.id),
                write(timestamp),
                write(*first)
            ))
            .set("correct it, or name another frequency", "ForecastOptions::frequency", "FREQ")
        };
        let index = |timestamp: &Timestamp| {
            let steps = frequency.steps(*first, *timestamp);
            steps.map(|steps| steps as usize).ok_or_else(|| off_frequency(*timestamp))
        };
        let indices: Vec<usize> = series.timestamps.iter().map(index).collect::<Result<_>>()?;
        let length = frequency.steps(*first, *last).and_then(|steps| steps.checked_add(1));
        let length = length.ok_or_else(|| off_frequency(*last))?;
        let rows = series.timestamps.len();
        if length == rows as i64 {
            return Ok((series.clone(), 0));
        }
        if length > ALWAYS_FILLED && length / MAX_STEPS_PER_ROW > rows as i64 {
            return Err(Error::input(format!(
                "{} has {rows} rows in {length} steps of the frequency {frequency}",
                series_label(&series.id)
            ))
            .set("name its actual frequency", "ForecastOptions::frequency", "FREQ"));
        }
        let timestamps =
            (0..length).map(|step| frequency.add(*first, step).ok_or_else(|| off_frequency(*last)));
        let (length, mut values) = (length as usize, vec![f64::NAN; length as usize]);
        indices.iter().zip(&series.values).for_each(|(index, value)| values[*index] = *value);
        let spread = |column: &Vec<f32>| {
            let mut filled = vec![f32::NAN; length];
            indices.iter().zip(column).for_each(|(index, value)| filled[*index] = *value);
            filled
        };
        let filled = Series {
            id: series.id.clone(),
            timestamps: timestamps.collect::<Result<_>>()?,
            values,
            covariates: series.covariates.iter().map(spread).collect(),
        };
        Ok((filled, length - rows))
    }
}
