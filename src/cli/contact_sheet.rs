//! Contact sheets: a grid of images with their scores and names.

use std::path::{Path, PathBuf};

use fauna::image;
use fauna::image::sheet::Sheet;
use fauna::{Error, ErrorKind, Image, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::font::{self, fitting};
use super::output::Output;

// Lengths in pixels.
const THUMB: usize = 240;
const MARGIN: usize = 16;
const CAPTION: usize = 52;
const TITLE: usize = 56;
const MOST_COLUMNS: usize = 6;

const INK: RGBColor = RGBColor(38, 38, 46);
const PALE: RGBColor = RGBColor(110, 110, 122);

/// Writes a contact sheet of `shown` (score, file, image), best first, with the title `title`, as a PNG at `path`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if a file is there and `force` is off.
pub fn write(path: &Path, force: bool, title: &str, shown: Vec<(f32, PathBuf, Image)>) -> Result<()> {
    font::ready()?;
    let mut output = Output::open(Some(path), force)?;
    output.bytes(&image::to_png(&draw(title, shown)?)?)?;
    output.finish()
}

fn draw(title: &str, shown: Vec<(f32, PathBuf, Image)>) -> Result<Image> {
    // Wider than high, as screens are.
    let columns = ((1.5 * shown.len() as f64).sqrt().ceil() as usize).clamp(1, MOST_COLUMNS);
    let (captions, pictures): (Vec<(f32, PathBuf)>, Vec<Image>) =
        shown.into_iter().map(|(score, path, picture)| ((score, path), picture)).unzip();
    let sheet = Sheet {
        columns,
        cells: pictures.len(),
        height: THUMB,
        width: THUMB,
        margin: MARGIN,
        caption: CAPTION,
    };
    let below = sheet.draw(&pictures)?;
    let mut rgb = vec![255; below.width * TITLE * 3];
    rgb.extend(below.rgb);
    let mut whole = Image { width: below.width, height: below.height + TITLE, rgb };
    write_words(&mut whole, title, &sheet, &captions)
        .map_err(|e| Error::new(ErrorKind::Compute, format!("cannot draw: {e}")))?;
    Ok(whole)
}

fn write_words(
    whole: &mut Image,
    title: &str,
    sheet: &Sheet,
    captions: &[(f32, PathBuf)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (width, margin) = (whole.width as i32, MARGIN as i32);
    let area =
        BitMapBackend::with_buffer(&mut whole.rgb, (width as u32, whole.height as u32)).into_drawing_area();
    let style = |size: i32, colour: RGBColor, horizontal: HPos| {
        ("sans-serif", size).into_font().color(&colour).pos(Pos::new(horizontal, VPos::Center))
    };
    let title = fitting(title, 26, width - 2 * margin);
    area.draw(&Text::new(title, (margin, margin + TITLE as i32 / 2), style(26, INK, HPos::Left)))?;
    for (i, (score, path)) in captions.iter().enumerate() {
        let (top, left) = sheet.place(i);
        let (middle, below) = ((left + THUMB / 2) as i32, (TITLE + top + THUMB) as i32);
        let name = fitting(&name_of(path), 16, THUMB as i32);
        area.draw(&Text::new(format!("{score:.3}"), (middle, below + 14), style(18, INK, HPos::Center)))?;
        area.draw(&Text::new(name, (middle, below + 36), style(16, PALE, HPos::Center)))?;
    }
    area.present()?;
    Ok(())
}

/// Returns the file name of a path, for a caption.
fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
