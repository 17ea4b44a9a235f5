//! A table while its rows come in, from whatever kind of file.

use std::collections::HashMap;
use std::path::Path;

use fauna_shared::error::nearest;
use fauna_shared::{Error, Result};

use super::frequency::Frequency;
use super::stamp::{Form, MINUTE, Stamp, compact_date, is_year_last};
use super::table::{Columns, Problem, Series, Table, called};

/// The longest table that is read, in rows times columns of numbers.
pub(super) const MOST_CELLS: u64 = 200_000_000;
/// One cell of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(not(feature = "parquet"), expect(dead_code, reason = "CSV holds texts alone"))]
pub(super) enum Cell<'a> {
    /// Nothing.
    Gap,
    /// As written.
    Text(&'a str),
    /// A number.
    Number(f64),
    /// A whole number.
    Whole(i64),
    /// Yes or no.
    Flag(bool),
    /// A point in time.
    Stamp(Stamp, Form),
}

impl Cell<'_> {
    /// As a person would write it.
    pub fn text(&self) -> String {
        match self {
            Self::Gap => String::new(),
            Self::Text(text) => (*text).to_string(),
            Self::Number(number) => number.to_string(),
            Self::Whole(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Stamp(stamp, form) => form.write(*stamp),
        }
    }

    /// As a number, NaN for a gap; none if it is no finite number.
    fn number(&self) -> Option<f64> {
        match self {
            Self::Gap => Some(f64::NAN),
            Self::Number(number) if number.is_nan() => Some(f64::NAN),
            Self::Number(number) => Some(*number).filter(|number| number.is_finite()),
            Self::Whole(number) => Some(*number as f64),
            Self::Flag(flag) => Some(f64::from(u8::from(*flag))),
            Self::Stamp(..) => None,
            Self::Text(text) if is_gap(text) => Some(f64::NAN),
            Self::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
        }
    }

    fn stamp(&self) -> Result<(Stamp, Form)> {
        match self {
            Self::Gap => Err(Error::input("the date is missing")),
            Self::Text(text) if is_gap(text) => Err(Error::input("the date is missing")),
            Self::Text(text) => Form::read(text),
            Self::Whole(number) => Ok((*number, Form::WHOLE)),
            Self::Stamp(stamp, form) => Ok((*stamp, *form)),
            Self::Flag(flag) => Err(Error::input(format!("`{flag}` is no date and no whole number"))),
            Self::Number(number) => Err(Error::input(format!("`{number}` is no date and no whole number"))),
        }
    }
}

/// Whether a cell says that nothing is known, as pandas reads it.
fn is_gap(text: &str) -> bool {
    matches!(
        text.trim(),
        "" | "NA" | "N/A" | "n/a" | "<NA>" | "#N/A" | "NaN" | "nan" | "null" | "NULL" | "None" | "NaT"
    )
}

/// Where the columns of a file are.
pub(super) struct Layout {
    pub id: Option<usize>,
    pub time: usize,
    pub target: Option<usize>,
    pub covariates: Vec<usize>,
}

impl Layout {
    /// Finds the columns among `header`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) naming the one that is missing, those there are, and the nearest.
    pub fn find(header: &[String], columns: &Columns, with_target: bool) -> Result<Self> {
        if let Some(twice) = (1..header.len()).find(|i| header[..*i].contains(&header[*i])) {
            return Err(Error::input(format!("two columns are called `{}`", header[twice])));
        }
        let place = |name: &str| header.iter().position(|column| column == name);
        let wanted = |name: &str, option: &str| {
            place(name).ok_or_else(|| {
                let near = nearest(name, header.iter().map(String::as_str));
                let near = near.first().map_or(String::new(), |near| format!("; is it `{near}`?"));
                Error::input(format!("no column is called `{name}`{near}"))
                    .hint(format!("the columns: {}", header.join(", ")))
                    .hint(format!("name the column: {option}"))
            })
        };
        let id = match place(&columns.id) {
            None if columns.id != Columns::default().id => Some(wanted(&columns.id, "--id-col")?),
            found => found,
        };
        let time = wanted(&columns.time, "--time-col")?;
        let target = match with_target {
            true => Some(wanted(&columns.target, "--target-col")?),
            false => None,
        };
        if id == Some(time) || target == Some(time) || (id.is_some() && id == target) {
            return Err(Error::input("one column cannot be two of name, date and value"));
        }
        let taken = [id, Some(time), place(&columns.target)];
        // Columns of an index that pandas wrote are no data.
        let is_index =
            |name: &str| name.is_empty() || name.starts_with("__index_level_") || name == "Unnamed: 0";
        let rest = |place: &usize| !taken.contains(&Some(*place)) && !is_index(&header[*place]);
        Ok(Self { id, time, target, covariates: (0..header.len()).filter(rest).collect() })
    }

