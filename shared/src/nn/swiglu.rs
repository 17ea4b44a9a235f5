//! The clamped SwiGLU of gpt-oss.

use candle_core::{D, Device, Tensor};

use super::back::{self, ClampedSwiglu};
use super::{Activation, host};
use crate::kernels::{elementwise, memory};
use crate::{Error, ErrorKind, Result, grad};

/// Clamped SwiGLU, `gate σ(alpha gate) (up + 1)`, with `gate` clamped to at most `limit` and `up` to `-limit..=limit`
/// (gpt-oss model card 2025, section 2).
///
/// `pairs`: `(…, 2 * intermediate_size)`, interleaved gate and up. Returns `(…, intermediate_size)`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let pairs = Tensor::new(&[[0f32, 5.0, 100.0, -100.0]], &Device::Cpu)?;
/// let y = fauna_shared::nn::clamped_swiglu(&pairs, 1.702, 7.0)?.to_vec2::<f32>()?;
/// assert!(y[0][0] == 0.0 && (y[0][1] - 7.0 * (1.0 - 7.0)).abs() < 1e-3);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Compute`](ErrorKind::Compute) if the last axis is odd.
pub fn clamped_swiglu(pairs: &Tensor, alpha: f64, limit: f64) -> Result<Tensor> {
    let mut shape = pairs.dims().to_vec();
    match shape.last_mut() {
        Some(last) if last.is_multiple_of(2) => *last /= 2,
        _ => {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("expected an even last axis of gate and up pairs, found {shape:?}"),
            ));
        }
    }
    if host::serves(pairs) {
        let mut out = memory::zeros(pairs.elem_count() / 2);
        host::read(pairs, |pairs| elementwise::clamped_swiglu(pairs, alpha as f32, limit as f32, &mut out))?;
        return Ok(Tensor::from_vec(out, shape, &Device::Cpu)?);
    }
    if back::serves(pairs) {
        let op = ClampedSwiglu { alpha: alpha as f32, limit: limit as f32 };
        return grad::apply1(&pairs.contiguous()?, op);
    }
    shape.push(2);
    let pairs = pairs.reshape(shape)?;
    let part = |i| pairs.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1)?.contiguous();
    let (gate, up) = (part(0)?.minimum(limit)?, part(1)?.clamp(-limit, limit)?);
    let gated = (&gate * Activation::Sigmoid.forward(&(&gate * alpha)?)?)?;
    Ok((gated * (up + 1.0)?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    #[test]
    fn kernel_and_candle_follow_the_formula() {
        // Values beyond the limit on both sides, and an odd intermediate size.
        let values: Vec<f32> = (0..2 * 3 * 5 * 7).map(|i| (i as f32 * 0.7).sin() * 6.0).collect();
        let (alpha, limit) = (1.3, 2.5);
        let wanted: Vec<f64> = values
            .chunks(2)
            .map(|pair| {
                let (gate, up) = (f64::from(pair[0]).min(limit), f64::from(pair[1]).clamp(-limit, limit));
                gate / (1.0 + (-alpha * gate).exp()) * (up + 1.0)
            })
            .collect();
        let pairs = Var::from_vec(values, (3, 5, 14), &Device::Cpu).unwrap();
        let tracked = clamped_swiglu(pairs.as_tensor(), alpha, limit).unwrap();
        let fused = clamped_swiglu(&pairs.as_tensor().detach(), alpha, limit).unwrap();
        for y in [&tracked, &fused] {
            assert_eq!(y.dims(), [3, 5, 7]);
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (y, wanted) in y.iter().zip(&wanted) {
                assert!((f64::from(*y) - wanted).abs() < 2e-6 * wanted.abs().max(1.0), "{y}, truth {wanted}");
            }
        }
        let slopes = tracked.sum_all().unwrap().backward().unwrap();
        let slopes = slopes.get(&pairs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(
            slopes.contains(&0.0) && slopes.iter().any(|slope| *slope != 0.0),
            "some gradients are zero (clamped), some are not"
        );
    }

    #[test]
    fn an_odd_axis_is_an_error() {
        let odd = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(clamped_swiglu(&odd, 1.702, 7.0).unwrap_err().to_string().contains("[2, 3]"));
    }
}
