//! Copies between the CPU's memory and a device's, counted.
//!
//! On a GPU each of them makes the program wait, so that a step of decoding is to make few. What runs once a step or once
//! a layer copies by [`to_host`] and [`to_device`]. With the CPU kernels off
//! ([`Runtime::set_kernels`](crate::runtime::Runtime::set_kernels)) the CPU counts as a device, so that a test without a
//! GPU can hold the number.

use std::cell::Cell;

use candle_core::{Device, Shape, Tensor, WithDType};

use crate::Result;
use crate::runtime::kernels_serve;

/// How many copies were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transfers {
    /// From a device to the CPU's memory: each waits for all that was computed before.
    pub to_host: u64,
    /// From the CPU's memory to a device.
    pub to_device: u64,
}

thread_local! {
    static MADE: Cell<Transfers> = const { Cell::new(Transfers { to_host: 0, to_device: 0 }) };
}

impl Transfers {
    /// Those that this thread has made so far.
    pub fn made() -> Self {
        MADE.get()
    }
}

impl std::ops::Sub for Transfers {
    type Output = Self;

    /// Those made since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self { to_host: self.to_host - earlier.to_host, to_device: self.to_device - earlier.to_device }
    }
}

/// The elements of `x`, row-major.
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if its elements are no `T`.
pub fn to_host<T: WithDType>(x: &Tensor) -> Result<Vec<T>> {
    if !kernels_serve(x.device()) {
        let made = MADE.get();
        MADE.set(Transfers { to_host: made.to_host + 1, ..made });
    }
    Ok(x.flatten_all()?.to_vec1()?)
}

/// `values` as a tensor of `shape` on `device`.
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) if the shape has another number of elements.
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
    fn what_stays_on_the_cpu_is_no_copy_between_devices() {
        let before = Transfers::made();
        let x = to_device(vec![1f32, 2.0], (1, 2), &Device::Cpu).unwrap();
        assert_eq!(to_host::<f32>(&x).unwrap(), [1.0, 2.0]);
        assert_eq!(Transfers::made() - before, Transfers::default());
        assert!(to_device(vec![1f32], (1, 2), &Device::Cpu).is_err() && to_host::<u32>(&x).is_err());
    }
}
