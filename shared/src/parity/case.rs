//! A case as its folder holds it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Tolerance;
use crate::item::Tensors;
use crate::runtime::Precision;
use crate::weights::tensors;
use crate::{Error, ErrorKind, Result};

/// What `case.json` says. A key it does not know may change what is asked, so it is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    system: String,
    reference: String,
    call: String,
    #[serde(default)]
    options: Map<String, Value>,
    atol: f64,
    rtol: f64,
    /// For people.
    #[serde(default, rename = "note")]
    _note: Option<String>,
}

/// A case, read and ready to run.
pub(super) struct Case {
    pub system: String,
    pub reference: String,
    pub call: String,
    pub tolerance: Tolerance,
    pub weights: Weights,
    pub pretrained: Pretrained,
    /// How many positions were stored, if not all.
    pub last_positions: Option<usize>,
    /// The options left for the model.
    pub options: Value,
    pub inputs: Tensors,
    pub expected: Tensors,
}

/// Where the checkpoint lies.
pub(super) enum Weights {
    /// In this folder.
    Here(PathBuf),
    /// In the local cache, under this name.
    Cached(String),
}

/// What the case wants of the opening.
pub(super) struct Pretrained {
    /// The weights file, where its name is no standard one.
    pub file: Option<String>,
    /// The family, where the config names none.
    pub family: Option<String>,
    pub dequantize: bool,
}

impl Case {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("case.json");
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let spec: Spec = serde_json::from_slice(&text).map_err(|e| Error::format(&path, e.to_string()))?;
        let tolerance = Tolerance { atol: spec.atol, rtol: spec.rtol };
        if !(tolerance.atol >= 0.0 && tolerance.rtol >= 0.0) {
            return Err(Error::format(&path, "atol and rtol are 0 or above"));
        }
        let mut options = Options { left: spec.options, path: &path };
        let model = folder.join("model");
        let weights = match options.text("model_ref")? {
            Some(name) => Weights::Cached(name),
            None if model.is_dir() => Weights::Here(model),
            None => {
                return Err(Error::new(ErrorKind::NotFound, "the case has no folder model/")
                    .at(folder)
                    .hint("a checkpoint in the local cache is named by options.model_ref"));
            }
        };
        let pretrained = Pretrained {
            file: options.text("gguf_file")?.or(options.text("weights")?),
            family: options.text("family")?,
            dequantize: options.truth("dequantize")?,
        };
        // It says that the file is in half precision; what to compute in, the user says, and float32 is the default.
        if let Some(dtype) = options.text("dtype")? {
            dtype.parse::<Precision>().map_err(|e| e.at(&path))?;
        }
        let last_positions = options.count("logits_to_keep")?;
        options.left.remove("note");
        let expected_path = folder.join("expected.safetensors");
        let expected = tensors(&expected_path)?;
        if expected.is_empty() {
            return Err(Error::format(expected_path, "no tensor is expected, so nothing would be proved"));
        }
        let inputs_path = folder.join("inputs.safetensors");
        let inputs = match inputs_path.exists() {
            true => tensors(&inputs_path)?,
            false => Tensors::new(),
        };
        let options = Value::Object(options.left);
        let Spec { system, reference, call, .. } = spec;
        Ok(Self {
            system,
            reference,
            call,
            tolerance,
            weights,
            pretrained,
            last_positions,
            options,
            inputs,
            expected,
        })
    }
}

/// The options of a case, from which those that are no business of the model are taken.
struct Options<'a> {
    left: Map<String, Value>,
    path: &'a Path,
}

impl Options<'_> {
    fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.take(key, "a string", |value| value.as_str().map(str::to_string))
    }

    fn truth(&mut self, key: &str) -> Result<bool> {
        Ok(self.take(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>> {
        self.take(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn take<T>(&mut self, key: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::format(self.path, format!("options.{key} is {kind}, not {value}"))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Metadata, StorageType, TensorInfo, write_safetensors};

    /// A case whose `case.json` is `spec` and which expects the float 1, or nothing.
    fn case(spec: &str, expects: bool) -> Result<Case> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("model")).unwrap();
        std::fs::write(folder.path().join("case.json"), spec).unwrap();
        let one = TensorInfo { name: "y".into(), storage: StorageType::F32, shape: vec![1] };
        let tensors = if expects { vec![one] } else { vec![] };
        let path = folder.path().join("expected.safetensors");
        write_safetensors(&path, &Metadata::new(), &tensors, |_| Ok(1f32.to_le_bytes())).unwrap();
        Case::open(folder.path())
    }

    fn spec(extra: &str, options: &str) -> String {
        format!(
            r#"{{"system": "BERT", "reference": "r", "call": "forward", "atol": 1e-4, "rtol": 1e-3{extra},
                "options": {{{options}}}}}"#
        )
    }

    #[test]
    fn a_case_may_have_no_inputs_and_a_note() {
        let case =
            case(&spec(r#", "note": "n""#, r#""note": "n", "texts": ["a"], "logits_to_keep": 3"#), true);
        let case = case.unwrap();
        assert!(case.inputs.is_empty());
        assert_eq!(case.last_positions, Some(3));
        assert_eq!(case.options, serde_json::json!({"texts": ["a"]}));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = case(&spec(r#", "tolerance": 1"#, ""), true).err().unwrap().to_string();
        assert!(error.contains("tolerance"), "{error}");
    }

    #[test]
    fn an_option_of_another_type_is_refused() {
        let error = case(&spec("", r#""dequantize": "yes""#), true).err().unwrap().to_string();
        assert!(error.contains("options.dequantize is true or false, not \"yes\""), "{error}");
    }

    #[test]
    fn a_case_that_expects_nothing_is_refused() {
        let error = case(&spec("", ""), false).err().unwrap().to_string();
        assert!(error.contains("nothing would be proved"), "{error}");
    }

    #[test]
    fn a_negative_tolerance_is_refused() {
        assert!(case(&spec("", "").replace("1e-4", "-1e-4"), true).is_err());
    }
}
