//! Values to tokens and back: mean scaling and uniform bins (Ansari et al. 2024, section 3.1).

use fauna_shared::model::check_sizes;
use fauna_shared::{Error, Result};
use serde::Deserialize;

/// Maximum vocabulary size; releases have a sixteenth.
const MAX_TOKENS: usize = 1 << 16;

/// The keys of `chronos_config` of tokenizer and sampling.
#[derive(Debug, Clone, Deserialize)]
pub struct ChronosConfig {
    /// Class of the tokenizer; only `MeanScaleUniformBins` is implemented.
    pub tokenizer_class: String,
    /// Settings of the tokenizer.
    pub tokenizer_kwargs: Limits,
    /// Context length in steps.
    pub context_length: usize,
    /// Number of steps of one forecast.
    pub prediction_length: usize,
    /// Vocabulary size, with special tokens.
    pub n_tokens: usize,
    /// Number of special tokens, which come first.
    pub n_special_tokens: usize,
    /// Id of the padding token, which stands for gaps.
    pub pad_token_id: u32,
    /// Id of the end token.
    pub eos_token_id: u32,
    /// Whether the context ends with the end token.
    pub use_eos_token: bool,
    /// Kind of the network.
    pub model_type: Kind,
    /// Number of sample paths.
    pub num_samples: usize,
    /// As in [`GenerationConfig`](fauna_shared::generate::GenerationConfig).
    pub temperature: f64,
    /// As there.
    pub top_k: usize,
    /// As there.
    pub top_p: f64,
}

/// Centres of the first and the last bin, in units of the scale.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Limits {
    /// Centre of the first bin.
    pub low_limit: f64,
    /// Centre of the last bin.
    pub high_limit: f64,
}

/// Kind of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Encoder and decoder: T5.
    Seq2seq,
    /// Decoder: GPT-2, whose context has no end token.
    Causal,
}

/// Scales a series by the mean of its absolute values and quantises it into uniform bins.
///
/// ```
/// use fauna_science::chronos::{ChronosConfig, MeanScaleUniformBins};
/// let config: ChronosConfig = serde_json::from_value(serde_json::json!({
///     "tokenizer_class": "MeanScaleUniformBins", "tokenizer_kwargs": {"low_limit": -2.0, "high_limit": 2.0},
///     "n_tokens": 8, "n_special_tokens": 2, "pad_token_id": 0, "eos_token_id": 1, "use_eos_token": true,
///     "model_type": "seq2seq", "context_length": 512, "prediction_length": 64, "num_samples": 20,
///     "temperature": 1.0, "top_k": 50, "top_p": 1.0
/// }))?;
/// let tokenizer = MeanScaleUniformBins::new(&config)?;
/// // Bins around -2, -1, 0, 1 and 2; the scale is 3.
/// assert_eq!(tokenizer.centers(), [-2.0, -1.0, 0.0, 1.0, 2.0]);
/// let context = tokenizer.encode(&[3.0, -6.0, f32::NAN, 0.0]);
/// assert_eq!((&context.ids[..], context.scale), (&[6, 3, 0, 5, 1][..], 3.0));
/// assert_eq!(tokenizer.decode(&[6, 3, 5], context.scale), [3.0, -6.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct MeanScaleUniformBins {
    centers: Vec<f32>,
    boundaries: Vec<f32>,
    special: u32,
    last: u32,
    pad: u32,
    end: Option<u32>,
    /// The end token after what is learned, which decoders have too.
    label_end: Option<u32>,
    longest: usize,
}

/// A tokenized series.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// Token ids, with the padding token for gaps, and the end token if there is one.
    pub ids: Vec<u32>,
    /// Which tokens are not gaps (the attention mask).
    pub real: Vec<bool>,
    /// Scale by which the values were divided.
    pub scale: f32,
}

impl MeanScaleUniformBins {
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for another class or invalid bins.
    pub fn new(config: &ChronosConfig) -> Result<Self> {
        let c = config;
        if c.tokenizer_class != "MeanScaleUniformBins" {
            return Err(Error::unsupported(format!(
                "tokenizer_class {:?} is not implemented",
                c.tokenizer_class
            ))
            .hint("known: MeanScaleUniformBins"));
        }
        check_sizes(&[
            ("chronos_config.context_length", c.context_length),
            ("chronos_config.prediction_length", c.prediction_length),
            ("chronos_config.num_samples", c.num_samples),
        ])?;
        let bins =
            c.n_tokens.checked_sub(c.n_special_tokens).and_then(|n| n.checked_sub(1)).filter(|n| *n >= 2);
        let bins = bins.filter(|_| c.n_tokens <= MAX_TOKENS).ok_or_else(|| {
            Error::unsupported(format!(
                "n_tokens {} with n_special_tokens {}",
                c.n_tokens, c.n_special_tokens
            ))
            .hint(format!("at least two bins and at most {MAX_TOKENS} tokens are supported"))
        })?;
        if [c.pad_token_id, c.eos_token_id].iter().any(|id| *id as usize >= c.n_special_tokens) {
            return Err(Error::unsupported(format!(
                "pad_token_id {} or eos_token_id {} is not one of the {} special tokens",
                c.pad_token_id, c.eos_token_id, c.n_special_tokens
            )));
        }
        let Limits { low_limit: low, high_limit: high } = c.tokenizer_kwargs;
        if !(low < high && (high - low).is_finite()) {
            return Err(Error::unsupported(format!("bins from {low} to {high}")));
        }
        let centers = linspace(low as f32, high as f32, bins);
        let middles = centers.windows(2).map(|pair| (pair[1] + pair[0]) / 2.0);
        let boundaries = [-1e20].into_iter().chain(middles).chain([1e20]).collect();
        Ok(Self {
            centers,
            boundaries,
            special: c.n_special_tokens as u32,
            last: c.n_tokens as u32 - 1,
            pad: c.pad_token_id,
            end: (c.use_eos_token && c.model_type == Kind::Seq2seq).then_some(c.eos_token_id),
            label_end: c.use_eos_token.then_some(c.eos_token_id),
            longest: c.context_length,
        })
    }

