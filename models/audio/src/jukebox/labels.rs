//! Metadata conditioning of the prior: artist, genres, and timing of the window in the song.
//!
//! Dhariwal et al. 2020, section 4.2. Positions are binned in float32, as in training.

use candle_core::{DType, Device, Tensor};
use fauna_shared::nn::Embedding;
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, transfer};

use super::hps::PriorHps;

/// The id of the unknown artist and genre.
const UNKNOWN: i64 = 0;

/// The metadata of one window: `[total_length, offset, sample_length, artist, genres…]`, lengths in samples, genres
/// padded with -1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(pub Vec<i64>);

impl Labels {
    /// The metadata that LLark uses for all audio: unknown artist and genre, at the start of a song of 62 seconds, just
    /// above the minimum duration. `hop`: samples per code.
    pub fn unknown(hps: &PriorHps, hop: usize) -> Self {
        let hop = hop.max(1);
        let total = hps.sr.saturating_mul(62) / hop * hop;
        let mut labels = vec![total as i64, 0, hps.n_ctx.saturating_mul(hop) as i64, UNKNOWN];
        labels.push(UNKNOWN);
        labels.resize(4 + hps.max_bow_genre_size.max(1), -1);
        Self(labels)
    }
}

/// The conditioner: embeds metadata for the prior.
pub struct LabelConditioner {
    bow_genre_emb: Embedding,
    artist_emb: Embedding,
    total_length_emb: RangeEmbedding,
    absolute_pos_emb: RangeEmbedding,
    relative_pos_emb: RangeEmbedding,
    n_ctx: usize,
    device: Device,
}

/// Embeddings of the bins of a range.
struct RangeEmbedding {
    emb: Embedding,
    name: &'static str,
    bins: usize,
    min: f32,
    range: f32,
}

impl LabelConditioner {
    /// Loads the embeddings from `w`.
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

    /// Returns the timing embedding of every position, `(n_ctx, prior_width)`, and the start embedding in place of the
    /// code before the first, `(1, prior_width)`.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for too few labels, or ids out of range.
    pub fn forward(&self, labels: &Labels) -> Result<(Tensor, Tensor)> {
        let [total, offset, length, artist, genres @ ..] = &labels.0[..] else {
            return Err(Error::input(format!(
                "{} labels: expected total_length, offset, sample_length, artist, genres",
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

    /// Returns the embedding of `id`, `(1, prior_width)`.
    fn row(&self, table: &Embedding, name: &str, id: i64) -> Result<Tensor> {
        match u32::try_from(id).ok().filter(|id| (*id as usize) < table.count()) {
            Some(id) => table.forward(&Tensor::new(&[id], &self.device)?),
            None => {
                Err(Error::input(format!("{name} {id} is out of range: expected 0 to {}", table.count() - 1)))
            }
        }
    }
}

/// `count` evenly spaced positions from `from` to `to`, exclusive.
fn positions(from: f32, to: f32, count: usize) -> Vec<f32> {
    (0..count).map(|i| from + (to - from) * (i as f32 / count as f32)).collect()
}

impl RangeEmbedding {
    fn load(hps: &PriorHps, name: &'static str, min: f64, max: f64, w: &Weights) -> Result<Self> {
        let emb = w.embedding("emb", hps.t_bins, hps.prior_width)?;
        Ok(Self { emb, name, bins: hps.t_bins, min: min as f32, range: (max - min) as f32 })
    }

    /// Returns the embeddings of `positions`, `(positions, prior_width)`.
    fn forward(&self, positions: &[f32], device: &Device) -> Result<Tensor> {
        let bin = |position: &f32| {
            let bin = (self.bins as f32 * ((position - self.min) / self.range)).floor();
            match bin >= 0.0 && bin < self.bins as f32 {
                true => Ok(bin as u32),
                false => Err(Error::input(format!(
                    "{} {position} is outside the trained range, {} to {}",
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

/// Splits `metadata`, `(batch, 4 + genres)` of integers.
pub fn rows(metadata: &Tensor) -> Result<Vec<Labels>> {
    Ok(transfer::rows(&metadata.to_dtype(DType::I64)?)?.into_iter().map(Labels).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llark_labels_are_unknown_with_a_song_of_62_seconds() {
        let labels = Labels::unknown(&PriorHps::default(), 128);
        assert_eq!(labels.0, [2_734_080, 0, 1_048_576, 0, 0, -1, -1, -1, -1]);
    }

    #[test]
    fn positions_are_binned_in_float32() {
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
