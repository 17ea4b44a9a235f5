//! Rotary position embedding (RoPE), in place.
//!
//! ```
//! use fauna_kernels::rope::{Order, Pairs, Rotary};
//! // One head of dimension 2 at two positions, rotated by 90 degrees at the second.
//! let mut x = [1.0, 0.0, 1.0, 0.0];
//! let rotary = Rotary { cos: &[1.0, 0.0], sin: &[0.0, 1.0], width: 2, pairs: Pairs::Halves };
//! rotary.apply(&mut x, 1, 2, 2, Order::HeadsFirst);
//! assert_eq!(x, [1.0, 0.0, 0.0, 1.0]);
//! ```

use super::versions::{fma, for_each_piece, versioned};

/// Which two elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + width / 2` (Llama checkpoints in the Hugging Face format, GPT-NeoX).
    Halves,
    /// `2 i` and `2 i + 1` (the original Llama, GPT-J).
    Interleaved,
}

/// Order of the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `(batch, heads, sequence, head_dim)`.
    HeadsFirst,
    /// `(batch, sequence, heads, head_dim)`.
    TimeFirst,
}

/// Tables of a rotary position embedding.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Cosines, `(sequence, width / 2)` if all sequences of the batch have the same positions, or
    /// `(batch, sequence, width / 2)`.
    pub cos: &'a [f32],
    /// Sines, of the same shape.
    pub sin: &'a [f32],
    /// Rotary dimension: number of elements of each head, from its start, that are rotated. Even.
    pub width: usize,
    /// Which elements are rotated together.
    pub pairs: Pairs,
}

impl Rotary<'_> {
    /// Rotates every head of `x`, which has the axes of `order`; `time` is the sequence length and `head_width` the
    /// head dimension.
    ///
    /// # Panics
    /// If the length of `x` or of the tables does not match the shape, or `width` is odd or larger than `head_width`.
    pub fn apply(&self, x: &mut [f32], heads: usize, time: usize, head_width: usize, order: Order) {
        self.turn(x, heads, time, head_width, order, 1.0);
    }

    /// Backward pass of [`Rotary::apply`]: rotates the gradient `grad` by the opposite angles.
    ///
    /// # Panics
    /// As [`Rotary::apply`].
    pub fn apply_backward(
        &self,
        grad: &mut [f32],
        heads: usize,
        time: usize,
        head_width: usize,
        order: Order,
    ) {
        self.turn(grad, heads, time, head_width, order, -1.0);
    }

    /// Rotates by the angles times `sign`, 1 or -1.
    fn turn(&self, x: &mut [f32], heads: usize, time: usize, head_width: usize, order: Order, sign: f32) {
        let half = self.width / 2;
        let item = heads * time * head_width;
        if x.is_empty() || half == 0 {
            return;
        }
        assert!(
            self.width.is_multiple_of(2) && self.width <= head_width,
            "the rotary dimension must be even and at most the head dimension"
        );
        assert!(
            x.len().is_multiple_of(item),
            "{} elements are not a multiple of heads by sequence by head_dim, {item}",
            x.len()
        );
        let (batch, table) = (x.len() / item, time * half);
        assert!(
            self.cos.len() == self.sin.len() && [table, batch * table].contains(&self.cos.len()),
            "cos and sin have {} and {} elements, expected (sequence, width / 2) or (batch, sequence, width / 2) of ({batch}, {time}, {half})",
            self.cos.len(),
            self.sin.len(),
        );
        let per_item = self.cos.len() == batch * table;
        let rows = (8 * 1024 / head_width).max(1);
        for_each_piece(x, rows * head_width, |i, x| {
            for (r, head) in x.chunks_exact_mut(head_width).enumerate() {
                let row = i * rows + r;
                let (item, within) = (row / (heads * time), row % (heads * time));
                let position = match order {
                    Order::HeadsFirst => within % time,
                    Order::TimeFirst => within / heads,
                };
                let at = (if per_item { item * time } else { 0 } + position) * half;
                let (cos, sin) = (&self.cos[at..at + half], &self.sin[at..at + half]);
                match self.pairs {
                    Pairs::Halves => turn_halves(&mut head[..self.width], cos, sin, sign),
                    Pairs::Interleaved => turn_interleaved(&mut head[..self.width], cos, sin, sign),
                }
            }
        });
    }
}

