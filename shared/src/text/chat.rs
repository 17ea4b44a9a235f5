//! Chat templates: from a conversation to the prompt that a model was trained on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};

use super::Tokenizer;
use crate::checkpoint::Metadata;
use crate::error::first_five;
use crate::generate::Reasoning;
use crate::{Error, ErrorKind, Result, json};

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
/// A template comes with a checkpoint and is not trusted: it sees the messages and nothing else, and is stopped
/// after a bounded number of steps, at a bounded depth and size.
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
    environment: Environment<'static>,
    bos: String,
    eos: String,
    now: Option<u64>,
}

/// Steps a template may take; releases need some thousands for a long conversation.
const FUEL: u64 = 2_000_000;
/// Templates and macros within each other.
const DEPTH: usize = 100;
/// Bytes a template may have; the longest of releases has some 20 thousand.
const SOURCE_BYTES: usize = 1 << 20;

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are what the template sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line if the template does not parse.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        if source.len() > SOURCE_BYTES {
            return Err(Error::new(
                ErrorKind::Format,
                format!("the chat template has {} bytes, the bound is {SOURCE_BYTES}", source.len()),
            ));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", without_generation_marks(source)).map_err(|e| {
            Error::new(ErrorKind::Format, format!("the chat template does not parse: {}", describe(&e)))
        })?;
        let token = |token: Option<&str>| token.unwrap_or_default().to_string();
        Ok(Self { environment, bos: token(bos), eos: token(eos), now: None })
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
                let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "read", e))?;
                Ok(Some((path, text)))
            }
            _ => Ok::<_, Error>(None),
        };
        if let Some((path, source)) = read("chat_template.jinja")? {
            return Self::with_tokens_of(tokenizer, &source).map(Some).map_err(|e| e.at(path));
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let Some((path, text)) = read(name)? else { continue };
            let json = json::parse(text.as_bytes()).map_err(|e| e.at(&path))?;
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
        let [bos, eos] = &tokenizer.begin_and_end;
        Self::new(source, bos.as_deref(), eos.as_deref())
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
        let render = |e: minijinja::Error| match e.kind() {
            minijinja::ErrorKind::InvalidOperation => {
                Error::input(format!("the chat template refuses the conversation: {}", describe(&e)))
            }
            minijinja::ErrorKind::OutOfFuel => {
                Error::new(ErrorKind::Format, format!("the chat template took more than {FUEL} steps"))
            }
            _ => Error::new(ErrorKind::Format, format!("the chat template fails: {}", describe(&e))),
        };
        let strftime_now = Value::from_function(move |format: String| strftime(&format, now));
        self.environment
            .get_template("chat")
            .and_then(|template| {
                template.render(context! {
                    messages, add_generation_prompt, strftime_now,
                    reasoning_effort => reasoning.map_or(Value::UNDEFINED, |effort| effort.to_string().into()),
                    bos_token => self.bos, eos_token => self.eos, tools => (), documents => (),
                })
            })
            .map_err(render)
    }
}

/// The one template in a `chat_template` entry: a string, or the one named `default`.
fn default_template(entry: &serde_json::Value) -> Result<Option<&str>> {
    match entry {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(source) => Ok(Some(source)),
        serde_json::Value::Array(templates) => {
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

/// `source` without the marks around an assistant's words, which matter to training alone.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|end| start + end + 2) else { break };
        let tag = &rest[start..end];
        let inner = tag[2..tag.len() - 2].trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        if matches!(inner, "generation" | "endgeneration") {
            // A tag that does nothing keeps the white space control of the one it stands for.
            let mark =
                |c: Option<char>| c.filter(|c| matches!(c, '-' | '+')).map(String::from).unwrap_or_default();
            let (left, right) =
                (mark(tag[2..].chars().next()), mark(tag[..tag.len() - 2].chars().next_back()));
            out.push_str(&format!("{{%{left} set _ = 0 {right}%}}"));
        } else {
            out.push_str(tag);
        }
        rest = &rest[end..];
    }
    out + rest
}

fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map(String::from).unwrap_or_else(|| error.kind().to_string());
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it, since prompts were trained on that.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = String::new();
    write_json(&value, indent.map(|n| n.min(16)), 0, &mut out)?;
    Ok(Value::from_safe_string(out))
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> Result<(), minijinja::Error> {
    if depth > DEPTH {
        let message = "a value is nested too deeply for JSON";
        return Err(minijinja::Error::new(minijinja::ErrorKind::BadSerialization, message));
    }
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let items: Vec<(Option<Value>, Value)> = match value.kind() {
        ValueKind::Map => value
            .try_iter()?
            .map(|k| Ok((Some(k.clone()), value.get_item(&k)?)))
            .collect::<Result<_, minijinja::Error>>()?,
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.map(|item| (None, item)).collect(),
        _ => {
            let scalar = serde_json::to_string(value)
                .map_err(|e| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, e.to_string()))?;
            out.push_str(&scalar);
            return Ok(());
        }
    };
    let (open, close) = if value.kind() == ValueKind::Map { ('{', '}') } else { ('[', ']') };
    out.push(open);
    for (i, (key, item)) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(comma);
        }
        line(depth + 1, out);
        if let Some(key) = key {
            write_json(&Value::from(key.to_string()), None, depth + 1, out)?;
            out.push_str(": ");
        }
        write_json(item, indent, depth + 1, out)?;
    }
    if !items.is_empty() {
        line(depth, out);
    }
    out.push(close);
    Ok(())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Writes a time in UTC by the codes of C's `strftime` that templates use; others stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let month_name = MONTHS[month as usize - 1];
        let day_name = DAYS[(days % 7) as usize];
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", time / 3600),
            Some('M') => out += &format!("{:02}", time / 60 % 60),
            Some('S') => out += &format!("{:02}", time % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a number of days since 1970, by the rules of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years have 146,097 days, so the loop below runs 400 times at most.
    let (mut year, mut left) = (1970 + days / 146_097 * 400, days % 146_097);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in (1..).zip(lengths) {
        if left < length {
            return (year, month, left + 1);
        }
        left -= length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

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
