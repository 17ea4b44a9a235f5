//! The codon tokenizer of the releases, and the standard genetic code.
//!
//! ```
//! use fauna_text::genslm::codons::{CodonTokenizer, Reading, translate};
//! let codons = CodonTokenizer::built_in()?;
//! let gene = codons.encode("atgaaagtaTAA", Reading::Strict, None)?;
//! assert_eq!(gene.ids, [10, 16, 31, 65]);
//! assert_eq!(codons.decode(&gene.ids), "ATGAAAGTATAA");
//! assert_eq!(translate("ATGAAAGTATAA"), "MKV*");
//!
//! let odd = codons.encode("ATGNNAA-G", Reading::Strict, None).unwrap_err();
//! assert!(odd.message().starts_with("\"N\" at base 4"));
//! // [UNK] for the codon with an N; the gap splits the last codon into three tokens.
//! assert_eq!(codons.encode("ATGNNAA-G", Reading::AsReleased, None)?.ids, [10, 0, 0, 0, 0]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// The vocabulary by id: five special tokens, then the codons in the order of the release.
const TOKENS: [&str; 69] = [
    "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", //
    "GGC", "GCC", "ATC", "GAC", "GAA", "ATG", "GTG", "CTG", "GTC", "GCG", "GAT", "AAA", "GGT", "AAG", "GAG",
    "ACC", "AAC", "GTT", "ATT", "GCA", "CTC", "CGC", "GCT", "CAG", "CCG", "TTC", "GTA", "TCG", "GGA", "AAT",
    "TAC", "CTT", "TTG", "ACG", "TCC", "GGG", "AGC", "CCC", "ACA", "ACT", "TCT", "TTA", "CGT", "TAT", "CAA",
    "CGG", "TTT", "CAC", "CCT", "CCA", "TGG", "ATA", "TCA", "TGC", "AGT", "AGA", "CAT", "TGT", "CTA", "AGG",
    "TAA", "CGA", "TGA", "TAG",
];

/// Size of the built-in vocabulary.
pub const VOCABULARY: usize = TOKENS.len();

const UNKNOWN: &str = "[UNK]";
const PAD: &str = "[PAD]";
/// Begin-of-sequence token, which only the vocabulary of 71 tokens has.
const BEGIN: &str = "[BOS]";

/// The bases in the standard order of genetic code tables.
const BASES: [u8; 4] = *b"TCAG";

/// The standard genetic code by first, second and third base, each in the order of [`BASES`] (NCBI's table 1; table 11
/// of bacteria has the same translations and other start codons).
const CODE: &[u8; 64] = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG";

/// Number of codons tokenized at a time, which bounds the memory for long genes.
const CHUNK: usize = 4096;

/// How genes that are not whole codons of A, C, G and T are handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reading {
    /// They are refused: the model was not trained on such genes. White space is ignored.
    #[default]
    Strict,
    /// They are tokenized as in the release: an invalid codon becomes `[UNK]`, and punctuation splits a codon.
    AsReleased,
}

impl Reading {
    /// Parses the value of the setting `reading`: `strict` or `as_released`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for any other name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "strict" => Ok(Self::Strict),
            "as_released" => Ok(Self::AsReleased),
            other => {
                Err(Error::input(format!("reading is \"{other}\"")).hint("expected strict or as_released"))
            }
        }
    }
}

/// A tokenized gene.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedGene {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Number of tokens truncated at the end.
    pub cut: usize,
}

/// The codon tokenizer.
#[derive(Debug, Clone)]
pub struct CodonTokenizer {
    tokenizer: Tokenizer,
    /// The ids of the codons.
    ids: Range<u32>,
    /// The codons in the order of `ids`.
    names: Vec<String>,
    stops: Vec<u32>,
    pad: u32,
    /// Special tokens before and after a gene: none, except with the vocabulary of 71 tokens.
    around: [Vec<u32>; 2],
    begin: Option<u32>,
}

