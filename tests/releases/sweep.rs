//! Every listed release loads with its published config, if one was found.
//!
//! The fixtures are from public sources (`SOURCES.tsv`). The number of parameters of each config is compared with the
//! published size of the release.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fauna::releases::OwnConfig;
use fauna::{Family, LoadOptions, Release};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/releases")
}

/// Returns the files of the fixture of each release.
fn fixtures() -> BTreeMap<String, Vec<String>> {
    let table = std::fs::read_to_string(folder().join("SOURCES.tsv")).unwrap();
    let mut fixtures: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [release, file, extent, _] = fields[..] else { panic!("not four fields: {line}") };
        assert!(["complete", "partial"].contains(&extent), "{line}");
        fixtures.entry(release.to_string()).or_default().push(file.to_string());
    }
    fixtures
}

fn listed() -> Vec<&'static Release> {
    fauna::families().into_iter().flat_map(|family| family.releases).collect()
}

/// Parses a size and its rounding error: "1.5B" is 1.5e9 within 0.05e9, "250M" is 250e6 within 5e6.
fn size(words: &str) -> (f64, f64) {
    let (number, unit) = words.split_at(words.len() - 1);
    let unit = match unit {
        "K" => 1e3,
        "M" => 1e6,
        "B" => 1e9,
        other => panic!("{words}: no unit {other}"),
    };
    // The last significant digit: trailing zeros of a whole number do not count.
    let place = match number.split_once('.') {
        Some((_, decimals)) => -(decimals.len() as i32),
        None => number.bytes().rev().take_while(|digit| *digit == b'0').count() as i32,
    };
    (number.parse::<f64>().expect(words) * unit, 0.5 * 10f64.powi(place) * unit)
}

/// Returns the exact numbers of parameters, where they are published.
fn exact() -> BTreeMap<String, f64> {
    let table = std::fs::read_to_string(folder().join("parameters.tsv")).unwrap();
    let row = |line: &str| {
        let mut fields = line.split('\t');
        Some((fields.next()?.to_string(), fields.next()?.parse().ok()?))
    };
    table.lines().skip(1).map(|line| row(line).unwrap_or_else(|| panic!("no count: {line}"))).collect()
}

