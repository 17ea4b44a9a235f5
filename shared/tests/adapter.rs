//! Adapters as peft writes them: `tests/parity/generate/adapters.py` wrote the cases in `tests/adapters`, with the
//! weights of their base models and those that peft merges them to.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use fauna_shared::adapter::{
    Adapter, AdapterConfig, Kind, LoraTensors, Parts, Selection, TargetModules, TrainedBias, is_adapter_only,
    merge, merge_bias, stored, wanted_base,
};
use fauna_shared::checkpoint::{Bytes, Checkpoint, StorageType, StoredTensor};
use fauna_shared::{Error, ErrorKind, Result, weights};
use serde_json::{Value, json};

const CPU: Device = Device::Cpu;

fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adapters")
}

/// The folders of all adapters of all cases, with the folders of their cases.
fn adapters() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![cases()];
    while let Some(folder) = pending.pop() {
        if folder.join("adapter_config.json").exists() {
            found.push(folder.clone());
        }
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        pending.extend(entries.filter(|path| path.is_dir()));
    }
    found.sort();
    assert!(found.len() > 15, "{found:?}");
    found
}

/// `weight` or `bias` of the module at `name` after the adapters.
fn merged(name: &str, base: &Tensor, adapters: &[(&Adapter, f64)]) -> Result<Tensor> {
    let (module, leaf) = name.rsplit_once('.').unwrap();
    let replaced = adapters.iter().rev().find_map(|(adapter, _)| adapter.saved().get(name));
    let start = match replaced {
        Some(tensor) => Tensor::from_vec(weights::widen(tensor)?, tensor.shape.as_slice(), &CPU)?,
        None => base.clone(),
    };
    let of_module = |(adapter, scale): &(&'_ Adapter, f64)| {
        adapter.modules().get(module).map(|update| (update.clone(), *scale))
    };
    let updates: Vec<(LoraTensors, f64)> = adapters.iter().filter_map(of_module).collect();
    let updates: Vec<(&LoraTensors, f64)> = updates.iter().map(|(update, scale)| (update, *scale)).collect();
    match leaf {
        "weight" => merge(&start, adapters[0].0.config().fan_in_fan_out, &updates),
        _ => merge_bias(&start, &updates),
    }
}

fn assert_merges(case: &Path, adapters: &[(&Adapter, f64)]) {
    let base = weights::tensors(&case.join("base.safetensors")).unwrap();
    let expected = weights::tensors(&case.join("merged.safetensors")).unwrap();
    for (name, wanted) in &expected {
        let found = merged(name, &base[name], adapters).unwrap();
        let error = (found - wanted).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        let error = error.to_scalar::<f32>().unwrap();
        assert!(error <= 1e-6, "{}: {name}: {error}", case.display());
    }
    for (adapter, _) in adapters {
        let changed = |module: &String| {
            ["weight", "bias"].iter().any(|leaf| expected.contains_key(&format!("{module}.{leaf}")))
        };
        assert!(adapter.modules().keys().all(changed), "{}", case.display());
    }
}

#[test]
fn merged_weights_equal_those_of_peft() {
    for folder in adapters().into_iter().filter(|folder| folder.join("merged.safetensors").exists()) {
        assert_merges(&folder, &[(&Adapter::open(&folder).unwrap(), 1.0)]);
    }
}

#[test]
fn several_adapters_are_merged_in_order_with_their_scales() {
    let case = cases().join("several");
    let scales: serde_json::Map<String, Value> =
        serde_json::from_slice(&std::fs::read(case.join("scales.json")).unwrap()).unwrap();
    let open = |(name, scale): (&String, &Value)| {
        (Adapter::open(&case.join(name)).unwrap(), scale.as_f64().unwrap())
    };
    let opened: Vec<(Adapter, f64)> = scales.iter().map(open).collect();
    let list: Vec<(&Adapter, f64)> = opened.iter().map(|(adapter, scale)| (adapter, *scale)).collect();
    assert_merges(&case, &list);
}

