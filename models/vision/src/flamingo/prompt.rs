//! Interleaved images and texts, for the prompts of both families.

use fauna_shared::Result;
use fauna_shared::item::{Image, Item};

use super::sight::too_few;
use fauna_shared::Error;

/// The token of an image in a text.
pub(crate) const PLACE: &str = "<image>";

/// A part of a prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Picture(&'a Image),
}

/// Texts and images in order. If the texts contain `<image>`, the images go there instead.
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for other items, and if the numbers of images and `<image>`s differ.
pub(crate) fn pieces(items: &[Item]) -> Result<Vec<Piece<'_>>> {
    let mut in_order = Vec::with_capacity(items.len());
    for item in items {
        in_order.push(match item {
            Item::Image(image) => Piece::Picture(image),
            Item::Text(text) => Piece::Text(text),
            other => {
                let other = other.modality();
                return Err(Error::input(format!("this model takes text and images, not {other}")));
            }
        });
    }
    let texts = || {
        in_order.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(*text),
            Piece::Picture(_) => None,
        })
    };
    let places: usize = texts().map(|text| text.matches(PLACE).count()).sum();
    if places == 0 {
        return Ok(in_order);
    }
    let mut pictures = in_order.iter().filter(|piece| matches!(piece, Piece::Picture(_)));
    let count = pictures.clone().count();
    if places > count {
        return Err(too_few(places, count));
    }
    if places < count {
        return Err(Error::input(format!("{count} images for {places} <image> tokens"))
            .hint("give one <image> per image, in order, or none: it is added for each image"));
    }
    let mut placed = Vec::with_capacity(2 * count);
    for text in texts() {
        for (i, part) in text.split(PLACE).enumerate() {
            if i > 0 {
                placed.extend(pictures.next());
            }
            if !part.is_empty() {
                placed.push(Piece::Text(part));
            }
        }
    }
    Ok(placed)
}

/// The images among `pieces`, in order.
pub(crate) fn pictures<'a>(pieces: &[Piece<'a>]) -> Vec<&'a Image> {
    let picture = |piece: &Piece<'a>| match piece {
        Piece::Picture(image) => Some(*image),
        Piece::Text(_) => None,
    };
    pieces.iter().filter_map(picture).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(level: u8) -> Item {
        Item::Image(Image { width: 1, height: 1, rgb: vec![level; 3] })
    }

    #[test]
    fn images_go_to_the_image_tokens_of_a_text() {
        let items = [image(1), image(2), "one: <image>, two: <image>.".into()];
        let pieces = pieces(&items).unwrap();
        let shown: Vec<String> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.to_string(),
                Piece::Picture(image) => image.rgb[0].to_string(),
            })
            .collect();
        assert_eq!(shown, ["one: ", "1", ", two: ", "2", "."]);
    }

    #[test]
    fn the_numbers_of_images_and_image_tokens_must_be_equal() {
        let more = pieces(&[image(1), image(2), "<image>".into()]).unwrap_err().to_string();
        assert!(more.contains("2 images for 1 <image> tokens"), "{more}");
        let fewer = pieces(&[image(1), "<image><image>".into()]).unwrap_err().to_string();
        assert!(fewer.contains("2 <image> tokens for 1 images"), "{fewer}");
        let none = pieces(&["<image>What is it?".into()]).unwrap_err().to_string();
        assert!(none.contains("1 <image> tokens for 0 images"), "{none}");
    }
}
