//! Tokenizer and chat template of a checkpoint, and checks of `input_ids` and `attention_mask`.

use candle_core::{DType, Device, Tensor};
use fauna_shared::item::{Item, Role, Tensors, Turn};
use fauna_shared::model::{Pretrained, only_known};
use fauna_shared::text::{ChatTemplate, Encoding, GgufVocabulary, Message, Padding, Tokenizer};
use fauna_shared::{Error, ErrorKind, Result, transfer};
use serde_json::Value;

/// Loads the tokenizer of a checkpoint, from its folder or else its GGUF file; `None` if neither has one.
///
/// # Errors
/// Errors of the tokenizer's files, if present.
pub fn tokenizer(pretrained: &Pretrained) -> Result<Option<Tokenizer>> {
    match Tokenizer::from_folder(pretrained.files.root()) {
        Ok(tokenizer) => return Ok(Some(tokenizer)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match &pretrained.checkpoint {
        Some(checkpoint) => {
            let vocabulary = GgufVocabulary::from_metadata(checkpoint.metadata());
            vocabulary.map(|v| Tokenizer::from_gguf(&v)).transpose()
        }
        None => Ok(None),
    }
}

/// Loads the chat template of a checkpoint, from its folder or else its GGUF file; `None` if neither has one.
///
/// # Errors
/// Errors of the template, if present.
pub fn chat_template(pretrained: &Pretrained, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    if let Some(template) = ChatTemplate::from_folder(pretrained.files.root(), tokenizer)? {
        return Ok(Some(template));
    }
    match &pretrained.checkpoint {
        Some(checkpoint) => ChatTemplate::from_metadata(checkpoint.metadata(), tokenizer),
        None => Ok(None),
    }
}

/// Converts a turn to a chat template's message, whose content is the concatenation of the turn's texts.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if an item of the turn is not text.
pub fn message(turn: &Turn) -> Result<Message> {
    let content = turn.items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat();
    let role = match turn.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    Ok(Message::new(role, content))
}

/// The error for text input to a model without a tokenizer.
pub fn no_tokenizer(source: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{source} came without a tokenizer"))
        .hint("put its tokenizer.json (or vocab.txt, or tokenizer.model) next to the weights")
}

/// Tokenizes `options.texts` (texts, or pairs `[a, b]` whose `b` may be null), if present, into `input_ids`,
/// `attention_mask` and `token_type_ids`, `(batch, sequence)` of int64, padded to the longest. `longest`: maximum
/// sequence length, unless `options.max_seq_length` is given.
///
/// # Errors
/// [`Format`](ErrorKind::Format) if `options.texts` has another form.
pub fn tokenised(
    tokenizer: Option<&Tokenizer>,
    options: &Value,
    padding: Padding,
    longest: usize,
) -> Result<Option<Tensors>> {
    let Some(texts) = options["texts"].as_array() else { return Ok(None) };
    let tokenizer = tokenizer.ok_or_else(|| no_tokenizer("the checkpoint"))?;
    let longest = options["max_seq_length"].as_u64().map_or(longest, |n| n as usize);
    let padding = match options["padding"].as_str() {
        Some("max_length") => Padding::RightTo(longest),
        Some("left") => Padding::Left,
        Some("right") => Padding::Right,
        _ => padding,
    };
    let encode = |text: &Value| -> Result<Encoding> {
        match text {
            Value::String(text) => tokenizer.encode_text(text, Some(longest)),
            Value::Array(pair) => match &pair[..] {
                [Value::String(first), Value::String(second)] => {
                    tokenizer.encode_pair(first, second, Some(longest))
                }
                [Value::String(first)] | [Value::String(first), Value::Null] => {
                    tokenizer.encode_text(first, Some(longest))
                }
                _ => Err(not_texts()),
            },
            _ => Err(not_texts()),
        }
    };
    let encodings = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let batch = tokenizer.pad(&encodings, padding);
    let wide = |x: Result<Tensor>| -> Result<Tensor> { Ok(x?.to_dtype(DType::I64)?) };
    Ok(Some(Tensors::from([
        ("input_ids".to_string(), wide(batch.ids_tensor(&Device::Cpu))?),
        ("attention_mask".to_string(), wide(batch.attention_mask_tensor(&Device::Cpu))?),
        ("token_type_ids".to_string(), wide(batch.type_ids_tensor(&Device::Cpu))?),
    ])))
}

fn not_texts() -> Error {
    Error::new(ErrorKind::Format, "expected texts as strings, or as pairs of a string and a string or null")
}

/// Converts an attention mask, `(batch, sequence)`, to booleans, true for real tokens.
pub fn real_tokens(mask: &Tensor) -> Result<Vec<Vec<bool>>> {
    let rows: Vec<Vec<i64>> = transfer::rows(&mask.to_dtype(DType::I64)?)?;
    Ok(rows.into_iter().map(|row| row.into_iter().map(|seen| seen != 0).collect()).collect())
}

/// Checks that each of `ids`, `(batch, sequence)`, is below `vocabulary`, and returns them as u32 on `device`. An id
/// outside the vocabulary becomes 0 where `mask`, `(batch, sequence)`, is 0: some releases pad with such an id.
///
/// # Errors
/// [`Input`](ErrorKind::Input) with the id that is outside the vocabulary.
pub fn checked_ids(
    ids: &Tensor,
    mask: Option<&Tensor>,
    vocabulary: usize,
    device: &Device,
) -> Result<Tensor> {
    let mut rows: Vec<Vec<i64>> = transfer::rows(&ids.to_dtype(DType::I64)?)?;
    let real = mask.map(real_tokens).transpose()?;
    let limit = vocabulary as i64;
    for (r, row) in rows.iter_mut().enumerate() {
        for (t, id) in row.iter_mut().enumerate() {
            let hidden =
                real.as_ref().is_some_and(|real| real.get(r).and_then(|row| row.get(t)) == Some(&false));
            if !(0..limit).contains(id) {
                match hidden {
                    true => *id = 0,
                    false => {
                        return Err(Error::input(format!(
                            "token {id} of row {r} is outside the vocabulary of {limit}"
                        )));
                    }
                }
            }
        }
    }
    let (batch, time) = ids.dims2()?;
    let ids: Vec<u32> = rows.into_iter().flatten().map(|id| id as u32).collect();
    Ok(Tensor::from_vec(ids, (batch, time), device)?)
}

/// Returns `input_ids`, `(batch, sequence)`, of named `inputs`, after checking that no input is outside `known` and
/// that the others have the same shape.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if `input_ids` are missing or empty, or another input has another shape or name.
pub fn input_ids<'a>(inputs: &'a Tensors, known: &[&str]) -> Result<&'a Tensor> {
    only_known(inputs, known)?;
    let ids = inputs.get("input_ids").ok_or_else(|| Error::input("input_ids are missing"))?;
    if ids.rank() != 2 || ids.elem_count() == 0 {
        return Err(Error::input(format!("input_ids are {:?}, expected (batch, sequence)", ids.dims())));
    }
    for (name, tensor) in inputs {
        let shared = name == "position_ids" && tensor.dims() == [1, ids.dims()[1]];
        if tensor.dims() != ids.dims() && !shared {
            return Err(Error::input(format!(
                "{name} has shape {:?}, expected that of input_ids, {:?}",
                tensor.dims(),
                ids.dims()
            )));
        }
    }
    Ok(ids)
}
