//! A zoo of multimodal foundation models: every model family loads through one API, runs on CPU, CUDA or Metal, and
//! reproduces the outputs of its reference implementation.
//!
//! # Embeddings
//!
//! The model `minilm` is built in and needs no download:
//!
//! ```
//! let model = fauna::open("minilm")?;
//! let vectors = model.embed(&["a cat sleeps".into(), "the kitten naps".into(), "stocks fell".into()])?.to_vecs()?;
//! let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
//! assert!(dot(&vectors[0], &vectors[1]) > dot(&vectors[0], &vectors[2]));
//! # Ok::<(), fauna::Error>(())
//! ```
//!
//! # Text generation
//!
//! [`open`] takes a folder, a weights file, or the id of a repository on the Hugging Face Hub, which is downloaded once:
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use fauna::{GenerationConfig, Item};
//! let model = fauna::open("HuggingFaceTB/SmolLM2-135M-Instruct")?;
//! model.generate(&"The sky at night".into(), &GenerationConfig::greedy(40), &mut |piece| {
//!     if let Item::Text(words) = piece {
//!         print!("{words}");
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), fauna::Error>(())
//! ```
//!
//! # Time series, robots, atoms
//!
//! Forecasting, interatomic potentials and robot policies are traits of their own, which a [`Pipeline`] hands out:
//!
//! ```no_run
//! use fauna::model::{ForecastConfig, History, Task};
//! let history = History::from(vec![3.0, 5.0, 4.0, 6.0, 5.0, 7.0]);
//! let model = fauna::open("amazon/chronos-bolt-small")?;
//! let ahead = model.forecaster()?.forecast(&[history], &ForecastConfig::new(12))?;
//! println!("{:?}", ahead[0].mean);
//!
//! let model = fauna::open("orb-v3-conservative-inf-omat-20250404.ckpt")?;
//! let hydrogen = fauna::Atoms {
//!     numbers: vec![1, 1],
//!     positions: vec![[0.0; 3], [0.74, 0.0, 0.0]],
//!     ..fauna::Atoms::default()
//! };
//! println!("{} eV", model.potential()?.evaluate(&[hydrogen])?[0].energy);
//!
//! let model = fauna::open("openvla/openvla-7b-finetuned-libero-spatial")?;
//! let mut controller = model.policy()?.start(&Task::from("pick up the black bowl"))?;
//! let frame = fauna::Image { width: 224, height: 224, rgb: vec![0; 224 * 224 * 3] };
//! println!("{:?}", controller.act(&(&frame).into())?);
//! # Ok::<(), fauna::Error>(())
//! ```
//!
//! # Device, dtype and quantization
//!
//! They are chosen once, when the model is loaded, and work for every model:
//!
//! ```
//! use fauna::{LoadOptions, runtime::{Precision, Runtime}};
//! let runtime = Runtime::on("auto")?.with_precision(Precision::Bf16);
//! let model = fauna::open_with("minilm", &LoadOptions::default().with_runtime(runtime))?;
//! assert_eq!(model.card().family, "bert");
//! # Ok::<(), fauna::Error>(())
//! ```
//!
//! # Supported families
//!
//! ```
//! for family in fauna::families() {
//!     println!("{}: {}", family.name, family.systems.join(", "));
//! }
//! ```
//!
//! Each modality is a cargo feature of its own (`text`, `vision`, `audio`, `robotics`, `science`), and so is each toolkit
//! (`forecasting`, with `parquet`; `atoms`; `tabletop`; `datasets`); all are on by default. Each device is one too (`cuda`, `metal`,
//! `accelerate`, `mkl`). An application that wants a family's own
//! types finds them in the modality's module, and its traits in [`model`].

use std::borrow::Cow;
#[cfg(feature = "builtin")]
use std::sync::Arc;

pub use fauna_shared::generate::{CancellationToken, FinishReason, Generation, GenerationConfig, Reasoning};
pub use fauna_shared::item::{
    Atoms, Embeddings, Image, ImageOptions, Item, Label, Modality, Prompt, Role, Sound, Tensors, Turn, cosine,
};
pub use fauna_shared::model::{Card, Family, Pipeline, Release, Reply, Session};
/// Tokenizers and chat templates.
pub use fauna_shared::text as tokenizer;
pub use fauna_shared::zoo::{LoadOptions, Zoo};
pub use fauna_shared::{Error, ErrorKind, Result};
pub use fauna_shared::{
    adapter, attention, checkpoint, error, generate, grad, item, json, measure, model, nn, order, parity,
    progress, quantize, runtime, source, train, transfer, weights, zoo,
};

/// The tensor library, re-exported in the version that fauna's tensors come from.
pub use candle_core as candle;

