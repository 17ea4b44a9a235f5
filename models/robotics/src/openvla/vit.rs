//! The vision transformers of timm that OpenVLA uses, up to the second-to-last block.
//!
//! Dosovitskiy et al. 2020, arXiv 2010.11929; Oquab et al. 2023, "DINOv2", arXiv 2304.07193, with the registers of
//! Darcet et al. 2023, arXiv 2309.16588; Zhai et al. 2023, "SigLIP", arXiv 2303.15343. They share the block and differ in
//! the prefix tokens and LayerScale. Activations are `(batch, sequence, hidden_size)`.

use candle_core::Tensor;
use fauna_shared::attention::{Mask, attend};
use fauna_shared::model::{check_heads, check_sizes};
use fauna_shared::nn::{Activation, LayerNorm, Linear, Patches, add, add_repeated, concat};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result};

/// Config of a timm vision transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct VitConfig {
    /// Hidden size.
    pub embed_dim: usize,
    /// Number of layers, the last of which is not used.
    pub depth: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Ratio of the intermediate (feed-forward) size to `embed_dim`; the product is rounded down.
    pub mlp_ratio: f64,
    /// Patch size in pixels.
    pub patch_size: usize,
    /// Image size in pixels.
    pub img_size: usize,
    /// Whether there is a class token before the patches.
    pub class_token: bool,
    /// Number of register tokens between the class token and the patches.
    pub reg_tokens: usize,
    /// Whether the position embeddings exclude the prefix tokens.
    pub no_embed_class: bool,
    /// Whether LayerScale is used.
    pub layer_scale: bool,
    /// Whether there is a layer norm before the first block, as in CLIP; the patch embedding then has no bias.
    pub pre_norm: bool,
    /// Epsilon of the layer norms.
    pub eps: f64,
    /// Activation function of the feed-forward network.
    pub act_layer: Activation,
}

/// Supported vision towers of OpenVLA's training code, by the timm name before the dot.
const NAMES: [&str; 12] = [
    "vit_base_patch14_reg4_dinov2",
    "vit_large_patch14_reg4_dinov2",
    "vit_so400m_patch14_siglip_224",
    "vit_so400m_patch14_siglip_384",
    "vit_base_patch16_siglip_224",
    "vit_base_patch16_siglip_256",
    "vit_base_patch16_siglip_384",
    "vit_large_patch16_siglip_256",
    "vit_large_patch16_siglip_384",
    "vit_large_patch14_clip_224",
    "vit_large_patch14_clip_336",
    "vit_large_patch16_224",
];

impl VitConfig {
    /// Returns the config of the timm model `name` for images of `img_size` pixels, with exact GELU.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for an unknown name.
    ///
    /// ```
    /// use fauna_robotics::openvla::VitConfig;
    /// let dino = VitConfig::of_timm("vit_large_patch14_reg4_dinov2.lvd142m", 224)?;
    /// assert_eq!((dino.patches(), dino.before_patches(), dino.mlp_dim()), (256, 5, 4096));
    /// # Ok::<(), fauna_shared::Error>(())
    /// ```
    pub fn of_timm(name: &str, img_size: usize) -> Result<Self> {
        let plain = name.split('.').next().unwrap_or(name);
        if !NAMES.contains(&plain) {
            return Err(Error::unsupported(format!("a vision tower with the timm name \"{name:.80}\""))
                .hint(format!("known: {}", NAMES.join(", "))));
        }
        let holds = |part: &str| plain.contains(part);
        let (embed_dim, depth, num_heads, mlp_ratio) = match () {
            () if holds("so400m") => (1152, 27, 16, 3.7362),
            () if holds("large") => (1024, 24, 16, 4.0),
            () => (768, 12, 12, 4.0),
        };
        let (dino, siglip, clip) = (holds("dinov2"), holds("siglip"), holds("clip"));
        Ok(Self {
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            patch_size: if holds("patch16") { 16 } else { 14 },
            img_size,
            class_token: !siglip,
            reg_tokens: if dino { 4 } else { 0 },
            no_embed_class: dino,
            layer_scale: dino,
            pre_norm: clip && !siglip,
            eps: if clip && !siglip { 1e-5 } else { 1e-6 },
            act_layer: Activation::GeluErf,
        })
    }

