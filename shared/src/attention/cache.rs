//! Keys and values of what a decoder has already read: passed in, never kept in a model.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use half::slice::HalfFloatSliceExt;

use crate::nn::host;
use crate::runtime::kernels_serve;
use crate::{Error, ErrorKind, Result};

/// Positions that a layer makes room for at once; beyond, its room doubles as it is filled.
const FIRST: usize = 4096;

/// The keys and values of every layer. Each layer's room is taken when it is first written, for as many positions as
/// were asked for; of more than 4096 only as they come, so that a limit nobody reaches takes no memory.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    layers: Vec<LayerCache>,
}

/// The keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    capacity: usize,
    length: usize,
    half: bool,
    forgets: bool,
    /// `(batch, kv heads, positions, width)` each: what a head reads lies side by side.
    room: Option<(Tensor, Tensor)>,
}

impl Cache {
    /// Room for `capacity` positions in each of `layers` layers.
    pub fn new(layers: usize, capacity: usize) -> Self {
        let layer = LayerCache { capacity, length: 0, half: false, forgets: false, room: None };
        Self { layers: vec![layer; layers] }
    }

    /// The same, but on the CPU float32 is kept in half precision if `half`: half the memory, and twice as fast to read,
    /// which sets the pace of long decoding. For weights that are rounded to fewer bits anyway
    /// ([`Weights::half_cache`](crate::weights::Weights::half_cache)).
    pub fn with_half(mut self, half: bool) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.half = half);
        self
    }

    /// The same, but what a layer was given is its own to let go: for one pass over whole texts that nothing follows, which
    /// then takes the room of one layer and not of all.
    pub fn single_pass(mut self) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.forgets = true);
        self
    }

    /// The cache of layer `index`.
    ///
    /// # Panics
    /// If the cache was made for fewer layers.
    pub fn layer(&mut self, index: usize) -> &mut LayerCache {
        &mut self.layers[index]
    }

    /// Positions read so far.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Takes `capacity` positions in all; what was read stays.
    pub fn reserve(&mut self, capacity: usize) {
        self.layers.iter_mut().for_each(|layer| layer.capacity = layer.capacity.max(capacity));
    }

    /// A copy that goes its own way from here. A clone is not: it shares its room with the original.
    ///
    /// # Errors
    /// What the tensor library has to say, if there is no memory.
    pub fn branch(&self) -> Result<Self> {
        let mut branch = self.clone();
        for layer in &mut branch.layers {
            if let Some((keys, values)) = &layer.room {
                layer.room = Some((keys.copy()?, values.copy()?));
            }
        }
        Ok(branch)
    }

    /// Forgets all but the first `length` positions, so that a common prefix need not be read again.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.length = layer.length.min(length);
        }
    }
}

impl LayerCache {
    /// Positions that there is room for.
    fn rooms(&self) -> usize {
        self.room.as_ref().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Makes room for `length` positions, at most [`capacity`](Self::capacity).
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
                new.slice_set(&room.narrow(2, 0, self.length)?.contiguous()?, 2, 0)?;
            }
            Ok(new)
        };
        self.room = Some((longer(keys)?, longer(values)?));
        Ok(())
    }

    /// Appends `k` and `v`, `(batch, time, kv heads, width)`, and gives all that was appended so far.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if there is no room left.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, time, heads, width) = k.dims4()?;
        if self.forgets && self.length > 0 {
            return Err(Error::new(ErrorKind::Compute, "a cache that forgets is written once"));
        }
        if self.length + time > self.capacity {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("{} positions do not fit a cache of {}", self.length + time, self.capacity),
            ));
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

/// Copies float32 of any strides into a part of a room of the same shape, `(batch, heads, time, width)`, rounding it to
/// half precision where that is what the room holds.
struct Store;

impl InplaceOp2 for Store {
    fn name(&self) -> &'static str {
        "store in a cache"
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
            _ => Err(candle_core::Error::Msg("a cache on the CPU is float32 or float16".into())),
        }
    }
}

/// Hands vectors of `to` and of `from` to `each`, pair by pair.
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
