//! Load options, and the config and weights of a checkpoint from which a family builds its network.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value};

use super::{Card, Family, Model};
use crate::adapter::{Adapter, AdapterSpec, TargetModules, is_adapter_only, is_named};
use crate::checkpoint::Checkpoint;
use crate::progress::Reporter;
use crate::runtime::Runtime;
use crate::source::{Files, Finder, Source, Wanted};
use crate::weights::{Attached, Fresh, Inventory, Name, RowOrder, Weights};
use crate::zoo::canonical;
use crate::{Error, Result, json};

/// Options of loading a model. The default loads on the CPU in float32 without progress reports.
#[derive(Clone)]
pub struct LoadOptions {
    /// Device, dtype, weight format.
    pub runtime: Runtime,
    /// Family to use instead of the one determined by the config.
    pub family: Option<String>,
    /// Weight file to use, if there are several, by its name in the repository.
    pub file: Option<String>,
    /// Seed of random weights, used instead of those of the checkpoint; only a config is needed.
    pub random_weights: Option<u64>,
    /// Whether [`random_weights`](Self::random_weights) are initial values for training from nothing: norms are 1,
    /// biases 0, matrices normal with the `initializer_range` of the config.
    pub initialize: bool,
    /// Adapters over the weights, with their scales; they are added up.
    pub adapters: Vec<AdapterSpec>,
    /// Keys that replace those of `config.json`, such as the `architectures` and `id2label` of a new head.
    pub config: Map<String, Value>,
    /// Settings that the release does not contain, named as in the reference implementation, for example the `hps` of
    /// Jukebox. Families ignore unknown settings.
    pub settings: Map<String, Value>,
    /// Finds and downloads the files.
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
            initialize: false,
            adapters: Vec::new(),
            config: Map::new(),
            settings: Map::new(),
            finder: Arc::new(Finder::from_env()),
            progress: Reporter::default(),
        }
    }
}

impl LoadOptions {
    /// The same with this device, number type and weight format.
    pub fn with_runtime(self, runtime: Runtime) -> Self {
        Self { runtime, ..self }
    }

    /// The same with the family of this name, whatever the config says.
    pub fn with_family(self, family: impl Into<String>) -> Self {
        Self { family: Some(family.into()), ..self }
    }

    /// The same with this one of several weight files.
    pub fn with_file(self, file: impl Into<String>) -> Self {
        Self { file: Some(file.into()), ..self }
    }

    /// The same with random weights of this seed in place of a checkpoint's.
    pub fn with_random_weights(self, seed: u64) -> Self {
        Self { random_weights: Some(seed), ..self }
    }

    /// The same with initial values for training from nothing, drawn by `seed`, in place of a checkpoint's.
    pub fn with_initial_weights(self, seed: u64) -> Self {
        Self { random_weights: Some(seed), initialize: true, ..self }
    }

    /// The same with an adapter more.
    pub fn with_adapter(mut self, adapter: AdapterSpec) -> Self {
        self.adapters.push(adapter);
        self
    }

    /// The same with the key `name` of `config.json` replaced by `value`.
    pub fn with_config(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.config.insert(name.into(), value.into());
        self
    }

