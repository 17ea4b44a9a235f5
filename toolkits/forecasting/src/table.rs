//! Many series in one table, in long format: one row a series and stamp.

use std::path::Path;

use fauna_shared::{Error, Result};

use super::frequency::Frequency;
use super::stamp::{Form, Stamp};

/// A series may be this long whatever its gaps; beyond it at least one step in [`MOST_GAPS`] must have a row.
const SHORT: i64 = 100_000;
const MOST_GAPS: i64 = 100;

/// Which columns of a table mean what. All others are covariates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The name of the series. Under its default name it may be missing: the table is then one series.
    pub id: String,
    /// Dates, or whole numbers.
    pub time: String,
    /// Values.
    pub target: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self { id: "unique_id".to_string(), time: "ds".to_string(), target: "y".to_string() }
    }
}

/// One series of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name; empty in a table without names.
    pub id: String,
    /// Rising.
    pub stamps: Vec<Stamp>,
    /// One a stamp; NaN marks a gap. Empty in a table of the future.
    pub values: Vec<f64>,
    /// One list of values for each of the table's covariates.
    pub covariates: Vec<Vec<f32>>,
}

/// What messages call the series `id`; that of a table without names has none.
pub(super) fn called(id: &str) -> String {
    if id.is_empty() { "the series".to_string() } else { format!("series `{id}`") }
}

/// What is wrong with one series. It does not stop the others.
#[derive(Debug)]
pub struct Problem {
    /// The series.
    pub id: String,
    /// What is wrong, and where.
    pub error: Error,
}

/// Series in long format.
///
/// ```
/// use fauna_forecasting::{Columns, Table};
/// let file = "unique_id,ds,y\na,2024-01-01,3\na,2024-01-02,\nb,2024-01-01,5\nb,2024-01-01,6\n";
/// let table = Table::from_csv(file.as_bytes(), "sales.csv", &Columns::default())?;
/// assert!(table.series[0].values[1].is_nan());
/// assert_eq!(
///     table.problems[0].error.to_string(),
///     "sales.csv: series `b`: line 5: the date 2024-01-01 is there twice\n  one row a date and series is wanted"
/// );
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug)]
pub struct Table {
    /// What its columns are called.
    pub columns: Columns,
    /// Whether the series have names.
    pub named: bool,
    /// How its stamps are written.
    pub form: Form,
    /// The names of the covariates.
    pub covariates: Vec<String>,
    /// Series that can be used, in the order in which they begin.
    pub series: Vec<Series>,
    /// Series that cannot.
    pub problems: Vec<Problem>,
    /// What was left out.
    pub notes: Vec<String>,
}

impl Table {
    /// Reads the file at `path`: Parquet if it ends in `.parquet` or `.pq`, else CSV with commas, semicolons or tabs.
    ///
    /// Empty cells, `NA`, `NaN`, `null` and `None` are gaps. Rows of different series may be mixed; those of one must
    /// be in order of time.
    ///
    /// # Errors
    /// [`Format`](fauna_shared::ErrorKind::Format) if the file is no such table, [`Input`](fauna_shared::ErrorKind::Input)
    /// for a column that is not there. What is wrong in one series alone is in [`problems`](Table::problems).
    pub fn read(path: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        open(path.as_ref(), columns, true)
    }

    /// Reads covariates of the future: a table as for [`read`](Table::read), without a column of values.
    ///
    /// # Errors
    /// As [`read`](Table::read).
    pub fn read_future(path: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        open(path.as_ref(), columns, false)
    }

    /// Reads CSV from `reader`; errors call it `name`.
    ///
    /// # Errors
    /// As [`read`](Table::read).
    pub fn from_csv(reader: impl std::io::Read, name: impl AsRef<Path>, columns: &Columns) -> Result<Self> {
        super::csv_file::read(reader, name.as_ref(), columns, true)
    }

