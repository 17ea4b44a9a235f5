//! Checks of untrusted tokenizer files. The tokenizers crate does not validate them: a component that grows text
//! without bound, a table with invalid offsets or a template with an unknown token would exhaust memory, abort or
//! panic.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::utils::SysRegex;

use crate::{Error, ErrorKind, Result};

/// Maximum number of components of a normalizer, pre-tokenizer, post-processor or decoder.
const PARTS: usize = 64;
/// Maximum number of bytes that a component inserts for a match, before a text or around a word.
const INSERTED: usize = 256;
/// Maximum factor by which replacements may lengthen a text.
const GROWTH: f64 = 64.0;
/// Maximum number of bytes that a character map may substitute for one character; the longest of NFKC has 33.
const EXPANSION: usize = 256;

/// The keys of a `tokenizer.json` that are checked.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
}

/// Rejects a `tokenizer.json` that would exhaust memory, abort or panic in the tokenizers crate.
///
/// # Errors
/// [`Format`](ErrorKind::Format) naming the component.
pub(super) fn check_json(bytes: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(bytes).map_err(|e| refused(format!("not UTF-8: {e}")))?;
    let file: File = serde_json::from_str(text).map_err(|e| refused(format!("not a tokenizer: {e}")))?;
    if let Some(model) = &file.model {
        let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        if affixes.into_iter().flatten().any(|affix| affix.len() > INSERTED) {
            return Err(refused(format!("the prefix or suffix of the model has more than {INSERTED} bytes")));
        }
        if model.max_input_chars_per_word.is_some_and(|longest| longest > 100_000) {
            return Err(refused("max_input_chars_per_word is above 100000"));
        }
    }
    Growth::default().parts("normalizer", "normalizers", &file.normalizer)?;
    Growth::default().parts("pre_tokenizer", "pretokenizers", &file.pre_tokenizer)?;
    Growth::default().parts("decoder", "decoders", &file.decoder)?;
    post_processor(&file.post_processor, &mut 0)
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Format, message)
}

/// Upper bound of the text growth by the components checked so far.
struct Growth {
    parts: usize,
    factor: f64,
}

impl Default for Growth {
    fn default() -> Self {
        Self { parts: 0, factor: 1.0 }
    }
}

impl Growth {
    /// Checks a component and its children; `role` is its key in the file, `list` the key of the children of a
    /// `Sequence`.
    fn parts(&mut self, role: &str, list: &str, part: &Value) -> Result<()> {
        if part.is_null() {
            return Ok(());
        }
        self.parts += 1;
        if self.parts > PARTS {
            return Err(refused(format!("the {role} has more than {PARTS} components")));
        }
        let Some(kind) = part["type"].as_str() else {
            return Err(refused(format!("a component of the {role} has no type")));
        };
        let wrong = |what: String| Err(refused(format!("{kind} of the {role} {what}")));
        let text = |key: &str| part[key].as_str().unwrap_or_default();
        let inserted =
            ["prepend", "content", "replacement", "prefix", "suffix", "pad_token", "word_delimiter_token"];
        if let Some(key) = inserted.into_iter().find(|key| text(key).len() > INSERTED) {
            return wrong(format!("has a {key} of {} bytes, the maximum is {INSERTED}", text(key).len()));
        }
        match kind {
            "Sequence" => {
                let Some(parts) = part[list].as_array() else { return wrong(format!("has no {list}")) };
                return parts.iter().try_for_each(|part| self.parts(role, list, part));
            }
            "Replace" => {
                let shortest = match (&part["pattern"]["String"], &part["pattern"]["Regex"]) {
                    (Value::String(pattern), _) => pattern.len(),
                    (_, Value::String(pattern)) => {
                        let regex = SysRegex::new(pattern)
                            .map_err(|e| refused(format!("{kind} of the {role}: {pattern:?}: {e}")))?;
                        let empty = |text: &str| regex.find_iter(text).any(|(start, end)| start == end);
                        usize::from(!["", "a", "aB c1.\n▁é中"].into_iter().any(empty))
                    }
                    _ => return wrong("has no pattern".into()),
                };
                if shortest == 0 {
                    return wrong("has a pattern that matches the empty string".into());
                }
                self.factor *= (text("content").len() as f64 / shortest as f64).max(1.0);
            }
            // An empty suffix or delimiter matches between any two characters.
            "BPEDecoder" if part["suffix"] == "" => return wrong("has an empty suffix".into()),
            "CTC" if part["word_delimiter_token"] == "" => return wrong("has an empty delimiter".into()),
            // Bytes above 127 become two bytes.
            "ByteLevel" if role != "decoder" => self.factor *= 2.0,
            "FixedLength" if part["length"] == 0 => return wrong("has a length of 0".into()),
            // The crate subtracts `stop` from the length of a token without a check.
            "Strip" if role == "decoder" && part["stop"].as_u64().is_some_and(|stop| stop > 1) => {
                return wrong("strips more than one character from the end of a token".into());
            }
            "Precompiled" => {
                let table = text("precompiled_charsmap");
                match base64(table) {
                    Some(table) => check_charsmap(&table)?,
                    None => return wrong("has a precompiled_charsmap that is not base64".into()),
                }
            }
            _ => {}
        }
        match self.factor > GROWTH {
            true => Err(refused(format!("the {role} may lengthen a text more than {GROWTH} times"))),
            false => Ok(()),
        }
    }
}

