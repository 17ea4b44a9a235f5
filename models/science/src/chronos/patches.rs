//! Shared by Chronos-Bolt and Chronos-2: instance normalisation, patching, and residual blocks.

use candle_core::Tensor;
use fauna_shared::nn::{Activation, Linear, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

/// The scale of a constant series.
const NO_SPREAD: f32 = 1e-5;

/// `output(activation(hidden(x))) + residual(x)`.
pub struct ResidualBlock {
    hidden_layer: Linear,
    output_layer: Linear,
    residual_layer: Linear,
    activation: Activation,
}

impl ResidualBlock {
    /// Loads the block at `w`.
    ///
    /// # Errors
    /// Errors of the tensors.
    pub fn load(w: &Weights, sizes: [usize; 3], activation: Activation) -> Result<Self> {
        let [inputs, hidden, outputs] = sizes;
        Ok(Self {
            hidden_layer: w.linear("hidden_layer", inputs, hidden)?,
            output_layer: w.linear("output_layer", hidden, outputs)?,
            residual_layer: w.linear("residual_layer", inputs, outputs)?,
            activation,
        })
    }

    /// `x` is `(…, inputs)`; returns `(…, outputs)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.hidden_layer.forward_then(x, self.activation)?;
        add(&self.output_layer.forward(&hidden)?, &self.residual_layer.forward(x)?)
    }
}

/// Instance normalisation of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Mean.
    pub loc: f32,
    /// Population standard deviation; never 0.
    pub scale: f32,
}

impl Norm {
    /// The normalisation of `values` without gaps; 0 and 1 if all are gaps.
    pub fn of(values: &[f32]) -> Self {
        let known = || values.iter().filter(|value| !value.is_nan()).map(|value| f64::from(*value));
        let count = known().count() as f64;
        let loc = (known().sum::<f64>() / count) as f32;
        let scale =
            (known().map(|value| (value - f64::from(loc)).powi(2)).sum::<f64>() / count).sqrt() as f32;
        Self {
            loc: if loc.is_nan() { 0.0 } else { loc },
            scale: match scale {
                scale if scale.is_nan() => 1.0,
                0.0 => NO_SPREAD,
                scale => scale,
            },
        }
    }

    /// Normalises a value, followed by the inverse hyperbolic sine if `arcsinh`.
    pub fn apply(&self, value: f32, arcsinh: bool) -> f32 {
        let normed = (value - self.loc) / self.scale;
        if arcsinh { normed.asinh() } else { normed }
    }

    /// The inverse of [`apply`](Norm::apply).
    pub fn undo(&self, normed: f32, arcsinh: bool) -> f32 {
        let normed = if arcsinh { normed.sinh() } else { normed };
        normed * self.scale + self.loc
    }
}

/// Patching of series.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Patch length in steps.
    pub size: usize,
    /// Stride of the patches in steps.
    pub stride: usize,
    /// Whether normalised values go through the inverse hyperbolic sine.
    pub arcsinh: bool,
}

/// Patches of series of the same length.
pub struct Patched {
    /// Normalised values, 0 for gaps: `(series, patches, size)`.
    pub values: Vec<f32>,
    /// 1 for a value and 0 for a gap: `(series, patches, size)`.
    pub known: Vec<f32>,
    /// Which patches have a value, `(series, patches)`.
    pub real: Vec<Vec<bool>>,
    /// Normalisation of each series.
    pub norms: Vec<Norm>,
    /// Number of patches per series.
    pub count: usize,
}

impl Cut {
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for an invalid patch length or stride.
    pub fn new(size: usize, stride: usize, arcsinh: bool) -> Result<Self> {
        fauna_shared::model::check_sizes(&[("input_patch_size", size), ("input_patch_stride", stride)])?;
        match stride <= size {
            true => Ok(Self { size, stride, arcsinh }),
            false => Err(Error::unsupported(format!(
                "input_patch_stride {stride} leaves out steps between patches of input_patch_size {size}"
            ))),
        }
    }

    /// Normalises and cuts `table`, `(series, steps)`, with NaN for gaps, padded on the left to whole patches.
    pub fn patches(&self, table: &[f32], steps: usize) -> Patched {
        let series = table.len() / steps.max(1);
        let missing = steps.next_multiple_of(self.size) - steps;
        let count = (steps + missing - self.size) / self.stride + 1;
        let mut patched = Patched {
            values: Vec::with_capacity(series * count * self.size),
            known: Vec::with_capacity(series * count * self.size),
            real: Vec::with_capacity(series),
            norms: Vec::with_capacity(series),
            count,
        };
        for row in table.chunks_exact(steps.max(1)) {
            let norm = Norm::of(row);
            let mut real = Vec::with_capacity(count);
            for patch in 0..count {
                let start = patched.known.len();
                for step in patch * self.stride..patch * self.stride + self.size {
                    let value = step.checked_sub(missing).map_or(f32::NAN, |step| row[step]);
                    let known = !value.is_nan();
                    patched.values.push(if known { norm.apply(value, self.arcsinh) } else { 0.0 });
                    patched.known.push(f32::from(u8::from(known)));
                }
                real.push(patched.known[start..].contains(&1.0));
            }
            patched.real.push(real);
            patched.norms.push(norm);
        }
        patched
    }
}

/// Concatenates the rows, of `width` numbers, of all `parts`, `(rows, parts * width)`.
pub fn join(parts: &[&[f32]], width: usize) -> Vec<f32> {
    let rows = parts.first().map_or(0, |part| part.len() / width.max(1));
    let mut joined = Vec::with_capacity(rows * width * parts.len());
    for row in 0..rows {
        parts.iter().for_each(|part| joined.extend_from_slice(&part[row * width..][..width]));
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn patches_are_filled_up_on_the_left() {
        let cut = Cut::new(2, 2, false).unwrap();
        let patched = cut.patches(&[1.0, NAN, 3.0, NAN, NAN, NAN], 3);
        assert_eq!((patched.count, patched.norms[0]), (2, Norm { loc: 2.0, scale: 1.0 }));
        assert_eq!(patched.values[..4], [0.0, -1.0, 0.0, 1.0]);
        assert_eq!(patched.known[..4], [0.0, 1.0, 0.0, 1.0]);
        assert_eq!(patched.real, [[true, true], [false, false]]);
        assert_eq!(patched.norms[1], Norm { loc: 0.0, scale: 1.0 });
    }

    #[test]
    fn patches_may_overlap() {
        let cut = Cut::new(4, 2, false).unwrap();
        let patched = cut.patches(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 6);
        assert_eq!(patched.count, 3);
        let steps: Vec<f32> =
            patched.values.iter().map(|value| patched.norms[0].undo(*value, false).round()).collect();
        assert_eq!(steps[2..], [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(Cut::new(2, 3, false).is_err() && Cut::new(2, 0, false).is_err());
    }

    #[test]
    fn what_does_not_move_keeps_its_value() {
        let norm = Norm::of(&[7.0; 5]);
        assert_eq!(norm, Norm { loc: 7.0, scale: NO_SPREAD });
        assert_eq!(norm.undo(norm.apply(7.0, true), true), 7.0);
        let norm = Norm::of(&[1.0, 3.0]);
        assert!((norm.undo(norm.apply(250.0, true), true) - 250.0).abs() < 1e-3);
    }

    #[test]
    fn parts_lie_side_by_side() {
        assert_eq!(
            join(&[&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]], 2),
            [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]
        );
    }
}
