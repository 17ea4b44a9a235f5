//! Element-wise part of one step of an LSTM (long short-term memory) cell.

use super::elementwise::{sigmoid_one, tanh_one};
use super::versions::{fma, versioned};

/// One step of an LSTM cell: `c = σ(f) c + σ(i) tanh(g)` and `h = σ(o) tanh(c)`, where the gates `(i, f, g, o)` are
/// `from_input + from_output`, the products of the input and of the previous hidden state with their weights.
///
/// `from_input` and `from_output`: `(4, hidden_size)`. `c`: `(hidden_size)`, updated. `h`: `(hidden_size)`,
/// overwritten.
///
/// # Panics
/// If the length of a slice does not match its shape.
///
/// ```
/// let (mut c, mut h) = ([2.0], [0.0]);
/// fauna_kernels::lstm::step(&[-100.0, 100.0, 0.0, 100.0], &[0.0; 4], &mut c, &mut h);
/// assert_eq!(c, [2.0]);
/// assert!((h[0] - 2f32.tanh()).abs() < 1e-6);
/// ```
pub fn step(from_input: &[f32], from_output: &[f32], c: &mut [f32], h: &mut [f32]) {
    let width = c.len();
    let lengths = (from_input.len(), from_output.len(), h.len());
    assert_eq!(lengths, (4 * width, 4 * width, width), "expected four gates of the hidden size");
    each(from_input, from_output, c, h);
}

versioned! {
    fn each(from_input: &[f32], from_output: &[f32], c: &mut [f32], h: &mut [f32]) {
        let width = c.len();
        let gate = |n: usize| (&from_input[n * width..][..width], &from_output[n * width..][..width]);
        let (input, forget, new, output) = (gate(0), gate(1), gate(2), gate(3));
        let h = &mut h[..width];
        for u in 0..width {
            let sum = |gate: (&[f32], &[f32])| gate.0[u] + gate.1[u];
            let keep = sigmoid_one::<FMA>(sum(forget)) * c[u];
            c[u] = fma::<FMA>(sigmoid_one::<FMA>(sum(input)), tanh_one::<FMA>(sum(new)), keep);
            h[u] = sigmoid_one::<FMA>(sum(output)) * tanh_one::<FMA>(c[u]);
        }
    }
}

/// Backward pass of [`step`]: `to_c`, the gradient with respect to the new cell state, becomes that with respect to
/// `c`, the cell state before the step, and `to_gates` is the gradient with respect to the gates before their
/// activations, which is that of `from_input` and of `from_output`.
///
/// `from_input`, `from_output` and `to_gates`: `(4, hidden_size)`. `c`, `to_h` and `to_c`: `(hidden_size)`; `to_h` is the
/// gradient with respect to the new hidden state.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn step_backward(
    from_input: &[f32],
    from_output: &[f32],
    c: &[f32],
    to_h: &[f32],
    to_c: &mut [f32],
    to_gates: &mut [f32],
) {
    versioned! {
        fn back(
            from_input: &[f32], from_output: &[f32], c: &[f32], to_h: &[f32], to_c: &mut [f32],
            to_gates: &mut [f32],
        ) {
            let width = c.len();
            let gate = |n: usize| (&from_input[n * width..][..width], &from_output[n * width..][..width]);
            let (input, forget, new, output) = (gate(0), gate(1), gate(2), gate(3));
            let (to_input, rest) = to_gates.split_at_mut(width);
            let (to_forget, rest) = rest.split_at_mut(width);
            let (to_new, to_output) = rest.split_at_mut(width);
            let (to_output, to_h, to_c) = (&mut to_output[..width], &to_h[..width], &mut to_c[..width]);
            for u in 0..width {
                let sum = |gate: (&[f32], &[f32])| gate.0[u] + gate.1[u];
                let (i, f) = (sigmoid_one::<FMA>(sum(input)), sigmoid_one::<FMA>(sum(forget)));
                let (g, o) = (tanh_one::<FMA>(sum(new)), sigmoid_one::<FMA>(sum(output)));
                let squashed = tanh_one::<FMA>(fma::<FMA>(i, g, f * c[u]));
                to_output[u] = to_h[u] * squashed * o * (1.0 - o);
                let slope = fma::<FMA>(to_h[u] * o, fma::<FMA>(-squashed, squashed, 1.0), to_c[u]);
                to_input[u] = slope * g * i * (1.0 - i);
                to_forget[u] = slope * c[u] * f * (1.0 - f);
                to_new[u] = slope * i * fma::<FMA>(-g, g, 1.0);
                to_c[u] = slope * f;
            }
        }
    }
    let width = c.len();
    let gates = [from_input.len(), from_output.len(), to_gates.len()];
    assert_eq!(gates, [4 * width; 3], "expected four gates of the hidden size");
    assert_eq!([to_h.len(), to_c.len()], [width; 2], "expected gradients of the hidden size");
    back(from_input, from_output, c, to_h, to_c, to_gates);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::tests::numbers;

    #[test]
    fn the_backward_pass_of_a_step_agrees_with_finite_differences() {
        for width in [1, 7, 64, 101] {
            let (from_input, from_output) = (numbers(4 * width, 1), numbers(4 * width, 2));
            let (c, to_h, from_c) = (numbers(width, 3), numbers(width, 4), numbers(width, 5));
            let (mut to_c, mut to_gates) = (from_c.clone(), vec![f32::NAN; 4 * width]);
            step_backward(&from_input, &from_output, &c, &to_h, &mut to_c, &mut to_gates);
            for u in 0..width {
                let before =
                    |n: usize| f64::from(from_input[n * width + u]) + f64::from(from_output[n * width + u]);
                let at = [before(0), before(1), before(2), before(3), f64::from(c[u])];
                let value = |[i, f, g, o, c]: [f64; 5]| {
                    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                    let c = sigmoid(f) * c + sigmoid(i) * g.tanh();
                    f64::from(from_c[u]) * c + f64::from(to_h[u]) * sigmoid(o) * c.tanh()
                };
                for n in 0..5 {
                    let moved = |by: f64| {
                        let mut at = at;
                        at[n] += by;
                        value(at)
                    };
                    let truth = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    let got = if n < 4 { to_gates[n * width + u] } else { to_c[u] };
                    assert!((f64::from(got) - truth).abs() <= 1e-6, "{n} of unit {u}: {got}, truth {truth}");
                }
            }
        }
    }
}
