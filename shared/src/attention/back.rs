//! Attention with a backward pass on the CPU, which computes the scores again instead of keeping them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::{Mask, PositionBias, rows_together};
use crate::grad::Recorded;
use crate::kernels::attention::{self as kernel, Gradients};
use crate::kernels::memory;
use crate::nn::{back, host};
use crate::runtime::kernels_take;
use crate::{Error, ErrorKind, Result, grad};

/// Whether [`attend`] can run: float32 on the CPU, and at most one of the position biases and the sinks requires a
/// gradient.
pub(super) fn serves(xs: [&Tensor; 3], bias: Option<&Tensor>, sinks: Option<&Tensor>) -> bool {
    let tracked = |x: Option<&Tensor>| x.is_some_and(Tensor::track_op);
    xs.into_iter().chain(bias).chain(sinks).all(kernels_take) && !(tracked(bias) && tracked(sinks))
}

/// Attention of `q`, `(batch, queries, heads, head_dim)`, and `k`, `v`, `(batch, keys, kv_heads, head_dim)`. Returns
/// `(batch, queries, heads * head_dim)`.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Mask,
    scale: f64,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let (q, k, v) = (rows_together(q)?, rows_together(k)?, rows_together(v)?);
    let (batch, queries, heads, dim) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    let sizes = kernel::Sizes { batch, heads, kv_heads, queries, keys, dim };
    let pass = Arc::new(Pass {
        sizes,
        mask: mask.clone(),
        scale: scale as f32,
        sinks: sinks.map(Tensor::detach),
        statistics: Mutex::default(),
        made: Mutex::default(),
    });
    let y = grad::apply3(&q, &k, &v, Attention(pass.clone()))?;
    let bias = mask.distances().map(PositionBias::numbers);
    let parameter = [bias, sinks].into_iter().flatten().find(|parameter| parameter.track_op());
    match parameter {
        None => Ok(y),
        Some(parameter) => {
            let of_bias = bias.is_some_and(Tensor::track_op);
            grad::apply2(&y, &parameter.contiguous()?, Parameter { pass, inputs: [q, k, v], of_bias })
        }
    }
}

/// A forward pass, and what its backward pass needs.
struct Pass {
    sizes: kernel::Sizes,
    mask: Mask,
    scale: f32,
    sinks: Option<Tensor>,
    /// The statistics of each softmax, `(batch, queries, heads, 2)`.
    statistics: Mutex<Vec<f32>>,
    /// The gradients of q, k and v, if that of a parameter was computed with them.
    made: Mutex<Option<[Vec<f32>; 3]>>,
}

impl Pass {
    /// Calls `f` with the mask of the kernel.
    fn with_mask<R>(&self, f: impl FnOnce(&kernel::Mask) -> R) -> Result<R> {
        let mask = self.mask.kernel(self.sizes.queries, self.sizes.keys);
        let with_sinks = |bias: Option<kernel::Bias>| {
            let run = |sinks: Option<&[f32]>| f(&kernel::Mask { bias: bias.or(mask.bias), sinks, ..mask });
            match &self.sinks {
                None => Ok(run(None)),
                Some(sinks) => host::saved(sinks, |sinks| run(Some(sinks))),
            }
        };
        match self.mask.distances() {
            None => with_sinks(None),
            Some(bias) => host::saved(bias.numbers(), |numbers| with_sinks(Some(bias.kernel(numbers))))?,
        }
    }

