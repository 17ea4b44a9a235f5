//! Jukebox: a hierarchical VQ-VAE for music, and the top-level prior, whose hidden states are LLark's audio features.
//!
//! Dhariwal et al. 2020, "Jukebox: A Generative Model for Music", arXiv 2005.00341; features of the prior's middle
//! layer after Castellon et al. 2021, "Codified audio language modeling", arXiv 2107.05677. Checked against
//! transformers 4.46.3 `JukeboxVQVAE` and `JukeboxPrior`, parity cases `tests/parity/llark`.
//!
//! Two kinds of release are supported:
//! - a folder of OpenAI's own files: `vqvae.pth.tar` and, for features, the 5b model's `prior_level_2.pth.tar` (the one
//!   without lyrics). The first 36 of its 72 layers are loaded; the setting `prior_depth` changes that, and `hps` sets
//!   the hyperparameters of other files.
//! - transformers' format (`openai/jukebox-1b-lyrics`, `openai/jukebox-5b-lyrics`): the VQ-VAE, and a prior without
//!   lyrics, which these two do not have.
//!
//! Methods:
//! - `generate` encodes audio to codes, `music_tokens_0` (one code per 8 samples at 44.1 kHz) to `music_tokens_2` (one
//!   per 128), and decodes codes to audio, from the finest level given;
//! - `embed` returns the mean of the prior's hidden states over the first 23.8 seconds of audio, 4800 dimensions: the
//!   music features of LLark and others.
//!
//! Sampling from the prior is not implemented; MusicGen generates music.
//!
//! ```
//! use candle_core::Tensor;
//! use fauna_audio::jukebox::{Hps, Jukebox};
//! use fauna_shared::{runtime::Runtime, weights::Weights};
//! use serde_json::Map;
//! // A small model with random weights; released checkpoints are opened by `Zoo::open` or `fauna::open`.
//! let hps = Hps::read(&fauna_audio::jukebox::sample(), &Map::new())?;
//! let jukebox = Jukebox::load(hps, &Weights::seeded(7, Runtime::cpu()))?;
//! let audio: Vec<f32> = (0..160).map(|t| (t as f32 * 0.2).sin()).collect();
//!
//! let codec = jukebox.vqvae();
//! let codes = codec.encode(2, &Tensor::new(audio.as_slice(), &candle_core::Device::Cpu)?.reshape((1, 160, 1))?)?;
//! assert_eq!(codes.dims(), [1, 10]);
//! assert_eq!(codec.decode(2, &codes)?.dims(), [1, 160, 1]);
//!
//! let features = jukebox.listen(&audio, jukebox.prior()?.layers())?;
//! assert_eq!(features.activations.dims(), [10, 32]);
//! assert_eq!(jukebox.pool(&features.activations, 1.0)?.dims(), [3, 32]);
//! # Ok::<(), fauna_shared::Error>(())
//! ```

mod features;
mod hps;
mod labels;
mod loss;
mod pipeline;
mod prior;
mod vqvae;

use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Layout, LoadOptions, Pretrained, Release};
use fauna_shared::source::Files;
use fauna_shared::weights::{Inventory, Name, Weights};
use fauna_shared::{Error, Result};
use serde_json::{Value, json};

pub use features::JukeboxFeatures;
pub use hps::{Hps, KEYS, PriorHps, VqVaeHps};
pub use labels::{LabelConditioner, Labels};
pub use pipeline::JukeboxPipeline;
pub(crate) use pipeline::{embed, frames_per_second, hear, mono_at, states};
pub use prior::Prior;
pub use vqvae::VqVae;

/// OpenAI's file of the VQ-VAE.
pub const VQVAE_FILE: &str = "vqvae.pth.tar";

/// OpenAI's file of the top-level prior.
pub const PRIOR_FILE: &str = "prior_level_2.pth.tar";

