//! Flamingo: a frozen language model with gated cross-attention to images; by its open reimplementations.
//!
//! Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", arXiv 2204.14198. Its weights are
//! closed. OpenFlamingo v2 ([`open_flamingo`]) and IDEFICS ([`idefics`]) reproduce it with open weights: a vision
//! encoder encodes each image, a perceiver resampler reduces it to a few latents, and in gated cross-attention layers
//! of the language model each token attends to the latest image before it. Both do few-shot learning from interleaved
//! images and texts, the last image without its text.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//! use fauna_vision::flamingo::idefics::{Idefics, sample};
//! // A small model with random weights; released checkpoints are opened by `Zoo::open` or `fauna::open`.
//! let config = serde_json::from_value(sample())?;
//! let idefics = Idefics::load(config, &Weights::seeded(7, Runtime::cpu()))?;
//! let states = idefics.encode(&Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu)?)?;
//! assert_eq!(states.dims(), [2, 5, 32]);
//! assert_eq!(idefics.resample(&states)?.dims(), [2, 3, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod idefics;
pub mod open_flamingo;
mod perceiver;
mod prompt;
mod reading;
mod sight;
