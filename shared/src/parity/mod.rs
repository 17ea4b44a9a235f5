//! Parity tests: comparison of a model with its reference implementation, on the same checkpoint.
//!
//! A case is a folder with a checkpoint, inputs and the outputs of the reference; `case.json` specifies the method to
//! call and the tolerance. [`find`] finds cases, [`run`] runs one and returns a [`Report`] of the error of each tensor.
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
mod seeded;
mod train_step;

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
pub use seeded::ModelFolder;

/// Result of a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The folder of the case.
    pub case: PathBuf,
    /// The model architecture, for example "BERT".
    pub system: String,
    /// The reference implementation, with its version.
    pub reference: String,
    /// The method called.
    pub call: String,
    /// The tolerance of floats.
    #[serde(flatten)]
    pub tolerance: Tolerance,
    /// One row per expected tensor, by name; empty if the case was skipped.
    pub rows: Vec<Row>,
    /// Why the case was skipped, if it was: its checkpoint is not in the local cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Report {
    /// Whether every tensor agrees; true for a skipped case.
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

/// Returns the folders with a `case.json` in `folder`, recursively and sorted.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there are none.
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
        // Symbolic links are not followed: they may form cycles.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

/// Loads the checkpoint of the case in `folder`, calls the method, and compares the outputs.
///
/// `options` choose device, dtype and quantization, to measure their error; the case determines the weights file, the
/// model family and whether to dequantize.
///
/// # Errors
/// An invalid `case.json` or tensor file, a checkpoint that cannot be loaded, an input that the model does not accept,
/// or an expected tensor that is not returned. A tensor that differs in values or shape is not an error but reported in
/// its [`Row`].
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
    // Files made from seeds are there for as long as the model is.
    let mut written = None;
    let source = match case.weights {
        Weights::Here(folder) => {
            let model = written.insert(ModelFolder::open(&folder)?);
            model.path().to_string_lossy().into_owned()
        }
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
    options.adapters = case.pretrained.adapters;
    options.settings = case.options.as_object().cloned().unwrap_or_default();
    options.runtime = options.runtime.with_dequantize(case.pretrained.dequantize);
    let written_out = |error: Error| match &written {
        Some(model) if model.is_copy() => {
            error.hint(format!("the model was written out from {}", folder.join("model").display()))
        }
        _ => error,
    };
    let returned = match report.call.as_str() {
        "train_step" => train_step::run(zoo, &source, &options, &case.inputs, &case.options, &case.expected),
        call => {
            let pipeline = zoo.open(&source, &options).map_err(written_out)?;
            pipeline.call(call, &case.inputs, &case.options)
        }
    };
    let returned = returned.map_err(|error| error.at(folder))?;
    for (name, expected) in &case.expected {
        let found = returned.get(name).ok_or_else(|| not_returned(name, &returned).at(folder))?;
        let found = last_positions(found, expected, case.last_positions)?;
        report.rows.push(compare(name, expected, &found, report.tolerance)?);
    }
    Ok(report)
}

/// Returns the last positions of `found`, `(batch, sequence, …)`, if the case stored only `kept` of them.
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
    let error = Error::new(ErrorKind::Input, format!("expected a tensor \"{name}\", which was not returned"));
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
    fn cases_are_found_recursively_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b/c", "a"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("case.json"), "{}").unwrap();
        }
        let found = find(folder.path()).unwrap();
        assert_eq!(found, [folder.path().join("a"), folder.path().join("b/c")]);
    }

    #[test]
    fn a_missing_tensor_is_an_error_that_lists_the_returned_ones() {
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
        assert_eq!(last_positions(&all, &two, None).unwrap().dims(), [2, 3, 2], "another shape is unchanged");
        assert_eq!(last_positions(&all, &two, Some(1)).unwrap().dims(), [2, 3, 2]);
    }
}
