//! Batched forecasts of a prepared table, with the model's own quantiles or with conformal intervals.

use fauna_shared::model::{Covariate, ExactForecast, ExactHistory, ForecastConfig, Forecaster, History};
use fauna_shared::progress::{Task, Unit};
use fauna_shared::{Error, ErrorKind, Result};

use crate::options::ForecastOptions;
use crate::prepare::{Prepared, PreparedSeries};
use crate::series::{Timestamp, series_label};

/// Number of steps before the first rolling forecast of a series: fewer have no change from step to step.
const MIN_HISTORY: usize = 2;

/// The point of a series from which a forecast is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cutoff {
    /// Index of the series.
    pub series: usize,
    /// Number of known steps.
    pub end: usize,
}

/// A forecast per cutoff, or the error of its series. Forecasts of a network are float32 as float64.
pub(crate) type Forecasts = Vec<Result<ExactForecast>>;

/// Runs `model` at `cutoffs`, reporting progress of `task`.
///
/// # Errors
/// [`Cancelled`](ErrorKind::Cancelled), and errors of the model or the options. An error of a series is in its place.
pub(crate) fn run(
    model: &dyn Forecaster,
    table: &Prepared,
    options: &ForecastOptions,
    config: ForecastConfig,
    conformal_windows: Option<usize>,
    cutoffs: &[Cutoff],
    task: &str,
) -> Result<Forecasts> {
    let calls = (cutoffs.len() * (1 + conformal_windows.unwrap_or(0))) as u64;
    let task = options.progress.begin(task, Unit::Items, Some(calls));
    let predictor = Predictor { model, table, options, config, conformal_windows, task: task.as_ref() };
    predictor.forecasts(cutoffs)
}

/// Whether `model` computes in float64.
pub(crate) fn is_exact(model: &dyn Forecaster) -> Result<bool> {
    Ok(model.forecast_exact(&[], &ForecastConfig::default())?.is_some())
}

/// A model with the table and the options that it forecasts.
struct Predictor<'a> {
    model: &'a dyn Forecaster,
    table: &'a Prepared,
    options: &'a ForecastOptions<'a>,
    config: ForecastConfig,
    conformal_windows: Option<usize>,
    task: &'a dyn Task,
}

