//! Forecasts of many pasts, a batch at a time, with the model's own quantiles or with calibrated intervals.

use fauna_shared::model::{Covariate, ExactForecast, ExactHistory, ForecastConfig, Forecaster, History};
use fauna_shared::progress::Task;
use fauna_shared::{Error, ErrorKind, Result};

use super::ask::Ask;
use super::prepare::{LEAST, Prepared, Ready};
use super::table::called;

/// The place in a series from which a forecast is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// The series, by its place.
    pub series: usize,
    /// Steps that are known.
    pub end: usize,
}

/// Makes forecasts of a prepared table.
pub(super) struct Predictor<'a> {
    pub model: &'a dyn Forecaster,
    pub table: &'a Prepared,
    pub ask: &'a Ask<'a>,
    pub options: ForecastConfig,
    pub conformal: Option<usize>,
    pub task: &'a dyn Task,
}

/// A forecast for each cut, or what is wrong with its series. Those of a network are float32 made wider.
pub(super) type Made = Vec<Result<ExactForecast>>;

impl<'a> Predictor<'a> {
    /// How many forecasts of the model `cuts` take.
    pub fn work(cuts: usize, conformal: Option<usize>) -> u64 {
        (cuts * (1 + conformal.unwrap_or(0))) as u64
    }

    /// One forecast for each of `cuts`, in order.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled), and what is wrong with the model or the options. What is wrong with a
    /// series is in its place.
    pub fn forecasts(&self, cuts: &[Cut]) -> Result<Made> {
        self.options.check()?;
        let Some(windows) = self.conformal else { return self.plain(cuts, &self.options) };
        let point = ForecastConfig { quantiles: Vec::new(), ..self.options.clone() };
        let mut made = Vec::with_capacity(cuts.len());
        // One cut at a time, so that what is calibrated on never waits in memory for the rest.
        for cut in cuts {
            made.push(self.calibrated(*cut, windows, &point)?);
        }
        Ok(made)
    }

    /// A forecast with intervals from the absolute errors of rolling forecasts before `cut`.
    fn calibrated(&self, cut: Cut, windows: usize, point: &ForecastConfig) -> Result<Result<ExactForecast>> {
        let (horizon, step) = (self.options.horizon, self.ask.stride());
        let mut cuts = match rolling(self.series(cut), cut, horizon, windows, step) {
            Ok(cuts) => cuts,
            Err(error) => return Ok(Err(error)),
        };
        cuts.push(cut);
        let mut made = match self.plain(&cuts, point)?.into_iter().collect::<Result<Vec<ExactForecast>>>() {
            Ok(made) => made,
            Err(error) => return Ok(Err(error)),
        };
        let Some(mut forecast) = made.pop() else { return Ok(Err(Error::input("no forecast was made"))) };
        let values = &self.series(cut).series.values;
        let mut errors: Vec<Vec<f64>> = vec![Vec::new(); horizon];
        for (cut, past) in cuts.iter().zip(&made) {
            for (step, foreseen) in past.mean.iter().enumerate() {
                let error = (values[cut.end + step] - foreseen).abs();
                if error.is_finite() {
                    errors[step].push(error);
                }
            }
        }
        errors.iter_mut().for_each(|errors| errors.sort_by(f64::total_cmp));
        let quantile = |level: &f64| {
            let (side, share) = ((level - 0.5).signum(), (2.0 * level - 1.0).abs());
            let at = |(step, mean): (usize, &f64)| mean + side * reach(&errors[step], share);
            forecast.mean.iter().enumerate().map(at).collect()
        };
        forecast.quantiles = self.options.quantiles.iter().map(quantile).collect();
        Ok(Ok(forecast))
    }

    fn series(&self, cut: Cut) -> &Ready {
        &self.table.series[cut.series]
    }

