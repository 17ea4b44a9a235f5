//! The sound layer against torchaudio and transformers, and against files that are not what they claim.
//!
//! `reference.safetensors` and the sounds beside it come from `tests/parity/generate/sound.py`.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

mod reading;
mod reference;
mod writing;

use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audio").join(name)
}
