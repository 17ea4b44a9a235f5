//! Flamingo: a frozen language model that looks at pictures between its blocks, by open models after it.
//!
//! Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", arXiv 2204.14198. Its weights are
//! closed. OpenFlamingo v2 ([`open_flamingo`]) and IDEFICS ([`idefics`]) were trained after it and are open: a vision
//! tower sees each picture, a perceiver resampler brings it to a few states, and gated cross-attention before blocks of
//! the language model lets every token look at the latest picture before it. Both learn from examples in their prompt:
//! pictures and texts in turn, the last picture without its text.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use fauna_shared::{model::Model, runtime::Runtime, weights::Weights};
//! use fauna_vision::flamingo::idefics::{Idefics, sample};
//! // A small one with random weights; released files are opened by `Zoo::open` or `fauna::open`.
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
