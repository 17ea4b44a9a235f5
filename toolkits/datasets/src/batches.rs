//! The order in which examples are trained on.

use fauna_shared::generate::Rng;
use fauna_shared::train::Example;
use fauna_shared::{Error, Result};

use crate::dataset::Split;

/// A permutation of `0..count` that is determined by `seed` and `epoch` (Fisher and Yates, as in Knuth, The Art of
/// Computer Programming, vol. 2, 3.4.2, algorithm P).
///
/// ```
/// use fauna_datasets::permutation;
/// let first = permutation(5, 7, 0);
/// assert_eq!(first, permutation(5, 7, 0));
/// assert_ne!(permutation(100, 7, 0), permutation(100, 7, 1));
/// ```
pub fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut random = Rng::new(seed, epoch);
    for last in (1..count).rev() {
        order.swap(last, below(&mut random, last as u64 + 1) as usize);
    }
    order
}

/// A uniform integer below `bound`, which is above 0 (Lemire 2019, "Fast Random Integer Generation in an Interval").
fn below(random: &mut Rng, bound: u64) -> u64 {
    let mut product = || {
        let bits = u64::from(random.next_u32()) << 32 | u64::from(random.next_u32());
        u128::from(bits) * u128::from(bound)
    };
    let mut drawn = product();
    let rejected = bound.wrapping_neg() % bound;
    while (drawn as u64) < rejected {
        drawn = product();
    }
    (drawn >> 64) as u64
}

/// How a split is divided into batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchOptions {
    /// Number of examples per batch, at least 1.
    pub size: usize,
    /// Random seed of the order; `None` for the order of the data.
    pub shuffle: Option<u64>,
    /// Whether the last batch of an epoch is left out if it is smaller.
    pub drop_last: bool,
}

impl BatchOptions {
    /// Batches of `size` examples in the order of the data, the last one possibly smaller.
    pub fn new(size: usize) -> Self {
        Self { size, shuffle: None, drop_last: false }
    }

    /// The same in an order that is determined by `seed` and changes with the epoch.
    pub fn shuffled(self, seed: u64) -> Self {
        Self { shuffle: Some(seed), ..self }
    }

    /// The same without a smaller batch at the end of an epoch.
    pub fn dropping_last(self) -> Self {
        Self { drop_last: true, ..self }
    }
}

/// A place between batches, from which [`Batches`] continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Index of the next batch in the epoch.
    pub batch: usize,
}

/// Iterator over the batches of a [`Split`], epoch after epoch without end.
///
/// ```
/// use fauna_datasets::{BatchOptions, Dataset, DatasetOptions, Position};
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("notes.txt");
/// std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
/// let dataset = Dataset::open(&path, &DatasetOptions::default())?;
/// let mut batches = dataset.train().batches(BatchOptions::new(2).shuffled(1))?;
/// assert_eq!(batches.per_epoch(), 2);
/// let first = batches.next_indices();
/// assert_eq!(batches.position(), Position { epoch: 0, batch: 1 });
/// batches.next_indices();
/// assert_eq!(batches.position(), Position { epoch: 1, batch: 0 });
/// batches.seek(Position::default())?;
/// assert_eq!(batches.next_indices(), first);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batches<'a> {
    split: &'a Split,
    options: BatchOptions,
    position: Position,
    /// The order of [`Position::epoch`].
    order: Vec<usize>,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(split: &'a Split, options: BatchOptions) -> Result<Self> {
        if options.size == 0 {
            return Err(Error::input("a batch must have at least 1 example, got 0"));
        }
        if options.drop_last && split.len() < options.size {
            return Err(Error::input(format!(
                "there are {} examples, which is less than one batch of {}",
                split.len(),
                options.size
            ))
            .set("use smaller batches", "BatchOptions::size", "N"));
        }
        let mut batches = Self { split, options, position: Position::default(), order: Vec::new() };
        batches.order = batches.order_of(0);
        Ok(batches)
    }

    fn order_of(&self, epoch: u64) -> Vec<usize> {
        match self.options.shuffle {
            Some(seed) => permutation(self.split.len(), seed, epoch),
            None => (0..self.split.len()).collect(),
        }
    }

    /// Number of batches per epoch.
    pub fn per_epoch(&self) -> usize {
        match self.options.drop_last {
            true => self.split.len() / self.options.size,
            false => self.split.len().div_ceil(self.options.size),
        }
    }

    /// The place of the next batch.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Continues at `position`: the batches are those that an iterator from the beginning has there.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if an epoch has fewer batches.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        if position.batch >= self.per_epoch() {
            return Err(Error::input(format!(
                "an epoch has {} batches, and none with the index {}",
                self.per_epoch(),
                position.batch
            ))
            .hint("data and batch size must be those of the run that is continued"));
        }
        self.order = self.order_of(position.epoch);
        self.position = position;
        Ok(())
    }

    /// The indices in the split of the examples of the next batch, without reading them.
    pub fn next_indices(&mut self) -> Vec<usize> {
        let start = self.position.batch * self.options.size;
        let end = (start + self.options.size).min(self.order.len());
        let indices = self.order[start..end].to_vec();
        self.position.batch += 1;
        if self.position.batch == self.per_epoch() {
            self.position = Position { epoch: self.position.epoch + 1, batch: 0 };
            self.order = self.order_of(self.position.epoch);
        }
        indices
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Vec<Example>>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_indices().into_iter().map(|index| self.split.get(index)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_occurs_once_and_orders_are_uniform() {
        let mut sorted = permutation(1000, 3, 9);
        sorted.sort_unstable();
        assert_eq!(sorted, Vec::from_iter(0..1000));
        assert!(permutation(0, 3, 9).is_empty());
        let mut counts = [0; 6];
        for epoch in 0..6000 {
            let order = permutation(3, 1, epoch);
            counts[order[0] * 2 + usize::from(order[1] > order[2])] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
