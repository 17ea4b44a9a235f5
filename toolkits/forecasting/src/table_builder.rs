//! Builds a table row by row, from any file format.

use std::collections::HashMap;
use std::path::Path;

use fauna_shared::error::nearest;
use fauna_shared::{Error, Result};

use crate::frequency::Frequency;
use crate::series::{Series, SeriesError, Timestamp, series_label};
use crate::table::{Columns, READS_INTEGERS, Table};
use crate::timestamp::{DAY, MINUTE, TimestampFormat, compact_date, is_year_last};

/// Maximum number of numeric cells of a table.
pub(crate) const MAX_CELLS: u64 = 200_000_000;

/// A cell of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "CSV has text cells alone"))]
pub(crate) enum Cell<'a> {
    Null,
    Text(&'a str),
    Number(f64),
    Integer(i64),
    Boolean(bool),
    Timestamp(Timestamp, TimestampFormat),
}

impl Cell<'_> {
    /// The cell as text, for messages and ids.
    pub fn text(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Text(text) => (*text).to_string(),
            Self::Number(number) => number.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(flag) => flag.to_string(),
            Self::Timestamp(timestamp, format) => format.format(*timestamp),
        }
    }

    /// The cell as a number, NaN for a gap; `None` if it is not a finite number.
    fn number(&self) -> Option<f64> {
        match self {
            Self::Null => Some(f64::NAN),
            Self::Number(number) if number.is_nan() => Some(f64::NAN),
            Self::Number(number) => Some(*number).filter(|number| number.is_finite()),
            Self::Integer(number) => Some(*number as f64),
            Self::Boolean(flag) => Some(f64::from(u8::from(*flag))),
            Self::Timestamp(..) => None,
            Self::Text(text) if is_null(text) => Some(f64::NAN),
            Self::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        }
    }

    fn timestamp(&self) -> Result<(Timestamp, TimestampFormat)> {
        match self {
            Self::Null => Err(Error::input("the date is missing")),
            Self::Text(text) if is_null(text) => Err(Error::input("the date is missing")),
            Self::Text(text) => TimestampFormat::parse(text),
            Self::Integer(number) => Ok((*number, TimestampFormat::INTEGER)),
            Self::Timestamp(timestamp, format) => Ok((*timestamp, *format)),
            Self::Boolean(flag) => Err(Error::input(format!("`{flag}` is not a date and not an integer"))),
            Self::Number(number) => Err(Error::input(format!("`{number}` is not a date and not an integer"))),
        }
    }
}

/// Whether a text is one of the null values of pandas.
fn is_null(text: &str) -> bool {
    matches!(
        text.trim(),
        "" | "NA" | "N/A" | "n/a" | "<NA>" | "#N/A" | "NaN" | "nan" | "null" | "NULL" | "None" | "NaT"
    )
}

/// Indices of the columns of a file.
pub(crate) struct Layout {
    pub id: Option<usize>,
    pub time: usize,
    pub target: Option<usize>,
    pub covariates: Vec<usize>,
}

impl Layout {
    /// Finds the columns in `header`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) naming the missing column, the existing ones and the nearest.
    fn find(header: &[String], columns: &Columns, with_target: bool) -> Result<Self> {
        if let Some(twice) = (1..header.len()).find(|i| header[..*i].contains(&header[*i])) {
            return Err(Error::input(format!("two columns are called `{}`", header[twice])));
        }
        let index = |name: &str| header.iter().position(|column| column == name);
        let required = |name: &str, option: &'static str| {
            index(name).ok_or_else(|| {
                let near = nearest(name, header.iter().map(String::as_str));
                let near = near.first().map_or(String::new(), |near| format!("; is it `{near}`?"));
                Error::input(format!("no column is called `{name}`{near}"))
                    .hint(format!("the columns: {}", header.join(", ")))
                    .set("name the column", option, "NAME")
            })
        };
        let id = match index(&columns.id) {
            None if columns.id != Columns::default().id => Some(required(&columns.id, "Columns::id")?),
            found => found,
        };
        let time = required(&columns.time, "Columns::time")?;
        let target = match with_target {
            true => Some(required(&columns.target, "Columns::target")?),
            false => None,
        };
        if id == Some(time) || target == Some(time) || (id.is_some() && id == target) {
            return Err(Error::input("id, time and target must be different columns"));
        }
        let taken = [id, Some(time), index(&columns.target)];
        // Index columns written by pandas hold no data.
        let is_index =
            |name: &str| name.is_empty() || name.starts_with("__index_level_") || name == "Unnamed: 0";
        let is_covariate = |index: &usize| !taken.contains(&Some(*index)) && !is_index(&header[*index]);
        Ok(Self { id, time, target, covariates: (0..header.len()).filter(is_covariate).collect() })
    }

    /// Number of numeric columns.
    pub fn numbers(&self) -> u64 {
        2 + self.covariates.len() as u64
    }
}

