//! Resizing with the arithmetic of Pillow and of torchvision.
//!
//! Both widen the filter when downscaling (antialiasing), resize one axis first and round to bytes before the other.
//! They differ in the precision of the weights: 22 bits in Pillow, in torchvision as many as let the largest weight fit
//! 16 bits; this changes about one in a few hundred bytes by 1. torchvision resizes horizontally first; Pillow does not
//! if the height is reduced much more than the width.
//!
//! Checked byte for byte against Pillow 13.0.0 and torchvision 0.24.1 on a machine with AVX2, with the fixtures in
//! `tests/image/reference.safetensors`.

use std::ops::Range;
use std::sync::OnceLock;

use super::{check, check_size, most_of};
use crate::item::Image;
use crate::kernels::pool;
use crate::{Error, Result};

/// Maximum side of a resized image, before cropping.
pub const MAX_SIDE: usize = 1 << 24;

/// Resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Nearest neighbour.
    Nearest,
    /// Box (mean).
    Box,
    /// Bilinear (triangle).
    Bilinear,
    /// Hamming-windowed sinc.
    Hamming,
    /// Bicubic with a = -0.5.
    Bicubic,
    /// Lanczos (windowed sinc with three lobes).
    Lanczos,
}

impl Filter {
    /// Returns the filter of a Pillow `resample` number, as in `preprocessor_config.json`.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for an unknown number.
    pub fn of_pillow(resample: u64) -> Result<Self> {
        match resample {
            0 => Ok(Self::Nearest),
            1 => Ok(Self::Lanczos),
            2 => Ok(Self::Bilinear),
            3 => Ok(Self::Bicubic),
            4 => Ok(Self::Box),
            5 => Ok(Self::Hamming),
            other => Err(Error::unsupported(format!("unknown resample filter {other}"))
                .hint("known: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming")),
        }
    }

