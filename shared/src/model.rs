//! The traits every family implements, and the registry's types.
//!
//! Loading is one trait, [`Model`]. What a model can do is a second, small one: [`Encode`] or [`Decode`]. What
//! everybody can ask of anything is one object-safe face, [`Exhibit`]. A family tells the zoo about itself with one
//! constant, a [`Family`].

use std::ops::ControlFlow;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::generate::Decoding;
use crate::item::{Embeddings, Item, Modality, Prompt, Tensors};
use crate::source::Files;
use crate::weights::{Inventory, Name, Weights};
use crate::{Error, ErrorKind, Result};

/// One family: how a config and its tensors become a network.
pub trait Model: Sized + Send + Sync {
    /// Hyper-parameters, as the official config spells them.
    type Config: DeserializeOwned;

    /// Builds the network, asking `weights` for every tensor by its official name.
    fn load(config: Self::Config, weights: &Weights) -> Result<Self>;
}

/// Items of one modality to vectors, one row each.
pub trait Encode {
    /// What is encoded.
    type Input;

    /// One row for each of `batch`, in order.
    fn encode(&self, batch: &[Self::Input]) -> Result<Embeddings>;
}

/// A prompt to a stream of pieces: words, image codes, seconds of sound, actions.
pub trait Decode {
    /// What is continued.
    type Prompt;
    /// What comes out, piece by piece.
    type Piece;

    /// Hands each piece to `each` as it is made, until the model ends, `options` end it, or `each` breaks.
    fn decode(
        &self,
        prompt: &Self::Prompt,
        options: &Decoding,
        each: &mut dyn FnMut(Self::Piece) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// What any opened model answers, whatever its modality.
pub trait Exhibit: Send + Sync {
    /// System, modalities, size, source, licence.
    fn card(&self) -> &Card;

    /// The reference's own forward pass: tensors in and out by the reference's own names, integers as int64.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if a name is not among those the model knows; the message lists them.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors>;

    /// A method of the reference by its own name (`forward`, `generate`, `encode`, `decode`, …), with arguments that
    /// are not tensors in `options`. What parity and serving use.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let _ = options;
        match method {
            "forward" => self.forward(inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// One vector an item.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let _ = items;
        Err(self.cannot("embed"))
    }

    /// Continues `prompt`, handing each piece to `each` as it is made; `each` may break to cancel.
    fn generate(
        &self,
        prompt: &Prompt,
        options: &Decoding,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = (prompt, options, each);
        Err(self.cannot("generate"))
    }

    /// The error of an ability this model lacks.
    fn cannot(&self, ability: &str) -> Error {
        let card = self.card();
        let list =
            |modalities: &[Modality]| modalities.iter().map(|m| m.to_string()).collect::<Vec<_>>().join(", ");
        Error::unsupported(format!("{} cannot {ability}", card.source)).hint(format!(
            "it is a {} of the {} family: {} in, {} out",
            card.architecture,
            card.family,
            list(&card.inputs),
            list(&card.outputs)
        ))
    }
}

/// What a person wants to know about an opened model.
#[derive(Debug, Clone, Serialize)]
pub struct Card {
    /// What the user named: a folder, a file, a hub id.
    pub source: String,
    /// The system of the zoo it stands for: "BERT", "Llemma".
    pub system: String,
    /// The family that loads it.
    pub family: &'static str,
    /// The class of the reference, as the config's `architectures` names it.
    pub architecture: String,
    /// What it reads.
    pub inputs: Vec<Modality>,
    /// What it writes.
    pub outputs: Vec<Modality>,
    /// Numbers in its weights.
    pub parameters: u64,
    /// The longest input in tokens, if there is a longest.
    pub context: Option<usize>,
    /// The licence of the weights, where the registry knows it.
    pub licence: Option<&'static str>,
    /// What users must know: limits of use, what was cut.
    pub notes: Vec<String>,
}

/// One family as the zoo knows it: what it answers to, what it can do, how it opens.
pub struct Family {
    /// A short name: `bert`.
    pub name: &'static str,
    /// The systems of the zoo it stands for.
    pub systems: &'static [&'static str],
    /// The paper, as authors and year with its number.
    pub paper: &'static str,
    /// The `model_type`s of `config.json` it answers to.
    pub model_types: &'static [&'static str],
    /// The `architectures` of `config.json` it implements.
    pub architectures: &'static [&'static str],
    /// The `general.architecture`s of GGUF files it answers to.
    pub gguf: &'static [&'static str],
    /// What it reads.
    pub inputs: &'static [Modality],
    /// What it writes.
    pub outputs: &'static [Modality],
    /// Released checkpoints.
    pub releases: &'static [Release],
    /// The config of a GGUF file in the official spelling, from the file's metadata.
    pub config_of_gguf: Option<fn(&crate::checkpoint::Checkpoint) -> Result<Value>>,
    /// What the tensors of a release are called in the model file.
    pub rename: fn(&str) -> Name,
    /// Walks the tensors without a tokenizer or any other file: what a checkpoint of this config holds.
    pub inventory: fn(&Opening) -> Result<Inventory>,
    /// Builds the exhibit.
    pub open: fn(&Opening) -> Result<Box<dyn Exhibit>>,
    /// A small config of the family, every branch awake, for the sweep over all families.
    pub sample: fn() -> Value,
}

