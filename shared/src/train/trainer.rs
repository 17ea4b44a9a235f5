//! The training loop.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{DType, Tensor};

use super::{AdamW, Examples, Learner, Order, TrainingConfig};
use crate::grad::{Gradients, Recording};
use crate::model::{Collation, Loss};
use crate::{Error, ErrorKind, Result, transfer};

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Number of steps taken, this one included.
    pub step: u64,
    /// The loss, the mean over the batches of the step.
    pub loss: f64,
    /// Its named parts.
    pub parts: BTreeMap<String, f64>,
    /// The learning rate.
    pub learning_rate: f64,
    /// The norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// Tokens or time steps of the examples that were truncated.
    pub truncated: usize,
}

/// A model, its data, its optimizer, and how far training is.
pub struct Trainer<'a> {
    learner: Learner,
    config: TrainingConfig,
    collation: Collation,
    train: &'a dyn Examples,
    order: Order,
    optimizer: AdamW,
    gradients: Gradients,
    /// The number of steps after which the validation loss was computed last.
    validated: Option<u64>,
}

impl<'a> Trainer<'a> {
    /// Trains `learner` on `train`. `classes` and `statistics` of `collation` describe the data; its other options are
    /// those of `config`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if `train` is empty or a number of `config` is out of range.
    pub fn new(
        learner: Learner,
        train: &'a dyn Examples,
        config: TrainingConfig,
        collation: Collation,
    ) -> Result<Self> {
        config.check()?;
        if train.is_empty() {
            return Err(Error::input("the training data are empty"));
        }
        let collation = Collation {
            max_length: config.max_length,
            mask_prompt: config.mask_prompt,
            horizon: config.horizon,
            ..collation
        };
        Ok(Self {
            order: Order::new(train.len(), config.seed),
            optimizer: AdamW::new(config.betas, config.eps, config.weight_decay),
            gradients: learner.gradients(),
            learner,
            config,
            collation,
            train,
            validated: None,
        })
    }

    /// The model.
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// The model, to generate with it.
    pub fn learner_mut(&mut self) -> &mut Learner {
        &mut self.learner
    }

