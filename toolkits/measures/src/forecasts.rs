//! Errors of forecasts by the conventions of fev (`fev/metrics.py`), and a leaderboard over several tasks.
//!
//! Values that are not finite do not count. The errors that are scaled divide by the mean seasonal difference of the past of
//! a series, over all steps of all series at once: a series whose past has none is left out.

use fauna_shared::{Error, Result};

use crate::intervals::{Interval, bootstrap};

/// A forecast of one series, and what came.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The values before the forecast, in order.
    pub past: &'a [f64],
    /// The values that came, `(horizon)`; NaN where none was observed.
    pub observed: &'a [f64],
    /// The point forecast, `(horizon)`.
    pub forecast: &'a [f64],
    /// The forecast of each quantile level, `(levels, horizon)`.
    pub quantiles: &'a [Vec<f64>],
}

/// Errors of forecasts; the lower, the better.
#[derive(Debug, Clone, PartialEq)]
pub struct ForecastErrors {
    /// Mean absolute error.
    pub mae: f64,
    /// Mean absolute error over the mean absolute value.
    pub wape: f64,
    /// Mean absolute scaled error.
    pub mase: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Root of the mean squared error, scaled by the mean squared seasonal difference.
    pub rmsse: f64,
    /// Symmetric mean absolute percentage error, 0 to 2. That of utilsforecast is half of it.
    pub smape: f64,
    /// Mean quantile loss over all levels; `None` without quantiles, as are the next two.
    pub mql: Option<f64>,
    /// Quantile loss over the mean absolute value (weighted quantile loss).
    pub wql: Option<f64>,
    /// Scaled quantile loss.
    pub sql: Option<f64>,
}

/// The errors of forecasts with the quantile levels `levels`, of series with this season length in steps.
///
/// ```
/// use fauna_measures::forecasts::{Case, errors};
/// let case = Case { past: &[1.0, 2.0, 3.0], observed: &[4.0, 5.0], forecast: &[4.0, 6.0], quantiles: &[] };
/// let errors = errors(&[case], &[], 1)?;
/// assert_eq!((errors.mae, errors.mase), (0.5, 0.5));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for no case, lengths that differ, a level that is not between 0 and 1, or a season of 0.
pub fn errors(cases: &[Case], levels: &[f64], season: usize) -> Result<ForecastErrors> {
    check(cases, levels, season)?;
    let steps =
        || cases.iter().flat_map(|case| case.observed.iter().zip(case.forecast).map(|(y, f)| (*y, *f)));
    let size = mean(steps().map(|(y, _)| y.abs()));
    let seasonal = |power: i32| -> Vec<f64> {
        let of = |case: &Case| {
            let differences = case.past.iter().zip(case.past.iter().skip(season));
            mean(differences.map(|(before, after)| (after - before).abs().powi(power)))
        };
        cases.iter().map(of).collect()
    };
    let (absolute, squared) = (seasonal(1), seasonal(2));
    let scaled = |scales: &[f64], power: i32| {
        let of = |(case, scale): (&Case, &f64)| -> Vec<f64> {
            let errors = case.observed.iter().zip(case.forecast).map(|(y, f)| (y - f).abs().powi(power));
            errors.map(|error| error / scale).collect()
        };
        mean(cases.iter().zip(scales).flat_map(of))
    };
    let loss = |y: f64, q: f64, level: f64| 2.0 * ((y - q) * (f64::from(u8::from(y <= q)) - level)).abs();
    let losses = |index: usize, scales: Option<&[f64]>| {
        let of = |(number, case): (usize, &Case)| -> Vec<f64> {
            let losses =
                case.observed.iter().zip(&case.quantiles[index]).map(|(y, q)| loss(*y, *q, levels[index]));
            losses.map(|loss| scales.map_or(loss, |scales| loss / scales[number])).collect()
        };
        mean(cases.iter().enumerate().flat_map(of))
    };
    let over_levels = |of: &dyn Fn(usize) -> f64| {
        (!levels.is_empty()).then(|| (0..levels.len()).map(of).sum::<f64>() / levels.len() as f64)
    };
    let mae = mean(steps().map(|(y, f)| (y - f).abs()));
    let mql = over_levels(&|index| losses(index, None));
    Ok(ForecastErrors {
        mae,
        wape: mae / size,
        mase: scaled(&absolute, 1),
        rmse: mean(steps().map(|(y, f)| (y - f).powi(2))).sqrt(),
        rmsse: scaled(&squared, 2).sqrt(),
        smape: mean(steps().map(|(y, f)| 2.0 * (y - f).abs() / (y.abs() + f.abs()))),
        wql: mql.map(|loss| loss / size),
        sql: over_levels(&|index| losses(index, Some(&absolute))),
        mql,
    })
}

/// The mean of the finite values; NaN if there is none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values
        .filter(|value| value.is_finite())
        .fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

