//! LLark's prompt format.

use fauna_shared::item::{Item, Prompt, Role, Sound};
use fauna_shared::{Error, Result};

/// The default system prompt.
const HEADER: &str = "A chat between a curious human and an artificial intelligence assistant. The assistant gives \
                      helpful, detailed, and polite answers to the human's questions.";

/// The separator of turns, a stop string.
pub const TURN: &str = "###";

/// A formatted prompt with at most one sound.
#[derive(Debug, PartialEq)]
pub struct Words<'a> {
    /// The text before the sound, or the whole text without a sound.
    pub before: String,
    /// The sound and the text after it.
    pub sound: Option<(&'a Sound, String)>,
}

/// Formats `prompt`: items are one user turn.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for items other than texts and sounds, for several sounds, and for an
/// empty turn.
pub fn words(prompt: &Prompt) -> Result<Words<'_>> {
    let mut words = Words { before: String::new(), sound: None };
    match prompt {
        Prompt::Items(items) => {
            words.say(&format!("{HEADER}\n\n"));
            words.turn("Human", items)?;
        }
        Prompt::Chat(turns) => {
            let (header, turns) = match &turns[..] {
                [first, rest @ ..] if first.role == Role::System => (texts(&first.items)?, rest),
                all => (HEADER.to_string(), all),
            };
            words.say(&format!("{header}\n\n"));
            for turn in turns {
                match turn.role {
                    Role::User => words.turn("Human", &turn.items)?,
                    Role::Assistant => words.turn("Assistant", &turn.items)?,
                    Role::System => return Err(Error::input("a system turn must be the first turn")),
                }
            }
        }
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
    }
    words.say(&format!("{TURN} Assistant:"));
    Ok(words)
}

fn texts(items: &[Item]) -> Result<String> {
    Ok(items.iter().map(Item::text).collect::<Result<Vec<_>>>()?.concat())
}

impl<'a> Words<'a> {
    fn say(&mut self, text: &str) {
        match &mut self.sound {
            Some((_, after)) => after.push_str(text),
            None => self.before.push_str(text),
        }
    }

    /// Appends a turn: texts, and the sound on its own line.
    fn turn(&mut self, who: &str, items: &'a [Item]) -> Result<()> {
        if items.is_empty() {
            return Err(Error::input("a turn is empty"));
        }
        self.say(&format!("{TURN} {who}: "));
        let is_sound = |item: &Item| matches!(item, Item::Sound(_));
        for (i, item) in items.iter().enumerate() {
            if i > 0 && (is_sound(item) || is_sound(&items[i - 1])) {
                self.say("\n");
            }
            match item {
                Item::Sound(_) if self.sound.is_some() => {
                    return Err(Error::input("several sounds in one prompt: LLark takes one"));
                }
                Item::Sound(sound) => self.sound = Some((sound, String::new())),
                other => {
                    let text = other.text()?;
                    self.say(text);
                }
            }
        }
        self.say("\n");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fauna_shared::item::Turn;

    use super::*;

    fn sound() -> Item {
        Item::Sound(Sound { rate: 8000, channels: vec![vec![0.5]] })
    }

    #[test]
    fn a_question_about_a_sound_is_put_as_in_training() {
        let prompt = Prompt::Items(vec![sound(), "What is the tempo?".into()]);
        let words = words(&prompt).unwrap();
        assert_eq!(
            words.before,
            "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, \
             detailed, and polite answers to the human's questions.\n\n### Human: "
        );
        assert_eq!(words.sound.unwrap().1, "\nWhat is the tempo?\n### Assistant:");
    }

    #[test]
    fn the_sound_may_come_last_or_not_at_all() {
        let prompt = Prompt::Items(vec!["Describe this.".into(), sound()]);
        let after = words(&prompt).unwrap();
        assert!(after.before.ends_with("\n\n### Human: Describe this.\n"));
        assert_eq!(after.sound.unwrap().1, "\n### Assistant:");
        let plain = Prompt::from("What is a fugue?");
        assert!(words(&plain).unwrap().before.ends_with("### Human: What is a fugue?\n### Assistant:"));
    }

    #[test]
    fn a_conversation_keeps_its_turns_and_its_one_sound() {
        let turn = |role, items| Turn { role, items };
        let chat = Prompt::Chat(vec![
            turn(Role::User, vec![sound(), "Fast?".into()]),
            turn(Role::Assistant, vec!["Slow.".into()]),
            turn(Role::User, vec!["How slow?".into()]),
        ]);
        let after = words(&chat).unwrap().sound.unwrap().1;
        assert_eq!(after, "\nFast?\n### Assistant: Slow.\n### Human: How slow?\n### Assistant:");
        let two = Prompt::Items(vec![sound(), sound()]);
        assert!(words(&two).unwrap_err().to_string().contains("several sounds"));
    }
}
