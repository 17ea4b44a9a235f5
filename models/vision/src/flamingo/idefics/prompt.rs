//! IDEFICS' prompt format.

use fauna_shared::item::{Image, Prompt, Role};
use fauna_shared::{Error, Result};

use crate::flamingo::prompt::{PLACE, Piece, pictures, pieces};

/// The token around an image, or around several consecutive images.
pub(super) const AROUND: &str = "<fake_token_around_image>";

/// The token that ends a turn, in the instruct releases.
pub(super) const END_OF_TURN: &str = "<end_of_utterance>";

/// The separator of examples.
const BETWEEN: &str = "\n\n";

/// A formatted prompt.
#[derive(Debug, PartialEq)]
pub(super) struct Words<'a> {
    pub text: String,
    /// The images, in order.
    pub pictures: Vec<&'a Image>,
    /// Stop strings.
    pub stop: Vec<String>,
}

/// Formats `prompt`; `turns_end`: whether the release has an end-of-turn token; `asks`: whether a conversation is followed
/// by the beginning of the assistant's turn.
///
/// A chat is formatted by its turns; a prompt that contains `Assistant:` is used as it is. Items that end with a text
/// are one user turn; items that end with an image are few-shot examples, the last without its text.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for items other than texts and images, if the numbers of images and
/// `<image>`s differ, and for an empty prompt.
pub(super) fn words(prompt: &Prompt, turns_end: bool, asks: bool) -> Result<Words<'_>> {
    let end = if turns_end { END_OF_TURN } else { "" };
    let mut words = Words { text: String::new(), pictures: Vec::new(), stop: Vec::new() };
    match prompt {
        Prompt::Items(items) => {
            let pieces = pieces(items)?;
            match pieces.last() {
                None => return Err(Error::input("the prompt is empty")),
                _ if pieces.iter().any(is_spelled) => {
                    words.say(&pieces, "");
                    words.stop.push("\nUser:".to_string());
                }
                Some(Piece::Picture(_)) => {
                    words.say(&pieces, BETWEEN);
                    words.stop.push(BETWEEN.to_string());
                }
                Some(Piece::Text(_)) => {
                    words.turn("User:", &pieces, end);
                    words.answer(asks);
                }
            }
        }
        Prompt::Chat(turns) => {
            for (i, turn) in turns.iter().enumerate() {
                let pieces = pieces(&turn.items)?;
                match turn.role {
                    Role::System if i == 0 => words.turn("", &pieces, ""),
                    Role::System => return Err(Error::input("a system turn must be the first turn")),
                    Role::User => words.turn("User:", &pieces, end),
                    Role::Assistant => words.turn("Assistant:", &pieces, end),
                }
            }
            words.answer(asks);
        }
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
    }
    Ok(words)
}

/// Whether a piece has the words of the conversation in it.
fn is_spelled(piece: &Piece) -> bool {
    matches!(piece, Piece::Text(text) if text.contains("Assistant:"))
}

/// How an answer follows a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// As a turn of its own.
    Turn,
    /// After a space, in the turn that the prompt begins.
    Space,
    /// Right after the image.
    Image,
}

impl Follows {
    /// How the answer of `prompt` follows it.
    pub(super) fn of(prompt: &Prompt) -> Result<Self> {
        let Prompt::Items(items) = prompt else { return Ok(Self::Turn) };
        let pieces = pieces(items)?;
        Ok(match pieces.last() {
            _ if pieces.iter().any(is_spelled) => Self::Space,
            Some(Piece::Picture(_)) => Self::Image,
            _ => Self::Turn,
        })
    }
}

impl<'a> Words<'a> {
    /// Appends pieces, with `between` before an image that follows a text. Consecutive images share the tokens between
    /// them.
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

    /// Begins the assistant's turn, if `asks`.
    fn answer(&mut self, asks: bool) {
        if asks {
            self.text.push_str("\nAssistant:");
        }
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
        words(prompt, turns_end, true).unwrap().text.replace(AROUND, "|").replace(PLACE, "*")
    }

    #[test]
    fn a_question_is_a_user_turn() {
        let prompt = Prompt::Items(vec![image(), "Describe this image.".into()]);
        assert_eq!(text_of(&prompt, false), "User:|*|Describe this image.\nAssistant:");
        assert_eq!(text_of(&prompt, true), "User:|*|Describe this image.<end_of_utterance>\nAssistant:");
        let plain = Prompt::from("Who are you?");
        assert_eq!(text_of(&plain, false), "User: Who are you?\nAssistant:");
    }

    #[test]
    fn examples_end_with_an_image_without_text() {
        let prompt = Prompt::Items(vec![image(), "two cats".into(), image(), image()]);
        assert_eq!(text_of(&prompt, false), "|*|two cats\n\n|*|*|");
        assert_eq!(words(&prompt, false, true).unwrap().pictures.len(), 3);
    }

    #[test]
    fn a_prompt_with_its_own_turns_is_used_as_it_is() {
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
    fn an_empty_prompt_is_an_error() {
        assert!(words(&Prompt::Items(Vec::new()), false, true).is_err());
    }
}
