//! The tokenizer in the metadata of a GGUF file.

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};

use super::parts::{begin_and_end, byte_level, byte_level_part, check_merges, merge_pairs};
use super::sentencepiece::{Kind, Piece, Prefix, add_tokens, byte_pairs};
use super::{SpecialTokens, Tokenizer, guard};
use crate::checkpoint::Metadata;
use crate::error::nearest;
use crate::{Error, ErrorKind, Result};

/// The tokenizer metadata of a GGUF file, keys `tokenizer.ggml.*`. Missing keys have their default.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `model`: `llama` (SentencePiece) or `gpt2` (byte-level BPE).
    pub model: String,
    /// `pre`: the pre-tokenizer of `gpt2`.
    pub pre: Option<String>,
    /// `tokens`: the vocabulary, ordered by id.
    pub tokens: Vec<String>,
    /// `scores`, one per token; required for `llama`.
    pub scores: Vec<f32>,
    /// `token_type`, one per token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<u32>,
    /// `merges`, highest priority first; required for `gpt2`.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`, then `eot_token_id` and `eom_token_id` if present.
    pub eos: Vec<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`; the default is that of llama.cpp, true for `llama` and Llama 3.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; the default is true.
    pub add_space_prefix: Option<bool>,
}

impl GgufVocabulary {
    /// Reads the tokenizer metadata of a GGUF file; `None` if there is none.
    pub fn from_metadata(metadata: &Metadata) -> Option<Self> {
        let get = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}"));
        let id = |key: &str| get(key)?.as_usize()?.try_into().ok();
        let texts = |key: &str| get(key).and_then(|v| v.as_texts()).unwrap_or_default().to_vec();
        let flag = |key: &str| get(key).and_then(|v| v.as_bool());
        let types = get("token_type").and_then(|v| v.as_ints()).unwrap_or_default();
        Some(Self {
            model: get("model")?.as_str()?.to_string(),
            pre: get("pre").and_then(|v| v.as_str()).map(str::to_string),
            tokens: texts("tokens"),
            scores: get("scores").and_then(|v| v.as_floats()).unwrap_or_default().to_vec(),
            // A value out of range becomes 0, which is not a valid type.
            types: types.into_iter().map(|kind| kind.try_into().unwrap_or(0)).collect(),
            merges: texts("merges"),
            bos: id("bos_token_id"),
            eos: ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().filter_map(id).collect(),
            unk: id("unknown_token_id"),
            pad: id("padding_token_id"),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            add_space_prefix: flag("add_space_prefix"),
        })
    }
}

impl Tokenizer {
    /// Builds the tokenizer from the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if `model` or `pre` is unknown, with the known ones; [`ErrorKind::Format`] if the
    /// lists differ in length.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
        let pieces = pieces(vocabulary)?;
        let (mut inner, add_bos) = match vocabulary.model.as_str() {
            "llama" => {
                let prefix =
                    if vocabulary.add_space_prefix.unwrap_or(true) { Prefix::Always } else { Prefix::Never };
                (byte_pairs(&pieces, prefix)?, true)
            }
            "gpt2" => gpt2(vocabulary, &pieces)?,
            other => {
                return Err(Error::unsupported(format!(
                    "tokenizer.ggml.model is {other:?}; known models are llama and gpt2"
                )));
            }
        };
        let named = |id: Option<u32>, add: bool| {
            id.filter(|_| add).and_then(|id| Some((pieces.get(id as usize)?.text.clone(), id)))
        };
        let bos = named(vocabulary.bos, vocabulary.add_bos.unwrap_or(add_bos));
        let eos = named(vocabulary.eos.first().copied(), vocabulary.add_eos.unwrap_or(false));
        if bos.is_some() || eos.is_some() {
            inner.with_post_processor(Some(begin_and_end(bos, eos)?));
        }
        let mut tokenizer = Tokenizer::new(inner)?;
        let roles = [
            ("bos_token", vocabulary.bos),
            ("eos_token", vocabulary.eos.first().copied()),
            ("unk_token", vocabulary.unk),
            ("pad_token", vocabulary.pad),
        ];
        tokenizer.roles =
            roles.into_iter().filter_map(|(role, id)| Some((role, named(id, true)?.0))).collect();
        let known = |id: &u32| (*id as usize) < pieces.len();
        tokenizer.special = SpecialTokens {
            bos: vocabulary.bos.filter(known),
            eos: vocabulary.eos.iter().copied().filter(known).collect(),
            unk: vocabulary.unk.filter(known),
            pad: vocabulary.pad.filter(known),
            ..SpecialTokens::default()
        };
        Ok(tokenizer)
    }
}

fn pieces(vocabulary: &GgufVocabulary) -> Result<Vec<Piece>> {
    let count = vocabulary.tokens.len();
    let fits = |name: &str, length: usize| match length == 0 || length == count {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Format,
            format!("tokenizer.ggml.{name} has {length} entries for {count} tokens"),
        )),
    };
    fits("scores", vocabulary.scores.len())?;
    fits("token_type", vocabulary.types.len())?;
    if count == 0 {
        return Err(Error::new(ErrorKind::Format, "tokenizer.ggml.tokens is empty"));
    }
    let piece = |(i, text): (usize, &String)| {
        let kind = vocabulary.types.get(i).copied().unwrap_or(1);
        let score = vocabulary.scores.get(i).copied().unwrap_or(-(i as f32));
        Ok(Piece { text: text.clone(), score, kind: Kind::from_number(kind.into())? })
    };
    vocabulary.tokens.iter().enumerate().map(piece).collect()
}

fn gpt2(vocabulary: &GgufVocabulary, pieces: &[Piece]) -> Result<(tokenizers::Tokenizer, bool)> {
    let pre = vocabulary.pre.as_deref().unwrap_or("default");
    let Some(split) = SPLITS.iter().find(|split| split.names.contains(&pre)) else {
        let known: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        let error = Error::unsupported(format!("tokenizer.ggml.pre is {pre:?}, which is not implemented"));
        let near = nearest(pre, known.iter().copied());
        let error = if near.is_empty() { error } else { error.hint(format!("nearest  {}", near.join(", "))) };
        return Err(error.hint(format!("known    {}", known.join(", "))));
    };
    let vocab: Vocab = pieces.iter().map(|p| p.text.clone()).zip(0u32..).collect();
    let merges = merge_pairs(vocabulary.merges.iter().map(String::as_str))?;
    check_merges(&vocab, &merges)?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(split.whole_words);
    let model = guard::caught("invalid vocabulary or merges", || model.build())?;
    let isolate = |regex: &&str| -> Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
    };
    let mut steps: Vec<Value> = split.regexes.iter().map(isolate).collect();
    steps.push(byte_level_part(false, false));
    let mut tokenizer = byte_level(model, Value::Array(steps))?;
    add_tokens(&mut tokenizer, pieces)?;
    Ok((tokenizer, split.add_bos))
}

/// A pre-tokenizer: each regular expression in turn isolates its matches.
struct Split {
    names: &'static [&'static str],
    regexes: &'static [&'static str],
    /// Whether a word that is in the vocabulary is one token regardless of the merges (`ignore_merges`).
    whole_words: bool,
    /// Default of `add_bos_token`.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The pre-tokenizers by the values of `tokenizer.ggml.pre`.
const SPLITS: &[Split] = &[
    Split {
        names: &["gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais"],
        regexes: &[GPT2],
        whole_words: false,
        add_bos: false,
    },
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        regexes: &[r"\p{N}", GPT2],
        whole_words: false,
        add_bos: false,
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        regexes: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: true,
        add_bos: true,
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        regexes: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: false,
        add_bos: false,
    },
    Split {
        names: &["gpt-4o", "o200k"],
        regexes: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        )],
        whole_words: false,
        add_bos: false,
    },
    Split {
        names: &["default"],
        regexes: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        whole_words: false,
        add_bos: false,
    },
];
