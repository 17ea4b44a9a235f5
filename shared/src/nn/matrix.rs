//! Weight matrices of any storage.

use std::sync::{Arc, OnceLock};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use super::back::{Biased, Product, Rows, VariableProduct, floats, gather, weighted};
use super::low_rank::{LowRank, check, merged, updated, updated_rows};
use super::{Activation, blocks, host};
use crate::checkpoint::Bytes;
use crate::kernels::blocks::{self as kernel, BlockKind, Blocks};
use crate::kernels::matmul::{self, Compute, Dense, Elem, Layout};
use crate::kernels::memory;
use crate::kernels::mxfp4::{self, Mxfp4};
use crate::runtime::{kernels_serve, kernels_take};
use crate::{Error, ErrorKind, Result, grad, transfer};

/// A weight matrix, `(outputs, inputs)`. Cheap to clone: clones share the storage.
///
/// On the CPU it is read in place, usually from a memory-mapped file, without copying or repacking.
#[derive(Debug, Clone)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    storage: Storage,
    /// Updates by adapters.
    updates: Arc<[LowRank]>,
}

#[derive(Debug, Clone)]
enum Storage {
    /// Bytes on the CPU and, once a gradient is required, a copy as a float32 tensor.
    Host { bytes: Bytes, kind: Kind, widened: Arc<OnceLock<Tensor>> },
    /// A tensor `(outputs, inputs)` on another device.
    Device(Tensor),
    /// A float32 tensor on any device, `(outputs, inputs)` or `(inputs, outputs)` by its layout: a variable, or computed
    /// from variables.
    Variable { tensor: Tensor, layout: Layout, compute: Compute },
    /// Quantized blocks on another device; for an embedding table also on the CPU, since devices have no operation to
    /// look up rows of blocks.
    DeviceBlocks { tensor: Arc<QTensor>, rows: Option<(Bytes, BlockKind)> },
    /// Recorded as missing; loading fails before it is used.
    Absent,
}

#[derive(Debug, Clone)]
enum Kind {
    Dense(Elem, Layout, Compute),
    Blocks(BlockKind),
    /// The bytes are FP4 blocks; these are their scales.
    Mxfp4(Bytes, Compute),
}

/// Maximum number of rows of activations for which candle's quantized kernels are used on a device, which quantize
/// activations to 8 bits. For more rows (prompts and batches), the blocks are dequantized for the product and
/// activations keep their precision, since all later tokens depend on them.
const FEW_ROWS: usize = 8;

impl Matrix {
    fn new(outputs: usize, inputs: usize, storage: Storage) -> Self {
        Self { outputs, inputs, storage, updates: Arc::default() }
    }

    /// The same with low-rank updates of adapters; those of an embedding table are of its transpose.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if the shape of one does not fit.
    pub(crate) fn with_updates(self, updates: Vec<LowRank>, is_embedding: bool) -> Result<Self> {
        let (outputs, inputs) = match is_embedding {
            true => (self.inputs, self.outputs),
            false => (self.outputs, self.inputs),
        };
        updates.iter().try_for_each(|update| check(update, outputs, inputs))?;
        Ok(Self { updates: updates.into(), ..self })
    }

    /// The same without the updates of adapters.
    pub(super) fn without_updates(&self) -> Self {
        Self { updates: Arc::default(), ..self.clone() }
    }

    pub(crate) fn dense(
        bytes: Bytes,
        elem: Elem,
        layout: Layout,
        compute: Compute,
        (outputs, inputs): (usize, usize),
    ) -> Self {
        let kind = Kind::Dense(elem, layout, compute);
        Self::new(outputs, inputs, Storage::Host { bytes, kind, widened: Arc::default() })
    }

    pub(crate) fn blocks(bytes: Bytes, kind: GgmlDType, (outputs, inputs): (usize, usize)) -> Result<Self> {
        let kind = Kind::Blocks(blocks::kernel_kind(kind)?);
        Ok(Self::new(outputs, inputs, Storage::Host { bytes, kind, widened: Arc::default() }))
    }

    /// Creates a matrix from MXFP4 blocks, `(outputs, inputs / 32, 16)`, and scales, `(outputs, inputs / 32)`.
    pub(crate) fn mxfp4(
        blocks: Bytes,
        scales: Bytes,
        compute: Compute,
        (outputs, inputs): (usize, usize),
    ) -> Result<Self> {
        Mxfp4::new(&blocks, &scales, outputs, inputs)?;
        let kind = Kind::Mxfp4(scales, compute);
        Ok(Self::new(outputs, inputs, Storage::Host { bytes: blocks, kind, widened: Arc::default() }))
    }

