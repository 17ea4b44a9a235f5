//! The built-in models: all-MiniLM-L6-v2 in 8 bits, and the pocket models, small checkpoints that show each system without
//! a download.
//!
//! Their files are embedded in the binary. They are written to the cache at first use, so that they are memory-mapped
//! like any other checkpoint.
//!
//! ```
//! let minilm = fauna::builtin::find("minilm").unwrap();
//! assert_eq!(minilm.release, "sentence-transformers/all-MiniLM-L6-v2");
//! let model = fauna::open("fauna:minilm")?; // or "minilm", where no folder has this name
//! assert_eq!(model.card().family, "bert");
//! # Ok::<(), fauna::Error>(())
//! ```

use std::{fmt, fs};

use std::path::{Path, PathBuf};

use fauna_bundle::Bundle;
use serde::{Deserialize, Serialize};

use crate::source::{Finder, HubConfig};
use crate::{Error, Result};

/// A built-in model.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Builtin {
    /// Name of the model.
    pub name: &'static str,
    /// The system that it shows, as in the registry of the families.
    pub system: &'static str,
    /// What it does, in a few words.
    pub does: &'static str,
    /// A release of full size that the same commands take; for MiniLM, the one that it comes from.
    pub release: &'static str,
    bundle: Bundle,
}

/// A measured figure of a model, on data that it was not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// The value.
    pub value: f64,
    /// The unit of the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The goal, if there is one: `>= 0.9`, `<= 20` or `0.75 to 0.85`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// Whether the goal is met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl fmt::Display for Figure {
    /// `scenes solved: 0.93 (goal >= 0.9)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.value)?;
        if let Some(unit) = &self.unit {
            write!(f, " {unit}")?;
        }
        match (&self.goal, self.met) {
            (Some(goal), Some(false)) => write!(f, " (not reached: {goal})"),
            (Some(goal), _) => write!(f, " (goal {goal})"),
            _ => Ok(()),
        }
    }
}

/// The built-in model MiniLM.
const MINILM: Builtin = Builtin {
    name: fauna_minilm::MINILM.name,
    system: "BERT",
    does: "embeds sentences",
    release: "sentence-transformers/all-MiniLM-L6-v2",
    bundle: fauna_minilm::MINILM,
};

/// Of each pocket model: its name, its system, what it does, a release of full size.
const POCKET: &[[&str; 4]] = &[
    ["pocket-forecaster", "TimeGPT", "forecasts time series with intervals", "amazon/chronos-bolt-base"],
    ["pocket-policy", "RT-2", "acts on a simulated table-top by words", "openvla/openvla-7b"],
    [
        "pocket-potential",
        "Orbital",
        "computes energy, forces and stress of crystals",
        "orb-v3-direct-inf-omat",
    ],
    ["pocket-clip", "CLIP", "finds the caption of a drawn scene", "openai/clip-vit-base-patch32"],
    ["pocket-dalle", "DALL-E", "draws a shape from words", "dalle-mini/dalle-mini"],
    [
        "pocket-flamingo",
        "Flamingo",
        "takes made-up words from examples",
        "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
    ],
    ["pocket-med", "Med-PaLM M", "counts spots of drawn scans", "google/medgemma-4b-it"],
    ["pocket-coder", "StarCoder", "continues Python and fills gaps in it", "bigcode/starcoder2-3b"],
    ["pocket-genes", "GenSLMs", "writes and scores genes", "genslm_25M_patric"],
    [
        "pocket-astronomer",
        "AstroLLaMA",
        "answers questions about stars, over SmolLM2",
        "UniverseTBD/astrollama",
    ],
    [
        "pocket-mathematician",
        "Llemma",
        "works out arithmetic and equations, over SmolLM2",
        "EleutherAI/llemma_7b",
    ],
];

/// The built-in models: MiniLM, then the pocket models.
pub fn models() -> Vec<Builtin> {
    let bundles = [
        fauna_pocket_text::MODELS,
        fauna_pocket_vision::MODELS,
        fauna_pocket_audio::MODELS,
        fauna_pocket_robotics::MODELS,
        fauna_pocket_science::MODELS,
    ]
    .concat();
    let pocket = POCKET.iter().filter_map(|[name, system, does, release]| {
        let bundle = *bundles.iter().find(|bundle| bundle.name == *name)?;
        Some(Builtin { name, system, does, release, bundle })
    });
    std::iter::once(MINILM).chain(pocket).collect()
}

