//! Text to tokens and back: tokenizers in every layout releases use, chat templates, and text streamed from a model.
//!
//! ```no_run
//! use fauna_shared::text::{Padding, Tokenizer};
//! let tokenizer = Tokenizer::from_folder("models/bert")?;
//! let batch = tokenizer.encode_batch(&["a cat", "a much longer sentence"], Padding::Right, Some(128))?;
//! assert_eq!(batch.ids.len(), 2 * batch.time());
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
pub use code::Definitions;
pub use gguf::GgufVocabulary;
pub use stream::{Completion, Detokenizer, OutputChannel, OutputParser, Piece, Prompt, stream, stream_heard};

use crate::{Error, ErrorKind, Result};

/// How releases spell the end of a turn.
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

/// Turns text into token ids and back, as the release it was loaded with does.
///
/// Truncation and padding stored in a tokenizer file are dropped at load: they are a training setting, and the
/// caller says what a batch needs.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// Special tokens as chat templates know them, by role: the tokenizer's own, whatever ends generation.
    roles: Vec<(&'static str, String)>,
    max_length: Option<usize>,
    /// What it was read from, if that is a file.
    file: Option<PathBuf>,
}

/// The ids that mean something to a model, from the tokenizer's, the generation and the model configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Any of these ends a text. `generation_config.json` counts first, then `config.json`, then the tokenizer.
    pub eos: Vec<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
    /// Stands for what the vocabulary lacks.
    pub unk: Option<u32>,
    /// Begins an input of BERT.
    pub cls: Option<u32>,
    /// Ends each text of an input of BERT.
    pub sep: Option<u32>,
    /// Hides a word that BERT is to guess.
    pub mask: Option<u32>,
}

/// One text, or a pair, as tokens that know where they came from. All vectors have one entry per token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second, as the template says for special tokens.
    pub type_ids: Vec<u32>,
    /// Bytes `start..end` of the text the token stands for; `(0, 0)` for tokens the template added.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the template added the token.
    pub special: Vec<bool>,
    /// Which text the token is of, 0 or 1; `None` for tokens the template added.
    pub texts: Vec<Option<usize>>,
    /// Which word of its text the token is of, as the tokenizer splits words; `None` for tokens the template added.
    pub words: Vec<Option<u32>>,
    /// How many tokens were cut to meet the maximum length.
    pub cut: usize,
}

/// Where the padding of a batch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Before the tokens, up to the longest row: for models that continue the row.
    Left,
    /// After the tokens, up to the longest row: for encoders.
    Right,
    /// After the tokens, up to this length at least: for encoders trained on one length.
    RightTo(usize),
}

/// Rows of tokens of one length, row-major.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, `(rows, time)`.
    pub ids: Vec<u32>,
    /// 1 for a token, 0 for padding, `(rows, time)`.
    pub mask: Vec<u32>,
    /// 0 for the first text, 1 for the second, `(rows, time)`.
    pub type_ids: Vec<u32>,
    /// How many tokens each row has without padding.
    pub lengths: Vec<usize>,
    /// How many tokens of each row were cut to meet the maximum length.
    pub cut: Vec<usize>,
}

impl Batch {
    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// How many tokens, padding included, each row has.
    pub fn time(&self) -> usize {
        self.ids.len() / self.rows().max(1)
    }

    /// `ids`, `(rows, time)`, u32.
    pub fn ids_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&self.ids, device)
    }

    /// `mask`, `(rows, time)`, u32.
    pub fn mask_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&self.mask, device)
    }

    /// `type_ids`, `(rows, time)`, u32.
    pub fn type_ids_tensor(&self, device: &Device) -> Result<Tensor> {
        self.tensor(&self.type_ids, device)
    }

    fn tensor(&self, values: &[u32], device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, (self.rows(), self.time()), device)?)
    }
}

