//! A matrix of weights, wherever and however it is stored.

use std::sync::{Arc, OnceLock};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use super::back::{self, Product};
use super::{Activation, blocks, host};
use crate::checkpoint::Bytes;
use crate::kernels::blocks::{self as kernel, BlockKind, Blocks};
use crate::kernels::matmul::{self, Compute, Dense, Elem, Layout};
use crate::kernels::memory;
use crate::kernels::mxfp4::{self, Mxfp4};
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result, transfer};

/// A matrix of `outputs` by `inputs` that multiplies activations. Cheap to clone: clones share the storage.
///
/// On the CPU it is read where it lies, in a mapped file more often than not; nothing is copied or repacked.
#[derive(Debug, Clone)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    storage: Storage,
}

#[derive(Debug, Clone)]
enum Storage {
    /// Bytes on the CPU and, once somebody asks for a gradient, their candle copy.
    Host { bytes: Bytes, kind: Kind, widened: Arc<OnceLock<Tensor>> },
    /// `(outputs, inputs)` on another device.
    Device(Tensor),
    /// Blocks on another device; of a table whose rows are looked up also where they came from, since a device knows no
    /// way to read single rows.
    DeviceBlocks { tensor: Arc<QTensor>, rows: Option<(Bytes, BlockKind)> },
    /// Noted as missing; the load will fail before anyone multiplies by it.
    Absent,
}

#[derive(Debug, Clone)]
enum Kind {
    Dense(Elem, Layout, Compute),
    Blocks(BlockKind),
    /// The bytes are FP4 numbers; these are the scales of their blocks.
    Mxfp4(Bytes, Compute),
}

/// The most rows of activations that blocks on a device are multiplied by as candle's quantised kernels do it, which
/// round activations to 8 bits. For more, prompts and batches, the blocks are widened for the product and activations
/// stay as they are, since all that follows depends on them.
const FEW_ROWS: usize = 8;

impl Matrix {
    pub(crate) fn dense(
        bytes: Bytes,
        elem: Elem,
        layout: Layout,
        compute: Compute,
        (outputs, inputs): (usize, usize),
    ) -> Self {
        let kind = Kind::Dense(elem, layout, compute);
        Self { outputs, inputs, storage: Storage::Host { bytes, kind, widened: Arc::default() } }
    }

    pub(crate) fn blocks(bytes: Bytes, kind: GgmlDType, (outputs, inputs): (usize, usize)) -> Result<Self> {
        let kind = Kind::Blocks(blocks::kernel_kind(kind)?);
        Ok(Self { outputs, inputs, storage: Storage::Host { bytes, kind, widened: Arc::default() } })
    }

    /// From the blocks `(outputs, inputs / 32, 16)` and the scales `(outputs, inputs / 32)` of an MXFP4 matrix.
    pub(crate) fn mxfp4(
        blocks: Bytes,
        scales: Bytes,
        compute: Compute,
        (outputs, inputs): (usize, usize),
    ) -> Result<Self> {
        Mxfp4::new(&blocks, &scales, outputs, inputs)?;
        let kind = Kind::Mxfp4(scales, compute);
        Ok(Self { outputs, inputs, storage: Storage::Host { bytes: blocks, kind, widened: Arc::default() } })
    }

    /// From `(outputs, inputs)` on a GPU.
    pub(crate) fn device(tensor: Tensor) -> Result<Self> {
        let (outputs, inputs) = tensor.dims2()?;
        Ok(Self { outputs, inputs, storage: Storage::Device(tensor) })
    }

    /// From blocks on a GPU. `rows` are the same blocks in the CPU's memory, of a table whose rows are looked up.
    pub(crate) fn device_blocks(tensor: QTensor, rows: Option<Bytes>) -> Result<Self> {
        let (outputs, inputs) = tensor.shape().dims2()?;
        let rows = rows.and_then(|bytes| Some((bytes, blocks::kernel_kind(tensor.dtype()).ok()?)));
        Ok(Self { outputs, inputs, storage: Storage::DeviceBlocks { tensor: Arc::new(tensor), rows } })
    }

    pub(crate) fn absent(outputs: usize, inputs: usize) -> Self {
        Self { outputs, inputs, storage: Storage::Absent }
    }

