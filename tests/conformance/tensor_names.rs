//! Every naming of tensors that the reference loads is loaded here, with the same outputs.
//!
//! `tests/data/tensor_names.json` holds the namings, determined with transformers 5.23 and gguf 0.19 by
//! `tests/parity/generate/tensor_names.py`.

#![allow(clippy::disallowed_methods, reason = "tests read tensors that require gradients")]

use std::collections::{BTreeMap, BTreeSet};

use fauna::checkpoint::{Metadata, StorageType, TensorInfo, write_safetensors};
use fauna::runtime::Runtime;
use fauna::weights::{Name, Weights};
use fauna::{Error, LoadOptions, Result, Tensors};
use serde_json::Value;

use super::{SEED, bytes_of, forward, row_of};

/// A class of the reference with a tiny config.
struct Class {
    family: &'static fauna::Family,
    name: String,
    config: Value,
    /// The names in the reference module, with shapes.
    tensors: Vec<(String, Vec<usize>)>,
    /// Each naming, with its names of the tensors, in order.
    namings: BTreeMap<String, Vec<String>>,
    /// Tied tensors: another name and the name in the module.
    tied: BTreeMap<String, String>,
    /// Names that the reference ignores in a file.
    ignored: Vec<(String, Vec<usize>)>,
    /// Names in the module and in GGUF, for classes that load from GGUF.
    gguf: BTreeMap<String, String>,
    /// Stems of GGUF tensors of the architecture that this class does not have.
    gguf_others: Vec<String>,
}

/// A tensor in a file: its name there, the name that seeds its values, its shape.
struct Written {
    name: String,
    made_for: String,
    shape: Vec<usize>,
}

fn classes() -> Vec<Class> {
    let table: Vec<Value> = serde_json::from_str(include_str!("../data/tensor_names.json")).unwrap();
    let class = |entry: Value| {
        let tensors: Vec<(String, Vec<usize>)> = serde_json::from_value(entry["tensors"].clone()).unwrap();
        let mut namings: BTreeMap<String, Vec<String>> =
            serde_json::from_value(entry["namings"].clone()).unwrap();
        for names in namings.values_mut() {
            assert_eq!(names.len(), tensors.len());
            for (name, (own, _)) in names.iter_mut().zip(&tensors).filter(|(name, _)| name.is_empty()) {
                name.clone_from(own);
            }
        }
        let optional = |key: &str| Some(entry[key].clone()).filter(|value| !value.is_null());
        Class {
            family: fauna::families()
                .into_iter()
                .find(|family| entry["family"] == family.name)
                .expect("a family"),
            name: entry["class"].as_str().unwrap().to_string(),
            config: entry["config"].clone(),
            namings,
            tied: serde_json::from_value(entry["tied"].clone()).unwrap(),
            ignored: serde_json::from_value(entry["ignored"].clone()).unwrap(),
            gguf: optional("gguf").map_or_else(BTreeMap::new, |names| serde_json::from_value(names).unwrap()),
            gguf_others: optional("gguf_others")
                .map_or_else(Vec::new, |names| serde_json::from_value(names).unwrap()),
            tensors,
        }
    };
    table.into_iter().map(class).collect()
}

impl Class {
    /// Returns the tensors under `names`.
    fn written(&self, names: &[String]) -> Vec<Written> {
        let written = |(name, (own, shape)): (&String, &(String, Vec<usize>))| Written {
            name: name.clone(),
            made_for: own.clone(),
            shape: shape.clone(),
        };
        names.iter().zip(&self.tensors).map(written).collect()
    }

    /// Returns the tensors as the reference saves them.
    fn saved(&self) -> Vec<Written> {
        self.written(&self.namings["as saved"])
    }

    fn shape(&self, own: &str) -> Vec<usize> {
        let found = self.tensors.iter().find(|(name, _)| name == own);
        found.unwrap_or_else(|| panic!("{}: {own}", self.name)).1.clone()
    }

    /// Returns the outputs of the model loaded from a file of `written`.
    fn computed(&self, written: &[Written]) -> Result<Vec<Vec<u32>>> {
        self.computed_by(&self.config, written)
    }

