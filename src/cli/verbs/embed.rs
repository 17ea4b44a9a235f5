//! `fauna embed`: embeddings of texts, images and genes.

use std::path::{Path, PathBuf};

use fauna::{Error, ImageOptions, Item, Pipeline, Result};

use crate::cli::input::{self, Text};
use crate::cli::options::{ModelArg, PictureInput};
use crate::cli::output::Output;
use crate::cli::vectors::{Format, Row, Writer};
use crate::cli::{Context, Exit};

/// Arguments of `fauna embed`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  fauna embed minilm \"a cat sleeps\" \"the kitten naps\"\n  \
                        fauna embed minilm --input notes.txt --out notes.npy\n  \
                        sort names.txt | fauna embed minilm --format csv > names.csv\n  \
                        fauna embed openai/clip-vit-base-patch32 --images photos --out photos.npy\n  \
                        fauna embed genslm-25M --genes genes.fasta.gz --out genes.npy\n  \
                        fauna embed openai/clip-vit-base-patch32 \"a red car\" --image car.jpg")]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Texts to embed. If none is given, one per line of --input or standard input.
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Read the texts from this file, one per line.
    #[arg(long, short, value_name = "FILE", conflicts_with = "texts")]
    input: Option<PathBuf>,
    /// Image to embed, after the texts. Can be repeated.
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    image: Vec<PathBuf>,
    /// Embed all images of a folder, in natural order of their names, after the texts.
    #[arg(long, value_name = "FOLDER", conflicts_with = "input")]
    images: Option<PathBuf>,
    /// Embed all genes of a FASTA file, plain or gzip.
    #[cfg(feature = "text")]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["texts", "input", "image", "images"])]
    genes: Option<PathBuf>,
    /// Write to this file instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Output format (default: by the extension of --out, else jsonl).
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
    /// Fail on texts longer than the model's maximum sequence length instead of truncating them.
    #[arg(long)]
    strict: bool,
    /// Batch size; a quarter of it for images.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    #[command(flatten)]
    pictures: PictureInput,
}

/// One input to embed.
struct Piece {
    /// Its position in the input, for messages.
    place: String,
    /// The text, or the path of the image.
    name: Option<String>,
    /// The content, or the error of reading it.
    content: Result<Content, String>,
}

/// An item, or the path of an image that is decoded with its batch.
enum Content {
    Item(Item),
    Picture(PathBuf),
}

impl Piece {
    fn of_text(text: Text) -> Self {
        let Text { place, content } = text;
        Self {
            place,
            name: content.as_ref().ok().cloned(),
            content: content.map(|text| Content::Item(Item::Text(text))),
        }
    }

    fn of_picture(path: &Path) -> Self {
        let place = path.display().to_string();
        Self { name: Some(place.clone()), place, content: Ok(Content::Picture(path.into())) }
    }

    /// Decodes the image, if it is one.
    fn read(self, options: &ImageOptions, context: &Context) -> Self {
        let content = match self.content {
            // Both the error and the message around it begin with the path: one of them is removed.
            Ok(Content::Picture(path)) => input::picture(&path, options, context)
                .map(|picture| Content::Item(Item::Image(picture)))
                .map_err(|error| without_place(&error, &self.place)),
            other => other,
        };
        Self { content, ..self }
    }
}

#[cfg(feature = "text")]
impl Piece {
    fn of_gene(file: &Path, gene: Result<fauna::text::genslm::fasta::Record>) -> Self {
        match gene {
            Ok(gene) => Self {
                place: gene.id.clone(),
                name: Some(gene.id),
                content: Ok(Content::Item(Item::Gene(gene.sequence))),
            },
            Err(error) => {
                let place = file.display().to_string();
                Self { name: None, content: Err(without_place(&error, &place)), place }
            }
        }
    }
}

fn without_place(error: &Error, place: &str) -> String {
    let message = error.to_string();
    message.strip_prefix(place).map_or(message.as_str(), |rest| rest.trim_start_matches(": ")).to_string()
}

/// Returns all inputs, in order. Images are decoded with their batch.
fn pieces(args: &Args, context: &Context) -> Result<Box<dyn Iterator<Item = Result<Piece>>>> {
    #[cfg(feature = "text")]
    if let Some(path) = args.genes.clone() {
        let genes = fauna::text::genslm::fasta::open(&path, super::genes::reading(context)?)?;
        return Ok(Box::new(genes.map(move |gene| Ok(Piece::of_gene(&path, gene)))));
    }
    let mut pictures = args.image.clone();
    if let Some(folder) = &args.images {
        pictures.extend(input::pictures_in(folder)?);
    }
    let texts: Box<dyn Iterator<Item = Result<Text>>> = match args.texts.is_empty() && !pictures.is_empty() {
        true => Box::new(std::iter::empty()),
        false => input::texts(args.texts.clone(), args.input.as_deref(), context)?,
    };
    let pictures = pictures.into_iter().map(|path| Ok(Piece::of_picture(&path)));
    Ok(Box::new(texts.map(|text| text.map(Piece::of_text)).chain(pictures)))
}