impl Tokenizer {
    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| tokenizer_error("cannot drop truncation", e))?;
        Ok(Self { inner, special: SpecialTokens::default(), roles: Vec::new(), max_length: None, file: None })
    }

    /// What the crate gives; its errors and panics name the file.
    fn caught<T>(&self, what: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        guard::caught(what, work).map_err(|e| match &self.file {
            Some(file) => e.at(file),
            None => e,
        })
    }

    /// The same, but a token of `size` or above plays no role for the model.
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

    /// The same, read from `file`.
    fn of(mut self, file: &Path) -> Self {
        self.file = Some(file.to_path_buf());
        self
    }

    /// With further special tokens after all others, as releases that extend a tokenizer add them. Those it has stay.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) if the tokenizer's normalizer does not take one of them.
    pub fn with_tokens(mut self, tokens: &[&str]) -> Result<Self> {
        let tokens = tokens.iter().map(|token| tokenizers::AddedToken::from(*token, true));
        self.inner.add_special_tokens(tokens).map_err(not_added)?;
        Ok(self)
    }

    /// The same, over texts in lower case: before its own rules, unless they do so already.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if its rules do not take another.
    pub fn with_lower_case(mut self) -> Result<Self> {
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

    /// The ids of `text`; with `add_special`, the ones the release puts around a text too.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.caught("cannot tokenise", || self.inner.encode_fast(text, add_special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of `text` with their origin, at most `max_length` of them, special ones included.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if `max_length` leaves no room for a token of the text.
    pub fn encode_text(&self, text: &str, max_length: Option<usize>) -> Result<Encoding> {
        let encoding = self.caught("cannot tokenise", || self.inner.encode(text, true))?;
        Encoding::new(&encoding, max_length)
    }

    /// The tokens of a pair of texts with their origin; if they are too long, the longer text is cut first.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_text`].
    pub fn encode_pair(&self, first: &str, second: &str, max_length: Option<usize>) -> Result<Encoding> {
        let encoding = self.caught("cannot tokenise", || self.inner.encode((first, second), true))?;
        Encoding::new(&encoding, max_length)
    }

    /// The tokens of several texts, special ones included, as one rectangle.
    ///
    /// `max_length` bounds each row, special tokens included; what was cut is counted in [`Batch::cut`].
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
        let encodings = self.caught("cannot tokenise", || self.inner.encode_batch_fast(texts, true))?;
        let encodings: Result<Vec<_>> = encodings.iter().map(|e| Encoding::new(e, max_length)).collect();
        Ok(self.pad(&encodings?, padding))
    }

    /// Fills rows up to one length with the padding token.
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
            fill(&mut batch.mask, &vec![1; length], 0);
            batch.lengths.push(length);
            batch.cut.push(encoding.cut);
        }
        batch
    }

    /// The text of `ids`; with `skip_special`, without the tokens that are not text.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the decoder of the release fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let added = self.inner.get_added_vocabulary();
        let tells = |token: String| !(skip_special && added.is_special_token(&token));
        // Some decoders cannot take an empty list.
        if !ids.iter().any(|&id| self.inner.id_to_token(id).is_some_and(tells)) {
            return Ok(String::new());
        }
        self.caught("cannot decode", || self.inner.decode(ids, skip_special))
    }

    /// The id of exactly this token, for example `"[MASK]"`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this id as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids that mean something to a model.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Replaces the ids that mean something to a model.
    pub fn with_special(mut self, special: SpecialTokens) -> Self {
        self.special = special;
        self
    }

    /// Tokens that end a turn by their spelling, whatever a configuration names: where a template ends turns by one of
    /// these, a release may still call another its end token. Those of llama.cpp.
    pub fn turn_ends(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let id = |token: &str| self.token_id(token).filter(|id| added.contains_key(id));
        // Where calls and returns end a turn, this one ends a part of it.
        let parts = id("<|return|>").or(id("<|call|>")).is_some();
        TURN_ENDS.into_iter().filter(|token| !(parts && *token == "<|end|>")).filter_map(id).collect()
    }

    /// The id of `text` if it is a special token, which gives no text.
    pub(crate) fn special_id(&self, text: &str) -> Option<u32> {
        let id = self.token_id(text)?;
        self.inner.get_added_tokens_decoder().get(&id).filter(|token| token.special).map(|_| id)
    }

    /// The first token that ends a text.
    pub(crate) fn end_token(&self) -> Option<u32> {
        self.special.eos.first().copied()
    }

    /// What fills up rows: the padding token, else the first end token, else 0. It is always masked.
    pub fn pad_id(&self) -> u32 {
        self.special.pad.or(self.end_token()).unwrap_or(0)
    }

    /// The longest input the release names, special tokens included.
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
        let room = match max_length {
            None => usize::MAX,
            Some(max) => room_for_text(max, encoding.len() - counts[0] - counts[1], counts)?,
        };
        let limits = longest_first(counts, room);
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
            out.special.push(special[i]);
            out.texts.push(text);
            out.words.push(encoding.get_word_ids()[i]);
        }
        Ok(out)
    }
}

/// How many of `max` tokens are left for text beside `special` ones.
fn room_for_text(max: usize, special: usize, counts: [usize; 2]) -> Result<usize> {
    let room = max.saturating_sub(special);
    match counts[0] + counts[1] > 0 && (room == 0 || (counts[1] > 0 && room == 1)) {
        true => Err(Error::input(format!(
            "a maximum length of {max} leaves no room for text beside {special} special tokens"
        ))),
        false => Ok(room),
    }
}

/// How many tokens of each text stay if `room` are left: the longer text is cut first, then both to one half.
fn longest_first(counts: [usize; 2], room: usize) -> [usize; 2] {
    let [first, second] = counts;
    if first.saturating_add(second) <= room {
        return counts;
    }
    let (short, long) = (first.min(second), room.saturating_sub(first.min(second)));
    let (short, long) = if long >= short { (short, long) } else { (room / 2, room - room / 2) };
    if first <= second { [short, long] } else { [long, short] }
}

fn tokenizer_error(what: &str, source: tokenizers::Error) -> Error {
    Error::new(ErrorKind::Format, format!("{what}: {source}"))
}

/// A normalizer that turns a token that was added before it into nothing.
fn misfit(source: tokenizers::Error) -> Error {
    tokenizer_error("the normalizer does not fit the tokens that were added", source)
}

fn not_added(source: tokenizers::Error) -> Error {
    tokenizer_error("special tokens cannot be added", source)
}

#[cfg(test)]
mod tests;
