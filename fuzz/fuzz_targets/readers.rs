//! Every reader of fauna under libFuzzer. `FAUNA_READER` names the one that is run: a name of [`READERS`].
//!
//! A run fails if a reader panics, takes more than a few seconds or more memory than the limit; an error is fine.

#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::text::{ChatTemplate, Message, Tokenizer};
use libfuzzer_sys::{Corpus, fuzz_target};

/// Reads bytes that stand in a file, which is in a folder of its own.
type Read = fn(file: &Path, bytes: &[u8]);

/// The name of a reader, the name of the file that it is given, and what it does.
const READERS: [(&str, &str, Read); 30] = [
    ("tokenizer_json", "tokenizer.json", tokenizer),
    ("tokenizer_config", "tokenizer_config.json", tokenizer_config),
    ("spiece", "spiece.model", tokenizer),
    ("vocab_txt", "vocab.txt", tokenizer),
    ("chat_template", "chat_template.jinja", template),
    ("config", "config.json", config),
    ("config_keys", "config.json", config_keys),
    ("processor", "preprocessor_config.json", processor),
    ("sentences", "modules.json", sentences),
    ("safetensors", "model.safetensors", checkpoint),
    ("pickle", "pytorch_model.bin", checkpoint),
    ("checkpoint_th", "model.th", checkpoint),
    ("gguf", "model.gguf", checkpoint),
    ("msgpack", "flax_model.msgpack", checkpoint),
    ("wav", "a.wav", sound),
    ("flac", "a.flac", sound),
    ("mp3", "a.mp3", sound),
    ("ogg", "a.ogg", sound),
    ("m4a", "a.m4a", sound),
    ("png", "a.png", picture),
    ("jpeg", "a.jpg", picture),
    ("webp", "a.webp", picture),
    ("gif", "a.gif", picture),
    ("bmp", "a.bmp", picture),
    ("tiff", "a.tiff", picture),
    ("csv", "a.csv", table),
    ("parquet", "a.parquet", table),
    ("xyz", "a.xyz", structure),
    ("cif", "a.cif", structure),
    ("fasta", "a.fasta", genes),
];
/// As a `POSCAR` has no ending, it stands apart.
const POSCAR: (&str, &str, Read) = ("poscar", "POSCAR", structure);

static READER: LazyLock<(&str, &str, Read)> = LazyLock::new(|| {
    let name = std::env::var("FAUNA_READER").unwrap_or_default();
    let found = READERS.into_iter().chain([POSCAR]).find(|(known, ..)| *known == name);
    found.unwrap_or_else(|| {
        let known: Vec<&str> = READERS.iter().map(|(name, ..)| *name).chain([POSCAR.0]).collect();
        eprintln!("FAUNA_READER is {name:?}; known are {}", known.join(", "));
        std::process::exit(2)
    })
});
static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a folder for files"));

/// Some libraries below panic on bad files, which is caught and told as an error. libFuzzer's own hook would end the run
/// there; without it only a panic that reaches it does.
static ONLY_UNCAUGHT: LazyLock<()> = LazyLock::new(|| {
    let told = std::env::var_os("FAUNA_FUZZ_TELL").is_some();
    std::panic::set_hook(Box::new(move |panic| {
        if told {
            eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        }
    }));
});

fuzz_target!(|bytes: &[u8]| -> Corpus {
    LazyLock::force(&ONLY_UNCAUGHT);
    let (_, file, read) = *READER;
    let path = FOLDER.path().join(file);
    if std::fs::write(&path, bytes).is_err() {
        return Corpus::Reject;
    }
    read(&path, bytes);
    Corpus::Keep
});

fn tokenizer(file: &Path, _: &[u8]) {
    let Some(Ok(tokenizer)) = file.parent().map(Tokenizer::from_folder) else { return };
    if let Ok(ids) = tokenizer.encode("The café of 星云, in 2027:\t<s>\n", true) {
        let _ = tokenizer.decode(&ids, true);
        let _ = tokenizer.decode(&ids, false);
    }
    let _ = tokenizer.encode_pair("one two", "three", Some(8));
    let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX], true);
}

fn tokenizer_config(file: &Path, bytes: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let json = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}}}"#;
    if std::fs::write(folder.join("tokenizer.json"), json).is_ok() {
        tokenizer(file, bytes);
        if let Ok(tokenizer) = Tokenizer::from_folder(folder) {
            let _ = ChatTemplate::from_folder(folder, &tokenizer);
        }
    }
}

