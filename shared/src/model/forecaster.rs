//! The interface of time series forecasting models.

use serde::Serialize;

use crate::{Error, Result};

/// Maximum forecast horizon, in time steps.
const LONGEST: usize = 100_000;

/// A model that predicts quantiles of the future values of time series.
///
/// ```
/// use fauna_shared::model::{Forecast, Forecaster, ForecastConfig, History};
///
/// /// Repeats the last value.
/// struct Naive;
///
/// impl Forecaster for Naive {
///     fn forecast(&self, series: &[History], options: &ForecastConfig) -> fauna_shared::Result<Vec<Forecast>> {
///         options.check()?;
///         let last = |past: &History| past.values.last().copied().unwrap_or(f32::NAN);
///         let flat = |past| vec![last(past); options.horizon];
///         let forecast = |past| Forecast { mean: flat(past), quantiles: vec![flat(past); options.quantiles.len()] };
///         Ok(series.iter().map(forecast).collect())
///     }
/// }
///
/// let past = History::from(vec![1.0, 3.0, 2.0]);
/// let options = ForecastConfig { horizon: 2, quantiles: vec![0.5], ..ForecastConfig::default() };
/// assert_eq!(Naive.forecast(&[past], &options)?[0].mean, [2.0, 2.0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub trait Forecaster: Send + Sync {
    /// Forecasts each of `series` independently, in order.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for options out of range, and for an invalid series, with its index.
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>>;

    /// As [`forecast`](Self::forecast) in float64, for statistical methods; `None` for networks, which compute in
    /// float32.
    ///
    /// # Errors
    /// As [`forecast`](Self::forecast).
    fn forecast_exact(
        &self,
        _series: &[ExactHistory],
        _options: &ForecastConfig,
    ) -> Result<Option<Vec<ExactForecast>>> {
        Ok(None)
    }

    /// Context length in time steps; `None` if it is unlimited.
    fn context(&self) -> Option<usize> {
        None
    }

    /// The quantile levels the model was trained on, ascending; empty for models that sample or have none.
    fn levels(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Whether the model uses [`History::covariates`].
    fn reads_covariates(&self) -> bool {
        false
    }
}

/// The history of a time series.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Values, oldest first; NaN for missing values.
    pub values: Vec<f32>,
    /// Covariates of the series.
    pub covariates: Vec<Covariate>,
    /// Frequency class, for models that use it.
    pub frequency_class: FrequencyClass,
}

/// The history of a time series in float64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExactHistory<'a> {
    /// Values, oldest first; NaN for missing values.
    pub values: &'a [f64],
    /// Season length in time steps, at least 1.
    pub season: usize,
}

/// A forecast in float64, with the fields of [`Forecast`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExactForecast {
    /// Point forecast, `(horizon)`.
    pub mean: Vec<f64>,
    /// Quantile forecasts, `(quantiles, horizon)`.
    pub quantiles: Vec<Vec<f64>>,
}

impl From<Forecast> for ExactForecast {
    fn from(made: Forecast) -> Self {
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
        Self { mean: wide(made.mean), quantiles: made.quantiles.into_iter().map(wide).collect() }
    }
}

impl From<Vec<f32>> for History {
    fn from(values: Vec<f32>) -> Self {
        Self { values, ..Self::default() }
    }
}

/// A covariate of a time series.
#[derive(Debug, Clone, PartialEq)]
pub struct Covariate {
    /// Name.
    pub name: String,
    /// Past values, aligned with the history; NaN for missing values.
    pub past: Vec<f32>,
    /// Future values over the horizon; empty if unknown.
    pub future: Vec<f32>,
}

/// The frequency class of a series, the `freq` input of TimesFM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FrequencyClass {
    /// Daily or higher frequency.
    #[default]
    High,
    /// Weekly or monthly.
    Medium,
    /// Quarterly or yearly.
    Low,
}

/// Options of a forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct ForecastConfig {
    /// Forecast horizon in time steps, at least 1.
    pub horizon: usize,
    /// Quantile levels to predict, each between 0 and 1, in any order.
    pub quantiles: Vec<f64>,
    /// Number of sample paths of models that sample, at least 1; `None` for the number recommended by the release.
    pub samples: Option<usize>,
    /// Random seed of models that sample.
    pub seed: u64,
}

impl Default for ForecastConfig {
    fn default() -> Self {
        Self { horizon: 24, quantiles: vec![0.1, 0.5, 0.9], samples: None, seed: 0 }
    }
}

impl ForecastConfig {
    /// The default with this horizon, in steps.
    pub fn new(horizon: usize) -> Self {
        Self { horizon, ..Self::default() }
    }

    /// The same with these quantiles, each between 0 and 1.
    pub fn with_quantiles(self, quantiles: impl IntoIterator<Item = f64>) -> Self {
        Self { quantiles: quantiles.into_iter().collect(), ..self }
    }

    /// The same with this seed of the random numbers.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Checks that all options are in range.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for the first option out of range.
    ///
    /// ```
    /// use fauna_shared::model::ForecastConfig;
    /// let none = ForecastConfig { horizon: 0, ..ForecastConfig::default() };
    /// assert_eq!(none.check().unwrap_err().message(), "the horizon must be 1 to 100000 steps, got 0");
    /// ```
    pub fn check(&self) -> Result<()> {
        if !(1..=LONGEST).contains(&self.horizon) {
            return Err(Error::input(format!(
                "the horizon must be 1 to {LONGEST} steps, got {}",
                self.horizon
            )));
        }
        if let Some(level) = self.quantiles.iter().find(|level| !(**level > 0.0 && **level < 1.0)) {
            return Err(Error::input(format!("a quantile must be between 0 and 1, got {level}")));
        }
        match self.samples {
            Some(0) => Err(Error::input("samples must be at least 1, got 0")),
            _ => Ok(()),
        }
    }
}

/// The forecast of a series.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Forecast {
    /// Point forecast, `(horizon)`, as defined by the reference implementation.
    pub mean: Vec<f32>,
    /// Quantile forecasts, `(quantiles, horizon)`, in the order of [`ForecastConfig::quantiles`].
    pub quantiles: Vec<Vec<f32>>,
}