    /// The model's own forecasts.
    fn plain(&self, cuts: &[Cut], options: &ForecastConfig) -> Result<Made> {
        let mut made = Vec::with_capacity(cuts.len());
        for chunk in cuts.chunks(self.ask.together.max(1)) {
            if self.ask.progress.cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "stopped"));
            }
            made.extend(self.batch(chunk, options)?);
            self.task.advance(chunk.len() as u64);
        }
        Ok(made)
    }

    /// Those of one batch. A batch that the model refuses is made one by one, so that one bad series stops no other.
    fn batch(&self, cuts: &[Cut], options: &ForecastConfig) -> Result<Made> {
        let mut made: Vec<Option<Result<ExactForecast>>> = Vec::with_capacity(cuts.len());
        let (mut pasts, mut places): (Vec<(History, Cut)>, Vec<usize>) = Default::default();
        for (place, cut) in cuts.iter().enumerate() {
            match self.past(*cut) {
                Ok(past) => {
                    pasts.push((past, *cut));
                    places.push(place);
                    made.push(None);
                }
                Err(error) => made.push(Some(Err(error))),
            }
        }
        match self.checked(&pasts, options) {
            Ok(forecasts) => {
                places.into_iter().zip(forecasts).for_each(|(place, one)| made[place] = Some(Ok(one)));
            }
            Err(error) if error.kind() == ErrorKind::Input && !pasts.is_empty() => {
                for (place, past) in places.into_iter().zip(pasts) {
                    let name = &self.series(cuts[place]).series.id;
                    made[place] = Some(match self.checked(std::slice::from_ref(&past), options) {
                        Ok(mut one) => Ok(one.pop().unwrap_or_default()),
                        Err(e) if e.kind() == ErrorKind::Input => Err(e.context(called(name))),
                        Err(e) => return Err(e),
                    });
                }
            }
            Err(error) => return Err(error),
        }
        Ok(made.into_iter().flatten().collect())
    }

    /// Forecasts of the sizes that were asked for.
    fn checked(&self, pasts: &[(History, Cut)], options: &ForecastConfig) -> Result<Vec<ExactForecast>> {
        if pasts.is_empty() {
            return Ok(Vec::new());
        }
        let exact = |(_, cut): &(History, Cut)| {
            let ready = self.series(*cut);
            ExactHistory { values: self.seen(*cut), season: ready.season }
        };
        let exact: Vec<ExactHistory> = pasts.iter().map(exact).collect();
        let made: Vec<ExactForecast> = match self.model.forecast_exact(&exact, options)? {
            Some(made) => made,
            None => {
                let pasts: Vec<History> = pasts.iter().map(|(past, _)| past.clone()).collect();
                self.model.forecast(&pasts, options)?.into_iter().map(ExactForecast::from).collect()
            }
        };
        let fits = |one: &ExactForecast| {
            one.mean.len() == options.horizon
                && one.quantiles.len() == options.quantiles.len()
                && one.quantiles.iter().all(|steps| steps.len() == options.horizon)
        };
        match made.len() == pasts.len() && made.iter().all(fits) {
            true => Ok(made),
            false => {
                Err(Error::new(ErrorKind::Compute, "the model made forecasts of other sizes than asked"))
            }
        }
    }

    /// The values that are known at `cut`.
    fn seen(&self, cut: Cut) -> &[f64] {
        &self.series(cut).series.values[..cut.end]
    }

    /// What the model sees at `cut`.
    fn past(&self, cut: Cut) -> Result<History> {
        let ready = self.series(cut);
        let series = &ready.series;
        let values: Vec<f32> = self.seen(cut).iter().map(|value| *value as f32).collect();
        let seen = self.model.context().map_or(cut.end, |context| context.min(cut.end));
        if !values[cut.end - seen..].iter().any(|value| value.is_finite()) {
            return Err(Error::input(format!(
                "{}: the {seen} steps up to {} that {} reads are all gaps",
                called(&series.id),
                self.at(series.stamps.get(cut.end.saturating_sub(1)).copied()),
                self.ask.model
            )));
        }
        let rest = series.values.len() - cut.end;
        let covariates = self.table.covariates.iter().enumerate().map(|(place, covariate)| {
            let column = &series.covariates[covariate.place];
            let future = match covariate.known {
                false => Vec::new(),
                true if rest >= self.options.horizon => {
                    column[cut.end..cut.end + self.options.horizon].to_vec()
                }
                true => ready.future.get(place).cloned().unwrap_or_default(),
            };
            Covariate { name: covariate.name.clone(), past: column[..cut.end].to_vec(), future }
        });
        Ok(History { covariates: covariates.collect(), values, frequency_class: ready.frequency.class() })
    }

    fn at(&self, stamp: Option<i64>) -> String {
        stamp.map_or("its start".to_string(), |stamp| self.table.form.write(stamp))
    }
}

/// The cuts of `windows` rolling forecasts whose last ends where `cut` is, the earliest first.
///
/// # Errors
/// [`Input`](ErrorKind::Input) that says how long the series must be.
pub(super) fn rolling(
    ready: &Ready,
    cut: Cut,
    horizon: usize,
    windows: usize,
    step: usize,
) -> Result<Vec<Cut>> {
    let needed = (windows - 1).saturating_mul(step).saturating_add(horizon).saturating_add(LEAST);
    if cut.end < needed {
        let apart = if windows > 1 { format!(", {step} apart,") } else { String::new() };
        return Err(Error::input(format!(
            "{} has {} steps; {windows} rolling forecasts of {horizon} steps{apart} need {needed}",
            called(&ready.series.id),
            cut.end
        ))
        .hint("ask for fewer or shorter ones, or for a smaller step between them"));
    }
    Ok((0..windows)
        .map(|window| Cut { end: cut.end - horizon - (windows - 1 - window) * step, ..cut })
        .collect())
}

/// How far an interval that holds `share` of the values reaches to either side, by the `errors`, rising.
///
/// The error at the rank (n + 1) share, rounded up, as in split conformal prediction: where past and future errors are
/// alike, a new one is within it with at least this probability. The largest where there are too few for that. NaN for
/// none.
fn reach(errors: &[f64], share: f64) -> f64 {
    if share == 0.0 {
        return 0.0;
    }
    // Sums such as 10 * 0.9 that are whole but for their last bit stay at their rank.
    let rank = ((errors.len() + 1) as f64 * share - 1e-9).ceil() as usize;
    errors.get(rank.clamp(1, errors.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// How many rolling forecasts an interval that holds `share` of the values needs.
pub(super) fn windows_for(share: f64) -> usize {
    (share / (1.0 - share) - 1e-9).ceil().max(1.0) as usize
}
