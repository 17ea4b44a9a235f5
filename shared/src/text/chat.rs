//! Chat templates: rendering a conversation as a prompt.

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

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Role: `system`, `user`, `assistant`, or another role of the template.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

impl Message {
    /// A message with the given role and content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The chat template of a model: a Jinja template that renders a conversation as a prompt, run in a sandbox.
///
/// The language is Jinja as configured by transformers, with the methods of Python's strings, lists and dicts.
///
/// Templates come with checkpoints and are not trusted. A template has access to the messages and the special tokens
/// only. Its source is limited to 1 MiB and a nesting depth of 100. Rendering is limited to three million steps plus
/// half a step per byte of the conversation, where a step is an expression, an element of a list or 32 bytes of text
/// created or read; this limits its memory to about 200 MB.
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
    /// Variables for the special tokens, by role.
    tokens: Vec<(&'static str, String)>,
    now: Option<u64>,
}

impl ChatTemplate {
    /// Compiles the template `source`; `bos` and `eos` are the variables `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line of a syntax error.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let template = Template::new(source).map_err(|fault| {
            Error::new(ErrorKind::Format, format!("the chat template has a syntax error: {fault}"))
        })?;
        let token = |role, token: Option<&str>| (role, token.unwrap_or_default().to_string());
        Ok(Self { template, tokens: vec![token("bos_token", bos), token("eos_token", eos)], now: None })
    }

    /// Loads the template of a model folder: `chat_template.jinja`, else `chat_template.json`, else the one in
    /// `tokenizer_config.json`; of several named templates, `default`. `None` if there is none.
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

    /// Loads the template in the metadata of a GGUF file; `None` if there is none.
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
        // Released templates concatenate these two without testing whether they are defined.
        template.tokens.retain(|(role, _)| known(role).is_none());
        template.tokens.extend(tokenizer.roles.iter().cloned());
        Ok(template)
    }

    /// Sets the time of `strftime_now`, in seconds since 1970 (UTC). The default is the time of rendering.
    pub fn with_now(mut self, seconds: u64) -> Self {
        self.now = Some(seconds);
        self
    }

    /// Renders `messages` as a prompt; `add_generation_prompt` appends the beginning of the assistant's turn.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] with the template's message if it calls `raise_exception`; [`ErrorKind::Format`] if
    /// rendering fails otherwise or exceeds its limits.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with_reasoning(messages, add_generation_prompt, None)
    }

    /// As [`render`](Self::render), with `reasoning` as the variable `reasoning_effort`.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_with_reasoning(
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
            Cause::Raised => Error::input(format!("the chat template rejects the conversation: {fault}")),
            Cause::Failed => Error::new(ErrorKind::Format, format!("the chat template fails: {fault}")),
            Cause::Limit => Error::new(ErrorKind::Format, format!("the chat template was stopped: {fault}")),
        })
    }
}

/// The template of a `chat_template` entry: a string, or the entry named `default` of a list.
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
                None => Err(Error::unsupported("no chat template is named \"default\"")
                    .hint(format!("found:\n{}", first_five(named.keys())))),
            }
        }
        _ => Err(Error::new(
            ErrorKind::Format,
            "chat_template is neither a string nor a list of named templates",
        )),
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
    fn the_template_of_a_folder_uses_the_tokens_of_the_tokenizer() {
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
        // The end tokens of generation are not the template's `eos_token`.
        write("generation_config.json", r#"{"eos_token_id": [7, 0]}"#);
        write("tokenizer_config.json", r#"{"chat_template": "a{{ eos_token }}"}"#);
        assert_eq!(render().unwrap(), "a<|endoftext|>");
        write("chat_template.jinja", "b{{ bos_token }}");
        assert_eq!(render().unwrap(), "b<|endoftext|>");
    }

    #[test]
    fn rendering_is_limited_in_time_and_depth() {
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
    fn strftime_now_formats_as_c_does() {
        let template =
            ChatTemplate::new("{{ strftime_now('%d %b %Y %A %H:%M:%S %q%%') }}", None, None).unwrap();
        let at = |seconds| template.clone().with_now(seconds).render(&[], false).unwrap();
        assert_eq!(at(0), "01 Jan 1970 Thursday 00:00:00 %q%");
        assert_eq!(at(1_709_210_096), "29 Feb 2024 Thursday 12:34:56 %q%");
        assert_eq!(at(4_107_542_399), "28 Feb 2100 Sunday 23:59:59 %q%");
    }

    #[test]
    fn generation_tags_are_ignored() {
        let template = ChatTemplate::new("a {%- generation %}\nb{% endgeneration -%} c", None, None).unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "abc");
    }

    #[test]
    fn the_default_of_several_templates_is_used() {
        let entry =
            serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(default_template(&entry).unwrap(), Some("d"));
        let entry =
            serde_json::json!([{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]);
        assert!(default_template(&entry).unwrap_err().to_string().contains("rag"));
    }
}
