//! Merging adapters into a model.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use serde_json::json;

use super::save::write_checkpoint;
use crate::adapter::{self, Adapter, LoraTensors};
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::model::Pretrained;
use crate::weights::{Inventory, MatrixUse, Name, widen};
use crate::zoo::{LoadOptions, Zoo, replaced_keys};
use crate::{Error, ErrorKind, Result};

/// Writes the model `source` with the adapters of `options` merged into its weights as a whole checkpoint to `folder`,
/// which is replaced if `replace`. Returns the number of tensors that the adapters changed.
///
/// # Errors
/// As [`Zoo::open`]; [`Input`](ErrorKind::Input) if there is no adapter, or `folder` exists and `replace` is not set;
/// [`Unsupported`](ErrorKind::Unsupported) for GGUF files, and with the name of a tensor that the files of a release in a
/// layout of its own cannot take;
/// [`Io`](ErrorKind::Io) if writing fails.
pub fn merge(zoo: &Zoo, source: &str, options: &LoadOptions, folder: &Path, replace: bool) -> Result<usize> {
    match (folder.exists(), replace) {
        (false, _) => {}
        (true, true) => check_replaceable(source, options, folder)?,
        (true, false) => {
            return Err(Error::input("the output folder exists").at(folder).set(
                "choose another folder, or replace it",
                "QuantizeOptions::replace",
                "true",
            ));
        }
    }
    let (family, mut pretrained) = zoo.pretrained(source, options)?;
    let adapters = pretrained.attached.adapters().to_vec();
    if adapters.is_empty() {
        return Err(Error::input("there is no adapter to merge").set(
            "name one",
            "LoadOptions::adapters",
            "PATH",
        ));
    }
    // The load checks that every update fits a weight, and tells how each is used.
    let inventory = (family.inventory)(&pretrained)?;
    pretrained.check_adapters()?;
    if pretrained.files.names().iter().any(|name| name.contains('/')) {
        // It reads the files of the networks beside this one, which are written too.
        drop((family.open)(&pretrained)?);
    }
    let merged =
        Merge { pretrained: &pretrained, inventory: &inventory, rename: family.rename }.all(&adapters)?;
    let count = merged.len();
    pretrained.options.config = replaced_keys(&pretrained.options)?;
    if merged.keys().any(|name| inventory.tied.iter().any(|(_, head)| name == head)) {
        pretrained.options.config.insert("tie_word_embeddings".into(), json!(false));
    }
    write_checkpoint(&pretrained, &merged, folder)?;
    Ok(count)
}

/// Checks that `folder` is a checkpoint, and not the model or an adapter that is merged.
fn check_replaceable(source: &str, options: &LoadOptions, folder: &Path) -> Result<()> {
    let whole = |path: &Path| path.canonicalize().ok();
    let read = options.adapters.iter().map(|adapter| adapter.path.as_str()).chain([source]);
    if let Some(input) =
        read.into_iter().find(|input| whole(Path::new(input)).is_some_and(|path| Some(path) == whole(folder)))
    {
        return Err(Error::input(format!("{input} is merged, and cannot be replaced by the result"))
            .at(folder)
            .hint("choose another folder"));
    }
    match folder.join("config.json").is_file() {
        true => Ok(()),
        false => {
            Err(Error::input("the folder is no checkpoint that could be replaced, it has no config.json")
                .at(folder)
                .hint("choose another folder"))
        }
    }
}

struct Merge<'a> {
    pretrained: &'a Pretrained,
    inventory: &'a Inventory,
    rename: fn(&str) -> Name,
}

