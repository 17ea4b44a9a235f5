//! Chat templates: from a conversation to the prompt that a model was trained on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Tokenizer;
use super::jinja::{Cause, Fault, Template};
use crate::checkpoint::Metadata;
use crate::error::first_five;
use crate::generate::Reasoning;
use crate::{Error, ErrorKind, Result, json as files, misnamed};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// How a release turns a conversation into a prompt: a Jinja template, run in a sandbox.
///
/// The language is that of transformers' environment: Jinja with Python's strings, lists and maps.
///
/// A template comes with a checkpoint and is not trusted: it sees the messages and the names of special tokens and
/// nothing else. Its source has at most 1 MiB and is nested at most 100 deep; rendering takes at most three million
/// steps and half a step more for each byte of the conversation, where a step is an expression, a value in a list or
/// 32 bytes of text that are made or read. That bounds its memory too: some 200 MB.
///
/// ```
/// use fauna_shared::text::{ChatTemplate, Message};
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}\
///     {% if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::new(source, None, None)?;
/// assert_eq!(template.render(&[Message::new("user", " hi ")], true)?, "<user>hi</s><assistant>");
/// # Ok::<(), fauna_shared::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    template: Template,
    /// What it sees beside the conversation: special tokens by their roles.
    tokens: Vec<(&'static str, String)>,
    now: Option<u64>,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are what the template sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line if the template does not parse.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let template = Template::new(source).map_err(|fault| {
            Error::new(ErrorKind::Format, format!("the chat template does not parse: {fault}"))
        })?;
        let token = |role, token: Option<&str>| (role, token.unwrap_or_default().to_string());
        Ok(Self { template, tokens: vec![token("bos_token", bos), token("eos_token", eos)], now: None })
    }

    /// The template of a model folder: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json`; of several named ones, `default`. `None` if the release has none.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the file if it is damaged; [`ErrorKind::Unsupported`] if there are several and
    /// none is `default`.
    pub fn from_folder(folder: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let read = |name: &str| match folder.join(name) {
            path if path.is_file() => {
                let text = misnamed::read_text(&path)?;
                Ok(Some((path, text)))
            }
            _ => Ok::<_, Error>(None),
        };
        if let Some((path, source)) = read("chat_template.jinja")? {
            return Self::with_tokens_of(tokenizer, &source).map(Some).map_err(|e| e.at(path));
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let Some((path, text)) = read(name)? else { continue };
            let json = files::parse(text.as_bytes()).map_err(|e| e.at(&path))?;
            if let Some(source) = default_template(&json["chat_template"]).map_err(|e| e.at(&path))? {
                return Self::with_tokens_of(tokenizer, source).map(Some).map_err(|e| e.at(path));
            }
        }
        Ok(None)
    }

    /// The template in the metadata of a GGUF file; `None` if it has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let source = metadata.get("tokenizer.chat_template").and_then(|v| v.as_str());
        source.map(|source| Self::with_tokens_of(tokenizer, source)).transpose()
    }

    fn with_tokens_of(tokenizer: &Tokenizer, source: &str) -> Result<Self> {
        let mut template = Self::new(source, None, None)?;
        let known = |role: &str| tokenizer.roles.iter().find(|(known, _)| *known == role);
        // Templates of releases join these two to text without asking whether they are there.
        template.tokens.retain(|(role, _)| known(role).is_none());
        template.tokens.extend(tokenizer.roles.iter().cloned());
        Ok(template)
    }

    /// Fixes what `strftime_now` in a template tells: seconds since 1970, UTC. By default the time of rendering.
    pub fn with_now(mut self, seconds: u64) -> Self {
        self.now = Some(seconds);
        self
    }

    /// The prompt for `messages`; with `add_generation_prompt`, up to where the assistant is to go on.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] if the template refuses the conversation, in the template's own words;
    /// [`ErrorKind::Format`] if the template fails otherwise or runs too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_thinking(messages, add_generation_prompt, None)
    }

    /// As [`render`](Self::render), for a template that knows how long to think: it sees `reasoning` as
    /// `reasoning_effort`.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_thinking(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        reasoning: Option<Reasoning>,
    ) -> Result<String> {
        let now = self.now.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
        });
        let mut variables = vec![
            ("messages", json!(messages)),
            ("add_generation_prompt", json!(add_generation_prompt)),
            ("tools", Value::Null),
            ("documents", Value::Null),
        ];
        variables.extend(reasoning.map(|effort| ("reasoning_effort", json!(effort.to_string()))));
        variables.extend(self.tokens.iter().map(|(role, token)| (*role, json!(token))));
        self.template.render(&variables, now).map_err(|fault: Fault| match fault.cause {
            Cause::Refused => Error::input(format!("the chat template refuses the conversation: {fault}")),
            Cause::Failed => Error::new(ErrorKind::Format, format!("the chat template fails: {fault}")),
            Cause::Spent => Error::new(ErrorKind::Format, format!("the chat template was stopped: {fault}")),
        })
    }
}

