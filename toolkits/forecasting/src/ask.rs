//! What is asked of a model for a table.

use fauna_shared::progress::{Progress, Silent};
use fauna_shared::{Error, Result};

use super::frequency::Frequency;
use super::table::Table;

/// The intervals or quantiles that are told beside the point forecast.
///
/// ```
/// use fauna_forecasting::Bands;
/// let bands = Bands::levels(vec![80.0, 90.0])?;
/// let names: Vec<String> = bands.columns("M").into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["M-lo-90", "M-lo-80", "M-hi-80", "M-hi-90"]);
/// assert_eq!(Bands::quantiles(vec![0.1])?.columns("M"), [("M-q-10".to_string(), 0.1)]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Bands {
    /// None.
    #[default]
    None,
    /// Intervals that hold so many of a hundred values.
    Levels(Vec<f64>),
    /// Quantiles.
    Quantiles(Vec<f64>),
}

impl Bands {
    /// Intervals that hold so many of a hundred values, each level from 0 to less than 100.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a level out of range.
    pub fn levels(mut levels: Vec<f64>) -> Result<Self> {
        if let Some(wrong) = levels.iter().find(|level| !(**level >= 0.0 && **level < 100.0)) {
            return Err(Error::input(format!("a level must be from 0 to less than 100, got {wrong}")));
        }
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        Ok(if levels.is_empty() { Self::None } else { Self::Levels(levels) })
    }

    /// Quantiles, each between 0 and 1.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a quantile out of range.
    pub fn quantiles(mut quantiles: Vec<f64>) -> Result<Self> {
        if let Some(wrong) = quantiles.iter().find(|level| !(**level > 0.0 && **level < 1.0)) {
            return Err(Error::input(format!("a quantile must be between 0 and 1, got {wrong}")));
        }
        quantiles.sort_by(f64::total_cmp);
        quantiles.dedup();
        Ok(if quantiles.is_empty() { Self::None } else { Self::Quantiles(quantiles) })
    }

    /// The columns of a model called `model`, each with its quantile: `-lo-80` and `-hi-80` of a level, the lowest
    /// first; `-q-10` of a quantile, in hundredths.
    pub fn columns(&self, model: &str) -> Vec<(String, f64)> {
        match self {
            Self::None => Vec::new(),
            Self::Levels(levels) => {
                let low = levels.iter().rev().map(|l| (format!("{model}-lo-{l}"), (100.0 - l) / 200.0));
                let high = levels.iter().map(|l| (format!("{model}-hi-{l}"), (100.0 + l) / 200.0));
                low.chain(high).collect()
            }
            Self::Quantiles(quantiles) => {
                // 0.29 is 29 hundredths, not 28.999999999999996.
                let hundredths = |q: f64| (q * 1e11).round() / 1e9;
                quantiles.iter().map(|q| (format!("{model}-q-{}", hundredths(*q)), *q)).collect()
            }
        }
    }
}

/// What is to be forecast of a table, and how.
///
/// ```
/// use fauna_forecasting::{Ask, Bands};
/// let ask = Ask { horizon: 12, bands: Bands::levels(vec![80.0])?, ..Ask::default() };
/// assert_eq!(ask.model, "Model");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub struct Ask<'a> {
    /// What the model's columns are called.
    pub model: String,
    /// Steps to forecast. At least 1.
    pub horizon: usize,
    /// Intervals or quantiles.
    pub bands: Bands,
    /// How far the stamps are apart; read off them if not said.
    pub frequency: Option<Frequency>,
    /// Steps of a season, for the seasonal naive forecast and the scale of MASE; the frequency's own if not said.
    pub season: Option<usize>,
    /// Paths drawn by models that sample.
    pub samples: Option<usize>,
    /// Where random numbers start.
    pub seed: u64,
    /// Covariates of the steps to forecast: every series, exactly those steps. Covariates of the table that are not in it
    /// are known of the past alone.
    pub future: Option<&'a Table>,
    /// Covariates whose future nobody knows, so that rolling forecasts do not see it.
    pub past_only: Vec<String>,
    /// Calibrate the intervals on so many rolling forecasts of each series instead of taking the model's own.
    pub conformal: Option<usize>,
    /// Rolling forecasts of cross-validation.
    pub windows: usize,
    /// Steps from one rolling forecast to the next; the horizon if not said.
    pub step: Option<usize>,
    /// How many forecasts the model makes at once: memory grows with it.
    pub together: usize,
    /// Where the work reports to.
    pub progress: &'a dyn Progress,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self {
            model: "Model".to_string(),
            horizon: 24,
            bands: Bands::None,
            frequency: None,
            season: None,
            samples: None,
            seed: 0,
            future: None,
            past_only: Vec::new(),
            conformal: None,
            windows: 1,
            step: None,
            together: 32,
            progress: &Silent,
        }
    }
}

impl Ask<'_> {
    /// Steps from one rolling forecast to the next.
    pub(super) fn stride(&self) -> usize {
        self.step.unwrap_or(self.horizon)
    }

    /// Checks what [`ForecastConfig::check`](fauna_shared::model::ForecastConfig::check) does not.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) naming what is out of range.
    pub(super) fn check(&self) -> Result<()> {
        let zero = [
            ("windows", self.windows),
            ("the steps between windows", self.stride()),
            ("a season", self.season.unwrap_or(1)),
            ("windows of calibration", self.conformal.unwrap_or(1)),
            ("forecasts at once", self.together),
        ];
        match zero.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::input(format!("{name} must be at least 1, got 0"))),
            None => Ok(()),
        }
    }
}