impl Predictor<'_> {
    fn forecasts(&self, cutoffs: &[Cutoff]) -> Result<Forecasts> {
        self.config.check()?;
        let Some(windows) = self.conformal_windows else { return self.plain(cutoffs, &self.config) };
        let point = ForecastConfig { quantiles: Vec::new(), ..self.config.clone() };
        let mut forecasts = Vec::with_capacity(cutoffs.len());
        // One cutoff at a time: the calibration forecasts of one series are in memory, not those of all.
        for cutoff in cutoffs {
            forecasts.push(self.calibrated(*cutoff, windows, &point)?);
        }
        Ok(forecasts)
    }

    /// A forecast with intervals from the absolute errors of rolling forecasts before `cutoff`.
    fn calibrated(
        &self,
        cutoff: Cutoff,
        windows: usize,
        point: &ForecastConfig,
    ) -> Result<Result<ExactForecast>> {
        let (horizon, step_size) = (self.config.horizon, self.options.stride());
        let mut cutoffs = match rolling_cutoffs(self.series(cutoff), cutoff, horizon, windows, step_size) {
            Ok(cutoffs) => cutoffs,
            Err(error) => return Ok(Err(error)),
        };
        cutoffs.push(cutoff);
        let forecasts = self.plain(&cutoffs, point)?.into_iter().collect::<Result<Vec<ExactForecast>>>();
        let mut forecasts = match forecasts {
            Ok(forecasts) => forecasts,
            Err(error) => return Ok(Err(error)),
        };
        let Some(mut forecast) = forecasts.pop() else {
            return Ok(Err(Error::input("the model made no forecast")));
        };
        let values = &self.series(cutoff).series.values;
        let mut errors: Vec<Vec<f64>> = vec![Vec::new(); horizon];
        for (cutoff, calibration) in cutoffs.iter().zip(&forecasts) {
            for (step, mean) in calibration.mean.iter().enumerate() {
                let error = (values[cutoff.end + step] - mean).abs();
                if error.is_finite() {
                    errors[step].push(error);
                }
            }
        }
        errors.iter_mut().for_each(|errors| errors.sort_by(f64::total_cmp));
        let quantile = |level: &f64| {
            let (side, coverage) = ((level - 0.5).signum(), (2.0 * level - 1.0).abs());
            let at = |(step, mean): (usize, &f64)| mean + side * conformal_width(&errors[step], coverage);
            forecast.mean.iter().enumerate().map(at).collect()
        };
        forecast.quantiles = self.config.quantiles.iter().map(quantile).collect();
        Ok(Ok(forecast))
    }

    fn series(&self, cutoff: Cutoff) -> &PreparedSeries {
        &self.table.series[cutoff.series]
    }

    /// The model's own forecasts.
    fn plain(&self, cutoffs: &[Cutoff], config: &ForecastConfig) -> Result<Forecasts> {
        let mut forecasts = Vec::with_capacity(cutoffs.len());
        for batch in cutoffs.chunks(self.options.batch_size.max(1)) {
            if self.options.progress.cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "stopped"));
            }
            forecasts.extend(self.batch(batch, config)?);
            self.task.advance(batch.len() as u64);
        }
        Ok(forecasts)
    }

    /// The forecasts of one batch. A batch that the model refuses is run series by series, so that one bad series does
    /// not stop the others.
    fn batch(&self, cutoffs: &[Cutoff], config: &ForecastConfig) -> Result<Forecasts> {
        let mut forecasts: Vec<Option<Result<ExactForecast>>> = Vec::with_capacity(cutoffs.len());
        let (mut histories, mut indices): (Vec<(History, Cutoff)>, Vec<usize>) = Default::default();
        for (index, cutoff) in cutoffs.iter().enumerate() {
            match self.history(*cutoff) {
                Ok(history) => {
                    histories.push((history, *cutoff));
                    indices.push(index);
                    forecasts.push(None);
                }
                Err(error) => forecasts.push(Some(Err(error))),
            }
        }
        match self.call(&histories, config) {
            Ok(made) => {
                indices.into_iter().zip(made).for_each(|(index, one)| forecasts[index] = Some(Ok(one)));
            }
            Err(error) if error.kind() == ErrorKind::Input && !histories.is_empty() => {
                for (index, history) in indices.into_iter().zip(histories) {
                    let id = &self.series(cutoffs[index]).series.id;
                    forecasts[index] = Some(match self.call(std::slice::from_ref(&history), config) {
                        Ok(mut one) => Ok(one.pop().unwrap_or_default()),
                        Err(e) if e.kind() == ErrorKind::Input => Err(e.context(series_label(id))),
                        Err(e) => return Err(e),
                    });
                }
            }
            Err(error) => return Err(error),
        }
        Ok(forecasts.into_iter().flatten().collect())
    }

    /// Calls the model and checks the sizes of its forecasts.
    fn call(&self, histories: &[(History, Cutoff)], config: &ForecastConfig) -> Result<Vec<ExactForecast>> {
        if histories.is_empty() {
            return Ok(Vec::new());
        }
        let exact = |(_, cutoff): &(History, Cutoff)| ExactHistory {
            values: self.known_values(*cutoff),
            season: self.series(*cutoff).season_length,
        };
        let exact: Vec<ExactHistory> = histories.iter().map(exact).collect();
        let forecasts: Vec<ExactForecast> = match self.model.forecast_exact(&exact, config)? {
            Some(forecasts) => forecasts,
            None => {
                let histories: Vec<History> = histories.iter().map(|(history, _)| history.clone()).collect();
                self.model.forecast(&histories, config)?.into_iter().map(ExactForecast::from).collect()
            }
        };
        let fits = |one: &ExactForecast| {
            one.mean.len() == config.horizon
                && one.quantiles.len() == config.quantiles.len()
                && one.quantiles.iter().all(|steps| steps.len() == config.horizon)
        };
        match forecasts.len() == histories.len() && forecasts.iter().all(fits) {
            true => Ok(forecasts),
            false => Err(Error::new(
                ErrorKind::Compute,
                "the model returned forecasts of another size than requested",
            )),
        }
    }

    fn known_values(&self, cutoff: Cutoff) -> &[f64] {
        &self.series(cutoff).series.values[..cutoff.end]
    }

    /// The input of the model at `cutoff`.
    fn history(&self, cutoff: Cutoff) -> Result<History> {
        let prepared = self.series(cutoff);
        let series = &prepared.series;
        let values: Vec<f32> = self.known_values(cutoff).iter().map(|value| *value as f32).collect();
        let context = self.model.context().map_or(cutoff.end, |context| context.min(cutoff.end));
        if !values[cutoff.end - context..].iter().any(|value| value.is_finite()) {
            return Err(Error::input(format!(
                "{}: the {context} steps up to {} that {} reads are all gaps",
                series_label(&series.id),
                self.format(series.timestamps.get(cutoff.end.saturating_sub(1)).copied()),
                self.options.model
            )));
        }
        let remaining = series.values.len() - cutoff.end;
        let covariates = self.table.covariates.iter().enumerate().map(|(index, covariate)| {
            let column = &series.covariates[covariate.column];
            let future = match covariate.has_future {
                false => Vec::new(),
                true if remaining >= self.config.horizon => {
                    column[cutoff.end..cutoff.end + self.config.horizon].to_vec()
                }
                true => prepared.future.get(index).cloned().unwrap_or_default(),
            };
            Covariate { name: covariate.name.clone(), past: column[..cutoff.end].to_vec(), future }
        });
        let frequency_class = prepared.frequency.class();
        Ok(History { covariates: covariates.collect(), values, frequency_class })
    }

    fn format(&self, timestamp: Option<Timestamp>) -> String {
        timestamp.map_or("its start".to_string(), |timestamp| self.table.timestamp_format.format(timestamp))
    }
}