    /// The options.
    pub fn config(&self) -> &TrainingConfig {
        &self.config
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Goes on with the state of `optimizer`, and its number of steps.
    pub(super) fn set_state(&mut self, optimizer: AdamW, validated: Option<u64>) {
        (self.optimizer, self.validated) = (optimizer, validated);
    }

    /// The number of steps after which the validation loss was computed last.
    pub(super) fn validated(&self) -> Option<u64> {
        self.validated
    }

    /// The same with gradients and optimizer as on another device than the CPU.
    #[cfg(test)]
    pub(super) fn on_device(mut self) -> Self {
        self.gradients = Gradients::as_on_device(self.learner.variables().all().values());
        self
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// Takes the next step. A step that fails changes no weight.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) with the number of the step if the loss or the gradient is not finite;
    /// [`Input`](ErrorKind::Input) if no example of the step has anything that is learned; those of the data and of the
    /// loss.
    pub fn step(&mut self) -> Result<StepReport> {
        let step = self.steps();
        let learning_rate = self.config.rate(step);
        let (mut sum, mut terms, mut truncated) = (0.0, 0.0, 0);
        let mut parts = BTreeMap::new();
        self.gradients.clear();
        for part in 0..self.config.accumulate {
            let _recording = match self.config.recompute {
                true => Recording::recomputing(),
                false => Recording::new(),
            };
            let (loss, cut) = self.batch_loss(step, part)?;
            truncated += cut;
            if loss.terms == 0.0 {
                continue;
            }
            let (value, named) = values_of(&loss)?;
            if !value.is_finite() {
                return Err(not_finite("loss", value, step + 1));
            }
            self.gradients.backward(&(&loss.value * loss.terms)?)?;
            (sum, terms) = (sum + value * loss.terms, terms + loss.terms);
            for (name, part) in named {
                *parts.entry(name).or_insert(0.0) += part * loss.terms;
            }
        }
        if terms == 0.0 {
            return Err(nothing_to_learn(&format!("the examples of step {}", step + 1)));
        }
        let grad_norm = self.gradients.norm()? / terms;
        if !grad_norm.is_finite() {
            return Err(not_finite("norm of the gradient", grad_norm, step + 1));
        }
        // As torch.nn.utils.clip_grad_norm_.
        let clipped = self.config.clip.map_or(1.0, |most| (most / (grad_norm + 1e-6)).min(1.0));
        let variables = self.learner.variables().all();
        self.optimizer.step(&variables, &self.gradients, learning_rate, clipped / terms)?;
        parts.values_mut().for_each(|part| *part /= terms);
        Ok(StepReport { step: step + 1, loss: sum / terms, parts, learning_rate, grad_norm, truncated })
    }

    /// The loss of batch `part` of step `step`, and how much of its examples was truncated.
    fn batch_loss(&mut self, step: u64, part: usize) -> Result<(Loss, usize)> {
        let batch = self.config.batch as u64;
        let number = step * self.config.accumulate as u64 + part as u64;
        let places = number * batch..(number + 1) * batch;
        let examples =
            places.map(|place| self.train.get(self.order.at(place))).collect::<Result<Vec<_>>>()?;
        let seed = self.config.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let collation = Collation { seed, ..self.collation.clone() };
        let batch = self.learner.collate(&examples, &collation)?;
        Ok((self.learner.loss(&batch.inputs, &self.config.loss)?, batch.truncated))
    }

    /// The mean loss on `examples`, without a change of the weights.
    ///
    /// # Errors
    /// Those of the data and of the loss.
    pub fn validate(&mut self, examples: &dyn Examples) -> Result<f64> {
        let loss = self.validate_each(examples, &mut |_, _| ControlFlow::Continue(()))?;
        loss.ok_or_else(|| Error::new(ErrorKind::Cancelled, "the validation was stopped"))
    }

    /// [`validate`](Self::validate), which tells `each` after each batch the number of batches so far and of all. `None`
    /// where that breaks.
    pub(super) fn validate_each(
        &mut self,
        examples: &dyn Examples,
        each: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<f64>> {
        let (mut sum, mut terms) = (0.0, 0.0);
        let starts = (0..examples.len()).step_by(self.config.batch);
        let batches = starts.len().min(self.config.valid_batches.unwrap_or(usize::MAX));
        for (number, start) in starts.take(batches).enumerate() {
            let end = (start + self.config.batch).min(examples.len());
            let batch = (start..end).map(|i| examples.get(i)).collect::<Result<Vec<_>>>()?;
            // What is random is the same in every validation.
            let collation = Collation { seed: start as u64, ..self.collation.clone() };
            let batch = self.learner.collate(&batch, &collation)?;
            let loss = self.learner.evaluate(&batch.inputs, &self.config.loss)?;
            if loss.terms > 0.0 {
                sum += values_of(&loss)?.0 * loss.terms;
                terms += loss.terms;
            }
            if each(number + 1, batches).is_break() {
                return Ok(None);
            }
        }
        if terms == 0.0 {
            return Err(nothing_to_learn("the validation data"));
        }
        self.validated = Some(self.steps());
        Ok(Some(sum / terms))
    }
}

/// The value of `loss` and its named parts, by one copy to the host.
fn values_of(loss: &Loss) -> Result<(f64, Vec<(String, f64)>)> {
    let scalar = |x: &Tensor| Ok(x.detach().to_dtype(DType::F32)?.reshape(())?);
    let all = [&loss.value].into_iter().chain(loss.parts.values()).map(scalar);
    let all: Vec<f32> = transfer::to_host(&Tensor::stack(&all.collect::<Result<Vec<_>>>()?, 0)?)?;
    let parts = loss.parts.keys().cloned().zip(all[1..].iter().map(|part| f64::from(*part)));
    Ok((f64::from(all[0]), parts.collect()))
}

fn nothing_to_learn(what: &str) -> Error {
    Error::input(format!("{what} have nothing that is learned")).hint(
        "a maximum length may cut off all answers after their prompts: raise it, or leave such examples out",
    )
}

fn not_finite(what: &str, value: f64, step: u64) -> Error {
    Error::new(
        ErrorKind::Compute,
        format!("the {what} is {value} in step {step}; the weights are those before it"),
    )
    .hint("lower the learning rate, clip the gradient, or look for extreme values in the data")
}
