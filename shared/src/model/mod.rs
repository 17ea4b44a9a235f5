//! The traits every family implements, and the registry's types.
//!
//! Loading is one trait, [`Model`]. What a network can do is a second, small one: [`CausalLm`], or one of those that a
//! pipeline hands out, [`Forecaster`], [`Policy`] and [`Potential`]. What can be asked of any model, whatever its
//! modality, is the object-safe [`Pipeline`]. A family tells the zoo about itself with one constant, a [`Family`].

mod causal_lm;
mod forecaster;
mod keys;
mod policy;
mod potential;
mod pretrained;
mod served;
mod session;

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

use crate::generate::{Generation, GenerationConfig, PrefixCache, Rng};
use crate::item::{Embeddings, Item, Modality, Prompt, Reading, Tensors, Turn};
use crate::progress::{self, Progress, Unit};
use crate::source::Files;
use crate::text::Tokenizer;
use crate::weights::{Inventory, Name, Weights};
use crate::{Error, ErrorKind, Result};

/// Items that [`Pipeline::embed_with`] embeds between two reports.
const EMBEDDING_CHUNK: usize = 64;

/// One family: how a config and its tensors become a network.
pub trait Model: Sized + Send + Sync {
    /// Hyper-parameters, as the official config spells them.
    type Config: DeserializeOwned;

    /// Builds the network, asking `weights` for every tensor by its official name.
    fn load(config: Self::Config, weights: &Weights) -> Result<Self>;
}

/// What any opened model answers, whatever its modality.
pub trait Pipeline: Send + Sync {
    /// System, modalities, size, source, licence.
    fn card(&self) -> &Card;

    /// The reference's own forward pass: tensors in and out by the reference's own names, integers as int64.
    ///
    /// # Errors
    /// [`Input`](ErrorKind::Input) if a name is not among those the model knows; the message lists them.
    fn forward(&self, inputs: &Tensors) -> Result<Tensors>;

    /// A method of the reference by its own name (`forward`, `generate`, `encode`, `decode`, …), with arguments that
    /// are not tensors in `options`. What parity and serving use.
    fn call(&self, method: &str, inputs: &Tensors, options: &Value) -> Result<Tensors> {
        let _ = options;
        match method {
            "forward" => self.forward(inputs),
            other => Err(self.cannot(&format!("run the method \"{other}\""))),
        }
    }

    /// One vector an item.
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

    /// One vector a text: [`embed`](Self::embed) of texts.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn embed_texts(&self, texts: &[&str]) -> Result<Embeddings> {
        self.embed(&texts.iter().map(|text| Item::from(*text)).collect::<Vec<_>>())
    }

    /// Its tokenizer, to count tokens with or to cut texts.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) for models that read no text, and
    /// [`NotFound`](ErrorKind::NotFound) if the checkpoint came without one.
    fn tokenizer(&self) -> Result<&Tokenizer> {
        Err(self.cannot("tokenize"))
    }

    /// Continues `prompt`, handing each piece to `each` as it is made; `each` may break to cancel. Gives what became of it:
    /// why it ended, its tokens, what it took.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if the model does not generate, [`Input`](ErrorKind::Input) for a prompt or
    /// an option that it cannot follow.
    fn generate(
        &self,
        prompt: &Prompt,
        config: &GenerationConfig,
        each: &mut dyn FnMut(Item) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let _ = (prompt, config, each);
        Err(self.cannot("generate"))
    }

    /// Continues each of `prompts`, handing on each piece with the index of its prompt; breaking ends that prompt alone (music
    /// and pictures, whose rows are drawn together, all of them), and [`GenerationConfig::cancel`] every one. Models that gain by it take all prompts at once; by default they go one
    /// after the other.
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

    /// The model's turn after `turns`, for a [`Session`]: `cache` holds what was read of them before, where the model keeps
    /// that, and is brought up to date.
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

    /// How files of pictures are read for it: as its reference reads them.
    fn reading(&self) -> Reading {
        Reading::default()
    }

    /// The model as one that forecasts series.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it does not.
    fn forecaster(&self) -> Result<&dyn Forecaster> {
        Err(self.cannot("forecast"))
    }

    /// The model as one that moves a robot.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it does not.
    fn policy(&self) -> Result<&dyn Policy> {
        Err(self.cannot("move a robot"))
    }

    /// The model as one that knows the energy of atoms.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if it does not.
    fn potential(&self) -> Result<&dyn Potential> {
        Err(self.cannot("tell the energy of atoms"))
    }

    /// Inputs of `method` of the wanted sizes, under the reference's names: what is timed, or tried out, where there is no
    /// data. By default rows of tokens.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) if this model's `method` has no inputs of these sizes.
    fn sample(&self, method: &str, sizes: &SampleSizes) -> Result<Tensors> {
        match (method, sizes) {
            ("forward" | "generate", SampleSizes { tokens: 1.., images: 0, .. }) => token_rows(sizes),
            _ => Err(self.cannot(&format!(
                "run \"{method}\" on {} tokens and {} pictures",
                sizes.tokens, sizes.images
            ))),
        }
    }

    /// The decoding that the release recommends: what a program uses where its user chose nothing.
    fn defaults(&self) -> GenerationConfig {
        GenerationConfig::default()
    }

    /// The error of an ability this model lacks.
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

