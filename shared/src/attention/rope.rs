//! Rotary position embedding (RoPE) and its published scalings.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Shape, Tensor};
use candle_nn::rotary_emb::{rope_i, rope_thd};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::grad::Recorded;
use crate::kernels::rope::{Order, Pairs, Rotary};
use crate::nn::{back, fused, host};
use crate::runtime::kernels_take;
use crate::{Error, ErrorKind, Result, grad, json, transfer};

/// Position ids of a batch: one row shared by all sequences, or one row per sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    rows: usize,
    values: Vec<u32>,
}

impl Positions {
    /// Positions `start`, `start + 1`, … for every sequence; `time` is the sequence length.
    pub fn counting(start: usize, time: usize) -> Self {
        Self { rows: 1, values: (start..start + time).map(|p| p as u32).collect() }
    }

    /// Positions of each sequence, `(batch, sequence)`.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the rows have different lengths.
    pub fn rows(rows: &[Vec<u32>]) -> Result<Self> {
        if rows.windows(2).any(|pair| pair[0].len() != pair[1].len()) {
            return Err(Error::input("the rows of position ids have different lengths"));
        }
        Ok(Self { rows: rows.len().max(1), values: rows.concat() })
    }

    /// Returns the position ids, `(batch or 1, sequence)`, for learned position embeddings.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        transfer::to_device(self.values.clone(), (self.rows, self.values.len() / self.rows), device)
    }

    /// Returns the largest position; `None` if there are no positions.
    pub fn largest(&self) -> Option<usize> {
        self.values.iter().max().map(|p| *p as usize)
    }
}

/// RoPE scaling: how frequencies are changed for contexts longer than in training.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    #[default]
    Default,
    /// Linear scaling (position interpolation, Chen et al. 2023).
    Linear {
        /// The divisor of all frequencies.
        factor: f64,
    },
    /// Dynamic NTK-aware scaling: a larger base for sequences longer than in training.
    Dynamic {
        /// The context length as a multiple of the original one.
        factor: f64,
        /// The original context length.
        trained: usize,
    },
    /// The scaling of Llama 3.1: low frequencies are divided, high ones kept, with a ramp between them.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `low_freq_factor`: wavelengths above `trained / low` are divided.
        low: f64,
        /// `high_freq_factor`: wavelengths below `trained / high` are kept.
        high: f64,
        /// The original context length.
        trained: usize,
    },
    /// YaRN (Peng et al. 2023, section 3.2): a ramp between divided and kept frequencies; cos and sin are scaled by
    /// `attention`.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Number of rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Number of rotations below which a frequency is divided.
        beta_slow: f64,
        /// The original context length.
        trained: usize,
        /// Attention factor: scale of cos and sin.
        attention: f64,
        /// Whether the ends of the ramp are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): a divisor per frequency, with another set beyond the original context length.
    Long {
        /// Divisors up to the original context length, one per frequency.
        short: Vec<f64>,
        /// Divisors beyond it.
        long: Vec<f64>,
        /// The original context length.
        trained: usize,
        /// Attention factor: scale of cos and sin.
        attention: f64,
    },
    /// A divisor per frequency at any length, as in `rope_freqs` of GGUF files.
    Divisors(Vec<f64>),
}

/// The RoPE keys of a `config.json`, in either format: `rope_parameters`, or `rope_theta` with `rope_scaling`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeKeys {
    #[serde(default, deserialize_with = "rope_parameters")]
    rope_parameters: Option<RopeParameters>,
    #[serde(default, deserialize_with = "rope_scaling")]
    rope_scaling: Option<RopeParameters>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    /// Whether pairs are interleaved, as in the `q` and `k` of GGUF files. Named differently from the key
    /// `rope_interleaved` of other programs, which the reference ignores.
    #[serde(default)]
    gguf_rope_interleaved: bool,
    /// The divisors in `rope_freqs.weight` of a GGUF file. No official config has this key.
    rope_divisors: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// The older name of `rope_type`, used if that is absent.
    #[serde(rename = "type")]
    older_rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

