//! How tokens are chosen: what the user says, over what the model recommends.

use fauna::{Error, GenerationConfig, Modality, Pipeline, Reasoning, Result};

/// How tokens are chosen. What is not said, the model recommends.
#[derive(Debug, Clone, clap::Args)]
#[command(
    next_help_heading = "How words, sounds and other tokens are chosen (the model's own settings if not said)"
)]
pub struct Sampling {
    /// Stop after so many new tokens.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Make a sound of so many seconds.
    #[arg(long, value_name = "S", conflicts_with = "max_tokens")]
    seconds: Option<f64>,
    /// Do not end before so many new tokens.
    #[arg(long, value_name = "N")]
    min_tokens: Option<usize>,
    /// 0 always takes the likeliest token; higher is more varied. With --chat, where a model recommends nothing: 0.8, with
    /// --top-p 0.95, --top-k 40 and --min-p 0.05. Of atoms that move: how hot they are, in K (300 if not
    /// said).
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0 for all.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than this share of the likeliest.
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Above 1 makes tokens that were there less likely.
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// How strongly to follow the prompt, for models that can also go without one; 1 for no guidance.
    #[arg(long, value_name = "X")]
    guidance: Option<f32>,
    /// End before this text or at this special token; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Models of code end before the next top-level definition; with this they go on to their end token.
    #[arg(long)]
    keep_going: bool,
    /// How long to think before answering, for models that were taught to: low, medium or high.
    #[arg(long, value_name = "HOW", requires = "chat")]
    reasoning: Option<Reasoning>,
}

impl Sampling {
    /// These choices over `recommended`.
    ///
    /// # Errors
    /// The first option out of its range.
    pub fn over(&self, recommended: GenerationConfig, seed: u64) -> Result<GenerationConfig> {
        let options = GenerationConfig {
            max_new_tokens: self.max_tokens.unwrap_or(recommended.max_new_tokens),
            seconds: self.seconds.or(recommended.seconds.filter(|_| self.max_tokens.is_none())),
            min_new_tokens: self.min_tokens.unwrap_or(recommended.min_new_tokens),
            temperature: self.temperature.unwrap_or(recommended.temperature),
            top_k: self.top_k.unwrap_or(recommended.top_k),
            top_p: self.top_p.unwrap_or(recommended.top_p),
            min_p: self.min_p.unwrap_or(recommended.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(recommended.repetition_penalty),
            guidance: self.guidance.unwrap_or(recommended.guidance),
            stop: if self.stop.is_empty() { recommended.stop } else { self.stop.clone() },
            one_definition: recommended.one_definition && !self.keep_going,
            reasoning: self.reasoning.or(recommended.reasoning),
            seed,
            ..recommended
        };
        options.check()?;
        Ok(options)
    }

    /// The temperature of atoms, in K.
    #[cfg(feature = "science")]
    pub fn kelvin(&self) -> f64 {
        self.temperature.map_or(300.0, f64::from)
    }

    /// These choices over what `model` recommends for a conversation; where it recommends to take the likeliest token,
    /// those of chat programs.
    ///
    /// # Errors
    /// As [`of`](Sampling::of).
    pub fn of_chat(&self, model: &dyn Pipeline, seed: u64) -> Result<(GenerationConfig, Option<String>)> {
        let recommended = self.of(model, seed)?;
        let speaks = model.card().outputs.contains(&Modality::Text);
        if !speaks || self.temperature.is_some() || model.defaults().temperature != 0.0 {
            return Ok((recommended, None));
        }
        let options = GenerationConfig {
            temperature: 0.8,
            top_p: self.top_p.unwrap_or(0.95),
            top_k: self.top_k.unwrap_or(40),
            min_p: self.min_p.unwrap_or(0.05),
            ..recommended
        };
        let said = format!(
            "the model recommends no sampling: temperature {}, top-p {}, top-k {}, min-p {}, seed {seed}; --temperature 0 \
             takes the likeliest tokens",
            options.temperature, options.top_p, options.top_k, options.min_p
        );
        options.check()?;
        Ok((options, Some(said)))
    }

    /// These choices over what `model` recommends.
    ///
    /// # Errors
    /// As [`over`](Sampling::over), and if the model's tokens have no length in time.
    pub fn of(&self, model: &dyn Pipeline, seed: u64) -> Result<GenerationConfig> {
        match self.seconds.is_some() && !model.card().outputs.contains(&Modality::Sound) {
            true => Err(Error::input(format!(
                "{} makes no sound, so --seconds says nothing",
                model.card().source
            ))
            .hint("--max-tokens N ends its answer")),
            false => self.over(model.defaults(), seed),
        }
    }
}
