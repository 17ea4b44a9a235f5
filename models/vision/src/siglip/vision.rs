//! SigLIP's vision tower: a vision transformer without a class token, with an attention pooling head.

use candle_core::{IndexOp, Tensor};
use fauna_shared::attention::{Mask, attend};
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, LayerNorm, Linear, Patches, add, add_repeated};
use fauna_shared::weights::{MatrixUse, Piece, Weights};
use fauna_shared::{Error, Result};
use serde::Deserialize;

use crate::clip::{Encoder, EncoderConfig, check_image_size, interpolate_pos_encoding, side};

/// `vision_config`; missing keys have the values of the base size.
///
/// ```
/// use fauna_vision::siglip::VisionConfig;
/// let config: VisionConfig = serde_json::from_str(r#"{"image_size": 384, "patch_size": 14}"#)?;
/// assert_eq!((config.hidden_size, config.patches()), (768, 27 * 27));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Hidden size.
    pub hidden_size: usize,
    /// Intermediate (feed-forward) size.
    pub intermediate_size: usize,
    /// EncoderConfig.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Number of image channels.
    pub num_channels: usize,
    /// Image height and width in pixels.
    #[serde(deserialize_with = "side")]
    pub image_size: usize,
    /// Patch height and width in pixels.
    #[serde(deserialize_with = "side")]
    pub patch_size: usize,
    /// Activation function of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Whether there is a pooling head.
    pub vision_use_head: bool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
            vision_use_head: true,
        }
    }
}

impl VisionConfig {
    /// Number of patches per image.
    pub fn patches(&self) -> usize {
        let side = self.image_size.checked_div(self.patch_size).unwrap_or(0);
        side.saturating_mul(side)
    }

    fn encoder_config(&self) -> EncoderConfig {
        EncoderConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("num_channels", self.num_channels),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("image_size in patches", self.patches()),
        ])?;
        self.encoder_config().check()
    }
}

/// The vision tower.
pub struct VisionTower {
    config: VisionConfig,
    patch_embedding: Patches,
    position_embedding: Tensor,
    encoder: Encoder,
    post_layernorm: LayerNorm,
    head: Option<Head>,
}

/// The outputs of the vision tower.
#[derive(Debug, Clone)]
pub struct VisionStates {
    /// Hidden states after the final layer norm, `(batch, patches, hidden_size)`.
    pub last_hidden_state: Tensor,
    /// Output of the pooling head, if there is one, `(batch, hidden_size)`.
    pub pooled: Option<Tensor>,
}

