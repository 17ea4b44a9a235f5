//! Two-dimensional convolutions, max pooling and upsampling. Activations are channels-last,
//! `(batch, height, width, channels)`.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};

use super::back::{self, Convolution2d, MaxPooled, weighted};
use super::conv::{add_bias, is_stand_in, kept, laid, same_inputs, with_parameters};
use super::{Activation, host};
use crate::kernels::conv2d::{self as kernel, Pictures, Window};
use crate::kernels::matmul::Finish;
use crate::kernels::memory;
use crate::runtime::{kernels_serve, kernels_take};
use crate::weights::Weights;
use crate::{Error, ErrorKind, Result, grad, transfer};

/// Hyperparameters of a two-dimensional convolution.
///
/// ```
/// use fauna_shared::nn::Conv2dOptions;
/// assert_eq!(Conv2dOptions::new(3).same().size(32, 48), Some((32, 48)));
/// assert_eq!(Conv2dOptions::new(3).stride(2).padding_each([0, 1, 0, 1]).size(32, 48), Some((16, 24)));
/// assert_eq!(Conv2dOptions::new(3).same().of_doubled().size(32, 48), Some((64, 96)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dOptions {
    kernel: usize,
    stride: usize,
    /// Top, bottom, left, right.
    padding: [usize; 4],
    zoom: usize,
    bias: bool,
}

impl Conv2dOptions {
    /// Kernel size `kernel` by `kernel`, stride 1, no padding, with a bias.
    pub fn new(kernel: usize) -> Self {
        Self { kernel, stride: 1, padding: [0; 4], zoom: 1, bias: true }
    }

    /// Sets the stride of both axes.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// Sets the padding that keeps the size ("same" padding), for an odd kernel and stride 1.
    pub fn same(self) -> Self {
        self.padding(self.kernel.saturating_sub(1) / 2)
    }

    /// Sets the zero padding of all four sides.
    pub fn padding(self, padding: usize) -> Self {
        self.padding_each([padding; 4])
    }

    /// Sets the zero padding of top, bottom, left and right.
    pub fn padding_each(self, padding: [usize; 4]) -> Self {
        Self { padding, ..self }
    }

    /// Convolves the input upsampled by 2 with nearest neighbour ([`double`]), without computing the upsampled input.
    pub fn of_doubled(self) -> Self {
        Self { zoom: 2, ..self }
    }

    /// Removes the bias.
    pub fn no_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    /// Returns height and width of the output for an input of `height` by `width`; `None` if it is smaller than the
    /// kernel.
    pub fn size(&self, height: usize, width: usize) -> Option<(usize, usize)> {
        let [above, below, left, right] = self.padding;
        let out = |length: usize, padding: usize| {
            let free = length.checked_mul(self.zoom)?.checked_add(padding)?.checked_sub(self.kernel)?;
            Some(free / self.stride.max(1) + 1)
        };
        Some((out(height, above + below)?, out(width, left + right)?))
    }

    fn checked(self) -> Result<Self> {
        match self.kernel == 0 || self.stride == 0 {
            true => Err(Error::new(
                ErrorKind::Mismatch,
                format!(
                    "a convolution of kernel {}, stride {}, expected both above 0",
                    self.kernel, self.stride
                ),
            )),
            false => Ok(self),
        }
    }
}

/// The axes of a [`Conv2d`]'s weight in the order of candle's convolution.
const CANDLE: [usize; 4] = [3, 2, 0, 1];

/// A two-dimensional convolution, `y[i, j] = Σ weight[a, b] · x[i·stride + a, j·stride + b] + bias`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    /// `(kernel, kernel, inputs, outputs)`, taps row by row; on a device they lie as candle's own convolution takes them.
    weight: Tensor,
    bias: Option<Tensor>,
    inputs: usize,
    options: Conv2dOptions,
    /// The weight as candle's own convolution takes it, `(outputs, inputs, kernel, kernel)`, once that has computed; on a
    /// device the weight itself.
    turned: Arc<OnceLock<Tensor>>,
}

