//! Data sets of every convention: what is read, and what bad data is told.

mod damage;
mod media;
mod robots;
mod rows;
mod science;

use std::path::Path;

use fauna_shared::train::Example;
use fauna_shared::{Error, Result};
use tempfile::TempDir;

use crate::{Dataset, DatasetOptions, TextUnit};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// Opens a folder of one file and reads all examples for training.
fn read(name: &str, text: &str, options: &DatasetOptions) -> Result<Vec<Example>> {
    let folder = folder(&[(name, text)]);
    let dataset = Dataset::open(folder.path().join(name), options)?;
    dataset.train().examples().collect()
}

#[track_caller]
fn refused<T>(made: Result<T>, parts: &[&str]) -> Error {
    let Err(error) = made else { panic!("no error, expected {parts:?}") };
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in: {text}");
    }
    error
}

fn default() -> DatasetOptions {
    DatasetOptions::default()
}

fn texts(dataset: &crate::Split) -> Vec<String> {
    let text = |example: Result<Example>| match example.unwrap() {
        Example::Text(text) => text,
        other => panic!("{other:?}"),
    };
    dataset.examples().map(text).collect()
}

#[test]
fn plain_text_is_lines_paragraphs_or_a_document() {
    let text = "\u{feff}one\r\ntwo\n\n\nthree";
    let of = |unit: TextUnit| {
        let folder = folder(&[("a.txt", text)]);
        texts(Dataset::open(folder.path(), &default().with_text_unit(unit)).unwrap().train())
    };
    assert_eq!(of(TextUnit::Line), ["one", "two", "three"]);
    assert_eq!(of(TextUnit::Paragraph), ["one\r\ntwo", "three"]);
    assert_eq!(of(TextUnit::Document), ["one\r\ntwo\n\n\nthree"]);
    for unit in [TextUnit::Line, TextUnit::Paragraph, TextUnit::Document] {
        for text in ["", "\n \n"] {
            refused(read("a.txt", text, &default().with_text_unit(unit)), &["a.txt: ", "empty"]);
        }
    }
}

#[test]
fn splits_are_files_of_a_folder() {
    let files = [("train.txt", "a\nb\n"), ("val.txt", "c\n"), ("test.txt", "d\n"), ("notes.txt", "e\n")];
    let folder = folder(&files);
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    let split = |split: Option<&crate::Split>| texts(split.unwrap()).concat();
    assert_eq!(
        (split(Some(dataset.train())), split(dataset.validation()), split(dataset.test())),
        ("ab".to_string(), "c".to_string(), "d".to_string())
    );
    let end = ": 2 lines of text for training, 1 for validation, 1 for testing";
    assert!(dataset.description().ends_with(end), "{}", dataset.description());
    assert!(dataset.notes()[0].ends_with("not read: notes.txt"), "{:?}", dataset.notes());
    refused(
        Dataset::open(folder.path(), &default().with_valid_fraction(0.5)),
        &["validation split of its own", "valid_fraction"],
    );
    std::fs::write(folder.path().join("dev.txt"), "f\n").unwrap();
    refused(Dataset::open(folder.path(), &default()), &["both", "val.txt", "dev.txt"]);
}

#[test]
fn a_share_is_held_out_by_seed() {
    let folder = folder(&[("a.txt", &(0..100).map(|i| format!("{i}\n")).collect::<String>())]);
    let open = |seed: u64| {
        let options = default().with_valid_fraction(0.2).with_seed(seed);
        let dataset = Dataset::open(folder.path(), &options).unwrap();
        (texts(dataset.train()), texts(dataset.validation().unwrap()))
    };
    let (train, valid) = open(1);
    assert_eq!((train.len(), valid.len()), (80, 20));
    let mut all: Vec<u32> = train.iter().chain(&valid).map(|text| text.parse().unwrap()).collect();
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..100));
    assert_eq!(open(1), (train.clone(), valid));
    assert_ne!(open(2).0, train);
    refused(read("a.txt", "one\n", &default().with_valid_fraction(0.1)), &["nothing can be held out"]);
    refused(read("a.txt", "one\n", &default().with_valid_fraction(1.0)), &["between 0 and 1"]);
}

#[test]
fn what_is_no_data_set_is_told_what_is_known() {
    refused(Dataset::open("no/such/folder", &default()), &["no/such/folder"]);
    refused(read("a.docx", "x", &default()), &["a.docx", "known: JSON lines"]);
    let empty = tempfile::tempdir().unwrap();
    refused(Dataset::open(empty.path(), &default()), &["the folder is empty"]);
    let folder = folder(&[("readme.md", "x"), ("test.jsonl", "{}")]);
    refused(Dataset::open(folder.path(), &default()), &["test.jsonl", "no file `train`"]);
    std::fs::remove_file(folder.path().join("test.jsonl")).unwrap();
    refused(Dataset::open(folder.path(), &default()), &["no training data found among: readme.md"]);
}

/// The path of a committed data set.
fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests").join(name)
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => std::fs::write(&target, std::fs::read(&path).unwrap()).unwrap(),
        }
    }
}
