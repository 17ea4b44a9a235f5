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
const READERS: [(&str, &str, Read); 27] = [
    ("tokenizer_json", "tokenizer.json", tokenizer),
    ("tokenizer_config", "tokenizer_config.json", tokenizer_config),
    ("spiece", "spiece.model", tokenizer),
    ("vocab_txt", "vocab.txt", tokenizer),
    ("chat_template", "chat_template.jinja", template),
    ("config", "config.json", config),
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
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder for files"));

fuzz_target!(|bytes: &[u8]| -> Corpus {
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

fn checkpoint(file: &Path, _: &[u8]) {
    let Ok(checkpoint) = Checkpoint::open(file) else { return };
    let _ = checkpoint.metadata();
}

fn sound(file: &Path, _: &[u8]) {
    let _ = fauna_shared::audio::read(file);
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
    use fauna_text::genslm::fasta::{Reading, open};
    let Ok(genes) = open(file, Reading::Strict) else { return };
    for gene in genes.take(10_000) {
        let _ = gene;
    }
}
