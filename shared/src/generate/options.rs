//! What a caller may choose about decoding.

use serde::{Deserialize, Serialize};

use super::CancellationToken;
use crate::progress::Reporter;
use crate::{Error, Result};

/// The longest sound that is made, in seconds.
const A_DAY: f64 = 86_400.0;
/// Tokens beyond all texts: sums with it still fit the machine's integers.
const MOST_TOKENS: usize = 1 << 31;

/// How tokens are chosen and when to stop. The default is greedy decoding of at most 256 tokens.
///
/// The settings act in the order and with the meaning they have in transformers' `generate`: guidance, repetition
/// penalty, minimum length, what the model allows, temperature, top-k, top-p, min-p.
///
/// ```
/// use fauna_shared::generate::GenerationConfig;
/// let options = GenerationConfig { temperature: 0.8, top_p: 0.95, seed: 7, ..GenerationConfig::default() };
/// assert!(options.check().is_ok());
/// let wrong = GenerationConfig { top_p: 0.0, ..GenerationConfig::default() };
/// assert_eq!(wrong.check().unwrap_err().message(), "top_p must be above 0 and at most 1, got 0");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationConfig {
    /// Stop a row after so many new tokens. At least 1, at most 2^31.
    pub max_new_tokens: usize,
    /// How long, in seconds, for models whose tokens are time; wins over `max_new_tokens`. Above 0, at most a day;
    /// `None`: as many as `max_new_tokens` say.
    pub seconds: Option<f64>,
    /// Forbid the end tokens until so many new tokens are there. At most `max_new_tokens`.
    pub min_new_tokens: usize,
    /// Divides the logits before sampling; 0 always takes the likeliest token. 0 or above.
    pub temperature: f32,
    /// Sample among the `top_k` likeliest tokens (and those that tie with the last of them); 0 for all.
    pub top_k: usize,
    /// Sample among the likeliest tokens that together reach this probability. In (0, 1]; 1 for all.
    pub top_p: f32,
    /// Drop tokens less likely than this share of the likeliest one's probability. In [0, 1]; 0 for none.
    pub min_p: f32,
    /// Logits of tokens already in the row (prompt included, padding not) are divided by this where positive and
    /// multiplied where negative. Above 0; 1 for no change.
    pub repetition_penalty: f32,
    /// Classifier-free guidance: `without + guidance * (with - without)`. 0 or above; 1 for none. Any other value
    /// doubles the rows the model sees: after the prompts come the same number of unconditional rows.
    pub guidance: f32,
    /// Where the random numbers start. The same seed gives the same tokens.
    pub seed: u64,
    /// Row `r` draws from stream `stream + r` of the seed, so any row of a batch can be repeated alone.
    pub stream: u64,
    /// A row ends after any of these tokens. `None`: the model's own; an empty list: never.
    pub eos: Option<Vec<u32>>,
    /// Fills the left of shorter prompts and the end of finished rows. `None`: the model's own, else the first end
    /// token, else 0. It is masked, so it changes no other row.
    pub pad: Option<u32>,
    /// A row of text ends before any of these strings.
    pub stop: Vec<String>,
    /// End code before the next top-level definition after the one that the prompt, or the model, has begun.
    pub one_definition: bool,
    /// How long to think before answering, for models that were taught to; `None`: as their template has it.
    pub reasoning: Option<Reasoning>,
    /// Hand on pictures while they are made: each new one of a prompt takes the place of the one before, and the last is
    /// the whole picture.
    pub previews: bool,
    /// Ends the generation from another thread.
    #[serde(skip)]
    pub cancel: CancellationToken,
    /// Where the tokens of a prompt that is read in several chunks are reported as they are read; it may cancel too.
    #[serde(skip)]
    pub progress: Reporter,
}

/// How long a model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reasoning {
    /// Little.
    Low,
    /// Some.
    Medium,
    /// Much.
    High,
}

impl std::str::FromStr for Reasoning {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = [Self::Low, Self::Medium, Self::High];
        known
            .into_iter()
            .find(|effort| effort.to_string() == name)
            .ok_or_else(|| Error::input(format!("no reasoning \"{name}\"")).hint("one of low, medium, high"))
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
    /// Whether its token or the user of its progress wants the generation to end.
    pub(crate) fn cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.progress.cancelled()
    }

    /// Greedy decoding of at most `max_new_tokens`.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) naming the first option out of its range.
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

    /// The same with a model's own end tokens `eos` and padding token `pad` where they are left open.
    #[must_use]
    pub fn with_tokens(&self, eos: &[u32], pad: Option<u32>) -> Self {
        let mut config = self.clone();
        config.eos.get_or_insert_with(|| eos.to_vec());
        config.pad = config.pad.or(pad);
        config
    }

    /// Whether each step takes the likeliest token, with no random number drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The end tokens; none if unset.
    pub fn end_tokens(&self) -> &[u32] {
        self.eos.as_deref().unwrap_or(&[])
    }

    /// The padding token: as set, else the first end token, else 0.
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
    fn an_unknown_option_in_json_is_refused() {
        assert!(serde_json::from_str::<GenerationConfig>(r#"{"top_q": 1}"#).is_err());
        let options: GenerationConfig = serde_json::from_str(r#"{"top_k": 5}"#).unwrap();
        assert_eq!((options.top_k, options.max_new_tokens), (5, 256));
    }
}
