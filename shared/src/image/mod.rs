//! Pictures in and out: files to pixels, pixels to files, sizes by the references' own arithmetic, and what a model's
//! processor file makes of a picture.
//!
//! A picture is an [`Image`]: rows from the top, pixels of red, green and blue bytes from the left.
//! Everything on the way to a model works on bytes, as the references do, so that their numbers are met exactly; the
//! last step, [`Processor`], gives `(3, height, width)` of float32.
//!
//! The room is behind the feature `image`: a build for text alone compiles none of the crates it stands on.

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

/// Refuses a picture without pixels, or whose bytes are not as many as its size says.
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) that names what is wrong.
///
/// ```
/// use fauna_shared::{image, item::Image};
/// assert!(image::check(&Image { width: 2, height: 1, rgb: vec![0; 6] }).is_ok());
/// let short = Image { width: 2, height: 2, rgb: vec![0; 6] };
/// assert_eq!(image::check(&short).unwrap_err().message(), "a picture of 2 x 2 with 6 bytes: 12 wanted");
/// ```
pub fn check(image: &Image) -> Result<()> {
    let (width, height, found) = (image.width, image.height, image.rgb.len());
    match height.checked_mul(width).and_then(|pixels| pixels.checked_mul(3)) {
        Some(0) => Err(Error::input(format!("a picture of {width} x {height} has no pixel"))),
        Some(wanted) if wanted == found => Ok(()),
        Some(wanted) => {
            Err(Error::input(format!("a picture of {width} x {height} with {found} bytes: {wanted} wanted")))
        }
        None => Err(Error::input(format!("a picture of {width} x {height} with {found} bytes"))),
    }
}

/// Refuses a picture that is to be made and has no pixels, or more than `most`.
fn check_size(height: usize, width: usize, most: usize) -> Result<()> {
    match height.checked_mul(width) {
        Some(0) => Err(Error::input(format!("a picture of {width} x {height} has no pixel"))),
        Some(pixels) if pixels <= most => Ok(()),
        _ => Err(Error::input(format!("a picture of {width} x {height}: at most {most} pixels are made"))
            .hint("make it smaller or less long first")),
    }
}

/// The most pixels that are made of `image`: [`MAX_PIXELS`], or of a picture that is larger four times its own.
fn most_of(image: &Image) -> usize {
    MAX_PIXELS.max(image.rgb.len() / 3 * 4)
}

/// The part of `image` from row `top` and column `left` on, `height` by `width`; black where it reaches beyond the
/// picture. `top` and `left` may lie outside.
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

/// Which of `length` places, the first of them at `start`, lie in `0..size`.
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
    fn what_lies_beyond_the_picture_is_black() {
        let image = Image { width: 2, height: 2, rgb: (1..=12).collect() };
        assert_eq!(cut(&image, 0, 0, 2, 2), image);
        assert_eq!(cut(&image, 1, 1, 1, 2).rgb, [10, 11, 12, 0, 0, 0]);
        assert_eq!(cut(&image, -1, -1, 2, 2).rgb, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        assert_eq!(cut(&image, -1, 0, 1, 1).rgb, [0; 3], "wholly outside");
        assert_eq!(cut(&image, 5, 5, 1, 1).rgb, [0; 3], "wholly outside");
    }

    #[test]
    fn absurd_sizes_are_refused_before_they_are_multiplied() {
        let endless = Image { width: usize::MAX, height: 2, rgb: Vec::new() };
        assert!(check(&endless).is_err());
        assert!(check(&Image { width: 0, height: 2, rgb: Vec::new() }).is_err());
    }
}
