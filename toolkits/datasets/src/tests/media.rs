//! Folders of pictures and sounds.

use std::path::Path;

use fauna_shared::audio::write::{Level, Samples, write};
use fauna_shared::image;
use fauna_shared::item::{Image, Item, Prompt, Sound};
use fauna_shared::train::{Example, Target};

use super::{default, folder, refused};
use crate::Dataset;

/// Writes a picture of one colour.
fn picture(path: &Path, red: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::write(path, &Image { width: 2, height: 1, rgb: [red, 0, 0].repeat(2) }).unwrap();
}

fn sound(path: &Path) {
    let sound = Sound { rate: 8000, channels: vec![vec![0.25; 80]] };
    write(path, &sound, Samples::Int16, Level::Keep).unwrap();
}

fn red(item: &Item) -> u8 {
    match item {
        Item::Image(image) => image.rgb[0],
        other => panic!("{other:?}"),
    }
}

#[test]
fn folders_are_classes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, value) in
        [("train/cat/2.png", 2), ("train/cat/10.png", 10), ("train/dog/1.png", 1), ("valid/dog/3.png", 3)]
    {
        picture(&root.join(name), value);
    }
    std::fs::write(root.join("train/dog/readme.md"), "dogs").unwrap();
    let dataset = Dataset::open(root, &default()).unwrap();
    assert_eq!(dataset.classes(), ["cat", "dog"]);
    assert!(dataset.description().ends_with("3 labelled pictures for training, 1 for validation; 2 classes"));
    assert!(dataset.notes()[0].ends_with("not read: dog/readme.md"), "{:?}", dataset.notes());
    let seen: Vec<(u8, Target)> = dataset
        .train()
        .examples()
        .map(|example| match example.unwrap() {
            Example::Labelled { item, label, .. } => (red(&item), label),
            other => panic!("{other:?}"),
        })
        .collect();
    let class = |name: &str| Target::Class(name.to_string());
    assert_eq!(seen, [(2, class("cat")), (10, class("cat")), (1, class("dog"))]);
    picture(&root.join("valid/horse/4.png"), 4);
    refused(Dataset::open(root, &default()), &["valid: the folder horse: the class \"horse\"", "cat, dog"]);
    std::fs::write(root.join("valid/dog/3.png"), b"not a picture").unwrap();
    std::fs::remove_dir_all(root.join("valid/horse")).unwrap();
    let dataset = Dataset::open(root, &default()).unwrap();
    refused(dataset.validation().unwrap().get(0), &["3.png"]);
    sound(&root.join("train/dog/bark.wav"));
    refused(Dataset::open(root, &default()), &["a picture folder has dog/bark.wav"]);
}

#[test]
fn metadata_names_the_files_captions_and_labels() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    picture(&root.join("in/a.png"), 7);
    let with = |text: &str| std::fs::write(root.join("metadata.jsonl"), text).unwrap();
    with(r#"{"file_name": "in/a.png", "text": "a red line"}"#);
    let Example::Pair { anchor, positive, .. } =
        Dataset::open(root, &default()).unwrap().train().get(0).unwrap()
    else {
        panic!()
    };
    assert_eq!((red(&anchor), positive.text().unwrap()), (7, "a red line"));
    with(r#"{"file_name": "in/a.png", "text": "a red line", "label": "red"}"#);
    refused(Dataset::open(root, &default()), &["metadata.jsonl: line 1: ", "DatasetOptions::without"]);
    let dataset = Dataset::open(root, &default().without("text")).unwrap();
    assert_eq!(dataset.train().get(0).unwrap().kind(), "labelled");
    for (name, part) in [
        ("../a.png", "the path \"../a.png\" leaves the folder"),
        ("/etc/a.png", "leaves the folder"),
        ("b.png", "there is no file \"b.png\""),
        ("in/a.doc", "not the name of a picture or sound"),
    ] {
        with(&format!("{{\"file_name\": \"{name}\", \"label\": \"red\"}}"));
        refused(Dataset::open(root, &default()), &["metadata.jsonl: line 1: ", part]);
    }
    std::fs::remove_file(root.join("metadata.jsonl")).unwrap();
    std::fs::write(root.join("metadata.csv"), "file_name,label\nin/a.png,red\n").unwrap();
    assert_eq!(Dataset::open(root, &default()).unwrap().classes(), ["red"]);
    std::fs::write(root.join("in/a.png"), b"broken").unwrap();
    let dataset = Dataset::open(root, &default()).unwrap();
    refused(dataset.train().get(0), &["a.png", "line 2 of metadata.csv"]);
}

#[cfg(unix)]
#[test]
fn links_that_leave_the_folder_are_refused() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    picture(&other.path().join("a.png"), 1);
    std::os::unix::fs::symlink(other.path().join("a.png"), folder.path().join("a.png")).unwrap();
    std::fs::write(folder.path().join("metadata.csv"), "file_name,label\na.png,red\n").unwrap();
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    refused(dataset.train().get(0), &["line 2", "is a link that leaves the folder"]);
}

#[test]
fn sounds_have_captions_or_stand_alone() {
    let folder = tempfile::tempdir().unwrap();
    sound(&folder.path().join("a.wav"));
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    let Example::Sound { sound, caption: None } = dataset.train().get(0).unwrap() else { panic!() };
    assert_eq!((sound.rate, sound.channels[0].len()), (8000, 80));
    std::fs::write(folder.path().join("metadata.jsonl"), r#"{"file_name": "a.wav", "text": "a tone"}"#)
        .unwrap();
    let dataset = Dataset::open(folder.path(), &default()).unwrap();
    let Example::Sound { caption: Some(caption), .. } = dataset.train().get(0).unwrap() else { panic!() };
    assert_eq!(caption, "a tone");
    std::fs::remove_file(folder.path().join("metadata.jsonl")).unwrap();
    let whole = std::fs::read(folder.path().join("a.wav")).unwrap();
    std::fs::write(folder.path().join("a.wav"), &whole[..whole.len() - 40]).unwrap();
    refused(Dataset::open(folder.path(), &default()).unwrap().train().get(0), &["a.wav", "damaged"]);
}

#[test]
fn prompts_and_chats_have_pictures() {
    let row = r#"{"image": "a.png", "prompt": "what is it?", "completion": "red"}"#;
    let chat = r#"{"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}, {"role": "assistant", "content": "red"}]}"#;
    let unused = r#"{"images": ["a.png"], "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]}"#;
    let folder = folder(&[("one.jsonl", row), ("two.jsonl", chat), ("three.jsonl", unused)]);
    picture(&folder.path().join("a.png"), 5);
    let get = |name: &str| Dataset::open(folder.path().join(name), &default())?.train().get(0);
    let Example::Completion { prompt: Prompt::Items(items), .. } = get("one.jsonl").unwrap() else {
        panic!()
    };
    assert_eq!((red(&items[0]), items[1].text().unwrap()), (5, "what is it?"));
    let Example::Chat { turns, .. } = get("two.jsonl").unwrap() else { panic!() };
    assert_eq!((red(&turns[0].items[0]), turns[0].items.len()), (5, 2));
    refused(get("three.jsonl"), &["line 1: 1 of the row's files are in no message"]);
}
