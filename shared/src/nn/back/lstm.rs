//! The recurrence of an LSTM.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::super::Matrix;
use super::weighted::Stored;
use super::{delivered_or, floats, host, numbers, out, tensor_of};
use crate::Result;
use crate::grad::Recorded;
use crate::kernels::matmul::{
    self, Compute, Layout as MatrixLayout, linear_input_gradient, linear_weight_gradient,
};
use crate::kernels::{lstm, memory};

/// Sizes of a layer and of what it is applied to.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    time: usize,
    width: usize,
}

/// Hidden or cell states before and after each step of a run.
struct States<'a> {
    /// Before the first step, `(batch, hidden_size)`.
    first: &'a [f32],
    /// After each step, `(batch, time, hidden_size)`.
    after: &'a [f32],
}

impl Sizes {
    /// Of `gates`, `(batch, time, 4 * hidden_size)`.
    fn of(gates: &Shape) -> candle_core::Result<Self> {
        let (batch, time, gates) = gates.dims3()?;
        Ok(Self { batch, time, width: gates / 4 })
    }

    /// Where the states of sequence `b` after step `t` begin.
    fn at(&self, b: usize, t: usize) -> usize {
        (b * self.time + t) * self.width
    }

    /// The hidden and cell states after each step, `(2, batch, time, hidden_size)`. `product` multiplies hidden states,
    /// `(batch, hidden_size)`, with the recurrent weight.
    fn forward(
        &self,
        gates: &[f32],
        state: &[f32],
        product: impl Fn(&[f32]) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let Self { batch, time, width } = *self;
        let mut states = memory::zeros(2 * batch * time * width);
        let (hidden, cells) = states.split_at_mut(batch * time * width);
        let (h, c) = state.split_at(batch * width);
        let (mut h, mut c) = (h.to_vec(), c.to_vec());
        for t in 0..time {
            let recurrent = product(&h)?;
            for b in 0..batch {
                let (from_input, from_output) =
                    (&gates[4 * self.at(b, t)..][..4 * width], &recurrent[4 * b * width..][..4 * width]);
                let (h, c) = (&mut h[b * width..][..width], &mut c[b * width..][..width]);
                lstm::step(from_input, from_output, c, h);
                hidden[self.at(b, t)..][..width].copy_from_slice(h);
                cells[self.at(b, t)..][..width].copy_from_slice(c);
            }
        }
        Ok(states)
    }

    /// The hidden states before each step, `(batch, time, hidden_size)`.
    fn before(&self, hidden: &States) -> Vec<f32> {
        let mut before = memory::zeros(hidden.after.len());
        for (b, t) in (0..self.batch).flat_map(|b| (0..self.time).map(move |t| (b, t))) {
            before[self.at(b, t)..][..self.width].copy_from_slice(self.previous(hidden, b, t));
        }
        before
    }

    /// The states of sequence `b` before step `t`.
    fn previous<'a>(&self, states: &States<'a>, b: usize, t: usize) -> &'a [f32] {
        match t.checked_sub(1) {
            Some(t) => &states.after[self.at(b, t)..][..self.width],
            None => &states.first[b * self.width..][..self.width],
        }
    }

    /// The gradients of the gates, `(batch, time, 4 * hidden_size)`, and of the first states, `(2, batch, hidden_size)`.
    ///
    /// `recurrent`: the products of the hidden states before each step with the recurrent weight, of the shape of
    /// `gates`. `grad`: the gradient of the states after each step. `product_back` multiplies gradients of the gates,
    /// `(batch, 4 * hidden_size)`, with the transposed recurrent weight.
    fn backward(
        &self,
        gates: &[f32],
        recurrent: &[f32],
        cells: &States,
        grad: &[f32],
        product_back: impl Fn(&[f32]) -> Result<Vec<f32>>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let Self { batch, time, width } = *self;
        let (grad_hidden, grad_cells) = grad.split_at(batch * time * width);
        let mut to_gates = memory::zeros(gates.len());
        let (mut to_h, mut to_c) = (vec![0f32; batch * width], vec![0f32; batch * width]);
        let mut now = vec![0f32; 4 * batch * width];
        for t in (0..time).rev() {
            add_rows(&mut to_h, grad_hidden, |b| self.at(b, t), width);
            add_rows(&mut to_c, grad_cells, |b| self.at(b, t), width);
            for b in 0..batch {
                let (at, own) = (4 * self.at(b, t), b * width..(b + 1) * width);
                let (from_input, from_output) = (&gates[at..][..4 * width], &recurrent[at..][..4 * width]);
                let to_step = &mut now[4 * b * width..][..4 * width];
                let c = self.previous(cells, b, t);
                lstm::step_backward(from_input, from_output, c, &to_h[own.clone()], &mut to_c[own], to_step);
                to_gates[at..][..4 * width].copy_from_slice(to_step);
            }
            to_h = product_back(&now)?;
        }
        to_h.extend(to_c);
        Ok((to_gates, to_h))
    }
}

/// Adds the `width` elements of `from` at `at(b)` to row `b` of `to`, `(batch, width)`.
fn add_rows(to: &mut [f32], from: &[f32], at: impl Fn(usize) -> usize, width: usize) {
    for (b, to) in to.chunks_exact_mut(width.max(1)).enumerate() {
        to.iter_mut().zip(&from[at(b)..][..width]).for_each(|(to, from)| *to += from);
    }
}

