//! Quantiles of samples, of weighted samples, and interpolated between known quantiles; and their loss.

use candle_core::{DType, Device, Tensor};
use fauna_shared::Result;

/// The quantiles of `samples`, which are sorted, at `levels`, with linear interpolation as in `numpy.quantile`.
///
/// ```
/// let mut samples = [4.0, 1.0, 2.0];
/// assert_eq!(fauna_science::quantiles::of_samples(&mut samples, &[0.0, 0.25, 0.5, 1.0]), [1.0, 1.5, 2.0, 4.0]);
/// ```
pub fn of_samples(samples: &mut [f32], levels: &[f64]) -> Vec<f32> {
    samples.sort_unstable_by(f32::total_cmp);
    levels.iter().map(|level| between_sorted(samples, *level)).collect()
}

/// The quantile of sorted samples at `level`; NaN without samples.
pub(crate) fn between_sorted(sorted: &[f32], level: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return f32::NAN };
    // In float32, as in the reference.
    let rank = (level as f32 * last as f32).clamp(0.0, last as f32);
    let (low, high) = (sorted[rank as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}

/// The median; of an even number of samples the lower one, as `torch.median`.
pub(crate) fn median(samples: &mut [f32]) -> f32 {
    let Some(last) = samples.len().checked_sub(1) else { return f32::NAN };
    *samples.select_nth_unstable_by(last / 2, f32::total_cmp).1
}

/// The quantiles at the levels `wanted`, interpolated linearly between the `values` at rising `levels`; beyond them the
/// first or the last value.
///
/// ```
/// use fauna_science::quantiles::interpolate_quantiles;
/// assert_eq!(interpolate_quantiles(&[0.25, 0.75], &[1.0, 3.0], &[0.01, 0.5, 0.75, 0.9]), [1.0, 2.0, 3.0, 3.0]);
/// ```
///
/// # Panics
/// If there are not as many values as levels.
pub fn interpolate_quantiles(levels: &[f32], values: &[f32], wanted: &[f64]) -> Vec<f32> {
    assert_eq!(levels.len(), values.len(), "one value a level");
    let value = |wanted: &f64| {
        let wanted = *wanted as f32;
        // The first level above.
        let above = levels.partition_point(|level| *level <= wanted);
        match (above.checked_sub(1), values.get(above)) {
            (None, first) => first.copied().unwrap_or(f32::NAN),
            (Some(below), None) => values[below],
            (Some(below), Some(upper)) => {
                let weight = (wanted - levels[below]) / (levels[above] - levels[below]);
                values[below] + weight * (upper - values[below])
            }
        }
    };
    wanted.iter().map(value).collect()
}

/// The quantiles at `levels` of weighted samples, `(weight, sample)`, which are sorted: interpolated between the samples at
/// their cumulative weights, which need not sum to 1.
///
/// ```
/// let mut samples = [(1.0, 5.0), (3.0, 1.0)];
/// assert_eq!(fauna_science::quantiles::of_weighted_samples(&mut samples, &[0.5, 0.875, 0.99]), [1.0, 3.0, 4.84]);
/// ```
pub fn of_weighted_samples(samples: &mut [(f32, f32)], levels: &[f64]) -> Vec<f32> {
    let total: f32 = samples.iter().map(|(weight, _)| weight).sum();
    samples.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut reached = 0f32;
    let (mut reach, mut values) = (Vec::with_capacity(samples.len()), Vec::with_capacity(samples.len()));
    for (weight, sample) in samples {
        reached += *weight / total;
        reach.push(reached.min(1.0));
        values.push(*sample);
    }
    interpolate_quantiles(&reach, &values, levels)
}

/// The probability mass of each of rising `levels`: half the distance between its neighbours, 0 and 1 being the outermost,
/// normalised to a sum of 1.
///
/// ```
/// let masses = fauna_science::quantiles::level_masses(&[0.25, 0.5, 0.75]);
/// assert!(masses.iter().all(|mass| (mass - 1.0 / 3.0).abs() < 1e-6));
/// ```
pub fn level_masses(levels: &[f64]) -> Vec<f32> {
    let level = |i: usize| match i {
        0 => 0.0,
        i => levels.get(i - 1).map_or(1.0, |level| *level as f32),
    };
    let masses: Vec<f32> = (1..=levels.len()).map(|i| (level(i + 1) - level(i - 1)) / 2.0).collect();
    let total: f32 = masses.iter().sum();
    masses.into_iter().map(|mass| mass / total).collect()
}

/// The pinball loss of each predicted quantile, `(rows, levels, steps)` float32 like `predicted`, of the `targets`,
/// `(rows, steps)`: `q * e` for `e = target - prediction` above 0, else `(q - 1) * e`.
pub(crate) fn pinball(predicted: &Tensor, targets: &[f32], levels: &[f64]) -> Result<Tensor> {
    let predicted = predicted.to_dtype(DType::F32)?;
    let (rows, _, steps) = predicted.dims3()?;
    let device = predicted.device();
    let targets = Tensor::from_slice(targets, (rows, 1, steps), &Device::Cpu)?.to_device(device)?;
    let levels: Vec<f32> = levels.iter().map(|level| *level as f32).collect();
    let levels = Tensor::from_slice(&levels, (1, levels.len(), 1), &Device::Cpu)?.to_device(device)?;
    let errors = targets.broadcast_sub(&predicted)?;
    let fixed = errors.detach();
    let below = fixed.le(&fixed.zeros_like()?)?.to_dtype(DType::F32)?;
    Ok((&errors * levels.broadcast_sub(&below)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_interpolated_between_samples() {
        let mut samples = [3.0, 0.0, 1.0, 2.0];
        assert_eq!(of_samples(&mut samples, &[0.5, 0.1, 1.0]), [1.5, 0.3, 3.0]);
        assert!(of_samples(&mut [], &[0.5])[0].is_nan());
        assert_eq!(of_samples(&mut [7.0], &[0.01, 0.99]), [7.0, 7.0]);
    }

    #[test]
    fn of_an_even_number_of_samples_the_lower_one_is_the_median() {
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0]), 3.0);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn quantiles_of_known_levels_are_exact() {
        let (levels, values) = ([0.05, 0.5, 0.6, 0.95], [-1.0, 2.0, 3.0, 10.0]);
        let found = interpolate_quantiles(&levels, &values, &[0.05, 0.55, 0.6, 0.775, 0.95, 0.999]);
        for (found, wanted) in found.iter().zip([-1.0, 2.5, 3.0, 6.5, 10.0, 10.0]) {
            assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
        }
    }

    #[test]
    fn samples_count_by_their_weights() {
        let mut samples = [(0.1, 9.0), (0.8, 0.0), (0.1, -9.0)];
        let found = of_weighted_samples(&mut samples, &[0.05, 0.1, 0.5, 0.9, 1.0]);
        for (found, wanted) in found.iter().zip([-9.0, -9.0, -4.5, 0.0, 9.0]) {
            assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
        }
    }

    #[test]
    fn the_outer_levels_have_the_mass_of_the_tails() {
        // (0.5 - 0)/2, (0.9 - 0.1)/2 and (1 - 0.5)/2, over their sum.
        for (found, wanted) in level_masses(&[0.1, 0.5, 0.9]).iter().zip([0.25, 0.4, 0.25]) {
            assert!((found - wanted / 0.9).abs() < 1e-6, "{found} {wanted}");
        }
    }
}
