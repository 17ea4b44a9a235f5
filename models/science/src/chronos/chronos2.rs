//! Chronos-2: an encoder over patches of past and future with attention over time and over groups of series.
//!
//! Ansari et al. 2025, "Chronos-2: From Univariate to Universal Forecasting" (arXiv 2510.15821), section 3.
//! Checked against chronos-forecasting `Chronos2Model` and `Chronos2Pipeline`, parity cases `tests/parity/chronos`.
//! Loads `architectures: ["Chronos2Model"]`. Activations are `(series, patches, d_model)`.

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Angles, Mask, Positions, Rope, RopeScaling, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add, concat};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result, transfer};
use serde::Deserialize;

use super::bolt::check_levels;
use super::patches::{Cut, ResidualBlock};

/// The keys of `config.json` that define the network.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Hidden size.
    #[serde(default = "d_model")]
    pub d_model: usize,
    /// Dimension of a head.
    #[serde(default = "d_kv")]
    pub d_kv: usize,
    /// Intermediate (feed-forward) size.
    #[serde(default = "d_ff")]
    pub d_ff: usize,
    /// Number of layers.
    #[serde(default = "num_layers")]
    pub num_layers: usize,
    /// Number of attention heads.
    #[serde(default = "num_heads")]
    pub num_heads: usize,
    /// Epsilon of the RMS norms.
    #[serde(default = "layer_norm_epsilon")]
    pub layer_norm_epsilon: f64,
    /// RoPE base (theta).
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Activation function; gated ones are not implemented.
    #[serde(default = "relu")]
    pub feed_forward_proj: Activation,
    /// Config of Chronos-2.
    pub chronos_config: Chronos2Config,
}

/// The keys of `chronos_config`.
#[derive(Debug, Clone, Deserialize)]
pub struct Chronos2Config {
    /// Context length in steps.
    pub context_length: usize,
    /// Output patch length in steps, that of the input.
    pub output_patch_size: usize,
    /// Input patch length in steps.
    pub input_patch_size: usize,
    /// Stride of the patches in steps.
    pub input_patch_stride: usize,
    /// Levels of the trained quantiles.
    pub quantiles: Vec<f64>,
    /// Whether a `[REG]` token separates past and future; only true is implemented, as in the reference.
    #[serde(default)]
    pub use_reg_token: bool,
    /// Whether normalised values go through the inverse hyperbolic sine.
    #[serde(default)]
    pub use_arcsinh: bool,
    /// Maximum number of output patches of one forward pass.
    #[serde(default = "one")]
    pub max_output_patches: usize,
    /// Scale of the time encoding in steps; `context_length` if absent.
    #[serde(default)]
    pub time_encoding_scale: Option<usize>,
}

fn d_model() -> usize {
    512
}

fn d_kv() -> usize {
    64
}

fn d_ff() -> usize {
    2048
}

fn num_layers() -> usize {
    6
}

fn num_heads() -> usize {
    8
}

fn layer_norm_epsilon() -> f64 {
    1e-6
}

fn rope_theta() -> f64 {
    10_000.0
}

fn relu() -> Activation {
    Activation::Relu
}

fn one() -> usize {
    1
}

impl Config {
    fn check(&self) -> Result<()> {
        let own = &self.chronos_config;
        check_sizes(&[
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("d_kv * num_heads", self.d_kv.saturating_mul(self.num_heads)),
            ("chronos_config.context_length", own.context_length),
            ("chronos_config.max_output_patches", own.max_output_patches),
            ("chronos_config.quantiles (their number)", own.quantiles.len()),
            ("chronos_config.output_patch_size", own.output_patch_size),
            (
                "chronos_config.quantiles (their number) * output_patch_size",
                own.quantiles.len().saturating_mul(own.output_patch_size),
            ),
            ("chronos_config.time_encoding_scale", own.time_scale()),
        ])?;
        check_levels(&own.quantiles)?;
        if own.input_patch_size != own.output_patch_size {
            return Err(Error::unsupported(format!(
                "input_patch_size {} is not output_patch_size {}",
                own.input_patch_size, own.output_patch_size
            )));
        }
        if !own.use_reg_token {
            return Err(Error::unsupported("use_reg_token false is not implemented for chronos-2")
                .hint("the reference does not run without it either"));
        }
        match self.d_kv.is_multiple_of(2) {
            true => Ok(()),
            false => {
                Err(Error::unsupported(format!("d_kv {} must be even for rotary embeddings", self.d_kv)))
            }
        }
    }
}

