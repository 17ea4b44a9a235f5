//! Names of releases, their configs, and the tensor names of older ones.

use fauna_shared::error::first_five;
use fauna_shared::model::{Layout, LoadOptions, Model, Pretrained};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

use super::{Config, Orb};

/// The name of the family, and of its configs.
pub(crate) const NAME: &str = "orb";

/// A release and its config.
struct KnownRelease {
    name: &'static str,
    kind: Kind,
    layers: usize,
    neighbours: usize,
}

/// Kind of a release.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    V2,
    Direct,
    /// Conditioned on charge and spin, without stress.
    DirectMolecules,
    Conservative,
    /// Conditioned on charge and spin.
    ConservativeMolecules,
    /// With latent charges.
    Electrostatics,
}

const fn known(name: &'static str, kind: Kind, layers: usize, neighbours: usize) -> KnownRelease {
    KnownRelease { name, kind, layers, neighbours }
}

/// All releases.
const KNOWN: [KnownRelease; 22] = [
    known("orb-v3-conservative-inf-omat", Kind::Conservative, 5, 120),
    known("orb-v3-conservative-20-omat", Kind::Conservative, 5, 20),
    known("orb-v3-conservative-inf-mpa", Kind::Conservative, 5, 120),
    known("orb-v3-conservative-20-mpa", Kind::Conservative, 5, 20),
    known("orb-v3-conservative-omol", Kind::ConservativeMolecules, 5, 120),
    known("orb-v3-direct-inf-omat", Kind::Direct, 5, 120),
    known("orb-v3-direct-20-omat", Kind::Direct, 5, 20),
    known("orb-v3-direct-inf-mpa", Kind::Direct, 5, 120),
    known("orb-v3-direct-20-mpa", Kind::Direct, 5, 20),
    known("orb-v3-direct-omol", Kind::DirectMolecules, 5, 120),
    known("orbmol-v1-conservative", Kind::ConservativeMolecules, 5, 120),
    known("orbmol-v1-direct", Kind::DirectMolecules, 5, 120),
    known("orbmol-v2", Kind::Electrostatics, 5, 120),
    known("separate-d3-3layer", Kind::Direct, 3, 120),
    known("separate-d3-5layer", Kind::Direct, 5, 120),
    known("separate-d4-3layer", Kind::Direct, 3, 120),
    known("separate-d4-5layer", Kind::Direct, 5, 120),
    known("orb-mptraj-only-v2", Kind::V2, 15, 20),
    known("orb-d3-sm-v2", Kind::V2, 10, 20),
    known("orb-d3-xs-v2", Kind::V2, 5, 20),
    known("orb-d3-v2", Kind::V2, 15, 20),
    known("orb-v2", Kind::V2, 15, 20),
];

/// Releases of v1, which the reference has removed.
const REMOVED: [&str; 6] =
    ["orb-v1", "orb-d3-v1", "orb-d3-sm-v1", "orb-d3-xs-v1", "orb-mptraj-only-v1", "orb-v1-mptraj-only"];

/// Whether a file stem is that of the release `name`, with or without a date.
fn is_named(stem: &str, name: &str) -> bool {
    stem.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn known_by(stem: &str) -> Option<&'static KnownRelease> {
    KNOWN.iter().find(|known| is_named(stem, known.name))
}

/// The release of a file by its name.
pub(crate) fn release_of(file: &str) -> Option<&'static str> {
    let stem = file.rsplit('/').next()?.strip_suffix(".ckpt")?;
    known_by(stem).map(|known| known.name)
}

/// The config of a release.
fn config_of(known: &KnownRelease) -> Value {
    let architecture = match known.kind {
        Kind::V2 => "orb_v2",
        Kind::Direct | Kind::DirectMolecules => "orb_v3_direct",
        Kind::Conservative | Kind::ConservativeMolecules | Kind::Electrostatics => "orb_v3_conservative",
    };
    let is_second = known.kind == Kind::V2;
    let is_mean = matches!(known.kind, Kind::Conservative | Kind::ConservativeMolecules);
    json!({
        "model_type": NAME,
        "architecture": architecture,
        "latent_dim": 256,
        "base_mlp_hidden_dim": if is_second { 512 } else { 1024 },
        "base_mlp_depth": 2,
        "head_mlp_hidden_dim": 256,
        "head_mlp_depth": 1,
        "num_message_passing_steps": known.layers,
        "activation": if is_second { "ssp" } else { "silu" },
        "has_charge_spin_cond": matches!(
            known.kind,
            Kind::DirectMolecules | Kind::ConservativeMolecules | Kind::Electrostatics
        ),
        "has_stress": known.kind != Kind::DirectMolecules,
        "has_electrostatics": known.kind == Kind::Electrostatics,
        "radius": 6.0,
        "max_num_neighbors": known.neighbours,
        "zbl_node_aggregation": if is_mean { "mean" } else { "sum" },
    })
}

