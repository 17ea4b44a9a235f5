//! Keys and values of what a decoder has already read: passed in, never kept in a model.

use candle_core::{DType, Device, Tensor};

use crate::{Error, ErrorKind, Result};

/// The keys and values of every layer. Each layer's room is taken once, when it is first written.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    layers: Vec<LayerCache>,
}

/// The keys and values of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    capacity: usize,
    length: usize,
    /// `(batch, capacity, kv heads, width)` each.
    room: Option<(Tensor, Tensor)>,
}

impl Cache {
    /// Room for `capacity` positions in each of `layers` layers.
    pub fn new(layers: usize, capacity: usize) -> Self {
        let layer = LayerCache { capacity, length: 0, room: None };
        Self { layers: vec![layer; layers] }
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

    /// Forgets all but the first `length` positions, so that a common prefix need not be read again.
    pub fn truncate(&mut self, length: usize) {
        for layer in &mut self.layers {
            layer.length = layer.length.min(length);
        }
    }
}

impl LayerCache {
    /// Appends `k` and `v`, `(batch, time, kv heads, width)`, and gives all that was appended so far.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if there is no room left.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, time, heads, width) = k.dims4()?;
        if self.length + time > self.capacity {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("{} positions do not fit a cache of {}", self.length + time, self.capacity),
            ));
        }
        let (keys, values) = match &self.room {
            Some(room) => room,
            None => {
                let room = |dtype: DType, device: &Device| {
                    Tensor::zeros((batch, self.capacity, heads, width), dtype, device)
                };
                self.room.insert((room(k.dtype(), k.device())?, room(v.dtype(), v.device())?))
            }
        };
        keys.slice_set(&k.contiguous()?, 1, self.length)?;
        values.slice_set(&v.contiguous()?, 1, self.length)?;
        self.length += time;
        Ok((keys.narrow(1, 0, self.length)?, values.narrow(1, 0, self.length)?))
    }
}
