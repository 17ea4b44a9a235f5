//! Jukebox's hyperparameters, by OpenAI's names or by those of transformers' `config.json`.
//!
//! OpenAI's files do not contain them: the defaults are those of the released 5b models, and the setting `hps`
//! (`{"vqvae": {…}, "prior": {…}}`, OpenAI's names) overrides them.

use fauna_shared::model::{Keys, check_heads, check_sizes};
use fauna_shared::nn::Activation;
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Number of prior layers for LLark's features (Castellon et al. 2021 found the middle layers to be the best).
const LAYERS: usize = 36;

/// The config keys that are not declared here: the VQ-VAE's type has OpenAI's names.
pub static KEYS: Keys = Keys { parts: &[("vqvae_config", &VQVAE_KEYS)], ..Keys::NONE };

/// transformers' names of the VQ-VAE's keys.
static VQVAE_KEYS: Keys = Keys {
    older: &[
        ("res_downs_t", "downs_t"),
        ("res_strides_t", "strides_t"),
        ("embed_dim", "emb_width"),
        ("nb_discrete_codes", "l_bins"),
        ("multipliers", "hvqvae_multipliers"),
        ("res_conv_width", "width"),
        ("res_conv_depth", "depth"),
        ("res_convolution_multiplier", "m_conv"),
        ("res_dilation_growth_rate", "dilation_growth_rate"),
        ("res_dilation_cycle", "dilation_cycle"),
        ("conv_input_shape", "channels"),
    ],
    ..Keys::NONE
};

/// Hyperparameters of both networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Hps {
    /// The VQ-VAE.
    pub vqvae: VqVaeHps,
    /// The top-level prior, if the release has one that is implemented.
    pub prior: Option<PriorHps>,
    /// Why there is no prior, if the release has one that is not implemented.
    pub no_prior: Option<String>,
    /// Number of prior layers that are loaded.
    pub layers: usize,
    /// Sampling rate in Hz.
    pub rate: u32,
}

/// The hierarchical VQ-VAE (Dhariwal et al. 2020, table 4).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VqVaeHps {
    /// Number of levels, each with its own encoder, decoder and codebook.
    pub levels: usize,
    /// Number of downsampling convolutions that each level adds.
    pub downs_t: Vec<usize>,
    /// Stride of each level's downsampling convolutions.
    pub strides_t: Vec<usize>,
    /// Dimension of a code's embedding.
    pub emb_width: usize,
    /// Number of codes of a codebook.
    pub l_bins: usize,
    /// Multiplier of `width` and `depth` for each level; 1 if absent.
    pub hvqvae_multipliers: Option<Vec<usize>>,
    /// Number of channels of the convolutions.
    pub width: usize,
    /// Number of residual blocks after each downsampling convolution.
    pub depth: usize,
    /// Multiplier of the channels inside a residual block.
    pub m_conv: f64,
    /// The dilation of residual block `j` is this to the power of `j`, or of `j` modulo `dilation_cycle`.
    pub dilation_growth_rate: usize,
    /// Cycle of the dilations, if any.
    pub dilation_cycle: Option<usize>,
    /// Whether the dilations are in reverse order in the decoder.
    pub vqvae_reverse_decoder_dilation: bool,
    /// Number of audio channels.
    pub channels: usize,
    /// Whether residual blocks are scaled by `1 / sqrt(depth)`.
    pub conv_res_scale: Option<bool>,
}

impl Default for VqVaeHps {
    fn default() -> Self {
        Self {
            levels: 3,
            downs_t: vec![3, 2, 2],
            strides_t: vec![2, 2, 2],
            emb_width: 64,
            l_bins: 2048,
            hvqvae_multipliers: Some(vec![2, 1, 1]),
            width: 32,
            depth: 4,
            m_conv: 1.0,
            dilation_growth_rate: 3,
            dilation_cycle: None,
            vqvae_reverse_decoder_dilation: true,
            channels: 1,
            conv_res_scale: None,
        }
    }
}

impl VqVaeHps {
    /// Multiplier of `width` and `depth` for `level`.
    pub fn multiplier(&self, level: usize) -> usize {
        self.hvqvae_multipliers.as_ref().and_then(|all| all.get(level)).copied().unwrap_or(1)
    }

