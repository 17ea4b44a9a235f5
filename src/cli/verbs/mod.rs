//! The commands, one module each, with its `Args` and `run(args, context)`.

#[cfg(feature = "robotics")]
pub mod act;
#[cfg(feature = "forecasting")]
pub mod anomalies;
pub mod answer;
pub mod bench;
pub mod chat;
pub mod classify;
#[cfg(any(feature = "audio", feature = "vision"))]
pub mod codec;
pub mod compare;
pub mod completions;
#[cfg(feature = "audio")]
pub mod compose;
#[cfg(feature = "vision")]
pub mod describe;
#[cfg(feature = "vision")]
pub mod draw;
pub mod embed;
#[cfg(feature = "science")]
pub mod energy;
pub mod fill;
#[cfg(feature = "forecasting")]
pub mod forecast;
pub mod generate;
#[cfg(feature = "text")]
pub mod genes;
pub mod info;
pub mod list;
#[cfg(feature = "audio")]
pub mod listen;
#[cfg(feature = "science")]
pub mod md;
pub mod merge;
pub mod parity;
pub mod pull;
pub mod quantize;
#[cfg(feature = "science")]
pub mod relax;
pub mod search;
#[cfg(feature = "tabletop")]
pub mod tabletop;
#[cfg(feature = "builtin")]
pub mod tour;
#[cfg(feature = "datasets")]
pub mod tune;

use std::ffi::OsString;

use super::options::Loading;
use super::{Context, Exit};

/// The command to run.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Chat with a model, or answer a single prompt.
    Chat(Box<chat::Args>),
    /// Generate text from a prompt, or fill in the middle of code.
    Generate(Box<generate::Args>),
    /// Predict the masked tokens of a text (fill-mask).
    Fill(Box<fill::Args>),
    /// Classify texts, text pairs and images (zero-shot).
    Classify(Box<classify::Args>),
    /// Answer questions about a text, images or audio.
    Answer(Box<answer::Args>),
    /// Generate images from text.
    #[cfg(feature = "vision")]
    Draw(Box<draw::Args>),
    /// Describe images (image-to-text).
    #[cfg(feature = "vision")]
    Describe(Box<describe::Args>),
    /// Search the images of a folder, or the lines of a text file, by a text.
    Search(Box<search::Args>),
    /// Generate music from text, a melody or an audio prompt.
    #[cfg(feature = "audio")]
    Compose(Box<compose::Args>),
    /// Answer questions about an audio file.
    #[cfg(feature = "audio")]
    Listen(Box<listen::Args>),
    /// Encode audio and images to discrete codes, and decode them.
    #[cfg(any(feature = "audio", feature = "vision"))]
    Codec(Box<codec::Args>),
    /// Predict robot actions from camera images and an instruction.
    #[cfg(feature = "robotics")]
    Act(Box<act::Args>),
    /// Run a robot policy in a simulated table-top, and measure its success rate.
    #[cfg(feature = "tabletop")]
    Tabletop(Box<tabletop::Args>),
    /// Forecast time series, with prediction intervals.
    #[cfg(feature = "forecasting")]
    Forecast(Box<forecast::Args>),
    /// Detect anomalies in time series.
    #[cfg(feature = "forecasting")]
    Anomalies(Box<anomalies::Args>),
    /// Compute energy, forces and stress of atomic structures.
    #[cfg(feature = "science")]
    Energy(Box<energy::Args>),
    /// Relax atomic structures (geometry optimization).
    #[cfg(feature = "science")]
    Relax(Box<relax::Args>),
    /// Run molecular dynamics.
    #[cfg(feature = "science")]
    Md(Box<md::Args>),
    /// Generate and score gene sequences.
    #[cfg(feature = "text")]
    Genes(Box<genes::Args>),
    /// Compute embeddings of texts, images and genes.
    Embed(Box<embed::Args>),
    /// Compare texts by cosine similarity, and models by their agreement.
    Compare(Box<compare::Args>),
    /// Benchmark the speed and memory use of a model.
    Bench(Box<bench::Args>),
    /// Check models against the outputs of their reference implementations.
    Parity(Box<parity::Args>),
    /// List the supported model families and released checkpoints.
    List(Box<list::Args>),
    /// Show information about a model, without downloading its weights.
    Info(Box<info::Args>),
    /// Download a model to the cache and print its path.
    Pull(Box<pull::Args>),
    /// Quantize a model to 8, 6, 5 or 4 bits.
    Quantize(Box<quantize::Args>),
    /// Fine-tune a model on a data set: a LoRA adapter, the output head, or all weights.
    #[cfg(feature = "datasets")]
    Tune(Box<tune::Args>),
    /// Merge LoRA adapters into a model and write the whole checkpoint.
    Merge(Box<merge::Args>),
    /// Show what the built-in models of every modality do, and write it as a page.
    #[cfg(feature = "builtin")]
    Tour(Box<tour::Args>),
    /// Generate a shell completion script.
    Completions(Box<completions::Args>),
    /// Run a model: choose the command by the model and the input.
    #[command(
        override_usage = "fauna run MODEL [ARGS]...\n       fauna MODEL [ARGS]...",
        after_help = "Use \"fauna run MODEL --help\" for the help of the command that is chosen.\n\nExamples:\n  \
                      fauna run openai-community/gpt2 \"Once upon a time\"\n  \
                      fauna facebook/musicgen-small \"a slow waltz\" --out waltz.wav"
    )]
    Run {
        /// Model, then the arguments of the command.
        #[arg(
            required = true,
            value_name = "MODEL",
            num_args = 1..,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        line: Vec<OsString>,
    },
    /// Print the manual page, in roff.
    #[command(after_help = "Examples:\n  fauna man > fauna.1\n  fauna man | man -l -")]
    Man,
    /// A model, then the arguments of the command.
    #[command(external_subcommand)]
    Model(Vec<OsString>),
}

