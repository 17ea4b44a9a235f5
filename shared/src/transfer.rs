//! Counted copies between host (CPU) and device memory.
//!
//! On a GPU each copy is a synchronization, so a decoding step should make few of them. Code that runs once per
//! decoding step or per layer copies with [`to_host`] and [`to_device`]. With the CPU kernels off
//! ([`Runtime::set_kernels`](crate::runtime::Runtime::set_kernels)) the CPU counts as a device, so that the number of
//! copies can be tested without a GPU.

use std::cell::Cell;

use candle_core::{Device, Shape, Tensor, WithDType};

use crate::Result;
use crate::runtime::kernels_serve;

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

/// Copies the elements of `x`, of any shape, to the host, in row-major order.
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if the dtype of `x` is not `T`.
pub fn to_host<T: WithDType>(x: &Tensor) -> Result<Vec<T>> {
    if !kernels_serve(x.device()) {
        let made = MADE.get();
        MADE.set(Transfers { to_host: made.to_host + 1, ..made });
    }
    Ok(x.flatten_all()?.to_vec1()?)
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
    use super::*;

    #[test]
    fn cpu_tensors_are_not_counted() {
        let before = Transfers::made();
        let x = to_device(vec![1f32, 2.0], (1, 2), &Device::Cpu).unwrap();
        assert_eq!(to_host::<f32>(&x).unwrap(), [1.0, 2.0]);
        assert_eq!(Transfers::made() - before, Transfers::default());
        assert!(to_device(vec![1f32], (1, 2), &Device::Cpu).is_err() && to_host::<u32>(&x).is_err());
    }
}
