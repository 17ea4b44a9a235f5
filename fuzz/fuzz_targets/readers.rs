//! Every reader of fauna under libFuzzer. `FAUNA_READER` names the one that is run: a name of [`READERS`].
//!
//! A run fails if a reader panics, takes more than a few seconds or more memory than the limit; an error is fine.

#![no_main]

mod changes;
mod learning;
mod releases;

use std::path::Path;
use std::sync::LazyLock;

use fauna_shared::checkpoint::Checkpoint;
use fauna_shared::text::{ChatTemplate, GgufVocabulary, Message, Tokenizer};
use libfuzzer_sys::{Corpus, fuzz_target};

/// Reads bytes that stand in a file, which is in a folder of its own.
type Read = fn(file: &Path, bytes: &[u8]);

/// The name of a reader, the name of the file that it is given, and what it does.
#[rustfmt::skip]
const READERS: &[(&str, &str, Read)] = &[
    ("tokenizer_json", "tokenizer.json", tokenizer),
    ("tokenizer_config", "tokenizer_config.json", tokenizer_config),
    ("spiece", "spiece.model", tokenizer),
    ("vocab_txt", "vocab.txt", tokenizer),
    ("vocab_json", "vocab.json", vocab_json),
    ("merges", "merges.txt", merges),
    ("chat_template", "chat_template.jinja", template),
    ("config", "config.json", config),
    ("config_keys", "config.json", releases::config_keys),
    ("folder", "change", releases::folder),
    ("processor", "preprocessor_config.json", processor),
    ("sentences", "modules.json", sentences),
    ("safetensors", "model.safetensors", checkpoint),
    ("index", "model.safetensors.index.json", index),
    ("pickle", "pytorch_model.bin", checkpoint),
    ("checkpoint_th", "model.th", checkpoint),
    ("gguf", "model.gguf", gguf),
    ("msgpack", "flax_model.msgpack", checkpoint),
    ("adapter", "adapter", learning::adapter),
    ("rows_jsonl", "train.jsonl", learning::dataset),
    ("rows_csv", "train.csv", learning::dataset),
    ("rows_xyz", "train.xyz", learning::dataset),
    ("lerobot_info", "info.json", learning::robot),
    ("lerobot_episodes", "episodes.jsonl", learning::robot),
    ("lerobot_tasks", "tasks.jsonl", learning::robot),
    ("wav", "a.wav", sound),
    ("aiff", "a.aiff", sound),
    ("flac", "a.flac", sound),
    ("mp3", "a.mp3", sound),
    ("ogg", "a.ogg", sound),
    ("m4a", "a.m4a", sound),
    ("caf", "a.caf", sound),
    ("webm", "a.webm", sound),
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
    ("poscar", "POSCAR", structure),
    ("fasta", "a.fasta", genes),
];

static READER: LazyLock<(&str, &str, Read)> = LazyLock::new(|| {
    let name = std::env::var("FAUNA_READER").unwrap_or_default();
    let Some(found) = READERS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = READERS.iter().map(|(name, ..)| *name).collect();
        eprintln!("FAUNA_READER is {name:?}; known are {}", known.join(", "));
        std::process::exit(2)
    };
    // Seeds that are no files of their own are written into this folder, and nothing is run.
    if let Some(folder) = std::env::var_os("FAUNA_SEEDS") {
        let seeds = match name.as_str() {
            "config_keys" => releases::config_seeds(),
            "folder" => releases::folder_seeds(),
            "adapter" => learning::adapter_seeds(),
            _ => Vec::new(),
        };
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(Path::new(&folder).join(format!("seed-{number:05}")), seed)
                .expect("a folder for seeds");
        }
        return ("seeds", "seeds", |_, _| {});
    }
    *found
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
    if let Some(Ok(tokenizer)) = file.parent().map(Tokenizer::from_folder) {
        try_tokenizer(&tokenizer);
    }
}

