//! Sentence embeddings from token embeddings: the modules of a [`SentenceTransformersConfig`] with their weights.

use candle_core::{D, DType, Tensor};
use fauna_shared::model::Pretrained;
use fauna_shared::nn::{Linear, l2_normalize};
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, ErrorKind, Result, transfer};

use super::sentence_config::{DenseConfig, Pooling, SentenceModule, SentenceTransformersConfig};

/// The modules of a sentence embedder after the transformer: pooling, dense layers, normalisation.
pub struct SentenceEmbedder {
    recipe: SentenceTransformersConfig,
    /// The layers of the Dense modules, in order.
    layers: Vec<Dense>,
    width: usize,
}

struct Dense {
    linear: Linear,
    residual: Option<Linear>,
}

impl SentenceEmbedder {
    /// Loads the settings of `pretrained` and the weights of its modules, for token embeddings of `hidden_size`; also
    /// returns the inventory of the loaded tensors.
    ///
    /// # Errors
    /// Same as [`SentenceTransformersConfig::read`]; [`Mismatch`](ErrorKind::Mismatch) if sizes do not fit each other
    /// or the weights.
    pub fn load(pretrained: &Pretrained, hidden_size: usize) -> Result<(Self, Inventory)> {
        let recipe = SentenceTransformersConfig::read(&pretrained.files, &pretrained.options.settings)?;
        let (mut layers, mut inventory) = (Vec::new(), Inventory::default());
        let mut width = hidden_size * recipe.pooling.len();
        for module in &recipe.modules {
            let SentenceModule::Dense(config) = module else { continue };
            let place = pretrained.files.root().join(&config.folder);
            if config.inputs != width {
                let message =
                    format!("in_features is {}, but the input has {width} dimensions", config.inputs);
                return Err(Error::new(ErrorKind::Mismatch, message).at(place.join("config.json")));
            }
            let names = pretrained.files.module_weights(&config.folder)?;
            if names.is_empty()
                && !pretrained.weights.is_meta()
                && pretrained.options.random_weights.is_none()
            {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "modules.json has a Dense module, but its weights are missing",
                )
                .at(place)
                .hint(
                    "expected model.safetensors or pytorch_model.bin; fetch the release again: fauna pull",
                ));
            }
            let weights = pretrained.part_at(&config.name, &names, |_| Name::Keep)?;
            layers.push(Dense::load(config, &weights)?);
            let read = weights.finish()?;
            inventory.parameters += read.parameters;
            let within = |(name, shape)| (format!("{}/{name}", config.folder), shape);
            inventory.tensors.extend(read.tensors.into_iter().map(within));
            width = config.outputs;
        }
        if let Some(kept) = recipe.truncate_dim {
            width = width.min(kept);
        }
        Ok((Self { recipe, layers, width }, inventory))
    }

    /// The settings, as read from the files.
    pub fn config(&self) -> &SentenceTransformersConfig {
        &self.recipe
    }

    /// Dimension of the embeddings.
    pub fn dimension(&self) -> usize {
        self.width
    }

    /// Returns the sentence embeddings, `(batch, dimension)` in float32. `hidden`: last hidden state,
    /// `(batch, sequence, hidden_size)`; `mask`: attention mask, `(batch, sequence)`, 1 for tokens and 0 for padding;
    /// `prompt`: number of tokens of the prompt and the special tokens before it, 0 without a prompt.
    pub fn forward(&self, hidden: &Tensor, mask: &Tensor, prompt: usize) -> Result<Tensor> {
        let mut x = self.recipe.pool(hidden, mask, prompt)?;
        let mut layers = self.layers.iter();
        for module in &self.recipe.modules {
            x = match module {
                SentenceModule::Dense(config) => match layers.next() {
                    Some(layer) => layer.forward(config, &x)?,
                    None => return Err(Error::unsupported("a Dense module has no weights")),
                },
                SentenceModule::Normalize => l2_normalize(&x, 1e-12)?,
            };
        }
        match self.width < x.dim(D::Minus1)? {
            true => Ok(x.narrow(D::Minus1, 0, self.width)?.contiguous()?),
            false => Ok(x),
        }
    }
}

impl Dense {
    fn load(c: &DenseConfig, w: &Weights) -> Result<Self> {
        let residual = c.residual && c.inputs != c.outputs;
        Ok(Self {
            linear: w.linear_bias_if(c.bias, "linear", c.inputs, c.outputs)?,
            residual: match residual {
                true => Some(w.linear_no_bias("residual", c.inputs, c.outputs)?),
                false => None,
            },
        })
    }

    fn forward(&self, c: &DenseConfig, x: &Tensor) -> Result<Tensor> {
        let out = c.activation.forward(&self.linear.forward(x)?.to_dtype(DType::F32)?)?;
        match (c.residual, &self.residual) {
            (false, _) => Ok(out),
            (true, None) => Ok((out + x)?),
            (true, Some(residual)) => Ok((out + residual.forward(x)?.to_dtype(DType::F32)?)?),
        }
    }
}