fn post_processor(part: &Value, parts: &mut usize) -> Result<()> {
    if part.is_null() {
        return Ok(());
    }
    *parts += 1;
    if *parts > PARTS {
        return Err(refused(format!("the post_processor has more than {PARTS} components")));
    }
    match part["type"].as_str() {
        None => Err(refused("a component of the post_processor has no type")),
        Some("Sequence") => match part["processors"].as_array() {
            Some(all) => all.iter().try_for_each(|part| post_processor(part, parts)),
            None => Err(refused("a Sequence of the post_processor has no processors")),
        },
        Some("TemplateProcessing") => {
            let known = &part["special_tokens"];
            for (name, texts) in [("single", "A"), ("pair", "AB")] {
                let pieces: Vec<Value> = match &part[name] {
                    Value::Array(pieces) => pieces.clone(),
                    Value::String(pieces) => pieces.split_whitespace().map(Value::from).collect(),
                    _ => Vec::new(),
                };
                if pieces.len() > PARTS {
                    return Err(refused(format!("the template {name:?} has more than {PARTS} pieces")));
                }
                let mut seen = String::new();
                for piece in &pieces {
                    let spelled = piece.as_str().map(|piece| piece.split(':').next().unwrap_or_default());
                    let token = match spelled {
                        Some(piece) if piece.starts_with('$') => {
                            seen.push(if matches!(piece, "$B" | "$b") { 'B' } else { 'A' });
                            continue;
                        }
                        Some(token) => token,
                        None => match (&piece["Sequence"]["id"], &piece["SpecialToken"]["id"]) {
                            (Value::String(text), _) => {
                                seen.push_str(text);
                                continue;
                            }
                            (_, Value::String(token)) => token,
                            _ => continue,
                        },
                    };
                    let ids = known[token]["ids"].as_array();
                    if ids.is_none_or(|ids| ids.len() > PARTS) {
                        return Err(refused(format!(
                            "the template {name:?} has the token {token:?}, which is not in special_tokens or has more \
                             than {PARTS} ids"
                        )));
                    }
                }
                let repeated = texts.chars().any(|text| seen.matches(text).count() > 1);
                if repeated || !seen.chars().all(|text| texts.contains(text)) {
                    return Err(refused(format!(
                        "the template {name:?} has an unknown sequence, or the same sequence twice"
                    )));
                }
            }
            Ok(())
        }
        Some(_) => Ok(()),
    }
}

/// Rejects a precompiled character map with offsets out of range.
///
/// The map is the length in bytes of a double-array trie (Aoe 1989) of `u32`, the trie, then the zero-terminated
/// replacements.
///
/// # Errors
/// [`Format`](ErrorKind::Format).
pub(super) fn check_charsmap(table: &[u8]) -> Result<()> {
    let damaged = |what: &str| Err(refused(format!("the precompiled_charsmap is damaged: {what}")));
    let Some((length, rest)) = table.split_first_chunk::<4>() else { return damaged("no length") };
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || !length.is_multiple_of(4) || length > rest.len() {
        return damaged(&format!("the trie has {length} bytes, the map {}", rest.len()));
    }
    let (trie, replacements) = rest.split_at(length);
    let Ok(replacements) = std::str::from_utf8(replacements) else {
        return damaged("the replacements are not UTF-8");
    };
    let units: Vec<usize> =
        trie.chunks_exact(4).map(|u| u32::from_le_bytes([u[0], u[1], u[2], u[3]]) as usize).collect();
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let inside = |at: usize| at | 255 < units.len();
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(units[0])];
    while let Some(state) = open.pop() {
        if !inside(state) {
            return damaged("an offset is out of range");
        }
        if std::mem::replace(&mut seen[state], true) {
            continue;
        }
        for byte in 1..=255 {
            let unit = units[state ^ byte];
            if unit & ((1 << 31) | 0xff) != byte {
                continue;
            }
            let next = state ^ byte ^ offset(unit);
            if !inside(next) {
                return damaged("an offset is out of range");
            }
            if (unit >> 8) & 1 == 1 {
                let at = units[next] & ((1 << 31) - 1);
                let Some(text) = replacements.get(at..) else {
                    return damaged("the offset of a replacement is out of range");
                };
                let end = text.bytes().take(EXPANSION + 1).position(|b| b == 0).unwrap_or(text.len());
                if end > EXPANSION {
                    return damaged(&format!(
                        "a replacement of one character has more than {EXPANSION} bytes"
                    ));
                }
            }
            open.push(next);
        }
    }
    Ok(())
}

