//! The pocket models of the modality robotics: small checkpoints in the layouts of the releases, each with its card. Data, and
//! nothing else.

use fauna_bundle::{Bundle, bundle};

/// The models.
pub const MODELS: &[Bundle] = &[bundle!(
    "pocket-policy",
    "pocket-policy",
    [
        "README.md",
        "config.json",
        "measured.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json"
    ]
)];