impl VisionTower {
    /// Loads the tower from `w`, or from `w.vision_model`, as some releases of a single tower name it.
    pub fn load(config: &VisionConfig, w: &Weights) -> Result<Self> {
        config.check()?;
        let below = w.has("vision_model", false).then(|| w.at("vision_model"));
        let w = below.as_ref().unwrap_or(w);
        let (c, embeddings) = (config, w.at("embeddings"));
        let (width, eps) = (c.hidden_size, c.layer_norm_eps);
        let patches = (c.num_channels, c.patch_size);
        Ok(Self {
            patch_embedding: embeddings.patches("patch_embedding", patches, width, true)?,
            position_embedding: embeddings.tensor("position_embedding.weight", &[c.patches(), width])?,
            encoder: Encoder::load(&c.encoder_config(), &w.at("encoder"))?,
            post_layernorm: w.layer_norm("post_layernorm", width, eps)?,
            head: c.vision_use_head.then(|| Head::load(c, &w.at("head"))).transpose()?,
            config: config.clone(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Moves `pixels` to the tower's device and dtype.
    pub(crate) fn taken(&self, pixels: &Tensor) -> Result<Tensor> {
        let like = &self.position_embedding;
        Ok(pixels.to_device(like.device())?.to_dtype(like.dtype())?)
    }

    /// Runs the tower on `pixel_values`, `(batch, channels, height, width)`, of the configured image size.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for images of another size.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<VisionStates> {
        check_image_size(pixel_values, self.config.image_size)?;
        self.forward_any_size(pixel_values)
    }

    /// As [`forward`](VisionTower::forward), with the position embeddings interpolated to the size of the images.
    pub fn forward_any_size(&self, pixel_values: &Tensor) -> Result<VisionStates> {
        let x = self.hidden_states(pixel_values, self.encoder.depth())?;
        let last_hidden_state = self.post_layernorm.forward(&x)?;
        let pooled = self.head.as_ref().map(|head| head.forward(&last_hidden_state)).transpose()?;
        Ok(VisionStates { last_hidden_state, pooled })
    }

    /// Returns the hidden states after the first `depth` layers, without the final layer norm, `(batch, patches,
    /// hidden_size)`: `hidden_states[depth]` of the reference.
    ///
    /// # Errors
    /// As [`forward`](VisionTower::forward).
    pub fn states(&self, pixel_values: &Tensor, depth: usize) -> Result<Tensor> {
        check_image_size(pixel_values, self.config.image_size)?;
        self.hidden_states(pixel_values, depth)
    }

    fn hidden_states(&self, pixel_values: &Tensor, depth: usize) -> Result<Tensor> {
        let (_, _, height, width) = pixel_values.dims4()?;
        let patches = self.patch_embedding.forward(pixel_values)?;
        let side = self.config.image_size / self.config.patch_size;
        let grid = self.patch_embedding.grid(height, width);
        let positions = interpolate_pos_encoding(&self.position_embedding, side, grid)?;
        self.encoder.forward(add_repeated(&patches, &positions)?, &Mask::full(), depth)
    }
}

/// The pooling head: cross-attention of one learned query (`probe`) over all tokens, then a feed-forward layer.
struct Head {
    probe: Tensor,
    q: Linear,
    kv: Linear,
    out_proj: Linear,
    layernorm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    hidden_act: Activation,
}

impl Head {
    fn load(c: &VisionConfig, w: &Weights) -> Result<Self> {
        let (width, attention) = (c.hidden_size, w.at("attention"));
        // Queries, keys and values are stored in one matrix, in this order.
        let rows = |rows: std::ops::Range<usize>| -> Result<Linear> {
            let piece = |name: &str| [Piece { name: name.into(), of: 3 * width, rows: rows.clone() }];
            let weight = attention.stack(MatrixUse::Linear, &piece("in_proj_weight"), width)?;
            Ok(Linear::new(weight, Some(attention.stack_bias(&piece("in_proj_bias"))?)))
        };
        Ok(Self {
            probe: w.tensor("probe", &[1, 1, width])?,
            q: rows(0..width)?,
            kv: rows(width..3 * width)?,
            out_proj: attention.linear("out_proj", width, width)?,
            layernorm: w.layer_norm("layernorm", width, c.layer_norm_eps)?,
            fc1: w.linear("mlp.fc1", width, c.intermediate_size)?,
            fc2: w.linear("mlp.fc2", c.intermediate_size, width)?,
            heads: c.num_attention_heads,
            hidden_act: c.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head_width = width / self.heads;
        let q = self.q.forward(&self.probe)?.reshape((1, 1, self.heads, head_width))?;
        let q = q.repeat((batch, 1, 1, 1))?;
        let kv = self.kv.forward(x)?.reshape((batch, time, 2, self.heads, head_width))?;
        let (k, v) = (kv.i((.., .., 0))?, kv.i((.., .., 1))?);
        let attended = attend(&q, &k, &v, &Mask::full(), 1.0 / (head_width as f64).sqrt())?;
        let x = self.out_proj.forward(&attended)?;
        let inner = self.fc1.forward_then(&self.layernorm.forward(&x)?, self.hidden_act)?;
        Ok(add(&x, &self.fc2.forward(&inner)?)?.squeeze(1)?)
    }
}

/// The error for an embedding of a tower without a pooling head.
pub(crate) fn no_head() -> Error {
    Error::unsupported("this vision tower has no pooling head, so no image embedding")
        .hint("vision_use_head is false")
}