    /// Hop length of `level`: samples per code.
    pub fn hop(&self, level: usize) -> usize {
        let divisions = self.strides_t.iter().zip(&self.downs_t).take(level + 1);
        divisions.map(|(stride, downs)| stride.pow(*downs as u32)).product()
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("levels", self.levels),
            ("emb_width", self.emb_width),
            ("l_bins", self.l_bins),
            ("width", self.width),
            ("channels", self.channels),
            ("dilation_growth_rate", self.dilation_growth_rate),
            ("dilation_cycle", self.dilation_cycle.unwrap_or(1)),
            ("m_conv", self.m_conv as usize),
        ])?;
        let multipliers = self.hvqvae_multipliers.as_ref().map_or(self.levels, Vec::len);
        if self.downs_t.len() != self.levels
            || self.strides_t.len() != self.levels
            || multipliers < self.levels
        {
            return Err(Error::unsupported(format!(
                "downs_t, strides_t and hvqvae_multipliers must have one entry per level, {} in all",
                self.levels
            )));
        }
        let hop = self.strides_t.iter().zip(&self.downs_t).try_fold(1usize, |hop, (stride, downs)| {
            (*stride > 0 && *downs > 0).then_some(())?;
            hop.checked_mul(stride.checked_pow(u32::try_from(*downs).ok()?)?).filter(|hop| *hop < 1 << 24)
        });
        let deepest = (0..self.levels).map(|level| self.multiplier(level).saturating_mul(self.depth)).max();
        let deepest =
            self.dilation_cycle.map_or(deepest.unwrap_or(0), |cycle| cycle.min(deepest.unwrap_or(0)));
        let dilation =
            u32::try_from(deepest).ok().and_then(|deepest| self.dilation_growth_rate.checked_pow(deepest));
        match (hop, dilation.filter(|dilation| *dilation < 1 << 24)) {
            (Some(_), Some(_)) => Ok(()),
            (None, _) => Err(Error::unsupported("downs_t and strides_t have an invalid hop length")),
            (_, None) => {
                Err(Error::unsupported("depth and dilation_growth_rate have dilations that are too large"))
            }
        }
    }
}

/// The top-level prior without lyrics (Dhariwal et al. 2020, tables 5 and 6).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct PriorHps {
    /// Level of the VQ-VAE whose codes it models.
    pub level: usize,
    /// Context length in codes; inputs must have this length.
    pub n_ctx: usize,
    /// Hidden size.
    pub prior_width: usize,
    /// Number of layers.
    pub prior_depth: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Pattern of the factorized attention; only 2 (block, transpose, previous block) is implemented.
    pub attn_order: usize,
    /// Number of blocks of the factorized attention.
    pub blocks: usize,
    /// Attention dimension, as a multiple of `prior_width`.
    pub m_attn: f64,
    /// Intermediate (feed-forward) size, as a multiple of `prior_width`.
    pub m_mlp: f64,
    /// Activation function.
    pub act_fn: Activation,
    /// Whether conditioning is added before the layers only; only true is implemented.
    pub merged_decoder: bool,
    /// Number of genres and of artists.
    pub y_bins: (usize, usize),
    /// Number of bins of each timing signal.
    pub t_bins: usize,
    /// Maximum number of genres per song.
    pub max_bow_genre_size: usize,
    /// Sampling rate in Hz.
    pub sr: usize,
    /// Minimum duration of a song in training, in seconds.
    pub min_duration: f64,
    /// Maximum duration of a song in training, in seconds.
    pub max_duration: f64,
    /// Number of lyrics tokens; only 0 is implemented.
    pub n_tokens: usize,
    /// Whether there is metadata conditioning; only true is implemented.
    pub labels: bool,
}

impl Default for PriorHps {
    fn default() -> Self {
        Self {
            level: 2,
            n_ctx: 8192,
            prior_width: 4800,
            prior_depth: 72,
            heads: 8,
            attn_order: 2,
            blocks: 128,
            m_attn: 0.25,
            m_mlp: 1.0,
            act_fn: Activation::QuickGelu,
            merged_decoder: true,
            y_bins: (120, 4111),
            t_bins: 128,
            max_bow_genre_size: 5,
            sr: 44_100,
            min_duration: 60.0,
            max_duration: 600.0,
            n_tokens: 0,
            labels: true,
        }
    }
}

/// Maximum number of layers; the largest prior, that of 5b_lyrics, has 79.
const MAX_LAYERS: usize = 10_000;
/// Maximum number of genres per song; 5b has 5.
const MAX_GENRES: usize = 10_000;

impl PriorHps {
    /// Attention dimension: of all queries, keys and values.
    pub fn attention_width(&self) -> usize {
        (self.m_attn * self.prior_width as f64) as usize
    }

    /// Intermediate (feed-forward) size.
    pub fn mlp_width(&self) -> usize {
        (self.m_mlp * self.prior_width as f64) as usize
    }

