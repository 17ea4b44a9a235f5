//! Every naming of a checkpoint's tensors that the reference loads is loaded here, to the same numbers.
//!
//! `tests/data/tensor_names.json` holds the namings, found by trial with transformers 5.23 by
//! `tests/parity/generate/tensor_names.py`.

use std::collections::BTreeMap;

use fauna::checkpoint::{Metadata, Planned, Storage, write_safetensors};
use fauna::runtime::Runtime;
use fauna::weights::Weights;
use fauna::{Error, Options, Result, Tensors};
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
}

fn classes() -> Vec<Class> {
    let table: Vec<Value> = serde_json::from_str(include_str!("../data/tensor_names.json")).unwrap();
    let class = |entry: Value| Class {
        family: fauna::families()
            .into_iter()
            .find(|family| entry["family"] == family.name)
            .expect("a family"),
        name: entry["class"].as_str().unwrap().to_string(),
        config: entry["config"].clone(),
        tensors: serde_json::from_value(entry["tensors"].clone()).unwrap(),
        namings: serde_json::from_value(entry["namings"].clone()).unwrap(),
    };
    table.into_iter().map(class).collect()
}

impl Class {
    /// What the class computes of weights made for its own names and stored under `names`.
    fn computed(&self, names: &[String]) -> Result<Vec<Vec<u32>>> {
        self.computed_by(&self.config, names)
    }

    /// The same with another config.
    fn computed_by(&self, config: &Value, names: &[String]) -> Result<Vec<Vec<u32>>> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("a folder", "make", e))?;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let own: BTreeMap<&String, &String> =
            names.iter().zip(self.tensors.iter().map(|(name, _)| name)).collect();
        let plan = |(name, (_, shape)): (&String, &(String, Vec<usize>))| Planned {
            name: name.clone(),
            storage: Storage::F32,
            shape: shape.clone(),
        };
        let planned: Vec<Planned> = names.iter().zip(&self.tensors).map(plan).collect();
        let seeded = Weights::seeded(SEED, Runtime::cpu());
        write_safetensors(&folder.path().join("model.safetensors"), &Metadata::new(), &planned, |tensor| {
            let values = seeded.tensor(own[&tensor.name], &tensor.shape)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })?;
        let model = fauna::open_with(folder.path().to_str().unwrap(), &Options::default())?;
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
        if ["T5Model", "T5ForConditionalGeneration"].contains(&self.name.as_str()) {
            inputs.insert("decoder_input_ids".into(), inputs["input_ids"].clone());
        }
        inputs.retain(|name, _| match name.as_str() {
            "pixel_values" => !alone("Text"),
            "input_ids" | "attention_mask" => !alone("Vision"),
            _ => true,
        });
        inputs
    }
}

#[test]
fn every_naming_that_the_reference_loads_is_loaded_to_the_same_numbers() {
    let mut problems = Vec::new();
    for class in classes() {
        let mut first: Option<Vec<Vec<u32>>> = None;
        for (what, names) in &class.namings {
            match class.computed(names) {
                Err(error) => problems.push(format!("{} {}, {what}: {error}", class.family.name, class.name)),
                Ok(bits) if *first.get_or_insert_with(|| bits.clone()) != bits => {
                    problems.push(format!("{} {}, {what}: other numbers", class.family.name, class.name));
                }
                Ok(_) => {}
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn a_head_that_differs_from_the_table_that_it_is_tied_to_is_used_as_the_reference_uses_it() {
    let mut compared = 0;
    for mut class in classes() {
        let Some(names) = class.namings.get("the tied table as lm_head.weight") else { continue };
        // Made from their own names, the table and the head have other values.
        let place = names.iter().position(|name| name == "lm_head.weight").unwrap();
        let shape = class.tensors[place].1.clone();
        class.tensors.push(("lm_head.weight".to_string(), shape));
        let mut both = class.namings["as saved"].clone();
        both.push("lm_head.weight".to_string());
        let mut untied = class.config.clone();
        untied["tie_word_embeddings"] = false.into();
        let tied = class.computed(&both).unwrap();
        assert_eq!(tied, class.computed_by(&untied, &both).unwrap(), "{}", class.name);
        assert_ne!(tied, class.computed(&class.namings["as saved"]).unwrap(), "{}", class.name);
        compared += 1;
    }
    assert!(compared >= 6, "{compared}");
}
