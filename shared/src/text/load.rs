//! Loading the tokenizer of a model folder or of a single file.

use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::folder::Folder;
use super::parts::{Defaults, byte_level, byte_level_part, check_merges, merge_pairs, part};
use super::vocab_txt::{self, BERT_TOKENS};
use super::{Tokenizer, guard, misfit, sentencepiece};
use crate::{Error, ErrorKind, Result, json, misnamed};

/// File names of SentencePiece models.
const SENTENCEPIECE: [&str; 3] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];

impl Tokenizer {
    /// Loads the tokenizer of a model folder.
    ///
    /// Uses the first that exists: `tokenizer.json`; `vocab.txt` (BERT); `vocab.json` with `merges.txt` (GPT-1, GPT-2
    /// and its relatives); a SentencePiece model (`tokenizer.model`, `spiece.model`). `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json` are read as well
    /// if they exist.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the folder has no tokenizer; [`ErrorKind::Format`] with the file if one is damaged.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = Folder::open(folder.as_ref())?;
        if let Some(path) = folder.file("tokenizer.json") {
            // `add_bos_token` and `add_eos_token` have no effect: `tokenizer.json` has its own post-processor.
            let mut tokenizer = from_json(&path)?;
            let size = folder.add_listed(&mut tokenizer)?;
            return Ok(folder.finish(tokenizer, &[])?.without_roles_from(size).of(&path));
        }
        if let Some(path) = folder.file("vocab.txt") {
            let tokenizer = vocab_txt::read(&path, &folder)?;
            return Ok(folder.finish(tokenizer, &BERT_TOKENS)?.of(&path));
        }
        if let (Some(vocab), Some(merges)) = (folder.file("vocab.json"), folder.file("merges.txt")) {
            let (mut tokenizer, defaults) = byte_pairs(&vocab, &merges, &folder)?;
            folder.add_begin_and_end(&mut tokenizer, None)?;
            return Ok(folder.finish(tokenizer, defaults)?.of(&vocab));
        }
        if let Some(path) = SENTENCEPIECE.iter().find_map(|name| folder.file(name)) {
            let bytes = read(&path)?;
            let legacy = folder.tokenizer["legacy"].as_bool().unwrap_or(true);
            let extra = folder.tokenizer["extra_ids"].as_u64().map(|n| n.min(10_000) as usize);
            let (mut tokenizer, defaults, add) =
                sentencepiece::read(&bytes, legacy, extra).map_err(|e| e.at(&path))?;
            folder.add_tokens(&mut tokenizer, defaults)?;
            folder.add_begin_and_end(&mut tokenizer, Some((add, defaults)))?;
            return Ok(folder.finish(tokenizer, defaults)?.of(&path));
        }
        Err(Error::new(ErrorKind::NotFound, "no tokenizer in this folder").at(&folder.root).hint(format!(
            "expected tokenizer.json, vocab.txt, vocab.json with merges.txt, or one of {}",
            SENTENCEPIECE.join(", ")
        )))
    }

    /// Loads a tokenizer from a single file: JSON in the format of `tokenizer.json` under any name, a `.txt` vocabulary
    /// (BERT), or a SentencePiece `.model`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the file if it is damaged.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let alone = Folder::alone(path);
        let tokenizer = match path.extension().and_then(|e| e.to_str()) {
            Some("txt") => alone.finish(vocab_txt::read(path, &alone)?, &BERT_TOKENS),
            Some("model") => {
                let (mut tokenizer, defaults, add) =
                    sentencepiece::read(&read(path)?, true, None).map_err(|e| e.at(path))?;
                alone.add_begin_and_end(&mut tokenizer, Some((add, defaults)))?;
                alone.finish(tokenizer, defaults)
            }
            _ => alone.finish(from_json(path)?, &[]),
        };
        Ok(tokenizer?.of(path))
    }

    /// Parses the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if it is not a valid tokenizer.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        let inner = checked(text)?;
        Folder::default().finish(inner, &[])
    }
}

fn from_json(path: &Path) -> Result<tokenizers::Tokenizer> {
    checked(&read(path)?).map_err(|e| e.at(path))
}

fn checked(text: &[u8]) -> Result<tokenizers::Tokenizer> {
    let text = json::strict(text);
    guard::check_json(text.as_ref())?;
    guard::caught("not a tokenizer", || tokenizers::Tokenizer::from_bytes(text.as_ref()))
}

