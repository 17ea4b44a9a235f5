#![allow(clippy::excessive_precision, reason = "numbers as torch prints them")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use half::bf16;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::checkpoint::{Checkpoint, Metadata, StorageType, TensorInfo, write_safetensors};
use crate::grad::Gradients;
use crate::item::Tensors;
use crate::model::{Card, Collation, Family, Keys, Loss, Pipeline, Pretrained, Trainable, TrainingBatch};
use crate::nn::Linear;
use crate::runtime::{Precision, Runtime};
use crate::weights::{Inventory, Name, Select, Weights};
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, ErrorKind, Result};

/// A family of linear maps of three numbers to two: one layer, and two in a stack that are added to it.
static LINES: Family = Family {
    name: "lines",
    systems: &["Lines"],
    paper: "",
    model_types: &["lines"],
    architectures: &["Lines"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[],
    outputs: &[],
    releases: &[],
    config_of_gguf: None,
    layout: None,
    rename: |name| match name {
        "stack" => Name::Entries { before: "parts.".into(), after: ".weight".into() },
        _ => Name::Keep,
    },
    inventory: |pretrained| Ok(Lines::load(&pretrained.weights)?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(Lines::open(pretrained)?)),
    sample: || json!({}),
};

struct Lines {
    layers: Vec<Linear>,
    card: Card,
}

impl Lines {
    fn load(weights: &Weights) -> Result<(Vec<Linear>, Inventory)> {
        let layers = vec![
            weights.linear("line", 3, 2)?,
            weights.linear_no_bias("parts.0", 3, 2)?,
            weights.linear_no_bias("parts.1", 3, 2)?,
        ];
        Ok((layers, weights.finish()?))
    }

    fn open(pretrained: &Pretrained) -> Result<Self> {
        let (layers, inventory) = Self::load(&pretrained.weights)?;
        Ok(Self { layers, card: pretrained.card("Lines", &inventory) })
    }
}

impl Pipeline for Lines {
    fn card(&self) -> &Card {
        &self.card
    }

    fn forward(&self, _: &Tensors) -> Result<Tensors> {
        Err(Error::unsupported("forward"))
    }

    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Ok(self)
    }
}

impl Trainable for Lines {
    fn reload(&mut self, _: &Value, weights: &Weights) -> Result<()> {
        self.layers = Self::load(weights)?.0;
        Ok(())
    }

    /// The mean of the squared errors of the outputs that have a weight of 1.
    fn loss(&self, inputs: &Tensors, _: &Value) -> Result<Loss> {
        let mut y = self.layers[0].forward(&inputs["x"])?;
        for layer in &self.layers[1..] {
            y = (y + layer.forward(&inputs["x"])?)?;
        }
        let terms = f64::from(inputs["weights"].sum_all()?.to_scalar::<f32>()?);
        let squares = ((y - &inputs["y"])?.sqr()? * &inputs["weights"])?;
        Ok(Loss::mean((squares.sum_all()? / terms)?, terms))
    }

    /// Texts of five numbers: three inputs, and two outputs, of which those named `-` are not learned.
    fn collate(&self, examples: &[Example], _: &Collation) -> Result<TrainingBatch> {
        let (mut x, mut y, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            let Example::Text(text) = example else { return Err(Error::input("no text")) };
            let fields: Vec<&str> = text.split(' ').collect();
            x.extend(fields[..3].iter().map(|field| field.parse::<f32>().unwrap()));
            y.extend(fields[3..].iter().map(|field| field.parse::<f32>().unwrap_or(0.0)));
            weights.extend(fields[3..].iter().map(|field| f32::from(*field != "-")));
        }
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, (examples.len(), ()), &Device::Cpu);
        let named = [("x", tensor(x)?), ("y", tensor(y)?), ("weights", tensor(weights)?)];
        Ok(TrainingBatch::new(named.map(|(name, x)| (name.to_string(), x)).into_iter().collect()))
    }

    fn head(&self) -> Result<&'static str> {
        Ok("^line\\.")
    }
}