    /// Support (radius) of the filter, in pixels of the larger image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// Value of the filter at `x`.
    fn at(self, x: f64) -> f64 {
        let far = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - far).max(0.0),
            Self::Hamming if far == 0.0 => 1.0,
            Self::Hamming if far >= 1.0 => 0.0,
            Self::Hamming => {
                let x = far * std::f64::consts::PI;
                x.sin() / x * (0.54 + 0.46 * x.cos())
            }
            Self::Bicubic => cubic(far, -0.5),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// The cubic convolution kernel (Keys) at `x >= 0`.
pub(super) fn cubic(x: f64, a: f64) -> f64 {
    match x {
        _ if x < 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        _ => 0.0,
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// The library whose results are reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Pillow, on 8-bit images.
    Pillow,
    /// torchvision, on uint8 tensors with `antialias=True`, on machines with AVX2; nearest is its `NEAREST_EXACT`.
    Torchvision,
}

/// A crop of a resized image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Rows of the resized image.
    pub rows: Range<usize>,
    /// Columns of the resized image.
    pub columns: Range<usize>,
}

/// Resizes `image` to `height` by `width`, ignoring the aspect ratio.
///
/// ```
/// use fauna_shared::image::resize::{resize, Arithmetic, Filter};
/// use fauna_shared::item::Image;
/// let checks = Image { width: 2, height: 1, rgb: vec![0, 0, 0, 255, 255, 255] };
/// let grey = resize(&checks, 1, 1, Filter::Bilinear, Arithmetic::Pillow)?;
/// assert_eq!(grey.rgb, [128; 3]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) for an image that [`check`] rejects, or a size with no or too many pixels;
/// [`Unsupported`](crate::ErrorKind::Unsupported) for box, Hamming and Lanczos with torchvision.
pub fn resize(
    image: &Image,
    height: usize,
    width: usize,
    filter: Filter,
    arithmetic: Arithmetic,
) -> Result<Image> {
    check_size(height, width, most_of(image))?;
    resize_part(image, height, width, &Part { rows: 0..height, columns: 0..width }, filter, arithmetic)
}

/// Returns the crop `part` of the result of [`resize`]. Only its pixels are computed, so that a crop of a very
/// elongated image takes little memory.
///
/// # Errors
/// Same as [`resize`], and [`Input`](crate::ErrorKind::Input) for a part that is empty or outside, or a side beyond
/// [`MAX_SIDE`].
pub fn resize_part(
    image: &Image,
    height: usize,
    width: usize,
    part: &Part,
    filter: Filter,
    arithmetic: Arithmetic,
) -> Result<Image> {
    check(image)?;
    check_size(part.rows.len(), part.columns.len(), most_of(image))?;
    if part.rows.end > height || part.columns.end > width {
        return Err(Error::input(format!("{part:?} is outside of {height} x {width}")));
    }
    if height.max(width) > MAX_SIDE {
        return Err(Error::input(format!(
            "an image of {} x {} would become {width} x {height}, expected sides of at most {MAX_SIDE}",
            image.width, image.height
        ))
        .hint("its aspect ratio is too large"));
    }
    use Filter::{Box, Hamming, Lanczos};
    if arithmetic == Arithmetic::Torchvision && matches!(filter, Box | Hamming | Lanczos) {
        return Err(Error::unsupported(format!(
            "torchvision does not support the filter {filter:?} for tensors"
        )));
    }
    if filter == Filter::Nearest {
        let rows = nearest(image.height, height, &part.rows, arithmetic);
        let columns = nearest(image.width, width, &part.columns, arithmetic);
        return Ok(pick(image, &rows, &columns));
    }
    let down = Taps::new(image.height, height, &part.rows, filter, arithmetic);
    let across = Taps::new(image.width, width, &part.columns, filter, arithmetic);
    // Only the pixels that contribute to the part.
    let rows = down.as_ref().map_or(part.rows.clone(), Taps::reach);
    let columns = across.as_ref().map_or(part.columns.clone(), Taps::reach);
    let seen = Piece::of(image, rows, columns);
    let columns_first = |seen: Piece| across_or(&down, seen, Taps::along_columns);
    let rows_first = |seen: Piece| across_or(&across, seen, Taps::along_rows);
    let made = match goes_down_first(image, height, width, arithmetic) {
        true => rows_first(columns_first(seen)),
        false => columns_first(rows_first(seen)),
    };
    Ok(Image { width: part.columns.len(), height: part.rows.len(), rgb: made.rgb })
}

/// Whether the image is resized vertically first: in Pillow, from version 13 on, if the height is reduced more than
/// twice as much as the width.
fn goes_down_first(image: &Image, height: usize, width: usize, arithmetic: Arithmetic) -> bool {
    let lost = |old: usize, new: usize| old as i128 - new as i128;
    let (rows, columns) = (lost(image.height, height), lost(image.width, width));
    arithmetic == Arithmetic::Pillow && rows > 0 && rows > 2 * columns
}

/// Applies a pass to `seen`; returns it unchanged if the length of the axis does not change.
fn across_or(taps: &Option<Taps>, seen: Piece, pass: fn(&Taps, &Piece) -> Piece) -> Piece {
    match taps {
        Some(taps) => pass(taps, &seen),
        None => seen,
    }
}

/// A crop of an intermediate image, with the position of its first pixel.
struct Piece {
    top: usize,
    left: usize,
    width: usize,
    rgb: Vec<u8>,
}

impl Piece {
    fn of(image: &Image, rows: Range<usize>, columns: Range<usize>) -> Self {
        let mut rgb = Vec::with_capacity(rows.len() * columns.len() * 3);
        for row in rows.clone() {
            rgb.extend_from_slice(&image.rgb[(row * image.width + columns.start) * 3..][..columns.len() * 3]);
        }
        Self { top: rows.start, left: columns.start, width: columns.len(), rgb }
    }
}

/// Returns the given rows and columns of `image`.
fn pick(image: &Image, rows: &[usize], columns: &[usize]) -> Image {
    let mut rgb = Vec::with_capacity(rows.len() * columns.len() * 3);
    for row in rows {
        let row = &image.rgb[row * image.width * 3..][..image.width * 3];
        columns.iter().for_each(|column| rgb.extend_from_slice(&row[column * 3..column * 3 + 3]));
    }
    Image { width: columns.len(), height: rows.len(), rgb }
}

/// Returns the source index of each index in `part`, for the nearest filter.
fn nearest(from: usize, to: usize, part: &Range<usize>, arithmetic: Arithmetic) -> Vec<usize> {
    if from == to {
        return part.clone().collect();
    }
    match arithmetic {
        // Pillow accumulates the step.
        Arithmetic::Pillow => {
            let step = from as f64 / to as f64;
            let places = std::iter::successors(Some(step * 0.5), |place| Some(place + step));
            places.skip(part.start).take(part.len()).map(|place| (place as usize).min(from - 1)).collect()
        }
        Arithmetic::Torchvision => {
            let step = from as f32 / to as f32;
            let place = |i: usize| ((i as f64 + 0.5) * f64::from(step)) as f32;
            part.clone().map(|i| (place(i).floor() as usize).min(from - 1)).collect()
        }
    }
}

/// Fixed-point weights of resizing one axis: for each output index, a range of source indices and their weights.
struct Taps {
    /// First source index and number of source indices of each output index.
    runs: Vec<(usize, usize)>,
    /// The weights of all output indices.
    weights: Vec<i32>,
    /// Start of the weights of each output index.
    starts: Vec<usize>,
    /// Number of fractional bits of the weights.
    bits: u32,
}

impl Taps {
    /// Returns `None` if the length of the axis does not change: both libraries then skip the pass.
    fn new(
        from: usize,
        to: usize,
        part: &Range<usize>,
        filter: Filter,
        arithmetic: Arithmetic,
    ) -> Option<Self> {
        if from == to {
            return None;
        }
        let mut run = Vec::new();
        let bits = match arithmetic {
            Arithmetic::Pillow => 22,
            Arithmetic::Torchvision => {
                // Over the whole axis: the result must not depend on the crop.
                let mut largest = 0f64;
                for place in 0..to {
                    weights_at(place, from, to, filter, &mut run);
                    largest = run.iter().fold(largest, |largest, weight| largest.max(*weight));
                }
                let fits = |bits: &u32| ((0.5 + largest * f64::from(1u32 << (bits + 1))) as i64) < 1 << 15;
                (0..22).find(|bits| !fits(bits)).unwrap_or(22)
            }
        };
        let one = f64::from(1u32 << bits);
        let mut taps = Self { runs: Vec::new(), weights: Vec::new(), starts: Vec::new(), bits };
        for place in part.clone() {
            let first = weights_at(place, from, to, filter, &mut run);
            taps.runs.push((first, run.len()));
            taps.starts.push(taps.weights.len());
            taps.weights.extend(run.iter().map(|weight| (weight * one + 0.5f64.copysign(*weight)) as i32));
        }
        Some(taps)
    }

