//! Classification and ranking by a score.

use std::collections::BTreeMap;

use fauna_shared::{Error, Result};

/// The share of predictions that are the label, 0 to 1 (scikit-learn, `accuracy_score`).
///
/// ```
/// use fauna_measures::classification::accuracy;
/// assert_eq!(accuracy(&[0, 1, 2, 1], &[0, 1, 1, 1])?, 0.75);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers, or none.
pub fn accuracy(predicted: &[usize], labels: &[usize]) -> Result<f64> {
    check(predicted.len(), labels.len())?;
    let right = predicted.iter().zip(labels).filter(|(predicted, label)| predicted == label).count();
    Ok(right as f64 / labels.len() as f64)
}

/// The share of rows whose label is among the `k` classes of the highest scores, 0 to 1 (CLIP_benchmark, `acc1` and `acc5`).
/// `scores` is `(rows, classes)`; of equal scores the first class counts.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers, none, or a label that is not a class.
pub fn top_k_accuracy(scores: &[Vec<f64>], labels: &[usize], k: usize) -> Result<f64> {
    check(scores.len(), labels.len())?;
    let mut right = 0;
    for (row, label) in scores.iter().zip(labels) {
        let Some(own) = row.get(*label) else {
            return Err(Error::input(format!("the label {label} of {} classes", row.len())));
        };
        let before = |(class, score): &(usize, &f64)| *score > own || *score == own && class < label;
        right += usize::from(row.iter().enumerate().filter(before).count() < k);
    }
    Ok(right as f64 / labels.len() as f64)
}

/// True positives, predictions and labels of each class that is predicted or a label.
fn counts(predicted: &[usize], labels: &[usize]) -> BTreeMap<usize, [f64; 3]> {
    let mut classes: BTreeMap<usize, [f64; 3]> = BTreeMap::new();
    for (predicted, label) in predicted.iter().zip(labels) {
        classes.entry(*predicted).or_default()[1] += 1.0;
        let own = classes.entry(*label).or_default();
        own[2] += 1.0;
        own[0] += f64::from(u8::from(predicted == label));
    }
    classes
}

/// How the F1 scores of the classes are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// Their mean.
    Macro,
    /// Their mean weighted by the numbers of labels.
    Weighted,
}

/// The F1 score, 0 to 1 (scikit-learn, `f1_score`); a class that is not predicted and not a label does not count.
///
/// # Errors
/// As [`accuracy`].
pub fn f1(predicted: &[usize], labels: &[usize], average: Average) -> Result<f64> {
    check(predicted.len(), labels.len())?;
    let classes = counts(predicted, labels);
    let weight = |labels: f64| if average == Average::Macro { 1.0 } else { labels };
    let scores = classes
        .values()
        .map(|[right, predicted, labels]| weight(*labels) * 2.0 * right / (predicted + labels));
    Ok(scores.sum::<f64>() / classes.values().map(|[_, _, labels]| weight(*labels)).sum::<f64>())
}

/// The mean over the classes of the share of their rows that are predicted, 0 to 1 (scikit-learn, `balanced_accuracy_score`;
/// CLIP_benchmark, `mean_per_class_recall`).
///
/// # Errors
/// As [`accuracy`].
pub fn balanced_accuracy(predicted: &[usize], labels: &[usize]) -> Result<f64> {
    check(predicted.len(), labels.len())?;
    let recalls: Vec<f64> = counts(predicted, labels)
        .values()
        .filter(|[_, _, labels]| *labels > 0.0)
        .map(|[right, _, labels]| right / labels)
        .collect();
    Ok(recalls.iter().sum::<f64>() / recalls.len() as f64)
}

/// Average precision of a ranking by `scores`, 0 to 1 (scikit-learn, `average_precision_score`): the sum over the thresholds
/// of the precision times the gain of recall. Equal scores are one threshold.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers, a score that is not a number, or no positive.
pub fn average_precision(scores: &[f64], positive: &[bool]) -> Result<f64> {
    let order = by_score(scores, positive)?;
    let all = positive.iter().filter(|positive| **positive).count() as f64;
    let (mut taken, mut right, mut sum) = (0.0, 0.0, 0.0);
    for group in order.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let gained = group.iter().filter(|at| positive[**at]).count() as f64;
        taken += group.len() as f64;
        right += gained;
        sum += right / taken * gained / all;
    }
    Ok(sum)
}

