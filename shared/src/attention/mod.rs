//! Attention as functions of tensors: masks, rotary and relative positions, caches that are passed in.
//!
//! Everything here is laid out `(batch, time, heads, head width)`, as a projection leaves it, so that no block
//! transposes anything: caches grow along `time`, and the result goes straight into the output projection.

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

/// `softmax(scale · q kᵀ + mask) v` for every head (Vaswani et al. 2017, section 3.2.1).
///
/// `q`: `(batch, queries, heads, width)`; `k`, `v`: `(batch, keys, kv heads, width)`, where each of the kv heads
/// serves `heads / kv heads` query heads in a row. Where `mask` asks for it, queries are the last of the keys: query `i`
/// stands at key `keys - queries + i`. Gives `(batch, queries, heads * width)`. A query that may see nothing gets zeros.
///
/// Keys and values may be in half precision beside float32 queries, as a [`Cache`] may keep them.
///
/// # Errors
/// [`Compute`](ErrorKind::Compute) if the shapes do not fit each other.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Mask, scale: f64) -> Result<Tensor> {
    attend_with(q, k, v, mask, scale, None)
}

/// As [`attend`], with a learned score for each head, `sinks` of `(heads)`, that takes its share of the weight and
/// gives no value, so that the weights of the keys sum to less than one (Xiao et al. 2023, arXiv 2309.17453, section 3.3).
///
/// # Errors
/// As [`attend`], and if there is not one sink a head.
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
            format!("attention over q {:?}, k {:?}, v {:?}, {mask:?}", q.dims(), k.dims(), v.dims()),
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
    // The heads that share keys follow one another: to a product they are so many more queries.
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
                // A query that sees nothing has equal scores everywhere; this makes its row zeros.
                Some(seen) => weights.broadcast_mul(&seen)?,
                None => weights,
            }
        }
    };
    let out = weights.to_dtype(v.dtype())?.reshape(together(keys))?.matmul(&v)?;
    let out = out.reshape((batch, heads, queries, width))?;
    Ok(out.transpose(1, 2)?.reshape((batch, queries, heads * width))?)
}

/// [`attend`] by the kernel, keys and values being of `T`.
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

/// `x` with the elements of each of its vectors side by side, as the kernel needs them; most often `x` itself.
fn rows_together(x: &Tensor) -> Result<Tensor> {
    Ok(if x.stride()[3] == 1 { x.clone() } else { x.contiguous()? })
}

/// How `x`, `(batch, time, heads, width)`, lies in its storage, whose part from its first element on is `data`.
fn view<'a, T>(data: &'a [T], x: &Tensor) -> kernel::View<'a, T> {
    let stride = x.stride();
    kernel::View { data, batch: stride[0], time: stride[1], head: stride[2] }
}

/// `(batch, kv heads, keys, width)` as a product of batches reads it: a part of a cache as it lies, all else copied where
/// it must be.
fn in_batches(x: Tensor) -> Result<Tensor> {
    let (batch, heads, _, width) = x.dims4()?;
    let stride = x.stride();
    let even = batch == 1 || heads == 1 || stride[0] == heads * stride[1];
    Ok(if even && stride[2] == width && stride[3] == 1 { x } else { x.contiguous()? })
}

/// The weights of the keys, `(batch, heads, queries, keys)`, beside a sink a head if there are any, by operations candle
/// can differentiate.
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
