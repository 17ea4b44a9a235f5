//! `fauna tune`: fine-tuning on a data set.

mod data;
mod report;

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context as _;
use fauna::adapter::{AdapterConfig, TargetModules};
use fauna::model::Collation;
use fauna::train::{
    BEST, Examples, LAST, Learner, Run, RunDescription, Schedule, Trained, Trainer, TrainingConfig,
};
use fauna::weights::Select;
use fauna::{Error, ErrorKind, LoadOptions, Result};
use serde_json::{Value, json};

use self::data::Data;
use self::report::Log;
use crate::cli::options::{Loading, Seed};
use crate::cli::output::Output;
use crate::cli::{Context, Exit};

/// Arguments of `fauna tune`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna tune HuggingFaceTB/SmolLM2-135M-Instruct --data chats --lora 8 --mask-prompt --out tuned\n  \
                  fauna tune sentence-transformers/all-MiniLM-L6-v2 --data intents.jsonl --head --out intents\n  \
                  fauna tune --from-config tiny/config.json --data texts --full --lr 1e-3 --out tiny-trained\n  \
                  fauna tune HuggingFaceTB/SmolLM2-135M-Instruct --data chats --lora 8 --mask-prompt --out tuned --resume"
)]
pub struct Args {
    /// Model to fine-tune: a folder, a weights file, a Hugging Face Hub id, or a cached name.
    #[arg(value_name = "MODEL", required_unless_present = "from_config")]
    source: Option<String>,
    #[command(flatten)]
    pub loading: Loading,
    /// Train from initial weights a model of this config.json, whose folder has its tokenizer and processors.
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    from_config: Option<PathBuf>,
    #[command(flatten)]
    data: data::DataArgs,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    /// Output folder: "last" and "best" weights in it, "log.jsonl" and "curve.png".
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Go on with the run in the output folder, with the same options.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    seed: Seed,
}

/// What is trained.
#[derive(Debug, clap::Args)]
#[group(multiple = true)]
struct TrainedArgs {
    /// Train a LoRA adapter of this rank (the default, with rank 8).
    #[arg(help_heading = "What is trained", long, value_name = "RANK", conflicts_with = "full")]
    lora: Option<usize>,
    /// Scale of the adapter: its update is multiplied by ALPHA / RANK (default: twice the rank).
    #[arg(help_heading = "What is trained", long, value_name = "ALPHA", conflicts_with = "full")]
    alpha: Option<f64>,
    /// Modules with an adapter, as in peft: names, a regular expression, or all-linear (the default).
    #[arg(help_heading = "What is trained", long, value_name = "NAMES", value_delimiter = ',')]
    targets: Vec<String>,
    /// Multiply the update by ALPHA / sqrt(RANK) (rsLoRA).
    #[arg(help_heading = "What is trained", long)]
    rslora: bool,
    /// Train the norms of the weights separately (DoRA).
    #[arg(help_heading = "What is trained", long)]
    dora: bool,
    /// Train all weights.
    #[arg(help_heading = "What is trained", long, conflicts_with = "head")]
    full: bool,
    /// Train the output head: alone, or with --lora beside the adapter.
    #[arg(help_heading = "What is trained", long)]
    head: bool,
    /// Train the weights whose names match this regular expression: alone, or with --lora beside the adapter.
    #[arg(help_heading = "What is trained", long, value_name = "REGEX", conflicts_with_all = ["full", "head"])]
    only: Option<String>,
}

/// How it is trained.
#[derive(Debug, clap::Args)]
struct OptimizerArgs {
    /// Number of optimizer steps.
    #[arg(help_heading = "Training", long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Examples per forward pass.
    #[arg(help_heading = "Training", long, default_value_t = 4, value_name = "N")]
    batch: usize,
    /// Forward passes whose gradients are added up for a step.
    #[arg(help_heading = "Training", long, default_value_t = 1, value_name = "N")]
    accumulate: usize,
    /// Computes activations again in the backward pass instead of keeping them: less memory, a third more time.
    #[arg(help_heading = "Training", long)]
    recompute: bool,
    /// Learning rate (default: 1e-4; with --full 1e-5; with --from-config 1e-3).
    #[arg(help_heading = "Training", long, value_name = "RATE")]
    lr: Option<f64>,
    /// Change of the learning rate after the warm-up: constant, linear or cosine.
    #[arg(help_heading = "Training", long, default_value = "constant", value_name = "NAME")]
    schedule: Schedule,
    /// Steps in which the learning rate rises from 0.
    #[arg(help_heading = "Training", long, default_value_t = 0, value_name = "N")]
    warmup: u64,
    /// Largest norm of the gradient; 0 for no limit.
    #[arg(help_heading = "Training", long, default_value_t = 1.0, value_name = "NORM")]
    clip: f64,
    /// Weight decay of AdamW.
    #[arg(help_heading = "Training", long, default_value_t = 0.01, value_name = "X")]
    weight_decay: f64,
    /// Steps from one validation and saved state to the next.
    #[arg(help_heading = "Training", long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    valid_every: u64,
    /// Batches of a validation (default: all).
    #[arg(help_heading = "Training", long, value_name = "N")]
    valid_batches: Option<usize>,
    /// Learn the answers only, not the prompts.
    #[arg(help_heading = "Training", long)]
    mask_prompt: bool,
    /// Truncate sequences to this number of tokens, or time series to this number of steps.
    #[arg(help_heading = "Training", long, value_name = "N")]
    max_length: Option<usize>,
    /// Steps to forecast, of time series (default: the model's own number).
    #[arg(help_heading = "Training", long, value_name = "N")]
    horizon: Option<usize>,
    /// Option of the loss, as in the model's documentation; VALUE is JSON or a string. Can be repeated.
    #[arg(help_heading = "Training", long = "loss", value_name = "KEY=VALUE", value_parser = loss_option)]
    loss: Vec<(String, Value)>,
}

