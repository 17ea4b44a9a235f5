//! Sampling of a token from logits.

use super::{GenerationConfig, Rng};

/// The sampler of one sequence. Its buffers are reused between decoding steps.
pub(super) struct Sampler {
    rng: Rng,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    token: u32,
    /// The scaled logit, then the unnormalized probability.
    weight: f32,
}

impl Sampler {
    /// Creates a sampler with the stream `options.stream + stream` of random numbers.
    pub(super) fn new(options: &GenerationConfig, stream: u64) -> Self {
        Self {
            rng: Rng::new(options.seed, options.stream.wrapping_add(stream)),
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            candidates: Vec::new(),
        }
    }

    /// Samples the next token from `logits`, `(vocab_size)`; `None` if all logits are minus infinity or one is NaN.
    pub(super) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        if self.temperature == 0.0 {
            return Some(best);
        }
        self.shortlist(logits, logits[best as usize]);
        // In token order, so that the result does not depend on the order of ties in the selection algorithm.
        self.candidates.sort_unstable_by_key(|c| c.token);
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut left = self.rng.uniform() * total;
        for candidate in &self.candidates {
            left -= f64::from(candidate.weight);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        self.candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.token)
    }

    /// Fills `candidates` with the tokens to sample from, with weights proportional to their probabilities.
    fn shortlist(&mut self, logits: &[f32], best: f32) {
        let temperature = self.temperature;
        // The largest exponent is 0, so nothing overflows; an infinite logit leaves only ties with it.
        let scaled = |logit: f32| if logit == best { 0.0 } else { (logit - best) / temperature };
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates
            .extend((0u32..).zip(logits).map(|(token, &logit)| Candidate { token, weight: scaled(logit) }));
        if self.top_k > 0 && self.top_k < candidates.len() {
            let (_, last, _) =
                candidates.select_nth_unstable_by(self.top_k - 1, |a, b| b.weight.total_cmp(&a.weight));
            let threshold = last.weight;
            candidates.retain(|c| c.weight >= threshold);
        }
        candidates.iter_mut().for_each(|c| c.weight = c.weight.exp());
        if self.top_p < 1.0 {
            keep_top_p(candidates, self.top_p);
        }
        if self.min_p > 0.0 {
            // The largest weight is exp(0) = 1.
            candidates.retain(|c| c.weight >= self.min_p);
        }
    }
}

/// Keeps the most probable candidates up to the one with which the sum reaches `top_p` of the total.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    // All candidates below this bound together are less than 1 - top_p, so they need not be sorted.
    let bound = (1.0 - f64::from(top_p)) * total / candidates.len() as f64;
    candidates.retain(|c| f64::from(c.weight) > bound || c.weight == 1.0);
    candidates.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token)));
    let mut before = 0.0;
    let kept = candidates
        .iter()
        .take_while(|c| {
            let keep = before < f64::from(top_p) * total;
            before += f64::from(c.weight);
            keep
        })
        .count();
    candidates.truncate(kept.max(1));
}

/// Returns the index of the largest logit, the lowest on ties as in PyTorch; `None` if all are minus infinity or one is
/// NaN.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
            nan[i] |= chunk[i].is_nan();
        }
    }
    let best = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    if nan.contains(&true) || rest.iter().any(|v| v.is_nan()) || best == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&v| v == best).map(|i| i as u32)
}

/// Applies a repetition penalty: divides positive and multiplies negative logits of `seen` tokens by `penalty`, each
/// token once.
///
/// Keskar et al. 2019, "CTRL", section 4.1, with the sign rule of transformers.
pub(super) fn penalise(logits: &mut [f32], seen: impl IntoIterator<Item = u32>, penalty: f32) {
    for token in seen {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(options: GenerationConfig, probabilities: &[f32]) -> Vec<u32> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        let mut sampler = Sampler::new(&GenerationConfig { temperature: 1.0, ..options }, 0);
        let best = logits[argmax(&logits).unwrap() as usize];
        sampler.shortlist(&logits, best);
        let mut tokens: Vec<u32> = sampler.candidates.iter().map(|c| c.token).collect();
        tokens.sort_unstable();
        tokens
    }

    const P: [f32; 5] = [0.1, 0.4, 0.05, 0.3, 0.15];

    #[test]
    fn top_k_keeps_the_most_probable_tokens_and_ties() {
        assert_eq!(allowed(GenerationConfig { top_k: 2, ..Default::default() }, &P), [1, 3]);
        assert_eq!(
            allowed(GenerationConfig { top_k: 2, ..Default::default() }, &[0.2, 0.4, 0.2, 0.2]),
            [0, 1, 2, 3]
        );
        assert_eq!(allowed(GenerationConfig { top_k: 99, ..Default::default() }, &P), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_bound() {
        assert_eq!(allowed(GenerationConfig { top_p: 0.39, ..Default::default() }, &P), [1]);
        assert_eq!(allowed(GenerationConfig { top_p: 0.41, ..Default::default() }, &P), [1, 3]);
        assert_eq!(allowed(GenerationConfig { top_p: 0.8, ..Default::default() }, &P), [1, 3, 4]);
        assert_eq!(allowed(GenerationConfig { top_p: 1e-9, ..Default::default() }, &P), [1]);
    }

    #[test]
    fn top_p_is_applied_after_top_k() {
        // Among 0.4 and 0.3 alone the first holds 0.57.
        assert_eq!(allowed(GenerationConfig { top_k: 2, top_p: 0.55, ..Default::default() }, &P), [1]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable_token() {
        assert_eq!(allowed(GenerationConfig { min_p: 0.5, ..Default::default() }, &P), [1, 3]);
        assert_eq!(allowed(GenerationConfig { min_p: 1.0, ..Default::default() }, &P), [1]);
    }

    #[test]
    fn samples_follow_the_probabilities() {
        let logits = P.map(f32::ln);
        let mut sampler =
            Sampler::new(&GenerationConfig { temperature: 1.0, seed: 3, ..Default::default() }, 0);
        let mut counts = [0usize; 5];
        for _ in 0..20_000 {
            counts[sampler.choose(&logits).unwrap() as usize] += 1;
        }
        for (count, p) in counts.iter().zip(P) {
            assert!((*count as f32 / 20_000.0 - p).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn a_low_temperature_sharpens_the_distribution() {
        let logits = P.map(f32::ln);
        let mut sampler = Sampler::new(&GenerationConfig { temperature: 0.05, ..Default::default() }, 0);
        let same = (0..1000).filter(|_| sampler.choose(&logits) == Some(1)).count();
        assert!(same > 980, "{same}");
    }

    #[test]
    fn argmax_returns_the_lowest_index_on_ties() {
        let mut logits = vec![0.0f32; 100];
        (logits[37], logits[90], logits[99]) = (2.0, 2.0, 2.0);
        assert_eq!(argmax(&logits), Some(37));
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), Some(1));
    }

    #[test]
    fn argmax_of_nan_is_none() {
        let mut logits = vec![0.0f32; 40];
        logits[5] = f32::NAN;
        assert_eq!(argmax(&logits), None);
        assert_eq!(argmax(&[0.0, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative() {
        let mut logits = [3.0, -3.0, 5.0];
        penalise(&mut logits, [0, 1], 1.5);
        assert_eq!(logits, [2.0, -4.5, 5.0]);
    }
}
