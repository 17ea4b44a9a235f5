//! Preparation of a table for a model: gaps filled in, frequencies, covariates and their future values checked.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use fauna_shared::error::first_five;
use fauna_shared::model::{Covariate, History};
use fauna_shared::{Error, Result};

use crate::frequency::Frequency;
use crate::options::ForecastOptions;
use crate::series::{Series, SeriesError, Timestamp, series_label};
use crate::table::Table;
use crate::timestamp::TimestampFormat;

/// A table whose series have a value, possibly NaN, at every step of their frequency.
pub(crate) struct Prepared {
    pub timestamp_format: TimestampFormat,
    pub series: Vec<PreparedSeries>,
    /// Covariates that the model gets.
    pub covariates: Vec<ModelCovariate>,
    pub errors: Vec<SeriesError>,
    pub notes: Vec<String>,
}

/// A covariate that the model gets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelCovariate {
    pub name: String,
    /// Index of its column in the table.
    pub column: usize,
    /// Whether the model gets its future values.
    pub has_future: bool,
}

/// A series without missing timestamps.
pub(crate) struct PreparedSeries {
    pub series: Series,
    pub frequency: Frequency,
    pub season_length: usize,
    /// Future values of the covariates, in the order of [`Prepared::covariates`]; empty where unknown.
    pub future: Vec<Vec<f32>>,
}

/// Fills the gaps of each series by the frequency of `options`, or else the inferred one, and picks the covariates.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the frequency cannot be inferred or does not fit the table.
pub(crate) fn prepare(table: &Table, options: &ForecastOptions, reads_covariates: bool) -> Result<Prepared> {
    let (table, frequencies) = with_frequencies(table, options.frequency)?;
    let table = table.as_ref();
    let mut notes = table.notes.clone();
    let mut errors = table.errors.clone();
    notes.extend(frequencies_note(table, &frequencies));
    let covariates = model_covariates(table, options, reads_covariates, &mut notes)?;
    let future = options.future_covariates.map(|future| Future::new(future, table.timestamp_format));
    if let Some(future) = &future {
        notes.extend(future.unknown_series_note(table));
    }
    let mut prepared = Vec::with_capacity(table.series.len());
    // Frequency, number of filled gaps, number of series with gaps.
    let mut filled: Vec<(Frequency, usize, usize)> = Vec::new();
    for (series, frequency) in table.series.iter().zip(frequencies) {
        let result = table.fill_gaps(series, frequency).and_then(|(series, gaps)| {
            check_values(&series)?;
            let future = match &future {
                None => Vec::new(),
                Some(future) => future.covariates(&series, frequency, options.horizon, &covariates)?,
            };
            let season_length = options.season_length.unwrap_or_else(|| frequency.season_length());
            Ok((PreparedSeries { series, frequency, season_length, future }, gaps))
        });
        match result {
            Ok((one, gaps)) => {
                prepared.push(one);
                match filled.iter_mut().find(|(known, ..)| *known == frequency) {
                    _ if gaps == 0 => {}
                    Some((_, all, series)) => (*all, *series) = (*all + gaps, *series + 1),
                    None => filled.push((frequency, gaps, 1)),
                }
            }
            Err(error) => errors.push(SeriesError { id: series.id.clone(), error }),
        }
    }
    notes.extend(filled.into_iter().map(|(frequency, gaps, series)| {
        format!("{gaps} missing timestamps of {series} series are filled as gaps (frequency {frequency})")
    }));
    let timestamp_format = table.timestamp_format;
    Ok(Prepared { timestamp_format, series: prepared, covariates, errors, notes })
}

/// A note that lists the frequencies of the series if there are several.
fn frequencies_note(table: &Table, frequencies: &[Frequency]) -> Option<String> {
    let mut groups: Vec<(Frequency, Vec<&str>)> = Vec::new();
    for (series, frequency) in table.series.iter().zip(frequencies) {
        match groups.iter_mut().find(|(known, _)| known == frequency) {
            Some((_, ids)) => ids.push(&series.id),
            None => groups.push((*frequency, vec![&series.id])),
        }
    }
    let describe = |(frequency, ids): &(Frequency, Vec<&str>)| {
        format!("{frequency} ({})", first_five(ids).replace('\n', ", "))
    };
    (groups.len() > 1).then(|| {
        format!(
            "each series is forecast with its own frequency: {}",
            groups.iter().map(describe).collect::<Vec<_>>().join("; ")
        )
    })
}

