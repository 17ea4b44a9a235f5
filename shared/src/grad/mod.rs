//! Gradients of variables, by the backward passes of a tape of operations and of the tensor library.
//!
//! A tensor requires a gradient if a variable led to it. Operations that have no backward pass refuse such a tensor with
//! an error that names the operation; a gradient is never cut silently.

mod tape;

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{DType, Tensor, TensorId, Var};

use crate::kernels::{elementwise, memory, optimizer};
use crate::nn::host;
use crate::runtime::kernels_take;
use crate::{Error, ErrorKind, Result, transfer};

pub use tape::Recording;
pub(crate) use tape::{Recorded, apply1, apply2, apply3, concat};

thread_local! {
    /// The gradients that the backward pass running on this thread accumulates.
    static OPEN: RefCell<Option<Gradients>> = const { RefCell::new(None) };
}

/// The gradients of a set of variables. Backward passes add to them until they are [cleared](Self::clear).
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use fauna_shared::grad::Gradients;
/// let x = Var::new(&[1f32, 2.0], &Device::Cpu)?;
/// let mut gradients = Gradients::of([&x]);
/// gradients.backward(&x.sqr()?.sum_all()?)?;
/// assert_eq!(gradients.get(&x)?.unwrap().to_vec1::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Gradients {
    /// The place in `all` of the gradient of each variable.
    places: HashMap<TensorId, usize>,
    /// In the order of the variables, so that sums over all do not depend on how a hash map orders them.
    all: Vec<Gradient>,
}

/// The gradient of one variable.
#[derive(Debug)]
enum Gradient {
    /// Float32 on the CPU, row-major; allocated when a backward pass first leads to the variable. `filled` is false if
    /// none did since the last [`clear`](Gradients::clear).
    Host { values: Vec<f32>, filled: bool, length: usize },
    /// Of a variable on another device or of another dtype, float32 on that device.
    Device(Option<Tensor>),
}

impl Gradients {
    /// No gradients yet, of `variables`.
    pub fn of<'a>(variables: impl IntoIterator<Item = &'a Var>) -> Self {
        let mut gradients = Self::default();
        for variable in variables {
            gradients.places.insert(variable.id(), gradients.all.len());
            gradients.all.push(match kernels_take(variable) {
                true => Gradient::Host { values: Vec::new(), filled: false, length: variable.elem_count() },
                false => Gradient::Device(None),
            });
        }
        gradients
    }

    /// [`of`](Self::of) as for variables on another device than the CPU.
    #[cfg(test)]
    pub(crate) fn as_on_device<'a>(variables: impl IntoIterator<Item = &'a Var>) -> Self {
        let mut gradients = Self::of(variables);
        gradients.all.iter_mut().for_each(|gradient| *gradient = Gradient::Device(None));
        gradients
    }

    fn find(&self, id: TensorId) -> Option<&Gradient> {
        self.places.get(&id).map(|place| &self.all[*place])
    }

    /// Computes the gradients of `loss`, a scalar, and adds them.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if an operation that led to `loss` has no backward pass.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        let outer = OPEN.replace(Some(std::mem::take(self)));
        let done = tape::run(loss);
        *self = OPEN.replace(outer).unwrap_or_default();
        done
    }

    /// Adds `gradient` to that of the variable `id`. Returns false if it is none of the variables.
    fn add_one(&mut self, id: TensorId, gradient: &Tensor) -> Result<bool> {
        match self.places.get(&id) {
            None => Ok(false),
            Some(place) => self.all[*place].add(gradient).map(|()| true),
        }
    }

    /// Forgets the gradients and keeps their memory for the next ones.
    pub fn clear(&mut self) {
        for gradient in &mut self.all {
            match gradient {
                Gradient::Host { filled, .. } => *filled = false,
                Gradient::Device(tensor) => *tensor = None,
            }
        }
    }

    /// The gradient of `variable`, of its shape, float32; `None` if no backward pass led to it.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn get(&self, variable: &Var) -> Result<Option<Tensor>> {
        Ok(match self.find(variable.id()) {
            Some(Gradient::Host { values, filled: true, .. }) => {
                Some(Tensor::from_slice(values, variable.shape(), variable.device())?)
            }
            Some(Gradient::Device(tensor)) => tensor.clone(),
            Some(Gradient::Host { .. }) | None => None,
        })
    }

    /// The L2 norm of all gradients.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn norm(&self) -> Result<f64> {
        let (mut squares, mut norms) = (0.0, Vec::new());
        for gradient in &self.all {
            match gradient {
                Gradient::Host { values, filled: true, .. } => squares += optimizer::sum_of_squares(values),
                Gradient::Device(Some(tensor)) => norms.push(tensor.sqr()?.sum_all()?.sqrt()?),
                _ => {}
            }
        }
        if !norms.is_empty() {
            let norms: Vec<f32> = transfer::to_host(&Tensor::stack(&norms, 0)?)?;
            squares += optimizer::sum_of_squares(&norms);
        }
        Ok(squares.sqrt())
    }

    /// The elements of [`get`](Self::get) of a float32 variable on the CPU, row-major.
    pub(crate) fn host(&self, variable: &Var) -> Option<&[f32]> {
        match self.find(variable.id()) {
            Some(Gradient::Host { values, filled: true, .. }) => Some(values),
            _ => None,
        }
    }
}

