//! Attention as functions of tensors: masks, rotary and relative position embeddings, and the KV cache.
//!
//! The layout is `(batch, sequence, heads, head_dim)`, the output of a projection, so that no block transposes: the KV
//! cache grows along `sequence`, and the result is the input of the output projection.

mod back;
mod cache;
mod mask;
mod relative;
mod rope;

use candle_core::{D, DType, Tensor, WithDType};
use half::f16;

pub use cache::{Cache, LayerCache};
use mask::Additive;
pub use mask::Mask;
pub use relative::{PositionBias, RelativePositionBias, RelativePositionBuckets};
pub use rope::{Angles, Positions, Rope, RopeKeys, RopeScaling};

use crate::kernels::attention as kernel;
use crate::nn::{host, softmax};
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result};

/// Scaled dot-product attention, `softmax(scale · q kᵀ + mask) v` (Vaswani et al. 2017, section 3.2.1).
///
/// `q`: `(batch, queries, heads, head_dim)`; `k`, `v`: `(batch, keys, kv_heads, head_dim)`, where each key/value head
/// is shared by `heads / kv_heads` consecutive query heads (grouped-query attention). For a causal mask, the queries
/// are the last of the keys: query `i` is at key `keys - queries + i`. Returns `(batch, queries, heads * head_dim)`.
/// The output of a query whose keys are all masked is zero.
///
/// Keys and values may be float16 with float32 queries, as in a [`Cache`] of half precision.
///
/// # Errors
/// [`Compute`](ErrorKind::Compute) if the shapes do not match.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, scale: f64) -> Result<Tensor> {
    attend_with(q, k, v, mask, scale, None)
}

/// [`attend`] with attention sinks: a learned score per head, `sinks` of `(heads)`, that takes part in the softmax but
/// has no value, so that the weights of the keys sum to less than one (Xiao et al. 2023, arXiv 2309.17453, section
/// 3.3).
///
/// # Errors
/// [`Compute`](ErrorKind::Compute) if the shapes do not match.
pub fn attend_with_sinks(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scale: f64,
    sinks: &Tensor,
) -> Result<Tensor> {
    attend_with(q, k, v, mask, scale, Some(sinks))
}

fn attend_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scale: f64,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, queries, heads, width) = q.dims4()?;
    let (k_batch, keys, kv_heads, k_width) = k.dims4()?;
    let fits = k_batch == batch
        && k_width == width
        && v.dims4()? == (batch, keys, kv_heads, width)
        && batch * queries * keys * width > 0
        && kv_heads > 0
        && heads.is_multiple_of(kv_heads)
        && (!mask.is_causal() || queries <= keys)
        && mask.fits(batch, heads, queries, keys)
        && sinks.is_none_or(|sinks| sinks.dims() == [heads]);
    if !fits {
        return Err(Error::new(
            ErrorKind::Compute,
            format!(
                "shapes do not match in attention: q {:?}, k {:?}, v {:?}, {mask:?}",
                q.dims(),
                k.dims(),
                v.dims()
            ),
        ));
    }
    let distances = mask.distances();
    let numbers = distances.map(PositionBias::numbers);
    let halved = k.dtype() == DType::F16 && v.dtype() == DType::F16 && q.dtype() == DType::F32;
    let readable = |x: &Tensor| host::serves(x) || halved && kernels_serve(x.device()) && !x.track_op();
    let served = numbers.into_iter().chain(sinks).all(host::serves);
    if host::serves(q) && readable(k) && readable(v) && served {
        let run = |bias: Option<kernel::Bias>| {
            let mask = mask.kernel(queries, keys);
            let run = |sinks: Option<&[f32]>| {
                let mask = kernel::Mask { bias: bias.or(mask.bias), sinks, ..mask };
                match halved {
                    true => attend_on_host::<f16>(q, k, v, &mask, scale),
                    false => attend_on_host::<f32>(q, k, v, &mask, scale),
                }
            };
            match sinks {
                None => run(None),
                Some(sinks) => host::read(sinks, |sinks| run(Some(sinks)))?,
            }
        };
        return match distances {
            None => run(None),
            Some(distances) => {
                host::read(distances.numbers(), |numbers| run(Some(distances.kernel(numbers))))?
            }
        };
    }
    let (k, v) = (k.to_dtype(q.dtype())?, v.to_dtype(q.dtype())?);
    if back::serves([q, &k, &v], numbers, sinks) {
        return back::attend(q, &k, &v, mask, scale, sinks);
    }
    // Heads that share keys are consecutive: in the products they are additional queries.
    let together = |last: usize| (batch, kv_heads, heads / kv_heads * queries, last);
    let q = q.transpose(1, 2)?.contiguous()?.reshape(together(width))?;
    let (k, v) = (in_batches(k.transpose(1, 2)?)?, in_batches(v.transpose(1, 2)?)?);
    let scores = (q.matmul(&k.transpose(2, 3)?)? * scale)?.to_dtype(DType::F32)?;
    let mut scores = scores.reshape((batch, heads, queries, keys))?;
    if let Some(distances) = distances {
        scores = scores.broadcast_add(&distances.spread()?)?;
    }
    let weights = match mask.additive(batch, queries, keys, q.device())? {
        None => weigh(&scores, sinks)?,
        Some(Additive { blocked, seen, .. }) => {
            let weights = weigh(&scores.broadcast_add(&blocked)?, sinks)?;
            match seen {
                // A query whose keys are all masked has equal scores; this sets its output to zero.
                Some(seen) => weights.broadcast_mul(&seen)?,
                None => weights,
            }
        }
    };
    let out = weights.to_dtype(v.dtype())?.reshape(together(keys))?.matmul(&v)?;
    let out = out.reshape((batch, heads, queries, width))?;
    Ok(out.transpose(1, 2)?.reshape((batch, queries, heads * width))?)
}

