//! Counted copies between host (CPU) and device memory.
//!
//! On a GPU each copy is a synchronization, so a decoding step should make few of them. Code that runs once per
//! decoding step or per layer copies with [`to_host`] and [`to_device`]. With the CPU kernels off
//! ([`Runtime::set_kernels`](crate::runtime::Runtime::set_kernels)) the CPU counts as a device, so that the number of
//! copies can be tested without a GPU.

use std::cell::Cell;

use candle_core::{Device, Shape, Tensor, WithDType};

use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result, grad};

/// Number of copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Copies from a device to the host; each waits for all previous operations.
    pub to_host: u64,
    /// Copies from the host to a device.
    pub to_device: u64,
}

thread_local! {
    static MADE: Cell<Transfers> = const { Cell::new(Transfers { to_host: 0, to_device: 0 }) };
}

impl Transfers {
    /// Returns the number of copies made by this thread so far.
    pub fn made() -> Self {
        MADE.get()
    }
}

impl std::ops::Sub for Transfers {
    type Output = Self;

    /// Returns the number of copies made since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self { to_host: self.to_host - earlier.to_host, to_device: self.to_device - earlier.to_device }
    }
}

/// Copies the elements of `x`, of any shape, to the host, in row-major order. The gradient of values on the host is lost:
/// a tensor that requires one is [detached](Tensor::detach) where it is read on purpose.
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if the dtype of `x` is not `T`, or `x` requires a gradient.
#[track_caller]
pub fn to_host<T: WithDType>(x: &Tensor) -> Result<Vec<T>> {
    if x.track_op() {
        refuse(x, std::panic::Location::caller())?;
    }
    if !kernels_serve(x.device()) {
        let made = MADE.get();
        MADE.set(Transfers { to_host: made.to_host + 1, ..made });
    }
    #[expect(clippy::disallowed_methods, reason = "it requires no gradient")]
    Ok(x.flatten_all()?.to_vec1()?)
}

/// [`to_host`] of the rows of a matrix.
///
/// # Errors
/// As [`to_host`]; [`Compute`](crate::ErrorKind::Compute) if `x` has not two axes.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu)?;
/// assert_eq!(fauna_shared::transfer::rows::<u32>(&x)?, [[1, 2], [3, 4]]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[track_caller]
pub fn rows<T: WithDType>(x: &Tensor) -> Result<Vec<Vec<T>>> {
    let (count, width) = x.dims2()?;
    let values = to_host(x)?;
    let row = |i: usize| values[i * width..(i + 1) * width].to_vec();
    Ok((0..count).map(row).collect())
}

/// [`to_host`] of a scalar.
///
/// # Errors
/// As [`to_host`]; [`Compute`](crate::ErrorKind::Compute) if `x` has another number of elements than one.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use fauna_shared::transfer::scalar;
/// let x = Var::new(&[1f32, 2.0], &Device::Cpu)?.sum_all()?;
/// assert_eq!(scalar::<f32>(&x.detach())?, 3.0);
/// assert!(scalar::<f32>(&x).unwrap_err().to_string().contains("requires a gradient"));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[track_caller]
pub fn scalar<T: WithDType>(x: &Tensor) -> Result<T> {
    match to_host(x)?.as_slice() {
        [value] => Ok(*value),
        _ => Err(Error::new(ErrorKind::Compute, format!("{:?}, expected a scalar", x.dims()))),
    }
}

/// Refuses `x`, which requires a gradient, with the line of the code that reads it.
fn refuse(x: &Tensor, caller: &std::panic::Location) -> Result<()> {
    grad::refuse(x, &format!("the copy to the host in {}:{}", caller.file(), caller.line()))
}

/// Copies `values` to a tensor of shape `shape` on `device`.
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if the number of elements does not match the shape.
pub fn to_device<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    if !kernels_serve(device) {
        let made = MADE.get();
        MADE.set(Transfers { to_device: made.to_device + 1, ..made });
    }
    Ok(Tensor::from_vec(values, shape.into(), device)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    #[test]
    fn a_tensor_that_requires_a_gradient_is_not_read_silently() {
        let x = Var::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
        let doubled = (x.as_tensor() * 2.0).unwrap();
        for said in [
            to_host::<f32>(&doubled).unwrap_err().to_string(),
            rows::<f32>(&doubled).unwrap_err().to_string(),
            scalar::<f32>(&doubled.sum_all().unwrap()).unwrap_err().to_string(),
        ] {
            assert!(said.contains("has no backward pass") && said.contains("transfer.rs"), "{said}");
        }
        assert_eq!(rows::<f32>(&doubled.detach()).unwrap(), [[2.0, 4.0]]);
        assert!(rows::<f32>(&doubled.flatten_all().unwrap().detach()).is_err());
        assert!(scalar::<f32>(&doubled.detach()).is_err());
        assert_eq!(
            rows::<f32>(&Tensor::zeros((2, 0), candle_core::DType::F32, &Device::Cpu).unwrap())
                .unwrap()
                .len(),
            2
        );
    }

    #[test]
    fn cpu_tensors_are_not_counted() {
        let before = Transfers::made();
        let x = to_device(vec![1f32, 2.0], (1, 2), &Device::Cpu).unwrap();
        assert_eq!(to_host::<f32>(&x).unwrap(), [1.0, 2.0]);
        assert_eq!(Transfers::made() - before, Transfers::default());
        assert!(to_device(vec![1f32], (1, 2), &Device::Cpu).is_err() && to_host::<u32>(&x).is_err());
    }
}
