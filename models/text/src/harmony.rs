//! Harmony: the chat format of gpt-oss, with channels for reasoning, answers and tool calls.
//!
//! OpenAI 2025, "OpenAI Harmony Response Format". A message is `<|start|>ROLE<|message|>TEXT<|end|>`; an assistant
//! message names its channel before the text: `analysis` is the chain of thought, `final` the answer, `commentary` a
//! tool call.

use fauna_shared::Result;
use fauna_shared::text::{ChatTemplate, OutputChannel, OutputParser, Tokenizer};

/// The chat template of releases without one: system message, developer message, the turns, and the generation prompt.
/// Of earlier assistant turns only the final answers are kept.
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

/// Parser of generated tokens in the Harmony format: the ids of the special tokens, and the current state.
#[derive(Debug, Clone)]
pub struct Harmony {
    start: u32,
    channel: u32,
    message: u32,
    end: u32,
    constrain: Option<u32>,
    state: State,
}

/// Where in a message the next token is.
#[derive(Debug, Clone)]
enum State {
    /// Between messages, or in the role.
    Role,
    /// In the channel's name; its tokens so far.
    Channel(Vec<u32>),
    /// In the text of a message on this channel.
    Text(OutputChannel),
}

impl Harmony {
    /// Returns the parser for `tokenizer`, or `None` if it lacks the special tokens of the format.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        Some(Self {
            start: tokenizer.token_id("<|start|>")?,
            channel: tokenizer.token_id("<|channel|>")?,
            message: tokenizer.token_id("<|message|>")?,
            end: tokenizer.token_id("<|end|>")?,
            constrain: tokenizer.token_id("<|constrain|>"),
            state: State::Role,
        })
    }

    /// Returns the chat template for releases without one.
    ///
    /// # Errors
    /// None in practice: the template is built in and valid.
    pub fn template() -> Result<ChatTemplate> {
        ChatTemplate::new(TEMPLATE, None, None)
    }
}

impl OutputParser for Harmony {
    fn channel(&mut self, token: u32, tokenizer: &Tokenizer) -> OutputChannel {
        if token == self.start || token == self.end {
            self.state = State::Role;
        } else if token == self.channel {
            self.state = State::Channel(Vec::new());
        } else if token == self.message {
            let channel = match &self.state {
                State::Channel(name) => output_channel(&tokenizer.decode(name, true).unwrap_or_default()),
                // A message without a channel is an answer.
                State::Role | State::Text(_) => OutputChannel::Answer,
            };
            self.state = State::Text(channel);
        } else {
            match &mut self.state {
                State::Text(channel) => return *channel,
                State::Channel(name) if Some(token) != self.constrain => name.push(token),
                State::Channel(_) | State::Role => {}
            }
        }
        OutputChannel::Silent
    }
}

/// The output channel of a Harmony channel, whose name may be followed by the recipient of a tool call.
fn output_channel(channel: &str) -> OutputChannel {
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
    fn the_built_in_template_renders_as_the_release_does() {
        let template = Harmony::template().unwrap().with_now(1_754_352_000);
        let turns = [
            Message::new("system", "Answer in riddles."),
            Message::new("user", "Who?"),
            Message::new("assistant", "Me."),
            Message::new("user", "Why?"),
        ];
        let rendered = template.render_with_reasoning(&turns, true, Some(Reasoning::High)).unwrap();
        assert_eq!(
            rendered,
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

    /// A tokenizer of the special tokens and a few words.
    fn tokenizer() -> Tokenizer {
        let special = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|return|>"];
        let words =
            ["assistant", "analysis", "final", "commentary", "to=functions.sum", "json", "Two?", "Two."];
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            special.iter().chain(&words).zip(0..).map(|(token, id)| (token.to_string(), id.into())).collect();
        let added = special.iter().map(|token| {
            json!({"id": vocabulary[*token], "content": token, "single_word": false, "lstrip": false, "rstrip": false,
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
    fn answers_are_separated_from_reasoning_and_tool_calls() {
        let tokenizer = tokenizer();
        let mut harmony = Harmony::of(&tokenizer).unwrap();
        let generated = "<|channel|> analysis <|message|> Two? <|end|> <|start|> assistant <|channel|> commentary \
            to=functions.sum <|constrain|> json <|message|> Two? <|end|> <|start|> assistant <|channel|> final \
            <|message|> Two. final <|end|> <|start|> assistant <|message|> Two.";
        let mut parsed = vec![];
        for token in tokenizer.encode(generated, false).unwrap() {
            let channel = harmony.channel(token, &tokenizer);
            if channel != OutputChannel::Silent {
                parsed.push((tokenizer.token(token).unwrap(), channel));
            }
        }
        let expected = [
            ("Two?", OutputChannel::Thought),
            ("Two?", OutputChannel::Thought),
            ("Two.", OutputChannel::Answer),
            ("final", OutputChannel::Answer),
            ("Two.", OutputChannel::Answer),
        ];
        assert_eq!(parsed, expected.map(|(word, channel)| (word.to_string(), channel)));
    }

    #[test]
    fn every_harmony_channel_has_an_output_channel() {
        assert_eq!(output_channel("analysis"), OutputChannel::Thought);
        assert_eq!(output_channel("commentary to=functions.weather"), OutputChannel::Thought);
        assert_eq!(output_channel("final"), OutputChannel::Answer);
        assert_eq!(output_channel(""), OutputChannel::Answer);
    }
}
