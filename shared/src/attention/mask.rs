//! Attention masks.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Device, Tensor};

use super::PositionBias;
use crate::kernels::attention as kernel;
use crate::{Error, Result, transfer};

/// An attention mask: which keys each query attends to, and a position bias. Cheap to clone.
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
    seen: Option<Arc<Seen>>,
    padding: Option<Arc<Padding>>,
    distances: Option<PositionBias>,
    additive: Made,
}

/// The cached [`additive`](Mask::additive) form of a mask, shared by all layers of a forward pass.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<Option<Additive>>>);

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("_")
    }
}

/// A mask as an additive tensor on a device.
#[derive(Clone)]
pub(super) struct Additive {
    /// Batch size, number of queries and number of keys.
    sizes: [usize; 3],
    /// 0, or a large negative number for masked keys, `(batch or 1, 1, queries, keys)`; added to the scores.
    pub blocked: Tensor,
    /// 0 for queries whose keys are all masked, else 1, `(batch or 1, 1, queries, 1)`; `None` if there are none.
    pub seen: Option<Tensor>,
}

/// The keys that each query attends to, for each sequence.
#[derive(Debug)]
enum Seen {
    /// One range of keys per query, `(batch, queries)`.
    Spans { queries: usize, spans: Vec<Range<usize>> },
    /// Any keys: an additive mask of 0 or -∞, `(batch, queries, keys)`.
    Table { queries: usize, keys: usize, added: Vec<f32> },
}

impl Seen {
    fn fits(&self, batch: usize, of_queries: usize, of_keys: usize) -> bool {
        match self {
            Self::Spans { queries, spans } => {
                *queries == of_queries
                    && spans.len() == batch * queries
                    && spans.iter().all(|span| span.end <= of_keys)
            }
            Self::Table { queries, keys, added } => {
                (*queries, *keys) == (of_queries, of_keys) && added.len() == batch * queries * keys
            }
        }
    }

    fn contains(&self, row: usize, query: usize, key: usize) -> bool {
        match self {
            Self::Spans { queries, spans } => spans[row * queries + query].contains(&key),
            Self::Table { queries, keys, added } => added[(row * queries + query) * keys + key] == 0.0,
        }
    }
}

/// Padding mask: which keys are not padding, for each sequence.
#[derive(Debug)]
struct Padding {
    keys: usize,
    real: Vec<Vec<bool>>,
    /// The form that the CPU kernel takes.
    kernel: ForKernel,
    blind: Blind,
}

/// What [`Mask::blind`] gives, once a layer has asked.
#[derive(Default)]
struct Blind(OnceLock<Tensor>);

impl std::fmt::Debug for Blind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("_")
    }
}

#[derive(Debug)]
enum ForKernel {
    /// Left padding only: the index of the first key of each sequence that is not padding.
    FirstKey(Vec<usize>),
    /// Any other padding: an additive mask of 0 or -∞, `(batch, keys)`.
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
    /// Full (bidirectional) attention.
    pub fn full() -> Self {
        Self::default()
    }

    /// Causal attention: a query attends to its own and all previous positions.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Query `i` of sequence `r` attends to the keys `spans[r][i]`, before or after it: for example the latest of
    /// several images, or a block with bidirectional attention. `spans`: `(batch, queries)`.
    ///
    /// ```
    /// use fauna_shared::attention::Mask;
    /// // The second query attends to the block that begins with it; all keys of the first are masked.
    /// let mask = Mask::spans(vec![vec![0..0, 1..3]])?;
    /// assert!(!mask.sees(0, 0, 0, 3) && !mask.sees(0, 1, 0, 3) && mask.sees(0, 1, 2, 3));
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the sequences have different numbers of queries.
    pub fn spans(spans: Vec<Vec<Range<usize>>>) -> Result<Self> {
        let queries = spans.first().map_or(0, Vec::len);
        if spans.iter().any(|row| row.len() != queries) {
            return Err(Error::input("the rows of an attention mask have different lengths"));
        }
        let seen = Seen::Spans { queries, spans: spans.concat() };
        Ok(Self { seen: Some(Arc::new(seen)), ..Self::default() })
    }

