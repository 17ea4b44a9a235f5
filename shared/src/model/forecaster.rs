//! The ability to forecast a series.

use serde::Serialize;

use crate::{Error, Result};

/// The longest forecast that is made, in steps.
const LONGEST: usize = 100_000;

/// Past values to quantiles of future ones.
///
/// ```
/// use fauna_shared::model::{Forecast, Forecaster, ForecastConfig, History};
///
/// /// Tomorrow is as today.
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
    /// One forecast for each of `series`, in order. What is forecast for one does not depend on the others.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for options out of range, and for a series that cannot be read, by its index.
    fn forecast(&self, series: &[History], options: &ForecastConfig) -> Result<Vec<Forecast>>;

    /// The same in float64, for a method whose answer has the precision of the table; `None` for a network, which
    /// answers in float32.
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

    /// How many of the last steps of a series are read; `None` for all of them.
    fn context(&self) -> Option<usize> {
        None
    }

    /// The quantiles that the model was trained to tell, rising; empty where it samples or has none.
    fn levels(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Whether [`History::covariates`] change the forecast.
    fn reads_covariates(&self) -> bool {
        false
    }
}

/// One series until now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Values, the oldest first; NaN marks a gap.
    pub values: Vec<f32>,
    /// Other series that tell something about this one.
    pub covariates: Vec<Covariate>,
    /// How fast it moves, for models that ask.
    pub frequency_class: FrequencyClass,
}

/// One series until now, in the precision of its table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExactHistory<'a> {
    /// Values, the oldest first; NaN marks a gap.
    pub values: &'a [f64],
    /// Steps that make a season, at least 1.
    pub season: usize,
}

/// A forecast in float64. The fields are those of [`Forecast`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExactForecast {
    /// `(horizon)`.
    pub mean: Vec<f64>,
    /// `(quantiles, horizon)`.
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

/// A series that helps to forecast another.
#[derive(Debug, Clone, PartialEq)]
pub struct Covariate {
    /// What it is called.
    pub name: String,
    /// Its values at the steps of the past; NaN marks a gap.
    pub past: Vec<f32>,
    /// Its values at the steps to forecast; empty where they are not known yet.
    pub future: Vec<f32>,
}

/// How fast a series moves: what TimesFM calls its frequency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FrequencyClass {
    /// A step is a day or less.
    #[default]
    High,
    /// A step is a week or a month.
    Medium,
    /// A step is a quarter or a year.
    Low,
}

/// What is to be forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct ForecastConfig {
    /// Steps. At least 1.
    pub horizon: usize,
    /// Quantiles to tell, each between 0 and 1, without order.
    pub quantiles: Vec<f64>,
    /// Paths drawn by models that sample; `None` for what the release recommends. At least 1.
    pub samples: Option<usize>,
    /// Where the random numbers of models that sample start. The same seed gives the same forecast.
    pub seed: u64,
}

impl Default for ForecastConfig {
    fn default() -> Self {
        Self { horizon: 24, quantiles: vec![0.1, 0.5, 0.9], samples: None, seed: 0 }
    }
}

impl ForecastConfig {
    /// Checks every range.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) naming the first option out of its range.
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

/// A forecast of one series.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Forecast {
    /// The point forecast of each step, as the reference defines it.
    pub mean: Vec<f32>,
    /// One list of steps for each quantile asked for, in the order asked.
    pub quantiles: Vec<Vec<f32>>,
}
