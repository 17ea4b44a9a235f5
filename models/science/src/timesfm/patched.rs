//! TimesFM 1.0 and 2.0: a decoder that predicts the steps after every patch of a series.
//!
//! Das et al. 2024, "A decoder-only foundation model for time-series forecasting" (arXiv 2310.10688), section 4.
//! Checked against transformers `TimesFmModelForPrediction`, parity cases `tests/parity/timesfm`.
//! Loads `model_type: "timesfm"`, and the original `torch_model.ckpt`. Activations are `(series, patches, hidden_size)`.

use candle_core::{D, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Embedding, LayerNorm, Linear, RmsNorm, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::Deserialize;

use super::{ResidualBlock, joined_projections, query_scale};

/// The keys of `config.json`. Defaults are those of 2.0, except for the context.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Patch length in steps.
    pub patch_length: usize,
    /// Context length in steps.
    pub context_length: usize,
    /// Number of steps that are predicted after each patch.
    pub horizon_length: usize,
    /// Number of frequency classes.
    pub freq_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate (feed-forward) size.
    pub intermediate_size: usize,
    /// Dimension of a head.
    pub head_dim: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Minimum standard deviation of the normalisation.
    pub tolerance: f32,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Levels of the trained quantiles.
    pub quantiles: Vec<f64>,
    /// Value that marks gaps.
    pub pad_val: f32,
    /// Whether positional embeddings are added.
    pub use_positional_embedding: bool,
    /// Minimum timescale of the positional embeddings.
    pub min_timescale: f64,
    /// Maximum timescale of the positional embeddings.
    pub max_timescale: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_length: 32,
            context_length: 512,
            horizon_length: 128,
            freq_size: 3,
            num_hidden_layers: 50,
            hidden_size: 1280,
            intermediate_size: 1280,
            head_dim: 80,
            num_attention_heads: 16,
            tolerance: 1e-6,
            rms_norm_eps: 1e-6,
            quantiles: (1..10).map(|tenth| f64::from(tenth) / 10.0).collect(),
            pad_val: 1_123_581_321.0,
            use_positional_embedding: false,
            min_timescale: 1.0,
            max_timescale: 10_000.0,
        }
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("patch_length", self.patch_length),
            ("patch_length * 2", self.patch_length.saturating_mul(2)),
            ("context_length", self.context_length),
            ("horizon_length", self.horizon_length),
            ("freq_size", self.freq_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("head_dim", self.head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("head_dim * num_attention_heads * 3", self.inner().saturating_mul(3)),
            ("horizon_length * (1 + quantiles)", self.horizon_length.saturating_mul(self.channels())),
        ])?;
        if !self.context_length.is_multiple_of(self.patch_length) {
            return Err(Error::unsupported(format!(
                "context_length {} is not a multiple of patch_length {}",
                self.context_length, self.patch_length
            )));
        }
        super::check_patches(self.context_length, self.patch_length)?;
        match self.use_positional_embedding && !self.hidden_size.is_multiple_of(2) {
            true => Err(Error::unsupported(format!(
                "hidden_size {} must be even for positional embeddings",
                self.hidden_size
            ))),
            false => super::pipeline::check_levels(&self.quantiles),
        }
    }

    fn inner(&self) -> usize {
        self.head_dim.saturating_mul(self.num_attention_heads)
    }

    /// Number of outputs per step: the mean and the quantiles.
    pub fn channels(&self) -> usize {
        1 + self.quantiles.len()
    }
}

/// The network.
pub struct TimesFm {
    input_ff_layer: ResidualBlock,
    freq_emb: Embedding,
    layers: Vec<Layer>,
    horizon_ff_layer: ResidualBlock,
    config: Config,
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    mlp: Mlp,
}

struct Attention {
    qkv_proj: Linear,
    o_proj: Linear,
    scale: Tensor,
    heads: usize,
}

struct Mlp {
    layer_norm: LayerNorm,
    gate_proj: Linear,
    down_proj: Linear,
}