    /// Returns the outputs of the model with another config.
    fn computed_by(&self, config: &Value, written: &[Written]) -> Result<Vec<Vec<u32>>> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("a folder", "make", e))?;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let made_for: BTreeMap<&str, &str> =
            written.iter().map(|tensor| (tensor.name.as_str(), tensor.made_for.as_str())).collect();
        let plan = |tensor: &Written| TensorInfo {
            name: tensor.name.clone(),
            storage: StorageType::F32,
            shape: tensor.shape.clone(),
        };
        let planned: Vec<TensorInfo> = written.iter().map(plan).collect();
        let seeded = Weights::seeded(SEED, Runtime::cpu());
        write_safetensors(&folder.path().join("model.safetensors"), &Metadata::new(), &planned, |tensor| {
            let values = seeded.tensor(made_for[tensor.name.as_str()], &tensor.shape)?;
            let values = values.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })?;
        let model = fauna::open_with(folder.path().to_str().unwrap(), &LoadOptions::default())?;
        model.forward(&self.inputs())?;
        Ok(bytes_of(&forward(model.as_ref(), &self.inputs())))
    }

    /// Returns the inputs of the forward pass: only pixels or only tokens for a single tower.
    fn inputs(&self) -> Tensors {
        let mut config = self.config.clone();
        // A single tower has its config at the top level; keys that are not saved have the defaults of the class.
        let vision = config["vision_config"].is_null().then(|| config.clone());
        let tokens = config["mm_tokens_per_image"].clone();
        for (key, value) in [
            ("vision_config", vision),
            ("audio_channels", Some(1.into())),
            ("image_seq_length", Some(tokens)),
        ] {
            if let (Value::Null, Some(value)) = (&config[key], value) {
                config[key] = value;
            }
        }
        let alone = |half: &str| self.name.contains(&format!("{half}Model"));
        let mut inputs = match self.name.contains("VisionModel") || !self.name.contains("TextModel") {
            true => row_of(self.family, &config, 0),
            false => row_of(self.family, &(self.family.sample)(), 0),
        };
        if self.family.name == "t5" && self.name != "T5EncoderModel" {
            inputs.insert("decoder_input_ids".into(), inputs["input_ids"].clone());
        }
        inputs.retain(|name, _| match name.as_str() {
            "pixel_values" => !alone("Text"),
            "input_ids" | "attention_mask" => !alone("Vision"),
            _ => true,
        });
        inputs
    }

    /// Returns the family's name of the tensor `name` of a file.
    fn called(&self, name: &str) -> Option<String> {
        match (self.family.rename)(name) {
            Name::Keep => Some(name.to_string()),
            Name::To(name) => Some(name),
            Name::Entries { .. } | Name::Ignore => None,
        }
    }
}