#[test]
fn ranks_and_scales_follow_the_patterns() {
    let adapter = Adapter::open(&cases().join("patterns")).unwrap();
    let of = |module: &str| {
        let update = &adapter.modules()[module];
        (update.rank(), update.scaling())
    };
    assert_eq!(of("model.layers.0.self_attn.q_proj"), (3, 7.0 / 3.0));
    assert_eq!(of("model.layers.0.self_attn.v_proj"), (1, 4.0));
    assert_eq!(of("model.layers.0.mlp.up_proj"), (2, 1.5));
    assert_eq!(of("model.layers.1.self_attn.q_proj"), (4, 1.75));
    let adapter = Adapter::open(&cases().join("rslora")).unwrap();
    assert_eq!(adapter.modules()["model.layers.0.self_attn.v_proj"].scaling(), 4.0 / 3f64.sqrt());
}

#[test]
fn the_modules_of_the_files_are_those_that_the_config_targets() {
    let adapter = Adapter::open(&cases().join("layers")).unwrap();
    let names: Vec<&String> = adapter.modules().keys().collect();
    assert_eq!(names, ["model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"]);
    let selection = adapter.selection();
    for (module, targeted) in [
        ("model.layers.1.self_attn.q_proj", true),
        ("model.layers.0.self_attn.q_proj", false),
        ("model.layers.1.self_attn.k_proj", false),
        ("model.layers.1.self_attn.xq_proj", false),
        ("q_proj", true),
    ] {
        assert_eq!(selection.targets(module).unwrap(), targeted, "{module}");
    }
    let any = |layers: Value| {
        let config = json!({"peft_type": "LORA", "target_modules": ["q"], "layers_to_transform": layers});
        Selection::new(&AdapterConfig::parse(config).unwrap()).unwrap()
    };
    // As peft, whose pattern of the index needs two parts before it, and one after it.
    assert!(any(json!(3)).targets("m.layers.3.q").unwrap());
    assert!(!any(json!(3)).targets("layers.3.q").unwrap());
    assert!(any(json!([1])).targets("m.layers.1.experts.0.q").unwrap());
    assert!(!any(json!([0])).targets("m.layers.1.experts.0.q").unwrap());
    assert!(any(json!([])).targets("m.layers.1.q").unwrap());
    let whole = Adapter::open(&cases().join("modules_to_save")).unwrap();
    assert!(
        !whole.selection().targets("score").unwrap() && !whole.selection().targets("score.inner").unwrap()
    );
}

#[test]
fn trained_heads_and_biases_replace_those_of_the_base_model() {
    let names = |case: &str| {
        let adapter = Adapter::open(&cases().join(case)).unwrap();
        adapter.saved().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names("modules_to_save"), ["score.bias", "score.weight"]);
    assert_eq!(names("bias_all"), ["inner.bias", "score.bias", "score.weight"]);
    assert_eq!(names("bias_lora_only"), ["inner.bias"]);
    assert_eq!(names("embedding"), ["model.embed_tokens.weight"]);
    let adapter = Adapter::open(&cases().join("bias_all")).unwrap();
    assert_eq!(adapter.config().bias, TrainedBias::All);
    assert_eq!(adapter.modules_without_tensors().unwrap(), [""; 0]);
    let config = AdapterConfig { modules_to_save: vec!["score".into(), "classifier".into()], ..rank(2) };
    let adapter = Adapter::new(config, parts(), adapter.saved().clone()).unwrap();
    assert_eq!(adapter.modules_without_tensors().unwrap(), ["classifier"]);
}

#[test]
fn kinds_are_known_by_names_and_shapes() {
    let kinds = |case: &str| {
        let adapter = Adapter::open(&cases().join(case)).unwrap();
        adapter.modules().values().map(|update| (update.kind(), update.weight_shape())).collect::<Vec<_>>()
    };
    assert_eq!(kinds("embedding_dora"), [(Kind::Embedding, vec![11, 8])]);
    let conv = |shape: &[usize]| (Kind::Conv, shape.to_vec());
    let expected = [conv(&[6, 4, 3]), conv(&[5, 4, 1, 1]), conv(&[3, 2, 2, 1, 2]), conv(&[4, 3, 3, 2])];
    assert_eq!(kinds("convolutions"), expected);
    let adapter = Adapter::open(&cases().join("embedding_dora")).unwrap();
    assert_eq!(adapter.modules()["model.embed_tokens"].delta(&CPU).unwrap().dims(), [11, 8]);
}