/// Random bytes of the tensor `name`, finite in float32 and bfloat16.
fn bytes(name: &str, storage: StorageType, count: usize) -> Vec<u8> {
    let value = |i: usize| ((name.len() * 31 + i * 17) % 23) as f32 / 23.0 - 0.4;
    let values = (0..count).map(value);
    match storage {
        StorageType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// Writes a checkpoint with a matrix and a stack in bfloat16 and a bias in float32.
fn model() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "lines"}"#).unwrap();
    let planned = [
        ("line.bias", StorageType::F32, vec![2]),
        ("line.weight", StorageType::BF16, vec![2, 3]),
        ("stack", StorageType::BF16, vec![2, 2, 3]),
    ];
    let planned = planned.map(|(name, storage, shape)| TensorInfo { name: name.into(), storage, shape });
    write_safetensors(&folder.path().join("model.safetensors"), &Metadata::new(), &planned, |tensor| {
        Ok(bytes(&tensor.name, tensor.storage, tensor.shape.iter().product()))
    })
    .unwrap();
    folder
}

fn learner(model: &Path, select: Select) -> Result<Learner> {
    let zoo = Zoo::new([&LINES]);
    Learner::open(&zoo, model.to_str().unwrap(), &LoadOptions::default(), Trained::weights(select))
}

fn texts(rows: &[&str]) -> Vec<Example> {
    rows.iter().map(|row| Example::Text((*row).to_string())).collect()
}

/// A trainer of all weights with the options that `change` sets, run on `data` by `each`.
fn trained<R>(
    data: &[&str],
    change: impl Fn(&mut TrainingConfig),
    each: impl FnOnce(&mut Trainer) -> R,
) -> R {
    let model = model();
    let mut config = TrainingConfig { batch: data.len(), learning_rate: 0.01, ..TrainingConfig::default() };
    change(&mut config);
    let data = texts(data);
    let learner = learner(model.path(), Select::All).unwrap();
    let mut trainer = Trainer::new(learner, &data, config, Collation::default()).unwrap();
    each(&mut trainer)
}

fn values(trainer: &Trainer) -> Vec<f32> {
    let all = trainer.learner().variables().all();
    all.values().flat_map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

#[track_caller]
fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    let far = found.iter().zip(expected).find(|(a, b)| (*a - *b).abs() > tolerance);
    assert!(far.is_none(), "{far:?} in {found:?}, expected {expected:?}");
}

#[test]
fn accumulated_batches_of_different_numbers_of_labels_are_one_batch_of_all() {
    let data = ["1 2 3 0.5 -", "-1 0.5 2 1 2", "0.3 0.1 -2 -1 0.5", "1 1 1 - 3"];
    let run = |batch, accumulate| {
        let set = move |config: &mut TrainingConfig| (config.batch, config.accumulate) = (batch, accumulate);
        trained(&data, set, |trainer| {
            let reports: Vec<StepReport> = (0..3).map(|_| trainer.step().unwrap()).collect();
            (reports, values(trainer))
        })
    };
    let (whole, weights) = run(4, 1);
    for (batch, accumulate) in [(1, 4), (2, 2)] {
        let (reports, parts) = run(batch, accumulate);
        close(&parts, &weights, 1e-6);
        for (report, whole) in reports.iter().zip(&whole) {
            assert!((report.loss - whole.loss).abs() < 1e-5, "{report:?} {whole:?}");
            assert!((report.grad_norm - whole.grad_norm).abs() < 1e-4, "{report:?} {whole:?}");
        }
    }
}

#[test]
fn the_gradient_is_scaled_down_to_the_largest_norm_and_never_up() {
    // With a large epsilon the step of AdamW is the gradient.
    let moved = |clip: Option<f64>| {
        let set = move |config: &mut TrainingConfig| {
            (config.clip, config.eps, config.learning_rate, config.weight_decay) = (clip, 1e6, 1e6, 0.0);
        };
        trained(&["1 2 3 0.5 4"], set, |trainer| {
            let before = values(trainer);
            let norm = trainer.step().unwrap().grad_norm;
            let squares = before.iter().zip(values(trainer)).map(|(a, b)| f64::from(a - b).powi(2));
            (norm, squares.sum::<f64>().sqrt())
        })
    };
    let (norm, free) = moved(None);
    assert!(norm > 2.0 && (free / norm - 1.0).abs() < 1e-3, "{norm} {free}");
    let (same, clipped) = moved(Some(0.5));
    assert!((same - norm).abs() < 1e-9 && (clipped - 0.5).abs() < 1e-3, "{same} {clipped}");
    let (_, below) = moved(Some(norm * 2.0));
    assert!((below - free).abs() < 1e-9);
}

