//! Encoding of animated GIF files.

use std::borrow::Cow;

use gif::{DisposalMethod, Encoder, Frame, Repeat};

use super::check;
use super::palette::Palette;
use crate::item::Image;
use crate::{Error, Result};

/// Maximum number of frames per second that viewers display.
const FASTEST: f64 = 50.0;

/// Encodes `frames` of the same size as an animated GIF that loops forever. Frame durations are rounded to 1/100 s.
///
/// All frames share a palette of 255 colours, so that static areas do not flicker: the exact colours if there are no
/// more, else those found by a variant of median cut (Heckbert 1982). After the first frame, only the changed rectangle
/// is stored.
///
/// ```
/// use fauna_shared::image::to_gif;
/// use fauna_shared::item::Image;
/// let dot = |level| Image { width: 1, height: 1, rgb: vec![level; 3] };
/// let bytes = to_gif(&[dot(0), dot(255)], 10.0)?;
/// assert!(bytes.starts_with(b"GIF89a"));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if there are no frames, frames have different sizes or sides longer than 65535
/// pixels, [`check`] rejects a frame, or `frames_per_second` is not from 1/600 to 50.
pub fn to_gif(frames: &[Image], frames_per_second: f64) -> Result<Vec<u8>> {
    let first = frames.first().ok_or_else(|| Error::input("the animation has no frames"))?;
    for (i, frame) in frames.iter().enumerate() {
        check(frame).map_err(|error| error.context(format!("frame {i}")))?;
        if (frame.width, frame.height) != (first.width, first.height) {
            return Err(Error::input(format!(
                "frame {i} is {} x {}, frame 0 is {} x {}: all frames must have the same size",
                frame.width, frame.height, first.width, first.height
            )));
        }
    }
    if !(1.0 / 600.0..=FASTEST).contains(&frames_per_second) {
        return Err(Error::input(format!("{frames_per_second} frames per second"))
            .hint(format!("expected above 0 and at most {FASTEST}")));
    }
    let side = |side: usize| {
        u16::try_from(side)
            .map_err(|_| Error::input(format!("a side of {side} pixels is too long for a GIF")))
    };
    let (width, height) = (side(first.width)?, side(first.height)?);
    let palette = Palette::of(frames);
    let failed =
        |error: gif::EncodingError| Error::input(format!("cannot encode the GIF: {error}")).caused_by(error);
    let mut encoder = Encoder::new(Vec::new(), width, height, &palette.table()).map_err(failed)?;
    encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
    let mut shown: Option<Vec<u8>> = None;
    for frame in frames {
        let new = palette.indices(frame);
        let area = Area::of_change(shown.as_deref(), &new, first.width);
        let stored = Frame {
            delay: (100.0 / frames_per_second).round() as u16,
            dispose: DisposalMethod::Keep,
            transparent: Some(palette.transparent()),
            left: side(area.left)?,
            top: side(area.top)?,
            width: side(area.width)?,
            height: side(area.height)?,
            buffer: Cow::Owned(area.changed(shown.as_deref(), &new, first.width, palette.transparent())),
            ..Frame::default()
        };
        encoder.write_frame(&stored).map_err(failed)?;
        shown = Some(new);
    }
    encoder.into_inner().map_err(failed)
}

/// The rectangle in which two frames differ.
struct Area {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Area {
    /// Compares the frame `shown` with the `new` one, rows of `width` pixels; one pixel if they are equal.
    fn of_change(shown: Option<&[u8]>, new: &[u8], width: usize) -> Self {
        let Some(shown) = shown else {
            return Self { left: 0, top: 0, width, height: new.len() / width };
        };
        let mut changed = (0..new.len()).filter(|i| shown[*i] != new[*i]);
        let Some(first) = changed.next() else { return Self { left: 0, top: 0, width: 1, height: 1 } };
        let (top, mut bottom) = (first / width, first / width);
        let (mut left, mut right) = (first % width, first % width);
        for i in changed {
            bottom = i / width;
            left = left.min(i % width);
            right = right.max(i % width);
        }
        Self { left, top, width: right - left + 1, height: bottom - top + 1 }
    }