    /// Columns of numbers.
    pub fn numbers(&self) -> u64 {
        2 + self.covariates.len() as u64
    }
}

/// A series while its rows come in.
#[derive(Default)]
struct Growing {
    series: Series,
    /// Minutes east of Greenwich, one a stamp where stamps have an offset.
    offsets: Vec<i16>,
    wrong: Option<Error>,
}

/// A table while its rows come in.
pub(super) struct Builder<'a> {
    place: &'a Path,
    /// What a row is called: "line" or "row".
    row: &'static str,
    columns: &'a Columns,
    layout: Layout,
    names: Vec<String>,
    /// Which covariates are numbers so far.
    numeric: Vec<bool>,
    form: Option<Form>,
    growing: Vec<Growing>,
    /// A stamp of digits alone that begins with 0 or has its year last, as it is written.
    odd_digits: Option<String>,
    places: HashMap<String, usize>,
    last: usize,
    cells: u64,
    pub notes: Vec<String>,
}

impl<'a> Builder<'a> {
    pub fn new(
        place: &'a Path,
        row: &'static str,
        header: &[String],
        columns: &'a Columns,
        with_target: bool,
    ) -> Result<Self> {
        let layout = Layout::find(header, columns, with_target).map_err(|e| e.at(place))?;
        let names: Vec<String> = layout.covariates.iter().map(|place| header[*place].clone()).collect();
        Ok(Self {
            place,
            row,
            columns,
            numeric: vec![true; names.len()],
            layout,
            names,
            form: None,
            growing: Vec::new(),
            odd_digits: None,
            places: HashMap::new(),
            last: 0,
            cells: 0,
            notes: Vec::new(),
        })
    }

