//! Codons as tokens, as the release cuts and numbers them; and the standard genetic code.
//!
//! ```
//! use fauna_text::genslm::codons::{Codons, Reading, translate};
//! let codons = Codons::built_in()?;
//! let gene = codons.encode("atgaaagtaTAA", Reading::Strict, None)?;
//! assert_eq!(gene.ids, [10, 16, 31, 65]);
//! assert_eq!(codons.decode(&gene.ids), "ATGAAAGTATAA");
//! assert_eq!(translate("ATGAAAGTATAA"), "MKV*");
//!
//! let odd = codons.encode("ATGNNAA-G", Reading::Strict, None).unwrap_err();
//! assert!(odd.message().starts_with("\"N\" at base 4"));
//! // [UNK] for the codon with an N; the gap splits the last one in three.
//! assert_eq!(codons.encode("ATGNNAA-G", Reading::AsReleased, None)?.ids, [10, 0, 0, 0, 0]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use fauna_shared::text::Tokenizer;
use fauna_shared::{Error, ErrorKind, Result};
use serde_json::{Map, Value, json};

/// All tokens by id: five special ones, then the codons in the order of the release.
const TOKENS: [&str; 69] = [
    "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", //
    "GGC", "GCC", "ATC", "GAC", "GAA", "ATG", "GTG", "CTG", "GTC", "GCG", "GAT", "AAA", "GGT", "AAG", "GAG",
    "ACC", "AAC", "GTT", "ATT", "GCA", "CTC", "CGC", "GCT", "CAG", "CCG", "TTC", "GTA", "TCG", "GGA", "AAT",
    "TAC", "CTT", "TTG", "ACG", "TCC", "GGG", "AGC", "CCC", "ACA", "ACT", "TCT", "TTA", "CGT", "TAT", "CAA",
    "CGG", "TTT", "CAC", "CCT", "CCA", "TGG", "ATA", "TCA", "TGC", "AGT", "AGA", "CAT", "TGT", "CTA", "AGG",
    "TAA", "CGA", "TGA", "TAG",
];

/// How many tokens the built-in table has.
pub const VOCABULARY: usize = TOKENS.len();

const UNKNOWN: &str = "[UNK]";
const PAD: &str = "[PAD]";
/// Only the table of 71 tokens has it.
const BEGIN: &str = "[BOS]";

/// The bases in the order in which tables of the genetic code name them.
const BASES: [u8; 4] = *b"TCAG";

/// The standard genetic code by first, second and third base, each in the order of [`BASES`] (NCBI's table 1; table 11
/// of bacteria translates alike and differs in what may begin a gene).
const CODE: &[u8; 64] = b"FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG";

/// Codons tokenised together; a long gene takes no more memory than this at once.
const TOGETHER: usize = 4096;

/// What becomes of a gene that is not whole codons of A, C, G and T.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reading {
    /// It is refused: the model never saw such a gene. White space is left out.
    #[default]
    Strict,
    /// It is read as the release reads anything: what is no codon becomes `[UNK]`, and punctuation splits a codon.
    AsReleased,
}

impl Reading {
    /// By the name a user gives: `strict`, `as_released`.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for any other name.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "strict" => Ok(Self::Strict),
            "as_released" => Ok(Self::AsReleased),
            other => {
                Err(Error::input(format!("reading is \"{other}\"")).hint("wanted strict or as_released"))
            }
        }
    }
}

/// A gene as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// How many tokens did not fit and were left out, at the end.
    pub cut: usize,
}

/// The codons a model knows, by their ids.
#[derive(Debug, Clone)]
pub struct Codons {
    tokenizer: Tokenizer,
    /// The ids of all codons.
    ids: Range<u32>,
    /// The codons, from the first of `ids` on.
    names: Vec<String>,
    stops: Vec<u32>,
    pad: u32,
    /// What the release puts before and after a gene: nothing, save with the table of 71 tokens.
    around: [Vec<u32>; 2],
    begin: Option<u32>,
}

impl Codons {
    /// The table of 69 tokens of all released models.
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

