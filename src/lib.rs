//! The zoo of multimodal foundation models: every family opens through one door, on CPU, CUDA or Metal, and computes
//! what its reference computes.
//!
//! # Texts to vectors
//!
//! One model is built in, so this needs no download:
//!
//! ```
//! let model = fauna::open("minilm")?;
//! let vectors = model.embed(&["a cat sleeps".into(), "the kitten naps".into(), "stocks fell".into()])?.to_vecs()?;
//! let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
//! assert!(dot(&vectors[0], &vectors[1]) > dot(&vectors[0], &vectors[2]));
//! # Ok::<(), fauna::Error>(())
//! ```
//!
//! # A prompt to a stream of words
//!
//! [`open`] takes a folder, a weights file, or the name of a repository on the hub, which it downloads once:
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
//! # Series, robots, atoms
//!
//! What is no continuation of a prompt is an ability of its own, which the same face hands out:
//!
//! ```no_run
//! use fauna::model::{ForecastConfig, History, Task};
//! let history = History::from(vec![3.0, 5.0, 4.0, 6.0, 5.0, 7.0]);
//! let model = fauna::open("amazon/chronos-bolt-small")?;
//! let ahead = model.forecaster()?.forecast(&[history], &ForecastConfig { horizon: 12, ..ForecastConfig::default() })?;
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
//! # Device, number type, weight format
//!
//! They are chosen once, when the model is opened; no model is written twice for them:
//!
//! ```
//! use fauna::{LoadOptions, runtime::{Precision, Runtime}};
//! let runtime = Runtime::on("auto")?.with_precision(Precision::Bf16);
//! let model = fauna::open_with("minilm", &LoadOptions { runtime, ..LoadOptions::default() })?;
//! assert_eq!(model.card().family, "bert");
//! # Ok::<(), fauna::Error>(())
//! ```
//!
//! # What is in the zoo
//!
//! ```
//! for family in fauna::families() {
//!     println!("{}: {}", family.name, family.systems.join(", "));
//! }
//! ```
//!
//! Each modality is a cargo feature of its own (`text`, `vision`, `audio`, `robotics`, `science`; all are on by
//! default), and so is each device (`cuda`, `metal`, `accelerate`, `mkl`). An application that wants a family's own
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
    attention, checkpoint, error, generate, item, json, measure, model, nn, order, parity, progress,
    quantize, runtime, source, transfer, weights, zoo,
};

/// The tensor library underneath, in the one version that fauna's tensors belong to.
pub use candle_core as candle;

#[cfg(feature = "audio")]
pub use fauna_audio as audio;
#[cfg(feature = "robotics")]
pub use fauna_robotics as robotics;
#[cfg(feature = "science")]
pub use fauna_science as science;
/// Sound files, rates, levels, spectra.
#[cfg(feature = "audio")]
pub use fauna_shared::audio as sound;
/// Picture files, sizes, and what models make of pixels.
#[cfg(feature = "vision")]
pub use fauna_shared::image as picture;
#[cfg(feature = "text")]
pub use fauna_text as text;
#[cfg(feature = "vision")]
pub use fauna_vision as vision;

mod features;
pub mod releases;

#[cfg(feature = "builtin")]
pub mod builtin;

/// Opens the model that `source` names, on the CPU, in float32.
///
/// A source is a folder or a file on disk, the id of a repository on the hub with an optional revision
/// (`owner/name@main`), a name in the cache, or `minilm`, which is built in. A path never makes a network call.
///
/// # Errors
/// What is wrong with the name, the files, the config or the tensors; see [`ErrorKind`].
pub fn open(source: &str) -> Result<Box<dyn Pipeline>> {
    open_with(source, &LoadOptions::default())
}

/// Opens the model that `source` names, as `options` say.
///
/// # Errors
/// As [`open`].
pub fn open_with(source: &str, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
    zoo().open(source, &finding_builtin(source, options)).map_err(|error| without_builtin(source, error))
}

/// What a checkpoint of this source's config holds, without its weights.
///
/// # Errors
/// As [`open`], save what is wrong with the weights.
pub fn inventory(source: &str, options: &LoadOptions) -> Result<(&'static Family, weights::Inventory)> {
    zoo().inventory(source, &finding_builtin(source, options)).map_err(|error| without_builtin(source, error))
}

/// All that is needed to build the model that `source` names as its family's own type.
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
/// As [`open`], save what is wrong between the config and the tensors.
pub fn pretrained(source: &str, options: &LoadOptions) -> Result<(&'static Family, model::Pretrained)> {
    zoo()
        .pretrained(source, &finding_builtin(source, options))
        .map_err(|error| without_builtin(source, error))
}

/// Every family this build knows, in the order text, vision, audio, robotics, science.
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

/// The door over [`families`]. What this build lacks is named in its errors, by cargo feature.
pub fn zoo() -> Zoo {
    Zoo::new(families()).with_absent(features::absent())
}

/// `error`, with what would make the built-in model open where this build has none.
fn without_builtin(source: &str, error: Error) -> Error {
    match source == "minilm" && cfg!(not(feature = "builtin")) {
        true => error.hint("this build has no built-in model: the cargo feature `builtin` of fauna adds it"),
        false => error,
    }
}

/// `options`, with a finder that knows the built-in model if that is what `source` names.
fn finding_builtin<'a>(source: &str, options: &'a LoadOptions) -> Cow<'a, LoadOptions> {
    #[cfg(feature = "builtin")]
    if source == builtin::NAME {
        return Cow::Owned(LoadOptions { finder: Arc::new(builtin::finder()), ..options.clone() });
    }
    let _ = source;
    Cow::Borrowed(options)
}
