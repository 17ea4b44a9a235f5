//! Harmony: how gpt-oss holds conversations, thinks before it answers, and says which is which.
//!
//! OpenAI 2025, "OpenAI Harmony Response Format". A message is `<|start|>ROLE<|message|>TEXT<|end|>`; an assistant names
//! the channel of its message before the text: `analysis` is what it says to itself, `final` the answer, `commentary` what
//! it tells a tool.

use fauna_shared::Result;
use fauna_shared::text::{ChatTemplate, OutputChannel, OutputParser, Tokenizer};

/// The template of releases that come without one: what the system says about itself, the developer's instructions, the
/// turns, and the assistant's next one. Of the assistant's past turns only the answers are told again.
const TEMPLATE: &str = "\
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: {{ strftime_now('%Y-%m-%d') }}

Reasoning: {{ reasoning_effort | default('medium') }}

# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>
{%- for message in messages -%}
{%- if message.role in ['system', 'developer'] -%}
{{- '<|start|>developer<|message|># Instructions\\n\\n' + message.content + '\\n\\n<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' -}}
{%- else -%}
{{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}";

/// The marks of the format, as ids of one tokenizer, and where an answer stands between them.
#[derive(Debug, Clone)]
pub struct Harmony {
    start: u32,
    channel: u32,
    message: u32,
    end: u32,
    constrain: Option<u32>,
    place: Place,
}

/// Where the next token stands.
#[derive(Debug, Clone)]
enum Place {
    /// Between messages, or in a role.
    Role,
    /// In the name of a channel; its tokens so far.
    Channel(Vec<u32>),
    /// In a text that is for this voice.
    Text(OutputChannel),
}

impl Harmony {
    /// The format in the words of `tokenizer`; none if it lacks them.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        Some(Self {
            start: tokenizer.token_id("<|start|>")?,
            channel: tokenizer.token_id("<|channel|>")?,
            message: tokenizer.token_id("<|message|>")?,
            end: tokenizer.token_id("<|end|>")?,
            constrain: tokenizer.token_id("<|constrain|>"),
            place: Place::Role,
        })
    }

    /// The template for releases without one.
    ///
    /// # Errors
    /// None: it parses.
    pub fn template() -> Result<ChatTemplate> {
        ChatTemplate::new(TEMPLATE, None, None)
    }
}

impl OutputParser for Harmony {
    fn hear(&mut self, token: u32, tokenizer: &Tokenizer) -> OutputChannel {
        if token == self.start || token == self.end {
            self.place = Place::Role;
        } else if token == self.channel {
            self.place = Place::Channel(Vec::new());
        } else if token == self.message {
            let voice = match &self.place {
                Place::Channel(name) => voice_of(&tokenizer.decode(name, true).unwrap_or_default()),
                // A message without a channel is what is said aloud.
                Place::Role | Place::Text(_) => OutputChannel::Answer,
            };
            self.place = Place::Text(voice);
        } else {
            match &mut self.place {
                Place::Text(voice) => return *voice,
                Place::Channel(name) if Some(token) != self.constrain => name.push(token),
                Place::Channel(_) | Place::Role => {}
            }
        }
        OutputChannel::Silent
    }
}

/// Whom a channel is for. Its name may be followed by the tool that is spoken to.
fn voice_of(channel: &str) -> OutputChannel {
    match channel.split_whitespace().next() {
        Some("analysis" | "commentary") => OutputChannel::Thought,
        _ => OutputChannel::Answer,
    }
}

#[cfg(test)]
mod tests {
    use fauna_shared::generate::Reasoning;
    use fauna_shared::text::Message;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conversation_is_told_as_the_release_tells_it() {
        let template = Harmony::template().unwrap().with_now(1_754_352_000);
        let turns = [
            Message::new("system", "Answer in riddles."),
            Message::new("user", "Who?"),
            Message::new("assistant", "Me."),
            Message::new("user", "Why?"),
        ];
        let told = template.render_thinking(&turns, true, Some(Reasoning::High)).unwrap();
        assert_eq!(
            told,
            "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n\
             Knowledge cutoff: 2024-06\nCurrent date: 2025-08-05\n\nReasoning: high\n\n\
             # Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>\
             <|start|>developer<|message|># Instructions\n\nAnswer in riddles.\n\n<|end|>\
             <|start|>user<|message|>Who?<|end|>\
             <|start|>assistant<|channel|>final<|message|>Me.<|end|>\
             <|start|>user<|message|>Why?<|end|><|start|>assistant"
        );
        assert!(template.render(&turns[1..2], false).unwrap().contains("Reasoning: medium\n"));
    }

    /// A tokenizer of the marks and a few words.
    fn tokenizer() -> Tokenizer {
        let marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|return|>"];
        let words =
            ["assistant", "analysis", "final", "commentary", "to=functions.sum", "json", "Two?", "Two."];
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            marks.iter().chain(&words).zip(0..).map(|(token, id)| (token.to_string(), id.into())).collect();
        let added = marks.iter().map(|mark| {
            json!({"id": vocabulary[*mark], "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        });
        let file = json!({
            "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "json"}
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::from_folder(folder.path()).unwrap()
    }

    #[test]
    fn the_answer_is_told_from_thoughts_and_calls() {
        let tokenizer = tokenizer();
        let mut harmony = Harmony::of(&tokenizer).unwrap();
        let written = "<|channel|> analysis <|message|> Two? <|end|> <|start|> assistant <|channel|> commentary \
            to=functions.sum <|constrain|> json <|message|> Two? <|end|> <|start|> assistant <|channel|> final \
            <|message|> Two. final <|end|> <|start|> assistant <|message|> Two.";
        let mut heard = vec![];
        for token in tokenizer.encode(written, false).unwrap() {
            let voice = harmony.hear(token, &tokenizer);
            if voice != OutputChannel::Silent {
                heard.push((tokenizer.token(token).unwrap(), voice));
            }
        }
        let expected = [
            ("Two?", OutputChannel::Thought),
            ("Two?", OutputChannel::Thought),
            ("Two.", OutputChannel::Answer),
            ("final", OutputChannel::Answer),
            ("Two.", OutputChannel::Answer),
        ];
        assert_eq!(heard, expected.map(|(word, voice)| (word.to_string(), voice)));
    }

    #[test]
    fn every_channel_has_its_voice() {
        assert_eq!(voice_of("analysis"), OutputChannel::Thought);
        assert_eq!(voice_of("commentary to=functions.weather"), OutputChannel::Thought);
        assert_eq!(voice_of("final"), OutputChannel::Answer);
        assert_eq!(voice_of(""), OutputChannel::Answer);
    }
}
