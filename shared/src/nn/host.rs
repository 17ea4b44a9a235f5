//! Access to the slices of candle tensors for the CPU kernels.

use candle_core::{CpuStorage, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};

use crate::kernels::matmul::Elem;
use crate::kernels::memory;
use crate::runtime::kernels_take;
use crate::{Error, Result, grad};

/// Whether `x` can use the CPU kernels: float32 on the CPU, kernels not turned off, and no gradient required (then the
/// operations of candle are used).
pub(crate) fn serves(x: &Tensor) -> bool {
    kernels_take(x) && !x.track_op()
}

/// Whether all of `xs`, inputs and parameters, can use the CPU kernels.
pub(crate) fn serve<'a>(xs: impl IntoIterator<Item = &'a Tensor>) -> bool {
    xs.into_iter().all(serves)
}

/// Calls `f` with the elements of `x`, a float32 CPU tensor, in row-major order. Copies `x` only if it is not
/// contiguous.
///
/// # Errors
/// [`Compute`](crate::ErrorKind::Compute) with the name of the caller if `x` requires a gradient.
pub(crate) fn read<R, F: FnOnce(&[f32]) -> R>(x: &Tensor, f: F) -> Result<R> {
    if x.track_op() {
        grad::refuse(x, &caller::<F>())?;
    }
    saved(x, f)
}

/// [`read`] in the backward pass of an operation, of a tensor of the forward pass.
pub(crate) fn saved<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let start = layout.start_offset();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(not_host());
    };
    Ok(f(&values[start..start + x.elem_count()]))
}

/// [`saved`] of three tensors at once.
pub(crate) fn saved_three<R>(
    [a, b, c]: [&Tensor; 3],
    f: impl FnOnce(&[f32], &[f32], &[f32]) -> R,
) -> Result<R> {
    saved(a, |a| saved(b, |b| saved(c, |c| f(a, b, c))))??
}

/// [`read_strided`] in the backward pass of an operation, of a tensor of the forward pass.
pub(crate) fn saved_strided<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(not_host());
    };
    Ok(f(&values[layout.start_offset()..]))
}

/// The name of the function that a closure of type `F` is in.
fn caller<F>() -> String {
    let name = std::any::type_name::<F>();
    let name = name.split("::{{closure}}").next().unwrap_or(name);
    name.rsplit("::").take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("::")
}

/// Calls `f` with the storage of the CPU tensor `x`, starting at its first element, to be used with `x.stride()`.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_strided<T: WithDType, R, F: FnOnce(&[T]) -> R>(x: &Tensor, f: F) -> Result<R> {
    if x.track_op() {
        grad::refuse(x, &caller::<F>())?;
    }
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(values) = &*storage else {
        return Err(not_host());
    };
    Ok(f(&values.as_slice::<T>()?[layout.start_offset()..]))
}

/// Returns a copy of `x` whose elements `f` changes in place.
pub(crate) fn map(x: &Tensor, f: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let mut values = read(x, memory::copy)?;
    f(&mut values);
    Ok(Tensor::from_vec(values, x.shape(), &Device::Cpu)?)
}

/// Returns a tensor of the shape of `x` that `f(x, y, out)` fills.
pub(crate) fn zip(x: &Tensor, y: &Tensor, f: impl FnOnce(&[f32], &[f32], &mut [f32])) -> Result<Tensor> {
    if x.dims() != y.dims() {
        return Err(Error::new(
            crate::ErrorKind::Compute,
            format!("expected equal shapes, found {:?} and {:?}", x.dims(), y.dims()),
        ));
    }
    let mut out = memory::zeros(x.elem_count());
    read(x, |x| read(y, |y| f(x, y, &mut out)))??;
    Ok(Tensor::from_vec(out, x.shape(), &Device::Cpu)?)
}

/// Converts little-endian elements to f32.
pub(crate) fn widen(elem: Elem, raw: &[u8], out: &mut [f32]) {
    match elem {
        Elem::F32 => {
            for (value, raw) in out.iter_mut().zip(raw.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*raw);
            }
        }
        Elem::Bf16 => {
            for (value, raw) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*raw).to_f32();
            }
        }
        Elem::F16 => {
            for (value, raw) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*raw).to_f32();
            }
        }
    }
}

fn not_host() -> Error {
    Error::new(crate::ErrorKind::Compute, "a CPU kernel was given a tensor that is not float32 on the CPU")
}
