//! Jukebox's hyper-parameters, by OpenAI's names or by those of transformers' `config.json`.
//!
//! OpenAI's files do not say what shape they have: the defaults here are those of the released 5b models, and the
//! setting `hps` (`{"vqvae": {…}, "prior": {…}}`, OpenAI's names) changes them.

use fauna_shared::model::{Keys, check_heads, check_sizes};
use fauna_shared::nn::Activation;
use fauna_shared::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Layers of the prior that LLark listens with (Castellon et al. 2021 found the middle of the stack to know most).
const LAYERS: usize = 36;

/// What the types here do not say of the keys: the codec is typed by OpenAI's names.
pub static KEYS: Keys = Keys { parts: &[("vqvae_config", &VQVAE_KEYS)], ..Keys::NONE };

/// transformers' names of the codec's keys.
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

/// Both networks.
#[derive(Debug, Clone, PartialEq)]
pub struct Hps {
    /// The codec.
    pub vqvae: VqVaeHps,
    /// The prior over its coarsest codes, if the release has one of the kind that is implemented.
    pub prior: Option<PriorHps>,
    /// Why there is none, where the release has one of another kind.
    pub no_prior: Option<String>,
    /// How many of the prior's layers are read; the rest stay in the file.
    pub layers: usize,
    /// Samples a second of the codec, in Hz.
    pub rate: u32,
}

/// The hierarchical VQ-VAE (Dhariwal et al. 2020, table 4).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct VqVaeHps {
    /// Codecs of falling rate, each with an encoder, a decoder and a codebook of its own.
    pub levels: usize,
    /// Halvings (or divisions by the stride) that each level adds.
    pub downs_t: Vec<usize>,
    /// By what each of them divides.
    pub strides_t: Vec<usize>,
    /// Width of a code's vector.
    pub emb_width: usize,
    /// Codes in a codebook.
    pub l_bins: usize,
    /// What each level multiplies `width` and `depth` by; 1 if absent.
    pub hvqvae_multipliers: Option<Vec<usize>>,
    /// Width of the convolutions.
    pub width: usize,
    /// Residual blocks after each division.
    pub depth: usize,
    /// Width inside a residual block, as a multiple.
    pub m_conv: f64,
    /// Block `j` is dilated by this to the power `j`…
    pub dilation_growth_rate: usize,
    /// …or `j` modulo this.
    pub dilation_cycle: Option<usize>,
    /// Whether decoders begin with the most dilated block.
    pub vqvae_reverse_decoder_dilation: bool,
    /// Channels of the sound.
    pub channels: usize,
    /// Whether residual blocks are divided by the root of their number.
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
    /// What `level` multiplies width and depth by.
    pub fn multiplier(&self, level: usize) -> usize {
        self.hvqvae_multipliers.as_ref().and_then(|all| all.get(level)).copied().unwrap_or(1)
    }

    /// Samples in one code of `level`.
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
                "downs_t, strides_t and hvqvae_multipliers are not one for each of {} levels",
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
            (None, _) => Err(Error::unsupported("downs_t and strides_t give no usable hop")),
            (_, None) => {
                Err(Error::unsupported("dilations grow past every sound: depth or dilation_growth_rate"))
            }
        }
    }
}

/// The prior over the coarsest codes, without lyrics (Dhariwal et al. 2020, tables 5 and 6).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct PriorHps {
    /// The level of the VQ-VAE whose codes it reads.
    pub level: usize,
    /// Codes in its window; it reads no fewer.
    pub n_ctx: usize,
    /// Hidden size.
    pub prior_width: usize,
    /// Layers in the file.
    pub prior_depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// How attention is factored; only 2 (block, transpose, previous block) is implemented.
    pub attn_order: usize,
    /// Blocks in a window.
    pub blocks: usize,
    /// Width of attention, as a multiple.
    pub m_attn: f64,
    /// Width inside the feed-forward part, as a multiple.
    pub m_mlp: f64,
    /// Its activation.
    pub act_fn: Activation,
    /// Only true is implemented: conditioning is added before the layers and not after.
    pub merged_decoder: bool,
    /// Genres and artists.
    pub y_bins: (usize, usize),
    /// Bins of each time signal.
    pub t_bins: usize,
    /// Genres a song may have.
    pub max_bow_genre_size: usize,
    /// Samples a second, in Hz.
    pub sr: usize,
    /// The shortest song it was trained on, in seconds.
    pub min_duration: f64,
    /// The longest, in seconds.
    pub max_duration: f64,
    /// Lyric tokens; only 0 is implemented.
    pub n_tokens: usize,
    /// Only true is implemented: conditioning on artist, genre and time.
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

/// More layers than any prior has: 5b's has 79.
const MOST_LAYERS: usize = 10_000;
/// More genres than anybody gives a song: 5b's takes 5.
const MOST_GENRES: usize = 10_000;

impl PriorHps {
    /// Width of queries, keys and values.
    pub fn attention_width(&self) -> usize {
        (self.m_attn * self.prior_width as f64) as usize
    }

    /// Width inside the feed-forward part.
    pub fn mlp_width(&self) -> usize {
        (self.m_mlp * self.prior_width as f64) as usize
    }