impl Merge<'_> {
    /// The changed tensors by their names in the checkpoint.
    fn all(&self, adapters: &[(Adapter, f64)]) -> Result<BTreeMap<String, Var>> {
        let checkpoint = self.pretrained.whole_checkpoint()?;
        let checkpoint = checkpoint.ok_or_else(|| Error::input("the model has no weights to merge into"))?;
        let original = self.by_path(&checkpoint, &[])?;
        let stored = self.by_path(&checkpoint, adapters)?;
        // The head keeps the table without what adapters change of it.
        let head = |table: &str| original.get(table).map(|(_, weight)| dense(weight)).transpose();
        let mut updates: BTreeMap<String, Vec<(&LoraTensors, f64)>> = BTreeMap::new();
        for (adapter, scale) in adapters {
            for (module, update) in adapter.modules() {
                let path = self.path(&format!("{module}.weight"));
                updates.entry(path).or_default().push((update, *scale));
            }
        }
        let mut changed = BTreeMap::new();
        for (path, updates) in &updates {
            let tied = self.inventory.tied.iter().find(|(table, head)| path == table || path == head);
            let held = tied.map_or(path, |(table, _)| table);
            let (official, weight) = stored.get(held.as_str()).ok_or_else(|| {
                Error::new(ErrorKind::Mismatch, format!("the checkpoint has no tensor {held}"))
            })?;
            let is_head = tied.is_some_and(|(_, head)| path == head);
            let table = if is_head { head(held)? } else { None };
            let weight = table.map_or_else(|| dense(weight), Ok)?;
            let transposed = self.inventory.matrices.get(path) == Some(&MatrixUse::TransposedLinear);
            let merged = adapter::merge(&weight, transposed, updates)?;
            match tied {
                Some((_, head)) if is_head => _ = changed.insert(head.clone(), Var::from_tensor(&merged)?),
                _ => _ = changed.insert(official.clone(), Var::from_tensor(&merged)?),
            }
            self.bias(path, updates, &stored, &mut changed)?;
        }
        for (adapter, _) in adapters {
            for (name, tensor) in adapter.saved() {
                let path = self.path(name);
                let official =
                    stored.get(path.as_str()).map_or(path.clone(), |(official, _)| official.clone());
                changed.entry(official).or_insert(Var::from_tensor(&dense(tensor)?)?);
            }
        }
        for (table, name) in &self.inventory.tied {
            let changes = stored.get(table).is_some_and(|(official, _)| changed.contains_key(official));
            if changes
                && !changed.contains_key(name)
                && let Some(weight) = head(table)?
            {
                changed.insert(name.clone(), Var::from_tensor(&weight)?);
            }
        }
        Ok(changed)
    }

    /// Merges the biases of `updates` of the weight at `path`.
    fn bias(
        &self,
        path: &str,
        updates: &[(&LoraTensors, f64)],
        stored: &BTreeMap<String, (String, StoredTensor)>,
        changed: &mut BTreeMap<String, Var>,
    ) -> Result<()> {
        if updates.iter().all(|(update, _)| update.parts().bias.is_none()) {
            return Ok(());
        }
        let path = format!("{}bias", path.strip_suffix("weight").unwrap_or(path));
        let Some((official, bias)) = stored.get(&path) else {
            let message = format!("the adapter has a bias for {path}, which the model does not have");
            return Err(Error::unsupported(message).hint("open the model with the adapter instead"));
        };
        let merged = adapter::merge_bias(&dense(bias)?, updates)?;
        changed.insert(official.clone(), Var::from_tensor(&merged)?);
        Ok(())
    }

    /// The tensors of the checkpoint by the paths by which the model reads them, with those that adapters replace.
    fn by_path(
        &self,
        checkpoint: &Checkpoint,
        adapters: &[(Adapter, f64)],
    ) -> Result<BTreeMap<String, (String, StoredTensor)>> {
        let mut stored = BTreeMap::new();
        for (official, tensor) in checkpoint.iter() {
            stored.insert(self.path(official), (official.to_string(), tensor.clone()));
        }
        for (name, tensor) in adapters.iter().flat_map(|(adapter, _)| adapter.saved()) {
            let path = self.path(name);
            let official = stored.get(&path).map_or(path.clone(), |(official, _)| official.clone());
            stored.insert(path, (official, tensor.clone()));
        }
        Ok(stored)
    }

    fn path(&self, name: &str) -> String {
        match (self.rename)(name) {
            Name::To(path) => path,
            _ => name.to_string(),
        }
    }
}

fn dense(stored: &StoredTensor) -> Result<Tensor> {
    Ok(Tensor::from_vec(widen(stored)?, stored.shape.as_slice(), &Device::Cpu)?)
}