impl Chronos2Config {
    /// Scale of the time encoding in steps.
    pub fn time_scale(&self) -> usize {
        self.time_encoding_scale.unwrap_or(self.context_length)
    }

    /// Patching of the series.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for an invalid patch length or stride.
    pub fn cut(&self) -> Result<Cut> {
        Cut::new(self.input_patch_size, self.input_patch_stride, self.use_arcsinh)
    }
}

/// Id of the `[REG]` token between past and future.
const REG: u32 = 1;

/// The network.
pub struct Chronos2 {
    shared: Embedding,
    input_patch_embedding: ResidualBlock,
    block: Vec<Block>,
    final_layer_norm: RmsNorm,
    output_patch_embedding: ResidualBlock,
    rope: Rope,
    config: Chronos2Config,
}

struct Block {
    time: Sublayer<Attention>,
    group: Sublayer<Attention>,
    mlp: Sublayer<Mlp>,
}

/// A pre-norm residual sublayer: `x + part(norm(x))`.
struct Sublayer<P> {
    layer_norm: RmsNorm,
    part: P,
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: usize,
}

struct Mlp {
    wi: Linear,
    wo: Linear,
    activation: Activation,
}

/// Groups of series that attend to each other.
pub struct Groups {
    /// Rows of each group of two or more.
    together: Vec<Vec<u32>>,
    /// Mask of each of these groups, `(patches, rows)`.
    masks: Vec<Mask>,
    /// Index of each row in the concatenation of `together` and `alone`.
    order: Vec<u32>,
    /// Rows that are a group of their own.
    alone: Vec<u32>,
    /// 1 where all rows of a group are masked, `(rows, patches)`; `None` if there is no such position.
    all_masked: Option<Vec<f32>>,
    /// The tensors on the device, made by the first layer.
    tensors: OnceLock<GroupTensors>,
}

/// [`Groups`] as tensors.
#[derive(Clone)]
struct GroupTensors {
    together: Vec<Tensor>,
    order: Tensor,
    /// `None` if there are none.
    alone: Option<Tensor>,
    /// `(rows, patches, 1)`.
    all_masked: Option<Tensor>,
}

impl Groups {
    fn on(&self, device: &Device) -> Result<GroupTensors> {
        if let Some(tensors) = self.tensors.get() {
            return Ok(tensors.clone());
        }
        let index = |rows: &Vec<u32>| transfer::to_device(rows.clone(), rows.len(), device);
        let rows = self.order.len();
        let all_masked = |all_masked: &Vec<f32>| {
            transfer::to_device(all_masked.clone(), (rows, all_masked.len() / rows.max(1), 1), device)
        };
        let tensors = GroupTensors {
            together: self.together.iter().map(index).collect::<Result<_>>()?,
            order: index(&self.order)?,
            alone: Some(&self.alone).filter(|rows| !rows.is_empty()).map(index).transpose()?,
            all_masked: self.all_masked.as_ref().map(all_masked).transpose()?,
        };
        Ok(self.tensors.get_or_init(|| tensors).clone())
    }

    /// Groups by the ids of the rows; `real` is the mask, `(rows, patches)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn new(ids: &[i64], real: &[Vec<bool>]) -> Result<Self> {
        let mut members: Vec<(i64, Vec<u32>)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for (row, id) in (0u32..).zip(ids) {
            let place = *places.entry(*id).or_insert_with(|| {
                members.push((*id, Vec::new()));
                members.len() - 1
            });
            members[place].1.push(row);
        }
        let patches = real.first().map_or(0, Vec::len);
        let seen = |rows: &Vec<u32>, patch: usize| rows.iter().any(|row| real[*row as usize][patch]);
        let mut all_masked = vec![0f32; ids.len() * patches];
        for (_, rows) in &members {
            for patch in (0..patches).filter(|patch| !seen(rows, *patch)) {
                rows.iter().for_each(|row| all_masked[*row as usize * patches + patch] = 1.0);
            }
        }
        let (together, alone): (Vec<_>, Vec<_>) =
            members.into_iter().map(|(_, rows)| rows).partition(|rows| rows.len() > 1);
        let mask = |rows: &Vec<u32>| {
            let at = |patch: usize| rows.iter().map(|row| real[*row as usize][patch]).collect();
            Mask::full().with_padding(&(0..patches).map(at).collect::<Vec<Vec<bool>>>())
        };
        let alone = alone.concat();
        let mut order = vec![0; ids.len()];
        for (place, row) in (0u32..).zip(together.iter().flatten().chain(&alone)) {
            order[*row as usize] = place;
        }
        Ok(Self {
            masks: together.iter().map(mask).collect::<Result<_>>()?,
            together,
            alone,
            order,
            all_masked: all_masked.contains(&1.0).then_some(all_masked),
            tensors: OnceLock::new(),
        })
    }
}