/// How large the inputs are that [`Pipeline::sample`] makes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleSizes {
    /// Entries of the batch.
    pub rows: usize,
    /// Tokens of text, steps of a series or atoms of a structure in each row; 0 for none.
    pub tokens: usize,
    /// Pictures in each row; 0 for none.
    pub images: usize,
}

/// `input_ids` and `attention_mask` of exact sizes, `(rows, tokens)` of int64. The ids are small, so that every
/// vocabulary has them, and differ from row to row.
///
/// # Errors
/// None, save what the tensor library has to say.
pub fn token_rows(sizes: &SampleSizes) -> Result<Tensors> {
    let shape = (sizes.rows, sizes.tokens);
    let id = |row: usize, at: usize| 5 + ((at * 7 + row * 3) % 19) as i64;
    let ids = (0..sizes.rows).flat_map(|row| (0..sizes.tokens).map(move |at| id(row, at))).collect();
    Ok(Tensors::from([
        ("input_ids".to_string(), Tensor::from_vec(ids, shape, &Device::Cpu)?),
        ("attention_mask".to_string(), Tensor::ones(shape, DType::I64, &Device::Cpu)?),
    ]))
}

/// Made-up `pixel_values` of `shape`, float32 in -1 to 1, no two pictures alike.
///
/// # Errors
/// None, save what the tensor library has to say.
pub fn noise_pixels(shape: &[usize]) -> Result<Tensor> {
    let mut random = Rng::new(0, 0);
    let pixels = (0..shape.iter().product()).map(|_| (2.0 * random.uniform() - 1.0) as f32);
    Ok(Tensor::from_vec(pixels.collect(), shape, &Device::Cpu)?)
}

/// What a person wants to know about an opened model.
#[derive(Debug, Clone, Serialize)]
pub struct Card {
    /// What the user named: a folder, a file, a hub id.
    pub source: String,
    /// The system it belongs to or stands for: "Llemma", "RT-2"; else the name of its own: "Pythia".
    pub system: String,
    /// The family that loads it.
    pub family: &'static str,
    /// The class of the reference, as the config's `architectures` names it.
    pub architecture: String,
    /// What it reads.
    pub inputs: Vec<Modality>,
    /// What it writes.
    pub outputs: Vec<Modality>,
    /// What its head or its template is for, in the words of the hub, where inputs and outputs do not say it:
    /// "fill-mask", "text-classification", "token-classification", "question-answering", "conversational".
    pub task: Option<&'static str>,
    /// Numbers in its weights.
    pub parameters: u64,
    /// The longest input in tokens, if there is a longest.
    pub context: Option<usize>,
    /// The licence of the weights, where the registry knows it.
    pub licence: Option<&'static str>,
    /// What users must know: limits of use, what was cut.
    pub notes: Vec<String>,
}

/// Looks at the files of a release for a layout of the family's own.
pub type FindLayout = fn(&Files, &LoadOptions) -> Result<Option<Layout>>;

/// Builds the network of a language model from its config and tensors.
pub type LoadCausalLm = fn(Value, &Weights) -> Result<Box<dyn CausalLm>>;

