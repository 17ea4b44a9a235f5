//! Intervals and chance: how sure a number is.

use fauna_shared::generate::Rng;
use fauna_shared::{Error, Result};

/// An interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// The Wilson score interval of a success rate (Wilson 1927; statsmodels, `proportion_confint` with `wilson`); `z` is the
/// quantile of the normal distribution, 1.959964 for 95 %.
///
/// ```
/// use fauna_measures::intervals::wilson;
/// let interval = wilson(93, 100, 1.959964)?;
/// assert!((interval.low - 0.8625).abs() < 1e-4 && (interval.high - 0.9657).abs() < 1e-4);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for no trials or more successes than trials.
pub fn wilson(successes: usize, trials: usize, z: f64) -> Result<Interval> {
    if trials == 0 || successes > trials {
        return Err(Error::input(format!("{successes} successes in {trials} trials")));
    }
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let scale = 1.0 + z * z / n;
    let middle = (p + z * z / (2.0 * n)) / scale;
    let half = z / scale * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    Ok(Interval { low: (middle - half).max(0.0), high: (middle + half).min(1.0) })
}

/// The standard error of a mean: the sample standard deviation over the root of the count (lm-evaluation-harness,
/// `mean_stderr`); NaN for one value.
pub fn standard_error(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (count - 1.0) / count).sqrt()
}

/// The bootstrap interval (Efron 1979, percentiles) of a statistic of items: `statistic` of `resamples` lists of as many items,
/// drawn with replacement, between the quantiles `(1 - level) / 2` and `(1 + level) / 2`. Resamples of which the statistic is
/// not defined are left out.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for no items, no resamples or a level that is not between 0 and 1, and the error of
/// the statistic if it is defined for no resample.
pub fn bootstrap(
    items: usize,
    resamples: usize,
    level: f64,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Interval> {
    if items == 0 || resamples == 0 || !(level > 0.0 && level < 1.0) {
        return Err(Error::input(format!(
            "an interval of the level {level} by {resamples} resamples of {items} items"
        )));
    }
    let mut random = Rng::new(seed, 0);
    let (mut values, mut failed) = (Vec::with_capacity(resamples), None);
    for _ in 0..resamples {
        let drawn: Vec<usize> = (0..items).map(|_| below(&mut random, items)).collect();
        match statistic(&drawn) {
            Ok(value) if value.is_finite() => values.push(value),
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    }
    if values.is_empty() {
        return Err(failed.unwrap_or_else(|| Error::input("the statistic is defined for no resample")));
    }
    values.sort_unstable_by(f64::total_cmp);
    Ok(Interval { low: quantile(&values, (1.0 - level) / 2.0), high: quantile(&values, (1.0 + level) / 2.0) })
}

/// The distribution of a statistic of pairs if their rows were unrelated: `statistic` of `shuffles` random orders of the rows of
/// one side.
///
/// # Errors
/// The first error of the statistic.
pub fn permutations(
    items: usize,
    shuffles: usize,
    seed: u64,
    mut statistic: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut random = Rng::new(seed, 0);
    let mut order: Vec<usize> = (0..items).collect();
    (0..shuffles)
        .map(|_| {
            for last in (1..items).rev() {
                order.swap(last, below(&mut random, last + 1));
            }
            statistic(&order)
        })
        .collect()
}

/// A number from 0, below `count`.
fn below(random: &mut Rng, count: usize) -> usize {
    ((random.uniform() * count as f64) as usize).min(count - 1)
}

/// The quantile of sorted values, interpolated linearly (NumPy's default).
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}
