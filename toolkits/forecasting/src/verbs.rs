//! What is done with a table: forecast it, try the model out on its past, find what is out of the ordinary in it.

use fauna_shared::Result;
use fauna_shared::model::{ForecastConfig, Forecaster};
use fauna_shared::progress::Unit;

use super::ask::{Ask, Bands};
use super::baseline::{Naive, SeasonalNaive};
use super::predict::{Cut, Predictor, rolling, windows_for};
use super::prepare::{Prepared, after, prepare};
use super::scores::{DECILES, Scores, Window};
use super::sheet::{Column, Part, Sheet};
use super::table::{Problem, Table, called};

/// What a verb gives back.
#[derive(Debug)]
pub struct Answer {
    /// Results of the series that could be done.
    pub sheet: Sheet,
    /// The series that could not.
    pub problems: Vec<Problem>,
    /// What was filled, left out, or is to be known.
    pub notes: Vec<String>,
}

/// What cross-validation gives back.
#[derive(Debug)]
pub struct Validation {
    /// One row for each step of each window: `ds`, `cutoff` (the last stamp that was known), `y`, the model's columns.
    pub sheet: Sheet,
    /// How far the model, the naive and the seasonal naive forecast are off on the same windows: the model first, then
    /// the others; for each, every series and, without a name, all of them.
    pub scores: Vec<Scores>,
    /// The series that could not be done.
    pub problems: Vec<Problem>,
    /// What was filled, left out, or is to be known.
    pub notes: Vec<String>,
}

/// What the naive forecast is called beside a model.
const NAIVE: &str = "Naive";
/// What the seasonal naive forecast is called beside a model.
const SEASONAL: &str = "SeasonalNaive";
/// Fewer windows than this have too few errors of each step to tell their spread.
const ENOUGH: usize = 10;
/// The share of a normal distribution's deviation that is its median distance from the middle.
const MEDIAN_SHARE: f64 = 0.674_489_750_196_081_7;
/// The same of its mean distance.
const MEAN_SHARE: f64 = 0.797_884_560_802_865_4;

/// Forecasts [`horizon`](Ask::horizon) further steps of every series.
///
/// The columns are those of the table for names and dates, `MODEL`, and those of [`Bands::columns`]. Intervals are the
/// model's own quantiles, or, with [`conformal`](Ask::conformal), calibrated for any model: the absolute errors of
/// rolling forecasts over the end of the series, step by step, at the rank that split conformal prediction asks for.
/// That is a design of this library: TimeGPT calibrates by cross-validation too, in a way that is not published.
///
/// ```
/// use fauna_forecasting::{Ask, Bands, SeasonalNaive, Table, forecast};
/// let table = Table::regular("QS".parse()?, "2022-01-01", [("sales", vec![1.0, 2.0, 3.0, 4.0, 1.0, 2.5, 3.0, 4.0])])?;
/// let ask = Ask { horizon: 2, bands: Bands::levels(vec![80.0])?, ..Ask::default() };
/// let answer = forecast(&SeasonalNaive { season: 4 }, &table, &ask)?;
/// let mut file = Vec::new();
/// answer.sheet.write_csv(&mut file)?;
/// let lines = "unique_id,ds,Model,Model-lo-80,Model-hi-80\nsales,2024-01-01,1,0.6796";
/// assert!(String::from_utf8_lossy(&file).starts_with(lines));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for an option out of range and a frequency that cannot be told;
/// [`Cancelled`](fauna_shared::ErrorKind::Cancelled). What is wrong with one series is in [`Answer::problems`].
pub fn forecast(model: &dyn Forecaster, table: &Table, ask: &Ask) -> Result<Answer> {
    check(ask)?;
    let mut prepared = prepare(table, ask, model.reads_covariates())?;
    if ask.future.is_none() {
        // Nor may the rolling forecasts see what this one does not.
        prepared.covariates.iter_mut().for_each(|covariate| covariate.known = false);
    }
    let cuts: Vec<Cut> = prepared
        .series
        .iter()
        .enumerate()
        .map(|(series, ready)| Cut { series, end: ready.series.values.len() })
        .collect();
    let bands = ask.bands.columns(&ask.model);
    let made = run(model, &prepared, ask, options(ask, &bands), ask.conformal, &cuts, "forecasting")?;
    let names = [table.columns.time.clone(), ask.model.clone()];
    let names = names.into_iter().chain(bands.iter().map(|(name, _)| name.clone()));
    let mut sheet = Sheet::of(table, names.collect());
    sheet.form = prepared.form;
    let exact = is_exact(model)?;
    let mut wrong = Vec::new();
    for (ready, made) in prepared.series.iter().zip(made) {
        let series = &ready.series;
        let columns = made.and_then(|made| {
            let stamps = Column::Stamps(after(series, ready.frequency, ask.horizon)?);
            let numbers =
                std::iter::once(made.mean).chain(made.quantiles).map(|values| column(exact, values));
            Ok(std::iter::once(stamps).chain(numbers).collect())
        });
        match columns {
            Ok(columns) => sheet.parts.push(Part { id: series.id.clone(), columns }),
            Err(error) => wrong.push(Problem { id: series.id.clone(), error }),
        }
    }
    prepared.problems.extend(wrong);
    let mut notes = prepared.notes;
    notes.extend(narrow(model, &bands, ask));
    Ok(Answer { sheet, problems: prepared.problems, notes })
}

