//! LSTM (long short-term memory). Activations are `(batch, time, hidden_size)`.

use candle_core::{Device, Tensor};
use candle_nn::ops::sigmoid;

use super::back::{Recurrence, VariableRecurrence};
use super::{Linear, Matrix, host};
use crate::kernels::lstm as kernel;
use crate::runtime::kernels_take;
use crate::weights::Weights;
use crate::{Error, Result, grad};

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
        if let Some(y) = self.recurrence(x, h, c)? {
            return Ok(y);
        }
        // The products with the input are computed at once for all time steps.
        let from_input = self.input.forward(x)?;
        if host::serve([&from_input, h, c]) && self.recurrent.weight().is_fixed() {
            return self.on_host(&from_input, h, c, width);
        }
        self.steps(&from_input, h, c, width)
    }

    /// [`forward`](Layer::forward) by operations of candle, after the product with the input,
    /// `(batch, time, 4 * hidden_size)`.
    fn steps(&self, from_input: &Tensor, h: &mut Tensor, c: &mut Tensor, width: usize) -> Result<Tensor> {
        let time = from_input.dim(1)?;
        let mut outputs = Vec::with_capacity(time);
        for t in 0..time {
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

    /// [`forward`](Layer::forward) by kernels with a backward pass; `None` if no gradient is required, or something is not
    /// float32 on the CPU.
    fn recurrence(&self, x: &Tensor, h: &mut Tensor, c: &mut Tensor) -> Result<Option<Tensor>> {
        let (input, recurrent, time) = (self.input.weight(), self.recurrent.weight(), x.dim(1)?);
        let variables = [input, recurrent].into_iter().filter_map(Matrix::variable_parts);
        let parameters = variables.map(|(weight, _)| weight);
        let parameters = parameters.chain(self.input.bias()).chain(self.recurrent.bias());
        let tracks = [x, &*h, &*c].into_iter().chain(parameters).any(Tensor::track_op);
        let is_served = match recurrent.variable_parts() {
            Some((weight, _)) => kernels_take(weight),
            None => recurrent.is_fixed(),
        };
        if !(tracks && is_served && [x, &*h, &*c].into_iter().all(kernels_take) && time > 0) {
            return Ok(None);
        }
        let bias = match (self.input.bias(), self.recurrent.bias()) {
            (Some(a), Some(b)) => Some((a + b)?),
            (a, b) => a.or(b).cloned(),
        };
        let gates = input.multiply(x, bias.as_ref(), None)?.contiguous()?;
        let states = recurrence(&gates, &Tensor::stack(&[&*h, &*c], 0)?, recurrent)?;
        let last = states.narrow(2, time - 1, 1)?.squeeze(2)?;
        (*h, *c) = (last.get(0)?, last.get(1)?);
        Ok(Some(states.get(0)?))
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

/// The hidden and cell states after each step, `(2, batch, time, hidden_size)`, of the gates without the products with
/// the hidden states, `(batch, time, 4 * hidden_size)`, and of the first states, `(2, batch, hidden_size)`.
fn recurrence(gates: &Tensor, state: &Tensor, weight: &Matrix) -> Result<Tensor> {
    Ok(match weight.variable_parts() {
        Some((tensor, compute)) => {
            grad::apply3(gates, state, &tensor.contiguous()?, VariableRecurrence { compute })?
        }
        None => grad::apply2(gates, state, Recurrence { weight: weight.clone() })?,
    })
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
    use crate::grad::Gradients;
    use crate::runtime::Runtime;
    use crate::weights::{Select, Variables};
    use candle_core::Var;
    use std::sync::Arc;

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
    fn kernels_and_candle_have_the_same_gradients() {
        for (trains_x, trains_parameters) in [(true, true), (true, false), (false, true)] {
            let variables = Arc::new(Variables::new(Select::All));
            let weights = Weights::seeded(1, Runtime::cpu());
            let weights = match trains_parameters {
                true => weights.with_variables(&variables, true),
                false => weights,
            };
            let lstm = weights.lstm("", 5, 7, 1).unwrap();
            let layer = &lstm.layers[0];
            let [x, h, c] = [x(3, 6, 5), x(3, 1, 7), x(1, 3, 7)].map(|x| Var::from_tensor(&x).unwrap());
            let mut trained: Vec<Var> = variables.all().into_values().collect();
            if trains_x {
                trained.extend([x.clone(), h.clone(), c.clone()]);
            }
            let start = |x: &Var| if trains_x { x.as_tensor().clone() } else { x.as_tensor().detach() };
            let (x, h, c) = (start(&x), start(&h).squeeze(1).unwrap(), start(&c).squeeze(0).unwrap());
            let gradients = |y: &Tensor, h: &Tensor, c: &Tensor| {
                let mix = Tensor::arange(0f32, y.elem_count() as f32, &Device::Cpu).unwrap();
                let mix = mix.sin().unwrap().reshape(y.shape()).unwrap();
                let last = (h.sum_all().unwrap() + c.sqr().unwrap().sum_all().unwrap()).unwrap();
                let loss = ((y * mix).unwrap().sum_all().unwrap() + last).unwrap();
                let mut gradients = Gradients::of(&trained);
                gradients.backward(&loss).unwrap();
                gradients.backward(&loss).unwrap();
                trained.iter().map(|x| gradients.get(x).unwrap().unwrap()).collect::<Vec<_>>()
            };
            let mut here = (h.clone(), c.clone());
            let y = layer.recurrence(&x, &mut here.0, &mut here.1).unwrap().unwrap();
            let mut there = (h.clone(), c.clone());
            let from_input = layer.input.forward(&x).unwrap();
            let z = layer.steps(&from_input, &mut there.0, &mut there.1, 7).unwrap();
            assert_near(&y, &z);
            assert_near(&here.0, &there.0);
            assert_near(&here.1, &there.1);
            let (here, there) = (gradients(&y, &here.0, &here.1), gradients(&z, &there.0, &there.1));
            for (here, there) in here.iter().zip(&there) {
                let scale = values(there).iter().fold(1f32, |most, x| most.max(x.abs()));
                let [here, there] = [here, there].map(|x| (x / f64::from(scale)).unwrap());
                assert_near(&here, &there);
            }
        }
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
