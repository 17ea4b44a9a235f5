//! `fauna search`: search by text in the images of a folder or the lines of a text file.

use std::ffi::OsString;
use std::path::PathBuf;

use fauna::item::beyond;
use fauna::progress::{Progress, Unit};
use fauna::{Error, Item, Modality, Pipeline, Result, cosine};
use serde_json::json;

use super::embed;
#[cfg(feature = "vision")]
use crate::cli::contact_sheet;
use crate::cli::input::Text;
use crate::cli::options::{ModelArg, PictureInput};
use crate::cli::output::Output;
#[cfg(feature = "vision")]
use crate::cli::output::check_free;
use crate::cli::table::Table;
use crate::cli::{Context, Exit, input};

/// Batch sizes of images and texts.
const TOGETHER: usize = 16;
const TEXTS_TOGETHER: usize = 256;
/// Maximum size of the pixels of a batch, in bytes.
const PIXELS: usize = 256 << 20;

/// Arguments of `fauna search`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna search openai/clip-vit-base-patch32 photos \"a red car at night\"\n  \
                        fauna search google/siglip-base-patch16-224 photos \"a dog\" --top 20 --png found.png\n  \
                        fauna search minilm notes.txt \"bad news for investors\" --top 3"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Folder of images, or text file with one text per line; `-` reads the texts from standard input.
    #[arg(value_name = "FOLDER|FILE")]
    place: PathBuf,
    /// Text query.
    #[arg(value_name = "QUERY")]
    sentence: String,
    /// Number of images or texts to show.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=500))]
    top: u16,
    /// Write a contact sheet of the images found to this PNG file.
    #[arg(long, value_name = "FILE")]
    #[cfg(feature = "vision")]
    png: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pictures: PictureInput,
}

/// What is searched.
enum Place {
    Images(Vec<PathBuf>),
    Texts(Box<dyn Iterator<Item = Result<Text>>>),
}

/// Cosine similarity, and the path of an image or a text.
type Found = (f32, OsString);

/// Searches the images or texts. One that cannot be read is reported and skipped, and makes the exit status 2.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    if args.sentence.trim().is_empty() {
        return Err(Error::input("the query is empty").hint("describe what you are looking for").into());
    }
    let is_folder = args.place.is_dir();
    // A place that cannot be searched is found before the model is loaded.
    let place = match is_folder {
        true => Place::Images(input::pictures_in(&args.place)?),
        false => Place::Texts(input::texts(Vec::new(), Some(&args.place), context)?),
    };
    #[cfg(feature = "vision")]
    if let Some(path) = &args.png {
        if !is_folder {
            return Err(Error::input("--png draws the images of a folder, and this is not one")
                .at(&args.place)
                .into());
        }
        check_free(path, args.force)?;
    }
    let model = context.open_for("search", &args.model.source)?;
    let card = model.card();
    if is_folder && !card.inputs.contains(&Modality::Image) {
        return Err(Error::unsupported(format!("{} does not read images", card.source))
            .at(&args.place)
            .hint("give a text file with one text per line, or a model of images such as CLIP")
            .into());
    }
    let _stoppable = context.interrupt.hold();
    let wanted = model.embed(&[Item::from(args.sentence.as_str())])?;
    if let Some(cut) = wanted.cut.first().filter(|cut| **cut > 0) {
        context.say(&format!("query: {} were left out", beyond(*cut)));
    }
    let wanted = wanted.to_vecs()?.concat();
    let (mut found, failed) = match place {
        Place::Images(paths) => images(model.as_ref(), &wanted, paths, args.pictures, context)?,
        Place::Texts(lines) => texts(model.as_ref(), &wanted, lines, context)?,
    };
    if found.is_empty() {
        let error = match is_folder {
            true => Error::input(format!("none of {failed} images could be decoded")),
            false => Error::input("no text to search").hint("expected one text per line"),
        };
        return Err(error.at(&args.place).into());
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(args.top.into());

    let mut output = Output::stdout();
    if context.globals.json {
        let key = if is_folder { "file" } else { "text" };
        let found: Vec<_> =
            found.iter().map(|(score, name)| json!({key: name.to_string_lossy(), "score": score})).collect();
        output.json(&json!({"source": args.model.source, "sentence": args.sentence, "found": found}))?;
    } else {
        let mut table = Table::default();
        for (score, name) in &found {
            table.row([format!("{score:.3}"), name.to_string_lossy().into_owned()]);
        }
        table.lines().into_iter().try_for_each(|line| output.line(line))?;
    }
    output.finish()?;
    #[cfg(feature = "vision")]
    if let Some(path) = &args.png {
        let options = context.image_options(model.as_ref(), args.pictures);
        let read = |name: &OsString| fauna::image::read_with(name, &options);
        let shown = found.iter().map(|(score, name)| Ok((*score, PathBuf::from(name), read(name)?)));
        let shown = shown.collect::<Result<Vec<_>>>()?;
        contact_sheet::write(path, args.force, &args.sentence, shown)?;
        context.say(&format!("contact sheet: {}", path.display()));
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Partly })
}

