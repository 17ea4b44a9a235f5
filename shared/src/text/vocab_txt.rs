//! Tokenizers of a `vocab.txt` with one token per line: WordPiece (BERT), SMILES tokens of chemical models and amino
//! acids of protein models.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::folder::Folder;
use super::parts::part;
use super::{misfit, tokenizer_error};
use crate::{Error, Result, misnamed};

pub(super) const BERT_TOKENS: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// Tokenizer classes that are WordPiece as in BERT. Each may end in `Fast`.
const WORD_PIECE: [&str; 17] = [
    "BertTokenizer",
    "ConvBertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "DPRReaderTokenizer",
    "DistilBertTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "NezhaTokenizer",
    "PreTrainedTokenizer",
    "RealmTokenizer",
    "RetriBertTokenizer",
    "SqueezeBertTokenizer",
    "TokenizersBackend",
    "VisualBertTokenizer",
];

/// The SMILES tokenizer class of rxnfp and DeepChem.
const SMILES_CLASS: &str = "SmilesTokenizer";

/// Regular expression of the tokens of a SMILES string: bracket atoms, atoms of the organic subset, bonds, ring
/// closures, branches and reaction arrows. Schwaller et al. 2019, "Molecular Transformer". Other characters are
/// dropped.
const SMILES: &str = concat!(
    r"\%\([0-9]{3}\)|\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|",
    r"\%[0-9]{2}|[0-9]"
);

/// How a text is split before the vocabulary lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splitting {
    /// At whitespace and punctuation, then into WordPiece tokens.
    Words,
    /// Into the tokens of a SMILES string.
    Smiles,
    /// Into single letters: the residues of a protein.
    Letters,
}

impl Splitting {
    /// By the tokenizer class of the configuration, or else by the vocabulary.
    fn of(folder: &Folder, vocab: &Vocab) -> Result<Self> {
        let places = [("tokenizer_config.json", &folder.tokenizer), ("config.json", &folder.model)];
        let named =
            places.into_iter().find_map(|(file, json)| Some((file, json["tokenizer_class"].as_str()?)));
        match named {
            Some((_, SMILES_CLASS)) => Ok(Self::Smiles),
            Some((_, name)) if WORD_PIECE.contains(&name.strip_suffix("Fast").unwrap_or(name)) => {
                Ok(Self::Words)
            }
            Some((file, name)) => Err(Error::unsupported(format!(
                "tokenizer_class \"{name}\" is not implemented"
            ))
            .at(folder.root.join(file))
            .hint(
                "vocab.txt is supported for BertTokenizer and its variants; a tokenizer.json in the same folder would be used instead",
            )),
            None if is_smiles(vocab) => Ok(Self::Smiles),
            None if is_alphabet(vocab) => Ok(Self::Letters),
            None => Ok(Self::Words),
        }
    }
}

/// Whether the vocabulary is one of SMILES: chiral carbons, bonds and branches, and no `##` subwords.
fn is_smiles(vocab: &Vocab) -> bool {
    let known = ["[C@H]", "[C@@H]", "(", ")", "=", "c", "C"];
    known.iter().all(|token| vocab.contains_key(*token)) && !has_subwords(vocab)
}

/// Whether all tokens except special tokens are single capital letters, as for amino acids.
fn is_alphabet(vocab: &Vocab) -> bool {
    let mut letters = vocab.keys().filter(|token| !(token.starts_with('[') && token.ends_with(']')));
    let is_capital = |token: &String| matches!(token.as_bytes(), [b'A'..=b'Z']);
    vocab.len() > 20 && letters.all(is_capital)
}

fn has_subwords(vocab: &Vocab) -> bool {
    vocab.keys().any(|token| token.len() > 2 && token.starts_with("##"))
}

/// Loads the tokenizer of a `vocab.txt`; token ids are line numbers.
pub(super) fn read(path: &Path, folder: &Folder) -> Result<tokenizers::Tokenizer> {
    let text = misnamed::read_text(path)?;
    let vocab: Vocab = text.lines().zip(0u32..).map(|(token, id)| (token.to_string(), id)).collect();
    let splitting = Splitting::of(folder, &vocab)?;
    let token = |role: &str| folder.token(role, &BERT_TOKENS).unwrap_or_default();
    let [unk, cls, sep] = ["unk_token", "cls_token", "sep_token"].map(token);
    let id = |token: &str| {
        vocab
            .get(token)
            .copied()
            .ok_or_else(|| Error::format(path, format!("the vocabulary has no {token:?}")))
    };
    let (cls_id, sep_id) = (id(&cls)?, id(&sep)?);
    id(&unk)?;
    let setting = |name: &str, default: bool| folder.tokenizer[name].as_bool().unwrap_or(default);
    let model = WordPiece::builder().vocab(vocab).unk_token(unk).build();
    let mut tokenizer =
        tokenizers::Tokenizer::new(model.map_err(|e| tokenizer_error("invalid vocabulary", e))?);
    let lowercase = setting("do_lower_case", splitting == Splitting::Words);
    let normalizer = match splitting {
        Splitting::Words | Splitting::Letters => Some(json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": setting("tokenize_chinese_chars", true),
            "strip_accents": folder.tokenizer["strip_accents"],
            "lowercase": lowercase,
        })),
        Splitting::Smiles => lowercase.then(|| json!({"type": "Lowercase"})),
    };
    tokenizer
        .with_normalizer(normalizer.map(part::<NormalizerWrapper>).transpose()?)
        .map_err(misfit)?
        .with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(pre_tokenizer(splitting))?));
    let decoder = match splitting {
        Splitting::Smiles => json!({"type": "Fuse"}),
        _ => json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
    };
    let around = json!({"type": "BertProcessing", "sep": [sep, sep_id], "cls": [cls, cls_id]});
    tokenizer
        .with_decoder(Some(part::<DecoderWrapper>(decoder)?))
        .with_post_processor(Some(part::<PostProcessorWrapper>(around)?));
    folder.add_tokens(&mut tokenizer, &BERT_TOKENS)?;
    Ok(tokenizer)
}

fn pre_tokenizer(splitting: Splitting) -> Value {
    let words = json!({"type": "BertPreTokenizer"});
    let split = |pattern: &str, behavior: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert});
    match splitting {
        Splitting::Words => words,
        Splitting::Smiles => split(SMILES, "Removed", true),
        Splitting::Letters => {
            json!({"type": "Sequence", "pretokenizers": [words, split(".", "Isolated", false)]})
        }
    }
}
