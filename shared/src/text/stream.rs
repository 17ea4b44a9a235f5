//! Streaming generation: incremental decoding into whole characters, with stop strings.

use std::ops::ControlFlow;

use super::Tokenizer;
use crate::generate::{Decoder, FinishReason, Generation, GenerationConfig, Stop, generate};
use crate::{Error, Result};

/// The prompt of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// Text, tokenized with special tokens.
    Text(&'a str),
    /// Text that contains its special tokens already, as rendered by a chat template.
    Chat(&'a str),
    /// Token ids.
    Ids(&'a [u32]),
}

/// A piece of generated text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Index of the prompt.
    pub row: usize,
    /// The text, never empty.
    pub text: &'a str,
    /// Whether it is reasoning rather than the answer.
    pub thought: bool,
}

/// The output channel of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputChannel {
    /// The answer.
    Answer,
    /// Reasoning.
    Thought,
    /// Neither: markup of the output format.
    Silent,
}

/// Separates the answer of a model from its reasoning. Cloned for each sequence of a batch.
pub trait OutputParser: Clone {
    /// Returns the channel of `token`, the next token of the sequence.
    fn channel(&mut self, token: u32, tokenizer: &Tokenizer) -> OutputChannel;
}

/// Treats every token as part of the answer.
#[derive(Clone)]
struct AnswerOnly;

impl OutputParser for AnswerOnly {
    fn channel(&mut self, _: u32, _: &Tokenizer) -> OutputChannel {
        OutputChannel::Answer
    }
}

/// The completion of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The generated text, without special tokens and without the stop string.
    pub text: String,
    /// The reasoning, if an [`OutputParser`] separates it.
    pub thoughts: String,
    /// Finish reason, token ids (end tokens and tokens of a stop string included) and timings.
    pub generation: Generation,
}

/// Generates completions of `prompts` in one batch and calls `each` with every new piece of text.
///
/// `eos` and `pad` default to the tokenizer's. Text is held back while it may be an incomplete character or the
/// beginning of a stop string, so the concatenated pieces of a sequence are the text of its completion. Breaking from
/// `each` ends the sequence of the piece. A stop string that is a special token acts as an end token.
///
/// # Errors
/// As [`generate`].
pub fn stream<D: Decoder + ?Sized>(
    model: &D,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    options: &GenerationConfig,
    each: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    stream_with_parser(model, tokenizer, prompts, options, &AnswerOnly, each)
}

/// As [`stream`], with `parser` separating the answer from the reasoning. Stop strings apply to the answer only.
///
/// # Errors
/// As [`generate`].
pub fn stream_with_parser<D: Decoder + ?Sized, L: OutputParser>(
    model: &D,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    options: &GenerationConfig,
    parser: &L,
    each: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    let prompts: Result<Vec<Vec<u32>>> = prompts.iter().map(|prompt| prompt_ids(tokenizer, prompt)).collect();
    let prompts = prompts?;
    let special = tokenizer.special();
    let mut eos = options.eos.clone().unwrap_or_else(|| special.eos.clone());
    // Special tokens are not decoded, so a stop string cannot match them in the text.
    eos.extend(options.stop.iter().filter_map(|stop| tokenizer.special_id(stop)));
    let options = GenerationConfig { eos: Some(eos), pad: options.pad.or(special.pad), ..options.clone() };
    let mut rows: Vec<Row<L>> = prompts.iter().map(|_| Row::new(tokenizer, &options, parser)).collect();
    let mut failed: Option<Error> = None;
    let made = generate(model, &prompts, &options, &mut |new| {
        let row = &mut rows[new.row];
        let end = new.finish == Some(FinishReason::End);
        let pieces = match row.push(if end { None } else { Some(new.token) }, new.finish.is_some()) {
            Ok(pieces) => pieces,
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(Stop::All);
            }
        };
        for (text, thought) in pieces {
            if !text.is_empty() && each(Piece { row: new.row, text: &text, thought }).is_break() {
                return ControlFlow::Break(Stop::Cancel);
            }
        }
        if row.stop.stopped { ControlFlow::Break(Stop::Row) } else { ControlFlow::Continue(()) }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let completion = |(row, made): (Row<L>, Generation)| {
        let finish = match made.finish {
            Some(finish) if !row.stop.stopped => finish,
            _ => FinishReason::Stopped,
        };
        let generation = Generation { finish: Some(finish), ..made };
        Completion { text: row.text, thoughts: row.thoughts, generation }
    };
    Ok(rows.into_iter().zip(made.generations()).map(completion).collect())
}

fn prompt_ids(tokenizer: &Tokenizer, prompt: &Prompt) -> Result<Vec<u32>> {
    match prompt {
        Prompt::Ids(ids) => Ok(ids.to_vec()),
        Prompt::Chat(text) => tokenizer.encode(text, false),
        // An empty prompt: models without a begin token start from the end token.
        Prompt::Text(text) => tokenizer.encode(text, true).map(|ids| match ids.is_empty() {
            true => tokenizer.special().bos.or(tokenizer.end_token()).into_iter().collect(),
            false => ids,
        }),
    }
}

/// The incremental decoding of one sequence.
struct Row<'a, L> {
    tokenizer: &'a Tokenizer,
    parser: L,
    channel: OutputChannel,
    detokenizer: Detokenizer<'a>,
    stop: StopStrings<'a>,
    text: String,
    thoughts: String,
}

