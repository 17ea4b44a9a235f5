//! Heatmaps of similarity matrices: one row and one column per text, darker for higher similarity.

use std::path::Path;

use fauna::{Error, ErrorKind, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::font::{self, width_of};
use super::png;
use super::table::shorten;

/// `Software` text of the PNG file, by which later runs recognize it.
const MAKER: &str = "fauna heat map";

// Lengths in pixels; large enough for high-resolution screens.
const CELL: i32 = 80;
const TOP: i32 = 168;
const MARGIN: i32 = 52;
const BAR: i32 = 260;
const TITLE: i32 = 38;
const BODY: i32 = 25;
const LABEL_CHARACTERS: usize = 60;
/// Maximum number of rows: more have no readable labels.
const MOST_ROWS: usize = 60;

const INK: RGBColor = RGBColor(38, 38, 46);
const PALE: RGBColor = RGBColor(110, 110, 122);

/// Writes `matrix` (`labels` by `labels`, -1 to 1) as a PNG of `title` at `path`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if a file exists that is not a heatmap of this program and `force` is off, or if there
/// are too many rows.
pub fn write(path: &Path, force: bool, title: &str, labels: &[String], matrix: &[Vec<f32>]) -> Result<()> {
    if labels.len() > MOST_ROWS {
        return Err(Error::input(format!("cannot draw a heatmap of {} texts", labels.len()))
            .at(path)
            .hint(format!("the maximum is {MOST_ROWS}; without --png the similarities are printed")));
    }
    png::check_free(path, force, MAKER)?;
    let (pixels, size) = draw(title, labels, matrix)?;
    png::write(path, force, MAKER, &pixels, size)
}

/// Draws the pixels, with the width and the height.
fn draw(title: &str, labels: &[String], matrix: &[Vec<f32>]) -> Result<(Vec<u8>, [usize; 2])> {
    font::ready()?;
    let labels: Vec<String> = labels.iter().map(|label| shorten(label, LABEL_CHARACTERS)).collect();
    let longest = labels.iter().map(|label| width_of(label, BODY)).max().unwrap_or(0);
    let (left, rows) = (MARGIN + longest + 70, labels.len() as i32);
    let width = (left + rows * CELL + BAR).max(2 * MARGIN + width_of(title, TITLE));
    let height = TOP + rows.max(6) * CELL + 60 + MARGIN;
    let mut pixels = vec![255u8; (width * height * 3) as usize];
    paint(&mut pixels, (width as u32, height as u32), left, title, &labels, matrix)
        .map_err(|e| Error::new(ErrorKind::Compute, format!("cannot draw: {e}")))?;
    Ok((pixels, [width as usize, height as usize]))
}

fn paint(
    pixels: &mut [u8],
    size: (u32, u32),
    left: i32,
    title: &str,
    labels: &[String],
    matrix: &[Vec<f32>],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = BitMapBackend::with_buffer(pixels, size).into_drawing_area();
    area.fill(&WHITE)?;
    let style = |size: i32, colour: RGBColor, horizontal: HPos| {
        ("sans-serif", size).into_font().color(&colour).pos(Pos::new(horizontal, VPos::Center))
    };
    area.draw(&Text::new(title, (MARGIN, MARGIN + 12), style(TITLE, INK, HPos::Left)))?;
    for (row, label) in labels.iter().enumerate() {
        let (start, middle) = (row as i32 * CELL, row as i32 * CELL + CELL / 2);
        let number = (row + 1).to_string();
        area.draw(&Text::new(label.as_str(), (left - 70, TOP + middle), style(BODY, INK, HPos::Right)))?;
        area.draw(&Text::new(number.clone(), (left - 18, TOP + middle), style(BODY, PALE, HPos::Right)))?;
        area.draw(&Text::new(number, (left + start + CELL / 2, TOP - 24), style(BODY, PALE, HPos::Center)))?;
    }
    for (row, values) in matrix.iter().enumerate() {
        for (column, &value) in values.iter().enumerate() {
            let (x, y) = (left + column as i32 * CELL, TOP + row as i32 * CELL);
            area.draw(&Rectangle::new([(x, y), (x + CELL - 4, y + CELL - 4)], colour(value).filled()))?;
            let ink = if value > 0.45 { WHITE } else { INK };
            let middle = (x + CELL / 2 - 2, y + CELL / 2 - 2);
            area.draw(&Text::new(number(value), middle, style(BODY - 1, ink, HPos::Center)))?;
        }
    }
    let rows = labels.len() as i32;
    let (x, bar) = (left + rows * CELL + 40, rows.max(6) * CELL - 4);
    for y in 0..bar {
        let value = 1.0 - y as f32 / bar as f32;
        area.draw(&Rectangle::new([(x, TOP + y), (x + 28, TOP + y + 1)], colour(value).filled()))?;
    }
    for (value, name) in [(1.0, "1  same"), (0.5, "0.5"), (0.0, "0  unrelated")] {
        let y = TOP + ((1.0 - value) * (bar - 1) as f32) as i32;
        area.draw(&Text::new(name, (x + 42, y), style(BODY, PALE, HPos::Left)))?;
    }
    let foot = (MARGIN, TOP + bar + 50);
    area.draw(&Text::new("cosine similarity of the embeddings", foot, style(BODY, PALE, HPos::Left)))?;
    area.present()?;
    Ok(())
}

/// Formats a number with two decimals, without "-0.00".
pub fn number(value: f32) -> String {
    format!("{:.2}", (value * 100.0).round() / 100.0 + 0.0)
}

/// Returns the colour of a similarity: almost white at 0 and below, dark blue at 1.
fn colour(value: f32) -> RGBColor {
    const STOPS: [(f32, [f32; 3]); 4] = [
        (0.0, [246.0, 248.0, 250.0]),
        (0.3, [178.0, 214.0, 230.0]),
        (0.65, [52.0, 132.0, 186.0]),
        (1.0, [10.0, 44.0, 96.0]),
    ];
    let value = value.clamp(0.0, 1.0);
    let above = STOPS.iter().position(|(at, _)| *at >= value).unwrap_or(STOPS.len() - 1).max(1);
    let ((from, a), (to, b)) = (STOPS[above - 1], STOPS[above]);
    let share = (value - from) / (to - from);
    let mix = |i: usize| (a[i] + (b[i] - a[i]) * share) as u8;
    RGBColor(mix(0), mix(1), mix(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_heatmap_is_overwritten_without_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let labels = ["one".to_string(), "two".to_string()];
        let matrix = [vec![1.0, 0.2], vec![0.2, 1.0]];
        write(&path, false, "two texts", &labels, &matrix).unwrap();
        write(&path, false, "again", &labels, &matrix).unwrap();
        std::fs::write(&path, "a letter").unwrap();
        assert!(write(&path, false, "again", &labels, &matrix).unwrap_err().to_string().contains("--force"));
        assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
    }

    #[test]
    fn colours_are_darker_for_higher_similarity() {
        let light = |value| {
            let RGBColor(r, g, b) = colour(value);
            u32::from(r) + u32::from(g) + u32::from(b)
        };
        assert!(light(-1.0) == light(0.0) && light(0.0) > light(0.5) && light(0.5) > light(1.0));
    }
}
