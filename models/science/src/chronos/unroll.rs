//! Forecasts of Chronos-2 beyond one forward pass: quantiles are continued as paths.

use fauna_shared::Result;

use crate::quantiles::{interpolate_quantiles, level_masses, of_weighted_samples};
use crate::series::last;

/// Levels of the quantiles that are continued as paths.
const PATHS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// A batch of series.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Past values, `(rows, steps)`; NaN for gaps.
    pub past: Vec<f32>,
    /// Number of past steps.
    pub steps: usize,
    /// Known future values, `(rows, known)`; NaN for unknown ones.
    pub future: Vec<f32>,
    /// Number of future steps.
    pub known: usize,
    /// Group id per row; rows of one group attend to each other.
    pub groups: Vec<i64>,
}

impl Batch {
    fn rows(&self) -> usize {
        self.groups.len()
    }

    /// Known values of the next `count` steps, NaN for unknown ones, `(rows, count)`.
    pub fn known_future(&self, count: usize) -> Vec<f32> {
        let at = |row: usize, step: usize| match step < self.known {
            true => self.future[row * self.known + step],
            false => f32::NAN,
        };
        (0..self.rows()).flat_map(|row| (0..count).map(move |step| at(row, step))).collect()
    }

    /// Repeats every row for each path; paths of the same level of a group form a group.
    fn repeat_for_paths(&self) -> Self {
        let paths = PATHS.len();
        let repeat = |values: &[f32], each: usize| -> Vec<f32> {
            match each {
                0 => Vec::new(),
                each => values.chunks_exact(each).flat_map(|row| row.repeat(paths)).collect(),
            }
        };
        let path = |group: &i64| {
            let first = group.wrapping_mul(paths as i64);
            (0..paths as i64).map(move |path| first.wrapping_add(path))
        };
        Self {
            past: repeat(&self.past, self.steps),
            steps: self.steps,
            future: repeat(&self.future, self.known),
            known: self.known,
            groups: self.groups.iter().flat_map(path).collect(),
        }
    }

    /// Appends `count` forecast steps, `(rows, count)`, to the past, except where the future is known.
    fn extend_past(&self, told: &[f32], count: usize, longest: usize) -> Self {
        let known = self.known_future(count);
        let mut past = Vec::with_capacity((self.steps + count).min(longest) * self.rows());
        let mut row = Vec::with_capacity(self.steps + count);
        for i in 0..self.rows() {
            row.clear();
            row.extend_from_slice(&self.past[i * self.steps..][..self.steps]);
            let new = told[i * count..][..count].iter().zip(&known[i * count..]);
            row.extend(new.map(|(told, known)| if known.is_nan() { *told } else { *known }));
            past.extend_from_slice(last(&row, longest));
        }
        let left = self.known.saturating_sub(count);
        let future = match self.known {
            0 => Vec::new(),
            known => self.future.chunks_exact(known).flat_map(|row| last(row, left)).copied().collect(),
        };
        Self {
            past,
            steps: (self.steps + count).min(longest),
            future,
            known: left,
            groups: self.groups.clone(),
        }
    }
}

/// Limits of one forward pass.
#[derive(Debug, Clone)]
pub struct Reach<'a> {
    /// Levels of the trained quantiles.
    pub levels: &'a [f64],
    /// Patch length in steps.
    pub patch: usize,
    /// Maximum number of output patches.
    pub patches: usize,
    /// Context length in steps.
    pub context: usize,
}

impl Reach<'_> {
    fn patches_for(&self, horizon: usize) -> usize {
        horizon.div_ceil(self.patch).min(self.patches)
    }
}

/// The quantiles of `horizon` steps after each row of `batch`, `(rows, levels, horizon)`. `pass` is the forward pass of a
/// batch for a number of patches, `(rows, levels, patches * patch)`.
///
/// Beyond one forward pass, nine quantiles of each row are appended to the row as nine paths; the quantiles of the next
/// steps are those of all forecasts of the paths, weighted by the probability masses of both levels.
pub fn unrolled(
    batch: &Batch,
    horizon: usize,
    reach: &Reach,
    pass: &dyn Fn(&Batch, usize) -> Result<Vec<f32>>,
) -> Result<Vec<f32>> {
    let (rows, levels) = (batch.rows(), reach.levels.len());
    let mut all = vec![0f32; rows * levels * horizon];
    let mut done = 0;
    let mut paths: Option<Batch> = None;
    while done < horizon {
        let patches = reach.patches_for(horizon - done);
        let count = patches * reach.patch;
        let told = match &paths {
            None => pass(batch, patches)?,
            Some(paths) => reduced(&pass(paths, patches)?, rows, count, reach.levels),
        };
        let kept = count.min(horizon - done);
        for (row, values) in told.chunks_exact(count).enumerate() {
            all[row * horizon + done..][..kept].copy_from_slice(&values[..kept]);
        }
        done += kept;
        if done < horizon {
            let spread = paths.unwrap_or_else(|| batch.repeat_for_paths());
            paths = Some(spread.extend_past(
                &path_values(&told, rows, count, reach.levels),
                count,
                reach.context,
            ));
        }
    }
    Ok(all)
}