    /// The same with the setting `name` of the family.
    pub fn with_setting(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// The same, reporting the load to `progress`.
    pub fn with_progress(self, progress: Reporter) -> Self {
        Self { progress, ..self }
    }

    /// The weight files of `files` for a [`Layout`]; empty for random weights, or if there are none.
    ///
    /// # Errors
    /// As [`Files::weights_if_any`].
    pub fn weights_of(&self, files: &Files) -> Result<Vec<PathBuf>> {
        match self.random_weights {
            Some(_) => Ok(Vec::new()),
            None => files.weights_if_any(),
        }
    }

    /// Opens the adapters, each with its scale.
    pub(crate) fn open_adapters(&self) -> Result<Vec<(Adapter, f64)>> {
        let open = |spec: &AdapterSpec| -> Result<(Adapter, f64)> {
            let path = PathBuf::from(&spec.path);
            let adapter = match path.exists() {
                true => Adapter::open(&path)?,
                false => {
                    let files = self.finder.find(&Source::parse(&spec.path)?, &Wanted::adapter())?;
                    Adapter::open(files.root())?
                }
            };
            Ok((adapter, spec.scale))
        };
        self.adapters.iter().map(open).collect()
    }

    /// Checks that an adapter that was trained over another one stands behind it.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) with the adapter that is missing.
    fn check_bases(&self, adapters: &[(Adapter, f64)]) -> Result<()> {
        for (at, (spec, (adapter, _))) in self.adapters.iter().zip(adapters).enumerate() {
            let Some(base) = adapter.base() else { continue };
            let beside = Path::new(&spec.path).join(&base.name);
            let over = if beside.is_dir() { beside } else { PathBuf::from(&base.name) };
            let is_over =
                |other: &AdapterSpec| match (over.canonicalize(), Path::new(&other.path).canonicalize()) {
                    (Ok(over), Ok(other)) => over == other,
                    _ => over == Path::new(&other.path),
                };
            if is_adapter_only(&over) && !self.adapters[..at].iter().any(is_over) {
                let message = format!("{} was trained over the adapter {}", spec.path, over.display());
                return Err(Error::input(message).set(
                    "name that one before it",
                    "LoadOptions::adapters",
                    over.display().to_string(),
                ));
            }
        }
        Ok(())
    }

    /// Finds the files of `source`, with or without weights.
    pub(crate) fn find(&self, source: &str, with_weights: bool) -> Result<Files> {
        let wanted = match (&self.file, with_weights) {
            (_, false) => Wanted::default().without_weights(),
            (Some(file), true) => Wanted::default().file(file),
            (None, true) => Wanted::default(),
        };
        self.finder.find(&Source::parse(source)?, &wanted)
    }
}

/// The config and weight files of a release other than a `config.json` with one set of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The official config, as far as the release contains it.
    pub config: Value,
    /// The files of [`Pretrained::weights`]; empty for a processor without weights. Other weight files are loaded with
    /// [`Pretrained::part`].
    pub weights: Vec<PathBuf>,
}

/// The files, config and weights of a checkpoint, from which a family builds its model.
pub struct Pretrained {
    /// The family that loads it.
    pub family: &'static Family,
    /// The source given by the user.
    pub label: String,
    /// The files of the checkpoint.
    pub files: Files,
    /// The config with canonical keys.
    pub config: Value,
    /// The checkpoint of the weights, for its metadata; `None` for random weights.
    pub checkpoint: Option<Checkpoint>,
    /// The weights.
    pub weights: Weights,
    /// The load options.
    pub options: LoadOptions,
    /// The adapters over all files of the release.
    pub(crate) attached: Arc<Attached>,
    /// The weight files beside those of [`weights`](Self::weights) that were loaded.
    pub(crate) parts: Parts,
}

/// Weight files of a release, each loaded as a part of the network.
#[derive(Debug, Default)]
pub(crate) struct Parts(Mutex<Vec<PartFile>>);

/// A weight file of a part of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartFile {
    /// What is before the names of its tensors in the network; `None` for the file of a network beside this one.
    pub prefix: Option<String>,
    /// The file.
    pub path: PathBuf,
}

impl Parts {
    fn lock(&self) -> MutexGuard<'_, Vec<PartFile>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add(&self, prefix: Option<&str>, path: &Path) {
        let part = PartFile { prefix: prefix.map(str::to_string), path: path.to_path_buf() };
        let mut parts = self.lock();
        if !parts.contains(&part) {
            parts.push(part);
        }
    }

    /// All of them, in the order of loading.
    pub fn all(&self) -> Vec<PartFile> {
        self.lock().clone()
    }
}

impl Pretrained {
    /// With the weights of `checkpoint`, or random weights if set in `options`.
    pub(crate) fn new(
        label: &str,
        files: Files,
        config: Value,
        checkpoint: Option<Checkpoint>,
        family: &'static Family,
        options: &LoadOptions,
    ) -> Result<Self> {
        let adapters = options.open_adapters()?;
        options.check_bases(&adapters)?;
        let attached = Arc::new(Attached::new(adapters));
        if options.random_weights.is_some() && !attached.is_empty() {
            return Err(Error::input("there are adapters, and random weights instead of a base model"));
        }
        let runtime = options.runtime.clone();
        let config = canonical(family, config, &files)?;
        let weights = match (&checkpoint, options.random_weights) {
            (_, Some(seed)) if options.initialize => {
                Weights::fresh(Fresh { seed, deviation: initializer_range(&config) }, runtime)
            }
            (_, Some(seed)) => Weights::seeded(seed, runtime),
            (Some(checkpoint), None) => {
                let weights = Weights::open(checkpoint, family.rename, runtime)?;
                let rows = row_order(&config);
                weights.attach(&attached, family.rename, rows)?.with_progress(&options.progress)
            }
            (None, None) => Weights::empty(label, runtime),
        };
        let options = options.clone();
        let (label, parts) = (label.to_string(), Parts::default());
        Ok(Self { family, label, files, config, checkpoint, weights, options, attached, parts })
    }

