//! Rotary position embedding and its published scalings.

use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Tensor};
use candle_nn::rotary_emb::{rope_i, rope_thd};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::kernels::rope::{Order, Pairs, Rotary};
use crate::nn::{fused, host};
use crate::{Error, ErrorKind, Result, json, transfer};

/// The positions of the tokens of a batch: one row that all sequences share, or one row each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    rows: usize,
    values: Vec<u32>,
}

impl Positions {
    /// `start`, `start + 1`, … for every sequence.
    pub fn counting(start: usize, time: usize) -> Self {
        Self { rows: 1, values: (start..start + time).map(|p| p as u32).collect() }
    }

    /// One row a sequence, all of one length.
    ///
    /// # Errors
    /// [`Input`](crate::ErrorKind::Input) if the rows have different lengths.
    pub fn rows(rows: &[Vec<u32>]) -> Result<Self> {
        if rows.windows(2).any(|pair| pair[0].len() != pair[1].len()) {
            return Err(Error::input("the rows of positions have different lengths"));
        }
        Ok(Self { rows: rows.len().max(1), values: rows.concat() })
    }

    /// `(rows, time)` of positions, to look up learned position embeddings.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        transfer::to_device(self.values.clone(), (self.rows, self.values.len() / self.rows), device)
    }

    /// The largest position, if there is any.
    pub fn largest(&self) -> Option<usize> {
        self.values.iter().max().map(|p| *p as usize)
    }
}

/// How frequencies are stretched to read further than was trained.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// All divided by `factor` (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A larger base once the text is longer than trained (NTK-aware, dynamic).
    Dynamic {
        /// How far the context is to reach, as a multiple of the trained one.
        factor: f64,
        /// Positions trained.
        trained: usize,
    },
    /// Low frequencies divided, high kept, a ramp between (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `trained / low` are divided.
        low: f64,
        /// Wavelengths below `trained / high` are kept.
        high: f64,
        /// Positions trained.
        trained: usize,
    },
    /// Divided by the ramp of YaRN (Peng et al. 2023, section 3.2), cos and sin scaled by `attention`.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Rotations over the trained context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Positions trained.
        trained: usize,
        /// What cos and sin are multiplied by.
        attention: f64,
        /// Whether the ends of the ramp are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// A divisor for each frequency, another set past the trained length (Ding et al. 2024).
    Long {
        /// Divisors up to `trained` positions, one a frequency.
        short: Vec<f64>,
        /// Divisors past it.
        long: Vec<f64>,
        /// Positions trained.
        trained: usize,
        /// What cos and sin are multiplied by.
        attention: f64,
    },
    /// A divisor for each frequency at any length, as `rope_freqs` of GGUF files holds them.
    Divisors(Vec<f64>),
}

/// The rotary keys of a `config.json`, in either dialect: `rope_parameters`, or `rope_theta` with `rope_scaling`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeKeys {
    #[serde(default, deserialize_with = "rope_parameters")]
    rope_parameters: Option<RopeParameters>,
    #[serde(default, deserialize_with = "rope_scaling")]
    rope_scaling: Option<RopeParameters>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    /// Pairs are neighbours: how GGUF's converters leave `q` and `k`. Configs of other programs have a key
    /// `rope_interleaved`, which the reference ignores; this one has a name of its own.
    #[serde(default)]
    gguf_rope_interleaved: bool,
    /// The divisors of a GGUF file's `rope_freqs.weight`. No official config has this key.
    rope_divisors: Option<Vec<f64>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// The older name, which counts where the other is absent.
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

