//! Layer norm, RMS norm and group norm.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::{layer_norm, rms_norm};

use super::back::{GroupNormed, LayerNormed, RmsNormed, weighted};
use super::conv::is_stand_in;
use super::{Activation, fused, host};
use crate::kernels::matmul::Finish;
use crate::kernels::{memory, norm};
use crate::runtime::kernels_take;
use crate::weights::Weights;
use crate::{Error, ErrorKind, Result};

/// Layer norm over the last axis, `(x - mean) / sqrt(var + eps) * weight + bias`, with statistics in float32 (Ba et al.
/// 2016).
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    eps: f64,
}

impl LayerNorm {
    /// Returns `self.forward(&(x + y))`, as in post-norm blocks. `x` and `y`: `(…, hidden_size)`.
    pub fn forward_sum(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if host::serve([x, y]) && host::serve(self.parameters()) && x.dims() == y.dims() {
            let mut out = memory::zeros(x.elem_count());
            self.with_parameters(|weight, bias| {
                host::read(x, |x| {
                    host::read(y, |y| norm::add_layer_norm(x, y, weight, bias, self.eps, None, &mut out))
                })
            })???;
            return Ok(Tensor::from_vec(out, x.shape(), x.device())?);
        }
        self.forward(&super::add(x, y)?)
    }

    /// Normalizes `x`, `(…, hidden_size)`. Returns the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if host::serves(x) && host::serve(self.parameters()) {
            let mut out = memory::zeros(x.elem_count());
            self.with_parameters(|weight, bias| {
                host::read(x, |x| norm::layer_norm(x, weight, bias, self.eps, &mut out))
            })??;
            return Ok(Tensor::from_vec(out, x.shape(), x.device())?);
        }
        if kernels_take(x) && self.parameters().all(kernels_take) {
            return weighted(x, &self.weight, self.bias.as_ref(), LayerNormed { eps: self.eps });
        }
        let wide = x.to_dtype(DType::F32)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let tracks = |x: &Tensor| x.track_op();
        if fused::serve(&[x, &self.weight]) && !self.bias.as_ref().is_some_and(tracks) {
            // candle computes the variance as a difference of two means, which loses all precision if the mean is
            // large: it gets centred rows, for which the variance is the mean square.
            let eps = self.eps as f32;
            let normed = match &self.bias {
                Some(bias) => layer_norm(&centred, &self.weight, bias, eps)?,
                None => rms_norm(&centred, &self.weight, eps)?,
            };
            return Ok(normed.to_dtype(x.dtype())?);
        }
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        let scaled = normed.broadcast_mul(&self.weight)?;
        let shifted = match &self.bias {
            Some(bias) => scaled.broadcast_add(bias)?,
            None => scaled,
        };
        Ok(shifted.to_dtype(x.dtype())?)
    }

    /// Creates a norm with parameters in float32, like the statistics.
    fn wide(weight: Tensor, bias: Option<Tensor>, eps: f64) -> Result<Self> {
        Ok(Self { weight: wide(weight)?, bias: bias.map(wide).transpose()?, eps })
    }

    fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    fn with_parameters<R>(&self, f: impl FnOnce(&[f32], Option<&[f32]>) -> R) -> Result<R> {
        host::read(&self.weight, |weight| match &self.bias {
            Some(bias) => host::read(bias, |bias| f(weight, Some(bias))),
            None => Ok(f(weight, None)),
        })?
    }
}

/// RMS norm over the last axis, `x / sqrt(mean(x²) + eps) * weight`, with statistics in float32 (Zhang and Sennrich
/// 2019).
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Normalizes `x`, `(…, hidden_size)`. Returns the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if host::serve([x, &self.weight]) {
            return host::read(&self.weight, |weight| {
                let mut out = memory::zeros(x.elem_count());
                host::read(x, |x| norm::rms_norm(x, weight, self.eps, &mut out))?;
                Ok(Tensor::from_vec(out, x.shape(), x.device())?)
            })?;
        }
        if kernels_take(x) && kernels_take(&self.weight) {
            return weighted(x, &self.weight, None, RmsNormed { eps: self.eps });
        }
        if fused::serve(&[x, &self.weight]) {
            let like_weight = x.to_dtype(self.weight.dtype())?.contiguous()?;
            return Ok(rms_norm(&like_weight, &self.weight, self.eps as f32)?.to_dtype(x.dtype())?);
        }
        let wide = x.to_dtype(DType::F32)?;
        let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?.to_dtype(self.weight.dtype())?;
        Ok(normed.broadcast_mul(&self.weight)?.to_dtype(x.dtype())?)
    }
}