    /// Loads the network; the error has all problems of the checkpoint at once.
    pub fn load<M: Model>(&self) -> Result<(M, Inventory)> {
        let config = self.config::<M::Config>()?;
        let model = M::load(config, &self.weights)?;
        let inventory = self.weights.finish()?;
        Ok((model, inventory))
    }

    /// Loads other weight files of this release, with tensors renamed by `rename`, without adapters: for networks that
    /// are no module of this one. Random weights or no weights if [`weights`](Pretrained::weights) are.
    ///
    /// # Errors
    /// As [`Checkpoint::open_files`] and [`Weights::open`].
    pub fn part(&self, paths: &[PathBuf], rename: impl Fn(&str) -> Name) -> Result<Weights> {
        paths.iter().for_each(|path| self.parts.add(None, path));
        let weights = self.unreported(|| Checkpoint::open_files(paths), rename)?;
        Ok(weights.with_progress(&self.options.progress))
    }

    /// Loads weights of this release that are assembled from several files by `open`, with tensors renamed by `rename`.
    /// Random weights or no weights if [`weights`](Pretrained::weights) are.
    ///
    /// # Errors
    /// As `open` and [`Weights::open`].
    pub fn weights_of(
        &self,
        open: impl FnOnce() -> Result<Checkpoint>,
        rename: impl Fn(&str) -> Name,
    ) -> Result<Weights> {
        let open = || -> Result<Checkpoint> {
            let checkpoint = open()?;
            checkpoint.files().iter().for_each(|path| self.parts.add(Some(""), path));
            Ok(checkpoint)
        };
        Ok(self.unreported(open, rename)?.with_progress(&self.options.progress))
    }