/// Returns the cosine similarity of each text to `wanted`, and the number of texts that failed.
fn texts(
    model: &dyn Pipeline,
    wanted: &[f32],
    mut texts: Box<dyn Iterator<Item = Result<Text>>>,
    context: &Context,
) -> Result<(Vec<Found>, usize)> {
    let mut found = Vec::new();
    let mut failed = 0;
    loop {
        context.interrupt.check()?;
        let batch: Vec<Text> = texts.by_ref().take(TEXTS_TOGETHER).collect::<Result<_>>()?;
        if batch.is_empty() {
            break;
        }
        let mut complain = |place: &str, error: &dyn std::fmt::Display| {
            context.complain(&format!("{place}: {error}"));
            failed += 1;
        };
        let mut lines = Vec::new();
        for Text { place, content } in batch.into_iter().filter(|text| !text.is_blank()) {
            match content {
                Ok(line) => lines.push((place, line)),
                Err(error) => complain(&place, &error),
            }
        }
        let items: Vec<Item> = lines.iter().map(|(_, line)| Item::from(line.as_str())).collect();
        for ((place, line), vector) in lines.into_iter().zip(embed::vectors(model, &items)?) {
            match vector {
                Ok((vector, _)) => found.push((cosine(wanted, &vector), line.into())),
                Err(error) => complain(&place, &error),
            }
        }
    }
    Ok((found, failed))
}

/// Returns the cosine similarity of each image to `wanted`, and the number of images that failed.
fn images(
    model: &dyn Pipeline,
    wanted: &[f32],
    paths: Vec<PathBuf>,
    input: PictureInput,
    context: &Context,
) -> Result<(Vec<Found>, usize)> {
    let bar = context.bars.begin("images", Unit::Items, Some(paths.len() as u64));
    let options = context.image_options(model, input);
    let mut found = Vec::new();
    let mut failed = 0;
    let (mut waiting, mut names) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    let mut paths = paths.into_iter().peekable();
    while let Some(path) = paths.next() {
        match input::picture(&path, &options, context) {
            Ok(picture) => {
                bytes += picture.rgb.len();
                waiting.push(Item::Image(picture));
                names.push(path);
            }
            Err(error) => {
                context.complain(&error.to_string());
                failed += 1;
                bar.advance(1);
            }
        }
        if waiting.len() == TOGETHER || bytes >= PIXELS || paths.peek().is_none() {
            context.interrupt.check()?;
            bar.advance(waiting.len() as u64);
            let made = embed::vectors(model, &waiting)?;
            waiting.clear();
            for (path, vector) in names.drain(..).zip(made) {
                match vector {
                    Ok((vector, _)) => found.push((cosine(wanted, &vector), path.into())),
                    Err(error) => {
                        context.complain(&format!("{}: {error}", path.display()));
                        failed += 1;
                    }
                }
            }
            bytes = 0;
        }
    }
    Ok((found, failed))
}
