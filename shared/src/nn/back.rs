//! CPU kernels with a backward pass, used if a gradient is required.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use super::{Matrix, host};
use crate::kernels::matmul::{self, Compute, Dense, Layout as MatrixLayout, Matrices};
use crate::kernels::{memory, norm};
use crate::runtime::kernels_take;
use crate::{Error, Result, grad, transfer};

/// Whether `x` can use kernels with a backward pass: float32 on the CPU, kernels not turned off, with a gradient
/// required.
pub(super) fn serves(x: &Tensor) -> bool {
    kernels_take(x) && x.track_op()
}

/// Returns the elements of a contiguous float32 tensor in a custom operation of candle.
pub(super) fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let numbers = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers[start..end]),
        None => candle_core::bail!("a kernel was given a tensor that is not contiguous"),
    }
}

/// Converts an error of this library to one of candle.
pub(super) fn out(error: crate::Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

/// The gradient `values` of `x`, row-major, as a tensor of its shape.
fn tensor_of(values: Vec<f32>, x: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values, x.shape(), x.device())
}

/// `x · weightᵀ` with a frozen weight.
pub(super) struct Product {
    pub weight: Matrix,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let y = self.weight.multiply_host(x, None, None).map_err(out)?;
        Ok((CpuStorage::F32(y), with_last(layout, self.weight.outputs())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back =
            host::saved(grad, |grad| self.weight.multiply_back_host(grad)).map_err(out)?.map_err(out)?;
        tensor_of(back, x).map(Some)
    }
}

/// The weight `values`, `(outputs, inputs)` or `(inputs, outputs)` by `layout`.
pub(super) fn floats(
    values: &[f32],
    layout: MatrixLayout,
    outputs: usize,
    inputs: usize,
) -> Result<Dense<'_>> {
    Ok(match layout {
        MatrixLayout::OutIn => Dense::of_floats(values, outputs, inputs)?,
        MatrixLayout::InOut => Dense::of_floats(values, inputs, outputs)?.transposed(),
    })
}

/// The shape of `layout` with another last axis.
fn with_last(layout: &Layout, last: usize) -> Shape {
    let mut shape = layout.dims().to_vec();
    if let Some(end) = shape.last_mut() {
        *end = last;
    }
    shape.into()
}

/// `x · weightᵀ`, with gradients of both. The weight is `(outputs, inputs)` or `(inputs, outputs)` by its layout.
pub(super) struct VariableProduct {
    pub layout: MatrixLayout,
    pub compute: Compute,
}

impl VariableProduct {
    fn weight<'a>(&self, values: &'a [f32], shape: &Shape) -> Result<Dense<'a>> {
        let (rows, columns) = shape.dims2()?;
        let (outputs, inputs) = match self.layout {
            MatrixLayout::OutIn => (rows, columns),
            MatrixLayout::InOut => (columns, rows),
        };
        floats(values, self.layout, outputs, inputs)
    }

    /// The gradient of `x`.
    fn back_to_x(&self, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Tensor> {
        let mut back = memory::zeros(x.elem_count());
        host::saved(weight, |values| -> Result<()> {
            let transposed = self.weight(values, weight.shape())?.transposed();
            host::saved(grad, |grad| {
                let rows = back.len() / x.dim(candle_core::D::Minus1)?.max(1);
                matmul::linear(grad, rows, &transposed, None, self.compute, None, &mut back);
                Ok(())
            })?
        })??;
        Ok(Tensor::from_vec(back, x.shape(), x.device())?)
    }

    /// Writes the gradient of the weight to `out`, or adds it if `accumulate`.
    fn back_to_weight(&self, x: &Tensor, grad: &Tensor, out: &mut [f32], accumulate: bool) -> Result<()> {
        let (inputs, outputs) = (x.dim(candle_core::D::Minus1)?, grad.dim(candle_core::D::Minus1)?);
        let (x, grad) = (x.reshape(((), inputs))?.detach(), grad.reshape(((), outputs))?.detach());
        let (left, right) = match self.layout {
            MatrixLayout::OutIn => (grad, x),
            MatrixLayout::InOut => (x, grad),
        };
        let (rows, height) = left.dims2()?;
        let width = right.dim(1)?;
        let product = |out: &mut [f32]| {
            host::saved(&left.t()?.contiguous()?, |left| {
                host::saved(&right, |right| {
                    let a = Matrices { data: left, batch: 0, row: rows };
                    let b = Matrices { data: right, batch: 0, row: width };
                    matmul::matmul(1, [height, rows, width], a, b, MatrixLayout::InOut, out);
                })
            })?
        };
        if !accumulate {
            return product(out);
        }
        let mut more = memory::zeros(out.len());
        product(&mut more)?;
        out.iter_mut().zip(&more).for_each(|(sum, more)| *sum += more);
        Ok(())
    }
}

