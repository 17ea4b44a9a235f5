//! The texts and images of a prompt, in the order of the command line.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, ValueHint, value_parser};
use fauna::{Error, Item, Result};

/// Texts and images of a prompt, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pieces: Vec<Piece>,
}

/// One part of the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Words(String),
    Image(PathBuf),
}

const WORDS: &str = "prompts";
const IMAGE: &str = "image";

impl clap::Args for Given {
    fn augment_args(command: Command) -> Command {
        command
            .arg(
                Arg::new(WORDS)
                    .value_name("PROMPT")
                    .action(ArgAction::Append)
                    .num_args(0..)
                    .help("Prompt; `-` reads standard input. Can be repeated")
                    .long_help(
                        "Prompt; `-` reads standard input. Can be repeated: each is answered by itself. With images, all texts \
                         and images are one prompt, in the order given",
                    ),
            )
            .arg(
                Arg::new(IMAGE)
                    .long(IMAGE)
                    .value_name("FILE")
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(PathBuf))
                    .value_hint(ValueHint::FilePath)
                    .help("Image of the prompt, placed before the text that follows it. Can be repeated"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let words = placed::<String>(matches, WORDS).map(|(place, words)| (place, Piece::Words(words)));
        let images = placed::<PathBuf>(matches, IMAGE).map(|(place, image)| (place, Piece::Image(image)));
        let mut pieces: Vec<(usize, Piece)> = words.chain(images).collect();
        pieces.sort_by_key(|(place, _)| *place);
        Ok(Self { pieces: pieces.into_iter().map(|(_, piece)| piece).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Returns the values of an argument, each with its index on the command line.
fn placed<'a, T: Clone + Send + Sync + 'static>(
    matches: &'a ArgMatches,
    name: &str,
) -> impl Iterator<Item = (usize, T)> + 'a {
    let places = matches.indices_of(name).into_iter().flatten();
    places.zip(matches.get_many::<T>(name).into_iter().flatten().cloned())
}

impl Given {
    /// Returns the texts.
    pub fn words(&self) -> Vec<&str> {
        let words = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Words(words) => Some(words.as_str()),
            Piece::Image(_) => None,
        });
        words.collect()
    }

    /// Returns the files of the images.
    pub fn images(&self) -> Vec<&PathBuf> {
        let images = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Words(_) => None,
            Piece::Image(path) => Some(path),
        });
        images.collect()
    }

    /// Checks the prompt of `--few-shot`: every image but the last must be followed by its text.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input), with an example of such a prompt.
    pub fn check_question(&self) -> Result<()> {
        let two_pictures = |pair: &[Piece]| matches!(pair, [Piece::Image(_), Piece::Image(_)]);
        let wrong = match (self.images().len(), self.pieces.windows(2).any(two_pictures)) {
            (0, _) => "--few-shot needs an image to describe, but none is given",
            (_, true) => "--few-shot: an example image without its text",
            (_, false) => return Ok(()),
        };
        Err(Error::input(wrong).hint(
            "each example is an image followed by its text, and the query an image: \
             --image a.png \"two cats\" --image b.png \"three dogs\" --image c.png --few-shot",
        ))
    }

    /// Returns the items in order: `words` makes an item of a text, `image` of a file.
    ///
    /// # Errors
    /// The first error of `words` or `image`.
    pub fn items(
        &self,
        words: impl Fn(&str) -> Result<String>,
        image: impl Fn(&PathBuf) -> Result<Item>,
    ) -> Result<Vec<Item>> {
        let item = |piece: &Piece| match piece {
            Piece::Words(text) => words(text).map(Item::Text),
            Piece::Image(path) => image(path),
        };
        self.pieces.iter().map(item).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        source: String,
        #[command(flatten)]
        given: Given,
        #[arg(long)]
        few_shot: bool,
    }

    fn given(line: &str) -> Given {
        Line::try_parse_from(["run", "model"].into_iter().chain(line.split(' '))).unwrap().given
    }

    fn order(given: &Given) -> Vec<String> {
        let name = |piece: &Piece| match piece {
            Piece::Words(words) => words.clone(),
            Piece::Image(path) => path.display().to_string(),
        };
        given.pieces.iter().map(name).collect()
    }

    #[test]
    fn texts_and_images_keep_their_order() {
        let line = "--image a.png two --image b.png three --image c.png --few-shot";
        assert_eq!(order(&given(line)), ["a.png", "two", "b.png", "three", "c.png"]);
        assert_eq!(
            order(&given("first --image=a.png --image b.png last")),
            ["first", "a.png", "b.png", "last"]
        );
        let line = Line::try_parse_from(["run", "model", "--few-shot"]).unwrap();
        assert!(line.few_shot && line.source == "model" && line.given == Given::default());
    }

    #[test]
    fn few_shot_needs_an_image_and_a_text_per_example() {
        assert!(given("--image a.png two --image b.png").check_question().is_ok());
        let none = given("two").check_question().unwrap_err().to_string();
        assert!(none.contains("none is given"), "{none}");
        let bare = given("--image a.png --image b.png").check_question().unwrap_err().to_string();
        assert!(bare.contains("without its text") && bare.contains("--few-shot"), "{bare}");
    }
}