fn template(_: &Path, bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::new(source, Some("<s>"), Some("</s>")) else { return };
    let talk = [Message::new("system", "Be brief."), Message::new("user", "Hi\n there")];
    let _ = template.with_now(0).render(&talk, true);
}

fn config(file: &Path, _: &[u8]) {
    let Some(folder) = file.parent().and_then(Path::to_str) else { return };
    let _ = fauna::inventory(folder, &fauna::Options::default());
}

/// Values that no size, count, scale, name or part is.
const ABSURD: [&str; 16] = [
    "0",
    "1",
    "-1",
    "3",
    "2147483648",
    "9007199254740992",
    "18446744073709551615",
    "1e308",
    "-1e308",
    "1e-308",
    "null",
    "true",
    "\"absurd\"",
    "[]",
    "[0]",
    "{}",
];

/// The config of the family that the first byte names; then, for each two bytes, the value that the first of them chooses
/// becomes the absurd one that the second chooses.
fn config_keys(file: &Path, bytes: &[u8]) {
    let Some((family, changes)) = bytes.split_first() else { return };
    let families = fauna::families();
    let mut config = (families[usize::from(*family) % families.len()].sample)();
    for change in changes.chunks_exact(2).take(8) {
        let mut paths = Vec::new();
        paths_of(&config, String::new(), &mut paths);
        let path = &paths[usize::from(change[0]) % paths.len()];
        if let (Some(value), Ok(absurd)) =
            (config.pointer_mut(path), serde_json::from_str(ABSURD[usize::from(change[1]) % ABSURD.len()]))
        {
            *value = absurd;
        }
    }
    if std::fs::write(file, config.to_string()).is_ok() {
        self::config(file, bytes);
    }
}

/// The paths of all values of `value`, itself first.
fn paths_of(value: &serde_json::Value, path: String, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(keys) => {
            keys.iter().for_each(|(key, value)| paths_of(value, format!("{path}/{key}"), found));
        }
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| paths_of(value, format!("{path}/{i}"), found));
        }
        _ => {}
    }
    found.push(path);
}

fn processor(file: &Path, bytes: &[u8]) {
    use fauna_shared::image::Processor;
    let _ = file;
    let Ok(settings) = fauna_shared::json::parse(bytes) else { return };
    let Ok(processor) = Processor::from_json(&settings) else { return };
    let picture = fauna::Image { width: 5, height: 3, rgb: (0..45).collect() };
    let _ = processor.batch(&[picture]);
}

/// A sentence embedder whose `modules.json` this is, with a module for each of its kinds beside it.
fn sentences(file: &Path, bytes: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let bert =
        fauna::families().into_iter().find(|family| family.name == "bert").map(|family| (family.sample)());
    let files = [
        ("config.json", bert.map(|config| config.to_string()).unwrap_or_default().into_bytes()),
        ("1_Pooling/config.json", bytes.to_vec()),
        ("sentence_bert_config.json", bytes.to_vec()),
        ("config_sentence_transformers.json", bytes.to_vec()),
        ("generation_config.json", bytes.to_vec()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(path, text);
    }
    let options = fauna::Options { random_weights: Some(1), ..fauna::Options::default() };
    if let Some(folder) = folder.to_str() {
        let _ = fauna::open_with(folder, &options).map(|_| ());
    }
}

fn checkpoint(file: &Path, _: &[u8]) {
    let Ok(checkpoint) = Checkpoint::open(file) else { return };
    let _ = checkpoint.metadata();
}

fn sound(file: &Path, _: &[u8]) {
    let _ = fauna_shared::audio::read::read(file);
}

fn picture(file: &Path, _: &[u8]) {
    let _ = fauna_shared::image::read(file);
}

fn table(file: &Path, _: &[u8]) {
    use fauna_science::forecast::{Columns, Table};
    let _ = Table::read(file, &Columns::default());
}

fn structure(file: &Path, _: &[u8]) {
    let _ = fauna_science::atoms::files::read(file);
}

fn genes(file: &Path, _: &[u8]) {
    use fauna_text::genslm::codons::Reading;
    use fauna_text::genslm::fasta::open;
    let Ok(genes) = open(file, Reading::Strict) else { return };
    for gene in genes.take(10_000) {
        let _ = gene;
    }
}
