//! OpenAI's files: the encoder and the decoder as pickled modules. The config follows from the shapes of the tensors.

use std::path::PathBuf;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{Layout, LoadOptions, Model, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::{Config, Dvae};

/// The parts, each in a file of its name.
const PARTS: [&str; 2] = ["encoder", "decoder"];

/// Maps the release's tensor names: `w` and `b` to `weight` and `bias`.
pub fn rename(name: &str) -> Name {
    match name.rsplit_once('.') {
        Some((path, "w")) => Name::To(format!("{path}.weight")),
        Some((path, "b")) => Name::To(format!("{path}.bias")),
        _ => Name::Keep,
    }
}

/// The file of a part, if it exists and the user did not choose the other one.
fn file(files: &Files, part: &str) -> Option<PathBuf> {
    let name = format!("{part}.pkl");
    let chosen = files.choice().is_none_or(|choice| name.contains(choice));
    files.get(&name).filter(|_| chosen)
}

/// The layout of a folder with `encoder.pkl`, `decoder.pkl` or both, or of one of these files.
///
/// # Errors
/// If a file is damaged or of another model.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let found: Vec<_> = PARTS.iter().filter_map(|part| Some((*part, file(files, part)?))).collect();
    if found.is_empty() || files.get("config.json").is_some() {
        return Ok(None);
    }
    let mut config = json!({"model_type": "dall_e", "architectures": ["DiscreteVAE"]});
    for (part, path) in found {
        config[part] = match options.random_weights {
            Some(_) => json!({}),
            None => sizes(part, &Checkpoint::open(&path)?).ok_or_else(|| {
                Error::format(&path, format!("not the {part} of OpenAI's discrete VAE"))
                    .hint("expected blocks.input, blocks.group_1 to blocks.group_4 and blocks.output.conv")
            })?,
        };
    }
    Ok(Some(Layout { config, weights: Vec::new() }))
}

/// The config of a part by the shapes of its tensors; `None` if they are missing.
fn sizes(part: &str, file: &Checkpoint) -> Option<Value> {
    let input = file.get("blocks.input.w").filter(|stored| stored.shape.len() == 4)?;
    let output = file.get("blocks.output.conv.w").filter(|stored| stored.shape.len() == 4)?;
    let block = |i: usize| format!("blocks.group_1.block_{i}.res_path.conv_1.w");
    let blocks = (1..).take_while(|i| file.get(&block(*i)).is_some()).count();
    Some(match part {
        "encoder" => json!({
            "n_hid": input.shape[0], "vocab_size": output.shape[0], "n_blk_per_group": blocks,
        }),
        _ => json!({
            "n_init": input.shape[0], "vocab_size": input.shape[1], "n_hid": output.shape[1],
            "n_blk_per_group": blocks,
        }),
    })
}

/// A loaded network.
pub(super) struct Loaded {
    pub network: Dvae,
    pub inventory: Inventory,
    /// The weights of OpenAI's files, with the names of the parts before those of the tensors.
    pub files: Option<Weights>,
}

/// Loads the network from OpenAI's files or from a checkpoint of both parts.
pub(super) fn load(pretrained: &Pretrained) -> Result<Loaded> {
    let paths = PARTS.map(|part| file(&pretrained.files, part));
    let stored = paths.iter().any(Option::is_some) && pretrained.checkpoint.is_none();
    if !stored || pretrained.files.get("config.json").is_some() {
        let (network, inventory) = pretrained.load::<Dvae>()?;
        return Ok(Loaded { network, inventory, files: None });
    }
    let mut config: Config = pretrained.config()?;
    for (path, part) in paths.iter().zip([&mut config.encoder, &mut config.decoder]) {
        if path.is_none() {
            *part = None;
        }
    }
    let parts = PARTS.iter().zip(&paths).filter_map(|(part, path)| Some((*part, path.as_deref()?)));
    let weights = pretrained.joined(parts, rename)?;
    let network = Dvae::load(config, &weights)?;
    Ok(Loaded { network, inventory: weights.finish()?, files: Some(weights) })
}

/// The tensors of a checkpoint of this config.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(load(pretrained)?.inventory)
}

/// A small config that covers every branch.
pub(crate) fn sample() -> Value {
    let coder = json!({"n_hid": 8, "n_blk_per_group": 2, "n_init": 12, "vocab_size": 32});
    json!({"model_type": "dall_e", "architectures": ["DiscreteVAE"], "encoder": coder, "decoder": coder})
}
