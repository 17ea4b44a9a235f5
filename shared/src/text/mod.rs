//! Tokenizers, chat templates and streaming generation.
//!
//! [`Tokenizer::from_folder`] loads `tokenizer.json`, the vocabulary files of the slow tokenizers, and SentencePiece
//! models.
//!
//! ```no_run
//! use fauna_shared::text::{Padding, Tokenizer};
//! let tokenizer = Tokenizer::from_folder("models/bert")?;
//! let batch = tokenizer.encode_batch(&["a cat", "a much longer sentence"], Padding::Right, Some(128))?;
//! assert_eq!(batch.ids.len(), 2 * batch.sequence_length());
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod chat;
mod code;
mod folder;
mod gguf;
mod guard;
mod jinja;
mod load;
mod parts;
mod sentencepiece;
mod stream;
mod vocab_txt;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use tokenizers::NormalizerWrapper;
use tokenizers::normalizers::{Lowercase, Sequence};

pub use chat::{ChatTemplate, Message};
pub use code::DefinitionStop;
pub use gguf::GgufVocabulary;
pub use stream::{
    Completion, Detokenizer, OutputChannel, OutputParser, Piece, Prompt, stream, stream_with_parser,
};

use crate::{Error, ErrorKind, Result};

/// End-of-turn tokens of released chat models.
const TURN_ENDS: [&str; 20] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// Encodes text into token ids and decodes token ids into text.
///
/// Truncation and padding settings of a `tokenizer.json` are ignored; they are arguments of
/// [`encode_batch`](Tokenizer::encode_batch).
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// Special tokens by role (`bos_token`, …), as chat templates see them. Independent of the end tokens of
    /// generation.
    roles: Vec<(&'static str, String)>,
    max_length: Option<usize>,
    /// The file it was loaded from, for error messages.
    file: Option<PathBuf>,
}

/// Ids of the special tokens, from the configuration of the tokenizer, of generation and of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning-of-sequence token.
    pub bos: Option<u32>,
    /// End-of-sequence tokens: those of `generation_config.json`, else of `config.json`, else of the tokenizer.
    pub eos: Vec<u32>,
    /// Padding token.
    pub pad: Option<u32>,
    /// Unknown token.
    pub unk: Option<u32>,
    /// Classification token (`[CLS]`), first token of a BERT input.
    pub cls: Option<u32>,
    /// Separator token (`[SEP]`), last token of each text of a BERT input.
    pub sep: Option<u32>,
    /// Mask token (`[MASK]`) of masked language models.
    pub mask: Option<u32>,
}

/// The tokens of a text or of a pair of texts, with their offsets. All vectors have one entry per token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token type ids: 0 for the first text, 1 for the second; for special tokens as the post-processor sets them.
    pub type_ids: Vec<u32>,
    /// Byte range `start..end` of the token in its text; `(0, 0)` for special tokens added by the post-processor.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the token is a special token added by the post-processor.
    pub special_tokens_mask: Vec<bool>,
    /// Index of the text the token belongs to, 0 or 1; `None` for special tokens added by the post-processor.
    pub sequence_ids: Vec<Option<usize>>,
    /// Index of the word the token belongs to, as split by the pre-tokenizer; `None` for special tokens added by the
    /// post-processor.
    pub word_ids: Vec<Option<u32>>,
    /// Number of tokens removed by truncation.
    pub cut: usize,
}

/// The padding side, and the length a batch is padded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Left padding to the longest sequence of the batch, for generation.
    Left,
    /// Right padding to the longest sequence of the batch, for encoders.
    Right,
    /// Right padding to at least this length, for encoders trained on a fixed length.
    RightTo(usize),
}

/// A padded batch of token sequences, row-major.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `(batch, sequence)`.
    pub ids: Vec<u32>,
    /// Attention mask, `(batch, sequence)`: 1 for a token, 0 for padding.
    pub attention_mask: Vec<u32>,
    /// Token type ids, `(batch, sequence)`: 0 for the first text, 1 for the second.
    pub type_ids: Vec<u32>,
    /// Length of each sequence without padding.
    pub lengths: Vec<usize>,
    /// Number of tokens removed from each sequence by truncation.
    pub cut: Vec<usize>,
}

impl Batch {
    /// Number of sequences.
    pub fn batch_size(&self) -> usize {
        self.lengths.len()
    }

    /// Length of each sequence including padding.
    pub fn sequence_length(&self) -> usize {
        self.ids.len() / self.batch_size().max(1)
    }

    /// The token ids as a tensor, `(batch, sequence)`, u32.
    pub fn ids_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&self.ids, device)
    }

    /// The attention mask as a tensor, `(batch, sequence)`, u32.
    pub fn attention_mask_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&self.attention_mask, device)
    }

    /// The token type ids as a tensor, `(batch, sequence)`, u32.
    pub fn type_ids_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&self.type_ids, device)
    }

    fn tensor(&self, values: &[u32], device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, (self.batch_size(), self.sequence_length()), device)?)
    }
}

