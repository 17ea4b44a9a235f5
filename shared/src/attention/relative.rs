//! Position biases added to the attention scores: T5's relative position buckets and ALiBi.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};

use crate::kernels::attention as kernel;
use crate::{Error, ErrorKind, Result, transfer};

/// Buckets of the distance between query and key, as in T5 (Raffel et al. 2019, section 2.1).
///
/// Half of the buckets hold one distance each, the others logarithmically larger ranges up to `max_distance`; all
/// larger distances are in the last bucket.
///
/// ```
/// use fauna_shared::attention::RelativePositionBuckets;
/// let both_ways = RelativePositionBuckets::new(32, 128, true)?;
/// assert_eq!([-200, -9, -1, 0, 1, 9].map(|distance| both_ways.of(distance)), [15, 8, 1, 0, 17, 24]);
/// let backwards = RelativePositionBuckets::new(32, 128, false)?;
/// assert_eq!([-200, -9, -1, 0, 1, 9].map(|distance| backwards.of(distance)), [31, 9, 1, 0, 0, 0]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativePositionBuckets {
    count: usize,
    max_distance: usize,
    both_ways: bool,
}

impl RelativePositionBuckets {
    /// Creates `count` buckets (`relative_attention_num_buckets`). If `both_ways` (bidirectional), half of them are for
    /// keys after the query; else all are for keys before it.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if there are too few buckets, or `max_distance` is too small for any
    /// distances to share a bucket, where the formula is undefined.
    pub fn new(count: usize, max_distance: usize, both_ways: bool) -> Result<Self> {
        let buckets = Self { count, max_distance, both_ways };
        if buckets.exact() == 0 || buckets.exact() >= max_distance {
            return Err(Error::unsupported(format!(
                "{count} relative position buckets do not work with a maximum distance of {max_distance}"
            )));
        }
        Ok(buckets)
    }

    /// Number of buckets of one direction.
    fn one_way(&self) -> usize {
        if self.both_ways { self.count / 2 } else { self.count }
    }

    /// Number of buckets of one direction that hold a single distance.
    fn exact(&self) -> usize {
        self.one_way() / 2
    }

    /// Returns the bucket of a key at `distance` after the query (before it if negative).
    pub fn of(&self, distance: i64) -> usize {
        let (buckets, exact) = (self.one_way(), self.exact());
        let (first, far) = match (self.both_ways, distance > 0) {
            (true, true) => (buckets, distance.unsigned_abs() as usize),
            (false, true) => (0, 0),
            (_, false) => (0, distance.unsigned_abs() as usize),
        };
        if far < exact {
            return first + far;
        }
        // Each operation is rounded to float32, as in the reference: the bucket boundaries depend on it.
        let ln = f64::from(far as f32 / exact as f32).ln() as f32;
        let longest = (self.max_distance as f64 / exact as f64).ln() as f32;
        let share = ln / longest * (buckets - exact) as f32;
        first + (exact + share as usize).min(buckets - 1)
    }
}

/// T5's relative position bias: a learned bias per head and bucket.
#[derive(Debug, Clone)]
pub struct RelativePositionBias {
    buckets: RelativePositionBuckets,
    /// `(heads, buckets)`, float32.
    numbers: Tensor,
}

impl RelativePositionBias {
    /// Creates the bias from a table of `(buckets, heads)`.
    ///
    /// # Errors
    /// [`Compute`](ErrorKind::Compute) if the table has another number of buckets.
    pub fn new(buckets: RelativePositionBuckets, table: &Tensor) -> Result<Self> {
        let (count, _) = table.dims2()?;
        if count != buckets.count {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("a relative position table of {count} rows, expected {} buckets", buckets.count),
            ));
        }
        Ok(Self { buckets, numbers: table.to_dtype(DType::F32)?.t()?.contiguous()? })
    }

    /// Returns the bias between `queries` queries and `keys` keys, the queries being the last of the keys. Computed
    /// once per forward pass and shared by all layers.
    pub fn between(&self, queries: usize, keys: usize) -> Result<PositionBias> {
        let nearest = -(keys.saturating_sub(1) as i64);
        let buckets: Vec<u32> =
            (nearest..queries.max(1) as i64).map(|distance| self.buckets.of(distance) as u32).collect();
        let count = buckets.len();
        let buckets = transfer::to_device(buckets, count, self.numbers.device())?;
        Ok(PositionBias::new(self.numbers.index_select(&buckets, 1)?, queries, keys))
    }
}