    /// Returns the range of source indices used.
    fn reach(&self) -> Range<usize> {
        let first = self.runs.first().map_or(0, |run| run.0);
        let end = self.runs.last().map_or(0, |run| run.0 + run.1);
        first..end
    }

    fn run(&self, index: usize) -> (usize, &[i32]) {
        let (first, count) = self.runs[index];
        (first, &self.weights[self.starts[index]..][..count])
    }

    fn byte(&self, sum: i32) -> u8 {
        (sum >> self.bits).clamp(0, 255) as u8
    }

    /// Resizes the rows of `old` horizontally.
    fn along_rows(&self, old: &Piece) -> Piece {
        let half = 1i32 << (self.bits - 1);
        let height = old.rgb.len() / (old.width * 3);
        let rgb = in_bands(height, self.weights.len() * 3, |rows| {
            let mut out = Vec::with_capacity(rows.len() * self.runs.len() * 3);
            for row in rows {
                let row = &old.rgb[row * old.width * 3..][..old.width * 3];
                for index in 0..self.runs.len() {
                    let (first, weights) = self.run(index);
                    let mut sums = [half; 3];
                    for (pixel, weight) in row[(first - old.left) * 3..].chunks_exact(3).zip(weights) {
                        for (sum, byte) in sums.iter_mut().zip(pixel) {
                            *sum += weight * i32::from(*byte);
                        }
                    }
                    out.extend(sums.map(|sum| self.byte(sum)));
                }
            }
            out
        });
        Piece { top: old.top, left: 0, width: self.runs.len(), rgb }
    }