    /// Returns the number of patches.
    pub fn patches(&self) -> usize {
        let side = self.img_size.checked_div(self.patch_size).unwrap_or(0);
        side.saturating_mul(side)
    }

    /// Returns the number of prefix tokens before the patches.
    pub fn before_patches(&self) -> usize {
        usize::from(self.class_token).saturating_add(self.reg_tokens)
    }

    /// Returns the intermediate (feed-forward) size.
    pub fn mlp_dim(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("depth", self.depth),
            ("patch_size", self.patch_size),
            ("image_sizes", self.img_size),
            ("image_sizes in patches", self.patches()),
            ("embed_dim times mlp_ratio", self.mlp_dim()),
        ])?;
        check_heads(("embed_dim", self.embed_dim), ("num_heads", self.num_heads))?;
        match self.depth {
            0 | 1 => Err(Error::unsupported(format!("depth is {}", self.depth))
                .hint("the output of the second-to-last block is used: expected at least two blocks")),
            _ => Ok(()),
        }
    }
}

/// A vision transformer without its last block.
pub struct Vit {
    patch_embed: Patches,
    cls_token: Option<Tensor>,
    reg_token: Option<Tensor>,
    pos_embed: Tensor,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    config: VitConfig,
}

struct Block {
    norm1: LayerNorm,
    attn: Attention,
    ls1: Option<Tensor>,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    ls2: Option<Tensor>,
    act_layer: Activation,
}

struct Attention {
    qkv: Linear,
    proj: Linear,
    num_heads: usize,
}

