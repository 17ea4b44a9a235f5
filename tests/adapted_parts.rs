//! Adapters over the parts of a release: modules whose weights are in files of their own, or in a release beside it. An
//! update of a part is what its merged weight is (`modules_to_save`), and a module that no part has is refused by name.

#![allow(clippy::disallowed_methods, reason = "tests read tensors without gradients")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fauna::candle::{Device, Tensor};
use fauna::checkpoint::Checkpoint;
use fauna::parity::{ModelFolder, Tolerance, compare};
use fauna::weights::{tensors, widen};
use fauna::{LoadOptions, Result, Tensors};
use fauna_shared::adapter::{
    Adapter, AdapterConfig, AdapterSpec, Kind, LoraTensors, Parts, Selection, TargetModules, merge, stored,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const CPU: Device = Device::Cpu;

/// A module of a part.
struct Module {
    /// Its path in the network.
    path: &'static str,
    kind: Kind,
    /// The file with its weight, and the name of the weight there.
    weight: (&'static str, &'static str),
    /// Whether the weight is stored as `(in, out)`.
    transposed: bool,
}

fn module(path: &'static str, kind: Kind, file: &'static str, name: &'static str) -> Module {
    Module { path, kind, weight: (file, name), transposed: false }
}

/// A release with the inputs of a parity case.
struct Release {
    folder: PathBuf,
    call: String,
    options: Map<String, Value>,
    family: Option<String>,
    inputs: Tensors,
}

impl Release {
    /// The parity case `name`, with its model in `folder`.
    fn of(name: &str, folder: &Path) -> Self {
        let case = case(name);
        let spec: Value = serde_json::from_slice(&std::fs::read(case.join("case.json")).unwrap()).unwrap();
        let mut options = spec["options"].as_object().unwrap().clone();
        let family = options.remove("family").map(|family| family.as_str().unwrap().to_string());
        let path = case.join("inputs.safetensors");
        let inputs = if path.exists() { tensors(&path).unwrap() } else { Tensors::new() };
        let call = spec["call"].as_str().unwrap().to_string();
        Self { folder: folder.to_path_buf(), call, options, family, inputs }
    }

    fn outputs(&self, adapter: Option<&Path>) -> Result<Tensors> {
        let mut options = LoadOptions { settings: self.options.clone(), ..LoadOptions::default() };
        options.family = self.family.clone();
        if let Some(path) = adapter {
            options = options.with_adapter(AdapterSpec { path: path.display().to_string(), scale: 1.0 });
        }
        let pipeline = fauna::open_with(self.folder.to_str().unwrap(), &options)?;
        pipeline.call(&self.call, &self.inputs, &Value::Object(self.options.clone()))
    }

    /// Checks that an update of `module` is applied, as is its merged weight in place of the module's, and that neither
    /// is ignored where no module has the name.
    fn takes(&self, module: &Module) {
        let path = module.path;
        let (file, name) = module.weight;
        let weight = Checkpoint::open(&self.folder.join(file)).unwrap();
        let weight = weight.get(name).unwrap_or_else(|| panic!("{file} has no {name}")).clone();
        let weight = Tensor::from_vec(widen(&weight).unwrap(), weight.shape.as_slice(), &CPU).unwrap();
        let parts = factors(&weight, module);
        let updated = Written::new(path, Some(parts.clone()), None);
        let selection = Selection::new(&config(path, true)).unwrap();
        let update = LoraTensors::new(&selection, path, parts.clone()).unwrap();
        let merged = merge(&weight, module.transposed, &[(&update, 1.0)]).unwrap();
        let replaced = Written::new(path, None, Some(&merged));

        let outputs = |written: &Written| {
            self.outputs(Some(written.0.path())).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let (plain, by_update, by_weight) =
            (self.outputs(None).unwrap(), outputs(&updated), outputs(&replaced));
        let tolerance = Tolerance { atol: 1e-4, rtol: 1e-3 };
        let mut moved = false;
        for (name, expected) in &by_weight {
            let row = compare(name, expected, &by_update[name], tolerance).unwrap();
            assert!(row.agrees, "{path}: {row}");
            moved |= match plain.get(name).filter(|plain| plain.dims() == expected.dims()) {
                Some(plain) => !compare(name, expected, plain, tolerance).unwrap().agrees,
                None => true,
            };
        }
        assert!(moved, "{path}: the adapter changes nothing");

        let other = format!("{path}.other");
        for written in [Written::new(&other, Some(parts), None), Written::new(&other, None, Some(&merged))] {
            let error = self.outputs(Some(written.0.path())).unwrap_err().to_string();
            assert!(error.contains(&other), "{error}");
        }
    }

    /// Checks that an update of `path`, which is no module of the network, is refused by name.
    fn refuses(&self, path: &str) {
        let weight = Tensor::zeros((4, 4), fauna::candle::DType::F32, &CPU).unwrap();
        let linear = Module { path: "", kind: Kind::Linear, weight: ("", ""), transposed: false };
        for written in [
            Written::new(path, Some(factors(&weight, &linear)), None),
            Written::new(path, None, Some(&weight)),
        ] {
            let error = self.outputs(Some(written.0.path())).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}

/// The folder of the parity case `name`.
fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(name)
}

/// Factors of rank 2 that fit `weight`.
fn factors(weight: &Tensor, module: &Module) -> Parts {
    let shape = weight.dims();
    let ones = vec![1; shape.len() - 2];
    let (a, b) = match (module.kind, module.transposed) {
        (Kind::Embedding, _) => (vec![2, shape[0]], vec![shape[1], 2]),
        (_, true) => (vec![2, shape[0]], vec![shape[1], 2]),
        _ => ([&[2], &shape[1..]].concat(), [&[shape[0], 2], &ones[..]].concat()),
    };
    let made = |shape: &[usize], step: f64| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (0.3 + i as f64 * step).sin() as f32 * 0.7).collect();
        stored(&Tensor::from_vec(values, shape, &CPU).unwrap()).unwrap()
    };
    Parts { kind: module.kind, a: made(&a, 1.7), b: made(&b, 0.9), bias: None, magnitude: None }
}

fn config(path: &str, is_target: bool) -> AdapterConfig {
    let names = |wanted: bool| if wanted { vec![path.to_string()] } else { vec!["unused".to_string()] };
    AdapterConfig {
        r: 2,
        lora_alpha: 3.0,
        target_modules: Some(TargetModules::Names(names(is_target).into_iter().collect())),
        modules_to_save: if is_target { Vec::new() } else { vec![path.to_string()] },
        ..AdapterConfig::default()
    }
}

/// An adapter in a folder.
struct Written(TempDir);

impl Written {
    fn new(path: &str, update: Option<Parts>, saved: Option<&Tensor>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(path, update.is_some());
        let parts: BTreeMap<_, _> = update.into_iter().map(|parts| (path.to_string(), parts)).collect();
        let saved = saved.into_iter().map(|weight| (format!("{path}.weight"), stored(weight).unwrap()));
        Adapter::new(config, parts, saved.collect()).unwrap().write(folder.path()).unwrap();
        Self(folder)
    }
}

fn takes(name: &str, modules: &[Module]) {
    let model = ModelFolder::open(&case(name).join("model")).unwrap();
    let release = Release::of(name, model.path());
    for module in modules {
        release.takes(module);
    }
    release.refuses("no.such.module");
}

#[test]
fn dense_layers_after_the_pooling_of_sentence_embeddings_have_adapters() {
    for (name, weights) in [
        ("bert/sentence_today_dense", "2_Dense/model.safetensors"),
        ("bert/sentence_earlier_dense", "2_Dense/pytorch_model.bin"),
    ] {
        takes(name, &[module("2.linear", Kind::Linear, weights, "linear.weight")]);
    }
    takes(
        "bert/sentence_today_dense",
        &[module(
            "0.auto_model.encoder.layer.1.output.dense",
            Kind::Linear,
            "model.safetensors",
            "encoder.layer.1.output.dense.weight",
        )],
    );
}

#[test]
fn text_encoder_and_codec_of_musicgen_have_adapters() {
    takes(
        "musicgen/forward_mono",
        &[module(
            "text_encoder.encoder.block.0.layer.0.SelfAttention.q",
            Kind::Linear,
            "model.safetensors",
            "text_encoder.encoder.block.0.layer.0.SelfAttention.q.weight",
        )],
    );
    takes(
        "musicgen/original_stereo",
        &[module(
            "text_encoder.encoder.block.0.layer.0.SelfAttention.q",
            Kind::Linear,
            "t5-base/model.safetensors",
            "encoder.block.0.layer.0.SelfAttention.q.weight",
        )],
    );
}

#[test]
fn the_prior_and_the_codec_of_jukebox_have_adapters() {
    takes(
        "llark/hear_mean",
        &[
            Module {
                transposed: true,
                ..module(
                    "priors.0.prior.transformer._attn_mods.0.attn.c_attn",
                    Kind::Linear,
                    "prior_level_2.pth.tar",
                    "prior.transformer._attn_mods.0.attn.c_attn.w",
                )
            },
            module(
                "priors.0.metadata_embedding.artist_emb",
                Kind::Embedding,
                "prior_level_2.pth.tar",
                "y_emb.artist_emb.emb.weight",
            ),
        ],
    );
    takes(
        "llark/jukebox_encode_openai",
        &[module(
            "vqvae.encoders.0.level_blocks.0.proj_out",
            Kind::Conv,
            "vqvae.pth.tar",
            "module.encoders.0.level_blocks.0.model.1.weight",
        )],
    );
}

#[test]
fn jukebox_beside_llark_is_no_module_of_it() {
    let model = ModelFolder::open(&case("llark/pipeline").join("model")).unwrap();
    let release = Release::of("llark/pipeline", model.path());
    for path in ["priors.0.prior.transformer._attn_mods.0.attn.c_attn", "jukebox.vqvae.decoders.0.out"] {
        release.refuses(path);
    }
}

/// LLark's case `read` as a language model of its own with the projector and the embeddings in `mm_projector/`.
fn apart() -> TempDir {
    let from = case("llark/read").join("model");
    let folder = tempfile::tempdir().unwrap();
    let weights = Checkpoint::open_folder(&from).unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["model_type"] = json!("llama");
    config["architectures"] = json!(["LlamaForCausalLM"]);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::create_dir(folder.path().join("mm_projector")).unwrap();
    let write = |name: &str, keep: &dyn Fn(&str) -> bool| {
        let kept = weights.iter().filter(|(name, _)| keep(name));
        let kept: BTreeMap<&str, Tensor> = kept
            .map(|(name, stored)| {
                (name, Tensor::from_vec(widen(stored).unwrap(), stored.shape.as_slice(), &CPU).unwrap())
            })
            .collect();
        let kept: std::collections::HashMap<&str, Tensor> = kept.into_iter().collect();
        fauna::candle::safetensors::save(&kept, folder.path().join(name)).unwrap();
    };
    let is_projector = |name: &str| name.contains("mm_projector");
    write("model.safetensors", &|name| !is_projector(name));
    write("mm_projector/checkpoint-9.bin", &|name| {
        is_projector(name) || name.ends_with("embed_tokens.weight")
    });
    folder
}

#[test]
fn a_projector_in_a_file_of_its_own_has_adapters() {
    let folder = apart();
    let mut release = Release::of("llark/read", folder.path());
    release.family = Some("llark".into());
    release.options.insert("mm_hidden_size".into(), json!(24));
    let file = "mm_projector/checkpoint-9.bin";
    for module in [
        module("model.mm_projector", Kind::Linear, file, "model.mm_projector.weight"),
        module("model.embed_tokens", Kind::Embedding, file, "model.embed_tokens.weight"),
        module(
            "model.layers.0.self_attn.q_proj",
            Kind::Linear,
            "model.safetensors",
            "model.layers.0.self_attn.q_proj.weight",
        ),
    ] {
        release.takes(&module);
    }
}

#[test]
fn the_parts_of_dalle_have_adapters() {
    takes(
        "dalle/dvae_encode",
        &[module("encoder.blocks.output.conv", Kind::Conv, "encoder.pkl", "blocks.output.conv.w")],
    );
    takes(
        "dalle/dvae_decode",
        &[module("decoder.blocks.output.conv", Kind::Conv, "decoder.pkl", "blocks.output.conv.w")],
    );
    takes(
        "dalle/mini_generate",
        &[module(
            "detoker.decoder.mid.attn_1.proj_out",
            Kind::Conv,
            "detoker.pt",
            "decoder.mid.attn_1.proj_out.weight",
        )],
    );
}

/// A folder with the adapter of the case `llava/adapter_projector`, whose projector is in a file beside it with these
/// `names`.
fn with_projector_beside(names: impl Fn(&str) -> String) -> TempDir {
    let from = case("llava/adapter_projector").join("adapter");
    let folder = tempfile::tempdir().unwrap();
    let config: Value =
        serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    let config = AdapterConfig { modules_to_save: Vec::new(), ..AdapterConfig::parse(config).unwrap() };
    let whole = Adapter::open(&from).unwrap();
    assert!(!whole.saved().is_empty());
    let updates = whole.modules().iter().map(|(path, update)| (path.clone(), update.parts().clone()));
    Adapter::new(config, updates.collect(), BTreeMap::new()).unwrap().write(folder.path()).unwrap();
    let dense = |stored: &fauna::checkpoint::StoredTensor| {
        Tensor::from_vec(widen(stored).unwrap(), stored.shape.as_slice(), &CPU).unwrap()
    };
    let beside: std::collections::HashMap<String, Tensor> =
        whole.saved().iter().map(|(name, stored)| (names(name), dense(stored))).collect();
    fauna::candle::safetensors::save(&beside, folder.path().join("non_lora_trainables.bin")).unwrap();
    folder
}

#[test]
fn tensors_trained_in_full_beside_an_adapter_are_those_of_modules_to_save() {
    let name = "llava/adapter_projector";
    let model = ModelFolder::open(&case(name).join("model")).unwrap();
    let mut release = Release::of(name, model.path());
    release.options.remove("adapters");
    let expected = tensors(&case(name).join("expected.safetensors")).unwrap();
    let named: [fn(&str) -> String; 3] = [
        |name| format!("base_model.model.{name}"),
        |name| format!("base_model.{name}"),
        |name| name.to_string(),
    ];
    for names in named {
        let folder = with_projector_beside(names);
        let found = release.outputs(Some(folder.path())).unwrap();
        for (key, expected) in &expected {
            let row = compare(key, expected, &found[key], Tolerance { atol: 1e-4, rtol: 1e-3 }).unwrap();
            assert!(row.agrees, "{row}");
        }
    }
    let folder =
        with_projector_beside(|name| format!("base_model.model.{}", name.replace("linear_1", "linear_9")));
    let error = release.outputs(Some(folder.path())).unwrap_err().to_string();
    assert!(error.contains("linear_9"), "{error}");
    let folder = with_projector_beside(|name| format!("base_model.model.{name}.lora_A.weight"));
    let error = release.outputs(Some(folder.path())).unwrap_err().to_string();
    assert!(error.contains("non_lora_trainables.bin") && error.contains("lora_A"), "{error}");
}

#[test]
fn an_adapter_with_the_projector_beside_it_makes_llava_of_a_language_model() {
    let name = "llava/forward_original";
    let model = ModelFolder::open(&case(name).join("model")).unwrap();
    let release = Release::of(name, model.path());
    let expected = release.outputs(None).unwrap();
    let place = tempfile::tempdir().unwrap();
    let (base, adapter) = (place.path().join("base"), place.path().join("adapter"));
    let weights = Checkpoint::open(&model.path().join("model.safetensors")).unwrap();
    let split = |keep: &dyn Fn(&str) -> bool, to: &Path| {
        let dense = |(name, stored): (&str, &fauna::checkpoint::StoredTensor)| {
            let shape = stored.shape.as_slice();
            (name.to_string(), Tensor::from_vec(widen(stored).unwrap(), shape, &CPU).unwrap())
        };
        let kept: std::collections::HashMap<String, Tensor> =
            weights.iter().filter(|(name, _)| keep(name)).map(dense).collect();
        fauna::candle::safetensors::save(&kept, to).unwrap();
    };
    std::fs::create_dir_all(base.join("vision_tower")).unwrap();
    for entry in std::fs::read_dir(model.path().join("vision_tower")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, base.join("vision_tower").join(path.file_name().unwrap())).unwrap();
    }
    let is_projector = |name: &str| name.contains("mm_projector");
    split(&|name| !is_projector(name), &base.join("model.safetensors"));
    let config = std::fs::read(model.path().join("config.json")).unwrap();
    let mut language: Value = serde_json::from_slice(&config).unwrap();
    language["model_type"] = json!("mistral");
    language["architectures"] = json!(["MistralForCausalLM"]);
    language.as_object_mut().unwrap().retain(|key, _| !key.starts_with("mm_") && key != "use_mm_proj");
    std::fs::write(base.join("config.json"), language.to_string()).unwrap();

    // An update of zero, so that only the projector is the adapter's.
    let q_proj = weights.get("model.layers.0.self_attn.q_proj.weight").unwrap();
    let zeros =
        |shape: [usize; 2]| stored(&Tensor::zeros(&shape, fauna::candle::DType::F32, &CPU).unwrap()).unwrap();
    let (a, b) = (zeros([2, q_proj.shape[1]]), zeros([q_proj.shape[0], 2]));
    let parts = Parts { kind: Kind::Linear, a, b, bias: None, magnitude: None };
    let path = "model.layers.0.self_attn.q_proj";
    let mut config_of_adapter = self::config(path, true);
    config_of_adapter.base_model_name_or_path = Some(base.to_str().unwrap().to_string());
    let parts = BTreeMap::from([(path.to_string(), parts)]);
    Adapter::new(config_of_adapter, parts, BTreeMap::new()).unwrap().write(&adapter).unwrap();
    split(&is_projector, &adapter.join("non_lora_trainables.bin"));
    std::fs::write(adapter.join("config.json"), &config).unwrap();

    let tuned = Release { folder: adapter, ..release };
    let found = tuned.outputs(None).unwrap();
    for (key, expected) in &expected {
        let row = compare(key, expected, &found[key], Tolerance { atol: 0.0, rtol: 0.0 }).unwrap();
        assert!(row.agrees, "{row}");
    }
}

