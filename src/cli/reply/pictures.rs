//! Image files that are updated during generation: one image, or a grid of several.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::str::FromStr;

use fauna::image;
use fauna::{Error, Image, Item, Pipeline, Result, cosine};
use serde_json::{Value, json};

use crate::cli::options::Place;
use crate::cli::output::Output;

/// Maximum number of images in a grid.
const MOST: usize = 100;

/// Options of image generation.
#[derive(Debug, Clone, Default)]
pub struct Drawing {
    /// Grid of images for each prompt; `None` for one image.
    pub grid: Option<Grid>,
    /// Model that ranks the images of a prompt.
    pub rank: Option<String>,
    /// Whether the file is written only when the images are complete.
    pub no_previews: bool,
}

/// Rows and columns of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    rows: usize,
    columns: usize,
}

impl Grid {
    /// Returns the number of images.
    pub fn count(self) -> usize {
        self.rows * self.columns
    }
}

impl FromStr for Grid {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parse = |side: &str| side.trim().parse::<usize>().ok().filter(|side| (1..=MOST).contains(side));
        let sides = text.split_once(['x', 'X', '×']).map(|(rows, columns)| (parse(rows), parse(columns)));
        match sides {
            Some((Some(rows), Some(columns))) if rows * columns <= MOST => Ok(Self { rows, columns }),
            _ => Err(format!("expected ROWSxCOLUMNS with at most {MOST} images, for example 3x3")),
        }
    }
}

/// The images of one prompt and their file.
pub struct Pictures {
    place: Place,
    grid: Grid,
    made: Vec<Option<Image>>,
    /// Similarity of each image to the prompt, if they were ranked.
    scores: Option<Vec<f32>>,
}

impl Pictures {
    /// Creates the images of `grid`, or a single one, with the output file `place`. Nothing is written yet.
    ///
    /// # Errors
    /// [`Input`](fauna::ErrorKind::Input) if `place` is not a .png file.
    pub fn at(place: Place, grid: Option<Grid>) -> Result<Self> {
        place.file("images", "png")?;
        let grid = grid.unwrap_or(Grid { rows: 1, columns: 1 });
        Ok(Self { place, grid, made: vec![None; grid.count()], scores: None })
    }

    /// Sets image `index`, complete or partial, and updates the file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn take(&mut self, index: usize, picture: Image) -> Result<()> {
        if let Some(place) = self.made.get_mut(index) {
            *place = Some(picture);
        }
        self.write()
    }

    /// Sorts the images by their similarity to `prompt`, computed by `judge` (Ramesh et al. 2021, section 2.6).
    ///
    /// # Errors
    /// If `judge` does not embed both texts and images.
    pub fn rank(&mut self, judge: &dyn Pipeline, prompt: &str) -> Result<()> {
        let pictures: Vec<Image> = self.made.iter().flatten().cloned().collect();
        let items = std::iter::once(Item::from(prompt)).chain(pictures.iter().cloned().map(Item::Image));
        let vectors = judge.embed(&items.collect::<Vec<_>>())?.to_vecs()?;
        let Some((wanted, found)) = vectors.split_first() else { return Ok(()) };
        let mut ranked: Vec<(f32, Image)> =
            found.iter().map(|vector| cosine(wanted, vector)).zip(pictures).collect();
        ranked.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
        let (scores, pictures): (Vec<f32>, Vec<Image>) = ranked.into_iter().unzip();
        self.scores = Some(scores);
        self.made = pictures.into_iter().map(Some).collect();
        self.made.resize(self.grid.count(), None);
        self.write()
    }

    /// Writes the images so far; the file is a valid PNG at any time.
    fn write(&mut self) -> Result<()> {
        let Some(size) = self.made.iter().flatten().next() else { return Ok(()) };
        let empty =
            Image { width: size.width, height: size.height, rgb: vec![128; size.width * size.height * 3] };
        let cells: Vec<Image> =
            self.made.iter().map(|made| made.as_ref().unwrap_or(&empty).clone()).collect();
        let whole = image::sheet::grid(&cells, self.grid.columns)?;
        let mut output = Output::open(self.place.path.as_deref(), self.place.force)?;
        output.bytes(&image::to_png(&whole)?)?;
        output.finish()?;
        // From now on, the existing file is our own.
        self.place.force = true;
        Ok(())
    }

    /// Returns the path of the file, its description and the description as JSON.
    ///
    /// # Errors
    /// [`Compute`](fauna::ErrorKind::Compute) if the model returned no image.
    pub fn written(&self) -> Result<(PathBuf, String, Value)> {
        let made = self.made.iter().flatten().count();
        let (Some(path), Some(size)) = (&self.place.path, self.made.iter().flatten().next()) else {
            return Err(Error::new(fauna::ErrorKind::Compute, "the model returned no image"));
        };
        let mut about = json!({"pictures": made, "width": size.width, "height": size.height});
        let plural = if made == 1 { "" } else { "s" };
        let mut words = format!("{made} image{plural} of {}x{}", size.width, size.height);
        if let Some(scores) = &self.scores {
            about["scores"] = json!(scores);
            let scores: Vec<String> = scores.iter().map(|score| format!("{score:.3}")).collect();
            words += &format!(", sorted by similarity to the prompt ({})", scores.join(" "));
        }
        Ok((path.clone(), words, about))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_rows_by_columns() {
        assert_eq!("3x4".parse(), Ok(Grid { rows: 3, columns: 4 }));
        for wrong in ["", "3", "0x3", "3x", "11x10", "99999999999999999999x1", "axb"] {
            assert!(wrong.parse::<Grid>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn partial_images_are_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        let place = Place { path: Some(path.clone()), ..Place::default() };
        let mut pictures = Pictures::at(place, Some("1x2".parse().unwrap())).unwrap();
        assert!(pictures.written().is_err(), "no image yet");
        let red = Image { width: 1, height: 1, rgb: vec![255, 0, 0] };
        pictures.take(1, red.clone()).unwrap();
        assert_eq!(image::read(&path).unwrap().rgb, [128, 128, 128, 255, 0, 0]);
        pictures.take(0, red).unwrap();
        assert_eq!(image::read(&path).unwrap().rgb, [255, 0, 0, 255, 0, 0]);
        assert_eq!(pictures.written().unwrap().1, "2 images of 1x1");
    }
}
