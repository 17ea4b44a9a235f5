//! The font of plots, heatmaps and contact sheets.

use std::sync::OnceLock;

use fauna::{Error, ErrorKind, Result};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

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
