//! Tokenization of prompts, as in min-dalle and in the original DALL·E mini.

use std::collections::HashMap;
use std::path::Path;

use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, Result, json, misnamed};

use super::PAD;

/// Maximum length of a prompt in characters, far above the token limit.
const MAX_CHARACTERS: usize = 10_000;

/// The space before a word, in the vocabulary.
const SPACE: char = 'Ġ';

/// Tokenizer of prompts.
pub struct TextTokenizer {
    model: TokenizerModel,
    begin: u32,
    end: u32,
    /// Maximum sequence length, special tokens included.
    max_length: usize,
}

enum TokenizerModel {
    /// min-dalle's: lower-cased ASCII, split at spaces, byte-pair encoding.
    MinDalle(Bpe),
    /// DALL·E mini's: text is normalized like the training captions.
    DalleMini(Box<Tokenizer>),
}

/// A tokenized prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    /// Token ids, padded with 1 to the maximum sequence length.
    pub ids: Vec<u32>,
    /// Number of tokens that were truncated.
    pub cut: usize,
}

impl TextTokenizer {
    /// Loads min-dalle's tokenizer from its `vocab.json` and `merges.txt`. `max_length` is the maximum sequence length.
    ///
    /// # Errors
    /// If a file cannot be parsed or lacks a special token.
    pub fn min_dalle(vocab: &Path, merges: &Path, max_length: usize) -> Result<Self> {
        let text = |path: &Path| misnamed::read_text(path);
        let ids = json::read(vocab).and_then(json::typed::<HashMap<String, u32>>);
        let ids = ids.map_err(|e| e.context("expected a map from tokens to ids").at(vocab))?;
        let id = |token: &str| {
            ids.get(token).copied().ok_or_else(|| Error::format(vocab, format!("no id for {token}")))
        };
        let (begin, end, unknown) = (id("<s>")?, id("</s>")?, id("<unk>")?);
        // The first line is the version.
        let lines = text(merges)?;
        let pair = |line: &str| Some(line.split_once(' ')?).map(|(a, b)| (a.to_string(), b.to_string()));
        let pairs = lines.lines().skip(1).filter_map(pair);
        let ranks = pairs.zip(0..).collect();
        Ok(Self { model: TokenizerModel::MinDalle(Bpe { ids, ranks, unknown }), begin, end, max_length })
    }

    /// The original DALL·E mini's tokenizer, with its text normalization.
    ///
    /// # Errors
    /// [`Format`](fauna_shared::ErrorKind::Format) if the tokenizer has no `<s>` or `</s>`.
    pub fn dalle_mini(tokenizer: Tokenizer, max_length: usize) -> Result<Self> {
        let id = |token: &str| {
            tokenizer.token_id(token).ok_or_else(|| {
                Error::new(fauna_shared::ErrorKind::Format, format!("the tokenizer has no {token}"))
            })
        };
        let (begin, end) = (id("<s>")?, id("</s>")?);
        Ok(Self { model: TokenizerModel::DalleMini(Box::new(tokenizer)), begin, end, max_length })
    }

    /// Tokenizes `text`. A text that is too long is truncated, EOS token included.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a text of more than 10,000 characters.
    pub fn encode(&self, text: &str) -> Result<TokenizedText> {
        if text.chars().nth(MAX_CHARACTERS).is_some() {
            return Err(Error::input(format!("the prompt has more than {MAX_CHARACTERS} characters"))
                .hint(format!("the model uses the first {} tokens", self.max_length)));
        }
        let mut ids = vec![self.begin];
        match &self.model {
            TokenizerModel::MinDalle(bpe) => {
                let plain: String = text.to_lowercase().chars().filter(char::is_ascii).collect();
                plain.split(' ').filter(|word| !word.is_empty()).for_each(|word| bpe.encode(word, &mut ids));
            }
            TokenizerModel::DalleMini(tokenizer) => ids.extend(tokenizer.encode(&normalized(text), false)?),
        }
        ids.push(self.end);
        let cut = ids.len().saturating_sub(self.max_length);
        ids.resize(self.max_length, PAD);
        Ok(TokenizedText { ids, cut })
    }

