//! The words and pictures of a prompt, in the order in which they stand on the command line.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, ValueHint, value_parser};
use fauna::{Error, Item, Result};

/// Words and pictures as they were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pieces: Vec<Piece>,
}

/// One argument of the prompt.
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
                    .help("The prompt, or several; `-` reads standard input")
                    .long_help(
                        "The prompt, or several; `-` reads standard input. With pictures all words are one prompt, in \
                         the order given",
                    ),
            )
            .arg(
                Arg::new(IMAGE)
                    .long(IMAGE)
                    .value_name("FILE")
                    .action(ArgAction::Append)
                    .value_parser(value_parser!(PathBuf))
                    .value_hint(ValueHint::FilePath)
                    .help("A picture of the prompt, before the words that follow it; may be given more than once"),
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

/// The values of an argument, each with its place on the command line.
fn placed<'a, T: Clone + Send + Sync + 'static>(
    matches: &'a ArgMatches,
    name: &str,
) -> impl Iterator<Item = (usize, T)> + 'a {
    let places = matches.indices_of(name).into_iter().flatten();
    places.zip(matches.get_many::<T>(name).into_iter().flatten().cloned())
}

impl Given {
    /// The words alone.
    pub fn words(&self) -> Vec<&str> {
        let words = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Words(words) => Some(words.as_str()),
            Piece::Image(_) => None,
        });
        words.collect()
    }

    /// The files of the pictures alone.
    pub fn images(&self) -> Vec<&PathBuf> {
        let images = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Words(_) => None,
            Piece::Image(path) => Some(path),
        });
        images.collect()
    }

    /// Refuses `--few-shot` where an example lacks its text, or there is no picture to ask about.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) that says how such a prompt looks.
    pub fn check_question(&self) -> Result<()> {
        let two_pictures = |pair: &[Piece]| matches!(pair, [Piece::Image(_), Piece::Image(_)]);
        let wrong = match (self.images().len(), self.pieces.windows(2).any(two_pictures)) {
            (0, _) => "--few-shot asks about a picture, and none is given",
            (_, true) => "--few-shot: a picture without its text stands before another",
            (_, false) => return Ok(()),
        };
        Err(Error::input(wrong).hint(
            "an example is a picture and its text, and the question a picture: \
             --image a.png \"two cats\" --image b.png \"three dogs\" --image c.png --few-shot",
        ))
    }

    /// The items in order: `words` makes an item of words, `image` of a file.
    ///
    /// # Errors
    /// The first of theirs.
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
    fn words_and_pictures_keep_their_order() {
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
    fn a_question_needs_examples_that_are_whole() {
        assert!(given("--image a.png two --image b.png").check_question().is_ok());
        let none = given("two").check_question().unwrap_err().to_string();
        assert!(none.contains("none is given"), "{none}");
        let bare = given("--image a.png --image b.png").check_question().unwrap_err().to_string();
        assert!(bare.contains("without its text") && bare.contains("--few-shot"), "{bare}");
    }
}