    /// The table in a tokenizer file: `codon_wordlevel_69vocab.json`, `codon_wordlevel_71vocab.json` or a
    /// `tokenizer.json` that holds the same.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) with the file if it is no table of codons.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(Tokenizer::from_file(path)?).map_err(|error| error.at(path))
    }

    fn new(tokenizer: Tokenizer) -> Result<Self> {
        let id = |token: &str| {
            let missing =
                || Error::new(ErrorKind::Format, format!("no token \"{token}\": no table of codons"));
            tokenizer.token_id(token).ok_or_else(missing)
        };
        let mut known: Vec<(u32, String)> =
            all_codons().map(|codon| Ok((id(&codon)?, codon))).collect::<Result<_>>()?;
        known.sort();
        let ids = known[0].0..known[known.len() - 1].0 + 1;
        if ids.len() != known.len() {
            let message = format!("the codons' ids, {} to {}, are no unbroken range", ids.start, ids.end - 1);
            return Err(Error::unsupported(message));
        }
        // What stands around a gene, one codon tells.
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

    /// How many tokens there are, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    /// The ids of the codons; all others are special.
    pub fn ids(&self) -> Range<u32> {
        self.ids.clone()
    }

    /// The ids of the three codons that end a gene.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// What fills up shorter rows.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// `gene` as tokens, with what the release puts around it, at most `longest` of them.
    ///
    /// From the first base on, three bases are a codon: the reading frame is the caller's. Lower case is read as upper.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for an empty gene, and for one that `reading` refuses, with the place of what is
    /// wrong, counted from 1 and without white space.
    pub fn encode(&self, gene: &str, reading: Reading, longest: Option<usize>) -> Result<Coded> {
        let [before, after] = &self.around;
        let special = before.len() + after.len();
        let room = longest.unwrap_or(usize::MAX).saturating_sub(special);
        let mut coded = self.plain(gene, reading, room)?;
        if coded.ids.is_empty() {
            let message = format!("a context of {} leaves no room for a codon", room.saturating_add(special));
            return Err(Error::input(message));
        }
        if special > 0 {
            coded.ids = [before.as_slice(), &coded.ids, after].concat();
        }
        Ok(coded)
    }

    /// The tokens of a gene that is to be continued: nothing stands after it.
    ///
    /// # Errors
    /// As [`encode`](Codons::encode).
    pub fn encode_prompt(&self, gene: &str, reading: Reading) -> Result<Vec<u32>> {
        let gene = self.plain(gene, reading, usize::MAX)?.ids;
        Ok(self.begin.into_iter().chain(gene).collect())
    }

    /// The first `room` tokens of `gene`, and how many more there are.
    fn plain(&self, gene: &str, reading: Reading, room: usize) -> Result<Coded> {
        let gene: Cow<str> = match reading {
            Reading::Strict => checked(gene)?,
            Reading::AsReleased => gene.into(),
        };
        let mut coded = Coded::default();
        let mut rest = gene.chars();
        loop {
            let words = spaced(&mut rest, TOGETHER);
            if words.is_empty() {
                break;
            }
            let ids = self.tokenizer.encode(&words, false)?;
            let kept = ids.len().min(room - coded.ids.len());
            coded.ids.extend_from_slice(&ids[..kept]);
            coded.cut += ids.len() - kept;
        }
        match coded.ids.len() + coded.cut {
            0 => Err(Error::input("the gene is empty")),
            _ => Ok(coded),
        }
    }

    /// The codon with this id; none for a special token.
    pub fn codon(&self, id: u32) -> Option<&str> {
        let at = id.checked_sub(self.ids.start)?;
        self.names.get(at as usize).map(String::as_str)
    }

    /// The codons of `ids` one after the other, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> String {
        ids.iter().filter_map(|id| self.codon(*id)).collect()
    }
}

/// Every codon, in the order of the genetic code.
fn all_codons() -> impl Iterator<Item = String> {
    let base = |shift: usize, codon: usize| char::from(BASES[codon >> shift & 3]);
    (0..64).map(move |codon| [base(4, codon), base(2, codon), base(0, codon)].iter().collect())
}

/// The next `count` pieces of three characters, in upper case, with spaces between.
fn spaced(gene: &mut std::str::Chars, count: usize) -> String {
    let mut words = String::new();
    for (i, base) in gene.take(3 * count).enumerate() {
        if i > 0 && i % 3 == 0 {
            words.push(' ');
        }
        words.extend(base.to_uppercase());
    }
    words
}

/// `gene` without white space, if it is whole codons of A, C, G and T.
///
/// # Errors
/// [`Input`](ErrorKind::Input) that names the first character that is no base and its place, counted from 1.
pub fn checked(gene: &str) -> Result<Cow<'_, str>> {
    let gene: Cow<str> = match gene.contains(char::is_whitespace) {
        true => gene.split_whitespace().collect::<String>().into(),
        false => gene.into(),
    };
    if gene.is_empty() {
        return Err(Error::input("the gene is empty").hint("it needs at least one codon"));
    }
    if let Some((at, odd)) = gene.chars().enumerate().find(|(_, base)| !"ACGTacgt".contains(*base)) {
        return Err(no_base(odd, at + 1));
    }
    let bases = gene.len();
    match bases % 3 {
        0 => Ok(gene),
        over => Err(Error::input(format!("{bases} bases are no whole codons: {over} left over"))
            .hint("cut the gene so that it begins and ends with a whole codon; the reading frame is yours to know")
            .hint(AS_RELEASED)),
    }
}