    /// Creates a matrix from a tensor `(outputs, inputs)` on a GPU.
    pub(crate) fn device(tensor: Tensor) -> Result<Self> {
        let (outputs, inputs) = tensor.dims2()?;
        Ok(Self::new(outputs, inputs, Storage::Device(tensor)))
    }

    /// Creates a matrix from quantized blocks on a GPU. `rows` are the same blocks on the CPU, for an embedding table.
    pub(crate) fn device_blocks(tensor: QTensor, rows: Option<Bytes>) -> Result<Self> {
        let (outputs, inputs) = tensor.shape().dims2()?;
        let rows = rows.and_then(|bytes| Some((bytes, blocks::kernel_kind(tensor.dtype()).ok()?)));
        Ok(Self::new(outputs, inputs, Storage::DeviceBlocks { tensor: Arc::new(tensor), rows }))
    }

    /// `matrices` as one tensor, `(count, outputs, inputs)`, whose parts they are from then on, so that a device can choose
    /// among them. None, and the matrices as they came, where they do not lie dense on a device, all of one shape and type.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if there is no memory.
    pub fn stack(matrices: Vec<Self>) -> Result<(Vec<Self>, Option<Tensor>)> {
        let mut tensors = Vec::with_capacity(matrices.len());
        for matrix in &matrices {
            match (&matrix.storage, tensors.first()) {
                (Storage::Device(tensor), None) => tensors.push(tensor),
                (Storage::Device(tensor), Some(first))
                    if (tensor.dims(), tensor.dtype()) == (first.dims(), first.dtype()) =>
                {
                    tensors.push(tensor);
                }
                _ => return Ok((matrices, None)),
            }
        }
        if tensors.is_empty() {
            return Ok((matrices, None));
        }
        let stack = Tensor::stack(&tensors, 0)?;
        let parts = (0..matrices.len()).map(|i| Self::device(stack.get(i)?)).collect::<Result<_>>()?;
        Ok((parts, Some(stack)))
    }

    /// Creates a matrix from a float32 tensor, `(outputs, inputs)` or `(inputs, outputs)` by `layout`, whose values may
    /// change and which may require a gradient.
    pub(crate) fn variable(tensor: Tensor, layout: Layout, compute: Compute) -> Result<Self> {
        let (rows, columns) = tensor.dims2()?;
        let (outputs, inputs) = match layout {
            Layout::OutIn => (rows, columns),
            Layout::InOut => (columns, rows),
        };
        Ok(Self::new(outputs, inputs, Storage::Variable { tensor, layout, compute }))
    }

    pub(crate) fn absent(outputs: usize, inputs: usize) -> Self {
        Self::new(outputs, inputs, Storage::Absent)
    }