impl Gradient {
    fn add(&mut self, new: &Tensor) -> Result<()> {
        match self {
            Self::Host { values, filled: true, .. } => {
                host::saved(&new.detach(), |new| elementwise::add_to(new, values))?;
            }
            Self::Host { values, filled, .. } => {
                *values = transfer::to_host(&new.detach())?;
                *filled = true;
            }
            Self::Device(sum) => {
                let new = new.detach().to_dtype(DType::F32)?;
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + new)?,
                    None => new,
                });
            }
        }
        Ok(())
    }
}

/// Lets `write(gradient, accumulate)` write the gradient of `variable`, float32 on the CPU, into the memory of the
/// [`Gradients`] or of the tape of this thread's backward pass: over it, or added to it if `accumulate`. Returns false, and
/// calls nothing, if `variable` is none of its variables and no recorded output: its gradient is then added by others.
///
/// # Errors
/// Those of the tensor library.
pub(crate) fn deliver(variable: &Tensor, write: impl FnOnce(&mut [f32], bool)) -> Result<bool> {
    let mut write = Some(write);
    let is_variable = OPEN.with_borrow_mut(|open| {
        let Some(gradients) = open else { return false };
        let Some(place) = gradients.places.get(&variable.id()) else { return false };
        let Gradient::Host { values, filled, length } = &mut gradients.all[*place] else { return false };
        if values.len() != *length {
            *values = memory::zeros(*length);
        }
        if let Some(write) = write.take() {
            write(values, std::mem::replace(filled, true));
        }
        true
    });
    match write {
        Some(write) if !is_variable => tape::deliver(variable, write),
        _ => Ok(is_variable),
    }
}

/// Calls `f` with the gradients of this thread's backward pass. Returns false without one.
fn open(f: impl FnOnce(&mut Gradients) -> Result<bool>) -> Result<bool> {
    OPEN.with_borrow_mut(|open| open.as_mut().map_or(Ok(false), f))
}

/// Refuses `x` if it requires a gradient, for an operation without a backward pass.
///
/// # Errors
/// [`Compute`](ErrorKind::Compute) with the name of the operation.
///
/// ```
/// use candle_core::{Device, Var};
/// let x = Var::new(&[1f32], &Device::Cpu)?;
/// let error = fauna_shared::grad::refuse(&x, "argmax").unwrap_err();
/// assert!(error.to_string().contains("argmax has no backward pass"));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn refuse(x: &Tensor, operation: &str) -> Result<()> {
    match x.track_op() {
        false => Ok(()),
        true => Err(Error::new(
            ErrorKind::Compute,
            format!("{operation} has no backward pass, and its input requires a gradient"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn gradients_of_several_passes_are_added_and_cleared() {
        let x = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let unused = Var::new(&[1f32], &Device::Cpu).unwrap();
        let mut gradients = Gradients::of([&x, &unused]);
        let loss = |factor: f64| (x.sqr().unwrap() * factor).unwrap().sum_all().unwrap();
        gradients.backward(&loss(1.0)).unwrap();
        gradients.backward(&loss(2.0)).unwrap();
        assert_eq!(gradients.get(&x).unwrap().unwrap().to_vec1::<f32>().unwrap(), [6.0, 12.0]);
        assert!(gradients.get(&unused).unwrap().is_none());
        gradients.clear();
        assert!(gradients.get(&x).unwrap().is_none());
        gradients.backward(&loss(1.0)).unwrap();
        assert_eq!(gradients.host(&x).unwrap(), [2.0, 4.0]);
    }

    #[test]
    fn a_gradient_is_delivered_to_the_running_pass_only() {
        let x = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        assert!(!deliver(&x, |_, _| unreachable!("no backward pass is running")).unwrap());
    }
}
