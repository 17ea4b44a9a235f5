//! The one door: from what a person names to an opened model, over any list of families.

use std::path::PathBuf;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::nearest;
pub use crate::model::LoadOptions;
use crate::model::{Family, Layout, Pipeline, Pretrained, served};
use crate::source::Files;
use crate::weights::{Inventory, Weights};
use crate::{Error, ErrorKind, Result};

/// A list of families that open through one door.
#[derive(Clone)]
pub struct Zoo {
    families: Vec<&'static Family>,
    absent: Vec<Absent>,
}

/// Families that this build lacks, and the cargo feature of the crate `fauna` that adds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absent {
    /// The cargo feature.
    pub feature: &'static str,
    /// The names of its families, and the `model_type`s and `architectures` of their configs.
    pub names: &'static [&'static str],
}

impl Zoo {
    /// Over these families.
    pub fn new(families: impl IntoIterator<Item = &'static Family>) -> Self {
        Self { families: families.into_iter().collect(), absent: Vec::new() }
    }

    /// The same, knowing which families this build lacks: errors name the cargo feature that adds them.
    pub fn with_absent(self, absent: impl IntoIterator<Item = Absent>) -> Self {
        Self { absent: absent.into_iter().collect(), ..self }
    }

    /// `error`, of a model that calls itself `names`, with the cargo feature that adds its family, if one would.
    fn with_feature(&self, error: Error, names: &[&str]) -> Error {
        let has = |absent: &&Absent| names.iter().any(|name| absent.names.contains(name));
        if let Some(absent) = self.absent.iter().find(has) {
            return error.hint(format!("the cargo feature `{}` of fauna adds it", absent.feature));
        }
        match self.absent.iter().map(|absent| format!("`{}`", absent.feature)).collect::<Vec<_>>() {
            none if none.is_empty() => error,
            one if one.len() == 1 => {
                error.hint(format!("fauna is built without the cargo feature {}", one[0]))
            }
            several => {
                error.hint(format!("fauna is built without the cargo features {}", several.join(", ")))
            }
        }
    }

    /// The families, in the order of the plan.
    pub fn families(&self) -> &[&'static Family] {
        &self.families
    }

    /// Opens the model that `source` names: a folder, a file, a hub id with optional `@revision`, a name in the cache,
    /// a built-in name.
    ///
    /// # Errors
    /// Whatever is wrong with the name, the files, the config or the tensors; see [`ErrorKind`].
    pub fn open(&self, source: &str, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        served(source, &options.runtime, || {
            let (family, pretrained) = self.pretrained(source, options)?;
            (family.open)(&pretrained)
        })
    }

    /// What a checkpoint of this config holds, without its weights: names, shapes, count of parameters.
    ///
    /// # Errors
    /// As [`open`](Zoo::open), save what is wrong with the weights.
    pub fn inventory(&self, source: &str, options: &LoadOptions) -> Result<(&'static Family, Inventory)> {
        let files = options.find(source, false)?;
        let (family, config) = match self.layout(&files, options)? {
            Some((family, layout)) => (family, layout.config),
            None => {
                let config = files.config()?;
                (self.family_of(&config, &files, options)?, config)
            }
        };
        let pretrained = Pretrained {
            family,
            label: source.to_string(),
            config: canonical(family, config, &files)?,
            files,
            checkpoint: None,
            weights: Weights::nothing(),
            options: options.clone(),
        };
        // The tokenizer may not be there before the download; the walk over the tensors is all that is asked.
        let inventory = (family.inventory)(&pretrained)?;
        Ok((family, inventory))
    }

    /// All that is needed to build the model that `source` names as a family's own type.
    ///
    /// # Errors
    /// As [`open`](Zoo::open), save what is wrong between the config and the tensors.
    pub fn pretrained(&self, source: &str, options: &LoadOptions) -> Result<(&'static Family, Pretrained)> {
        let random = options.random_weights.is_some();
        let files = options.find(source, !random)?;
        let (family, config, checkpoint) = match self.layout(&files, options)? {
            Some((family, Layout { config, weights })) => {
                let checkpoint = match random || weights.is_empty() {
                    true => None,
                    false => Some(Checkpoint::open_files(&weights)?),
                };
                (family, config, checkpoint)
            }
            None => {
                let checkpoint = match random {
                    true => None,
                    false => Some(Checkpoint::open_files(&files.weights()?)?),
                };
                let config = match &checkpoint {
                    Some(checkpoint) => self.config_inside(checkpoint, options)?,
                    None => None,
                };
                let config = config.map_or_else(|| files.config(), Ok)?;
                (self.family_of(&config, &files, options)?, config, checkpoint)
            }
        };
        Ok((family, Pretrained::new(source, files, config, checkpoint, family, options)?))
    }