/// The VQ-VAE, and the top-level prior if the release has one that is implemented.
pub struct Jukebox {
    vqvae: VqVae,
    prior: Option<Prior>,
    hps: Hps,
}

impl Jukebox {
    /// Loads both from the tensors of one release.
    pub fn load(hps: Hps, w: &Weights) -> Result<Self> {
        let vqvae = VqVae::load(&hps.vqvae, &w.at("vqvae"))?;
        // The top-level prior is the first of transformers' three priors.
        let top = w.at("priors.0");
        let prior = match &hps.prior {
            Some(prior) if w.has("priors.0", true) => {
                Some(Prior::load(prior, hps.vqvae.l_bins, hps.layers, &top)?)
            }
            _ => None,
        };
        if prior.is_none() {
            w.skip("priors.0");
        }
        for level in 1..hps.vqvae.levels {
            w.skip(&format!("priors.{level}"));
        }
        Ok(Self { vqvae, prior, hps })
    }

    /// Loads a release of either format.
    pub fn open(pretrained: &Pretrained) -> Result<(Self, Inventory)> {
        let hps = Hps::read(&pretrained.config, &pretrained.options.settings)?;
        let jukebox = Self::load(hps, &pretrained.weights)?;
        Ok((jukebox, pretrained.weights.finish()?))
    }

    /// The VQ-VAE.
    pub fn vqvae(&self) -> &VqVae {
        &self.vqvae
    }

    /// The top-level prior.
    ///
    /// # Errors
    /// [`NotFound`](fauna_shared::ErrorKind::NotFound) if the release has none, or none that is implemented.
    pub fn prior(&self) -> Result<&Prior> {
        self.prior.as_ref().ok_or_else(|| {
            let why = self.hps.no_prior.as_deref().unwrap_or("it has no prior");
            Error::new(fauna_shared::ErrorKind::NotFound, format!("only the VQ-VAE was loaded: {why}")).hint(
                format!("put the 5b model's {PRIOR_FILE}, the one without lyrics, next to {VQVAE_FILE}"),
            )
        })
    }

    /// The hyperparameters of both.
    pub fn hps(&self) -> &Hps {
        &self.hps
    }
}

/// The layout of a folder with OpenAI's own files and no config.
pub fn layout(files: &Files, _options: &LoadOptions) -> Result<Option<Layout>> {
    let Some(vqvae) = files.get(VQVAE_FILE).filter(|_| files.get("config.json").is_none()) else {
        return Ok(None);
    };
    let config = json!({"model_type": "jukebox", "architectures": ["JukeboxModel"]});
    Ok(Some(Layout { config, weights: [Some(vqvae), files.get(PRIOR_FILE)].into_iter().flatten().collect() }))
}

/// Maps the tensor names of all releases to transformers' names, which are those of this family.
pub fn rename(name: &str) -> Name {
    let plain = name.strip_prefix("module.").unwrap_or(name);
    match openai(plain) {
        Some(name) => Name::To(name),
        // The base model's prefix in transformers.
        None => Name::without("jukebox.", name, |_| Name::Keep),
    }
}

/// Maps a name of OpenAI's files to transformers' name.
fn openai(name: &str) -> Option<String> {
    let (first, rest) = name.split_once('.')?;
    match first {
        "encoders" => Some(format!("vqvae.encoders.{}", coder(rest, encoder_part)?)),
        "decoders" => Some(format!("vqvae.decoders.{}", coder(rest, decoder_part)?)),
        "bottleneck" => Some(format!("vqvae.bottleneck.{}codebook", rest.strip_suffix('k')?)),
        "y_emb" => {
            let table = rest
                .strip_prefix("bow_genre_emb.emb.")
                .map(|kind| format!("bow_genre_emb.{kind}"))
                .or_else(|| rest.strip_prefix("artist_emb.emb.").map(|kind| format!("artist_emb.{kind}")));
            Some(format!("priors.0.metadata_embedding.{}", table.unwrap_or_else(|| rest.to_string())))
        }
        "prior" => Some(format!("priors.0.prior.{}", prior_part(rest)?)),
        _ => None,
    }
}