#[test]
fn a_step_that_fails_changes_no_weight() {
    for (row, kind, words) in [
        ("nan 1 1 1 1", ErrorKind::Compute, "in step 1"),
        ("1e38 1e38 1 1 1", ErrorKind::Compute, "in step 1"),
        ("1 1 1 - -", ErrorKind::Input, "step 1 have nothing that is learned"),
    ] {
        trained(
            &[row],
            |_| (),
            |trainer| {
                let before = values(trainer);
                let error = trainer.step().unwrap_err();
                assert!(error.kind() == kind && error.to_string().contains(words), "{error}");
                assert_eq!((values(trainer), trainer.steps()), (before, 0));
            },
        );
    }
}

#[test]
fn batches_without_labels_count_for_nothing() {
    let data = ["1 2 3 0.5 2", "1 1 1 - -"];
    let two = |config: &mut TrainingConfig| (config.batch, config.accumulate) = (1, 2);
    let (loss, validation) = trained(&data, two, |trainer| {
        (trainer.step().unwrap().loss, trainer.validate(&texts(&data)).unwrap())
    });
    let (alone, alone_after) = trained(
        &data[..1],
        |_| (),
        |trainer| (trainer.step().unwrap().loss, trainer.validate(&texts(&data[..1])).unwrap()),
    );
    assert!((loss - alone).abs() < 1e-6 && (validation - alone_after).abs() < 1e-6);
    trained(
        &data,
        |_| (),
        |trainer| {
            let error = trainer.validate(&texts(&data[1..])).unwrap_err();
            assert!(error.to_string().contains("nothing that is learned"), "{error}");
        },
    );
}

#[test]
fn several_steps_of_adamw_are_those_of_torch() {
    let x = Var::new(&[0.5f32, -1.0, 2.0, 0.0], &Device::Cpu).unwrap();
    let variables = BTreeMap::from([("x".to_string(), x.clone())]);
    let mut optimizer = AdamW::new([0.9, 0.95], 1e-6, 0.1);
    // torch 2.9.1: torch.optim.AdamW(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1).
    let steps: [(f64, [f32; 4], [f32; 4]); 4] = [
        (0.1, [0.1, -0.2, 0.3, 0.0], [0.395000994, -0.890000522, 1.880000353, 0.0]),
        (0.05, [0.4, 0.1, -0.5, 0.2], [0.349289566, -0.872132123, 1.885192275, -0.036747746]),
        (0.1, [-0.3, 0.2, 0.1, -0.1], [0.328257769, -0.890676379, 1.877971172, -0.059136987]),
        (0.02, [0.05, -0.6, 0.2, 0.3], [0.323564619, -0.880720496, 1.872258186, -0.070334591]),
    ];
    for (rate, gradient, expected) in steps {
        let mut gradients = Gradients::of([&x]);
        let gradient = Tensor::new(&gradient, &Device::Cpu).unwrap();
        gradients.backward(&(x.as_tensor() * gradient).unwrap().sum_all().unwrap()).unwrap();
        optimizer.step(&variables, &gradients, rate, 1.0).unwrap();
        close(&x.to_vec1::<f32>().unwrap(), &expected, 2e-6);
    }
    assert_eq!(optimizer.steps(), 4);
}

/// Steps of AdamW with weight decay on `variables`, whose gradients are those of a loss, in all of them scaled down to
/// the norm 0.5, with `gradients` that are cleared between the steps.
fn steps_of(
    variables: &BTreeMap<String, Var>,
    mut gradients: Gradients,
    steps: std::ops::Range<u64>,
    mut optimizer: AdamW,
) -> AdamW {
    for step in steps {
        gradients.clear();
        let losses = variables.values().map(|x| {
            let target = Tensor::new(&[0.3f32, -2.0, 5.0, 1e-3 * step as f32], &Device::Cpu).unwrap();
            let distance = (x.to_dtype(DType::F32).unwrap() - target).unwrap();
            (distance.sqr().unwrap() * (1.0 + step as f64)).unwrap().sum_all().unwrap()
        });
        losses.for_each(|loss| gradients.backward(&loss).unwrap());
        let norm = gradients.norm().unwrap();
        assert!(norm > 0.5, "{norm}");
        optimizer.step(variables, &gradients, 0.03, 0.5 / norm).unwrap();
    }
    optimizer
}

