//! The traits that model families implement, and the registry of families.
//!
//! [`Model`] loads a network from a config and weights. [`CausalLm`], [`Forecaster`], [`Policy`] and [`Potential`] are
//! the interfaces of networks by task. [`Pipeline`] is the object-safe interface of a loaded model of any modality,
//! including its processor or tokenizer. A [`Family`] registers a model family with the zoo.

mod causal_lm;
mod forecaster;
mod keys;
mod policy;
mod potential;
mod pretrained;
mod served;
mod session;
mod trainable;

use std::ops::ControlFlow;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use causal_lm::{BlockHook, CausalLm, DefaultTokens, Step, no_hook};
pub use forecaster::{
    Covariate, ExactForecast, ExactHistory, Forecast, ForecastConfig, Forecaster, FrequencyClass, History,
};
pub use keys::{HARMLESS, Keys, Plain, Synonym};
pub use policy::{Controller, DegreeOfFreedom, Observation, Policy, Task};
pub use potential::{Evaluation, Potential};
pub use pretrained::{Layout, LoadOptions, Pretrained};
pub(crate) use served::served;
pub use session::{Reply, Session};
pub use trainable::{Collation, Loss, Trainable, TrainingBatch};

use crate::generate::{Generation, GenerationConfig, PrefixCache, Rng};
use crate::item::{Embeddings, ImageOptions, Item, Modality, Prompt, Tensors, Turn};
use crate::progress::{self, Progress, Unit};
use crate::source::Files;
use crate::text::Tokenizer;
use crate::weights::{Inventory, Name, Weights};
use crate::{Error, ErrorKind, Result};

/// Items that [`Pipeline::embed_with`] embeds between two reports.
const EMBEDDING_CHUNK: usize = 64;

/// A network that is built from a config and weights.
pub trait Model: Sized + Send + Sync {
    /// The config, with the keys of the official `config.json`.
    type Config: DeserializeOwned;

    /// Builds the network, loading each tensor from `weights` by its official name.
    fn load(config: Self::Config, weights: &Weights) -> Result<Self>;
}

/// A loaded model of any modality.
pub trait Pipeline: Send + Sync {
    /// Information about the model: system, modalities, size, source, licence.
    fn card(&self) -> &Card;

    /// The forward pass of the reference implementation, with its input and output names; integers are int64.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) for an unknown input name; the message lists the known ones.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors>;

    /// Calls a method of the reference implementation by name (`forward`, `generate`, `encode`, `decode`, …), with
    /// arguments other than tensors in `options`. Used by parity tests and serving.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let _ = options;
        match method {
            "forward" => self.forward(inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// Computes one embedding per item.
    fn embed(&self, items: &[Item]) -> Result<Embeddings> {
        let _ = items;
        Err(self.cannot("embed"))
    }

    /// As [`embed`](Self::embed), 64 items after 64, which are reported to `progress`. Where that cancels, the work ends
    /// with [`Cancelled`](ErrorKind::Cancelled) before the next 64.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn embed_with(&self, items: &[Item], progress: &dyn Progress) -> Result<Embeddings> {
        let task = progress.begin("embedding", Unit::Items, Some(items.len() as u64));
        let (mut rows, mut cut) = (Vec::new(), Vec::with_capacity(items.len()));
        for (index, chunk) in items.chunks(EMBEDDING_CHUNK).enumerate() {
            progress::check(progress)?;
            let first = index * EMBEDDING_CHUNK;
            let of_chunk = |error: Error| match first {
                0 => error,
                _ => error.context(format!("items {first} to {}", first + chunk.len() - 1)),
            };
            let made = self.embed(chunk).map_err(of_chunk)?;
            rows.push(made.rows);
            cut.extend(made.cut);
            task.advance(chunk.len() as u64);
        }
        match rows.len() {
            0 => self.embed(items),
            1 => Ok(Embeddings { rows: rows.remove(0), cut }),
            _ => Ok(Embeddings { rows: Tensor::cat(&rows, 0)?, cut }),
        }
    }

    /// Computes one embedding per text: [`embed`](Self::embed) for texts.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn embed_texts(&self, texts: &[&str]) -> Result<Embeddings> {
        self.embed(&texts.iter().map(|text| Item::from(*text)).collect::<Vec<_>>())
    }

