//! Training steps and adapters of the families, as their references compute them.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::path::{Path, PathBuf};

use candle_core::DType;
use fauna_science::chronos::{
    bolt::FAMILY as CHRONOS_BOLT, chronos2::FAMILY as CHRONOS_2, t5::FAMILY as CHRONOS_T5,
};
use fauna_science::orb::FAMILY as ORB;
use fauna_science::timesfm::{patched::FAMILY as TIMESFM, v2_5::FAMILY as TIMESFM_2_5};
use fauna_shared::item::{Atoms, Tensors};
use fauna_shared::model::{Collation, Covariate, Family, History, Pipeline};
use fauna_shared::parity;
use fauna_shared::train::Example;
use fauna_shared::zoo::{LoadOptions, Zoo};
use serde_json::{Value, json};

/// The cases of `family` that train, or that have an adapter.
fn cases(family: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(family);
    let starts = |case: &PathBuf| {
        let name = case.file_name().unwrap().to_string_lossy();
        name.starts_with("train_step") || name.starts_with("adapter")
    };
    parity::find(&folder).unwrap().into_iter().filter(starts).collect()
}

/// A model with random weights.
fn opened(family: &'static Family, change: impl FnOnce(&mut Value)) -> Box<dyn Pipeline> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = (family.sample)();
    change(&mut config);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = LoadOptions { random_weights: Some(3), ..LoadOptions::default() };
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_science::FAMILIES).copied());
    zoo.open(folder.path().to_str().unwrap(), &options).unwrap()
}

/// A Chronos whose network is GPT-2.
fn causal() -> Box<dyn Pipeline> {
    opened(&CHRONOS_T5, |config| {
        let mut own = config["chronos_config"].take();
        own["model_type"] = json!("causal");
        *config = json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 61, "n_positions": 60,
            "n_embd": 24, "n_layer": 2, "n_head": 3, "chronos_config": own
        });
    })
}

/// Two series of consecutive numbers, one with a covariate.
fn series() -> Vec<Example> {
    let numbers = |count: usize| (0..count).map(|t| 100.0 + t as f32).collect::<Vec<f32>>();
    let mut second = History::from(numbers(12));
    second.covariates.push(Covariate { name: "price".into(), past: numbers(12), future: Vec::new() });
    let example = |id: &str, history: History| Example::Series { id: id.into(), history };
    vec![example("a", numbers(60).into()), example("b", second)]
}

fn collation(horizon: usize) -> Collation {
    let mut options = Collation::default();
    (options.horizon, options.seed) = (Some(horizon), 5);
    options
}

/// The loss of the batch of `examples`, and the batch.
fn learned(model: &mut dyn Pipeline, examples: &[Example], options: &Collation) -> (f32, Tensors) {
    let trainable = model.trainable().unwrap();
    let batch = trainable.collate(examples, options).unwrap();
    let loss = trainable.loss(&batch.inputs, &Value::Null).unwrap();
    assert!(loss.terms >= 1.0);
    (loss.value.to_scalar().unwrap(), batch.inputs)
}

