//! Whole folders: every config of the tests and of all families with keys changed, and every model of the tests with one
//! of its files changed. What opens is used.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use fauna::model::{ForecastConfig, History, SampleSizes, Task};
use fauna::source::{Finder, HfHub, HubConfig};
use fauna::{Atoms, GenerationConfig, Image, Item, LoadOptions, Pipeline, Prompt, Role, Turn};
use serde_json::Value;

use crate::changes;

/// A network of more numbers than this is walked, not built: a run is to be fast.
const MOST_PARAMETERS: u64 = 2_000_000;

fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Files under `folder` in the order of their names, as far as `depth` folders down.
fn files_under(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        match entry.is_dir() {
            true if depth > 0 => files.extend(files_under(&entry, depth - 1)),
            true => {}
            false => files.push(entry),
        }
    }
    files
}

fn json(path: &Path) -> Option<Value> {
    fauna::json::read(path).ok()
}

/// A config, and the family that is to read it where it does not say so itself.
struct Base {
    config: Value,
    family: Option<&'static str>,
}

/// The sample of every family, then the configs of releases, then those of the tests' models, each kind of keys once.
static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let mut bases: Vec<Base> = Vec::new();
    for family in fauna::families() {
        let config = (family.sample)();
        let says = config["model_type"].as_str().is_some_and(|name| family.model_types.contains(&name));
        bases.push(Base { config, family: (!says).then_some(family.name) });
    }
    let tests = project().join("tests");
    let files = [files_under(&tests.join("releases"), 1), files_under(&tests.join("parity"), 4)];
    let mut seen = BTreeSet::new();
    for path in files.into_iter().flatten().filter(|path| path.ends_with("config.json")) {
        let Some(config) = json(&path).filter(Value::is_object) else { continue };
        let mut keys = BTreeSet::new();
        changes::keys_of(&config, &mut keys);
        if seen.insert((config["model_type"].to_string(), config["architectures"].to_string(), keys)) {
            bases.push(Base { config, family: None });
        }
    }
    bases
});

/// The keys of all configs.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut keys = BTreeSet::new();
    BASES.iter().for_each(|base| changes::keys_of(&base.config, &mut keys));
    keys.into_iter().collect()
});

/// The folders of the tests that hold a model and a case, with those of their files that are text.
static FOLDERS: LazyLock<Vec<(PathBuf, Vec<PathBuf>)>> = LazyLock::new(|| {
    let mut found = BTreeMap::new();
    let mut kinds = BTreeSet::new();
    for case in
        files_under(&project().join("tests/parity"), 3).iter().filter(|path| path.ends_with("case.json"))
    {
        let Some(folder) = case.parent() else { continue };
        // What the case asks for is a caller's wish and no part of the model.
        let texts: Vec<PathBuf> = files_under(&folder.join("model"), 3)
            .into_iter()
            .filter(|path| {
                path.extension().is_some_and(|e| ["json", "txt", "jinja", "model"].iter().any(|t| e == *t))
            })
            .filter(|path| path.metadata().is_ok_and(|about| about.len() < 256 << 10))
            .filter_map(|path| path.strip_prefix(folder).ok().map(Path::to_path_buf))
            .collect();
        // Of folders with the same files and the same kind of config, one.
        let config = json(&folder.join("model/config.json")).unwrap_or_default();
        let names = files_under(folder, 3)
            .into_iter()
            .filter_map(|p| p.strip_prefix(folder).ok().map(Path::to_path_buf));
        let names: Vec<PathBuf> = names.collect();
        if kinds.insert((config["model_type"].to_string(), config["architectures"].to_string(), names)) {
            found.insert(folder.to_path_buf(), texts);
        }
    }
    found.into_iter().filter(|(_, texts)| !texts.is_empty()).collect()
});

/// Without the hub: what is not on this disk is not there.
static FINDER: LazyLock<Arc<Finder>> = LazyLock::new(|| {
    let cache = std::env::temp_dir().join("fauna-fuzz-no-cache");
    let config =
        HubConfig { offline: true, cache: cache.clone(), named: cache.clone(), ..HubConfig::from_env() };
    Arc::new(Finder::new(HfHub::new(config), cache))
});

/// A small Jukebox: what hears with one takes the sizes of the released one where nobody says its own.
static HPS: LazyLock<Value> = LazyLock::new(|| {
    let case = json(&project().join("tests/parity/llark/pipeline/case.json")).unwrap_or_default();
    case["options"]["hps"].clone()
});

/// Options that ask no hub.
pub fn options() -> LoadOptions {
    let settings = [("hps".to_string(), HPS.clone())].into_iter().collect();
    LoadOptions { finder: FINDER.clone(), settings, ..LoadOptions::default() }
}

/// The config that the first two bytes choose, changed by the others.
pub fn config_keys(file: &Path, bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first_chunk::<2>() else { return };
    let base = &BASES[usize::from(u16::from_le_bytes(*which)) % BASES.len()];
    let config = changes::apply(base.config.clone(), rest, &KEYS);
    if std::fs::write(file, config.to_string()).is_ok() {
        open_config(file, base.family);
    }
}

