//! Line plots: panels with lines, shaded bands and dots.

use std::path::Path;

use fauna::{Error, ErrorKind, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::font::{self, fitting, width_of};
use super::png;

/// `Software` text of the PNG file, by which later runs recognize it.
const MAKER: &str = "fauna plot";

/// Supersampling factor for antialiasing.
const FINER: i32 = 2;
// Lengths in pixels of the supersampled image.
const WIDTH: i32 = 2400;
const PANEL: i32 = 640;
const HEAD: i32 = 190;
const MARGIN: i32 = 70;
const TITLE: i32 = 46;
const BODY: i32 = 28;
const LEFT: i32 = 150;
const BELOW: i32 = 66;
const NAME: i32 = 60;
/// Maximum number of panels.
pub const MOST_PANELS: usize = 8;
/// Maximum number of tick marks on each axis.
pub const MOST_MARKS: usize = 7;

const INK: RGBColor = RGBColor(38, 38, 46);
const PALE: RGBColor = RGBColor(110, 110, 122);
const GRID: RGBColor = RGBColor(228, 230, 235);

/// Colour of a line, a band or a dot, by its meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ink {
    /// Observed values.
    Dark,
    /// Output of a model.
    #[default]
    Blue,
    /// A second output of a model.
    Green,
    /// Anomalies.
    Red,
}

impl Ink {
    fn colour(self) -> RGBColor {
        match self {
            Self::Dark => RGBColor(70, 74, 84),
            Self::Blue => RGBColor(24, 108, 178),
            Self::Green => RGBColor(34, 139, 98),
            Self::Red => RGBColor(206, 52, 40),
        }
    }
}

/// A line, interrupted where a value is not finite.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// Name in the legend; empty to leave it out.
    pub name: String,
    pub ink: Ink,
    pub points: Vec<(f64, f64)>,
}

/// A shaded band between two lines.
#[derive(Debug, Clone)]
pub struct Band {
    pub name: String,
    /// Opacity, 0 to 1.
    pub shade: f64,
    /// x, lower bound, upper bound.
    pub points: Vec<(f64, f64, f64)>,
}

/// A panel: one pair of axes.
#[derive(Debug, Clone, Default)]
pub struct Panel {
    pub title: String,
    /// Label of the y axis.
    pub y_label: String,
    pub lines: Vec<Line>,
    pub bands: Vec<Band>,
    /// Dots, and their name in the legend.
    pub dots: Vec<(f64, f64)>,
    pub dots_name: String,
    /// Tick marks of the x axis with their labels; round numbers if empty.
    pub marks: Vec<(f64, String)>,
    /// Label of the x axis.
    pub x_label: String,
}

/// Writes `panels` as a PNG with the title `title` at `path`, all with the same x label.
///
/// # Errors
/// As [`write`].
pub fn lines(path: &Path, force: bool, title: &str, x_label: &str, panels: &[Panel]) -> Result<()> {
    let labelled = |panel: &Panel| Panel { x_label: x_label.to_string(), ..panel.clone() };
    write(path, force, title, &panels.iter().map(labelled).collect::<Vec<_>>())
}

/// Writes the first [`MOST_PANELS`] of `panels` as a PNG with the title `title` at `path`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) if a file exists that is not a plot of this program and `force` is off, or if there are
/// no panels.
pub fn write(path: &Path, force: bool, title: &str, panels: &[Panel]) -> Result<()> {
    if panels.is_empty() {
        return Err(Error::input("nothing to plot").at(path));
    }
    check_free(path, force)?;
    let (pixels, size) = draw(title, &panels[..panels.len().min(MOST_PANELS)])?;
    png::write(path, force, MAKER, &pixels, size)
}

/// Checks that a plot may be written at `path`.
///
/// # Errors
/// As [`write`].
pub fn check_free(path: &Path, force: bool) -> Result<()> {
    png::check_free(path, force, MAKER)
}