    /// The gradients of q, k, v, and of a parameter of `length` elements: of the position bias if `of_bias`, else of the
    /// sinks.
    fn gradients(
        &self,
        [q, k, v]: [&Tensor; 3],
        y: &Tensor,
        grad: &Tensor,
        length: usize,
        of_bias: bool,
    ) -> Result<([Vec<f32>; 3], Vec<f32>)> {
        let statistics = std::mem::take(&mut *lock(&self.statistics));
        if statistics.is_empty() {
            let message = "the backward pass of attention can run only once per forward pass";
            return Err(Error::new(ErrorKind::Compute, message));
        }
        let mut made = [q, k, v].map(|x| memory::zeros(x.elem_count()));
        let mut parameter = memory::zeros(length);
        let [dq, dk, dv] = &mut made;
        host::saved_strided(q, |qs| {
            host::saved_strided(k, |ks| {
                host::saved_strided(v, |vs| {
                    host::saved(y, |y| {
                        host::saved(grad, |grad| {
                            self.with_mask(|mask| {
                                let wants = length > 0;
                                let (bias, sinks) = match of_bias {
                                    true => (wants.then_some(&mut parameter[..]), None),
                                    false => (None, wants.then_some(&mut parameter[..])),
                                };
                                let gradients = Gradients { q: dq, k: dk, v: dv, bias, sinks };
                                let (q, k, v) = (view(qs, q), view(ks, k), view(vs, v));
                                kernel::attend_backward(
                                    &self.sizes,
                                    q,
                                    k,
                                    v,
                                    self.scale,
                                    mask,
                                    y,
                                    &statistics,
                                    grad,
                                    gradients,
                                );
                            })
                        })
                    })
                })
            })
        })??????;
        Ok((made, parameter))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The view of `x`, whose storage from its first element on is `data`.
fn view<'a>(data: &'a [f32], x: &Tensor) -> kernel::View<'a> {
    let stride = x.stride();
    kernel::View { data, batch: stride[0], time: stride[1], head: stride[2] }
}

/// The view of `storage` by `layout`.
fn strided<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<kernel::View<'a>> {
    let (data, stride) = (&storage.as_slice::<f32>()?[layout.start_offset()..], layout.stride());
    Ok(kernel::View { data, batch: stride[0], time: stride[1], head: stride[2] })
}

struct Attention(Arc<Pass>);

impl Recorded for Attention {
    const READS_OUTPUT: bool = true;
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let pass = &self.0;
        let kernel::Sizes { batch, heads, queries, dim, .. } = pass.sizes;
        let mut y = memory::zeros(batch * queries * heads * dim);
        let mut statistics = memory::zeros(2 * batch * queries * heads);
        let (q, k, v) = (strided(q, q_layout)?, strided(k, k_layout)?, strided(v, v_layout)?);
        pass.with_mask(|mask| {
            kernel::attend_with_statistics(&pass.sizes, q, k, v, pass.scale, mask, &mut y, &mut statistics);
        })
        .map_err(back::out)?;
        *lock(&pass.statistics) = statistics;
        Ok((CpuStorage::F32(y), (batch, queries, heads * dim).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let made = match lock(&self.0.made).take() {
            Some(made) => made,
            None => self.0.gradients([q, k, v], y, grad, 0, false).map_err(back::out)?.0,
        };
        let [dq, dk, dv] = made;
        let tensor = |values, x: &Tensor| Tensor::from_vec(values, x.shape(), x.device()).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

/// The output of attention, unchanged, with a gradient of a parameter of the scores.
struct Parameter {
    pass: Arc<Pass>,
    inputs: [Tensor; 3],
    /// Whether the parameter is the position bias, or the sinks.
    of_bias: bool,
}

impl Recorded for Parameter {}

impl CustomOp2 for Parameter {
    fn name(&self) -> &'static str {
        "attention-parameter"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(memory::copy(back::numbers(y, layout)?)), layout.shape().clone()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        parameter: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [q, k, v] = &self.inputs;
        let (made, gradient) = self
            .pass
            .gradients([q, k, v], y, grad, parameter.elem_count(), self.of_bias)
            .map_err(back::out)?;
        *lock(&self.pass.made) = Some(made);
        let gradient = Tensor::from_vec(gradient, parameter.shape(), parameter.device())?;
        Ok((Some(grad.clone()), Some(gradient)))
    }
}