    /// Returns the pixels of `new` in the area, `transparent` where they are unchanged.
    fn changed(&self, shown: Option<&[u8]>, new: &[u8], width: usize, transparent: u8) -> Vec<u8> {
        let rows = self.top..self.top + self.height;
        let places = rows.flat_map(|row| row * width + self.left..row * width + self.left + self.width);
        let stored = |i: usize| match shown {
            Some(shown) if shown[i] == new[i] => transparent,
            _ => new[i],
        };
        places.map(stored).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The displayed frames of a GIF, and the duration of each in 1/100 s.
    fn shown(bytes: &[u8]) -> Vec<(Image, u16)> {
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(bytes).unwrap();
        let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
        let mut canvas = vec![0; width * height * 3];
        let mut frames = Vec::new();
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            for (i, pixel) in frame.buffer.chunks_exact(4).enumerate() {
                let wide = usize::from(frame.width);
                let (x, y) = (usize::from(frame.left) + i % wide, usize::from(frame.top) + i / wide);
                if pixel[3] > 0 {
                    canvas[(y * width + x) * 3..][..3].copy_from_slice(&pixel[..3]);
                }
            }
            frames.push((Image { width, height, rgb: canvas.clone() }, frame.delay));
        }
        frames
    }

    fn drawn(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Image {
        let rgb = (0..width * height).flat_map(|i| pixel(i % width, i / width)).collect();
        Image { width, height, rgb }
    }

    #[test]
    fn frames_of_few_colours_are_encoded_exactly() {
        let frames: Vec<Image> = (0..6)
            .map(|t| {
                drawn(13, 7, |x, y| match (x, y) {
                    _ if x == 2 * t && y > t => [255, 0, t as u8],
                    _ => [(x * 20) as u8, (y * 9) as u8, 77],
                })
            })
            .collect();
        let found = shown(&to_gif(&frames, 12.5).unwrap());
        assert_eq!(found.len(), 6);
        for ((image, delay), frame) in found.iter().zip(&frames) {
            assert_eq!(image, frame);
            assert_eq!(*delay, 8);
        }
    }

    #[test]
    fn the_error_of_frames_of_many_colours_is_small() {
        let frames: Vec<Image> =
            (0..3).map(|t| drawn(64, 64, |x, y| [(x * 4) as u8, (y * 4) as u8, (60 * t) as u8])).collect();
        for ((image, _), frame) in shown(&to_gif(&frames, 10.0).unwrap()).iter().zip(&frames) {
            let off: Vec<i32> = image
                .rgb
                .iter()
                .zip(&frame.rgb)
                .map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs())
                .collect();
            let mean = off.iter().sum::<i32>() as f64 / off.len() as f64;
            assert!(mean < 8.0 && off.iter().all(|off| *off < 48), "{mean}");
        }
    }

    #[test]
    fn unchanged_frames_take_few_bytes() {
        let noise = drawn(100, 100, |x, y| [(x * y * 7 % 251) as u8, (x * 31 % 254) as u8, 9]);
        let one = to_gif(std::slice::from_ref(&noise), 10.0).unwrap().len();
        let many = to_gif(&vec![noise; 20], 10.0).unwrap();
        assert!(many.len() < one + 20 * 40, "{} after {one}", many.len());
        assert_eq!(shown(&many).len(), 20);
    }

    #[test]
    fn invalid_animations_are_rejected() {
        let dot = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let line = Image { width: 2, height: 1, rgb: vec![0; 6] };
        let long = Image { width: 70_000, height: 1, rgb: vec![0; 210_000] };
        assert_eq!(to_gif(&[], 10.0).unwrap_err().message(), "the animation has no frames");
        assert!(to_gif(&[dot.clone(), line], 10.0).unwrap_err().message().contains("frame 1 is 2 x 1"));
        assert!(to_gif(&[long], 10.0).unwrap_err().message().contains("70000"));
        assert!(to_gif(&[Image { rgb: Vec::new(), ..dot.clone() }], 10.0).is_err());
        for pace in [0.0, -1.0, f64::NAN, f64::INFINITY, 51.0, 1e-9] {
            assert!(to_gif(std::slice::from_ref(&dot), pace).is_err(), "{pace}");
        }
    }
}
