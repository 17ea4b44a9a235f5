//! SentencePiece models: a protobuf with pieces and their scores, for BPE or unigram tokenization.
//!
//! Kudo and Richardson 2018, "SentencePiece: A simple and language independent subword tokenizer and detokenizer
//! for Neural Text Processing". Field numbers are those of `sentencepiece_model.proto`.

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::parts::{Defaults, part};
use super::{guard, misfit, not_added, tokenizer_error};
use crate::{Error, ErrorKind, Result};

/// One entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// The type of a piece, numbered as in the file format and in GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    pub(super) fn from_number(number: u64) -> Result<Self> {
        use Kind::*;
        [Normal, Unknown, Control, UserDefined, Unused, Byte]
            .into_iter()
            .find(|kind| *kind as u64 == number)
            .ok_or_else(|| {
                Error::new(ErrorKind::Format, format!("a token has type {number}, expected 1 to 6"))
            })
    }
}

/// Where a space is prepended to text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// To each span of text between special tokens.
    Always,
    /// To the first span only.
    First,
    /// Nowhere.
    Never,
}

const LLAMA_TOKENS: Defaults = &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")];
const T5_TOKENS: Defaults = &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];

/// Parses a SentencePiece model. Returns the tokenizer, its default special tokens, and whether begin and end tokens
/// are added.
///
/// `legacy`: prepend a space to each span of text between special tokens, not only to the first one.
/// `extra`: number of sentinel tokens `<extra_id_N>` that T5 has after its pieces, by default 100.
pub(super) fn read(
    bytes: &[u8],
    legacy: bool,
    extra: Option<usize>,
) -> Result<(tokenizers::Tokenizer, Defaults, [bool; 2])> {
    let proto = Proto::parse(bytes)?;
    if let Some(piece) = proto.pieces.iter().find(|piece| !piece.score.is_finite()) {
        return Err(damaged(format!("the score of {:?} is {}", piece.text, piece.score)));
    }
    match proto.model_type {
        1 => Ok((unigram(proto, extra.unwrap_or(100))?, T5_TOKENS, [false, true])),
        2 => {
            let prefix = match (proto.add_dummy_prefix, legacy) {
                (false, _) => Prefix::Never,
                (true, true) => Prefix::Always,
                (true, false) => Prefix::First,
            };
            Ok((byte_pairs(&proto.pieces, prefix)?, LLAMA_TOKENS, [true, false]))
        }
        other => Err(Error::unsupported(format!(
            "SentencePiece model type {other}; known types are 1 (unigram) and 2 (BPE)"
        ))),
    }
}

/// Byte-pair encoding with merges ordered by score and byte fallback: Llama's tokenizer.
pub(super) fn byte_pairs(pieces: &[Piece], prefix: Prefix) -> Result<tokenizers::Tokenizer> {
    let vocab: Vocab = pieces.iter().map(|p| p.text.clone()).zip(0u32..).collect();
    let byte_fallback = pieces.iter().any(|p| p.kind == Kind::Byte);
    let mut model =
        BPE::builder().vocab_and_merges(vocab, merges(pieces)).fuse_unk(true).byte_fallback(byte_fallback);
    if let Some(unknown) = pieces.iter().find(|p| p.kind == Kind::Unknown) {
        model = model.unk_token(unknown.text.clone());
    }
    let model = guard::caught("invalid vocabulary", || model.build())?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    match prefix {
        Prefix::Always => {
            let prepend = json!({"type": "Prepend", "prepend": "▁"});
            let normalizers = json!({"type": "Sequence", "normalizers": [prepend, replace]});
            tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(normalizers)?)).map_err(misfit)?;
        }
        Prefix::First => {
            let split =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
            tokenizer.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(split)?));
        }
        Prefix::Never => {
            tokenizer.with_normalizer(Some(part::<NormalizerWrapper>(replace)?)).map_err(misfit)?;
        }
    }
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix != Prefix::Never {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    tokenizer.with_decoder(Some(part::<DecoderWrapper>(json!({"type": "Sequence", "decoders": decoders}))?));
    add_tokens(&mut tokenizer, pieces)?;
    Ok(tokenizer)
}

/// Adds control and user-defined pieces as added tokens, which text never splits.
pub(super) fn add_tokens(tokenizer: &mut tokenizers::Tokenizer, pieces: &[Piece]) -> Result<()> {
    let whole = |kinds: &[Kind], special: bool| -> Vec<AddedToken> {
        let chosen = pieces.iter().filter(|p| kinds.contains(&p.kind) && !p.text.is_empty());
        chosen.map(|p| AddedToken::from(p.text.clone(), special).normalized(false)).collect()
    };
    tokenizer.add_special_tokens(whole(&[Kind::Control, Kind::Unknown], true)).map_err(not_added)?;
    tokenizer.add_tokens(whole(&[Kind::UserDefined], false)).map_err(not_added)?;
    Ok(())
}

