//! OpenFlamingo's prompt format.

use fauna_shared::item::{Image, Item, Prompt, Role};
use fauna_shared::{Error, Result};

use crate::flamingo::prompt::{PLACE, Piece, pictures, pieces};

/// The token that ends the text of an image.
pub(super) const END_OF_CHUNK: &str = "<|endofchunk|>";

/// Formats a prompt as text and its images in order: `<image>` and the text of each image, ended by `<|endofchunk|>` if
/// another image follows. The last text is continued.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for items other than texts and images, if the numbers of images and
/// `<image>`s differ, and for an empty prompt.
pub(super) fn words(prompt: &Prompt) -> Result<(String, Vec<&Image>)> {
    let items: Vec<&[Item]> = match prompt {
        Prompt::Items(items) => vec![items],
        // There is no chat format: the previous turns are examples, the last is continued.
        Prompt::Chat(turns) if turns.iter().any(|turn| turn.role == Role::System) => {
            return Err(Error::input("OpenFlamingo has no system turns: give it images and texts"));
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
        true => Err(Error::input("the prompt is empty")),
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
    fn examples_are_chunks_and_the_last_image_has_no_text() {
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
    fn a_chunk_that_has_its_end_token_gets_no_second_one() {
        let items = vec![image(), "two cats<|endofchunk|>".into(), image(), "An image of".into()];
        assert_eq!(text_of(items), "<image>two cats<|endofchunk|><image>An image of");
    }

    #[test]
    fn an_empty_prompt_is_an_error() {
        assert!(words(&Prompt::Items(Vec::new())).is_err());
    }
}
