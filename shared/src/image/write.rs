//! Encoding of PNG files.

use std::path::Path;

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::check;
use crate::item::Image;
use crate::{Error, Result};

/// Encodes `image` as PNG.
///
/// ```
/// use fauna_shared::image::{decode, to_png, ImageOptions};
/// use fauna_shared::item::Image;
/// let image = Image { width: 1, height: 2, rgb: vec![1, 2, 3, 4, 5, 6] };
/// assert_eq!(decode(&to_png(&image)?, &ImageOptions::default())?, image);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for an image that [`check`] rejects.
pub fn to_png(image: &Image) -> Result<Vec<u8>> {
    check(image)?;
    let side = |side: usize| {
        u32::try_from(side)
            .map_err(|_| Error::input(format!("a side of {side} pixels is too long for a PNG")))
    };
    let (width, height) = (side(image.width)?, side(image.height)?);
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&image.rgb, width, height, ExtendedColorType::Rgb8)
        .map_err(|error| Error::input(format!("cannot encode the PNG: {error}")).caused_by(error))?;
    Ok(bytes)
}

/// Writes `image` to the PNG file `path`.
///
/// # Errors
/// Same as [`to_png`], and [`Io`](crate::ErrorKind::Io) if the file cannot be written.
pub fn write(path: impl AsRef<Path>, image: &Image) -> Result<()> {
    let path = path.as_ref();
    let bytes = to_png(image).map_err(|error| error.at(path))?;
    std::fs::write(path, bytes).map_err(|error| Error::io(path, "write", error))
}