impl Conv2d {
    /// Applies the convolution to `x`, `(batch, height, width, inputs)`. Returns `(batch, out_height, out_width,
    /// outputs)`, see [`size`](Conv2dOptions::size).
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if `x` with its padding is smaller than the kernel.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None)
    }

    /// Returns `activation(self.forward(x))`.
    ///
    /// # Errors
    /// Same as [`forward`](Conv2d::forward).
    pub fn forward_then(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, Some(activation))
    }

    /// Multiplies weight and bias by `factor`.
    pub fn scaled(self, factor: f64) -> Result<Self> {
        let scale = |x: Tensor| match is_stand_in(&x) {
            true => Ok(x),
            false => x.affine(factor, 0.0),
        };
        let Self { weight, bias, inputs, options, .. } = self;
        let for_kernels = kernels_serve(weight.device());
        let (weight, bias) = (laid(scale(weight)?, CANDLE, for_kernels)?, bias.map(scale).transpose()?);
        Ok(Self { weight, bias, inputs, options, turned: Arc::default() })
    }

    /// Applies a 1 x 1 convolution to one-hot pixels, given by the index of their channel: `channels`, u32 of shape
    /// `(…)`, to `(…, outputs)`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if a channel is out of range, [`Compute`](ErrorKind::Compute) if the kernel is not 1
    /// x 1.
    pub fn of_one_hot(&self, channels: &Tensor) -> Result<Tensor> {
        if self.options.kernel != 1 {
            return Err(Error::new(ErrorKind::Compute, "one-hot inputs require a kernel of 1 x 1"));
        }
        let flat: Vec<u32> = transfer::to_host(channels)?;
        if let Some(channel) = flat.iter().find(|channel| **channel as usize >= self.inputs) {
            return Err(Error::input(format!("code {channel} is out of range for {} codes", self.inputs)));
        }
        let (_, _, inputs, outputs) = self.weight.dims4()?;
        let shape = [channels.dims(), &[outputs]].concat();
        let rows = self.weight.reshape((inputs, outputs))?.index_select(&channels.flatten_all()?, 0)?;
        add_bias(rows.reshape(shape)?, self.bias.as_ref())
    }

    /// Returns kernel size, stride and padding.
    pub fn options(&self) -> &Conv2dOptions {
        &self.options
    }

    fn run(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        let (batch, height, width, inputs) = x.dims4()?;
        let (options, outputs) = (&self.options, self.weight.dim(3)?);
        same_inputs(self.inputs, x)?;
        let Some(size) = options.size(height, width).filter(|_| height * width > 0) else {
            return Err(Error::input(format!(
                "a convolution of kernel {} got an image of {height} by {width}",
                options.kernel
            )));
        };
        let [above, _, left, _] = options.padding;
        let all = || [x, &self.weight].into_iter().chain(&self.bias);
        if !all().all(kernels_take) {
            let y = self.portable(x, size)?;
            return activation.map_or(Ok(y.clone()), |activation| activation.forward(&y));
        }
        let kernel = (options.kernel, options.kernel);
        let window = Window { kernel, stride: options.stride, before: (above, left), zoom: options.zoom };
        if !host::serve(all()) {
            let y = weighted(x, &self.weight, self.bias.as_ref(), Convolution2d { window, size })?;
            return activation.map_or(Ok(y.clone()), |activation| activation.forward(&y));
        }
        let finish = activation.map(|activation| move |y: &mut [f32]| activation.apply(y));
        let finish = finish.as_ref().map(|finish| finish as Finish);
        let mut y = memory::zeros(batch * size.0 * size.1 * outputs);
        with_parameters(&self.weight, self.bias.as_ref(), |weight, bias| {
            host::read(x, |data| {
                let x = Pictures { data, height, width, channels: inputs };
                kernel::convolve(x, &window, weight, bias, finish, size, &mut y);
            })
        })??;
        Ok(Tensor::from_vec(y, (batch, size.0, size.1, outputs), &Device::Cpu)?)
    }

    /// [`forward`](Self::forward) to images of `size` by candle's own convolution.
    fn portable(&self, x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
        let (options, [above, below, left, right]) = (&self.options, self.options.padding);
        let weight = kept(&self.turned, || self.weight.permute(CANDLE)?.contiguous())?;
        let weight = weight.to_dtype(x.dtype())?;
        let x = if options.zoom == 1 { x.clone() } else { double(x)? };
        let x = x.pad_with_zeros(1, above, below)?.pad_with_zeros(2, left, right)?;
        // candle's backward pass requires an input without unused rows and columns.
        let reach = |length: usize| (length - 1) * options.stride + options.kernel;
        let x = x.narrow(1, 0, reach(size.0))?.narrow(2, 0, reach(size.1))?;
        let y = x.permute((0, 3, 1, 2))?.contiguous()?.conv2d(&weight, 0, options.stride, 1, 1)?;
        add_bias(y.permute((0, 2, 3, 1))?.contiguous()?, self.bias.as_ref())
    }
}

