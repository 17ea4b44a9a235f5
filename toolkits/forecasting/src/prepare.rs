//! A table as the verbs need it: every series on its grid, covariates of the future checked.

use std::collections::HashMap;

use fauna_shared::error::first_five;
use fauna_shared::{Error, Result};

use super::ask::Ask;
use super::frequency::Frequency;
use super::stamp::{Form, Stamp};
use super::table::{Problem, Series, Table, called};

/// Steps before the first rolling forecast of a series: fewer show no change from step to step.
pub(super) const LEAST: usize = 2;

/// A table whose series are each on the grid of a frequency.
pub(super) struct Prepared {
    pub form: Form,
    pub series: Vec<Ready>,
    /// Which covariates are handed to the model, and whether their future is.
    pub covariates: Vec<Use>,
    pub problems: Vec<Problem>,
    pub notes: Vec<String>,
}

/// What becomes of a covariate.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Use {
    pub name: String,
    /// Its place in the table.
    pub place: usize,
    pub known: bool,
}

/// A series on its grid.
pub(super) struct Ready {
    pub series: Series,
    pub frequency: Frequency,
    /// Steps that make a season: as asked, else by the frequency.
    pub season: usize,
    /// The covariates at the steps after its end, in the order of [`Prepared::covariates`]; empty where unknown.
    pub future: Vec<Vec<f32>>,
}

/// Lays the series of `table` on the grid that `ask` names or their stamps show.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the frequency cannot be told or does not fit the table.
pub(super) fn prepare(table: &Table, ask: &Ask, reads_covariates: bool) -> Result<Prepared> {
    ask.check()?;
    // Whole numbers that look like dates are counted where that is asked.
    let counted = (table.form.is_compact() && ask.frequency.is_some_and(|asked| asked.is_whole()))
        .then(|| table.counted());
    let table = counted.as_ref().unwrap_or(table);
    let mut notes = table.notes.clone();
    let mut problems: Vec<Problem> = table.problems.iter().map(copy).collect();
    let frequencies = match ask.frequency {
        Some(frequency) => vec![frequency; table.series.len()],
        // Where every series is bad there is nothing to tell it from, and nothing to tell it for.
        None if table.series.is_empty() => Vec::new(),
        None => table.frequencies()?,
    };
    if let Some(frequency) = frequencies.iter().find(|one| one.is_whole() != table.form.is_whole()) {
        let kind = if table.form.is_whole() { "whole numbers" } else { "dates" };
        return Err(Error::input(format!("the frequency {frequency} is not one of {kind}"))
            .hint("--freq 1 for whole numbers, --freq D (h, MS, ...) for dates"));
    }
    notes.extend(several(table, &frequencies));
    let covariates = covariates(table, ask, reads_covariates, &mut notes)?;
    let future = ask.future.map(|future| Future::of(future, table.form));
    if let Some(future) = &future {
        notes.extend(future.strangers(table));
    }
    let mut ready = Vec::with_capacity(table.series.len());
    let mut filled: Vec<(Frequency, usize, usize)> = Vec::new();
    for (series, frequency) in table.series.iter().zip(frequencies) {
        let laid = table.lay(series, frequency).and_then(|(laid, gaps)| {
            check_values(&laid)?;
            let after = match &future {
                None => Vec::new(),
                Some(future) => future.of_series(&laid, table, frequency, ask.horizon, &covariates)?,
            };
            let season = ask.season.unwrap_or_else(|| frequency.season());
            Ok((Ready { series: laid, frequency, season, future: after }, gaps))
        });
        match laid {
            Ok((one, gaps)) => {
                ready.push(one);
                match filled.iter_mut().find(|(known, ..)| *known == frequency) {
                    _ if gaps == 0 => {}
                    Some((_, all, holed)) => (*all, *holed) = (*all + gaps, *holed + 1),
                    None => filled.push((frequency, gaps, 1)),
                }
            }
            Err(error) => problems.push(Problem { id: series.id.clone(), error }),
        }
    }
    notes.extend(filled.into_iter().map(|(frequency, filled, holed)| {
        format!("{filled} missing stamps of {holed} series are filled as gaps (frequency {frequency})")
    }));
    Ok(Prepared { form: table.form, series: ready, covariates, problems, notes })
}

/// A note of the frequencies of `table`, if its series have several.
fn several(table: &Table, frequencies: &[Frequency]) -> Option<String> {
    let mut groups: Vec<(Frequency, Vec<&str>)> = Vec::new();
    for (series, frequency) in table.series.iter().zip(frequencies) {
        match groups.iter_mut().find(|(known, _)| known == frequency) {
            Some((_, ids)) => ids.push(&series.id),
            None => groups.push((*frequency, vec![&series.id])),
        }
    }
    let named = |(frequency, ids): &(Frequency, Vec<&str>)| {
        format!("{frequency} ({})", first_five(ids).replace('\n', ", "))
    };
    (groups.len() > 1).then(|| {
        format!(
            "each series goes on by its own frequency: {}",
            groups.iter().map(named).collect::<Vec<_>>().join("; ")
        )
    })
}

/// The same problem once more; the error underneath stays with the first.
pub(super) fn copy(problem: &Problem) -> Problem {
    let error = &problem.error;
    let mut copied = Error::new(error.kind(), error.message());
    if let Some(place) = error.place() {
        copied = copied.at(place);
    }
    let text = error.to_string();
    let copied = text.lines().skip(1).fold(copied, |copied, line| copied.hint(line.trim_start()));
    Problem { id: problem.id.clone(), error: copied }
}

