//! Who may see whom.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::Distances;
use crate::kernels::attention as kernel;
use crate::{Error, Result};

/// Which keys a query may see, and how near they seem. Cheap to clone.
///
/// ```
/// use fauna_shared::attention::Mask;
/// let mask = Mask::causal().with_padding(&[vec![false, true, true]])?;
/// assert!(mask.sees(0, 1, 1, 3) && !mask.sees(0, 1, 2, 3) && !mask.sees(0, 1, 0, 3));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Mask {
    causal: bool,
    window: Option<usize>,
    padding: Option<Arc<Padding>>,
    distances: Option<Distances>,
}

/// Which keys are real, for each row of the batch.
#[derive(Debug)]
struct Padding {
    keys: usize,
    real: Vec<Vec<bool>>,
    /// How the CPU kernel takes it.
    kernel: ForKernel,
}

#[derive(Debug)]
enum ForKernel {
    /// Padding on the left only: the first real key of each row.
    FirstKey(Vec<usize>),
    /// Any other: 0 or -∞ to add, `(batch, keys)`.
    Added(Vec<f32>),
}

impl ForKernel {
    fn new(real: &[Vec<bool>]) -> Self {
        let first: Vec<usize> =
            real.iter().map(|row| row.iter().take_while(|real| !**real).count()).collect();
        if real.iter().zip(&first).all(|(row, first)| row[*first..].iter().all(|real| *real)) {
            return Self::FirstKey(first);
        }
        Self::Added(real.iter().flatten().map(|real| if *real { 0.0 } else { f32::NEG_INFINITY }).collect())
    }
}

impl Mask {
    /// Every query sees every key.
    pub fn full() -> Self {
        Self::default()
    }

    /// A query sees itself and what stands before it.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// A causal query sees only the `window` latest of the keys it would see, itself included.
    pub fn with_window(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    /// Hides the keys marked false; one row a sequence, all of one length.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the rows have different lengths.
    pub fn with_padding(self, real: &[Vec<bool>]) -> Result<Self> {
        let keys = real.first().map_or(0, Vec::len);
        if real.iter().any(|row| row.len() != keys) {
            return Err(Error::input("the rows of a mask have different lengths"));
        }
        if real.iter().flatten().all(|real| *real) {
            return Ok(Self { padding: None, ..self });
        }
        let padding = Padding { keys, real: real.to_vec(), kernel: ForKernel::new(real) };
        Ok(Self { padding: Some(Arc::new(padding)), ..self })
    }

    /// Adds a number to each score by the distance of the key from the query.
    pub fn with_distances(self, distances: Distances) -> Self {
        Self { distances: Some(distances), ..self }
    }

    /// The sequences all of whose keys are hidden, if there are any: 1 for each of those and 0 for the others,
    /// `(batch)`.
    pub fn blind(&self) -> Option<Vec<f32>> {
        let real = &self.padding.as_ref()?.real;
        let blind: Vec<f32> = real.iter().map(|row| f32::from(u8::from(!row.contains(&true)))).collect();
        blind.contains(&1.0).then_some(blind)
    }

    /// Whether query `query` (counted among the keys) of row `row` sees `key`, of `keys` keys.
    pub fn sees(&self, row: usize, query: usize, key: usize, keys: usize) -> bool {
        key < keys
            && (!self.causal || (key <= query && self.window.is_none_or(|window| key + window > query)))
            && self.padding.as_ref().is_none_or(|padding| padding.real[row][key])
    }

    pub(super) fn is_causal(&self) -> bool {
        self.causal
    }

    pub(super) fn distances(&self) -> Option<&Distances> {
        self.distances.as_ref()
    }

    pub(super) fn fits(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> bool {
        self.padding.as_ref().is_none_or(|p| p.keys == keys && p.real.len() == batch)
            && self.distances.as_ref().is_none_or(|d| d.fit(heads, queries, keys))
    }

    /// For queries that stand at `keys - queries` and after.
    pub(super) fn kernel(&self, queries: usize, keys: usize) -> kernel::Mask<'_> {
        let causal = kernel::Causal { offset: keys.saturating_sub(queries), window: self.window };
        let mask = kernel::Mask { causal: self.causal.then_some(causal), ..kernel::Mask::default() };
        match self.padding.as_ref().map(|padding| &padding.kernel) {
            None => mask,
            Some(ForKernel::FirstKey(first)) => kernel::Mask { first_key: Some(first), ..mask },
            Some(ForKernel::Added(padding)) => kernel::Mask { padding: Some(padding), ..mask },
        }
    }

    /// What to add to the scores, a large negative number where a query may not look, and 1 or 0 for queries that see
    /// something or nothing: `(batch or 1, 1, queries, keys)` and `(batch or 1, 1, queries, 1)`.
    pub(super) fn additive(
        &self,
        batch: usize,
        queries: usize,
        keys: usize,
        device: &Device,
    ) -> Result<Option<(Tensor, Tensor)>> {
        if !self.causal && self.padding.is_none() {
            return Ok(None);
        }
        let rows = if self.padding.is_some() { batch } else { 1 };
        let first = keys.saturating_sub(queries);
        let mut blocked = Vec::with_capacity(rows * queries * keys);
        let mut seen = Vec::with_capacity(rows * queries);
        for row in 0..rows {
            for query in 0..queries {
                let start = blocked.len();
                blocked.extend((0..keys).map(|key| match self.sees(row, first + query, key, keys) {
                    true => 0f32,
                    false => -1e30,
                }));
                seen.push(if blocked[start..].contains(&0.0) { 1f32 } else { 0.0 });
            }
        }
        let blocked = Tensor::from_vec(blocked, (rows, 1, queries, keys), device)?;
        let seen = Tensor::from_vec(seen, (rows, 1, queries, 1), device)?;
        Ok(Some((blocked.to_dtype(DType::F32)?, seen)))
    }
}
