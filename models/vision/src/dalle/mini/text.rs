//! Words to ids, as the port and as the original read them.

use std::collections::HashMap;
use std::path::Path;

use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, Result, json, misnamed};

use super::PAD;

/// Longer than any wish; what comes after could not be read anyway.
const MOST_CHARACTERS: usize = 10_000;

/// How a space before a word is spelled in the vocabulary.
const SPACE: char = 'Ġ';

/// Turns a wish into the ids that the encoder reads.
pub struct Reader {
    spelling: Spelling,
    begin: u32,
    end: u32,
    /// The longest text, what begins and ends it included.
    longest: usize,
}

enum Spelling {
    /// min-dalle's: lower-case ASCII, words by spaces.
    Port(Pairs),
    /// DALL·E mini's: text is brought to the form of the captions it learned from.
    Original(Box<Tokenizer>),
}

/// A text as the encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// As many ids as the longest text has, filled up with 1.
    pub ids: Vec<u32>,
    /// How many ids did not fit and were left out.
    pub cut: usize,
}

impl Reader {
    /// min-dalle's reader: `vocab.json` and `merges.txt`, or those of mini beside mega. `longest`: the longest text.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub fn port(vocab: &Path, merges: &Path, longest: usize) -> Result<Self> {
        let text = |path: &Path| misnamed::read_text(path);
        let ids = json::read(vocab).and_then(json::typed::<HashMap<String, u32>>);
        let ids = ids.map_err(|e| e.context("not tokens and their ids").at(vocab))?;
        let id = |token: &str| {
            ids.get(token).copied().ok_or_else(|| Error::format(vocab, format!("no id for {token}")))
        };
        let (begin, end, unknown) = (id("<s>")?, id("</s>")?, id("<unk>")?);
        // The first line says which version it is.
        let lines = text(merges)?;
        let pair = |line: &str| Some(line.split_once(' ')?).map(|(a, b)| (a.to_string(), b.to_string()));
        let pairs = lines.lines().skip(1).filter_map(pair);
        let ranks = pairs.zip(0..).collect();
        Ok(Self { spelling: Spelling::Port(Pairs { ids, ranks, unknown }), begin, end, longest })
    }

    /// The original's reader, over its tokenizer.
    ///
    /// # Errors
    /// [`Format`](fauna_shared::ErrorKind::Format) if the tokenizer knows no `<s>` and `</s>`.
    pub fn original(tokenizer: Tokenizer, longest: usize) -> Result<Self> {
        let id = |token: &str| {
            tokenizer.token_id(token).ok_or_else(|| {
                Error::new(fauna_shared::ErrorKind::Format, format!("the tokenizer has no {token}"))
            })
        };
        let (begin, end) = (id("<s>")?, id("</s>")?);
        Ok(Self { spelling: Spelling::Original(Box::new(tokenizer)), begin, end, longest })
    }

    /// The ids of `text`; what is too long is cut, the end token with it.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for a text of more than ten thousand characters.
    pub fn read(&self, text: &str) -> Result<Words> {
        if text.chars().nth(MOST_CHARACTERS).is_some() {
            return Err(Error::input(format!("a wish of more than {MOST_CHARACTERS} characters"))
                .hint(format!("the model reads the first {} tokens", self.longest)));
        }
        let mut ids = vec![self.begin];
        match &self.spelling {
            Spelling::Port(pairs) => {
                let plain: String = text.to_lowercase().chars().filter(char::is_ascii).collect();
                plain.split(' ').filter(|word| !word.is_empty()).for_each(|word| pairs.read(word, &mut ids));
            }
            Spelling::Original(tokenizer) => ids.extend(tokenizer.encode(&normalized(text), false)?),
        }
        ids.push(self.end);
        let cut = ids.len().saturating_sub(self.longest);
        ids.resize(self.longest, PAD);
        Ok(Words { ids, cut })
    }

    /// The ids of no words at all: what guidance leads away from.
    pub fn nothing(&self) -> Vec<u32> {
        let mut ids = vec![self.begin, self.end];
        ids.resize(self.longest, PAD);
        ids
    }
}

/// Byte pairs: which two pieces join first.
struct Pairs {
    ids: HashMap<String, u32>,
    ranks: HashMap<(String, String), usize>,
    unknown: u32,
}

impl Pairs {
    /// Adds the ids of one word of ASCII.
    fn read(&self, word: &str, ids: &mut Vec<u32>) {
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

/// `text` in the form of the captions that DALL·E mini learned from: HTML's escapes undone, letters without accents and
/// lower-case, no links, tags or references, quotes and punctuation as commas, one space before it.
///
/// Left out of the original's steps: repairing wrongly decoded text, names for emoji, letters of other scripts than
/// Latin, and the words inside hashtags.
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
    format!(" {}", calmed(&parts.join(", ")))
}

/// HTML's escapes of a few signs, undone.
fn unescaped(text: &str) -> String {
    let known =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    known.iter().fold(text.to_string(), |text, (escape, sign)| text.replace(escape, sign))
}

/// What stands between `open` and `close`, signs included, taken out where `of` says so.
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

/// A letter without its accents; nothing for what has no such letter.
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

/// Four and more of a letter in a row are one.
fn calmed(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let runs = letters.chunk_by(|a, b| a == b);
    runs.flat_map(|run| run.iter().take(if run.len() >= 4 { 1 } else { run.len() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Pairs {
        let tokens = ["<unk>", "Ġ", "a", "c", "t", "Ġa", "at", "Ġcat", "Ġc", "!"];
        let merges = [("a", "t"), ("Ġ", "a"), ("Ġ", "c"), ("Ġc", "at")];
        Pairs {
            ids: tokens.iter().zip(0..).map(|(token, id)| (token.to_string(), id)).collect(),
            ranks: merges.iter().zip(0..).map(|((a, b), i)| ((a.to_string(), b.to_string()), i)).collect(),
            unknown: 0,
        }
    }

    #[test]
    fn the_pair_of_lowest_rank_joins_first() {
        let mut ids = Vec::new();
        for word in ["a", "cat", "tat!", "q"] {
            pairs().read(word, &mut ids);
        }
        // "Ġa", "Ġcat", "Ġ" "t" "at" "!", "Ġ" and no "q".
        assert_eq!(ids, [5, 7, 1, 4, 6, 9, 1, 0]);
    }

    #[test]
    fn captions_take_the_form_of_those_that_were_learned() {
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
    fn a_text_too_long_is_cut_and_counted() {
        let reader = Reader { spelling: Spelling::Port(pairs()), begin: 20, end: 22, longest: 5 };
        let words = reader.read("A CAT").unwrap();
        assert_eq!(words, Words { ids: vec![20, 5, 7, 22, 1], cut: 0 });
        let words = reader.read("a é cat cat cat a").unwrap();
        assert_eq!(words, Words { ids: vec![20, 5, 7, 7, 7], cut: 2 });
        assert_eq!(reader.nothing(), [20, 22, 1, 1, 1]);
        assert!(reader.read(&"a".repeat(MOST_CHARACTERS + 1)).is_err());
    }
}
