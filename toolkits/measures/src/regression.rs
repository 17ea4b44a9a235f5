//! Regression: errors of numbers and correlations with them.

use fauna_shared::Result;

use crate::classification::check;

pub use crate::ranks::{pearson, spearman};

/// Errors of predicted numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RegressionErrors {
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute error.
    pub mae: f64,
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Coefficient of determination, at most 1 (scikit-learn, `r2_score`).
    pub r2: f64,
}

/// The errors of `predicted`.
///
/// ```
/// use fauna_measures::regression::errors;
/// assert_eq!(errors(&[1.0, 3.0], &[1.0, 2.0])?.mae, 0.5);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers, or none.
pub fn errors(predicted: &[f64], targets: &[f64]) -> Result<RegressionErrors> {
    check(predicted.len(), targets.len())?;
    let count = targets.len() as f64;
    let differences = || predicted.iter().zip(targets).map(|(predicted, target)| predicted - target);
    let squares: f64 = differences().map(|difference| difference * difference).sum();
    let mean = targets.iter().sum::<f64>() / count;
    let variance: f64 = targets.iter().map(|target| (target - mean).powi(2)).sum();
    let r2 = match (variance == 0.0, squares == 0.0) {
        (true, true) => 1.0,
        (true, false) => 0.0,
        _ => 1.0 - squares / variance,
    };
    Ok(RegressionErrors {
        mse: squares / count,
        mae: differences().map(f64::abs).sum::<f64>() / count,
        rmse: (squares / count).sqrt(),
        r2,
    })
}

/// Kendall's rank correlation, the variant b, -1 to 1 (SciPy, `kendalltau`); NaN if one list is constant.
///
/// # Errors
/// As [`errors`].
pub fn kendall_tau(x: &[f64], y: &[f64]) -> Result<f64> {
    check(x.len(), y.len())?;
    let (mut concordant, mut ties_x, mut ties_y, mut both) = (0i64, 0i64, 0i64, 0i64);
    for i in 0..x.len() {
        for j in 0..i {
            let (a, b) = (x[i].total_cmp(&x[j]) as i64, y[i].total_cmp(&y[j]) as i64);
            let (a, b) = (if x[i] == x[j] { 0 } else { a }, if y[i] == y[j] { 0 } else { b });
            concordant += a * b;
            ties_x += i64::from(a == 0);
            ties_y += i64::from(b == 0);
            both += 1;
        }
    }
    Ok(concordant as f64 / (((both - ties_x) as f64).sqrt() * ((both - ties_y) as f64).sqrt()))
}
