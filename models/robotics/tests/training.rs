//! Training of OpenVLA: how steps of episodes become batches, and that their loss is finite.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::fs;
use std::path::Path;

use candle_core::DType;
use fauna_shared::item::Image;
use fauna_shared::model::{Collation, Pipeline, TrainingBatch};
use fauna_shared::train::{Example, Learner, Step, Trained};
use fauna_shared::weights::Select;
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

fn zoo() -> Zoo {
    Zoo::new(fauna_robotics::FAMILIES.iter().copied())
}

/// A folder with a small config and a word-level tokenizer.
fn folder() -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/configs/openvla");
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "config.json"] {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn options(settings: Value) -> LoadOptions {
    let settings = settings.as_object().cloned().unwrap_or_default();
    LoadOptions { random_weights: Some(3), settings, ..LoadOptions::default() }
}

fn opened(folder: &TempDir, settings: Value) -> Box<dyn Pipeline> {
    zoo().open(folder.path().to_str().unwrap(), &options(settings)).unwrap()
}

fn frame(index: usize) -> Image {
    let rgb = (0..40 * 30 * 3).map(|i| (i * (index + 3) * 7 % 256) as u8).collect();
    Image { width: 40, height: 30, rgb }
}

fn step(instruction: &str, action: &[f64], cameras: &[&str]) -> Example {
    let images = cameras.iter().enumerate().map(|(i, name)| (name.to_string(), frame(i))).collect();
    Example::Step(Step {
        images,
        instruction: instruction.into(),
        actions: vec![action.to_vec()],
        ..Step::default()
    })
}

fn rows(batch: &TrainingBatch, name: &str) -> Vec<Vec<i64>> {
    batch.inputs[name].to_dtype(DType::I64).unwrap().to_vec2().unwrap()
}

fn refusal(result: Result<impl Sized>) -> Error {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

/// Tokens of "In: What action should the robot take to pick up the red block?\nOut:".
const PROMPT: &[i64] = &[1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 8, 19, 18, 12, 13, 4];

/// An action at the ends, in the middle and beyond the ranges of the checkpoint's statistics, and its tokens: 16 bins,
/// downward from the last of 96 words.
const ACTION: [f64; 7] = [0.03, -0.03, 0.0, 9.0, -9.0, 0.0, 1.0];
const TOKENS: [i64; 7] = [79, 95, 87, 79, 95, 87, 79];

#[test]
fn the_tokens_of_the_action_and_the_end_are_learned() {
    let folder = folder();
    let mut model = opened(&folder, Value::Null);
    let examples = [
        step("Pick up the RED block", &ACTION, &["front"]),
        step("put the block on the red block", &ACTION, &["front"]),
    ];
    let batch = model.trainable().unwrap().collate(&examples, &Collation::default()).unwrap();
    let (ids, labels) = (rows(&batch, "input_ids"), rows(&batch, "labels"));
    let wanted = [PROMPT, &TOKENS, &[2]].concat();
    assert_eq!(ids[0][..wanted.len()], wanted);
    let unread = vec![-100; PROMPT.len()];
    assert_eq!(labels[0][..wanted.len()], [&unread[..], &TOKENS, &[2]].concat());
    assert!(labels[0][wanted.len()..].iter().all(|label| *label == -100), "padding");
    assert_eq!(rows(&batch, "attention_mask")[0].iter().sum::<i64>() as usize, wanted.len());
    assert_eq!(batch.inputs["pixel_values"].dims(), [2, 6, 28, 28]);
    let source = folder.path().to_str().unwrap();
    let mut learner =
        Learner::open(&zoo(), source, &options(Value::Null), Trained::weights(Select::All)).unwrap();
    let loss = learner.loss(&batch.inputs, &Value::Null).unwrap();
    assert_eq!(loss.terms, 16.0);
    let value: f32 = loss.value.to_scalar().unwrap();
    assert!(value.is_finite() && value > 0.0, "{value}");
}

#[test]
fn the_statistics_of_the_data_set_replace_those_of_the_checkpoint() {
    let folder = folder();
    let mut model = opened(&folder, Value::Null);
    let mut collation = Collation::default();
    collation.statistics = Some(json!({"mine": {"action": {
        "q01": vec![-9.0; 7], "q99": vec![9.0; 7], "mask": vec![true; 7]
    }}}));
    let example = step("pick up the red block", &[9.0, -9.0, 0.0, 4.5, 0.0, 0.0, 0.0], &["front"]);
    let batch = model.trainable().unwrap().collate(&[example], &collation).unwrap();
    assert_eq!(rows(&batch, "input_ids")[0][PROMPT.len()..], [79, 95, 87, 83, 87, 87, 87, 2]);
    let short = step("pick up the red block", &[0.0; 6], &["front"]);
    let error = refusal(model.trainable().unwrap().collate(&[short], &Collation::default())).to_string();
    assert!(error.contains("6 dimensions, expected 7"), "{error}");
    let error = refusal(model.trainable().unwrap().collate(&[Example::Text("a".into())], &collation));
    assert!(error.to_string().contains("kind \"text\"") && error.to_string().contains("step"), "{error}");
}

#[test]
fn one_of_several_cameras_is_chosen_by_the_setting() {
    let folder = folder();
    let example = || step("pick up the red block", &ACTION, &["front", "wrist"]);
    let mut model = opened(&folder, Value::Null);
    let error = refusal(model.trainable().unwrap().collate(&[example()], &Collation::default())).to_string();
    assert!(error.contains("2 images") && error.contains("front, wrist"), "{error}");
    let pixels = |example: Example, settings: Value| -> Vec<f32> {
        let mut model = opened(&folder, settings);
        let batch = model.trainable().unwrap().collate(&[example], &Collation::default()).unwrap();
        batch.inputs["pixel_values"].flatten_all().unwrap().to_vec1().unwrap()
    };
    let wrist = pixels(example(), json!({"camera": "wrist"}));
    let front = pixels(example(), json!({"camera": "front"}));
    assert_eq!(front, pixels(step("pick up the red block", &ACTION, &["only"]), Value::Null));
    assert_ne!(front, wrist);
    let mut model = opened(&folder, json!({"camera": "top"}));
    let error = refusal(model.trainable().unwrap().collate(&[example()], &Collation::default())).to_string();
    assert!(error.contains("no camera \"top\"") && error.contains("front, wrist"), "{error}");
}
