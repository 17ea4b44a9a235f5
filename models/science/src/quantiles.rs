//! Quantiles: of samples, of samples with weights, and between levels that a model tells.

/// The quantiles at `levels` of equally likely `samples`, which are sorted on the way: straight lines between the
/// samples, the first of them at level 0 and the last at level 1.
///
/// ```
/// let mut samples = [4.0, 1.0, 2.0];
/// assert_eq!(fauna_science::quantiles::of_samples(&mut samples, &[0.0, 0.25, 0.5, 1.0]), [1.0, 1.5, 2.0, 4.0]);
/// ```
pub fn of_samples(samples: &mut [f32], levels: &[f64]) -> Vec<f32> {
    samples.sort_unstable_by(f32::total_cmp);
    levels.iter().map(|level| between_sorted(samples, *level)).collect()
}

/// The quantile at `level` of rising, equally likely samples; not a number where there are none.
pub(crate) fn between_sorted(sorted: &[f32], level: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return f32::NAN };
    // The reference counts in float32.
    let rank = (level as f32 * last as f32).clamp(0.0, last as f32);
    let (low, high) = (sorted[rank as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}

/// The lower of the middle samples.
pub(crate) fn median(samples: &mut [f32]) -> f32 {
    let Some(last) = samples.len().checked_sub(1) else { return f32::NAN };
    *samples.select_nth_unstable_by(last / 2, f32::total_cmp).1
}

/// The values at `wanted` levels of a distribution whose `values` at rising `levels` are known: straight lines between
/// them, and beyond them the first and the last value.
///
/// ```
/// use fauna_science::quantiles::between_levels;
/// assert_eq!(between_levels(&[0.25, 0.75], &[1.0, 3.0], &[0.01, 0.5, 0.75, 0.9]), [1.0, 2.0, 3.0, 3.0]);
/// ```
///
/// # Panics
/// If there are not as many values as levels.
pub fn between_levels(levels: &[f32], values: &[f32], wanted: &[f64]) -> Vec<f32> {
    assert_eq!(levels.len(), values.len(), "one value a level");
    let value = |wanted: &f64| {
        let wanted = *wanted as f32;
        // The first level above the one wanted.
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

/// The quantiles at `levels` of samples of unequal weight, `(weight, sample)`, which are sorted on the way. A sample
/// stands where the weights up to it, itself included, reach a level; weights need not sum to 1.
///
/// ```
/// let mut samples = [(1.0, 5.0), (3.0, 1.0)];
/// assert_eq!(fauna_science::quantiles::of_weighted(&mut samples, &[0.5, 0.875, 0.99]), [1.0, 3.0, 4.84]);
/// ```
pub fn of_weighted(samples: &mut [(f32, f32)], levels: &[f64]) -> Vec<f32> {
    let total: f32 = samples.iter().map(|(weight, _)| weight).sum();
    samples.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut reached = 0f32;
    let (mut reach, mut values) = (Vec::with_capacity(samples.len()), Vec::with_capacity(samples.len()));
    for (weight, sample) in samples {
        reached += *weight / total;
        reach.push(reached.min(1.0));
        values.push(*sample);
    }
    between_levels(&reach, &values, levels)
}

/// How much probability each of rising `levels` stands for: half the way to its neighbours, the outermost being 0 and 1;
/// together 1.
///
/// ```
/// let masses = fauna_science::quantiles::masses(&[0.25, 0.5, 0.75]);
/// assert!(masses.iter().all(|mass| (mass - 1.0 / 3.0).abs() < 1e-6));
/// ```
pub fn masses(levels: &[f64]) -> Vec<f32> {
    let level = |i: usize| match i {
        0 => 0.0,
        i => levels.get(i - 1).map_or(1.0, |level| *level as f32),
    };
    let masses: Vec<f32> = (1..=levels.len()).map(|i| (level(i + 1) - level(i - 1)) / 2.0).collect();
    let total: f32 = masses.iter().sum();
    masses.into_iter().map(|mass| mass / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
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
    fn uneven_levels_are_met_where_they_stand() {
        let (levels, values) = ([0.05, 0.5, 0.6, 0.95], [-1.0, 2.0, 3.0, 10.0]);
        let found = between_levels(&levels, &values, &[0.05, 0.55, 0.6, 0.775, 0.95, 0.999]);
        for (found, wanted) in found.iter().zip([-1.0, 2.5, 3.0, 6.5, 10.0, 10.0]) {
            assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
        }
    }

    #[test]
    fn a_heavy_sample_takes_its_share_of_the_levels() {
        let mut samples = [(0.1, 9.0), (0.8, 0.0), (0.1, -9.0)];
        let found = of_weighted(&mut samples, &[0.05, 0.1, 0.5, 0.9, 1.0]);
        for (found, wanted) in found.iter().zip([-9.0, -9.0, -4.5, 0.0, 9.0]) {
            assert!((found - wanted).abs() < 1e-5, "{found} {wanted}");
        }
    }

    #[test]
    fn the_outer_levels_stand_for_their_tails() {
        // (0.5 - 0)/2, (0.9 - 0.1)/2 and (1 - 0.5)/2, over their sum.
        for (found, wanted) in masses(&[0.1, 0.5, 0.9]).iter().zip([0.25, 0.4, 0.25]) {
            assert!((found - wanted / 0.9).abs() < 1e-6, "{found} {wanted}");
        }
    }
}