/// Parses `rope_parameters`. Errors name the key here, since serde loses the path inside a flattened struct.
fn rope_parameters<'de, D: Deserializer<'de>>(
    value: D,
) -> std::result::Result<Option<RopeParameters>, D::Error> {
    json::part("rope_parameters", Value::deserialize(value)?)
        .map_err(|error| D::Error::custom(error.message()))
}

fn rope_scaling<'de, D: Deserializer<'de>>(
    value: D,
) -> std::result::Result<Option<RopeParameters>, D::Error> {
    json::part("rope_scaling", Value::deserialize(value)?).map_err(|error| D::Error::custom(error.message()))
}

impl RopeKeys {
    /// Sets defaults of the base (`theta`) and of the partial rotary factor (`share`), for model families that have
    /// other keys for them.
    pub fn or(self, theta: Option<f64>, share: Option<f64>) -> Self {
        let share = self.partial_rotary_factor.or(share);
        Self { rope_theta: self.rope_theta.or(theta), partial_rotary_factor: share, ..self }
    }

    /// Creates the rotary embedding for heads of dimension `head_width` in a model with a maximum of `positions`
    /// positions. The default base is 10000.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a `rope_type` that is not implemented;
    /// [`Format`](crate::ErrorKind::Format) for a `rope_type` without its required keys.
    pub fn rope(&self, head_width: usize, positions: usize) -> Result<Rope> {
        let plain = RopeParameters::default();
        let p = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref()).unwrap_or(&plain);
        let theta = p.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        let share = p.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(1.0);
        let trained =
            self.original_max_position_embeddings.or(p.original_max_position_embeddings).unwrap_or(positions);
        let kind = p.rope_type.as_deref().or(p.older_rope_type.as_deref()).unwrap_or("default");
        let need = |key: &str, value: Option<f64>| {
            value.ok_or_else(|| {
                Error::new(ErrorKind::Format, format!("rope_type \"{kind}\" requires the key {key}"))
            })
        };
        let ratio = || p.factor.unwrap_or(positions as f64 / trained as f64);
        let scaling = match (kind, &self.rope_divisors) {
            (_, Some(divisors)) => RopeScaling::Divisors(divisors.clone()),
            ("default", _) => RopeScaling::Default,
            ("linear", _) => RopeScaling::Linear { factor: need("factor", p.factor)? },
            ("dynamic", _) => RopeScaling::Dynamic { factor: need("factor", p.factor)?, trained: positions },
            ("llama3", _) => RopeScaling::Llama3 {
                factor: need("factor", p.factor)?,
                low: need("low_freq_factor", p.low_freq_factor)?,
                high: need("high_freq_factor", p.high_freq_factor)?,
                trained,
            },
            ("yarn", _) => {
                let scale = |m: f64| if ratio() <= 1.0 { 1.0 } else { 0.1 * m * ratio().ln() + 1.0 };
                let attention = match (p.attention_factor, p.mscale, p.mscale_all_dim) {
                    (Some(factor), ..) => factor,
                    (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
                    _ => scale(1.0),
                };
                RopeScaling::Yarn {
                    factor: ratio(),
                    beta_fast: p.beta_fast.filter(|b| *b != 0.0).unwrap_or(32.0),
                    beta_slow: p.beta_slow.filter(|b| *b != 0.0).unwrap_or(1.0),
                    trained,
                    attention,
                    truncate: p.truncate.unwrap_or(true),
                }
            }
            ("longrope", _) => {
                let (Some(short), Some(long)) = (p.short_factor.clone(), p.long_factor.clone()) else {
                    return Err(Error::new(
                        ErrorKind::Format,
                        "rope_type \"longrope\" requires the keys short_factor and long_factor",
                    ));
                };
                let attention = p.attention_factor.unwrap_or_else(|| {
                    if ratio() <= 1.0 { 1.0 } else { (1.0 + ratio().ln() / (trained as f64).ln()).sqrt() }
                });
                RopeScaling::Long { short, long, trained, attention }
            }
            (other, _) => {
                return Err(Error::unsupported(format!("rope_type \"{other}\" is not implemented"))
                    .hint("known: default, linear, dynamic, llama3, yarn, longrope"));
            }
        };
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::unsupported(format!("a partial rotary factor of {share}"))
                .hint("expected partial_rotary_factor (or rotary_pct) from 0 to 1"));
        }
        let width = (head_width as f64 * share) as usize;
        if width.next_multiple_of(2) > head_width {
            let message = format!(
                "a rotary dimension of {width} does not form pairs within a head dimension of {head_width}"
            );
            return Err(Error::unsupported(message));
        }
        Ok(Rope::new(theta, width, scaling)?.interleaved(self.gguf_rope_interleaved))
    }
}