/// The rows of a series so far.
#[derive(Default)]
struct PartialSeries {
    series: Series,
    /// UTC offsets of the timestamps, in minutes; empty if they have none.
    offsets: Vec<i16>,
    error: Option<Error>,
}

/// Builds a table row by row.
pub(crate) struct TableBuilder<'a> {
    /// The file, for errors.
    path: &'a Path,
    /// What a row is called in errors: "line" or "row".
    row: &'static str,
    columns: &'a Columns,
    layout: Layout,
    names: Vec<String>,
    /// Which covariates have had only numbers so far.
    numeric: Vec<bool>,
    format: Option<TimestampFormat>,
    partial: Vec<PartialSeries>,
    /// A timestamp of digits alone that begins with 0 or has its year last.
    ambiguous_digits: Option<String>,
    index_of_id: HashMap<String, usize>,
    last: usize,
    cells: u64,
    pub notes: Vec<String>,
}

impl<'a> TableBuilder<'a> {
    pub fn new(
        path: &'a Path,
        row: &'static str,
        header: &[String],
        columns: &'a Columns,
        with_target: bool,
    ) -> Result<Self> {
        let layout = Layout::find(header, columns, with_target).map_err(|e| e.at(path))?;
        let names: Vec<String> = layout.covariates.iter().map(|column| header[*column].clone()).collect();
        Ok(Self {
            path,
            row,
            columns,
            numeric: vec![true; names.len()],
            layout,
            names,
            format: None,
            partial: Vec::new(),
            ambiguous_digits: None,
            index_of_id: HashMap::new(),
            last: 0,
            cells: 0,
            notes: Vec::new(),
        })
    }

