//! Which files of a path are which split, and of which convention.

use std::path::{Path, PathBuf};

use fauna_shared::error::first_five;
use fauna_shared::order::by_name;
use fauna_shared::{Error, Result};

use crate::media;
use crate::options::{DatasetKind, DatasetOptions};
use crate::series_columns;

/// Data of one split.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub kind: DatasetKind,
    pub path: PathBuf,
}

/// The parts of a data set.
pub(crate) struct Splits {
    pub train: Part,
    pub validation: Option<Part>,
    pub test: Option<Part>,
    pub notes: Vec<String>,
}

/// What is known, for errors.
const KNOWN: &str = "known: JSON lines (.jsonl), .csv, .txt, FASTA, extended XYZ, Parquet of time series; a folder with \
                     train.jsonl (or another of these) and valid and test; a folder of pictures or sounds with \
                     metadata.jsonl, metadata.csv or one folder per class; a folder of LeRobot";

/// Names of the splits: training, validation, test.
const NAMES: [&[&str]; 3] = [&["train"], &["valid", "validation", "val", "dev"], &["test"]];

/// Finds the splits at `path`.
pub(crate) fn splits(path: &Path, options: &DatasetOptions) -> Result<Splits> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if !about.is_dir() {
        let kind = match options.kind {
            Some(kind @ (DatasetKind::Media | DatasetKind::Robot)) => {
                return Err(Error::input(format!("expected a folder of {kind}, found a file")).at(path));
            }
            Some(kind) => kind,
            None => kind_of(path, options)?.ok_or_else(|| {
                Error::input("the name is not that of a known kind of training data").at(path).hint(KNOWN)
            })?,
        };
        return Ok(alone(kind, path.to_path_buf()));
    }
    if options.kind == Some(DatasetKind::Robot)
        || options.kind.is_none() && path.join("meta/info.json").is_file()
    {
        return Ok(alone(DatasetKind::Robot, path.to_path_buf()));
    }
    let (files, folders) = entries(path)?;
    if options.kind != Some(DatasetKind::Media)
        && let Some(found) = of_files(path, &files, options)?
    {
        return Ok(found);
    }
    if options.kind.is_none_or(|kind| kind == DatasetKind::Media) {
        if let Some(found) = of_folders(path, &files, &folders)? {
            return Ok(found);
        }
        if media::is_folder(path, &files, &folders)? {
            return Ok(alone(DatasetKind::Media, path.to_path_buf()));
        }
    }
    let names = files.iter().chain(&folders).filter_map(|path| path.file_name());
    let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    let found = match names.is_empty() {
        true => "the folder is empty".to_string(),
        false => format!("no training data found among: {}", first_five(names).replace('\n', ", ")),
    };
    Err(Error::input(found).at(path).hint(KNOWN))
}

fn alone(kind: DatasetKind, path: PathBuf) -> Splits {
    Splits { train: Part { kind, path }, validation: None, test: None, notes: Vec::new() }
}

/// The files and folders of a folder, in natural order, without hidden ones.
pub(crate) fn entries(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let unread = |e| Error::io(path, "read", e);
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(unread)? {
        let path = entry.map_err(unread)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match path.is_dir() {
            _ if is_hidden => {}
            true => folders.push(path),
            false => files.push(path),
        }
    }
    files.sort_by(|a, b| by_name(a, b));
    folders.sort_by(|a, b| by_name(a, b));
    Ok((files, folders))
}

/// The convention of a file by its name, and of a table by its columns; `None` if it is not known.
fn kind_of(path: &Path, options: &DatasetOptions) -> Result<Option<DatasetKind>> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    Ok(Some(match extension.as_str() {
        "jsonl" | "ndjson" => DatasetKind::Rows,
        "txt" => DatasetKind::Text,
        "fasta" | "fa" | "fna" | "ffn" => DatasetKind::Genes,
        "xyz" | "extxyz" => DatasetKind::Atoms,
        "parquet" | "pq" => DatasetKind::Series,
        "csv" if series_columns::is_in_csv(path, options)? => DatasetKind::Series,
        "csv" => DatasetKind::Rows,
        _ => return Ok(None),
    }))
}

