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
