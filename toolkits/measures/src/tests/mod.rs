//! The measures equal those of the references, which `alignment.py` ran, and refuse what they are not defined for.

mod signals;
mod tasks;

use fauna_shared::Result;
use serde_json::Value;

use crate::{Space, alignment, geometry};

fn space(rows: &Value) -> Space {
    let rows: Vec<Vec<f64>> = serde_json::from_value(rows.clone()).unwrap();
    Space::new(rows.len(), rows[0].len(), rows.concat()).unwrap()
}

/// Random numbers from 0 to 1, enough for tests of properties.
fn noise(count: usize, mut state: u64) -> Vec<f64> {
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn measures_equal_those_of_the_references() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("alignment.json")).unwrap();
    for (number, case) in cases.iter().enumerate() {
        let (x, y) = (space(&case["x"]), space(&case["y"]));
        let (unit_x, unit_y) = (x.normalized(), y.normalized());
        for (name, expected) in case["measures"].as_object().unwrap() {
            let (measure, option) = name.rsplit_once('_').unwrap_or((name, ""));
            let k = option.parse::<usize>().unwrap_or(0);
            let found = match (name.as_str(), measure) {
                ("cka", _) => alignment::cka(&x, &y),
                ("cka_unbiased", _) => alignment::cka_unbiased(&x, &y),
                ("rsa", _) => alignment::rsa(&x, &y),
                ("procrustes", _) => alignment::procrustes(&x, &y),
                ("procrustes_of_anatome", _) => alignment::procrustes(&x, &y).map(|value| 1.0 - value),
                ("uniformity", _) => geometry::uniformity(&x),
                ("effective_rank", _) => geometry::effective_rank(&x),
                (_, "mutual_knn") => alignment::mutual_knn(&unit_x, &unit_y, k),
                (_, "cknna") => alignment::cknna(&unit_x, &unit_y, k),
                (_, "svcca") => alignment::svcca(&x, &y, option.parse().unwrap()),
                ("clamped_sum", _) => Ok(x.clamped(0.95).unwrap().sum_of_sizes()),
                _ => panic!("{name}"),
            };
            let (found, expected) = (found.unwrap(), expected.as_f64().unwrap());
            // The reference adds 1e-6 to the denominator of the unbiased alignment, and computes the share of neighbours
            // in float32.
            let tolerance = match measure {
                "cka" if name == "cka_unbiased" => 1e-6,
                "mutual_knn" => 1e-7,
                _ => 1e-9 * expected.abs().max(1.0),
            };
            assert!(
                (found - expected).abs() <= tolerance,
                "case {number}: {name} is {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn a_rotation_and_a_scale_change_nothing() {
    let (items, wide) = (50, 4);
    let x = Space::new(items, wide, noise(items * wide, 7)).unwrap();
    // Dimensions exchanged, one of them negated, all of them scaled.
    let values = x
        .rows()
        .row_iter()
        .flat_map(|row| [-3.0 * row[2], 3.0 * row[0], 3.0 * row[3], 3.0 * row[1]])
        .collect();
    let y = Space::new(items, wide, values).unwrap();
    for (name, value) in [
        ("mutual_knn", alignment::mutual_knn(&x.normalized(), &y.normalized(), 5)),
        ("cka", alignment::cka(&x, &y)),
        ("cka_unbiased", alignment::cka_unbiased(&x, &y)),
        ("procrustes", alignment::procrustes(&x, &y)),
        ("svcca", alignment::svcca(&x, &y, 0.999)),
    ] {
        assert!((value.unwrap() - 1.0).abs() < 1e-9, "{name}");
    }
    assert!((alignment::cknna(&x, &x, 5).unwrap() - 1.0).abs() < 1e-3);
    assert!((alignment::rsa(&x, &x).unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn unrelated_spaces_are_at_chance() {
    let (items, wide) = (600, 8);
    let centred = |seed| noise(items * wide, seed).into_iter().map(|value| value - 0.5).collect();
    let x = Space::new(items, wide, centred(1)).unwrap().normalized();
    let y = Space::new(items, wide, centred(2)).unwrap().normalized();
    let chance = alignment::mutual_knn_by_chance(items, 10);
    assert!((alignment::mutual_knn(&x, &y, 10).unwrap() - chance).abs() < 0.01);
    assert!(alignment::cka_unbiased(&x, &y).unwrap().abs() < 0.02);
    assert!(alignment::rsa(&x, &y).unwrap().abs() < 0.03);
}

#[test]
fn many_distances_are_ranked_as_few_are() {
    let (items, wide) = (2100, 5);
    let x = noise(items * wide, 3);
    let y: Vec<f64> = x.iter().zip(noise(items * wide, 4)).map(|(x, noise)| x + 0.7 * noise).collect();
    let (x, y) = (Space::new(items, wide, x).unwrap(), Space::new(items, wide, y).unwrap());
    let exact = {
        let (x, y) = (x.standardized_rows().unwrap(), y.standardized_rows().unwrap());
        crate::ranks::spearman(&alignment::distances(&x), &alignment::distances(&y))
    };
    let packed = alignment::rsa(&x, &y).unwrap();
    assert!((exact - packed).abs() < 1e-9, "{exact} exactly, {packed} packed");
}

#[test]
fn what_is_not_defined_is_refused_with_its_place() {
    let refused = |result: Result<f64>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{part} is not in: {error}");
    };
    let of = |rows: usize, values: &[f64]| Space::new(rows, values.len() / rows, values.to_vec());
    assert!(of(2, &[1.0, f64::NAN]).unwrap_err().to_string().contains("row 2"));
    assert!(Space::new(0, 3, vec![]).is_err() && Space::new(2, 3, vec![0.0; 5]).is_err());
    assert!(Space::new(usize::MAX, 2, vec![0.0; 2]).is_err());
    let x = of(4, &noise(8, 1)).unwrap();
    let short = of(3, &noise(6, 1)).unwrap();
    let same = of(4, &[0.5; 8]).unwrap();
    refused(alignment::cka(&x, &short), "4 vectors beside 3");
    refused(alignment::mutual_knn(&x, &x, 4), "4 neighbours");
    refused(alignment::mutual_knn(&x, &x, 0), "0 neighbours");
    refused(alignment::cknna(&x, &x, 1), "at least 2");
    refused(alignment::cka(&x, &same), "equal");
    refused(alignment::cka_unbiased(&x, &same), "variance");
    refused(alignment::cka_unbiased(&short, &short), "too few");
    refused(alignment::rsa(&x, &same), "row 1");
    refused(alignment::procrustes(&same, &x), "equal");
    refused(
        alignment::svcca(&of(2, &noise(8, 1)).unwrap(), &of(2, &noise(8, 2)).unwrap(), 0.9),
        "at least as many",
    );
    refused(geometry::uniformity(&of(1, &[1.0]).unwrap()), "no pair");
    refused(geometry::modality_gap(&x, &of(4, &noise(12, 1)).unwrap()), "2 dimensions beside 3");
    refused(geometry::effective_rank(&of(2, &[0.0; 4]).unwrap()), "no rank");
    assert!(x.clamped(0.0).is_err());
}

#[test]
fn the_gap_is_the_distance_of_the_means_and_pairs_have_theirs() {
    let x = Space::new(2, 2, vec![1.0, 0.0, 2.0, 0.0]).unwrap();
    let y = Space::new(2, 2, vec![0.0, 3.0, 0.0, 1.0]).unwrap();
    assert!((geometry::modality_gap(&x, &y).unwrap() - 2f64.sqrt()).abs() < 1e-12);
    assert!((geometry::pair_distance(&x, &y).unwrap() - 2.0).abs() < 1e-12);
    assert!((geometry::anisotropy(&x).unwrap() - 1.0).abs() < 1e-12);
}