    /// The tokenizer of the model.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for models without text input, and
    /// [`NotFound`](ErrorKind::NotFound) if the checkpoint has no tokenizer.
    fn tokenizer(&self) -> Result<&Tokenizer> {
        Err(self.cannot("tokenize"))
    }

    /// Generates from `prompt` and calls `each` with every new item; breaking from `each` cancels the generation.
    /// Returns the finish reason, token ids and timings.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the model does not generate, [`Input`](ErrorKind::Input) for an
    /// invalid prompt or option.
    fn generate(
        &self,
        prompt: &Prompt,
        config: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let _ = (prompt, config, each);
        Err(self.cannot("generate"))
    }

    /// Generates from each of `prompts` and calls `each` with every new item and the index of its prompt. Breaking from
    /// `each` cancels that prompt only (for music and images, which are generated together, all prompts);
    /// [`GenerationConfig::cancel`] cancels all. The default implementation runs one prompt after the other; models
    /// that profit from it run them as one batch.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn generate_batch(
        &self,
        prompts: &[Prompt],
        config: &GenerationConfig,
        each: &mut dyn FnMut(usize, Item) -> ControlFlow<()>,
    ) -> Result<Vec<Generation>> {
        let mut made = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            made.push(match config.cancel.is_cancelled() {
                true => Generation::cancelled(),
                false => self.generate(prompt, config, &mut |item| each(index, item))?,
            });
        }
        Ok(made)
    }

    /// Generates the model's turn after `turns`, for a [`Session`]. `cache` is the KV cache of the previous turns, if
    /// the model supports it, and is updated.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn reply(
        &self,
        turns: &[Turn],
        config: &GenerationConfig,
        cache: &mut PrefixCache,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let _ = cache;
        self.generate(&Prompt::Chat(turns.to_vec()), config, each)
    }

    /// How image files are decoded for this model: as by its reference implementation.
    fn image_options(&self) -> ImageOptions {
        ImageOptions::default()
    }

    /// The model as a [`Forecaster`] of time series.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it does not.
    fn forecaster(&self) -> Result<&dyn Forecaster> {
        Err(self.cannot("forecast"))
    }

    /// The model as a [`Policy`] of a robot.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it does not.
    fn policy(&self) -> Result<&dyn Policy> {
        Err(self.cannot("control a robot"))
    }

    /// The model as an interatomic [`Potential`].
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it does not.
    fn potential(&self) -> Result<&dyn Potential> {
        Err(self.cannot("compute the energy of atoms"))
    }

    /// The model as one that can be trained.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it cannot.
    fn trainable(&mut self) -> Result<&mut dyn Trainable> {
        Err(self.cannot("be trained"))
    }

    /// Dummy inputs of `method` with the given sizes, named as in the reference implementation, for benchmarks and
    /// tests. The default implementation returns token ids.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if `method` has no inputs of these sizes.
    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        match (method, sizes) {
            ("forward" | "generate", SampleSizes { tokens: 1.., images: 0, .. }) => token_rows(sizes),
            _ => Err(self
                .cannot(&format!("run \"{method}\" on {} tokens and {} images", sizes.tokens, sizes.images))),
        }
    }

    /// The generation settings that the release recommends, used by default.
    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::default()
    }

    /// The error for an unsupported ability of this model.
    fn cannot(&self, ability: &str) -> Error {
        let card = self.card();
        let list =
            |modalities: &[Modality]| modalities.iter().map(|m| m.to_string()).collect::<Vec<_>>().join(", ");
        Error::unsupported(format!("{} cannot {ability}", card.source)).hint(format!(
            "it is a {} of the {} family: {} in, {} out",
            card.architecture,
            card.family,
            list(&card.inputs),
            list(&card.outputs)
        ))
    }
}

/// [`Pipeline::generate`] for models that implement [`Pipeline::generate_batch`]: a batch of one prompt.
///
/// # Errors
/// As [`Pipeline::generate_batch`].
pub fn batch_of_one(
    model: &dyn Pipeline,
    prompt: &Prompt,
    options: &GenerationConfig,
    each: &mut dyn FnMut(Item) -> ControlFlow<()>,
) -> Result<Generation> {
    let made = model.generate_batch(std::slice::from_ref(prompt), options, &mut |_, item| each(item))?;
    Ok(made.into_iter().next().unwrap_or_default())
}

