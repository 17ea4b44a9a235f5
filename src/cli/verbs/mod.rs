//! The verbs, one module each: its `Args`, and `run(args, context)`.

#[cfg(feature = "robotics")]
pub mod act;
#[cfg(feature = "science")]
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
#[cfg(feature = "science")]
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
pub mod parity;
pub mod pull;
pub mod quantize;
#[cfg(feature = "science")]
pub mod relax;
#[cfg(feature = "vision")]
pub mod search;
#[cfg(feature = "builtin")]
pub mod tour;

use std::ffi::OsString;

use fauna::Result;

use super::options::Loading;
use super::{Context, Exit};

/// What is to be done.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Holds a conversation, or answers once.
    Chat(Box<chat::Args>),
    /// Continues a text, or fills a gap in code.
    Generate(Box<generate::Args>),
    /// Fills the masks of a text.
    Fill(Box<fill::Args>),
    /// Labels texts, pairs of texts, and pictures.
    Classify(Box<classify::Args>),
    /// Answers a question about a context, pictures or a sound.
    Answer(Box<answer::Args>),
    /// Draws a text as a picture.
    #[cfg(feature = "vision")]
    Draw(Box<draw::Args>),
    /// Describes pictures in words.
    #[cfg(feature = "vision")]
    Describe(Box<describe::Args>),
    /// Finds the pictures of a folder that are nearest to a sentence.
    #[cfg(feature = "vision")]
    Search(Box<search::Args>),
    /// Composes music from a text, a melody or a beginning.
    #[cfg(feature = "audio")]
    Compose(Box<compose::Args>),
    /// Answers questions about a sound.
    #[cfg(feature = "audio")]
    Listen(Box<listen::Args>),
    /// Encodes sounds and pictures as codes, and decodes them.
    #[cfg(any(feature = "audio", feature = "vision"))]
    Codec(Box<codec::Args>),
    /// Turns camera frames and an instruction into actions of a robot.
    #[cfg(feature = "robotics")]
    Act(Box<act::Args>),
    /// Forecasts series, with prediction intervals.
    #[cfg(feature = "science")]
    Forecast(Box<forecast::Args>),
    /// Finds anomalies in series.
    #[cfg(feature = "science")]
    Anomalies(Box<anomalies::Args>),
    /// Computes energy, forces and stress of structures.
    #[cfg(feature = "science")]
    Energy(Box<energy::Args>),
    /// Relaxes structures until no force is left.
    #[cfg(feature = "science")]
    Relax(Box<relax::Args>),
    /// Runs molecular dynamics.
    #[cfg(feature = "science")]
    Md(Box<md::Args>),
    /// Continues and scores genes.
    #[cfg(feature = "text")]
    Genes(Box<genes::Args>),
    /// Turns texts, pictures and genes into vectors.
    Embed(Box<embed::Args>),
    /// Shows how similar texts are to a model, and how far models agree.
    Compare(Box<compare::Args>),
    /// Times a model and measures its memory.
    Bench(Box<bench::Args>),
    /// Proves that models compute what their references compute.
    Parity(Box<parity::Args>),
    /// Lists the families and their released checkpoints.
    List(Box<list::Args>),
    /// Says what a checkpoint holds, before and after it is downloaded.
    Info(Box<info::Args>),
    /// Downloads a checkpoint into the cache and says where it is.
    Pull(Box<pull::Args>),
    /// Makes a smaller copy of a checkpoint, its matrices in blocks of 8, 6, 5 or 4 bits.
    Quantize(Box<quantize::Args>),
    /// Searches a small collection with the built-in model and draws it.
    #[cfg(feature = "builtin")]
    Tour(Box<tour::Args>),
    /// Prints the completion script of a shell.
    Completions(Box<completions::Args>),
    /// Does the most natural thing for the model and the input: picks the verb and hands it the arguments.
    #[command(
        override_usage = "fauna run MODEL [ARGUMENTS OF THE VERB]\n       fauna MODEL [ARGUMENTS OF THE VERB]",
        after_help = "It says which verb it picks with --help behind the model.\n\nExamples:\n  \
                      fauna run openai-community/gpt2 \"Once upon a time\"\n  \
                      fauna facebook/musicgen-small \"a slow waltz\" --out waltz.wav"
    )]
    Run {
        /// The model, then the arguments of its verb.
        #[arg(
            required = true,
            value_name = "MODEL",
            num_args = 1..,
            trailing_var_arg = true,
            allow_hyphen_values = true
        )]
        line: Vec<OsString>,
    },
    /// Prints the manual page, in roff.
    #[command(after_help = "Examples:\n  fauna man > fauna.1\n  fauna man | man -l -")]
    Man,
    /// A model, then the arguments of its verb.
    #[command(external_subcommand)]
    Model(Vec<OsString>),
}

impl Verb {
    /// How the verb's model is loaded, for verbs that load one.
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
            #[cfg(feature = "vision")]
            Self::Search(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "audio")]
            Self::Compose(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "audio")]
            Self::Listen(args) => Some(args.model.loading.clone()),
            #[cfg(any(feature = "audio", feature = "vision"))]
            Self::Codec(args) => Some(args.loading().clone()),
            #[cfg(feature = "robotics")]
            Self::Act(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "science")]
            Self::Forecast(args) => Some(args.model.loading.clone()),
            #[cfg(feature = "science")]
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
            #[cfg(feature = "builtin")]
            Self::Tour(args) => Some(args.loading.clone()),
            Self::List(_) | Self::Completions(_) | Self::Run { .. } | Self::Man | Self::Model(_) => None,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// Whatever keeps it from being done.
    pub fn run(self, context: &Context) -> Result<Exit> {
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
            #[cfg(feature = "vision")]
            Self::Search(args) => search::run(*args, context),
            #[cfg(feature = "audio")]
            Self::Compose(args) => compose::run(*args, context),
            #[cfg(feature = "audio")]
            Self::Listen(args) => listen::run(*args, context),
            #[cfg(any(feature = "audio", feature = "vision"))]
            Self::Codec(args) => codec::run(*args, context),
            #[cfg(feature = "robotics")]
            Self::Act(args) => act::run(*args, context),
            #[cfg(feature = "science")]
            Self::Forecast(args) => forecast::run(*args, context),
            #[cfg(feature = "science")]
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
            #[cfg(feature = "builtin")]
            Self::Tour(args) => tour::run(*args, context),
            Self::Completions(args) => completions::run(*args),
            Self::Man => completions::man(),
            // They are rewritten to another verb before they are run.
            Self::Run { .. } | Self::Model(_) => Ok(Exit::Done),
        }
    }
}