/// The built-in model `name`, which may begin with `fauna:`.
pub fn find(name: &str) -> Option<Builtin> {
    let name = name.strip_prefix("fauna:").unwrap_or(name);
    models().into_iter().find(|model| model.name == name)
}

/// Returns the default finder, which in addition resolves the built-in models.
pub fn finder() -> Finder {
    resolving(Finder::from_env())
}

/// Returns `finder`, which in addition resolves the built-in models.
pub fn resolving(finder: Finder) -> Finder {
    finder.with_builtin(models().into_iter().map(|model| model.name), |name| {
        find(name).map(|model| model.folder()).transpose()
    })
}

impl Builtin {
    /// Returns the folder of the model. At first use its files are written to the cache, or to the temporary folder if
    /// the cache is not writable.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io) if neither can be written.
    pub fn folder(&self) -> Result<PathBuf> {
        let name = format!("builtin-{}-{}", self.name, env!("CARGO_PKG_VERSION"));
        let cache = HubConfig::from_env().named.join(&name);
        lay_out(&self.bundle, &cache)
            .or_else(|_| lay_out(&self.bundle, &std::env::temp_dir().join("fauna").join(&name)))
    }

    /// The size of its files in bytes.
    pub fn size(&self) -> u64 {
        self.bundle.size()
    }

    /// Whether it is a pocket model, which was trained for this program.
    pub fn is_pocket(&self) -> bool {
        self.name != MINILM.name
    }

    /// Its model card, as Markdown.
    pub fn card(&self) -> Option<&'static str> {
        let name = if self.is_pocket() { "README.md" } else { "SOURCE.md" };
        std::str::from_utf8(self.bundle.file(name)?).ok()
    }

    /// Its figures, the most telling first; empty for MiniLM.
    pub fn figures(&self) -> Vec<Figure> {
        let measured = self.bundle.file("measured.json").unwrap_or(b"[]");
        serde_json::from_slice(measured).unwrap_or_default()
    }
}

/// Writes the files to `folder` unless they exist. This is safe with several processes: each writes to a file of its
/// own, which is then renamed.
fn lay_out(bundle: &Bundle, folder: &Path) -> Result<PathBuf> {
    for (name, bytes) in bundle.files {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|there| there == *bytes) {
            continue;
        }
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "make the folder", e))?;
        let part = path.with_extension(format!("part-{}", std::process::id()));
        let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, &path));
        written.map_err(|e| {
            let _ = fs::remove_file(&part);
            Error::io(&path, "write", e)
        })?;
    }
    Ok(folder.to_path_buf())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The files below `folder`, with `/` as separator.
    fn files_below(folder: &Path, before: &str, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let name = format!("{before}{}", entry.file_name().to_str().unwrap());
            match entry.path().is_dir() {
                true => files_below(&entry.path(), &format!("{name}/"), found),
                false => drop(found.insert(name)),
            }
        }
    }

    #[test]
    fn every_pocket_model_is_whole_described_and_small() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/pocket");
        let mut total = 0;
        let mut listed = BTreeSet::new();
        for model in models().into_iter().filter(Builtin::is_pocket) {
            let folder = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path().join(model.name));
            let folder = folder.into_iter().find(|folder| folder.is_dir()).expect(model.name);
            let mut found = BTreeSet::new();
            files_below(&folder, "", &mut found);
            let bundled: BTreeSet<String> =
                model.bundle.files.iter().map(|(name, _)| name.to_string()).collect();
            assert_eq!(found, bundled, "{}", model.name);
            let card = model.card().unwrap();
            for heading in [
                "What it shows",
                "rained on",
                "What it can and cannot do",
                "Numbers",
                "How it was made",
                "Licence",
            ] {
                assert!(card.contains(heading), "{heading} is not in the card of {}", model.name);
            }
            let figures = model.figures();
            assert!(!figures.is_empty(), "{}", model.name);
            let by_families = crate::families().iter().any(|family| family.systems.contains(&model.system));
            assert!(by_families, "{}: {}", model.name, model.system);
            total += model.size();
            listed.insert(model.name);
        }
        let mut folders = BTreeSet::new();
        for modality in fs::read_dir(&root).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
            for entry in fs::read_dir(modality.path()).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if name.starts_with("pocket-") {
                    folders.insert(name);
                }
            }
        }
        assert_eq!(folders, listed.into_iter().map(String::from).collect());
        assert!(total <= 40_000_000, "{total} bytes");
    }
}
