//! Cross-attention from tokens to images: masks, and the keys and values of the images.

use std::ops::Range;

use candle_core::{DType, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::item::Image;
use fauna_shared::{Error, Result, transfer};

/// Batch size of the vision encoder: larger batches need more memory and are not faster.
const BATCH_SIZE: usize = 8;

/// The images that each token attends to, indexed by sequence, token and image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MediaLocations {
    rows: Vec<Vec<Vec<bool>>>,
}

impl MediaLocations {
    /// Each token attends to the latest image: that of the last `<image>` token up to it, if any. After an `end` token,
    /// no image is attended to until the next one.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) if a sequence has more `<image>` tokens than images.
    pub fn latest(rows: &[Vec<u32>], pictures: &[usize], place: u32, end: Option<u32>) -> Result<Self> {
        let row = |(r, ids): (usize, &Vec<u32>)| {
            let pictures = pictures.get(r).copied().unwrap_or(0);
            let places = ids.iter().filter(|id| **id == place).count();
            if places > pictures {
                return Err(too_few(places, pictures).context(format!("sequence {r}")));
            }
            let (mut count, mut over) = (0, false);
            let look = |id: &u32| {
                if *id == place {
                    (count, over) = (count + 1, false);
                }
                let seen = (0..pictures).map(|picture| !over && picture + 1 == count).collect();
                over |= Some(*id) == end;
                seen
            };
            Ok(ids.iter().map(look).collect())
        };
        Ok(Self { rows: rows.iter().enumerate().map(row).collect::<Result<_>>()? })
    }

    /// From a mask, `(batch, sequence, images)`, nonzero where a token attends to an image.
    pub fn table(table: &Tensor) -> Result<Self> {
        let table = table.to_dtype(DType::F32)?;
        let (batch, ..) = table.dims3()?;
        let seen = |row: Vec<f32>| row.into_iter().map(|seen| seen != 0.0).collect();
        let row = |i: usize| Ok(transfer::rows(&table.get(i)?)?.into_iter().map(seen).collect());
        Ok(Self { rows: (0..batch).map(row).collect::<Result<_>>()? })
    }

    /// Removes the first `pads` tokens, the padding, of each sequence.
    pub fn without(self, pads: &[usize]) -> Self {
        let cut = |(mut row, pad): (Vec<Vec<bool>>, &usize)| {
            row.drain(..(*pad).min(row.len()));
            row
        };
        Self { rows: self.rows.into_iter().zip(pads).map(cut).collect() }
    }

    /// The attention mask of `time` tokens over the latents of all images, `states` each. Shorter sequences are
    /// left-padded with tokens that attend to nothing.
    pub fn mask(&self, time: usize, states: usize) -> Result<Mask> {
        let rows = self.rows.iter().map(|row| {
            let pad = time.saturating_sub(row.len());
            std::iter::repeat_n(&[][..], pad).chain(row.iter().map(Vec::as_slice))
        });
        let spans: Option<Vec<Vec<Range<usize>>>> =
            rows.clone().map(|row| row.map(|seen| span(seen, states)).collect()).collect();
        if let Some(spans) = spans {
            return Mask::spans(spans);
        }
        let most = self.rows.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let wide = |seen: &[bool]| -> Vec<bool> {
            (0..most * states).map(|key| seen.get(key / states) == Some(&true)).collect()
        };
        Mask::table(&rows.map(|row| row.map(wide).collect()).collect::<Vec<_>>())
    }

    /// The images of the last token of each sequence, which all generated tokens attend to.
    pub fn last(&self) -> Self {
        let last = |row: &Vec<Vec<bool>>| row.last().cloned().into_iter().collect();
        Self { rows: self.rows.iter().map(last).collect() }
    }
}