impl CustomOp2 for VariableProduct {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(x, x_layout)?;
        let (rows, columns) = weight_layout.shape().dims2()?;
        let weight = self.weight(numbers(weight, weight_layout)?, weight_layout.shape()).map_err(out)?;
        let (outputs, inputs) = match self.layout {
            MatrixLayout::OutIn => (rows, columns),
            MatrixLayout::InOut => (columns, rows),
        };
        let rows = x.len() / inputs.max(1);
        let mut y = memory::zeros(rows * outputs);
        matmul::linear(x, rows, &weight, None, self.compute, None, &mut y);
        Ok((CpuStorage::F32(y), with_last(x_layout, outputs)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let to_x = x.track_op().then(|| self.back_to_x(x, weight, &grad)).transpose().map_err(out)?;
        let to_weight =
            |gradient: &mut [f32], accumulate| self.back_to_weight(x, &grad, gradient, accumulate);
        Ok((to_x, delivered_or(weight, to_weight)?))
    }
}

/// The gradient of `x` that `write` writes; `None` if `x` is a variable of the running backward pass, to whose gradient
/// it was written, or requires none.
fn delivered_or(
    x: &Tensor,
    write: impl Fn(&mut [f32], bool) -> Result<()>,
) -> candle_core::Result<Option<Tensor>> {
    if !x.track_op() {
        return Ok(None);
    }
    let mut written = Ok(());
    if grad::deliver(x, |gradient, accumulate| written = write(gradient, accumulate)) {
        return written.map(|()| None).map_err(out);
    }
    let mut gradient = memory::zeros(x.elem_count());
    write(&mut gradient, false).map_err(out)?;
    tensor_of(gradient, x).map(Some)
}

/// The rows `ids` of `x`, `(count, width)`. Returns `(number of ids, width)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[1f32], [2.0], [3.0]], &Device::Cpu)?;
/// assert_eq!(fauna_shared::nn::select_rows(&x, &[2, 0])?.to_vec2::<f32>()?, [[3.0], [1.0]]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if an id is not below `count`.
pub fn select_rows(x: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let index = transfer::to_device(ids.to_vec(), ids.len(), x.device())?;
    match (kernels_take(x), x.track_op()) {
        (true, true) => Ok(x.contiguous()?.apply_op2(&index, Rows)?),
        (true, false) => {
            let width = x.dim(1)?;
            let rows = host::read(x, |x| gather(x, width, ids))??;
            Ok(Tensor::from_vec(rows, (ids.len(), width), x.device())?)
        }
        (false, _) => Ok(x.index_select(&index, 0)?),
    }
}

/// The rows `ids` of an embedding table, `(count, hidden_size)`, with a gradient of the table. Returns
/// `(number of ids, hidden_size)`.
pub(super) struct Rows;

impl CustomOp2 for Rows {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        table_layout: &Layout,
        ids: &CpuStorage,
        ids_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, width) = table_layout.shape().dims2()?;
        let ids = ids.as_slice::<u32>()?;
        let Some((start, end)) = ids_layout.contiguous_offsets() else {
            candle_core::bail!("ids that are not contiguous")
        };
        let rows = gather(numbers(table, table_layout)?, width, &ids[start..end]).map_err(out)?;
        Ok((CpuStorage::F32(rows), (end - start, width).into()))
    }

    fn bwd(
        &self,
        table: &Tensor,
        ids: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let width = table.dim(1)?;
        let ids: Vec<u32> = ids.to_vec1()?;
        let scatter = |gradient: &mut [f32], accumulate: bool| {
            if !accumulate {
                gradient.fill(0.0);
            }
            host::saved(grad, |grad| {
                for (id, row) in ids.iter().zip(grad.chunks_exact(width.max(1))) {
                    let sum = &mut gradient[*id as usize * width..][..width];
                    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                }
            })
        };
        Ok((delivered_or(table, scatter)?, None))
    }
}

/// The rows `ids` of `table`, `(count, width)`.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if an id is not below `count`.
pub(super) fn gather(table: &[f32], width: usize, ids: &[u32]) -> Result<Vec<f32>> {
    let count = table.len() / width.max(1);
    let mut rows = memory::zeros(ids.len() * width);
    for (id, row) in ids.iter().zip(rows.chunks_exact_mut(width.max(1))) {
        if *id as usize >= count {
            return Err(Error::input(format!(
                "id {id} is out of range for an embedding table of {count} rows"
            )));
        }
        row.copy_from_slice(&table[*id as usize * width..][..width]);
    }
    Ok(rows)
}

/// RMS norm over the last axis, `x / sqrt(mean(x²) + eps) * weight`.
pub(super) struct RmsNormed {
    pub weight: Tensor,
    pub eps: f64,
}

impl CustomOp1 for RmsNormed {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let mut y = memory::zeros(x.len());
        host::read(&self.weight, |weight| norm::rms_norm(x, weight, self.eps, &mut y)).map_err(out)?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut back = memory::zeros(x.elem_count());
        host::saved(&self.weight, |weight| {
            host::saved(x, |x| {
                host::saved(grad, |grad| norm::rms_norm_backward(x, weight, self.eps, grad, &mut back))
            })
        })
        .and_then(|done| done)
        .and_then(|done| done)
        .map_err(out)?;
        Tensor::from_vec(back, x.shape(), x.device()).map(Some)
    }
}