fn try_tokenizer(tokenizer: &Tokenizer) {
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

/// GPT-2's kind of vocabulary, whose merges stand beside it.
fn vocab_json(file: &Path, bytes: &[u8]) {
    let merges = "#version: 0.2\na b\nb </w>\n";
    if std::fs::write(file.with_file_name("merges.txt"), merges).is_ok() {
        tokenizer(file, bytes);
    }
}

fn merges(file: &Path, bytes: &[u8]) {
    for ids in [
        r#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#,
        r#"{"a": 0, "b</w>": 1, "ab</w>": 2, "<unk>": 3}"#,
        r#"{"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}"#,
    ] {
        if std::fs::write(file.with_file_name("vocab.json"), ids).is_ok() {
            tokenizer(file, bytes);
        }
    }
}

fn config(file: &Path, _: &[u8]) {
    releases::open_config(file, None);
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
        ("2_Dense/config.json", bytes.to_vec()),
        ("sentence_bert_config.json", bytes.to_vec()),
        ("config_sentence_transformers.json", bytes.to_vec()),
        ("generation_config.json", bytes.to_vec()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(path, text);
    }
    let options = fauna::LoadOptions { random_weights: Some(1), ..releases::options() };
    if let Some(folder) = folder.to_str() {
        let _ = fauna::open_with(folder, &options).map(|_| ());
    }
}

/// Opens, and reads the numbers of every tensor that is not large.
fn checkpoint(file: &Path, _: &[u8]) {
    let Ok(checkpoint) = Checkpoint::open(file) else { return };
    let _ = checkpoint.metadata();
    for (_, stored) in checkpoint.iter() {
        if stored.elements() < 1 << 20 {
            let _ = fauna_shared::weights::widen(stored);
        }
    }
    let _ = fauna_shared::weights::tensors(file);
}

/// An index of shards, with one shard beside it.
fn index(file: &Path, bytes: &[u8]) {
    let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   "#;
    let shard = [&(header.len() as u64).to_le_bytes()[..], header, &[1, 2]].concat();
    if std::fs::write(file.with_file_name("model-00001-of-00001.safetensors"), shard).is_ok() {
        checkpoint(file, bytes);
    }
}

/// The tensors, the tokenizer and the template that it holds, then the model.
fn gguf(file: &Path, bytes: &[u8]) {
    checkpoint(file, bytes);
    if let Ok(checkpoint) = Checkpoint::open(file)
        && let Some(vocabulary) = GgufVocabulary::from_metadata(checkpoint.metadata())
        && let Ok(tokenizer) = Tokenizer::from_gguf(&vocabulary)
    {
        try_tokenizer(&tokenizer);
        if let Ok(Some(template)) = ChatTemplate::from_metadata(checkpoint.metadata(), &tokenizer) {
            let _ = template.with_now(0).render(&[Message::new("user", "Hi")], true);
        }
    }
    if let Some(file) = file.to_str() {
        let _ = fauna::open_with(file, &releases::options()).map(|model| releases::exercise(&*model));
    }
}

fn sound(file: &Path, _: &[u8]) {
    let _ = fauna_shared::audio::read::read(file);
}

fn picture(file: &Path, _: &[u8]) {
    let _ = fauna_shared::image::read(file);
}

/// Reads a table and forecasts it with the baselines.
fn table(file: &Path, _: &[u8]) {
    use fauna_forecasting::{
        Columns, ForecastOptions, Naive, SeasonalNaive, Table, cross_validate, detect_anomalies, forecast,
    };
    let Ok(table) = Table::read(file, &Columns::default()) else { return };
    let season_length = table.frequency().map_or(1, |frequency| frequency.season_length());
    let options = ForecastOptions { horizon: 3, ..ForecastOptions::default() };
    if let Ok(output) = forecast(&SeasonalNaive { season_length }, &table, &options) {
        let _ = output.table.write_csv(&mut std::io::sink());
    }
    let _ = cross_validate(&Naive, &table, &options);
    let _ = detect_anomalies(&Naive, &table, &options);
    let _ = Table::read_future(file, &Columns::default());
}

/// Reads, checks and finds neighbours, writes, and reads that again.
fn structure(file: &Path, _: &[u8]) {
    use fauna_atoms::{check, files, neighbor_list};
    let Ok(frames) = files::read(file) else { return };
    for frame in frames.iter().take(8) {
        if check(&frame.atoms).is_ok() {
            let atoms = &frame.atoms;
            let _ = neighbor_list(&atoms.positions, atoms.cell.as_ref(), atoms.periodic, 6.0);
        }
    }
    for frame in &frames {
        let mut text = Vec::new();
        if files::write_xyz(&mut text, frame).is_ok()
            && let Ok(text) = String::from_utf8(text)
        {
            let _ = files::parse(&text, files::Format::Xyz, "written");
        }
    }
}

fn genes(file: &Path, _: &[u8]) {
    use fauna_text::genslm::codons::Reading;
    use fauna_text::genslm::fasta::open;
    for reading in [Reading::Strict, Reading::AsReleased] {
        let Ok(genes) = open(file, reading) else { return };
        for gene in genes.take(10_000) {
            let _ = gene;
        }
    }
}
