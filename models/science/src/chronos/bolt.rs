//! Chronos-Bolt: a T5 over patches of a series that predicts quantiles in one forward pass.
//!
//! Ansari et al. 2024, "Chronos: Learning the Language of Time Series"; the Bolt models replace tokens
//! by patches and samples by quantiles.
//! Checked against chronos-forecasting `ChronosBoltPipeline`, parity cases `tests/parity/chronos`.
//! Loads `architectures: ["ChronosBoltModelForForecasting"]`. Activations are `(series, patches, d_model)`.

use candle_core::Tensor;
use fauna_shared::attention::Mask;
use fauna_shared::item::Modality;
use fauna_shared::model::{Family, Model, Release, check_sizes};
use fauna_shared::nn::{Activation, Embedding, concat};
use fauna_shared::weights::Weights;
use fauna_shared::{Error, Result, json};
use fauna_text::t5;
use serde::Deserialize;
use serde_json::Value;

use super::patches::{Cut, ResidualBlock};

/// The keys of `config.json` that define the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Value")]
pub struct Config {
    /// Config of T5.
    pub t5: t5::Config,
    /// Config of Chronos-Bolt.
    pub chronos_config: ChronosBoltConfig,
    /// Id of the token that the decoder begins with.
    pub decoder_start_token_id: u32,
}

impl TryFrom<Value> for Config {
    type Error = String;

    fn try_from(config: Value) -> std::result::Result<Self, String> {
        let told = |error: Error| error.message().to_string();
        let of = |key: &str| config[key].clone();
        let start: Option<u32> =
            json::part("decoder_start_token_id", of("decoder_start_token_id")).map_err(told)?;
        Ok(Self {
            chronos_config: json::part("chronos_config", of("chronos_config")).map_err(told)?,
            decoder_start_token_id: start.unwrap_or(0),
            t5: json::typed(config).map_err(told)?,
        })
    }
}

/// The keys of `chronos_config`.
#[derive(Debug, Clone, Deserialize)]
pub struct ChronosBoltConfig {
    /// Context length in steps.
    pub context_length: usize,
    /// Number of steps of one forecast.
    pub prediction_length: usize,
    /// Patch length in steps.
    pub input_patch_size: usize,
    /// Stride of the patches in steps.
    pub input_patch_stride: usize,
    /// Levels of the trained quantiles.
    pub quantiles: Vec<f64>,
    /// Whether the context ends with the `[REG]` token.
    #[serde(default)]
    pub use_reg_token: bool,
}

/// Id of the `[REG]` token, which ends the context.
const REG: u32 = 1;

/// The network.
pub struct ChronosBolt {
    shared: Embedding,
    input_patch_embedding: ResidualBlock,
    encoder: t5::Encoder,
    decoder: t5::Decoder,
    output_patch_embedding: ResidualBlock,
    start: u32,
    config: ChronosBoltConfig,
}

/// Output of the encoder.
pub struct Encoded {
    /// Input embeddings with the `[REG]` token, `(series, patches, d_model)`.
    pub embeddings: Tensor,
    /// Hidden states, `(series, patches, d_model)`.
    pub states: Tensor,
    /// Which patches have a value, `(series, patches)`.
    pub real: Vec<Vec<bool>>,
}

impl ChronosBoltConfig {
    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("chronos_config.context_length", self.context_length),
            ("chronos_config.prediction_length", self.prediction_length),
            ("chronos_config.quantiles (their number)", self.quantiles.len()),
            (
                "chronos_config.quantiles (their number) * prediction_length",
                self.quantiles.len().saturating_mul(self.prediction_length),
            ),
            ("chronos_config.input_patch_size * 2", self.input_patch_size.saturating_mul(2)),
        ])?;
        check_levels(&self.quantiles)
    }

    /// Patching of the series.
    ///
    /// # Errors
    /// [`Unsupported`](fauna_shared::ErrorKind::Unsupported) for an invalid patch length or stride.
    pub fn cut(&self) -> Result<Cut> {
        Cut::new(self.input_patch_size, self.input_patch_stride, false)
    }
}

/// Checks that the quantile levels rise between 0 and 1.
pub(super) fn check_levels(levels: &[f64]) -> Result<()> {
    let inside = levels.iter().all(|level| *level > 0.0 && *level < 1.0);
    match inside && levels.windows(2).all(|pair| pair[0] < pair[1]) {
        true => Ok(()),
        false => Err(Error::unsupported(format!("quantiles {levels:?} do not rise from 0 to 1"))),
    }
}

impl Model for ChronosBolt {
    type Config = Config;

