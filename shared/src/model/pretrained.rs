//! From files on disk to what a family needs to build its network.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Card, Family, Model};
use crate::checkpoint::Checkpoint;
use crate::progress::Reporter;
use crate::runtime::Runtime;
use crate::source::{Files, Finder, Source, Wanted};
use crate::weights::{Inventory, Name, Weights};
use crate::zoo::canonical;
use crate::{Error, Result, json};

/// How to open a model. The default opens on the CPU in float32 and shows no progress.
#[derive(Clone)]
pub struct LoadOptions {
    /// Device, number type, weight format.
    pub runtime: Runtime,
    /// The family to use whatever the config says.
    pub family: Option<String>,
    /// Which of several weight files to use, by its name in the repository.
    pub file: Option<String>,
    /// Weights made from this seed in place of the checkpoint's: only a config is needed.
    pub random_weights: Option<u64>,
    /// What the release does not say of itself and the caller knows, by the names the reference uses: the `hps` of
    /// Jukebox's files, for example. Families read what they know and leave the rest.
    pub settings: Map<String, Value>,
    /// Where files are found and downloaded from.
    pub finder: Arc<Finder>,
    /// Where the bytes of the weights are reported as they are loaded. It may cancel: the load then ends with
    /// [`Cancelled`](crate::ErrorKind::Cancelled). Downloads have their own, [`Finder::with_progress`].
    pub progress: Reporter,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            runtime: Runtime::cpu(),
            family: None,
            file: None,
            random_weights: None,
            settings: Map::new(),
            finder: Arc::new(Finder::from_env()),
            progress: Reporter::default(),
        }
    }
}

impl LoadOptions {
    /// The weight files among `files` for a [`Layout`]: none where weights are made up, or there are none yet.
    ///
    /// # Errors
    /// As [`Files::weights_if_any`].
    pub fn weights_of(&self, files: &Files) -> Result<Vec<PathBuf>> {
        match self.random_weights {
            Some(_) => Ok(Vec::new()),
            None => files.weights_if_any(),
        }
    }

    /// The files of `source`, with or without its weights.
    pub(crate) fn find(&self, source: &str, with_weights: bool) -> Result<Files> {
        let wanted = match (&self.file, with_weights) {
            (_, false) => Wanted::default().without_weights(),
            (Some(file), true) => Wanted::default().file(file),
            (None, true) => Wanted::default(),
        };
        self.finder.find(&Source::parse(source)?, &wanted)
    }
}

/// What a family makes of a release that is not one `config.json` beside one set of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The config in the official spelling, as far as the release tells it.
    pub config: Value,
    /// The files that together hold the weights of [`Pretrained::weights`]; none for a bare processor. What is better
    /// kept apart is left to [`Pretrained::part`].
    pub weights: Vec<PathBuf>,
}

/// All that a family needs to open one checkpoint.
pub struct Pretrained {
    /// The family that opens it.
    pub family: &'static Family,
    /// What the user named.
    pub label: String,
    /// The files beside the weights.
    pub files: Files,
    /// The official config.
    pub config: Value,
    /// The checkpoint the weights come from, for what its metadata says of tokenizers; none for test weights.
    pub checkpoint: Option<Checkpoint>,
    /// The tensors.
    pub weights: Weights,
    /// How the user opens it.
    pub options: LoadOptions,
}

impl Pretrained {
    /// With the weights of `checkpoint` in the names of `family`, or with test weights if `options` ask for them.
    pub(crate) fn new(
        label: &str,
        files: Files,
        config: Value,
        checkpoint: Option<Checkpoint>,
        family: &'static Family,
        options: &LoadOptions,
    ) -> Result<Self> {
        let runtime = options.runtime.clone();
        let weights = match (&checkpoint, options.random_weights) {
            (_, Some(seed)) => Weights::seeded(seed, runtime),
            (Some(checkpoint), None) => {
                Weights::open(checkpoint, family.rename, runtime)?.with_progress(&options.progress)
            }
            (None, None) => Weights::none(label, runtime),
        };
        let options = options.clone();
        let config = canonical(family, config, &files)?;
        Ok(Self { family, label: label.to_string(), files, config, checkpoint, weights, options })
    }

