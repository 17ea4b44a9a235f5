//! What is wrong with a config or a checkpoint is said by name.

use std::collections::HashMap;

use candle_core::{DType, Device};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::runtime::Runtime;

use super::*;

fn sample_with(keys: Value) -> Value {
    let mut config = (crate::GPT_OSS.sample)();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

fn config(keys: Value) -> Config {
    serde_json::from_value(sample_with(keys)).unwrap()
}

/// What opening says of a sample config with other keys.
fn complaint(keys: Value) -> String {
    match GptOss::load(config(keys.clone()), &Weights::nothing()) {
        Ok(_) => panic!("{keys} is accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_release_has_one_set_of_names() {
    for name in ["model.layers.3.mlp.router.weight", "block.3.mlp.gate.weight"] {
        assert_eq!(rename(name), Name::To("layers.3.mlp.router.weight".into()));
    }
    assert_eq!(rename("layers.3.self_attn.sinks"), Name::Keep);
    assert_eq!(rename("lm_head.weight"), Name::Keep);
}

#[test]
fn every_spelling_of_the_rotary_keys_says_the_same() {
    let scaling = json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "truncate": false});
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(900.0);
    let absent = json!({"rope_theta": null, "rope_scaling": null, "rope_parameters": null});
    let with = |keys: Value| {
        let mut all = absent.clone();
        all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config(all).rope().unwrap()
    };
    let old = with(json!({"rope_theta": 900.0, "rope_scaling": scaling}));
    assert_eq!(old, with(json!({"rope_parameters": parameters})));
    assert_ne!(old, with(json!({"rope_theta": 900.0})), "the class has a scaling of its own");
    assert_eq!(with(json!({})), with(json!({"rope_theta": 150_000.0})));
}

#[test]
fn layers_slide_in_turns_unless_the_config_says_otherwise() {
    let turns = config(json!({"layer_types": null}));
    assert_eq!([0, 1, 2].map(|i| turns.slides(i)), [true, false, true]);
    let said = config(json!({"layer_types": ["full_attention", "full_attention", "sliding_attention"]}));
    assert_eq!([0, 1, 2].map(|i| said.slides(i)), [false, false, true]);
}

#[test]
fn a_config_that_cannot_be_is_told_its_key() {
    for (keys, told) in [
        (json!({"quantization_config": {"quant_method": "gptq"}}), &["\"gptq\""][..]),
        (json!({"quantization_config": {}}), &["quantization_config"]),
        (json!({"num_experts_per_tok": 0}), &["num_experts_per_tok"]),
        (json!({"num_experts_per_tok": 5}), &["num_experts_per_tok 5", "num_local_experts 4"]),
        (json!({"num_local_experts": 0}), &["num_local_experts"]),
        (json!({"num_local_experts": 1 << 20}), &["num_local_experts 1048576"]),
        (json!({"num_hidden_layers": 1u64 << 60, "layer_types": null}), &["num_hidden_layers"]),
        (json!({"layer_types": ["full_attention"]}), &["layer_types has 1", "num_hidden_layers is 3"]),
        (
            json!({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}),
            &["\"chunked_attention\"", "sliding_attention"],
        ),
        (json!({"sliding_window": null}), &["sliding_window"]),
        (json!({"sliding_window": 0}), &["sliding_window"]),
        (json!({"num_key_value_heads": 3}), &["num_key_value_heads"]),
        (json!({"head_dim": 7}), &["7"]),
        (json!({"rope_scaling": {"rope_type": "su"}}), &["\"su\""]),
        (json!({"rope_scaling": 3}), &["rope_parameters"]),
    ] {
        let error = complaint(keys.clone());
        assert!(told.iter().all(|part| error.contains(part)), "{keys}: {error}");
    }
    assert!(
        GptOss::load(config(json!({"quantization_config": {"quant_method": "mxfp4"}})), &Weights::nothing())
            .is_ok()
    );
}

/// The tensors of a sample checkpoint, by name.
fn tensors(keys: Value) -> HashMap<String, Tensor> {
    let nothing = Weights::nothing();
    GptOss::load(config(keys), &nothing).unwrap();
    let tensors = nothing.finish().unwrap().tensors.into_iter();
    tensors.map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap())).collect()
}

/// What loading says of a file with these tensors.
fn load(tensors: &HashMap<String, Tensor>, keys: Value) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    let weights = Weights::open(&Checkpoint::open(&path)?, rename, Runtime::cpu())?;
    GptOss::load(config(keys), &weights)?;
    weights.finish().map(|_| ())
}

#[test]
fn a_stack_of_experts_that_is_short_or_missing_is_named() {
    let whole = tensors(json!({}));
    load(&whole, json!({})).unwrap();
    let name = "layers.1.mlp.experts.down_proj";
    let mut short = whole.clone();
    short.insert(name.into(), whole[name].narrow(0, 0, 3).unwrap());
    let error = load(&short, json!({})).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("[3, ") && error.contains("[4, "), "{error}");
    let mut without = whole.clone();
    without.remove(name);
    let error = load(&without, json!({})).unwrap_err().to_string();
    assert!(error.contains(&format!("missing  {name}")), "{error}");
}
