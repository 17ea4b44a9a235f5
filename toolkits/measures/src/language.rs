//! Language models: likelihoods of texts and of choices, by the rules of lm-evaluation-harness.

use fauna_shared::{Error, Result};

/// Perplexities of texts whose log-likelihoods are known (lm-evaluation-harness, `word_perplexity`, `byte_perplexity`,
/// `bits_per_byte`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// Perplexity per word; words are what white space separates.
    pub per_word: f64,
    /// Perplexity per byte of UTF-8.
    pub per_byte: f64,
    /// Bits per byte of UTF-8, which models with different tokenizers share.
    pub bits_per_byte: f64,
}

/// The perplexities of `texts` with their natural log-likelihoods.
///
/// ```
/// use fauna_measures::language::perplexity;
/// // Two bits for each of four bytes.
/// let found = perplexity(&[("a bc", -8.0 * std::f64::consts::LN_2)])?;
/// assert_eq!((found.bits_per_byte, found.per_word.round()), (2.0, 16.0));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for texts without a word, or a log-likelihood that is not finite.
pub fn perplexity(texts: &[(&str, f64)]) -> Result<Perplexity> {
    // As `re.split(r"\s+", text)` counts: white space at an end makes an empty word.
    let words_of = |text: &str| {
        let ends =
            text.starts_with(char::is_whitespace) as usize + text.ends_with(char::is_whitespace) as usize;
        text.split_whitespace().count() + ends
    };
    let words: usize = texts.iter().map(|(text, _)| words_of(text)).sum();
    let bytes: usize = texts.iter().map(|(text, _)| text.len()).sum();
    if words == 0 || bytes == 0 {
        return Err(Error::input("texts without a word have no perplexity"));
    }
    if let Some(at) = texts.iter().position(|(_, likelihood)| !likelihood.is_finite()) {
        return Err(Error::input(format!("the log-likelihood of text {} is {}", at + 1, texts[at].1)));
    }
    let loss = -texts.iter().map(|(_, likelihood)| likelihood).sum::<f64>();
    Ok(Perplexity {
        per_word: (loss / words as f64).exp(),
        per_byte: (loss / bytes as f64).exp(),
        bits_per_byte: loss / bytes as f64 / std::f64::consts::LN_2,
    })
}

/// How the log-likelihood of a choice is normalized by its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalization {
    /// Not at all (`acc`).
    None,
    /// By its number of characters (`acc_norm`).
    Characters,
    /// By its number of bytes of UTF-8 (`acc_bytes`).
    Bytes,
}

/// The choice of the highest log-likelihood, of equal ones the first.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for no choice, or an empty one whose length normalizes.
pub fn chosen(choices: &[(&str, f64)], normalization: Normalization) -> Result<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (number, (text, likelihood)) in choices.iter().enumerate() {
        let length = match normalization {
            Normalization::None => 1,
            Normalization::Characters => text.chars().count(),
            Normalization::Bytes => text.len(),
        };
        if length == 0 {
            return Err(Error::input(format!("choice {} is empty: its length cannot normalize", number + 1)));
        }
        let score = likelihood / length as f64;
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((number, score));
        }
    }
    best.map(|(number, _)| number).ok_or_else(|| Error::input("a question without choices"))
}
