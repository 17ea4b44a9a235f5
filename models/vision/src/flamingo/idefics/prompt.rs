//! The words around pictures and questions, as IDEFICS was trained on them.

use fauna_shared::item::{Image, Prompt, Role};
use fauna_shared::{Error, Result};

use crate::flamingo::prompt::{PLACE, Piece, pictures, pieces};

/// What stands around a picture, or a row of them.
pub(super) const AROUND: &str = "<fake_token_around_image>";

/// What ends a turn in the releases that were trained on conversations.
pub(super) const END_OF_TURN: &str = "<end_of_utterance>";

/// What stands between examples.
const BETWEEN: &str = "\n\n";

/// A prompt in words.
#[derive(Debug, PartialEq)]
pub(super) struct Words<'a> {
    pub text: String,
    /// In the order of their places.
    pub pictures: Vec<&'a Image>,
    /// Strings at which an answer is over.
    pub stop: Vec<String>,
}

/// `prompt` in words; `turns_end` if the release marks the end of a turn.
///
/// A conversation has its turns; a prompt that spells them itself (`User:`, `Assistant:`) is read as it is. Items that
/// end in a text are one turn, a question; items that end in a picture are examples, the last of which lacks its text.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for items that are neither text nor picture, for other than one picture a
/// place, and for a prompt that asks nothing.
pub(super) fn words(prompt: &Prompt, turns_end: bool) -> Result<Words<'_>> {
    let end = if turns_end { END_OF_TURN } else { "" };
    let mut words = Words { text: String::new(), pictures: Vec::new(), stop: Vec::new() };
    match prompt {
        Prompt::Items(items) => {
            let pieces = pieces(items)?;
            let spelled = |piece: &Piece| matches!(piece, Piece::Text(text) if text.contains("Assistant:"));
            match pieces.last() {
                None => return Err(Error::input("a prompt without words or pictures")),
                _ if pieces.iter().any(spelled) => {
                    words.say(&pieces, "");
                    words.stop.push("\nUser:".to_string());
                }
                Some(Piece::Picture(_)) => {
                    words.say(&pieces, BETWEEN);
                    words.stop.push(BETWEEN.to_string());
                }
                Some(Piece::Text(_)) => {
                    words.turn("User:", &pieces, end);
                    words.answer();
                }
            }
        }
        Prompt::Chat(turns) => {
            for (i, turn) in turns.iter().enumerate() {
                let pieces = pieces(&turn.items)?;
                match turn.role {
                    Role::System if i == 0 => words.turn("", &pieces, ""),
                    Role::System => return Err(Error::input("a system turn stands first or not at all")),
                    Role::User => words.turn("User:", &pieces, end),
                    Role::Assistant => words.turn("Assistant:", &pieces, end),
                }
            }
            words.answer();
        }
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
    }
    Ok(words)
}

impl<'a> Words<'a> {
    /// Pieces one after the other, with `between` before a picture that begins anew after a text. Pictures in a row share
    /// what stands between them.
    fn say(&mut self, pieces: &[Piece<'a>], between: &str) {
        let mut last = None;
        for piece in pieces {
            match (piece, last) {
                (Piece::Text(text), _) => self.text.push_str(text.trim_matches(' ')),
                (Piece::Picture(_), Some(Piece::Picture(_))) => {
                    self.text.extend([PLACE, AROUND]);
                }
                (Piece::Picture(_), before) => {
                    if before.is_some() && !self.text.ends_with('\n') {
                        self.text.push_str(between);
                    }
                    self.text.extend([AROUND, PLACE, AROUND]);
                }
            }
            last = Some(*piece);
        }
        self.pictures.extend(pictures(pieces));
    }

    fn turn(&mut self, who: &str, pieces: &[Piece<'a>], end: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(who);
        if !who.is_empty() && matches!(pieces.first(), Some(Piece::Text(_))) {
            self.text.push(' ');
        }
        self.say(pieces, "");
        self.text.push_str(end);
    }

    /// The model's turn begins.
    fn answer(&mut self) {
        self.text.push_str("\nAssistant:");
        self.stop.push("\nUser:".to_string());
    }
}

#[cfg(test)]
mod tests {
    use fauna_shared::item::{Item, Turn};

    use super::*;

    fn image() -> Item {
        Item::Image(Image { width: 1, height: 1, rgb: vec![0; 3] })
    }

    fn text_of(prompt: &Prompt, turns_end: bool) -> String {
        words(prompt, turns_end).unwrap().text.replace(AROUND, "|").replace(PLACE, "*")
    }

    #[test]
    fn a_question_is_a_turn() {
        let prompt = Prompt::Items(vec![image(), "Describe this image.".into()]);
        assert_eq!(text_of(&prompt, false), "User:|*|Describe this image.\nAssistant:");
        assert_eq!(text_of(&prompt, true), "User:|*|Describe this image.<end_of_utterance>\nAssistant:");
        let plain = Prompt::from("Who are you?");
        assert_eq!(text_of(&plain, false), "User: Who are you?\nAssistant:");
    }

    #[test]
    fn examples_end_with_the_picture_that_lacks_its_text() {
        let prompt = Prompt::Items(vec![image(), "two cats".into(), image(), image()]);
        assert_eq!(text_of(&prompt, false), "|*|two cats\n\n|*|*|");
        assert_eq!(words(&prompt, false).unwrap().pictures.len(), 3);
    }

    #[test]
    fn what_spells_its_turns_is_read_as_it_is() {
        let prompt = Prompt::Items(vec![
            "User:".into(),
            image(),
            "Describe it.\nAssistant: Two kittens.\n".into(),
            "User:".into(),
            image(),
            "Describe it.\nAssistant:".into(),
        ]);
        let text = "User:|*|Describe it.\nAssistant: Two kittens.\nUser:|*|Describe it.\nAssistant:";
        assert_eq!(text_of(&prompt, false), text);
    }

    #[test]
    fn a_conversation_keeps_its_turns() {
        let turn = |role, items| Turn { role, items };
        let chat = Prompt::Chat(vec![
            turn(Role::User, vec!["What is this?".into(), image()]),
            turn(Role::Assistant, vec!["A dog.".into()]),
            turn(Role::User, vec![image(), "And this?".into()]),
        ]);
        assert_eq!(
            text_of(&chat, true),
            "User: What is this?|*|<end_of_utterance>\nAssistant: A dog.<end_of_utterance>\n\
             User:|*|And this?<end_of_utterance>\nAssistant:"
        );
    }

    #[test]
    fn a_prompt_of_nothing_is_an_error() {
        assert!(words(&Prompt::Items(Vec::new()), false).is_err());
    }
}