/// The recurrence of a layer of an LSTM with a frozen recurrent weight: of the products of the inputs with their weight,
/// `(batch, time, 4 * hidden_size)`, with all biases, and of the first hidden and cell states,
/// `(2, batch, hidden_size)`, the states after each step, `(2, batch, time, hidden_size)`.
pub(in crate::nn) struct Recurrence {
    pub weight: Matrix,
}

impl Recorded for Recurrence {
    const READS_OUTPUT: bool = true;
}

impl CustomOp2 for Recurrence {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        forward((gates, gates_layout), (state, state_layout), |h| self.weight.multiply_host(h, None, None))
    }

    fn bwd(
        &self,
        gates: &Tensor,
        state: &Tensor,
        states: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (product, product_back) = (
            |h: &[f32]| self.weight.multiply_host(h, None, None),
            |grad: &[f32]| self.weight.multiply_back_host(grad),
        );
        let back = back(gates, state, states, grad, product, product_back).map_err(out)?;
        Ok((wanted(gates, back.gates)?, wanted(state, back.state)?))
    }
}

/// [`Recurrence`] with a gradient of the recurrent weight, `(4 * hidden_size, hidden_size)`, too.
pub(in crate::nn) struct VariableRecurrence {
    pub compute: Compute,
}

impl VariableRecurrence {
    fn product(&self, h: &[f32], weight: &[f32], width: usize) -> Result<Vec<f32>> {
        let rows = h.len() / width.max(1);
        let mut y = memory::zeros(rows * 4 * width);
        let weight = floats(weight, MatrixLayout::OutIn, 4 * width, width)?;
        matmul::linear(h, rows, &weight, None, self.compute, None, &mut y);
        Ok(y)
    }

    fn product_back(&self, grad: &[f32], weight: &[f32], width: usize) -> Result<Vec<f32>> {
        let rows = grad.len() / (4 * width).max(1);
        let mut back = memory::zeros(rows * width);
        let weight = floats(weight, MatrixLayout::OutIn, 4 * width, width)?;
        linear_input_gradient(grad, rows, &weight, self.compute, false, &mut back);
        Ok(back)
    }
}

impl Recorded for VariableRecurrence {
    const READS_OUTPUT: bool = true;
}

impl CustomOp3 for VariableRecurrence {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn cpu_fwd(
        &self,
        gates: &CpuStorage,
        gates_layout: &Layout,
        state: &CpuStorage,
        state_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, width) = weight_layout.shape().dims2()?;
        let weight = numbers(weight, weight_layout)?;
        forward((gates, gates_layout), (state, state_layout), |h| self.product(h, weight, width))
    }

    fn bwd(
        &self,
        gates: &Tensor,
        state: &Tensor,
        weight: &Tensor,
        states: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = weight.dim(1)?;
        let back = host::saved(weight, |weight| {
            let (product, product_back) = (
                |h: &[f32]| self.product(h, weight, width),
                |grad: &[f32]| self.product_back(grad, weight, width),
            );
            back(gates, state, states, grad, product, product_back)
        })
        .and_then(|done| done)
        .map_err(out)?;
        let to_weight = delivered_or(weight, |gradient, accumulate| {
            let (grad, h) = (&back.gates, &back.before);
            let rows = h.len() / width.max(1);
            let layout = MatrixLayout::OutIn;
            linear_weight_gradient(grad, h, rows, (4 * width, width), layout, accumulate, gradient, None);
            Ok(())
        })?;
        Ok((wanted(gates, back.gates)?, wanted(state, back.state)?, to_weight))
    }
}

/// The states after each step, `(2, batch, time, hidden_size)`.
fn forward(
    (gates, gates_layout): Stored,
    (state, state_layout): Stored,
    product: impl Fn(&[f32]) -> Result<Vec<f32>>,
) -> candle_core::Result<(CpuStorage, Shape)> {
    let sizes = Sizes::of(gates_layout.shape())?;
    let (gates, state) = (numbers(gates, gates_layout)?, numbers(state, state_layout)?);
    let states = sizes.forward(gates, state, product).map_err(out)?;
    Ok((CpuStorage::F32(states), (2, sizes.batch, sizes.time, sizes.width).into()))
}

/// What a backward pass of a recurrence computes.
struct Back {
    /// The gradient of the gates.
    gates: Vec<f32>,
    /// The gradient of the first states.
    state: Vec<f32>,
    /// The hidden states before each step.
    before: Vec<f32>,
}

fn back(
    gates: &Tensor,
    state: &Tensor,
    states: &Tensor,
    grad: &Tensor,
    product: impl Fn(&[f32]) -> Result<Vec<f32>>,
    product_back: impl Fn(&[f32]) -> Result<Vec<f32>>,
) -> Result<Back> {
    let sizes = Sizes::of(gates.shape())?;
    host::saved(gates, |gates| {
        host::saved(state, |state| {
            host::saved(states, |states| {
                host::saved(grad, |grad| {
                    let (h, c) = state.split_at(sizes.batch * sizes.width);
                    let (hidden, cells) = states.split_at(states.len() / 2);
                    let before = sizes.before(&States { first: h, after: hidden });
                    let cells = States { first: c, after: cells };
                    let (gates, state) =
                        sizes.backward(gates, &product(&before)?, &cells, grad, product_back)?;
                    Ok(Back { gates, state, before })
                })
            })
        })
    })????
}

/// The gradient `values` of `x`; `None` if it requires none.
fn wanted(x: &Tensor, values: Vec<f32>) -> candle_core::Result<Option<Tensor>> {
    x.track_op().then(|| tensor_of(values, x)).transpose()
}
