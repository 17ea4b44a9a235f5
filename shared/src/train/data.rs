//! The order of the examples of a data set.

use super::Example;
use crate::Result;
use crate::generate::Rng;

/// A data set whose examples are read when they are asked for.
pub trait Examples: Send + Sync {
    /// The number of examples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Example `index`, below [`len`](Self::len).
    ///
    /// # Errors
    /// What is wrong with it, with its place in the data set.
    fn get(&self, index: usize) -> Result<Example>;
}

impl Examples for Vec<Example> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        Ok(self[index].clone())
    }
}

/// The endless order in which examples are learned: every epoch is a permutation of them, determined by a seed and the
/// number of the epoch, so that it can be entered anywhere.
///
/// ```
/// use fauna_shared::train::Order;
/// let mut order = Order::new(3, 7);
/// let first: Vec<usize> = (0..6).map(|place| order.at(place)).collect();
/// assert_eq!(first[..3].iter().sum::<usize>(), 3);
/// assert_eq!(Order::new(3, 7).at(5), first[5]);
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    count: usize,
    seed: u64,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// The order of `count` examples, at least one, by `seed`.
    pub fn new(count: usize, seed: u64) -> Self {
        let mut order = Self { count: count.max(1), seed, epoch: 0, permutation: Vec::new() };
        order.shuffle(0);
        order
    }

    /// The example at `place`, counted from the start of the first epoch.
    pub fn at(&mut self, place: u64) -> usize {
        let epoch = place / self.count as u64;
        if epoch != self.epoch {
            self.shuffle(epoch);
        }
        self.permutation[(place % self.count as u64) as usize]
    }

    fn shuffle(&mut self, epoch: u64) {
        (self.epoch, self.permutation) = (epoch, permutation(self.count, self.seed, epoch));
    }
}

/// The permutation of `0..count` of an epoch of [`Order`], determined by `seed` and `epoch` (Fisher and Yates, as in Knuth,
/// The Art of Computer Programming, vol. 2, 3.4.2, algorithm P).
///
/// ```
/// use fauna_shared::train::permutation;
/// assert_eq!(permutation(5, 7, 0), permutation(5, 7, 0));
/// assert_ne!(permutation(100, 7, 0), permutation(100, 7, 1));
/// ```
pub fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = Rng::new(seed, epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let other = (random.uniform() * (last + 1) as f64) as usize;
        order.swap(last, other.min(last));
    }
    order
}