/// A released checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Release {
    /// Its name on the hub.
    pub id: &'static str,
    /// The system it belongs to.
    pub system: &'static str,
    /// Its size in words: "110M".
    pub size: &'static str,
    /// The licence of its weights.
    pub licence: &'static str,
}

/// All that a family needs to open one checkpoint.
pub struct Opening {
    /// What the user named.
    pub label: String,
    /// The files beside the weights.
    pub files: Files,
    /// The official config.
    pub config: Value,
    /// The checkpoint the weights come from, for what its metadata says of tokenizers; none for test weights.
    pub checkpoint: Option<crate::checkpoint::Checkpoint>,
    /// The tensors.
    pub weights: Weights,
}

impl Opening {
    /// Loads the network and ends the load, reporting every problem of the checkpoint at once.
    pub fn load<M: Model>(&self) -> Result<(M, Inventory)> {
        let config = self.config::<M::Config>()?;
        let model = M::load(config, &self.weights)?;
        let inventory = self.weights.finish()?;
        Ok((model, inventory))
    }

    /// The config as a family's own type.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) naming the key that is missing or wrong.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C> {
        serde_json::from_value(self.config.clone()).map_err(|e| self.config_error(e.to_string()))
    }

    /// The JSON file `name` beside the weights, if it is there.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) if it is there and is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(path) = self.files.get(name) else { return Ok(None) };
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::format(&path, format!("not JSON: {e}")))
    }

    /// An error about the config.
    pub fn config_error(&self, message: impl Into<String>) -> Error {
        let place = self.files.get("config.json").unwrap_or_else(|| self.label.clone().into());
        Error::format(place, message)
    }

    /// The class the config names, or `default`.
    pub fn architecture(&self, default: &str) -> String {
        self.config["architectures"][0].as_str().unwrap_or(default).to_string()
    }

    /// A card with what the opening knows.
    pub fn card(&self, family: &Family, architecture: &str, inventory: &Inventory) -> Card {
        let (id, _revision) = self.label.split_once('@').unwrap_or((&self.label, ""));
        let release = family.releases.iter().find(|release| release.id == id);
        Card {
            source: self.label.clone(),
            system: release.map_or(family.systems[0], |r| r.system).to_string(),
            family: family.name,
            architecture: architecture.to_string(),
            inputs: family.inputs.to_vec(),
            outputs: family.outputs.to_vec(),
            parameters: inventory.parameters,
            context: None,
            licence: release.map(|r| r.licence),
            notes: Vec::new(),
        }
    }
}

/// Refuses inputs whose names are not in `known`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) that names the stranger and lists what is known.
pub fn only_known(inputs: &Tensors, known: &[&str]) -> Result<()> {
    match inputs.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::new(ErrorKind::Input, format!("no input is called \"{name}\""))
            .hint(format!("known: {}", known.join(", ")))),
    }
}

/// The largest size a config may name: products of two still fit the machine's integers.
const LARGEST_SIZE: usize = 1 << 31;

/// Refuses a config whose sizes are zero or absurd, before anything is multiplied or reserved by them.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) that names the key.
///
/// ```
/// use fauna_shared::model::check_sizes;
/// assert!(check_sizes(&[("hidden_size", 768)]).is_ok());
/// assert!(check_sizes(&[("hidden_size", usize::MAX)]).is_err());
/// ```
pub fn check_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > LARGEST_SIZE) {
        None => Ok(()),
        Some((key, size)) => Err(Error::unsupported(format!("{key} is {size}"))
            .hint(format!("a size from 1 to {LARGEST_SIZE} is wanted"))),
    }
}

/// Refuses `heads` heads that do not share `width` evenly.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) that names both keys.
pub fn check_heads(width: (&str, usize), heads: (&str, usize)) -> Result<()> {
    check_sizes(&[width, heads])?;
    match width.1.is_multiple_of(heads.1) {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "{} {} is not a multiple of {} {}",
            width.0, width.1, heads.0, heads.1
        ))),
    }
}
