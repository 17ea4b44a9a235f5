//! The pocket models of the modality science: small checkpoints in the layouts of the releases, each with its card. Data, and
//! nothing else.

use fauna_bundle::{Bundle, bundle};

/// The models.
pub const MODELS: &[Bundle] = &[
    bundle!(
        "pocket-forecaster",
        "pocket-forecaster",
        ["README.md", "config.json", "measured.json", "model.safetensors"]
    ),
    bundle!(
        "pocket-genes",
        "pocket-genes",
        ["README.md", "config.json", "measured.json", "model.safetensors"]
    ),
    bundle!(
        "pocket-potential",
        "pocket-potential",
        ["README.md", "config.json", "measured.json", "model.safetensors"]
    ),
];