fn check_values(series: &Series) -> Result<()> {
    match series.values.iter().any(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(Error::input(format!(
            "{} has no value: all {} steps are gaps",
            called(&series.id),
            series.values.len()
        ))
        .hint("leave it out, or fill in what is known of it")),
    }
}

/// The covariates that the model gets.
fn covariates(table: &Table, ask: &Ask, reads: bool, notes: &mut Vec<String>) -> Result<Vec<Use>> {
    if let Some(name) = ask.past_only.iter().find(|name| !table.covariates.contains(name)) {
        return Err(Error::input(format!("no covariate is called `{name}`"))
            .hint(format!("the covariates: {}", table.covariates.join(", "))));
    }
    let future: &[String] = ask.future.map_or(&[], |future| &future.covariates);
    let new: Vec<&String> = future.iter().filter(|name| !table.covariates.contains(name)).collect();
    if !new.is_empty() {
        notes.push(format!(
            "left out, since the past of them is not known: {}",
            first_five(new).replace('\n', ", ")
        ));
    }
    if !reads {
        if !table.covariates.is_empty() {
            notes.push(format!(
                "{} reads no covariates; left out: {}",
                ask.model,
                first_five(&table.covariates).replace('\n', ", ")
            ));
        }
        return Ok(Vec::new());
    }
    let use_of = |(place, name): (usize, &String)| {
        let told = ask.future.is_none() || future.contains(name);
        Use { name: name.clone(), place, known: told && !ask.past_only.contains(name) }
    };
    Ok(table.covariates.iter().enumerate().map(use_of).collect())
}

/// A table of the future, by the names of its series.
struct Future<'a> {
    table: &'a Table,
    /// How stamps of the past are written; those of the future are compared in it.
    form: Form,
    by_id: HashMap<&'a str, Result<&'a Series, &'a Problem>>,
}

impl<'a> Future<'a> {
    fn of(table: &'a Table, form: Form) -> Self {
        let good = table.series.iter().map(|series| (series.id.as_str(), Ok(series)));
        let bad = table.problems.iter().map(|problem| (problem.id.as_str(), Err(problem)));
        Self { table, form, by_id: good.chain(bad).collect() }
    }

    /// A note of the series that the table does not have.
    fn strangers(&self, table: &Table) -> Option<String> {
        let known: std::collections::HashSet<&str> = table
            .series
            .iter()
            .map(|series| series.id.as_str())
            .chain(table.problems.iter().map(|problem| problem.id.as_str()))
            .collect();
        let mut new: Vec<&str> = self.by_id.keys().copied().filter(|id| !known.contains(id)).collect();
        new.sort_unstable();
        (!new.is_empty()).then(|| {
            format!("the future names series that the table lacks: {}", first_five(new).replace('\n', ", "))
        })
    }

    /// The covariates of one series, exactly at the steps to forecast.
    fn of_series(
        &self,
        series: &Series,
        past: &Table,
        frequency: Frequency,
        horizon: usize,
        covariates: &[Use],
    ) -> Result<Vec<Vec<f32>>> {
        let id = &series.id;
        let found = match self.by_id.get(id.as_str()) {
            None => {
                return Err(Error::input(format!("{} is not in the table of the future", called(id)))
                    .hint(format!("give {horizon} rows of it, or leave the series out")));
            }
            Some(Err(problem)) => return Err(copy(problem).error.context("the future")),
            Some(Ok(found)) => found,
        };
        let wanted = after(series, frequency, horizon)?;
        let stamps: Vec<Stamp> =
            found.stamps.iter().map(|stamp| self.table.form.convert(*stamp, self.form)).collect();
        let missing: Vec<String> = wanted
            .iter()
            .filter(|stamp| stamps.binary_search(stamp).is_err())
            .map(|stamp| past.form.write(*stamp))
            .collect();
        let extra = stamps.iter().find(|stamp| wanted.binary_search(stamp).is_err());
        if let Some(first) = missing.first() {
            return Err(Error::input(format!(
                "the future of {} lacks {} of {horizon} steps, {first} first",
                called(id),
                missing.len()
            )));
        }
        if let Some(extra) = extra {
            return Err(Error::input(format!(
                "the future of {} has {}, which is none of the {horizon} steps to forecast",
                called(id),
                past.form.write(*extra)
            ))
            .hint(format!(
                "they are {} to {}",
                past.form.write(wanted[0]),
                past.form.write(wanted[wanted.len() - 1])
            )));
        }
        let place = |name: &str| self.table.covariates.iter().position(|known| known == name);
        let column = |covariate: &Use| match (covariate.known, place(&covariate.name)) {
            (true, Some(place)) => found.covariates[place].clone(),
            _ => Vec::new(),
        };
        Ok(covariates.iter().map(column).collect())
    }
}

/// The `horizon` stamps after the end of `series`.
pub(super) fn after(series: &Series, frequency: Frequency, horizon: usize) -> Result<Vec<Stamp>> {
    let last = series.stamps.last().copied().unwrap_or(0);
    let stamps: Option<Vec<Stamp>> = (1..=horizon as i64).map(|step| frequency.add(last, step)).collect();
    stamps.ok_or_else(|| {
        Error::input(format!(
            "{}: {horizon} more steps of {frequency} leave the calendar",
            called(&series.id)
        ))
    })
}
