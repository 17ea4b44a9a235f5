//! What the prior is told of a song besides its sound: artist, genres, and where in the song the window lies.
//!
//! Dhariwal et al. 2020, section 4.2. Positions fall into bins in float32, as the released weights were trained.

use candle_core::{DType, Device, Tensor};
use fauna_shared::nn::Embedding;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

use super::hps::PriorHps;

/// Artist and genre of id 0 are "unknown".
const UNKNOWN: i64 = 0;

/// The labels of one window: `[total_length, offset, sample_length, artist, genres…]`, lengths in samples, -1 for no
/// genre.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(pub Vec<i64>);

impl Labels {
    /// Those LLark listens with, whatever it hears: an unknown artist and genre, at the start of a song of 62
    /// seconds, just above the shortest it was trained on. `hop`: samples in a code.
    pub fn unknown(hps: &PriorHps, hop: usize) -> Self {
        let hop = hop.max(1);
        let total = hps.sr.saturating_mul(62) / hop * hop;
        let mut labels = vec![total as i64, 0, hps.n_ctx.saturating_mul(hop) as i64, UNKNOWN];
        labels.push(UNKNOWN);
        labels.resize(4 + hps.max_bow_genre_size.max(1), -1);
        Self(labels)
    }
}

/// Labels to what the prior adds to its codes.
pub struct LabelConditioner {
    bow_genre_emb: Embedding,
    artist_emb: Embedding,
    total_length_emb: RangeEmbedding,
    absolute_pos_emb: RangeEmbedding,
    relative_pos_emb: RangeEmbedding,
    n_ctx: usize,
    device: Device,
}

/// A table over the bins of a range.
struct RangeEmbedding {
    emb: Embedding,
    name: &'static str,
    bins: usize,
    min: f32,
    range: f32,
}

impl LabelConditioner {
    /// Builds the tables from what is at `w`.
    pub fn load(hps: &PriorHps, w: &Weights) -> Result<Self> {
        let (genres, artists) = hps.y_bins;
        let (shortest, longest) = (hps.min_duration * hps.sr as f64, hps.max_duration * hps.sr as f64);
        let range = |name, min, max| RangeEmbedding::load(hps, name, min, max, &w.at(name));
        Ok(Self {
            bow_genre_emb: w.embedding("bow_genre_emb", genres, hps.prior_width)?,
            artist_emb: w.embedding("artist_emb", artists, hps.prior_width)?,
            total_length_emb: range("total_length_emb", shortest, longest)?,
            absolute_pos_emb: range("absolute_pos_emb", 0.0, longest)?,
            relative_pos_emb: range("relative_pos_emb", 0.0, 1.0)?,
            n_ctx: hps.n_ctx,
            device: w.runtime().device().clone(),
        })
    }

    /// What is added at every position, `(n_ctx, width)`, and what stands in place of the code before the first,
    /// `(1, width)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for labels that are too few or outside their tables.
    pub fn forward(&self, labels: &Labels) -> Result<(Tensor, Tensor)> {
        let [total, offset, length, artist, genres @ ..] = &labels.0[..] else {
            return Err(Error::input(format!(
                "{} labels: wanted total_length, offset, sample_length, artist, genres",
                labels.0.len()
            )));
        };
        let mut start = self.row(&self.artist_emb, "artist", *artist)?;
        let genres = genres.iter().filter(|genre| **genre >= 0);
        let genres = genres.map(|genre| self.row(&self.bow_genre_emb, "genre", *genre));
        if let Some(sum) = genres.reduce(|sum, genre| Ok((sum? + genre?)?)) {
            start = (sum? + start)?;
        }
        let (first, last) = (*offset as f32, offset.saturating_add(*length) as f32);
        let total = *total as f32;
        let along = |from, to| positions(from, to, self.n_ctx);
        let absolute = self.absolute_pos_emb.forward(&along(first, last), &self.device)?;
        let relative = along(first / total, (last / total).clamp(0.0, 1.0));
        let relative = self.relative_pos_emb.forward(&relative, &self.device)?;
        let total = self.total_length_emb.forward(&[total], &self.device)?;
        Ok(((absolute.broadcast_add(&total)? + relative)?, start))
    }

    /// Row `id` of a table, `(1, width)`.
    fn row(&self, table: &Embedding, name: &str, id: i64) -> Result<Tensor> {
        match u32::try_from(id).ok().filter(|id| (*id as usize) < table.count()) {
            Some(id) => table.forward(&Tensor::new(&[id], &self.device)?),
            None => Err(Error::input(format!("{name} {id} is not one of {}", table.count()))),
        }
    }
}

/// `count` positions from `from` on, evenly, `to` not reached.
fn positions(from: f32, to: f32, count: usize) -> Vec<f32> {
    (0..count).map(|i| from + (to - from) * (i as f32 / count as f32)).collect()
}

impl RangeEmbedding {
    fn load(hps: &PriorHps, name: &'static str, min: f64, max: f64, w: &Weights) -> Result<Self> {
        let emb = w.embedding("emb", hps.t_bins, hps.prior_width)?;
        Ok(Self { emb, name, bins: hps.t_bins, min: min as f32, range: (max - min) as f32 })
    }

    /// `(positions, width)`.
    fn forward(&self, positions: &[f32], device: &Device) -> Result<Tensor> {
        let bin = |position: &f32| {
            let bin = (self.bins as f32 * ((position - self.min) / self.range)).floor();
            match bin >= 0.0 && bin < self.bins as f32 {
                true => Ok(bin as u32),
                false => Err(Error::input(format!(
                    "{} {position} is outside the range it was trained on, {} to {}",
                    self.name.trim_end_matches("_emb"),
                    self.min,
                    self.min + self.range
                ))),
            }
        };
        let bins = positions.iter().map(bin).collect::<Result<Vec<u32>>>()?;
        self.emb.forward(&Tensor::from_vec(bins, positions.len(), device)?)
    }
}

/// Rows of `metadata`, `(batch, 4 + genres)` of integers.
pub fn rows(metadata: &Tensor) -> Result<Vec<Labels>> {
    Ok(metadata.to_dtype(DType::I64)?.to_vec2()?.into_iter().map(Labels).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llark_says_sixty_two_seconds_and_nothing_else() {
        let labels = Labels::unknown(&PriorHps::default(), 128);
        assert_eq!(labels.0, [2_734_080, 0, 1_048_576, 0, 0, -1, -1, -1, -1]);
    }

    #[test]
    fn positions_are_taken_in_single_precision() {
        let hps = PriorHps { t_bins: 4, prior_width: 2, ..PriorHps::default() };
        let range =
            RangeEmbedding::load(&hps, "absolute_pos_emb", 0.0, 8.0, &Weights::seeded(1, Default::default()));
        let range = range.unwrap();
        let rows = |at: &[f32]| range.forward(at, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let all = rows(&[0.0, 2.0, 4.0, 6.0]);
        assert_eq!(rows(&[1.999_999_9, 2.0, 7.999_999_5]), [all[0].clone(), all[1].clone(), all[3].clone()]);
        let error = range.forward(&[8.0], &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("absolute_pos 8") && error.contains("0 to 8"), "{error}");
    }
}
