//! Options of a training run.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// How the learning rate changes over the steps, after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It falls linearly to 0.
    Linear,
    /// It falls to 0 as half a period of a cosine.
    Cosine,
}

impl std::str::FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "constant" => Ok(Self::Constant),
            "linear" => Ok(Self::Linear),
            "cosine" => Ok(Self::Cosine),
            other => {
                Err(Error::input(format!("no schedule \"{other}\"")).hint("one of constant, linear, cosine"))
            }
        }
    }
}

/// The most examples of a step: more is a slip of the keyboard.
const MOST_EXAMPLES: u64 = 1 << 20;

/// Options of a training run. A run that is resumed needs the same ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainingConfig {
    /// Number of steps of the optimizer.
    pub steps: u64,
    /// Number of examples of a forward pass.
    pub batch: usize,
    /// Number of batches whose gradients are added up for one step.
    pub accumulate: usize,
    /// Whether activations between residual sums are computed again in the backward pass instead of kept: less memory for
    /// about a third more time, and the same weights to the bit (Chen et al. 2016, arXiv 1604.06174).
    #[serde(skip)]
    pub recompute: bool,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// How the learning rate changes after the warm-up.
    pub schedule: Schedule,
    /// Number of steps in which the learning rate rises from 0.
    pub warmup: u64,
    /// The largest norm of the gradient; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// AdamW's decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Steps from one validation and one saved state to the next.
    pub valid_every: u64,
    /// Number of batches of a validation; `None` for the whole validation set.
    pub valid_batches: Option<usize>,
    /// Seed of the order of the examples and of what is random in a batch.
    pub seed: u64,
    /// The maximum length of sequences, as [`Collation::max_length`](crate::model::Collation::max_length).
    pub max_length: Option<usize>,
    /// Whether prompts are not learned.
    pub mask_prompt: bool,
    /// Steps that are forecast, of time series.
    pub horizon: Option<usize>,
    /// Options of the loss.
    pub loss: Value,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 4,
            accumulate: 1,
            recompute: false,
            learning_rate: 1e-4,
            schedule: Schedule::Constant,
            warmup: 0,
            clip: Some(1.0),
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            valid_every: 100,
            valid_batches: None,
            seed: 0,
            max_length: None,
            mask_prompt: false,
            horizon: None,
            loss: Value::Null,
        }
    }
}

impl TrainingConfig {
    /// The learning rate of step `step`, counted from 0, as the schedulers of transformers.
    ///
    /// ```
    /// use fauna_shared::train::{Schedule, TrainingConfig};
    /// let mut config = TrainingConfig::default();
    /// (config.steps, config.warmup, config.schedule, config.learning_rate) = (10, 2, Schedule::Linear, 1.0);
    /// let rates: Vec<f64> = (0..11).map(|step| config.rate(step)).collect();
    /// assert_eq!(rates, [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]);
    /// ```
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.learning_rate * step as f64 / self.warmup as f64;
        }
        let left = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let share = ((step - self.warmup) as f64 / left).min(1.0);
        let factor = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - share,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * share).cos()),
        };
        self.learning_rate * factor
    }

    /// Checks that the numbers are in their ranges.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) for the first that is not.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("steps", self.steps),
            ("batch", self.batch as u64),
            ("accumulate", self.accumulate as u64),
            ("valid_every", self.valid_every),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::input(format!("{name} is 0, expected 1 or more")));
        }
        let examples = (self.batch as u64).saturating_mul(self.accumulate as u64);
        if examples > MOST_EXAMPLES {
            return Err(Error::input(format!(
                "a step of batch {} times accumulate {} has {examples} examples, expected at most {MOST_EXAMPLES}",
                self.batch, self.accumulate
            )));
        }
        let optional = [
            ("valid_batches", self.valid_batches),
            ("max_length", self.max_length),
            ("horizon", self.horizon),
        ];
        if let Some((name, _)) = optional.into_iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::input(format!("{name} is 0, expected 1 or more")));
        }
        let [first, second] = self.betas;
        let above_zero = (f64::MIN_POSITIVE, f64::MAX, "a finite number above 0");
        let from_zero = (0.0, f64::MAX, "a finite number of at least 0");
        let decay = (0.0, 1.0 - f64::EPSILON, "a number of at least 0, below 1");
        let numbers = [
            ("learning_rate", self.learning_rate, above_zero),
            ("clip", self.clip.unwrap_or(1.0), above_zero),
            ("beta1", first, decay),
            ("beta2", second, decay),
            ("eps", self.eps, from_zero),
            ("weight_decay", self.weight_decay, from_zero),
        ];
        match numbers.into_iter().find(|(_, value, (least, most, _))| !(*least..=*most).contains(value)) {
            None => Ok(()),
            Some((name, value, (.., wanted))) => {
                Err(Error::input(format!("{name} is {value}, expected {wanted}")))
            }
        }
    }

    /// The options in which a run `before` differed, as lines `name: before, now`.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let fields = |config: &Self| match serde_json::to_value(config) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (now, before) = (fields(self), fields(before));
        let differs = |(name, value): (&String, &Value)| {
            let old = before.get(name).unwrap_or(&Value::Null);
            (old != value).then(|| format!("{name}: {old} before, {value} now"))
        };
        now.iter().filter_map(differs).collect()
    }
}
