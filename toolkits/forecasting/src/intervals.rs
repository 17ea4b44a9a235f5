//! Prediction intervals and quantiles.

use fauna_shared::{Error, Result};

/// Prediction intervals or quantiles of a forecast, in addition to the point forecast.
///
/// ```
/// use fauna_forecasting::Intervals;
/// let intervals = Intervals::levels(vec![80.0, 90.0])?;
/// let names: Vec<String> = intervals.columns("M").into_iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["M-lo-90", "M-lo-80", "M-hi-80", "M-hi-90"]);
/// assert_eq!(Intervals::quantiles(vec![0.1])?.columns("M"), [("M-q-10".to_string(), 0.1)]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Intervals {
    /// Point forecasts only.
    #[default]
    None,
    /// Intervals by their levels, in percent.
    Levels(Vec<f64>),
    /// Quantiles by their levels, each between 0 and 1.
    Quantiles(Vec<f64>),
}

impl Intervals {
    /// Intervals of these levels in percent, each from 0 to less than 100.
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

    /// Quantiles of these levels, each between 0 and 1.
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

    /// The column names of the model `model`, each with its quantile: `model-lo-80` and `model-hi-80` of a level, the
    /// lowest quantile first; `model-q-10` of a quantile, in percent.
    pub fn columns(&self, model: &str) -> Vec<(String, f64)> {
        match self {
            Self::None => Vec::new(),
            Self::Levels(levels) => {
                let low = levels.iter().rev().map(|l| (format!("{model}-lo-{l}"), (100.0 - l) / 200.0));
                let high = levels.iter().map(|l| (format!("{model}-hi-{l}"), (100.0 + l) / 200.0));
                low.chain(high).collect()
            }
            Self::Quantiles(quantiles) => {
                // 0.29 is 29 percent, not 28.999999999999996.
                let percent = |q: f64| (q * 1e11).round() / 1e9;
                quantiles.iter().map(|q| (format!("{model}-q-{}", percent(*q)), *q)).collect()
            }
        }
    }
}
