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

/// A table whose series are on the grid of one frequency.
pub(super) struct Prepared {
    pub frequency: Frequency,
    pub season: usize,
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
    /// The covariates at the steps after its end, in the order of [`Prepared::covariates`]; empty where unknown.
    pub future: Vec<Vec<f32>>,
}

/// Lays the series of `table` on the grid that `ask` names or their stamps show.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) if the frequency cannot be told or does not fit the table.
pub(super) fn prepare(table: &Table, ask: &Ask, reads_covariates: bool) -> Result<Prepared> {
    ask.check()?;
    let mut notes = table.notes.clone();
    let mut problems: Vec<Problem> = table.problems.iter().map(copy).collect();
    let frequency = match ask.frequency {
        Some(frequency) => frequency,
        // Where every series is bad there is nothing to tell it from, and nothing to tell it for.
        None if table.series.is_empty() => Frequency::WHOLE,
        None => table.frequency()?,
    };
    if frequency.is_whole() != table.form.is_whole() && !table.series.is_empty() {
        let kind = if table.form.is_whole() { "whole numbers" } else { "dates" };
        return Err(Error::input(format!("the frequency {frequency} is not one of {kind}"))
            .hint("--freq 1 for whole numbers, --freq D (h, MS, ...) for dates"));
    }
    let covariates = covariates(table, ask, reads_covariates, &mut notes)?;
    let future = ask.future.map(Future::of);
    if let Some(future) = &future {
        notes.extend(future.strangers(table));
    }
    let mut ready = Vec::with_capacity(table.series.len());
    let (mut filled, mut holed) = (0, 0);
    for series in &table.series {
        let laid = table.lay(series, frequency).and_then(|(laid, gaps)| {
            check_values(&laid)?;
            let after = match &future {
                None => Vec::new(),
                Some(future) => future.of_series(&laid, table, frequency, ask.horizon, &covariates)?,
            };
            Ok((Ready { series: laid, future: after }, gaps))
        });
        match laid {
            Ok((one, gaps)) => {
                ready.push(one);
                filled += gaps;
                holed += usize::from(gaps > 0);
            }
            Err(error) => problems.push(Problem { id: series.id.clone(), error }),
        }
    }
    if filled > 0 {
        notes.push(format!(
            "{filled} missing stamps of {holed} series are filled as gaps (frequency {frequency})"
        ));
    }
    Ok(Prepared {
        frequency,
        season: ask.season.unwrap_or_else(|| frequency.season()),
        form: table.form,
        series: ready,
        covariates,
        problems,
        notes,
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
    by_id: HashMap<&'a str, Result<&'a Series, &'a Problem>>,
}

impl<'a> Future<'a> {
    fn of(table: &'a Table) -> Self {
        let good = table.series.iter().map(|series| (series.id.as_str(), Ok(series)));
        let bad = table.problems.iter().map(|problem| (problem.id.as_str(), Err(problem)));
        Self { table, by_id: good.chain(bad).collect() }
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

    /// The covariates of one series, exactly at the steps to foresee.
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
        let missing: Vec<String> = wanted
            .iter()
            .filter(|stamp| found.stamps.binary_search(stamp).is_err())
            .map(|stamp| past.form.write(*stamp))
            .collect();
        let extra = found.stamps.iter().find(|stamp| wanted.binary_search(stamp).is_err());
        if let Some(first) = missing.first() {
            return Err(Error::input(format!(
                "the future of {} lacks {} of {horizon} steps, {first} first",
                called(id),
                missing.len()
            )));
        }
        if let Some(extra) = extra {
            return Err(Error::input(format!(
                "the future of {} has {}, which is none of the {horizon} steps to foresee",
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
