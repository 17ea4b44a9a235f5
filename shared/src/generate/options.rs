//! Generation config.

use serde::{Deserialize, Serialize};

use super::CancellationToken;
use crate::progress::Reporter;
use crate::{Error, Result};

/// Maximum length of generated audio, in seconds.
const A_DAY: f64 = 86_400.0;
/// Maximum of `max_new_tokens`, so that sums do not overflow.
const MOST_TOKENS: usize = 1 << 31;

/// Generation config: how tokens are sampled and when to stop. The default is greedy decoding of at most 256 tokens.
///
/// Logits processors have the meaning and order of transformers' `generate`: guidance, repetition penalty, minimum
/// length, the tokens allowed by the model, temperature, top-k, top-p, min-p.
///
/// ```
/// use fauna_shared::generate::GenerationConfig;
/// let options = GenerationConfig::default().with_temperature(0.8).with_top_p(0.95).with_seed(7);
/// assert!(options.check().is_ok());
/// let wrong = GenerationConfig { top_p: 0.0, ..GenerationConfig::default() };
/// assert_eq!(wrong.check().unwrap_err().message(), "top_p must be above 0 and at most 1, got 0");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationConfig {
    /// Maximum number of new tokens per sequence. From 1 to 2^31.
    pub max_new_tokens: usize,
    /// Length of generated audio in seconds, for audio models; takes precedence over `max_new_tokens`. Above 0, at most
    /// 86400; `None`: as given by `max_new_tokens`.
    pub seconds: Option<f64>,
    /// Minimum number of new tokens before an end-of-sequence token. At most `max_new_tokens`.
    pub min_new_tokens: usize,
    /// Sampling temperature; 0 is greedy decoding. 0 or above.
    pub temperature: f32,
    /// Number of most probable tokens to sample from (and ties with the last of them); 0 for all.
    pub top_k: usize,
    /// Nucleus sampling: sample from the most probable tokens whose probabilities add up to this. In (0, 1]; 1 for all.
    pub top_p: f32,
    /// Minimum probability of a token relative to the most probable one. In [0, 1]; 0 for no minimum.
    pub min_p: f32,
    /// Repetition penalty: logits of tokens already in the sequence (including the prompt, without padding) are divided
    /// by this if positive and multiplied if negative. Above 0; 1 for no penalty.
    pub repetition_penalty: f32,
    /// Classifier-free guidance scale: logits are `uncond + guidance * (cond - uncond)`. 0 or above; 1 for no guidance.
    /// Any other value doubles the batch: the conditional sequences are followed by as many unconditional ones.
    pub guidance: f32,
    /// Random seed. The same seed gives the same tokens.
    pub seed: u64,
    /// Sequence `r` of a batch samples from stream `stream + r` of the seed, so that it can be reproduced alone.
    pub stream: u64,
    /// End-of-sequence tokens. `None`: those of the model; an empty list: none.
    pub eos: Option<Vec<u32>>,
    /// Padding token, for left padding of shorter prompts and the end of finished sequences. `None`: that of the model,
    /// else the first end-of-sequence token, else 0. Padding is masked.
    pub pad: Option<u32>,
    /// Stop strings: generated text ends before any of these.
    pub stop: Vec<String>,
    /// Stops code generation after one top-level definition, that of the prompt or the first one generated.
    pub one_definition: bool,
    /// Reasoning effort, for reasoning models; `None`: the default of their chat template.
    pub reasoning: Option<Reasoning>,
    /// Returns previews of an image while it is generated: each replaces the previous one, and the last is the complete
    /// image.
    pub previews: bool,
    /// Cancels the generation from another thread.
    #[serde(skip)]
    pub cancel: CancellationToken,
    /// Where the tokens of a prompt that is read in several chunks are reported as they are read; it may cancel too.
    #[serde(skip)]
    pub progress: Reporter,
}

/// Reasoning effort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reasoning {
    /// Low effort.
    Low,
    /// Medium effort.
    Medium,
    /// High effort.
    High,
}

impl std::str::FromStr for Reasoning {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = [Self::Low, Self::Medium, Self::High];
        known.into_iter().find(|effort| effort.to_string() == name).ok_or_else(|| {
            Error::input(format!("unknown reasoning \"{name}\"")).hint("expected one of low, medium, high")
        })
    }
}

impl std::fmt::Display for Reasoning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        })
    }
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            seconds: None,
            min_new_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            guidance: 1.0,
            seed: 0,
            stream: 0,
            eos: None,
            pad: None,
            stop: Vec::new(),
            one_definition: false,
            reasoning: None,
            previews: false,
            cancel: CancellationToken::new(),
            progress: Reporter::default(),
        }
    }
}

