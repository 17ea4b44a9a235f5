//! Every naming of a checkpoint's tensors that the reference loads is loaded here, to the same numbers.
//!
//! `tests/data/tensor_names.json` holds the namings, found by trial with transformers 5.23 and gguf 0.19 by
//! `tests/parity/generate/tensor_names.py`.

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
    /// The module's own names, with shapes.
    tensors: Vec<(String, Vec<usize>)>,
    /// What each naming is, and what it calls the tensors, in their order.
    namings: BTreeMap<String, Vec<String>>,
    /// Other places of a tensor, and its own.
    tied: BTreeMap<String, String>,
    /// What the reference passes over in a file.
    ignored: Vec<(String, Vec<usize>)>,
    /// Own names and tied ones, and those in GGUF, for a class that opens from it.
    gguf: BTreeMap<String, String>,
    /// Stems of tensors that the architecture may have in GGUF, and this class has not.
    gguf_others: Vec<String>,
}

/// A tensor in a file: its name there, the name that its numbers are made for, its shape.
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
    /// The tensors under `names`.
    fn written(&self, names: &[String]) -> Vec<Written> {
        let written = |(name, (own, shape)): (&String, &(String, Vec<usize>))| Written {
            name: name.clone(),
            made_for: own.clone(),
            shape: shape.clone(),
        };
        names.iter().zip(&self.tensors).map(written).collect()
    }

    /// The tensors as the reference saves them.
    fn saved(&self) -> Vec<Written> {
        self.written(&self.namings["as saved"])
    }

    fn shape(&self, own: &str) -> Vec<usize> {
        let found = self.tensors.iter().find(|(name, _)| name == own);
        found.unwrap_or_else(|| panic!("{}: {own}", self.name)).1.clone()
    }

    /// What the class computes of a file of `written`.
    fn computed(&self, written: &[Written]) -> Result<Vec<Vec<u32>>> {
        self.computed_by(&self.config, written)
    }

    /// The same with another config.
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

    /// What a pass takes: a tower alone reads its half.
    fn inputs(&self) -> Tensors {
        let mut config = self.config.clone();
        // A tower alone is its own config; and what a saved config leaves out is the class's default.
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

    /// What the family calls the tensor `name` of a file.
    fn called(&self, name: &str) -> Option<String> {
        match (self.family.rename)(name) {
            Name::Keep => Some(name.to_string()),
            Name::To(name) => Some(name),
            Name::Entries { .. } | Name::Ignore => None,
        }
    }
}

/// Problems with files of what `of` makes of each class, compared with what the reference saves.
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
                    problems.push(format!("{} {}, {what}: other numbers", class.family.name, class.name));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
    assert!(compared > 20, "{compared}");
}

#[test]
fn every_naming_that_the_reference_loads_is_loaded_to_the_same_numbers() {
    check(|class| {
        let file = |(what, names): (&String, &Vec<String>)| (what.clone(), class.written(names));
        class.namings.iter().map(file).collect()
    });
}

#[test]
fn what_the_reference_passes_over_in_a_file_is_passed_over() {
    check(|class| {
        let beside = |(name, shape): &(String, Vec<usize>)| {
            let mut file = class.saved();
            file.push(Written { name: name.clone(), made_for: name.clone(), shape: shape.clone() });
            (format!("{name} beside it"), file)
        };
        class.ignored.iter().map(beside).collect()
    });
}

#[test]
fn a_tensor_may_be_stored_in_both_places_that_share_it() {
    check(|class| {
        let beside = |(other, own): (&String, &String)| {
            let mut file = class.saved();
            file.push(Written { name: other.clone(), made_for: own.clone(), shape: class.shape(own) });
            (format!("{other} beside it"), file)
        };
        class.tied.iter().map(beside).collect()
    });
}

#[test]
fn a_head_that_differs_from_the_table_that_it_is_tied_to_is_used_as_the_reference_uses_it() {
    let mut compared = 0;
    for class in classes() {
        if !class.namings.contains_key("the tied table as lm_head.weight") {
            continue;
        }
        // Made for their own names, the table and the head have other values.
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
fn a_bare_network_opens_from_the_file_of_one_with_a_head() {
    let classes = classes();
    let (mut problems, mut compared) = (Vec::new(), Vec::new());
    for bare in classes.iter().filter(|class| class.name.ends_with("Model")) {
        // The numbers of both are made for what the family calls them.
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
        // More at the top, and the same in every layer.
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
                    problems.push(format!("{} from {}: other numbers", bare.name, whole.name))
                }
                Ok(_) => {}
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
    assert!(compared.len() >= 10, "{compared:?}");
}

#[test]
fn a_scale_of_clip_that_open_clip_kept_as_a_row_of_one_is_the_same_scale() {
    let class = classes().into_iter().find(|class| class.name == "CLIPModel").unwrap();
    // What a seed makes depends on the name, not on the shape.
    let mut row = class.saved();
    row.iter_mut().find(|tensor| tensor.name == "logit_scale").unwrap().shape = vec![1];
    assert_eq!(class.computed(&row).unwrap(), class.computed(&class.saved()).unwrap());
}

#[test]
fn names_of_gguf_are_those_that_its_own_package_gives() {
    let mut families = BTreeSet::new();
    for class in classes().into_iter().filter(|class| !class.gguf.is_empty()) {
        families.insert(class.family.name);
        let mut ours = BTreeSet::new();
        for (own, short) in &class.gguf {
            let called = class.called(own);
            assert_eq!(class.called(short), called, "{}: {short} is {own}", class.name);
            ours.extend(called);
        }
        // What this network lacks is no part of it under another name: it is refused by name, or known to be no weight.
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
