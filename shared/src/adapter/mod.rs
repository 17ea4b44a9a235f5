//! Adapters: small updates of a base model, as the `peft` library writes them.
//!
//! An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`. For each
//! targeted module it has two factors, whose product is added to the module's weight
//! ([LoRA, Hu et al. 2021](https://arxiv.org/abs/2106.09685)); [`merge`] does so, also with DoRA. It may also have
//! tensors that replace those of the base model ([`Adapter::saved`]): trained heads, biases, resized embeddings, and those
//! of [`NON_LORA`]. They are replaced first.
//!
//! [`Adapter::open`] reads what changes the outputs or refuses it by name, and [`Adapter::write`] writes a folder that
//! `peft` loads.

mod config;
mod lora;
mod names;
mod pattern;
mod spec;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

pub(crate) use config::is_named;
pub use config::{AdapterConfig, HARMLESS, Selection, TargetModules, TrainedBias};
pub use lora::{Kind, LoraTensors, Parts, merge, merge_bias, stored};
use names::{Named, Role};
pub use spec::AdapterSpec;

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::first_five;
use crate::{Error, ErrorKind, Result, json};

/// The file name of the config.
pub const CONFIG: &str = "adapter_config.json";
/// The file name of keys that replace those of the base model's config, such as the `id2label` of a trained head. Not
/// one of peft's files, which leaves it alone.
pub const BASE_CONFIG: &str = "base_config.json";
/// The file name of tensors of the base model that were trained in full beside the adapter, as LLaVA's training writes
/// them (Liu et al. 2023, `llava/train/train.py`). The `config.json` beside it is that of the model with them.
pub const NON_LORA: &str = "non_lora_trainables.bin";
/// The file names of the tensors, in order of preference.
pub const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// The base model that an adapter names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModel {
    /// Hub id, or path on the machine of the training.
    pub name: String,
    /// Revision on the hub.
    pub revision: Option<String>,
}

impl fmt::Display for BaseModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Whether `folder` has an adapter and no model beside it.
pub fn is_adapter_only(folder: &Path) -> bool {
    let has_model = folder.join("config.json").exists() && !folder.join(NON_LORA).exists();
    folder.join(CONFIG).is_file() && !has_model
}

/// The file beside the adapter in `folder` whose keys replace those of the base model's config, if there is one.
pub(crate) fn base_config(folder: &Path) -> Option<PathBuf> {
    let own = folder.join(BASE_CONFIG);
    let whole = folder.join("config.json");
    let candidates = [Some(own), Some(whole).filter(|_| folder.join(NON_LORA).exists())];
    candidates.into_iter().flatten().find(|path| path.is_file())
}

/// The base model that the adapter in `folder` names; `None` if it names none. The rest of its config is not looked at.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no adapter in `folder`, [`ErrorKind::Format`] if its config is not JSON.
pub fn wanted_base(folder: &Path) -> Result<Option<BaseModel>> {
    let config = json::read(folder.join(CONFIG))?;
    let text = |key: &str| config[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Ok(text("base_model_name_or_path").map(|name| BaseModel { name, revision: text("revision") }))
}

/// An adapter: the updates of its modules, and the tensors of the base model that it replaces.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: AdapterConfig,
    selection: Selection,
    modules: BTreeMap<String, LoraTensors>,
    saved: BTreeMap<String, StoredTensor>,
}

