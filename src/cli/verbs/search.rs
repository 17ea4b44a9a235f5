//! `fauna search`: text-to-image search in a folder.

use std::path::PathBuf;

use fauna::item::beyond;
use fauna::progress::{Progress, Unit};
use fauna::{Error, Image, Item, Pipeline, Result, cosine};
use serde_json::json;

use super::embed;
use crate::cli::options::{ModelArg, PictureInput};
use crate::cli::output::{Output, check_free};
use crate::cli::table::Table;
use crate::cli::{Context, Exit, contact_sheet, input};

/// Batch size.
const TOGETHER: usize = 16;
/// Maximum size of the pixels of a batch, in bytes.
const PIXELS: usize = 256 << 20;

/// Arguments of `fauna search`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  fauna search openai/clip-vit-base-patch32 photos \"a red car at night\"\n  \
                        fauna search google/siglip-base-patch16-224 photos \"a dog\" --top 20 --png found.png"
)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelArg,
    /// Folder of images.
    folder: PathBuf,
    /// Text query.
    #[arg(value_name = "QUERY")]
    sentence: String,
    /// Number of images to show.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=500))]
    top: u16,
    /// Write a contact sheet of the images found to this PNG file.
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pictures: PictureInput,
}

/// Searches the images. One that cannot be decoded is reported and skipped, and makes the exit status 2.
pub fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    if args.sentence.trim().is_empty() {
        return Err(Error::input("the query is empty").hint("describe what the images should show").into());
    }
    if let Some(path) = &args.png {
        check_free(path, args.force)?;
    }
    let paths = input::pictures_in(&args.folder)?;
    let model = context.open_for("search", &args.model.source)?;
    let _stoppable = context.interrupt.hold();
    let wanted = model.embed(&[Item::from(args.sentence.as_str())])?;
    if let Some(cut) = wanted.cut.first().filter(|cut| **cut > 0) {
        context.say(&format!("query: {} were left out", beyond(*cut)));
    }
    let wanted = wanted.to_vecs()?.concat();
    let all = paths.len();
    let (mut found, failed) = scores(model.as_ref(), &wanted, paths, args.pictures, context)?;
    if found.is_empty() {
        return Err(Error::input(format!("none of {all} images could be decoded")).at(args.folder).into());
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.truncate(args.top.into());

    let mut output = Output::stdout();
    if context.globals.json {
        let found: Vec<_> = found.iter().map(|(score, path)| json!({"file": path, "score": score})).collect();
        output.json(&json!({"source": args.model.source, "sentence": args.sentence, "found": found}))?;
    } else {
        let mut table = Table::default();
        for (score, path) in &found {
            table.row([format!("{score:.3}"), path.display().to_string()]);
        }
        table.lines().into_iter().try_for_each(|line| output.line(line))?;
    }
    output.finish()?;
    if let Some(path) = &args.png {
        let options = context.image_options(model.as_ref(), args.pictures);
        let read = |path: &PathBuf| fauna::image::read_with(path, &options);
        let shown = found.iter().map(|(score, path)| Ok((*score, path.clone(), read(path)?)));
        let shown = shown.collect::<Result<Vec<(f32, PathBuf, Image)>>>()?;
        contact_sheet::write(path, args.force, &args.sentence, shown)?;
        context.say(&format!("contact sheet: {}", path.display()));
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::Partly })
}

/// Returns the cosine similarity of each image to `wanted`, and the number of images that failed.
fn scores(
    model: &dyn Pipeline,
    wanted: &[f32],
    paths: Vec<PathBuf>,
    input: PictureInput,
    context: &Context,
) -> Result<(Vec<(f32, PathBuf)>, usize)> {
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
                    Ok((vector, _)) => found.push((cosine(wanted, &vector), path)),
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