/// Tries the model out: [`windows`](Ask::windows) rolling forecasts over the end of every series, the last of which ends
/// where the series does, each [`step`](Ask::step) steps after the one before, and how far they are off.
///
/// Covariates of the table count as known at the steps to forecast unless [`past_only`](Ask::past_only) names them.
///
/// ```
/// use fauna_forecasting::{Ask, Naive, Table, cross_validate};
/// let table = Table::regular("D".parse()?, "2024-01-01", [("a", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])])?;
/// let done = cross_validate(&Naive, &table, &Ask { horizon: 2, windows: 2, step: Some(1), ..Ask::default() })?;
/// // From the 4th day 4, 4 for 5, 6; from the 3rd 3, 3 for 4, 5.
/// assert_eq!(done.scores[0].mae, 1.5);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// As [`forecast`]. A series that is too short is among the problems, with the length that is needed.
pub fn cross_validate(model: &dyn Forecaster, table: &Table, ask: &Ask) -> Result<Validation> {
    check(ask)?;
    let mut prepared = prepare(table, &without_future(ask), model.reads_covariates())?;
    let mut cuts = Vec::new();
    let mut wrong = Vec::new();
    for (series, ready) in prepared.series.iter().enumerate() {
        let end = Cut { series, end: ready.series.values.len() };
        match rolling(ready, end, ask.horizon, ask.windows, ask.stride()) {
            Ok(found) => cuts.extend(found),
            Err(error) => wrong.push(Problem { id: ready.series.id.clone(), error }),
        }
    }
    prepared.problems.extend(wrong);
    let bands = ask.bands.columns(&ask.model);
    let mut options = options(ask, &bands);
    let deciles: Vec<usize> = DECILES.iter().map(|level| place_of(&mut options.quantiles, *level)).collect();
    let made = run(model, &prepared, ask, options.clone(), ask.conformal, &cuts, "cross-validating")?;
    let plain = ForecastConfig { quantiles: DECILES.to_vec(), ..options };
    let naive = run(&Naive, &prepared, ask, plain.clone(), None, &cuts, NAIVE)?;
    let seasonal = run(&SeasonalNaive::OWN, &prepared, ask, plain, None, &cuts, SEASONAL)?;

    let names = [table.columns.time.as_str(), "cutoff", table.columns.target.as_str(), ask.model.as_str()];
    let names = names.into_iter().map(str::to_string).chain(bands.iter().map(|(name, _)| name.clone()));
    let mut sheet = Sheet::of(table, names.collect());
    sheet.form = prepared.form;
    let exact = is_exact(model)?;
    let mut windows: [Vec<Window>; 3] = Default::default();
    let all: Vec<usize> = (0..DECILES.len()).collect();
    let mut rows = cuts.iter().zip(made.into_iter().zip(naive.into_iter().zip(seasonal))).peekable();
    while let Some(series) = rows.peek().map(|(cut, _)| cut.series) {
        let season = prepared.series[series].season;
        let ready = &prepared.series[series].series;
        let (mut part, mut found, mut failed) = (validation_columns(exact, bands.len()), Vec::new(), None);
        while let Some((cut, (made, (naive, seasonal)))) = rows.next_if(|(cut, _)| cut.series == series) {
            let three = made.and_then(|made| Ok([made, naive?, seasonal?]));
            match three {
                Ok([made, naive, seasonal]) => {
                    found.push([
                        Window::of(ready, *cut, &made, &deciles, season),
                        Window::of(ready, *cut, &naive, &all, season),
                        Window::of(ready, *cut, &seasonal, &all, season),
                    ]);
                    let steps = cut.end..cut.end + ask.horizon;
                    push(&mut part, ready, steps, made.mean, &made.quantiles[..bands.len()]);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => prepared.problems.push(Problem { id: ready.id.clone(), error }),
            None => {
                sheet.parts.push(Part { id: ready.id.clone(), columns: part });
                found.into_iter().flatten().enumerate().for_each(|(i, one)| windows[i % 3].push(one));
            }
        }
    }
    // A model that is a baseline itself is told once.
    let baselines = [NAIVE, SEASONAL].into_iter().zip(&windows[1..]).filter(|(name, _)| *name != ask.model);
    let scores = std::iter::once((ask.model.as_str(), &windows[0])).chain(baselines);
    let scores: Vec<Scores> = scores.flat_map(|(model, windows)| Scores::all(model, windows)).collect();
    let undefined = Scores::undefined(&scores, &seasons(&prepared));
    let mut notes = prepared.notes;
    notes.extend(narrow(model, &bands, ask));
    notes.extend(undefined);
    Ok(Validation { sheet, scores, problems: prepared.problems, notes })
}

/// Finds values that lie outside of an interval around what rolling forecasts over the whole series expected.
///
/// Each forecast is of [`horizon`](Ask::horizon) steps; the first two seasons are only learnt from. The columns are
/// names, dates and values, `MODEL`, `MODEL-lo-LEVEL`, `MODEL-hi-LEVEL` and `anomaly`, for the highest level of
/// [`bands`](Ask::bands), 99 if there is none.
///
/// The interval is as wide as the level makes it for normal errors whose deviation is the median absolute error of the
/// rolling forecasts, over 0.6745, so that the anomalies themselves do not widen it; of each step of the horizon where
/// there are ten forecasts or more, else of all steps together. It is a design of this library.
///
/// # Errors
/// As [`forecast`]. A series that is too short is among the problems, with the length that is needed.
pub fn detect_anomalies(model: &dyn Forecaster, table: &Table, ask: &Ask) -> Result<Answer> {
    check(ask)?;
    let level = match &ask.bands {
        Bands::None => 99.0,
        Bands::Levels(levels) => levels.last().copied().unwrap_or(99.0),
        Bands::Quantiles(_) => {
            return Err(fauna_shared::Error::input("anomalies are told by a level, not by quantiles")
                .hint("--level 99"));
        }
    };
    let mut prepared = prepare(table, &without_future(ask), model.reads_covariates())?;
    let warm = |ready: &super::prepare::Ready| 2 * ready.season.max(2);
    let mut cuts = Vec::new();
    for (series, ready) in prepared.series.iter().enumerate() {
        let length = ready.series.values.len();
        let end = Cut { series, end: length };
        let warm = warm(ready);
        let windows = (length.saturating_sub(warm) / ask.horizon).max(1);
        // One window needs its horizon and what is learnt from.
        let found = match length < warm + ask.horizon {
            true => Err(too_short(&ready.series.id, length, warm, ask.horizon)),
            false => rolling(ready, end, ask.horizon, windows, ask.horizon),
        };
        match found {
            Ok(found) => cuts.extend(found),
            Err(error) => prepared.problems.push(Problem { id: ready.series.id.clone(), error }),
        }
    }
    let options = ForecastConfig { quantiles: Vec::new(), ..options(ask, &[]) };
    let made = run(model, &prepared, ask, options, None, &cuts, "looking for anomalies")?;
    let bands = Bands::Levels(vec![level]).columns(&ask.model);
    let names = [table.columns.time.clone(), table.columns.target.clone(), ask.model.clone()];
    let names =
        names.into_iter().chain(bands.into_iter().map(|(name, _)| name)).chain(["anomaly".to_string()]);
    let mut sheet = Sheet::of(table, names.collect());
    sheet.form = prepared.form;
    let exact = is_exact(model)?;
    let mut rows = cuts.iter().zip(made).peekable();
    while let Some(series) = rows.peek().map(|(cut, _)| cut.series) {
        let ready = &prepared.series[series].series;
        let (mut means, mut start, mut failed) = (Vec::new(), usize::MAX, None);
        while let Some((cut, made)) = rows.next_if(|(cut, _)| cut.series == series) {
            start = start.min(cut.end);
            match made {
                Ok(made) => means.extend(made.mean),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => prepared.problems.push(Problem { id: ready.id.clone(), error }),
            None => {
                let columns = judged(exact, &ready.values[start..], means, ask.horizon, level);
                let stamps = Column::Stamps(ready.stamps[start..].to_vec());
                let columns = std::iter::once(stamps).chain(columns).collect();
                sheet.parts.push(Part { id: ready.id.clone(), columns });
            }
        }
    }
    let notes = std::mem::take(&mut prepared.notes);
    Ok(Answer { sheet, problems: prepared.problems, notes })
}

/// Values, forecasts, both ends of the interval, and whether the value lies outside.
fn judged(exact: bool, values: &[f64], means: Vec<f64>, horizon: usize, level: f64) -> Vec<Column> {
    let errors: Vec<f64> = values.iter().zip(&means).map(|(value, mean)| (value - mean).abs()).collect();
    let many = errors.len() / horizon >= ENOUGH;
    let spread_of = |errors: Vec<f64>| spread(errors.into_iter().filter(|error| error.is_finite()).collect());
    let spreads: Vec<f64> = match many {
        true => (0..horizon)
            .map(|step| spread_of(errors.iter().skip(step).step_by(horizon).copied().collect()))
            .collect(),
        false => vec![spread_of(errors)],
    };
    let z = super::baseline::normal_quantile((100.0 + level) / 200.0);
    let reach = |row: usize| z * spreads[row % horizon % spreads.len()];
    let end = |side: f64| -> Vec<f64> {
        means.iter().enumerate().map(|(row, mean)| mean + side * reach(row)).collect()
    };
    let outside = |(row, (value, mean)): (usize, (&f64, &f64))| {
        // What float32 rounds away is no anomaly.
        (value - mean).abs() > reach(row) + 1e-6 * value.abs()
    };
    let flags = values.iter().zip(&means).enumerate().map(outside).collect();
    vec![
        Column::Exact(values.to_vec()),
        column(exact, means.clone()),
        column(exact, end(-1.0)),
        column(exact, end(1.0)),
        Column::Flags(flags),
    ]
}

/// The deviation of normal numbers with these absolute values; NaN for none.
fn spread(mut errors: Vec<f64>) -> f64 {
    errors.sort_by(f64::total_cmp);
    let count = errors.len();
    if count == 0 {
        return f64::NAN;
    }
    let median = (errors[(count - 1) / 2] + errors[count / 2]) / 2.0;
    match median > 0.0 {
        true => median / MEDIAN_SHARE,
        // Most are no error at all: what the others say.
        false => errors.iter().sum::<f64>() / count as f64 / MEAN_SHARE,
    }
}

fn too_short(id: &str, length: usize, warm: usize, horizon: usize) -> fauna_shared::Error {
    fauna_shared::Error::input(format!(
        "{} has {length} steps; two seasons ({warm} steps) and a horizon of {horizon} need {}",
        called(id),
        warm + horizon
    ))
    .hint("ask for a shorter horizon (--horizon) or a shorter season (--season)")
}

/// Runs `model` on `cuts` with a report of its progress.
fn run(
    model: &dyn Forecaster,
    table: &Prepared,
    ask: &Ask,
    options: ForecastConfig,
    conformal: Option<usize>,
    cuts: &[Cut],
    what: &str,
) -> Result<super::predict::Made> {
    let task = ask.progress.begin(what, Unit::Items, Some(Predictor::work(cuts.len(), conformal)));
    Predictor { model, table, ask, options, conformal, task: task.as_ref() }.forecasts(cuts)
}

fn options(ask: &Ask, bands: &[(String, f64)]) -> ForecastConfig {
    let quantiles = bands.iter().map(|(_, level)| *level).collect();
    ForecastConfig { horizon: ask.horizon, quantiles, samples: ask.samples, seed: ask.seed }
}

fn check(ask: &Ask) -> Result<()> {
    options(ask, &ask.bands.columns(&ask.model)).check()
}

/// The same questions without a table of the future: what is rolled over lies in the past.
fn without_future<'a>(ask: &Ask<'a>) -> Ask<'a> {
    Ask {
        future: None,
        model: ask.model.clone(),
        bands: ask.bands.clone(),
        past_only: ask.past_only.clone(),
        ..*ask
    }
}

/// The place of `level` among `quantiles`, put at their end if it is new.
fn place_of(quantiles: &mut Vec<f64>, level: f64) -> usize {
    match quantiles.iter().position(|known| (known - level).abs() < 1e-12) {
        Some(place) => place,
        None => {
            quantiles.push(level);
            quantiles.len() - 1
        }
    }
}

/// Whether `model` answers in the precision of the table.
fn is_exact(model: &dyn Forecaster) -> Result<bool> {
    Ok(model.forecast_exact(&[], &ForecastConfig::default())?.is_some())
}

/// What a model forecasts as a column: in the precision in which it does.
fn column(exact: bool, values: Vec<f64>) -> Column {
    match exact {
        true => Column::Exact(values),
        false => Column::Single(values.into_iter().map(|value| value as f32).collect()),
    }
}

/// The seasons of all series, for messages.
fn seasons(prepared: &Prepared) -> String {
    let mut seasons: Vec<usize> = prepared.series.iter().map(|ready| ready.season).collect();
    seasons.sort_unstable();
    seasons.dedup();
    seasons.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Columns of cross-validation with nothing in them.
fn validation_columns(exact: bool, bands: usize) -> Vec<Column> {
    let stamps = [Column::Stamps(Vec::new()), Column::Stamps(Vec::new()), Column::Exact(Vec::new())];
    stamps.into_iter().chain((0..=bands).map(|_| column(exact, Vec::new()))).collect()
}

/// The rows of one window.
fn push(
    part: &mut [Column],
    series: &super::table::Series,
    steps: std::ops::Range<usize>,
    mean: Vec<f64>,
    bands: &[Vec<f64>],
) {
    let (cutoff, count) = (series.stamps[steps.start - 1], steps.len());
    let mut numbers = std::iter::once(&mean).chain(bands);
    // Stamp, cutoff and value of the table stand before what the model says.
    for (place, column) in part.iter_mut().enumerate() {
        match column {
            Column::Stamps(stamps) if place == 0 => stamps.extend(&series.stamps[steps.clone()]),
            Column::Stamps(stamps) => stamps.extend(std::iter::repeat_n(cutoff, count)),
            Column::Exact(values) if place == 2 => values.extend(&series.values[steps.clone()]),
            Column::Exact(values) => values.extend(numbers.next().into_iter().flatten()),
            Column::Single(values) => {
                values.extend(numbers.next().into_iter().flatten().map(|value| *value as f32));
            }
            Column::Flags(_) | Column::Words(_) => {}
        }
    }
}

/// What is to be known of the intervals.
fn narrow(model: &dyn Forecaster, bands: &[(String, f64)], ask: &Ask) -> Option<String> {
    let widest = bands.iter().map(|(_, level)| (2.0 * level - 1.0).abs()).fold(0.0, f64::max);
    if let Some(windows) = ask.conformal {
        let needed = windows_for(widest);
        return (windows < needed).then(|| {
            format!(
                "an interval of {:.4}% needs {needed} rolling forecasts, there are {windows}: the largest error of \
                 each step is taken",
                100.0 * widest
            )
        });
    }
    let levels = model.levels();
    let (low, high) = (levels.first()?, levels.last()?);
    let beyond = bands.iter().any(|(_, level)| level < &(low - 1e-9) || level > &(high + 1e-9));
    beyond.then(|| {
        format!(
            "{} was trained to tell quantiles from {low} to {high}; those beyond are too narrow (--conformal N \
             calibrates them)",
            ask.model
        )
    })
}