impl Model for Chronos2 {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        config.check()?;
        let (c, own) = (&config, &config.chronos_config);
        let block = |name, inputs, outputs| {
            ResidualBlock::load(&w.at(name), [inputs, c.d_ff, outputs], c.feed_forward_proj)
        };
        own.cut()?;
        let inputs = own.input_patch_size.saturating_mul(3);
        let outputs = own.quantiles.len() * own.output_patch_size;
        let encoder = w.at("encoder");
        Ok(Self {
            shared: w.embedding("shared", 2, c.d_model)?,
            input_patch_embedding: block("input_patch_embedding", inputs, c.d_model)?,
            block: (0..c.num_layers)
                .map(|i| Block::load(c, &encoder.at_index("block", i)))
                .collect::<Result<_>>()?,
            final_layer_norm: encoder.rms_norm("final_layer_norm", c.d_model, c.layer_norm_epsilon)?,
            output_patch_embedding: block("output_patch_embedding", c.d_model, outputs)?,
            rope: Rope::new(c.rope_theta, c.d_kv, RopeScaling::Default)?,
            config: config.chronos_config,
        })
    }
}

impl Chronos2 {
    /// `chronos_config`.
    pub fn config(&self) -> &Chronos2Config {
        &self.config
    }

    /// The hidden states of past, `[REG]` token and future, `(series, past + 1 + future, d_model)`, and their mask.
    ///
    /// `past` and `future` are `(series, patches, 3 * size)`: times, values, and their mask. `real` are the patches of the past
    /// with a value, `groups` the group ids of the series.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn encode(
        &self,
        past: &Tensor,
        future: &Tensor,
        mut real: Vec<Vec<bool>>,
        groups: &[i64],
    ) -> Result<(Tensor, Vec<Vec<bool>>)> {
        let (series, count) = (real.len(), future.dim(1)?);
        let reg = self.shared.forward(&Tensor::full(REG, (series, 1), past.device())?)?;
        let past = self.input_patch_embedding.forward(past)?;
        let future = self.input_patch_embedding.forward(future)?;
        let mut x = concat(&[&past, &reg, &future], 1)?;
        real.iter_mut().for_each(|row| row.resize(row.len() + 1 + count, true));
        let mask = Mask::full().with_padding(&real)?;
        let angles = self.rope.angles(&Positions::counting(0, x.dim(1)?), x.device())?;
        let groups = Groups::new(groups, &real)?;
        for block in &self.block {
            x = block.forward(&x, &mask, &angles, &groups)?;
        }
        Ok((self.final_layer_norm.forward(&x)?, real))
    }

    /// Predicts normalised quantiles from the last `count` of `states`, `(series, quantiles, count * size)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn decode(&self, states: &Tensor, count: usize) -> Result<Tensor> {
        let (series, time, _) = states.dims3()?;
        let last = states.narrow(1, time - count, count)?.contiguous()?;
        let (levels, size) = (self.config.quantiles.len(), self.config.output_patch_size);
        let told = self.output_patch_embedding.forward(&last)?.reshape((series, count, levels, size))?;
        Ok(told.transpose(1, 2)?.reshape((series, levels, count * size))?)
    }
}

impl Block {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let attention = |index| {
            let here = w.at_index("layer", index);
            Sublayer::load(c, Attention::load(c, &here.at("self_attention"))?, &here)
        };
        let (time, group) = (attention(0)?, attention(1)?);
        let here = w.at("layer.2");
        let mlp = Mlp {
            wi: here.linear_no_bias("mlp.wi", c.d_model, c.d_ff)?,
            wo: here.linear_no_bias("mlp.wo", c.d_ff, c.d_model)?,
            activation: c.feed_forward_proj,
        };
        Ok(Self { time, group, mlp: Sublayer::load(c, mlp, &here)? })
    }

    fn forward(&self, x: &Tensor, mask: &Mask, angles: &Angles, groups: &Groups) -> Result<Tensor> {
        let x = self.time.add_to(x, |attention, x| attention.over_time(x, mask, angles))?;
        let x = self.group.add_to(&x, |attention, x| attention.over_groups(x, groups))?;
        self.mlp.add_to(&x, |mlp, x| mlp.wo.forward(&mlp.wi.forward_then(x, mlp.activation)?))
    }
}

