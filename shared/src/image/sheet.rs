//! Image grids and contact sheets.

use super::resize::{Arithmetic, Filter, resize};
use super::{MAX_PIXELS, check_size};
use crate::item::Image;
use crate::{Error, Result};

/// Arranges `images` in a grid of `columns` columns, row by row. Cells have the size of the largest image; images are
/// centred on white.
///
/// ```
/// use fauna_shared::image::sheet::grid;
/// use fauna_shared::item::Image;
/// let dot = |grey| Image { width: 1, height: 1, rgb: vec![grey; 3] };
/// let grid = grid(&[dot(1), dot(2), dot(3)], 2)?;
/// assert_eq!((grid.width, grid.height), (2, 2));
/// assert_eq!(grid.rgb, [1, 1, 1, 2, 2, 2, 3, 3, 3, 255, 255, 255]);
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](crate::ErrorKind::Input) if there are no images or columns, or the grid has more than [`MAX_PIXELS`].
pub fn grid(images: &[Image], columns: usize) -> Result<Image> {
    let height = images.iter().map(|image| image.height).max().unwrap_or(0);
    let width = images.iter().map(|image| image.width).max().unwrap_or(0);
    let sheet = Sheet { columns, cells: images.len(), height, width, margin: 0, caption: 0 };
    sheet.draw(images)
}

/// Layout of a contact sheet with captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sheet {
    /// Number of columns.
    pub columns: usize,
    /// Number of cells.
    pub cells: usize,
    /// Maximum height of an image, in pixels.
    pub height: usize,
    /// Maximum width of an image, in pixels.
    pub width: usize,
    /// White margin around each cell, in pixels.
    pub margin: usize,
    /// Height of the caption below each image, in pixels.
    pub caption: usize,
}

impl Sheet {
    /// Returns the height and width of the sheet.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if there are no cells or columns, or more than [`MAX_PIXELS`].
    pub fn size(&self) -> Result<(usize, usize)> {
        if self.columns == 0 || self.cells == 0 {
            return Err(Error::input("the contact sheet has no cells"));
        }
        let columns = self.columns.min(self.cells);
        let rows = self.cells.div_ceil(columns);
        let side = |count: usize, cell: usize| {
            let step = cell.checked_add(self.margin)?;
            step.checked_mul(count)?.checked_add(self.margin)
        };
        let height = self.height.checked_add(self.caption).and_then(|cell| side(rows, cell));
        let sizes = height.zip(side(columns, self.width));
        let (height, width) = sizes.ok_or_else(|| Error::input("the contact sheet is too large"))?;
        check_size(height, width, MAX_PIXELS)?;
        Ok((height, width))
    }

    /// Returns the row and column of the top left pixel of cell `index`; its caption begins [`height`](Sheet::height)
    /// rows below.
    pub fn place(&self, index: usize) -> (usize, usize) {
        let columns = self.columns.min(self.cells).max(1);
        let top = self.margin + index / columns * (self.height + self.caption + self.margin);
        (top, self.margin + index % columns * (self.width + self.margin))
    }

    /// Draws `images` on white, each centred in its cell and downscaled if it is larger.
    ///
    /// # Errors
    /// Same as [`size`](Sheet::size), and for an image that [`check`](super::check) rejects.
    pub fn draw(&self, images: &[Image]) -> Result<Image> {
        let (height, width) = self.size()?;
        let mut sheet = Image { width, height, rgb: vec![255; height * width * 3] };
        for (index, image) in images.iter().take(self.cells).enumerate() {
            let image = &self.fitted(image)?;
            let (top, left) = self.place(index);
            let (top, left) = (top + (self.height - image.height) / 2, left + (self.width - image.width) / 2);
            for (row, bytes) in image.rgb.chunks_exact(image.width * 3).enumerate() {
                let start = ((top + row) * width + left) * 3;
                sheet.rgb[start..start + bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(sheet)
    }

    /// Downscales `image` to fit a cell, keeping its aspect ratio.
    fn fitted(&self, image: &Image) -> Result<Image> {
        super::check(image)?;
        if image.height <= self.height && image.width <= self.width {
            return Ok(image.clone());
        }
        let scale = (self.height as f64 / image.height as f64).min(self.width as f64 / image.width as f64);
        let side = |side: usize, most: usize| ((side as f64 * scale).round() as usize).clamp(1, most);
        let (height, width) = (side(image.height, self.height), side(image.width, self.width));
        resize(image, height, width, Filter::Lanczos, Arithmetic::Pillow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_images_are_downscaled_and_small_ones_centred() {
        let large = Image { width: 40, height: 20, rgb: vec![0; 2400] };
        let small = Image { width: 2, height: 2, rgb: vec![0; 12] };
        let sheet = Sheet { columns: 2, cells: 2, height: 10, width: 10, margin: 3, caption: 5 };
        assert_eq!(sheet.size().unwrap(), (21, 29));
        let drawn = sheet.draw(&[large, small]).unwrap();
        let dark = |row: usize, column: usize| drawn.rgb[(row * 29 + column) * 3] == 0;
        assert!(dark(5, 3) && dark(9, 12) && !dark(4, 3) && !dark(10, 12), "10 x 5 in the first cell");
        assert!(dark(7, 20) && dark(8, 21) && !dark(7, 19) && !dark(9, 20), "2 x 2 in the second");
        let count = drawn.rgb.chunks_exact(3).filter(|pixel| pixel[0] == 0).count();
        assert_eq!(count, 10 * 5 + 4);
    }

    #[test]
    fn empty_and_too_large_sheets_are_rejected() {
        assert!(grid(&[], 3).is_err());
        let sheet = Sheet { columns: 1, cells: 9, height: usize::MAX, width: 1, margin: 0, caption: 1 };
        assert!(sheet.size().is_err());
        assert!(Sheet { height: 1 << 40, caption: 0, ..sheet }.size().is_err());
    }
}