/// A threshold of scores and what it reaches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// The accuracy or F1 score, 0 to 1.
    pub value: f64,
    /// The threshold: the mean of the scores on both sides of it.
    pub threshold: f64,
}

/// The best accuracy of pairs whose similarity is above a threshold (mteb, pair classification, `find_best_acc_and_threshold`).
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for unequal numbers, fewer than two, a score that is not a number, or no positive.
pub fn best_accuracy(similarities: &[f64], positive: &[bool]) -> Result<Threshold> {
    let negatives = positive.iter().filter(|positive| !**positive).count() as f64;
    let count = positive.len() as f64;
    best(similarities, positive, |right, taken| (right + negatives - (taken - right)) / count)
}

/// The best F1 score of pairs whose similarity is above a threshold (mteb, pair classification, `find_best_f1_and_threshold`).
///
/// # Errors
/// As [`best_accuracy`].
pub fn best_f1(similarities: &[f64], positive: &[bool]) -> Result<Threshold> {
    let all = positive.iter().filter(|positive| **positive).count() as f64;
    best(similarities, positive, |right, taken| 2.0 * right / (taken + all))
}

/// The best of `value`, a function of the positives among the pairs taken and of their number; of equal ones the first. The
/// last pair is not taken.
fn best(similarities: &[f64], positive: &[bool], value: impl Fn(f64, f64) -> f64) -> Result<Threshold> {
    let order = by_score(similarities, positive)?;
    if order.len() < 2 {
        return Err(Error::input("a threshold of one pair"));
    }
    let mut right = 0.0;
    let mut found = Threshold { value: 0.0, threshold: -1.0 };
    for (i, ends) in order.windows(2).enumerate() {
        right += f64::from(u8::from(positive[ends[0]]));
        let value = value(right, (i + 1) as f64);
        if value > found.value {
            found = Threshold { value, threshold: (similarities[ends[0]] + similarities[ends[1]]) / 2.0 };
        }
    }
    Ok(found)
}

/// The rows by falling score, equal ones in their order.
fn by_score(scores: &[f64], positive: &[bool]) -> Result<Vec<usize>> {
    check(scores.len(), positive.len())?;
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::input(format!("the score of row {} is not a number", at + 1)));
    }
    if !positive.contains(&true) {
        return Err(Error::input("no row is positive: there is nothing to find"));
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    Ok(order)
}

/// V-measure of a clustering, 0 to 1 (Rosenberg and Hirschberg 2007; scikit-learn, `v_measure_score`): the harmonic mean of
/// homogeneity and completeness.
///
/// # Errors
/// As [`accuracy`].
pub fn v_measure(clusters: &[usize], labels: &[usize]) -> Result<f64> {
    check(clusters.len(), labels.len())?;
    let count = labels.len() as f64;
    let sizes = |values: &[usize]| {
        let mut sizes: BTreeMap<usize, f64> = BTreeMap::new();
        values.iter().for_each(|value| *sizes.entry(*value).or_default() += 1.0);
        sizes
    };
    let (of_cluster, of_label) = (sizes(clusters), sizes(labels));
    let entropy = |sizes: &BTreeMap<usize, f64>| {
        sizes.values().map(|size| -size / count * (size / count).ln()).sum::<f64>()
    };
    let mut both: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    clusters
        .iter()
        .zip(labels)
        .for_each(|(cluster, label)| *both.entry((*cluster, *label)).or_default() += 1.0);
    let information: f64 = both
        .iter()
        .map(|((cluster, label), size)| {
            size / count * (size * count / (of_cluster[cluster] * of_label[label])).ln()
        })
        .sum();
    // A side with one class is complete.
    let share = |entropy: f64| if entropy == 0.0 { 1.0 } else { information.max(0.0) / entropy };
    let (homogeneity, completeness) = (share(entropy(&of_label)), share(entropy(&of_cluster)));
    Ok(match homogeneity + completeness {
        0.0 => 0.0,
        sum => 2.0 * homogeneity * completeness / sum,
    })
}

/// Checks that there is one prediction for each label.
pub(crate) fn check(predicted: usize, labels: usize) -> Result<()> {
    if predicted != labels {
        return Err(Error::input(format!("{predicted} predictions of {labels} labels")));
    }
    match labels {
        0 => Err(Error::input("no prediction to measure")),
        _ => Ok(()),
    }
}