/// Draws the pixels, with the width and the height.
fn draw(title: &str, panels: &[Panel]) -> Result<(Vec<u8>, [usize; 2])> {
    font::ready()?;
    let columns = if panels.len() > 3 { 2 } else { 1 };
    let rows = panels.len().div_ceil(columns) as i32;
    let height = HEAD + rows * PANEL + MARGIN / 2;
    let mut pixels = vec![255; (WIDTH * height * 3) as usize];
    paint(&mut pixels, height, title, panels, columns as i32)
        .map_err(|e| Error::new(ErrorKind::Compute, format!("cannot draw: {e}")))?;
    let (width, height) = ((WIDTH / FINER) as usize, (height / FINER) as usize);
    Ok((smaller(&pixels, width, height), [width, height]))
}

/// Downsamples the image by [`FINER`].
fn smaller(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let finer = FINER as usize;
    let mut small = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let at = |dy: usize, dx: usize| {
                    usize::from(pixels[((y * finer + dy) * width * finer + x * finer + dx) * 3 + channel])
                };
                let sum: usize = (0..finer * finer).map(|i| at(i / finer, i % finer)).sum();
                small.push((sum / (finer * finer)) as u8);
            }
        }
    }
    small
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

fn style(size: i32, colour: RGBColor, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(horizontal, VPos::Center))
}

fn paint(pixels: &mut [u8], height: i32, title: &str, panels: &[Panel], columns: i32) -> Drawn {
    let area = BitMapBackend::with_buffer(pixels, (WIDTH as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let title = fitting(title, TITLE, WIDTH - 2 * MARGIN);
    area.draw(&Text::new(title, (MARGIN, 66), style(TITLE, INK, HPos::Left)))?;
    legend(&area, panels)?;
    let wide = (WIDTH - 2 * MARGIN + MARGIN / 2) / columns;
    for (i, panel) in panels.iter().enumerate() {
        let (row, column) = (i as i32 / columns, i as i32 % columns);
        let (x, y) = (MARGIN + column * wide, HEAD + row * PANEL);
        let frame = Frame {
            left: x + LEFT,
            right: x + wide - MARGIN / 2,
            top: y + NAME,
            bottom: y + PANEL - BELOW - 20,
            axes: Axes::of(panel),
        };
        frame.paint(&area, panel)?;
    }
    area.present()?;
    Ok(())
}

/// Draws the legend of all panels, each name once.
fn legend(area: &Area, panels: &[Panel]) -> Drawn {
    let mut x = MARGIN;
    let mut seen: Vec<&str> = Vec::new();
    let y = 132;
    let names = panels.iter().flat_map(|panel| {
        let lines = panel.lines.iter().map(|line| (line.name.as_str(), line.ink.colour(), None));
        let bands = panel.bands.iter().map(|band| (band.name.as_str(), Ink::Blue.colour(), Some(band.shade)));
        let dots = (!panel.dots.is_empty()).then_some((panel.dots_name.as_str(), Ink::Red.colour(), None));
        lines.chain(bands).chain(dots)
    });
    for (name, colour, shade) in names {
        if name.is_empty() || seen.contains(&name) || x > WIDTH - 400 {
            continue;
        }
        seen.push(name);
        match shade {
            Some(shade) => {
                area.draw(&Rectangle::new([(x, y - 14), (x + 44, y + 14)], colour.mix(shade).filled()))?
            }
            None => area.draw(&Rectangle::new([(x, y - 3), (x + 44, y + 3)], colour.filled()))?,
        }
        area.draw(&Text::new(name.to_string(), (x + 60, y), style(BODY, PALE, HPos::Left)))?;
        x += 60 + width_of(name, BODY) + 56;
    }
    Ok(())
}

/// Ranges of both axes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn of(panel: &Panel) -> Self {
        let lines = panel.lines.iter().flat_map(|line| line.points.iter().copied());
        let bands = panel.bands.iter().flat_map(|band| &band.points);
        let bands = bands.flat_map(|(x, low, high)| [(*x, *low), (*x, *high)]);
        let all: Vec<(f64, f64)> = lines.chain(bands).chain(panel.dots.iter().copied()).collect();
        let finite = all.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        let range = |pick: fn(&(f64, f64)) -> f64, room: f64| {
            let (low, high) =
                finite.clone().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                    (low.min(value), high.max(value))
                });
            match (high - low).partial_cmp(&0.0) {
                Some(std::cmp::Ordering::Greater) if (high - low).is_finite() => {
                    (low - room * (high - low), high + room * (high - low))
                }
                Some(std::cmp::Ordering::Equal) => {
                    let room = low.abs().max(1.0) * 0.05;
                    (low - room, high + room)
                }
                _ => (0.0, 1.0),
            }
        };
        Self { x: range(|point| point.0, 0.0), y: range(|point| point.1, 0.06) }
    }
}

