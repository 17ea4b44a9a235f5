//! AdamW.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor, Var};

use crate::grad::Gradients;
use crate::kernels::InvalidInput;
use crate::kernels::{memory, optimizer as kernel};
use crate::nn::back;
use crate::{Result, transfer};

/// AdamW (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW`.
///
/// Float32 variables on the CPU are changed by a kernel, all others by the operations of their device, without a copy to
/// the host. Moments are float32, on the device of the variable. A variable of another dtype has a float32 master: steps
/// change the master, and the variable is the master rounded to its dtype.
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
    /// The float32 values of the variables of other dtypes, on their devices.
    masters: BTreeMap<String, Tensor>,
}

/// First and second moment of the gradient of a variable.
#[derive(Debug, Clone)]
enum Moments {
    /// Of a float32 variable on the CPU, row-major.
    Host { first: Vec<f32>, second: Vec<f32> },
    /// Float32 tensors of the shape and on the device of the variable.
    Device { first: Tensor, second: Tensor },
}

/// The state of a variable between steps.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept {
    /// First and second moment of the gradient, float32, row-major.
    pub moments: [Vec<f32>; 2],
    /// The float32 value of a variable of another dtype.
    pub master: Option<Vec<f32>>,
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
        Self { betas, eps, weight_decay, steps: 0, moments: BTreeMap::new(), masters: BTreeMap::new() }
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state of the variable `name`, if it has had a gradient.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub(super) fn kept(&self, name: &str) -> Result<Option<Kept>> {
        let Some(moments) = self.moments.get(name) else { return Ok(None) };
        let moments = match moments {
            Moments::Host { first, second } => [first.clone(), second.clone()],
            Moments::Device { first, second } => [transfer::to_host(first)?, transfer::to_host(second)?],
        };
        let master = self.masters.get(name).map(transfer::to_host).transpose()?;
        Ok(Some(Kept { moments, master }))
    }

    /// The same after `steps` steps that left this state of `variables`.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub(super) fn resumed(
        mut self,
        steps: u64,
        variables: &BTreeMap<String, Var>,
        kept: BTreeMap<String, Kept>,
    ) -> Result<Self> {
        self.steps = steps;
        for (name, Kept { moments: [first, second], master }) in kept {
            let Some(variable) = variables.get(&name) else { continue };
            if let Some(master) = master.filter(|_| variable.dtype() != DType::F32) {
                let master = transfer::to_device(master, variable.shape(), variable.device())?;
                self.masters.insert(name.clone(), master);
            }
            self.moments.insert(name, Moments::Host { first, second });
        }
        Ok(self)
    }

    /// Changes `variables` by `gradients`, each multiplied by `scale`, at the learning rate `learning_rate`. Variables
    /// without a gradient are left as they are.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        self.steps += 1;
        for (name, variable) in variables {
            match gradients.host(variable) {
                Some(gradient) => self.step_on_host(name, variable, gradient, learning_rate, scale)?,
                None => {
                    if let Some(gradient) = gradients.get(variable)? {
                        self.step_on_device(name, variable, &gradient, learning_rate, scale)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn step_on_host(
        &mut self,
        name: &str,
        variable: &Var,
        gradient: &[f32],
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        let [first, second] = self.betas;
        let step = kernel::AdamW {
            rate: learning_rate,
            betas: (first, second),
            eps: self.eps,
            decay: self.weight_decay,
        };
        let number = self.steps;
        let moments = match self.moments.remove(name) {
            Some(moments) => moments.on_host()?,
            None => [memory::zeros(gradient.len()), memory::zeros(gradient.len())],
        };
        let [mut first, mut second] = moments;
        let update = |weights: &mut [f32]| {
            let moments = kernel::Moments { first: &mut first, second: &mut second, largest: None };
            step.step(number, weights, gradient, scale as f32, moments)
        };
        change(variable, update)?;
        self.moments.insert(name.to_string(), Moments::Host { first, second });
        Ok(())
    }

    /// The formula of the kernel in the operations of the device.
    fn step_on_device(
        &mut self,
        name: &str,
        variable: &Var,
        gradient: &Tensor,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let gradient = (gradient.detach().to_dtype(DType::F32)? * scale)?;
        let (first, second) = match self.moments.remove(name) {
            Some(moments) => moments.on_device(variable)?,
            None => (gradient.zeros_like()?, gradient.zeros_like()?),
        };
        let first = ((first * beta1)? + (&gradient * (1.0 - beta1))?)?;
        let second = ((second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let value = match self.masters.get(name) {
            Some(master) => master.clone(),
            None => variable.as_detached_tensor().to_dtype(DType::F32)?,
        };
        let root = ((second.sqrt()? / correction(beta2).sqrt())? + self.eps)?;
        let change = ((&first / root)? * (learning_rate / correction(beta1)))?;
        let value = ((value * (1.0 - learning_rate * self.weight_decay))? - change)?;
        variable.set(&value.to_dtype(variable.dtype())?)?;
        if variable.dtype() != DType::F32 {
            self.masters.insert(name.to_string(), value);
        }
        self.moments.insert(name.to_string(), Moments::Device { first, second });
        Ok(())
    }
}

impl Moments {
    fn on_host(self) -> Result<[Vec<f32>; 2]> {
        match self {
            Self::Host { first, second } => Ok([first, second]),
            Self::Device { first, second } => Ok([transfer::to_host(&first)?, transfer::to_host(&second)?]),
        }
    }

    /// As tensors like `variable`.
    fn on_device(self, variable: &Var) -> Result<(Tensor, Tensor)> {
        let tensor = |values| transfer::to_device(values, variable.shape(), variable.device());
        match self {
            Self::Host { first, second } => Ok((tensor(first)?, tensor(second)?)),
            Self::Device { first, second } => Ok((first, second)),
        }
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