#[test]
fn every_fixture_loads_with_the_published_number_of_parameters() {
    let (listed, exact) = (listed(), exact());
    let mut problems = Vec::new();
    for (id, files) in fixtures() {
        let place = folder().join(id.replace('/', "__"));
        for file in &files {
            if let Err(error) = fauna::json::read(place.join(file)) {
                problems.push(format!("{id}: {error}"));
            }
        }
        let release = listed.iter().find(|release| release.id == id);
        let Some(release) = release else {
            problems.push(format!("{id} is not listed"));
            continue;
        };
        if OwnConfig::of(&id) == OwnConfig::Unseen {
            continue;
        }
        match fauna::inventory(place.to_str().unwrap(), &LoadOptions::default()) {
            Ok((family, inventory)) => {
                let own =
                    fauna::families().into_iter().find(|f| f.releases.iter().any(|r| r.id == id)).unwrap();
                if family.name != own.name {
                    problems.push(format!("{id} is listed under {} but loads as {}", own.name, family.name));
                }
                let (rounded, rounding) = size(release.size);
                let (wanted, within) = match exact.get(&id) {
                    Some(count) => (*count, 0.01 * count),
                    None => (rounded, rounding.max(0.01 * rounded)),
                };
                let found = inventory.parameters as f64;
                if (found - wanted).abs() > within {
                    problems.push(format!("{id}: {found} parameters, expected {wanted} within {within}"));
                }
            }
            Err(error) => problems.push(format!("{id}: {error}")),
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

/// Names of model configs; other files are those of processors, tokenizers and generation.
const NETWORK: [&str; 2] = ["config.json", "open_clip_config.json"];

/// A file whose values are also in the model config, which is read instead.
struct Repeated {
    family: &'static str,
    file: &'static str,
    /// Keys of the file, and their paths in the config.
    keys: &'static [(&'static str, &'static str)],
}

const REPEATED: [Repeated; 2] = [
    Repeated {
        family: "encodec",
        file: "preprocessor_config.json",
        keys: &[
            ("sampling_rate", "/sampling_rate"),
            ("feature_size", "/audio_channels"),
            ("chunk_length_s", "/chunk_length_s"),
            ("overlap", "/overlap"),
        ],
    },
    Repeated {
        family: "llava",
        file: "processor_config.json",
        keys: &[
            ("patch_size", "/vision_config/patch_size"),
            ("vision_feature_select_strategy", "/vision_feature_select_strategy"),
        ],
    },
];

/// Returns a small config of the family, with the values of the release's config that its other files must match.
fn small(family: &Family, release: &Value) -> Value {
    let mut config = (family.sample)();
    let shared: &[&str] = match family.name {
        "bert" => &["/hidden_size", "/num_attention_heads", "/vocab_size", "/max_position_embeddings"],
        "musicgen" => &["/model_type", "/architectures"],
        "openvla" => &["/image_sizes"],
        _ => &[
            "/vision_config/image_size",
            "/vision_config/patch_size",
            "/mm_tokens_per_image",
            "/image_token_index",
            "/text_config/vocab_size",
            "/vocab_size",
        ],
    };
    for path in shared {
        if let (Some(value), Some(place)) = (release.pointer(path), config.pointer_mut(path)) {
            *place = value.clone();
        }
    }
    config
}

/// Returns a tokenizer for a `tokenizer_config.json`: MiniLM's for BERT, else one letter and the tokens of the file.
fn vocabulary(family: &Family, settings: &Path) -> String {
    if family.name == "bert" {
        let words = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/minilm-q8_0/tokenizer.json");
        return std::fs::read_to_string(words).unwrap();
    }
    let settings = fauna::json::read(settings).unwrap();
    let named = settings["added_tokens_decoder"].as_object().unwrap();
    let added = named.iter().map(|(id, token)| {
        let mut token = token.clone();
        token["id"] = id.parse::<u32>().unwrap().into();
        token
    });
    let added: Vec<Value> = added.collect();
    json!({"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 3}, "merges": []}})
        .to_string()
}

#[test]
fn every_other_file_of_a_release_is_read_or_redundant() {
    let random = LoadOptions { random_weights: Some(7), ..LoadOptions::default() };
    let mut problems = Vec::new();
    for (id, files) in fixtures() {
        let beside: Vec<&String> = files.iter().filter(|file| !NETWORK.contains(&file.as_str())).collect();
        if beside.is_empty() {
            continue;
        }
        let place = folder().join(id.replace('/', "__"));
        let release = fauna::json::read(place.join("config.json")).unwrap();
        let family = fauna::families().into_iter().find(|f| f.releases.iter().any(|r| r.id == id)).unwrap();
        let model = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = model.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let read = |file: &str| std::fs::read_to_string(place.join(file)).unwrap();
        write("config.json", &small(family, &release).to_string());
        beside.iter().for_each(|file| write(file, &read(file)));
        if beside.iter().any(|file| *file == "tokenizer_config.json") {
            write("tokenizer.json", &vocabulary(family, &place.join("tokenizer_config.json")));
        }
        let open = || fauna::open_with(model.path().to_str().unwrap(), &random).map(|_| ());
        if let Err(error) = open() {
            problems.push(format!("{id}: {error}"));
            continue;
        }
        // If the file is read, invalid JSON is an error that names it.
        for file in beside {
            write(file, "{");
            let repeated = REPEATED.iter().find(|known| (known.family, known.file) == (family.name, file));
            let wanted = repeated.is_none();
            for (said, path) in repeated.map_or(&[][..], |known| known.keys) {
                let says = &fauna::json::read(place.join(file)).unwrap()[said];
                assert_eq!(says, release.pointer(path).unwrap_or(&Value::Null), "{id}: {file}: {said}");
            }
            match open() {
                Ok(()) if wanted => problems.push(format!("{id}: nothing reads {file}")),
                Err(error) if wanted && !error.to_string().contains(file.as_str()) => {
                    problems.push(format!("{id}: {file} is not named: {error}"));
                }
                _ => {}
            }
            write(file, &read(file));
        }
    }
    assert!(problems.is_empty(), "{} problems\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn missing_configs_are_listed_in_missing_md() {
    let missing = std::fs::read_to_string(folder().join("MISSING.md")).unwrap();
    let named: Vec<&str> = missing.lines().filter_map(|line| line.strip_prefix("- ")).collect();
    for release in listed() {
        let unseen = OwnConfig::of(release.id) == OwnConfig::Unseen;
        assert_eq!(named.contains(&release.id), unseen, "{} in MISSING.md", release.id);
    }
    for name in named {
        assert!(listed().iter().any(|release| release.id == name), "{name} is not listed");
    }
}

#[test]
fn the_table_of_families_marks_the_releases_with_a_config() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/families.md")).unwrap();
    for family in fauna::families() {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {} |", family.name))).unwrap();
        // A name may be followed by a note in parentheses.
        let names: Vec<&str> =
            row.split(['|', ',']).filter_map(|cell| cell.split_whitespace().next()).collect();
        for release in family.releases {
            let mark = match OwnConfig::of(release.id) {
                OwnConfig::Unseen => "",
                OwnConfig::Partial => "†",
                OwnConfig::Complete => "*",
            };
            let marked = format!("{}{mark}", release.id);
            assert!(names.contains(&marked.as_str()), "the row of {} has no {marked}", family.name);
        }
    }
}

#[test]
fn every_exact_number_of_parameters_has_a_fixture() {
    let fixtures = fixtures();
    for id in exact().keys() {
        assert!(fixtures.contains_key(id), "{id} has a number of parameters but no fixture");
    }
}

#[test]
fn every_file_of_a_fixture_has_a_source() {
    let fixtures = fixtures();
    for entry in std::fs::read_dir(folder()).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().into_string().unwrap();
        let id = fixtures.keys().find(|id| id.replace('/', "__") == name);
        let id = id.unwrap_or_else(|| panic!("{name} is not in SOURCES.tsv"));
        let mut folders = vec![entry.path()];
        while let Some(inner) = folders.pop() {
            for file in std::fs::read_dir(inner).unwrap().flatten().map(|file| file.path()) {
                if file.is_dir() {
                    folders.push(file);
                    continue;
                }
                let path = file.strip_prefix(entry.path()).unwrap().to_str().unwrap().replace('\\', "/");
                assert!(fixtures[id].contains(&path), "{id}: {path} is not in SOURCES.tsv");
            }
        }
    }
}
