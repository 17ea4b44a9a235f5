//! The gradients of every training case of `tests/parity` against finite differences of the loss, so that a gradient that
//! is cut or wrong is found even where the stored elements of the case do not show it.
//!
//! For each variable the derivative of the loss along two unit directions, its own gradient and random signs, must equal
//! the central difference, extrapolated from two steps (Richardson). Each is taken of the loss without gradients, so that
//! the two forward passes are compared as well. A variable without a gradient must not change the loss.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

#[path = "support/skip.rs"]
mod skip;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use fauna::candle::{Device, Tensor, Var};
use fauna::generate::Rng;
use fauna::grad::Recording;
use fauna::parity::{self, ModelFolder};
use fauna::source::{Source, Wanted};
use fauna::weights::{Select, tensors};
use fauna::{Error, ErrorKind, LoadOptions, Tensors};
use fauna_shared::train::{Learner, Trained};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Map, Value};

/// Tolerance of a derivative, relative to it or to the root mean square of the derivatives along all directions, whichever
/// is greater.
const TOLERANCE: f64 = 2e-2;

/// The rounding error of a loss in float32, relative to the loss or, if that is less, to 1: eight units in the last
/// place. The error of a derivative is this over the step.
const ROUNDING: f64 = 8.0 * f32::EPSILON as f64;

/// The first step, as a share of the norm of the variable. Losses have kinks (ReLU, routed experts), which a shorter step
/// does not cross: a step at which the derivatives disagree is divided by four, as long as the rounding error of the
/// shorter one is at most [`FLOOR`] tolerances.
const STEP: f64 = 0.01;
const FLOOR: f64 = 10.0;

/// The greatest number of variables of a case that are moved, evenly spread over the names; as many of those without a
/// gradient.
const VARIABLES: usize = 12;

/// Options of a case that are those of the optimizer.
const OPTIMIZER: [&str; 4] = ["learning_rate", "betas", "eps", "weight_decay"];

/// Families that can be trained and have no training case, with the reason.
const WITHOUT_CASE: [(&str, &str); 0] = [];

/// Why the encoder of a vector quantizer has another gradient (van den Oord et al. 2017, arXiv 1711.00937, section 3.2).
const STRAIGHT_THROUGH: &str = "the gradient of the chosen code is taken as that of the encoder output";

/// Variables whose gradient is by the reference's definition not the derivative of its loss, by a part of the case's path
/// and a part of the variable's name, with the reason.
const OTHERWISE_DEFINED: [(&str, &str, &str); 14] = [
    (
        "bert/train_step_question_answering",
        "word_embeddings.weight",
        "the embedding of the padding token has no gradient, though padded positions have logits",
    ),
    (
        "flamingo/train_step_open",
        "vision_encoder.",
        "the reference runs the vision encoder without gradients",
    ),
    ("orb/", "normalizer.bn.", "the statistics of a normalizer are buffers"),
    ("orb/", "reference.linear.weight", "the reference energies are not trained unless the options say so"),
    ("orb/", "rbf_transform.bessel_weights", "the weights of the Bessel functions are a buffer"),
    ("orb/", "rbf_transform.prefactor", "the factor of the Bessel functions is a buffer"),
    ("encodec/", "encoder.", STRAIGHT_THROUGH),
    ("encodec/", "codebook.embed", "codebooks are averages of encoder outputs, not trained by gradients"),
    ("llark/train_step_jukebox_vqvae", "vqvae.encoders.", STRAIGHT_THROUGH),
    (
        "llark/train_step_jukebox_vqvae",
        ".codebook",
        "codebooks are averages of encoder outputs, not trained by gradients",
    ),
    ("dalle/train_step_vqgan", "encoder.", STRAIGHT_THROUGH),
    ("dalle/train_step_vqgan", "quant_conv.", STRAIGHT_THROUGH),
    (
        "dalle/train_step_vqgan",
        "embedding.weight",
        "the reconstruction does not move the embedding of the chosen code",
    ),
    (
        "orb/train_step_direct",
        "",
        "the bins of the confidence follow the error of the forces in steps, and its features have no gradient",
    ),
];