/// Walks the network of the config at `file`, and builds and uses it if it is small.
pub fn open_config(file: &Path, family: Option<&str>) {
    let Some(folder) = file.parent().and_then(Path::to_str) else { return };
    let mut options = LoadOptions { family: family.map(String::from), ..options() };
    let Ok((_, inventory)) = fauna::inventory(folder, &options) else { return };
    if inventory.parameters <= MOST_PARAMETERS {
        options.random_weights = Some(1);
        if let Ok(model) = fauna::open_with(folder, &options) {
            exercise(&*model);
        }
    }
}

/// A model of the tests with one file changed: two bytes choose the model, one the file, one whether the rest is its
/// content or changes of its JSON.
pub fn folder(file: &Path, bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return };
    let (folder, texts) = &FOLDERS[usize::from(u16::from_le_bytes([head[0], head[1]])) % FOLDERS.len()];
    let name = &texts[usize::from(head[2]) % texts.len()];
    let Some(place) = file.parent().and_then(|root| copied(folder, root)) else { return };
    let path = place.join(name);
    let changed = match (head[3] % 2, json(&path)) {
        (0, Some(value)) => changes::apply(value, rest, &KEYS).to_string().into_bytes(),
        _ => rest.to_vec(),
    };
    // What was copied is a link to the tests' own file.
    let _ = std::fs::remove_file(&path);
    if std::fs::write(&path, changed).is_ok() {
        if let Some(model) = place.join("model").to_str()
            && let Ok((_, inventory)) = fauna::inventory(model, &options())
            && inventory.parameters <= MOST_PARAMETERS
        {
            let _ = fauna::open_with(model, &options()).map(|model| exercise(&*model));
        }
    }
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::copy(folder.join(name), &path);
}

/// A copy of the model of the case in `folder` under `root`, made once.
fn copied(folder: &Path, root: &Path) -> Option<PathBuf> {
    let place = root.join(folder.strip_prefix(project().join("tests/parity")).ok()?);
    if !place.exists() {
        // Weights made from a seed are written out.
        let model = fauna::parity::ModelFolder::open(&folder.join("model")).ok()?;
        for file in files_under(model.path(), 3) {
            let to = place.join("model").join(file.strip_prefix(model.path()).ok()?);
            std::fs::create_dir_all(to.parent()?).ok()?;
            std::fs::copy(&file, &to).ok()?;
        }
    }
    Some(place)
}

/// Does with an opened model what it can do, at its smallest.
pub fn exercise(model: &dyn Pipeline) {
    let _ = model.defaults();
    for images in [0, 1] {
        if let Ok(inputs) = model.sample("forward", &SampleSizes { rows: 1, tokens: 6, images }) {
            let _ = model.forward(&inputs);
        }
    }
    let _ = model.embed(&["one two".into()]);
    let picture = Image { width: 5, height: 3, rgb: (0..45).collect() };
    let _ = model.embed(&[Item::Image(picture.clone())]);
    let mut stop = |_| ControlFlow::Break(());
    let _ = model.generate(&Prompt::from("one two"), &GenerationConfig::greedy(2), &mut stop);
    let turn = Turn { role: Role::User, items: vec!["one two".into()] };
    let _ = model.generate(&Prompt::Chat(vec![turn]), &GenerationConfig::greedy(2), &mut stop);
    let asked = Prompt::Items(vec![Item::Image(picture.clone()), "one two".into()]);
    let _ = model.generate(&asked, &GenerationConfig::greedy(2), &mut stop);
    if let Ok(forecaster) = model.forecaster() {
        let past = History::from(vec![1.0, 2.0, 4.0, 3.0, 5.0]);
        let _ = forecaster.forecast(&[past], &ForecastConfig { horizon: 3, ..ForecastConfig::default() });
    }
    if let Ok(policy) = model.policy()
        && let Ok(mut controller) = policy.start(&Task::from("lift the cup"))
    {
        let _ = controller.act(&(&picture).into());
    }
    if let Ok(potential) = model.potential() {
        let positions = vec![[0.0; 3], [0.74, 0.0, 0.0]];
        let _ = potential.evaluate(&[Atoms { numbers: vec![1, 8], positions, ..Atoms::default() }]);
    }
}

/// Seeds of `config_keys`: every base as it is, and with absurd values.
pub fn config_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (which, base) in BASES.iter().enumerate() {
        let which = (which as u16).to_le_bytes().to_vec();
        seeds.push(which.clone());
        seeds.extend(
            changes::samples(&base.config, 8).into_iter().map(|change| [which.clone(), change].concat()),
        );
    }
    seeds
}

/// Seeds of `folder`: every file of every folder as it is, by either way.
pub fn folder_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (which, (folder, texts)) in FOLDERS.iter().enumerate() {
        let which = (which as u16).to_le_bytes();
        for (number, name) in texts.iter().enumerate() {
            let head = |way| vec![which[0], which[1], number as u8, way];
            let path = folder.join(name);
            seeds.push([head(1), std::fs::read(&path).unwrap_or_default()].concat());
            for change in json(&path).map(|value| changes::samples(&value, 4)).unwrap_or_default() {
                seeds.push([head(0), change].concat());
            }
        }
    }
    seeds
}