/// Group norm: normalization over the time (or height and width) and the channels of each group, then a scale and a
/// shift per channel (Wu and He 2018).
#[derive(Debug, Clone)]
pub struct GroupNorm {
    groups: usize,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl GroupNorm {
    /// Normalizes `x`, `(batch, time, channels)` or `(batch, height, width, channels)`. Returns the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None)
    }

    /// Returns `activation(self.forward(x))`, of the shape of `x`.
    pub fn forward_then(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.run(x, Some(activation))
    }

    fn run(&self, x: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
        let time = x.elem_count() / (batch * channels).max(1);
        if host::serve([x, &self.weight, &self.bias]) {
            let finish = activation.map(|activation| move |y: &mut [f32]| activation.apply(y));
            let finish = finish.as_ref().map(|finish| finish as Finish);
            let mut out = memory::zeros(x.elem_count());
            host::read(&self.weight, |weight| {
                host::read(&self.bias, |bias| {
                    host::read(x, |x| {
                        norm::group_norm(x, time, self.groups, weight, bias, self.eps, finish, &mut out)
                    })
                })
            })???;
            return Ok(Tensor::from_vec(out, x.shape(), x.device())?);
        }
        if [x, &self.weight, &self.bias].into_iter().all(kernels_take) {
            let op = GroupNormed { groups: self.groups, time, eps: self.eps };
            let y = weighted(x, &self.weight, Some(&self.bias), op)?;
            return activation.map_or(Ok(y.clone()), |activation| activation.forward(&y));
        }
        let wide = x.to_dtype(DType::F32)?.reshape((batch, time, self.groups, channels / self.groups))?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim((1, 3))?)?;
        let variance = centred.sqr()?.mean_keepdim((1, 3))?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        let normed = normed.reshape(x.shape())?.to_dtype(x.dtype())?;
        let y = normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?;
        activation.map_or(Ok(y.clone()), |activation| activation.forward(&y))
    }
}

/// Converts `tensor` to float32; a placeholder of a missing tensor is unchanged.
fn wide(tensor: Tensor) -> Result<Tensor> {
    match is_stand_in(&tensor) {
        true => Ok(tensor),
        false => Ok(tensor.to_dtype(DType::F32)?),
    }
}

impl Weights {
    /// Loads the group norm `name` (`weight` and `bias`, each `[channels]`) with `groups` groups of channels.
    ///
    /// # Errors
    /// [`Mismatch`](crate::ErrorKind::Mismatch) if `channels` is not a multiple of `groups`.
    pub fn group_norm(&self, name: &str, groups: usize, channels: usize, eps: f64) -> Result<GroupNorm> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            let message = format!("{channels} channels are not a multiple of {groups} groups");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let here = self.at(name);
        let (weight, bias) = (here.tensor("weight", &[channels])?, here.tensor("bias", &[channels])?);
        Ok(GroupNorm { groups, weight, bias, eps })
    }

    /// Loads the layer norm `name` (`weight` and `bias`, each `[width]`) with epsilon `eps`.
    pub fn layer_norm(&self, name: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        let here = self.at(name);
        LayerNorm::wide(here.tensor("weight", &[width])?, Some(here.tensor("bias", &[width])?), eps)
    }

    /// Loads the layer norm `name` whose `weight` may be missing because it was folded into the following linear layer:
    /// then it is all ones.
    pub fn layer_norm_scaled_if_stored(&self, name: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        let here = self.at(name);
        let bias = here.tensor("bias", &[width])?;
        let ones = Tensor::ones((), bias.dtype(), bias.device())?.broadcast_as(width)?;
        let weight = match here.has("weight", false) {
            true => here.tensor("weight", &[width])?,
            // Not allocated if the bias is missing too: the config may declare any size.
            false if is_stand_in(&bias) => ones,
            false => ones.contiguous()?,
        };
        LayerNorm::wide(weight, Some(bias), eps)
    }

    /// Loads the layer norm `name` without a bias.
    pub fn layer_norm_no_bias(&self, name: &str, width: usize, eps: f64) -> Result<LayerNorm> {
        LayerNorm::wide(self.at(name).tensor("weight", &[width])?, None, eps)
    }

    /// Loads the RMS norm `name` (`weight`, `[width]`) with epsilon `eps`.
    pub fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.at(name).tensor("weight", &[width])?, eps })
    }

    /// Loads the RMS norm `name` of Gemma, which scales by `1 + weight`, `[width]`; the product is computed in float32.
    pub fn rms_norm_from_one(&self, name: &str, width: usize, eps: f64) -> Result<RmsNorm> {
        let distance = self.at(name).tensor("weight", &[width])?;
        let weight = match is_stand_in(&distance) {
            true => distance,
            false => (distance.to_dtype(DType::F32)? + 1.0)?,
        };
        Ok(RmsNorm { weight, eps })
    }
}