/// Masks of padding.
struct Padding {
    mask: Mask,
    /// 1 at patches with a value, 0 at padding, `(series, patches, 1)`; `None` without padding.
    real: Option<Tensor>,
    /// 1 at patches whose keys are all masked, `(series, patches, 1)`; `None` if there are none.
    fully_masked: Option<Tensor>,
}

impl Model for TimesFm {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let c = &config;
        c.check()?;
        let decoder = w.at("decoder");
        // The positional embeddings are computed from the config.
        decoder.skip("position_emb");
        let sizes = [2 * c.patch_length, c.intermediate_size, c.hidden_size];
        let input_ff_layer =
            ResidualBlock::load(&decoder.at("input_ff_layer"), sizes, true, Activation::Silu)?;
        let freq_emb = decoder.embedding("freq_emb", c.freq_size, c.hidden_size)?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Layer::load(c, &decoder.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let sizes = [c.hidden_size, c.intermediate_size, c.horizon_length * c.channels()];
        let horizon_ff_layer = ResidualBlock::load(&w.at("horizon_ff_layer"), sizes, true, Activation::Silu)?;
        Ok(Self { input_ff_layer, freq_emb, layers, horizon_ff_layer, config })
    }
}

impl TimesFm {
    /// `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The last hidden states, `(series, patches, hidden_size)`, of `patches`, `(series, patches, 2 * patch_length)`:
    /// normalised values, then their padding mask. `real` are the patches with a value, `freq` the frequency ids, `(series, 1)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn encode(&self, patches: &Tensor, real: &[Vec<bool>], freq: &Tensor) -> Result<Tensor> {
        let mut x = self.input_ff_layer.forward(patches)?;
        if self.config.use_positional_embedding {
            x = add(&x, &self.positions(real, &x)?)?;
        }
        x = x.broadcast_add(&self.freq_emb.forward(freq)?)?;
        let padding = Padding::of(real, &x)?;
        for layer in &self.layers {
            x = layer.forward(&x, &padding)?;
        }
        Ok(x)
    }

    /// The normalised outputs after each patch of `states`, `(series, patches, hidden_size)`: `(series, patches, horizon_length,
    /// 1 + quantiles)`, the mean first.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn decode(&self, states: &Tensor) -> Result<Tensor> {
        let (series, patches, _) = states.dims3()?;
        let told = self.horizon_ff_layer.forward(states)?;
        Ok(told.reshape((series, patches, self.config.horizon_length, self.config.channels()))?)
    }

    /// Sinusoidal positional embeddings, counted from the first patch with a value; patches before it come last.
    fn positions(&self, real: &[Vec<bool>], like: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let waves = c.hidden_size / 2;
        let step = (c.max_timescale / c.min_timescale).ln() / waves.saturating_sub(1).max(1) as f64;
        let wave = |i: usize| (c.min_timescale as f32) * (i as f32 * -(step as f32)).exp();
        let waves: Vec<f32> = (0..waves).map(wave).collect();
        let patches = real.first().map_or(0, Vec::len);
        let mut all = Vec::with_capacity(real.len() * patches * c.hidden_size);
        for row in real {
            // Without values, the last patch has position 0.
            let first = row.iter().position(|real| *real).unwrap_or(patches.saturating_sub(1));
            for patch in 0..patches {
                let place = ((patch + patches - first) % patches) as f32;
                all.extend(waves.iter().map(|wave| (place * wave).sin()));
                all.extend(waves.iter().map(|wave| (place * wave).cos()));
            }
        }
        let all = Tensor::from_vec(all, (real.len(), patches, c.hidden_size), like.device())?;
        Ok(all.to_dtype(like.dtype())?)
    }
}