    /// Token ids of the empty prompt, for classifier-free guidance.
    pub fn unconditional(&self) -> Vec<u32> {
        let mut ids = vec![self.begin, self.end];
        ids.resize(self.max_length, PAD);
        ids
    }
}

/// Byte-pair encoding: vocabulary and ranks of the merges.
struct Bpe {
    ids: HashMap<String, u32>,
    ranks: HashMap<(String, String), usize>,
    unknown: u32,
}

impl Bpe {
    /// Appends the ids of one ASCII word.
    fn encode(&self, word: &str, ids: &mut Vec<u32>) {
        let mut pieces: Vec<String> =
            std::iter::once(SPACE).chain(word.chars()).map(|c| c.to_string()).collect();
        loop {
            let rank = |pair: &[String]| self.ranks.get(&(pair[0].clone(), pair[1].clone())).copied();
            let ranked = pieces.windows(2).enumerate().filter_map(|(i, pair)| Some((rank(pair)?, i)));
            let Some((_, first)) = ranked.min() else { break };
            let second = pieces.remove(first + 1);
            pieces[first].push_str(&second);
        }
        ids.extend(pieces.iter().map(|piece| self.ids.get(piece).copied().unwrap_or(self.unknown)));
    }
}

/// Normalizes `text` like the training captions of DALL·E mini: HTML entities unescaped, accents stripped, lower-cased,
/// links, tags and references removed, quotes and punctuation replaced by commas, with a leading space.
///
/// Not implemented of the original's steps: mojibake repair, emoji names, transliteration of non-Latin scripts, and
/// splitting of hashtags.
fn normalized(text: &str) -> String {
    let text = unescaped(&unescaped(text));
    let plain: String = text.chars().flat_map(folded).collect::<String>().to_lowercase();
    let plain = without(&without(&plain, '<', '>', |_| true), '[', ']', |inner| {
        inner.bytes().all(|byte| byte.is_ascii_digit())
    });
    let words = plain.split_whitespace().filter(|word| !word.contains("://") && !word.starts_with("www."));
    let plain = words.collect::<Vec<_>>().join(" ");
    let mut out = String::with_capacity(plain.len());
    let letters: Vec<char> = plain.chars().collect();
    for (i, letter) in letters.iter().enumerate() {
        let digit = |at: Option<usize>| at.and_then(|at| letters.get(at)).is_some_and(char::is_ascii_digit);
        let word = |at: Option<usize>| at.and_then(|at| letters.get(at)).is_some_and(|c| c.is_alphanumeric());
        let (before, after) = (i.checked_sub(1), Some(i + 1));
        match letter {
            ',' if digit(before) && digit(after) => {}
            '.' if digit(before) && digit(after) => out.push('.'),
            '\'' if word(before) && word(after) => out.push('\''),
            '#' => {}
            '-' | '/' | '_' => out.push(' '),
            '&' => out.push_str(" and "),
            letter if letter.is_alphanumeric() || *letter == ' ' => out.push(*letter),
            _ => out.push(','),
        }
    }
    let parts = out.split(',').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    format!(" {}", collapse_runs(&parts.join(", ")))
}

/// Unescapes common HTML entities.
fn unescaped(text: &str) -> String {
    let known =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    known.iter().fold(text.to_string(), |text, (escape, sign)| text.replace(escape, sign))
}

/// Removes the text between `open` and `close`, delimiters included, for which `of` returns true.
fn without(text: &str, open: char, close: char, of: impl Fn(&str) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        let inside = &rest[start + open.len_utf8()..];
        match inside.find(close) {
            Some(end) if of(&inside[..end]) => {
                out.push_str(&rest[..start]);
                rest = &inside[end + close.len_utf8()..];
            }
            _ => {
                out.push_str(&rest[..start + open.len_utf8()]);
                rest = inside;
            }
        }
    }
    out + rest
}

