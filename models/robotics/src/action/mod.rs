//! Action tokenizers: actions to tokens, and back.
//!
//! Both tokenizers discretize each degree of freedom into 256 bins. [`ActionTokenizer`] is OpenVLA's (Kim et al. 2024, arXiv
//! 2406.09246, section 3.2): seven tokens at the end of Llama's vocabulary. [`Rt2Codec`] is RT-2's (Brohan et al. 2023,
//! arXiv 2307.15818, section 3.2): eight integers as text, the first of which is the termination flag. [`Statistics`]
//! un-normalize actions from -1 to 1 to metres and radians.

mod rt2;
mod statistics;

pub use rt2::{Rt2Action, Rt2Codec};
pub use statistics::{Statistics, StatisticsTable};

use fauna_shared::{Error, Result};

/// Maximum number of bin edges.
const MOST_BINS: usize = 1 << 16;

/// OpenVLA's action tokenizer: uniform bins over a range, each with a token of the vocabulary.
///
/// `bins` edges make `bins - 1` bins, so that the two lowest tokens decode to the same bin. All arithmetic is in float64, as
/// in the reference, so that a number on an edge is in the same bin.
///
/// ```
/// use fauna_robotics::action::ActionTokenizer;
/// let tokenizer = ActionTokenizer::openvla();
/// let ids = tokenizer.encode(&[-1.0, 0.0, 1.0])?;
/// assert_eq!(ids, [31999, 31872, 31744]);
/// assert_eq!(tokenizer.bin(31744), 254);
/// assert!((tokenizer.decode(31872) - 0.0).abs() < 1e-12);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ActionTokenizer {
    words: i64,
    edges: Vec<f64>,
}

impl ActionTokenizer {
    /// Creates a tokenizer with `bins` edges from `low` to `high`, whose tokens are the last of a vocabulary of size `words`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for fewer than two edges, too many, or an invalid range.
    pub fn new(words: usize, bins: usize, low: f64, high: f64) -> Result<Self> {
        if !(2..=MOST_BINS).contains(&bins) {
            return Err(Error::input(format!("bins is {bins}, expected 2 to {MOST_BINS}")));
        }
        if !(low < high && low.is_finite() && high.is_finite()) {
            return Err(Error::input(format!("invalid range of actions: {low} to {high}")));
        }
        let words = i64::try_from(words)
            .map_err(|_| Error::input(format!("the vocabulary size {words} is too large")))?;
        let step = (high - low) / (bins - 1) as f64;
        let mut edges: Vec<f64> = (0..bins).map(|i| i as f64 * step + low).collect();
        edges[bins - 1] = high;
        Ok(Self { words, edges })
    }

    /// Returns the tokenizer of all releases: 256 edges from -1 to 1, at the end of Llama's vocabulary of 32000.
    pub fn openvla() -> Self {
        let step = 2.0 / 255.0;
        let mut edges: Vec<f64> = (0..256).map(|i| f64::from(i) * step - 1.0).collect();
        edges[255] = 1.0;
        Self { words: 32_000, edges }
    }

    /// Returns the tokens of `actions`, one each. Values outside the range are clipped.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a NaN, by its index, or if the vocabulary has no token for a bin.
    pub fn encode(&self, actions: &[f64]) -> Result<Vec<i64>> {
        let (low, high) = (self.edges[0], self.edges[self.edges.len() - 1]);
        let word = |(place, action): (usize, &f64)| match action.is_nan() {
            true => Err(Error::input(format!("action {place} is not a number"))),
            false => {
                let action = action.clamp(low, high);
                let bin = self.edges.partition_point(|edge| *edge <= action) as i64;
                match self.words - bin {
                    word @ 0.. => Ok(word),
                    _ => Err(Error::input(format!(
                        "action {place} is in bin {bin}, but the vocabulary has {} tokens",
                        self.words
                    ))),
                }
            }
        };
        actions.iter().enumerate().map(word).collect()
    }

    /// Returns the bin of a token; for other tokens the nearest bin.
    pub fn bin(&self, token: i64) -> usize {
        let last = self.edges.len() as i64 - 2;
        (self.words.saturating_sub(token) - 1).clamp(0, last) as usize
    }

    /// Returns the center of the bin of a token.
    pub fn decode(&self, token: i64) -> f64 {
        let bin = self.bin(token);
        (self.edges[bin] + self.edges[bin + 1]) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_the_range_mean_its_ends() {
        let tokenizer = ActionTokenizer::openvla();
        assert_eq!(tokenizer, ActionTokenizer::new(32_000, 256, -1.0, 1.0).unwrap());
        assert_eq!(tokenizer.bin(31_999), 0);
        assert_eq!(tokenizer.bin(32_063), 0, "the padded vocabulary");
        assert_eq!(tokenizer.bin(31_743), 254, "one token below the last");
        assert_eq!(tokenizer.bin(i64::MAX), 0);
        assert_eq!(tokenizer.bin(i64::MIN), 254);
        assert_eq!(tokenizer.encode(&[-7.0, 7.0]).unwrap(), tokenizer.encode(&[-1.0, 1.0]).unwrap());
    }

    #[test]
    fn every_bin_comes_back_to_itself() {
        let tokenizer = ActionTokenizer::new(100, 17, -0.3, 2.0).unwrap();
        for token in 84..100 {
            let middle = tokenizer.decode(token);
            assert_eq!(tokenizer.encode(&[middle]).unwrap(), [token]);
        }
        // A number on an edge belongs to the bin above it.
        assert_eq!(tokenizer.encode(&[2.0]).unwrap(), [83]);
        assert_eq!(tokenizer.bin(83), tokenizer.bin(84));
    }

    #[test]
    fn what_makes_no_bins_is_refused() {
        for (words, bins, low, high) in [(10, 1, -1.0, 1.0), (10, 1 << 20, -1.0, 1.0), (10, 5, 1.0, 1.0)] {
            assert!(ActionTokenizer::new(words, bins, low, high).is_err());
        }
        assert!(ActionTokenizer::new(usize::MAX, usize::MAX, -1.0, 1.0).is_err());
        assert!(ActionTokenizer::new(10, 5, f64::NAN, 1.0).is_err());
        let error = ActionTokenizer::openvla().encode(&[0.0, f64::NAN]).unwrap_err();
        assert_eq!(error.message(), "action 1 is not a number");
        let few = ActionTokenizer::new(10, 20, -1.0, 1.0).unwrap();
        let error = few.encode(&[-1.0, 1.0]).unwrap_err();
        assert_eq!(error.message(), "action 1 is in bin 20, but the vocabulary has 10 tokens");
    }
}