    /// What a family makes of files that are not one config beside one set of weights: the family that is named, by
    /// the user or a config, or else the first that knows them. Where a config's names fit several families (what is
    /// built on a T5 calls itself "t5"), the first that knows the files is meant.
    fn layout(&self, files: &Files, options: &LoadOptions) -> Result<Option<(&'static Family, Layout)>> {
        let known = match (&options.family, files.get("config.json")) {
            (Some(name), _) => vec![self.by_name(name)?],
            // What is wrong with the config is said where it is needed: a GGUF file holds its own, and a family may know
            // the files of a release whose config names none.
            (None, Some(_)) => match files.config() {
                Ok(config) => match Named::by(&config) {
                    Some(named) => self.families.iter().copied().filter(|f| named.fits(f)).collect(),
                    None => self.families.clone(),
                },
                Err(_) => Vec::new(),
            },
            (None, None) => self.families.clone(),
        };
        for family in known {
            let Some(layout) = family.layout else { continue };
            if let Some(layout) = layout(files, options)? {
                return Ok(Some((family, layout)));
            }
        }
        Ok(None)
    }

    /// The config that a GGUF file holds itself, brought to the official spelling.
    fn config_inside(&self, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Option<Value>> {
        let architecture = checkpoint.metadata().get("general.architecture").and_then(|value| value.as_str());
        // Files of `fauna quantize` hold the official names, and the official config lies beside them.
        let Some(architecture) = architecture.filter(|name| *name != "fauna") else { return Ok(None) };
        let family = match &options.family {
            Some(name) => self.by_name(name)?,
            None => {
                let answers = |family: &&&'static Family| family.gguf.contains(&architecture);
                let known = self.families.iter().find(answers).copied();
                known.ok_or_else(|| {
                    self.unknown("general.architecture", architecture, checkpoint.files()[0].clone())
                })?
            }
        };
        family.config_of_gguf.map(|config| config(checkpoint)).transpose()
    }

    fn by_name(&self, name: &str) -> Result<&'static Family> {
        let known = || self.families.iter().map(|family| family.name);
        self.families.iter().find(|family| family.name == name).copied().ok_or_else(|| {
            let error = Error::input(format!("no family is called \"{name}\""))
                .hint(format!("known: {}", known().collect::<Vec<_>>().join(", ")));
            self.with_feature(error, &[name])
        })
    }

    fn family_of(&self, config: &Value, files: &Files, options: &LoadOptions) -> Result<&'static Family> {
        if let Some(name) = &options.family {
            return self.by_name(name);
        }
        let place = files.get("config.json").unwrap_or_default();
        let Some(named) = Named::by(config) else {
            let error = Error::format(&place, "neither model_type nor architectures says what this is").set(
                "name the family",
                "LoadOptions::family",
                "NAME",
            );
            return Err(self.with_feature(error, &[]));
        };
        let known = || self.families.iter().copied();
        // Who has a layout of its own was asked first, and did not know these files.
        let found = known().filter(|family| named.fits(family)).min_by_key(|family| family.layout.is_some());
        match (found.or_else(|| known().find(|family| named.answers(family))), named.architecture) {
            (Some(family), Some(name)) if !serves(family, name) => {
                let message = format!("the {} family has no architecture \"{name}\"", family.name);
                let error = Error::unsupported(message)
                    .at(place)
                    .hint(format!("known: {}", family.architectures.join(", ")));
                Err(self.with_feature(error, &[name]))
            }
            (Some(family), _) => Ok(family),
            (None, architecture) => match (named.model_type, architecture) {
                (Some(name), _) => Err(self.unknown("model_type", name, place)),
                (None, name) => Err(self.unknown("architectures", name.unwrap_or_default(), place)),
            },
        }
    }

    fn unknown(&self, key: &str, found: &str, place: PathBuf) -> Error {
        let of_gguf = key == "general.architecture";
        if of_gguf && self.families.iter().any(|family| family.model_types.contains(&found)) {
            return Error::new(
                ErrorKind::Unsupported,
                format!("architecture \"{found}\" is not loaded from GGUF"),
            )
            .at(place)
            .hint("open its safetensors release instead");
        }
        let types = self.families.iter().filter(|_| !of_gguf).flat_map(|family| family.model_types);
        let near = nearest(found, types.chain(self.families.iter().flat_map(|family| family.gguf)).copied());
        let error =
            Error::new(ErrorKind::Unsupported, format!("no family loads {key} \"{found}\"")).at(place);
        let error = match near.is_empty() {
            true => error,
            false => error.hint(format!("nearest: {}", near.join(", "))),
        };
        let advice = "if its computation is that of a known family under another name";
        let error = error.set(advice, "LoadOptions::family", "NAME");
        self.with_feature(error, &[found])
    }
}

