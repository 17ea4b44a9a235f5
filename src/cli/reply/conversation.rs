//! Talking: turn by turn until the input ends.

use std::io::{BufRead, IsTerminal, Write};

use fauna::{Error, Pipeline, Prompt, Result, Role, Turn};

use super::Show;
use super::prompts::turn;
use crate::cli::options::Place;

impl Show<'_> {
    /// Turn by turn until the input ends. Ctrl-C ends an answer; at the prompt it ends the program.
    pub fn conversation(&self, model: &dyn Pipeline, system: Option<String>) -> Result<()> {
        let person = std::io::stdin().is_terminal();
        if person {
            self.context.say("/clear starts again, /quit or Ctrl-D ends, Ctrl-C stops an answer");
        }
        let beginning: Vec<Turn> = system.map(|text| turn(Role::System, text)).into_iter().collect();
        let mut turns = beginning.clone();
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
            let stoppable = self.context.interrupt.hold();
            let answer = self.answer(model, &prompt, Place::default())?;
            drop(stoppable);
            self.context.interrupt.clear();
            let text = answer.text().to_string();
            let said = turns.last().cloned().into_iter().collect();
            self.finish(model, &Prompt::Chat(said), answer)?;
            turns.push(turn(Role::Assistant, text));
        }
        Ok(())
    }
}
