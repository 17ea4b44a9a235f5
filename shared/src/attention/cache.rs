//! KV cache, passed to the forward pass and never stored in a model.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use half::slice::HalfFloatSliceExt;

use crate::nn::host;
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result};

/// Maximum number of positions that a layer allocates at first; beyond it, the allocation doubles as it is filled.
const FIRST: usize = 4096;

/// KV cache of all layers. The memory of a layer is allocated when it is first written: for the whole capacity up to
/// 4096 positions, and beyond that as positions are added, so that a large limit takes no memory until it is reached.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    layers: Vec<LayerCache>,
}

/// KV cache of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    capacity: usize,
    length: usize,
    half: bool,
    forgets: bool,
    /// Keys and values, `(batch, kv_heads, positions, head_dim)` each: the positions of a head are contiguous.
    room: Option<(Tensor, Tensor)>,
}

impl Cache {
    /// Creates an empty cache of `capacity` positions for `layers` layers.
    pub fn new(layers: usize, capacity: usize) -> Self {
        let layer = LayerCache { capacity, length: 0, half: false, forgets: false, room: None };
        Self { layers: vec![layer; layers] }
    }

    /// If `half`, stores float32 keys and values as float16 on the CPU: half the memory, and twice as fast to read,
    /// which limits the speed of decoding with a long context. For weights of fewer than 32 bits
    /// ([`Weights::half_cache`](crate::weights::Weights::half_cache)).
    pub fn with_half(mut self, half: bool) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.half = half);
        self
    }

    /// Frees the keys and values of a layer right after its attention, for a single forward pass over whole sequences:
    /// memory is needed for one layer instead of all.
    pub fn single_pass(mut self) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.forgets = true);
        self
    }

    /// Returns the cache of layer `index`.
    ///
    /// # Panics
    /// If the cache has fewer layers.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Returns the number of cached positions.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Increases the capacity to at least `capacity` positions; cached positions are kept.
    pub fn reserve(&mut self, capacity: usize) {
        self.layers.iter_mut().for_each(|layer| layer.capacity = layer.capacity.max(capacity));
    }

    /// Returns an independent copy. (A clone shares its memory with the original.)
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if there is not enough memory.
    pub fn branch(&self) -> Result<Self> {
        let mut branch = self.clone();
        for layer in &mut branch.layers {
            if let Some((keys, values)) = &layer.room {
                layer.room = Some((keys.copy()?, values.copy()?));
            }
        }
        Ok(branch)
    }

    /// Truncates the cache to the first `length` positions, for reuse of a common prefix.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.length = layer.length.min(length);
        }
    }
}

impl LayerCache {
    /// Number of allocated positions.
    fn rooms(&self) -> usize {
        self.room.as_ref().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Grows the allocation to at least `length` positions and at most [`capacity`](Self::capacity).
    fn grow(&mut self, length: usize) -> Result<()> {
        let Some((keys, values)) = &self.room else { return Ok(()) };
        if length <= self.rooms() {
            return Ok(());
        }
        let positions = self.rooms().saturating_mul(2).max(length).min(self.capacity);
        let longer = |room: &Tensor| -> Result<Tensor> {
            let (batch, heads, _, width) = room.dims4()?;
            let new = Tensor::zeros((batch, heads, positions, width), room.dtype(), room.device())?;
            if self.length > 0 {
                #[expect(clippy::disallowed_methods, reason = "a cache of tensors without gradients")]
                new.slice_set(&room.narrow(2, 0, self.length)?.contiguous()?, 2, 0)?;
            }
            Ok(new)
        };
        self.room = Some((longer(keys)?, longer(values)?));
        Ok(())
    }

    /// Appends `k` and `v`, `(batch, sequence, kv_heads, head_dim)`, and returns all cached keys and values,
    /// `(batch, keys, kv_heads, head_dim)`.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if the capacity is exceeded.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, time, heads, width) = k.dims4()?;
        if self.forgets && self.length > 0 {
            return Err(Error::new(ErrorKind::Compute, "a single-pass cache can be written only once"));
        }
        if self.length + time > self.capacity {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("{} positions exceed the KV cache of {}", self.length + time, self.capacity),
            ));
        }
        if [k, v].into_iter().chain(self.room.iter().flat_map(|(k, v)| [k, v])).any(Tensor::track_op) {
            return self.append_tracked(k, v);
        }
        self.grow(self.length + time)?;
        let (keys, values) = match &self.room {
            Some(room) => room,
            None => {
                let positions = self.capacity.min(FIRST.max(time));
                let room = |dtype: DType, device: &Device| {
                    let halved = self.half && kernels_serve(device) && dtype == DType::F32;
                    let dtype = if halved { DType::F16 } else { dtype };
                    Tensor::zeros((batch, heads, positions, width), dtype, device)
                };
                self.room.insert((room(k.dtype(), k.device())?, room(v.dtype(), v.device())?))
            }
        };
        #[expect(clippy::disallowed_methods, reason = "tensors with gradients are appended otherwise")]
        for (room, new) in [(keys, k), (values, v)] {
            let new = new.transpose(1, 2)?;
            if host::serves(&new) && matches!(room.dtype(), DType::F32 | DType::F16) {
                room.narrow(2, self.length, time)?.inplace_op2(&new, &Store)?;
            } else {
                room.slice_set(&new.contiguous()?.to_dtype(room.dtype())?, 2, self.length)?;
            }
        }
        self.length += time;
        let read = |room: &Tensor| room.narrow(2, 0, self.length)?.transpose(1, 2);
        let all = (read(keys)?, read(values)?);
        if self.forgets {
            self.room = None;
        }
        Ok(all)
    }
}

