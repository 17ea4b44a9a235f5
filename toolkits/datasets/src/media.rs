//! Pictures and sounds: folders of them, and files that rows name.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use fauna_shared::error::first_five;
use fauna_shared::item::{ImageOptions, Item};
use fauna_shared::train::{Example, Target};
use fauna_shared::{Error, Result};

use crate::dataset::{Opened, Source, below};
use crate::find::entries;
use crate::options::{DatasetOptions, TargetKind};
use crate::rows;

/// A kind of media file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Image,
    Sound,
}

impl Media {
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "picture",
            Self::Sound => "sound",
        }
    }
}

const IMAGES: &[&str] = &["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];
const SOUNDS: &[&str] =
    &["wav", "flac", "mp3", "ogg", "oga", "m4a", "aac", "aif", "aiff", "au", "caf", "w64", "webm", "mp4"];

/// The kind of media of a file by its name.
pub(crate) fn kind_of(path: &Path) -> Option<Media> {
    let extension = path.extension()?.to_string_lossy().to_lowercase();
    match extension.as_str() {
        image if IMAGES.contains(&image) => Some(Media::Image),
        sound if SOUNDS.contains(&sound) => Some(Media::Sound),
        _ => None,
    }
}

/// The metadata among the files of a folder.
pub(crate) fn metadata_of(files: &[PathBuf]) -> Option<&PathBuf> {
    files
        .iter()
        .find(|path| path.file_name().is_some_and(|name| name == "metadata.jsonl" || name == "metadata.csv"))
}

/// Whether a folder has metadata, media files or folders with media files.
pub(crate) fn is_folder(_path: &Path, files: &[PathBuf], folders: &[PathBuf]) -> Result<bool> {
    let has_media = |files: &[PathBuf]| files.iter().any(|file| kind_of(file).is_some());
    if metadata_of(files).is_some() || has_media(files) {
        return Ok(true);
    }
    for folder in folders {
        if has_media(&entries(folder)?.0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a folder of media.
pub(crate) fn open(path: &Path, options: &DatasetOptions) -> Result<Opened> {
    let (files, folders) = entries(path)?;
    let metadata: Vec<&PathBuf> =
        files.iter().filter(|file| metadata_of(std::slice::from_ref(file)).is_some()).collect();
    match metadata[..] {
        [] => {}
        [one] => return rows::open(one, options),
        _ => {
            return Err(
                Error::input("there are both metadata.jsonl and metadata.csv").hint("remove one of them")
            );
        }
    }
    options.check_columns("folders without metadata", &[])?;
    options.check_nothing_left_out("a folder without metadata")?;
    let (media, mut others): (Vec<PathBuf>, Vec<PathBuf>) =
        files.into_iter().partition(|file| kind_of(file).is_some());
    let mut found: Vec<File> = Vec::new();
    let mut names = Vec::new();
    if media.is_empty() {
        if options.targets == Some(TargetKind::Values) {
            return Err(Error::input("the names of folders are classes, not numbers"));
        }
        for folder in &folders {
            let name = folder.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::input("the name of the folder is not UTF-8").at(folder))?;
            let (inner, deeper) = entries(folder)?;
            if let Some(deeper) = deeper.first() {
                return Err(Error::input(format!("the class folder has the folder {}", below(folder, deeper).display()))
                    .at(folder)
                    .hint("pictures and sounds are directly in the folder of their class; otherwise list them in metadata.jsonl"));
            }
            let (media, rest): (Vec<PathBuf>, Vec<PathBuf>) =
                inner.into_iter().partition(|file| kind_of(file).is_some());
            if media.is_empty() {
                return Err(Error::input("the folder of a class has neither pictures nor sounds").at(folder));
            }
            others.extend(rest);
            found.extend(media.into_iter().map(|path| File { path, class: Some(names.len()) }));
            names.push(name.to_string());
        }
    } else if let Some(folder) = folders.first() {
        return Err(Error::input(format!(
            "pictures or sounds are next to the folder {}",
            below(path, folder).display()
        ))
        .hint("list them in metadata.jsonl, or put each into the folder of its class"));
    } else {
        found.extend(media.into_iter().map(|path| File { path, class: None }));
    }
    let kind = found.first().and_then(|first| kind_of(&first.path)).unwrap_or(Media::Image);
    if let Some(other) = found.iter().find(|file| kind_of(&file.path) != Some(kind)) {
        return Err(Error::input(format!(
            "a {} folder has {}",
            kind.name(),
            below(path, &other.path).display()
        ))
        .hint("pictures and sounds are data sets of their own"));
    }
    let what = match (kind, names.is_empty()) {
        (Media::Image, false) => "labelled pictures",
        (Media::Image, true) => "pictures",
        (Media::Sound, false) => "labelled sounds",
        (Media::Sound, true) => "sounds",
    };
    let notes = match others.is_empty() {
        true => Vec::new(),
        false => {
            let names = others.iter().map(|other| below(path, other).display().to_string());
            vec![format!("not read: {}", first_five(names).replace('\n', ", "))]
        }
    };
    let classes: BTreeMap<String, String> =
        names.iter().map(|name| (name.clone(), format!("the folder {name}"))).collect();
    let targets = (!classes.is_empty()).then_some(TargetKind::Classes);
    let source = Folder { files: found, names, kind, options: options.image };
    Ok(Opened { source: Arc::new(source), what, classes, targets, notes })
}

/// A folder without metadata.
struct Folder {
    files: Vec<File>,
    /// Names of the classes.
    names: Vec<String>,
    kind: Media,
    options: ImageOptions,
}

struct File {
    path: PathBuf,
    class: Option<usize>,
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        let File { path, class } = &self.files[index];
        let item = load(path, self.kind, &self.options)?;
        Ok(match (class, item) {
            (Some(class), item) => Example::labelled(item, Target::Class(self.names[*class].clone())),
            (None, Item::Sound(sound)) => Example::Sound { sound, caption: None },
            (None, Item::Image(image)) => Example::Image(image),
            (None, _) => return Err(Error::input("neither a picture nor a sound").at(path)),
        })
    }
}

/// The file `name` below `root`.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for a name that leaves the folder,
/// [`NotFound`](fauna_shared::ErrorKind::NotFound) if there is no such file.
pub(crate) fn inside(root: &Path, name: &str) -> Result<PathBuf> {
    let relative = Path::new(name);
    let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || !is_plain {
        return Err(Error::input(format!("the path \"{name}\" leaves the folder of the data set"))
            .hint("paths are relative to the file that names them, and below its folder"));
    }
    let path = root.join(relative);
    match path.is_file() {
        true => Ok(path),
        false => Err(Error::new(fauna_shared::ErrorKind::NotFound, format!("there is no file \"{name}\""))),
    }
}

/// As [`inside`], with links followed.
pub(crate) fn resolved(root: &Path, name: &str) -> Result<PathBuf> {
    let path = inside(root, name)?;
    let real = |path: &Path| std::fs::canonicalize(path).map_err(|e| Error::io(path, "read", e));
    // A file next to the data is often in the current folder.
    let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
    match real(&path)?.starts_with(real(root)?) {
        true => Ok(path),
        false => {
            Err(Error::input(format!("the path \"{name}\" is a link that leaves the folder of the data set")))
        }
    }
}

/// Reads a picture or a sound.
pub(crate) fn load(path: &Path, kind: Media, options: &ImageOptions) -> Result<Item> {
    match kind {
        #[cfg(feature = "image")]
        Media::Image => fauna_shared::image::read_with(path, options).map(Item::Image),
        #[cfg(not(feature = "image"))]
        Media::Image => {
            let _ = (path, options);
            Err(crate::dataset::without_feature("image", "pictures"))
        }
        #[cfg(feature = "audio")]
        Media::Sound => {
            let decoded = fauna_shared::audio::read::read(path)?;
            match decoded.damage {
                Some(damage) => Err(Error::format(path, format!("the sound is damaged: {damage}"))
                    .hint("repair the file, or remove it from the data set")),
                None => Ok(Item::Sound(decoded.sound)),
            }
        }
        #[cfg(not(feature = "audio"))]
        Media::Sound => Err(crate::dataset::without_feature("audio", "sounds")),
    }
}