/// One family as the zoo knows it: what it answers to, what it can do, how it opens.
pub struct Family {
    /// A short name: `bert`.
    pub name: &'static str,
    /// The systems of the zoo it stands for.
    pub systems: &'static [&'static str],
    /// The paper, as authors and year with its number.
    pub paper: &'static str,
    /// The `model_type`s of `config.json` it answers to.
    pub model_types: &'static [&'static str],
    /// The `architectures` of `config.json` it implements.
    pub architectures: &'static [&'static str],
    /// The `general.architecture`s of GGUF files it answers to.
    pub gguf: &'static [&'static str],
    /// What it reads.
    pub inputs: &'static [Modality],
    /// What it writes.
    pub outputs: &'static [Modality],
    /// What its config's type does not say of its keys: synonyms, what is supported, what is harmless.
    pub keys: &'static Keys,
    /// Released checkpoints.
    pub releases: &'static [Release],
    /// The config of a GGUF file in the official spelling, from the file's metadata.
    pub config_of_gguf: Option<fn(&crate::checkpoint::Checkpoint) -> Result<Value>>,
    /// What to make of a release that is not one `config.json` beside one set of weights: an original release of
    /// several files, a bare processor. It gives none for what is no such thing.
    pub layout: Option<FindLayout>,
    /// What the tensors of a release are called in the model file.
    pub rename: fn(&str) -> Name,
    /// Walks the tensors without a tokenizer or any other file: what a checkpoint of this config holds.
    pub inventory: fn(&Pretrained) -> Result<Inventory>,
    /// Builds the network of a decoder-only language model from its config in the canonical spelling, for models of
    /// other modalities that stand on one.
    pub causal_lm: Option<LoadCausalLm>,
    /// Builds the pipeline.
    pub open: fn(&Pretrained) -> Result<Box<dyn Pipeline>>,
    /// A small config of the family, every branch awake, for the sweep over all families.
    pub sample: fn() -> Value,
}

/// A released checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Release {
    /// Its name on the hub.
    pub id: &'static str,
    /// The system it belongs to or stands for, else the name of its own.
    pub system: &'static str,
    /// Its size in words: "110M".
    pub size: &'static str,
    /// The licence of its weights.
    pub licence: &'static str,
}

impl Release {
    /// The release `id` of `system`, in words its `size`, and the `licence` of its weights.
    pub const fn new(
        id: &'static str,
        system: &'static str,
        size: &'static str,
        licence: &'static str,
    ) -> Self {
        Self { id, system, size, licence }
    }
}

/// Refuses inputs whose names are not in `known`.
///
/// # Errors
/// [`Input`](ErrorKind::Input) that names the stranger and lists what is known.
pub fn only_known(inputs: &Tensors, known: &[&str]) -> Result<()> {
    match inputs.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Error::new(ErrorKind::Input, format!("no input is called \"{name}\""))
            .hint(format!("known: {}", known.join(", ")))),
    }
}

/// The largest size a config may name: products of two still fit the machine's integers.
const LARGEST_SIZE: usize = 1 << 31;

/// Refuses a config whose sizes are zero or absurd, before anything is multiplied or reserved by them.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) that names the key.
///
/// ```
/// use fauna_shared::model::check_sizes;
/// assert!(check_sizes(&[("hidden_size", 768)]).is_ok());
/// assert!(check_sizes(&[("hidden_size", usize::MAX)]).is_err());
/// ```
pub fn check_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > LARGEST_SIZE) {
        None => Ok(()),
        Some((key, size)) => Err(Error::unsupported(format!("{key} is {size}"))
            .hint(format!("a size from 1 to {LARGEST_SIZE} is wanted"))),
    }
}

/// Refuses a config whose weights are packed by another program: `packing` is its `quantization_config`.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) that names the method, with `hint`.
pub fn check_unpacked(packing: Option<&Value>, hint: &str) -> Result<()> {
    let Some(packing) = packing else { return Ok(()) };
    let method = packing["quant_method"].as_str().unwrap_or("of an unknown method");
    Err(Error::unsupported(format!("quantization_config \"{method}\" is not implemented")).hint(hint))
}

/// Refuses a list of attention kinds that is not one of `sliding_attention` and `full_attention` for each of `layers`
/// blocks.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) that names `layer_types`.
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

/// Refuses `heads` heads that do not share `width` evenly.
///
/// # Errors
/// [`Unsupported`](ErrorKind::Unsupported) that names both keys.
pub fn check_heads(width: (&str, usize), heads: (&str, usize)) -> Result<()> {
    check_sizes(&[width, heads])?;
    match width.1.is_multiple_of(heads.1) {
        true => Ok(()),
        false => Err(Error::unsupported(format!(
            "{} {} is not a multiple of {} {}",
            width.0, width.1, heads.0, heads.1
        ))),
    }
}