/// `LEVEL.level_blocks.BLOCK.model.…`, or `LEVEL.out.…`.
fn coder(name: &str, part: impl Fn(&[&str]) -> Option<String>) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    match &parts[..] {
        [level, "level_blocks", block, "model", inside @ ..] => {
            Some(format!("{level}.level_blocks.{block}.{}", part(inside)?))
        }
        [level, "out", kind] => Some(format!("{level}.out.{kind}")),
        _ => None,
    }
}

fn encoder_part(name: &[&str]) -> Option<String> {
    match name {
        [i, "0", kind] => Some(format!("downsample_block.{}.{kind}", 2 * number(i)?)),
        [i, "1", "model", resnet @ ..] => {
            Some(format!("downsample_block.{}.{}", 2 * number(i)? + 1, residual(resnet)?))
        }
        [_, kind] => Some(format!("proj_out.{kind}")),
        _ => None,
    }
}

fn decoder_part(name: &[&str]) -> Option<String> {
    match name {
        ["0", kind] => Some(format!("proj_in.{kind}")),
        [i, "0", "model", resnet @ ..] => {
            Some(format!("upsample_block.{}.{}", 2 * number(i)?.checked_sub(1)?, residual(resnet)?))
        }
        [i, "1", kind] => Some(format!("upsample_block.{}.{kind}", 2 * number(i)?.checked_sub(1)? + 1)),
        _ => None,
    }
}

/// `BLOCK.model.1` and `.3` are the convolutions, with activations between them.
fn residual(name: &[&str]) -> Option<String> {
    match name {
        [block, "model", "1", kind] => Some(format!("resnet_block.{block}.conv1d_1.{kind}")),
        [block, "model", "3", kind] => Some(format!("resnet_block.{block}.conv1d_2.{kind}")),
        _ => None,
    }
}

fn prior_part(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    match &parts[..] {
        ["x_emb", kind] => Some(format!("embed_tokens.{kind}")),
        ["x_out", kind] => Some(format!("fc_proj_out.{kind}")),
        ["transformer", "_attn_mods", layer, inside @ ..] => {
            let inside = match inside {
                ["ln_0", kind] => format!("layer_norm_0.{kind}"),
                ["ln_1", kind] => format!("layer_norm_1.{kind}"),
                [part, map, "w"] => format!("{part}.{map}.weight"),
                [part, map, "b"] => format!("{part}.{map}.bias"),
                // Already transformers' name.
                _ => return None,
            };
            Some(format!("transformer._attn_mods.{layer}.{inside}"))
        }
        _ => Some(name.to_string()),
    }
}

fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number| *number < 1 << 16)
}

/// A small config that covers every branch.
pub fn sample() -> Value {
    json!({
        "architectures": ["JukeboxModel"], "model_type": "jukebox", "nb_priors": 1,
        "sampling_rate": 48, "timing_dims": 11, "min_duration": 60, "max_duration": 600, "max_nb_genres": 5,
        "vqvae_config": {
            "embed_dim": 10, "nb_discrete_codes": 24, "res_conv_depth": 2, "res_conv_width": 6, "res_downs_t": [2, 1, 1]
        },
        "prior_config_list": [{
            "attention_pattern": "raw_column_previous_row_attention", "mask": true, "is_encoder_decoder": false,
            "nb_relevant_lyric_tokens": 0, "n_ctx": 48, "hidden_size": 32, "num_layers": 4, "n_heads": 2, "blocks": 6,
            "metadata_dims": [9, 13], "music_vocab_size": 24
        }]
    })
}