/// The quantiles that are continued as paths, `(rows * paths, count)`, of `told`, `(rows, levels, count)`.
fn path_values(told: &[f32], rows: usize, count: usize, levels: &[f64]) -> Vec<f32> {
    let narrow: Vec<f32> = levels.iter().map(|level| *level as f32).collect();
    let mut out = vec![0f32; rows * PATHS.len() * count];
    let mut values = vec![0f32; levels.len()];
    for row in 0..rows {
        for step in 0..count {
            let at = |level: usize| told[(row * levels.len() + level) * count + step];
            values.iter_mut().enumerate().for_each(|(level, value)| *value = at(level));
            for (path, value) in interpolate_quantiles(&narrow, &values, &PATHS).into_iter().enumerate() {
                out[(row * PATHS.len() + path) * count + step] = value;
            }
        }
    }
    out
}

/// The quantiles over the paths, `(rows, levels, count)`, of `made`, `(rows * paths, levels, count)`.
fn reduced(made: &[f32], rows: usize, count: usize, levels: &[f64]) -> Vec<f32> {
    let (outer, inner) = (level_masses(&PATHS), level_masses(levels));
    let weights: Vec<f32> =
        outer.iter().flat_map(|path| inner.iter().map(move |level| path * level)).collect();
    let mut out = vec![0f32; rows * levels.len() * count];
    let mut samples = Vec::with_capacity(weights.len());
    for row in 0..rows {
        for step in 0..count {
            let at = |sample: usize| made[(row * weights.len() + sample) * count + step];
            samples.clear();
            samples.extend(weights.iter().enumerate().map(|(i, weight)| (*weight, at(i))));
            for (level, value) in of_weighted_samples(&mut samples, levels).into_iter().enumerate() {
                out[(row * levels.len() + level) * count + step] = value;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVELS: [f64; 3] = [0.1, 0.5, 0.9];
    const NAN: f32 = f32::NAN;

    fn reach() -> Reach<'static> {
        Reach { levels: &LEVELS, patch: 2, patches: 2, context: 5 }
    }

    /// Says at every level the last value of the past, and one more for each level and step.
    fn counting(batch: &Batch, patches: usize) -> Result<Vec<f32>> {
        let count = patches * 2;
        let last = |row: usize| batch.past[(row + 1) * batch.steps - 1];
        let value =
            |row: usize, level: usize, step: usize| last(row) + level as f32 + 10.0 * (step + 1) as f32;
        let rows = batch.groups.len();
        Ok((0..rows)
            .flat_map(|r| (0..3).flat_map(move |l| (0..count).map(move |s| value(r, l, s))))
            .collect())
    }

    fn batch() -> Batch {
        Batch {
            past: vec![NAN, 1.0, 2.0, 3.0, 4.0, 5.0],
            steps: 3,
            future: vec![NAN, NAN, NAN, NAN, NAN, 7.0, 8.0, 9.0, 10.0, 11.0],
            known: 5,
            groups: vec![4, 4],
        }
    }

    #[test]
    fn one_pass_is_told_as_it_is() {
        let told = unrolled(&batch(), 3, &reach(), &counting).unwrap();
        assert_eq!(told[..9], [12.0, 22.0, 32.0, 13.0, 23.0, 33.0, 14.0, 24.0, 34.0]);
    }

    #[test]
    fn what_is_known_happens_and_what_is_not_is_told() {
        let spread = batch().repeat_for_paths();
        assert_eq!((spread.past.len(), spread.future.len()), (54, 90));
        assert_eq!(spread.groups[..3], [36, 37, 38]);
        assert_eq!(spread.groups[..9], spread.groups[9..], "paths of one level see each other");
        let told: Vec<f32> = (0..18 * 4).map(|i| 100.0 + i as f32).collect();
        let later = spread.extend_past(&told, 4, 5);
        assert_eq!((later.steps, later.known), (5, 1));
        assert_eq!(later.past[..5], [2.0, 100.0, 101.0, 102.0, 103.0]);
        assert_eq!(later.past[9 * 5..10 * 5], [5.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!((later.future[9], later.known_future(2)[18]), (11.0, 11.0));
        assert!(later.known_future(2)[19].is_nan());
    }

    #[test]
    fn paths_spread_and_are_gathered_again() {
        let told = unrolled(&batch(), 6, &reach(), &counting).unwrap();
        // After four steps the quantiles are 42, 43 and 44; the paths between them tell 52 to 56 at the next.
        let fifth: Vec<f32> = (0..3).map(|level| told[level * 6 + 4]).collect();
        assert!(fifth.windows(2).all(|pair| pair[0] < pair[1]), "{fifth:?}");
        assert!(fifth.iter().all(|value| (52.0..=56.0).contains(value)), "{fifth:?}");
    }
}