const AS_RELEASED: &str = "or read what is no codon as [UNK], as the release does: --set reading=as_released";

fn no_base(odd: char, at: usize) -> Error {
    let error = Error::input(format!("\"{}\" at base {at}", odd.escape_debug()));
    let error = match odd.to_ascii_uppercase() {
        'U' => error.hint("the model knows DNA: write T where RNA has U"),
        'N' | 'R' | 'Y' | 'S' | 'W' | 'K' | 'M' | 'B' | 'D' | 'H' | 'V' => {
            error.hint("it stands for one of several bases, and the model knows A, C, G and T alone")
        }
        '-' | '.' => error.hint("a gap of an alignment: take gaps out"),
        _ => error.hint("a gene is written in A, C, G and T"),
    };
    error.hint(AS_RELEASED)
}

/// The protein of `gene`, one letter an amino acid, `*` where it stops, `X` for a codon with a base that is not known.
///
/// By the standard genetic code (NCBI's tables 1 and 11), every codon alike: a gene that begins with GTG or TTG begins
/// with V or L here, though the cell begins it with M. Bases left over at the end say nothing. U is read as T.
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
    fn the_table_is_the_releases() {
        let codons = Codons::built_in().unwrap();
        assert_eq!((codons.ids(), codons.vocab_size(), codons.pad()), (5..69, 69, 3));
        assert_eq!(codons.stops(), [65, 68, 67]);
        for (id, codon) in [(5, "GGC"), (10, "ATG"), (66, "CGA"), (68, "TAG")] {
            assert_eq!(codons.codon(id), Some(codon));
        }
        assert_eq!((codons.codon(4), codons.codon(69)), (None, None));
    }

    #[test]
    fn pieces_are_cut_and_split_as_the_release_does() {
        let codons = Codons::built_in().unwrap();
        let read = |gene: &str| codons.encode(gene, Reading::AsReleased, None).unwrap().ids;
        assert_eq!(read("atgCAT"), [10, 61]);
        assert_eq!(read("ATGCA"), [10, 0], "a piece of two bases");
        assert_eq!(read("ATGNNNUAA"), [10, 0, 0]);
        assert_eq!(read("---A-GA--"), [0, 0, 0, 0, 0, 0], "punctuation splits");
        assert_eq!(read("A TGTG"), [0, 0, 11], "white space counts as a base");
        assert_eq!(read("éßx"), [0], "three characters, not bytes");
        assert_eq!(read("[PAD]ATG"), [0; 6], "a special token is no three bases");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let codons = Codons::built_in().unwrap();
        let gene = "ATGCAT".repeat(3 * TOGETHER / 2 + 1);
        let cut = codons.encode(&gene, Reading::Strict, Some(TOGETHER + 1)).unwrap();
        assert_eq!((cut.ids.len(), cut.cut), (TOGETHER + 1, 2 * TOGETHER + 1));
        assert_eq!(cut.ids[TOGETHER - 1..], [61, 10], "across pieces that are tokenised together");
        assert!(codons.encode("ATG", Reading::Strict, Some(0)).is_err());
    }

    #[test]
    fn what_is_no_gene_is_refused_with_its_place() {
        for (gene, told) in [
            ("", "the gene is empty"),
            (" \n", "the gene is empty"),
            ("ATG\nXTA", "\"X\" at base 4"),
            ("AUG", "write T where RNA has U"),
            ("ATGNNN", "one of several bases"),
            ("AT-", "take gaps out"),
            ("ATGé", "\"é\" at base 4"),
            ("ATG\u{0}TG", "\"\\0\" at base 4"),
            ("ATGA", "4 bases are no whole codons: 1 left over"),
        ] {
            let error = checked(gene).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.to_string().contains(told), "{gene:?}: {error}");
        }
        assert_eq!(checked(" at g\r\n").unwrap(), "atg");
        assert!(Codons::built_in().unwrap().encode("", Reading::AsReleased, None).is_err());
    }

    #[test]
    fn the_code_is_the_standard_one() {
        let protein = |codons: &str| translate(codons);
        assert_eq!(protein("TTTTTATCATATTGTTGGCTACCACATCAACGAATAATGACAAATAAAAGTAGA"), "FLSYCWLPHQRIMTNKSR");
        assert_eq!(protein("GTAGCAGATGAAGGATAATAGTGA"), "VADEG***");
        assert_eq!(protein("aug\nuaa"), "M*");
        assert_eq!(all_codons().collect::<std::collections::BTreeSet<_>>().len(), 64);
        let stops = all_codons().filter(|codon| translate(codon) == "*").collect::<Vec<_>>();
        assert_eq!(stops, ["TAA", "TAG", "TGA"]);
    }
}