/// The config with lists where peft takes one item as well.
fn with_lists(mut config: Value) -> Value {
    for key in ["layers_pattern", "layers_to_transform"] {
        if config[key].is_string() || config[key].is_number() {
            config[key] = json!([config[key]]);
        }
    }
    config
}

#[test]
fn what_is_written_has_the_keys_and_tensors_of_what_was_read() {
    for folder in adapters() {
        let scratch = tempfile::tempdir().unwrap();
        let written = scratch.path().join("new/adapter");
        let adapter = Adapter::open(&folder).unwrap();
        adapter.write(&written).unwrap();
        let read = |folder: &Path| -> Value {
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
        };
        assert_eq!(read(&written), with_lists(read(&folder)), "{}", folder.display());
        let again = Adapter::open(&written).unwrap();
        assert_eq!(again.saved().keys().collect::<Vec<_>>(), adapter.saved().keys().collect::<Vec<_>>());
        let Ok(original) = Checkpoint::open(&folder.join("adapter_model.safetensors")) else { continue };
        let copy = Checkpoint::open(&written.join("adapter_model.safetensors")).unwrap();
        assert_eq!(copy.metadata(), original.metadata());
        for (name, tensor) in original.iter() {
            if name.contains("original_module") || name.contains("modules_to_save") {
                continue;
            }
            let found = copy.get(name).unwrap_or_else(|| panic!("{}: {name}", folder.display()));
            assert_eq!(
                (found.storage, &found.shape, &*found.bytes),
                (tensor.storage, &tensor.shape, &*tensor.bytes)
            );
        }
        let names: Vec<_> = std::fs::read_dir(&written).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

#[test]
fn a_new_config_has_all_keys_of_peft() {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let file = std::fs::read(cases().join("linear/adapter_config.json")).unwrap();
    let of_peft: Value = serde_json::from_slice(&file).unwrap();
    let config = AdapterConfig::default().to_json();
    assert_eq!(keys(&config), keys(&of_peft));
    for (key, value) in of_peft.as_object().unwrap() {
        if !["r", "lora_alpha", "lora_dropout", "target_modules", "auto_mapping"].contains(&key.as_str()) {
            assert_eq!(&config[key], value, "{key}");
        }
    }
}

/// Writes every case to the folder that the variable names, for `adapters.py check`.
#[test]
#[ignore = "writes to FAUNA_ADAPTERS what tests/parity/generate/adapters.py checks"]
fn adapters_for_peft_are_written() {
    let target = PathBuf::from(std::env::var_os("FAUNA_ADAPTERS").expect("FAUNA_ADAPTERS is a folder"));
    for folder in adapters() {
        let name = folder.strip_prefix(cases()).unwrap();
        Adapter::open(&folder).unwrap().write(&target.join(name)).unwrap();
    }
}

fn rank(r: usize) -> AdapterConfig {
    AdapterConfig {
        r,
        target_modules: Some(TargetModules::Names(vec!["q".into()])),
        ..AdapterConfig::default()
    }
}

fn tensor(shape: &[usize]) -> StoredTensor {
    stored(&Tensor::ones(shape, candle_core::DType::F32, &CPU).unwrap()).unwrap()
}

/// The parts of a linear layer (5, 3) of rank 2.
fn linear() -> Parts {
    Parts { kind: Kind::Linear, a: tensor(&[2, 3]), b: tensor(&[5, 2]), bias: None, magnitude: None }
}

fn parts() -> BTreeMap<String, Parts> {
    BTreeMap::from([("m.q".to_owned(), linear())])
}

fn refusal(config: AdapterConfig, parts: Parts) -> (ErrorKind, String) {
    let parts = BTreeMap::from([("m.q".to_owned(), parts)]);
    let error = Adapter::new(config, parts, BTreeMap::new()).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn factors_that_do_not_fit_are_refused_with_their_module() {
    let conv = |a: &[usize], b: &[usize]| Parts { kind: Kind::Conv, a: tensor(a), b: tensor(b), ..linear() };
    let dora = AdapterConfig { use_dora: true, ..rank(2) };
    let biased = AdapterConfig { lora_bias: true, ..rank(2) };
    let patterned = AdapterConfig { rank_pattern: vec![("q".into(), 4)], ..rank(2) };
    for (config, parts, words) in [
        (rank(3), linear(), vec!["[2, 3] is of rank 2", "3 (r)"]),
        (patterned, linear(), vec!["rank 2", "4", "rank_pattern \"q\""]),
        (rank(2), Parts { b: tensor(&[5, 3]), ..linear() }, vec!["[5, 3]", "[2, 3]", "(out, r)"]),
        (rank(2), Parts { a: tensor(&[6]), ..linear() }, vec!["[6]", "(r, in)"]),
        (rank(2), Parts { a: tensor(&[2, 0]), ..linear() }, vec!["[2, 0]"]),
        (rank(2), conv(&[2, 3, 3], &[5, 2, 3]), vec!["[5, 2, 3]", "(out, r, 1…)"]),
        (rank(2), conv(&[2, 3, 3], &[5, 1, 1]), vec!["2 groups"]),
        (dora.clone(), linear(), vec!["use_dora is set", "magnitudes"]),
        (rank(2), Parts { magnitude: Some(tensor(&[5])), ..linear() }, vec!["use_dora is not set"]),
        (dora, Parts { magnitude: Some(tensor(&[4])), ..linear() }, vec!["[4]", "[5]"]),
        (biased.clone(), linear(), vec!["lora_bias is set"]),
        (rank(2), Parts { bias: Some(tensor(&[5])), ..linear() }, vec!["lora_bias is not set"]),
        (biased, Parts { bias: Some(tensor(&[1, 5])), ..linear() }, vec!["[1, 5]"]),
        (
            AdapterConfig { target_modules: Some(TargetModules::Pattern("m.k".into())), ..rank(2) },
            linear(),
            vec!["does not target"],
        ),
    ] {
        let (_, message) = refusal(config, parts);
        assert!(
            message.contains("m.q") && words.iter().all(|word| message.contains(word)),
            "{message} {words:?}"
        );
    }
    let whole = StoredTensor { storage: StorageType::I32, ..tensor(&[2, 3]) };
    let (kind, message) = refusal(rank(2), Parts { a: whole, ..linear() });
    assert!(kind == ErrorKind::Unsupported && message.contains("I32"), "{message}");
    let short = StoredTensor { bytes: Bytes::from_vec(vec![0; 8]), ..tensor(&[2, 3]) };
    assert!(refusal(rank(2), Parts { a: short, ..linear() }).1.contains("8 bytes"));
    let error = Adapter::new(rank(2), BTreeMap::new(), BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("no tensors"));
}

fn update(parts: Parts) -> LoraTensors {
    LoraTensors::new(&Selection::new(&rank(2)).unwrap(), "m.q", parts).unwrap()
}

#[test]
fn updates_of_another_model_and_values_that_are_not_finite_are_refused() {
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let ones = |shape: &[usize]| Tensor::ones(shape, candle_core::DType::F32, &CPU).unwrap();
    let other = message(merge(&ones(&[3, 5]), false, &[(&update(linear()), 1.0)]));
    assert!(other.contains("m.q") && other.contains("[5, 3]") && other.contains("[3, 5]"), "{other}");
    merge(&ones(&[3, 5]), true, &[(&update(linear()), 1.0)]).unwrap();
    let infinite = message(merge(&ones(&[5, 3]), false, &[(&update(linear()), 1e300)]));
    assert!(infinite.contains("not finite"), "{infinite}");
    let nan = stored(&Tensor::new(&[[1f32, f32::NAN, 2.0], [0., 0., 0.]], &CPU).unwrap()).unwrap();
    let message_of_nan = message(update(Parts { a: nan, ..linear() }).delta(&CPU));
    assert!(message_of_nan.contains("m.q") && message_of_nan.contains("NaN"), "{message_of_nan}");
    let conv = Parts { kind: Kind::Conv, a: tensor(&[2, 4, 3]), b: tensor(&[5, 2, 1]), ..linear() };
    let grouped = message(merge(&ones(&[5, 2, 3]), false, &[(&update(conv), 1.0)]));
    assert!(grouped.contains("grouped"), "{grouped}");
}

#[test]
fn scale_zero_leaves_a_weight_without_norms_as_it_is() {
    let weight = Tensor::rand(-1f32, 1.0, (5, 3), &CPU).unwrap();
    let merged = merge(&weight, false, &[(&update(linear()), 0.0)]).unwrap();
    assert_eq!(merged.to_vec2::<f32>().unwrap(), weight.to_vec2::<f32>().unwrap());
    assert_eq!(
        merge(&weight, false, &[]).unwrap().to_vec2::<f32>().unwrap(),
        weight.to_vec2::<f32>().unwrap()
    );
}

fn config_error(key: &str, value: Value) -> Error {
    let mut config = json!({"peft_type": "LORA", "target_modules": ["q"]});
    config[key] = value;
    AdapterConfig::parse(config).unwrap_err()
}

#[test]
fn keys_that_change_the_outputs_are_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("LOHA")),
        ("peft_type", json!("IA3")),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("target_parameters", json!(["experts.down_proj"])),
        ("trainable_token_indices", json!([1, 2])),
        ("trainable_token_indices", json!({"embed_tokens": [0]})),
        ("megatron_config", json!({"hidden_size": 3})),
        ("alora_invocation_tokens", json!([5])),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("arrow_config", json!({"top_k": 3})),
        ("monteclora_config", json!({"num_samples": 8})),
        ("velora_config", json!({"num_groups": 8})),
        ("kasa_config", json!({"beta": 1e-4})),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!("new")),
        ("a_new_key", json!(1)),
        ("a_new_key", json!({"a": null})),
    ] {
        let error = config_error(key, value.clone());
        let message = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{message}");
        assert!(message.contains(key) && message.contains('\n'), "{message}");
    }
}