impl Tokenizer {
    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| tokenizer_error("cannot disable truncation", e))?;
        Ok(Self { inner, special: SpecialTokens::default(), roles: Vec::new(), max_length: None, file: None })
    }

    /// Runs a call of the tokenizers crate; its errors and panics name the file.
    fn caught<T>(&self, what: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        guard::caught(what, work).map_err(|e| match &self.file {
            Some(file) => e.at(file),
            None => e,
        })
    }

    /// Drops special token ids that are not below the vocabulary size `size`; end tokens are kept.
    fn without_roles_from(mut self, size: usize) -> Self {
        let special = &mut self.special;
        let roles = [
            &mut special.bos,
            &mut special.pad,
            &mut special.unk,
            &mut special.cls,
            &mut special.sep,
            &mut special.mask,
        ];
        for role in roles {
            *role = role.filter(|id| (*id as usize) < size);
        }
        self
    }

    /// Sets the file named in error messages.
    fn of(mut self, file: &Path) -> Self {
        self.file = Some(file.to_path_buf());
        self
    }

    /// Adds special tokens at the end of the vocabulary. Tokens that exist already keep their ids.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) if the normalizer fails on one of them.
    pub fn with_special_tokens(mut self, tokens: &[&str]) -> Result<Self> {
        let tokens = tokens.iter().map(|token| tokenizers::AddedToken::from(*token, true));
        self.inner.add_special_tokens(tokens).map_err(not_added)?;
        Ok(self)
    }

    /// Lowercases text before the other normalizers, unless a normalizer does so already.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the normalizer cannot be extended.
    pub fn with_lowercase(mut self) -> Result<Self> {
        let lowers = |rule: &NormalizerWrapper| matches!(rule, NormalizerWrapper::Lowercase(_));
        let mut rules: Vec<NormalizerWrapper> = match self.inner.get_normalizer().cloned() {
            Some(NormalizerWrapper::Sequence(rules)) => rules.into_iter().collect(),
            rule => rule.into_iter().collect(),
        };
        if !rules.iter().any(lowers) {
            rules.insert(0, Lowercase.into());
            self.inner.with_normalizer(Some(Sequence::new(rules))).map_err(misfit)?;
        }
        Ok(self)
    }

    /// Encodes `text` into token ids, with special tokens if `add_special`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.caught("cannot tokenize", || self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes `text` with offsets, truncated to `max_length` tokens, special tokens included.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if `max_length` is too small for the special tokens and one token of the text.
    pub fn encode_text(&self, text: &str, max_length: Option<usize>) -> Result<Encoding> {
        let encoding = self.caught("cannot tokenize", || self.inner.encode(text, true))?;
        Encoding::new(&encoding, max_length)
    }

    /// Encodes a pair of texts with offsets, truncated longest first to `max_length` tokens, special tokens included.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_pair(&self, first: &str, second: &str, max_length: Option<usize>) -> Result<Encoding> {
        let encoding = self.caught("cannot tokenize", || self.inner.encode((first, second), true))?;
        Encoding::new(&encoding, max_length)
    }

    /// Encodes a batch of texts with special tokens and padding.
    ///
    /// Each sequence is truncated to `max_length` tokens, special tokens included; [`Batch::cut`] holds the number of
    /// removed tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_batch(
        &self,
        texts: &[impl AsRef<str>],
        padding: Padding,
        max_length: Option<usize>,
    ) -> Result<Batch> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let encodings = self.caught("cannot tokenize", || self.inner.encode_batch_fast(texts, true))?;
        let encodings: Result<Vec<_>> = encodings.iter().map(|e| Encoding::new(e, max_length)).collect();
        Ok(self.pad(&encodings?, padding))
    }

    /// Pads `encodings` to one length.
    pub fn pad(&self, encodings: &[Encoding], padding: Padding) -> Batch {
        let longest = encodings.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        let time = match padding {
            Padding::RightTo(length) => longest.max(length),
            Padding::Left | Padding::Right => longest,
        };
        let mut batch = Batch::default();
        for encoding in encodings {
            let length = encoding.ids.len();
            let before = if padding == Padding::Left { time - length } else { 0 };
            let after = time - length - before;
            let fill = |row: &mut Vec<u32>, values: &[u32], pad: u32| {
                row.extend(std::iter::repeat_n(pad, before));
                row.extend_from_slice(values);
                row.extend(std::iter::repeat_n(pad, after));
            };
            fill(&mut batch.ids, &encoding.ids, self.pad_id());
            fill(&mut batch.type_ids, &encoding.type_ids, 0);
            fill(&mut batch.attention_mask, &vec![1; length], 0);
            batch.lengths.push(length);
            batch.cut.push(encoding.cut);
        }
        batch
    }

    /// Decodes `ids` into text, without special tokens if `skip_special`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let added = self.inner.get_added_vocabulary();
        let is_text = |token: String| !(skip_special && added.is_special_token(&token));
        // Some decoders panic on an empty list.
        if !ids.iter().any(|&id| self.inner.id_to_token(id).is_some_and(is_text)) {
            return Ok(String::new());
        }
        self.caught("cannot decode", || self.inner.decode(ids, skip_special))
    }

    /// The id of `token`, for example of `"[MASK]"`; `None` if the vocabulary does not have it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with the given id, as written in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Vocabulary size, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Replaces the ids of the special tokens.
    pub fn with_special(mut self, special: SpecialTokens) -> Self {
        self.special = special;
        self
    }

    /// Ids of the end-of-turn tokens in the vocabulary, found by name as llama.cpp does. A chat template may end turns
    /// with a token that the configuration does not list as an end token.
    pub fn end_of_turn_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let id = |token: &str| self.token_id(token).filter(|id| added.contains_key(id));
        // In the harmony format `<|end|>` ends a message within a turn; `<|return|>` and `<|call|>` end the turn.
        let parts = id("<|return|>").or(id("<|call|>")).is_some();
        TURN_ENDS.into_iter().filter(|token| !(parts && *token == "<|end|>")).filter_map(id).collect()
    }

    /// The id of `text` if it is a special token.
    pub(crate) fn special_id(&self, text: &str) -> Option<u32> {
        let id = self.token_id(text)?;
        self.inner.get_added_tokens_decoder().get(&id).filter(|token| token.special).map(|_| id)
    }

    /// The first end-of-sequence token.
    pub(crate) fn end_token(&self) -> Option<u32> {
        self.special.eos.first().copied()
    }

    /// The id used for padding: the padding token, else the first end token, else 0.
    pub fn pad_id(&self) -> u32 {
        self.special.pad.or(self.end_token()).unwrap_or(0)
    }

    /// Maximum input length in tokens (`model_max_length`), special tokens included.
    pub fn max_length(&self) -> Option<usize> {
        self.max_length
    }
}