/// Whether a checkpoint of the class `name`, of a model type that `family` answers to, is what it loads. The type says
/// what the network is, so that the spelling of the class is free (`LLaMAForCausalLM`, a class of one's own); but a
/// head that a class has for a task of its own must be one of those that the family has.
fn serves(family: &Family, name: &str) -> bool {
    let known = |task: &str| family.architectures.iter().any(|class| task_of(class) == Some(task));
    family.architectures.contains(&name) || task_of(name).is_none_or(known)
}

/// What the head of a class is for: what follows `For` in its name, or the next word for the older spellings. None for
/// a class without a head, or with one that no name tells.
fn task_of(class: &str) -> Option<&str> {
    if ["LMHeadModel", "DoubleHeadsModel"].iter().any(|end| class.ends_with(end)) {
        return Some("CausalLM");
    }
    let (_, task) = class.rsplit_once("For")?;
    match task {
        // The next word, whatever else is read before it.
        "ConditionalGeneration" | "VisionText2Text" | "Generation" => Some("CausalLM"),
        task => task.starts_with(|first: char| first.is_uppercase()).then_some(task),
    }
}

/// `config` under the canonical names of `family`'s keys.
pub(crate) fn canonical(family: &Family, config: Value, files: &Files) -> Result<Value> {
    family.keys.read(config).map_err(|error| {
        let error = Error::new(error.kind(), format!("{} for {}", error.message(), family.name));
        match files.get("config.json") {
            Some(place) => error.at(place),
            None => error.at(files.root()),
        }
    })
}

