//! Chronos-2: an encoder over patches of past and future at once, whose series may see each other.
//!
//! Ansari et al. 2025, "Chronos-2: From Univariate to Universal Forecasting" (arXiv 2510.15821), section 3.
//! Checked against chronos-forecasting `Chronos2Model` and `Chronos2Pipeline`, parity cases `tests/parity/chronos`.
//! Loads `architectures: ["Chronos2Model"]`. Activations are `(series, patches, d_model)`.

use std::sync::OnceLock;

use candle_core::{Device, Tensor};
use fauna_shared::attention::{Angles, Mask, Positions, Rope, RopeScaling, attend};
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Keys, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Embedding, Linear, RmsNorm, add};
use fauna_shared::weights::{Name, Weights};
use fauna_shared::{Error, Result, transfer};
use serde::Deserialize;

use super::bolt::check_levels;
use super::patches::{Cut, ResidualBlock};

/// The keys of `config.json` that shape the network.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Hidden size.
    #[serde(default = "d_model")]
    pub d_model: usize,
    /// Width of a head.
    #[serde(default = "d_kv")]
    pub d_kv: usize,
    /// Width inside the feed-forward part and the blocks at both ends.
    #[serde(default = "d_ff")]
    pub d_ff: usize,
    /// Blocks.
    #[serde(default = "num_layers")]
    pub num_layers: usize,
    /// Heads in each attention.
    #[serde(default = "num_heads")]
    pub num_heads: usize,
    /// Epsilon of the norms.
    #[serde(default = "layer_norm_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Base of the rotary positions.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// The activation; none that is gated is implemented.
    #[serde(default = "relu")]
    pub feed_forward_proj: Activation,
    /// What else there is.
    pub chronos_config: TwoConfig,
}

/// What `chronos_config` says.
#[derive(Debug, Clone, Deserialize)]
pub struct TwoConfig {
    /// Steps read at most.
    pub context_length: usize,
    /// Steps of a patch of the future; as many as of the past.
    pub output_patch_size: usize,
    /// Steps of a patch of the past.
    pub input_patch_size: usize,
    /// Steps from one patch to the next.
    pub input_patch_stride: usize,
    /// The levels that were trained.
    pub quantiles: Vec<f64>,
    /// Only true is implemented: without it the reference does not run.
    #[serde(default)]
    pub use_reg_token: bool,
    /// Whether normalised values are compressed by the inverse hyperbolic sine.
    #[serde(default)]
    pub use_arcsinh: bool,
    /// Patches of the future in one pass at most.
    #[serde(default = "one")]
    pub max_output_patches: usize,
    /// What steps are divided by to tell the time; `context_length` if absent.
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
                Err(Error::unsupported(format!("rotary positions over d_kv {}: pairs wanted", self.d_kv)))
            }
        }
    }
}

impl TwoConfig {
    /// What steps are divided by to tell the time.
    pub fn time_scale(&self) -> usize {
        self.time_encoding_scale.unwrap_or(self.context_length)
    }

    /// How series are cut.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) if nothing can be cut so.
    pub fn cut(&self) -> Result<Cut> {
        Cut::new(self.input_patch_size, self.input_patch_stride, self.use_arcsinh)
    }
}

/// The row of `shared` that stands between past and future.
const REG: u32 = 1;

/// The network.
pub struct Chronos2 {
    shared: Embedding,
    input_patch_embedding: ResidualBlock,
    block: Vec<Block>,
    final_layer_norm: RmsNorm,
    output_patch_embedding: ResidualBlock,
    rope: Rope,
    config: TwoConfig,
}

struct Block {
    time: Sublayer<Attention>,
    group: Sublayer<Attention>,
    mlp: Sublayer<Mlp>,
}

/// A part of a block and the norm before it: `x + part(norm(x))`.
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

/// Which series see each other, and where.
pub struct Groups {
    /// The rows of each group of two or more.
    together: Vec<Vec<u32>>,
    /// For each of those, which of its rows are seen at each patch: `(patches, rows)`.
    masks: Vec<Mask>,
    /// For each row, where it is in `together` one after the other, the rows alone coming last.
    order: Vec<u32>,
    /// Rows alone.
    alone: Vec<u32>,
    /// 1 where a row sees nobody, itself included: `(rows, patches)`; none if there is no such place.
    blind: Option<Vec<f32>>,
    /// The same on the device, once a layer has asked.
    placed: OnceLock<Placed>,
}

/// [`Groups`] as tensors, which all layers share.
#[derive(Clone)]
struct Placed {
    together: Vec<Tensor>,
    order: Tensor,
    /// None if no row is alone.
    alone: Option<Tensor>,
    /// `(rows, patches, 1)`.
    blind: Option<Tensor>,
}