    /// Returns the number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns `then(x · selfᵀ + bias)`, `(…, outputs)`, for `x`, `(…, inputs)`, and `bias`, `(outputs)`.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>, then: Option<Activation>) -> Result<Tensor> {
        if !self.updates.is_empty() {
            let base = self.multiply_base(x, None, None)?;
            return finish(updated(base, x, &self.updates)?, bias, then);
        }
        self.multiply_base(x, bias, then)
    }

    /// [`multiply`](Self::multiply) without the updates.
    fn multiply_base(&self, x: &Tensor, bias: Option<&Tensor>, then: Option<Activation>) -> Result<Tensor> {
        let shape = self.result_shape(x)?;
        let rows = x.elem_count() / self.inputs.max(1);
        match &self.storage {
            Storage::Host { .. } | Storage::Variable { .. }
                if host::serve([x].into_iter().chain(self.variable_tensor()).chain(bias)) =>
            {
                let y = host::read(x, |x| self.multiply_host(x, bias, then))??;
                Ok(Tensor::from_vec(y, shape, &Device::Cpu)?)
            }
            Storage::Host { .. } if kernels_take(x) => {
                let (frozen, tracked) = match bias {
                    Some(bias) if bias.track_op() => (None, Some(bias)),
                    bias => (bias.cloned(), None),
                };
                let y = match x.track_op() {
                    true => grad::apply1(&x.contiguous()?, Product { weight: self.clone(), bias: frozen })?,
                    false => {
                        let y = host::read(x, |x| self.multiply_host(x, frozen.as_ref(), None))??;
                        Tensor::from_vec(y, shape, &Device::Cpu)?
                    }
                };
                match tracked {
                    Some(bias) => finish(grad::apply2(&y, &bias.contiguous()?, Biased)?, None, then),
                    None => finish(y, None, then),
                }
            }
            Storage::Variable { tensor, layout, compute } if kernels_take(x) => {
                let product = VariableProduct { layout: *layout, compute: *compute };
                finish(weighted(x, tensor, bias, product)?, None, then)
            }
            Storage::DeviceBlocks { tensor, .. } if !x.track_op() && rows <= FEW_ROWS => {
                // candle's quantized kernels take contiguous float32, and have no backward pass.
                let x32 = x.reshape((rows, self.inputs))?.to_dtype(DType::F32)?.contiguous()?;
                let y = QMatMul::from_arc(tensor.clone())?.forward(&x32)?.reshape(shape)?;
                finish(y.to_dtype(x.dtype())?, bias, then)
            }
            _ => {
                let weight = self.base()?.to_dtype(x.dtype())?;
                let y = x.reshape((rows, self.inputs))?.matmul(&weight.t()?)?.reshape(shape)?;
                finish(y, bias, then)
            }
        }
    }

    /// [`multiply`](Self::multiply) of `x`, `(rows, inputs)`, on the CPU. Returns `(rows, outputs)`.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if the matrix is on another device.
    pub(super) fn multiply_host(
        &self,
        x: &[f32],
        bias: Option<&Tensor>,
        then: Option<Activation>,
    ) -> Result<Vec<f32>> {
        let rows = x.len() / self.inputs.max(1);
        let mut y = memory::zeros(rows * self.outputs);
        match &self.storage {
            Storage::Host { bytes, kind, .. } => {
                with_bias(bias, |bias| self.on_host(x, rows, bytes, kind, bias, then, &mut y))??;
            }
            Storage::Variable { tensor, layout, compute } => {
                let finish = then.map(|activation| move |piece: &mut [f32]| activation.apply(piece));
                let finish = finish.as_ref().map(|finish| finish as matmul::Finish);
                host::read(tensor, |values| {
                    let weight = floats(values, *layout, self.outputs, self.inputs)?;
                    with_bias(bias, |bias| {
                        matmul::linear(x, rows, &weight, bias, *compute, finish, &mut y);
                    })
                })??;
            }
            _ => return Err(elsewhere()),
        }
        Ok(y)
    }

    /// Whether it is on the CPU, has no adapter, and requires no gradient.
    pub(super) fn is_fixed(&self) -> bool {
        self.updates.is_empty()
            && match &self.storage {
                Storage::Host { .. } => true,
                Storage::Variable { tensor, .. } => host::serves(tensor),
                _ => false,
            }
    }

    /// The tensor of a variable without adapters, `(outputs, inputs)`, and how it is multiplied.
    pub(super) fn variable_parts(&self) -> Option<(&Tensor, Compute)> {
        match &self.storage {
            Storage::Variable { tensor, layout: Layout::OutIn, compute } if self.updates.is_empty() => {
                Some((tensor, *compute))
            }
            _ => None,
        }
    }

    /// The tensor of a variable.
    fn variable_tensor(&self) -> Option<&Tensor> {
        match &self.storage {
            Storage::Variable { tensor, .. } => Some(tensor),
            _ => None,
        }
    }

    /// Backward pass of [`multiply`](Self::multiply): `grad · self`, `(rows, inputs)`, for `grad`, `(rows, outputs)`.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if the matrix is on another device.
    pub(super) fn multiply_back_host(&self, grad: &[f32]) -> Result<Vec<f32>> {
        let rows = grad.len() / self.outputs.max(1);
        let mut back = memory::zeros(rows * self.inputs);
        match &self.storage {
            Storage::Host { bytes, kind: Kind::Dense(elem, layout, compute), .. } => {
                let weight = Dense::new(bytes, *elem, *layout, self.outputs, self.inputs)?;
                matmul::linear_input_gradient(grad, rows, &weight, *compute, false, &mut back);
            }
            Storage::Variable { tensor, layout, compute } => {
                host::saved(tensor, |values| {
                    let weight = floats(values, *layout, self.outputs, self.inputs)?;
                    matmul::linear_input_gradient(grad, rows, &weight, *compute, false, &mut back);
                    Ok::<_, Error>(())
                })??;
            }
            Storage::Host { bytes, kind: Kind::Blocks(kind), .. } => {
                let weight = Blocks::new(bytes, *kind, self.outputs, self.inputs)?;
                kernel::linear_input_gradient(grad, rows, &weight, Compute::F32, false, &mut back);
            }
            Storage::Host { bytes, kind: Kind::Mxfp4(scales, compute), .. } => {
                let weight = Mxfp4::new(bytes, scales, self.outputs, self.inputs)?;
                mxfp4::linear_input_gradient(grad, rows, &weight, *compute, false, &mut back);
            }
            _ => return Err(elsewhere()),
        }
        Ok(back)
    }

    #[allow(clippy::too_many_arguments)]
    fn on_host(
        &self,
        x: &[f32],
        rows: usize,
        bytes: &[u8],
        kind: &Kind,
        bias: Option<&[f32]>,
        then: Option<Activation>,
        y: &mut [f32],
    ) -> Result<()> {
        let finish = then.map(|activation| move |piece: &mut [f32]| activation.apply(piece));
        let finish = finish.as_ref().map(|finish| finish as matmul::Finish);
        match kind {
            Kind::Dense(elem, layout, compute) => {
                let weight = Dense::new(bytes, *elem, *layout, self.outputs, self.inputs)?;
                matmul::linear(x, rows, &weight, bias, *compute, finish, y);
            }
            Kind::Mxfp4(scales, compute) => {
                let weight = Mxfp4::new(bytes, scales, self.outputs, self.inputs)?;
                mxfp4::linear(x, rows, &weight, bias, *compute, finish, y);
            }
            Kind::Blocks(kind) => {
                let weight = Blocks::new(bytes, *kind, self.outputs, self.inputs)?;
                kernel::linear(x, rows, &weight, bias, y);
                if let Some(activation) = then {
                    activation.apply(y);
                }
            }
        }
        Ok(())
    }

    /// Looks up the rows of `ids`, unsigned integers of any shape `(…)` below `outputs`. Returns `(…, inputs)`.
    pub fn rows(&self, ids: &Tensor, activations: DType) -> Result<Tensor> {
        let flat = ids.flatten_all()?.to_dtype(DType::U32)?;
        let base = self.base_rows(ids, &flat, activations)?;
        if self.updates.is_empty() {
            return Ok(base);
        }
        let shape = base.shape().clone();
        let rows = base.reshape((flat.elem_count(), self.inputs))?;
        Ok(updated_rows(rows, &transfer::to_host(&flat)?, &self.updates)?.reshape(shape)?)
    }

    /// [`rows`](Self::rows) without the updates. `flat`: `ids` as u32, `(count)`.
    fn base_rows(&self, ids: &Tensor, flat: &Tensor, activations: DType) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.inputs);
        match &self.storage {
            Storage::Variable { tensor, layout: Layout::OutIn, .. } if kernels_take(tensor) => {
                match tensor.track_op() {
                    true => Ok(grad::apply2(&tensor.contiguous()?, flat, Rows)?.reshape(shape)?),
                    false => {
                        let rows = host::read(tensor, |table| {
                            gather(table, self.inputs, &transfer::to_host(flat)?)
                        })??;
                        Ok(Tensor::from_vec(rows, shape, &Device::Cpu)?)
                    }
                }
            }
            Storage::Host { bytes, kind, .. } if kernels_serve(&Device::Cpu) => {
                let rows = self.rows_on_host(bytes, kind, &transfer::to_host(flat)?)?;
                Ok(Tensor::from_vec(rows, shape, &Device::Cpu)?)
            }
            Storage::DeviceBlocks { tensor, rows: Some((bytes, kind)) } if !ids.track_op() => {
                let rows = self.rows_on_host(bytes, &Kind::Blocks(*kind), &transfer::to_host(flat)?)?;
                Ok(transfer::to_device(rows, shape, &tensor.device())?.to_dtype(activations)?)
            }
            _ => {
                let table = self.base()?;
                Ok(table.index_select(flat, 0)?.reshape(shape)?.to_dtype(activations)?)
            }
        }
    }

    /// Looks up the rows of `ids`, `(count)`, in a table on the CPU. Returns `(count, inputs)`.
    fn rows_on_host(&self, bytes: &[u8], kind: &Kind, ids: &[u32]) -> Result<Vec<f32>> {
        let mut out = vec![0f32; ids.len() * self.inputs];
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(self.inputs.max(1))) {
            let id = *id as usize;
            if id >= self.outputs {
                let message =
                    format!("id {id} is out of range for an embedding table of {} rows", self.outputs);
                return Err(Error::input(message));
            }
            match kind {
                Kind::Dense(elem, Layout::OutIn, _) => {
                    let length = self.inputs * elem.size();
                    host::widen(*elem, &bytes[id * length..][..length], row);
                }
                Kind::Dense(..) => {
                    return Err(Error::unsupported("rows of a transposed matrix cannot be looked up"));
                }
                Kind::Blocks(kind) => {
                    let length = kind.bytes(self.inputs);
                    kernel::dequantize(*kind, &bytes[id * length..][..length], row);
                }
                Kind::Mxfp4(scales, _) => {
                    let length = self.inputs / mxfp4::BLOCK;
                    let blocks = &bytes[id * length * mxfp4::BLOCK_BYTES..][..length * mxfp4::BLOCK_BYTES];
                    mxfp4::dequantize(blocks, &scales[id * length..][..length], row);
                }
            }
        }
        Ok(out)
    }

    /// Returns the matrix as a tensor, `(outputs, inputs)`, dequantized, with the updates of adapters. On the CPU it is
    /// float32; without updates it is converted once and kept.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for an update with a bias, which is not part of the matrix;
    /// [`Mismatch`](ErrorKind::Mismatch) for the updates of an embedding table.
    pub fn tensor(&self) -> Result<Tensor> {
        merged(self.base()?, &self.updates)
    }

    /// [`tensor`](Self::tensor) without the updates.
    fn base(&self) -> Result<Tensor> {
        match &self.storage {
            Storage::Device(tensor) | Storage::Variable { tensor, layout: Layout::OutIn, .. } => {
                Ok(tensor.clone())
            }
            Storage::Variable { tensor, layout: Layout::InOut, .. } => Ok(tensor.t()?),
            Storage::DeviceBlocks { tensor, .. } => Ok(tensor.dequantize(&tensor.device())?),
            Storage::Absent => {
                Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as((self.outputs, self.inputs))?)
            }
            Storage::Host { widened, .. } => match widened.get() {
                Some(tensor) => Ok(tensor.clone()),
                None => {
                    let tensor = self.as_dense()?;
                    Ok(widened.get_or_init(|| tensor).clone())
                }
            },
        }
    }

    /// [`tensor`](Self::tensor) without the updates, of the CPU not kept.
    pub(crate) fn as_dense(&self) -> Result<Tensor> {
        match &self.storage {
            Storage::Host { bytes, kind, .. } => {
                let mut values = vec![0f32; self.outputs * self.inputs];
                let tensor = match kind {
                    Kind::Blocks(kind) => {
                        kernel::dequantize(*kind, bytes, &mut values);
                        Tensor::from_vec(values, (self.outputs, self.inputs), &Device::Cpu)?
                    }
                    Kind::Mxfp4(scales, _) => {
                        mxfp4::dequantize(bytes, scales, &mut values);
                        Tensor::from_vec(values, (self.outputs, self.inputs), &Device::Cpu)?
                    }
                    Kind::Dense(elem, Layout::OutIn, _) => {
                        host::widen(*elem, bytes, &mut values);
                        Tensor::from_vec(values, (self.outputs, self.inputs), &Device::Cpu)?
                    }
                    Kind::Dense(elem, Layout::InOut, _) => {
                        host::widen(*elem, bytes, &mut values);
                        Tensor::from_vec(values, (self.inputs, self.outputs), &Device::Cpu)?
                            .t()?
                            .contiguous()?
                    }
                };
                Ok(tensor)
            }
            _ => self.base(),
        }
    }

    fn result_shape(&self, x: &Tensor) -> Result<Vec<usize>> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.inputs => {
                *last = self.outputs;
                Ok(shape)
            }
            _ => Err(Error::new(
                ErrorKind::Compute,
                format!("a layer of {} inputs got an input of shape {:?}", self.inputs, x.dims()),
            )),
        }
    }
}

fn elsewhere() -> Error {
    Error::new(ErrorKind::Compute, "a CPU kernel got a matrix on another device or without a backward pass")
}

/// Calls `f` with the elements of `bias`, `(outputs)`.
fn with_bias<R>(bias: Option<&Tensor>, f: impl FnOnce(Option<&[f32]>) -> R) -> Result<R> {
    match bias {
        Some(bias) => host::read(bias, |bias| f(Some(bias))),
        None => Ok(f(None)),
    }
}

fn finish(y: Tensor, bias: Option<&Tensor>, then: Option<Activation>) -> Result<Tensor> {
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    match then {
        Some(activation) => activation.forward(&y),
        None => Ok(y),
    }
}
