//! Small checkpoints of any family for tests: the sample config of the family, and random weights.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use fauna::LoadOptions;
use fauna::checkpoint::{Metadata, StorageType, TensorInfo, write_safetensors};
use fauna::runtime::Runtime;
use fauna::weights::Weights;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Vocabulary of the tokenizers.
const WORDS: &str = "a an red blue green car cat dog photo of sky night armchair avocado shape the in";

/// Writes a checkpoint of `family` with a word-level tokenizer that adds the special tokens `begin` and `end`.
pub fn with_words(family: &str, begin: &str, end: &str) -> TempDir {
    let zoo = fauna::zoo();
    let known = zoo.families().iter().find(|known| known.name == family).expect(family);
    let config = (known.sample)();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let (_, inventory) = fauna::inventory(folder.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
    let plan = |(name, shape): &(String, Vec<usize>)| TensorInfo {
        name: name.clone(),
        storage: StorageType::F32,
        shape: shape.clone(),
    };
    let planned: Vec<TensorInfo> = inventory.tensors.iter().map(plan).collect();
    let seeded = Weights::seeded(5, Runtime::cpu());
    write_safetensors(&folder.path().join("model.safetensors"), &Metadata::new(), &planned, |tensor| {
        let values = seeded.tensor(&tensor.name, &tensor.shape)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
    })
    .unwrap();
    // CLIP finds the end token by the largest id.
    let mut vocabulary: serde_json::Map<String, Value> =
        WORDS.split(' ').zip((4..).map(Value::from)).map(|(word, id)| (word.into(), id)).collect();
    for (token, id) in [("<unk>", 0), ("<pad>", 1), (begin, 3), (end, 60)] {
        vocabulary.insert(token.into(), id.into());
    }
    let special = |token: &str| {
        json!({"id": vocabulary[token], "content": token, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let around = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let named = |token: &str| json!({"id": token, "ids": [vocabulary[token]], "tokens": [token]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "decoder": null,
        "added_tokens": [special("<unk>"), special("<pad>"), special(begin), special(end)],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around(begin), {"Sequence": {"id": "A", "type_id": 0}}, around(end)],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {begin: named(begin), end: named(end)}
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}