impl Encoding {
    fn new(encoding: &tokenizers::Encoding, max_length: Option<usize>) -> Result<Self> {
        let texts = encoding.get_sequence_ids();
        let special: Vec<bool> = encoding.get_special_tokens_mask().iter().map(|&m| m == 1).collect();
        let text_of = |i: usize| if special[i] { None } else { Some(texts[i].unwrap_or(0)) };
        let mut counts = [0usize; 2];
        (0..encoding.len()).filter_map(text_of).for_each(|text| counts[text.min(1)] += 1);
        let budget = match max_length {
            None => usize::MAX,
            Some(max) => text_budget(max, encoding.len() - counts[0] - counts[1], counts)?,
        };
        let limits = longest_first(counts, budget);
        let mut out = Self { cut: counts[0] + counts[1] - limits[0] - limits[1], ..Self::default() };
        let mut taken = [0usize; 2];
        for (i, &id) in encoding.get_ids().iter().enumerate() {
            let text = text_of(i);
            if let Some(text) = text {
                let text = text.min(1);
                taken[text] += 1;
                if taken[text] > limits[text] {
                    continue;
                }
            }
            out.ids.push(id);
            out.type_ids.push(encoding.get_type_ids()[i]);
            out.offsets.push(encoding.get_offsets()[i]);
            out.special_tokens_mask.push(special[i]);
            out.sequence_ids.push(text);
            out.word_ids.push(encoding.get_word_ids()[i]);
        }
        Ok(out)
    }
}

/// Number of tokens left for text when `special` of `max` tokens are special tokens.
fn text_budget(max: usize, special: usize, counts: [usize; 2]) -> Result<usize> {
    let budget = max.saturating_sub(special);
    match counts[0] + counts[1] > 0 && (budget == 0 || (counts[1] > 0 && budget == 1)) {
        true => Err(Error::input(format!(
            "a maximum length of {max} tokens is too small for text and {special} special tokens"
        ))),
        false => Ok(budget),
    }
}

/// Number of tokens kept of each text for a budget of `budget` tokens: the longer text is truncated first, then both.
fn longest_first(counts: [usize; 2], budget: usize) -> [usize; 2] {
    let [first, second] = counts;
    if first.saturating_add(second) <= budget {
        return counts;
    }
    let (short, long) = (first.min(second), budget.saturating_sub(first.min(second)));
    let (short, long) = if long >= short { (short, long) } else { (budget / 2, budget - budget / 2) };
    if first <= second { [short, long] } else { [long, short] }
}

fn tokenizer_error(what: &str, source: tokenizers::Error) -> Error {
    Error::new(ErrorKind::Format, format!("{what}: {source}"))
}

/// The error of a normalizer that maps an added token to the empty string.
fn misfit(source: tokenizers::Error) -> Error {
    tokenizer_error("the normalizer does not accept the added tokens", source)
}

fn not_added(source: tokenizers::Error) -> Error {
    tokenizer_error("special tokens cannot be added", source)
}

#[cfg(test)]
mod tests;