impl SentenceTransformersConfig {
    /// Pools `hidden` to `(batch, hidden_size · poolings)` in float32. Arguments as for [`SentenceEmbedder::forward`].
    fn pool(&self, hidden: &Tensor, mask: &Tensor, prompt: usize) -> Result<Tensor> {
        let device = hidden.device();
        let hidden = hidden.to_dtype(DType::F32)?;
        let mut rows: Vec<Vec<f32>> = transfer::rows(&mask.to_dtype(DType::F32)?)?;
        // Positions count from the first real token, whether or not the prompt is excluded.
        let starts: Vec<usize> = rows.iter().map(|row| first(row).unwrap_or(0)).collect();
        if !self.include_prompt && prompt > 0 {
            for (row, start) in rows.iter_mut().zip(&starts) {
                let end = (start + prompt).min(row.len());
                row[..end].fill(0.0);
            }
        }
        let time = hidden.dim(1)?;
        let on_device =
            |values: Vec<f32>| Ok::<_, Error>(Tensor::from_vec(values, (rows.len(), time, 1), device)?);
        let mask = on_device(rows.concat())?;
        let sum = |weights: &Tensor| Ok::<_, Error>(hidden.broadcast_mul(weights)?.sum(1)?);
        let total = |weights: &Tensor| Ok::<_, Error>(weights.sum(1)?.maximum(1e-9f64)?);
        let pick = |place: &dyn Fn(&[f32]) -> usize| -> Result<Tensor> {
            let picked =
                rows.iter().enumerate().map(|(i, row)| hidden.narrow(0, i, 1)?.narrow(1, place(row), 1));
            Ok(Tensor::cat(&picked.collect::<candle_core::Result<Vec<_>>>()?, 0)?.squeeze(1)?)
        };
        let mut parts = Vec::new();
        for pooling in &self.pooling {
            parts.push(match pooling {
                Pooling::Cls => pick(&|row| first(row).unwrap_or(0))?,
                Pooling::Mean => sum(&mask)?.broadcast_div(&total(&mask)?)?,
                Pooling::MeanSqrtLength => sum(&mask)?.broadcast_div(&total(&mask)?.sqrt()?)?,
                Pooling::WeightedMean => {
                    let weight = |(row, start): (&Vec<f32>, &usize)| -> Vec<f32> {
                        let places = row.iter().enumerate();
                        places.map(|(t, real)| real * (t as f32 + 1.0 - *start as f32)).collect()
                    };
                    let weights = on_device(rows.iter().zip(&starts).flat_map(weight).collect())?;
                    sum(&weights)?.broadcast_div(&total(&weights)?)?
                }
                Pooling::LastToken => {
                    let last = |row: &[f32]| row.iter().rposition(|real| *real > 0.0);
                    let found = pick(&|row| last(row).unwrap_or(0))?;
                    // Zeros where all tokens belong to the prompt.
                    let any = rows.iter().map(|row| f32::from(u8::from(last(row).is_some()))).collect();
                    found.broadcast_mul(&Tensor::from_vec(any, (rows.len(), 1), device)?)?
                }
                Pooling::Max => {
                    let lowest = Tensor::full(f32::NEG_INFINITY, hidden.shape(), device)?;
                    mask.gt(0.0)?.broadcast_as(hidden.shape())?.where_cond(&hidden, &lowest)?.max(1)?
                }
            });
        }
        Ok(Tensor::cat(&parts, D::Minus1)?)
    }
}

fn first(row: &[f32]) -> Option<usize> {
    row.iter().position(|real| *real > 0.0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn of(recipe: SentenceTransformersConfig, prompt: usize) -> Vec<f32> {
        // A padding token, three real ones, (1, 4), (3, 0) and (2, 1), and a padding token.
        let rows = [[100f32, 100.0], [1.0, 4.0], [3.0, 0.0], [2.0, 1.0], [100.0, 100.0]];
        let hidden = Tensor::new(&[rows], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[[0i64, 1, 1, 1, 0]], &Device::Cpu).unwrap();
        let vectors = SentenceEmbedder { width: 2 * recipe.pooling.len(), recipe, layers: Vec::new() };
        vectors.forward(&hidden, &mask, prompt).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn pool(pooling: Pooling) -> SentenceTransformersConfig {
        SentenceTransformersConfig { pooling: vec![pooling], ..SentenceTransformersConfig::default() }
    }

    #[test]
    fn pooling_excludes_padding() {
        assert_eq!(of(pool(Pooling::Cls), 0), [1.0, 4.0]);
        assert_eq!(of(pool(Pooling::Max), 0), [3.0, 4.0]);
        assert_eq!(of(pool(Pooling::Mean), 0), [2.0, 5.0 / 3.0]);
        assert_eq!(of(pool(Pooling::LastToken), 0), [2.0, 1.0]);
        let root = 3f32.sqrt();
        assert_eq!(of(pool(Pooling::MeanSqrtLength), 0), [6.0 / root, 5.0 / root]);
        // Weights 1, 2 and 3.
        assert_eq!(of(pool(Pooling::WeightedMean), 0), [13.0 / 6.0, 7.0 / 6.0]);
        let both = SentenceTransformersConfig {
            pooling: vec![Pooling::LastToken, Pooling::Cls],
            ..SentenceTransformersConfig::default()
        };
        assert_eq!(of(both, 0), [2.0, 1.0, 1.0, 4.0]);
    }

    #[test]
    fn pooling_excludes_the_prompt_if_include_prompt_is_false() {
        let without = |pooling| SentenceTransformersConfig { include_prompt: false, ..pool(pooling) };
        assert_eq!(of(pool(Pooling::Mean), 1), [2.0, 5.0 / 3.0]);
        assert_eq!(of(without(Pooling::Mean), 1), [2.5, 0.5]);
        assert_eq!(of(without(Pooling::Cls), 1), [3.0, 0.0]);
        // The other tokens keep their positions: weights 2 and 3.
        assert_eq!(of(without(Pooling::WeightedMean), 1), [12.0 / 5.0, 3.0 / 5.0]);
        for pooling in [Pooling::Mean, Pooling::WeightedMean, Pooling::LastToken] {
            assert_eq!(of(without(pooling), 9), [0.0, 0.0], "{pooling:?}");
        }
    }

    #[test]
    fn normalised_embeddings_have_norm_one() {
        let recipe =
            SentenceTransformersConfig { modules: vec![SentenceModule::Normalize], ..pool(Pooling::Max) };
        let vector = of(recipe, 0);
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6);
    }
}