impl Adapter {
    /// Opens the adapter in the folder `path`, or whose config or weights `path` is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none, with the adapters in the folders below;
    /// [`Unsupported`](ErrorKind::Unsupported) with the key or tensor for what is not implemented;
    /// [`Mismatch`](ErrorKind::Mismatch) with the module if tensors are missing, or do not fit each other or the
    /// config; [`Format`](ErrorKind::Format) if a file is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = folder_of(path)?;
        let place = folder.join(CONFIG);
        let config = json::read(&place).and_then(AdapterConfig::parse).map_err(|e| e.at(&place))?;
        let weights = WEIGHTS.map(|name| folder.join(name)).into_iter().find(|path| path.exists());
        let weights = weights.ok_or_else(|| {
            let message = format!("no {} or {} beside the config", WEIGHTS[0], WEIGHTS[1]);
            Error::new(ErrorKind::NotFound, message).at(&folder).hint("copy all files of the adapter")
        })?;
        let checkpoint = Checkpoint::open(&weights)?;
        let tensors = checkpoint.iter().map(|(name, stored)| (name.to_owned(), stored.clone()));
        let (parts, mut saved) = sorted(tensors).map_err(|error| error.at(&weights))?;
        let beside = folder.join(NON_LORA);
        if beside.exists() {
            add_trained_in_full(&mut saved, &Checkpoint::open(&beside)?)
                .map_err(|error| error.at(&beside))?;
        }
        Self::new(config, parts, saved).map_err(|error| error.at(&weights))
    }

    /// The adapter with `config`, the updates `parts` by the paths of their modules, and the replaced tensors `saved` by
    /// their names in the base model.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn new(
        config: AdapterConfig,
        parts: BTreeMap<String, Parts>,
        saved: BTreeMap<String, StoredTensor>,
    ) -> Result<Self> {
        let selection = Selection::new(&config)?;
        if parts.is_empty() && saved.is_empty() {
            return Err(Error::new(ErrorKind::Mismatch, "the adapter has no tensors"));
        }
        let mut modules = BTreeMap::new();
        for (module, parts) in parts {
            agrees(&config, &selection, &module, &parts)?;
            modules.insert(module.clone(), LoraTensors::new(&selection, &module, parts)?);
        }
        Ok(Self { config, selection, modules, saved })
    }

    /// The config.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The modules that the config targets.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The updates by the paths of their modules (`model.layers.0.self_attn.q_proj`).
    pub fn modules(&self) -> &BTreeMap<String, LoraTensors> {
        &self.modules
    }

    /// The tensors that replace those of the base model, by their names there, before updates are added.
    pub fn saved(&self) -> &BTreeMap<String, StoredTensor> {
        &self.saved
    }

    /// The name or path of the base model.
    pub fn base(&self) -> Option<BaseModel> {
        let name = self.config.base_model_name_or_path.clone()?;
        Some(BaseModel { name, revision: self.config.revision.clone() })
    }

    /// The names in `modules_to_save` without tensors. For classifiers peft lists several names, of which the base model
    /// has one; a module of the base model with such a name is missing from the adapter.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if a pattern takes too long.
    pub fn modules_without_tensors(&self) -> Result<Vec<&str>> {
        self.selection.without_tensors(self.saved.keys().map(String::as_str))
    }

    /// Writes the adapter to `folder` as `peft` does: `adapter_config.json` and `adapter_model.safetensors`. The folder
    /// is created if missing. Both files are complete before they replace those that are there.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if writing fails; [`ErrorKind::Input`] if `folder` is a file, or if patterns overlap so that
    /// the order in the file, which is sorted, gives a module another rank or scale.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.survives_sorting()?;
        write::write(folder, &self.config, &self.tensors())
    }

    /// All tensors by their names in the file.
    fn tensors(&self) -> BTreeMap<String, &StoredTensor> {
        let mut tensors = BTreeMap::new();
        for (module, update) in &self.modules {
            let Parts { kind, a, b, bias, magnitude } = update.parts();
            let all = [
                (Role::A, Some(a)),
                (Role::B, Some(b)),
                (Role::Bias, bias.as_ref()),
                (Role::Magnitude, magnitude.as_ref()),
            ];
            let present = all.into_iter().filter_map(|(role, tensor)| Some((role, tensor?)));
            tensors.extend(present.map(|(role, tensor)| (names::of_update(module, role, *kind), tensor)));
        }
        let name = |name: &str| names::of_saved(name, |module| self.modules.contains_key(module));
        tensors.extend(self.saved.iter().map(|(key, tensor)| (name(key), tensor)));
        tensors
    }

    /// Checks that the config in the file, whose patterns are sorted, gives every module the same rank and scale.
    fn survives_sorting(&self) -> Result<()> {
        let read = Selection::new(&AdapterConfig::parse(self.config.to_json())?)?;
        for (module, update) in &self.modules {
            if (read.rank(module)?, read.scaling(module)?) != (update.rank(), update.scaling()) {
                let message = format!("{module}: several keys of rank_pattern or alpha_pattern match");
                return Err(Error::input(message).hint(
                    "the file has them sorted, so that another would count: write keys that do not overlap",
                ));
            }
        }
        Ok(())
    }
}

/// The folder of the adapter that `path` names.
fn folder_of(path: &Path) -> Result<PathBuf> {
    let is_file_of_adapter = path
        .file_name()
        .is_some_and(|name| std::iter::once(CONFIG).chain(WEIGHTS).any(|known| name == known));
    let folder = match path.is_file() && is_file_of_adapter {
        true => path.parent().unwrap_or(Path::new("")).to_path_buf(),
        false => path.to_path_buf(),
    };
    if folder.join(CONFIG).is_file() {
        return Ok(folder);
    }
    let error = Error::new(ErrorKind::NotFound, format!("no adapter: there is no {CONFIG}")).at(&folder);
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut below: Vec<String> = entries
        .filter(|entry| entry.path().join(CONFIG).is_file())
        .map(|entry| entry.path().display().to_string())
        .collect();
    below.sort();
    Err(match (below.is_empty(), folder.is_dir()) {
        (false, _) => error.hint("name one of the adapters in it").hint(first_five(below)),
        (true, true) => error.hint("an adapter is a folder as save_pretrained of peft writes it"),
        (true, false) => error.hint("the folder does not exist"),
    })
}

/// What is known of a module's update while its tensors are collected.
#[derive(Default)]
struct Collected {
    a: Option<(Kind, StoredTensor)>,
    b: Option<(Kind, StoredTensor)>,
    bias: Option<StoredTensor>,
    magnitude: Option<StoredTensor>,
}

/// Updates by module and replaced tensors by name.
type Sorted = (BTreeMap<String, Parts>, BTreeMap<String, StoredTensor>);