#[test]
fn values_of_wrong_types_and_ranges_are_refused_by_name() {
    for (key, value) in [
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(null)),
        ("r", json!("8")),
        ("lora_alpha", json!("Infinity")),
        ("lora_dropout", json!(1.5)),
        ("rank_pattern", json!({"q": 0})),
        ("rank_pattern", json!({"q": 1.5})),
        ("rank_pattern", json!(["q"])),
        ("rank_pattern", json!({"(": 3})),
        ("alpha_pattern", json!({"q": "x"})),
        ("alpha_pattern", json!({"[a&&b]": 3})),
        ("bias", json!("some")),
        ("bias", json!(null)),
        ("target_modules", json!("(")),
        ("target_modules", json!(3)),
        ("exclude_modules", json!("a**")),
        ("modules_to_save", json!(["("])),
        ("modules_to_save", json!("score")),
        ("use_dora", json!("yes")),
        ("layers_pattern", json!(["layers"])),
        ("layers_to_transform", json!(["a"])),
    ] {
        let message = config_error(key, value.clone()).to_string();
        assert!(message.contains(key), "{key}: {value}: {message}");
    }
    let parse = AdapterConfig::parse;
    assert!(parse(json!([])).unwrap_err().to_string().contains("object"));
    assert!(parse(json!({"r": 8})).unwrap_err().to_string().contains("peft_type"));
    let layers = json!({"peft_type": "LORA", "target_modules": "q", "layers_to_transform": [1]});
    assert!(parse(layers).unwrap_err().to_string().contains("layers_to_transform"));
    let both = json!({"peft_type": "LORA", "lora_bias": true, "use_dora": true});
    assert!(parse(both).unwrap_err().to_string().contains("lora_bias"));
}