/// A `.ckpt` with the name of a release, alone or in a folder; or any with a `config.json` of builder arguments.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for a release of v1, [`Input`](ErrorKind::Input) for a folder of
/// several releases.
pub(crate) fn layout(files: &Files, options: &LoadOptions) -> Result<Option<Layout>> {
    let config = match files.get("config.json") {
        Some(_) => {
            let mut config = files.config()?;
            let is_ours = config["architecture"].as_str().is_some_and(|name| name.starts_with("orb_"));
            if !is_ours || config["model_type"].is_string() {
                return Ok(None);
            }
            config["model_type"] = json!(NAME);
            Some(config)
        }
        None => by_name(files)?.map(config_of),
    };
    let Some(config) = config else { return Ok(None) };
    Ok(Some(Layout { config, weights: options.weights_of(files)? }))
}

/// The release by the names of the files.
fn by_name(files: &Files) -> Result<Option<&'static KnownRelease>> {
    let names = match files.choice() {
        Some(choice) => vec![choice.to_string()],
        None => files.names(),
    };
    let stems = names.iter().filter(|name| !name.contains('/')).filter_map(|name| name.strip_suffix(".ckpt"));
    let stems: Vec<&str> = stems.collect();
    if let Some(first) = stems.iter().find(|stem| REMOVED.iter().any(|name| is_named(stem, name))) {
        return Err(Error::unsupported(format!("{first} is an Orb v1, which is not implemented"))
            .hint("it was replaced by orb-v2 and orb-v3"));
    }
    let found: Vec<&KnownRelease> = stems.iter().filter_map(|stem| known_by(stem)).collect();
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(Error::input("the folder has several releases of Orb").at(files.root()).hint(format!(
            "name one of these files\n{}",
            first_five(stems.iter().map(|stem| format!("{stem}.ckpt")))
        ))),
    }
}

/// Prefixes of tensor names of older releases and of newer ones.
const LEGACY: [(&str, &str); 5] = [
    ("node_head.", "heads.forces."),
    ("graph_head.", "heads.energy."),
    ("stress_head.", "heads.stress."),
    ("heads.stress.diag_normaliser.", "heads.stress.diag_normalizer."),
    ("heads.stress.offdiag_normaliser.", "heads.stress.offdiag_normalizer."),
];

/// The name of a tensor in newer releases.
pub(super) fn current_name(name: &str) -> String {
    LEGACY.iter().fold(name.to_string(), |name, (old, new)| match name.strip_prefix(old) {
        Some(rest) => format!("{new}{rest}"),
        None => name,
    })
}

/// Renames a tensor to the name of newer releases.
pub(crate) fn rename(name: &str) -> Name {
    match current_name(name) {
        today if today == name => Name::Keep,
        today => Name::To(today),
    }
}

/// Loads the network, with notes on its checkpoint.
pub(super) fn load(pretrained: &Pretrained) -> Result<(Orb, Inventory, Vec<String>)> {
    let config: Config = pretrained.config()?;
    let orb = Orb::load(config, &pretrained.weights)?;
    let inventory = pretrained.weights.finish()?;
    let notes = notes(pretrained, &inventory);
    Ok((orb, inventory, notes))
}