/// The range of latents that a token attends to, if its images are contiguous.
fn span(seen: &[bool], states: usize) -> Option<Range<usize>> {
    let start = seen.iter().position(|seen| *seen).unwrap_or(0);
    let end = seen.iter().rposition(|seen| *seen).map_or(start, |last| last + 1);
    seen[start..end].iter().all(|seen| *seen).then_some(start * states..end * states)
}

/// The error for more `<image>` tokens than images.
pub(crate) fn too_few(places: usize, pictures: usize) -> Error {
    Error::input(format!("{places} <image> tokens for {pictures} images")).hint(
        "give one image per <image>, in order, or leave <image> out of the text: it is added for each image",
    )
}

/// The latents of images, and the images of each sequence.
#[derive(Debug, Clone)]
pub struct Media {
    /// Latents, `(distinct images, latents, hidden_size)`; `None` without images.
    states: Option<Tensor>,
    /// Indices of the images of each sequence, in order.
    rows: Vec<Vec<usize>>,
}

impl Media {
    /// From `states`, `(batch · images, latents, hidden_size)`: the same number of images for each sequence.
    pub fn rectangle(states: Tensor, rows: usize) -> Result<Self> {
        let pictures = states.dim(0)? / rows.max(1);
        let rows = (0..rows).map(|row| (row * pictures..(row + 1) * pictures).collect()).collect();
        Ok(Self { states: Some(states), rows })
    }

    /// Without images.
    pub fn none(rows: usize) -> Self {
        Self { states: None, rows: vec![Vec::new(); rows] }
    }

    /// From the images of each sequence; equal images are encoded once. `pixels` preprocesses an image, `(3, height,
    /// width)`, and `see` encodes a batch, `(images, 3, height, width)` to `(images, latents, hidden_size)`.
    pub fn of(
        rows: &[Vec<&Image>],
        pixels: impl Fn(&Image) -> Result<Tensor>,
        see: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut distinct: Vec<&Image> = Vec::new();
        let mut indices = Vec::with_capacity(rows.len());
        for row in rows {
            let mut of_row = Vec::with_capacity(row.len());
            for image in row {
                let known = distinct.iter().position(|known| known == image);
                of_row.push(known.unwrap_or(distinct.len()));
                if known.is_none() {
                    distinct.push(image);
                }
            }
            indices.push(of_row);
        }
        if distinct.is_empty() {
            return Ok(Self::none(rows.len()));
        }
        let batch = |images: &[&Image]| -> Result<Tensor> {
            let pixels = images.iter().map(|image| pixels(image)).collect::<Result<Vec<_>>>()?;
            see(&Tensor::stack(&pixels, 0)?)
        };
        let states = distinct.chunks(BATCH_SIZE).map(batch).collect::<Result<Vec<_>>>()?;
        Ok(Self { states: Some(Tensor::cat(&states, 0)?), rows: indices })
    }

    /// The latents of each distinct image, `(images, latents, hidden_size)`; `None` without images.
    pub fn states(&self) -> Option<&Tensor> {
        self.states.as_ref()
    }

    /// Number of latents per image.
    pub fn per_picture(&self) -> Result<usize> {
        Ok(self.states.as_ref().map(|states| states.dim(1)).transpose()?.unwrap_or(0))
    }

    /// Number of images of each sequence.
    pub fn counts(&self) -> Vec<usize> {
        self.rows.iter().map(Vec::len).collect()
    }

    /// Gathers `x`, `(images, latents, …)` of the distinct images, by sequence: `(batch, max_images · latents, …)`.
    /// Sequences with fewer images are padded with images that nothing attends to.
    pub fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let most = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let order: Vec<u32> = self
            .rows
            .iter()
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat(0)).take(most))
            .map(|picture| picture as u32)
            .collect();
        let in_order = order.iter().enumerate().all(|(at, picture)| at as u32 == *picture);
        let x = match in_order && order.len() == x.dim(0)? {
            true => x.clone(),
            false => x.contiguous()?.index_select(&Tensor::new(order, x.device())?, 0)?,
        };
        let shape = x.dims();
        let wide = [&[self.rows.len(), most * shape[1]], &shape[2..]].concat();
        Ok(x.reshape(wide)?)
    }
}