#[test]
fn keys_without_effect_are_accepted_and_kept() {
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": false, "auto_mapping": {"a": 1},
        "peft_version": "0.4.0", "megatron_core": "other", "qalora_group_size": 8, "runtime_config": {},
        "ensure_weight_tying": true, "init_lora_weights": "gaussian", "eva_config": {"rho": 2.0},
        "loftq_config": {"loftq_bits": 4}, "rank_pattern": null, "revision": null, "a_new_key": null,
        "another": false, "third": "", "fourth": [], "use_qalora": false, "modules_to_save": null,
    });
    let parsed = AdapterConfig::parse(config).unwrap();
    let again = parsed.to_json();
    assert_eq!((&again["peft_version"], &again["another"]), (&json!("0.4.0"), &json!(false)));
    assert_eq!(AdapterConfig::parse(again).unwrap().to_json(), parsed.to_json());
}

#[test]
fn all_linear_is_read_in_any_case() {
    for word in ["all-linear", "All-Linear"] {
        let config = AdapterConfig::parse(json!({"peft_type": "LORA", "target_modules": word})).unwrap();
        assert_eq!(config.target_modules, Some(TargetModules::AllLinear));
        assert!(Selection::new(&config).unwrap().targets("any.module").unwrap());
    }
}

/// A copy of a case in a temporary folder.
fn copy(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
        let path = cases().join(case).join(name);
        if path.exists() {
            std::fs::copy(path, folder.path().join(name)).unwrap();
        }
    }
    folder
}

