//! One-dimensional and transposed convolutions, and padding. Activations are channels-last, `(batch, time, channels)`.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Shape, Tensor};
use serde::Deserialize;

use super::back::{self, Convolution, Padded, weighted};
use super::host;
use crate::kernels::conv::Taps;
use crate::runtime::{kernels_serve, kernels_take};
use crate::weights::Weights;
use crate::{Error, ErrorKind, Result, grad};

/// Padding mode, with the names of `torch.nn.functional.pad`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum PadMode {
    /// Zeros.
    #[serde(rename = "constant", alias = "zero", alias = "zeros")]
    Zeros,
    /// Reflection without repeating the edge.
    #[serde(rename = "reflect")]
    Reflect,
    /// Repetition of the edge.
    #[serde(rename = "replicate")]
    Replicate,
    /// Circular: the frames at the other end.
    #[serde(rename = "circular")]
    Circular,
}

/// Pads `x`, `(batch, time, channels)`, to `(batch, left + time + right, channels)`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if `x` is too short: fewer than `max(left, right) + 1` frames for reflection, fewer than
/// `max(left, right)` for circular padding, none for repetition.
///
/// ```
/// use candle_core::{DType, Device, Shape, Tensor};
/// use fauna_shared::nn::{PadMode, pad_time};
/// let x = Tensor::from_vec(vec![1f32, 2.0, 3.0], (1, 3, 1), &Device::Cpu)?;
/// let padded = pad_time(&x, 2, 1, PadMode::Reflect)?;
/// assert_eq!(padded.flatten_all()?.to_vec1::<f32>()?, [3.0, 2.0, 1.0, 2.0, 3.0, 2.0]);
/// assert!(pad_time(&x, 3, 0, PadMode::Reflect).is_err());
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn pad_time(x: &Tensor, left: usize, right: usize, mode: PadMode) -> Result<Tensor> {
    let (batch, time, channels) = x.dims3()?;
    if left == 0 && right == 0 {
        return Ok(x.clone());
    }
    let most = left.max(right);
    let wanted = match mode {
        PadMode::Zeros => 0,
        PadMode::Reflect => most + 1,
        PadMode::Replicate => 1,
        PadMode::Circular => most,
    };
    if time < wanted {
        return Err(Error::input(format!(
            "padding of {left} and {right} frames ({mode:?}), expected at least {wanted} frames, found {time}"
        )));
    }
    let padded = Padded { left, right, mode };
    if host::serves(x) {
        let y = host::read(x, |x| padded.pad(x, batch, time, channels))?;
        return Ok(Tensor::from_vec(y, (batch, left + time + right, channels), &Device::Cpu)?);
    }
    if back::serves(x) {
        return grad::apply1(&x.contiguous()?, padded);
    }
    if mode == PadMode::Zeros {
        return Ok(x.pad_with_zeros(1, left, right)?);
    }
    let frames = (0..left + time + right).map(|t| padded.source(t, time).unwrap_or(0) as u32);
    let frames = Tensor::from_iter(frames, x.device())?;
    Ok(x.contiguous()?.index_select(&frames, 1)?)
}

/// Hyperparameters of a convolution.
///
/// ```
/// use fauna_shared::nn::ConvOptions;
/// let options = ConvOptions::new(3).stride(2).dilation(9).padding(9).no_bias();
/// assert_eq!(options.frames(100), Some(50));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvOptions {
    kernel: usize,
    stride: usize,
    dilation: usize,
    padding: usize,
    bias: bool,
    weight_norm: bool,
}

impl ConvOptions {
    /// Kernel size `kernel`, stride and dilation 1, no padding, with a bias.
    pub fn new(kernel: usize) -> Self {
        Self { kernel, stride: 1, dilation: 1, padding: 0, bias: true, weight_norm: false }
    }

    /// Sets the stride, in frames of the input; of a transposed convolution, in frames of the output.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Sets the dilation, in frames.
    pub fn dilation(self, dilation: usize) -> Self {
        Self { dilation, ..self }
    }

    /// Sets the zero padding at both ends; for a transposed convolution, the number of frames removed at both ends.
    pub fn padding(self, padding: usize) -> Self {
        Self { padding, ..self }
    }

    /// Removes the bias.
    pub fn no_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    /// Whether weight normalization is used (Salimans and Kingma 2016), for test weights and inventories. With a
    /// checkpoint, the tensor names decide.
    pub fn weight_norm(self, weight_norm: bool) -> Self {
        Self { weight_norm, ..self }
    }

    /// Returns the number of frames that the dilated kernel covers.
    pub fn span(&self) -> usize {
        self.kernel.saturating_sub(1).saturating_mul(self.dilation).saturating_add(1)
    }

