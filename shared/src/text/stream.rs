//! Text from a model as it is made: whole characters, right spacing, nothing of a stop string.

use std::ops::ControlFlow;

use super::Tokenizer;
use crate::generate::{Decoder, FinishReason, Generation, GenerationConfig, Stop, generate};
use crate::{Error, Result};

/// What a model is to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// Text, to be tokenised with the release's special tokens.
    Text(&'a str),
    /// Text that already holds its special tokens, as chat templates write it.
    Chat(&'a str),
    /// Token ids, taken as they are.
    Ids(&'a [u32]),
}

/// A piece of text that has just become certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The prompt it continues.
    pub row: usize,
    /// The text, never empty.
    pub text: &'a str,
    /// Whether it belongs to the answer, or to what the model says to itself.
    pub thought: bool,
}

/// Whom a new token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputChannel {
    /// Whoever asked.
    Answer,
    /// The model itself.
    Thought,
    /// No one: it says what comes next.
    Silent,
}

/// Tells the answer from what else a model writes around it. Each row has one of its own.
pub trait OutputParser: Clone {
    /// Whom `token` is for, the next of its row.
    fn hear(&mut self, token: u32, tokenizer: &Tokenizer) -> OutputChannel;
}

/// Hears an answer in every token.
#[derive(Clone)]
struct EveryToken;

impl OutputParser for EveryToken {
    fn hear(&mut self, _: u32, _: &Tokenizer) -> OutputChannel {
        OutputChannel::Answer
    }
}

/// All that continued one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The text, without special tokens and without a stop string.
    pub text: String,
    /// What the model said to itself, as far as a [`OutputParser`] told it apart.
    pub thoughts: String,
    /// Why it ended, its tokens (those of an end token and of a stop string included), and what it took.
    pub generation: Generation,
}

/// Continues `prompts`, all at once, and calls `each` with every piece of text as soon as it is certain.
///
/// What `options` leaves open (`eos`, `pad`) is the tokenizer's. A piece is held back while it may be part of a
/// character or the beginning of a stop string, so the pieces of a row put together are its completion's text.
/// `each` ends the row of its piece by breaking. A stop string that is a special token ends a row as an end token does.
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
    stream_heard(model, tokenizer, prompts, options, &EveryToken, each)
}

/// As [`stream`], with `listener` to tell the answer from what is none. Stop strings are looked for in the answer.
///
/// # Errors
/// As [`generate`].
pub fn stream_heard<D: Decoder + ?Sized, L: OutputParser>(
    model: &D,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    options: &GenerationConfig,
    listener: &L,
    each: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    let prompts: Result<Vec<Vec<u32>>> = prompts.iter().map(|prompt| prompt_ids(tokenizer, prompt)).collect();
    let prompts = prompts?;
    let special = tokenizer.special();
    let mut eos = options.eos.clone().unwrap_or_else(|| special.eos.clone());
    // A special token gives no text in which a stop string could be found.
    eos.extend(options.stop.iter().filter_map(|stop| tokenizer.special_id(stop)));
    let options = GenerationConfig { eos: Some(eos), pad: options.pad.or(special.pad), ..options.clone() };
    let mut rows: Vec<Row<L>> = prompts.iter().map(|_| Row::new(tokenizer, &options, listener)).collect();
    let mut failed: Option<Error> = None;
    let made = generate(model, &prompts, &options, &mut |new| {
        let row = &mut rows[new.row];
        let end = new.finish == Some(FinishReason::End);
        let said = match row.push(if end { None } else { Some(new.token) }, new.finish.is_some()) {
            Ok(said) => said,
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(Stop::All);
            }
        };
        for (text, thought) in said {
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
        // An empty text of a model without a begin token: the end token is what such models begin with.
        Prompt::Text(text) => tokenizer.encode(text, true).map(|ids| match ids.is_empty() {
            true => tokenizer.special().bos.or(tokenizer.end_token()).into_iter().collect(),
            false => ids,
        }),
    }
}

/// One row's way from tokens to certain text.
struct Row<'a, L> {
    tokenizer: &'a Tokenizer,
    listener: L,
    voice: OutputChannel,
    detokenizer: Detokenizer<'a>,
    stop: StopStrings<'a>,
    text: String,
    thoughts: String,
}

impl<'a, L: OutputParser> Row<'a, L> {
    fn new(tokenizer: &'a Tokenizer, options: &'a GenerationConfig, listener: &L) -> Self {
        Self {
            tokenizer,
            listener: listener.clone(),
            voice: OutputChannel::Answer,
            detokenizer: tokenizer.detokenizer(),
            stop: StopStrings::new(&options.stop),
            text: String::new(),
            thoughts: String::new(),
        }
    }