/// A training case.
struct TrainingCase {
    folder: PathBuf,
    /// The options of the loss.
    options: Value,
    inputs: Tensors,
    load: LoadOptions,
    model_ref: Option<String>,
}

impl TrainingCase {
    /// The case in `folder`; `None` if it calls another method.
    fn open(folder: &Path) -> Result<Option<Self>, Failed> {
        let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
        if case["call"] != "train_step" {
            return Ok(None);
        }
        let mut options: Map<String, Value> = case["options"].as_object().cloned().unwrap_or_default();
        let mut text = |key: &str| Some(options.remove(key)?.as_str()?.to_string());
        let (model_ref, family) = (text("model_ref"), text("family"));
        let file = text("gguf_file").or(text("weights"));
        options.retain(|key, _| !["dtype", "note"].contains(&key.as_str()));
        let dequantize = options.remove("dequantize").is_some_and(|value| value == true);
        let mut load = LoadOptions { family, file, settings: options.clone(), ..LoadOptions::default() };
        load.runtime = load.runtime.with_dequantize(dequantize);
        options.retain(|key, _| !OPTIMIZER.contains(&key.as_str()));
        let inputs = tensors(&folder.join("inputs.safetensors"))?;
        let options = Value::Object(options);
        Ok(Some(Self { folder: folder.to_path_buf(), options, inputs, load, model_ref }))
    }

    /// Calls `f` with the checkpoint; returns `None` if it is not in the local cache.
    fn with_source<T>(&self, f: impl FnOnce(&str) -> Result<T, Failed>) -> Result<Option<T>, Failed> {
        let Some(name) = &self.model_ref else {
            let model = ModelFolder::open(&self.folder.join("model"))?;
            return f(&model.path().to_string_lossy()).map(Some);
        };
        match self.load.finder.find(&Source::Name(name.clone()), &Wanted::default()) {
            Ok(files) => f(&files.root().to_string_lossy()).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The case's path in the repository.
    fn name(&self) -> String {
        let path = self.folder.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&self.folder);
        path.display().to_string()
    }

    /// Whether the gradient of the variable `name` is not the derivative of the loss by the reference's definition.
    fn is_otherwise_defined(&self, name: &str) -> bool {
        let is_named =
            |(case, variable, _): &(&str, &str, &str)| self.name().contains(case) && name.contains(variable);
        OTHERWISE_DEFINED.iter().any(is_named)
    }

    /// Compares the gradients with finite differences, and returns the failures.
    fn check(&self, source: &str) -> Result<Vec<String>, Failed> {
        let zoo = fauna::zoo();
        let mut learner = Learner::open(&zoo, source, &self.load, Trained::weights(Select::All))?;
        let recording = Recording::new();
        let loss = learner.loss(&self.inputs, &self.options)?;
        let mut gradients = learner.gradients();
        gradients.backward(&loss.value)?;
        drop(recording);
        let recording = Recording::recomputing();
        let loss_again = learner.loss(&self.inputs, &self.options)?;
        let mut again = learner.gradients();
        again.backward(&loss_again.value)?;
        drop(recording);
        let mut failures = Vec::new();
        let mut learned = BTreeMap::new();
        let mut unused = Vec::new();
        for (name, variable) in learner.variables().all() {
            let gradient = gradients.get(&variable)?;
            let bits = |gradient: &Option<Tensor>| gradient.as_ref().map(values).transpose();
            if bits(&gradient)? != bits(&again.get(&variable)?)? {
                failures.push(format!("{name} has another gradient if activations are computed again"));
            }
            match gradient {
                Some(gradient) => drop(learned.insert(name, values(&gradient)?)),
                None => unused.push(name),
            }
        }
        let tracked = f64::from(loss.value.to_scalar::<f32>()?);
        let mut moved = Moved { case: self, learner };
        let plain = moved.loss()?;
        let noise = ROUNDING * plain.abs().max(1.0);
        if (plain - tracked).abs() > noise {
            failures.push(format!("the loss is {tracked} with gradients and {plain} without"));
        }
        let learned: Vec<_> = learned.into_iter().collect();
        for (name, gradient) in spread(&learned) {
            if self.is_otherwise_defined(name) {
                continue;
            }
            for (along, direction) in
                [("its gradient", unit(gradient)), ("random signs", signs(name, gradient.len()))]
            {
                // A gradient of zeros has no direction.
                let Some(direction) = direction else { continue };
                let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
                let size = norm(gradient) / (gradient.len() as f64).sqrt();
                let tolerance = TOLERANCE * expected.abs().max(size);
                if let Some(found) = moved.differs(name, &direction, expected, tolerance, noise)? {
                    failures.push(format!(
                        "{name} along {along}: the gradient gives {expected:.4e}, and finite differences {found:.4e}"
                    ));
                }
            }
        }
        for name in spread(&unused) {
            if self.is_otherwise_defined(name) {
                continue;
            }
            let change = moved.change(name)?;
            if change.is_nan() || change.abs() > noise {
                failures
                    .push(format!("{name} has no gradient, but the loss changes by {change:.1e} with it"));
            }
        }
        Ok(failures)
    }
}

/// A learner whose variables are moved, one at a time.
struct Moved<'a> {
    case: &'a TrainingCase,
    learner: Learner,
}