/// Embeds all inputs. One that cannot be embedded is reported, keeps its row, and makes the exit status 2.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    let from_name = args.out.as_deref().and_then(Format::of);
    let format = args.format.or(from_name).unwrap_or(Format::Jsonl);
    let output = Output::open(args.out.as_deref(), args.force)?;
    let mut pieces = pieces(&args, context)?;
    let together = match args.image.is_empty() && args.images.is_none() {
        true => usize::from(args.batch),
        false => usize::from(args.batch).div_ceil(4),
    };
    let model = context.open_for("embed", &args.model.source)?;
    let options = context.image_options(model.as_ref(), args.pictures);
    let mut writer = Writer::new(output, format);

    let mut next = 0;
    let mut failed = 0;
    loop {
        context.interrupt.check()?;
        let batch: Vec<Piece> = pieces.by_ref().take(together).collect::<Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        let _stoppable = context.interrupt.hold();
        let batch = batch.into_iter().map(|piece| piece.read(&options, context)).collect();
        for (place, row) in embed(model.as_ref(), batch, next, args.strict)? {
            if let Some(error) = &row.error {
                context.complain(&format!("{place}: {error}"));
                failed += 1;
            } else if row.cut > 0 {
                context.say(&format!("{place}: {}", too_long(row.cut, "were left out")));
            }
            writer.row(row)?;
            next += 1;
        }
        writer.flush()?;
    }
    if next == 0 {
        return Err(Error::input("no text to embed")
            .hint("pass texts as arguments, or one per line on standard input")
            .into());
    }
    writer.finish()?;
    Ok(if failed == 0 { Exit::Done } else { Exit::Partly })
}

/// Returns the rows of `batch`, numbered from `first`, each with the position of its input.
fn embed(model: &dyn Pipeline, batch: Vec<Piece>, first: usize, strict: bool) -> Result<Vec<(String, Row)>> {
    let mut good = Vec::new();
    let mut rows = Vec::new();
    for Piece { place, name, content } in batch {
        let wrong = match content {
            Ok(Content::Item(item)) => {
                good.push(item);
                None
            }
            Ok(Content::Picture(_)) => Some("the image was not decoded".to_string()),
            Err(error) => Some(error),
        };
        rows.push((place, name, wrong));
    }
    let mut embedded = vectors(model, &good)?.into_iter();
    let rows = rows.into_iter().zip(first..).map(|((place, name, wrong), index)| {
        let done = match wrong {
            None => embedded.next().unwrap_or_else(|| Err("the model returned no embedding".into())),
            Some(error) => Err(error),
        };
        let done = match done {
            Ok((_, cut)) if strict && cut > 0 => Err(too_long(cut, "do not fit (--strict)")),
            other => other,
        };
        let row = match done {
            Ok((vector, cut)) => Row { index, text: name, cut, error: None, embedding: Some(vector) },
            Err(e) => Row { index, text: name, cut: 0, error: Some(e), embedding: None },
        };
        (place, row)
    });
    Ok(rows.collect())
}

/// An embedding and the number of truncated tokens, or the error.
pub type Vector = Result<(Vec<f32>, usize), String>;

/// Returns the embedding of each item and the number of its truncated tokens, or its error. If the batch fails, the items
/// are embedded one by one, so that an invalid item does not affect the others.
///
/// # Errors
/// Errors that are not caused by an item.
pub fn vectors(model: &dyn Pipeline, items: &[Item]) -> Result<Vec<Vector>> {
    if items.is_empty() {
        return Ok(Vec::new());
    }
    match model.embed(items) {
        Ok(made) => {
            let cut = made.cut.iter().copied().chain(std::iter::repeat(0));
            let vectors: Vec<Vector> = made.to_vecs()?.into_iter().zip(cut).map(Ok).collect();
            match vectors.len() == items.len() {
                true => Ok(vectors),
                false => Err(Error::new(
                    fauna::ErrorKind::Mismatch,
                    format!("the model returned {} embeddings for {} items", vectors.len(), items.len()),
                )),
            }
        }
        Err(error) if error.kind() != fauna::ErrorKind::Input => Err(error),
        Err(error) => match items {
            [_] => Ok(vec![Err(error.to_string())]),
            _ => {
                let singles = items.iter().map(|item| vectors(model, std::slice::from_ref(item)));
                Ok(singles.collect::<Result<Vec<_>>>()?.concat())
            }
        },
    }
}

fn too_long(cut: usize, what: &str) -> String {
    format!("{} {what}", fauna::item::beyond(cut))
}
