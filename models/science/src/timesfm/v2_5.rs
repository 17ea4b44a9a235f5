//! TimesFM 2.5: a decoder over patches with a point forecast and a quantile head of longer horizon.
//!
//! Das et al. 2024 (arXiv 2310.10688), with rotary embeddings, pre- and post-norms and a continuous quantile head.
//! Checked against transformers `TimesFm2_5ModelForPrediction`, parity cases `tests/parity/timesfm`.
//! Loads `model_type: "timesfm2_5"`, and the original safetensors. Activations are `(series, patches, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::attention::{Angles, Mask, Positions, Rope, RopeScaling, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Linear, RmsNorm, add};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::{ResidualBlock, joined_projections, query_scale};

/// Keys without effect: the implemented rotary embeddings do not depend on `max_position_embeddings`.
pub static KEYS: Keys = Keys { harmless: &["max_position_embeddings"], ..Keys::NONE };

/// The keys of `config.json`. Defaults are those of the release.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Patch length in steps.
    pub patch_length: usize,
    /// Context length in steps.
    pub context_length: usize,
    /// Number of steps of one forward pass.
    pub horizon_length: usize,
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
    /// Number of key/value heads.
    pub num_key_value_heads: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Levels of the trained quantiles.
    pub quantiles: Vec<f64>,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub use_bias: bool,
    /// Number of steps of the quantile head.
    pub output_quantile_len: usize,
    /// Index of the output that is the point forecast.
    pub decode_index: usize,
    /// Activation function.
    pub activation: Activation,
    /// Whether the continuous quantile head is used.
    pub use_continuous_quantile_head: bool,
    /// Whether the forecasts of the series and of its negative are averaged.
    pub force_flip_invariance: bool,
    /// Whether forecasts of series without negative values are clipped at 0.
    pub infer_is_positive: bool,
    /// RoPE parameters: type and base (theta).
    pub rope_parameters: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_length: 32,
            context_length: 16384,
            horizon_length: 128,
            num_hidden_layers: 20,
            hidden_size: 1280,
            intermediate_size: 1280,
            head_dim: 80,
            num_attention_heads: 16,
            num_key_value_heads: 16,
            rms_norm_eps: 1e-6,
            quantiles: (1..10).map(|tenth| f64::from(tenth) / 10.0).collect(),
            attention_bias: false,
            use_bias: false,
            output_quantile_len: 1024,
            decode_index: 5,
            activation: Activation::Silu,
            use_continuous_quantile_head: true,
            force_flip_invariance: true,
            infer_is_positive: true,
            rope_parameters: None,
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
            ("num_hidden_layers", self.num_hidden_layers),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("head_dim", self.head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("output_quantile_len", self.output_quantile_len),
            ("head_dim * num_attention_heads", self.head_dim.saturating_mul(self.num_attention_heads)),
            (
                "head_dim * num_key_value_heads * 2",
                self.head_dim.saturating_mul(self.num_key_value_heads).saturating_mul(2),
            ),
            ("horizon_length * (1 + quantiles)", self.horizon_length.saturating_mul(self.channels())),
            (
                "output_quantile_len * (1 + quantiles)",
                self.output_quantile_len.saturating_mul(self.channels()),
            ),
        ])?;
        super::pipeline::check_levels(&self.quantiles)?;
        super::check_patches(self.context_length, self.patch_length)?;
        let uneven = |what: &str, a: usize, of: &str, b: usize| {
            Err(Error::unsupported(format!("{what} {a} is not a multiple of {of} {b}")))
        };
        if !self.context_length.is_multiple_of(self.patch_length) {
            return uneven("context_length", self.context_length, "patch_length", self.patch_length);
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        match heads.is_multiple_of(kv_heads) {
            true => Ok(()),
            false => uneven("num_attention_heads", heads, "num_key_value_heads", kv_heads),
        }
    }

    fn rope(&self) -> Result<Rope> {
        let parameters = self.rope_parameters.as_ref().unwrap_or(&Value::Null);
        match parameters["rope_type"].as_str() {
            None | Some("default") => {}
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "rope_type \"{other}\" is not implemented for timesfm-2.5"
                )));
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            let message = format!("head_dim {} must be even for rotary embeddings", self.head_dim);
            return Err(Error::unsupported(message));
        }
        let theta = parameters["rope_theta"].as_f64().unwrap_or(10_000.0);
        Rope::new(theta, self.head_dim, RopeScaling::Default)
    }

    /// Number of outputs per step: an unused one and the quantiles.
    pub fn channels(&self) -> usize {
        1 + self.quantiles.len()
    }

    /// Index of the output that is the point forecast.
    pub fn point(&self) -> usize {
        self.decode_index.min(self.channels() - 1)
    }
}

/// The network.
pub struct TimesFm25 {
    input_ff_layer: ResidualBlock,
    layers: Vec<Layer>,
    output_projection_point: ResidualBlock,
    output_projection_quantiles: ResidualBlock,
    rope: Rope,
    config: Config,
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

struct Attention {
    qkv_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    scale: Tensor,
    heads: usize,
    kv_heads: usize,
    width: usize,
}

struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Model for TimesFm25 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let c = &config;
        c.check()?;
        let (model, hidden) = (w.at("model"), c.hidden_size);
        let block = |w: &Weights, sizes, bias| ResidualBlock::load(w, sizes, bias, c.activation);
        let input_ff_layer = block(&model.at("input_ff_layer"), [2 * c.patch_length, hidden, hidden], true)?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| Layer::load(c, &model.at_index("layers", i)))
            .collect::<Result<_>>()?;
        let head = |name, steps| block(&w.at(name), [hidden, hidden, steps * c.channels()], false);
        Ok(Self {
            input_ff_layer,
            layers,
            output_projection_point: head("output_projection_point", c.horizon_length)?,
            output_projection_quantiles: head("output_projection_quantiles", c.output_quantile_len)?,
            rope: c.rope()?,
            config,
        })
    }
}