/// Jukebox's VQ-VAE and top-level prior.
pub static FAMILY: Family = Family {
    name: "jukebox",
    systems: &["LLark"],
    paper: "Dhariwal et al. 2020, arXiv 2005.00341",
    model_types: &["jukebox"],
    architectures: &["JukeboxModel"],
    gguf: &[],
    keys: &KEYS,
    inputs: &[Modality::Sound, Modality::Codes],
    outputs: &[Modality::Codes, Modality::Sound, Modality::Vector],
    releases: &[
        Release::new(
            "openai/jukebox-1b-lyrics",
            "LLark",
            "1B, of which the VQ-VAE 2M",
            "OpenAI, non-commercial",
        ),
        Release::new(
            "openai/jukebox-5b-lyrics",
            "LLark",
            "5B, of which the VQ-VAE 2M",
            "OpenAI, non-commercial",
        ),
    ],
    config_of_gguf: None,
    layout: Some(layout),
    rename,
    inventory: |pretrained| Ok(Jukebox::open(pretrained)?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(JukeboxPipeline::open(pretrained)?)),
    sample,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_releases_are_mapped_to_one_set() {
        for (official, name) in [
            (
                "encoders.2.level_blocks.1.model.1.0.weight",
                "vqvae.encoders.2.level_blocks.1.downsample_block.2.weight",
            ),
            (
                "module.encoders.0.level_blocks.0.model.2.1.model.3.model.1.bias",
                "vqvae.encoders.0.level_blocks.0.downsample_block.5.resnet_block.3.conv1d_1.bias",
            ),
            ("encoders.0.level_blocks.0.model.3.weight", "vqvae.encoders.0.level_blocks.0.proj_out.weight"),
            ("decoders.1.level_blocks.1.model.0.weight", "vqvae.decoders.1.level_blocks.1.proj_in.weight"),
            (
                "decoders.0.level_blocks.0.model.3.0.model.7.model.3.weight",
                "vqvae.decoders.0.level_blocks.0.upsample_block.4.resnet_block.7.conv1d_2.weight",
            ),
            (
                "decoders.0.level_blocks.0.model.3.1.bias",
                "vqvae.decoders.0.level_blocks.0.upsample_block.5.bias",
            ),
            ("decoders.2.out.weight", "vqvae.decoders.2.out.weight"),
            ("bottleneck.level_blocks.2.k", "vqvae.bottleneck.level_blocks.2.codebook"),
            ("jukebox.vqvae.decoders.2.out.weight", "vqvae.decoders.2.out.weight"),
            ("y_emb.bow_genre_emb.emb.weight", "priors.0.metadata_embedding.bow_genre_emb.weight"),
            ("y_emb.total_length_emb.emb.weight", "priors.0.metadata_embedding.total_length_emb.emb.weight"),
            ("module.prior.x_emb.weight", "priors.0.prior.embed_tokens.weight"),
            ("prior.pos_emb.pos_emb", "priors.0.prior.pos_emb.pos_emb"),
            (
                "prior.transformer._attn_mods.35.attn.c_attn.w",
                "priors.0.prior.transformer._attn_mods.35.attn.c_attn.weight",
            ),
            (
                "prior.transformer._attn_mods.35.ln_1.bias",
                "priors.0.prior.transformer._attn_mods.35.layer_norm_1.bias",
            ),
        ] {
            assert_eq!(rename(official), Name::To(name.into()), "{official}");
            assert_eq!(rename(name), Name::Keep);
        }
    }

    #[test]
    fn layers_beyond_prior_depth_are_not_loaded() {
        let settings = json!({"prior_depth": 2}).as_object().unwrap().clone();
        let weights = Weights::meta();
        let jukebox = Jukebox::load(Hps::read(&sample(), &settings).unwrap(), &weights).unwrap();
        assert_eq!(jukebox.prior().unwrap().layers(), 2);
        let inventory = weights.finish().unwrap();
        let loaded = |part: &str| inventory.tensors.iter().any(|(name, _)| name.contains(part));
        assert!(loaded("_attn_mods.1.") && !loaded("_attn_mods.2.") && !loaded("fc_proj_out"));
    }
}
