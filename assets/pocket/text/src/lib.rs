//! The pocket models of the modality text: small checkpoints in the layouts of the releases, each with its card. Data, and
//! nothing else.

use fauna_bundle::{Bundle, bundle};

/// The models.
pub const MODELS: &[Bundle] = &[
    bundle!(
        "pocket-astronomer",
        "pocket-astronomer",
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "measured.json"]
    ),
    bundle!(
        "pocket-coder",
        "pocket-coder",
        [
            "README.md",
            "config.json",
            "measured.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    ),
    bundle!(
        "pocket-mathematician",
        "pocket-mathematician",
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "measured.json"]
    ),
];