/// The cutoffs of `windows` rolling forecasts, the last of which ends at `cutoff`, in order of time.
///
/// # Errors
/// [`Input`](ErrorKind::Input) with the length that the series must have.
pub(crate) fn rolling_cutoffs(
    prepared: &PreparedSeries,
    cutoff: Cutoff,
    horizon: usize,
    windows: usize,
    step_size: usize,
) -> Result<Vec<Cutoff>> {
    let first_end = (windows - 1).saturating_mul(step_size).saturating_add(horizon);
    let needed = first_end.saturating_add(MIN_HISTORY);
    if cutoff.end < needed {
        let apart = if windows > 1 { format!(", {step_size} apart,") } else { String::new() };
        return Err(Error::input(format!(
            "{} has {} steps; {windows} rolling forecasts of {horizon} steps{apart} need {needed}",
            series_label(&prepared.series.id),
            cutoff.end
        ))
        .hint("request fewer or shorter forecasts, or a smaller step size"));
    }
    let end = |window: usize| cutoff.end - horizon - (windows - 1 - window) * step_size;
    Ok((0..windows).map(|window| Cutoff { end: end(window), ..cutoff }).collect())
}

/// Half the width of a split conformal interval of probability `coverage`, from the sorted absolute `errors` of the
/// calibration forecasts.
///
/// It is the error at the rank (n + 1) · coverage, rounded up: if past and future errors are exchangeable, a new one is
/// smaller with at least this probability. With too few errors it is the largest; with none, NaN.
fn conformal_width(errors: &[f64], coverage: f64) -> f64 {
    if coverage == 0.0 {
        return 0.0;
    }
    // The tolerance keeps products such as 10 * 0.9 at their rank.
    let rank = ((errors.len() + 1) as f64 * coverage - 1e-9).ceil() as usize;
    errors.get(rank.clamp(1, errors.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// A note on intervals that are narrower than their level: beyond the model's trained quantiles, or calibrated on too few
/// forecasts.
pub(crate) fn interval_note(
    model: &dyn Forecaster,
    columns: &[(String, f64)],
    options: &ForecastOptions,
) -> Option<String> {
    let widest = columns.iter().map(|(_, level)| (2.0 * level - 1.0).abs()).fold(0.0, f64::max);
    if let Some(windows) = options.conformal_windows {
        let needed = (widest / (1.0 - widest) - 1e-9).ceil().max(1.0) as usize;
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
    let beyond = columns.iter().any(|(_, level)| level < &(low - 1e-9) || level > &(high + 1e-9));
    beyond.then(|| {
        format!(
            "{} was trained on quantiles from {low} to {high}; intervals beyond are too narrow (conformal \
             windows calibrate them)",
            options.model
        )
    })
}