    /// Query `i` of sequence `r` attends to key `k` if `table[r][i][k]`. `table`: `(batch, queries, keys)`. If the keys
    /// of every query are contiguous, this is the same as [`spans`](Mask::spans).
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the numbers of queries or of keys differ.
    pub fn table(table: &[Vec<Vec<bool>>]) -> Result<Self> {
        let queries = table.first().map_or(0, Vec::len);
        let keys = table.first().and_then(|row| row.first()).map_or(0, Vec::len);
        if table.iter().any(|row| row.len() != queries || row.iter().any(|seen| seen.len() != keys)) {
            return Err(Error::input("the rows of an attention mask have different lengths"));
        }
        let span = |seen: &Vec<bool>| {
            let start = seen.iter().position(|seen| *seen).unwrap_or(0);
            let end = seen.iter().rposition(|seen| *seen).map_or(0, |last| last + 1);
            seen[start..end].iter().all(|seen| *seen).then_some(start..end)
        };
        let spans: Option<Vec<Vec<_>>> = table.iter().map(|row| row.iter().map(span).collect()).collect();
        if let Some(spans) = spans {
            return Self::spans(spans);
        }
        let added = |seen: &bool| if *seen { 0.0 } else { f32::NEG_INFINITY };
        let added = table.iter().flatten().flatten().map(added).collect();
        let seen = Seen::Table { queries, keys, added };
        Ok(Self { seen: Some(Arc::new(seen)), ..Self::default() })
    }

    /// Adds sliding-window attention: a query attends to no key more than `window - 1` positions before it; with a
    /// causal mask, only to the last `window` keys including its own. In [`spans`](Mask::spans), query `i` is at key
    /// `i`; keys after it are not affected.
    ///
    /// ```
    /// use fauna_shared::attention::Mask;
    /// let mask = Mask::spans(vec![vec![0..1, 0..3, 0..3]])?.with_window(Some(2));
    /// assert!(!mask.sees(0, 2, 0, 3) && mask.sees(0, 2, 1, 3) && mask.sees(0, 1, 2, 3));
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn with_window(self, window: Option<usize>) -> Self {
        let Some(size) = window else { return Self { window, additive: Made::default(), ..self } };
        let seen = self.seen.map(|seen| match &*seen {
            Seen::Spans { queries, spans } => {
                let clipped = |(i, span): (usize, &Range<usize>)| {
                    let first = (i % queries + 1).saturating_sub(size);
                    span.start.max(first).min(span.end)..span.end
                };
                let spans = spans.iter().enumerate().map(clipped).collect();
                Arc::new(Seen::Spans { queries: *queries, spans })
            }
            Seen::Table { queries, keys, added } => {
                let clipped = |(i, added): (usize, &f32)| match i % keys + size <= i / keys % queries {
                    true => f32::NEG_INFINITY,
                    false => *added,
                };
                let added = added.iter().enumerate().map(clipped).collect();
                Arc::new(Seen::Table { queries: *queries, keys: *keys, added })
            }
        });
        Self { window, seen, additive: Made::default(), ..self }
    }

    /// Masks padding: keys with `false` in `real`, `(batch, keys)`, the `attention_mask` of transformers.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the sequences have different lengths.
    pub fn with_padding(self, real: &[Vec<bool>]) -> Result<Self> {
        let keys = real.first().map_or(0, Vec::len);
        if real.iter().any(|row| row.len() != keys) {
            return Err(Error::input("the rows of an attention mask have different lengths"));
        }
        if real.iter().flatten().all(|real| *real) {
            return Ok(Self { padding: None, additive: Made::default(), ..self });
        }
        let padding =
            Padding { keys, real: real.to_vec(), kernel: ForKernel::new(real), blind: Blind::default() };
        Ok(Self { padding: Some(Arc::new(padding)), additive: Made::default(), ..self })
    }

    /// Adds a position bias to the scores.
    pub fn with_position_bias(self, distances: PositionBias) -> Self {
        Self { distances: Some(distances), ..self }
    }