/// Returns at most `most` round numbers from `low` to `high`, and the number of decimals to print.
pub fn round_marks(low: f64, high: f64, most: usize) -> (Vec<f64>, usize) {
    let rough = (high - low) / most as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    let marks = (0..=most).map(|i| (first + i as f64) * step).take_while(|mark| *mark <= high);
    (marks.collect(), (-(step.log10() + 1e-9).floor()).max(0.0) as usize)
}

/// Formats the label of a tick mark.
pub fn mark_words(value: f64, decimals: usize, largest: f64) -> String {
    match largest {
        // Very large and very small numbers are printed with an exponent.
        largest if largest >= 1e6 || decimals > 5 => format!("{:.3e}", value + 0.0),
        _ => format!("{:.decimals$}", value + 0.0),
    }
}

/// Position of a panel in the image, and its axes.
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    axes: Axes,
}

impl Frame {
    fn x(&self, value: f64) -> i32 {
        let (low, high) = self.axes.x;
        self.left + ((value - low) / (high - low) * f64::from(self.right - self.left)).round() as i32
    }

    fn y(&self, value: f64) -> i32 {
        let (low, high) = self.axes.y;
        let share = ((value - low) / (high - low)).clamp(-1.0, 2.0);
        self.bottom - (share * f64::from(self.bottom - self.top)).round() as i32
    }

    fn paint(&self, area: &Area, panel: &Panel) -> Drawn {
        let unit = width_of(&panel.y_label, BODY);
        let title = fitting(&panel.title, BODY + 4, self.right - self.left - unit - 40);
        let at =
            (self.left + width_of(&title, BODY + 4) + if title.is_empty() { 0 } else { 28 }, self.top - 30);
        area.draw(&Text::new(panel.y_label.clone(), at, style(BODY, PALE, HPos::Left)))?;
        area.draw(&Text::new(title, (self.left, self.top - 30), style(BODY + 4, INK, HPos::Left)))?;
        self.grid(area, panel)?;
        for band in &panel.bands {
            let fill = Ink::Blue.colour().mix(band.shade).filled();
            let finite = |(x, low, high): &&(f64, f64, f64)| (x + low + high).is_finite();
            // The band is interrupted where a bound is not finite.
            for part in band.points.split(|point| !finite(&point)) {
                let upper = part.iter().map(|(x, _, high)| (self.x(*x), self.y(*high)));
                let lower = part.iter().rev().map(|(x, low, _)| (self.x(*x), self.y(*low)));
                area.draw(&Polygon::new(upper.chain(lower).collect::<Vec<_>>(), fill))?;
            }
        }
        for line in &panel.lines {
            let stroke = line.ink.colour().stroke_width(4);
            for part in line.points.split(|(x, y)| !(x + y).is_finite()) {
                let mut points: Vec<(i32, i32)> =
                    part.iter().map(|(x, y)| (self.x(*x), self.y(*y))).collect();
                points.dedup();
                // A single value between gaps is drawn as a dot.
                if let [point] = points[..] {
                    area.draw(&Circle::new(point, 4, line.ink.colour().filled()))?;
                }
                // One by one: the joints of a path reach far beyond the values of a line that turns sharply.
                for ends in points.windows(2) {
                    area.draw(&PathElement::new(ends, stroke))?;
                }
            }
        }
        for (x, y) in panel.dots.iter().filter(|(x, y)| (x + y).is_finite()) {
            area.draw(&Circle::new((self.x(*x), self.y(*y)), 10, Ink::Red.colour().filled()))?;
        }
        Ok(())
    }

