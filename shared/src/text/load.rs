//! Finding and reading the tokenizer of a model folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

use super::parts::{Defaults, begin_and_end, byte_level, byte_level_part, check_merges, merge_pairs, part};
use super::vocab_txt::{self, BERT_TOKENS};
use super::{SpecialTokens, Tokenizer, guard, misfit, not_added, sentencepiece};
use crate::{Error, ErrorKind, Result, json, misnamed};

/// Names that SentencePiece models have in releases.
const SENTENCEPIECE: [&str; 3] = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];

impl Tokenizer {
    /// Reads the tokenizer of a model folder.
    ///
    /// The first that is there: `tokenizer.json`; `vocab.txt` (BERT); `vocab.json` with `merges.txt` (GPT-1, GPT-2
    /// and its relatives); a SentencePiece model (`tokenizer.model`, `spiece.model`). `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `generation_config.json` and `config.json` are read beside it
    /// where they are there.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the folder has no tokenizer; [`ErrorKind::Format`] with the file if one is damaged.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = Folder::open(folder.as_ref())?;
        if let Some(path) = folder.file("tokenizer.json") {
            // `add_bos_token` and `add_eos_token` say nothing here: the file has its own post-processor.
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
            "wanted tokenizer.json, vocab.txt, vocab.json with merges.txt, or one of {}",
            SENTENCEPIECE.join(", ")
        )))
    }

    /// Reads one tokenizer file: JSON in the layout of `tokenizer.json` under any name, BERT's `vocab.txt`, or a
    /// SentencePiece `.model`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the file if it is damaged.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let alone = Folder { root: path.to_path_buf(), ..Folder::default() };
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

    /// Reads what a `tokenizer.json` holds, for families whose releases have no such file and one right tokenizer.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if it is not that.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        let inner = checked(text)?;
        Folder::default().finish(inner, &[])
    }
}

const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A model folder and the JSON files beside the tokenizer, `null` where there is none.
#[derive(Default)]
pub(super) struct Folder {
    pub(super) root: PathBuf,
    pub(super) tokenizer: Value,
    special: Value,
    added: Value,
    generation: Value,
    pub(super) model: Value,
}

