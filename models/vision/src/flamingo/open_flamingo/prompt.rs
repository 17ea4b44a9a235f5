//! The words between pictures, as OpenFlamingo was trained on them.

use fauna_shared::item::{Image, Item, Prompt, Role};
use fauna_shared::{Error, Result};

use crate::flamingo::prompt::{PLACE, Piece, pictures, pieces};

/// What ends the text of a picture.
pub(super) const END_OF_CHUNK: &str = "<|endofchunk|>";

/// A prompt in words, and its pictures in the order of their places: `<image>` and a text for each picture, ended by
/// `<|endofchunk|>` where another picture follows. What comes last is continued.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for items that are neither text nor picture, for other than one picture a
/// place, and for a prompt of nothing.
pub(super) fn words(prompt: &Prompt) -> Result<(String, Vec<&Image>)> {
    let items: Vec<&[Item]> = match prompt {
        Prompt::Items(items) => vec![items],
        // The release knows no turns: what was said is examples, what is asked comes last.
        Prompt::Chat(turns) if turns.iter().any(|turn| turn.role == Role::System) => {
            return Err(Error::input("a system turn: OpenFlamingo knows pictures and texts, and no roles"));
        }
        Prompt::Chat(turns) => turns.iter().map(|turn| turn.items.as_slice()).collect(),
        Prompt::Infill { .. } => return Err(Prompt::no_infill()),
    };
    let pieces: Vec<Piece> =
        items.into_iter().map(pieces).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let mut text = String::new();
    for (i, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Text(words) => text.push_str(words),
            Piece::Picture(_) => {
                let ends = matches!(pieces.get(i.wrapping_sub(1)), Some(Piece::Text(_)));
                if ends && !text.ends_with(END_OF_CHUNK) {
                    text.push_str(END_OF_CHUNK);
                }
                text.push_str(PLACE);
            }
        }
    }
    match text.is_empty() {
        true => Err(Error::input("a prompt without words or pictures")),
        false => Ok((text, pictures(&pieces))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Item {
        Item::Image(Image { width: 1, height: 1, rgb: vec![0; 3] })
    }

    fn text_of(items: Vec<Item>) -> String {
        words(&Prompt::Items(items)).unwrap().0
    }

    #[test]
    fn examples_are_chunks_and_the_last_picture_waits_for_its_text() {
        let items = vec![image(), "two cats".into(), image(), "three dogs".into(), image()];
        assert_eq!(text_of(items), "<image>two cats<|endofchunk|><image>three dogs<|endofchunk|><image>");
    }

    #[test]
    fn the_last_text_is_continued() {
        let items = vec![image(), image(), "Question: how many? Short answer:".into()];
        assert_eq!(text_of(items), "<image><image>Question: how many? Short answer:");
        assert_eq!(text_of(vec!["Output:".into()]), "Output:");
    }

    #[test]
    fn a_chunk_that_is_ended_is_not_ended_twice() {
        let items = vec![image(), "two cats<|endofchunk|>".into(), image(), "An image of".into()];
        assert_eq!(text_of(items), "<image>two cats<|endofchunk|><image>An image of");
    }

    #[test]
    fn a_prompt_of_nothing_is_an_error() {
        assert!(words(&Prompt::Items(Vec::new())).is_err());
    }
}
