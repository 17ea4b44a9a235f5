//! What fine-tuning reads: adapters and data sets.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use fauna_datasets::{
    Dataset, DatasetOptions, EpisodeFrame, RobotEpisode, Split, WriteOptions, write_episodes,
};
use fauna_shared::adapter::{Adapter, CONFIG, NON_LORA, WEIGHTS};

/// Number of examples of a split that are read.
const MOST: usize = 64;

/// An adapter: its config, a zero byte, and the file of its tensors, which is that of the tensors trained in full as well.
/// What opens is written and opened again.
pub fn adapter(file: &Path, bytes: &[u8]) {
    let folder = file.with_file_name("of_adapter");
    let at = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let tensors = bytes.get(at + 1..).unwrap_or_default();
    if std::fs::create_dir_all(&folder).is_err() || std::fs::write(folder.join(CONFIG), &bytes[..at]).is_err()
    {
        return;
    }
    for others in [false, true] {
        let _ = std::fs::write(folder.join(WEIGHTS[0]), tensors);
        match others {
            true => _ = std::fs::write(folder.join(NON_LORA), tensors),
            false => _ = std::fs::remove_file(folder.join(NON_LORA)),
        }
        let Ok(adapter) = Adapter::open(&folder) else { continue };
        let _ = (adapter.base(), adapter.modules_without_tensors());
        let again = file.with_file_name("adapter_again");
        if adapter.write(&again).is_ok() {
            let read = Adapter::open(&again).expect("a written adapter opens");
            assert_eq!(read.modules().len(), adapter.modules().len());
            assert_eq!(read.saved().len(), adapter.saved().len());
        }
    }
}

/// The adapters of the tests in the form of [`adapter`].
pub fn adapter_seeds() -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> = vec![root.join("shared/tests/adapters"), root.join("tests/parity")];
    let mut seeds = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(entries.filter(|path| path.is_dir()));
        let Ok(config) = std::fs::read(folder.join(CONFIG)) else { continue };
        let tensors = WEIGHTS.iter().find_map(|name| std::fs::read(folder.join(name)).ok());
        let seed = [config, vec![0], tensors.unwrap_or_default()].concat();
        if seed.len() < 1 << 18 {
            seeds.push(seed);
        }
    }
    seeds
}

/// A file of rows, alone and as the training split of a folder of which a share is held out.
pub fn dataset(file: &Path, _: &[u8]) {
    for options in [DatasetOptions::default(), DatasetOptions::default().with_valid_fraction(0.3)] {
        if let Ok(dataset) = Dataset::open(file, &options) {
            read(&dataset);
        }
    }
}

fn read(dataset: &Dataset) {
    let _ = (dataset.description(), dataset.notes(), dataset.action_statistics("fuzz"));
    let each = |split: &Split| split.examples().take(MOST).for_each(drop);
    each(dataset.train());
    dataset.validation().into_iter().chain(dataset.test()).for_each(each);
}

/// Episodes of a robot, one of whose files of metadata this is.
pub fn robot(file: &Path, bytes: &[u8]) {
    static EPISODES: LazyLock<Option<(tempfile::TempDir, PathBuf)>> = LazyLock::new(|| {
        let place = tempfile::tempdir().ok()?;
        let folder = place.path().join("episodes");
        let frame = |step: usize| EpisodeFrame {
            images: Vec::new(),
            state: vec![step as f64],
            action: vec![0.5, -(step as f64)],
        };
        let episode =
            |name: &str| RobotEpisode { instruction: name.to_string(), frames: (0..3).map(frame).collect() };
        let episodes = [episode("push"), episode("pull")];
        write_episodes(&folder, &episodes, &WriteOptions::new("arm", 10, &[])).ok()?;
        Some((place, folder))
    });
    let (Some((_, folder)), Some(name)) = (&*EPISODES, file.file_name()) else { return };
    let path = folder.join("meta").join(name);
    let Ok(original) = std::fs::read(&path) else { return };
    if std::fs::write(&path, bytes).is_ok()
        && let Ok(dataset) = Dataset::open(folder, &DatasetOptions::default())
    {
        read(&dataset);
    }
    let _ = std::fs::write(&path, original);
}
