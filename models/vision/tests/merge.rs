//! Merging adapters: the written checkpoint is that of the model with the adapters.

use std::path::{Path, PathBuf};

use fauna_shared::Result;
use fauna_shared::adapter::AdapterSpec;
use fauna_shared::item::Tensors;
use fauna_shared::parity::{ModelFolder, Tolerance, compare};
use fauna_shared::train::merge;
use fauna_shared::weights::tensors;
use fauna_shared::zoo::{LoadOptions, Zoo};
use serde_json::Value;

fn zoo() -> Zoo {
    Zoo::new(fauna_text::FAMILIES.iter().chain(fauna_vision::FAMILIES.iter()).copied())
}

/// A parity case of a model with adapters.
struct Case {
    folder: PathBuf,
    settings: Value,
    /// That of the case against the reference: every tensor of its adapters moves the outputs by ten times as much.
    tolerance: Tolerance,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(name);
        let case = std::fs::read_to_string(folder.join("case.json")).unwrap();
        let case: Value = serde_json::from_str(&case).unwrap();
        assert_eq!(case["call"], "forward", "{name}");
        let tolerance = |key: &str| case[key].as_f64().unwrap();
        let tolerance = Tolerance { atol: tolerance("atol"), rtol: tolerance("rtol") };
        Self { folder, settings: case["options"].clone(), tolerance }
    }

    fn adapters(&self) -> Vec<AdapterSpec> {
        let spec = |entry: &Value| AdapterSpec {
            path: self.folder.join(entry["folder"].as_str().unwrap()).to_str().unwrap().to_string(),
            scale: entry["scale"].as_f64().unwrap(),
        };
        self.settings["adapters"].as_array().unwrap().iter().map(spec).collect()
    }

    fn outputs(&self, source: &str, adapters: Vec<AdapterSpec>) -> Result<Tensors> {
        let mut settings = self.settings.as_object().unwrap().clone();
        settings.remove("adapters");
        let options = LoadOptions { adapters, settings: settings.clone(), ..LoadOptions::default() };
        let inputs = tensors(&self.folder.join("inputs.safetensors"))?;
        zoo().open(source, &options)?.call("forward", &inputs, &Value::Object(settings))
    }
}

/// Checks that the merged checkpoint of the case `name`, opened plainly, gives the outputs of the model with the
/// adapters, which are not those of the model alone.
fn merges(name: &str) {
    let case = Case::open(name);
    let model = ModelFolder::open(&case.folder.join("model")).unwrap();
    let source = model.path().to_str().unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("merged");
    let options = LoadOptions { adapters: case.adapters(), ..LoadOptions::default() };
    let changed = merge(&zoo(), source, &options, &folder, false).unwrap();
    assert!(changed > 0, "{name}");
    let adapted = case.outputs(source, case.adapters()).unwrap();
    let merged = case.outputs(folder.to_str().unwrap(), Vec::new()).unwrap();
    let plain = case.outputs(source, Vec::new());
    assert_eq!(adapted.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>(), "{name}");
    let mut moved = plain.is_err();
    for (key, expected) in &adapted {
        let row = compare(key, expected, &merged[key], case.tolerance).unwrap();
        assert!(row.agrees, "{name}: {row}");
        if let Ok(plain) = &plain {
            moved |= !compare(key, expected, &plain[key], case.tolerance).unwrap().agrees;
        }
    }
    assert!(moved, "{name}: the adapters change nothing");
}

#[test]
fn linear_layers_are_merged() {
    merges("llama/adapter_all_linear_rslora");
    merges("llama/adapter_dora");
    merges("gpt_neox/adapter_attention");
}

#[test]
fn a_bias_that_the_model_has_no_tensor_for_is_refused_by_name() {
    let case = Case::open("qwen2/adapter_lora_bias_layers");
    let model = ModelFolder::open(&case.folder.join("model")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("merged");
    let options = LoadOptions { adapters: case.adapters(), ..LoadOptions::default() };
    let error = merge(&zoo(), model.path().to_str().unwrap(), &options, &folder, false).unwrap_err();
    assert!(error.to_string().contains("down_proj.bias"), "{error}");
    assert!(!folder.exists());
}

#[test]
fn several_adapters_are_merged_with_their_scales() {
    merges("llama/adapter_two_scaled");
    merges("bert/adapter_two");
}

#[test]
fn a_tied_head_keeps_its_weights_when_the_table_is_merged() {
    merges("llama/adapter_embedding_tied");
    merges("llama/adapter_embedding_head");
    merges("gemma3/adapter_embedding");
    merges("gemma3/adapter_table_saved_tied");
}

#[test]
fn transposed_layers_are_merged() {
    for name in cases("gpt") {
        merges(&name);
    }
}

#[test]
fn trained_heads_and_biases_replace_those_of_the_model() {
    merges("bert/adapter_classifier");
    merges("bert/adapter_bias_all");
    merges("bert/adapter_embeddings");
}

#[test]
fn shared_tables_and_layers_of_encoder_and_decoder_are_merged() {
    merges("t5/adapter_shared");
    merges("t5/adapter_all_linear");
}

#[test]
fn convolutions_are_merged() {
    merges("clip/adapter_attention_and_patches");
    merges("clip/adapter_open_clip");
    merges("siglip/adapter_embedding");
}

#[test]
fn parts_of_a_network_with_names_of_their_own_are_merged() {
    merges("medgemma/adapter_patterns");
    merges("medgemma/adapter_all_linear_and_tables");
    merges("llava/adapter_projector");
}

/// The cases with adapters of `family`.
fn cases(family: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity").join(family);
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("adapter_")).map(|name| format!("{family}/{name}")).collect()
}