/// Rotary position embedding (Su et al. 2021, section 3.4): pairs of elements are rotated by angles proportional to the
/// position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    theta: f64,
    /// Rotary dimension: number of elements of each head that are rotated; if odd, one more is.
    width: usize,
    scaling: RopeScaling,
    /// Whether pairs are `2 i` and `2 i + 1`, as in GGUF files, and not `i` and `i + width / 2`.
    interleaved: bool,
}

impl Rope {
    /// Creates an embedding with base `theta` over the first `width` elements of each head, in half-split pairs. An odd
    /// `width`, possible with a partial rotary factor, is used as such in the frequencies, and the last pair takes one
    /// element more.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if there is not one divisor per pair.
    pub fn new(theta: f64, width: usize, scaling: RopeScaling) -> Result<Self> {
        let half = width.div_ceil(2);
        let wrong = match &scaling {
            RopeScaling::Long { short, long, .. } => {
                [short, long].into_iter().find(|list| list.len() != half).map(Vec::len)
            }
            RopeScaling::Divisors(list) if list.len() != half => Some(list.len()),
            _ => None,
        };
        if let Some(found) = wrong {
            return Err(Error::unsupported(format!("{found} RoPE factors, expected {half}")));
        }
        Ok(Self { theta, width, scaling, interleaved: false })
    }

    /// Sets whether pairs are interleaved.
    pub fn interleaved(self, interleaved: bool) -> Self {
        Self { interleaved, ..self }
    }

