//! A whole checkpoint after a training step opens again and computes bit for bit what the trained model computes, for
//! every training case of `tests/parity`; so does one with the merged adapters of a case of DALL·E, whose release is in
//! several files.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

#[path = "support/skip.rs"]
mod skip;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fauna::candle::{Device, Tensor};
use fauna::checkpoint::Checkpoint;
use fauna::parity::{self, ModelFolder, Tolerance, compare};
use fauna::source::{Source, Wanted};
use fauna::weights::{Select, tensors, widen};
use fauna::{ErrorKind, LoadOptions, Tensors};
use fauna_shared::adapter::AdapterSpec;
use fauna_shared::train::{AdamW, Learner, Trained, merge};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Map, Value};

/// Cases whose release is not written as a whole, by a part of the path, with a part of the error.
const REFUSED: [(&str, &str); 0] = [];

/// Options of a case that are those of the optimizer.
const OPTIMIZER: [&str; 4] = ["learning_rate", "betas", "eps", "weight_decay"];

/// The options of the case in `folder`; `None` if it is no training step.
fn training(folder: &Path) -> Result<Option<Map<String, Value>>, Failed> {
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    Ok((case["call"] == "train_step").then(|| case["options"].as_object().cloned().unwrap_or_default()))
}

/// Trains the case in `folder` for a step, saves it, and compares what the written checkpoint computes.
fn check(folder: &Path) -> Result<(), Failed> {
    let Some(mut options) = training(folder)? else { return Ok(()) };
    let mut text = |key: &str| Some(options.remove(key)?.as_str()?.to_string());
    let (model_ref, family) = (text("model_ref"), text("family"));
    let file = text("gguf_file").or(text("weights"));
    options.retain(|key, _| !["dtype", "note", "dequantize"].contains(&key.as_str()));
    let load = LoadOptions { family, file, settings: options.clone(), ..LoadOptions::default() };
    options.retain(|key, _| !OPTIMIZER.contains(&key.as_str()));
    let options = Value::Object(options);
    let inputs = tensors(&folder.join("inputs.safetensors"))?;
    let held;
    let source = match model_ref {
        None => {
            held = ModelFolder::open(&folder.join("model"))?;
            held.path().to_path_buf()
        }
        Some(name) => match load.finder.find(&Source::Name(name.clone()), &Wanted::default()) {
            Ok(files) => files.root().to_path_buf(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skip::skipped(&folder.display().to_string(), &format!("{name} is not in the cache"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        },
    };
    let place = tempfile::tempdir()?;
    let written = place.path().join("written");
    let zoo = fauna::zoo();
    let mut learner = Learner::open(&zoo, &source.to_string_lossy(), &load, Trained::weights(Select::All))?;
    let refused = REFUSED.iter().find(|(part, _)| folder.to_string_lossy().contains(part));
    if let Some((_, why)) = refused {
        let error = learner.check_savable().err().ok_or("it is written after all")?.to_string();
        return if error.contains(why) { Ok(()) } else { Err(error.into()) };
    }
    learner.check_savable()?;
    let mut gradients = learner.gradients();
    gradients.backward(&learner.loss(&inputs, &options)?.value)?;
    AdamW::new([0.9, 0.999], 1e-3, 0.1).step(&learner.variables().all(), &gradients, 1e-3, 1.0)?;
    learner.save(&written)?;
    // What half precision rounds off is not compared: it is read back from the first copy, and written again.
    let twice = place.path().join("twice");
    let mut first = Learner::open(&zoo, &written.to_string_lossy(), &load, Trained::weights(Select::All))?;
    first.save(&twice)?;
    let mut second = Learner::open(&zoo, &twice.to_string_lossy(), &load, Trained::weights(Select::All))?;
    let (before, once, again) = (
        bits(&mut learner, &inputs, &options)?,
        bits(&mut first, &inputs, &options)?,
        bits(&mut second, &inputs, &options)?,
    );
    let is_float32 = is_float32(&source)?;
    match (before == once || !is_float32, once == again) {
        (true, true) => {}
        (false, _) => {
            return Err(format!("the written checkpoint has loss {once:08x}, not {before:08x}").into());
        }
        (_, false) => return Err("the second copy computes otherwise".into()),
    }
    match same_names(&source, &written)? {
        true => Ok(()),
        false => Err("the names of the written tensors are not those of the release".into()),
    }
}

/// The bits of the loss.
fn bits(learner: &mut Learner, inputs: &Tensors, options: &Value) -> Result<u32, Failed> {
    Ok(learner.evaluate(inputs, options)?.value.to_scalar::<f32>()?.to_bits())
}

/// The weight files below `folder`.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, Failed> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(weight_files(&path)?),
            false if path.extension().is_some_and(|end| end == "json") => {}
            false if Checkpoint::open(&path).is_ok() => found.push(path),
            false => {}
        }
    }
    Ok(found)
}