    #[cfg(feature = "parquet")]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One row more, `number` in the file; `cell` gives the cells by their column.
    pub fn row<'c>(&mut self, number: u64, cell: impl Fn(usize) -> Cell<'c>) -> Result<()> {
        self.cells += self.layout.numbers();
        if self.cells > MOST_CELLS {
            return Err(Error::input(format!("more than {MOST_CELLS} numbers"))
                .at(self.place)
                .hint("split the table into several files"));
        }
        let at = match self.layout.id {
            None => self.series(""),
            Some(column) => match cell(column) {
                Cell::Text(text) => self.series(text),
                other => self.series(&other.text()),
            },
        };
        if self.growing[at].wrong.is_some() {
            return Ok(());
        }
        if let Err(error) = self.take(at, number, &cell) {
            let id = std::mem::take(&mut self.growing[at].series.id);
            let place = format!("{}: {} {number}", called(&id), self.row);
            self.growing[at] = Growing {
                series: Series { id, ..Series::default() },
                wrong: Some(error.context(place).at(self.place)),
                ..Growing::default()
            };
        }
        Ok(())
    }

    /// The place of the series called `id`.
    fn series(&mut self, id: &str) -> usize {
        if self.growing.get(self.last).is_some_and(|growing| growing.series.id == id) {
            return self.last;
        }
        self.last = match self.places.get(id) {
            Some(place) => *place,
            None => {
                let covariates = vec![Vec::new(); self.names.len()];
                let series = Series { id: id.to_string(), covariates, ..Series::default() };
                self.growing.push(Growing { series, ..Growing::default() });
                self.places.insert(id.to_string(), self.growing.len() - 1);
                self.growing.len() - 1
            }
        };
        self.last
    }

    fn take<'c>(&mut self, at: usize, number: u64, cell: &impl Fn(usize) -> Cell<'c>) -> Result<()> {
        if self.layout.id.is_some_and(|column| cell(column).text().trim().is_empty()) {
            return Err(Error::input(format!("column `{}`: the name is missing", self.columns.id)));
        }
        let in_column = |name: &str| format!("column `{name}`");
        let time = cell(self.layout.time);
        let read = time.stamp().and_then(|(stamp, form)| {
            Ok((stamp, form.offset(), self.form.map_or(Ok(form), |known| known.with(form))?))
        });
        let (stamp, offset, form) = read.map_err(|e| e.context(in_column(&self.columns.time)))?;
        if let (Cell::Text(text), true) = (&time, form.is_whole()) {
            let text = text.trim();
            if self.odd_digits.is_none() && (is_year_last(text) || text.starts_with('0') && text.len() > 1) {
                self.odd_digits = Some(text.to_string());
            }
        }
        let value = self.layout.target.map(|column| {
            let found = cell(column);
            let value = found.number().filter(|value| value.is_nan() || value.abs() <= f64::from(f32::MAX));
            value.ok_or_else(|| {
                Error::input(format!("`{}` is no number of the size of a float32", found.text()))
                    .context(in_column(&self.columns.target))
                    .hint("numbers are written 1234.5; empty, NA or NaN is a gap")
            })
        });
        let value = value.transpose()?;
        let Growing { series, offsets, .. } = &mut self.growing[at];
        // In order of time, whatever the clock on the wall shows.
        let utc = |stamp: Stamp, offset: Option<&i16>| {
            stamp.saturating_sub(offset.map_or(0, |minutes| i64::from(*minutes) * MINUTE))
        };
        let before = series.stamps.last().map(|last| (*last, utc(*last, offsets.last())));
        let now = utc(stamp, offset.as_ref());
        if let Some((last, then)) = before.filter(|(_, then)| *then >= now) {
            let (this, that) = (form.write(stamp), form.write(last));
            return Err(match then == now {
                true => Error::input(format!("the date {this} is there twice"))
                    .hint("one row a date and series is wanted"),
                false => Error::input(format!("the date {this} comes after {that}"))
                    .hint("sort the rows of each series by date"),
            });
        }
        self.form = Some(form);
        series.stamps.push(stamp);
        offsets.extend(offset);
        series.values.extend(value);
        for (place, column) in self.layout.covariates.iter().enumerate() {
            if !self.numeric[place] {
                continue;
            }
            let found = cell(*column);
            match found.number() {
                Some(value) => series.covariates[place].push(value as f32),
                None => {
                    self.numeric[place] = false;
                    self.notes.push(format!(
                        "{}: column `{}` is left out: {} {number} has `{}`, which is no number",
                        self.place.display(),
                        self.names[place],
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
    /// [`Input`](fauna_shared::ErrorKind::Input) if there were no rows, for whole numbers that may be dates with the
    /// year last, and for offsets of several zones.
    pub fn finish(mut self) -> Result<Table> {
        if self.growing.is_empty() {
            return Err(Error::input("the table has no rows").at(self.place));
        }
        let in_column = format!("column `{}`", self.columns.time);
        let settled = self.settle_dates().and_then(|()| self.settle_offsets());
        settled.map_err(|error| error.context(in_column).at(self.place))?;
        let kept = |list: Vec<Vec<f32>>| -> Vec<Vec<f32>> {
            list.into_iter().zip(&self.numeric).filter(|(_, kept)| **kept).map(|(column, _)| column).collect()
        };
        let (mut series, mut problems) = (Vec::new(), Vec::new());
        for Growing { series: mut grown, wrong, .. } in self.growing {
            match wrong {
                Some(error) => problems.push(Problem { id: grown.id, error }),
                None => {
                    grown.covariates = kept(grown.covariates);
                    series.push(grown);
                }
            }
        }
        let names = self.names.into_iter().zip(&self.numeric);
        Ok(Table {
            columns: self.columns.clone(),
            named: self.layout.id.is_some(),
            form: self.form.unwrap_or(Form::DATE),
            covariates: names.filter(|(_, kept)| **kept).map(|(name, _)| name).collect(),
            series,
            problems,
            notes: self.notes,
        })
    }

    fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.growing.iter().flat_map(|growing| growing.series.stamps.iter().copied())
    }

    /// Whole numbers that all write a date in the same number of digits are dates.
    fn settle_dates(&mut self) -> Result<()> {
        if self.form != Some(Form::WHOLE) {
            return Ok(());
        }
        let dates: Option<Vec<(Stamp, u8)>> = self.stamps().map(compact_date).collect();
        let digits = |dates: &[(Stamp, u8)]| {
            let (_, digits) = dates.first()?;
            dates.iter().all(|(_, other)| other == digits).then_some(*digits)
        };
        let Some(digits) = dates.as_deref().and_then(digits) else {
            return match &self.odd_digits {
                None => Ok(()),
                Some(text) => Err(Error::input(format!("`{text}` may be a date or a whole number")).hint(
                    "write dates year first: 2024-02-29 or 20240229; and whole numbers without a 0 before",
                )),
            };
        };
        let first = self.stamps().next();
        if let Some(first) = first {
            let form = Form::compact(digits);
            let read = form.convert(Form::WHOLE.convert(first, form), Form::WHOLE);
            let date = Form::DATE.write(Form::WHOLE.convert(first, form));
            self.notes.push(format!(
                "column `{}`: whole numbers such as {read} are read as dates ({date}); --freq 1 counts them instead",
                self.columns.time
            ));
            self.form = Some(form);
        }
        for growing in &mut self.growing {
            for stamp in &mut growing.series.stamps {
                *stamp = Form::WHOLE.convert(*stamp, Form::compact(digits));
            }
        }
        Ok(())
    }

    /// Brings stamps whose offset changes onto one clock: that on the wall where their steps are days or longer, else
    /// one that keeps the last offset.
    fn settle_offsets(&mut self) -> Result<()> {
        let Some(form) = self.form else { return Ok(()) };
        let mut known: Vec<i16> = Vec::new();
        for offset in self.growing.iter().flat_map(|growing| &growing.offsets) {
            if !known.contains(offset) {
                known.push(*offset);
            }
        }
        if !form.is_zoned() && known.len() < 2 {
            return Ok(());
        }
        if known.len() > 2 {
            let named: Vec<String> = known
                .iter()
                .take(5)
                .map(|minutes| Form::DATE.at_offset(*minutes).write(0)[10..].to_string())
                .collect();
            return Err(Error::input(format!("the offsets {} stand in one column", named.join(", ")))
                .hint("a zone has two at most; write all stamps in one zone, or in UTC"));
        }
        let wall = |growing: &Growing| -> Vec<Stamp> {
            growing.series.stamps.iter().map(|stamp| form.wall(*stamp)).collect()
        };
        let walls: Vec<Vec<Stamp>> = self.growing.iter().map(wall).collect();
        let is_of_days = |stamps: &Vec<Stamp>| match Frequency::infer(stamps, false) {
            Some(frequency) => frequency.is_of_days(),
            None => stamps.windows(2).all(|pair| (pair[1] - pair[0]) % super::stamp::DAY == 0),
        };
        let by_days = walls.iter().all(is_of_days);
        let last = known.last().copied();
        let latest = self.growing.iter().filter_map(|growing| {
            let utc = growing.series.stamps.last()? - i64::from(*growing.offsets.last()?) * MINUTE;
            Some((utc, *growing.offsets.last()?))
        });
        let last = latest.max().map(|(_, offset)| offset).or(last).unwrap_or(0);
        for (growing, wall) in self.growing.iter_mut().zip(walls) {
            if by_days {
                growing.series.stamps = wall;
                continue;
            }
            for (stamp, offset) in growing.series.stamps.iter_mut().zip(&growing.offsets) {
                *stamp += i64::from(last - offset) * MINUTE;
            }
        }
        self.form = Some(match (form.is_zoned(), by_days) {
            (true, true) => form.on_the_wall(),
            (true, false) => form,
            (false, _) => form.at_offset(last),
        });
        if !form.is_zoned() {
            let zone = Form::DATE.at_offset(last).write(0)[10..].to_string();
            self.notes.push(format!(
                "column `{}`: the offset of the stamps changes; what follows is written with the last one, {zone}",
                self.columns.time
            ));
        }
        Ok(())
    }
}