    /// A table of series that all begin at `start` and go on without a gap.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if `start` is no stamp of `frequency` or the calendar ends.
    ///
    /// ```
    /// use fauna_forecasting::Table;
    /// let table = Table::regular("MS".parse()?, "1949-01", [("passengers", vec![112.0, 118.0])])?;
    /// assert_eq!(table.form.write(table.series[0].stamps[1]), "1949-02");
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn regular<'a>(
        frequency: Frequency,
        start: &str,
        series: impl IntoIterator<Item = (&'a str, Vec<f64>)>,
    ) -> Result<Self> {
        let (first, form) = Form::read(start)?;
        let on_grid = form.is_whole() == frequency.is_whole();
        let build = |(id, values): (&str, Vec<f64>)| {
            let stamps: Option<Vec<Stamp>> =
                (0..values.len() as i64).map(|step| frequency.add(first, step)).collect();
            let stamps = stamps.filter(|_| on_grid).ok_or_else(|| {
                Error::input(format!(
                    "{} steps of {frequency} from {start} on are not on the calendar",
                    values.len()
                ))
            })?;
            Ok(Series { id: id.to_string(), stamps, values, covariates: Vec::new() })
        };
        Ok(Self {
            columns: Columns::default(),
            named: true,
            form,
            covariates: Vec::new(),
            series: series.into_iter().map(build).collect::<Result<_>>()?,
            problems: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// The same table with its dates as the whole numbers that write them.
    pub(super) fn counted(&self) -> Self {
        let series = self.series.iter().map(|series| Series {
            stamps: series.stamps.iter().map(|stamp| self.form.convert(*stamp, Form::WHOLE)).collect(),
            ..series.clone()
        });
        Self {
            columns: self.columns.clone(),
            named: self.named,
            form: Form::WHOLE,
            covariates: self.covariates.clone(),
            series: series.collect(),
            problems: self.problems.iter().map(super::prepare::copy).collect(),
            notes: self.notes.iter().filter(|note| !note.contains("--freq 1")).cloned().collect(),
        }
    }

    /// The frequency that most of the series have by their stamps.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if none has one.
    pub fn frequency(&self) -> Result<Frequency> {
        let found: Vec<Option<Frequency>> = self.series.iter().map(|series| self.infer(series)).collect();
        self.most_common(&found)
    }

    /// The frequency of each series: its own by its stamps, or, where they do not tell it or are as good in the one that
    /// most of the series have, that one.
    ///
    /// # Errors
    /// As [`frequency`](Table::frequency).
    pub(super) fn frequencies(&self) -> Result<Vec<Frequency>> {
        let found: Vec<Option<Frequency>> = self.series.iter().map(|series| self.infer(series)).collect();
        let common = self.most_common(&found)?;
        let own = |(series, found): (&Series, Option<Frequency>)| match found {
            // Three working days in a row are days as well.
            Some(own) if own != common && !common.goes_through(&series.stamps) => own,
            _ => common,
        };
        Ok(self.series.iter().zip(found).map(own).collect())
    }

    fn infer(&self, series: &Series) -> Option<Frequency> {
        Frequency::infer(&series.stamps, self.form.is_whole())
    }

    /// The most common of `all`, one a series.
    fn most_common(&self, all: &[Option<Frequency>]) -> Result<Frequency> {
        let mut counts: Vec<(Frequency, usize)> = Vec::new();
        for found in all.iter().flatten().copied() {
            match counts.iter_mut().find(|(known, _)| *known == found) {
                Some((_, count)) => *count += 1,
                None => counts.push((found, 1)),
            }
        }
        // The first of those that are equally common.
        counts.reverse();
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(found, _)| found).ok_or_else(|| {
            let shown = self.series.iter().max_by_key(|series| series.stamps.len());
            let stamps = shown.map_or(String::new(), |series| {
                let first: Vec<String> =
                    series.stamps.iter().take(4).map(|stamp| self.form.write(*stamp)).collect();
                format!(": {} begins {}", called(&series.id), first.join(", "))
            });
            Error::input(format!("how far the stamps are apart cannot be told{stamps}"))
                .hint("name the frequency (--freq h, D, B, W-MON, MS, ...), three stamps at least tell it")
        })
    }

    /// `series` with one value for every step of `frequency` from its first stamp to its last, and how many of them are
    /// new: gaps.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) naming the first stamp that is not of this frequency.
    pub(super) fn lay(&self, series: &Series, frequency: Frequency) -> Result<(Series, usize)> {
        let wrong = |stamp: Stamp| {
            Error::input(format!(
                "{}: {} is no stamp of the frequency {frequency} from {} on",
                called(&series.id),
                self.form.write(stamp),
                series.stamps.first().map_or(String::new(), |first| self.form.write(*first))
            ))
            .hint("correct it, or name another frequency (--freq)")
        };
        let (Some(first), Some(last)) = (series.stamps.first(), series.stamps.last()) else {
            return Err(Error::input(format!("{} has no rows", called(&series.id))));
        };
        let places: Vec<usize> = series
            .stamps
            .iter()
            .map(|stamp| {
                frequency.steps(*first, *stamp).map(|place| place as usize).ok_or_else(|| wrong(*stamp))
            })
            .collect::<Result<_>>()?;
        let length = frequency.steps(*first, *last).and_then(|steps| steps.checked_add(1));
        let length = length.ok_or_else(|| wrong(*last))?;
        let rows = series.stamps.len();
        if length == rows as i64 {
            return Ok((series.clone(), 0));
        }
        if length > SHORT && length / MOST_GAPS > rows as i64 {
            return Err(Error::input(format!(
                "{} has {rows} rows in {length} steps of the frequency {frequency}",
                called(&series.id)
            ))
            .hint("name the frequency that it has (--freq)"));
        }
        let stamps = (0..length).map(|step| frequency.add(*first, step).ok_or_else(|| wrong(*last)));
        let (length, mut values) = (length as usize, vec![f64::NAN; length as usize]);
        places.iter().zip(&series.values).for_each(|(place, value)| values[*place] = *value);
        let spread = |column: &Vec<f32>| {
            let mut wide = vec![f32::NAN; length];
            places.iter().zip(column).for_each(|(place, value)| wide[*place] = *value);
            wide
        };
        let laid = Series {
            id: series.id.clone(),
            stamps: stamps.collect::<Result<_>>()?,
            values,
            covariates: series.covariates.iter().map(spread).collect(),
        };
        Ok((laid, length - rows))
    }
}

fn open(path: &Path, columns: &Columns, with_target: bool) -> Result<Table> {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "read", e))?;
    match ending.to_str() {
        #[cfg(feature = "parquet")]
        Some("parquet" | "pq") => super::parquet_file::read(file, path, columns, with_target),
        #[cfg(not(feature = "parquet"))]
        Some("parquet" | "pq") => Err(Error::unsupported("this program was built without Parquet")
            .at(path)
            .hint("write the table as CSV, or build with the feature `parquet`")),
        _ => super::csv_file::read(file, path, columns, with_target),
    }
}