impl Verb {
    /// Returns the loading options of the command, if it loads a model.
    pub fn loading(&self) -> Option<Loading> {
        match self {
            Self::Chat(args) => Some(args.model.loading.clone()),
            Self::Generate(args) => Some(args.model.loading.clone()),
            Self::Fill(args) => Some(args.model.loading.clone()),
            Self::Classify(args) => Some(args.model.loading.clone()),
            Self::Answer(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "vision")]
            Self::Draw(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "vision")]
            Self::Describe(args) => Some(args.model.loading.clone()),
            Self::Search(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "audio")]
            Self::Compose(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "audio")]
            Self::Listen(args) => Some(args.model.loading.clone()),
            #[cfg(any(feature = "audio", feature = "vision"))]
            Self::Codec(args) => Some(args.loading().clone()),
            #[cfg(feature = "robotics")]
            Self::Act(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "tabletop")]
            Self::Tabletop(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "forecasting")]
            Self::Forecast(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "forecasting")]
            Self::Anomalies(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "science")]
            Self::Energy(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "science")]
            Self::Relax(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "science")]
            Self::Md(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "text")]
            Self::Genes(args) => Some(args.loading().clone()),
            Self::Embed(args) => Some(args.model.loading.clone()),
            Self::Compare(args) => Some(args.model.loading.clone()),
            Self::Bench(args) => Some(args.model.loading.clone()),
            Self::Parity(args) => Some(args.loading.clone()),
            Self::Info(args) => Some(args.model.loading.clone()),
            Self::Pull(args) => Some(Loading { finding: args.finding.clone(), ..Loading::default() }),
            Self::Quantize(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "datasets")]
            Self::Tune(args) => Some(args.loading.clone()),
            Self::Merge(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "builtin")]
            Self::Tour(_) => None,
            Self::List(_) | Self::Completions(_) | Self::Run { .. } | Self::Man | Self::Model(_) => None,
        }
    }

    /// Runs the command.
    ///
    /// # Errors
    /// The error that stopped the command.
    pub fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Chat(args) => chat::run(*args, context),
            Self::Generate(args) => generate::run(*args, context),
            Self::Fill(args) => fill::run(*args, context),
            Self::Classify(args) => classify::run(*args, context),
            Self::Answer(args) => answer::run(*args, context),
            #[cfg(feature = "vision")]
            Self::Draw(args) => draw::run(*args, context),
            #[cfg(feature = "vision")]
            Self::Describe(args) => describe::run(*args, context),
            Self::Search(args) => search::run(*args, context),
            #[cfg(feature = "audio")]
            Self::Compose(args) => compose::run(*args, context),
            #[cfg(feature = "audio")]
            Self::Listen(args) => listen::run(*args, context),
            #[cfg(any(feature = "audio", feature = "vision"))]
            Self::Codec(args) => codec::run(*args, context),
            #[cfg(feature = "robotics")]
            Self::Act(args) => act::run(*args, context),
            #[cfg(feature = "tabletop")]
            Self::Tabletop(args) => tabletop::run(*args, context),
            #[cfg(feature = "forecasting")]
            Self::Forecast(args) => forecast::run(*args, context),
            #[cfg(feature = "forecasting")]
            Self::Anomalies(args) => anomalies::run(*args, context),
            #[cfg(feature = "science")]
            Self::Energy(args) => energy::run(*args, context),
            #[cfg(feature = "science")]
            Self::Relax(args) => relax::run(*args, context),
            #[cfg(feature = "science")]
            Self::Md(args) => md::run(*args, context),
            #[cfg(feature = "text")]
            Self::Genes(args) => genes::run(*args, context),
            Self::Embed(args) => embed::run(*args, context),
            Self::Compare(args) => compare::run(*args, context),
            Self::Bench(args) => bench::run(*args, context),
            Self::Parity(args) => parity::run(*args, context),
            Self::List(args) => list::run(*args, context),
            Self::Info(args) => info::run(*args, context),
            Self::Pull(args) => pull::run(*args, context),
            Self::Quantize(args) => quantize::run(*args, context),
            #[cfg(feature = "datasets")]
            Self::Tune(args) => tune::run(*args, context),
            Self::Merge(args) => merge::run(*args, context),
            #[cfg(feature = "builtin")]
            Self::Tour(args) => tour::run(*args, context),
            Self::Completions(args) => completions::run(*args),
            Self::Man => completions::man(),
            // Rewritten to another command before they are run.
            Self::Run { .. } | Self::Model(_) => Ok(Exit::Done),
        }
    }
}
