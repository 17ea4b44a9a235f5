//! The font of plots, heatmaps and contact sheets.

use std::sync::OnceLock;

use fauna::{Error, ErrorKind, Result};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::table::shorten;

/// DejaVu Sans: Latin, Greek and Cyrillic; its license is in the same folder.
const FONT: &[u8] = include_bytes!("../../assets/font/DejaVuSans-subset.ttf");

/// Registers the font with the plotting library.
///
/// # Errors
/// [`Compute`](ErrorKind::Compute) if it cannot be read.
pub fn ready() -> Result<()> {
    // Fonts are registered once per process.
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    match REGISTERED.get_or_init(|| register_font("sans-serif", FontStyle::Normal, FONT).is_ok()) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Compute, "the built-in font cannot be read")),
    }
}

/// Returns the width of `text` in pixels at font size `size`.
pub fn width_of(text: &str, size: i32) -> i32 {
    ("sans-serif", size).into_font().box_size(text).map_or(0, |(width, _)| width as i32)
}

/// Returns the longest prefix of `text` that is at most `width` pixels wide at font size `size`.
#[cfg_attr(
    not(feature = "vision"),
    allow(dead_code, reason = "for plots and contact sheets, which a build may lack")
)]
pub fn fitting(text: &str, size: i32, width: i32) -> String {
    let lengths = (1..=text.chars().count().min(200)).rev();
    let mut shortened = lengths.map(|length| shorten(text, length));
    shortened.find(|text| width_of(text, size) <= width).unwrap_or_default()
}
