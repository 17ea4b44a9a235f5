//! Measures of answers equal those of the references, which `tasks.py` ran.

use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::classification::{self as of_classes, Average};
use crate::retrieval::{Relevance, Scores, at_cutoff};
use crate::{intervals, regression};

static VALUES: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(include_str!("tasks.json")).unwrap());

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn equal(name: &str, found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() <= 1e-12, "{name} is {found}, expected {expected}");
}

#[test]
fn classification_is_measured_as_by_scikit_learn() {
    for case in VALUES["classification"].as_array().unwrap() {
        let (labels, predicted): (Vec<usize>, Vec<usize>) = (read(&case["labels"]), read(&case["predicted"]));
        equal("accuracy", of_classes::accuracy(&predicted, &labels).unwrap(), &case["accuracy"]);
        for (name, average) in [("f1_macro", Average::Macro), ("f1_weighted", Average::Weighted)] {
            equal(name, of_classes::f1(&predicted, &labels, average).unwrap(), &case[name]);
        }
        let balanced = of_classes::balanced_accuracy(&predicted, &labels).unwrap();
        equal("balanced_accuracy", balanced, &case["balanced_accuracy"]);
        equal("v_measure", of_classes::v_measure(&predicted, &labels).unwrap(), &case["v_measure"]);
        let scores: Vec<Vec<f64>> = read(&case["scores"]);
        let among = |k| of_classes::top_k_accuracy(&scores, &labels, k).unwrap();
        assert!(among(1) <= among(2) && among(5) == 1.0);
    }
    assert_eq!(of_classes::top_k_accuracy(&[vec![0.1, 0.5, 0.5]], &[2], 1).unwrap(), 0.0);
    assert_eq!(of_classes::top_k_accuracy(&[vec![0.1, 0.5, 0.5]], &[2], 2).unwrap(), 1.0);
    assert!(of_classes::top_k_accuracy(&[vec![0.1]], &[1], 1).is_err());
    assert!(
        of_classes::accuracy(&[1], &[1, 2]).unwrap_err().to_string().contains("1 predictions of 2 labels")
    );
    assert!(of_classes::accuracy(&[], &[]).is_err());
}

#[test]
fn pairs_are_measured_as_by_scikit_learn_and_mteb() {
    for case in VALUES["pairs"].as_array().unwrap() {
        let (scores, positive): (Vec<f64>, Vec<bool>) = (read(&case["scores"]), read(&case["positive"]));
        let precision = of_classes::average_precision(&scores, &positive).unwrap();
        equal("average_precision", precision, &case["average_precision"]);
        for (name, found) in [
            ("best_accuracy", of_classes::best_accuracy(&scores, &positive)),
            ("best_f1", of_classes::best_f1(&scores, &positive)),
        ] {
            let found = found.unwrap();
            equal(name, found.value, &case[name][0]);
            equal(name, found.threshold, &case[name][1]);
        }
    }
    let none = of_classes::average_precision(&[0.1, 0.2], &[false, false]);
    assert!(none.unwrap_err().to_string().contains("no row is positive"));
    let no_number = of_classes::average_precision(&[0.1, f64::NAN], &[true, false]);
    assert!(no_number.unwrap_err().to_string().contains("row 2"));
}

#[test]
fn numbers_are_measured_as_by_scikit_learn_and_scipy() {
    for case in VALUES["regression"].as_array().unwrap() {
        let (targets, predicted): (Vec<f64>, Vec<f64>) = (read(&case["targets"]), read(&case["predicted"]));
        let errors = regression::errors(&predicted, &targets).unwrap();
        for (name, found) in [
            ("mse", errors.mse),
            ("mae", errors.mae),
            ("rmse", errors.rmse),
            ("r2", errors.r2),
            ("pearson", regression::pearson(&predicted, &targets)),
            ("spearman", regression::spearman(&predicted, &targets)),
            ("kendall", regression::kendall_tau(&predicted, &targets).unwrap()),
        ] {
            equal(name, found, &case[name]);
        }
    }
}

#[test]
fn rankings_are_measured_as_by_trec_eval() {
    let (relevance, scores) = (&VALUES["retrieval"]["relevance"], &VALUES["retrieval"]["scores"]);
    let queries: Vec<(Relevance, Scores)> = relevance
        .as_object()
        .unwrap()
        .iter()
        .map(|(query, relevance)| (read(relevance), read(&scores[query])))
        .collect();
    for (cutoff, expected) in VALUES["retrieval"]["found"].as_object().unwrap() {
        let found = at_cutoff(&queries, cutoff.parse().unwrap()).unwrap();
        for (name, value) in [
            ("ndcg", found.ndcg),
            ("map", found.map),
            ("recall", found.recall),
            ("P", found.precision),
            ("success", found.success),
        ] {
            equal(&format!("{name} at {cutoff}"), value, &expected[name]);
        }
    }
    assert!(at_cutoff(&queries, 0).is_err() && at_cutoff(&[], 3).is_err());
}

#[test]
fn intervals_hold_what_they_promise() {
    let z = VALUES["z"].as_f64().unwrap();
    for case in VALUES["wilson"].as_array().unwrap() {
        let found = intervals::wilson(read(&case["successes"]), read(&case["trials"]), z).unwrap();
        equal("low", found.low, &case["interval"][0]);
        equal("high", found.high, &case["interval"][1]);
    }
    assert!(intervals::wilson(0, 0, z).is_err() && intervals::wilson(3, 2, z).is_err());
    assert_eq!(intervals::quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
    assert!((intervals::standard_error(&[1.0, 2.0, 3.0]) - 3f64.sqrt().recip()).abs() < 1e-12);
    // The mean of 0, 1, …, 99 by resampling: 49.5 and 1.96 standard errors of 2.9.
    let mean = |items: &[usize]| Ok(items.iter().sum::<usize>() as f64 / items.len() as f64);
    let found = intervals::bootstrap(100, 2000, 0.95, 1, mean).unwrap();
    assert!((found.low - 43.85).abs() < 0.6 && (found.high - 55.15).abs() < 0.6, "{found:?}");
    assert_eq!(
        intervals::bootstrap(100, 50, 0.95, 1, mean).unwrap(),
        intervals::bootstrap(100, 50, 0.95, 1, mean).unwrap()
    );
    assert!(
        intervals::bootstrap(0, 10, 0.95, 1, mean).is_err()
            && intervals::bootstrap(5, 10, 1.0, 1, mean).is_err()
    );
    let orders = intervals::permutations(4, 500, 3, |order| {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3]);
        Ok(order[0] as f64)
    });
    let share = orders.unwrap().iter().filter(|first| **first == 2.0).count();
    assert!((90..160).contains(&share), "{share} of 500");
}