/// Checks that the files that `of` makes of each class give the same outputs as the file that the reference saves.
fn check(of: impl Fn(&Class) -> Vec<(String, Vec<Written>)>) {
    let (mut problems, mut compared) = (Vec::new(), 0);
    for class in classes() {
        let files = of(&class);
        if files.is_empty() {
            continue;
        }
        let saved = class.computed(&class.saved());
        let saved = saved.unwrap_or_else(|error| panic!("{} as saved: {error}", class.name));
        for (what, file) in files {
            compared += 1;
            match class.computed(&file) {
                Err(error) => problems.push(format!("{} {}, {what}: {error}", class.family.name, class.name)),
                Ok(bits) if bits != saved => {
                    problems.push(format!("{} {}, {what}: different outputs", class.family.name, class.name));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
    assert!(compared > 20, "{compared}");
}

#[test]
fn every_naming_that_the_reference_loads_gives_the_same_outputs() {
    check(|class| {
        let file = |(what, names): (&String, &Vec<String>)| (what.clone(), class.written(names));
        class.namings.iter().map(file).collect()
    });
}

#[test]
fn tensors_that_the_reference_ignores_are_ignored() {
    check(|class| {
        let beside = |(name, shape): &(String, Vec<usize>)| {
            let mut file = class.saved();
            file.push(Written { name: name.clone(), made_for: name.clone(), shape: shape.clone() });
            (format!("with {name}"), file)
        };
        class.ignored.iter().map(beside).collect()
    });
}

#[test]
fn tied_tensors_may_be_stored_under_both_names() {
    check(|class| {
        let beside = |(other, own): (&String, &String)| {
            let mut file = class.saved();
            file.push(Written { name: other.clone(), made_for: own.clone(), shape: class.shape(own) });
            (format!("with {other}"), file)
        };
        class.tied.iter().map(beside).collect()
    });
}

#[test]
fn a_tied_head_that_differs_from_the_embedding_is_handled_like_in_the_reference() {
    let mut compared = 0;
    for class in classes() {
        if !class.namings.contains_key("the tied table as lm_head.weight") {
            continue;
        }
        // Seeded by their own names, the embedding and the head have different values.
        let head = "lm_head.weight".to_string();
        let mut both = class.saved();
        both.push(Written {
            name: head.clone(),
            made_for: head.clone(),
            shape: class.shape(&class.tied[&head]),
        });
        let mut untied = class.config.clone();
        untied["tie_word_embeddings"] = false.into();
        let tied = class.computed(&both).unwrap();
        assert_eq!(tied, class.computed_by(&untied, &both).unwrap(), "{}", class.name);
        assert_ne!(tied, class.computed(&class.saved()).unwrap(), "{}", class.name);
        compared += 1;
    }
    assert!(compared >= 6, "{compared}");
}

#[test]
fn a_base_model_loads_from_the_file_of_a_model_with_a_head() {
    let classes = classes();
    let (mut problems, mut compared) = (Vec::new(), Vec::new());
    for bare in classes.iter().filter(|class| class.name.ends_with("Model")) {
        // The values of both are seeded by the family's names.
        let file = |class: &Class| {
            let called = |tensor: Written| Written {
                made_for: class.called(&tensor.name).unwrap_or_default(),
                ..tensor
            };
            class.saved().into_iter().map(called).collect::<Vec<_>>()
        };
        let names = |class: &Class| -> BTreeSet<String> {
            file(class).into_iter().map(|tensor| tensor.made_for).collect()
        };
        // Additional tensors at the top level, and the same in every layer.
        let has_more = |class: &&Class| {
            let (all, own) = (names(class), names(bare));
            class.family.name == bare.family.name
                && class.name != bare.name
                && class.config["tie_word_embeddings"] == bare.config["tie_word_embeddings"]
                && all.is_superset(&own)
                && all.difference(&own).all(|name| !name.contains(".0."))
        };
        let own = bare.computed(&file(bare)).unwrap();
        for whole in classes.iter().filter(has_more) {
            compared.push(format!("{} from {}", bare.name, whole.name));
            match bare.computed(&file(whole)) {
                Err(error) => problems.push(format!("{} from {}: {error}", bare.name, whole.name)),
                Ok(bits) if bits != own => {
                    problems.push(format!("{} from {}: different outputs", bare.name, whole.name))
                }
                Ok(_) => {}
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
    assert!(compared.len() >= 10, "{compared:?}");
}

#[test]
fn a_logit_scale_of_shape_1_equals_a_scalar_one() {
    let class = classes().into_iter().find(|class| class.name == "CLIPModel").unwrap();
    // Random values depend on the name, not on the shape.
    let mut row = class.saved();
    row.iter_mut().find(|tensor| tensor.name == "logit_scale").unwrap().shape = vec![1];
    assert_eq!(class.computed(&row).unwrap(), class.computed(&class.saved()).unwrap());
}

#[test]
fn gguf_names_are_those_of_the_gguf_package() {
    let mut families = BTreeSet::new();
    for class in classes().into_iter().filter(|class| !class.gguf.is_empty()) {
        families.insert(class.family.name);
        let mut ours = BTreeSet::new();
        for (own, short) in &class.gguf {
            let called = class.called(own);
            assert_eq!(class.called(short), called, "{}: {short} is {own}", class.name);
            ours.extend(called);
        }
        // A tensor that this class does not have is rejected by name, or known not to be a weight.
        for stem in &class.gguf_others {
            let name = format!("{stem}.weight");
            match class.called(&name) {
                Some(called) => assert!(!ours.contains(&called), "{}: {name} is {called}", class.name),
                None => assert_eq!(name, "rope_freqs.weight", "{}", class.name),
            }
        }
    }
    let claimed = fauna::families().into_iter().filter(|family| !family.gguf.is_empty());
    assert_eq!(families, claimed.map(|family| family.name).collect());
}