    /// Loads the network and ends the load, reporting every problem of the checkpoint at once.
    pub fn load<M: Model>(&self) -> Result<(M, Inventory)> {
        let config = self.config::<M::Config>()?;
        let model = M::load(config, &self.weights)?;
        let inventory = self.weights.finish()?;
        Ok((model, inventory))
    }

    /// The tensors of other weight files of this release, each under the name that `rename` gives it. Test weights if
    /// the user wants those; nothing if [`weights`](Pretrained::weights) are nothing.
    ///
    /// # Errors
    /// As [`Checkpoint::open_files`] and [`Weights::open`].
    pub fn part(&self, paths: &[PathBuf], rename: impl Fn(&str) -> Name) -> Result<Weights> {
        let runtime = self.options.runtime.clone();
        match self.options.random_weights {
            _ if self.weights.is_nothing() => Ok(Weights::nothing()),
            Some(seed) => Ok(Weights::seeded(seed, runtime)),
            None => {
                let weights = Weights::open(&Checkpoint::open_files(paths)?, rename, runtime)?;
                Ok(weights.with_progress(&self.options.progress))
            }
        }
    }

    /// Another release that this one stands on, found as the user's own are: the text encoder that an original
    /// release does not store.
    ///
    /// # Errors
    /// As opening it by name.
    pub fn companion(&self, family: &'static Family, source: &str) -> Result<Pretrained> {
        let options = LoadOptions { family: None, file: None, ..self.options.clone() };
        let pretrained = || {
            let files = options.find(source, options.random_weights.is_none())?;
            let config = files.config()?;
            let checkpoint = match options.random_weights {
                Some(_) => None,
                None => Some(Checkpoint::open_files(&files.weights()?)?),
            };
            Self::new(source, files, config, checkpoint, family, &options)
        };
        pretrained().map_err(|error| error.context(format!("{} stands on {source}", self.label)))
    }

    /// The config as a family's own type.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) naming the key that is missing or wrong.
    pub fn config<C: serde::de::DeserializeOwned>(&self) -> Result<C> {
        json::typed(self.config.clone()).map_err(|e| self.config_error(e.message()))
    }

    /// The JSON file `name` beside the weights, if it is there.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if it is there and is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        self.files.json(name)
    }

    /// `generation_config.json`; null if there is none.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if it is not JSON, or a number that decoding would follow is not finite.
    pub fn generation(&self) -> Result<Value> {
        let name = "generation_config.json";
        let generation = self.json(name)?.unwrap_or_default();
        let followed = [
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "guidance_scale",
            "max_length",
            "max_new_tokens",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ];
        match followed.iter().find(|key| json::is_not_finite(&generation[**key])) {
            None => Ok(generation),
            Some(key) => Err(Error::format(
                self.files.root().join(name),
                format!(
                    "{key} is {}, a finite number is wanted",
                    generation[*key].as_str().unwrap_or_default()
                ),
            )),
        }
    }

    /// Where the config stands, for messages.
    pub fn config_place(&self) -> PathBuf {
        self.files.get("config.json").unwrap_or_else(|| self.label.clone().into())
    }

    /// An error about the config.
    pub fn config_error(&self, message: impl Into<String>) -> Error {
        Error::format(self.config_place(), message)
    }

    /// The class the config names, or `default`.
    pub fn architecture(&self, default: &str) -> String {
        self.config["architectures"][0].as_str().unwrap_or(default).to_string()
    }

    /// A card of what is known of the checkpoint before it runs.
    pub fn card(&self, architecture: &str, inventory: &Inventory) -> Card {
        let family = self.family;
        let (id, _revision) = self.label.split_once('@').unwrap_or((&self.label, ""));
        let release = family.releases.iter().find(|release| release.id == id);
        Card {
            source: self.label.clone(),
            system: release.map_or(family.systems[0], |r| r.system).to_string(),
            family: family.name,
            architecture: architecture.to_string(),
            inputs: family.inputs.to_vec(),
            outputs: family.outputs.to_vec(),
            task: None,
            parameters: inventory.parameters,
            context: None,
            licence: release.map(|r| r.licence),
            notes: Vec::new(),
        }
    }
}