/// Whether all floats of the release are float32.
fn is_float32(source: &Path) -> Result<bool, Failed> {
    use fauna::checkpoint::StorageType;
    let mut all = true;
    for path in weight_files(source)? {
        let file = Checkpoint::open(&path)?;
        all &= file.iter().all(|(_, stored)| !matches!(stored.storage, StorageType::F16 | StorageType::BF16));
    }
    Ok(all)
}

/// Whether both folders have tensors of the same names.
fn same_names(source: &Path, written: &Path) -> Result<bool, Failed> {
    let names = |folder: &Path| -> Result<Vec<String>, Failed> {
        let mut names = Vec::new();
        for path in weight_files(folder)? {
            names.extend(Checkpoint::open(&path)?.names().map(str::to_string));
        }
        names.sort();
        Ok(names)
    };
    Ok(names(source)? == names(written)?)
}

/// Copies the files of `from` to `to`, with all tensors in float32, so that merged weights are not rounded.
fn in_float32(from: &Path, to: &Path) -> Result<(), Failed> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let copy = to.join(path.file_name().unwrap_or_default());
        match Checkpoint::open(&path) {
            Ok(file) if path.extension().is_some_and(|end| end != "json") => {
                let mut dense = HashMap::new();
                for (name, stored) in file.iter() {
                    let shape = stored.shape.as_slice();
                    dense.insert(name.to_string(), Tensor::from_vec(widen(stored)?, shape, &Device::Cpu)?);
                }
                fauna::candle::safetensors::save(&dense, copy)?;
            }
            _ => drop(std::fs::copy(&path, copy)?),
        }
    }
    Ok(())
}

/// Merges the adapters of the case in `folder`, and compares what the written files compute with the model under the
/// adapters.
fn merges(folder: &Path) -> Result<(), Failed> {
    let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let spec = |entry: &Value| AdapterSpec {
        path: folder.join(entry["folder"].as_str().unwrap_or_default()).display().to_string(),
        scale: entry["scale"].as_f64().unwrap_or(1.0),
    };
    let adapters = case["options"]["adapters"].as_array().map(|all| all.iter().map(spec).collect());
    let options = LoadOptions { adapters: adapters.unwrap_or_default(), ..LoadOptions::default() };
    let model = ModelFolder::open(&folder.join("model"))?;
    let place = tempfile::tempdir()?;
    let (plain, written) = (place.path().join("plain"), place.path().join("merged"));
    in_float32(model.path(), &plain)?;
    let source = plain.to_string_lossy().into_owned();
    merge(&fauna::zoo(), &source, &options, &written, false)?;
    let inputs = tensors(&folder.join("inputs.safetensors"))?;
    let outputs = |source: &str, options: &LoadOptions| {
        fauna::open_with(source, options)?.call(
            case["call"].as_str().unwrap_or_default(),
            &inputs,
            &Value::Null,
        )
    };
    let number = |key: &str| case[key].as_f64().unwrap_or_default();
    let tolerance = Tolerance { atol: number("atol"), rtol: number("rtol") };
    let (adapted, merged) =
        (outputs(&source, &options)?, outputs(&written.to_string_lossy(), &LoadOptions::default())?);
    for (name, expected) in &adapted {
        let row = compare(name, expected, &merged[name], tolerance)?;
        if !row.agrees {
            return Err(row.to_string().into());
        }
    }
    match same_names(&plain, &written)? {
        true => Ok(()),
        false => Err("the names of the written tensors are not those of the release".into()),
    }
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let cases = parity::find(&root).expect("cases");
    let cases = cases.into_iter().filter(|case| matches!(training(case), Ok(Some(_)) | Err(_)));
    let trial = |case: PathBuf| {
        let name = case.strip_prefix(&root).unwrap_or(&case).display().to_string();
        Trial::test(format!("{name}_opens_again_after_a_step"), move || check(&case))
    };
    let mut trials: Vec<Trial> = cases.map(trial).collect();
    for name in ["dalle/adapter_mini_embedding", "dalle/adapter_mini_biases"] {
        let case = root.join(name);
        trials.push(Trial::test(format!("{name}_opens_again_merged"), move || merges(&case)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
