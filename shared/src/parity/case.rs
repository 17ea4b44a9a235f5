//! Loading of parity cases.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Tolerance;
use crate::adapter::AdapterSpec;
use crate::item::Tensors;
use crate::runtime::Precision;
use crate::weights::tensors;
use crate::{Error, ErrorKind, Result};

/// Contents of `case.json`. Unknown keys are rejected, since they may change the call.
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
    /// A comment.
    #[serde(default, rename = "note")]
    _note: Option<String>,
}

/// A loaded case.
pub(super) struct Case {
    pub system: String,
    pub reference: String,
    pub call: String,
    pub tolerance: Tolerance,
    pub weights: Weights,
    pub pretrained: Pretrained,
    /// Number of last positions stored, if not all.
    pub last_positions: Option<usize>,
    /// The options of the model.
    pub options: Value,
    pub inputs: Tensors,
    pub expected: Tensors,
}

/// Location of the checkpoint.
pub(super) enum Weights {
    /// A folder.
    Here(PathBuf),
    /// A repository in the local cache.
    Cached(String),
}

/// Loading options of the case.
pub(super) struct Pretrained {
    /// The weights file, if its name is not standard.
    pub file: Option<String>,
    /// The model family, if the config does not specify it.
    pub family: Option<String>,
    pub dequantize: bool,
    pub adapters: Vec<AdapterSpec>,
}

impl Case {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("case.json");
        let text = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        let spec: Spec = serde_json::from_slice(&text).map_err(|e| Error::format(&path, e.to_string()))?;
        let tolerance = Tolerance { atol: spec.atol, rtol: spec.rtol };
        if !(tolerance.atol >= 0.0 && tolerance.rtol >= 0.0) {
            return Err(Error::format(&path, "atol and rtol must be 0 or above"));
        }
        let mut options = Options { left: spec.options, path: &path };
        let model = folder.join("model");
        let weights = match options.text("model_ref")? {
            Some(name) => Weights::Cached(name),
            None if model.is_dir() => Weights::Here(model),
            None => {
                return Err(Error::new(ErrorKind::NotFound, "the case has no model folder \"model\"")
                    .at(folder)
                    .hint("options.model_ref names a checkpoint in the local cache"));
            }
        };
        let pretrained = Pretrained {
            file: options.text("gguf_file")?.or(options.text("weights")?),
            family: options.text("family")?,
            dequantize: options.flag("dequantize")?,
            adapters: options.adapters(folder)?,
        };
        // The dtype of the file. The computation dtype is an option of the user, float32 by default.
        if let Some(dtype) = options.text("dtype")? {
            dtype.parse::<Precision>().map_err(|e| e.at(&path))?;
        }
        let last_positions = options.count("logits_to_keep")?;
        options.left.remove("note");
        let expected_path = folder.join("expected.safetensors");
        let expected = tensors(&expected_path)?;
        if expected.is_empty() {
            return Err(Error::format(expected_path, "no expected tensors"));
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

/// The options of a case, from which those that are not for the model are removed.
struct Options<'a> {
    left: Map<String, Value>,
    path: &'a Path,
}

impl Options<'_> {
    fn text(&mut self, key: &str) -> Result<Option<String>> {
        self.take(key, "a string", |value| value.as_str().map(str::to_string))
    }

    /// The adapters: `folder` in that of the case, and `scale`.
    fn adapters(&mut self, case: &Path) -> Result<Vec<AdapterSpec>> {
        let Some(adapters) = self.take("adapters", "a list", |value| value.as_array().cloned())? else {
            return Ok(Vec::new());
        };
        let adapter = |value: &Value| {
            let path = value["folder"].as_str().map(|name| case.join(name).display().to_string());
            let spec = path.zip(value["scale"].as_f64()).map(|(path, scale)| AdapterSpec { path, scale });
            spec.ok_or_else(|| Error::format(self.path, "an adapter needs a folder and a scale"))
        };
        adapters.iter().map(adapter).collect()
    }

    fn flag(&mut self, key: &str) -> Result<bool> {
        Ok(self.take(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn count(&mut self, key: &str) -> Result<Option<usize>> {
        self.take(key, "an integer", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn take<T>(&mut self, key: &str, kind: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.left.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::format(self.path, format!("options.{key} is {value}, expected {kind}"))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Metadata, StorageType, TensorInfo, write_safetensors};

    /// A case with the `case.json` `spec` that expects the float 1, or nothing.
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
    fn an_unknown_key_is_rejected_by_name() {
        let error = case(&spec(r#", "tolerance": 1"#, ""), true).err().unwrap().to_string();
        assert!(error.contains("tolerance"), "{error}");
    }

    #[test]
    fn an_option_of_another_type_is_rejected() {
        let error = case(&spec("", r#""dequantize": "yes""#), true).err().unwrap().to_string();
        assert!(error.contains("options.dequantize is \"yes\", expected true or false"), "{error}");
    }

    #[test]
    fn a_case_without_expected_tensors_is_rejected() {
        let error = case(&spec("", ""), false).err().unwrap().to_string();
        assert!(error.contains("no expected tensors"), "{error}");
    }

    #[test]
    fn a_negative_tolerance_is_rejected() {
        assert!(case(&spec("", "").replace("1e-4", "-1e-4"), true).is_err());
    }
}
