//! The forecasts that every other one has to beat: as the last value, and as a season ago.
//!
//! Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", third edition, sections 5.2 and 5.5. Points and
//! intervals are those of `statsforecast`'s `Naive` and `SeasonalNaive`.

use fauna_shared::model::{ExactForecast, ExactHistory, Forecast, ForecastConfig, Forecaster, History};
use fauna_shared::{Error, Result};

/// Every step is as the last value that is known.
///
/// ```
/// use fauna_forecasting::Naive;
/// use fauna_shared::model::{Forecaster, ForecastConfig, History};
/// let options = ForecastConfig { horizon: 4, quantiles: vec![0.5], ..ForecastConfig::default() };
/// let forecast = &Naive.forecast(&[History::from(vec![1.0, 3.0, 2.0])], &options)?[0];
/// assert_eq!(forecast.mean, [2.0; 4]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Naive;

/// Every step is as the last value that is known of the same place in the season.
///
/// Where the series holds none of that place, as the last value of all. With a season of one step it is [`Naive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeasonalNaive {
    /// Steps of a season. 0 for [`OWN`](Self::OWN).
    pub season: usize,
}

impl SeasonalNaive {
    /// With the season of each series by its frequency, which the verbs of a table know.
    pub const OWN: Self = Self { season: 0 };
}

impl Forecaster for Naive {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        SeasonalNaive { season: 1 }.forecast(series, options)
    }

    fn forecast_exact(
        &self,
        series: &[ExactHistory],
        options: &ForecastConfig,
    ) -> Result<Option<Vec<ExactForecast>>> {
        SeasonalNaive { season: 1 }.forecast_exact(series, options)
    }
}

impl Forecaster for SeasonalNaive {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        if self.season == 0 {
            return Err(Error::input("a season must be at least 1 step, got 0"));
        }
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect::<Vec<f32>>();
        let one = |(index, past): (usize, &History)| {
            let values: Vec<f64> = past.values.iter().copied().map(f64::from).collect();
            let made = repeat(&values, self.season, options).ok_or_else(|| no_value(index))?;
            Ok(Forecast {
                mean: narrow(made.mean),
                quantiles: made.quantiles.into_iter().map(narrow).collect(),
            })
        };
        series.iter().enumerate().map(one).collect()
    }

    fn forecast_exact(
        &self,
        series: &[ExactHistory],
        options: &ForecastConfig,
    ) -> Result<Option<Vec<ExactForecast>>> {
        options.check()?;
        let one = |(index, past): (usize, &ExactHistory)| {
            let season = if self.season == 0 { past.season.max(1) } else { self.season };
            repeat(past.values, season, options).ok_or_else(|| no_value(index))
        };
        series.iter().enumerate().map(one).collect::<Result<_>>().map(Some)
    }
}

fn no_value(index: usize) -> Error {
    Error::input(format!("series {index} has no value"))
}

/// The last season over and over; its quantiles as if the differences from season to season were normal about zero and
/// independent of each other. They are NaN where the series has no such difference.
fn repeat(values: &[f64], season: usize, options: &ForecastConfig) -> Option<ExactForecast> {
    let last = values.iter().rev().copied().find(|value| value.is_finite())?;
    let place = |step: usize| {
        // The latest value at the same place in the season as `step` after the end.
        let back = season - step % season;
        let first = values.len().checked_sub(back)?;
        (0..=first / season).map(|seasons| values[first - seasons * season]).find(|value| value.is_finite())
    };
    let mean: Vec<f64> = (0..options.horizon).map(|step| place(step).unwrap_or(last)).collect();
    let deviation = deviation(values, season);
    let quantile = |level: &f64| {
        let reach = normal_quantile(*level) * deviation;
        let at = |(step, value): (usize, &f64)| {
            let seasons = (step / season + 1) as f64;
            *value + reach * seasons.sqrt()
        };
        mean.iter().enumerate().map(at).collect()
    };
    Some(ExactForecast { quantiles: options.quantiles.iter().map(quantile).collect(), mean })
}

/// The root of the mean square of the differences to the value of a season ago.
fn deviation(values: &[f64], season: usize) -> f64 {
    let pairs = values.iter().zip(values.iter().skip(season));
    let squares: Vec<f64> = pairs
        .map(|(before, now)| now - before)
        .filter(|difference| difference.is_finite())
        .map(|difference| difference * difference)
        .collect();
    (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
}

/// The number below which a standard normal one falls with probability `level`, to a relative error of about 1e-9.
///
/// Acklam's rational approximation.
pub(super) fn normal_quantile(level: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    let polynomial = |factors: &[f64], x: f64| factors.iter().fold(0.0, |sum, factor| sum * x + factor);
    let tail = |probability: f64| {
        let x = (-2.0 * probability.ln()).sqrt();
        polynomial(&C, x) / polynomial(&D, x)
    };
    if level < 0.024_25 {
        tail(level)
    } else if level > 0.975_75 {
        -tail(1.0 - level)
    } else {
        let x = level - 0.5;
        x * polynomial(&A, x * x) / polynomial(&B, x * x)
    }
}
