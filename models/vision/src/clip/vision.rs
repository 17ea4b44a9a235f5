//! CLIP's eye: a vision transformer with a class token (Dosovitskiy et al. 2020, section 3.1).

use candle_core::{IndexOp, Tensor};
use fauna_shared::attention::Mask;
use fauna_shared::model::check_sizes;
use fauna_shared::nn::{Activation, LayerNorm, Patches};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};
use serde::{Deserialize, Deserializer};

use super::encoder::{Blocks, Encoder};
use super::positions::interpolated;

/// `vision_config`; what it leaves out is ViT-B/32's.
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
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads in each block.
    pub num_attention_heads: usize,
    /// Channels of a picture.
    pub num_channels: usize,
    /// Pixels along a side of a picture.
    #[serde(deserialize_with = "side")]
    pub image_size: usize,
    /// Pixels along a side of a patch.
    #[serde(deserialize_with = "side")]
    pub patch_size: usize,
    /// The activation of the feed-forward part.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
    /// Width of the shared space, where the tower has a projection of its own.
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
    /// Patches of a picture.
    pub fn patches(&self) -> usize {
        let side = self.image_size.checked_div(self.patch_size).unwrap_or(0);
        side.saturating_mul(side)
    }

    fn blocks(&self) -> Blocks {
        Blocks {
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
        self.blocks().check()
    }
}

/// A side in pixels, or the two equal sides of a square.
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
        Side::Two(sides) => {
            Err(serde::de::Error::custom(format!("{sides:?} is no square, and only squares are implemented")))
        }
    }
}

/// The tower.
pub struct VisionTower {
    config: VisionConfig,
    class_embedding: Tensor,
    patch_embedding: Patches,
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    encoder: Encoder,
    post_layernorm: LayerNorm,
}

/// What the tower makes of a batch of pictures.
#[derive(Debug, Clone)]
pub struct VisionStates {
    /// Of the last block, before the last norm: `(batch, 1 + patches, width)`, the class token first.
    pub last_hidden_state: Tensor,
    /// The class token after the last norm: `(batch, width)`.
    pub pooled: Tensor,
}

impl VisionStates {
    /// The last states of the patches alone, before the last norm: `(batch, patches, width)`.
    pub fn patches(&self) -> Result<Tensor> {
        without_class(&self.last_hidden_state)
    }
}

/// `states` of [`VisionTower`] without the class token: `(batch, patches, width)`.
pub fn without_class(states: &Tensor) -> Result<Tensor> {
    Ok(states.narrow(1, 1, states.dim(1)? - 1)?)
}

impl VisionTower {
    /// The tower whose tensors are at `w`, or below `vision_model` there, as some releases of a tower alone have it.
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
            // The releases spell it so.
            pre_layrnorm: w.layer_norm("pre_layrnorm", width, eps)?,
            encoder: Encoder::load(&c.blocks(), &w.at("encoder"))?,
            post_layernorm: w.layer_norm("post_layernorm", width, eps)?,
            config: config.clone(),
        })
    }

    /// Its hyper-parameters.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// `pixels` on the tower's device, in its type.
    pub(crate) fn taken(&self, pixels: &Tensor) -> Result<Tensor> {
        let like = &self.position_embedding;
        Ok(pixels.to_device(like.device())?.to_dtype(like.dtype())?)
    }

    /// `pixel_values`: `(batch, channels, height, width)` of the size the tower was trained on.
    ///
    /// # Errors
    /// [`Input`](fauna_shared::ErrorKind::Input) for pictures of another size.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<VisionStates> {
        self.own_size(pixel_values)?;
        self.forward_any_size(pixel_values)
    }

    /// As [`forward`](VisionTower::forward), with the positions brought to whatever size the pictures have.
    pub fn forward_any_size(&self, pixel_values: &Tensor) -> Result<VisionStates> {
        let last_hidden_state = self.after(pixel_values, self.encoder.depth())?;
        let pooled = self.post_layernorm.forward(&last_hidden_state.i((.., 0))?.contiguous()?)?;
        Ok(VisionStates { last_hidden_state, pooled })
    }

    /// [`VisionStates::pooled`] alone, `(batch, width)`, with what only the other states need left out.
    ///
    /// # Errors
    /// As [`forward`](VisionTower::forward).
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.own_size(pixel_values)?;
        let class = self.encoder.first(self.embeddings(pixel_values)?)?;
        self.post_layernorm.forward(&class.squeeze(1)?.contiguous()?)
    }

    /// The states after the first `depth` blocks, `(batch, 1 + patches, width)`: `hidden_states[depth]` of the
    /// reference.
    ///
    /// # Errors
    /// As [`forward`](VisionTower::forward).
    pub fn states(&self, pixel_values: &Tensor, depth: usize) -> Result<Tensor> {
        self.own_size(pixel_values)?;
        self.after(pixel_values, depth)
    }

    fn own_size(&self, pixel_values: &Tensor) -> Result<()> {
        own_size(pixel_values, self.config.image_size)
    }

    fn after(&self, pixel_values: &Tensor, depth: usize) -> Result<Tensor> {
        self.encoder.forward(self.embeddings(pixel_values)?, &Mask::full(), depth)
    }

    /// What the first block reads.
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
                Tensor::cat(&[&class, &interpolated(&patches.contiguous()?, side, grid)?], 0)?
            }
        };
        let x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&positions)?;
        self.pre_layrnorm.forward(&x)
    }
}

/// Refuses pictures that are not `side` by `side` pixels.
pub(crate) fn own_size(pixel_values: &Tensor, side: usize) -> Result<()> {
    match pixel_values.dims() {
        [_, _, height, width] if (*height, *width) == (side, side) => Ok(()),
        [_, _, height, width] => Err(Error::input(format!(
            "pictures of {height} by {width} pixels, this tower sees {side} by {side}"
        ))
        .hint("interpolate_pos_encoding reads its positions on another grid")),
        dims => {
            Err(Error::input(format!("pixel_values are {dims:?}, wanted (batch, channels, height, width)")))
        }
    }
}