impl GenerationConfig {
    /// The same with at most `max_new_tokens` new tokens.
    pub fn with_max_new_tokens(self, max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..self }
    }

    /// The same with this temperature; 0 is greedy decoding.
    pub fn with_temperature(self, temperature: f32) -> Self {
        Self { temperature, ..self }
    }

    /// The same with sampling from the `top_k` most likely tokens; 0 for all.
    pub fn with_top_k(self, top_k: usize) -> Self {
        Self { top_k, ..self }
    }

    /// The same with nucleus sampling of this probability.
    pub fn with_top_p(self, top_p: f32) -> Self {
        Self { top_p, ..self }
    }

    /// The same with this seed of the random numbers.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The same with text ending before any of these strings.
    pub fn with_stop(self, stop: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { stop: stop.into_iter().map(Into::into).collect(), ..self }
    }

    /// The same, cancelled by `cancel`.
    pub fn with_cancel(self, cancel: CancellationToken) -> Self {
        Self { cancel, ..self }
    }

    /// The same, reporting the reading of long prompts to `progress`.
    pub fn with_progress(self, progress: Reporter) -> Self {
        Self { progress, ..self }
    }

    /// Whether its token or the user of its progress wants the generation to end.
    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.progress.cancelled()
    }

    /// Greedy decoding of at most `max_new_tokens`.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// Checks that all options are in range.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) naming the first option that is out of range.
    pub fn check(&self) -> Result<()> {
        let range = |good: bool, name: &str, range: &str, value: f32| match good && value.is_finite() {
            true => Ok(()),
            false => Err(Error::input(format!("{name} must be {range}, got {value}"))),
        };
        range(self.temperature >= 0.0, "temperature", "0 (greedy) or above", self.temperature)?;
        range(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", "above 0 and at most 1", self.top_p)?;
        range(self.min_p >= 0.0 && self.min_p <= 1.0, "min_p", "between 0 and 1", self.min_p)?;
        range(self.repetition_penalty > 0.0, "repetition_penalty", "above 0", self.repetition_penalty)?;
        range(self.guidance >= 0.0, "guidance", "0 or above", self.guidance)?;
        if let Some(seconds) = self.seconds.filter(|seconds| !(*seconds > 0.0 && *seconds <= A_DAY)) {
            return Err(Error::input(format!("seconds must be above 0 and at most {A_DAY}, got {seconds}")));
        }
        if self.max_new_tokens == 0 {
            return Err(Error::input("max_new_tokens must be at least 1, got 0"));
        }
        if self.max_new_tokens > MOST_TOKENS {
            let got = self.max_new_tokens;
            return Err(Error::input(format!("max_new_tokens must be at most {MOST_TOKENS}, got {got}")));
        }
        if self.min_new_tokens > self.max_new_tokens {
            return Err(Error::input(format!(
                "min_new_tokens must be at most max_new_tokens ({}), got {}",
                self.max_new_tokens, self.min_new_tokens
            )));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input("a stop string is empty: it would stop before the first token"));
        }
        Ok(())
    }

    /// Sets the end-of-sequence tokens and the padding token of a model where they are `None`.
    #[must_use]
    pub fn with_tokens(&self, eos: &[u32], pad: Option<u32>) -> Self {
        let mut config = self.clone();
        config.eos.get_or_insert_with(|| eos.to_vec());
        config.pad = config.pad.or(pad);
        config
    }

    /// Whether decoding is greedy.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Returns the end-of-sequence tokens; empty if unset.
    pub fn end_tokens(&self) -> &[u32] {
        self.eos.as_deref().unwrap_or(&[])
    }

    /// Returns the padding token: as set, else the first end-of-sequence token, else 0.
    pub fn pad_token(&self) -> u32 {
        self.pad.or_else(|| self.end_tokens().first().copied()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_out_of_range_is_named() {
        let fine = GenerationConfig::default();
        let cases = [
            (GenerationConfig { temperature: -0.1, ..fine.clone() }, "temperature"),
            (GenerationConfig { temperature: f32::NAN, ..fine.clone() }, "temperature"),
            (GenerationConfig { temperature: f32::INFINITY, ..fine.clone() }, "temperature"),
            (GenerationConfig { top_p: 1.5, ..fine.clone() }, "top_p"),
            (GenerationConfig { top_p: 0.0, ..fine.clone() }, "top_p"),
            (GenerationConfig { min_p: -1.0, ..fine.clone() }, "min_p"),
            (GenerationConfig { repetition_penalty: 0.0, ..fine.clone() }, "repetition_penalty"),
            (GenerationConfig { guidance: -1.0, ..fine.clone() }, "guidance"),
            (GenerationConfig { max_new_tokens: 0, ..fine.clone() }, "max_new_tokens"),
            (GenerationConfig { max_new_tokens: usize::MAX, ..fine.clone() }, "max_new_tokens"),
            (GenerationConfig { seconds: Some(0.0), ..fine.clone() }, "seconds"),
            (GenerationConfig { seconds: Some(f64::NAN), ..fine.clone() }, "seconds"),
            (GenerationConfig { seconds: Some(1e9), ..fine.clone() }, "seconds"),
            (GenerationConfig { min_new_tokens: 300, ..fine.clone() }, "min_new_tokens"),
            (GenerationConfig { stop: vec![String::new()], ..fine.clone() }, "stop string"),
        ];
        assert!(fine.check().is_ok());
        for (options, name) in cases {
            let error = options.check().unwrap_err();
            assert!(error.message().contains(name), "{name}: {error}");
        }
    }

    #[test]
    fn an_unknown_option_in_json_is_rejected() {
        assert!(serde_json::from_str::<GenerationConfig>(r#"{"top_q": 1}"#).is_err());
        let options: GenerationConfig = serde_json::from_str(r#"{"top_k": 5}"#).unwrap();
        assert_eq!((options.top_k, options.max_new_tokens), (5, 256));
    }
}