/// Sizes of the dummy inputs of [`Pipeline::sample`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleSizes {
    /// Batch size.
    pub rows: usize,
    /// Number of tokens, of time steps or of atoms per sequence; 0 for none.
    pub tokens: usize,
    /// Number of images per sequence; 0 for none.
    pub images: usize,
}

/// Dummy `input_ids` and `attention_mask`, `(batch, sequence)`, int64. The ids are small, so that they are in every
/// vocabulary, and differ between sequences.
///
/// # Errors
/// Those of the tensor library.
pub fn token_rows(sizes: &SampleSizes) -> Result<Tensors> {
    let shape = (sizes.rows, sizes.tokens);
    let id = |row: usize, at: usize| 5 + ((at * 7 + row * 3) % 19) as i64;
    let ids = (0..sizes.rows).flat_map(|row| (0..sizes.tokens).map(move |at| id(row, at))).collect();
    Ok(Tensors::from([
        ("input_ids".to_string(), Tensor::from_vec(ids, shape, &Device::Cpu)?),
        ("attention_mask".to_string(), Tensor::ones(shape, DType::I64, &Device::Cpu)?),
    ]))
}

/// Random `pixel_values` of `shape`, float32 in -1 to 1.
///
/// # Errors
/// Those of the tensor library.
pub fn noise_pixels(shape: &[usize]) -> Result<Tensor> {
    let mut random = Rng::new(0, 0);
    let pixels = (0..shape.iter().product()).map(|_| (2.0 * random.uniform() - 1.0) as f32);
    Ok(Tensor::from_vec(pixels.collect(), shape, &Device::Cpu)?)
}

/// Information about a loaded model.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Card {
    /// The source given by the user: a folder, a file, a hub id.
    pub source: String,
    /// The published system it belongs to or reproduces: "Llemma", "RT-2"; else its own name: "Pythia".
    pub system: String,
    /// Name of the family that loads it.
    pub family: &'static str,
    /// The model class, as in `architectures` of `config.json`.
    pub architecture: String,
    /// Input modalities.
    pub inputs: Vec<Modality>,
    /// Output modalities.
    pub outputs: Vec<Modality>,
    /// Task of its head or template, as named by the hub, if inputs and outputs do not determine it:
    /// "fill-mask", "text-classification", "token-classification", "question-answering", "conversational".
    pub task: Option<&'static str>,
    /// Number of parameters.
    pub parameters: u64,
    /// Context length in tokens, if it is limited.
    pub context: Option<usize>,
    /// Licence of the weights, if the registry has it.
    pub licence: Option<&'static str>,
    /// Notes for users: limitations of use, unsupported parts.
    pub notes: Vec<String>,
}

/// Detects a file layout specific to a family.
pub type FindLayout = fn(&Files, &LoadOptions) -> Result<Option<Layout>>;

/// Builds the network of a language model from its config and weights.
pub type LoadCausalLm = fn(Value, &Weights) -> Result<Box<dyn CausalLm>>;

/// A model family in the registry: how its configs are recognized, its modalities, and how it is loaded.
pub struct Family {
    /// Short name: `bert`.
    pub name: &'static str,
    /// The published systems it implements.
    pub systems: &'static [&'static str],
    /// The paper: authors, year and arXiv number.
    pub paper: &'static str,
    /// Values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Values of `architectures` in `config.json`.
    pub architectures: &'static [&'static str],
    /// Values of `general.architecture` in GGUF files.
    pub gguf: &'static [&'static str],
    /// Input modalities.
    pub inputs: &'static [Modality],
    /// Output modalities.
    pub outputs: &'static [Modality],
    /// Properties of its config keys that the config type does not express: aliases, supported values, ignored keys.
    pub keys: &'static Keys,
    /// Released checkpoints.
    pub releases: &'static [Release],
    /// Converts the metadata of a GGUF file to an official config.
    pub config_of_gguf: Option<fn(&crate::checkpoint::Checkpoint) -> Result<Value>>,
    /// Detects releases other than a `config.json` with one set of weights, such as an original release of several
    /// files or a processor without weights. Returns `None` for other files.
    pub layout: Option<FindLayout>,
    /// Renames the tensors of a checkpoint.
    pub rename: fn(&str) -> Name,
    /// Lists the tensors of a config, without a tokenizer or other files.
    pub inventory: fn(&Pretrained) -> Result<Inventory>,
    /// Builds the network of a decoder-only language model from its canonical config, for multimodal models with this
    /// language model.
    pub causal_lm: Option<LoadCausalLm>,
    /// Builds the pipeline.
    pub open: fn(&Pretrained) -> Result<Box<dyn Pipeline>>,
    /// A small config with all features enabled, for tests over all families.
    pub sample: fn() -> Value,
}