    /// Returns the number of output frames for `time` input frames; `None` if they are fewer than the kernel covers.
    pub fn frames(&self, time: usize) -> Option<usize> {
        let free = (time + 2 * self.padding).checked_sub(self.span())?;
        Some(free / self.stride.max(1) + 1)
    }

    fn checked(self) -> Result<Self> {
        if self.kernel == 0 || self.stride == 0 || self.dilation == 0 {
            let Self { kernel, stride, dilation, .. } = self;
            let message = format!(
                "a convolution of kernel {kernel}, stride {stride}, dilation {dilation}, expected all above 0"
            );
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        Ok(self)
    }
}

/// A one-dimensional convolution, `y[t] = Σ weight[j] · x[t·stride + j·dilation] + bias`.
#[derive(Debug, Clone)]
pub struct Conv1d {
    /// `(outputs, kernel, inputs)`: one output's taps lie as the frames they meet, or, on a device, as candle's own
    /// convolution takes them.
    weight: Tensor,
    bias: Option<Tensor>,
    inputs: usize,
    options: ConvOptions,
    /// The weight as candle's own convolution takes it, `(outputs, inputs, kernel)`, once that has computed; on a device
    /// the weight itself.
    turned: Arc<OnceLock<Tensor>>,
}

impl Conv1d {
    /// Applies the convolution to `x`, `(batch, time, inputs)`. Returns `(batch, options.frames(time), outputs)`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if `x` with its padding is shorter than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, time, _) = x.dims3()?;
        let options = &self.options;
        same_inputs(self.inputs, x)?;
        let Some(frames) = options.frames(time) else {
            return Err(Error::input(format!(
                "a convolution over {} frames got {time} frames with padding {}",
                options.span(),
                options.padding
            )));
        };
        let parameters = || [&self.weight].into_iter().chain(&self.bias);
        let taps = Taps { kernel: options.kernel, stride: options.stride, dilation: options.dilation };
        if kernels_take(x) && parameters().all(kernels_take) {
            let x = pad_time(x, options.padding, options.padding, PadMode::Zeros)?;
            return convolve(&x, &self.weight, self.bias.as_ref(), Convolution { taps, frames });
        }
        if x.track_op() || parameters().any(Tensor::track_op) {
            return self.unfolded(x, frames);
        }
        let weight = kept(&self.turned, || self.weight.transpose(1, 2)?.contiguous())?;
        let weight = weight.to_dtype(x.dtype())?;
        let turned = x.transpose(1, 2)?.contiguous()?;
        let y = turned.conv1d(&weight, options.padding, options.stride, options.dilation, 1)?;
        add_bias(y.transpose(1, 2)?.contiguous()?, self.bias.as_ref())
    }

    /// [`forward`](Self::forward) to `frames` frames as one product, for gradients: candle's own backward pass reads a
    /// kernel whose axes are transposed as if they were not.
    fn unfolded(&self, x: &Tensor, frames: usize) -> Result<Tensor> {
        let (batch, _, inputs) = x.dims3()?;
        let (options, outputs) = (&self.options, self.weight.dim(0)?);
        let rows = batch * frames;
        let x = pad_time(x, options.padding, options.padding, PadMode::Zeros)?.contiguous()?;
        let read = match options.kernel == 1 && options.stride == 1 {
            true => x,
            false => {
                let taps =
                    |t: usize| (0..options.kernel).map(move |j| t * options.stride + j * options.dilation);
                let places = (0..frames).flat_map(taps).map(|place| place as u32);
                x.index_select(&Tensor::from_iter(places, x.device())?, 1)?
            }
        };
        let weight = self.weight.to_dtype(read.dtype())?.reshape((outputs, options.kernel * inputs))?;
        let y = read.reshape((rows, options.kernel * inputs))?.matmul(&weight.t()?)?;
        Ok(add_bias(y, self.bias.as_ref())?.reshape((batch, frames, outputs))?)
    }

    /// Returns kernel size, stride, dilation and padding.
    pub fn options(&self) -> &ConvOptions {
        &self.options
    }
}

/// A one-dimensional transposed convolution: frame `t` of `x` adds `weight[j] · x[t]` to frame `t·stride + j`.
///
/// Computed as a convolution: with `reach = ⌈kernel / stride⌉`, each group of `stride` output frames is one product of
/// the `reach` contiguous input frames that contribute to it.
#[derive(Debug, Clone)]
pub struct ConvTranspose1d {
    /// `(stride * outputs, reach * inputs)`.
    weight: Tensor,
    /// `(stride * outputs)`.
    bias: Option<Tensor>,
    inputs: usize,
    outputs: usize,
    options: ConvOptions,
}