/// [`attend`] with the CPU kernel, for keys and values of type `T`.
fn attend_on_host<T: kernel::Element + WithDType>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &kernel::Mask,
    scale: f64,
) -> Result<Tensor> {
    let (batch, queries, heads, dim) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    let sizes = kernel::Sizes { batch, heads, kv_heads, queries, keys, dim };
    let (q, k, v) = (rows_together(q)?, rows_together(k)?, rows_together(v)?);
    let mut out = vec![0f32; batch * queries * heads * dim];
    host::read_strided(&q, |qs: &[f32]| {
        host::read_strided(&k, |ks: &[T]| {
            host::read_strided(&v, |vs: &[T]| {
                let (q, k, v) = (view(qs, &q), view(ks, &k), view(vs, &v));
                kernel::attend(&sizes, q, k, v, scale as f32, mask, &mut out);
            })
        })
    })???;
    Ok(Tensor::from_vec(out, (batch, queries, heads * dim), q.device())?)
}

/// Returns `x` with a contiguous last axis, as the kernel requires; usually `x` itself.
fn rows_together(x: &Tensor) -> Result<Tensor> {
    Ok(if x.stride()[3] == 1 { x.clone() } else { x.contiguous()? })
}

/// Returns the view of `x`, `(batch, sequence, heads, head_dim)`, whose storage from its first element on is `data`.
fn view<'a, T>(data: &'a [T], x: &Tensor) -> kernel::View<'a, T> {
    let stride = x.stride();
    kernel::View { data, batch: stride[0], time: stride[1], head: stride[2] }
}

/// Returns `x`, `(batch, kv_heads, keys, head_dim)`, in a layout that a batched matmul accepts, without a copy for a
/// part of the cache.
fn in_batches(x: Tensor) -> Result<Tensor> {
    let (batch, heads, _, width) = x.dims4()?;
    let stride = x.stride();
    let even = batch == 1 || heads == 1 || stride[0] == heads * stride[1];
    Ok(if even && stride[2] == width && stride[3] == 1 { x } else { x.contiguous()? })
}

/// Returns the attention weights, `(batch, heads, queries, keys)`, optionally with sinks, by differentiable operations.
fn weigh(scores: &Tensor, sinks: Option<&Tensor>) -> Result<Tensor> {
    let Some(sinks) = sinks else { return softmax(scores) };
    let sinks = sinks.to_dtype(scores.dtype())?.reshape((1, (), 1, 1))?;
    let most = scores.max_keepdim(D::Minus1)?.broadcast_maximum(&sinks)?;
    let shifted = scores.broadcast_sub(&most)?.exp()?;
    let sum = (shifted.sum_keepdim(D::Minus1)? + sinks.broadcast_sub(&most)?.exp()?)?;
    Ok(shifted.broadcast_div(&sum)?)
}

#[cfg(test)]
mod tests;
