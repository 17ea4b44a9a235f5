//! StarCoder: fill-in-the-middle and invalid input, with the small checkpoints of the parity cases.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fauna_shared::generate::GenerationConfig;
use fauna_shared::item::{Item, Prompt, Tensors};
use fauna_shared::model::Pipeline;
use fauna_shared::parity::ModelFolder;
use fauna_shared::zoo::{LoadOptions, Zoo};
use fauna_shared::{ErrorKind, Result};
use serde_json::{Value, json};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/starcoder").join(name).join("model")
}

fn open(folder: &Path) -> Result<Box<dyn Pipeline>> {
    let zoo = Zoo::new(fauna_text::FAMILIES.iter().copied());
    zoo.open(folder.to_str().unwrap(), &LoadOptions::default())
}

fn generated(model: &dyn Pipeline, prompt: &str) -> String {
    let mut text = String::new();
    let mut each = |item: Item| {
        text.push_str(item.text().unwrap());
        ControlFlow::Continue(())
    };
    model.generate(&Prompt::from(prompt), &GenerationConfig::greedy(40), &mut each).unwrap();
    text
}

#[test]
fn fill_in_the_middle_fits_prefix_and_suffix() {
    let model = open(&case("generate_fim_text")).unwrap();
    let filled = |prefix, suffix| {
        generated(model.as_ref(), &format!("<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"))
    };
    let factorial = filled("def factorial(n):\n", "\n    return n * factorial(n - 1)\n");
    assert_eq!(factorial, "    if n < 2:\n        return 1");
    assert_eq!(filled("fn square(x: f64) -> f64 {\n    ", "\n}\n"), "x * x");
}

/// The error of opening the checkpoint of `name` with `value` at `key` of its config.
fn open_error(name: &str, key: &str, value: Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    let model = ModelFolder::open(&case(name)).unwrap();
    for file in fs::read_dir(model.path()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(&path, config.to_string()).unwrap();
    match open(folder.path()) {
        Ok(_) => panic!("{name} opens with another {key}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn another_vocabulary_size_is_refused_with_both_shapes() {
    let grown = open_error("bigcode_forward_grown_vocabulary", "vocab_size", json!(83));
    for part in
        ["transformer.wte.weight", "lm_head.weight", "[87, 36] in the file", "[83, 36] from the config"]
    {
        assert!(grown.contains(part), "{part}: {grown}");
    }
    let two = open_error("starcoder2_forward_window", "vocab_size", json!(80));
    for part in ["model.embed_tokens.weight", "[79, 36] in the file", "[80, 36] from the config"] {
        assert!(two.contains(part), "{part}: {two}");
    }
}

#[test]
fn another_number_of_key_heads_is_refused_with_both_shapes() {
    let error = open_error("bigcode_forward_own_keys", "multi_query", json!(true));
    assert!(error.contains("[108, 36] in the file, [60, 36] from the config"), "{error}");
    let error = open_error("bigcode_forward_shared_key", "n_head", json!(5));
    assert!(error.contains("n_embd 36 is not a multiple of n_head 5"), "{error}");
    let error = open_error("starcoder2_forward_window", "num_key_value_heads", json!(4));
    assert!(error.contains("num_key_value_heads 4"), "{error}");
    let error = open_error("starcoder2_forward_window", "hidden_act", json!("gelu_unknown"));
    assert!(error.contains("gelu_unknown"), "{error}");
}

#[test]
fn a_sequence_longer_than_the_position_embeddings_is_refused() {
    let model = open(&case("bigcode_forward_shared_key")).unwrap();
    let rows = |time: usize| {
        let ids = Tensor::ones((1, time), candle_core::DType::I64, &Device::Cpu).unwrap();
        Tensors::from([("input_ids".to_string(), ids)])
    };
    assert!(model.forward(&rows(40)).is_ok());
    let error = model.forward(&rows(41)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("41 tokens, but the model has 40 positions"), "{error}");

    // The last token is never fed to the network, so it needs no position.
    let options = json!({"max_new_tokens": 30, "eos_token_id": []});
    assert_eq!(model.call("generate", &rows(38), &options).unwrap()["sequences"].dims(), [1, 41]);
    let error = model.call("generate", &rows(41), &options).unwrap_err();
    assert!(
        error.to_string().contains("the prompt has 41 tokens, more than the maximum sequence length of 40"),
        "{error}"
    );
}

#[test]
fn a_position_id_past_the_last_embedding_is_refused() {
    let model = open(&case("bigcode_forward_shared_key")).unwrap();
    let positions = |last: i64| {
        Tensors::from([
            ("input_ids".to_string(), Tensor::new(&[[5i64, 6]], &Device::Cpu).unwrap()),
            ("position_ids".to_string(), Tensor::new(&[[0, last]], &Device::Cpu).unwrap()),
        ])
    };
    assert!(model.forward(&positions(39)).is_ok());
    assert!(model.forward(&positions(40)).is_err());
}