/// Two variables, of the same values every time.
fn two(dtype: DType) -> BTreeMap<String, Var> {
    let variable = |values: [f32; 4]| {
        let values = Tensor::new(&values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        Var::from_tensor(&values).unwrap()
    };
    let made = [("a", [0.5, -1.0, 2.0, 0.0]), ("b", [1.0, 3.0, -0.25, 0.125])];
    made.into_iter().map(|(name, values)| (name.to_string(), variable(values))).collect()
}

fn numbers(variable: &Var) -> Vec<f32> {
    variable.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

fn adamw() -> AdamW {
    AdamW::new([0.9, 0.95], 1e-6, 0.1)
}

#[test]
fn steps_in_operations_of_a_device_are_those_of_the_kernel() {
    let (host, device) = (two(DType::F32), two(DType::F32));
    steps_of(&host, Gradients::of(host.values()), 0..7, adamw());
    let made = steps_of(&device, Gradients::as_on_device(device.values()), 0..7, adamw());
    for (name, variable) in &device {
        close(&numbers(variable), &numbers(&host[name]), 1e-6);
    }
    // A state of the kernel goes on on the device, and the other way.
    let (mixed, steps) = (two(DType::F32), [0..3, 3..5, 5..7]);
    let [first, second, third] = steps;
    let optimizer = steps_of(&mixed, Gradients::of(mixed.values()), first, adamw());
    let optimizer = steps_of(&mixed, Gradients::as_on_device(mixed.values()), second, optimizer);
    let mixed_made = steps_of(&mixed, Gradients::of(mixed.values()), third, optimizer);
    for (name, variable) in &mixed {
        close(&numbers(variable), &numbers(&host[name]), 1e-6);
        let [a, b] = [&made, &mixed_made].map(|made| made.kept(name).unwrap().unwrap().moments);
        close(&a.concat(), &b.concat(), 1e-6);
    }
}

#[test]
fn a_bfloat16_variable_is_its_float32_master_rounded() {
    let (narrow, wide) = (two(DType::BF16), two(DType::F32));
    let steps = |variables: &BTreeMap<String, Var>, rate: f64, optimizer: AdamW| {
        let mut optimizer = optimizer;
        for _ in 0..40 {
            let mut gradients = Gradients::of(variables.values());
            for x in variables.values() {
                gradients.backward(&x.to_dtype(DType::F32).unwrap().sum_all().unwrap()).unwrap();
            }
            optimizer.step(variables, &gradients, rate, 1.0).unwrap();
        }
        optimizer
    };
    // A step is a tenth of the distance of bfloat16 numbers near 1.
    let made = steps(&narrow, 4e-4, adamw());
    steps(&wide, 4e-4, adamw());
    for (name, variable) in &narrow {
        assert_eq!(variable.dtype(), DType::BF16);
        let master = made.kept(name).unwrap().unwrap().master.unwrap();
        // Each of 40 steps rounds a number of up to 4 twice in the operations, and once in the kernel.
        close(&master, &numbers(&wide[name]), 40.0 * 4.0 * f32::EPSILON);
        let rounded: Vec<f32> = master.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert_eq!(numbers(variable), rounded);
    }
    // As after a saved state.
    let resumed = adamw().resumed(made.steps(), &narrow, kept_of(&narrow, &made)).unwrap();
    let resumed = steps(&narrow, 4e-4, resumed);
    steps(&wide, 4e-4, adamw().resumed(40, &wide, kept_of(&wide, &made)).unwrap());
    for (name, variable) in &wide {
        let master = resumed.kept(name).unwrap().unwrap().master.unwrap();
        close(&master, &numbers(variable), 80.0 * 4.0 * f32::EPSILON);
    }
}

fn kept_of(variables: &BTreeMap<String, Var>, made: &AdamW) -> BTreeMap<String, super::optimizer::Kept> {
    variables.keys().map(|name| (name.clone(), made.kept(name).unwrap().unwrap())).collect()
}

#[test]
fn a_run_on_a_device_takes_the_steps_of_one_on_the_cpu_and_goes_on_from_its_state() {
    let data = ["1 2 3 0.5 2", "-1 0.5 2 1 2", "0.3 0.1 -2 -1 0.5"];
    let model = model();
    let (rows, run) = (texts(&data), RunDescription::new("lines", "all", "rows"));
    let trainer = || {
        let config = TrainingConfig { batch: 2, accumulate: 2, ..TrainingConfig::default() };
        let config = TrainingConfig { learning_rate: 0.01, weight_decay: 0.1, clip: Some(0.5), ..config };
        let learner = learner(model.path(), Select::All).unwrap();
        Trainer::new(learner, &rows, config, Collation::default()).unwrap()
    };
    let (mut host, mut device) = (trainer(), trainer().on_device());
    let folder = tempfile::tempdir().unwrap();
    for step in 0..6 {
        let (expected, report) = (host.step().unwrap(), device.step().unwrap());
        assert!((report.loss - expected.loss).abs() < 1e-5, "{step}: {report:?} {expected:?}");
        assert!((report.grad_norm - expected.grad_norm).abs() < 1e-4, "{step}: {report:?} {expected:?}");
        if step == 2 {
            device.save_state(folder.path(), &run, None).unwrap();
            device = trainer().on_device();
            device.resume(folder.path(), &run).unwrap();
        }
    }
    close(&values(&device), &values(&host), 2e-6);
}

#[test]
fn a_cosine_schedule_with_warmup_is_that_of_transformers() {
    let mut config = TrainingConfig { steps: 11, warmup: 3, learning_rate: 1.0, ..TrainingConfig::default() };
    config.schedule = Schedule::Cosine;
    // get_cosine_schedule_with_warmup(optimizer, 3, 11).
    let expected = [
        0.0,
        0.333_333_333_333_333_3,
        0.666_666_666_666_666_6,
        1.0,
        0.961_939_766_255_643_4,
        0.853_553_390_593_273_7,
        0.691_341_716_182_544_9,
        0.5,
        0.308_658_283_817_455_1,
        0.146_446_609_406_726_27,
        0.038_060_233_744_356_6,
        0.0,
    ];
    for (step, expected) in expected.into_iter().enumerate() {
        assert!((config.rate(step as u64) - expected).abs() < 1e-12, "{step}");
    }
    config.schedule = Schedule::Constant;
    assert_eq!([2, 3, 10].map(|step| config.rate(step)), [2.0 / 3.0, 1.0, 1.0]);
    (config.warmup, config.schedule) = (20, Schedule::Linear);
    assert_eq!(config.rate(10), 0.5);
    assert!("step".parse::<Schedule>().unwrap_err().to_string().contains("constant, linear, cosine"));
}

#[test]
fn numbers_out_of_range_are_named() {
    let refused = |name: &str, change: fn(&mut TrainingConfig)| {
        let mut config = TrainingConfig::default();
        change(&mut config);
        let error = config.check().unwrap_err();
        assert!(error.kind() == ErrorKind::Input && error.message().starts_with(name), "{error}");
    };
    assert!(TrainingConfig::default().check().is_ok());
    refused("steps is 0", |config| config.steps = 0);
    refused("batch is 0", |config| config.batch = 0);
    refused("accumulate is 0", |config| config.accumulate = 0);
    refused("valid_every is 0", |config| config.valid_every = 0);
    refused("valid_batches is 0", |config| config.valid_batches = Some(0));
    refused("max_length is 0", |config| config.max_length = Some(0));
    refused("horizon is 0", |config| config.horizon = Some(0));
    refused("learning_rate is 0", |config| config.learning_rate = 0.0);
    refused("learning_rate is NaN", |config| config.learning_rate = f64::NAN);
    refused("clip is -1", |config| config.clip = Some(-1.0));
    refused("beta1 is 1", |config| config.betas[0] = 1.0);
    refused("beta2 is -0.1", |config| config.betas[1] = -0.1);
    refused("eps is inf", |config| config.eps = f64::INFINITY);
    refused("weight_decay is -1", |config| config.weight_decay = -1.0);
}

#[test]
fn options_read_back_are_the_same_and_differences_have_both_values() {
    let mut config = TrainingConfig::default();
    let mut rate = 0.123_456_789_123e-3;
    for _ in 0..2000 {
        rate *= 1.003_7;
        config.learning_rate = rate;
        config.weight_decay = rate * 0.37;
        let text = serde_json::to_string(&config).unwrap();
        let read: TrainingConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(config.differences(&read), Vec::<String>::new());
    }
    let before = TrainingConfig { learning_rate: 0.5, seed: 3, ..TrainingConfig::default() };
    let now = TrainingConfig { learning_rate: 0.25, seed: 3, clip: None, ..TrainingConfig::default() };
    assert_eq!(
        now.differences(&before),
        ["learning_rate: 0.5 before, 0.25 now", "clip: 1.0 before, null now"]
    );
}

#[test]
fn every_epoch_is_another_permutation_that_can_be_entered_anywhere() {
    let count = 50;
    let mut order = Order::new(count, 9);
    let epoch = |order: &mut Order, epoch: u64| -> Vec<usize> {
        (0..count as u64).map(|place| order.at(epoch * count as u64 + place)).collect()
    };
    let epochs: Vec<Vec<usize>> = (0..4).map(|number| epoch(&mut order, number)).collect();
    for (i, one) in epochs.iter().enumerate() {
        let mut sorted = one.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..count).collect::<Vec<_>>());
        assert!(epochs[..i].iter().all(|other| other != one));
    }
    assert_eq!(epoch(&mut order, 1), epochs[1]);
    assert_eq!(epoch(&mut Order::new(count, 9), 3), epochs[3]);
    assert_ne!(epoch(&mut Order::new(count, 10), 0), epochs[0]);
    assert_eq!(Order::new(1, 5).at(7), 0);
}

