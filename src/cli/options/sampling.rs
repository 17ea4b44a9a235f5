//! Sampling options, which override the generation config of the model.

use fauna::{GenerationConfig, Pipeline, Reasoning, Result};

/// Sampling options; those not given are taken from the model's generation config.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Sampling {
    /// Sampling temperature; 0 for greedy decoding.
    #[arg(help_heading = "Sampling (default: the model's generation config)", long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Sample from the K most likely tokens; 0 to disable.
    #[arg(help_heading = "Sampling (default: the model's generation config)", long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Nucleus sampling: sample from the most likely tokens with a cumulative probability of P; 1 to disable.
    #[arg(help_heading = "Sampling (default: the model's generation config)", long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Drop tokens with less than P times the probability of the most likely token; 0 to disable.
    #[arg(help_heading = "Sampling (default: the model's generation config)", long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Random seed: the same seed gives the same output.
    #[arg(
        help_heading = "Sampling (default: the model's generation config)",
        long,
        default_value_t = 0,
        value_name = "N"
    )]
    pub seed: u64,
}

/// Penalty on repeated tokens.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Penalty {
    /// Penalty on repeated tokens; above 1 makes them less likely, 1 for none.
    #[arg(help_heading = "Sampling (default: the model's generation config)", long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
}

/// Number of tokens to generate.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Length {
    /// Maximum number of new tokens.
    #[arg(help_heading = "Output length", long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Minimum number of new tokens.
    #[arg(help_heading = "Output length", long, value_name = "N")]
    pub min_tokens: Option<usize>,
}

/// Sampling and stopping options of text generation.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TextSampling {
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub penalty: Penalty,
    #[command(flatten)]
    pub length: Length,
    /// Stop sequence: a text, which is not part of the output, or a special token. Can be repeated.
    #[arg(help_heading = "Output length", long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// Ids of all options of [`TextSampling`], for commands that do not sample with some of their inputs.
pub const TEXT_SAMPLING: [&str; 9] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "repetition_penalty",
    "max_tokens",
    "min_tokens",
    "stop",
];

/// The generation options given, from all groups.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    pub sampling: Sampling,
    pub penalty: Penalty,
    pub length: Length,
    pub stop: Vec<String>,
    /// Duration of the audio in seconds.
    pub seconds: Option<f64>,
    /// Guidance scale.
    pub guidance: Option<f32>,
    /// Whether code generation goes on after the first top-level definition.
    pub keep_going: bool,
    /// Reasoning effort.
    pub reasoning: Option<Reasoning>,
}

impl From<&TextSampling> for Choices {
    fn from(options: &TextSampling) -> Self {
        let TextSampling { sampling, penalty, length, stop } = options.clone();
        Self { sampling, penalty, length, stop, ..Self::default() }
    }
}

impl Choices {
    /// Returns `recommended` with the given options in place of its own.
    ///
    /// # Errors
    /// An option out of range.
    pub fn over(&self, recommended: GenerationConfig) -> Result<GenerationConfig> {
        let Self { sampling, penalty, length, .. } = self;
        let options = GenerationConfig {
            max_new_tokens: length.max_tokens.unwrap_or(recommended.max_new_tokens),
            seconds: self.seconds.or(recommended.seconds.filter(|_| length.max_tokens.is_none())),
            min_new_tokens: length.min_tokens.unwrap_or(recommended.min_new_tokens),
            temperature: sampling.temperature.unwrap_or(recommended.temperature),
            top_k: sampling.top_k.unwrap_or(recommended.top_k),
            top_p: sampling.top_p.unwrap_or(recommended.top_p),
            min_p: sampling.min_p.unwrap_or(recommended.min_p),
            repetition_penalty: penalty.repetition_penalty.unwrap_or(recommended.repetition_penalty),
            guidance: self.guidance.unwrap_or(recommended.guidance),
            stop: if self.stop.is_empty() { recommended.stop } else { self.stop.clone() },
            one_definition: recommended.one_definition && !self.keep_going,
            reasoning: self.reasoning.or(recommended.reasoning),
            seed: sampling.seed,
            ..recommended
        };
        options.check()?;
        Ok(options)
    }

    /// Checks the ranges of the options, before a model is loaded.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn check(&self) -> Result<()> {
        self.over(GenerationConfig::default()).map(|_| ())
    }

    /// Returns the generation config of `model` with the given options in place of its own.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn of(&self, model: &dyn Pipeline) -> Result<GenerationConfig> {
        self.over(model.defaults())
    }

    /// Returns the generation config for a chat. If the model's own is greedy and no temperature is given, the defaults
    /// of chat programs are used, with a message that says so.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn of_chat(&self, model: &dyn Pipeline) -> Result<(GenerationConfig, Option<String>)> {
        let recommended = self.of(model)?;
        let sampling = &self.sampling;
        if sampling.temperature.is_some() || model.defaults().temperature != 0.0 {
            return Ok((recommended, None));
        }
        let options = GenerationConfig {
            temperature: 0.8,
            top_p: sampling.top_p.unwrap_or(0.95),
            top_k: sampling.top_k.unwrap_or(40),
            min_p: sampling.min_p.unwrap_or(0.05),
            ..recommended
        };
        let said = format!(
            "the model's generation config does not sample: using temperature {}, top-p {}, top-k {}, min-p {}, seed {}; use \
             --temperature 0 for greedy decoding",
            options.temperature, options.top_p, options.top_k, options.min_p, sampling.seed
        );
        options.check()?;
        Ok((options, Some(said)))
    }
}
