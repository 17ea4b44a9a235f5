//! Damaged files: every answer is an example or an error, at once.

use std::path::{Path, PathBuf};

use fauna_shared::generate::Rng;
use fauna_shared::item::Image;

use super::{copy, default, fixture, folder};
use crate::Dataset;

/// Opens a data set and reads all of it.
fn read_all(path: &Path) {
    let Ok(dataset) = Dataset::open(path, &default()) else { return };
    for split in [Some(dataset.train()), dataset.validation(), dataset.test()].into_iter().flatten() {
        split.examples().for_each(drop);
    }
}

/// The files below a folder.
fn files(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Cuts each file of `root` at places and changes its bytes.
fn damage(root: &Path, rounds: usize) {
    let mut random = Rng::new(11, 0);
    let mut draw = |bound: usize| random.next_u32() as usize % bound.max(1);
    for file in files(root) {
        let whole = std::fs::read(&file).unwrap();
        for _ in 0..rounds {
            std::fs::write(&file, &whole[..draw(whole.len())]).unwrap();
            read_all(root);
            let mut changed = whole.clone();
            for _ in 0..=draw(3) {
                let (at, bit) = (draw(whole.len()), draw(8));
                changed[at] ^= 1 << bit;
            }
            std::fs::write(&file, changed).unwrap();
            read_all(root);
        }
        std::fs::write(&file, whole).unwrap();
    }
}

#[test]
fn damaged_episodes_never_panic() {
    for version in ["v2", "v3"] {
        let folder = tempfile::tempdir().unwrap();
        copy(&fixture(version), folder.path());
        damage(folder.path(), 60);
        assert!(Dataset::open(folder.path(), &default()).is_ok());
    }
}

#[test]
fn damaged_text_files_never_panic() {
    let cases = [
        (
            "train.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"é\"}]}, {\"role\": \"assistant\", \"content\": \"b\"}], \"tools\": []}\n",
        ),
        ("train.jsonl", "{\"text\": \"a\", \"label\": [\"x\"]}\n{\"text\": \"b\", \"label\": []}\n"),
        ("train.csv", "text,label\n\"a \"\"b\"\"\",1\nc,0.5\n"),
        ("train.csv", "unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,2\na,2024-01-03,2\n"),
        ("train.fasta", ">a b\nACGT\nAC\n>c\nTTT\n"),
        ("train.xyz", "1\nLattice=\"2 0 0 0 2 0 0 0 2\" energy=-1 virial=\"1 0 0 0 1 0 0 0 1\"\nH 0 0 0\n"),
        ("train.txt", "one\n\ntwo é\n"),
    ];
    for (name, text) in cases {
        let folder = folder(&[(name, text)]);
        assert!(
            Dataset::open(folder.path(), &default()).is_ok(),
            "{text}: {:?}",
            Dataset::open(folder.path(), &default())
        );
        damage(folder.path(), 150);
    }
}

#[test]
fn damaged_folders_of_media_never_panic() {
    let folder = folder(&[("metadata.jsonl", "{\"file_name\": \"a.png\", \"label\": \"x\"}\n")]);
    fauna_shared::image::write(folder.path().join("a.png"), &Image { width: 3, height: 2, rgb: vec![7; 18] })
        .unwrap();
    assert!(Dataset::open(folder.path(), &default()).unwrap().train().get(0).is_ok());
    damage(folder.path(), 150);
}