impl ConvTranspose1d {
    /// Applies the convolution to `x`, `(batch, time, inputs)`, with at least one frame. Returns
    /// `(batch, (time - 1) * stride + kernel - 2 * padding, outputs)`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if the output is empty.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, _) = x.dims3()?;
        let (outputs, stride, padding) = (self.outputs, self.options.stride, self.options.padding);
        same_inputs(self.inputs, x)?;
        let full = time.saturating_sub(1) * stride + self.options.kernel;
        if time == 0 || full <= 2 * padding {
            return Err(Error::input(format!(
                "a transposed convolution of kernel {} and padding {padding} has no output for {time} frames",
                self.options.kernel
            )));
        }
        let reach = self.options.kernel.div_ceil(stride);
        let runs = time + reach - 1;
        let x = pad_time(x, reach - 1, reach - 1, PadMode::Zeros)?;
        let y =
            if [&x, &self.weight].into_iter().chain(&self.bias).all(kernels_take) {
                let taps = Taps { kernel: reach, stride: 1, dilation: 1 };
                convolve(&x, &self.weight, self.bias.as_ref(), Convolution { taps, frames: runs })?
                    .reshape((batch, runs * stride, outputs))?
            } else {
                self.unfolded(&x, reach, runs)?
            };
        Ok(y.narrow(1, padding, full - 2 * padding)?.contiguous()?)
    }

    /// `runs` groups of output frames of the padded `x` as one product: `(batch, runs * stride, outputs)`.
    fn unfolded(&self, x: &Tensor, reach: usize, runs: usize) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let touching = (0..reach).map(|i| x.narrow(1, i, runs)).collect::<Result<Vec<_>, _>>()?;
        let rows = Tensor::cat(&touching, 2)?.reshape((batch * runs, reach * self.inputs))?;
        let y = rows.matmul(&self.weight.to_dtype(x.dtype())?.t()?)?;
        let shape = (batch, runs * self.options.stride, self.outputs);
        Ok(add_bias(y, self.bias.as_ref())?.reshape(shape)?)
    }

    /// Returns kernel size, stride and padding.
    pub fn options(&self) -> &ConvOptions {
        &self.options
    }
}

impl Weights {
    /// Loads the convolution `name`: `weight` of `[outputs, inputs, kernel]`, or its weight normalization under either
    /// of torch's names (`weight_v` and `weight_g`; `parametrizations.weight.original1` and `.original0`), and `bias`
    /// of `[outputs]`.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if kernel, stride or dilation is 0.
    pub fn conv1d(&self, name: &str, inputs: usize, outputs: usize, options: ConvOptions) -> Result<Conv1d> {
        let (here, options) = (self.at(name), options.checked()?);
        let weight = here.taps([outputs, inputs, options.kernel], options.weight_norm)?;
        let weight = laid(weight.transpose(1, 2)?, [0, 2, 1], kernels_serve(self.runtime().device()))?;
        let bias = here.bias_if(options.bias, outputs)?;
        Ok(Conv1d { weight, bias, inputs, options, turned: Arc::default() })
    }

    /// Loads the transposed convolution `name`, like [`conv1d`](Weights::conv1d) but with a `weight` of
    /// `[inputs, outputs, kernel]`.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if kernel or stride is 0, [`Unsupported`](ErrorKind::Unsupported) if the
    /// dilation is not 1.
    pub fn conv_transpose1d(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        options: ConvOptions,
    ) -> Result<ConvTranspose1d> {
        let (here, options) = (self.at(name), options.checked()?);
        let ConvOptions { kernel, stride, .. } = options;
        if options.dilation != 1 {
            return Err(Error::unsupported(format!(
                "a transposed convolution with dilation {} is not implemented",
                options.dilation
            )));
        }
        let reach = kernel.div_ceil(stride);
        let weight = here.taps([inputs, outputs, kernel], options.weight_norm)?;
        let shape = (stride.saturating_mul(outputs), reach.saturating_mul(inputs));
        let weight = arrange(&weight, shape, |weight| {
            // Tap `lag * stride + j` multiplies the frame `lag` before the group's own, which is last.
            let weight = weight.pad_with_zeros(2, 0, reach * stride - kernel)?;
            weight.reshape((inputs, outputs, reach, stride))?.flip(&[2])?.permute((3, 1, 2, 0))
        })?;
        let repeat = |bias| arrange(&bias, shape.0, |bias| bias.repeat((stride, 1)));
        let bias = here.bias_if(options.bias, outputs)?.map(repeat).transpose()?;
        Ok(ConvTranspose1d { weight, bias, inputs, outputs, options })
    }