/// What a config says it is: at least one of the two.
struct Named<'a> {
    model_type: Option<&'a str>,
    architecture: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// None if it says nothing.
    fn by(config: &'a Value) -> Option<Self> {
        let model_type = config["model_type"].as_str().filter(|name| !name.is_empty());
        let architecture = config["architectures"][0].as_str();
        (model_type.is_some() || architecture.is_some()).then_some(Self { model_type, architecture })
    }

    /// Whether `family` answers to the type, or to the class where there is no type.
    fn answers(&self, family: &Family) -> bool {
        match (self.model_type, self.architecture) {
            (Some(name), _) => family.model_types.contains(&name),
            (None, name) => name.is_some_and(|name| family.architectures.contains(&name)),
        }
    }

    /// Whether `family` answers and implements the class, if one is named.
    fn fits(&self, family: &Family) -> bool {
        self.answers(family) && self.architecture.is_none_or(|name| family.architectures.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::weights::Name;

    /// One of two families that answer to one name; it means the folders with a `kin.json`.
    static KIN: Family = Family {
        name: "kin",
        layout: Some(|files, _| {
            let config = json!({"size": 4});
            Ok(files.get("kin.json").map(|_| Layout { config, weights: Vec::new() }))
        }),
        ..ORIGINAL
    };

    /// A family that knows a folder by `original.th`, whose weights it needs not, and loads one vector.
    static ORIGINAL: Family = Family {
        name: "original",
        systems: &["Original"],
        paper: "",
        model_types: &["original"],
        architectures: &[],
        gguf: &[],
        keys: &crate::model::Keys::NONE,
        inputs: &[],
        outputs: &[],
        releases: &[],
        config_of_gguf: None,
        layout: Some(|files, options| {
            let config = json!({"size": options.settings.get("size").cloned().unwrap_or(json!(3))});
            Ok(files.get("original.th").map(|_| Layout { config, weights: Vec::new() }))
        }),
        rename: |_| Name::Keep,
        inventory: |pretrained| {
            let size = pretrained.config["size"].as_u64().unwrap_or(0) as usize;
            pretrained.weights.tensor("vector", &[size])?;
            pretrained.weights.finish()
        },
        causal_lm: None,
        open: |pretrained| Err(Error::unsupported(pretrained.config.to_string())),
        sample: || json!({}),
    };

    fn folder_with(file: &str, text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        folder
    }

    #[test]
    fn a_release_without_a_config_is_known_by_its_files() {
        let zoo = Zoo::new([&ORIGINAL]);
        let folder = folder_with("original.th", "");
        let name = folder.path().to_str().unwrap();
        let (family, inventory) = zoo.inventory(name, &LoadOptions::default()).unwrap();
        assert_eq!((family.name, inventory.parameters), ("original", 3));
        let settings = json!({"size": 5}).as_object().unwrap().clone();
        let options = LoadOptions { settings, ..LoadOptions::default() };
        assert_eq!(zoo.pretrained(name, &options).unwrap().1.config["size"], 5);
        assert_eq!(zoo.inventory(name, &options).unwrap().1.parameters, 5);
    }

    #[test]
    fn of_two_families_of_one_name_the_one_that_knows_the_files_is_meant() {
        let zoo = Zoo::new([&ORIGINAL, &KIN]);
        let folder = folder_with("config.json", r#"{"model_type": "original", "size": 2}"#);
        let name = folder.path().to_str().unwrap();
        let random = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
        assert_eq!(zoo.pretrained(name, &random).unwrap().0.name, "original");
        std::fs::write(folder.path().join("kin.json"), "{}").unwrap();
        assert_eq!(zoo.pretrained(name, &random).unwrap().0.name, "kin");
        let options = LoadOptions { family: Some("original".into()), ..random };
        assert_eq!(zoo.pretrained(name, &options).unwrap().0.name, "original");
    }

    #[test]
    fn a_gguf_of_what_is_loaded_from_safetensors_alone_is_told_so() {
        let zoo = Zoo::new([&ORIGINAL]);
        let told = |found: &str| zoo.unknown("general.architecture", found, "a.gguf".into()).to_string();
        assert!(told("original").contains("safetensors"), "{}", told("original"));
        assert!(!told("origina").contains("nearest"), "{}", told("origina"));
    }

    #[test]
    fn of_two_families_of_one_name_the_one_without_a_layout_means_the_rest() {
        static PLAIN: Family = Family { name: "plain", layout: None, ..ORIGINAL };
        let zoo = Zoo::new([&KIN, &PLAIN]);
        let folder = folder_with("config.json", r#"{"model_type": "original"}"#);
        let random = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
        let meant = || zoo.pretrained(folder.path().to_str().unwrap(), &random).unwrap().0.name;
        assert_eq!(meant(), "plain");
        std::fs::write(folder.path().join("kin.json"), "{}").unwrap();
        assert_eq!(meant(), "kin");
    }

    #[test]
    fn a_number_that_is_none_is_named_where_it_is_needed() {
        #[derive(Debug, serde::Deserialize)]
        struct Sizes {
            #[allow(dead_code)]
            size: usize,
        }
        let folder =
            folder_with("config.json", r#"{"model_type": "original", "size": NaN, "limit": Infinity}"#);
        let random = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
        let pretrained =
            Zoo::new([&ORIGINAL]).pretrained(folder.path().to_str().unwrap(), &random).unwrap().1;
        let error = pretrained.config::<Sizes>().unwrap_err().to_string();
        assert!(error.contains("config.json: size: invalid type: string \"NaN\""), "{error}");

        let generation = |text: &str| {
            std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
            pretrained.generation()
        };
        assert_eq!(generation(r#"{"max_time": NaN, "top_k": 5}"#).unwrap()["top_k"], 5);
        let error = generation(r#"{"temperature": NaN}"#).unwrap_err().to_string();
        assert!(
            error.ends_with("generation_config.json: temperature is NaN, a finite number is wanted"),
            "{error}"
        );
    }

    #[test]
    fn the_type_decides_and_a_head_for_another_task_is_refused_by_name() {
        static CAUSAL: Family =
            Family { name: "causal", layout: None, architectures: &["OriginalForCausalLM"], ..ORIGINAL };
        let folder = folder_with("config.json", "");
        let random = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
        let open = |architectures: &str| {
            let text = format!(r#"{{"model_type": "original", "architectures": {architectures}}}"#);
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            Zoo::new([&CAUSAL]).pretrained(folder.path().to_str().unwrap(), &random)
        };
        for class in [
            "ORIGINALForCausalLM",
            "OriginalLMHeadModel",
            "OriginalModel",
            "Formula",
            "OriginalDoubleHeadsModel",
        ] {
            assert!(open(&format!(r#"["{class}"]"#)).is_ok(), "{class}");
        }
        for none in ["null", "[]"] {
            assert!(open(none).is_ok(), "{none}");
        }
        let error = open(r#"["OriginalForTokenClassification"]"#).err().unwrap().to_string();
        assert!(error.contains("no architecture \"OriginalForTokenClassification\""), "{error}");
    }

    #[test]
    fn what_no_family_knows_lacks_a_config() {
        let folder = folder_with("other.json", "{}");
        let error = Zoo::new([&ORIGINAL]).inventory(folder.path().to_str().unwrap(), &LoadOptions::default());
        assert_eq!(error.err().unwrap().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_release_without_weights_misses_what_is_asked_of_it() {
        let folder = folder_with("original.th", "");
        let zoo = Zoo::new([&ORIGINAL]);
        let (family, pretrained) =
            zoo.pretrained(folder.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
        let error = (family.inventory)(&pretrained).unwrap_err();
        assert!(error.to_string().contains("missing  vector"), "{error}");
    }
}
