//! AdamW.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Var};

use crate::grad::Gradients;
use crate::kernels::InvalidInput;
use crate::kernels::{memory, optimizer as kernel};
use crate::nn::back;
use crate::{Error, Result};

/// AdamW (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AdamW {
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// First and second moment of the gradient of a variable.
#[derive(Debug, Clone)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Default for AdamW {
    /// The defaults of torch: betas 0.9 and 0.999, epsilon 1e-8, weight decay 0.01.
    fn default() -> Self {
        Self::new([0.9, 0.999], 1e-8, 0.01)
    }
}

impl AdamW {
    /// No step taken yet, with these decay rates of the moments, this epsilon and this weight decay.
    pub fn new(betas: [f64; 2], eps: f64, weight_decay: f64) -> Self {
        Self { betas, eps, weight_decay, steps: 0, moments: BTreeMap::new() }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The first and second moment of the variable `name`, if it has had a gradient.
    pub(super) fn moments(&self, name: &str) -> Option<[&[f32]; 2]> {
        self.moments.get(name).map(|moments| [&moments.first[..], &moments.second[..]])
    }

    /// The same after `steps` steps that left these moments.
    pub(super) fn resumed(self, steps: u64, moments: BTreeMap<String, [Vec<f32>; 2]>) -> Self {
        let moments = moments.into_iter().map(|(name, [first, second])| (name, Moments { first, second }));
        Self { steps, moments: moments.collect(), ..self }
    }

    /// Changes `variables` by `gradients`, each multiplied by `scale`, at the learning rate `learning_rate`. Variables
    /// without a gradient are left as they are.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for variables on another device than the CPU.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        self.steps += 1;
        for (name, variable) in variables {
            let Some(gradient) = gradients.host(variable) else {
                match variable.device() {
                    Device::Cpu => continue,
                    _ => return Err(Error::unsupported("training on a GPU is not implemented")),
                }
            };
            let moments = self.moments.entry(name.clone()).or_insert_with(|| Moments {
                first: memory::zeros(gradient.len()),
                second: memory::zeros(gradient.len()),
            });
            let [first, second] = self.betas;
            let step = kernel::AdamW {
                rate: learning_rate,
                betas: (first, second),
                eps: self.eps,
                decay: self.weight_decay,
            };
            let number = self.steps;
            let update = |weights: &mut [f32]| {
                let Moments { first, second } = &mut *moments;
                let moments = kernel::Moments { first, second, largest: None };
                step.step(number, weights, gradient, scale as f32, moments)
            };
            change(variable, update)?;
        }
        Ok(())
    }
}

/// Lets `f` change the elements of `variable`, float32 on the CPU.
fn change(variable: &Var, f: impl FnMut(&mut [f32]) -> std::result::Result<(), InvalidInput>) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the step of the optimizer is outside the graph")]
    Ok(variable.inplace_op1(&Change(std::cell::RefCell::new(f)))?)
}

struct Change<F>(std::cell::RefCell<F>);

impl<F: FnMut(&mut [f32]) -> std::result::Result<(), InvalidInput>> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "optimizer step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(values), Some((start, end))) => {
                (self.0.borrow_mut())(&mut values[start..end]).map_err(|error| back::out(error.into()))?;
            }
            _ => candle_core::bail!("a variable that is not contiguous float32"),
        }
        Ok(())
    }
}
