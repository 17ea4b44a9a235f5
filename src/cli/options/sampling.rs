//! How tokens are chosen: what the user says, over what the model recommends.

use fauna::{GenerationConfig, Pipeline, Reasoning, Result};

/// How tokens are sampled. What is not said, the model recommends.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Sampling {
    /// 0 always takes the most likely token; higher is more varied.
    #[arg(
        help_heading = "Sampling of tokens (the model's own settings if not said)",
        long,
        value_name = "T"
    )]
    pub temperature: Option<f32>,
    /// Sample from the K most likely tokens; 0 for all.
    #[arg(
        help_heading = "Sampling of tokens (the model's own settings if not said)",
        long,
        value_name = "K"
    )]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens that together have this probability.
    #[arg(
        help_heading = "Sampling of tokens (the model's own settings if not said)",
        long,
        value_name = "P"
    )]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than this share of the most likely.
    #[arg(
        help_heading = "Sampling of tokens (the model's own settings if not said)",
        long,
        value_name = "P"
    )]
    pub min_p: Option<f32>,
    /// Where random numbers start: the same seed gives the same output.
    #[arg(
        help_heading = "Sampling of tokens (the model's own settings if not said)",
        long,
        default_value_t = 0,
        value_name = "N"
    )]
    pub seed: u64,
}

/// Repeated tokens.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Penalty {
    /// Above 1 makes tokens that were there less likely.
    #[arg(
        help_heading = "Sampling of tokens (the model's own settings if not said)",
        long,
        value_name = "X"
    )]
    pub repetition_penalty: Option<f32>,
}

/// How many tokens are generated.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Length {
    /// Stop after so many new tokens.
    #[arg(help_heading = "Length of the output", long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Do not end before so many new tokens.
    #[arg(help_heading = "Length of the output", long, value_name = "N")]
    pub min_tokens: Option<usize>,
}

/// How the tokens of a text are sampled, and where it ends.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TextSampling {
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub penalty: Penalty,
    #[command(flatten)]
    pub length: Length,
    /// End before this text or at this special token; may be given more than once.
    #[arg(help_heading = "Length of the output", long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// The ids of all options of [`TextSampling`], for verbs that sample no tokens with some of their inputs.
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

/// What was chosen about decoding, from any of the groups.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    pub sampling: Sampling,
    pub penalty: Penalty,
    pub length: Length,
    pub stop: Vec<String>,
    /// Seconds of sound.
    pub seconds: Option<f64>,
    /// How strongly the prompt is followed.
    pub guidance: Option<f32>,
    /// Whether code goes on behind its first definition.
    pub keep_going: bool,
    /// How long a model thinks.
    pub reasoning: Option<Reasoning>,
}

impl From<&TextSampling> for Choices {
    fn from(options: &TextSampling) -> Self {
        let TextSampling { sampling, penalty, length, stop } = options.clone();
        Self { sampling, penalty, length, stop, ..Self::default() }
    }
}

impl Choices {
    /// These choices over `recommended`.
    ///
    /// # Errors
    /// The first option out of its range.
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

    /// Refuses what is out of range, before a model is opened.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn check(&self) -> Result<()> {
        self.over(GenerationConfig::default()).map(|_| ())
    }

    /// These choices over what `model` recommends.
    ///
    /// # Errors
    /// As [`over`](Self::over).
    pub fn of(&self, model: &dyn Pipeline) -> Result<GenerationConfig> {
        self.over(model.defaults())
    }

    /// These choices over what `model` recommends for a conversation; where it recommends to take the most likely token,
    /// those of chat programs, and a word that says so.
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
            "the model recommends no sampling: temperature {}, top-p {}, top-k {}, min-p {}, seed {}; --temperature 0 \
             takes the most likely tokens",
            options.temperature, options.top_p, options.top_k, options.min_p, sampling.seed
        );
        options.check()?;
        Ok((options, Some(said)))
    }
}