    fn load(config: Config, w: &Weights) -> Result<Self> {
        let own = config.chronos_config;
        own.check()?;
        let cut = own.cut()?;
        let rows = if own.use_reg_token { 2 } else { 1 };
        let c = t5::Config { vocab_size: rows, ..config.t5 };
        if config.decoder_start_token_id as usize >= rows {
            let message = format!("decoder_start_token_id is {}", config.decoder_start_token_id);
            return Err(Error::unsupported(message).hint(format!("the table has {rows} rows")));
        }
        w.skip("lm_head");
        let shared = t5::words(&c, w)?;
        let activation: Activation = c.dense_act_fn.unwrap_or(c.feed_forward_proj.activation);
        let block =
            |name, inputs, outputs| ResidualBlock::load(&w.at(name), [inputs, c.d_ff, outputs], activation);
        let outputs = own.quantiles.len() * own.prediction_length;
        Ok(Self {
            input_patch_embedding: block("input_patch_embedding", 2 * cut.size, c.d_model)?,
            encoder: t5::Encoder::with_words(&c, shared.clone(), &w.at("encoder"))?,
            decoder: t5::Decoder::with_words(&c, shared.clone(), &w.at("decoder"))?,
            output_patch_embedding: block("output_patch_embedding", c.d_model, outputs)?,
            start: config.decoder_start_token_id,
            shared,
            config: own,
        })
    }
}

impl ChronosBolt {
    /// `chronos_config`.
    pub fn config(&self) -> &ChronosBoltConfig {
        &self.config
    }

    /// Encodes `patches`, `(series, patches, 2 * size)`: normalised values, then their mask. `real` are the patches with a
    /// value.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn encode(&self, patches: &Tensor, mut real: Vec<Vec<bool>>) -> Result<Encoded> {
        let mut embeddings = self.input_patch_embedding.forward(patches)?;
        if self.config.use_reg_token {
            let reg = self.rows_of(REG, real.len(), patches)?;
            embeddings = concat(&[&embeddings, &reg], 1)?;
            real.iter_mut().for_each(|row| row.push(true));
        }
        let mask = Mask::full().with_padding(&real)?;
        let states = self.encoder.forward_embeddings(&embeddings, &mask)?;
        Ok(Encoded { embeddings, states, real })
    }

    /// Predicts normalised quantiles, `(series, quantiles, prediction_length)`.
    ///
    /// # Errors
    /// Errors of the tensor library.
    pub fn decode(&self, encoded: &Encoded) -> Result<Tensor> {
        let series = encoded.real.len();
        let mask = Mask::full().with_padding(&encoded.real)?;
        let start = Tensor::full(self.start, (series, 1), encoded.states.device())?;
        let first = self.decoder.first(&start, &encoded.states, &mask)?;
        let quantiles = self.output_patch_embedding.forward(&first)?;
        Ok(quantiles.reshape((series, self.config.quantiles.len(), self.config.prediction_length))?)
    }

    /// The embedding of token `id` for each of `series`, `(series, 1, d_model)`.
    fn rows_of(&self, id: u32, series: usize, like: &Tensor) -> Result<Tensor> {
        self.shared.forward(&Tensor::full(id, (series, 1), like.device())?)
    }
}

/// Chronos-Bolt.
pub static FAMILY: Family = Family {
    name: "chronos-bolt",
    systems: &["TimeGPT"],
    paper: "Ansari et al. 2024, arXiv 2403.07815",
    model_types: &["t5"],
    architectures: &["ChronosBoltModelForForecasting"],
    gguf: &[],
    keys: &fauna_text::t5::KEYS,
    inputs: &[Modality::Series],
    outputs: &[Modality::Series, Modality::Vector],
    releases: &[
        Release::new("amazon/chronos-bolt-tiny", "TimeGPT", "8.7M", "Apache-2.0"),
        Release::new("amazon/chronos-bolt-mini", "TimeGPT", "21M", "Apache-2.0"),
        Release::new("amazon/chronos-bolt-small", "TimeGPT", "48M", "Apache-2.0"),
        Release::new("amazon/chronos-bolt-base", "TimeGPT", "205M", "Apache-2.0"),
    ],
    config_of_gguf: None,
    layout: Some(super::BOLT),
    rename: super::rename_bolt,
    inventory: |pretrained| Ok(pretrained.load::<ChronosBolt>()?.1),
    causal_lm: None,
    open: |pretrained| Ok(Box::new(super::ChronosBoltPipeline::open(pretrained)?)),
    sample: super::bolt_sample,
};