/// The cross-attention keys and values of all images for each gated layer, `(batch, latents, heads, head_dim)`.
#[derive(Debug, Clone, Default)]
pub struct MediaStates {
    layers: Vec<(Tensor, Tensor)>,
}

impl MediaStates {
    /// From the keys and values of each gated layer, in order.
    pub fn new(layers: Vec<(Tensor, Tensor)>) -> Self {
        Self { layers }
    }

    /// Keys and values of gated layer `index`; `None` without images.
    pub fn layer(&self, index: usize) -> Option<&(Tensor, Tensor)> {
        self.layers.get(index)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_token_attends_to_the_latest_image_until_the_end_token() {
        let rows = [vec![5, 9, 5, 9, 5, 2, 5, 9], vec![5, 5, 5, 5, 5, 5, 5, 9]];
        let sight = MediaLocations::latest(&rows, &[3, 1], 9, Some(2)).unwrap();
        let mask = sight.mask(8, 2).unwrap();
        let sees = |row, token| (0..6).filter(|key| mask.sees(row, token, *key, 6)).collect::<Vec<_>>();
        let of_first: Vec<_> = (0..8).map(|token| sees(0, token)).collect();
        assert_eq!(
            of_first,
            [vec![], vec![0, 1], vec![0, 1], vec![2, 3], vec![2, 3], vec![2, 3], vec![], vec![4, 5]]
        );
        assert_eq!((sees(1, 6), sees(1, 7)), (vec![], vec![0, 1]));
        let last = sight.last().mask(1, 2).unwrap();
        assert!(last.sees(0, 0, 4, 6) && last.sees(1, 0, 1, 6) && !last.sees(1, 0, 4, 6));
    }

    #[test]
    fn more_image_tokens_than_images_are_an_error() {
        let error = MediaLocations::latest(&[vec![9, 9]], &[1], 9, None).unwrap_err().to_string();
        assert!(error.contains("2 <image> tokens for 1 images"), "{error}");
        assert!(MediaLocations::latest(&[vec![9]], &[2], 9, None).is_ok(), "the second is never attended to");
    }

    #[test]
    fn a_token_may_attend_to_images_that_are_not_contiguous() {
        let table = Tensor::new(&[[[1i64, 0, 1], [0, 0, 0]]], &Device::Cpu).unwrap();
        let mask = MediaLocations::table(&table).unwrap().mask(3, 1).unwrap();
        let sees = |token| [0, 1, 2].map(|key| mask.sees(0, token, key, 3));
        assert_eq!((sees(0), sees(1), sees(2)), ([false; 3], [true, false, true], [false; 3]));
    }

    #[test]
    fn equal_images_are_encoded_once_for_all_sequences() {
        let image = |level| Image { width: 1, height: 1, rgb: vec![level; 3] };
        let (a, b, again) = (image(1), image(2), image(1));
        let seen = std::cell::Cell::new(0);
        let pixels = |image: &Image| Ok(Tensor::full(f32::from(image.rgb[0]), (3, 1, 1), &Device::Cpu)?);
        let see = |pixels: &Tensor| {
            seen.set(seen.get() + pixels.dim(0)?);
            Ok(pixels.narrow(1, 0, 2)?.squeeze(3)?)
        };
        let media = Media::of(&[vec![&b, &a], vec![&again]], pixels, see).unwrap();
        assert_eq!((seen.get(), media.counts()), (2, vec![2, 1]));
        let spread = media.spread(media.states().unwrap()).unwrap().squeeze(2).unwrap();
        assert_eq!(spread.to_vec2::<f32>().unwrap(), [[2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]]);
        let none = Media::of(&[vec![]], pixels, see).unwrap();
        assert!(none.states().is_none());
    }
}
