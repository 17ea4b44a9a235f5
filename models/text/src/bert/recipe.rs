//! How sentence-transformers turns token vectors into one vector a text.

use candle_core::{D, DType, Tensor};
use fauna_shared::model::Opening;
use fauna_shared::{Error, Result};
use serde_json::Value;

/// Pooling, normalisation, length and prefix, as `modules.json` and the files it names have them.
///
/// Reimers and Gurevych 2019, "Sentence-BERT", section 3.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Which poolings are put side by side, in the order of [`Pooling`].
    pub pooling: Vec<Pooling>,
    /// Whether vectors are brought to length 1.
    pub normalize: bool,
    /// The longest text in tokens, special ones included, if the recipe says.
    pub max_length: Option<usize>,
    /// What stands before every text.
    pub prompt: String,
}

/// One way from `(batch, time, width)` to `(batch, width)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The largest of each number over the real tokens.
    Max,
    /// The mean over the real tokens, special ones included.
    Mean,
    /// Their sum over the root of their number.
    MeanSqrtLength,
}

impl Default for Recipe {
    /// The mean, as sentence-transformers does for a checkpoint without a recipe.
    fn default() -> Self {
        Self { pooling: vec![Pooling::Mean], normalize: false, max_length: None, prompt: String::new() }
    }
}

impl Recipe {
    /// Reads the recipe of a checkpoint; the default where it has none.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for a module or a pooling that is not implemented, by
    /// name.
    pub fn read(opening: &Opening) -> Result<Self> {
        let mut recipe = Self::default();
        if let Some(lengths) = opening.json("sentence_bert_config.json")? {
            recipe.max_length = lengths["max_seq_length"].as_u64().map(|n| n as usize);
        }
        if let Some(prompts) = opening.json("config_sentence_transformers.json")?
            && let Some(name) = prompts["default_prompt_name"].as_str()
        {
            recipe.prompt = prompts["prompts"][name].as_str().unwrap_or_default().to_string();
        }
        let Some(modules) = opening.json("modules.json")? else { return Ok(recipe) };
        for module in modules.as_array().into_iter().flatten() {
            let kind = module["type"].as_str().unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => recipe.normalize = true,
                "Pooling" => {
                    let path = module["path"].as_str().unwrap_or("1_Pooling");
                    let name = format!("{path}/config.json");
                    let config = opening.json(&name)?.ok_or_else(|| {
                        Error::format(opening.files.root().join(&name), "named by modules.json, but missing")
                    })?;
                    recipe.pooling = poolings(&config).map_err(|e| e.at(opening.files.root().join(&name)))?;
                }
                other => {
                    return Err(Error::unsupported(format!(
                        "modules.json wants a module \"{other}\", which is not implemented"
                    ))
                    .at(opening.files.root().join("modules.json"))
                    .hint("known: Transformer, Pooling, Normalize"));
                }
            }
        }
        Ok(recipe)
    }

    /// One vector a text. `hidden`: `(batch, time, width)`; `mask`: `(batch, time)`, 1 for real tokens and 0 for
    /// padding. Gives `(batch, width · poolings)` in float32.
    pub fn pool(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let hidden = hidden.to_dtype(DType::F32)?;
        let mask = mask.to_dtype(DType::F32)?.to_device(hidden.device())?.unsqueeze(2)?;
        let sum = || hidden.broadcast_mul(&mask)?.sum(1);
        let count = mask.sum(1)?.maximum(1e-9f64)?;
        let mut parts = Vec::new();
        for pooling in &self.pooling {
            parts.push(match pooling {
                Pooling::Cls => hidden.narrow(1, 0, 1)?.squeeze(1)?,
                Pooling::Mean => sum()?.broadcast_div(&count)?,
                Pooling::MeanSqrtLength => sum()?.broadcast_div(&count.sqrt()?)?,
                Pooling::Max => {
                    let hidden_by = ((1.0 - &mask)? * -1e9)?;
                    hidden.broadcast_add(&hidden_by)?.max(1)?
                }
            });
        }
        let pooled = Tensor::cat(&parts, D::Minus1)?;
        if !self.normalize {
            return Ok(pooled);
        }
        let length = pooled.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12f64)?;
        Ok(pooled.broadcast_div(&length)?)
    }
}

/// The poolings that `1_Pooling/config.json` switches on.
fn poolings(config: &Value) -> Result<Vec<Pooling>> {
    let on = |key: &str| config[key].as_bool().unwrap_or(false);
    for key in ["pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"] {
        if on(key) {
            return Err(Error::unsupported(format!("{key} is not implemented")));
        }
    }
    let chosen: Vec<Pooling> = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLength),
    ]
    .into_iter()
    .filter(|(key, _)| on(key))
    .map(|(_, pooling)| pooling)
    .collect();
    match chosen.is_empty() {
        true => Err(Error::unsupported("no pooling_mode is on")),
        false => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn pool(pooling: Pooling, normalize: bool) -> Vec<f32> {
        // Two real tokens, (1, 4) and (3, 0), and one of padding.
        let hidden = Tensor::new(&[[[1f32, 4.0], [3.0, 0.0], [100.0, 100.0]]], &Device::Cpu).unwrap();
        let mask = Tensor::new(&[[1i64, 1, 0]], &Device::Cpu).unwrap();
        let recipe = Recipe { pooling: vec![pooling], normalize, ..Recipe::default() };
        recipe.pool(&hidden, &mask).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn poolings_leave_padding_out() {
        assert_eq!(pool(Pooling::Cls, false), [1.0, 4.0]);
        assert_eq!(pool(Pooling::Max, false), [3.0, 4.0]);
        assert_eq!(pool(Pooling::Mean, false), [2.0, 2.0]);
        let root = 4.0 / 2f32.sqrt();
        assert_eq!(pool(Pooling::MeanSqrtLength, false), [root, root]);
    }

    #[test]
    fn a_normalised_vector_has_length_one() {
        let vector = pool(Pooling::Max, true);
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn a_pooling_that_is_not_implemented_is_named() {
        let config = serde_json::json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": true});
        assert!(poolings(&config).unwrap_err().to_string().contains("pooling_mode_lasttoken"));
    }
}