    /// Tokenizes the last `context_length` values; NaN is a gap. The scale of a series without a value other than 0 is 1.
    pub fn encode(&self, values: &[f32]) -> Context {
        let values = crate::series::last(values, self.longest);
        let known = || values.iter().filter(|value| !value.is_nan());
        let mean = known().map(|value| f64::from(value.abs())).sum::<f64>() / known().count() as f64;
        let scale = if mean as f32 > 0.0 { mean as f32 } else { 1.0 };
        let ids = values.iter().map(|value| self.token(*value, scale)).chain(self.end).collect();
        let real = values.iter().map(|value| !value.is_nan()).chain(self.end.map(|_| true)).collect();
        Context { ids, real, scale }
    }

    /// The bin of `value` in units of `scale`; the padding token for a gap.
    fn token(&self, value: f32, scale: f32) -> u32 {
        if value.is_nan() {
            return self.pad;
        }
        let below = self.boundaries.partition_point(|boundary| *boundary <= value / scale);
        (below as u32 + self.special).min(self.last)
    }

    /// Tokenizes the values after a context of `scale`, to be learned: `None` for gaps. The end token follows them if
    /// the model has one.
    pub(crate) fn encode_future(&self, values: &[f32], scale: f32) -> Vec<Option<u32>> {
        let known = |value: &f32| (!value.is_nan()).then(|| self.token(*value, scale));
        values.iter().map(known).chain(self.label_end.map(Some)).collect()
    }

    /// The values of `ids`, times `scale`. Special tokens count as the lowest bin.
    pub fn decode(&self, ids: &[u32], scale: f32) -> Vec<f32> {
        let value = |id: &u32| {
            let bin = id.saturating_sub(self.special + 1) as usize;
            self.centers[bin.min(self.centers.len() - 1)] * scale
        };
        ids.iter().map(value).collect()
    }

    /// Centres of the bins in units of the scale, rising.
    pub fn centers(&self) -> &[f32] {
        &self.centers
    }

    /// Boundaries of the bins in units of the scale, rising; the outermost are ±10²⁰.
    pub fn boundaries(&self) -> &[f32] {
        &self.boundaries
    }
}

/// `torch.linspace`: `count` numbers from `low` to `high`, each counted from the nearer end.
fn linspace(low: f32, high: f32, count: usize) -> Vec<f32> {
    let step = (high - low) / (count - 1) as f32;
    let number = |i: usize| match i < count / 2 {
        true => step.mul_add(i as f32, low),
        false => (-step).mul_add((count - 1 - i) as f32, high),
    };
    (0..count).map(number).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(change: impl FnOnce(&mut Value)) -> ChronosConfig {
        let mut config = json!({
            "tokenizer_class": "MeanScaleUniformBins", "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
            "n_tokens": 4096, "n_special_tokens": 2, "pad_token_id": 0, "eos_token_id": 1, "use_eos_token": true,
            "model_type": "seq2seq", "context_length": 5, "prediction_length": 64, "num_samples": 20,
            "temperature": 1.0, "top_k": 50, "top_p": 1.0
        });
        change(&mut config);
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn values_beyond_the_bins_are_in_the_outermost() {
        let tokenizer = MeanScaleUniformBins::new(&config(|_| {})).unwrap();
        assert_eq!(tokenizer.centers().len(), 4093);
        // The scale is 0.25, so the outlier is beyond 15 scales on either side only with a longer quiet past.
        let context = tokenizer.encode(&[0.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(context.scale, 0.2);
        let far = tokenizer.decode(&[4095, 3, 0, 1, 2], 2.0);
        assert_eq!(far, [30.0, -30.0, -30.0, -30.0, -30.0]);
    }

    #[test]
    fn only_the_context_length_is_read() {
        let tokenizer = MeanScaleUniformBins::new(&config(|_| {})).unwrap();
        let long = tokenizer.encode(&[900.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(long, tokenizer.encode(&[1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!((long.ids.len(), long.scale), (6, 3.0));
    }

    #[test]
    fn the_context_of_a_decoder_has_no_end_token() {
        let tokenizer = MeanScaleUniformBins::new(&config(|c| c["model_type"] = json!("causal"))).unwrap();
        assert_eq!(tokenizer.encode(&[1.0, f32::NAN]).real, [true, false]);
    }

    #[test]
    fn the_scale_without_values_is_one() {
        let tokenizer = MeanScaleUniformBins::new(&config(|_| {})).unwrap();
        assert_eq!(tokenizer.encode(&[0.0, 0.0]).scale, 1.0);
        assert_eq!(tokenizer.encode(&[f32::NAN]).scale, 1.0);
        assert_eq!(tokenizer.encode(&[f32::NAN]).ids, [0, 1]);
    }

    #[test]
    fn invalid_bins_are_refused() {
        for (key, value) in [
            ("n_tokens", json!(4)),
            ("n_tokens", json!(0)),
            ("n_tokens", json!(1_000_000_000)),
            ("pad_token_id", json!(2)),
            ("tokenizer_class", json!("Other")),
            ("tokenizer_kwargs", json!({"low_limit": 1.0, "high_limit": 1.0})),
            ("context_length", json!(0)),
        ] {
            let config = config(|config| config[key] = value.clone());
            assert!(MeanScaleUniformBins::new(&config).is_err(), "{key} {value}");
        }
    }
}
