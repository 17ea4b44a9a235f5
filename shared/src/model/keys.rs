//! Canonicalization of config keys.
//!
//! The keys that a family supports are the fields of its config type. [`Keys`] adds what the type does not express:
//! aliases, keys of which only some values are supported, and keys that do not affect the results. A family without any
//! of these uses [`Keys::NONE`]:
//!
//! ```
//! use fauna_shared::model::{Keys, Plain};
//! static KEYS: Keys = Keys {
//!     mapped: &[("hidden_size", "n_embd")],
//!     older: &[("n_ctx", "n_positions")],
//!     only: &[("pooling", &[Plain::Text("mean")])],
//!     ..Keys::NONE
//! };
//! let config = serde_json::json!({"hidden_size": 8, "n_ctx": 24, "n_positions": 32, "architectures": null});
//! let canonical = KEYS.read(config)?;
//! assert_eq!(canonical, serde_json::json!({"n_embd": 8, "n_positions": 32}));
//! let error = KEYS.read(serde_json::json!({"pooling": "max"})).unwrap_err().to_string();
//! assert!(error.contains(r#"pooling is "max", only "mean" is supported"#), "{error}");
//! # Ok::<(), fauna_shared::Error>(())
//! ```

use std::fmt;

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// An alias of a config key and the canonical key, a field of the config type.
pub type Synonym = (&'static str, &'static str);

/// Properties of the keys of a config object, in addition to its type.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// Aliases of the reference's `attribute_map`. If both keys are present, the alias takes precedence, as in the
    /// reference implementation.
    pub mapped: &'static [Synonym],
    /// Aliases of older files or of other programs. If both keys are present, the canonical one takes precedence.
    pub older: &'static [Synonym],
    /// Keys of which only these values are supported. A missing key or null is the default of the reference
    /// implementation, which is one of them.
    pub only: &'static [(&'static str, &'static [Plain])],
    /// Keys of the reference's config class that do not affect the results, in addition to [`HARMLESS`].
    pub harmless: &'static [&'static str],
    /// Keys of nested objects, or of lists of objects. A key may occur several times, for objects of several
    /// [`types`](Keys::types). The empty string is this object itself, to include the keys of another family.
    pub parts: &'static [(&'static str, &'static Keys)],
    /// For a nested object: the `model_type`s these keys apply to. Empty for all.
    pub types: &'static [&'static str],
    /// Sets missing keys whose default depends on other keys.
    pub fill: Option<fn(&mut Map<String, Value>)>,
}

/// Keys of the reference's config classes that do not affect the results if the config type does not have them: names,
/// settings of training and of the outputs of a forward pass, labels of missing heads, and generation settings that the
/// reference implementation reads from `generation_config.json`.
pub const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "_output_attentions",
    "activation_dropout",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "auto_map",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "dropout",
    "dropout_rate",
    "dtype",
    "emb_pdrop",
    "embd_pdrop",
    "embedding_dropout",
    "experts_implementation",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "layerdrop",
    "logit_scale_init_value",
    "model_type",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Keys whose values are a token id or a list of token ids.
const IDS: &[&str] = &[
    "boi_token_index",
    "bos_token_id",
    "decoder_start_token_id",
    "eoi_token_index",
    "eos_token_id",
    "image_token_index",
    "pad_token_id",
];

/// Keys whose values are objects.
const OBJECTS: &[&str] = &["id2label", "label2id", "rope_parameters", "rope_scaling"];

/// A supported value of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plain {
    /// True or false.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A string.
    Text(&'static str),
}

impl Plain {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Bool(expected) => value.as_bool() == Some(*expected),
            Self::Number(expected) => value.as_f64() == Some(*expected),
            Self::Text(expected) => value.as_str() == Some(expected),
        }
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "\"{value}\""),
        }
    }
}

impl Keys {
    /// No aliases and no restrictions.
    pub const NONE: Self =
        Self { mapped: &[], older: &[], only: &[], harmless: &[], parts: &[], types: &[], fill: None };

    /// Returns `config` with canonical keys. `architectures` is removed if it is null.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) with the key, its value and the supported values;
    /// [`Format`](crate::ErrorKind::Format) for an invalid token id, or another value where an object is expected.
    pub fn read(&self, mut config: Value) -> Result<Value> {
        if let Value::Object(keys) = &mut config {
            self.read_object(keys, "")?;
        }
        Ok(config)
    }

    /// Reads the nested object `name`, or the objects of a list, if these keys apply to them.
    fn read_part(&self, name: &str, part: &mut Value, place: &str) -> Result<()> {
        match part {
            Value::Object(keys) if self.applies_to(keys) => {
                self.read_object(keys, &format!("{place}{name}."))
            }
            Value::Array(list) => list.iter_mut().try_for_each(|entry| self.read_part(name, entry, place)),
            Value::Object(_) | Value::Null => Ok(()),
            other => Err(wrong(place, name, other, "an object")),
        }
    }