impl Padding {
    fn of(real: &[Vec<bool>], like: &Tensor) -> Result<Self> {
        let mask = Mask::causal().with_padding(real)?;
        let patches = real.first().map_or(0, Vec::len);
        let table = |marked: &dyn Fn(&[bool], usize) -> bool| -> Result<Tensor> {
            let marks = real.iter().flat_map(|row| (0..patches).map(|i| f32::from(u8::from(marked(row, i)))));
            let marks = Tensor::from_vec(marks.collect(), (real.len(), patches, 1), like.device())?;
            Ok(marks.to_dtype(like.dtype())?)
        };
        let padded = real.iter().flatten().any(|real| !real);
        let is_fully_masked = |row: &[bool], i: usize| !row[..=i].contains(&true);
        let fully_masked = real.iter().any(|row| row.first() == Some(&false));
        Ok(Self {
            mask,
            real: padded.then(|| table(&|row, i| row[i])).transpose()?,
            fully_masked: fully_masked.then(|| table(&is_fully_masked)).transpose()?,
        })
    }
}

impl Layer {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let here = w.at("self_attn");
        Ok(Self {
            input_layernorm: w.rms_norm("input_layernorm", c.hidden_size, c.rms_norm_eps)?,
            self_attn: Attention {
                qkv_proj: joined_projections(&here, c.hidden_size, [c.inner(), c.inner()], true)?,
                o_proj: here.linear("o_proj", c.inner(), c.hidden_size)?,
                scale: query_scale(&here, c.head_dim)?,
                heads: c.num_attention_heads,
            },
            mlp: Mlp {
                layer_norm: w.layer_norm("mlp.layer_norm", c.hidden_size, 1e-6)?,
                gate_proj: w.linear("mlp.gate_proj", c.hidden_size, c.intermediate_size)?,
                down_proj: w.linear("mlp.down_proj", c.intermediate_size, c.hidden_size)?,
            },
        })
    }

    fn forward(&self, x: &Tensor, padding: &Padding) -> Result<Tensor> {
        let x = add(x, &self.self_attn.forward(&self.input_layernorm.forward(x)?, padding)?)?;
        add(&x, &self.mlp.forward(&x, padding)?)
    }
}

impl Attention {
    fn forward(&self, x: &Tensor, padding: &Padding) -> Result<Tensor> {
        let (series, patches, _) = x.dims3()?;
        let qkv = self.qkv_proj.forward(x)?.reshape((series, patches, 3, self.heads, ()))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let q = part(0)?.broadcast_mul(&self.scale)?;
        let v = part(2)?;
        let mut seen = attend(&q, &part(1)?, &v, &padding.mask, 1.0)?;
        if let Some(fully_masked) = &padding.fully_masked {
            // The reference returns the mean of all patches where all keys are masked.
            let mean = v.contiguous()?.flatten(2, D::Minus1)?.mean_keepdim(1)?;
            seen = seen.broadcast_add(&mean.broadcast_mul(fully_masked)?)?;
        }
        self.o_proj.forward(&seen)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor, padding: &Padding) -> Result<Tensor> {
        let gate = self.gate_proj.forward_then(&self.layer_norm.forward(x)?, Activation::Relu)?;
        let out = self.down_proj.forward(&gate)?;
        match &padding.real {
            Some(real) => Ok(out.broadcast_mul(real)?),
            None => Ok(out),
        }
    }
}

/// TimesFM 1.0 and 2.0.
pub static FAMILY: Family = Family {
    name: "timesfm",
    systems: &["TimeGPT"],
    paper: "Das et al. 2024, arXiv 2310.10688",
    model_types: &["timesfm"],
    architectures: &["TimesFmModelForPrediction"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Series],
    outputs: &[Modality::Series, Modality::Vector],
    releases: &[
        Release::new("google/timesfm-1.0-200m-pytorch", "TimeGPT", "204M", "Apache-2.0"),
        Release::new("google/timesfm-2.0-500m-pytorch", "TimeGPT", "499M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(super::PATCHED),
    rename: super::rename_patched,
    inventory: |pretrained| Ok(pretrained.load::<TimesFm>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(super::PatchedPipeline::open(pretrained)?)),
    sample: super::patched_sample,
};