/// Sorts the tensors of a file into updates and replaced tensors.
fn sorted(tensors: impl Iterator<Item = (String, StoredTensor)>) -> Result<Sorted> {
    let mut modules: BTreeMap<String, Collected> = BTreeMap::new();
    let mut saved: BTreeMap<String, StoredTensor> = BTreeMap::new();
    let mut unread = Vec::new();
    for (name, tensor) in tensors {
        match names::parse(&name) {
            Named::Update(module, role, kind) => {
                let collected = modules.entry(module).or_default();
                let twice = match role {
                    Role::A => collected.a.replace((kind, tensor)).is_some(),
                    Role::B => collected.b.replace((kind, tensor)).is_some(),
                    Role::Bias => collected.bias.replace(tensor).is_some(),
                    Role::Magnitude => collected.magnitude.replace(tensor).is_some(),
                };
                if twice {
                    return Err(Error::new(ErrorKind::Mismatch, format!("tensor {name} is there twice")));
                }
            }
            Named::Saved(path) => match saved.get(&path) {
                Some(other) if !is_same(other, &tensor) => {
                    let message = format!("tensor {path} is there twice, with different values");
                    return Err(Error::new(ErrorKind::Mismatch, message));
                }
                _ => _ = saved.insert(path, tensor),
            },
            Named::Original => {}
            Named::Unknown => unread.push(name),
        }
    }
    if !unread.is_empty() {
        let message = format!("{} tensors are not of a LoRA adapter", unread.len());
        return Err(Error::unsupported(message).hint(first_five(unread)));
    }
    let modules = modules.into_iter().map(|(module, collected)| {
        let parts = complete(&module, collected)?;
        Ok((module, parts))
    });
    Ok((modules.collect::<Result<_>>()?, saved))
}

/// Adds the tensors of a file [`NON_LORA`] to `saved`. Their names are those in the model of peft, or in the base model,
/// where LLaVA's training may have the wrapper `model.` twice.
fn add_trained_in_full(saved: &mut BTreeMap<String, StoredTensor>, file: &Checkpoint) -> Result<()> {
    for (name, tensor) in file.iter() {
        let plain = ["base_model.model.", "base_model."].iter().find_map(|prefix| name.strip_prefix(prefix));
        let plain = plain.unwrap_or_else(|| match name.strip_prefix("model.") {
            Some(inner) if inner.starts_with("model.") => inner,
            _ => name,
        });
        let path = match names::parse(&names::of_saved(plain, |_| false)) {
            Named::Saved(path) => path,
            _ => return Err(Error::unsupported(format!("{name} is not a tensor of the base model"))),
        };
        match saved.get(&path) {
            Some(other) if !is_same(other, tensor) => {
                let message = format!("tensor {path} is in the adapter too, with different values");
                return Err(Error::new(ErrorKind::Mismatch, message));
            }
            _ => _ = saved.insert(path, tensor.clone()),
        }
    }
    Ok(())
}

fn is_same(one: &StoredTensor, other: &StoredTensor) -> bool {
    (one.storage, &one.shape, &*one.bytes) == (other.storage, &other.shape, &*other.bytes)
}

/// Both factors of a module, of one kind.
fn complete(module: &str, collected: Collected) -> Result<Parts> {
    let missing = |factor: &str| {
        let message = format!("{module}: the adapter has no factor {factor}");
        Error::new(ErrorKind::Mismatch, message).hint("the file is incomplete")
    };
    let (kind, a) = collected.a.ok_or_else(|| missing("A"))?;
    let (other, b) = collected.b.ok_or_else(|| missing("B"))?;
    if kind != other {
        let message = format!("{module}: one factor is of an embedding, the other is not");
        return Err(Error::new(ErrorKind::Mismatch, message));
    }
    let kind = if kind == Kind::Linear && a.shape.len() > 2 { Kind::Conv } else { kind };
    Ok(Parts { kind, a, b, bias: collected.bias, magnitude: collected.magnitude })
}

/// Checks that the config targets the module, and has set what its tensors are for.
fn agrees(config: &AdapterConfig, selection: &Selection, module: &str, parts: &Parts) -> Result<()> {
    let mismatch = |message: String| Error::new(ErrorKind::Mismatch, message);
    for (key, set, found) in [
        ("use_dora", config.use_dora, parts.magnitude.is_some()),
        ("lora_bias", config.lora_bias, parts.bias.is_some()),
    ] {
        let tensor = if key == "use_dora" { "a vector of magnitudes" } else { "a bias of the update" };
        let message = match (set, found) {
            (true, false) => format!("{module}: {key} is set, but there is not {tensor}"),
            (false, true) => format!("{module}: there is {tensor}, but {key} is not set"),
            _ => continue,
        };
        return Err(mismatch(message).hint("config and weights are of different adapters"));
    }
    if !selection.targets(module)? {
        let message = format!("{module}: the adapter has factors, but its config does not target the module");
        return Err(
            mismatch(message).hint("target_modules, exclude_modules, layers_to_transform, modules_to_save")
        );
    }
    Ok(())
}
