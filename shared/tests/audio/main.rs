//! The sound layer against torchaudio and transformers, and against files that are not what they claim.
//!
//! `reference.safetensors` and the sounds beside it come from `tests/parity/generate/sound.py`.

mod reference;
