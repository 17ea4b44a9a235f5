//! Parity: the proof that a model computes what its reference computes, from the same files.
//!
//! A case is a folder with a checkpoint, inputs and the reference's outputs; `case.json` says what to call and how
//! close the answer must be. [`find`] finds cases, [`run`] runs one, [`Report`] says how far each tensor is off.
//!
//! ```no_run
//! use fauna_shared::parity;
//! use fauna_shared::zoo::{LoadOptions, Zoo};
//! # let zoo = Zoo::new([]);
//! for case in parity::find("tests/parity".as_ref())? {
//!     let report = parity::run(&case, &zoo, &LoadOptions::default())?;
//!     assert!(report.passes(), "{report}");
//! }
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod case;
mod compare;

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;

use crate::error::{first_five, nearest};
use crate::item::Tensors;
use crate::order::by_name;
use crate::source::{Source, Wanted};
use crate::zoo::{LoadOptions, Zoo};
use crate::{Error, ErrorKind, Result};

use case::{Case, Weights};
pub use compare::{Row, Tolerance, compare};

/// How one case went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The folder of the case.
    pub case: PathBuf,
    /// The system it speaks of: "BERT".
    pub system: String,
    /// Which program gave the expected numbers, with its version.
    pub reference: String,
    /// The method called.
    pub call: String,
    /// How close a float must be.
    #[serde(flatten)]
    pub tolerance: Tolerance,
    /// One row an expected tensor, by name; none if the case was skipped.
    pub rows: Vec<Row>,
    /// Why the case was not run, if it was not: it needs a checkpoint that is not in the local cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Report {
    /// Whether every tensor agrees. A skipped case does not fail.
    pub fn passes(&self) -> bool {
        self.rows.iter().all(|row| row.agrees)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} against {}", self.case.display(), self.call, self.reference)?;
        if let Some(reason) = &self.skipped {
            write!(f, "\n  skipped: {reason}")?;
        }
        for row in &self.rows {
            write!(f, "\n  {row}")?;
        }
        Ok(())
    }
}

/// The folders at or below `folder` that hold a `case.json`, sorted.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there is none.
pub fn find(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(folder, &mut found)?;
    found.sort_by(|a, b| by_name(a, b));
    match found.is_empty() {
        true => Err(Error::new(ErrorKind::NotFound, "no case.json in this folder or below").at(folder)),
        false => Ok(found),
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if folder.join("case.json").is_file() {
        found.push(folder.to_path_buf());
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, "list", e))? {
        let entry = entry.map_err(|e| Error::io(folder, "list", e))?;
        // Links are not followed: they may lead back up.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Opens the checkpoint of the case in `folder`, calls what the case says, and compares.
///
/// `options` choose device, number type and weight format, so that a user can see what a GPU or an 8-bit copy
/// changes; which weights file to open, as which family and whether to dequantise it, the case decides.
///
/// # Errors
/// Whatever keeps the case from being run: a `case.json` or tensors that cannot be read, a checkpoint that does not
/// open, an input the model does not know, an expected tensor the model did not return. A tensor that differs, in
/// its numbers or its shape, is no error but a [`Row`] that says so.
pub fn run(folder: &Path, zoo: &Zoo, options: &LoadOptions) -> Result<Report> {
    let case = Case::open(folder)?;
    let mut report = Report {
        case: folder.to_path_buf(),
        system: case.system,
        reference: case.reference,
        call: case.call,
        tolerance: case.tolerance,
        rows: Vec::new(),
        skipped: None,
    };
    let source = match case.weights {
        Weights::Here(folder) => folder.to_string_lossy().into_owned(),
        Weights::Cached(name) => match options.finder.find(&Source::Name(name.clone()), &Wanted::default()) {
            Ok(files) => files.root().to_string_lossy().into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                report.skipped = Some(format!("{name} is not in the local cache"));
                return Ok(report);
            }
            Err(error) => return Err(error),
        },
    };
    let mut options = options.clone();
    options.file = case.pretrained.file;
    options.family = case.pretrained.family.or(options.family);
    options.settings = case.options.as_object().cloned().unwrap_or_default();
    options.runtime = options.runtime.with_dequantize(case.pretrained.dequantize);
    let pipeline = zoo.open(&source, &options)?;
    let returned = pipeline.call(&report.call, &case.inputs, &case.options).map_err(|e| e.at(folder))?;
    for (name, expected) in &case.expected {
        let found = returned.get(name).ok_or_else(|| not_returned(name, &returned).at(folder))?;
        let found = last_positions(found, expected, case.last_positions)?;
        report.rows.push(compare(name, expected, &found, report.tolerance)?);
    }
    Ok(report)
}

/// The last positions of `(rows, time, …)`, where the case stored only so many of them.
fn last_positions(found: &Tensor, expected: &Tensor, kept: Option<usize>) -> Result<Tensor> {
    match (kept, found.dims(), expected.dims()) {
        (Some(kept), &[_, time, ..], &[_, stored, ..]) if stored == kept && time > kept => {
            Ok(found.narrow(1, time - kept, kept)?)
        }
        _ => Ok(found.clone()),
    }
}

fn not_returned(name: &str, returned: &Tensors) -> Error {
    let names = || returned.keys().map(String::as_str);
    let error =
        Error::new(ErrorKind::Input, format!("no tensor \"{name}\" was returned, though one is expected"));
    let error = match nearest(name, names()).first() {
        Some(near) => error.hint(format!("nearest: {near}")),
        None => error,
    };
    error.hint(match returned.len() {
        0..=20 => format!("returned: {}", names().collect::<Vec<_>>().join(", ")),
        _ => format!("returned\n{}", first_five(names())),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_folder_without_cases_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn cases_are_found_at_any_depth_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/c", "a"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("case.json"), "{}").unwrap();
        }
        let found = find(folder.path()).unwrap();
        assert_eq!(found, [folder.path().join("a"), folder.path().join("b/c")]);
    }

    #[test]
    fn a_tensor_that_was_not_returned_is_an_error_that_lists_what_was() {
        let one = Tensor::new(1f32, &Device::Cpu).unwrap();
        let returned = Tensors::from([("logits".to_string(), one.clone()), ("pooled".to_string(), one)]);
        let error = not_returned("logit", &returned).to_string();
        assert!(error.contains("\"logit\"") && error.contains("returned: logits, pooled"), "{error}");
    }

    #[test]
    fn only_the_last_positions_are_kept() {
        let all = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((2, 3, 2)).unwrap();
        let two = all.narrow(1, 1, 2).unwrap();
        assert_eq!(last_positions(&all, &two, Some(2)).unwrap().dims(), [2, 2, 2]);
        assert_eq!(last_positions(&all, &two, None).unwrap().dims(), [2, 3, 2], "a wrong shape stays one");
        assert_eq!(last_positions(&all, &two, Some(1)).unwrap().dims(), [2, 3, 2]);
    }
}