/// The frequency of each series, which is `frequency` or the inferred one, and the table with timestamps of its kind.
fn with_frequencies(table: &Table, frequency: Option<Frequency>) -> Result<(Cow<'_, Table>, Vec<Frequency>)> {
    // Integers that were read as dates are integers again if the frequency is one of integers.
    let is_integer = frequency.is_some_and(|frequency| frequency.is_integer());
    let table = match table.timestamp_format.is_compact() && is_integer {
        true => Cow::Owned(table.with_integer_timestamps()),
        false => Cow::Borrowed(table),
    };
    let frequencies = match frequency {
        Some(frequency) => vec![frequency; table.series.len()],
        None if table.series.is_empty() => Vec::new(),
        None => table.frequencies()?,
    };
    let has_integers = table.timestamp_format.is_integer();
    if let Some(frequency) = frequencies.iter().find(|one| one.is_integer() != has_integers) {
        let kind = if has_integers { "integers" } else { "dates" };
        return Err(Error::input(format!("the frequency {frequency} is not one of {kind}"))
            .set("for integers", "ForecastOptions::frequency", "1")
            .set("for dates", "ForecastOptions::frequency", "D (h, MS, ...)"));
    }
    Ok((table, frequencies))
}

impl Table {
    /// The series as histories, to train on: gaps filled in by `frequency`, or the inferred one, with all covariates,
    /// whose future is empty; each with its id.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a frequency cannot be inferred or does not fit the table, or if a series
    /// has no value. Series of [`errors`](Table::errors) are left out.
    #[cfg_attr(feature = "csv", doc = "\n```")]
    #[cfg_attr(not(feature = "csv"), doc = "\n```ignore")]
    /// use fauna_forecasting::{Columns, Table};
    /// let file = "unique_id,ds,y\na,2024-01-01,3\na,2024-01-02,4\na,2024-01-03,4\na,2024-01-05,6\n";
    /// let table = Table::from_csv(file.as_bytes(), "sales.csv", &Columns::default())?;
    /// let (id, history) = table.histories(None)?.remove(0);
    /// assert_eq!((id.as_str(), history.values.len()), ("a", 5));
    /// assert!(history.values[3].is_nan());
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn histories(&self, frequency: Option<Frequency>) -> Result<Vec<(String, History)>> {
        let (table, frequencies) = with_frequencies(self, frequency)?;
        let history = |(series, frequency): (&Series, Frequency)| {
            let (filled, _) = table.fill_gaps(series, frequency)?;
            check_values(&filled)?;
            let covariates = table.covariates.iter().zip(filled.covariates);
            let covariates =
                covariates.map(|(name, past)| Covariate { name: name.clone(), past, future: Vec::new() });
            let values = filled.values.iter().map(|value| *value as f32).collect();
            let history =
                History { values, covariates: covariates.collect(), frequency_class: frequency.class() };
            Ok((filled.id, history))
        };
        table.series.iter().zip(frequencies).map(history).collect()
    }
}

fn check_values(series: &Series) -> Result<()> {
    match series.values.iter().any(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::input(format!(
            "{} has no value: all {} steps are gaps",
            series_label(&series.id),
            series.values.len()
        ))
        .hint("remove the series, or fill in its known values")),
    }
}

/// The covariates that the model gets, with notes on those that it does not.
fn model_covariates(
    table: &Table,
    options: &ForecastOptions,
    reads_covariates: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<ModelCovariate>> {
    if let Some(name) = options.past_covariates.iter().find(|name| !table.covariates.contains(name)) {
        return Err(Error::input(format!("no covariate is called `{name}`"))
            .hint(format!("the covariates: {}", table.covariates.join(", "))));
    }
    let future: &[String] = options.future_covariates.map_or(&[], |future| &future.covariates);
    let without_past: Vec<&String> = future.iter().filter(|name| !table.covariates.contains(name)).collect();
    if !without_past.is_empty() {
        notes.push(format!(
            "future covariates without past values are left out: {}",
            first_five(without_past).replace('\n', ", ")
        ));
    }
    if !reads_covariates {
        if !table.covariates.is_empty() {
            notes.push(format!(
                "{} reads no covariates; left out: {}",
                options.model,
                first_five(&table.covariates).replace('\n', ", ")
            ));
        }
        return Ok(Vec::new());
    }
    let covariate = |(column, name): (usize, &String)| {
        let is_given = options.future_covariates.is_none() || future.contains(name);
        let has_future = is_given && !options.past_covariates.contains(name);
        ModelCovariate { name: name.clone(), column, has_future }
    };
    Ok(table.covariates.iter().enumerate().map(covariate).collect())
}

/// A table of future covariates by series.
struct Future<'a> {
    table: &'a Table,
    /// Format of the timestamps of the past; those of the future are converted to it.
    past_format: TimestampFormat,
    by_id: HashMap<&'a str, Result<&'a Series, &'a SeriesError>>,
}

