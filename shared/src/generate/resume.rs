//! A conversation's cache from turn to turn.

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;

use super::{AllowedTokens, Decoder, Tokens};
use crate::Result;
use crate::attention::Cache;

/// What a decoder has read of one row of tokens, to be gone on from.
#[derive(Debug, Default)]
pub struct PrefixCache {
    tokens: Vec<u32>,
    cache: Option<Cache>,
}

impl PrefixCache {
    /// The tokens that are in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Forgets all but the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
        if let Some(cache) = &mut self.cache {
            cache.truncate(length);
        }
    }

    /// A copy that goes its own way from here: what is read into one is not seen by the other.
    ///
    /// # Errors
    /// [`Compute`](crate::ErrorKind::Compute) if there is no memory for it.
    pub fn branch(&self) -> Result<Self> {
        let cache = self.cache.as_ref().map(Cache::branch).transpose()?;
        Ok(Self { tokens: self.tokens.clone(), cache })
    }
}

/// A decoder that goes on from what it has read before: of a prompt it reads only what follows the beginning that the
/// two have in common. For one prompt at a time, without guidance.
///
/// ```no_run
/// # fn f<D: fauna_shared::generate::Decoder<Cache = fauna_shared::attention::Cache>>(model: D) -> fauna_shared::Result<()> {
/// use fauna_shared::generate::{GenerationConfig, PrefixCache, PrefixDecoder, generate};
/// use std::ops::ControlFlow;
/// let mut kept = PrefixCache::default();
/// for prompt in [vec![1, 2], vec![1, 2, 3, 4]] {
///     let resumed = PrefixDecoder::new(&model, kept);
///     generate(&resumed, &[prompt], &GenerationConfig::greedy(3), &mut |_| ControlFlow::Continue(()))?;
///     kept = resumed.into_cache();
/// }
/// # Ok(())
/// # }
/// ```
pub struct PrefixDecoder<'a, D: ?Sized> {
    model: &'a D,
    kept: Mutex<PrefixCache>,
}

impl<'a, D: Decoder<Cache = Cache> + ?Sized> PrefixDecoder<'a, D> {
    /// `model`, which has read `kept`.
    pub fn new(model: &'a D, kept: PrefixCache) -> Self {
        Self { model, kept: Mutex::new(kept) }
    }

    /// What it has read by now.
    pub fn into_cache(self) -> PrefixCache {
        self.kept.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Decoder<Cache = Cache> + ?Sized> Decoder for PrefixDecoder<'_, D> {
    type Cache = ();

    fn cache(&self, rows: usize, capacity: usize) -> Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut kept.cache {
            Some(cache) => cache.reserve(capacity),
            None => kept.cache = Some(self.model.cache(rows, capacity)?),
        }
        Ok(())
    }

    fn step(&self, tokens: &Tokens, (): &mut ()) -> Result<Tensor> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // If the step fails, nothing is kept.
        let PrefixCache { tokens: mut read, cache } = std::mem::take(&mut *kept);
        let mut cache = match cache {
            Some(cache) => cache,
            None => self.model.cache(tokens.rows(), tokens.past() + tokens.sequence_length())?,
        };
        let logits = self.model.step(tokens, &mut cache)?;
        read.extend_from_slice(tokens.ids());
        *kept = PrefixCache { tokens: read, cache: Some(cache) };
        Ok(logits)
    }

    fn cached_prefix(&self, prompt: &[u32], (): &mut ()) -> usize {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let common = kept.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is read again: its logits are what is asked for.
        let read = common.min(prompt.len().saturating_sub(1));
        kept.truncate(read);
        read
    }

    fn prompt_chunk(&self) -> Option<usize> {
        self.model.prompt_chunk()
    }

    fn max_positions(&self) -> Option<usize> {
        self.model.max_positions()
    }

    fn allowed(&self, row: usize, new: &[u32]) -> AllowedTokens {
        self.model.allowed(row, new)
    }

    fn stream(&self, row: usize) -> u64 {
        self.model.stream(row)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ops::ControlFlow;

    use candle_core::Device;

    use super::*;
    use crate::generate::{GenerationConfig, generate};

    /// Says the sum of all it has read, which it keeps in a real cache, and counts what it reads.
    struct Adder {
        read: Cell<usize>,
    }

    impl Decoder for Adder {
        type Cache = Cache;
        fn cache(&self, _rows: usize, capacity: usize) -> Result<Cache> {
            Ok(Cache::new(2, capacity))
        }
        fn step(&self, tokens: &Tokens, cache: &mut Cache) -> Result<Tensor> {
            self.read.set(self.read.get() + tokens.sequence_length());
            let values: Vec<f32> = tokens.ids().iter().map(|&id| id as f32).collect();
            let new = Tensor::from_vec(values, (1, tokens.sequence_length(), 1, 1), &Device::Cpu)?;
            let mut sum = 0.0;
            for layer in 0..2 {
                let (all, _) = cache.layer(layer).append(&new, &new)?;
                sum = all.sum_all()?.to_scalar::<f32>()?;
            }
            let mut logits = vec![0f32; 50];
            logits[sum as usize % 50] = 1.0;
            Ok(Tensor::from_vec(logits, (1, 50), &Device::Cpu)?)
        }
        fn max_positions(&self) -> Option<usize> {
            None
        }
    }

    #[test]
    fn a_turn_costs_its_new_tokens_and_changes_no_answer() {
        let options = GenerationConfig::greedy(4);
        let alone = |prompt: &Vec<u32>| {
            let adder = Adder { read: Cell::new(0) };
            generate(&adder, &[prompt], &options, &mut |_| ControlFlow::Continue(()))
                .unwrap()
                .tokens
                .remove(0)
        };
        let adder = Adder { read: Cell::new(0) };
        let mut kept = PrefixCache::default();
        let mut prompt: Vec<u32> = vec![3; 20];
        for turn in 0..10 {
            adder.read.set(0);
            let resumed = PrefixDecoder::new(&adder, kept);
            let made = generate(&resumed, &[&prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap();
            kept = resumed.into_cache();
            assert_eq!(made.tokens[0], alone(&prompt), "turn {turn}");
            assert_eq!(kept.tokens().len(), prompt.len() + 3);
            // The last token that was made, five of the next turn, and three that are fed again.
            let wanted = if turn == 0 { 20 + 3 } else { 1 + 5 + 3 };
            assert_eq!(adder.read.get(), wanted, "turn {turn}");
            prompt.extend(&made.tokens[0]);
            prompt.extend([turn, 1, 2, 3, 4]);
        }
        // Another beginning: what the two have in common stays.
        prompt.truncate(10);
        prompt.push(9);
        adder.read.set(0);
        let resumed = PrefixDecoder::new(&adder, kept);
        let made = generate(&resumed, &[&prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((made.tokens[0].clone(), adder.read.get()), (alone(&prompt), 1 + 3));
    }
}
