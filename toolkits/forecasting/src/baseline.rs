//! Baselines: the naive and the seasonal naive forecast.
//!
//! Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", third edition, sections 5.2 and 5.5. Points and
//! intervals are those of `statsforecast`'s `Naive` and `SeasonalNaive`.

use fauna_shared::model::{ExactForecast, ExactHistory, Forecast, ForecastConfig, Forecaster, History};
use fauna_shared::{Error, Result};

/// The naive forecast: every step is the last known value.
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

/// The seasonal naive forecast: every step is the last known value of the same step of the season.
///
/// Where the series has no value at that step of the season, it is the last value of all. With a season length of 1 it is
/// [`Naive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeasonalNaive {
    /// Number of steps per season; 0 for [`AUTO`](Self::AUTO).
    pub season_length: usize,
}

impl SeasonalNaive {
    /// Takes the season length of each series from its frequency; for the functions over a table.
    pub const AUTO: Self = Self { season_length: 0 };
}

impl Forecaster for Naive {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        SeasonalNaive { season_length: 1 }.forecast(series, options)
    }

    fn forecast_exact(
        &self,
        series: &[ExactHistory],
        options: &ForecastConfig,
    ) -> Result<Option<Vec<ExactForecast>>> {
        SeasonalNaive { season_length: 1 }.forecast_exact(series, options)
    }
}

impl Forecaster for SeasonalNaive {
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>> {
        options.check()?;
        if self.season_length == 0 {
            return Err(Error::input("the season length must be at least 1, got 0"));
        }
        let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect::<Vec<f32>>();
        let one = |(index, past): (usize, &History)| {
            let values: Vec<f64> = past.values.iter().copied().map(f64::from).collect();
            let made = repeat(&values, self.season_length, options).ok_or_else(|| no_value(index))?;
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
            let season = if self.season_length == 0 { past.season.max(1) } else { self.season_length };
            repeat(past.values, season, options).ok_or_else(|| no_value(index))
        };
        series.iter().enumerate().map(one).collect::<Result<_>>().map(Some)
    }
}

fn no_value(index: usize) -> Error {
    Error::input(format!("series {index} has no value"))
}

/// Repeats the last season. The quantiles take the seasonal differences as independent normal variables of mean zero;
/// they are NaN where the series has no such difference.
fn repeat(values: &[f64], season: usize, options: &ForecastConfig) -> Option<ExactForecast> {
    let last = values.iter().rev().copied().find(|value| value.is_finite())?;
    let place = |step: usize| {
        // The latest value at the same step of the season as `step` after the end.
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

/// Root mean square of the seasonal differences.
fn deviation(values: &[f64], season: usize) -> f64 {
    let pairs = values.iter().zip(values.iter().skip(season));
    let squares: Vec<f64> = pairs
        .map(|(before, now)| now - before)
        .filter(|difference| difference.is_finite())
        .map(|difference| difference * difference)
        .collect();
    (squares.iter().sum::<f64>() / squares.len() as f64).sqrt()
}

/// Quantile function of the standard normal distribution, to a relative error of about 1e-9.
///
/// Acklam's rational approximation.
pub(crate) fn normal_quantile(level: f64) -> f64 {
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
