//! The picture layer against Pillow, torchvision and torch, and against files that are not what they claim.
//!
//! `reference.safetensors`, `files.safetensors` and the pictures beside them come from
//! `tests/parity/generate/picture.py`.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

mod processors;
mod reading;
mod reference;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fauna_shared::item::Image;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/image").join(name)
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap()
}

/// A picture of `(height, width, 3)` bytes.
fn picture(tensor: &Tensor) -> Image {
    let (height, width, _) = tensor.dims3().unwrap();
    Image { width, height, rgb: tensor.flatten_all().unwrap().to_vec1().unwrap() }
}