/// A released checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Release {
    /// Hub id.
    pub id: &'static str,
    /// The published system it belongs to or reproduces, else its own name.
    pub system: &'static str,
    /// Size as a string: "110M".
    pub size: &'static str,
    /// Licence of the weights.
    pub licence: &'static str,
}

impl Release {
    /// Creates a release.
    pub const fn new(
        id: &'static str,
        system: &'static str,
        size: &'static str,
        licence: &'static str,
    ) -> Self {
        Self { id, system, size, licence }
    }
}

/// Checks that the names of `inputs` are in `known`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) for the first unknown name, with the known ones.
pub fn only_known(inputs: &Tensors, known: &[&str]) -> Result<()> {
    match inputs.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::new(ErrorKind::Input, format!("no input is named \"{name}\""))
            .hint(format!("known: {}", known.join(", ")))),
    }
}

/// Maximum size in a config; the product of two sizes fits in 64 bits.
const LARGEST_SIZE: usize = 1 << 31;

/// Checks that the sizes of a config are positive and not absurdly large, before they are multiplied or allocated.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for the first invalid key.
///
/// ```
/// use fauna_shared::model::check_sizes;
/// assert!(check_sizes(&[("hidden_size", 768)]).is_ok());
/// assert!(check_sizes(&[("hidden_size", usize::MAX)]).is_err());
/// ```
pub fn check_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > LARGEST_SIZE) {
        None => Ok(()),
        Some((key, size)) => {
            Err(Error::unsupported(format!("{key} is {size}")).hint(format!("expected 1 to {LARGEST_SIZE}")))
        }
    }
}

/// Rejects a config with a `quantization_config` (the argument `packing`).
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) with the quantization method, and `instead`, what else can be opened.
pub fn check_unpacked(packing: Option<&Value>, instead: &str) -> Result<()> {
    let Some(packing) = packing else { return Ok(()) };
    let method = packing["quant_method"].as_str().unwrap_or("unknown");
    let error = Error::unsupported(format!("quantization_config \"{method}\" is not implemented")).set(
        "open the unquantized release, and quantize it when it is loaded",
        "Runtime::with_quantize",
        "q8_0",
    );
    match instead {
        "" => Err(error),
        instead => Err(error.hint(format!("or open {instead}"))),
    }
}

/// Checks that `types` is `sliding_attention` or `full_attention` for each of `layers` layers.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) for `layer_types`.
///
/// ```
/// use fauna_shared::model::check_layer_types;
/// let types = ["sliding_attention", "full_attention"].map(String::from);
/// assert!(check_layer_types(&types, 2).is_ok());
/// assert!(check_layer_types(&types, 3).is_err());
/// ```
pub fn check_layer_types(types: &[String], layers: usize) -> Result<()> {
    if types.len() != layers {
        return Err(Error::unsupported(format!(
            "layer_types has {} entries, num_hidden_layers is {layers}",
            types.len()
        )));
    }
    let known = ["sliding_attention", "full_attention"];
    match types.iter().find(|kind| !known.contains(&kind.as_str())) {
        None => Ok(()),
        Some(other) => Err(Error::unsupported(format!("layer_types \"{other}\" is not implemented"))
            .hint(format!("known: {}", known.join(", ")))),
    }
}

/// Checks that the hidden size is a multiple of the number of attention heads; both are `(key, value)`.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) with both keys.
pub fn check_heads(hidden_size: (&str, usize), heads: (&str, usize)) -> Result<()> {
    check_sizes(&[hidden_size, heads])?;
    match hidden_size.1.is_multiple_of(heads.1) {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "{} {} is not a multiple of {} {}",
            hidden_size.0, hidden_size.1, heads.0, heads.1
        ))),
    }
}