fn table(inputs: &Tensors, name: &str) -> Vec<Vec<f32>> {
    inputs[name].to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[test]
fn every_forecaster_learns_from_windows_of_series() {
    let families = [&CHRONOS_T5, &CHRONOS_BOLT, &CHRONOS_2, &TIMESFM, &TIMESFM_2_5];
    let models = families.map(|family| (family.name, opened(family, |_| {})));
    for (name, mut model) in models.into_iter().chain([("chronos on gpt2", causal())]) {
        let (loss, inputs) = learned(&mut *model, &series(), &collation(4));
        assert!(loss.is_finite() && loss > 0.0, "{name}: {loss}");
        let (again, _) = learned(&mut *model, &series(), &collation(4));
        assert_eq!(loss, again, "{name}: the same seed gives the same windows");
        assert!(!inputs.is_empty());
        let trainable = model.trainable().unwrap();
        let short = [Example::Series { id: "c".into(), history: vec![1.0, 2.0].into() }];
        let error = trainable.collate(&short, &collation(4)).unwrap_err().to_string();
        assert!(error.contains("\"c\"") && error.contains("2 steps"), "{name}: {error}");
        let error = trainable.collate(&[Example::Text("x".into())], &collation(4)).unwrap_err().to_string();
        assert!(error.contains("\"text\"") && error.contains("series"), "{name}: {error}");
    }
}

#[test]
fn what_is_learned_follows_the_context() {
    let (_, inputs) = learned(&mut *opened(&CHRONOS_BOLT, |_| {}), &series(), &collation(4));
    let (context, target) = (table(&inputs, "context"), table(&inputs, "target"));
    for (context, target) in context.iter().zip(&target) {
        let last = context.last().unwrap();
        assert_eq!(target[..], [last + 1.0, last + 2.0, last + 3.0, last + 4.0]);
    }
    let (_, inputs) = learned(&mut *opened(&CHRONOS_2, |_| {}), &series(), &collation(4));
    let (context, target) = (table(&inputs, "context"), table(&inputs, "future_target"));
    assert_eq!(inputs["group_ids"].to_vec1::<i64>().unwrap(), [0, 1, 1]);
    assert_eq!(context[1].last(), context[2].last(), "the covariate has the steps of its series");
    assert!(target[2].iter().all(|value| value.is_nan()), "covariates are not learned");
    assert_eq!(target[1][0], context[1].last().unwrap() + 1.0);
    let (_, inputs) = learned(&mut *opened(&TIMESFM, |_| {}), &series(), &collation(4));
    let past: Vec<f32> = inputs["past_values.1"].to_vec1().unwrap();
    assert_eq!(table(&inputs, "future_values")[1][0], past.last().unwrap() + 1.0);
}

#[test]
fn the_tokens_of_a_future_are_in_units_of_the_scale_of_its_context() {
    // The tokens of a series that does not move, with the end token: of a decoder in one row, padding at its end.
    let flat = |count: usize| Example::Series { id: "flat".into(), history: vec![3.0f32; count].into() };
    let (_, inputs) = learned(&mut *opened(&CHRONOS_T5, |_| {}), &[flat(20), flat(20)], &collation(2));
    let labels: Vec<Vec<i64>> = inputs["labels"].to_vec2().unwrap();
    let ids: Vec<Vec<i64>> = inputs["input_ids"].to_vec2().unwrap();
    let one = *ids[0].iter().rev().nth(1).unwrap();
    assert_eq!(labels[0], [one, one, 1]);
    let (_, inputs) = learned(&mut *causal(), &[flat(20), flat(5)], &collation(2));
    let labels: Vec<Vec<i64>> = inputs["labels"].to_vec2().unwrap();
    let mask: Vec<Vec<i64>> = inputs["attention_mask"].to_vec2().unwrap();
    for (labels, mask) in labels.iter().zip(&mask) {
        let real = mask.iter().filter(|real| **real == 1).count();
        assert!(mask[..real].iter().all(|real| *real == 1), "padding is at the end");
        assert_eq!(labels[real - 3..real], [one, one, 1]);
        assert!(labels[real..].iter().all(|label| *label == -100));
    }
}

fn water(energy: Option<f64>) -> Example {
    let atoms = Atoms {
        numbers: vec![8, 1, 1],
        positions: vec![[0.0, 0.0, 0.1], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]],
        charge: Some(0.0),
        spin: Some(1.0),
        ..Atoms::default()
    };
    Example::Atoms { atoms, energy, forces: Some(vec![[0.1, 0.0, 0.0]; 3]), stress: None }
}

#[test]
fn a_direct_orb_learns_energies_and_forces_and_a_conservative_one_energies_alone() {
    let mut direct = opened(&ORB, |config| {
        config["architecture"] = json!("orb_v3_direct");
        config["has_electrostatics"] = json!(false);
    });
    let (loss, inputs) = learned(&mut *direct, &[water(Some(-14.0)), water(Some(-13.0))], &collation(1));
    assert!(loss.is_finite() && loss > 0.0, "{loss}");
    assert_eq!(inputs["n_node"].to_vec1::<i64>().unwrap(), [3, 3]);
    assert_eq!(inputs["energy"].to_vec1::<f64>().unwrap(), [-14.0, -13.0]);
    assert_eq!(inputs["forces"].dims(), [6, 3]);
    let trainable = direct.trainable().unwrap();
    let mixed = [water(Some(-14.0)), water(None)];
    let error = trainable.collate(&mixed, &collation(1)).unwrap_err().to_string();
    assert!(error.contains("1 of 2 structures have energy"), "{error}");

    let mut conservative = opened(&ORB, |config| config["architecture"] = json!("orb_v3_conservative"));
    let trainable = conservative.trainable().unwrap();
    let batch = trainable.collate(&[water(Some(-14.0))], &collation(1)).unwrap();
    let error = trainable.loss(&batch.inputs, &Value::Null).unwrap_err().to_string();
    assert!(error.contains("second derivatives"), "{error}");
    let energy = json!({"loss_weights": {"energy": 1.0}});
    let loss: f32 = trainable.loss(&batch.inputs, &energy).unwrap().value.to_scalar().unwrap();
    assert!(loss.is_finite() && loss > 0.0, "{loss}");
}

fn agrees_with_its_reference(family: &str) {
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_science::FAMILIES).copied());
    let failed = |case: &PathBuf| match parity::run(case, &zoo, &LoadOptions::default()) {
        Ok(report) if report.passes() => None,
        Ok(report) => Some(report.to_string()),
        Err(error) => Some(format!("{}: {error}", case.display())),
    };
    let failed: Vec<String> = cases(family).iter().filter_map(failed).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn chronos_learns_as_its_references() {
    agrees_with_its_reference("chronos");
}

#[test]
fn timesfm_learns_as_its_references() {
    agrees_with_its_reference("timesfm");
}

#[test]
fn orb_learns_as_its_reference() {
    agrees_with_its_reference("orb");
}