/// The one template in a `chat_template` entry: a string, or the one named `default`.
fn default_template(entry: &Value) -> Result<Option<&str>> {
    match entry {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source)),
        Value::Array(templates) => {
            let named: BTreeMap<&str, &str> = templates
                .iter()
                .filter_map(|t| Some((t["name"].as_str()?, t["template"].as_str()?)))
                .collect();
            match named.get("default").or(named.values().next().filter(|_| named.len() == 1)) {
                Some(source) => Ok(Some(source)),
                None => Err(Error::unsupported("no chat template is named default")
                    .hint(format!("there are:\n{}", first_five(named.keys())))),
            }
        }
        _ => Err(Error::new(ErrorKind::Format, "chat_template is neither a string nor a list of named ones")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        template: String,
        messages: Vec<Message>,
        add_generation_prompt: bool,
        expected: Option<String>,
        error: Option<String>,
    }

    #[test]
    fn releases_templates_render_as_in_python() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/tokenizers/templates.json")).unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let template = ChatTemplate::new(&case.template, Some("<s>"), Some("</s>")).unwrap();
            let rendered = template.render(&case.messages, case.add_generation_prompt);
            match (case.expected, case.error) {
                (Some(expected), _) => assert_eq!(rendered.unwrap(), expected, "{}", case.name),
                (_, Some(reason)) => {
                    let error = rendered.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Input);
                    assert!(error.message().contains(&reason), "{error}");
                }
                _ => panic!("{}: the case expects nothing", case.name),
            }
        }
    }

    #[test]
    fn a_folder_s_template_sees_the_tokenizer_s_own_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let gpt2 = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tokenizers/gpt2");
        for name in ["vocab.json", "merges.txt"] {
            fs::copy(Path::new(gpt2).join(name), dir.path().join(name)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let render = || {
            let tokenizer = Tokenizer::from_folder(dir.path()).unwrap();
            ChatTemplate::from_folder(dir.path(), &tokenizer).unwrap().map(|t| t.render(&[], false).unwrap())
        };
        assert_eq!(render(), None);
        // What ends generation is not what the template calls its end token.
        write("generation_config.json", r#"{"eos_token_id": [7, 0]}"#);
        write("tokenizer_config.json", r#"{"chat_template": "a{{ eos_token }}"}"#);
        assert_eq!(render().unwrap(), "a<|endoftext|>");
        write("chat_template.jinja", "b{{ bos_token }}");
        assert_eq!(render().unwrap(), "b<|endoftext|>");
    }

    #[test]
    fn a_template_cannot_hang_or_overflow() {
        let hostile = [
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ];
        for source in hostile {
            let error = ChatTemplate::new(source, None, None).unwrap().render(&[], false).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Format | ErrorKind::Input), "{error}");
        }
        assert_eq!(ChatTemplate::new("{% for %}", None, None).unwrap_err().kind(), ErrorKind::Format);
        let deep = "{{ ".to_string() + &"(".repeat(100_000) + "1";
        assert_eq!(ChatTemplate::new(&deep, None, None).unwrap_err().kind(), ErrorKind::Format);
    }

    #[test]
    fn time_is_told_as_c_does() {
        let template =
            ChatTemplate::new("{{ strftime_now('%d %b %Y %A %H:%M:%S %q%%') }}", None, None).unwrap();
        let at = |seconds| template.clone().with_now(seconds).render(&[], false).unwrap();
        assert_eq!(at(0), "01 Jan 1970 Thursday 00:00:00 %q%");
        assert_eq!(at(1_709_210_096), "29 Feb 2024 Thursday 12:34:56 %q%");
        assert_eq!(at(4_107_542_399), "28 Feb 2100 Sunday 23:59:59 %q%");
    }

    #[test]
    fn marks_for_training_are_passed_over() {
        let template = ChatTemplate::new("a {%- generation %}\nb{% endgeneration -%} c", None, None).unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "abc");
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let entry =
            serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(default_template(&entry).unwrap(), Some("d"));
        let entry =
            serde_json::json!([{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]);
        assert!(default_template(&entry).unwrap_err().to_string().contains("rag"));
    }
}