#[test]
fn a_table_and_a_head_that_are_replaced_by_one_matrix_stay_tied() {
    let name = "gpt/gpt2_forward_official";
    let model = ModelFolder::open(&case(name).join("model")).unwrap();
    let release = Release::of(name, model.path());
    let file = std::fs::read_dir(model.path()).unwrap().flatten().map(|entry| entry.path());
    let file = file.into_iter().find_map(|path| Checkpoint::open(&path).ok()).unwrap();
    let table = file.iter().find(|(name, _)| name.ends_with("wte.weight")).unwrap().1.clone();
    let table = Tensor::from_vec(widen(&table).unwrap(), table.shape.as_slice(), &CPU).unwrap();
    let moved = stored(&(table.sin().unwrap() + 0.25).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let both = ["transformer.wte.weight", "lm_head.weight"].map(|name| (name.to_string(), moved.clone()));
    let config = AdapterConfig {
        modules_to_save: vec!["wte".to_string(), "lm_head".to_string()],
        ..config("unused", false)
    };
    Adapter::new(config, BTreeMap::new(), both.into()).unwrap().write(folder.path()).unwrap();
    let path = folder.path().display().to_string();
    let options = LoadOptions::default().with_adapter(AdapterSpec { path, scale: 1.0 });
    let merged = tempfile::tempdir().unwrap().path().join("merged");
    fauna_shared::train::merge(&fauna::zoo(), model.path().to_str().unwrap(), &options, &merged, false)
        .unwrap();
    let (plain, adapted) = (release.outputs(None).unwrap(), release.outputs(Some(folder.path())).unwrap());
    let expected = Release::of(name, &merged).outputs(None).unwrap();
    let tolerance = Tolerance { atol: 1e-5, rtol: 1e-4 };
    assert!(compare("logits", &expected["logits"], &adapted["logits"], tolerance).unwrap().agrees);
    assert!(!compare("logits", &plain["logits"], &adapted["logits"], tolerance).unwrap().agrees);
}