/// The tensors of a saved checkpoint.
fn saved(learner: &Learner) -> BTreeMap<String, (StorageType, Vec<usize>, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("saved");
    learner.save(&folder).unwrap();
    let checkpoint = Checkpoint::open(&folder.join("model.safetensors")).unwrap();
    let tensor = |stored: &crate::checkpoint::StoredTensor| {
        (stored.storage, stored.shape.clone(), stored.bytes.to_vec())
    };
    checkpoint.iter().map(|(name, stored)| (name.to_string(), tensor(stored))).collect()
}

/// Adds `step` to the variable `name`.
fn shift(learner: &Learner, name: &str, step: f64) -> Vec<f32> {
    let variable = learner.variables().get(name).expect(name);
    variable.set(&(variable.as_detached_tensor() + step).unwrap()).unwrap();
    variable.flatten_all().unwrap().to_vec1().unwrap()
}

fn rounded(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
}

#[test]
fn a_saved_checkpoint_keeps_untrained_tensors_and_the_types_of_trained_ones() {
    let model = model();
    let learner = learner(model.path(), Select::matching(r"^(line\.weight|stack\[1\])$").unwrap()).unwrap();
    assert_eq!(learner.variables().names(), ["line.weight", "stack[1]"]);
    assert_eq!(learner.variables().parameters(), 12);
    let untouched = saved(&learner);
    for (name, (storage, shape, found)) in &untouched {
        assert_eq!(*found, bytes(name, *storage, shape.iter().product()), "{name}");
    }
    let (line, second) = (shift(&learner, "line.weight", 0.3), shift(&learner, "stack[1]", -0.7));
    let after = saved(&learner);
    assert_eq!(after["line.bias"], untouched["line.bias"]);
    assert_eq!(after["line.weight"], (StorageType::BF16, vec![2, 3], rounded(&line)));
    let stack = [&untouched["stack"].2[..12], &rounded(&second)].concat();
    assert_eq!(after["stack"], (StorageType::BF16, vec![2, 2, 3], stack));
}