impl Folder {
    fn open(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, "there is no such folder").at(root));
        }
        let json = |name: &str| match root.join(name) {
            path if path.is_file() => json::read(&path),
            _ => Ok(Value::Null),
        };
        Ok(Self {
            tokenizer: json("tokenizer_config.json")?,
            special: json("special_tokens_map.json")?,
            added: json("added_tokens.json")?,
            generation: json("generation_config.json")?,
            model: json("config.json")?,
            root: root.to_path_buf(),
        })
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.root.join(name)).filter(|path| path.is_file())
    }

    /// The token that plays `role` ("bos_token"), spelled out.
    pub(super) fn token(&self, role: &str, defaults: &[(&str, &str)]) -> Option<String> {
        let spelled = |value: &Value| match value {
            Value::String(token) => Some(token.clone()),
            Value::Object(token) => token.get("content")?.as_str().map(String::from),
            _ => None,
        };
        let default = defaults.iter().find(|(name, _)| *name == role).map(|(_, token)| token.to_string());
        // An explicit null means that there is no such token.
        if self.tokenizer.get(role).is_some_and(Value::is_null) {
            return None;
        }
        spelled(&self.tokenizer[role]).or_else(|| spelled(&self.special[role])).or(default)
    }

    /// Makes the tokens that the configuration lists whole, so that text cannot split them.
    pub(super) fn add_tokens(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        defaults: &[(&str, &str)],
    ) -> Result<()> {
        let mut added: Vec<(u32, AddedToken)> = Vec::new();
        if let Some(tokens) = self.added.as_object() {
            let ids = tokens.iter().filter_map(|(token, id)| Some((token, id.as_u64()?)));
            added.extend(ids.map(|(token, id)| (id as u32, AddedToken::from(token.as_str(), false))));
        }
        added.extend(self.decoder_tokens()?);
        added.sort_by_key(|(id, _)| *id);
        for (id, token) in added {
            let content = token.content.clone();
            tokenizer.add_tokens([token]).map_err(not_added)?;
            if tokenizer.token_to_id(&content) != Some(id) {
                return Err(Error::format(
                    &self.root,
                    format!(
                        "added token {content:?} should have id {id}, which the vocabulary does not allow"
                    ),
                ));
            }
        }
        let known = ROLES.iter().filter_map(|role| self.token(role, defaults));
        let known: Vec<AddedToken> = known
            .filter(|token| tokenizer.token_to_id(token).is_some())
            .map(|token| AddedToken::from(token, true))
            .collect();
        tokenizer.add_special_tokens(known).map_err(not_added)?;
        Ok(())
    }

    /// The tokens of `added_tokens_decoder` with their ids.
    fn decoder_tokens(&self) -> Result<Vec<(u32, AddedToken)>> {
        let mut added = Vec::new();
        if let Some(tokens) = self.tokenizer["added_tokens_decoder"].as_object() {
            for (id, token) in tokens {
                let id = id.parse().map_err(|_| {
                    Error::format(
                        self.root.join("tokenizer_config.json"),
                        format!("token id {id:?} is no number"),
                    )
                })?;
                let Some(content) = token["content"].as_str() else { continue };
                let flag = |name: &str| token[name].as_bool().unwrap_or(false);
                added.push((
                    id,
                    AddedToken::from(content, flag("special"))
                        .lstrip(flag("lstrip"))
                        .rstrip(flag("rstrip"))
                        .single_word(flag("single_word"))
                        .normalized(flag("normalized")),
                ));
            }
        }
        Ok(added)
    }

    /// Adds the tokens that the configuration lists beside a `tokenizer.json`, as transformers does: those of
    /// `added_tokens_decoder` by their ids, then special ones that the vocabulary does not hold as such. Gives the size
    /// of the vocabulary before the latter: a network need not have rows for them.
    fn add_listed(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<usize> {
        let mut listed = self.decoder_tokens()?;
        let known = tokenizer.get_added_tokens_decoder();
        listed.retain(|(_, token)| !known.values().any(|known| known == token));
        listed.sort_by_key(|(id, _)| *id);
        let tokens: Vec<AddedToken> = listed.into_iter().map(|(_, token)| token).collect();
        let mut names: Vec<String> = tokens.iter().map(|token| token.content.clone()).collect();
        names.extend(known.values().map(|token| token.content.clone()));
        tokenizer.add_tokens(tokens).map_err(not_added)?;
        let size = tokenizer.get_vocab_size(true);

        let own = self.tokenizer.as_object().into_iter().flatten();
        let own = own.filter(|(key, _)| key.ends_with("_token") && !ROLES.contains(&key.as_str()));
        // Of two lists the newer key counts.
        let keys = ["extra_special_tokens", "additional_special_tokens"];
        let listed: Vec<&Value> = match keys.map(|key| &self.tokenizer[key]) {
            [Value::Array(tokens), _] | [Value::Null, Value::Array(tokens)] => tokens.iter().collect(),
            [Value::Object(tokens), _] => tokens.values().collect(),
            _ => Vec::new(),
        };
        let spelled = |value: &Value| value.as_str().or(value["content"].as_str()).map(String::from);
        let more = ROLES.iter().filter_map(|role| self.token(role, &[]));
        let more = more.chain(own.filter_map(|(_, value)| spelled(value)));
        let mut tokens = Vec::new();
        for content in more.chain(listed.into_iter().filter_map(spelled)) {
            if !names.contains(&content) {
                tokens.push(AddedToken::from(content.as_str(), true));
                names.push(content);
            }
        }
        tokenizer.add_tokens(tokens).map_err(not_added)?;
        Ok(size)
    }

    /// Puts the begin and end tokens around a text, if the configuration or else `default` says so.
    fn add_begin_and_end(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        default: Option<([bool; 2], Defaults)>,
    ) -> Result<()> {
        let (default, names) = default.unwrap_or(([false; 2], &[]));
        let setting = |name: &str, default: bool| self.tokenizer[name].as_bool().unwrap_or(default);
        let add = [setting("add_bos_token", default[0]), setting("add_eos_token", default[1])];
        let said = self.tokenizer.get("add_bos_token").or(self.tokenizer.get("add_eos_token")).is_some();
        let has_template = matches!(tokenizer.get_post_processor(), Some(PostProcessorWrapper::Template(_)));
        if add == [false; 2] {
            if said && has_template {
                tokenizer.with_post_processor(None::<PostProcessorWrapper>);
            }
            return Ok(());
        }
        let token = |wanted: bool, role: &str| match self.token(role, names).filter(|_| wanted) {
            None => Ok(None),
            Some(token) => match tokenizer.token_to_id(&token) {
                Some(id) => Ok(Some((token, id))),
                None => Err(Error::format(&self.root, format!("{role} {token:?} is not in the vocabulary"))),
            },
        };
        let (bos, eos) = (token(add[0], "bos_token")?, token(add[1], "eos_token")?);
        tokenizer.with_post_processor(Some(begin_and_end(bos, eos)?));
        Ok(())
    }

    /// The longest input that the tokenizer's configuration names.
    fn max_length(&self) -> Result<Option<usize>> {
        let said = &self.tokenizer["model_max_length"];
        match said.as_u64().and_then(|length| usize::try_from(length).ok()) {
            _ if json::unbounded(said) => Ok(None),
            Some(length) => Ok(Some(length)),
            None => Err(Error::format(
                self.root.join("tokenizer_config.json"),
                format!("model_max_length is {said}, wanted a whole number of tokens"),
            )),
        }
    }

    /// Reads the special ids and gives the tokenizer its final form.
    fn finish(&self, mut inner: tokenizers::Tokenizer, defaults: &[(&str, &str)]) -> Result<Tokenizer> {
        if !self.tokenizer.is_null() || !defaults.is_empty() {
            let known: Vec<AddedToken> = ROLES
                .iter()
                .filter_map(|role| self.token(role, defaults))
                .filter(|token| {
                    inner
                        .token_to_id(token)
                        .is_some_and(|id| !inner.get_added_tokens_decoder().contains_key(&id))
                })
                .map(|token| AddedToken::from(token, true))
                .collect();
            inner.add_special_tokens(known).map_err(not_added)?;
        }
        let mut tokenizer = Tokenizer::new(inner)?;
        tokenizer.roles =
            ROLES.into_iter().filter_map(|role| Some((role, self.token(role, defaults)?))).collect();
        let named = |role: &str| self.token(role, defaults).and_then(|token| tokenizer.token_id(&token));
        let configured = |key: &str| [&self.generation[key], &self.model[key]].into_iter().find_map(ids);
        let first = |key: &str| configured(key).and_then(|ids| ids.first().copied());
        tokenizer.special = SpecialTokens {
            bos: named("bos_token").or_else(|| first("bos_token_id")),
            eos: configured("eos_token_id").unwrap_or_else(|| named("eos_token").into_iter().collect()),
            pad: named("pad_token").or_else(|| first("pad_token_id")),
            unk: named("unk_token"),
            cls: named("cls_token"),
            sep: named("sep_token"),
            mask: named("mask_token"),
        };
        tokenizer.max_length = self.max_length()?;
        Ok(tokenizer)
    }
}