    fn grid(&self, area: &Area, panel: &Panel) -> Drawn {
        let thin = GRID.stroke_width(2);
        let (low, high) = self.axes.y;
        let (marks, decimals) = round_marks(low, high, MOST_MARKS - 2);
        for mark in marks {
            let y = self.y(mark);
            area.draw(&PathElement::new([(self.left, y), (self.right, y)], thin))?;
            let words = mark_words(mark, decimals, low.abs().max(high.abs()));
            area.draw(&Text::new(words, (self.left - 16, y), style(BODY, PALE, HPos::Right)))?;
        }
        let (low, high) = self.axes.x;
        let own;
        let marks = match panel.marks.is_empty() {
            false => &panel.marks,
            true => {
                let (marks, decimals) = round_marks(low, high, MOST_MARKS);
                let words = |mark: f64| (mark, mark_words(mark, decimals, low.abs().max(high.abs())));
                own = marks.into_iter().map(words).collect();
                &own
            }
        };
        for (mark, words) in marks.iter().filter(|(mark, _)| (low..=high).contains(mark)) {
            let x = self.x(*mark);
            area.draw(&PathElement::new([(x, self.bottom), (x, self.bottom + 10)], PALE.stroke_width(2)))?;
            area.draw(&Text::new(words.clone(), (x, self.bottom + 34), style(BODY, PALE, HPos::Center)))?;
        }
        area.draw(&PathElement::new(
            [(self.left, self.bottom), (self.right, self.bottom)],
            PALE.stroke_width(2),
        ))?;
        if !panel.x_label.is_empty() {
            let at = (self.right, self.bottom + 66);
            area.draw(&Text::new(panel.x_label.clone(), at, style(BODY, PALE, HPos::Right)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tick_marks_are_round_numbers_in_range() {
        assert_eq!(round_marks(0.0, 10.0, 5), (vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 0));
        let (marks, decimals) = round_marks(-0.031, 0.042, 5);
        assert_eq!(
            marks.iter().map(|mark| mark_words(*mark, decimals, 1.0)).collect::<Vec<_>>(),
            ["-0.02", "0.00", "0.02", "0.04"]
        );
    }

    #[test]
    fn a_line_that_turns_sharply_stays_between_its_values() {
        font::ready().unwrap();
        let rows = |points: Vec<(f64, f64)>| {
            let line = Line { ink: Ink::Blue, points, ..Line::default() };
            let panels = [Panel { lines: vec![line], ..Panel::default() }];
            let height = HEAD + PANEL + MARGIN / 2;
            let mut pixels = vec![255; (WIDTH * height * 3) as usize];
            paint(&mut pixels, height, "", &panels, 1).unwrap();
            let RGBColor(red, green, blue) = Ink::Blue.colour();
            let has_ink = |row: &[u8]| row.chunks_exact(3).any(|pixel| pixel == [red, green, blue]);
            let rows: Vec<bool> = pixels.chunks_exact(WIDTH as usize * 3).map(has_ink).collect();
            let first = rows.iter().position(|has_ink| *has_ink).unwrap();
            let last = rows.iter().rposition(|has_ink| *has_ink).unwrap();
            (first, last)
        };
        let straight = rows(vec![(0.0, 0.0), (1999.0, 1.0)]);
        let dense = rows((0..2000).map(|i| (f64::from(i), f64::from(i % 2))).collect());
        assert!(dense.0 + 4 >= straight.0 && dense.1 <= straight.1 + 4, "{dense:?} {straight:?}");
    }

    #[test]
    fn extreme_values_can_be_plotted() {
        let folder = tempfile::tempdir().unwrap();
        for (i, values) in
            [vec![], vec![f64::NAN], vec![1.0], vec![1e300, -1e300], vec![0.0; 3]].into_iter().enumerate()
        {
            let points = values.iter().enumerate().map(|(x, y)| (x as f64, *y)).collect();
            let line = Line { name: "energy (eV)".into(), ink: Ink::Dark, points };
            let bands = vec![Band {
                name: "90%".into(),
                shade: 0.2,
                points: vec![(0.0, f64::NAN, 1.0), (1.0, 2.0, 3.0)],
            }];
            let (title, y_label) = ("md".to_string(), "eV".to_string());
            let panel = Panel {
                title,
                y_label,
                lines: vec![line],
                bands,
                dots: vec![(0.0, f64::INFINITY)],
                ..Panel::default()
            };
            let path = folder.path().join(format!("{i}.png"));
            lines(&path, false, "a title", "steps", &[panel]).unwrap();
            assert!(std::fs::read(path).unwrap().starts_with(b"\x89PNG"));
        }
        assert!(write(&folder.path().join("none.png"), false, "", &[]).is_err());
    }
}
