//! `fauna info`: information about a model, from its config before the download and from its files afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fauna::checkpoint::{Checkpoint, StorageType};
use fauna::nn::block_name;
use fauna::source::{Files, Source, Wanted};
use fauna::weights::{Inventory, Weights};
use fauna::{ErrorKind, Family, LoadOptions, Result};
use serde_json::{Value, json};

use crate::cli::options::ModelArg;
use crate::cli::output::Output;
use crate::cli::table::{self, Table, shorten};
use crate::cli::{Context, Exit};

/// Arguments of `fauna info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna info minilm\n  fauna info openai-community/gpt2 --tensors")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// List every tensor.
    #[arg(long)]
    tensors: bool,
}

/// A file of the checkpoint: name, and size in bytes if known.
type FileSize = (String, Option<u64>);

/// Prints the information. Downloads configs and tokenizers from the Hub, but no weights.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let _stoppable = context.interrupt.hold();
    let source = Source::parse(&args.model.source)?;
    let finder = context.finder();
    let mut wanted = Wanted::default();
    if let Some(file) = &context.loading.finding.weights {
        wanted = wanted.file(file);
    }
    let (files, sizes) = match &source {
        Source::Hub(repo) => {
            let files = finder.find(&source, &wanted.without_weights())?;
            let listed = finder.list(repo)?.files;
            (files, listed.into_iter().map(|file| (file.path, file.size)).collect())
        }
        _ => {
            let files = finder.find(&source, &wanted)?;
            let sizes = sizes_of(&files);
            (files, sizes)
        }
    };
    // Without local weights, the tensors are derived from the config.
    let checkpoint = match files.weights() {
        Ok(weights) => Some(Checkpoint::open_files(&of_the_network(&files, weights))?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let options = context.options()?;
    let (planned, config) = match &checkpoint {
        None => (Some(fauna::inventory(&args.model.source, &options)?), files.json("config.json")?),
        Some(_) => match planned(&args.model.source, &options) {
            Ok((family, inventory, config)) => (Some((family, inventory)), Some(config)),
            Err(error) => {
                context.say(&format!("cannot derive the tensors from the config: {error}"));
                (None, files.json("config.json")?)
            }
        },
    };
    let texts = match (&planned, &config) {
        (Some((family, _)), Some(config)) => texts(family, &files, config, &options),
        _ => Vec::new(),
    };
    let found = Found { source: &args.model.source, planned, config, texts, sizes, checkpoint };
    let mut output = Output::stdout();
    match context.globals.json {
        true => output.json(&found.json(args.tensors))?,
        false => found.print(args.tensors, &mut output)?,
    }
    output.finish()?;
    Ok(Exit::Done)
}

/// Returns `weights` without those in subfolders, unless there are no others.
fn of_the_network(files: &Files, weights: Vec<PathBuf>) -> Vec<PathBuf> {
    let top: Vec<PathBuf> =
        weights.iter().filter(|path| path.parent() == Some(files.root())).cloned().collect();
    if top.is_empty() { weights } else { top }
}

/// Returns the family, the tensors and the config of a local checkpoint; the config may be GGUF metadata.
fn planned(source: &str, options: &LoadOptions) -> Result<(&'static Family, Inventory, Value)> {
    let (family, mut pretrained) = fauna::pretrained(source, options)?;
    pretrained.weights = Weights::meta();
    Ok((family, (family.inventory)(&pretrained)?, pretrained.config))
}

/// Returns how a sentence-embedding model embeds texts; empty for other families.
#[cfg(feature = "text")]
fn texts(
    family: &Family,
    files: &Files,
    config: &Value,
    options: &LoadOptions,
) -> Vec<(&'static str, String)> {
    if family.name != fauna::text::bert::FAMILY.name {
        return Vec::new();
    }
    let described = fauna::text::bert::embedding_summary(files, config, &options.settings);
    described.unwrap_or_else(|error| vec![("vectors", format!("none: {error}"))])
}

#[cfg(not(feature = "text"))]
fn texts(_: &Family, _: &Files, _: &Value, _: &LoadOptions) -> Vec<(&'static str, String)> {
    Vec::new()
}

struct Found<'a> {
    source: &'a str,
    planned: Option<(&'static Family, Inventory)>,
    config: Option<Value>,
    /// How texts are embedded: names and values.
    texts: Vec<(&'static str, String)>,
    sizes: Vec<FileSize>,
    checkpoint: Option<Checkpoint>,
}

impl Found<'_> {
    fn parameters(&self) -> u64 {
        match (&self.planned, &self.checkpoint) {
            (Some((_, inventory)), _) => inventory.parameters,
            (None, Some(checkpoint)) => checkpoint.iter().map(|(_, stored)| stored.elements() as u64).sum(),
            (None, None) => 0,
        }
    }

    /// Returns name, shape and storage type of every tensor; the type is unknown if only the config is available.
    fn tensors(&self) -> Vec<(String, Vec<usize>, String)> {
        match (&self.checkpoint, &self.planned) {
            (Some(checkpoint), _) => checkpoint
                .iter()
                .map(|(name, stored)| (name.to_string(), stored.shape.clone(), storage(stored.storage)))
                .collect(),
            (None, Some((_, inventory))) => inventory
                .tensors
                .iter()
                .map(|(name, shape)| (name.clone(), shape.clone(), String::new()))
                .collect(),
            (None, None) => Vec::new(),
        }
    }

    /// Returns the number of tensors of each storage type.
    fn storages(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, _, storage) in self.tensors() {
            *counts.entry(storage).or_default() += 1;
        }
        counts
    }

    fn print(&self, with_tensors: bool, output: &mut Output) -> Result<()> {
        let mut table = Table::default();
        table.row(["source", self.source]);
        if let Some((family, _)) = &self.planned {
            let release = family.releases.iter().find(|release| release.id == self.source);
            let list = |modalities: &[fauna::Modality]| {
                modalities.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            table.row(["system", release.map_or(family.systems[0], |release| release.system)]);
            table.row(["family", &format!("{} ({})", family.name, family.paper)]);
            table.row(["inputs", &list(family.inputs)]);
            table.row(["outputs", &list(family.outputs)]);
            table.row(["licence", release.map_or("unknown", |release| release.licence)]);
        }
        let weights = match &self.checkpoint {
            None => "not downloaded; sizes are from the config".to_string(),
            Some(_) => {
                let storages = self.storages();
                storages
                    .iter()
                    .map(|(storage, count)| format!("{count} in {storage}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            }
        };
        table.row([
            "parameters",
            &format!("{} in {} tensors", table::count(self.parameters()), self.tensors().len()),
        ]);
        table.row(["weights", &weights]);
        self.texts.iter().for_each(|(name, value)| table.row([*name, value]));
        let config = self.config.iter().flat_map(|config| config.as_object()).flatten();
        let known = config.filter(|(_, value)| !value.is_null());
        for (i, (key, value)) in known.enumerate() {
            let value = format!("{key} = {value}");
            table.row([if i == 0 { "config" } else { "" }, &shorten(&value, 90)]);
        }
        for (i, (name, size)) in self.sizes.iter().enumerate() {
            let size = size.map_or("size unknown".to_string(), table::bytes);
            table.row([if i == 0 { "files" } else { "" }, &format!("{name}  {size}")]);
        }
        table.lines().into_iter().try_for_each(|line| output.line(line))?;
        if with_tensors {
            let mut table = Table::default();
            for (name, shape, storage) in self.tensors() {
                table.row([name, format!("{shape:?}"), storage]);
            }
            table.lines().into_iter().try_for_each(|line| output.line(line))?;
        }
        Ok(())
    }

    fn json(&self, with_tensors: bool) -> Value {
        let files: Vec<_> =
            self.sizes.iter().map(|(name, size)| json!({"name": name, "bytes": size})).collect();
        let mut object = json!({
            "source": self.source,
            "family": self.planned.as_ref().map(|(family, _)| family.name),
            "systems": self.planned.as_ref().map(|(family, _)| family.systems),
            "parameters": self.parameters(),
            "tensors": self.tensors().len(),
            "downloaded": self.checkpoint.is_some(),
            "stored": self.checkpoint.as_ref().map(|_| self.storages()),
            "texts": self.texts.iter().cloned().collect::<BTreeMap<_, _>>(),
            "config": self.config,
            "files": files,
        });
        if with_tensors {
            let tensor = |(name, shape, storage)| json!({"name": name, "shape": shape, "stored": storage});
            object["all_tensors"] = self.tensors().into_iter().map(tensor).collect();
        }
        object
    }
}

fn storage(storage: StorageType) -> String {
    match storage {
        StorageType::Block(kind) => block_name(kind),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn sizes_of(files: &Files) -> Vec<FileSize> {
    let size = |name: &str| files.get(name).and_then(|path: PathBuf| Some(path.metadata().ok()?.len()));
    files.names().into_iter().map(|name| (name.clone(), size(&name))).collect()
}