/// Max pooling with kernel and stride 2: `(batch, height, width, channels)` to `(batch, height / 2, width / 2,
/// channels)`; an odd last row or column is dropped.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((1, 2, 4, 1))?;
/// assert_eq!(fauna_shared::nn::max_pool(&x)?.flatten_all()?.to_vec1::<f32>()?, [5.0, 7.0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn max_pool(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    if back::serves(x) && x.elem_count() > 0 {
        return grad::apply1(&x.contiguous()?, MaxPooled);
    }
    if x.track_op() {
        return max_pool_tracked(x);
    }
    if !host::serves(x) {
        let y = x.permute((0, 3, 1, 2))?.contiguous()?.max_pool2d(2)?;
        return Ok(y.permute((0, 2, 3, 1))?.contiguous()?);
    }
    let mut y = memory::zeros(batch * (height / 2) * (width / 2) * channels);
    host::read(x, |data| kernel::max_pool(Pictures { data, height, width, channels }, &mut y))?;
    Ok(Tensor::from_vec(y, (batch, height / 2, width / 2, channels), &Device::Cpu)?)
}

/// [`max_pool`] whose gradient goes to the first largest of each four pixels, as in torch. (candle's
/// own pooling passes on a quarter of it.)
fn max_pool_tracked(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let (rows, columns) = (height / 2, width / 2);
    let fours = x.narrow(1, 0, 2 * rows)?.narrow(2, 0, 2 * columns)?.contiguous()?;
    let fours = fours.reshape((batch * rows, 2, columns, 2 * channels))?;
    let pixel = |row: usize, column: usize| -> candle_core::Result<Tensor> {
        let pixels = fours.narrow(1, row, 1)?.narrow(3, column * channels, channels)?;
        pixels.contiguous()?.reshape((batch, rows, columns, channels))
    };
    let mut most = pixel(0, 0)?;
    for (row, column) in [(0, 1), (1, 0), (1, 1)] {
        let other = pixel(row, column)?;
        most = most.ge(&other)?.where_cond(&most, &other)?;
    }
    Ok(most)
}

/// Nearest-neighbour upsampling by 2: `(batch, height, width, channels)` to `(batch, 2 * height, 2 * width, channels)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[[[1f32], [2.0]]]], &Device::Cpu)?;
/// assert_eq!(fauna_shared::nn::double(&x)?.flatten_all()?.to_vec1::<f32>()?, [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
pub fn double(x: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let four = x.contiguous()?.reshape((batch, height, 1, width, 1, channels))?;
    let four = four.broadcast_as((batch, height, 2, width, 2, channels))?;
    Ok(four.reshape((batch, 2 * height, 2 * width, channels))?)
}