fn check(cases: &[Case], levels: &[f64], season: usize) -> Result<()> {
    if cases.is_empty() || season == 0 {
        return Err(Error::input(format!(
            "{} forecasts of series with a season of {season} steps",
            cases.len()
        )));
    }
    if let Some(level) = levels.iter().find(|level| !(**level > 0.0 && **level < 1.0)) {
        return Err(Error::input(format!("a quantile level is between 0 and 1, got {level}")));
    }
    for (number, case) in cases.iter().enumerate() {
        let horizon = case.observed.len();
        let lengths = case.quantiles.iter().map(Vec::len).chain([case.forecast.len()]);
        if let Some(other) = lengths.into_iter().find(|length| *length != horizon) {
            return Err(Error::input(format!(
                "series {}: {other} forecasts of {horizon} values",
                number + 1
            )));
        }
        if case.quantiles.len() != levels.len() {
            return Err(Error::input(format!(
                "series {}: forecasts of {} quantile levels, expected {}",
                number + 1,
                case.quantiles.len(),
                levels.len()
            )));
        }
    }
    Ok(())
}

/// The share of observed values inside of the interval of two quantiles, 0 to 1.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for lengths that differ, or no observed value.
pub fn coverage(observed: &[f64], low: &[f64], high: &[f64]) -> Result<f64> {
    if observed.len() != low.len() || observed.len() != high.len() {
        return Err(Error::input(format!(
            "intervals of {} and {} steps for {} values",
            low.len(),
            high.len(),
            observed.len()
        )));
    }
    let inside = observed.iter().zip(low).zip(high).filter(|((y, _), _)| y.is_finite());
    let (inside, count) = inside.fold((0.0, 0.0), |(inside, count), ((y, low), high)| {
        (inside + f64::from(u8::from(low <= y && y <= high)), count + 1.0)
    });
    match count == 0.0 {
        true => Err(Error::input("no value was observed")),
        false => Ok(inside / count),
    }
}

/// A row of a leaderboard.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Skill: 1 - the geometric mean of the errors relative to those of the baseline, 1 at best.
    pub skill: f64,
    /// The 95 % bootstrap interval of the skill over the tasks.
    pub skill_interval: Interval,
    /// The share of pairs of a task and another model in which the error is lower, ties counting half; 0 to 1.
    pub win_rate: f64,
    /// Its 95 % bootstrap interval over the tasks.
    pub win_rate_interval: Interval,
}

/// Bounds of an error relative to that of the baseline.
const RELATIVE: (f64, f64) = (1e-2, 100.0);

/// The standing of each model by its errors, `(models, tasks)`, relative to the model `baseline` (fev, `leaderboard`), with
/// `resamples` of the tasks from `seed` for the intervals.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for fewer than two models, numbers of tasks that differ, or an error that is not above 0.
pub fn leaderboard(
    errors: &[Vec<f64>],
    baseline: usize,
    resamples: usize,
    seed: u64,
) -> Result<Vec<Standing>> {
    let tasks = errors.first().map_or(0, Vec::len);
    if errors.len() < 2 || tasks == 0 || baseline >= errors.len() {
        return Err(Error::input(format!("a leaderboard of {} models in {tasks} tasks", errors.len())));
    }
    for (model, row) in errors.iter().enumerate() {
        if row.len() != tasks {
            return Err(Error::input(format!(
                "model {} has {} errors for {tasks} tasks",
                model + 1,
                row.len()
            )));
        }
        if let Some(task) = row.iter().position(|error| !(error.is_finite() && *error > 0.0)) {
            return Err(Error::input(format!(
                "the error of model {} in task {} is {}",
                model + 1,
                task + 1,
                row[task]
            )));
        }
    }
    let relative = |model: usize, task: usize| {
        (errors[model][task] / errors[baseline][task]).clamp(RELATIVE.0, RELATIVE.1)
    };
    let skill = |model: usize, tasks: &[usize]| {
        1.0 - (tasks.iter().map(|task| relative(model, *task).ln()).sum::<f64>() / tasks.len() as f64).exp()
    };
    let wins = |model: usize, tasks: &[usize]| {
        let against = |task: &usize| -> f64 {
            let own = errors[model][*task];
            let others = errors.iter().enumerate().filter(|(other, _)| *other != model);
            others
                .map(|(_, row)| {
                    if own < row[*task] {
                        1.0
                    } else if own == row[*task] {
                        0.5
                    } else {
                        0.0
                    }
                })
                .sum()
        };
        tasks.iter().map(against).sum::<f64>() / (tasks.len() * (errors.len() - 1)) as f64
    };
    let all: Vec<usize> = (0..tasks).collect();
    let standing = |model: usize| -> Result<Standing> {
        Ok(Standing {
            skill: skill(model, &all),
            skill_interval: bootstrap(tasks, resamples, 0.95, seed, |drawn| Ok(skill(model, drawn)))?,
            win_rate: wins(model, &all),
            win_rate_interval: bootstrap(tasks, resamples, 0.95, seed, |drawn| Ok(wins(model, drawn)))?,
        })
    };
    (0..errors.len()).map(standing).collect()
}