    /// The sequences all of whose keys are hidden, if there are any: 1 for each of those and 0 for the others,
    /// `(batch, 1, 1)` of float32 on `device`, where it is brought once for all layers.
    pub fn fully_masked(&self, device: &Device) -> Result<Option<Tensor>> {
        let Some(Padding { real, blind, .. }) = self.padding.as_deref() else { return Ok(None) };
        if real.iter().all(|row| row.contains(&true)) {
            return Ok(None);
        }
        if let Some(made) = blind.0.get().filter(|made| made.device().same_device(device)) {
            return Ok(Some(made.clone()));
        }
        let rows = real.iter().map(|row| f32::from(u8::from(!row.contains(&true)))).collect();
        let made = transfer::to_device(rows, (real.len(), 1, 1), device)?;
        let _ = blind.0.set(made.clone());
        Ok(Some(made))
    }

    /// Whether query `query` of sequence `row` attends to key `key` of `keys` keys. `query` is a position among the
    /// keys for a causal mask, and an index among the queries for [`spans`](Mask::spans) and a [`table`](Mask::table).
    pub fn sees(&self, row: usize, query: usize, key: usize, keys: usize) -> bool {
        key < keys
            && self.seen.as_ref().is_none_or(|seen| seen.contains(row, query, key))
            && (!self.causal || (key <= query && self.window.is_none_or(|window| key + window > query)))
            && self.padding.as_ref().is_none_or(|padding| padding.real[row][key])
    }

    pub(super) fn is_causal(&self) -> bool {
        self.causal
    }

    pub(super) fn distances(&self) -> Option<&PositionBias> {
        self.distances.as_ref()
    }

    pub(super) fn fits(&self, batch: usize, heads: usize, queries: usize, keys: usize) -> bool {
        let table = matches!(self.seen.as_deref(), Some(Seen::Table { .. }));
        self.padding.as_ref().is_none_or(|p| p.keys == keys && p.real.len() == batch)
            && self.seen.as_ref().is_none_or(|seen| seen.fits(batch, queries, keys))
            && !(table && self.distances.is_some())
            && self.distances.as_ref().is_none_or(|d| d.fit(heads, queries, keys))
    }

    /// Returns the form of the CPU kernel, for queries that are the last positions of the keys.
    pub(super) fn kernel(&self, queries: usize, keys: usize) -> kernel::Mask<'_> {
        let causal = kernel::Causal { offset: keys.saturating_sub(queries), window: self.window };
        let (spans, bias) = match self.seen.as_deref() {
            None => (None, None),
            Some(Seen::Spans { spans, .. }) => (Some(&spans[..]), None),
            Some(Seen::Table { queries, keys, added }) => {
                let batch = queries * keys;
                let query = *keys as isize;
                (None, Some(kernel::Bias { data: added, first: 0, batch, head: 0, query }))
            }
        };
        let causal = self.causal.then_some(causal);
        let mask = kernel::Mask { causal, spans, bias, ..kernel::Mask::default() };
        match self.padding.as_ref().map(|padding| &padding.kernel) {
            None => mask,
            Some(ForKernel::FirstKey(first)) => kernel::Mask { first_key: Some(first), ..mask },
            Some(ForKernel::Added(padding)) => kernel::Mask { padding: Some(padding), ..mask },
        }
    }

    /// Returns the additive mask of the scores, for queries that are the last positions of the keys; `None` if nothing
    /// is masked. It is created once for all layers.
    pub(super) fn additive(
        &self,
        batch: usize,
        queries: usize,
        keys: usize,
        device: &Device,
    ) -> Result<Option<Additive>> {
        let bounded = self.causal && (queries > 1 || self.window.is_some_and(|window| window < keys));
        if !bounded && self.padding.is_none() && self.seen.is_none() {
            return Ok(None);
        }
        let mut made = self.additive.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |made: &&Additive| {
            made.sizes == [batch, queries, keys] && made.blocked.device().same_device(device)
        };
        if let Some(made) = made.as_ref().filter(fits) {
            return Ok(Some(made.clone()));
        }
        let rows = if self.padding.is_some() || self.seen.is_some() { batch } else { 1 };
        let first = if self.seen.is_some() { 0 } else { keys.saturating_sub(queries) };
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
        let blocked = transfer::to_device(blocked, (rows, 1, queries, keys), device)?;
        let seen = match seen.contains(&0.0) {
            true => Some(transfer::to_device(seen, (rows, 1, queries, 1), device)?),
            false => None,
        };
        *made = Some(Additive { sizes: [batch, queries, keys], blocked, seen });
        Ok(made.clone())
    }
}