impl<'a, L: OutputParser> Row<'a, L> {
    fn new(tokenizer: &'a Tokenizer, options: &'a GenerationConfig, parser: &L) -> Self {
        Self {
            tokenizer,
            parser: parser.clone(),
            channel: OutputChannel::Answer,
            detokenizer: tokenizer.detokenizer(),
            stop: StopStrings::new(&options.stop),
            text: String::new(),
            thoughts: String::new(),
        }
    }

    /// Adds `token`, or ends the sequence. Returns the new pieces of text, and whether each is reasoning.
    fn push(&mut self, token: Option<u32>, last: bool) -> Result<[(String, bool); 2]> {
        let mut before = (String::new(), false);
        let mut text = String::new();
        if let Some(token) = token {
            let channel = self.parser.channel(token, self.tokenizer);
            if channel != self.channel {
                // The rest of the previous channel.
                before = self.append(self.detokenizer.clone().finish()?);
                self.detokenizer = self.tokenizer.detokenizer();
                self.channel = channel;
            }
            if channel != OutputChannel::Silent {
                text = self.detokenizer.push(token)?;
            }
        }
        if last {
            text += &self.detokenizer.finish()?;
        }
        let mut now = self.append(text);
        if last {
            let rest = self.stop.finish();
            self.text += &rest;
            match now.1 {
                // Held back from an answer that reasoning follows.
                true => before.0 += &rest,
                false => now.0 += &rest,
            }
        }
        Ok([before, now])
    }

    /// Appends `text` to its channel. Returns the text that is not held back, and whether it is reasoning.
    fn append(&mut self, text: String) -> (String, bool) {
        match self.channel {
            OutputChannel::Answer => {
                let certain = self.stop.push(&text);
                self.text += &certain;
                (certain, false)
            }
            OutputChannel::Thought => {
                self.thoughts += &text;
                (text, true)
            }
            OutputChannel::Silent => (String::new(), false),
        }
    }
}

/// Decodes tokens incrementally. The concatenated pieces equal the text of decoding all tokens at once.
#[derive(Debug, Clone)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens of the last piece of text, then those not yet decoded.
    ids: Vec<u32>,
    /// Number of leading `ids` that are decoded.
    decoded: usize,
}

impl Tokenizer {
    /// An incremental decoder for one sequence, without special tokens.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer { tokenizer: self, ids: Vec::new(), decoded: 0 }
    }
}

impl Detokenizer<'_> {
    /// Adds `token` and returns the new text; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.ids.push(token);
        self.advance(false)
    }

    /// Returns the rest of the text; an incomplete character becomes U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, all: bool) -> Result<String> {
        // Spacing depends on the previous tokens, so those of the last piece are decoded again.
        let before = self.tokenizer.decode(&self.ids[..self.decoded], true)?;
        let now = self.tokenizer.decode(&self.ids, true)?;
        // A character has at most four bytes, so a long run of tokens without one is invalid UTF-8.
        let waiting = self.ids.len() - self.decoded;
        if now.len() <= before.len() || (now.ends_with('\u{FFFD}') && !all && waiting < 16) {
            return Ok(String::new());
        }
        let text = match now.strip_prefix(&before) {
            Some(text) => text.to_string(),
            // The decoder cleaned up whitespace of the previous text: continue after the common prefix.
            None => {
                let same = before.chars().zip(now.chars()).take_while(|(a, b)| a == b);
                now[same.map(|(c, _)| c.len_utf8()).sum()..].to_string()
            }
        };
        self.ids.drain(..self.decoded);
        self.decoded = self.ids.len();
        Ok(text)
    }
}

