//! Interactive chat.

use std::io::{BufRead, IsTerminal, Write};

use fauna::{Error, Pipeline, Prompt, Result, Role, Session};

use super::prompts::turn;
use super::{Answer, Show};
use crate::cli::options::Place;

impl Show<'_> {
    /// Chats until the input ends. Ctrl-C stops an answer; at the prompt it ends the program.
    pub fn conversation(&self, model: &dyn Pipeline, system: Option<String>) -> Result<()> {
        let person = std::io::stdin().is_terminal();
        if person {
            self.context
                .say("/clear to start a new conversation, /quit or Ctrl-D to exit, Ctrl-C to stop an answer");
        }
        let mut session = match system {
            Some(text) => Session::new(model).with_system(text),
            None => Session::new(model),
        };
        let beginning = session.turns().len();
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
                self.context.complain("standard input: the line is not valid UTF-8 and was ignored");
                continue;
            };
            let words = match line.trim() {
                "" => continue,
                "/quit" | "/exit" => break,
                "/clear" => {
                    session.truncate(beginning)?;
                    continue;
                }
                words => words,
            };
            let answer = Answer::new(self.context, Place::default(), !self.context.globals.json);
            let mut answer = answer.with_thoughts_shown(self.thoughts);
            let mut wrong = None;
            let stoppable = self.context.interrupt.hold();
            session.say(words, &self.config(), &mut |item| {
                wrong = answer.take(item).err();
                self.flow(wrong.is_some())
            })?;
            wrong.map_or(Ok(()), Err)?;
            answer.close()?;
            drop(stoppable);
            self.context.interrupt.clear();
            self.finish(model, &Prompt::Chat(vec![turn(Role::User, words.to_string())]), answer)?;
        }
        Ok(())
    }
}