    fn check(&self, levels: usize) -> Result<()> {
        let only = |good: bool, what: &str| match good {
            true => Ok(()),
            false => Err(Error::unsupported(format!("a Jukebox prior with {what} is not implemented"))
                .hint("LLark uses the prior of 5b: prior_level_2.pth.tar, without lyrics")),
        };
        only(self.attn_order == 2, &format!("attn_order {}", self.attn_order))?;
        only(self.n_tokens == 0, &format!("lyrics (n_tokens {})", self.n_tokens))?;
        only(self.merged_decoder, "merged_decoder false")?;
        only(self.labels, "labels false")?;
        only(self.level < levels, &format!("level {} of {levels}", self.level))?;
        only(self.prior_depth <= MAX_LAYERS, &format!("prior_depth {}", self.prior_depth))?;
        let genres = self.max_bow_genre_size;
        only(genres <= MAX_GENRES, &format!("max_bow_genre_size {genres}"))?;
        check_sizes(&[
            ("prior_depth", self.prior_depth),
            ("n_ctx", self.n_ctx),
            ("y_bins", self.y_bins.0.min(self.y_bins.1)),
            ("t_bins", self.t_bins),
            ("sr", self.sr),
            ("m_mlp", self.mlp_width()),
        ])?;
        check_heads(("n_ctx", self.n_ctx), ("blocks", self.blocks))?;
        check_heads(("the attention dimension", self.attention_width()), ("heads", self.heads))?;
        check_sizes(&[("prior_width", self.prior_width)])
    }
}

impl Hps {
    /// Parses a config with transformers' keys, or none of them, and the settings `hps` and `prior_depth`, which
    /// override it.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) naming an invalid key, [`Unsupported`](ErrorKind::Unsupported) naming a key whose
    /// value is not implemented.
    pub fn read(config: &Value, settings: &Map<String, Value>) -> Result<Self> {
        let config = &KEYS.read(config.clone())?;
        let mut vqvae = config.get("vqvae_config").cloned().unwrap_or_else(|| json!({}));
        let (mut prior, mut no_prior) = match released_prior(config) {
            Ok(prior) => (prior, None),
            Err(reason) => (None, Some(reason)),
        };
        if let Some(hps) = settings.get("hps") {
            merge(&mut vqvae, &VQVAE_KEYS.read(hps["vqvae"].clone())?);
            if hps["prior"].is_object() {
                let mut fields = prior.take().unwrap_or_else(|| json!({}));
                merge(&mut fields, &hps["prior"]);
                (prior, no_prior) = (Some(fields), None);
            }
        }
        let vqvae: VqVaeHps = fields(vqvae)?;
        vqvae.check()?;
        if let Some(Value::Object(prior)) = &mut prior {
            // By default the coarsest level.
            prior.entry("level").or_insert(json!(vqvae.levels - 1));
        }
        let prior: Option<PriorHps> = prior.map(fields).transpose()?;
        let mut layers = prior.as_ref().map_or(0, |prior| LAYERS.min(prior.prior_depth));
        if let Some(prior) = &prior {
            prior.check(vqvae.levels)?;
            if let Some(depth) = prior_depth(settings)? {
                if depth > prior.prior_depth {
                    return Err(Error::input(format!(
                        "prior_depth {depth} is more than the {} layers of the prior",
                        prior.prior_depth
                    )));
                }
                layers = depth;
            }
        }
        let rate = prior.as_ref().map(|prior| prior.sr as u64).or_else(|| config["sampling_rate"].as_u64());
        let rate =
            u32::try_from(rate.unwrap_or(44_100)).map_err(|_| Error::unsupported("sr is out of range"))?;
        Ok(Self { vqvae, prior, no_prior, layers, rate })
    }
}

/// The number of prior layers in `options`, if set.
pub fn prior_depth(options: &Map<String, Value>) -> Result<Option<usize>> {
    match options.get("prior_depth") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(layers) if layers > 0 => Ok(Some(layers as usize)),
            _ => Err(Error::input(format!("prior_depth is {value}, expected a positive integer"))),
        },
    }
}

