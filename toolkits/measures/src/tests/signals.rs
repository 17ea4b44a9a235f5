//! Errors of forecasts and forces, and distances of sounds and pictures, equal those of the references, which `signals.py` ran.

use std::sync::LazyLock;

use fauna_shared::item::Image;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::forecasts::{Case, coverage, errors, leaderboard};
use crate::language::{Normalization, chosen, perplexity};
use crate::physics::{Evaluated, potential_errors, rank_violation};
use crate::signals;

static VALUES: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("signals.json")).unwrap());

fn read<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn equal(name: &str, found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
        "{name} is {found}, expected {expected}"
    );
}

#[test]
fn forecasts_are_measured_as_by_fev() {
    let values = &VALUES["forecasts"];
    let past: Vec<Vec<f64>> = read(&values["past"]);
    let observed: Vec<Vec<Option<f64>>> = read(&values["observed"]);
    let observed: Vec<Vec<f64>> =
        observed.iter().map(|row| row.iter().map(|value| value.unwrap_or(f64::NAN)).collect()).collect();
    let forecast: Vec<Vec<f64>> = read(&values["forecast"]);
    let quantiles: Vec<Vec<Vec<f64>>> = read(&values["quantiles"]);
    let cases: Vec<Case> = (0..past.len())
        .map(|i| Case {
            past: &past[i],
            observed: &observed[i],
            forecast: &forecast[i],
            quantiles: &quantiles[i],
        })
        .collect();
    let levels: Vec<f64> = read(&values["levels"]);
    let found = errors(&cases, &levels, read(&values["season"])).unwrap();
    for (name, value) in [
        ("mae", found.mae),
        ("wape", found.wape),
        ("mase", found.mase),
        ("rmse", found.rmse),
        ("rmsse", found.rmsse),
        ("smape", found.smape),
        ("mql", found.mql.unwrap()),
        ("wql", found.wql.unwrap()),
        ("sql", found.sql.unwrap()),
    ] {
        equal(name, value, &values["errors"][name]);
    }
    assert_eq!(errors(&[Case { quantiles: &[], ..cases[0] }], &[], 4).unwrap().wql, None);
    let wrong = |result: fauna_shared::Result<_>, part: &str| {
        let error = result.map(|_: crate::forecasts::ForecastErrors| ()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    wrong(errors(&[], &[], 1), "0 forecasts");
    wrong(errors(&cases, &levels, 0), "season of 0");
    wrong(errors(&cases, &[0.1, 0.5, 1.0], 1), "between 0 and 1");
    wrong(errors(&cases, &levels[1..], 1), "3 quantile levels, expected 2");
    wrong(errors(&[Case { forecast: &[1.0], ..cases[0] }], &levels, 1), "series 1: 1 forecasts of 5");
    assert_eq!(coverage(&[1.0, f64::NAN, 5.0], &[0.0; 3], &[2.0; 3]).unwrap(), 0.5);
    assert!(coverage(&[f64::NAN], &[0.0], &[1.0]).is_err() && coverage(&[1.0], &[], &[1.0]).is_err());
}

#[test]
fn forecasters_stand_as_in_the_leaderboard_of_fev() {
    let values = &VALUES["standings"];
    let by_model: Vec<Vec<f64>> = read(&values["errors"]);
    let standings = leaderboard(&by_model, 0, 200, 123).unwrap();
    for (model, standing) in standings.iter().enumerate() {
        equal("skill", standing.skill, &values["skill"][model]);
        equal("win rate", standing.win_rate, &values["win_rate"][model]);
        assert!(
            standing.skill_interval.low <= standing.skill && standing.skill <= standing.skill_interval.high
        );
    }
    assert!(leaderboard(&by_model[..1], 0, 10, 1).is_err());
    assert!(
        leaderboard(&[vec![1.0], vec![0.0]], 0, 10, 1).unwrap_err().to_string().contains("model 2 in task 1")
    );
}

#[test]
fn forces_are_measured_as_by_orb_models() {
    let values = &VALUES["forces"];
    let forces = |name: &str| -> Vec<Vec<[f64; 3]>> { read(&values[name]) };
    let (predicted, expected) = (forces("predicted"), forces("expected"));
    let energies: [Vec<f64>; 2] = read(&values["energies"]);
    let evaluated = |energies: &[f64], forces: &'static [Vec<[f64; 3]>]| -> Vec<Evaluated> {
        energies.iter().zip(forces).map(|(energy, forces)| Evaluated { energy: *energy, forces }).collect()
    };
    let predicted = evaluated(&energies[0], predicted.leak());
    let expected = evaluated(&energies[1], expected.leak());
    let found = potential_errors(&predicted, &expected).unwrap();
    equal("energy", found.energy_per_atom, &values["energy_per_atom"]);
    equal("forces", found.forces, &values["forces"]);
    equal("cosine", found.force_cosine, &values["force_cosine"]);
    assert!(potential_errors(&predicted[..1], &expected).is_err());
    let swapped = [predicted[1], predicted[0]];
    assert!(potential_errors(&swapped, &expected).unwrap_err().to_string().contains("structure 1"));
}

#[test]
fn sounds_and_pictures_are_measured_as_by_torchmetrics_and_scikit_image() {
    let values = &VALUES["sounds"];
    let (estimate, reference): (Vec<f64>, Vec<f64>) = (read(&values["estimate"]), read(&values["reference"]));
    equal("si_sdr", signals::si_sdr(&estimate, &reference).unwrap(), &values["si_sdr"]);
    assert!(signals::si_sdr(&[1.0], &[0.0]).is_err());
    let values = &VALUES["pictures"];
    let picture = |name: &str| Image {
        width: read(&values["width"]),
        height: read(&values["height"]),
        rgb: read(&values[name]),
    };
    let (first, second) = (picture("first"), picture("second"));
    equal("psnr", signals::psnr(&first, &second).unwrap(), &values["psnr"]);
    equal("ssim", signals::ssim(&first, &second).unwrap(), &values["ssim"]);
    assert_eq!(signals::psnr(&first, &first).unwrap(), f64::INFINITY);
    assert!((signals::ssim(&first, &first).unwrap() - 1.0).abs() < 1e-12);
    let narrow = Image { width: 1, height: 99, rgb: first.rgb.clone() };
    assert!(signals::psnr(&first, &narrow).is_err() && signals::ssim(&narrow, &narrow).is_err());
}

#[test]
fn likelihoods_of_texts_and_choices() {
    // The third word of " a b" is the empty one before the first space.
    let found = perplexity(&[(" a b", -3.0), ("é", -1.0)]).unwrap();
    assert!((found.per_word - 1f64.exp()).abs() < 1e-12);
    assert!((found.per_byte - (4.0 / 6.0f64).exp()).abs() < 1e-12);
    assert!((found.bits_per_byte - 4.0 / 6.0 / std::f64::consts::LN_2).abs() < 1e-12);
    assert!(perplexity(&[]).is_err() && perplexity(&[("a", f64::NEG_INFINITY)]).is_err());
    let choices = [("a", -1.0), ("ééé", -2.4), ("long answer", -6.6)];
    assert_eq!(chosen(&choices, Normalization::None).unwrap(), 0);
    assert_eq!(chosen(&choices, Normalization::Characters).unwrap(), 2);
    assert_eq!(chosen(&choices, Normalization::Bytes).unwrap(), 1);
    assert!(
        chosen(&[("", -1.0)], Normalization::Bytes).is_err() && chosen(&[], Normalization::None).is_err()
    );
}

#[test]
fn a_simulation_that_ranks_as_reality_violates_nothing() {
    assert_eq!(rank_violation(&[0.1, 0.5, 0.9], &[0.2, 0.3, 0.4]).unwrap(), 0.0);
    // The first two are exchanged.
    assert!((rank_violation(&[0.5, 0.1, 0.9], &[0.2, 0.3, 0.4]).unwrap() - 0.2 / 3.0).abs() < 1e-12);
}
