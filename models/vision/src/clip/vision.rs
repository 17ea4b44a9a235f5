//! CLIP's vision tower: a vision transformer with a class token (Dosovitskiy et al. 2020, section 3.1).

use candle_core::{IndexOp, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, LayerNorm, Patches, add_repeated, concat};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::{Deserialize, Deserializer};

use super::encoder::{Encoder, EncoderConfig};
use super::positions::interpolate_pos_encoding;

/// `vision_config`; missing keys have the values of ViT-B/32.
///
/// ```
/// use fauna_vision::clip::VisionConfig;
/// let config: VisionConfig = serde_json::from_str(r#"{"patch_size": 16}"#)?;
/// assert_eq!((config.hidden_size, config.patches()), (768, 196));
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
    /// Dimension of the shared embedding space, for a tower with its own projection.
    pub projection_dim: usize,
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
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 512,
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
            ("projection_dim", self.projection_dim),
            ("image_size in patches", self.patches()),
        ])?;
        self.encoder_config().check()
    }
}

/// Deserializes a size in pixels: one number, or height and width, which must be equal.
pub(crate) fn side<'de, D: Deserializer<'de>>(config: D) -> std::result::Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Side {
        One(usize),
        Two([usize; 2]),
    }
    match Side::deserialize(config)? {
        Side::One(side) => Ok(side),
        Side::Two([height, width]) if height == width => Ok(height),
        Side::Two(sides) => Err(serde::de::Error::custom(format!(
            "{sides:?} is not square: only square sizes are implemented"
        ))),
    }
}

/// The vision tower.
pub struct VisionTower {
    config: VisionConfig,
    class_embedding: Tensor,
    patch_embedding: Patches,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
}

/// The outputs of the vision tower.
#[derive(Debug, Clone)]
pub struct VisionStates {
    /// Hidden states of the last layer, before the final layer norm, `(batch, 1 + patches, hidden_size)`: the class
    /// token first.
    pub last_hidden_state: Tensor,
    /// Class token after the final layer norm, `(batch, hidden_size)`.
    pub pooled: Tensor,
}

impl VisionStates {
    /// Last hidden states of the patches, before the final layer norm, `(batch, patches, hidden_size)`.
    pub fn patches(&self) -> Result<Tensor> {
        without_class(&self.last_hidden_state)
    }
}

/// Removes the class token from hidden states of [`VisionTower`]: `(batch, patches, hidden_size)`.
pub fn without_class(states: &Tensor) -> Result<Tensor> {
    Ok(states.narrow(1, 1, states.dim(1)? - 1)?)
}

impl VisionTower {
    /// Loads the tower from `w`, or from `w.vision_model`, as some releases of a single tower name it.
    pub fn load(config: &VisionConfig, w: &Weights) -> Result<Self> {
        config.check()?;
        let below = w.has("vision_model", false).then(|| w.at("vision_model"));
        let w = below.as_ref().unwrap_or(w);
        let c = config;
        let (width, eps) = (c.hidden_size, c.layer_norm_eps);
        let embeddings = w.at("embeddings");
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[width])?,
            patch_embedding: embeddings.patches(
                "patch_embedding",
                (c.num_channels, c.patch_size),
                width,
                false,
            )?,
            position_embedding: embeddings.tensor("position_embedding.weight", &[c.patches() + 1, width])?,
            // Spelled so in the releases.
            pre_layrnorm: w.layer_norm("pre_layrnorm", width, eps)?,
            encoder: Encoder::load(&c.encoder_config(), &w.at("encoder"))?,
            post_layernorm: w.layer_norm("post_layernorm", width, eps)?,
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
        self.check_image_size(pixel_values)?;
        self.forward_any_size(pixel_values)
    }

    /// As [`forward`](VisionTower::forward), with the position embeddings interpolated to the size of the images.
    pub fn forward_any_size(&self, pixel_values: &Tensor) -> Result<VisionStates> {
        let last_hidden_state = self.hidden_states(pixel_values, self.encoder.depth())?;
        let pooled = self.post_layernorm.forward(&last_hidden_state.i((.., 0))?.contiguous()?)?;
        Ok(VisionStates { last_hidden_state, pooled })
    }

    /// Returns only [`VisionStates::pooled`], `(batch, hidden_size)`; the last layer computes the class token alone.
    ///
    /// # Errors
    /// As [`forward`](VisionTower::forward).
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.check_image_size(pixel_values)?;
        let class = self.encoder.first(self.embeddings(pixel_values)?)?;
        self.post_layernorm.forward(&class.squeeze(1)?.contiguous()?)
    }

    /// Returns the hidden states after the first `depth` layers, `(batch, 1 + patches, hidden_size)`:
    /// `hidden_states[depth]` of the reference.
    ///
    /// # Errors
    /// As [`forward`](VisionTower::forward).
    pub fn states(&self, pixel_values: &Tensor, depth: usize) -> Result<Tensor> {
        self.check_image_size(pixel_values)?;
        self.hidden_states(pixel_values, depth)
    }

    fn check_image_size(&self, pixel_values: &Tensor) -> Result<()> {
        check_image_size(pixel_values, self.config.image_size)
    }

    fn hidden_states(&self, pixel_values: &Tensor, depth: usize) -> Result<Tensor> {
        self.encoder.forward(self.embeddings(pixel_values)?, &Mask::full(), depth)
    }

    /// The input of the first layer, `(batch, 1 + patches, hidden_size)`.
    fn embeddings(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (batch, _, height, width) = pixel_values.dims4()?;
        let patches = self.patch_embedding.forward(pixel_values)?;
        let class = &self.class_embedding;
        let class = class.reshape((1, 1, ()))?.repeat((batch, 1, 1))?;
        let side = self.config.image_size / self.config.patch_size;
        let grid = self.patch_embedding.grid(height, width);
        let positions = match grid == (side, side) {
            true => self.position_embedding.clone(),
            false => {
                let (class, patches) = (
                    self.position_embedding.narrow(0, 0, 1)?,
                    self.position_embedding.narrow(0, 1, side * side)?,
                );
                Tensor::cat(&[&class, &interpolate_pos_encoding(&patches.contiguous()?, side, grid)?], 0)?
            }
        };
        let x = add_repeated(&concat(&[&class, &patches], 1)?, &positions)?;
        self.pre_layrnorm.forward(&x)
    }
}

/// Checks that the images are `side` by `side` pixels.
pub(crate) fn check_image_size(pixel_values: &Tensor, side: usize) -> Result<()> {
    match pixel_values.dims() {
        [_, _, height, width] if (*height, *width) == (side, side) => Ok(()),
        [_, _, height, width] => {
            Err(Error::input(format!("images of {height} by {width} pixels, expected {side} by {side}"))
                .hint("interpolate_pos_encoding allows other sizes"))
        }
        dims => Err(Error::input(format!(
            "pixel_values have the shape {dims:?}, expected (batch, channels, height, width)"
        ))),
    }
}
