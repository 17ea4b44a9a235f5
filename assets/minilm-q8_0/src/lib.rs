//! The files of `sentence-transformers/all-MiniLM-L6-v2`, its weights in Q8_0: 24 MB of data, and nothing else.
//!
//! ```
//! assert!(fauna_minilm::MINILM.file("model.gguf").unwrap().starts_with(b"GGUF"));
//! ```

use fauna_bundle::{Bundle, bundle};

/// The checkpoint.
pub const MINILM: Bundle = bundle!(
    "minilm",
    ".",
    [
        "1_Pooling/config.json",
        "LICENSE",
        "SOURCE.md",
        "config.json",
        "config_sentence_transformers.json",
        "model.gguf",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
);