    fn check(&self, levels: usize) -> Result<()> {
        let only = |good: bool, what: &str| match good {
            true => Ok(()),
            false => Err(Error::unsupported(format!("a Jukebox prior with {what} is not implemented"))
                .hint("the prior that LLark listens with is 5b's: prior_level_2.pth.tar, without lyrics")),
        };
        only(self.attn_order == 2, &format!("attn_order {}", self.attn_order))?;
        only(self.n_tokens == 0, &format!("lyrics (n_tokens {})", self.n_tokens))?;
        only(self.merged_decoder, "merged_decoder false")?;
        only(self.labels, "labels false")?;
        only(self.level < levels, &format!("level {} of {levels}", self.level))?;
        only(self.prior_depth <= MOST_LAYERS, &format!("prior_depth {}", self.prior_depth))?;
        let genres = self.max_bow_genre_size;
        only(genres <= MOST_GENRES, &format!("max_bow_genre_size {genres}"))?;
        check_sizes(&[
            ("prior_depth", self.prior_depth),
            ("n_ctx", self.n_ctx),
            ("y_bins", self.y_bins.0.min(self.y_bins.1)),
            ("t_bins", self.t_bins),
            ("sr", self.sr),
            ("m_mlp", self.mlp_width()),
        ])?;
        check_heads(("n_ctx", self.n_ctx), ("blocks", self.blocks))?;
        check_heads(("the width of attention", self.attention_width()), ("heads", self.heads))?;
        check_sizes(&[("prior_width", self.prior_width)])
    }
}

impl Hps {
    /// From a config (transformers' keys, or none of them) and what the caller knows better: `hps` and
    /// `prior_depth`.
    ///
    /// # Errors
    /// [`Format`](ErrorKind::Format) naming a key that is wrong, [`Unsupported`](ErrorKind::Unsupported) naming one
    /// that asks for what is not implemented.
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
            // Unless it says otherwise it is over the coarsest codes.
            prior.entry("level").or_insert(json!(vqvae.levels - 1));
        }
        let prior: Option<PriorHps> = prior.map(fields).transpose()?;
        let mut layers = prior.as_ref().map_or(0, |prior| LAYERS.min(prior.prior_depth));
        if let Some(prior) = &prior {
            prior.check(vqvae.levels)?;
            if let Some(wanted) = wanted_layers(settings)? {
                if wanted > prior.prior_depth {
                    return Err(Error::input(format!(
                        "prior_depth {wanted} is more than the {} layers of the prior",
                        prior.prior_depth
                    )));
                }
                layers = wanted;
            }
        }
        let rate = prior.as_ref().map(|prior| prior.sr as u64).or_else(|| config["sampling_rate"].as_u64());
        let rate = u32::try_from(rate.unwrap_or(44_100)).map_err(|_| Error::unsupported("sr is no rate"))?;
        Ok(Self { vqvae, prior, no_prior, layers, rate })
    }
}

/// How many layers of the prior `options` ask for, if they say.
pub fn wanted_layers(options: &Map<String, Value>) -> Result<Option<usize>> {
    match options.get("prior_depth") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(layers) if layers > 0 => Ok(Some(layers as usize)),
            _ => Err(Error::input(format!("prior_depth is a count of layers above 0, not {value}"))),
        },
    }
}

/// The top prior of transformers' config in OpenAI's names; or why it is none that is implemented. A config that says
/// nothing of priors is that of OpenAI's own files.
fn released_prior(config: &Value) -> std::result::Result<Option<Value>, String> {
    if config.get("vqvae_config").is_none() {
        return Ok(Some(json!({})));
    }
    let prior = match (config["nb_priors"].as_u64(), &config["prior_config_list"][0], &config["prior_0"]) {
        (Some(0), _, _) => return Ok(None),
        (_, prior @ Value::Object(_), _) | (_, _, prior @ Value::Object(_)) => prior,
        _ => return Err("its config says nothing of its priors".to_string()),
    };
    let or = |fields: &Value, key: &str, default: Value| match &fields[key] {
        Value::Null => default,
        value => value.clone(),
    };
    let of_prior = |key: &str, default: Value| or(prior, key, default);
    let of_model = |key: &str, default: Value| or(config, key, default);
    let pattern = of_prior("attention_pattern", json!("enc_dec_with_lyrics"));
    if pattern != "raw_column_previous_row_attention" {
        return Err(format!("its prior attends by {pattern}, which is not implemented"));
    }
    if of_prior("mask", json!(false)) != json!(true)
        || of_prior("attn_res_scale", json!(false)) == json!(true)
    {
        return Err(
            "its prior attends without a mask, or scales its residuals, which is not implemented".into()
        );
    }
    let lyrics = of_prior("nb_relevant_lyric_tokens", json!(384));
    if lyrics != json!(0) || of_prior("is_encoder_decoder", json!(true)) != json!(false) {
        return Err("its prior reads lyrics, which is not implemented".to_string());
    }
    let levels = or(&config["vqvae_config"], "levels", json!(3)).as_u64().unwrap_or(3);
    Ok(Some(json!({
        // Counted from the coarsest level there.
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
        .map_err(|e| Error::new(ErrorKind::Format, format!("Jukebox's hyper-parameters: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn files_that_say_nothing_are_the_released_5b() {
        let hps = Hps::read(&json!({"model_type": "jukebox"}), &Map::new()).unwrap();
        let prior = hps.prior.unwrap();
        assert_eq!((prior.attention_width(), prior.mlp_width(), hps.layers), (1200, 4800, 36));
        assert_eq!([0, 1, 2].map(|level| hps.vqvae.hop(level)), [8, 32, 128]);
    }

    #[test]
    fn lyrics_leave_the_codec() {
        let hps = Hps::read(&json!({"vqvae_config": {}, "prior_0": {"n_ctx": 8192}}), &Map::new()).unwrap();
        assert!(hps.prior.is_none() && hps.no_prior.unwrap().contains("enc_dec_with_lyrics"));
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
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
    fn absurd_shapes_are_refused() {
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