    /// The weights of the whole network in several files, each with a part of it and the names of its tensors there;
    /// `rename` renames them below the name of the part. With the adapters.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], [`Weights::open`] and [`Weights::with_adapters`].
    pub fn joined<'a>(
        &self,
        parts: impl IntoIterator<Item = (&'a str, &'a Path)>,
        rename: impl Fn(&str) -> Name,
    ) -> Result<Weights> {
        let parts: Vec<(String, &Path)> =
            parts.into_iter().map(|(part, path)| (format!("{part}."), path)).collect();
        parts.iter().for_each(|(prefix, path)| self.parts.add(Some(prefix), path));
        let weights = self.unreported(|| Checkpoint::of_parts(&parts), &rename)?;
        self.adapted(weights, rename)
    }

    /// The checkpoint of all files of the network: that of [`weights`](Self::weights), or of the files that were
    /// [joined](Self::joined). `None` if there is none.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(crate) fn whole_checkpoint(&self) -> Result<Option<Checkpoint>> {
        if let Some(checkpoint) = &self.checkpoint {
            return Ok(Some(checkpoint.clone()));
        }
        let parts = self.parts.all().into_iter().filter_map(|part| Some((part.prefix?, part.path)));
        let parts: Vec<(String, PathBuf)> = parts.collect();
        match parts.is_empty() {
            true => Ok(None),
            false => Checkpoint::of_parts(&parts).map(Some),
        }
    }

    /// [`weights_of`](Self::weights_of), whose load is not reported yet.
    fn unreported(
        &self,
        open: impl FnOnce() -> Result<Checkpoint>,
        rename: impl Fn(&str) -> Name,
    ) -> Result<Weights> {
        let runtime = self.options.runtime.clone();
        match self.options.random_weights {
            _ if self.weights.is_meta() => Ok(Weights::meta()),
            Some(seed) if self.options.initialize => {
                Ok(Weights::fresh(Fresh { seed, deviation: initializer_range(&self.config) }, runtime))
            }
            Some(seed) => Ok(Weights::seeded(seed, runtime)),
            None => Weights::open(&open()?, rename, runtime),
        }
    }

    /// [`part`](Self::part) of the module at the path `module` of the network, with the adapters over it; the empty path
    /// is that of the network. Parts are loaded before [`weights`](Pretrained::weights) finish, which reports what no file has.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn part_at(&self, module: &str, paths: &[PathBuf], rename: impl Fn(&str) -> Name) -> Result<Weights> {
        let prefix = if module.is_empty() { String::new() } else { format!("{module}.") };
        paths.iter().for_each(|path| self.parts.add(Some(&prefix), path));
        let weights = self.unreported(|| Checkpoint::open_files(paths), &rename)?;
        let weights = weights.attach_to_part(&self.attached, self.within(module, rename))?;
        Ok(weights.with_progress(&self.options.progress))
    }

    /// `weights` of all files of this release, before anything is read, with the adapters; `rename` renames the tensors
    /// of the network, and so the modules of adapters.
    ///
    /// # Errors
    /// As [`Weights::with_adapters`].
    pub fn adapted(&self, weights: Weights, rename: impl Fn(&str) -> Name) -> Result<Weights> {
        Ok(weights.attach(&self.attached, rename, None)?.with_progress(&self.options.progress))
    }

    /// Checks that every update of the adapters was used by one of the loaded files.
    ///
    /// # Errors
    /// [`Mismatch`](crate::ErrorKind::Mismatch) with the modules that this release does not have.
    pub fn check_adapters(&self) -> Result<()> {
        self.attached.check()
    }

    /// `rename` of the names below the module at the path `module` of the network.
    fn within(&self, module: &str, rename: impl Fn(&str) -> Name) -> impl Fn(&str) -> Name {
        let prefix = if module.is_empty() { String::new() } else { format!("{module}.") };
        let family = self.family;
        move |name: &str| {
            let path = match (family.rename)(name) {
                Name::Keep => name.to_string(),
                Name::To(path) => path,
                other => return other,
            };
            match path.strip_prefix(&prefix) {
                Some(inner) => match rename(inner) {
                    Name::Keep => Name::To(inner.to_string()),
                    renamed => renamed,
                },
                None => Name::Ignore,
            }
        }
    }

    /// [`companion`](Self::companion) for the module at the path `module` of this network, with the adapters over it.
    /// It is loaded before [`weights`](Pretrained::weights) finish, which reports what no file has.
    ///
    /// # Errors
    /// As [`companion`](Self::companion).
    pub fn companion_at(&self, module: &str, family: &'static Family, source: &str) -> Result<Pretrained> {
        let mut companion = self.companion(family, source)?;
        if self.attached.is_empty() {
            return Ok(companion);
        }
        let weights = companion.weights.attach_to_part(&self.attached, self.within(module, family.rename))?;
        companion.weights = weights.with_progress(&self.options.progress);
        Ok(companion)
    }

    /// Another release that this one depends on, such as a text encoder that the release does not contain. `source` is
    /// found as a source given by the user. It has no adapters.
    ///
    /// # Errors
    /// As opening `source`.
    pub fn companion(&self, family: &'static Family, source: &str) -> Result<Pretrained> {
        let options = LoadOptions { family: None, file: None, adapters: Vec::new(), ..self.options.clone() };
        let pretrained = || {
            let files = options.find(source, options.random_weights.is_none())?;
            let config = files.config()?;
            let checkpoint = match options.random_weights {
                Some(_) => None,
                None => Some(Checkpoint::open_files(&files.weights()?)?),
            };
            Self::new(source, files, config, checkpoint, family, &options)
        };
        let found =
            pretrained().map_err(|error| error.context(format!("{} depends on {source}", self.label)))?;
        for name in found.files.names() {
            let path = found.files.require(&name)?;
            if path.starts_with(self.files.root()) {
                self.parts.add(None, &path);
            }
        }
        Ok(found)
    }

    /// Deserializes the config.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) for a missing or invalid key.
    pub fn config<C: serde::de::DeserializeOwned>(&self) -> Result<C> {
        json::typed(self.config.clone()).map_err(|e| self.config_error(e.message()))
    }

    /// Reads the JSON file `name`, if it exists.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if it is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        self.files.json(name)
    }

    /// Reads `generation_config.json`; null if it does not exist.
    ///
    /// # Errors
    /// [`Format`](crate::ErrorKind::Format) if it is not JSON, or a number used in decoding is not finite.
    pub fn generation_config(&self) -> Result<Value> {
        let name = "generation_config.json";
        let generation = self.json(name)?.unwrap_or_default();
        let used = [
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
        match used.iter().find(|key| json::is_not_finite(&generation[**key])) {
            None => Ok(generation),
            Some(key) => Err(Error::format(
                self.files.root().join(name),
                format!(
                    "{key} is {}, expected a finite number",
                    generation[*key].as_str().unwrap_or_default()
                ),
            )),
        }
    }

    /// Path of the config, for messages.
    pub fn config_path(&self) -> PathBuf {
        self.files.get("config.json").unwrap_or_else(|| self.label.clone().into())
    }

    /// An error about the config.
    pub fn config_error(&self, message: impl Into<String>) -> Error {
        Error::format(self.config_path(), message)
    }

    /// The first of `architectures` in the config, or `default`.
    pub fn architecture(&self, default: &str) -> String {
        self.config["architectures"][0].as_str().unwrap_or(default).to_string()
    }

    /// The [`Card`] of the checkpoint.
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
            notes: self.other_bases().into_iter().chain(self.incomplete(inventory)).collect(),
        }
    }

    /// A note for each module of the model that an adapter names and has no tensors of.
    fn incomplete(&self, inventory: &Inventory) -> Vec<String> {
        let mut notes = Vec::new();
        for (spec, (adapter, _)) in self.options.adapters.iter().zip(self.attached.adapters()) {
            let has_module = |name: &&str| {
                let modules =
                    inventory.tensors.iter().filter_map(|(tensor, _)| tensor.strip_suffix(".weight"));
                modules.into_iter().any(|module| is_named(module, name))
            };
            let targets = match &adapter.config().target_modules {
                Some(TargetModules::Names(names)) => names.iter().map(String::as_str).collect(),
                _ => Vec::new(),
            };
            let is_updated = |name: &&str| adapter.modules().keys().any(|module| is_named(module, name));
            let saved = adapter.modules_without_tensors().unwrap_or_default();
            for name in targets.into_iter().filter(|name| !is_updated(name)).chain(saved).filter(has_module) {
                notes.push(format!("the adapter {} names {name} and has no tensors of it", spec.path));
            }
        }
        notes
    }

    /// A note for each adapter that names a base model other than this.
    fn other_bases(&self) -> Vec<String> {
        // A model is known by several paths, and by its name at the hub: the last part of all is its own.
        let name = |source: &str| {
            let source = source.split('@').next().unwrap_or(source).trim_end_matches('/');
            source.rsplit('/').next().unwrap_or(source).to_lowercase()
        };
        let own = name(&self.label);
        let specs = self.options.adapters.iter().zip(self.attached.adapters());
        let note = |(spec, (adapter, _)): (&AdapterSpec, &(Adapter, f64))| {
            let base = adapter.base().filter(|base| !is_adapter_only(Path::new(&base.name)))?;
            let beside = Path::new(&spec.path).join(&base.name);
            let is_own = name(&base.name) == own || is_adapter_only(&beside);
            (!is_own).then(|| {
                format!(
                    "the adapter {} was trained for {}, and is applied to {}",
                    spec.path, base.name, self.label
                )
            })
        };
        specs.filter_map(note).collect()
    }
}