fn loss_option(argument: &str) -> std::result::Result<(String, Value), String> {
    let (key, value) = argument.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_string(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// Trains, and prints the folder with the weights.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let _stoppable = context.interrupt.hold();
    args.check()?;
    let config = args.config();
    config.check()?;
    if !context.loading.adapters.is_empty() && args.trained.full {
        return Err(Error::input("--full with --adapter: the adapter would not be part of the checkpoint")
            .hint("merge it first: fauna merge")
            .into());
    }
    let (source, options) = args.model(context)?;
    let data = Data::open(&args.data, &args.seed, &source, &options).context("cannot read the data")?;
    context.say(data.dataset.description());
    data.dataset.notes().iter().for_each(|note| context.say(note));
    data.new_head().iter().for_each(|note| context.say(note));
    let options = data.with_config(options)?;
    let learner = Learner::open(&fauna::zoo(), &source, &options, args.trained(&data)?)
        .map_err(|error| args.with_advice(error, &data))
        .context("cannot open the model for training")?;
    context.say(&format!(
        "training {} of {source}: {} parameters",
        args.description(),
        learner.variables().parameters()
    ));
    let model = format!("{source}{}", context.loading.description());
    let description = RunDescription::new(model, args.description(), data.description.clone());
    let mut collation = Collation::default();
    collation.classes = data.classes.clone();
    collation.statistics = data.statistics.clone();
    let trainer = Trainer::new(learner, data.dataset.train(), config.clone(), collation)?;
    let validation = data.dataset.validation().map(|split| split as &dyn Examples);
    let mut run = match args.resume {
        true => Run::resume(trainer, validation, &args.out, description)?,
        false => Run::new(trainer, validation, &args.out, description)?,
    };
    let mut log = Log::open(&args.out, run.trainer().steps(), &config, context)?;
    let outcome = run.run(&mut |event| {
        log.tell(event, context);
        match context.interrupt.requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    log.finish(context);
    let outcome = outcome.context("training stopped")?;
    let best = args.out.join(BEST);
    let folder = if best.is_dir() { best } else { args.out.join(LAST) };
    let mut output = Output::stdout();
    match context.globals.json {
        true => output.json(&json!({
            "folder": folder, "steps": outcome.steps, "best": outcome.best, "stopped": outcome.stopped,
        }))?,
        false => output.line(folder.display().to_string())?,
    }
    output.finish()?;
    if let [over] = context.loading.adapters.as_slice() {
        context.say(&format!(
            "what was trained is an adapter over another one, which it names as its base model: over {source}, open it \
             with --adapter {over} before it"
        ));
    }
    match outcome.stopped {
        true => {
            let message = format!("stopped after {} steps; go on with --resume", outcome.steps);
            Err(Error::new(ErrorKind::Cancelled, message).into())
        }
        false => Ok(Exit::Done),
    }
}

impl Args {
    /// The model to open, and how.
    fn model(&self, context: &Context) -> Result<(String, LoadOptions)> {
        let options = context.options()?;
        let Some(config) = &self.from_config else {
            return Ok((self.source.clone().unwrap_or_default(), options));
        };
        match (config.file_name().is_some_and(|name| name == "config.json"), config.is_file()) {
            (true, true) => {
                let folder = config.parent().filter(|folder| !folder.as_os_str().is_empty());
                let folder = folder.map_or(".".into(), |folder| folder.display().to_string());
                Ok((folder, options.with_initial_weights(self.seed.seed)))
            }
            (_, false) => Err(Error::input("no such file").at(config)),
            (false, true) => Err(Error::input("expected a file named config.json").at(config)),
        }
    }

    fn config(&self) -> TrainingConfig {
        let args = &self.optimizer;
        let rate = match (self.from_config.is_some(), self.trained.full) {
            (true, _) => 1e-3,
            (false, true) => 1e-5,
            (false, false) => 1e-4,
        };
        let mut config = TrainingConfig::default();
        config.steps = args.steps;
        config.batch = args.batch;
        config.accumulate = args.accumulate;
        config.recompute = args.recompute;
        config.learning_rate = args.lr.unwrap_or(rate);
        config.schedule = args.schedule;
        config.warmup = args.warmup;
        config.clip = (args.clip != 0.0).then_some(args.clip);
        config.weight_decay = args.weight_decay;
        config.valid_every = args.valid_every;
        config.valid_batches = args.valid_batches;
        config.seed = self.seed.seed;
        config.max_length = args.max_length;
        config.mask_prompt = args.mask_prompt;
        config.horizon = args.horizon;
        if !args.loss.is_empty() {
            config.loss = Value::Object(args.loss.iter().cloned().collect());
        }
        config
    }

    /// Whether all weights are trained.
    fn everything(&self) -> bool {
        let args = &self.trained;
        args.full || self.from_config.is_some() && !args.head && args.only.is_none()
    }

    /// Whether an adapter is trained.
    fn has_adapter(&self) -> bool {
        let args = &self.trained;
        args.lora.is_some() || !self.everything() && !args.head && args.only.is_none()
    }

    /// Refuses options of an adapter where none is trained, an adapter over initial weights, and a file as the folder.
    fn check(&self) -> Result<()> {
        let args = &self.trained;
        if self.out.exists() && !self.out.is_dir() {
            return Err(Error::input("expected a folder for the run, found a file")
                .at(&self.out)
                .hint("choose another folder with --out"));
        }
        if self.from_config.is_some() && args.lora.is_some() {
            return Err(Error::input(
                "--lora with --from-config: the weights below the adapter would not be saved",
            )
            .hint("leave --lora out to train all weights"));
        }
        let given = [
            ("--alpha", args.alpha.is_some()),
            ("--targets", !args.targets.is_empty()),
            ("--rslora", args.rslora),
            ("--dora", args.dora),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given && !self.has_adapter()) {
            None => Ok(()),
            Some((name, _)) => {
                Err(Error::input(format!("{name} is an option of adapters, and none is trained"))
                    .hint("add --lora RANK, or leave it out"))
            }
        }
    }

    /// The error of a model whose new head `--only` leaves out.
    fn with_advice(&self, error: Error, data: &Data) -> Error {
        match &self.trained.only {
            Some(pattern) if data.has_new_head && error.kind() == ErrorKind::Mismatch => error.hint(format!(
                "the classes of the data need a new output head, and --only {pattern} does not take it: add it to the \
                 pattern, or train it with --head or --lora"
            )),
            _ => error,
        }
    }

    /// What is trained, in words.
    fn description(&self) -> String {
        let args = &self.trained;
        let weights = match (self.everything(), args.head, &args.only) {
            (true, ..) => return "all weights".to_string(),
            (_, true, _) => Some("the output head".to_string()),
            (_, _, Some(pattern)) => Some(format!("the weights {pattern}")),
            _ => None,
        };
        let parts = [self.has_adapter().then(|| args.adapter_description()), weights];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
    }

    fn trained(&self, data: &Data) -> Result<Trained> {
        let args = &self.trained;
        let select = match (self.everything(), args.head, &args.only) {
            (true, ..) => Select::All,
            (_, true, _) => Select::matching(&data.head)?,
            (_, _, Some(pattern)) => Select::matching(pattern)?,
            // A new head is trained with any adapter.
            _ if data.has_new_head => Select::matching(&data.head)?,
            _ => Select::None,
        };
        let trained = match self.has_adapter() {
            true => Trained::lora(args.adapter()).with_weights(select),
            false => Trained::weights(select),
        };
        Ok(match data.has_new_head {
            true => trained.with_fresh(self.seed.seed),
            false => trained.with_seed(self.seed.seed),
        })
    }
}

impl TrainedArgs {
    fn adapter(&self) -> AdapterConfig {
        let r = self.lora.unwrap_or(8);
        let targets = match self.targets.as_slice() {
            [] => TargetModules::AllLinear,
            [all] if all == "all-linear" => TargetModules::AllLinear,
            [one] if one.contains(['*', '(', '[', '\\', '^', '$']) => TargetModules::Pattern(one.clone()),
            names => TargetModules::Names(names.to_vec()),
        };
        AdapterConfig {
            r,
            lora_alpha: self.alpha.unwrap_or(2.0 * r as f64),
            use_rslora: self.rslora,
            use_dora: self.dora,
            target_modules: Some(targets),
            ..AdapterConfig::default()
        }
    }

    /// The adapter in words.
    fn adapter_description(&self) -> String {
        let adapter = self.adapter();
        let targets = if self.targets.is_empty() { "all-linear".to_string() } else { self.targets.join(",") };
        format!(
            "a LoRA adapter of rank {}, alpha {}{}{} over {targets}",
            adapter.r,
            adapter.lora_alpha,
            if self.rslora { ", rsLoRA" } else { "" },
            if self.dora { ", DoRA" } else { "" },
        )
    }
}