    fn read_object(&self, keys: &mut Map<String, Value>, place: &str) -> Result<()> {
        if keys.get("architectures").is_some_and(Value::is_null) {
            keys.remove("architectures");
        }
        for (other, canonical) in self.mapped {
            if let Some(value) = keys.remove(*other) {
                keys.insert(canonical.to_string(), value);
            }
        }
        for (other, canonical) in self.older {
            if let Some(value) = keys.remove(*other) {
                keys.entry(*canonical).or_insert(value);
            }
        }
        if let Some(fill) = self.fill {
            fill(keys);
        }
        for key in IDS {
            let is_id = |value: &Value| value.is_i64() || value.is_u64();
            match keys.get(*key) {
                None | Some(Value::Null) => {}
                Some(id) if is_id(id) => {}
                Some(Value::Array(ids)) if ids.iter().all(is_id) => {}
                Some(other) => return Err(wrong(place, key, other, "a token id or a list of them")),
            }
        }
        for key in OBJECTS {
            if let Some(other) = keys.get(*key).filter(|value| !value.is_object() && !value.is_null()) {
                return Err(wrong(place, key, other, "an object"));
            }
        }
        for (key, supported) in self.only {
            match keys.get(*key) {
                None | Some(Value::Null) => {}
                Some(found) if supported.iter().any(|value| value.is(found)) => {}
                Some(found) => {
                    let supported: Vec<String> = supported.iter().map(Plain::to_string).collect();
                    let supported = supported.join(" or ");
                    return Err(Error::unsupported(format!(
                        "{place}{key} is {found}, only {supported} is supported"
                    )));
                }
            }
        }
        for (name, part) in self.parts {
            if name.is_empty() {
                if part.applies_to(keys) {
                    part.read_object(keys, place)?;
                }
            } else if let Some(value) = keys.get_mut(*name) {
                part.read_part(name, value, place)?;
            }
        }
        Ok(())
    }

    /// Whether these keys apply to the nested object `keys`.
    fn applies_to(&self, keys: &Map<String, Value>) -> bool {
        match keys.get("model_type").and_then(Value::as_str) {
            Some(name) => self.types.is_empty() || self.types.contains(&name),
            None => true,
        }
    }

    /// The key properties of the nested object at the dotted `path`; the empty string is this object.
    pub fn at(&self, path: &str) -> Vec<&Self> {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let here = path.is_empty().then_some(self);
        let parts = self.parts.iter().flat_map(|(part, keys)| match *part {
            "" => keys.at(path),
            part if part == name => keys.at(rest),
            _ => Vec::new(),
        });
        here.into_iter().chain(parts).collect()
    }
}

fn wrong(place: &str, key: &str, found: &Value, expected: &str) -> Error {
    Error::new(ErrorKind::Format, format!("{place}{key} is {found:.80}, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    static INNER: Keys = Keys { mapped: &[("size", "width")], types: &["inner"], ..Keys::NONE };
    static OUTER: Keys = Keys {
        mapped: &[("size", "width")],
        older: &[("n_ctx", "n_positions")],
        only: &[("gated", &[Plain::Bool(false)])],
        parts: &[("part", &INNER), ("part", &OTHER)],
        ..Keys::NONE
    };
    static OTHER: Keys = Keys {
        only: &[("depth", &[Plain::Number(1.0), Plain::Number(2.0)])],
        types: &["other"],
        ..Keys::NONE
    };

    #[test]
    fn mapped_aliases_take_precedence_and_older_aliases_do_not() {
        for text in [r#"{"size": 1, "width": 2}"#, r#"{"width": 2, "size": 1}"#, r#"{"size": 1}"#] {
            assert_eq!(OUTER.read(serde_json::from_str(text).unwrap()).unwrap(), json!({"width": 1}));
        }
        for text in [r#"{"n_ctx": 1, "n_positions": 2}"#, r#"{"n_positions": 2, "n_ctx": 1}"#] {
            assert_eq!(OUTER.read(serde_json::from_str(text).unwrap()).unwrap(), json!({"n_positions": 2}));
        }
        assert_eq!(OUTER.read(json!({"n_ctx": 1})).unwrap(), json!({"n_positions": 1}));
    }

    #[test]
    fn nested_objects_are_read_by_their_type_and_named_in_errors() {
        let read = |part: Value| OUTER.read(json!({"part": part}));
        assert_eq!(read(json!({"size": 3})).unwrap(), json!({"part": {"width": 3}}));
        assert_eq!(
            read(json!([{"size": 3}, {"size": 3, "model_type": "other"}])).unwrap(),
            json!({"part": [{"width": 3}, {"size": 3, "model_type": "other"}]})
        );
        let error = read(json!({"model_type": "other", "depth": 3})).unwrap_err().to_string();
        assert!(error.contains("part.depth is 3, only 1 or 2 is supported"), "{error}");
        assert!(read(json!({"depth": null})).is_ok());
        assert!(OUTER.read(json!({"gated": false})).is_ok());
        assert!(OUTER.read(json!({"gated": true})).is_err());
    }

    #[test]
    fn keys_are_found_by_path_and_may_be_included() {
        assert_eq!(OUTER.at("").len(), 1);
        assert_eq!(OUTER.at("part").len(), 2);
        assert!(OUTER.at("part.deeper").is_empty());
        static BOTH: Keys = Keys { parts: &[("", &INNER), ("", &OTHER)], ..Keys::NONE };
        assert_eq!(BOTH.at("").len(), 3);
        assert_eq!(
            BOTH.read(json!({"model_type": "other", "size": 1})).unwrap(),
            json!({"model_type": "other", "size": 1})
        );
        assert_eq!(
            BOTH.read(json!({"model_type": "inner", "size": 1})).unwrap(),
            json!({"model_type": "inner", "width": 1})
        );
    }
}