    /// Returns the frequencies in radians per position for a sequence whose last position is `largest`, and the scale
    /// of cos and sin.
    fn frequencies(&self, largest: usize) -> (Vec<f32>, f32) {
        let half = self.width.div_ceil(2);
        let plain = |theta: f64| -> Vec<f64> {
            (0..half).map(|i| 1.0 / theta.powf(2.0 * i as f64 / self.width as f64)).collect()
        };
        let base = plain(self.theta);
        let length = largest + 1;
        let (frequencies, attention) = match &self.scaling {
            RopeScaling::Default => (base, 1.0),
            RopeScaling::Linear { factor } => (base.iter().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, trained } => {
                let length = length.max(*trained) as f64;
                let stretch = factor * length / *trained as f64 - (factor - 1.0);
                let width = self.width as f64;
                (plain(self.theta * stretch.powf(width / (width - 2.0))), 1.0)
            }
            RopeScaling::Llama3 { factor, low, high, trained } => {
                let trained = *trained as f64;
                let stretched = base.iter().map(|f| {
                    let wavelength = 2.0 * std::f64::consts::PI / f;
                    if wavelength < trained / high {
                        *f
                    } else if wavelength > trained / low {
                        f / factor
                    } else {
                        let smooth = (trained / wavelength - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                });
                (stretched.collect(), 1.0)
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, trained, attention, truncate } => {
                let width = self.width as f64;
                let dimension = |rotations: f64| {
                    width * (*trained as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
                if low == high {
                    high += 0.001;
                }
                let stretched = base.iter().enumerate().map(|(i, f)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                });
                (stretched.collect(), *attention)
            }
            RopeScaling::Long { short, long, trained, attention } => {
                let divisors = if length > *trained { long } else { short };
                (base.iter().zip(divisors).map(|(f, d)| f / d).collect(), *attention)
            }
            RopeScaling::Divisors(divisors) => (base.iter().zip(divisors).map(|(f, d)| f / d).collect(), 1.0),
        };
        (frequencies.into_iter().map(|f| f as f32).collect(), attention as f32)
    }

    /// Computes cosines and sines of `positions`, once per forward pass for all layers.
    pub fn angles(&self, positions: &Positions, device: &Device) -> Result<Angles> {
        let (frequencies, attention) = self.frequencies(positions.largest().unwrap_or(0));
        let time = positions.values.len() / positions.rows;
        let count = positions.values.len() * frequencies.len();
        // Cosines, then sines: one copy to the device.
        let mut values = vec![0f32; 2 * count];
        let (cosines, sines) = values.split_at_mut(count);
        let angles = positions.values.iter().flat_map(|position| {
            // The product is in float32, as in the reference.
            frequencies.iter().map(|frequency| f64::from(*position as f32 * frequency))
        });
        for ((cos, sin), angle) in cosines.iter_mut().zip(sines).zip(angles) {
            let (s, c) = angle.sin_cos();
            (*cos, *sin) = (c as f32 * attention, s as f32 * attention);
        }
        let both = transfer::to_device(values, (2, positions.rows, time, frequencies.len()), device)?;
        Ok(Angles {
            cos: both.get(0)?,
            sin: both.get(1)?,
            interleaved: self.interleaved,
            narrow: Arc::default(),
        })
    }
}

/// Cosines and sines of the RoPE angles of a batch, `(batch or 1, sequence, width / 2)` each, float32.
#[derive(Debug, Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    /// Both in the dtype of the heads if that is not float32, converted by the first layer.
    narrow: Arc<OnceLock<(Tensor, Tensor)>>,
}

impl Angles {
    /// Returns cosines and sines as `dtype`.
    fn in_type(&self, dtype: DType) -> Result<(Tensor, Tensor)> {
        let convert = || Ok((self.cos.to_dtype(dtype)?, self.sin.to_dtype(dtype)?));
        match self.narrow.get() {
            _ if dtype == self.cos.dtype() => Ok((self.cos.clone(), self.sin.clone())),
            Some(both) if both.0.dtype() == dtype => Ok(both.clone()),
            Some(_) => convert(),
            None => {
                let both = convert()?;
                Ok(self.narrow.get_or_init(|| both).clone())
            }
        }
    }

    /// [`rotate`](Self::rotate) of whole heads, with the fused operations of candle.
    fn rotate_fused(&self, x: &Tensor) -> Result<Tensor> {
        let ((batch, time, heads, width), x) = (x.dims4()?, x.contiguous()?);
        let (cos, sin) = self.in_type(x.dtype())?;
        if self.interleaved {
            // candle has no interleaved rope for (sequence, heads): each position becomes a sequence of its own.
            let spread = |table: Tensor| {
                let all = table.expand((batch, time, width / 2))?.contiguous()?;
                all.reshape((batch * time, 1, width / 2))
            };
            let apart = x.reshape((batch * time, heads, 1, width))?;
            return Ok(rope_i(&apart, &spread(cos)?, &spread(sin)?)?.reshape(x.shape())?);
        }
        match cos.dim(0)? {
            1 => Ok(rope_thd(&x, &cos.squeeze(0)?, &sin.squeeze(0)?)?),
            _ => Ok(rope_thd(&x, &cos, &sin)?),
        }
    }

    /// Rotates the first elements (the rotary dimension) of each head of `x`, `(batch, sequence, heads, head_dim)`; the
    /// others are unchanged. Returns the same shape.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, heads, width) = x.dims4()?;
        let (rows, angle_time, half) = self.cos.dims3()?;
        if angle_time != time || (rows != 1 && rows != batch) || 2 * half > width {
            return Err(Error::new(
                ErrorKind::Compute,
                format!(
                    "RoPE angles of shape {:?} do not match heads of shape {:?}",
                    self.cos.dims(),
                    x.dims()
                ),
            ));
        }
        if host::serves(x) {
            let mut values = host::read(x, <[f32]>::to_vec)?;
            let pairs = if self.interleaved { Pairs::Interleaved } else { Pairs::Halves };
            host::read(&self.cos, |cos| {
                host::read(&self.sin, |sin| {
                    let rotary = Rotary { cos, sin, width: 2 * half, pairs };
                    rotary.apply(&mut values, heads, time, width, Order::TimeFirst);
                })
            })??;
            return Ok(Tensor::from_vec(values, x.shape(), x.device())?);
        }
        if kernels_take(x) {
            return grad::apply1(&x.contiguous()?, Turned(self.clone()));
        }
        let turned = x.narrow(D::Minus1, 0, 2 * half)?;
        if fused::serve(&[&turned]) {
            let turned = self.rotate_fused(&turned)?;
            return self.with_the_rest(turned, x);
        }
        let (cos, sin) = self.in_type(x.dtype())?;
        let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
        let (a, b) = match self.interleaved {
            false => (turned.narrow(D::Minus1, 0, half)?, turned.narrow(D::Minus1, half, half)?),
            true => {
                let pairs = turned.reshape((batch, time, heads, half, 2))?;
                (
                    pairs.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?,
                    pairs.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?,
                )
            }
        };
        let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        let turned = match self.interleaved {
            false => Tensor::cat(&[&left, &right], D::Minus1)?,
            true => Tensor::stack(&[&left, &right], D::Minus1)?.reshape((batch, time, heads, 2 * half))?,
        };
        self.with_the_rest(turned, x)
    }

    /// Concatenates `turned`, the rotated elements of each head, and the unchanged elements of `x`.
    fn with_the_rest(&self, turned: Tensor, x: &Tensor) -> Result<Tensor> {
        let (first, width) = (turned.dim(D::Minus1)?, x.dim(D::Minus1)?);
        match first == width {
            true => Ok(turned),
            false => Ok(Tensor::cat(&[&turned, &x.narrow(D::Minus1, first, width - first)?], D::Minus1)?),
        }
    }
}

/// Rotates the heads of `(batch, sequence, heads, head_dim)`, with a backward pass.
struct Turned(Angles);

impl Turned {
    /// Rotates `values`, or back if `back`.
    fn turn(&self, values: &mut [f32], layout: &Layout, back: bool) -> Result<()> {
        let (_, time, heads, width) = layout.shape().dims4()?;
        let Angles { cos, sin, interleaved, .. } = &self.0;
        let half = cos.dim(D::Minus1)?;
        let pairs = if *interleaved { Pairs::Interleaved } else { Pairs::Halves };
        host::read(cos, |cos| {
            host::read(sin, |sin| {
                let rotary = Rotary { cos, sin, width: 2 * half, pairs };
                match back {
                    false => rotary.apply(values, heads, time, width, Order::TimeFirst),
                    true => rotary.apply_backward(values, heads, time, width, Order::TimeFirst),
                }
            })
        })?
    }
}

impl Recorded for Turned {}

impl CustomOp1 for Turned {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut values = back::numbers(storage, layout)?.to_vec();
        self.turn(&mut values, layout, false).map_err(back::out)?;
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut values = host::saved(grad, <[f32]>::to_vec).map_err(back::out)?;
        self.turn(&mut values, &Layout::contiguous(x.shape()), true).map_err(back::out)?;
        Tensor::from_vec(values, x.shape(), x.device()).map(Some)
    }
}
