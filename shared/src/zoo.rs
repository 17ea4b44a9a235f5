//! Opening a model by name with the family that supports it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::adapter::{self, AdapterSpec};
use crate::checkpoint::Checkpoint;
use crate::error::nearest;
pub use crate::model::LoadOptions;
use crate::model::{Family, Layout, Pipeline, Pretrained, served};
use crate::source::Files;
use crate::weights::{Inventory, Weights};
use crate::{Error, ErrorKind, Result};

/// A registry of model families.
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
    /// Creates a registry of `families`.
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

    /// The registered families.
    pub fn families(&self) -> &[&'static Family] {
        &self.families
    }

    /// Opens the model `source`: a folder, a file, a hub id with an optional `@revision`, a name in the cache, or a
    /// built-in name.
    ///
    /// # Errors
    /// Those of the source, the files, the config and the tensors; see [`ErrorKind`].
    pub fn open(&self, source: &str, options: &LoadOptions) -> Result<Box<dyn Pipeline>> {
        served(source, &options.runtime, || {
            let (family, pretrained) = self.pretrained(source, options)?;
            let pipeline = (family.open)(&pretrained)?;
            pretrained.check_adapters()?;
            Ok(pipeline)
        })
    }

    /// Lists the tensors and counts the parameters of a model from its config, without its weights.
    ///
    /// # Errors
    /// As [`open`](Zoo::open), except those of the weights.
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
            weights: Weights::meta(),
            options: options.clone(),
            attached: Arc::default(),
            parts: Default::default(),
        };
        // The tokenizer need not exist before the download; only the tensors are listed.
        let inventory = (family.inventory)(&pretrained)?;
        Ok((family, inventory))
    }

    /// The files, config and weights of the model `source`, to build it as a concrete type of its family.
    ///
    /// # Errors
    /// As [`open`](Zoo::open), except mismatches of the config and the tensors.
    pub fn pretrained(&self, source: &str, options: &LoadOptions) -> Result<(&'static Family, Pretrained)> {
        let random = options.random_weights.is_some();
        if let Some((base, options)) = with_adapter_of(source, options)? {
            let adapted = |error: Error| error.context(format!("{source} is an adapter of {base}"));
            return self.pretrained(&base, &options).map_err(adapted);
        }
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
                let mut config = config.map_or_else(|| files.config(), Ok)?;
                if let Value::Object(keys) = &mut config {
                    keys.extend(replaced_keys(options)?);
                }
                (self.family_of(&config, &files, options)?, config, checkpoint)
            }
        };
        Ok((family, Pretrained::new(source, files, config, checkpoint, family, options)?))
    }

    /// The first family whose `layout` recognizes the files, among the family set by the user or matching the config,
    /// or else among all. If a config matches several families (models built on T5 have the type "t5"), the layout
    /// decides.
    fn layout(&self, files: &Files, options: &LoadOptions) -> Result<Option<(&'static Family, Layout)>> {
        let known = match (&options.family, files.get("config.json")) {
            (Some(name), _) => vec![self.by_name(name)?],
            // Config errors are reported where the config is used: a GGUF file contains its own config, and a family
            // may recognize the files of a release whose config has no model type.
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

    /// The official config from the metadata of a GGUF file.
    fn config_inside(&self, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Option<Value>> {
        let architecture = checkpoint.metadata().get("general.architecture").and_then(|value| value.as_str());
        // Files of `fauna quantize` have the official tensor names and a `config.json` next to them.
        let Some(architecture) = architecture.filter(|name| *name != "fauna") else { return Ok(None) };
        let family = match &options.family {
            Some(name) => self.by_name(name)?,
            None => {
                let matches = |family: &&&'static Family| family.gguf.contains(&architecture);
                let known = self.families.iter().find(matches).copied();
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
            let error = Error::input(format!("no family is named \"{name}\""))
                .hint(format!("known: {}", known().collect::<Vec<_>>().join(", ")));
            self.with_feature(error, &[name])
        })
    }

    fn family_of(&self, config: &Value, files: &Files, options: &LoadOptions) -> Result<&'static Family> {
        if let Some(name) = &options.family {
            return self.by_name(name);
        }
        let place = files.get("config.json").unwrap_or_else(|| files.root().to_path_buf());
        let Some(named) = Named::by(config) else {
            let error = Error::format(&place, "the config has neither model_type nor architectures").set(
                "name the family",
                "LoadOptions::family",
                "NAME",
            );
            return Err(self.with_feature(error, &[]));
        };
        let known = || self.families.iter().copied();
        // Families with a `layout` were tried first and did not recognize the files.
        let found = known().filter(|family| named.fits(family)).min_by_key(|family| family.layout.is_some());
        match (found.or_else(|| known().find(|family| named.matches(family))), named.architecture) {
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
        let advice = "if a family supports it under another name";
        let error = error.set(advice, "LoadOptions::family", "NAME");
        self.with_feature(error, &[found])
    }
}

/// The keys of the base model's config that adapters and options replace.
pub(crate) fn replaced_keys(options: &LoadOptions) -> Result<Map<String, Value>> {
    let mut keys = Map::new();
    for spec in &options.adapters {
        if let Some(path) = adapter::base_config(Path::new(&spec.path))
            && let Value::Object(replaced) = crate::json::read(&path)?
        {
            keys.extend(replaced);
        }
    }
    keys.extend(options.config.clone());
    Ok(keys)
}

/// The base model of the adapter in the folder `source`, and `options` with the adapter; the folder itself if the base
/// model is in it. `None` if there is no adapter in it, or the options have it already.
fn with_adapter_of(source: &str, options: &LoadOptions) -> Result<Option<(String, LoadOptions)>> {
    let folder = Path::new(source);
    let is_named = |spec: &AdapterSpec| Path::new(&spec.path) == folder;
    if !folder.join(adapter::CONFIG).is_file() || options.adapters.iter().any(is_named) {
        return Ok(None);
    }
    let base = match adapter::is_adapter_only(folder) {
        false => source.to_string(),
        true => match adapter::wanted_base(folder)? {
            // A path may be relative to the adapter.
            Some(base) if folder.join(&base.name).is_dir() => folder.join(base.name).display().to_string(),
            Some(base) => base.to_string(),
            None => {
                let message = "the adapter does not name its base model";
                return Err(Error::new(ErrorKind::NotFound, message).at(folder).set(
                    "open the base model with the adapter",
                    "LoadOptions::adapters",
                    "PATH",
                ));
            }
        },
    };
    let mut options = options.clone();
    options.adapters.insert(0, AdapterSpec { path: source.to_string(), scale: 1.0 });
    Ok(Some((base, options)))
}

/// Whether `family` supports checkpoints of the model class `name` and a matching model type. The model type determines
/// the network, so the class name may vary (`LLaMAForCausalLM`, custom classes), but the task of its head must be one
/// of the family's.
fn serves(family: &Family, name: &str) -> bool {
    let known = |task: &str| family.architectures.iter().any(|class| task_of(class) == Some(task));
    family.architectures.contains(&name) || task_of(name).is_none_or(known)
}

/// The task of a model class: the part of its name after `For`, or `CausalLM` for older names. `None` for a class
/// without a head.
fn task_of(class: &str) -> Option<&str> {
    if ["LMHeadModel", "DoubleHeadsModel"].iter().any(|end| class.ends_with(end)) {
        return Some("CausalLM");
    }
    let (_, task) = class.rsplit_once("For")?;
    match task {
        // Next token prediction with additional inputs.
        "ConditionalGeneration" | "VisionText2Text" | "Generation" => Some("CausalLM"),
        task => task.starts_with(|first: char| first.is_uppercase()).then_some(task),
    }
}

/// `config` with the canonical keys of `family`.
pub(crate) fn canonical(family: &Family, config: Value, files: &Files) -> Result<Value> {
    family.keys.read(config).map_err(|error| {
        let error = Error::new(error.kind(), format!("{} for {}", error.message(), family.name));
        match files.get("config.json") {
            Some(place) => error.at(place),
            None => error.at(files.root()),
        }
    })
}

/// The model type and class of a config; at least one is set.
struct Named<'a> {
    model_type: Option<&'a str>,
    architecture: Option<&'a str>,
}

impl<'a> Named<'a> {
    /// `None` if neither is set.
    fn by(config: &'a Value) -> Option<Self> {
        let model_type = config["model_type"].as_str().filter(|name| !name.is_empty());
        let architecture = config["architectures"][0].as_str();
        (model_type.is_some() || architecture.is_some()).then_some(Self { model_type, architecture })
    }

    /// Whether `family` has the model type, or the class if there is no model type.
    fn matches(&self, family: &Family) -> bool {
        match (self.model_type, self.architecture) {
            (Some(name), _) => family.model_types.contains(&name),
            (None, name) => name.is_some_and(|name| family.architectures.contains(&name)),
        }
    }

    /// Whether `family` matches and has the class, if there is one.
    fn fits(&self, family: &Family) -> bool {
        self.matches(family) && self.architecture.is_none_or(|name| family.architectures.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::weights::Name;

    /// A family with the same model type, for folders with a `kin.json`.
    static KIN: Family = Family {
        name: "kin",
        layout: Some(|files, _| {
            let config = json!({"size": 4});
            Ok(files.get("kin.json").map(|_| Layout { config, weights: Vec::new() }))
        }),
        ..ORIGINAL
    };

    /// A family that recognizes folders with an `original.th`, and loads one vector.
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
    fn a_release_without_a_config_is_recognized_by_its_files() {
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
    fn the_layout_decides_between_families_of_one_model_type() {
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
    fn gguf_files_of_safetensors_only_families_have_their_own_error() {
        let zoo = Zoo::new([&ORIGINAL]);
        let message = |found: &str| zoo.unknown("general.architecture", found, "a.gguf".into()).to_string();
        assert!(message("original").contains("safetensors"), "{}", message("original"));
        assert!(!message("origina").contains("nearest"), "{}", message("origina"));
    }

    #[test]
    fn the_family_without_a_layout_is_the_fallback() {
        static PLAIN: Family = Family { name: "plain", layout: None, ..ORIGINAL };
        let zoo = Zoo::new([&KIN, &PLAIN]);
        let folder = folder_with("config.json", r#"{"model_type": "original"}"#);
        let random = LoadOptions { random_weights: Some(1), ..LoadOptions::default() };
        let family = || zoo.pretrained(folder.path().to_str().unwrap(), &random).unwrap().0.name;
        assert_eq!(family(), "plain");
        std::fs::write(folder.path().join("kin.json"), "{}").unwrap();
        assert_eq!(family(), "kin");
    }

    #[test]
    fn non_finite_numbers_are_errors_where_they_are_used() {
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
            pretrained.generation_config()
        };
        assert_eq!(generation(r#"{"max_time": NaN, "top_k": 5}"#).unwrap()["top_k"], 5);
        let error = generation(r#"{"temperature": NaN}"#).unwrap_err().to_string();
        assert!(
            error.ends_with("generation_config.json: temperature is NaN, expected a finite number"),
            "{error}"
        );
    }

    #[test]
    fn the_model_type_decides_and_heads_of_other_tasks_are_rejected() {
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
    fn an_unrecognized_folder_lacks_a_config() {
        let folder = folder_with("other.json", "{}");
        let error = Zoo::new([&ORIGINAL]).inventory(folder.path().to_str().unwrap(), &LoadOptions::default());
        assert_eq!(error.err().unwrap().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn tensors_of_a_release_without_weights_are_missing() {
        let folder = folder_with("original.th", "");
        let zoo = Zoo::new([&ORIGINAL]);
        let (family, pretrained) =
            zoo.pretrained(folder.path().to_str().unwrap(), &LoadOptions::default()).unwrap();
        let error = (family.inventory)(&pretrained).unwrap_err();
        assert!(error.to_string().contains("missing  vector"), "{error}");
    }
}