/// Holds back text that may be the beginning of a stop string.
struct StopStrings<'a> {
    stops: &'a [String],
    held: String,
    stopped: bool,
}

impl<'a> StopStrings<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new(), stopped: false }
    }

    /// Adds `text`. Returns the text that cannot be part of a stop string, or all text before the first stop string.
    fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held += text;
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let could_begin = |from: &usize| {
            let tail = &self.held[*from..];
            self.stops.iter().any(|stop| stop.starts_with(tail))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let hold = (from..self.held.len()).filter(|&i| self.held.is_char_boundary(i)).find(could_begin);
        let held = self.held.split_off(hold.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, held)
    }

    /// Returns the text held back, at the end of the sequence.
    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Tokens;
    use candle_core::{Device, Tensor};

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_folder(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tokenizers/gpt2")).unwrap()
    }

    /// Generates a fixed text for any prompt, then the end token.
    struct Reciter {
        tokens: Vec<u32>,
        vocabulary: usize,
    }

    impl Reciter {
        fn new(tokenizer: &Tokenizer, text: &str) -> Self {
            let mut tokens = tokenizer.encode(text, false).unwrap();
            tokens.push(tokenizer.special().eos[0]);
            Self { tokens, vocabulary: tokenizer.vocab_size() }
        }
    }

    impl Decoder for Reciter {
        type Cache = usize;
        fn cache(&self, _rows: usize, _capacity: usize) -> Result<usize> {
            Ok(0)
        }
        fn step(&self, tokens: &Tokens, position: &mut usize) -> Result<Tensor> {
            let mut row = vec![0f32; self.vocabulary];
            row[self.tokens[*position] as usize] = 1.0;
            *position += 1;
            Ok(Tensor::from_vec(row.repeat(tokens.rows()), (tokens.rows(), self.vocabulary), &Device::Cpu)?)
        }
        fn max_positions(&self) -> Option<usize> {
            None
        }
    }

    fn recite(text: &str, options: GenerationConfig) -> (Vec<String>, Completion) {
        let tokenizer = tokenizer();
        let model = Reciter::new(&tokenizer, text);
        let mut pieces = Vec::new();
        let mut completions = stream(&model, &tokenizer, &[Prompt::Text("a")], &options, &mut |piece| {
            pieces.push(piece.text.to_string());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(pieces.concat(), completions[0].text);
        (pieces, completions.remove(0))
    }

    #[test]
    fn characters_split_over_tokens_are_decoded_whole() {
        let text = "naïve 星云 👩‍🚀 done";
        let (pieces, completion) = recite(text, GenerationConfig::greedy(200));
        assert!(
            completion.generation.tokens.len() > text.chars().count(),
            "the text must be made of bytes to test this"
        );
        assert_eq!(completion.text, text);
        assert_eq!(completion.generation.finish, Some(FinishReason::End));
        assert!(pieces.iter().all(|piece| !piece.is_empty() && !piece.contains('\u{FFFD}')));
    }

    #[test]
    fn an_incomplete_character_at_the_end_becomes_a_replacement_character() {
        let (_, completion) = recite("a☃", GenerationConfig::greedy(2));
        assert_eq!(
            (completion.text.as_str(), completion.generation.finish),
            ("a\u{FFFD}", Some(FinishReason::Length))
        );
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_not_part_of_the_text() {
        let options = GenerationConfig {
            stop: vec!["never".into(), "Q: what".into()],
            ..GenerationConfig::greedy(200)
        };
        let (pieces, completion) = recite("the answer Q: where Q: what is it", options);
        assert_eq!(completion.text, "the answer Q: where ");
        assert_eq!(completion.generation.finish, Some(FinishReason::Stopped));
        assert!(pieces.len() > 3, "text before must not wait for the end: {pieces:?}");
        assert!(
            completion.generation.tokens.len()
                < Reciter::new(&tokenizer(), "the answer Q: where Q: what is it").tokens.len()
        );
    }

    #[test]
    fn an_incomplete_stop_string_is_part_of_the_text() {
        let options = GenerationConfig { stop: vec!["###".into()], ..GenerationConfig::greedy(200) };
        let (_, completion) = recite("one ## two #", options);
        assert_eq!(completion.text, "one ## two #");
    }

    #[test]
    fn a_stop_string_may_be_a_special_token() {
        let options = GenerationConfig {
            eos: Some(vec![]),
            stop: vec!["<|endoftext|>".into()],
            ..GenerationConfig::greedy(200)
        };
        let (_, completion) = recite("one two", options);
        assert_eq!(
            (completion.text.as_str(), completion.generation.finish),
            ("one two", Some(FinishReason::End))
        );
    }

    /// Reasoning is between brackets, which are single tokens.
    #[derive(Clone)]
    struct Brackets {
        tokens: [u32; 2],
        channel: OutputChannel,
    }

    impl OutputParser for Brackets {
        fn channel(&mut self, token: u32, _: &Tokenizer) -> OutputChannel {
            match self.tokens.iter().position(|bracket| *bracket == token) {
                None => return self.channel,
                Some(0) => self.channel = OutputChannel::Thought,
                Some(_) => self.channel = OutputChannel::Answer,
            }
            OutputChannel::Silent
        }
    }

    #[test]
    fn reasoning_is_separated_and_stop_strings_ignore_it() {
        let tokenizer = tokenizer();
        let bracket = |text: &str| tokenizer.encode(text, false).unwrap()[0];
        let parser = Brackets { tokens: [bracket("["), bracket("]")], channel: OutputChannel::Answer };
        let model = Reciter::new(&tokenizer, "the sky[never say so ☃]is blue # and never red");
        let options =
            GenerationConfig { stop: vec!["never".into(), "###".into()], ..GenerationConfig::greedy(200) };
        let mut texts = [String::new(), String::new()];
        let made =
            stream_with_parser(&model, &tokenizer, &[Prompt::Text("a")], &options, &parser, &mut |piece| {
                texts[usize::from(piece.thought)] += piece.text;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(texts, ["the skyis blue # and ", "never say so ☃"]);
        assert_eq!([made[0].text.as_str(), made[0].thoughts.as_str()], texts);
        assert_eq!(made[0].generation.finish, Some(FinishReason::Stopped));
    }

    #[test]
    fn breaking_ends_only_the_sequence_of_the_piece() {
        let tokenizer = tokenizer();
        let words = "the stars burned in the galaxy";
        let model = Reciter::new(&tokenizer, words);
        let prompts = [Prompt::Text("a"), Prompt::Ids(&[5, 6])];
        let mut pieces = [0, 0];
        let completions = stream(&model, &tokenizer, &prompts, &GenerationConfig::greedy(99), &mut |piece| {
            pieces[piece.row] += 1;
            if piece.row == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
        assert_eq!(pieces[1], 1);
        assert_eq!(completions[1].generation.finish, Some(FinishReason::Cancelled));
        assert_eq!(completions[0].generation.finish, Some(FinishReason::End));
        assert_eq!(completions[0].text, words);
        assert_eq!(completions[1].generation.prompt_tokens, 2);
    }

    #[test]
    fn concatenated_pieces_equal_the_decoded_text_for_every_tokenizer() {
        for name in ["gpt1", "gpt2", "llama", "t5"] {
            let folder = format!("{}/tests/tokenizers/{name}", env!("CARGO_MANIFEST_DIR"));
            let tokenizer = Tokenizer::from_folder(folder).unwrap();
            for text in ["the stars  burned", " naïve 👩‍🚀 星云", "one\n\n  two\tthree"] {
                let ids = tokenizer.encode(text, true).unwrap();
                let mut detokenizer = tokenizer.detokenizer();
                let mut pieces: String = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
                pieces += &detokenizer.finish().unwrap();
                assert_eq!(pieces, tokenizer.decode(&ids, true).unwrap(), "{name}");
            }
        }
    }
}