    /// Resizes `old` vertically.
    fn along_columns(&self, old: &Piece) -> Piece {
        let half = 1i32 << (self.bits - 1);
        let bytes = old.width * 3;
        let taps = self.weights.len().div_ceil(self.runs.len().max(1));
        let rgb = in_bands(self.runs.len(), taps * bytes, |rows| {
            let mut out = Vec::with_capacity(rows.len() * bytes);
            let mut sums = vec![half; bytes];
            for index in rows {
                let (first, weights) = self.run(index);
                sums.fill(half);
                for (row, weight) in old.rgb[(first - old.top) * bytes..].chunks_exact(bytes).zip(weights) {
                    for (sum, byte) in sums.iter_mut().zip(row) {
                        *sum += weight * i32::from(*byte);
                    }
                }
                out.extend(sums.iter().map(|sum| self.byte(*sum)));
            }
            out
        });
        Piece { top: 0, left: old.left, width: old.width, rgb }
    }
}

/// Computes the weights of output index `place`, which sum to one; returns the first source index.
fn weights_at(place: usize, from: usize, to: usize, filter: Filter, weights: &mut Vec<f64>) -> usize {
    let scale = from as f64 / to as f64;
    let (support, shrink) = (filter.support() * scale.max(1.0), 1.0 / scale.max(1.0));
    let centre = (place as f64 + 0.5) * scale;
    // Casts to usize saturate at zero.
    let first = (centre - support + 0.5) as usize;
    let end = ((centre + support + 0.5) as usize).min(from);
    weights.clear();
    weights.extend((first..end).map(|old| filter.at((old as f64 - centre + 0.5) * shrink)));
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    first
}

/// Number of multiplications per thread.
const BAND: usize = 1 << 18;

/// Computes `rows` rows in bands, on several threads if there is enough work; each row takes `work` multiplications.
fn in_bands(rows: usize, work: usize, f: impl Fn(Range<usize>) -> Vec<u8> + Sync) -> Vec<u8> {
    let height = BAND.div_ceil(work.max(1));
    let count = rows.div_ceil(height);
    if count <= 1 {
        return f(0..rows);
    }
    let bands: Vec<OnceLock<Vec<u8>>> = (0..count).map(|_| OnceLock::new()).collect();
    pool::parallel_for(count, |index| {
        let _ = bands[index].set(f(index * height..rows.min((index + 1) * height)));
    });
    let bands: Vec<Vec<u8>> = bands.into_iter().map(|band| band.into_inner().unwrap_or_default()).collect();
    bands.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: usize, width: usize) -> Image {
        let rgb = (0..height * width * 3).map(|i| (i * i * 7 + i / 5 * 31) as u8).collect();
        Image { width, height, rgb }
    }

    const ALL: [Filter; 6] =
        [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

    #[test]
    fn a_part_equals_the_crop_of_the_whole() {
        let image = picture(23, 41);
        for arithmetic in [Arithmetic::Pillow, Arithmetic::Torchvision] {
            for filter in ALL {
                for (height, width) in [(9, 60), (50, 7), (23, 11), (30, 41)] {
                    let Ok(whole) = resize(&image, height, width, filter, arithmetic) else { continue };
                    let part = Part { rows: 2..height - 1, columns: 1..width - 3 };
                    let found = resize_part(&image, height, width, &part, filter, arithmetic).unwrap();
                    let wanted = super::super::cut(&whole, 2, 1, height - 3, width - 4);
                    assert_eq!(found, wanted, "{filter:?} {arithmetic:?} {height} x {width}");
                }
            }
        }
    }

    #[test]
    fn a_uniform_image_stays_uniform() {
        let image = Image { width: 7, height: 5, rgb: [200, 3, 255].repeat(35) };
        for filter in ALL {
            for (height, width) in [(1, 1), (13, 3), (40, 41)] {
                let found = resize(&image, height, width, filter, Arithmetic::Pillow).unwrap();
                assert_eq!(found.rgb, [200, 3, 255].repeat(height * width), "{filter:?} {height} x {width}");
            }
        }
    }

    #[test]
    fn a_crop_of_an_elongated_image_takes_little_memory() {
        let image = picture(1, 60_000);
        let part = Part { rows: 0..224, columns: 6_719_888..6_720_112 };
        let found = resize_part(&image, 224, 13_440_000, &part, Filter::Bicubic, Arithmetic::Torchvision);
        assert_eq!(found.unwrap().width, 224);
        let error = resize_part(&image, 1024, 1 << 25, &part, Filter::Bicubic, Arithmetic::Pillow);
        assert!(error.unwrap_err().message().contains("would become 33554432 x 1024"));
    }

    #[test]
    fn filters_that_torchvision_does_not_support_are_rejected() {
        let error = resize(&picture(3, 3), 2, 2, Filter::Lanczos, Arithmetic::Torchvision).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
    }
}