impl CodonTokenizer {
    /// The tokenizer of all released models, with 69 tokens.
    pub fn built_in() -> Result<Self> {
        let special = |id: usize| {
            json!({"id": id, "content": TOKENS[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let vocabulary: Map<String, Value> =
            TOKENS.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "decoder": null, "added_tokens": (0..5).map(special).collect::<Vec<_>>(),
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN}
        });
        Self::new(Tokenizer::from_json(json.to_string().as_bytes())?)
    }

    /// Loads a tokenizer file: `codon_wordlevel_69vocab.json`, `codon_wordlevel_71vocab.json` or an equivalent
    /// `tokenizer.json`.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) with the file if it has no codon vocabulary.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(Tokenizer::from_file(path)?).map_err(|error| error.at(path))
    }

    fn new(tokenizer: Tokenizer) -> Result<Self> {
        let id = |token: &str| {
            let missing = || {
                Error::new(ErrorKind::Format, format!("not a codon vocabulary: token \"{token}\" is missing"))
            };
            tokenizer.token_id(token).ok_or_else(missing)
        };
        let mut known: Vec<(u32, String)> =
            all_codons().map(|codon| Ok((id(&codon)?, codon))).collect::<Result<_>>()?;
        known.sort();
        let ids = known[0].0..known[known.len() - 1].0 + 1;
        if ids.len() != known.len() {
            let message =
                format!("the ids of the codons, {} to {}, are not contiguous", ids.start, ids.end - 1);
            return Err(Error::unsupported(message));
        }
        // The special tokens around a gene are those around a single codon.
        let (start, whole) = (id("ATG")?, tokenizer.encode("ATG", true)?);
        let at = whole.iter().position(|id| *id == start).unwrap_or(0);
        let around = [whole[..at].to_vec(), whole.get(at + 1..).unwrap_or_default().to_vec()];
        id(UNKNOWN)?;
        Ok(Self {
            stops: ["TAA", "TAG", "TGA"].into_iter().map(id).collect::<Result<_>>()?,
            pad: id(PAD)?,
            begin: tokenizer.token_id(BEGIN),
            names: known.into_iter().map(|(_, codon)| codon).collect(),
            ids,
            around,
            tokenizer,
        })
    }

    /// Vocabulary size, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// The ids of the codons; all others are special tokens.
    pub fn ids(&self) -> Range<u32> {
        self.ids.clone()
    }

    /// The ids of the three stop codons.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// The id of the padding token.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Tokenizes `gene`, with the special tokens of the release, truncated to `longest` tokens.
    ///
    /// Codons are counted from the first base: the reading frame is up to the caller. Lower case equals upper
    /// case.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for an empty gene, and for one that `reading` refuses, with the position of the
    /// invalid base, counted from 1 without white space.
    pub fn encode(&self, gene: &str, reading: Reading, longest: Option<usize>) -> Result<EncodedGene> {
        let [before, after] = &self.around;
        let special = before.len() + after.len();
        let limit = longest.unwrap_or(usize::MAX).saturating_sub(special);
        let mut coded = self.encode_codons(gene, reading, limit)?;
        if coded.ids.is_empty() {
            let length = limit.saturating_add(special);
            return Err(Error::input(format!("a maximum of {length} tokens is too short for one codon")));
        }
        if special > 0 {
            coded.ids = [before.as_slice(), &coded.ids, after].concat();
        }
        Ok(coded)
    }

    /// Tokenizes the beginning of a gene for generation, without special tokens after it.
    ///
    /// # Errors
    /// Same as [`encode`](CodonTokenizer::encode).
    pub fn encode_prompt(&self, gene: &str, reading: Reading) -> Result<Vec<u32>> {
        let gene = self.encode_codons(gene, reading, usize::MAX)?.ids;
        Ok(self.begin.into_iter().chain(gene).collect())
    }

    /// Tokenizes `gene` without special tokens, truncated to `limit` tokens.
    fn encode_codons(&self, gene: &str, reading: Reading, limit: usize) -> Result<EncodedGene> {
        let gene: Cow<str> = match reading {
            Reading::Strict => validate(gene)?,
            Reading::AsReleased => gene.into(),
        };
        let mut coded = EncodedGene::default();
        let mut rest = gene.chars();
        loop {
            let codons = next_codons(&mut rest, CHUNK);
            if codons.is_empty() {
                break;
            }
            let ids = self.tokenizer.encode(&codons, false)?;
            let kept = ids.len().min(limit - coded.ids.len());
            coded.ids.extend_from_slice(&ids[..kept]);
            coded.cut += ids.len() - kept;
        }
        match coded.ids.len() + coded.cut {
            0 => Err(Error::input("the gene is empty")),
            _ => Ok(coded),
        }
    }