impl<P> Sublayer<P> {
    fn load(c: &Config, part: P, w: &Weights) -> Result<Self> {
        Ok(Self { layer_norm: w.rms_norm("layer_norm", c.d_model, c.layer_norm_epsilon)?, part })
    }

    fn add_to(&self, x: &Tensor, part: impl FnOnce(&P, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        add(x, &part(&self.part, &self.layer_norm.forward(x)?)?)
    }
}

impl Attention {
    fn load(c: &Config, w: &Weights) -> Result<Self> {
        let inner = c.num_heads * c.d_kv;
        Ok(Self {
            q: w.linear_no_bias("q", c.d_model, inner)?,
            k: w.linear_no_bias("k", c.d_model, inner)?,
            v: w.linear_no_bias("v", c.d_model, inner)?,
            o: w.linear_no_bias("o", inner, c.d_model)?,
            heads: c.num_heads,
        })
    }

    /// Attention over the patches of each series; attention scores are not scaled.
    fn over_time(&self, x: &Tensor, mask: &Mask, angles: &Angles) -> Result<Tensor> {
        let q = angles.rotate(&self.split(self.q.forward(x)?)?)?;
        let k = angles.rotate(&self.split(self.k.forward(x)?)?)?;
        let v = self.split(self.v.forward(x)?)?;
        self.o.forward(&attend(&q, &k, &v, mask, 1.0)?)
    }

    /// Attention over the series of each group at every patch, without positions.
    fn over_groups(&self, x: &Tensor, groups: &Groups) -> Result<Tensor> {
        let v = self.v.forward(x)?;
        let mut seen = match groups.together.is_empty() {
            // Attention over one row returns its value.
            true => v.clone(),
            false => self.in_groups(x, &v, groups)?,
        };
        if let Some(all_masked) = groups.on(v.device())?.all_masked {
            // Where all rows are masked, the reference returns the mean over the batch. It does not reach the forecasts.
            let all_masked = all_masked.to_dtype(v.dtype())?;
            let mean = v.mean_keepdim(0)?;
            let off = mean.broadcast_sub(&seen)?.broadcast_mul(&all_masked)?;
            seen = add(&seen, &off)?;
        }
        self.o.forward(&seen)
    }

    fn in_groups(&self, x: &Tensor, v: &Tensor, groups: &Groups) -> Result<Tensor> {
        let (q, k) = (self.q.forward(x)?, self.k.forward(x)?);
        let tensors = groups.on(x.device())?;
        let mut parts = Vec::with_capacity(groups.together.len() + 1);
        for (rows, mask) in tensors.together.iter().zip(&groups.masks) {
            // `(patches, rows, heads, d_kv)`: a sequence over rows per patch.
            let chosen = |x: &Tensor| -> Result<Tensor> {
                self.split(x.index_select(rows, 0)?.transpose(0, 1)?.contiguous()?)
            };
            let seen = attend(&chosen(&q)?, &chosen(&k)?, &chosen(v)?, mask, 1.0)?;
            parts.push(seen.transpose(0, 1)?.contiguous()?);
        }
        if let Some(alone) = &tensors.alone {
            parts.push(v.index_select(alone, 0)?);
        }
        Ok(Tensor::cat(&parts, 0)?.index_select(&tensors.order, 0)?)
    }

    fn split(&self, x: Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        Ok(x.reshape((batch, time, self.heads, width / self.heads))?)
    }
}

/// Chronos-2.
pub static FAMILY: Family = Family {
    name: "chronos-2",
    systems: &["TimeGPT"],
    paper: "Ansari et al. 2025, arXiv 2510.15821",
    model_types: &["t5"],
    architectures: &["Chronos2Model"],
    gguf: &[],
    keys: &Keys::NONE,
    inputs: &[Modality::Series],
    outputs: &[Modality::Series, Modality::Vector],
    releases: &[
        Release::new("amazon/chronos-2", "TimeGPT", "120M", "Apache-2.0"),
        Release::new("autogluon/chronos-2-small", "TimeGPT", "28M", "Apache-2.0"),
        Release::new("autogluon/chronos-2-synth", "TimeGPT", "120M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(super::CHRONOS_2),
    rename: |_| Name::Keep,
    inventory: |pretrained| Ok(pretrained.load::<Chronos2>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(super::Chronos2Pipeline::open(pretrained)?)),
    sample: super::chronos2_sample,
};