versioned! {
    fn turn_halves(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            let s = s * sign;
            (*a, *b) = (fma::<FMA>(*a, c, -(*b * s)), fma::<FMA>(*b, c, *a * s));
        }
    }
}

versioned! {
    fn turn_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for (([a, b], &c), &s) in head.as_chunks_mut().0.iter_mut().zip(cos).zip(sin) {
            let s = s * sign;
            (*a, *b) = (fma::<FMA>(*a, c, -(*b * s)), fma::<FMA>(*b, c, *a * s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: (usize, usize, usize, usize) = (2, 3, 5, 10); // batch, heads, sequence, head_dim

    fn tables(positions: usize, half: usize) -> (Vec<f32>, Vec<f32>) {
        let angle = |i: usize| (i / half) as f32 * 0.7 / (1 + i % half) as f32;
        (0..positions * half).map(|i| (angle(i).cos(), angle(i).sin())).unzip()
    }

    fn turned(width: usize, pairs: Pairs, order: Order, per_item: bool) -> (Vec<f32>, Vec<f32>) {
        let (batch, heads, time, d) = SHAPE;
        let x: Vec<f32> = (0..batch * heads * time * d).map(|i| (i as f32 * 0.37).sin()).collect();
        let (cos, sin) = tables(if per_item { batch * time } else { time }, width / 2);
        let mut got = x.clone();
        Rotary { cos: &cos, sin: &sin, width, pairs }.apply(&mut got, heads, time, d, order);

        let mut want = x.clone();
        for b in 0..batch {
            for h in 0..heads {
                for t in 0..time {
                    let row = match order {
                        Order::HeadsFirst => (b * heads + h) * time + t,
                        Order::TimeFirst => (b * time + t) * heads + h,
                    };
                    for i in 0..width / 2 {
                        let (p, q) = match pairs {
                            Pairs::Halves => (i, i + width / 2),
                            Pairs::Interleaved => (2 * i, 2 * i + 1),
                        };
                        let at = (if per_item { b * time } else { 0 } + t) * (width / 2) + i;
                        let (u, v) = (x[row * d + p], x[row * d + q]);
                        want[row * d + p] = u * cos[at] - v * sin[at];
                        want[row * d + q] = v * cos[at] + u * sin[at];
                    }
                }
            }
        }
        (got, want)
    }

    #[test]
    fn every_layout_rotates_each_pair_by_its_angle() {
        for pairs in [Pairs::Halves, Pairs::Interleaved] {
            for order in [Order::HeadsFirst, Order::TimeFirst] {
                for width in [10, 4, 0] {
                    for per_item in [false, true] {
                        let (got, want) = turned(width, pairs, order, per_item);
                        for (g, w) in got.iter().zip(&want) {
                            assert!((g - w).abs() < 1e-6, "{pairs:?} {order:?} {width}: {g}, truth {w}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_backward_pass_is_the_transpose_of_the_rotation() {
        let (batch, heads, time, d) = SHAPE;
        let n = batch * heads * time * d;
        let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let grad: Vec<f32> = (0..n).map(|i| (i as f32 * 0.73).cos()).collect();
        // Tables that also scale, as those of extended contexts do.
        let (cos, sin) = tables(time, 2);
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (cos.iter().map(|c| c * 1.5).collect(), sin.iter().map(|s| s * 1.5).collect());
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for pairs in [Pairs::Halves, Pairs::Interleaved] {
            for order in [Order::HeadsFirst, Order::TimeFirst] {
                let rotary = Rotary { cos: &cos, sin: &sin, width: 4, pairs };
                let (mut turned, mut back) = (x.clone(), grad.clone());
                rotary.apply(&mut turned, heads, time, d, order);
                rotary.apply_backward(&mut back, heads, time, d, order);
                let (forward, backward) = (product(&turned, &grad), product(&x, &back));
                assert!(
                    (forward - backward).abs() < 1e-5,
                    "{pairs:?} {order:?}: {forward} against {backward}"
                );
                // Any sign would do where the sines did not matter.
                assert!((product(&x, &grad) - forward).abs() > 1e-3);
            }
        }
    }
}
