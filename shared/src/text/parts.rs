//! Components of tokenizers, shared by all file formats.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::models::bpe::Vocab;
use tokenizers::{DecoderWrapper, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use crate::{Error, ErrorKind, Result};

/// Default special tokens of a tokenizer class: `(role, token)`.
pub(super) type Defaults = &'static [(&'static str, &'static str)];

/// Parses BPE merges, one `left right` per line, highest priority first.
pub(super) fn merge_pairs<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>> {
    lines
        .filter(|line| !line.starts_with("#version") && !line.is_empty())
        .map(|line| match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.into(), right.into())),
            _ => Err(Error::new(
                ErrorKind::Format,
                format!("merge {line:?} is not two tokens separated by a space"),
            )),
        })
        .collect()
}

/// Checks that the tokens of `merges` and the merged tokens are in `vocab`.
///
/// # Errors
/// [`Format`](ErrorKind::Format) for the first merge that is not.
pub(super) fn check_merges(vocab: &Vocab, merges: &[(String, String)]) -> Result<()> {
    for (left, right) in merges {
        let whole = format!("{left}{right}");
        if let Some(token) = [left, right, &whole].into_iter().find(|token| !vocab.contains_key(*token)) {
            return Err(Error::new(
                ErrorKind::Format,
                format!(
                    "the merge \"{left} {right}\" needs the token {token:?}, which the vocabulary does not have"
                ),
            ));
        }
    }
    Ok(())
}

/// A byte-level tokenizer; `split` is a list of pre-tokenizers, the last of which must be `ByteLevel`.
pub(super) fn byte_level(model: impl Into<ModelWrapper>, split: Value) -> Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(
            json!({"type": "Sequence", "pretokenizers": split}),
        )?))
        .with_decoder(Some(part::<DecoderWrapper>(byte_level_part(true, true))?));
    Ok(tokenizer)
}

/// The `ByteLevel` pre-tokenizer or decoder; with `split`, text is first split by GPT-2's regular expression.
pub(super) fn byte_level_part(add_prefix_space: bool, split: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": split})
}

/// A post-processor that adds `bos` before and `eos` after each text.
pub(super) fn begin_and_end(
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
) -> Result<PostProcessorWrapper> {
    let special = |token: &Option<(String, u32)>, kind: u32| {
        token.as_ref().map(|(token, _)| json!({"SpecialToken": {"id": token, "type_id": kind}}))
    };
    let around = |text: &str, kind: u32| -> Vec<Value> {
        let text = json!({"Sequence": {"id": text, "type_id": kind}});
        [special(&bos, kind), Some(text), special(&eos, kind)].into_iter().flatten().collect()
    };
    let tokens: serde_json::Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    part(json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    }))
}

/// Deserializes a component of a tokenizer from JSON.
pub(super) fn part<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|e| Error::new(ErrorKind::Format, format!("not a component of a tokenizer: {e}")))
}