/// A bias per head and distance between `queries` queries and `keys` keys, the queries being the last of the keys. It
/// stores `heads * (queries + keys)` numbers, not `heads * queries * keys`.
#[derive(Debug, Clone)]
pub struct PositionBias {
    /// `(heads, queries + keys - 1)`, float32; the first is distance `1 - keys`.
    numbers: Tensor,
    queries: usize,
    keys: usize,
    /// The result of [`spread`](Self::spread), computed on first use.
    spread: Arc<OnceLock<Tensor>>,
}

impl PositionBias {
    fn new(numbers: Tensor, queries: usize, keys: usize) -> Self {
        Self { numbers, queries, keys, spread: Arc::default() }
    }

    /// The ALiBi bias: `slopes[h] · distance` for head `h`, with negative distances before the query (Press et al.
    /// 2021). `slopes`: `(heads)`.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fauna_shared::attention::{PositionBias, Mask, attend};
    /// // Equal scores, but each position back halves the weight of a key.
    /// let slope = std::f32::consts::LN_2;
    /// let nearer = Mask::causal().with_position_bias(PositionBias::alibi(&[slope], 1, 2, &Device::Cpu)?);
    /// let q = Tensor::new(&[[[[0f32]]]], &Device::Cpu)?;
    /// let k = Tensor::new(&[[[[0f32]], [[0.0]]]], &Device::Cpu)?;
    /// let v = Tensor::new(&[[[[3f32]], [[6.0]]]], &Device::Cpu)?;
    /// assert_eq!(attend(&q, &k, &v, &nearer, 1.0)?.to_vec3::<f32>()?, [[[5.0]]]);
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn alibi(slopes: &[f32], queries: usize, keys: usize, device: &Device) -> Result<Self> {
        let (queries, keys) = (queries.max(1), keys.max(1));
        let nearest = 1 - keys as i64;
        let row = |slope: f32| (nearest..queries as i64).map(move |distance| slope * distance as f32);
        let numbers: Vec<f32> = slopes.iter().copied().flat_map(row).collect();
        let numbers = transfer::to_device(numbers, (slopes.len(), queries + keys - 1), device)?;
        Ok(Self::new(numbers, queries, keys))
    }

    pub(super) fn fit(&self, heads: usize, queries: usize, keys: usize) -> bool {
        (self.queries, self.keys) == (queries, keys) && self.numbers.dims()[0] == heads
    }

    pub(super) fn numbers(&self) -> &Tensor {
        &self.numbers
    }

    /// Returns the form of the CPU kernel, with the elements `numbers`.
    pub(super) fn kernel<'a>(&self, numbers: &'a [f32]) -> kernel::Bias<'a> {
        let head = self.queries + self.keys - 1;
        kernel::Bias { data: numbers, first: self.queries - 1, batch: 0, head, query: -1 }
    }

    /// Returns the bias as a tensor `(1, heads, queries, keys)`; computed once for all layers.
    pub(super) fn spread(&self) -> Result<Tensor> {
        let (queries, keys) = (self.queries, self.keys);
        if queries == 1 {
            return Ok(self.numbers.reshape((1, (), 1, keys))?);
        }
        if let Some(spread) = self.spread.get() {
            return Ok(spread.clone());
        }
        let index: Vec<u32> = (0..queries)
            .flat_map(|query| (0..keys).map(move |key| (key + queries - 1 - query) as u32))
            .collect();
        let index = transfer::to_device(index, queries * keys, self.numbers.device())?;
        let spread = self.numbers.index_select(&index, 1)?;
        let spread = spread.reshape((1, (), queries, keys))?;
        Ok(self.spread.get_or_init(|| spread).clone())
    }
}