impl Weights {
    /// Loads the two-dimensional convolution `name`: `weight` of `[outputs, inputs, kernel, kernel]`, or `kernel` of
    /// `[kernel, kernel, inputs, outputs]` as in flax, and `bias` of `[outputs]`.
    ///
    /// # Errors
    /// [`Mismatch`](ErrorKind::Mismatch) if kernel or stride is 0.
    pub fn conv2d(
        &self,
        name: &str,
        inputs: usize,
        outputs: usize,
        options: Conv2dOptions,
    ) -> Result<Conv2d> {
        let (here, options) = (self.at(name), options.checked()?);
        let kernel = options.kernel;
        let weight = match here.has("kernel", false) {
            true => here.tensor("kernel", &[kernel, kernel, inputs, outputs])?,
            false => here.tensor("weight", &[outputs, inputs, kernel, kernel])?.permute((2, 3, 1, 0))?,
        };
        let weight = laid(weight, CANDLE, kernels_serve(self.runtime().device()))?;
        let bias = options.bias.then(|| here.tensor("bias", &[outputs])).transpose()?;
        Ok(Conv2d { weight, bias, inputs, options, turned: Arc::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::Gradients;
    use crate::runtime::Runtime;
    use crate::weights::{Select, Variables};
    use candle_core::Var;

    fn picture(batch: usize, height: usize, width: usize, channels: usize) -> Tensor {
        let values = (0..batch * height * width * channels).map(|i| (i as f32 * 0.7).sin() - 0.1);
        let x = Tensor::from_iter(values, &Device::Cpu).unwrap();
        x.reshape((batch, height, width, channels)).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[track_caller]
    fn assert_near(a: &Tensor, b: &Tensor, what: &str) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        for (i, (a, b)) in values(a).iter().zip(values(b)).enumerate() {
            assert!((a - b).abs() < 1e-5, "{what}: element {i}: {a} and {b}");
        }
    }

    /// `x` with a gradient required.
    fn tracked(x: &Tensor) -> Var {
        Var::from_tensor(x).unwrap()
    }

    #[test]
    fn a_convolution_computed_by_hand() {
        // One channel in; the first output is the pixel above, the second the sum of the four corners and 10.
        let mut taps = [[0f32; 2]; 9];
        taps[1][0] = 1.0;
        [0, 2, 6, 8].iter().for_each(|tap: &usize| taps[*tap][1] = 1.0);
        let weight = Tensor::new(&taps, &Device::Cpu).unwrap().reshape((3, 3, 1, 2)).unwrap();
        let bias = Some(Tensor::new(&[0f32, 10.0], &Device::Cpu).unwrap());
        let conv =
            Conv2d { weight, bias, inputs: 1, options: Conv2dOptions::new(3).same(), turned: Arc::default() };
        let x = Tensor::new(&[[[[1f32], [2.0]], [[3.0], [4.0]]]], &Device::Cpu).unwrap();
        assert_eq!(values(&conv.forward(&x).unwrap()), [0.0, 14.0, 0.0, 13.0, 1.0, 12.0, 2.0, 11.0]);
        let doubled = Conv2d { options: Conv2dOptions::new(3).same().of_doubled(), ..conv.clone() };
        let large = conv.forward(&double(&x).unwrap()).unwrap();
        assert_eq!(values(&doubled.forward(&x).unwrap()), values(&large));
        let scaled = conv.scaled(2.0).unwrap();
        assert_eq!(values(&scaled.forward(&x).unwrap())[..4], [0.0, 28.0, 0.0, 26.0]);
    }

    #[test]
    fn kernels_agree_with_candle_and_gradients_are_correct() {
        for (inputs, outputs, options) in [
            (3, 8, Conv2dOptions::new(7).same()),
            (20, 3, Conv2dOptions::new(3).same().no_bias()),
            (17, 5, Conv2dOptions::new(3).stride(2).padding_each([0, 1, 0, 1])),
            (16, 4, Conv2dOptions::new(3).same().of_doubled()),
            (5, 33, Conv2dOptions::new(1)),
            (4, 2, Conv2dOptions::new(2).stride(2)),
        ] {
            let weights = Weights::seeded(5, Runtime::cpu());
            let conv = weights.conv2d("c", inputs, outputs, options).unwrap();
            let x = picture(2, 6, 9, inputs);
            let y = conv.forward_then(&x, Activation::Silu).unwrap();
            let size = options.size(6, 9).unwrap();
            assert_eq!(y.dims(), [2, size.0, size.1, outputs]);
            let tracked = tracked(&x);
            let other = conv.forward_then(tracked.as_tensor(), Activation::Silu).unwrap();
            assert_near(&y, &other, &format!("{options:?}"));
            let linear = conv.forward(tracked.as_tensor()).unwrap();
            let gradient = linear.sum_all().unwrap().backward().unwrap();
            let gradient = values(gradient.get(&tracked).unwrap());
            let plain = conv.forward(&x).unwrap();
            // The sum is linear in each element, so its gradient is a difference.
            for i in [0, 13 * inputs, 60 * inputs + inputs - 1] {
                let mut moved = values(&x);
                moved[i] += 1.0;
                let moved = Tensor::from_vec(moved, x.shape(), &Device::Cpu).unwrap();
                let slope: f32 = values(&(conv.forward(&moved).unwrap() - &plain).unwrap()).iter().sum();
                assert!((slope - gradient[i]).abs() < 1e-3, "{options:?}: {slope}, not {}", gradient[i]);
            }
        }
    }

    #[test]
    fn kernels_and_candle_have_the_same_gradients() {
        for options in [
            Conv2dOptions::new(3).same(),
            Conv2dOptions::new(3).same().no_bias(),
            Conv2dOptions::new(3).stride(2).padding_each([0, 1, 0, 1]),
            Conv2dOptions::new(3).same().of_doubled(),
            Conv2dOptions::new(4).stride(2).padding(1),
            Conv2dOptions::new(1),
        ] {
            for (trains_x, trains_parameters) in [(true, true), (true, false), (false, true)] {
                let variables = Arc::new(Variables::new(Select::All));
                let weights = Weights::seeded(5, Runtime::cpu());
                let weights = match trains_parameters {
                    true => weights.with_variables(&variables, true),
                    false => weights,
                };
                let conv = weights.conv2d("c", 3, 5, options).unwrap();
                let (x, size) = (tracked(&picture(2, 6, 9, 3)), options.size(6, 9).unwrap());
                let mut trained: Vec<Var> = variables.all().into_values().collect();
                trained.extend(trains_x.then(|| x.clone()));
                let x = if trains_x { x.as_tensor().clone() } else { x.as_tensor().detach() };
                let mix = picture(2, size.0, size.1, 5);
                let [here, there] = [conv.forward(&x), conv.portable(&x, size)].map(|y| {
                    let y = y.unwrap();
                    let mut gradients = Gradients::of(&trained);
                    let loss = (&y * &mix).unwrap().sum_all().unwrap();
                    gradients.backward(&loss).unwrap();
                    gradients.backward(&loss).unwrap();
                    (y, trained.iter().map(|x| gradients.get(x).unwrap().unwrap()).collect::<Vec<_>>())
                });
                assert_near(&here.0, &there.0, &format!("{options:?}"));
                for (here, there) in here.1.iter().zip(&there.1) {
                    let scale = values(there).iter().fold(1f32, |most, x| most.max(x.abs()));
                    let [here, there] = [here, there].map(|x| (x / f64::from(scale)).unwrap());
                    assert_near(&here, &there, &format!("{options:?}, {trains_x}, {trains_parameters}"));
                }
            }
        }
    }

    #[test]
    fn max_pooling_has_the_same_gradient_with_and_without_kernels() {
        let x = tracked(&picture(2, 5, 7, 3));
        let mix = picture(2, 2, 3, 3);
        let [here, there] = [max_pool(x.as_tensor()), max_pool_tracked(x.as_tensor())].map(|y| {
            let back = (y.unwrap() * &mix).unwrap().sum_all().unwrap().backward().unwrap();
            back.get(&x).unwrap().clone()
        });
        assert_eq!(values(&here), values(&there));
    }

    #[test]
    fn a_device_holds_one_weight_and_computes_the_same() {
        let weights = Weights::seeded(5, Runtime::cpu());
        let conv = weights.conv2d("c", 5, 3, Conv2dOptions::new(3).same()).unwrap();
        let there = Conv2d {
            weight: laid(conv.weight.clone(), CANDLE, false).unwrap(),
            turned: Arc::default(),
            ..conv.clone()
        };
        assert!(conv.weight.is_contiguous() && !there.weight.is_contiguous());
        assert!(there.weight.permute(CANDLE).unwrap().is_contiguous());
        let x = picture(2, 6, 9, 5);
        let y = there.portable(&x, (6, 9)).unwrap();
        assert_near(&conv.forward(&x).unwrap(), &y, "laid for candle");
    }

    #[test]
    fn a_flax_kernel_is_the_same_convolution() {
        let conv = Weights::seeded(5, Runtime::cpu());
        let conv = conv.conv2d("c", 4, 6, Conv2dOptions::new(3)).unwrap();
        let stored = Weights::seeded(5, Runtime::cpu()).tensor("c.weight", &[6, 4, 3, 3]).unwrap();
        for (i, value) in values(&conv.weight).into_iter().enumerate() {
            let (tap, input, output) = (i / 24, i / 6 % 4, i % 6);
            assert_eq!(value, values(&stored)[((output * 4) + input) * 9 + tap]);
        }
    }

    #[test]
    fn max_pooling_and_upsampling_agree_with_candle() {
        let x = picture(2, 5, 6, 3);
        let pooled = max_pool(&x).unwrap();
        assert_near(&pooled, &max_pool(tracked(&x).as_tensor()).unwrap(), "max_pool");
        let doubled = double(&x).unwrap();
        let turned = x.permute((0, 3, 1, 2)).unwrap().upsample_nearest2d(10, 12).unwrap();
        assert_near(&doubled, &turned.permute((0, 2, 3, 1)).unwrap(), "double");
    }

    #[test]
    fn the_gradient_of_max_pooling_goes_to_the_first_largest_pixel() {
        // Two channels; the last row and column are dropped, and the second channel has equal pixels.
        let first = [1f32, 5.0, 9.0, 2.0, 3.0, 9.0, 8.0, 8.0, 8.0];
        let x: Vec<f32> = first.iter().flat_map(|x| [*x, 4.0]).collect();
        let x = tracked(&Tensor::from_vec(x, (1, 3, 3, 2), &Device::Cpu).unwrap());
        let pooled = max_pool(x.as_tensor()).unwrap();
        assert_eq!(values(&pooled), [5.0, 4.0]);
        let gradients = (pooled * 3.0).unwrap().sum_all().unwrap().backward().unwrap();
        let mut wanted = [0f32; 18];
        (wanted[2], wanted[1]) = (3.0, 3.0);
        assert_eq!(values(gradients.get(x.as_tensor()).unwrap()), wanted);
    }

    #[test]
    fn one_hot_pixels_are_looked_up() {
        let weights = Weights::seeded(5, Runtime::cpu());
        let conv = weights.conv2d("c", 7, 3, Conv2dOptions::new(1)).unwrap();
        let codes = Tensor::new(&[[[6u32, 0, 3]]], &Device::Cpu).unwrap();
        let ones: Vec<f32> =
            [6, 0, 3].iter().flat_map(|code| (0..7).map(move |i| f32::from(u8::from(i == *code)))).collect();
        let ones = Tensor::from_vec(ones, (1, 1, 3, 7), &Device::Cpu).unwrap();
        assert_near(&conv.of_one_hot(&codes).unwrap(), &conv.forward(&ones).unwrap(), "one hot");
        let outside = Tensor::new(&[[[7u32]]], &Device::Cpu).unwrap();
        assert_eq!(conv.of_one_hot(&outside).unwrap_err().kind(), ErrorKind::Input);
    }

    #[test]
    fn invalid_sizes_are_errors() {
        let weights = Weights::seeded(5, Runtime::cpu());
        let conv = weights.conv2d("c", 2, 3, Conv2dOptions::new(5)).unwrap();
        assert_eq!(conv.forward(&picture(1, 4, 9, 2)).unwrap_err().kind(), ErrorKind::Input);
        assert!(conv.forward(&picture(1, 9, 9, 3)).is_err());
        assert!(weights.conv2d("d", 2, 3, Conv2dOptions::new(0)).is_err());
        assert!(weights.conv2d("d", 2, 3, Conv2dOptions::new(1).stride(0)).is_err());
    }
}