impl Vit {
    /// Loads the vision transformer at `w`. Its last block, final norm and pooling head are ignored, since they are not used.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for invalid sizes.
    pub fn load(config: &VitConfig, w: &Weights) -> Result<Self> {
        config.check()?;
        let c = config;
        let width = c.embed_dim;
        let rows = match c.no_embed_class {
            true => c.patches(),
            false => c.patches() + c.before_patches(),
        };
        for unused in [format!("blocks.{}", c.depth - 1), "norm".into(), "fc_norm".into(), "attn_pool".into()]
        {
            w.skip(&unused);
        }
        let token = |there: bool, name: &str, count: usize| {
            there.then(|| w.tensor(name, &[1, count, width])).transpose()
        };
        Ok(Self {
            patch_embed: w.at("patch_embed").patches("proj", (3, c.patch_size), width, !c.pre_norm)?,
            cls_token: token(c.class_token, "cls_token", 1)?,
            reg_token: token(c.reg_tokens > 0, "reg_token", c.reg_tokens)?,
            pos_embed: w.tensor("pos_embed", &[1, rows, width])?,
            norm_pre: c.pre_norm.then(|| w.layer_norm("norm_pre", width, c.eps)).transpose()?,
            blocks: (0..c.depth - 1)
                .map(|i| Block::load(c, &w.at_index("blocks", i)))
                .collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// Returns the config.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Returns the patch features after the second-to-last block, without a norm, `(batch, patches, embed_dim)`, of `pictures`,
    /// `(batch, 3, img_size, img_size)`.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let like = &self.pos_embed;
        let pictures = pictures.to_device(like.device())?.to_dtype(like.dtype())?;
        let mut x = self.embed(&self.patch_embed.forward(&pictures)?)?;
        if let Some(norm) = &self.norm_pre {
            x = norm.forward(&x)?;
        }
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let before = self.config.before_patches();
        match before {
            0 => Ok(x),
            _ => Ok(x.narrow(1, before, x.dim(1)? - before)?.contiguous()?),
        }
    }

    /// Adds the position embeddings and the prefix tokens: class token, registers, patches.
    fn embed(&self, patches: &Tensor) -> Result<Tensor> {
        let batch = patches.dim(0)?;
        let row =
            |token: &Option<Tensor>| token.as_ref().map(|token| token.repeat((batch, 1, 1))).transpose();
        let (class, registers) = (row(&self.cls_token)?, row(&self.reg_token)?);
        let joined = |patches: Tensor| -> Result<Tensor> {
            let parts: Vec<&Tensor> = class.iter().chain(&registers).chain([&patches]).collect();
            Ok(if parts.len() == 1 { patches } else { concat(&parts, 1)? })
        };
        match self.config.no_embed_class {
            true => joined(add_repeated(patches, &self.pos_embed)?),
            false => add_repeated(&joined(patches.clone())?, &self.pos_embed),
        }
    }
}

impl Block {
    fn load(c: &VitConfig, w: &Weights) -> Result<Self> {
        let (width, inner) = (c.embed_dim, c.mlp_dim());
        let scale =
            |name: &str| c.layer_scale.then(|| w.at(name).tensor("scale_factor", &[width])).transpose();
        Ok(Self {
            norm1: w.layer_norm("norm1", width, c.eps)?,
            attn: Attention {
                qkv: w.linear("attn.qkv", width, 3 * width)?,
                proj: w.linear("attn.proj", width, width)?,
                num_heads: c.num_heads,
            },
            ls1: scale("ls1")?,
            norm2: w.layer_norm("norm2", width, c.eps)?,
            fc1: w.linear("mlp.fc1", width, inner)?,
            fc2: w.linear("mlp.fc2", inner, width)?,
            ls2: scale("ls2")?,
            act_layer: c.act_layer,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = add(x, &scaled(self.attn.forward(&self.norm1.forward(x)?)?, &self.ls1)?)?;
        let inner = self.fc1.forward_then(&self.norm2.forward(&x)?, self.act_layer)?;
        add(&x, &scaled(self.fc2.forward(&inner)?, &self.ls2)?)
    }
}

/// Applies LayerScale to `branch`, `(batch, sequence, hidden_size)`, if there is one.
fn scaled(branch: Tensor, factor: &Option<Tensor>) -> Result<Tensor> {
    match factor {
        Some(factor) => Ok(branch.broadcast_mul(factor)?),
        None => Ok(branch),
    }
}

impl Attention {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let head_dim = width / self.num_heads;
        let qkv = self.qkv.forward(x)?.reshape((batch, time, 3, self.num_heads, head_dim))?;
        let part = |i| qkv.narrow(2, i, 1)?.squeeze(2);
        let scale = 1.0 / (head_dim as f64).sqrt();
        self.proj.forward(&attend(&part(0)?, &part(1)?, &part(2)?, &Mask::full(), scale)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_towers_of_openvla_7b_have_their_sizes() {
        let dino = VitConfig::of_timm("vit_large_patch14_reg4_dinov2.lvd142m", 224).unwrap();
        let siglip = VitConfig::of_timm("vit_so400m_patch14_siglip_224", 224).unwrap();
        assert_eq!((dino.patches(), siglip.patches()), (256, 256));
        assert_eq!((dino.mlp_dim(), siglip.mlp_dim()), (4096, 4304));
        assert_eq!((dino.before_patches(), siglip.before_patches()), (5, 0));
        let larger = VitConfig::of_timm("vit_so400m_patch14_siglip_384", 384).unwrap();
        assert_eq!(larger.patches(), 27 * 27, "partial patches are dropped");
    }

    #[test]
    fn an_unknown_name_is_an_error_with_the_known_ones() {
        let error = VitConfig::of_timm("resnet50.a1_in1k", 224).unwrap_err().to_string();
        assert!(
            error.contains("resnet50.a1_in1k") && error.contains("vit_so400m_patch14_siglip_224"),
            "{error}"
        );
    }

    #[test]
    fn invalid_sizes_are_errors() {
        let good = VitConfig::of_timm("vit_base_patch16_siglip_224", 32).unwrap();
        let bad = [
            VitConfig { depth: 1, ..good.clone() },
            VitConfig { depth: usize::MAX, ..good.clone() },
            VitConfig { num_heads: 7, ..good.clone() },
            VitConfig { num_heads: 0, ..good.clone() },
            VitConfig { img_size: 9, ..good.clone() },
            VitConfig { img_size: usize::MAX, ..good.clone() },
            VitConfig { mlp_ratio: f64::NAN, ..good.clone() },
            VitConfig { mlp_ratio: 1e300, ..good.clone() },
        ];
        for config in bad {
            assert!(Vit::load(&config, &Weights::meta()).is_err(), "{config:?}");
        }
        assert!(Vit::load(&good, &Weights::meta()).is_ok());
    }
}
