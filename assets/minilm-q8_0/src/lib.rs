//! The files of `sentence-transformers/all-MiniLM-L6-v2`, its weights in Q8_0: 24 MB of data, and nothing else.
//!
//! ```
//! assert!(fauna_minilm::FILES.iter().any(|(name, bytes)| *name == "model.gguf" && bytes.starts_with(b"GGUF")));
//! ```

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!("../", $name)) as &[u8])),+]
    };
}

/// Each file of the checkpoint: its path in the folder, and its bytes.
pub const FILES: &[(&str, &[u8])] = files![
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
];