/// A token id, or a list of them.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().map(id).collect(),
        value => id(value).map(|id| vec![id]),
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

/// What CLIP puts around a text.
const BEGIN: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
const CLIP_TOKENS: [(&str, &str); 4] =
    [("bos_token", BEGIN), ("eos_token", END), ("unk_token", END), ("pad_token", END)];

/// CLIP's tokenizer over its vocabulary: lower case, words by kinds of characters, bytes, and its two tokens around.
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

/// Byte-pair encoding from `vocab.json` and `merges.txt`: where words end in `</w>`, CLIP's if it has CLIP's tokens,
/// else GPT-1's; GPT-2's where they do not.
fn byte_pairs(vocab: &Path, merges: &Path, folder: &Folder) -> Result<(tokenizers::Tokenizer, Defaults)> {
    let words: Vocab = json::read(vocab).and_then(json::typed).map_err(|e| e.at(vocab))?;
    let pairs = merge_pairs(read_text(merges)?.lines()).map_err(|e| e.at(merges))?;
    let ends_words = words.keys().any(|token| token.ends_with("</w>"));
    let (begin, end) = (words.get(BEGIN).copied(), words.get(END).copied());
    check_merges(&words, &pairs).map_err(|e| e.at(merges))?;
    let model = BPE::builder().vocab_and_merges(words, pairs);
    let build = |model: tokenizers::models::bpe::BpeBuilder| {
        guard::caught("not a vocabulary with its merges", || model.build()).map_err(|e| e.at(merges))
    };
    let (tokenizer, defaults): (_, Defaults) =
        if let (true, Some(begin), Some(end)) = (ends_words, begin, end) {
            (
                clip(build(model.unk_token(END.into()).end_of_word_suffix("</w>".into()))?, begin, end)?,
                &CLIP_TOKENS,
            )
        } else if ends_words {
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

pub(super) fn read_text(path: &Path) -> Result<String> {
    misnamed::read_text(path)
}