/// The standard deviation of initial matrices, as the config or that of its text model says.
fn initializer_range(config: &Value) -> Option<f64> {
    [config, &config["text_config"], &config["decoder"]]
        .into_iter()
        .find_map(|config| config["initializer_range"].as_f64())
        .filter(|range| range.is_finite() && *range > 0.0)
}

/// The order of the rows of queries and keys in a GGUF file, whose heads hold the pairs of the rotary embedding side by
/// side: row `2 i + j` of a head is row `j · width / 2 + i` in the release.
fn row_order(config: &Value) -> Option<RowOrder> {
    let size = |key: &str| config[key].as_u64().map(|size| size as usize);
    let heads = size("num_attention_heads").filter(|_| config["gguf_rope_interleaved"] == true)?;
    let kv_heads = size("num_key_value_heads").unwrap_or(heads);
    Some(Arc::new(move |path: &str, rows: usize| {
        let heads = match path.rsplit('.').nth(1) {
            Some("q_proj") => heads,
            Some("k_proj") => kv_heads,
            _ => return None,
        };
        let width = rows.checked_div(heads).filter(|width| width.is_multiple_of(2) && *width > 0)?;
        let row = |row: usize| (row / width * width + row % 2 * (width / 2) + row % width / 2) as u32;
        Some((0..rows).map(row).collect())
    }))
}