    /// What has become certain with `token`, or with the end of the row, and whether it is thought.
    fn push(&mut self, token: Option<u32>, last: bool) -> Result<[(String, bool); 2]> {
        let mut before = (String::new(), false);
        let mut text = String::new();
        if let Some(token) = token {
            let voice = self.listener.hear(token, self.tokenizer);
            if voice != self.voice {
                // What the voice before had left to say.
                before = self.say(self.detokenizer.clone().finish()?);
                self.detokenizer = self.tokenizer.detokenizer();
                self.voice = voice;
            }
            if voice != OutputChannel::Silent {
                text = self.detokenizer.push(token)?;
            }
        }
        if last {
            text += &self.detokenizer.finish()?;
        }
        let mut now = self.say(text);
        if last {
            let rest = self.stop.finish();
            self.text += &rest;
            match now.1 {
                // Held back from an answer that a thought came after.
                true => before.0 += &rest,
                false => now.0 += &rest,
            }
        }
        Ok([before, now])
    }

    /// What of `text` is certain, and whether it is thought.
    fn say(&mut self, text: String) -> (String, bool) {
        match self.voice {
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

/// Turns tokens into text one by one. The pieces put together are what decoding all tokens at once gives.
#[derive(Debug, Clone)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens that gave text, then those that have not yet.
    ids: Vec<u32>,
    /// How many of `ids` have given their text.
    told: usize,
}

impl Tokenizer {
    /// A detokeniser for one row of new tokens; special tokens give no text.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer { tokenizer: self, ids: Vec::new(), told: 0 }
    }
}

impl Detokenizer<'_> {
    /// The text that has become certain with `token`; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.ids.push(token);
        self.advance(false)
    }

    /// What is left: an incomplete character as U+FFFD.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, all: bool) -> Result<String> {
        // Spacing depends on the tokens before, so those of the last piece are decoded again.
        let before = self.tokenizer.decode(&self.ids[..self.told], true)?;
        let now = self.tokenizer.decode(&self.ids, true)?;
        // Any token adds at most three bytes to a character it does not complete; longer runs are not UTF-8.
        let waiting = self.ids.len() - self.told;
        if now.len() <= before.len() || (now.ends_with('\u{FFFD}') && !all && waiting < 16) {
            return Ok(String::new());
        }
        let text = match now.strip_prefix(&before) {
            Some(text) => text.to_string(),
            // A decoder that tidies white space changed what was told: the new part starts where they part.
            None => {
                let same = before.chars().zip(now.chars()).take_while(|(a, b)| a == b);
                now[same.map(|(c, _)| c.len_utf8()).sum()..].to_string()
            }
        };
        self.ids.drain(..self.told);
        self.told = self.ids.len();
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

    /// The text that is certain now that `text` has come; all before the first stop string if it is there.
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

    /// What was held back and turned out to be text.
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

    /// Says a fixed text, whatever the prompt, then the end token.
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
        fn step(&self, tokens: &Tokens, said: &mut usize) -> Result<Tensor> {
            let mut row = vec![0f32; self.vocabulary];
            row[self.tokens[*said] as usize] = 1.0;
            *said += 1;
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
    fn characters_split_over_tokens_come_whole() {
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
    fn an_incomplete_character_at_the_end_is_told_as_such() {
        let (_, completion) = recite("a☃", GenerationConfig::greedy(2));
        assert_eq!(
            (completion.text.as_str(), completion.generation.finish),
            ("a\u{FFFD}", Some(FinishReason::Length))
        );
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_never_shown() {
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
    fn the_beginning_of_a_stop_string_is_text_if_the_rest_never_comes() {
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

    /// Hears a thought between brackets, which are tokens of their own.
    #[derive(Clone)]
    struct Brackets {
        tokens: [u32; 2],
        voice: OutputChannel,
    }

    impl OutputParser for Brackets {
        fn hear(&mut self, token: u32, _: &Tokenizer) -> OutputChannel {
            match self.tokens.iter().position(|bracket| *bracket == token) {
                None => return self.voice,
                Some(0) => self.voice = OutputChannel::Thought,
                Some(_) => self.voice = OutputChannel::Answer,
            }
            OutputChannel::Silent
        }
    }

    #[test]
    fn thoughts_are_told_apart_and_stop_nothing() {
        let tokenizer = tokenizer();
        let bracket = |text: &str| tokenizer.encode(text, false).unwrap()[0];
        let listener = Brackets { tokens: [bracket("["), bracket("]")], voice: OutputChannel::Answer };
        let model = Reciter::new(&tokenizer, "the sky[never say so ☃]is blue # and never red");
        let options =
            GenerationConfig { stop: vec!["never".into(), "###".into()], ..GenerationConfig::greedy(200) };
        let mut told = [String::new(), String::new()];
        let made =
            stream_heard(&model, &tokenizer, &[Prompt::Text("a")], &options, &listener, &mut |piece| {
                told[usize::from(piece.thought)] += piece.text;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(told, ["the skyis blue # and ", "never say so ☃"]);
        assert_eq!([made[0].text.as_str(), made[0].thoughts.as_str()], told);
        assert_eq!(made[0].generation.finish, Some(FinishReason::Stopped));
    }

    #[test]
    fn breaking_ends_the_row_of_the_piece_alone() {
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
    fn pieces_put_together_are_the_whole_for_every_kind_of_tokenizer() {
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