/// Opens, and computes all there is.
fn open_and_compute(folder: &Path) -> Result<()> {
    let adapter = Adapter::open(folder)?;
    for update in adapter.modules().values() {
        update.delta(&CPU)?;
        let ones = Tensor::ones(update.weight_shape(), candle_core::DType::F32, &CPU)?;
        let _ = merge(&ones, false, &[(update, 1.0)]);
    }
    let _ = adapter.modules_without_tensors()?;
    Ok(())
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    for case in ["dora", "convolutions", "bias_all", "pickled", "patterns", "embedding"] {
        let folder = copy(case);
        for name in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
            let path = folder.path().join(name);
            let Ok(whole) = std::fs::read(&path) else { continue };
            let step = whole.len() / 40 + 1;
            for end in (0..whole.len()).step_by(step) {
                std::fs::write(&path, &whole[..end]).unwrap();
                assert!(open_and_compute(folder.path()).is_err(), "{case}/{name} of {end} bytes");
            }
            for at in (0..whole.len()).step_by(step / 6 + 1) {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << (at % 8);
                std::fs::write(&path, &damaged).unwrap();
                let _ = open_and_compute(folder.path());
            }
            std::fs::write(&path, &whole).unwrap();
        }
        open_and_compute(folder.path()).unwrap();
    }
}

#[test]
fn tensors_that_are_missing_or_unknown_are_named() {
    let folder = copy("linear");
    let path = folder.path().join("adapter_model.safetensors");
    let original = Checkpoint::open(&path).unwrap();
    let write = |change: &dyn Fn(&str) -> Option<String>| {
        let tensors = original.iter().filter_map(|(name, tensor)| {
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                tensor.shape.clone(),
                &tensor.bytes,
            );
            Some((change(name)?, view.unwrap()))
        });
        safetensors::serialize_to_file(tensors.collect::<Vec<_>>(), None, &path).unwrap();
        Adapter::open(folder.path()).unwrap_err().to_string()
    };
    let gone = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let message = write(&|name| (name != gone).then(|| name.to_owned()));
    assert!(message.contains("model.layers.0.self_attn.q_proj") && message.contains("factor B"), "{message}");
    let message = write(&|name| Some(name.replace("lora_B", "lora_C")));
    assert!(message.contains("lora_C.weight") && message.contains("4 tensors"), "{message}");
    let message = write(&|name| Some(name.replace("base_model.model.", "")));
    assert!(message.contains("layers.0") && message.contains("8 tensors"), "{message}");
    let message = write(&|name| Some(name.replace("q_proj", "x_proj")));
    assert!(message.contains("x_proj") && message.contains("target_modules"), "{message}");
}

#[test]
fn an_adapter_is_found_by_its_folder_or_its_files() {
    let case = cases().join("pickled");
    for path in [case.clone(), case.join("adapter_config.json"), case.join("adapter_model.bin")] {
        assert_eq!(Adapter::open(&path).unwrap().modules().len(), 2);
    }
    let several = Adapter::open(&cases().join("several")).unwrap_err();
    assert_eq!(several.kind(), ErrorKind::NotFound);
    for name in ["plain", "dora", "last"] {
        assert!(several.to_string().contains(name), "{several}");
    }
    let missing = Adapter::open(Path::new("/nowhere/adapter")).unwrap_err();
    assert!(missing.kind() == ErrorKind::NotFound && missing.to_string().contains("/nowhere/adapter"));
    let folder = copy("linear");
    std::fs::remove_file(folder.path().join("adapter_model.safetensors")).unwrap();
    let error = Adapter::open(folder.path()).unwrap_err();
    assert!(
        error.kind() == ErrorKind::NotFound && error.to_string().contains("adapter_model.bin"),
        "{error}"
    );
}