impl Groups {
    fn on(&self, device: &Device) -> Result<Placed> {
        if let Some(placed) = self.placed.get() {
            return Ok(placed.clone());
        }
        let index = |rows: &Vec<u32>| transfer::to_device(rows.clone(), rows.len(), device);
        let rows = self.order.len();
        let blind = |blind: &Vec<f32>| {
            transfer::to_device(blind.clone(), (rows, blind.len() / rows.max(1), 1), device)
        };
        let placed = Placed {
            together: self.together.iter().map(index).collect::<Result<_>>()?,
            order: index(&self.order)?,
            alone: Some(&self.alone).filter(|rows| !rows.is_empty()).map(index).transpose()?,
            blind: self.blind.as_ref().map(blind).transpose()?,
        };
        Ok(self.placed.get_or_init(|| placed).clone())
    }

    /// `ids`: one a row, those that are equal see each other; `real`: `(rows, patches)`.
    ///
    /// # Errors
    /// None that are to be expected.
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
        let mut blind = vec![0f32; ids.len() * patches];
        for (_, rows) in &members {
            for patch in (0..patches).filter(|patch| !seen(rows, *patch)) {
                rows.iter().for_each(|row| blind[*row as usize * patches + patch] = 1.0);
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
            blind: blind.contains(&1.0).then_some(blind),
            placed: OnceLock::new(),
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
    pub fn config(&self) -> &TwoConfig {
        &self.config
    }

    /// The states of past, border and future, `(series, past + 1 + future, d_model)`, and which of them hold something.
    ///
    /// `past`, `future`: `(series, patches, 3 * size)` of times, values, and which values are known; `real`: which
    /// patches of the past hold a value; `groups`: one number a series, and those of one number see each other.
    ///
    /// # Errors
    /// None that are to be expected.
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
        let mut x = Tensor::cat(&[&past, &reg, &future], 1)?;
        real.iter_mut().for_each(|row| row.resize(row.len() + 1 + count, true));
        let mask = Mask::full().with_padding(&real)?;
        let angles = self.rope.angles(&Positions::counting(0, x.dim(1)?), x.device())?;
        let groups = Groups::new(groups, &real)?;
        for block in &self.block {
            x = block.forward(&x, &mask, &angles, &groups)?;
        }
        Ok((self.final_layer_norm.forward(&x)?, real))
    }

    /// What the last `count` of `states` say, normalised as the series were: `(series, quantiles, count * size)`.
    ///
    /// # Errors
    /// None that are to be expected.
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

    /// Patches of one series see each other; scores are not scaled.
    fn over_time(&self, x: &Tensor, mask: &Mask, angles: &Angles) -> Result<Tensor> {
        let q = angles.rotate(&self.split(self.q.forward(x)?)?)?;
        let k = angles.rotate(&self.split(self.k.forward(x)?)?)?;
        let v = self.split(self.v.forward(x)?)?;
        self.o.forward(&attend(&q, &k, &v, mask, 1.0)?)
    }

    /// Series of one group see each other at every patch, in no order.
    fn over_groups(&self, x: &Tensor, groups: &Groups) -> Result<Tensor> {
        let v = self.v.forward(x)?;
        let mut seen = match groups.together.is_empty() {
            // Who sees itself alone need not look.
            true => v.clone(),
            false => self.in_groups(x, &v, groups)?,
        };
        if let Some(blind) = groups.on(v.device())?.blind {
            // Where nobody in a group is seen, the reference gives the mean of all rows. It reaches no forecast.
            let blind = blind.to_dtype(v.dtype())?;
            let mean = v.mean_keepdim(0)?;
            let off = mean.broadcast_sub(&seen)?.broadcast_mul(&blind)?;
            seen = add(&seen, &off)?;
        }
        self.o.forward(&seen)
    }

    fn in_groups(&self, x: &Tensor, v: &Tensor, groups: &Groups) -> Result<Tensor> {
        let (q, k) = (self.q.forward(x)?, self.k.forward(x)?);
        let placed = groups.on(x.device())?;
        let mut parts = Vec::with_capacity(groups.together.len() + 1);
        for (rows, mask) in placed.together.iter().zip(&groups.masks) {
            // `(patches, rows, heads, d_kv)`: every patch is a sequence of rows.
            let chosen = |x: &Tensor| -> Result<Tensor> {
                self.split(x.index_select(rows, 0)?.transpose(0, 1)?.contiguous()?)
            };
            let seen = attend(&chosen(&q)?, &chosen(&k)?, &chosen(v)?, mask, 1.0)?;
            parts.push(seen.transpose(0, 1)?.contiguous()?);
        }
        if let Some(alone) = &placed.alone {
            parts.push(v.index_select(alone, 0)?);
        }
        Ok(Tensor::cat(&parts, 0)?.index_select(&placed.order, 0)?)
    }

    fn split(&self, x: Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        Ok(x.reshape((batch, time, self.heads, width / self.heads))?)
    }
}

/// Chronos-2: quantiles of the futures of series that tell something about each other.
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
    layout: Some(super::TWO),
    rename: |_| Name::Keep,
    inventory: |pretrained| Ok(pretrained.load::<Chronos2>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(super::TwoPipeline::open(pretrained)?)),
    sample: super::two_sample,
};