const GPT1_TOKENS: [(&str, &str); 1] = [("unk_token", "<unk>")];
const GPT2_TOKENS: [(&str, &str); 3] =
    [("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")];

/// Begin and end tokens of CLIP.
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const CLIP_TOKENS: [(&str, &str); 4] =
    [("bos_token", BEGIN), ("eos_token", END), ("unk_token", END), ("pad_token", END)];

/// CLIP's tokenizer: lowercased byte-level BPE with the begin and end tokens around each text.
fn clip(vocabulary: BPE, begin: u32, end: u32) -> Result<tokenizers::Tokenizer> {
    let words =
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let split = json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": true});
    let mut tokenizer = tokenizers::Tokenizer::new(vocabulary);
    tokenizer
        .with_normalizer(Some(part::<NormalizerWrapper>(json!({"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]}))?))
        .map_err(misfit)?
        .with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(json!({"type": "Sequence", "pretokenizers": [
            split, byte_level_part(false, true),
        ]}))?))
        .with_decoder(Some(part::<DecoderWrapper>(json!({"type": "Sequence", "decoders": [
            byte_level_part(false, true),
            {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
            {"type": "Strip", "content": " ", "start": 0, "stop": 1},
        ]}))?))
        .with_post_processor(Some(part::<PostProcessorWrapper>(json!({
            "type": "RobertaProcessing", "sep": [END, end], "cls": [BEGIN, begin], "trim_offsets": false,
            "add_prefix_space": false,
        }))?));
    Ok(tokenizer)
}

/// Byte-pair encoding from `vocab.json` and `merges.txt`: a vocabulary with the end-of-word suffix `</w>` is CLIP's if
/// it has CLIP's special tokens, else GPT-1's; a vocabulary without it is GPT-2's.
fn byte_pairs(vocab: &Path, merges: &Path, folder: &Folder) -> Result<(tokenizers::Tokenizer, Defaults)> {
    let words: Vocab = json::read(vocab).and_then(json::typed).map_err(|e| e.at(vocab))?;
    let pairs = merge_pairs(misnamed::read_text(merges)?.lines()).map_err(|e| e.at(merges))?;
    let has_word_suffix = words.keys().any(|token| token.ends_with("</w>"));
    let (begin, end) = (words.get(BEGIN).copied(), words.get(END).copied());
    check_merges(&words, &pairs).map_err(|e| e.at(merges))?;
    let model = BPE::builder().vocab_and_merges(words, pairs);
    let build = |model: tokenizers::models::bpe::BpeBuilder| {
        guard::caught("invalid vocabulary or merges", || model.build()).map_err(|e| e.at(merges))
    };
    let (tokenizer, defaults): (_, Defaults) =
        if let (true, Some(begin), Some(end)) = (has_word_suffix, begin, end) {
            (
                clip(build(model.unk_token(END.into()).end_of_word_suffix("</w>".into()))?, begin, end)?,
                &CLIP_TOKENS,
            )
        } else if has_word_suffix {
            let unk = folder.token("unk_token", &GPT1_TOKENS).unwrap_or_default();
            let mut tokenizer =
                tokenizers::Tokenizer::new(build(model.unk_token(unk).end_of_word_suffix("</w>".into()))?);
            tokenizer
                .with_normalizer(Some(part::<NormalizerWrapper>(json!({
                    "type": "BertNormalizer",
                    "clean_text": true,
                    "handle_chinese_chars": true,
                    "strip_accents": null,
                    "lowercase": true,
                }))?))
                .map_err(misfit)?
                .with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(json!({"type": "BertPreTokenizer"}))?))
                .with_decoder(Some(part::<DecoderWrapper>(json!({"type": "BPEDecoder", "suffix": "</w>"}))?));
            (tokenizer, &GPT1_TOKENS)
        } else {
            let prefix = folder.tokenizer["add_prefix_space"].as_bool().unwrap_or(false);
            (byte_level(build(model)?, json!([byte_level_part(prefix, true)]))?, &GPT2_TOKENS)
        };
    let mut tokenizer = tokenizer;
    folder.add_tokens(&mut tokenizer, defaults)?;
    Ok((tokenizer, defaults))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    misnamed::refuse_text(path, &bytes)?;
    Ok(bytes)
}