    #[cfg(feature = "parquet")]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Adds row `number` of the file; `cell` returns its cells by the index of the column.
    pub fn row<'c>(&mut self, number: u64, cell: impl Fn(usize) -> Cell<'c>) -> Result<()> {
        self.cells += self.layout.numbers();
        if self.cells > MAX_CELLS {
            return Err(Error::input(format!("more than {MAX_CELLS} numbers"))
                .at(self.path)
                .hint("split the table into several files"));
        }
        let index = match self.layout.id {
            None => self.series_index(""),
            Some(column) => match cell(column) {
                Cell::Text(text) => self.series_index(text),
                other => self.series_index(&other.text()),
            },
        };
        if self.partial[index].error.is_some() {
            return Ok(());
        }
        if let Err(error) = self.add_to(index, number, &cell) {
            let id = std::mem::take(&mut self.partial[index].series.id);
            let place = format!("{}: {} {number}", series_label(&id), self.row);
            self.partial[index] = PartialSeries {
                series: Series { id, ..Series::default() },
                error: Some(error.context(place).at(self.path)),
                ..PartialSeries::default()
            };
        }
        Ok(())
    }

    /// The index of the series `id`, which is added if it is new.
    fn series_index(&mut self, id: &str) -> usize {
        if self.partial.get(self.last).is_some_and(|partial| partial.series.id == id) {
            return self.last;
        }
        self.last = match self.index_of_id.get(id) {
            Some(index) => *index,
            None => {
                let covariates = vec![Vec::new(); self.names.len()];
                let series = Series { id: id.to_string(), covariates, ..Series::default() };
                self.partial.push(PartialSeries { series, ..PartialSeries::default() });
                self.index_of_id.insert(id.to_string(), self.partial.len() - 1);
                self.partial.len() - 1
            }
        };
        self.last
    }

    fn add_to<'c>(&mut self, index: usize, number: u64, cell: &impl Fn(usize) -> Cell<'c>) -> Result<()> {
        if self.layout.id.is_some_and(|column| cell(column).text().trim().is_empty()) {
            return Err(Error::input(format!("column `{}`: the id is missing", self.columns.id)));
        }
        let in_column = |name: &str| format!("column `{name}`");
        let time = cell(self.layout.time);
        let parsed = time.timestamp().and_then(|(timestamp, format)| {
            Ok((timestamp, format.offset(), self.format.map_or(Ok(format), |known| known.with(format))?))
        });
        let (timestamp, offset, format) = parsed.map_err(|e| e.context(in_column(&self.columns.time)))?;
        if let (Cell::Text(text), true) = (&time, format.is_integer()) {
            let text = text.trim();
            if self.ambiguous_digits.is_none()
                && (is_year_last(text) || text.starts_with('0') && text.len() > 1)
            {
                self.ambiguous_digits = Some(text.to_string());
            }
        }
        let value = self.layout.target.map(|column| {
            let found = cell(column);
            let value = found.number().filter(|value| value.is_nan() || value.abs() <= f64::from(f32::MAX));
            value.ok_or_else(|| {
                Error::input(format!("`{}` is not a number in the range of float32", found.text()))
                    .context(in_column(&self.columns.target))
                    .hint("numbers are written 1234.5; empty, NA or NaN is a gap")
            })
        });
        let value = value.transpose()?;
        let PartialSeries { series, offsets, .. } = &mut self.partial[index];
        // Sorted by UTC: local times repeat where daylight saving time ends.
        let utc = |timestamp: Timestamp, offset: Option<&i16>| {
            timestamp.saturating_sub(offset.map_or(0, |minutes| i64::from(*minutes) * MINUTE))
        };
        let before = series.timestamps.last().map(|last| (*last, utc(*last, offsets.last())));
        let now = utc(timestamp, offset.as_ref());
        if let Some((last, then)) = before.filter(|(_, then)| *then >= now) {
            let (this, that) = (format.format(timestamp), format.format(last));
            return Err(match then == now {
                true => Error::input(format!("the date {this} is there twice"))
                    .hint("a series has one row per date"),
                false => Error::input(format!("the date {this} comes after {that}"))
                    .hint("sort the rows of each series by date"),
            });
        }
        self.format = Some(format);
        series.timestamps.push(timestamp);
        offsets.extend(offset);
        series.values.extend(value);
        for (covariate, column) in self.layout.covariates.iter().enumerate() {
            if !self.numeric[covariate] {
                continue;
            }
            let found = cell(*column);
            match found.number() {
                Some(value) => series.covariates[covariate].push(value as f32),
                None => {
                    self.numeric[covariate] = false;
                    self.notes.push(format!(
                        "{}: column `{}` is left out: {} {number} has `{}`, which is not a number",
                        self.path.display(),
                        self.names[covariate],
                        self.row,
                        found.text()
                    ));
                }
            }
        }
        Ok(())
    }

    /// The table.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if there were no rows, for integers that may be dates with the year
    /// last, and for UTC offsets of several time zones.
    pub fn finish(mut self) -> Result<Table> {
        if self.partial.is_empty() {
            return Err(Error::input("the table has no rows").at(self.path));
        }
        let in_column = format!("column `{}`", self.columns.time);
        let settled = self.convert_compact_dates().and_then(|()| self.unify_offsets());
        settled.map_err(|error| error.context(in_column).at(self.path))?;
        let numeric_columns = |columns: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
            let columns = columns.into_iter().zip(&self.numeric);
            columns.filter(|(_, numeric)| **numeric).map(|(column, _)| column).collect()
        };
        let (mut series, mut errors) = (Vec::new(), Vec::new());
        for PartialSeries { series: mut one, error, .. } in self.partial {
            match error {
                Some(error) => errors.push(SeriesError { id: one.id, error }),
                None => {
                    one.covariates = numeric_columns(one.covariates);
                    series.push(one);
                }
            }
        }
        let names = self.names.into_iter().zip(&self.numeric);
        Ok(Table {
            columns: self.columns.clone(),
            has_ids: self.layout.id.is_some(),
            timestamp_format: self.format.unwrap_or(TimestampFormat::DATE),
            covariates: names.filter(|(_, numeric)| **numeric).map(|(name, _)| name).collect(),
            series,
            errors,
            notes: self.notes,
        })
    }

    fn timestamps(&self) -> impl Iterator<Item = Timestamp> {
        self.partial.iter().flat_map(|partial| partial.series.timestamps.iter().copied())
    }

    /// Converts integers to dates if all of them write a date (20240229) in the same number of digits.
    fn convert_compact_dates(&mut self) -> Result<()> {
        if self.format != Some(TimestampFormat::INTEGER) {
            return Ok(());
        }
        let dates: Option<Vec<(Timestamp, u8)>> = self.timestamps().map(compact_date).collect();
        let common_digits = |dates: &[(Timestamp, u8)]| {
            let (_, digits) = dates.first()?;
            dates.iter().all(|(_, other)| other == digits).then_some(*digits)
        };
        let Some(digits) = dates.as_deref().and_then(common_digits) else {
            return match &self.ambiguous_digits {
                None => Ok(()),
                Some(text) => Err(Error::input(format!("`{text}` may be a date or an integer")).hint(
                    "write dates year first (2024-02-29 or 20240229), and integers without a leading 0",
                )),
            };
        };
        let compact = TimestampFormat::compact(digits);
        let first = self.timestamps().next();
        if let Some(first) = first {
            let date = TimestampFormat::INTEGER.convert(first, compact);
            let integer = compact.convert(date, TimestampFormat::INTEGER);
            self.notes.push(format!(
                "column `{}`: integers such as {integer} are read as dates ({}); {READS_INTEGERS}",
                self.columns.time,
                TimestampFormat::DATE.format(date)
            ));
            self.format = Some(compact);
        }
        for timestamp in self.partial.iter_mut().flat_map(|partial| &mut partial.series.timestamps) {
            *timestamp = TimestampFormat::INTEGER.convert(*timestamp, compact);
        }
        Ok(())
    }

    /// Converts timestamps whose UTC offset changes: to local time if their steps are days or longer, else to the last
    /// offset.
    fn unify_offsets(&mut self) -> Result<()> {
        let Some(format) = self.format else { return Ok(()) };
        let mut known: Vec<i16> = Vec::new();
        for offset in self.partial.iter().flat_map(|partial| &partial.offsets) {
            if !known.contains(offset) {
                known.push(*offset);
            }
        }
        if !format.is_utc_in_zone() && known.len() < 2 {
            return Ok(());
        }
        let name = |minutes: i16| TimestampFormat::DATE.at_offset(minutes).format(0)[10..].to_string();
        if known.len() > 2 {
            let names: Vec<String> = known.iter().take(5).copied().map(name).collect();
            return Err(Error::input(format!("one column has the UTC offsets {}", names.join(", ")))
                .hint("a time zone has at most two; write all timestamps in one time zone, or in UTC"));
        }
        let local = |partial: &PartialSeries| -> Vec<Timestamp> {
            partial.series.timestamps.iter().map(|timestamp| format.local_time(*timestamp)).collect()
        };
        let local: Vec<Vec<Timestamp>> = self.partial.iter().map(local).collect();
        let is_daily = |timestamps: &Vec<Timestamp>| match Frequency::infer(timestamps, false) {
            Some(frequency) => frequency.is_day_or_longer(),
            None => timestamps.windows(2).all(|pair| (pair[1] - pair[0]) % DAY == 0),
        };
        let is_daily = local.iter().all(is_daily);
        let last = known.last().copied();
        let latest = self.partial.iter().filter_map(|partial| {
            let offset = *partial.offsets.last()?;
            Some((partial.series.timestamps.last()? - i64::from(offset) * MINUTE, offset))
        });
        let last = latest.max().map(|(_, offset)| offset).or(last).unwrap_or(0);
        for (partial, local) in self.partial.iter_mut().zip(local) {
            if is_daily {
                partial.series.timestamps = local;
                continue;
            }
            for (timestamp, offset) in partial.series.timestamps.iter_mut().zip(&partial.offsets) {
                *timestamp += i64::from(last - offset) * MINUTE;
            }
        }
        self.format = Some(match (format.is_utc_in_zone(), is_daily) {
            (true, true) => format.in_local_time(),
            (true, false) => format,
            (false, _) => format.at_offset(last),
        });
        if !format.is_utc_in_zone() {
            self.notes.push(format!(
                "column `{}`: the UTC offset changes; forecasts are written with the last one, {}",
                self.columns.time,
                name(last)
            ));
        }
        Ok(())
    }
}
