//! Images: decoding and encoding files, resizing with the arithmetic of the reference implementations, and the image
//! processors of models.
//!
//! An [`Image`] is `(height, width, 3)` bytes of RGB. Resizing and cropping are done on bytes, as in the reference
//! implementations, so that the results are identical; a [`Processor`] returns `(3, height, width)` of float32.
//!
//! This module requires the feature `image`.

mod animation;
mod palette;
pub mod processor;
mod read;
pub mod resize;
pub mod sheet;
pub mod tensor;
mod write;

pub use animation::to_gif;
pub use processor::Processor;
pub use read::{DecodedImage, decode, read, read_with, read_with_notes};
pub use write::{to_png, write};

use crate::item::Image;
pub use crate::item::{Alpha, ImageOptions, MAX_PIXELS};
use crate::{Error, Result};

/// Checks that an image has pixels, and the number of bytes that its size requires.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names the problem.
///
/// ```
/// use fauna_shared::{image, item::Image};
/// assert!(image::check(&Image { width: 2, height: 1, rgb: vec![0; 6] }).is_ok());
/// let short = Image { width: 2, height: 2, rgb: vec![0; 6] };
/// assert_eq!(image::check(&short).unwrap_err().message(), "an image of 2 x 2 with 6 bytes, expected 12");
/// ```
pub fn check(image: &Image) -> Result<()> {
    let (width, height, found) = (image.width, image.height, image.rgb.len());
    match height.checked_mul(width).and_then(|pixels| pixels.checked_mul(3)) {
        Some(0) => Err(Error::input(format!("an image of {width} x {height} has no pixels"))),
        Some(wanted) if wanted == found => Ok(()),
        Some(wanted) => {
            Err(Error::input(format!("an image of {width} x {height} with {found} bytes, expected {wanted}")))
        }
        None => Err(Error::input(format!("an image of {width} x {height} with {found} bytes"))),
    }
}

/// Checks that an image to be created has at least one pixel and at most `most`.
fn check_size(height: usize, width: usize, most: usize) -> Result<()> {
    match height.checked_mul(width) {
        Some(0) => Err(Error::input(format!("an image of {width} x {height} has no pixels"))),
        Some(pixels) if pixels <= most => Ok(()),
        _ => Err(Error::input(format!("an image of {width} x {height}, expected at most {most} pixels"))
            .hint("make it smaller or less elongated first")),
    }
}

/// Returns the maximum number of pixels of a processed `image`: [`MAX_PIXELS`], or four times its own number if that is
/// larger.
fn most_of(image: &Image) -> usize {
    MAX_PIXELS.max(image.rgb.len() / 3 * 4)
}

/// Crops `image` to `height` by `width` at row `top` and column `left`, which may be outside; black beyond the image.
fn cut(image: &Image, top: isize, left: isize, height: usize, width: usize) -> Image {
    let mut rgb = vec![0; height * width * 3];
    let columns = overlap(left, width, image.width);
    for row in overlap(top, height, image.height) {
        let from =
            ((row as isize + top) as usize * image.width + (columns.start as isize + left) as usize) * 3;
        let (to, bytes) = ((row * width + columns.start) * 3, columns.len() * 3);
        rgb[to..to + bytes].copy_from_slice(&image.rgb[from..from + bytes]);
    }
    Image { width, height, rgb }
}

/// Returns the range of `length` positions, the first of them at `start`, that are in `0..size`.
fn overlap(start: isize, length: usize, size: usize) -> std::ops::Range<usize> {
    let first = start.min(0).unsigned_abs().min(length);
    let end = (size as isize - start).clamp(first as isize, length as isize);
    match first < length {
        true => first..end as usize,
        false => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_beyond_the_image_are_black() {
        let image = Image { width: 2, height: 2, rgb: (1..=12).collect() };
        assert_eq!(cut(&image, 0, 0, 2, 2), image);
        assert_eq!(cut(&image, 1, 1, 1, 2).rgb, [10, 11, 12, 0, 0, 0]);
        assert_eq!(cut(&image, -1, -1, 2, 2).rgb, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(cut(&image, -1, 0, 1, 1).rgb, [0; 3], "outside the image");
        assert_eq!(cut(&image, 5, 5, 1, 1).rgb, [0; 3], "outside the image");
    }

    #[test]
    fn sizes_that_overflow_are_rejected() {
        let endless = Image { width: usize::MAX, height: 2, rgb: Vec::new() };
        assert!(check(&endless).is_err());
        assert!(check(&Image { width: 0, height: 2, rgb: Vec::new() }).is_err());
    }
}
