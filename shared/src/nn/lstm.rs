//! LSTM (long short-term memory). Activations are `(batch, time, hidden_size)`.

use candle_core::{Device, Tensor};
use candle_nn::ops::sigmoid;

use super::{Linear, host};
use crate::kernels::lstm as kernel;
use crate::weights::Weights;
use crate::{Error, Result};

/// A unidirectional multi-layer LSTM (Hochreiter and Schmidhuber 1997; with forget gates, Gers et al. 2000), as in
/// `torch.nn.LSTM`.
///
/// A layer has a hidden state `h` and a cell state `c`. With `(i, f, g, o) = W x + b + U h + b'`, a step is
/// `c = σ(f) c + σ(i) tanh(g)` and `h = σ(o) tanh(c)`.
#[derive(Debug, Clone)]
pub struct Lstm {
    layers: Vec<Layer>,
    width: usize,
}

#[derive(Debug, Clone)]
struct Layer {
    /// `W`, `(4 * hidden_size, inputs)`, and `b`.
    input: Linear,
    /// `U`, `(4 * hidden_size, hidden_size)`, and `b'`.
    recurrent: Linear,
}

/// State of an [`Lstm`]: hidden and cell state of each layer.
#[derive(Debug, Clone)]
pub struct LstmState {
    /// `h` and `c` of each layer, each `(batch, hidden_size)`.
    layers: Vec<(Tensor, Tensor)>,
}

impl Lstm {
    /// Applies the LSTM to `x`, `(batch, time, inputs)`, with a zero initial state; `time` is at least 1. Returns
    /// `(batch, time, hidden_size)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut state = self.start(x)?;
        self.forward_from(x, &mut state)
    }

    /// [`forward`](Lstm::forward) with the initial state `state`, which is updated to the final one.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if `state` has another batch size, hidden size or number of layers.
    pub fn forward_from(&self, x: &Tensor, state: &mut LstmState) -> Result<Tensor> {
        let wanted = [x.dims3()?.0, self.width];
        let fits = |(h, c): &(Tensor, Tensor)| h.dims() == wanted && c.dims() == wanted;
        if state.layers.len() != self.layers.len() || !state.layers.iter().all(fits) {
            return Err(Error::input(format!(
                "expected an LSTM state of {} layers of (batch, hidden_size) = {wanted:?}",
                self.layers.len()
            )));
        }
        let mut x = x.clone();
        for (layer, state) in self.layers.iter().zip(&mut state.layers) {
            x = layer.forward(&x, state, self.width)?;
        }
        Ok(x)
    }

    /// Returns a zero state for inputs `x`, `(batch, time, inputs)`, with its batch size, dtype and device.
    pub fn start(&self, x: &Tensor) -> Result<LstmState> {
        let zeros = Tensor::zeros((x.dim(0)?, self.width), x.dtype(), x.device())?;
        Ok(LstmState { layers: vec![(zeros.clone(), zeros); self.layers.len()] })
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, (h, c): &mut (Tensor, Tensor), width: usize) -> Result<Tensor> {
        // The products with the input are computed at once for all time steps.
        let from_input = self.input.forward(x)?;
        if host::serve([&from_input, h, c]) && self.recurrent.weight().is_fixed() {
            return self.on_host(&from_input, h, c, width);
        }
        let mut outputs = Vec::with_capacity(x.dim(1)?);
        for t in 0..x.dim(1)? {
            let sums = (from_input.narrow(1, t, 1)?.squeeze(1)? + self.recurrent.forward(h)?)?;
            let gate = |n: usize| sums.narrow(1, n * width, width);
            let (input, forget) = (sigmoid(&gate(0)?)?, sigmoid(&gate(1)?)?);
            let (new, output) = (gate(2)?.tanh()?, sigmoid(&gate(3)?)?);
            *c = ((forget * &*c)? + (input * new)?)?;
            *h = (output * c.tanh()?)?;
            outputs.push(h.clone());
        }
        Ok(Tensor::stack(&outputs, 1)?)
    }

    /// [`forward`](Layer::forward) on the CPU, after the product with the input, `(batch, time, 4 * hidden_size)`.
    fn on_host(&self, from_input: &Tensor, h: &mut Tensor, c: &mut Tensor, width: usize) -> Result<Tensor> {
        let (batch, time, gates) = from_input.dims3()?;
        let mut cells = host::read(c, <[f32]>::to_vec)?;
        let mut outputs = vec![0f32; batch * time * width];
        host::read(from_input, |from_input| -> Result<()> {
            for t in 0..time {
                let mut now = vec![0f32; batch * width];
                host::read(&self.recurrent.forward(h)?, |from_output| {
                    for (b, from_output) in from_output.chunks_exact(gates).enumerate() {
                        let from_input = &from_input[(b * time + t) * gates..][..gates];
                        let (c, h) = (&mut cells[b * width..][..width], &mut now[b * width..][..width]);
                        kernel::step(from_input, from_output, c, h);
                        outputs[(b * time + t) * width..][..width].copy_from_slice(h);
                    }
                })?;
                *h = Tensor::from_vec(now, (batch, width), &Device::Cpu)?;
            }
            Ok(())
        })??;
        *c = Tensor::from_vec(cells, (batch, width), &Device::Cpu)?;
        Ok(Tensor::from_vec(outputs, (batch, time, width), &Device::Cpu)?)
    }
}

