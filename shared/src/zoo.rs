//! The one door: from what a person names to an opened model, over any list of families.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::nearest;
use crate::model::{Exhibit, Family, Opening};
use crate::runtime::Runtime;
use crate::source::{Files, Finder, Source, Wanted};
use crate::weights::{Inventory, Weights};
use crate::{Error, ErrorKind, Result};

/// How to open a model. The default opens on the CPU in float32 and shows no progress.
#[derive(Clone)]
pub struct Options {
    /// Device, number type, weight format.
    pub runtime: Runtime,
    /// The family to use whatever the config says.
    pub family: Option<String>,
    /// Which of several weight files to use, by its name in the repository.
    pub file: Option<String>,
    /// Weights made from this seed in place of the checkpoint's: only a config is needed.
    pub random_weights: Option<u64>,
    /// Where files are found and downloaded from.
    pub finder: Arc<Finder>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            runtime: Runtime::cpu(),
            family: None,
            file: None,
            random_weights: None,
            finder: Arc::new(Finder::from_env()),
        }
    }
}

impl Options {
    /// The files of `source`, with or without its weights.
    fn find(&self, source: &str, with_weights: bool) -> Result<Files> {
        let wanted = match (&self.file, with_weights) {
            (_, false) => Wanted::default().without_weights(),
            (Some(file), true) => Wanted::default().file(file),
            (None, true) => Wanted::default(),
        };
        self.finder.find(&Source::parse(source)?, &wanted)
    }
}

/// A list of families that open through one door.
#[derive(Clone)]
pub struct Zoo {
    families: Vec<&'static Family>,
}

impl Zoo {
    /// Over these families.
    pub fn new(families: impl IntoIterator<Item = &'static Family>) -> Self {
        Self { families: families.into_iter().collect() }
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
    pub fn open(&self, source: &str, options: &Options) -> Result<Box<dyn Exhibit>> {
        let (family, opening) = self.opening(source, options)?;
        (family.open)(&opening)
    }

    /// What a checkpoint of this config holds, without its weights: names, shapes, count of parameters.
    ///
    /// # Errors
    /// As [`open`](Zoo::open), save what is wrong with the weights.
    pub fn inventory(&self, source: &str, options: &Options) -> Result<(&'static Family, Inventory)> {
        let files = options.find(source, false)?;
        let (config, _) = self.config(&files, None, options)?;
        let family = self.family_of(&config, &files, options)?;
        let opening = Opening {
            label: source.to_string(),
            files,
            config,
            checkpoint: None,
            weights: Weights::nothing(),
        };
        // The tokenizer may not be there before the download; the walk over the tensors is all that is asked.
        let inventory = (family.inventory)(&opening)?;
        Ok((family, inventory))
    }

    /// All that is needed to build the model that `source` names as a family's own type.
    ///
    /// # Errors
    /// As [`open`](Zoo::open), save what is wrong between the config and the tensors.
    pub fn opening(&self, source: &str, options: &Options) -> Result<(&'static Family, Opening)> {
        let files = options.find(source, options.random_weights.is_none())?;
        let checkpoint = match options.random_weights {
            Some(_) => None,
            None => Some(Checkpoint::open_files(&files.weights()?)?),
        };
        let (config, checkpoint) = self.config(&files, checkpoint, options)?;
        let family = self.family_of(&config, &files, options)?;
        let weights = match (&checkpoint, options.random_weights) {
            (_, Some(seed)) => Weights::seeded(seed, options.runtime.clone()),
            (Some(checkpoint), None) => Weights::open(checkpoint, family.rename, options.runtime.clone())?,
            (None, None) => Weights::nothing(),
        };
        Ok((family, Opening { label: source.to_string(), files, config, checkpoint, weights }))
    }

    /// The config: `config.json`, or a GGUF file's own metadata brought to the official spelling.
    fn config(
        &self,
        files: &Files,
        checkpoint: Option<Checkpoint>,
        options: &Options,
    ) -> Result<(Value, Option<Checkpoint>)> {
        // Files of `fauna quantize` hold the official names, and the official config lies beside them.
        if let Some(open) = &checkpoint
            && let Some(architecture) =
                open.metadata().get("general.architecture").and_then(|value| value.as_str())
            && architecture != "fauna"
        {
            let family = match &options.family {
                Some(name) => self.by_name(name)?,
                None => self
                    .families
                    .iter()
                    .find(|family| family.gguf.contains(&architecture))
                    .copied()
                    .ok_or_else(|| {
                        self.unknown("general.architecture", architecture, open.files()[0].clone())
                    })?,
            };
            if let Some(config_of_gguf) = family.config_of_gguf {
                return Ok((config_of_gguf(open)?, checkpoint));
            }
        }
        let path = files.require("config.json")?;
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let config: Value =
            serde_json::from_slice(&text).map_err(|e| Error::format(&path, format!("not JSON: {e}")))?;
        if !config.is_object() {
            return Err(Error::format(&path, "a config is an object, this is not"));
        }
        Ok((config, checkpoint))
    }

    fn by_name(&self, name: &str) -> Result<&'static Family> {
        let known = || self.families.iter().map(|family| family.name);
        self.families.iter().find(|family| family.name == name).copied().ok_or_else(|| {
            Error::input(format!("no family is called \"{name}\""))
                .hint(format!("known: {}", known().collect::<Vec<_>>().join(", ")))
        })
    }

    fn family_of(&self, config: &Value, files: &Files, options: &Options) -> Result<&'static Family> {
        if let Some(name) = &options.family {
            return self.by_name(name);
        }
        let model_type = config["model_type"].as_str();
        let architecture = config["architectures"][0].as_str();
        let answers = |family: &&&'static Family| match (model_type, architecture) {
            (Some(model_type), _) => family.model_types.contains(&model_type),
            (None, Some(architecture)) => family.architectures.contains(&architecture),
            (None, None) => false,
        };
        let place = files.get("config.json").unwrap_or_default();
        let family =
            self.families.iter().find(answers).copied().ok_or_else(|| match (model_type, architecture) {
                (Some(name), _) => self.unknown("model_type", name, place.clone()),
                (None, Some(name)) => self.unknown("architectures", name, place.clone()),
                (None, None) => {
                    Error::format(&place, "neither model_type nor architectures says what this is")
                        .hint("name the family: --family NAME; all of them: fauna list")
                }
            })?;
        match architecture {
            Some(name) if !family.architectures.contains(&name) => {
                Err(Error::unsupported(format!("the {} family has no architecture \"{name}\"", family.name))
                    .at(place)
                    .hint(format!("known: {}", family.architectures.join(", "))))
            }
            _ => Ok(family),
        }
    }

    fn unknown(&self, key: &str, found: &str, place: PathBuf) -> Error {
        let known = self.families.iter().flat_map(|f| f.model_types.iter().chain(f.gguf)).copied();
        let near = nearest(found, known);
        let error =
            Error::new(ErrorKind::Unsupported, format!("no family loads {key} \"{found}\"")).at(place);
        let error = match near.is_empty() {
            true => error.hint("all of them: fauna list"),
            false => error.hint(format!("nearest  {}      all of them: fauna list", near.join(", "))),
        };
        error.hint("if it is one of these under another name: --family NAME")
    }
}