    /// The codon with this id; `None` for a special token.
    pub fn codon(&self, id: u32) -> Option<&str> {
        let at = id.checked_sub(self.ids.start)?;
        self.names.get(at as usize).map(String::as_str)
    }

    /// Concatenates the codons of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> String {
        ids.iter().filter_map(|id| self.codon(*id)).collect()
    }
}

/// All codons, in the order of the genetic code table.
fn all_codons() -> impl Iterator<Item = String> {
    let base = |shift: usize, codon: usize| char::from(BASES[codon >> shift & 3]);
    (0..64).map(move |codon| [base(4, codon), base(2, codon), base(0, codon)].iter().collect())
}

/// The next `count` groups of three characters, in upper case, separated by spaces.
fn next_codons(gene: &mut std::str::Chars, count: usize) -> String {
    let mut codons = String::new();
    for (i, base) in gene.take(3 * count).enumerate() {
        if i > 0 && i % 3 == 0 {
            codons.push(' ');
        }
        codons.extend(base.to_uppercase());
    }
    codons
}

/// Checks that `gene` consists of whole codons of A, C, G and T, and returns it without white space.
///
/// # Errors
/// [`Input`](ErrorKind::Input) with the first invalid character and its position, counted from 1; or if the number of
/// bases is not a multiple of 3.
pub fn validate(gene: &str) -> Result<Cow<'_, str>> {
    let gene: Cow<str> = match gene.contains(char::is_whitespace) {
        true => gene.split_whitespace().collect::<String>().into(),
        false => gene.into(),
    };
    if gene.is_empty() {
        return Err(Error::input("the gene is empty").hint("it needs at least one codon"));
    }
    if let Some((at, odd)) = gene.chars().enumerate().find(|(_, base)| !"ACGTacgt".contains(*base)) {
        return Err(invalid_base(odd, at + 1));
    }
    let bases = gene.len();
    match bases % 3 {
        0 => Ok(gene),
        over => {
            let error = Error::input(format!("{bases} bases are not a multiple of 3: {over} left over"));
            Err(or_as_released(error.hint("trim the gene to whole codons, in the correct reading frame")))
        }
    }
}

/// Adds to `error` how invalid codons are accepted.
fn or_as_released(error: Error) -> Error {
    let advice = "or map invalid codons to [UNK], as the release does";
    error.set(advice, "LoadOptions::settings", "reading=as_released")
}

fn invalid_base(odd: char, at: usize) -> Error {
    let error = Error::input(format!("\"{}\" at base {at}", odd.escape_debug()));
    let error = match odd.to_ascii_uppercase() {
        'U' => error.hint("the model expects DNA: write T instead of U"),
        'N' | 'R' | 'Y' | 'S' | 'W' | 'K' | 'M' | 'B' | 'D' | 'H' | 'V' => {
            error.hint("it is an ambiguity code; only A, C, G and T are supported")
        }
        '-' | '.' => error.hint("it is an alignment gap: remove gaps"),
        _ => error.hint("expected A, C, G or T"),
    };
    or_as_released(error)
}

