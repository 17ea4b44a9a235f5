//! The method `train_step` of parity cases: loss, gradients, and weights after one step of AdamW.

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use crate::grad::Recording;
use crate::item::Tensors;
use crate::train::{AdamW, Learner, Trained};
use crate::weights::Select;
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, Result, transfer};

/// Number of elements of each variable that a case stores.
const SAMPLE: usize = 64;

/// Trains all weights of `source` for one step. Returns `loss` and its parts, `grad_norm`, and for each variable `NAME`
/// that has a gradient [`SAMPLE`] elements of `grad.NAME` and, after the step, of `weight.NAME`.
///
/// The options `learning_rate`, `betas`, `eps` and `weight_decay` are those of AdamW; the others are the loss's.
pub(super) fn run(
    zoo: &Zoo,
    source: &str,
    load: &LoadOptions,
    inputs: &Tensors,
    options: &Value,
    expected: &Tensors,
) -> Result<Tensors> {
    let mut options = options.as_object().cloned().unwrap_or_default();
    let mut number = |name: &str| number(&mut options, name);
    let (learning_rate, eps, weight_decay) =
        (number("learning_rate")?, number("eps")?, number("weight_decay")?);
    let betas = serde_json::from_value(options.remove("betas").unwrap_or_default())
        .map_err(|e| Error::input(format!("options.betas: {e}")))?;
    let mut learner = Learner::open(zoo, source, load, Trained::weights(Select::All))?;
    let recording = Recording::new();
    let loss = learner.loss(inputs, &Value::Object(options))?;
    let mut gradients = learner.gradients();
    gradients.backward(&loss.value)?;
    drop(recording);
    let variables = learner.variables().all();
    let mut returned = Tensors::from([("loss".to_string(), loss.value.detach())]);
    returned.extend(loss.parts.into_iter().map(|(name, part)| (name, part.detach())));
    let mut squares = 0.0;
    for (name, variable) in &variables {
        if let Some(gradient) = gradients.get(variable)? {
            let values = values(&gradient)?;
            squares += values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            returned.insert(format!("grad.{name}"), sample(&values)?);
        }
    }
    returned.insert("grad_norm".into(), Tensor::new(squares.sqrt() as f32, &Device::Cpu)?);
    let mut optimizer = AdamW::new(betas, eps, weight_decay);
    optimizer.step(&variables, &gradients, learning_rate, 1.0)?;
    for (name, variable) in &variables {
        returned.insert(format!("weight.{name}"), sample(&values(&variable.as_detached_tensor())?)?);
    }
    // Every variable with a gradient must be expected, except for rounding noise.
    let largest =
        |tensor: &Tensor| -> Result<f32> { Ok(values(tensor)?.iter().fold(0f32, |a, b| a.max(b.abs()))) };
    for (name, gradient) in &returned {
        let is_gradient = name.starts_with("grad.") && !expected.contains_key(name);
        if is_gradient && f64::from(largest(gradient)?) > 1e-6 * squares.sqrt().max(1e-6) {
            return Err(Error::input(format!("the case expects no {name}, which is not zero")));
        }
    }
    Ok(returned)
}

fn number(options: &mut Map<String, Value>, name: &str) -> Result<f64> {
    options
        .remove(name)
        .and_then(|value| value.as_f64())
        .ok_or_else(|| Error::input(format!("options.{name} is missing or not a number")))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    transfer::to_host(&tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
}

/// Up to [`SAMPLE`] elements at even distances.
fn sample(values: &[f32]) -> Result<Tensor> {
    let count = values.len().min(SAMPLE);
    let picked: Vec<f32> = (0..count).map(|i| values[i * values.len() / count]).collect();
    Ok(Tensor::from_vec(picked, count, &Device::Cpu)?)
}