impl<'a> Future<'a> {
    fn new(table: &'a Table, past_format: TimestampFormat) -> Self {
        let good = table.series.iter().map(|series| (series.id.as_str(), Ok(series)));
        let bad = table.errors.iter().map(|error| (error.id.as_str(), Err(error)));
        Self { table, past_format, by_id: good.chain(bad).collect() }
    }

    /// A note that lists the series which `past` does not have.
    fn unknown_series_note(&self, past: &Table) -> Option<String> {
        let series = past.series.iter().map(|series| series.id.as_str());
        let known: HashSet<&str> = series.chain(past.errors.iter().map(|error| error.id.as_str())).collect();
        let mut unknown: Vec<&str> = self.by_id.keys().copied().filter(|id| !known.contains(id)).collect();
        unknown.sort_unstable();
        (!unknown.is_empty()).then(|| {
            format!(
                "the future covariates have series that are not in the table: {}",
                first_five(unknown).replace('\n', ", ")
            )
        })
    }

    /// The values of `covariates` at the `horizon` steps after the end of `series`.
    fn covariates(
        &self,
        series: &Series,
        frequency: Frequency,
        horizon: usize,
        covariates: &[ModelCovariate],
    ) -> Result<Vec<Vec<f32>>> {
        let label = series_label(&series.id);
        let found = match self.by_id.get(series.id.as_str()) {
            None => {
                return Err(Error::input(format!("{label} is not in the table of future covariates"))
                    .hint(format!("add {horizon} rows of it, or remove the series")));
            }
            Some(Err(error)) => return Err((*error).clone().error.context("the future covariates")),
            Some(Ok(found)) => found,
        };
        let expected = next_timestamps(series, frequency, horizon)?;
        let convert =
            |timestamp: &Timestamp| self.table.timestamp_format.convert(*timestamp, self.past_format);
        let timestamps: Vec<Timestamp> = found.timestamps.iter().map(convert).collect();
        let write = |timestamp: Timestamp| self.past_format.format(timestamp);
        let is_missing = |timestamp: &&Timestamp| timestamps.binary_search(timestamp).is_err();
        let missing: Vec<Timestamp> = expected.iter().filter(is_missing).copied().collect();
        if let Some(first) = missing.first() {
            return Err(Error::input(format!(
                "the future covariates of {label} lack {} of {horizon} steps, the first of them {}",
                missing.len(),
                write(*first)
            )));
        }
        if let Some(extra) = timestamps.iter().find(|timestamp| expected.binary_search(timestamp).is_err()) {
            return Err(Error::input(format!(
                "the future covariates of {label} have {}, which is not one of the {horizon} steps to forecast",
                write(*extra)
            ))
            .hint(format!("the steps are {} to {}", write(expected[0]), write(expected[expected.len() - 1]))));
        }
        let column = |covariate: &ModelCovariate| {
            let index = self.table.covariates.iter().position(|name| *name == covariate.name);
            match index.filter(|_| covariate.has_future) {
                Some(index) => found.covariates[index].clone(),
                None => Vec::new(),
            }
        };
        Ok(covariates.iter().map(column).collect())
    }
}

/// The `horizon` timestamps after the end of `series`.
pub(crate) fn next_timestamps(
    series: &Series,
    frequency: Frequency,
    horizon: usize,
) -> Result<Vec<Timestamp>> {
    let last = series.timestamps.last().copied().unwrap_or(0);
    let next: Option<Vec<Timestamp>> = (1..=horizon as i64).map(|step| frequency.add(last, step)).collect();
    next.ok_or_else(|| {
        Error::input(format!(
            "{}: {horizon} more steps of {frequency} leave the calendar",
            series_label(&series.id)
        ))
    })
}