impl Weights {
    /// Loads the LSTM `name` of hidden size `width`, with the tensor names of torch: `weight_ih_l0` of `[4 * width,
    /// inputs]`, `weight_hh_l0` of `[4 * width, width]`, `bias_ih_l0` and `bias_hh_l0` of `[4 * width]`, and so on for
    /// each layer; gates in the order input, forget, cell, output.
    pub fn lstm(&self, name: &str, inputs: usize, width: usize, layers: usize) -> Result<Lstm> {
        let here = self.at(name);
        let layer = |l: usize| -> Result<Layer> {
            let inputs = if l == 0 { inputs } else { width };
            let gates = width.saturating_mul(4);
            let linear = |name: &str, inputs: usize| -> Result<Linear> {
                let weight = here.matrix(&format!("weight_{name}_l{l}"), gates, inputs)?;
                Ok(Linear::new(weight, Some(here.tensor(&format!("bias_{name}_l{l}"), &[gates])?)))
            };
            Ok(Layer { input: linear("ih", inputs)?, recurrent: linear("hh", width)? })
        };
        Ok(Lstm { layers: (0..layers).map(layer).collect::<Result<_>>()?, width })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;
    use candle_core::Var;

    fn x(batch: usize, time: usize, width: usize) -> Tensor {
        let values = (0..batch * time * width).map(|i| (i as f32 * 0.7).sin());
        Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((batch, time, width)).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[track_caller]
    fn assert_near(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        for (i, (a, b)) in values(a).iter().zip(values(b)).enumerate() {
            assert!((a - b).abs() < 1e-6, "element {i}: {a} and {b}");
        }
    }

    #[test]
    fn one_cell_computed_by_hand() {
        let weights = Weights::seeded(3, Runtime::cpu());
        let lstm = weights.lstm("lstm", 1, 1, 1).unwrap();
        let row = |name: &str, n: &[usize]| values(&weights.tensor(name, n).unwrap());
        let (w, u) = (row("lstm.weight_ih_l0", &[4, 1]), row("lstm.weight_hh_l0", &[4, 1]));
        let (b, d) = (row("lstm.bias_ih_l0", &[4]), row("lstm.bias_hh_l0", &[4]));
        let y = values(&lstm.forward(&Tensor::new(&[[[0.5f32], [-2.0]]], &Device::Cpu).unwrap()).unwrap());
        let (mut h, mut c) = (0.0, 0.0);
        for (x, y) in [0.5f32, -2.0].into_iter().zip(y) {
            let sum = |n: usize| w[n] * x + b[n] + u[n] * h + d[n];
            let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
            c = sigmoid(sum(1)) * c + sigmoid(sum(0)) * sum(2).tanh();
            h = sigmoid(sum(3)) * c.tanh();
            assert!((h - y).abs() < 1e-6, "{h} and {y}");
        }
    }

    #[test]
    fn chunks_with_a_state_equal_the_whole_sequence() {
        let lstm = Weights::seeded(1, Runtime::cpu()).lstm("", 5, 7, 2).unwrap();
        let x = x(2, 9, 5);
        let whole = lstm.forward(&x).unwrap();
        let mut state = lstm.start(&x).unwrap();
        let pieces = [(0, 1), (1, 5), (6, 3)]
            .map(|(from, n)| lstm.forward_from(&x.narrow(1, from, n).unwrap(), &mut state).unwrap());
        assert_near(&whole, &Tensor::cat(&pieces, 1).unwrap());
    }

    #[test]
    fn a_state_of_another_batch_is_rejected() {
        let weights = Weights::seeded(1, Runtime::cpu());
        let (lstm, deeper) = (weights.lstm("a", 5, 7, 1).unwrap(), weights.lstm("b", 5, 7, 2).unwrap());
        let mut state = lstm.start(&x(2, 1, 5)).unwrap();
        assert!(lstm.forward_from(&x(1, 1, 5), &mut state).is_err());
        assert!(deeper.forward_from(&x(2, 1, 5), &mut state).is_err());
        assert!(lstm.forward_from(&x(2, 0, 5), &mut state).is_ok());
    }

    #[test]
    fn kernel_and_candle_agree_and_gradients_are_not_zero() {
        let lstm = Weights::seeded(1, Runtime::cpu()).lstm("", 5, 37, 2).unwrap();
        let x = x(3, 4, 5);
        let tracked = Var::from_tensor(&x).unwrap();
        let y = lstm.forward(tracked.as_tensor()).unwrap();
        assert_near(&lstm.forward(&x).unwrap(), &y);
        let gradient = y.sum_all().unwrap().backward().unwrap();
        assert!(values(gradient.get(&tracked).unwrap()).iter().all(|g| *g != 0.0));
    }
}
