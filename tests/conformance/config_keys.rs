//! Every key of the reference's config classes is obeyed, refused by name, or listed as harmless; and what a config leaves
//! out is what the class has by default.
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

/// More parameters than this are counted, and no weights are made for them.
const MOST: u64 = 5_000_000;

/// A config class of the reference, at one place of a family's config.
#[derive(Clone)]
struct Class {
    family: &'static Family,
    /// The sample config of the family, of the model type that has the class.
    sample: Value,
    /// Names joined by dots; `""` is the whole config.
    place: String,
    name: String,
    /// Each key with its default; null for what is computed.
    keys: BTreeMap<String, Value>,
    attribute_map: BTreeMap<String, String>,
}

/// The classes of all families.
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
    /// The sample, with the class's key `key` set to `value`, or left out.
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

    /// What the family says of the keys here.
    fn what_is_known(&self) -> Vec<&'static Keys> {
        let model_type = self.sample["model_type"].as_str().unwrap_or_default();
        let means = |keys: &&Keys| {
            keys.types.is_empty() || keys.types.contains(&model_type) || !self.place.is_empty()
        };
        self.family.keys.at(&self.place).into_iter().filter(means).collect()
    }

    /// Whether the family says that `key` is harmless.
    fn is_listed(&self, key: &str) -> bool {
        self.what_is_known().iter().any(|keys| keys.harmless.contains(&key))
    }

    /// Whether `key` is that of an object which is a class of its own.
    fn is_part(&self, key: &str) -> bool {
        self.place.is_empty() && self.family.keys.parts.iter().any(|(part, _)| *part == key)
    }

    /// The name of a key as people meet it: `llama LlamaConfig text_config.hidden_act`.
    fn named(&self, key: &str) -> String {
        let place = if self.place.is_empty() { String::new() } else { format!("{}.", self.place) };
        format!("{} {} {place}{key}", self.family.name, self.name)
    }
}

/// What opening a config leads to: its tensors without weights, and then all of it with weights from a seed.
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
fn every_key_of_the_reference_is_obeyed_refused_or_harmless() {
    let mut problems = Vec::new();
    for class in classes() {
        for key in class.keys.keys() {
            // No class means these by any key, save that an object may stand for a part.
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
                    problems.push(format!("{named} is listed as harmless, and read: {told}"))
                }
                (false, None) if HARMLESS.contains(&key.as_str()) => {}
                (false, None) => problems.push(format!("{named} is passed over: neither obeyed nor listed")),
                (false, Some(_)) => {
                    let unnamed = complaints.into_iter().flatten().find(|told| !told.contains(key.as_str()));
                    problems.extend(unnamed.map(|told| format!("{named} is not named: {told}")));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

/// What can be seen of a config: its tensors, or what a pass over them computes where they are few, or the complaint.
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
            Self::Computed(_) => "other numbers".to_string(),
            Self::Refused(told) => format!("refused: {told}"),
        }
    }
}

#[test]
fn what_a_config_leaves_out_is_as_the_reference_has_it() {
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
fn other_names_are_those_of_the_reference() {
    for class in classes() {
        let known = class.what_is_known();
        let mapped: BTreeMap<String, String> = known
            .iter()
            .flat_map(|keys| keys.mapped)
            .map(|(other, canonical)| (other.to_string(), canonical.to_string()))
            .collect();
        assert_eq!(mapped, class.attribute_map, "{} {}", class.family.name, class.name);
    }
}

#[test]
fn a_key_may_stand_under_its_other_name_and_under_both() {
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
            // As in the reference, the other name counts where they differ, in whatever order they stand.
            let wrong = Class { sample: class.with(canonical, Some(json!(1))), ..class.clone() };
            under(wrong.with(other, Some(value)), "overruled by");
        }
    }
    assert!(walked > 60, "{walked}");
}

/// Numbers that no size, count or scale is, and others that a careless multiplication does not survive.
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

/// The paths of all numbers of `config`.
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

/// Each number of each family's sample config, and each number that a class has by default, under the name of its place.
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
fn no_number_of_a_config_panics_or_takes_all_memory() {
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