/// Decodes standard base64 with padding; `None` if it is invalid.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut bits = 0u32;
        for &byte in chunk {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - chunk.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..chunk.len().max(1)]);
    }
    Some(out)
}

thread_local! {
    /// Whether a panic on this thread is turned into an error and not reported by the panic hook.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// Runs a call of the tokenizers crate and turns its errors and panics into an [`Error`].
///
/// # Errors
/// [`Format`](ErrorKind::Format) with the context `what`.
pub(super) fn caught<T>(what: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
    CAUGHT.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(false);
    match result {
        Ok(result) => result.map_err(|e| super::tokenizer_error(what, e)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("unknown panic");
            Err(refused(format!("{what}: the tokenizers crate panicked: {text}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(role: &str, part: Value) -> String {
        check_json(json!({"version": "1.0", role: part}).to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn components_that_grow_text_without_bound_are_rejected() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let grow = replace(json!({"String": "b"}), "bbbbbbbbbb");
        let double =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        for (role, part, word) in [
            ("normalizer", replace(json!({"String": ""}), "b"), "matches the empty string"),
            ("normalizer", replace(json!({"Regex": "x*"}), "b"), "matches the empty string"),
            ("normalizer", replace(json!({"Regex": "(?=a)"}), "b"), "matches the empty string"),
            ("normalizer", json!({"type": "Sequence", "normalizers": [grow, grow]}), "lengthen a text"),
            ("normalizer", json!({"type": "Prepend", "prepend": "c".repeat(300)}), "300 bytes"),
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}), "damaged"),
            (
                "pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": vec![double; 7]}),
                "lengthen a text",
            ),
            ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "length of 0"),
            (
                "decoder",
                json!({"type": "Sequence", "decoders": vec![json!({"type": "Fuse"}); 99]}),
                "64 components",
            ),
            ("decoder", json!({"type": "BPEDecoder", "suffix": ""}), "empty suffix"),
            ("decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": 9}), "more than one"),
            ("decoder", json!({"content": " "}), "has no type"),
        ] {
            let message = refusal(role, part.clone());
            assert!(message.contains(word), "{part}: {message}");
        }
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        for (single, word) in [
            (json!([{"SpecialToken": {"id": "[X]", "type_id": 0}}]), "token \"[X]\""),
            (json!([text, text]), "twice"),
            (json!([{"Sequence": {"id": "B", "type_id": 0}}]), "unknown sequence"),
        ] {
            let message = refusal("post_processor", template(single));
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(base64("Zm9vYmE=").unwrap(), b"fooba");
        assert_eq!(base64("Zm9vYg==").unwrap(), b"foob");
        assert_eq!(base64("Zm9v").unwrap(), b"foo");
        assert_eq!(base64("Zm9*"), None);
    }

    #[test]
    fn a_charsmap_with_invalid_offsets_is_rejected() {
        let table = |units: &[u32], texts: &[u8]| {
            let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
            units.iter().for_each(|unit| bytes.extend(unit.to_le_bytes()));
            [&bytes, texts].concat()
        };
        let mut units = vec![0u32; 512];
        // From the root to the second block, whose "a" leads to a leaf with the replacement at 0.
        units[0] = 256 << 10;
        units[256 ^ 97] = 97 | 1 << 8 | 3 << 10;
        assert!(check_charsmap(&table(&units, b"b\0")).is_ok());
        let mut far = units.clone();
        far[256 ^ 97] = 97 | 1 << 8 | 4000 << 10;
        assert!(check_charsmap(&table(&far, b"b\0")).is_err());
        let mut text = units.clone();
        text[256 ^ 97 ^ 3] = 9;
        assert!(check_charsmap(&table(&text, b"b\0")).is_err());
        assert!(check_charsmap(&table(&units[..100], b"b\0")).is_err());
        assert!(check_charsmap(&table(&units, &[b'x'; 1000])).is_err());
        assert!(check_charsmap(&[255; 8]).is_err());
        assert!(check_charsmap(&[]).is_err());
    }

    #[test]
    fn a_panic_of_the_crate_is_an_error() {
        let error = caught::<()>("cannot decode", || panic!("index out of bounds")).unwrap_err();
        assert!(error.to_string().contains("cannot decode") && error.to_string().contains("out of bounds"));
    }
}
