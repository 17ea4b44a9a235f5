//! PNG files that the program draws, and overwrites where it has drawn them before.

use std::path::Path;

use fauna::{Error, ErrorKind, Result};

use super::output::{self, Output};

/// Checks that `maker` may write a file at `path`: none is there, or `maker` wrote it.
///
/// # Errors
/// [`Input`](ErrorKind::Input) otherwise, unless `force` is on.
pub fn check_free(path: &Path, force: bool, maker: &str) -> Result<()> {
    output::check_free(path, force || is_by(path, maker))
}

/// Writes `pixels`, `(height, width, 3)`, at `path`, with the `Software` text `maker`.
///
/// # Errors
/// As [`check_free`], and of writing.
pub fn write(
    path: &Path,
    force: bool,
    maker: &str,
    pixels: &[u8],
    [width, height]: [usize; 2],
) -> Result<()> {
    let bytes = encode(pixels, width as u32, height as u32, maker)
        .map_err(|e| Error::new(ErrorKind::Compute, format!("cannot write a PNG: {e}")).caused_by(e))?;
    let mut output = Output::open(Some(path), force || is_by(path, maker))?;
    output.bytes(&bytes)?;
    output.finish()
}

/// Returns whether the file at `path` is a PNG whose `Software` text is `maker`.
fn is_by(path: &Path, maker: &str) -> bool {
    let start = std::fs::read(path).unwrap_or_default();
    start.starts_with(b"\x89PNG")
        && start[..start.len().min(512)].windows(maker.len()).any(|w| w == maker.as_bytes())
}

/// Encodes pixels as a PNG file with the `Software` text `maker`.
fn encode(
    pixels: &[u8],
    width: u32,
    height: u32,
    maker: &str,
) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk("Software".to_string(), maker.to_string())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}