#[test]
fn the_wanted_base_model_is_told_with_its_revision() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!is_adapter_only(folder.path()));
    assert_eq!(wanted_base(folder.path()).unwrap_err().kind(), ErrorKind::NotFound);
    let config = r#"{"peft_type": "LORA", "base_model_name_or_path": "owner/base", "revision": "v2"}"#;
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    assert!(is_adapter_only(folder.path()));
    assert_eq!(wanted_base(folder.path()).unwrap().unwrap().to_string(), "owner/base@v2");
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(!is_adapter_only(folder.path()));
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"peft_type": "LORA"}"#).unwrap();
    assert_eq!(wanted_base(folder.path()).unwrap(), None);
}

#[test]
fn a_failed_write_keeps_what_was_there() {
    let folder = copy("linear");
    let before = std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap();
    let short = StoredTensor { bytes: Bytes::from_vec(vec![0; 8]), ..tensor(&[2, 3]) };
    let adapter = Adapter::new(rank(2), parts(), BTreeMap::from([("head.weight".into(), short)])).unwrap();
    assert!(adapter.write(folder.path()).unwrap_err().to_string().contains("head.weight"));
    assert_eq!(std::fs::read(folder.path().join("adapter_model.safetensors")).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    Adapter::open(folder.path()).unwrap();
    let good = Adapter::new(rank(2), parts(), BTreeMap::new()).unwrap();
    good.write(folder.path()).unwrap();
    assert_eq!(Adapter::open(folder.path()).unwrap().modules().len(), 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let file = folder.path().join("adapter_config.json");
    assert_eq!(good.write(&file).unwrap_err().kind(), ErrorKind::Input);
}

#[test]
fn patterns_whose_order_the_file_would_change_are_refused() {
    let config = |keys: [&str; 2]| AdapterConfig {
        rank_pattern: keys.iter().zip([2, 3]).map(|(key, rank)| (key.to_string(), rank)).collect(),
        ..rank(8)
    };
    let folder = tempfile::tempdir().unwrap();
    let adapter = Adapter::new(config(["q", "m.q"]), parts(), BTreeMap::new()).unwrap();
    let error = adapter.write(folder.path()).unwrap_err();
    assert!(error.to_string().contains("m.q") && error.to_string().contains("rank_pattern"), "{error}");
    Adapter::new(config(["m.q", "q"]), parts(), BTreeMap::new()).unwrap().write(folder.path()).unwrap();
    assert_eq!(Adapter::open(folder.path()).unwrap().modules()["m.q"].rank(), 2);
}

#[test]
fn damaged_adapters_are_errors_or_open_and_never_panic() {
    for name in ["linear", "embedding_dora", "modules_to_save", "pickled"] {
        let case = cases().join(name);
        let place = tempfile::tempdir().unwrap();
        let files: Vec<(PathBuf, Vec<u8>)> =
            ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
                .into_iter()
                .filter_map(|file| Some((place.path().join(file), std::fs::read(case.join(file)).ok()?)))
                .collect();
        assert_eq!(files.len(), 2, "{name}");
        files.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        let mut refused = 0;
        for (path, bytes) in &files {
            // Headers and configs are at the start of the files.
            for at in (0..(bytes.len() - 2).min(1500)).step_by(3) {
                for change in [0x00, 0x20, 0x7f] {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= change + 1;
                    std::fs::write(path, &damaged).unwrap();
                    refused += usize::from(Adapter::open(place.path()).is_err());
                }
                std::fs::write(path, &bytes[..at]).unwrap();
                assert!(Adapter::open(place.path()).is_err(), "{name}: {at} bytes of {}", path.display());
            }
            std::fs::write(path, bytes).unwrap();
        }
        assert!(refused > 100, "{name}: {refused}");
    }
}