#[test]
fn values_that_are_not_finite_are_not_saved() {
    let model = model();
    let learner = learner(model.path(), Select::All).unwrap();
    shift(&learner, "line.bias", f64::INFINITY);
    let out = tempfile::tempdir().unwrap();
    let error = learner.save(&out.path().join("saved")).unwrap_err();
    assert!(error.kind() == ErrorKind::Compute && error.to_string().contains("line.bias"), "{error}");
    assert!(std::fs::read_dir(out.path()).unwrap().next().is_none());
}

#[test]
fn a_selection_without_tensors_is_an_error_with_names_of_the_checkpoint() {
    let model = model();
    let error = learner(model.path(), Select::matching("absent").unwrap()).err().unwrap().to_string();
    for word in ["absent", "line.bias", "line.weight", "stack"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(learner(model.path(), Select::None).is_err());
}

#[test]
fn a_new_run_does_not_replace_one_that_ended_between_two_folders() {
    let model = model();
    let out = tempfile::tempdir().unwrap();
    let data = texts(&["1 2 3 0.5 4"]);
    let run = |resume: bool| {
        let config = TrainingConfig { steps: 2, batch: 1, ..TrainingConfig::default() };
        let learner = learner(model.path(), Select::All).unwrap();
        let trainer = Trainer::new(learner, &data, config, Collation::default()).unwrap();
        let description = RunDescription::new("lines", "all", "rows");
        let run = match resume {
            true => Run::resume(trainer, None, out.path(), description),
            false => Run::new(trainer, None, out.path(), description),
        };
        run.and_then(|mut run| run.run(&mut |_| std::ops::ControlFlow::Continue(())))
    };
    assert_eq!(run(true).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(run(false).unwrap().steps, 2);
    for name in [".next", ".old"] {
        let (last, other) = (out.path().join(LAST), out.path().join(name));
        std::fs::rename(&last, &other).unwrap();
        assert!(run(false).unwrap_err().to_string().contains("has a run"), "{name}");
        assert_eq!(run(true).unwrap().steps, 2);
        std::fs::rename(&other, &last).unwrap();
    }
    // What a killed process left half-written is removed.
    for name in ["..next.7.partial", ".best.7.partial", "..next.7.old"] {
        std::fs::create_dir(out.path().join(name)).unwrap();
    }
    run(true).unwrap();
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1);
}

/// A run of two rows in `out`, with validation in two batches after every second step of four.
fn run_in<R>(out: &Path, model: &Path, resume: bool, each: impl FnOnce(Result<Run>) -> R) -> R {
    let data = ["1 2 3 0.5 4", "-1 0.5 2 1 2"];
    let (rows, held) = (texts(&data), texts(&[&data[..], &data[..1]].concat()));
    let config = TrainingConfig { steps: 4, batch: 2, learning_rate: 1e-3, ..TrainingConfig::default() };
    let config = TrainingConfig { valid_every: 2, ..config };
    let learner = learner(model, Select::All).unwrap();
    let trainer = Trainer::new(learner, &rows, config, Collation::default()).unwrap();
    let description = RunDescription::new("lines", "all", "rows");
    each(match resume {
        true => Run::resume(trainer, Some(&held), out, description),
        false => Run::new(trainer, Some(&held), out, description),
    })
}

#[test]
fn a_folder_takes_one_run_at_a_time() {
    let (model, out) = (model(), tempfile::tempdir().unwrap());
    run_in(out.path(), model.path(), false, |first| {
        let mut first = first.unwrap();
        for resume in [false, true] {
            let error = run_in(out.path(), model.path(), resume, |second| second.err().unwrap());
            assert!(error.to_string().contains("another run is writing to the folder"), "{error}");
        }
        assert_eq!(first.run(&mut |_| ControlFlow::Continue(())).unwrap().steps, 4);
    });
    run_in(out.path(), model.path(), true, |again| assert!(again.is_ok()));
}

/// The validations that `run` tells, and its outcome; it breaks at the event `stop`, counted from 0.
fn validations(run: &mut Run, stop: Option<usize>) -> (Vec<(u64, f64)>, Outcome) {
    let (mut seen, mut number) = (Vec::new(), 0);
    let outcome = run.run(&mut |event| {
        if let Event::Validated { step, loss, .. } = event {
            seen.push((*step, *loss));
        }
        number += 1;
        match stop == Some(number - 1) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    (seen, outcome.unwrap())
}

#[test]
fn a_run_that_is_stopped_at_any_event_goes_on_to_the_same_validations() {
    let model = model();
    let whole = tempfile::tempdir().unwrap();
    let (all, best) = run_in(whole.path(), model.path(), false, |run| {
        let (all, outcome) = validations(&mut run.unwrap(), None);
        assert!(!outcome.stopped);
        (all, outcome.best)
    });
    assert_eq!(all.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 2, 4]);
    let weights = |out: &Path| std::fs::read(out.join(LAST).join("training_state.safetensors")).unwrap();
    // Three validations of three events each, four steps, two saved states.
    for stop in 0..15 {
        let out = tempfile::tempdir().unwrap();
        let mut seen =
            run_in(out.path(), model.path(), false, |run| validations(&mut run.unwrap(), Some(stop)).0);
        run_in(out.path(), model.path(), true, |run| {
            let (more, outcome) = validations(&mut run.unwrap(), None);
            seen.extend(more);
            assert_eq!((outcome.steps, outcome.best, outcome.stopped), (4, best, false), "{stop}");
        });
        assert_eq!(seen, all, "{stop}");
        assert!(weights(out.path()) == weights(whole.path()), "{stop}");
    }
}

#[test]
fn a_state_that_is_damaged_or_newer_is_refused_and_stays() {
    let (model, out) = (model(), tempfile::tempdir().unwrap());
    run_in(out.path(), model.path(), false, |run| validations(&mut run.unwrap(), None));
    let last = out.path().join(LAST);
    let refused = |file: &str, change: &dyn Fn(&[u8]) -> Vec<u8>, kind: ErrorKind, words: &[&str]| {
        let path = last.join(file);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(&before)).unwrap();
        let error = run_in(out.path(), model.path(), true, |run| run.err().unwrap());
        assert_eq!(error.kind(), kind, "{error}");
        let error = error.to_string();
        assert!(error.contains(file) && words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), change(&before));
        std::fs::write(&path, before).unwrap();
    };
    let description = "training_state.json";
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    refused(description, &half, ErrorKind::Format, &["damaged", "another folder"]);
    refused(description, &|_| Vec::new(), ErrorKind::Format, &["damaged"]);
    refused("training_state.safetensors", &half, ErrorKind::Format, &[]);
    let newer = |bytes: &[u8]| {
        let mut state: Value = serde_json::from_slice(bytes).unwrap();
        state["format"] = json!(2);
        state["run"] = json!("of another form");
        state.to_string().into_bytes()
    };
    refused(description, &newer, ErrorKind::Unsupported, &["format 2", "latest known is 1", "newer version"]);
    // The first states have no number of their format.
    let path = last.join(description);
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for field in ["format", "validated"] {
        state.as_object_mut().unwrap().remove(field).unwrap();
    }
    std::fs::write(&path, state.to_string()).unwrap();
    run_in(out.path(), model.path(), true, |run| assert!(run.is_ok()));
}

