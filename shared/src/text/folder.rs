//! The configuration files of a tokenizer in a model folder, and the special tokens they define.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::{AddedToken, PostProcessorWrapper};

use super::parts::{Defaults, begin_and_end};
use super::{SpecialTokens, Tokenizer, not_added};
use crate::{Error, ErrorKind, Result, json};

/// Keys of the special tokens in `tokenizer_config.json`.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A model folder and its configuration files, `null` for missing ones.
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
    /// Without configuration files, for a tokenizer loaded from the single file at `path`.
    pub(super) fn alone(path: &Path) -> Self {
        Self { root: path.to_path_buf(), ..Self::default() }
    }

    pub(super) fn open(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            return Err(Error::new(ErrorKind::NotFound, "no such folder").at(root));
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

    pub(super) fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.root.join(name)).filter(|path| path.is_file())
    }

    /// The special token with the key `role` (`"bos_token"`).
    pub(super) fn token(&self, role: &str, defaults: &[(&str, &str)]) -> Option<String> {
        let spelled = |value: &Value| match value {
            Value::String(token) => Some(token.clone()),
            Value::Object(token) => token.get("content")?.as_str().map(String::from),
            _ => None,
        };
        let default = defaults.iter().find(|(name, _)| *name == role).map(|(_, token)| token.to_string());
        // An explicit null means that the tokenizer does not have this token.
        if self.tokenizer.get(role).is_some_and(Value::is_null) {
            return None;
        }
        spelled(&self.tokenizer[role]).or_else(|| spelled(&self.special[role])).or(default)
    }

    /// Adds the tokens that the configuration lists, which text then never splits.
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
                        "added token {content:?} should have id {id}, but the vocabulary assigns another id"
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
                        format!("token id {id:?} is not a number"),
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

    /// Adds the tokens that the configuration lists next to a `tokenizer.json`, as transformers does: those of
    /// `added_tokens_decoder` by their ids, then the special tokens that are not added tokens yet. Returns the
    /// vocabulary size before the latter, because the embedding table of a model need not have rows for them.
    pub(super) fn add_listed(&self, tokenizer: &mut tokenizers::Tokenizer) -> Result<usize> {
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
        // The newer key takes precedence.
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

    /// Adds a post-processor with the begin and end tokens, as set by `add_bos_token` and `add_eos_token` or else by
    /// `default`.
    pub(super) fn add_begin_and_end(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        default: Option<([bool; 2], Defaults)>,
    ) -> Result<()> {
        let (default, names) = default.unwrap_or(([false; 2], &[]));
        let setting = |name: &str, default: bool| self.tokenizer[name].as_bool().unwrap_or(default);
        let add = [setting("add_bos_token", default[0]), setting("add_eos_token", default[1])];
        let is_set = self.tokenizer.get("add_bos_token").or(self.tokenizer.get("add_eos_token")).is_some();
        let has_template = matches!(tokenizer.get_post_processor(), Some(PostProcessorWrapper::Template(_)));
        if add == [false; 2] {
            if is_set && has_template {
                tokenizer.with_post_processor(None::<PostProcessorWrapper>);
            }
            return Ok(());
        }
        let token = |add: bool, role: &str| match self.token(role, names).filter(|_| add) {
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

    /// Maximum input length in tokens, `model_max_length`.
    fn max_length(&self) -> Result<Option<usize>> {
        let value = &self.tokenizer["model_max_length"];
        match value.as_u64().and_then(|length| usize::try_from(length).ok()) {
            _ if json::is_unbounded(value) => Ok(None),
            Some(length) => Ok(Some(length)),
            None => Err(Error::format(
                self.root.join("tokenizer_config.json"),
                format!("model_max_length is {value}, expected an integer"),
            )),
        }
    }

    /// Sets the special tokens and the maximum length.
    pub(super) fn finish(
        &self,
        mut inner: tokenizers::Tokenizer,
        defaults: &[(&str, &str)],
    ) -> Result<Tokenizer> {
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