/// Translates `gene` to a protein in one-letter codes, with `*` for a stop codon and `X` for a codon with an unknown
/// base.
///
/// By the standard genetic code (NCBI's tables 1 and 11). Start codons are translated like any other: GTG to V and TTG
/// to L, although a cell begins the protein with M. An incomplete codon at the end is ignored. U equals T.
///
/// ```
/// assert_eq!(fauna_text::genslm::codons::translate("ATGGCNTGGTAAC"), "MXW*");
/// ```
pub fn translate(gene: &str) -> String {
    let digit = |base: char| match base.to_ascii_uppercase() {
        'T' | 'U' => Some(0),
        'C' => Some(1),
        'A' => Some(2),
        'G' => Some(3),
        _ => None,
    };
    let bases: Vec<Option<usize>> = gene.chars().filter(|base| !base.is_whitespace()).map(digit).collect();
    let amino = |codon: &[Option<usize>; 3]| match codon {
        [Some(first), Some(second), Some(third)] => char::from(CODE[16 * first + 4 * second + third]),
        _ => 'X',
    };
    bases.as_chunks().0.iter().map(amino).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_vocabulary_is_that_of_the_release() {
        let codons = CodonTokenizer::built_in().unwrap();
        assert_eq!((codons.ids(), codons.vocab_size(), codons.pad()), (5..69, 69, 3));
        assert_eq!(codons.stops(), [65, 68, 67]);
        for (id, codon) in [(5, "GGC"), (10, "ATG"), (66, "CGA"), (68, "TAG")] {
            assert_eq!(codons.codon(id), Some(codon));
        }
        assert_eq!((codons.codon(4), codons.codon(69)), (None, None));
    }

    #[test]
    fn as_released_tokenizes_like_the_release() {
        let codons = CodonTokenizer::built_in().unwrap();
        let encode = |gene: &str| codons.encode(gene, Reading::AsReleased, None).unwrap().ids;
        assert_eq!(encode("atgCAT"), [10, 61]);
        assert_eq!(encode("ATGCA"), [10, 0], "a codon of two bases");
        assert_eq!(encode("ATGNNNUAA"), [10, 0, 0]);
        assert_eq!(encode("---A-GA--"), [0, 0, 0, 0, 0, 0], "punctuation splits");
        assert_eq!(encode("A TGTG"), [0, 0, 11], "white space counts as a base");
        assert_eq!(encode("éßx"), [0], "three characters, not bytes");
        assert_eq!(encode("[PAD]ATG"), [0; 6], "special tokens are not parsed");
    }

    #[test]
    fn truncated_tokens_are_counted() {
        let codons = CodonTokenizer::built_in().unwrap();
        let gene = "ATGCAT".repeat(3 * CHUNK / 2 + 1);
        let cut = codons.encode(&gene, Reading::Strict, Some(CHUNK + 1)).unwrap();
        assert_eq!((cut.ids.len(), cut.cut), (CHUNK + 1, 2 * CHUNK + 1));
        assert_eq!(cut.ids[CHUNK - 1..], [61, 10], "across chunks");
        assert!(codons.encode("ATG", Reading::Strict, Some(0)).is_err());
    }

    #[test]
    fn invalid_genes_are_refused_with_the_position() {
        for (gene, expected) in [
            ("", "the gene is empty"),
            (" \n", "the gene is empty"),
            ("ATG\nXTA", "\"X\" at base 4"),
            ("AUG", "write T instead of U"),
            ("ATGNNN", "ambiguity code"),
            ("AT-", "remove gaps"),
            ("ATGé", "\"é\" at base 4"),
            ("ATG\u{0}TG", "\"\\0\" at base 4"),
            ("ATGA", "4 bases are not a multiple of 3: 1 left over"),
        ] {
            let error = validate(gene).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.to_string().contains(expected), "{gene:?}: {error}");
        }
        assert_eq!(validate(" at g\r\n").unwrap(), "atg");
        assert!(CodonTokenizer::built_in().unwrap().encode("", Reading::AsReleased, None).is_err());
    }

    #[test]
    fn translation_uses_the_standard_genetic_code() {
        let protein = |codons: &str| translate(codons);
        assert_eq!(protein("TTTTTATCATATTGTTGGCTACCACATCAACGAATAATGACAAATAAAAGTAGA"), "FLSYCWLPHQRIMTNKSR");
        assert_eq!(protein("GTAGCAGATGAAGGATAATAGTGA"), "VADEG***");
        assert_eq!(protein("aug\nuaa"), "M*");
        assert_eq!(all_codons().collect::<std::collections::BTreeSet<_>>().len(), 64);
        let stops = all_codons().filter(|codon| translate(codon) == "*").collect::<Vec<_>>();
        assert_eq!(stops, ["TAA", "TAG", "TGA"]);
    }
}