/// The splits of a folder with a file each, or its only file; `None` if there is none.
fn of_files(path: &Path, files: &[PathBuf], options: &DatasetOptions) -> Result<Option<Splits>> {
    let is_metadata = |path: &Path| path.file_stem().is_some_and(|stem| stem == "metadata");
    let mut known = Vec::new();
    for file in files.iter().filter(|file| !is_metadata(file)) {
        let kind = match options.kind {
            // A kind that is given is that of all files with the names of splits.
            Some(kind) if NAMES.iter().any(|names| stem_is(file, names)) => Some(kind),
            _ => kind_of(file, options)?.filter(|kind| options.kind.is_none_or(|wanted| wanted == *kind)),
        };
        known.extend(kind.map(|kind| Part { kind, path: file.clone() }));
    }
    let mut found = Vec::with_capacity(3);
    for names in NAMES {
        let mut parts = known.iter().filter(|part| stem_is(&part.path, names));
        let part = parts.next().cloned();
        if let (Some(one), Some(other)) = (&part, parts.next()) {
            return Err(Error::input(format!(
                "both {} and {} may be the split `{}`",
                one.path.file_name().unwrap_or_default().display(),
                other.path.file_name().unwrap_or_default().display(),
                names[0]
            ))
            .at(path)
            .hint("leave one of them in the folder, or name the file"));
        }
        found.push(part);
    }
    let test = found.pop().flatten();
    let validation = found.pop().flatten();
    let Some(train) = found.pop().flatten() else {
        if validation.is_some() || test.is_some() {
            let there = validation.or(test).map(|part| part.path).unwrap_or_default();
            let name = there.file_name().unwrap_or_default().display().to_string();
            return Err(Error::input(format!("there is {name}, but no file `train` of its kind")).at(path));
        }
        // A picture next to a text is not a folder of one text.
        return Ok(match &known[..] {
            [one] if !files.iter().any(|file| media::kind_of(file).is_some()) => {
                Some(alone(one.kind, one.path.clone()))
            }
            _ => None,
        });
    };
    let is_used = |part: &&Part| {
        Some(*part) == Some(&train) || Some(*part) == validation.as_ref() || Some(*part) == test.as_ref()
    };
    let rest: Vec<String> = known
        .iter()
        .filter(|part| !is_used(part))
        .map(|part| part.path.file_name().unwrap_or_default().display().to_string())
        .collect();
    let notes = match rest.is_empty() {
        true => Vec::new(),
        false => vec![format!("{}: not read: {}", path.display(), first_five(rest).replace('\n', ", "))],
    };
    Ok(Some(Splits { train, validation, test, notes }))
}

fn stem_is(path: &Path, names: &[&str]) -> bool {
    path.file_stem().is_some_and(|stem| names.iter().any(|name| stem.eq_ignore_ascii_case(name)))
}

/// The splits of a folder with a folder of media each; `None` if there is none called `train`.
fn of_folders(path: &Path, files: &[PathBuf], folders: &[PathBuf]) -> Result<Option<Splits>> {
    // With metadata next to them, the folders are parts of its paths.
    if media::metadata_of(files).is_some() {
        return Ok(None);
    }
    let named = |names: &[&str]| -> Result<Option<Part>> {
        let mut fitting = folders.iter().filter(|folder| {
            folder.file_name().is_some_and(|name| names.iter().any(|known| name.eq_ignore_ascii_case(known)))
        });
        match (fitting.next(), fitting.next()) {
            (Some(one), Some(other)) => Err(Error::input(format!(
                "both {} and {} may be the split `{}`",
                one.file_name().unwrap_or_default().display(),
                other.file_name().unwrap_or_default().display(),
                names[0]
            ))
            .at(path)
            .hint("leave one of them in the folder")),
            (one, _) => Ok(one.map(|path| Part { kind: DatasetKind::Media, path: path.clone() })),
        }
    };
    let [train, validation, test] = NAMES.map(named);
    let (validation, test) = (validation?, test?);
    let Some(train) = train? else { return Ok(None) };
    let (inner, deeper) = entries(&train.path)?;
    if !media::is_folder(&train.path, &inner, &deeper)? {
        return Ok(None);
    }
    let used = [Some(&train), validation.as_ref(), test.as_ref()];
    let is_used = |folder: &&PathBuf| used.iter().flatten().any(|part| part.path == **folder);
    if let Some(other) = folders.iter().find(|folder| !is_used(folder)) {
        let name = other.file_name().unwrap_or_default().display().to_string();
        return Err(Error::input(format!("the folder {name} is next to the folder train, and is no split"))
            .at(path)
            .hint("splits: train, valid (or validation, val, dev), test"));
    }
    Ok(Some(Splits { train, validation, test, notes: Vec::new() }))
}