impl Moved<'_> {
    fn loss(&mut self) -> Result<f64, Failed> {
        let loss = self.learner.evaluate(&self.case.inputs, &self.case.options)?;
        Ok(f64::from(loss.value.to_scalar::<f32>()?))
    }

    fn variable(&self, name: &str) -> Result<Var, Failed> {
        self.learner.variables().get(name).ok_or_else(|| format!("no variable {name}").into())
    }

    /// The loss, with the variable `name` moved by `step` along `direction` from `weights`.
    fn loss_at(&mut self, name: &str, weights: &[f32], direction: &[f64], step: f64) -> Result<f64, Failed> {
        let variable = self.variable(name)?;
        let at = weights.iter().zip(direction).map(|(w, d)| (f64::from(*w) + step * d) as f32);
        set(&variable, at.collect())?;
        let loss = self.loss();
        set(&variable, weights.to_vec())?;
        loss
    }

    /// The derivative of the loss along the unit vector `direction` of the variable `name`, if it is not `expected`.
    fn differs(
        &mut self,
        name: &str,
        direction: &[f64],
        expected: f64,
        tolerance: f64,
        noise: f64,
    ) -> Result<Option<f64>, Failed> {
        let weights = values(&self.variable(name)?.as_detached_tensor())?;
        let mut step = STEP * norm(&weights).max(1e-2);
        let mut first: Option<f64> = None;
        loop {
            let mut difference = |step: f64| -> Result<f64, Failed> {
                let [after, before] = [step, -step].map(|step| self.loss_at(name, &weights, direction, step));
                Ok((after? - before?) / (2.0 * step))
            };
            let found = (4.0 * difference(step / 2.0)? - difference(step)?) / 3.0;
            // The errors of the narrow and the wide difference, 2 / step and 1 / step, weighted by 4/3 and 1/3.
            let rounding = |step: f64| 3.0 * noise / step;
            let off = (found - expected).abs();
            // Off by a kink, the derivative of a shorter step is off by less; off by a wrong gradient, by as much.
            if off <= tolerance + rounding(step).min(first.unwrap_or(f64::INFINITY) / 2.0) {
                return Ok(None);
            }
            first.get_or_insert(off);
            step /= 4.0;
            if rounding(step) > FLOOR * tolerance {
                return Ok(Some(found));
            }
        }
    }

    /// The change of the loss when the variable `name` is moved by half of its norm along random signs.
    fn change(&mut self, name: &str) -> Result<f64, Failed> {
        let weights = values(&self.variable(name)?.as_detached_tensor())?;
        let Some(direction) = signs(name, weights.len()) else { return Ok(0.0) };
        let step = 0.5 * norm(&weights).max(0.1);
        Ok(self.loss_at(name, &weights, &direction, step)? - self.loss()?)
    }
}

