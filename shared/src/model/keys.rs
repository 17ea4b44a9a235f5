//! What a family says of the keys of its config, and how a config is brought to the one spelling that it is typed in.
//!
//! The keys that a family obeys are the fields of its config type and stand nowhere else. [`Keys`] holds what the type
//! cannot say: which names mean the same, of which keys a single value is computed, and which change no number here.
//! A family without any of these says [`Keys::NONE`]; most name a synonym or two:
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
//! let folded = KEYS.read(config)?;
//! assert_eq!(folded, serde_json::json!({"n_embd": 8, "n_positions": 32}));
//! let error = KEYS.read(serde_json::json!({"pooling": "max"})).unwrap_err().to_string();
//! assert!(error.contains(r#"pooling is "max", only "mean" is supported"#), "{error}");
//! # Ok::<(), fauna_shared::Error>(())
//! ```

use std::fmt;

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// A pair of an other name and the canonical one, which the config's type has.
pub type Synonym = (&'static str, &'static str);

/// The keys of one object of a config, beside those that its type has.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// The reference's `attribute_map`. Where both names stand, the reference sets the mapped one last, so that it wins.
    pub mapped: &'static [Synonym],
    /// Names of older files or of other programs. Where both stand, the canonical one wins.
    pub older: &'static [Synonym],
    /// Keys of which only these values are supported. An absent key or a null is the reference's default, which is one
    /// of them.
    pub only: &'static [(&'static str, &'static [Plain])],
    /// Keys of the reference's class that change no number here, beside [`HARMLESS`].
    pub harmless: &'static [&'static str],
    /// Objects inside this one, or lists of such objects, by their keys. A name may stand several times, for objects
    /// of several [`types`](Keys::types). The name `""` is this object itself: a family that stands on others adds theirs.
    pub parts: &'static [(&'static str, &'static Keys)],
    /// As a part: the `model_type`s of the objects that are meant. Empty means all.
    pub types: &'static [&'static str],
    /// Adds what is left out and not the same for all that the config's type describes.
    pub fill: Option<fn(&mut Map<String, Value>)>,
}

/// Keys of the reference's classes that change no number here, where a config's type does not have them: names,
/// settings of training and of what a pass returns, names of classes for a head that is not there, and the settings of
/// decoding that the reference reads from `generation_config.json`.
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

/// Keys that hold a token id or several: what decoding begins and ends with, and what stands for a picture.
const IDS: &[&str] = &[
    "boi_token_index",
    "bos_token_id",
    "decoder_start_token_id",
    "eoi_token_index",
    "eos_token_id",
    "image_token_index",
    "pad_token_id",
];

/// Keys that hold an object.
const OBJECTS: &[&str] = &["id2label", "label2id", "rope_parameters", "rope_scaling"];

/// A value that a key may be required to have.
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
            Self::Bool(wanted) => value.as_bool() == Some(*wanted),
            Self::Number(wanted) => value.as_f64() == Some(*wanted),
            Self::Text(wanted) => value.as_str() == Some(wanted),
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
    /// No synonyms, nothing that is refused.
    pub const NONE: Self =
        Self { mapped: &[], older: &[], only: &[], harmless: &[], parts: &[], types: &[], fill: None };

    /// `config` under its canonical names. `architectures` of null are taken out, as absent.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) that names the key, what it says and what is supported;
    /// [`Format`](crate::ErrorKind::Format) for a token id that is none, and what is no object where one belongs.
    pub fn read(&self, mut config: Value) -> Result<Value> {
        if let Value::Object(keys) = &mut config {
            self.read_object(keys, "")?;
        }
        Ok(config)
    }

    /// Reads the part `name`: an object, if it is meant, or the objects of a list.
    fn read_part(&self, name: &str, part: &mut Value, place: &str) -> Result<()> {
        match part {
            Value::Object(keys) if self.means(keys) => self.read_object(keys, &format!("{place}{name}.")),
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
                if part.means(keys) {
                    part.read_object(keys, place)?;
                }
            } else if let Some(value) = keys.get_mut(*name) {
                part.read_part(name, value, place)?;
            }
        }
        Ok(())
    }

    /// Whether these are the keys of an object that holds `keys`, as a part.
    fn means(&self, keys: &Map<String, Value>) -> bool {
        match keys.get("model_type").and_then(Value::as_str) {
            Some(name) => self.types.is_empty() || self.types.contains(&name),
            None => true,
        }
    }

    /// The keys that may stand in the object at `path`, names joined by dots: `""` is this one.
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

fn wrong(place: &str, key: &str, found: &Value, wanted: &str) -> Error {
    Error::new(ErrorKind::Format, format!("{place}{key} is {found:.80}, {wanted} is wanted"))
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
    fn of_two_names_the_mapped_one_wins_and_the_older_one_loses_in_either_order() {
        for text in [r#"{"size": 1, "width": 2}"#, r#"{"width": 2, "size": 1}"#, r#"{"size": 1}"#] {
            assert_eq!(OUTER.read(serde_json::from_str(text).unwrap()).unwrap(), json!({"width": 1}));
        }
        for text in [r#"{"n_ctx": 1, "n_positions": 2}"#, r#"{"n_positions": 2, "n_ctx": 1}"#] {
            assert_eq!(OUTER.read(serde_json::from_str(text).unwrap()).unwrap(), json!({"n_positions": 2}));
        }
        assert_eq!(OUTER.read(json!({"n_ctx": 1})).unwrap(), json!({"n_positions": 1}));
    }

    #[test]
    fn parts_are_read_by_their_type_and_refused_with_their_place() {
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
    fn keys_are_found_by_path_and_those_of_this_object_may_be_several() {
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