/// Notes on unused and missing heads.
fn notes(pretrained: &Pretrained, inventory: &Inventory) -> Vec<String> {
    let Some(checkpoint) = &pretrained.checkpoint else { return Vec::new() };
    let is_read =
        |name: &str| inventory.tensors.binary_search_by(|(read, _)| read.as_str().cmp(name)).is_ok();
    let has = |head: &str| inventory.tensors.iter().any(|(name, _)| name.starts_with(head));
    let mut notes = Vec::new();
    let unread = |name: &String| !is_read(name) && !name.ends_with("num_batches_tracked");
    let heads = checkpoint.names().map(current_name).filter(|name| name.starts_with("heads.")).filter(unread);
    let mut others: Vec<String> =
        heads.filter_map(|name| Some(name.split('.').nth(1)?.to_string())).collect();
    others.sort();
    others.dedup();
    if !others.is_empty() {
        notes.push(format!("the checkpoint has heads that are not used: {}", others.join(", ")));
    }
    if !has("heads.") {
        notes.push("the checkpoint has no heads: it has embeddings and no energies".to_string());
    }
    notes
}

/// The tensors of a checkpoint of this config.
pub(crate) fn inventory(pretrained: &Pretrained) -> Result<Inventory> {
    Ok(load(pretrained)?.1)
}

/// A small config that uses every branch.
pub fn sample() -> Value {
    json!({
        "model_type": NAME,
        "architecture": "orb_v3_conservative",
        "latent_dim": 12,
        "base_mlp_hidden_dim": 18,
        "base_mlp_depth": 2,
        "head_mlp_hidden_dim": 10,
        "head_mlp_depth": 1,
        "num_message_passing_steps": 2,
        "activation": "silu",
        "has_charge_spin_cond": true,
        "has_electrostatics": true,
        "radius": 6.0,
        "max_num_neighbors": 20,
        "zbl_node_aggregation": "sum",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_releases_say_what_they_are() {
        let of = |file: &str| release_of(file);
        assert_eq!(of("orb-v3-conservative-20-omat-20250404.ckpt"), Some("orb-v3-conservative-20-omat"));
        assert_eq!(of("a/orbmol-v2-teqabfhg-20260523.ckpt"), Some("orbmol-v2"));
        assert_eq!(of("orb-v2-20241011.ckpt"), Some("orb-v2"));
        assert_eq!(of("orb-d3-xs-v2-20241011.ckpt"), Some("orb-d3-xs-v2"));
        assert_eq!(of("separate-d4-3layer.ckpt"), Some("separate-d4-3layer"));
        assert_eq!(of("orb-v3-conservative-tiny.ckpt"), None);
        assert_eq!(of("orb-v2.safetensors"), None);
        for known in &KNOWN {
            let config: Config = serde_json::from_value(config_of(known)).unwrap();
            config.check().unwrap();
            assert_eq!(known_by(&format!("{}-20250404", known.name)).unwrap().name, known.name);
        }
    }

    #[test]
    fn a_release_is_known_by_its_file_and_v1_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = || Files::folder(folder.path(), "here");
        assert!(layout(&files(), &LoadOptions::default()).unwrap().is_none());
        std::fs::write(folder.path().join("orb-v3-direct-omol-20250820.ckpt"), "").unwrap();
        let found = layout(&files(), &LoadOptions::default()).unwrap().unwrap();
        assert_eq!(found.config["architecture"], "orb_v3_direct");
        assert_eq!((&found.config["has_stress"], found.weights.len()), (&json!(false), 1));
        std::fs::write(folder.path().join("orb-v2-20241011.ckpt"), "").unwrap();
        let several = layout(&files(), &LoadOptions::default()).unwrap_err().to_string();
        assert!(
            several.contains("several releases") && several.contains("orb-v2-20241011.ckpt"),
            "{several}"
        );
        let one = Files::file(&folder.path().join("orb-v2-20241011.ckpt"), "one");
        let found = layout(&one, &LoadOptions::default()).unwrap().unwrap();
        assert_eq!(found.config["num_message_passing_steps"], 15);
        let first = Files::file(&folder.path().join("orb-d3-sm-v1-20240902.ckpt"), "one");
        assert!(layout(&first, &LoadOptions::default()).unwrap_err().to_string().contains("Orb v1"));
    }

    #[test]
    fn older_names_are_renamed() {
        assert_eq!(rename("node_head.mlp.NN-0.bias"), Name::To("heads.forces.mlp.NN-0.bias".into()));
        let twice = "stress_head.diag_normaliser.bn.running_var";
        assert_eq!(rename(twice), Name::To("heads.stress.diag_normalizer.bn.running_var".into()));
        assert_eq!(rename("model.atom_emb.embeddings.weight"), Name::Keep);
    }
}
