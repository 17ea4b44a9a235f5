//! Training steps and adapters of the families, as their references compute them.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::path::{Path, PathBuf};

use fauna_audio::{encodec, jukebox, musicgen};
use fauna_shared::item::{Sound, Tensors};
use fauna_shared::model::{Collation, Family, Pipeline};
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
fn opened(family: &'static Family) -> Box<dyn Pipeline> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), (family.sample)().to_string()).unwrap();
    let options = LoadOptions { random_weights: Some(3), ..LoadOptions::default() };
    Zoo::new(fauna_audio::FAMILIES.iter().copied()).open(folder.path().to_str().unwrap(), &options).unwrap()
}

/// A rising tone of `samples` samples.
fn sound(rate: u32, channels: usize, samples: usize) -> Example {
    let tone: Vec<f32> = (0..samples).map(|t| 0.5 * (t as f32 * t as f32 * 1e-3).sin()).collect();
    Example::Sound { sound: Sound { rate, channels: vec![tone; channels] }, caption: None }
}

/// The loss of the batch of `examples`, the batch, and the number of samples that were left out.
fn learned(model: &mut dyn Pipeline, examples: &[Example], loss: &Value) -> (f32, Tensors, usize) {
    let trainable = model.trainable().unwrap();
    let batch = trainable.collate(examples, &Collation::default()).unwrap();
    let loss = trainable.loss(&batch.inputs, loss).unwrap();
    assert!(loss.terms >= 1.0);
    let error =
        trainable.collate(&[Example::Text("x".into())], &Collation::default()).unwrap_err().to_string();
    assert!(error.contains("\"text\"") && error.contains("it learns from"), "{error}");
    (loss.value.to_scalar().unwrap(), batch.inputs, batch.truncated)
}

#[test]
fn a_codec_learns_from_a_second_of_each_sound() {
    let mut codec = opened(&encodec::FAMILY);
    let options = json!({"mel_windows": [32, 64], "mel_bins": 8});
    let examples = [sound(600, 2, 900), sound(600, 2, 500)];
    let (loss, inputs, left) = learned(&mut *codec, &examples, &options);
    assert!(loss.is_finite() && loss > 0.0, "{loss}");
    assert_eq!((inputs["input_values"].dims(), left), (&[2, 2, 600][..], 300));
    let rows: Vec<Vec<Vec<f32>>> = inputs["input_values"].to_vec3().unwrap();
    assert!(rows[1][0][500..].iter().all(|sample| *sample == 0.0), "a short sound is filled up");
    let error = codec.trainable().unwrap().loss(&inputs, &Value::Null).unwrap_err().to_string();
    assert!(error.contains("600 samples") && error.contains("mel_windows"), "{error}");
}

#[test]
fn music_is_learned_as_codes_in_the_delay_pattern() {
    let mut model = opened(&musicgen::FAMILY);
    let examples = [sound(600, 1, 300), sound(600, 1, 120)];
    let (loss, inputs, left) = learned(&mut *model, &examples, &Value::Null);
    assert!(loss.is_finite() && loss > 0.0, "{loss}");
    // 300 samples are 50 frames, and four codebooks three steps more.
    let (labels, read) = (&inputs["labels"], &inputs["decoder_input_ids"]);
    assert_eq!((labels.dims(), read.dims(), left), (&[2, 53, 4][..], &[8, 53][..], 0));
    let labels: Vec<Vec<Vec<i64>>> = labels.to_vec3().unwrap();
    let read: Vec<Vec<i64>> = read.to_vec2().unwrap();
    const SPECIAL: i64 = 32;
    for (row, labels) in labels.iter().enumerate() {
        let frames = [50, 20][row];
        for codebook in 0..4 {
            let said: Vec<i64> = labels.iter().map(|step| step[codebook]).collect();
            let known = codebook..codebook + frames;
            assert!(said.iter().enumerate().all(|(i, code)| known.contains(&i) == (*code != SPECIAL)));
            let read = &read[4 * row + codebook];
            assert_eq!((read[0], &read[1..]), (SPECIAL, &said[..52]), "what is read is a step later");
        }
    }
}

#[test]
fn jukebox_without_a_whole_prior_learns_its_codec() {
    let mut model = opened(&jukebox::FAMILY);
    let options = json!({
        "bandwidth_l2": 0.1, "bandwidth_spec": 2.0, "multispec_n_fft": [32, 16],
        "multispec_hop_length": [8, 4], "multispec_window_size": [16, 8]
    });
    let (loss, inputs, left) = learned(&mut *model, &[sound(48, 1, 200)], &options);
    assert!(loss.is_finite() && loss > 0.0, "{loss}");
    // Three seconds.
    assert_eq!((inputs["input_audio"].dims(), left), (&[1, 144, 1][..], 56));
    let error = model.trainable().unwrap().loss(&inputs, &Value::Null).unwrap_err().to_string();
    assert!(error.contains("bandwidth_l2 is missing"), "{error}");
}

fn agrees_with_its_reference(family: &str) {
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_audio::FAMILIES).copied());
    let failed = |case: &PathBuf| match parity::run(case, &zoo, &LoadOptions::default()) {
        Ok(report) if report.passes() => None,
        Ok(report) => Some(report.to_string()),
        Err(error) => Some(format!("{}: {error}", case.display())),
    };
    let failed: Vec<String> = cases(family).iter().filter_map(failed).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn encodec_learns_as_its_reference() {
    agrees_with_its_reference("encodec");
}

#[test]
fn musicgen_learns_as_its_reference() {
    agrees_with_its_reference("musicgen");
}

#[test]
fn llark_learns_as_its_reference() {
    agrees_with_its_reference("llark");
}