    /// Rows of the result.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Width of what it multiplies.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// `then(x · selfᵀ + bias)`; `x`: `(…, inputs)`, result `(…, outputs)`, `bias`: `(outputs)`.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>, then: Option<Activation>) -> Result<Tensor> {
        let shape = self.result_shape(x)?;
        let rows = x.elem_count() / self.inputs.max(1);
        match &self.storage {
            Storage::Host { .. } if host::serves(x) => {
                let y = host::read(x, |x| self.multiply_host(x, bias, then))??;
                Ok(Tensor::from_vec(y, shape, &Device::Cpu)?)
            }
            Storage::Host { .. } if back::serves(x) && self.has_way_back() => {
                let product = Product { weight: self.clone(), bias: bias.cloned() };
                finish(x.contiguous()?.apply_op1(product)?, None, then)
            }
            Storage::DeviceBlocks { tensor, .. } if !x.track_op() && rows <= FEW_ROWS => {
                // candle's quantised kernels take rows of float32, side by side, and know no way back.
                let x32 = x.reshape((rows, self.inputs))?.to_dtype(DType::F32)?.contiguous()?;
                let y = QMatMul::from_arc(tensor.clone())?.forward(&x32)?.reshape(shape)?;
                finish(y.to_dtype(x.dtype())?, bias, then)
            }
            _ => {
                let weight = self.tensor()?.to_dtype(x.dtype())?;
                let y = x.reshape((rows, self.inputs))?.matmul(&weight.t()?)?.reshape(shape)?;
                finish(y, bias, then)
            }
        }
    }

    /// [`multiply`](Self::multiply) of rows on the CPU.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if the matrix lies elsewhere.
    pub(super) fn multiply_host(
        &self,
        x: &[f32],
        bias: Option<&Tensor>,
        then: Option<Activation>,
    ) -> Result<Vec<f32>> {
        let Storage::Host { bytes, kind, .. } = &self.storage else { return Err(elsewhere()) };
        let rows = x.len() / self.inputs.max(1);
        let mut y = memory::zeros(rows * self.outputs);
        with_bias(bias, |bias| self.on_host(x, rows, bytes, kind, bias, then, &mut y))??;
        Ok(y)
    }

    /// Whether [`multiply_back_host`](Self::multiply_back_host) serves: dense, on the CPU.
    pub(super) fn has_way_back(&self) -> bool {
        matches!(&self.storage, Storage::Host { kind: Kind::Dense(..), .. })
    }

    /// `grad · self`: the way back through [`multiply`](Self::multiply). `grad`: `(rows, outputs)`, result
    /// `(rows, inputs)`; products of f32.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) unless [`has_way_back`](Self::has_way_back).
    pub(super) fn multiply_back_host(&self, grad: &[f32]) -> Result<Vec<f32>> {
        let Storage::Host { bytes, kind: Kind::Dense(elem, layout, _), .. } = &self.storage else {
            return Err(elsewhere());
        };
        let weight = Dense::new(bytes, *elem, *layout, self.outputs, self.inputs)?.transposed();
        let rows = grad.len() / self.outputs.max(1);
        let mut back = memory::zeros(rows * self.inputs);
        matmul::linear(grad, rows, &weight, None, Compute::F32, None, &mut back);
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

    /// The rows of `ids` (any shape of unsigned integers, each below `outputs`): `(…, inputs)`.
    pub fn rows(&self, ids: &Tensor, activations: DType) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.inputs);
        let flat = ids.flatten_all()?.to_dtype(DType::U32)?;
        match &self.storage {
            Storage::Host { bytes, kind, .. } if !ids.track_op() && kernels_serve(&Device::Cpu) => {
                let rows = self.rows_on_host(bytes, kind, &flat.to_vec1()?)?;
                Ok(Tensor::from_vec(rows, shape, &Device::Cpu)?)
            }
            Storage::DeviceBlocks { tensor, rows: Some((bytes, kind)) } if !ids.track_op() => {
                let rows = self.rows_on_host(bytes, &Kind::Blocks(*kind), &transfer::to_host(&flat)?)?;
                Ok(transfer::to_device(rows, shape, &tensor.device())?.to_dtype(activations)?)
            }
            _ => {
                let table = self.tensor()?;
                Ok(table.index_select(&flat, 0)?.reshape(shape)?.to_dtype(activations)?)
            }
        }
    }

    /// The rows of `ids`, one after the other, from a table that lies in the CPU's memory.
    fn rows_on_host(&self, bytes: &[u8], kind: &Kind, ids: &[u32]) -> Result<Vec<f32>> {
        let mut out = vec![0f32; ids.len() * self.inputs];
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(self.inputs.max(1))) {
            let id = *id as usize;
            if id >= self.outputs {
                let message = format!("id {id} is outside the table of {} rows", self.outputs);
                return Err(Error::input(message));
            }
            match kind {
                Kind::Dense(elem, Layout::OutIn, _) => {
                    let length = self.inputs * elem.size();
                    host::widen(*elem, &bytes[id * length..][..length], row);
                }
                Kind::Dense(..) => return Err(Error::unsupported("a transposed table has no rows")),
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

    /// The whole matrix as a tensor `(outputs, inputs)`: what candle differentiates, and what the few places that
    /// need the numbers themselves read. Float32 on the CPU, made once and kept.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.storage {
            Storage::Device(tensor) => Ok(tensor.clone()),
            Storage::DeviceBlocks { tensor, .. } => Ok(tensor.dequantize(&tensor.device())?),
            Storage::Absent => {
                Ok(Tensor::zeros((), DType::F32, &Device::Cpu)?.broadcast_as((self.outputs, self.inputs))?)
            }
            Storage::Host { bytes, kind, widened } => {
                if let Some(tensor) = widened.get() {
                    return Ok(tensor.clone());
                }
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
                Ok(widened.get_or_init(|| tensor).clone())
            }
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
                format!("a layer of {} inputs was given {:?}", self.inputs, x.dims()),
            )),
        }
    }
}

fn elsewhere() -> Error {
    Error::new(ErrorKind::Compute, "a CPU kernel was given a matrix that lies elsewhere")
}

/// Calls `f` with the elements of `bias`.
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