/// The BPE merges: every split of a piece into two pieces, ordered by score, then by the length of the left part.
fn merges(pieces: &[Piece]) -> Vec<(String, String)> {
    let mergeable = |p: &&Piece| matches!(p.kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
    let known: std::collections::HashSet<&str> =
        pieces.iter().filter(mergeable).map(|p| p.text.as_str()).collect();
    let mut merges = Vec::new();
    for piece in pieces.iter().filter(mergeable) {
        for (cut, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(cut);
            if known.contains(left) && known.contains(right) {
                merges.push((piece.score, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.chars().count().cmp(&a.1.chars().count())));
    merges.into_iter().map(|(_, left, right)| (left.into(), right.into())).collect()
}

/// Unigram model: T5's tokenizer, with the sentinel tokens after the pieces.
fn unigram(proto: Proto, extra: usize) -> Result<tokenizers::Tokenizer> {
    let unknown = proto.pieces.iter().position(|p| p.kind == Kind::Unknown);
    let unknown =
        unknown.ok_or_else(|| Error::new(ErrorKind::Format, "the unigram model has no unknown piece"))?;
    let mut scores: Vec<(String, f64)> =
        proto.pieces.iter().map(|p| (p.text.clone(), f64::from(p.score))).collect();
    let sentinels: Vec<String> = (0..extra).rev().map(|i| format!("<extra_id_{i}>")).collect();
    scores.extend(sentinels.iter().map(|token| (token.clone(), 0.0)));
    let byte_fallback = proto.pieces.iter().any(|p| p.kind == Kind::Byte);
    let model = Unigram::from(scores, Some(unknown), byte_fallback)
        .map_err(|e| tokenizer_error("invalid unigram model", e))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    if !proto.charsmap.is_empty() {
        guard::check_charsmap(&proto.charsmap)?;
        let precompiled = Precompiled::from(&proto.charsmap).map_err(|e| {
            Error::new(
                ErrorKind::Format,
                format!("the normalization table (precompiled_charsmap) is damaged: {e}"),
            )
        })?;
        normalizers.push(precompiled.into());
    }
    if proto.remove_extra_whitespaces {
        normalizers.push(part(json!({"type": "Strip", "strip_left": true, "strip_right": true}))?);
        normalizers.push(part(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}))?);
    }
    let prepend = if proto.add_dummy_prefix { "always" } else { "never" };
    let metaspace: Value =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": true});
    tokenizer
        .with_normalizer(Some(tokenizers::normalizers::Sequence::new(normalizers)))
        .map_err(misfit)?
        .with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(metaspace.clone())?))
        .with_decoder(Some(part::<DecoderWrapper>(metaspace)?));
    add_tokens(&mut tokenizer, &proto.pieces)?;
    let sentinels: Vec<AddedToken> = sentinels.into_iter().map(|t| AddedToken::from(t, true)).collect();
    tokenizer.add_special_tokens(sentinels).map_err(not_added)?;
    Ok(tokenizer)
}

/// The fields of a SentencePiece model file.
struct Proto {
    pieces: Vec<Piece>,
    model_type: u64,
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

impl Proto {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut proto = Self {
            pieces: Vec::new(),
            model_type: 1,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
        };
        each_field(bytes, |field, value| {
            match (field, value) {
                (1, Field::Bytes(piece)) => proto.pieces.push(Piece::parse(piece)?),
                (2, Field::Bytes(trainer)) => each_field(trainer, |field, value| {
                    if let (3, Field::Number(kind)) = (field, value) {
                        proto.model_type = kind;
                    }
                    Ok(())
                })?,
                (3, Field::Bytes(normalizer)) => each_field(normalizer, |field, value| {
                    match (field, value) {
                        (2, Field::Bytes(charsmap)) => proto.charsmap = charsmap.to_vec(),
                        (3, Field::Number(flag)) => proto.add_dummy_prefix = flag != 0,
                        (4, Field::Number(flag)) => proto.remove_extra_whitespaces = flag != 0,
                        _ => {}
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })?;
        match proto.pieces.is_empty() {
            true => Err(Error::new(ErrorKind::Format, "not a SentencePiece model: it has no pieces")),
            false => Ok(proto),
        }
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: Kind::Normal };
        each_field(bytes, |field, value| {
            match (field, value) {
                (1, Field::Bytes(text)) => {
                    piece.text = String::from_utf8(text.to_vec())
                        .map_err(|_| Error::new(ErrorKind::Format, "a piece is not UTF-8"))?;
                }
                (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                (3, Field::Number(kind)) => piece.kind = Kind::from_number(kind)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(piece)
    }
}

/// The value of one field of a protobuf message.
enum Field<'a> {
    Number(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Other,
}

/// Calls `each` with the number and value of every field of a protobuf message.
fn each_field(mut bytes: &[u8], mut each: impl FnMut(u64, Field) -> Result<()>) -> Result<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => take(&mut bytes, 8).map(|_| Field::Other)?,
            2 => {
                let length = varint(&mut bytes)?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => {
                let bits = take(&mut bytes, 4)?;
                Field::Fixed32(u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]))
            }
            kind => return Err(damaged(format!("field type {kind}"))),
        };
        each(key >> 3, value)?;
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err(damaged("an integer of more than 64 bits"))
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8]> {
    let split = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
    let (taken, rest) =
        split.ok_or_else(|| damaged(format!("expected {length} bytes, {} are left", bytes.len())))?;
    *bytes = rest;
    Ok(taken)
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Format, format!("not a SentencePiece model, or damaged: {what}"))
}
