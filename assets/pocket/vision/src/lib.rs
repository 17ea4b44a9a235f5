//! The pocket models of the modality vision: small checkpoints in the layouts of the releases, each with its card. Data, and
//! nothing else.

use fauna_bundle::{Bundle, bundle};

/// The models.
pub const MODELS: &[Bundle] = &[
    bundle!(
        "pocket-clip",
        "pocket-clip",
        [
            "README.md",
            "config.json",
            "measured.json",
            "merges.txt",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer_config.json",
            "vocab.json"
        ]
    ),
    bundle!(
        "pocket-dalle",
        "pocket-dalle",
        [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "generation_config.json",
            "measured.json",
            "merges.txt",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "vqgan/config.json",
            "vqgan/flax_model.msgpack"
        ]
    ),
    bundle!(
        "pocket-flamingo",
        "pocket-flamingo",
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "measured.json",
            "model.safetensors",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    ),
    bundle!(
        "pocket-med",
        "pocket-med",
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "measured.json",
            "model.safetensors",
            "preprocessor_config.json",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    ),
];