#[test]
fn best_weights_that_were_moved_away_come_back() {
    let (model, out) = (model(), tempfile::tempdir().unwrap());
    run_in(out.path(), model.path(), false, |run| validations(&mut run.unwrap(), None));
    let (best, moved) = (out.path().join(BEST), out.path().join(".best.7.old"));
    std::fs::rename(&best, &moved).unwrap();
    run_in(out.path(), model.path(), true, |run| assert!(run.is_ok()));
    assert!(best.join("model.safetensors").is_file() && !moved.exists());
}

#[test]
fn products_in_bfloat16_train_float32_masters_of_the_types_of_the_release() {
    let (model, data) = (model(), texts(&["1 2 3 0.5 4", "-1 0.5 2 1 2"]));
    let runtime = Runtime::cpu().with_precision(Precision::Bf16);
    let options = LoadOptions { runtime, ..LoadOptions::default() };
    let zoo = Zoo::new([&LINES]);
    let trained = Trained::weights(Select::All);
    let learner = Learner::open(&zoo, model.path().to_str().unwrap(), &options, trained).unwrap();
    let config = TrainingConfig { batch: 2, learning_rate: 0.05, ..TrainingConfig::default() };
    let mut trainer = Trainer::new(learner, &data, config, Collation::default()).unwrap();
    let losses: Vec<f64> = (0..60).map(|_| trainer.step().unwrap().loss).collect();
    assert!(losses[59] < 0.2 * losses[0], "{losses:?}");
    let variables = trainer.learner().variables().all();
    assert!(variables.values().all(|variable| variable.dtype() == DType::F32));
    let is_rounded = |x: &f32| bf16::from_f32(*x).to_f32() == *x;
    assert!(!values(&trainer).iter().all(is_rounded));
    let types = saved(trainer.learner()).into_iter().map(|(name, (storage, ..))| (name, storage));
    let expected =
        [("line.bias", StorageType::F32), ("line.weight", StorageType::BF16), ("stack", StorageType::BF16)];
    assert_eq!(types.collect::<Vec<_>>(), expected.map(|(name, storage)| (name.to_string(), storage)));
}

#[test]
fn variables_are_float32() {
    let model = model();
    let learner = learner(model.path(), Select::All).unwrap();
    assert_eq!(learner.variables().names(), ["line.bias", "line.weight", "stack[0]", "stack[1]"]);
    assert!(learner.variables().all().values().all(|variable| variable.dtype() == DType::F32));
}