/// Maps a character to ASCII without accents; to nothing if there is no such mapping.
fn folded(letter: char) -> impl Iterator<Item = char> {
    const FOLDS: [(&str, &str); 22] = [
        ("àáâãäåāăąÀÁÂÃÄÅĀĂĄ", "a"),
        ("çćĉċčÇĆĈĊČ", "c"),
        ("ďđðĎĐÐ", "d"),
        ("èéêëēĕėęěÈÉÊËĒĔĖĘĚ", "e"),
        ("ĝğġģĜĞĠĢ", "g"),
        ("ĥħĤĦ", "h"),
        ("ìíîïĩīĭįıÌÍÎÏĨĪĬĮİ", "i"),
        ("ĵĴ", "j"),
        ("ķĶ", "k"),
        ("ĺļľŀłĹĻĽĿŁ", "l"),
        ("ñńņňÑŃŅŇ", "n"),
        ("òóôõöøōŏőÒÓÔÕÖØŌŎŐ", "o"),
        ("ŕŗřŔŖŘ", "r"),
        ("śŝşšŚŜŞŠ", "s"),
        ("ţťŧŢŤŦ", "t"),
        ("ùúûüũūŭůűųÙÚÛÜŨŪŬŮŰŲ", "u"),
        ("ŵŴ", "w"),
        ("ýÿŷÝŶŸ", "y"),
        ("źżžŹŻŽ", "z"),
        ("æÆ", "ae"),
        ("œŒ", "oe"),
        ("ßẞ", "ss"),
    ];
    const SIGNS: [(&str, &str); 4] = [("‘’‚‹›", "'"), ("“”„«»", "\""), ("–—−", "-"), ("…", "...")];
    let found = FOLDS.iter().chain(&SIGNS).find(|(letters, _)| letters.contains(letter));
    let plain = match found {
        Some((_, plain)) => plain,
        None => "",
    };
    let itself = (letter.is_ascii() && found.is_none()).then_some(letter);
    let space = (letter.is_whitespace() && !letter.is_ascii()).then_some(' ');
    plain.chars().chain(itself).chain(space)
}

/// Collapses runs of four or more of a character to one.
fn collapse_runs(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let runs = letters.chunk_by(|a, b| a == b);
    runs.flat_map(|run| run.iter().take(if run.len() >= 4 { 1 } else { run.len() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpe() -> Bpe {
        let tokens = ["<unk>", "Ġ", "a", "c", "t", "Ġa", "at", "Ġcat", "Ġc", "!"];
        let merges = [("a", "t"), ("Ġ", "a"), ("Ġ", "c"), ("Ġc", "at")];
        Bpe {
            ids: tokens.iter().zip(0..).map(|(token, id)| (token.to_string(), id)).collect(),
            ranks: merges.iter().zip(0..).map(|((a, b), i)| ((a.to_string(), b.to_string()), i)).collect(),
            unknown: 0,
        }
    }

    #[test]
    fn the_pair_of_lowest_rank_is_merged_first() {
        let mut ids = Vec::new();
        for word in ["a", "cat", "tat!", "q"] {
            bpe().encode(word, &mut ids);
        }
        // "Ġa", "Ġcat", "Ġ" "t" "at" "!", "Ġ" and unknown.
        assert_eq!(ids, [5, 7, 1, 4, 6, 9, 1, 0]);
    }

    #[test]
    fn prompts_are_normalized_like_the_training_captions() {
        for (text, wanted) in [
            ("A Cat", " a cat"),
            ("  two   spaces ", " two spaces"),
            ("\"Crème brûlée\" &amp;amp; tea!", " creme brulee, and tea"),
            ("1,000 cats: 2.5 kg; it's <b>big</b>", " 1000 cats, 2.5 kg, it's big"),
            ("soooooo good #art https://example.org/x [12]", " so good art"),
            ("well-known...", " well known"),
        ] {
            assert_eq!(normalized(text), wanted);
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_truncated() {
        let tokenizer =
            TextTokenizer { model: TokenizerModel::MinDalle(bpe()), begin: 20, end: 22, max_length: 5 };
        let words = tokenizer.encode("A CAT").unwrap();
        assert_eq!(words, TokenizedText { ids: vec![20, 5, 7, 22, 1], cut: 0 });
        let words = tokenizer.encode("a é cat cat cat a").unwrap();
        assert_eq!(words, TokenizedText { ids: vec![20, 5, 7, 7, 7], cut: 2 });
        assert_eq!(tokenizer.unconditional(), [20, 22, 1, 1, 1]);
        assert!(tokenizer.encode(&"a".repeat(MAX_CHARACTERS + 1)).is_err());
    }
}