/// Where these keys are a part of others the path to a wrong one is lost, so that they name themselves.
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
    /// With a base and a share of each head that is turned, where no key of these names one: some families have keys of
    /// their own for them.
    pub fn or(self, theta: Option<f64>, share: Option<f64>) -> Self {
        let share = self.partial_rotary_factor.or(share);
        Self { rope_theta: self.rope_theta.or(theta), partial_rotary_factor: share, ..self }
    }

    /// The rotary embedding these keys describe for heads of `head_width` in a model of `positions` positions. A
    /// missing base is 10000.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for a kind of scaling that is not implemented;
    /// [`Format`](crate::ErrorKind::Format) for a kind without its numbers.
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
                Error::new(ErrorKind::Format, format!("rope_type \"{kind}\" without its key {key}"))
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
                        "rope_type \"longrope\" without its keys short_factor and long_factor",
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
            return Err(Error::unsupported(format!("rotary positions over {share} of each head"))
                .hint("a share from 0 to 1 is wanted: partial_rotary_factor, or rotary_pct"));
        }
        let width = (head_width as f64 * share) as usize;
        if width.next_multiple_of(2) > head_width {
            let message = format!("rotary positions over {width} of {head_width} numbers: pairs wanted");
            return Err(Error::unsupported(message));
        }
        Ok(Rope::new(theta, width, scaling)?.interleaved(self.gguf_rope_interleaved))
    }
}

/// Rotary position embedding (Su et al. 2021, section 3.4): pairs of numbers turned by angles that grow with position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    theta: f64,
    /// Numbers of each head that are turned; of an odd width, one more is.
    width: usize,
    scaling: RopeScaling,
    /// Pairs are neighbours, as GGUF's converters order them, and not `i` and `i + width / 2`.
    interleaved: bool,
}

impl Rope {
    /// Base `theta` over the first `width` numbers of each head, in half-split pairs. An odd `width`, as a share of a
    /// head may be, counts as odd in the frequencies, and its last pair takes one number more.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) if divisors are not one a pair.
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
            return Err(Error::unsupported(format!("{found} rotary factors for {half} frequencies")));
        }
        Ok(Self { theta, width, scaling, interleaved: false })
    }

    /// The same over neighbouring pairs.
    pub fn interleaved(self, interleaved: bool) -> Self {
        Self { interleaved, ..self }
    }

    /// Frequencies in radians a position for a text whose last position is `largest`, and the scale of cos and sin.
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

    /// The angles of `positions`, made once a pass and used by every layer.
    pub fn angles(&self, positions: &Positions, device: &Device) -> Result<Angles> {
        let (frequencies, attention) = self.frequencies(positions.largest().unwrap_or(0));
        let time = positions.values.len() / positions.rows;
        let count = positions.values.len() * frequencies.len();
        // Cosines, then sines: one copy to the device.
        let mut values = vec![0f32; 2 * count];
        let (cosines, sines) = values.split_at_mut(count);
        let angles = positions.values.iter().flat_map(|position| {
            // The product in float32, as the references compute it.
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

/// Cosines and sines of the angles of a batch, `(rows or 1, time, width / 2)` each, float32.
#[derive(Debug, Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    /// Both in the type of the heads where that is not float32, made by the first layer.
    narrow: Arc<OnceLock<(Tensor, Tensor)>>,
}

impl Angles {
    /// Cosines and sines in the type `dtype`.
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

    /// [`rotate`](Self::rotate) of all numbers of each head, by candle's fused operations.
    fn rotate_fused(&self, x: &Tensor) -> Result<Tensor> {
        let ((batch, time, heads, width), x) = (x.dims4()?, x.contiguous()?);
        let (cos, sin) = self.in_type(x.dtype())?;
        if self.interleaved {
            // There is none for heads that follow time: each position counts as a sequence of its own.
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

    /// Turns the first numbers of each head of `x`, `(batch, time, heads, head width)`; the rest stay.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, heads, width) = x.dims4()?;
        let (rows, angle_time, half) = self.cos.dims3()?;
        if angle_time != time || (rows != 1 && rows != batch) || 2 * half > width {
            return Err(Error::new(
                ErrorKind::Compute,
                format!("angles of {:?} do not fit heads of {:?}", self.cos.dims(), x.dims()),
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

    /// `turned`, the first numbers of each head, and after them those of `x` that stay.
    fn with_the_rest(&self, turned: Tensor, x: &Tensor) -> Result<Tensor> {
        let (first, width) = (turned.dim(D::Minus1)?, x.dim(D::Minus1)?);
        match first == width {
            true => Ok(turned),
            false => Ok(Tensor::cat(&[&turned, &x.narrow(D::Minus1, first, width - first)?], D::Minus1)?),
        }
    }
}