    /// Loads the weight, with weight normalization applied if it is used.
    fn taps(&self, shape: [usize; 3], weight_norm: bool) -> Result<Tensor> {
        const LENGTH: [&str; 2] = ["weight_g", "parametrizations.weight.original0"];
        const DIRECTION: [&str; 2] = ["weight_v", "parametrizations.weight.original1"];
        let is_apart = LENGTH.into_iter().chain(DIRECTION).any(|name| self.has(name, weight_norm));
        if !is_apart {
            return self.tensor("weight", &shape);
        }
        // Each is found under either name, as in the reference.
        let [length, direction] =
            [LENGTH, DIRECTION].map(|[old, now]| if self.has(old, false) { old } else { now });
        let length = self.tensor(length, &[shape[0], 1, 1])?;
        let direction = self.tensor(direction, &shape)?;
        if is_stand_in(&direction) || is_stand_in(&length) {
            return Ok(direction);
        }
        let dtype = direction.dtype();
        let (length, direction) = (length.to_dtype(DType::F32)?, direction.to_dtype(DType::F32)?);
        // A direction of zeros stays zeros.
        let norm = direction.sqr()?.sum_keepdim((1, 2))?.sqrt()?.maximum(1e-30)?;
        let weight = direction.broadcast_mul(&(length / norm)?)?.to_dtype(dtype)?;
        // Adapters change the weight that the norm gives.
        self.adapted_tensor(weight, "weight")
    }

    fn bias_if(&self, bias: bool, outputs: usize) -> Result<Option<Tensor>> {
        bias.then(|| self.tensor("bias", &[outputs])).transpose()
    }
}

/// `op` of `x`, `(batch, time, inputs)`, and of parameters of which all are float32 on the CPU. Returns
/// `(batch, frames, outputs)`.
fn convolve(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, op: Convolution) -> Result<Tensor> {
    if !host::serve([x, weight].into_iter().chain(bias)) {
        return weighted(x, weight, bias, op);
    }
    let ((batch, _, inputs), outputs) = (x.dims3()?, weight.dim(0)?);
    let y = with_parameters(weight, bias, |weight, bias| {
        host::read(x, |x| op.convolve(x, batch, inputs, weight, bias, outputs))
    })??;
    Ok(Tensor::from_vec(y, (batch, op.frames, outputs), &Device::Cpu)?)
}

/// Returns `turn(stored)` reshaped to `shape`, contiguous. Nothing is computed for a placeholder, whose declared shape
/// may be arbitrarily large.
pub(super) fn arrange(
    stored: &Tensor,
    shape: impl Into<Shape>,
    turn: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    let shape = shape.into();
    Ok(match is_stand_in(stored) {
        true => Tensor::zeros((), stored.dtype(), stored.device())?.broadcast_as(shape)?,
        false => turn(stored)?.contiguous()?.reshape(shape)?,
    })
}

/// `weight`, whose axes stand as the CPU's kernels take it: without gaps for them, or else without gaps in the order of
/// `candle`'s own convolution, which then keeps no second one.
pub(super) fn laid<const N: usize>(weight: Tensor, candle: [usize; N], for_kernels: bool) -> Result<Tensor> {
    let mut back = [0; N];
    candle.iter().enumerate().for_each(|(to, from)| back[*from] = to);
    Ok(match (is_stand_in(&weight), for_kernels) {
        (true, _) => weight,
        (false, true) => weight.contiguous()?,
        (false, false) => weight.permute(candle)?.contiguous()?.permute(back)?,
    })
}

/// Whether `tensor` is the placeholder of a missing tensor, a broadcast scalar.
pub(super) fn is_stand_in(tensor: &Tensor) -> bool {
    tensor.stride().iter().all(|stride| *stride == 0)
}

pub(super) fn same_inputs(inputs: usize, x: &Tensor) -> Result<()> {
    match x.dims() {
        [.., last] if *last == inputs => Ok(()),
        dims => Err(Error::new(
            ErrorKind::Compute,
            format!("a convolution of {inputs} channels got an input of shape {dims:?}"),
        )),
    }
}

pub(super) fn with_parameters<R>(
    weight: &Tensor,
    bias: Option<&Tensor>,
    f: impl FnOnce(&[f32], Option<&[f32]>) -> R,
) -> Result<R> {
    host::read(weight, |weight| match bias {
        Some(bias) => host::read(bias, |bias| f(weight, Some(bias))),
        None => Ok(f(weight, None)),
    })?
}

/// Returns the result of `make`, which is called once.
pub(super) fn kept(
    place: &OnceLock<Tensor>,
    make: impl FnOnce() -> candle_core::Result<Tensor>,
) -> Result<Tensor> {
    match place.get() {
        Some(tensor) => Ok(tensor.clone()),
        None => {
            let made = make()?;
            Ok(place.get_or_init(|| made).clone())
        }
    }
}

pub(super) fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    Ok(match bias {
        Some(bias) => y.broadcast_add(&bias.to_dtype(y.dtype())?)?,
        None => y,
    })
}

#[cfg(test)]
mod tests;