fn set(variable: &Var, values: Vec<f32>) -> Result<(), Failed> {
    Ok(variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?)?)
}

fn values(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// `values` divided by their norm; `None` if all are zero.
fn unit(values: &[f32]) -> Option<Vec<f64>> {
    let norm = norm(values);
    (norm > 0.0).then(|| values.iter().map(|x| f64::from(*x) / norm).collect())
}

/// A unit vector of random signs, seeded by `name`.
fn signs(name: &str, count: usize) -> Option<Vec<f64>> {
    let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut rng = Rng::new(seed, 0);
    let size = (count as f64).powf(-0.5);
    (count > 0).then(|| (0..count).map(|_| if rng.uniform() < 0.5 { -size } else { size }).collect())
}

/// At most [`VARIABLES`] of `all`, evenly spread.
fn spread<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let count = all.len().min(VARIABLES);
    (0..count).map(move |i| &all[i * all.len() / count])
}

/// Checks the training cases below `folder`.
fn cases_of(folder: &Path) -> Result<(), Failed> {
    let mut failures = Vec::new();
    for folder in parity::find(folder)? {
        let Some(case) = TrainingCase::open(&folder)? else { continue };
        match case.with_source(|source| case.check(source)) {
            Ok(Some(found)) => {
                failures.extend(found.into_iter().map(|line| format!("{}: {line}", case.name())))
            }
            Ok(None) => skip::skipped(&case.name(), "the checkpoint is not in the local cache"),
            Err(error) => failures.push(format!("{}: {}", case.name(), error.message().unwrap_or_default())),
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n").into()),
    }
}

/// Every family that can be trained must have a case, or a reason in [`WITHOUT_CASE`].
fn families_have_cases(root: &Path) -> Result<(), Failed> {
    let zoo = fauna::zoo();
    let mut covered = BTreeSet::new();
    for folder in parity::find(root)? {
        let Some(case) = TrainingCase::open(&folder)? else { continue };
        covered.extend(case.with_source(|source| Ok(zoo.pretrained(source, &case.load)?.0.name))?);
    }
    let mut failures = Vec::new();
    for family in fauna::families() {
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("config.json"), (family.sample)().to_string())?;
        let source = folder.path().to_string_lossy();
        let options = LoadOptions::default().with_family(family.name).with_random_weights(7);
        let learns = zoo.open(&source, &options)?.trainable().is_ok();
        let excused = WITHOUT_CASE.iter().any(|(name, _)| *name == family.name);
        match (learns, covered.contains(family.name), excused) {
            (true, false, false) => {
                failures.push(format!("{} can be trained, and no case tests it", family.name))
            }
            (_, true, true) => {
                failures.push(format!("{} has a case, remove it from WITHOUT_CASE", family.name))
            }
            _ => {}
        }
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.join("\n").into()),
    }
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let entries =
        std::fs::read_dir(&root).expect("tests/parity").map(|entry| entry.expect("an entry").path());
    let mut folders: Vec<_> =
        entries.filter(|folder| folder.is_dir() && !folder.ends_with("generate")).collect();
    folders.sort();
    let trial = |folder: PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Trial::test(format!("{name}_has_the_gradients_of_its_losses"), move || cases_of(&folder))
    };
    let mut trials: Vec<Trial> = folders.into_iter().map(trial).collect();
    let name = "every_family_that_can_be_trained_has_a_training_case";
    trials.push(Trial::test(name, move || families_have_cases(&root)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
