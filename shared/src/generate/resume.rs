//! Reuse of the KV cache for prompts with a common prefix, such as the turns of a conversation.

use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;

use super::{AllowedTokens, Decoder, Tokens};
use crate::Result;
use crate::attention::Cache;

/// The KV cache of a token sequence, for reuse with further prompts.
#[derive(Debug, Default)]
pub struct PrefixCache {
    tokens: Vec<u32>,
    cache: Option<Cache>,
}

impl PrefixCache {
    /// Returns the cached tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Truncates the cache to the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
        if let Some(cache) = &mut self.cache {
            cache.truncate(length);
        }
    }

    /// Returns an independent copy.
    ///
    /// # Errors
    /// [`Compute`](crate::ErrorKind::Compute) if there is not enough memory.
    pub fn branch(&self) -> Result<Self> {
        let cache = self.cache.as_ref().map(Cache::branch).transpose()?;
        Ok(Self { tokens: self.tokens.clone(), cache })
    }
}

/// A decoder that reuses the KV cache of the longest common prefix with the previous sequence: only the rest of a
/// prompt is computed. For one prompt at a time, without guidance.
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
    /// Creates a decoder of `model` with the cache `kept`.
    pub fn new(model: &'a D, kept: PrefixCache) -> Self {
        Self { model, kept: Mutex::new(kept) }
    }

    /// Returns the cache with all tokens so far.
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
        // If the step fails, the cache is dropped.
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
        // The last token is computed again, for its logits.
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

    /// Predicts the sum of all tokens, which it keeps in a real cache, and counts the tokens it computes.
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
    fn only_new_tokens_are_computed_and_the_result_is_the_same() {
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
            // The last generated token, five of the next turn, and three generated tokens.
            let wanted = if turn == 0 { 20 + 3 } else { 1 + 5 + 3 };
            assert_eq!(adder.read.get(), wanted, "turn {turn}");
            prompt.extend(&made.tokens[0]);
            prompt.extend([turn, 1, 2, 3, 4]);
        }
        // Another prompt: the common prefix is kept.
        prompt.truncate(10);
        prompt.push(9);
        adder.read.set(0);
        let resumed = PrefixDecoder::new(&adder, kept);
        let made = generate(&resumed, &[&prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((made.tokens[0].clone(), adder.read.get()), (alone(&prompt), 1 + 3));
    }
}