/// Structures, neighbour lists, relaxation, molecular dynamics.
#[cfg(feature = "atoms")]
pub use fauna_atoms as atoms;
#[cfg(feature = "audio")]
pub use fauna_audio as audio;
/// Data sets as examples for training.
#[cfg(feature = "datasets")]
pub use fauna_datasets as datasets;
/// Tables of time series: forecasts, cross-validation, anomalies.
#[cfg(feature = "forecasting")]
pub use fauna_forecasting as forecasting;
#[cfg(feature = "robotics")]
pub use fauna_robotics as robotics;
#[cfg(feature = "science")]
pub use fauna_science as science;
/// Audio files, resampling, loudness and spectrograms.
#[cfg(feature = "audio")]
pub use fauna_shared::audio as sound;
/// Image files, resizing and preprocessing.
#[cfg(feature = "vision")]
pub use fauna_shared::image;
/// A table-top simulation for policies.
#[cfg(feature = "tabletop")]
pub use fauna_tabletop as tabletop;
#[cfg(feature = "text")]
pub use fauna_text as text;
#[cfg(feature = "vision")]
pub use fauna_vision as vision;

mod features;
pub mod releases;

#[cfg(feature = "builtin")]
pub mod builtin;

/// Loads the model that `source` names, on the CPU, in float32.
///
/// A source is a folder or a file on disk, the id of a repository on the Hugging Face Hub with an optional revision
/// (`owner/name@main`), a name in the cache, or a [built-in](builtin) model: `minilm` or `fauna:minilm`. A path never causes
/// network access.
///
/// # Errors
/// An invalid source, file, config or tensor; see [`ErrorKind`].
pub fn open(source: &str) -> Result<Box<dyn Pipeline>> {
    open_with(source, &LoadOptions::default())
}

/// Loads the model that `source` names with `options`: device, dtype, quantization.
///
/// # Errors
/// As [`open`].
pub fn open_with(source: &str, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    zoo().open(source, &finding_builtin(source, options)).map_err(|error| without_builtin(source, error))
}

/// Returns the family of `source` and the tensors that a checkpoint of its config holds; no weights are read.
///
/// # Errors
/// As [`open`], except for errors of the weights.
pub fn inventory(source: &str, options: &LoadOptions) -> Result<(&'static Family, weights::Inventory)> {
    zoo().inventory(source, &finding_builtin(source, options)).map_err(|error| without_builtin(source, error))
}

/// Returns the files, config and weights of `source`, from which the type of its family is loaded.
///
#[cfg_attr(feature = "builtin", doc = "```")]
#[cfg_attr(not(feature = "builtin"), doc = "```no_run")]
/// let (family, pretrained) = fauna::pretrained("minilm", &fauna::LoadOptions::default())?;
/// let (network, inventory) = pretrained.load::<fauna::text::bert::Bert>()?;
/// assert_eq!((family.name, inventory.parameters), ("bert", 22_713_216));
/// # let _ = network;
/// # Ok::<(), fauna::Error>(())
/// ```
///
/// # Errors
/// As [`open`], except for tensors that do not match the config, which only loading the type finds.
pub fn pretrained(source: &str, options: &LoadOptions) -> Result<(&'static Family, model::Pretrained)> {
    zoo()
        .pretrained(source, &finding_builtin(source, options))
        .map_err(|error| without_builtin(source, error))
}

/// Returns every model family of this build, in the order text, vision, audio, robotics, science.
pub fn families() -> Vec<&'static Family> {
    #[allow(unused_mut, reason = "a build without a modality has none to add")]
    let mut families: Vec<&'static Family> = Vec::new();
    #[cfg(feature = "text")]
    families.extend(fauna_text::FAMILIES);
    #[cfg(feature = "vision")]
    families.extend(fauna_vision::FAMILIES);
    #[cfg(feature = "audio")]
    families.extend(fauna_audio::FAMILIES);
    #[cfg(feature = "robotics")]
    families.extend(fauna_robotics::FAMILIES);
    #[cfg(feature = "science")]
    families.extend(fauna_science::FAMILIES);
    families
}

/// Returns the registry of all [`families`]. Its errors name the cargo features that this build lacks.
pub fn zoo() -> Zoo {
    Zoo::new(families()).with_absent(features::absent())
}

/// Adds a hint to `error` if `source` is a built-in model and this build does not include it.
fn without_builtin(source: &str, error: Error) -> Error {
    let is_builtin = source == "minilm" || source.starts_with("fauna:") || source.starts_with("pocket-");
    match is_builtin && cfg!(not(feature = "builtin")) {
        true => {
            error.hint("this build has no built-in models: the cargo feature `builtin` of fauna adds them")
        }
        false => error,
    }
}

/// Returns `options`, with a finder that resolves the built-in models if `source` or an adapter names one.
fn finding_builtin<'a>(source: &str, options: &'a LoadOptions) -> Cow<'a, LoadOptions> {
    #[cfg(feature = "builtin")]
    if [source]
        .into_iter()
        .chain(options.adapters.iter().map(|adapter| adapter.path.as_str()))
        .any(is_builtin)
    {
        return Cow::Owned(LoadOptions { finder: Arc::new(builtin::finder()), ..options.clone() });
    }
    let _ = source;
    Cow::Borrowed(options)
}

/// Whether `source` names a built-in model.
#[cfg(feature = "builtin")]
fn is_builtin(source: &str) -> bool {
    builtin::find(source).is_some()
}