/// Converts the top-level prior of transformers' config to OpenAI's names; the error is why it is not implemented. A
/// config without a VQ-VAE is that of OpenAI's own files.
fn released_prior(config: &Value) -> std::result::Result<Option<Value>, String> {
    if config.get("vqvae_config").is_none() {
        return Ok(Some(json!({})));
    }
    let prior = match (config["nb_priors"].as_u64(), &config["prior_config_list"][0], &config["prior_0"]) {
        (Some(0), _, _) => return Ok(None),
        (_, prior @ Value::Object(_), _) | (_, _, prior @ Value::Object(_)) => prior,
        _ => return Err("its config has no priors".to_string()),
    };
    let or = |fields: &Value, key: &str, default: Value| match &fields[key] {
        Value::Null => default,
        value => value.clone(),
    };
    let of_prior = |key: &str, default: Value| or(prior, key, default);
    let of_model = |key: &str, default: Value| or(config, key, default);
    let pattern = of_prior("attention_pattern", json!("enc_dec_with_lyrics"));
    if pattern != "raw_column_previous_row_attention" {
        return Err(format!("its prior has the attention pattern {pattern}, which is not implemented"));
    }
    if of_prior("mask", json!(false)) != json!(true)
        || of_prior("attn_res_scale", json!(false)) == json!(true)
    {
        return Err("its prior has no attention mask, or scaled residuals, which is not implemented".into());
    }
    let lyrics = of_prior("nb_relevant_lyric_tokens", json!(384));
    if lyrics != json!(0) || of_prior("is_encoder_decoder", json!(true)) != json!(false) {
        return Err("its prior has lyrics, which is not implemented".to_string());
    }
    let levels = or(&config["vqvae_config"], "levels", json!(3)).as_u64().unwrap_or(3);
    Ok(Some(json!({
        // transformers counts from the coarsest level.
        "level": levels.saturating_sub(1).saturating_sub(of_prior("level", json!(0)).as_u64().unwrap_or(0)),
        "n_ctx": of_prior("n_ctx", json!(6144)),
        "prior_width": of_prior("hidden_size", json!(2048)),
        "prior_depth": of_prior("num_layers", json!(72)),
        "heads": of_prior("n_heads", json!(2)),
        "blocks": of_prior("blocks", json!(64)),
        "m_attn": of_prior("attention_multiplier", json!(0.25)),
        "m_mlp": of_prior("mlp_multiplier", json!(1.0)),
        "act_fn": of_prior("act_fn", json!("quick_gelu")),
        "merged_decoder": of_prior("merged_decoder", json!(true)),
        "y_bins": of_prior("metadata_dims", json!([604, 7898])),
        "t_bins": of_model("timing_dims", json!(64)),
        "max_bow_genre_size": of_model("max_nb_genres", json!(5)),
        "sr": of_model("sampling_rate", json!(44_100)),
        "min_duration": of_model("min_duration", json!(0)),
        "max_duration": of_model("max_duration", json!(600.0)),
        "labels": of_model("metadata_conditioning", json!(true)),
    })))
}

fn merge(fields: &mut Value, changes: &Value) {
    if let (Value::Object(fields), Value::Object(changes)) = (fields, changes) {
        fields.extend(changes.clone());
    }
}

fn fields<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value)
        .map_err(|e| Error::new(ErrorKind::Format, format!("Jukebox's hyperparameters: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_defaults_are_those_of_5b() {
        let hps = Hps::read(&json!({"model_type": "jukebox"}), &Map::new()).unwrap();
        let prior = hps.prior.unwrap();
        assert_eq!((prior.attention_width(), prior.mlp_width(), hps.layers), (1200, 4800, 36));
        assert_eq!([0, 1, 2].map(|level| hps.vqvae.hop(level)), [8, 32, 128]);
    }

    #[test]
    fn a_prior_with_lyrics_is_not_loaded() {
        let hps = Hps::read(&json!({"vqvae_config": {}, "prior_0": {"n_ctx": 8192}}), &Map::new()).unwrap();
        assert!(hps.prior.is_none() && hps.no_prior.unwrap().contains("enc_dec_with_lyrics"));
    }

    #[test]
    fn values_that_are_not_implemented_are_refused_by_key() {
        for (key, value) in
            [("attn_order", json!(12)), ("n_tokens", json!(384)), ("merged_decoder", json!(false))]
        {
            let mut hps = json!({"hps": {"prior": {}}});
            hps["hps"]["prior"][key] = value;
            let error = Hps::read(&json!({}), &settings(hps)).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
        let error = Hps::read(&json!({}), &settings(json!({"prior_depth": 73}))).unwrap_err().to_string();
        assert!(error.contains("73") && error.contains("72"), "{error}");
    }

    #[test]
    fn invalid_sizes_are_refused() {
        for vqvae in [
            json!({"levels": 4}),
            json!({"downs_t": [60, 2, 2]}),
            json!({"strides_t": [0, 2, 2]}),
            json!({"depth": 100}),
            json!({"l_bins": 0}),
        ] {
            assert!(Hps::read(&json!({}), &settings(json!({"hps": {"vqvae": vqvae}}))).is_err(), "{vqvae}");
        }
    }
}