impl TimesFm25 {
    /// `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The last hidden states, `(series, patches, hidden_size)`, of `patches`, `(series, patches, 2 * patch_length)`:
    /// normalised values, then their padding mask. `real` are the patches with a value.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn encode(&self, patches: &Tensor, real: &[Vec<bool>]) -> Result<Tensor> {
        let mut x = self.input_ff_layer.forward(patches)?;
        let mask = Mask::causal().with_padding(real)?;
        let angles = self.rope.angles(&positions(real)?, x.device())?;
        for layer in &self.layers {
            x = layer.forward(&x, &mask, &angles)?;
        }
        Ok(x)
    }

    /// The normalised outputs after the last patch of `states`, `(series, horizon_length, 1 + quantiles)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn points(&self, states: &Tensor) -> Result<Tensor> {
        self.told(&self.output_projection_point, states, self.config.horizon_length)
    }

    /// The outputs of the quantile head after the last patch of `states`, `(series, output_quantile_len, 1 + quantiles)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn spreads(&self, states: &Tensor) -> Result<Tensor> {
        self.told(&self.output_projection_quantiles, states, self.config.output_quantile_len)
    }

    fn told(&self, head: &ResidualBlock, states: &Tensor, steps: usize) -> Result<Tensor> {
        let (series, patches, _) = states.dims3()?;
        let last = states.narrow(1, patches - 1, 1)?.contiguous()?;
        Ok(head.forward(&last)?.reshape((series, steps, self.config.channels()))?)
    }
}

/// Positions counted from the first patch that is not padding.
fn positions(real: &[Vec<bool>]) -> Result<Positions> {
    let patches = real.first().map_or(0, Vec::len);
    let hidden = |row: &Vec<bool>| row.iter().filter(|real| !**real).count();
    if real.iter().all(|row| hidden(row) == 0) {
        return Ok(Positions::counting(0, patches));
    }
    // Padding is masked, whatever its position.
    let places = |row: &Vec<bool>| (0..patches).map(|i| i.saturating_sub(hidden(row)) as u32).collect();
    Positions::rows(&real.iter().map(places).collect::<Vec<Vec<u32>>>())
}

impl Layer {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let mlp = w.at("mlp");
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(c, &w.at("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp {
                fc1: mlp.linear_bias_if(c.use_bias, "fc1", c.hidden_size, c.intermediate_size)?,
                fc2: mlp.linear_bias_if(c.use_bias, "fc2", c.intermediate_size, c.hidden_size)?,
                activation: c.activation,
            },
            post_feedforward_layernorm: norm("post_feedforward_layernorm")?,
        })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, angles: &Angles) -> Result<Tensor> {
        let seen = self.self_attn.forward(&self.input_layernorm.forward(x)?, mask, angles)?;
        let x = add(&self.post_attention_layernorm.forward(&seen)?, x)?;
        let made = self.mlp.forward(&self.pre_feedforward_layernorm.forward(&x)?)?;
        add(&self.post_feedforward_layernorm.forward(&made)?, &x)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (inner, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        Ok(Self {
            qkv_proj: joined_projections(w, c.hidden_size, [inner, kv], c.attention_bias)?,
            o_proj: w.linear_bias_if(c.attention_bias, "o_proj", inner, c.hidden_size)?,
            q_norm: w.rms_norm("q_norm", c.head_dim, c.rms_norm_eps)?,
            k_norm: w.rms_norm("k_norm", c.head_dim, c.rms_norm_eps)?,
            scale: query_scale(w, c.head_dim)?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            width: c.head_dim,
        })
    }

    /// Queries and keys are normalised after the rotary embeddings.
    fn forward(&self, x: &Tensor, mask: &Mask, angles: &Angles) -> Result<Tensor> {
        let (series, patches, _) = x.dims3()?;
        let heads = self.heads + 2 * self.kv_heads;
        let qkv = self.qkv_proj.forward(x)?.reshape((series, patches, heads, self.width))?;
        let q = qkv.narrow(2, 0, self.heads)?.contiguous()?;
        let k = qkv.narrow(2, self.heads, self.kv_heads)?.contiguous()?;
        let v = qkv.narrow(2, self.heads + self.kv_heads, self.kv_heads)?;
        let q = self.q_norm.forward(&angles.rotate(&q)?)?.broadcast_mul(&self.scale)?;
        let k = self.k_norm.forward(&angles.rotate(&k)?)?;
        self.o_proj.forward(&attend(&q, &k, &v, mask, 1.0)?)
    }
}

impl Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.fc1.forward_then(x, self.activation)?)
    }
}

/// TimesFM 2.5.
pub static FAMILY: Family = Family {
    name: "timesfm-2.5",
    systems: &["TimeGPT"],
    paper: "Das et al. 2024, arXiv 2310.10688",
    // The config of the original files on the hub has the earlier model type: the layout distinguishes them.
    model_types: &["timesfm2_5", "timesfm"],
    architectures: &["TimesFm2_5ModelForPrediction", "TimesFmModelForPrediction"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Series],
    outputs: &[Modality::Series, Modality::Vector],
    releases: &[
        Release::new("google/timesfm-2.5-200m-pytorch", "TimeGPT", "231M", "Apache-2.0"),
        Release::new("google/timesfm-2.5-200m-transformers", "TimeGPT", "231M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(super::V2_5),
    rename: super::rename_2_5,
    inventory: |pretrained| Ok(pretrained.load::<TimesFm25>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(super::TimesFm25Pipeline::open(pretrained)?)),
    sample: super::v2_5_sample,
};
