//! Errors of invalid configs and checkpoints.

use std::collections::HashMap;

use candle_core::{DType, Device};
use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::runtime::Runtime;

use super::*;

fn sample_with(keys: Value) -> Value {
    let mut config = (crate::gpt_oss::FAMILY.sample)();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

fn config(keys: Value) -> Config {
    serde_json::from_value(sample_with(keys)).unwrap()
}

/// The error of loading the sample config with other keys.
fn complaint(keys: Value) -> String {
    match GptOss::load(config(keys.clone()), &Weights::meta()) {
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
    assert_ne!(old, with(json!({"rope_theta": 900.0})), "the default has a scaling");
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
        (json!({"num_local_experts": 1 << 30}), &["more than 100000 tensors"]),
        (json!({"num_hidden_layers": 1u64 << 60, "layer_types": null}), &["more than 100000 tensors"]),
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
        GptOss::load(config(json!({"quantization_config": {"quant_method": "mxfp4"}})), &Weights::meta())
            .is_ok()
    );
}

/// The tensors of a checkpoint with this config, by name.
fn tensors(keys: Value) -> HashMap<String, Tensor> {
    let nothing = Weights::meta();
    GptOss::load(config(keys), &nothing).unwrap();
    let inventory = nothing.finish().unwrap();
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let kind = if inventory.packed.contains_key(&name) { DType::U8 } else { DType::F32 };
        let tensor = Tensor::zeros(shape, kind, &Device::Cpu).unwrap();
        (name, tensor)
    };
    inventory.tensors.into_iter().map(tensor).collect()
}

/// Loads these tensors from two files.
fn load(tensors: &HashMap<String, Tensor>, keys: Value) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    let halves = names.split_at(names.len() / 2);
    let write = |(i, names): (usize, &[&String])| {
        let path = folder.path().join(format!("model-{i:05}-of-00001.safetensors"));
        let part: HashMap<&str, Tensor> =
            names.iter().map(|name| (name.as_str(), tensors[*name].clone())).collect();
        candle_core::safetensors::save(&part, &path).unwrap();
        path
    };
    let paths: Vec<_> = [halves.0, halves.1].into_iter().enumerate().map(write).collect();
    let weights = Weights::open(&Checkpoint::open_files(&paths)?, rename, Runtime::cpu())?;
    GptOss::load(config(keys), &weights)?;
    weights.finish().map(|_| ())
}

#[test]
fn a_stack_of_experts_that_is_short_or_missing_is_named() {
    let packed = json!({"quantization_config": {"quant_method": "mxfp4"}});
    for (keys, name) in [
        (json!({}), "layers.1.mlp.experts.down_proj"),
        (packed.clone(), "layers.1.mlp.experts.down_proj_blocks"),
        (packed, "layers.1.mlp.experts.down_proj_scales"),
    ] {
        let whole = tensors(keys.clone());
        load(&whole, keys.clone()).unwrap();
        let mut short = whole.clone();
        short.insert(name.into(), whole[name].narrow(0, 0, 3).unwrap());
        let error = load(&short, keys.clone()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("[3, ") && error.contains("[4, "), "{error}");
        let mut without = whole.clone();
        without.remove(name);
        let error = load(&without, keys).unwrap_err().to_string();
        assert!(error.contains(&format!("missing  {name}")), "{error}");
    }
}

#[test]
fn packed_experts_of_another_block_or_type_are_named_with_both() {
    let keys = json!({"quantization_config": {"quant_method": "mxfp4"}});
    let whole = tensors(keys.clone());
    let name = "layers.2.mlp.experts.gate_up_proj_blocks";
    assert_eq!(whole[name].dims(), [4, 128, 1, 16]);
    let with = |tensor: Tensor| {
        let mut changed = whole.clone();
        changed.insert(name.into(), tensor);
        load(&changed, keys.clone()).unwrap_err().to_string()
    };
    let error = with(whole[name].reshape((4, 128, 2, 8)).unwrap());
    assert!(error.contains(name) && error.contains("[4, 128, 2, 8]"), "{error}");
    assert!(error.contains("[4, 128, 1, 16]"), "{error}");
    let error = with(whole[name].to_dtype(DType::F32).unwrap());
    assert!(error.contains(name) && error.contains("expected bytes"), "{error}");

    // 40 inputs are not a multiple of the block size, 32.
    let error = complaint(json!({"quantization_config": {"quant_method": "mxfp4"}, "intermediate_size": 40}));
    assert!(error.contains("down_proj_blocks") && error.contains("40 inputs"), "{error}");
}

#[test]
fn a_dense_copy_opens_under_a_config_that_still_speaks_of_packed_experts() {
    load(&tensors(json!({})), json!({"quantization_config": {"quant_method": "mxfp4"}})).unwrap();
    load(&tensors(json!({"quantization_config": {"quant_method": "mxfp4"}})), json!({})).unwrap();
}
