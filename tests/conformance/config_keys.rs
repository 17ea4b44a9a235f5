//! Every key of the reference's config classes is applied, rejected by name, or listed as harmless, and missing keys have
//! the defaults of the class.
//!
//! `tests/data/config_keys.json` holds the classes' keys with their defaults, written by
//! `tests/parity/generate/config_keys.py`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fauna::model::{HARMLESS, Keys};
use fauna::weights::Inventory;
use fauna::{Family, LoadOptions, Result, Tensors};
use serde_json::{Map, Value, json};

use super::{bytes_of, forward, row_of};

/// Models with more parameters than this are not loaded with random weights; only their tensors are listed.
const MOST: u64 = 5_000_000;

/// A config class of the reference, at a position in the config of a family.
#[derive(Clone)]
struct Class {
    family: &'static Family,
    /// Sample config of the family, with the model type of the class.
    sample: Value,
    /// Path in the config, joined by dots; `""` for the config itself.
    place: String,
    name: String,
    /// Keys and their defaults; null for computed ones.
    keys: BTreeMap<String, Value>,
    attribute_map: BTreeMap<String, String>,
}

/// Returns the classes of all families.
fn classes() -> Vec<Class> {
    let text = include_str!("../data/config_keys.json");
    let table: Map<String, Value> = serde_json::from_str(text).unwrap();
    let mut classes = Vec::new();
    for (name, places) in table {
        let (name, model_type) = name.split_once(" as ").unwrap_or((&name, ""));
        let family = fauna::families().into_iter().find(|family| family.name == name).expect("a family");
        let mut sample = (family.sample)();
        if !model_type.is_empty() {
            sample["model_type"] = json!(model_type);
            sample.as_object_mut().unwrap().remove("architectures");
        }
        for (place, class) in places.as_object().unwrap() {
            classes.push(Class {
                family,
                sample: sample.clone(),
                place: place.clone(),
                name: class["class"].as_str().unwrap().to_string(),
                keys: serde_json::from_value(class["keys"].clone()).unwrap(),
                attribute_map: serde_json::from_value(class["attribute_map"].clone()).unwrap(),
            });
        }
    }
    classes
}

impl Class {
    /// Returns the sample config with `key` of the class set to `value`, or removed.
    fn with(&self, key: &str, value: Option<Value>) -> Value {
        let mut config = self.sample.clone();
        let mut at = &mut config;
        for name in self.place.split('.').filter(|name| !name.is_empty()) {
            at = match name.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[name],
            };
            if at.is_null() {
                *at = json!({});
            }
        }
        let keys = at.as_object_mut().unwrap();
        match value {
            Some(value) => keys.insert(key.to_string(), value),
            None => keys.remove(key),
        };
        config
    }

    /// Returns the declared keys of the family at this position.
    fn declared_keys(&self) -> Vec<&'static Keys> {
        let model_type = self.sample["model_type"].as_str().unwrap_or_default();
        let means = |keys: &&Keys| {
            keys.types.is_empty() || keys.types.contains(&model_type) || !self.place.is_empty()
        };
        self.family.keys.at(&self.place).into_iter().filter(means).collect()
    }

    /// Returns whether the family lists `key` as harmless.
    fn is_listed(&self, key: &str) -> bool {
        self.declared_keys().iter().any(|keys| keys.harmless.contains(&key))
    }

    /// Returns whether `key` is a nested config with a class of its own.
    fn is_part(&self, key: &str) -> bool {
        self.place.is_empty() && self.family.keys.parts.iter().any(|(part, _)| *part == key)
    }

    /// Returns the full name of a key for messages: `llama LlamaConfig text_config.hidden_act`.
    fn named(&self, key: &str) -> String {
        let place = if self.place.is_empty() { String::new() } else { format!("{}.", self.place) };
        format!("{} {} {place}{key}", self.family.name, self.name)
    }
}

/// Returns the tensors of a config.
fn counted(config: &Value) -> Result<Inventory> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Ok(fauna::inventory(folder.path().to_str().unwrap(), &LoadOptions::default())?.1)
}

fn opened(config: &Value) -> Result<Box<dyn fauna::Pipeline>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let options = LoadOptions { random_weights: Some(super::SEED), ..LoadOptions::default() };
    fauna::open_with(folder.path().to_str().unwrap(), &options)
}