impl LayerCache {
    /// [`append`](Self::append) of keys and values that require a gradient: they are concatenated with the cached ones,
    /// which is differentiable.
    fn append_tracked(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let time = k.dim(1)?;
        let (keys, values) = match &self.room {
            Some((keys, values)) if self.length > 0 => {
                let joined = |room: &Tensor, new: &Tensor| -> Result<Tensor> {
                    let cached = room.narrow(2, 0, self.length)?.transpose(1, 2)?.to_dtype(new.dtype())?;
                    Ok(Tensor::cat(&[&cached, new], 1)?)
                };
                (joined(keys, k)?, joined(values, v)?)
            }
            _ => (k.clone(), v.clone()),
        };
        self.length += time;
        if !self.forgets {
            self.room = Some((keys.transpose(1, 2)?, values.transpose(1, 2)?));
        }
        Ok((keys, values))
    }
}

/// Copies strided float32 to a part of the cache of the same shape, `(batch, kv_heads, sequence, head_dim)`, converting
/// it to float16 if the cache is float16.
struct Store;

impl InplaceOp2 for Store {
    fn name(&self) -> &'static str {
        "store in KV cache"
    }

    fn cpu_fwd(
        &self,
        to: &mut CpuStorage,
        to_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
    ) -> candle_core::Result<()> {
        let from = from.as_slice::<f32>()?;
        match to {
            CpuStorage::F32(to) => copy(to, to_layout, from, from_layout, <[f32]>::copy_from_slice),
            CpuStorage::F16(to) => {
                copy(to, to_layout, from, from_layout, HalfFloatSliceExt::convert_from_f32_slice)
            }
            _ => Err(candle_core::Error::Msg("a KV cache on the CPU must be float32 or float16".into())),
        }
    }
}

/// Calls `each` with every head vector of `to` and of `from`.
fn copy<T>(
    to: &mut [T],
    to_layout: &Layout,
    from: &[f32],
    from_layout: &Layout,
    each: impl Fn(&mut [T], &[f32]),
) -> candle_core::Result<()> {
    let (batch, heads, time, width) = to_layout.shape().dims4()?;
    let (to_stride, from_stride) = (to_layout.stride(), from_layout.stride());
    let mut gathered = vec![0f32; if from_stride[3] == 1 { 0 } else { width }];
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..time {
                let at = |layout: &Layout, stride: &[usize]| {
                    layout.start_offset() + b * stride[0] + h * stride[1] + t * stride[2]
                };
                let from = &from[at(from_layout, from_stride)..];
                let to = &mut to[at(to_layout, to_stride)..][..width];
                if from_stride[3] == 1 {
                    each(to, &from[..width]);
                } else {
                    gathered.iter_mut().enumerate().for_each(|(i, x)| *x = from[i * from_stride[3]]);
                    each(to, &gathered);
                }
            }
        }
    }
    Ok(())
}
