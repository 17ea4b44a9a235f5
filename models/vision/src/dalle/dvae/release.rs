//! OpenAI's files: each side a whole module, pickled. Sizes follow from the tensors.

use std::path::PathBuf;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::model::{Layout, LoadOptions, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::super::joined;
use super::{Config, Dvae};

/// The sides, each in a file of its name.
const SIDES: [&str; 2] = ["encoder", "decoder"];

/// What the release calls `w` and `b`.
pub fn rename(name: &str) -> Name {
    match name.rsplit_once('.') {
        Some((path, "w")) => Name::To(format!("{path}.weight")),
        Some((path, "b")) => Name::To(format!("{path}.bias")),
        _ => Name::Keep,
    }
}

/// The file of a side, if it is there and the user did not name the other one.
fn file(files: &Files, side: &str) -> Option<PathBuf> {
    let name = format!("{side}.pkl");
    let chosen = files.choice().is_none_or(|choice| name.contains(choice));
    files.get(&name).filter(|_| chosen)
}

/// A folder with `encoder.pkl`, `decoder.pkl` or both, or one of these files.
///
/// # Errors
/// What is wrong with the files.
pub fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let found: Vec<_> = SIDES.iter().filter_map(|side| Some((*side, file(files, side)?))).collect();
    if found.is_empty() || files.get("config.json").is_some() {
        return Ok(None);
    }
    let mut config = json!({"model_type": "dall_e", "architectures": ["DiscreteVAE"]});
    for (side, path) in found {
        config[side] = match options.random_weights {
            Some(_) => json!({}),
            None => sizes(side, &Checkpoint::open(&path)?).ok_or_else(|| {
                Error::format(&path, format!("not the {side} of OpenAI's discrete VAE"))
                    .hint("wanted blocks.input, blocks.group_1 to blocks.group_4 and blocks.output.conv")
            })?,
        };
    }
    Ok(Some(Layout { config, weights: Vec::new() }))
}

/// The sizes of a side; none if its tensors are not there.
fn sizes(side: &str, file: &Checkpoint) -> Option<Value> {
    let input = file.get("blocks.input.w").filter(|stored| stored.shape.len() == 4)?;
    let output = file.get("blocks.output.conv.w").filter(|stored| stored.shape.len() == 4)?;
    let block = |i: usize| format!("blocks.group_1.block_{i}.res_path.conv_1.w");
    let blocks = (1..).take_while(|i| file.get(&block(*i)).is_some()).count();
    Some(match side {
        "encoder" => json!({
            "n_hid": input.shape[0], "vocab_size": output.shape[0], "n_blk_per_group": blocks,
        }),
        _ => json!({
            "n_init": input.shape[0], "vocab_size": input.shape[1], "n_hid": output.shape[1],
            "n_blk_per_group": blocks,
        }),
    })
}

/// The network, from OpenAI's files or from a checkpoint of both sides.
pub(super) fn load(pretrained: &Pretrained) -> Result<(Dvae, Inventory)> {
    let paths = SIDES.map(|side| file(&pretrained.files, side));
    let stored = paths.iter().any(Option::is_some) && pretrained.checkpoint.is_none();
    if !stored || pretrained.files.get("config.json").is_some() {
        return pretrained.load::<Dvae>();
    }
    let mut config: Config = pretrained.config()?;
    let part = |path: &Option<PathBuf>| -> Result<Weights> {
        match path {
            Some(path) => pretrained.part(std::slice::from_ref(path), rename),
            None => Ok(pretrained.weights.clone()),
        }
    };
    let [encoder, decoder] = [part(&paths[0])?, part(&paths[1])?];
    for (there, side) in paths.iter().zip([&mut config.encoder, &mut config.decoder]) {
        if there.is_none() {
            *side = None;
        }
    }
    let network = Dvae::from_sides(&config, &encoder, &decoder)?;
    let there = paths.iter().zip(SIDES).zip([encoder, decoder]).filter(|((path, _), _)| path.is_some());
    let parts = there.map(|((_, side), weights)| Ok((side, weights.finish()?)));
    Ok((network, joined(parts.collect::<Result<Vec<_>>>()?)))
}

/// What a checkpoint of this config holds.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(load(pretrained)?.1)
}

/// A small codec with every branch.
pub(crate) fn sample() -> Value {
    let side = json!({"n_hid": 8, "n_blk_per_group": 2, "n_init": 12, "vocab_size": 32});
    json!({"model_type": "dall_e", "architectures": ["DiscreteVAE"], "encoder": side, "decoder": side})
}
