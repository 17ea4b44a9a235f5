//! Options of the functions over tables.

use fauna_shared::model::ForecastConfig;
use fauna_shared::progress::{Progress, Silent};
use fauna_shared::{Error, Result};

use crate::frequency::Frequency;
use crate::intervals::Intervals;
use crate::table::Table;

/// Options of [`forecast`](crate::forecast), [`cross_validate`](crate::cross_validate) and
/// [`detect_anomalies`](crate::detect_anomalies).
///
/// ```
/// use fauna_forecasting::{ForecastOptions, Intervals};
/// let options = ForecastOptions { horizon: 12, intervals: Intervals::levels(vec![80.0])?, ..ForecastOptions::default() };
/// assert_eq!(options.model, "Model");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct ForecastOptions<'a> {
    /// Name of the model's columns.
    pub model: String,
    /// Number of steps to forecast, at least 1.
    pub horizon: usize,
    /// Prediction intervals or quantiles.
    pub intervals: Intervals,
    /// Frequency of the series; `None` infers it from the timestamps.
    pub frequency: Option<Frequency>,
    /// Number of steps per season, for the seasonal naive forecast and the scale of MASE; `None` for
    /// [`Frequency::season_length`].
    pub season_length: Option<usize>,
    /// Number of sample paths of models that sample; `None` for the model's default.
    pub samples: Option<usize>,
    /// Seed of models that sample.
    pub seed: u64,
    /// Future values of the covariates: for every series, exactly the steps to forecast. Covariates that are missing in
    /// it are known in the past alone.
    pub future_covariates: Option<&'a Table>,
    /// Names of covariates whose future values are unknown, so that rolling forecasts do not read them.
    pub past_covariates: Vec<String>,
    /// Number of rolling forecasts per series that conformal intervals are calibrated on; `None` for the model's own
    /// quantiles.
    pub conformal_windows: Option<usize>,
    /// Number of rolling windows of cross-validation.
    pub windows: usize,
    /// Number of steps between rolling windows; `None` for the horizon.
    pub step_size: Option<usize>,
    /// Number of series per call of the model; memory grows with it.
    pub batch_size: usize,
    /// Receiver of progress reports.
    pub progress: &'a dyn Progress,
}

impl Default for ForecastOptions<'_> {
    fn default() -> Self {
        Self {
            model: "Model".to_string(),
            horizon: 24,
            intervals: Intervals::None,
            frequency: None,
            season_length: None,
            samples: None,
            seed: 0,
            future_covariates: None,
            past_covariates: Vec::new(),
            conformal_windows: None,
            windows: 1,
            step_size: None,
            batch_size: 32,
            progress: &Silent,
        }
    }
}

impl<'a> ForecastOptions<'a> {
    /// Number of steps between rolling windows.
    pub(crate) fn stride(&self) -> usize {
        self.step_size.unwrap_or(self.horizon)
    }

    /// The options of one call of the model, whose quantiles are those of `columns`.
    pub(crate) fn forecast_config(&self, columns: &[(String, f64)]) -> ForecastConfig {
        let quantiles = columns.iter().map(|(_, level)| *level).collect();
        ForecastConfig { horizon: self.horizon, quantiles, samples: self.samples, seed: self.seed }
    }

    /// The same options without future covariates: rolling windows lie in the past.
    pub(crate) fn without_future(&self) -> Self {
        Self {
            future_covariates: None,
            model: self.model.clone(),
            intervals: self.intervals.clone(),
            past_covariates: self.past_covariates.clone(),
            ..*self
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) naming what is out of range.
    pub(crate) fn check(&self) -> Result<()> {
        self.forecast_config(&self.intervals.columns(&self.model)).check()?;
        let counts = [
            ("windows", self.windows),
            ("the step size", self.stride()),
            ("the season length", self.season_length.unwrap_or(1)),
            ("conformal windows", self.conformal_windows.unwrap_or(1)),
            ("the batch size", self.batch_size),
        ];
        match counts.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::input(format!("{name} must be at least 1, got 0"))),
            None => Ok(()),
        }
    }
}