#[test]
fn every_key_of_the_reference_is_applied_rejected_or_harmless() {
    let mut problems = Vec::new();
    for class in classes() {
        for key in class.keys.keys() {
            // Invalid values for every key, except that a nested config is an object.
            let absurd = [json!("absurd"), json!({"absurd": "absurd"})];
            let complaints: Vec<Option<String>> = absurd
                .into_iter()
                .take(if class.is_part(key) { 1 } else { 2 })
                .map(|absurd| {
                    let config = class.with(key, Some(absurd));
                    let error = match counted(&config) {
                        Err(error) => Some(error),
                        Ok(inventory) if inventory.parameters > MOST => None,
                        Ok(_) => opened(&config).err(),
                    };
                    error.map(|error| error.to_string())
                })
                .collect();
            let named = class.named(key);
            match (class.is_listed(key), complaints.iter().flatten().next()) {
                (true, None) => {}
                (true, Some(told)) => {
                    problems.push(format!("{named} is listed as harmless, but is read: {told}"))
                }
                (false, None) if HARMLESS.contains(&key.as_str()) => {}
                (false, None) => {
                    problems.push(format!("{named} is ignored: neither applied nor listed as harmless"))
                }
                (false, Some(_)) => {
                    let unnamed = complaints.into_iter().flatten().find(|told| !told.contains(key.as_str()));
                    problems.extend(unnamed.map(|told| format!("{named} is not named: {told}")));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

/// The observable effect of a config: its tensors, the outputs of a small model, or the error.
#[derive(PartialEq)]
enum Seen {
    Tensors(Vec<(String, Vec<usize>)>),
    Computed(Vec<Vec<u32>>),
    Refused(String),
}

impl Seen {
    fn of(class: &Class, config: &Value) -> Self {
        let inventory = match counted(config) {
            Ok(inventory) => inventory,
            Err(error) => return Self::Refused(error.message().to_string()),
        };
        if inventory.parameters > MOST {
            return Self::Tensors(inventory.tensors);
        }
        let computed = opened(config).and_then(|model| {
            let inputs: Tensors = row_of(class.family, &class.sample, 0);
            model.forward(&inputs)?;
            Ok(bytes_of(&forward(model.as_ref(), &inputs)))
        });
        match computed {
            Ok(bits) => Self::Computed(bits),
            Err(error) => Self::Refused(error.message().to_string()),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Tensors(tensors) => format!("{} tensors", tensors.len()),
            Self::Computed(_) => "different outputs".to_string(),
            Self::Refused(told) => format!("an error: {told}"),
        }
    }
}

#[test]
fn missing_keys_have_the_defaults_of_the_reference() {
    let mut problems = Vec::new();
    for class in classes() {
        for (key, default) in &class.keys {
            if default.is_null() || class.is_listed(key) {
                continue;
            }
            let absent = Seen::of(&class, &class.with(key, None));
            let told = Seen::of(&class, &class.with(key, Some(default.clone())));
            if absent != told {
                problems.push(format!(
                    "{}: left out it is {}, with the default {default} {}",
                    class.named(key),
                    absent.name(),
                    told.name()
                ));
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn aliases_of_keys_are_those_of_the_reference() {
    for class in classes() {
        let known = class.declared_keys();
        let mapped: BTreeMap<String, String> = known
            .iter()
            .flat_map(|keys| keys.mapped)
            .map(|(other, canonical)| (other.to_string(), canonical.to_string()))
            .collect();
        assert_eq!(mapped, class.attribute_map, "{} {}", class.family.name, class.name);
    }
}

#[test]
fn keys_are_accepted_under_their_aliases_and_under_both_names() {
    let mut walked = 0;
    for class in classes() {
        for (other, canonical) in &class.attribute_map {
            let mut known = &class.sample;
            for name in class.place.split('.').filter(|name| !name.is_empty()) {
                known = &known[name];
            }
            let Some(value) = known.get(canonical).cloned() else { continue };
            let plain = Seen::of(&class, &class.sample);
            let mut under = |config: Value, what: &str| {
                let seen = Seen::of(&class, &config);
                assert!(seen == plain, "{} {what} {other}: {}", class.named(canonical), seen.name());
                walked += 1;
            };
            let renamed = Class { sample: class.with(canonical, None), ..class.clone() };
            under(renamed.with(other, Some(value.clone())), "as");
            under(class.with(other, Some(value.clone())), "beside");
            // As in the reference, the alias takes precedence if they differ, in any order.
            let wrong = Class { sample: class.with(canonical, Some(json!(1))), ..class.clone() };
            under(wrong.with(other, Some(value)), "overruled by");
        }
    }
    assert!(walked > 60, "{walked}");
}

/// Values that are invalid as sizes, counts or scales, or overflow in products.
const WALK: [&str; 10] = [
    "0",
    "1",
    "-1",
    "2147483648",
    "9007199254740992",
    "18446744073709551615",
    "1e308",
    "-1e308",
    "1e-308",
    "null",
];

/// Collects the paths of all numbers of `config`.
fn numbers(config: &Value, path: &str, found: &mut Vec<String>) {
    match config {
        Value::Number(_) => found.push(path.to_string()),
        Value::Object(keys) => {
            keys.iter().for_each(|(key, value)| numbers(value, &format!("{path}/{key}"), found));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| numbers(value, &format!("{path}/{i}"), found));
        }
        _ => {}
    }
}

/// Returns a config for each number of each sample config and of each class's defaults, with the name of the number.
fn walked() -> Vec<(&'static Family, String, Value)> {
    let mut walked = Vec::new();
    for family in fauna::families() {
        let sample = (family.sample)();
        let mut paths = Vec::new();
        numbers(&sample, "", &mut paths);
        for path in paths {
            for number in WALK {
                let mut config = sample.clone();
                *config.pointer_mut(&path).unwrap() = serde_json::from_str(number).unwrap();
                walked.push((family, format!("{} {path} = {number}", family.name), config));
            }
        }
    }
    for class in classes() {
        for key in class.keys.iter().filter(|(_, default)| default.is_number()).map(|(key, _)| key) {
            for number in WALK {
                let config = class.with(key, Some(serde_json::from_str(number).unwrap()));
                walked.push((class.family, format!("{} = {number}", class.named(key)), config));
            }
        }
    }
    walked
}

#[test]
fn no_number_in_a_config_causes_a_panic_or_exhausts_memory() {
    let mut problems = Vec::new();
    for (family, name, config) in walked() {
        let started = std::time::Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let Ok(inventory) = counted(&config) else { return };
            if inventory.parameters > 2_000_000 {
                return;
            }
            if let Ok(model) = opened(&config) {
                let _ = model.forward(&row_of(family, &(family.sample)(), 0));
            }
        }));
        let seconds = started.elapsed().as_secs();
        if outcome.is_err() {
            problems.push(format!("{name} panics"));
        } else if seconds > 10 {
            problems.push(format!("{name} takes {seconds} s"));
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}
