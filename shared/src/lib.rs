//! The shared library of all model families of `fauna`.
//!
//! It finds and downloads files, loads checkpoints and tokenizers, and has layers over dense and quantized weights,
//! attention, generation, and parity tests against reference implementations.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients"))]

pub mod adapter;
pub mod attention;
#[cfg(feature = "audio")]
pub mod audio;
pub mod checkpoint;
pub mod error;
mod folder;
pub mod generate;
pub mod grad;
#[cfg(feature = "image")]
pub mod image;
pub mod item;
pub mod json;
pub mod measure;
pub mod misnamed;
pub mod model;
pub mod nn;
pub mod order;
pub mod parity;
pub mod progress;
pub mod quantize;
pub mod runtime;
pub mod source;
pub mod text;
pub mod train;
pub mod transfer;
pub mod weights;
pub mod zoo;

pub use error::{Error, ErrorKind, Result};
pub(crate) use fauna_kernels as kernels;
